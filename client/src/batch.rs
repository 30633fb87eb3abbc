//! Many requests in one message, each with an outcome of its own.
//!
//! A batch is sent again as a whole, if all its writes have request ids; what was carried out the first time is
//! answered alike the second. A single item is not: behind others of its key it would come out of order.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;

use crate::client::{Answered, Attempt};
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::proto::{self, batch_item, batch_status, session_request};
use crate::request::{Answer, Delete, Get, Put, deadline};
use crate::retry::Op;
use crate::route::Place;
use crate::values::{Found, Key, Written};

/// One request of a batch or a [`Pipeline`](crate::Pipeline): a [`Put`], [`Get`] or [`Delete`] with its options. In a
/// batch its own timeout does not count.
#[derive(Debug, Clone)]
pub struct Item {
    request: batch_item::Request,
    /// What it is to the retries.
    pub(crate) op: Op,
    pub(crate) timeout: Option<Duration>,
    /// Whether it was made in a session.
    pub(crate) in_session: bool,
}

macro_rules! items {
    ($($of:ident),*) => {$(
        impl From<$of> for Item {
            fn from(of: $of) -> Item {
                let in_session = of.keyspace.session.is_some();
                Item { op: of.op(), timeout: of.timeout, in_session, request: batch_item::Request::$of(of.message) }
            }
        }
    )*};
}

items!(Put, Get, Delete);

impl Item {
    pub(crate) fn place(&self) -> Place<'_> {
        match &self.request {
            batch_item::Request::Put(put) => Place { keyspace: &put.keyspace, key: &put.key },
            batch_item::Request::Delete(delete) => Place { keyspace: &delete.keyspace, key: &delete.key },
            batch_item::Request::Get(get) => Place { keyspace: &get.keyspace, key: &get.key },
        }
    }

    /// As a stream carries it, with the time that the node has.
    pub(crate) fn in_time(&self, timeout_ms: u64) -> session_request::Request {
        match self.request.clone() {
            batch_item::Request::Put(put) => {
                session_request::Request::Put(proto::PutRequest { timeout_ms, ..put })
            }
            batch_item::Request::Get(get) => {
                session_request::Request::Get(proto::GetRequest { timeout_ms, ..get })
            }
            batch_item::Request::Delete(delete) => {
                session_request::Request::Delete(proto::DeleteRequest { timeout_ms, ..delete })
            }
        }
    }
}

/// How one request of a batch ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A put or a delete.
    Written(Written),
    /// A get.
    Found(Found),
}

/// A batch; see [`Keyspace::batch`]. Up to 1 000 items, together at most 24 MiB.
#[derive(Debug, Clone)]
#[must_use = "a batch is sent when it is awaited"]
pub struct Batch {
    keyspace: Keyspace,
    items: Vec<Item>,
    timeout: Option<Duration>,
}

impl Batch {
    pub(crate) fn new(keyspace: Keyspace) -> Batch {
        Batch { keyspace, items: Vec::new(), timeout: None }
    }

    /// One more put.
    pub fn put(self, key: impl Into<Key>, value: impl Into<Bytes>) -> Batch {
        let put = self.keyspace.put(key, value);
        self.item(put)
    }

    /// One more get.
    pub fn get(self, key: impl Into<Key>) -> Batch {
        let get = self.keyspace.get(key);
        self.item(get)
    }

    /// One more delete.
    pub fn delete(self, key: impl Into<Key>) -> Batch {
        let delete = self.keyspace.delete(key);
        self.item(delete)
    }

    /// One more request with options of its own, of any keyspace.
    pub fn item(mut self, item: impl Into<Item>) -> Batch {
        self.items.push(item.into());
        self
    }

    /// How long the whole may take, with all its attempts, instead of the client's time.
    pub fn timeout(mut self, timeout: Duration) -> Batch {
        self.timeout = Some(timeout);
        self
    }

    /// What the batch is to the retries: as its riskiest item.
    fn op(&self) -> Op {
        let has = |op| self.items.iter().any(|item| item.op == op);
        match (has(Op::Write), has(Op::NamedWrite)) {
            (true, _) => Op::Write,
            (false, true) => Op::NamedWrite,
            (false, false) => Op::Read,
        }
    }

    async fn send(self) -> Result<Vec<Result<Outcome, Error>>, Error> {
        if self.keyspace.session.is_some() || self.items.iter().any(|item| item.in_session) {
            return Err(Error::invalid("batch: can't go through a session"));
        }
        let items: Vec<_> =
            self.items.iter().map(|item| proto::BatchItem { request: Some(item.request.clone()) }).collect();
        let request = proto::BatchRequest { items, ..Default::default() };
        let send = |attempt: Attempt| {
            let request = proto::BatchRequest { timeout_ms: attempt.timeout_ms(), ..request.clone() };
            async move { attempt.kv().batch(request).await }
        };
        let place = self.items.first().map(Item::place);
        let until = deadline(&self.keyspace, self.timeout);
        let Answered { answer, attempts } =
            self.keyspace.client.0.call(self.op(), place, until, send).await?;
        let ops = self.items.iter().map(|item| item.op);
        Ok(answer.statuses.into_iter().zip(ops).map(|(status, op)| outcome(status, op, attempts)).collect())
    }
}

fn outcome(status: proto::BatchStatus, op: Op, attempts: u32) -> Result<Outcome, Error> {
    match status.outcome {
        Some(batch_status::Outcome::Put(put)) => Ok(Outcome::Written(Written::of_put(put, attempts))),
        Some(batch_status::Outcome::Delete(done)) => Ok(Outcome::Written(Written::of_delete(done, attempts))),
        Some(batch_status::Outcome::Get(get)) => Ok(Outcome::Found(Found::new(get, attempts))),
        Some(batch_status::Outcome::Error(error)) => {
            Err(Error { attempts, ..Error::from_request(error, op) })
        }
        // A newer server's word that this client does not know.
        None => Err(Error::from_request(proto::RequestError::default(), op)),
    }
}

impl IntoFuture for Batch {
    type Output = Result<Vec<Result<Outcome, Error>>, Error>;
    type IntoFuture = Answer<Vec<Result<Outcome, Error>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}
