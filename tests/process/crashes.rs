//! Nodes that are killed or stopped under load: nothing acknowledged is lost, and no long pause.

use std::time::Duration;

use rustix::process::Signal;
use tonic::Code;

use crate::client::{self, MARGIN, assert_refused, get, get_r, kv, put};
use crate::cluster::{Cluster, alone, cli, eventually, said};
use crate::load::{Load, Plan, Report, missing};

/// The longest pause between successes that the loss of a node may make.
const PAUSE_MAX: Duration = Duration::from_millis(1_000);
/// What a refusal may take.
const REFUSED_WITHIN: Duration = Duration::from_millis(1_500);

fn plan(cluster: &Cluster, name: &str) -> Plan {
    Plan {
        endpoints: cluster.all_clients(),
        writers: 32,
        readers: 8,
        deadline: Duration::from_secs(2),
        name: name.into(),
    }
}

/// What holds for every load: requests ended in time, and no read missed an acknowledged write.
#[track_caller]
fn check_promises(report: &Report, deadline: Duration) {
    assert!(report.missed.is_empty(), "reads that missed acknowledged writes: {:#?}", report.missed);
    assert!(
        report.slowest <= deadline + MARGIN + report.machine_stall,
        "a request took {:?}",
        report.slowest
    );
    assert!(!report.errors.contains_key("no answer at all"), "{:?}", report.errors);
}

#[track_caller]
fn check_pauses(report: &Report) {
    let Report { put_gap, get_gap, errors, machine_stall, .. } = report;
    let max = PAUSE_MAX + *machine_stall;
    assert!(
        put_gap.0 <= max,
        "no put for {:?}, until {:?} after the begin; {errors:?}",
        put_gap.0,
        put_gap.1
    );
    assert!(
        get_gap.0 <= max,
        "no get for {:?}, until {:?} after the begin; {errors:?}",
        get_gap.0,
        get_gap.1
    );
}

fn summary(report: &Report) -> String {
    format!(
        "{} acknowledged, {} unknown, {} refused, {} requests, slowest {:?}, longest pause put {:?} until {:?}, get {:?} until \
         {:?}, the machine's longest stall {:?}, {:?}",
        report.acknowledged.len(),
        report.unknown,
        report.refused,
        report.attempts,
        report.slowest,
        report.put_gap.0,
        report.put_gap.1,
        report.get_gap.0,
        report.get_gap.1,
        report.machine_stall,
        report.errors
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_is_killed_under_load_and_nothing_is_lost() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let plan = plan(&cluster, "a");
    let load = Load::start(plan.clone());
    load.wait_for(500).await;
    cluster.nodes[1].kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.wait_for(200).await;
    cluster.nodes[1].start();
    cluster.nodes[1].wait_ready();
    load.wait_for(200).await;
    let report = load.stop().await;
    println!("{}", summary(&report));
    check_promises(&report, plan.deadline);
    check_pauses(&report);
    assert_eq!(report.unknown + report.refused, 0, "two nodes of three suffice for every write");
    for node in &cluster.nodes {
        let missing = missing(node.client, &report.acknowledged, 2).await;
        assert!(missing.is_empty(), "through {}: {missing:#?}", node.name);
    }
    cluster.check();
}

/// G1. 20 rounds are the bar: `QUORAL_KILL_ROUNDS=20`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_killed_at_once_and_nothing_is_lost() {
    let _alone = alone();
    let rounds = std::env::var("QUORAL_KILL_ROUNDS").ok();
    let rounds: u32 = rounds.map_or(2, |text| text.parse().expect("QUORAL_KILL_ROUNDS is a number"));
    let mut cluster = Cluster::start(3);
    let (mut all, mut lost) = (Vec::new(), 0);
    for round in 1..=rounds {
        let plan = plan(&cluster, &format!("b{round}"));
        let load = Load::start(plan.clone());
        // Another moment in each round: early in a group of syncs, in the middle, late.
        load.wait_for(300 + 37 * round as usize).await;
        tokio::time::sleep(Duration::from_micros(u64::from(round) * 977)).await;
        cluster.kill_all();
        let report = load.stop().await;
        assert!(report.missed.is_empty(), "reads that missed acknowledged writes: {:#?}", report.missed);
        cluster.start_all();
        let written = &report.acknowledged;
        let missing = missing(cluster.nodes[round as usize % 3].client, written, 2).await;
        println!(
            "round {round}: {} acknowledged, {} unknown, {} refused, {} missing",
            written.len(),
            report.unknown,
            report.refused,
            missing.len()
        );
        missing.iter().take(5).for_each(|key| println!("  {key}"));
        lost += missing.len();
        all.extend(report.acknowledged);
    }
    let missing = missing(cluster.nodes[0].client, &all, 2).await;
    println!("after {rounds} rounds: {} acknowledged, {} missing", all.len(), missing.len());
    assert_eq!((lost, missing), (0, Vec::<String>::new()));
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_dead_nodes_are_a_clear_refusal() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let first = cluster.clients(&[0]);
    let mut one = kv(first[0]);
    one.put(put("before", "1")).await.expect("all are there");

    for node in &mut cluster.nodes[1..] {
        node.kill();
    }
    // At once: no waiting for anybody to notice.
    let (output, took) = cli(&first, &["put", "k", "v"]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(took < REFUSED_WITHIN, "{took:?}");
    let (output, took) = cli(&first, &["get", "before"]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    assert!(took < REFUSED_WITHIN, "{took:?}");

    // And once it is known.
    let states = || -> Result<(), String> {
        let (output, _) = cli(&first, &["-o", "json", "status"]);
        let text = said(&output);
        if text.matches("\"down\"").count() == 2 { Ok(()) } else { Err(text) }
    };
    eventually(Duration::from_secs(20), states);
    let began = std::time::Instant::now();
    let status = one.put(put("k", "v")).await.expect_err("w = 2 of 1");
    assert_refused(&status, Code::Unavailable, &["2 needed", "1 alive"]);
    assert!(began.elapsed() < REFUSED_WITHIN, "{:?}", began.elapsed());
    let detail = client::failure(&status).expect("a detail");
    assert_eq!((detail.required, detail.received, detail.alive), (2, 0, 1), "{detail:?}");
    let status = one.get(get("before")).await.expect_err("r = 2 of 1");
    assert_refused(&status, Code::Unavailable, &["2 needed", "1 alive"]);
    let (output, _) = cli(&first, &["put", "k", "v"]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    let (output, _) = cli(&first, &["del", "before"]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    let (output, _) = cli(&first, &["scan", "before"]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    // One replica is enough for whoever asks for one.
    assert!(one.get(get_r("before", 1)).await.expect("r = 1").get_ref().found);

    for node in &mut cluster.nodes[1..] {
        node.start();
    }
    cluster.wait_ready();
    eventually(Duration::from_secs(10), || {
        let (output, _) = cli(&first, &["put", "k", "v2"]);
        if output.status.success() { Ok(()) } else { Err(said(&output)) }
    });
    // What was refused as not applied is nowhere.
    let mut three = kv(cluster.nodes[2].client);
    assert_eq!(client::values(three.get(get("k")).await.expect("found").get_ref()), ["v2"]);
    assert_eq!(client::values(three.get(get("before")).await.expect("found").get_ref()), ["1"]);
    cluster.check();
}

/// A put that races with the deaths may be unknown, but says so; it never says NO and is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_while_nodes_die_is_not_applied() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let at = cluster.nodes[0].client;
    let writers = (0..16).map(|writer| {
        let mut kv = kv(at);
        tokio::spawn(async move {
            let (mut refused, mut counted) = (Vec::new(), [0_u32; 3]);
            for sequence in 0.. {
                let key = format!("race-{writer}-{sequence}");
                match kv.put(put(key.clone(), "v")).await {
                    Ok(_) => counted[0] += 1,
                    Err(status) if client::surely_not_applied(&status) => {
                        counted[1] += 1;
                        refused.push(key);
                        if refused.len() >= 20 {
                            break;
                        }
                    }
                    Err(_) => counted[2] += 1,
                }
            }
            (refused, counted)
        })
    });
    let writers: Vec<_> = writers.collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for node in &mut cluster.nodes[1..] {
        node.kill();
    }
    let mut refused = Vec::new();
    let mut total = [0; 3];
    for writer in writers {
        let (keys, counted) = writer.await.expect("a writer");
        refused.extend(keys);
        (0..3).for_each(|i| total[i] += counted[i]);
    }
    println!("{} acknowledged, {} refused, {} unknown", total[0], total[1], total[2]);
    for node in &mut cluster.nodes[1..] {
        node.start();
    }
    cluster.wait_ready();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    let mut one = kv(at);
    for key in refused {
        let answer = one.get(get_r(key.clone(), 3)).await.expect("all are there").into_inner();
        assert!(!answer.found, "{key} was refused as not applied, and is there: {answer:?}");
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_makes_no_pause_and_converges() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    // Through the two that go on: what a client does with a silent node is the client's affair.
    let plan = Plan { endpoints: cluster.clients(&[0, 2]), ..plan(&cluster, "d") };
    let began = std::time::Instant::now();
    let load = Load::start(plan.clone());
    load.wait_for(300).await;
    println!("stopped at {:?}", began.elapsed());
    cluster.nodes[1].signal(Signal::STOP);
    tokio::time::sleep(Duration::from_secs(4)).await;
    load.wait_for(200).await;
    let mut one = kv(cluster.nodes[0].client);
    one.put(put("while stopped", "seen")).await.expect("two of three");
    println!("continued at {:?}", began.elapsed());
    cluster.nodes[1].signal(Signal::CONT);
    load.wait_for(300).await;
    let report = load.stop().await;
    println!("{}", summary(&report));
    check_promises(&report, plan.deadline);
    check_pauses(&report);
    assert_eq!(report.unknown + report.refused, 0);

    // It comes back, and a read of all three repairs it: then it answers by itself.
    let mut two = kv(cluster.nodes[1].client);
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        match two.get(get_r("while stopped", 3)).await {
            Ok(answer) => {
                assert_eq!(client::values(answer.get_ref()), ["seen"]);
                break;
            }
            Err(status) => assert!(std::time::Instant::now() < end, "{status:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lost = missing(cluster.nodes[1].client, &report.acknowledged, 2).await;
    assert!(lost.is_empty(), "{lost:#?}");
    // What was read is repaired: before the answer or, where enough others had it, soon after.
    let mut written = report.acknowledged;
    written.push(("while stopped".into(), "seen".into()));
    let end = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let stale = missing(cluster.nodes[1].client, &written, 1).await;
        if stale.is_empty() {
            break;
        }
        assert!(std::time::Instant::now() < end, "read, and not repaired: {stale:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.check();
}
