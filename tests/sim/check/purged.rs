//! What a read of nothing at all means where tombstones go after a while: that the newest tombstone there is gone.
//!
//! An `lww` read of a purged key has no stamp. It is given that of the newest tombstone that may have been purged by
//! then, and is judged like any other: what is newer than that may not be missing.

use quoral::types::time::WallMs;
use quoral::version::hlc::Stamp;

use crate::clock::EPOCH_MS;
use crate::history::{Action, Op, Outcome};
use crate::upkeep::APART_MS;

/// The operations of one `lww` key, with a stamp for each read of nothing at all. Tombstones go `gone_after_ms` after
/// they were written, at the earliest.
pub fn with_stamps(ops: &[&Op], gone_after_ms: u64) -> Vec<Op> {
    let stamped = |op: &&Op| match &op.outcome {
        Outcome::Read(values, Some(0)) if values.is_empty() => {
            let stamp = newest_gone(ops, op, gone_after_ms);
            Op { outcome: Outcome::Read(Vec::new(), Some(stamp)), ..(*op).clone() }
        }
        _ => (*op).clone(),
    };
    ops.iter().map(stamped).collect()
}

/// The stamp of the newest tombstone that may be gone when `read` ends; 0 if there is none.
fn newest_gone(ops: &[&Op], read: &Op, gone_after_ms: u64) -> u64 {
    let is_old = |began_ms: u64| began_ms + gone_after_ms <= read.ended_ms;
    // A stamp may be ahead of its time by as much as the clocks are.
    let newest_ms = EPOCH_MS + (read.ended_ms + APART_MS).saturating_sub(gone_after_ms);
    let is_old_stamp = |stamp: u64| stamp > 0 && stamp < Stamp::at(WallMs(newest_ms)).0;
    let old_deletes =
        ops.iter().filter(|op| op.action == Action::Delete && op.may_have_written() && is_old(op.began_ms));
    let (acked, unknown): (Vec<&Op>, Vec<&Op>) = old_deletes.partition(|op| op.is_acked());
    let acked = acked.iter().filter_map(|op| op.stamp()).max().unwrap_or(0);
    if unknown.is_empty() {
        return acked;
    }
    // One of an unknown outcome has a stamp that nobody was told, or one that somebody read.
    let before = ops.iter().filter(|op| op.begin < read.end);
    let known = before.filter_map(|op| op.stamp()).filter(|stamp| is_old_stamp(*stamp)).max().unwrap_or(0);
    let is_tombstone = |op: &&&Op| op.values().is_empty() && !matches!(op.action, Action::Put(_));
    let is_of_tombstone = ops.iter().filter(is_tombstone).any(|op| op.stamp() == Some(known));
    if is_of_tombstone { acked.max(known) } else { acked.max(known + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{delete_at, nothing, put};

    fn stamp(ops: &[Op]) -> Option<u64> {
        with_stamps(&ops.iter().collect::<Vec<_>>(), 5_000).last().and_then(Op::stamp)
    }

    #[test]
    fn a_read_of_nothing_is_as_new_as_the_newest_tombstone_that_may_be_gone() {
        let wall = |ms: u64| Stamp::at(WallMs(EPOCH_MS + ms)).0;
        let (old, new) = (delete_at(100, wall(100)), delete_at(5_000, wall(5_000)));
        let ops = |read_ms| [put(1, 2, 1, wall(1)), old.clone(), new.clone(), nothing(read_ms, Some(0))];
        assert_eq!(stamp(&ops(5_000)), Some(0), "none is old enough");
        assert_eq!(stamp(&ops(5_100)), Some(wall(100)));
        assert_eq!(stamp(&ops(9_900)), Some(wall(100)));
        assert_eq!(stamp(&ops(10_000)), Some(wall(5_000)));
        // One that may have been done hides what was written before it, not what came later.
        let doubt = Op { outcome: Outcome::Unknown("LOST".into()), ..delete_at(100, 0) };
        let ops = [put(1, 2, 1, wall(1)), doubt, put(5_000, 5_001, 2, wall(5_000)), nothing(6_000, Some(0))];
        assert_eq!(stamp(&ops), Some(wall(1) + 1));
    }
}
