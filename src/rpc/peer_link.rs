//! The link to one peer: one connection, one stream of operations, matched to their answers by id.
//!
//! An operation is handed over with what to do with its answer. While the link is down, or has as much in
//! flight as it may, handing over fails at once and the operation surely was not sent. When a link breaks,
//! each operation in flight is told so: it may or may not have been carried out.
//!
//! A message of operations goes out when the last one has left; there is no delay to gather more.
//!
//! Invariants:
//! 1. Each operation handed over is answered exactly once: by the peer, or by `Lost` when the link ends (F28).
//! 2. In flight are at most `LINK_OPS` operations and about `LINK_BYTES` bytes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

use super::proto::{self, answer, operation, peer_client::PeerClient};
use super::transport::Network;
use crate::canary::{self, Canary};
use crate::types::limits::{ENVELOPE_BYTES, ENVELOPE_OPS, LINK_BYTES, LINK_OPS, MESSAGE_BYTES_MAX};

/// A message without operations goes out at least this often: it tells the own clock.
const IDLE: Duration = Duration::from_secs(1);

/// The link ended before the answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// The operation was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// There is no connection.
    Down,
    /// As much is in flight as may be.
    Full,
}

/// What is done with an answer.
pub type Waiter = Box<dyn FnOnce(Result<answer::Kind, Lost>) + Send>;

struct InFlight {
    waiter: Waiter,
    bytes: usize,
}

struct Outgoing {
    operation: proto::Operation,
    bytes: usize,
    epoch: u64,
}

struct Shared {
    up: AtomicBool,
    /// Grows with each connection: an operation queued for an earlier one is not sent on a later one.
    epoch: AtomicU64,
    next_id: AtomicU64,
    bytes: AtomicUsize,
    in_flight: Mutex<BTreeMap<u64, InFlight>>,
}

/// Hands operations over. Cheap to clone.
#[derive(Clone)]
pub struct PeerLink {
    shared: Arc<Shared>,
    queue: mpsc::UnboundedSender<Outgoing>,
}

/// What each message of operations says of its sender.
pub trait Preamble: Send + Sync + 'static {
    /// A message without operations: node id, nonce, clock and layout version.
    fn preamble(&self) -> proto::Operations;
}

/// How a connection ended, or why there was none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It could not be made, or broke.
    #[error("{0}")]
    Broken(String),
    /// The peer does not take this node.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
        /// Whether trying again is of no use.
        is_final: bool,
    },
}

impl LinkError {
    fn broken(error: &impl std::error::Error) -> LinkError {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        LinkError::Broken(text)
    }
}

/// The receiving end of a link's queue: kept over all its connections.
pub struct LinkQueue {
    receiver: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Outgoing>>>,
}

/// A link that is down, and the queue that [`PeerLink::run`] serves.
pub fn new_link() -> (PeerLink, LinkQueue) {
    let (queue, receiver) = mpsc::unbounded_channel();
    let shared = Shared {
        up: AtomicBool::new(false),
        epoch: AtomicU64::new(0),
        next_id: AtomicU64::new(1),
        bytes: AtomicUsize::new(0),
        in_flight: Mutex::default(),
    };
    let link = PeerLink { shared: Arc::new(shared), queue };
    (link, LinkQueue { receiver: Arc::new(tokio::sync::Mutex::new(receiver)) })
}

/// About how large an operation is.
fn operation_bytes(operation: &proto::Operation) -> usize {
    let body = match &operation.kind {
        Some(operation::Kind::Store(store)) => store.record.len(),
        Some(operation::Kind::Forward(forward)) => prost::Message::encoded_len(forward),
        _ => 0,
    };
    64 + operation.key.len() + operation.sort.len() + body
}

impl PeerLink {
    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        self.shared.up.load(Ordering::Acquire)
    }

    /// Hands over an operation; `waiter` gets its answer, or `Lost`. If this fails, `waiter` is dropped and
    /// the operation was not sent.
    pub fn send(&self, mut operation: proto::Operation, waiter: Waiter) -> Result<(), NotSent> {
        let bytes = operation_bytes(&operation);
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        operation.id = id;
        let mut in_flight = self.shared.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that an operation is either refused here or told `Lost` by `fail_all`.
        if !self.is_up() {
            return Err(NotSent::Down);
        }
        let queued = self.shared.bytes.load(Ordering::Relaxed);
        if in_flight.len() >= LINK_OPS || (queued > 0 && queued + bytes > LINK_BYTES) {
            return Err(NotSent::Full);
        }
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        in_flight.insert(id, InFlight { waiter, bytes });
        // The receiver lives as long as the link's task; if that is gone, `fail_all` has run or will.
        let _ = self.queue.send(Outgoing { operation, bytes, epoch });
        Ok(())
    }

    /// Whether it has about as much in flight as it may: a write would do better not to begin.
    pub fn is_full(&self) -> bool {
        self.in_flight() >= LINK_OPS / 8 * 7
            || self.shared.bytes.load(Ordering::Relaxed) >= LINK_BYTES / 8 * 7
    }

    /// How many operations wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many bytes they are.
    pub fn bytes_in_flight(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    fn answered(&self, answer: proto::Answer) {
        let mut in_flight = self.shared.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = in_flight.remove(&answer.id) else { return };
        drop(in_flight);
        self.shared.bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
        (entry.waiter)(answer.kind.ok_or(Lost));
    }

    /// Takes the link down, and tells everything in flight.
    fn fail_all(&self) {
        let mut in_flight = self.shared.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.up.store(false, Ordering::Release);
        let all = std::mem::take(&mut *in_flight);
        drop(in_flight);
        for entry in all.into_values() {
            if !canary::sings(Canary::BytesLeaked) {
                self.shared.bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
            }
            (entry.waiter)(Err(Lost));
        }
    }

    /// Connects, says hello and serves the queue until the connection ends. `up` is called once the link is
    /// up, with what the peer said to that; `observe` with the peer's clock.
    pub async fn run(
        &self,
        channel: Channel,
        hello: proto::HelloRequest,
        preamble: Arc<dyn Preamble>,
        queue: &LinkQueue,
        up: impl FnOnce(&proto::HelloResponse) + Send,
        observe: impl Fn(u64) + Send,
    ) -> LinkError {
        let result = self.serve(channel, hello, preamble, queue, up, observe).await;
        self.fail_all();
        // What was queued has been told `Lost`; it would hold memory until the next connection.
        if let Ok(mut receiver) = queue.receiver.try_lock() {
            while receiver.try_recv().is_ok() {}
        }
        result.err().unwrap_or_else(|| LinkError::Broken("the peer closed the stream".into()))
    }

    async fn serve(
        &self,
        channel: Channel,
        hello: proto::HelloRequest,
        preamble: Arc<dyn Preamble>,
        queue: &LinkQueue,
        up: impl FnOnce(&proto::HelloResponse) + Send,
        observe: impl Fn(u64) + Send,
    ) -> Result<(), LinkError> {
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let answer = client.hello(hello).await.map_err(|s| LinkError::broken(&s))?.into_inner();
        if !answer.refused.is_empty() {
            return Err(LinkError::Refused { reason: answer.refused, is_final: answer.r#final });
        }
        let epoch = self.shared.epoch.fetch_add(1, Ordering::Relaxed) + 1;
        let stream = OperationStream {
            receiver: queue.receiver.clone().lock_owned().await,
            preamble,
            epoch,
            greeted: false,
            idle: tokio::time::interval(IDLE),
        };
        let mut answers = client.exchange(stream).await.map_err(|s| LinkError::broken(&s))?.into_inner();
        self.shared.up.store(true, Ordering::Release);
        up(&answer);
        loop {
            match answers.next().await {
                Some(Ok(message)) => {
                    observe(message.clock);
                    message.answers.into_iter().for_each(|answer| self.answered(answer));
                }
                Some(Err(status)) => return Err(LinkError::broken(&status)),
                None => return Ok(()),
            }
        }
    }
}

/// Operations, gathered into messages as they are asked for.
struct OperationStream {
    receiver: tokio::sync::OwnedMutexGuard<mpsc::UnboundedReceiver<Outgoing>>,
    preamble: Arc<dyn Preamble>,
    epoch: u64,
    greeted: bool,
    idle: tokio::time::Interval,
}

impl futures_core::Stream for OperationStream {
    type Item = proto::Operations;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<proto::Operations>> {
        if !self.greeted {
            // An empty message first: it names the sender, and makes the peer answer with its headers.
            self.greeted = true;
            return Poll::Ready(Some(self.preamble.preamble()));
        }
        let mut operations = Vec::new();
        let mut bytes = 0;
        loop {
            match self.receiver.poll_recv(cx) {
                Poll::Ready(Some(outgoing)) => {
                    if outgoing.epoch != self.epoch {
                        continue;
                    }
                    bytes += outgoing.bytes;
                    operations.push(outgoing.operation);
                    if operations.len() < ENVELOPE_OPS && bytes < ENVELOPE_BYTES {
                        continue;
                    }
                }
                Poll::Ready(None) if operations.is_empty() => return Poll::Ready(None),
                Poll::Pending if operations.is_empty() => {
                    if self.idle.poll_tick(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            return Poll::Ready(Some(proto::Operations { operations, ..self.preamble.preamble() }));
        }
    }
}

/// A channel to `address` over `network`: keep-alive under a second, also while idle, so that a connection
/// that died in silence is found out; large windows, so that one slow operation holds up no other.
pub fn channel(network: Arc<dyn Network>, address: &str) -> Result<Channel, LinkError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| LinkError::broken(&e))?;
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_millis(400))
        .keep_alive_timeout(Duration::from_millis(900))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true);
    let address = address.to_owned();
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let (network, address) = (network.clone(), address.clone());
        async move { network.connect(&address).await.map(hyper_util::rt::TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}
