//! Every record that a small cluster can reach obeys the laws of merging.

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
    /// The last put with a request id is sent again, to another replica, which has not heard of it.
    Again { at: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    let (client, at) = (0..3usize, 0..REPLICAS);
    prop_oneof![
        3 => (client.clone(), at.clone(), any::<bool>(), 0..5u8)
            .prop_map(|(client, at, blind, d)| Step::Put { client, at, blind, delete: d == 0 }),
        2 => (client, at.clone()).prop_map(|(client, at)| Step::Get { client, at }),
        2 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Merge { from, to }),
        1 => at.prop_map(|at| Step::Again { at }),
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
    let mut last: Option<Sibling> = None;
    let mut all = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        match *step {
            Step::Put { client, at, blind, delete } => {
                minted[at] += 1;
                let past = if blind { Context::new() } else { remembered[client].clone() };
                let sibling = Sibling {
                    dot: dot(at, minted[at]),
                    past: past.clone(),
                    request: index.is_multiple_of(2).then_some(RequestId(index as u128)),
                    stamp: Stamp::at(WallMs(index as u64)),
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
                if let Some(request) = sibling.request {
                    remembered[client].insert_request(request, sibling.stamp.wall());
                    last = Some(sibling);
                }
                all.extend(held[at].clone());
            }
            Step::Again { at } => {
                let Some(sent) = last.clone().filter(|sent| {
                    let known = held[at].as_ref().map(Record::context).unwrap_or_default();
                    sent.request.is_some_and(|request| !known.has_request(request))
                }) else {
                    continue;
                };
                minted[at] += 1;
                let twin =
                    Sibling { dot: dot(at, minted[at]), stamp: Stamp::at(WallMs(index as u64)), ..sent };
                match &mut held[at] {
                    Some(record) => record.replace(twin).expect("one policy"),
                    empty => *empty = Some(Record::Siblings(vec![twin])),
                }
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
        Record::Lww(LwwVersion {
            stamp: Stamp(stamp),
            node: NodeId(node),
            payload,
            expires_at,
            request: None,
        })
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
    /// With the past of one that may have twins.
    Sibling(Dot, Option<Context>),
}

fn ids(record: &Record) -> BTreeSet<Id> {
    match record {
        Record::Lww(v) => [Id::Lww(v.stamp, v.node)].into(),
        Record::Siblings(set) => {
            let past = |s: &Sibling| s.request.map(|_| s.past.clone());
            set.iter().map(|s| Id::Sibling(s.dot, past(s))).collect()
        }
    }
}

#[test]
fn a_circle_of_pasts_leaves_the_newest_version() {
    let version = |own: Dot, covered: Dot, stamp: u64| {
        let mut past = Context::new();
        past.insert(covered);
        let payload = Payload::Value(Bytes::from_static(b"v"));
        Sibling { dot: own, past, request: None, stamp: Stamp(stamp), payload, expires_at: None }
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

/// A write that came through two coordinators is one version, and what replaced one of its dots replaced both.
#[test]
fn a_write_minted_twice_is_one_version() {
    let twin = |at: usize, stamp: u64| Sibling {
        dot: dot(at, 1),
        past: Context::new(),
        request: Some(RequestId(7)),
        stamp: Stamp::at(WallMs(stamp)),
        payload: Payload::Value(Bytes::from_static(b"v")),
        expires_at: None,
    };
    let (first, second) = (Record::Siblings(vec![twin(1, 5)]), Record::Siblings(vec![twin(2, 6)]));
    let both = merged(&first, &second);
    assert_eq!((both.versions(), merged(&second, &first)), (1, both.clone()));
    let mut heir = Sibling { dot: dot(0, 1), past: second.context(), request: None, ..twin(0, 7) };
    heir.past.insert(dot(2, 1));
    let heir = Record::Siblings(vec![heir]);
    for late in [&first, &second, &both] {
        assert_eq!(merged(&heir, late), heir, "neither comes back");
        assert_eq!(merged(late, &heir), heir);
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
            let named = |s: &Sibling| all().filter(|t| t.is_twin_of(s)).map(|t| t.dot).min();
            let gone = |s: &Sibling| all().any(|t| t.replaces(s) && !t.is_twin_of(s));
            let expected: BTreeSet<Dot> = all().filter(|s| !gone(s)).filter_map(named).collect();
            let Record::Siblings(got) = merged(&a, &b) else { panic!("the policy changed") };
            prop_assert_eq!(got.iter().map(|s| s.dot).collect::<BTreeSet<_>>(), expected);
        } else {
            prop_assert!(merged(&a, &b) == a || merged(&a, &b) == b);
            prop_assert!(merged(&a, &b).stamp() == a.stamp().max(b.stamp()));
        }
    }

    /// What a context covers never shrinks, so a line of dots that goes on above it never repeats. Of a write
    /// that was minted twice it may know one dot only, and the request id.
    #[test]
    fn the_context_of_a_merge_covers_both([a, b, c] in three_records()) {
        let both = merged(&a, &b).context();
        let mut joined = a.context();
        joined.join(&b.context());
        let covers = |context: &Context, s: &Sibling| {
            context.covers(&s.dot) || s.request.is_some_and(|request| context.has_request(request))
        };
        for record in [&a, &b, &c] {
            let Record::Siblings(set) = record else { continue };
            prop_assert!(set.iter().all(|s| covers(&both, s) == covers(&joined, s)));
        }
        let mut with_joined = joined.clone();
        with_joined.join(&both);
        prop_assert_eq!(with_joined, joined);
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
    let v = LwwVersion {
        stamp: Stamp(1),
        node: NodeId(1),
        payload,
        expires_at: Some(WallMs(100)),
        request: None,
    };
    let record = Record::Lww(v);
    assert_eq!(record.live(WallMs(99)).len(), 1);
    assert!(record.live(WallMs(100)).is_empty());
}

#[test]
fn records_of_two_policies_are_never_merged() {
    let payload = Payload::Tombstone;
    let lww = Record::Lww(LwwVersion {
        stamp: Stamp(1),
        node: NodeId(1),
        payload,
        expires_at: None,
        request: None,
    });
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
        Sibling {
            dot: dot(at, counter),
            past: context,
            request: None,
            stamp: Stamp(0),
            payload,
            expires_at: None,
        }
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
    let named = |at: usize| Sibling { request: Some(RequestId(7)), ..version(at, 1, &[]) };
    assert_eq!(problem(vec![named(0), named(1)]), Some("one request id on two siblings"));
    let mut heir = version(1, 1, &[]);
    heir.past.insert_request(RequestId(7), WallMs(1));
    assert_eq!(problem(vec![named(0), heir]), covered, "by its request id");
}
