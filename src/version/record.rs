//! Records: all that a replica holds for one key, and their merge.
//!
//! Invariants of a [`Record`]:
//! 1. Siblings are sorted by dot, and no dot stands twice.
//! 2. No sibling's past covers the dot of a sibling in the same set, its own included.
//! 3. A record has at least one version; a deleted key has a tombstone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::dvv::{Context, Dot};
use super::hlc::Stamp;
use crate::canary::{self, Canary};
use crate::types::ids::NodeId;
use crate::types::policy::Conflicts;
use crate::types::time::WallMs;

/// What a write wrote.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Payload {
    /// A value.
    Value(Bytes),
    /// "Deleted".
    Tombstone,
}

impl Payload {
    /// Length of the value, in bytes; 0 for a tombstone.
    pub fn bytes(&self) -> usize {
        match self {
            Payload::Value(value) => value.len(),
            Payload::Tombstone => 0,
        }
    }
}

/// The one version of an `lww` record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LwwVersion {
    /// When: the first part of the order.
    pub stamp: Stamp,
    /// Who stamped it: the second part.
    pub node: NodeId,
    /// What.
    pub payload: Payload,
    /// From when on it is a tombstone.
    pub expires_at: Option<WallMs>,
}

/// One of the versions of a `siblings` record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sibling {
    /// Its name.
    pub dot: Dot,
    /// What it replaced. Never covers `dot`.
    pub past: Context,
    /// When it was written; for people, not for order.
    pub stamp: Stamp,
    /// What.
    pub payload: Payload,
    /// From when on it is a tombstone.
    pub expires_at: Option<WallMs>,
}

/// All versions of one key that a replica holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Last write wins.
    Lww(LwwVersion),
    /// Concurrent versions, sorted by dot.
    Siblings(Vec<Sibling>),
}

/// Fingerprint of the version ids of a record; equal for equal records, and for a record whose expired
/// payload was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

/// A value that a reader sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The value.
    pub value: Bytes,
    /// Its stamp.
    pub stamp: Stamp,
    /// From when on it is a tombstone.
    pub expires_at: Option<WallMs>,
}

/// Two records of one key that do not have the same conflict policy: never merged, one is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of policy {have} can't be merged with one of policy {got}")]
pub struct PolicyMismatch {
    /// The policy of the record here.
    pub have: Conflicts,
    /// The policy of the one that came.
    pub got: Conflicts,
}

fn live(payload: &Payload, stamp: Stamp, expires_at: Option<WallMs>, now: WallMs) -> Option<Live> {
    match payload {
        Payload::Value(value) if expires_at.is_none_or(|at| now < at) => {
            Some(Live { value: value.clone(), stamp, expires_at })
        }
        _ => None,
    }
}

fn payload_bytes(payload: &Payload) -> usize {
    match payload {
        Payload::Value(value) => value.len(),
        Payload::Tombstone => 0,
    }
}

impl LwwVersion {
    /// The order of `lww` versions.
    pub fn order(&self) -> (Stamp, NodeId) {
        (self.stamp, self.node)
    }
}

impl Record {
    /// Its conflict policy.
    pub fn conflicts(&self) -> Conflicts {
        match self {
            Record::Lww(_) => Conflicts::Lww,
            Record::Siblings(_) => Conflicts::Siblings,
        }
    }

    /// Merges `other` in. Returns whether this record changed.
    pub fn merge(&mut self, other: &Record) -> Result<bool, PolicyMismatch> {
        match (self, other) {
            (Record::Lww(mine), Record::Lww(theirs)) => {
                if theirs.order() > mine.order() {
                    *mine = theirs.clone();
                    return Ok(true);
                }
                Ok(false)
            }
            (Record::Siblings(mine), Record::Siblings(theirs)) => Ok(merge_siblings(mine, theirs)),
            (mine, theirs) => Err(PolicyMismatch { have: mine.conflicts(), got: theirs.conflicts() }),
        }
    }

    /// The values that a reader at `now` sees: none for a deleted or expired key.
    pub fn live(&self, now: WallMs) -> Vec<Live> {
        match self {
            Record::Lww(v) => live(&v.payload, v.stamp, v.expires_at, now).into_iter().collect(),
            Record::Siblings(set) => {
                set.iter().filter_map(|s| live(&s.payload, s.stamp, s.expires_at, now)).collect()
            }
        }
    }

    /// The context that covers all versions of a `siblings` record; empty for `lww`.
    pub fn context(&self) -> Context {
        let mut context = Context::new();
        if let Record::Siblings(set) = self {
            for sibling in set {
                context.join(&sibling.past);
                context.insert(sibling.dot);
            }
        }
        context
    }

    /// The greatest stamp of its versions.
    pub fn stamp(&self) -> Stamp {
        match self {
            Record::Lww(v) => v.stamp,
            Record::Siblings(set) => set.iter().map(|s| s.stamp).max().unwrap_or_default(),
        }
    }

    /// How many versions it holds, tombstones included.
    pub fn versions(&self) -> usize {
        match self {
            Record::Lww(_) => 1,
            Record::Siblings(set) => set.len(),
        }
    }

    /// Bytes of its values.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Record::Lww(v) => payload_bytes(&v.payload),
            Record::Siblings(set) => set.iter().map(|s| payload_bytes(&s.payload)).sum(),
        }
    }

    /// Fingerprint of the version ids.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        match self {
            Record::Lww(v) => {
                hasher.update(&v.stamp.0.to_be_bytes()).update(&v.node.0.to_be_bytes());
            }
            Record::Siblings(set) => {
                for Sibling { dot, .. } in set {
                    hasher.update(&dot.actor.node.0.to_be_bytes());
                    hasher.update(&dot.actor.incarnation.0.to_be_bytes());
                    hasher.update(&dot.actor.birth.0.to_be_bytes());
                    hasher.update(&dot.counter.to_be_bytes());
                }
            }
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Digest(digest)
    }

    /// Replaces what `past` covers by one new version; the mint of a `siblings` record.
    pub fn replace(&mut self, sibling: Sibling) -> Result<(), PolicyMismatch> {
        self.merge(&Record::Siblings(vec![sibling])).map(|_| ())
    }

    /// What breaks an invariant, if anything does. Checked on everything that is decoded.
    pub fn problem(&self) -> Option<&'static str> {
        let Record::Siblings(set) = self else { return None };
        if set.is_empty() {
            return Some("a record without a version");
        }
        if !set.windows(2).all(|pair| pair[0].dot < pair[1].dot) {
            return Some("siblings out of order");
        }
        if set.iter().any(|s| s.dot.counter == 0 || !s.past.is_canonical()) {
            return Some("a context that is not canonical");
        }
        if set.iter().any(|s| set.iter().any(|t| s.past.covers(&t.dot))) {
            return Some("a sibling that another covers");
        }
        None
    }
}

/// Keeps each version unless a past of the other side covers its dot. Returns whether `mine` changed.
///
/// Pasts that cover each other in a circle leave nothing: no writes make such, forged contexts do. Then the newest
/// version of both sides stays (invariant 3), the same one on every replica.
fn merge_siblings(mine: &mut Vec<Sibling>, theirs: &[Sibling]) -> bool {
    let mut missing: Vec<&Sibling> =
        theirs.iter().filter(|t| !mine.iter().any(|m| m.dot == t.dot || m.past.covers(&t.dot))).collect();
    let stays = |m: &Sibling| !theirs.iter().any(|t| t.past.covers(&m.dot));
    if missing.is_empty() && !mine.iter().any(stays) {
        let newest = mine.iter().chain(theirs).max_by_key(|s| (s.stamp, *s)).cloned();
        let newest: Vec<Sibling> = newest.into_iter().collect();
        let changed = newest != *mine;
        *mine = newest;
        return changed;
    }
    let before = mine.len();
    mine.retain(stays);
    if canary::sings(Canary::SiblingForgotten) && !mine.is_empty() {
        missing.pop();
    }
    let changed = mine.len() != before || !missing.is_empty();
    mine.extend(missing.into_iter().cloned());
    mine.sort_by_key(|s| s.dot);
    changed
}

#[cfg(test)]
pub(in crate::version) mod tests {
    use super::super::dvv::Actor;
    use super::*;
    use crate::types::ids::{Birth, Incarnation};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const REPLICAS: usize = 3;

    /// One step of a small cluster, by which every reachable record can be made.
    #[derive(Debug, Clone)]
    enum Step {
        /// A put minted at a replica: with no context, or what the client remembers. A delete if `delete`.
        Put { client: usize, at: usize, blind: bool, delete: bool },
        /// The client remembers the context of a replica's record.
        Get { client: usize, at: usize },
        /// One replica merges the record of another.
        Merge { from: usize, to: usize },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let (client, at) = (0..3usize, 0..REPLICAS);
        prop_oneof![
            3 => (client.clone(), at.clone(), any::<bool>(), 0..5u8)
                .prop_map(|(client, at, blind, d)| Step::Put { client, at, blind, delete: d == 0 }),
            2 => (client, at.clone()).prop_map(|(client, at)| Step::Get { client, at }),
            2 => (at.clone(), at).prop_map(|(from, to)| Step::Merge { from, to }),
        ]
    }

    fn dot(node: usize, counter: u64) -> Dot {
        let actor = Actor { node: NodeId(node as u64), incarnation: Incarnation(1), birth: Birth(9) };
        Dot { actor, counter }
    }

    /// Runs the steps, and returns each record that a replica held at some time.
    fn run(steps: &[Step]) -> Vec<Record> {
        let mut held: [Option<Record>; REPLICAS] = Default::default();
        let mut minted = [0; REPLICAS];
        let mut remembered: [Context; 3] = Default::default();
        let mut all = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            match *step {
                Step::Put { client, at, blind, delete } => {
                    minted[at] += 1;
                    let past = if blind { Context::new() } else { remembered[client].clone() };
                    let sibling = Sibling {
                        dot: dot(at, minted[at]),
                        past: past.clone(),
                        stamp: Stamp(index as u64),
                        payload: match delete {
                            true => Payload::Tombstone,
                            false => Payload::Value(Bytes::from(format!("v{index}"))),
                        },
                        expires_at: index.is_multiple_of(4).then_some(WallMs(index as u64 * 10)),
                    };
                    match &mut held[at] {
                        Some(record) => record.replace(sibling.clone()).expect("one policy"),
                        empty => *empty = Some(Record::Siblings(vec![sibling.clone()])),
                    }
                    remembered[client] = past;
                    remembered[client].insert(sibling.dot);
                    all.extend(held[at].clone());
                }
                Step::Get { client, at } => {
                    remembered[client] = held[at].as_ref().map(Record::context).unwrap_or_default();
                }
                Step::Merge { from, to } => {
                    let Some(sent) = held[from].clone() else { continue };
                    match &mut held[to] {
                        Some(record) => drop(record.merge(&sent).expect("one policy")),
                        empty => *empty = Some(sent),
                    }
                    all.extend(held[to].clone());
                }
            }
        }
        all
    }

    fn any_lww() -> impl Strategy<Value = Record> {
        // What was written is a function of the version id: a stamp of one node is issued once.
        (0..6u64, 0..3u64).prop_map(|(stamp, node)| {
            let payload = match stamp % 3 {
                0 => Payload::Tombstone,
                _ => Payload::Value(Bytes::from(format!("{stamp} of {node}"))),
            };
            let expires_at = (stamp % 2 == 0).then_some(WallMs(stamp));
            Record::Lww(LwwVersion { stamp: Stamp(stamp), node: NodeId(node), payload, expires_at })
        })
    }

    /// Three records of one key that replicas can hold at some time, not always together.
    pub(in crate::version) fn three_records() -> impl Strategy<Value = [Record; 3]> {
        let siblings = (proptest::collection::vec(any_step(), 1..40), any::<[prop::sample::Index; 3]>())
            .prop_filter_map("no record was made", |(steps, picks)| {
                let all = run(&steps);
                (!all.is_empty()).then(|| picks.map(|pick| pick.get(&all).clone()))
            });
        prop_oneof![3 => siblings, 1 => [any_lww(), any_lww(), any_lww()]]
    }

    fn merged(a: &Record, b: &Record) -> Record {
        let mut both = a.clone();
        let changed = both.merge(b).expect("one policy");
        assert_eq!(changed, both != *a, "merge says whether it changed the record");
        both
    }

    /// The name of a version under either policy.
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Id {
        Lww(Stamp, NodeId),
        Sibling(Dot),
    }

    fn ids(record: &Record) -> BTreeSet<Id> {
        match record {
            Record::Lww(v) => [Id::Lww(v.stamp, v.node)].into(),
            Record::Siblings(set) => set.iter().map(|s| Id::Sibling(s.dot)).collect(),
        }
    }

    #[test]
    fn a_circle_of_pasts_leaves_the_newest_version() {
        let version = |own: Dot, covered: Dot, stamp: u64| {
            let mut past = Context::new();
            past.insert(covered);
            let payload = Payload::Value(Bytes::from_static(b"v"));
            Sibling { dot: own, past, stamp: Stamp(stamp), payload, expires_at: None }
        };
        let older = Record::Siblings(vec![version(dot(2, 1), dot(1, 1), 5)]);
        let newer = Record::Siblings(vec![version(dot(1, 1), dot(2, 1), 6)]);
        for (mine, theirs, changes) in [(&older, &newer, true), (&newer, &older, false)] {
            let mut merged = mine.clone();
            assert_eq!(merged.merge(theirs), Ok(changes));
            assert_eq!(merged, newer, "in either order");
            assert_eq!(merged.problem(), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn merge_is_commutative_associative_and_idempotent([a, b, c] in three_records()) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert_eq!(merged(&merged(&a, &b), &b), merged(&a, &b));
        }

        #[test]
        fn a_merge_of_reachable_records_breaks_no_invariant([a, b, c] in three_records()) {
            for record in [&a, &merged(&a, &b), &merged(&merged(&a, &b), &c)] {
                prop_assert_eq!(record.problem(), None);
            }
        }

        /// A version is in the merged record, or a version of the other side covers it; and nothing else is.
        #[test]
        fn merge_forgets_only_what_is_covered([a, b, _] in three_records()) {
            if let (Record::Siblings(left), Record::Siblings(right)) = (&a, &b) {
                let all = || left.iter().chain(right);
                let expected: BTreeSet<Dot> =
                    all().filter(|s| !all().any(|t| t.past.covers(&s.dot))).map(|s| s.dot).collect();
                let Record::Siblings(got) = merged(&a, &b) else { panic!("the policy changed") };
                prop_assert_eq!(got.iter().map(|s| s.dot).collect::<BTreeSet<_>>(), expected);
            } else {
                prop_assert!(merged(&a, &b) == a || merged(&a, &b) == b);
                prop_assert!(merged(&a, &b).stamp() == a.stamp().max(b.stamp()));
            }
        }

        /// What a context covers never shrinks, so a line of dots that goes on above it never repeats.
        #[test]
        fn the_context_of_a_merge_covers_both([a, b, _] in three_records()) {
            let both = merged(&a, &b).context();
            let mut joined = a.context();
            joined.join(&b.context());
            prop_assert_eq!(both, joined);
        }

        #[test]
        fn a_digest_is_equal_exactly_when_the_version_ids_are([a, b, c] in three_records()) {
            for (left, right) in [(&a, &b), (&b, &c), (&a, &merged(&a, &b)), (&a, &a)] {
                prop_assert_eq!(left.digest() == right.digest(), ids(left) == ids(right));
            }
        }

        /// F08: from its time on an expired version reads as a tombstone does, and its record is the same.
        #[test]
        fn f08_an_expired_version_is_a_tombstone_to_every_reader([a, _, _] in three_records(), now in 0..400u64) {
            let now = WallMs(now);
            let mut buried = a.clone();
            let bury = |payload: &mut Payload, expires_at: Option<WallMs>| {
                if expires_at.is_some_and(|at| at <= now) {
                    *payload = Payload::Tombstone;
                }
            };
            match &mut buried {
                Record::Lww(v) => bury(&mut v.payload, v.expires_at),
                Record::Siblings(set) => set.iter_mut().for_each(|s| bury(&mut s.payload, s.expires_at)),
            }
            prop_assert_eq!(a.live(now), buried.live(now));
            prop_assert_eq!(a.digest(), buried.digest(), "no difference for repair to find");
            prop_assert_eq!(a.context(), buried.context());
            let unburied = merged(&buried, &a);
            prop_assert_eq!(unburied.live(now), a.live(now), "a merge revives nothing");
            prop_assert!(a.live(now).iter().all(|l| l.expires_at.is_none_or(|at| now < at)));
        }
    }

    #[test]
    fn expiry_begins_at_its_millisecond() {
        let payload = Payload::Value(Bytes::from_static(b"x"));
        let v = LwwVersion { stamp: Stamp(1), node: NodeId(1), payload, expires_at: Some(WallMs(100)) };
        let record = Record::Lww(v);
        assert_eq!(record.live(WallMs(99)).len(), 1);
        assert!(record.live(WallMs(100)).is_empty());
    }

    #[test]
    fn records_of_two_policies_are_never_merged() {
        let payload = Payload::Tombstone;
        let lww = Record::Lww(LwwVersion { stamp: Stamp(1), node: NodeId(1), payload, expires_at: None });
        let mut siblings = run(&[Step::Put { client: 0, at: 0, blind: true, delete: false }]).remove(0);
        let before = siblings.clone();
        let refused = siblings.merge(&lww).expect_err("two policies");
        assert_eq!((refused.have, refused.got), (Conflicts::Siblings, Conflicts::Lww));
        assert_eq!(siblings, before);
    }

    /// Each invariant has a name of its own when it is broken.
    #[test]
    fn problem_finds_each_broken_invariant() {
        let version = |at: usize, counter: u64, past: &[Dot]| {
            let mut context = Context::new();
            past.iter().for_each(|d| context.insert(*d));
            let payload = Payload::Tombstone;
            Sibling { dot: dot(at, counter), past: context, stamp: Stamp(0), payload, expires_at: None }
        };
        let problem = |set: Vec<Sibling>| Record::Siblings(set).problem();
        assert_eq!(problem(vec![version(0, 1, &[]), version(1, 1, &[])]), None);
        assert_eq!(problem(vec![]), Some("a record without a version"));
        let out_of_order = Some("siblings out of order");
        assert_eq!(problem(vec![version(1, 1, &[]), version(0, 1, &[])]), out_of_order);
        assert_eq!(problem(vec![version(0, 1, &[]), version(0, 1, &[])]), out_of_order);
        assert_eq!(problem(vec![version(0, 0, &[])]), Some("a context that is not canonical"));
        let covered = Some("a sibling that another covers");
        assert_eq!(problem(vec![version(0, 1, &[]), version(1, 1, &[dot(0, 1)])]), covered);
        assert_eq!(problem(vec![version(0, 1, &[dot(0, 1)])]), covered, "its own past covers it");
    }
}
