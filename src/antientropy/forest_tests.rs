//! The forest against a storage that forgets what was not synced.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::super::records::{Stored, leaf_children, list};
use super::*;
use crate::storage::memory::MemoryStorage;
use crate::types::key::Key;
use crate::version::record::Digest;

/// A stored value is its digest here.
fn summary_of(_: &[u8], value: &[u8]) -> Option<Summary> {
    value.try_into().ok().map(|digest| Summary { digest: Digest(digest), stamp: Stamp(0) })
}

fn digest(version: u8) -> Digest {
    Digest([version; 16])
}

fn key(number: u16) -> Vec<u8> {
    let key = Key::new(format!("k{number}"), &b""[..]).expect("valid");
    schema::record_key(PartitionId(number % 2), KeyspaceId(1), &key)
}

fn places() -> [Place; 2] {
    [0, 1].map(|partition| Place { partition: PartitionId(partition), keyspace: KeyspaceId(1) })
}

/// Writes as the commit thread does.
fn write(forest: &mut Forest, storage: &MemoryStorage, storage_key: &[u8], after: Option<Digest>) {
    let before = storage.get(storage_key).expect("read").and_then(|value| value.try_into().ok().map(Digest));
    let mut batch = Batch { writes: forest.before_write(storage_key).into_iter().collect() };
    match after {
        Some(digest) => batch.put(storage_key, digest.0),
        None => batch.delete(storage_key),
    }
    storage.write(&batch).expect("written");
    forest.written(Mono(0), storage_key, Change { before, after, dead_since: None });
}

fn store(forest: &mut Forest, storage: &MemoryStorage, most: usize) {
    let (batch, count) = forest.store(Mono(u64::MAX), most);
    storage.write(&batch).expect("written");
    forest.stored(count);
}

fn rebuild_all(forest: &mut Forest, storage: &MemoryStorage) {
    while forest.health().in_rebuild > 0 {
        forest.rebuild(Mono(0), storage, &summary_of, 3).expect("read");
    }
}

/// A forest made from nothing but the records.
fn from_records(storage: &MemoryStorage) -> Forest {
    let mut forest = Forest::default();
    for place in places() {
        for number in 0..1 << super::super::tree::REGION_BITS {
            forest.doubt(place, number);
        }
    }
    rebuild_all(&mut forest, storage);
    forest
}

fn assert_right(forest: &Forest, storage: &MemoryStorage) {
    let right = from_records(storage);
    for place in places() {
        assert_eq!(forest.root(place), right.root(place));
        let mut nodes = vec![Node::ROOT];
        while let Some(node) = nodes.pop() {
            assert_eq!(forest.children(place, node), right.children(place, node), "{node:?}");
            nodes.extend(node.children().filter(|child| !child.is_leaf()));
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u16, u8),
    Delete(u16),
    Blind(u16, u8),
    Sync,
    Store(usize),
    Rebuild(usize),
    Crash(u64),
    CleanStop,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..40u16, 1..9u8).prop_map(|(k, v)| Step::Put(k, v)),
        2 => (0..40u16).prop_map(Step::Delete),
        1 => (0..40u16, 1..9u8).prop_map(|(k, v)| Step::Blind(k, v)),
        2 => Just(Step::Sync),
        2 => (0..5usize).prop_map(Step::Store),
        3 => (1..4usize).prop_map(Step::Rebuild),
        1 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::CleanStop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Invariants 1 and 2: whatever happens, once nothing is in rebuild the sums are those of the records.
    #[test]
    fn sums_are_those_of_the_records(steps in proptest::collection::vec(any_step(), 0..120)) {
        let storage = MemoryStorage::default();
        let mut forest = Forest::load(&storage).expect("read");
        for step in steps {
            match step {
                Step::Put(k, v) => write(&mut forest, &storage, &key(k), Some(digest(v))),
                Step::Delete(k) => write(&mut forest, &storage, &key(k), None),
                Step::Blind(k, v) => {
                    let mut batch = Batch { writes: forest.before_write(&key(k)).into_iter().collect() };
                    batch.put(key(k), digest(v).0);
                    storage.write(&batch).expect("written");
                    forest.written_blindly(&key(k));
                }
                Step::Sync => storage.sync().expect("synced"),
                Step::Store(most) => store(&mut forest, &storage, most),
                Step::Rebuild(most) => {
                    forest.rebuild(Mono(0), &storage, &summary_of, most).expect("read");
                }
                Step::Crash(seed) => {
                    storage.crash(&mut StdRng::seed_from_u64(seed));
                    forest = Forest::load(&storage).expect("read");
                }
                Step::CleanStop => {
                    rebuild_all(&mut forest, &storage);
                    store(&mut forest, &storage, usize::MAX);
                    storage.sync().expect("synced");
                    forest = Forest::load(&storage).expect("read");
                    prop_assert_eq!(forest.health().in_rebuild, 0, "nothing to do after a clean stop");
                }
            }
        }
        rebuild_all(&mut forest, &storage);
        assert_right(&forest, &storage);
    }
}

#[test]
fn a_crash_costs_the_regions_that_were_written_to_and_no_other() {
    let storage = MemoryStorage::default();
    let mut forest = Forest::default();
    (0..200).for_each(|k| write(&mut forest, &storage, &key(k), Some(digest(1))));
    store(&mut forest, &storage, usize::MAX);
    let touched: BTreeMap<_, _> =
        (0..5).map(|k| (schema::split_slot(&key(k)).map(|s| s.2 >> 10), k)).collect();
    (0..5).for_each(|k| write(&mut forest, &storage, &key(k), Some(digest(2))));
    storage.sync().expect("synced");
    storage.crash(&mut StdRng::seed_from_u64(1));
    let mut forest = Forest::load(&storage).expect("read");
    assert!(forest.health().in_rebuild <= 5 && forest.health().in_rebuild >= touched.len());
    assert_eq!(forest.root(places()[0]), None, "nothing is told of a tree in rebuild");
    rebuild_all(&mut forest, &storage);
    assert_right(&forest, &storage);
    assert_eq!(forest.root(places()[0]).expect("whole").1, 100);
}

#[test]
fn a_damaged_region_is_rebuilt() {
    let storage = MemoryStorage::default();
    let mut forest = Forest::default();
    (0..50).for_each(|k| write(&mut forest, &storage, &key(k), Some(digest(1))));
    store(&mut forest, &storage, usize::MAX);
    let mut keys = Vec::new();
    storage
        .scan(Bound::Included(b"t"), Bound::Excluded(b"u"), false, &mut |key, _| {
            keys.push(key.to_vec());
            true
        })
        .expect("read");
    let mut batch = Batch::new();
    batch.put(keys[0].clone(), &b"junk"[..]);
    batch.put(keys[1].clone(), schema::seal(&keys[1], b"\x01\x05\x00\x09"));
    storage.write(&batch).expect("written");
    let mut forest = Forest::load(&storage).expect("read");
    assert_eq!(forest.health().in_rebuild, 2);
    rebuild_all(&mut forest, &storage);
    assert_right(&forest, &storage);
}

#[test]
fn a_keyspace_that_is_gone_leaves_nothing() {
    let storage = MemoryStorage::default();
    let mut forest = Forest::default();
    (0..50).for_each(|k| write(&mut forest, &storage, &key(k), Some(digest(1))));
    store(&mut forest, &storage, 20);
    let batch = forest.forget(|keyspace| keyspace == KeyspaceId(1));
    storage.write(&batch).expect("written");
    assert_eq!(forest.health(), Health::default());
    assert_eq!(Forest::load(&storage).expect("read").health(), Health::default());
}

#[test]
fn a_list_is_of_its_node_and_bounded() {
    let storage = MemoryStorage::default();
    let mut forest = Forest::default();
    // Sort keys of one partition key: one leaf.
    for number in 0..300_u16 {
        let key = Key::new(&b"p"[..], format!("{number}")).expect("valid");
        let key = schema::record_key(PartitionId(0), KeyspaceId(1), &key);
        write(&mut forest, &storage, &key, Some(digest(1)));
    }
    let (place, leaf) = (places()[0], Node::leaf_of(schema::slot(b"p")));
    let records = Stored { storage: &storage, summary_of: &summary_of };
    let all = |node, most| list(&records, place, node, most).expect("read");
    assert_eq!(all(leaf, 299), None);
    let listed = all(leaf, 300).expect("they fit");
    assert_eq!(listed.len(), 300);
    let sums = leaf_children(&records, place, leaf).expect("read");
    let mut seen = 0;
    for (child, sum) in leaf.children().zip(sums) {
        let listed = all(child, 300).expect("they fit");
        seen += listed.len();
        assert_eq!(listed.iter().fold(Sum::default(), |sum, listed| sum.plus(listed.item)), sum);
    }
    assert_eq!(seen, 300);
}
