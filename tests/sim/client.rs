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
use quoral::rpc::proto::cluster_client::ClusterClient;
use quoral::rpc::proto::kv_client::KvClient;
use quoral::rpc::proto::{self, delete_request, get_request, put_request, scan_request};
use quoral::types::error::Applied;
use quoral::types::ids::NodeId;
use quoral::types::key::Position;
use quoral::version::codec::{self, ClientContext};
use tonic::Status;
use tonic::transport::Channel;

mod changes;
mod many;

pub use many::{Deed, Part};

use crate::clock::now_ms;
use crate::history::{Action, Creation, Op, Outcome, Recorder, Space, Value};
use crate::net::SimNetwork;

/// How long a client waits for a keyspace to be made.
const CREATION: Duration = Duration::from_secs(3);

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
    /// The keyspace.
    pub space: Arc<Space>,
    /// The key.
    pub key: String,
    /// The deadline.
    pub timeout_ms: u64,
    /// Answers or acknowledgements to wait for; the keyspace's own if not set.
    pub level: Option<u8>,
}

/// A client.
#[derive(Clone)]
pub struct Client {
    number: usize,
    channels: Vec<Channel>,
    recorder: Recorder,
    /// How much longer than the deadline the client waits: the way there and back.
    patience: Duration,
    /// The last context of each key.
    seen: BTreeMap<(String, String), Seen>,
    /// Its session's token, if it has one.
    session: Option<Bytes>,
}

impl Client {
    /// A client of these nodes; connects when first used.
    pub fn new(number: usize, nodes: &[String], patience: Duration, recorder: Recorder) -> Client {
        let channel = |name: &String| {
            peer_link::channel(Arc::new(SimNetwork::default()), &format!("{name}:7400"))
                .expect("a valid address")
        };
        let channels = nodes.iter().map(channel).collect();
        Client { number, channels, recorder, patience, seen: BTreeMap::new(), session: None }
    }

    fn begin(&self, ask: &Ask, action: Action, covers: BTreeSet<Value>) -> usize {
        let own = if matches!(action, Action::Put(_) | Action::Delete) { ask.space.w } else { ask.space.r };
        self.recorder.begin(Op {
            client: self.number,
            node: ask.node,
            space: ask.space.clone(),
            key: if action == Action::Scan { String::new() } else { ask.key.clone() },
            action,
            level: ask.level.unwrap_or(own),
            named: false,
            batch: None,
            session: (self.session.is_some() && action != Action::Scan).then_some(self.number),
            covers,
            timeout_ms: ask.timeout_ms,
            begin: 0,
            began_ms: now_ms(),
            end: u64::MAX,
            ended_ms: u64::MAX,
            outcome: Outcome::Waiting,
            made_by: None,
        })
    }

    async fn call<T>(
        &self,
        ask: &Ask,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Option<Result<T, Status>> {
        let deadline = Duration::from_millis(ask.timeout_ms) + self.patience;
        tokio::time::timeout(deadline, call).await.ok()
    }

    fn kv(&self, ask: &Ask) -> KvClient<Channel> {
        KvClient::new(self.channels[ask.node].clone())
    }

    fn put_message(&self, ask: &Ask, value: Value, context: Bytes) -> proto::PutRequest {
        proto::PutRequest {
            keyspace: ask.space.name.clone(),
            key: Bytes::from(ask.key.clone()),
            value: value.to_string().into(),
            context,
            acks: ask.level.map(|level| put_request::Acks::W(level.into())),
            timeout_ms: ask.timeout_ms,
            session: self.session.clone(),
            ..Default::default()
        }
    }

    fn delete_message(&self, ask: &Ask, context: Bytes) -> proto::DeleteRequest {
        proto::DeleteRequest {
            keyspace: ask.space.name.clone(),
            key: Bytes::from(ask.key.clone()),
            context,
            acks: ask.level.map(|level| delete_request::Acks::W(level.into())),
            timeout_ms: ask.timeout_ms,
            session: self.session.clone(),
            ..Default::default()
        }
    }

    fn get_message(&self, ask: &Ask) -> proto::GetRequest {
        proto::GetRequest {
            keyspace: ask.space.name.clone(),
            key: Bytes::from(ask.key.clone()),
            answers: ask.level.map(|level| get_request::Answers::R(level.into())),
            timeout_ms: ask.timeout_ms,
            session: self.session.clone(),
            ..Default::default()
        }
    }

    /// Begins a session, or goes on without one.
    pub fn has_session(&mut self, has: bool) {
        self.session = has.then(Bytes::new);
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
        let request = self.put_message(ask, value, seen.context);
        let mut kv = self.kv(ask);
        let answer = self.call(ask, kv.put(request)).await;
        let mut values = seen.values;
        values.insert(value);
        let answer = answer
            .map(|a| a.map(|done| done.into_inner()).map(|done| (done.context, done.stamp, done.session)));
        self.wrote(ask, number, values, answer)
    }

    /// Writes a new value under one request id through each of `nodes`: all at once, or one after the other until one
    /// has acknowledged it and one more has been asked. Whether it was acknowledged.
    pub async fn put_named(&mut self, ask: &Ask, nodes: &[usize], at_once: bool) -> bool {
        let value = self.recorder.new_value();
        let seen = self.seen.get(&place(ask)).cloned().unwrap_or_default();
        let number = self.begin(ask, Action::Put(value), seen.values.clone());
        self.recorder.named(number);
        let request = proto::PutRequest {
            request_id: Bytes::copy_from_slice(&u128::from(value).to_be_bytes()),
            ..self.put_message(ask, value, seen.context)
        };
        let attempt = |node: usize| {
            let (client, ask, request) = (self.clone(), Ask { node, ..ask.clone() }, request.clone());
            async move { client.call(&ask, client.kv(&ask).put(request)).await }
        };
        let mut answers = Vec::new();
        if at_once {
            let mut attempts: tokio::task::JoinSet<_> = nodes.iter().map(|node| attempt(*node)).collect();
            while let Some(answer) = attempts.join_next().await {
                answers.push(answer.expect("no attempt panics"));
            }
        } else {
            for node in nodes {
                let was_acked = answers.iter().any(|answer| matches!(answer, Some(Ok(_))));
                answers.push(attempt(*node).await);
                if was_acked {
                    break;
                }
            }
        }
        let acked = answers.iter().position(|answer| matches!(answer, Some(Ok(_))));
        let mut values = seen.values;
        values.insert(value);
        let unsure = answers.iter().position(|answer| match answer {
            Some(Err(status)) => CliError::from_status(status, CallKind::Write).applied == Applied::Maybe,
            _ => true,
        });
        let answer = match (acked, unsure) {
            (Some(at), _) => answers.swap_remove(at),
            // A late one among several is the fault of no node that is named here.
            (None, Some(at)) => answers.swap_remove(at).or(Some(Err(Status::deadline_exceeded("no answer")))),
            (None, None) => answers.pop().flatten(),
        };
        let answer = answer
            .map(|a| a.map(|done| done.into_inner()).map(|done| (done.context, done.stamp, done.session)));
        self.wrote(ask, number, values, answer)
    }

    /// Writes a tombstone, likewise.
    pub async fn delete(&mut self, ask: &Ask) -> bool {
        let seen = self.seen.get(&place(ask)).cloned().unwrap_or_default();
        let number = self.begin(ask, Action::Delete, seen.values.clone());
        let request = self.delete_message(ask, seen.context);
        let mut kv = self.kv(ask);
        let answer = self.call(ask, kv.delete(request)).await;
        let answer = answer
            .map(|a| a.map(|done| done.into_inner()).map(|done| (done.context, done.stamp, done.session)));
        self.wrote(ask, number, seen.values, answer)
    }

    /// Takes the token of an answer over.
    fn goes_on(&mut self, session: Bytes) {
        if self.session.is_some() {
            self.session = Some(session);
        }
    }

    fn wrote(
        &mut self,
        ask: &Ask,
        number: usize,
        values: BTreeSet<Value>,
        answer: Option<Result<(Bytes, u64, Bytes), Status>>,
    ) -> bool {
        let done = match answer {
            None => Err(Outcome::Late),
            Some(Ok(done)) => Ok(done),
            Some(Err(status)) => Err(not_written(&status)),
        };
        self.settle_write(ask, number, values, done)
    }

    /// Notes the end of a write: its context, stamp and token, or how it failed.
    fn settle_write(
        &mut self,
        ask: &Ask,
        number: usize,
        values: BTreeSet<Value>,
        done: Result<(Bytes, u64, Bytes), Outcome>,
    ) -> bool {
        let outcome = match done {
            Err(outcome) => outcome,
            Ok((context, stamp, session)) => {
                self.goes_on(session);
                let before = self.seen.get(&place(ask)).map(|seen| seen.context.clone()).unwrap_or_default();
                self.recorder.made_by(number, maker(ask, &before, &context));
                self.seen.insert(place(ask), Seen { context, values });
                Outcome::Wrote(stamp)
            }
        };
        let acked = matches!(outcome, Outcome::Wrote(_));
        self.recorder.end(number, now_ms(), outcome);
        acked
    }

    /// Notes the end of a get: what it found, or how it failed.
    fn settle_read(&mut self, ask: &Ask, number: usize, done: Result<proto::GetResponse, Outcome>) -> bool {
        let outcome = match done {
            Err(outcome) => outcome,
            Ok(found) => {
                self.goes_on(found.session);
                let values = values_of(&found.siblings);
                let stamp = stamp_of(ask, &found.context);
                let seen = values.iter().map(|(value, _)| *value).collect();
                self.seen.insert(place(ask), Seen { context: found.context, values: seen });
                Outcome::Read(values, Some(stamp))
            }
        };
        let read = matches!(outcome, Outcome::Read(..));
        self.recorder.end(number, now_ms(), outcome);
        read
    }

    /// Reads a key, and remembers its context; whether there was an answer.
    pub async fn get(&mut self, ask: &Ask) -> bool {
        let number = self.begin(ask, Action::Get, BTreeSet::new());
        let request = self.get_message(ask);
        let mut kv = self.kv(ask);
        let done = match self.call(ask, kv.get(request)).await {
            None => Err(Outcome::Late),
            Some(Err(status)) => Err(refused(&status)),
            Some(Ok(found)) => Ok(found.into_inner()),
        };
        self.settle_read(ask, number, done)
    }

    /// Reads the whole keyspace, and notes what it found of each of `keys`; whether it came to the end.
    pub async fn scan(&mut self, ask: &Ask, keys: &[String]) -> bool {
        let number = self.begin(ask, Action::Scan, BTreeSet::new());
        let request = proto::ScanRequest {
            keyspace: ask.space.name.clone(),
            answers: ask.level.map(|level| scan_request::Answers::R(level.into())),
            timeout_ms: ask.timeout_ms,
            ..Default::default()
        };
        let mut kv = self.kv(ask);
        let mut found: BTreeMap<String, (Vec<(Value, u64)>, u64)> = BTreeMap::new();
        let outcome = match self.call(ask, kv.scan(request)).await {
            None => Outcome::Late,
            Some(Err(status)) => refused(&status),
            Some(Ok(pages)) => {
                let mut pages = pages.into_inner();
                // The deadline is each page's.
                loop {
                    match self.call(ask, pages.message()).await {
                        None => break Outcome::Late,
                        Some(Err(status)) => break refused(&status),
                        Some(Ok(None)) => break Outcome::Read(Vec::new(), None),
                        Some(Ok(Some(page))) => found.extend(page.entries.iter().map(|entry| {
                            let key = String::from_utf8_lossy(&entry.key).into_owned();
                            let ask = Ask { key: key.clone(), ..ask.clone() };
                            (key, (values_of(&entry.siblings), stamp_of(&ask, &entry.context)))
                        })),
                    }
                }
            }
        };
        let read = matches!(outcome, Outcome::Read(..));
        self.recorder.end(number, now_ms(), outcome);
        if read {
            for key in keys {
                let seen = match found.remove(key) {
                    Some((values, stamp)) => Outcome::Read(values, Some(stamp)),
                    None => Outcome::Read(Vec::new(), None),
                };
                self.recorder.seen(number, key, seen);
            }
        }
        read
    }

    /// Asks for a keyspace.
    pub async fn create(&self, node: usize, space: Space) {
        let request = proto::CreateKeyspaceRequest {
            name: space.name.clone(),
            conflicts: space.conflicts.to_string(),
            n: space.n.into(),
            r: space.r.into(),
            w: space.w.into(),
            sloppy: space.sloppy,
            ..Default::default()
        };
        let mut cluster = ClusterClient::new(self.channels[node].clone());
        let answer = tokio::time::timeout(CREATION, cluster.create_keyspace(request)).await;
        let made = match answer {
            Ok(Ok(response)) => response.into_inner().keyspace.map(|keyspace| keyspace.id),
            _ => None,
        };
        self.recorder.created(Creation { at_ms: now_ms(), space, made });
    }
}

fn not_written(status: &Status) -> Outcome {
    let error = CliError::from_status(status, CallKind::Write);
    match error.applied {
        Applied::No => Outcome::Refused(error.code.into()),
        Applied::Maybe => Outcome::Unknown(error.code.into()),
    }
}

fn refused(status: &Status) -> Outcome {
    Outcome::Refused(CliError::from_status(status, CallKind::Read).code.to_owned())
}

fn place(ask: &Ask) -> (String, String) {
    (ask.space.name.clone(), ask.key.clone())
}

fn values_of(siblings: &[proto::Sibling]) -> Vec<(Value, u64)> {
    let mut values: Vec<(Value, u64)> =
        siblings.iter().map(|sibling| (value_of(&sibling.value), sibling.stamp)).collect();
    values.sort_unstable();
    values
}

fn value_of(bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).expect("every value is a number");
    text.parse().expect("every value is a number")
}

/// The stamp in a context: of a tombstone there is no other trace.
fn stamp_of(ask: &Ask, context: &[u8]) -> u64 {
    decoded(ask, context).map_or(0, |context| context.stamp.0)
}

/// What is in a context; none if it is empty.
fn decoded(ask: &Ask, context: &[u8]) -> Option<ClientContext> {
    let position = Position::of(&ask.space.name, ask.key.as_bytes());
    let decode = || codec::decode_context(context, codec::key_tag(position, b""));
    (!context.is_empty()).then(|| decode().expect("the node's own context"))
}

/// The node whose dot is in the context after a write and not in the one before. Stamps have no such name.
fn maker(ask: &Ask, before: &[u8], after: &[u8]) -> Option<NodeId> {
    let before = decoded(ask, before).map(|context| context.dots).unwrap_or_default();
    let after = decoded(ask, after)?.dots;
    let lines = after.vector().keys().chain(after.dots().iter().map(|dot| &dot.actor));
    lines.into_iter().find(|actor| after.top(actor) > before.top(actor)).map(|actor| actor.node)
}
