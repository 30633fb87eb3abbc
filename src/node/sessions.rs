//! The session token of one request: decoded, asked what it needs, and handed back with what the request did.

use bytes::Bytes;

use super::coordinator::Route;
use crate::replica::requests::Outcome;
use crate::types::error::Invalid;
use crate::types::ids::{NodeId, RequestId};
use crate::types::policy::Conflicts;
use crate::types::time::WallMs;
use crate::version::dvv::Context;
use crate::version::record::Record;
use crate::version::session::{Floor, KeyMark, Need, Session};

/// A request's token, and the key that it is about.
pub struct Carried {
    session: Session,
    key: KeyMark,
    n: u8,
}

/// A write that was acknowledged.
pub struct Wrote<'a> {
    /// Its coordinator.
    pub by: NodeId,
    /// Its name, if it has one.
    pub id: Option<RequestId>,
    /// Its version.
    pub outcome: Outcome,
    /// What it replaced.
    pub past: &'a Context,
    /// Home replicas that have it, at the least.
    pub holders: u32,
}

impl Carried {
    /// The token that a request carries, if it carries one.
    pub fn of(bytes: Option<&Bytes>, route: &Route, storage_key: &[u8]) -> Result<Option<Carried>, Invalid> {
        let session = bytes.map(|bytes| Session::decode(bytes)).transpose()?;
        let (key, n) = (KeyMark::of(storage_key), route.keyspace.n);
        Ok(session.map(|session| Carried { session, key, n }))
    }

    /// What the request needs.
    pub fn need(&self) -> Need {
        self.session.need(self.key)
    }

    fn missing(&self, holders: u32) -> u8 {
        self.n.saturating_sub(u8::try_from(holders).unwrap_or(u8::MAX))
    }

    /// The token after a write.
    pub fn wrote(mut self, now: WallMs, conflicts: Conflicts, wrote: &Wrote<'_>) -> Bytes {
        let Outcome { stamp, dot, .. } = wrote.outcome;
        let floor = match conflicts {
            Conflicts::Lww => Floor::Lww(stamp, wrote.by),
            Conflicts::Siblings => Floor::Siblings(dot.map(|dot| (dot, wrote.id)).into_iter().collect()),
        };
        let missing = self.missing(wrote.holders);
        self.session.wrote(now, self.key, stamp, floor, wrote.past, missing);
        self.session.encode().into()
    }

    /// The token after a read.
    pub fn read(mut self, now: WallMs, record: Option<&Record>, holders: u32) -> Bytes {
        if let Some(record) = record {
            let missing = self.missing(holders);
            self.session.read(now, self.key, record, missing);
        }
        self.session.encode().into()
    }
}
