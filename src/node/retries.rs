//! Writes with a request id: a retry, through whichever coordinator, finds what became of the first.
//!
//! Rules:
//! 1. One write with a given id runs at a time on a node; while the home replicas agree on who is reachable, all go
//!    to the first reachable one, so two that come at once meet there.
//! 2. Before it mints, a coordinator asks the other home replicas what they remember. Enough must answer that
//!    a write which `w` acknowledged is not missed, or more than half of them if that is fewer.
//!    One that lost its disk of late does not count: it may have forgotten (`refill`).
//! 3. One that is remembered is not minted again. The retry is done when `w` replicas hold it, or what has replaced
//!    it: a read with write-back.
//! 4. Two attempts that could not know of each other, on two sides of a partition, are minted twice; in a `siblings`
//!    record they are one version all the same (`Record::merge`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::committer::Committer;
use super::coordinator::{Coordinator, Route};
use super::drive::Place;
use super::env::Clock;
use super::sessions::Carried;
use crate::replica::requests::{self, Entry, Outcome, Print};
use crate::rpc::convert::request_id_bytes;
use crate::rpc::proto::{self, answer, operation};
use crate::rpc::requests::WriteDone;
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::ids::{NodeId, Nonce, RequestId};
use crate::types::limits;
use crate::types::policy::Conflicts;
use crate::types::time::Mono;
use crate::version::codec::{self, ClientContext};
use crate::version::session::Floor;

/// Writes under way that have a request id.
#[derive(Debug)]
pub struct Turns {
    under_way: Mutex<BTreeMap<RequestId, Arc<tokio::sync::Mutex<()>>>>,
    /// The next id that this node gives itself: its start in the upper half, then a count.
    next: Mutex<u128>,
}

/// The turn of one write under its request id.
pub struct Turn<'a> {
    turns: &'a Turns,
    id: RequestId,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// None under way, at this start of the node.
    pub fn new(nonce: Nonce) -> Turns {
        Turns { under_way: Mutex::default(), next: Mutex::new(u128::from(nonce.0) << 64) }
    }

    /// An id for a write that came without one.
    pub fn new_id(&self) -> RequestId {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        RequestId(*next)
    }

    /// Waits until no other write under this id is under way.
    pub async fn take(&self, id: RequestId) -> Turn<'_> {
        let turn = {
            let mut turns = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(id).or_default().clone()
        };
        // Made first: when this future is dropped while it waits, the entry is cleared away too.
        let mut mine = Turn { turns: self, id, held: None };
        mine.held = Some(turn.lock_owned().await);
        mine
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut turns = self.turns.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who wait hold the lock too.
        if turns.get(&self.id).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.id);
        }
    }
}

/// A write that may have been carried out before.
pub struct Named<'a> {
    /// Where it goes.
    pub route: &'a Route,
    /// Its key.
    pub place: &'a Place,
    /// Its name, and what it asks for.
    pub request: (RequestId, Print),
    /// Those that may stand in, if it is sloppy.
    pub fallbacks: &'a [NodeId],
    /// Acknowledgements needed.
    pub w: u8,
    /// When it must be answered.
    pub deadline: Mono,
}

impl Coordinator {
    /// The first home replica that can be reached.
    pub fn first_home(&self, route: &Route) -> Option<NodeId> {
        route.homes.iter().copied().find(|node| self.is_reachable(*node))
    }

    /// What became of an earlier attempt, and who knows; none if there was none.
    pub async fn earlier_attempt(&self, named: &Named<'_>) -> Result<Option<(NodeId, Outcome)>, Failure> {
        let (id, print) = named.request;
        let driver = &self.driver;
        let (now, storage) = (driver.clock.wall(), driver.committer.storage());
        let own = requests::find(storage, now, &named.place.storage_key, id);
        let own = own.map_err(|error| Failure::early(Cause::Storage(error.to_string())))?;
        let found = match own {
            Some((outcome, _)) => Some((driver.me, outcome)),
            None => self.ask_the_others(named).await?,
        };
        if found.is_some_and(|(_, outcome)| outcome.print.is_some_and(|known| known != print)) {
            let problem = format!("{id} is the id of another write, of another key or value");
            return Err(Invalid::new("request_id", problem).into());
        }
        Ok(found)
    }

    /// Rule 2.
    async fn ask_the_others(&self, named: &Named<'_>) -> Result<Option<(NodeId, Outcome)>, Failure> {
        let n = named.route.homes.len();
        // What this node has forgotten with its disk says nothing.
        let own = usize::from(!self.driver.refill.forgets_requests(self.driver.clock.wall()));
        let needed = match named.fallbacks {
            [] => ((n - usize::from(named.w) + 1).min(n / 2 + 1) - own).min(n - 1),
            // A sloppy write goes on with whomever it reaches.
            _ => 0,
        };
        let (answers, mut heard) = mpsc::unbounded_channel();
        let mut asked = 0;
        let replicas = named.route.homes.iter().chain(named.fallbacks).copied();
        for node in replicas.filter(|node| *node != self.driver.me) {
            let Some(link) = self.driver.links.up(node) else { continue };
            let find = proto::FindRequest { request_id: request_id_bytes(Some(named.request.0)) };
            let operation = named.place.operation(operation::Kind::FindRequest(find));
            let answers = answers.clone();
            let waiter = Box::new(move |answer| {
                let answer = match answer {
                    Ok(answer::Kind::Remembered(bytes)) => Some(bytes),
                    _ => None,
                };
                let _ = answers.send((node, answer));
            });
            asked += usize::from(link.send(operation, waiter).is_ok());
        }
        drop(answers);
        let (mut known, began) = (0, self.driver.clock.mono());
        for left in (0..asked).rev() {
            // Once enough have answered, silent ones are not waited for.
            let wait = match known >= needed {
                true => self.left(began + limits::HEDGE_AFTER),
                false => self.left(named.deadline),
            };
            match tokio::time::timeout(wait, heard.recv()).await {
                Ok(Some((node, Some(bytes)))) if !bytes.is_empty() => {
                    if let Some(entry) = Entry::decode(&bytes) {
                        return Ok(Some((node, entry.outcome)));
                    }
                }
                Ok(Some((_, Some(_)))) => known += 1,
                Ok(Some((_, None))) if known + left >= needed => {}
                _ => break,
            }
        }
        if known >= needed {
            return Ok(None);
        }
        let (w, homes) = (named.w, named.route.homes.clone());
        Err(self.forward_failure(named.route, w, Cause::Unavailable, Applied::No, homes))
    }

    pub(super) fn left(&self, deadline: Mono) -> Duration {
        Duration::from_micros(deadline.micros_since(self.driver.clock.mono()))
    }

    /// Rule 3: the answer to a write that was minted before.
    pub async fn repeat(
        &self,
        named: &Named<'_>,
        seen: ClientContext,
        carried: Option<Carried>,
        (knows, outcome): (NodeId, Outcome),
    ) -> Result<WriteDone, Failure> {
        self.driver.metrics.requests_repeated.inc();
        // It is a read for the session too: the token may need more than this write.
        let need = carried.as_ref().map(Carried::need).unwrap_or_default();
        let answers = named.w.max(need.answers.min(named.route.keyspace.n));
        let mut plan = self.read_plan(named.route, answers, named.fallbacks, named.deadline);
        // A fallback that remembers it may have brought it home, and holds nothing any more.
        if named.route.homes.contains(&knows) {
            plan.candidates.retain(|node| *node != knows);
            plan.candidates.insert(0, knows);
        }
        plan.holders = named.w;
        plan.floor = match (named.route.keyspace.conflicts, outcome.dot) {
            // Of an lww version who stamped it is not remembered: the least of that stamp will do.
            (Conflicts::Lww, _) => Some(Floor::Lww(outcome.stamp, NodeId(0))),
            (Conflicts::Siblings, Some(dot)) => Some(Floor::Siblings(vec![(dot, Some(named.request.0))])),
            (Conflicts::Siblings, None) => None,
        };
        plan.floor = match (plan.floor, need.floor) {
            (Some(write), Some(session)) => Some(write.and(session)),
            (one, other) => one.or(other),
        };
        let reading = self.key_reading(named.route, named.place.clone());
        // The first attempt was stored, and what holds for it now is not known.
        let done = self.driver.read(plan, reading).await.map_err(Failure::in_doubt)?;
        let stamp = outcome.stamp;
        let session = carried.map(|carried| {
            let now = self.driver.clock.wall();
            // Whoever holds it holds the write, or what replaced it.
            match &done.answer {
                Some(record) => carried.read(now, Some(record), done.holders),
                None => carried.read(now, None, 0),
            }
        });
        let session = session.unwrap_or_default();
        let context = context_of_write(seen, outcome, Some(named.request.0));
        // Fallbacks that keep nothing have answered, and hold nothing.
        if done.holders < u32::from(named.w) {
            let homes = named.route.homes.clone();
            let failure =
                self.forward_failure(named.route, named.w, Cause::TooFewAcks, Applied::Maybe, homes);
            return Err(Failure { received: done.holders, ..failure });
        }
        let acks = done.holders;
        Ok(WriteDone { context, w: named.w.into(), acks, sloppy: done.sloppy, stamp: stamp.0, session })
    }
}

/// The context that covers a write and what it replaced.
pub fn context_of_write(seen: ClientContext, outcome: Outcome, id: Option<RequestId>) -> Bytes {
    let mut context = ClientContext { stamp: outcome.stamp, ..seen };
    outcome.dot.into_iter().for_each(|dot| context.dots.insert(dot));
    if let Some(id) = id {
        context.dots.insert_request(id, outcome.stamp.wall());
    }
    codec::encode_context(&context).into()
}

/// Entries forgotten at once.
const FORGET_AT_ONCE: usize = 500;
/// How often those whose time is over are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// Forgets requests whose time is over, for as long as the node runs.
pub async fn forget_requests(committer: Committer, clock: Arc<dyn Clock>) {
    let mut ticks = tokio::time::interval(FORGET_EVERY);
    loop {
        ticks.tick().await;
        loop {
            let batch = match requests::forget(committer.storage(), clock.wall(), FORGET_AT_ONCE) {
                Ok(batch) if !batch.writes.is_empty() => batch,
                Ok(_) => break,
                Err(error) => {
                    tracing::error!(%error, "remembered requests can't be read");
                    break;
                }
            };
            if let Err(cause) = committer.write(batch).await {
                tracing::debug!(?cause, "remembered requests are not forgotten yet");
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writes_of_one_id_take_turns_and_leave_nothing() {
        let turns = Turns::new(Nonce(7));
        assert_ne!(turns.new_id(), turns.new_id());
        let first = turns.take(RequestId(1)).await;
        let other = turns.take(RequestId(2)).await;
        let mut second = Box::pin(turns.take(RequestId(1)));
        assert!(tokio::time::timeout(Duration::ZERO, &mut second).await.is_err());
        let given_up = Box::pin(turns.take(RequestId(1)));
        drop(given_up);
        drop(first);
        let second = second.await;
        drop((second, other));
        assert!(turns.under_way.lock().expect("not poisoned").is_empty());
    }
}
