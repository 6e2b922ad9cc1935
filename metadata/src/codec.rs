//! Bytes of operations, outcomes and messages: one version byte (but for messages of a channel, whose hello compares
//! versions), then postcard. Nothing longer than its limit is looked at, nothing may be left over.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::op::FsOp;
use crate::outcome::Outcome;
use crate::protocol::{ToClient, ToNode};
use crate::verdict::Contribution;

/// Longest encoded operation.
pub const OP_BYTES_MAX: usize = 1 << 20;
/// Longest encoded outcome: a directory's chain of stale ancestors is the worst.
pub const OUTCOME_BYTES_MAX: usize = 1 << 20;
/// Longest message between a client and a node.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Longest contribution of one group to a command's verdict.
pub const CONTRIBUTION_BYTES_MAX: usize = 8 << 20;

/// Most messages and values fit: growing by doubling from nothing is dear.
const MESSAGE_ROOM: usize = 512;
const VALUE_ROOM: usize = 256;
/// Version of the encoding of operations and messages, its first byte.
pub const VERSION: u8 = 1;
/// Version of the encoding of outcomes, its first byte.
pub const OUTCOME_VERSION: u8 = 2;
/// Version of the encoding of contributions, its first byte.
pub const CONTRIBUTION_VERSION: u8 = 2;

/// A command's payload.
#[must_use]
pub fn encode_op(op: &FsOp) -> Bytes {
    encode_versioned(op)
}

/// An operation from a command's payload.
pub fn decode_op(bytes: &[u8]) -> Result<FsOp, Error> {
    decode_versioned(bytes, OP_BYTES_MAX)
}

/// The bytes that executing a command gives.
#[must_use]
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    encode_as(OUTCOME_VERSION, outcome)
}

/// An outcome from the bytes that executing a command gave.
pub fn decode_outcome(bytes: &[u8]) -> Result<Outcome, Error> {
    decode_as(OUTCOME_VERSION, bytes, OUTCOME_BYTES_MAX)
}

/// A client's message.
#[must_use]
pub fn encode_to_node(message: &ToNode) -> Bytes {
    let room = Vec::with_capacity(MESSAGE_ROOM);
    Bytes::from(postcard::to_extend(message, room).expect("a message in memory always encodes"))
}

/// A client's message from its bytes.
pub fn decode_to_node(bytes: &[u8]) -> Result<ToNode, Error> {
    decode_plain(bytes, MESSAGE_BYTES_MAX)
}

/// A node's message to a client.
#[must_use]
pub fn encode_to_client(message: &ToClient) -> Bytes {
    let room = Vec::with_capacity(MESSAGE_ROOM);
    Bytes::from(postcard::to_extend(message, room).expect("a message in memory always encodes"))
}

/// A node's message to a client from its bytes.
pub fn decode_to_client(bytes: &[u8]) -> Result<ToClient, Error> {
    decode_plain(bytes, MESSAGE_BYTES_MAX)
}

pub(crate) fn encode_contribution(contribution: &Contribution) -> Bytes {
    encode_as(CONTRIBUTION_VERSION, contribution)
}

pub(crate) fn decode_contribution(bytes: &[u8]) -> Result<Contribution, Error> {
    decode_as(CONTRIBUTION_VERSION, bytes, CONTRIBUTION_BYTES_MAX)
}

pub(crate) fn encode_versioned<T: Serialize>(value: &T) -> Bytes {
    encode_as(VERSION, value)
}

fn encode_as<T: Serialize>(version: u8, value: &T) -> Bytes {
    let mut room = Vec::with_capacity(VALUE_ROOM);
    room.push(version);
    Bytes::from(postcard::to_extend(value, room).expect("a value in memory always encodes"))
}

pub(crate) fn decode_versioned<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, Error> {
    decode_as(VERSION, bytes, bytes_max)
}

fn decode_as<T: DeserializeOwned>(version: u8, bytes: &[u8], bytes_max: usize) -> Result<T, Error> {
    match bytes.split_first() {
        Some((&found, body)) if found == version => decode_plain(body, bytes_max),
        _ => Err(Error::Undecodable { bytes: bytes.len() }),
    }
}

fn decode_plain<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, Error> {
    if bytes.len() > bytes_max {
        return Err(Error::TooLong { bytes: bytes.len(), bytes_max });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Error::Undecodable { bytes: bytes.len() }),
    }
}
