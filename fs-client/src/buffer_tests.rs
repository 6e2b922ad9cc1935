#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// A buffer with the blobs that its chunks became, beside a plain array.
#[derive(Default)]
struct Pair {
    buffer: WriteBuffer,
    blobs: HashMap<BlobId, Bytes>,
    next_blob: u64,
    model: Vec<Option<u8>>,
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, len: usize, fill: u8 },
    Truncate(u64),
    Freeze { named: bool },
    FlushFails { between: Option<(u64, usize, u8)> },
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..300_u64, 1..90_usize, any::<u8>());
    prop_oneof![
        6 => write.clone().prop_map(|(offset, len, fill)| Step::Write { offset, len, fill }),
        1 => (0..300_u64).prop_map(Step::Truncate),
        2 => any::<bool>().prop_map(|named| Step::Freeze { named }),
        1 => proptest::option::of(write).prop_map(|between| Step::FlushFails { between }),
    ]
}

impl Pair {
    fn write(&mut self, offset: u64, len: usize, fill: u8) {
        let bytes: Vec<u8> = (0..len).map(|at| fill.wrapping_add(at as u8)).collect();
        self.buffer.write(offset, &bytes);
        let end = offset as usize + len;
        if self.model.len() < end {
            self.model.resize(end, None);
        }
        for (at, byte) in bytes.into_iter().enumerate() {
            self.model[offset as usize + at] = Some(byte);
        }
    }

    fn freeze(&mut self, named: bool) {
        let in_memory = self.buffer.segments().filter(|segment| matches!(segment.data, Data::Memory(_)));
        let Some(offset) = in_memory.max_by_key(|segment| segment.len).map(|segment| segment.offset) else { return };
        let (chunk, bytes) = self.buffer.freeze(offset).unwrap();
        if named {
            let blob = BlobId { origin: 0, writer: 1, sequence: self.next_blob };
            self.next_blob += 1;
            let range = BlobRange { blob, blob_len: bytes.len() as u32, crc32c: 0, start: 0 };
            self.blobs.insert(blob, bytes);
            let _ = self.buffer.become_blob(chunk, range);
        } else if chunk % 2 == 0 {
            self.buffer.thaw(chunk);
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Write { offset, len, fill } => self.write(offset, len, fill),
            Step::Truncate(size) => {
                self.buffer.remove(size, u64::MAX);
                self.model.truncate(size as usize);
            }
            Step::Freeze { named } => self.freeze(named),
            Step::FlushFails { between } => {
                let taken = self.buffer.take();
                assert!(self.buffer.is_empty());
                if let Some((offset, len, fill)) = between {
                    self.write(offset, len, fill);
                }
                self.buffer.restore(taken);
            }
        }
    }

    fn seen(&self, from: u64, to: u64) -> Vec<Option<u8>> {
        let mut seen = vec![None; (to - from) as usize];
        let mut last = from;
        for part in self.buffer.overlay(from, to) {
            let (offset, bytes) = match part {
                Overlay::Bytes(offset, bytes) => (offset, bytes),
                Overlay::Blob(offset, len, range) => {
                    let start = range.start as usize;
                    (offset, self.blobs[&range.blob].slice(start..start + len as usize))
                }
            };
            assert!(offset >= last, "parts are in order");
            last = offset + bytes.len() as u64;
            for (at, byte) in bytes.iter().enumerate() {
                seen[(offset - from) as usize + at] = Some(*byte);
            }
        }
        seen
    }

    fn check(&self) {
        let to = self.model.len() as u64 + 10;
        let mut expected = self.model.clone();
        expected.resize(to as usize, None);
        assert_eq!(self.seen(0, to), expected);
        assert_eq!(self.seen(to / 3, to / 2), expected[to as usize / 3..to as usize / 2]);
        let end = self.model.iter().rposition(Option::is_some).map_or(0, |at| at as u64 + 1);
        assert_eq!(self.buffer.end(), end);
        let memory: usize = self
            .buffer
            .segments()
            .map(|segment| match &segment.data {
                Data::Memory(bytes) => {
                    assert_eq!(bytes.len() as u64, segment.len);
                    bytes.len()
                }
                Data::Frozen { .. } | Data::Blob(_) => 0,
            })
            .sum();
        assert_eq!(self.buffer.memory_bytes(), memory);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn buffer_shows_what_a_plain_array_would(steps in proptest::collection::vec(step(), 1..60)) {
        let mut pair = Pair::default();
        for step in steps {
            pair.apply(step);
            pair.check();
        }
    }
}

#[test]
fn sequential_writes_fill_whole_blobs() {
    let mut buffer = WriteBuffer::default();
    let part = vec![7_u8; 1 << 20];
    let mut frozen = 0;
    for at in 0..9_u64 {
        buffer.write(at << 20, &part);
        while let Some((_, bytes)) = buffer.freeze_full() {
            assert_eq!(bytes.len(), BLOB_LEN);
            frozen += 1;
        }
    }
    assert_eq!(frozen, 2);
    assert_eq!(buffer.memory_bytes(), 1 << 20);
    assert_eq!((buffer.count(), buffer.end()), (3, 9 << 20));
}

#[test]
fn write_longer_than_a_blob_is_cut() {
    let mut buffer = WriteBuffer::default();
    buffer.write(5, &vec![1; 2 * BLOB_LEN + 10]);
    let lens: Vec<u64> = buffer.segments().map(|segment| segment.len).collect();
    assert_eq!(lens, [BLOB_LEN as u64, BLOB_LEN as u64, 10]);
    assert!(buffer.has_full());
}
