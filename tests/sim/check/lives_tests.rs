//! The checks of a keyspace that is made anew, checked.

use std::sync::Arc;

use quoral::ring::layout::{ClusterMap, NewKeyspace};
use quoral::types::ids::{KeyspaceId, MapVersion};
use quoral::types::policy::Conflicts;

use super::lives::{LifeWatch, NAME, f23_changes};
use super::tests::{get, map, nothing, put, space};
use crate::history::{Change, Op, Seq, Space, Wish};
use crate::upkeep::Upkeep;

/// Node 0 knows life 2 from place 10 on, and life 3 from 30 on; node 1 hears of it at 50.
fn watch() -> LifeWatch {
    let mut watch = LifeWatch::default();
    let look = |watch: &mut LifeWatch, seq: Seq, node: usize, life: u32| {
        watch.look(seq, &[(node, MapVersion(u64::from(life)), Some(KeyspaceId(life)))]);
    };
    look(&mut watch, 10, 0, 2);
    look(&mut watch, 11, 1, 2);
    look(&mut watch, 29, 0, 2);
    look(&mut watch, 30, 0, 3);
    look(&mut watch, 50, 1, 3);
    watch
}

#[test]
fn an_id_that_is_given_again_is_another_life() {
    let mut watch = LifeWatch::default();
    for (seq, version, life) in [(10, 2, Some(2)), (29, 2, Some(2)), (30, 3, None), (31, 4, Some(2))] {
        watch.look(seq, &[(0, MapVersion(version), life.map(KeyspaceId))]);
    }
    let old = put(12, 13, 1, 5);
    assert!(
        !watch.check(&[old.clone(), get(40, 41, 1, 5)], &Upkeep::USUAL).is_empty(),
        "read in the next life"
    );
    assert_eq!(watch.check(&[old, nothing(40, Some(0))], &Upkeep::USUAL).len(), 0);
}

fn through(node: usize, op: Op) -> Op {
    Op { node, ..op }
}

#[test]
fn within_a_life_it_is_judged_like_any_and_nothing_of_an_earlier_one_is_read() {
    let count = |ops: &[Op]| watch().check(ops, &Upkeep::USUAL).len();
    let old = || put(12, 13, 1, 5);
    assert_eq!(count(&[old(), get(20, 21, 1, 5)]), 0);
    assert!(count(&[old(), nothing(20, Some(0))]) > 0, "lost in its own life");
    assert_eq!(count(&[old(), nothing(32, Some(0))]), 0, "the next one begins empty");
    assert!(count(&[old(), get(32, 33, 1, 5)]) > 0, "read in the next life");
    assert_eq!(count(&[old(), through(1, get(32, 33, 1, 5))]), 0, "node 1 had not heard");
    assert!(count(&[old(), through(1, get(52, 53, 1, 5))]) > 0, "now it had");
    // Of one that was under way when the life ended nobody knows where it was.
    let late = || put(28, 32, 2, 6);
    assert_eq!(count(&[late(), get(40, 41, 2, 6)]), 0);
    assert_eq!(count(&[late(), nothing(40, Some(0))]), 0);
    assert_eq!(watch().count(&[old(), late(), get(40, 41, 2, 6)]), (2, 2));
}

#[test]
fn what_was_said_of_changes_is_in_the_map() {
    let first = map();
    let mut made = first.with_keyspace(NewKeyspace::with_defaults(NAME, Conflicts::Lww)).expect("valid");
    let (id, asked): (u32, Arc<Space>) =
        (made.keyspace(NAME).expect("there").id.0, space(Conflicts::Lww, 2, 2));
    let gone = ClusterMap { keyspaces: first.keyspaces.clone(), ..made.clone() };
    let change = |wish, begin, done| Change { wish, begin, end: begin + 1, done };
    let create = change(Wish::Create, 1, Some(id));
    let drop = change(Wish::Drop, 3, Some(id));
    let count = |map: &ClusterMap, changes: &[Change]| f23_changes(map, changes, &asked).len();
    assert_eq!(count(&made, std::slice::from_ref(&create)), 0);
    assert_eq!(count(&gone, &[create.clone(), drop.clone()]), 0);
    assert_eq!(count(&first, std::slice::from_ref(&create)), 1, "it was never made");
    assert_eq!(count(&made, &[create.clone(), drop]), 1, "it was dropped, and is there");
    let updates = [change(Wish::Update(1, 3), 3, Some(id)), change(Wish::Update(3, 1), 5, Some(id))];
    let all = [create, updates[0].clone(), updates[1].clone()];
    assert_eq!(count(&made, &all), 1, "the updates are lost");
    let quorums = |map: &mut ClusterMap, r, w| {
        let keyspace = map.keyspaces.iter_mut().find(|keyspace| keyspace.name == NAME).expect("there");
        (keyspace.r, keyspace.w) = (r, w);
    };
    quorums(&mut made, 3, 1);
    assert_eq!(count(&made, &all), 0);
    quorums(&mut made, 1, 3);
    assert_eq!(count(&made, &all), 1, "the first came back");
    let unknown = Change { end: Seq::MAX, done: None, ..updates[0].clone() };
    assert_eq!(count(&made, &[all.to_vec(), vec![unknown]].concat()), 0, "one may have come late");
}
