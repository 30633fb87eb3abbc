//! The vocabulary: a newtype for each id, index and unit, validated once at the edge.
//!
//! Layer 0, pure. Everything else may import from here; this room imports nothing of Quoral's.

pub mod error;
pub mod ids;
pub mod key;
pub mod limits;
pub mod policy;
pub mod time;
