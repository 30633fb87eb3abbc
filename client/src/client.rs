//! The client: endpoints, the table of who owns what, the budget, and the one loop that sends a request.
//!
//! Invariants:
//! 1. A request ends at its deadline, whatever connections, retries and refreshes do. Nodes are told an earlier
//!    one, so that their answer, which says more than silence, has time to arrive.
//! 2. The table is pulled in the background; no request waits for it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::endpoint::{Connection, Target};
use crate::error::{AttemptError, Error, Reached, Worst};
use crate::keyspace::Keyspace;
use crate::proto::cluster_client::ClusterClient;
use crate::proto::kv_client::KvClient;
use crate::proto::{self};
use crate::retry::{Budget, Decision, Op, RetryPolicy, Standing, decide};
use crate::route::{Health, Place, Seen, Table, pick};
use crate::session::Session;

/// Largest message, as the servers have it.
const MESSAGE_BYTES: usize = 1 << 30;
/// How old the table may be.
const TABLE_AGE: Duration = Duration::from_secs(30);
/// How old one may be in which nodes are missing; twice as old each time that they still are.
const TABLE_AGE_MIN: Duration = Duration::from_secs(1);
/// How long a refresh of the table may take, and how long after one that failed the next may begin.
const REFRESH_TIME: Duration = Duration::from_secs(2);

/// What a client is made with.
#[derive(Debug, Clone)]
pub struct Builder {
    endpoints: Vec<String>,
    settings: Settings,
    budget: Budget,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub timeout: Duration,
    pub retries: RetryPolicy,
    pub routing: bool,
    pub in_order: bool,
    pub request_ids: bool,
    pub margin: Duration,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            endpoints: Vec::new(),
            settings: Settings {
                timeout: Duration::from_secs(5),
                retries: RetryPolicy::default(),
                routing: true,
                in_order: false,
                request_ids: true,
                margin: Duration::from_millis(50),
            },
            budget: Budget::new(0.1, 100),
        }
    }
}

impl Builder {
    /// Nodes to begin with, as `host:port`; some of the cluster's are enough. The others are learnt.
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> Builder {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// How long a request may take, with all its attempts; 5 s if it is not said. Each request can have its own.
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.settings.timeout = timeout;
        self
    }

    /// How often a request is sent again; [`RetryPolicy::NEVER`] for not at all.
    pub fn retries(mut self, policy: RetryPolicy) -> Builder {
        self.settings.retries = policy;
        self
    }

    /// What retries may add to the load: a share of the requests (0.1 if it is not said), and a burst that can be
    /// saved up (100), which is what there is when a node dies with many requests under way.
    pub fn retry_budget(mut self, share: f64, burst: u32) -> Builder {
        self.budget = Budget::new(share, burst);
        self
    }

    /// Whether nodes are learnt from the cluster, and requests go to a home replica of their key. If not, they go
    /// to the given endpoints alone, in turn.
    pub fn routing(mut self, routing: bool) -> Builder {
        self.settings.routing = routing;
        self
    }

    /// How much earlier than a request's deadline a node is told to answer: 50 ms if it is not said, and never more
    /// than a quarter of the time. Its answer says more than silence, and needs some time to arrive.
    pub fn answer_margin(mut self, margin: Duration) -> Builder {
        self.settings.margin = margin;
        self
    }

    /// Whether the first endpoint comes first, as long as it is there, rather than each in its turn.
    pub fn in_order(mut self, in_order: bool) -> Builder {
        self.settings.in_order = in_order;
        self
    }

    /// Whether each put and delete gets a request id by itself, so that it can be sent again when its answer was
    /// lost. They do unless this says no; see the [crate's page](crate#what-a-request-id-costs) on what it costs.
    pub fn request_ids(mut self, by_default: bool) -> Builder {
        self.settings.request_ids = by_default;
        self
    }

    /// A client that connects when it is first used. An error names what is wrong with an endpoint.
    pub fn connect_lazy(self) -> Result<Client, Error> {
        let mut targets: Vec<Arc<Target>> = Vec::new();
        for name in &self.endpoints {
            let target = Target::new(name, true)?;
            if !targets.iter().any(|known| known.address == target.address) {
                targets.push(Arc::new(target));
            }
        }
        if targets.is_empty() {
            return Err(Error::invalid("endpoints: must have at least one host:port"));
        }
        Ok(Client(Arc::new(Inner {
            settings: self.settings,
            budget: Mutex::new(self.budget),
            targets: RwLock::new(targets.into()),
            table: RwLock::default(),
            refreshing: AtomicBool::default(),
            next_refresh: Mutex::default(),
            table_age: Mutex::default(),
            turn: AtomicUsize::default(),
        })))
    }

    /// A client that has reached the cluster, and knows who owns what.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.connect_lazy()?;
        if client.0.settings.routing {
            client.refresh().await?;
        } else {
            client.status().await?;
        }
        Ok(client)
    }
}

/// A client of one cluster. Cheap to clone; clones share connections, the budget and what is known of the cluster.
#[derive(Debug, Clone)]
pub struct Client(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub settings: Settings,
    budget: Mutex<Budget>,
    targets: RwLock<Arc<[Arc<Target>]>>,
    table: RwLock<Arc<Table>>,
    refreshing: AtomicBool,
    /// None before the first.
    next_refresh: Mutex<Option<Instant>>,
    /// How old the table that is there may become.
    table_age: Mutex<Duration>,
    turn: AtomicUsize,
}

/// A refresh in the background. When it is over, or dropped with its runtime, the next may begin.
struct Refreshing(Arc<Inner>);

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.0.refreshing.store(false, Ordering::Release);
    }
}

/// What came of a request, and how often it was sent.
pub(crate) struct Answered<T> {
    pub answer: T,
    pub attempts: u32,
}

/// One attempt: where to, and how long a node may take for its answer.
pub struct Attempt {
    /// The connection.
    pub channel: Channel,
    /// What the node is to be told as its time; a little less than there is.
    pub timeout: Duration,
    pub(crate) address: Arc<str>,
    /// Which of the connections to this address it is.
    pub(crate) connection: u64,
}

impl Attempt {
    /// [`Attempt::timeout`] as requests carry it.
    pub fn timeout_ms(&self) -> u64 {
        // Zero would mean none.
        millis(self.timeout).max(1)
    }

    /// The generated `Kv` client.
    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    /// The generated `Cluster` client.
    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }
}

/// A duration as requests carry it.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// When a request with this time of its own must be answered.
pub(crate) fn deadline_of(client: &Client, timeout: Option<Duration>) -> Instant {
    Instant::now() + timeout.unwrap_or(client.0.settings.timeout)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// A client with settings of one's own.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A client with the usual settings, connected.
    pub async fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Client, Error> {
        Client::builder().endpoints(endpoints).connect().await
    }

    /// The keys of a keyspace. It is not checked here whether there is one of this name.
    pub fn keyspace(&self, name: impl Into<String>) -> Keyspace {
        Keyspace::new(self.clone(), name.into(), None)
    }

    /// A new session: what goes through it reads its own writes and never goes back.
    pub fn session(&self) -> Session {
        Session::from_token(self.clone(), Bytes::new())
    }

    /// Goes on with a session from its [`token`](Session::token), perhaps of another process.
    pub fn session_from(&self, token: impl Into<Bytes>) -> Session {
        Session::from_token(self.clone(), token.into())
    }

    /// The nodes that the client knows now, as `host:port`.
    pub fn endpoints(&self) -> Vec<String> {
        self.0.targets().iter().map(|target| target.address.to_string()).collect()
    }

    /// Asks the cluster who owns what, now. It happens by itself too: at first, twice a minute, and when a node
    /// speaks of another layout.
    pub async fn refresh(&self) -> Result<(), Error> {
        let refresh = self.0.refresh(self.0.settings.timeout);
        refresh.await.inspect_err(|_| self.0.postpone_refresh())
    }

    /// Sends a request of one's own making, with routing, retries and budget as all others: `send` is called for
    /// each attempt. For what this crate has no method for.
    ///
    /// ```no_run
    /// # async fn f(client: quoral_client::Client) -> Result<(), quoral_client::Error> {
    /// use quoral_client::{Op, proto};
    /// let explain = proto::ExplainRequest { keyspace: "carts".into(), key: "cart:42".into(), ..Default::default() };
    /// let place = client.call(Op::Read, |attempt| {
    ///     let explain = explain.clone();
    ///     async move { attempt.cluster().explain(explain).await }
    /// });
    /// println!("partition {}", place.await?.partition);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call<T, F, Fut>(&self, op: Op, send: F) -> Result<T, Error>
    where
        F: Fn(Attempt) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_within(op, self.0.settings.timeout, send).await
    }

    /// [`Client::call`] with a time of its own.
    pub async fn call_within<T, F, Fut>(&self, op: Op, timeout: Duration, send: F) -> Result<T, Error>
    where
        F: Fn(Attempt) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        Ok(self.0.call(op, None, Instant::now() + timeout, send).await?.answer)
    }
}

impl Inner {
    pub fn targets(&self) -> Arc<[Arc<Target>]> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request until it is answered, refused for good, or out of time, attempts or budget.
    pub async fn call<T, E, F, Fut>(
        self: &Arc<Inner>,
        op: Op,
        place: Option<Place<'_>>,
        deadline: Instant,
        send: F,
    ) -> Result<Answered<T>, Error>
    where
        E: AttemptError,
        F: Fn(Attempt) -> Fut,
        Fut: Future<Output = Result<Response<T>, E>>,
    {
        let all = deadline.saturating_duration_since(Instant::now());
        locked(&self.budget).earn();
        self.refresh_if_old();
        let mut tries: Vec<(Arc<Target>, u32)> = Vec::new();
        let mut worst = Worst::default();
        let mut broke = false;
        let turn = if self.settings.in_order { 0 } else { self.turn.fetch_add(1, Ordering::Relaxed) };
        for made in 1.. {
            let target = self.choose(op, place, turn, &tries);
            match tries.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &target)) {
                Some((_, count)) => *count += 1,
                None => tries.push((target.clone(), 1)),
            }
            let error = match self.attempt(&target, op, deadline, &send).await {
                Ok(answer) => return Ok(Answered { answer, attempts: made }),
                Err(error) => error,
            };
            self.heard_of_layout(error.layout_version);
            let left = deadline.saturating_duration_since(Instant::now());
            let untried = self.is_one_left(&tries);
            broke |= error.reached == Reached::Connection;
            let standing = Standing { op, made, left, all, untried, broke, draw: rand::random() };
            let decision = decide(&self.settings.retries, &standing, &error);
            worst.add(error);
            // A new round begins when this one has no endpoint left.
            broke &= untried;
            match decision {
                Decision::Again { after, costs } if !costs || locked(&self.budget).spend() => {
                    tokio::time::sleep(after).await;
                }
                _ => return Err(worst.into_error(made)),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// The endpoint for the next attempt.
    fn choose(
        &self,
        op: Op,
        place: Option<Place<'_>>,
        turn: usize,
        tries: &[(Arc<Target>, u32)],
    ) -> Arc<Target> {
        let (targets, table, now) = (self.targets(), self.table(), Instant::now());
        let mut homes = place.map(|place| table.homes(place)).unwrap_or_default();
        if op == Op::Read && !homes.is_empty() {
            let first = turn % homes.len();
            homes.rotate_left(first);
        }
        let seen: Vec<Seen> = targets
            .iter()
            .map(|target| {
                let (health, connected) = target.seen(now);
                let tried = tries.iter().find(|(known, _)| Arc::ptr_eq(known, target));
                Seen {
                    health,
                    connected,
                    given: target.given,
                    tries: tried.map_or(0, |(_, count)| *count),
                    home: homes.iter().position(|home| *home == &*target.address),
                }
            })
            .collect();
        // Homes that are not connected will be, for the next.
        for (target, seen) in
            targets.iter().zip(&seen).filter(|(_, seen)| seen.home.is_some() && !seen.connected)
        {
            if seen.health == Health::Well {
                target.warm();
            }
        }
        // There is at least one: those given stay for ever.
        let at = pick(&seen, turn).unwrap_or(0);
        targets[at].chosen(now);
        targets[at].clone()
    }

    /// Whether an endpoint is left that was tried less often than another, and is not known to be dead.
    fn is_one_left(&self, tries: &[(Arc<Target>, u32)]) -> bool {
        let now = Instant::now();
        let round = tries.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let tried = |target: &Arc<Target>| {
            tries.iter().any(|(known, count)| Arc::ptr_eq(known, target) && *count >= round)
        };
        self.targets().iter().any(|target| !tried(target) && target.seen(now).0 != Health::Dead)
    }

    /// One attempt at one endpoint, within the deadline.
    async fn attempt<T, E, F, Fut>(
        &self,
        target: &Target,
        op: Op,
        deadline: Instant,
        send: &F,
    ) -> Result<T, Error>
    where
        E: AttemptError,
        F: Fn(Attempt) -> Fut,
        Fut: Future<Output = Result<Response<T>, E>>,
    {
        let connection = target.connection(deadline).await?;
        let Connection { channel, number } = connection.clone();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::not_begun("no time was left to send it; nothing was sent"));
        }
        let timeout = left - (left / 4).min(self.settings.margin);
        let attempt = Attempt { channel, timeout, address: target.address.clone(), connection: number };
        let error = match tokio::time::timeout_at(deadline, send(attempt)).await {
            Ok(Ok(answer)) => {
                target.answered();
                return Ok(answer.into_inner());
            }
            Ok(Err(error)) => error.into_error(&target.address, op),
            Err(_) => Error::silence(&target.address, op),
        };
        target.failed(&connection, &error);
        Err(error)
    }

    fn heard_of_layout(self: &Arc<Inner>, version: u64) {
        if version > self.table().layout_version {
            let mut next = locked(&self.next_refresh);
            // Not at once for each request that hears of it, and not while an earlier one has just failed.
            if next.is_some_and(|at| at > Instant::now() + REFRESH_TIME) {
                *next = Some(Instant::now());
            }
            drop(next);
            self.refresh_if_old();
        }
    }

    fn postpone_refresh(&self) {
        *locked(&self.next_refresh) = Some(Instant::now() + REFRESH_TIME);
    }

    /// Begins a refresh in the background if one is due.
    fn refresh_if_old(self: &Arc<Inner>) {
        let due = locked(&self.next_refresh).is_none_or(|at| Instant::now() >= at);
        if !due || !self.settings.routing || self.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let refreshing = Refreshing(self.clone());
        tokio::spawn(async move {
            if refreshing.0.refresh(REFRESH_TIME).await.is_err() {
                refreshing.0.postpone_refresh();
            }
        });
    }

    /// Pulls the table from one node, and learns the nodes.
    async fn refresh(self: &Arc<Inner>, timeout: Duration) -> Result<(), Error> {
        // Before anything is awaited: requests meanwhile begin no second one.
        self.postpone_refresh();
        let deadline = Instant::now() + timeout;
        let send = |attempt: Attempt| async move {
            let mut cluster = attempt.cluster();
            let status = cluster.status(proto::StatusRequest {}).await?.into_inner();
            let layout = cluster.layout(proto::LayoutRequest {}).await?.into_inner();
            let keyspaces = cluster.list_keyspaces(proto::ListKeyspacesRequest {}).await?.into_inner();
            Ok::<_, Status>(Response::new(Table::new(status, layout, keyspaces)))
        };
        // Boxed: a refresh is a call, and a call may begin one.
        let pulled: std::pin::Pin<Box<dyn Future<Output = _> + Send + '_>> =
            Box::pin(self.call(Op::Read, None, deadline, send));
        let table = pulled.await?.answer;
        self.learn(&table);
        let age = match (table.is_complete, self.table().is_complete) {
            (true, _) => TABLE_AGE,
            (false, true) => TABLE_AGE_MIN,
            // At first, too: the nodes of a new cluster may not have said where they are.
            (false, false) => (*locked(&self.table_age) * 2).clamp(TABLE_AGE_MIN, TABLE_AGE),
        };
        *locked(&self.table_age) = age;
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        *locked(&self.next_refresh) = Some(Instant::now() + age);
        Ok(())
    }

    /// Takes the table's nodes as endpoints, in place of those that an earlier table named.
    fn learn(&self, table: &Table) {
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        let told = |target: &Target| table.addresses().any(|address| address == &*target.address);
        let mut now: Vec<Arc<Target>> = targets.iter().filter(|t| t.given || told(t)).cloned().collect();
        for address in table.addresses() {
            if !now.iter().any(|target| &*target.address == address)
                // What is no address is no use.
                && let Ok(target) = Target::new(address, false)
            {
                now.push(Arc::new(target));
            }
        }
        *targets = now.into();
    }
}
