//! Clients, as far as the rules need to know them.

use std::sync::Arc;

use metadata::protocol::{Event, Reply};

/// A client's connection.
pub trait Connection {
    /// Tells connections apart.
    fn number(&self) -> u64;

    /// True if nothing reaches it any more.
    fn is_cut_off(&self) -> bool;
}

impl<C: Connection> Connection for Arc<C> {
    fn number(&self) -> u64 {
        C::number(self)
    }

    fn is_cut_off(&self) -> bool {
        C::is_cut_off(self)
    }
}

/// The right to answer one request, once.
pub trait Ticket: std::fmt::Debug {
    /// Whom it answers.
    type Client: Connection + Clone + std::fmt::Debug;

    /// Who asked.
    fn client(&self) -> &Self::Client;
}

/// Something to tell a client. All that one client is told keeps its order.
#[derive(Debug)]
pub enum Tell<T: Ticket> {
    /// An answer.
    Reply(T, Reply),
    /// News on a session's stream.
    Event(T::Client, Event),
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A client by its number; zero is cut off.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Peer(pub u64);

    /// A request of it.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Asked(pub Peer, pub u64);

    impl Connection for Peer {
        fn number(&self) -> u64 {
            self.0
        }

        fn is_cut_off(&self) -> bool {
            self.0 == 0
        }
    }

    impl Ticket for Asked {
        type Client = Peer;

        fn client(&self) -> &Peer {
            &self.0
        }
    }
}
