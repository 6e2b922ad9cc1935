//! Telling peers at once that a crashed process is back and knows nothing of their connections.
//!
//! QUIC does it by a stateless reset, whose token only the endpoint that chose the connection's id can make. Here
//! its key follows from the member's private key, so that the next process of the same member can make it too
//! and nobody has to wait for the idle timeout.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use quinn::{
    ConnectionId, ConnectionIdGenerator,
    crypto::{CryptoError, HmacKey},
};

use crate::Identity;

const ID_LEN: usize = 8;
const SIGNATURE_LEN: usize = 32;

pub(crate) struct ResetKey([u8; 32]);

impl ResetKey {
    pub(crate) fn of(identity: &Identity) -> Self {
        ResetKey(blake3::derive_key("GlobalFS stateless reset key", identity.key.secret_der()))
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        SIGNATURE_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let signature = <[u8; SIGNATURE_LEN]>::try_from(signature).map_err(|_| CryptoError)?;
        // Compares in constant time.
        let same = blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(signature);
        if same { Ok(()) } else { Err(CryptoError) }
    }
}

/// Random ids. Unlike QUIC's default, an id of the process before is not taken for noise.
pub(crate) struct RandomIds {
    key: [u8; 32],
    count: u64,
}

impl RandomIds {
    pub(crate) fn new() -> Self {
        let mut key = [0; 32];
        for part in key.chunks_mut(8) {
            part.copy_from_slice(&RandomState::new().hash_one(0).to_le_bytes());
        }
        RandomIds { key, count: 0 }
    }
}

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.count += 1;
        let hash = blake3::keyed_hash(&self.key, &self.count.to_le_bytes());
        ConnectionId::new(&hash.as_bytes()[..ID_LEN])
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
