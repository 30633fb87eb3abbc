//! A write with a request id is applied once, however often and through whichever node it is sent.

use std::time::Duration;

use bytes::Bytes;
use quoral::rpc::proto;
use rustix::process::Signal;
use tonic::Code;

use crate::client::{self, Kv, assert_refused, bytes, get, get_r, kv, put, values};
use crate::cluster::{Cluster, alone, cli, said};
use crate::semantics::siblings_keyspace;

fn id(number: u128) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn named(number: u128, key: &str, value: &str) -> proto::PutRequest {
    proto::PutRequest { request_id: id(number), ..put(key, value) }
}

fn kvs(cluster: &Cluster) -> Vec<Kv> {
    cluster.all_clients().into_iter().map(kv).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_gets_the_first_answer_and_changes_nothing() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    client::wait_for_all(&cluster.all_clients(), 3).await;
    let carts = siblings_keyspace(&cluster).await;
    let mut kvs = kvs(&cluster);
    for (ids, keyspace, conflicts) in [(0, "default", "lww"), (1_000, &carts[..], "siblings")] {
        let of = |request: proto::PutRequest| proto::PutRequest { keyspace: keyspace.into(), ..request };
        let of_get = |key: &str| proto::GetRequest { keyspace: keyspace.into(), ..get(key) };
        let first = kvs[0].put(of(named(ids + 1, "k", "first"))).await.expect("put").into_inner();
        for kv in &mut kvs {
            let again = kv.put(of(named(ids + 1, "k", "first"))).await.expect("put").into_inner();
            assert_eq!((again.stamp, &again.context), (first.stamp, &first.context), "{conflicts}");
            assert!(again.acks >= 2);
        }
        // What came after it stays.
        let context = kvs[1].get(of_get("k")).await.expect("get").into_inner().context;
        let later = proto::PutRequest { context, ..of(put("k", "later")) };
        kvs[1].put(later).await.expect("put");
        for kv in &mut kvs {
            let again = kv.put(of(named(ids + 1, "k", "first"))).await.expect("put").into_inner();
            assert_eq!(again.stamp, first.stamp, "{conflicts}");
            let now = kv.get(of_get("k")).await.expect("get").into_inner();
            assert_eq!(values(&now), ["later"], "{conflicts}");
        }
        // All at once, through all nodes, round after round: one version of each.
        for round in 0..40u128 {
            let key = format!("at once {round}");
            let attempts = client::for_each((0..6).collect(), 6, |turn| {
                let (mut kv, put) = (kvs[turn % 3].clone(), of(named(ids + 100 + round, &key, "v")));
                async move { kv.put(put).await }
            });
            assert!(attempts.await.iter().all(Result::is_ok));
            let found = kvs[0].get(of_get(&key)).await.expect("get").into_inner();
            assert_eq!(values(&found), ["v"], "{conflicts}, round {round}");
        }
        // A delete has its own, and another write can't have the same.
        let delete = proto::DeleteRequest {
            keyspace: keyspace.into(),
            key: bytes("k"),
            context: kvs[0].get(of_get("k")).await.expect("get").into_inner().context,
            request_id: id(ids + 2),
            ..Default::default()
        };
        let gone = kvs[2].delete(delete.clone()).await.expect("deleted").into_inner();
        kvs[1].put(of(put("k", "anew"))).await.expect("put");
        assert_eq!(kvs[0].delete(delete).await.expect("deleted").into_inner().stamp, gone.stamp);
        assert_eq!(values(kvs[2].get(of_get("k")).await.expect("get").get_ref()), ["anew"]);
        for other in
            [named(ids + 1, "k", "other"), named(ids + 1, "other", "first"), named(ids + 2, "k", "anew")]
        {
            let refused = kvs[0].put(of(other)).await.expect_err("another write");
            if refused.message().contains("is the id of another write") {
                assert_refused(&refused, Code::InvalidArgument, &["request_id"]);
            } else {
                panic!("{refused:?}");
            }
        }
    }
    cluster.check();
}

/// The first coordinator is stopped, or killed, with the write on its way: whoever is asked next finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_its_coordinator_died_is_applied_once() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    client::wait_for_all(&cluster.all_clients(), 3).await;
    let carts = siblings_keyspace(&cluster).await;
    for round in 0..6u128 {
        let away = usize::try_from(round % 3).expect("small");
        let clients = cluster.all_clients();
        let writes: Vec<u128> = (0..30).map(|write| 1_000 * round + write).collect();
        let of = |number: u128| proto::PutRequest {
            keyspace: carts.clone(),
            timeout_ms: 1_500,
            ..named(number, &format!("cart {number}"), "item")
        };
        // As they are sent the node goes away.
        let sent = client::for_each(writes.clone(), 30, |number| {
            let (mut kv, put) = (kv(clients[away]), of(number));
            // A stopped node never answers.
            async move { drop(tokio::time::timeout(Duration::from_secs(1), kv.put(put)).await) }
        });
        let node = &mut cluster.nodes[away];
        let goes = async {
            tokio::time::sleep(Duration::from_millis(u64::try_from(round).expect("small"))).await;
            match round % 2 {
                0 => node.kill(),
                _ => node.signal(Signal::STOP),
            }
        };
        tokio::join!(sent, goes);
        let others: Vec<_> = (0..3).filter(|at| *at != away).map(|at| clients[at]).collect();
        client::wait_for_all(&others, 2).await;
        for number in &writes {
            for at in &others {
                kv(*at).put(of(*number)).await.expect("two of three are there");
            }
        }
        match round % 2 {
            0 => cluster.nodes[away].start(),
            _ => cluster.nodes[away].signal(Signal::CONT),
        }
        cluster.wait_ready();
        client::wait_for_all(&clients, 3).await;
        for number in &writes {
            let get = proto::GetRequest { keyspace: carts.clone(), ..get_r(format!("cart {number}"), 3) };
            let found = kv(clients[0]).get(get).await.expect("get").into_inner();
            assert_eq!(values(&found), ["item"], "{number} was applied once");
        }
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_repeats_under_a_request_id() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    client::wait_for_all(&cluster.all_clients(), 3).await;
    let clients = cluster.all_clients();
    let id = "00112233445566778899aabbccddeeff";
    for at in [0, 1] {
        let (output, _) = cli(&[clients[at]], &["put", "k", "v", "--request-id", id]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let (output, _) = cli(&[clients[2]], &["put", "k", "between"]);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    let (output, _) = cli(&[clients[0]], &["get", "k"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "between");
    cluster.check();
}

/// A hint brings a version, not its entry. Whoever it was brought to knows its name all the same, also when another
/// write has taken its place since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_known_by_those_who_got_the_write_by_a_hint() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    // As they are sent the two others die: some are with the first alone then, and in doubt.
    let mut carried_out = Vec::new();
    for round in 0..40_u128 {
        let numbers = (100 * round..100 * round + 60).collect();
        let sent = client::for_each(numbers, 60, |number| {
            let (mut kv, put) = (kv(clients[0]), named(number, &format!("k{number}"), "first"));
            async move { (number, kv.put(put).await) }
        });
        let (_, others) = cluster.nodes.split_at_mut(1);
        let die = async {
            tokio::time::sleep(Duration::from_millis(5 + u64::try_from(round).expect("small"))).await;
            others.iter().for_each(|node| node.signal(Signal::KILL));
            others.iter_mut().for_each(|node| node.kill());
        };
        let (results, ()) = tokio::join!(sent, die);
        let maybe = |(number, result): (u128, Result<_, tonic::Status>)| {
            result.is_err_and(|status| !client::surely_not_applied(&status)).then_some(number)
        };
        others.iter_mut().for_each(|node| node.start());
        cluster.wait_ready();
        client::wait_for_all(&clients, 3).await;
        for number in results.into_iter().filter_map(maybe) {
            let found = kv(clients[0]).get(get(format!("k{number}"))).await.expect("get").into_inner();
            carried_out.extend(found.found.then_some(number));
        }
        if carried_out.len() >= 3 {
            break;
        }
    }
    assert!(!carried_out.is_empty(), "no write that was in doubt was carried out");
    let (waited, _) = cli(&clients[..1], &["hints", "wait", "--timeout", "20s"]);
    assert_eq!(waited.status.code(), Some(0), "{}", said(&waited));
    for number in &carried_out {
        kv(clients[0]).put(put(format!("k{number}"), "second")).await.expect("put");
    }
    cluster.nodes[0].kill();
    client::wait_for_all(&clients[1..], 2).await;
    for number in carried_out {
        let key = format!("k{number}");
        let again = named(number, &key, "first");
        kv(clients[1 + usize::try_from(number).expect("small") % 2]).put(again).await.expect("known");
        let found = kv(clients[1]).get(get(key)).await.expect("get").into_inner();
        assert_eq!(values(&found), ["second"], "k{number}: the retry is applied over a later write");
    }
}
