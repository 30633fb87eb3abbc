//! The node as its clients and operators see it: the handlers that the gRPC services call.

use std::sync::Arc;
use std::time::Duration;

use super::coordinator::{Coordinator, place};
use super::decrees::{ChangeError, decided_but};
use super::gossip::GossipHandle;
use super::hints::kept_to_wire;
use super::maps::Maps;
use super::proofs::{ALONE, add};
use super::repair_calls::{Campaign, Standing, selection, standing};
use super::repairs::Repairs;
use tokio::sync::{mpsc, oneshot};

use crate::gossip::membership::Liveness;
use crate::quorum::page::Single;
use crate::replica::fetch;
use crate::ring::keyspaces::{Edit, KeyspaceChange};
use crate::ring::layout::{ClusterMap, KeyspaceError, Member, NewKeyspace};
use crate::ring::preflist::{homes, preference_list};
use crate::rpc::admission::Held;
use crate::rpc::item::{BatchRequest, Outcome};
use crate::rpc::proto::{self, answer, fetched, operation};
use crate::rpc::requests::{
    ChangeKeyspaceError, ClusterHandler, CreateKeyspaceError, ExplainView, GetDone, GetRequest, HintLogView,
    HintsView, KvHandler, NewKeyspaceRequest, NodeView, RepairRequest, ReplicaView, ScanPage, ScanRequest,
    StatusView, WriteDone, WriteRequest,
};
use crate::rpc::transport::BoxFuture;
use crate::telemetry::metrics::{Metrics, Verb};
use crate::types::error::{Cause, Failure};
use crate::types::ids::{MapVersion, NodeId};
use crate::types::key::Key;
use crate::types::policy::{Durability, Keyspace};
use crate::types::time::WallMs;
use crate::version::codec;
use crate::version::record::{Payload, Record};

/// How long an operator's question waits for another node.
const INQUIRY_TIMEOUT: Duration = Duration::from_secs(1);

/// The handlers.
pub struct NodeService {
    /// Runs requests.
    pub coordinator: Arc<Coordinator>,
    /// Makes replicas equal.
    pub(super) repairs: Arc<Repairs>,
    /// The cluster map.
    pub maps: Arc<Maps>,
    /// Who is alive.
    pub gossip: GossipHandle,
    /// This node's own durability.
    pub durability: Durability,
    /// Where clients reach this node.
    pub client_address: String,
}

impl KvHandler for NodeService {
    fn value_limit(&self) -> usize {
        self.coordinator.value_limit
    }

    fn write(&self, request: WriteRequest) -> BoxFuture<'_, Result<WriteDone, Failure>> {
        Box::pin(async move {
            let began = self.coordinator.driver.clock.mono();
            let verb = if request.payload == Payload::Tombstone { Verb::Delete } else { Verb::Put };
            let timeout = request.timeout;
            let result = match self.coordinator.admit_write(&request) {
                Ok(_admitted) => self.coordinator.write(request, true).await,
                Err(failure) => Err(failure),
            };
            self.coordinator.took(began, timeout, &result);
            self.coordinator.count(verb, began, &result);
            result
        })
    }

    fn get(&self, request: GetRequest) -> BoxFuture<'_, Result<GetDone, Failure>> {
        Box::pin(async move {
            let (began, timeout) = (self.coordinator.driver.clock.mono(), request.timeout);
            let result = match self.coordinator.admit_get(&request) {
                Ok(_admitted) => self.coordinator.get(request).await,
                Err(failure) => Err(failure),
            };
            if let Ok(done) = &result {
                self.coordinator.found(done.bytes());
            }
            self.coordinator.took(began, timeout, &result);
            self.coordinator.count(Verb::Get, began, &result);
            result
        })
    }

    fn scan_page(&self, request: ScanRequest) -> BoxFuture<'_, Result<ScanPage, Failure>> {
        Box::pin(async move {
            let began = self.coordinator.driver.clock.mono();
            let result = match self.coordinator.admit(0) {
                Ok(_admitted) => self.coordinator.scan_page(request).await,
                Err(failure) => Err(failure),
            };
            self.coordinator.count(Verb::Scan, began, &result);
            result
        })
    }

    fn batch(&self, request: BatchRequest) -> BoxFuture<'_, Result<Vec<Outcome>, Failure>> {
        Box::pin(self.coordinator.batch(request))
    }

    fn hold(&self, bytes: usize, must: bool) -> Result<Held, Failure> {
        Ok(Held { guard: Arc::new(self.coordinator.hold(bytes, must)?) })
    }

    fn metrics(&self) -> &Metrics {
        &self.coordinator.driver.metrics
    }
}

impl NodeService {
    /// A node's state by name: what gossip says; before it has said anything, what the link says.
    fn state_of(&self, node: NodeId) -> &'static str {
        match self.gossip.members().liveness(node) {
            Some(Liveness::Alive) => "alive",
            Some(Liveness::Suspect) => "suspect",
            Some(Liveness::Left) => "left",
            Some(Liveness::Down) => "down",
            None if self.coordinator.is_reachable(node) => "alive",
            None => "down",
        }
    }

    fn node_view(&self, map: &ClusterMap, member: &Member) -> NodeView {
        let mut view = NodeView {
            node_id: member.id.to_string(),
            name: member.name.clone(),
            address: member.address.clone(),
            client_address: String::new(),
            zone: member.zone.clone(),
            state: self.state_of(member.id).to_owned(),
            ownership: map.ownership(member.id),
            hints: 0,
            disk_bytes: 0,
            durability: String::new(),
            map_version: 0,
            hints_delivered: 0,
            hints_per_second: 0,
            hints_refused: 0,
            hints_refusal: String::new(),
            proved: ALONE,
            refill: None,
            damage: None,
            tombstones: None,
        };
        if member.id == self.coordinator.driver.me {
            view.client_address.clone_from(&self.client_address);
            view.disk_bytes = self.coordinator.driver.committer.storage().disk_bytes();
            view.durability = self.durability.to_string();
            view.map_version = map.version.0;
        } else if let Some(state) =
            self.gossip.members().peers.get(&member.id).and_then(|p| p.last_state.clone())
        {
            view.client_address = state.report.client_address;
            view.disk_bytes = state.report.disk_bytes;
            view.durability = state.report.durability;
            view.map_version = state.report.map_version.0;
        }
        view
    }

    /// Asks a node what hints it keeps; none if it can't say.
    fn ask_kept(&self, holder: NodeId) -> oneshot::Receiver<Option<Vec<proto::KeptFor>>> {
        let (send, receive) = oneshot::channel();
        let driver = &self.coordinator.driver;
        if holder == driver.me {
            let kept = driver.hints.kept().ok();
            let _ = send.send(kept.map(|kept| kept_to_wire(kept).targets));
            return receive;
        }
        let operation =
            proto::Operation { kind: Some(operation::Kind::Hints(true)), ..proto::Operation::default() };
        let waiter = Box::new(move |answer| {
            let kept = match answer {
                Ok(answer::Kind::Hints(kept)) => Some(kept.targets),
                _ => None,
            };
            let _ = send.send(kept);
        });
        if let Some(link) = driver.links.up(holder) {
            // A waiter that is dropped says that there is no answer.
            let _ = link.send(operation, waiter);
        }
        receive
    }

    fn log_of(&self, map: &ClusterMap, holder: NodeId, kept: &proto::KeptFor) -> Option<HintLogView> {
        let target = kept.target.parse().ok()?;
        let name = |node| map.member(node).map_or_else(|| node.to_string(), |member| member.name.clone());
        Some(HintLogView {
            holder,
            holder_name: name(holder),
            target,
            target_name: name(target),
            target_state: self.state_of(target).into(),
            hints: kept.hints,
            bytes: kept.bytes,
            since_ms: kept.since_ms,
            oldest: kept.oldest,
            last: kept.last,
            delivered: kept.delivered,
            per_second: kept.per_second,
            refused: kept.refused,
            refusal: kept.refusal.clone(),
        })
    }

    /// What a node holds of a key, for people.
    async fn version_on(&self, node: NodeId, stand_in: bool, place: &super::drive::Place) -> String {
        let driver = &self.coordinator.driver;
        let record: Result<Single, ()> = if node == driver.me && stand_in {
            driver.hints.kept_for_key(&place.storage_key).map(|kept| kept.map(Arc::new)).map_err(|_| ())
        } else if node == driver.me {
            let copy = fetch::fetch(driver.committer.storage(), &place.storage_key);
            copy.map(|copy| copy.map(|copy| copy.record)).map_err(|_| ())
        } else {
            let fetch = proto::Fetch { inspect: true, stand_in, ..proto::Fetch::default() };
            let (send, receive) = oneshot::channel();
            let operation = place.operation(operation::Kind::Fetch(fetch));
            let waiter = Box::new(move |answer| drop(send.send(answer)));
            let sent = driver.links.up(node).is_some_and(|link| link.send(operation, waiter).is_ok());
            let answer = match sent {
                true => tokio::time::timeout(INQUIRY_TIMEOUT, receive).await,
                false => return "?".into(),
            };
            match answer {
                Ok(Ok(Ok(answer::Kind::Fetched(proto::Fetched { kind: Some(kind) })))) => match kind {
                    fetched::Kind::Record(bytes) => {
                        codec::decode_record(&bytes).map(|r| Some(Arc::new(r))).map_err(|_| ())
                    }
                    fetched::Kind::Damaged(_) => Err(()),
                    _ => Ok(None),
                },
                _ => return "?".into(),
            }
        };
        match record {
            Ok(Some(record)) => describe(&record),
            Ok(None) => "none".into(),
            Err(()) => "damaged".into(),
        }
    }
}

/// A record's versions, for people: `stamp@node`, or one dot for each sibling; `(deleted)` for tombstones.
pub fn describe(record: &Record) -> String {
    let mark = |payload: &Payload| if *payload == Payload::Tombstone { " (deleted)" } else { "" };
    match record {
        Record::Lww(v) => format!("{}@{}{}", v.stamp, v.node, mark(&v.payload)),
        Record::Siblings(set) => {
            let one = |s: &crate::version::record::Sibling| {
                let actor = s.dot.actor;
                format!("{}:{}.{}{}", actor.node, actor.birth, s.dot.counter, mark(&s.payload))
            };
            set.iter().map(one).collect::<Vec<_>>().join(", ")
        }
    }
}

/// The oldest proof of the partitions of which a node has a replica.
fn oldest_of(map: &ClusterMap, proved: &[WallMs], node: NodeId) -> WallMs {
    let mut oldest = ALONE;
    for (partition, at) in map.partitions.all().zip(proved) {
        if map.keyspaces.iter().any(|keyspace| homes(map, keyspace, partition).contains(&node)) {
            add(&mut oldest, *at);
        }
    }
    oldest
}

impl ClusterHandler for NodeService {
    fn status(&self) -> BoxFuture<'_, StatusView> {
        Box::pin(async move {
            let map = self.maps.current();
            let standing = standing(&self.coordinator, &self.repairs, &map);
            let (hints, standing) = tokio::join!(self.hints(), standing);
            let Standing { proved, mut refills, mut damages, mut tombstones } = standing;
            let mut view = |member: &Member| {
                let mut view = self.node_view(&map, member);
                view.proved = oldest_of(&map, &proved, member.id);
                view.refill = refills.remove(&member.id);
                view.damage = damages.remove(&member.id);
                view.tombstones = tombstones.remove(&member.id);
                for log in hints.logs.iter().filter(|log| log.target == member.id) {
                    view.hints += log.hints;
                    view.hints_delivered += log.delivered;
                    view.hints_per_second += log.per_second;
                    view.hints_refused += log.refused;
                    if !log.refusal.is_empty() {
                        view.hints_refusal.clone_from(&log.refusal);
                    }
                }
                view
            };
            StatusView {
                cluster_id: map.cluster.to_string(),
                layout_version: map.layout.version.0,
                map_version: map.version.0,
                partitions: map.partitions.count(),
                nodes: map.layout.members.iter().map(&mut view).collect(),
                answered_by: self.coordinator.driver.me.to_string(),
                proved,
                now: self.coordinator.driver.clock.wall(),
            }
        })
    }

    fn hints(&self) -> BoxFuture<'_, HintsView> {
        Box::pin(async move {
            let map = self.maps.current();
            let asked = map.layout.members.iter().map(|member| (member.id, self.ask_kept(member.id)));
            // All are asked before the first is waited for.
            let asked: Vec<_> = asked.collect();
            let deadline = tokio::time::Instant::now() + INQUIRY_TIMEOUT;
            let mut view = HintsView::default();
            for (holder, answer) in asked {
                match tokio::time::timeout_at(deadline, answer).await {
                    Ok(Ok(Some(kept))) => {
                        view.logs.extend(kept.iter().filter_map(|kept| self.log_of(&map, holder, kept)));
                    }
                    _ => view.silent.push(holder),
                }
            }
            view
        })
    }

    fn map(&self) -> Arc<ClusterMap> {
        self.maps.current()
    }

    fn repair(&self, request: RepairRequest) -> Result<mpsc::Receiver<proto::RepairResponse>, Failure> {
        let map = self.maps.current();
        // Whether it serves; how much is under way says nothing of this.
        drop(self.coordinator.admit(0)?);
        let selection = selection(&map, &request)?;
        let (send, receive) = mpsc::channel(1);
        let (repairs, coordinator) = (self.repairs.clone(), self.coordinator.clone());
        let campaign = Campaign { run: repairs.env.random(), repairs, coordinator, map, selection };
        tokio::spawn(campaign.run(send));
        Ok(receive)
    }

    fn create_keyspace(
        &self,
        request: NewKeyspaceRequest,
    ) -> BoxFuture<'_, Result<(Keyspace, u64), CreateKeyspaceError>> {
        Box::pin(async move {
            let _admitted = self.coordinator.admit(0).map_err(CreateKeyspaceError::Failed)?;
            let NewKeyspaceRequest { name, conflicts, n, r, w, sloppy, ttl_ms } = request;
            let wanted = NewKeyspace { name, conflicts, n, r, w, sloppy, ttl_ms };
            let edit = Edit::new(KeyspaceChange::Create(wanted), None);
            let made = self.maps.change_keyspaces(&self.coordinator.driver.links, edit).await;
            made.map_err(|error| match error {
                ChangeError::Refused(KeyspaceError::Exists(keyspace)) => {
                    CreateKeyspaceError::Exists(keyspace)
                }
                ChangeError::Refused(KeyspaceError::Invalid(invalid)) => {
                    CreateKeyspaceError::Invalid(invalid)
                }
                ChangeError::Refused(_) => CreateKeyspaceError::Failed(decided_but(Cause::TooFewAcks)),
                ChangeError::Failed(failure) => CreateKeyspaceError::Failed(failure),
            })
        })
    }

    fn change_keyspace(
        &self,
        change: KeyspaceChange,
        if_version: Option<MapVersion>,
    ) -> BoxFuture<'_, Result<(Keyspace, u64), ChangeKeyspaceError>> {
        Box::pin(async move {
            let _admitted = self.coordinator.admit(0).map_err(ChangeKeyspaceError::Failed)?;
            let edit = Edit::new(change, if_version);
            let changed = self.maps.change_keyspaces(&self.coordinator.driver.links, edit).await;
            changed.map_err(|error| match error {
                ChangeError::Refused(KeyspaceError::Invalid(invalid)) => {
                    ChangeKeyspaceError::Invalid(invalid)
                }
                ChangeError::Refused(KeyspaceError::Unknown(name)) => ChangeKeyspaceError::Unknown(name),
                ChangeError::Refused(KeyspaceError::InDoubt) => {
                    ChangeKeyspaceError::Failed(decided_but(Cause::TooFewAcks))
                }
                ChangeError::Refused(other) => ChangeKeyspaceError::Conflict(other.to_string()),
                ChangeError::Failed(failure) => ChangeKeyspaceError::Failed(failure),
            })
        })
    }

    fn explain(&self, keyspace: String, key: Key) -> BoxFuture<'_, Result<ExplainView, Failure>> {
        Box::pin(async move {
            let route = self.coordinator.route(&keyspace, key.partition_key())?;
            let map = route.map.clone();
            let list = preference_list(&map, &route.keyspace, route.partition);
            let place = place(&route, key);
            let mut replicas = Vec::new();
            let homes = list.homes.iter().map(|node| (*node, "home"));
            for (node, role) in homes.chain(list.fallbacks.iter().map(|node| (*node, "fallback"))) {
                let Some(member) = map.member(node) else { continue };
                replicas.push(ReplicaView {
                    node_id: node.to_string(),
                    name: member.name.clone(),
                    zone: member.zone.clone(),
                    role: role.into(),
                    state: self.state_of(node).into(),
                    version: self.version_on(node, role == "fallback", &place).await,
                });
            }
            Ok(ExplainView {
                keyspace: route.keyspace.name,
                partition: route.partition.0.into(),
                position: format!("{:016x}", route.position.0),
                layout_version: map.layout.version.0,
                replicas,
            })
        })
    }
}
