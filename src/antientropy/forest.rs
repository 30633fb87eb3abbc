//! All Merkle trees of a node: kept up to date with each write, stored region by region, rebuilt where a crash left
//! them in doubt.
//!
//! A region is stored as its sums, or as "in doubt". Before the first write to a region since it was stored, "in
//! doubt" is written in its place; a while later its sums are ([`Forest::store`]). Storage keeps a prefix of what was
//! written over a crash, so a region that is found with sums has no record that they don't count. One that is found
//! in doubt is rebuilt from its records, which lie side by side, and no other is. A clean stop stores all.
//!
//! The commit thread is the only one that changes anything here, between one write and the next; so sums and records
//! agree whenever it looks. A region is rebuilt in steps, and writes go on meanwhile: behind the place where the
//! rebuild is they count at once, before it they will be found.
//!
//! Invariants:
//! 1. A region that is not in rebuild has the sums of exactly the records that are stored in it.
//! 2. A stored region has sums that are as old as its last write, or says that it is in doubt.
//! 3. Of a tree with a region in rebuild nothing is told.
//!
//! It does not know what a record is: who rebuilds says what the digest of a stored value is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tree::{Item, Node, Region, Salt, Sum, Tree};
use crate::storage::{Batch, Storage, StorageError, Write, schema};
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::time::Mono;
use crate::version::hlc::Stamp;
use crate::version::record::{Change, Summary};

/// Whose tree: one keyspace in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The partition.
    pub partition: PartitionId,
    /// The keyspace.
    pub keyspace: KeyspaceId,
}

/// What is told of a stored value; none if it is damaged.
pub type SummaryOf<'a> = &'a dyn Fn(&[u8], &[u8]) -> Option<Summary>;

/// A region as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum StoredRegion {
    /// Written to since its sums were stored.
    InDoubt,
    /// Its sums.
    Whole(Region),
}

impl StoredRegion {
    fn write(&self, key: Vec<u8>) -> Write {
        // A Vec grows as needed, and a region has no fallible Serialize.
        let body = postcard::to_extend(self, Vec::new()).expect("a Vec takes any region");
        let value = schema::seal(&key, &body);
        Write::Put(key, value)
    }

    /// What is stored; anything that can't be read is in doubt.
    fn read(key: &[u8], value: &[u8]) -> StoredRegion {
        let body = schema::open(key, value).ok();
        match body.map(postcard::take_from_bytes) {
            Some(Ok((StoredRegion::Whole(region), []))) if region.is_sound() => StoredRegion::Whole(region),
            _ => StoredRegion::InDoubt,
        }
    }
}

/// Where the rebuild of a region is.
#[derive(Debug, Clone)]
struct Rebuild {
    at: (Place, u8),
    /// Records before this key are counted.
    next: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// How the trees are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// Trees.
    pub trees: usize,
    /// Records that they count.
    pub items: u64,
    /// Bytes of memory, about.
    pub memory: usize,
    /// Regions that wait for their rebuild.
    pub in_rebuild: usize,
    /// Regions whose stored form says "in doubt".
    pub in_doubt: usize,
}

/// A record of a node of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its fingerprint.
    pub item: Item,
    /// The greatest stamp of its versions.
    pub stamp: Stamp,
    /// Its storage key.
    pub storage_key: Vec<u8>,
}

impl Listed {
    /// Fingerprint of its key alone, as it travels.
    pub fn key_print(&self, salt: Salt) -> u64 {
        key_print(&self.storage_key, salt)
    }
}

/// Fingerprint of a key, as it travels.
pub fn key_print(storage_key: &[u8], salt: Salt) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(storage_key).as_bytes()[..8]);
    salt.mix(u64::from_be_bytes(first))
}

/// All trees of a node.
#[derive(Debug, Default)]
pub struct Forest {
    trees: BTreeMap<Place, Tree>,
    /// Regions whose stored form says "in doubt".
    in_doubt: BTreeSet<(Place, u8)>,
    /// Of those, the ones whose sums are right, in the order in which they were first written to.
    to_store: VecDeque<(Mono, Place, u8)>,
    /// Of those, the ones whose sums are not known.
    in_rebuild: BTreeSet<(Place, u8)>,
    rebuild: Option<Rebuild>,
}

fn split(storage_key: &[u8]) -> Option<(Place, u16)> {
    let (partition, keyspace, slot) = schema::split_slot(storage_key)?;
    Some((Place { partition, keyspace }, slot))
}

impl Forest {
    /// Reads what is stored. Regions in doubt wait for their rebuild.
    pub fn load(storage: &dyn Storage) -> Result<Forest, StorageError> {
        let mut forest = Forest::default();
        let from = [schema::REGION_TAG];
        let to = [schema::REGION_TAG + 1];
        storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, value| {
            let Some((partition, keyspace, number)) = schema::split_region_key(key) else { return true };
            let place = Place { partition, keyspace };
            match StoredRegion::read(key, value) {
                StoredRegion::Whole(region) => {
                    *forest.trees.entry(place).or_default().region_mut(number) = region;
                }
                StoredRegion::InDoubt => {
                    forest.in_doubt.insert((place, number));
                    forest.in_rebuild.insert((place, number));
                }
            }
            true
        })?;
        Ok(forest)
    }

    /// What must be written before a write to the record under `storage_key`; none if it is written already.
    pub fn before_write(&self, storage_key: &[u8]) -> Option<Write> {
        let (place, slot) = split(storage_key)?;
        let number = Region::of_slot(slot);
        if self.in_doubt.contains(&(place, number)) {
            return None;
        }
        Some(StoredRegion::InDoubt.write(schema::region_key(place.partition, place.keyspace, number)))
    }

    /// A record was written, and before it what [`Forest::before_write`] said.
    pub fn written(&mut self, now: Mono, storage_key: &[u8], change: Change) {
        let Some((place, slot)) = split(storage_key) else { return };
        let number = Region::of_slot(slot);
        if self.in_doubt.insert((place, number)) {
            self.to_store.push_back((now, place, number));
        }
        if self.in_rebuild.contains(&(place, number)) && !self.is_counted(place, number, storage_key) {
            return;
        }
        let item = |digest| Item::of(storage_key, digest);
        let region = self.trees.entry(place).or_default().region_mut(number);
        region.change(slot, change.before.map(item), change.after.map(item));
    }

    /// A record was written over one whose digest is not known: its region has to be rebuilt.
    pub fn written_blindly(&mut self, storage_key: &[u8]) {
        let Some((place, slot)) = split(storage_key) else { return };
        self.doubt(place, Region::of_slot(slot));
    }

    fn doubt(&mut self, place: Place, number: u8) {
        self.in_doubt.insert((place, number));
        self.to_store.retain(|(_, p, n)| (*p, *n) != (place, number));
        self.in_rebuild.insert((place, number));
        if self.rebuild.as_ref().is_some_and(|rebuild| rebuild.at == (place, number)) {
            self.rebuild = None;
        }
    }

    /// Whether the rebuild of a region is past a key of it.
    fn is_counted(&self, place: Place, number: u8, storage_key: &[u8]) -> bool {
        let rebuild = self.rebuild.as_ref().filter(|rebuild| rebuild.at == (place, number));
        rebuild.is_some_and(|rebuild| storage_key < rebuild.next.as_slice())
    }

    /// Counts up to `most` records of the regions that wait for their rebuild.
    pub fn rebuild(
        &mut self,
        now: Mono,
        storage: &dyn Storage,
        summary_of: SummaryOf,
        most: usize,
    ) -> Result<(), StorageError> {
        let mut left = most;
        while left > 0 {
            let Some(mut rebuild) = self.next_rebuild() else { return Ok(()) };
            let (place, number) = rebuild.at;
            let region = self.trees.entry(place).or_default().region_mut(number);
            let to = rebuild.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut next = None;
            storage.scan(Bound::Included(&rebuild.next), to, false, &mut |key, value| {
                if left == 0 {
                    next = Some(key.to_vec());
                    return false;
                }
                left -= 1;
                if let (Some((_, _, slot)), Some(summary)) = (schema::split_slot(key), summary_of(key, value))
                {
                    region.change(slot, None, Some(Item::of(key, summary.digest)));
                }
                true
            })?;
            match next {
                Some(next) => {
                    rebuild.next = next;
                    self.rebuild = Some(rebuild);
                }
                None => {
                    // An empty region costs a look, so that many of them are no free lunch.
                    left = left.saturating_sub(1);
                    self.in_rebuild.remove(&(place, number));
                    self.to_store.push_back((now, place, number));
                }
            }
        }
        Ok(())
    }

    /// The rebuild under way, or the next one, begun.
    fn next_rebuild(&mut self) -> Option<Rebuild> {
        if let Some(rebuild) = self.rebuild.take() {
            return Some(rebuild);
        }
        let (place, number) = *self.in_rebuild.first()?;
        *self.trees.entry(place).or_default().region_mut(number) = Region::default();
        let (from, end) = schema::slot_range(place.partition, place.keyspace, Region::slots(number));
        Some(Rebuild { at: (place, number), next: from, end })
    }

    /// What stores up to `most` of the regions that have been in doubt since `before`, and which they are.
    pub fn store(&self, before: Mono, most: usize) -> (Batch, usize) {
        let mut batch = Batch::new();
        let due = self.to_store.iter().take(most).take_while(|(since, ..)| *since <= before);
        let mut count = 0;
        for (_, place, number) in due {
            let key = schema::region_key(place.partition, place.keyspace, *number);
            let region = self.trees.get(place).and_then(|tree| tree.region(*number));
            match region.filter(|region| region.items() > 0) {
                Some(region) => batch.writes.push(StoredRegion::Whole(region.clone()).write(key)),
                None => batch.delete(key),
            }
            count += 1;
        }
        (batch, count)
    }

    /// What [`Forest::store`] gave has been written.
    pub fn stored(&mut self, count: usize) {
        for (_, place, number) in self.to_store.drain(..count) {
            self.in_doubt.remove(&(place, number));
        }
    }

    /// Forgets the trees of some keyspaces; what deletes their stored form.
    pub fn forget(&mut self, is_gone: impl Fn(KeyspaceId) -> bool) -> Batch {
        let mut batch = Batch::new();
        let places: BTreeSet<Place> =
            self.trees.keys().chain(self.in_doubt.iter().map(|(place, _)| place)).copied().collect();
        for place in places.into_iter().filter(|place| is_gone(place.keyspace)) {
            self.trees.remove(&place);
            self.in_doubt.retain(|(p, _)| *p != place);
            self.in_rebuild.retain(|(p, _)| *p != place);
            self.to_store.retain(|(_, p, _)| *p != place);
            self.rebuild.take_if(|rebuild| rebuild.at.0 == place);
            for number in 0..1 << super::tree::REGION_BITS {
                batch.delete(schema::region_key(place.partition, place.keyspace, number));
            }
        }
        batch
    }

    /// Whether nothing of a tree waits for its rebuild.
    pub fn is_whole(&self, place: Place) -> bool {
        self.in_rebuild.range((place, 0)..=(place, u8::MAX)).next().is_none()
    }

    /// Sum and items of a tree; none while a part of it is in rebuild.
    pub fn root(&self, place: Place) -> Option<(Sum, u64)> {
        if !self.is_whole(place) {
            return None;
        }
        Some(self.trees.get(&place).map_or((Sum::default(), 0), |tree| (tree.sum(Node::ROOT), tree.items())))
    }

    /// The sum of a node that is no bucket; none while a part of the tree is in rebuild.
    pub fn sum(&self, place: Place, node: Node) -> Option<Sum> {
        self.is_whole(place).then(|| self.trees.get(&place).map_or(Sum::default(), |tree| tree.sum(node)))
    }

    /// The sums of a node's children, in order; none while a part of the tree is in rebuild. Those of a leaf are made
    /// from the records, see [`super::records`].
    pub fn children(&self, place: Place, node: Node) -> Option<Vec<Sum>> {
        if !self.is_whole(place) || node.is_leaf() {
            return None;
        }
        let tree = self.trees.get(&place);
        Some(node.children().map(|child| tree.map_or(Sum::default(), |tree| tree.sum(child))).collect())
    }

    /// Places that have a tree.
    pub fn places(&self) -> Vec<Place> {
        self.trees.keys().copied().collect()
    }

    /// How the trees are.
    pub fn health(&self) -> Health {
        Health {
            trees: self.trees.len(),
            items: self.trees.values().map(Tree::items).sum(),
            memory: self.trees.values().map(Tree::memory).sum::<usize>()
                + self.in_doubt.len() * size_of::<(Place, u8)>() * 2
                + self.to_store.len() * size_of::<(Mono, Place, u8)>(),
            in_rebuild: self.in_rebuild.len(),
            in_doubt: self.in_doubt.len(),
        }
    }
}

/// How long a region stays in doubt before its sums are stored: many writes share one mark and one store.
pub const STORE_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
#[path = "forest_tests.rs"]
mod tests;
