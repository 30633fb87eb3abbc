//! G1 to G5, each over the operations of one key.
//!
//! In an `lww` keyspace what was told is ordered by stamps, so "the same or newer" is "no smaller stamp" (of
//! equal stamps the node's id decides, which clients aren't told). In a `siblings` keyspace a value may be gone
//! if a write whose context had seen it may have replaced it.

use std::collections::BTreeMap;

use quoral::types::policy::Conflicts;

use super::{Finding, meets};
use crate::history::{Action, Op, Outcome, Seq, Value};

/// The operations of one key, and what checkers look up in them.
pub struct KeyOps<'a> {
    /// In the order of their beginnings.
    ops: Vec<&'a Op>,
    is_lww: bool,
    puts: BTreeMap<Value, &'a Op>,
    deletes: Vec<&'a Op>,
    /// From when on a value may have been replaced: the first beginning of a write whose context had seen it.
    replaced: BTreeMap<Value, Seq>,
}

impl<'a> KeyOps<'a> {
    /// Of one key.
    pub fn new(ops: &[&'a Op]) -> KeyOps<'a> {
        let is_lww = ops.first().is_some_and(|op| op.space.conflicts == Conflicts::Lww);
        let (mut puts, mut deletes, mut replaced) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for op in ops.iter().filter(|op| op.may_have_written()) {
            match op.action {
                Action::Put(value) => drop(puts.insert(value, *op)),
                _ => deletes.push(*op),
            }
            for value in &op.covers {
                let first: &mut Seq = replaced.entry(*value).or_insert(op.begin);
                *first = op.begin.min(*first);
            }
        }
        KeyOps { ops: ops.to_vec(), is_lww, puts, deletes, replaced }
    }

    /// Pairs of operations, the first over before the second began, that promise each other something.
    fn pairs(
        &self,
        first: impl Fn(&Op) -> bool,
        second: impl Fn(&Op) -> bool,
        mut is_wrong: impl FnMut(&'a Op, &'a Op) -> bool,
    ) -> Vec<(&'a Op, &'a Op)> {
        let firsts: Vec<&Op> = self.ops.iter().copied().filter(|op| first(op)).collect();
        let mut wrong = Vec::new();
        for later in self.ops.iter().copied().filter(|op| second(op)) {
            for earlier in firsts.iter().filter(|earlier| earlier.is_before(later) && meets(earlier, later)) {
                if is_wrong(earlier, later) {
                    wrong.push((*earlier, later));
                }
            }
        }
        wrong
    }

    /// Whether a write may have replaced `value` before a read ended.
    fn may_be_replaced(&self, value: Value, read: &Op) -> bool {
        self.replaced.get(&value).is_some_and(|begin| *begin < read.end)
    }

    /// Whether a later read lacks what a put wrote without an excuse.
    fn is_missing(&self, put: &Op, read: &Op) -> bool {
        let Action::Put(value) = put.action else { return false };
        match self.is_lww {
            false => !read.found(value) && !self.may_be_replaced(value, read),
            true => is_older(put, read) || (read.values().is_empty() && !self.may_be_deleted(put, read)),
        }
    }

    /// Whether a delete may be what an empty read of an `lww` key found after `put`.
    fn may_be_deleted(&self, put: &Op, read: &Op) -> bool {
        self.deletes.iter().filter(|delete| delete.begin < read.end).any(|delete| {
            match (&delete.outcome, read.stamp()) {
                // One that was stamped again was there under a smaller stamp before.
                (Outcome::Wrote(own), Some(read)) => *own >= read,
                (Outcome::Wrote(own), None) => put.stamp().is_none_or(|put| *own >= put),
                _ => true,
            }
        })
    }

    /// Whether `value` was surely there, with enough replicas, before `read` began; so a read without it has
    /// seen what replaced it.
    fn was_replaced(&self, value: Value, read: &Op) -> bool {
        self.puts.get(&value).is_some_and(|put| put.is_acked() && put.is_before(read) && meets(put, read))
    }
}

fn is_acked_put(op: &Op) -> bool {
    op.is_acked() && matches!(op.action, Action::Put(_))
}

fn is_acked_delete(op: &Op) -> bool {
    op.is_acked() && op.action == Action::Delete
}

/// Whether a get asked all replicas.
fn is_of_all(op: &Op) -> bool {
    op.has_read() && op.level == op.space.n
}

/// Whether a get asked some of the replicas.
fn is_of_some(op: &Op) -> bool {
    op.has_read() && op.level < op.space.n
}

/// Whether the later one was told of an older version than the earlier.
fn is_older(earlier: &Op, later: &Op) -> bool {
    matches!((earlier.stamp(), later.stamp()), (Some(first), Some(second)) if second < first)
}

fn findings(rule: &'static str, text: &str, pairs: &[(&Op, &Op)]) -> Vec<Finding> {
    pairs.iter().map(|(a, b)| Finding::of(rule, text, &[a, b])).collect()
}

/// G1: what was acknowledged is found in the end, when all `n` replicas are asked, however few had to take it.
pub fn g1_durable(key: &KeyOps) -> Vec<Finding> {
    let lost = key.pairs(Op::is_acked, is_of_all, |write, read| match write.action {
        Action::Delete => key.is_lww && is_older(write, read),
        _ => key.is_missing(write, read),
    });
    findings("G1", "an acknowledged write is lost", &lost)
}

/// G2: a get that meets a finished put returns it, or what replaced it; and nothing that it replaced.
pub fn g2_read_your_quorum(key: &KeyOps) -> Vec<Finding> {
    if key.is_lww {
        let stale = key.pairs(is_acked_put, is_of_some, |put, read| key.is_missing(put, read));
        return findings("G2", "a stale read", &stale);
    }
    let came_back = |put: &Op, read: &Op| put.covers.iter().any(|value| read.found(*value));
    let back = key.pairs(is_acked_put, Op::has_read, came_back);
    findings("G2", "a replaced value came back", &back)
}

/// G3: after a get no later one, nor the stamp of a later write, is older.
pub fn g3_monotonic(key: &KeyOps) -> Vec<Finding> {
    if key.is_lww {
        return findings(
            "G3",
            "it was newer before",
            &key.pairs(Op::has_read, |op| op.stamp().is_some(), is_older),
        );
    }
    let gone = key.pairs(Op::has_read, Op::has_read, |a, b| {
        a.values().iter().any(|(value, _)| !b.found(*value) && !key.may_be_replaced(*value, b))
    });
    let back = key.pairs(Op::has_read, Op::has_read, |a, b| {
        b.values().iter().any(|(value, _)| !a.found(*value) && key.was_replaced(*value, a))
    });
    let mut wrong = findings("G3", "what was read is gone", &gone);
    wrong.extend(findings("G3", "what was replaced is back", &back));
    wrong
}

/// G4: an acknowledged write is gone only if one that may do so replaced it: in a `siblings` keyspace one whose
/// context had seen it; in an `lww` keyspace none that was finished before it began.
pub fn g4_nothing_vanishes(key: &KeyOps) -> Vec<Finding> {
    if key.is_lww {
        return findings(
            "G4",
            "a finished write beats a later one",
            &key.pairs(Op::is_acked, Op::is_acked, is_older),
        );
    }
    let gone = key.pairs(is_acked_put, is_of_some, |put, read| key.is_missing(put, read));
    findings("G4", "an acknowledged write vanished", &gone)
}

/// G5: what an acknowledged delete covered does not come back.
pub fn g5_does_not_come_back(key: &KeyOps) -> Vec<Finding> {
    let back = key.pairs(is_acked_delete, Op::has_read, |delete, read| match key.is_lww {
        true => is_older(delete, read),
        false => delete.covers.iter().any(|value| read.found(*value)),
    });
    findings("G5", "a deleted value came back", &back)
}

/// G5: what was written after an acknowledged delete is not taken for what that deleted.
pub fn g5_is_not_swallowed(key: &KeyOps) -> Vec<Finding> {
    let first_delete =
        key.deletes.iter().filter(|op| op.is_acked()).map(|op| op.end).min().unwrap_or(Seq::MAX);
    let anew = |op: &Op| is_acked_put(op) && first_delete < op.begin;
    let swallowed =
        key.pairs(anew, Op::has_read, |put, read| read.values().is_empty() && key.is_missing(put, read));
    findings("G5", "a key written anew is still deleted", &swallowed)
}
