//! Why a request failed, and whether it changed anything.
//!
//! One type for all requests. What a caller must know first is [`Error::applied`]: a write that failed was surely
//! not applied, or it may have been, now or later. A read changes nothing, so one that failed is always
//! [`Applied::No`].
//!
//! Invariants:
//! 1. A write's error says [`Applied::No`] only if every attempt was surely not applied: a node said so, refused
//!    the request as it stands, or was never reached.

use std::error::Error as _;
use std::time::Duration;

use prost::Message as _;
pub use tonic::Code;
use tonic::Status;

use crate::proto;
use crate::retry::Op;

/// Whether a failed request changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Applied {
    /// Surely not, and it never will.
    No,
    /// It may have been, now or later.
    Maybe,
}

/// How far an attempt came, and so how much its error tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// No node took a connection, or none was asked.
    Nobody,
    /// A node took the connection, which then broke or stayed silent.
    Connection,
    /// A node answered: these are its words.
    Node,
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct Error {
    /// gRPC's code. `UNAVAILABLE` if no node was reached, or the connection broke.
    pub code: Code,
    /// One sentence.
    pub message: String,
    /// Whether anything was changed.
    pub applied: Applied,
    /// How far the attempt came that tells most.
    pub reached: Reached,
    /// Answers needed, and answers received.
    pub required: u32,
    /// Answers received.
    pub received: u32,
    /// Replicas that looked reachable when the request began.
    pub alive: u32,
    /// The layout that the coordinator used; 0 if none.
    pub layout_version: u64,
    /// Ids of the nodes that were asked and did not answer.
    pub silent: Vec<String>,
    /// How long an overloaded node asks to wait.
    pub retry_after: Option<Duration>,
    /// How often the request was sent, or tried to be.
    pub attempts: u32,
}

impl Error {
    fn new(code: Code, message: impl Into<String>) -> Error {
        Error {
            code,
            message: message.into(),
            applied: Applied::No,
            reached: Reached::Nobody,
            required: 0,
            received: 0,
            alive: 0,
            layout_version: 0,
            silent: Vec::new(),
            retry_after: None,
            attempts: 0,
        }
    }

    /// A request that is wrong as it stands, found before it was sent.
    pub(crate) fn invalid(message: impl Into<String>) -> Error {
        Error::new(Code::InvalidArgument, message)
    }

    /// No node took a connection; nothing was sent.
    pub(crate) fn unreachable(message: impl Into<String>) -> Error {
        Error::new(Code::Unavailable, message)
    }

    /// The time was up before anything was sent.
    pub(crate) fn not_begun(message: impl Into<String>) -> Error {
        Error::new(Code::DeadlineExceeded, message)
    }

    /// A request that was sent, and whose answer did not come in time.
    pub(crate) fn silence(address: &str, op: Op) -> Error {
        let what = if op == Op::Read { "" } else { "; the write may have been applied, or may be later" };
        Error {
            applied: if op == Op::Read { Applied::No } else { Applied::Maybe },
            reached: Reached::Connection,
            ..Error::new(Code::DeadlineExceeded, format!("{address}: no answer within the time{what}"))
        }
    }

    /// What a status of gRPC means for an `op` that was sent to `address`.
    pub(crate) fn from_status(address: &str, status: &Status, op: Op) -> Error {
        let (failure, retry_after) = details(status);
        let reached = reached(status, failure.is_some());
        let applied = match &failure {
            _ if op == Op::Read => Applied::No,
            Some(f) if f.applied() == proto::Applied::No => Applied::No,
            Some(f) if f.applied() == proto::Applied::Maybe => Applied::Maybe,
            _ if reached == Reached::Nobody => Applied::No,
            _ if reached == Reached::Node && refused_as_it_is(status.code()) => Applied::No,
            _ => Applied::Maybe,
        };
        let mut message = words(status);
        if reached != Reached::Node {
            message = format!("{address}: {message}");
        }
        if applied == Applied::Maybe && !message.contains("may ") {
            message.push_str("; the write may have been applied, or may be later");
        }
        let failure = failure.unwrap_or_default();
        // Whatever the transport calls it: nobody was available, or not for long enough.
        let code = if reached == Reached::Node { status.code() } else { Code::Unavailable };
        Error {
            applied,
            reached,
            retry_after,
            required: failure.required,
            received: failure.received,
            alive: failure.alive,
            layout_version: failure.layout_version,
            silent: failure.silent,
            ..Error::new(code, message)
        }
    }

    /// What the end of a stream means for a request on it that has no answer: it may have been carried out, whatever
    /// the stream's own status is, unless there was no connection, or no such stream.
    pub(crate) fn of_stream(address: &str, status: &Status, op: Op) -> Error {
        let error = Error::from_status(address, status, op);
        if error.reached == Reached::Nobody || error.code == Code::Unimplemented {
            return error;
        }
        let lost = Status::unavailable(format!("the stream ended: {}", words(status)));
        Error::from_status(address, &lost, op)
    }

    /// What the error of one request of a batch or a stream means.
    pub(crate) fn from_request(error: proto::RequestError, op: Op) -> Error {
        let code = Code::from_i32(i32::try_from(error.code).unwrap_or(Code::Unknown as i32));
        let failure = error.failure.unwrap_or_default();
        let applied = match failure.applied() {
            _ if op == Op::Read => Applied::No,
            proto::Applied::No => Applied::No,
            proto::Applied::Maybe => Applied::Maybe,
            proto::Applied::Unspecified if refused_as_it_is(code) => Applied::No,
            proto::Applied::Unspecified => Applied::Maybe,
        };
        Error {
            applied,
            reached: Reached::Node,
            required: failure.required,
            received: failure.received,
            alive: failure.alive,
            layout_version: failure.layout_version,
            silent: failure.silent,
            retry_after: (error.retry_delay_ms > 0).then(|| Duration::from_millis(error.retry_delay_ms)),
            attempts: 1,
            ..Error::new(code, error.message)
        }
    }

    /// Whether the failed write surely changed nothing.
    pub fn surely_not_applied(&self) -> bool {
        self.applied == Applied::No
    }
}

/// How an attempt fails.
pub(crate) trait AttemptError {
    /// What it means for an `op` that was sent to `address`.
    fn into_error(self, address: &str, op: Op) -> Error;
}

impl AttemptError for Status {
    fn into_error(self, address: &str, op: Op) -> Error {
        Error::from_status(address, &self, op)
    }
}

/// Several values where one was expected: concurrent writes of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{siblings} concurrent values, where one was expected")]
pub struct Conflict {
    /// How many there are.
    pub siblings: usize,
}

/// Codes by which a node refuses a request as it stands, before anything is done.
pub(crate) fn refused_as_it_is(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::OutOfRange
            | Code::NotFound
            | Code::AlreadyExists
            | Code::Unimplemented
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::ResourceExhausted
    )
}

/// How far the attempt with this end came. What carries a `Failure` is a node's word. Without one, what has a cause
/// (HTTP/2 speaks in gRPC's codes too: `RESOURCE_EXHAUSTED` for "calm down"), and some codes, are the transport's.
fn reached(status: &Status, has_failure: bool) -> Reached {
    if has_failure {
        return Reached::Node;
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return Reached::Nobody;
        }
        cause = error.source();
    }
    let of_transport =
        matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    if of_transport || status.source().is_some() { Reached::Connection } else { Reached::Node }
}

/// The `Failure` and the retry delay that a status carries.
fn details(status: &Status) -> (Option<proto::Failure>, Option<Duration>) {
    let Ok(rich) = tonic_types::Status::decode(status.details()) else { return (None, None) };
    let (mut failure, mut delay) = (None, None);
    for any in rich.details {
        match any.type_url.rsplit('/').next() {
            Some("quoral.v1.Failure") => failure = proto::Failure::decode(any.value.as_slice()).ok(),
            Some("google.rpc.RetryInfo") => {
                let info = tonic_types::pb::RetryInfo::decode(any.value.as_slice()).ok();
                delay = info.and_then(|info| Duration::try_from(info.retry_delay?).ok());
            }
            _ => {}
        }
    }
    (failure, delay)
}

/// The node's sentence; or, if the transport failed, what happened.
fn words(status: &Status) -> String {
    chain(status.message(), status.source()).unwrap_or_else(|| format!("{:?}", status.code()))
}

/// A message and those of its causes that say more; none if all are empty.
pub(crate) fn chain(first: &str, cause: Option<&dyn std::error::Error>) -> Option<String> {
    let (mut text, mut cause) = (first.to_owned(), cause);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
        cause = error.source();
    }
    (!text.is_empty()).then_some(text)
}

/// What is known after some failed attempts of one request: the last error of those that tell most, and whether
/// any attempt may have been applied.
#[derive(Debug, Default)]
pub(crate) struct Worst {
    error: Option<Error>,
    maybe: bool,
}

impl Worst {
    /// Takes one more failure in. A node's own words stay before a connection that broke, and that before one that
    /// was refused.
    pub fn add(&mut self, error: Error) {
        self.maybe |= error.applied == Applied::Maybe;
        if self.error.as_ref().is_none_or(|known| error.reached >= known.reached) {
            self.error = Some(error);
        }
    }

    /// The error of the whole.
    pub fn into_error(self, attempts: u32) -> Error {
        let mut error = self.error.unwrap_or_else(|| Error::unreachable("no endpoint was asked"));
        if self.maybe && error.applied == Applied::No {
            error.applied = Applied::Maybe;
            error.message.push_str("; another attempt may have been applied");
        }
        error.attempts = attempts;
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: Code, applied: proto::Applied) -> Status {
        let failure =
            proto::Failure { applied: applied.into(), required: 2, received: 1, ..Default::default() };
        let any = prost_types::Any {
            type_url: "type.googleapis.com/quoral.v1.Failure".into(),
            value: failure.encode_to_vec(),
        };
        let rich = tonic_types::Status { code: code as i32, message: "no".into(), details: vec![any] };
        Status::with_details(code, "no", rich.encode_to_vec().into())
    }

    fn of(status: &Status, op: Op) -> Error {
        Error::from_status("a:1", status, op)
    }

    #[test]
    fn only_a_definite_no_is_not_applied() {
        use proto::Applied::{Maybe, No, Unspecified};
        for op in [Op::Write, Op::NamedWrite] {
            let applied = |status: &Status| of(status, op).applied;
            assert_eq!(applied(&status(Code::Unavailable, No)), Applied::No);
            assert_eq!(applied(&status(Code::Unavailable, Maybe)), Applied::Maybe);
            assert_eq!(applied(&status(Code::Unavailable, Unspecified)), Applied::Maybe);
            assert_eq!(applied(&Status::unavailable("gone")), Applied::Maybe);
            assert_eq!(applied(&Status::internal("broken")), Applied::Maybe);
            assert_eq!(applied(&Status::deadline_exceeded("late")), Applied::Maybe);
            assert_eq!(applied(&Status::invalid_argument("bad")), Applied::No);
            // As HTTP/2 says it of a stream that a node may have begun to carry out.
            let mut calm = Status::resource_exhausted("h2 protocol error: not a result of an error");
            calm.set_source(std::sync::Arc::new(std::io::Error::other("ENHANCE_YOUR_CALM")));
            assert_eq!(applied(&calm), Applied::Maybe);
        }
        assert_eq!(of(&Status::unavailable("gone"), Op::Read).applied, Applied::No);
    }

    #[test]
    fn a_node_that_answers_is_told_from_a_connection_that_breaks() {
        assert_eq!(of(&status(Code::Unavailable, proto::Applied::No), Op::Write).reached, Reached::Node);
        let broken = of(&Status::unknown("broken"), Op::Write);
        assert_eq!(broken.reached, Reached::Connection);
        assert!(broken.message.starts_with("a:1: "), "{broken}");
    }

    #[test]
    fn the_end_of_a_stream_says_nothing_of_its_requests() {
        for code in [Code::InvalidArgument, Code::ResourceExhausted, Code::Unavailable, Code::Cancelled] {
            for status in [Status::new(code, "x"), status(code, proto::Applied::No)] {
                let error = Error::of_stream("a:1", &status, Op::Write);
                let said = (error.applied, error.reached, error.code);
                assert_eq!(said, (Applied::Maybe, Reached::Connection, Code::Unavailable), "{status:?}");
            }
        }
        let none = Error::of_stream("a:1", &Status::unimplemented("no such call"), Op::Write);
        assert_eq!((none.applied, none.code), (Applied::No, Code::Unimplemented));
    }

    #[test]
    fn one_attempt_in_doubt_leaves_the_whole_in_doubt() {
        let mut worst = Worst::default();
        worst.add(of(&Status::unavailable("gone"), Op::Write));
        worst.add(of(&status(Code::Unavailable, proto::Applied::No), Op::Write));
        let error = worst.into_error(2);
        assert_eq!((error.applied, error.reached, error.attempts), (Applied::Maybe, Reached::Node, 2));
        assert!(error.message.contains("another attempt may"), "{error}");
    }

    #[test]
    fn a_refused_connection_says_less_than_a_node() {
        let mut worst = Worst::default();
        worst.add(of(&status(Code::Unavailable, proto::Applied::No), Op::Write));
        worst.add(Error::unreachable("a:1: refused"));
        assert_eq!(worst.into_error(2).required, 2);
    }
}
