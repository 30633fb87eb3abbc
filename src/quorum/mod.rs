//! Quorums: the machines that one request runs through at its coordinator.
//!
//! A [`put`] stores the coordinator's own copy, sends it to all live home replicas at once and answers at
//! `w` acknowledgements. A [`read`] asks `r` replicas, merges what they hold, and before it answers writes
//! the merged version back until `n − r + 1` replicas hold it, so that no later read goes back (G3). Gets
//! and pages of scans are both reads. All count with one three-valued [`tally`]. Whom a read asks first, and when it asks
//! one more, is [`choice`]'s; how many requests a node takes at a time, [`admission`]'s.
//!
//! Both are pure: the driver in `node/drive.rs` feeds them events and carries out their effects in order.
//!
//! Caveats:
//! - Of a scan fallbacks are not asked, so it does not see sloppy writes until their hints are home.
//! - With `2 r <= n` the write-back covers the replicas asked and no more; G3 is not promised then.

pub mod admission;
pub mod choice;
pub mod page;
pub mod put;
pub mod read;
pub mod tally;
