//! A set in a `siblings` keyspace: adds of unique elements, siblings merged by their union.

use std::collections::BTreeSet;

use rand::RngExt as _;

use super::{Keys, Step, Worker, Workload, keyspace, merged};
use crate::checker::{Checker, Convergence, NeverFromNowhere, SetFull};
use crate::client::{Answer, Found};
use crate::edn::Edn;
use crate::proto;

/// Adds and reads.
pub struct Set;

fn elements(found: &Found) -> BTreeSet<u64> {
    let texts = found.siblings.iter().map(|(value, _)| String::from_utf8_lossy(value).into_owned());
    // What is no number is nobody's: 0 was never added.
    texts.flat_map(|text| text.split(',').map(|e| e.parse().unwrap_or(0)).collect::<Vec<u64>>()).collect()
}

fn text(elements: &BTreeSet<u64>) -> String {
    elements.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

fn edn(elements: BTreeSet<u64>) -> Edn {
    Edn::Vector(elements.into_iter().map(Edn::from).collect())
}

fn note_read(worker: &mut Worker, key: u64, answer: &Answer<Found>, extra: &[(&str, Edn)]) {
    let value = match answer {
        Answer::Ok(found) => edn(elements(found)),
        _ => Edn::Nil,
    };
    worker.complete("read", key, value, answer, extra);
}

impl Workload for Set {
    fn name(&self) -> &'static str {
        "set"
    }

    fn about(&self) -> &'static str {
        "siblings: unique adds, merged by union"
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        keyspace("siblings", 2, 2)
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
            let answer = merged::update(worker, key, elements, add, |set| text(set).into()).await;
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

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(SetFull { linearizable: true }), Box::new(NeverFromNowhere), Box::new(Convergence)]
    }
}
