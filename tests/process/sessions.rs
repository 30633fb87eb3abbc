//! A session token carries what one client has written and read, through whichever node, whatever its quorums.

use bytes::Bytes;
use quoral::rpc::proto::{self, get_request, put_request};
use tonic::Code;

use crate::client::{self, assert_refused, bytes, get, kv, put, values};
use crate::cluster::{Cluster, alone};
use crate::semantics::siblings_keyspace;

const KEYS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_reads_its_writes_with_one_replica_each() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    // Without hints a node stays behind until it is repaired.
    let bootstrap = cluster.bootstrap();
    cluster
        .nodes
        .iter()
        .for_each(|node| node.configure("", &format!("{bootstrap}\n[hints]\nwindow_ms = 0\n")));
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let carts = siblings_keyspace(&cluster).await;
    cluster.nodes[2].kill();
    let one_ack = Some(put_request::Acks::WLevel(proto::Level::One.into()));
    let one_answer = || Some(get_request::Answers::RLevel(proto::Level::One.into()));
    let mut sessions = Vec::new();
    for keyspace in ["default", &carts[..]] {
        let mut session = Bytes::new();
        for key in 0..KEYS {
            let put = proto::PutRequest {
                keyspace: keyspace.into(),
                acks: one_ack,
                session: Some(session),
                ..put(format!("k{key}"), "v")
            };
            session = kv(clients[key % 2]).put(put).await.expect("two are there").into_inner().session;
            assert!(!session.is_empty());
        }
        sessions.push((keyspace, session));
    }
    cluster.nodes[2].start();
    cluster.wait_ready();
    client::wait_for_all(&clients, 3).await;
    for (keyspace, session) in sessions {
        let (mut behind, mut carried) = (0, session.clone());
        for key in 0..KEYS {
            let get = |session| proto::GetRequest {
                keyspace: keyspace.into(),
                answers: one_answer(),
                session,
                ..get(format!("k{key}"))
            };
            let mut late = kv(clients[2]);
            behind += usize::from(!late.get(get(None)).await.expect("get").into_inner().found);
            let found = late.get(get(Some(carried))).await.expect("get").into_inner();
            assert_eq!(values(&found), ["v"], "{keyspace} k{key}");
            carried = found.session;
        }
        assert!(
            behind > KEYS / 2,
            "only {behind} reads without a session were stale: the test proves little"
        );
        // A token that has let these keys go asks more replicas instead.
        let mut long = session;
        for key in 0..100 {
            let put = proto::PutRequest { session: Some(long), ..put(format!("other {key}"), "v") };
            long = kv(clients[0]).put(put).await.expect("put").into_inner().session;
        }
        assert!(long.len() <= 4_096);
        for key in 0..KEYS {
            let get = proto::GetRequest {
                keyspace: keyspace.into(),
                answers: one_answer(),
                session: Some(long.clone()),
                ..get(format!("k{key}"))
            };
            let found = kv(clients[2]).get(get).await.expect("get").into_inner();
            assert_eq!(values(&found), ["v"], "{keyspace} k{key}, let go");
        }
        // When nobody who answers has it, that is said.
        let put = proto::PutRequest {
            keyspace: keyspace.into(),
            acks: one_ack,
            session: Some(Bytes::new()),
            ..put("unreachable", "v")
        };
        cluster.nodes[2].kill();
        let session = kv(clients[0]).put(put).await.expect("put").into_inner().session;
        cluster.nodes[2].start();
        cluster.nodes[0].kill();
        cluster.nodes[1].kill();
        cluster.nodes[0].start();
        cluster.nodes[1].start();
        cluster.wait_ready();
        client::wait_for_all(&clients, 3).await;
        let found = kv(clients[2])
            .get(proto::GetRequest {
                keyspace: keyspace.into(),
                session: Some(session),
                ..get("unreachable")
            })
            .await;
        assert!(found.expect("the others have it").into_inner().found);
    }
    let bad = proto::GetRequest { session: Some(bytes("not a token")), ..get("k0") };
    let refused = kv(clients[0]).get(bad).await.expect_err("no token");
    assert_refused(&refused, Code::InvalidArgument, &["session"]);
    let bad = proto::PutRequest { session: Some(bytes("not a token")), ..put("k0", "v") };
    let refused = kv(clients[1]).put(bad).await.expect_err("no token");
    assert_refused(&refused, Code::InvalidArgument, &["session"]);
    cluster.check();
}

/// A write that is sent again is no reason to forget what the client has seen since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_write_takes_nothing_from_the_token() {
    let _alone = alone();
    let mut cluster = Cluster::made(3);
    let bootstrap = cluster.bootstrap();
    let alone = "[hints]\nwindow_ms = 0\n[repair]\ninterval_ms = 0\nread_repair = false\n";
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}\n{alone}")));
    cluster.start_all();
    let clients = cluster.all_clients();
    client::wait_for_all(&clients, 3).await;
    let of = |value: &'static str, session: Bytes| proto::PutRequest {
        request_id: Bytes::from(vec![if value == "a" { 1 } else { 2 }; 16]),
        session: Some(session),
        ..put("k", value)
    };
    let first = kv(clients[0]).put(of("a", Bytes::new())).await.expect("put").into_inner();
    cluster.nodes[2].kill();
    client::wait_for_all(&clients[..2], 2).await;
    let second = kv(clients[0]).put(of("b", first.session)).await.expect("put").into_inner();
    let again = kv(clients[1]).put(of("a", second.session)).await.expect("known").into_inner();
    assert_eq!(again.stamp, first.stamp);
    // The third has the first write alone, and is alone.
    cluster.nodes[2].start();
    cluster.nodes[2].wait_ready();
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    let one = |session| proto::GetRequest {
        answers: Some(get_request::Answers::RLevel(proto::Level::One.into())),
        session,
        ..get("k")
    };
    let mut late = kv(clients[2]);
    let found = late.get(one(None)).await.expect("get").into_inner();
    assert_eq!(values(&found), ["a"]);
    let refused = late.get(one(Some(again.session))).await.expect_err("it is behind");
    assert_refused(&refused, Code::Unavailable, &[]);
}
