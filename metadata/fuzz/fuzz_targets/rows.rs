//! Any rows as a store's content: reads and checks say that they are damaged, or answer; nothing panics.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use metadata::read::ReadOp;
use metadata::types::{BlobId, InodeId};
use metadata::{MemStore, Namespace, StoreMut, answer, check};
use multicast::ids::GroupId;

fuzz_target!(|input: (Vec<(Vec<u8>, Vec<u8>)>, u64)| {
    let (rows, number) = input;
    let mut store = MemStore::new();
    for (key, value) in rows {
        store.put(key, value).expect("memory takes everything");
    }
    let (ino, group) = (InodeId(number), GroupId::GLOBAL);
    let blob = BlobId { origin: 0, writer: number, sequence: number };
    let questions = [
        ReadOp::GetAttr { ino },
        ReadOp::ReadDir { dir: ino, after: 0, limit: 100, plus: true },
        ReadOp::ReadLink { ino },
        ReadOp::Content { ino, offset: 0, len: u64::MAX },
        ReadOp::ListXattr { ino },
        ReadOp::Ancestors { dir: ino },
        ReadOp::Usage,
        ReadOp::Garbage { limit: 100 },
        ReadOp::BlobsInUse { blobs: vec![blob] },
    ];
    for question in &questions {
        let _ = answer::read(&store, group, question);
    }
    let _ = Namespace::open(group, store.clone());
    let _ = check::check(&BTreeMap::from([(group, store)]));
});
