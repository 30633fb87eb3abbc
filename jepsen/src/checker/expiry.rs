//! Values with a time to live, in an `lww` keyspace with `r + w > n`: an acknowledged one is there until its time is
//! up, and after that never again.
//!
//! A write has `:ttl-ms` (none: for ever), a read `:expires-ms`, the moment that the node named (by its wall clock),
//! and `:at-ms`, when it began by the suite's. A write's time begins somewhere within its span, by clocks that may be
//! apart by [`SLACK`]. While clocks are moved (`clock`), and a while after, moments mean nothing: what was written
//! then has an unknown end, and what is read then is not judged.
//!
//! That reads find nothing older than what was acknowledged is for `Stamps` to say.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::value::Val;
use super::{Checker, Verdict};
use crate::history::{History, Kind, Operation, Period};

/// How far the clocks of two nodes may be apart, in nanoseconds: each keeps to within 250 ms of the median, and the
/// rest is for waiting.
pub const SLACK: u64 = 600_000_000;
/// How long moved clocks have an effect after they were set right.
const AFTERMATH: u64 = 3_000_000_000;

/// Times to live.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expiry;

struct Write<'a> {
    op: &'a Operation,
    value: Val,
    stamp: Option<i64>,
    /// How long it lives; none is for ever.
    ttl: Option<u64>,
    /// Clocks were right.
    timed: bool,
}

impl Write<'_> {
    /// It may have expired by then.
    fn may_be_gone(&self, by: u64) -> bool {
        self.ttl.is_some_and(|ttl| !self.timed || self.op.began + ttl <= by + SLACK)
    }

    /// It has surely expired by then.
    fn must_be_gone(&self, by: u64) -> bool {
        let acked = self.op.outcome == Kind::Ok;
        acked && self.timed && self.ttl.is_some_and(|ttl| self.op.ended + ttl + SLACK < by)
    }
}

/// Whether clocks were right all through an operation.
fn is_timed(op: &Operation, moved: &[Period]) -> bool {
    moved.iter().all(|period| op.ended < period.began || period.ended + AFTERMATH < op.began)
}

fn events(ops: &[&Operation]) -> Vec<u64> {
    ops.iter().flat_map(|op| [op.begin, op.end]).filter(|event| *event != u64::MAX).collect()
}

/// A read that found a value.
fn judge_found(read: &Operation, writes: &[Write], findings: &mut Findings) {
    let value = Val::of(&read.output);
    let late = |expires: i64| read.number("at-ms").map(|at| at - expires);
    if let Some(late) = read.number("expires-ms").and_then(late)
        && late > i64::try_from(SLACK / 1_000_000).unwrap_or(i64::MAX)
    {
        findings.wrong(Some(read.key), events(&[read]), || {
            format!("{value} was read {late} ms after the moment that its reader names")
        });
    }
    let write = writes.iter().find(|write| write.value == value);
    if let Some(write) = write.filter(|write| write.must_be_gone(read.began)) {
        let since = (read.began - write.op.ended - write.ttl.unwrap_or(0)) / 1_000_000;
        findings.wrong(Some(read.key), events(&[write.op, read]), || {
            format!("{value} was read {since} ms after it had expired")
        });
    }
}

/// A read that found nothing: the last acknowledged write must be expired, or one that is above it.
fn judge_empty(read: &Operation, writes: &[Write], findings: &mut Findings) -> bool {
    let acked = writes.iter().filter(|write| write.op.outcome == Kind::Ok && write.op.end < read.begin);
    let Some(last) = acked.max_by_key(|write| write.stamp) else { return false };
    if last.may_be_gone(read.ended) {
        return true;
    }
    let above = |write: &&Write| {
        write.op.begin < read.end
            && write.stamp.is_none_or(|stamp| Some(stamp) >= last.stamp)
            && write.may_be_gone(read.ended)
    };
    if !writes.iter().any(|write| above(&write)) {
        findings.wrong(Some(read.key), events(&[last.op, read]), || {
            format!("{} was gone before its time", last.value)
        });
    }
    true
}

impl Checker for Expiry {
    fn name(&self) -> &'static str {
        "expiry"
    }

    fn check(&self, history: &History) -> Verdict {
        let moved: Vec<Period> =
            history.nemesis_periods().into_iter().filter(|period| period.name == "clock").collect();
        let operations = history.operations();
        let mut findings = Findings::new();
        let mut keys: BTreeMap<u64, Vec<Write>> = BTreeMap::new();
        for op in operations.iter().filter(|op| op.f == "write" && op.may_have_happened()) {
            let ttl = op.number("ttl-ms").and_then(|ttl| u64::try_from(ttl).ok());
            keys.entry(op.key).or_default().push(Write {
                op,
                value: Val::of(&op.input),
                stamp: if op.outcome == Kind::Ok { op.number("stamp") } else { None },
                ttl: ttl.map(|ttl| ttl * 1_000_000),
                timed: is_timed(op, &moved),
            });
        }
        let (mut found, mut expired, mut untimed) = (0_u64, 0_u64, 0_u64);
        for read in operations.iter().filter(|op| op.f == "read" && op.outcome == Kind::Ok) {
            let Some(writes) = keys.get(&read.key) else { continue };
            if !is_timed(read, &moved) {
                untimed += 1;
            } else if Val::of(&read.output) == Val::Nil {
                expired += u64::from(judge_empty(read, writes, &mut findings));
            } else {
                found += 1;
                judge_found(read, writes, &mut findings);
            }
        }
        if found == 0 || expired == 0 {
            findings.unsure();
        }
        findings.figure("reads-of-values", found);
        findings.figure("reads-of-what-expired", expired);
        findings.figure("reads-while-clocks-were-moved", untimed);
        findings.done()
    }
}
