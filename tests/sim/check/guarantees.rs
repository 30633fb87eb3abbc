//! G1 to G5, each over the operations of one key.
//!
//! In an `lww` keyspace what was told is ordered by stamps, so "the same or newer" is "no smaller stamp" (of
//! equal stamps the node's id decides, which clients aren't told). In a `siblings` keyspace a value may be gone
//! if a write whose context had seen it may have replaced it.

use quoral::types::policy::Conflicts;

use super::{Finding, meets};
use crate::history::{Action, Op, Outcome, Value};

/// Pairs of finished operations, the first over before the second began, that promise each other something.
fn pairs<'a>(
    ops: &'a [&'a Op],
    first: impl Fn(&Op) -> bool + 'a,
    second: impl Fn(&Op) -> bool + 'a,
) -> impl Iterator<Item = (&'a Op, &'a Op)> {
    let firsts: Vec<&Op> = ops.iter().copied().filter(|op| first(op)).collect();
    let seconds = ops.iter().copied().filter(move |op| second(op));
    seconds.flat_map(move |later| {
        let earlier = firsts.clone().into_iter();
        earlier
            .filter(|earlier| earlier.is_before(later) && meets(earlier, later))
            .map(move |e| (e, later))
            .collect::<Vec<_>>()
    })
}

fn is_lww(ops: &[&Op]) -> bool {
    ops.first().is_some_and(|op| op.space.conflicts == Conflicts::Lww)
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

/// Whether the later one was told of an older version than the earlier.
fn is_older(earlier: &Op, later: &Op) -> bool {
    matches!((earlier.stamp(), later.stamp()), (Some(first), Some(second)) if second < first)
}

/// Whether a write may have replaced `value` before a read ended.
fn may_be_replaced(ops: &[&Op], value: Value, read: &Op) -> bool {
    ops.iter().any(|op| op.may_have_written() && op.covers.contains(&value) && op.begin < read.end)
}

/// Whether a later read lacks what a put wrote without an excuse.
fn is_missing(ops: &[&Op], put: &Op, read: &Op) -> bool {
    let Action::Put(value) = put.action else { return false };
    match put.space.conflicts {
        Conflicts::Siblings => !read.found(value) && !may_be_replaced(ops, value, read),
        Conflicts::Lww => {
            is_older(put, read) || (read.values().is_empty() && !may_be_deleted(ops, put, read))
        }
    }
}

/// Whether a delete may be what an empty read of an `lww` key found after `put`.
fn may_be_deleted(ops: &[&Op], put: &Op, read: &Op) -> bool {
    let deletes = ops.iter().filter(|op| op.action == Action::Delete && op.begin < read.end);
    deletes.into_iter().any(|delete| match (&delete.outcome, read.stamp()) {
        (Outcome::Refused(_), _) => false,
        // One that was stamped again was there under a smaller stamp before.
        (Outcome::Wrote(own), Some(read)) => *own >= read,
        (Outcome::Wrote(own), None) => put.stamp().is_none_or(|put| *own >= put),
        _ => true,
    })
}

/// G1: what was acknowledged is found in the end, when all `n` replicas are asked, however few had to take it.
pub fn g1_durable(ops: &[&Op]) -> Vec<Finding> {
    let lost = pairs(ops, |op| op.is_acked(), is_of_all).filter(|(write, read)| match write.action {
        Action::Delete => is_lww(ops) && is_older(write, read),
        _ => is_missing(ops, write, read),
    });
    lost.map(|(write, read)| Finding::of("G1", "an acknowledged write is lost", &[write, read])).collect()
}

/// G2: a get that meets a finished put returns it, or what replaced it; and nothing that it replaced.
pub fn g2_read_your_quorum(ops: &[&Op]) -> Vec<Finding> {
    let quorum = |op: &Op| op.has_read() && op.level < op.space.n;
    if is_lww(ops) {
        let stale = pairs(ops, is_acked_put, quorum).filter(|(put, read)| is_missing(ops, put, read));
        return stale.map(|(put, read)| Finding::of("G2", "a stale read", &[put, read])).collect();
    }
    let back = pairs(ops, is_acked_put, Op::has_read)
        .filter(|(put, read)| put.covers.iter().any(|value| read.found(*value)));
    back.map(|(put, read)| Finding::of("G2", "a replaced value came back", &[put, read])).collect()
}

/// G3: after a get no later one, nor the stamp of a later write, is older.
pub fn g3_monotonic(ops: &[&Op]) -> Vec<Finding> {
    if is_lww(ops) {
        let back = pairs(ops, Op::has_read, |op| op.stamp().is_some()).filter(|(a, b)| is_older(a, b));
        return back.map(|(a, b)| Finding::of("G3", "it was newer before", &[a, b])).collect();
    }
    let mut wrong = Vec::new();
    for (a, b) in pairs(ops, Op::has_read, Op::has_read) {
        let gone = a.values().iter().find(|(value, _)| !b.found(*value) && !may_be_replaced(ops, *value, b));
        if let Some((value, _)) = gone {
            wrong.push(Finding::of("G3", &format!("{value} was read and is gone"), &[a, b]));
        }
        let back = b.values().iter().find(|(value, _)| !a.found(*value) && was_replaced(ops, *value, a));
        if let Some((value, _)) = back {
            wrong.push(Finding::of("G3", &format!("{value} was replaced and is back"), &[a, b]));
        }
    }
    wrong
}

/// Whether `value` was surely there, with enough replicas, before `read` began; so a read without it has seen
/// what replaced it.
fn was_replaced(ops: &[&Op], value: Value, read: &Op) -> bool {
    let put = ops.iter().find(|op| op.action == Action::Put(value));
    put.is_some_and(|put| put.is_acked() && put.is_before(read) && meets(put, read))
}

/// G4: an acknowledged write is gone only if one that may do so replaced it: in a `siblings` keyspace one whose
/// context had seen it; in an `lww` keyspace none that was finished before it began.
pub fn g4_nothing_vanishes(ops: &[&Op]) -> Vec<Finding> {
    if is_lww(ops) {
        let beaten = pairs(ops, Op::is_acked, Op::is_acked).filter(|(a, b)| is_older(a, b));
        return beaten
            .map(|(a, b)| Finding::of("G4", "a finished write beats a later one", &[a, b]))
            .collect();
    }
    let quorum = |op: &Op| op.has_read() && op.level < op.space.n;
    let gone = pairs(ops, is_acked_put, quorum).filter(|(put, read)| is_missing(ops, put, read));
    gone.map(|(put, read)| Finding::of("G4", "an acknowledged write vanished", &[put, read])).collect()
}

/// G5: what an acknowledged delete covered does not come back, and what was written after it is not taken for
/// what it deleted.
pub fn g5_deleted_stays_deleted(ops: &[&Op]) -> Vec<Finding> {
    let mut wrong = Vec::new();
    for (delete, read) in pairs(ops, is_acked_delete, Op::has_read) {
        let back = match is_lww(ops) {
            true => is_older(delete, read),
            false => delete.covers.iter().any(|value| read.found(*value)),
        };
        if back {
            wrong.push(Finding::of("G5", "a deleted value came back", &[delete, read]));
        }
    }
    let anew = |op: &Op| is_acked_put(op) && ops.iter().any(|d| is_acked_delete(d) && d.is_before(op));
    for (put, read) in pairs(ops, anew, Op::has_read) {
        if read.values().is_empty() && is_missing(ops, put, read) {
            wrong.push(Finding::of("G5", "a key written anew is still deleted", &[put, read]));
        }
    }
    wrong
}
