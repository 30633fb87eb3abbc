//! Many requests in flight on one stream to each node, for programs that move much: a request costs a message there, not
//! a call.
//!
//! Each request goes its own way, as a call would: to a home replica of its key, and, when that fails and it is safe,
//! to another node. Answers come as they are ready and are matched by id. A stream that breaks is opened anew by the
//! next request; what was in flight on it has an end that is not known, and is sent again like any lost answer.
//!
//! Invariants:
//! 1. A request has one answer or one error, whatever becomes of its stream. Only a node's own words about a request
//!    say that it was not applied; the end of a stream never does, unless there was no connection.
//! 2. At most [`IN_FLIGHT`] requests are in flight on one stream; what comes on top waits, within its time.
//!
//! No order: of two requests in flight either may be carried out first, also for one key. Await the first one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tonic::{Response, Status};

use crate::batch::{Item, Outcome};
use crate::client::{Answered, Attempt, Client, deadline_of};
use crate::error::{AttemptError, Error};
use crate::keyspace::Keyspace;
use crate::proto::{self, SessionRequest, SessionResponse, session_response};
use crate::request::{Delete, Get, Put};
use crate::retry::Op;
use crate::values::{Found, Written};

/// Requests in flight on one stream: what a node carries out of one at a time, and as many that wait there.
const IN_FLIGHT: usize = 1_024;
/// Requests on their way into a stream.
const AHEAD: usize = 64;

/// Sends requests over one stream to each node. Cheap to clone; clones share the streams.
#[derive(Debug, Clone)]
pub struct Pipeline {
    client: Client,
    /// By address.
    lanes: Arc<Mutex<BTreeMap<String, Lane>>>,
}

impl Client {
    /// Streams for many requests at once, each to be awaited by itself: beside each other, or from several tasks.
    ///
    /// ```no_run
    /// # async fn f(client: quoral_client::Client) -> Result<(), quoral_client::Error> {
    /// use futures_util::stream::{StreamExt, TryStreamExt, iter};
    ///
    /// let (pipeline, profiles) = (client.pipeline(), client.keyspace("default"));
    /// let puts = (0..100_000).map(|user| pipeline.put(profiles.put(format!("user:{user}"), "{}").repeatable()));
    /// // 256 at a time.
    /// iter(puts.map(Ok)).try_for_each_concurrent(256, |put| async { put.await.map(drop) }).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn pipeline(&self) -> Pipeline {
        Pipeline { client: self.clone(), lanes: Arc::default() }
    }
}

impl Pipeline {
    /// The keys of a keyspace, as of [`Client::keyspace`].
    pub fn keyspace(&self, name: impl Into<String>) -> Keyspace {
        self.client.keyspace(name)
    }

    /// Sends a put, with its own options.
    pub async fn put(&self, put: Put) -> Result<Written, Error> {
        written(self.send(put).await?)
    }

    /// Sends a delete.
    pub async fn delete(&self, delete: Delete) -> Result<Written, Error> {
        written(self.send(delete).await?)
    }

    /// Sends a get.
    pub async fn get(&self, get: Get) -> Result<Found, Error> {
        match self.send(get).await? {
            Outcome::Found(found) => Ok(found),
            Outcome::Written(_) => Err(other_kind()),
        }
    }

    /// Sends any of them. It can't go through a session of [`Client::session`]: its requests are sent one by one.
    pub async fn send(&self, item: impl Into<Item>) -> Result<Outcome, Error> {
        let item = item.into();
        if item.in_session {
            return Err(Error::invalid("pipeline: can't go through a session"));
        }
        let until = deadline_of(&self.client, item.timeout);
        let send = |attempt: Attempt| self.attempt(attempt, &item);
        let Answered { answer, attempts } =
            self.client.0.call(item.op, Some(item.place()), until, send).await?;
        Ok(match answer {
            session_response::Outcome::Put(put) => Outcome::Written(Written::of_put(put, attempts)),
            session_response::Outcome::Delete(done) => Outcome::Written(Written::of_delete(done, attempts)),
            session_response::Outcome::Get(get) => Outcome::Found(Found::new(get, attempts)),
            session_response::Outcome::Error(error) => return Err(Error::from_request(error, item.op)),
        })
    }

    async fn attempt(
        &self,
        attempt: Attempt,
        item: &Item,
    ) -> Result<Response<session_response::Outcome>, LaneError> {
        let lane = self.lane(&attempt);
        let (ticket, answer) = lane.ticket().await?;
        let request = SessionRequest { id: ticket.id, request: Some(item.in_time(attempt.timeout_ms())) };
        if lane.requests.send(request).await.is_err() {
            return Err(LaneError::Ended(lane.shared.end()));
        }
        match answer.await {
            Ok(session_response::Outcome::Error(error)) => Err(LaneError::Refused(error)),
            Ok(outcome) => Ok(Response::new(outcome)),
            Err(_) => Err(LaneError::Ended(lane.shared.end())),
        }
    }

    /// The stream to a node, opened if there is none on this connection.
    fn lane(&self, attempt: &Attempt) -> Lane {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lanes.get(&*attempt.address);
        if let Some(lane) = known.filter(|lane| lane.connection == attempt.connection && lane.is_open()) {
            return lane.clone();
        }
        let lane = Lane::open(attempt);
        lanes.insert(attempt.address.to_string(), lane.clone());
        lane
    }
}

fn written(outcome: Outcome) -> Result<Written, Error> {
    match outcome {
        Outcome::Written(written) => Ok(written),
        Outcome::Found(_) => Err(other_kind()),
    }
}

fn other_kind() -> Error {
    Error::from_request(proto::RequestError::default(), Op::Write)
}

/// Why a request on a stream failed.
enum LaneError {
    /// The node says so of this request.
    Refused(proto::RequestError),
    /// The stream ended before there was an answer.
    Ended(Status),
}

impl AttemptError for LaneError {
    fn into_error(self, address: &str, op: Op) -> Error {
        match self {
            LaneError::Refused(error) => Error::from_request(error, op),
            LaneError::Ended(status) => Error::of_stream(address, &status, op),
        }
    }
}

/// One stream.
#[derive(Debug, Clone)]
struct Lane {
    connection: u64,
    requests: mpsc::Sender<SessionRequest>,
    shared: Arc<Shared>,
}

/// What the task of a stream and those who wait for its answers share.
#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by: HashMap<u64, oneshot::Sender<session_response::Outcome>>,
    /// How the stream ended.
    end: Option<Status>,
}

/// A request's place in a stream; free again when this is dropped, answered or not.
struct Ticket {
    id: u64,
    shared: Arc<Shared>,
    _room: OwnedSemaphorePermit,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.waiting().by.remove(&self.id);
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) -> Status {
        self.waiting().end.clone().unwrap_or_else(|| Status::unavailable("the stream ended"))
    }

    fn answered(&self, answer: SessionResponse) {
        let waiter = self.waiting().by.remove(&answer.id);
        // Nobody waits any more if its time was up; without an outcome it is a word that this client does not know.
        if let (Some(waiter), Some(outcome)) = (waiter, answer.outcome) {
            let _ = waiter.send(outcome);
        }
    }

    /// No more answers come: all who wait are told.
    fn ended(&self, status: Status) {
        let mut waiting = self.waiting();
        waiting.end = Some(status);
        waiting.by.clear();
    }
}

/// Says how a stream ended even if its task is dropped with its runtime.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        if self.0.waiting().end.is_none() {
            self.0.ended(Status::unavailable("the stream's task has ended"));
        }
    }
}

impl Lane {
    fn open(attempt: &Attempt) -> Lane {
        let (requests, outgoing) = mpsc::channel::<SessionRequest>(AHEAD);
        let room = Arc::new(Semaphore::new(IN_FLIGHT));
        let shared = Arc::new(Shared { waiting: Mutex::default(), room });
        let (mut kv, ending) = (attempt.kv(), Ending(shared.clone()));
        tokio::spawn(async move {
            let outgoing = stream::unfold(outgoing, |mut outgoing| async move {
                outgoing.recv().await.map(|request| (request, outgoing))
            });
            let status = match kv.session(outgoing).await {
                Ok(answers) => {
                    let mut answers = answers.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(answer)) => ending.0.answered(answer),
                            Ok(None) => break Status::unavailable("the node ended the stream"),
                            Err(status) => break status,
                        }
                    }
                }
                Err(status) => status,
            };
            ending.0.ended(status);
        });
        Lane { connection: attempt.connection, requests, shared }
    }

    fn is_open(&self) -> bool {
        self.shared.waiting().end.is_none()
    }

    /// A place in the stream, and where its answer will be.
    async fn ticket(&self) -> Result<(Ticket, oneshot::Receiver<session_response::Outcome>), LaneError> {
        let room = self.shared.room.clone().acquire_owned().await;
        let room = room.map_err(|_| LaneError::Ended(self.shared.end()))?;
        let (send, answer) = oneshot::channel();
        let mut waiting = self.shared.waiting();
        if let Some(end) = &waiting.end {
            return Err(LaneError::Ended(end.clone()));
        }
        let id = waiting.next;
        waiting.next += 1;
        waiting.by.insert(id, send);
        drop(waiting);
        Ok((Ticket { id, shared: self.shared.clone(), _room: room }, answer))
    }
}
