//! The node: what drives the machines and owns what they must not touch.

pub mod datadir;
