//! Values that live for a few seconds, on many keys that are seldom written and often read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::RngExt as _;

use super::register;
use super::{Keys, Step, Worker, Workload, keyspace};
use crate::checker::{Checker, Expiry, NeverFromNowhere, Stamps};
use crate::client::Answer;
use crate::edn::Edn;
use crate::proto;

/// Times to live, in milliseconds.
const TTL_MS: std::ops::RangeInclusive<u64> = 1_500..=5_000;

/// Writes that expire.
pub struct Ttl;

/// The moment, by the wall clock of the suite, which nobody moves.
fn now() -> (&'static str, Edn) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ("at-ms", Edn::from(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

async fn read(worker: &mut Worker, key: u64, all_through: Option<usize>) -> bool {
    let mut extra = vec![now()];
    if let Some(node) = all_through {
        worker.go(node);
    }
    worker.invoke("read", key, Edn::Nil, &extra);
    let answer = match all_through {
        Some(node) => worker.get_all(key, node).await,
        None => worker.get(key, None).await,
    };
    if all_through.is_some() {
        extra.extend(worker.final_fields());
    }
    if let Answer::Ok(found) = &answer {
        extra.extend(found.expires.map(|at| ("expires-ms", Edn::from(at))));
    }
    register::note_read(worker, key, &answer, &extra);
    matches!(answer, Answer::Ok(_))
}

impl Workload for Ttl {
    fn name(&self) -> &'static str {
        "ttl"
    }

    fn about(&self) -> &'static str {
        "lww: values that live for a few seconds"
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        keyspace("lww", 2, 2)
    }

    fn keys(&self) -> Keys {
        Keys::new(60, 50, 150)
    }

    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a> {
        Box::pin(async move {
            if worker.rng.random_bool(0.9) {
                read(worker, key, None).await;
                return;
            }
            // A few live for ever, and are replaced by such as don't.
            let ttl = (!worker.rng.random_bool(0.1)).then(|| worker.rng.random_range(TTL_MS));
            worker.ttl = ttl.map(Duration::from_millis);
            let extra: Vec<_> = ttl.map(|ttl| ("ttl-ms", Edn::from(ttl))).into_iter().collect();
            register::write(worker, key, &extra).await;
        })
    }

    fn final_read<'a>(
        &'a self,
        worker: &'a mut Worker,
        key: u64,
        node: usize,
    ) -> std::pin::Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(read(worker, key, Some(node)))
    }

    // Not `Convergence`: between two reads at the end a value may expire.
    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(Expiry), Box::new(Stamps), Box::new(NeverFromNowhere)]
    }
}
