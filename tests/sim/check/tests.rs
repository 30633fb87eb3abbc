//! The checkers, checked: each takes histories that are right, and refuses canaries that are wrong in one way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quoral::hinted::queue::{self, Book, Limits};
use quoral::replica::stored;
use quoral::ring::layout::{ClusterMap, Member, NewKeyspace};
use quoral::ring::partition::Partitions;
use quoral::ring::preflist::homes;
use quoral::storage::memory::MemoryStorage;
use quoral::storage::{Batch, Storage, schema};
use quoral::types::ids::{KeyspaceId, MapVersion, NodeId, PartitionId};
use quoral::types::key::{Key, Position};
use quoral::types::policy::Conflicts;
use quoral::types::time::WallMs;
use quoral::version::codec;
use quoral::version::hlc::Stamp;
use quoral::version::record::{LwwVersion, Payload, Record};

use super::guarantees::*;
use super::honest::*;
use super::register::g3_register;
use super::state::{HintWatch, Holding, MapWatch, f23_one_map, g7_converges, holding};
use super::{Finding, meets};
use crate::history::{Action, Creation, Op, Outcome, Seq, Space, Value};

pub(super) fn space(conflicts: Conflicts, r: u8, w: u8) -> Arc<Space> {
    Arc::new(Space { name: "s".into(), conflicts, n: 3, r, w, sloppy: false })
}

fn op(conflicts: Conflicts, begin: Seq, end: Seq, action: Action, outcome: Outcome) -> Op {
    Op {
        client: 0,
        node: 0,
        space: space(conflicts, 2, 2),
        key: "k".into(),
        action,
        level: 2,
        named: false,
        session: None,
        batch: None,
        covers: BTreeSet::new(),
        timeout_ms: 1,
        begin,
        began_ms: begin,
        end,
        ended_ms: end,
        outcome,
        made_by: None,
    }
}

pub(super) fn put(begin: Seq, end: Seq, value: Value, stamp: u64) -> Op {
    op(Conflicts::Lww, begin, end, Action::Put(value), Outcome::Wrote(stamp))
}

fn delete(begin: Seq, stamp: u64) -> Op {
    delete_at(begin, stamp)
}

pub(super) fn delete_at(begin: Seq, stamp: u64) -> Op {
    op(Conflicts::Lww, begin, begin + 1, Action::Delete, Outcome::Wrote(stamp))
}

fn unknown(begin: Seq, value: Value) -> Op {
    op(Conflicts::Lww, begin, begin + 1, Action::Put(value), Outcome::Unknown("LOST".into()))
}

pub(super) fn get(begin: Seq, end: Seq, value: Value, stamp: u64) -> Op {
    op(Conflicts::Lww, begin, end, Action::Get, Outcome::Read(vec![(value, stamp)], Some(stamp)))
}

pub(super) fn nothing(begin: Seq, stamp: Option<u64>) -> Op {
    op(Conflicts::Lww, begin, begin + 1, Action::Get, Outcome::Read(Vec::new(), stamp))
}

/// A write to a `siblings` key, whose context had seen `covers`.
fn add(begin: Seq, value: Value, covers: &[Value]) -> Op {
    let op = op(Conflicts::Siblings, begin, begin + 1, Action::Put(value), Outcome::Wrote(begin));
    Op { covers: covers.iter().copied().collect(), ..op }
}

fn remove(begin: Seq, covers: &[Value]) -> Op {
    Op { action: Action::Delete, ..add(begin, 0, covers) }
}

fn read(begin: Seq, values: &[Value]) -> Op {
    let values: Vec<(Value, u64)> = values.iter().map(|value| (*value, 1)).collect();
    op(Conflicts::Siblings, begin, begin + 1, Action::Get, Outcome::Read(values, Some(1)))
}

fn with_level(level: u8, op: Op) -> Op {
    Op { level, ..op }
}

fn doubt(op: Op) -> Op {
    Op { outcome: Outcome::Unknown("LOST".into()), ..op }
}

fn refused(op: Op) -> Op {
    Op { outcome: Outcome::Refused("UNAVAILABLE".into()), ..op }
}

fn count(checker: fn(&KeyOps) -> Vec<Finding>, ops: &[Op]) -> usize {
    checker(&KeyOps::new(&ops.iter().collect::<Vec<_>>())).len()
}

fn registers(ops: &[Op]) -> usize {
    g3_register(&ops.iter().collect::<Vec<_>>()).len()
}

#[test]
fn promises_depend_on_both_quorums() {
    let level = |w, r| meets(&with_level(w, put(1, 2, 1, 1)), &with_level(r, get(3, 4, 1, 1)));
    assert!(level(2, 2) && level(1, 3) && level(3, 1));
    assert!(!level(1, 2) && !level(2, 1), "they may miss each other");
    let reads = |a, b| meets(&with_level(a, get(1, 2, 1, 1)), &with_level(b, get(3, 4, 1, 1)));
    assert!(reads(2, 2) && reads(3, 2));
    assert!(!reads(1, 3) && !reads(3, 1), "a read of one writes nothing back");
}

#[test]
fn g1_finds_what_is_lost() {
    let all = |op| with_level(3, op);
    let one = |op| with_level(1, op);
    assert_eq!(count(g1_durable, &[one(put(1, 2, 1, 5)), all(get(3, 4, 1, 5))]), 0);
    assert_eq!(count(g1_durable, &[one(put(1, 2, 1, 5)), all(nothing(3, Some(0)))]), 1, "gone");
    assert_eq!(count(g1_durable, &[put(1, 2, 1, 5), all(get(3, 4, 2, 4))]), 1, "an older one is there");
    assert_eq!(count(g1_durable, &[put(1, 2, 1, 5), all(nothing(3, None))]), 1, "a scan does not find it");
    assert_eq!(count(g1_durable, &[put(1, 2, 1, 5), delete(3, 6), all(nothing(5, Some(6)))]), 0);
    assert_eq!(count(g1_durable, &[put(1, 2, 1, 5), delete(3, 6), all(nothing(5, None))]), 0);
    assert_eq!(count(g1_durable, &[put(1, 2, 1, 5), doubt(delete(3, 0)), all(nothing(5, Some(6)))]), 0);
    assert_eq!(count(g1_durable, &[put(1, 2, 1, 5), refused(delete(3, 0)), all(nothing(5, Some(6)))]), 1);
    assert_eq!(count(g1_durable, &[delete(1, 6), all(get(3, 4, 1, 5))]), 1, "a delete is lost");
    assert_eq!(count(g1_durable, &[delete(1, 4), put(3, 4, 1, 5), all(nothing(5, None))]), 1, "not by that");
    assert_eq!(count(g1_durable, &[put(1, 2, 1, 5), nothing(3, Some(0))]), 0, "that is for G2");
    assert_eq!(count(g1_durable, &[one(add(1, 1, &[])), all(read(3, &[1]))]), 0);
    assert_eq!(count(g1_durable, &[one(add(1, 1, &[])), all(read(3, &[]))]), 1, "a sibling is lost");
    assert_eq!(count(g1_durable, &[add(1, 1, &[]), doubt(add(3, 2, &[1])), all(read(5, &[2]))]), 0);
    assert_eq!(count(g1_durable, &[add(1, 1, &[]), refused(add(3, 2, &[1])), all(read(5, &[]))]), 1);
}

#[test]
fn g2_finds_stale_reads() {
    assert_eq!(count(g2_read_your_quorum, &[put(1, 2, 1, 5), get(3, 4, 1, 5)]), 0);
    assert_eq!(count(g2_read_your_quorum, &[put(1, 2, 1, 5), get(3, 4, 2, 4)]), 1);
    assert_eq!(count(g2_read_your_quorum, &[put(1, 3, 1, 5), get(2, 4, 2, 4)]), 0, "they overlap");
    assert_eq!(count(g2_read_your_quorum, &[put(1, 2, 1, 5), nothing(3, Some(0))]), 1, "not found");
    let weak = [with_level(1, put(1, 2, 1, 5)), get(3, 4, 2, 4)];
    assert_eq!(count(g2_read_your_quorum, &weak), 0, "not promised");
    assert_eq!(count(g2_read_your_quorum, &[add(1, 1, &[]), add(3, 2, &[1]), read(5, &[2])]), 0);
    assert_eq!(
        count(g2_read_your_quorum, &[add(1, 1, &[]), add(3, 2, &[1]), read(5, &[1, 2])]),
        1,
        "came back"
    );
    assert_eq!(count(g2_read_your_quorum, &[add(1, 1, &[]), doubt(add(3, 2, &[1])), read(5, &[1])]), 0);
}

#[test]
fn g3_finds_reads_that_go_back() {
    assert_eq!(count(g3_monotonic, &[get(1, 2, 1, 4), get(3, 4, 2, 5)]), 0);
    assert_eq!(count(g3_monotonic, &[get(1, 2, 1, 5), get(3, 4, 2, 4)]), 1);
    assert_eq!(count(g3_monotonic, &[get(1, 2, 1, 5), put(3, 4, 2, 4)]), 1, "a write below what was read");
    let weak = [with_level(1, get(1, 2, 1, 5)), with_level(1, get(3, 4, 2, 4))];
    assert_eq!(count(g3_monotonic, &weak), 0, "not promised");
    assert_eq!(count(g3_monotonic, &[doubt(add(1, 1, &[])), read(3, &[1]), read(5, &[])]), 1, "is gone");
    assert_eq!(count(g3_monotonic, &[doubt(add(1, 1, &[])), read(3, &[]), read(5, &[1])]), 0, "came late");
    let replaced = [add(1, 1, &[]), doubt(add(3, 2, &[1])), read(5, &[2]), read(7, &[1])];
    assert_eq!(count(g3_monotonic, &replaced), 2, "2 is gone, and 1 is back");
}

#[test]
fn g3_takes_atomic_registers_and_refuses_others() {
    // Overlapping writes, read in either order, one of them after a lost answer.
    let history = [put(1, 10, 1, 5), unknown(2, 2), get(3, 4, 2, 4), get(11, 12, 1, 5)];
    assert_eq!(registers(&history), 0);
    // An unknown write that takes effect long after its end, and one that nobody ever saw.
    assert_eq!(registers(&[unknown(1, 2), put(3, 4, 1, 1), get(5, 6, 1, 1), get(7, 8, 2, 9)]), 0);
    assert_eq!(registers(&[unknown(1, 2), put(3, 4, 1, 1), get(5, 6, 1, 1)]), 0);
    let again = [put(1, 20, 1, 9), unknown(2, 2), get(3, 4, 1, 4), get(5, 6, 2, 5), get(7, 8, 1, 9)];
    assert_eq!(registers(&again), 0, "the value stamped again is another version");
    assert_eq!(registers(&[put(1, 2, 1, 1), put(3, 4, 2, 2), get(5, 6, 1, 1)]), 1, "a stale read");
    let there_and_back = [put(1, 2, 1, 1), unknown(3, 2), get(5, 6, 2, 2), get(7, 8, 1, 1)];
    assert_eq!(registers(&there_and_back), 1, "a read went back");
    assert_eq!(registers(&[get(1, 2, 1, 1), put(3, 4, 1, 1)]), 1, "read before it was written");
    assert_eq!(registers(&[put(1, 2, 1, 1), nothing(3, Some(0))]), 1, "not found");
    let both_written = [put(1, 2, 1, 1), put(3, 4, 2, 2), get(5, 6, 2, 2), get(7, 8, 1, 1)];
    assert_eq!(registers(&both_written), 1, "two stretches overlap");
    let the_other_way = [put(1, 2, 2, 1), unknown(3, 1), get(5, 6, 1, 2), get(7, 8, 2, 1)];
    assert_eq!(registers(&the_other_way), 1, "a read went back, whatever the values' names");
    let early = [put(1, 3, 1, 1), get(2, 10, 2, 2), unknown(5, 2), get(12, 13, 1, 1)];
    assert_eq!(registers(&early), 1, "a version is not older than its write");
    assert_eq!(registers(&[nothing(1, Some(0)), put(3, 4, 1, 1), get(5, 6, 1, 1)]), 0, "empty at first");
    let told = |values, stamp| Op { outcome: Outcome::Read(values, Some(stamp)), ..get(5, 6, 2, 2) };
    let puts = [put(1, 2, 1, 1), put(3, 4, 2, 2)];
    assert_eq!(registers(&[&puts[..], &[told(vec![(2, 2)], 3)]].concat()), 1, "not the context's");
    assert_eq!(registers(&[&puts[..], &[told(vec![(2, 2), (9, 2)], 2)]].concat()), 1, "two values");
    let weak = [put(1, 2, 1, 1), with_level(1, nothing(3, Some(0)))];
    assert_eq!(registers(&weak), 0, "not promised");
}

#[test]
fn g4_finds_what_vanishes() {
    assert_eq!(count(g4_nothing_vanishes, &[put(1, 2, 1, 5), put(3, 4, 2, 6)]), 0);
    assert_eq!(count(g4_nothing_vanishes, &[put(1, 2, 1, 5), put(3, 4, 2, 4)]), 1, "the earlier one wins");
    let weak = [with_level(1, put(1, 2, 1, 5)), with_level(1, put(3, 4, 2, 4))];
    assert_eq!(count(g4_nothing_vanishes, &weak), 0, "not promised");
    assert_eq!(count(g4_nothing_vanishes, &[add(1, 1, &[]), add(3, 2, &[]), read(5, &[1, 2])]), 0);
    assert_eq!(count(g4_nothing_vanishes, &[add(1, 1, &[]), add(3, 2, &[]), read(5, &[2])]), 1, "lost");
    assert_eq!(count(g4_nothing_vanishes, &[add(1, 1, &[]), add(3, 2, &[1]), read(5, &[2])]), 0);
    assert_eq!(count(g4_nothing_vanishes, &[add(1, 1, &[]), read(3, &[]), add(5, 2, &[1])]), 1, "too early");
}

#[test]
fn g5_finds_what_comes_back_and_what_is_swallowed() {
    let g5 = |ops: &[Op]| count(g5_does_not_come_back, ops) + count(g5_is_not_swallowed, ops);
    assert_eq!(g5(&[put(1, 2, 1, 5), delete(3, 6), nothing(5, Some(6))]), 0);
    assert_eq!(g5(&[put(1, 2, 1, 5), delete(3, 6), get(5, 6, 1, 5)]), 1, "came back");
    let anew = [delete(1, 6), put(3, 4, 2, 7)];
    assert_eq!(g5(&[&anew[..], &[get(5, 6, 2, 7)]].concat()), 0);
    assert_eq!(g5(&[&anew[..], &[nothing(5, Some(8))]].concat()), 1, "swallowed");
    assert_eq!(g5(&[add(1, 1, &[]), remove(3, &[1]), read(5, &[])]), 0);
    assert_eq!(g5(&[add(1, 1, &[]), remove(3, &[1]), read(5, &[1])]), 1);
    let anew = [add(1, 1, &[]), remove(3, &[1]), add(5, 2, &[])];
    assert_eq!(g5(&[&anew[..], &[read(7, &[])]].concat()), 1, "swallowed");
    assert_eq!(g5(&[&anew[..], &[read(7, &[2])]].concat()), 0);
}

#[test]
fn g8_finds_lies() {
    assert_eq!(g8_honest(&[put(1, 2, 1, 1), get(3, 4, 1, 1)]).len(), 0);
    assert_eq!(g8_honest(&[refused(put(1, 2, 1, 1)), get(3, 4, 1, 1)]).len(), 1, "refused, and read");
    assert_eq!(g8_honest(&[get(3, 4, 1, 1)]).len(), 1, "from nowhere");
    assert_eq!(g8_honest(&[get(1, 2, 1, 1), put(3, 4, 1, 1)]).len(), 1, "before it was written");
    assert_eq!(g8_honest(&[Op { key: "other".into(), ..put(1, 2, 1, 1) }, get(3, 4, 1, 1)]).len(), 1);
    let other_space = Arc::new(Space { name: "other".into(), ..(*space(Conflicts::Lww, 2, 2)).clone() });
    assert_eq!(g8_honest(&[Op { space: other_space, ..put(1, 2, 1, 1) }, get(3, 4, 1, 1)]).len(), 1);
    assert_eq!(g8_honest(&[put(1, 2, 1, 1), get(3, 4, 1, 2)]).len(), 1, "a stamp that nobody gave");
    assert_eq!(g8_honest(&[add(1, 1, &[]), read(3, &[1, 1])]).len(), 1, "applied twice");
}

#[test]
fn g8_finds_requests_without_an_answer() {
    let late = Op { outcome: Outcome::Late, ..get(100, 200, 1, 1) };
    let span = |node, client, from, to| Span { node, client, from, to };
    assert_eq!(g8_deadlines(&[get(1, 2, 1, 1)], &[], 1).len(), 0);
    assert_eq!(g8_deadlines(std::slice::from_ref(&late), &[], 1).len(), 1);
    assert_eq!(
        g8_deadlines(std::slice::from_ref(&late), &[span(0, None, 150, 300)], 1).len(),
        0,
        "its node was down"
    );
    assert_eq!(
        g8_deadlines(std::slice::from_ref(&late), &[span(1, None, 150, 300)], 1).len(),
        1,
        "another was"
    );
    assert_eq!(
        g8_deadlines(std::slice::from_ref(&late), &[span(0, Some(1), 150, 300)], 2).len(),
        1,
        "another client's"
    );
    assert_eq!(
        g8_deadlines(&[Op { began_ms: 9_000, ended_ms: 9_100, ..late.clone() }], &[span(0, None, 1, 2)], 1)
            .len(),
        1
    );
    let too_late = [span(0, None, 300, 400)];
    assert_eq!(g8_deadlines(std::slice::from_ref(&late), &too_late, 1).len(), 1, "its node was well then");
    let probe = Op { client: 100, ..late.clone() };
    assert_eq!(g8_deadlines(&[probe], &[span(0, None, 150, 300)], 1).len(), 1, "the calm has no excuses");
    let waiting = Op { outcome: Outcome::Waiting, ..get(100, Seq::MAX, 1, 1) };
    assert_eq!(g8_deadlines(&[waiting], &[], 1).len(), 1, "it never ended");
}

#[test]
fn g9_finds_what_is_over_its_limit_or_left() {
    let gauge = |most, left| Gauge { name: "n1: requests".into(), most, limit: 4, left };
    assert_eq!(g9_bounded(&[gauge(4, 0)]).len(), 0);
    assert_eq!(g9_bounded(&[gauge(5, 0)]).len(), 1);
    assert_eq!(g9_bounded(&[gauge(1, 1)]).len(), 1);
}

#[test]
fn f13_finds_stamps_that_go_back_on_any_key() {
    let other = |op: Op| Op { key: "other".into(), ..op };
    let wrong = |ops: &[Op]| f13_stamps_grow(ops, |op| Some(NodeId(op.node as u64))).len();
    assert_eq!(wrong(&[put(1, 2, 1, 5), other(put(3, 4, 2, 6))]), 0);
    assert_eq!(wrong(&[put(1, 2, 1, 5), other(put(3, 4, 2, 5))]), 1, "issued twice");
    assert_eq!(wrong(&[put(1, 2, 1, 5), other(put(3, 4, 2, 4))]), 1);
    assert_eq!(wrong(&[put(1, 2, 1, 9), put(3, 4, 2, 5), put(5, 6, 3, 7)]), 2, "the greatest counts");
    assert_eq!(wrong(&[put(1, 4, 1, 5), other(put(3, 6, 2, 4))]), 0, "they overlap");
    assert_eq!(wrong(&[put(1, 2, 1, 5), Op { node: 1, ..put(3, 4, 2, 4) }]), 0, "of two nodes");
    assert_eq!(f13_stamps_grow(&[put(1, 2, 1, 5), put(3, 4, 2, 4)], |_| None).len(), 0, "forwarded");
}

pub(super) fn map() -> ClusterMap {
    let member = |id: u64| Member {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: "z".into(),
        weight: 1,
        address: format!("n{id}:1"),
    };
    let partitions = Partitions::new(16).expect("valid");
    ClusterMap::bootstrap("test", partitions, (1..=4).map(member).collect()).expect("valid")
}

#[test]
fn g7_finds_replicas_that_differ() {
    let map = map();
    let keyspace = map.keyspace("default").expect("there");
    let partition = map.partitions.of(Position::of("default", b"k"));
    let homes = homes(&map, keyspace, partition);
    let key = schema::record_key(partition, keyspace.id, &Key::new(&b"k"[..], &b""[..]).expect("valid"));
    let held_by = |of: &dyn Fn(NodeId) -> Option<Result<String, String>>| -> Vec<(NodeId, Holding)> {
        let one =
            |id: u64| (NodeId(id), of(NodeId(id)).into_iter().map(|held| (key.clone(), held)).collect());
        (1..=4).map(one).collect()
    };
    let same = |id: NodeId| homes.contains(&id).then(|| Ok("a".to_owned()));
    assert_eq!(g7_converges(&map, &held_by(&same)).len(), 0);
    assert_eq!(
        g7_converges(&map, &held_by(&|id| if id == homes[1] { None } else { same(id) })).len(),
        1,
        "one lacks it"
    );
    let other = |id| if id == homes[1] { Some(Ok("b".to_owned())) } else { same(id) };
    assert_eq!(g7_converges(&map, &held_by(&other)).len(), 1, "one has another");
    let all_bad = |id: NodeId| same(id).map(|_| Err("bits".to_owned()));
    assert_eq!(g7_converges(&map, &held_by(&all_bad)).len(), 1, "all are damaged alike");
    let bad = |id| if id == homes[1] { Some(Err("bits".to_owned())) } else { same(id) };
    assert_eq!(g7_converges(&map, &held_by(&bad)).len(), 1, "one is damaged");
    assert_eq!(g7_converges(&map, &held_by(&|_| Some(Ok("a".to_owned())))).len(), 1, "one is no home");
}

#[test]
fn g7_finds_what_is_no_record() {
    let map = map();
    let count = |key: &[u8]| {
        let held = Holding::from([(key.to_vec(), Ok("a".to_owned()))]);
        g7_converges(&map, &[(NodeId(1), held)]).len()
    };
    assert_eq!(count(&[schema::RECORD_TAG]), 1, "no key of a record");
    let key = Key::new(&b"k"[..], &b""[..]).expect("valid");
    let unknown = schema::record_key(PartitionId(0), KeyspaceId(99), &key);
    assert_eq!(count(&unknown), 1, "of a keyspace that nobody knows");
    let storage = MemoryStorage::new();
    let mut batch = Batch::new();
    batch.put(unknown.clone(), *b"no record");
    storage.write(&batch).expect("written");
    assert!(matches!(holding(&storage).get(&unknown), Some(Err(_))), "damaged bytes are no record");
}

/// A hint may only go when its target holds it, or what replaced it.
#[test]
fn g7_finds_hints_that_are_forgotten() {
    let record = |stamp| {
        let (node, payload) = (NodeId(1), Payload::Value("v".into()));
        codec::encode_record(&Record::Lww(LwwVersion {
            stamp: Stamp(stamp),
            node,
            payload,
            expires_at: None,
            request: None,
        }))
    };
    let storage_key =
        schema::record_key(PartitionId(0), KeyspaceId(1), &Key::new(&b"k"[..], &b""[..]).expect("valid"));
    let limits =
        Limits { window: Duration::from_secs(9), target_bytes: 1_000, total_bytes: 1_000, disk_percent: 10 };
    // What the target holds, and whether the keeper crashes, when the hint is gone.
    let wrong = |held: Option<u64>, crashes: bool| {
        let (log, disk, mut watch) = (MemoryStorage::new(), MemoryStorage::new(), HintWatch::default());
        let mut book = Book::load(&log, limits.clone()).expect("readable");
        let hint = book.add(WallMs(1_000), NodeId(2), &storage_key, &record(5), false).expect("kept");
        log.write(&hint.batch).expect("written");
        let look = |watch: &mut HintWatch| {
            let disk = |node| (node == NodeId(2)).then_some(&disk as &dyn Storage);
            watch.saw(NodeId(1), &log, disk, |_| false).len()
        };
        assert_eq!(look(&mut watch), 0, "it is still there");
        if let Some(stamp) = held {
            let mut batch = Batch::new();
            batch.put(storage_key.clone(), stored::encode(&storage_key, None, &record(stamp)));
            disk.write(&batch).expect("written");
        }
        let page = queue::page(&log, NodeId(2), 0, 1, u64::MAX).expect("readable");
        log.write(&queue::forget(NodeId(2), &page.hints[0])).expect("written");
        if crashes {
            watch.forget(NodeId(1));
        }
        look(&mut watch)
    };
    assert_eq!(wrong(Some(5), false), 0, "home");
    assert_eq!(wrong(Some(6), false), 0, "replaced");
    assert_eq!(wrong(Some(4), false), 1, "older");
    assert_eq!(wrong(None, false), 1, "nothing");
    assert_eq!(wrong(None, true), 0, "a crash takes what was not synced");
}

#[test]
fn f23_finds_nodes_that_go_back_to_an_older_map() {
    let mut watch = MapWatch::default();
    let versions = [(1, 1), (2, 3), (1, 2), (1, 2)];
    assert!(versions.iter().all(|(node, version)| watch.saw(NodeId(*node), MapVersion(*version)).is_none()));
    assert!(watch.saw(NodeId(1), MapVersion(1)).is_some());
}

#[test]
fn f23_finds_maps_that_differ_and_keyspaces_that_are_gone() {
    let first = map();
    let wanted = Space { name: "made".into(), conflicts: Conflicts::Lww, n: 3, r: 2, w: 2, sloppy: false };
    let next = first.with_keyspace(NewKeyspace::with_defaults("made", Conflicts::Lww)).expect("valid");
    let id = next.keyspace("made").expect("there").id.0;
    let made = Creation { at_ms: 1, space: wanted, made: Some(id) };
    let failed = Creation { made: None, ..made.clone() };
    let maps = |a: &ClusterMap, b: &ClusterMap| vec![(NodeId(1), a.clone()), (NodeId(2), b.clone())];
    assert_eq!(f23_one_map(&maps(&next, &next), std::slice::from_ref(&made)).len(), 0);
    assert_eq!(f23_one_map(&maps(&next, &first), &[]).len(), 1, "one is behind");
    let fork = ClusterMap { proposal: 7, ..next.clone() };
    assert_eq!(f23_one_map(&maps(&next, &fork), &[]).len(), 1, "two of one version");
    assert_eq!(f23_one_map(&maps(&first, &first), &[failed]).len(), 0);
    assert_eq!(f23_one_map(&maps(&first, &first), std::slice::from_ref(&made)).len(), 1, "it is gone");
    let stricter = Creation { space: Space { w: 3, ..made.space.clone() }, ..made.clone() };
    assert_eq!(f23_one_map(&maps(&next, &next), &[stricter]).len(), 1, "not as it was asked for");
    let other = Creation { made: Some(id + 1), ..made };
    assert_eq!(f23_one_map(&maps(&next, &next), &[other]).len(), 1, "made twice");
}
