//! Merges a record that came from elsewhere into the own copy.
//!
//! Invariants:
//! 1. What is stored only ever grows in the order of merging; nothing uncovered is forgotten.
//! 2. The local mark stays with the record; a record that arrives onto a not-found gets none.
//! 3. A damaged own copy stays so (`replica::quarantine`): what a repair or a hint brings may be less than what it held,
//!    so it is kept beside the mark. A fresh write is refused.

use super::quarantine;
use super::stored::{self, Damage, LoadError, Place};
use crate::canary::{self, Canary};
use crate::storage::{Batch, Storage};
use crate::version::codec;
use crate::version::hlc::Stamp;
use crate::version::record::{Change, Record};

/// What to do with a record that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The own copy has it all.
    Unchanged,
    /// To write; acknowledged once it is durable.
    Changed(Batch),
    /// A greater stamp is here: a newly stamped write is not stored, its coordinator must know.
    Superseded(Stamp),
}

/// A merged record and what it replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The outcome.
    pub outcome: Outcome,
    /// What it does to the version ids of the own copy; none if it does nothing.
    pub change: Option<Change>,
    /// The own copy, if it is found damaged only now: it is to be set aside.
    pub damage: Option<Damage>,
}

impl Applied {
    fn sound(outcome: Outcome, change: Option<Change>) -> Applied {
        Applied { outcome, change, damage: None }
    }
}

/// Merges `incoming` (whose encoded form is `bytes`) into the record under `key`. `fresh`: a write that its
/// coordinator has just stamped, as opposed to a repair.
pub fn apply(
    storage: &dyn Storage,
    key: &[u8],
    incoming: &Record,
    bytes: &[u8],
    fresh: bool,
) -> Result<Applied, LoadError> {
    let forever = (!fresh && canary::sings(Canary::ExpiryForgotten)).then(|| without_expiry(incoming));
    let (incoming, bytes) =
        forever.as_ref().map_or((incoming, bytes), |(record, bytes)| (record, &bytes[..]));
    let mut old = match stored::place(storage, key)? {
        Place::Sound(old) => old,
        Place::Damaged(damage) if fresh => return Err(LoadError::Damaged(damage.why)),
        Place::Damaged(damage) => return apply_to_damaged(key, incoming, damage),
        Place::Nothing => {
            let (after, dead_since) = (Some(incoming.digest()), incoming.dead_since());
            let change = Change { before: None, after, dead_since };
            return Ok(Applied::sound(Outcome::Changed(batch(key, None, bytes)), Some(change)));
        }
    };
    if let (Record::Lww(mine), Record::Lww(theirs), true) = (&old.record, incoming, fresh)
        && mine.order() > theirs.order()
    {
        if canary::sings(Canary::SupersededIgnored) {
            return Ok(Applied::sound(Outcome::Unchanged, None));
        }
        return Ok(Applied::sound(Outcome::Superseded(mine.stamp), None));
    }
    let before = old.record.digest();
    let changed = old.record.merge(incoming).map_err(|m| LoadError::Damaged(m.to_string()))?;
    let outcome = if changed && canary::sings(Canary::TombstoneDropped) && old.record.payload_bytes() == 0 {
        let mut batch = Batch::new();
        batch.delete(key);
        Outcome::Changed(batch)
    } else if changed {
        Outcome::Changed(batch(key, old.line, &codec::encode_record(&old.record)))
    } else {
        Outcome::Unchanged
    };
    let change = changed.then(|| Change {
        before: Some(before),
        after: Some(old.record.digest()),
        dead_since: old.record.dead_since(),
    });
    Ok(Applied::sound(outcome, change))
}

/// Keeps what comes beside the mark, or makes the mark.
fn apply_to_damaged(key: &[u8], incoming: &Record, mut damage: Damage) -> Result<Applied, LoadError> {
    let is_news = match &mut damage.since {
        None => {
            damage.since = Some(incoming.clone());
            true
        }
        Some(since) => since.merge(incoming).map_err(|m| LoadError::Damaged(m.to_string()))?,
    };
    let is_new = damage.found.is_some();
    if !is_news && !is_new {
        return Ok(Applied::sound(Outcome::Unchanged, None));
    }
    let batch = Batch { writes: vec![quarantine::mark(key, damage.since.as_ref())] };
    let outcome = Outcome::Changed(batch);
    Ok(Applied { outcome, change: None, damage: is_new.then_some(damage) })
}

/// A canary's record, which lives for ever, and its encoded form.
fn without_expiry(record: &Record) -> (Record, Vec<u8>) {
    let mut record = record.clone();
    match &mut record {
        Record::Lww(version) => version.expires_at = None,
        Record::Siblings(set) => set.iter_mut().for_each(|sibling| sibling.expires_at = None),
    }
    let bytes = codec::encode_record(&record);
    (record, bytes)
}

fn batch(key: &[u8], line: Option<stored::Line>, bytes: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(key, stored::encode(key, line, bytes));
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStorage;
    use crate::types::ids::{Birth, Incarnation, NodeId};
    use crate::types::limits::SIBLINGS_MAX;
    use crate::version::dvv::{Actor, Context, Dot};
    use crate::version::record::{LwwVersion, Payload, Sibling};

    fn lww(stamp: u64) -> (Record, Vec<u8>) {
        let payload = Payload::Tombstone;
        let record = Record::Lww(LwwVersion {
            stamp: Stamp(stamp),
            node: NodeId(1),
            payload,
            expires_at: None,
            request: None,
        });
        let bytes = codec::encode_record(&record);
        (record, bytes)
    }

    fn apply_and_write(storage: &MemoryStorage, stamp: u64, fresh: bool) -> Applied {
        let (record, bytes) = lww(stamp);
        let applied = apply(storage, b"dkey", &record, &bytes, fresh).expect("readable");
        if let Outcome::Changed(batch) = &applied.outcome {
            storage.write(batch).expect("written");
        }
        applied
    }

    /// F16: a write whose stamp loses is reported to its coordinator, not silently dropped.
    #[test]
    fn f16_a_fresh_write_that_loses_is_superseded() {
        let storage = MemoryStorage::default();
        assert!(matches!(apply_and_write(&storage, 5, true).outcome, Outcome::Changed(_)));
        assert_eq!(apply_and_write(&storage, 4, true).outcome, Outcome::Superseded(Stamp(5)));
        assert_eq!(apply_and_write(&storage, 5, true).outcome, Outcome::Unchanged, "a repeated send");
        assert_eq!(apply_and_write(&storage, 4, false).outcome, Outcome::Unchanged, "a repair");
        assert!(matches!(apply_and_write(&storage, 6, true).outcome, Outcome::Changed(_)));
    }

    /// F15: the limit on siblings is the clients'; what replicas send each other is merged however many there are.
    #[test]
    fn f15_a_repair_is_taken_whatever_the_siblings() {
        let storage = MemoryStorage::default();
        let sibling = |number: usize| Sibling {
            dot: Dot {
                actor: Actor { node: NodeId(1), incarnation: Incarnation(1), birth: Birth(number as u64) },
                counter: 1,
            },
            past: Context::new(),
            request: None,
            stamp: Stamp(1),
            payload: Payload::Tombstone,
            expires_at: None,
        };
        for half in [0..SIBLINGS_MAX, SIBLINGS_MAX..2 * SIBLINGS_MAX] {
            let record = Record::Siblings(half.map(sibling).collect());
            let bytes = codec::encode_record(&record);
            let applied = apply(&storage, b"dkey", &record, &bytes, false).expect("readable");
            let Outcome::Changed(batch) = applied.outcome else { panic!("it is new") };
            storage.write(&batch).expect("written");
        }
        let stored = stored::load(&storage, b"dkey").expect("readable").expect("there");
        assert_eq!(stored.record.versions(), 2 * SIBLINGS_MAX);
    }

    /// One replica may have less than the damaged copy held.
    #[test]
    fn a_damaged_copy_is_not_replaced_by_what_comes() {
        let storage = MemoryStorage::default();
        let mut bad = Batch::new();
        bad.put(&b"dkey"[..], &b"junk"[..]);
        storage.write(&bad).expect("written");
        assert!(matches!(stored::load(&storage, b"dkey"), Err(LoadError::Damaged(_))));
        let (record, bytes) = lww(5);
        assert!(matches!(apply(&storage, b"dkey", &record, &bytes, true), Err(LoadError::Damaged(_))));
        let damage = apply_and_write(&storage, 5, false).damage.expect("found now");
        assert_eq!((damage.found.as_deref(), damage.since), (Some(&b"junk"[..]), Some(record)));
        assert!(matches!(stored::load(&storage, b"dkey"), Err(LoadError::Damaged(_))), "still");
        assert_eq!(apply_and_write(&storage, 6, false).damage, None, "it was set aside");
    }
}
