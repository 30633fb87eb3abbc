//! The directory of a dev cluster: its lock, its nodes' files, their ports.
//!
//! The first node's configuration is the truth about the cluster (it lists all nodes): it is written
//! first and whole, so a start that is cut off half-way leaves no cluster or a good one. None is written before
//! the ports are known to be free, so that a start which is refused can be tried again with other flags.
//!
//! It never changes a configuration that is there: a user may have edited it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::cli::output::CliError;
use crate::node::config::{BootstrapNode, Config, environment};
use crate::rpc::transport::{Network, TcpNetwork};
use crate::types::ids::NodeId;

/// What the command line asks for.
pub(super) struct Wanted {
    pub nodes: Option<u16>,
    pub base_port: Option<u16>,
    pub partitions: Option<u32>,
}

/// A directory that is ours, and what belongs into it.
pub(super) struct Site {
    pub dir: PathBuf,
    pub nodes: Vec<SiteNode>,
    /// Held, not read: the lock goes with it.
    _lock: File,
}

/// One node of it.
pub(super) struct SiteNode {
    /// From 1.
    pub number: usize,
    pub name: String,
    pub config_file: PathBuf,
    /// The configuration, if it is not there yet.
    missing: Option<String>,
    pub log: PathBuf,
    /// Bytes of the log that were there before.
    log_start: u64,
    pub client: SocketAddr,
    peer: SocketAddr,
    pub http: SocketAddr,
}

const NODES: u16 = 3;
const BASE_PORT: u16 = 7_400;
const PORTS_APART: u16 = 10;

impl Site {
    /// Takes the directory, and plans what is missing in it.
    pub fn open(dir: &Path, wanted: &Wanted) -> Result<Site, CliError> {
        std::fs::create_dir_all(dir).map_err(|error| on(dir, &error))?;
        let lock = lock(dir)?;
        let first = config_file(dir, 1);
        let known = match first.try_exists() {
            Ok(true) => Some(load(&first)?),
            Ok(false) => None,
            Err(error) => return Err(on(&first, &error)),
        };
        let (nodes, partitions) = match known {
            Some(config) => {
                check_same(dir, &config, wanted)?;
                (config.bootstrap.nodes, config.bootstrap.partitions)
            }
            None => {
                let partitions = wanted.partitions.unwrap_or(crate::types::limits::PARTITIONS_DEFAULT);
                (new_nodes(wanted)?, partitions)
            }
        };
        let mut site = Site { dir: dir.to_path_buf(), nodes: Vec::new(), _lock: lock };
        for number in 1..=nodes.len() {
            let file = config_file(dir, number);
            let (config, missing) = if file.exists() {
                (load(&file)?, None)
            } else {
                let text = config_text(&nodes, number, partitions)?;
                Config::check(&text, &file, &Default::default())
                    .map_err(|e| CliError::usage(e.to_string()))?;
                // As it will be loaded.
                let config = Config::check(&text, &file, &environment())
                    .map_err(|error| CliError::error(error.to_string()))?;
                (config, Some(text))
            };
            site.nodes.push(SiteNode::new(number, &config, file, missing));
        }
        Ok(site)
    }

    /// Writes what is missing, the first node's before the others'.
    pub fn write_missing(&self) -> Result<(), CliError> {
        for node in &self.nodes {
            if let Some(text) = &node.missing {
                write_whole(&node.config_file, text)?;
            }
        }
        Ok(())
    }

    /// Refuses to start on ports that others hold, naming them all.
    pub async fn check_ports(&self) -> Result<(), CliError> {
        let mut taken = Vec::new();
        for node in &self.nodes {
            for (what, at) in [("clients", node.client), ("peers", node.peer), ("HTTP", node.http)] {
                let mut result = TcpNetwork.listen(at).await.map(|_| ());
                if result.is_ok() && what == "peers" {
                    result = TcpNetwork.bind(at).await.map(|_| ());
                }
                if let Err(error) = result {
                    taken.push(format!("{at} ({} for {what}): {error}", node.name));
                }
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        let advice = "stop what listens there, or move a new cluster with --base-port and --dir";
        Err(CliError::error(format!("can't listen on all ports; {advice}:\n  {}", taken.join("\n  "))))
    }
}

impl SiteNode {
    fn new(number: usize, config: &Config, config_file: PathBuf, missing: Option<String>) -> SiteNode {
        let log = config_file.with_file_name("log");
        SiteNode {
            number,
            name: config.node.name.clone(),
            log_start: log.metadata().map_or(0, |meta| meta.len()),
            log,
            config_file,
            missing,
            client: config.listen.client,
            peer: config.listen.peer,
            http: config.listen.http,
        }
    }

    /// The last lines that the node wrote since it was started.
    pub fn log_tail(&self, lines: usize) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.log_start.max(end.saturating_sub(64 << 10))))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_else(|error| format!("(can't be read: {error})"));
        let all: Vec<&str> = text.lines().collect();
        let from = all.len().saturating_sub(lines);
        all[from..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

fn on(path: &Path, error: &io::Error) -> CliError {
    CliError::io(&path.display().to_string(), error)
}

fn config_file(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("n{number}")).join("quoral.toml")
}

fn load(file: &Path) -> Result<Config, CliError> {
    Config::load(file).map_err(|error| CliError::error(error.to_string()))
}

fn lock(dir: &Path) -> Result<File, CliError> {
    let path = dir.join("lock");
    let file = File::options().create(true).append(true).open(&path).map_err(|error| on(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(CliError::error(format!("{}: another `quoral dev` runs on this directory", dir.display())))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(on(&path, &error)),
    }
}

/// A cluster that exists can't be made another by the command line.
fn check_same(dir: &Path, config: &Config, wanted: &Wanted) -> Result<(), CliError> {
    let differs = |flag: &str, has: u64, asked: u64| {
        CliError::usage(format!(
            "{flag}: is {asked}, but {} holds a cluster with {has}; leave the flag out, or take another --dir",
            dir.display()
        ))
    };
    let nodes = config.bootstrap.nodes.len();
    if let Some(asked) = wanted.nodes.filter(|asked| usize::from(*asked) != nodes) {
        return Err(differs("--nodes", nodes as u64, asked.into()));
    }
    let base = config.listen.client.port();
    if let Some(asked) = wanted.base_port.filter(|asked| *asked != base) {
        return Err(differs("--base-port", base.into(), asked.into()));
    }
    let partitions = config.bootstrap.partitions;
    if let Some(asked) = wanted.partitions.filter(|asked| *asked != partitions) {
        return Err(differs("--partitions", partitions.into(), asked.into()));
    }
    Ok(())
}

fn new_nodes(wanted: &Wanted) -> Result<Vec<BootstrapNode>, CliError> {
    let count = wanted.nodes.unwrap_or(NODES);
    let base = wanted.base_port.unwrap_or(BASE_PORT);
    let last = u32::from(base) + u32::from(PORTS_APART) * u32::from(count - 1) + 2;
    if last > u32::from(u16::MAX) {
        let text = format!(
            "--base-port: is {base}, which puts the last of {count} nodes on port {last}, over 65535"
        );
        return Err(CliError::usage(text));
    }
    let node = |number: u16| BootstrapNode {
        id: NodeId(rand::random()),
        name: format!("n{number}"),
        address: format!("127.0.0.1:{}", base + PORTS_APART * (number - 1) + 1),
        zone: "default".into(),
        weight: 1,
    };
    Ok((1..=count).map(node).collect())
}

/// The configuration of node `number`. Its ports follow from its address in the list.
fn config_text(nodes: &[BootstrapNode], number: usize, partitions: u32) -> Result<String, CliError> {
    let own = &nodes[number - 1];
    let peer: SocketAddr = own.address.parse().map_err(|_| {
        CliError::error(format!(
            "n{number}: {:?} in the list of nodes is no address to make ports from",
            own.address
        ))
    })?;
    let at = |port: u16| SocketAddr::new(peer.ip(), port);
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mut text = format!(
        "# Written by `quoral dev`, which does not change it again.\n\
         [node]\nid = \"{}\"\nname = {}\nzone = {}\ndata_dir = \"data\"\n\n\
         [listen]\nclient = \"{}\"\npeer = \"{peer}\"\nhttp = \"{}\"\n\n\
         [bootstrap]\npartitions = {partitions}\nnodes = [\n",
        own.id,
        quoted(&own.name),
        quoted(&own.zone),
        at(peer.port().saturating_sub(1)),
        at(peer.port().saturating_add(1)),
    );
    for node in nodes {
        let _ = writeln!(
            text,
            "  {{ id = \"{}\", name = {}, address = {}, zone = {}, weight = {} }},",
            node.id,
            quoted(&node.name),
            quoted(&node.address),
            quoted(&node.zone),
            node.weight
        );
    }
    text.push_str("]\n");
    Ok(text)
}

/// Writes a file beside its place and moves it there.
fn write_whole(file: &Path, text: &str) -> Result<(), CliError> {
    let dir = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(|error| on(dir, &error))?;
    let draft = file.with_extension("toml.new");
    std::fs::write(&draft, text).map_err(|error| on(&draft, &error))?;
    std::fs::rename(&draft, file).map_err(|error| on(file, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(nodes: Option<u16>, base_port: Option<u16>, partitions: Option<u32>) -> Wanted {
        Wanted { nodes, base_port, partitions }
    }

    fn made(dir: &Path, wanted: &Wanted) -> Site {
        let site = Site::open(dir, wanted).expect("planned");
        site.write_missing().expect("written");
        site
    }

    fn error(result: Result<Site, CliError>) -> CliError {
        result.err().expect("must be refused")
    }

    fn ids(site: &Site) -> Vec<NodeId> {
        site.nodes.iter().map(|node| load(&node.config_file).expect("loads").node.id).collect()
    }

    #[test]
    fn a_directory_goes_on_as_it_was_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let site = made(dir.path(), &wanted(Some(5), Some(9_000), Some(64)));
        assert_eq!(site.nodes.len(), 5);
        assert_eq!(site.nodes[4].client.to_string(), "127.0.0.1:9040");
        assert_eq!(site.nodes[4].http.port(), 9_042);
        let first = ids(&site);
        assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
        drop(site);

        // A start that was cut off left a node out.
        std::fs::remove_file(config_file(dir.path(), 4)).expect("removed");
        let again = made(dir.path(), &wanted(None, None, None));
        assert_eq!(ids(&again), first);
        drop(again);
        for (asked, parts) in [
            (wanted(Some(3), None, None), ["--nodes", "3", "5"]),
            (wanted(None, Some(7_400), None), ["--base-port", "7400", "9000"]),
            (wanted(None, None, Some(128)), ["--partitions", "128", "64"]),
        ] {
            let text = error(Site::open(dir.path(), &asked)).message;
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn two_on_one_directory_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let held = made(dir.path(), &wanted(Some(1), None, None));
        assert!(error(Site::open(dir.path(), &wanted(None, None, None))).message.contains("another"));
        drop(held);
        assert!(Site::open(dir.path(), &wanted(None, None, None)).is_ok());
    }

    #[test]
    fn what_can_not_be_is_refused_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(error(Site::open(dir.path(), &wanted(Some(3), Some(65_520), None))).exit as u8, 2);
        let refused = error(Site::open(dir.path(), &wanted(None, None, Some(100))));
        assert!(refused.message.contains("power of two"), "{refused}");
        assert!(!config_file(dir.path(), 1).exists());
    }

    #[tokio::test]
    async fn taken_ports_are_named_and_leave_no_cluster_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        // A port that the system picks; the site is put around it.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = socket.local_addr().expect("its address").port();
        let site = Site::open(dir.path(), &wanted(Some(1), Some(port - 1), None)).expect("planned");
        let text = site.check_ports().await.expect_err("taken").message;
        assert!(text.contains(&format!("127.0.0.1:{port} (n1 for peers)")), "{text}");
        drop(site);
        // The advice is to move it, which a cluster that is there would refuse.
        assert!(!config_file(dir.path(), 1).exists());
        drop(made(dir.path(), &wanted(Some(1), Some(9_000), None)));
        assert!(config_file(dir.path(), 1).exists());
    }
}
