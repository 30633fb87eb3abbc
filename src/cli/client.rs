//! The client of all verbs: one request to the first endpoint that takes it, within one deadline.
//!
//! Why not a load balancer of tonic's: that one can't tell a request which surely changed nothing from
//! one whose answer was lost, and only the first kind may go to the next endpoint.
//!
//! Invariants:
//! 1. An [`Op::Write`] is sent again only after an error that says it was surely not applied.
//! 2. If any attempt may have been applied, the error says so, whatever the later attempts said.
//! 3. A call ends at its deadline, which the server is told as `grpc-timeout`.
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

    fn passed(self) -> bool {
        Instant::now() >= self.0
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
    /// deadline while its errors are of the transport; any other goes round once.
    async fn call<T, F, Fut>(&self, op: Op, send: F) -> Result<T, CliError>
    where
        F: Fn(Channel, Deadline) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Deadline::after(self.timeout);
        let start = self.current.load(Ordering::Relaxed);
        let mut worst = Worst::default();
        for attempt in 0.. {
            let at = (start + attempt) % self.targets.len();
            let error = match self.attempt(at, op, deadline, &send).await {
                Ok(answer) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let last_of_round = (attempt + 1) % self.targets.len() == 0;
            let next = worst.add(op, error, last_of_round);
            if !next || deadline.passed() {
                break;
            }
            if last_of_round {
                tokio::time::sleep(RETRY_PAUSE.min(deadline.left())).await;
            }
        }
        Err(worst.into_error())
    }

    /// One attempt at one endpoint, within the deadline.
    async fn attempt<T, F, Fut>(&self, at: usize, op: Op, deadline: Deadline, send: &F) -> Result<T, Attempt>
    where
        F: Fn(Channel, Deadline) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let target = &self.targets[at];
        let channel = match target.channel(deadline).await {
            Ok(channel) => channel,
            Err(error) => return Err(Attempt { error, unsent: true, broken: true }),
        };
        // A little after the server's own deadline, so that its answer, which says more, can arrive.
        let patience = deadline.left() + Duration::from_millis(200).min(self.timeout / 4);
        let status = match tokio::time::timeout(patience, send(channel, deadline)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer within the time"),
        };
        let broken = status.details().is_empty()
            && matches!(
                status.code(),
                tonic::Code::Unavailable
                    | tonic::Code::Unknown
                    | tonic::Code::Internal
                    | tonic::Code::Cancelled
            );
        if broken {
            // Connect afresh next time, rather than wait for tonic's own reconnect.
            *target.channel.lock().await = None;
        }
        let mut error = CliError::from_status(&status, op);
        if broken {
            error.message = format!("{}: {}", target.name, error.message);
        }
        Err(Attempt { error, unsent: super::output::surely_unsent(&status), broken })
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

/// How one attempt failed.
struct Attempt {
    error: CliError,
    /// No connection was made.
    unsent: bool,
    /// The transport failed, not the server.
    broken: bool,
}

/// What is known after some failed attempts.
#[derive(Default)]
struct Worst {
    error: Option<CliError>,
    maybe: bool,
    /// Whether some endpoint of this round took a connection.
    alive: bool,
}

impl Worst {
    /// Takes one more failure in; whether another attempt is allowed.
    fn add(&mut self, op: Op, attempt: Attempt, last_of_round: bool) -> bool {
        let Attempt { error, unsent, broken } = attempt;
        self.maybe |= error.applied == Applied::Maybe;
        self.alive |= !unsent;
        // A node that is starting or stopping, or cut off: another may do better.
        let refused = error.exit == Exit::Unavailable && error.code == "UNAVAILABLE" && !broken;
        let again = if last_of_round {
            // All endpoints dead is an answer: don't knock until the deadline.
            op != Op::Write && broken && self.alive
        } else {
            refused || unsent || (op != Op::Write && broken)
        };
        self.alive &= !last_of_round;
        // The server's own words tell more than a connection refused.
        if self.error.is_none() || !unsent {
            self.error = Some(error);
        }
        again
    }

    fn into_error(self) -> CliError {
        let mut error = self.error.unwrap_or_else(|| CliError::new(Exit::Unavailable, "no endpoint"));
        if self.maybe && error.applied == Applied::No {
            error.applied = Applied::Maybe;
            error.exit = Exit::Unknown;
            error.message.push_str("; an earlier attempt may have been applied");
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
