//! Records that were found damaged: set aside, and healed from the other home replicas.
//!
//! The bytes go to a range of keys of their own, for people to look at. At the record's place stays a mark: the place is
//! answered as damaged, not as empty, so it counts in no quorum. Whatever replicas and hints bring meanwhile is kept
//! with the mark, so that it is not lost. The place is sound again when every other home replica has said what it holds
//! (`replica::heal`): then it has the merge of all of that, and of what came meanwhile.
//!
//! Invariants:
//! 1. A place that was damaged is answered only with what all other home replicas held, or knew to be damaged, after
//!    the damage was found. So it lacks nothing that another replica could give.
//! 2. A healed record has no local mark, so its node begins a new line of dots.
//! 3. What is kept for people is bounded: the oldest that are healed go first, then new ones keep no bytes.
//!
//! A place of which nobody has a version can be given up ([`give_up`]), by an operator who says so: no machine does.
//!
//! Caveat: more than so many places wait at a time, the rest are found again by the next reader, or pass of the scrub.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::stored::{self, Damage, LoadError, Place};
use crate::storage::schema;
use crate::storage::{Batch, Storage, StorageError, Write};
use crate::types::limits::{
    QUARANTINE_BYTES, QUARANTINE_ENTRIES, QUARANTINE_RECORD_BYTES, QUARANTINE_WAITING,
};
use crate::types::time::WallMs;
use crate::version::codec;
use crate::version::record::{Change, Record};

/// What is kept of a damaged record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was found.
    pub found_at: WallMs,
    /// What was wrong.
    pub why: String,
    /// How many bytes were there.
    pub bytes: u64,
    /// The first of them.
    pub found: Vec<u8>,
    /// When its place was sound again.
    pub healed_at: Option<WallMs>,
}

impl Entry {
    fn write(&self, storage_key: &[u8]) -> Write {
        let key = schema::quarantine_key(storage_key);
        // A Vec grows as needed, and an entry has no fallible Serialize.
        let body = postcard::to_extend(self, Vec::new()).expect("a Vec takes any entry");
        let value = schema::seal(&key, &body);
        Write::Put(key, value)
    }

    /// From what is stored under `key`; what is wrong if it can't be read.
    pub fn read(key: &[u8], value: &[u8]) -> Result<Entry, String> {
        let body = schema::open(key, value).map_err(|damaged| damaged.to_string())?;
        match postcard::take_from_bytes(body) {
            Ok((entry, [])) => Ok(entry),
            _ => Err("not what is kept of a damaged record".into()),
        }
    }
}

/// Takes a storage key, and the entry about it or what is wrong with that.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], Result<Entry, String>);

/// Calls `visit` with each entry in quarantine, or what is wrong with it, by storage key.
pub fn visit(storage: &dyn Storage, visit: Visit<'_>) -> Result<(), StorageError> {
    let (from, to) = ([schema::QUARANTINE_TAG], [schema::QUARANTINE_TAG + 1]);
    storage.scan(Bound::Included(&from), Bound::Excluded(&to), false, &mut |key, value| {
        if let Some(storage_key) = schema::split_quarantine_key(key) {
            visit(storage_key, Entry::read(key, value));
        }
        true
    })
}

#[derive(Debug, Clone, Copy)]
struct Line {
    found_at: WallMs,
    bytes: u64,
    is_healed: bool,
}

/// What is in quarantine, and which places wait to be healed.
#[derive(Debug, Default)]
pub struct Quarantine {
    lines: BTreeMap<Vec<u8>, Line>,
    bytes: u64,
    waiting: BTreeSet<Vec<u8>>,
}

impl Quarantine {
    /// What is stored.
    pub fn load(storage: &dyn Storage) -> Result<Quarantine, StorageError> {
        let mut quarantine = Quarantine::default();
        visit(storage, &mut |storage_key, entry| {
            // One that can't be read waits: a look at its place tells.
            let entry = entry.ok();
            let is_healed = entry.as_ref().is_some_and(|entry| entry.healed_at.is_some());
            let bytes = entry.as_ref().map_or(0, |entry| entry.found.len() as u64);
            let found_at = entry.map_or(WallMs(0), |entry| entry.found_at);
            quarantine.note(storage_key, Line { found_at, bytes, is_healed });
            if !is_healed {
                quarantine.wait_for(storage_key);
            }
        })?;
        Ok(quarantine)
    }

    /// Places that wait to be healed.
    pub fn waiting(&self) -> &BTreeSet<Vec<u8>> {
        &self.waiting
    }

    /// How many records are in quarantine, or wait and found no room in it.
    pub fn records(&self) -> usize {
        self.lines.len() + self.not_kept()
    }

    /// How many wait and found no room in quarantine.
    pub fn not_kept(&self) -> usize {
        let kept = self.lines.iter().filter(|(key, line)| !line.is_healed && self.waiting.contains(*key));
        self.waiting.len() - kept.count()
    }

    /// Adds a place that waits to be healed, if there is room.
    pub fn wait_for(&mut self, storage_key: &[u8]) {
        if self.waiting.len() < QUARANTINE_WAITING {
            self.waiting.insert(storage_key.to_vec());
        }
    }

    fn note(&mut self, storage_key: &[u8], line: Line) {
        self.bytes += line.bytes;
        if let Some(old) = self.lines.insert(storage_key.to_vec(), line) {
            self.bytes -= old.bytes;
        }
    }

    fn forget(&mut self, storage_key: &[u8]) {
        if let Some(old) = self.lines.remove(storage_key) {
            self.bytes -= old.bytes;
        }
    }

    /// Makes room for so many bytes; whether there is, and what to delete for it.
    fn make_room(&mut self, bytes: u64) -> (bool, Vec<Write>) {
        let mut gone = Vec::new();
        let is_full =
            |q: &Quarantine| q.lines.len() >= QUARANTINE_ENTRIES || q.bytes + bytes > QUARANTINE_BYTES;
        while is_full(self) {
            let healed = self.lines.iter().filter(|(_, line)| line.is_healed);
            let Some(oldest) = healed.min_by_key(|(_, line)| line.found_at).map(|(key, _)| key.clone())
            else {
                return (false, gone);
            };
            gone.push(Write::Delete(schema::quarantine_key(&oldest)));
            self.forget(&oldest);
        }
        (true, gone)
    }

    /// What keeps a damaged record for people, beside the mark that goes to its place.
    pub fn add(&mut self, storage_key: &[u8], now: WallMs, why: &str, found: &[u8]) -> Vec<Write> {
        self.wait_for(storage_key);
        self.forget(storage_key);
        let kept = &found[..found.len().min(QUARANTINE_RECORD_BYTES)];
        let (has_room, mut writes) = self.make_room(kept.len() as u64);
        let kept = if has_room { kept } else { &[] };
        if self.lines.len() < QUARANTINE_ENTRIES {
            let entry = Entry {
                found_at: now,
                why: why.into(),
                bytes: found.len() as u64,
                found: kept.to_vec(),
                healed_at: None,
            };
            writes.push(entry.write(storage_key));
            self.note(storage_key, Line { found_at: now, bytes: kept.len() as u64, is_healed: false });
        }
        writes
    }

    /// What says for people that a place is sound again, and how that came if it was not healed from its replicas.
    pub fn healed(
        &mut self,
        storage: &dyn Storage,
        storage_key: &[u8],
        now: WallMs,
        how: Option<&str>,
    ) -> Result<Vec<Write>, StorageError> {
        self.waiting.remove(storage_key);
        let Some(line) = self.lines.get_mut(storage_key) else { return Ok(Vec::new()) };
        line.is_healed = true;
        let key = schema::quarantine_key(storage_key);
        let entry = storage.get(&key)?.map(|value| Entry::read(&key, &value));
        Ok(match entry {
            Some(Ok(entry)) => {
                let why = [Some(&entry.why[..]), how].into_iter().flatten().collect::<Vec<_>>().join("; ");
                vec![Entry { healed_at: Some(now), why, ..entry }.write(storage_key)]
            }
            Some(Err(_)) => {
                self.forget(storage_key);
                vec![Write::Delete(key)]
            }
            None => Vec::new(),
        })
    }
}

/// The mark that goes to the place of a damaged record.
pub fn mark(storage_key: &[u8], since: Option<&Record>) -> Write {
    Write::Put(storage_key.to_vec(), stored::encode_set_aside(storage_key, since))
}

/// What heals a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healing {
    /// To write; the change is to a tree that has nothing there.
    Restored(Batch, Change),
    /// It is sound, or there is nothing any more.
    NotDamaged,
    /// No replica has a version: it stays as it is.
    NoVersion,
}

/// Puts the merge of all that the other replicas hold, and of what came since, in the place of a damaged record.
pub fn heal(storage: &dyn Storage, storage_key: &[u8], held: &[Record]) -> Result<Healing, LoadError> {
    let Place::Damaged(Damage { found: None, since, .. }) = stored::place(storage, storage_key)? else {
        return Ok(Healing::NotDamaged);
    };
    let mut merged: Option<Record> = None;
    for record in since.iter().chain(held) {
        match &mut merged {
            None => merged = Some(record.clone()),
            Some(merged) => {
                merged.merge(record).map_err(|mismatch| LoadError::Damaged(mismatch.to_string()))?;
            }
        }
    }
    let Some(record) = merged else { return Ok(Healing::NoVersion) };
    let mut batch = Batch::new();
    batch.put(storage_key, stored::encode(storage_key, None, &codec::encode_record(&record)));
    let change = Change { before: None, after: Some(record.digest()), dead_since: record.dead_since() };
    Ok(Healing::Restored(batch, change))
}

/// What gives up a damaged record that was set aside: in its place comes what has come since, or nothing. None if the place
/// is sound, or its record was not set aside yet.
pub fn give_up(storage: &dyn Storage, storage_key: &[u8]) -> Result<Option<Batch>, LoadError> {
    let Place::Damaged(Damage { found: None, since, .. }) = stored::place(storage, storage_key)? else {
        return Ok(None);
    };
    let mut batch = Batch::new();
    match &since {
        Some(record) => {
            if let Some(dead) = record.dead_since() {
                batch.put(schema::dead_key(dead, storage_key), Vec::new());
            }
            batch.put(storage_key, stored::encode(storage_key, None, &codec::encode_record(record)));
        }
        None => batch.delete(storage_key),
    }
    Ok(Some(batch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::apply::{self, Outcome};
    use crate::storage::memory::MemoryStorage;
    use crate::types::ids::{KeyspaceId, NodeId, PartitionId};
    use crate::types::key::Key;
    use crate::version::hlc::Stamp;
    use crate::version::record::{LwwVersion, Payload};

    const NOW: WallMs = WallMs(1_000);

    fn storage_key(name: &str) -> Vec<u8> {
        let key = Key::new(name.to_string(), "").expect("a valid key");
        schema::record_key(PartitionId(1), KeyspaceId(1), &key)
    }

    fn lww(stamp: u64) -> Record {
        let payload = Payload::Value(format!("v{stamp}").into());
        Record::Lww(LwwVersion {
            stamp: Stamp(stamp),
            node: NodeId(1),
            payload,
            expires_at: None,
            request: None,
        })
    }

    fn write(storage: &MemoryStorage, writes: Vec<Write>) {
        storage.write(&Batch { writes }).expect("written");
    }

    fn set_aside(storage: &MemoryStorage, quarantine: &mut Quarantine, key: &[u8], found: &[u8]) {
        let mut writes = quarantine.add(key, NOW, "flipped", found);
        writes.push(mark(key, None));
        write(storage, writes);
    }

    fn healed(storage: &MemoryStorage, key: &[u8], held: &[Record]) -> Healing {
        let healing = heal(storage, key, held).expect("readable");
        if let Healing::Restored(batch, _) = &healing {
            storage.write(batch).expect("written");
        }
        healing
    }

    #[test]
    fn what_comes_meanwhile_is_kept_and_not_answered() {
        let (storage, mut quarantine, key) =
            (MemoryStorage::default(), Quarantine::default(), storage_key("k"));
        set_aside(&storage, &mut quarantine, &key, b"junk");
        assert!(matches!(stored::load(&storage, &key), Err(LoadError::Damaged(_))));
        for stamp in [5, 3] {
            let record = lww(stamp);
            let applied = apply::apply(&storage, &key, &record, &codec::encode_record(&record), false);
            let applied = applied.expect("readable");
            if let Outcome::Changed(batch) = &applied.outcome {
                storage.write(batch).expect("written");
            }
            assert_eq!((applied.outcome != Outcome::Unchanged, applied.change), (stamp == 5, None));
            assert!(matches!(stored::load(&storage, &key), Err(LoadError::Damaged(_))), "still");
        }
        let fresh = apply::apply(&storage, &key, &lww(9), &codec::encode_record(&lww(9)), true);
        assert!(matches!(fresh, Err(LoadError::Damaged(_))), "it would count in a write quorum: {fresh:?}");
        // A replica with an older version alone takes nothing away.
        let Healing::Restored(_, change) = healed(&storage, &key, &[lww(4)]) else { panic!("not restored") };
        assert_eq!((change.before, change.after), (None, Some(lww(5).digest())));
        let found = stored::load(&storage, &key).expect("readable").expect("there");
        assert_eq!((found.record, found.line), (lww(5), None));
        assert_eq!(heal(&storage, &key, &[lww(7)]), Ok(Healing::NotDamaged));
    }

    #[test]
    fn a_place_of_which_nobody_has_a_version_stays_damaged() {
        let (storage, mut quarantine, key) =
            (MemoryStorage::default(), Quarantine::default(), storage_key("k"));
        set_aside(&storage, &mut quarantine, &key, b"junk");
        assert_eq!(healed(&storage, &key, &[]), Healing::NoVersion);
        assert!(matches!(stored::load(&storage, &key), Err(LoadError::Damaged(_))));
    }

    #[test]
    fn what_is_given_up_leaves_what_has_come_since() {
        let (storage, mut quarantine) = (MemoryStorage::default(), Quarantine::default());
        let (alone, renewed, sound) = (storage_key("alone"), storage_key("renewed"), storage_key("sound"));
        for key in [&alone, &renewed] {
            write(&storage, vec![Write::Put(key.clone(), b"junk".to_vec())]);
            assert_eq!(give_up(&storage, key), Ok(None), "it is set aside first");
            set_aside(&storage, &mut quarantine, key, b"junk");
        }
        write(&storage, vec![mark(&renewed, Some(&lww(5)))]);
        let stored = stored::encode(&sound, None, &codec::encode_record(&lww(3)));
        write(&storage, vec![Write::Put(sound.clone(), stored)]);
        for (key, left) in [(&alone, None), (&renewed, Some(lww(5))), (&sound, Some(lww(3)))] {
            if let Some(batch) = give_up(&storage, key).expect("readable") {
                storage.write(&batch).expect("written");
                let writes = quarantine.healed(&storage, key, NOW, Some("given up")).expect("readable");
                write(&storage, writes);
            }
            let found = stored::load(&storage, key).expect("readable");
            assert_eq!(found.map(|found| found.record), left);
        }
        let mut whys = Vec::new();
        visit(&storage, &mut |_, entry| whys.push(entry.expect("sound").why)).expect("read");
        assert_eq!((whys, quarantine.waiting().len()), (vec!["flipped; given up".to_string(); 2], 0));
    }

    #[test]
    fn a_damaged_record_is_not_taken_for_one_that_was_set_aside() {
        let (storage, key) = (MemoryStorage::default(), storage_key("k"));
        write(&storage, vec![Write::Put(key.clone(), b"junk".to_vec())]);
        assert_eq!(heal(&storage, &key, &[lww(7)]), Ok(Healing::NotDamaged), "it is set aside first");
        let Ok(Place::Damaged(damage)) = stored::place(&storage, &key) else { panic!("it is damaged") };
        assert_eq!(damage.found.as_deref(), Some(&b"junk"[..]));
    }

    #[test]
    fn what_waits_and_what_is_kept_survives_a_restart() {
        let (storage, mut quarantine) = (MemoryStorage::default(), Quarantine::default());
        for name in ["a", "b"] {
            set_aside(&storage, &mut quarantine, &storage_key(name), b"junk");
        }
        let writes = quarantine.healed(&storage, &storage_key("a"), WallMs(2_000), None).expect("readable");
        write(&storage, writes);
        let loaded = Quarantine::load(&storage).expect("readable");
        assert_eq!(loaded.waiting(), &[storage_key("b")].into());
        let mut entries = Vec::new();
        visit(&storage, &mut |key, entry| entries.push((key.to_vec(), entry.expect("readable"))))
            .expect("read");
        let entry = |healed_at| Entry {
            found_at: NOW,
            why: "flipped".into(),
            bytes: 4,
            found: b"junk".to_vec(),
            healed_at,
        };
        let expected = [(storage_key("b"), entry(None)), (storage_key("a"), entry(Some(WallMs(2_000))))];
        assert_eq!(entries, expected, "in the order of their slots");
    }

    #[test]
    fn it_is_bounded_and_the_oldest_that_are_healed_go_first() {
        let (storage, mut quarantine) = (MemoryStorage::default(), Quarantine::default());
        let big = vec![7; QUARANTINE_RECORD_BYTES + 1];
        let fit = usize::try_from(QUARANTINE_BYTES).expect("small") / QUARANTINE_RECORD_BYTES;
        for n in 0..fit {
            set_aside(&storage, &mut quarantine, &storage_key(&format!("{n:04}")), &big);
        }
        // No room, and all of them wait: this one keeps no bytes.
        set_aside(&storage, &mut quarantine, &storage_key("last"), &big);
        let kept = |name: &str| {
            let key = schema::quarantine_key(&storage_key(name));
            let value = storage.get(&key).expect("readable")?;
            Some(Entry::read(&key, &value).expect("sound").found.len())
        };
        assert_eq!((kept("0000"), kept("last")), (Some(QUARANTINE_RECORD_BYTES), Some(0)));
        assert_eq!(quarantine.records(), fit + 1);
        assert_eq!(quarantine.waiting().len(), fit + 1);
        let writes = quarantine.healed(&storage, &storage_key("0003"), NOW, None).expect("readable");
        write(&storage, writes);
        set_aside(&storage, &mut quarantine, &storage_key("more"), &big);
        assert_eq!((kept("0003"), kept("more")), (None, Some(QUARANTINE_RECORD_BYTES)));
        assert!(quarantine.bytes <= QUARANTINE_BYTES && quarantine.lines.len() <= QUARANTINE_ENTRIES);
        assert_eq!(quarantine.not_kept(), 0, "an entry without bytes is one");
        (0..QUARANTINE_ENTRIES)
            .for_each(|n| set_aside(&storage, &mut quarantine, &storage_key(&format!("s{n}")), b""));
        let waiting = quarantine.waiting().len();
        assert_eq!(
            (quarantine.lines.len(), quarantine.not_kept()),
            (QUARANTINE_ENTRIES, waiting - QUARANTINE_ENTRIES)
        );
    }
}
