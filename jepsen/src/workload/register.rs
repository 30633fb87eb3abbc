//! Keys of an `lww` keyspace as registers: reads, writes, in one workload deletions too.

use bytes::Bytes;
use rand::RngExt as _;

use super::worker::{digits, number};
use super::{Keys, Step, Worker, Workload, keyspace};
use crate::checker::{
    Checker, Convergence, Monotonic, NeverFromNowhere, RegisterAtomic, RegisterRegular, Stale, Stamps,
};
use crate::client::{Answer, Found, Wrote};
use crate::edn::Edn;
use crate::proto;

/// What a mode promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Atomic,
    Regular,
    Nothing,
}

/// Registers.
pub struct Register {
    name: &'static str,
    about: &'static str,
    model: Model,
    r: u32,
    w: u32,
    deletes: bool,
    wide: bool,
    clocks: bool,
}

/// Tombstones are purged after a few seconds, so that a run sees keys come back if they can: nodes are away for longer.
const PURGING: &str = "[hints]\nwindow_ms = 4000\n\n[repair]\ninterval_ms = 2000\nmessage_age_ms = 3000\n\
                       tombstone_grace_ms = 8000\n";

impl Register {
    const fn new(name: &'static str, about: &'static str, model: Model, r: u32, w: u32) -> Register {
        Register { name, about, model, r, w, deletes: false, wide: false, clocks: false }
    }

    /// Majorities: an atomic register.
    pub const fn atomic() -> Register {
        Register::new("register", "lww, r = w = 2: an atomic register", Model::Atomic, 2, 2)
    }

    /// `r = 1, w = 3`: a regular one.
    pub const fn regular() -> Register {
        Register::new("register-regular", "lww, r = 1, w = 3: a regular register", Model::Regular, 1, 3)
    }

    /// `r = w = 1`: staleness is measured.
    pub const fn loose() -> Register {
        Register::new("register-loose", "lww, r = w = 1: how stale reads are", Model::Nothing, 1, 1)
    }

    /// Keys that are deleted and written anew.
    pub const fn delete() -> Register {
        let own = Register::new("delete", "lww: deleted and written anew", Model::Atomic, 2, 2);
        Register { deletes: true, ..own }
    }

    /// Many keys, few operations each.
    pub const fn many_keys() -> Register {
        let own = Register::new("many-keys", "lww: own writes and monotonic reads", Model::Atomic, 2, 2);
        Register { wide: true, ..own }
    }

    /// Blind writes through nodes whose clocks are off.
    pub const fn skewed() -> Register {
        let own = Register::new("lww-skewed", "lww: blind writes with moved clocks", Model::Atomic, 2, 2);
        Register { clocks: true, ..own }
    }

    async fn write(&self, worker: &mut Worker, key: u64, delete: bool) {
        // Half of the writes are blind; lww promises the same of both.
        let known = worker.memory.get(&key).map(|memory| memory.context.clone()).unwrap_or_default();
        let context = if worker.rng.random_bool(0.5) || self.clocks { Bytes::new() } else { known };
        let (f, value) = match delete {
            true => ("delete", None),
            false => ("write", Some(worker.new_value())),
        };
        let told = value.map_or(Edn::Nil, Edn::from);
        worker.invoke(f, key, told.clone(), &[]);
        let answer = match value {
            Some(value) => worker.put(key, None, digits(value), context).await,
            None => worker.delete(key, None, context).await,
        };
        note_write(worker, f, key, told, &answer, &[]);
    }
}

/// The value that a read found, and its stamp if that is told.
pub fn told(answer: &Answer<Found>) -> (Edn, Option<(&'static str, Edn)>) {
    let Answer::Ok(found) = answer else { return (Edn::Nil, None) };
    // A value that is no number is nobody's: 0 was never written.
    let value = found.siblings.first().map_or(Edn::Nil, |(v, _)| Edn::from(number(v).unwrap_or(0)));
    let stamp = match found.siblings.first() {
        Some((_, stamp)) => Some(*stamp),
        // A tombstone's stamp is not told.
        None => found.context.is_empty().then_some(0),
    };
    (value, stamp.map(|stamp| ("stamp", Edn::from(stamp))))
}

/// Notes the end of a read.
pub fn note_read(worker: &mut Worker, key: u64, answer: &Answer<Found>, more: &[(&str, Edn)]) {
    let (value, stamp) = told(answer);
    let mut extra = more.to_vec();
    extra.extend(stamp);
    if let Answer::Ok(found) = answer {
        worker.memory.entry(key).or_default().context = found.context.clone();
    }
    worker.complete("read", key, value, answer, &extra);
}

fn note_write(
    worker: &mut Worker,
    f: &str,
    key: u64,
    told: Edn,
    answer: &Answer<Wrote>,
    more: &[(&str, Edn)],
) {
    let mut extra = more.to_vec();
    if let Answer::Ok(wrote) = answer {
        extra.push(("stamp", Edn::from(wrote.stamp)));
        worker.memory.entry(key).or_default().context = wrote.context.clone();
    }
    worker.complete(f, key, told, answer, &extra);
}

/// Reads through the present node.
pub async fn read(worker: &mut Worker, key: u64) {
    worker.invoke("read", key, Edn::Nil, &[]);
    let answer = worker.get(key, None).await;
    note_read(worker, key, &answer, &[]);
}

/// Writes a new value without a context; with these fields in the history.
pub async fn write(worker: &mut Worker, key: u64, extra: &[(&str, Edn)]) {
    let value = worker.new_value();
    worker.invoke("write", key, Edn::from(value), extra);
    let answer = worker.put(key, None, digits(value), Bytes::new()).await;
    note_write(worker, "write", key, Edn::from(value), &answer, extra);
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

impl Workload for Register {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn keyspace(&self) -> proto::CreateKeyspaceRequest {
        keyspace("lww", self.r, self.w)
    }

    fn keys(&self) -> Keys {
        match (self.wide, self.deletes) {
            (true, _) => Keys::new(100, 10, 100),
            // Deletions can't be told apart, so that the search must try them: short keys.
            (_, true) => Keys::new(8, 20, 60),
            _ => Keys::new(5, 50, 500),
        }
    }

    fn wants_clocks(&self) -> bool {
        self.clocks
    }

    fn step<'a>(&'a self, worker: &'a mut Worker, key: u64) -> Step<'a> {
        Box::pin(async move {
            match worker.rng.random_range(0..20) {
                0..10 => read(worker, key).await,
                10..13 if self.deletes => self.write(worker, key, true).await,
                _ => self.write(worker, key, false).await,
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

    fn config(&self) -> &'static str {
        if self.deletes { PURGING } else { "" }
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        let mut all: Vec<Box<dyn Checker>> = vec![Box::new(NeverFromNowhere), Box::new(Convergence)];
        match self.model {
            Model::Atomic => {
                all.push(Box::new(RegisterAtomic::stamped()));
                all.push(Box::new(Stamps));
                all.push(Box::new(Monotonic));
            }
            Model::Regular => {
                all.push(Box::new(RegisterRegular));
                all.push(Box::new(Stale::default()));
            }
            Model::Nothing => all.push(Box::new(Stale::default())),
        }
        all
    }
}
