//! A node's configuration: one TOML file, each key also as a `QUORAL_SECTION_KEY` variable.
//!
//! Read once at the start into types that can't be wrong. Every problem is reported at once, each with
//! its line or variable, its key, the limit and the value. The keys, with what they mean, stand in one
//! table (`KEYS`), from which unknown keys are refused and `config show` is printed.
//!
//! Invariants:
//! 1. A [`Config`] that was made here has passed every rule of this file.
//! 2. Relative paths are relative to the file, so that a start from another directory is the same node.
//!
//! It opens no port, makes no directory and looks up no name.

mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use self::values::Values;
pub use self::values::{Problem, Source};
use crate::types::ids::NodeId;
use crate::types::limits;
use crate::types::policy::{Durability, check_name};

/// All of a node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[listen]`
    pub listen: ListenConfig,
    /// `[bootstrap]`
    pub bootstrap: BootstrapConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[clock]`
    pub clock: ClockConfig,
    /// `[storage]`
    pub storage: StorageConfig,
    /// `[runtime]`
    pub runtime: RuntimeConfig,
    /// `[log]`
    pub log: LogConfig,
}

/// Who the node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its identity; must agree with its data directory.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// What fails together with it.
    pub zone: String,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// When a write is on stable storage.
    pub durability: Durability,
}

/// Where it listens, and under which addresses others reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// gRPC for clients.
    pub client: SocketAddr,
    /// gRPC (TCP) and gossip (UDP) between nodes.
    pub peer: SocketAddr,
    /// Health and metrics.
    pub http: SocketAddr,
    /// `host:port` that clients are told; the listen address if not set.
    pub advertise_client: Option<String>,
    /// `host:port` that peers are told; likewise.
    pub advertise_peer: Option<String>,
}

impl ListenConfig {
    /// Where clients reach this node.
    pub fn advertised_client(&self) -> String {
        self.advertise_client.clone().unwrap_or_else(|| self.client.to_string())
    }

    /// Where peers reach this node.
    pub fn advertised_peer(&self) -> String {
        self.advertise_peer.clone().unwrap_or_else(|| self.peer.to_string())
    }
}

/// The first nodes of the cluster; equal on all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// Partitions; fixed for the life of the cluster.
    pub partitions: u32,
    /// The first nodes.
    pub nodes: Vec<BootstrapNode>,
}

/// One of the first nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapNode {
    /// Its identity.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where peers reach it, `host:port`.
    pub address: String,
    /// Its zone.
    pub zone: String,
    /// Its share of the data against the others'.
    pub weight: u32,
}

/// What a client may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Largest value.
    pub value_bytes: usize,
    /// Requests of clients at work at once.
    pub requests_in_flight: usize,
}

/// How far clocks may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockConfig {
    /// How far ahead of the own clock another node's stamp may be.
    pub max_skew_ms: u64,
}

/// The storage engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageConfig {
    /// Memory for cached pages.
    pub cache_bytes: u64,
}

/// The async runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Its worker threads.
    pub threads: usize,
}

/// What goes to stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or a level and `target=level`s.
    pub level: String,
}

/// Where a node listens unless told otherwise.
const LISTEN_CLIENT: &str = "127.0.0.1:7400";
const LISTEN_PEER: &str = "127.0.0.1:7401";
const LISTEN_HTTP: &str = "127.0.0.1:7402";
/// Greatest weight of a node: a thousandfold span between the smallest and the largest machine.
const WEIGHT_MAX: u64 = 1_000;
const NODE_KEYS: [&str; 5] = ["id", "name", "address", "zone", "weight"];

struct Key {
    section: &'static str,
    name: &'static str,
    meaning: &'static str,
    /// Its value as TOML.
    show: fn(&Config) -> String,
}

/// Every key there is, in the order in which `config show` prints them.
const KEYS: [Key; 19] = {
    const fn key(
        section: &'static str,
        name: &'static str,
        meaning: &'static str,
        show: fn(&Config) -> String,
    ) -> Key {
        Key { section, name, meaning, show }
    }
    [
        key("node", "id", "identity, 16 hex digits; required", |c| quote(c.node.id)),
        key("node", "name", "name for people; required", |c| quote(&c.node.name)),
        key("node", "zone", "what fails together with it", |c| quote(&c.node.zone)),
        key("node", "data_dir", "where its data is; required", |c| quote(c.node.data_dir.display())),
        key(
            "node",
            "durability",
            "\"always\": sync before a write is acknowledged; \"interval\": every 200 ms",
            |c| quote(c.node.durability),
        ),
        key("listen", "client", "gRPC for clients", |c| quote(c.listen.client)),
        key("listen", "peer", "gRPC (TCP) and gossip (UDP) between nodes", |c| quote(c.listen.peer)),
        key("listen", "http", "/healthz, /readyz, /metrics", |c| quote(c.listen.http)),
        key("listen", "advertise_client", "host:port that clients are told", |c| {
            quote(c.listen.advertised_client())
        }),
        key("listen", "advertise_peer", "host:port that peers are told", |c| {
            quote(c.listen.advertised_peer())
        }),
        key("bootstrap", "cluster", "name of the cluster", |c| quote(&c.bootstrap.cluster)),
        key("bootstrap", "partitions", "a power of two, fixed when the cluster is made", |c| {
            c.bootstrap.partitions.to_string()
        }),
        key("bootstrap", "nodes", "the first nodes, equal on all of them; required", |c| {
            show_nodes(&c.bootstrap.nodes)
        }),
        key("limits", "value_bytes", "largest value, at most 16 MiB", |c| c.limits.value_bytes.to_string()),
        key("limits", "requests_in_flight", "requests of clients at once; more are refused", |c| {
            c.limits.requests_in_flight.to_string()
        }),
        key("clock", "max_skew_ms", "how far ahead another node's clock may be", |c| {
            c.clock.max_skew_ms.to_string()
        }),
        key("storage", "cache_bytes", "memory for cached pages", |c| c.storage.cache_bytes.to_string()),
        key("runtime", "threads", "worker threads of the async runtime", |c| c.runtime.threads.to_string()),
        key("log", "level", "error, warn, info, debug or trace; then target=level, by comma", |c| {
            quote(&c.log.level)
        }),
    ]
};

/// What is wrong with a configuration: all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match &problem.source {
                Source::Default => write!(f, "{}: ", self.file)?,
                Source::File { line } => write!(f, "{}:{line}: ", self.file)?,
                Source::Env(name) => write!(f, "{name}: ")?,
            }
            if !problem.key.is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            f.write_str(&problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A configuration that is right, with the source of each value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    sources: BTreeMap<String, Source>,
}

impl Config {
    /// Reads and checks a file, with this process's environment over it.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        Checked::load(path).map(|checked| checked.config)
    }

    /// Checks the text of a file named `file`, with the variables `env` over it. Relative paths are
    /// relative to the directory of `file`.
    pub fn check(text: &str, file: &Path, env: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
        Checked::parse(text, file, env).map(|checked| checked.config)
    }
}

impl Checked {
    /// As [`Config::load`], with the sources.
    pub fn load(path: &Path) -> Result<Checked, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let problem = Problem {
                source: Source::Default,
                key: String::new(),
                text: format!("can't be read: {error}"),
            };
            ConfigError { file: path.display().to_string(), problems: vec![problem] }
        })?;
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| name.starts_with("QUORAL_"))
            .collect();
        let mut checked = Checked::parse(&text, path, &env)?;
        // So that it stays the same directory, whatever becomes of the working directory.
        if let Ok(absolute) = std::path::absolute(&checked.config.node.data_dir) {
            checked.config.node.data_dir = absolute;
        }
        Ok(checked)
    }

    /// As [`Config::check`], with the sources.
    pub fn parse(text: &str, file: &Path, env: &BTreeMap<String, String>) -> Result<Checked, ConfigError> {
        let known: Vec<(&str, &str)> = KEYS.iter().map(|key| (key.section, key.name)).collect();
        let mut values = Values::parse(text, env, &known);
        let unreadable = values.problems.iter().any(|problem| problem.key.is_empty());
        let config = if unreadable { None } else { read(&mut values, file) };
        match config {
            Some(config) if values.problems.is_empty() => {
                let sources = KEYS.iter().map(|key| (key.path(), values.source(&key.path()))).collect();
                Ok(Checked { config, sources })
            }
            _ => Err(ConfigError { file: file.display().to_string(), problems: values.problems }),
        }
    }

    /// The effective configuration as TOML; a comment says where each value comes from.
    pub fn render(&self) -> String {
        let mut text = String::from("# The effective configuration, and where each value comes from.\n");
        let mut section = "";
        for key in &KEYS {
            if section != key.section {
                section = key.section;
                let _ = write!(text, "\n[{section}]\n");
            }
            let source = self.sources.get(&key.path()).unwrap_or(&Source::Default);
            let _ = write!(text, "# {} ({source})\n{} = ", key.meaning, key.name);
            let _ = writeln!(text, "{}", (key.show)(&self.config));
        }
        text
    }
}

impl Key {
    fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

/// Takes every key, and checks what can be checked key by key. `None` if something required is missing.
fn read(values: &mut Values, file: &Path) -> Option<Config> {
    let node = read_node(values, file);
    let listen = read_listen(values);
    let bootstrap = read_bootstrap(values);
    let limits = LimitsConfig {
        value_bytes: size(values, "limits.value_bytes", 1, limits::VALUE_BYTES_MAX, "bytes")
            .unwrap_or(limits::VALUE_BYTES_DEFAULT),
        requests_in_flight: size(values, "limits.requests_in_flight", 1, limits::REQUESTS_IN_FLIGHT_MAX, "")
            .unwrap_or(limits::REQUESTS_IN_FLIGHT),
    };
    let (skew_max, skew) = (millis(limits::CLOCK_SKEW_MAX), millis(limits::CLOCK_SKEW_DEFAULT));
    let clock =
        ClockConfig { max_skew_ms: values.number("clock.max_skew_ms", 1..=skew_max, "ms").unwrap_or(skew) };
    let cache = limits::CACHE_BYTES_MIN..=limits::CACHE_BYTES_MAX;
    let storage = StorageConfig {
        cache_bytes: values
            .number("storage.cache_bytes", cache, "bytes")
            .unwrap_or(limits::CACHE_BYTES_DEFAULT),
    };
    let threads = size(values, "runtime.threads", 1, limits::RUNTIME_THREADS_MAX, "").unwrap_or(1);
    let level = values.parsed("log.level", check_level).unwrap_or_else(|| "info".into());
    let config = Config {
        node: node?,
        listen: listen?,
        bootstrap: bootstrap?,
        limits,
        clock,
        storage,
        runtime: RuntimeConfig { threads },
        log: LogConfig { level },
    };
    check_ports(values, &config.listen);
    check_bootstrap(values, &config.bootstrap);
    check_own_place(values, &config);
    Some(config)
}

fn read_node(values: &mut Values, file: &Path) -> Option<NodeConfig> {
    let id = required(values, "node.id", NodeId::from_str);
    let name = required(values, "node.name", |text| named("name", text));
    let zone = values.parsed("node.zone", |text| named("zone", text)).unwrap_or_else(|| "default".into());
    let data_dir = required(values, "node.data_dir", |text| match text {
        "" => Err("must not be empty"),
        path => Ok(file.parent().unwrap_or(Path::new("")).join(path)),
    });
    let durability = values.parsed("node.durability", Durability::from_str).unwrap_or_default();
    Some(NodeConfig { id: id?, name: name?, zone, data_dir: data_dir?, durability })
}

fn read_listen(values: &mut Values) -> Option<ListenConfig> {
    let mut address = |key: &str, default: &str| {
        let given = values.parsed(key, listen_address);
        let refused = given.is_none() && values.source(key) != Source::Default;
        if refused { None } else { given.or_else(|| listen_address(default).ok()) }
    };
    let client = address("listen.client", LISTEN_CLIENT);
    let peer = address("listen.peer", LISTEN_PEER);
    let http = address("listen.http", LISTEN_HTTP);
    let advertise_client = values.parsed("listen.advertise_client", host_port);
    let advertise_peer = values.parsed("listen.advertise_peer", host_port);
    let listen = ListenConfig { client: client?, peer: peer?, http: http?, advertise_client, advertise_peer };
    for (key, at, advertised) in [
        ("listen.advertise_client", listen.client, &listen.advertise_client),
        ("listen.advertise_peer", listen.peer, &listen.advertise_peer),
    ] {
        if at.ip().is_unspecified() && advertised.is_none() && values.source(key) == Source::Default {
            let text =
                format!("is required when listening on {at}, which is no address that others can reach");
            values.refuse(key, text);
        }
    }
    Some(listen)
}

fn read_bootstrap(values: &mut Values) -> Option<BootstrapConfig> {
    let cluster =
        values.parsed("bootstrap.cluster", |text| named("cluster", text)).unwrap_or_else(|| "quoral".into());
    let (min, max) = (limits::PARTITIONS_MIN, limits::PARTITIONS_MAX);
    let mut partitions = limits::PARTITIONS_DEFAULT;
    if let Some(number) = values.number("bootstrap.partitions", min.into()..=max.into(), "partitions") {
        if number.is_power_of_two() {
            partitions = u32::try_from(number).unwrap_or(partitions);
        } else {
            values.refuse("bootstrap.partitions", format!("is {number}, must be a power of two"));
        }
    }
    let given = values.tables("bootstrap.nodes", &NODE_KEYS);
    if given.is_none() && values.source("bootstrap.nodes") == Source::Default {
        values.refuse("bootstrap.nodes", "is required: the first nodes, this one among them");
    }
    let mut nodes = Vec::new();
    let mut complete = given.is_some();
    for (index, mut table) in given.unwrap_or_default().into_iter().enumerate() {
        match read_bootstrap_node(&mut table, &format!("bootstrap.nodes[{index}]")) {
            Some(node) => nodes.push(node),
            None => complete = false,
        }
        values.problems.append(&mut table.problems);
    }
    complete.then_some(BootstrapConfig { cluster, partitions, nodes })
}

fn read_bootstrap_node(table: &mut Values, path: &str) -> Option<BootstrapNode> {
    let id = required(table, &format!("{path}.id"), NodeId::from_str);
    let name = required(table, &format!("{path}.name"), |text| named("name", text));
    let address = required(table, &format!("{path}.address"), host_port);
    let zone = table.parsed(&format!("{path}.zone"), |text| named("zone", text));
    let weight = table.number(&format!("{path}.weight"), 1..=WEIGHT_MAX, "").unwrap_or(1);
    Some(BootstrapNode {
        id: id?,
        name: name?,
        address: address?,
        zone: zone.unwrap_or_else(|| "default".into()),
        weight: u32::try_from(weight).ok()?,
    })
}

/// Two listeners can't share a port.
fn check_ports(values: &mut Values, listen: &ListenConfig) {
    let all = [("listen.client", listen.client), ("listen.peer", listen.peer), ("listen.http", listen.http)];
    for (index, (key, at)) in all.iter().enumerate() {
        for (other_key, other) in &all[..index] {
            let same_host = at.ip() == other.ip() || at.ip().is_unspecified() || other.ip().is_unspecified();
            if at.port() == other.port() && same_host {
                values.refuse(key, format!("is {at}, but {other_key} has {other}: the ports must differ"));
            }
        }
    }
}

/// The bootstrap list agrees with itself.
fn check_bootstrap(values: &mut Values, bootstrap: &BootstrapConfig) {
    let count = bootstrap.nodes.len();
    if count == 0 || count > limits::NODES_MAX {
        let text = format!("has {count} nodes, must have 1 to {}", limits::NODES_MAX);
        values.refuse("bootstrap.nodes", text);
    }
    let (mut ids, mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for node in &bootstrap.nodes {
        let mut twice = |new: bool, what: &str, value: &str| {
            if !new {
                values.refuse("bootstrap.nodes", format!("has two nodes with the {what} {value}"));
            }
        };
        twice(ids.insert(node.id), "id", &node.id.to_string());
        twice(names.insert(&node.name), "name", &node.name);
        twice(addresses.insert(&node.address), "address", &node.address);
    }
}

/// The node is one of the first nodes, and is the same there.
fn check_own_place(values: &mut Values, config: &Config) {
    let node = &config.node;
    let Some(listed) = config.bootstrap.nodes.iter().find(|listed| listed.id == node.id) else {
        let ids: Vec<String> = config.bootstrap.nodes.iter().map(|listed| listed.id.to_string()).collect();
        let text = format!("is {}, which is not among bootstrap.nodes ({})", node.id, ids.join(", "));
        return values.refuse("node.id", text);
    };
    if listed.name != node.name {
        let text = format!("is {:?}, but bootstrap.nodes calls {} {:?}", node.name, node.id, listed.name);
        values.refuse("node.name", text);
    }
    if listed.zone != node.zone {
        let text = format!("is {:?}, but bootstrap.nodes puts {} into {:?}", node.zone, node.id, listed.zone);
        values.refuse("node.zone", text);
    }
    let listen = config.listen.peer;
    let told: Option<SocketAddr> = listed.address.parse().ok();
    if config.listen.advertise_peer.is_none()
        && !listen.ip().is_unspecified()
        && told.is_some_and(|told| told != listen)
    {
        let text = format!(
            "is {listen}, but bootstrap.nodes says that {} is at {}: make them equal, or set advertise_peer",
            node.id, listed.address
        );
        values.refuse("listen.peer", text);
    }
}

/// A text that `parse` understands; its absence is a problem.
fn required<T, E: fmt::Display>(
    values: &mut Values,
    key: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    if !values.has(key) {
        values.refuse(key, "is required");
        return None;
    }
    values.parsed(key, parse)
}

fn size(values: &mut Values, key: &str, min: u64, max: usize, unit: &str) -> Option<usize> {
    let max = u64::try_from(max).unwrap_or(u64::MAX);
    values.number(key, min..=max, unit).and_then(|number| usize::try_from(number).ok())
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn named(field: &str, text: &str) -> Result<String, String> {
    match check_name(field, text) {
        Ok(()) => Ok(text.to_string()),
        Err(invalid) => Err(invalid.problem),
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| format!("must be an IP address and a port such as 127.0.0.1:7400, not {text:?}"))?;
    match address.port() {
        0 => Err(format!("is {text}, but port 0 is none that others could know")),
        _ => Ok(address),
    }
}

/// `host:port`, where the host is a name or an address; nothing is looked up.
fn host_port(text: &str) -> Result<String, String> {
    let bad = |why: &str| format!("must be host:port, not {text:?}: {why}");
    let (host, port) = text.rsplit_once(':').ok_or_else(|| bad("there is no colon"))?;
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host_is_right = match bare {
        Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)),
    };
    if !host_is_right {
        return Err(bad("the host is neither a name nor an address"));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(text.to_string()),
        _ => Err(bad("the port is not a number from 1 to 65535")),
    }
}

/// A level, or several `target=level`.
fn check_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    for part in text.split(',') {
        let level = part.split_once('=').map_or(part, |(_, level)| level);
        if !LEVELS.contains(&level) {
            return Err(format!("must be one of {}, or target=level, not {part:?}", LEVELS.join(", ")));
        }
    }
    Ok(text.to_string())
}

fn quote(value: impl fmt::Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}

fn show_nodes(nodes: &[BootstrapNode]) -> String {
    let mut text = String::from("[\n");
    for node in nodes {
        let _ = writeln!(
            text,
            "  {{ id = {}, name = {}, address = {}, zone = {}, weight = {} }},",
            quote(node.id),
            quote(&node.name),
            quote(&node.address),
            quote(&node.zone),
            node.weight
        );
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests;
