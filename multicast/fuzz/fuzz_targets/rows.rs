//! Any rows as the replicated state of a group, and any records applied to it: an error, or a state that its own rows restore.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use multicast::ids::{GroupId, LogIndex};
use multicast::{Inert, OrderState, Record};

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fuzz_target!(|input: (Rows, Vec<Vec<u8>>)| {
    let (rows, records) = input;
    let Ok(mut order) = OrderState::load(GroupId(0), rows.clone()) else { return };
    let mut stored: BTreeMap<Vec<u8>, Vec<u8>> = rows.into_iter().collect();
    for bytes in records {
        let Ok(record) = Record::decode(&bytes) else { continue };
        if order.applied().0 == u64::MAX {
            return;
        }
        let index = LogIndex(order.applied().0 + 1);
        order.apply(index, &record, &mut Inert);
    }
    for (key, value) in order.drain_changes() {
        match value {
            Some(value) => stored.insert(key, value),
            None => stored.remove(&key),
        };
    }
    let again = OrderState::load(GroupId(0), stored).expect("what was written can be read");
    assert_eq!(again.digest(), order.digest());
});
