//! Anti-entropy when clocks are off: what is too new to be exchanged, and for how long.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quoral::rpc::proto;

use crate::check::state::holding;
use crate::client::{Ask, Client};
use crate::cluster::{Cluster, Setup, Weather};
use crate::upkeep::Upkeep;

/// Two nodes that repair each other by nothing but anti-entropy. Of two nobody knows whose clock is wrong.
fn two(offsets: [u64; 2], interval_ms: u64) -> Cluster {
    let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 1 };
    let upkeep =
        Upkeep { interval_ms, read_repair: false, window_ms: Some(0), purge: None, rate_bytes: None };
    let mut plain = Setup::plain(11, &offsets, weather);
    plain.spaces.truncate(1);
    let mut cluster = Cluster::new(Setup { upkeep, ..plain });
    cluster.until_ready(10_000);
    cluster
}

fn run(cluster: &mut Cluster, ms: u64) {
    for _ in 0..ms {
        cluster.step();
    }
}

/// A write that one node alone acknowledges.
fn put(cluster: &mut Cluster, node: usize) {
    let (names, recorder) = (cluster.node_names(), cluster.recorder.clone());
    let space = cluster.setup.spaces[0].clone();
    cluster.client("writer", async move {
        let mut client = Client::new(0, &names, Duration::from_millis(500), recorder);
        let ask = Ask { node, space, key: "k".into(), timeout_ms: 1_000, level: Some(1) };
        assert!(client.put(&ask).await, "the put failed");
    });
    cluster.run_clients();
}

/// How many records each node stores.
fn records(cluster: &Cluster) -> Vec<usize> {
    cluster.hosts.iter().map(|host| holding(&*host.storage).len()).collect()
}

/// `repair`, asked of the first node; `meanwhile` at each step.
fn repair(cluster: &mut Cluster, name: &str, mut meanwhile: impl FnMut(&Cluster)) -> proto::NodeRepair {
    let (names, recorder) = (cluster.node_names(), cluster.recorder.clone());
    let (told, tells) = (Arc::new(Mutex::new(None)), Duration::from_secs(60));
    let last = told.clone();
    cluster.client(name, async move {
        let client = Client::new(0, &names, Duration::from_millis(500), recorder);
        let ended = tokio::time::timeout(tells, client.repair(0)).await.expect("it ends");
        *last.lock().expect("no panic") = Some(ended);
    });
    while !cluster.step() {
        meanwhile(cluster);
    }
    let told: proto::RepairResponse = told.lock().expect("no panic").take().expect("it has ended");
    assert!(told.over && told.nodes.len() == 1, "{told:?}");
    told.nodes[0].clone()
}

/// A clock that is minutes behind takes what the other node writes for news all the time; and the other's new writes are
/// refused here, so that anti-entropy alone brings them.
#[test]
fn a_clock_that_is_minutes_behind_keeps_nothing_from_being_exchanged() {
    const MINUTES: u64 = 10 * 60_000;
    for (behind, offsets) in [[0, MINUTES], [MINUTES, 0]].into_iter().enumerate() {
        let mut cluster = two(offsets, 300);
        let ahead = 1 - behind;
        put(&mut cluster, ahead);
        let until = cluster.now_ms() + 10_000;
        assert_eq!(records(&cluster)[behind], 0, "its write is refused there");
        while records(&cluster) != [1, 1] {
            assert!(cluster.now_ms() < until, "node {behind} is behind: {:?}", records(&cluster));
            run(&mut cluster, 50);
        }
    }
}

/// What was there when a repair began is waited for. If it does not settle, since the clock does not go on, the repair
/// says so.
#[test]
fn a_repair_does_not_say_that_it_is_done_with_what_it_took_for_too_new() {
    const HOUR: u64 = 3_600_000;
    let mut cluster = two([HOUR, HOUR], 0);
    cluster.cut_off(1);
    run(&mut cluster, 2_500);
    put(&mut cluster, 1);
    cluster.rejoin(1);
    run(&mut cluster, 2_000);
    assert_eq!(records(&cluster), [0, 1]);
    let stands_still = |cluster: &Cluster| {
        cluster.hosts[0].offset.fetch_sub(1, Ordering::Relaxed);
    };
    let told = repair(&mut cluster, "first", stands_still);
    let problems: Vec<&str> = told.problems.iter().map(|problem| &problem.problem[..]).collect();
    assert_eq!(problems, ["1 records are still too new, by this node's clock"]);
    assert_eq!((told.too_new, told.healed, told.trees - told.done), (1, 0, 0), "{told:?}");
    assert_eq!(records(&cluster), [0, 1]);
    let told = repair(&mut cluster, "second", |_| {});
    assert_eq!((told.too_new, told.healed, &told.problems[..]), (0, 1, &[][..]), "{told:?}");
    assert_eq!(records(&cluster), [1, 1]);
}
