//! What can happen to the membership machine, and what it asks its driver to do.

use std::net::SocketAddr;

use super::digest::{NodeReport, NodeState};
use super::identity::Identity;
use super::packet::Reason;
use super::view::MemberEvent;
use crate::types::error::Invalid;
use crate::types::ids::NodeId;
use crate::types::time::Mono;

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Begin. Known seed addresses, perhaps none yet.
    Start {
        /// Addresses.
        seeds: Vec<SocketAddr>,
    },
    /// The seeds were looked up (again); replaces the addresses, calls those that are new.
    Seeds(Vec<SocketAddr>),
    /// A datagram came.
    Packet {
        /// From there.
        from: SocketAddr,
        /// All of it.
        bytes: Vec<u8>,
    },
    /// The alarm went off. One that comes early or twice does no harm.
    Timer,
    /// Say this of the own node from now on.
    Publish(NodeReport),
    /// Forget a member that is down or left: it was removed from the cluster.
    Forget(NodeId),
    /// Say farewell and stop.
    Leave,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a datagram.
    Send {
        /// Where to.
        to: SocketAddr,
        /// All of it.
        bytes: Vec<u8>,
    },
    /// Send `Event::Timer` at this time; replaces the alarm asked for before.
    Arm {
        /// When.
        at: Mono,
    },
    /// Look up the seeds' names and send `Event::Seeds`.
    Resolve,
    /// A member changed.
    Changed(MemberEvent),
    /// A member said something new of itself.
    State(NodeState),
    /// The cluster had held this process for dead; it is back under this identity.
    Rejoined(Identity),
    /// There has been no live peer since then, though there are seeds. Said every few seconds.
    SeedsSilent {
        /// Since when.
        since: Mono,
    },
    /// A younger process uses the own node id; it was told to stop.
    Rival(Identity),
    /// An older live process has the own node id. This one has stopped.
    Duplicate(Identity),
    /// What was to be published breaks a limit.
    Refused(Invalid),
    /// A datagram was dropped.
    Dropped {
        /// Its sender.
        from: SocketAddr,
        /// Why.
        reason: Reason,
    },
    /// The farewell is sent. The machine has stopped.
    Left,
    /// foca can't take a new identity any more. The machine has stopped.
    Defunct,
}
