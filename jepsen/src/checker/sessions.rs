//! What one session sees never gets older, whatever `r` and `w`: it reads its own writes and what it has read, and in
//! an `lww` keyspace what it writes stands above both.
//!
//! A session is named by `:session` on its operations, which are one after the other. Of an `lww` key stamps tell
//! what is older. Of siblings (a list) a value that the session wrote or read may be gone only if a write that may
//! have happened covers it, and once it is gone for the session it does not come back.

use std::collections::{BTreeMap, BTreeSet};

use super::findings::Findings;
use super::value::Val;
use super::{Checker, Verdict};
use crate::history::{History, Kind, Operation};

/// Each session's guarantees.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sessions;

/// What a session knows of a key.
#[derive(Default)]
struct Known<'a> {
    /// The greatest stamp, and who told it.
    stamp: Option<(i64, &'a Operation)>,
    /// Values that are there, with who told them, and such as are there no more.
    there: BTreeMap<Val, &'a Operation>,
    gone: BTreeMap<Val, &'a Operation>,
}

fn events(earlier: &Operation, later: &Operation) -> Vec<u64> {
    vec![earlier.begin, earlier.end, later.begin, later.end]
}

/// By key and value, when a write that covers it began first.
type Covered = BTreeMap<(u64, Val), u64>;

fn covered(operations: &[Operation]) -> Covered {
    let mut covered = Covered::new();
    for op in operations.iter().filter(|op| op.f != "read" && op.may_have_happened()) {
        for value in op.extra.get("covers").map(Val::all_of).unwrap_or_default() {
            covered.entry((op.key, value)).or_insert(op.begin);
        }
    }
    covered
}

impl<'a> Known<'a> {
    fn judge_stamp(&mut self, op: &'a Operation, stamp: i64, findings: &mut Findings) {
        if let Some((floor, earlier)) = self.stamp
            && (stamp < floor || (stamp == floor && op.f != "read"))
        {
            findings.wrong(Some(op.key), events(earlier, op), || {
                let (what, before) = (&op.f, &earlier.f);
                format!("a session's {what} at stamp {stamp} came after its {before} at stamp {floor}")
            });
        }
        if self.stamp.is_none_or(|(floor, _)| floor <= stamp) {
            self.stamp = Some((stamp, op));
        }
    }

    fn judge_values(&mut self, read: &'a Operation, covered: &Covered, findings: &mut Findings) {
        let found: BTreeSet<Val> = Val::all_of(&read.output).into_iter().collect();
        for (value, earlier) in std::mem::take(&mut self.there) {
            if found.contains(&value) {
                continue;
            }
            if covered.get(&(read.key, value.clone())).is_none_or(|begin| *begin > read.end) {
                findings.wrong(Some(read.key), events(earlier, read), || {
                    format!("{value} is gone for a session that knew it, and nothing covers it")
                });
            }
            self.gone.insert(value, read);
        }
        for value in found {
            if let Some(earlier) = self.gone.get(&value) {
                findings.wrong(Some(read.key), events(earlier, read), || {
                    format!("{value} came back for a session to which it was gone")
                });
            }
            self.there.insert(value, read);
        }
    }
}

impl Checker for Sessions {
    fn name(&self) -> &'static str {
        "sessions"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let covered = covered(&operations);
        let mut findings = Findings::new();
        let mut known: BTreeMap<(i64, u64), Known> = BTreeMap::new();
        let (mut judged, mut sessions) = (0_u64, BTreeSet::new());
        // One session does one thing after the other, so their beginnings are in order.
        for op in operations.iter().filter(|op| op.outcome == Kind::Ok) {
            let Some(session) = op.number("session") else { continue };
            let own = known.entry((session, op.key)).or_default();
            sessions.insert(session);
            judged += u64::from(own.stamp.is_some() || !own.there.is_empty());
            match (op.f.as_str(), op.number("stamp")) {
                ("read", _) if op.output.as_list().is_some() => {
                    own.judge_values(op, &covered, &mut findings);
                }
                ("append", _) => {
                    own.there.insert(Val::of(&op.input), op);
                    for value in op.extra.get("covers").map(Val::all_of).unwrap_or_default() {
                        own.there.remove(&value);
                        own.gone.insert(value, op);
                    }
                }
                (_, Some(stamp)) => own.judge_stamp(op, stamp, &mut findings),
                _ => {}
            }
        }
        if judged == 0 {
            findings.unsure();
        }
        findings.figure("sessions", sessions.len());
        findings.figure("operations", judged);
        findings.done()
    }
}
