//! The client of all verbs: one request to the first endpoint that takes it, within one deadline.
//!
//! Why not a load balancer of tonic's: that one can't tell a request which surely changed nothing from
//! one whose answer was lost, and only the first kind may go to the next endpoint.
//!
//! Invariants:
//! 1. An [`Op::Write`] is sent again only after an error that says it was surely not applied.
//! 2. If any attempt may have been applied, the error says so, whatever the later attempts said.
//! 3. A call ends at its deadline, which the server is told as `grpc-timeout`.
//! 4. A round of answers and refused connections ends the call: only a connection that broke in it is reason
//!    for another. No attempt but the first begins with too little time for an answer.
//!
//! It does not retry an overloaded server: the error carries the delay, the verb decides.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::output::{CliError, Exit, Op, Reached};
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

/// Longest wait for one connection while other endpoints are left to try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A silent connection is asked for a sign of life after this, and given up after as long again, so that
/// a stopped node costs a read less than a second.
const KEEP_ALIVE: Duration = Duration::from_millis(450);
/// Pause before the endpoints are tried a second time.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// An attempt with less time than this would end before its answer, and make a refused write a doubtful one.
const ATTEMPT_MIN: Duration = Duration::from_millis(50);

/// Whether another attempt, after `pause`, would have time for an answer, with `left` of `all` the time.
pub fn has_time(left: Duration, pause: Duration, all: Duration) -> bool {
    left > pause + ATTEMPT_MIN.min(all / 4)
}

#[derive(Debug)]
struct Target {
    name: String,
    endpoint: Endpoint,
    channel: tokio::sync::Mutex<Option<Channel>>,
}

/// Connections to a cluster. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    targets: Arc<Vec<Target>>,
    current: Arc<AtomicUsize>,
    timeout: Duration,
}

impl Client {
    /// A client of `endpoints` (`host:port`); connects when first used. `timeout` bounds each call.
    pub fn connect(endpoints: &[String], timeout: Duration) -> Result<Client, CliError> {
        let targets = endpoints
            .iter()
            .map(|name| {
                let bad = |why: String| CliError::usage(format!("--endpoints: {name:?} {why}"));
                let has_port =
                    name.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok());
                if !has_port || name.contains('/') {
                    return Err(bad("must be host:port".into()));
                }
                let endpoint = Endpoint::from_shared(format!("http://{name}"))
                    .map_err(|e| bad(format!("is not an address: {e}")))?
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE)
                    .keep_alive_while_idle(true)
                    .initial_stream_window_size(Some(4 << 20))
                    .initial_connection_window_size(Some(16 << 20))
                    .connect_timeout(CONNECT_TIMEOUT.min(timeout));
                Ok(Target { name: name.clone(), endpoint, channel: tokio::sync::Mutex::new(None) })
            })
            .collect::<Result<Vec<Target>, CliError>>()?;
        if targets.is_empty() {
            return Err(CliError::usage("--endpoints: must have at least one host:port"));
        }
        Ok(Client { targets: Arc::new(targets), current: Arc::default(), timeout })
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
        let (_, channel) = self.first_reachable(deadline).await?;
        Ok(kv_client(channel, deadline))
    }

    /// A `Cluster` client, likewise.
    pub async fn cluster(&self) -> Result<Cluster, CliError> {
        let deadline = Deadline::after(self.timeout);
        let (_, channel) = self.first_reachable(deadline).await?;
        Ok(cluster_client(channel, deadline))
    }

    /// The connection to the first endpoint that can be reached. For streams, which set their own deadlines:
    /// a `grpc-timeout` would end one that goes well.
    pub async fn channel(&self) -> Result<Channel, CliError> {
        Ok(self.first_reachable(Deadline::after(self.timeout)).await?.1)
    }

    /// One connection to every endpoint that can be reached now, for a load generator; not shared with
    /// this client. An error if none can be reached.
    pub async fn channels(&self) -> Result<Vec<Channel>, CliError> {
        let mut channels = Vec::new();
        let mut last = None;
        for target in self.targets.iter() {
            match target.endpoint.connect().await {
                Ok(channel) => channels.push(channel),
                Err(error) => last = Some(unreachable_error(&target.name, &error)),
            }
        }
        match last {
            Some(error) if channels.is_empty() => Err(error),
            _ => Ok(channels),
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

    /// Tries the endpoints in turn from the current one. A repeatable request goes round until the
    /// deadline while connections break; any other goes round once.
    async fn call<T, F, Fut>(&self, op: Op, send: F) -> Result<T, CliError>
    where
        F: Fn(Channel, Deadline) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Deadline::after(self.timeout);
        let start = self.current.load(Ordering::Relaxed);
        let mut worst = Worst::default();
        // Whether a connection broke in this round.
        let mut broke = false;
        for attempt in 0.. {
            let at = (start + attempt) % self.targets.len();
            let error = match self.attempt(at, op, deadline, &send).await {
                Ok(answer) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            broke |= error.reached == Reached::Connection;
            let (again, pause) = if (attempt + 1) % self.targets.len() == 0 {
                // What all endpoints said, alive or dead, is an answer: don't knock until the deadline.
                (op != Op::Write && std::mem::take(&mut broke), RETRY_PAUSE)
            } else {
                (goes_on(op, &error), Duration::ZERO)
            };
            worst.add(error);
            if !again || !has_time(deadline.left(), pause, self.timeout) {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Err(worst.into_error())
    }

    /// One attempt at one endpoint, within the deadline.
    async fn attempt<T, F, Fut>(&self, at: usize, op: Op, deadline: Deadline, send: &F) -> Result<T, CliError>
    where
        F: Fn(Channel, Deadline) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let target = &self.targets[at];
        let channel = target.channel(deadline).await?;
        // A little after the server's own deadline, so that its answer, which says more, can arrive.
        let patience = deadline.left() + Duration::from_millis(200).min(self.timeout / 4);
        let mut error = match tokio::time::timeout(patience, send(channel, deadline)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => CliError::from_status(&status, op),
            Err(_) => {
                let late = Status::deadline_exceeded("no answer within the time");
                CliError { reached: Reached::Connection, ..CliError::from_status(&late, op) }
            }
        };
        if error.reached != Reached::Answer {
            // Connect afresh next time, rather than wait for tonic's own reconnect.
            *target.channel.lock().await = None;
            error.message = format!("{}: {}", target.name, error.message);
        }
        Err(error)
    }

    async fn first_reachable(&self, deadline: Deadline) -> Result<(usize, Channel), CliError> {
        let start = self.current.load(Ordering::Relaxed);
        let mut last = CliError::new(Exit::Unavailable, "no endpoint");
        for attempt in 0..self.targets.len() {
            let at = (start + attempt) % self.targets.len();
            match self.targets[at].channel(deadline).await {
                Ok(channel) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok((at, channel));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Target {
    /// The connection; made if there is none.
    async fn channel(&self, deadline: Deadline) -> Result<Channel, CliError> {
        let mut slot = self.channel.lock().await;
        if let Some(channel) = &*slot {
            return Ok(channel.clone());
        }
        let late = || {
            CliError::new(
                Exit::Unavailable,
                format!("{}: no connection within the time; nothing was sent", self.name),
            )
        };
        let channel = tokio::time::timeout(deadline.left(), self.endpoint.connect())
            .await
            .map_err(|_| late())?
            .map_err(|error| unreachable_error(&self.name, &error))?;
        *slot = Some(channel.clone());
        Ok(channel)
    }
}

/// Whether the next endpoint is asked after this failure of one.
fn goes_on(op: Op, error: &CliError) -> bool {
    match error.reached {
        Reached::Nobody => true,
        Reached::Connection => op != Op::Write,
        // A node that is starting or stopping, or cut off: another may do better.
        Reached::Answer => error.exit == Exit::Unavailable && error.code == "UNAVAILABLE",
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

fn unreachable_error(name: &str, error: &tonic::transport::Error) -> CliError {
    let mut text = format!("{name}: can't connect");
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    CliError::new(Exit::Unavailable, format!("{text}; nothing was sent"))
}

#[cfg(test)]
mod tests;
