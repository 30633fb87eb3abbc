//! Tests of changes of the keyspaces: each rule, and the races that its memory is for.

use super::*;
use crate::ring::layout::Member;
use crate::ring::partition::Partitions;
use crate::types::ids::NodeId;
use crate::types::policy::Conflicts;

fn boot() -> ClusterMap {
    let member = |id: u64| Member {
        id: NodeId(id),
        name: format!("n{id}"),
        zone: format!("z{id}"),
        weight: 1,
        address: format!("n{id}:7401"),
    };
    let partitions = Partitions::new(16).expect("a power of two");
    ClusterMap::bootstrap("c", partitions, [1, 2, 3].map(member).to_vec()).expect("valid")
}

fn create(name: &str) -> Edit {
    Edit::new(KeyspaceChange::Create(NewKeyspace::with_defaults(name, Conflicts::Lww)), None)
}

fn update(name: &str, r: u8) -> Edit {
    let update = KeyspaceUpdate { r: Some(r), ..KeyspaceUpdate::default() };
    Edit::new(KeyspaceChange::Update(name.into(), update), None)
}

fn drop_of(name: &str) -> Edit {
    Edit::new(KeyspaceChange::Drop(name.into()), None)
}

/// The map after a change, which every voter takes for one that follows.
#[track_caller]
fn after(map: &ClusterMap, edit: &mut Edit) -> ClusterMap {
    match edit.next(map) {
        Ok(Next::Propose(next, _)) => {
            assert_eq!(map.check_next(&next), Ok(()));
            assert_eq!(ClusterMap::decode(&next.encode()).as_ref(), Ok(&next));
            next
        }
        other => panic!("nothing is proposed: {other:?}"),
    }
}

#[test]
fn an_update_changes_what_it_names_and_never_the_id() {
    let map = after(&boot(), &mut create("carts"));
    let before = map.keyspace("carts").expect("made").clone();
    let everything = KeyspaceUpdate { r: Some(1), w: Some(3), sloppy: Some(true), ttl_ms: Some(Some(5)) };
    let mut edit = Edit::new(KeyspaceChange::Update("carts".into(), everything), None);
    let next = after(&map, &mut edit);
    let now = next.keyspace("carts").expect("there").clone();
    assert_eq!(now, Keyspace { r: 1, w: 3, sloppy: true, ttl_ms: Some(5), ..before });
    let for_ever = KeyspaceUpdate { ttl_ms: Some(None), ..KeyspaceUpdate::default() };
    let last = after(&next, &mut Edit::new(KeyspaceChange::Update("carts".into(), for_ever), None));
    assert_eq!(last.keyspace("carts"), Some(&Keyspace { ttl_ms: None, ..now }));
    // The same again is no new version.
    assert!(matches!(edit.next(&next), Ok(Next::Done(_, version)) if version == next.version));
    after(&map, &mut update(DEFAULT_KEYSPACE, 1));
}

#[test]
fn what_breaks_a_rule_names_field_limit_and_value() {
    let map = boot();
    let refused = |edit: &mut Edit, parts: &[&str]| {
        let problem = edit.next(&map).expect_err("refused").to_string();
        assert!(parts.iter().all(|part| problem.contains(part)), "{parts:?}: {problem}");
    };
    refused(&mut update("default", 0), &["r", "0", "at least 1"]);
    refused(&mut update("default", 4), &["r", "4", "3"]);
    refused(&mut drop_of("default"), &["name", "default"]);
    refused(&mut update("none", 1), &["none"]);
    refused(&mut drop_of("none"), &["none"]);
    assert_eq!(update("none", 1).next(&map), Err(KeyspaceError::Unknown("none".into())));
}

#[test]
fn an_id_is_never_given_again() {
    let made = after(&boot(), &mut create("carts"));
    let old = made.keyspace("carts").expect("made").id;
    assert!(!made.has_dropped(old) && made.dropped() == 0);
    let dropped = after(&made, &mut drop_of("carts"));
    assert!(dropped.keyspace("carts").is_none() && dropped.has_dropped(old));
    let again = after(&dropped, &mut create("carts"));
    let new = again.keyspace("carts").expect("made").id;
    assert!(new > old);
    assert!(again.has_dropped(old) && !again.has_dropped(new) && again.dropped() == 1);
    assert!(!made.has_dropped(new), "an older map does not take what it does not know for dropped");
    let mut reused = dropped.clone();
    (reused.version, reused.next_keyspace) = (again.version, old);
    assert!(dropped.check_next(&reused).is_err(), "no voter takes a map that gives ids again");
    let mut revived = made.clone();
    revived.version = again.version;
    assert!(dropped.check_next(&revived).is_err(), "nor one that brings a dropped keyspace back");
}

#[test]
fn a_change_is_about_the_keyspace_that_it_met_first() {
    let made = after(&boot(), &mut create("carts"));
    let dropped = after(&made, &mut drop_of("carts"));
    let again = after(&dropped, &mut create("carts"));
    for mut edit in [update("carts", 1), drop_of("carts")] {
        after(&made, &mut edit);
        assert_eq!(edit.clone().next(&dropped), Err(KeyspaceError::Unknown("carts".into())));
        assert_eq!(edit.next(&again), Err(KeyspaceError::Replaced("carts".into())));
    }
}

#[test]
fn a_loser_goes_on_with_the_newer_map() {
    let map = after(&boot(), &mut create("carts"));
    let mut slow = update("carts", 1);
    after(&map, &mut slow);
    let w = KeyspaceUpdate { w: Some(3), ..KeyspaceUpdate::default() };
    let other = after(&map, &mut Edit::new(KeyspaceChange::Update("carts".into(), w), None));
    let both = after(&other, &mut slow);
    let now = both.keyspace("carts").expect("there");
    assert_eq!((now.r, now.w), (1, 3), "neither is lost");
    let mut second = create("carts");
    assert!(matches!(second.next(&map), Err(KeyspaceError::Exists(_))));
}

#[test]
fn with_a_version_nothing_is_done_on_another() {
    let map = boot();
    let on = |version| Edit { if_version: Some(version), ..update("default", 1) };
    let next = after(&map, &mut on(MapVersion(1)));
    let moved = KeyspaceError::Moved { wanted: MapVersion(1), now: MapVersion(2) };
    assert_eq!(on(MapVersion(1)).next(&next), Err(moved.clone()), "not even what would change nothing");
    let early = Err(KeyspaceError::Moved { wanted: MapVersion(7), now: MapVersion(2) });
    assert_eq!(on(MapVersion(7)).next(&next), early);
    assert!(moved.to_string().contains('1') && moved.to_string().contains('2'), "{moved}");
}

/// Its own proposal may be in a version that it never saw: then it says so, and does not do it twice.
#[test]
fn what_may_be_done_already_is_not_done_again() {
    let map = after(&boot(), &mut create("carts"));
    let carts = map.keyspace("carts").expect("made").clone();
    let doubtful = |mut edit: Edit, made: &Keyspace| {
        edit.next(&map).ok();
        edit.is_in_doubt(made.clone());
        edit
    };
    // An update, and somebody else's after it: ours was before it, or never.
    let theirs = after(&map, &mut update("carts", 3));
    assert_eq!(doubtful(update("carts", 1), &carts).next(&theirs), Err(KeyspaceError::InDoubt));
    assert!(matches!(doubtful(update("carts", 3), &carts).next(&theirs), Ok(Next::Done(..))));
    // A drop: gone is gone; still there is not dropped.
    let gone = after(&map, &mut drop_of("carts"));
    let again = after(&gone, &mut create("carts"));
    for now in [&gone, &again] {
        assert!(matches!(doubtful(drop_of("carts"), &carts).next(now), Ok(Next::Done(..))));
    }
    after(&theirs, &mut doubtful(drop_of("carts"), &carts));
    // A creation: its id is given, to its like, or to one that is gone; or to another, then it was not ours.
    let mut creation = create("new");
    let Ok(Next::Propose(_, made)) = creation.next(&map) else { panic!("proposed") };
    creation.is_in_doubt(made);
    let ours = after(&map, &mut create("new"));
    let changed = after(&ours, &mut update("new", 1));
    let dropped = after(&ours, &mut drop_of("new"));
    for now in [&ours, &changed, &dropped] {
        assert_eq!(creation.clone().next(now), Err(KeyspaceError::InDoubt));
    }
    let another = after(&map, &mut create("another"));
    after(&another, &mut creation);
    // With a version it can't look further.
    let mut on_version = Edit { if_version: Some(map.version), ..doubtful(update("carts", 1), &carts) };
    assert_eq!(on_version.next(&theirs), Err(KeyspaceError::InDoubt));
}
