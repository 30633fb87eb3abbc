//! The node: where the rooms meet.
//!
//! [`startup`] opens a data directory and joins a cluster; [`server`] holds what runs. A client's request
//! comes through [`service`] to the [`coordinator`], whose machines are fed by [`drive`]; what is written goes
//! through the [`committer`], what is sent through [`links`]. [`peers`] is the other side of a link, and `whose` says
//! what of it is this node's. The [`sweeper`] deletes what dropped keyspaces have left; `trees`, `repairs` and
//! `exchanges` make replicas equal, and `repair_calls` at once; `refill` is what a node that lost its disk must not do
//! yet, and `refiller` ends that.

pub mod batch;
pub mod committer;
mod compactor;
pub mod comparisons;
pub mod config;
pub mod coordinator;
pub mod datadir;
pub mod decrees;
pub mod departed;
pub mod drive;
mod engaged;
pub mod env;
mod exchanges;
mod forwards;
pub mod gossip;
mod hello;
pub mod hints;
pub mod http;
pub mod links;
pub mod maps;
mod overload;
pub mod peers;
mod proofs;
pub mod readings;
pub mod reaper;
mod refill;
mod refiller;
mod repair_calls;
mod repair_runs;
mod repairs;
mod retries;
pub mod scans;
pub mod scrub;
pub mod server;
pub mod service;
mod sessions;
pub mod startup;
pub mod sweeper;
mod trees;
mod whose;
