//! How old reads are, for modes that promise nothing of it: a measure, and a verdict only if a limit is set.
//!
//! A read is stale by the time since its value was surely replaced: since the first end of a write that began
//! after the value's own write had ended, and that ended before the read began. What an unknown write left is
//! never surely replaced. With clocks that disagree, a later write may have lost to an older one: reads of the
//! winner count as stale from then on, which is what their clients see.

use std::collections::BTreeMap;
use std::time::Duration;

use super::findings::{Findings, millis, quantile, quantiles};
use super::register::{RegOp, event, registers};
use super::value::Val;
use super::{Checker, Verdict};
use crate::history::History;

/// Staleness of registers' reads.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stale {
    /// Reads older than this are wrong; with none, no history is.
    pub limit: Option<Duration>,
}

impl Checker for Stale {
    fn name(&self) -> &'static str {
        "stale"
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new();
        let mut ages = Vec::new();
        let mut reads = 0_usize;
        for (key, ops) in registers(history) {
            reads += ops.iter().filter(|op| !op.write).count();
            for (read, replaced) in stale(&ops) {
                let age = read.began.saturating_sub(replaced.ended);
                ages.push(age);
                if self.limit.is_some_and(|limit| u128::from(age) > limit.as_nanos()) {
                    let events = [replaced.begin, replaced.end, read.begin, read.end];
                    findings.wrong(Some(key), events.into_iter().filter_map(event).collect(), || {
                        format!("{} was read {} ms after it was replaced", read.value, millis(age))
                    });
                }
            }
        }
        if reads == 0 {
            findings.unsure();
        }
        findings.figure("reads", reads);
        findings.figure("stale-reads", ages.len());
        findings.figure("stale-share", ages.len() as f64 / reads.max(1) as f64);
        ages.sort_unstable();
        findings.figure("stale-max-ms", millis(quantile(&ages, 1.0)));
        findings.figure("stale-ms", quantiles(ages, &[("p50", 0.5), ("p99", 0.99), ("max", 1.0)]));
        findings.done()
    }
}

/// The stale reads of a key, each with the write that was the first to replace what it read.
fn stale(ops: &[RegOp]) -> Vec<(&RegOp, &RegOp)> {
    let finished: Vec<&RegOp> = ops.iter().filter(|op| op.write && op.sure()).collect();
    // For each finished write, the one that ends first of those that begin no earlier.
    let mut first = finished.clone();
    for at in (1..first.len()).rev() {
        if first[at].end < first[at - 1].end {
            first[at - 1] = first[at];
        }
    }
    // Writes of each value by their beginnings, each with the last end up to there.
    let mut writes: BTreeMap<&Val, Vec<(u64, u64)>> = BTreeMap::from([(&Val::Nil, vec![(0, 0)])]);
    for op in ops.iter().filter(|op| op.write) {
        let own = writes.entry(&op.value).or_default();
        let last = own.last().map_or(0, |(_, end)| *end);
        own.push((op.begin, last.max(op.end)));
    }
    let mut found = Vec::new();
    for read in ops.iter().filter(|op| !op.write) {
        let own = writes.get(&read.value).map(Vec::as_slice).unwrap_or_default();
        let begun = own.partition_point(|(begin, _)| *begin < read.end);
        // Of several deletions, the kindest.
        let Some((_, end)) = begun.checked_sub(1).and_then(|at| own.get(at)) else { continue };
        let after = finished.partition_point(|op| op.begin <= *end);
        if let Some(replaced) = first.get(after)
            && replaced.end < read.begin
        {
            found.push((read, *replaced));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Draft, Valid};
    use crate::edn::Edn;

    #[test]
    fn ages_are_counted_from_the_first_sure_replacement() {
        let mut draft = Draft::new();
        draft.done(1, "write", 0, 1_i64, &[]).done(1, "write", 0, 2_i64, &[]);
        draft.done(1, "write", 0, 3_i64, &[]);
        draft.invoke(1, "read", 0, Edn::Nil).after(5).ok(1, 1_i64, &[]);
        draft.done(1, "read", 0, 3_i64, &[]);
        let verdict = Stale::default().check(&draft.history());
        assert_eq!(verdict.valid, Valid::Yes);
        let figure = |name: &str| verdict.figures.iter().find(|(own, _)| own == name).map(|(_, v)| v.clone());
        assert_eq!(figure("reads"), Some(Edn::Int(2)));
        assert_eq!(figure("stale-reads"), Some(Edn::Int(1)));
        // 2 was acknowledged at 3 ms, the read began at 6 ms and five later.
        assert_eq!(figure("stale-max-ms"), Some(Edn::Float(8.0)));
    }

    #[test]
    fn what_may_still_be_there_is_not_stale() {
        let mut draft = Draft::new();
        draft.lost(1, "write", 0, 1_i64, &[]).done(2, "write", 0, 2_i64, &[]).done(2, "read", 0, 1_i64, &[]);
        draft.done(2, "delete", 1, Edn::Nil, &[]).done(2, "write", 1, 1_i64, &[]);
        draft.done(2, "delete", 1, Edn::Nil, &[]).done(2, "read", 1, Edn::Nil, &[]);
        draft.done(2, "write", 2, 1_i64, &[]).invoke(2, "write", 2, 2_i64).invoke(3, "read", 2, Edn::Nil);
        draft.ok(2, 2_i64, &[]).ok(3, 1_i64, &[]);
        let verdict = Stale { limit: Some(Duration::ZERO) }.check(&draft.history());
        assert_eq!(verdict.valid, Valid::Yes, "{verdict:?}");
        assert!(verdict.figures.contains(&("stale-reads".to_owned(), Edn::Int(0))));
    }
}
