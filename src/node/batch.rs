//! Carries out batches: items of one key one after the other, others side by side.
//!
//! Invariants:
//! 1. Items of one key are begun in the order of the list, each after the one before it has its outcome.
//! 2. At most [`BATCH_WIDTH`] items of a batch are under way.
//! 3. Each item has one outcome, at its own place in the list. One that was not begun when the batch's time was up
//!    was surely not applied; one that was, says what its own put, delete or get says.
//! 4. What the gets of a batch found holds at most [`BATCH_ANSWER_BYTES`].
//!
//! A batch is admitted as a whole, with all its items and bytes, or not at all. What it does not do: undo. When the
//! client has gone, items that were not begun never are.
//!
//! Items are not sorted by partition: what goes to one peer, or to the disk, at the same time shares a message and
//! a sync in any case.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::coordinator::Coordinator;
use crate::rpc::item::{BatchRequest, Done, Item, Outcome};
use crate::telemetry::metrics::Verb;
use crate::types::error::{Applied, Cause, Failure, Invalid};
use crate::types::limits::{BATCH_ANSWER_BYTES, BATCH_WIDTH};
use crate::types::time::Mono;
use crate::version::record::Payload;

/// Items with their places in the list, to be carried out one after the other.
type Chain = Vec<(usize, Item)>;

impl Coordinator {
    /// A batch: an outcome for each item in the order of the list, or why none was begun.
    pub async fn batch(self: &Arc<Self>, request: BatchRequest) -> Result<Vec<Outcome>, Failure> {
        let began = self.driver.clock.mono();
        let gets = request.items.iter().flatten().filter(|item| matches!(item, Item::Get(_))).count();
        let found = gets.saturating_mul(self.usual_get.load(Ordering::Relaxed)).min(BATCH_ANSWER_BYTES);
        let bytes = request.items.iter().flatten().map(Item::bytes).sum::<usize>() + found;
        let result = match self.admit_many(request.items.len(), bytes) {
            Ok(_admitted) => Ok(self.run_batch(request, began).await),
            Err(failure) => Err(failure),
        };
        self.count(Verb::Batch, began, &result);
        result
    }

    async fn run_batch(self: &Arc<Self>, request: BatchRequest, began: Mono) -> Vec<Outcome> {
        let deadline = began + request.timeout;
        let (chains, mut outcomes) = chains(request.items);
        let found = Arc::new(AtomicUsize::new(0));
        let run = |item: Item| {
            let (coordinator, found) = (self.clone(), found.clone());
            async move { coordinator.run_item(item, deadline, &found).await }
        };
        run_chains(chains, BATCH_WIDTH, run, &mut outcomes).await;
        // An item without an outcome is one whose task is gone, by a fault: what it did is not known.
        let lost = || Failure { applied: Applied::Maybe, ..Failure::early(Cause::TooFewAcks) };
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(lost()))).collect()
    }

    async fn run_item(&self, mut item: Item, deadline: Mono, found: &AtomicUsize) -> Outcome {
        let began = self.driver.clock.mono();
        let left = Duration::from_micros(deadline.micros_since(began));
        if left < Duration::from_millis(1) {
            return Err(Failure::early(Cause::NotBegun));
        }
        *item.timeout_mut() = left.min(*item.timeout_mut());
        match item {
            Item::Write(request) => {
                let verb = if request.payload == Payload::Tombstone { Verb::Delete } else { Verb::Put };
                let done = Done::of_write(&request.payload);
                let result = self.write(request, true).await;
                self.count(verb, began, &result);
                result.map(done)
            }
            Item::Get(request) => {
                check_room(found.load(Ordering::Acquire))?;
                let result = self.get(request).await;
                self.count(Verb::Get, began, &result);
                let done = Done::Get(result?);
                let bytes = done.bytes();
                self.found(bytes);
                let all = found.fetch_add(bytes, Ordering::AcqRel) + bytes;
                if let Err(failure) = check_room(all) {
                    // What others find may still fit.
                    found.fetch_sub(bytes, Ordering::AcqRel);
                    return Err(failure);
                }
                Ok(done)
            }
        }
    }
}

/// Refuses what a get has found if the answer has no room for it.
fn check_room(bytes: usize) -> Result<(), Failure> {
    if bytes <= BATCH_ANSWER_BYTES {
        return Ok(());
    }
    let problem = format!(
        "what the gets of this batch have found is {bytes} bytes, over the limit of {BATCH_ANSWER_BYTES} bytes; get \
         the key by itself"
    );
    Err(Failure::early(Cause::AnswerFull(Invalid::new("items", problem))))
}

/// Items by key, in order of the first of each; and the outcomes so far, which are those of malformed items.
fn chains(items: Vec<Result<Item, Failure>>) -> (Vec<Chain>, Vec<Option<Outcome>>) {
    let mut chains: Vec<Chain> = Vec::new();
    let mut outcomes = Vec::with_capacity(items.len());
    let mut by_key = BTreeMap::new();
    for (at, item) in items.into_iter().enumerate() {
        match item {
            Ok(item) => {
                let (keyspace, key) = item.place();
                let chain = *by_key.entry((keyspace.to_owned(), key.clone())).or_insert(chains.len());
                if chain == chains.len() {
                    chains.push(Vec::new());
                }
                chains[chain].push((at, item));
                outcomes.push(None);
            }
            Err(failure) => outcomes.push(Some(Err(failure))),
        }
    }
    (chains, outcomes)
}

/// Runs chains, `width` at a time, and notes each item's outcome at its place.
async fn run_chains<F>(
    chains: Vec<Chain>,
    width: usize,
    run: impl Fn(Item) -> F,
    outcomes: &mut [Option<Outcome>],
) where
    F: Future<Output = Outcome> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut note = |ended: Option<Result<Vec<(usize, Outcome)>, _>>| {
        for (at, outcome) in ended.into_iter().flat_map(Result::<_, tokio::task::JoinError>::ok).flatten() {
            outcomes[at] = Some(outcome);
        }
    };
    for chain in chains {
        if running.len() >= width {
            note(running.join_next().await);
        }
        // A future does nothing before it is awaited: those of a chain wait for their turn.
        let turns: Vec<(usize, F)> = chain.into_iter().map(|(at, item)| (at, run(item))).collect();
        running.spawn(async move {
            let mut ended = Vec::with_capacity(turns.len());
            for (at, turn) in turns {
                ended.push((at, turn.await));
            }
            ended
        });
    }
    while let Some(ended) = running.join_next().await {
        note(Some(ended));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::rpc::{convert, proto};

    fn get(keyspace: &str, key: &str) -> Result<Item, Failure> {
        let (keyspace, key) = (keyspace.to_owned(), bytes::Bytes::from(key.to_owned()));
        let message = proto::GetRequest { keyspace, key, ..Default::default() };
        convert::get_request(message, &tonic::metadata::MetadataMap::new()).map(Item::Get)
    }

    fn name(item: &Item) -> String {
        let (keyspace, key) = item.place();
        format!("{keyspace}/{}", String::from_utf8_lossy(key.partition_key()))
    }

    #[test]
    fn items_of_one_key_are_one_chain_in_order() {
        let bad = || Err(Invalid::new("key", "is bad").into());
        let (chains, outcomes) =
            chains(vec![get("a", "k"), get("a", "l"), bad(), get("b", "k"), get("a", "k"), get("a", "l")]);
        let places: Vec<Vec<usize>> =
            chains.iter().map(|chain| chain.iter().map(|(at, _)| *at).collect()).collect();
        assert_eq!(places, [vec![0, 4], vec![1, 5], vec![3]]);
        let ended: Vec<bool> = outcomes.iter().map(Option::is_some).collect();
        assert_eq!(ended, [false, false, true, false, false, false]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn chains_keep_their_order_and_the_width() {
        let items = (0..300).map(|number| get("a", &format!("key {}", number % 60))).collect();
        let (chains, mut outcomes) = chains(items);
        // Items under way, the most that there were, and the keys begun.
        let seen = Arc::new(Mutex::new((0_usize, 0_usize, Vec::new())));
        let run = |item: Item| {
            let seen = seen.clone();
            async move {
                {
                    let mut seen = seen.lock().expect("no panic");
                    assert!(!seen.2.contains(&(name(&item), true)), "two of one key at once");
                    seen.0 += 1;
                    seen.1 = seen.1.max(seen.0);
                    seen.2.push((name(&item), true));
                }
                for _ in 0..item.place().1.bytes() {
                    tokio::task::yield_now().await;
                }
                let mut seen = seen.lock().expect("no panic");
                seen.0 -= 1;
                seen.2.retain(|(one, _)| *one != name(&item));
                Err(Failure::early(Cause::UnknownKeyspace(name(&item))))
            }
        };
        run_chains(chains, 8, run, &mut outcomes).await;
        assert_eq!(seen.lock().expect("no panic").1, 8);
        for (at, outcome) in outcomes.into_iter().enumerate() {
            let of_item = Failure::early(Cause::UnknownKeyspace(format!("a/key {}", at % 60)));
            assert_eq!(outcome, Some(Err(of_item)), "item {at}");
        }
    }

    #[test]
    fn an_answer_without_room_says_so() {
        assert!(check_room(BATCH_ANSWER_BYTES).is_ok());
        let failure = check_room(BATCH_ANSWER_BYTES + 1).expect_err("full");
        assert_eq!(failure.applied, Applied::No);
        assert!(failure.to_string().contains("33554433 bytes, over the limit of 33554432"), "{failure}");
    }
}
