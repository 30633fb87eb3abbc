//! Quoral: a Dynamo-style leaderless quorum key-value database.

#![forbid(unsafe_code)]

// Layer 0: vocabulary.
pub mod machine;
pub mod types;
// Layer 1: what is stored, and where.
pub mod version;
// Layer 2: protocols and storage.
pub mod storage;
// Layer 4: the wire.
pub mod rpc;
// Layer 6: the command line.
pub mod cli;
