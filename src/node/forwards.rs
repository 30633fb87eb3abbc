//! Sends a client's request on to a home replica of its key, and carries out what others sent on.
//!
//! A request is sent on once: whoever gets it runs it. A home replica that surely changed nothing, since its disk is
//! bad or it is stopping, is passed over for the next.

use std::time::Duration;

use super::coordinator::{Admitted, Coordinator, Route};
use crate::canary::{self, Canary};
use crate::rpc::convert;
use crate::rpc::proto::{self, answer, forward, forwarded, operation};
use crate::rpc::requests::{WriteDone, WriteRequest};
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::ids::NodeId;
use crate::version::record::Payload;

/// The answer of another node to a forwarded request.
enum Sent {
    Answered(forwarded::Kind),
    Lost(NodeId),
    NobodyUp,
}

/// How long a node is waited for that a write was sent on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Until the deadline: sent to another, it might be applied twice.
    AllTheTime,
    /// It has a request id: what hangs on a silent node leaves time for another.
    HalfOfIt,
    /// It is sloppy, too: fallbacks are there.
    AWhile,
}

/// Longer than a healthy node takes, and short for a user.
const A_WHILE_MS: u64 = 400;
/// The way there and back.
const MARGIN_MS: u64 = 100;

impl Coordinator {
    /// Counts in what another node sent on, with its bytes, and in the share of its key.
    pub fn admit_forward(&self, forward: &proto::Forward) -> Result<Admitted<'_>, Failure> {
        match &forward.request {
            Some(forward::Request::Put(put)) => self.admit_key(&put.keyspace, &put.key, put.value.len()),
            Some(forward::Request::Delete(delete)) => self.admit_key(&delete.keyspace, &delete.key, 0),
            None => self.admit(0),
        }
    }

    /// Sends a put or delete on.
    pub(super) async fn forward_write(
        &self,
        request: WriteRequest,
        route: &Route,
        w: u8,
        may_forward: bool,
    ) -> Result<WriteDone, Failure> {
        let timeout = request.timeout;
        let patience = match request.request_id {
            None => Patience::AllTheTime,
            Some(_) if request.sloppy.unwrap_or(route.keyspace.sloppy) => Patience::AWhile,
            Some(_) => Patience::HalfOfIt,
        };
        let message = write_to_wire(request, w);
        match self.forward(message, timeout, route, may_forward, patience).await? {
            Sent::Answered(forwarded::Kind::Put(done)) => {
                let proto::PutResponse { context, w, acks, sloppy, stamp, session } = done;
                Ok(WriteDone { context, w, acks, sloppy, stamp, session })
            }
            Sent::Answered(forwarded::Kind::Delete(done)) => {
                let proto::DeleteResponse { context, w, acks, sloppy, stamp, session } = done;
                Ok(WriteDone { context, w, acks, sloppy, stamp, session })
            }
            Sent::Lost(node) => {
                Err(self.forward_failure(route, w, Cause::TooFewAcks, Applied::Maybe, vec![node]))
            }
            Sent::Answered(_) | Sent::NobodyUp => {
                Err(self.forward_failure(route, w, Cause::Unavailable, Applied::No, route.homes.clone()))
            }
        }
    }

    /// What a request that was sent on ends with when no home replica has answered it.
    pub(super) fn forward_failure(
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
    /// surely changed nothing and another may do better. One that may be sent twice goes on also when an answer does
    /// not come.
    async fn forward(
        &self,
        request: forward::Request,
        timeout: Duration,
        route: &Route,
        may_forward: bool,
        patience: Patience,
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
            let share = match patience {
                Patience::AllTheTime => left,
                Patience::HalfOfIt => left / 2,
                Patience::AWhile => (left / 2).min(A_WHILE_MS),
            };
            // A node that may be followed by another is to have ended by then.
            let its_own = match patience {
                Patience::AllTheTime => left,
                _ => share - (share / 4).min(MARGIN_MS),
            };
            let until = self.driver.clock.mono() + Duration::from_millis(share);
            let forward = proto::Forward { timeout_ms: its_own.max(1), request: Some(request.clone()) };
            let operation = proto::Operation {
                keyspace_id: route.keyspace.id.0,
                kind: Some(operation::Kind::Forward(forward)),
                until_us: until.0,
                ..Default::default()
            };
            let (send, receive) = tokio::sync::oneshot::channel();
            if link.send(operation, Box::new(move |result| drop(send.send(result)))).is_err() {
                continue;
            }
            let answer = tokio::time::timeout(Duration::from_millis(share.max(1)), receive).await;
            match answer {
                Ok(Ok(Ok(answer::Kind::Forwarded(proto::Forwarded { kind: Some(kind) })))) => match kind {
                    forwarded::Kind::Failed(failed) => match convert::failure_of_forward(failed) {
                        failure if another_home_may(&failure) => refused = Some(failure),
                        failure if lost.is_some() => return Err(failure.in_doubt()),
                        failure => return Err(failure),
                    },
                    kind => return Ok(Sent::Answered(kind)),
                },
                Ok(Ok(Ok(answer::Kind::Refused(_)))) => {}
                _ if patience != Patience::AllTheTime => lost = Some(*node),
                _ if canary::sings(Canary::ForwardRetried) => {}
                _ => return Ok(Sent::Lost(*node)),
            }
        }
        // What may have been carried out by one is not undone by what another says.
        match (lost, refused) {
            (Some(node), _) => Ok(Sent::Lost(node)),
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(Sent::NobodyUp),
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
            None => Err(Invalid::new("request", "is missing").into()),
        };
        result.unwrap_or_else(failed)
    }
}

/// Whether a request that failed at one home replica may do better at another: it surely changed nothing, and
/// what failed is that node's own.
pub(super) fn another_home_may(failure: &Failure) -> bool {
    let own = match failure.cause.kind() {
        Cause::Storage(_) | Cause::NotServing(_) | Cause::ClockSkew(_) | Cause::Unavailable => true,
        // Sent on, it would only spread the load that is too much.
        Cause::Overloaded(_) => false,
        Cause::BehindSession | Cause::TooFewAcks | Cause::InDoubt(_) | Cause::TooManySiblings(_) => false,
        Cause::NotBegun | Cause::NotArrived | Cause::AnswerFull(_) => false,
        Cause::Invalid(_) | Cause::UnknownKeyspace(_) | Cause::Unbuilt(_) | Cause::Forwarded { .. } => false,
    };
    own && failure.applied == Applied::No
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
            request_id: convert::request_id_bytes(request.request_id),
            sloppy: request.sloppy,
            session: request.session,
            ..Default::default()
        }),
        Payload::Tombstone => forward::Request::Delete(proto::DeleteRequest {
            keyspace: request.keyspace,
            key,
            sort,
            context: request.context,
            acks: Some(proto::delete_request::Acks::W(w.into())),
            request_id: convert::request_id_bytes(request.request_id),
            sloppy: request.sloppy,
            session: request.session,
            ..Default::default()
        }),
    }
}
