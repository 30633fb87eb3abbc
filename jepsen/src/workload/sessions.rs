//! Sessions under the smallest quorums: each client carries a token from answer to answer, every request goes to any
//! node, and now and then it begins a new session.
//!
//! `r = w = 1` alone promises nothing of a client's own writes, so what holds is by the token.

use bytes::Bytes;
use rand::RngExt as _;

use super::append;
use super::register;
use super::worker::{Memory, digits};
use super::{Keys, Step, Worker, Workload, keyspace};
use crate::checker::{Checker, Convergence, Durable, NeverFromNowhere};
use crate::client::Answer;
use crate::edn::Edn;
use crate::proto;

/// How often a client begins a new session.
const ANEW: f64 = 0.01;

/// Sessions.
pub struct Sessions {
    siblings: bool,
}

impl Sessions {
    /// In an `lww` keyspace.
    pub const fn lww() -> Sessions {
        Sessions { siblings: false }
    }

    /// In a `siblings` keyspace.
    pub const fn siblings() -> Sessions {
        Sessions { siblings: true }
    }

    /// The number of the client's session, perhaps of a new one.
    fn session(worker: &mut Worker) -> [(&'static str, Edn); 1] {
        if worker.session.is_none() || worker.rng.random_bool(ANEW) {
            worker.session = Some(Bytes::new());
            worker.sessions += 1;
        }
        [("session", Edn::from(worker.thread * 1_000_000 + worker.sessions))]
    }

    async fn read(&self, worker: &mut Worker, key: u64) {
        let session = Sessions::session(worker);
        worker.invoke("read", key, Edn::Nil, &session);
        let answer = worker.get(key, None).await;
        if let Answer::Ok(found) = &answer {
            worker.session = Some(found.session.clone());
        }
        match self.siblings {
            true => append::note_read(worker, key, &answer, &session),
            false => register::note_read(worker, key, &answer, &session),
        }
    }

    async fn write(&self, worker: &mut Worker, key: u64) {
        let session = Sessions::session(worker);
        // Without a context in an `lww` keyspace, and now and then among siblings.
        let blind = !self.siblings || worker.rng.random_bool(0.1);
        let known = worker.memory.get(&key).filter(|_| !blind).cloned().unwrap_or_default();
        let (f, value) = (if self.siblings { "append" } else { "write" }, worker.new_value());
        let mut extra = session.to_vec();
        if self.siblings {
            extra.push(("covers", append::edn(&known.seen)));
        }
        worker.invoke(f, key, Edn::from(value), &extra);
        let answer = worker.put(key, None, digits(value), known.context).await;
        if let Answer::Ok(wrote) = &answer {
            worker.session = Some(wrote.session.clone());
            worker.memory.insert(key, Memory { context: wrote.context.clone(), seen: vec![value] });
            extra.push(("stamp", Edn::from(wrote.stamp)));
        }
        worker.complete(f, key, Edn::from(value), &answer, &extra);
    }
}

impl Workload for Sessions {
    fn name(&self) -> &'static str {
        if self.siblings { "sessions-siblings" } else { "sessions" }
    }

    fn about(&self) -> &'static str {
        match self.siblings {
            true => "siblings, r = w = 1: sessions through any node",
            false => "lww, r = w = 1: sessions through any node",
        }
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        keyspace(if self.siblings { "siblings" } else { "lww" }, 1, 1)
    }

    /// Few steps each, so that a session meets more keys than its token can name.
    fn keys(&self) -> Keys {
        Keys::new(6, 50, 150)
    }

    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a> {
        Box::pin(async move {
            worker.hop();
            if worker.rng.random_bool(0.6) {
                self.read(worker, key).await;
            } else if self.siblings {
                // What is there is replaced, or siblings would pile up.
                self.read(worker, key).await;
                worker.hop();
                self.write(worker, key).await;
            } else {
                self.write(worker, key).await;
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
            match self.siblings {
                true => append::read_all(worker, key, node).await,
                false => register::read_all(worker, key, node).await,
            }
        })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![
            Box::new(crate::checker::Sessions),
            Box::new(Durable),
            Box::new(NeverFromNowhere),
            Box::new(Convergence),
        ]
    }
}
