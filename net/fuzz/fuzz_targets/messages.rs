//! Any bytes as a message, as a versioned value and as a description of an emulated network.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use net::{codec, rpc::Message, wan::Matrix};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Sample {
    Number(u64),
    Names(Vec<String>),
    Nested { inner: Option<Box<Sample>>, bytes: Vec<u8> },
}

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = Message::decode(Bytes::copy_from_slice(data)) {
        assert_eq!(message.encode(), data);
    }
    if data.len() < 1000
        && let Ok(sample) = codec::decode::<Sample>(1, data, 1000)
    {
        let again = codec::encode(1, &sample).expect("what was decoded can be encoded");
        assert_eq!(codec::decode::<Sample>(1, &again, 4000).expect("and decoded again"), sample);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(matrix) = Matrix::parse(text)
    {
        let again = Matrix::parse(&matrix.to_string()).expect("what was written can be read");
        assert_eq!(again.regions(), matrix.regions());
        assert_eq!(again.cuts(), matrix.cuts());
    }
});
