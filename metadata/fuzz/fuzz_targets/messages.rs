//! Any bytes as an operation, an outcome, and as messages between clients and nodes. What an operation is decoded from is
//! executed, too, on an empty volume.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metadata::namespace::{Genesis, genesis};
use metadata::types::TimeNs;
use metadata::{MemStore, Namespace, codec};
use multicast::Contributions;
use multicast::command::Command;
use multicast::ids::{CommandId, GroupId, SessionId, VectorClock};

fuzz_target!(|data: &[u8]| {
    if let Ok(outcome) = codec::decode_outcome(data) {
        assert_eq!(codec::decode_outcome(&codec::encode_outcome(&outcome)), Ok(outcome));
    }
    if let Ok(message) = codec::decode_to_node(data) {
        assert_eq!(codec::decode_to_node(&codec::encode_to_node(&message)), Ok(message));
    }
    if let Ok(message) = codec::decode_to_client(data) {
        assert_eq!(codec::decode_to_client(&codec::encode_to_client(&message)), Ok(message));
    }
    let Ok(op) = codec::decode_op(data) else { return };
    let again = codec::encode_op(&op);
    assert_eq!(codec::decode_op(&again).as_ref(), Ok(&op));
    let command = Command {
        id: CommandId { session: SessionId(1), sequence: 1 },
        acknowledged_below: 0,
        clock: VectorClock::new(),
        destinations: op.destinations(),
        payload: again,
    };
    let mut store = MemStore::new();
    let seed = Genesis { inline_bytes_max: 4096, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
    genesis(&mut store, GroupId::GLOBAL, &seed).expect("an empty store takes a volume");
    let mut namespace = Namespace::open(GroupId::GLOBAL, store).expect("a new volume opens");
    namespace.session_opened(SessionId(1));
    let part = namespace.contribute(&command);
    let outcome = namespace.execute(TimeNs(2), &command, &Contributions::from_iter([(GroupId::GLOBAL, part)]));
    assert!(codec::decode_outcome(&outcome).is_ok());
    assert!(namespace.failure().is_none());
});
