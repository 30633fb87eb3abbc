//! An `lww` key whose operations all ask for majorities is an atomic register of *versions* (Gibbons and Korach).
//!
//! A version is a value and its stamp; a put that was stamped again left more than one, of which the last was
//! acknowledged, so the exception of G3 is expressed by what a version is. The operations of one version lie
//! between their first end and their last beginning. If that is a stretch of time that must be this version's
//! (a *forward* zone), no other such stretch may overlap it, and no operations of another version may lie within.

use std::collections::BTreeMap;
use std::fmt;

use quoral::types::policy::Conflicts;

use super::Finding;
use crate::history::{Action, Op, Outcome, Seq, Value};

/// A version of an `lww` key: a value, or none for a tombstone or nothing, and its stamp.
type Version = (Option<Value>, u64);

fn version_of(op: &Op) -> Option<Version> {
    match (&op.outcome, op.action) {
        (Outcome::Wrote(stamp), Action::Put(value)) => Some((Some(value), *stamp)),
        (Outcome::Wrote(stamp), _) => Some((None, *stamp)),
        (Outcome::Read(values, Some(stamp)), _) => {
            Some(values.first().map_or((None, *stamp), |(value, stamp)| (Some(*value), *stamp)))
        }
        _ => None,
    }
}

/// The operations of one version.
struct Zone {
    version: Version,
    /// When its write began.
    born: Seq,
    first_end: Seq,
    last_begin: Seq,
    guilty: Vec<Seq>,
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Zone { version: (value, stamp), born, first_end, last_begin, .. } = self;
        write!(f, "{value:?} at stamp {stamp} (born {born}, first end {first_end}, last begin {last_begin})")
    }
}

fn versions(ops: &[&Op]) -> Vec<Zone> {
    let mut zones: BTreeMap<Version, Zone> = BTreeMap::new();
    // The state before all writes: written before anything.
    let empty = Zone { version: (None, 0), born: 0, first_end: 0, last_begin: 0, guilty: Vec::new() };
    zones.insert((None, 0), empty);
    for op in ops {
        let Some(version) = version_of(op) else { continue };
        let born = || birth(version, ops);
        let zone = zones.entry(version).or_insert_with(|| Zone {
            version,
            born: born(),
            first_end: Seq::MAX,
            last_begin: 0,
            guilty: Vec::new(),
        });
        if op.end < zone.first_end {
            zone.first_end = op.end;
            zone.guilty.push(op.begin);
        }
        if op.begin > zone.last_begin {
            zone.last_begin = op.begin;
            zone.guilty.push(op.begin);
        }
    }
    // The write itself belongs to its version, though its end may be unknown.
    zones.into_values().map(|zone| Zone { last_begin: zone.last_begin.max(zone.born), ..zone }).collect()
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

/// G3, in full: the key is an atomic register.
pub fn g3_register(ops: &[&Op]) -> Vec<Finding> {
    let majorities = ops.iter().all(|op| 2 * op.level > op.space.n);
    if !majorities || ops.first().is_none_or(|op| op.space.conflicts != Conflicts::Lww) {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    for op in ops {
        if let Outcome::Read(values, Some(stamp)) = &op.outcome
            && (values.len() > 1 || values.first().is_some_and(|(_, own)| own != stamp))
        {
            wrong.push(Finding::of("G3", "not one version, or not the context's", &[op]));
        }
    }
    let place = ops.first().map(|op| (op.space.name.clone(), op.key.clone()));
    let finding = |text: String, zones: &[&Zone]| {
        let mut guilty: Vec<Seq> = zones.iter().flat_map(|zone| zone.guilty.iter().copied()).collect();
        guilty.extend(zones.iter().map(|zone| zone.born).filter(|born| *born != Seq::MAX));
        Finding { rule: "G3", text, place: place.clone(), guilty }
    };
    let zones = versions(ops);
    for (index, a) in zones.iter().enumerate() {
        if a.born > a.first_end {
            wrong.push(finding(format!("read before it was written: {a}"), &[a]));
        }
        for b in &zones[index + 1..] {
            if conflict(a, b) {
                wrong.push(finding(format!("not atomic: {a} and {b}"), &[a, b]));
            }
        }
    }
    wrong
}

fn conflict(a: &Zone, b: &Zone) -> bool {
    let forward = |zone: &Zone| zone.first_end < zone.last_begin;
    let within =
        |inner: &Zone, outer: &Zone| outer.first_end < inner.last_begin && inner.first_end < outer.last_begin;
    match (forward(a), forward(b)) {
        (true, true) => a.first_end < b.last_begin && b.first_end < a.last_begin,
        (true, false) => within(b, a),
        (false, true) => within(a, b),
        (false, false) => false,
    }
}
