//! What clients do, and what must be true of it.
//!
//! Each workload is a keyspace, a way to draw operations, and the checkers of the model that the keyspace
//! promises. Clients go from node to node, a few keys at a time; a key gets a random number of operations and
//! then makes room for the next one, so that keys don't line up.

mod append;
mod batch;
mod counter;
mod keys;
mod merged;
mod recreate;
mod register;
mod sessions;
mod set;
mod ttl;
mod worker;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use crate::checker::Checker;
use crate::proto;

pub use keys::Keys;
pub use worker::Worker;

/// A step of a client: one operation, or a few that belong together.
pub type Step<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What clients do.
pub trait Workload: Send + Sync {
    /// Its name, as the user types it.
    fn name(&self) -> &'static str;
    /// In a few words, for the list.
    fn about(&self) -> &'static str;
    /// The keyspace that it needs; its name is filled in by the runner.
    fn keyspace(&self) -> proto::CreateKeyspaceRequest;
    /// How many keys are worked on at a time, and the fewest and most operations that each gets.
    fn keys(&self) -> Keys {
        Keys::new(5, 50, 500)
    }
    /// Replicas that a read hears: none for the keyspace's own.
    fn r(&self) -> Option<u32> {
        None
    }
    /// Replicas that a write waits for: none for the keyspace's own.
    fn w(&self) -> Option<u32> {
        None
    }
    /// Does one step on a key.
    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a>;
    /// Reads a key at the end, through one node, from all replicas. True if it was answered.
    fn final_read<'a>(
        &'a self,
        worker: &'a mut Worker,
        key: u64,
        node: usize,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
    /// What stands in every node's configuration besides.
    fn config(&self) -> &'static str {
        ""
    }
    /// What judges it.
    fn checkers(&self) -> Vec<Box<dyn Checker>>;
    /// Whether what is read at the end waits until all hints are home.
    fn waits_for_hints(&self) -> bool {
        false
    }
    /// Whether it is only of interest with clocks that are moved.
    fn wants_clocks(&self) -> bool {
        false
    }
}

/// All workloads.
pub fn all() -> Vec<Box<dyn Workload>> {
    vec![
        Box::new(register::Register::atomic()),
        Box::new(register::Register::regular()),
        Box::new(register::Register::loose()),
        Box::new(register::Register::delete()),
        Box::new(register::Register::many_keys()),
        Box::new(register::Register::skewed()),
        Box::new(set::Set::default()),
        Box::new(set::Set::once()),
        Box::new(set::Set::sloppy()),
        Box::new(counter::Counter),
        Box::new(append::Append),
        Box::new(sessions::Sessions::lww()),
        Box::new(sessions::Sessions::siblings()),
        Box::new(batch::Batch),
        Box::new(ttl::Ttl),
        Box::new(recreate::Recreate),
    ]
}

/// The workload of this name.
pub fn by_name(name: &str) -> Option<Box<dyn Workload>> {
    all().into_iter().find(|workload| workload.name() == name)
}

/// A keyspace of three replicas.
fn keyspace(conflicts: &str, r: u32, w: u32) -> proto::CreateKeyspaceRequest {
    proto::CreateKeyspaceRequest { conflicts: conflicts.into(), n: 3, r, w, ..Default::default() }
}

/// Names of all workloads, with what they do.
pub fn names() -> BTreeMap<&'static str, &'static str> {
    all().iter().map(|workload| (workload.name(), workload.about())).collect()
}
