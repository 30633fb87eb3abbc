//! Tests of the decisions on retries: for each outcome, whether, when, and at what price.

use super::*;
use crate::proto;
use tonic::Status;

const POLICY: RetryPolicy = RetryPolicy {
    attempts: 4,
    backoff: Duration::from_millis(100),
    backoff_max: Duration::from_millis(300),
    persist: true,
};
const ALL: [Op; 3] = [Op::Read, Op::Write, Op::NamedWrite];

fn standing(op: Op) -> Standing {
    let second = Duration::from_secs(1);
    Standing { op, made: 1, left: second, all: second, untried: true, broke: false, draw: 0.5 }
}

fn said(code: Code, applied: proto::Applied, delay_ms: u64, op: Op) -> Error {
    let failure = proto::Failure { applied: applied.into(), ..Default::default() };
    let error = proto::RequestError {
        code: code as u32,
        message: "no".into(),
        failure: Some(failure),
        retry_delay_ms: delay_ms,
    };
    Error::from_request(error, op)
}

fn again(op: Op, error: &Error) -> Option<(u64, bool)> {
    match decide(&POLICY, &standing(op), error) {
        Decision::Stop => None,
        Decision::Again { after, costs } => Some((u64::try_from(after.as_millis()).expect("small"), costs)),
    }
}

#[test]
fn a_definite_unavailable_goes_elsewhere_whatever_it_is() {
    for op in ALL {
        assert_eq!(again(op, &said(Code::Unavailable, proto::Applied::No, 0, op)), Some((50, true)));
    }
}

#[test]
fn a_write_without_a_name_is_not_sent_again_when_in_doubt() {
    let doubts = |op| {
        [
            said(Code::DeadlineExceeded, proto::Applied::Maybe, 0, op),
            said(Code::Unavailable, proto::Applied::Maybe, 0, op),
            said(Code::Internal, proto::Applied::Maybe, 0, op),
            Error::from_status("a:1", &Status::unavailable("broken pipe"), op),
            Error::silence("a:1", op),
        ]
    };
    for op in [Op::Read, Op::NamedWrite] {
        for error in doubts(op) {
            assert_eq!(again(op, &error), Some((50, true)), "{error:?}");
        }
    }
    for error in doubts(Op::Write) {
        assert_eq!(again(Op::Write, &error), None, "{error:?}");
    }
}

#[test]
fn an_overloaded_node_is_given_the_time_that_it_asks_for() {
    for op in ALL {
        let busy = said(Code::ResourceExhausted, proto::Applied::No, 200, op);
        assert_eq!(again(op, &busy), Some((250, true)));
        // Without a delay it is a limit, such as a message too large: the next node has it too.
        assert_eq!(again(op, &said(Code::ResourceExhausted, proto::Applied::No, 0, op)), None);
    }
}

#[test]
fn a_refused_connection_costs_nothing_and_the_next_endpoint_is_asked_at_once() {
    let refused = Error::unreachable("a:1: refused");
    for op in ALL {
        assert_eq!(again(op, &refused), Some((0, false)));
        let all_tried = Standing { untried: false, ..standing(op) };
        let later = Decision::Again { after: Duration::from_millis(50), costs: false };
        assert_eq!(decide(&POLICY, &all_tried, &refused), later, "then there is a pause");
    }
}

#[test]
fn what_is_wrong_stays_wrong() {
    let codes = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::AlreadyExists,
        Code::FailedPrecondition,
        Code::PermissionDenied,
        Code::Unauthenticated,
        Code::Unimplemented,
        Code::OutOfRange,
    ];
    for (op, code) in ALL.into_iter().flat_map(|op| codes.map(|code| (op, code))) {
        assert_eq!(again(op, &said(code, proto::Applied::No, 0, op)), None, "{code:?}");
    }
}

#[test]
fn pauses_double_up_to_their_bound_with_full_jitter() {
    let error = said(Code::Unavailable, proto::Applied::No, 0, Op::Read);
    let policy = RetryPolicy { attempts: 100, ..POLICY };
    let pause = |made, draw| {
        let standing = Standing { made, draw, left: Duration::from_secs(9), ..standing(Op::Read) };
        match decide(&policy, &standing, &error) {
            Decision::Again { after, .. } => after.as_millis(),
            Decision::Stop => panic!("there is time"),
        }
    };
    assert_eq!([1, 2, 3, 99].map(|made| pause(made, 1.0)), [100, 200, 300, 300]);
    assert_eq!([1, 2, 3, 99].map(|made| pause(made, 0.0)), [0; 4]);
}

#[test]
fn attempts_and_time_end_it() {
    let error = said(Code::Unavailable, proto::Applied::No, 0, Op::Read);
    let at = |made, left| {
        let left = Duration::from_millis(left);
        decide(&POLICY, &Standing { made, left, ..standing(Op::Read) }, &error)
    };
    assert_ne!(at(3, 1_000), Decision::Stop);
    assert_eq!(at(4, 1_000), Decision::Stop);
    assert_eq!(at(1, 90), Decision::Stop, "50 ms of pause leave too little for an answer");
    let refused = Error::unreachable("refused");
    assert_eq!(decide(&RetryPolicy::NEVER, &standing(Op::Read), &refused), Decision::Stop);
}

#[test]
fn without_persistence_a_round_of_refusals_is_an_answer() {
    let policy = RetryPolicy { persist: false, ..POLICY };
    for error in [said(Code::Unavailable, proto::Applied::No, 0, Op::Read), Error::unreachable("refused")] {
        let after = |untried, broke| {
            let standing = Standing { untried, broke, ..standing(Op::Read) };
            decide(&policy, &standing, &error) != Decision::Stop
        };
        assert_eq!([after(true, false), after(false, false), after(false, true)], [true, false, true]);
    }
}

#[test]
fn retries_add_their_share_and_no_more() {
    let mut budget = Budget::new(0.1, 5);
    let burst = (0..100).filter(|_| budget.spend()).count();
    assert_eq!(burst, 5);
    let mut retries = 0;
    for _ in 0..1_000 {
        budget.earn();
        // Everything fails, always.
        while budget.spend() {
            retries += 1;
        }
    }
    assert_eq!(retries, 100);
    for _ in 0..1_000 {
        budget.earn();
    }
    assert_eq!((0..100).filter(|_| budget.spend()).count(), 5, "no more than the burst is saved up");
    assert!(!Budget::new(0.0, 0).spend());
}
