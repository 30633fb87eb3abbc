//! What the commit thread does about damaged records: sets them aside, and restores their places
//! (`replica::quarantine`).
//!
//! A new write replaces a damaged record where that was the only replica, of an `lww` keyspace: its stamp is above all
//! that this node has made or acknowledged, so whatever the record held it supersedes. Elsewhere it might be a replica's
//! only copy of a version that others lack, or of siblings, and the write is refused here.

use std::collections::BTreeSet;

use super::{Committer, Shared, load_cause, lock, mint_cause};
use crate::antientropy::forest::Place as TreeOf;
use crate::replica::mint::{self, Mint, Minted};
use crate::replica::quarantine::{self, Healing};
use crate::replica::stored::{self, LoadError, Place};
use crate::storage::{Batch, Write, schema};
use crate::types::error::Cause;
use crate::types::limits::QUARANTINE_WAITING;
use crate::types::policy::Conflicts;
use crate::version::record::{Record, Summary};

/// What became of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It is sound again.
    Healed,
    /// It was sound, or there is nothing any more.
    NotDamaged,
    /// It waits.
    Waits,
}

impl Committer {
    /// Notes that the record under `storage_key` can't be read, if that is what `error` says: it will be set aside.
    pub fn suspect(&self, storage_key: &[u8], error: &LoadError) {
        if let LoadError::Damaged(_) = error {
            self.shared.suspect(storage_key);
        }
    }

    /// What is told of a stored record; none if it is damaged, which is noted.
    pub fn summary_of(&self, storage_key: &[u8], value: &[u8]) -> Option<Summary> {
        self.shared.summary_of(storage_key, value)
    }

    /// Those that were noted since the last time.
    pub fn take_suspects(&self) -> BTreeSet<Vec<u8>> {
        std::mem::take(&mut *lock(&self.shared.suspects))
    }

    /// Returns when there is something to take, or at once if there was since the last call.
    pub async fn suspected(&self) {
        self.shared.suspected.notified().await;
    }

    /// Places that wait to be healed.
    pub fn waiting(&self) -> BTreeSet<Vec<u8>> {
        lock(&self.shared.quarantine).waiting().clone()
    }

    /// Of those, some of which a version has come to this node since the last time.
    pub fn take_renewed(&self) -> BTreeSet<Vec<u8>> {
        std::mem::take(&mut *lock(&self.shared.renewed))
    }

    /// The trees in which places wait to be healed.
    pub fn damaged_trees(&self) -> BTreeSet<TreeOf> {
        let quarantine = lock(&self.shared.quarantine);
        let tree = |key: &Vec<u8>| {
            schema::split_range(key).map(|(partition, keyspace)| TreeOf { partition, keyspace })
        };
        quarantine.waiting().iter().filter_map(tree).collect()
    }

    /// How many places wait to be healed, and how many records are in quarantine.
    pub fn damaged(&self) -> (usize, usize) {
        let quarantine = lock(&self.shared.quarantine);
        (quarantine.waiting().len(), quarantine.records())
    }

    /// Sets a record aside if it is damaged, and its place waits for its healing. Whether it does.
    pub async fn set_aside(&self, storage_key: Vec<u8>) -> Result<bool, Cause> {
        self.ask(|done| super::Job::SetAside(storage_key, done)).await
    }

    /// Restores a place from what the other replicas hold.
    pub async fn restore(&self, storage_key: Vec<u8>, held: Vec<Record>) -> Result<Restored, Cause> {
        self.ask(|done| super::Job::Restore(storage_key, held, done)).await
    }
}

impl Shared {
    pub(super) fn suspect(&self, storage_key: &[u8]) {
        if lock(&self.quarantine).waiting().contains(storage_key) {
            return;
        }
        let mut suspects = lock(&self.suspects);
        if suspects.len() < QUARANTINE_WAITING && suspects.insert(storage_key.to_vec()) {
            self.suspected.notify_one();
        }
    }

    /// A version of a damaged record has come, so there is one somewhere.
    pub(super) fn version_came(&self, storage_key: &[u8]) {
        if lock(&self.quarantine).waiting().contains(storage_key) {
            lock(&self.renewed).insert(storage_key.to_vec());
        }
    }

    /// Whether a write supersedes whatever its place has held.
    fn supersedes_all(&self, write: &Mint) -> bool {
        let map = self.map.borrow();
        let keyspace = schema::split_range(&write.storage_key).and_then(|(_, id)| map.keyspace_by_id(id));
        let is_alone = keyspace.is_some_and(|keyspace| keyspace.n == 1);
        is_alone && write.conflicts == Conflicts::Lww && !write.stands_in
    }

    /// Mints in the place of a damaged record, or refuses to, for `why` it can't be read.
    pub(super) fn mint_onto_damaged(
        &self,
        why: String,
        write: &Mint,
        wrote: &mut bool,
    ) -> Result<Minted, Cause> {
        let refused = load_cause(&LoadError::Damaged(why));
        if !self.supersedes_all(write) {
            self.suspect(&write.storage_key);
            return Err(refused);
        }
        self.set_aside(&write.storage_key, wrote)?;
        let place = stored::place(&*self.storage, &write.storage_key).map_err(|error| load_cause(&error))?;
        // A newer release may have written it.
        let Place::Damaged(damage) = place else { return Err(refused) };
        let since = damage.since.map(|since| since.stamp()).unwrap_or_default();
        let write = Mint { above: write.above.max(since), ..write.clone() };
        let minted = {
            let mut minter = lock(&self.minter);
            mint::mint_onto(None, &mut minter, self.clock.wall(), &write)
        };
        let minted = self.write_minted(&write.storage_key, minted.map_err(mint_cause)?, wrote)?;
        tracing::warn!(key = ?write.storage_key, "a damaged record, the only copy, is replaced by a new write");
        // The write is made, whether that can be noted or not.
        if let Err(cause) = self.note_sound(&write.storage_key, Some("a new write replaced it"), wrote) {
            tracing::warn!(?cause, "what became of a damaged record can't be noted");
        }
        Ok(minted)
    }

    /// Notes that a place is sound again.
    fn note_sound(&self, storage_key: &[u8], how: Option<&str>, wrote: &mut bool) -> Result<(), Cause> {
        let told = lock(&self.quarantine).healed(&*self.storage, storage_key, self.clock.wall(), how);
        self.show_waiting();
        let writes = told.map_err(|error| Cause::Storage(error.to_string()))?;
        if writes.is_empty() { Ok(()) } else { self.write(&Batch { writes }, wrote) }
    }

    pub(super) fn summary_of(&self, storage_key: &[u8], value: &[u8]) -> Option<Summary> {
        match stored::decode(storage_key, value) {
            Ok(stored) => Some(stored.record.summary()),
            Err(_) => {
                self.suspect(storage_key);
                None
            }
        }
    }

    pub(super) fn show_waiting(&self) {
        let (waiting, not_kept) = {
            let quarantine = lock(&self.quarantine);
            (quarantine.waiting().len(), quarantine.not_kept())
        };
        self.metrics.scrub.damaged.set(u64::try_from(waiting).unwrap_or(u64::MAX));
        self.metrics.scrub.not_kept.set(u64::try_from(not_kept).unwrap_or(u64::MAX));
    }

    /// Writes the mark of a place that is found damaged only now, and what was found.
    pub(super) fn quarantine(
        &self,
        storage_key: &[u8],
        (why, found): (&str, &[u8]),
        mark: Vec<Write>,
        wrote: &mut bool,
    ) -> Result<(), Cause> {
        let mut writes = lock(&self.quarantine).add(storage_key, self.clock.wall(), why, found);
        writes.extend(mark);
        let mut forest = lock(&self.forest);
        // What the tree had for it is not known.
        writes.splice(0..0, forest.before_write(storage_key));
        self.write(&Batch { writes }, wrote)?;
        forest.written_blindly(storage_key);
        drop(forest);
        self.metrics.scrub.quarantined.inc();
        self.show_waiting();
        tracing::error!(key = ?storage_key, why, "a damaged record is set aside, and waits for its replicas");
        Ok(())
    }

    pub(super) fn set_aside(&self, storage_key: &[u8], wrote: &mut bool) -> Result<bool, Cause> {
        let place = stored::place(&*self.storage, storage_key).map_err(|error| load_cause(&error))?;
        let Place::Damaged(damage) = place else { return Ok(false) };
        if let Some(found) = &damage.found {
            let mark = vec![quarantine::mark(storage_key, None)];
            self.quarantine(storage_key, (&damage.why, found), mark, wrote)?;
        } else {
            lock(&self.quarantine).wait_for(storage_key);
            self.show_waiting();
        }
        Ok(true)
    }

    pub(super) fn restore(
        &self,
        storage_key: &[u8],
        held: &[Record],
        wrote: &mut bool,
    ) -> Result<Restored, Cause> {
        let place = stored::place(&*self.storage, storage_key).map_err(|error| load_cause(&error))?;
        if matches!(&place, Place::Damaged(damage) if damage.found.is_some()) {
            // The mark has been damaged meanwhile: what was asked for was asked too early.
            self.set_aside(storage_key, wrote)?;
            return Ok(Restored::Waits);
        }
        let healing = quarantine::heal(&*self.storage, storage_key, held);
        let restored = match healing.map_err(|error| load_cause(&error))? {
            Healing::NoVersion => return Ok(Restored::Waits),
            Healing::NotDamaged => Restored::NotDamaged,
            Healing::Restored(mut batch, change) => {
                self.write_record(storage_key, &mut batch, Some(change), wrote)?;
                self.metrics.scrub.healed.inc();
                tracing::info!(key = ?storage_key, "a damaged record is healed");
                Restored::Healed
            }
        };
        self.note_sound(storage_key, None, wrote)?;
        Ok(restored)
    }
}
