//! The simulated cluster: whole nodes on turmoil hosts, whose disks outlive them.
//!
//! A host's disk is a `MemoryStorage` that is kept here. A crash takes from it a suffix of what was not
//! synced; the next life of the host finds the rest. Everything that is random on a host comes from the
//! seed, the host's number and the number of the life.

mod disks;

use std::collections::BTreeMap;
use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use quoral::canary::{self, Canary};
use quoral::hinted::queue::Hint;
use quoral::node::config::{
    BootstrapConfig, BootstrapNode, ClockConfig, Config, LimitsConfig, ListenConfig, LogConfig, NodeConfig,
    RuntimeConfig, StorageConfig,
};
use quoral::node::env::{CommitMode, Env};
use quoral::node::server::{Disk, Node};
use quoral::node::service::NodeService;
use quoral::node::startup::{StartError, bootstrap_map, starting_map};
use quoral::ring::layout::{ClusterMap, NewKeyspace};
use quoral::storage::memory::MemoryStorage;
use quoral::storage::{Storage, schema};
use quoral::types::ids::{DiskId, Incarnation, NodeId};
use quoral::types::limits;
use quoral::types::policy::Durability;
use turmoil::Sim;

use crate::check::Finding;
use crate::check::honest::Gauge;
use crate::check::lives::{self, LifeWatch};
use crate::check::state::{HintWatch, MapWatch};
use crate::clock::{EPOCH_MS, Offset, SimClock};
use crate::draw::default_space;
use crate::history::{Recorder, Space};
use crate::net::{Loss, SimNetwork};
use crate::upkeep::{APART_MS, BRIEF, BRIEF_TTL_MS, SKEW_MS, Upkeep};

/// How long a simulation may go on before it counts as hung.
const SIMULATION_MAX: Duration = Duration::from_secs(300);

/// How often hints and gauges are looked at.
const SAMPLE_MS: u64 = 20;
/// More than a get finds here: one answer is taken when it is alone, however large it is.
pub const ANSWER_BYTES: usize = 400;

/// The network's latency, and how the hosts take turns.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Shortest time of a message under way, in milliseconds.
    pub latency_min: u64,
    /// Longest.
    pub latency_max: u64,
    /// Whether the hosts run in another order in each tick.
    pub random_order: bool,
    /// How long each host runs before the next does, in milliseconds: the longer, the faster is the simulation.
    pub tick_ms: u64,
}

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Decides everything.
    pub seed: u64,
    /// How far each node's wall clock is ahead at first; as many as there are nodes.
    pub offsets: Vec<u64>,
    /// Each node's zone.
    pub zones: Vec<String>,
    /// The keyspaces; the first is the one that every cluster begins with.
    pub spaces: Vec<Arc<Space>>,
    /// The network.
    pub weather: Weather,
    /// How long a sync takes when nothing is wrong.
    pub sync_ms: u64,
    /// Most requests under way at one node.
    pub requests_limit: usize,
    /// Most bytes of values that they write.
    pub bytes_limit: usize,
    /// How replicas are kept equal.
    pub upkeep: Upkeep,
    /// A bug that is planted.
    pub canary: Option<Canary>,
}

impl Setup {
    /// As many nodes as there are offsets, with nothing out of the ordinary but the weather.
    pub fn plain(seed: u64, offsets: &[u64], weather: Weather) -> Setup {
        let mut siblings =
            Space { conflicts: quoral::types::policy::Conflicts::Siblings, ..default_space(3) };
        siblings.name = "carts".into();
        Setup {
            seed,
            offsets: offsets.to_vec(),
            zones: (0..offsets.len()).map(|node| format!("z{node}")).collect(),
            spaces: vec![Arc::new(default_space(offsets.len())), Arc::new(siblings)],
            weather,
            sync_ms: 0,
            requests_limit: limits::REQUESTS_IN_FLIGHT,
            bytes_limit: limits::BYTES_IN_FLIGHT,
            upkeep: Upkeep::USUAL,
            canary: None,
        }
    }
}

/// One host.
pub struct Host {
    /// Its name, and its node's.
    pub name: String,
    /// Its node's id.
    pub id: NodeId,
    /// Its disk.
    pub storage: Arc<MemoryStorage>,
    /// Its wall clock's error.
    pub offset: Offset,
    /// Lives so far.
    lives: AtomicU64,
    /// Disks that it has lost.
    disks: AtomicU64,
    /// Whether its node serves clients.
    ready: AtomicBool,
    /// Its node, while it runs.
    service: Mutex<Weak<NodeService>>,
}

impl Host {
    /// Its node, if it serves clients.
    pub fn service(&self) -> Option<Arc<NodeService>> {
        let service = self.service.lock().expect("no panic while it is held").upgrade();
        service.filter(|_| self.ready.load(Ordering::Relaxed))
    }
}

/// The cluster and its simulation.
pub struct Cluster {
    /// The simulation.
    pub sim: Sim<'static>,
    /// The nodes' hosts.
    pub hosts: Vec<Arc<Host>>,
    /// What happened.
    pub recorder: Recorder,
    /// Every host that messages go to or come from.
    pub names: Vec<String>,
    /// What it is made of.
    pub setup: Setup,
    /// How many of 100 datagrams are lost.
    pub loss: Loss,
    /// The cluster map that all nodes begin with.
    pub first_map: ClusterMap,
    up: Vec<bool>,
    gauges: BTreeMap<String, Gauge>,
    map_watch: MapWatch,
    /// The largest answer that there may be: of a get, or of as many as a batch has.
    pub answer_bytes: usize,
    /// What each node knew when of the keyspace that is made anew.
    pub life_watch: LifeWatch,
    hint_watch: HintWatch,
    /// What was seen to be wrong as it went on.
    pub seen_wrong: Vec<Finding>,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        canary::plant(None);
    }
}

/// One simulation at a time in a process, see [`take_turn`].
static TURN: Mutex<()> = Mutex::new(());

/// Waits for the turn, and makes it like any other: a runtime that is dropped, as at a crash, drops its tasks by
/// their id modulo 4, and ids are counted through the whole process. The order decides which connection
/// is closed first.
fn take_turn() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    let next_id = || runtime.spawn(async {}).id().to_string().parse::<u64>().expect("an id is a number");
    while next_id() % 64 != 63 {}
    turn
}

/// A number from a seed and two more: SplitMix64's finisher, so that neighbours have nothing in common.
pub fn mix(seed: u64, a: u64, b: u64) -> u64 {
    let mut z = seed ^ a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd1b5_4a32_d192_ed03);
    for _ in 0..2 {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    z
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

/// The configuration of node `index`.
fn config(index: usize, setup: &Setup) -> Config {
    let count = setup.zones.len();
    let name = |index: usize| format!("n{}", index + 1);
    let node = |index: usize| BootstrapNode {
        id: NodeId(index as u64 + 1),
        name: name(index),
        address: format!("{}:7401", name(index)),
        zone: setup.zones[index].clone(),
        weight: 1,
    };
    Config {
        node: NodeConfig {
            id: NodeId(index as u64 + 1),
            name: name(index),
            zone: setup.zones[index].clone(),
            data_dir: PathBuf::new(),
            durability: Durability::Always,
        },
        listen: ListenConfig {
            client: any(7400),
            peer: any(7401),
            http: any(7402),
            advertise_client: Some(format!("{}:7400", name(index))),
            advertise_peer: Some(format!("{}:7401", name(index))),
        },
        bootstrap: BootstrapConfig {
            cluster: "simulated".into(),
            partitions: 16,
            nodes: (0..count).map(node).collect(),
        },
        limits: LimitsConfig {
            value_bytes: limits::VALUE_BYTES_DEFAULT,
            requests_in_flight: setup.requests_limit,
            bytes_in_flight: setup.bytes_limit,
        },
        clock: ClockConfig { max_skew_ms: SKEW_MS },
        hints: setup.upkeep.hints(),
        repair: setup.upkeep.repair(),
        storage: StorageConfig { cache_bytes: limits::CACHE_BYTES_DEFAULT, compact_bytes: 0 },
        runtime: RuntimeConfig { threads: 1 },
        log: LogConfig { level: "info".into() },
    }
}

fn first_map(config: &Config, spaces: &[Arc<Space>]) -> ClusterMap {
    let mut map = bootstrap_map(config).expect("a valid list");
    for space in &spaces[1..] {
        let Space { name, conflicts, n, r, w, sloppy } = (**space).clone();
        let ttl_ms = (name == BRIEF).then_some(BRIEF_TTL_MS);
        let wanted = NewKeyspace { name, conflicts, n: Some(n), r: Some(r), w: Some(w), sloppy, ttl_ms };
        map = map.with_keyspace(wanted).expect("a valid keyspace");
    }
    map
}

/// One life of a host. Ends like the process would: with an error if the node can't start, never while it is
/// well; a node whose disk failed stays silent until the scenario crashes it.
async fn live(host: Arc<Host>, config: Config, map: ClusterMap, loss: Loss, seed: u64) -> turmoil::Result {
    let life = host.lives.fetch_add(1, Ordering::Relaxed) + 1;
    let clock = Arc::new(SimClock::new(host.offset.clone()));
    let network = Arc::new(SimNetwork::new(loss, mix(seed, host.id.0, life + 1_000_000)));
    let env = Env::new(clock, network, CommitMode::Inline, mix(seed, host.id.0, life));
    let lost = host.disks.load(Ordering::Relaxed);
    let id = DiskId(mix(seed, host.id.0, lost << 32));
    let disk = Disk { id, incarnation: Incarnation(1 + lost), starts: life };
    let storage: Arc<dyn Storage> = host.storage.clone();
    let map = starting_map(&*storage, map)?;
    let node = Node::start(env, &config, storage, disk, map).await?;
    *host.service.lock().expect("no panic while it is held") = Arc::downgrade(node.service());
    match node.admitted().await {
        Ok(()) => {}
        Err(StartError::Storage(_)) => {
            drop(node);
            return pending().await;
        }
        Err(other) => return Err(other.into()),
    }
    node.open().await;
    host.ready.store(true, Ordering::Relaxed);
    while node.problem().is_none() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    host.ready.store(false, Ordering::Relaxed);
    drop(node);
    pending().await
}

impl Cluster {
    /// Starts all nodes at once.
    pub fn new(setup: Setup) -> Cluster {
        let turn = take_turn();
        assert!(canary::plant(setup.canary), "this build has no canaries: see docs/testing.md");
        let Setup { seed, weather, .. } = setup;
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(mix(seed, 1, 1))
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_millis(EPOCH_MS))
            .simulation_duration(SIMULATION_MAX)
            .tick_duration(Duration::from_millis(weather.tick_ms))
            .min_message_latency(Duration::from_millis(weather.latency_min))
            .max_message_latency(Duration::from_millis(weather.latency_max))
            .tcp_capacity(4_096)
            .udp_capacity(4_096);
        if weather.random_order {
            builder.enable_random_order();
        }
        let mut sim = builder.build();
        let (mut hosts, loss) = (Vec::new(), Loss::default());
        let first_map = first_map(&config(0, &setup), &setup.spaces);
        for (index, offset) in setup.offsets.iter().enumerate() {
            let config = config(index, &setup);
            let host = Arc::new(Host {
                name: config.node.name.clone(),
                id: config.node.id,
                storage: Arc::new(MemoryStorage::new()),
                offset: Arc::new(AtomicU64::new(*offset)),
                lives: AtomicU64::new(0),
                disks: AtomicU64::new(0),
                ready: AtomicBool::new(false),
                service: Mutex::new(Weak::new()),
            });
            host.storage.set_sync_takes(Duration::from_millis(setup.sync_ms));
            let (software, map, loss) = (host.clone(), first_map.clone(), loss.clone());
            sim.host(host.name.clone(), move || {
                live(software.clone(), config.clone(), map.clone(), loss.clone(), seed)
            });
            hosts.push(host);
        }
        let names = hosts.iter().map(|host| host.name.clone()).collect();
        let up = vec![true; hosts.len()];
        let (recorder, gauges) = (Recorder::default(), BTreeMap::new());
        Cluster {
            sim,
            hosts,
            recorder,
            names,
            setup,
            loss,
            first_map,
            up,
            gauges,
            map_watch: MapWatch::default(),
            answer_bytes: ANSWER_BYTES,
            life_watch: LifeWatch::default(),
            hint_watch: HintWatch::default(),
            seen_wrong: Vec::new(),
            _turn: turn,
        }
    }

    /// The names of the nodes' hosts.
    pub fn node_names(&self) -> Vec<String> {
        self.hosts.iter().map(|host| host.name.clone()).collect()
    }

    /// Simulated milliseconds so far.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// One more tick; whether all clients are done.
    pub fn step(&mut self) -> bool {
        let done = match self.sim.step() {
            Ok(done) => done,
            Err(error) => panic!("the simulation ended at {} ms: {error}", self.now_ms()),
        };
        self.watch();
        done
    }

    /// Steps until all clients are done.
    pub fn run_clients(&mut self) {
        while !self.step() {}
    }

    /// Steps until every node serves clients; panics after `max_ms`.
    pub fn until_ready(&mut self, max_ms: u64) {
        let begin = self.now_ms();
        while !self.hosts.iter().all(|host| host.service().is_some()) {
            assert!(self.now_ms() - begin < max_ms, "not every node serves clients after {max_ms} ms");
            self.step();
        }
    }

    /// Adds a client host.
    pub fn client<F>(&mut self, name: &str, software: F)
    where
        F: Future<Output = ()> + 'static,
    {
        self.names.push(name.to_owned());
        self.sim.client(name.to_owned(), async move {
            software.await;
            Ok(())
        });
    }

    /// Whether a node's host runs.
    pub fn is_up(&self, host: usize) -> bool {
        self.up[host]
    }

    /// Cuts a host's power: what was not synced is lost, as far as `seed` says. `silent`: its connections
    /// just go dead, as with a power cut; else they are closed, as with a killed process.
    pub fn crash(&mut self, host: usize, seed: u64, silent: bool) {
        let name = self.hosts[host].name.clone();
        if silent {
            self.isolate(host);
        }
        self.sim.crash(name);
        self.hosts[host].ready.store(false, Ordering::Relaxed);
        let lost = self.hosts[host].storage.crash_with(seed);
        self.hint_watch.forget(self.hosts[host].id);
        self.recorder.note(self.now_ms(), &format!("n{} crash silent={silent} lost={lost}", host + 1));
        self.up[host] = false;
    }

    /// Starts a crashed host again.
    pub fn bounce(&mut self, host: usize) {
        if !self.up[host] {
            self.recorder.note(self.now_ms(), &format!("n{} start", host + 1));
            self.rejoin(host);
            self.sim.bounce(self.hosts[host].name.clone());
            self.up[host] = true;
        }
    }

    /// Cuts all links of a host.
    pub fn isolate(&mut self, host: usize) {
        let name = &self.hosts[host].name;
        for other in self.names.iter().filter(|other| *other != name) {
            self.sim.partition(name.as_str(), other.as_str());
        }
    }

    /// Cuts the links of a host to the other nodes.
    pub fn cut_off(&self, host: usize) {
        let name = &self.hosts[host].name;
        for other in self.hosts.iter().filter(|other| other.name != *name) {
            self.sim.partition(name.as_str(), other.name.as_str());
        }
    }

    /// Repairs all links of a host, and delivers what was held.
    pub fn rejoin(&mut self, host: usize) {
        let name = &self.hosts[host].name;
        for other in self.names.iter().filter(|other| *other != name) {
            self.sim.release(name.as_str(), other.as_str());
        }
    }

    /// Makes a link as fast as all are at first.
    pub fn usual_latency(&self, a: &str, b: &str) {
        self.sim.set_link_latency(a, b, Duration::from_millis(self.setup.weather.latency_min));
        self.sim.set_link_max_message_latency(a, b, Duration::from_millis(self.setup.weather.latency_max));
    }

    /// Repairs everything and starts every host.
    pub fn heal(&mut self) {
        for (index, name) in self.names.iter().enumerate() {
            for other in &self.names[..index] {
                self.sim.release(name.as_str(), other.as_str());
                self.usual_latency(name, other);
            }
        }
        self.loss.store(0, Ordering::Relaxed);
        for host in 0..self.hosts.len() {
            self.mend(host);
            self.bounce(host);
        }
        self.recorder.note(self.now_ms(), "heal");
    }

    /// Mends a host's disk and clock.
    pub fn mend(&self, host: usize) {
        let Host { storage, offset, .. } = &*self.hosts[host];
        storage.set_sync_takes(Duration::from_millis(self.setup.sync_ms));
        storage.set_capacity(None);
        offset.store(self.setup.offsets[host], Ordering::Relaxed);
    }

    /// What the nodes that serve count now, of what is limited.
    fn counts(&self) -> Vec<(String, usize, usize)> {
        let mut counts = Vec::new();
        for host in &self.hosts {
            let Some(service) = host.service() else { continue };
            let coordinator = &service.coordinator;
            let under_way = coordinator.under_way.load(Ordering::Relaxed);
            counts.push((format!("{}: requests", host.name), under_way, 2 * coordinator.requests_limit));
            let bytes = coordinator.bytes_under_way.load(Ordering::Relaxed);
            counts.push((
                format!("{}: bytes of requests", host.name),
                bytes,
                coordinator.bytes_limit.max(self.answer_bytes),
            ));
            let unsynced = usize::from(coordinator.driver.committer.unsettled_any().is_some());
            counts.push((format!("{}: groups that wait for a sync", host.name), unsynced, 1));
            let hints = usize::try_from(coordinator.driver.hints.count()).unwrap_or(usize::MAX);
            counts.push((format!("{}: hints", host.name), hints, usize::MAX));
            for other in self.hosts.iter().filter(|other| other.id != host.id) {
                let Some(link) = coordinator.driver.links.up(other.id) else { continue };
                let name = format!("{} to {}", host.name, other.name);
                counts.push((format!("{name}: operations"), link.in_flight(), limits::LINK_OPS));
                counts.push((format!("{name}: bytes"), link.bytes_in_flight(), limits::LINK_BYTES));
            }
        }
        counts
    }

    /// How many tombstones the nodes have purged in these lives of theirs.
    pub fn purged(&self) -> u64 {
        let services = self.hosts.iter().filter_map(|host| host.service());
        services.map(|service| service.coordinator.driver.metrics.repair.tombstones_purged.get()).sum()
    }

    /// How many hints wait on all hosts.
    pub fn hints(&self) -> u64 {
        let services = self.hosts.iter().filter_map(|host| host.service());
        services.map(|service| service.coordinator.driver.hints.count()).sum()
    }

    /// Looks at the version of each node's cluster map; now and then at all hints and gauges.
    fn watch(&mut self) {
        let mut lives = Vec::new();
        for (node, host) in self.hosts.iter().enumerate() {
            let Some(map) = host.service().map(|service| service.maps.current()) else { continue };
            self.seen_wrong.extend(self.map_watch.saw(host.id, map.version));
            lives.push((node, map.version, map.keyspace(lives::NAME).map(|keyspace| keyspace.id)));
        }
        self.life_watch.look(self.recorder.seq(), &lives);
        if !self.now_ms().is_multiple_of(SAMPLE_MS) {
            return;
        }
        let disk = |node: NodeId| {
            let host = self.hosts.iter().find(|host| host.id == node)?;
            Some(&*host.storage as &dyn Storage)
        };
        let maps = self.maps();
        // Clocks are apart, and a hint is there for a moment after it was found to be too old.
        let (now, window) = (EPOCH_MS + self.now_ms() + APART_MS, self.setup.upkeep.hints().window_ms);
        let is_over = |hint: &Hint| {
            let dropped = schema::split_range(&hint.storage_key)
                .is_some_and(|(_, keyspace)| maps.iter().any(|(_, map)| map.has_dropped(keyspace)));
            dropped || hint.at.0 + window < now
        };
        for host in &self.hosts {
            self.seen_wrong.extend(self.hint_watch.saw(host.id, &*host.storage, disk, is_over));
        }
        self.sample();
    }

    /// Looks at all gauges.
    fn sample(&mut self) {
        for (name, count, limit) in self.counts() {
            let gauge = self.gauges.entry(name.clone()).or_insert(Gauge { name, most: 0, limit, left: 0 });
            gauge.most = gauge.most.max(count);
        }
    }

    /// All gauges, with what is left now; to be asked when nothing is under way.
    pub fn gauges(&mut self) -> Vec<Gauge> {
        self.sample();
        for (name, count, _) in self.counts() {
            if let Some(gauge) = self.gauges.get_mut(&name) {
                gauge.left = count;
            }
        }
        self.gauges.values().cloned().collect()
    }

    /// Nodes that don't serve, and links that are down.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for host in &self.hosts {
            let Some(service) = host.service() else {
                missing.push(format!("{} does not serve", host.name));
                continue;
            };
            let down = self.hosts.iter().filter(|other| {
                other.id != host.id && service.coordinator.driver.links.up(other.id).is_none()
            });
            missing.extend(down.map(|other| format!("{} to {}: the link is down", host.name, other.name)));
        }
        missing
    }

    /// Each node's cluster map.
    pub fn maps(&self) -> Vec<(NodeId, ClusterMap)> {
        let map = |host: &Arc<Host>| Some((host.id, (*host.service()?.maps.current()).clone()));
        self.hosts.iter().filter_map(map).collect()
    }
}
