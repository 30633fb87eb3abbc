//! Events in pairs: operations, spans of faults, and whether a history is well made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use super::{Event, History, Kind, Operation, Process};
use crate::edn::Edn;

/// A span in which the nemesis was at work.
#[derive(Debug, Clone, PartialEq)]
pub struct Period {
    /// What it did: `NAME` of `start-NAME`.
    pub name: String,
    /// When it began, in nanoseconds.
    pub began: u64,
    /// When it was over; equal to `began` for what lasts no time, the end of the run if nothing stopped it.
    pub ended: u64,
    /// The value of the event that began it.
    pub value: Edn,
}

/// What is wrong with a history itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The place of the event in the list, from 0.
    pub place: usize,
    /// What is wrong.
    pub what: &'static str,
}

impl Display for Broken {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}", self.place, self.what)
    }
}

impl std::error::Error for Broken {}

impl History {
    /// The clients' operations, in the order of their invocations. Events that are not well made are left out:
    /// `validate` finds them.
    pub fn operations(&self) -> Vec<Operation> {
        let last = self.events.last().map_or(0, |event| event.time);
        let mut operations: Vec<Operation> = Vec::with_capacity(self.events.len() / 2);
        let mut open: BTreeMap<u64, usize> = BTreeMap::new();
        for event in &self.events {
            let Process::Client(process) = event.process else { continue };
            if event.kind == Kind::Invoke {
                if let Some(operation) = begun(event, process, last) {
                    open.insert(process, operations.len());
                    operations.push(operation);
                }
            } else if let Some(operation) = open.remove(&process).and_then(|at| operations.get_mut(at)) {
                complete(operation, event);
            }
        }
        operations
    }

    /// The spans of faults, in the order of their beginnings. A second start of one name before its stop
    /// changes nothing; a second stop after one makes the span longer (Jepsen writes each twice: before it is
    /// done and after).
    pub fn nemesis_periods(&self) -> Vec<Period> {
        let last = self.events.last().map_or(0, |event| event.time);
        let mut periods: Vec<Period> = Vec::new();
        // By name: the latest span, and whether it is open.
        let mut latest: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
        for event in self.events.iter().filter(|event| event.process == Process::Nemesis) {
            let period = |name: &str, ended| Period {
                name: name.to_owned(),
                began: event.time,
                ended,
                value: event.value.clone(),
            };
            if let Some(name) = event.f.strip_prefix("start-") {
                if !latest.get(name).is_some_and(|(_, open)| *open) {
                    latest.insert(name, (periods.len(), true));
                    periods.push(period(name, last));
                }
            } else if let Some(name) = event.f.strip_prefix("stop-") {
                if let Some((at, open)) = latest.get_mut(name)
                    && let Some(stopped) = periods.get_mut(*at)
                {
                    stopped.ended = event.time;
                    *open = false;
                }
            } else {
                periods.push(period(&event.f, event.time));
            }
        }
        periods
    }

    /// Whether the history is well made: indices dense, times in order, one operation at a time for each
    /// process, none after an `info`, a completion of the same `f` as its invocation, values `[k v]`.
    pub fn validate(&self) -> Result<(), Broken> {
        let mut open: BTreeMap<u64, &Event> = BTreeMap::new();
        let mut gone: BTreeSet<u64> = BTreeSet::new();
        let mut time = 0;
        for (place, event) in self.events.iter().enumerate() {
            let broken = |what| Err(Broken { place, what });
            if usize::try_from(event.index) != Ok(place) {
                return broken("its index is not its place");
            }
            if event.time < time {
                return broken("it is earlier than the one before");
            }
            time = event.time;
            let Process::Client(process) = event.process else {
                if event.kind != Kind::Info {
                    return broken("the nemesis only has info");
                }
                continue;
            };
            let Some((key, _)) = event.keyed() else { return broken("its value is not [k v]") };
            if gone.contains(&process) {
                return broken("its process ended with an info");
            }
            if event.kind == Kind::Invoke {
                if open.insert(process, event).is_some() {
                    return broken("its process has an operation under way");
                }
                continue;
            }
            match open.remove(&process) {
                None => return broken("it completes nothing"),
                Some(invocation) if invocation.f != event.f => return broken("it completes another f"),
                Some(invocation) if invocation.keyed().map(|(own, _)| own) != Some(key) => {
                    return broken("it completes an operation on another key");
                }
                Some(_) => {}
            }
            if event.kind == Kind::Info {
                gone.insert(process);
            }
        }
        Ok(())
    }
}

fn begun(event: &Event, process: u64, last: u64) -> Option<Operation> {
    let (key, input) = event.keyed()?;
    Some(Operation {
        process,
        f: event.f.clone(),
        key,
        input: input.clone(),
        output: input.clone(),
        outcome: Kind::Info,
        begin: event.index,
        end: u64::MAX,
        began: event.time,
        ended: last,
        extra: event.extra.clone(),
    })
}

fn complete(operation: &mut Operation, event: &Event) {
    if let Some((_, output)) = event.keyed() {
        operation.output = output.clone();
    }
    operation.outcome = event.kind;
    operation.ended = event.time;
    if event.kind != Kind::Info {
        operation.end = event.index;
    }
    operation.extra.extend(event.extra.iter().map(|(name, value)| (name.clone(), value.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(text: &str) -> History {
        History::parse(text).expect("a history")
    }

    #[test]
    fn operations_are_invocations_with_their_completions() {
        let history = history(
            "{:index 0, :time 10, :process 1, :type :invoke, :f :read, :value [4 nil], :node \"n1\"}
             {:index 1, :time 11, :process 2, :type :invoke, :f :write, :value [4 7]}
             {:index 2, :time 12, :process 3, :type :invoke, :f :write, :value [5 8]}
             {:index 3, :time 13, :process 4, :type :invoke, :f :write, :value [5 9]}
             {:index 4, :time 14, :process 1, :type :ok, :f :read, :value [4 7], :stamp 3}
             {:index 5, :time 15, :process :nemesis, :type :info, :f :start-kill, :value nil}
             {:index 6, :time 16, :process 2, :type :info, :f :write, :value [4 7], :error \"lost\"}
             {:index 7, :time 17, :process 3, :type :fail, :f :write, :value [5 8]}
             {:index 8, :time 18, :process :nemesis, :type :info, :f :stop-kill, :value nil}",
        );
        assert_eq!(history.validate(), Ok(()));
        let operations = history.operations();
        let seen: Vec<_> =
            operations.iter().map(|op| (op.key, op.outcome, op.begin, op.end, op.ended)).collect();
        let expected = [
            (4, Kind::Ok, 0, 4, 14),
            (4, Kind::Info, 1, u64::MAX, 16),
            (5, Kind::Fail, 2, 7, 17),
            (5, Kind::Info, 3, u64::MAX, 18),
        ];
        assert_eq!(seen, expected);
        assert_eq!(operations[0].output, Edn::Int(7));
        assert_eq!(operations[0].number("stamp"), Some(3));
        assert_eq!(operations[0].extra.len(), 2);
    }

    #[test]
    fn faults_have_spans() {
        let event = |time: u64, f: &str| {
            format!("{{:index 0, :time {time}, :process :nemesis, :type :info, :f :{f}, :value :x}}\n")
        };
        let text = [
            event(1, "start-kill"),
            event(2, "start-kill"),
            event(3, "power-cut"),
            event(4, "stop-kill"),
            event(5, "stop-kill"),
            event(6, "start-kill"),
            event(7, "stop-never"),
            event(9, "start-partition"),
            event(10, "bump"),
        ];
        let periods = history(&text.concat()).nemesis_periods();
        let spans: Vec<_> = periods.iter().map(|p| (p.name.as_str(), p.began, p.ended)).collect();
        let expected =
            [("kill", 1, 5), ("power-cut", 3, 3), ("kill", 6, 10), ("partition", 9, 10), ("bump", 10, 10)];
        assert_eq!(spans, expected);
    }

    #[test]
    fn a_history_that_is_not_well_made_is_found() {
        let wrong = |lines: &[(u64, u64, &str, &str)]| {
            let line = |(index, time, process, rest): &(u64, u64, &str, &str)| {
                format!("{{:index {index}, :time {time}, :process {process}, :type {rest}}}")
            };
            let text: Vec<_> = lines.iter().map(line).collect();
            history(&text.join("\n")).validate().expect_err("broken").what
        };
        let invoke = ":invoke, :f :read, :value [0 nil]";
        assert_eq!(wrong(&[(1, 0, "1", invoke)]), "its index is not its place");
        assert_eq!(wrong(&[(0, 5, "1", invoke), (1, 4, "2", invoke)]), "it is earlier than the one before");
        assert_eq!(
            wrong(&[(0, 0, "1", invoke), (1, 0, "1", invoke)]),
            "its process has an operation under way"
        );
        assert_eq!(wrong(&[(0, 0, "1", ":ok, :f :read, :value [0 1]")]), "it completes nothing");
        assert_eq!(wrong(&[(0, 0, "1", ":invoke, :f :read, :value 1")]), "its value is not [k v]");
        assert_eq!(wrong(&[(0, 0, ":nemesis", ":ok, :f :read, :value 1")]), "the nemesis only has info");
        let begun = (0, 0, "1", invoke);
        assert_eq!(wrong(&[begun, (1, 0, "1", ":ok, :f :write, :value [0 1]")]), "it completes another f");
        assert_eq!(
            wrong(&[begun, (1, 0, "1", ":ok, :f :read, :value [1 1]")]),
            "it completes an operation on another key"
        );
        let info = (1, 0, "1", ":info, :f :read, :value [0 nil]");
        assert_eq!(wrong(&[begun, info, (2, 0, "1", invoke)]), "its process ended with an info");
    }
}
