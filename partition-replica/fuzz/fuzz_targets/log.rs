//! Any bytes as a segment's header, as a batch, as records, and what those records do to a log.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use multicast::ids::LogIndex;

// The log's format is private: the source itself is under test.
#[allow(dead_code)]
#[path = "../../src/storage/wal/format.rs"]
mod format;
#[allow(dead_code)]
#[path = "../../src/storage/wal/index.rs"]
mod index;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = format::SegmentHeader::decode(data) {
        assert_eq!(header.encode(), data[..header.encode().len()]);
    }
    if let Some((head, records)) = data.split_first_chunk::<{ format::BATCH_HEADER_LEN }>()
        && let Some(batch) = format::BatchHeader::decode(7, head)
    {
        let _ = batch.fits(7, records);
    }
    let mut logs: BTreeMap<_, index::GroupLog> = BTreeMap::new();
    let mut reader = format::RecordReader::new(data);
    let mut start = 0;
    while let Ok(Some((record, end))) = reader.next() {
        let mut again = Vec::new();
        record.encode(&mut again);
        if !matches!(record, format::WalRecord::Append { .. }) {
            assert_eq!(again, data[start..end]);
        }
        start += again.len();
        let log = logs.entry(index::group_of(&record)).or_default();
        if log.apply(&record, index::Position::of(&record, 1, 0), 64).is_err() {
            return;
        }
        let _ = (log.gap(), log.live(), log.live_bytes(), log.oldest_segment());
        let last = log.state().last.0;
        let _ = (log.ballot(last), log.position(last), log.cached(last), log.position(LogIndex(u64::MAX)));
    }
});
