//! Any bytes in any chunks: no panic, no more memory than has arrived, and the same frames as in one chunk.
#![no_main]

use std::collections::VecDeque;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
pub use net::{Error, Result};

// The decoder is private: the source itself is under test.
#[allow(dead_code)]
#[path = "../../src/frame.rs"]
mod frame;

const LIMIT: usize = 1 << 16;

fuzz_target!(|input: (Vec<u8>, u8)| {
    let (stream, chunk_len) = input;
    let (mut whole, mut parts) = (VecDeque::new(), VecDeque::new());
    let accepted = frame::Decoder::new(LIMIT).push(Bytes::from(stream.clone()), &mut whole).is_ok();
    let mut decoder = frame::Decoder::new(LIMIT);
    let mut chunks = stream.chunks(usize::from(chunk_len).max(1));
    let accepted_in_parts =
        chunks.all(|chunk| decoder.push(Bytes::copy_from_slice(chunk), &mut parts).is_ok());
    assert_eq!(accepted, accepted_in_parts);
    assert_eq!(whole, parts);
    assert!(whole.iter().all(|frame| frame.len() <= LIMIT));
    assert!(whole.iter().map(|frame| frame.len() + 4).sum::<usize>() <= stream.len());
});
