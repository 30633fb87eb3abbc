//! From the values that were given to a configuration that can't be wrong: first each key by itself,
//! then the keys against each other.
//!
//! Invariants:
//! 1. Each key of the table in `config` is taken here, once; what is not given has its default here.
//! 2. A problem never hides another, unless it takes away what the other is about.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use super::values::{Source, Values};
use super::{
    BootstrapConfig, BootstrapNode, ClockConfig, Config, HintsConfig, LimitsConfig, ListenConfig, LogConfig,
    NodeConfig, RepairConfig, RuntimeConfig, StorageConfig,
};
use crate::types::ids::NodeId;
use crate::types::limits;
use crate::types::policy::{Durability, check_name};

/// Where a node listens unless told otherwise.
const LISTEN_CLIENT: &str = "127.0.0.1:7400";
const LISTEN_PEER: &str = "127.0.0.1:7401";
const LISTEN_HTTP: &str = "127.0.0.1:7402";
/// Greatest weight of a node: a thousandfold span between the smallest and the largest machine.
const WEIGHT_MAX: u64 = 1_000;
const NODE_KEYS: [&str; 5] = ["id", "name", "address", "zone", "weight"];

/// Takes every key, and checks what can be checked key by key. `None` if something required is missing.
pub(super) fn read(values: &mut Values, file: &Path) -> Option<Config> {
    let node = read_node(values, file);
    let listen = read_listen(values);
    let bootstrap = read_bootstrap(values);
    let limits = LimitsConfig {
        value_bytes: size(values, "limits.value_bytes", 1, limits::VALUE_BYTES_MAX, "bytes")
            .unwrap_or(limits::VALUE_BYTES_DEFAULT),
        requests_in_flight: size(values, "limits.requests_in_flight", 1, limits::REQUESTS_IN_FLIGHT_MAX, "")
            .unwrap_or(limits::REQUESTS_IN_FLIGHT),
        bytes_in_flight: size(values, "limits.bytes_in_flight", 1, limits::LINK_BYTES, "bytes")
            .unwrap_or(limits::BYTES_IN_FLIGHT),
    };
    let (skew_max, skew) = (millis(limits::CLOCK_SKEW_MAX), millis(limits::CLOCK_SKEW_DEFAULT));
    let clock =
        ClockConfig { max_skew_ms: values.number("clock.max_skew_ms", 1..=skew_max, "ms").unwrap_or(skew) };
    let window = 0..=millis(limits::HINT_WINDOW_MAX);
    let bytes = 1..=limits::HINT_BYTES_MAX;
    let usual = HintsConfig::default();
    let hints = HintsConfig {
        window_ms: values.number("hints.window_ms", window, "ms").unwrap_or(usual.window_ms),
        target_bytes: values
            .number("hints.target_bytes", bytes.clone(), "bytes")
            .unwrap_or(usual.target_bytes),
        total_bytes: values.number("hints.total_bytes", bytes, "bytes").unwrap_or(usual.total_bytes),
        disk_percent: values.number("hints.disk_percent", 1..=100, "percent").unwrap_or(usual.disk_percent),
        rate_bytes: values
            .number("hints.rate_bytes", 1_024..=limits::HINT_RATE_MAX, "bytes")
            .unwrap_or(usual.rate_bytes),
    };
    let usual = RepairConfig::default();
    let interval = 0..=millis(limits::REPAIR_INTERVAL_MAX);
    let repair = RepairConfig {
        interval_ms: values.number("repair.interval_ms", interval, "ms").unwrap_or(usual.interval_ms),
        rate_bytes: values
            .number("repair.rate_bytes", 1_024..=limits::HINT_RATE_MAX, "bytes")
            .unwrap_or(usual.rate_bytes),
        tombstone_grace_ms: values
            .number("repair.tombstone_grace_ms", 1..=millis(limits::TOMBSTONE_GRACE_MAX), "ms")
            .unwrap_or(usual.tombstone_grace_ms),
        message_age_ms: values
            .number("repair.message_age_ms", 1..=millis(limits::MESSAGE_AGE_MAX), "ms")
            .unwrap_or(usual.message_age_ms),
        scrub_interval_ms: values
            .number("repair.scrub_interval_ms", 0..=millis(limits::SCRUB_INTERVAL_MAX), "ms")
            .unwrap_or(usual.scrub_interval_ms),
        scrub_rate_bytes: values
            .number("repair.scrub_rate_bytes", 1_024..=limits::HINT_RATE_MAX, "bytes")
            .unwrap_or(usual.scrub_rate_bytes),
        read_repair: values.flag("repair.read_repair").unwrap_or(usual.read_repair),
    };
    let cache = limits::CACHE_BYTES_MIN..=limits::CACHE_BYTES_MAX;
    let storage = StorageConfig {
        cache_bytes: values
            .number("storage.cache_bytes", cache, "bytes")
            .unwrap_or(limits::CACHE_BYTES_DEFAULT),
        compact_bytes: values
            .number("storage.compact_bytes", 0..=limits::CACHE_BYTES_MAX, "bytes")
            .unwrap_or(limits::COMPACT_BYTES_DEFAULT),
    };
    let threads = size(values, "runtime.threads", 1, limits::RUNTIME_THREADS_MAX, "").unwrap_or(1);
    let level = values.parsed("log.level", check_level).unwrap_or_else(|| "info".into());
    let config = Config {
        node: node?,
        listen: listen?,
        bootstrap: bootstrap?,
        limits,
        clock,
        hints,
        repair,
        storage,
        runtime: RuntimeConfig { threads },
        log: LogConfig { level },
    };
    check_grace(values, &config);
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
/// A tombstone must outlive whatever could bring its key back.
fn check_grace(values: &mut Values, config: &Config) {
    let (grace, window) = (config.repair.tombstone_grace_ms, config.hints.window_ms);
    let (age, skew) = (config.repair.message_age_ms, config.clock.max_skew_ms);
    if grace <= window + age + skew {
        let text = format!(
            "is {grace} ms, must be more than hints.window_ms ({window}), repair.message_age_ms ({age}) and \
             clock.max_skew_ms ({skew}) together: else a deleted key could come back"
        );
        values.refuse("repair.tombstone_grace_ms", text);
    }
}

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
    let examples = ["node.id", "node.name", "bootstrap.nodes"];
    if examples.iter().any(|key| values.source(key) == Source::Missing) {
        return;
    }
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
