//! The client port: answers calls on connections of clients, and refuses those past the limit.
//!
//! Rules:
//! 1. A call that the door (`src/rpc/admission.rs`) does not let in is refused by the task that reads its connection, in
//!    the turn that read it, without a task of its own: refusing costs a small part of what serving costs, and never
//!    waits behind calls that are served.
//! 2. What a turn refuses is sent together.
//! 3. Each call that is let in has a task, which ends early when the client takes its call back.
//! 4. A client that takes nothing of what waits for it for [`TAKEN_WITHIN`] loses that call, or stream: what it holds
//!    here is for others.
//! 5. A connection that leaves a ping unanswered is closed; its calls end with it.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::Service;

use super::admission::{Door, Entered, Held};
use super::transport::{ConnectInfo, Connection};
use crate::types::limits::TAKEN_WITHIN;

/// Streams of one connection at a time.
const STREAMS: u32 = 4_096;
/// Bytes that a stream, and a connection, may have on their way here.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of headers that one call may have.
const HEADERS_BYTES: u32 = 16 << 10;

/// How often a client is pinged, and how long it may be silent then.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    /// Between pings.
    pub interval: Duration,
    /// For an answer.
    pub timeout: Duration,
}

/// Serves connections until there are no more.
pub async fn serve<S, C>(mut connections: C, service: S, door: Arc<Door>, keep_alive: KeepAlive)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    C: Stream<Item = io::Result<Connection>> + Unpin,
{
    while let Some(connection) = connections.next().await {
        let Ok(connection) = connection else { continue };
        let (service, door) = (service.clone(), door.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_one(connection, service, door, keep_alive).await {
                tracing::debug!(%error, "a client's connection ended");
            }
        });
    }
}

async fn serve_one<S>(
    connection: Connection,
    service: S,
    door: Arc<Door>,
    keep_alive: KeepAlive,
) -> Result<(), h2::Error>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let info = ConnectInfo { peer: connection.peer };
    let mut client = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS_BYTES)
        .handshake::<_, Bytes>(connection)
        .await?;
    let mut pulse = client.ping_pong().map(|pings| Pulse::new(pings, keep_alive));
    let mut refused: Vec<SendResponse<Bytes>> = Vec::new();
    poll_fn(move |cx| {
        loop {
            match client.poll_accept(cx) {
                Poll::Ready(Some(call)) => {
                    let (request, respond) = call?;
                    match door.let_in(info.peer, request.uri().path()) {
                        Ok(entered) => {
                            tokio::spawn(answer(service.clone(), request, respond, info, entered));
                        }
                        Err(_) => refused.push(respond),
                    }
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending if refused.is_empty() => break,
                Poll::Pending => {
                    for mut respond in refused.drain(..) {
                        // One that the client has taken back needs no answer.
                        let _ = respond.send_response(door.refusal(), true);
                    }
                }
            }
        }
        match pulse.as_mut().map(|pulse| pulse.poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Err(Reason::NO_ERROR.into())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// Pings a client, and finds that it is gone.
struct Pulse {
    pings: PingPong,
    keep_alive: KeepAlive,
    timer: Pin<Box<Sleep>>,
    is_asked: bool,
}

impl Pulse {
    fn new(pings: PingPong, keep_alive: KeepAlive) -> Pulse {
        Pulse { pings, keep_alive, timer: Box::pin(tokio::time::sleep(keep_alive.interval)), is_asked: false }
    }

    /// Ready when the client is gone.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.is_asked {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.is_asked = false;
                        self.timer.as_mut().reset(Instant::now() + self.keep_alive.interval);
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            ready!(self.timer.as_mut().poll(cx));
            if self.is_asked || self.pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.is_asked = true;
            self.timer.as_mut().reset(Instant::now() + self.keep_alive.timeout);
        }
    }
}

/// Runs one call, and sends its answer.
async fn answer<S>(
    mut service: S,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    info: ConnectInfo,
    entered: Option<Arc<Entered>>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let mut request = request.map(|stream| Body::new(Incoming { stream }));
    request.extensions_mut().insert(info);
    if let Some(entered) = &entered {
        request.extensions_mut().insert(entered.clone());
    }
    let response = async {
        let Ok(()) = poll_fn(|cx| service.poll_ready(cx)).await;
        let Ok(response) = service.call(request).await;
        response
    };
    let mut response = tokio::select! {
        biased;
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        response = response => response,
    };
    let _held = response.extensions_mut().remove::<Held>();
    let (head, body) = response.into_parts();
    let is_all = body.is_end_stream();
    // That the client is gone is no news.
    let sent = respond.send_response(Response::from_parts(head, ()), is_all);
    if let Some(stream) = sent.ok().filter(|_| !is_all) {
        let _ = send_body(body, stream).await;
    }
}

/// Sends an answer's body, as fast as the client takes it.
async fn send_body(mut body: Body, mut stream: SendStream<Bytes>) -> Result<(), h2::Error> {
    loop {
        let frame = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(reset) => Poll::Ready(Err(reset)),
            Poll::Pending => Pin::new(&mut body).poll_frame(cx).map(Ok),
        });
        let frame = match frame.await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return stream.send_data(Bytes::new(), true),
            Ok(Some(Err(_))) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            Err(reset) => return reset.map(drop),
        };
        match frame.into_data() {
            Ok(data) => send_data(data, &mut stream).await?,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return stream.send_trailers(trailers);
                }
            }
        }
    }
}

async fn send_data(mut data: Bytes, stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| match stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Poll::Ready(Some(Err(reason.into()))),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Pending => stream.poll_capacity(cx),
        });
        let Ok(room) = tokio::time::timeout(TAKEN_WITHIN, room).await else {
            stream.send_reset(Reason::CANCEL);
            return Err(Reason::CANCEL.into());
        };
        let Some(room) = room else { return Err(Reason::CANCEL.into()) };
        stream.send_data(data.split_to(room?.min(data.len())), false)?;
    }
    Ok(())
}

/// What a client sends in a call.
struct Incoming {
    stream: RecvStream,
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let stream = &mut self.stream;
        if let Some(data) = ready!(stream.poll_data(cx)) {
            let data = data?;
            // It is taken: as much may come again.
            stream.flow_control().release_capacity(data.len())?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(ready!(stream.poll_trailers(cx))?.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use h2::client::{ResponseFuture, SendRequest};
    use tokio::sync::watch;
    use tower::service_fn;

    use super::*;

    const ALIVE: KeepAlive =
        KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(10) };

    /// Serves one client with a service that echoes what it is sent when `gate` is open; `begun` counts up for each
    /// call that it has and down when that is dropped.
    async fn start(limit: usize) -> (SendRequest<Bytes>, watch::Sender<bool>, watch::Sender<usize>) {
        let (gate, begun) = (watch::Sender::new(false), watch::Sender::new(0_usize));
        let (here, there) = tokio::io::duplex(1 << 16);
        let peer = ([127, 0, 0, 1], 1).into();
        let connection = Connection { stream: Box::new(there), peer };
        let (opened, count) = (gate.clone(), begun.clone());
        let echo = service_fn(move |request: Request<Body>| {
            let (mut open, count) = (opened.subscribe(), count.clone());
            async move {
                count.send_modify(|count| *count += 1);
                let _gone = Gone(count);
                open.wait_for(|open| *open).await.expect("it lives");
                Ok::<_, Infallible>(Response::new(request.into_body()))
            }
        });
        let door = Arc::new(Door::new(limit, 1 << 20));
        tokio::spawn(serve(tokio_stream::iter([Ok(connection)]), echo, door, ALIVE));
        let (client, connection) = h2::client::handshake(here).await.expect("a connection");
        tokio::spawn(connection);
        (client.ready().await.expect("it takes calls"), gate, begun)
    }

    struct Gone(watch::Sender<usize>);

    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.send_modify(|count| *count -= 1);
        }
    }

    async fn call(client: &SendRequest<Bytes>, sent: Bytes) -> (ResponseFuture, SendStream<Bytes>) {
        let request = Request::post("http://node/quoral.v1.Kv/Get").body(()).expect("well-formed");
        let mut client = client.clone().ready().await.expect("it takes calls");
        let (response, mut stream) = client.send_request(request, false).expect("it is open");
        stream.send_data(sent, true).expect("it is open");
        (response, stream)
    }

    fn code(response: &Response<RecvStream>) -> Option<&[u8]> {
        response.headers().get("grpc-status").map(|value| value.as_bytes())
    }

    #[tokio::test]
    async fn what_is_past_the_limit_is_refused_while_the_rest_waits() {
        let (client, gate, begun) = start(3).await;
        let mut under_way = Vec::new();
        for _ in 0..3 {
            under_way.push(call(&client, Bytes::from_static(b"value")).await.0);
        }
        begun.subscribe().wait_for(|begun| *begun == 3).await.expect("it lives");
        for _ in 0..100 {
            let (response, _) = call(&client, Bytes::from_static(b"value")).await;
            let response = response.await.expect("an answer");
            assert_eq!(code(&response), Some(&b"8"[..]), "{response:?}");
            assert!(response.headers().contains_key("grpc-status-details-bin"), "a retry delay");
            assert!(response.body().is_end_stream());
        }
        assert_eq!(*begun.borrow(), 3, "none of those came so far");
        gate.send_replace(true);
        for response in under_way {
            let mut body = response.await.expect("an answer").into_body();
            assert_eq!(body.data().await.expect("a body").expect("no end"), "value");
        }
        // There is room again.
        let (response, _) = call(&client, Bytes::new()).await;
        assert_eq!(code(&response.await.expect("an answer")), None);
    }

    #[tokio::test]
    async fn a_call_that_is_taken_back_ends() {
        let (client, _gate, begun) = start(1).await;
        let (response, mut stream) = call(&client, Bytes::new()).await;
        begun.subscribe().wait_for(|begun| *begun == 1).await.expect("it lives");
        stream.send_reset(Reason::CANCEL);
        drop(response);
        begun.subscribe().wait_for(|begun| *begun == 0).await.expect("it lives");
    }

    #[tokio::test]
    async fn an_answer_larger_than_its_window_comes_whole() {
        let (client, gate, _) = start(1).await;
        gate.send_replace(true);
        let sent = Bytes::from(vec![7; 1_000_000]);
        let request = Request::post("http://node/quoral.v1.Kv/Get").body(()).expect("well-formed");
        let mut client = client.ready().await.expect("it takes calls");
        let (response, mut stream) = client.send_request(request, false).expect("it is open");
        let body = async {
            send_data(sent.clone(), &mut stream).await.expect("it takes it");
            stream.send_data(Bytes::new(), true).expect("it is open");
        };
        let answer = async {
            let mut body = response.await.expect("an answer").into_body();
            let mut taken = 0;
            while let Some(data) = body.data().await {
                let data = data.expect("no end");
                body.flow_control().release_capacity(data.len()).expect("as much as came");
                taken += data.len();
            }
            taken
        };
        assert_eq!(tokio::join!(body, answer).1, sent.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_for_long_is_given_up() {
        let (client, gate, begun) = start(3).await;
        gate.send_replace(true);
        let began = Instant::now();
        // It comes back, and the client takes as much as its window has.
        let (response, _sent) = call(&client, Bytes::from(vec![7; 1 << 20])).await;
        let mut body = response.await.expect("an answer").into_body();
        let mut taken = 0;
        let error = loop {
            match body.data().await.expect("it does not end well") {
                Ok(data) => taken += data.len(),
                Err(error) => break error,
            }
        };
        assert_eq!((error.reason(), error.is_remote()), (Some(Reason::CANCEL), true), "{error}");
        assert!(taken > 0 && began.elapsed() >= TAKEN_WITHIN, "{taken} after {:?}", began.elapsed());
        begun.subscribe().wait_for(|begun| *begun == 0).await.expect("nothing is left of it");
    }
}
