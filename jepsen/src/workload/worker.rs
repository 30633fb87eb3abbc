//! One client thread: it does operations and takes them down.
//!
//! A process id is never used again after an unknown outcome; the thread goes on under the next number of its
//! own: its thread number plus a multiple of the number of threads.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::client::{Answer, Ask, Client, Found, Item, Status, Wrote};
use crate::edn::Edn;
use crate::history::{Kind, Process};
use crate::recorder::{Extra, Recorder};

/// What a client remembers of a key.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The context of its last answer.
    pub context: Bytes,
    /// The values that the context has seen.
    pub seen: Vec<u64>,
}

/// One client thread.
pub struct Worker {
    /// Its number among the threads, from 0.
    pub thread: u64,
    /// Draws what it does.
    pub rng: StdRng,
    /// What it remembers of keys.
    pub memory: BTreeMap<u64, Memory>,
    /// Its own totals in counters: what it added and what it took away, by key.
    pub totals: BTreeMap<u64, (u64, u64)>,
    /// The token of its session, if it has one.
    pub session: Option<Bytes>,
    /// How many sessions it has begun.
    pub sessions: u64,
    /// How long what it puts lives; none is the keyspace's own.
    pub ttl: Option<Duration>,
    client: Client,
    recorder: Recorder,
    keyspace: String,
    timeout: Duration,
    process: u64,
    /// The processes of the items of a batch, which go on side by side.
    lanes: Vec<u64>,
    threads: u64,
    node: usize,
}

/// Between the processes of two lanes of a thread: more than there are unknown outcomes.
const LANE: u64 = 1 << 32;
/// How long a change of the keyspaces may take.
const ADMIN: Duration = Duration::from_secs(3);

impl Worker {
    /// A thread of `threads`, that works in `keyspace`.
    pub fn new(
        client: Client,
        recorder: Recorder,
        keyspace: String,
        timeout: Duration,
        thread: u64,
        threads: u64,
        rng: StdRng,
    ) -> Worker {
        let node = usize::try_from(thread).unwrap_or(0) % client.nodes();
        Worker {
            thread,
            rng,
            memory: BTreeMap::new(),
            totals: BTreeMap::new(),
            session: None,
            sessions: 0,
            ttl: None,
            client,
            recorder,
            keyspace,
            timeout,
            process: thread,
            lanes: Vec::new(),
            threads,
            node,
        }
    }

    /// Now and then to another node.
    pub fn wander(&mut self) {
        if self.rng.random_bool(0.3) {
            self.node = self.rng.random_range(0..self.client.nodes());
        }
    }

    /// To any node.
    pub fn hop(&mut self) {
        self.node = self.rng.random_range(0..self.client.nodes());
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.client.nodes()
    }

    /// What is asked of a key.
    fn ask(&self, key: u64, level: Option<u32>) -> Ask {
        Ask {
            keyspace: self.keyspace.clone(),
            key: name_of(key),
            level,
            timeout: self.timeout,
            session: self.session.clone(),
            ttl: self.ttl,
        }
    }

    /// A value that nobody wrote before.
    pub fn new_value(&self) -> u64 {
        self.recorder.new_value()
    }

    /// Notes that an operation begins.
    pub fn invoke(&self, f: &str, key: u64, value: Edn, extra: &[(&str, Edn)]) {
        self.note_begin(self.process, f, key, value, extra);
    }

    /// Notes how it ended; after an unknown outcome the thread takes another process id.
    pub fn complete<T>(&mut self, f: &str, key: u64, value: Edn, answer: &Answer<T>, extra: &[(&str, Edn)]) {
        if self.note_end(self.process, f, key, value, answer, extra) == Kind::Info {
            self.process += self.threads;
        }
    }

    /// Notes that an operation begins beside others of this thread, in a lane of its own.
    pub fn invoke_beside(&mut self, lane: usize, f: &str, key: u64, value: Edn, extra: &[(&str, Edn)]) {
        while self.lanes.len() <= lane {
            self.lanes.push(self.thread + LANE * (self.lanes.len() as u64 + 1));
        }
        self.note_begin(self.lanes[lane], f, key, value, extra);
    }

    /// Notes how that ended.
    pub fn complete_beside<T>(
        &mut self,
        lane: usize,
        f: &str,
        key: u64,
        value: Edn,
        answer: &Answer<T>,
        extra: &[(&str, Edn)],
    ) {
        if self.note_end(self.lanes[lane], f, key, value, answer, extra) == Kind::Info {
            self.lanes[lane] += self.threads;
        }
    }

    fn note_begin(&self, process: u64, f: &str, key: u64, value: Edn, extra: &[(&str, Edn)]) {
        let mut extra = named(extra);
        extra.insert("node".into(), Edn::Str(format!("n{}", self.node + 1)));
        extra.insert("client".into(), Edn::from(self.thread));
        let value = Edn::Vector(vec![Edn::from(key), value]);
        self.recorder.note(Process::Client(process), Kind::Invoke, f, value, extra);
    }

    fn note_end<T>(
        &self,
        process: u64,
        f: &str,
        key: u64,
        value: Edn,
        answer: &Answer<T>,
        extra: &[(&str, Edn)],
    ) -> Kind {
        let mut extra = named(extra);
        extra.insert("client".into(), Edn::from(self.thread));
        let kind = match answer {
            Answer::Ok(_) => Kind::Ok,
            Answer::Fail(why) | Answer::Info(why) => {
                extra.insert("error".into(), Edn::Str(why.clone()));
                if matches!(answer, Answer::Fail(_)) { Kind::Fail } else { Kind::Info }
            }
        };
        let value = Edn::Vector(vec![Edn::from(key), value]);
        self.recorder.note(Process::Client(process), kind, f, value, extra);
        kind
    }

    /// Puts through the present node.
    pub async fn put(&mut self, key: u64, level: Option<u32>, value: Bytes, context: Bytes) -> Answer<Wrote> {
        let ask = self.ask(key, level);
        self.client.put(self.node, &ask, value, context).await
    }

    /// Puts under a request id through two or three nodes, one after the other, whatever they answer.
    pub async fn put_again(&mut self, key: u64, id: u64, value: Bytes, context: Bytes) -> Answer<Wrote> {
        let (ask, id) = (self.ask(key, None), Some(u128::from(id).to_be_bytes()));
        let (mut acked, mut unknown, mut failed) = (None, None, String::new());
        for _ in 0..self.rng.random_range(2..=3) {
            let node = self.rng.random_range(0..self.client.nodes());
            match self.client.put_as(node, &ask, value.clone(), context.clone(), id).await {
                Answer::Ok(done) => acked = acked.or(Some(done)),
                Answer::Info(why) => unknown = Some(why),
                Answer::Fail(why) => failed = why,
            }
        }
        match (acked, unknown) {
            (Some(done), _) => Answer::Ok(done),
            (None, Some(why)) => Answer::Info(why),
            (None, None) => Answer::Fail(failed),
        }
    }

    /// Deletes through the present node.
    pub async fn delete(&mut self, key: u64, level: Option<u32>, context: Bytes) -> Answer<Wrote> {
        let ask = self.ask(key, level);
        self.client.delete(self.node, &ask, context).await
    }

    /// Gets through the present node.
    pub async fn get(&mut self, key: u64, level: Option<u32>) -> Answer<Found> {
        let ask = self.ask(key, level);
        self.client.get(self.node, &ask).await
    }

    /// Sends a batch through the present node: of each item its key, and what is put there or none for a get.
    pub async fn batch(&mut self, items: &[(u64, Option<Bytes>)]) -> Vec<Status> {
        let items: Vec<Item> = items.iter().map(|(key, value)| (name_of(*key), value.clone())).collect();
        let ask = self.ask(0, None);
        self.client.batch(self.node, &ask, &items).await
    }

    /// Drops the keyspace through the present node.
    pub async fn drop_keyspace(&mut self) -> Answer<()> {
        let ask = Ask { timeout: ADMIN, ..self.ask(0, None) };
        self.client.drop_keyspace(self.node, &ask).await
    }

    /// Makes the keyspace through the present node: its id.
    pub async fn create_keyspace(&mut self, conflicts: &str) -> Answer<u32> {
        let ask = Ask { timeout: ADMIN, ..self.ask(0, None) };
        self.client.create_keyspace(self.node, &ask, conflicts).await
    }

    /// The id that the keyspace has on the present node.
    pub async fn keyspace_id(&mut self) -> Answer<Option<u32>> {
        let ask = Ask { timeout: Duration::from_millis(300), ..self.ask(0, None) };
        self.client.keyspace_id(self.node, &ask).await
    }

    /// Goes to a given node.
    pub fn go(&mut self, node: usize) {
        self.node = node;
    }

    /// Gets through a given node from all replicas, at the end.
    pub async fn get_all(&mut self, key: u64, node: usize) -> Answer<Found> {
        self.go(node);
        let ask = Ask { timeout: Duration::from_secs(10), ..self.ask(key, Some(3)) };
        self.client.get(node, &ask).await
    }

    /// The fields of a read at the end through the present node.
    pub fn final_fields(&self) -> [(&'static str, Edn); 2] {
        [("final", Edn::Bool(true)), ("replica", Edn::Str(format!("n{}", self.node + 1)))]
    }
}

fn name_of(key: u64) -> String {
    format!("key-{key}")
}

fn named(extra: &[(&str, Edn)]) -> Extra {
    extra.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// A value as it is stored: its digits.
pub fn digits(value: u64) -> Bytes {
    value.to_string().into()
}

/// A stored value, back. What is not a number was not written by us, and shows as such.
pub fn number(value: &Bytes) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
