//! Hands on the hints of a node that has left the cluster to the homes that their keys have now: what
//! `src/hinted/heirs.rs` says of each, a page at a time, and slowly.
//!
//! Invariants:
//! 1. What is for this node itself is durable among its records before the hint goes.
//! 2. A hint that can't be handed on now stays, until it is too old.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::committer::{Incoming, Job};
use super::hints::{Hints, bytes_only};
use crate::hinted::heirs::{Fate, fate};
use crate::hinted::queue::{self, Hint};
use crate::replica::sweep;
use crate::storage::Batch;
use crate::types::error::Cause;
use crate::types::ids::NodeId;
use crate::types::limits::{SWEEP_BYTES, SWEEP_RECORDS};
use crate::version::codec;

/// A hint, with the other nodes that are to have it.
type Share = (Hint, Vec<NodeId>);

impl Hints {
    /// Hands on the hints for `target`, which is no member; those that must wait stay. Its delivery must not be
    /// loading or sending any, or a hint might be struck out twice.
    pub(super) async fn hand_on(self: &Arc<Hints>, target: NodeId) -> Result<(), Cause> {
        let (mut after, mut handed_on) = (0, 0);
        loop {
            let began = self.clock.mono();
            // What was forgotten before is deleted before the page is read.
            self.committer.write(Batch::new()).await?;
            if self.map.borrow().member(target).is_some() {
                return Ok(());
            }
            let bytes = u64::try_from(SWEEP_BYTES).unwrap_or(u64::MAX);
            let page = queue::page(self.committer.storage(), target, after, SWEEP_RECORDS, bytes);
            let page = page.map_err(|error| Cause::Storage(error.to_string()))?;
            let last = page.hints.iter().map(|hint| hint.seq).chain(page.damaged.iter().map(|(seq, _)| *seq));
            after = last.max().unwrap_or(after);
            for (seq, bytes) in page.damaged {
                self.metrics.hints_damaged.inc();
                self.forget(target, &bytes_only(seq, bytes));
            }
            let shares = page.hints.into_iter().filter_map(|hint| self.share(target, hint)).collect();
            let shares = self.take_own(shares).await;
            handed_on += self.pass_on(target, shares).await;
            if !page.more {
                break;
            }
            let took = Duration::from_micros(self.clock.mono().micros_since(began));
            tokio::time::sleep(sweep::rest(took, true)).await;
        }
        if handed_on > 0 {
            tracing::info!(%target, handed_on, "hints of a node that has left are handed on");
        }
        self.book().is_home(target);
        Ok(())
    }

    /// Who gets a hint, and whether this node is one of them; none if it goes, or must wait.
    fn share(self: &Arc<Hints>, target: NodeId, hint: Hint) -> Option<(Share, bool)> {
        if self.is_too_old(hint.at) {
            self.metrics.hints_expired.inc();
            self.forget(target, &hint);
            return None;
        }
        let fate = fate(&self.map.borrow(), self.me, &hint.storage_key);
        match fate {
            Fate::Dropped => {
                self.metrics.hints_dropped.inc();
                self.forget(target, &hint);
                None
            }
            Fate::Wait => None,
            Fate::Heirs { others, own } => Some(((hint, others), own)),
        }
    }

    /// Invariant 1: those whose own part is done, or that have none.
    async fn take_own(self: &Arc<Hints>, shares: Vec<(Share, bool)>) -> Vec<Share> {
        let mut waiting = Vec::with_capacity(shares.len());
        for (share, own) in shares {
            let (send, taken) = oneshot::channel();
            let hint = &share.0;
            match codec::decode_record(&hint.record) {
                Ok(record) if own => {
                    let incoming = Incoming {
                        storage_key: hint.storage_key.clone(),
                        record: Arc::new(record),
                        bytes: hint.record.clone(),
                        fresh: false,
                        entry: None,
                    };
                    let done = Box::new(move |result: Result<_, Cause>| {
                        let _ = send.send(result.is_ok());
                    });
                    self.committer.submit(Job::Apply(incoming, done));
                }
                // What can't be read here may be known to another, and is too old in the end.
                _ => {
                    let _ = send.send(!own);
                }
            }
            waiting.push((share, taken));
        }
        let mut taken = Vec::with_capacity(waiting.len());
        for (share, own) in waiting {
            if own.await.unwrap_or(false) {
                taken.push(share);
            }
        }
        taken
    }

    /// Moves hints into the logs of their heirs; how many were moved.
    async fn pass_on(self: &Arc<Hints>, target: NodeId, shares: Vec<Share>) -> u64 {
        let mut waiting = Vec::with_capacity(shares.len());
        for (hint, heirs) in shares {
            let counted = self.book().hand_on(self.clock.wall(), target, &hint, &heirs);
            let handed_on = match counted {
                Ok(handed_on) => handed_on,
                Err(why) => {
                    tracing::debug!(%target, %why, "a hint can't be handed on yet");
                    continue;
                }
            };
            let (send, done) = oneshot::channel();
            let (hints, counted) = (self.clone(), handed_on.counted);
            let written = Box::new(move |written: Result<(), Cause>| {
                let mut book = hints.book();
                match written {
                    Ok(()) => book.strike(target, 1, hint.bytes),
                    Err(_) => counted.iter().for_each(|(heir, bytes)| book.strike(*heir, 1, *bytes)),
                }
                hints.show(&book);
                let _ = send.send(written.is_ok());
            });
            self.committer.submit(Job::Write(handed_on.batch, written));
            waiting.push(done);
        }
        let mut handed_on = 0;
        for done in waiting {
            handed_on += u64::from(done.await.unwrap_or(false));
        }
        self.metrics.hints_handed_on.inc_by(handed_on);
        handed_on
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::antientropy::forest::Forest;
    use crate::node::committer::Committer;
    use crate::node::config::HintsConfig;
    use crate::node::env::{Clock, CommitMode, SystemClock};
    use crate::replica::mint::Minter;
    use crate::replica::quarantine::Quarantine;
    use crate::ring::layout::{ClusterMap, Member};
    use crate::ring::partition::Partitions;
    use crate::ring::preflist::homes;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::{Storage, schema};
    use crate::types::ids::{Incarnation, KeyspaceId, PartitionId};
    use crate::types::key::Key;
    use crate::types::limits::CLOCK_SKEW_DEFAULT;
    use crate::types::policy::Durability;
    use crate::version::hlc::{Hlc, Stamp};
    use crate::version::record::{LwwVersion, Payload, Record};

    const ME: NodeId = NodeId(1);
    const GONE: NodeId = NodeId(5);

    fn map(nodes: u64) -> ClusterMap {
        let member = |id: u64| Member {
            id: NodeId(id),
            name: format!("n{id}"),
            zone: "z".into(),
            weight: 1,
            address: format!("n{id}:7401"),
        };
        let partitions = Partitions::new(16).expect("a power of two");
        ClusterMap::bootstrap("c", partitions, (1..=nodes).map(member).collect()).expect("valid")
    }

    fn storage_key(turn: u16, keyspace: u32) -> Vec<u8> {
        let key = Key::new(format!("k{turn}").into_bytes(), &b""[..]).expect("a valid key");
        schema::record_key(PartitionId(turn % 16), KeyspaceId(keyspace), &key)
    }

    fn hints(storage: &Arc<dyn Storage>, maps: &watch::Sender<Arc<ClusterMap>>) -> Arc<Hints> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let minter = Minter::new(ME, Incarnation(1), Hlc::new(Stamp(0), CLOCK_SKEW_DEFAULT), 0);
        let (own, mode) = (clock.clone(), CommitMode::Inline);
        let committer = Committer::start(
            storage.clone(),
            (minter, Forest::default(), Quarantine::default()),
            Durability::Always,
            own,
            Arc::default(),
            maps.subscribe(),
            mode,
        );
        let committer = committer.expect("started");
        let (config, metrics) = (HintsConfig::default(), Arc::default());
        let hints = Hints::load(ME, &config, &**storage, committer, clock, metrics, maps.subscribe());
        Arc::new(hints.expect("readable"))
    }

    /// Every hint of the node that left is afterwards with each home that its key has now, and nowhere else.
    #[tokio::test]
    async fn what_was_kept_for_a_node_that_left_goes_to_the_new_homes() {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
        let maps = watch::Sender::new(Arc::new(map(5)));
        let hints = hints(&storage, &maps);
        // A hint is as old as what it holds.
        let stamp = Stamp::at(SystemClock::default().wall());
        let payload = Payload::Value("v".into());
        let record = Record::Lww(LwwVersion { stamp, node: GONE, payload, expires_at: None, request: None });
        let bytes = codec::encode_record(&record).into();
        for turn in 0..300 {
            hints.keep(GONE, &storage_key(turn, 1), &bytes);
            // Of a keyspace that nobody knows yet.
            if turn % 100 == 0 {
                hints.keep(GONE, &storage_key(turn, 7), &bytes);
            }
        }
        hints.hand_on(GONE).await.expect("a member: nothing to do");
        assert_eq!(hints.count(), 303);

        let now = map(4);
        maps.send_replace(Arc::new(now.clone()));
        hints.hand_on(GONE).await.expect("handed on");
        let keyspace = now.keyspace("default").expect("there");
        let kept_for = |node| queue::page(&*storage, node, 0, 1_000, u64::MAX).expect("readable").hints;
        for turn in 0..300 {
            let (homes, key) = (homes(&now, keyspace, PartitionId(turn % 16)), storage_key(turn, 1));
            for node in (1..=4).map(NodeId) {
                let has_it = match node == ME {
                    true => storage.get(&key).expect("readable").is_some(),
                    false => kept_for(node).iter().any(|hint| hint.storage_key == key),
                };
                assert_eq!(has_it, homes.contains(&node), "key {turn} on node {node}");
            }
        }
        assert_eq!(kept_for(GONE).len(), 3, "those of the keyspace that is not known stay");
        let stored = queue::Book::load(&*storage, hints.book().limits().clone()).expect("readable");
        let told = |book: &queue::Book| {
            let accounts = book.accounts().iter();
            accounts.map(|(node, account)| (*node, account.hints, account.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(told(&stored), told(&hints.book()), "the book says what is stored");
    }
}
