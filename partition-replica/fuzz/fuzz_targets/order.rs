//! Any rows as the ordering's state: refused or taken, and what is taken says the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use multicast::OrderState;
use multicast::ids::GroupId;

fuzz_target!(|rows: Vec<(Vec<u8>, Vec<u8>)>| {
    if let Ok(state) = OrderState::load(GroupId(1), rows) {
        let _ = (state.applied(), state.clock(), state.sessions().count(), state.changing_locks().count());
    }
});
