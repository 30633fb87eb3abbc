//! G7 and F23: what all nodes hold in the end, compared by digest; and what is watched as it goes on.
//!
//! Where there is no anti-entropy keys converge when they are read: a scenario's calm reads every key from all
//! its replicas through every node, and then the *whole* store of every node is compared, with records that
//! lie where they have no home, and keys that nobody asked for. Where there is, that is done before any is read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use quoral::hinted::queue::{self, Hint};
use quoral::replica::stored;
use quoral::ring::layout::ClusterMap;
use quoral::ring::preflist::homes;
use quoral::storage::{Storage, schema};
use quoral::types::ids::{MapVersion, NodeId};
use quoral::types::time::WallMs;
use quoral::version::codec;

use super::Finding;
use crate::history::Creation;

/// What one node holds: a digest for each storage key of a record, or what is wrong with it.
pub type Holding = BTreeMap<Vec<u8>, Result<String, String>>;

/// Reads all records of a node.
pub fn holding(storage: &dyn Storage) -> Holding {
    let mut found = Holding::new();
    let from = [schema::RECORD_TAG];
    let to = schema::prefix_end(&from).expect("it is not the last byte");
    let visited = storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, value| {
        let digest =
            stored::split(key, value).map(|(_, record)| blake3::hash(record).to_hex()[..16].to_owned());
        found.insert(key.to_vec(), digest.map_err(|error| error.to_string()));
        true
    });
    visited.expect("memory can be read");
    found
}

/// G7: all home replicas of each key hold the same bytes, and no other node holds any.
pub fn g7_converges(map: &ClusterMap, nodes: &[(NodeId, Holding)]) -> Vec<Finding> {
    let keys: BTreeSet<&Vec<u8>> = nodes.iter().flat_map(|(_, holding)| holding.keys()).collect();
    let mut wrong = Vec::new();
    for storage_key in keys {
        let Some((partition, keyspace, key)) = schema::split_record_key(storage_key) else {
            wrong.push(Finding::new("G7", format!("not the key of a record: {storage_key:?}")));
            continue;
        };
        let Some(keyspace) = map.keyspace_by_id(keyspace) else {
            wrong.push(Finding::new("G7", format!("a record of keyspace {keyspace}, which nobody knows")));
            continue;
        };
        let homes = homes(map, keyspace, partition);
        let held =
            |node: &NodeId| nodes.iter().find(|(id, _)| id == node).and_then(|(_, h)| h.get(storage_key));
        let distinct: BTreeSet<_> = homes.iter().map(held).collect();
        let strays =
            nodes.iter().filter(|(id, holding)| !homes.contains(id) && holding.contains_key(storage_key));
        let name = String::from_utf8_lossy(key.partition_key()).into_owned();
        let place = Some((keyspace.name.clone(), name));
        let finding = |text: String| Finding { rule: "G7", text, place: place.clone(), guilty: Vec::new() };
        if distinct.len() > 1 || distinct.iter().any(|held| matches!(held, Some(Err(_)))) {
            let all: Vec<_> = homes.iter().map(|node| (node, held(node))).collect();
            wrong.push(finding(format!("the replicas of {place:?} differ: {all:?}")));
        }
        wrong.extend(strays.map(|(id, _)| finding(format!("{place:?} is on {id}, which is no home of it"))));
    }
    wrong
}

/// G5: what is dead and stored yet, on one node.
pub fn g5_purged(node: NodeId, storage: &dyn Storage, now: WallMs) -> Vec<Finding> {
    let mut left = Vec::new();
    let from = [schema::RECORD_TAG];
    let to = schema::prefix_end(&from).expect("it is not the last byte");
    let visited = storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, value| {
        let since = stored::decode(key, value).ok().and_then(|stored| stored.record.dead_since());
        if let (Some(since), Some((_, keyspace, key))) =
            (since.filter(|since| *since <= now), schema::split_record_key(key))
        {
            let name = String::from_utf8_lossy(key.partition_key()).into_owned();
            let for_ms = now.0 - since.0;
            let text = format!(
                "{node} still has {name} of keyspace {keyspace}, which has been dead for {for_ms} ms"
            );
            left.push(Finding::new("G5", text));
        }
        true
    });
    visited.expect("memory can be read");
    left
}

/// F23: the cluster map that a node acts on is never an older one than before, over restarts too.
#[derive(Default)]
pub struct MapWatch(BTreeMap<NodeId, MapVersion>);

impl MapWatch {
    /// Notes what a node acts on now.
    pub fn saw(&mut self, node: NodeId, version: MapVersion) -> Option<Finding> {
        let before = self.0.insert(node, version).filter(|before| *before > version)?;
        Some(Finding::new("F23", format!("node {node} went back from map {before} to {version}")))
    }

    /// Forgets what a node had: its disk is lost.
    pub fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

/// G7: a hint that is no longer in its log has come home: its target holds it, before any read repairs that.
#[derive(Default)]
pub struct HintWatch {
    logs: BTreeMap<NodeId, BTreeMap<Vec<u8>, Hint>>,
    /// What came home to these may be gone with their disks.
    lost: BTreeSet<NodeId>,
}

impl HintWatch {
    /// Looks at the log of `keeper`; `disk` is the disk of a node, and `is_over` says of a hint that it may be gone: it
    /// is too old, or its keyspace was dropped, and nobody holds it any more.
    pub fn saw<'a>(
        &mut self,
        keeper: NodeId,
        log: &dyn Storage,
        disk: impl Fn(NodeId) -> Option<&'a dyn Storage>,
        is_over: impl Fn(&Hint) -> bool,
    ) -> Vec<Finding> {
        let known = self.logs.entry(keeper).or_default();
        let (from, to) = schema::hint_range(None);
        let mut keys = BTreeSet::new();
        let visited = log.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, _| {
            keys.insert(key.to_vec());
            true
        });
        visited.expect("memory can be read");
        for key in keys.iter().filter(|key| !known.contains_key(*key)).cloned().collect::<Vec<_>>() {
            let Some((target, seq)) = schema::split_hint_key(&key) else { continue };
            let page = queue::page(log, target, seq - 1, 1, u64::MAX).expect("memory can be read");
            page.hints.into_iter().for_each(|hint| drop(known.insert(key.clone(), hint)));
        }
        let gone: Vec<Vec<u8>> = known.keys().filter(|key| !keys.contains(*key)).cloned().collect();
        let mut wrong = Vec::new();
        for key in gone {
            let (hint, target) = (known.remove(&key), schema::split_hint_key(&key).map(|(target, _)| target));
            let (Some(hint), Some(target)) = (hint, target) else { continue };
            let is_lost = self.lost.contains(&target);
            if !is_lost && !is_over(&hint) && !disk(target).is_some_and(|disk| holds(disk, &hint)) {
                let text = format!("{keeper} forgot a hint that {target} does not hold, number {}", hint.seq);
                wrong.push(Finding::new("G7", text));
            }
        }
        wrong
    }

    /// Forgets what was seen of a log: its node has crashed, and what was not synced is gone.
    pub fn forget(&mut self, keeper: NodeId) {
        self.logs.remove(&keeper);
    }

    /// The disk of a node is lost.
    pub fn lost(&mut self, target: NodeId) {
        self.lost.insert(target);
    }
}

/// Whether a disk holds all that is in a hint, or what replaced it.
fn holds(disk: &dyn Storage, hint: &Hint) -> bool {
    let (Ok(Some(held)), Ok(record)) =
        (stored::load(disk, &hint.storage_key), codec::decode_record(&hint.record))
    else {
        return false;
    };
    let mut merged = held.record;
    merged.merge(&record) == Ok(false)
}

/// F23: one cluster map everywhere, and in it every keyspace that a client was told of, as it was asked for.
pub fn f23_one_map(maps: &[(NodeId, ClusterMap)], creations: &[Creation]) -> Vec<Finding> {
    let Some((_, map)) = maps.iter().max_by_key(|(_, map)| map.version) else { return Vec::new() };
    let mut wrong = Vec::new();
    for (node, other) in maps.iter().filter(|(_, other)| other != map) {
        let (theirs, newest) = (other.version, map.version);
        wrong.push(Finding::new("F23", format!("node {node} holds another map: {theirs}, not {newest}")));
    }
    for creation in creations {
        let Some(id) = creation.made else { continue };
        let found = map.keyspace(&creation.space.name).filter(|found| {
            let wanted = &creation.space;
            found.id.0 == id
                && (found.conflicts, found.n, found.r, found.w)
                    == (wanted.conflicts, wanted.n, wanted.r, wanted.w)
        });
        if found.is_none() {
            wrong.push(Finding::new("F23", format!("not in the map: {creation:?}")));
        }
    }
    wrong
}
