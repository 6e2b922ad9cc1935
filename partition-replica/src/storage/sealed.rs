//! Small files that are replaced as a whole: JSON, then a line with its checksum. A crash leaves the old one or the new one.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

const SEAL: &str = "crc32c ";

/// Writes it. Durable on return.
pub fn write(path: &Path, content: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(content).map_err(|error| Error::State(error.to_string()))?;
    text.push('\n');
    let crc = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("{SEAL}{crc:08x}\n"));
    replace(path, text.as_bytes()).map_err(Error::file(path))
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads it; none if there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::File { path: path.into(), source }),
    };
    let damaged = |problem: String| Error::Corrupt { file: path.display().to_string(), offset: 0, problem };
    let (content, seal) = text.rfind(SEAL).map(|at| text.split_at(at)).ok_or_else(|| damaged("no checksum".into()))?;
    if seal != format!("{SEAL}{:08x}\n", crc32c::crc32c(content.as_bytes())) {
        return Err(damaged("the checksum does not fit".into()));
    }
    serde_json::from_str(content).map(Some).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn file_is_read_back_and_any_flipped_bit_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert_eq!(read::<Vec<u64>>(&path).unwrap(), None);
        write(&path, &vec![1u64, 22]).unwrap();
        write(&path, &vec![1u64, 23]).unwrap();
        assert_eq!(read::<Vec<u64>>(&path).unwrap(), Some(vec![1, 23]));
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            assert!(matches!(read::<Vec<u64>>(&path), Err(Error::Corrupt { .. })), "bit {bit}");
        }
    }
}
