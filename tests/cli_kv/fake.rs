//! A cluster in one process that keeps its keys in a map: what the CLI needs of `Kv` and `Cluster`, with
//! errors on demand. Several nodes share one map; each can be killed and started again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quoral::rpc::proto::cluster_server::{Cluster, ClusterServer};
use quoral::rpc::proto::kv_server::{Kv, KvServer};
use quoral::rpc::proto::*;
use quoral::types::key::Position;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};

/// What goes wrong with one request.
pub enum Fault {
    /// Nothing is done.
    Before(Status),
    /// All is done, but the answer says otherwise.
    After(Status),
}

type Faults = Box<dyn FnMut(&str) -> Option<Fault> + Send>;

#[derive(Default)]
pub struct State {
    /// By keyspace, then in the order of a scan: position, key, sort.
    pub rows: BTreeMap<(String, u64, Bytes, Bytes), Vec<Sibling>>,
    clock: u64,
    faults: Option<Faults>,
    /// Requests as they came: operation and key.
    pub log: Vec<(String, Bytes)>,
    pub last_put: Option<PutRequest>,
    /// Request ids of all puts, as they came.
    pub put_ids: Vec<Bytes>,
    pub last_delete: Option<DeleteRequest>,
    pub last_get: Option<GetRequest>,
    /// Addresses that `status` tells.
    pub told: Vec<String>,
    pub page: usize,
    /// How long a scan is left without an answer.
    pub scan_pause: Duration,
}

pub type Shared = Arc<Mutex<State>>;

/// One node of the fake. It has a runtime of its own, so that it can die with all its connections.
pub struct Node {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
    shared: Shared,
}

pub fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A status with the `Failure` detail of the contract.
pub fn failure(code: Code, message: &str, applied: Applied, required: u32, received: u32) -> Status {
    let detail = Failure { applied: applied.into(), required, received, ..Default::default() };
    let any = prost_types::Any {
        type_url: "type.googleapis.com/quoral.v1.Failure".into(),
        value: detail.encode_to_vec(),
    };
    let rich = tonic_types::Status { code: code.into(), message: message.into(), details: vec![any] };
    Status::with_details(code, message, rich.encode_to_vec().into())
}

pub fn unavailable() -> Status {
    failure(Code::Unavailable, "too few replicas reachable: 2 needed, 1 alive", Applied::No, 2, 0)
}

pub fn unsure() -> Status {
    failure(Code::DeadlineExceeded, "1 of 2 needed replicas answered in time", Applied::Maybe, 2, 1)
}

impl Node {
    pub async fn start(shared: &Shared) -> Node {
        Node::start_at(shared, "127.0.0.1:0".parse().expect("an address")).await
    }

    async fn start_at(shared: &Shared, at: SocketAddr) -> Node {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let fake = Fake(shared.clone());
        let started = runtime.spawn(async move {
            let listener = TcpListener::bind(at).await.expect("the port is free");
            let address = listener.local_addr().expect("bound");
            let big = 64 << 20;
            let kv = KvServer::new(Fake(fake.0.clone()));
            let kv = kv.max_decoding_message_size(big).max_encoding_message_size(big);
            let server =
                tonic::transport::Server::builder().add_service(kv).add_service(ClusterServer::new(fake));
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            address
        });
        let address = started.await.expect("started");
        Node { address, runtime: Some(runtime), shared: shared.clone() }
    }

    /// Ends at once: the port and all connections are gone.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub async fn restart(&mut self) {
        self.kill();
        *self = Node::start_at(&self.shared.clone(), self.address).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn shared() -> Shared {
    Arc::new(Mutex::new(State { page: 7, ..Default::default() }))
}

pub fn set_faults(shared: &Shared, faults: impl FnMut(&str) -> Option<Fault> + Send + 'static) {
    lock(shared).faults = Some(Box::new(faults));
}

pub fn no_faults(shared: &Shared) {
    lock(shared).faults = None;
}

struct Fake(Shared);

fn keyspaces() -> Vec<KeyspaceInfo> {
    let info = |id, name: &str, conflicts: &str| KeyspaceInfo {
        id,
        name: name.into(),
        conflicts: conflicts.into(),
        n: 3,
        r: 2,
        w: 2,
        ..Default::default()
    };
    vec![info(1, "default", "lww"), info(2, "carts", "siblings")]
}

/// The context is the stamps of the siblings that it covers.
fn context(siblings: &[Sibling]) -> Bytes {
    siblings.iter().flat_map(|s| s.stamp.to_be_bytes()).collect()
}

impl State {
    fn fault(&mut self, op: &str, key: &Bytes) -> Option<Fault> {
        self.log.push((op.to_string(), key.clone()));
        self.faults.as_mut().and_then(|faults| faults(op))
    }

    fn place(keyspace: &str, key: &Bytes, sort: &Bytes) -> Result<(String, u64, Bytes, Bytes), Status> {
        if !keyspaces().iter().any(|info| info.name == keyspace) {
            let message = format!("keyspace: there is no keyspace {keyspace:?}");
            return Err(failure(Code::NotFound, &message, Applied::No, 0, 0));
        }
        let position = Position::of(keyspace, key).0;
        Ok((keyspace.into(), position, key.clone(), sort.clone()))
    }

    fn write(&mut self, place: (String, u64, Bytes, Bytes), seen: &Bytes, value: Option<Bytes>) -> Bytes {
        self.clock += 1;
        let stamp = (1_700_000_000_000 << 16) + self.clock;
        let siblings = place.0 == "carts";
        let versions = self.rows.entry(place).or_default();
        versions.retain(|s| siblings && !seen.chunks(8).any(|c| c == s.stamp.to_be_bytes()));
        versions.extend(value.map(|value| Sibling { value, stamp, expires_at_ms: 0 }));
        context(versions)
    }
}

fn finish<T>(
    fault: Option<Fault>,
    answer: impl FnOnce() -> Result<T, Status>,
) -> Result<Response<T>, Status> {
    match fault {
        Some(Fault::Before(status)) => Err(status),
        Some(Fault::After(status)) => answer().and(Err(status)),
        None => answer().map(Response::new),
    }
}

#[tonic::async_trait]
impl Kv for Fake {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        let mut state = lock(&self.0);
        let fault = state.fault("put", &request.key);
        state.last_put = Some(request.clone());
        state.put_ids.push(request.request_id.clone());
        if request.value.len() > 8 << 20 {
            let message = "value: is over the limit of 8388608 bytes";
            return Err(failure(Code::InvalidArgument, message, Applied::No, 0, 0));
        }
        finish(fault, || {
            let place = State::place(&request.keyspace, &request.key, &request.sort)?;
            let context = state.write(place, &request.context, Some(request.value));
            Ok(PutResponse {
                context,
                w: 2,
                acks: 3,
                sloppy: false,
                stamp: state.clock,
                session: Bytes::new(),
            })
        })
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let request = request.into_inner();
        let mut state = lock(&self.0);
        let fault = state.fault("get", &request.key);
        state.last_get = Some(request.clone());
        finish(fault, || {
            let place = State::place(&request.keyspace, &request.key, &request.sort)?;
            let siblings = state.rows.get(&place).cloned().unwrap_or_default();
            let (found, context) = (!siblings.is_empty(), context(&siblings));
            Ok(GetResponse {
                found,
                siblings,
                context,
                r: 2,
                replies: 2,
                sloppy: false,
                session: Bytes::new(),
            })
        })
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        let request = request.into_inner();
        let mut state = lock(&self.0);
        let fault = state.fault("del", &request.key);
        state.last_delete = Some(request.clone());
        finish(fault, || {
            let place = State::place(&request.keyspace, &request.key, &request.sort)?;
            let context = state.write(place, &request.context, None);
            Ok(DeleteResponse {
                context,
                w: 2,
                acks: 2,
                sloppy: false,
                stamp: state.clock,
                session: Bytes::new(),
            })
        })
    }

    async fn batch(&self, _: Request<BatchRequest>) -> Result<Response<BatchResponse>, Status> {
        Err(Status::unimplemented("batch"))
    }

    type SessionStream = ReceiverStream<Result<SessionResponse, Status>>;

    /// Each request as its call, one after the other.
    async fn session(
        &self,
        requests: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (fake, mut requests) = (Fake(self.0.clone()), requests.into_inner());
        let (give, take) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok(Some(SessionRequest { id, request })) = requests.message().await {
                use {session_request::Request as Asked, session_response::Outcome};
                let done = match request.expect("a request") {
                    Asked::Put(put) => {
                        fake.put(Request::new(put)).await.map(|a| Outcome::Put(a.into_inner()))
                    }
                    Asked::Get(get) => {
                        fake.get(Request::new(get)).await.map(|a| Outcome::Get(a.into_inner()))
                    }
                    Asked::Delete(delete) => {
                        fake.delete(Request::new(delete)).await.map(|a| Outcome::Delete(a.into_inner()))
                    }
                };
                let outcome = Some(done.unwrap_or_else(|status| Outcome::Error(request_error(&status))));
                if give.send(Ok(SessionResponse { id, outcome })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(take)))
    }

    type ScanStream = ReceiverStream<Result<ScanResponse, Status>>;

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        let pause = lock(&self.0).scan_pause;
        tokio::time::sleep(pause).await;
        let mut state = lock(&self.0);
        if let Some(Fault::Before(status)) = state.fault("scan", &request.key) {
            return Err(status);
        }
        State::place(&request.keyspace, &request.key, &Bytes::new())?;
        drop(state);
        let (give, take) = tokio::sync::mpsc::channel(2);
        tokio::spawn(send_pages(self.0.clone(), request, give));
        Ok(Response::new(ReceiverStream::new(take)))
    }
}

/// What a session says in the place of a status.
fn request_error(status: &Status) -> RequestError {
    let rich = tonic_types::Status::decode(status.details()).expect("details or nothing");
    let failure = rich.details.first().map(|any| Failure::decode(any.value.as_slice()).expect("a failure"));
    RequestError {
        code: status.code() as u32,
        message: status.message().to_owned(),
        failure,
        retry_delay_ms: 0,
    }
}

/// The cursor is the place as position, length of the key, key, sort.
fn cursor_of(place: &(String, u64, Bytes, Bytes)) -> Bytes {
    let (_, position, key, sort) = place;
    let length = u32::try_from(key.len()).expect("short");
    [&position.to_be_bytes(), &length.to_be_bytes()[..], key, sort].concat().into()
}

fn place_of(keyspace: &str, cursor: &Bytes) -> (String, u64, Bytes, Bytes) {
    let position = u64::from_be_bytes(cursor[..8].try_into().expect("8 bytes"));
    let length = u32::from_be_bytes(cursor[8..12].try_into().expect("4 bytes")) as usize;
    (keyspace.into(), position, cursor.slice(12..12 + length), cursor.slice(12 + length..))
}

fn one_page(state: &State, request: &ScanRequest, most: usize) -> ScanResponse {
    let first = (request.keyspace.clone(), 0, Bytes::new(), Bytes::new());
    let behind = |reverse: bool| request.reverse == reverse && !request.cursor.is_empty();
    let cursor = || place_of(&request.keyspace, &request.cursor);
    let low = if behind(false) { Bound::Excluded(cursor()) } else { Bound::Included(first) };
    let high = if behind(true) { Bound::Excluded(cursor()) } else { Bound::Unbounded };
    let wanted = |(keyspace, _, key, sort): &(String, u64, Bytes, Bytes)| {
        *keyspace == request.keyspace
            && (request.key.is_empty()
                || *key == request.key
                    && sort.starts_with(&request.prefix)
                    && *sort >= request.start
                    && (request.end.is_empty() || *sort < request.end))
    };
    let all = state.rows.range((low, high)).filter(|(place, siblings)| wanted(place) && !siblings.is_empty());
    let mut found: Vec<_> = if request.reverse { all.rev().collect() } else { all.collect() };
    let more = found.len() > most;
    found.truncate(most);
    let entry = |(place, siblings): &(&(String, u64, Bytes, Bytes), &Vec<Sibling>)| ScanEntry {
        key: place.2.clone(),
        sort: place.3.clone(),
        siblings: (*siblings).clone(),
        context: context(siblings),
    };
    let cursor = found.last().filter(|_| more).map_or_else(Bytes::new, |(place, _)| cursor_of(place));
    ScanResponse { entries: found.iter().map(entry).collect(), cursor }
}

async fn send_pages(
    shared: Shared,
    mut request: ScanRequest,
    give: tokio::sync::mpsc::Sender<Result<ScanResponse, Status>>,
) {
    let mut left = if request.limit == 0 { usize::MAX } else { request.limit as usize };
    loop {
        let page = {
            let mut state = lock(&shared);
            let most = state.page.min(left);
            match state.fault("page", &request.cursor) {
                Some(Fault::Before(status) | Fault::After(status)) => Err(status),
                None => Ok(one_page(&state, &request, most)),
            }
        };
        if let Ok(page) = &page {
            left -= page.entries.len();
            request.cursor = page.cursor.clone();
        }
        let end = page.is_err() || request.cursor.is_empty() || left == 0;
        if give.send(page).await.is_err() || end {
            return;
        }
        tokio::time::sleep(Duration::from_micros(1)).await;
    }
}

#[tonic::async_trait]
impl Cluster for Fake {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let nodes = lock(&self.0).told.clone().into_iter().map(|client_address| NodeStatus {
            client_address,
            state: "alive".into(),
            ..Default::default()
        });
        let nodes = nodes.collect();
        Ok(Response::new(StatusResponse { cluster_id: "fake".into(), nodes, ..Default::default() }))
    }

    async fn layout(&self, _: Request<LayoutRequest>) -> Result<Response<LayoutResponse>, Status> {
        Err(Status::unimplemented("layout"))
    }

    async fn create_keyspace(
        &self,
        _: Request<CreateKeyspaceRequest>,
    ) -> Result<Response<CreateKeyspaceResponse>, Status> {
        Err(Status::unimplemented("create"))
    }

    async fn update_keyspace(
        &self,
        _: Request<UpdateKeyspaceRequest>,
    ) -> Result<Response<UpdateKeyspaceResponse>, Status> {
        Err(Status::unimplemented("update"))
    }

    async fn drop_keyspace(
        &self,
        _: Request<DropKeyspaceRequest>,
    ) -> Result<Response<DropKeyspaceResponse>, Status> {
        Err(Status::unimplemented("drop"))
    }

    async fn list_keyspaces(
        &self,
        _: Request<ListKeyspacesRequest>,
    ) -> Result<Response<ListKeyspacesResponse>, Status> {
        Ok(Response::new(ListKeyspacesResponse { keyspaces: keyspaces(), map_version: 1 }))
    }

    async fn hints(&self, _: Request<HintsRequest>) -> Result<Response<HintsResponse>, Status> {
        Err(Status::unimplemented("hints"))
    }

    type RepairStream = ReceiverStream<Result<RepairResponse, Status>>;

    async fn repair(&self, _: Request<RepairRequest>) -> Result<Response<Self::RepairStream>, Status> {
        Err(Status::unimplemented("repair"))
    }

    async fn explain(&self, _: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        Err(Status::unimplemented("explain"))
    }
}

/// Faults by chance, from a seed: a quarter of requests fails, some of them after they were applied.
pub fn random_faults(seed: u64) -> impl FnMut(&str) -> Option<Fault> + Send + 'static {
    let mut state = seed;
    move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match state >> 60 {
            0 | 1 => Some(Fault::Before(unavailable())),
            2 => Some(Fault::After(unsure())),
            3 => Some(Fault::After(failure(Code::ResourceExhausted, "overloaded", Applied::No, 0, 0))),
            _ => None,
        }
    }
}
