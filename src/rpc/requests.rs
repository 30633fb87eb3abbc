//! Validated requests and their outcomes: what the services hand to the node, and get back.
//!
//! A message is turned into one of these once, at the edge (`convert.rs`); a value of these types can't be
//! malformed. The traits are what `rpc` calls; `node` implements them.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::admission::Held;
use super::item::{BatchRequest, Outcome};
use super::proto;
use super::transport::BoxFuture;
use crate::ring::keyspaces::KeyspaceChange;
use crate::telemetry::metrics::Metrics;
use crate::types::error::{Failure, Invalid};
use crate::types::ids::{MapVersion, NodeId, RequestId};
use crate::types::key::Key;
use crate::types::policy::{Conflicts, Keyspace, Level};
use crate::types::time::WallMs;
use crate::version::record::{Live, Payload};

/// A put or a delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteRequest {
    /// The keyspace's name.
    pub keyspace: String,
    /// The key.
    pub key: Key,
    /// A value, or a tombstone.
    pub payload: Payload,
    /// As the client sent it; empty for none.
    pub context: Bytes,
    /// Acknowledgements asked for.
    pub w: Option<Level>,
    /// How long the value lives, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// The client's name for the write, under which it is applied once.
    pub request_id: Option<RequestId>,
    /// Whether fallbacks may stand in; the keyspace says if this does not.
    pub sloppy: Option<bool>,
    /// The client's session token, as it sent it; empty begins one.
    pub session: Option<Bytes>,
    /// Until the answer must be there.
    pub timeout: Duration,
}

/// A write that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteDone {
    /// Covers this write and what it replaced.
    pub context: Bytes,
    /// Acknowledgements asked for.
    pub w: u32,
    /// Acknowledgements received.
    pub acks: u32,
    /// Whether fallbacks counted.
    pub sloppy: bool,
    /// The session token after it; empty without a session.
    pub session: Bytes,
    /// The version's stamp.
    pub stamp: u64,
}

/// A get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetRequest {
    /// The keyspace's name.
    pub keyspace: String,
    /// The key.
    pub key: Key,
    /// Answers asked for.
    pub r: Option<Level>,
    /// Whether fallbacks may answer; the keyspace says if this does not.
    pub sloppy: Option<bool>,
    /// The client's session token, as it sent it; empty begins one.
    pub session: Option<Bytes>,
    /// Until the answer must be there.
    pub timeout: Duration,
}

/// What a get found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetDone {
    /// The concurrent values; none if not found.
    pub siblings: Vec<Live>,
    /// Covers all versions, tombstones too; empty if there is none.
    pub context: Bytes,
    /// Answers asked for.
    pub r: u32,
    /// Answers received.
    pub replies: u32,
    /// Whether fallbacks answered.
    pub sloppy: bool,
    /// The session token after it; empty without a session.
    pub session: Bytes,
}

impl GetDone {
    /// Bytes of its values.
    pub fn bytes(&self) -> usize {
        self.siblings.iter().map(|live| live.value.len()).sum()
    }
}

/// A scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRequest {
    /// The keyspace's name.
    pub keyspace: String,
    /// One partition key; none for the whole keyspace.
    pub partition_key: Option<Bytes>,
    /// Sort keys that begin so.
    pub prefix: Bytes,
    /// First sort key.
    pub start: Option<Bytes>,
    /// The sort key to stop before.
    pub end: Option<Bytes>,
    /// Most entries.
    pub limit: Option<u64>,
    /// From last to first.
    pub reverse: bool,
    /// As the client sent it; empty for none.
    pub cursor: Bytes,
    /// Answers asked for, for each page.
    pub r: Option<Level>,
    /// For each page.
    pub timeout: Duration,
}

/// A key with its values, as a scan gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanEntry {
    /// The key.
    pub key: Key,
    /// Its values.
    pub siblings: Vec<Live>,
    /// Covers its versions.
    pub context: Bytes,
}

impl ScanEntry {
    /// Bytes of its key and values.
    pub fn bytes(&self) -> usize {
        self.key.bytes() + self.siblings.iter().map(|live| live.value.len()).sum::<usize>()
    }
}

/// A part of a scan's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanPage {
    /// In order.
    pub entries: Vec<ScanEntry>,
    /// To go on behind the last entry; none on the last page.
    pub cursor: Option<Bytes>,
}

/// Runs the requests of clients.
pub trait KvHandler: Send + Sync + 'static {
    /// Largest value, in bytes.
    fn value_limit(&self) -> usize;
    /// A put or delete.
    fn write(&self, request: WriteRequest) -> BoxFuture<'_, Result<WriteDone, Failure>>;
    /// A get.
    fn get(&self, request: GetRequest) -> BoxFuture<'_, Result<GetDone, Failure>>;
    /// Counts the bytes of an answer until its client has taken it, or says that there is no room for it, unless it
    /// `must` be given.
    fn hold(&self, bytes: usize, must: bool) -> Result<Held, Failure>;
    /// The next page of a scan; the request's cursor says where.
    fn scan_page(&self, request: ScanRequest) -> BoxFuture<'_, Result<ScanPage, Failure>>;
    /// A batch: an outcome for each item, in the same order; or none of it was begun.
    fn batch(&self, request: BatchRequest) -> BoxFuture<'_, Result<Vec<Outcome>, Failure>>;
    /// Where sessions are counted.
    fn metrics(&self) -> &Metrics;
}

/// A node as `status` shows it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct NodeView {
    pub node_id: String,
    pub name: String,
    pub address: String,
    pub client_address: String,
    pub zone: String,
    pub state: String,
    pub ownership: f64,
    pub hints: u64,
    pub disk_bytes: u64,
    pub durability: String,
    pub map_version: u64,
    pub hints_delivered: u64,
    pub hints_per_second: u64,
    pub hints_refused: u64,
    pub hints_refusal: String,
    /// The oldest of the partitions of which it has a replica.
    pub proved: WallMs,
    /// How far it is, if it is refilled.
    pub refill: Option<proto::Refill>,
    /// What it has found damaged, if it answers.
    pub damage: Option<proto::Damage>,
    /// Which tombstones are due there and not purged yet, if it answers.
    pub tombstones: Option<proto::DueTombstones>,
}

/// The cluster as `status` shows it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct StatusView {
    pub cluster_id: String,
    pub layout_version: u64,
    pub map_version: u64,
    pub partitions: u32,
    pub nodes: Vec<NodeView>,
    pub answered_by: String,
    /// Of each partition, when its replicas were last proved equal.
    pub proved: Vec<WallMs>,
    /// The own clock.
    pub now: WallMs,
}

/// What one node keeps for another.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HintLogView {
    pub holder: NodeId,
    pub holder_name: String,
    pub target: NodeId,
    pub target_name: String,
    pub target_state: String,
    pub hints: u64,
    pub bytes: u64,
    pub since_ms: u64,
    pub oldest: u64,
    pub last: u64,
    pub delivered: u64,
    pub per_second: u64,
    pub refused: u64,
    pub refusal: String,
}

/// All hints that wait, and the nodes that did not say what they keep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct HintsView {
    pub logs: Vec<HintLogView>,
    pub silent: Vec<NodeId>,
}

/// What is to be repaired.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepairRequest {
    /// Only this keyspace.
    pub keyspace: Option<String>,
    /// Only this partition.
    pub partition: Option<u32>,
}

/// A replica as `explain` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ReplicaView {
    pub node_id: String,
    pub name: String,
    pub zone: String,
    pub role: String,
    pub state: String,
    pub version: String,
}

/// A key as `explain` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ExplainView {
    pub keyspace: String,
    pub partition: u32,
    pub position: String,
    pub layout_version: u64,
    pub replicas: Vec<ReplicaView>,
}

/// A keyspace to create; what is not given gets its default.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NewKeyspaceRequest {
    pub name: String,
    pub conflicts: Conflicts,
    pub n: Option<u8>,
    pub r: Option<u8>,
    pub w: Option<u8>,
    pub sloppy: bool,
    pub ttl_ms: Option<u64>,
}

/// Why a keyspace was not created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateKeyspaceError {
    /// A field breaks a rule.
    Invalid(Invalid),
    /// The name is taken.
    Exists(Keyspace),
    /// It could not be decided.
    Failed(Failure),
}

/// Why a keyspace was not changed or dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKeyspaceError {
    /// A field breaks a rule.
    Invalid(Invalid),
    /// There is no keyspace of this name.
    Unknown(String),
    /// Somebody else was first, says this sentence.
    Conflict(String),
    /// It could not be decided.
    Failed(Failure),
}

/// Answers the questions of operators.
pub trait ClusterHandler: Send + Sync + 'static {
    /// Nodes and their states.
    fn status(&self) -> BoxFuture<'_, StatusView>;
    /// The hints that wait on all nodes.
    fn hints(&self) -> BoxFuture<'_, HintsView>;
    /// Begins a repair; how far it is comes now and then, until it is over.
    fn repair(&self, request: RepairRequest) -> Result<mpsc::Receiver<proto::RepairResponse>, Failure>;
    /// The encoded cluster map is decoded by the caller; this is the map itself.
    fn map(&self) -> std::sync::Arc<crate::ring::layout::ClusterMap>;
    /// Creates a keyspace.
    fn create_keyspace(
        &self,
        request: NewKeyspaceRequest,
    ) -> BoxFuture<'_, Result<(Keyspace, u64), CreateKeyspaceError>>;
    /// Changes or drops a keyspace, on one version of the cluster map only if it says so: the keyspace as it is
    /// now, or was, and the map version.
    fn change_keyspace(
        &self,
        change: KeyspaceChange,
        if_version: Option<MapVersion>,
    ) -> BoxFuture<'_, Result<(Keyspace, u64), ChangeKeyspaceError>>;
    /// Where a key lives, and what each replica holds.
    fn explain(&self, keyspace: String, key: Key) -> BoxFuture<'_, Result<ExplainView, Failure>>;
}

/// The wall-clock time from which on a value that lives `ttl_ms` is gone, for the wire: 0 means never.
pub fn expires_for_wire(at: Option<WallMs>) -> u64 {
    at.map_or(0, |at| at.0)
}
