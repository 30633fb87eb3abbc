//! Runs the requests of clients: finds the home replicas, drives the machine, or forwards once.
//!
//! The coordinator of a put is a home replica of its key. A node that is none forwards the request to the first
//! home replica it can reach, which never forwards again. One that surely changed nothing, since its disk is bad
//! or it is stopping, is passed over for the next; so is this node when it is a home itself. A get or a page of a
//! scan needs no home: any node merges what the home replicas answer.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::drive::{Driver, Place, PutDone};
use super::forwards::another_home_may;
use super::readings::KeyReading;
use super::refill::{self, Fresh};
use super::retries::{Named, Turns, context_of_write};
use super::sessions::{Carried, Wrote};
use crate::antientropy::forest::Place as Tree;
use crate::canary::{self, Canary};
use crate::quorum::admission::KeyShares;
use crate::quorum::{put, read};
use crate::replica::mint::Mint;
use crate::replica::requests::{Outcome as Known, Print};
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::{homes, preference_list};
use crate::rpc::requests::{GetDone, GetRequest, WriteDone, WriteRequest};
use crate::storage::schema;
use crate::telemetry::metrics::{Outcome, Verb};
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::ids::{NodeId, PartitionId};
use crate::types::key::{Key, Position};
use crate::types::limits;
use crate::types::policy::{Conflicts, Keyspace, Level};
use crate::types::time::{Mono, WallMs};
use crate::version::codec::{self, ClientContext};
use crate::version::dvv::Context;
use crate::version::hlc::Stamp;
use crate::version::record::{Payload, Record};
use crate::version::session::Session;

/// Whether the node takes requests, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serving {
    /// Not yet.
    Starting(String),
    /// Yes.
    Ready,
    /// Not any more.
    Draining,
}

/// Runs requests. One for each node.
pub struct Coordinator {
    /// What it drives.
    pub driver: Driver,
    /// The cluster map.
    pub map: watch::Receiver<Arc<ClusterMap>>,
    /// Whether it takes requests.
    pub serving: watch::Receiver<Serving>,
    /// Largest value, in bytes.
    pub value_limit: usize,
    /// Most requests under way.
    pub requests_limit: usize,
    /// Most bytes that those under way may write.
    pub bytes_limit: usize,
    /// The most that it takes while it is overloaded: see `src/node/overload.rs`.
    pub limit_now: AtomicUsize,
    /// Requests under way.
    pub under_way: AtomicUsize,
    /// Bytes of values that they write, or have found.
    pub bytes_under_way: AtomicUsize,
    /// About what a get finds: the largest of late, in bytes.
    pub usual_get: AtomicUsize,
    /// Of those under way, how many are for which key.
    pub key_shares: Mutex<KeyShares>,
    /// Requests that were refused because their key had its share, since it was last asked.
    pub hot_refused: AtomicUsize,
    /// Requests that ended, how many of them took over a quarter of their time, and how many ended well, likewise.
    pub ended: [AtomicUsize; 3],
    /// Writes under way that have a request id.
    pub turns: Turns,
}

/// Requests under way; counted, with the bytes that they write, until this is dropped.
pub struct Admitted<'a> {
    by: &'a Coordinator,
    requests: usize,
    bytes: usize,
    /// Whose share it is counted in, if it is for one key.
    key: Option<u64>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.by.key_shares().leave(key);
        }
        self.by.under_way.fetch_sub(self.requests, Ordering::AcqRel);
        self.by.bytes_under_way.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The bytes of an answer that its client has not taken; counted until this is dropped.
pub struct HeldAnswer {
    by: Arc<Coordinator>,
    bytes: usize,
}

impl Drop for HeldAnswer {
    fn drop(&mut self) {
        self.by.bytes_under_way.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// A request's keyspace and where its key lives, all of one snapshot of the cluster map.
pub struct Route {
    /// The snapshot.
    pub map: Arc<ClusterMap>,
    /// The keyspace.
    pub keyspace: Keyspace,
    /// The key's position.
    pub position: Position,
    /// Its partition.
    pub partition: PartitionId,
    /// Its home replicas, in order.
    pub homes: Vec<NodeId>,
}

impl Route {
    /// The Merkle tree that the key is in.
    pub fn tree(&self) -> Tree {
        Tree { partition: self.partition, keyspace: self.keyspace.id }
    }
}

impl Coordinator {
    /// Counts a request in that writes a value of `bytes`, or says why it is not taken. A value larger than all
    /// that may be under way is taken when it is alone.
    pub fn admit(&self, bytes: usize) -> Result<Admitted<'_>, Failure> {
        self.admit_many(1, bytes)
    }

    /// Counts several requests in, likewise: all or none. More than may be under way are taken when nothing is.
    pub fn admit_many(&self, requests: usize, bytes: usize) -> Result<Admitted<'_>, Failure> {
        match &*self.serving.borrow() {
            Serving::Ready => {}
            Serving::Starting(why) => {
                return Err(Failure::early(Cause::NotServing(format!("starting: {why}"))));
            }
            Serving::Draining => return Err(Failure::early(Cause::NotServing("stopping".into()))),
        }
        let admitted = Admitted { by: self, requests, bytes, key: None };
        let others = self.under_way.fetch_add(requests, Ordering::AcqRel);
        let before = self.bytes_under_way.fetch_add(bytes, Ordering::AcqRel);
        let too_large = bytes > 0 && before > 0 && before.saturating_add(bytes) > self.bytes_limit;
        // The door lets clients in that are below their share when the limit is reached: up to twice that.
        let limit = self.requests_limit.saturating_mul(2).min(self.limit_now.load(Ordering::Relaxed));
        let too_many = others > 0 && others.saturating_add(requests) > limit;
        if too_many || too_large {
            drop(admitted);
            return Err(Failure::early(Cause::Overloaded(limits::RETRY_DELAY)));
        }
        Ok(admitted)
    }

    /// Counts a put or delete in, with its bytes, and in the share of its key.
    pub fn admit_write(&self, request: &WriteRequest) -> Result<Admitted<'_>, Failure> {
        self.admit_key(&request.keyspace, request.key.partition_key(), request.payload.bytes())
    }

    /// Counts a get in, with as many bytes as gets of late have found, and in the share of its key.
    pub fn admit_get(&self, request: &GetRequest) -> Result<Admitted<'_>, Failure> {
        self.admit_key(&request.keyspace, request.key.partition_key(), self.usual_get.load(Ordering::Relaxed))
    }

    /// Counts a request in, and in the share of its partition key.
    pub fn admit_key(&self, keyspace: &str, key: &[u8], bytes: usize) -> Result<Admitted<'_>, Failure> {
        let mut admitted = self.admit(bytes)?;
        // Keys of one hash share a share, which does no harm.
        let mut hasher = DefaultHasher::new();
        (keyspace, key).hash(&mut hasher);
        let hash = hasher.finish();
        let limit = self.requests_limit.min(self.limit_now.load(Ordering::Relaxed) / 2);
        let others = self.under_way.load(Ordering::Relaxed).saturating_sub(1);
        if !self.key_shares().enter(hash, others, limit) {
            self.hot_refused.fetch_add(1, Ordering::Relaxed);
            return Err(Failure::early(Cause::Overloaded(limits::RETRY_DELAY)));
        }
        admitted.key = Some(hash);
        Ok(admitted)
    }

    fn key_shares(&self) -> MutexGuard<'_, KeyShares> {
        self.key_shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns how much a get has found.
    pub fn found(&self, bytes: usize) {
        let usual = self.usual_get.load(Ordering::Relaxed);
        self.usual_get.store(bytes.max(usual - usual / 16), Ordering::Relaxed);
    }

    /// Counts the bytes of an answer until its client has taken it, or says that there is no room for it, unless it
    /// `must` be given.
    pub fn hold(self: &Arc<Self>, bytes: usize, must: bool) -> Result<HeldAnswer, Failure> {
        let before = self.bytes_under_way.fetch_add(bytes, Ordering::AcqRel);
        let held = HeldAnswer { by: self.clone(), bytes };
        if !must && bytes > 0 && before > 0 && before.saturating_add(bytes) > self.bytes_limit {
            return Err(Failure::early(Cause::Overloaded(limits::RETRY_DELAY)));
        }
        Ok(held)
    }

    /// Finds where a partition key lives.
    pub fn route(&self, keyspace: &str, partition_key: &[u8]) -> Result<Route, Failure> {
        let map = self.map.borrow().clone();
        let Some(keyspace) = map.keyspace(keyspace).cloned() else {
            return Err(Failure::early(Cause::UnknownKeyspace(keyspace.to_owned())));
        };
        let position = Position::of(&keyspace.name, partition_key);
        let partition = map.partitions.of(position);
        let homes = homes(&map, &keyspace, partition);
        Ok(Route { map, keyspace, position, partition, homes })
    }

    /// Whether a node looks reachable: it is this one, or its link is up.
    pub fn is_reachable(&self, node: NodeId) -> bool {
        node == self.driver.me || self.driver.links.up(node).is_some()
    }

    /// Learns how long a request took of the time that it had.
    pub fn took<T>(&self, began: Mono, timeout: Duration, result: &Result<T, Failure>) {
        if matches!(result, Err(failure) if matches!(failure.cause, Cause::Overloaded(_))) {
            return;
        }
        let [ended, late, well] = &self.ended;
        ended.fetch_add(1, Ordering::Relaxed);
        late.fetch_add(usize::from(self.since(began) > timeout / 4), Ordering::Relaxed);
        well.fetch_add(usize::from(result.is_ok()), Ordering::Relaxed);
    }

    /// Counts a finished request.
    pub fn count<T>(&self, verb: Verb, began: Mono, result: &Result<T, Failure>) {
        let outcome = match result {
            Ok(_) => Outcome::Ok,
            Err(failure) => match failure.cause.kind() {
                Cause::Invalid(_) | Cause::UnknownKeyspace(_) => Outcome::Invalid,
                Cause::Unavailable | Cause::NotServing(_) => Outcome::Unavailable,
                Cause::TooFewAcks => Outcome::TooFewAcks,
                Cause::Overloaded(_) => Outcome::Overloaded,
                _ => Outcome::Other,
            },
        };
        let micros = self.driver.clock.mono().micros_since(began);
        self.driver.metrics.finished(verb, outcome, micros);
    }

    /// A put or delete. `may_forward`: it comes from a client, not from a peer.
    pub async fn write(&self, mut request: WriteRequest, may_forward: bool) -> Result<WriteDone, Failure> {
        let began = self.driver.clock.mono();
        let route = self.route(&request.keyspace, request.key.partition_key())?;
        let w = request.w.unwrap_or(Level::Count(route.keyspace.w.into()));
        let w = w.resolve("w", route.keyspace.n)?;
        let seen = client_context(&request.context, &route, &request.key)?;
        let _well_formed = request.session.as_deref().map(Session::decode).transpose()?;
        let goes_on = match request.request_id {
            // Attempts through several nodes meet at the first home replica.
            Some(_) if may_forward => self.first_home(&route) != Some(self.driver.me),
            _ => !route.homes.contains(&self.driver.me),
        };
        let mut is_in_doubt = false;
        if goes_on {
            let is_home = route.homes.contains(&self.driver.me);
            if request.sloppy.unwrap_or(route.keyspace.sloppy) {
                // A home that is silent must not hold it up: so named, it can be sent to the next. Clients' own ids
                // come first: as many nodes remember about as much, the count here tells how much room there is.
                let has_room =
                    self.driver.metrics.requests_remembered.get() < limits::REQUESTS_REMEMBERED / 2;
                request.request_id = request.request_id.or_else(|| has_room.then(|| self.turns.new_id()));
            }
            match self.forward_write(request.clone(), &route, w, may_forward).await {
                // If no answer came, what was carried out there is found here, or is this write's twin.
                Err(failure)
                    if (may_forward && self.may_stand_in(&request, &route, &failure))
                        || (is_home && failure.cause == Cause::TooFewAcks)
                        || (is_home && another_home_may(&failure)) =>
                {
                    is_in_doubt = failure.applied == Applied::Maybe;
                }
                done => return done,
            }
        }
        let done = self.coordinate_or_hand_on(request, &route, w, seen, began, may_forward).await;
        done.map_err(|failure| if is_in_doubt { failure.in_doubt() } else { failure })
    }

    /// Coordinates a write here; if that surely changed nothing, another home may do it.
    async fn coordinate_or_hand_on(
        &self,
        request: WriteRequest,
        route: &Route,
        w: u8,
        seen: ClientContext,
        began: Mono,
        may_forward: bool,
    ) -> Result<WriteDone, Failure> {
        let kept = may_forward.then(|| request.clone());
        match self.coordinate(request, route, w, seen, began).await {
            Err(failure) if another_home_may(&failure) => {
                let Some(request) = kept else { return Err(failure) };
                let timeout = request.timeout.saturating_sub(self.since(began));
                let handed_on = self.forward_write(WriteRequest { timeout, ..request }, route, w, true);
                // Who could not be asked has nothing better to say.
                handed_on
                    .await
                    .map_err(|other| if other.cause == Cause::Unavailable { failure } else { other })
            }
            done => done,
        }
    }

    /// Whether this node, which is no home, coordinates a sloppy write: none can be reached.
    fn may_stand_in(&self, request: &WriteRequest, route: &Route, failure: &Failure) -> bool {
        request.sloppy.unwrap_or(route.keyspace.sloppy)
            && match failure.cause {
                Cause::Unavailable => self.first_home(route).is_none(),
                // All are silent.
                Cause::TooFewAcks => request.request_id.is_some(),
                _ => false,
            }
    }

    /// The reachable fallbacks of a request, in order; this node first if it stands in itself.
    fn fallbacks(&self, route: &Route, sloppy: Option<bool>) -> Vec<NodeId> {
        if !sloppy.unwrap_or(route.keyspace.sloppy) {
            return Vec::new();
        }
        let list = preference_list(&route.map, &route.keyspace, route.partition);
        let mut fallbacks = list.fallbacks;
        fallbacks.retain(|node| self.is_reachable(*node));
        fallbacks.sort_by_key(|node| *node != self.driver.me);
        fallbacks
    }

    /// The reading of one key.
    pub fn key_reading(&self, route: &Route, place: Place) -> KeyReading {
        let is_home = route.homes.contains(&self.driver.me);
        let own_hints = (!is_home).then(|| self.driver.hints.clone());
        KeyReading { place, homes: route.homes.clone(), own_hints }
    }

    fn since(&self, began: Mono) -> Duration {
        Duration::from_micros(self.driver.clock.mono().micros_since(began))
    }

    /// A put or delete of which this node is the coordinator.
    async fn coordinate(
        &self,
        request: WriteRequest,
        route: &Route,
        w: u8,
        mut seen: ClientContext,
        began: Mono,
    ) -> Result<WriteDone, Failure> {
        let now = self.driver.clock.wall();
        let storage_key = schema::record_key(route.partition, route.keyspace.id, &request.key);
        let carried = Carried::of(request.session.as_ref(), route, &storage_key)?;
        if let Some(carried) = &carried {
            seen.stamp = seen.stamp.max(carried.need().stamp);
        }
        self.check_clock(now, seen.stamp)?;
        if route.keyspace.conflicts == Conflicts::Lww {
            seen.stamp = seen.stamp.max(self.least_stamp(route)?);
        }
        let fallbacks = self.fallbacks(route, request.sloppy);
        if fallbacks.is_empty() {
            self.check_agreed(now, route, w)?;
        }
        let homes: Vec<_> = route.homes.iter().map(|node| (*node, self.is_reachable(*node))).collect();
        if fallbacks.is_empty() {
            self.check_room(&homes, w)?;
        }
        let plan = put::Plan {
            me: self.driver.me,
            homes,
            fallbacks,
            stand_in_after: limits::STAND_IN_AFTER,
            w,
            deadline: began + request.timeout,
            layout_version: route.map.layout.version,
        };
        let place = place(route, request.key);
        let named = request.request_id.map(|id| Named {
            route,
            place: &place,
            request: (id, Print::of(&place.storage_key, &request.payload)),
            fallbacks: &plan.fallbacks,
            w,
            deadline: plan.deadline,
        });
        let _turn = match &named {
            None => None,
            Some(named) => {
                let turn =
                    tokio::time::timeout(self.left(named.deadline), self.turns.take(named.request.0)).await;
                let Ok(turn) = turn else {
                    let homes = route.homes.clone();
                    return Err(self.forward_failure(route, w, Cause::TooFewAcks, Applied::Maybe, homes));
                };
                if let Some(known) = self.earlier_attempt(named).await? {
                    return self.repeat(named, seen, carried, known).await;
                }
                if self.driver.metrics.requests_remembered.get() >= limits::REQUESTS_REMEMBERED {
                    return Err(Failure::early(Cause::Overloaded(limits::RETRY_DELAY)));
                }
                if seen.dots.has_request(named.request.0) {
                    let problem =
                        "is covered by the context: the write was carried out, and is not remembered";
                    return Err(Failure::from(Invalid::new("request_id", problem)).in_doubt());
                }
                Some(turn)
            }
        };
        let ttl_ms = match request.payload {
            Payload::Value(_) => request.ttl_ms.or(route.keyspace.ttl_ms),
            Payload::Tombstone => None,
        };
        let write = Mint {
            storage_key: place.storage_key.clone(),
            conflicts: route.keyspace.conflicts,
            payload: request.payload,
            seen: seen.dots.clone(),
            above: seen.stamp,
            ttl_ms,
            stands_in: !route.homes.contains(&self.driver.me),
            until: Some(plan.deadline),
            request: named.as_ref().map(|named| named.request),
        };
        let id = request.request_id;
        let PutDone { done, minted } = self.driver.put(plan, place.clone(), write).await?;
        let outcome = Known { print: None, stamp: minted.stamp, dot: minted.dot };
        let session = carried.map(|carried| {
            // Of a sloppy write nobody knows how many homes have it.
            let holders = if done.sloppy { 0 } else { done.acks };
            let wrote = Wrote { by: self.driver.me, id, outcome, past: &seen.dots, holders };
            carried.wrote(self.driver.clock.wall(), route.keyspace.conflicts, &wrote)
        });
        Ok(WriteDone {
            context: context_of_write(seen, outcome, id),
            w: w.into(),
            acks: done.acks,
            sloppy: done.sloppy,
            stamp: minted.stamp.0,
            session: session.unwrap_or_default(),
        })
    }

    /// What the stamp of an `lww` write must be above if this node was a replica and lost its disk.
    fn least_stamp(&self, route: &Route) -> Result<Stamp, Failure> {
        match self.driver.refill.judge(route.tree(), &route.homes, self.driver.me) {
            _ if !route.homes.contains(&self.driver.me) => Ok(Stamp::default()),
            Fresh::Take => Ok(Stamp::default()),
            Fresh::Above(stamp) => Ok(stamp),
            Fresh::NotYet => Err(Failure::early(Cause::NotServing(refill::NOT_HEARD.into()))),
        }
    }

    /// Refuses a write that would find the links to too many replicas full: then nothing is stored.
    fn check_room(&self, homes: &[(NodeId, bool)], w: u8) -> Result<(), Failure> {
        let me = self.driver.me;
        let full = |node: NodeId| node != me && self.driver.links.up(node).is_some_and(|link| link.is_full());
        let reachable = homes.iter().filter(|(_, reachable)| *reachable).count();
        let with_room = homes.iter().filter(|(node, reachable)| *reachable && !full(*node)).count();
        if reachable >= usize::from(w) && with_room < usize::from(w) {
            return Err(Failure::early(Cause::Overloaded(limits::RETRY_DELAY)));
        }
        Ok(())
    }

    /// Refuses a write whose stamp so many home replicas would refuse that the rest are too few: it would only
    /// leave a copy here that nobody can write over.
    fn check_agreed(&self, now: WallMs, route: &Route, w: u8) -> Result<(), Failure> {
        let (last, limit) =
            self.driver.committer.with_minter(|minter| (minter.clock().last(), minter.clock().max_skew_ms()));
        let stamp = now.max(last.wall());
        let (me, links) = (self.driver.me, &self.driver.links);
        let reachable = || route.homes.iter().filter(|node| self.is_reachable(**node));
        let agree = reachable().filter(|node| **node == me || links.would_take(**node, stamp, limit)).count();
        if agree < usize::from(w) && reachable().count() >= usize::from(w) {
            self.driver.metrics.clock_skew.inc();
            let problem = format!("this node's stamps are at {stamp}, ahead of what other replicas take");
            return Err(Failure::early(Cause::ClockSkew(problem)));
        }
        Ok(())
    }

    /// A client's stamp that is far ahead is no stamp of this cluster's.
    fn check_clock(&self, now: WallMs, stamp: Stamp) -> Result<(), Failure> {
        let checked = self.driver.committer.with_minter(|minter| minter.clock().check(now, stamp));
        checked.map_err(|too_far| Invalid::new("context", too_far.to_string()).into())
    }

    /// A get.
    pub async fn get(&self, request: GetRequest) -> Result<GetDone, Failure> {
        let began = self.driver.clock.mono();
        let route = self.route(&request.keyspace, request.key.partition_key())?;
        let r = request.r.unwrap_or(Level::Count(route.keyspace.r.into()));
        let r = r.resolve("r", route.keyspace.n)?;
        let fallbacks = self.fallbacks(&route, request.sloppy);
        let tag = codec::key_tag(route.position, request.key.sort_key());
        let place = place(&route, request.key);
        let carried = Carried::of(request.session.as_ref(), &route, &place.storage_key)?;
        let need = carried.as_ref().map(Carried::need).unwrap_or_default();
        let asked = r.max(need.answers.min(route.keyspace.n));
        let mut plan = self.read_plan(&route, asked, &fallbacks, began + request.timeout);
        plan.floor = need.floor.filter(|_| !canary::sings(Canary::SessionForgotten));
        let reading = self.key_reading(&route, place);
        let done = self.driver.read(plan, reading).await?;
        let now = self.driver.clock.wall();
        let record = done.answer.as_deref();
        // What fallbacks hold is no home's yet.
        let holders = if done.sloppy { 0 } else { done.holders };
        Ok(GetDone {
            siblings: record.map(|record| record.live(now)).unwrap_or_default(),
            context: record.map(|record| context_of(record, tag)).unwrap_or_default(),
            r: r.into(),
            replies: done.replies,
            sloppy: done.sloppy,
            session: carried.map(|carried| carried.read(now, record, holders)).unwrap_or_default(),
        })
    }

    /// The plan of a read: this node first, then the other reachable home replicas, the likely fast ones in front.
    pub fn read_plan<F>(&self, route: &Route, r: u8, fallbacks: &[NodeId], deadline: Mono) -> read::Plan<F> {
        let me = self.driver.me;
        let homes = route.homes.clone();
        let mut candidates: Vec<NodeId> =
            homes.iter().copied().filter(|node| *node != me && self.is_reachable(*node)).collect();
        let (now, refill) = (self.driver.clock.mono(), &self.driver.refill);
        let (own, hedge_after) = {
            let mut choice = self.driver.choice();
            choice.order(now, &mut candidates);
            candidates.sort_by_key(|node| refill.is_asked_last(*node, now));
            let own = usize::from(homes.contains(&me) && !refill.lacks(route.tree()));
            let asked = usize::from(r).saturating_sub(own).min(candidates.len());
            (own, choice.patience(&candidates[..asked]))
        };
        if own > 0 {
            candidates.insert(0, me);
        }
        candidates.extend(fallbacks);
        read::Plan {
            candidates,
            homes,
            r,
            holders: 0,
            floor: None,
            deadline,
            hedge_after,
            layout_version: route.map.layout.version,
        }
    }
}

/// Where a key of `route` is stored.
pub fn place(route: &Route, key: Key) -> Place {
    let storage_key = schema::record_key(route.partition, route.keyspace.id, &key);
    Place { keyspace: route.keyspace.id, key, storage_key }
}

/// The context that covers all of a record.
pub fn context_of(record: &Record, key_tag: u32) -> Bytes {
    let context = ClientContext { key_tag, dots: record.context(), stamp: record.stamp() };
    codec::encode_context(&context).into()
}

fn client_context(bytes: &Bytes, route: &Route, key: &Key) -> Result<ClientContext, Invalid> {
    let key_tag = codec::key_tag(route.position, key.sort_key());
    if bytes.is_empty() {
        return Ok(ClientContext { key_tag, dots: Context::new(), stamp: Stamp::default() });
    }
    codec::decode_context(bytes, key_tag)
}
