//! Makes a new version at its coordinator: one stamp, one dot, one batch.
//!
//! Invariants:
//! 1. A dot is issued once. Its line is extended only where the stored local mark says that this life of the
//!    data directory minted it, and only above every counter of the line that the record or the client's
//!    context knows; else a new birth begins (F10, F11; riak_kv#679), one of which neither claims to know anything.
//! 2. Births come from leases, stamps stay below the clock's bound; a new lease or bound is in the same batch
//!    as the version that needs it, so both are durable before the version leaves the node.
//! 3. A new version is never covered by what it replaces, and drops only what the client's context covers. A
//!    context that names what this node has not made is refused.

use bytes::Bytes;

use super::requests::{Entry, Outcome, Print};
use super::stored::{self, Line, LoadError};
use crate::canary::{self, Canary};
use crate::storage::schema;
use crate::storage::{Batch, Storage};
use crate::types::ids::{Birth, Incarnation, NodeId, RequestId};
use crate::types::limits::{BIRTH_LEASE, PAST_REQUESTS, RECORD_BYTES_MAX, REQUEST_MEMORY, SIBLINGS_MAX};
use crate::types::policy::Conflicts;
use crate::types::time::{Mono, WallMs};
use crate::version::codec;
use crate::version::dvv::{Actor, Context, Dot};
use crate::version::hlc::{Hlc, Stamp, TooFarAhead};
use crate::version::record::{Change, Digest, LwwVersion, Payload, Record, Sibling};

/// A node's sources of dots and stamps.
#[derive(Debug, Clone)]
pub struct Minter {
    node: NodeId,
    incarnation: Incarnation,
    clock: Hlc,
    next_birth: u64,
    birth_lease: u64,
}

impl Minter {
    /// Sources that go on where the durable clock and lease (0 for a new data directory) end.
    pub fn new(node: NodeId, incarnation: Incarnation, clock: Hlc, durable_lease: u64) -> Minter {
        Minter { node, incarnation, clock, next_birth: durable_lease + 1, birth_lease: durable_lease }
    }

    /// The clock.
    pub fn clock(&self) -> &Hlc {
        &self.clock
    }

    /// The clock, to follow the stamps of others.
    pub fn clock_mut(&mut self) -> &mut Hlc {
        &mut self.clock
    }

    /// Forgets which lease and bound are durable: the batch that should have stored them was not written. The
    /// next mint stores new ones, above all that was used.
    pub fn forget_leases(&mut self) {
        self.birth_lease = self.next_birth - 1;
        self.clock.forget_bound();
    }

    fn stamp(&mut self, now: WallMs, floor: Stamp, batch: &mut Batch) -> Result<Stamp, TooFarAhead> {
        let issued = self.clock.issue(now, floor)?;
        if let Some(bound) = issued.new_bound
            && !canary::sings(Canary::ClockBoundForgotten)
        {
            put_number(batch, schema::META_CLOCK_BOUND, bound.0);
        }
        Ok(issued.stamp)
    }

    /// The next birth that neither context knows of. Whatever a forged context claims, a version is never covered
    /// at birth.
    fn unknown_birth(&mut self, known: &Context, seen: &Context, batch: &mut Batch) -> Birth {
        loop {
            let birth = self.birth(batch);
            let actor = Actor { node: self.node, incarnation: self.incarnation, birth };
            let is_unknown = known.top(&actor) == 0 && seen.top(&actor) == 0;
            if is_unknown || canary::sings(Canary::DotTwice) {
                return birth;
            }
        }
    }

    /// Whether a context names a birth of this life that it has not begun, or a later life.
    fn is_forged(&self, context: &Context) -> bool {
        let lines = context.vector().keys().chain(context.dots().iter().map(|dot| &dot.actor));
        let mine = lines.filter(|actor| actor.node == self.node);
        mine.map(|actor| (actor.incarnation, actor.birth.0)).any(|(life, birth)| {
            life > self.incarnation || (life == self.incarnation && birth >= self.next_birth)
        })
    }

    fn birth(&mut self, batch: &mut Batch) -> Birth {
        if self.next_birth > self.birth_lease {
            self.birth_lease += BIRTH_LEASE;
            if !canary::sings(Canary::DotTwice) {
                put_number(batch, schema::META_BIRTH_LEASE, self.birth_lease);
            }
        }
        let birth = Birth(self.next_birth);
        self.next_birth += 1;
        birth
    }
}

fn put_number(batch: &mut Batch, name: &str, number: u64) {
    let key = schema::meta_key(name);
    let value = schema::seal(&key, &number.to_be_bytes());
    batch.put(key, value);
}

/// Reads a number that a minter stored; 0 if there is none.
pub fn stored_number(storage: &dyn Storage, name: &str) -> Result<u64, LoadError> {
    let key = schema::meta_key(name);
    let Some(value) = storage.get(&key)? else { return Ok(0) };
    let body = schema::open(&key, &value).map_err(|d| LoadError::Damaged(format!("{name}: {d}")))?;
    let bytes = body.try_into().map_err(|_| LoadError::Damaged(format!("{name}: not a number")))?;
    Ok(u64::from_be_bytes(bytes))
}

/// A write to mint.
#[derive(Debug, Clone)]
pub struct Mint {
    /// The storage key.
    pub storage_key: Vec<u8>,
    /// The keyspace's policy.
    pub conflicts: Conflicts,
    /// What to write.
    pub payload: Payload,
    /// What the client has seen: what this write replaces.
    pub seen: Context,
    /// A stamp to be above: what the client has seen, or what superseded the last one.
    pub above: Stamp,
    /// How long the version lives, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// The own copy is elsewhere: this node is a fallback, and the batch has no record.
    pub stands_in: bool,
    /// From when on it is not to be made any more: nobody waits for it, and another attempt may have been made.
    pub until: Option<Mono>,
    /// The client's name for the write, and what it asks for.
    pub request: Option<(RequestId, Print)>,
}

/// A minted version.
#[derive(Debug, Clone)]
pub struct Minted {
    /// What to write; nothing leaves the node before it is durable.
    pub batch: Batch,
    /// The merged record, encoded: what is sent.
    pub record: Bytes,
    /// The version's stamp.
    pub stamp: Stamp,
    /// Its dot, in a `siblings` record.
    pub dot: Option<Dot>,
    /// How many versions the record has now.
    pub versions: usize,
    /// What became of the version ids of the own copy; none if the batch has no record.
    pub change: Option<Change>,
    /// What is remembered of it under its request id, in the same batch.
    pub entry: Option<Entry>,
}

/// Why a write can't be minted; nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The stored record can't be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The record has as many siblings as allowed, and this would add one.
    #[error("{0} siblings")]
    TooManySiblings(usize),
    /// The stamp would be too far ahead of the wall clock: of the own clock, or of the version to be above.
    #[error(transparent)]
    Clock(#[from] TooFarAhead),
    /// The client's context names versions that this node has not made.
    #[error("names versions that this node has not made")]
    Forged,
    /// The record would be too large.
    #[error(
        "the key's concurrent values together have {0} bytes, over the limit of {RECORD_BYTES_MAX} bytes"
    )]
    TooLarge(usize),
}

/// Mints a version and the batch that stores it.
pub fn mint(
    storage: &dyn Storage,
    minter: &mut Minter,
    now: WallMs,
    write: &Mint,
) -> Result<Minted, MintError> {
    // A damaged copy is not written over: it would count in quorums without the versions that it held.
    let old = if write.stands_in { None } else { stored::load(storage, &write.storage_key)? };
    mint_onto(old, minter, now, write)
}

/// Mints a version onto this copy.
pub fn mint_onto(
    old: Option<stored::Stored>,
    minter: &mut Minter,
    now: WallMs,
    write: &Mint,
) -> Result<Minted, MintError> {
    let minted = match write.conflicts {
        Conflicts::Lww => mint_lww(minter, now, write, old),
        Conflicts::Siblings => mint_sibling(minter, now, write, old),
    };
    if minted.is_err() {
        minter.forget_leases();
    }
    minted
}

fn expires_at(now: WallMs, ttl_ms: Option<u64>) -> Option<WallMs> {
    ttl_ms.map(|ttl| WallMs(now.0.saturating_add(ttl)))
}

fn finish(
    mut batch: Batch,
    write: &Mint,
    line: Option<Line>,
    (before, record): (Option<Digest>, &Record),
    (now, stamp): (WallMs, Stamp),
    dot: Option<Dot>,
) -> Minted {
    let entry =
        write.request.map(|(id, print)| Entry { id, outcome: Outcome { print: Some(print), stamp, dot } });
    // A fallback remembers it with its hint, so not before the write itself is kept.
    if let Some(entry) = entry.filter(|_| !write.stands_in) {
        entry.remember(now, &mut batch);
    }
    let bytes = codec::encode_record(record);
    if !write.stands_in {
        batch.put(write.storage_key.clone(), stored::encode(&write.storage_key, line, &bytes));
    }
    let change = (!write.stands_in).then(|| Change {
        before,
        after: Some(record.digest()),
        dead_since: record.dead_since(),
    });
    Minted { batch, record: bytes.into(), stamp, dot, versions: record.versions(), change, entry }
}

fn mint_lww(
    minter: &mut Minter,
    now: WallMs,
    write: &Mint,
    old: Option<stored::Stored>,
) -> Result<Minted, MintError> {
    let mut batch = Batch::new();
    let before = old.as_ref().map(|old| old.record.digest());
    let floor = old.map_or(Stamp::default(), |old| old.record.stamp()).max(write.above);
    let stamp = minter.stamp(now, floor, &mut batch)?;
    let record = Record::Lww(LwwVersion {
        stamp,
        node: minter.node,
        payload: write.payload.clone(),
        expires_at: expires_at(now, write.ttl_ms),
        request: write.request.map(|(id, _)| id),
    });
    Ok(finish(batch, write, None, (before, &record), (now, stamp), None))
}

fn mint_sibling(
    minter: &mut Minter,
    now: WallMs,
    write: &Mint,
    old: Option<stored::Stored>,
) -> Result<Minted, MintError> {
    if minter.is_forged(&write.seen) && !canary::sings(Canary::DotTwice) {
        return Err(MintError::Forged);
    }
    let mut batch = Batch::new();
    let old_digest = old.as_ref().map(|old| old.record.digest());
    let (line, mut record) = match old {
        Some(old) => (old.line, old.record),
        None => (None, Record::Siblings(Vec::new())),
    };
    let mut past = write.seen.clone();
    let memory = u64::try_from(REQUEST_MEMORY.as_millis()).unwrap_or(u64::MAX);
    past.keep_late_requests(WallMs(now.0.saturating_sub(memory)), PAST_REQUESTS);
    let line = next_line(minter, line, &record.context(), &past, &mut batch);
    let actor = Actor { node: minter.node, incarnation: line.incarnation, birth: line.birth };
    let dot = Dot { actor, counter: line.counter };
    let stamp = minter.stamp(now, record.stamp().max(write.above), &mut batch)?;
    let (before, bytes_before) = (record.versions(), record.payload_bytes());
    let sibling = Sibling {
        dot,
        past,
        request: write.request.map(|(id, _)| id),
        stamp,
        payload: write.payload.clone(),
        expires_at: expires_at(now, write.ttl_ms),
    };
    record.replace(sibling).map_err(|mismatch| LoadError::Damaged(mismatch.to_string()))?;
    // A context that no node has given out could break the record for good.
    if record.problem().is_some() {
        return Err(MintError::Forged);
    }
    if record.versions() > SIBLINGS_MAX && record.versions() > before {
        return Err(MintError::TooManySiblings(before));
    }
    // What replicas have merged may be over both limits: a write that makes it less is the way out.
    let bytes = record.payload_bytes();
    if bytes > RECORD_BYTES_MAX && bytes > bytes_before {
        return Err(MintError::TooLarge(bytes));
    }
    Ok(finish(batch, write, Some(line), (old_digest, &record), (now, stamp), Some(dot)))
}

/// The line to mint on: the marked one, one further, if nothing knows more of it than the mark does; else a
/// new birth. With one that a context covers already, the version would be gone the moment it is merged in.
fn next_line(
    minter: &mut Minter,
    marked: Option<Line>,
    known: &Context,
    seen: &Context,
    batch: &mut Batch,
) -> Line {
    let own = marked.filter(|line| {
        let actor = Actor { node: minter.node, incarnation: line.incarnation, birth: line.birth };
        !canary::sings(Canary::DotTwice)
            && line.incarnation == minter.incarnation
            && known.top(&actor) <= line.counter
            && seen.top(&actor) <= line.counter
    });
    match own {
        Some(line) => Line { counter: line.counter + 1, ..line },
        None => Line {
            incarnation: minter.incarnation,
            birth: minter.unknown_birth(known, seen, batch),
            counter: 1,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStorage;
    use crate::types::ids::{KeyspaceId, PartitionId};
    use crate::types::key::Key;
    use crate::types::limits::CLOCK_SKEW_DEFAULT;

    fn minter(lease: u64) -> Minter {
        Minter::new(NodeId(1), Incarnation(7), Hlc::new(Stamp(0), CLOCK_SKEW_DEFAULT), lease)
    }

    fn write(conflicts: Conflicts, seen: Context) -> Mint {
        let key = Key::new(&b"k"[..], &b""[..]).expect("a valid key");
        Mint {
            storage_key: schema::record_key(PartitionId(3), KeyspaceId(1), &key),
            conflicts,
            payload: Payload::Value(Bytes::from_static(b"v")),
            seen,
            above: Stamp(0),
            ttl_ms: None,
            stands_in: false,
            until: None,
            request: None,
        }
    }

    fn mint_and_write(storage: &MemoryStorage, minter: &mut Minter, write: &Mint) -> Minted {
        let minted = mint(storage, minter, WallMs(1_000), write).expect("minted");
        storage.write(&minted.batch).expect("written");
        minted
    }

    #[test]
    fn lww_stamps_grow_even_when_the_clock_stands() {
        let (storage, mut m) = (MemoryStorage::default(), minter(0));
        let w = write(Conflicts::Lww, Context::new());
        let a = mint_and_write(&storage, &mut m, &w);
        let b = mint_and_write(&storage, &mut m, &w);
        assert!(b.stamp > a.stamp);
        assert!(stored_number(&storage, schema::META_CLOCK_BOUND).expect("a number") > b.stamp.0);
    }

    #[test]
    fn a_line_is_extended_and_blind_writes_become_siblings() {
        let (storage, mut m) = (MemoryStorage::default(), minter(0));
        let a = mint_and_write(&storage, &mut m, &write(Conflicts::Siblings, Context::new()));
        let b = mint_and_write(&storage, &mut m, &write(Conflicts::Siblings, Context::new()));
        assert_eq!(b.versions, 2);
        let (a, b) = (a.dot.expect("a dot"), b.dot.expect("a dot"));
        assert_eq!((a.actor, a.counter, b.counter), (b.actor, 1, 2));
        let mut seen = Context::new();
        seen.insert(a);
        seen.insert(b);
        let c = mint_and_write(&storage, &mut m, &write(Conflicts::Siblings, seen));
        assert_eq!(c.versions, 1);
        assert_eq!(stored_number(&storage, schema::META_BIRTH_LEASE).expect("a number"), BIRTH_LEASE);
    }

    /// F10: a coordinator that lost its copy does not issue its old dots again.
    #[test]
    fn f10_a_lost_record_starts_a_new_birth() {
        let (storage, mut m) = (MemoryStorage::default(), minter(0));
        let w = write(Conflicts::Siblings, Context::new());
        let first = mint_and_write(&storage, &mut m, &w).dot.expect("a dot");
        let mut forget = Batch::new();
        forget.delete(w.storage_key.clone());
        storage.write(&forget).expect("written");
        let again = mint_and_write(&storage, &mut m, &w).dot.expect("a dot");
        assert_ne!(first, again);
        assert_ne!(first.actor.birth, again.actor.birth);
    }

    /// F11: a record that came by replication onto a not-found has no mark, so its line is not extended.
    #[test]
    fn f11_a_replicated_record_is_not_extended() {
        let (storage, mut m) = (MemoryStorage::default(), minter(0));
        let w = write(Conflicts::Siblings, Context::new());
        let first = mint_and_write(&storage, &mut m, &w);
        let mut replicated = Batch::new();
        replicated.put(w.storage_key.clone(), stored::encode(&w.storage_key, None, &first.record));
        storage.write(&replicated).expect("written");
        let next = mint_and_write(&storage, &mut m, &w);
        assert_ne!(first.dot.expect("a dot").actor, next.dot.expect("a dot").actor);
        assert_eq!(next.versions, 2, "and both are kept");
    }

    /// A restart goes on above the durable lease, so births never repeat.
    #[test]
    fn births_go_on_above_the_lease_after_a_restart() {
        let (storage, mut m) = (MemoryStorage::default(), minter(0));
        let w = write(Conflicts::Siblings, Context::new());
        let first = mint_and_write(&storage, &mut m, &w).dot.expect("a dot");
        let mut restarted = minter(stored_number(&storage, schema::META_BIRTH_LEASE).expect("a number"));
        let mut forget = Batch::new();
        forget.delete(w.storage_key.clone());
        storage.write(&forget).expect("written");
        let again = mint_and_write(&storage, &mut restarted, &w).dot.expect("a dot");
        assert!(again.actor.birth > first.actor.birth);
    }

    fn dot(birth: u64, counter: u64) -> Dot {
        let actor = Actor { node: NodeId(1), incarnation: Incarnation(7), birth: Birth(birth) };
        Dot { actor, counter }
    }

    fn covering(dots: &[Dot]) -> Context {
        let mut context = Context::new();
        dots.iter().for_each(|dot| context.insert(*dot));
        context
    }

    /// A context that covers what this node will make next would swallow it, or make the record unreadable.
    #[test]
    fn a_context_of_versions_not_yet_made_is_refused() {
        let (storage, mut m) = (MemoryStorage::default(), minter(10));
        let forged = write(Conflicts::Siblings, covering(&[dot(11, 1)]));
        assert_eq!(mint(&storage, &mut m, WallMs(1_000), &forged).err(), Some(MintError::Forged));
        let later_life = Actor { incarnation: Incarnation(8), ..dot(1, 1).actor };
        let forged = write(Conflicts::Siblings, covering(&[Dot { actor: later_life, counter: 1 }]));
        assert_eq!(mint(&storage, &mut m, WallMs(1_000), &forged).err(), Some(MintError::Forged));
        assert_eq!(storage.get(&forged.storage_key).expect("readable"), None, "nothing is stored");
        let honest = write(Conflicts::Siblings, covering(&[dot(10, 1)]));
        assert_eq!(mint_and_write(&storage, &mut m, &honest).dot, Some(dot(11, 1)));
    }

    /// The same, come by way of another node: the record here covers the next births of this one.
    #[test]
    fn a_birth_that_the_record_already_covers_is_passed_over() {
        let (storage, mut m) = (MemoryStorage::default(), minter(10));
        let other = Actor { node: NodeId(2), ..dot(1, 1).actor };
        let sibling = Sibling {
            dot: Dot { actor: other, counter: 1 },
            past: covering(&[dot(11, 1), dot(12, 3)]),
            request: None,
            stamp: Stamp(5),
            payload: Payload::Value(Bytes::from_static(b"forged")),
            expires_at: None,
        };
        let blind = write(Conflicts::Siblings, Context::new());
        let mut batch = Batch::new();
        let bytes = codec::encode_record(&Record::Siblings(vec![sibling]));
        batch.put(blind.storage_key.clone(), stored::encode(&blind.storage_key, None, &bytes));
        storage.write(&batch).expect("written");
        let minted = mint_and_write(&storage, &mut m, &blind);
        assert_eq!(minted.dot, Some(dot(13, 1)));
        assert_eq!(minted.versions, 2, "nothing is swallowed");
    }

    #[test]
    fn the_limit_on_siblings_is_for_writes_that_add_one() {
        let (storage, mut m) = (MemoryStorage::default(), minter(0));
        let blind = write(Conflicts::Siblings, Context::new());
        for _ in 0..SIBLINGS_MAX {
            mint_and_write(&storage, &mut m, &blind);
        }
        let refused = mint(&storage, &mut m, WallMs(1_000), &blind).expect_err("one too many");
        assert_eq!(refused, MintError::TooManySiblings(SIBLINGS_MAX));
        let all = stored::load(&storage, &blind.storage_key).expect("readable").expect("there");
        let resolved = mint_and_write(&storage, &mut m, &write(Conflicts::Siblings, all.record.context()));
        assert_eq!(resolved.versions, 1);
    }

    #[test]
    fn the_limit_on_bytes_is_for_writes_that_add_some() {
        let (storage, mut m) = (MemoryStorage::default(), minter(0));
        // What two replicas took while they were apart.
        let actor = Actor { node: NodeId(2), ..dot(1, 1).actor };
        let value = Payload::Value(Bytes::from(vec![7; RECORD_BYTES_MAX / 4]));
        let sibling = |counter| Sibling {
            dot: Dot { actor, counter },
            past: Context::new(),
            request: None,
            stamp: Stamp(counter),
            payload: value.clone(),
            expires_at: None,
        };
        let merged = Record::Siblings((1..=6).map(sibling).collect());
        let blind = write(Conflicts::Siblings, Context::new());
        let mut batch = Batch::new();
        let bytes = codec::encode_record(&merged);
        batch.put(blind.storage_key.clone(), stored::encode(&blind.storage_key, None, &bytes));
        storage.write(&batch).expect("written");
        let refused = mint(&storage, &mut m, WallMs(1_000), &blind).expect_err("more bytes");
        assert!(matches!(refused, MintError::TooLarge(bytes) if bytes > RECORD_BYTES_MAX), "{refused}");
        let one = covering(&[Dot { actor, counter: 1 }]);
        let fewer = mint_and_write(&storage, &mut m, &write(Conflicts::Siblings, one));
        assert_eq!(fewer.versions, 6, "one of six is replaced");
    }
}
