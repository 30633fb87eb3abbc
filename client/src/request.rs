//! Puts, gets and deletes: each is built, then awaited.
//!
//! Invariants:
//! 1. A put or delete has one request id for all its attempts, made when it was built.
//! 2. A request's time begins when it is awaited.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::{Response, Status};

use crate::client::{Answered, Attempt, deadline_of};
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::proto;
use crate::retry::Op;
use crate::route::Place;
use crate::values::{Context, Found, Key, Level, Written};

/// What an awaited request is.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// The name of a write: sent twice under it, it is carried out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub [u8; 16]);

impl RequestId {
    /// One that nobody else has.
    pub fn random() -> RequestId {
        RequestId(rand::random())
    }
}

fn new_id(keyspace: &Keyspace) -> Bytes {
    match keyspace.client.0.settings.request_ids {
        true => id_bytes(RequestId::random()),
        false => Bytes::new(),
    }
}

fn id_bytes(id: RequestId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

/// When a request with this time of its own must be answered.
pub(crate) fn deadline(keyspace: &Keyspace, timeout: Option<Duration>) -> Instant {
    deadline_of(&keyspace.client, timeout)
}

/// Sends a request to a home replica of `key`; in a session, in its turn and with its token, which the answer's follows.
async fn send<T, F, Fut>(
    keyspace: &Keyspace,
    op: Op,
    key: &[u8],
    timeout: Option<Duration>,
    send: F,
    token_of: fn(&T) -> &Bytes,
) -> Result<Answered<T>, Error>
where
    F: Fn(Attempt, Option<Bytes>) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let until = deadline(keyspace, timeout);
    let mut turn = match &keyspace.session {
        Some(session) => Some(session.turn(until).await?),
        None => None,
    };
    let token = turn.as_deref().cloned();
    let place = Place { keyspace: keyspace.name(), key };
    let in_turn = |attempt| send(attempt, token.clone());
    let answered = keyspace.client.0.call(op, Some(place), until, in_turn).await?;
    if let Some(token) = turn.as_deref_mut() {
        token.clone_from(token_of(&answered.answer));
    }
    Ok(answered)
}

macro_rules! options_of_writes {
    ($of:ty, $level:ident) => {
        impl $of {
            /// What the write replaces: the context of an earlier answer for the same key.
            pub fn context(mut self, context: impl Into<Context>) -> Self {
                self.message.context = context.into().into();
                self
            }

            /// Acknowledgements to wait for, instead of the keyspace's own.
            pub fn w(mut self, w: impl Into<Level>) -> Self {
                self.message.acks = Some(w.into().$level());
                self
            }

            /// Whether fallbacks may stand in for home replicas, instead of what the keyspace says.
            pub fn sloppy(mut self, sloppy: bool) -> Self {
                self.message.sloppy = Some(sloppy);
                self
            }

            /// How long it may take, with all its attempts, instead of the client's time.
            pub fn timeout(mut self, timeout: Duration) -> Self {
                self.timeout = Some(timeout);
                self
            }

            /// Its name, instead of a random one: so that another process can send it again, within 10 minutes.
            /// Each id is for one write of one key and value.
            pub fn request_id(mut self, id: RequestId) -> Self {
                self.message.request_id = id_bytes(id);
                self
            }

            /// Without a request id: it costs the cluster less, and is not sent again when its answer was lost.
            pub fn unnamed(mut self) -> Self {
                self.message.request_id = Bytes::new();
                self
            }

            /// Without a request id, and sent again all the same when its answer was lost: the caller says that twice
            /// does as much as once. So it is in an `lww` keyspace while nobody else writes the key.
            pub fn repeatable(mut self) -> Self {
                self.repeatable = true;
                self.unnamed()
            }

            /// What it is to the retries.
            pub(crate) fn op(&self) -> Op {
                let is_named = self.repeatable || !self.message.request_id.is_empty();
                if is_named { Op::NamedWrite } else { Op::Write }
            }
        }
    };
}

/// A put; see [`Keyspace::put`].
#[derive(Debug, Clone)]
#[must_use = "a put is sent when it is awaited"]
pub struct Put {
    pub(crate) keyspace: Keyspace,
    pub(crate) message: proto::PutRequest,
    pub(crate) timeout: Option<Duration>,
    repeatable: bool,
}

options_of_writes!(Put, of_put);

impl Put {
    pub(crate) fn new(keyspace: Keyspace, key: Key, value: Bytes) -> Put {
        let message = proto::PutRequest {
            keyspace: keyspace.name().to_owned(),
            key: key.partition,
            sort: key.sort,
            value,
            request_id: new_id(&keyspace),
            ..Default::default()
        };
        Put { keyspace, message, timeout: None, repeatable: false }
    }

    /// How long the value lives, instead of the keyspace's own; in milliseconds, one at the least.
    pub fn ttl(mut self, ttl: Duration) -> Put {
        self.message.ttl_ms = crate::client::millis(ttl).max(1);
        self
    }

    async fn send(self) -> Result<Written, Error> {
        let attempt = |attempt: Attempt, session| {
            let timeout_ms = attempt.timeout_ms();
            let message = proto::PutRequest { timeout_ms, session, ..self.message.clone() };
            async move { attempt.kv().put(message).await }
        };
        let (op, key) = (self.op(), &self.message.key);
        let sent = send(&self.keyspace, op, key, self.timeout, attempt, |answer| &answer.session);
        let Answered { answer, attempts } = sent.await?;
        Ok(Written::of_put(answer, attempts))
    }
}

/// A delete; see [`Keyspace::delete`].
#[derive(Debug, Clone)]
#[must_use = "a delete is sent when it is awaited"]
pub struct Delete {
    pub(crate) keyspace: Keyspace,
    pub(crate) message: proto::DeleteRequest,
    pub(crate) timeout: Option<Duration>,
    repeatable: bool,
}

options_of_writes!(Delete, of_delete);

impl Delete {
    pub(crate) fn new(keyspace: Keyspace, key: Key) -> Delete {
        let message = proto::DeleteRequest {
            keyspace: keyspace.name().to_owned(),
            key: key.partition,
            sort: key.sort,
            request_id: new_id(&keyspace),
            ..Default::default()
        };
        Delete { keyspace, message, timeout: None, repeatable: false }
    }

    async fn send(self) -> Result<Written, Error> {
        let attempt = |attempt: Attempt, session| {
            let timeout_ms = attempt.timeout_ms();
            let message = proto::DeleteRequest { timeout_ms, session, ..self.message.clone() };
            async move { attempt.kv().delete(message).await }
        };
        let (op, key) = (self.op(), &self.message.key);
        let sent = send(&self.keyspace, op, key, self.timeout, attempt, |answer| &answer.session);
        let Answered { answer, attempts } = sent.await?;
        Ok(Written::of_delete(answer, attempts))
    }
}

/// A get; see [`Keyspace::get`].
#[derive(Debug, Clone)]
#[must_use = "a get is sent when it is awaited"]
pub struct Get {
    pub(crate) keyspace: Keyspace,
    pub(crate) message: proto::GetRequest,
    pub(crate) timeout: Option<Duration>,
}

impl Get {
    pub(crate) fn new(keyspace: Keyspace, key: Key) -> Get {
        let message = proto::GetRequest {
            keyspace: keyspace.name().to_owned(),
            key: key.partition,
            sort: key.sort,
            ..Default::default()
        };
        Get { keyspace, message, timeout: None }
    }

    /// Replicas to hear, instead of the keyspace's own.
    pub fn r(mut self, r: impl Into<Level>) -> Get {
        self.message.answers = Some(r.into().of_get());
        self
    }

    /// Whether fallbacks may answer with the hints that they keep, instead of what the keyspace says.
    pub fn sloppy(mut self, sloppy: bool) -> Get {
        self.message.sloppy = Some(sloppy);
        self
    }

    /// How long it may take, with all its attempts, instead of the client's time.
    pub fn timeout(mut self, timeout: Duration) -> Get {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn op(&self) -> Op {
        Op::Read
    }

    async fn send(self) -> Result<Found, Error> {
        let attempt = |attempt: Attempt, session| {
            let message =
                proto::GetRequest { timeout_ms: attempt.timeout_ms(), session, ..self.message.clone() };
            async move { attempt.kv().get(message).await }
        };
        let (op, key) = (self.op(), &self.message.key);
        let sent = send(&self.keyspace, op, key, self.timeout, attempt, |answer| &answer.session);
        let Answered { answer, attempts } = sent.await?;
        Ok(Found::new(answer, attempts))
    }
}

macro_rules! awaited {
    ($($of:ty => $answer:ty),*) => {$(
        impl IntoFuture for $of {
            type Output = Result<$answer, Error>;
            type IntoFuture = Answer<$answer>;
            fn into_future(self) -> Answer<$answer> {
                Box::pin(self.send())
            }
        }
    )*};
}

awaited!(Put => Written, Delete => Written, Get => Found);
