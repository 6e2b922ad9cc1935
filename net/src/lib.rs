//! Bytes and connections, no meaning: QUIC with mutual TLS from one cluster's own authority, ordered
//! channels of frames, links that reconnect, and emulation of wide-area distances.
//!
//! * [`pki`]: the cluster's authority and the certificates of nodes and clients.
//! * [`Endpoint`]: one UDP socket that dials nodes and accepts whoever the authority vouches for.
//! * A channel ([`FrameSender`], [`FrameReceiver`]): one bidirectional stream of length-prefixed frames,
//!   in order, bounded on both sides.
//! * [`PeerLink`]: a channel to one node that is kept alive; sending never blocks.
//! * [`runtime`]: the tokio runtime it all should run on.
//! * [`rpc`]: request ids over a channel. [`codec`]: versioned postcard with a limit.
//! * [`wan`]: delays, jitter, loss and cuts between regions, changed while the processes run.
//!
//! Nothing here knows what a frame means, and nothing a peer sends can make it panic or grow without bound.

pub mod codec;
pub mod pki;
pub mod rpc;
pub mod wan;

mod channel;
mod endpoint;
mod error;
mod frame;
mod hello;
mod link;
mod reset;
mod runtime;
mod socket;
mod tls;

pub use channel::{FrameReceiver, FrameSender, TrySendError};
pub use endpoint::{Connection, Endpoint, EndpointConfig, Incoming, Limits, Tuning};
pub use error::{Error, ErrorClass, Result};
pub use hello::{ChannelKind, WIRE_VERSION};
pub use link::{LinkConfig, LinkReceiver, LinkStatus, PeerLink};
pub use pki::{ClusterCa, Fingerprint, Identity, PeerName, Role};
pub use runtime::runtime;

/// A well-mixed function of a counter: enough randomness for pauses and emulated losses.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
