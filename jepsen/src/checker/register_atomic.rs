//! An `lww` key with `r + w > n` and `2 r > n` is an atomic register (G2, G3).
//!
//! Each operation takes effect at one moment between its invocation and its completion. Where versions are
//! unique this is decided by zones, which names the guilty pair; elsewhere by a search (`wgl`).
//!
//! G3 makes an exception of a write that had to be stamped again: it leaves two versions of one value. So
//! judge by versions, value and stamp (`stamped`), where clients are told stamps; `plain` takes the value
//! alone, allows a value only once in the register's life, and needs the search where there are deletions.
//!
//! A read that finds nothing at all, not even a tombstone, after a deletion may have come after the
//! tombstone was purged: if zones say no and there is such a read, the search decides, with that read
//! matching any deletion. So does one that found a tombstone, whose stamp clients are not told: such keys are
//! searched, and a deletion among them may take effect twice within its own time, as any write that had to be
//! stamped again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::findings::Findings;
use super::register::{
    Cluster, Naming, RegOp, Version, any_purged, clusters, event, purged, registers, told, tombstones, unique,
};
use super::value::Val;
use super::wgl::{Act, Answer, Step, search};
use super::zones::{Zone, clashes};
use super::{Checker, Verdict};
use crate::history::History;

/// The atomic register, for each key.
#[derive(Debug, Clone)]
pub struct RegisterAtomic {
    /// Versions are told apart by their stamps too. A key whose answers lack stamps is judged plain.
    pub by_stamp: bool,
    /// How long all searches together may take; what is not decided then is unknown.
    pub limit: Duration,
}

impl RegisterAtomic {
    /// Versions are values. For modes in which no write is stamped again, and for histories without stamps.
    pub fn plain() -> Self {
        Self { by_stamp: false, limit: Duration::from_secs(60) }
    }

    /// Versions are values with stamps: the model of Quoral's `lww` keys.
    pub fn stamped() -> Self {
        Self { by_stamp: true, ..Self::plain() }
    }
}

impl Checker for RegisterAtomic {
    fn name(&self) -> &'static str {
        "register-atomic"
    }

    fn check(&self, history: &History) -> Verdict {
        let deadline = Instant::now() + self.limit;
        let mut findings = Findings::new();
        let (mut by_zones, mut by_search, mut undecided, mut reads) = (0_u64, 0_u64, 0_u64, 0_usize);
        let keys = registers(history);
        for (key, ops) in &keys {
            reads += ops.iter().filter(|op| !op.write).count();
            let naming = naming(self.by_stamp, ops);
            let mut found = Vec::new();
            if unique(ops, naming) {
                found = zones(&clusters(ops, naming));
                if found.is_empty() || !any_purged(ops) {
                    by_zones += 1;
                    for (text, events) in found {
                        findings.wrong(Some(*key), events, || text);
                    }
                    continue;
                }
            }
            by_search += 1;
            match ordered(ops, naming, deadline) {
                Order::Found => {}
                Order::None(text, events) => {
                    // If there are zones too, they say better why.
                    found.push((text, events));
                    for (text, events) in found {
                        findings.wrong(Some(*key), events, || text);
                    }
                }
                Order::Undecided => {
                    undecided += 1;
                    findings.unsure();
                }
            }
        }
        if reads == 0 {
            findings.unsure();
        }
        findings.figure("keys", keys.len());
        findings.figure("reads", reads);
        if self.by_stamp {
            let plain = keys.values().filter(|ops| naming(true, ops) == Naming::Plain).count();
            findings.figure("keys-without-stamps", plain);
        }
        findings.figure("keys-by-zones", by_zones);
        findings.figure("keys-by-search", by_search);
        findings.figure("keys-undecided", undecided);
        findings.done()
    }
}

fn naming(by_stamp: bool, ops: &[RegOp]) -> Naming {
    if by_stamp && told(ops) { Naming::Stamped } else { Naming::Plain }
}

/// What zones say is wrong, each with its events.
pub(super) fn zones(versions: &[Cluster]) -> Vec<(String, Vec<u64>)> {
    let mut found: Vec<(String, Vec<u64>)> = versions.iter().filter_map(unborn).collect();
    let zones: Vec<Zone> = versions.iter().map(|c| Zone { from: c.first_end, to: c.last_begin }).collect();
    for (a, b) in clashes(&zones) {
        let (a, b) = (&versions[a], &versions[b]);
        found.push((format!("not atomic: {a}; {b}"), [a.events(), b.events()].concat()));
    }
    found
}

/// A version that was read before anybody wrote it.
pub(super) fn unborn(version: &Cluster) -> Option<(String, Vec<u64>)> {
    let text = match version.born {
        None => format!("nobody wrote what was read: {version}"),
        Some(born) if born > version.first_end => format!("read before it was written: {version}"),
        Some(_) => return None,
    };
    Some((text, version.events()))
}

/// What the search says of a key.
pub(super) enum Order {
    Found,
    None(String, Vec<u64>),
    Undecided,
}

/// Searches an order of a key's operations.
pub(super) fn ordered(ops: &[RegOp], naming: Naming, deadline: Instant) -> Order {
    let steps = steps(ops, naming);
    match search(&steps.list, &steps.nil, deadline) {
        Answer::Yes => Order::Found,
        Answer::Undecided => Order::Undecided,
        Answer::No(at) => {
            let Some((step, version)) = steps.list.get(at).zip(steps.names.get(at)) else {
                return Order::Undecided;
            };
            let done = if matches!(step.act, Act::Write(_)) { "the write" } else { "the read" };
            let events: Vec<u64> = [step.begin, step.end].into_iter().filter_map(event).collect();
            Order::None(format!("no order gets past {done} of {version}, events {events:?}"), events)
        }
    }
}

/// Operations as the search takes them.
struct Steps {
    list: Vec<Step>,
    /// What each of them is about.
    names: Vec<Version>,
    /// Whether a version is `nil`.
    nil: Vec<bool>,
}

fn steps(ops: &[RegOp], naming: Naming) -> Steps {
    let mut ids: BTreeMap<Version, u32> = BTreeMap::from([(Version::NOTHING, 0)]);
    let mut steps = Steps { list: Vec::new(), names: Vec::new(), nil: vec![true] };
    let deletions = tombstones(ops);
    let is_stamped = naming == Naming::Stamped;
    let is_untold = is_stamped && ops.iter().any(RegOp::found_untold);
    let purged = |op: &RegOp| is_stamped && (op.found_untold() || purged(op, 0, &deletions));
    let read: BTreeSet<Version> =
        ops.iter().filter(|op| !op.write).map(|op| Version::of(op, naming)).collect();
    let mut add = |version: Version, begin, end, act: fn(u32) -> Act| {
        let fresh = u32::try_from(ids.len()).unwrap_or(u32::MAX - 1);
        let id = *ids.entry(version.clone()).or_insert(fresh);
        if id == fresh {
            steps.nil.push(version.value == Val::Nil);
        }
        steps.list.push(Step { begin, end, act: act(id) });
        steps.names.push(version);
    };
    let mut any_purged = false;
    for op in ops.iter().filter(|op| op.sure()) {
        let purged = purged(op);
        any_purged |= purged;
        let act = match (op.write, purged) {
            (true, _) => Act::Write,
            (false, true) => |_| Act::ReadNil,
            (false, false) => Act::Read,
        };
        add(Version::of(op, naming), op.begin, op.end, act);
        if is_untold && op.write && op.value == Val::Nil {
            // If it was not stamped again, this one does nothing: it can stand right before its twin.
            add(Version { value: Val::Nil, stamp: -1 }, op.begin, op.end, Act::Write);
        }
    }
    if naming == Naming::Stamped {
        // A version that was read and not acknowledged came to be when some write may have left it.
        for version in clusters(ops, naming) {
            if let Some(born) = version.born.filter(|born| version.acked == u64::MAX && *born > 0) {
                add(version.version, born, u64::MAX, Act::Write);
            }
        }
    }
    for op in ops.iter().filter(|op| op.write && !op.sure()) {
        let purged = any_purged && op.value == Val::Nil;
        let seen = naming == Naming::Plain && read.contains(&Version::of(op, naming));
        if purged || seen {
            // A tombstone that only purged reads may have seen has a name of its own.
            let stamp = if purged { -1 } else { 0 };
            add(Version { value: op.value.clone(), stamp }, op.begin, u64::MAX, Act::Write);
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Draft, Valid};
    use crate::edn::Edn;

    fn stamp(stamp: i64) -> [(&'static str, Edn); 1] {
        [("stamp", Edn::Int(stamp))]
    }

    #[test]
    fn a_value_stamped_again_is_another_version() {
        let mut draft = Draft::new();
        draft.invoke(1, "write", 0, 1_i64).invoke(2, "write", 0, 2_i64);
        draft.done(3, "read", 0, 1_i64, &stamp(4)).done(3, "read", 0, 2_i64, &stamp(5));
        draft.done(3, "read", 0, 1_i64, &stamp(9)).ok(1, 1_i64, &stamp(9));
        assert_eq!(RegisterAtomic::stamped().check(&draft.history()).valid, Valid::Yes);
        assert_eq!(RegisterAtomic::plain().check(&draft.history()).valid, Valid::No);
        // Above the acknowledged stamp nobody can have left it.
        draft.done(3, "read", 0, 1_i64, &stamp(10));
        let verdict = RegisterAtomic::stamped().check(&draft.history());
        assert!(verdict.anomalies[0].text.starts_with("nobody wrote what was read: 1 at stamp 10"));
    }

    #[test]
    fn a_purged_tombstone_explains_a_read_that_finds_nothing() {
        let history = |between: bool| {
            let mut draft = Draft::new();
            draft.done(1, "write", 0, 1_i64, &stamp(4));
            if between {
                draft.done(1, "delete", 0, Edn::Nil, &stamp(5));
            }
            draft.done(1, "read", 0, Edn::Nil, &stamp(0)).done(1, "write", 0, 2_i64, &stamp(6));
            draft.done(1, "read", 0, 2_i64, &stamp(6)).history()
        };
        assert_eq!(RegisterAtomic::stamped().check(&history(true)).valid, Valid::Yes);
        assert_eq!(RegisterAtomic::stamped().check(&history(false)).valid, Valid::No);
    }

    #[test]
    fn tombstones_that_are_read_tell_no_stamps() {
        let mut draft = Draft::new();
        draft.done(1, "delete", 0, Edn::Nil, &stamp(5)).done(2, "read", 0, Edn::Nil, &[]);
        // Stamped again: seen at 7, acknowledged at 9.
        draft.invoke(1, "write", 0, 1_i64).done(3, "read", 0, 1_i64, &stamp(7));
        draft.done(2, "write", 0, 2_i64, &stamp(8)).done(3, "read", 0, 2_i64, &stamp(8));
        draft.ok(1, 1_i64, &stamp(9)).done(3, "read", 0, 1_i64, &stamp(9));
        assert_eq!(RegisterAtomic::stamped().check(&draft.history()).valid, Valid::Yes);
        // A deletion that was stamped again.
        draft.invoke(1, "delete", 0, Edn::Nil).done(3, "read", 0, Edn::Nil, &[]);
        draft.done(2, "write", 0, 3_i64, &stamp(11)).done(3, "read", 0, Edn::Nil, &[]);
        draft.ok(1, Edn::Nil, &stamp(12));
        assert_eq!(RegisterAtomic::stamped().check(&draft.history()).valid, Valid::Yes);
        // What was deleted comes back.
        draft.done(3, "read", 0, 3_i64, &stamp(11));
        assert_eq!(RegisterAtomic::stamped().check(&draft.history()).valid, Valid::No);
    }

    #[test]
    fn a_deletion_takes_effect_in_its_own_time_only() {
        let mut draft = Draft::new();
        draft.done(1, "delete", 0, Edn::Nil, &stamp(5)).done(2, "read", 0, Edn::Nil, &[]);
        draft.done(1, "write", 0, 1_i64, &stamp(6)).done(2, "read", 0, Edn::Nil, &[]);
        assert_eq!(RegisterAtomic::stamped().check(&draft.history()).valid, Valid::No);
    }

    #[test]
    fn the_guilty_pair_is_named_with_its_events() {
        let mut draft = Draft::new();
        draft.done(1, "write", 7, 1_i64, &stamp(1)).done(1, "write", 7, 2_i64, &stamp(2));
        draft.done(2, "read", 7, 1_i64, &stamp(1));
        let verdict = RegisterAtomic::stamped().check(&draft.history());
        assert_eq!(verdict.anomalies.len(), 1);
        let text = "not atomic: 1 at stamp 1 (write begun at event 0, first end 1, last begin 4); \
                    2 at stamp 2 (write begun at event 2, first end 3, last begin 2)";
        assert_eq!(verdict.anomalies[0].text, text);
        assert_eq!(verdict.anomalies[0].events, [0, 1, 2, 3, 4]);
        assert_eq!(verdict.anomalies[0].key, Some(7));
    }

    #[test]
    fn nothing_read_proves_nothing() {
        let mut draft = Draft::new();
        draft.done(1, "write", 7, 1_i64, &stamp(1));
        assert_eq!(RegisterAtomic::stamped().check(&draft.history()).valid, Valid::Unknown);
    }
}
