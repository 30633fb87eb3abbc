//! Gossip: who is there, how they fare, and what they say of themselves.
//!
//! The protocol is SWIM with suspicion, by foca. Each node probes one member after the other: a ping, and
//! if it is not answered in time, pings through three others. Who fails is *suspect* and has a moment to
//! speak up, then *down*. News rides on the pings and on a regular gossip round, each piece a few times.
//! Round it stands a machine ([`membership::Membership`]) that adds what a database needs:
//!
//! - *Joining.* A node knows its seeds by address only. It asks each who it is (`Hello`, `Welcome`) and then
//!   announces itself. With no live peer it goes on asking, says so, and looks the names up again.
//! - *Restart.* A process has a nonce and a generation; of two identities of one node the later one wins. A
//!   restarted node is back at once, though its last life is still held for live, and also if its clock was
//!   set back ([`rival`]).
//! - *Falsely dead.* A node that was held for dead is told so when it speaks, takes a new identity and is back.
//! - *Partition.* Each side calls those it holds for dead, and seeds that it doesn't see, so sides find each
//!   other again by themselves, also when each is alone.
//!   A node that lost everyone takes it that it was cut off itself, and keeps its verdicts to itself.
//! - *State.* Each node says which cluster map it has, where clients find it and how it fares ([`digest`]).
//! - *A slow node accuses nobody.* When timers come late the node itself stood still; see [`timers`].
//!
//! Caveats:
//! - A verdict is an opinion, and each node has its own. It may steer whom to ask; it never decides whether a
//!   write is safe, nor who owns what.
//! - Datagrams are not authenticated: the envelope keeps out accidents, not attackers.
//! - A twin of a node (a copied data directory) is found by calling it, so not while it can't be reached.

pub mod digest;
pub mod event;
pub mod identity;
pub mod membership;
pub mod packet;
pub mod rival;
pub mod swim;
pub mod timers;
pub mod view;

#[cfg(test)]
mod tests;
