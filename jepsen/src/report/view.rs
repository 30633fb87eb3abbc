//! What all reports need of an outcome: operations as pairs of events, faults, the events of anomalies.
//!
//! Pairs are made here, not by `History::operations`: pictures need both events, of an `info` too.

use std::collections::{BTreeMap, BTreeSet};

use super::{Outcome, Test};
use crate::checker::{Valid, Verdict};
use crate::history::Period;
use crate::history::{Event, Kind, Process};

/// An operation of a client.
#[derive(Debug, Clone, Copy)]
pub struct Op<'a> {
    /// Its invocation.
    pub begin: &'a Event,
    /// Its completion, if there is one.
    pub end: Option<&'a Event>,
    /// The client's number.
    pub process: u64,
}

impl Op<'_> {
    /// `Ok`, `Fail` or `Info`.
    pub fn outcome(&self) -> Kind {
        self.end.map_or(Kind::Info, |event| event.kind)
    }

    /// From invocation to completion, in nanoseconds.
    pub fn latency(&self) -> Option<u64> {
        self.end.map(|event| event.time.saturating_sub(self.begin.time))
    }
}

/// How many operations ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Took effect.
    pub ok: u64,
    /// Surely did not.
    pub fail: u64,
    /// Unknown.
    pub info: u64,
}

impl Counts {
    /// All of them.
    pub fn all(&self) -> u64 {
        self.ok + self.fail + self.info
    }

    /// Those of one outcome.
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Ok => self.ok,
            Kind::Fail => self.fail,
            Kind::Info | Kind::Invoke => self.info,
        }
    }

    fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Ok => self.ok += 1,
            Kind::Fail => self.fail += 1,
            Kind::Info | Kind::Invoke => self.info += 1,
        }
    }
}

/// An outcome, made ready to be drawn.
#[derive(Debug)]
pub struct View<'a> {
    /// What was run.
    pub test: &'a Test,
    /// When it began, as its directory is named.
    pub when: &'a str,
    /// The worst verdict.
    pub valid: Valid,
    /// The checkers' verdicts.
    pub verdicts: &'a [(String, Verdict)],
    /// In the order of their invocations.
    pub ops: Vec<Op<'a>>,
    /// What the nemesis did.
    pub nemesis: Vec<&'a Event>,
    /// When faults were at work.
    pub periods: Vec<Period>,
    /// The faults' names, in order.
    pub faults: Vec<String>,
    /// The operations' names, in order.
    pub fs: Vec<&'a str>,
    /// The events of anomalies.
    pub guilty: BTreeSet<u64>,
    /// The last event's time.
    pub end: u64,
}

impl<'a> View<'a> {
    /// Makes an outcome ready.
    pub fn new(outcome: &Outcome<'a>, when: &'a str) -> View<'a> {
        let events = &outcome.history.events;
        let (mut ops, mut open): (Vec<Op>, BTreeMap<u64, usize>) = Default::default();
        for event in events {
            let Process::Client(process) = event.process else { continue };
            if event.kind == Kind::Invoke {
                open.insert(process, ops.len());
                ops.push(Op { begin: event, end: None, process });
            } else if let Some(at) = open.remove(&process) {
                ops[at].end = Some(event);
            }
        }
        let periods = outcome.history.nemesis_periods();
        let faults: BTreeSet<&String> = periods.iter().map(|period| &period.name).collect();
        let fs: BTreeSet<&str> = ops.iter().map(|op| op.begin.f.as_str()).collect();
        let anomalies = outcome.verdicts.iter().flat_map(|(_, verdict)| &verdict.anomalies);
        View {
            test: outcome.test,
            when,
            valid: outcome.valid(),
            verdicts: outcome.verdicts,
            nemesis: events.iter().filter(|event| event.process == Process::Nemesis).collect(),
            faults: faults.into_iter().cloned().collect(),
            fs: fs.into_iter().collect(),
            guilty: anomalies.flat_map(|anomaly| anomaly.events.iter().copied()).collect(),
            end: events.iter().map(|event| event.time).max().unwrap_or(0),
            ops,
            periods,
        }
    }

    /// How the operations of one name, or all, ended.
    pub fn counts(&self, f: Option<&str>) -> Counts {
        let mut counts = Counts::default();
        for op in self.ops.iter().filter(|op| f.is_none_or(|f| op.begin.f == f)) {
            counts.add(op.outcome());
        }
        counts
    }

    /// The longest time in which nothing was acknowledged: when it began, and how long it was. The beginning
    /// and the end of the run count as acknowledgements.
    pub fn longest_pause(&self) -> (u64, u64) {
        let oks = self.ops.iter().filter(|op| op.outcome() == Kind::Ok);
        let mut times: Vec<u64> = oks.filter_map(|op| op.end).map(|event| event.time).collect();
        times.extend([0, self.end]);
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| (pair[1] - pair[0], pair[0]));
        gaps.max_by_key(|(gap, at)| (*gap, u64::MAX - at)).map_or((0, 0), |(gap, at)| (at, gap))
    }

    /// The length of the run in seconds, never zero.
    pub fn seconds(&self) -> f64 {
        (self.end as f64 / 1e9).max(0.001)
    }

    /// The seconds that plots show: as long as the run was to be, unless it was broken off or went on longer.
    pub fn span(&self) -> f64 {
        let (seconds, wanted) = (self.seconds(), self.test.seconds as f64);
        if seconds > wanted * 0.9 { seconds.max(wanted) } else { seconds }
    }

    /// A fault's colour.
    pub fn color(&self, fault: &str) -> &'static str {
        let at = self.faults.iter().position(|name| name == fault).unwrap_or(0);
        super::markup::FAULTS[at % super::markup::FAULTS.len()]
    }
}
