//! One node, one key, one batch: what a replica does with its own storage.
//!
//! [`mint`] makes a new version at the coordinator, [`apply`] merges what came from elsewhere, [`fetch`] and
//! [`scan`] read, [`requests`] remembers what became of writes with a request id, [`sweep`] finds what dropped keyspaces
//! have left, [`scrub`] finds damaged records at the [`pace`] that it is given, [`quarantine`] and [`heal`] deal with
//! them. All are synchronous functions over `&dyn Storage` that return a batch to write; the commit
//! thread (`node/committer.rs`) is the one writer that calls the first two, so a read-modify-write of a key
//! is never interleaved with another.
//!
//! The dots are safe because of one local mark, stored with the record and never replicated: only a node
//! whose own stored record says that it minted a line of dots goes on with that line. A record that
//! arrived by replication onto a not-found has no mark, and the next mint starts a new birth (F10, F11).

pub mod apply;
pub mod fetch;
pub mod heal;
pub mod mint;
pub mod pace;
pub mod quarantine;
pub mod requests;
pub mod scan;
pub mod scrub;
pub mod stored;
pub mod sweep;
