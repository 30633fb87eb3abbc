//! What is read was written: to that key, before the read ended, by a write that did not surely fail (G8).
//!
//! For all workloads whose reads return what was written: registers, sets, appends. Not for counters.

use std::collections::BTreeMap;

use super::findings::Findings;
use super::value::Val;
use super::{Checker, Verdict};
use crate::history::{History, Kind, Operation};

/// No value comes from nowhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct NeverFromNowhere;

impl Checker for NeverFromNowhere {
    fn name(&self) -> &'static str {
        "never-from-nowhere"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let mut findings = Findings::new();
        // The write of each key's value: of several the first that may have happened.
        let mut written: BTreeMap<(u64, Val), &Operation> = BTreeMap::new();
        for op in operations.iter().filter(|op| matches!(op.f.as_str(), "write" | "add" | "append")) {
            let own = written.entry((op.key, Val::of(&op.input))).or_insert(op);
            if own.outcome == Kind::Fail {
                *own = op;
            }
        }
        let mut values = 0_usize;
        for read in operations.iter().filter(|op| op.f == "read" && op.outcome == Kind::Ok) {
            for value in Val::all_of(&read.output) {
                values += 1;
                let place = (read.key, value);
                let write = written.get(&place).copied();
                if write.is_some_and(|write| write.outcome != Kind::Fail && write.begin < read.end) {
                    continue;
                }
                let what = match write {
                    Some(write) if write.outcome == Kind::Fail => "surely not applied, and read",
                    Some(_) => "read before it was written",
                    None if written.keys().any(|(_, other)| *other == place.1) => "a value of another key",
                    None => "a value that nobody wrote",
                };
                let mut events = vec![read.begin, read.end];
                events.extend(write.into_iter().flat_map(|write| [write.begin, write.end]));
                events.retain(|event| *event != u64::MAX);
                findings.wrong(Some(read.key), events, || format!("{what}: {}", place.1));
            }
        }
        if values == 0 {
            findings.unsure();
        }
        findings.figure("values-read", values);
        findings.done()
    }
}
