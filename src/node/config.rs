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

mod read;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use self::values::Values;
pub use self::values::{Problem, Source};
use crate::types::ids::NodeId;
use crate::types::limits;
use crate::types::policy::Durability;

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
    /// `[hints]`
    pub hints: HintsConfig,
    /// `[repair]`
    pub repair: RepairConfig,
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
    /// Bytes of values that those may hold which write.
    pub bytes_in_flight: usize,
}

/// How far clocks may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockConfig {
    /// How far ahead of the own clock another node's stamp may be.
    pub max_skew_ms: u64,
}

/// What is kept for nodes that are away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HintsConfig {
    /// How long hints are collected for a node, and how old one may be; 0 keeps none.
    pub window_ms: u64,
    /// Bytes for each node.
    pub target_bytes: u64,
    /// Bytes for all.
    pub total_bytes: u64,
    /// Bytes for all, as a share of the disk.
    pub disk_percent: u64,
    /// Bytes a second that are brought home to one node.
    pub rate_bytes: u64,
}

impl Default for HintsConfig {
    fn default() -> HintsConfig {
        HintsConfig {
            window_ms: u64::try_from(limits::HINT_WINDOW_DEFAULT.as_millis()).unwrap_or(u64::MAX),
            target_bytes: limits::HINT_TARGET_BYTES_DEFAULT,
            total_bytes: limits::HINT_TOTAL_BYTES_DEFAULT,
            disk_percent: limits::HINT_DISK_PERCENT_DEFAULT,
            rate_bytes: limits::HINT_RATE_DEFAULT,
        }
    }
}

/// How replicas that differ become equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairConfig {
    /// Milliseconds between two passes of anti-entropy with one peer; 0: only when asked.
    pub interval_ms: u64,
    /// Bytes of its messages a second.
    pub rate_bytes: u64,
    /// How old a tombstone is at least when it is purged.
    pub tombstone_grace_ms: u64,
    /// How long ago what is stored may have been read or minted: what is later is refused.
    pub message_age_ms: u64,
    /// Milliseconds between two passes of the scrub; 0: never.
    pub scrub_interval_ms: u64,
    /// Bytes that it reads a second.
    pub scrub_rate_bytes: u64,
    /// Whether reads repair what they find; without it G3 does not hold. For tests of the other paths.
    pub read_repair: bool,
}

impl Default for RepairConfig {
    fn default() -> RepairConfig {
        RepairConfig {
            interval_ms: u64::try_from(limits::REPAIR_INTERVAL_DEFAULT.as_millis()).unwrap_or(u64::MAX),
            rate_bytes: limits::REPAIR_RATE_DEFAULT,
            tombstone_grace_ms: u64::try_from(limits::TOMBSTONE_GRACE_DEFAULT.as_millis())
                .unwrap_or(u64::MAX),
            message_age_ms: u64::try_from(limits::MESSAGE_AGE_MAX.as_millis()).unwrap_or(u64::MAX),
            scrub_interval_ms: u64::try_from(limits::SCRUB_INTERVAL_DEFAULT.as_millis()).unwrap_or(u64::MAX),
            scrub_rate_bytes: limits::SCRUB_RATE_DEFAULT,
            read_repair: true,
        }
    }
}

/// The storage engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageConfig {
    /// Memory for cached pages.
    pub cache_bytes: u64,
    /// The smallest log of the engine that is compacted; 0 for never.
    pub compact_bytes: u64,
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

struct Key {
    section: &'static str,
    name: &'static str,
    meaning: &'static str,
    /// Its value as TOML.
    show: fn(&Config) -> String,
}

/// Every key there is, in the order in which `config show` prints them.
const KEYS: [Key; 33] = {
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
        key(
            "limits",
            "requests_in_flight",
            "requests of clients at once; more are refused, but those of a client below its share (up to twice as many)",
            |c| c.limits.requests_in_flight.to_string(),
        ),
        key("limits", "bytes_in_flight", "bytes of values that clients' writes may hold at once", |c| {
            c.limits.bytes_in_flight.to_string()
        }),
        key("clock", "max_skew_ms", "how far ahead another node's clock may be", |c| {
            c.clock.max_skew_ms.to_string()
        }),
        key("hints", "window_ms", "how long hints are kept for a node that is away; 0 keeps none", |c| {
            c.hints.window_ms.to_string()
        }),
        key("hints", "target_bytes", "bytes of hints for one node", |c| c.hints.target_bytes.to_string()),
        key("hints", "total_bytes", "bytes of all hints", |c| c.hints.total_bytes.to_string()),
        key("hints", "disk_percent", "bytes of all hints, in percent of the disk that data_dir is on", |c| {
            c.hints.disk_percent.to_string()
        }),
        key("hints", "rate_bytes", "bytes of hints a second to one node", |c| c.hints.rate_bytes.to_string()),
        key("repair", "interval_ms", "between two passes of anti-entropy with a peer; 0: when asked", |c| {
            c.repair.interval_ms.to_string()
        }),
        key("repair", "rate_bytes", "bytes of anti-entropy a second", |c| c.repair.rate_bytes.to_string()),
        key("repair", "tombstone_grace_ms", "how old a tombstone is when it is purged, at least", |c| {
            c.repair.tombstone_grace_ms.to_string()
        }),
        key("repair", "message_age_ms", "how late a message between nodes may be", |c| {
            c.repair.message_age_ms.to_string()
        }),
        key("repair", "scrub_interval_ms", "between two readings of everything on the disk; 0: never", |c| {
            c.repair.scrub_interval_ms.to_string()
        }),
        key("repair", "scrub_rate_bytes", "bytes that they read a second", |c| {
            c.repair.scrub_rate_bytes.to_string()
        }),
        key("repair", "read_repair", "for tests: without it a read may go backwards", |c| {
            c.repair.read_repair.to_string()
        }),
        key("storage", "cache_bytes", "memory for cached pages", |c| c.storage.cache_bytes.to_string()),
        key("storage", "compact_bytes", "the smallest log that is compacted; 0: never", |c| {
            c.storage.compact_bytes.to_string()
        }),
        key("runtime", "threads", "worker threads of the async runtime", |c| c.runtime.threads.to_string()),
        key("log", "level", "error, warn, info, debug or trace; then target=level, by comma", |c| {
            quote(&c.log.level)
        }),
    ]
};

/// What stands, as a comment, where something required is missing.
const EXAMPLES: &str = r#"
[node]
id = "000000000000000a"
name = "a"
data_dir = "/var/lib/quoral"
[bootstrap]
nodes = [{ id = "000000000000000a", name = "a", address = "127.0.0.1:7401" }]
"#;

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
                Source::Default | Source::Missing => write!(f, "{}: ", self.file)?,
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
        let mut checked = Checked::parse(&text, path, &environment())?;
        // So that it stays the same directory, whatever becomes of the working directory.
        if let Ok(absolute) = std::path::absolute(&checked.config.node.data_dir) {
            checked.config.node.data_dir = absolute;
        }
        Ok(checked)
    }

    /// The defaults with this process's environment over them, to be shown: examples stand in for what is
    /// required and missing.
    pub fn without_file() -> Result<Checked, ConfigError> {
        Checked::defaults(&environment())
    }

    /// As [`Checked::without_file`], with the variables `env`.
    pub fn defaults(env: &BTreeMap<String, String>) -> Result<Checked, ConfigError> {
        Checked::read(Values::without_file(EXAMPLES, env, &known()), Path::new("no file"))
    }

    /// As [`Config::check`], with the sources.
    pub fn parse(text: &str, file: &Path, env: &BTreeMap<String, String>) -> Result<Checked, ConfigError> {
        Checked::read(Values::parse(text, env, &known()), file)
    }

    fn read(mut values: Values, file: &Path) -> Result<Checked, ConfigError> {
        let unreadable = values.problems.iter().any(|problem| problem.key.is_empty());
        let config = if unreadable { None } else { read::read(&mut values, file) };
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
            let _ = writeln!(text, "# {} ({source})", key.meaning);
            let shown = format!("{} = {}", key.name, (key.show)(&self.config));
            for line in shown.lines() {
                let comment = if *source == Source::Missing { "# " } else { "" };
                let _ = writeln!(text, "{comment}{line}");
            }
        }
        text
    }
}

/// The `QUORAL_` variables of this process.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, _)| name.starts_with("QUORAL_"))
        .collect()
}

/// All keys, as section and name.
fn known() -> Vec<(&'static str, &'static str)> {
    KEYS.iter().map(|key| (key.section, key.name)).collect()
}

impl Key {
    fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
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
