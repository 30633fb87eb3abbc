//! A client on a host of its own: one gRPC channel to each node, and every answer noted.
//!
//! A request carries its deadline; the client itself waits a little longer, so that it can tell a node
//! that kept the deadline from one that did not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quoral::cli::output::{CliError, Op as CallKind};
use quoral::rpc::peer_link;
use quoral::rpc::proto::kv_client::KvClient;
use quoral::rpc::proto::{self, get_request, put_request};
use quoral::types::error::Applied;
use quoral::types::key::Position;
use quoral::types::policy::Conflicts;
use quoral::version::codec;
use tonic::Status;
use tonic::transport::Channel;

use crate::clock::now_ms;
use crate::cluster::CARTS;
use crate::history::{Action, Op, Outcome, Recorder, Value};
use crate::net::SimNetwork;

/// The name of the keyspace with this policy.
pub fn keyspace(conflicts: Conflicts) -> &'static str {
    match conflicts {
        Conflicts::Lww => "default",
        Conflicts::Siblings => CARTS,
    }
}

/// A context, and the values that it has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    context: Bytes,
    values: BTreeSet<Value>,
}

/// What one request asks for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The node to ask.
    pub node: usize,
    /// The keyspace's policy.
    pub conflicts: Conflicts,
    /// The key.
    pub key: String,
    /// The deadline.
    pub timeout_ms: u64,
    /// Answers or acknowledgements to wait for; the keyspace's own if not set.
    pub level: Option<proto::Level>,
}

/// A client.
pub struct Client {
    number: usize,
    channels: Vec<Channel>,
    recorder: Recorder,
    /// How much longer than the deadline the client waits: the way there and back.
    patience: Duration,
    /// The last context of each key.
    seen: BTreeMap<(Conflicts, String), Seen>,
}

impl Client {
    /// A client of these nodes; connects when first used.
    pub fn new(number: usize, nodes: &[String], patience: Duration, recorder: Recorder) -> Client {
        let channel = |name: &String| {
            peer_link::channel(Arc::new(SimNetwork), &format!("{name}:7400")).expect("a valid address")
        };
        let channels = nodes.iter().map(channel).collect();
        Client { number, channels, recorder, patience, seen: BTreeMap::new() }
    }

    fn begin(&self, ask: &Ask, action: Action, covers: BTreeSet<Value>) -> usize {
        self.recorder.begin(Op {
            client: self.number,
            node: ask.node,
            conflicts: ask.conflicts,
            key: ask.key.clone(),
            action,
            covers,
            timeout_ms: ask.timeout_ms,
            begin: 0,
            began_ms: now_ms(),
            end: u64::MAX,
            ended_ms: u64::MAX,
            outcome: Outcome::Waiting,
        })
    }

    async fn call<T>(
        &self,
        ask: &Ask,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Option<Result<T, Status>> {
        let deadline = Duration::from_millis(ask.timeout_ms) + self.patience;
        match tokio::time::timeout(deadline, call).await {
            Ok(answer) => Some(answer.map(tonic::Response::into_inner)),
            Err(_) => None,
        }
    }

    fn kv(&self, ask: &Ask) -> KvClient<Channel> {
        KvClient::new(self.channels[ask.node].clone())
    }

    /// Forgets what it has seen of a key.
    pub fn forget(&mut self, ask: &Ask) {
        self.seen.remove(&place(ask));
    }

    /// Writes a new value with what it has seen of the key; whether that was acknowledged.
    pub async fn put(&mut self, ask: &Ask) -> bool {
        let value = self.recorder.new_value();
        let seen = self.seen.get(&place(ask)).cloned().unwrap_or_default();
        let number = self.begin(ask, Action::Put(value), seen.values.clone());
        let request = proto::PutRequest {
            keyspace: keyspace(ask.conflicts).into(),
            key: Bytes::from(ask.key.clone()),
            value: value.to_string().into(),
            context: seen.context,
            acks: ask.level.map(|level| put_request::Acks::WLevel(level.into())),
            timeout_ms: ask.timeout_ms,
            ..Default::default()
        };
        let mut kv = self.kv(ask);
        let answer = self.call(ask, kv.put(request)).await;
        let mut values = seen.values;
        values.insert(value);
        self.wrote(ask, number, values, answer.map(|a| a.map(|done| (done.context, done.stamp))))
    }

    /// Writes a tombstone, likewise.
    pub async fn delete(&mut self, ask: &Ask) -> bool {
        let seen = self.seen.get(&place(ask)).cloned().unwrap_or_default();
        let number = self.begin(ask, Action::Delete, seen.values.clone());
        let request = proto::DeleteRequest {
            keyspace: keyspace(ask.conflicts).into(),
            key: Bytes::from(ask.key.clone()),
            context: seen.context,
            timeout_ms: ask.timeout_ms,
            ..Default::default()
        };
        let mut kv = self.kv(ask);
        let answer = self.call(ask, kv.delete(request)).await;
        self.wrote(ask, number, seen.values, answer.map(|a| a.map(|done| (done.context, done.stamp))))
    }

    fn wrote(
        &mut self,
        ask: &Ask,
        number: usize,
        values: BTreeSet<Value>,
        answer: Option<Result<(Bytes, u64), Status>>,
    ) -> bool {
        let outcome = match answer {
            None => Outcome::Late,
            Some(Ok((context, stamp))) => {
                self.seen.insert(place(ask), Seen { context, values });
                Outcome::Wrote(stamp)
            }
            Some(Err(status)) => {
                let error = CliError::from_status(&status, CallKind::Write);
                match error.applied {
                    Applied::No => Outcome::Refused(error.code.into()),
                    Applied::Maybe => Outcome::Unknown(error.code.into()),
                }
            }
        };
        let acked = matches!(outcome, Outcome::Wrote(_));
        self.recorder.end(number, now_ms(), outcome);
        acked
    }

    /// Reads a key, and remembers its context; whether there was an answer.
    pub async fn get(&mut self, ask: &Ask) -> bool {
        let number = self.begin(ask, Action::Get, BTreeSet::new());
        let request = proto::GetRequest {
            keyspace: keyspace(ask.conflicts).into(),
            key: Bytes::from(ask.key.clone()),
            answers: ask.level.map(|level| get_request::Answers::RLevel(level.into())),
            timeout_ms: ask.timeout_ms,
            ..Default::default()
        };
        let mut kv = self.kv(ask);
        let outcome = match self.call(ask, kv.get(request)).await {
            None => Outcome::Late,
            Some(Err(status)) => {
                Outcome::Refused(CliError::from_status(&status, CallKind::Read).code.to_owned())
            }
            Some(Ok(found)) => {
                let mut values: Vec<(Value, u64)> =
                    found.siblings.iter().map(|sibling| (value_of(&sibling.value), sibling.stamp)).collect();
                values.sort_unstable();
                let stamp = stamp_of(ask, &found.context);
                let seen = values.iter().map(|(value, _)| *value).collect();
                self.seen.insert(place(ask), Seen { context: found.context, values: seen });
                Outcome::Read(values, stamp)
            }
        };
        let read = matches!(outcome, Outcome::Read(..));
        self.recorder.end(number, now_ms(), outcome);
        read
    }
}

fn place(ask: &Ask) -> (Conflicts, String) {
    (ask.conflicts, ask.key.clone())
}

fn value_of(bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).expect("every value is a number");
    text.parse().expect("every value is a number")
}

/// The stamp in a context: of a tombstone there is no other trace.
fn stamp_of(ask: &Ask, context: &[u8]) -> u64 {
    if context.is_empty() {
        return 0;
    }
    let position = Position::of(keyspace(ask.conflicts), ask.key.as_bytes());
    let context = codec::decode_context(context, codec::key_tag(position, b""));
    context.expect("the node's own context").stamp.0
}
