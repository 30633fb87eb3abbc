//! What a history must be like, for each conflict policy (`docs/consistency.md`).
//!
//! `lww` with r = w = 2 of 3: each key is an atomic register of *versions*. A version is a value and its
//! stamp; a put that was stamped again left more than one, of which the last was acknowledged, so the
//! exception of G3 is expressed by what a version is. Two checks, for each key:
//!
//! - Zones (Gibbons and Korach): the operations of one version lie between their first end and their last
//!   beginning. If that is a stretch of time that must be this version's (a *forward* zone), no other such
//!   stretch may overlap it, and no operations of another version may lie within.
//! - Stamps: an operation that began after another had ended has no smaller stamp. (It may have the same one:
//!   of equal stamps the node's id decides, which clients aren't told.)
//!
//! `siblings`: an acknowledged write is in every later read, unless a write that had seen it may have
//! replaced it; what an acknowledged write replaced is in no later read; what was read once stays (G3).
//!
//! In both: what surely was not applied is never read (G8).
//!
//! A write whose outcome is unknown may take effect at any time after its beginning, or never.

use std::collections::{BTreeMap, BTreeSet};

use quoral::types::policy::Conflicts;

use crate::history::{Action, Op, Outcome, Seq, Value};

/// Everything that is wrong with a history.
pub fn check(ops: &[Op]) -> Vec<String> {
    let mut wrong = never_from_nowhere(ops);
    let mut keys: BTreeMap<(Conflicts, &str), Vec<&Op>> = BTreeMap::new();
    for op in ops {
        keys.entry((op.conflicts, &op.key)).or_default().push(op);
    }
    for ((conflicts, _), ops) in keys {
        match conflicts {
            Conflicts::Lww => {
                wrong.extend(stamps(&ops));
                wrong.extend(zones(&versions(&ops)));
            }
            Conflicts::Siblings => wrong.extend(siblings(&ops)),
        }
    }
    wrong
}

fn read_values(op: &Op) -> &[(Value, u64)] {
    match &op.outcome {
        Outcome::Read(values, _) => values,
        _ => &[],
    }
}

/// A read value was written to that key, before the read ended, by a write that may have been applied.
fn never_from_nowhere(ops: &[Op]) -> Vec<String> {
    let mut written: BTreeMap<Value, &Op> = BTreeMap::new();
    for op in ops {
        if let Action::Put(value) = op.action {
            written.insert(value, op);
        }
    }
    let mut wrong = Vec::new();
    for op in ops {
        for (value, _) in read_values(op) {
            match written.get(value) {
                Some(put) if put.key != op.key || put.conflicts != op.conflicts => {
                    wrong.push(format!("a value of another key: {op} of {put}"));
                }
                Some(put) if matches!(put.outcome, Outcome::Refused(_)) => {
                    wrong.push(format!("F30: surely not applied, and read: {put}; {op}"));
                }
                Some(put) if put.begin > op.end => wrong.push(format!("read before written: {op}; {put}")),
                Some(_) => {}
                None => wrong.push(format!("a value that nobody wrote: {op}")),
            }
        }
    }
    wrong
}

/// A version of an `lww` key: a value, or none for a tombstone or nothing, and its stamp.
type Version = (Option<Value>, u64);

fn version_of(op: &Op) -> Option<Version> {
    match (&op.outcome, op.action) {
        (Outcome::Wrote(stamp), Action::Put(value)) => Some((Some(value), *stamp)),
        (Outcome::Wrote(stamp), _) => Some((None, *stamp)),
        (Outcome::Read(values, stamp), _) => {
            Some(values.first().map_or((None, *stamp), |(value, stamp)| (Some(*value), *stamp)))
        }
        _ => None,
    }
}

/// Completed operations in the order of their stamps, which must not turn time around.
fn stamps(ops: &[&Op]) -> Vec<String> {
    let mut done: Vec<(u64, &Op)> =
        ops.iter().filter_map(|op| version_of(op).map(|(_, stamp)| (stamp, *op))).collect();
    let mut wrong = Vec::new();
    for (_, op) in &done {
        if let Outcome::Read(values, stamp) = &op.outcome
            && (values.len() > 1 || values.first().is_some_and(|(_, own)| own != stamp))
        {
            wrong.push(format!("not one version, or not the context's: {op}"));
        }
    }
    done.sort_by_key(|(_, op)| op.begin);
    for (index, (stamp, op)) in done.iter().enumerate() {
        for (before, earlier) in done[..index].iter().filter(|(_, earlier)| earlier.end < op.begin) {
            if stamp < before {
                wrong.push(format!("a stamp went back: {earlier}; then {op}"));
            }
        }
    }
    wrong
}

/// The operations of one version.
struct Zone {
    version: Version,
    /// When its write began.
    born: Seq,
    first_end: Seq,
    last_begin: Seq,
}

impl std::fmt::Display for Zone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Zone { version: (value, stamp), born, first_end, last_begin } = self;
        write!(f, "{value:?} at stamp {stamp} (born {born}, first end {first_end}, last begin {last_begin})")
    }
}

fn versions(ops: &[&Op]) -> Vec<Zone> {
    let mut clusters: BTreeMap<Version, Zone> = BTreeMap::new();
    // The state before all writes: written before anything.
    clusters.insert((None, 0), Zone { version: (None, 0), born: 0, first_end: 0, last_begin: 0 });
    for op in ops {
        let Some(version) = version_of(op) else { continue };
        let cluster = clusters.entry(version).or_insert_with(|| Zone {
            version,
            born: birth(version, ops),
            first_end: Seq::MAX,
            last_begin: 0,
        });
        cluster.first_end = cluster.first_end.min(op.end);
        cluster.last_begin = cluster.last_begin.max(op.begin);
    }
    // The write itself belongs to its version, though its end may be unknown.
    clusters.into_values().map(|c| Zone { last_begin: c.last_begin.max(c.born), ..c }).collect()
}

/// When a version that was read can first have been written.
fn birth(version: Version, ops: &[&Op]) -> Seq {
    let wrote = |op: &&&Op| match (version.0, op.action) {
        (Some(value), Action::Put(own)) => own == value,
        (None, Action::Delete) => {
            op.may_have_written() && !matches!(op.outcome, Outcome::Wrote(stamp) if stamp < version.1)
        }
        _ => false,
    };
    ops.iter().filter(wrote).map(|op| op.begin).min().unwrap_or(Seq::MAX)
}

fn zones(clusters: &[Zone]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, a) in clusters.iter().enumerate() {
        if a.born > a.first_end {
            wrong.push(format!("read before it was written: {a}"));
        }
        for b in &clusters[index + 1..] {
            let forward = |c: &Zone| c.first_end < c.last_begin;
            let within = |inner: &Zone, outer: &Zone| {
                outer.first_end < inner.last_begin && inner.first_end < outer.last_begin
            };
            let conflict = match (forward(a), forward(b)) {
                (true, true) => a.first_end < b.last_begin && b.first_end < a.last_begin,
                (true, false) => within(b, a),
                (false, true) => within(a, b),
                (false, false) => false,
            };
            if conflict {
                wrong.push(format!("not atomic: {a} and {b}"));
            }
        }
    }
    wrong
}

fn siblings(ops: &[&Op]) -> Vec<String> {
    // Who may have replaced a value.
    let mut replacers: BTreeMap<Value, Vec<&Op>> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.may_have_written()) {
        for value in &op.covers {
            replacers.entry(*value).or_default().push(op);
        }
    }
    let replacers = |value: &Value| replacers.get(value).map(Vec::as_slice).unwrap_or_default();
    let reads: Vec<(&Op, BTreeSet<Value>)> = ops
        .iter()
        .filter(|op| matches!(op.outcome, Outcome::Read(..)))
        .map(|op| (*op, read_values(op).iter().map(|(value, _)| *value).collect()))
        .collect();
    let mut wrong = Vec::new();
    for (read, values) in &reads {
        let excused = |value: &Value| replacers(value).iter().any(|op| op.begin < read.end);
        for op in ops.iter().filter(|op| op.acked_at().is_some_and(|end| end < read.begin)) {
            if let Action::Put(value) = op.action
                && !values.contains(&value)
                && !excused(&value)
            {
                wrong.push(format!("G4: an acknowledged write vanished: {op}; {read}"));
            }
        }
        for value in values {
            for op in replacers(value).iter().filter(|op| op.acked_at().is_some_and(|e| e < read.begin)) {
                wrong.push(format!("G2: a replaced value came back: {op}; {read}"));
            }
        }
        for (earlier, before) in reads.iter().filter(|(earlier, _)| earlier.end < read.begin) {
            for value in before.iter().filter(|value| !values.contains(value) && !excused(value)) {
                wrong.push(format!("G3: {value} was read and is gone: {earlier}; {read}"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(conflicts: Conflicts, begin: Seq, end: Seq, action: Action, outcome: Outcome) -> Op {
        Op {
            client: 0,
            node: 0,
            conflicts,
            key: "k".into(),
            action,
            covers: BTreeSet::new(),
            timeout_ms: 1,
            begin,
            began_ms: begin,
            end,
            ended_ms: end,
            outcome,
        }
    }

    fn put(begin: Seq, end: Seq, value: Value, stamp: u64) -> Op {
        op(Conflicts::Lww, begin, end, Action::Put(value), Outcome::Wrote(stamp))
    }

    fn unknown(begin: Seq, value: Value) -> Op {
        op(Conflicts::Lww, begin, begin + 1, Action::Put(value), Outcome::Unknown("LOST".into()))
    }

    fn get(begin: Seq, end: Seq, value: Value, stamp: u64) -> Op {
        op(Conflicts::Lww, begin, end, Action::Get, Outcome::Read(vec![(value, stamp)], stamp))
    }

    fn zones_of(ops: &[Op]) -> usize {
        zones(&versions(&ops.iter().collect::<Vec<_>>())).len()
    }

    #[test]
    fn zones_take_what_is_atomic() {
        // Overlapping writes, read in either order, one of them after a lost answer.
        let history = [put(1, 10, 1, 5), unknown(2, 2), get(3, 4, 2, 4), get(11, 12, 1, 5)];
        assert_eq!(zones_of(&history), 0);
        // An unknown write that takes effect long after its end.
        assert_eq!(zones_of(&[unknown(1, 2), put(3, 4, 1, 1), get(5, 6, 1, 1), get(7, 8, 2, 9)]), 0);
        // And one that nobody ever saw.
        assert_eq!(zones_of(&[unknown(1, 2), put(3, 4, 1, 1), get(5, 6, 1, 1)]), 0);
    }

    #[test]
    fn zones_find_stale_reads_and_turned_time() {
        assert_eq!(zones_of(&[put(1, 2, 1, 1), put(3, 4, 2, 2), get(5, 6, 1, 1)]), 1, "a stale read");
        let there_and_back = [put(1, 2, 1, 1), unknown(3, 2), get(5, 6, 2, 2), get(7, 8, 1, 1)];
        assert_eq!(zones_of(&there_and_back), 1, "a read went back");
        assert_eq!(zones_of(&[get(1, 2, 1, 1), put(3, 4, 1, 1)]), 1, "read before it was written");
        let nothing = op(Conflicts::Lww, 3, 4, Action::Get, Outcome::Read(Vec::new(), 0));
        assert_eq!(zones_of(&[put(1, 2, 1, 1), nothing]), 1, "an acknowledged write is not found");
        let again = [put(1, 20, 1, 9), unknown(2, 2), get(3, 4, 1, 4), get(5, 6, 2, 5), get(7, 8, 1, 9)];
        assert_eq!(zones_of(&again), 0, "the value stamped again is another version");
    }

    #[test]
    fn stamps_do_not_turn_time_around() {
        let wrong = |ops: &[Op]| stamps(&ops.iter().collect::<Vec<_>>()).len();
        assert_eq!(wrong(&[put(1, 2, 1, 5), get(3, 4, 1, 5), put(5, 6, 2, 6)]), 0);
        assert_eq!(wrong(&[put(1, 2, 1, 5), put(3, 4, 2, 4)]), 1);
        assert_eq!(wrong(&[put(1, 3, 1, 5), put(2, 4, 2, 4)]), 0, "they overlap");
        assert_eq!(wrong(&[get(1, 2, 1, 5), get(3, 4, 2, 4)]), 1);
    }

    #[test]
    fn siblings_must_not_vanish_or_come_back() {
        let s = Conflicts::Siblings;
        let read = |begin, values: &[Value]| {
            let values = values.iter().map(|value| (*value, 1)).collect();
            op(s, begin, begin + 1, Action::Get, Outcome::Read(values, 1))
        };
        let wrong = |ops: &[Op]| siblings(&ops.iter().collect::<Vec<_>>()).len();
        let one = op(s, 1, 2, Action::Put(1), Outcome::Wrote(1));
        let blind = op(s, 3, 4, Action::Put(2), Outcome::Wrote(2));
        let over = Op { covers: BTreeSet::from([1]), ..blind.clone() };
        let maybe = Op { outcome: Outcome::Unknown("LOST".into()), ..over.clone() };
        assert_eq!(wrong(&[one.clone(), blind.clone(), read(5, &[1, 2])]), 0);
        assert_eq!(wrong(&[one.clone(), blind.clone(), read(5, &[2])]), 1, "lost");
        assert_eq!(wrong(&[one.clone(), over.clone(), read(5, &[2])]), 0);
        assert_eq!(wrong(&[one.clone(), over, read(5, &[1, 2])]), 1, "came back");
        assert_eq!(wrong(&[one.clone(), maybe.clone(), read(5, &[1])]), 0);
        assert_eq!(wrong(&[one, maybe, read(5, &[2]), read(7, &[])]), 1, "2 was read and is gone");
    }

    #[test]
    fn what_was_refused_is_never_read() {
        let refused = op(Conflicts::Lww, 1, 2, Action::Put(1), Outcome::Refused("UNAVAILABLE".into()));
        assert_eq!(never_from_nowhere(&[refused, get(3, 4, 1, 1)]).len(), 1);
        assert_eq!(never_from_nowhere(&[get(3, 4, 1, 1)]).len(), 1);
        assert_eq!(never_from_nowhere(&[put(1, 2, 1, 1), get(3, 4, 1, 1)]).len(), 0);
    }
}
