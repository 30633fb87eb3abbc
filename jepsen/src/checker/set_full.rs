//! Sets of unique elements, as Jepsen's `set-full` has it: what became of each element.
//!
//! An element is *known* once its add was acknowledged or a read returned it. It is *stable* if the last read
//! that lacks it began before the last one that has it, *lost* if it was known before a read began that lacks
//! it and none that has it began later, and *never read* otherwise. A stable element that a read lacked after
//! it was known was *stale*. Lost and duplicated elements are wrong; nothing stable proves nothing.
//!
//! Beyond Jepsen: an element is *resurrected* if a read returned it, a later one did not, and one after that
//! did again. With `linearizable`, stale and resurrected elements are wrong too.

use std::collections::BTreeMap;

use super::findings::{Findings, millis, quantiles};
use super::value::Val;
use super::{Checker, Verdict};
use crate::edn::Edn;
use crate::history::{History, Kind, Operation};

/// Fate of a set's elements, for each key.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetFull {
    /// Reads must have all that was known when they began: for modes with `r + w > n`.
    pub linearizable: bool,
}

#[derive(Default)]
struct Element<'a> {
    add: Option<&'a Operation>,
    /// Places of the reads that have it, in order.
    reads: Vec<usize>,
}

/// What became of an element.
struct Fate<'a> {
    /// The operation that made it known, in terms of its completion.
    known: Option<&'a Operation>,
    last_present: Option<&'a Operation>,
    last_absent: Option<&'a Operation>,
    /// A read that lacks it, after one that has it and before another.
    gap: Option<&'a Operation>,
}

impl<'a> Fate<'a> {
    fn of(element: &Element<'a>, reads: &[&'a Operation]) -> Self {
        let holders = || element.reads.iter().filter_map(|at| reads.get(*at).copied());
        let acked = element.add.filter(|add| add.outcome == Kind::Ok);
        let seen = holders().min_by_key(|read| read.end);
        let last_present = holders().next_back();
        let born = element.add.map_or(0, |add| add.begin);
        Self {
            known: acked.into_iter().chain(seen).min_by_key(|op| op.end),
            last_present,
            last_absent: last_absent(element, reads).filter(|read| read.end > born),
            gap: seen.zip(last_present).and_then(|(seen, last)| gap(element, reads, seen.end, last.begin)),
        }
    }

    fn stable(&self) -> bool {
        let absent = self.last_absent.map_or(0, |read| read.begin + 1);
        self.last_present.is_some_and(|present| present.begin + 1 > absent)
    }

    fn lost(&self) -> bool {
        let known = |read: &Operation| self.known.is_some_and(|known| known.end < read.begin);
        !self.stable() && self.last_absent.is_some_and(known)
    }

    /// Nanoseconds from its being known to the beginning of the last read that lacks it.
    fn latency(&self, last: Option<&Operation>) -> u64 {
        let Some((known, read)) = self.known.zip(last) else { return 0 };
        // Events of one moment are told apart by their indices only.
        if read.begin < known.end { 0 } else { (read.began + 1).saturating_sub(known.ended) }
    }

    fn events(&self) -> Vec<u64> {
        let ops = [self.known, self.last_absent, self.last_present, self.gap];
        ops.into_iter().flatten().flat_map(|op| [op.begin, op.end]).collect()
    }
}

/// The last read that lacks the element: few steps, for those after it have it.
fn last_absent<'a>(element: &Element, reads: &[&'a Operation]) -> Option<&'a Operation> {
    let mut holders = element.reads.iter().rev().peekable();
    (0..reads.len()).rev().find(|at| holders.next_if(|own| *own == at).is_none()).map(|at| reads[at])
}

fn gap<'a>(element: &Element, reads: &[&'a Operation], after: u64, before: u64) -> Option<&'a Operation> {
    let start = reads.partition_point(|read| read.begin <= after);
    let mut holders = element.reads.iter().skip_while(|at| **at < start).peekable();
    for (at, read) in reads.iter().enumerate().skip(start).take_while(|(_, read)| read.begin < before) {
        if holders.next_if(|own| **own == at).is_none() && read.end < before {
            return Some(read);
        }
    }
    None
}

#[derive(Default)]
struct Counts {
    attempts: u64,
    acknowledged: u64,
    stable: u64,
    lost: u64,
    never_read: u64,
    stale: u64,
    resurrected: u64,
    duplicated: u64,
    stable_latencies: Vec<u64>,
    lost_latencies: Vec<u64>,
    worst: Vec<(u64, u64, Val)>,
}

impl SetFull {
    fn key(&self, key: u64, ops: &[&Operation], counts: &mut Counts, findings: &mut Findings) {
        let reads: Vec<&Operation> =
            ops.iter().copied().filter(|op| op.f == "read" && op.outcome == Kind::Ok).collect();
        let mut elements: BTreeMap<Val, Element> = BTreeMap::new();
        for op in ops.iter().filter(|op| op.f == "add" && op.may_have_happened()) {
            elements.entry(Val::of(&op.input)).or_default().add = Some(op);
        }
        for (at, read) in reads.iter().enumerate() {
            for value in Val::all_of(&read.output) {
                // What nobody added is for `NeverFromNowhere`.
                let Some(element) = elements.get_mut(&value) else { continue };
                if element.reads.last() == Some(&at) {
                    counts.duplicated += 1;
                    findings.wrong(Some(key), vec![read.begin, read.end], || {
                        format!("{value} is twice in a read")
                    });
                } else {
                    element.reads.push(at);
                }
            }
        }
        for (value, element) in elements {
            let fate = Fate::of(&element, &reads);
            self.judge(key, value, &fate, counts, findings);
            counts.attempts += 1;
            counts.acknowledged += u64::from(element.add.is_some_and(|add| add.outcome == Kind::Ok));
        }
    }

    fn judge(&self, key: u64, value: Val, fate: &Fate, counts: &mut Counts, findings: &mut Findings) {
        if fate.gap.is_some() {
            counts.resurrected += 1;
            if self.linearizable {
                findings
                    .wrong(Some(key), fate.events(), || format!("{value} was read, gone, and read again"));
            }
        }
        if fate.lost() {
            counts.lost += 1;
            counts.lost_latencies.push(fate.latency(fate.last_present));
            findings.wrong(Some(key), fate.events(), || format!("{value} was lost"));
        } else if fate.stable() {
            counts.stable += 1;
            let latency = fate.latency(fate.last_absent);
            counts.stable_latencies.push(latency);
            if latency > 0 {
                counts.stale += 1;
                if self.linearizable {
                    findings.wrong(Some(key), fate.events(), || {
                        format!("{value} was missing from a read {} ms after it was known", millis(latency))
                    });
                }
                counts.worst.push((latency, key, value));
            }
        } else {
            counts.never_read += 1;
        }
    }
}

impl Checker for SetFull {
    fn name(&self) -> &'static str {
        "set-full"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let mut keys: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for op in &operations {
            keys.entry(op.key).or_default().push(op);
        }
        let mut findings = Findings::new();
        let mut counts = Counts::default();
        for (key, ops) in keys {
            self.key(key, &ops, &mut counts, &mut findings);
        }
        if counts.stable == 0 {
            findings.unsure();
        }
        let shares = [("0", 0.0), ("0.5", 0.5), ("0.95", 0.95), ("0.99", 0.99), ("1", 1.0)];
        counts.worst.sort_unstable_by(|a, b| b.cmp(a));
        let worst = counts.worst.iter().take(8).map(|(latency, key, value)| {
            let stale = Edn::from(millis(*latency));
            Edn::map([
                ("element", Edn::from(value.to_string())),
                ("key", Edn::from(*key)),
                ("stale-ms", stale),
            ])
        });
        findings.figure("attempt-count", counts.attempts);
        findings.figure("acknowledged-count", counts.acknowledged);
        findings.figure("stable-count", counts.stable);
        findings.figure("lost-count", counts.lost);
        findings.figure("never-read-count", counts.never_read);
        findings.figure("stale-count", counts.stale);
        findings.figure("resurrected-count", counts.resurrected);
        findings.figure("duplicated-count", counts.duplicated);
        findings.figure("worst-stale", Edn::Vector(worst.collect()));
        findings.figure("stable-latencies", quantiles(counts.stable_latencies, &shares));
        findings.figure("lost-latencies", quantiles(counts.lost_latencies, &shares));
        findings.done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Draft, Valid};

    fn figures(verdict: &Verdict, names: &[&str]) -> Vec<i64> {
        let figure = |name: &&str| {
            let found = verdict.figures.iter().find(|(own, _)| own.strip_suffix("-count") == Some(name));
            found.and_then(|(_, value)| value.as_int()).expect("a count")
        };
        names.iter().map(figure).collect()
    }

    #[test]
    fn each_element_has_its_fate() {
        let mut draft = Draft::new();
        for value in 1..=3_i64 {
            draft.done(1, "add", 0, value, &[]);
        }
        draft.lost(9, "add", 0, 4_i64, &[]).lost(8, "add", 0, 5_i64, &[]);
        draft.done(1, "read", 0, Edn::vector([1_i64, 3, 5]), &[]);
        draft.done(1, "read", 0, Edn::vector([2_i64]), &[]);
        draft.done(1, "read", 0, Edn::vector([1_i64, 2]), &[]);
        let verdict = SetFull::default().check(&draft.history());
        assert_eq!(verdict.valid, Valid::No);
        let names = ["attempt", "acknowledged", "stable", "lost", "never-read", "stale", "resurrected"];
        assert_eq!(figures(&verdict, &names), [5, 3, 2, 2, 1, 2, 1]);
        assert_eq!(verdict.anomalies.len(), 2);
        assert_eq!(verdict.anomalies[0].text, "3 was lost");
        assert_eq!(SetFull { linearizable: true }.check(&draft.history()).anomalies.len(), 5);
    }

    #[test]
    fn a_read_before_the_add_lacks_nothing() {
        let mut draft = Draft::new();
        draft.done(1, "read", 0, Edn::Vector(Vec::new()), &[]).done(1, "add", 0, 1_i64, &[]);
        assert_eq!(SetFull::default().check(&draft.history()).valid, Valid::Unknown, "nothing stable");
        draft.done(1, "read", 0, Edn::vector([1_i64]), &[]);
        assert_eq!(SetFull { linearizable: true }.check(&draft.history()).valid, Valid::Yes);
    }

    #[test]
    fn events_of_one_moment_are_told_apart_by_their_order() {
        let mut draft = Draft::new();
        draft.invoke(2, "read", 0, Edn::Nil).done(1, "add", 0, 1_i64, &[]);
        draft.ok(2, Edn::Vector(Vec::new()), &[]).done(1, "read", 0, Edn::vector([1_i64]), &[]);
        let mut history = draft.history();
        history.events.iter_mut().for_each(|event| event.time = 0);
        assert_eq!(SetFull { linearizable: true }.check(&history).valid, Valid::Yes);
    }

    #[test]
    fn an_element_is_in_a_read_once() {
        let mut draft = Draft::new();
        draft.done(1, "add", 0, 1_i64, &[]).done(1, "read", 0, Edn::vector([1_i64, 1]), &[]);
        let verdict = SetFull::default().check(&draft.history());
        assert_eq!((verdict.valid, verdict.anomalies.len()), (Valid::No, 1));
    }
}
