//! A Jepsen-style fault suite for Quoral: real processes, real faults, checked histories.
//!
//! It knows the `quoral` binary and the protos, nothing else of the database.

pub mod checker;
pub mod edn;
pub mod history;
pub mod report;
pub mod serve;
