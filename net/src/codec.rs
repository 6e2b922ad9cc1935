//! Versioned postcard: one version byte, then the value; a length limit before anything is decoded.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// Encodes `value` behind its version byte.
pub fn encode<T: Serialize>(version: u8, value: &T) -> Result<Bytes> {
    encode_into(BytesMut::with_capacity(256), version, value)
}

/// As [`encode`], appended to a buffer that may already hold a header.
pub fn encode_into<T: Serialize>(mut buffer: BytesMut, version: u8, value: &T) -> Result<Bytes> {
    buffer.put_u8(version);
    postcard::to_extend(value, buffer).map(BytesMut::freeze).map_err(|error| Error::Encode(error.to_string()))
}

/// Decodes what [`encode`] wrote with the same version, refusing more than `len_bytes_max` bytes, another
/// version and trailing bytes. Collections cannot claim more elements than there are bytes left, so what is
/// allocated is bounded by the input's length times the element's size. A type that contains itself is not
/// suitable: a long input would exhaust the stack.
pub fn decode<T: DeserializeOwned>(version: u8, bytes: &[u8], len_bytes_max: usize) -> Result<T> {
    if bytes.len() > len_bytes_max {
        return Err(Error::FrameTooLong { len_bytes: bytes.len(), len_bytes_max });
    }
    let Some((&found, body)) = bytes.split_first() else {
        return Err(Error::Decode("empty".into()));
    };
    if found != version {
        return Err(Error::Decode(format!("version {found}, expected {version}")));
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Error::Decode(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(Error::Decode(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decode_of_encoded_returns_value_and_golden_bytes_hold() {
        let value = (7u32, String::from("ab"), vec![1u8, 2]);
        let bytes = encode(3, &value).unwrap();
        assert_eq!(&bytes[..], [3, 7, 2, b'a', b'b', 2, 1, 2]);
        assert_eq!(decode::<(u32, String, Vec<u8>)>(3, &bytes, 100).unwrap(), value);
    }

    #[test]
    fn decode_refuses_version_length_and_trailing_bytes() {
        let bytes = encode(1, &5u8).unwrap();
        assert!(decode::<u8>(2, &bytes, 100).is_err());
        assert!(decode::<u8>(1, &bytes, 1).is_err());
        assert!(decode::<u8>(1, &[1, 5, 0], 100).is_err());
        assert!(decode::<u8>(1, &[], 100).is_err());
    }

    proptest! {
        #[test]
        fn decode_of_random_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Vec<(String, Option<Vec<u64>>)>>(1, &bytes, 200);
        }
    }
}
