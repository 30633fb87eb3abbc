//! The table of errors (docs/protocol.md), row by row: each is reached by every way to send a write, through a home
//! replica and through a node that sends it on, and what it says of `applied` is held against what the replicas hold.

use std::net::SocketAddr;
use std::time::Duration;

use quoral::rpc::proto::{self, batch_item, batch_status, session_request, session_response};
use rustix::process::Signal;
use tonic::{Code, Status};

use crate::client::{self, bytes, get, kv, put, values};
use crate::cluster::{Cluster, alone, cli, eventually, said};
use crate::sloppy::homes;

/// One partition key for all, so that all have the same homes.
const KEY: &str = "errors";

#[derive(Debug, Clone, Copy)]
enum Way {
    Call,
    Batch,
    Session,
}

/// A write of one sort key, in one of the ways.
#[derive(Debug, Clone)]
struct Send {
    way: Way,
    deletes: bool,
    named: bool,
    sort: String,
}

/// What an error said.
#[derive(Debug)]
struct Told {
    code: Code,
    failure: proto::Failure,
    delay: bool,
}

impl Told {
    fn of_status(status: &Status) -> Told {
        let failure = client::failure(status).unwrap_or_else(|| panic!("no failure in {status:?}"));
        let delay = tonic_types::StatusExt::get_details_retry_info(status).is_some();
        Told { code: status.code(), failure, delay }
    }

    fn of_error(error: proto::RequestError) -> Told {
        let code = Code::from_i32(i32::try_from(error.code).expect("small"));
        Told { code, failure: error.failure.expect("a failure"), delay: error.retry_delay_ms > 0 }
    }

    fn surely_not(&self) -> bool {
        self.failure.applied() == proto::Applied::No
    }
}

/// Every way to send a put and a delete, named and not, each of its own sort key.
fn every_way(through: &str) -> Vec<Send> {
    let mut all = Vec::new();
    for way in [Way::Call, Way::Batch, Way::Session] {
        for (deletes, named) in [(false, false), (false, true), (true, false), (true, true)] {
            all.push(Send { way, deletes, named, sort: format!("{through} {way:?} {deletes} {named}") });
        }
    }
    all
}

impl Send {
    fn request_id(&self) -> bytes::Bytes {
        match self.named {
            true => bytes(&blake3::hash(self.sort.as_bytes()).as_bytes()[..16]),
            false => bytes::Bytes::new(),
        }
    }

    fn put(&self, spoil: &Spoil) -> proto::PutRequest {
        let request = proto::PutRequest {
            sort: bytes(self.sort.clone()),
            request_id: self.request_id(),
            timeout_ms: 1_500,
            ..put(KEY, "after")
        };
        match spoil {
            Spoil::Nothing => request,
            Spoil::Keyspace => proto::PutRequest { keyspace: "nosuch".into(), ..request },
            Spoil::Acks => proto::PutRequest { acks: Some(proto::put_request::Acks::W(9)), ..request },
            Spoil::Context => proto::PutRequest { context: bytes("junk"), ..request },
        }
    }

    fn delete(&self, spoil: &Spoil) -> proto::DeleteRequest {
        let put = self.put(spoil);
        proto::DeleteRequest {
            keyspace: put.keyspace,
            key: put.key,
            sort: put.sort,
            context: put.context,
            acks: matches!(spoil, Spoil::Acks).then_some(proto::delete_request::Acks::W(9)),
            timeout_ms: put.timeout_ms,
            request_id: put.request_id,
            ..Default::default()
        }
    }

    async fn run(&self, at: SocketAddr, spoil: &Spoil) -> Result<(), Told> {
        let mut kv = kv(at);
        match (self.way, self.deletes) {
            (Way::Call, false) => kv.put(self.put(spoil)).await.map(drop).map_err(|s| Told::of_status(&s)),
            (Way::Call, true) => {
                kv.delete(self.delete(spoil)).await.map(drop).map_err(|s| Told::of_status(&s))
            }
            (Way::Batch, deletes) => {
                let request = match deletes {
                    true => batch_item::Request::Delete(self.delete(spoil)),
                    false => batch_item::Request::Put(self.put(spoil)),
                };
                let items = vec![proto::BatchItem { request: Some(request) }];
                let answer = kv.batch(proto::BatchRequest { items, ..Default::default() }).await;
                let answer = answer.map_err(|s| Told::of_status(&s))?.into_inner();
                match answer.statuses.into_iter().next().and_then(|status| status.outcome) {
                    Some(batch_status::Outcome::Error(error)) => Err(Told::of_error(error)),
                    Some(_) => Ok(()),
                    None => panic!("an item without an outcome"),
                }
            }
            (Way::Session, deletes) => {
                let request = match deletes {
                    true => session_request::Request::Delete(self.delete(spoil)),
                    false => session_request::Request::Put(self.put(spoil)),
                };
                let request = proto::SessionRequest { id: 1, request: Some(request) };
                let answers = kv.session(tokio_stream::once(request)).await;
                let mut answers = answers.map_err(|s| Told::of_status(&s))?.into_inner();
                let answer = answers.message().await.map_err(|s| Told::of_status(&s))?;
                match answer.and_then(|answer| answer.outcome) {
                    Some(session_response::Outcome::Error(error)) => Err(Told::of_error(error)),
                    Some(_) => Ok(()),
                    None => panic!("a request without an outcome"),
                }
            }
        }
    }
}

/// What is wrong with a request.
enum Spoil {
    Nothing,
    Keyspace,
    Acks,
    Context,
}

/// Four nodes; the homes of the key, and the one that is none.
async fn four_nodes(limits: &str) -> (Cluster, Vec<usize>, usize) {
    let mut cluster = Cluster::made(4);
    let bootstrap = cluster.bootstrap();
    cluster.nodes.iter().for_each(|node| node.configure("", &format!("{bootstrap}{limits}")));
    cluster.start_all();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    let (home, others) = homes(&cluster, KEY);
    (cluster, home, others[0])
}

/// Gives every sort key a value, on all replicas.
async fn prepare(at: SocketAddr, sends: &[Send]) {
    let before = sends.iter().map(|send| proto::PutRequest {
        sort: bytes(send.sort.clone()),
        acks: Some(proto::put_request::Acks::W(3)),
        ..put(KEY, "before")
    });
    for result in client::for_each(before.collect(), 8, |put| async move { kv(at).put(put).await }).await {
        result.expect("all are there");
    }
}

/// Whether the write of a sort key is there, by `r` replicas.
async fn is_there(at: SocketAddr, sort: &str, r: u32) -> bool {
    let request = proto::GetRequest { sort: bytes(sort), ..client::get_r(KEY, r) };
    let found = kv(at).get(request).await.expect("enough are there").into_inner();
    assert!(values(&found).iter().all(|value| value == "before" || value == "after"), "{found:?}");
    values(&found) != ["before"]
}

/// Sends each at once; what each was told.
async fn run_all(sends: Vec<(SocketAddr, Send)>, width: usize) -> Vec<(Send, Result<(), Told>)> {
    client::for_each(sends, width, |(at, send)| async move {
        let told = send.run(at, &Spoil::Nothing).await;
        (send, told)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_a_bad_request_is_refused_in_every_way_and_changes_nothing() {
    let _alone = alone();
    let (mut cluster, home, outsider) = four_nodes("").await;
    for (through, at) in [("home", home[0]), ("outsider", outsider)] {
        let at = cluster.nodes[at].client;
        let sends = every_way(through);
        prepare(at, &sends).await;
        for send in &sends {
            for (spoil, code) in [
                (Spoil::Keyspace, Code::NotFound),
                (Spoil::Acks, Code::InvalidArgument),
                (Spoil::Context, Code::InvalidArgument),
            ] {
                let told = send.run(at, &spoil).await.expect_err("a bad request");
                assert!(told.code == code && told.surely_not() && !told.delay, "{send:?}: {told:?}");
            }
            assert!(!is_there(at, &send.sort, 3).await, "{send:?} was refused and is there");
        }
        let never = kv(at).get(get("never")).await.expect("not found is an answer").into_inner();
        assert!(!never.found);
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_too_few_replicas_means_unavailable_and_nothing_is_applied() {
    let _alone = alone();
    let (mut cluster, home, outsider) = four_nodes("").await;
    let left = [("home", cluster.nodes[home[0]].client), ("outsider", cluster.nodes[outsider].client)];
    let sends = |(through, at): (&str, SocketAddr)| every_way(through).into_iter().map(move |s| (at, s));
    let sends: Vec<(SocketAddr, Send)> = left.into_iter().flat_map(sends).collect();
    let plain: Vec<Send> = sends.iter().map(|(_, send)| send.clone()).collect();
    prepare(left[0].1, &plain).await;
    for at in &home[1..] {
        cluster.nodes[*at].kill();
    }
    for (_, at) in left {
        eventually(Duration::from_secs(20), || {
            let (output, _) = cli(&[at], &["-o", "json", "status"]);
            let text = said(&output);
            if text.matches("\"down\"").count() == 2 { Ok(()) } else { Err(text) }
        });
    }
    for (send, told) in run_all(sends, 4).await {
        let told = told.expect_err("w = 2 of 1");
        assert!(told.code == Code::Unavailable && told.surely_not(), "{send:?}: {told:?}");
        let numbers = (told.failure.required, told.failure.received, told.failure.alive);
        assert_eq!(numbers, (2, 0, 1), "{send:?}: {told:?}");
        assert_eq!(told.failure.layout_version, 1, "{send:?}: {told:?}");
        assert!(!is_there(left[0].1, &send.sort, 1).await, "{send:?} was refused and is there");
    }
    for at in &home[1..] {
        cluster.nodes[*at].start();
    }
    cluster.wait_ready();
    client::wait_for_all(&cluster.all_clients(), 3).await;
    for send in &plain {
        assert!(!is_there(left[1].1, &send.sort, 3).await, "{send:?} was refused and came later");
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_a_write_that_some_took_is_in_doubt_and_says_so() {
    let _alone = alone();
    let (mut cluster, home, outsider) = four_nodes("").await;
    let left = [("home", cluster.nodes[home[0]].client), ("outsider", cluster.nodes[outsider].client)];
    let sends = |(through, at): (&str, SocketAddr)| every_way(through).into_iter().map(move |s| (at, s));
    let sends: Vec<(SocketAddr, Send)> = left.into_iter().flat_map(sends).collect();
    let plain: Vec<Send> = sends.iter().map(|(_, send)| send.clone()).collect();
    prepare(left[0].1, &plain).await;
    for at in &home[1..] {
        cluster.nodes[*at].signal(Signal::STOP);
    }
    // All at once, so that none of them knows yet.
    let silent: Vec<String> = home[1..].iter().map(|at| cluster.nodes[*at].id.clone()).collect();
    let told = run_all(sends, plain.len()).await;
    let mut in_doubt = 0;
    for (send, told) in &told {
        let told = told.as_ref().expect_err("w = 2 of 1");
        if told.surely_not() {
            continue;
        }
        in_doubt += 1;
        assert_eq!((told.code, told.delay), (Code::DeadlineExceeded, false), "{send:?}: {told:?}");
        if !send.named && send.sort.starts_with("home") {
            assert_eq!((told.failure.required, told.failure.received), (2, 1), "{send:?}: {told:?}");
            assert!(silent.iter().all(|id| told.failure.silent.contains(id)), "{send:?}: {told:?}");
            assert!(is_there(left[0].1, &send.sort, 1).await, "{send:?}: its own home took it");
        }
    }
    assert!(in_doubt >= 6, "those sent to a home without a name at least: {told:?}");
    for at in &home[1..] {
        cluster.nodes[*at].signal(Signal::CONT);
    }
    client::wait_for_all(&cluster.all_clients(), 3).await;
    for (send, told) in &told {
        let there = is_there(left[1].1, &send.sort, 3).await;
        let surely_not = told.as_ref().is_err_and(Told::surely_not);
        assert!(!(there && surely_not), "{send:?} was refused and came later: {told:?}");
    }
    cluster.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f30_what_an_overloaded_node_refuses_is_nowhere() {
    let _alone = alone();
    let (mut cluster, home, _) = four_nodes("[limits]\nrequests_in_flight = 4\n").await;
    let at = cluster.nodes[home[0]].client;
    let sends: Vec<Send> = (0..4).flat_map(|round| every_way(&format!("round {round}"))).collect();
    // No more at a time than are let in.
    for four in sends.chunks(2) {
        prepare(at, four).await;
    }
    for at in &home[1..] {
        cluster.nodes[*at].signal(Signal::STOP);
    }
    let told = run_all(sends.iter().map(|send| (at, send.clone())).collect(), sends.len()).await;
    for at in &home[1..] {
        cluster.nodes[*at].signal(Signal::CONT);
    }
    client::wait_for_all(&cluster.all_clients(), 3).await;
    let mut refused = 0;
    for (send, told) in &told {
        let Err(told) = told else { continue };
        if told.code == Code::ResourceExhausted {
            refused += 1;
            assert!(told.delay && told.surely_not(), "{send:?}: {told:?}");
        }
        let there = is_there(at, &send.sort, 3).await;
        assert!(!(there && told.surely_not()), "{send:?} was refused and is there: {told:?}");
    }
    assert!(refused >= 20, "{refused} of {} were refused: {told:?}", told.len());
    cluster.check();
}
