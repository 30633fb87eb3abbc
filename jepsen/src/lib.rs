//! A Jepsen-style fault suite for Quoral: real processes, real faults, checked histories.
//!
//! It knows the `quoral` binary, the protos and the Rust client, nothing else of the database.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod edn;
pub mod history;
pub mod nemesis;
pub mod network;
pub mod proto;
pub mod recorder;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod serve;
pub mod workload;
