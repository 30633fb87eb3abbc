//! Golden scripts: one file for each rule of a request machine, beside the machine.
//!
//! A script's first line states the rule. `put`, `read` or `hints` with its plan begins a machine; a line
//! `> event` is fed to it, a microsecond after the last or `at` a time, and the lines below are exactly the effects it must push, in order, after which its invariants
//! are checked. `UPDATE_GOLDEN=1 cargo test --test golden` writes what the machines do now; read the diff.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quoral::antientropy::exchange::{self, Exchange};
use quoral::antientropy::tree::Node;
use quoral::hinted::delivery;
use quoral::machine::Machine;
use quoral::quorum::page::Single;
use quoral::quorum::{put, read};
use quoral::replica::heal::{self, Heal};
use quoral::replica::pace::{self, Pace};
use quoral::replica::scrub::Position;
use quoral::tombstone::reap::{self, Reap};
use quoral::types::error::{Applied, Cause, Failure};
use quoral::types::ids::{LayoutVersion, NodeId};
use quoral::types::time::{Mono, WallMs};
use quoral::version::hlc::Stamp;
use quoral::version::record::{LwwVersion, Payload, Record};
use quoral::version::session::Floor;

fn node(text: &str) -> NodeId {
    NodeId(text.trim_start_matches('n').parse().unwrap_or_else(|_| panic!("a node like n1, not {text:?}")))
}

fn name(id: NodeId) -> String {
    format!("n{}", id.0)
}

/// `key=value` words of a line.
fn options(words: &[&str]) -> BTreeMap<String, String> {
    let pair = |word: &&str| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    words.iter().filter_map(pair).collect()
}

fn nodes(text: &str) -> Vec<NodeId> {
    text.split(',').filter(|t| !t.is_empty()).map(node).collect()
}

/// A record of `lww` with this stamp; `none` is no record.
fn record(text: &str) -> Single {
    let stamp: u64 = text.trim_start_matches('v').parse().ok()?;
    let payload = Payload::Value(text.to_owned().into());
    Some(Arc::new(Record::Lww(LwwVersion {
        stamp: Stamp(stamp),
        node: NodeId(1),
        payload,
        expires_at: None,
        request: None,
    })))
}

fn show(record: &Single) -> String {
    record.as_ref().map_or("none".into(), |record| format!("v{}", record.stamp().0))
}

fn show_failure(failure: &Failure) -> String {
    let cause = match &failure.cause {
        Cause::Unavailable => "unavailable",
        Cause::TooFewAcks => "too-few",
        Cause::BehindSession => "behind-session",
        Cause::Storage(_) => "storage",
        Cause::InDoubt(_) => "in-doubt",
        other => panic!("not in a script: {other:?}"),
    };
    let applied = if failure.applied == Applied::No { "no" } else { "maybe" };
    let Failure { required, received, alive, .. } = failure;
    format!("failed {cause} applied={applied} required={required} received={received} alive={alive}")
}

trait Scripted {
    fn feed(&mut self, now: Mono, words: &[&str]) -> Vec<String>;
}

struct PutScript(put::Put);

impl PutScript {
    fn begin(words: &[&str]) -> PutScript {
        let o = options(words);
        let down = nodes(o.get("down").map_or("", String::as_str));
        let homes = nodes(&o["homes"]).into_iter().map(|n| (n, !down.contains(&n))).collect();
        PutScript(put::Put::new(put::Plan {
            me: node(&o["me"]),
            homes,
            fallbacks: nodes(o.get("fallbacks").map_or("", String::as_str)),
            stand_in_after: Duration::from_micros(100),
            w: o["w"].parse().expect("a number"),
            deadline: Mono(5_000),
            layout_version: LayoutVersion(1),
        }))
    }
}

impl Scripted for PutScript {
    fn feed(&mut self, now: Mono, words: &[&str]) -> Vec<String> {
        let o = options(words);
        let answered = |from: &str, answer| put::Event::Answered {
            from: node(from),
            round: o.get("round").map_or(0, |r| r.parse().expect("a number")),
            answer,
        };
        let event = match words {
            ["start"] => put::Event::Start,
            ["stored"] => put::Event::Stored,
            ["store-failed"] => put::Event::StoreFailed(Cause::Storage("full".into())),
            ["store-in-doubt"] => put::Event::StoreFailed(Cause::InDoubt("a sync failed".into())),
            ["stand-in-due"] => put::Event::StandInDue,
            ["deadline"] => put::Event::Deadline,
            ["acked", from, ..] => answered(from, put::Answer::Acked),
            ["superseded", from, ..] => {
                answered(from, put::Answer::Superseded(Stamp(o["by"].parse().expect("a number"))))
            }
            ["refused", from, ..] => answered(from, put::Answer::Refused),
            ["lost", from, ..] => answered(from, put::Answer::Lost),
            other => panic!("no event of a put: {other:?}"),
        };
        let mut effects = Vec::new();
        self.0.step(now, event, &mut effects);
        self.0.check_invariants();
        let show = |effect: &put::Effect| match effect {
            put::Effect::Arm(at) => format!("arm at={}", at.0),
            put::Effect::ArmStandIn(at) => format!("arm-stand-in at={}", at.0),
            put::Effect::StandIn { to, home, round } => {
                format!("stand-in {} for {} round={round}", name(*to), name(*home))
            }
            put::Effect::Mint { round, above: None } => format!("mint round={round}"),
            put::Effect::Mint { round, above: Some(above) } => {
                format!("mint round={round} above={}", above.0)
            }
            put::Effect::Send { to, round } => format!("send {} round={round}", name(*to)),
            put::Effect::Reply(Ok(done)) => {
                let sloppy = if done.sloppy { " sloppy" } else { "" };
                format!("reply ok acks={} round={}{sloppy}", done.acks, done.round)
            }
            put::Effect::Reply(Err(failure)) => format!("reply {}", show_failure(failure)),
            put::Effect::Hint(to) => format!("hint {}", name(*to)),
            put::Effect::Finished => "finished".into(),
        };
        effects.iter().map(show).collect()
    }
}

struct ReadScript(read::Read<Single>);

impl ReadScript {
    fn begin(words: &[&str]) -> ReadScript {
        let o = options(words);
        let homes = nodes(&o["homes"]);
        let down = nodes(o.get("down").map_or("", String::as_str));
        ReadScript(read::Read::new(read::Plan {
            candidates: match o.get("candidates") {
                Some(candidates) => nodes(candidates),
                None => homes.iter().copied().filter(|n| !down.contains(n)).collect(),
            },
            homes,
            r: o["r"].parse().expect("a number"),
            holders: o.get("holders").map_or(0, |h| h.parse().expect("a number")),
            floor: o.get("floor").map(|floor| {
                let stamp = floor.trim_start_matches('v').parse().expect("a number");
                Floor::Lww(Stamp(stamp), NodeId(1))
            }),
            deadline: Mono(5_000),
            hedge_after: Duration::from_micros(100),
            layout_version: LayoutVersion(1),
        }))
    }
}

impl Scripted for ReadScript {
    fn feed(&mut self, now: Mono, words: &[&str]) -> Vec<String> {
        let number = |text: &&str| text.parse().expect("a number");
        let event = match words {
            ["start"] => read::Event::Start,
            ["answer", from, version] => read::Event::Answered(node(from), record(version)),
            ["failed", from] => read::Event::Failed(node(from)),
            ["repaired", from, generation] => read::Event::Repaired(node(from), number(generation)),
            ["repair-failed", from, generation] => read::Event::RepairFailed(node(from), number(generation)),
            ["hedge"] => read::Event::HedgeDue,
            ["deadline"] => read::Event::Deadline,
            other => panic!("no event of a read: {other:?}"),
        };
        let mut effects = Vec::new();
        self.0.step(now, event, &mut effects);
        self.0.check_invariants();
        let show = |effect: &read::Effect<Single>| match effect {
            read::Effect::ArmDeadline(at) => format!("arm-deadline at={}", at.0),
            read::Effect::ArmHedge(at) => format!("arm-hedge at={}", at.0),
            read::Effect::Fetch(to) => format!("fetch {}", name(*to)),
            read::Effect::Repair(to, generation, record) => {
                format!("repair {} {} generation={generation}", name(*to), show(&Some(record.clone())))
            }
            read::Effect::Reply(Ok(done)) => {
                format!("reply {} replies={} repaired={}", show(&done.answer), done.replies, done.repaired)
            }
            read::Effect::Reply(Err(failure)) => format!("reply {}", show_failure(failure)),
            read::Effect::Finished => "finished".into(),
        };
        effects.iter().map(show).collect()
    }
}

struct HintScript(delivery::Delivery);

impl HintScript {
    fn begin(words: &[&str]) -> HintScript {
        let o = options(words);
        let number = |name: &str, usual: u64| o.get(name).map_or(usual, |v| v.parse().expect("a number"));
        HintScript(delivery::Delivery::new(delivery::Pace {
            rate: number("rate", 1_000_000_000),
            window: (number("least", 100), number("most", 1_000)),
            delay: Duration::from_micros(number("delay", 10)),
            pause: Duration::from_micros(number("pause", 1_000)),
        }))
    }
}

impl Scripted for HintScript {
    fn feed(&mut self, now: Mono, words: &[&str]) -> Vec<String> {
        let number = |text: &str| text.parse().expect("a number");
        // `7:50` is hint 7 of 50 bytes, `7:50:old` one that is too old.
        let loaded = |text: &&str| {
            let parts: Vec<&str> = text.split(':').collect();
            let too_old = parts.get(2) == Some(&"old");
            delivery::Loaded { seq: number(parts[0]), bytes: number(parts[1]), too_old }
        };
        let event = match words {
            ["up"] => delivery::Event::Up,
            ["down"] => delivery::Event::Down,
            ["wake"] => delivery::Event::Wake,
            ["page", hints @ .., "more"] => delivery::Event::Page(hints.iter().map(loaded).collect(), true),
            ["page", hints @ ..] => delivery::Event::Page(hints.iter().map(loaded).collect(), false),
            ["stored", seq] => delivery::Event::Answered(number(seq), delivery::Answer::Stored),
            ["too-old", seq] => delivery::Event::Answered(number(seq), delivery::Answer::TooOld),
            ["refused", seq] => delivery::Event::Answered(number(seq), delivery::Answer::Refused),
            ["lost", seq] => delivery::Event::Answered(number(seq), delivery::Answer::Lost),
            other => panic!("no event of a delivery: {other:?}"),
        };
        let mut effects = Vec::new();
        self.0.step(now, event, &mut effects);
        self.0.check_invariants();
        let show = |effect: &delivery::Effect| match effect {
            delivery::Effect::Load(after) => format!("load after={after}"),
            delivery::Effect::Send(seq) => format!("send {seq}"),
            delivery::Effect::Forget(seq) => format!("forget {seq}"),
            delivery::Effect::Home => "home".into(),
            delivery::Effect::Arm(at) => format!("arm at={}", at.0),
        };
        effects.iter().map(show).collect()
    }
}

struct ExchangeScript(Exchange);

/// A node as `4/3`: bits and path.
fn tree_node(text: &str) -> Node {
    let (bits, path) = text.split_once('/').expect("bits/path");
    let number = |text: &str| text.parse().expect("a number");
    Node::new(u8::try_from(number(bits)).expect("small"), number(path)).expect("a node of the tree")
}

impl Scripted for ExchangeScript {
    fn feed(&mut self, now: Mono, words: &[&str]) -> Vec<String> {
        let o = options(words);
        let number = |name: &str| o.get(name).map_or(0, |text| text.parse().expect("a number"));
        let event = match words {
            ["start", ..] => exchange::Event::Start(number("items")),
            ["differ", nodes @ ..] => exchange::Event::Differ(nodes.iter().map(|n| tree_node(n)).collect()),
            ["too-many"] => exchange::Event::TooMany,
            ["listed", ..] => exchange::Event::Listed {
                nodes: usize::try_from(number("nodes")).expect("small"),
                received: number("received"),
                sent: number("sent"),
            },
            ["failed"] => exchange::Event::Failed,
            other => panic!("no event of an exchange: {other:?}"),
        };
        let mut effects = Vec::new();
        self.0.step(now, event, &mut effects);
        self.0.check_invariants();
        let nodes = |nodes: &[Node]| {
            let shown: Vec<String> = nodes.iter().map(|n| format!("{}/{}", n.bits(), n.path())).collect();
            shown.join(" ")
        };
        let show = |effect: &exchange::Effect| match effect {
            exchange::Effect::Compare(all) => format!("compare {}", nodes(all)),
            exchange::Effect::List(all) => format!("list {}", nodes(all)),
            exchange::Effect::Finish { whole, received, sent } => {
                format!("finish whole={whole} received={received} sent={sent}")
            }
        };
        effects.iter().map(show).collect()
    }
}

struct HealScript(Heal);

impl HealScript {
    fn begin(words: &[&str]) -> HealScript {
        let o = options(words);
        HealScript(Heal::new(nodes(o.get("others").map_or("", String::as_str))))
    }
}

impl Scripted for HealScript {
    fn feed(&mut self, now: Mono, words: &[&str]) -> Vec<String> {
        let event = match words {
            ["start"] => heal::Event::Start,
            ["version", from] => heal::Event::Answered(node(from), true),
            ["nothing", from] => heal::Event::Answered(node(from), false),
            ["failed", from] => heal::Event::Failed(node(from)),
            other => panic!("{other:?} is no event"),
        };
        let mut effects = Vec::new();
        self.0.step(now, event, &mut effects);
        self.0.check_invariants();
        let show = |effect: &heal::Effect| match effect {
            heal::Effect::Ask(to) => format!("ask {}", name(*to)),
            heal::Effect::Restore => "restore".to_owned(),
            heal::Effect::WaitFor(which) => {
                format!("wait-for {}", which.iter().map(|id| name(*id)).collect::<Vec<_>>().join(","))
            }
            heal::Effect::NoVersion => "no-version".to_owned(),
        };
        effects.iter().map(show).collect()
    }
}

struct ScrubScript(Pace);

/// `next=k` is the key `k`.
fn key_of(options: &BTreeMap<String, String>) -> Option<Vec<u8>> {
    options.get("next").map(|key| key.clone().into_bytes())
}

impl ScrubScript {
    fn begin(words: &[&str]) -> ScrubScript {
        let o = options(words);
        let number = |name: &str| o.get(name).map(|text| text.parse().expect("a number"));
        let position = Position { next: key_of(&o), ended_at: number("ended").map(WallMs) };
        let interval = Duration::from_millis(number("interval").expect("an interval"));
        ScrubScript(Pace::new(interval, number("rate").unwrap_or(1_000), position))
    }
}

impl Scripted for ScrubScript {
    fn feed(&mut self, now: Mono, words: &[&str]) -> Vec<String> {
        let o = options(words);
        let event = match words {
            ["start"] => pace::Event::Start,
            ["rested", wall] => pace::Event::Rested(WallMs(wall.parse().expect("milliseconds"))),
            ["read", bytes, ..] => pace::Event::Read {
                bytes: bytes.parse().expect("a number"),
                next: key_of(&o),
                is_busy: words.contains(&"busy"),
            },
            ["failed"] => pace::Event::Failed,
            other => panic!("no event of a scrub: {other:?}"),
        };
        let mut effects = Vec::new();
        self.0.step(now, event, &mut effects);
        self.0.check_invariants();
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let show = |effect: &pace::Effect| match effect {
            pace::Effect::Read(from) => format!("look from={}", text(from)),
            pace::Effect::Note(Position { next, ended_at }) => {
                let next = next.as_deref().map_or("none".into(), text);
                let ended = ended_at.map_or("never".into(), |at| at.0.to_string());
                format!("note next={next} ended={ended}")
            }
            pace::Effect::Passed => "passed".into(),
            pace::Effect::Rest(time) => format!("rest {time:?}"),
        };
        effects.iter().map(show).collect()
    }
}

struct ReapScript(Reap);

fn numbers(text: &str) -> BTreeSet<usize> {
    text.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().expect("a number")).collect()
}

impl ReapScript {
    fn begin(words: &[&str]) -> ReapScript {
        let o = options(words);
        let records: usize = o["records"].parse().expect("a number");
        // All, if the script does not say.
        let ripe = o.get("ripe").map_or((0..records).collect(), |text| numbers(text));
        ReapScript(Reap::new(records, ripe, nodes(o.get("others").map_or("", String::as_str))))
    }
}

impl Scripted for ReapScript {
    fn feed(&mut self, now: Mono, words: &[&str]) -> Vec<String> {
        let event = match words {
            ["start"] => reap::Event::Start,
            ["holds", from] => reap::Event::Holds(node(from), BTreeSet::new()),
            ["holds", from, which] => reap::Event::Holds(node(from), numbers(which)),
            ["taken", from] => reap::Event::Taken(node(from)),
            ["purged", from] => reap::Event::Purged(node(from)),
            ["failed", from] => reap::Event::Failed(node(from)),
            ["purged-own", count] => reap::Event::PurgedOwn(count.parse().expect("a number")),
            other => panic!("no event of a collection: {other:?}"),
        };
        let mut effects = Vec::new();
        self.0.step(now, event, &mut effects);
        self.0.check_invariants();
        let list = |all: &BTreeSet<usize>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let show = |effect: &reap::Effect| match effect {
            reap::Effect::Ask(to) => format!("ask {}", name(*to)),
            reap::Effect::Push(to, which) => format!("push {} {}", name(*to), list(which)),
            reap::Effect::Purge(to, which) => format!("purge {} {}", name(*to), list(which)),
            reap::Effect::PurgeOwn(which) => format!("purge-own {}", list(which)),
            reap::Effect::Finish { purged, confirmed, waits_for } => {
                let waits: Vec<String> = waits_for.iter().map(|node| name(*node)).collect();
                let (confirmed, waits) = (list(confirmed), waits.join(","));
                format!("finish purged={purged} confirmed={confirmed} waits-for={waits}")
            }
        };
        effects.iter().map(show).collect()
    }
}

/// Runs a script; what it should be, as the machines do it.
fn run(text: &str) -> String {
    let mut out = String::new();
    let mut machine: Option<Box<dyn Scripted>> = None;
    let mut now = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => out.push('\n'),
            ["#", ..] => writeln!(out, "{line}").expect("a String takes all"),
            ["put", plan @ ..] => {
                machine = Some(Box::new(PutScript::begin(plan)));
                writeln!(out, "{line}").expect("a String takes all");
            }
            ["read", plan @ ..] => {
                machine = Some(Box::new(ReadScript::begin(plan)));
                writeln!(out, "{line}").expect("a String takes all");
            }
            ["hints", pace @ ..] => {
                machine = Some(Box::new(HintScript::begin(pace)));
                writeln!(out, "{line}").expect("a String takes all");
            }
            ["heal", plan @ ..] => {
                machine = Some(Box::new(HealScript::begin(plan)));
                writeln!(out, "{line}").expect("a String takes all");
            }
            ["reap", plan @ ..] => {
                machine = Some(Box::new(ReapScript::begin(plan)));
                writeln!(out, "{line}").expect("a String takes all");
            }
            ["scrub", pace @ ..] => {
                machine = Some(Box::new(ScrubScript::begin(pace)));
                writeln!(out, "{line}").expect("a String takes all");
            }
            ["exchange"] => {
                machine = Some(Box::new(ExchangeScript(Exchange::new())));
                writeln!(out, "{line}").expect("a String takes all");
            }
            ["at", time] => {
                now = time.parse::<u64>().expect("a number") - 1;
                writeln!(out, "{line}").expect("a String takes all");
            }
            [">", event @ ..] => {
                now += 1;
                let machine = machine.as_mut().expect("a plan comes first");
                writeln!(out, "{line}").expect("a String takes all");
                for effect in machine.feed(Mono(now), event) {
                    writeln!(out, "{effect}").expect("a String takes all");
                }
            }
            _ => {} // An expected effect: written anew from what the machine does.
        }
    }
    out
}

#[test]
fn every_script_is_what_the_machine_does() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folder = |name: &str| std::fs::read_dir(root.join(name)).expect("a folder of scripts");
    let entries = folder("src/quorum/scripts").chain(folder("src/hinted/scripts"));
    let entries = entries.chain(folder("src/antientropy/scripts")).chain(folder("src/tombstone/scripts"));
    let entries = entries.chain(folder("src/replica/scripts"));
    let mut scripts: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    scripts.sort();
    assert!(scripts.len() >= 43, "one script for each rule");
    for path in scripts {
        let text = std::fs::read_to_string(&path).expect("a script");
        assert!(text.starts_with("# Rule "), "{}: the first line states the rule", path.display());
        let actual = run(&text);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, actual).expect("a script");
        } else {
            assert_eq!(actual, text, "{}", path.display());
        }
    }
}

#[test]
fn a_wrong_script_is_found_out() {
    let text = "# Rule 3.\nput me=n1 homes=n1,n2,n3 w=2\n> start\nfinished\n";
    assert_ne!(run(text), text);
}
