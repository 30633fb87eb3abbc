//! A running node: everything that a data directory, a configuration and an environment make.
//!
//! Order of the start: the ports are bound, peers are served, links and gossip begin; a new data directory
//! waits until its peers have admitted it; then clients are served. While starting and draining, health says
//! `NOT_SERVING` and requests are refused with `applied = NO`.
//!
//! Admission: a new directory under a node id that the cluster knows has lost its disk and must not vote before it is
//! refilled (`refill`). Each peer remembers the directory of each node, and says so. A new one is admitted when
//! more than half of the *other* nodes have taken it: two such sets always share a node, so a directory that was
//! admitted once is never replaced by an empty one without notice.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::util::MapResponse;

use super::committer::{self, Committer};
use super::config::Config;
use super::coordinator::{Coordinator, Serving};
use super::drive::Driver;
use super::env::{ClusterClock, Env};
use super::gossip::{self, GossipHandle, Standing};
use super::hints::{self, Hints};
use super::http::{HttpState, serve_http};
use super::links::{Contact, Links, Me};
use super::maps::Maps;
use super::overload::govern;
use super::peers::Peers;
use super::proofs::Proofs;
use super::reaper::Reaper;
use super::refill::Refill;
use super::refiller::Refiller;
use super::repairs::Repairs;
use super::retries::{Turns, forget_requests};
use super::scrub::Scrubber;
use super::service::NodeService;
use super::startup::StartError;
use super::sweeper;
use super::trees;
use crate::antientropy::forest::Forest;
use crate::gossip::digest::NodeReport;
use crate::gossip::identity::Identity;
use crate::replica::mint::{Minter, stored_number};
use crate::replica::quarantine::Quarantine;
use crate::ring::layout::ClusterMap;
use crate::rpc::admission::Door;
use crate::rpc::cluster_service::ClusterService;
use crate::rpc::http2::{self, KeepAlive};
use crate::rpc::kv_service::KvService;
use crate::rpc::malformed;
use crate::rpc::peer_service::PeerService;
use crate::rpc::proto;
use crate::rpc::proto::cluster_server::ClusterServer;
use crate::rpc::proto::kv_server::KvServer;
use crate::rpc::proto::peer_server::PeerServer;
use crate::rpc::transport::{Connection, Listener};
use crate::storage::{Storage, schema};
use crate::telemetry::metrics::Metrics;
use crate::types::ids::{DiskId, Incarnation, Nonce};
use crate::types::limits::MESSAGE_BYTES_MAX;
use crate::types::policy::Durability;
use crate::version::hlc::{Hlc, Stamp};

/// How long a node that all its peers refuse keeps trying before it gives up.
const REFUSED_GRACE: Duration = Duration::from_secs(10);
/// How long a node waits at its start for peers that it could do without: the first requests find them then.
const SETTLE: Duration = Duration::from_millis(1_500);
/// How often a node tells gossip of itself.
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// How long requests under way may take once the node drains.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long the readers of sessions may take after that to take their answers.
const DRAIN_READERS: Duration = Duration::from_secs(1);
/// Largest message of a client: the largest value that can be configured, and room for the rest.
const CLIENT_MESSAGE_MAX: usize = 2 * crate::types::limits::VALUE_BYTES_MAX;

/// What a data directory says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its identity.
    pub id: DiskId,
    /// Its life.
    pub incarnation: Incarnation,
    /// How often a node has been started on it, this time included.
    pub starts: u64,
}

/// A node that runs until it is stopped or dropped.
pub struct Node {
    service: Arc<NodeService>,
    serving: watch::Sender<Serving>,
    health: [tonic_health::server::HealthReporter; 2],
    links: Arc<Links>,
    committer: Committer,
    gossip: GossipHandle,
    tasks: Vec<JoinHandle<()>>,
    /// Peers may ask it.
    is_admitted: Arc<AtomicBool>,
    /// The same, for the task that refills a lost disk.
    admission: watch::Sender<bool>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Ready {
    serving: watch::Receiver<Serving>,
    metrics: Arc<Metrics>,
    maps: Arc<Maps>,
}

impl HttpState for Ready {
    fn ready(&self) -> Result<String, String> {
        match &*self.serving.borrow() {
            Serving::Ready if self.maps.refill.is_filling() => Ok("ready, but it is refilled".into()),
            Serving::Ready if !self.maps.votes() => Ok("ready, but it does not vote yet".into()),
            Serving::Ready => Ok("ready".into()),
            Serving::Starting(why) => Err(format!("starting: {why}")),
            Serving::Draining => Err("stopping".into()),
        }
    }

    fn metrics(&self) -> String {
        self.metrics.render()
    }
}

/// The ports of a node, bound before anything is promised.
struct Ports {
    client: Box<dyn Listener>,
    peer: Box<dyn Listener>,
    http: Box<dyn Listener>,
}

async fn bind(env: &Env, config: &Config) -> Result<Ports, StartError> {
    let listen = async |field: &'static str, at: SocketAddr| {
        let bound = env.network.listen(at).await;
        bound.map_err(|error| StartError::Port { field, at, error: error.to_string() })
    };
    Ok(Ports {
        client: listen("listen.client", config.listen.client).await?,
        peer: listen("listen.peer", config.listen.peer).await?,
        http: listen("listen.http", config.listen.http).await?,
    })
}

/// Accepts connections into a stream, as tonic wants them.
fn incoming(
    mut listener: Box<dyn Listener>,
) -> (ReceiverStream<std::io::Result<Connection>>, JoinHandle<()>) {
    let (send, receive) = mpsc::channel(16);
    let task = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok(connection) => {
                    if send.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to close.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    (ReceiverStream::new(receive), task)
}

/// How often clients' connections are pinged.
const CLIENTS_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(10) };

fn log_end(what: &'static str, result: Result<(), tonic::transport::Error>) {
    if let Err(error) = result {
        tracing::error!(%error, what, "a server ended");
    }
}

impl Node {
    /// Starts a node on `storage`, which holds `map`. Returns when its ports are bound; it serves clients later
    /// (see [`Node::admitted`]).
    pub async fn start(
        env: Env,
        config: &Config,
        storage: Arc<dyn Storage>,
        disk: Disk,
        map: ClusterMap,
    ) -> Result<Node, StartError> {
        let commit_mode = env.commit;
        let clock = Arc::new(ClusterClock::new(env.clock.clone(), config.clock.max_skew_ms));
        let env = env.with_clock(clock.clone());
        let ports = bind(&env, config).await?;
        let metrics = Arc::new(Metrics::default());
        let me = Me {
            cluster: map.cluster,
            node: config.node.id,
            disk: disk.id,
            incarnation: disk.incarnation,
            starts: disk.starts,
            nonce: Nonce(env.random()),
        };
        let maps_sender = watch::Sender::new(Arc::new(map));
        let refill = Arc::new(Refill::load(&*storage)?);
        let committer = start_committer(&env, config, storage, disk, &metrics, maps_sender.subscribe())?;
        let links = Links::new(
            me,
            env.clone(),
            clock.clone(),
            committer.clone(),
            metrics.clone(),
            maps_sender.subscribe(),
            refill.clone(),
        );
        let (serving, serving_seen) =
            watch::channel(Serving::Starting("not yet admitted by its peers".into()));
        let hints = Hints::load(
            me.node,
            &config.hints,
            committer.storage(),
            committer.clone(),
            env.clock.clone(),
            metrics.clone(),
            maps_sender.subscribe(),
        );
        let hints = Arc::new(hints.map_err(|error| StartError::Storage(error.to_string()))?);
        let driver = Driver {
            hints: hints.clone(),
            refill: refill.clone(),
            choice: Arc::default(),
            engaged: Arc::default(),
            leaves: Arc::default(),
            due_tombstones: Arc::default(),
            me: me.node,
            clock: env.clock.clone(),
            committer: committer.clone(),
            links: links.clone(),
            metrics: metrics.clone(),
            read_repair: config.repair.read_repair,
            message_age: Duration::from_millis(config.repair.message_age_ms),
        };
        let coordinator = Arc::new(Coordinator {
            driver,
            map: maps_sender.subscribe(),
            serving: serving_seen.clone(),
            value_limit: config.limits.value_bytes,
            requests_limit: config.limits.requests_in_flight,
            bytes_limit: config.limits.bytes_in_flight,
            limit_now: AtomicUsize::new(usize::MAX),
            under_way: AtomicUsize::new(0),
            bytes_under_way: AtomicUsize::new(0),
            usual_get: AtomicUsize::new(0),
            key_shares: Mutex::default(),
            hot_refused: AtomicUsize::new(0),
            ended: Default::default(),
            turns: Turns::new(me.nonce),
        });
        let maps = Maps::new(me.node, env.clone(), committer.clone(), maps_sender, refill.clone());
        let gossip = start_gossip(&env, config, me, &maps.current()).await?;
        let (repair, watch) = (config.repair.clone(), maps.watch());
        let proofs = Proofs::load(committer.storage(), me.incarnation, env.clock.wall())?;
        let repairs = Arc::new(Repairs::new(coordinator.clone(), watch, env.clone(), repair, proofs));
        let service = Arc::new(NodeService {
            coordinator: coordinator.clone(),
            repairs: repairs.clone(),
            maps: maps.clone(),
            gossip: gossip.clone(),
            durability: config.node.durability,
            client_address: config.listen.advertised_client(),
        });
        let is_admitted = Arc::new(AtomicBool::new(false));
        let admitted = is_admitted.clone();
        let peers = Peers::new(me, coordinator, maps.clone(), links.clone(), repairs.clone(), admitted);
        let mut node = Node {
            service,
            serving,
            health: [
                tonic_health::server::HealthReporter::new(),
                tonic_health::server::HealthReporter::new(),
            ],
            links: links.clone(),
            committer: committer.clone(),
            gossip: gossip.clone(),
            tasks: Vec::new(),
            is_admitted,
            admission: watch::Sender::new(false),
        };
        node.serve(
            ports,
            Arc::new(peers),
            Arc::new(Ready { serving: serving_seen, metrics: metrics.clone(), maps: maps.clone() }),
        )
        .await?;
        links.connect_all();
        let mut targets = hints.targets();
        targets.extend(maps.current().layout.members.iter().map(|member| member.id));
        for target in targets.into_iter().filter(|node| *node != me.node) {
            node.tasks.push(tokio::spawn(hints::deliver(hints.clone(), links.clone(), target)));
        }
        let refiller = Refiller {
            refill,
            repairs: repairs.clone(),
            maps: maps.clone(),
            links: links.clone(),
            admitted: node.admission.subscribe(),
        };
        node.tasks.push(tokio::spawn(refiller.run()));
        node.tasks.push(tokio::spawn(maps.clone().follow(links, gossip)));
        node.tasks.push(tokio::spawn(sweeper::run(node.service.coordinator.clone(), maps.watch())));
        node.tasks.push(tokio::spawn(forget_requests(committer.clone(), clock.clone())));
        node.tasks.push(tokio::spawn(repairs.run()));
        let grace = Duration::from_millis(config.repair.tombstone_grace_ms);
        let reaper = Reaper::new(node.service.coordinator.clone(), maps.watch(), grace);
        node.tasks.push(tokio::spawn(reaper.run()));
        let coordinator = node.service.coordinator.clone();
        let scrubber = Arc::new(Scrubber::new(coordinator, maps.watch(), commit_mode, &config.repair));
        node.tasks.push(tokio::spawn(scrubber.clone().heal()));
        node.tasks.push(tokio::spawn(scrubber.scrub()));
        node.tasks.push(tokio::spawn(trees::tend(committer.clone(), metrics.clone())));
        node.tasks.push(tokio::spawn(report(node.service.clone(), clock, metrics)));
        if config.node.durability == Durability::Interval {
            node.tasks.push(tokio::spawn(committer::sync_at_intervals(committer)));
        }
        Ok(node)
    }

    /// The door of the client port, and who keeps it.
    fn door(&mut self) -> Arc<Door> {
        let coordinator = &self.service.coordinator;
        let door = Arc::new(Door::new(coordinator.requests_limit, coordinator.bytes_limit));
        self.tasks.push(tokio::spawn(govern(coordinator.clone(), door.clone())));
        door
    }

    async fn serve(&mut self, ports: Ports, peers: Arc<Peers>, ready: Arc<Ready>) -> Result<(), StartError> {
        let door = self.door();
        let [client_health, peer_health] = &self.health;
        client_health.set_not_serving::<KvServer<KvService<NodeService>>>().await;
        client_health.set_not_serving::<ClusterServer<ClusterService<NodeService>>>().await;
        client_health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        peer_health.set_serving::<PeerServer<PeerService<Peers>>>().await;
        let health = |reporter: &tonic_health::server::HealthReporter| {
            let service = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
            tonic_health::pb::health_server::HealthServer::new(service)
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let bad = |error: tonic_reflection::server::Error| StartError::Reflection(error.to_string());
        let kv = KvServer::new(KvService::new(self.service.clone()))
            .max_decoding_message_size(CLIENT_MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let routes = Routes::new(kv)
            .add_service(ClusterServer::new(ClusterService::new(self.service.clone())))
            .add_service(health(client_health))
            .add_service(reflection().build_v1().map_err(bad)?)
            .add_service(reflection().build_v1alpha().map_err(bad)?)
            .prepare();
        let peer = PeerServer::new(PeerService::new(peers))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let peers = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_millis(400)))
            .http2_keepalive_timeout(Some(Duration::from_millis(900)))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .max_concurrent_streams(4_096)
            .add_service(peer)
            .add_service(health(peer_health));
        let (connections, accepting) = incoming(ports.client);
        self.tasks.push(accepting);
        self.tasks.push(tokio::spawn(async move {
            http2::serve(connections, MapResponse::new(routes, malformed::as_invalid), door, CLIENTS_ALIVE)
                .await;
        }));
        let (connections, accepting) = incoming(ports.peer);
        self.tasks.push(accepting);
        self.tasks.push(tokio::spawn(async move {
            log_end("peers", peers.serve_with_incoming(connections).await);
        }));
        self.tasks.push(tokio::spawn(serve_http(ready, ports.http, std::future::pending())));
        Ok(())
    }

    /// Returns when this data directory may serve: at once if it was admitted in an earlier run, else when
    /// more than half of the other nodes have taken it. An error if it is refused for good.
    pub async fn admitted(&self) -> Result<(), StartError> {
        let key = schema::meta_key(schema::META_ADMITTED);
        let stored = self.committer.storage().get(&key).map_err(|e| StartError::Storage(e.to_string()))?;
        let others = self.service.maps.current().layout.members.len() - 1;
        let needed = if others == 0 { 0 } else { others / 2 + 1 };
        let mut contacts = self.links.contacts();
        let mut told = std::pin::pin!(tokio::time::sleep(REFUSED_GRACE));
        let mut settling = std::pin::pin!(tokio::time::sleep(SETTLE));
        let mut settled = false;
        loop {
            let now = contacts.borrow_and_update().clone();
            if let Some((peer, reason)) = now.iter().find_map(|(peer, contact)| match contact {
                Contact::Refused { reason, is_final: true } => Some((*peer, reason.clone())),
                _ => None,
            }) {
                return Err(StartError::Refused { by: peer, reason });
            }
            let accepted = now.values().filter(|contact| **contact == Contact::Accepted).count();
            if accepted == others || (settled && accepted >= needed) {
                break;
            }
            // A directory that was admitted before does not wait for peers that are away, but hears a refusal:
            // a copy of it must not serve beside the original.
            let none_refuses = now.len() == others
                && now.values().all(|c| matches!(c, Contact::Accepted | Contact::Unreachable(_)));
            if settled && stored.is_some() && none_refuses {
                break;
            }
            tokio::select! {
                biased;
                changed = contacts.changed() => if changed.is_err() { break },
                () = &mut settling, if !settled => settled = true,
                () = &mut told => {
                    let refused = now.iter().find_map(|(peer, contact)| match contact {
                        Contact::Refused { reason, .. } => Some((*peer, reason.clone())),
                        _ => None,
                    });
                    if let (Some((by, reason)), 0) = (refused, accepted) {
                        return Err(StartError::Refused { by, reason });
                    }
                    // Some take it: the one that goes on refusing may be the one that is wrong.
                    if stored.is_some() && accepted > 0 {
                        break;
                    }
                    tracing::warn!(accepted, needed, contacts = ?now, "still waiting for peers to admit this node");
                    told.as_mut().reset(tokio::time::Instant::now() + REFUSED_GRACE);
                }
            }
        }
        if stored.is_none() {
            // That it is refilled is stored no later than that it is admitted.
            let driver = &self.service.coordinator.driver;
            let mut batch = driver.refill.begin(driver.clock.wall()).unwrap_or_default();
            batch.put(key.clone(), schema::seal(&key, &[1]));
            self.committer.write(batch).await.map_err(|c| StartError::Storage(format!("{c:?}")))?;
        }
        self.is_admitted.store(true, Ordering::Release);
        self.admission.send_replace(true);
        Ok(())
    }

    /// Takes requests from now on.
    pub async fn open(&self) {
        self.serving.send_replace(Serving::Ready);
        self.set_health(tonic_health::ServingStatus::Serving).await;
        tracing::info!(node = %self.service.coordinator.driver.me, "ready");
    }

    async fn set_health(&self, status: tonic_health::ServingStatus) {
        for name in ["", "quoral.v1.Kv", "quoral.v1.Cluster"] {
            self.health[0].set_service_status(name, status).await;
        }
    }

    /// What clients and operators ask; for a test or a simulation in the same process.
    pub fn service(&self) -> &Arc<NodeService> {
        &self.service
    }

    /// Why this node must stop by itself, if it must: its storage has failed, or an older live process has
    /// its node id.
    pub fn problem(&self) -> Option<StartError> {
        if self.committer.has_failed() {
            return Some(StartError::Failed("a write or sync failed, see the log; restart the node".into()));
        }
        match &self.gossip.members().standing {
            Standing::Duplicate(other) => Some(StartError::Duplicate { address: other.address }),
            Standing::Active | Standing::Left | Standing::Defunct => None,
        }
    }

    /// Takes no new requests, finishes those under way, and says farewell.
    pub async fn drain(&self) {
        self.serving.send_replace(Serving::Draining);
        self.set_health(tonic_health::ServingStatus::NotServing).await;
        let idle = async {
            while self.service.coordinator.under_way.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(DRAIN_MAX, idle).await.is_err() {
            tracing::warn!("some requests were still under way when the node stopped");
        }
        let taken = async {
            while self.service.coordinator.driver.metrics.session_requests.get() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(DRAIN_READERS, taken).await.is_err() {
            tracing::info!("some answers of sessions had no reader when the node stopped");
        }
        self.gossip.leave().await;
        // A last group: when it is durable, so is everything before it.
        if let Err(cause) = self.committer.tend(true).await {
            tracing::warn!(?cause, "the last sync failed");
        }
    }
}

fn start_committer(
    env: &Env,
    config: &Config,
    storage: Arc<dyn Storage>,
    disk: Disk,
    metrics: &Arc<Metrics>,
    map: watch::Receiver<Arc<ClusterMap>>,
) -> Result<Committer, StartError> {
    let number = |name| stored_number(&*storage, name);
    let clock =
        Hlc::new(Stamp(number(schema::META_CLOCK_BOUND)?), Duration::from_millis(config.clock.max_skew_ms));
    let minter = Minter::new(config.node.id, disk.incarnation, clock, number(schema::META_BIRTH_LEASE)?);
    let (durability, clock) = (config.node.durability, env.clock.clone());
    let (forest, quarantine) = (Forest::load(&*storage)?, Quarantine::load(&*storage)?);
    Committer::start(
        storage,
        (minter, forest, quarantine),
        durability,
        clock,
        metrics.clone(),
        map,
        env.commit,
    )
    .map_err(|error| StartError::Storage(format!("the commit thread: {error}")))
}

async fn start_gossip(
    env: &Env,
    config: &Config,
    me: Me,
    map: &ClusterMap,
) -> Result<GossipHandle, StartError> {
    let advertised = config.listen.advertised_peer();
    let failed =
        |error: std::io::Error| StartError::Gossip { address: advertised.clone(), error: error.to_string() };
    let address = env.network.resolve(&advertised).await.map_err(failed)?;
    let generation = env.clock.wall().0;
    let identity = Identity::new(me.node, address, me.nonce, generation);
    let seeds = map.layout.members.iter().filter(|m| m.id != me.node).map(|m| m.address.clone()).collect();
    let (network, clock, seed) = (env.network.clone(), env.clock.clone(), env.random());
    gossip::start(network, clock, seed, identity, me.cluster, config.listen.peer, seeds).await.map_err(failed)
}

/// Tells gossip, and the metrics, how this node is.
async fn report(service: Arc<NodeService>, clock: Arc<ClusterClock>, metrics: Arc<Metrics>) {
    let mut maps = service.maps.watch();
    loop {
        let map = maps.borrow_and_update().clone();
        let disk_bytes = service.coordinator.driver.committer.storage().disk_bytes();
        let load = service.coordinator.under_way.load(Ordering::Relaxed);
        metrics.disk_bytes.set(disk_bytes);
        metrics.map_version.set(map.version.0);
        let clock_error = clock.error_ms();
        if clock_error != 0 && metrics.clock_error.set(clock_error) == 0 {
            tracing::warn!(clock_error, "the clock is ms off; the median of the cluster's is used");
        }
        metrics.clock_error.set(clock_error);
        let told = service.gossip.publish(NodeReport {
            map_version: map.version,
            map_digest: map.digest(),
            client_address: service.client_address.clone(),
            durability: service.durability.to_string(),
            disk_bytes,
            hints: service.coordinator.driver.hints.count(),
            load: u32::try_from(load).unwrap_or(u32::MAX),
        });
        if let Err(invalid) = told {
            tracing::error!(%invalid, "this node can't be told of");
        }
        tokio::select! {
            biased;
            changed = maps.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(REPORT_PERIOD) => {}
        }
    }
}
