//! Tests of `session.rs`, over a node that is made up.

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
        Ok(crate::rpc::admission::Held { guard: Arc::new(()) })
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

type Sender = mpsc::Sender<Result<SessionRequest, Status>>;

fn start(node: &Arc<Fake>, room: usize) -> (Sender, Answers<Fake>) {
    let (send, incoming) = mpsc::channel(room);
    (send, open(node.clone(), None, ReceiverStream::new(incoming)))
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
