//! The client of all verbs: one request to the first endpoint that takes it, within one deadline.
//!
//! It is `quoral-client` with the habits of a command line: the endpoints in the order in which they were given, no
//! others, and an end as soon as each has said no. What may be sent again, where and when, is decided there.
//!
//! Invariants:
//! 1. An [`Op::Write`] is sent again only after an error that says it was surely not applied.
//! 2. If any attempt may have been applied, the error says so, whatever the later attempts said.
//! 3. A call ends at its deadline; the server is told an earlier one, as `grpc-timeout`.
//! 4. A round of answers and refused connections ends the call: only a connection that broke in it is reason
//!    for another. No attempt but the first begins with too little time for an answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quoral_client::{Attempt, RetryPolicy};
use tokio::time::Instant;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::output::{CliError, Exit, Op};
use crate::rpc::proto::cluster_client::ClusterClient;
use crate::rpc::proto::kv_client::KvClient;
use crate::types::error::Applied;
use crate::types::limits;

/// Tells the server when the caller stops waiting. An interceptor of the generated clients.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Interceptor for Deadline {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.set_timeout(self.left());
        Ok(request)
    }
}

impl Deadline {
    /// `timeout` from now.
    pub fn after(timeout: Duration) -> Deadline {
        Deadline(Instant::now() + timeout)
    }

    /// Time left, never zero: a zero `grpc-timeout` means none to some servers.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
}

/// The generated `Kv` client, with a deadline.
pub type Kv = KvClient<InterceptedService<Channel, Deadline>>;
/// The generated `Cluster` client, with a deadline.
pub type Cluster = ClusterClient<InterceptedService<Channel, Deadline>>;

/// How a command line tries again: until each endpoint has said no.
const RETRIES: RetryPolicy = RetryPolicy {
    attempts: u32::MAX,
    backoff: Duration::from_millis(20),
    backoff_max: Duration::from_millis(50),
    persist: false,
};
/// Retries that can be saved up, and one is earned with each request: `load` has many requests under way when a
/// node dies, and each round is short anyway.
const RETRIES_SAVED: u32 = 10_000;
/// An attempt with less time than this would end before its answer, and make a refused write a doubtful one.
const ATTEMPT_MIN: Duration = Duration::from_millis(50);

/// Whether another attempt, after `pause`, would have time for an answer, with `left` of `all` the time.
pub fn has_time(left: Duration, pause: Duration, all: Duration) -> bool {
    left > pause + ATTEMPT_MIN.min(all / 4)
}

/// Connections to a cluster. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    inner: quoral_client::Client,
    endpoints: Arc<[String]>,
    timeout: Duration,
}

/// A client of `quoral-client` with a command line's habits; connects when first used.
fn builder(endpoints: &[String], timeout: Duration) -> quoral_client::Builder {
    quoral_client::Client::builder()
        .endpoints(endpoints)
        .timeout(timeout)
        .retries(RETRIES)
        .retry_budget(1.0, RETRIES_SAVED)
}

fn bad_endpoints(error: &quoral_client::Error) -> CliError {
    CliError::usage(format!("--endpoints: {error}"))
}

/// A client that learns the nodes and sends to home replicas, for verbs that send much.
pub fn routed(endpoints: &[String], timeout: Duration) -> Result<quoral_client::Client, CliError> {
    builder(endpoints, timeout).connect_lazy().map_err(|error| bad_endpoints(&error))
}

impl Client {
    /// A client of `endpoints` (`host:port`); connects when first used. `timeout` bounds each call.
    pub fn connect(endpoints: &[String], timeout: Duration) -> Result<Client, CliError> {
        let has_port = |name: &str| {
            name.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok())
        };
        if let Some(bad) = endpoints.iter().find(|name| !has_port(name) || name.contains('/')) {
            return Err(CliError::usage(format!("--endpoints: {bad:?} must be host:port")));
        }
        if endpoints.is_empty() {
            return Err(CliError::usage("--endpoints: must have at least one host:port"));
        }
        let inner = builder(endpoints, timeout).routing(false).in_order(true).connect_lazy();
        let inner = inner.map_err(|error| bad_endpoints(&error))?;
        Ok(Client { inner, endpoints: endpoints.into(), timeout })
    }

    /// The deadline of each call.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// This client, with calls no longer than `most`.
    pub fn within(&self, most: Duration) -> Client {
        Client { timeout: self.timeout.min(most), ..self.clone() }
    }

    /// A `Kv` client on the first endpoint that can be reached, with a deadline of [`Client::timeout`]
    /// from now. For streams and for callers that do their own retries.
    pub async fn kv(&self) -> Result<Kv, CliError> {
        let deadline = Deadline::after(self.timeout);
        Ok(kv_client(self.channel().await?, deadline))
    }

    /// A `Cluster` client, likewise.
    pub async fn cluster(&self) -> Result<Cluster, CliError> {
        let deadline = Deadline::after(self.timeout);
        Ok(cluster_client(self.channel().await?, deadline))
    }

    /// The connection to the first endpoint that can be reached. For streams, which set their own deadlines:
    /// a `grpc-timeout` would end one that goes well.
    pub async fn channel(&self) -> Result<Channel, CliError> {
        self.call(Op::Read, |channel, _| async { Ok(Response::new(channel)) }).await
    }

    /// One connection to every endpoint that can be reached now, for a load generator; not shared with
    /// this client. An error if none can be reached.
    pub async fn channels(&self) -> Result<Vec<Channel>, CliError> {
        let mut channels = Vec::new();
        let mut last = None;
        for endpoint in self.endpoints.iter() {
            match Client::connect(std::slice::from_ref(endpoint), self.timeout)?.channel().await {
                Ok(channel) => channels.push(channel),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if channels.is_empty() => Err(error),
            _ => Ok(channels),
        }
    }

    /// A stream to every endpoint that can be reached now, likewise. Nothing is sent again.
    pub async fn pipelines(&self) -> Result<Vec<quoral_client::Pipeline>, CliError> {
        let (mut pipelines, mut last) = (Vec::new(), None);
        for endpoint in self.endpoints.iter() {
            let endpoint = std::slice::from_ref(endpoint);
            let client = builder(endpoint, self.timeout).routing(false).retries(RetryPolicy::NEVER);
            match client.connect().await {
                Ok(client) => pipelines.push(client.pipeline()),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if pipelines.is_empty() => Err(error.into()),
            _ => Ok(pipelines),
        }
    }

    /// Sends one request of the `Kv` service, to the next endpoint too as far as `op` allows.
    ///
    /// ```ignore
    /// let answer = client.call_kv(Op::Read, |mut kv| {
    ///     let request = request.clone();
    ///     async move { kv.get(request).await }
    /// }).await?;
    /// ```
    pub async fn call_kv<T, F, Fut>(&self, op: Op, send: F) -> Result<T, CliError>
    where
        F: Fn(Kv) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(op, |channel, deadline| send(kv_client(channel, deadline))).await
    }

    /// Sends one request of the `Cluster` service, likewise.
    pub async fn call_cluster<T, F, Fut>(&self, op: Op, send: F) -> Result<T, CliError>
    where
        F: Fn(Cluster) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.call(op, |channel, deadline| send(cluster_client(channel, deadline))).await
    }

    async fn call<T, F, Fut>(&self, op: Op, send: F) -> Result<T, CliError>
    where
        F: Fn(Channel, Deadline) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let send = |Attempt { channel, timeout, .. }| send(channel, Deadline::after(timeout));
        Ok(self.inner.call_within(op.into(), self.timeout, send).await?)
    }
}

/// What is known after some failed attempts of one request: the last error of those that tell most, and whether
/// any attempt may have been applied.
#[derive(Debug, Default)]
pub struct Worst {
    error: Option<CliError>,
    maybe: bool,
}

impl Worst {
    /// Takes one more failure in. A node's own words stay before a connection that broke, and that before one
    /// that was refused.
    pub fn add(&mut self, error: CliError) {
        self.maybe |= error.applied == Applied::Maybe;
        if self.error.as_ref().is_none_or(|known| error.reached >= known.reached) {
            self.error = Some(error);
        }
    }

    /// The error of the whole.
    pub fn into_error(self) -> CliError {
        let mut error = self.error.unwrap_or_else(|| CliError::new(Exit::Unavailable, "no endpoint"));
        if self.maybe && error.applied == Applied::No {
            error.applied = Applied::Maybe;
            error.exit = Exit::Unknown;
            error.message.push_str("; another attempt may have been applied");
        }
        error
    }
}

/// The generated `Kv` client on a channel, with the product's message limits.
pub fn kv_client(channel: Channel, deadline: Deadline) -> Kv {
    KvClient::with_interceptor(channel, deadline)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
}

/// The generated `Cluster` client on a channel, likewise.
pub fn cluster_client(channel: Channel, deadline: Deadline) -> Cluster {
    ClusterClient::with_interceptor(channel, deadline)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests;
