//! Frames in a byte stream: four bytes of little-endian length, then the content.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Error, Result};

const HEADER_LEN: usize = 4;
/// Frames up to this length are copied together; longer ones are passed on as they are.
const COPY_LEN_MAX: usize = 4096;

/// Cuts frames out of chunks of a stream. Memory held is proportional to what has arrived, whatever length
/// a header announces.
pub(crate) struct Decoder {
    len_bytes_max: usize,
    header: [u8; HEADER_LEN],
    header_len: usize,
    body: BytesMut,
    /// Bytes still missing of a body whose header is complete.
    missing: usize,
}

impl Decoder {
    pub(crate) fn new(len_bytes_max: usize) -> Self {
        Decoder { len_bytes_max, header: [0; HEADER_LEN], header_len: 0, body: BytesMut::new(), missing: 0 }
    }

    /// From now on a longer frame is an error.
    pub(crate) fn limit(&mut self, len_bytes_max: usize) {
        self.len_bytes_max = self.len_bytes_max.min(len_bytes_max);
    }

    /// Appends the frames that `chunk` completes.
    pub(crate) fn push(&mut self, mut chunk: Bytes, frames: &mut VecDeque<Bytes>) -> Result<()> {
        loop {
            if self.header_len < HEADER_LEN && !self.read_header(&mut chunk)? {
                return Ok(());
            }
            if self.body.is_empty() && chunk.len() >= self.missing {
                // Whole in this chunk: no copy.
                frames.push_back(chunk.split_to(self.missing));
            } else {
                let taken = self.missing.min(chunk.len());
                self.body.extend_from_slice(&chunk[..taken]);
                chunk.advance(taken);
                self.missing -= taken;
                if self.missing > 0 {
                    return Ok(());
                }
                frames.push_back(self.body.split().freeze());
            }
            self.missing = 0;
            self.header_len = 0;
        }
    }

    /// Whether the stream may end here.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.header_len == 0
    }

    fn read_header(&mut self, chunk: &mut Bytes) -> Result<bool> {
        let taken = (HEADER_LEN - self.header_len).min(chunk.len());
        self.header[self.header_len..][..taken].copy_from_slice(&chunk[..taken]);
        chunk.advance(taken);
        self.header_len += taken;
        if self.header_len < HEADER_LEN {
            return Ok(false);
        }
        let len_bytes = u32::from_le_bytes(self.header) as usize;
        if len_bytes > self.len_bytes_max {
            return Err(Error::FrameTooLong { len_bytes, len_bytes_max: self.len_bytes_max });
        }
        self.missing = len_bytes;
        Ok(true)
    }
}

/// Puts headers before `frames` and copies small ones together, so that a batch costs one write.
pub(crate) fn coalesce(frames: &[Bytes], buffer: &mut BytesMut, chunks: &mut Vec<Bytes>) {
    for frame in frames {
        // Frames were checked against a limit below 4 GiB when they were queued.
        buffer.put_u32_le(frame.len() as u32);
        if frame.len() <= COPY_LEN_MAX {
            buffer.extend_from_slice(frame);
        } else {
            chunks.push(buffer.split().freeze());
            chunks.push(frame.clone());
        }
    }
    if !buffer.is_empty() {
        chunks.push(buffer.split().freeze());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn encoded(frames: &[Bytes]) -> Vec<u8> {
        let mut chunks = Vec::new();
        coalesce(frames, &mut BytesMut::new(), &mut chunks);
        chunks.concat()
    }

    #[test]
    fn decoder_of_oversized_header_refuses_before_the_body() {
        let mut decoder = Decoder::new(100);
        let error = decoder.push(Bytes::from_static(&[101, 0, 0, 0]), &mut VecDeque::new()).unwrap_err();
        assert!(matches!(error, Error::FrameTooLong { len_bytes: 101, len_bytes_max: 100 }));
    }

    #[test]
    fn decoder_with_a_lower_limit_keeps_to_it_and_never_raises_it() {
        let mut decoder = Decoder::new(100);
        decoder.limit(50);
        decoder.limit(200);
        let error = decoder.push(Bytes::from_static(&[51, 0, 0, 0]), &mut VecDeque::new()).unwrap_err();
        assert!(matches!(error, Error::FrameTooLong { len_bytes: 51, len_bytes_max: 50 }));
    }

    #[test]
    fn decoder_of_large_announcement_allocates_as_bytes_arrive() {
        let mut decoder = Decoder::new(1 << 30);
        let mut frames = VecDeque::new();
        decoder.push(Bytes::copy_from_slice(&(1u32 << 30).to_le_bytes()), &mut frames).unwrap();
        decoder.push(Bytes::from(vec![1; 1000]), &mut frames).unwrap();
        assert!(decoder.body.capacity() < 10_000 && frames.is_empty());
        assert!(!decoder.is_between_frames());
    }

    proptest! {
        #[test]
        fn decoder_of_any_chunking_returns_the_frames(
            lens in proptest::collection::vec(prop_oneof![0usize..40, 4000usize..9000], 0..12),
            cuts in proptest::collection::vec(1usize..3000, 1..60),
        ) {
            let sent: Vec<Bytes> =
                lens.iter().enumerate().map(|(i, &len)| Bytes::from(vec![i as u8; len])).collect();
            let stream = Bytes::from(encoded(&sent));
            let (mut decoder, mut frames, mut at) = (Decoder::new(9000), VecDeque::new(), 0);
            for cut in cuts.iter().cycle() {
                if at == stream.len() { break; }
                let end = (at + cut).min(stream.len());
                decoder.push(stream.slice(at..end), &mut frames).unwrap();
                at = end;
            }
            prop_assert!(decoder.is_between_frames());
            prop_assert_eq!(Vec::from(frames), sent);
        }

        #[test]
        fn decoder_of_random_bytes_never_panics_nor_holds_more_than_arrived(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..40),
            limit in prop_oneof![Just(10usize), Just(1000), Just(u32::MAX as usize)],
        ) {
            let (mut decoder, mut frames, mut arrived) = (Decoder::new(limit), VecDeque::new(), 0);
            for chunk in chunks {
                arrived += chunk.len();
                if decoder.push(Bytes::from(chunk), &mut frames).is_err() { break; }
                prop_assert!(decoder.body.capacity() <= 2 * arrived + 64);
            }
        }
    }
}
