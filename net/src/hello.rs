//! The first bytes of a channel, in both directions: wire version, cluster and kind.

use crate::{Error, Fingerprint, Result};

/// Version of everything below the frames' contents. Both sides must have the same.
pub const WIRE_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"GlFS";
/// Enough of the fingerprint to tell clusters apart; who may connect is TLS's business.
const FINGERPRINT_LEN: usize = 16;
pub(crate) const HELLO_LEN: usize = 4 + 2 + 1 + 1 + FINGERPRINT_LEN;

/// What a channel is for, so that the acceptor can hand it to the right part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelKind {
    /// Which protocol.
    pub kind: u8,
    /// Which version of it.
    pub version: u8,
}

impl ChannelKind {
    /// Kind and version of a protocol.
    pub const fn new(kind: u8, version: u8) -> Self {
        ChannelKind { kind, version }
    }
}

pub(crate) fn encode(kind: ChannelKind, fingerprint: &Fingerprint) -> [u8; HELLO_LEN] {
    let mut hello = [0; HELLO_LEN];
    hello[..4].copy_from_slice(&MAGIC);
    hello[4..6].copy_from_slice(&WIRE_VERSION.to_le_bytes());
    hello[6] = kind.kind;
    hello[7] = kind.version;
    hello[8..].copy_from_slice(&fingerprint.0[..FINGERPRINT_LEN]);
    hello
}

pub(crate) fn decode(hello: &[u8; HELLO_LEN], fingerprint: &Fingerprint) -> Result<ChannelKind> {
    if hello[..4] != MAGIC {
        return Err(Error::Protocol("the channel does not begin with a hello".into()));
    }
    let version = u16::from_le_bytes([hello[4], hello[5]]);
    if version != WIRE_VERSION {
        return Err(Error::Refused(format!("the peer speaks wire version {version}, this is {WIRE_VERSION}")));
    }
    if hello[8..] != fingerprint.0[..FINGERPRINT_LEN] {
        return Err(Error::Refused("the peer belongs to another cluster".into()));
    }
    Ok(ChannelKind { kind: hello[6], version: hello[7] })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hello_round_trips_and_golden_bytes_hold() {
        let fingerprint = Fingerprint([9; 32]);
        let hello = encode(ChannelKind::new(3, 4), &fingerprint);
        assert_eq!(&hello[..9], b"GlFS\x01\x00\x03\x04\x09");
        assert_eq!(decode(&hello, &fingerprint).unwrap(), ChannelKind::new(3, 4));
    }

    #[test]
    fn hello_of_other_version_cluster_or_protocol_is_refused() {
        let fingerprint = Fingerprint([9; 32]);
        for at in [0, 4, 8, HELLO_LEN - 1] {
            let mut hello = encode(ChannelKind::new(3, 4), &fingerprint);
            hello[at] ^= 1;
            assert!(decode(&hello, &fingerprint).is_err());
        }
    }
}
