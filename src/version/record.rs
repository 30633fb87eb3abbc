//! Records: all that a replica holds for one key, and their merge.
//!
//! Invariants of a [`Record`]:
//! 1. Siblings are sorted by dot, and no dot stands twice.
//! 2. No sibling's past covers the dot of a sibling in the same set, its own included.
//! 3. A record has at least one version; a deleted key has a tombstone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::dvv::{Context, Dot};
use super::hlc::Stamp;
use crate::types::ids::NodeId;
use crate::types::policy::Conflicts;
use crate::types::time::WallMs;

/// What a write wrote.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Payload {
    /// A value.
    Value(Bytes),
    /// "Deleted".
    Tombstone,
}

/// The one version of an `lww` record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LwwVersion {
    /// When: the first part of the order.
    pub stamp: Stamp,
    /// Who stamped it: the second part.
    pub node: NodeId,
    /// What.
    pub payload: Payload,
    /// From when on it is a tombstone.
    pub expires_at: Option<WallMs>,
}

/// One of the versions of a `siblings` record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sibling {
    /// Its name.
    pub dot: Dot,
    /// What it replaced. Never covers `dot`.
    pub past: Context,
    /// When it was written; for people, not for order.
    pub stamp: Stamp,
    /// What.
    pub payload: Payload,
    /// From when on it is a tombstone.
    pub expires_at: Option<WallMs>,
}

/// All versions of one key that a replica holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Last write wins.
    Lww(LwwVersion),
    /// Concurrent versions, sorted by dot.
    Siblings(Vec<Sibling>),
}

/// Fingerprint of the version ids of a record; equal for equal records, and for a record whose expired
/// payload was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

/// A value that a reader sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The value.
    pub value: Bytes,
    /// Its stamp.
    pub stamp: Stamp,
    /// From when on it is a tombstone.
    pub expires_at: Option<WallMs>,
}

/// Two records of one key that do not have the same conflict policy: never merged, one is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of policy {have} can't be merged with one of policy {got}")]
pub struct PolicyMismatch {
    /// The policy of the record here.
    pub have: Conflicts,
    /// The policy of the one that came.
    pub got: Conflicts,
}

fn live(payload: &Payload, stamp: Stamp, expires_at: Option<WallMs>, now: WallMs) -> Option<Live> {
    match payload {
        Payload::Value(value) if expires_at.is_none_or(|at| now < at) => {
            Some(Live { value: value.clone(), stamp, expires_at })
        }
        _ => None,
    }
}

fn payload_bytes(payload: &Payload) -> usize {
    match payload {
        Payload::Value(value) => value.len(),
        Payload::Tombstone => 0,
    }
}

impl LwwVersion {
    /// The order of `lww` versions.
    pub fn order(&self) -> (Stamp, NodeId) {
        (self.stamp, self.node)
    }
}

impl Record {
    /// Its conflict policy.
    pub fn conflicts(&self) -> Conflicts {
        match self {
            Record::Lww(_) => Conflicts::Lww,
            Record::Siblings(_) => Conflicts::Siblings,
        }
    }

    /// Merges `other` in. Returns whether this record changed.
    pub fn merge(&mut self, other: &Record) -> Result<bool, PolicyMismatch> {
        match (self, other) {
            (Record::Lww(mine), Record::Lww(theirs)) => {
                if theirs.order() > mine.order() {
                    *mine = theirs.clone();
                    return Ok(true);
                }
                Ok(false)
            }
            (Record::Siblings(mine), Record::Siblings(theirs)) => Ok(merge_siblings(mine, theirs)),
            (mine, theirs) => Err(PolicyMismatch { have: mine.conflicts(), got: theirs.conflicts() }),
        }
    }

    /// The values that a reader at `now` sees: none for a deleted or expired key.
    pub fn live(&self, now: WallMs) -> Vec<Live> {
        match self {
            Record::Lww(v) => live(&v.payload, v.stamp, v.expires_at, now).into_iter().collect(),
            Record::Siblings(set) => {
                set.iter().filter_map(|s| live(&s.payload, s.stamp, s.expires_at, now)).collect()
            }
        }
    }

    /// The context that covers all versions of a `siblings` record; empty for `lww`.
    pub fn context(&self) -> Context {
        let mut context = Context::new();
        if let Record::Siblings(set) = self {
            for sibling in set {
                context.join(&sibling.past);
                context.insert(sibling.dot);
            }
        }
        context
    }

    /// The greatest stamp of its versions.
    pub fn stamp(&self) -> Stamp {
        match self {
            Record::Lww(v) => v.stamp,
            Record::Siblings(set) => set.iter().map(|s| s.stamp).max().unwrap_or_default(),
        }
    }

    /// How many versions it holds, tombstones included.
    pub fn versions(&self) -> usize {
        match self {
            Record::Lww(_) => 1,
            Record::Siblings(set) => set.len(),
        }
    }

    /// Bytes of its values.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Record::Lww(v) => payload_bytes(&v.payload),
            Record::Siblings(set) => set.iter().map(|s| payload_bytes(&s.payload)).sum(),
        }
    }

    /// Fingerprint of the version ids.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        match self {
            Record::Lww(v) => {
                hasher.update(&v.stamp.0.to_be_bytes()).update(&v.node.0.to_be_bytes());
            }
            Record::Siblings(set) => {
                for Sibling { dot, .. } in set {
                    hasher.update(&dot.actor.node.0.to_be_bytes());
                    hasher.update(&dot.actor.incarnation.0.to_be_bytes());
                    hasher.update(&dot.actor.birth.0.to_be_bytes());
                    hasher.update(&dot.counter.to_be_bytes());
                }
            }
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Digest(digest)
    }

    /// Replaces what `past` covers by one new version; the mint of a `siblings` record.
    pub fn replace(&mut self, sibling: Sibling) -> Result<(), PolicyMismatch> {
        self.merge(&Record::Siblings(vec![sibling])).map(|_| ())
    }

    /// What breaks an invariant, if anything does. Checked on everything that is decoded.
    pub fn problem(&self) -> Option<&'static str> {
        let Record::Siblings(set) = self else { return None };
        if set.is_empty() {
            return Some("a record without a version");
        }
        if !set.windows(2).all(|pair| pair[0].dot < pair[1].dot) {
            return Some("siblings out of order");
        }
        if set.iter().any(|s| s.dot.counter == 0 || !s.past.is_canonical()) {
            return Some("a context that is not canonical");
        }
        if set.iter().any(|s| set.iter().any(|t| s.past.covers(&t.dot))) {
            return Some("a sibling that another covers");
        }
        None
    }
}

/// Keeps each version unless a past of the other side covers its dot. Returns whether `mine` changed.
fn merge_siblings(mine: &mut Vec<Sibling>, theirs: &[Sibling]) -> bool {
    let missing: Vec<&Sibling> =
        theirs.iter().filter(|t| !mine.iter().any(|m| m.dot == t.dot || m.past.covers(&t.dot))).collect();
    let before = mine.len();
    mine.retain(|m| !theirs.iter().any(|t| t.past.covers(&m.dot)));
    let changed = mine.len() != before || !missing.is_empty();
    mine.extend(missing.into_iter().cloned());
    mine.sort_by_key(|s| s.dot);
    changed
}
