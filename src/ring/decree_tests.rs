//! Tests of the decree: each rule by example, then every interleaving of two proposers and three voters.

use super::*;

const VERSION: MapVersion = MapVersion(2);

fn node(id: u64) -> NodeId {
    NodeId(id)
}

fn ballot(round: u64, id: u64) -> Ballot {
    Ballot { round, node: node(id) }
}

fn value(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn step(proposer: &mut Proposer, event: Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    proposer.step(Mono(0), event, &mut effects);
    proposer.check_invariants();
    effects
}

fn reply(from: u64, ballot: Ballot, reply: Reply) -> Event {
    Event::Reply { from: node(from), ballot, reply }
}

fn proposer() -> Proposer {
    Proposer::new(node(1), [1, 2, 3].map(node), value("mine"), 7)
}

#[test]
fn an_acceptor_promises_a_ballot_once_and_accepts_nothing_below() {
    let mut a = Acceptor::new(VERSION);
    assert_eq!(a.handle_prepare(ballot(2, 1)), Answer { reply: Reply::Promise(None), persist: true });
    for lower in [ballot(2, 1), ballot(1, 9)] {
        assert_eq!(a.handle_prepare(lower), Answer { reply: Reply::Rejected(2), persist: false });
    }
    assert_eq!(
        a.handle_accept(ballot(1, 9), value("low")),
        Answer { reply: Reply::Rejected(2), persist: false }
    );
    assert_eq!(a.handle_accept(ballot(2, 1), value("v")), Answer { reply: Reply::Accepted, persist: true });
    assert_eq!(a.handle_accept(ballot(2, 1), value("v")), Answer { reply: Reply::Accepted, persist: false });
    let before = Reply::Promise(Some((ballot(2, 1), value("v"))));
    assert_eq!(a.handle_prepare(ballot(2, 2)), Answer { reply: before, persist: true });
    assert_eq!(
        a.handle_accept(ballot(2, 1), value("v")).reply,
        Reply::Rejected(2),
        "promised to another since"
    );
    let unprepared = a.handle_accept(ballot(5, 1), value("w"));
    assert_eq!(unprepared, Answer { reply: Reply::Accepted, persist: true });
    assert_eq!(a.handle_prepare(ballot(4, 1)).reply, Reply::Rejected(5), "an accept promises too");
}

#[test]
fn an_acceptor_survives_its_encoding_and_no_damage() {
    let mut a = Acceptor::new(VERSION);
    assert_eq!(Acceptor::decode(&a.encode()), Ok(a.clone()));
    a.handle_prepare(ballot(2, 1));
    a.handle_accept(ballot(2, 1), value("v"));
    let bytes = a.encode();
    assert_eq!(Acceptor::decode(&bytes), Ok(a.clone()));
    assert_eq!(Acceptor::decode(b""), Err(BadAcceptor::Marker));
    assert_eq!(Acceptor::decode(b"M\x01"), Err(BadAcceptor::Marker));
    assert_eq!(Acceptor::decode(b"D\x02"), Err(BadAcceptor::Version(2)));
    for cut in 2..bytes.len() {
        assert_eq!(Acceptor::decode(&bytes[..cut]), Err(BadAcceptor::Body));
    }
    assert_eq!(Acceptor::decode(&[&bytes[..], &[0]].concat()), Err(BadAcceptor::Body));
    a.promised = Some(ballot(1, 1));
    assert_eq!(Acceptor::decode(&a.encode()), Err(BadAcceptor::Body), "accepted above its promise");
}

#[test]
fn a_voter_votes_on_the_next_version_only() {
    assert_eq!(gate(MapVersion(4), MapVersion(5)), Gate::Open);
    assert_eq!(gate(MapVersion(4), MapVersion(4)), Gate::Decided);
    assert_eq!(gate(MapVersion(4), MapVersion(1)), Gate::Decided);
    assert_eq!(gate(MapVersion(4), MapVersion(6)), Gate::Behind);
    assert_eq!(gate(MapVersion(0), MapVersion(u64::MAX)), Gate::Behind);
}

#[test]
fn a_value_is_decided_by_two_majorities() {
    let mut p = proposer();
    let b = ballot(1, 1);
    let prepares = [1, 2, 3].map(|to| Effect::Prepare { to: node(to), ballot: b });
    assert_eq!(step(&mut p, Event::Start), [&prepares[..], &[Effect::Arm(DECREE_WAIT)]].concat());
    assert_eq!(step(&mut p, reply(3, b, Reply::Promise(None))), vec![]);
    assert_eq!(step(&mut p, reply(3, b, Reply::Promise(None))), vec![], "one voter is one vote");
    assert_eq!(step(&mut p, reply(9, b, Reply::Promise(None))), vec![], "no voter");
    assert_eq!(step(&mut p, reply(2, ballot(0, 1), Reply::Promise(None))), vec![], "another ballot");
    let accepts = [1, 2, 3].map(|to| Effect::Accept { to: node(to), ballot: b, value: value("mine") });
    let effects = step(&mut p, reply(1, b, Reply::Promise(None)));
    assert_eq!(effects, [&accepts[..], &[Effect::Arm(DECREE_WAIT)]].concat());
    assert_eq!(step(&mut p, reply(2, b, Reply::Promise(None))), vec![], "late");
    assert_eq!(step(&mut p, reply(1, b, Reply::Accepted)), vec![]);
    assert_eq!(step(&mut p, reply(2, b, Reply::Accepted)), vec![Effect::Decided(value("mine"))]);
    assert!(p.is_done());
    assert_eq!(step(&mut p, Event::Timeout), vec![]);
    assert_eq!(step(&mut p, reply(3, b, Reply::Decided(value("x")))), vec![]);
}

#[test]
fn a_value_accepted_before_is_carried_on_and_the_own_is_lost() {
    let mut p = proposer();
    let b = ballot(1, 1);
    step(&mut p, Event::Start);
    step(&mut p, reply(1, b, Reply::Promise(Some((ballot(0, 3), value("older"))))));
    let effects = step(&mut p, reply(2, b, Reply::Promise(Some((ballot(0, 4), value("newer"))))));
    assert_eq!(effects[0], Effect::Accept { to: node(1), ballot: b, value: value("newer") });
    step(&mut p, reply(2, b, Reply::Accepted));
    assert_eq!(step(&mut p, reply(3, b, Reply::Accepted)), vec![Effect::Lost(value("newer"))]);
}

#[test]
fn a_rejected_proposer_waits_and_tries_above() {
    let mut p = proposer();
    step(&mut p, Event::Start);
    assert_eq!(step(&mut p, reply(1, ballot(1, 1), Reply::Rejected(6))), vec![], "two may still promise");
    let effects = step(&mut p, reply(2, ballot(1, 1), Reply::Rejected(4)));
    let [Effect::Arm(delay)] = effects[..] else { panic!("{effects:?}") };
    assert!(delay >= DECREE_BACKOFF / 2 && delay <= DECREE_BACKOFF * 3 / 2, "{delay:?}");
    let effects = step(&mut p, Event::Timeout);
    assert_eq!(effects[0], Effect::Prepare { to: node(1), ballot: ballot(7, 1) });
    let late = step(&mut p, reply(3, ballot(1, 1), Reply::Promise(None)));
    assert_eq!(late, vec![], "a promise for a former ballot counts for nothing");
}

#[test]
fn without_a_majority_the_proposer_says_whether_its_value_may_live() {
    let mut p = proposer();
    let mut effects = step(&mut p, Event::Start);
    for round in 1..=u64::from(DECREE_FAILURES) {
        assert_eq!(effects[0], Effect::Prepare { to: node(1), ballot: ballot(round, 1) });
        step(&mut p, reply(1, ballot(round, 1), Reply::Promise(None)));
        step(&mut p, Event::Failed { from: node(1), ballot: ballot(round, 1) });
        step(&mut p, Event::Failed { from: node(2), ballot: ballot(round, 1) });
        step(&mut p, reply(3, ballot(round, 1), Reply::Behind(MapVersion(0))));
        effects = step(&mut p, Event::Timeout);
    }
    assert_eq!(effects, vec![Effect::Unreachable(Applied::No)], "it was never sent");

    let mut p = proposer();
    step(&mut p, Event::Start);
    step(&mut p, reply(1, ballot(1, 1), Reply::Promise(None)));
    step(&mut p, reply(2, ballot(1, 1), Reply::Promise(None)));
    let mut effects = vec![];
    for _ in 0..2 * DECREE_FAILURES {
        effects = step(&mut p, Event::Timeout);
    }
    assert_eq!(effects, vec![Effect::Unreachable(Applied::Maybe)], "a voter may have accepted it");
}

#[test]
fn contention_ends_and_delays_are_bounded() {
    let mut p = proposer();
    let mut effects = step(&mut p, Event::Start);
    let mut ballots = 0;
    while let Some(Effect::Prepare { ballot, .. }) = effects.first().cloned() {
        ballots += 1;
        step(&mut p, reply(1, ballot, Reply::Rejected(ballot.round + 1)));
        let effects_of_rejection = step(&mut p, reply(2, ballot, Reply::Rejected(ballot.round + 1)));
        let [Effect::Arm(delay)] = effects_of_rejection[..] else { panic!("{effects_of_rejection:?}") };
        assert!(delay < DECREE_BACKOFF * 200, "{delay:?}");
        effects = step(&mut p, Event::Timeout);
    }
    assert_eq!((effects, ballots), (vec![Effect::Unreachable(Applied::No)], DECREE_BALLOTS));
    let mut p = proposer();
    step(&mut p, Event::Start);
    step(&mut p, reply(1, ballot(1, 1), Reply::Rejected(u64::MAX)));
    step(&mut p, reply(2, ballot(1, 1), Reply::Rejected(1)));
    assert_eq!(step(&mut p, Event::Timeout), vec![Effect::Unreachable(Applied::No)], "no round is left");
}

#[test]
fn a_version_decided_meanwhile_ends_the_proposal() {
    let decided = |sent: bool, map: &'static str| {
        let mut p = proposer();
        step(&mut p, Event::Start);
        if sent {
            step(&mut p, reply(1, ballot(1, 1), Reply::Promise(None)));
            step(&mut p, reply(2, ballot(1, 1), Reply::Promise(None)));
        }
        step(&mut p, reply(3, ballot(1, 1), Reply::Decided(value(map))))
    };
    assert_eq!(decided(false, "other"), vec![Effect::Lost(value("other"))]);
    assert_eq!(decided(true, "other"), vec![Effect::Overtaken(value("other"))]);
    assert_eq!(decided(true, "mine"), vec![Effect::Decided(value("mine"))]);
}
