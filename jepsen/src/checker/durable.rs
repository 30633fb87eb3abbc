//! What was acknowledged is found at the end, when all replicas are asked, however few had to take it (G1).
//!
//! Only the reads at the end are looked at (`:final`). Of an `lww` key one must return the greatest stamp that was
//! acknowledged, or a greater one; of siblings (a list) each acknowledged value, unless a write that may have
//! happened covers it. For modes whose other reads promise less.

use std::collections::{BTreeMap, BTreeSet};

use super::findings::Findings;
use super::value::Val;
use super::{Checker, Verdict};
use crate::history::{History, Kind, Operation};

/// Nothing acknowledged is lost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Durable;

/// What was written to a key.
#[derive(Default)]
struct Written<'a> {
    /// The acknowledged write with the greatest stamp.
    last: Option<(i64, &'a Operation)>,
    acked: BTreeMap<Val, &'a Operation>,
    covered: BTreeSet<Val>,
}

impl Checker for Durable {
    fn name(&self) -> &'static str {
        "durable"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let mut findings = Findings::new();
        let mut keys: BTreeMap<u64, Written> = BTreeMap::new();
        let is_write = |op: &&Operation| matches!(op.f.as_str(), "write" | "delete" | "append");
        for op in operations.iter().filter(is_write).filter(|op| op.may_have_happened()) {
            let own = keys.entry(op.key).or_default();
            own.covered.extend(op.extra.get("covers").map(Val::all_of).unwrap_or_default());
            if op.outcome != Kind::Ok {
                continue;
            }
            own.acked.insert(Val::of(&op.input), op);
            if let Some(stamp) = op.number("stamp")
                && own.last.is_none_or(|(last, _)| last < stamp)
            {
                own.last = Some((stamp, op));
            }
        }
        let is_final = |op: &&Operation| op.f == "read" && op.outcome == Kind::Ok && op.flag("final");
        let mut judged = 0_u64;
        for read in operations.iter().filter(is_final) {
            let Some(written) = keys.get(&read.key) else { continue };
            judged += 1;
            let mut lost = |write: &Operation| {
                let events = vec![write.begin, write.end, read.begin, read.end];
                let (value, found) = (Val::of(&write.input), Val::of(&read.output));
                findings.wrong(Some(read.key), events, || format!("lost: {value}; there is {found}"));
            };
            if read.output.as_list().is_some() {
                let found = Val::all_of(&read.output);
                let gone = written.acked.iter().filter(|(value, _)| !written.covered.contains(value));
                gone.filter(|(value, _)| !found.contains(value)).for_each(|(_, write)| lost(write));
            } else if let Some((stamp, write)) = written.last
                && read.number("stamp").is_none_or(|found| found < stamp)
                && !(write.f == "delete" && Val::of(&read.output) == Val::Nil)
            {
                lost(write);
            }
        }
        if judged == 0 {
            findings.unsure();
        }
        findings.figure("reads", judged);
        findings.done()
    }
}
