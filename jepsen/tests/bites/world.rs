//! A cluster of stand-ins, and what can be asked of them.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant};

use quoral_jepsen::cluster::{Cluster, Disk, Error, Fs, Isolation, Options, ports};
use quoral_jepsen::edn::Edn;
use quoral_jepsen::nemesis::{Nemesis, by_name};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// What a check does.
pub type Done<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;
/// A check.
pub type Check = for<'a> fn(&'a mut World) -> Done<'a>;

/// A cluster that has everything.
pub struct World {
    pub cluster: Cluster,
    pub rng: StdRng,
    _dir: tempfile::TempDir,
}

/// The seed of all draws: told, so that a failure can be had again.
fn seed() -> u64 {
    let seed = std::env::var("QUORAL_JEPSEN_SEED").ok().and_then(|seed| seed.parse().ok());
    seed.unwrap_or_else(rand::random)
}

impl World {
    /// Nodes on loopback, for those who are not root.
    pub async fn loopback(binary: PathBuf) -> Result<World, Error> {
        let dir = tempfile::tempdir().map_err(|error| Error::io("a directory", error))?;
        let seed = seed();
        let mut options = Options::new(binary, dir.path().to_owned());
        (options.nodes, options.isolation, options.seed) = (3, Isolation::Loopback, seed);
        let cluster = Cluster::start(options).await?;
        println!("{} nodes on loopback; QUORAL_JEPSEN_SEED={seed}", cluster.len());
        Ok(World { cluster, rng: StdRng::seed_from_u64(seed), _dir: dir })
    }

    pub async fn start(binary: PathBuf) -> Result<World, Error> {
        let mut dir = tempfile::tempdir().map_err(|error| Error::io("a directory", error))?;
        if std::env::var_os("QUORAL_JEPSEN_KEEP").is_some() {
            dir.disable_cleanup(true);
            println!("kept: {}", dir.path().display());
        }
        let seed = seed();
        let mut options = Options::new(binary, dir.path().to_owned());
        options.disk = Disk::Loop(Fs::Xfs);
        (options.clocks, options.taps, options.seed) = (true, true, seed);
        let began = Instant::now();
        let cluster = Cluster::start(options).await?;
        println!(
            "{} nodes in {:.1} s; QUORAL_JEPSEN_SEED={seed}",
            cluster.len(),
            began.elapsed().as_secs_f64()
        );
        cluster.left_out().iter().for_each(|what| eprintln!("LEFT OUT {what}"));
        Ok(World { cluster, rng: StdRng::seed_from_u64(seed), _dir: dir })
    }

    pub async fn begin(&mut self, nemesis: &mut dyn Nemesis) -> Result<Edn, String> {
        let before = nemesis.acted();
        let value =
            nemesis.start(&mut self.cluster, &mut self.rng).await.map_err(|error| error.to_string())?;
        if nemesis.acted() != before + 1 {
            return Err("it does not count its act".into());
        }
        Ok(value)
    }

    pub async fn end(&mut self, nemesis: &mut dyn Nemesis) -> Result<Edn, String> {
        let value =
            nemesis.stop(&mut self.cluster, &mut self.rng).await.map_err(|error| error.to_string())?;
        self.cluster.wait_ready(Duration::from_secs(30)).await.map_err(|error| error.to_string())?;
        Ok(value)
    }

    /// A page of a node.
    pub async fn ask(&self, node: usize, path: &str) -> Result<String, String> {
        match ports::get(self.cluster.nodes()[node].http, path).await? {
            (200, body) => Ok(body),
            (status, body) => Err(format!("{status}: {body}")),
        }
    }

    pub fn peer(&self, node: usize) -> SocketAddr {
        self.cluster.nodes()[node].peer
    }

    /// Sends datagrams from one node to another; gives how many came, and how many out of order.
    pub async fn datagrams(&self, from: usize, to: usize, count: u64) -> Result<(u64, u64), String> {
        self.ask(to, "/received").await?;
        self.ask(from, &format!("/send?{}&{count}", self.peer(to))).await?;
        tokio::time::sleep(Duration::from_millis(600)).await;
        let all = self.ask(to, "/received").await?;
        let number = |word: Option<&str>| word.and_then(|word| word.parse().ok()).unwrap_or(0);
        let line = all.lines().find_map(|line| line.strip_prefix(&format!("{} ", self.peer(from))));
        let mut words = line.unwrap_or_default().split(' ');
        Ok((number(words.next()), number(words.next())))
    }

    /// The nodes that a nemesis said it hit.
    pub fn hit(&self, value: &Edn) -> Vec<usize> {
        let Some(Edn::Vector(names)) = field(value, "nodes") else { return Vec::new() };
        let all = self.cluster.names();
        let place = |name: &Edn| all.iter().position(|other| *name == Edn::Str(other.clone()));
        names.iter().filter_map(place).collect()
    }
}

/// A field of a nemesis's answer.
pub fn field<'a>(value: &'a Edn, name: &str) -> Option<&'a Edn> {
    let Edn::Map(entries) = value else { return None };
    entries.iter().find(|(key, _)| *key == Edn::Keyword(name.into())).map(|(_, value)| value)
}

/// A number among them.
pub fn number(value: &Edn, name: &str) -> i64 {
    if let Some(Edn::Int(number)) = field(value, name) { *number } else { 0 }
}

pub fn nemesis(name: &str) -> Box<dyn Nemesis> {
    by_name(name).expect("a name of ours")
}

pub fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}
