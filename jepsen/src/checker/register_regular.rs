//! An `lww` key with `r + w > n` and `2 r <= n` is a regular register (G2 without G3).
//!
//! A read returns the latest write that was finished before it began, or one concurrent with it; two reads
//! need not agree on when a write under way took effect. For several writers: there is one order of all
//! writes, which keeps real time (a write that began after another ended comes later), such that no read
//! returns a version older than a write that was finished before the read began. That is what stamps give
//! with `2 w > n`, which follows from `r + w > n` and `2 r <= n`. A write stamped again only moves up in it.
//!
//! Such an order exists if no two writes each have to come before the other: `a` comes before `b` if `a` was
//! finished before `b`, or a read of `b`, began. (If there is a longer circle, there is one of two: take the
//! write of the circle that finished first.) This is the question that zones answer, with a version's zone
//! from its write's end to its last beginning.
//!
//! Where versions are not unique (deletions without stamps, or purged ones), each read is judged alone.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::register::{Cluster, Naming, RegOp, any_purged, clusters, event, registers, unique};
use super::register_atomic::unborn;
use super::value::Val;
use super::zones::{Zone, clashes};
use super::{Checker, Verdict};
use crate::history::History;

/// The regular register, for each key.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegisterRegular;

impl Checker for RegisterRegular {
    fn name(&self) -> &'static str {
        "register-regular"
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new();
        let keys = registers(history);
        let (mut reads, mut alone) = (0_usize, 0_u64);
        for (key, ops) in &keys {
            reads += ops.iter().filter(|op| !op.write).count();
            let mut found = None;
            if let Some(naming) = [Naming::Plain, Naming::Tombs].into_iter().find(|own| unique(ops, *own)) {
                let wrong = one_order(&clusters(ops, naming));
                if wrong.is_empty() || !any_purged(ops) {
                    found = Some(wrong);
                }
            }
            let found = found.unwrap_or_else(|| {
                alone += 1;
                each_alone(ops)
            });
            for (text, events) in found {
                findings.wrong(Some(*key), events, || text);
            }
        }
        if reads == 0 {
            findings.unsure();
        }
        findings.figure("keys", keys.len());
        findings.figure("reads", reads);
        findings.figure("keys-read-by-read", alone);
        findings.done()
    }
}

fn one_order(versions: &[Cluster]) -> Vec<(String, Vec<u64>)> {
    let mut found: Vec<(String, Vec<u64>)> = versions.iter().filter_map(unborn).collect();
    let zones: Vec<Zone> = versions.iter().map(|c| Zone { from: c.acked, to: c.last_begin }).collect();
    for (a, b) in clashes(&zones) {
        let (a, b) = (&versions[a], &versions[b]);
        let events = [a.acked, a.last_begin, b.acked, b.last_begin].into_iter().filter_map(event);
        found.push((format!("not regular: {a}; {b}"), events.collect()));
    }
    found
}

/// For each read, whether some write of its value was not finished before another began that was finished
/// before the read.
fn each_alone(ops: &[RegOp]) -> Vec<(String, Vec<u64>)> {
    // Finished writes by their ends, each with the last beginning up to there.
    let mut finished: Vec<(u64, u64)> =
        ops.iter().filter(|op| op.write && op.sure()).map(|op| (op.end, op.begin)).collect();
    finished.sort_unstable();
    let mut last = 0;
    for (_, begin) in &mut finished {
        last = last.max(*begin);
        *begin = last;
    }
    // Writes of each value by their beginnings, each with the last end up to there.
    let mut writes: BTreeMap<&Val, Vec<(u64, u64)>> = BTreeMap::from([(&Val::Nil, vec![(0, 0)])]);
    for op in ops.iter().filter(|op| op.write) {
        let own = writes.entry(&op.value).or_default();
        own.push((op.begin, own.last().map_or(op.end, |(_, end)| op.end.max(*end))));
    }
    let mut found = Vec::new();
    for read in ops.iter().filter(|op| !op.write) {
        let own = writes.get(&read.value).map(Vec::as_slice).unwrap_or_default();
        let begun = own.partition_point(|(begin, _)| *begin < read.end);
        let end = begun.checked_sub(1).and_then(|at| own.get(at)).map(|(_, end)| *end);
        let before = finished.partition_point(|(end, _)| *end < read.begin);
        let later = before.checked_sub(1).and_then(|at| finished.get(at)).map_or(0, |(_, begin)| *begin);
        if end.is_none_or(|end| end < later) {
            let events: Vec<u64> = [later, read.begin, read.end].into_iter().filter_map(event).collect();
            found.push((format!("not regular: a read of {}, events {events:?}", read.value), events));
        }
    }
    found
}
