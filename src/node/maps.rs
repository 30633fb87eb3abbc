//! The cluster map of this node: persisted before it is acted on, spread by gossip digest and pull, and
//! decided once per version by the decree machine (`ring/decree.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::committer::Committer;
use super::env::Env;
use super::gossip::{GossipHandle, Members};
use super::links::Links;
use super::refill::Refill;
use crate::canary::{self, Canary};
use crate::replica::stored::LoadError;
use crate::ring::decree::Acceptor;
use crate::ring::layout::ClusterMap;
use crate::rpc::proto::{self, peer_client::PeerClient};
use crate::storage::{Batch, Storage, schema};
use crate::types::error::Cause;
use crate::types::ids::{MapVersion, NodeId};
use crate::types::limits::MESSAGE_BYTES_MAX;

const PULL_TIMEOUT: Duration = Duration::from_secs(2);
const PULL_PAUSE: Duration = Duration::from_millis(200);

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
    pub(super) me: NodeId,
    pub(super) env: Env,
    pub(super) committer: Committer,
    current: watch::Sender<Arc<ClusterMap>>,
    /// One change of the map at a time.
    adopting: tokio::sync::Mutex<()>,
    stale: tokio::sync::Notify,
    /// The own vote, one at a time.
    pub(super) acceptor: tokio::sync::Mutex<Option<Acceptor>>,
    /// Whether it may vote.
    pub(super) refill: Arc<Refill>,
}

impl Maps {
    /// Holds `map`, which is stored already.
    pub fn new(
        me: NodeId,
        env: Env,
        committer: Committer,
        map: watch::Sender<Arc<ClusterMap>>,
        refill: Arc<Refill>,
    ) -> Arc<Maps> {
        let (adopting, stale) = (tokio::sync::Mutex::default(), tokio::sync::Notify::default());
        let acceptor = tokio::sync::Mutex::default();
        Arc::new(Maps { me, env, committer, current: map, adopting, stale, acceptor, refill })
    }

    /// The map now.
    pub fn current(&self) -> Arc<ClusterMap> {
        self.current.borrow().clone()
    }

    /// The map as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.current.subscribe()
    }

    /// Stores and then acts on a decided map, if it is newer than the one here.
    pub async fn adopt(&self, map: ClusterMap) -> Result<(), Cause> {
        let _one_at_a_time = self.adopting.lock().await;
        let current = self.current();
        if map.version <= current.version && !(canary::sings(Canary::StaleMap) && map != *current) {
            if map.version == current.version && map != *current {
                tracing::error!(version = %map.version, "two cluster maps of one version");
            }
            return Ok(());
        }
        if map.cluster != current.cluster {
            return Err(Cause::Storage("a cluster map of another cluster".into()));
        }
        self.committer.write(map_batch(&map)).await?;
        tracing::info!(version = %map.version, "cluster map");
        self.current.send_replace(Arc::new(map));
        Ok(())
    }

    /// Notes that a peer knows of something that is not in the map here.
    pub fn suspect_stale(&self) {
        self.stale.notify_one();
    }

    /// Pulls the map of `from`, if it is newer.
    pub async fn pull(&self, links: &Links, from: NodeId) -> Result<(), String> {
        let Some(channel) = links.channel(from) else { return Ok(()) };
        let mut client = PeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let have_version = if canary::sings(Canary::StaleMap) { 0 } else { self.current().version.0 };
        let request = proto::PullMapRequest { have_version };
        let answer = tokio::time::timeout(PULL_TIMEOUT, client.pull_map(request)).await;
        let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|status| status.to_string())?;
        let bytes = answer.into_inner().map;
        if bytes.is_empty() {
            return Ok(());
        }
        let map = ClusterMap::decode(&bytes).map_err(|bad| bad.to_string())?;
        self.adopt(map).await.map_err(|cause| format!("{cause:?}"))
    }

    /// Follows what gossip says of the peers' maps, and pulls what is newer, for as long as the node runs.
    pub async fn follow(self: Arc<Maps>, links: Arc<Links>, gossip: GossipHandle) {
        let mut members = gossip.watch();
        loop {
            let newest = newest_elsewhere(&members.borrow_and_update(), self.current().version);
            if let Some(from) = newest {
                if let Err(problem) = self.pull(&links, from).await {
                    tracing::warn!(%from, problem, "the cluster map could not be pulled");
                    tokio::time::sleep(PULL_PAUSE).await;
                }
                continue;
            }
            tokio::select! {
                biased;
                changed = members.changed() => if changed.is_err() { return },
                () = self.stale.notified() => {
                    let peers: Vec<NodeId> = self.current().layout.members.iter().map(|m| m.id).collect();
                    for from in peers.into_iter().filter(|id| *id != self.me) {
                        let _ = self.pull(&links, from).await;
                    }
                }
            }
        }
    }
}

/// A live peer whose map is newer than `version`: the one with the newest.
fn newest_elsewhere(members: &Members, version: MapVersion) -> Option<NodeId> {
    let newer =
        members.peers.iter().filter(|(_, peer)| peer.liveness.is_live()).filter_map(|(node, peer)| {
            let theirs = peer.last_state.as_ref()?.report.map_version;
            (theirs > version).then_some((theirs, *node))
        });
    newer.max().map(|(_, node)| node)
}
