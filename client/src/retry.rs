//! Whether, when and at what price a request is sent again. Pure: time left and randomness come in.
//!
//! Invariants:
//! 1. An [`Op::Write`], which has no request id, is sent again only after an error that says it was surely not
//!    applied. Reads, and writes with a request id, may also be sent again after an answer that was lost.
//! 2. No attempt begins with too little time for an answer.
//! 3. An attempt that costs a node work is paid for from the [`Budget`]: in the long run retries add a fixed share
//!    of the requests and no more, so they can't make a storm of an overload. A connection that was refused costs no
//!    node any work; each endpoint is tried once that way for nothing.
//! 4. What a node refuses as it stands (a bad field, an unknown keyspace) is not sent again.
//!
//! *Where* a retry goes is `route`'s choice: the endpoint that was tried least, the sick ones last.

use std::time::Duration;

use crate::error::{Applied, Code, Error, Reached, refused_as_it_is};

/// What a request is, which decides whether it may be sent again and what a lost answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Changes nothing.
    Read,
    /// Changes something each time it is carried out.
    Write,
    /// Changes something once, however often it is sent: it has a request id.
    NamedWrite,
}

/// How often, and how fast, a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts of one request at the most; 1 means that it is never sent again.
    pub attempts: u32,
    /// Mean of twice the first pause. Each pause is drawn between zero and a bound, which doubles.
    pub backoff: Duration,
    /// The greatest bound.
    pub backoff_max: Duration,
    /// Whether to go on when all endpoints have refused the request, or a connection. If not, that is the answer,
    /// unless a connection broke under the request: then it goes round once more.
    pub persist: bool,
}

impl Default for RetryPolicy {
    /// Ten attempts, 20 ms doubled up to a second: about 4 s in all, unless the deadline comes first.
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: 10,
            backoff: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            persist: true,
        }
    }
}

impl RetryPolicy {
    /// Each request is sent once, to one endpoint: for tests that record what one request did.
    pub const NEVER: RetryPolicy =
        RetryPolicy { attempts: 1, backoff: Duration::ZERO, backoff_max: Duration::ZERO, persist: false };

    /// The pause before the next attempt after `made`: full jitter. `draw` is from 0 to 1.
    fn pause(&self, made: u32, draw: f64) -> Duration {
        let doublings = made.saturating_sub(1).min(20);
        let bound = self.backoff.saturating_mul(1 << doublings).min(self.backoff_max);
        bound.mul_f64(draw.clamp(0.0, 1.0))
    }
}

/// An attempt with less time than this would end before its answer, and make a refused write a doubtful one.
const ATTEMPT_MIN: Duration = Duration::from_millis(50);

/// Where a request stands after a failed attempt.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// What it is.
    pub op: Op,
    /// Attempts made.
    pub made: u32,
    /// Time left, and the time it had in all.
    pub left: Duration,
    /// The time it had in all.
    pub all: Duration,
    /// Whether an endpoint is left in this round, that was not tried in it and is not known to be dead.
    pub untried: bool,
    /// Whether a connection broke, or stayed silent, in this round.
    pub broke: bool,
    /// A number from 0 to 1, drawn anew each time.
    pub draw: f64,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Tell the caller.
    Stop,
    /// Send it again after a pause; if `costs`, only if the budget has it.
    Again {
        /// The pause.
        after: Duration,
        /// Whether it is paid for.
        costs: bool,
    },
}

/// Whether a request in this standing may be sent again after `error`, by what it is alone.
fn may_repeat(op: Op, error: &Error) -> bool {
    let overloaded = error.code == Code::ResourceExhausted && error.retry_after.is_some();
    match error.reached {
        Reached::Nobody => true,
        Reached::Connection => op != Op::Write,
        Reached::Node if overloaded => op != Op::Write || error.applied == Applied::No,
        Reached::Node if refused_as_it_is(error.code) => false,
        Reached::Node if op == Op::Write => error.code == Code::Unavailable && error.applied == Applied::No,
        Reached::Node => matches!(
            error.code,
            Code::Unavailable | Code::DeadlineExceeded | Code::Internal | Code::Unknown | Code::Aborted
        ),
    }
}

/// Decides after a failed attempt.
pub fn decide(policy: &RetryPolicy, standing: &Standing, error: &Error) -> Decision {
    let Standing { op, made, left, all, untried, broke, draw } = *standing;
    let answered = !policy.persist && !untried && !broke;
    if made >= policy.attempts || answered || !may_repeat(op, error) {
        return Decision::Stop;
    }
    let jitter = policy.pause(made, draw);
    let after = match error.retry_after {
        // What a node asks for is the least; the jitter keeps those who were refused together apart.
        Some(delay) => delay + jitter,
        // Nobody has worked, and somebody else may be there: at once.
        None if error.reached == Reached::Nobody && untried => Duration::ZERO,
        None => jitter,
    };
    if left <= after + ATTEMPT_MIN.min(all / 4) {
        return Decision::Stop;
    }
    Decision::Again { after, costs: error.reached != Reached::Nobody }
}

/// Thousandths of a retry.
const WHOLE: u32 = 1_000;

/// What pays for retries: each request earns a part of one, up to a stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    stock: u32,
    most: u32,
    earns: u32,
}

impl Budget {
    /// `share` retries for each request (0 to 1), and `burst` that can be saved up; it begins full.
    pub fn new(share: f64, burst: u32) -> Budget {
        let most = burst.saturating_mul(WHOLE);
        // In range by the clamp.
        let earns = (share.clamp(0.0, 1.0) * f64::from(WHOLE)) as u32;
        Budget { stock: most, most, earns }
    }

    /// A request begins.
    pub fn earn(&mut self) {
        self.stock = self.stock.saturating_add(self.earns).min(self.most);
    }

    /// Pays for one retry, if there is enough.
    pub fn spend(&mut self) -> bool {
        let left = self.stock.checked_sub(WHOLE);
        self.stock = left.unwrap_or(self.stock);
        left.is_some()
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
