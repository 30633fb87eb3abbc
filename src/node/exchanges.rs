//! One exchange with one peer: asks the questions of `antientropy::exchange`, and stores what comes of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::{oneshot, watch};

use super::committer::{Incoming, Job};
use super::comparisons::{apart, with_records};
use super::coordinator::Coordinator;
use super::env::CommitMode;
use super::repair_runs::{Progress, Purpose};
use crate::antientropy::exchange::{
    Effect, Event, Exchange, Resolved, Settling, children_of, kept_children, own_lists, resolve,
};
use crate::antientropy::forest::{Listed, Place, key_print};
use crate::antientropy::tree::{Node, Salt};
use crate::canary::{self, Canary};
use crate::machine::Machine as _;
use crate::replica::apply::Outcome;
use crate::replica::fetch;
use crate::rpc::peer_link::{Lost, NotSent};
use crate::rpc::proto::{self, answer, operation, refusal::Reason};
use crate::rpc::tree_wire as wire;
use crate::storage::schema;
use crate::types::error::Cause;
use crate::types::ids::NodeId;
use crate::types::limits::EXCHANGE_SENDS;
use crate::types::policy::Conflicts;
use crate::types::time::Mono;
use crate::version::codec;
use crate::version::hlc::Stamp;
use crate::version::record::Digest;

/// How long a peer may take over an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why an exchange did not end well. The next one goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The peer can't be reached.
    #[error("the peer does not answer")]
    Silent,
    /// It can be reached, and did not answer in time.
    #[error("the peer did not answer within {} seconds", ANSWER_WITHIN.as_secs())]
    Late,
    /// It refused.
    #[error("refused: {0}")]
    Refused(String),
    /// Another exchange of the tree is under way, here or there.
    #[error("the tree is being exchanged with another node")]
    Taken,
    /// It said what makes no sense.
    #[error("{0}: the answer makes no sense")]
    Nonsense(&'static str),
    /// A part of the own tree is in rebuild.
    #[error("a part of the own tree is in rebuild")]
    NotReady,
    /// The own storage failed, or is overloaded.
    #[error("{0}")]
    Storage(String),
}

type Answer = oneshot::Receiver<Result<answer::Kind, Lost>>;

async fn answered(answer: Answer) -> Result<answer::Kind, Broken> {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(answer) => answer.ok().and_then(Result::ok).ok_or(Broken::Silent),
        Err(_) => Err(Broken::Late),
    }
}

/// A conversation with a peer.
#[derive(Clone, Copy)]
pub struct Talk<'a> {
    /// The own node.
    pub coordinator: &'a Arc<Coordinator>,
    /// Where slow work runs.
    pub mode: CommitMode,
    /// The peer.
    pub peer: NodeId,
    /// Bytes of messages a second at the most.
    pub rate: u64,
    /// Where it is counted.
    pub progress: &'a watch::Sender<Progress>,
    /// What for.
    pub purpose: Purpose,
    /// How what is compared travels.
    pub salt: Salt,
}

/// What an exchange has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Records that are too new, or did not come, and are waited for.
    pub awaited: u64,
    /// Records that were written since who asked did.
    pub later: u64,
    /// Whether there are records that were not looked at.
    pub is_partial: bool,
}

impl Left {
    /// Whether that is nothing which is waited for.
    pub fn is_whole(&self) -> bool {
        self.awaited == 0 && !self.is_partial
    }
}

impl Talk<'_> {
    /// Asks the peer, and pays for it with rest: by the rate, and longer while clients are served.
    pub async fn ask(&self, keyspace: u32, kind: operation::Kind) -> Result<answer::Kind, Broken> {
        let driver = &self.coordinator.driver;
        let operation = proto::Operation { keyspace_id: keyspace, kind: Some(kind), ..Default::default() };
        let sent = operation.encoded_len();
        let answer = self.send(operation).await?;
        let got = answer.encoded_len();
        driver.metrics.repair.bytes.inc_by(u64::try_from(sent + got).unwrap_or(0));
        self.rest(sent + got).await;
        match answer {
            answer::Kind::Refused(refusal) if refusal.reason() == Reason::Taken => Err(Broken::Taken),
            answer::Kind::Refused(refusal) => Err(Broken::Refused(refusal.message)),
            answer => Ok(answer),
        }
    }

    async fn send(&self, operation: proto::Operation) -> Result<answer::Kind, Broken> {
        answered(self.begin(operation).await?).await
    }

    /// Hands an operation over; its answer comes later.
    async fn begin(&self, operation: proto::Operation) -> Result<Answer, Broken> {
        let links = &self.coordinator.driver.links;
        loop {
            let link = links.up(self.peer).ok_or(Broken::Silent)?;
            let (send, receive) = oneshot::channel();
            match link.send(operation.clone(), Box::new(move |result| drop(send.send(result)))) {
                Ok(()) => return Ok(receive),
                // Clients' writes go first.
                Err(NotSent::Full) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(NotSent::Down) => return Err(Broken::Silent),
            }
        }
    }

    async fn rest(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let by_rate = Duration::from_micros(bytes.saturating_mul(1_000_000) / self.rate.max(1));
        let busy = self.coordinator.under_way.load(Ordering::Relaxed) > 0;
        let by_load = if busy { REST_BUSY } else { Duration::ZERO };
        tokio::time::sleep(by_rate.max(by_load)).await;
    }

    /// Makes a place equal on both sides, but for what is written meanwhile, and for what it says.
    pub async fn exchange(&self, place: Place, conflicts: Conflicts, items: u64) -> Result<Left, Broken> {
        let exchanged = self.talk(place, conflicts, items).await;
        let driver = &self.coordinator.driver;
        driver.engaged.leave(driver.me);
        exchanged
    }

    /// Whether nobody else is at the tree here. One who must have all at once does not ask.
    fn enter(&self, place: Place) -> Result<(), Broken> {
        let driver = &self.coordinator.driver;
        match self.salt == Salt::WIDE || driver.engaged.enter(driver.clock.mono(), driver.me, place) {
            true => Ok(()),
            false => Err(Broken::Taken),
        }
    }

    /// Says here that the exchange goes on.
    fn stay(&self, place: Place) {
        let driver = &self.coordinator.driver;
        driver.engaged.stay(driver.clock.mono(), driver.me, place);
    }

    /// What may be left to its own writes.
    fn settling(&self) -> Settling {
        let driver = &self.coordinator.driver;
        let awaited = match self.purpose {
            Purpose::Refill => return Settling::NONE,
            Purpose::Schedule => Stamp(u64::MAX),
            Purpose::Asked(awaited) => awaited,
        };
        Settling::at(driver.clock.wall(), driver.max_skew_ms(), awaited)
    }

    async fn talk(&self, place: Place, conflicts: Conflicts, items: u64) -> Result<Left, Broken> {
        let (mut machine, mut effects, mut left) = (Exchange::new(), Vec::new(), Left::default());
        let mut failure = None;
        let mut event = Event::Start(items);
        loop {
            machine.step(Mono(0), event, &mut effects);
            let Some(effect) = effects.pop() else { return Err(Broken::Nonsense("machine")) };
            let answered = match effect {
                Effect::Compare(nodes) => self.compare(place, nodes).await.map(Event::Differ),
                Effect::List(nodes) => self.list(place, conflicts, nodes, &mut left).await,
                Effect::Finish { whole, .. } => {
                    left.is_partial = !whole;
                    return failure.map_or(Ok(left), Err);
                }
            };
            event = answered.unwrap_or_else(|broken| {
                failure = Some(broken);
                Event::Failed
            });
        }
    }

    async fn compare(&self, place: Place, nodes: Vec<Node>) -> Result<Vec<Node>, Broken> {
        self.enter(place)?;
        let (coordinator, asked, salt) = (self.coordinator.clone(), nodes.clone(), self.salt);
        let sums = apart(self.mode, move || {
            let driver = &coordinator.driver;
            let kept =
                |place, node| driver.committer.with_forest(|forest| kept_children(forest)(place, node));
            let of = |node| {
                with_records(driver, false, |records| children_of(&kept, records, (place, node), salt))
            };
            asked.into_iter().map(of).collect::<Result<Option<Vec<_>>, _>>()
        });
        let sums = sums.await.ok_or(Broken::NotReady)?;
        let sums = sums.map_err(|error| Broken::Storage(error.to_string()))?.ok_or(Broken::NotReady)?;
        let wired = nodes.iter().zip(&sums);
        let wired = wired.map(|(node, sums)| wire::node_to_wire(*node, wire::sums_to_wire(sums, salt)));
        let (partition, salt) = (place.partition.0.into(), salt.number());
        let question = proto::CompareNodes { partition, nodes: wired.collect(), salt };
        let answer = self.ask(place.keyspace.0, operation::Kind::CompareNodes(question)).await?;
        let answer::Kind::Nodes(answer) = answer else { return Err(Broken::Nonsense("nodes")) };
        if answer.differ.len() != nodes.len() {
            return Err(Broken::Nonsense("nodes"));
        }
        let children =
            nodes.iter().zip(&answer.differ).map(|(node, mask)| wire::children_of_mask(*node, mask));
        let children: Option<Vec<Vec<Node>>> = children.collect();
        Ok(children.ok_or(Broken::Nonsense("nodes"))?.into_iter().flatten().collect())
    }

    async fn list(
        &self,
        place: Place,
        conflicts: Conflicts,
        nodes: Vec<Node>,
        left: &mut Left,
    ) -> Result<Event, Broken> {
        self.enter(place)?;
        let lists = self.own_lists(place, nodes).await?;
        if lists.is_empty() {
            return Ok(Event::TooMany);
        }
        let salt = self.salt;
        let wired = lists.iter().map(|(node, list)| {
            let items = list.iter().map(|record| record.item.short(salt));
            wire::node_to_wire(*node, wire::prints_to_wire(items, salt))
        });
        let (partition, nodes) = (place.partition.0.into(), wired.collect());
        let question = proto::CompareItems { partition, nodes, salt: salt.number() };
        let answer = self.ask(place.keyspace.0, operation::Kind::CompareItems(question)).await?;
        let answer::Kind::Items(answer) = answer else { return Err(Broken::Nonsense("items")) };
        let settling = self.settling();
        let (mut covered, mut received, mut sent) = (0, 0, 0);
        for ((node, own), told) in lists.iter().zip(&answer.lists) {
            let compared = wire::list_of_wire(told, salt).ok_or(Broken::Nonsense("items"))?;
            let resolved = resolve(conflicts, (own, salt), &compared, &settling);
            let (got, given) = self.carry_out(place, *node, &resolved, left).await?;
            received += got;
            sent += given;
            // It is listed again, and counted then.
            if !compared.whole {
                break;
            }
            left.awaited += resolved.awaited;
            left.later += resolved.later;
            covered += 1;
        }
        Ok(Event::Listed { nodes: covered, received, sent })
    }

    /// The lists of the first nodes, as many as fit; none if the first has too many records.
    async fn own_lists(&self, place: Place, nodes: Vec<Node>) -> Result<Vec<(Node, Vec<Listed>)>, Broken> {
        let coordinator = self.coordinator.clone();
        let lists = apart(self.mode, move || {
            let driver = &coordinator.driver;
            let now = || driver.clock.mono();
            with_records(driver, false, |records| own_lists(records, place, &nodes, &now))
        });
        let lists = lists.await.ok_or(Broken::NotReady)?;
        lists.map_err(|error| Broken::Storage(error.to_string()))
    }

    async fn carry_out(
        &self,
        place: Place,
        node: Node,
        resolved: &Resolved,
        left: &mut Left,
    ) -> Result<(u64, u64), Broken> {
        let mut got = BTreeMap::new();
        let mut wanted = resolved.fetch.clone();
        while !wanted.is_empty() {
            let before = got.len();
            let until = self.coordinator.driver.clock.mono() + self.coordinator.driver.message_age;
            let question = proto::FetchItems {
                partition: place.partition.0.into(),
                nodes: vec![wire::node_to_wire(
                    node,
                    wire::prints_to_wire(wanted.iter().copied(), self.salt),
                )],
                salt: self.salt.number(),
            };
            let answer = self.ask(place.keyspace.0, operation::Kind::FetchItems(question)).await?;
            let answer::Kind::Records(page) = answer else { return Err(Broken::Nonsense("records")) };
            self.stay(place);
            for entry in page.entries {
                let (key, digest, is_new) = self.take(place, entry, until).await?;
                self.count(is_new);
                let print = key_print(&key, self.salt);
                wanted.retain(|wanted| *wanted != print);
                got.insert(key, digest);
            }
            // What was asked for and did not come is gone there, or damaged.
            if !page.more || got.len() == before {
                break;
            }
        }
        if self.purpose == Purpose::Refill {
            left.awaited += u64::try_from(wanted.len()).unwrap_or(0);
        }
        let mut send = resolved.send.clone();
        send.extend(resolved.send_merged.iter().filter(|key| self.adds_to(key, got.get(*key))).cloned());
        if canary::sings(Canary::ExchangeOneWay) {
            send.clear();
        }
        for keys in send.chunks(EXCHANGE_SENDS) {
            self.stay(place);
            self.give(keys).await?;
        }
        let given = u64::try_from(send.len()).unwrap_or(0);
        Ok((u64::try_from(got.len()).unwrap_or(0), given))
    }

    /// Counts a record that travelled.
    fn count(&self, is_new: bool) {
        self.progress.send_modify(|p| {
            p.sent += 1;
            p.healed += u64::from(is_new);
        });
    }

    /// Whether the own record holds more than what was fetched.
    fn adds_to(&self, storage_key: &[u8], fetched: Option<&Digest>) -> bool {
        let own = fetch::fetch(self.coordinator.driver.committer.storage(), storage_key);
        own.is_ok_and(|own| own.is_some_and(|own| Some(&own.record.digest()) != fetched))
    }

    /// Merges a record that came: its key, its digest, and whether it was new.
    async fn take(
        &self,
        place: Place,
        entry: proto::PageEntry,
        until: Mono,
    ) -> Result<(Vec<u8>, Digest, bool), Broken> {
        let driver = &self.coordinator.driver;
        let nonsense = || Broken::Nonsense("records");
        let record = codec::decode_record(&entry.record).map_err(|_| nonsense())?;
        schema::split_suffix(&entry.suffix).ok_or_else(nonsense)?;
        let storage_key =
            [&schema::range_prefix(place.partition, place.keyspace)[..], &entry.suffix].concat();
        let digest = record.digest();
        let incoming = || Incoming {
            storage_key: storage_key.clone(),
            record: Arc::new(record.clone()),
            bytes: entry.record.clone(),
            fresh: false,
            entry: None,
        };
        loop {
            // Once it is too old its tombstone may have been purged here.
            if driver.clock.mono() > until {
                return Err(Broken::Silent);
            }
            let (send, receive) = oneshot::channel();
            let done = Box::new(move |result| drop(send.send(result)));
            driver.committer.submit(Job::Apply(incoming(), done));
            match receive.await {
                Ok(Ok(outcome)) => {
                    let is_new = matches!(outcome, Outcome::Changed(_));
                    driver.metrics.repair.count_received(is_new);
                    return Ok((storage_key, digest, is_new));
                }
                Ok(Err(Cause::Overloaded(delay))) => tokio::time::sleep(delay).await,
                Ok(Err(cause)) => return Err(Broken::Storage(format!("{cause:?}"))),
                Err(_) => return Err(Broken::Storage("stopping".into())),
            }
        }
    }

    /// Sends records, and waits until all are stored there.
    async fn give(&self, storage_keys: &[Vec<u8>]) -> Result<(), Broken> {
        let driver = &self.coordinator.driver;
        let mut operations = Vec::with_capacity(storage_keys.len());
        let until = driver.clock.mono() + driver.message_age;
        for storage_key in storage_keys {
            let copy = fetch::fetch(driver.committer.storage(), storage_key);
            // What is damaged here comes back from there, another time.
            let Ok(Some(copy)) = copy else { continue };
            if let Some(group) = driver.committer.unsettled(storage_key)
                && !driver.committer.settled(group).await
            {
                return Err(Broken::Storage("a sync has failed".into()));
            }
            let Some((_, keyspace, key)) = schema::split_record_key(storage_key) else { continue };
            let store = proto::Store { record: copy.bytes, exchange: true, ..proto::Store::default() };
            operations.push(proto::Operation {
                id: 0,
                keyspace_id: keyspace.0,
                key: key.partition_key().clone(),
                sort: key.sort_key().clone(),
                kind: Some(operation::Kind::Store(store)),
                until_us: until.0,
            });
        }
        let mut bytes: usize = operations.iter().map(prost::Message::encoded_len).sum();
        let mut answers = Vec::with_capacity(operations.len());
        for operation in operations {
            answers.push(self.begin(operation).await?);
        }
        for answer in answers {
            let answer = answered(answer).await?;
            bytes += answer.encoded_len();
            match answer {
                answer::Kind::Stored(is_new) => {
                    self.count(is_new);
                    driver.metrics.repair.sent.inc()
                }
                answer::Kind::Refused(refusal) => return Err(Broken::Refused(refusal.message)),
                _ => return Err(Broken::Nonsense("store")),
            };
        }
        driver.metrics.repair.bytes.inc_by(u64::try_from(bytes).unwrap_or(0));
        self.rest(bytes).await;
        Ok(())
    }
}

/// How long to rest after a question while clients are served.
const REST_BUSY: Duration = Duration::from_millis(5);
