//! The keyspace itself is dropped and made anew under its name, again and again, while clients write to it.
//!
//! One client alone drops and makes it, through one node, and then asks each node whether it has heard.

use rand::RngExt as _;

use super::register;
use super::{Keys, Step, Worker, Workload, keyspace};
use crate::checker::{Checker, Convergence, Lives, NeverFromNowhere};
use crate::client::Answer;
use crate::edn::Edn;
use crate::proto;

/// Who drops and makes it.
const MAKER: u64 = 0;
/// How often one of its steps is that.
const ANEW: f64 = 0.05;
/// How often it asks for the keyspace until it is there.
const ATTEMPTS: usize = 8;

/// A keyspace with many lives.
pub struct Recreate;

/// Which life the present node knows.
async fn learn(worker: &mut Worker) {
    worker.invoke("learn", 0, Edn::Nil, &[]);
    let answer = worker.keyspace_id().await;
    let id = match &answer {
        Answer::Ok(Some(id)) => Edn::from(u64::from(*id)),
        _ => Edn::Nil,
    };
    worker.complete("learn", 0, id, &answer, &[]);
}

/// Asks for the keyspace until there is one.
async fn make(worker: &mut Worker) {
    for _ in 0..ATTEMPTS {
        worker.invoke("create", 0, Edn::Nil, &[]);
        let answer = worker.create_keyspace("lww").await;
        let id = match &answer {
            Answer::Ok(id) => Edn::from(u64::from(*id)),
            _ => Edn::Nil,
        };
        worker.complete("create", 0, id, &answer, &[]);
        match answer {
            Answer::Ok(_) => return,
            Answer::Fail(why) if why.contains("AlreadyExists") => return,
            _ => worker.hop(),
        }
    }
}

async fn anew(worker: &mut Worker) {
    worker.hop();
    worker.invoke("drop", 0, Edn::Nil, &[]);
    let answer = worker.drop_keyspace().await;
    worker.complete("drop", 0, Edn::Nil, &answer, &[]);
    make(worker).await;
    for node in 0..worker.nodes() {
        worker.go(node);
        learn(worker).await;
    }
}

impl Workload for Recreate {
    fn name(&self) -> &'static str {
        "recreate"
    }

    fn about(&self) -> &'static str {
        "lww: a keyspace that is dropped and made anew under its name"
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        keyspace("lww", 2, 2)
    }

    fn keys(&self) -> Keys {
        Keys::new(5, 100, 400)
    }

    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a> {
        Box::pin(async move {
            match worker.rng.random_range(0..100) {
                _ if worker.thread == MAKER && worker.rng.random_bool(ANEW) => anew(worker).await,
                0..2 => learn(worker).await,
                2..50 => register::read(worker, key).await,
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
        Box::pin(async move {
            if key == 0 {
                // The last drop may be the last thing that was done.
                worker.go(node);
                make(worker).await;
                worker.go(node);
                learn(worker).await;
            }
            register::read_all(worker, key, node).await
        })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(Lives), Box::new(NeverFromNowhere), Box::new(Convergence)]
    }
}
