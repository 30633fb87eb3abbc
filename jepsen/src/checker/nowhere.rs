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
                let what = || match write {
                    Some(write) if write.outcome == Kind::Fail => "surely not applied, and read",
                    Some(_) => "read before it was written",
                    None if written.keys().any(|(_, other)| *other == place.1) => "a value of another key",
                    None => "a value that nobody wrote",
                };
                let mut events = vec![read.begin, read.end];
                events.extend(write.into_iter().flat_map(|write| [write.begin, write.end]));
                events.retain(|event| *event != u64::MAX);
                findings.wrong(Some(read.key), events, || format!("{}: {}", what(), place.1));
            }
        }
        if values == 0 {
            findings.unsure();
        }
        findings.figure("values-read", values);
        findings.done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Draft, Valid};
    use crate::edn::Edn;

    #[test]
    fn each_kind_of_nowhere_is_told_apart() {
        let text = |draft: &Draft| {
            let mut verdict = NeverFromNowhere.check(&draft.history());
            assert_eq!((verdict.valid, verdict.anomalies.len()), (Valid::No, 1));
            verdict.anomalies.remove(0).text
        };
        let mut draft = Draft::new();
        assert_eq!(text(draft.done(1, "read", 0, 1_i64, &[])), "a value that nobody wrote: 1");
        draft.done(1, "write", 1, 1_i64, &[]);
        assert_eq!(text(&draft), "a value of another key: 1");
        draft.done(1, "write", 0, 1_i64, &[]);
        assert_eq!(text(&draft), "read before it was written: 1");
        let mut failed = Draft::new();
        failed.invoke(1, "add", 0, 1_i64).complete(1, Kind::Fail, 1_i64, &[]);
        failed.done(1, "read", 0, Edn::vector([1_i64]), &[]);
        assert_eq!(text(&failed), "surely not applied, and read: 1");
        failed.lost(2, "add", 0, 1_i64, &[]).done(1, "read", 0, Edn::vector([1_i64]), &[]);
        assert_eq!(text(&failed), "read before it was written: 1", "and the second read is excused");
    }

    #[test]
    fn what_is_no_number_comes_from_nowhere_too() {
        let mut draft = Draft::new();
        draft.done(1, "write", 0, 1_i64, &[]).done(1, "read", 0, "\u{0}garbage", &[]);
        assert_eq!(NeverFromNowhere.check(&draft.history()).valid, Valid::No);
        assert_eq!(NeverFromNowhere.check(&Draft::new().history()).valid, Valid::Unknown, "nothing read");
    }
}
