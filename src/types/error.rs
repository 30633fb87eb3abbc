//! Errors that a user may see. Each is definite (surely not applied), indefinite (may have been), or
//! about a read; none is just a string.

use std::fmt;
use std::time::Duration;

use super::ids::{LayoutVersion, NodeId};

/// A value of a request or a configuration that breaks a rule. Names the field, and says the limit and
/// the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field, as the user wrote it.
    pub field: String,
    /// What is wrong with it, with the limit and the value.
    pub problem: String,
}

impl Invalid {
    /// A problem with `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Invalid {
        Invalid { field: field.into(), problem: problem.into() }
    }

    /// Refuses a `value` over `max`.
    pub fn check_max(field: &str, value: usize, max: usize, unit: &str) -> Result<(), Invalid> {
        if value <= max {
            return Ok(());
        }
        Err(Invalid::new(field, format!("is {value} {unit}, over the limit of {max} {unit}")))
    }
}

/// Whether a failed request changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Surely not.
    No,
    /// It may have been, now or later.
    Maybe,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A field breaks a rule.
    Invalid(Invalid),
    /// There is no such keyspace.
    UnknownKeyspace(String),
    /// Too few replicas are reachable; nothing was sent.
    Unavailable,
    /// The replicas that answer are behind what the client's session has seen.
    BehindSession,
    /// The deadline passed, or replicas were lost, before enough had answered.
    TooFewAcks,
    /// The deadline of its batch passed before it was begun.
    NotBegun,
    /// Its time was up before all of the message was here.
    NotArrived,
    /// What was found does not fit into an answer with others.
    AnswerFull(Invalid),
    /// A queue is full; try again after the delay.
    Overloaded(Duration),
    /// The key has as many siblings as are allowed; the write would add one.
    TooManySiblings(usize),
    /// The own clock can't be used to stamp a write.
    ClockSkew(String),
    /// The disk failed before anything was written, or a stored record is damaged.
    Storage(String),
    /// The disk failed once the write had begun: what it holds is in doubt.
    InDoubt(String),
    /// The node is starting or stopping.
    NotServing(String),
    /// What is asked for is not built yet.
    Unbuilt(String),
    /// Another node ran the request and said so, in these words.
    Forwarded {
        /// What it amounts to.
        like: Box<Cause>,
        /// Its own text.
        text: String,
    },
}

impl Cause {
    /// The cause without who told it.
    pub fn kind(&self) -> &Cause {
        match self {
            Cause::Forwarded { like, .. } => like.kind(),
            own => own,
        }
    }
}

/// A request that failed, with what is known of it: the `quoral.v1.Failure` of the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// Whether it changed anything. Reads always say `No`.
    pub applied: Applied,
    /// Answers needed.
    pub required: u32,
    /// Answers received.
    pub received: u32,
    /// Replicas that looked reachable when the request began.
    pub alive: u32,
    /// Layout version that the coordinator used.
    pub layout_version: LayoutVersion,
    /// Replicas that were asked and did not answer.
    pub silent: Vec<NodeId>,
}

impl Failure {
    /// A failure before any replica was asked: nothing was applied.
    pub fn early(cause: Cause) -> Failure {
        Failure {
            cause,
            applied: Applied::No,
            required: 0,
            received: 0,
            alive: 0,
            layout_version: LayoutVersion(0),
            silent: Vec::new(),
        }
    }
}

impl Failure {
    /// The same, of a request of which another attempt may have been carried out.
    pub fn in_doubt(self) -> Failure {
        let cause = match self.cause {
            Cause::Unavailable | Cause::BehindSession => Cause::TooFewAcks,
            other => other,
        };
        Failure { applied: Applied::Maybe, cause, ..self }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Failure {
        Failure::early(Cause::Invalid(invalid))
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Invalid(invalid) => write!(f, "{invalid}"),
            Cause::UnknownKeyspace(name) => write!(f, "keyspace: there is no keyspace {name:?}"),
            Cause::Unavailable => write!(
                f,
                "too few replicas reachable: {} needed, {} alive; nothing was applied",
                self.required, self.alive
            ),
            Cause::BehindSession => write!(
                f,
                "session: the {} replicas that answered are behind what this session has seen",
                self.received
            ),
            Cause::TooFewAcks => write!(
                f,
                "{} of {} needed replicas answered in time{}",
                self.received,
                self.required,
                match self.applied {
                    Applied::No => "; nothing was applied",
                    Applied::Maybe => "; the write may have been applied, or may be later",
                }
            ),
            Cause::NotArrived => {
                f.write_str("its time was up before all of the message was here; nothing was applied")
            }
            Cause::NotBegun => {
                f.write_str("the batch's time was up before this was begun; nothing was applied")
            }
            Cause::AnswerFull(invalid) => write!(f, "{invalid}"),
            Cause::Overloaded(delay) => {
                write!(f, "overloaded; try again in {} ms; nothing was applied", delay.as_millis())
            }
            Cause::TooManySiblings(count) => write!(
                f,
                "the key has {count} siblings, the limit is {}: get it and write with its context",
                super::limits::SIBLINGS_MAX
            ),
            Cause::ClockSkew(problem) => write!(f, "clock: {problem}"),
            Cause::Storage(problem) => write!(f, "storage: {problem}"),
            Cause::InDoubt(problem) => {
                write!(f, "storage: {problem}; the write may have been applied, or may be later")
            }
            Cause::NotServing(state) => write!(f, "this node is {state}; nothing was applied"),
            Cause::Unbuilt(what) => write!(f, "{what} is not built yet"),
            Cause::Forwarded { text, .. } => f.write_str(text),
        }
    }
}
