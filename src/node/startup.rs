//! From a configuration to a running node, and back: the data directory, the storage engine, the cluster map.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use super::compactor;
use super::config::Config;
use super::datadir::{DataDir, DataDirError};
use super::env::Env;
use super::maps::{map_batch, stored_map};
use super::server::{Disk, Node};
use crate::replica::mint::stored_number;
use crate::replica::stored::LoadError;
use crate::ring::layout::{ClusterMap, Member};
use crate::ring::partition::Partitions;
use crate::storage::sled::SledStorage;
use crate::storage::{Batch, Storage, StorageError, schema};
use crate::types::error::Invalid;
use crate::types::ids::{DiskId, Incarnation, NodeId};
use crate::types::policy::Durability;

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StartError {
    #[error("bootstrap: {0}")]
    Bootstrap(#[from] Invalid),
    #[error("{0}")]
    DataDir(#[from] DataDirError),
    #[error("storage: {0}")]
    Storage(String),
    #[error(
        "storage: {0}. What this node has promised can't be told any more, so it does not start: see \"A disk is \
         damaged\" in docs/operations.md"
    )]
    Damaged(String),
    #[error("{field}: can't listen at {at}: {error}")]
    Port { field: &'static str, at: SocketAddr, error: String },
    #[error("gossip at {address}: {error}")]
    Gossip { address: String, error: String },
    #[error("reflection: {0}")]
    Reflection(String),
    #[error("refused by node {by}: {reason}")]
    Refused { by: NodeId, reason: String },
    #[error("node.id: another live process at {address} has this node id; this one stops")]
    Duplicate { address: SocketAddr },
    #[error("the storage failed: {0}")]
    Failed(String),
}

impl From<StorageError> for StartError {
    fn from(error: StorageError) -> StartError {
        match error {
            StorageError::Corrupt(_) => StartError::Damaged(error.to_string()),
            error => StartError::Storage(error.to_string()),
        }
    }
}

impl From<LoadError> for StartError {
    fn from(error: LoadError) -> StartError {
        match error {
            LoadError::Storage(error) => error.into(),
            LoadError::Damaged(_) => StartError::Damaged(error.to_string()),
        }
    }
}

/// The cluster map that a configuration's bootstrap list makes.
pub fn bootstrap_map(config: &Config) -> Result<ClusterMap, Invalid> {
    let nodes = config.bootstrap.nodes.iter().map(|node| Member {
        id: node.id,
        name: node.name.clone(),
        zone: node.zone.clone(),
        weight: node.weight,
        address: node.address.clone(),
    });
    let partitions = Partitions::new(config.bootstrap.partitions)?;
    ClusterMap::bootstrap(&config.bootstrap.cluster, partitions, nodes.collect())
}

/// The map to start with: the stored one, or the bootstrap list's, which is stored now.
pub fn starting_map(storage: &dyn Storage, bootstrap: ClusterMap) -> Result<ClusterMap, StartError> {
    match stored_map(storage)? {
        Some(map) => Ok(map),
        None => {
            storage.write(&map_batch(&bootstrap))?;
            storage.sync()?;
            Ok(bootstrap)
        }
    }
}

/// Runs a node until `shutdown` is done.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), StartError> {
    let env = Env::system();
    let bootstrap = bootstrap_map(&config)?;
    let (path, cluster, node) = (&config.node.data_dir, bootstrap.cluster, config.node.id);
    let mut dir = DataDir::open(path, cluster, node, || DiskId(env.random()), env.clock.wall())?;
    let engine = Arc::new(SledStorage::open(&dir.storage_path(), config.storage.cache_bytes)?);
    let storage: Arc<dyn Storage> = engine.clone();
    check_disk(&mut dir, &*storage, &env)?;
    let disk = begin_life(&mut dir, &*storage, &env, config.node.durability)?;
    let map = starting_map(&*storage, bootstrap)?;
    tracing::info!(node = %node, name = %config.node.name, cluster = %cluster, map = %map.version, "starting");
    let node = Node::start(env, &config, storage.clone(), disk, map).await?;
    let driver = &node.service().coordinator.driver;
    let (clock, metrics) = (driver.clock.clone(), driver.metrics.clone());
    let result = tokio::select! {
        result = serve(&node) => result,
        () = compactor::run(clock, engine, config.storage.compact_bytes, metrics) => Ok(()),
        () = shutdown => Ok(()),
    };
    if result.is_ok() {
        tracing::info!("stopping");
        node.drain().await;
        end_life(&*storage)?;
    }
    result
}

async fn serve(node: &Node) -> Result<(), StartError> {
    node.admitted().await?;
    node.open().await;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        if let Some(problem) = node.problem() {
            return Err(problem);
        }
    }
}

/// Holds the engine's files against the data directory that they are in. Files that say nothing are new: what the
/// directory held before, if anything, is lost, so it is a new disk, which the other nodes know how to judge.
fn check_disk(dir: &mut DataDir, storage: &dyn Storage, env: &Env) -> Result<(), StartError> {
    let key = schema::meta_key(schema::META_DISK);
    let bad = |problem: String| StartError::Damaged(format!("{}: {problem}", dir.storage_path().display()));
    if let Some(value) = storage.get(&key)? {
        let body = schema::open(&key, &value).map_err(|damaged| bad(format!("its disk id: {damaged}")))?;
        let found = body.try_into().map(|body| DiskId(u64::from_be_bytes(body)));
        return match found {
            Ok(found) if found == dir.disk_id => Ok(()),
            Ok(found) => {
                Err(bad(format!("is of data directory {found}, identity.toml says {}", dir.disk_id)))
            }
            Err(_) => Err(bad("its disk id is damaged".into())),
        };
    }
    if !dir.fresh {
        let (disk, now) = (DiskId(env.random()), env.clock.wall());
        tracing::warn!(old = %dir.disk_id, new = %disk, "the storage is empty: what this directory held is lost");
        dir.renew(disk, Incarnation(now.0.max(dir.incarnation.0 + 1)))?;
    }
    let mut batch = Batch::new();
    batch.put(key.clone(), schema::seal(&key, &dir.disk_id.0.to_be_bytes()));
    storage.write(&batch)?;
    Ok(storage.sync()?)
}

const RUNNING_INTERVAL: &[u8] = b"running, durability interval";
const RUNNING_ALWAYS: &[u8] = b"running, durability always";
const STOPPED: &[u8] = b"stopped";

/// Takes a new incarnation if the last life may have lost what it acknowledged, and marks this life as begun, and
/// counted.
fn begin_life(
    dir: &mut DataDir,
    storage: &dyn Storage,
    env: &Env,
    durability: Durability,
) -> Result<Disk, StartError> {
    let key = schema::meta_key(schema::META_CLEAN);
    let last = storage.get(&key)?;
    // One that can't be read may have said so.
    let last = last.as_deref().map(|value| schema::open(&key, value).unwrap_or(RUNNING_INTERVAL));
    if last == Some(RUNNING_INTERVAL) {
        let next = Incarnation(env.clock.wall().0.max(dir.incarnation.0 + 1));
        tracing::warn!(incarnation = %next, "the last stop was unclean and not everything was synced");
        dir.set_incarnation(next)?;
    }
    let mark = match durability {
        Durability::Always => RUNNING_ALWAYS,
        Durability::Interval => RUNNING_INTERVAL,
    };
    let starts = 1 + stored_number(storage, schema::META_STARTS)?;
    let key = schema::meta_key(schema::META_STARTS);
    let mut batch = Batch::new();
    batch.put(key.clone(), schema::seal(&key, &starts.to_be_bytes()));
    storage.write(&batch)?;
    write_mark(storage, mark)?;
    Ok(Disk { id: dir.disk_id, incarnation: dir.incarnation, starts })
}

fn end_life(storage: &dyn Storage) -> Result<(), StartError> {
    Ok(write_mark(storage, STOPPED)?)
}

fn write_mark(storage: &dyn Storage, mark: &[u8]) -> Result<(), StorageError> {
    let key = schema::meta_key(schema::META_CLEAN);
    let mut batch = Batch::new();
    batch.put(key.clone(), schema::seal(&key, mark));
    storage.write(&batch)?;
    storage.sync()
}
