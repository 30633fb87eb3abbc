//! Deleted keys go away for good, with the consent of all who hold them.
//!
//! A tombstone is needed for as long as any replica, hint or message may still hold what it deleted. So it is purged
//! in two phases (`reap`), a grace after it was written: first every home replica confirms that it holds exactly this
//! record, then each deletes it, if it still is exactly this record. A replica that is away keeps its tombstones
//! alive, with no end: timers alone bring deleted data back (scylla#15243, #4277).
//!
//! Between the two lies as long as a message may be on its way: one who lacked the tombstone until the first may have
//! told somebody of what it deleted, who stores that elsewhere a moment later. So what all confirm is noted, and
//! purged by a later pass, in which all confirm it again.
//!
//! What else could bring the key back is a hint or a message of its own time. Hints are refused past their
//! window, and whatever was read or minted longer ago than `repair.message_age_ms` is not stored; the grace is more
//! than both together, and the clock skew allowed (checked for the defaults when the product is built, and for a
//! configuration when a node starts).
//!
//! A value whose time to live is over is a tombstone from that moment on, and goes the same way.
//!
//! Caveats:
//! - A machine that is suspended does not count the time; its wall clock does, once it is set right.
//! - A record with a live version beside its tombstones stays whole: its past is needed.

pub mod reap;
