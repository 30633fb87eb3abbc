//! Scenarios by hand.

use std::time::Duration;

use quoral::types::policy::Conflicts;

use crate::check::check;
use crate::client::{Ask, Client};
use crate::cluster::{Cluster, Weather};
use crate::history::{Outcome, digest};
use crate::nemesis::{Deed, NetFault, Plan};

/// Three hosts; a client puts and gets through a partition and its repair.
fn through_a_partition(seed: u64) -> Vec<String> {
    let weather = Weather { latency_min: 1, latency_max: 20, random_order: false };
    let mut cluster = Cluster::new(seed, &[0, 150, 50], weather);
    cluster.until_ready(10_000);
    let names: Vec<String> = cluster.hosts.iter().map(|host| host.name.clone()).collect();
    let patience = Duration::from_millis(200);
    let recorder = cluster.recorder.clone();
    cluster.client("client", async move {
        let mut client = Client::new(0, &names, patience, recorder);
        for turn in 0..60_usize {
            let key = format!("k{}", turn % 3);
            let ask = Ask { node: turn % 3, conflicts: Conflicts::Lww, key, timeout_ms: 500, level: None };
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
    assert_eq!(check(&ops), Vec::<String>::new());
    let during = |ms: u64| (begin + 1_000..begin + 3_500).contains(&ms);
    let at_majority = |op: &&crate::history::Op| op.node != 0 && during(op.began_ms);
    let done = |op: &crate::history::Op| matches!(op.outcome, Outcome::Wrote(_) | Outcome::Read(..));
    assert!(ops.iter().filter(at_majority).filter(|op| done(op)).count() > 10, "the majority served");
    assert!(ops.iter().any(|op| op.node == 0 && during(op.began_ms) && !done(op)), "the minority did not");
    assert!(ops.iter().rev().take(6).all(done), "after the repair every node serves");
    cluster.recorder.trace()
}

/// The scenario of three hosts, one seed, and the same trace twice.
#[test]
fn three_hosts_put_and_get_through_a_partition_and_its_repair() {
    let (one, again, other) = (through_a_partition(7), through_a_partition(7), through_a_partition(8));
    assert_eq!(one, again);
    assert_ne!(one, other, "the trace says nothing of the seed");
    println!("trace of seed 7: {}, {} events", digest(&one), one.len());
}
