//! HTTP for machines that watch: `/healthz`, `/readyz` and `/metrics`.
//!
//! Over the boxed listener of `rpc::transport`, so that it runs in the simulator as well. Ready and
//! healthy are two things: a node that waits for its peers is healthy and must not be restarted.
//!
//! Invariants:
//! 1. At most `HTTP_CONNECTIONS` are open, each for at most `HTTP_CONNECTION_LIFE`: whoever holds
//!    connections open without a word does not shut the watchers out for longer than that.
//!
//! It changes nothing, and it has no TLS.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::rpc::transport::{Connection, Listener};
use crate::types::limits::{HTTP_CONNECTION_LIFE, HTTP_CONNECTIONS};

/// What the watchers ask of a node.
pub trait HttpState: Send + Sync + 'static {
    /// That it serves; or why not, in a few words.
    fn ready(&self) -> Result<String, String>;
    /// All metrics in the OpenMetrics text format.
    fn metrics(&self) -> String;
}

/// Serves the three pages on `listener` until `shutdown` is done, and then finishes what is asked.
pub async fn serve_http(
    state: Arc<dyn HttpState>,
    listener: Box<dyn Listener>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let permits = Arc::new(Semaphore::new(HTTP_CONNECTIONS));
    let served = axum::serve(Bounded { listener, permits }, router(state)).with_graceful_shutdown(shutdown);
    if let Err(error) = served.await {
        tracing::warn!(%error, "the HTTP listener stopped");
    }
}

fn router(state: Arc<dyn HttpState>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(state)
}

async fn ready(State(state): State<Arc<dyn HttpState>>) -> impl IntoResponse {
    match state.ready() {
        Ok(how) => (StatusCode::OK, format!("{how}\n")),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(state): State<Arc<dyn HttpState>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.metrics())
}

/// A listener that accepts only so many connections at once.
struct Bounded {
    listener: Box<dyn Listener>,
    permits: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Brief;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Brief, SocketAddr) {
        loop {
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                // Never closed; but a listener that can't accept must not spin.
                std::future::pending().await
            };
            match self.listener.accept().await {
                Ok(connection) => {
                    let peer = connection.peer;
                    let end = Box::pin(tokio::time::sleep(HTTP_CONNECTION_LIFE));
                    return (Brief { connection, end, _permit: permit }, peer);
                }
                Err(error) => {
                    tracing::debug!(%error, "an HTTP connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // Asked only for the debug text of a server; the boxed listener doesn't tell.
        Ok(SocketAddr::from(([0, 0, 0, 0], 0)))
    }
}

/// A connection that ends after a while.
struct Brief {
    connection: Connection,
    end: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Brief {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Brief {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl AsyncWrite for Brief {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Fake(Mutex<Result<String, String>>);

    impl HttpState for Fake {
        fn ready(&self) -> Result<String, String> {
            self.0.lock().expect("not poisoned").clone()
        }
        fn metrics(&self) -> String {
            "quoral_up 1\n# EOF\n".into()
        }
    }

    /// A listener whose connections are made in memory, by the test.
    struct Pipes(tokio::sync::mpsc::Receiver<tokio::io::DuplexStream>);

    impl Listener for Pipes {
        fn accept(&mut self) -> crate::rpc::transport::BoxFuture<'_, io::Result<Connection>> {
            Box::pin(async move {
                match self.0.recv().await {
                    Some(pipe) => {
                        Ok(Connection { stream: Box::new(pipe), peer: SocketAddr::from(([127, 0, 0, 1], 1)) })
                    }
                    None => std::future::pending().await,
                }
            })
        }
    }

    async fn ask(to: &tokio::sync::mpsc::Sender<tokio::io::DuplexStream>, path: &str) -> String {
        let (mut near, far) = tokio::io::duplex(4_096);
        to.send(far).await.expect("the server takes it");
        let request = format!("GET {path} HTTP/1.1\r\nhost: q\r\nconnection: close\r\n\r\n");
        near.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn the_pages_say_how_the_node_is() {
        let (to, from) = tokio::sync::mpsc::channel(8);
        let state = Arc::new(Fake(Mutex::new(Err("waiting for peers".into()))));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn(serve_http(state.clone(), Box::new(Pipes(from)), async {
            let _ = stopped.await;
        }));
        let answer = ask(&to, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("waiting for peers\n"), "{answer}");
        assert!(ask(&to, "/healthz").await.starts_with("HTTP/1.1 200"));
        *state.0.lock().expect("not poisoned") = Ok("ready".into());
        let answer = ask(&to, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n"), "{answer}");
        let answer = ask(&to, "/metrics").await;
        assert!(answer.contains("openmetrics") && answer.ends_with("# EOF\n"), "{answer}");
        assert!(ask(&to, "/other").await.starts_with("HTTP/1.1 404"));
        stop.send(()).expect("still served");
        served.await.expect("stops when told");
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_do_not_shut_others_out_for_ever() {
        let (to, from) = tokio::sync::mpsc::channel(8);
        let state = Arc::new(Fake(Mutex::new(Ok("ready".into()))));
        let served = tokio::spawn(serve_http(state, Box::new(Pipes(from)), std::future::pending()));
        let mut silent = Vec::new();
        for _ in 0..HTTP_CONNECTIONS {
            let (near, far) = tokio::io::duplex(64);
            to.send(far).await.expect("the server takes it");
            silent.push(near);
        }
        // Time is the test's own: it runs on only when all else waits.
        let answer = ask(&to, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        served.abort();
    }
}
