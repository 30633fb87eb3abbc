//! One node: what turns the machines into a running process.

pub mod env;
pub mod gossip;
