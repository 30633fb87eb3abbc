//! The exchange between two replicas in memory, and what it costs.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::records::{Stored, list};
use super::*;
use crate::storage::memory::MemoryStorage;
use crate::storage::{Batch, Storage as _, schema};
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::key::Key;
use crate::types::policy::Conflicts;
use crate::version::hlc::Stamp;
use crate::version::record::{Change, Digest, Summary};

#[path = "exchange_talk.rs"]
mod talk;

use talk::*;

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

/// Two versions that travel alike by one salt: that exchange misses them, the roots still differ, and the next salt tells
/// them apart.
#[test]
fn what_one_salt_hides_the_next_one_shows() {
    let (hiding, other) = (Salt::drawn(1 << 32), Salt::drawn(2 << 32));
    let mut seen = BTreeMap::new();
    let alike = (1_u64..1_000_000).find_map(|version| {
        let earlier = seen.insert(listed(1, version).item.short(hiding), version);
        earlier.map(|earlier| (earlier, version))
    });
    let (older, newer) = alike.expect("of a million pairs of versions many are alike in 32 bits");
    let (mut a, mut b) = (Replica::default(), Replica::default());
    fill([&mut a, &mut b], (2..100).map(key));
    a.merge(&key(1), older.to_be_bytes());
    b.merge(&key(1), newer.to_be_bytes());
    assert_eq!(talk_by(hiding, &mut a, &mut b, |_, _| {}).records, 0);
    assert_ne!(a.forest.root(PLACE), b.forest.root(PLACE));
    assert_eq!(talk_by(other, &mut a, &mut b, |_, _| {}).records, 1);
    assert_eq!((a.all() == b.all(), a.forest.root(PLACE)), (true, b.forest.root(PLACE)));
}

fn listed(number: u32, version: u64) -> Listed {
    let storage_key = key(number);
    let told = summary_of(&storage_key, &version.to_be_bytes()).expect("8 bytes");
    Listed { item: super::super::tree::Item::of(&storage_key, told.digest), stamp: told.stamp, storage_key }
}

fn extra(number: u32, version: u64) -> Extra {
    let of = listed(number, version);
    Extra { key: of.key_print(salt()), stamp: of.stamp }
}

#[test]
fn the_newer_version_travels_and_what_is_too_new_does_not() {
    let mine = [listed(1, 5), listed(2, 5), listed(3, 5), listed(4, 50), listed(5, 5), listed(6, 5)];
    let answer = ItemsCompared {
        // 1 is older there, 2 newer, 3 unknown there, 4 older there and too new here, 5 the same, 7 only there, 8 there
        // and too new.
        extra: vec![extra(1, 4), extra(2, 6), extra(4, 6), extra(7, 3), extra(8, 60)],
        lacking: vec![0, 1, 2, 3],
        whole: true,
    };
    let settling = Settling { after: Stamp(40), until: Stamp(70), awaited: Stamp(55) };
    let resolved = resolve(Conflicts::Lww, (&mine, salt()), &answer, &settling);
    assert_eq!(resolved.fetch, [extra(2, 6).key, extra(7, 3).key]);
    assert_eq!(resolved.send, [key(1), key(3)]);
    assert_eq!((resolved.send_merged.len(), resolved.awaited, resolved.later), (0, 1, 1));
    // Stamps say nothing of siblings: theirs come, and what is here goes back if it adds to them.
    let resolved = resolve(Conflicts::Siblings, (&mine, salt()), &answer, &settling);
    assert_eq!(resolved.fetch, [extra(1, 4).key, extra(2, 6).key, extra(7, 3).key]);
    assert_eq!((resolved.send, resolved.send_merged), (vec![key(3)], vec![key(1), key(2)]));
}

/// Records that take a while to read, by a clock of their own.
struct Slow<'a> {
    stored: Stored<'a>,
    clock: &'a Cell<Mono>,
    takes: Duration,
}

impl Records for Slow<'_> {
    fn each(
        &self,
        place: Place,
        node: Node,
        take: &mut dyn FnMut(&Listed) -> bool,
    ) -> Result<(), StorageError> {
        self.clock.set(self.clock.get() + self.takes);
        self.stored.each(place, node, take)
    }
}

fn slow<'a>(of: &'a Replica, clock: &'a Cell<Mono>, takes: Duration) -> Slow<'a> {
    Slow { stored: of.records(), clock, takes }
}

/// What is done by then is asked, and answered; at least one list, however long it takes.
#[test]
fn a_question_about_lists_is_worked_on_for_a_while_only() {
    let (mut a, mut b) = (Replica::default(), Replica::default());
    for number in 0..200 {
        a.merge(&key(number), 1_u64.to_be_bytes());
        b.merge(&key(number + 100), 1_u64.to_be_bytes());
    }
    let nodes: Vec<Node> = Node::ROOT.children().collect();
    let clock = Cell::new(Mono(7));
    let now = || clock.get();
    let mut whole = None;
    for (takes_ms, done) in [(0, nodes.len()), (2_000, 3), (5_000, 2), (5_001, 1), (60_000, 1)] {
        let takes = Duration::from_millis(takes_ms);
        let lists = own_lists(&slow(&a, &clock, takes), PLACE, &nodes, &now).expect("read");
        assert_eq!(lists.len(), done, "asked, of {takes:?} each");
        let shorts = |list: &[Listed]| list.iter().map(|record| record.item.short(salt())).collect();
        let asked = nodes.iter().map(|node| {
            let listed = list(&a.records(), PLACE, *node, usize::MAX).expect("read").expect("no limit");
            (*node, shorts(&listed))
        });
        let asked: Vec<(Node, Vec<u64>)> = asked.collect();
        let compared = compare_lists(&slow(&b, &clock, takes), (PLACE, salt()), &asked, &now).expect("read");
        assert_eq!(compared.len(), done, "answered, of {takes:?} each");
        let whole = whole.get_or_insert_with(|| (lists.clone(), compared.clone()));
        assert!(whole.0.starts_with(&lists) && whole.1.starts_with(&compared));
    }
}

/// What no clock here can have seen yet is not under way: it was written by a clock that is off.
#[test]
fn what_is_stamped_far_ahead_is_not_left_out() {
    let now = WallMs(1_000_000);
    let settling = Settling::at(now, 500, Stamp::at(now));
    let left_out = |ms: u64| settling.has(Stamp::at(WallMs(ms)));
    assert_eq!(
        [0, 995_000, 995_001, 1_000_500, 1_000_502, 9_000_000].map(left_out),
        [false, false, true, true, false, false]
    );
    assert_eq!(Settling::since(now, 500), WallMs(994_500));
    assert!(!Settling::NONE.has(Stamp(u64::MAX)));
}

/// Thousands of records that are too new stand before one that is not: it is found all the same, below the leaf. If it
/// isn't, since they are in one bucket, the exchange does not say that all was looked at.
#[test]
fn what_stands_behind_many_that_are_too_new_is_found() {
    const LAST: u32 = 999_999;
    let settling = Settling { after: Stamp(40), until: Stamp(70), awaited: Stamp(0) };
    let (mut a, mut b) = (Replica::default(), Replica::default());
    fill([&mut a, &mut b], (0..10).map(sort_key));
    // In the order of their keys.
    (10_000..12_000).for_each(|n| assert!(b.merge(&sort_key(n), 50_u64.to_be_bytes())));
    b.merge(&sort_key(LAST), 5_u64.to_be_bytes());
    let cost = talk_of((salt(), &settling), &mut a, &mut b, |_, _| {});
    assert_eq!(
        (a.get(&sort_key(LAST)), cost.records, cost.whole),
        (Some(5_u64.to_be_bytes()), 1, true),
        "{cost:?}"
    );

    let bucket = |n: u32, version: u64| {
        let digest = summary_of(&[], &version.to_be_bytes()).expect("8 bytes").digest;
        super::super::tree::Item::of(&sort_key(n), digest).0 >> 120
    };
    let (mut a, mut b) = (Replica::default(), Replica::default());
    let of_one = (10_000..).filter(|n| bucket(*n, 50) == bucket(LAST, 5)).take(1_000);
    of_one.for_each(|n| assert!(b.merge(&sort_key(n), 50_u64.to_be_bytes())));
    b.merge(&sort_key(LAST), 5_u64.to_be_bytes());
    fill([&mut a, &mut b], (0..1).map(key));
    let cost = talk_of((salt(), &settling), &mut a, &mut b, |_, _| {});
    assert_eq!((a.get(&sort_key(LAST)), cost.whole), (None, false), "{cost:?}");
}
