//! The client port: answers calls on connections of clients, and refuses those past the limit.
//!
//! Rules:
//! 1. A call that the door (`src/rpc/admission.rs`) does not let in is refused by the task that reads its connection, in
//!    the turn that read it, without a task of its own: refusing costs a small part of what serving costs, and never
//!    waits behind calls that are served.
//! 2. What a turn refuses is sent together.
//! 3. Each call that is let in has a task, which ends early when the client takes its call back.
//! 4. A call whose message is not all here when its time is up is refused: nothing was begun. Streams of sessions have
//!    no time.
//! 5. A client that takes nothing of what waits for it for [`TAKEN_WITHIN`] loses that call, or stream: what it holds
//!    here is for others.
//! 6. A connection that leaves a ping unanswered is closed; its calls end with it. So is one that does not begin to
//!    speak, and one past [`CLIENT_CONNECTIONS`].

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::Service;

use super::admission::{ClientBytes, Door, Entered, Held};
use super::convert;
use super::transport::{ConnectInfo, Connection};
use crate::types::error::{Cause, Failure};
use crate::types::limits::{CLIENT_CONNECTIONS, RETRY_DELAY, TAKEN_WITHIN, VALUE_BYTES_MAX};

/// Streams of one connection at a time.
const STREAMS: u32 = 4_096;
/// Bytes that a stream, and a connection, may have on their way here.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// What a connection may have of small frames that nobody has read, by what each is short of 256 bytes: as many
/// requests of 36 bytes as fit into the window. Past it the connection is closed.
const FRAMES_BUDGET: usize = 128 << 20;
/// Bytes of an answer that a stream keeps to be sent: what is there counts no longer as untaken.
const SEND_BUFFER: usize = 16 << 10;
/// Refused calls of a connection that are remembered, and for how long: what comes of their messages is passed over.
const REFUSED_STREAMS: usize = 4 * STREAMS as usize;
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Frames for calls that are not remembered, in a connection's life, past which it is closed.
const STRAY_FRAMES: usize = 1 << 20;
/// The most that a message is counted for: longer ones are refused when they are read.
const MESSAGE_COUNTED: usize = 2 * VALUE_BYTES_MAX;
/// How long a connection may take to begin.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
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
    let room = Arc::new(Semaphore::new(CLIENT_CONNECTIONS));
    while let Some(connection) = connections.next().await {
        let Ok(connection) = connection else { continue };
        let Ok(place) = room.clone().try_acquire_owned() else {
            tracing::debug!("a client's connection is one too many: there are {CLIENT_CONNECTIONS}");
            continue;
        };
        let (service, door) = (service.clone(), door.clone());
        tokio::spawn(async move {
            let _place = place;
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
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS_BYTES)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(REFUSED_STREAMS)
        .reset_stream_duration(REFUSED_FOR)
        .max_local_error_reset_streams(Some(STRAY_FRAMES))
        .data_frame_budget(FRAMES_BUDGET)
        .handshake::<_, Bytes>(connection);
    let handshake = tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await;
    let mut client = handshake.map_err(|_| Reason::SETTINGS_TIMEOUT)??;
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
    entered: Arc<Entered>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let is_here = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    // The handler keeps to the time of a message that is here.
    let late = match request.uri().path() {
        "/quoral.v1.Kv/Session" => None,
        _ => Some(tokio::time::sleep(convert::time_to_arrive(request.headers()))),
    };
    let late = async {
        match late {
            Some(late) => late.await,
            None => std::future::pending().await,
        }
        if is_here.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let mut request =
        request.map(|stream| Body::new(Incoming::new(stream, entered.clone(), is_here.clone())));
    request.extensions_mut().insert(info);
    request.extensions_mut().insert(entered.clone());
    let response = async {
        let Ok(()) = poll_fn(|cx| service.poll_ready(cx)).await;
        let Ok(response) = service.call(request).await;
        response
    };
    let mut response = tokio::select! {
        biased;
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        response = response => response,
        () = late => {
            let refused = convert::status(&Failure::early(Cause::NotArrived));
            let _ = respond.send_response(refused.into_http::<()>(), true);
            return;
        }
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
    entered: Arc<Entered>,
    frames: Frames,
    /// Of the message that is on its way.
    arriving: Option<ClientBytes>,
    /// Set when all is here.
    is_here: Arc<AtomicBool>,
}

/// Where the messages of a call begin and end: each has a flag and its length before it, as gRPC says.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 5],
    /// Bytes of the head that are here.
    have: usize,
    /// Bytes of the message that are not.
    left: usize,
}

impl Frames {
    /// Reads on. Some if a message has begun and not ended; then its whole length.
    fn read(&mut self, mut data: &[u8]) -> Option<usize> {
        let mut begun = None;
        loop {
            let rest = data.len().min(self.left);
            (self.left, data) = (self.left - rest, &data[rest..]);
            if self.left > 0 {
                return begun;
            }
            begun = None;
            if data.is_empty() {
                return None;
            }
            let more = data.len().min(5 - self.have);
            self.head[self.have..self.have + more].copy_from_slice(&data[..more]);
            (self.have, data) = (self.have + more, &data[more..]);
            if self.have == 5 {
                let [_, length @ ..] = self.head;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                (self.have, begun) = (0, Some(self.left));
            }
        }
    }
}

impl Incoming {
    fn new(stream: RecvStream, entered: Arc<Entered>, is_here: Arc<AtomicBool>) -> Incoming {
        Incoming { stream, entered, frames: Frames::default(), arriving: None, is_here }
    }

    /// Counts the message that is on its way, if there is one.
    fn count(&mut self, data: &[u8]) -> Result<(), Status> {
        let begun = self.frames.read(data);
        if begun.is_some() || self.frames.left == 0 {
            self.arriving = None;
        }
        // A longer one is refused by whoever reads it.
        if let Some(length) = begun.map(|length| length.min(MESSAGE_COUNTED)) {
            let overloaded = || convert::status(&Failure::early(Cause::Overloaded(RETRY_DELAY)));
            self.arriving = Some(self.entered.arrive(length).ok_or_else(overloaded)?);
        }
        Ok(())
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let broken = |error: h2::Error| Status::from_error(error.into());
        let this = &mut *self;
        if let Some(data) = ready!(this.stream.poll_data(cx)) {
            let data = data.map_err(broken)?;
            this.count(&data)?;
            // It is taken: as much may come again.
            this.stream.flow_control().release_capacity(data.len()).map_err(broken)?;
            this.is_here.store(this.stream.is_end_stream(), Ordering::Relaxed);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(this.stream.poll_trailers(cx)).map_err(broken)?;
        this.is_here.store(true, Ordering::Relaxed);
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
#[path = "http2_tests.rs"]
mod tests;
