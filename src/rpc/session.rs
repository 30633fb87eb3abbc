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
//! 3. Each request that was read has one answer, with its id; its order among the others says nothing.
//! 4. When the client has gone, what has begun goes on to its end, and what waits does not begin.
//!
//! Each request is admitted by itself, as a call would be, and while the node takes no more it waits, up to its time: while a node stops, those that come get `UNAVAILABLE`, and
//! those under way get their answer. There is no deadline for the stream. A message that is no protobuf message has
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

use super::item::{self, Done, Item, Outcome};
use super::malformed;
use super::proto::{SessionRequest, SessionResponse};
use super::requests::{GetRequest, KvHandler, WriteRequest};
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::limits::{
    SESSION_ANSWER_BYTES, SESSION_GET_BYTES, SESSION_REQUEST_BYTES, SESSION_REQUESTS, SESSION_WIDTH,
};

/// What the tasks of one session share.
struct Session<H: KvHandler> {
    node: Arc<H>,
    /// Room for requests, for their bytes, for those under way, and for the bytes of what gets find.
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    under_way: Arc<Semaphore>,
    answer_bytes: Arc<Semaphore>,
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
    answer: Option<OwnedSemaphorePermit>,
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl<H: KvHandler> Held<H> {
    /// Takes over the room of an answer that is there.
    fn answered(&mut self, room: Option<OwnedSemaphorePermit>) {
        let bytes = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        self.session.node.metrics().session_answer_bytes.inc_by(signed(bytes));
        self.answer = room;
    }
}

impl<H: KvHandler> Drop for Held<H> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            lock(&self.session.ids).remove(&id);
        }
        let metrics = self.session.node.metrics();
        let bytes = self.answer.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        metrics.session_answer_bytes.dec_by(signed(bytes));
        metrics.session_requests.dec();
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

/// Begins a session: reads `incoming` until it ends, or its answers are no longer wanted.
pub fn open<H, S>(node: Arc<H>, incoming: S) -> Answers<H>
where
    H: KvHandler,
    S: Stream<Item = Result<SessionRequest, Status>> + Send + Unpin + 'static,
{
    node.metrics().sessions.inc();
    let session = Arc::new(Session {
        node,
        requests: Arc::new(Semaphore::new(SESSION_REQUESTS)),
        bytes: Arc::new(Semaphore::new(SESSION_REQUEST_BYTES)),
        under_way: Arc::new(Semaphore::new(SESSION_WIDTH)),
        answer_bytes: Arc::new(Semaphore::new(SESSION_ANSWER_BYTES)),
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
            Some((request, message, take(&session.bytes, size, SESSION_REQUEST_BYTES).await))
        };
        let next = tokio::select! {
            biased;
            () = answers.closed() => return,
            next = next => next,
        };
        let Some((request, message, bytes)) = next else { return };
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
            let (outcome, room) = tokio::select! {
                biased;
                () = answers.closed() => return,
                found = get(&session, request) => found,
            };
            held.answered(room);
            outcome
        }
    };
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
async fn get<H: KvHandler>(
    session: &Session<H>,
    request: GetRequest,
) -> (Outcome, Option<OwnedSemaphorePermit>) {
    let mut wanted = SESSION_GET_BYTES.max(session.usual.load(Ordering::Relaxed));
    loop {
        let mut room = take(&session.answer_bytes, wanted, SESSION_ANSWER_BYTES).await;
        let turn = take(&session.under_way, 1, SESSION_WIDTH).await;
        let run = |timeout| session.node.get(GetRequest { timeout, ..request.clone() });
        let done = match while_overloaded(request.timeout, run).await {
            Ok(done) => Done::Get(done),
            Err(failure) => return (Err(failure), None),
        };
        drop(turn);
        let bytes = done.bytes();
        let usual = session.usual.load(Ordering::Relaxed);
        session.usual.store(bytes.max(usual - usual / 8), Ordering::Relaxed);
        let needed = bytes.min(SESSION_ANSWER_BYTES);
        let has = room.num_permits();
        if needed <= has {
            drop(room.split(has - needed));
            return (Ok(done), Some(room));
        }
        let more = u32::try_from(needed - has).expect("a room has fewer bytes than 4 GiB");
        if let Ok(more) = session.answer_bytes.clone().try_acquire_many_owned(more) {
            room.merge(more);
            return (Ok(done), Some(room));
        }
        // What was found goes, and so does its room: whoever waits must not hold what others wait for.
        wanted = needed;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::sync::watch;
    use tokio_stream::wrappers::ReceiverStream;

    use super::super::item::BatchRequest;
    use super::super::proto::{self, session_request::Request, session_response};
    use super::super::requests::{GetDone, ScanPage, ScanRequest, WriteDone};
    use super::super::transport::BoxFuture;
    use super::*;
    use crate::telemetry::metrics::Metrics;
    use crate::version::hlc::Stamp;
    use crate::version::record::Live;

    /// Answers a get of `"12"` with 12 bytes; lets nothing whose key begins with `w` end before `gate` opens.
    struct Fake {
        metrics: Metrics,
        gate: watch::Sender<bool>,
        /// Requests that have begun and ended.
        begun: watch::Sender<usize>,
        ended: watch::Sender<usize>,
    }

    impl Fake {
        fn new() -> Arc<Fake> {
            Arc::new(Fake {
                metrics: Metrics::default(),
                gate: watch::Sender::new(false),
                begun: watch::Sender::new(0),
                ended: watch::Sender::new(0),
            })
        }

        async fn run(&self, key: &Bytes) {
            self.begun.send_modify(|count| *count += 1);
            if key.starts_with(b"w") {
                self.gate.subscribe().wait_for(|open| *open).await.expect("it lives");
            }
            self.ended.send_modify(|count| *count += 1);
        }

        async fn wait(count: &watch::Sender<usize>, wanted: usize) {
            count.subscribe().wait_for(|count| *count >= wanted).await.expect("it lives");
        }

        fn held(&self) -> (i64, i64) {
            (self.metrics.session_requests.get(), self.metrics.session_answer_bytes.get())
        }
    }

    impl KvHandler for Fake {
        fn value_limit(&self) -> usize {
            1 << 20
        }

        fn write(&self, request: WriteRequest) -> BoxFuture<'_, Result<WriteDone, Failure>> {
            Box::pin(async move {
                self.run(request.key.partition_key()).await;
                Err(Failure::early(Cause::Unavailable))
            })
        }

        fn get(&self, request: GetRequest) -> BoxFuture<'_, Result<GetDone, Failure>> {
            Box::pin(async move {
                let key = request.key.partition_key();
                self.run(key).await;
                let length = std::str::from_utf8(key).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                let live = Live { value: vec![0; length].into(), stamp: Stamp(1), expires_at: None };
                let (siblings, context) = (vec![live], Bytes::new());
                Ok(GetDone { siblings, context, r: 2, replies: 2, sloppy: false, session: Bytes::new() })
            })
        }

        fn scan_page(&self, _: ScanRequest) -> BoxFuture<'_, Result<ScanPage, Failure>> {
            unreachable!("a session has no scans")
        }

        fn batch(&self, _: BatchRequest) -> BoxFuture<'_, Result<Vec<Outcome>, Failure>> {
            unreachable!("a session has no batches")
        }

        fn hold(&self, _: usize, _: bool) -> Result<crate::rpc::admission::Held, Failure> {
            unreachable!("a session holds its answers itself")
        }

        fn metrics(&self) -> &Metrics {
            &self.metrics
        }
    }

    type Sender = mpsc::Sender<Result<SessionRequest, Status>>;

    fn start(node: &Arc<Fake>, room: usize) -> (Sender, Answers<Fake>) {
        let (send, incoming) = mpsc::channel(room);
        (send, open(node.clone(), ReceiverStream::new(incoming)))
    }

    fn get(id: u64, key: &str) -> Result<SessionRequest, Status> {
        let get = proto::GetRequest { key: key.to_owned().into(), ..Default::default() };
        Ok(SessionRequest { id, request: Some(Request::Get(get)) })
    }

    fn put(id: u64, key: &str) -> Result<SessionRequest, Status> {
        let put = proto::PutRequest { key: key.to_owned().into(), ..Default::default() };
        Ok(SessionRequest { id, request: Some(Request::Put(put)) })
    }

    async fn next(answers: &mut Answers<Fake>) -> (u64, Result<usize, String>) {
        let answer = answers.next().await.expect("an answer").expect("no end");
        let outcome = match answer.outcome.expect("an outcome") {
            session_response::Outcome::Get(got) => Ok(got.siblings[0].value.len()),
            session_response::Outcome::Error(error) => Err(error.message),
            other => panic!("{other:?}"),
        };
        (answer.id, outcome)
    }

    #[tokio::test]
    async fn answers_come_as_they_finish() {
        let node = Fake::new();
        let (send, mut answers) = start(&node, 10);
        for request in [get(7, "wait"), get(8, "3"), put(9, "wait"), get(u64::MAX, "5")] {
            send.send(request).await.expect("it reads");
        }
        let mut first = [next(&mut answers).await, next(&mut answers).await];
        first.sort();
        assert_eq!(first, [(8, Ok(3)), (u64::MAX, Ok(5))]);
        // The client has sent its last: the rest is answered, then the stream ends.
        drop(send);
        node.gate.send_replace(true);
        let mut rest = [next(&mut answers).await, next(&mut answers).await];
        rest.sort();
        assert!(matches!(&rest, [(7, Ok(0)), (9, Err(said))] if said.contains("too few")), "{rest:?}");
        assert!(answers.next().await.is_none());
        assert_eq!(node.held(), (0, 0));
    }

    #[tokio::test]
    async fn a_bad_message_is_answered_and_the_session_goes_on() {
        let node = Fake::new();
        let (send, mut answers) = start(&node, 10);
        send.send(Ok(SessionRequest { id: 1, request: None })).await.expect("it reads");
        assert_eq!(
            next(&mut answers).await,
            (1, Err("request: is missing: must be a put, a get or a delete".into()))
        );
        send.send(get(1, "")).await.expect("it reads");
        assert_eq!(next(&mut answers).await, (1, Err("key: must have at least 1 byte".into())));
        // An id that is in flight; once its answer has come it is free.
        for request in [get(1, "wait"), get(1, "3")] {
            send.send(request).await.expect("it reads");
        }
        let repeated = "id: is 1, which is in flight on this stream";
        assert_eq!(next(&mut answers).await, (1, Err(repeated.into())));
        node.gate.send_replace(true);
        assert_eq!(next(&mut answers).await, (1, Ok(0)));
        send.send(get(1, "4")).await.expect("it reads");
        assert_eq!(next(&mut answers).await, (1, Ok(4)));
        // What can't be read at all ends the stream, behind the answers to what came before.
        send.send(get(2, "5")).await.expect("it reads");
        send.send(Err(Status::internal("junk"))).await.expect("it reads");
        assert_eq!(next(&mut answers).await, (2, Ok(5)));
        let end = answers.next().await.expect("a status").expect_err("an error");
        assert_eq!(end.code(), tonic::Code::InvalidArgument);
        assert!(!end.details().is_empty() && end.message().contains("junk"), "{end:?}");
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn it_reads_no_more_than_it_may_hold() {
        let node = Fake::new();
        let (send, mut answers) = start(&node, 2 * SESSION_REQUESTS);
        for id in 0..2 * SESSION_REQUESTS as u64 {
            send.try_send(put(id, "wait")).expect("there is room");
        }
        Fake::wait(&node.begun, SESSION_WIDTH).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!((*node.begun.borrow(), node.held().0), (SESSION_WIDTH, SESSION_REQUESTS as i64));
        // Done but not taken is still held.
        node.gate.send_replace(true);
        Fake::wait(&node.ended, SESSION_REQUESTS).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*node.begun.borrow(), SESSION_REQUESTS);
        drop(send);
        let mut ids = BTreeSet::new();
        while let Some(answer) = answers.next().await {
            ids.insert(answer.expect("no end").id);
        }
        assert_eq!(ids.len(), 2 * SESSION_REQUESTS);
    }

    #[tokio::test]
    async fn a_slow_reader_holds_a_bounded_number_of_bytes() {
        let node = Fake::new();
        let (send, mut answers) = start(&node, 1_000);
        let length = 1_000_000;
        for id in 0..300 {
            send.try_send(get(id, &length.to_string())).expect("there is room");
        }
        drop(send);
        let fit = SESSION_ANSWER_BYTES / (length + 32);
        Fake::wait(&node.ended, fit).await;
        for taken in 0..300 {
            // Whatever can go on without a reader does.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            let (requests, bytes) = node.held();
            assert!(bytes <= SESSION_ANSWER_BYTES as i64, "{bytes} bytes");
            assert_eq!(requests, 300 - taken);
            assert!(bytes > 0 || requests == 0, "nothing is there to be taken");
            assert_eq!(next(&mut answers).await.1, Ok(length));
        }
        assert!(answers.next().await.is_none());
        assert_eq!(node.held(), (0, 0));
        println!("{} gets for 300 answers", *node.begun.borrow());
    }

    #[tokio::test]
    async fn when_the_client_has_gone_nothing_is_left() {
        let node = Fake::new();
        let (send, answers) = start(&node, 3_000);
        for id in 0..2_000 {
            let request = if id % 2 == 0 { put(id, "wait") } else { get(id, "1000000") };
            send.try_send(request).expect("there is room");
        }
        Fake::wait(&node.ended, 30).await;
        drop(answers);
        // The reader ends, so that nobody takes what is sent.
        send.closed().await;
        node.gate.send_replace(true);
        while node.metrics.sessions.get() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(node.held(), (0, 0));
        // What was begun has ended, and what waited has not begun.
        assert!(*node.begun.borrow() <= SESSION_WIDTH + 100, "{} begun", *node.begun.borrow());
    }

    /// A request that waited for an overloaded node ends at its deadline all the same.
    #[tokio::test(start_paused = true)]
    async fn what_has_waited_has_the_rest_of_its_time() {
        let given = Mutex::new(Vec::new());
        let run = |left: Duration| {
            given.lock().expect("no panic").push(left.as_millis());
            async { Err::<(), _>(Failure::early(Cause::Overloaded(Duration::from_millis(100)))) }
        };
        assert!(while_overloaded(Duration::from_millis(250), run).await.is_err());
        assert_eq!(*given.lock().expect("no panic"), [250, 150, 50]);
    }
}
