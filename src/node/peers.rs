//! What this node does for its peers: admits them, and carries out their operations.
//!
//! Rules:
//! 1. A peer of another cluster, another protocol or not in the cluster map is refused, and told why.
//! 2. The data directory of each node is remembered, durably, before it is admitted, with the count of its starts.
//!    Another one under a known node id, with a later incarnation, takes its place for good: it is told so, and refilled
//!    (`refill`). One with an earlier incarnation was replaced, one with fewer starts is an older copy (one taken
//!    since its last start can't be told): both are refused.
//! 3. Of two live processes with one node id the later is refused.
//! 4. An operation under another layout version, or on a partition that is not this node's, is refused. To make replicas
//!    equal (exchanges, healing) versions need not be the same (`whose`).
//! 5. Until this node is admitted itself it carries out nothing, so what it may have lost is no answer.
//! 6. A fresh record with a stamp that is too far ahead of the own clock is refused (F17).
//! 7. An operation that its sender has given up, or that was under way for too long, is refused. That is told by the
//!    sender's monotonic clock, as it is known here: a wall clock that is off makes nobody late.
//! 8. An operation on a keyspace that this node's map has dropped, or does not know yet, is refused, also one that
//!    names a keyspace which has been made anew since: ids tell them apart.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

use super::committer::{Incoming, Job};
use super::comparisons::{self, apart};
use super::coordinator::Coordinator;
use super::drive::Place;
use super::hello::Refused;
use super::hints::kept_to_wire;
use super::links::{Links, Me};
use super::maps::Maps;
use super::readings::page_of_wire;
use super::refill::{NOT_HEARD, REFILLING};
use super::repairs::Repairs;
use super::scrub::damage;
use super::whose::As;
use crate::antientropy::forest::Place as Tree;
use crate::replica::apply::Outcome;
use crate::replica::fetch::{self, Fetched};
use crate::replica::requests::{self, Entry};
use crate::replica::scan;
use crate::rpc::convert;
use crate::rpc::peer_service::{PeerClocks, PeerHandler, Reply, Sender};
use crate::rpc::proto::{self, answer, fetched, forwarded, operation, refusal::Reason};
use crate::rpc::transport::BoxFuture;
use crate::storage::schema;
use crate::types::error::Cause;
use crate::types::ids::NodeId;
use crate::types::time::{Mono, WallMs};
use crate::version::codec;
use crate::version::hlc::Stamp;
use crate::version::record::Digest;

const NOT_ADMITTED: &str = "this node is not yet admitted by its peers";

#[derive(Debug, Clone, Default)]
pub(super) struct Admitted {
    pub(super) nonce: String,
    pub(super) streams: usize,
}

/// The peer side of a node.
pub struct Peers {
    /// Who this node is.
    pub me: Me,
    /// Runs what is forwarded.
    pub coordinator: Arc<Coordinator>,
    /// The cluster map.
    pub maps: Arc<Maps>,
    /// The way back to the peers.
    pub links: Arc<Links>,
    /// Who has said hello, and is it still there.
    pub(super) admitted: Mutex<BTreeMap<NodeId, Admitted>>,
    /// Anti-entropy.
    pub repairs: Arc<Repairs>,
    /// Whether this node is admitted itself.
    is_admitted: Arc<AtomicBool>,
    /// One hello at a time: what is remembered of a disk is read and written together.
    hello: tokio::sync::Mutex<()>,
}

impl Peers {
    /// A node that has met nobody.
    pub fn new(
        me: Me,
        coordinator: Arc<Coordinator>,
        maps: Arc<Maps>,
        links: Arc<Links>,
        repairs: Arc<Repairs>,
        is_admitted: Arc<AtomicBool>,
    ) -> Peers {
        Peers {
            repairs,
            is_admitted,
            me,
            coordinator,
            maps,
            links,
            admitted: Mutex::default(),
            hello: tokio::sync::Mutex::default(),
        }
    }

    fn store(&self, from: Sender, place: Place, store: proto::Store, reply: Reply) {
        let record = match codec::decode_record(&store.record) {
            Ok(record) => record,
            Err(bad) => return reply.refuse(Reason::BadRequest, bad.to_string()),
        };
        let driver = &self.coordinator.driver;
        let entry = match &store.remember[..] {
            [] => None,
            bytes => match Entry::decode(bytes) {
                Some(entry) => Some(entry),
                None => return reply.refuse(Reason::BadRequest, "remember: is not what it should be"),
            },
        };
        if store.hinted_at_ms > 0 && driver.hints.is_too_old(WallMs(store.hinted_at_ms)) {
            return reply.refuse(Reason::TooOld, "the hint is older than hints.window_ms");
        }
        if store.fresh {
            let now = driver.clock.wall();
            let checked =
                driver.committer.with_minter(|minter| minter.clock_mut().observe(now, record.stamp()));
            if let Err(too_far) = checked {
                driver.metrics.clock_skew.inc();
                tracing::warn!(node = %from.node, %too_far, "a write is refused");
                return reply.refuse(Reason::ClockSkew, too_far.to_string());
            }
        }
        if !store.stand_in_for.is_empty() {
            return self.stand_in(&place, &store, entry, reply);
        }
        let least = match store.fresh && driver.refill.is_filling() {
            true => {
                driver.refill.least_stamp(&self.maps.current(), self.me.node, &place.storage_key, &record)
            }
            false => Some(Stamp::default()),
        };
        let Some(least) = least else { return reply.refuse(Reason::Refilling, NOT_HEARD) };
        let is_behind = record.stamp() <= least && least > Stamp::default();
        let incoming = Incoming {
            storage_key: place.storage_key,
            record: Arc::new(record),
            bytes: store.record,
            fresh: store.fresh && !is_behind,
            entry,
        };
        if store.exchange
            && let Some((partition, keyspace)) = schema::split_range(&incoming.storage_key)
        {
            driver.engaged.stay(driver.clock.mono(), from.node, Tree { partition, keyspace });
        }
        let counted = store.exchange.then(|| driver.metrics.clone());
        let done = move |result| match result {
            Ok(Outcome::Superseded(stamp)) => reply.send(answer::Kind::Superseded(stamp.0)),
            // Stored all the same: it may be that nobody waits for it any more.
            Ok(_) if is_behind => reply.send(answer::Kind::Superseded(least.0)),
            Ok(outcome) => {
                let is_new = matches!(outcome, Outcome::Changed(_));
                if let Some(metrics) = &counted {
                    metrics.repair.count_received(is_new);
                }
                reply.send(answer::Kind::Stored(is_new || counted.is_none()));
            }
            Err(Cause::Overloaded(_)) => reply.refuse(Reason::Overloaded, "the commit queue is full"),
            Err(Cause::UnknownKeyspace(which)) => {
                reply.refuse(Reason::StaleLayout, format!("keyspace {which}"))
            }
            Err(cause) => reply.refuse(Reason::Storage, format!("{cause:?}")),
        };
        driver.committer.submit(Job::Apply(incoming, Box::new(done)));
    }

    /// Keeps a record as a fallback.
    fn stand_in(&self, place: &Place, store: &proto::Store, entry: Option<Entry>, reply: Reply) {
        let Ok(home) = store.stand_in_for.parse() else {
            return reply.refuse(Reason::BadRequest, "stand_in_for: is not a node id");
        };
        let done = move |kept| match kept {
            Ok(()) => reply.send(answer::Kind::Stored(true)),
            Err(Cause::Overloaded(_)) => {
                reply.refuse(Reason::Overloaded, "no hint is kept: a limit is reached")
            }
            Err(cause) => reply.refuse(Reason::Storage, format!("{cause:?}")),
        };
        self.coordinator.driver.hints.stand_in(home, &place.storage_key, &store.record, entry, done);
    }

    fn fetch(&self, place: &Place, fetch: &proto::Fetch, reply: Reply) {
        let driver = &self.coordinator.driver;
        let committer = &driver.committer;
        if !fetch.stand_in
            && !fetch.inspect
            && driver.refill.lacks_range(schema::split_range(&place.storage_key))
        {
            return reply.refuse(Reason::Refilling, REFILLING);
        }
        if fetch.stand_in {
            let kind = match self.coordinator.driver.hints.kept_for_key(&place.storage_key) {
                Ok(Some(record)) => fetched::Kind::Record(codec::encode_record(&record).into()),
                Ok(None) => fetched::Kind::None(true),
                Err(error) => return self.refuse_damaged(reply, &error.to_string()),
            };
            let answer = answer::Kind::Fetched(proto::Fetched { kind: Some(kind) });
            return self.send_settled(committer.unsettled_any(), answer, reply);
        }
        let have = <[u8; 16]>::try_from(&fetch.have[..]).ok().map(Digest);
        let fetched = match fetch::fetch_unless(committer.storage(), &place.storage_key, have) {
            Ok(fetched) => fetched,
            Err(error) => {
                committer.suspect(&place.storage_key, &error);
                let set_aside = match fetch.heal || fetch.inspect {
                    true => fetch::set_aside(committer.storage(), &place.storage_key),
                    false => None,
                };
                let Some(since) = set_aside else { return self.refuse_damaged(reply, &error.to_string()) };
                let kind = Some(fetched::Kind::Damaged(since));
                let answer = answer::Kind::Fetched(proto::Fetched { kind });
                return self.send_settled(committer.unsettled(&place.storage_key), answer, reply);
            }
        };
        let kind = match fetched {
            Fetched::Same => fetched::Kind::Same(true),
            Fetched::Nothing => fetched::Kind::None(true),
            Fetched::Other(copy) => fetched::Kind::Record(copy.bytes),
        };
        let answer = answer::Kind::Fetched(proto::Fetched { kind: Some(kind) });
        self.send_settled(committer.unsettled(&place.storage_key), answer, reply);
    }

    fn find_request(&self, place: &Place, find: &proto::FindRequest, reply: Reply) {
        let driver = &self.coordinator.driver;
        let id = match convert::request_id(&find.request_id) {
            Ok(Some(id)) => id,
            Ok(None) => return reply.refuse(Reason::BadRequest, "request_id: is missing"),
            Err(invalid) => return reply.refuse(Reason::BadRequest, invalid.to_string()),
        };
        let storage = driver.committer.storage();
        match requests::find(storage, driver.clock.wall(), &place.storage_key, id) {
            Ok(None) if driver.refill.forgets_requests(driver.clock.wall()) => {
                reply.refuse(Reason::Refilling, REFILLING);
            }
            Ok(found) => {
                let unsettled = found.as_ref().and_then(|(_, key)| driver.committer.unsettled(key));
                let entry = found.map(|(outcome, _)| Entry { id, outcome }.encode());
                let answer = answer::Kind::Remembered(entry.unwrap_or_default().into());
                self.send_settled(unsettled, answer, reply);
            }
            Err(error) => {
                driver.committer.suspect(&place.storage_key, &error);
                self.refuse_damaged(reply, &error.to_string());
            }
        }
    }

    fn page(&self, keyspace: u32, page: proto::FetchPage, reply: Reply) {
        let committer = &self.coordinator.driver.committer;
        let Some(request) = page_of_wire(keyspace, page) else {
            return reply.refuse(Reason::BadRequest, "partition: out of range");
        };
        if self.coordinator.driver.refill.lacks_range(Some((request.partition, request.keyspace))) {
            return reply.refuse(Reason::Refilling, REFILLING);
        }
        let page = match scan::page(committer.storage(), &request) {
            Ok(page) => page,
            Err(bad) => {
                bad.storage_key.iter().for_each(|key| committer.suspect(key, &bad.error));
                return self.refuse_damaged(reply, &bad.to_string());
            }
        };
        let entry = |(suffix, record): (Vec<u8>, Vec<u8>)| proto::PageEntry {
            suffix: suffix.into(),
            record: record.into(),
        };
        let entries = page.entries.into_iter().map(entry).collect();
        let answer = answer::Kind::Page(proto::Page { entries, more: page.more });
        self.send_settled(committer.unsettled_any(), answer, reply);
    }

    /// Answers a question about trees: once it is worked out, and what it tells of is durable.
    fn compare_trees(&self, from: NodeId, keyspace: u32, question: operation::Kind, reply: Reply) {
        let (driver, map) = (self.coordinator.driver.clone(), self.maps.current());
        let mode = self.links.mode();
        tokio::spawn(async move {
            let committer = driver.committer.clone();
            let answer = move || comparisons::answer(&driver, &map, (from, keyspace), &question);
            let answer = apart(mode, answer).await;
            let settled = match committer.unsettled_any() {
                Some(group) => committer.settled(group).await,
                None => true,
            };
            match answer {
                Some(Ok(answer)) if settled => reply.send(answer),
                Some(Err((reason, message))) => reply.refuse(reason, message),
                _ => reply.refuse(Reason::Storage, "a sync has failed"),
            }
        });
    }

    fn refuse_damaged(&self, reply: Reply, problem: &str) {
        self.coordinator.driver.metrics.damaged_records.inc();
        tracing::error!(problem, "a record can't be read");
        reply.refuse(Reason::Storage, problem);
    }

    /// Sends what was read once it is durable.
    fn send_settled(&self, group: Option<u64>, answer: answer::Kind, reply: Reply) {
        let Some(group) = group else { return reply.send(answer) };
        let committer = self.coordinator.driver.committer.clone();
        tokio::spawn(async move {
            match committer.settled(group).await {
                true => reply.send(answer),
                false => reply.refuse(Reason::Storage, "a sync has failed"),
            }
        });
    }

    fn on_key(
        &self,
        from: Sender,
        operation: &proto::Operation,
        as_who: As,
        reply: Reply,
        then: impl FnOnce(Place, Reply),
    ) {
        match self.place(from, operation, as_who) {
            Ok(place) => then(place, reply),
            Err((reason, message)) => {
                self.coordinator.driver.metrics.peer_refusals.inc();
                reply.refuse(reason, message);
            }
        }
    }
}

impl PeerHandler for Peers {
    fn hello(&self, request: proto::HelloRequest) -> BoxFuture<'_, proto::HelloResponse> {
        Box::pin(async move {
            let _one_at_a_time = self.hello.lock().await;
            let judged = self.judge(&request).await;
            let replaced = judged.as_ref().is_ok_and(|replaced| *replaced);
            if judged.is_ok()
                && let Ok(node) = request.node_id.parse()
            {
                let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
                let entry = admitted.entry(node).or_default();
                if entry.nonce != request.nonce {
                    *entry = Admitted { nonce: request.nonce, streams: 0 };
                }
            }
            let Refused(refused, is_final) = judged.err().unwrap_or(Refused(String::new(), false));
            if !refused.is_empty() {
                tracing::warn!(node = %request.node_id, %refused, "a peer is refused");
            }
            let (node_id, nonce) = (self.me.node.to_string(), self.me.nonce.to_string());
            let (map_version, clock) = (self.maps.current().version.0, self.clock().0);
            proto::HelloResponse { refused, r#final: is_final, node_id, nonce, replaced, map_version, clock }
        })
    }

    fn accepts(&self, node: &str, nonce: &str) -> Option<NodeId> {
        let node = node.parse().ok()?;
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = admitted.get_mut(&node).filter(|entry| entry.nonce == nonce)?;
        entry.streams += 1;
        drop(admitted);
        self.links.forget_clocks(node);
        Some(node)
    }

    fn gone(&self, node: NodeId, nonce: &str) {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = admitted.get_mut(&node).filter(|entry| entry.nonce == nonce) {
            entry.streams = entry.streams.saturating_sub(1);
        }
    }

    fn observe_clock(&self, from: NodeId, clocks: PeerClocks) -> Mono {
        self.links.heard(from, clocks)
    }

    fn clock(&self) -> Stamp {
        self.coordinator.driver.committer.with_minter(|minter| minter.clock().last())
    }

    fn operation(&self, from: Sender, mut operation: proto::Operation, reply: Reply) {
        let kind = operation.kind.take();
        if !self.is_admitted.load(Ordering::Acquire) && !matches!(kind, Some(operation::Kind::Ping(_))) {
            return reply.refuse(Reason::NotServing, NOT_ADMITTED);
        }
        if from.is_late(&operation, self.coordinator.driver.message_age) {
            self.coordinator.driver.metrics.late_operations.inc();
            return reply
                .refuse(Reason::Late, "its sender has given it up, or it was under way for too long");
        }
        match kind {
            Some(operation::Kind::Store(store)) => {
                let as_who = match store.stand_in_for.parse() {
                    Ok(home) => As::Fallback(Some(home)),
                    Err(_) if store.exchange && !store.fresh => As::Replica,
                    Err(_) => As::Home,
                };
                self.on_key(from, &operation, as_who, reply, |place, reply| {
                    self.store(from, place, store, reply)
                });
            }
            Some(operation::Kind::Fetch(fetch)) => {
                let as_who = match (fetch.inspect, fetch.stand_in) {
                    (true, _) => As::Any,
                    (_, true) => As::Fallback(None),
                    _ if fetch.heal => As::Replica,
                    _ => As::Home,
                };
                self.on_key(from, &operation, as_who, reply, |place, reply| {
                    self.fetch(&place, &fetch, reply)
                });
            }
            Some(operation::Kind::FindRequest(find)) => {
                self.on_key(from, &operation, As::Fallback(None), reply, |place, reply| {
                    self.find_request(&place, &find, reply);
                });
            }
            Some(operation::Kind::Page(page)) => {
                match self.check_page(from, operation.keyspace_id, page.partition) {
                    Ok(()) => self.page(operation.keyspace_id, page, reply),
                    Err((reason, message)) => reply.refuse(reason, message),
                }
            }
            Some(operation::Kind::Forward(mut forward)) => {
                if let Err((reason, message)) = self.known(&self.maps.current(), operation.keyspace_id) {
                    self.coordinator.driver.metrics.peer_refusals.inc();
                    return reply.refuse(reason, message);
                }
                if let Some(left) = from.patience(&operation) {
                    let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
                    forward.timeout_ms = forward.timeout_ms.min(left);
                }
                let coordinator = self.coordinator.clone();
                tokio::spawn(async move {
                    match coordinator.admit_forward(&forward) {
                        Ok(_admitted) => {
                            let kind = Some(coordinator.forwarded(forward).await);
                            reply.send(answer::Kind::Forwarded(proto::Forwarded { kind }));
                        }
                        Err(failure) => {
                            let kind = Some(forwarded::Kind::Failed(convert::forward_failed(&failure)));
                            reply.send(answer::Kind::Forwarded(proto::Forwarded { kind }));
                        }
                    }
                });
            }
            Some(operation::Kind::Hints(_)) => match self.coordinator.driver.hints.kept() {
                Ok(kept) => reply.send(answer::Kind::Hints(kept_to_wire(kept))),
                Err(error) => reply.refuse(Reason::Storage, error.to_string()),
            },
            Some(operation::Kind::RunRepair(run)) => match self.repairs.answer_run(&run) {
                Ok(progress) => reply.send(answer::Kind::Repair(progress)),
                Err((reason, message)) => reply.refuse(reason, message),
            },
            Some(operation::Kind::Proofs(_)) => {
                let map = self.maps.current();
                let proved_ms = self.repairs.proofs(&map).into_iter().map(|at| at.0).collect();
                let refill =
                    self.coordinator.driver.refill.view(&map, self.me.node).map(|view| view.to_wire());
                let damage = Some(damage(&self.coordinator));
                let tombstones = Some(self.coordinator.driver.due_tombstones());
                reply.send(answer::Kind::Proofs(proto::Proofs { proved_ms, refill, damage, tombstones }));
            }
            Some(operation::Kind::Ping(_)) => reply.send(answer::Kind::Pong(true)),
            Some(
                question @ (operation::Kind::CompareRoots(_)
                | operation::Kind::CompareNodes(_)
                | operation::Kind::CompareItems(_)
                | operation::Kind::FetchItems(_)),
            ) => self.compare_trees(from.node, operation.keyspace_id, question, reply),
            Some(operation::Kind::HoldDead(dead)) => {
                self.dead_records(from, operation.keyspace_id, &dead, false, reply);
            }
            Some(operation::Kind::PurgeDead(dead)) => {
                self.dead_records(from, operation.keyspace_id, &dead, true, reply);
            }
            None => reply.refuse(Reason::BadRequest, "kind: is missing or not known"),
        }
    }

    fn pull_map(&self, have_version: u64) -> Option<Vec<u8>> {
        let map = self.maps.current();
        (map.version.0 > have_version).then(|| map.encode())
    }

    fn decree(&self, request: proto::DecreeRequest) -> BoxFuture<'_, Result<proto::DecreeResponse, Status>> {
        Box::pin(async move {
            if !self.is_admitted.load(Ordering::Acquire) {
                return Err(Status::unavailable(NOT_ADMITTED));
            }
            self.maps.answer_decree(request).await
        })
    }
}
