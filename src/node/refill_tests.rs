//! What a refilled node must not do, rule by rule.

use super::*;
use crate::ring::layout::Member;
use crate::ring::partition::Partitions;
use crate::storage::memory::MemoryStorage;

const ME: NodeId = NodeId(3);
const NOW: WallMs = WallMs(1_000_000);

fn map(members: u64, version: u64) -> ClusterMap {
    let member = |id: u64| Member {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: "z".into(),
        weight: 1,
        address: format!("127.0.0.1:{id}"),
    };
    let partitions = Partitions::new(16).expect("a power of two");
    let map = ClusterMap::bootstrap("c", partitions, (1..=members).map(member).collect()).expect("a map");
    ClusterMap { version: MapVersion(version), ..map }
}

fn places(map: &ClusterMap) -> Vec<Place> {
    all_places(map, ME).collect()
}

/// A node that two others took in place of a lost one, at map version 5 and stamps 100 and 200.
fn replaced() -> Refill {
    let refill = Refill::default();
    refill.heard(NodeId(1), false, MapVersion(4), Stamp(100));
    assert!(!refill.is_filling(), "one that does not know the old disk says nothing of it");
    refill.heard(NodeId(2), true, MapVersion(5), Stamp(200));
    assert!(refill.is_filling());
    refill
}

fn begun() -> (Refill, MemoryStorage) {
    let (refill, storage) = (replaced(), MemoryStorage::default());
    storage.write(&refill.begin(NOW).expect("due")).expect("written");
    assert_eq!(refill.begin(NOW), None, "once");
    (refill, storage)
}

/// What the node knows after a crash.
fn restarted(storage: &MemoryStorage) -> Refill {
    Refill::load(storage).expect("it can be read")
}

#[test]
fn a_node_that_is_whole_is_asked_everything() {
    let refill = restarted(&MemoryStorage::default());
    refill.heard(NodeId(1), false, MapVersion(9), Stamp(100));
    let map = map(3, 9);
    assert!(places(&map).iter().all(|place| !refill.lacks(*place)));
    assert_eq!(refill.judge(places(&map)[0], &[NodeId(1), ME], ME), Fresh::Take);
    assert_eq!((refill.begin(NOW), refill.view(&map, ME)), (None, None));
    assert_eq!((refill.abstains(MapVersion(10), 3), refill.forgets_requests(NOW)), (None, false));
}

/// F18: what is not back is not answered; it is back when all others have given what they have.
#[test]
fn f18_a_tree_counts_when_all_others_have_given_theirs() {
    let (refill, storage) = begun();
    let map = map(3, 7);
    let all = places(&map);
    assert_eq!(all.len(), 16);
    assert_eq!(refill.taken(NodeId(1), &all, &map, ME), None);
    assert!(all.iter().all(|place| refill.lacks(*place)));
    let batch = refill.taken(NodeId(2), &all[..10], &map, ME).expect("some are back");
    storage.write(&batch).expect("written");
    let lacking = |refill: &Refill| all.iter().filter(|place| refill.lacks(**place)).count();
    assert_eq!(lacking(&refill), 6);
    let view = refill.view(&map, ME).expect("refilled");
    assert_eq!((view.trees, view.done, view.waits_for), (16, 10, BTreeSet::from([NodeId(2)])));

    // Over a restart what was back stays so; of the rest all are asked again.
    let refill = restarted(&storage);
    assert_eq!(lacking(&refill), 6);
    assert!(refill.wants(NodeId(1), all[10]) && !refill.wants(NodeId(1), all[9]));
    refill.taken(NodeId(2), &all[10..], &map, ME);
    assert_eq!(lacking(&refill), 6);
    let batch = refill.taken(NodeId(1), &all[10..], &map, ME).expect("all are back");
    assert!(!refill.is_filling());
    storage.write(&batch).expect("written");
    let refill = restarted(&storage);
    assert!(!refill.is_filling());
    // A peer that met the directory late has nothing new to say.
    refill.heard(NodeId(2), true, MapVersion(5), Stamp(200));
    assert!(!refill.is_filling());
}

#[test]
fn trees_of_an_old_map_are_not_all() {
    let (refill, _) = begun();
    let (old, all) = (map(4, 6), places(&map(4, 6)));
    for peer in [1, 2, 4] {
        refill.taken(NodeId(peer), &all, &old, ME);
    }
    assert!(refill.is_filling(), "version 6 is below the barrier, and n4 was not heard");
    assert!(all.iter().all(|place| !refill.lacks(*place)), "what is known is back");
    refill.heard(NodeId(4), false, MapVersion(7), Stamp(1));
    refill.taken(ME, &[], &old, ME);
    assert!(refill.is_filling(), "n4 has a newer map");
    let newer = map(4, 7);
    assert!(refill.taken(ME, &[], &newer, ME).is_some());
    assert!(!refill.is_filling());
    let (refill, _) = begun();
    for peer in [1, 2, 4] {
        refill.taken(NodeId(peer), &all, &newer, ME);
    }
    assert!(!refill.is_filling(), "n4 was not heard, but the barrier is reached");
}

/// A write that was finished with the lost disk's word has a stamp below those of all who hold it: what is acknowledged
/// here must be above.
#[test]
fn a_fresh_write_is_stamped_above_what_the_lost_disk_may_have_known() {
    let (refill, storage) = begun();
    let map = map(4, 7);
    let place = places(&map)[0];
    let homes = [NodeId(1), NodeId(2), ME];
    assert_eq!(refill.judge(place, &homes, ME), Fresh::Above(Stamp(200)));
    // Said again later, it stays the same: an answer must not be taken back.
    refill.heard(NodeId(1), false, MapVersion(4), Stamp(900));
    assert_eq!(refill.judge(place, &homes, ME), Fresh::Above(Stamp(200)));
    assert_eq!(refill.judge(place, &[NodeId(1), NodeId(4), ME], ME), Fresh::NotYet);
    assert_eq!(restarted(&storage).judge(place, &homes, ME), Fresh::NotYet, "clocks are heard anew");
    for peer in [1, 2, 4] {
        refill.taken(NodeId(peer), &[place], &map, ME);
    }
    assert_eq!(refill.judge(place, &homes, ME), Fresh::Take);
}

#[test]
fn what_was_remembered_is_forgotten_for_ten_minutes() {
    let refill = replaced();
    assert!(refill.forgets_requests(NOW));
    let (refill, storage) = begun();
    let memory = u64::try_from(REQUEST_MEMORY.as_millis()).expect("small");
    for refill in [refill, restarted(&storage)] {
        assert!(refill.forgets_requests(WallMs(NOW.0 + memory)));
        assert!(!refill.forgets_requests(WallMs(NOW.0 + memory + 1)));
    }
}

#[test]
fn it_votes_on_no_map_that_the_lost_disk_may_have_voted_on() {
    assert!(replaced().abstains(MapVersion(1_000), 3).is_some(), "not known yet how far that is");
    let (refill, storage) = begun();
    for refill in [refill, restarted(&storage)] {
        assert_eq!(refill.barrier(), Some(MapVersion(7)));
        for (asked, abstains) in [(2, true), (6, true), (7, true), (8, false)] {
            assert_eq!(refill.abstains(MapVersion(asked), 3).is_some(), abstains, "{asked}");
        }
        assert_eq!(refill.abstains(MapVersion(6), 2), None, "the other one remembers all votes that count");
    }
}

#[test]
fn who_said_that_it_is_refilled_is_asked_last_for_a_while() {
    let refill = Refill::default();
    let at = Mono(5_000_000);
    refill.refused_by(NodeId(1), at);
    assert!(refill.is_asked_last(NodeId(1), at) && !refill.is_asked_last(NodeId(2), at));
    assert!(!refill.is_asked_last(NodeId(1), at + ASKED_LAST));
}
