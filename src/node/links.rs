//! One link to each other node of the cluster map, kept up for as long as the node runs.
//!
//! Each peer has a task that connects, says hello, serves its link until it ends, and tries again: at once
//! after a link that had lived, else after a delay that doubles up to half a second.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tonic::transport::Channel;

use super::committer::Committer;
use super::env::{Clock, ClusterClock, CommitMode, Env};
use super::refill::Refill;
use crate::ring::layout::ClusterMap;
use crate::rpc::peer_link::{self, LinkError, PeerLink, Preamble};
use crate::rpc::peer_service::PeerClocks;
use crate::rpc::proto;
use crate::telemetry::metrics::Metrics;
use crate::types::ids::{ClusterId, DiskId, Incarnation, MapVersion, NodeId, Nonce};
use crate::types::time::{Mono, WallMs};
use crate::version::hlc::Stamp;

/// Version of the protocol between nodes.
pub const PROTOCOL_VERSION: u32 = 1;

const RETRY_MIN: Duration = Duration::from_millis(25);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Who this node is to its peers.
#[derive(Debug, Clone, Copy)]
pub struct Me {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub disk: DiskId,
    /// Its life.
    pub incarnation: Incarnation,
    /// How often the node has been started on this data directory.
    pub starts: u64,
    /// This start.
    pub nonce: Nonce,
}

/// How the last attempt to reach a peer went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Contact {
    /// Not tried yet, or under way.
    #[default]
    Trying,
    /// The link is, or was last, up.
    Accepted,
    /// The peer did not answer.
    Unreachable(String),
    /// The peer refused this node.
    Refused {
        /// Why.
        reason: String,
        /// Whether it is of no use to try again.
        is_final: bool,
    },
}

struct Peer {
    link: PeerLink,
    channel: Channel,
}

/// All links.
pub struct Links {
    me: Me,
    env: Env,
    clock: Arc<ClusterClock>,
    committer: Committer,
    metrics: Arc<Metrics>,
    map: watch::Receiver<Arc<ClusterMap>>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    contacts: watch::Sender<BTreeMap<NodeId, Contact>>,
    told: Mutex<BTreeMap<NodeId, Told>>,
    refill: Arc<Refill>,
}

/// What a peer said of its clocks.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// Its last stamp.
    hlc: Stamp,
    /// What it believes the wall clock to be, and when it came.
    believed: WallMs,
    at: Mono,
}

impl Preamble for Links {
    fn preamble(&self) -> proto::Operations {
        proto::Operations {
            node_id: self.me.node.to_string(),
            nonce: self.me.nonce.to_string(),
            clock: self.committer.with_minter(|minter| minter.clock().last()).0,
            layout_version: self.map.borrow().layout.version.0,
            operations: Vec::new(),
            wall_ms: self.clock.own_wall().0,
            believed_ms: self.clock.wall().0,
            up_us: self.clock.mono().0,
        }
    }
}

impl Links {
    /// Links to nobody yet.
    pub fn new(
        me: Me,
        env: Env,
        clock: Arc<ClusterClock>,
        committer: Committer,
        metrics: Arc<Metrics>,
        map: watch::Receiver<Arc<ClusterMap>>,
        refill: Arc<Refill>,
    ) -> Arc<Links> {
        let contacts = watch::Sender::default();
        Arc::new(Links {
            me,
            env,
            clock,
            committer,
            metrics,
            map,
            peers: Mutex::default(),
            contacts,
            told: Mutex::default(),
            refill,
        })
    }

    /// Starts the task of each peer of the cluster map.
    pub fn connect_all(self: &Arc<Links>) {
        let map = self.map.borrow().clone();
        for member in map.layout.members.iter().filter(|m| m.id != self.me.node) {
            let channel = match peer_link::channel(self.env.network.clone(), &member.address) {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::error!(peer = %member.name, address = %member.address, %error, "bad peer address");
                    continue;
                }
            };
            let (link, queue) = peer_link::new_link();
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.insert(member.id, Peer { link: link.clone(), channel: channel.clone() });
            drop(peers);
            let (links, id, name) = (self.clone(), member.id, member.name.clone());
            tokio::spawn(async move { links.keep_up(id, &name, &link, channel, queue).await });
        }
    }

    /// Where slow work runs.
    pub fn mode(&self) -> CommitMode {
        self.env.commit
    }

    /// The link to `node`, if it is up.
    pub fn up(&self, node: NodeId) -> Option<PeerLink> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&node).map(|peer| peer.link.clone()).filter(PeerLink::is_up)
    }

    /// A channel to `node` for calls outside the link; it connects when it is used.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&node).map(|peer| peer.channel.clone())
    }

    /// How the last attempt to reach each peer went.
    pub fn contacts(&self) -> watch::Receiver<BTreeMap<NodeId, Contact>> {
        self.contacts.subscribe()
    }

    fn hello(&self, peer: NodeId) -> proto::HelloRequest {
        proto::HelloRequest {
            protocol_version: PROTOCOL_VERSION,
            cluster_id: self.me.cluster.to_string(),
            node_id: self.me.node.to_string(),
            disk_id: self.me.disk.to_string(),
            nonce: self.me.nonce.to_string(),
            incarnation: self.me.incarnation.0,
            starts: self.me.starts,
            expected_node_id: peer.to_string(),
        }
    }

    async fn keep_up(
        self: Arc<Links>,
        peer: NodeId,
        name: &str,
        link: &PeerLink,
        channel: Channel,
        queue: peer_link::LinkQueue,
    ) {
        let mut delay = RETRY_MIN;
        loop {
            let up = |hello: &proto::HelloResponse| {
                tracing::info!(peer = %name, "link up");
                self.observe_clock(name, Stamp(hello.clock));
                let map = MapVersion(hello.map_version);
                self.refill.heard(peer, hello.replaced, map, Stamp(hello.clock));
                self.metrics.links.inc();
                self.set_contact(peer, Contact::Accepted);
            };
            let observe = |clock| self.observe_clock(name, Stamp(clock));
            let (hello, preamble) = (self.hello(peer), self.clone() as Arc<dyn Preamble>);
            let error = link.run(channel.clone(), hello, preamble, &queue, up, observe).await;
            let was_up = self.contacts.borrow().get(&peer) == Some(&Contact::Accepted);
            if was_up {
                self.metrics.links.dec();
                tracing::warn!(peer = %name, %error, "link down");
                delay = RETRY_MIN;
            }
            let contact = match error {
                LinkError::Broken(problem) => Contact::Unreachable(problem),
                LinkError::Refused { reason, is_final } => Contact::Refused { reason, is_final },
            };
            if let Contact::Refused { reason, .. } = &contact
                && self.contacts.borrow().get(&peer) != Some(&contact)
            {
                tracing::error!(peer = %name, %reason, "this node is refused");
            }
            self.set_contact(peer, contact);
            // A little spread, so that nodes which lost each other do not call in step.
            let jitter = Duration::from_micros(self.env.random() % 10_000);
            tokio::time::sleep(delay + jitter).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    fn set_contact(&self, peer: NodeId, contact: Contact) {
        self.contacts.send_if_modified(|contacts| contacts.insert(peer, contact.clone()) != Some(contact));
    }

    /// Notes what a peer says of its clocks: its last stamp, its wall clock, and what it believes of that. What its
    /// monotonic clock says now.
    pub fn heard(&self, from: NodeId, clocks: PeerClocks) -> Mono {
        let PeerClocks { hlc, wall, believed, up } = clocks;
        let up_now = self.clock.heard(from, wall, up);
        let told = Told { hlc, believed, at: self.clock.mono() };
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(from, told);
        self.observe_clock(&from.to_string(), hlc);
        up_now
    }

    /// What a peer's clocks said before says nothing any more: its process may be a new one.
    pub fn forget_clocks(&self, from: NodeId) {
        self.clock.forget(from);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(&from);
    }

    /// Whether a peer would take a stamp of this millisecond, as far as it is known here: one that it refuses had
    /// better not be issued. What it said may have been under way as long as the skew allowed.
    pub fn would_take(&self, node: NodeId, stamp: WallMs, max_skew_ms: u64) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied();
        let Some(told) = told else { return true };
        let passed_ms = self.clock.mono().micros_since(told.at) / 1_000;
        let limit = told.believed.0.saturating_add(passed_ms).max(told.hlc.wall().0);
        stamp.0 <= limit.saturating_add(2 * max_skew_ms)
    }

    /// Follows a peer's clock, unless it is too far ahead.
    pub fn observe_clock(&self, name: &str, clock: Stamp) {
        let now = self.env.clock.wall();
        let observed = self.committer.with_minter(|minter| minter.clock_mut().observe(now, clock));
        if let Err(too_far) = observed {
            self.metrics.clock_skew.inc();
            tracing::debug!(peer = %name, %too_far, "a peer's clock is not followed");
        }
    }
}
