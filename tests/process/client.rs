//! gRPC clients of the nodes, made from the same protos as the servers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use quoral::rpc::proto::{self, kv_client::KvClient};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

pub type Kv = KvClient<Channel>;

/// Room beyond a request's deadline in which its answer must have come, on a busy machine.
pub const MARGIN: Duration = Duration::from_millis(1_000);

pub fn channel(at: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{at}"))
        .expect("an address")
        .connect_timeout(Duration::from_millis(500))
        .connect_lazy()
}

pub fn kv(at: SocketAddr) -> Kv {
    KvClient::new(channel(at)).max_decoding_message_size(64 << 20)
}

pub fn bytes(text: impl Into<Vec<u8>>) -> Bytes {
    Bytes::from(text.into())
}

/// A put of the default keyspace with its own `w` and a short deadline.
pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> proto::PutRequest {
    proto::PutRequest { key: bytes(key), value: bytes(value), timeout_ms: 2_000, ..Default::default() }
}

pub fn get(key: impl Into<Vec<u8>>) -> proto::GetRequest {
    proto::GetRequest { key: bytes(key), timeout_ms: 2_000, ..Default::default() }
}

pub fn get_r(key: impl Into<Vec<u8>>, r: u32) -> proto::GetRequest {
    proto::GetRequest { answers: Some(proto::get_request::Answers::R(r)), ..get(key) }
}

/// The values of a get's answer, in order of bytes.
pub fn values(answer: &proto::GetResponse) -> Vec<Bytes> {
    let mut values: Vec<Bytes> = answer.siblings.iter().map(|sibling| sibling.value.clone()).collect();
    values.sort();
    values
}

/// The detail that every error of Quoral carries.
pub fn failure(status: &Status) -> Option<proto::Failure> {
    let rich = tonic_types::Status::decode(status.details()).ok()?;
    let detail = rich.details.iter().find(|any| any.type_url.ends_with("quoral.v1.Failure"))?;
    proto::Failure::decode(&detail.value[..]).ok()
}

/// Whether an error says that it was surely not applied.
pub fn surely_not_applied(status: &Status) -> bool {
    failure(status).is_some_and(|failure| failure.applied() == proto::Applied::No)
}

/// Asserts that an error has `code`, says `applied = NO`, and names each of `parts`.
#[track_caller]
pub fn assert_refused(status: &Status, code: Code, parts: &[&str]) {
    assert_eq!(status.code(), code, "{status:?}");
    for part in parts {
        assert!(status.message().contains(part), "{part:?} is not in {:?}", status.message());
    }
    assert!(surely_not_applied(status), "applied is not NO: {:?} in {status:?}", failure(status));
}

/// Waits until each of the nodes reaches `n` replicas: a node that is ready may still be called down by another.
pub async fn wait_for_all(nodes: &[SocketAddr], n: u32) {
    for at in nodes {
        let (mut kv, end) = (kv(*at), Instant::now() + Duration::from_secs(20));
        while let Err(status) = kv.get(get_r("is everybody there", n)).await {
            assert!(Instant::now() < end, "{at}: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Runs `work` for each of `items` with `width` under way at a time; its results, in no order.
pub async fn for_each<T, R, F>(items: Vec<T>, width: usize, work: impl Fn(T) -> F) -> Vec<R>
where
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    let mut running = tokio::task::JoinSet::new();
    let mut results = Vec::with_capacity(items.len());
    for item in items {
        if running.len() >= width
            && let Some(result) = running.join_next().await
        {
            results.push(result.expect("no panic"));
        }
        running.spawn(work(item));
    }
    while let Some(result) = running.join_next().await {
        results.push(result.expect("no panic"));
    }
    results
}
