//! Merges a record that came from elsewhere into the own copy.
//!
//! Invariants:
//! 1. What is stored only ever grows in the order of merging; nothing uncovered is forgotten.
//! 2. The local mark stays with the record; a record that arrives onto a not-found gets none.
//! 3. A damaged own copy is replaced by a repair, which holds what a read quorum knew; a fresh write is refused,
//!    since with it alone the copy would count in quorums without the versions that it held.

use super::stored::{self, LoadError};
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
    /// Whether the own copy was damaged and has been replaced: what it held is not known.
    pub healed: bool,
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
    let (old, healed) = match stored::load(storage, key) {
        Ok(old) => (old, false),
        Err(LoadError::Damaged(_)) if !fresh => (None, true),
        Err(error) => return Err(error),
    };
    let Some(mut old) = old else {
        let change =
            Some(Change { before: None, after: Some(incoming.digest()), dead_since: incoming.dead_since() });
        return Ok(Applied { outcome: Outcome::Changed(batch(key, None, bytes)), change, healed });
    };
    if let (Record::Lww(mine), Record::Lww(theirs), true) = (&old.record, incoming, fresh)
        && mine.order() > theirs.order()
    {
        if canary::sings(Canary::SupersededIgnored) {
            return Ok(Applied { outcome: Outcome::Unchanged, change: None, healed });
        }
        return Ok(Applied { outcome: Outcome::Superseded(mine.stamp), change: None, healed });
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
    Ok(Applied { outcome, change, healed })
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

    #[test]
    fn a_damaged_copy_is_healed_by_what_comes() {
        let storage = MemoryStorage::default();
        let mut bad = Batch::new();
        bad.put(&b"dkey"[..], &b"junk"[..]);
        storage.write(&bad).expect("written");
        assert!(matches!(stored::load(&storage, b"dkey"), Err(LoadError::Damaged(_))));
        let (record, bytes) = lww(5);
        assert!(matches!(apply(&storage, b"dkey", &record, &bytes, true), Err(LoadError::Damaged(_))));
        assert!(apply_and_write(&storage, 5, false).healed);
        assert!(stored::load(&storage, b"dkey").expect("readable").is_some());
    }
}
