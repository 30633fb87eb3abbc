//! Refills a lost disk from the other home replicas (see `refill` for the rules): a task that sleeps on a node that is
//! whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::committer::Committer;
use super::links::Links;
use super::maps::Maps;
use super::refill::Refill;
use super::repair_runs::{Progress, Purpose};
use super::repairs::{Repairs, Selection, Shared, shared};
use crate::antientropy::forest::Place;
use crate::storage::Batch;
use crate::types::error::Cause;
use crate::types::ids::NodeId;

/// Trees after which it is told how far it is.
const AT_A_TIME: usize = 8;
/// Time after which that is stored.
const STORED_EVERY: Duration = Duration::from_secs(1);
/// Time between two rounds, while somebody is waited for.
const PAUSE: Duration = Duration::from_millis(250);

/// What it needs.
pub struct Refiller {
    /// How far it is.
    pub refill: Arc<Refill>,
    /// Exchanges.
    pub repairs: Arc<Repairs>,
    /// The cluster map.
    pub maps: Arc<Maps>,
    /// The other nodes.
    pub links: Arc<Links>,
    /// Whether this node is admitted.
    pub admitted: watch::Receiver<bool>,
}

impl Refiller {
    /// Runs as long as the node does.
    pub async fn run(mut self) {
        if self.admitted.wait_for(|admitted| *admitted).await.is_err() {
            return;
        }
        loop {
            // Said by a peer that was away when this node was admitted.
            let now = self.repairs.env.clock.wall();
            if let Some(batch) = self.refill.begin(now) {
                self.write(batch).await;
            }
            let barrier = self.refill.barrier().filter(|barrier| self.maps.current().version < *barrier);
            let is_filling = self.refill.is_filling();
            self.show();
            if self.committer().has_failed() {
                return;
            }
            if !is_filling && barrier.is_none() {
                self.refill.wake.notified().await;
                continue;
            }
            if let Some(barrier) = barrier.filter(|_| self.can_decide()) {
                self.maps.reach(&self.links, barrier).await;
            }
            if is_filling {
                self.round().await;
                if !self.refill.is_filling() {
                    tracing::info!("this node is refilled: its answers count in reads");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether the others are enough to decide a map without this node, as far as can be seen.
    fn can_decide(&self) -> bool {
        let map = self.maps.current();
        let members = &map.layout.members;
        let up = members.iter().filter(|member| self.links.up(member.id).is_some()).count();
        up > members.len() / 2 || members.len() <= 2
    }

    /// Takes what each peer has that can be reached.
    async fn round(&self) {
        let (map, me) = (self.maps.current(), self.maps.me);
        let (mut stored, mut to_store) = (Instant::now(), None);
        // By trees first, so that some are back soon.
        let mut wanted: BTreeMap<Place, Vec<(NodeId, Shared)>> = BTreeMap::new();
        for peer in map.layout.members.iter().map(|member| member.id).filter(|id| *id != me) {
            let all = shared(&map, me, peer, Selection::default());
            for one in all.into_iter().filter(|one| self.refill.wants(peer, one.place)) {
                wanted.entry(one.place).or_default().push((peer, one));
            }
        }
        let wanted: Vec<Vec<(NodeId, Shared)>> = wanted.into_values().collect();
        for some in wanted.chunks(AT_A_TIME) {
            let mut of_peers: BTreeMap<NodeId, Vec<Shared>> = BTreeMap::new();
            for (peer, one) in some.iter().flatten() {
                of_peers.entry(*peer).or_default().push(*one);
            }
            for (peer, some) in of_peers {
                if self.links.up(peer).is_some() {
                    to_store = self.take(peer, some).await.or(to_store);
                }
            }
            if stored.elapsed() >= STORED_EVERY
                && let Some(batch) = to_store.take()
            {
                self.write(batch).await;
                stored = Instant::now();
            }
        }
        if let Some(batch) = self.refill.taken(me, &[], &map, me).or(to_store) {
            self.write(batch).await;
        }
    }

    /// Takes what a peer has of some trees. How far it is, if that is more than before.
    async fn take(&self, peer: NodeId, some: Vec<Shared>) -> Option<Batch> {
        let (map, progress) = (self.maps.current(), watch::Sender::new(Progress::default()));
        let mut done: Vec<Place> = some.iter().map(|shared| shared.place).collect();
        let undone = self.repairs.pass(peer, some, &progress, Purpose::Refill).await;
        self.refill.count(progress.borrow().healed);
        done.retain(|place| undone.iter().all(|shared| shared.place != *place));
        let batch = self.refill.taken(peer, &done, &map, self.maps.me);
        self.show();
        batch
    }

    fn committer(&self) -> &Committer {
        &self.maps.committer
    }

    /// Not written, it is found out anew after a restart.
    async fn write(&self, batch: Batch) {
        while let Err(cause) = self.committer().write(batch.clone()).await {
            let Cause::Overloaded(delay) = cause else {
                return tracing::error!(?cause, "how far this node is refilled can't be stored");
            };
            tokio::time::sleep(delay).await;
        }
    }

    fn show(&self) {
        let metrics = &self.repairs.coordinator.driver.metrics;
        let view = self.refill.view(&self.maps.current(), self.maps.me).unwrap_or_default();
        metrics.repair.refill_left.set(view.trees - view.done);
    }
}
