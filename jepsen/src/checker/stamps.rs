//! Stamps keep real time, in modes with `r + w > n` and `2 w > n`: of two answered operations on a key, the one
//! that began after the other had ended has no smaller stamp.
//!
//! They may have the same: of equal stamps the node's id decides, which clients aren't told. A read that
//! found nothing after a deletion has stamp 0, for the tombstone may have been purged: it is excused.

use super::findings::Findings;
use super::register::{RegOp, event, purged, registers, tombstones};
use super::{Checker, Verdict};
use crate::history::History;

/// The order of stamps, for each key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stamps;

impl Checker for Stamps {
    fn name(&self) -> &'static str {
        "stamps"
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new();
        let mut judged = 0_usize;
        for (key, ops) in registers(history) {
            let mut stamped: Vec<(i64, &RegOp)> = ops.iter().filter_map(|op| Some((op.stamp?, op))).collect();
            judged += stamped.len();
            let deletions = tombstones(&ops);
            let mut ended = stamped.clone();
            ended.sort_unstable_by_key(|(_, op)| op.end);
            stamped.sort_unstable_by_key(|(_, op)| op.begin);
            let mut ended = ended.into_iter().peekable();
            let mut greatest: Option<(i64, &RegOp)> = None;
            for (stamp, op) in stamped {
                while let Some(before) = ended.next_if(|(_, earlier)| earlier.end < op.begin) {
                    if greatest.is_none_or(|(own, _)| own < before.0) {
                        greatest = Some(before);
                    }
                }
                if let Some((floor, earlier)) = greatest
                    && stamp < floor
                    && !purged(op, floor, &deletions)
                {
                    let (value, before) = (&op.value, &earlier.value);
                    let events = [earlier.begin, earlier.end, op.begin, op.end].into_iter().filter_map(event);
                    findings.wrong(Some(key), events.collect(), || {
                        format!("a stamp went back: {before} at stamp {floor}, then {value} at stamp {stamp}")
                    });
                }
            }
        }
        if judged == 0 {
            findings.unsure();
        }
        findings.figure("operations", judged);
        findings.done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Draft, Monotonic, Valid};
    use crate::edn::Edn;

    fn stamp(stamp: i64) -> [(&'static str, Edn); 1] {
        [("stamp", Edn::Int(stamp))]
    }

    #[test]
    fn what_overlaps_may_have_any_order() {
        let mut draft = Draft::new();
        draft.invoke(1, "write", 0, 1_i64).done(2, "write", 0, 2_i64, &stamp(5)).ok(1, 1_i64, &stamp(4));
        draft.done(3, "write", 1, 3_i64, &stamp(1)).done(3, "read", 0, 2_i64, &stamp(5));
        draft.invoke(1, "write", 2, 1_i64).invoke(2, "write", 2, 2_i64);
        draft.ok(1, 1_i64, &stamp(5)).ok(2, 2_i64, &stamp(4));
        assert_eq!(Stamps.check(&draft.history()).valid, Valid::Yes);
        assert_eq!(Stamps.check(&Draft::new().history()).valid, Valid::Unknown);
    }

    #[test]
    fn a_purged_tombstone_has_no_stamp_any_more() {
        let judge = |deletion: bool| {
            let mut draft = Draft::new();
            draft.done(1, "write", 0, 1_i64, &stamp(5));
            if deletion {
                draft.done(1, "delete", 0, Edn::Nil, &stamp(6));
            }
            draft.done(1, "read", 0, Edn::Nil, &stamp(0));
            (Stamps.check(&draft.history()).valid, Monotonic.check(&draft.history()).valid)
        };
        assert_eq!(judge(true), (Valid::Yes, Valid::Yes));
        assert_eq!(judge(false), (Valid::No, Valid::No));
    }
}
