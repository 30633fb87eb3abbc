//! The decree that decides a cluster map: see `mod.rs`. Follows in the next commit.
