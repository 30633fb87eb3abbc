//! Large leaves are read once.

use std::cell::Cell;

use super::super::forest::Forest;
use super::*;
use crate::storage::Batch;
use crate::storage::memory::MemoryStorage;
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::key::Key;
use crate::version::hlc::Stamp;
use crate::version::record::{Change, Digest, Summary};

const PLACE: Place = Place { partition: PartitionId(3), keyspace: KeyspaceId(1) };
const RECORDS: u32 = 1_000;

fn write(storage: &MemoryStorage, forest: &mut Forest, number: u32) {
    let key = Key::new(&b"p"[..], format!("{number}")).expect("valid");
    let key = schema::record_key(PLACE.partition, PLACE.keyspace, &key);
    let mut batch = Batch { writes: forest.before_write(&key).into_iter().collect() };
    batch.put(key.clone(), [7; 16]);
    storage.write(&batch).expect("written");
    let change = Change { before: None, after: Some(Digest([7; 16])), dead_since: None };
    forest.written(Mono(0), &key, change);
}

#[test]
fn a_large_leaf_is_read_once_until_it_changes() {
    let (storage, mut forest, leaves) = (MemoryStorage::default(), Forest::default(), Leaves::default());
    (0..RECORDS).for_each(|number| write(&storage, &mut forest, number));
    let read = Cell::new(0);
    let summary_of = |_: &[u8], value: &[u8]| {
        read.set(read.get() + 1);
        value.try_into().ok().map(|digest| Summary { digest: Digest(digest), stamp: Stamp(0) })
    };
    let leaf = Node::leaf_of(schema::slot(b"p"));
    let stored = || Stored { storage: &storage, summary_of: &summary_of };
    // How many records all parts have, and how many were read for it.
    let count = |forest: &Forest, now, old_will_do| {
        read.set(0);
        let sum = |place, node| forest.sum(place, node);
        let records = Remembered { stored: stored(), leaves: &leaves, sum: &sum, now, old_will_do };
        assert_eq!(leaf_children(&records, PLACE, leaf).expect("read").len(), leaf.fan_out());
        let of = |node| list(&records, PLACE, node, usize::MAX).expect("read").expect("no limit").len();
        let all: usize = leaf.children().map(of).sum();
        (all, read.get())
    };
    assert_eq!(count(&forest, Mono(0), false), (1_000, 1_000));
    assert_eq!(count(&forest, Mono(0), false), (1_000, 0));
    write(&storage, &mut forest, RECORDS);
    // Who only looks up where a record is takes what there was.
    assert_eq!(count(&forest, Mono(0), true), (1_000, 0));
    assert_eq!(count(&forest, Mono(0), false), (1_001, 1_001));
    // What has lain for long is read again, whatever its sum.
    let later = Mono(0) + KEPT_FOR;
    assert_eq!(count(&forest, later, true), (1_001, 1_001));
    // The same without memory.
    let of = |node| list(&stored(), PLACE, node, usize::MAX).expect("read").expect("no limit");
    let sum = |place, node| forest.sum(place, node);
    let records = Remembered { stored: stored(), leaves: &leaves, sum: &sum, now: later, old_will_do: false };
    for node in leaf.children() {
        assert_eq!(list(&records, PLACE, node, usize::MAX).expect("read"), Some(of(node)));
    }
}

#[test]
fn a_leaf_that_changes_while_it_is_read_is_read_again() {
    let (storage, mut forest, leaves) = (MemoryStorage::default(), Forest::default(), Leaves::default());
    (0..10).for_each(|number| write(&storage, &mut forest, number));
    let leaf = Node::leaf_of(schema::slot(b"p"));
    let summary_of = |_: &[u8], _: &[u8]| Some(Summary { digest: Digest([7; 16]), stamp: Stamp(0) });
    let changes = Cell::new(true);
    let sums = [Sum::default(), forest.sum(PLACE, leaf).expect("whole")];
    let looks = Cell::new(0);
    let sum = |_, _| {
        looks.set(looks.get() + 1);
        Some(sums[usize::from(!changes.get() || looks.get() % 2 == 0)])
    };
    let stored = Stored { storage: &storage, summary_of: &summary_of };
    let records = Remembered { stored, leaves: &leaves, sum: &sum, now: Mono(0), old_will_do: false };
    assert!(records.leaf(PLACE, leaf).expect("read").is_some());
    changes.set(false);
    assert!(leaves.kept().iter().all(|kept| kept.sum.is_none()));
    records.leaf(PLACE, leaf).expect("read");
    assert!(leaves.kept().iter().all(|kept| kept.sum == Some(sums[1])));
}

/// Of a leaf that is too large to be kept each part is read by itself, and it is not tried again for a while.
#[test]
fn a_leaf_that_is_too_large_is_read_part_by_part() {
    let (storage, mut forest, leaves) = (MemoryStorage::default(), Forest::default(), Leaves::of(100));
    (0..RECORDS).for_each(|number| write(&storage, &mut forest, number));
    let leaf = Node::leaf_of(schema::slot(b"p"));
    let read = Cell::new(0_u64);
    let summary_of = |_: &[u8], _: &[u8]| {
        read.set(read.get() + 1);
        Some(Summary { digest: Digest([7; 16]), stamp: Stamp(0) })
    };
    let stored = || Stored { storage: &storage, summary_of: &summary_of };
    let plain = leaf_children(&stored(), PLACE, leaf).expect("read");
    // What is read for the leaf's sums, and then for each of its parts.
    let count = |forest: &Forest, now: Mono| {
        read.set(0);
        let sum = |place, node| forest.sum(place, node);
        let records = Remembered { stored: stored(), leaves: &leaves, sum: &sum, now, old_will_do: false };
        let sums = leaf_children(&records, PLACE, leaf).expect("read");
        let of_sums = read.replace(0);
        let parts: Vec<usize> = leaf
            .children()
            .map(|node| list(&records, PLACE, node, usize::MAX).expect("read").expect("no limit").len())
            .collect();
        (sums, of_sums, parts.iter().sum::<usize>(), read.get())
    };
    let (all, parts) = (u64::from(RECORDS), leaf.fan_out() as u64);
    assert_eq!(count(&forest, Mono(0)), (plain.clone(), 101 + all, 1_000, parts * all));
    assert_eq!(count(&forest, Mono(0)), (plain, all, 1_000, parts * all));
    assert!(leaves.kept().iter().all(|kept| kept.records.is_none()));
    write(&storage, &mut forest, RECORDS);
    let (_, of_sums, listed, _) = count(&forest, Mono(0));
    assert_eq!((of_sums, listed), (all + 1, 1_001), "a write or two don't change that");
    assert_eq!(count(&forest, Mono(0) + KEPT_FOR).1, 101 + all + 1);
}
