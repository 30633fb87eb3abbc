//! Runs the requests of clients: finds the home replicas, drives the machine, or forwards once.
//!
//! The coordinator of a put or get is a home replica of its key. A node that is none forwards the request to
//! the first home replica it can reach, which never forwards again. One that surely changed nothing, since its
//! disk is bad or it is stopping, is passed over for the next; so is this node when it is a home itself. A page
//! of a scan needs no home: any node merges what the home replicas of the partition answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::drive::{Driver, Place};
use super::readings::KeyReading;
use crate::canary::{self, Canary};
use crate::quorum::{put, read};
use crate::replica::mint::Mint;
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::rpc::convert;
use crate::rpc::proto::{self, answer, forward, forwarded, operation};
use crate::rpc::requests::{GetDone, GetRequest, WriteDone, WriteRequest};
use crate::storage::schema;
use crate::telemetry::metrics::{Outcome, Verb};
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::ids::{NodeId, PartitionId};
use crate::types::key::{Key, Position};
use crate::types::limits;
use crate::types::policy::{Keyspace, Level};
use crate::types::time::{Mono, WallMs};
use crate::version::codec::{self, ClientContext};
use crate::version::dvv::Context;
use crate::version::hlc::Stamp;
use crate::version::record::{Payload, Record};

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
    /// Requests under way.
    pub under_way: AtomicUsize,
    /// Bytes of values that they write.
    pub bytes_under_way: AtomicUsize,
}

/// One request under way; counted, with the bytes that it writes, until it is dropped.
pub struct Admitted<'a> {
    by: &'a Coordinator,
    bytes: usize,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.by.under_way.fetch_sub(1, Ordering::AcqRel);
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

/// The answer of another node to a forwarded request.
enum Sent {
    Answered(forwarded::Kind),
    Lost(NodeId),
    NobodyUp,
}

impl Coordinator {
    /// Counts a request in that writes a value of `bytes`, or says why it is not taken. A value larger than all
    /// that may be under way is taken when it is alone.
    pub fn admit(&self, bytes: usize) -> Result<Admitted<'_>, Failure> {
        match &*self.serving.borrow() {
            Serving::Ready => {}
            Serving::Starting(why) => {
                return Err(Failure::early(Cause::NotServing(format!("starting: {why}"))));
            }
            Serving::Draining => return Err(Failure::early(Cause::NotServing("stopping".into()))),
        }
        let admitted = Admitted { by: self, bytes };
        let requests = self.under_way.fetch_add(1, Ordering::AcqRel);
        let before = self.bytes_under_way.fetch_add(bytes, Ordering::AcqRel);
        let too_large = bytes > 0 && before > 0 && before.saturating_add(bytes) > self.bytes_limit;
        if requests >= self.requests_limit || too_large {
            drop(admitted);
            return Err(Failure::early(Cause::Overloaded(limits::RETRY_DELAY)));
        }
        Ok(admitted)
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
    pub async fn write(&self, request: WriteRequest, may_forward: bool) -> Result<WriteDone, Failure> {
        let began = self.driver.clock.mono();
        let route = self.route(&request.keyspace, request.key.partition_key())?;
        let w = request.w.unwrap_or(Level::Count(route.keyspace.w.into()));
        let w = w.resolve("w", route.keyspace.n)?;
        let seen = client_context(&request.context, &route, &request.key)?;
        if !route.homes.contains(&self.driver.me) {
            return self.forward_write(request, &route, w, may_forward).await;
        }
        let kept = may_forward.then(|| request.clone());
        match self.coordinate(request, &route, w, seen, began).await {
            Err(failure) if another_home_may(&failure) => {
                let Some(request) = kept else { return Err(failure) };
                let timeout = request.timeout.saturating_sub(self.since(began));
                let handed_on = self.forward_write(WriteRequest { timeout, ..request }, &route, w, true);
                // Who could not be asked has nothing better to say.
                handed_on
                    .await
                    .map_err(|other| if other.cause == Cause::Unavailable { failure } else { other })
            }
            done => done,
        }
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
        seen: ClientContext,
        began: Mono,
    ) -> Result<WriteDone, Failure> {
        let now = self.driver.clock.wall();
        self.check_clock(now, seen.stamp)?;
        self.check_agreed(now, route, w)?;
        let homes: Vec<_> = route.homes.iter().map(|node| (*node, self.is_reachable(*node))).collect();
        self.check_room(&homes, w)?;
        let plan = put::Plan {
            me: self.driver.me,
            homes,
            w,
            deadline: began + request.timeout,
            layout_version: route.map.layout.version,
        };
        let place = place(route, request.key);
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
        };
        let tag = codec::key_tag(route.position, place.key.sort_key());
        let done = self.driver.put(plan, place, write).await?;
        let mut dots = seen.dots;
        done.minted.dot.into_iter().for_each(|dot| dots.insert(dot));
        let context = ClientContext { key_tag: tag, dots, stamp: done.minted.stamp };
        Ok(WriteDone {
            context: codec::encode_context(&context).into(),
            w: w.into(),
            acks: done.done.acks,
            stamp: done.minted.stamp.0,
        })
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
    pub async fn get(&self, request: GetRequest, may_forward: bool) -> Result<GetDone, Failure> {
        let began = self.driver.clock.mono();
        let route = self.route(&request.keyspace, request.key.partition_key())?;
        let r = request.r.unwrap_or(Level::Count(route.keyspace.r.into()));
        let r = r.resolve("r", route.keyspace.n)?;
        if !route.homes.contains(&self.driver.me) {
            return self.forward_get(request, &route, r, may_forward).await;
        }
        let plan = self.read_plan(&route, r, began + request.timeout);
        let tag = codec::key_tag(route.position, request.key.sort_key());
        let reading = KeyReading { place: place(&route, request.key) };
        let done = self.driver.read(plan, reading).await?;
        let now = self.driver.clock.wall();
        Ok(GetDone {
            siblings: done.answer.as_ref().map(|record| record.live(now)).unwrap_or_default(),
            context: done.answer.map(|record| context_of(&record, tag)).unwrap_or_default(),
            r: r.into(),
            replies: done.replies,
        })
    }

    /// The plan of a read: this node first, then the other reachable home replicas in an order that spreads
    /// the load.
    pub fn read_plan(&self, route: &Route, r: u8, deadline: Mono) -> read::Plan {
        let me = self.driver.me;
        let homes = route.homes.clone();
        let mut candidates: Vec<NodeId> =
            homes.iter().copied().filter(|node| *node != me && self.is_reachable(*node)).collect();
        if candidates.len() > 1 {
            let turn = self.under_way.load(Ordering::Relaxed) % candidates.len();
            candidates.rotate_left(turn);
        }
        if homes.contains(&me) {
            candidates.insert(0, me);
        }
        read::Plan {
            candidates,
            homes,
            r,
            deadline,
            hedge_after: limits::HEDGE_AFTER,
            layout_version: route.map.layout.version,
        }
    }

    async fn forward_write(
        &self,
        request: WriteRequest,
        route: &Route,
        w: u8,
        may_forward: bool,
    ) -> Result<WriteDone, Failure> {
        let timeout = request.timeout;
        let message = write_to_wire(request, w);
        match self.forward(message, timeout, route, may_forward, false).await? {
            Sent::Answered(forwarded::Kind::Put(done)) => {
                Ok(WriteDone { context: done.context, w: done.w, acks: done.acks, stamp: done.stamp })
            }
            Sent::Answered(forwarded::Kind::Delete(done)) => {
                Ok(WriteDone { context: done.context, w: done.w, acks: done.acks, stamp: done.stamp })
            }
            Sent::Lost(node) => {
                Err(self.forward_failure(route, w, Cause::TooFewAcks, Applied::Maybe, vec![node]))
            }
            Sent::Answered(_) | Sent::NobodyUp => {
                Err(self.forward_failure(route, w, Cause::Unavailable, Applied::No, route.homes.clone()))
            }
        }
    }

    async fn forward_get(
        &self,
        request: GetRequest,
        route: &Route,
        r: u8,
        may_forward: bool,
    ) -> Result<GetDone, Failure> {
        let timeout = request.timeout;
        let message = forward::Request::Get(proto::GetRequest {
            keyspace: request.keyspace,
            key: request.key.partition_key().clone(),
            sort: request.key.sort_key().clone(),
            answers: Some(proto::get_request::Answers::R(r.into())),
            timeout_ms: 0,
        });
        match self.forward(message, timeout, route, may_forward, true).await? {
            Sent::Answered(forwarded::Kind::Get(done)) => Ok(GetDone {
                siblings: done.siblings.into_iter().map(live_of_wire).collect(),
                context: done.context,
                r: done.r,
                replies: done.replies,
            }),
            Sent::Lost(node) => {
                Err(self.forward_failure(route, r, Cause::TooFewAcks, Applied::No, vec![node]))
            }
            Sent::Answered(_) | Sent::NobodyUp => {
                Err(self.forward_failure(route, r, Cause::Unavailable, Applied::No, route.homes.clone()))
            }
        }
    }

    fn forward_failure(
        &self,
        route: &Route,
        required: u8,
        cause: Cause,
        applied: Applied,
        silent: Vec<NodeId>,
    ) -> Failure {
        let alive = route.homes.iter().filter(|node| self.is_reachable(**node)).count();
        let alive = u32::try_from(alive).unwrap_or(u32::MAX);
        Failure {
            cause,
            applied,
            required: required.into(),
            received: 0,
            alive,
            layout_version: route.map.layout.version,
            silent,
        }
    }

    /// Sends a request to the first other home replica that can be reached, and on to the next when that one
    /// surely changed nothing and another may do better. A read goes on also when an answer does not come.
    async fn forward(
        &self,
        request: forward::Request,
        timeout: Duration,
        route: &Route,
        may_forward: bool,
        is_read: bool,
    ) -> Result<Sent, Failure> {
        if !may_forward {
            return Ok(Sent::NobodyUp);
        }
        self.driver.metrics.forwarded.inc();
        let deadline = self.driver.clock.mono() + timeout;
        let (mut lost, mut refused) = (None, None);
        for node in &route.homes {
            let Some(link) = self.driver.links.up(*node) else { continue };
            let left = deadline.micros_since(self.driver.clock.mono()) / 1_000;
            if left == 0 {
                break;
            }
            let forward = proto::Forward { timeout_ms: left.max(1), request: Some(request.clone()) };
            let operation = proto::Operation {
                keyspace_id: route.keyspace.id.0,
                kind: Some(operation::Kind::Forward(forward)),
                ..Default::default()
            };
            let (send, receive) = tokio::sync::oneshot::channel();
            if link.send(operation, Box::new(move |result| drop(send.send(result)))).is_err() {
                continue;
            }
            // A read that hangs on a silent node leaves time for another.
            let share = if is_read { left / 2 } else { left };
            let answer = tokio::time::timeout(Duration::from_millis(share.max(1)), receive).await;
            match answer {
                Ok(Ok(Ok(answer::Kind::Forwarded(proto::Forwarded { kind: Some(kind) })))) => match kind {
                    forwarded::Kind::Failed(failed) => match convert::failure_of_forward(failed) {
                        failure if another_home_may(&failure) => refused = Some(failure),
                        failure => return Err(failure),
                    },
                    kind => return Ok(Sent::Answered(kind)),
                },
                Ok(Ok(Ok(answer::Kind::Refused(_)))) => {}
                _ if is_read => lost = Some(*node),
                _ if canary::sings(Canary::ForwardRetried) => {}
                _ => return Ok(Sent::Lost(*node)),
            }
        }
        match refused {
            Some(failure) => Err(failure),
            None => Ok(lost.map_or(Sent::NobodyUp, Sent::Lost)),
        }
    }

    /// Carries out a request that another node forwarded.
    pub async fn forwarded(&self, forward: proto::Forward) -> forwarded::Kind {
        let metadata = tonic::metadata::MetadataMap::new();
        let timeout_ms = forward.timeout_ms;
        let failed = |failure: Failure| forwarded::Kind::Failed(convert::forward_failed(&failure));
        let result = match forward.request {
            Some(forward::Request::Put(put)) => {
                let put = proto::PutRequest { timeout_ms, ..put };
                match convert::put_request(put, &metadata, self.value_limit) {
                    Ok(request) => {
                        self.write(request, false).await.map(convert::put_response).map(forwarded::Kind::Put)
                    }
                    Err(failure) => Err(failure),
                }
            }
            Some(forward::Request::Delete(delete)) => {
                let delete = proto::DeleteRequest { timeout_ms, ..delete };
                match convert::delete_request(delete, &metadata) {
                    Ok(request) => self
                        .write(request, false)
                        .await
                        .map(convert::delete_response)
                        .map(forwarded::Kind::Delete),
                    Err(failure) => Err(failure),
                }
            }
            Some(forward::Request::Get(get)) => {
                let get = proto::GetRequest { timeout_ms, ..get };
                match convert::get_request(get, &metadata) {
                    Ok(request) => {
                        self.get(request, false).await.map(convert::get_response).map(forwarded::Kind::Get)
                    }
                    Err(failure) => Err(failure),
                }
            }
            None => Err(Invalid::new("request", "is missing").into()),
        };
        result.unwrap_or_else(failed)
    }
}

/// Whether a request that failed at one home replica may do better at another: it surely changed nothing, and
/// what failed is that node's own.
fn another_home_may(failure: &Failure) -> bool {
    let own = match failure.cause.kind() {
        Cause::Storage(_) | Cause::NotServing(_) | Cause::ClockSkew(_) | Cause::Unavailable => true,
        // Sent on, it would only spread the load that is too much.
        Cause::Overloaded(_) => false,
        Cause::TooFewAcks | Cause::InDoubt(_) | Cause::TooManySiblings(_) => false,
        Cause::Invalid(_) | Cause::UnknownKeyspace(_) | Cause::Unbuilt(_) | Cause::Forwarded { .. } => false,
    };
    own && failure.applied == Applied::No
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

fn write_to_wire(request: WriteRequest, w: u8) -> forward::Request {
    let (key, sort) = (request.key.partition_key().clone(), request.key.sort_key().clone());
    match request.payload {
        Payload::Value(value) => forward::Request::Put(proto::PutRequest {
            keyspace: request.keyspace,
            key,
            sort,
            value,
            context: request.context,
            acks: Some(proto::put_request::Acks::W(w.into())),
            ttl_ms: request.ttl_ms.unwrap_or(0),
            ..Default::default()
        }),
        Payload::Tombstone => forward::Request::Delete(proto::DeleteRequest {
            keyspace: request.keyspace,
            key,
            sort,
            context: request.context,
            acks: Some(proto::delete_request::Acks::W(w.into())),
            ..Default::default()
        }),
    }
}

fn live_of_wire(sibling: proto::Sibling) -> crate::version::record::Live {
    crate::version::record::Live {
        value: sibling.value,
        stamp: Stamp(sibling.stamp),
        expires_at: (sibling.expires_at_ms > 0).then_some(WallMs(sibling.expires_at_ms)),
    }
}
