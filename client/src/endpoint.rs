//! One endpoint: its connection, and how well it is.
//!
//! Invariants:
//! 1. At most one connection is being made at a time; who waits for it gets its outcome.
//! 2. A connection that broke is dropped by whoever saw it break, once: a newer one is left alone.
//! 3. An endpoint that failed is avoided for a while, twice as long each time. When the while is over, one request
//!    tries it, and the others go on to avoid it until that one has an answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::error::{Code, Error, Reached, chain};
use crate::route::Health;

/// Longest wait for one connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A silent connection is asked for a sign of life after this, and given up after as long again: so a node that was
/// stopped costs less than a second.
const KEEP_ALIVE: Duration = Duration::from_millis(450);
/// How long an endpoint is avoided after its first failure.
const AVOIDED: Duration = Duration::from_millis(100);
/// How long at the most, if it can't be reached, and if it is only unwell.
const AVOIDED_DEAD: Duration = Duration::from_secs(5);
const AVOIDED_UNWELL: Duration = Duration::from_secs(1);

/// An endpoint. Shared by all requests.
#[derive(Debug)]
pub struct Target {
    /// `host:port`.
    pub address: Arc<str>,
    /// Whether the user named it.
    pub given: bool,
    endpoint: Endpoint,
    state: Mutex<State>,
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Channel>,
    /// Counts connections, to tell them apart.
    connection: u64,
    health: Health,
    /// Failures in a row.
    failures: u32,
    avoid_until: Option<Instant>,
    /// How the last try to connect failed, and when.
    refused: Option<(Instant, Error)>,
}

impl State {
    fn failed(&mut self, health: Health, now: Instant) {
        let most = if health == Health::Dead { AVOIDED_DEAD } else { AVOIDED_UNWELL };
        let time = AVOIDED.saturating_mul(1 << self.failures.min(10)).min(most);
        self.failures = self.failures.saturating_add(1);
        self.health = health;
        self.avoid_until = Some(now + time);
    }
}

/// A connection, and which one it is.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The connection.
    pub channel: Channel,
    /// Counts the connections to its endpoint.
    pub number: u64,
}

/// `host:port` without a scheme; an error names what is wrong.
fn host_and_port(name: &str) -> Result<&str, Error> {
    let bare = name.strip_prefix("http://").unwrap_or(name).trim_end_matches('/');
    let good = |(host, port): (&str, &str)| !host.is_empty() && port.parse::<u16>().is_ok();
    if bare.contains('/') || !bare.rsplit_once(':').is_some_and(good) {
        return Err(Error::invalid(format!("endpoint {name:?}: must be host:port")));
    }
    Ok(bare)
}

impl Target {
    /// An endpoint at `name`; it is connected when it is first used.
    pub fn new(name: &str, given: bool) -> Result<Target, Error> {
        let address = host_and_port(name)?.to_owned();
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Error::invalid(format!("endpoint {name:?}: {error}")))?
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(Some(4 << 20))
            .initial_connection_window_size(Some(16 << 20))
            .connect_timeout(CONNECT_TIMEOUT);
        Ok(Target {
            address: address.into(),
            given,
            endpoint,
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How well it is now, and whether a connection is open.
    pub fn seen(&self, now: Instant) -> (Health, bool) {
        let state = self.state();
        let avoided = state.avoid_until.is_some_and(|until| now < until);
        (if avoided { state.health } else { Health::Well }, state.channel.is_some())
    }

    /// A request is about to go there. If it failed before, others wait for what becomes of this one.
    pub fn chosen(&self, now: Instant) {
        let mut state = self.state();
        if state.failures > 0 && state.avoid_until.is_none_or(|until| now >= until) {
            state.avoid_until = Some(now + CONNECT_TIMEOUT);
        }
    }

    /// It answered.
    pub fn answered(&self) {
        let mut state = self.state();
        if state.failures > 0 {
            (state.failures, state.health, state.avoid_until) = (0, Health::Well, None);
        }
    }

    /// A request on this connection failed.
    pub fn failed(&self, connection: &Connection, error: &Error) {
        let now = Instant::now();
        let mut state = self.state();
        match error.reached {
            // It may only be slow: if its connection is dead, keep-alive will say so.
            Reached::Connection if error.code == Code::DeadlineExceeded => state.failed(Health::Unwell, now),
            // Others have said so of this connection, and there may be a new one by now.
            Reached::Connection | Reached::Nobody if state.connection != connection.number => {}
            Reached::Connection | Reached::Nobody => {
                // Connect afresh next time, rather than wait for tonic's own reconnect.
                state.channel = None;
                state.connection += 1;
                state.failed(Health::Dead, now);
            }
            Reached::Node if error.code == Code::Unavailable => state.failed(Health::Unwell, now),
            Reached::Node => {
                drop(state);
                self.answered();
            }
        }
    }

    /// The connection; made if there is none.
    pub async fn connection(&self, deadline: Instant) -> Result<Connection, Error> {
        if let Some(open) = self.open() {
            return Ok(open);
        }
        let came = Instant::now();
        let late = || {
            Error::unreachable(format!("{}: no connection within the time; nothing was sent", self.address))
        };
        let _one = tokio::time::timeout_at(deadline, self.connecting.lock()).await.map_err(|_| late())?;
        if let Some(open) = self.open() {
            return Ok(open);
        }
        if let Some((at, error)) = &self.state().refused
            && *at >= came
        {
            return Err(error.clone());
        }
        let outcome = match tokio::time::timeout_at(deadline, self.endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => {
                let what = chain("can't connect", std::error::Error::source(&error)).unwrap_or_default();
                Err(Error::unreachable(format!("{}: {what}; nothing was sent", self.address)))
            }
            Err(_) => Err(late()),
        };
        let mut state = self.state();
        match outcome {
            Ok(channel) => {
                state.connection += 1;
                state.channel = Some(channel.clone());
                Ok(Connection { channel, number: state.connection })
            }
            Err(error) => {
                let now = Instant::now();
                state.failed(Health::Dead, now);
                state.refused = Some((now, error.clone()));
                Err(error)
            }
        }
    }

    fn open(&self) -> Option<Connection> {
        let state = self.state();
        let channel = state.channel.clone()?;
        Some(Connection { channel, number: state.connection })
    }

    /// Begins to connect in the background, unless it is connected, avoided, or being connected.
    pub fn warm(self: &Arc<Target>) {
        let (health, connected) = self.seen(Instant::now());
        if connected || health == Health::Dead || self.connecting.try_lock().is_err() {
            return;
        }
        let target = self.clone();
        tokio::spawn(async move {
            // What went wrong is kept in its state.
            let _ = target.connection(Instant::now() + CONNECT_TIMEOUT).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_host_and_port() {
        for good in ["127.0.0.1:7400", "http://db.example:80", "http://[::1]:7400/"] {
            assert!(Target::new(good, true).is_ok(), "{good}");
        }
        for bad in ["", "host", ":1", "h:x", "h:99999", "http://h:1/path", "https://h:1", "a b:1"] {
            let error = Target::new(bad, true).map(|_| ()).expect_err(bad);
            assert_eq!(error.code, Code::InvalidArgument);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_avoided_then_tried_by_one() {
        let target = Target::new("127.0.0.1:1", true).expect("an address");
        let fail = || target.state().failed(Health::Dead, Instant::now());
        let health = || target.seen(Instant::now()).0;
        fail();
        assert_eq!(health(), Health::Dead);
        tokio::time::advance(AVOIDED).await;
        assert_eq!(health(), Health::Well, "the while is over");
        target.chosen(Instant::now());
        assert_eq!(health(), Health::Dead, "one tries it");
        fail();
        tokio::time::advance(AVOIDED).await;
        assert_eq!(health(), Health::Dead, "twice as long");
        target.answered();
        assert_eq!(health(), Health::Well);
    }

    #[tokio::test]
    async fn a_refused_connection_is_nobody_and_unavailable() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let target = Target::new(&free.to_string(), true).expect("an address");
        let deadline = Instant::now() + Duration::from_secs(5);
        let error = target.connection(deadline).await.map(|_| ()).expect_err("nobody listens");
        assert_eq!(
            (error.reached, error.code, error.surely_not_applied()),
            (Reached::Nobody, Code::Unavailable, true)
        );
        assert_eq!(target.seen(Instant::now()).0, Health::Dead);
    }
}
