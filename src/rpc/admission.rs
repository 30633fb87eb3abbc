//! At the door of the client port: who is let in before a message is even read, and for how long an answer counts.
//!
//! A refusal here costs little, since nothing is decoded: it is what a node does most of when far more is asked of it
//! than it can do.
//!
//! Rules:
//! 1. Past the limit a call is refused with `RESOURCE_EXHAUSTED`, `applied = NO` and a retry delay.
//! 2. A client that has fewer calls under way than its share of the limit is let in all the same, up to twice the
//!    limit: one that floods the node does not shut the others out. A client is a connection.
//! 3. A call counts until its answer has been taken by its client, or the client is gone; so do the bytes that a
//!    handler holds for it ([`Held`]). A client may leave a quarter of all bytes untaken, and a get that would add to
//!    that is refused: one that does not read stands in its own way, not in the others'.
//!
//! Streams of sessions are let in at once: their requests are admitted one by one, by the node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::convert;
use super::transport::{BoxFuture, ConnectInfo};
use crate::types::error::{Cause, Failure};
use crate::types::limits::RETRY_DELAY;

/// What an answer keeps counted until its client has taken it: a handler puts it into its response's extensions.
#[derive(Clone)]
pub struct Held {
    /// Dropped when it is taken.
    pub guard: Arc<dyn Send + Sync>,
    /// Its bytes.
    pub bytes: usize,
}

/// The door: calls under way by client, and the limit.
#[derive(Debug)]
pub struct Door {
    clients: Mutex<Clients>,
    limit: AtomicUsize,
    /// Bytes that one client may leave untaken.
    client_bytes: usize,
    /// About what a get finds.
    usual: AtomicUsize,
    refused: AtomicUsize,
}

#[derive(Debug, Default)]
struct Clients {
    by: BTreeMap<SocketAddr, Untaken>,
    all: usize,
    /// The most since it was last asked for.
    most: usize,
}

/// What one client has not taken.
#[derive(Debug, Default, Clone, Copy)]
struct Untaken {
    calls: usize,
    bytes: usize,
}

/// One call that was let in, until it is dropped.
#[derive(Debug)]
pub struct Entered {
    door: Arc<Door>,
    client: SocketAddr,
    bytes: usize,
}

impl Entered {
    /// Corrects what its answer was expected to have.
    fn found(&mut self, bytes: usize) {
        let mut clients = self.door.clients();
        if let Some(untaken) = clients.by.get_mut(&self.client) {
            untaken.bytes = (untaken.bytes + bytes).saturating_sub(self.bytes);
        }
        drop(clients);
        self.bytes = bytes;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut clients = self.door.clients();
        clients.all = clients.all.saturating_sub(1);
        if let Some(untaken) = clients.by.get_mut(&self.client) {
            untaken.calls = untaken.calls.saturating_sub(1);
            untaken.bytes = untaken.bytes.saturating_sub(self.bytes);
            if untaken.calls == 0 {
                clients.by.remove(&self.client);
            }
        }
    }
}

impl Door {
    /// A door that lets in `limit` calls at a time, on a node that holds `bytes` for them.
    pub fn new(limit: usize, bytes: usize) -> Door {
        Door {
            clients: Mutex::default(),
            limit: AtomicUsize::new(limit),
            client_bytes: bytes / 4,
            usual: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        }
    }

    /// Sets what a get is expected to find, in bytes.
    pub fn set_usual(&self, bytes: usize) {
        self.usual.store(bytes, Ordering::Relaxed);
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the limit.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Calls that were refused since it was last asked.
    pub fn take_refused(&self) -> usize {
        self.refused.swap(0, Ordering::Relaxed)
    }

    /// The most calls at a time since it was last asked.
    pub fn take_most(&self) -> usize {
        let mut clients = self.clients();
        let now = clients.all;
        std::mem::replace(&mut clients.most, now)
    }

    /// All three rules; `reads`: its answer may be large.
    pub fn enter(self: &Arc<Self>, client: SocketAddr, reads: bool) -> Option<Entered> {
        let limit = self.limit.load(Ordering::Relaxed);
        let mut clients = self.clients();
        let mine = clients.by.get(&client).copied().unwrap_or_default();
        let others = clients.by.len() - usize::from(mine.calls > 0);
        let bytes = if reads { self.usual.load(Ordering::Relaxed) } else { 0 };
        let is_slow = reads && mine.bytes > 0 && mine.bytes + bytes > self.client_bytes;
        let share = (limit / (others + 1)).max(1);
        let is_full = clients.all >= limit && (mine.calls >= share || clients.all >= limit.saturating_mul(2));
        if is_full || is_slow {
            drop(clients);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        clients.all += 1;
        clients.most = clients.most.max(clients.all);
        let untaken = clients.by.entry(client).or_default();
        untaken.calls += 1;
        untaken.bytes += bytes;
        Some(Entered { door: self.clone(), client, bytes })
    }
}

/// Puts the door before a service.
#[derive(Clone)]
pub struct DoorLayer(pub Arc<Door>);

impl<S> Layer<S> for DoorLayer {
    type Service = DoorService<S>;
    fn layer(&self, inner: S) -> DoorService<S> {
        DoorService { inner, door: self.0.clone() }
    }
}

/// A service behind the door.
#[derive(Clone)]
pub struct DoorService<S> {
    inner: S,
    door: Arc<Door>,
}

/// Calls that count: those of `Kv`, but for streams of sessions.
fn counts(path: &str) -> bool {
    path.strip_prefix("/quoral.v1.Kv/").is_some_and(|verb| verb != "Session")
}

fn refusal() -> Response<Body> {
    let status: Status = convert::status(&Failure::early(Cause::Overloaded(RETRY_DELAY)));
    status.into_http()
}

impl<S, B> Service<Request<B>> for DoorService<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Send,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let client = request.extensions().get::<ConnectInfo>().map(|info| info.peer);
        let Some(client) = client.filter(|_| counts(request.uri().path())) else {
            return Box::pin(self.inner.call(request));
        };
        let reads = request.uri().path().ends_with("/Get");
        let Some(mut entered) = self.door.enter(client, reads) else {
            return Box::pin(async { Ok(refusal()) });
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            let held = response.extensions_mut().remove::<Held>();
            entered.found(held.as_ref().map_or(0, |held| held.bytes));
            Ok(response.map(|body| Body::new(Counted { body, _entered: entered, _held: held })))
        })
    }
}

/// An answer that counts until it is taken.
struct Counted {
    body: Body,
    _entered: Entered,
    _held: Option<Held>,
}

impl http_body::Body for Counted {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], number))
    }

    #[test]
    fn one_client_takes_all_there_is_and_leaves_a_share_to_others() {
        let door = Arc::new(Door::new(8, 100));
        let mut flood: Vec<Entered> = (0..100).map_while(|_| door.enter(client(1), true)).collect();
        assert_eq!(flood.len(), 8);
        let others: Vec<Entered> = (0..100).map_while(|_| door.enter(client(2), true)).collect();
        assert_eq!(others.len(), 4, "half of the limit");
        // The flood gets no more before it is below its own share.
        flood.truncate(5);
        assert!(door.enter(client(1), true).is_none());
        flood.truncate(3);
        flood.extend(door.enter(client(1), true));
        assert_eq!(flood.len(), 4);
        // Never more than twice the limit, however many come.
        let many: Vec<Entered> = (10..1_000).filter_map(|number| door.enter(client(number), true)).collect();
        assert_eq!(many.len(), 8);
        assert_eq!((door.take_refused() > 900, door.take_refused(), door.take_most()), (true, 0, 16));
        drop((flood, others, many));
        assert_eq!(door.clients().all, 0);
        assert!(door.clients().by.is_empty());
        door.take_most();
        assert_eq!(door.take_most(), 0);
    }

    #[test]
    fn a_client_that_does_not_read_is_refused_and_others_are_not() {
        let door = Arc::new(Door::new(1_000, 400));
        door.set_usual(30);
        let slow: Vec<Entered> = (0..100).map_while(|_| door.enter(client(1), true)).collect();
        assert_eq!(slow.len(), 3, "a quarter of the bytes");
        assert!(door.enter(client(1), false).is_some() && door.enter(client(2), true).is_some());
        let mut one = door.enter(client(3), true).expect("its first");
        one.found(500);
        assert!(door.enter(client(3), true).is_none(), "one large answer is always let in, and no more");
        one.found(10);
        assert!(door.enter(client(3), true).is_some());
        drop((slow, one));
        assert!(door.clients().by.is_empty());
    }

    #[test]
    fn what_counts_is_said_by_the_path() {
        assert!(counts("/quoral.v1.Kv/Put") && counts("/quoral.v1.Kv/Batch"));
        assert!(!counts("/quoral.v1.Kv/Session") && !counts("/grpc.health.v1.Health/Check"));
    }
}
