//! What rows cost on disk; run by hand.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use metadata::namespace::{Genesis, Namespace, genesis};
use metadata::op::{FsOp, NewNode};
use metadata::types::{FileKind, InodeId, NodeRef, TimeNs};
use metadata::{Overlay, codec};
use multicast::command::Command;
use multicast::ids::{CommandId, SessionId, VectorClock};

use super::*;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Inodes, and the memory beyond what the process had before. `INODES` and `MEMORY` (MiB) choose others.
#[test]
#[ignore = "a measurement"]
fn measure_memory_of_many_inodes() {
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (inodes, memory): (usize, usize) = (number("INODES", 400_000), number("MEMORY", 32) << 20);
    let folder = tempfile::tempdir().unwrap();
    let group = GroupId::GLOBAL;
    let db = StateDb::open(folder.path(), &[group], memory).unwrap();
    let state = db.group(group).unwrap();
    let before = resident_bytes();
    let mut overlay = Overlay::new(&state).unwrap();
    let start = Genesis { inline_bytes_max: 4096, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
    genesis(&mut overlay, group, &start).unwrap();
    state.write(overlay.into_writes(), &[], LogIndex(0)).unwrap();
    let parent = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: group };
    let mut most = 0;
    for batch in 0..inodes / 500 {
        let mut namespace = Namespace::open(group, Overlay::new(&state).unwrap()).unwrap();
        for count in 0..500 {
            let name = format!("file-{batch}-{count}").into();
            let (node, home) = (NewNode::File, group);
            let op = FsOp::Create { parent, name, node, mode: 0o644, uid: 0, gid: 0, home };
            let command = Command {
                id: CommandId { session: SessionId(1), sequence: 1 },
                acknowledged_below: 0,
                clock: VectorClock::new(),
                destinations: op.destinations(),
                payload: codec::encode_op(&op),
            };
            let outcome = namespace.execute(TimeNs(5), &command, &multicast::Contributions::new());
            assert!(codec::decode_outcome(&outcome).unwrap().is_ok());
        }
        state.write(namespace.into_store().into_writes(), &[], LogIndex(batch as u64 + 1)).unwrap();
        // Reads all over the place fill the caches.
        for inode in (1..=batch as u64 * 500).step_by(1009) {
            let op = metadata::read::ReadOp::GetAttr { ino: InodeId(inode) };
            metadata::answer::read(&state, group, &op).unwrap().unwrap();
        }
        most = most.max(resident_bytes() - before);
        if batch % 100 == 99 {
            let figures = db.figures();
            println!(
                "{} inodes: {} MiB beyond the start, cache {} MiB, buffers {} MiB, rows {} MiB, on disk {} MiB",
                (batch + 1) * 500,
                (resident_bytes() - before) >> 20,
                figures.cache_bytes >> 20,
                figures.buffer_bytes >> 20,
                state.rows.weight() >> 20,
                figures.disk_bytes >> 20,
            );
        }
    }
    // Besides the setting: the allocator's slack, compactions' buffers, tables' handles.
    assert!(most < memory * 3 / 2 + (48 << 20), "{} MiB for a setting of {}", most >> 20, memory >> 20);
}

#[test]
#[ignore = "a measurement"]
fn measure_execution_of_creates() {
    let folder = tempfile::tempdir().unwrap();
    let group = GroupId::GLOBAL;
    let db = StateDb::open(folder.path(), &[group], 64 << 20).unwrap();
    let state = db.group(group).unwrap();
    let mut overlay = Overlay::new(&state).unwrap();
    let start = Genesis { inline_bytes_max: 4096, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
    genesis(&mut overlay, group, &start).unwrap();
    state.write(overlay.into_writes(), &[], LogIndex(0)).unwrap();
    let parent = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: group };
    for batch in [1, 16, 64, 256] {
        let (mut execute, mut write) = (0, 0);
        let rounds = 20_480 / batch;
        for round in 0..rounds {
            let started = Instant::now();
            let mut namespace = Namespace::open(group, Overlay::new(&state).unwrap()).unwrap();
            for count in 0..batch {
                let op = FsOp::Create {
                    parent,
                    name: format!("f{batch}-{round}-{count}").into(),
                    node: NewNode::File,
                    mode: 0o644,
                    uid: 0,
                    gid: 0,
                    home: group,
                };
                let command = Command {
                    id: CommandId { session: SessionId(1), sequence: 1 },
                    acknowledged_below: 0,
                    clock: VectorClock::new(),
                    destinations: op.destinations(),
                    payload: codec::encode_op(&op),
                };
                let outcome = namespace.execute(TimeNs(5), &command, &multicast::Contributions::new());
                assert!(codec::decode_outcome(&outcome).unwrap().is_ok());
            }
            let writes = namespace.into_store().into_writes();
            execute += started.elapsed().as_micros();
            let started = Instant::now();
            state.write(writes, &[], LogIndex(1)).unwrap();
            write += started.elapsed().as_micros();
        }
        let each = |micros: u128| micros as f64 / 20_480.0;
        println!("batch of {batch}: execute {:.1} us, write {:.1} us each", each(execute), each(write));
    }
}
