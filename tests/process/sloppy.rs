//! Sloppy quorums: a write is taken while any `w` nodes are there, says so, is found meanwhile, and comes home.

use std::net::SocketAddr;
use std::time::Duration;

use quoral::rpc::proto::{self, cluster_client::ClusterClient};
use serde_json::Value;
use tonic::Code;

use crate::client::{self, assert_refused, bytes, get, get_r, kv, put, values};
use crate::cluster::{Cluster, alone, cli, eventually, said};

pub fn json(at: SocketAddr, arguments: &[&str]) -> Value {
    let (output, _) = cli(&[at], &[arguments, &["-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", said(&output)))
}

/// Indexes of the homes of a key of `default`, in order, then of the other nodes.
pub fn homes(cluster: &Cluster, key: &str) -> (Vec<usize>, Vec<usize>) {
    let told = json(cluster.nodes[0].client, &["explain", key]);
    let replicas = told["replicas"].as_array().expect("replicas").clone();
    let of_role = |role: &str| {
        let ids = replicas.iter().filter(|replica| replica["role"] == role);
        let index = |id: &Value| cluster.nodes.iter().position(|node| id == &node.id).expect("a node");
        ids.map(|replica| index(&replica["node"])).collect::<Vec<_>>()
    };
    (of_role("home"), of_role("fallback"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_every_home_away_a_sloppy_write_is_taken_and_comes_home() {
    let _alone = alone();
    let mut cluster = Cluster::start(5);
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let (home, others) = homes(&cluster, "cart");
    assert_eq!((home.len(), others.len()), (3, 2));
    kv(clients[home[0]]).put(put("cart", "before")).await.expect("all are there");
    let before = kv(clients[others[0]]).get(proto::GetRequest { sloppy: Some(true), ..get("cart") }).await;
    assert!(!before.expect("get").into_inner().sloppy, "homes answered");
    for at in &home {
        cluster.nodes[*at].kill();
    }
    // Their silence has been noticed when a strict write is refused.
    let left: Vec<SocketAddr> = others.iter().map(|at| clients[*at]).collect();
    eventually(Duration::from_secs(10), || {
        let (output, _) = cli(&left[..1], &["put", "cart", "strict"]);
        match output.status.code() {
            Some(5) => Ok(()),
            _ => Err(said(&output)),
        }
    });
    let sloppy = |value: &str| proto::PutRequest { sloppy: Some(true), ..put("cart", value) };
    for (at, value) in [(left[0], "milk"), (left[1], "eggs")] {
        let done = kv(at).put(sloppy(value)).await.expect("two nodes are there").into_inner();
        assert!(done.sloppy && done.acks == 2, "{done:?}");
        for from in &left {
            let found = kv(*from).get(proto::GetRequest { sloppy: Some(true), ..get("cart") }).await;
            let found = found.expect("the fallbacks answer").into_inner();
            assert_eq!((values(&found), found.sloppy, found.replies), (vec![bytes(value)], true, 2));
        }
    }
    // Under a request id it is applied once, and found by the other.
    let named = proto::PutRequest { request_id: bytes([7; 16]), ..sloppy("bread") };
    let first = kv(left[0]).put(named.clone()).await.expect("taken").into_inner();
    assert_eq!(kv(left[1]).put(named.clone()).await.expect("taken").into_inner().stamp, first.stamp);
    let strict = kv(left[0]).get(get("cart")).await.expect_err("no home is there");
    assert_refused(&strict, Code::Unavailable, &["0 alive"]);
    let three = proto::PutRequest { acks: Some(proto::put_request::Acks::W(3)), ..sloppy("three") };
    let refused = kv(left[0]).put(three).await.expect_err("three are not there");
    assert_refused(&refused, Code::Unavailable, &["3 needed"]);
    // Hints are durable.
    cluster.nodes[others[0]].kill();
    cluster.nodes[others[0]].start();
    for at in &home {
        cluster.nodes[*at].start();
    }
    cluster.wait_ready();
    client::wait_for_all(&clients, 3).await;
    let (waited, _) = cli(&left[..1], &["hints", "wait", "--timeout", "20s"]);
    assert_eq!(waited.status.code(), Some(0), "{}", said(&waited));
    for at in &home {
        // None of them has what another home does not have.
        let found = kv(clients[*at]).get(get_r("cart", 1)).await.expect("get").into_inner();
        assert!(!found.sloppy);
    }
    let found = kv(left[1]).get(get_r("cart", 3)).await.expect("get").into_inner();
    assert_eq!(values(&found), ["bread"]);
    // A later write stands, whoever is asked to carry out the one before it again.
    kv(clients[home[0]]).put(put("cart", "butter")).await.expect("all are there");
    for at in &clients {
        let again = kv(*at).put(named.clone()).await.expect("it is known").into_inner();
        assert_eq!(again.stamp, first.stamp);
    }
    let found = kv(left[1]).get(get_r("cart", 3)).await.expect("get").into_inner();
    assert_eq!(values(&found), ["butter"]);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sloppy_keyspace_takes_carts_on_both_sides() {
    let _alone = alone();
    let mut cluster = Cluster::start(4);
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let (output, _) = cli(&clients, &["keyspace", "create", "carts", "--conflicts", "siblings", "--sloppy"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for at in &clients {
        let list = ClusterClient::new(client::channel(*at));
        let heard = async || {
            let list = list.clone().list_keyspaces(proto::ListKeyspacesRequest {}).await;
            list.is_ok_and(|list| list.into_inner().keyspaces.iter().any(|k| k.name == "carts" && k.sloppy))
        };
        while !heard().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let of = |value: &str| proto::PutRequest { keyspace: "carts".into(), ..put("cart", value) };
    let of_get = || proto::GetRequest { keyspace: "carts".into(), ..get("cart") };
    // One side of the four, then the other, is killed: each takes an item.
    for (side, item) in [([0, 1], "milk"), ([2, 3], "eggs")] {
        for at in side {
            cluster.nodes[at].kill();
        }
        let there: Vec<usize> = (0..4).filter(|at| !side.contains(at)).collect();
        for at in &there {
            // Until their silence is noticed a write may be in doubt, and be there all the same.
            let end = std::time::Instant::now() + Duration::from_secs(10);
            loop {
                let named = proto::PutRequest { request_id: bytes([there[0] as u8; 16]), ..of(item) };
                match kv(clients[*at]).put(named).await {
                    Ok(done) => break assert!(done.into_inner().acks >= 2),
                    Err(status) => assert!(std::time::Instant::now() < end, "{status:?}"),
                }
            }
        }
        for at in side {
            cluster.nodes[at].start();
        }
        cluster.wait_ready();
        client::wait_for_all(&clients, 3).await;
    }
    let (waited, _) = cli(&clients[..1], &["hints", "wait", "--timeout", "20s"]);
    assert_eq!(waited.status.code(), Some(0), "{}", said(&waited));
    for at in &clients {
        let found = kv(*at).get(of_get()).await.expect("get").into_inner();
        assert_eq!((values(&found), found.sloppy), (vec![bytes("eggs"), bytes("milk")], false));
    }
    cluster.check();
}

/// Where no hint may be kept a sloppy write is refused, and so is its retry: nothing was stored, nothing remembered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_sloppy_write_is_not_remembered() {
    let _alone = alone();
    let mut cluster = Cluster::made(4);
    let bootstrap = cluster.bootstrap();
    let limits = "[hints]\ntarget_bytes = 1\ntotal_bytes = 1\n";
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}\n{limits}")));
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let (home, others) = homes(&cluster, "cart");
    for at in &home {
        cluster.nodes[*at].kill();
    }
    let left = clients[others[0]];
    eventually(Duration::from_secs(10), || {
        let (output, _) = cli(&[left], &["put", "cart", "strict"]);
        if output.status.code() == Some(5) { Ok(()) } else { Err(said(&output)) }
    });
    let lonely = proto::PutRequest {
        sloppy: Some(true),
        acks: Some(proto::put_request::Acks::W(1)),
        request_id: bytes([9; 16]),
        ..put("cart", "lonely")
    };
    for attempt in 0..3 {
        let refused = kv(left).put(lonely.clone()).await.expect_err("no hint may be kept");
        assert!(client::surely_not_applied(&refused), "attempt {attempt}: {refused:?}");
    }
    for at in &home {
        cluster.nodes[*at].start();
    }
    cluster.wait_ready();
    client::wait_for_all(&clients, 3).await;
    assert!(
        !kv(left).get(get_r("cart", 3)).await.expect("get").into_inner().found,
        "it was surely not applied"
    );
    kv(left).put(lonely).await.expect("now it is taken");
    cluster.check();
}
