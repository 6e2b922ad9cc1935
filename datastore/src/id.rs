//! Names of blobs and of regions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A region's number in the cluster's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Region(pub u16);

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {}", self.0)
    }
}

/// The name of an immutable blob, unique for ever: a writer session never uses a sequence number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId {
    /// The region whose bucket the blob was first put into.
    pub origin: Region,
    /// The session that wrote it.
    pub writer: u64,
    /// Counts the writer's blobs.
    pub sequence: u64,
}

impl BlobId {
    /// The folder of all blobs in a bucket.
    pub const FOLDER: &'static str = "blobs";

    /// A blob's name from its parts.
    #[must_use]
    pub fn new(origin: Region, writer: u64, sequence: u64) -> BlobId {
        BlobId { origin, writer, sequence }
    }

    /// One of 256 sub-folders, chosen by a checksum, so that one writer's blobs spread over a bucket's partitions.
    #[must_use]
    pub fn shard(&self) -> u8 {
        let mut name = [0_u8; 18];
        name[..2].copy_from_slice(&self.origin.0.to_be_bytes());
        name[2..10].copy_from_slice(&self.writer.to_be_bytes());
        name[10..].copy_from_slice(&self.sequence.to_be_bytes());
        (crc32c::crc32c(&name) >> 24) as u8
    }

    /// The object's path in every bucket, for example `blobs/7f/0001-000000000000002a-0000000000000007`.
    #[must_use]
    pub fn object_path(&self) -> String {
        format!("{}/{:02x}/{self}", Self::FOLDER, self.shard())
    }

    /// The blob of an object's path; only the one canonical spelling is accepted.
    pub fn from_object_path(path: &str) -> Result<BlobId, InvalidBlobName> {
        let name = path.rsplit('/').next().unwrap_or_default();
        let id: BlobId = name.parse()?;
        if id.object_path() == path { Ok(id) } else { Err(InvalidBlobName(shorten(path))) }
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}-{:016x}-{:016x}", self.origin.0, self.writer, self.sequence)
    }
}

impl FromStr for BlobId {
    type Err = InvalidBlobName;

    fn from_str(name: &str) -> Result<BlobId, InvalidBlobName> {
        let invalid = || InvalidBlobName(shorten(name));
        let mut parts = name.split('-');
        let (Some(origin), Some(writer), Some(sequence), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        let id = BlobId {
            origin: Region(u16::from_str_radix(origin, 16).map_err(|_| invalid())?),
            writer: u64::from_str_radix(writer, 16).map_err(|_| invalid())?,
            sequence: u64::from_str_radix(sequence, 16).map_err(|_| invalid())?,
        };
        // Capitals, signs and missing zeros would give one blob several names.
        if id.to_string() == name { Ok(id) } else { Err(invalid()) }
    }
}

fn shorten(name: &str) -> String {
    name.chars().take(100).collect()
}

/// A name that is no blob's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a blob's name")]
pub struct InvalidBlobName(String);

/// What the metadata knows of a blob: enough to find it and to tell it from anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// Its name.
    pub id: BlobId,
    /// Length of the whole blob.
    pub len_bytes: u32,
    /// CRC32C of the whole blob.
    pub crc32c: u32,
}

impl BlobRef {
    /// The reference of `data` under the name `id`. `data` is at most `u32::MAX` long (the caller checked its limit).
    pub(crate) fn of(id: BlobId, data: &[u8]) -> Option<BlobRef> {
        Some(BlobRef { id, len_bytes: u32::try_from(data.len()).ok()?, crc32c: crc32c::crc32c(data) })
    }

    /// Whether `data` is this blob.
    #[must_use]
    pub fn matches(&self, data: &[u8]) -> bool {
        data.len() as u64 == u64::from(self.len_bytes) && crc32c::crc32c(data) == self.crc32c
    }
}

impl fmt::Display for BlobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes, crc32c {:08x})", self.id, self.len_bytes, self.crc32c)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn object_path_golden() {
        let id = BlobId::new(Region(1), 42, 7);
        assert_eq!(id.object_path(), "blobs/fd/0001-000000000000002a-0000000000000007");
        let id = BlobId::new(Region(u16::MAX), u64::MAX, u64::MAX);
        assert_eq!(id.object_path(), "blobs/cc/ffff-ffffffffffffffff-ffffffffffffffff");
    }

    #[test]
    fn object_path_other_spellings_refused() {
        let good = BlobId::new(Region(1), 42, 7).object_path();
        assert!(BlobId::from_object_path(&good).is_ok());
        for bad in [
            "",
            "blobs",
            "0001-000000000000002a-0000000000000007",
            "blobs/00/0001-000000000000002a-0000000000000007",
            "0001-2a-7",
            "blobs/7f/0001-000000000000002A-0000000000000007",
            "+001-000000000000002a-0000000000000007",
        ] {
            assert!(BlobId::from_object_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shard_spreads_one_writers_blobs() {
        let shards: std::collections::BTreeSet<u8> =
            (0..4096).map(|n| BlobId::new(Region(3), 0xdead_beef, n).shard()).collect();
        assert!(shards.len() > 250, "{}", shards.len());
    }

    proptest! {
        #[test]
        fn object_path_round_trip(origin: u16, writer: u64, sequence: u64) {
            let id = BlobId::new(Region(origin), writer, sequence);
            prop_assert_eq!(BlobId::from_object_path(&id.object_path()).unwrap(), id);
            prop_assert_eq!(id.to_string().parse::<BlobId>().unwrap(), id);
        }

        #[test]
        fn parse_never_panics(name: String) {
            let _ = BlobId::from_object_path(&name);
            let _ = name.parse::<BlobId>();
        }
    }
}
