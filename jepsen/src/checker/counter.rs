//! A counter's reads lie between what it must have been and what it may have been, as Jepsen's `counter` has it.
//!
//! At least: all that was surely added before the read began, and all that may have been taken away before it
//! ended. At most: the other way round. Whether the values in between could come about is not asked.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::{Checker, Verdict};
use crate::edn::Edn;
use crate::history::{History, Kind, Operation};

/// Bounds of a counter's reads, for each key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counter;

/// Sums of additions and of subtractions up to a point.
type Sums = Vec<(u64, i64, i64)>;

fn sums(mut adds: Vec<(u64, i64)>) -> Sums {
    adds.sort_unstable();
    let (mut more, mut less) = (0_i64, 0_i64);
    let sum = |(at, delta): (u64, i64)| {
        more = more.saturating_add(delta.max(0));
        less = less.saturating_add(delta.min(0));
        (at, more, less)
    };
    adds.into_iter().map(sum).collect()
}

/// The sums of what lies before a point.
fn before(sums: &Sums, at: u64) -> (i64, i64) {
    let count = sums.partition_point(|(own, ..)| *own < at);
    count.checked_sub(1).and_then(|last| sums.get(last)).map_or((0, 0), |(_, more, less)| (*more, *less))
}

/// What a key's reads may be.
struct Bounds {
    /// Sure adds by their ends.
    sure: Sums,
    /// Those that may have happened by their beginnings.
    perhaps: Sums,
}

impl Bounds {
    fn of(ops: &[&Operation]) -> Self {
        let adds = || ops.iter().filter(|op| op.f == "add" && op.may_have_happened());
        let delta = |op: &Operation| op.input.as_int().unwrap_or(0);
        let sure = adds().filter(|op| op.outcome == Kind::Ok).map(|op| (op.end, delta(op)));
        Self { sure: sums(sure.collect()), perhaps: sums(adds().map(|op| (op.begin, delta(op))).collect()) }
    }

    fn of_read(&self, read: &Operation) -> (i64, i64) {
        let (sure_more, sure_less) = before(&self.sure, read.begin);
        let (perhaps_more, perhaps_less) = before(&self.perhaps, read.end);
        (sure_more.saturating_add(perhaps_less), perhaps_more.saturating_add(sure_less))
    }
}

impl Checker for Counter {
    fn name(&self) -> &'static str {
        "counter"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let mut keys: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for op in &operations {
            keys.entry(op.key).or_default().push(op);
        }
        let mut findings = Findings::new();
        let (mut judged, mut widest) = (0_u64, 0_i64);
        for (key, ops) in keys {
            let bounds = Bounds::of(&ops);
            for read in ops.iter().filter(|op| op.f == "read" && op.outcome == Kind::Ok) {
                judged += 1;
                let (least, most) = bounds.of_read(read);
                widest = widest.max(most.saturating_sub(least));
                let value = if read.output == Edn::Nil { Some(0) } else { read.output.as_int() };
                if value.is_none_or(|value| value < least || most < value) {
                    let text = || format!("{} was read, not {least} to {most}", read.output);
                    findings.wrong(Some(key), vec![read.begin, read.end], text);
                }
            }
        }
        if judged == 0 {
            findings.unsure();
        }
        findings.figure("reads", judged);
        findings.figure("widest-bounds", widest);
        findings.done()
    }
}
