//! Drives the decree machines: this node's vote on the next cluster map, and its own proposals.
//!
//! A vote is durable before it is answered. A decided map is stored by its proposer, and then told to every
//! peer at once, so that a client which creates a keyspace at one node can use it at the next; who misses
//! that learns it by gossip.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Status;

use super::links::Links;
use super::maps::Maps;
use crate::machine::Machine;
use crate::ring::decree::{Acceptor, Answer, Ballot, Effect, Event, Gate, Proposer, Reply, gate};
use crate::ring::keyspaces::{Edit, Next};
use crate::ring::layout::{ClusterMap, KeyspaceError};
use crate::rpc::proto::{self, decree_response::Kind, peer_client::PeerClient};
use crate::storage::{Batch, schema};
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::ids::{MapVersion, NodeId};
use crate::types::limits::{MESSAGE_BYTES_MAX, RETRY_DELAY};
use crate::types::policy::Keyspace;

/// How long one voter may take to answer one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the peers may take to learn a decided map before its proposer goes on.
const LEARN_TIMEOUT: Duration = Duration::from_millis(500);
/// Maps that may be decided by others while this node tries to get its own change in.
const ATTEMPTS: u32 = 16;

/// Why a change of the keyspaces was not made.
pub enum ChangeError {
    /// It makes no sense, or no sense any more.
    Refused(KeyspaceError),
    /// It could not be decided.
    Failed(Failure),
}

/// How a proposal ended.
enum Outcome {
    Ours,
    /// Another map is decided. Whether the own proposal surely is not, or may be in a version before it.
    Theirs {
        map: ClusterMap,
        ours_has_lost: bool,
    },
    Unreachable(Applied),
}

impl Maps {
    /// This node's vote, or what it has learnt.
    pub async fn answer_decree(
        &self,
        request: proto::DecreeRequest,
    ) -> Result<proto::DecreeResponse, Status> {
        let bad = |problem: String| Status::invalid_argument(problem);
        let map = (!request.map.is_empty()).then(|| ClusterMap::decode(&request.map)).transpose();
        let map = map.map_err(|problem| bad(format!("map: {problem}")))?;
        if let Some(map) = &map
            && (map.cluster != self.current().cluster
                || (!request.decided && map.version.0 != request.version))
        {
            return Err(bad("map: is of another cluster or version".into()));
        }
        if request.decided {
            let map = map.ok_or_else(|| bad("map: is missing".into()))?;
            self.adopt(map).await.map_err(|cause| Status::internal(format!("{cause:?}")))?;
            return Ok(proto::DecreeResponse { kind: Some(Kind::Accepted(true)) });
        }
        let node = request.ballot_node.parse().map_err(|e| bad(format!("ballot_node: {e}")))?;
        let ballot = Ballot { round: request.ballot_round, node };
        let value = map.map(|_| request.map);
        let reply = self.vote(MapVersion(request.version), ballot, value).await;
        reply.map(reply_to_wire).map_err(|cause| Status::unavailable(format!("{cause:?}")))
    }

    /// Votes on version `asked`: a promise if there is no value, else an acceptance.
    async fn vote(&self, asked: MapVersion, ballot: Ballot, value: Option<Bytes>) -> Result<Reply, Cause> {
        let mut slot = self.acceptor.lock().await;
        let current = self.current();
        match gate(current.version, asked) {
            Gate::Open => {}
            Gate::Decided => return Ok(Reply::Decided(current.encode().into())),
            Gate::Behind => return Ok(Reply::Behind(current.version)),
        }
        if let Some(barrier) = self.refill.abstains(asked, current.layout.members.len()) {
            let problem = format!("this node lost its disk, and votes on maps above version {barrier}");
            return Err(Cause::NotServing(problem));
        }
        if let Some(bytes) = &value
            && let Err(problem) = check_proposal(&current, bytes)
        {
            return Err(Cause::Invalid(problem));
        }
        let mut acceptor = match slot.take().filter(|acceptor| acceptor.version() == asked) {
            Some(acceptor) => acceptor,
            None => self.stored_acceptor(asked)?,
        };
        let Answer { reply, persist } = match value {
            None => acceptor.handle_prepare(ballot),
            Some(value) => acceptor.handle_accept(ballot, value),
        };
        if persist {
            let key = schema::meta_key(schema::META_DECREE);
            let mut batch = Batch::new();
            batch.put(key.clone(), schema::seal(&key, &acceptor.encode()));
            self.committer.write(batch).await?;
        }
        *slot = Some(acceptor);
        Ok(reply)
    }

    /// The vote that is stored, if it is on this version; else a new one.
    fn stored_acceptor(&self, asked: MapVersion) -> Result<Acceptor, Cause> {
        let key = schema::meta_key(schema::META_DECREE);
        let damaged = |problem: String| Cause::Storage(format!("the vote on the cluster map: {problem}"));
        let value = self.committer.storage().get(&key).map_err(|e| damaged(e.to_string()))?;
        let Some(value) = value else { return Ok(Acceptor::new(asked)) };
        let body = schema::open(&key, &value).map_err(|d| damaged(d.to_string()))?;
        let stored = Acceptor::decode(body).map_err(|bad| damaged(bad.to_string()))?;
        Ok(if stored.version() == asked { stored } else { Acceptor::new(asked) })
    }

    /// Makes, changes or drops a keyspace: proposes the next map with it until that is decided, or the change
    /// makes no sense any more. The keyspace as it is now (or was), and the map version that says so.
    pub async fn change_keyspaces(
        self: &Arc<Maps>,
        links: &Arc<Links>,
        mut edit: Edit,
    ) -> Result<(Keyspace, u64), ChangeError> {
        for _ in 0..ATTEMPTS {
            let current = self.current();
            let (next, keyspace) = match edit.next(&current).map_err(ChangeError::Refused)? {
                Next::Propose(next, keyspace) => {
                    (ClusterMap { proposal: self.env.random(), ..next }, keyspace)
                }
                Next::Done(keyspace, version) => return Ok((keyspace, version.0)),
            };
            let version = next.version.0;
            match self.propose(links, &current, next).await.map_err(ChangeError::Failed)? {
                Outcome::Ours => return Ok((keyspace, version)),
                Outcome::Theirs { map, ours_has_lost } => {
                    if !ours_has_lost {
                        edit.is_in_doubt(keyspace);
                    }
                    self.adopt(map).await.map_err(|cause| ChangeError::Failed(decided_but(cause)))?;
                }
                Outcome::Unreachable(applied) => {
                    let voters = current.layout.members.len();
                    return Err(ChangeError::Failed(unreachable(applied, voters, self, links)));
                }
            }
        }
        let others = Cause::Overloaded(RETRY_DELAY);
        let failure = if edit.may_be_made() { decided_but(others) } else { Failure::early(others) };
        Err(ChangeError::Failed(failure))
    }

    /// Whether this node votes on the next map.
    pub fn votes(&self) -> bool {
        let map = self.current();
        let next = MapVersion(map.version.0.saturating_add(1));
        self.refill.abstains(next, map.layout.members.len()).is_none()
    }

    /// Has maps decided that change nothing until one has this version.
    pub async fn reach(self: &Arc<Maps>, links: &Arc<Links>, version: MapVersion) {
        for _ in 0..ATTEMPTS {
            let current = self.current();
            if current.version >= version {
                return;
            }
            let next = MapVersion(current.version.0 + 1);
            let next = ClusterMap { version: next, proposal: self.env.random(), ..(*current).clone() };
            match self.propose(links, &current, next).await {
                Ok(Outcome::Ours) => {}
                Ok(Outcome::Theirs { map, .. }) => {
                    if self.adopt(map).await.is_err() {
                        return;
                    }
                }
                Ok(Outcome::Unreachable(_)) | Err(_) => return,
            }
        }
    }

    async fn propose(
        self: &Arc<Maps>,
        links: &Arc<Links>,
        current: &ClusterMap,
        next: ClusterMap,
    ) -> Result<Outcome, Failure> {
        let value = Bytes::from(next.encode());
        let decided = self.run_proposer(links, current, next.version, value.clone()).await;
        match decided {
            Effect::Decided(_) => {
                self.adopt(next).await.map_err(decided_but)?;
                self.tell_all(links, value).await;
                Ok(Outcome::Ours)
            }
            Effect::Lost(ref other) | Effect::Overtaken(ref other) => {
                let map = ClusterMap::decode(other);
                let map = map.map_err(|bad| decided_but(Cause::Storage(bad.to_string())))?;
                if map == next {
                    return Ok(Outcome::Ours);
                }
                // A map of the same version is the whole answer; a later one says nothing of who won.
                let ours_has_lost = matches!(decided, Effect::Lost(_)) || map.version == next.version;
                Ok(Outcome::Theirs { map, ours_has_lost })
            }
            Effect::Unreachable(applied) => Ok(Outcome::Unreachable(applied)),
            other => unreachable!("the proposer does not end with {other:?}"),
        }
    }

    /// Runs a proposer to its end: the last effect.
    async fn run_proposer(
        self: &Arc<Maps>,
        links: &Arc<Links>,
        current: &ClusterMap,
        version: MapVersion,
        value: Bytes,
    ) -> Effect {
        let voters = current.layout.members.iter().map(|member| member.id);
        let mut proposer = Proposer::new(self.me, voters, value, self.env.random());
        let (send, mut receive) = mpsc::unbounded_channel();
        let (mut effects, mut alarm) = (Vec::new(), None);
        proposer.step(self.env.clock.mono(), Event::Start, &mut effects);
        loop {
            for effect in effects.drain(..).collect::<VecDeque<_>>() {
                match effect {
                    Effect::Prepare { to, ballot } => self.ask(links, to, version, ballot, None, &send),
                    Effect::Accept { to, ballot, value } => {
                        self.ask(links, to, version, ballot, Some(value), &send);
                    }
                    Effect::Arm(delay) => alarm = Some(tokio::time::Instant::now() + delay),
                    end => return end,
                }
            }
            let wait = async {
                match alarm {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                event = receive.recv() => event.expect("this function holds a sender"),
                () = wait => {
                    alarm = None;
                    Event::Timeout
                }
            };
            proposer.step(self.env.clock.mono(), event, &mut effects);
        }
    }

    /// Asks one voter, which may be this node, in a task of its own.
    fn ask(
        self: &Arc<Maps>,
        links: &Arc<Links>,
        to: NodeId,
        version: MapVersion,
        ballot: Ballot,
        value: Option<Bytes>,
        events: &mpsc::UnboundedSender<Event>,
    ) {
        let (maps, links, events) = (self.clone(), links.clone(), events.clone());
        tokio::spawn(async move {
            let reply = if to == maps.me {
                maps.vote(version, ballot, value).await.ok()
            } else {
                let request = proto::DecreeRequest {
                    version: version.0,
                    ballot_round: ballot.round,
                    ballot_node: ballot.node.to_string(),
                    map: value.unwrap_or_default(),
                    decided: false,
                };
                call(&links, to, request, STEP_TIMEOUT).await.and_then(reply_of_wire)
            };
            let event = match reply {
                Some(reply) => Event::Reply { from: to, ballot, reply },
                None => Event::Failed { from: to, ballot },
            };
            let _ = events.send(event);
        });
    }

    /// Tells every peer of a decided map, and waits a moment for them to have it.
    async fn tell_all(&self, links: &Arc<Links>, map: Bytes) {
        let mut calls = tokio::task::JoinSet::new();
        for member in self.current().layout.members.iter().filter(|member| member.id != self.me) {
            let (links, to) = (links.clone(), member.id);
            let request = proto::DecreeRequest { map: map.clone(), decided: true, ..Default::default() };
            calls.spawn(async move { call(&links, to, request, LEARN_TIMEOUT).await.is_some() });
        }
        while calls.join_next().await.is_some() {}
    }
}

/// Whether a map may follow this one at all. Each node checks what it accepts, so none has to be trusted.
fn check_proposal(current: &ClusterMap, bytes: &[u8]) -> Result<(), Invalid> {
    let next = ClusterMap::decode(bytes).map_err(|bad| Invalid::new("map", bad.to_string()))?;
    current.check_next(&next)
}

async fn call(
    links: &Links,
    to: NodeId,
    request: proto::DecreeRequest,
    timeout: Duration,
) -> Option<proto::DecreeResponse> {
    let mut client = PeerClient::new(links.channel(to)?)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    match tokio::time::timeout(timeout, client.decree(request)).await {
        Ok(Ok(response)) => Some(response.into_inner()),
        Ok(Err(status)) => {
            tracing::debug!(%to, %status, "a decree got no answer");
            None
        }
        Err(_) => None,
    }
}

fn reply_to_wire(reply: Reply) -> proto::DecreeResponse {
    let kind = match reply {
        Reply::Promise(accepted) => {
            let (ballot, map) = accepted.unzip();
            Kind::Promise(proto::Promise {
                ballot_round: ballot.map_or(0, |b| b.round),
                ballot_node: ballot.map_or(String::new(), |b| b.node.to_string()),
                map: map.unwrap_or_default(),
            })
        }
        Reply::Accepted => Kind::Accepted(true),
        Reply::Rejected(round) => Kind::RejectedRound(round),
        Reply::Decided(map) => Kind::Decided(map),
        Reply::Behind(version) => Kind::Behind(version.0),
    };
    proto::DecreeResponse { kind: Some(kind) }
}

fn reply_of_wire(response: proto::DecreeResponse) -> Option<Reply> {
    Some(match response.kind? {
        Kind::Promise(promise) if promise.map.is_empty() => Reply::Promise(None),
        Kind::Promise(promise) => {
            let ballot = Ballot { round: promise.ballot_round, node: promise.ballot_node.parse().ok()? };
            Reply::Promise(Some((ballot, promise.map)))
        }
        Kind::Accepted(_) => Reply::Accepted,
        Kind::RejectedRound(round) => Reply::Rejected(round),
        Kind::Decided(map) => Reply::Decided(map),
        Kind::Behind(version) => Reply::Behind(MapVersion(version)),
    })
}

/// The change may be in a map that was decided: not known, or not stored here.
pub fn decided_but(cause: Cause) -> Failure {
    Failure { applied: Applied::Maybe, ..Failure::early(cause) }
}

fn unreachable(applied: Applied, voters: usize, maps: &Maps, links: &Links) -> Failure {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let map = maps.current();
    let others = map.layout.members.iter().map(|m| m.id).filter(|id| *id != maps.me);
    let silent: Vec<NodeId> = others.filter(|id| links.up(*id).is_none()).collect();
    Failure {
        cause: if applied == Applied::No { Cause::Unavailable } else { Cause::TooFewAcks },
        applied,
        required: count(voters / 2 + 1),
        received: 0,
        alive: count(voters - silent.len()),
        layout_version: map.layout.version,
        silent,
    }
}
