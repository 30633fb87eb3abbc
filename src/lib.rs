//! Quoral: a Dynamo-style leaderless quorum key-value database.

#![forbid(unsafe_code)]

// Layer 0: vocabulary.
pub mod canary;
pub mod machine;
pub mod types;
// Layer 1: what is stored, and where.
pub mod ring;
pub mod version;
// Layer 2: protocols and storage.
pub mod gossip;
pub mod quorum;
pub mod storage;
// Layer 3: one node, one key.
pub mod antientropy;
pub mod hinted;
pub mod replica;
pub mod telemetry;
pub mod tombstone;
// Layer 4: the wire.
pub mod rpc;
// Layer 5: the node.
pub mod node;
// Layer 6: the command line.
pub mod cli;
