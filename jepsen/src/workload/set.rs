//! Sets in a `siblings` keyspace: adds of unique elements, siblings merged by their union.
//!
//! `set-once` sends each add two or three times under one request id, through whichever nodes, whatever the answers.
//! `set-sloppy` lets fallbacks stand in: until the hints are home reads may lack elements, and none may be lost.

use std::collections::BTreeSet;

use bytes::Bytes;
use rand::RngExt as _;

use super::worker::digits;
use super::{Keys, Step, Worker, Workload, keyspace, merged};
use crate::checker::{AppliedOnce, Checker, Convergence, NeverFromNowhere, SetFull};
use crate::client::{Answer, Found};
use crate::edn::Edn;
use crate::proto;

/// Adds and reads.
#[derive(Default)]
pub struct Set {
    once: bool,
    sloppy: bool,
}

impl Set {
    /// Each add is sent several times.
    pub fn once() -> Set {
        Set { once: true, ..Set::default() }
    }

    /// Fallbacks stand in.
    pub fn sloppy() -> Set {
        Set { sloppy: true, ..Set::default() }
    }
}

/// All elements; twice if one is there beside what has replaced it, or as two siblings of its own. In two lists it
/// may be: clients may merge at the same time.
fn list(found: &Found) -> Vec<u64> {
    let (mut alone, mut merged) = (Vec::new(), BTreeSet::new());
    for (value, _) in &found.siblings {
        // What is no number is nobody's: 0 was never added.
        let text = String::from_utf8_lossy(value);
        let of_one: Vec<u64> = text.split(',').map(|element| element.parse().unwrap_or(0)).collect();
        match of_one[..] {
            [element] => alone.push(element),
            _ => merged.extend(of_one),
        }
    }
    alone.extend(merged);
    alone.sort_unstable();
    alone
}

fn elements(found: &Found) -> BTreeSet<u64> {
    list(found).into_iter().collect()
}

fn text(elements: &BTreeSet<u64>) -> String {
    elements.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

fn edn(elements: Vec<u64>) -> Edn {
    Edn::Vector(elements.into_iter().map(Edn::from).collect())
}

fn note_read(worker: &mut Worker, key: u64, answer: &Answer<Found>, extra: &[(&str, Edn)]) {
    let value = match answer {
        Answer::Ok(found) => edn(list(found)),
        _ => Edn::Nil,
    };
    worker.complete("read", key, value, answer, extra);
}

impl Workload for Set {
    fn name(&self) -> &'static str {
        match (self.once, self.sloppy) {
            (true, _) => "set-once",
            (_, true) => "set-sloppy",
            _ => "set",
        }
    }

    fn about(&self) -> &'static str {
        match (self.once, self.sloppy) {
            (true, _) => "siblings: unique adds, each sent several times under one request id",
            (_, true) => "siblings, sloppy: unique adds, merged by union",
            _ => "siblings: unique adds, merged by union",
        }
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        proto::CreateKeyspaceRequest { sloppy: self.sloppy, ..keyspace("siblings", 2, 2) }
    }

    fn keys(&self) -> Keys {
        Keys::new(4, 100, 400)
    }

    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a> {
        Box::pin(async move {
            if worker.rng.random_bool(0.4) {
                worker.invoke("read", key, Edn::Nil, &[]);
                let answer = worker.get(key, None).await;
                return note_read(worker, key, &answer, &[]);
            }
            let element = worker.new_value();
            worker.invoke("add", key, Edn::from(element), &[]);
            let add = |set: &mut BTreeSet<u64>| {
                set.insert(element);
            };
            let answer = match self.once {
                // Alone, as a sibling of its own.
                true if worker.rng.random_bool(0.5) => {
                    worker.put_again(key, element, digits(element), Bytes::new()).await
                }
                true => match worker.get(key, None).await {
                    Answer::Ok(found) => {
                        let mut merged = elements(&found);
                        add(&mut merged);
                        worker.put_again(key, element, text(&merged).into(), found.context).await
                    }
                    Answer::Fail(why) | Answer::Info(why) => Answer::Fail(format!("the read before: {why}")),
                },
                false => merged::update(worker, key, elements, add, |set| text(set).into()).await,
            };
            worker.complete("add", key, Edn::from(element), &answer, &[]);
        })
    }

    fn final_read<'a>(
        &'a self,
        worker: &'a mut Worker,
        key: u64,
        node: usize,
    ) -> std::pin::Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(async move {
            worker.invoke("read", key, Edn::Nil, &[]);
            let answer = worker.get_all(key, node).await;
            let fields = worker.final_fields();
            note_read(worker, key, &answer, &fields);
            matches!(answer, Answer::Ok(_))
        })
    }

    fn waits_for_hints(&self) -> bool {
        self.sloppy
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        let mut checkers: Vec<Box<dyn Checker>> = vec![
            Box::new(SetFull { linearizable: !self.sloppy }),
            Box::new(NeverFromNowhere),
            Box::new(Convergence),
        ];
        if self.once {
            checkers.push(Box::new(AppliedOnce));
        }
        checkers
    }
}
