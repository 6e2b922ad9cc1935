//! Any bytes as a message, as a log record and as a command: what can be read can be written, and comes back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use multicast::command::Command;
use multicast::message::MESSAGE_VERSION;
use multicast::record::RECORD_VERSION;
use multicast::{Message, Record};

fuzz_target!(|data: &[u8]| {
    let versioned = |version: u8| [&[version], data].concat();
    for bytes in [data.to_vec(), versioned(MESSAGE_VERSION)] {
        if let Ok(message) = Message::decode(&bytes) {
            assert_eq!(Message::decode(&message.encode()).expect("what was encoded can be decoded"), message);
        }
    }
    for bytes in [data.to_vec(), versioned(RECORD_VERSION)] {
        if let Ok(record) = Record::decode(&bytes) {
            assert_eq!(Record::decode(&record.encode()).expect("what was encoded can be decoded"), record);
        }
    }
    if let Ok(command) = postcard::from_bytes::<Command>(data) {
        let bytes = postcard::to_stdvec(&command).expect("plain data always encodes");
        let again: Command = postcard::from_bytes(&bytes).expect("what was encoded can be decoded");
        assert_eq!(again.binding(), command.binding());
        assert_eq!(again, command);
    }
});
