//! `lww` records: a finished write never beats a later one, whatever the clocks say (F16).
//!
//! Three replicas, `w = 2`, writes through any of them, each message delivered at any time or never. A clock
//! gives any of the times allowed at each reading, so it may stand, jump or run behind for ever, and the
//! clocks do not follow each other: the worst that an offset or a step can do. Records and clocks are the real
//! ones; the coordinator's rules for `Superseded` stand here in a few lines, as `src/quorum/put.rs` and
//! `src/replica/apply.rs` have them.

use std::hash::{Hash, Hasher};

use bytes::Bytes;
use quoral::types::ids::NodeId;
use quoral::types::limits::CLOCK_SKEW_DEFAULT;
use quoral::types::time::WallMs;
use quoral::version::hlc::{Hlc, Stamp};
use quoral::version::record::{LwwVersion, Payload, Record};

use super::{World, search};

/// Which `Superseded` makes a coordinator stamp again, before it counts as an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Rule {
    /// The first so many of one write.
    Rounds(u8),
    /// The first of each replica.
    EachReplica,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Setup {
    nodes: usize,
    w: usize,
    writes: usize,
    /// What a clock may read, in milliseconds.
    readings: &'static [u64],
    rule: Rule,
    /// Rule: only acknowledgements of the newest stamp count.
    newest_only: bool,
}

const SOUND: Setup =
    Setup { nodes: 3, w: 2, writes: 3, readings: &[1, 9], rule: Rule::EachReplica, newest_only: true };

#[derive(Debug, PartialEq, Eq)]
enum Flaw {
    /// A write that was finished before this one began has the greater version.
    EarlierWins,
    /// A quorum of replicas holds nothing as new as a finished write.
    Stale,
}

type Order = (Stamp, NodeId);

#[derive(Debug, Clone)]
struct Node {
    clock: Hlc,
    record: Option<Record>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Put {
    me: usize,
    round: u8,
    order: Order,
    acks: Vec<bool>,
    /// Replicas whose `Superseded` was heeded.
    heeded: Vec<bool>,
    /// Sent in some round and not delivered: `(round, order, to)`.
    sent: Vec<(u8, Order, usize)>,
    finished: bool,
    /// The greatest version that was acknowledged before it began.
    before: Option<Order>,
}

#[derive(Debug, Clone)]
struct Cluster {
    setup: Setup,
    nodes: Vec<Node>,
    puts: Vec<Put>,
    /// The greatest version acknowledged to a client.
    acknowledged: Option<Order>,
}

fn order_of(record: &Record) -> Order {
    match record {
        Record::Lww(version) => version.order(),
        Record::Siblings(_) => unreachable!("the model makes no siblings"),
    }
}

fn record_of((stamp, node): Order) -> Record {
    let payload = Payload::Value(Bytes::from(format!("{stamp} {node}")));
    Record::Lww(LwwVersion { stamp, node, payload, expires_at: None, request: None })
}

impl Node {
    fn order(&self) -> Option<Order> {
        self.record.as_ref().map(order_of)
    }

    fn merge(&mut self, record: &Record) {
        match &mut self.record {
            Some(mine) => drop(mine.merge(record).expect("one policy")),
            none => *none = Some(record.clone()),
        }
    }
}

impl Cluster {
    fn new(setup: Setup) -> Cluster {
        let node = Node { clock: Hlc::new(Stamp(0), CLOCK_SKEW_DEFAULT), record: None };
        Cluster { setup, nodes: vec![node; setup.nodes], puts: Vec::new(), acknowledged: None }
    }

    /// Stamps at the coordinator above its own copy, stores, and sends to the others.
    fn mint(&mut self, put: usize, reading: u64, above: Stamp) {
        let Put { me, round, .. } = self.puts[put];
        let node = &mut self.nodes[me];
        let floor = node.order().map_or(above, |(stamp, _)| stamp.max(above));
        let order =
            (node.clock.issue(WallMs(reading), floor).expect("the clocks are near").stamp, NodeId(me as u64));
        node.merge(&record_of(order));
        let others = (0..self.setup.nodes).filter(|to| *to != me);
        let put = &mut self.puts[put];
        if self.setup.newest_only {
            put.acks = vec![false; self.setup.nodes];
        }
        put.acks[me] = true;
        put.order = order;
        put.sent.extend(others.map(|to| (round, order, to)));
    }

    fn begin(&self, me: usize, reading: u64) -> Cluster {
        let mut world = self.clone();
        let none = vec![false; self.setup.nodes];
        world.puts.push(Put {
            me,
            round: 0,
            order: (Stamp(0), NodeId(0)),
            acks: none.clone(),
            heeded: none,
            sent: Vec::new(),
            finished: false,
            before: self.acknowledged,
        });
        world.mint(self.puts.len(), reading, Stamp(0));
        world.judge(self.puts.len());
        world
    }

    /// Delivers one message, and its answer if `answered`; a new stamp uses `reading`.
    fn deliver(&self, index: usize, message: usize, answered: bool, reading: u64) -> Cluster {
        let mut world = self.clone();
        let (round, order, to) = world.puts[index].sent.remove(message);
        let there = world.nodes[to].order().filter(|mine| *mine > order);
        if there.is_none() {
            world.nodes[to].merge(&record_of(order));
        }
        let put = &mut world.puts[index];
        if !answered || put.finished || (self.setup.newest_only && round != put.round) {
            return world;
        }
        match there {
            Some((stamp, _)) if world.setup.rule.heeds(put, to) => {
                put.heeded[to] = true;
                put.round += 1;
                world.mint(index, reading, stamp);
            }
            _ => put.acks[to] = true,
        }
        world.judge(index);
        world
    }

    fn judge(&mut self, index: usize) {
        let put = &mut self.puts[index];
        if !put.finished && put.acks.iter().filter(|ack| **ack).count() >= self.setup.w {
            put.finished = true;
            self.acknowledged = self.acknowledged.max(Some(put.order));
        }
    }
}

impl Rule {
    fn heeds(self, put: &Put, from: usize) -> bool {
        match self {
            Rule::Rounds(most) => put.round < most,
            Rule::EachReplica => !put.heeded[from],
        }
    }
}

impl Hash for Cluster {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for node in &self.nodes {
            (node.clock.last(), node.order()).hash(state);
        }
        (&self.puts, self.acknowledged).hash(state);
    }
}

impl World for Cluster {
    type Flaw = Flaw;

    fn next(&self) -> Vec<Cluster> {
        let mut all = Vec::new();
        for reading in self.setup.readings.iter().copied() {
            if self.puts.len() < self.setup.writes {
                all.extend((0..self.setup.nodes).map(|me| self.begin(me, reading)));
            }
            for (index, put) in self.puts.iter().enumerate() {
                for message in 0..put.sent.len() {
                    all.push(self.deliver(index, message, true, reading));
                    // The clock is read for a new stamp only; no answer, no stamp.
                    if reading == self.setup.readings[0] {
                        all.push(self.deliver(index, message, false, reading));
                    }
                }
            }
        }
        all
    }

    fn flaw(&self) -> Option<Flaw> {
        if self.puts.iter().any(|put| put.finished && Some(put.order) < put.before) {
            return Some(Flaw::EarlierWins);
        }
        // Any n - w + 1 replicas hold it, or what is newer.
        let behind = self.nodes.iter().filter(|node| node.order() < self.acknowledged).count();
        (behind > self.setup.nodes - self.setup.w).then_some(Flaw::Stale)
    }
}

fn assert_sound(setup: Setup, depth: usize, at_least: usize) {
    let found = search(Cluster::new(setup), depth);
    println!("{} states to depth {depth} of {setup:?}", found.states);
    assert_eq!(found.flaw, None, "{setup:?}");
    assert!(found.states >= at_least, "only {} states", found.states);
}

fn assert_found(setup: Setup, depth: usize, flaw: Flaw) {
    assert_eq!(search(Cluster::new(setup), depth).flaw, Some(flaw), "{setup:?}");
}

/// F16, G4 for `lww`.
#[test]
fn f16_a_finished_write_never_beats_a_later_one() {
    assert_sound(SOUND, 6, 150_000);
    assert_sound(Setup { writes: 2, ..SOUND }, 8, 30_000);
}

#[test]
fn f16_canary_without_new_stamps_an_earlier_write_wins() {
    assert_found(Setup { rule: Rule::Rounds(0), ..SOUND }, 6, Flaw::EarlierWins);
}

#[test]
fn f16_canary_acknowledgements_of_an_earlier_stamp_leave_a_stale_quorum() {
    assert_found(Setup { newest_only: false, nodes: 5, w: 3, writes: 2, ..SOUND }, 6, Flaw::Stale);
}

/// With `2 w <= n` there is no such promise, and the search knows it.
#[test]
fn f16_canary_with_half_a_quorum_an_earlier_write_wins() {
    assert_found(Setup { w: 1, writes: 2, ..SOUND }, 3, Flaw::EarlierWins);
}

/// With five replicas and `w = 3` a bound on all rounds is used up by one replica that keeps receiving older
/// writes, and the finished write on the others is then taken for a concurrent one. Heeding the first
/// `Superseded` of each replica needs no bound besides `n`, and is right for every `n`: whichever replica
/// the two quorums share has been heeded, or has acknowledged the greater stamp.
fn one_replica_keeps_answering(rule: Rule) -> Cluster {
    let mut world = Cluster::new(Setup { nodes: 5, w: 3, writes: 4, rule, ..SOUND });
    let deliver = |world: &mut Cluster, put: usize, round: u8, to: usize| {
        let sent = &world.puts[put].sent;
        let message = sent.iter().position(|(r, _, t)| (*r, *t) == (round, to)).expect("it was sent");
        *world = world.deliver(put, message, true, 1);
    };
    // Two writes that stay unfinished, then one that two more replicas take, then the one in question.
    for (me, reading) in [(2, 3), (3, 5), (4, 7)] {
        world = world.begin(me, reading);
    }
    deliver(&mut world, 2, 0, 2);
    deliver(&mut world, 2, 0, 3);
    assert!(world.puts[2].finished);
    world = world.begin(0, 1);
    for round in 0..2 {
        deliver(&mut world, round, 0, 1);
        deliver(&mut world, 3, u8::try_from(round).expect("small"), 1);
    }
    while !world.puts[3].finished {
        let round = world.puts[3].round;
        let to = (2..4).find(|to| world.puts[3].sent.iter().any(|(r, _, t)| (*r, t) == (round, to)));
        deliver(&mut world, 3, round, to.expect("a replica that has not answered this round"));
    }
    world
}

#[test]
fn f16_on_five_replicas_the_first_superseded_of_each_must_be_heeded() {
    assert_eq!(one_replica_keeps_answering(Rule::Rounds(2)).flaw(), Some(Flaw::EarlierWins));
    assert_eq!(one_replica_keeps_answering(Rule::EachReplica).flaw(), None);
}
