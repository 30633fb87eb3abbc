//! The cluster map of this node: persisted before it is acted on, spread by gossip digest and pull, and
//! decided once per version by the decree machine (`ring/decree.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;

use super::committer::Committer;
use super::env::Env;
use super::links::Links;
use crate::replica::stored::LoadError;
use crate::ring::layout::ClusterMap;
use crate::rpc::proto::{self, peer_client::PeerClient};
use crate::storage::{Batch, Storage, schema};
use crate::types::error::Cause;
use crate::types::ids::NodeId;
use crate::types::limits::MESSAGE_BYTES_MAX;

/// The map that a data directory holds.
pub fn stored_map(storage: &dyn Storage) -> Result<Option<ClusterMap>, LoadError> {
    let key = schema::meta_key(schema::META_MAP);
    let Some(value) = storage.get(&key)? else { return Ok(None) };
    let damaged = |problem: String| LoadError::Damaged(format!("the cluster map: {problem}"));
    let body = schema::open(&key, &value).map_err(|d| damaged(d.to_string()))?;
    ClusterMap::decode(body).map(Some).map_err(|bad| damaged(bad.to_string()))
}

/// The batch that stores a map.
pub fn map_batch(map: &ClusterMap) -> Batch {
    let key = schema::meta_key(schema::META_MAP);
    let mut batch = Batch::new();
    batch.put(key.clone(), schema::seal(&key, &map.encode()));
    batch
}

/// Holds the map, and brings in newer ones.
pub struct Maps {
    me: NodeId,
    env: Env,
    committer: Committer,
    current: watch::Sender<Arc<ClusterMap>>,
    /// One change of the map at a time.
    adopting: tokio::sync::Mutex<()>,
    stale: tokio::sync::Notify,
}
