//! Records: all that a replica holds for one key, and their merge.
//!
//! Invariants of a [`Record`]:
//! 1. Siblings are sorted by dot, and no dot stands twice.
//! 2. No sibling's past covers a sibling in the same set, by its dot or its request id, itself included; and no
//!    request id stands twice.
//! 3. A record has at least one version; a deleted key has a tombstone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::dvv::{Context, Dot};
use super::hlc::Stamp;
use crate::canary::{self, Canary};
use crate::types::ids::{NodeId, RequestId};
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

impl Payload {
    /// Length of the value, in bytes; 0 for a tombstone.
    pub fn bytes(&self) -> usize {
        match self {
            Payload::Value(value) => value.len(),
            Payload::Tombstone => 0,
        }
    }
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
    /// The client's name for the write, if it gave one: whoever is brought the version learns what it was.
    pub request: Option<RequestId>,
}

/// One of the versions of a `siblings` record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sibling {
    /// Its name.
    pub dot: Dot,
    /// What it replaced. Never covers `dot`.
    pub past: Context,
    /// The client's name for the write, if it gave one. A write that came through two coordinators has two dots,
    /// and is one: see [`Record::merge`].
    pub request: Option<RequestId>,
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

/// What is told of a record instead of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Of its version ids.
    pub digest: Digest,
    /// The greatest stamp of its versions.
    pub stamp: Stamp,
}

/// What a write did to the version ids of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Of what was there; none if nothing was.
    pub before: Option<Digest>,
    /// Of what is there now; none if nothing is.
    pub after: Option<Digest>,
    /// From when on what is there now is dead.
    pub dead_since: Option<WallMs>,
}

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

impl Sibling {
    /// Whether this version's write has replaced `other`.
    pub fn replaces(&self, other: &Sibling) -> bool {
        self.past.covers(&other.dot) || other.request.is_some_and(|request| self.past.has_request(request))
    }

    /// Whether both are the same write, minted twice or not.
    fn is_twin_of(&self, other: &Sibling) -> bool {
        self.dot == other.dot || (self.request.is_some() && self.request == other.request)
    }

    /// Takes in what else is known of the same write: it may have been minted twice, or have met such a twin
    /// elsewhere. The least dot names it, and its past covers the other. Returns whether anything was new.
    ///
    /// No write covers its own twin (mint refuses it); of forged ones that do so the newest stays.
    fn absorb(&mut self, twin: &Sibling) -> bool {
        if self == twin {
            return false;
        }
        let (least, other) = if twin.dot < self.dot { (twin, &*self) } else { (&*self, twin) };
        let mut one = Sibling { stamp: self.stamp.max(twin.stamp), ..least.clone() };
        one.past.join(&other.past);
        if other.dot != least.dot {
            one.past.insert(other.dot);
        }
        if one.replaces(&one) {
            one = if (twin.stamp, twin) > (self.stamp, self) { twin.clone() } else { self.clone() };
        }
        let changed = one != *self;
        *self = one;
        changed
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
    ///
    /// Siblings with one request id are one write that was minted more than once: they become one version.
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
                if let Some(request) = sibling.request {
                    context.insert_request(request, sibling.stamp.wall());
                }
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

    /// Fingerprint of the version ids. A version with a request id is told by its past too, which says what twins of
    /// it are known.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        match self {
            Record::Lww(v) => {
                hasher.update(&v.stamp.0.to_be_bytes()).update(&v.node.0.to_be_bytes());
            }
            Record::Siblings(set) => {
                for Sibling { dot, past, request, .. } in set {
                    hasher.update(&dot.actor.node.0.to_be_bytes());
                    hasher.update(&dot.actor.incarnation.0.to_be_bytes());
                    hasher.update(&dot.actor.birth.0.to_be_bytes());
                    hasher.update(&dot.counter.to_be_bytes());
                    if let Some(request) = request {
                        hasher.update(&request.0.to_be_bytes());
                        // A Vec grows as needed, and a context has no fallible Serialize.
                        let past = postcard::to_extend(past, Vec::new()).expect("a Vec takes any context");
                        hasher.update(&past);
                    }
                }
            }
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Digest(digest)
    }

    /// From when on nobody sees anything of it: it is deleted, or its time to live is over. None if a version lives
    /// for ever.
    pub fn dead_since(&self) -> Option<WallMs> {
        let of = |payload: &Payload, stamp: Stamp, expires_at: Option<WallMs>| match payload {
            Payload::Tombstone => Some(stamp.wall()),
            Payload::Value(_) => expires_at.map(|at| at.max(stamp.wall())),
        };
        match self {
            Record::Lww(v) => of(&v.payload, v.stamp, v.expires_at),
            Record::Siblings(set) => {
                let all = set.iter().map(|s| of(&s.payload, s.stamp, s.expires_at));
                all.reduce(|a, b| Some(a?.max(b?))).flatten()
            }
        }
    }

    /// What is told of it instead of itself.
    pub fn summary(&self) -> Summary {
        Summary { digest: self.digest(), stamp: self.stamp() }
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
        if set.iter().any(|s| set.iter().any(|t| s.replaces(t))) {
            return Some("a sibling that another covers");
        }
        let mut requests: Vec<_> = set.iter().filter_map(|s| s.request).collect();
        requests.sort_unstable();
        if requests.windows(2).any(|pair| pair[0] == pair[1]) {
            return Some("one request id on two siblings");
        }
        None
    }
}

/// Keeps each version unless a past of the other side covers its dot. Returns whether `mine` changed.
///
/// Pasts that cover each other in a circle leave nothing: no writes make such, forged contexts do. Then the newest
/// version of both sides stays (invariant 3), the same one on every replica.
fn merge_siblings(mine: &mut Vec<Sibling>, theirs: &[Sibling]) -> bool {
    let replaced = |s: &Sibling, by: &[Sibling]| by.iter().any(|t| t.replaces(s) && !t.is_twin_of(s));
    let mut theirs_left: Vec<&Sibling> = theirs.iter().filter(|t| !replaced(t, mine)).collect();
    if theirs_left.is_empty() && mine.iter().all(|m| replaced(m, theirs)) {
        let newest = mine.iter().chain(theirs).max_by_key(|s| (s.stamp, *s)).cloned();
        let newest: Vec<Sibling> = newest.into_iter().collect();
        let changed = newest != *mine;
        *mine = newest;
        return changed;
    }
    let before = mine.len();
    mine.retain(|m| !replaced(m, theirs));
    if canary::sings(Canary::SiblingForgotten) && !mine.is_empty() {
        theirs_left.retain(|t| mine.iter().any(|m| m.dot == t.dot));
    }
    let mut changed = mine.len() != before;
    for theirs in theirs_left {
        match mine.iter_mut().find(|m| m.is_twin_of(theirs)) {
            Some(twin) => changed |= twin.absorb(theirs),
            None => {
                changed = true;
                mine.push(theirs.clone());
            }
        }
    }
    mine.sort_by_key(|s| s.dot);
    changed
}

#[cfg(test)]
pub(in crate::version) mod tests;
