//! How available the cluster was: pauses, shares of failed operations, latencies; in calm and under each fault.
//!
//! An operation counts under every fault whose span it overlaps, and as calm if there is none. Latencies are
//! those of successful operations. A pause is a stretch without a success, overall from the first invocation
//! to the last completion, and for each `f` likewise among its own operations.
//!
//! Fewer than half of the operations acknowledged proves too little: the verdict is then unknown.

use std::collections::BTreeMap;
use std::time::Duration;

use super::findings::{Findings, millis, quantiles};
use super::{Checker, Verdict};
use crate::edn::Edn;
use crate::history::{History, Kind, Operation, Period};

/// Measures availability.
#[derive(Debug, Clone, Copy, Default)]
pub struct Availability {
    /// A longer pause is wrong; with none, pauses are only measured.
    pub longest_pause: Option<Duration>,
}

#[derive(Default)]
struct Tally {
    ok: u64,
    fail: u64,
    info: u64,
    latencies: Vec<u64>,
}

impl Tally {
    fn add(&mut self, op: &Operation) {
        match op.outcome {
            Kind::Ok => {
                self.ok += 1;
                self.latencies.push(op.ended.saturating_sub(op.began));
            }
            Kind::Fail => self.fail += 1,
            Kind::Info | Kind::Invoke => self.info += 1,
        }
    }

    fn into_edn(self) -> Edn {
        let all = (self.ok + self.fail + self.info).max(1) as f64;
        let shares = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];
        Edn::map([
            ("ok", Edn::from(self.ok)),
            ("fail", Edn::from(self.fail)),
            ("info", Edn::from(self.info)),
            ("fail-share", Edn::from(self.fail as f64 / all)),
            ("info-share", Edn::from(self.info as f64 / all)),
            ("latency-ms", quantiles(self.latencies, &shares)),
        ])
    }
}

/// A stretch without a success: its length, and when it began.
fn longest_pause<'a>(ops: impl Iterator<Item = &'a Operation> + Clone) -> (u64, u64) {
    let Some(first) = ops.clone().map(|op| op.began).min() else { return (0, 0) };
    let last = ops.clone().map(|op| op.ended).max().unwrap_or(first);
    let mut ends: Vec<u64> = ops.filter(|op| op.outcome == Kind::Ok).map(|op| op.ended).collect();
    ends.push(last);
    ends.sort_unstable();
    let mut before = first;
    let pauses = ends.into_iter().map(|end| {
        let pause = (end.saturating_sub(before), before);
        before = end;
        pause
    });
    pauses.max_by_key(|(length, _)| *length).unwrap_or((0, first))
}

/// Spans of one kind of fault: beginnings in order, each with the last end up to there.
fn spans(periods: &[Period]) -> BTreeMap<&str, Vec<(u64, u64)>> {
    let mut spans: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for period in periods {
        let own = spans.entry(&period.name).or_default();
        let last = own.last().map_or(period.ended, |(_, ended)| period.ended.max(*ended));
        own.push((period.began, last));
    }
    spans
}

fn overlaps(op: &Operation, spans: &[(u64, u64)]) -> bool {
    let begun = spans.partition_point(|(began, _)| *began <= op.ended);
    begun.checked_sub(1).and_then(|at| spans.get(at)).is_some_and(|(_, ended)| op.began <= *ended)
}

impl Checker for Availability {
    fn name(&self) -> &'static str {
        "availability"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let periods = history.nemesis_periods();
        let spans = spans(&periods);
        let mut findings = Findings::new();
        let mut all = Tally::default();
        let mut calm = Tally::default();
        let mut faults: BTreeMap<&str, Tally> = spans.keys().map(|name| (*name, Tally::default())).collect();
        for op in &operations {
            all.add(op);
            let mut any = false;
            for (name, spans) in &spans {
                if overlaps(op, spans) {
                    any = true;
                    faults.entry(name).or_default().add(op);
                }
            }
            if !any {
                calm.add(op);
            }
        }
        if all.ok * 2 < operations.len() as u64 || operations.is_empty() {
            findings.unsure();
        }
        let (length, began) = longest_pause(operations.iter());
        if self.longest_pause.is_some_and(|limit| u128::from(length) > limit.as_nanos()) {
            let within = |op: &&Operation| op.ended >= began && op.ended <= began + length;
            let events = operations.iter().filter(within).map(|op| op.begin).take(10).collect();
            findings.wrong(None, events, || {
                format!("nothing succeeded for {} ms, from {} ms on", millis(length), millis(began))
            });
        }
        let mut by_f: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
        for op in &operations {
            by_f.entry(&op.f).or_default().push(op);
        }
        let pauses =
            by_f.iter().map(|(f, ops)| (*f, Edn::from(millis(longest_pause(ops.iter().copied()).0))));
        findings.figure("longest-pause-ms", millis(length));
        findings.figure("longest-pause-ms-by-f", Edn::map(pauses));
        findings.figure("all", all.into_edn());
        findings.figure("calm", calm.into_edn());
        findings.figure("faults", Edn::map(faults.into_iter().map(|(name, tally)| (name, tally.into_edn()))));
        findings.done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Draft, Valid};

    #[test]
    fn operations_count_under_the_faults_they_overlap() {
        let mut draft = Draft::new();
        draft.done(1, "read", 0, 1_i64, &[]).done(1, "read", 0, 1_i64, &[]).invoke(1, "write", 0, 1_i64);
        draft.nemesis("start-kill").complete(1, Kind::Fail, 1_i64, &[]);
        draft.invoke(1, "read", 0, 1_i64).ok(1, 1_i64, &[]).after(20).nemesis("stop-kill").nemesis("bump");
        draft.done(1, "read", 0, 1_i64, &[]).lost(1, "write", 0, 1_i64, &[]);
        let verdict = Availability::default().check(&draft.history());
        assert_eq!(verdict.valid, Valid::Yes);
        let figures = Edn::map(verdict.figures.clone());
        let number = |path: &[&str]| {
            path.iter().try_fold(&figures, |edn, name| edn.get(name)).cloned().unwrap_or(Edn::Nil)
        };
        assert_eq!(number(&["calm", "ok"]), Edn::Int(3));
        assert_eq!(number(&["calm", "info-share"]), Edn::Float(0.25));
        assert_eq!(number(&["faults", "kill", "fail"]), Edn::Int(1));
        assert_eq!(number(&["faults", "kill", "ok"]), Edn::Int(1));
        assert_eq!(number(&["faults", "kill", "latency-ms", "p50"]), Edn::Float(21.0));
        assert_eq!(number(&["faults", "bump", "ok"]), Edn::Int(0));
        assert_eq!(number(&["longest-pause-ms"]), Edn::Float(25.0));
        assert_eq!(number(&["longest-pause-ms-by-f", "write"]), Edn::Float(30.0));
    }

    #[test]
    fn half_must_succeed() {
        let mut draft = Draft::new();
        draft.done(1, "read", 0, 1_i64, &[]).lost(2, "write", 0, 1_i64, &[]);
        assert_eq!(Availability::default().check(&draft.history()).valid, Valid::Yes);
        draft.lost(3, "write", 0, 1_i64, &[]);
        assert_eq!(Availability::default().check(&draft.history()).valid, Valid::Unknown);
    }
}
