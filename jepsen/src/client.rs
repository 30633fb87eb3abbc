//! A client of Quoral that is honest about what it knows.
//!
//! Every answer is one of three: it took effect, it surely did not, or nobody knows. `Failure.applied` decides;
//! what carries no `Failure` is unknown for a write, unless the connection was never made. A read changes
//! nothing, so a read that failed surely did not happen.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::proto::{self, kv_client::KvClient};

/// How long a client waits past the deadline that it told the node.
const PATIENCE: Duration = Duration::from_millis(500);

/// An operation's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It took effect.
    Ok(T),
    /// It surely did not, and never will.
    Fail(String),
    /// Nobody knows.
    Info(String),
}

/// An acknowledged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrote {
    /// Covers it and what it replaced.
    pub context: Bytes,
    /// Its stamp.
    pub stamp: u64,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The concurrent values, with their stamps.
    pub siblings: Vec<(Bytes, u64)>,
    /// Covers them.
    pub context: Bytes,
}

/// What is asked of which key.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its keyspace.
    pub keyspace: String,
    /// The key.
    pub key: String,
    /// Replicas to hear, or to wait for; none is the keyspace's own.
    pub level: Option<u32>,
    /// The deadline.
    pub timeout: Duration,
}

/// Connections to all nodes.
#[derive(Debug, Clone)]
pub struct Client {
    nodes: Vec<KvClient<Channel>>,
}

/// A lazy channel to `http://IP:PORT`.
pub fn channel(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}

impl Client {
    /// A client of the nodes at these endpoints; it connects when it is used.
    pub fn new(endpoints: &[String]) -> Result<Client, tonic::transport::Error> {
        let nodes = endpoints.iter().map(|endpoint| Ok(KvClient::new(channel(endpoint)?)));
        Ok(Client { nodes: nodes.collect::<Result<_, tonic::transport::Error>>()? })
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Writes a value through a node.
    pub async fn put(&mut self, node: usize, ask: &Ask, value: Bytes, context: Bytes) -> Answer<Wrote> {
        self.put_as(node, ask, value, context, None).await
    }

    /// The same, under a request id.
    pub async fn put_as(
        &mut self,
        node: usize,
        ask: &Ask,
        value: Bytes,
        context: Bytes,
        id: Option<[u8; 16]>,
    ) -> Answer<Wrote> {
        let request = proto::PutRequest {
            keyspace: ask.keyspace.clone(),
            key: ask.key.clone().into(),
            value,
            context,
            acks: ask.level.map(proto::put_request::Acks::W),
            request_id: id.map(|id| Bytes::copy_from_slice(&id)).unwrap_or_default(),
            timeout_ms: millis(ask.timeout),
            ..Default::default()
        };
        let answer = tokio::time::timeout(ask.timeout + PATIENCE, self.nodes[node].put(request)).await;
        write_answer(
            answer
                .map(|result| result.map(tonic::Response::into_inner).map(|done| (done.context, done.stamp))),
        )
    }

    /// Writes a tombstone through a node.
    pub async fn delete(&mut self, node: usize, ask: &Ask, context: Bytes) -> Answer<Wrote> {
        let request = proto::DeleteRequest {
            keyspace: ask.keyspace.clone(),
            key: ask.key.clone().into(),
            context,
            acks: ask.level.map(proto::delete_request::Acks::W),
            timeout_ms: millis(ask.timeout),
            ..Default::default()
        };
        let answer = tokio::time::timeout(ask.timeout + PATIENCE, self.nodes[node].delete(request)).await;
        write_answer(
            answer
                .map(|result| result.map(tonic::Response::into_inner).map(|done| (done.context, done.stamp))),
        )
    }

    /// Reads a key through a node.
    pub async fn get(&mut self, node: usize, ask: &Ask) -> Answer<Found> {
        let request = proto::GetRequest {
            keyspace: ask.keyspace.clone(),
            key: ask.key.clone().into(),
            answers: ask.level.map(proto::get_request::Answers::R),
            timeout_ms: millis(ask.timeout),
            ..Default::default()
        };
        match tokio::time::timeout(ask.timeout + PATIENCE, self.nodes[node].get(request)).await {
            Ok(Ok(response)) => {
                let found = response.into_inner();
                let siblings = found.siblings.into_iter().map(|sibling| (sibling.value, sibling.stamp));
                Answer::Ok(Found { siblings: siblings.collect(), context: found.context })
            }
            Ok(Err(status)) => Answer::Fail(words(&status)),
            Err(_) => Answer::Fail("no answer past the deadline".into()),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn words(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

type Timed = Result<Result<(Bytes, u64), Status>, tokio::time::error::Elapsed>;

fn write_answer(answer: Timed) -> Answer<Wrote> {
    match answer {
        Ok(Ok((context, stamp))) => Answer::Ok(Wrote { context, stamp }),
        Ok(Err(status)) if surely_not_applied(&status) => Answer::Fail(words(&status)),
        Ok(Err(status)) => Answer::Info(words(&status)),
        Err(_) => Answer::Info("no answer past the deadline".into()),
    }
}

/// Whether a failed write surely changed nothing: the node says so, or was never reached.
fn surely_not_applied(status: &Status) -> bool {
    if let Some(failure) = failure_of(status) {
        return failure.applied() == proto::Applied::No;
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return status.code() == Code::Unavailable;
        }
        cause = error.source();
    }
    false
}

/// The `Failure` that an error of Quoral carries.
fn failure_of(status: &Status) -> Option<proto::Failure> {
    let rich = tonic_types::Status::decode(status.details()).ok()?;
    let detail = rich.details.iter().find(|detail| detail.type_url.ends_with("/quoral.v1.Failure"))?;
    proto::Failure::decode(&*detail.value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(applied: proto::Applied) -> Status {
        let failure = proto::Failure { applied: applied.into(), ..Default::default() };
        let any = prost_types::Any {
            type_url: "type.googleapis.com/quoral.v1.Failure".into(),
            value: failure.encode_to_vec(),
        };
        let rich =
            tonic_types::Status { code: Code::Unavailable as i32, message: "no".into(), details: vec![any] };
        Status::with_details(Code::Unavailable, "no", rich.encode_to_vec().into())
    }

    #[test]
    fn only_a_definite_no_is_a_failure() {
        assert!(matches!(write_answer(Ok(Err(status(proto::Applied::No)))), Answer::Fail(_)));
        assert!(matches!(write_answer(Ok(Err(status(proto::Applied::Maybe)))), Answer::Info(_)));
        assert!(matches!(write_answer(Ok(Err(status(proto::Applied::Unspecified)))), Answer::Info(_)));
        assert!(matches!(write_answer(Ok(Err(Status::unavailable("gone")))), Answer::Info(_)));
        assert!(matches!(write_answer(Ok(Err(Status::internal("broken")))), Answer::Info(_)));
    }

    #[tokio::test]
    async fn a_connection_that_is_refused_applied_nothing() {
        // A port that nothing listens on: bound once, and let go.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let mut client = Client::new(&[format!("http://{free}")]).expect("an address");
        let timeout = Duration::from_secs(2);
        let ask = Ask { keyspace: "default".into(), key: "k".into(), level: None, timeout };
        let answer = client.put(0, &ask, Bytes::from_static(b"1"), Bytes::new()).await;
        assert!(matches!(answer, Answer::Fail(_)), "{answer:?}");
    }
}
