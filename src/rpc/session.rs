//! A session: many requests in flight on one stream, answered as they finish.
//!
//! A task reads the stream and starts a task for each request. What is held for a client is bounded, and the bound
//! is kept by not reading: HTTP/2's flow control then stops the client.
//!
//! Invariants:
//! 1. A request is *held* from when it is read until its answer is taken to be sent. At most [`SESSION_REQUESTS`]
//!    are held, and [`SESSION_REQUEST_BYTES`] of them beside the one that is read last. At most [`SESSION_WIDTH`] of
//!    them are under way; the others wait in order, and their time has not begun.
//! 2. What gets have found and nobody has taken is at most [`SESSION_ANSWER_BYTES`]. A get sets room aside before
//!    it begins; if it finds more than there is room for, that is dropped, and the get begins anew when there is.
//!    All streams of a client together have no more than a client may leave untaken (`src/rpc/admission.rs`), nor than
//!    that of requests without an answer: past the first a get waits for its time and is refused then, past the second
//!    no more is read.
//! 3. Each request that was read has one answer, with its id; its order among the others says nothing.
//! 4. When the client has gone, what has begun goes on to its end, and what waits does not begin.
//!
//! Each request is admitted by itself, as a call would be, and while the node takes no more it waits, up to its time.
//! While a node stops, those that come get `UNAVAILABLE`, and those under way get their answer. There is no deadline for the stream. A message that is no protobuf message has
//! no id: it ends the stream, behind the answers to those before it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::StreamExt as _;
use tonic::Status;

use super::admission::{self, ClientBytes, Entered};
use super::item::{self, Done, Item, Outcome};
use super::kv_service;
use super::malformed;
use super::proto::{SessionRequest, SessionResponse};
use super::requests::{GetRequest, KvHandler, WriteRequest};
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::limits::{
    RETRY_DELAY, SESSION_ANSWER_BYTES, SESSION_GET_BYTES, SESSION_REQUEST_BYTES, SESSION_REQUESTS,
    SESSION_WIDTH,
};

/// What the tasks of one session share.
struct Session<H: KvHandler> {
    node: Arc<H>,
    /// At the door, if there is one.
    client: Option<Arc<Entered>>,
    /// Room for requests, for their bytes, for those under way, and for the bytes of what gets find.
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    under_way: Arc<Semaphore>,
    answer_bytes: Arc<Semaphore>,
    /// All the room for what gets find.
    answer_room: usize,
    /// The ids in flight.
    ids: Mutex<BTreeSet<u64>>,
    /// About what a get of this session finds: its greatest of late.
    usual: AtomicUsize,
    /// Why the stream ends, if not because the client has sent its last.
    end: Mutex<Option<Status>>,
}

impl<H: KvHandler> Drop for Session<H> {
    fn drop(&mut self) {
        self.node.metrics().sessions.dec();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes `bytes` of a room, or all of it if it is smaller.
async fn take(room: &Arc<Semaphore>, bytes: usize, all: usize) -> OwnedSemaphorePermit {
    let bytes = u32::try_from(bytes.min(all)).expect("a room has fewer bytes than 4 GiB");
    room.clone().acquire_many_owned(bytes).await.expect("a room is never closed")
}

/// A request that is held, and the room that it takes. Dropped when its answer is taken.
struct Held<H: KvHandler> {
    session: Arc<Session<H>>,
    /// None if its id is another's.
    id: Option<u64>,
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
    /// Its bytes, until it has an answer.
    asked: Option<ClientBytes>,
    answer: Option<Found>,
}

/// The room of what a get has found.
struct Found {
    room: OwnedSemaphorePermit,
    _held: admission::Held,
}

impl Found {
    fn bytes(&self) -> usize {
        self.room.num_permits()
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl<H: KvHandler> Held<H> {
    /// Takes over the room of an answer that is there.
    fn found(&mut self, found: Option<Found>) {
        let bytes = found.as_ref().map_or(0, Found::bytes);
        self.session.node.metrics().session_answer_bytes.inc_by(signed(bytes));
        self.answer = found;
    }
}

impl<H: KvHandler> Drop for Held<H> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            lock(&self.session.ids).remove(&id);
        }
        let metrics = self.session.node.metrics();
        let bytes = self.answer.as_ref().map_or(0, Found::bytes);
        metrics.session_answer_bytes.dec_by(signed(bytes));
        metrics.session_requests.dec();
    }
}

impl<H: KvHandler> Session<H> {
    /// Counts the bytes of a request, as soon as its client may have more under way.
    async fn ask(&self, bytes: usize) -> Option<ClientBytes> {
        let client = self.client.as_ref()?;
        loop {
            match client.ask(bytes) {
                Some(asked) => return Some(asked),
                None => tokio::time::sleep(RETRY_DELAY).await,
            }
        }
    }

    /// Counts what a get finds.
    fn hold(&self, bytes: usize) -> Result<admission::Held, Failure> {
        kv_service::hold(&*self.node, self.client.as_ref(), bytes)
    }
}

type Answer<H> = (SessionResponse, Held<H>);

/// The answers of a session, as tonic takes them.
pub struct Answers<H: KvHandler> {
    answers: mpsc::Receiver<Answer<H>>,
    session: Arc<Session<H>>,
}

impl<H: KvHandler> Stream for Answers<H> {
    type Item = Result<SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.answers.poll_recv(cx).map(|answer| match answer {
            // Its id is free before the client can have seen the answer.
            Some((response, _held)) => Some(Ok(response)),
            None => lock(&self.session.end).take().map(Err),
        })
    }
}

/// Begins a session of a client: reads `incoming` until it ends, or its answers are no longer wanted.
pub fn open<H, S>(node: Arc<H>, client: Option<Arc<Entered>>, incoming: S) -> Answers<H>
where
    H: KvHandler,
    S: Stream<Item = Result<SessionRequest, Status>> + Send + Unpin + 'static,
{
    node.metrics().sessions.inc();
    let most = client.as_ref().map_or(usize::MAX, |client| client.client_bytes());
    let answer_room = SESSION_ANSWER_BYTES.min(most).max(1);
    let session = Arc::new(Session {
        node,
        client,
        requests: Arc::new(Semaphore::new(SESSION_REQUESTS)),
        bytes: Arc::new(Semaphore::new(SESSION_REQUEST_BYTES)),
        under_way: Arc::new(Semaphore::new(SESSION_WIDTH)),
        answer_bytes: Arc::new(Semaphore::new(answer_room)),
        answer_room,
        ids: Mutex::default(),
        usual: AtomicUsize::new(SESSION_GET_BYTES),
        end: Mutex::default(),
    });
    // An answer for each request that is held: there is always room for one more.
    let (send, answers) = mpsc::channel(SESSION_REQUESTS);
    tokio::spawn(read(session.clone(), incoming, send));
    Answers { answers, session }
}

async fn read<H, S>(session: Arc<Session<H>>, mut incoming: S, answers: mpsc::Sender<Answer<H>>)
where
    H: KvHandler,
    S: Stream<Item = Result<SessionRequest, Status>> + Send + Unpin + 'static,
{
    loop {
        let next = async {
            let request = take(&session.requests, 1, SESSION_REQUESTS).await;
            let message = incoming.next().await?;
            let size = message.as_ref().map_or(0, |message| message.encoded_len());
            let bytes = take(&session.bytes, size, SESSION_REQUEST_BYTES).await;
            Some((request, message, bytes, session.ask(size).await))
        };
        let next = tokio::select! {
            biased;
            () = answers.closed() => return,
            next = next => next,
        };
        let Some((request, message, bytes, asked)) = next else { return };
        let message = match message {
            Ok(message) => message,
            Err(status) => {
                *lock(&session.end) = Some(malformed::refusal(&status));
                return;
            }
        };
        let id = message.id;
        session.node.metrics().session_requests.inc();
        let is_new = lock(&session.ids).insert(id);
        let held = Held {
            session: session.clone(),
            id: is_new.then_some(id),
            _request: request,
            _bytes: bytes,
            asked,
            answer: None,
        };
        let item = if is_new {
            item::session_item(message.request, session.node.value_limit())
        } else {
            Err(Invalid::new("id", format!("is {id}, which is in flight on this stream")).into())
        };
        match item {
            Ok(item) => {
                tokio::spawn(answer(id, item, held, answers.clone()));
            }
            Err(failure) => {
                let _ = answers.send((item::session_response(id, Err(failure)), held)).await;
            }
        }
    }
}

/// Carries out one request, and hands over its answer.
async fn answer<H: KvHandler>(id: u64, item: Item, mut held: Held<H>, answers: mpsc::Sender<Answer<H>>) {
    let session = held.session.clone();
    let outcome = match item {
        Item::Write(request) => {
            let done = Done::of_write(&request.payload);
            let _turn = tokio::select! {
                biased;
                () = answers.closed() => return,
                turn = take(&session.under_way, 1, SESSION_WIDTH) => turn,
            };
            let run = |timeout| session.node.write(WriteRequest { timeout, ..request.clone() });
            while_overloaded(request.timeout, run).await.map(done)
        }
        Item::Get(request) => {
            let (outcome, found) = tokio::select! {
                biased;
                () = answers.closed() => return,
                found = get(&session, request) => found,
            };
            held.found(found);
            outcome
        }
    };
    held.asked = None;
    // The client may have gone.
    let _ = answers.send((item::session_response(id, outcome), held)).await;
}

/// Tries again while the node takes no more, up to the request's own time: a stream can wait where a call can't. What
/// has waited is run with the time that it has left.
async fn while_overloaded<T, F: Future<Output = Result<T, Failure>>>(
    timeout: Duration,
    run: impl Fn(Duration) -> F,
) -> Result<T, Failure> {
    let began = tokio::time::Instant::now();
    loop {
        match run(timeout.saturating_sub(began.elapsed())).await {
            Err(Failure { cause: Cause::Overloaded(delay), applied: Applied::No, .. })
                if began.elapsed() + delay < timeout =>
            {
                tokio::time::sleep(delay).await;
            }
            done => return done,
        }
    }
}

/// A get that has room for what it finds.
async fn get<H: KvHandler>(session: &Session<H>, request: GetRequest) -> (Outcome, Option<Found>) {
    let all = session.answer_room;
    let mut wanted = SESSION_GET_BYTES.max(session.usual.load(Ordering::Relaxed));
    let mut began = None;
    loop {
        let mut room = take(&session.answer_bytes, wanted, all).await;
        let turn = take(&session.under_way, 1, SESSION_WIDTH).await;
        let began = *began.get_or_insert_with(tokio::time::Instant::now);
        let run = |timeout| {
            let request = GetRequest { timeout, ..request.clone() };
            async move {
                let expected = session
                    .client
                    .as_ref()
                    .map(|client| client.expect().ok_or(Cause::Overloaded(RETRY_DELAY)));
                let _expected = expected.transpose().map_err(Failure::early)?;
                session.node.get(request).await
            }
        };
        let done = match while_overloaded(request.timeout, run).await {
            Ok(done) => Done::Get(done),
            Err(failure) => return (Err(failure), None),
        };
        drop(turn);
        let bytes = done.bytes();
        let usual = session.usual.load(Ordering::Relaxed);
        session.usual.store(bytes.max(usual - usual / 8), Ordering::Relaxed);
        let needed = bytes.min(all);
        let has = room.num_permits();
        let is_room = if needed <= has {
            drop(room.split(has - needed));
            true
        } else {
            let more = u32::try_from(needed - has).expect("a room has fewer bytes than 4 GiB");
            let more = session.answer_bytes.clone().try_acquire_many_owned(more);
            more.map(|more| room.merge(more)).is_ok()
        };
        if is_room {
            match session.hold(bytes) {
                Ok(held) => return (Ok(done), Some(Found { room, _held: held })),
                Err(failure) if began.elapsed() + RETRY_DELAY >= request.timeout => {
                    return (Err(failure), None);
                }
                // Other streams of its client leave it no room.
                Err(_) => {
                    drop((done, room));
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
        // What was found goes, and so does its room: whoever waits must not hold what others wait for.
        wanted = needed;
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
