//! The records of a node of a tree, read from storage.
//!
//! All sort keys of a partition key are in one leaf, so a leaf can be hundreds of megabytes, and an exchange asks for each
//! of its 256 buckets several times. What was read of such a leaf is therefore kept for a while ([`Leaves`]): not the
//! values, but what trees and lists are made of. The leaf's own sum says whether it is still so.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::forest::{Listed, Place, SummaryOf};
use super::tree::{Item, Node, Sum, buckets};
use crate::storage::{Storage, StorageError, schema};
use crate::types::time::Mono;

/// Leaves that are kept.
const KEPT: usize = 2;
/// Records of a leaf that is kept at the most: some 20 MB. Of a larger one each bucket is read by itself.
const KEPT_RECORDS: usize = 200_000;
/// How long a leaf is kept.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// Where the records of a tree are.
pub trait Records {
    /// Calls `take` for each record of a node until it returns false. Damaged ones are left out, so that the other side
    /// sends its own.
    fn each(
        &self,
        place: Place,
        node: Node,
        take: &mut dyn FnMut(&Listed) -> bool,
    ) -> Result<(), StorageError>;

    /// The same for a leaf of which the parts will be asked for.
    fn each_of_leaf(
        &self,
        place: Place,
        leaf: Node,
        take: &mut dyn FnMut(&Listed) -> bool,
    ) -> Result<(), StorageError> {
        self.each(place, leaf, take)
    }
}

/// Those of a storage, read each time.
pub struct Stored<'a> {
    /// The storage.
    pub storage: &'a dyn Storage,
    /// What is told of a stored value.
    pub summary_of: SummaryOf<'a>,
}

impl Records for Stored<'_> {
    fn each(
        &self,
        place: Place,
        node: Node,
        take: &mut dyn FnMut(&Listed) -> bool,
    ) -> Result<(), StorageError> {
        let (from, to) = schema::slot_range(place.partition, place.keyspace, node.slots());
        let to = to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.storage.scan(Bound::Included(&from), to, false, &mut |key, value| {
            let told = (self.summary_of)(key, value).map(|told| (Item::of(key, told.digest), told.stamp));
            match told.filter(|(item, _)| node.has(*item)) {
                Some((item, stamp)) => take(&Listed { item, stamp, storage_key: key.to_vec() }),
                None => true,
            }
        })
    }
}

/// What was read of some large leaves.
#[derive(Debug)]
pub struct Leaves {
    kept: Mutex<VecDeque<Kept>>,
    /// Records of one at the most.
    most: usize,
}

impl Default for Leaves {
    fn default() -> Leaves {
        Leaves::of(KEPT_RECORDS)
    }
}

#[derive(Debug, Clone)]
struct Kept {
    at: (Place, Node),
    /// The leaf's sum before it was read and after; none if that was not one.
    sum: Option<Sum>,
    since: Mono,
    /// None if there are too many: a write or two don't change that, and it is not tried again for a while.
    records: Option<Arc<Vec<Listed>>>,
}

/// Those of a storage, with what is kept of large leaves.
pub struct Remembered<'a> {
    /// The storage.
    pub stored: Stored<'a>,
    /// What is kept.
    pub leaves: &'a Leaves,
    /// A leaf's sum now.
    pub sum: &'a dyn Fn(Place, Node) -> Option<Sum>,
    /// The time.
    pub now: Mono,
    /// Whether a leaf that was written to since it was read will do: who only looks up where a record is reads that anew.
    pub old_will_do: bool,
}

impl Remembered<'_> {
    fn leaf(&self, place: Place, leaf: Node) -> Result<Option<Arc<Vec<Listed>>>, StorageError> {
        let at = (place, leaf);
        let sum = (self.sum)(place, leaf);
        let is_good = |kept: &Kept| {
            kept.at == at
                && self.now < kept.since + KEPT_FOR
                && (self.old_will_do || kept.records.is_none() || (sum.is_some() && kept.sum == sum))
        };
        if let Some(kept) = self.leaves.kept().iter().find(|kept| is_good(kept)) {
            return Ok(kept.records.clone());
        }
        let mut records = Vec::new();
        self.stored.each(place, leaf, &mut |record| {
            records.push(record.clone());
            records.len() <= self.leaves.most
        })?;
        let records = (records.len() <= self.leaves.most).then(|| Arc::new(records));
        let sum = sum.filter(|before| (self.sum)(place, leaf) == Some(*before));
        let mut all = self.leaves.kept();
        all.retain(|kept| kept.at != at && self.now < kept.since + KEPT_FOR);
        all.truncate(KEPT - 1);
        all.push_front(Kept { at, sum, since: self.now, records: records.clone() });
        Ok(records)
    }
}

impl Leaves {
    /// Leaves of so many records at the most.
    fn of(most: usize) -> Leaves {
        Leaves { kept: Mutex::default(), most }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records for Remembered<'_> {
    fn each(
        &self,
        place: Place,
        node: Node,
        take: &mut dyn FnMut(&Listed) -> bool,
    ) -> Result<(), StorageError> {
        let kept = node.leaf_above().map(|leaf| self.leaf(place, leaf)).transpose()?.flatten();
        let Some(records) = kept else { return self.stored.each(place, node, take) };
        let _ = records.iter().filter(|record| node.has(record.item)).all(take);
        Ok(())
    }

    fn each_of_leaf(
        &self,
        place: Place,
        leaf: Node,
        take: &mut dyn FnMut(&Listed) -> bool,
    ) -> Result<(), StorageError> {
        let Some(records) = self.leaf(place, leaf)? else { return self.stored.each(place, leaf, take) };
        let _ = records.iter().all(take);
        Ok(())
    }
}

/// The records of a node; none if there are more than `most`.
pub fn list(
    records: &dyn Records,
    place: Place,
    node: Node,
    most: usize,
) -> Result<Option<Vec<Listed>>, StorageError> {
    let mut listed = Vec::new();
    records.each(place, node, &mut |record| {
        listed.push(record.clone());
        listed.len() <= most
    })?;
    Ok((listed.len() <= most).then_some(listed))
}

/// The sums of the children of a leaf.
pub fn leaf_children(records: &dyn Records, place: Place, leaf: Node) -> Result<Vec<Sum>, StorageError> {
    let mut items = Vec::new();
    records.each_of_leaf(place, leaf, &mut |record| {
        items.push(record.item);
        true
    })?;
    Ok(buckets(leaf, items.into_iter()))
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
