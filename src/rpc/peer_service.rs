//! `quoral.v1.Peer`: what one node does for another.
//!
//! `Exchange` reads messages of many operations and answers them as they finish, again many to a message: an
//! answer message goes out when the last one has left. A stream has at most `LINK_OPS` operations under
//! way; more are refused at once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use super::proto::{self, answer, peer_server::Peer};
use super::transport::BoxFuture;
use crate::types::ids::{LayoutVersion, NodeId};
use crate::types::limits::{ENVELOPE_BYTES, ENVELOPE_OPS, LINK_OPS};
use crate::types::time::{Mono, WallMs};
use crate::version::hlc::Stamp;

/// What a message of operations says of its sender.
#[derive(Debug, Clone, Copy)]
pub struct Sender {
    /// The node.
    pub node: NodeId,
    /// The layout version that the operations use.
    pub layout_version: LayoutVersion,
    /// What its monotonic clock said when it sent the message, and says now.
    pub sent: Mono,
    /// Likewise.
    pub now: Mono,
}

impl Sender {
    /// Whether its operation comes too late to be carried out: it has given it up, or nobody knows any more what it
    /// was for.
    pub fn is_late(&self, operation: &proto::Operation, age_max: Duration) -> bool {
        let age = Duration::from_micros(self.now.micros_since(self.sent));
        (operation.until_us > 0 && self.now.0 > operation.until_us) || age > age_max
    }

    /// How long it will wait for its operation; none if it does not say.
    pub fn patience(&self, operation: &proto::Operation) -> Option<Duration> {
        let until = operation.until_us;
        (until > 0).then(|| Duration::from_micros(until.saturating_sub(self.now.0)))
    }
}

/// Carries out the operations of peers.
pub trait PeerHandler: Send + Sync + 'static {
    /// Who calls, and whether it may.
    fn hello(&self, request: proto::HelloRequest) -> BoxFuture<'_, proto::HelloResponse>;
    /// Whether `node`, started as `nonce`, has said hello and been accepted.
    fn accepts(&self, node: &str, nonce: &str) -> Option<NodeId>;
    /// The stream of `node`, started as `nonce`, has ended.
    fn gone(&self, node: NodeId, nonce: &str);
    /// Follows a peer's hybrid clock, and notes what it says of the others. What its monotonic clock says now.
    fn observe_clock(&self, from: NodeId, clocks: PeerClocks) -> Mono;
    /// The own clock.
    fn clock(&self) -> Stamp;
    /// Carries out one operation and answers through `reply`, now or later.
    fn operation(&self, from: Sender, operation: proto::Operation, reply: Reply);
    /// The own cluster map, if newer.
    fn pull_map(&self, have_version: u64) -> Option<Vec<u8>>;
    /// One step of a decree.
    fn decree(&self, request: proto::DecreeRequest) -> BoxFuture<'_, Result<proto::DecreeResponse, Status>>;
}

/// What a peer says of its clocks.
#[derive(Debug, Clone, Copy)]
pub struct PeerClocks {
    /// Its last stamp.
    pub hlc: Stamp,
    /// Its own wall clock.
    pub wall: WallMs,
    /// What it believes of it after hearing the others.
    pub believed: WallMs,
    /// Its monotonic clock.
    pub up: Mono,
}

impl PeerClocks {
    fn of(message: &proto::Operations) -> PeerClocks {
        PeerClocks {
            hlc: Stamp(message.clock),
            wall: WallMs(message.wall_ms),
            believed: WallMs(message.believed_ms),
            up: Mono(message.up_us),
        }
    }
}

/// Answers one operation, once. Dropped unused, the operation stays unanswered until its link ends.
pub struct Reply {
    id: u64,
    answers: mpsc::UnboundedSender<proto::Answer>,
    under_way: Arc<AtomicUsize>,
}

impl Reply {
    /// Sends the answer.
    pub fn send(self, kind: answer::Kind) {
        let _ = self.answers.send(proto::Answer { id: self.id, kind: Some(kind) });
    }

    /// Sends a refusal.
    pub fn refuse(self, reason: proto::refusal::Reason, message: impl Into<String>) {
        let refusal = proto::Refusal { reason: reason.into(), message: message.into() };
        self.send(answer::Kind::Refused(refusal));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The service over a node.
pub struct PeerService<H> {
    node: Arc<H>,
}

impl<H: PeerHandler> PeerService<H> {
    /// The service over `node`.
    pub fn new(node: Arc<H>) -> PeerService<H> {
        PeerService { node }
    }
}

/// Answers, gathered into messages as they are asked for.
struct AnswerStream<H> {
    answers: mpsc::UnboundedReceiver<proto::Answer>,
    node: Arc<H>,
}

impl<H: PeerHandler> futures_core::Stream for AnswerStream<H> {
    type Item = Result<proto::Answers, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut answers = Vec::new();
        let mut bytes = 0;
        loop {
            match self.answers.poll_recv(cx) {
                Poll::Ready(Some(answer)) => {
                    bytes += answer_bytes(&answer);
                    answers.push(answer);
                    if answers.len() < ENVELOPE_OPS && bytes < ENVELOPE_BYTES {
                        continue;
                    }
                }
                Poll::Ready(None) if answers.is_empty() => return Poll::Ready(None),
                Poll::Pending if answers.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => {}
            }
            let clock = self.node.clock().0;
            return Poll::Ready(Some(Ok(proto::Answers { clock, answers })));
        }
    }
}

/// About how large an answer is.
fn answer_bytes(answer: &proto::Answer) -> usize {
    match &answer.kind {
        Some(answer::Kind::Fetched(proto::Fetched { kind: Some(proto::fetched::Kind::Record(record)) })) => {
            record.len()
        }
        Some(answer::Kind::Page(page)) => page.entries.iter().map(|e| e.suffix.len() + e.record.len()).sum(),
        Some(answer::Kind::Forwarded(_)) => prost::Message::encoded_len(answer),
        _ => 16,
    }
}

#[tonic::async_trait]
impl<H: PeerHandler> Peer for PeerService<H> {
    async fn hello(
        &self,
        request: Request<proto::HelloRequest>,
    ) -> Result<Response<proto::HelloResponse>, Status> {
        Ok(Response::new(self.node.hello(request.into_inner()).await))
    }

    type ExchangeStream = Pin<Box<dyn futures_core::Stream<Item = Result<proto::Answers, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::Operations>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let node = self.node.clone();
        let mut messages = request.into_inner();
        let (send, answers) = mpsc::unbounded_channel();
        let stream = AnswerStream { answers, node: node.clone() };
        tokio::spawn(async move {
            let under_way = Arc::new(AtomicUsize::new(0));
            let mut sender: Option<(NodeId, String)> = None;
            while let Some(Ok(message)) = messages.next().await {
                if sender.is_none() {
                    let Some(id) = node.accepts(&message.node_id, &message.nonce) else { break };
                    sender = Some((id, message.nonce.clone()));
                }
                let Some((id, _)) = &sender else { break };
                let clocks = PeerClocks::of(&message);
                let from = Sender {
                    node: *id,
                    layout_version: LayoutVersion(message.layout_version),
                    sent: clocks.up,
                    now: node.observe_clock(*id, clocks),
                };
                for operation in message.operations {
                    let before = under_way.fetch_add(1, Ordering::Relaxed);
                    let reply =
                        Reply { id: operation.id, answers: send.clone(), under_way: under_way.clone() };
                    if before >= LINK_OPS {
                        reply.refuse(proto::refusal::Reason::Overloaded, "too many operations under way");
                    } else {
                        node.operation(from, operation, reply);
                    }
                }
            }
            if let Some((id, nonce)) = sender {
                node.gone(id, &nonce);
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn pull_map(
        &self,
        request: Request<proto::PullMapRequest>,
    ) -> Result<Response<proto::PullMapResponse>, Status> {
        let map = self.node.pull_map(request.into_inner().have_version).unwrap_or_default();
        Ok(Response::new(proto::PullMapResponse { map: map.into() }))
    }

    async fn decree(
        &self,
        request: Request<proto::DecreeRequest>,
    ) -> Result<Response<proto::DecreeResponse>, Status> {
        self.node.decree(request.into_inner()).await.map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_late_when_its_sender_has_given_it_up_or_it_is_old() {
        let at = |seconds: u64| Mono(1 + seconds * 1_000_000);
        let (node, layout_version) = (NodeId(1), LayoutVersion(1));
        let from = |sent, now| Sender { node, layout_version, sent: at(sent), now: at(now) };
        let until = |seconds| proto::Operation { until_us: at(seconds).0, ..proto::Operation::default() };
        let max = Duration::from_secs(600);
        assert!(!from(5, 6).is_late(&until(6), max) && from(5, 7).is_late(&until(6), max));
        assert_eq!(from(5, 6).patience(&until(8)), Some(Duration::from_secs(2)));
        let for_ever = proto::Operation::default();
        assert!(!from(5, 605).is_late(&for_ever, max) && from(5, 606).is_late(&for_ever, max));
        assert_eq!(from(5, 6).patience(&for_ever), None);
    }
}
