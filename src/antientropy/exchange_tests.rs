//! Two replicas in memory that talk, with what each message would cost.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::forest::list;
use super::*;
use crate::storage::memory::MemoryStorage;
use crate::storage::{Batch, schema};
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::key::Key;
use crate::types::policy::Conflicts;
use crate::version::hlc::Stamp;
use crate::version::record::{Change, Digest, Summary};

const PLACE: Place = Place { partition: PartitionId(3), keyspace: KeyspaceId(1) };

/// A stored value is its version here; merging takes the greater.
fn summary_of(_: &[u8], value: &[u8]) -> Option<Summary> {
    let version: [u8; 8] = value.try_into().ok()?;
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&version);
    Some(Summary { digest: Digest(digest), stamp: Stamp(u64::from_be_bytes(version)) })
}

fn key(number: u32) -> Vec<u8> {
    let key = Key::new(format!("k{number}"), &b""[..]).expect("valid");
    schema::record_key(PLACE.partition, PLACE.keyspace, &key)
}

fn sort_key(number: u32) -> Vec<u8> {
    let key = Key::new(&b"one"[..], format!("{number}")).expect("valid");
    schema::record_key(PLACE.partition, PLACE.keyspace, &key)
}

#[derive(Default)]
struct Replica {
    storage: MemoryStorage,
    forest: Forest,
}

impl Replica {
    fn get(&self, key: &[u8]) -> Option<[u8; 8]> {
        self.storage.get(key).expect("read").and_then(|value| value.try_into().ok())
    }

    /// Whether it was new.
    fn merge(&mut self, key: &[u8], version: [u8; 8]) -> bool {
        let before = self.get(key);
        if before.is_some_and(|before| before >= version) {
            return false;
        }
        let mut batch = Batch { writes: self.forest.before_write(key).into_iter().collect() };
        batch.put(key, version);
        self.storage.write(&batch).expect("written");
        let digest = |version: Option<[u8; 8]>| {
            version.and_then(|version| summary_of(key, &version)).map(|told| told.digest)
        };
        let change = Change { before: digest(before), after: digest(Some(version)), dead_since: None };
        self.forest.written(Mono(0), key, change);
        true
    }

    fn children(&self, node: Node) -> Vec<u64> {
        let kept = kept_children(&self.forest);
        children_of(&kept, &self.storage, &summary_of, PLACE, node).expect("read").expect("whole")
    }

    fn all(&self) -> BTreeMap<Vec<u8>, [u8; 8]> {
        let mut all = BTreeMap::new();
        let (from, to) = schema::slot_range(PLACE.partition, PLACE.keyspace, (0, u16::MAX));
        let to = to.as_deref().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.storage
            .scan(std::ops::Bound::Included(&from), to, false, &mut |key, value| {
                all.insert(key.to_vec(), value.try_into().expect("8 bytes"));
                true
            })
            .expect("read");
        all
    }
}

/// What a conversation cost.
#[derive(Debug, Default)]
struct Cost {
    /// Bytes of sums and lists.
    bytes: usize,
    questions: usize,
    records: u64,
    /// Records that the receiver had already.
    vain: u64,
    longest: usize,
}

/// Bytes of short sums: a mask and those that are not 0.
fn packed(sums: &[u64]) -> usize {
    3 + sums.len().div_ceil(8) + 8 * sums.iter().filter(|sum| **sum != 0).count()
}

/// Runs one conversation; `meanwhile` before each answer.
fn talk(a: &mut Replica, b: &mut Replica, mut meanwhile: impl FnMut(&mut Replica, &mut Replica)) -> Cost {
    let mut cost = Cost::default();
    let (mine, theirs) = (a.forest.root(PLACE).expect("whole"), b.forest.root(PLACE).expect("whole"));
    cost.bytes += 2 * 26;
    if mine.0 == theirs.0 {
        return cost;
    }
    let (mut machine, mut effects) = (Exchange::new(), Vec::new());
    let mut event = Event::Start(mine.1.max(theirs.1));
    loop {
        machine.step(Mono(0), event, &mut effects);
        machine.check_invariants();
        assert_eq!(effects.len(), 1);
        meanwhile(a, b);
        cost.questions += 1;
        event = match effects.remove(0) {
            Effect::Compare(nodes) => {
                let mut children = Vec::new();
                for node in nodes {
                    let (mine, theirs) = (a.children(node), b.children(node));
                    cost.bytes += packed(&mine) + mine.len().div_ceil(8);
                    children.extend(differing(node, &mine, &theirs));
                }
                Event::Differ(children)
            }
            Effect::List(nodes) => list_nodes(a, b, &nodes, Stamp(u64::MAX), &mut cost),
            Effect::Finish { whole, received, sent } => {
                assert!(whole);
                cost.records = received + sent;
                return cost;
            }
        };
    }
}

fn list_nodes(a: &mut Replica, b: &mut Replica, nodes: &[Node], settled: Stamp, cost: &mut Cost) -> Event {
    let (mut done, mut received, mut sent, mut listed) = (0, 0, 0, 0);
    for node in nodes {
        let Some(mine) = list(&a.storage, &summary_of, PLACE, *node, LIST_MAX).expect("read") else {
            if done == 0 {
                return Event::TooMany;
            }
            break;
        };
        listed += mine.len();
        if done > 0 && listed > LIST_ALL {
            break;
        }
        cost.longest = cost.longest.max(mine.len());
        cost.bytes += 3 + 8 * mine.len();
        let shorts: Vec<u64> = mine.iter().map(|record| record.item.short()).collect();
        let at = (PLACE, *node);
        let compared = compare_items(&b.storage, &summary_of, at, &shorts, 1_000).expect("read");
        cost.bytes += 8 * compared.lacking.len() + 24 * compared.extra.len();
        let resolved = resolve(Conflicts::Lww, &mine, &compared, settled);
        cost.bytes += 8 * resolved.fetch.len();
        visit(&b.storage, &summary_of, PLACE, *node, &mut |record| {
            if resolved.fetch.contains(&record.item.short()) {
                let version = b.get(&record.storage_key).expect("listed");
                received += 1;
                cost.vain += u64::from(!a.merge(&record.storage_key, version));
            }
            true
        })
        .expect("read");
        for key in resolved.send.iter().chain(&resolved.send_merged) {
            sent += 1;
            cost.vain += u64::from(!b.merge(key, a.get(key).expect("listed")));
        }
        if !compared.whole {
            break;
        }
        done += 1;
    }
    Event::Listed { nodes: done, received, sent }
}

fn fill(replicas: [&mut Replica; 2], keys: impl Iterator<Item = Vec<u8>>) {
    let [a, b] = replicas;
    for key in keys {
        a.merge(&key, 1_u64.to_be_bytes());
        b.merge(&key, 1_u64.to_be_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever the two hold, one conversation makes them equal, and the next one finds that out at once.
    #[test]
    fn two_replicas_become_equal(
        both in 0..600_u32,
        writes in proptest::collection::vec((any::<bool>(), 0..900_u32, 1..5_u64, any::<bool>()), 0..120),
    ) {
        let (mut a, mut b) = (Replica::default(), Replica::default());
        fill([&mut a, &mut b], (0..both).map(key));
        for (first, number, version, of_one_key) in writes {
            let replica = if first { &mut a } else { &mut b };
            let key = if of_one_key { sort_key(number) } else { key(number) };
            replica.merge(&key, version.to_be_bytes());
        }
        talk(&mut a, &mut b, |_, _| {});
        prop_assert_eq!(a.all(), b.all());
        prop_assert_eq!(talk(&mut a, &mut b, |_, _| {}).questions, 0);
    }

    /// Writes that come meanwhile do no harm: a later conversation finds what this one missed.
    #[test]
    fn writes_meanwhile_are_found_later(seed in any::<u64>()) {
        let (mut a, mut b) = (Replica::default(), Replica::default());
        fill([&mut a, &mut b], (0..300).map(key));
        (0..40).for_each(|n| { a.merge(&key(n * 7), 2_u64.to_be_bytes()); });
        let mut state = seed;
        talk(&mut a, &mut b, |a, b| {
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (number, version) = ((state >> 33) as u32 % 400, 3 + (state >> 60));
                let replica = if state >> 32 & 1 == 0 { &mut *a } else { &mut *b };
                replica.merge(&key(number), version.to_be_bytes());
            }
        });
        talk(&mut a, &mut b, |_, _| {});
        prop_assert_eq!(a.all(), b.all());
    }
}

/// The bar of the issue, for the trees alone: what tells where the differences are is less than twice the records.
#[test]
fn what_it_costs_to_find_one_in_a_hundred() {
    for keys in [390, 4_000, 20_000] {
        let (mut a, mut b) = (Replica::default(), Replica::default());
        fill([&mut a, &mut b], (0..keys).map(key));
        for number in 0..keys / 100 {
            a.merge(&key(number * 97 % keys), 2_u64.to_be_bytes());
            b.merge(&key((number * 89 + 5) % keys), 3_u64.to_be_bytes());
        }
        let (before, theirs) = (a.all(), b.all());
        let differ = before.iter().filter(|(key, version)| theirs[*key] != **version).count();
        let cost = talk(&mut a, &mut b, |_, _| {});
        assert_eq!(a.all(), b.all());
        let each = cost.bytes as f64 / cost.records as f64;
        println!("{keys} keys: {each:.0} bytes a difference, {cost:?}");
        assert_eq!((cost.vain, cost.records), (0, differ as u64), "the newer version alone travels");
        assert!(each < 260.0, "{keys} keys: {each} bytes a difference: {cost:?}");
    }
}

/// Ten thousand sort keys of one partition key are one leaf, and are not listed to find the one that differs.
#[test]
fn a_large_leaf_is_compared_by_its_records() {
    let (mut a, mut b) = (Replica::default(), Replica::default());
    fill([&mut a, &mut b], (0..10_000).map(sort_key));
    a.merge(&sort_key(77), 2_u64.to_be_bytes());
    let cost = talk(&mut a, &mut b, |_, _| {});
    assert_eq!(a.all(), b.all());
    assert!(cost.longest < 100 && cost.bytes < 6_000, "{cost:?}");
    // One side alone has it all: in batches.
    let mut empty = Replica::default();
    let cost = talk(&mut empty, &mut a, |_, _| {});
    assert_eq!((empty.all() == a.all(), cost.records, cost.vain), (true, 10_000, 0));
    let mut empty = Replica::default();
    talk(&mut a, &mut empty, |_, _| {});
    assert_eq!(empty.all(), a.all());
}

fn listed(number: u32, version: u64) -> Listed {
    let storage_key = key(number);
    let told = summary_of(&storage_key, &version.to_be_bytes()).expect("8 bytes");
    Listed { item: super::super::tree::Item::of(&storage_key, told.digest), stamp: told.stamp, storage_key }
}

fn extra(number: u32, version: u64) -> Extra {
    let of = listed(number, version);
    Extra { item: of.item.short(), key: of.key_print(), stamp: of.stamp }
}

#[test]
fn the_newer_version_travels_and_what_is_too_new_does_not() {
    let mine = [listed(1, 5), listed(2, 5), listed(3, 5), listed(4, 50), listed(5, 5), listed(6, 5)];
    let answer = ItemsCompared {
        // 1 is older there, 2 newer, 3 unknown there, 4 older there and too new here, 5 the same, 7 only there, 8 there
        // and too new.
        extra: vec![extra(1, 4), extra(2, 6), extra(4, 6), extra(7, 3), extra(8, 60)],
        lacking: [1, 2, 3, 4].map(|at: usize| mine[at - 1].item.short()).to_vec(),
        whole: true,
    };
    let resolved = resolve(Conflicts::Lww, &mine, &answer, Stamp(40));
    assert_eq!(resolved.fetch, [extra(2, 6).key, extra(7, 3).key]);
    assert_eq!(resolved.send, [key(1), key(3)]);
    assert_eq!((resolved.send_merged.len(), resolved.too_new), (0, 2));
    // Stamps say nothing of siblings: theirs come, and what is here goes back if it adds to them.
    let resolved = resolve(Conflicts::Siblings, &mine, &answer, Stamp(40));
    assert_eq!(resolved.fetch, [extra(1, 4).key, extra(2, 6).key, extra(7, 3).key]);
    assert_eq!((resolved.send, resolved.send_merged), (vec![key(3)], vec![key(1), key(2)]));
}
