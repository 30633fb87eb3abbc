//! A counter in a `siblings` keyspace: each client has its own totals of what it added and took away, of which
//! the greatest are merged (a PN-counter, Shapiro et al. 2011).
//!
//! A client's totals hold all that it did or may have done; what surely failed is taken back. So an add of
//! which nobody knows may show at the client's next one.

use std::collections::BTreeMap;

use rand::RngExt as _;

use super::{Keys, Step, Worker, Workload, keyspace, merged};
use crate::checker::{self, Checker, Convergence};
use crate::client::{Answer, Found};
use crate::edn::Edn;
use crate::proto;

/// Adds, positive and negative, and reads.
pub struct Counter;

/// Added and taken away, by client.
type Totals = BTreeMap<u64, (u64, u64)>;

fn parse(text: &str) -> Option<Totals> {
    let entry = |entry: &str| {
        let mut parts = entry.split(':').map(|part| part.parse::<u64>().ok());
        Some((parts.next()??, (parts.next()??, parts.next()??)))
    };
    text.split(';').map(entry).collect()
}

fn totals(found: &Found) -> Totals {
    let mut merged = Totals::new();
    for (value, _) in &found.siblings {
        for (client, (added, taken)) in parse(&String::from_utf8_lossy(value)).unwrap_or_default() {
            let own = merged.entry(client).or_default();
            *own = (own.0.max(added), own.1.max(taken));
        }
    }
    merged
}

fn text(totals: &Totals) -> String {
    totals
        .iter()
        .map(|(client, (added, taken))| format!("{client}:{added}:{taken}"))
        .collect::<Vec<_>>()
        .join(";")
}

fn value(totals: &Totals) -> i64 {
    let signed = |sum: u64| i64::try_from(sum).unwrap_or(i64::MAX);
    totals.values().map(|(added, taken)| signed(*added) - signed(*taken)).sum()
}

fn note_read(worker: &mut Worker, key: u64, answer: &Answer<Found>, extra: &[(&str, Edn)]) {
    let read = match answer {
        Answer::Ok(found) => Edn::Int(value(&totals(found))),
        _ => Edn::Nil,
    };
    worker.complete("read", key, read, answer, extra);
}

impl Workload for Counter {
    fn name(&self) -> &'static str {
        "counter"
    }

    fn about(&self) -> &'static str {
        "siblings: adds and subtractions, merged by client"
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        keyspace("siblings", 2, 2)
    }

    fn keys(&self) -> Keys {
        Keys::new(4, 50, 300)
    }

    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a> {
        Box::pin(async move {
            if worker.rng.random_bool(0.4) {
                worker.invoke("read", key, Edn::Nil, &[]);
                let answer = worker.get(key, None).await;
                return note_read(worker, key, &answer, &[]);
            }
            let delta = if worker.rng.random_bool(0.7) { 1_i64 } else { -1 };
            worker.invoke("add", key, Edn::Int(delta), &[]);
            let before = worker.totals.get(&key).copied().unwrap_or_default();
            let after = if delta > 0 { (before.0 + 1, before.1) } else { (before.0, before.1 + 1) };
            worker.totals.insert(key, after);
            let client = worker.thread;
            let add = |totals: &mut Totals| {
                totals.insert(client, after);
            };
            let answer = merged::update(worker, key, totals, add, |totals| text(totals).into()).await;
            if matches!(answer, Answer::Fail(_)) {
                worker.totals.insert(key, before);
            }
            worker.complete("add", key, Edn::Int(delta), &answer, &[]);
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
        vec![Box::new(checker::Counter), Box::new(Convergence)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_merge_by_their_greatest() {
        let sibling = |text: &'static str| (bytes::Bytes::from_static(text.as_bytes()), 1);
        let found = Found { siblings: vec![sibling("0:3:1;1:2:0"), sibling("0:2:4")], ..Default::default() };
        let merged = totals(&found);
        assert_eq!(merged, Totals::from([(0, (3, 4)), (1, (2, 0))]));
        assert_eq!((value(&merged), text(&merged)), (1, "0:3:4;1:2:0".to_owned()));
        assert_eq!(parse(&text(&merged)), Some(merged));
    }
}
