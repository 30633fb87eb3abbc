//! Nodes of different layout versions. The product makes no second layout yet, so tests hand the nodes maps that are:
//! of one map version, so that no node pulls another's, which no decree would ever decide.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use quoral::ring::layout::ClusterMap;
use quoral::ring::preflist::homes;
use quoral::storage::{Batch, Storage as _, schema};
use quoral::types::ids::{LayoutVersion, MapVersion};
use quoral::types::key::Position;

use crate::check::state::{g7_converges, holding};
use crate::client::{Ask, Client};
use crate::cluster::{Cluster, Setup, Weather};
use crate::history::{Outcome, Space};
use crate::upkeep::Upkeep;

/// Nodes that are kept equal by anti-entropy alone.
fn cluster(seed: u64, nodes: usize) -> Cluster {
    let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 1 };
    let upkeep = Upkeep { interval_ms: 300, read_repair: false, window_ms: Some(0), ..Upkeep::USUAL };
    let mut cluster = Cluster::new(Setup { upkeep, ..Setup::plain(seed, &vec![0; nodes], weather) });
    cluster.until_ready(10_000);
    cluster
}

/// Gives a map of its own to each node.
fn give_maps(cluster: &mut Cluster, of: impl Fn(usize) -> ClusterMap) {
    let given: Vec<_> = cluster
        .hosts
        .iter()
        .enumerate()
        .map(|(host, node)| (node.service().expect("it serves"), of(host)))
        .collect();
    cluster.client("maps", async move {
        for (node, map) in given {
            node.maps.adopt(map).await.expect("stored");
        }
    });
    cluster.run_clients();
}

/// The next map of the same layout, and one of the next layout.
fn next_maps(first: &ClusterMap, change: impl Fn(&mut ClusterMap)) -> (ClusterMap, ClusterMap) {
    let same = ClusterMap { version: MapVersion(first.version.0 + 1), proposal: 1, ..first.clone() };
    let mut other = ClusterMap { proposal: 2, ..same.clone() };
    other.layout.version = LayoutVersion(2);
    change(&mut other);
    assert!(first.check_next(&same).is_ok() || first.keyspaces.len() > 1, "what is given could be decided");
    assert_eq!(ClusterMap::decode(&other.encode()).as_ref(), Ok(&other));
    (same, other)
}

/// Puts through one node, acknowledged by one replica.
fn put(cluster: &mut Cluster, name: &str, node: usize, space: &Arc<Space>, keys: std::ops::Range<usize>) {
    let (names, recorder, space) = (cluster.node_names(), cluster.recorder.clone(), space.clone());
    cluster.client(name, async move {
        let mut client = Client::new(node, &names, Duration::from_millis(100), recorder);
        for key in keys {
            let key = format!("k{key}");
            let ask = Ask { node, space: space.clone(), key, timeout_ms: 500, level: Some(1) };
            assert!(client.put(&ask).await, "{ask:?}");
        }
    });
    cluster.run_clients();
}

/// What is wrong with the nodes' data.
fn differences(cluster: &Cluster) -> usize {
    let held: Vec<_> = cluster.hosts.iter().map(|host| (host.id, holding(&*host.storage))).collect();
    g7_converges(&cluster.first_map, &held).len()
}

fn until_equal(cluster: &mut Cluster, what: &str) {
    for _ in 0..20_000 {
        if cluster.now_ms().is_multiple_of(100) && differences(cluster) == 0 {
            return;
        }
        cluster.step();
    }
    panic!("{what}: {} keys are not equal after 20 s", differences(cluster));
}

/// Exchanges run between replicas whose layout versions differ, whoever has the newer one, both ways; so does the
/// healing of damaged records. What counts for clients does not.
#[test]
fn replicas_of_different_layouts_become_equal() {
    for odd in [0, 2] {
        let mut cluster = cluster(1, 3);
        let near = 2 - odd;
        let spaces = cluster.setup.spaces.clone();
        cluster.cut_off(odd);
        for (at, space) in spaces.iter().enumerate() {
            put(&mut cluster, &format!("odd{at}"), odd, space, 0..20);
            put(&mut cluster, &format!("near{at}"), near, space, 10..40);
        }
        // The same owners, in another order.
        let (same, other) = next_maps(&cluster.first_map, |map| {
            map.layout.owners.iter_mut().for_each(|owners| owners.rotate_left(1));
        });
        give_maps(&mut cluster, |host| if host == odd { other.clone() } else { same.clone() });
        assert!(differences(&cluster) >= 60);
        cluster.heal();
        until_equal(&mut cluster, "after the cut");

        // A record is damaged at each of two that differ in their layout.
        for host in [odd, near] {
            let mut records = Vec::new();
            let (from, to) = (Bound::Included(&[schema::RECORD_TAG][..]), Bound::Unbounded);
            let storage = cluster.hosts[host].storage.clone();
            let mut visit = |key: &[u8], _: &[u8]| {
                records.push(key.to_vec());
                false
            };
            storage.scan(from, to, false, &mut visit).expect("memory can be read");
            let (_, keyspace, key) = schema::split_record_key(&records[0]).expect("a record's");
            let name = &cluster.first_map.keyspace_by_id(keyspace).expect("known").name;
            let space = spaces.iter().find(|space| space.name == *name).expect("one of them").clone();
            let key = String::from_utf8(key.partition_key().to_vec()).expect("text");
            let mut batch = Batch::new();
            batch.put(records[0].clone(), b"damaged");
            storage.write(&batch).expect("memory has no faults");
            let (names, recorder) = (cluster.node_names(), cluster.recorder.clone());
            cluster.client(&format!("reader{host}"), async move {
                let mut client = Client::new(host, &names, Duration::from_millis(100), recorder);
                client.get(&Ask { node: host, space, key, timeout_ms: 500, level: Some(1) }).await;
            });
            cluster.run_clients();
            until_equal(&mut cluster, "damaged");
            let metrics =
                cluster.hosts[host].service().expect("it serves").coordinator.driver.metrics.clone();
            assert_eq!(metrics.scrub.healed.get(), 1);
        }

        // The versions differ all the time, and what needs all of them fails.
        let (names, recorder, space) = (cluster.node_names(), cluster.recorder.clone(), spaces[0].clone());
        cluster.client("all", async move {
            let mut client = Client::new(9, &names, Duration::from_millis(100), recorder);
            for node in 0..3 {
                let key = "all".to_owned();
                let ask = Ask { node, space: space.clone(), key, timeout_ms: 500, level: Some(3) };
                assert!(!client.put(&ask).await, "through node {node}");
            }
        });
        cluster.run_clients();
        let ops = cluster.recorder.ops();
        assert!(
            ops.iter()
                .rev()
                .take(3)
                .all(|op| matches!(op.outcome, Outcome::Unknown(_) | Outcome::Refused(_))),
            "{ops:?}"
        );
        let versions: Vec<u64> = cluster.maps().iter().map(|(_, map)| map.layout.version.0).collect();
        assert_eq!((versions[odd], versions[near]), (2, 1));
    }
}

/// A node that is no home of a place any more, and does not know it, gives its new homes nothing: they may have purged
/// the tombstone of what it still has.
#[test]
fn a_former_home_brings_nothing_back() {
    let mut cluster = cluster(2, 4);
    let space = cluster.setup.spaces[0].clone();
    let first = cluster.first_map.clone();
    let keyspace = first.keyspace(&space.name).expect("from the start").clone();
    let homes_of = |key: usize| {
        let partition = first.partitions.of(Position::of(&space.name, format!("k{key}").as_bytes()));
        (partition, homes(&first, &keyspace, partition))
    };
    // It is the one that asks.
    let former = cluster.hosts[0].id;
    let key = (0..100).find(|key| homes_of(*key).1.contains(&former)).expect("it has a quarter of them");
    let (partition, before) = homes_of(key);
    let (same, other) = next_maps(&first, |map| {
        let owners = &mut map.layout.owners[usize::from(partition.0)];
        let at = owners.iter().position(|owner| *owner == 0).expect("an owner");
        let all = owners.len();
        owners.swap(at, all - 1);
        assert!(at < 3 && all == 4, "{owners:?}");
    });
    cluster.cut_off(0);
    put(&mut cluster, "alone", 0, &space, key..key + 1);
    give_maps(&mut cluster, |host| if host == 0 { same.clone() } else { other.clone() });
    cluster.heal();
    let broken = |cluster: &Cluster| {
        let node = cluster.hosts[0].service().expect("it serves");
        node.coordinator.driver.metrics.repair.broken.get()
    };
    for _ in 0..20_000 {
        if broken(&cluster) >= 3 {
            break;
        }
        cluster.step();
    }
    assert!(broken(&cluster) >= 3, "it tries, and is refused");
    assert_eq!(before.len(), 3);
    let holders: Vec<usize> =
        (0..4).filter(|host| !holding(&*cluster.hosts[*host].storage).is_empty()).collect();
    assert_eq!(holders, [0]);
}
