//! Siblings with causal contexts: nothing vanishes, and what was replaced does not come back (G2, G3, G4).
//!
//! A write replaces what its context had seen (`:covers`). A read sees some set of writes and returns the
//! values of those that none of the others covers. That set must hold
//!
//! - every write that was acknowledged before the read began;
//! - with `monotonic` (`2 r > n`), every write whose value a read returned that ended before it began;
//! - no write that began after it ended.
//!
//! So a value that must be there and is not has to be covered, perhaps over several steps, by a write that
//! the read can have seen: one whose value it returned, one that must be there, a deletion; and none of them may
//! cover what it returned. With `monotonic` a value that was there, and then not, does not come back.
//!
//! What it does not ask: whether the sets of reads that overlap fit together (they need not, for the replicas
//! take a write one by one), and whether values were written at all (`NeverFromNowhere`).

use std::collections::{BTreeMap, BTreeSet};

use super::findings::Findings;
use super::value::Val;
use super::{Checker, Verdict};
use crate::history::{History, Kind, Operation};

/// Causal siblings, for each key.
#[derive(Debug, Clone, Copy)]
pub struct Causal {
    /// What was read once is seen by later reads.
    pub monotonic: bool,
}

impl Default for Causal {
    fn default() -> Self {
        Self { monotonic: true }
    }
}

struct Write<'a> {
    op: &'a Operation,
    /// None for a deletion.
    value: Option<usize>,
    covers: Vec<usize>,
}

struct Read<'a> {
    op: &'a Operation,
    /// In order.
    values: Vec<usize>,
}

/// A key's operations; values are numbers from 0.
#[derive(Default)]
struct Siblings<'a> {
    names: Vec<Val>,
    writes: Vec<Write<'a>>,
    reads: Vec<Read<'a>>,
    /// Of each value: its writes (one, if values are unique), the writes that cover it, and the places of the
    /// reads that have it.
    written: Vec<Vec<usize>>,
    coverers: Vec<Vec<usize>>,
    holders: Vec<Vec<usize>>,
    /// From where on reads must have seen it, and whether a read rather than its write says so.
    known: Vec<(u64, bool)>,
    /// From where on reads must have seen something that covers it.
    gone: Vec<u64>,
}

impl<'a> Siblings<'a> {
    fn of(ops: &[&'a Operation], monotonic: bool) -> Self {
        let mut own = Self::default();
        let mut ids: BTreeMap<Val, usize> = BTreeMap::new();
        let mut id = |value: Val| {
            let fresh = ids.len();
            *ids.entry(value).or_insert(fresh)
        };
        for op in ops {
            match op.f.as_str() {
                "append" | "delete" if op.may_have_happened() => {
                    let value = (op.f == "append").then(|| id(Val::of(&op.input)));
                    let covers = op.extra.get("covers").map(Val::all_of).unwrap_or_default();
                    let covers = covers.into_iter().map(&mut id).collect();
                    own.writes.push(Write { op, value, covers });
                }
                "read" if op.outcome == Kind::Ok && !op.extra.contains_key("replica") => {
                    let mut values: Vec<usize> = Val::all_of(&op.output).into_iter().map(&mut id).collect();
                    values.sort_unstable();
                    values.dedup();
                    own.reads.push(Read { op, values });
                }
                _ => {}
            }
        }
        own.names = vec![Val::Nil; ids.len()];
        for (value, id) in ids {
            own.names[id] = value;
        }
        own.index(monotonic);
        own
    }

    fn index(&mut self, monotonic: bool) {
        let count = self.names.len();
        self.written = vec![Vec::new(); count];
        (self.coverers, self.holders) = (vec![Vec::new(); count], vec![Vec::new(); count]);
        (self.known, self.gone) = (vec![(u64::MAX, false); count], vec![u64::MAX; count]);
        for (at, write) in self.writes.iter().enumerate() {
            write.covers.iter().for_each(|value| self.coverers[*value].push(at));
            if let Some(value) = write.value {
                self.written[value].push(at);
                self.known[value] = self.known[value].min((write.op.end, false));
            }
        }
        for (at, read) in self.reads.iter().enumerate() {
            for value in &read.values {
                self.holders[*value].push(at);
                if monotonic {
                    self.known[*value] = self.known[*value].min((read.op.end, true));
                }
            }
        }
        for write in &self.writes {
            let seen = write.value.map_or(write.op.end, |value| self.known[value].0);
            write.covers.iter().for_each(|value| self.gone[*value] = self.gone[*value].min(seen));
        }
    }

    /// Reads that must have seen the value and lack it, in order.
    fn lacking(&self, value: usize) -> impl Iterator<Item = &Read<'a>> {
        let (known, _) = self.known[value];
        let start = self.reads.partition_point(|read| read.op.begin <= known);
        let holders = &self.holders[value];
        let mut holders = holders[holders.partition_point(|at| *at < start)..].iter().peekable();
        let later = self.reads.iter().enumerate().skip(start);
        later.filter(move |(at, _)| holders.next_if(|own| *own == at).is_none()).map(|(_, read)| read)
    }

    /// Whether the read may lack the value because of writes it can have seen.
    fn excused(&self, value: usize, read: &Read) -> bool {
        let has = |value: &usize| read.values.binary_search(value).is_ok();
        let mut asked = BTreeSet::from([value]);
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            for write in self.coverers[value].iter().map(|at| &self.writes[*at]) {
                if write.op.begin >= read.op.end {
                    continue;
                }
                if write.value.is_some_and(|own| has(&own)) {
                    return true;
                }
                if write.covers.iter().any(has) {
                    continue;
                }
                match write.value {
                    None => return true,
                    Some(own) if self.known[own].0 < read.op.begin => return true,
                    Some(own) if asked.insert(own) => open.push(own),
                    Some(_) => {}
                }
            }
        }
        false
    }

    /// What vanished: it is judged as long as nothing that covers it must be there instead.
    fn vanished(&self, key: u64, findings: &mut Findings) {
        for value in 0..self.names.len() {
            let gone = self.gone[value];
            let mut open = self.lacking(value).take_while(|read| read.op.begin <= gone);
            if let Some(read) = open.find(|read| !self.excused(value, read)) {
                let what = if self.known[value].1 {
                    "was read and is gone"
                } else {
                    "was acknowledged and vanished"
                };
                let name = &self.names[value];
                findings.wrong(Some(key), self.events(value, read), || format!("{name} {what}"));
            }
        }
    }

    /// What was replaced and is there.
    fn returned(&self, key: u64, findings: &mut Findings) {
        for read in &self.reads {
            for value in &read.values {
                let name = &self.names[*value];
                if self.gone[*value] < read.op.begin {
                    let text = || format!("{name} was replaced and came back");
                    findings.wrong(Some(key), self.events(*value, read), text);
                }
                let coverers = self.coverers[*value].iter().filter_map(|at| self.writes[*at].value);
                for other in coverers.filter(|other| read.values.binary_search(other).is_ok()) {
                    let text =
                        || format!("{name} was read together with {}, which replaced it", self.names[other]);
                    findings.wrong(Some(key), self.events(*value, read), text);
                }
            }
        }
    }

    /// What was there, then not, then there again.
    fn resurrected(&self, key: u64, findings: &mut Findings) {
        for value in 0..self.names.len() {
            let last = self.holders[value].last().and_then(|at| self.reads.get(*at));
            let Some(last) = last else { continue };
            let mut first_end = u64::MAX;
            for read in self.lacking(value) {
                if read.op.begin >= first_end.min(last.op.begin) {
                    break;
                }
                first_end = first_end.min(read.op.end);
            }
            if first_end < last.op.begin {
                let name = &self.names[value];
                let text = || format!("{name} was there, gone by event {first_end}, and there again");
                findings.wrong(Some(key), self.events(value, last), text);
            }
        }
    }

    /// Events about a value and a read: the write, who covers it, the read.
    fn events(&self, value: usize, read: &Read) -> Vec<u64> {
        let of = |op: &Operation| [op.begin, op.end];
        let writes = self.written[value].iter().map(|at| &self.writes[*at]);
        let coverers = self.coverers[value].iter().map(|at| &self.writes[*at]);
        let mut events: Vec<u64> =
            writes.chain(coverers).take(6).flat_map(|write| of(write.op)).chain(of(read.op)).collect();
        events.retain(|event| *event != u64::MAX);
        events
    }
}

impl Checker for Causal {
    fn name(&self) -> &'static str {
        "causal"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let mut keys: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
        for op in &operations {
            keys.entry(op.key).or_default().push(op);
        }
        let mut findings = Findings::new();
        let (mut reads, mut values, mut most) = (0, 0, 0);
        for (key, ops) in keys {
            let siblings = Siblings::of(&ops, self.monotonic);
            reads += siblings.reads.len();
            values += siblings.names.len();
            most = most.max(siblings.reads.iter().map(|read| read.values.len()).max().unwrap_or(0));
            siblings.vanished(key, &mut findings);
            siblings.returned(key, &mut findings);
            if self.monotonic {
                siblings.resurrected(key, &mut findings);
            }
        }
        if reads == 0 {
            findings.unsure();
        }
        findings.figure("reads", reads);
        findings.figure("values", values);
        findings.figure("most-siblings", most);
        findings.done()
    }
}
