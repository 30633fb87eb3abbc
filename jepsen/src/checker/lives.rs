//! A keyspace that is dropped and made anew under its name: each time it begins empty, and is durable while it lives.
//!
//! A *life* is what one `:create` made, named by its id, and ended by a `:drop`; one client does all of both. Whoever
//! answers a `:create`, or a `:learn` with an id, knows of that life from then on: no node goes back to an older map
//! of the cluster. A node that has not heard of a drop may serve the life before for a while, so what is judged goes
//! through nodes that know. Of an `lww` keyspace with `r + w > n` and `2 r > n`:
//!
//! - A read through a node that knows a life returns nothing whose write was over before that life was asked for.
//! - Within one life stamps keep real time: what was acknowledged through a node that knew it is found by each read
//!   through one that knows it, until the next drop begins.
//!
//! Reads of an earlier life through nodes that had not heard are counted, with how long after the new one was made.

use std::collections::BTreeMap;

use super::findings::{Findings, millis};
use super::value::Val;
use super::{Checker, Verdict};
use crate::history::{History, Kind, Operation};

/// How long after its client gave it up a drop may still reach a node that stood still, in nanoseconds. Then it is
/// about the life that it finds.
const LATE: u64 = 10_000_000_000;

/// Lives of a keyspace.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lives;

/// One life.
#[derive(Debug, Clone, Copy)]
struct Life {
    /// When it was asked for, at the earliest.
    begin: u64,
    /// When it was surely there: an index, and a time.
    made: u64,
    made_at: u64,
    /// When a drop of it may have begun.
    closed: u64,
}

/// What is known of all lives, and who knew of which when.
struct Known {
    lives: BTreeMap<i64, Life>,
    /// By node: from when on it knew which life.
    nodes: BTreeMap<Val, Vec<(u64, i64)>>,
}

fn told(op: &Operation) -> Option<i64> {
    let tells = matches!(op.f.as_str(), "create" | "learn") && op.outcome == Kind::Ok;
    tells.then(|| op.output.as_int()).flatten()
}

impl Known {
    fn of(operations: &[Operation]) -> Known {
        let mut lives: BTreeMap<i64, Life> = BTreeMap::new();
        let mut nodes: BTreeMap<Val, Vec<(u64, i64)>> = BTreeMap::new();
        let made = |op: &&Operation| op.f == "create" && op.may_have_happened();
        for op in operations {
            let Some(id) = told(op) else { continue };
            if let Some(node) = op.extra.get("node") {
                nodes.entry(Val::of(node)).or_default().push((op.end, id));
            }
            let before = lives.range(..id).next_back().map_or(0, |(_, life)| life.begin + 1);
            let own = lives.entry(id).or_insert_with(|| {
                // One whose creation had no answer: the first that may have made it. Or one from before the run.
                let may = before..op.end;
                let unknown =
                    operations.iter().filter(made).map(|op| op.begin).find(|begin| may.contains(begin));
                Life { begin: unknown.unwrap_or(0), made: op.end, made_at: op.ended, closed: u64::MAX }
            });
            if op.f == "create" {
                own.begin = op.begin;
            }
            if op.end < own.made {
                (own.made, own.made_at) = (op.end, op.ended);
            }
        }
        for life in lives.values_mut() {
            let drops = operations.iter().filter(|op| op.f == "drop" && op.may_have_happened());
            let late = |op: &Operation| op.outcome != Kind::Ok && life.made_at < op.ended + LATE;
            let closing = drops.filter(|op| op.begin > life.begin || late(op));
            life.closed = closing.map(|op| op.begin.max(life.begin)).min().unwrap_or(u64::MAX);
        }
        Known { lives, nodes }
    }

    /// The newest life that the node of an operation surely knew when it began.
    fn floor(&self, op: &Operation) -> Option<i64> {
        let knew = self.nodes.get(&Val::of(op.extra.get("node")?))?;
        knew.iter().filter(|(end, _)| *end < op.begin).map(|(_, id)| *id).max()
    }

    /// The life in which an operation surely was.
    fn sure(&self, op: &Operation) -> Option<i64> {
        let floor = self.floor(op)?;
        (op.end < self.lives.get(&floor)?.closed).then_some(floor)
    }
}

/// Reads of an earlier life: wrong through a node that knew better, and how long they went on through others.
fn judge_returns(operations: &[Operation], known: &Known, findings: &mut Findings) {
    let written: BTreeMap<(u64, Val), &Operation> = operations
        .iter()
        .filter(|op| op.f == "write" && op.outcome == Kind::Ok)
        .map(|op| ((op.key, Val::of(&op.input)), op))
        .collect();
    let (mut late, mut longest) = (0_u64, 0);
    for read in operations.iter().filter(|op| op.f == "read" && op.outcome == Kind::Ok) {
        let Some(write) = written.get(&(read.key, Val::of(&read.output))) else { continue };
        let is_earlier = |life: &Life| write.end < life.begin;
        let floor = known.floor(read).and_then(|id| Some((id, known.lives.get(&id)?)));
        if let Some((id, _)) = floor.filter(|(_, life)| is_earlier(life)) {
            let events = vec![write.begin, write.end, read.begin, read.end];
            findings.wrong(Some(read.key), events, || {
                format!("{} is of a life before {id}, which its node knew", Val::of(&read.output))
            });
        } else if let Some(life) =
            known.lives.values().find(|life| is_earlier(life) && life.made < read.begin)
        {
            late += 1;
            longest = longest.max(read.began.saturating_sub(life.made_at));
        }
    }
    findings.figure("reads-through-nodes-that-had-not-heard", late);
    findings.figure("longest-after-ms", millis(longest));
}

/// Within one life of a key, in order of their beginnings: nothing older than what was over before.
fn judge_life(life: i64, ops: &[&Operation], findings: &mut Findings) -> u64 {
    let stamp = |op: &Operation| op.number("stamp").unwrap_or(0);
    let mut by_end: Vec<&Operation> = ops.to_vec();
    by_end.sort_by_key(|op| op.end);
    let mut ended = by_end.into_iter().peekable();
    let (mut greatest, mut judged) = (None::<&Operation>, 0);
    for op in ops {
        while let Some(earlier) = ended.next_if(|earlier| earlier.end < op.begin) {
            if greatest.is_none_or(|known| stamp(known) < stamp(earlier)) {
                greatest = Some(earlier);
            }
        }
        let Some(earlier) = greatest else { continue };
        judged += 1;
        if stamp(op) < stamp(earlier) {
            let events = vec![earlier.begin, earlier.end, op.begin, op.end];
            findings.wrong(Some(op.key), events, || {
                let (was, is) = (Val::of(&earlier.output), Val::of(&op.output));
                format!("in life {life} there was {was}, and then {is} at a smaller stamp")
            });
        }
    }
    judged
}

impl Checker for Lives {
    fn name(&self) -> &'static str {
        "lives"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let known = Known::of(&operations);
        let mut findings = Findings::new();
        judge_returns(&operations, &known, &mut findings);
        let mut keys: BTreeMap<(u64, i64), Vec<&Operation>> = BTreeMap::new();
        let is_of_key = |op: &&Operation| matches!(op.f.as_str(), "read" | "write") && op.outcome == Kind::Ok;
        for op in operations.iter().filter(is_of_key) {
            if let Some(life) = known.sure(op) {
                keys.entry((op.key, life)).or_default().push(op);
            }
        }
        let judged: u64 = keys.iter().map(|((_, life), ops)| judge_life(*life, ops, &mut findings)).sum();
        if known.lives.len() < 2 || judged == 0 {
            findings.unsure();
        }
        findings.figure("lives", known.lives.len());
        findings.figure("operations-within-a-life", judged);
        findings.done()
    }
}
