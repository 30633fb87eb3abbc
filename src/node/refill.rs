//! A node that lost its disk: what it must not do until it has back what the others hold, and how far it is.
//!
//! Its data directory is new, under a node id that the others know with another. They say so when they take it
//! (`hello`), and from then on it is *refilled*, over restarts too. What it acknowledged on the lost disk is on
//! the others, if it was on any of them: a write of `w` is on `w - 1`. Rules:
//!
//! 1. It stores what it is sent, and acknowledges it, from the moment it is admitted. Of a tree that it has not back it
//!    answers no read, neither a peer's nor its own: it refuses, and the next replica is asked. With `r + w > n`
//!    the `r` others of a read and the `w - 1` others of a write, out of `n - 1`, still have one in common (G2).
//! 2. A tree is back when everything that each other home replica held, at some time after the node was admitted, has
//!    been taken: nothing is too new for that. One that is away is waited for, since it may hold what no other does.
//! 3. It consents to no purge of such a tree's tombstones, and leads none (F05).
//! 4. A fresh `lww` write needs a greater stamp than any that was finished with the lost disk's acknowledgement: it is
//!    told to be stamped above the clocks of all other home replicas, as they were when they took the node, and
//!    is refused while one of them has not been heard. They have followed each stamp that they store.
//! 5. That it does not remember a request says nothing until ten minutes after it was admitted.
//! 6. It has forgotten its votes on the next cluster map. The lost disk's map was of version `k`, so it voted on
//!    versions up to `k + 1`. More than half of the members accepted version `k`, and had version `k - 1` by then;
//!    so of those that admit this node, more than half of the others, one has `k - 1` or a later one. Hence up to
//!    two versions above the newest of theirs it abstains, and has maps decided that change nothing until
//!    those are passed. With two members each decision needs the other, which remembers, so it votes at once.
//! 7. All trees are those of a map of at least that version: no keyspace that the lost disk knew is missing in it. Or
//!    all other members have been heard, and it is as new as theirs.
//!
//! What was on no other disk is lost, as are hints that were kept for others: anti-entropy does their work. Its dots
//! are new ones, by the new incarnation (F10).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::antientropy::forest::Place;
use crate::canary::{self, Canary};
use crate::replica::stored::LoadError;
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::rpc::proto;
use crate::storage::{Batch, Storage, schema};
use crate::types::ids::{KeyspaceId, MapVersion, NodeId, PartitionId};
use crate::types::limits::REQUEST_MEMORY;
use crate::types::time::{Mono, WallMs};
use crate::version::hlc::Stamp;
use crate::version::record::Record;

/// How long a peer that said it is refilled is asked last.
const ASKED_LAST: Duration = Duration::from_millis(500);
/// Map versions above those of the peers on which the lost disk may have voted.
const VOTES_AHEAD: u64 = 2;

/// Why a read is refused.
pub const REFILLING: &str = "this node lost its disk, and has not got this back";
/// Why a fresh write is refused.
pub const NOT_HEARD: &str = "this node lost its disk, and has not heard all other home replicas since";

/// What is kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// When it began: from then on the node stores what it is sent.
    since: WallMs,
    /// The last map version on which the lost disk may have voted.
    barrier: MapVersion,
    /// Whether everything is back.
    is_over: bool,
    /// The trees that are.
    done: BTreeMap<KeyspaceId, BTreeSet<PartitionId>>,
}

/// What a peer said when it took this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    /// The newest.
    map: MapVersion,
    /// Its clock, the first time since this start.
    clock: Stamp,
}

#[derive(Debug, Default)]
struct State {
    /// A peer knew another disk.
    is_told: bool,
    stored: Option<Stored>,
    heard: BTreeMap<NodeId, Heard>,
    /// Trees whose records at a peer have all been taken, of those that are not back yet.
    taken: BTreeMap<Place, BTreeSet<NodeId>>,
    records: u64,
}

/// What becomes of a fresh write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// It is like any other.
    Take,
    /// It must be stamped above this, if it is not.
    Above(Stamp),
    /// It can't be told yet.
    NotYet,
}

/// How far a node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RefillView {
    /// Trees in all.
    pub trees: u64,
    /// Trees that are back.
    pub done: u64,
    /// Records that came since the node was started.
    pub records: u64,
    /// Whose are not taken yet.
    pub waits_for: BTreeSet<NodeId>,
}

impl RefillView {
    /// For a peer.
    pub fn to_wire(&self) -> proto::Refill {
        proto::Refill {
            trees: self.trees,
            done: self.done,
            records: self.records,
            waits_for: self.waits_for.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Whether this node is refilled, and what follows from that.
#[derive(Debug, Default)]
pub struct Refill {
    state: Mutex<State>,
    /// So that a node that is whole pays nothing for it.
    is_filling: AtomicBool,
    /// Peers that said of late that they are.
    others: Mutex<BTreeMap<NodeId, Mono>>,
    /// Something is to be done.
    pub(super) wake: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The homes of a place; none if its keyspace is not known.
fn homes_of(map: &ClusterMap, place: Place) -> Vec<NodeId> {
    map.keyspace_by_id(place.keyspace).map(|known| homes(map, known, place.partition)).unwrap_or_default()
}

/// All trees that a node has by a map.
fn all_places(map: &ClusterMap, me: NodeId) -> impl Iterator<Item = Place> {
    map.keyspaces.iter().flat_map(move |keyspace| {
        let mine = map.partitions.all().filter(move |at| homes(map, keyspace, *at).contains(&me));
        mine.map(|partition| Place { partition, keyspace: keyspace.id })
    })
}

fn batch_of(stored: &Stored) -> Batch {
    let key = schema::meta_key(schema::META_REFILL);
    // A Vec grows as needed, and it has no fallible Serialize.
    let body = postcard::to_extend(stored, Vec::new()).expect("a Vec takes it");
    let mut batch = Batch::new();
    batch.put(key.clone(), schema::seal(&key, &body));
    batch
}

impl State {
    fn is_filling(&self) -> bool {
        match &self.stored {
            Some(stored) => !stored.is_over,
            None => self.is_told,
        }
    }

    fn is_done(&self, place: Place) -> bool {
        let done = self.stored.as_ref().and_then(|stored| stored.done.get(&place.keyspace));
        done.is_some_and(|done| done.contains(&place.partition))
    }

    fn lacks(&self, place: Place) -> bool {
        self.is_filling() && !self.is_done(place)
    }

    /// Rule 7.
    fn is_map_new_enough(&self, map: &ClusterMap, me: NodeId) -> bool {
        let Some(stored) = &self.stored else { return false };
        let mut others = map.layout.members.iter().filter(|member| member.id != me);
        map.version >= stored.barrier
            || others.all(|other| self.heard.get(&other.id).is_some_and(|heard| heard.map <= map.version))
    }
}

impl Refill {
    /// As a data directory has it.
    pub fn load(storage: &dyn Storage) -> Result<Refill, LoadError> {
        let key = schema::meta_key(schema::META_REFILL);
        let damaged = |problem: String| LoadError::Damaged(format!("how far it is refilled: {problem}"));
        let stored = match storage.get(&key)? {
            None => None,
            Some(value) => {
                let body = schema::open(&key, &value).map_err(|bad| damaged(bad.to_string()))?;
                Some(postcard::from_bytes::<Stored>(body).map_err(|bad| damaged(bad.to_string()))?)
            }
        };
        let state = State { stored, ..State::default() };
        let refill = Refill { is_filling: AtomicBool::new(state.is_filling()), ..Refill::default() };
        *lock(&refill.state) = state;
        Ok(refill)
    }

    /// Notes what a peer said when it took this node.
    pub fn heard(&self, peer: NodeId, replaced: bool, map: MapVersion, clock: Stamp) {
        let mut state = lock(&self.state);
        let heard = state.heard.entry(peer).or_insert(Heard { map, clock });
        heard.map = heard.map.max(map);
        if replaced && state.stored.is_none() && !state.is_told {
            state.is_told = true;
            tracing::warn!(by = %peer, "this data directory replaces one that is lost: it is refilled");
        }
        let is_filling = state.is_filling();
        self.is_filling.store(is_filling, Ordering::Release);
        drop(state);
        if is_filling {
            self.wake.notify_one();
        }
    }

    /// Begins it, if a peer said that it is due: what to write before anything is answered.
    pub fn begin(&self, now: WallMs) -> Option<Batch> {
        let mut state = lock(&self.state);
        if !state.is_told || state.stored.is_some() {
            return None;
        }
        let newest = state.heard.values().map(|heard| heard.map.0).max().unwrap_or(0);
        let barrier = MapVersion(newest.saturating_add(VOTES_AHEAD));
        let stored = Stored { since: now, barrier, is_over: false, done: BTreeMap::new() };
        let batch = batch_of(&stored);
        state.stored = Some(stored);
        Some(batch)
    }

    /// Whether any tree is not back.
    pub fn is_filling(&self) -> bool {
        self.is_filling.load(Ordering::Acquire)
    }

    /// Rules 1 and 3: whether this node's copy of a tree must not be asked.
    pub fn lacks(&self, place: Place) -> bool {
        self.is_filling() && lock(&self.state).lacks(place) && !canary::sings(Canary::LostDiskAnswers)
    }

    /// The same of the range of a storage key.
    pub fn lacks_range(&self, range: Option<(PartitionId, KeyspaceId)>) -> bool {
        range.is_some_and(|(partition, keyspace)| self.lacks(Place { partition, keyspace }))
    }

    /// Rule 4: what a fresh record's stamp must be above; none if that is not known yet.
    pub fn least_stamp(
        &self,
        map: &ClusterMap,
        me: NodeId,
        storage_key: &[u8],
        record: &Record,
    ) -> Option<Stamp> {
        let range = schema::split_range(storage_key).filter(|_| matches!(record, Record::Lww(_)));
        let Some((partition, keyspace)) = range else { return Some(Stamp::default()) };
        let place = Place { partition, keyspace };
        match self.judge(place, &homes_of(map, place), me) {
            Fresh::Take => Some(Stamp::default()),
            Fresh::Above(stamp) => Some(stamp),
            Fresh::NotYet => None,
        }
    }

    /// Rule 4.
    pub fn judge(&self, place: Place, homes: &[NodeId], me: NodeId) -> Fresh {
        if !self.is_filling() {
            return Fresh::Take;
        }
        let state = lock(&self.state);
        if !state.lacks(place) {
            return Fresh::Take;
        }
        let mut floor = Stamp::default();
        for home in homes.iter().filter(|home| **home != me) {
            match state.heard.get(home) {
                Some(heard) => floor = floor.max(heard.clock),
                None => return Fresh::NotYet,
            }
        }
        Fresh::Above(floor)
    }

    /// Rule 5.
    pub fn forgets_requests(&self, now: WallMs) -> bool {
        let state = lock(&self.state);
        let memory = u64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(u64::MAX);
        match &state.stored {
            Some(stored) => now.0 <= stored.since.0.saturating_add(memory),
            None => state.is_told,
        }
    }

    /// Rule 6: the last map version on which this node must not vote.
    pub fn abstains(&self, asked: MapVersion, members: usize) -> Option<MapVersion> {
        let state = lock(&self.state);
        let barrier = match &state.stored {
            Some(stored) => stored.barrier,
            None if state.is_told => MapVersion(u64::MAX),
            None => return None,
        };
        (asked <= barrier && members > 2).then_some(barrier)
    }

    /// The map version that is to be reached, for this node to vote and for its trees to be all.
    pub fn barrier(&self) -> Option<MapVersion> {
        lock(&self.state).stored.as_ref().map(|stored| stored.barrier)
    }

    /// Whether a peer's records of a tree are still to be taken.
    pub fn wants(&self, peer: NodeId, place: Place) -> bool {
        let state = lock(&self.state);
        state.lacks(place) && state.taken.get(&place).is_none_or(|peers| !peers.contains(&peer))
    }

    /// Rule 2: a peer's records of trees have all been taken. What to write, if some are back now, or everything is.
    pub fn taken(&self, peer: NodeId, places: &[Place], map: &ClusterMap, me: NodeId) -> Option<Batch> {
        let mut state = lock(&self.state);
        if !state.is_filling() {
            return None;
        }
        for place in places {
            state.taken.entry(*place).or_default().insert(peer);
        }
        let is_back = |state: &State, place: Place| {
            let mut others = homes_of(map, place).into_iter().filter(|home| *home != me);
            let taken = state.taken.get(&place);
            others.all(|home| taken.is_some_and(|peers| peers.contains(&home)))
        };
        let lacking: Vec<Place> = all_places(map, me).filter(|place| !state.is_done(*place)).collect();
        let (back, rest): (Vec<Place>, Vec<Place>) =
            lacking.into_iter().partition(|place| is_back(&state, *place));
        let is_over = rest.is_empty() && state.is_map_new_enough(map, me);
        for place in &back {
            state.taken.remove(place);
        }
        let stored = state.stored.as_mut()?;
        for place in &back {
            stored.done.entry(place.keyspace).or_default().insert(place.partition);
        }
        if is_over {
            stored.is_over = true;
            stored.done.clear();
        }
        let batch = (is_over || !back.is_empty()).then(|| batch_of(stored));
        let is_filling = state.is_filling();
        drop(state);
        self.is_filling.store(is_filling, Ordering::Release);
        batch
    }

    /// Counts records that came.
    pub fn count(&self, records: u64) {
        lock(&self.state).records += records;
    }

    /// How far it is; none if it is not refilled.
    pub fn view(&self, map: &ClusterMap, me: NodeId) -> Option<RefillView> {
        let state = lock(&self.state);
        if !state.is_filling() {
            return None;
        }
        let mut view = RefillView { records: state.records, ..RefillView::default() };
        for place in all_places(map, me) {
            view.trees += 1;
            if state.is_done(place) {
                view.done += 1;
                continue;
            }
            let taken = state.taken.get(&place);
            let others = homes_of(map, place).into_iter().filter(|home| *home != me);
            view.waits_for.extend(others.filter(|home| taken.is_none_or(|peers| !peers.contains(home))));
        }
        Some(view)
    }

    /// A peer refused, since it is refilled.
    pub fn refused_by(&self, peer: NodeId, now: Mono) {
        lock(&self.others).insert(peer, now);
    }

    /// Whether a peer did so of late: it is asked last.
    pub fn is_asked_last(&self, peer: NodeId, now: Mono) -> bool {
        lock(&self.others).get(&peer).is_some_and(|at| now < *at + ASKED_LAST)
    }
}

#[cfg(test)]
#[path = "refill_tests.rs"]
mod tests;
