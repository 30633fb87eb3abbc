//! The client against real tonic servers: which endpoint is tried next, and what is never sent twice.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use prost::Message as _;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, transport::Server};

use super::super::output::Reached;
use super::*;
use crate::rpc::proto::cluster_server::{Cluster as Service, ClusterServer};
use crate::rpc::proto::{
    self, CreateKeyspaceRequest, CreateKeyspaceResponse, ExplainRequest, ExplainResponse, Failure,
    HintsRequest, HintsResponse, LayoutRequest, LayoutResponse, ListKeyspacesRequest, ListKeyspacesResponse,
    RepairRequest, RepairResponse, StatusRequest, StatusResponse,
};

/// What a fake node does with a request.
#[derive(Clone)]
enum Does {
    Answers,
    Fails(Code, Option<proto::Applied>, u32),
    /// Never answers.
    Hangs,
}

struct Fake {
    does: Mutex<Does>,
    asked: AtomicU32,
    /// The `grpc-timeout` of the last request.
    told: Mutex<Option<String>>,
}

struct Handle(Arc<Fake>);

impl Handle {
    async fn answer<T, R: Default>(&self, request: &Request<T>) -> Result<Response<R>, Status> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let told = request.metadata().get("grpc-timeout").and_then(|told| told.to_str().ok());
        *self.0.told.lock().expect("not poisoned") = told.map(str::to_string);
        let does = self.0.does.lock().expect("not poisoned").clone();
        match does {
            Does::Answers => Ok(Response::new(R::default())),
            Does::Hangs => std::future::pending().await,
            Does::Fails(code, None, _) => Err(Status::new(code, "why")),
            Does::Fails(code, Some(applied), required) => {
                let failure = Failure { applied: applied.into(), required, ..Failure::default() };
                let type_url = "type.googleapis.com/quoral.v1.Failure".to_string();
                let details = vec![prost_types::Any { type_url, value: failure.encode_to_vec() }];
                let rich = tonic_types::Status { code: code as i32, message: "why".into(), details };
                Err(Status::with_details(code, "why", Bytes::from(rich.encode_to_vec())))
            }
        }
    }
}

#[tonic::async_trait]
impl Service for Handle {
    async fn status(&self, r: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.answer(&r).await
    }
    async fn layout(&self, r: Request<LayoutRequest>) -> Result<Response<LayoutResponse>, Status> {
        self.answer(&r).await
    }
    async fn create_keyspace(
        &self,
        r: Request<CreateKeyspaceRequest>,
    ) -> Result<Response<CreateKeyspaceResponse>, Status> {
        self.answer(&r).await
    }
    async fn update_keyspace(
        &self,
        r: Request<proto::UpdateKeyspaceRequest>,
    ) -> Result<Response<proto::UpdateKeyspaceResponse>, Status> {
        self.answer(&r).await
    }
    async fn drop_keyspace(
        &self,
        r: Request<proto::DropKeyspaceRequest>,
    ) -> Result<Response<proto::DropKeyspaceResponse>, Status> {
        self.answer(&r).await
    }
    async fn list_keyspaces(
        &self,
        r: Request<ListKeyspacesRequest>,
    ) -> Result<Response<ListKeyspacesResponse>, Status> {
        self.answer(&r).await
    }
    async fn hints(&self, r: Request<HintsRequest>) -> Result<Response<HintsResponse>, Status> {
        self.answer(&r).await
    }
    type RepairStream = tokio_stream::Empty<Result<RepairResponse, Status>>;
    async fn repair(&self, _: Request<RepairRequest>) -> Result<Response<Self::RepairStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
    async fn explain(&self, r: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        self.answer(&r).await
    }
}

/// A server on a runtime of its own, so that its connections can be broken: they go with it.
struct Node {
    fake: Arc<Fake>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Node {
    fn start(does: Does) -> Node {
        let fake =
            Arc::new(Fake { does: Mutex::new(does), asked: AtomicU32::new(0), told: Mutex::new(None) });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let entered = runtime.enter();
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = incoming.local_addr().expect("its address");
        let service = ClusterServer::new(Handle(Arc::clone(&fake)));
        runtime.spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        drop(entered);
        Node { fake, address, runtime: Some(runtime) }
    }

    fn asked(&self) -> u32 {
        self.fake.asked.load(Ordering::SeqCst)
    }
}

/// A port that nobody listens on.
fn dead() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("its address").to_string()
}

fn client(endpoints: &[String], timeout_ms: u64) -> Client {
    Client::connect(endpoints, Duration::from_millis(timeout_ms)).expect("good endpoints")
}

async fn ask(client: &Client, op: Op) -> Result<StatusResponse, CliError> {
    client.call_cluster(op, |mut cluster| async move { cluster.status(StatusRequest {}).await }).await
}

const UNAVAILABLE: Does = Does::Fails(Code::Unavailable, Some(proto::Applied::No), 0);
const MAYBE: Does = Does::Fails(Code::DeadlineExceeded, Some(proto::Applied::Maybe), 2);

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_then_avoided() {
    let node = Node::start(Does::Answers);
    let client = client(&[dead(), node.address.to_string()], 5_000);
    for op in [Op::Write, Op::Read, Op::RepeatableWrite] {
        ask(&client, op).await.expect("answered");
    }
    assert_eq!(node.asked(), 3);
}

#[tokio::test]
async fn with_all_endpoints_dead_nothing_was_sent() {
    let client = client(&[dead(), dead()], 60_000);
    for op in [Op::Write, Op::Read, Op::RepeatableWrite] {
        let error = ask(&client, op).await.expect_err("dead");
        assert_eq!((error.exit, error.applied), (Exit::Unavailable, Applied::No), "{error}");
        assert!(error.message.contains("can't connect"), "{error}");
    }
}

#[tokio::test]
async fn a_node_that_is_starting_is_passed_over_even_by_a_write() {
    let (starting, node) = (Node::start(UNAVAILABLE), Node::start(Does::Answers));
    let client = client(&[starting.address.to_string(), node.address.to_string()], 5_000);
    ask(&client, Op::Write).await.expect("answered");
    assert_eq!((starting.asked(), node.asked()), (1, 1));
}

#[tokio::test]
async fn refused_everywhere_is_told_in_the_servers_words() {
    let node = Node::start(Does::Fails(Code::Unavailable, Some(proto::Applied::No), 2));
    let client = client(&[node.address.to_string(), dead()], 5_000);
    let error = ask(&client, Op::Write).await.expect_err("refused");
    assert_eq!((error.exit, error.required, error.message.as_str()), (Exit::Unavailable, 2, "why"));
    assert_eq!(node.asked(), 1);
}

#[tokio::test]
async fn a_write_that_may_have_been_applied_is_not_sent_again() {
    let (unsure, node) = (Node::start(MAYBE), Node::start(Does::Answers));
    let client = client(&[unsure.address.to_string(), node.address.to_string()], 5_000);
    let error = ask(&client, Op::Write).await.expect_err("unsure");
    assert_eq!((error.exit, error.applied), (Exit::Unknown, Applied::Maybe));
    assert_eq!((unsure.asked(), node.asked()), (1, 0));
}

#[tokio::test]
async fn bad_requests_and_overload_are_not_taken_elsewhere() {
    for (code, exit) in [(Code::InvalidArgument, Exit::Usage), (Code::ResourceExhausted, Exit::Unavailable)] {
        let (refuses, node) =
            (Node::start(Does::Fails(code, Some(proto::Applied::No), 0)), Node::start(Does::Answers));
        let client = client(&[refuses.address.to_string(), node.address.to_string()], 5_000);
        assert_eq!(ask(&client, Op::Read).await.expect_err("refused").exit, exit);
        assert_eq!(node.asked(), 0);
    }
}

#[tokio::test]
async fn silence_ends_at_the_timeout_and_the_server_is_told_of_it() {
    let node = Node::start(Does::Hangs);
    let client = client(&[node.address.to_string()], 300);
    let begin = Instant::now();
    let read = ask(&client, Op::Read).await.expect_err("silent");
    assert_eq!((read.exit, read.applied), (Exit::Unavailable, Applied::No), "{read}");
    let write = ask(&client, Op::Write).await.expect_err("silent");
    assert_eq!((write.exit, write.applied), (Exit::Unknown, Applied::Maybe), "{write}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let told = node.fake.told.lock().expect("not poisoned").clone();
    assert!(told.is_some(), "the server must be told the deadline");
}

#[tokio::test]
async fn a_connection_that_breaks_is_replaced_for_what_can_be_repeated() {
    for (op, exit) in [(Op::Read, None), (Op::RepeatableWrite, None), (Op::Write, Some(Exit::Unknown))] {
        let (hangs, node) = (Node::start(Does::Hangs), Node::start(Does::Answers));
        let client = client(&[hangs.address.to_string(), node.address.to_string()], 20_000);
        let call = tokio::spawn(async move { ask(&client, op).await });
        while hangs.asked() == 0 {
            tokio::task::yield_now().await;
        }
        drop(hangs);
        match exit {
            None => assert!(call.await.expect("ran").is_ok(), "{op:?}"),
            Some(exit) => assert_eq!(call.await.expect("ran").expect_err("broken").exit, exit),
        }
        assert_eq!(node.asked(), u32::from(exit.is_none()));
    }
}

#[tokio::test]
async fn an_earlier_maybe_is_not_forgotten() {
    let error = |exit, message: &str, reached| CliError { reached, ..CliError::new(exit, message) };
    let maybe = error(Exit::Unknown, "broken", Reached::Connection);
    let refused = error(Exit::Unavailable, "refused", Reached::Answer);
    for order in [[&maybe, &refused], [&refused, &maybe]] {
        let mut worst = Worst::default();
        order.into_iter().for_each(|error| worst.add(error.clone()));
        let error = worst.into_error();
        assert_eq!((error.exit, error.applied), (Exit::Unknown, Applied::Maybe));
        assert_eq!(error.message, "refused; another attempt may have been applied");
    }
}

/// Two nodes of three are dead, and the third says at once that nothing can be done.
#[tokio::test]
async fn a_definite_answer_ends_the_call_whatever_is_dead() {
    for op in [Op::Write, Op::Read, Op::RepeatableWrite] {
        let node = Node::start(UNAVAILABLE);
        let alive = node.address.to_string();
        for endpoints in [[alive.clone(), dead(), dead()], [dead(), dead(), alive.clone()]] {
            let asked = node.asked();
            let error = ask(&client(&endpoints, 60_000), op).await.expect_err("refused");
            assert_eq!((error.exit, error.message.as_str()), (Exit::Unavailable, "why"), "{op:?}");
            assert_eq!(node.asked(), asked + 1, "{op:?}");
        }
    }
}

#[tokio::test]
async fn a_round_in_which_a_connection_broke_is_followed_by_one_more() {
    for (op, exit) in [(Op::Read, Exit::Unavailable), (Op::RepeatableWrite, Exit::Unknown)] {
        let (refuses, hangs) = (Node::start(UNAVAILABLE), Node::start(Does::Hangs));
        let client = client(&[refuses.address.to_string(), hangs.address.to_string(), dead()], 60_000);
        let call = tokio::spawn(async move { ask(&client, op).await });
        while hangs.asked() == 0 {
            tokio::task::yield_now().await;
        }
        drop(hangs);
        let error = call.await.expect("ran").expect_err("refused");
        assert_eq!(error.exit, exit, "{error}");
        assert!(error.message.starts_with("why"), "{error}");
        assert_eq!(refuses.asked(), 2, "in the second round nothing broke");
    }
}

/// Without details, UNAVAILABLE is what the transport says of a connection that broke.
const BREAKS: Does = Does::Fails(Code::Unavailable, None, 0);

#[tokio::test]
async fn no_attempt_begins_when_time_is_nearly_up() {
    let (refuses, breaks) = (Node::start(UNAVAILABLE), Node::start(BREAKS));
    let client = client(&[refuses.address.to_string(), breaks.address.to_string()], 400);
    let error = ask(&client, Op::Read).await.expect_err("refused");
    assert_eq!((error.exit, error.message.as_str()), (Exit::Unavailable, "why"), "the last definite answer");
    assert!(refuses.asked() > 1, "it went round");
    for node in [&refuses, &breaks] {
        let told = node.fake.told.lock().expect("not poisoned").clone().expect("a deadline");
        // In nanoseconds if they have at most eight digits, so below 100 ms.
        let nanos = told.strip_suffix('n').map(|nanos| nanos.parse::<u64>().expect("a number"));
        assert!(nanos.is_none_or(|nanos| nanos > 10_000_000), "{told} were left");
    }
    assert!(has_time(Duration::from_millis(101), Duration::from_millis(50), client.timeout()));
    assert!(!has_time(Duration::from_millis(100), Duration::from_millis(50), client.timeout()));
    assert!(has_time(Duration::from_millis(6), Duration::ZERO, Duration::from_millis(20)), "of a short time");
}

#[test]
fn bad_endpoints_are_named() {
    for bad in ["", "localhost", ":7400", "localhost:", "localhost:99999", "http://localhost:7400", "a b:1"] {
        let error = Client::connect(&[bad.to_string()], Duration::from_secs(1)).expect_err(bad);
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.message.contains(&format!("{bad:?}")), "{error}");
    }
    assert_eq!(Client::connect(&[], Duration::from_secs(1)).expect_err("none").exit, Exit::Usage);
}
