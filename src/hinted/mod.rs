//! Hinted handoff: what a home replica missed while it was away, kept for it and brought home (Dynamo,
//! DeCandia et al. 2007, section 4.6).
//!
//! The coordinator of a write keeps a *hint* for each home replica that did not acknowledge it: the record
//! itself, durable, in a log of its own for each target ([`queue`]). When the target is back its hints are
//! sent, oldest first, and merged there like any repair; one that is acknowledged is forgotten ([`delivery`]).
//! Those of a node that has left the cluster go to the homes that their keys have now ([`heirs`]).
//!
//! Caveats:
//! - A hint is a help, not a promise: past the limits (a window of time, bytes for each target, bytes for all, a
//!   share of the disk) no more are kept, and a hint lost with its disk is lost. That replicas become equal in the end is for
//!   anti-entropy.
//! - Each write makes a hint of its own, also of one key again and again. Order is of no matter, since
//!   records only merge; so a delivery that is interrupted begins anew where it was, and repeats harm nobody.
//! - A hint older than the window is neither sent nor taken: it could bring back what was purged meanwhile.

pub mod delivery;
pub mod heirs;
pub mod progress;
pub mod queue;
