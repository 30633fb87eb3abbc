//! Hosts that lose their whole disk: they start on an empty one, with a new incarnation, and are refilled.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quoral::storage::{Batch, Storage as _};

use super::{Cluster, Host};

impl Cluster {
    /// A crashed host's disk is replaced by an empty one.
    pub fn lose_disk(&mut self, host: usize) {
        let Host { storage, disks, id, .. } = &*self.hosts[host];
        let mut all = Batch::new();
        let everything = (Bound::Unbounded, Bound::Unbounded);
        let visited = storage.scan(everything.0, everything.1, false, &mut |key, _| {
            all.delete(key);
            true
        });
        visited
            .and_then(|()| storage.write(&all))
            .and_then(|()| storage.sync())
            .expect("memory has no faults");
        disks.fetch_add(1, Ordering::Relaxed);
        self.map_watch.forget(*id);
        self.hint_watch.lost(*id);
        self.recorder
            .note(self.now_ms(), &format!("n{} has lost its disk: {} entries", host + 1, all.writes.len()));
    }

    /// Whether a host has ever lost its disk.
    pub fn has_lost_disk(&self, host: usize) -> bool {
        self.hosts[host].disks.load(Ordering::Relaxed) > 0
    }

    /// Nodes that have not got back what they lost.
    pub fn refilled(&self) -> Vec<String> {
        let is_whole = |host: &&Arc<Host>| {
            host.service()
                .is_some_and(|node| !node.coordinator.driver.refill.is_filling() && node.maps.votes())
        };
        self.hosts.iter().filter(|host| !is_whole(host)).map(|host| host.name.clone()).collect()
    }
}
