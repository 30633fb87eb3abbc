//! Passes of anti-entropy that go on for long.

use std::time::Duration;

use quoral::types::key::Position;

use crate::client::{Ask, Client};
use crate::cluster::{Cluster, Setup, Weather};
use crate::upkeep::Upkeep;

/// Two peers find that a third lacks the same records of a tree, and it takes a while to bring them: one of the two does it.
#[test]
fn a_long_exchange_is_left_to_one_peer() {
    let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 2 };
    let upkeep = Upkeep { interval_ms: 300, read_repair: false, window_ms: Some(0), ..Upkeep::USUAL };
    let upkeep = Upkeep { rate_bytes: Some(4_000), ..upkeep };
    let plain = Setup::plain(2, &[0, 0, 0], weather);
    let mut cluster = Cluster::new(Setup { spaces: plain.spaces[..1].to_vec(), upkeep, ..plain });
    cluster.until_ready(10_000);
    let (space, map) = (cluster.setup.spaces[0].clone(), cluster.first_map.clone());
    let partition = |key: &String| map.partitions.of(Position::of(&space.name, key.as_bytes())).0;
    let keys = (0..10_000).map(|number| format!("k{number}")).filter(|key| partition(key) == 0).take(300);
    let keys: Vec<String> = keys.collect();
    assert_eq!(keys.len(), 300);
    cluster.cut_off(2);
    let (names, recorder) = (cluster.node_names(), cluster.recorder.clone());
    cluster.client("writer", async move {
        let mut client = Client::new(0, &names, Duration::from_millis(100), recorder);
        for key in keys {
            let ask = Ask { node: 0, space: space.clone(), key, timeout_ms: 500, level: Some(2) };
            assert!(client.put(&ask).await, "{ask:?}");
        }
    });
    cluster.run_clients();
    // What is new is left to its own write.
    for _ in 0..6_000 / 2 {
        cluster.step();
    }
    cluster.heal();
    let begin = cluster.now_ms();
    let received = |cluster: &Cluster| {
        let node = cluster.hosts[2].service().expect("it serves");
        let repair = &node.coordinator.driver.metrics.repair;
        (repair.received.get(), repair.received_in_vain.get())
    };
    while received(&cluster).0 - received(&cluster).1 < 300 {
        cluster.step();
    }
    let took = cluster.now_ms() - begin;
    assert!(took > 4_000, "not so long: {took} ms");
    for _ in 0..5_000 / 2 {
        cluster.step();
    }
    assert_eq!(received(&cluster), (300, 0), "records, and in vain, in {took} ms");
}
