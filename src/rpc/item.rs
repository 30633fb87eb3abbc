//! One request of a batch or a session, and its outcome: what a call of its own would carry, without the call.
//!
//! Batches and sessions have the messages of `Put`, `Get` and `Delete` inside, and each is validated by the same
//! functions of [`convert`]. An error is a message too: it says what a call's status and its details would.
//!
//! A malformed item is an outcome, not a malformed batch: the others run. Only what is wrong with the batch as a
//! whole refuses it.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use tonic::metadata::MetadataMap;

use super::convert;
use super::proto::{self, batch_item, batch_status, session_request, session_response};
use super::requests::{GetDone, GetRequest, WriteDone, WriteRequest};
use crate::types::error::{Cause, Failure, Invalid};
use crate::types::key::Key;
use crate::types::limits;
use crate::version::record::Payload;

/// A validated request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A put or a delete.
    Write(WriteRequest),
    /// A get.
    Get(GetRequest),
}

impl Item {
    /// The keyspace's name, and the key.
    pub fn place(&self) -> (&str, &Key) {
        match self {
            Item::Write(request) => (&request.keyspace, &request.key),
            Item::Get(request) => (&request.keyspace, &request.key),
        }
    }

    /// Until its answer must be there.
    pub fn timeout_mut(&mut self) -> &mut Duration {
        match self {
            Item::Write(request) => &mut request.timeout,
            Item::Get(request) => &mut request.timeout,
        }
    }

    /// Bytes of the value that it writes.
    pub fn bytes(&self) -> usize {
        match self {
            Item::Write(request) => request.payload.bytes(),
            Item::Get(_) => 0,
        }
    }
}

/// What an item did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// A put was acknowledged.
    Put(WriteDone),
    /// A delete was acknowledged.
    Delete(WriteDone),
    /// A get was answered.
    Get(GetDone),
}

impl Done {
    /// A write's, by what it wrote.
    pub fn of_write(payload: &Payload) -> fn(WriteDone) -> Done {
        match payload {
            Payload::Value(_) => Done::Put,
            Payload::Tombstone => Done::Delete,
        }
    }

    /// Bytes of what was found.
    pub fn bytes(&self) -> usize {
        match self {
            Done::Get(done) => {
                let values: usize = done.siblings.iter().map(|live| live.value.len() + 32).sum();
                values + done.context.len()
            }
            Done::Put(_) | Done::Delete(_) => 0,
        }
    }
}

/// How an item ended.
pub type Outcome = Result<Done, Failure>;

/// A batch: its items in the order of the list, those among them that are no valid requests with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRequest {
    /// The items.
    pub items: Vec<Result<Item, Failure>>,
    /// Until all outcomes must be there.
    pub timeout: Duration,
}

/// Either kind of request, as the messages have it.
enum Request {
    Put(proto::PutRequest),
    Get(proto::GetRequest),
    Delete(proto::DeleteRequest),
}

fn validate(request: Request, metadata: &MetadataMap, value_limit: usize) -> Result<Item, Failure> {
    match request {
        Request::Put(put) => convert::put_request(put, metadata, value_limit).map(Item::Write),
        Request::Get(get) => convert::get_request(get, metadata).map(Item::Get),
        Request::Delete(delete) => convert::delete_request(delete, metadata).map(Item::Write),
    }
}

fn missing() -> Failure {
    Invalid::new("request", "is missing: must be a put, a get or a delete").into()
}

/// Validates a batch, and each of its items.
pub fn batch_request(
    message: proto::BatchRequest,
    metadata: &MetadataMap,
    value_limit: usize,
) -> Result<BatchRequest, Failure> {
    let bytes = message.encoded_len();
    let proto::BatchRequest { keyspace, items, timeout_ms } = message;
    if items.is_empty() {
        return Err(Invalid::new("items", "must have at least 1 item").into());
    }
    Invalid::check_max("items", items.len(), limits::BATCH_ITEMS, "items")?;
    Invalid::check_max("items", bytes, limits::BATCH_BYTES, "bytes")?;
    let one = |item: proto::BatchItem| {
        let or_batches = |of_item: &mut String, item_timeout_ms: &mut u64| {
            if of_item.is_empty() {
                of_item.clone_from(&keyspace);
            }
            if *item_timeout_ms == 0 {
                *item_timeout_ms = timeout_ms;
            }
        };
        let request = match item.request.ok_or_else(missing)? {
            batch_item::Request::Put(mut put) => {
                or_batches(&mut put.keyspace, &mut put.timeout_ms);
                Request::Put(put)
            }
            batch_item::Request::Get(mut get) => {
                or_batches(&mut get.keyspace, &mut get.timeout_ms);
                Request::Get(get)
            }
            batch_item::Request::Delete(mut delete) => {
                or_batches(&mut delete.keyspace, &mut delete.timeout_ms);
                Request::Delete(delete)
            }
        };
        validate(request, metadata, value_limit)
    };
    let mut items: Vec<_> = items.into_iter().map(one).collect();
    refuse_shared_ids(&mut items);
    Ok(BatchRequest { items, timeout: convert::timeout(timeout_ms, metadata) })
}

/// A request id names one write. An item that has the id of an earlier one with another key is refused here: the nodes
/// that carry the two out may be others, and would not notice.
fn refuse_shared_ids(items: &mut [Result<Item, Failure>]) {
    let mut first = BTreeMap::new();
    for at in 0..items.len() {
        let Ok(Item::Write(WriteRequest { request_id: Some(id), .. })) = items[at] else { continue };
        let owner = *first.entry(id).or_insert(at);
        let is_another = |(one, two): (&Item, &Item)| one.place() != two.place();
        if items[owner].as_ref().ok().zip(items[at].as_ref().ok()).is_some_and(is_another) {
            let problem = format!("is that of item {owner}, which writes another key");
            items[at] = Err(Invalid::new("request_id", problem).into());
        }
    }
}

/// Validates a message of a session.
pub fn session_item(request: Option<session_request::Request>, value_limit: usize) -> Result<Item, Failure> {
    let request = match request.ok_or_else(missing)? {
        session_request::Request::Put(put) => Request::Put(put),
        session_request::Request::Get(get) => Request::Get(get),
        session_request::Request::Delete(delete) => Request::Delete(delete),
    };
    // The stream has no deadline: each request has its own.
    validate(request, &MetadataMap::new(), value_limit)
}

/// An error for the wire: what the status of a call would say.
pub fn request_error(failure: &Failure) -> proto::RequestError {
    let retry_delay_ms = match failure.cause.kind() {
        Cause::Overloaded(delay) => u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        _ => 0,
    };
    proto::RequestError {
        code: convert::code(failure) as u32,
        message: failure.to_string(),
        failure: Some(convert::failure_detail(failure)),
        retry_delay_ms,
    }
}

/// The outcomes of a batch for the wire.
pub fn batch_response(outcomes: Vec<Outcome>) -> proto::BatchResponse {
    use batch_status::Outcome::{Delete, Error, Get, Put};
    let one = |outcome| match outcome {
        Ok(Done::Put(done)) => Put(convert::put_response(done)),
        Ok(Done::Delete(done)) => Delete(convert::delete_response(done)),
        Ok(Done::Get(done)) => Get(convert::get_response(done)),
        Err(failure) => Error(request_error(&failure)),
    };
    let statuses = outcomes.into_iter().map(|o| proto::BatchStatus { outcome: Some(one(o)) }).collect();
    proto::BatchResponse { statuses }
}

/// An outcome for the wire of a session.
pub fn session_response(id: u64, outcome: Outcome) -> proto::SessionResponse {
    use session_response::Outcome::{Delete, Error, Get, Put};
    let outcome = match outcome {
        Ok(Done::Put(done)) => Put(convert::put_response(done)),
        Ok(Done::Delete(done)) => Delete(convert::delete_response(done)),
        Ok(Done::Get(done)) => Get(convert::get_response(done)),
        Err(failure) => Error(request_error(&failure)),
    };
    proto::SessionResponse { id, outcome: Some(outcome) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, length: usize) -> proto::BatchItem {
        let put = proto::PutRequest { key: key.into(), value: vec![7; length].into(), ..Default::default() };
        proto::BatchItem { request: Some(batch_item::Request::Put(put)) }
    }

    fn check(items: Vec<proto::BatchItem>) -> Result<BatchRequest, Failure> {
        let message = proto::BatchRequest { items, keyspace: "carts".into(), timeout_ms: 700 };
        batch_request(message, &MetadataMap::new(), 1 << 20)
    }

    fn refusal(items: Vec<proto::BatchItem>) -> String {
        let failure = check(items).expect_err("a bad batch");
        assert_eq!(convert::code(&failure), tonic::Code::InvalidArgument);
        failure.to_string()
    }

    #[test]
    fn limits_are_exact_and_named() {
        assert_eq!(refusal(vec![]), "items: must have at least 1 item");
        assert_eq!(check(vec![put("k", 1); 1_000]).map(|batch| batch.items.len()), Ok(1_000));
        assert_eq!(refusal(vec![put("k", 1); 1_001]), "items: is 1001 items, over the limit of 1000 items");
        let message = refusal(vec![put("k", 1 << 20); 24]);
        assert!(message.starts_with("items: is 251") && message.ends_with("25165824 bytes"), "{message}");
        assert!(check(vec![put("k", 1 << 20); 23]).is_ok());
    }

    #[test]
    fn an_item_takes_what_it_does_not_name_from_its_batch() {
        let own = proto::GetRequest {
            key: "k".into(),
            keyspace: "own".into(),
            timeout_ms: 30,
            ..Default::default()
        };
        let own = proto::BatchItem { request: Some(batch_item::Request::Get(own)) };
        let batch = check(vec![put("k", 1), own]).expect("valid");
        let told: Vec<(String, u128)> = batch
            .items
            .into_iter()
            .map(|item| {
                let mut item = item.expect("valid");
                (item.place().0.to_owned(), item.timeout_mut().as_millis())
            })
            .collect();
        assert_eq!(told, [("carts".to_owned(), 700), ("own".to_owned(), 30)]);
        assert_eq!(batch.timeout, Duration::from_millis(700));
    }

    #[test]
    fn a_malformed_item_leaves_the_others_alone() {
        let batch =
            check(vec![put("", 1), put("k", (1 << 20) + 1), proto::BatchItem::default(), put("k", 1)]);
        let said: Vec<String> = batch
            .expect("a batch")
            .items
            .iter()
            .map(|item| item.as_ref().map_or_else(ToString::to_string, |_| "valid".into()))
            .collect();
        let parts = ["key: must have", "value: is 1048577", "request: is missing", "valid"];
        assert!(said.iter().zip(parts).all(|(said, part)| said.starts_with(part)), "{said:?}");
    }

    #[test]
    fn a_request_id_is_for_one_key() {
        let named = |key: &'static str, id: u8| {
            let request_id = vec![id; 16].into();
            let put = proto::PutRequest { key: key.into(), request_id, ..Default::default() };
            proto::BatchItem { request: Some(batch_item::Request::Put(put)) }
        };
        let items = vec![named("a", 1), put("b", 1), named("a", 1), named("c", 1), named("c", 2)];
        let said: Vec<Option<String>> = check(items)
            .expect("a batch")
            .items
            .iter()
            .map(|i| i.as_ref().err().map(ToString::to_string))
            .collect();
        let refused = Some("request_id: is that of item 0, which writes another key".to_owned());
        assert_eq!(said, [None, None, None, refused, None]);
    }
}
