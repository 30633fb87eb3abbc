//! What is deleted stays deleted, by hand: what others shipped (`docs/testing.md`), and what this product once did.

use std::sync::Arc;
use std::time::Duration;

use quoral::canary::Canary;
use quoral::ring::preflist::homes;
use quoral::types::key::Position;
use quoral::types::time::WallMs;

use crate::canaries::has_canaries;
use crate::check::state::{g5_purged, holding};
use crate::check::{Finding, check_with, g5_expired_stays_expired};
use crate::client::{Ask, Client};
use crate::clock::EPOCH_MS;
use crate::cluster::{Cluster, Setup, Weather};
use crate::draw::default_space;
use crate::history::{Op, Space};
use crate::upkeep::{BRIEF, Purge, Upkeep};

/// Tombstones go after two seconds, and then some.
const HASTY: Upkeep = Upkeep {
    interval_ms: 300,
    read_repair: true,
    window_ms: Some(600),
    purge: Some(Purge { grace_ms: 2_000, age_ms: 800 }),
    rate_bytes: None,
};

fn cluster(
    nodes: usize,
    offsets: u64,
    space: &Arc<Space>,
    upkeep: Upkeep,
    canary: Option<Canary>,
) -> Cluster {
    let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 1 };
    let offsets: Vec<u64> = (0..nodes as u64).map(|node| node % 2 * offsets).collect();
    let plain = Setup::plain(7, &offsets, weather);
    let spaces = vec![plain.spaces[0].clone(), space.clone()];
    let mut cluster = Cluster::new(Setup { spaces, upkeep, canary, ..plain });
    cluster.until_ready(10_000);
    cluster
}

/// A keyspace of three replicas.
fn space(name: &str, sloppy: bool) -> Arc<Space> {
    Arc::new(Space { name: name.into(), sloppy, ..default_space(3) })
}

/// A key's home replicas, in order, and the other nodes.
fn places(cluster: &Cluster, space: &Space, key: &str) -> (Vec<usize>, Vec<usize>) {
    let map = &cluster.first_map;
    let keyspace = map.keyspace(&space.name).expect("it is in the first map");
    let homes = homes(map, keyspace, map.partitions.of(Position::of(&space.name, key.as_bytes())));
    let index = |node| cluster.hosts.iter().position(|host| host.id == node).expect("a node");
    let homes: Vec<usize> = homes.into_iter().map(index).collect();
    let others = (0..cluster.hosts.len()).filter(|node| !homes.contains(node)).collect();
    (homes, others)
}

fn ask(node: usize, space: &Arc<Space>, level: u8) -> Ask {
    Ask { node, space: space.clone(), key: "k".into(), timeout_ms: 1_000, level: Some(level) }
}

/// What one client does.
#[derive(Clone, Copy, PartialEq)]
enum Deed {
    Put,
    Delete,
    Get,
}

/// Does one thing, which succeeds; what came of it.
fn does(cluster: &mut Cluster, deed: Deed, ask: Ask) -> Op {
    let number = cluster.recorder.ops().len();
    let (names, recorder) = (cluster.node_names(), cluster.recorder.clone());
    cluster.client(&format!("client{number}"), async move {
        let mut client = Client::new(number, &names, Duration::from_millis(500), recorder);
        let done = match deed {
            Deed::Put => client.put(&ask).await,
            Deed::Delete => client.delete(&ask).await,
            Deed::Get => client.get(&ask).await,
        };
        assert!(done, "operation {number} failed");
    });
    cluster.run_clients();
    cluster.recorder.ops().pop().expect("there is one")
}

fn run(cluster: &mut Cluster, ms: u64) {
    for _ in 0..ms {
        cluster.step();
    }
}

/// What is dead and stored yet, on nodes that run.
fn dead(cluster: &Cluster) -> Vec<Finding> {
    let now = WallMs(EPOCH_MS + cluster.now_ms());
    cluster.hosts.iter().flat_map(|host| g5_purged(host.id, &*host.storage, now)).collect()
}

/// How many records each node stores.
fn records(cluster: &Cluster) -> Vec<usize> {
    cluster.hosts.iter().map(|host| holding(&*host.storage).len()).collect()
}

fn until_purged(cluster: &mut Cluster) {
    let until = cluster.now_ms() + 30_000;
    while !dead(cluster).is_empty() {
        assert!(cluster.now_ms() < until, "{:?}", dead(cluster));
        run(cluster, 100);
    }
}

/// None, and the bug that a test must find.
fn with(canary: Canary) -> Vec<Option<Canary>> {
    if has_canaries() { vec![None, Some(canary)] } else { vec![None] }
}

/// A fallback takes a write for a home that is away, and loses its power. Then `deed` is done, with all homes, and what is
/// deleted is purged; the fallback comes back with its hint.
fn hint_comes_late(first: Deed, then: Deed, canary: Option<Canary>) -> (Cluster, Arc<Space>) {
    let space = space("sloppy", true);
    let mut cluster = cluster(4, 0, &space, HASTY, canary);
    let (homes, others) = places(&cluster, &space, "k");
    let [fallback] = others[..] else { panic!("one of four is no home") };
    if first == Deed::Delete {
        does(&mut cluster, Deed::Put, ask(homes[0], &space, 3));
    }
    cluster.isolate(homes[2]);
    run(&mut cluster, 2_500);
    does(&mut cluster, first, ask(homes[0], &space, 3));
    let kept = cluster.hosts[fallback].service().expect("it runs").coordinator.driver.hints.count();
    assert_eq!(kept, 1, "the fallback has a hint");
    cluster.crash(fallback, 1, true);
    cluster.rejoin(homes[2]);
    // The fallback has no power: its links stay cut.
    run(&mut cluster, 2_500);
    if first == Deed::Put {
        does(&mut cluster, Deed::Delete, ask(homes[0], &space, 3));
    }
    until_purged(&mut cluster);
    assert_eq!(records(&cluster), [0; 4], "nothing is left of it");
    if then == Deed::Put {
        does(&mut cluster, Deed::Put, ask(homes[1], &space, 3));
    }
    cluster.bounce(fallback);
    cluster.until_ready(20_000);
    run(&mut cluster, 8_000);
    (cluster, space)
}

/// F03: a fallback hands a tombstone on that its homes have purged meanwhile: it kills no write that came later.
#[test]
fn f03_a_tombstone_that_is_handed_on_late_kills_no_new_write() {
    let (mut cluster, space) = hint_comes_late(Deed::Delete, Deed::Put, None);
    let written = cluster.recorder.ops().len();
    for node in 0..4 {
        let read = does(&mut cluster, Deed::Get, ask(node, &space, 3));
        assert_eq!(read.values().len(), 1, "{read}");
    }
    assert_eq!((records(&cluster).iter().sum::<usize>(), cluster.hints()), (3, 0));
    assert_eq!(check_with(&cluster.recorder.ops()[..written], &HASTY), Vec::new());
}

/// F04: a write is on its way, as a hint, until after its key was deleted and purged: nobody takes it.
#[test]
fn f04_an_old_write_that_comes_after_the_purge_is_not_taken() {
    for canary in with(Canary::HintNeverTooOld) {
        let (mut cluster, space) = hint_comes_late(Deed::Put, Deed::Get, canary);
        let back: Vec<usize> =
            (0..4).map(|node| does(&mut cluster, Deed::Get, ask(node, &space, 3)).values().len()).collect();
        assert_eq!(back == [0; 4], canary.is_none(), "{canary:?}: {back:?}");
        assert_eq!(records(&cluster) == [0; 4], canary.is_none(), "{canary:?}");
    }
}

/// F06: what was purged is gone, whatever of it is found on the disks after a power cut of all nodes.
#[test]
fn f06_a_power_cut_after_the_purge_brings_nothing_back() {
    for seed in 0..4 {
        let space = space("s", false);
        let mut cluster = cluster(3, 0, &space, HASTY, None);
        let (homes, _) = places(&cluster, &space, "k");
        does(&mut cluster, Deed::Put, ask(homes[0], &space, 3));
        does(&mut cluster, Deed::Delete, ask(homes[1], &space, 3));
        // Until the first of them has purged it: the others may be about to.
        while records(&cluster).iter().all(|count| *count == 1) {
            run(&mut cluster, 1);
        }
        (0..3).for_each(|node| cluster.crash(node, seed, true));
        (0..3).for_each(|node| cluster.bounce(node));
        cluster.until_ready(20_000);
        for node in 0..3 {
            assert_eq!(does(&mut cluster, Deed::Get, ask(node, &space, 2)).values(), [], "seed {seed}");
        }
        until_purged(&mut cluster);
        assert_eq!(records(&cluster), [0; 3], "seed {seed}");
        assert_eq!(check_with(&cluster.recorder.ops(), &HASTY), Vec::new());
    }
}

/// F08: a value whose time to live is over on one replica and not yet on another is no difference to repair; and it is
/// collected like what was deleted.
#[test]
fn f08_an_expired_value_is_no_difference_and_is_collected() {
    let space = space(BRIEF, false);
    let mut cluster = cluster(3, 200, &space, HASTY, None);
    let (homes, _) = places(&cluster, &space, "k");
    does(&mut cluster, Deed::Put, ask(homes[0], &space, 3));
    assert_eq!(records(&cluster), [1; 3]);
    until_purged(&mut cluster);
    // It was dead to some before the others, and there was no reason to send it to anybody.
    run(&mut cluster, 8_000);
    let (mut compared, mut travelled) = (0, 0);
    for host in &cluster.hosts {
        let repair = &host.service().expect("it runs").coordinator.driver.metrics.repair;
        compared += repair.compared.get();
        travelled += repair.sent.get() + repair.received.get();
    }
    assert!(compared > 0 && travelled == 0, "{travelled} records travelled, {compared} trees were compared");
    assert_eq!(records(&cluster), [0; 3]);
    for node in 0..3 {
        assert_eq!(does(&mut cluster, Deed::Get, ask(node, &space, 3)).values(), []);
    }
}

/// F08: a replica was away while a value lived, and repair brings it the value when that is over: it stays dead there.
#[test]
fn f08_an_expired_value_that_repair_brings_is_not_revived() {
    for canary in with(Canary::ExpiryForgotten) {
        let space = space(BRIEF, false);
        let mut cluster = cluster(3, 200, &space, HASTY, canary);
        let (homes, _) = places(&cluster, &space, "k");
        cluster.isolate(homes[2]);
        run(&mut cluster, 2_500);
        does(&mut cluster, Deed::Put, ask(homes[0], &space, 2));
        run(&mut cluster, 2_500);
        cluster.rejoin(homes[2]);
        let (mut brought, mut back) = (false, 0);
        while !brought || !dead(&cluster).is_empty() {
            assert!(cluster.now_ms() < 40_000, "it is neither brought nor purged: {:?}", records(&cluster));
            run(&mut cluster, 50);
            brought |= records(&cluster)[homes[2]] > 0;
            back += does(&mut cluster, Deed::Get, ask(homes[2], &space, 1)).values().len();
        }
        assert_eq!(back > 0, canary.is_some(), "{canary:?}: read {back} times");
        let read: Vec<Op> = cluster.recorder.ops();
        let found = g5_expired_stays_expired(&read);
        assert_eq!(found.is_empty(), canary.is_none(), "{canary:?}: {found:?}");
    }
}

/// F09: an acknowledged delete is on stable storage: after a power cut of all nodes the key is deleted.
#[test]
fn f09_a_delete_survives_a_power_cut_of_all_nodes() {
    for canary in with(Canary::AckBeforeSync) {
        let mut back = 0;
        for seed in 0..4 {
            let space = space("s", false);
            let mut cluster = cluster(3, 0, &space, Upkeep::USUAL, canary);
            let (homes, _) = places(&cluster, &space, "k");
            does(&mut cluster, Deed::Put, ask(homes[0], &space, 3));
            run(&mut cluster, 1_000);
            cluster.hosts.iter().for_each(|host| host.storage.set_sync_takes(Duration::from_millis(300)));
            does(&mut cluster, Deed::Delete, ask(homes[0], &space, 2));
            (0..3).for_each(|node| cluster.crash(node, seed, true));
            (0..3).for_each(|node| {
                cluster.mend(node);
                cluster.bounce(node);
            });
            cluster.until_ready(20_000);
            back += does(&mut cluster, Deed::Get, ask(homes[1], &space, 2)).values().len();
        }
        assert_eq!(back > 0, canary.is_some(), "{canary:?}: back {back} times");
    }
}

/// F18: a replica that has nothing of a key takes nothing away from one that has, whoever asks, in whatever order they answer.
#[test]
fn f18_an_empty_replica_outvotes_no_full_one() {
    for canary in with(Canary::NotFoundWins) {
        let upkeep = Upkeep { window_ms: Some(0), read_repair: false, ..Upkeep::USUAL };
        let space = space("s", false);
        let mut cluster = cluster(3, 0, &space, upkeep, canary);
        let (homes, _) = places(&cluster, &space, "k");
        cluster.isolate(homes[2]);
        run(&mut cluster, 2_500);
        does(&mut cluster, Deed::Put, ask(homes[0], &space, 2));
        cluster.rejoin(homes[2]);
        run(&mut cluster, 2_500);
        assert_eq!(records(&cluster).iter().sum::<usize>(), 2, "one has nothing");
        let mut lost = 0;
        for node in 0..3 {
            for level in [2, 3] {
                lost +=
                    usize::from(does(&mut cluster, Deed::Get, ask(node, &space, level)).values().is_empty());
            }
        }
        assert_eq!(lost > 0, canary.is_some(), "{canary:?}: not found {lost} times");
    }
}
