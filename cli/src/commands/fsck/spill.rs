//! Facts put aside: in memory as long as they are few, else in temporary files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use metadata::Error;
use metadata::check::{Heap, PARTS};

/// Held in memory; beyond that it goes to files.
const BYTES_MAX: usize = 64 << 20;

/// Parts in memory and in files.
#[derive(Default)]
pub struct Spill {
    parts: Vec<Part>,
    in_memory: usize,
    bytes_max: Option<usize>,
}

#[derive(Default)]
struct Part {
    file: Option<File>,
    recent: Vec<u8>,
}

impl Spill {
    fn move_to_files(&mut self) -> io::Result<()> {
        for part in self.parts.iter_mut().filter(|part| !part.recent.is_empty()) {
            let file = match &mut part.file {
                Some(file) => file,
                // Gone as soon as it is closed.
                none => none.insert(tempfile::tempfile()?),
            };
            file.write_all(&part.recent)?;
            part.recent = Vec::new();
        }
        self.in_memory = 0;
        Ok(())
    }
}

impl Heap for Spill {
    fn put(&mut self, part: usize, record: &[u8]) -> Result<(), Error> {
        if self.parts.is_empty() {
            self.parts.resize_with(2 * PARTS, Part::default);
        }
        self.parts[part].recent.extend_from_slice(record);
        self.in_memory += record.len();
        if self.in_memory > self.bytes_max.unwrap_or(BYTES_MAX) {
            self.move_to_files().map_err(aside)?;
        }
        Ok(())
    }

    fn part(&mut self, part: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let Some(part) = self.parts.get_mut(part) else { return Ok(bytes) };
        if let Some(file) = &mut part.file {
            let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
            read.map_err(aside)?;
        }
        bytes.extend_from_slice(&part.recent);
        Ok(bytes)
    }
}

fn aside(error: io::Error) -> Error {
    Error::StoreFailed(format!("putting facts aside in {}: {error}", std::env::temp_dir().display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_come_back_as_they_were_put_from_memory_and_files() {
        let mut spill = Spill { bytes_max: Some(100), ..Spill::default() };
        assert!(spill.part(3).unwrap().is_empty());
        let mut expected = vec![Vec::new(); 2 * PARTS];
        for number in 0..1000_usize {
            let (part, record) = (number * 7 % (2 * PARTS), [number as u8; 3]);
            spill.put(part, &record).unwrap();
            expected[part].extend_from_slice(&record);
        }
        for (part, expected) in expected.iter().enumerate() {
            assert_eq!(spill.part(part).unwrap(), *expected);
            assert_eq!(spill.part(part).unwrap(), *expected, "and again");
        }
    }
}
