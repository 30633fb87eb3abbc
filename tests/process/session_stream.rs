//! Sessions on real nodes: many requests in flight, matched by id, and no client that can make a node hold more
//! than it should.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use quoral::rpc::proto::kv_client::KvClient;
use quoral::rpc::proto::{self, SessionRequest, SessionResponse, session_request, session_response::Outcome};
use quoral::types::limits;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::client::{self, bytes, get, kv, put};
use crate::cluster::{Cluster, Node, alone, eventually, http_get};

struct Session {
    send: mpsc::Sender<SessionRequest>,
    answers: Streaming<SessionResponse>,
}

impl Session {
    async fn open(node: &Node) -> Session {
        Session::open_on(&mut kv(node.client)).await
    }

    async fn open_on(client: &mut KvClient<Channel>) -> Session {
        let (send, requests) = mpsc::channel(16);
        let answers = client.session(ReceiverStream::new(requests)).await.expect("a session");
        Session { send, answers: answers.into_inner() }
    }

    async fn send(&self, id: u64, request: session_request::Request) {
        self.send.send(SessionRequest { id, request: Some(request) }).await.expect("the stream is open");
    }

    async fn next(&mut self) -> (u64, Outcome) {
        let answer = tokio::time::timeout(Duration::from_secs(60), self.answers.message()).await;
        let answer = answer.expect("in time").expect("no error").expect("an answer");
        (answer.id, answer.outcome.expect("an outcome"))
    }

    /// Half-closes, and takes all answers.
    async fn finish(mut self) -> BTreeMap<u64, Outcome> {
        drop(self.send);
        let mut all = BTreeMap::new();
        while let Some(answer) = self.answers.message().await.expect("no error") {
            let before = all.insert(answer.id, answer.outcome.expect("an outcome"));
            assert!(before.is_none(), "{} is answered twice", answer.id);
        }
        all
    }
}

fn a_put(key: String, value: impl Into<Vec<u8>>) -> session_request::Request {
    session_request::Request::Put(proto::PutRequest { timeout_ms: 30_000, ..put(key, value) })
}

fn a_get(key: String) -> session_request::Request {
    session_request::Request::Get(proto::GetRequest { timeout_ms: 30_000, ..get(key) })
}

#[track_caller]
fn found(outcome: &Outcome) -> Vec<bytes::Bytes> {
    let Outcome::Get(answer) = outcome else { panic!("no answer to a get: {outcome:?}") };
    client::values(answer)
}

/// The value of a metric of a node.
fn metric(node: &Node, name: &str) -> Result<i64, String> {
    let (_, text) = http_get(node.http, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).ok_or_else(|| format!("{name} is not in {text}"))
}

fn wait_for_none(node: &Node) {
    eventually(Duration::from_secs(30), || {
        for name in ["quoral_sessions", "quoral_session_requests", "quoral_session_answer_bytes"] {
            match metric(node, name)? {
                0 => {}
                count => return Err(format!("{}: {name} is {count}", node.name)),
            }
        }
        Ok(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_requests_in_flight_are_matched_by_id() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut session = Session::open(&cluster.nodes[0]).await;
    let puts = session.send.clone();
    // Ids in no order, all sent before the first answer is taken.
    let id = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let sending = tokio::spawn(async move {
        for n in 0..5_000 {
            let request = Some(a_put(format!("key {n}"), format!("value {n}")));
            puts.send(SessionRequest { id: id(n), request }).await.expect("the stream is open");
        }
    });
    // All fit into what the node holds and what its window takes.
    sending.await.expect("no panic");
    let mut order = Vec::new();
    for _ in 0..5_000 {
        let (id, outcome) = session.next().await;
        assert!(matches!(outcome, Outcome::Put(_)), "{outcome:?}");
        order.push(id);
    }
    let distinct: BTreeSet<u64> = order.iter().copied().collect();
    assert_eq!(distinct, (0..5_000).map(id).collect());
    for n in 0..5_000 {
        session.send(n, a_get(format!("key {n}"))).await;
    }
    let answers = session.finish().await;
    assert_eq!(answers.len(), 5_000);
    for (n, outcome) in &answers {
        assert_eq!(found(outcome), [format!("value {n}")]);
    }
    wait_for_none(&cluster.nodes[0]);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_messages_are_answered_and_others_go_on() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut session = Session::open(&cluster.nodes[0]).await;
    let error = |outcome: Outcome| match outcome {
        Outcome::Error(error) => {
            assert_eq!(error.failure.expect("a failure").applied(), proto::Applied::No, "{}", error.message);
            (Code::from_i32(i32::try_from(error.code).expect("small")), error.message)
        }
        other => panic!("no error: {other:?}"),
    };
    session.send.send(SessionRequest { id: 3, request: None }).await.expect("open");
    let (id, outcome) = session.next().await;
    assert_eq!((id, error(outcome).0), (3, Code::InvalidArgument));
    for (request, code, part) in [
        (a_put(String::new(), "v"), Code::InvalidArgument, "key"),
        (a_put("k".into(), vec![0; (1 << 20) + 1]), Code::InvalidArgument, "1048577"),
        (
            session_request::Request::Get(proto::GetRequest { keyspace: "nosuch".into(), ..get("k") }),
            Code::NotFound,
            "nosuch",
        ),
        (session_request::Request::Get(client::get_r("k", 4)), Code::InvalidArgument, "4"),
    ] {
        session.send(3, request).await;
        let (id, outcome) = session.next().await;
        let (of_item, said) = error(outcome);
        assert!((id, of_item) == (3, code) && said.contains(part), "{of_item:?} {said}");
    }
    session.send(3, a_put("k".into(), "v")).await;
    assert!(matches!(session.next().await, (3, Outcome::Put(_))));
    let delete = proto::DeleteRequest { key: bytes("k"), ..Default::default() };
    session.send(4, session_request::Request::Delete(delete)).await;
    assert!(matches!(session.next().await, (4, Outcome::Delete(_))));
    // A message over the limit of all messages: its id can't be read. It ends the stream, and says why.
    session.send(5, a_put("k".into(), vec![0; 40 << 20])).await;
    let status = session.answers.message().await.expect_err("the stream ends");
    client::assert_refused(&status, Code::InvalidArgument, &["message", "33554432 bytes"]);
    wait_for_none(&cluster.nodes[0]);
    cluster.check();
}

/// Kilobytes of memory that a process holds.
fn resident(node: &Node) -> u64 {
    let path = format!("/proc/{}/status", node.pid().as_raw_nonzero());
    let text = std::fs::read_to_string(path).expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_large_values_holds_little_memory() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut writer = kv(cluster.nodes[0].client);
    let value = vec![7; 1 << 20];
    for n in 0..8 {
        writer.put(put(format!("large {n}"), value.clone())).await.expect("put");
    }
    let node = &cluster.nodes[0];
    let before = resident(node);
    // 2 000 MiB are asked for, and nothing of it is read.
    let mut session = Session::open(node).await;
    let send = session.send.clone();
    tokio::spawn(async move {
        for n in 0..2_000_u64 {
            let request = Some(a_get(format!("large {}", n % 8)));
            if send.send(SessionRequest { id: n, request }).await.is_err() {
                return;
            }
        }
    });
    // It fills what it may, and stops there.
    eventually(Duration::from_secs(60), || match metric(node, "quoral_session_answer_bytes")? {
        bytes if bytes > 20 << 20 => Ok(()),
        bytes => Err(format!("{bytes} bytes")),
    });
    for _ in 0..20 {
        let bytes = metric(node, "quoral_session_answer_bytes").expect("a metric");
        assert!(bytes <= limits::SESSION_ANSWER_BYTES as i64, "{bytes} bytes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = resident(node).saturating_sub(before);
    println!("{grown} KiB more for a reader that does not read");
    assert!(grown < 400 << 10, "{grown} KiB more for a reader that does not read");
    // The node serves others meanwhile.
    writer.put(put("small", "v")).await.expect("put");
    // And this one, as fast as it reads: every answer comes, and is whole.
    for _ in 0..100 {
        let (_, outcome) = session.next().await;
        assert_eq!(found(&outcome)[0].len(), 1 << 20, "a value is whole");
    }
    drop(session);
    wait_for_none(node);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_streams_of_a_slow_reader_hold_no_more_than_one() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut writer = kv(cluster.nodes[0].client);
    writer.put(put("large", vec![7; 1 << 20])).await.expect("put");
    let node = &cluster.nodes[0];
    let mut client = kv(node.client);
    let mut sessions = Vec::new();
    for _ in 0..10 {
        let session = Session::open_on(&mut client).await;
        for n in 0..10 {
            session.send(n, a_get("large".to_owned())).await;
        }
        sessions.push(session);
    }
    let client_bytes = i64::try_from(limits::BYTES_IN_FLIGHT / 4).expect("small");
    eventually(Duration::from_secs(60), || match metric(node, "quoral_session_answer_bytes")? {
        bytes if bytes > client_bytes / 2 => Ok(()),
        bytes => Err(format!("{bytes} bytes")),
    });
    for _ in 0..20 {
        let bytes = metric(node, "quoral_session_answer_bytes").expect("a metric");
        assert!(bytes <= client_bytes, "{bytes} bytes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Others write and read meanwhile.
    writer.put(put("small", "v")).await.expect("put");
    assert_eq!(writer.get(get("large")).await.expect("get").get_ref().siblings[0].value.len(), 1 << 20);
    // And as they are read, all are served.
    let finished: Vec<_> = sessions.into_iter().map(|session| tokio::spawn(session.finish())).collect();
    for outcomes in finished {
        let outcomes = outcomes.await.expect("no panic");
        assert!(outcomes.len() == 10 && outcomes.values().all(|outcome| found(outcome)[0].len() == 1 << 20));
    }
    wait_for_none(node);
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_leaves_nothing_behind() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    for round in 0..10 {
        let session = Session::open(&cluster.nodes[round % 3]).await;
        for n in 0..1_000 {
            session.send(n, a_put(format!("round {round} key {n}"), "v")).await;
        }
        // The connection goes with it.
        drop(session);
    }
    cluster.nodes.iter().for_each(wait_for_none);
    // What was begun is whole: each key has its value or none, on all nodes alike.
    let mut kv = kv(cluster.nodes[0].client);
    for n in 0..1_000 {
        let answer = kv.get(client::get_r(format!("round 3 key {n}"), 3)).await.expect("get").into_inner();
        assert!(!answer.found || client::values(&answer) == ["v"], "{answer:?}");
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_answers_what_it_has_begun() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut session = Session::open(&cluster.nodes[0]).await;
    for n in 0..2_000 {
        session.send(n, a_put(format!("key {n}"), "v")).await;
    }
    // One answer: the others are under way.
    let mut outcomes = BTreeMap::from([session.next().await]);
    cluster.nodes[0].signal(Signal::TERM);
    // What came before, and a little that comes while it stops, until the stream breaks.
    let mut sent = 2_000;
    loop {
        let request = Some(a_put(format!("key {sent}"), "v"));
        if sent < 2_020 && session.send.try_send(SessionRequest { id: sent, request }).is_ok() {
            sent += 1;
        }
        match tokio::time::timeout(Duration::from_secs(30), session.answers.message()).await {
            Ok(Ok(Some(answer))) => drop(outcomes.insert(answer.id, answer.outcome.expect("one"))),
            Ok(_) => break,
            Err(_) => panic!("the stream neither goes on nor breaks"),
        }
    }
    assert!(cluster.nodes[0].ended(Duration::from_secs(30)).expect("it stops").success());
    let refused = outcomes.values().filter(|outcome| matches!(outcome, Outcome::Error(_))).count();
    println!("{} of {sent} answered, {refused} refused", outcomes.len());
    // Requests are read in order, and all that were read have an answer: only the last may have none.
    let answered: Vec<u64> = outcomes.keys().copied().collect();
    let first: Vec<u64> = (0..sent).take(answered.len()).collect();
    assert_eq!(answered, first, "some that were read have no answer");
    let end = Instant::now() + Duration::from_secs(30);
    let mut other = kv(cluster.nodes[1].client);
    for (id, outcome) in outcomes {
        let key = format!("key {id}");
        let there = loop {
            match other.get(get(key.clone())).await {
                Ok(answer) => break answer.get_ref().found,
                Err(status) => assert!(Instant::now() < end, "{status:?}"),
            }
        };
        match outcome {
            Outcome::Put(_) => assert!(there, "{key} was acknowledged"),
            Outcome::Error(error) => {
                let applied = error.failure.expect("a failure").applied();
                assert!(applied == proto::Applied::Maybe || !there, "{key}: {}", error.message);
            }
            other => panic!("{other:?}"),
        }
    }
}
