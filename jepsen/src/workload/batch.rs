//! Registers that are written and read in batches: each item is an operation of its own, with an outcome of its own,
//! and is judged as if it had come alone.

use rand::RngExt as _;

use super::register;
use super::worker::digits;
use super::{Keys, Step, Worker, Workload, keyspace};
use crate::checker::{Batches, Checker, Convergence, Monotonic, NeverFromNowhere, RegisterAtomic, Stamps};
use crate::client::{Answer, Found, Status, Wrote};
use crate::edn::Edn;
use crate::proto;

/// Most items of a batch.
const ITEMS: usize = 8;
/// How many keys near the drawn one a batch is about.
const NEAR: u64 = 4;

/// Batches of puts and gets.
pub struct Batch;

/// An item: its key, and the value that it writes, if it does.
type Drawn = (u64, Option<u64>);

fn draw(worker: &mut Worker, key: u64) -> Vec<Drawn> {
    let count = worker.rng.random_range(2..=ITEMS);
    let mut item = || {
        // Never a key that is not drawn yet: what is read at the end goes up to the last that was.
        let key = key.saturating_sub(worker.rng.random_range(0..NEAR));
        let writes = worker.rng.random_bool(0.5);
        (key, writes.then(|| worker.new_value()))
    };
    (0..count).map(|_| item()).collect()
}

async fn batch(worker: &mut Worker, key: u64) {
    let (items, number) = (draw(worker, key), worker.new_value());
    let extra = |at: usize| {
        vec![
            ("batch", Edn::from(number)),
            ("item", Edn::from(at as u64)),
            ("items", Edn::from(items.len() as u64)),
        ]
    };
    for (at, (key, value)) in items.iter().enumerate() {
        let f = if value.is_some() { "write" } else { "read" };
        worker.invoke_beside(at, f, *key, value.map_or(Edn::Nil, Edn::from), &extra(at));
    }
    let asked: Vec<_> = items.iter().map(|(key, value)| (*key, value.map(digits))).collect();
    let statuses = worker.batch(&asked).await;
    for (at, ((key, value), status)) in items.iter().zip(statuses).enumerate() {
        let mut extra = extra(at);
        let told = value.map_or(Edn::Nil, Edn::from);
        match (value, status) {
            (Some(_), Status::Wrote(answer)) => {
                if let Answer::Ok(wrote) = &answer {
                    extra.push(("stamp", Edn::from(wrote.stamp)));
                }
                worker.complete_beside(at, "write", *key, told, &answer, &extra);
            }
            (None, Status::Found(answer)) => {
                let (read, more) = register::told(&answer);
                extra.extend(more);
                worker.complete_beside(at, "read", *key, read, &answer, &extra);
            }
            // Nothing is said of it, or what is said is of another kind of request.
            (value, _) => {
                extra.push(("unreported", Edn::Bool(true)));
                let why = "the answer has no status for it".to_owned();
                match value {
                    Some(_) => {
                        let answer: Answer<Wrote> = Answer::Info(why);
                        worker.complete_beside(at, "write", *key, told, &answer, &extra);
                    }
                    None => {
                        let answer: Answer<Found> = Answer::Fail(why);
                        worker.complete_beside(at, "read", *key, told, &answer, &extra);
                    }
                }
            }
        }
    }
}

impl Workload for Batch {
    fn name(&self) -> &'static str {
        "batch"
    }

    fn about(&self) -> &'static str {
        "lww: registers, several in a batch, each with an outcome of its own"
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        keyspace("lww", 2, 2)
    }

    fn keys(&self) -> Keys {
        Keys::new(4, 30, 120)
    }

    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a> {
        Box::pin(async move {
            match worker.rng.random_range(0..10) {
                0..4 => batch(worker, key).await,
                // Alone, so that batches meet requests that are none.
                4..8 => register::read(worker, key).await,
                _ => register::write(worker, key, &[]).await,
            }
        })
    }

    fn final_read<'a>(
        &'a self,
        worker: &'a mut Worker,
        key: u64,
        node: usize,
    ) -> std::pin::Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(register::read_all(worker, key, node))
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![
            Box::new(Batches),
            Box::new(RegisterAtomic::stamped()),
            Box::new(Stamps),
            Box::new(Monotonic),
            Box::new(NeverFromNowhere),
            Box::new(Convergence),
        ]
    }
}
