//! Keyspaces that are made, changed and dropped while the network is cut.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use quoral::rpc::peer_link;
use quoral::rpc::proto::{self, cluster_client::ClusterClient};
use quoral::storage::{Storage as _, schema};
use quoral::types::ids::KeyspaceId;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::check::check;
use crate::client::{Ask, Client};
use crate::cluster::{Cluster, Setup, Weather};
use crate::history::Space;
use crate::net::SimNetwork;

fn channel(node: &str) -> Channel {
    peer_link::channel(Arc::new(SimNetwork::default()), &format!("{node}:7400")).expect("a valid address")
}

type Made = Result<proto::KeyspaceInfo, Status>;

/// What each of some calls was answered, by its number.
type Answers = std::rc::Rc<std::cell::RefCell<Vec<(usize, Made)>>>;

fn calm(seed: u64, nodes: usize) -> Cluster {
    let weather = Weather { latency_min: 1, latency_max: 10, random_order: false, tick_ms: 1 };
    let mut cluster = Cluster::new(Setup::plain(seed, &vec![0; nodes], weather));
    cluster.until_ready(10_000);
    cluster
}

async fn create(node: String, name: &str, r: u32) -> Made {
    let request = proto::CreateKeyspaceRequest { name: name.into(), n: 3, r, w: 2, ..Default::default() };
    let answer = ClusterClient::new(channel(&node)).create_keyspace(request).await?;
    Ok(answer.into_inner().keyspace.expect("an answer has the keyspace"))
}

async fn update(node: String, request: proto::UpdateKeyspaceRequest) -> Made {
    let answer = ClusterClient::new(channel(&node)).update_keyspace(request).await?;
    Ok(answer.into_inner().keyspace.expect("an answer has the keyspace"))
}

async fn drop_it(node: String, name: &str) -> Made {
    let request = proto::DropKeyspaceRequest { name: name.into(), if_version: None };
    let answer = ClusterClient::new(channel(&node)).drop_keyspace(request).await?;
    Ok(answer.into_inner().keyspace.expect("an answer has the keyspace"))
}

/// Sends a call as a client of its own.
fn call(cluster: &mut Cluster, answers: &Answers, number: usize, work: impl Future<Output = Made> + 'static) {
    let answers = answers.clone();
    cluster.client(&format!("call{number}"), async move {
        let made = work.await;
        answers.borrow_mut().push((number, made));
    });
}

fn cut(cluster: &Cluster, one: &[usize], other: &[usize]) {
    for a in one {
        for b in other {
            cluster.sim.partition(cluster.hosts[*a].name.as_str(), cluster.hosts[*b].name.as_str());
        }
    }
}

fn run(cluster: &mut Cluster, ms: u64) {
    for _ in 0..ms {
        cluster.step();
    }
}

/// All nodes have one map.
fn one_map(cluster: &mut Cluster) -> quoral::ring::layout::ClusterMap {
    for _ in 0..30_000 {
        let maps = cluster.maps();
        if maps.len() == cluster.hosts.len() && maps.iter().all(|(_, map)| *map == maps[0].1) {
            return maps[0].1.clone();
        }
        cluster.step();
    }
    panic!("the nodes have different maps: {:?}", cluster.maps());
}

/// F23: two creations of one name at once, on two sides of a partition: one wins, the other is told so.
#[test]
fn f23_of_two_creations_on_two_sides_one_wins() {
    for (seed, nodes, minority) in [(1, 3, vec![2]), (2, 3, vec![0]), (3, 5, vec![1, 3]), (4, 4, vec![0, 1])]
    {
        let mut cluster = calm(seed, nodes);
        let majority: Vec<usize> = (0..nodes).filter(|node| !minority.contains(node)).collect();
        let names = cluster.node_names();
        cut(&cluster, &majority, &minority);
        let answers = Answers::default();
        for (number, node) in [majority[0], minority[0]].into_iter().enumerate() {
            let name = names[node].clone();
            call(&mut cluster, &answers, number, async move { create(name, "new", 1 + number as u32).await });
        }
        run(&mut cluster, 1_200);
        let won_early = answers.borrow().iter().any(|(number, made)| *number == 0 && made.is_ok());
        assert_eq!(won_early, 2 * majority.len() > nodes, "seed {seed}: {:?}", answers.borrow());
        assert!(answers.borrow().iter().all(|(number, _)| *number == 0), "the minority decides nothing");
        cluster.heal();
        cluster.run_clients();
        let answers = answers.borrow();
        let winners: Vec<_> = answers.iter().filter_map(|(_, made)| made.as_ref().ok()).collect();
        let losers: Vec<_> = answers.iter().filter_map(|(_, made)| made.as_ref().err()).collect();
        assert_eq!((winners.len(), losers.len()), (1, 1), "seed {seed}: {answers:?}");
        assert_eq!(losers[0].code(), Code::AlreadyExists, "seed {seed}: {losers:?}");
        let map = one_map(&mut cluster);
        let made = map.keyspace("new").expect("made");
        assert_eq!((made.id.0, u32::from(made.r)), (winners[0].id, winners[0].r), "seed {seed}");
    }
}

/// An update, a drop and a new keyspace of the same name on the one side; an update and a drop on the other, which
/// are about the keyspace that they met, and hear that it is gone.
#[test]
fn a_change_on_the_other_side_never_hits_the_keyspace_made_anew() {
    let mut cluster = calm(5, 3);
    let (names, answers) = (cluster.node_names(), Answers::default());
    let first = names[0].clone();
    call(&mut cluster, &answers, 0, async move { create(first, "k", 2).await });
    cluster.run_clients();
    one_map(&mut cluster);
    cut(&cluster, &[0, 1], &[2]);
    let away = |n: usize| names[n].clone();
    let wanted = |r, if_version| proto::UpdateKeyspaceRequest {
        name: "k".into(),
        r: Some(r),
        if_version,
        ..Default::default()
    };
    let far = away(2);
    call(&mut cluster, &answers, 1, async move { update(far, wanted(1, None)).await });
    let far = away(2);
    call(&mut cluster, &answers, 2, async move { drop_it(far, "k").await });
    let far = away(2);
    call(&mut cluster, &answers, 3, async move { update(far, wanted(3, Some(3))).await });
    let near = away(0);
    call(&mut cluster, &answers, 4, async move {
        drop_it(near.clone(), "k").await?;
        create(near, "k", 2).await
    });
    run(&mut cluster, 1_200);
    cluster.heal();
    cluster.run_clients();
    let mut answers = answers.borrow().clone();
    answers.sort_by_key(|(number, _)| *number);
    let [(_, Ok(old)), (_, Err(updated)), (_, Err(dropped)), (_, Err(versioned)), (_, Ok(new))] =
        &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert!(new.id > old.id);
    for status in [updated, dropped, versioned] {
        assert_eq!(status.code(), Code::Aborted, "{status:?}");
    }
    let map = one_map(&mut cluster);
    let k = map.keyspace("k").expect("made anew");
    assert_eq!((k.id.0, k.r), (new.id, 2));
}

fn records_of(cluster: &Cluster, host: usize, keyspace: KeyspaceId) -> usize {
    let mut count = 0;
    let all = (Bound::Unbounded, Bound::Unbounded);
    let mut visit = |key: &[u8], _: &[u8]| {
        count += usize::from(schema::split_range(key).is_some_and(|(_, found)| found == keyspace));
        true
    };
    cluster.hosts[host].storage.scan(all.0, all.1, false, &mut visit).expect("readable");
    count
}

/// A node that was away while a keyspace was dropped and made anew deletes the old one's records when it hears of
/// it, takes no hint of it, and serves the new one; what is written meanwhile, and through it, is all there.
#[test]
fn a_node_that_missed_a_drop_deletes_its_records_too() {
    let mut cluster = calm(6, 3);
    let carts = cluster.setup.spaces[1].clone();
    let old = cluster.first_map.keyspace(&carts.name).expect("a keyspace from the start").id;
    let (names, recorder) = (cluster.node_names(), cluster.recorder.clone());
    let ask = |node: usize, space: &Arc<Space>, turn: usize| Ask {
        node,
        space: space.clone(),
        key: format!("k{turn}"),
        timeout_ms: 1_000,
        level: None,
    };
    let (space, clients) = (carts.clone(), names.clone());
    cluster.client("before", async move {
        let mut client = Client::new(0, &clients, Duration::from_millis(500), recorder);
        for turn in 0..300 {
            assert!(client.put(&ask(turn % 3, &space, turn)).await);
        }
    });
    cluster.run_clients();
    run(&mut cluster, 500);
    assert!((0..3).all(|host| records_of(&cluster, host, old) == 300));
    cluster.crash(2, 1, true);
    let (name, answers) = (names[0].clone(), Answers::default());
    let (space, clients, recorder) = (carts.clone(), names.clone(), cluster.recorder.clone());
    cluster.client("hints", async move {
        let mut client = Client::new(1, &clients, Duration::from_millis(500), recorder);
        for turn in 300..320 {
            client.put(&ask(turn % 2, &space, turn)).await;
        }
    });
    cluster.run_clients();
    run(&mut cluster, 2_000);
    assert!(cluster.hints() > 0, "some wait for the one that is away");
    call(&mut cluster, &answers, 0, async move {
        drop_it(name.clone(), "carts").await?;
        let request = proto::CreateKeyspaceRequest { name: "carts".into(), ..Default::default() };
        let made = ClusterClient::new(channel(&name)).create_keyspace(request).await?;
        Ok(made.into_inner().keyspace.expect("an answer has the keyspace"))
    });
    cluster.run_clients();
    let made = answers.borrow()[0].1.clone().expect("made anew");
    run(&mut cluster, 5_000);
    for host in [0, 1] {
        assert_eq!(records_of(&cluster, host, old), 0, "n{} has records of it", host + 1);
    }
    assert_eq!(cluster.hints(), 0, "hints of a dropped keyspace are kept for nobody");
    assert!(records_of(&cluster, 2, old) > 0, "it was not there");
    cluster.bounce(2);
    cluster.until_ready(20_000);
    one_map(&mut cluster);
    run(&mut cluster, 5_000);
    assert_eq!(records_of(&cluster, 2, old), 0, "n3 has records of it");
    let found = std::rc::Rc::new(std::cell::Cell::new(usize::MAX));
    let (told, clients) = (found.clone(), names.clone());
    cluster.client("after", async move {
        let mut found = 0;
        for node in &clients {
            for turn in 0..320 {
                let request = proto::GetRequest {
                    keyspace: "carts".into(),
                    key: format!("k{turn}").into(),
                    answers: Some(proto::get_request::Answers::R(3)),
                    ..Default::default()
                };
                let mut kv = proto::kv_client::KvClient::new(channel(node));
                found += usize::from(kv.get(request).await.expect("an answer").into_inner().found);
            }
        }
        told.set(found);
    });
    cluster.run_clients();
    assert_eq!(found.get(), 0, "the new one is empty");
    let new = KeyspaceId(made.id);
    assert_eq!((0..3).map(|host| records_of(&cluster, host, new)).sum::<usize>(), 0);
    assert_eq!(check(&cluster.recorder.ops()), Vec::new(), "before the drop all was in order");
}

/// Writes go on through all nodes while the keyspace is dropped, and a node loses its power in the middle of the
/// sweep: no record of it is left on any disk, nor a hint.
#[test]
fn no_late_write_survives_a_drop() {
    for seed in 1..4 {
        let weather = Weather { latency_min: 1, latency_max: 10, random_order: true, tick_ms: 1 };
        let mut cluster = Cluster::new(Setup { sync_ms: 10, ..Setup::plain(seed, &[0; 3], weather) });
        cluster.until_ready(10_000);
        let carts = cluster.setup.spaces[1].clone();
        let old = cluster.first_map.keyspace(&carts.name).expect("a keyspace from the start").id;
        let (names, answers) = (cluster.node_names(), Answers::default());
        for writer in 0..6_usize {
            let (space, clients) = (carts.clone(), names.clone());
            let recorder = cluster.recorder.clone();
            cluster.client(&format!("writer{writer}"), async move {
                let mut client = Client::new(writer, &clients, Duration::from_millis(500), recorder);
                for turn in 0..150_usize {
                    let (space, key) = (space.clone(), format!("w{writer} {turn}"));
                    client.put(&Ask { node: turn % 3, space, key, timeout_ms: 300, level: None }).await;
                }
            });
        }
        run(&mut cluster, 2_500);
        let before = records_of(&cluster, 1, old);
        assert!(before > 150, "seed {seed}: only {before} records");
        let name = names[0].clone();
        call(&mut cluster, &answers, 0, async move { drop_it(name, "carts").await });
        let is_midway = |cluster: &Cluster| records_of(cluster, 1, old) < before - 50;
        for _ in 0..10_000 {
            if is_midway(&cluster) {
                break;
            }
            cluster.step();
        }
        let left = records_of(&cluster, 1, old);
        assert!(is_midway(&cluster) && left > 0, "seed {seed}: {left} of {before} are left");
        cluster.crash(1, seed, true);
        run(&mut cluster, 1_000);
        cluster.bounce(1);
        cluster.run_clients();
        assert!(answers.borrow()[0].1.is_ok(), "seed {seed}: {:?}", answers.borrow());
        cluster.until_ready(20_000);
        one_map(&mut cluster);
        run(&mut cluster, 5_000);
        let left: Vec<usize> = (0..3).map(|host| records_of(&cluster, host, old)).collect();
        assert_eq!((left, cluster.hints()), (vec![0, 0, 0], 0), "seed {seed}, of {before}");
    }
}
