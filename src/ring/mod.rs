//! The ring: which nodes own which keys, and how the cluster agrees on it.
//!
//! The 2^64 positions are cut into Q equal arcs, the [`partition`]s, for the life of the cluster. A
//! [`layout`] gives each partition an ordered list of owners; layout, keyspaces and banned ids together are
//! the *cluster map*, one value under one version number. Version 1 is computed from the bootstrap list, by
//! every node alike; version k + 1 is decided by a single-decree Paxos ([`decree`]) among the nodes of map
//! k, so two sides of a network partition can't both make it. [`placement`] computes the owners,
//! [`preflist`] what a coordinator sees: home replicas, then fallbacks in an order that all compute alike.
//! [`keyspaces`] says what a change of the keyspaces makes of the newest map, and when it must not be made.
//!
//! Why fixed partitions and a computed table, not random tokens: balance is exact (within one replica of
//! the weighted share), the fewest replicas move when a node comes or goes, and a partition is one range
//! to scan, hand over and compare. The price is the table: 2 bytes or fewer an owner, so about 1 KiB for
//! three nodes and 256 partitions and at most 2 MiB for 65 536 partitions.
//!
//! Layer 1, pure. Persisting, gossip and pulling of maps are `node`'s.
//!
//! Caveats:
//! - Where zones and weights are at odds, zones win: a zone of one small node among two of three big ones
//!   still gets a replica of every partition. Each such wish that can't be met is told in the notes.
//! - A liveness verdict never changes ownership; only a decided map does.

pub mod decree;
mod flow;
pub mod keyspaces;
pub mod layout;
pub mod partition;
pub mod placement;
pub mod preflist;
mod share;
