//! Session tokens: what one client has written and read, small enough to carry along.
//!
//! With its token a client reads its own writes, and never goes back, whatever quorums it chooses: a replica that is
//! behind the token is not enough. A write under a token is stamped above what the token knows of the key.
//!
//! For each of the last keys the token names the versions seen. A key that it has no room for any more, or has not
//! heard of for long, is let go; what stays is how many replicas could have missed a version that was let go, so
//! a read of any other key asks one more than that.
//!
//! Invariants:
//! 1. A read that meets the token's [`Need`] misses nothing that the token's requests wrote or read.
//! 2. An encoded token is at most [`SESSION_BYTES`] long.

use serde::{Deserialize, Serialize};

use super::codec::{self, SESSION_MARKER};
use super::dvv::{Context, Dot};
use super::hlc::Stamp;
use super::record::Record;
use crate::types::error::Invalid;
use crate::types::ids::{NodeId, RequestId};
use crate::types::limits::{SESSION_BYTES, SESSION_KEEPS, SESSION_KEYS};
use crate::types::time::WallMs;

/// Versions that a reader must be told of, or of what replaced them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Floor {
    /// An `lww` version.
    Lww(Stamp, NodeId),
    /// Siblings, by both their names.
    Siblings(Vec<(Dot, Option<RequestId>)>),
}

impl Floor {
    /// The versions of a record.
    pub fn of(record: &Record) -> Floor {
        match record {
            Record::Lww(version) => Floor::Lww(version.stamp, version.node),
            Record::Siblings(set) => Floor::Siblings(set.iter().map(|s| (s.dot, s.request)).collect()),
        }
    }

    /// What reaches both.
    #[must_use]
    pub fn and(self, other: Floor) -> Floor {
        match (self, other) {
            (Floor::Lww(a, by), Floor::Lww(b, other)) => {
                let (stamp, node) = (a, by).max((b, other));
                Floor::Lww(stamp, node)
            }
            (Floor::Siblings(mut mine), Floor::Siblings(theirs)) => {
                mine.extend(theirs);
                Floor::Siblings(mine)
            }
            // Of two policies: a keyspace has one.
            (mine, _) => mine,
        }
    }

    /// Whether a record holds all of it, or what replaced it.
    pub fn is_reached_by(&self, record: &Record) -> bool {
        match (self, record) {
            (Floor::Lww(stamp, node), Record::Lww(version)) => version.order() >= (*stamp, *node),
            (Floor::Siblings(seen), Record::Siblings(_)) => {
                let context = record.context();
                let knows = |request: &Option<RequestId>| request.is_some_and(|id| context.has_request(id));
                seen.iter().all(|(dot, request)| context.covers(dot) || knows(request))
            }
            _ => false,
        }
    }
}

/// Names a key in tokens: the first 8 bytes of the hash of its storage key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMark(u64);

impl KeyMark {
    /// Of the key that is stored under `storage_key`.
    pub fn of(storage_key: &[u8]) -> KeyMark {
        let hash = blake3::hash(storage_key);
        KeyMark(hash.as_bytes().iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte)))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    key: KeyMark,
    at: WallMs,
    stamp: Stamp,
    floor: Floor,
    /// How many home replicas may not have it.
    missing: u8,
}

/// What a read under a token needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Need {
    /// What it must find.
    pub floor: Option<Floor>,
    /// Replicas that must answer, at the least (1 if any will do).
    pub answers: u8,
    /// A stamp that a write must be above.
    pub stamp: Stamp,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Session {
    /// The last one last.
    seen: Vec<Seen>,
    /// How many home replicas may have missed a version that was let go.
    missing: u8,
}

impl Session {
    /// What a request for a key needs.
    pub fn need(&self, key: KeyMark) -> Need {
        match self.seen.iter().find(|seen| seen.key == key) {
            Some(seen) => Need { floor: Some(seen.floor.clone()), answers: 1, stamp: seen.stamp },
            None => Need { floor: None, answers: self.missing.saturating_add(1), stamp: Stamp::default() },
        }
    }

    /// Notes what a read found, which `missing` home replicas may not have. It had what the token needs.
    pub fn read(&mut self, now: WallMs, key: KeyMark, record: &Record, missing: u8) {
        self.seen.retain(|seen| seen.key != key);
        self.note(Seen { key, at: now, stamp: record.stamp(), floor: Floor::of(record), missing });
    }

    /// Notes a write, which replaced what `past` covers. What it did not replace is still to be seen.
    pub fn wrote(
        &mut self,
        now: WallMs,
        key: KeyMark,
        stamp: Stamp,
        floor: Floor,
        past: &Context,
        missing: u8,
    ) {
        let mut new = Seen { key, at: now, stamp, floor, missing };
        if let Some(at) = self.seen.iter().position(|seen| seen.key == key) {
            let old = self.seen.remove(at);
            if let (Floor::Siblings(mine), Floor::Siblings(theirs)) = (&mut new.floor, old.floor) {
                let before = mine.len();
                mine.extend(theirs.into_iter().filter(|(dot, _)| !past.covers(dot)));
                if mine.len() > before {
                    new.missing = new.missing.max(old.missing);
                }
            }
        }
        self.note(new);
    }

    fn note(&mut self, new: Seen) {
        let keeps = u64::try_from(SESSION_KEEPS.as_millis()).unwrap_or(u64::MAX);
        let now = new.at;
        self.seen.push(new);
        let is_over = |session: &Session| {
            let oldest = session.seen.first().map_or(now, |seen| seen.at);
            session.seen.len() > SESSION_KEYS
                || now.0.saturating_sub(oldest.0) > keeps
                || session.encode().len() > SESSION_BYTES
        };
        while !self.seen.is_empty() && is_over(self) {
            let old = self.seen.remove(0);
            self.missing = self.missing.max(old.missing);
        }
    }

    /// For a client.
    pub fn encode(&self) -> Vec<u8> {
        codec::sealed_context(codec::encode(SESSION_MARKER, self))
    }

    /// From a client: no bytes begin a session.
    pub fn decode(bytes: &[u8]) -> Result<Session, Invalid> {
        if bytes.is_empty() {
            return Ok(Session::default());
        }
        Invalid::check_max("session", bytes.len(), SESSION_BYTES, "bytes")?;
        codec::open_sealed("session", SESSION_MARKER, bytes)
            .map_err(|bad| Invalid::new("session", format!("{bad} ({} bytes)", bytes.len())))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::dvv::Actor;
    use super::super::record::{LwwVersion, Payload, Sibling};
    use super::*;
    use crate::types::ids::{Birth, Incarnation};

    const NOW: WallMs = WallMs(1_700_000_000_000);

    fn lww(stamp: u64, node: u64) -> Record {
        let payload = Payload::Tombstone;
        Record::Lww(LwwVersion {
            stamp: Stamp(stamp),
            node: NodeId(node),
            payload,
            expires_at: None,
            request: None,
        })
    }

    fn dot(node: u64, counter: u64) -> Dot {
        Dot { actor: Actor { node: NodeId(node), incarnation: Incarnation(1), birth: Birth(1) }, counter }
    }

    fn past(dots: &[Dot]) -> Context {
        let mut past = Context::new();
        dots.iter().for_each(|dot| past.insert(*dot));
        past
    }

    fn siblings(dots: &[(Dot, &[Dot])]) -> Record {
        let one = |(dot, covered): &(Dot, &[Dot])| Sibling {
            dot: *dot,
            past: past(covered),
            request: None,
            stamp: Stamp(1),
            payload: Payload::Value(Bytes::from_static(b"v")),
            expires_at: None,
        };
        Record::Siblings(dots.iter().map(one).collect())
    }

    fn key(number: u64) -> KeyMark {
        KeyMark::of(&number.to_be_bytes())
    }

    fn round_trip(session: &Session) -> Session {
        Session::decode(&session.encode()).expect("its own bytes")
    }

    #[test]
    fn an_lww_key_is_never_read_older_than_seen() {
        let mut session = Session::default();
        session.wrote(NOW, key(1), Stamp(5), Floor::Lww(Stamp(5), NodeId(2)), &Context::new(), 2);
        let need = round_trip(&session).need(key(1));
        let floor = need.floor.expect("the key was written");
        assert_eq!((need.answers, need.stamp), (1, Stamp(5)));
        for (stamp, node, reached) in [(5, 2, true), (6, 1, true), (5, 1, false), (4, 9, false)] {
            assert_eq!(floor.is_reached_by(&lww(stamp, node)), reached, "{stamp} of {node}");
        }
        assert!(!floor.is_reached_by(&siblings(&[(dot(1, 1), &[])])), "another policy");
        session.read(NOW, key(1), &lww(9, 1), 1);
        assert_eq!(session.need(key(1)).floor, Some(Floor::Lww(Stamp(9), NodeId(1))));
        assert_eq!(session.need(key(2)), Need { floor: None, answers: 1, stamp: Stamp(0) });
    }

    #[test]
    fn siblings_are_all_found_or_what_replaced_them() {
        let mut session = Session::default();
        session.read(NOW, key(1), &siblings(&[(dot(1, 1), &[]), (dot(2, 1), &[])]), 1);
        // Blind: both of before are still to be seen. Then one of them is replaced.
        session.wrote(NOW, key(1), Stamp(2), Floor::Siblings(vec![(dot(3, 1), None)]), &Context::new(), 0);
        let of = |session: &Session| round_trip(session).need(key(1)).floor.expect("seen");
        let all = siblings(&[(dot(1, 1), &[]), (dot(2, 1), &[]), (dot(3, 1), &[])]);
        assert!(of(&session).is_reached_by(&all));
        assert!(!of(&session).is_reached_by(&siblings(&[(dot(1, 1), &[]), (dot(2, 1), &[])])));
        let floor = Floor::Siblings(vec![(dot(3, 2), None)]);
        session.wrote(NOW, key(1), Stamp(3), floor, &past(&[dot(1, 1), dot(3, 1)]), 0);
        assert_eq!(of(&session), Floor::Siblings(vec![(dot(3, 2), None), (dot(2, 1), None)]));
        assert!(of(&session).is_reached_by(&siblings(&[(dot(4, 1), &[dot(2, 1), dot(3, 2)])])), "replaced");
        assert!(!of(&session).is_reached_by(&siblings(&[(dot(4, 1), &[dot(2, 1)])])));
        // By the other name.
        let named = Floor::Siblings(vec![(dot(5, 1), Some(RequestId(7)))]);
        let mut heir = siblings(&[(dot(6, 1), &[])]);
        assert!(!named.is_reached_by(&heir));
        if let Record::Siblings(set) = &mut heir {
            set[0].past.insert_request(RequestId(7), NOW);
        }
        assert!(named.is_reached_by(&heir));
    }

    /// What a token has no room for is made up for by asking more replicas.
    #[test]
    fn what_is_let_go_asks_for_more_answers() {
        let mut session = Session::default();
        let floor = |n: u64| Floor::Lww(Stamp(n), NodeId(u64::MAX));
        for n in 0..10_000 {
            session.wrote(NOW, key(n), Stamp(n), floor(n), &Context::new(), if n == 3 { 2 } else { 1 });
            assert!(session.encode().len() <= SESSION_BYTES && session.seen.len() <= SESSION_KEYS);
        }
        assert_eq!(session.need(key(3)), Need { floor: None, answers: 3, stamp: Stamp(0) });
        assert_eq!(session.need(key(9_999)).floor, Some(floor(9_999)));
        let later = WallMs(NOW.0 + 2 * u64::try_from(SESSION_KEEPS.as_millis()).expect("small"));
        session.wrote(later, key(1), Stamp(1), floor(1), &Context::new(), 0);
        assert_eq!((session.seen.len(), session.need(key(9_999)).floor), (1, None));
        // One key with more versions than fit.
        let many: Vec<(Dot, Option<RequestId>)> = (1..2_000).map(|n| (dot(n, u64::MAX), None)).collect();
        session.wrote(later, key(1), Stamp(2), Floor::Siblings(many), &Context::new(), 1);
        assert!(session.need(key(1)).floor.is_none() && session.need(key(1)).answers == 3);
    }

    #[test]
    fn bad_tokens_are_refused_by_name() {
        let mut session = Session::default();
        session.read(NOW, key(1), &lww(5, 1), 1);
        let good = session.encode();
        assert_eq!(Session::decode(&[]), Ok(Session::default()));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(Session::decode(&bad).expect_err("flipped").field, "session");
            assert_eq!(Session::decode(&good[..at.max(1)]).expect_err("cut").field, "session");
        }
        let long = Session::decode(&vec![0; SESSION_BYTES + 1]).expect_err("too long").to_string();
        assert!(long.contains("session") && long.contains("limit"), "{long}");
    }
}
