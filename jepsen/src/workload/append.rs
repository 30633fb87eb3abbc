//! Values in a `siblings` keyspace, each with the context of what its client had seen: nothing may vanish that
//! no write had seen, and nothing come back that an acknowledged write replaced.

use bytes::Bytes;
use rand::RngExt as _;

use super::worker::{Memory, digits, number};
use super::{Keys, Step, Worker, Workload, keyspace};
use crate::checker::{Causal, Checker, Convergence, NeverFromNowhere};
use crate::client::{Answer, Found};
use crate::edn::Edn;
use crate::proto;

/// Appends and reads.
pub struct Append;

/// A list for the history.
pub fn edn(values: &[u64]) -> Edn {
    Edn::Vector(values.iter().copied().map(Edn::from).collect())
}

/// Notes the end of a read.
pub fn note_read(worker: &mut Worker, key: u64, answer: &Answer<Found>, extra: &[(&str, Edn)]) {
    let mut value = Edn::Nil;
    if let Answer::Ok(found) = answer {
        let mut values: Vec<u64> =
            found.siblings.iter().map(|(value, _)| number(value).unwrap_or(0)).collect();
        values.sort_unstable();
        value = edn(&values);
        worker.memory.insert(key, Memory { context: found.context.clone(), seen: values });
    }
    worker.complete("read", key, value, answer, extra);
}

async fn read(worker: &mut Worker, key: u64) {
    worker.invoke("read", key, Edn::Nil, &[]);
    let answer = worker.get(key, None).await;
    note_read(worker, key, &answer, &[]);
}

/// Reads at the end, through one node.
pub async fn read_all(worker: &mut Worker, key: u64, node: usize) -> bool {
    worker.go(node);
    worker.invoke("read", key, Edn::Nil, &[]);
    let answer = worker.get_all(key, node).await;
    let fields = worker.final_fields();
    note_read(worker, key, &answer, &fields);
    matches!(answer, Answer::Ok(_))
}

async fn append(worker: &mut Worker, key: u64, memory: Memory) {
    let value = worker.new_value();
    worker.invoke("append", key, Edn::from(value), &[("covers", edn(&memory.seen))]);
    let answer = worker.put(key, None, digits(value), memory.context).await;
    if let Answer::Ok(wrote) = &answer {
        // The context of the answer covers what was written and what that replaced, which is gone.
        worker.memory.insert(key, Memory { context: wrote.context.clone(), seen: vec![value] });
    }
    worker.complete("append", key, Edn::from(value), &answer, &[]);
}

impl Workload for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    fn about(&self) -> &'static str {
        "siblings: writes with causal contexts"
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        keyspace("siblings", 2, 2)
    }

    fn keys(&self) -> Keys {
        Keys::new(6, 50, 300)
    }

    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a> {
        Box::pin(async move {
            let known = worker.memory.get(&key).cloned();
            match worker.rng.random_range(0..20) {
                0..8 => read(worker, key).await,
                // Blind: a sibling of all there is.
                8 => append(worker, key, Memory { context: Bytes::new(), seen: Vec::new() }).await,
                // With what it knows, however old: the answer of its own last write, perhaps.
                9..13 if known.is_some() => append(worker, key, known.unwrap_or_default()).await,
                _ => {
                    read(worker, key).await;
                    let known = worker.memory.get(&key).cloned().unwrap_or_default();
                    append(worker, key, known).await;
                }
            }
        })
    }

    fn final_read<'a>(
        &'a self,
        worker: &'a mut Worker,
        key: u64,
        node: usize,
    ) -> std::pin::Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(read_all(worker, key, node))
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(Causal { monotonic: true }), Box::new(NeverFromNowhere), Box::new(Convergence)]
    }
}
