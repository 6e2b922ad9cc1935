//! A random log is crashed behind every single write; what was acknowledged must be there, nothing half.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use multicast::ids::{Ballot, GroupId, LogIndex, ReplicaId};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::recovery::recover;
use super::writer::{Tables, Writer};
use super::*;
use crate::storage::disk::RealDisk;
use crate::storage::sim_disk::SimDisk;

const STAMP: u64 = 77;
/// Twice what one random write can take, so that none is split.
const SEGMENT_BYTES: u64 = 16 << 10;

fn config(segment_bytes: u64) -> WalConfig {
    WalConfig { segment_bytes, cache_bytes: 600, stamp: STAMP, prepare_ahead: false }
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

fn ballot(round: u64) -> Ballot {
    Ballot { round, owner: Some(ReplicaId(round as u32 % 3)) }
}

/// What a group's log must hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    promised: Ballot,
    committed: u64,
    trimmed: u64,
    trimmed_ballot: Ballot,
    /// Ballot, length and first byte.
    entries: BTreeMap<u64, (Ballot, usize, Option<u8>)>,
}

type Models = BTreeMap<GroupId, Model>;

impl Model {
    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.trimmed)
    }

    /// A few random changes, as records and in the model.
    fn step(&mut self, group: GroupId, random: &mut Random, records: &mut Vec<WalRecord>) {
        match random.next(10) {
            0 => {
                self.promised.round += random.next(3);
                self.promised = ballot(self.promised.round);
                self.committed = self.committed.max(self.trimmed + random.next(self.last() - self.trimmed + 1));
                let (promised, committed) = (self.promised, LogIndex(self.committed));
                records.push(WalRecord::HardState { group, promised, committed });
            }
            1 if self.committed > self.trimmed => {
                let through = self.trimmed + 1 + random.next(self.committed - self.trimmed);
                self.trimmed_ballot = self.entries[&through].0;
                self.trimmed = through;
                self.entries.retain(|&index, _| index > through);
                records.push(WalRecord::Trim { group, through: LogIndex(through), ballot: self.trimmed_ballot });
            }
            2 if self.last() > self.committed.max(self.trimmed) => {
                let floor = self.committed.max(self.trimmed);
                let from = floor + 1 + random.next(self.last() - floor);
                self.entries.retain(|&index, _| index < from);
                records.push(WalRecord::Truncate { group, from: LogIndex(from) });
            }
            3 if random.next(12) == 0 => {
                *self = Model::default();
                records.push(WalRecord::End { group });
            }
            _ => {
                let floor = self.committed.max(self.trimmed);
                let from = if random.next(8) == 0 { floor + random.next(self.last() - floor + 1) } else { self.last() };
                self.entries.retain(|&index, _| index <= from);
                for index in from + 1..=from + 1 + random.next(3) {
                    let bytes = Bytes::from(vec![index as u8; random.next(500) as usize]);
                    let ballot = self.promised;
                    self.entries.insert(index, (ballot, bytes.len(), bytes.first().copied()));
                    records.push(WalRecord::Append { group, index: LogIndex(index), ballot, bytes });
                }
            }
        }
    }

    fn of(wal: &Wal, group: GroupId) -> Model {
        let state = wal.state(group);
        let mut entries = BTreeMap::new();
        for entry in wal.read(group, state.trimmed.0.next(), state.last.0, usize::MAX).unwrap() {
            let bytes = entry.bytes;
            assert!(bytes.iter().all(|&byte| byte == entry.index.0 as u8));
            entries.insert(entry.index.0, (entry.ballot, bytes.len(), bytes.first().copied()));
        }
        let (trimmed, trimmed_ballot) = (state.trimmed.0.0, state.trimmed.1);
        Model { promised: state.promised, committed: state.committed.0, trimmed, trimmed_ballot, entries }
    }
}

fn recovered(disk: &SimDisk, segment_bytes: u64) -> Models {
    let wal = Wal::open(Arc::new(disk.clone()), config(segment_bytes), Box::new(|_| {})).unwrap();
    let models = (0..3).map(|group| (GroupId(group), Model::of(&wal, GroupId(group)))).collect();
    wal.stop();
    models
}

/// Runs `steps` writes on `disk` and returns (ops done, state) behind each.
fn work(disk: &SimDisk, models: Models, steps: usize, random: &mut Random) -> Vec<(usize, Models)> {
    let segment_bytes = SEGMENT_BYTES;
    let (tables, tail) = recover(disk, &config(segment_bytes)).unwrap();
    let tables = Arc::new(Mutex::new(tables));
    let mut writer = Writer::new(Arc::new(disk.clone()), config(segment_bytes), tables, tail).unwrap();
    let mut history = vec![(disk.op_count(), models)];
    for _ in 0..steps {
        let (_, mut models) = history.last().unwrap().clone();
        let mut records = Vec::new();
        for _ in 0..=random.next(2) {
            let group = GroupId(random.next(3) as u16);
            models.entry(group).or_default().step(group, random, &mut records);
        }
        writer.write(&records).unwrap();
        history.push((disk.op_count(), models.clone()));
        // Changes nothing that anyone can see, whenever the crash comes.
        writer.move_quiet_entries().unwrap();
        history.push((disk.op_count(), models));
        writer.remove_unneeded().unwrap();
        if random.next(3) == 0 {
            writer.mark().unwrap();
        }
    }
    history
}

fn empty() -> Models {
    (0..3).map(|group| (GroupId(group), Model::default())).collect()
}

/// The state recovered behind `count` ops is the last one acknowledged, or that with the write under way.
fn check_crash(disk: &SimDisk, history: &[(usize, Models)], count: usize, random: &mut Random) -> (SimDisk, Models) {
    let chance = random.next(3);
    let crashed = disk.crash(count, &mut || chance == 2 || (chance == 1 && random.next(2) == 0));
    let found = recovered(&crashed, SEGMENT_BYTES);
    let acknowledged = history.iter().rposition(|&(ops, _)| ops <= count).unwrap_or(0);
    let next = history.get(acknowledged + 1).map(|(_, models)| models);
    assert!(
        found == history[acknowledged].1 || Some(&found) == next,
        "crash behind op {count}: {found:?}\nacknowledged: {:?}",
        history[acknowledged].1
    );
    (crashed, found)
}

#[test]
fn log_crashed_behind_any_write_keeps_what_was_acknowledged() {
    for seed in 1..=12 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let disk = SimDisk::default();
        let history = work(&disk, empty(), 60, &mut random);
        for count in 0..=disk.op_count() {
            let (crashed, found) = check_crash(&disk, &history, count, &mut random);
            // Life goes on after the crash, until the next one.
            if count % 9 == 0 {
                let again = work(&crashed, found, 10, &mut random);
                for count in 0..=crashed.op_count() {
                    check_crash(&crashed, &again, count, &mut random);
                }
            }
        }
    }
}

#[test]
fn log_segments_are_removed_when_all_groups_have_trimmed() {
    let disk = SimDisk::default();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let mut writer = Writer::new(Arc::new(disk.clone()), config(SEGMENT_BYTES), tables.clone(), None).unwrap();
    for index in 1..=200 {
        let (group, index) = (GroupId(1), LogIndex(index));
        let bytes = Bytes::from(vec![7; 500]);
        let append = WalRecord::Append { group, index, ballot: ballot(1), bytes };
        let trim = WalRecord::Trim { group, through: index, ballot: ballot(1) };
        writer.write(&[append, trim]).unwrap();
        writer.remove_unneeded().unwrap();
        assert!(tables.lock().segments.len() <= 2);
    }
    let found = recovered(&disk, SEGMENT_BYTES);
    assert_eq!(found[&GroupId(1)].trimmed, 200);
}

/// The segments before are gone; what is left begins with an entry that a trim came before, and that is written again later.
#[test]
fn ballot_of_the_last_trimmed_entry_survives_entries_that_are_written_again() {
    let group = GroupId(1);
    let append =
        |index| WalRecord::Append { group, index: LogIndex(index), ballot: ballot(3), bytes: Bytes::from_static(b"x") };
    let trim = WalRecord::Trim { group, through: LogIndex(1), ballot: ballot(2) };
    let mut log = index::GroupLog::default();
    for record in [append(3), trim, append(2), append(3)] {
        log.apply(&record, index::Position::of(&record, 1, 512), 1000).unwrap();
    }
    assert_eq!((log.gap(), log.live()), (None, Some((LogIndex(2), LogIndex(3)))));
    assert_eq!(log.state().trimmed, (LogIndex(1), ballot(2)));
}

/// A group that had a few commands long ago beside one that is busy all the time.
#[test]
fn log_of_a_quiet_group_does_not_keep_the_segments_of_a_busy_one() {
    let disk = SimDisk::default();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let mut writer = Writer::new(Arc::new(disk.clone()), config(SEGMENT_BYTES), tables.clone(), None).unwrap();
    let append = |group, index, len: usize| {
        let bytes = Bytes::from(vec![index as u8; len]);
        WalRecord::Append { group: GroupId(group), index: LogIndex(index), ballot: ballot(index.min(2)), bytes }
    };
    let mut most = 0;
    for index in 1..=2000 {
        let mut records = vec![append(1, index, 500)];
        if index <= 3 || index == 900 {
            records.push(append(0, index.min(4), 100));
        }
        records.push(WalRecord::Trim { group: GroupId(1), through: LogIndex(index), ballot: ballot(index.min(2)) });
        writer.write(&records).unwrap();
        writer.move_quiet_entries().unwrap();
        writer.remove_unneeded().unwrap();
        most = most.max(tables.lock().segments.len());
    }
    assert!(most <= 5, "{most} segments");
    let found = recovered(&disk, SEGMENT_BYTES);
    let entries = found[&GroupId(0)].entries.clone();
    assert_eq!(entries.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!((entries[&1], entries[&4]), ((ballot(1), 100, Some(1)), (ballot(2), 100, Some(4))));
}

/// What is written again is read first: a flipped bit must not become an entry with a right checksum.
#[test]
fn damaged_entry_of_a_quiet_group_is_not_written_again() {
    let disk = SimDisk::default();
    let config = WalConfig { cache_bytes: 0, ..config(SEGMENT_BYTES) };
    let mut writer = Writer::new(Arc::new(disk.clone()), config, Arc::default(), None).unwrap();
    let append = |group, index| {
        let bytes = Bytes::from(vec![5; 500]);
        WalRecord::Append { group: GroupId(group), index: LogIndex(index), ballot: ballot(1), bytes }
    };
    writer.write(&[append(0, 1)]).unwrap();
    disk.damage("log-0000000000000001", 512 + 200);
    let moved = (1..=200).try_for_each(|index| {
        let trim = WalRecord::Trim { group: GroupId(1), through: LogIndex(index), ballot: ballot(1) };
        writer.write(&[append(1, index), trim])?;
        writer.move_quiet_entries()
    });
    assert!(matches!(moved, Err(Error::Corrupt { .. })), "{moved:?}");
}

/// A group whose entries are needed, such as by a voter that is dead, keeps the log, and is named.
#[test]
fn group_that_keeps_the_log_is_named() {
    let disk = SimDisk::default();
    let wal = Wal::open(Arc::new(disk), config(SEGMENT_BYTES), Box::new(|_| {})).unwrap();
    let (done, written) = mpsc::channel();
    for index in 1..=200 {
        let append = |group| WalRecord::Append {
            group: GroupId(group),
            index: LogIndex(index),
            ballot: ballot(1),
            bytes: Bytes::from(vec![7; 500]),
        };
        let trim = WalRecord::Trim { group: GroupId(1), through: LogIndex(index), ballot: ballot(1) };
        let done = done.clone();
        wal.submit(vec![append(1), append(2), trim], Box::new(move || done.send(()).unwrap()));
        written.recv_timeout(Duration::from_secs(5)).unwrap();
    }
    let kept = wal.figures().kept_by.unwrap();
    assert_eq!(kept, KeptBy { group: GroupId(2), from: LogIndex(1), bytes: 100_000 });
}

/// No space, or no answer, at any write: nothing behind it is acknowledged, and what was is there after a restart.
#[test]
fn disk_that_fails_at_any_write_loses_nothing_acknowledged() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let good = SimDisk::default();
    work(&good, empty(), 25, &mut random);
    for count in 0..good.op_count() {
        let mut random = Random(0x1234_5678_9abc_def1);
        let disk = SimDisk::default();
        disk.fail_after(count);
        let (found, history) = work_until_failure(&disk, 25, &mut random);
        assert!(found.is_some(), "the disk failed behind op {count}, and nobody noticed");
        check_crash(&disk, &history, disk.op_count(), &mut random);
    }
}

fn work_until_failure(disk: &SimDisk, steps: usize, random: &mut Random) -> (Option<Error>, Vec<(usize, Models)>) {
    let mut history = vec![(0, empty())];
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let mut writer = match Writer::new(Arc::new(disk.clone()), config(SEGMENT_BYTES), tables, None) {
        Ok(writer) => writer,
        Err(error) => return (Some(error), history),
    };
    for _ in 0..steps {
        let (_, mut models) = history.last().unwrap().clone();
        let mut records = Vec::new();
        for _ in 0..=random.next(2) {
            let group = GroupId(random.next(3) as u16);
            models.entry(group).or_default().step(group, random, &mut records);
        }
        if let Err(error) = writer.write(&records).and_then(|()| writer.move_quiet_entries()) {
            // Not acknowledged; it may be there all the same.
            history.push((usize::MAX, models));
            return (Some(error), history);
        }
        history.push((disk.op_count(), models));
        let tidied = writer.remove_unneeded();
        let marked = if random.next(3) == 0 { writer.mark() } else { Ok(()) };
        if let Err(error) = tidied.and(marked) {
            return (Some(error), history);
        }
    }
    (None, history)
}

/// Records of a batch with a right checksum, whatever they are.
fn record(kind: u8, group: u16, index: u64, round: u64) -> WalRecord {
    let group = GroupId(group);
    match kind {
        0 => WalRecord::Truncate { group, from: LogIndex(index) },
        1 => WalRecord::HardState { group, promised: ballot(round), committed: LogIndex(index) },
        2 => WalRecord::Trim { group, through: LogIndex(index), ballot: ballot(round) },
        3 if index.is_multiple_of(4) => WalRecord::End { group },
        _ => {
            WalRecord::Append { group, index: LogIndex(index), ballot: ballot(round), bytes: Bytes::from_static(b"x") }
        }
    }
}

fn disk_with(records: &[u8]) -> SimDisk {
    let disk = SimDisk::default();
    let header = format::SegmentHeader { number: 1, salt: 5, stamp: STAMP }.encode();
    let file = disk.create("log-0000000000000001", &header, SEGMENT_BYTES).unwrap();
    let mut batch = vec![0; format::BATCH_HEADER_LEN];
    batch.extend_from_slice(records);
    format::BatchHeader::seal(&mut batch, 5, 1);
    file.write_at(format::SEGMENT_HEADER_LEN, &batch).unwrap();
    disk
}

proptest! {
    #[test]
    fn log_of_any_records_is_read_or_refused(
        steps in proptest::collection::vec((0u8..6, 0u16..2, prop_oneof![4 => 0u64..8, 1 => any::<u64>()], 0u64..3), 0..30)
    ) {
        let mut bytes = Vec::new();
        for (kind, group, index, round) in steps {
            record(kind, group, index, round).encode(&mut bytes);
        }
        let _ = recover(&disk_with(&bytes), &config(SEGMENT_BYTES));
    }

    #[test]
    fn log_of_any_bytes_with_a_right_checksum_is_read_or_refused(
        bytes in proptest::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..400)
    ) {
        let _ = recover(&disk_with(&bytes), &config(SEGMENT_BYTES));
    }

    #[test]
    fn log_of_any_bytes_is_refused_or_empty(bytes in proptest::collection::vec(any::<u8>(), 1..2000)) {
        let disk = SimDisk::default();
        disk.create("log-0000000000000001", &bytes, SEGMENT_BYTES).unwrap();
        prop_assert!(recover(&disk, &config(SEGMENT_BYTES)).is_err());
    }
}

fn appended(disk: &SimDisk, count: u64) {
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let mut writer = Writer::new(Arc::new(disk.clone()), config(64 << 10), tables, None).unwrap();
    for index in 1..=count {
        let bytes = Bytes::from(vec![9; 1000]);
        writer
            .write(&[WalRecord::Append { group: GroupId(0), index: LogIndex(index), ballot: ballot(1), bytes }])
            .unwrap();
    }
}

fn open_error(disk: &SimDisk, stamp: u64) -> Error {
    let config = WalConfig { stamp, ..config(64 << 10) };
    recover(disk, &config).map(|_| ()).unwrap_err()
}

#[test]
fn log_damaged_before_its_tail_is_refused_with_file_and_offset() {
    let disk = SimDisk::default();
    appended(&disk, 10);
    disk.damage("log-0000000000000001", 512 + 3 * 1536 + 40);
    let error = open_error(&disk, STAMP).to_string();
    assert!(error.starts_with("log-0000000000000001 at offset 5120: "), "{error}");
}

/// Bits that flip anywhere in what was durable are noticed, or change nothing.
#[test]
fn log_with_a_flipped_bit_is_refused_or_whole() {
    for seed in 1..=8 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let disk = SimDisk::default();
        let history = work(&disk, empty(), 25, &mut random);
        let (_, models) = history.last().unwrap();
        let (tables, tail) = recover(&disk, &config(SEGMENT_BYTES)).unwrap();
        let mut writer =
            Writer::new(Arc::new(disk.clone()), config(SEGMENT_BYTES), Arc::new(Mutex::new(tables)), tail).unwrap();
        writer.mark().unwrap();
        let mut refused = 0;
        for _ in 0..150 {
            let names = disk.list().unwrap();
            let name = &names[random.next(names.len() as u64) as usize];
            let place = random.next(SEGMENT_BYTES) as usize;
            disk.damage(name, place);
            match recover(&disk.copy(), &config(SEGMENT_BYTES)) {
                Ok(_) => assert_eq!(&recovered(&disk.copy(), SEGMENT_BYTES), models, "{name} at {place}"),
                Err(error) => {
                    assert!(matches!(error, Error::Corrupt { .. } | Error::ForeignData { .. }), "{error}");
                    refused += 1;
                }
            }
            // Back again.
            disk.damage(name, place);
        }
        assert!(refused > 10, "{refused}");
    }
}

/// Nothing came after it, but the log had time to tell that it is durable.
#[test]
fn log_damaged_in_its_last_batch_is_refused() {
    let offset = 512 + 300;
    let name = "log-0000000000000001";
    let append = || {
        let (group, index, bytes) = (GroupId(0), LogIndex(1), Bytes::from(vec![3; 900]));
        vec![WalRecord::Append { group, index, ballot: ballot(1), bytes }]
    };
    let written = |end: &dyn Fn(&Wal)| {
        let disk = SimDisk::default();
        let wal = Wal::open(Arc::new(disk.clone()), config(64 << 10), Box::new(|_| {})).unwrap();
        let (done, acknowledged) = mpsc::channel();
        wal.submit(append(), Box::new(move || done.send(()).unwrap()));
        acknowledged.recv_timeout(Duration::from_secs(5)).unwrap();
        end(&wal);
        disk.damage(name, offset);
        disk
    };
    let stopped = written(&|wal| wal.stop());
    assert!(matches!(open_error(&stopped, STAMP), Error::Corrupt { offset: 512, .. }));
    let killed_later = written(&|wal| {
        wal.mark();
        // One after the other: this one is done once the mark is.
        let (done, marked) = mpsc::channel();
        wal.submit(Vec::new(), Box::new(move || done.send(()).unwrap()));
        marked.recv_timeout(Duration::from_secs(5)).unwrap();
        wal.abandon();
    });
    assert!(matches!(open_error(&killed_later, STAMP), Error::Corrupt { offset: 512, .. }));
    // Killed at once, it looks as if it had been torn. Nothing can tell that.
    let killed = written(&|wal| wal.abandon());
    assert_eq!(recovered(&killed, 64 << 10), empty());
}

/// The batch behind it was begun, which is never done before it is durable.
#[test]
fn log_damaged_before_a_torn_batch_is_refused() {
    let disk = SimDisk::default();
    appended(&disk, 3);
    // Of the last one only the first sector has reached the disk.
    let torn = 512 + 2 * 1536;
    let name = "log-0000000000000001";
    disk.damage(name, torn + 600);
    let (_, tail) = recover(&disk.copy(), &config(64 << 10)).unwrap();
    assert_eq!(tail.unwrap().offset, torn as u64, "torn");
    disk.damage(name, torn - 1000);
    assert!(matches!(open_error(&disk, STAMP), Error::Corrupt { offset: 2048, .. }));
}

#[test]
fn mark_is_overwritten_by_what_comes_next() {
    let disk = SimDisk::default();
    let (mut tables, mut tail) = (Tables::default(), None);
    for index in 1..=40 {
        let tables_now = Arc::new(Mutex::new(tables));
        let mut writer = Writer::new(Arc::new(disk.clone()), config(SEGMENT_BYTES), tables_now, tail).unwrap();
        writer.mark().unwrap();
        let bytes = Bytes::from(vec![index as u8; 1000]);
        let append = WalRecord::Append { group: GroupId(0), index: LogIndex(index), ballot: ballot(1), bytes };
        writer.write(&[append]).unwrap();
        writer.mark().unwrap();
        let ops = disk.op_count();
        writer.mark().unwrap();
        assert_eq!(disk.op_count(), ops, "once is enough");
        drop(writer);
        (tables, tail) = recover(&disk, &config(SEGMENT_BYTES)).unwrap();
    }
    assert_eq!(recovered(&disk, SEGMENT_BYTES)[&GroupId(0)].entries.len(), 40);
    // Three sectors each, and marks take none.
    assert_eq!(disk.list().unwrap().len(), 4);
}

#[test]
fn log_damaged_in_an_earlier_segment_is_refused() {
    let disk = SimDisk::default();
    appended(&disk, 60);
    assert_eq!(disk.list().unwrap().len(), 2);
    disk.damage("log-0000000000000001", 512);
    assert!(matches!(open_error(&disk, STAMP), Error::Corrupt { offset: 512, .. }));
}

#[test]
fn log_without_its_first_segment_is_refused() {
    let disk = SimDisk::default();
    appended(&disk, 60);
    disk.remove("log-0000000000000001").unwrap();
    assert!(matches!(open_error(&disk, STAMP), Error::Corrupt { .. }));
}

#[test]
fn log_of_another_node_is_refused() {
    let disk = SimDisk::default();
    appended(&disk, 1);
    assert!(matches!(open_error(&disk, STAMP + 1), Error::ForeignData { .. }));
}

#[test]
fn log_whose_disk_fails_acknowledges_nothing_and_says_so() {
    let disk = SimDisk::default();
    let (failed, failure) = mpsc::channel();
    let on_failure = Box::new(move |error: Error| failed.send(error).unwrap());
    let wal = Wal::open(Arc::new(disk.clone()), config(64 << 10), on_failure).unwrap();
    let (done, acknowledged) = mpsc::channel();
    let append = |index| WalRecord::Append {
        group: GroupId(0),
        index: LogIndex(index),
        ballot: ballot(1),
        bytes: Bytes::from_static(b"x"),
    };
    let sender = done.clone();
    wal.submit(vec![append(1)], Box::new(move || sender.send(1).unwrap()));
    assert_eq!(acknowledged.recv_timeout(Duration::from_secs(5)), Ok(1));
    disk.fail_after(disk.op_count() + 1);
    wal.submit(vec![append(2)], Box::new(move || done.send(2).unwrap()));
    assert!(matches!(failure.recv_timeout(Duration::from_secs(5)), Ok(Error::LogFailed { .. })));
    assert!(acknowledged.try_recv().is_err());
}

#[test]
fn records_are_written_in_the_callers_thread_while_nobody_else_writes() {
    let disk = SimDisk::default();
    let (failed, failure) = mpsc::channel();
    let on_failure = Box::new(move |error: Error| failed.send(error).unwrap());
    let wal = Wal::open(Arc::new(disk.clone()), config(64 << 10), on_failure).unwrap();
    let append = |index| {
        let (ballot, bytes) = (ballot(1), Bytes::from_static(b"x"));
        WalRecord::Append { group: GroupId(0), index: LogIndex(index), ballot, bytes }
    };
    assert!(wal.write_here(&[append(1)]));
    assert_eq!(wal.state(GroupId(0)).last.0, LogIndex(1));
    let trim = WalRecord::Trim { group: GroupId(0), through: LogIndex(1), ballot: ballot(1) };
    assert!(!wal.write_here(&[trim]), "what follows a trim may take long");

    // While the thread is not through with a batch, nobody else writes.
    let (begun, has_begun) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let done = move || {
        begun.send(()).unwrap();
        may_go.recv().unwrap();
    };
    wal.submit(vec![append(2)], Box::new(done));
    has_begun.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(!wal.write_here(&[append(3)]));
    let (third, is_third) = mpsc::channel();
    wal.submit(vec![append(3)], Box::new(move || third.send(()).unwrap()));
    assert!(!wal.write_here(&[append(4)]), "it would overtake what waits");
    go.send(()).unwrap();
    is_third.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(wal.state(GroupId(0)).last.0, LogIndex(3));

    // Of a failure everybody hears, and nothing is written behind it.
    while wal.queue.state.lock().writing {
        std::thread::yield_now();
    }
    disk.fail_after(disk.op_count() + 1);
    assert!(!wal.write_here(&[append(4)]));
    assert!(matches!(failure.recv_timeout(Duration::from_secs(5)), Ok(Error::LogFailed { .. })));
    disk.fail_after(usize::MAX);
    let before = disk.op_count();
    assert!(!wal.write_here(&[append(4)]));
    wal.submit(vec![append(4)], Box::new(|| panic!("it has failed")));
    wal.stop();
    assert_eq!(disk.op_count(), before);
}

#[test]
fn log_on_a_real_disk_is_read_back_from_memory_and_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = WalConfig { segment_bytes: 256 << 10, cache_bytes: 4096, stamp: STAMP, prepare_ahead: true };
    let open = || {
        let disk = Arc::new(RealDisk::open(folder.path().to_owned()).unwrap());
        Wal::open(disk, config.clone(), Box::new(|_| {})).unwrap()
    };
    let wal = open();
    let (done, acknowledged) = mpsc::channel();
    for index in 1..=2000u64 {
        let bytes = Bytes::from(vec![index as u8; 300]);
        let record = WalRecord::Append { group: GroupId(1), index: LogIndex(index), ballot: ballot(2), bytes };
        let done = done.clone();
        wal.submit(vec![record], Box::new(move || done.send(index).unwrap()));
    }
    for index in 1..=2000 {
        assert_eq!(acknowledged.recv().unwrap(), index);
    }
    assert!(wal.figures().flushes < 2000, "writes that come during a flush share the next one");
    wal.abandon();
    let wal = open();
    let entries = wal.read(GroupId(1), LogIndex(1), LogIndex(2000), usize::MAX).unwrap();
    assert_eq!(entries.len(), 2000);
    assert!(entries.iter().all(|entry| entry.bytes == vec![entry.index.0 as u8; 300]));
    assert_eq!(wal.read(GroupId(1), LogIndex(5), LogIndex(9), 700).unwrap().len(), 2);
}

#[test]
fn entry_damaged_after_it_was_written_is_not_given_out() {
    let disk = SimDisk::default();
    let wal = Wal::open(Arc::new(disk.clone()), config(64 << 10), Box::new(|_| {})).unwrap();
    let (done, acknowledged) = mpsc::channel();
    let bytes = Bytes::from(vec![3; 900]);
    let record = WalRecord::Append { group: GroupId(0), index: LogIndex(1), ballot: ballot(1), bytes };
    wal.submit(vec![record], Box::new(move || done.send(()).unwrap()));
    acknowledged.recv_timeout(Duration::from_secs(5)).unwrap();
    let read = || wal.read(GroupId(0), LogIndex(1), LogIndex(1), 1000);
    assert_eq!(read().unwrap().len(), 1);
    disk.damage("log-0000000000000001", 512 + 300);
    assert!(matches!(read(), Err(Error::Corrupt { .. })));
}
