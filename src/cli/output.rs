//! What a verb says: answers on stdout, all else on stderr, and the exit code.
//!
//! One error type for all verbs, because scripts live on the exit code: it is decided here alone, from
//! the gRPC code, the `Failure` detail, and whether the request could have changed anything.
//!
//! Invariants:
//! 1. Exit 5 means surely not applied, for a write. If that is not sure, it is exit 6.
//! 2. A closed stdout ends the verb without a word and without a panic.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message as _;
use serde_json::{Map, Value, json};
use tonic::{Code, Status};

use crate::rpc::proto;
use crate::types::error::{Applied, Invalid};

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// For people; values raw.
    #[default]
    Text,
    /// One JSON object, or one a line.
    Json,
}

/// How a verb ended, as the contract numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// An error that has no number of its own.
    Error = 1,
    /// Bad usage: an argument or a field of the request breaks a rule.
    Usage = 2,
    /// Not found.
    NotFound = 3,
    /// Several siblings where one was asked for, or a name or version already taken.
    Conflict = 4,
    /// Unavailable; nothing was applied.
    Unavailable = 5,
    /// The outcome is unknown: the write may have been applied, or may be later.
    Unknown = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// What a request is, which decides whether it may be sent again and what a lost answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Changes nothing.
    Read,
    /// Changes something; sent again only if it was surely not applied.
    Write,
    /// Changes something, and to send it twice does the same as once (it has a request id, say).
    RepeatableWrite,
}

/// How far an attempt came, and so how much its error tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// No node took a connection, or none was asked.
    Nobody,
    /// A node took the connection, which then broke or stayed silent.
    Connection,
    /// A node answered: these are its words.
    Answer,
}

/// What a verb returns.
pub type CliResult = Result<Exit, CliError>;

/// Why a verb failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    /// The process's exit code.
    pub exit: Exit,
    /// The gRPC code in capitals, also for errors that never met a server.
    pub code: &'static str,
    /// One sentence. Empty if there is nothing to say (stdout was closed).
    pub message: String,
    /// Whether the request may have been applied.
    pub applied: Applied,
    /// Answers needed.
    pub required: u32,
    /// Answers received.
    pub received: u32,
    /// How long an overloaded server asks to wait.
    pub retry_after: Option<Duration>,
    /// Whose error it is.
    pub reached: Reached,
}

impl CliError {
    /// An error with an exit code, before any request was sent.
    pub fn new(exit: Exit, message: impl Into<String>) -> CliError {
        let code = match exit {
            Exit::Done => "OK",
            Exit::Error => "FAILED_PRECONDITION",
            Exit::Usage => "INVALID_ARGUMENT",
            Exit::NotFound => "NOT_FOUND",
            Exit::Conflict => "ABORTED",
            Exit::Unavailable => "UNAVAILABLE",
            Exit::Unknown => "DEADLINE_EXCEEDED",
        };
        let applied = if exit == Exit::Unknown { Applied::Maybe } else { Applied::No };
        let message = message.into();
        let reached = Reached::Nobody;
        CliError { exit, code, message, applied, required: 0, received: 0, retry_after: None, reached }
    }

    /// Exit 1.
    pub fn error(message: impl Into<String>) -> CliError {
        CliError::new(Exit::Error, message)
    }

    /// Exit 2.
    pub fn usage(message: impl Into<String>) -> CliError {
        CliError::new(Exit::Usage, message)
    }

    /// A file or stream that could not be read or written; `what` names it.
    pub fn io(what: &str, error: &io::Error) -> CliError {
        CliError::error(format!("{what}: {error}"))
    }

    /// What a gRPC error means for an `op`.
    pub fn from_status(status: &Status, op: Op) -> CliError {
        let (failure, retry_after) = details(status);
        let applied = match &failure {
            _ if op == Op::Read => Applied::No,
            Some(f) if f.applied() == proto::Applied::Maybe => Applied::Maybe,
            Some(f) if f.applied() == proto::Applied::No => Applied::No,
            _ if surely_unsent(status) => Applied::No,
            _ if refused_as_it_is(status.code()) => Applied::No,
            _ => Applied::Maybe,
        };
        let exit = match status.code() {
            // The own transport says Cancelled when time is up, and Unknown or Internal when a
            // connection breaks; a server of ours says none of them without a detail.
            Code::Cancelled | Code::Unknown if failure.is_none() => exit_of(Code::Unavailable, applied),
            Code::Internal if failure.is_none() && std::error::Error::source(status).is_some() => {
                exit_of(Code::Unavailable, applied)
            }
            code => exit_of(code, applied),
        };
        CliError {
            exit,
            code: code_name(status.code()),
            message: describe(status, applied),
            applied,
            required: failure.as_ref().map_or(0, |f| f.required),
            received: failure.as_ref().map_or(0, |f| f.received),
            retry_after,
            reached: reached(status),
        }
    }

    /// The JSON of the contract.
    pub fn to_json(&self) -> Value {
        let applied = match self.applied {
            Applied::No => "NO",
            Applied::Maybe => "MAYBE",
        };
        json!({
            "error": self.message,
            "code": self.code,
            "applied": applied,
            "required": self.required,
            "received": self.received,
        })
    }

    /// Prints the error: a line on stderr, or with `-o json` an object on stdout.
    pub fn print(&self, output: Output) {
        if self.message.is_empty() {
            return;
        }
        // Nothing is left to do if even this can't be written.
        let _ = match output {
            Output::Text => writeln!(io::stderr(), "quoral: {}", self.message),
            Output::Json => writeln!(io::stdout(), "{}", self.to_json()),
        };
    }
}

impl From<Op> for quoral_client::Op {
    fn from(op: Op) -> quoral_client::Op {
        match op {
            Op::Read => quoral_client::Op::Read,
            Op::Write => quoral_client::Op::Write,
            Op::RepeatableWrite => quoral_client::Op::NamedWrite,
        }
    }
}

impl From<quoral_client::Error> for CliError {
    fn from(error: quoral_client::Error) -> CliError {
        let applied = match error.applied {
            quoral_client::Applied::No => Applied::No,
            quoral_client::Applied::Maybe => Applied::Maybe,
        };
        CliError {
            exit: exit_of(error.code, applied),
            code: code_name(error.code),
            message: error.message,
            applied,
            required: error.required,
            received: error.received,
            retry_after: error.retry_after,
            reached: match error.reached {
                quoral_client::Reached::Nobody => Reached::Nobody,
                quoral_client::Reached::Connection => Reached::Connection,
                quoral_client::Reached::Node => Reached::Answer,
            },
        }
    }
}

impl From<Invalid> for CliError {
    fn from(invalid: Invalid) -> CliError {
        CliError::usage(invalid.to_string())
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

/// The exit code for a gRPC code, by whether a write may have been applied.
fn exit_of(code: Code, applied: Applied) -> Exit {
    match (applied, code) {
        (Applied::Maybe, _) => Exit::Unknown,
        (_, Code::InvalidArgument | Code::OutOfRange) => Exit::Usage,
        (_, Code::AlreadyExists | Code::Aborted) => Exit::Conflict,
        (_, Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded) => Exit::Unavailable,
        _ => Exit::Error,
    }
}

/// Codes by which a server refuses a request as it stands, before anything is done.
fn refused_as_it_is(code: Code) -> bool {
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

/// How far the attempt with this end came.
fn reached(status: &Status) -> Reached {
    let by_transport =
        matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    match status.details().is_empty() && by_transport {
        _ if surely_unsent(status) => Reached::Nobody,
        true => Reached::Connection,
        false => Reached::Answer,
    }
}

/// Whether the request never left, because no connection could be made.
fn surely_unsent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The `Failure` and the retry delay that a status carries.
fn details(status: &Status) -> (Option<proto::Failure>, Option<Duration>) {
    let Ok(rich) = tonic_types::Status::decode(status.details()) else { return (None, None) };
    let (mut failure, mut delay) = (None, None);
    for any in rich.details {
        match any.type_url.rsplit('/').next() {
            Some("quoral.v1.Failure") => failure = proto::Failure::decode(any.value.as_slice()).ok(),
            Some("google.rpc.RetryInfo") => {
                delay = tonic_types::pb::RetryInfo::decode(any.value.as_slice())
                    .ok()
                    .and_then(|info| Duration::try_from(info.retry_delay?).ok());
            }
            _ => {}
        }
    }
    (failure, delay)
}

/// The server's sentence; or, if the transport failed, what happened and what it means.
fn describe(status: &Status, applied: Applied) -> String {
    let mut text = status.message().to_string();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
        cause = error.source();
    }
    if text.is_empty() {
        text = code_name(status.code()).to_string();
    }
    if applied == Applied::Maybe && !text.contains("may ") {
        text.push_str("; the write may have been applied, or may be later");
    }
    text
}

/// A gRPC code as it is written in the protocol.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Writes to stdout at once. A closed stdout is an error without a message.
pub fn print(bytes: impl AsRef<[u8]>) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    stdout_result(out.write_all(bytes.as_ref()).and_then(|()| out.flush()))
}

/// Writes a line to stdout.
pub fn print_line(text: impl AsRef<str>) -> Result<(), CliError> {
    let mut line = text.as_ref().to_string();
    line.push('\n');
    print(line)
}

/// Writes one JSON value as a line to stdout.
pub fn print_json(value: &Value) -> Result<(), CliError> {
    print_line(value.to_string())
}

/// A line on stderr: what is not the answer. Ignores a closed stderr.
pub fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}

/// The error for a failed write to stdout: silent if the reader has gone.
pub fn stdout_result(result: io::Result<()>) -> Result<(), CliError> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::error(""),
        _ => CliError::io("stdout", &error),
    })
}

/// Puts `bytes` into `object` as `name` if they are UTF-8, else as `name_b64`.
pub fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_string(), text.into()),
        Err(_) => object.insert(format!("{name}_b64"), BASE64.encode(bytes).into()),
    };
}

/// A context as it is printed and taken back: base64.
pub fn context_text(context: &[u8]) -> String {
    BASE64.encode(context)
}

/// The bytes of base64; the error names `field`.
pub fn parse_base64(field: &str, text: &str) -> Result<Vec<u8>, Invalid> {
    BASE64.decode(text).map_err(|e| Invalid::new(field, format!("is not base64: {e}")))
}

/// Bytes for people: the text itself, or base64 with a mark.
pub fn show_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => format!("base64:{}", BASE64.encode(bytes)),
    }
}

/// A table for people: columns as wide as their widest cell, two spaces between.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// A status with a `Failure`, as a server makes it.
    fn status(code: Code, failure: Option<proto::Applied>) -> Status {
        let Some(applied) = failure else { return Status::new(code, "why") };
        let failure =
            proto::Failure { applied: applied.into(), required: 2, received: 1, ..proto::Failure::default() };
        let any = |name: &str, value: Vec<u8>| prost_types::Any {
            type_url: format!("type.googleapis.com/{name}"),
            value,
        };
        let retry = tonic_types::pb::RetryInfo {
            retry_delay: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
        };
        let rich = tonic_types::Status {
            code: code as i32,
            message: "why".into(),
            details: vec![
                any("google.rpc.RetryInfo", retry.encode_to_vec()),
                any("quoral.v1.Failure", failure.encode_to_vec()),
            ],
        };
        Status::with_details(code, "why", Bytes::from(rich.encode_to_vec()))
    }

    #[test]
    fn exit_codes_follow_code_and_detail() {
        use proto::Applied::{Maybe, No};
        for (code, detail, write, read) in [
            (Code::InvalidArgument, Some(No), 2, 2),
            (Code::OutOfRange, None, 2, 2),
            (Code::NotFound, Some(No), 1, 1),
            (Code::AlreadyExists, Some(No), 4, 4),
            (Code::Aborted, Some(No), 4, 4),
            (Code::Unavailable, Some(No), 5, 5),
            (Code::Unavailable, Some(Maybe), 6, 5),
            (Code::ResourceExhausted, Some(No), 5, 5),
            (Code::ResourceExhausted, Some(Maybe), 6, 5),
            (Code::DeadlineExceeded, Some(Maybe), 6, 5),
            (Code::DeadlineExceeded, Some(No), 5, 5),
            (Code::FailedPrecondition, Some(No), 1, 1),
            (Code::Internal, Some(No), 1, 1),
            (Code::Internal, Some(Maybe), 6, 1),
            (Code::Unimplemented, None, 1, 1),
            // Nobody said: a write that was sent may have been applied.
            (Code::Unavailable, None, 6, 5),
            (Code::DeadlineExceeded, None, 6, 5),
            (Code::Cancelled, None, 6, 5),
            (Code::Unknown, None, 6, 5),
            (Code::Internal, None, 6, 1),
        ] {
            for (op, exit) in [(Op::Write, write), (Op::RepeatableWrite, write), (Op::Read, read)] {
                let error = CliError::from_status(&status(code, detail), op);
                assert_eq!(error.exit as u8, exit, "{code:?} {detail:?} {op:?}");
                let maybe = error.exit == Exit::Unknown;
                assert_eq!(error.applied, if maybe { Applied::Maybe } else { Applied::No });
            }
        }
    }

    #[test]
    fn a_connection_that_was_not_made_applied_nothing() {
        let mut refused = Status::unavailable("refused");
        let cause = tonic::ConnectError(std::io::Error::from(io::ErrorKind::ConnectionRefused).into());
        refused.set_source(std::sync::Arc::new(cause));
        assert_eq!(CliError::from_status(&refused, Op::Write).exit, Exit::Unavailable);
    }

    #[test]
    fn an_error_in_json_is_that_of_the_contract() {
        let error =
            CliError::from_status(&status(Code::DeadlineExceeded, Some(proto::Applied::Maybe)), Op::Write);
        assert_eq!(
            error.to_json(),
            json!({
                "error": "why; the write may have been applied, or may be later",
                "code": "DEADLINE_EXCEEDED", "applied": "MAYBE", "required": 2, "received": 1,
            })
        );
        let busy =
            CliError::from_status(&status(Code::ResourceExhausted, Some(proto::Applied::No)), Op::Write);
        assert_eq!(busy.retry_after, Some(Duration::from_millis(100)));
    }

    #[test]
    fn junk_details_are_no_details() {
        let junk = Status::with_details(Code::Unavailable, "why", Bytes::from_static(&[0xff; 9]));
        assert_eq!(CliError::from_status(&junk, Op::Write).exit, Exit::Unknown);
    }

    #[test]
    fn bytes_are_text_or_base64() {
        let mut object = Map::new();
        insert_bytes(&mut object, "value", "é".as_bytes());
        insert_bytes(&mut object, "key", &[0xff, 0]);
        assert_eq!(Value::Object(object), json!({ "value": "é", "key_b64": "/wA=" }));
        assert_eq!(parse_base64("context", &context_text(&[1, 2])), Ok(vec![1, 2]));
        let error = parse_base64("context", "?").expect_err("not base64").to_string();
        assert!(error.starts_with("context: is not base64"), "{error}");
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["é".to_string(), "1".to_string()], vec!["long".to_string(), String::new()]];
        assert_eq!(table(&["A", "B"], &rows), "A     B\né     1\nlong\n");
    }
}
