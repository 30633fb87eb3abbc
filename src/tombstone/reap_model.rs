//! All interleavings of one collection with three replicas of one key: exchanges between any two at any time, a leader
//! that dies and begins anew, messages as late as they like, a new write, old copies of the deleted value that are on
//! their way until the grace is over, and one that somebody reads from a replica which has it still, whenever that is.
//!
//! A record is a number, and merging takes the greater: nothing, the old value, its tombstone, a new value. The
//! tombstone was acknowledged by two of three before anything begins.

use std::collections::{BTreeSet, VecDeque};

use super::{Effect, Event, Reap};
use crate::machine::Machine as _;
use crate::types::ids::NodeId;
use crate::types::time::Mono;

const NOTHING: u8 = 0;
const OLD: u8 = 1;
const TOMBSTONE: u8 = 2;
const NEW: u8 = 3;

/// What is broken on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Canary {
    None,
    /// One of the home replicas is never asked (rule 3, F01).
    OneIsNotAsked,
    /// Old messages arrive after the grace (F04).
    LateMessages,
    /// A replica deletes what it is told to, whatever it holds by then.
    BlindPurge,
    /// What all confirm is purged at once (rule 6).
    PurgedAtOnce,
    /// What was read before all confirmed it arrives however late.
    LateCopies,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    replicas: [u8; 3],
    leader: Option<Reap>,
    /// Effects to be carried out, and the events of those that were: of the leader that lives (true) or an older one.
    effects: BTreeSet<(bool, Effect)>,
    events: BTreeSet<Event>,
    begun: bool,
    deaths_left: u8,
    /// Copies of the old value on their way, and writes of the new one.
    old_left: u8,
    new_left: u8,
    /// Reads of the old value that may still be: of each the copy is on its way to a replica.
    reads_left: u8,
    read: BTreeSet<usize>,
    /// What the leader remembers: all have confirmed; and that was long ago.
    confirmed: bool,
    ripe: bool,
}

/// The leader forgets what it knew.
fn die(world: &mut World) {
    world.deaths_left -= 1;
    (world.confirmed, world.ripe) = (false, false);
    end(world);
}

/// The leader is gone. What it has sent may still arrive; nobody hears the answers.
fn end(world: &mut World) {
    world.leader = None;
    world.events.clear();
    let sent = world.effects.iter().filter(|(_, effect)| !matches!(effect, Effect::Ask(_)));
    world.effects = sent.map(|(_, effect)| (false, effect.clone())).collect();
}

fn step(world: &mut World, event: Event) {
    let Some(leader) = &mut world.leader else { return };
    let mut effects = Vec::new();
    leader.step(Mono(0), event, &mut effects);
    leader.check_invariants();
    for effect in effects {
        match effect {
            Effect::Finish { confirmed, .. } => {
                end(world);
                if !confirmed.is_empty() {
                    (world.confirmed, world.ripe) = (true, false);
                }
            }
            effect => drop(world.effects.insert((true, effect))),
        }
    }
}

fn carry_out(world: &mut World, canary: Canary, lives: bool, effect: &Effect) {
    let (purge, event) = match effect {
        Effect::Ask(node) => {
            let holds = world.replicas[at(*node)] == TOMBSTONE;
            (None, Event::Holds(*node, holds.then_some(0).into_iter().collect()))
        }
        Effect::Push(node, _) => {
            let held = &mut world.replicas[at(*node)];
            *held = TOMBSTONE.max(*held);
            (None, Event::Taken(*node))
        }
        Effect::Purge(node, _) => (Some(at(*node)), Event::Purged(*node)),
        Effect::PurgeOwn(_) => (Some(0), Event::PurgedOwn(1)),
        Effect::Finish { .. } => return,
    };
    if let Some(at) = purge
        && (world.replicas[at] == TOMBSTONE || canary == Canary::BlindPurge)
    {
        world.replicas[at] = NOTHING;
    }
    if lives {
        world.events.insert(event);
    }
}

fn at(node: NodeId) -> usize {
    usize::try_from(node.0).expect("small")
}

/// Everything that can happen next.
fn next(world: &World, canary: Canary) -> Vec<World> {
    let mut all = Vec::new();
    let mut push = |change: &dyn Fn(&mut World)| {
        let mut changed = world.clone();
        change(&mut changed);
        if changed != *world {
            all.push(changed);
        }
    };
    for (i, j) in [(0, 1), (0, 2), (1, 2)] {
        push(&|world| {
            let merged = world.replicas[i].max(world.replicas[j]);
            (world.replicas[i], world.replicas[j]) = (merged, merged);
        });
    }
    if world.leader.is_none() && world.replicas[0] == TOMBSTONE {
        push(&|world| {
            let others = if canary == Canary::OneIsNotAsked { 1..2 } else { 1..3 };
            let is_ripe = world.ripe || canary == Canary::PurgedAtOnce;
            world.leader = Some(Reap::new(1, is_ripe.then_some(0).into_iter().collect(), others.map(NodeId)));
            world.begun = true;
            step(world, Event::Start);
        });
    }
    for (lives, effect) in &world.effects {
        push(&|world| {
            world.effects.remove(&(*lives, effect.clone()));
            carry_out(world, canary, *lives, effect);
        });
        // Or it is lost, and the leader hears nothing.
        if let (true, Effect::Ask(node) | Effect::Push(node, _) | Effect::Purge(node, _)) = (*lives, effect) {
            push(&|world| {
                world.effects.remove(&(true, effect.clone()));
                world.events.insert(Event::Failed(*node));
            });
        }
    }
    for event in &world.events {
        push(&|world| {
            world.events.remove(event);
            step(world, event.clone());
        });
    }
    if world.leader.is_some() && world.deaths_left > 0 {
        push(&die);
    }
    if world.confirmed && !world.ripe {
        // As long as a message may be on its way.
        push(&|world| {
            world.ripe = true;
            if canary != Canary::LateCopies {
                world.read.clear();
            }
        });
    }
    for to in 0..3 {
        if world.reads_left > 0 && (0..3).any(|from| from != to && world.replicas[from] == OLD) {
            push(&|world| {
                world.reads_left -= 1;
                world.read.insert(to);
            });
        }
        if world.read.contains(&to) {
            push(&|world| {
                world.read.remove(&to);
                world.replicas[to] = OLD.max(world.replicas[to]);
            });
        }
    }
    for replica in 0..3 {
        if world.old_left > 0 && (!world.begun || canary == Canary::LateMessages) {
            push(&|world| {
                world.old_left -= 1;
                world.replicas[replica] = OLD.max(world.replicas[replica]);
            });
        }
        if world.new_left > 0 {
            push(&|world| {
                world.new_left -= 1;
                world.replicas[replica] = NEW.max(world.replicas[replica]);
            });
        }
    }
    all
}

/// What went wrong, if anything.
fn problem(world: &World, new: u8) -> Option<&'static str> {
    let most = world.replicas.iter().copied().max();
    if most == Some(OLD) {
        return Some("the deleted value is back");
    }
    // A replica has taken the new value: no purge may take it away.
    let has_new = world.replicas.contains(&NEW);
    if new > 0 && world.new_left == 0 && !has_new {
        return Some("the new value is gone");
    }
    None
}

fn explore(canary: Canary, (old, new, reads): (u8, u8, u8)) -> Result<usize, Box<(&'static str, World)>> {
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::new();
    for third in [NOTHING, OLD, TOMBSTONE] {
        // The two others are alike.
        for lacking in [0, 2] {
            let mut replicas = [TOMBSTONE; 3];
            replicas[lacking] = third;
            queue.push_back(World {
                replicas,
                leader: None,
                effects: BTreeSet::new(),
                events: BTreeSet::new(),
                begun: false,
                deaths_left: old,
                old_left: old,
                new_left: new,
                reads_left: reads,
                read: BTreeSet::new(),
                // What is remembered of replicas that lack it by now counts for nothing, so this is the harder case.
                confirmed: reads == 0,
                ripe: reads == 0,
            });
        }
    }
    while let Some(world) = queue.pop_front() {
        if !seen.insert(world.clone()) {
            continue;
        }
        if let Some(problem) = problem(&world, new) {
            return Err(Box::new((problem, world)));
        }
        assert!(seen.len() < 1_000_000, "too many states");
        queue.extend(next(&world, canary));
    }
    Ok(seen.len())
}

/// Old copies on their way, or a new write, or a read of the old value: all at once are too many states.
const WORLDS: [(u8, u8, u8); 3] = [(1, 0, 0), (0, 1, 0), (0, 0, 1)];

#[test]
fn f01_nothing_that_can_happen_brings_a_deleted_value_back() {
    for world in WORLDS {
        let states = explore(Canary::None, world);
        let states = states.unwrap_or_else(|wrong| panic!("{}: {:#?}", wrong.0, wrong.1));
        println!("{states} states");
        assert!(states > 1_000, "only {states} states");
    }
}

#[test]
fn each_rule_is_needed() {
    for (canary, world, expected) in [
        (Canary::OneIsNotAsked, WORLDS[0], "the deleted value is back"),
        (Canary::LateMessages, WORLDS[0], "the deleted value is back"),
        (Canary::BlindPurge, WORLDS[1], "the new value is gone"),
        (Canary::PurgedAtOnce, WORLDS[2], "the deleted value is back"),
        (Canary::LateCopies, WORLDS[2], "the deleted value is back"),
    ] {
        let (problem, _) = *explore(canary, world).expect_err("the bug is found");
        assert_eq!(problem, expected, "{canary:?}");
    }
}
