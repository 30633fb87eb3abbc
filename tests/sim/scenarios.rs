//! Scenarios by hand.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quoral::canary::Canary;
use quoral::ring::preflist::homes;
use quoral::types::key::Position;

use crate::canaries::has_canaries;
use crate::check::check;
use crate::check::honest::g9_bounded;
use crate::client::{Ask, Client};
use crate::cluster::{Cluster, Setup, Weather};
use crate::draw::default_space;
use crate::history::{Outcome, Space, digest};
use crate::nemesis::{Deed, NetFault, Plan};
use crate::swarm::{RECOVERY_MS, recover};

/// Three hosts; a client puts and gets through a partition and its repair.
fn through_a_partition(seed: u64) -> Vec<String> {
    let weather = Weather { latency_min: 1, latency_max: 20, random_order: false, tick_ms: 1 };
    let mut cluster = Cluster::new(Setup::plain(seed, &[0, 150, 50], weather));
    cluster.until_ready(10_000);
    let (names, spaces) = (cluster.node_names(), cluster.setup.spaces.clone());
    let patience = Duration::from_millis(200);
    let recorder = cluster.recorder.clone();
    cluster.client("client", async move {
        let mut client = Client::new(0, &names, patience, recorder);
        for turn in 0..60_usize {
            let key = format!("k{}", turn % 3);
            let ask = Ask { node: turn % 3, space: spaces[0].clone(), key, timeout_ms: 500, level: None };
            client.put(&ask).await;
            client.get(&Ask { node: (turn + 1) % 3, ..ask }).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let begin = cluster.now_ms();
    let cut = NetFault::Cut(vec![(0, 1), (0, 2)]);
    let mut plan =
        Plan::new(seed, vec![(begin + 1_000, Deed::Begin(cut.clone())), (begin + 3_500, Deed::End(cut))]);
    while !cluster.step() {
        plan.act(&mut cluster);
    }
    assert!(plan.is_over(), "the client was done before the repair");
    let ops = cluster.recorder.ops();
    assert_eq!(check(&ops), Vec::new());
    let during = |ms: u64| (begin + 1_000..begin + 3_500).contains(&ms);
    let at_majority = |op: &&crate::history::Op| op.node != 0 && during(op.began_ms);
    let done = |op: &crate::history::Op| matches!(op.outcome, Outcome::Wrote(_) | Outcome::Read(..));
    assert!(ops.iter().filter(at_majority).filter(|op| done(op)).count() > 10, "the majority served");
    assert!(ops.iter().any(|op| op.node == 0 && during(op.began_ms) && !done(op)), "the minority did not");
    assert!(ops.iter().rev().take(6).all(done), "after the repair every node serves");
    cluster.recorder.trace()
}

/// F30: a put whose sync fails says "maybe", the failed node shows it to nobody, and a crash settles it.
#[test]
fn f30_a_write_whose_sync_failed_is_in_doubt() {
    let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 1 };
    let mut cluster = Cluster::new(Setup::plain(1, &[0, 0, 0], weather));
    cluster.until_ready(10_000);
    let (recorder, disk) = (cluster.recorder.clone(), cluster.hosts[0].storage.clone());
    let (names, spaces) = (cluster.node_names(), cluster.setup.spaces.clone());
    cluster.client("client", async move {
        let mut client = Client::new(0, &names, Duration::from_millis(100), recorder);
        for space in &spaces {
            let ask = Ask { node: 0, space: space.clone(), key: "k".into(), timeout_ms: 500, level: None };
            assert!(client.put(&ask).await);
        }
        disk.fail_next_sync("gone");
        let ask = Ask { node: 0, space: spaces[0].clone(), key: "k".into(), timeout_ms: 500, level: None };
        assert!(!client.put(&ask).await);
        assert!(client.get(&ask).await, "the others can be read through the failed node");
        // Surely not written there, so another home replica may.
        assert!(client.put(&Ask { key: "other".into(), ..ask.clone() }).await);
    });
    cluster.run_clients();
    let ops = cluster.recorder.ops();
    assert_eq!(check(&ops), Vec::new());
    let [doubt, read, handed_on] = &ops[2..] else { panic!("five operations") };
    assert!(matches!(doubt.outcome, Outcome::Unknown(_)), "{doubt}");
    assert!(matches!(&read.outcome, Outcome::Read(values, _) if values[0].0 == 1), "{read}");
    assert!(matches!(handed_on.outcome, Outcome::Wrote(_)), "{handed_on}");
}

/// One bad disk of five is a nuisance to nobody: whichever node is asked, a home replica with a good disk does it.
#[test]
fn with_one_bad_disk_every_node_takes_writes() {
    let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 1 };
    let mut cluster = Cluster::new(Setup::plain(1, &[0; 5], weather));
    cluster.until_ready(10_000);
    let (recorder, disk) = (cluster.recorder.clone(), cluster.hosts[0].storage.clone());
    let (names, spaces) = (cluster.node_names(), cluster.setup.spaces.clone());
    cluster.client("client", async move {
        let mut client = Client::new(0, &names, Duration::from_millis(100), recorder);
        let ask = |node: usize, turn: usize| {
            let (space, key) = (spaces[turn % 2].clone(), format!("k{turn}"));
            Ask { node, space, key, timeout_ms: 500, level: None }
        };
        disk.fail_next_sync("gone");
        // Who coordinates there first is in doubt.
        for turn in 0..30 {
            client.put(&ask(0, turn)).await;
        }
        for turn in 100..160 {
            assert!(client.put(&ask(turn % 5, turn)).await, "turn {turn}");
            assert!(client.get(&ask((turn + 1) % 5, turn)).await, "turn {turn}");
        }
    });
    cluster.run_clients();
    assert_eq!(check(&cluster.recorder.ops()), Vec::new());
}

/// TCP in turmoil never sends again what was lost, so a link that was cut is dead until its keep-alive finds
/// out. However long the cut was, every node must reach all replicas soon after the repair.
#[test]
fn links_recover_soon_after_a_repair() {
    for (seed, cut_ms) in [20, 200, 600, 1_300, 1_700, 6_000].into_iter().enumerate() {
        let weather = Weather { latency_min: 1, latency_max: 10, random_order: false, tick_ms: 1 };
        let mut cluster = Cluster::new(Setup::plain(seed as u64, &[0, 0, 0], weather));
        cluster.until_ready(10_000);
        cluster.isolate(0);
        for _ in 0..cut_ms {
            cluster.step();
        }
        cluster.heal();
        let took = recover(&mut cluster, Duration::from_millis(100));
        println!("cut for {cut_ms} ms: recovered in {took} ms");
        assert!(took <= RECOVERY_MS, "cut for {cut_ms} ms: recovered in {took} ms");
        assert_eq!(cluster.missing(), Vec::<String>::new());
        assert_eq!(g9_bounded(&cluster.gauges()), Vec::new());
    }
}

/// Wall clocks that jump by hours, either way, one or all, take nobody out: every request is answered, in order.
#[test]
fn clocks_that_jump_take_no_node_out() {
    const HOUR: u64 = 3_600_000;
    let weather = Weather { latency_min: 1, latency_max: 20, random_order: false, tick_ms: 1 };
    let offsets = [10 * HOUR, 10 * HOUR + 100, 10 * HOUR];
    let mut cluster = Cluster::new(Setup::plain(3, &offsets, weather));
    cluster.until_ready(10_000);
    let first = [[10, 10, 10], [13, 10, 10], [10, 10, 10], [2, 10, 10], [13, 13, 13], [10, 10, 10]];
    // At once, while the nodes still believe the clocks of before, and after they have forgotten them.
    let phases = first.map(|hours| (hours, 0)).into_iter().chain([([10, 10, 10], 12)]);
    for (phase, (hours, later)) in phases.enumerate() {
        for (host, hours) in cluster.hosts.iter().zip(hours) {
            host.offset.store(hours * HOUR, Ordering::Relaxed);
        }
        let (names, spaces) = (cluster.node_names(), cluster.setup.spaces.clone());
        let recorder = cluster.recorder.clone();
        cluster.client(&format!("client{phase}"), async move {
            tokio::time::sleep(Duration::from_secs(later)).await;
            let mut client = Client::new(phase, &names, Duration::from_millis(200), recorder);
            for turn in 0..30_usize {
                let (space, key) = (spaces[turn / 15].clone(), format!("k{}", turn % 2));
                let ask = Ask { node: turn % 3, space, key, timeout_ms: 500, level: None };
                assert!(client.put(&ask).await, "phase {phase}, turn {turn}");
                assert!(client.get(&Ask { node: (turn + 1) % 3, ..ask }).await, "phase {phase}, turn {turn}");
            }
        });
        cluster.run_clients();
    }
    assert_eq!(check(&cluster.recorder.ops()), Vec::new());
}

/// Two clocks that are wrong one after the other, never at the same time, are no majority: the third node does not
/// follow them, and all replicas go on taking its writes.
#[test]
fn clocks_that_are_wrong_in_turn_take_nobody_out() {
    let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 1 };
    let mut cluster = Cluster::new(Setup::plain(4, &[0, 0, 0], weather));
    cluster.until_ready(10_000);
    for (phase, offsets) in [[0, 0, 0], [0, 1_100, 0], [0, 0, 0], [1_000, 0, 0]].into_iter().enumerate() {
        for (host, offset) in cluster.hosts.iter().zip(offsets) {
            host.offset.store(offset, Ordering::Relaxed);
        }
        let (names, space) = (cluster.node_names(), cluster.setup.spaces[0].clone());
        let recorder = cluster.recorder.clone();
        cluster.client(&format!("client{phase}"), async move {
            let mut client = Client::new(phase, &names, Duration::from_millis(200), recorder);
            for turn in 0..30_usize {
                let (space, key) = (space.clone(), format!("k{turn}"));
                let ask = Ask { node: turn % 3, space, key, timeout_ms: 500, level: Some(3) };
                assert!(client.put(&ask).await, "phase {phase}, turn {turn}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        cluster.run_clients();
    }
}

/// Of two clocks nobody knows which is wrong: what the node with the one that is ahead would stamp, no other would
/// take. So it leaves no copy that nobody can write over; the other writes for it, and later it does again.
#[test]
fn f17_a_node_alone_with_a_clock_ahead_poisons_no_key() {
    const HOUR: u64 = 3_600_000;
    let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 1 };
    let mut cluster = Cluster::new(Setup::plain(5, &[10 * HOUR; 3], weather));
    cluster.until_ready(10_000);
    cluster.crash(2, 1, false);
    // What is remembered of the third clock is forgotten.
    for _ in 0..12_000 {
        cluster.step();
    }
    for (phase, hours) in [11, 10, 10].into_iter().enumerate() {
        cluster.hosts[0].offset.store(hours * HOUR, Ordering::Relaxed);
        if phase == 2 {
            cluster.bounce(2);
        }
        for _ in 0..3_000 {
            cluster.step();
        }
        let (names, spaces) = (cluster.node_names(), cluster.setup.spaces.clone());
        let recorder = cluster.recorder.clone();
        cluster.client(&format!("client{phase}"), async move {
            let mut client = Client::new(phase, &names, Duration::from_millis(200), recorder);
            for turn in 0..20_usize {
                let (space, key) = (spaces[turn / 10].clone(), format!("k{phase}-{turn}"));
                for node in [0, 1] {
                    let ask =
                        Ask { node, space: space.clone(), key: key.clone(), timeout_ms: 500, level: None };
                    assert!(client.put(&ask).await, "phase {phase}, turn {turn}, node {node}");
                    assert!(client.get(&ask).await, "phase {phase}, turn {turn}, node {node}");
                }
            }
        });
        cluster.run_clients();
    }
    assert_eq!(check(&cluster.recorder.ops()), Vec::new());
}

/// What is written and not yet synced is told to no reader: a power cut may take it, and then a read goes back (G3).
/// With the bug planted the checker says so. Only a read of one replica shows it: one of more writes what it found
/// back, durably, before it answers.
#[test]
fn a_power_cut_takes_nothing_that_was_read() {
    let canaries = if has_canaries() { vec![None, Some(Canary::UnsyncedRead)] } else { vec![None] };
    for canary in canaries {
        let weather = Weather { latency_min: 1, latency_max: 5, random_order: false, tick_ms: 1 };
        let space = Arc::new(Space { name: "single".into(), n: 1, r: 1, w: 1, ..default_space(3) });
        let plain = Setup::plain(6, &[0, 0, 0], weather);
        let mut cluster =
            Cluster::new(Setup { spaces: vec![plain.spaces[0].clone(), space.clone()], canary, ..plain });
        cluster.until_ready(10_000);
        let keyspace = cluster.first_map.keyspace(&space.name).expect("it is in the first map");
        let partition = cluster.first_map.partitions.of(Position::of(&space.name, b"k"));
        let home = homes(&cluster.first_map, keyspace, partition)[0];
        let home = cluster.hosts.iter().position(|host| host.id == home).expect("a node");
        let ask = Ask { node: home, space, key: "k".into(), timeout_ms: 300, level: None };
        let (names, recorder, disk) =
            (cluster.node_names(), cluster.recorder.clone(), cluster.hosts[home].storage.clone());
        let (before, again) =
            (move || Client::new(0, &names, Duration::from_millis(100), recorder), ask.clone());
        let after = before.clone();
        cluster.client("before", async move {
            let mut client = before();
            assert!(client.put(&ask).await);
            disk.set_sync_takes(Duration::from_secs(2));
            let (mut writer, write) = (client.clone(), ask.clone());
            let write = tokio::spawn(async move { writer.put(&write).await });
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(client.get(&ask).await, canary.is_some(), "a read waits for the sync");
            assert!(!write.await.expect("no panic"), "and so does the write");
        });
        cluster.run_clients();
        // With this seed the power cut takes what was not synced.
        cluster.crash(home, 3, true);
        cluster.mend(home);
        cluster.bounce(home);
        cluster.until_ready(10_000);
        cluster.client("after", async move { assert!(after().get(&again).await) });
        cluster.run_clients();
        let wrong = check(&cluster.recorder.ops());
        assert_eq!(wrong.iter().any(|finding| finding.rule == "G3"), canary.is_some(), "{wrong:?}");
    }
}

/// The scenario of three hosts, one seed, and the same trace twice.
#[test]
fn three_hosts_put_and_get_through_a_partition_and_its_repair() {
    let (one, again, other) = (through_a_partition(7), through_a_partition(7), through_a_partition(8));
    assert_eq!(one, again);
    assert_ne!(one, other, "the trace says nothing of the seed");
    println!("trace of seed 7: {}, {} events", digest(&one), one.len());
}
