//! `siblings` records: two or three replicas, clients that remember contexts, lost records and lost disks.
//!
//! Beside each real record stands the plain truth of it: the set of writes that this replica ever heard of,
//! and for each write the set that its client had really seen. A record must hold exactly the writes that no
//! other one heard of replaced (G4): one fewer is a lost write, one more is a revived one. Sets of writes are
//! bits of a number.

use std::hash::{Hash, Hasher};
use std::rc::Rc;

use bytes::Bytes;
use quoral::types::ids::{Birth, Incarnation, NodeId};
use quoral::version::dvv::{Actor, Context, Dot};
use quoral::version::hlc::Stamp;
use quoral::version::record::{Payload, Record, Sibling};

use super::{World, search};

/// A set of writes.
type Writes = u16;

/// What is tried, and with which rules.
#[derive(Debug, Clone, Copy)]
struct Setup {
    replicas: usize,
    clients: usize,
    writes: usize,
    /// Puts without a context.
    blind: bool,
    /// Puts with what the client remembers.
    remembered: bool,
    /// Puts reach two replicas at once and gets hear two; else one each.
    quorum: bool,
    /// Records and whole directories that may be lost.
    losses: u8,
    /// Rule: a line of dots is extended only where the local mark says that this node minted it.
    marks: bool,
    /// Rule: an empty directory is a new incarnation.
    new_lives: bool,
    /// Whether a dot issued twice and a broken record are flaws of their own; off to see what they lead to.
    judge_causes: bool,
    /// Most siblings that a record may have.
    bound: usize,
}

const SOUND: Setup = Setup {
    replicas: 2,
    clients: 2,
    writes: 4,
    blind: true,
    remembered: true,
    quorum: false,
    losses: 0,
    marks: true,
    new_lives: true,
    judge_causes: true,
    bound: usize::MAX,
};

#[derive(Debug, PartialEq, Eq)]
enum Flaw {
    /// A record lacks a write that nothing replaced.
    Lost,
    /// A record has a write that was replaced.
    Revived,
    /// One dot names two writes.
    DotTwice,
    /// More siblings than the bound.
    TooMany,
    /// An invariant of the record is broken.
    Problem(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Line {
    birth: u64,
    counter: u64,
}

#[derive(Debug, Clone)]
struct Replica {
    life: u64,
    /// Births issued in this life; durable on its own, so it survives the loss of a record.
    births: u64,
    line: Option<Line>,
    /// Shared between the states that have it in common.
    record: Rc<Record>,
    heard: Writes,
}

#[derive(Debug, Clone, Default, Hash)]
struct Client {
    context: Rc<Context>,
    seen: Writes,
}

#[derive(Debug, Clone)]
struct Cluster {
    setup: Setup,
    replicas: Vec<Replica>,
    clients: Vec<Client>,
    /// The dot of each write, and what its client had seen.
    writes: Vec<(Dot, Writes)>,
    losses: u8,
    /// Replicas and clients that took part; the next one is as good as any after it.
    used: (usize, usize),
}

fn empty() -> Rc<Record> {
    Rc::new(Record::Siblings(Vec::new()))
}

fn versions(record: &Record) -> &[Sibling] {
    match record {
        Record::Siblings(set) => set,
        Record::Lww(_) => unreachable!("the model makes no lww record"),
    }
}

/// The mint of a `siblings` record, as `src/replica/mint.rs` does it on stored bytes.
fn mint(setup: Setup, node: usize, replica: &mut Replica, past: Context, payload: Payload) -> Dot {
    let known = replica.record.context();
    let actor = |birth: u64| Actor {
        node: NodeId(node as u64),
        incarnation: Incarnation(replica.life),
        birth: Birth(birth),
    };
    let top = |birth: u64| known.top(&actor(birth)).max(past.top(&actor(birth)));
    let own = if setup.marks {
        replica.line.filter(|line| top(line.birth) <= line.counter)
    } else {
        // Without the rule: whatever line of its own name the node finds in the record.
        let found = (1..=replica.births).rev().find(|birth| known.top(&actor(*birth)) > 0);
        found.map(|birth| Line { birth, counter: top(birth) })
    };
    let line = match own {
        Some(line) => Line { counter: line.counter + 1, ..line },
        None => Line { birth: replica.births + 1, counter: 1 },
    };
    let dot = Dot { actor: actor(line.birth), counter: line.counter };
    replica.births = replica.births.max(line.birth);
    replica.line = Some(line);
    let sibling = Sibling { dot, past, request: None, stamp: Stamp(0), payload, expires_at: None };
    Rc::make_mut(&mut replica.record).replace(sibling).expect("one policy");
    dot
}

impl Cluster {
    fn new(setup: Setup) -> Cluster {
        let replica = Replica { life: 1, births: 0, line: None, record: empty(), heard: 0 };
        Cluster {
            setup,
            replicas: vec![replica; setup.replicas],
            clients: vec![Client::default(); setup.clients],
            writes: Vec::new(),
            losses: 0,
            used: (0, 0),
        }
    }

    fn touch(&mut self, replica: usize, client: usize) {
        self.used = (self.used.0.max(replica + 1), self.used.1.max(client + 1));
    }

    fn put(&self, client: usize, at: usize, also: Option<usize>, blind: bool) -> Cluster {
        let mut world = self.clone();
        world.touch(at.max(also.unwrap_or(0)), client);
        let id = self.writes.len();
        let Client { context, seen } = if blind { Client::default() } else { self.clients[client].clone() };
        let payload = Payload::Value(Bytes::from(vec![u8::try_from(id).expect("few writes")]));
        let dot = mint(self.setup, at, &mut world.replicas[at], (*context).clone(), payload);
        world.replicas[at].heard |= 1 << id;
        world.writes.push((dot, seen));
        if let Some(also) = also {
            world.replicate(at, also);
        }
        let mine = &mut world.clients[client];
        mine.context = context;
        Rc::make_mut(&mut mine.context).insert(dot);
        mine.seen = seen | 1 << id;
        world
    }

    fn get(&self, client: usize, from: &[usize]) -> Cluster {
        let mut world = self.clone();
        world.touch(from.iter().copied().max().unwrap_or(0), client);
        let (mut merged, mut heard) = (empty(), 0);
        for replica in from.iter().map(|r| &self.replicas[*r]) {
            Rc::make_mut(&mut merged).merge(&replica.record).expect("one policy");
            heard |= replica.heard;
        }
        // What a client is shown is what is there, and what that replaced.
        let seen = live(&self.writes, heard);
        let replaced = ids(seen).map(|w| self.writes[w].1).fold(0, |a, b| a | b);
        world.clients[client] = Client { context: Rc::new(merged.context()), seen: seen | replaced };
        world
    }

    fn replicate(&mut self, from: usize, to: usize) {
        let (record, heard) = (self.replicas[from].record.clone(), self.replicas[from].heard);
        Rc::make_mut(&mut self.replicas[to].record).merge(&record).expect("one policy");
        self.replicas[to].heard |= heard;
        self.touch(from.max(to), 0);
    }

    /// The record is gone (damaged and dropped, handed over), or with it the whole directory.
    fn lose(&self, at: usize, directory: bool) -> Cluster {
        let mut world = self.clone();
        world.losses += 1;
        let replica = &mut world.replicas[at];
        (replica.record, replica.line, replica.heard) = (empty(), None, 0);
        if directory {
            replica.births = 0;
            replica.life += u64::from(self.setup.new_lives);
        }
        world
    }
}

fn ids(writes: Writes) -> impl Iterator<Item = usize> {
    (0..16).filter(move |w| writes & 1 << w != 0)
}

/// Those of `heard` that none of them replaced.
fn live(writes: &[(Dot, Writes)], heard: Writes) -> Writes {
    let replaced = ids(heard).map(|w| writes[w].1).fold(0, |a, b| a | b);
    heard & !replaced
}

fn held(record: &Record) -> Writes {
    versions(record).iter().fold(0, |set, s| match &s.payload {
        Payload::Value(id) => set | 1 << id[0],
        Payload::Tombstone => set,
    })
}

impl Hash for Replica {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.life, self.births, self.line, self.heard).hash(state);
        for s in versions(&self.record) {
            (s.dot, &s.past, &s.payload).hash(state);
        }
    }
}

impl Hash for Cluster {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.replicas, &self.clients, &self.writes, self.losses, self.used).hash(state);
    }
}

impl World for Cluster {
    type Flaw = Flaw;

    fn next(&self) -> Vec<Cluster> {
        let s = self.setup;
        let mut all = Vec::new();
        let replicas = s.replicas.min(self.used.0 + 1);
        for client in 0..s.clients.min(self.used.1 + 1) {
            for at in 0..replicas {
                let others = (0..s.replicas).filter(|o| *o != at);
                if s.quorum {
                    all.extend(others.clone().filter(|o| at < *o).map(|o| self.get(client, &[at, o])));
                } else {
                    all.push(self.get(client, &[at]));
                }
                if self.writes.len() == s.writes {
                    continue;
                }
                let also: Vec<_> = if s.quorum { others.map(Some).collect() } else { vec![None] };
                for also in also {
                    all.extend(s.blind.then(|| self.put(client, at, also, true)));
                    all.extend(s.remembered.then(|| self.put(client, at, also, false)));
                }
            }
        }
        for from in 0..s.replicas {
            for to in (0..s.replicas).filter(|to| *to != from) {
                // Only what may change something: an empty record teaches nobody.
                if self.replicas[from].heard & !self.replicas[to].heard != 0 {
                    let mut world = self.clone();
                    world.replicate(from, to);
                    all.push(world);
                }
            }
            if self.losses < s.losses && self.replicas[from].heard != 0 {
                all.extend([self.lose(from, false), self.lose(from, true)]);
            }
        }
        all
    }

    fn flaw(&self) -> Option<Flaw> {
        let mut dots: Vec<Dot> = self.writes.iter().map(|(dot, _)| *dot).collect();
        dots.sort();
        dots.dedup();
        if self.setup.judge_causes && dots.len() < self.writes.len() {
            return Some(Flaw::DotTwice);
        }
        for replica in self.replicas.iter().filter(|r| r.heard != 0) {
            let (expected, got) = (live(&self.writes, replica.heard), held(&replica.record));
            if expected & !got != 0 {
                return Some(Flaw::Lost);
            }
            if got & !expected != 0 {
                return Some(Flaw::Revived);
            }
            if let Some(problem) = replica.record.problem().filter(|_| self.setup.judge_causes) {
                return Some(Flaw::Problem(problem));
            }
            if replica.record.versions() > self.setup.bound {
                return Some(Flaw::TooMany);
            }
        }
        None
    }
}

/// Nothing is found, and the search was as wide as it should be.
fn assert_sound(setup: Setup, depth: usize, at_least: usize) {
    let found = search(Cluster::new(setup), depth);
    println!("{} states to depth {depth} of {setup:?}", found.states);
    assert_eq!(found.flaw, None, "{setup:?}");
    assert!(found.states >= at_least, "only {} states", found.states);
}

fn assert_found(setup: Setup, depth: usize, flaw: Flaw) {
    assert_eq!(search(Cluster::new(setup), depth).flaw, Some(flaw), "{setup:?}");
}

/// G4, two replicas, deep.
#[test]
fn no_acknowledged_write_vanishes_on_two_replicas() {
    assert_sound(SOUND, 7, 50_000);
}

/// G4, three replicas, so that versions travel by two ways.
#[test]
fn no_acknowledged_write_vanishes_on_three_replicas() {
    assert_sound(Setup { replicas: 3, ..SOUND }, 6, 100_000);
}

/// F10 and F11: lost records and directories, at any moment.
#[test]
fn f10_f11_lost_records_and_directories_reuse_no_dot() {
    assert_sound(Setup { losses: 2, ..SOUND }, 6, 60_000);
    assert_sound(CANARY, 8, 60_000);
}

/// Few kinds of steps, so that the search goes deep enough for the stories that others tell.
const CANARY: Setup = Setup { losses: 1, clients: 1, ..SOUND };

#[test]
fn f11_canary_without_the_local_mark_a_write_is_lost() {
    assert_found(Setup { marks: false, ..CANARY }, 8, Flaw::DotTwice);
    assert_found(Setup { marks: false, judge_causes: false, ..CANARY }, 8, Flaw::Lost);
}

#[test]
fn f10_canary_without_a_new_incarnation_a_write_is_lost() {
    assert_found(Setup { new_lives: false, ..CANARY }, 8, Flaw::DotTwice);
    assert_found(Setup { new_lives: false, judge_causes: false, ..CANARY }, 8, Flaw::Lost);
}

/// F14: writers that use their contexts leave at most one sibling each.
#[test]
fn f14_writers_with_contexts_breed_no_siblings() {
    let quorum = Setup { replicas: 3, blind: false, quorum: true, bound: 2, ..SOUND };
    assert_sound(quorum, 5, 30_000);
}

#[test]
fn f14_canary_blind_writers_breed_siblings() {
    let quorum = Setup { replicas: 3, quorum: true, bound: 2, ..SOUND };
    assert_found(quorum, 5, Flaw::TooMany);
}
