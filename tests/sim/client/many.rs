//! Several requests in one message, or in flight on one stream; each is an operation of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quoral::rpc::proto::{self, batch_item, batch_status, session_request, session_response};
use tonic::Status;

use super::{Ask, Client, not_written, place, refused};
use crate::history::{Action, Outcome, Value};

/// What one of several requests does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Writes a new value.
    Put,
    /// Writes a tombstone.
    Delete,
    /// Reads.
    Get,
}

/// One of several requests.
#[derive(Debug, Clone)]
pub struct Part {
    /// What it asks for. The node and the deadline are those of the first.
    pub ask: Ask,
    /// What it does.
    pub deed: Deed,
}

/// A request that has begun.
struct Begun {
    number: usize,
    ask: Ask,
    deed: Deed,
    /// What its context covers when it has succeeded.
    values: BTreeSet<Value>,
}

/// A request as both kinds of messages carry it.
enum Message {
    Put(proto::PutRequest),
    Delete(proto::DeleteRequest),
    Get(proto::GetRequest),
}

/// What it was answered.
enum Answer {
    Wrote(bytes::Bytes, u64),
    Found(proto::GetResponse),
    Failed(proto::RequestError),
}

impl Client {
    fn begin_part(&self, part: &Part, first: &Ask) -> (Begun, Message) {
        let ask = Ask { node: first.node, timeout_ms: first.timeout_ms, ..part.ask.clone() };
        let seen = self.seen.get(&place(&ask)).cloned().unwrap_or_default();
        let mut values = seen.values.clone();
        let (action, message) = match part.deed {
            Deed::Put => {
                let value = self.recorder.new_value();
                values.insert(value);
                (Action::Put(value), Message::Put(self.put_message(&ask, value, seen.context)))
            }
            Deed::Delete => (Action::Delete, Message::Delete(self.delete_message(&ask, seen.context))),
            Deed::Get => (Action::Get, Message::Get(self.get_message(&ask))),
        };
        let covers = if part.deed == Deed::Get { BTreeSet::new() } else { seen.values };
        let number = self.begin(&ask, action, covers);
        (Begun { number, ask, deed: part.deed, values }, message)
    }

    fn settle(&mut self, begun: Begun, answer: Result<Answer, Outcome>) {
        let Begun { number, ask, deed, values } = begun;
        let failed = |error: proto::RequestError| {
            let (text, applied) = (format!("code {}", error.code), error.failure.map(|f| f.applied()));
            match applied {
                _ if deed == Deed::Get => Outcome::Refused(text),
                Some(proto::Applied::No) => Outcome::Refused(text),
                _ => Outcome::Unknown(text),
            }
        };
        let answer = answer.and_then(|answer| match answer {
            Answer::Failed(error) => Err(failed(error)),
            answer => Ok(answer),
        });
        match (deed, answer) {
            (Deed::Get, Ok(Answer::Found(found))) => drop(self.settle_read(&ask, number, Ok(found))),
            (Deed::Get, Err(outcome)) => drop(self.settle_read(&ask, number, Err(outcome))),
            (Deed::Put | Deed::Delete, Ok(Answer::Wrote(context, stamp))) => {
                let done = Ok((context, stamp, bytes::Bytes::new()));
                self.settle_write(&ask, number, values, done);
            }
            (Deed::Put | Deed::Delete, Err(outcome)) => {
                self.settle_write(&ask, number, values, Err(outcome));
            }
            (deed, Ok(_)) => panic!("an answer of another kind than the {deed:?}"),
        }
    }

    /// Sends a batch. It has no session.
    pub async fn batch(&mut self, parts: &[Part]) {
        let session = self.session.take();
        let first = parts[0].ask.clone();
        let mut all = Vec::new();
        let mut request = proto::BatchRequest { timeout_ms: first.timeout_ms, ..Default::default() };
        for (place, part) in parts.iter().enumerate() {
            let (begun, message) = self.begin_part(part, &first);
            let batch = all.first().map_or(begun.number, |first: &Begun| first.number);
            self.recorder.in_batch(begun.number, batch, place);
            request.items.push(proto::BatchItem { request: Some(item_of(message)) });
            all.push(begun);
        }
        let mut kv = self.kv(&first);
        match self.call(&first, kv.batch(request)).await {
            Some(Ok(response)) => {
                let statuses = response.into_inner().statuses;
                assert_eq!(statuses.len(), all.len(), "each item has exactly one status");
                for (begun, status) in all.into_iter().zip(statuses) {
                    self.settle(begun, Ok(status_of(status)));
                }
            }
            other => {
                let status = other.map(|answer| answer.expect_err("it is none"));
                for begun in all {
                    let outcome = failed(&begun, status.as_ref());
                    self.settle(begun, Err(outcome));
                }
            }
        }
        self.session = session;
    }

    /// Sends them all on one stream, and waits for the answers, which come in any order.
    pub async fn stream(&mut self, parts: &[Part]) {
        let session = self.session.take();
        let first = parts[0].ask.clone();
        let (mut waiting, mut requests) = (BTreeMap::new(), Vec::new());
        for (id, part) in parts.iter().enumerate() {
            let (begun, message) = self.begin_part(part, &first);
            let id = id as u64;
            requests.push(proto::SessionRequest { id, request: Some(request_of(message)) });
            waiting.insert(id, begun);
        }
        let mut kv = self.kv(&first);
        let end = tokio::time::Instant::now() + Duration::from_millis(first.timeout_ms) + self.patience;
        let answers = kv.session(tokio_stream::iter(requests));
        let broken = match tokio::time::timeout_at(end, answers).await {
            Err(_) => None,
            Ok(Err(status)) => Some(status),
            Ok(Ok(answers)) => {
                let mut answers = answers.into_inner();
                loop {
                    match tokio::time::timeout_at(end, answers.message()).await {
                        Err(_) => break None,
                        Ok(Err(status)) => break Some(status),
                        Ok(Ok(None)) => {
                            assert!(waiting.is_empty(), "the stream ended, and some had no answer");
                            break None;
                        }
                        Ok(Ok(Some(answer))) => {
                            let begun = waiting.remove(&answer.id).expect("one answer for each id");
                            self.settle(begun, Ok(response_of(answer)));
                        }
                    }
                }
            }
        };
        for begun in waiting.into_values() {
            let outcome = failed(&begun, broken.as_ref());
            self.settle(begun, Err(outcome));
        }
        self.session = session;
    }
}

/// What a failure of the whole means for one; none is that the time was up.
fn failed(begun: &Begun, status: Option<&Status>) -> Outcome {
    match (status, begun.deed) {
        (None, _) => Outcome::Late,
        (Some(status), Deed::Get) => refused(status),
        (Some(status), _) => not_written(status),
    }
}

fn item_of(message: Message) -> batch_item::Request {
    match message {
        Message::Put(put) => batch_item::Request::Put(put),
        Message::Delete(delete) => batch_item::Request::Delete(delete),
        Message::Get(get) => batch_item::Request::Get(get),
    }
}

fn request_of(message: Message) -> session_request::Request {
    match message {
        Message::Put(put) => session_request::Request::Put(put),
        Message::Delete(delete) => session_request::Request::Delete(delete),
        Message::Get(get) => session_request::Request::Get(get),
    }
}

fn status_of(status: proto::BatchStatus) -> Answer {
    match status.outcome.expect("a status says something") {
        batch_status::Outcome::Put(put) => Answer::Wrote(put.context, put.stamp),
        batch_status::Outcome::Delete(delete) => Answer::Wrote(delete.context, delete.stamp),
        batch_status::Outcome::Get(get) => Answer::Found(get),
        batch_status::Outcome::Error(error) => Answer::Failed(error),
    }
}

fn response_of(response: proto::SessionResponse) -> Answer {
    match response.outcome.expect("an answer says something") {
        session_response::Outcome::Put(put) => Answer::Wrote(put.context, put.stamp),
        session_response::Outcome::Delete(delete) => Answer::Wrote(delete.context, delete.stamp),
        session_response::Outcome::Get(get) => Answer::Found(get),
        session_response::Outcome::Error(error) => Answer::Failed(error),
    }
}
