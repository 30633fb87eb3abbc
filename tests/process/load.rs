//! A load of puts of unique keys, and of gets of acknowledged ones, that notes what happened to each.
//!
//! A client goes on to the next node on an error, as clients of a cluster do; a put that may have been
//! applied is sent again as it was. What is acknowledged once must be found from then on: the readers check
//! that while the load runs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quoral::rpc::proto;
use tokio::task::JoinSet;

use crate::client::{self, Kv};

/// What a load runs against, and how.
#[derive(Clone)]
pub struct Plan {
    /// Nodes; each writer begins at another one.
    pub endpoints: Vec<SocketAddr>,
    pub writers: usize,
    pub readers: usize,
    /// Of each request; the client gives up a while later.
    pub deadline: Duration,
    /// Begins each key, so that rounds differ.
    pub name: String,
}

/// Moments of success, and the longest time between two.
struct Gaps {
    began: Instant,
    last: Mutex<(Instant, Duration, Instant)>,
}

impl Gaps {
    fn new() -> Gaps {
        let now = Instant::now();
        Gaps { began: now, last: Mutex::new((now, Duration::ZERO, now)) }
    }

    fn mark(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gap = now.saturating_duration_since(last.0);
        if gap > last.1 {
            (last.1, last.2) = (gap, now);
        }
        last.0 = now;
    }

    /// The longest gap, and when after the begin it ended. The time since the last success counts too.
    fn longest(&self) -> (Duration, Duration) {
        self.mark();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (last.1, last.2.saturating_duration_since(self.began))
    }
}

/// How long this machine let a thread wait that does as little as one that commits: a small write, and a sync.
/// What others do to the machine is no pause of Quoral's, so tests add it to their bounds.
struct Stalls {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Duration>>,
}

impl Stalls {
    fn watch() -> Stalls {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut file = tempfile::tempfile().expect("a file");
            let mut longest = Duration::ZERO;
            while !until.load(Ordering::Acquire) {
                let began = Instant::now();
                std::thread::sleep(Duration::from_millis(10));
                file.write_all(&[0; 512]).and_then(|()| file.sync_data()).expect("written");
                longest = longest.max(began.elapsed().saturating_sub(Duration::from_millis(10)));
            }
            longest
        });
        Stalls { stop, thread: Some(thread) }
    }

    fn longest(&mut self) -> Duration {
        self.stop.store(true, Ordering::Release);
        self.thread.take().map_or(Duration::ZERO, |thread| thread.join().expect("a watch"))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.longest();
    }
}

/// What a load has done.
struct Ledger {
    acknowledged: Mutex<Vec<(String, Bytes)>>,
    puts: Gaps,
    gets: Gaps,
    attempts: AtomicU64,
    slowest_us: AtomicU64,
    /// Puts of which no answer came, or that may have been applied, on all nodes.
    unknown: AtomicU64,
    refused: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
    /// Reads that missed an acknowledged write.
    missed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

/// A load that runs.
pub struct Load {
    ledger: Arc<Ledger>,
    tasks: JoinSet<()>,
    stalls: Stalls,
}

/// What a load did, when it has ended.
#[derive(Debug)]
pub struct Report {
    pub acknowledged: Vec<(String, Bytes)>,
    pub unknown: u64,
    pub refused: u64,
    /// Requests that were sent, repeated ones too.
    pub attempts: u64,
    /// The longest that one request took.
    pub slowest: Duration,
    /// The longest time without a put, or get, that succeeded; and when after the begin it ended.
    pub put_gap: (Duration, Duration),
    pub get_gap: (Duration, Duration),
    /// The longest that the machine itself let a small write and sync wait meanwhile.
    pub machine_stall: Duration,
    pub errors: BTreeMap<String, u64>,
    pub missed: Vec<String>,
}

impl Load {
    pub fn start(plan: Plan) -> Load {
        let ledger = Arc::new(Ledger {
            acknowledged: Mutex::default(),
            puts: Gaps::new(),
            gets: Gaps::new(),
            attempts: AtomicU64::new(0),
            slowest_us: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            errors: Mutex::default(),
            missed: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let kvs: Arc<Vec<Kv>> = Arc::new(plan.endpoints.iter().map(|at| client::kv(*at)).collect());
        let mut tasks = JoinSet::new();
        for number in 0..plan.writers {
            tasks.spawn(write(plan.clone(), kvs.clone(), ledger.clone(), number));
        }
        for number in 0..plan.readers {
            tasks.spawn(read(plan.clone(), kvs.clone(), ledger.clone(), number));
        }
        Load { ledger, tasks, stalls: Stalls::watch() }
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.ledger.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until `more` writes have been acknowledged from now on.
    pub async fn wait_for(&self, more: usize) {
        let (goal, end) = (self.acknowledged() + more, Instant::now() + Duration::from_secs(60));
        while self.acknowledged() < goal {
            assert!(Instant::now() < end, "only {} of {goal} writes acknowledged", self.acknowledged());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the load when the requests under way have ended.
    pub async fn stop(mut self) -> Report {
        // Before the last requests: an idle end is no pause.
        let (put_gap, get_gap) = (self.ledger.puts.longest(), self.ledger.gets.longest());
        let machine_stall = self.stalls.longest();
        self.ledger.stop.store(true, Ordering::Release);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a task of the load");
        }
        let ledger = &self.ledger;
        Report {
            acknowledged: std::mem::take(&mut ledger.acknowledged.lock().expect("no panic")),
            unknown: ledger.unknown.load(Ordering::Acquire),
            refused: ledger.refused.load(Ordering::Acquire),
            attempts: ledger.attempts.load(Ordering::Acquire),
            slowest: Duration::from_micros(ledger.slowest_us.load(Ordering::Acquire)),
            put_gap,
            get_gap,
            machine_stall,
            errors: std::mem::take(&mut ledger.errors.lock().expect("no panic")),
            missed: std::mem::take(&mut ledger.missed.lock().expect("no panic")),
        }
    }
}

/// Sends one request, bounded; an error as (may have been applied, text).
async fn bounded<T>(
    ledger: &Ledger,
    deadline: Duration,
    request: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, (bool, String)> {
    let began = Instant::now();
    ledger.attempts.fetch_add(1, Ordering::Relaxed);
    // Twice: to see, and not to hide, an answer that comes long after the deadline.
    let result = tokio::time::timeout(deadline * 2 + client::MARGIN, request).await;
    let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    ledger.slowest_us.fetch_max(took, Ordering::Relaxed);
    let error = match result {
        Ok(Ok(response)) => return Ok(response.into_inner()),
        Ok(Err(status)) => {
            let text = match client::failure(&status) {
                Some(failure) => format!("{:?} applied={:?}", status.code(), failure.applied()),
                None => format!("{:?} without a detail: {}", status.code(), status.message()),
            };
            (!client::surely_not_applied(&status), text)
        }
        Err(_) => (true, "no answer at all".to_owned()),
    };
    let mut errors = ledger.errors.lock().unwrap_or_else(PoisonError::into_inner);
    *errors.entry(error.1.clone()).or_default() += 1;
    Err(error)
}

async fn write(plan: Plan, kvs: Arc<Vec<Kv>>, ledger: Arc<Ledger>, number: usize) {
    let timeout_ms = u64::try_from(plan.deadline.as_millis()).expect("short");
    let mut at = number;
    for sequence in 0_u64.. {
        if ledger.stop.load(Ordering::Acquire) {
            return;
        }
        let key = format!("{}-{number}-{sequence}", plan.name);
        let value = Bytes::from(format!("value of {key}"));
        let request = proto::PutRequest { timeout_ms, ..client::put(key.clone(), value.to_vec()) };
        let mut maybe = false;
        for attempt in 0..=kvs.len() {
            let mut kv = kvs[at % kvs.len()].clone();
            match bounded(&ledger, plan.deadline, kv.put(request.clone())).await {
                Ok(_) => {
                    ledger.puts.mark();
                    let mut acknowledged = ledger.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                    acknowledged.push((key, value));
                    break;
                }
                Err((may_have_been, _)) => {
                    maybe |= may_have_been;
                    at += 1;
                }
            }
            if attempt == kvs.len() {
                let counter = if maybe { &ledger.unknown } else { &ledger.refused };
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn read(plan: Plan, kvs: Arc<Vec<Kv>>, ledger: Arc<Ledger>, number: usize) {
    let timeout_ms = u64::try_from(plan.deadline.as_millis()).expect("short");
    let mut at = number;
    // Every so often another, with no chance in it.
    let mut step = number * 7_919;
    while !ledger.stop.load(Ordering::Acquire) {
        step += 104_729;
        let one = {
            let acknowledged = ledger.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
            (!acknowledged.is_empty()).then(|| acknowledged[step % acknowledged.len()].clone())
        };
        let Some((key, value)) = one else {
            ledger.gets.mark();
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let mut kv = kvs[at % kvs.len()].clone();
        let request = proto::GetRequest { timeout_ms, ..client::get(key.clone()) };
        match bounded(&ledger, plan.deadline, kv.get(request)).await {
            Ok(answer) => {
                ledger.gets.mark();
                if client::values(&answer) != [value] {
                    let text = format!("{key} through node {}: {answer:?}", at % kvs.len());
                    ledger.missed.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                }
            }
            Err(_) => {
                at += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

/// Reads all of `written` through the node at `at`, with `r` answers; the keys that are missing or differ.
pub async fn missing(at: SocketAddr, written: &[(String, Bytes)], r: u32) -> Vec<String> {
    let kv = client::kv(at);
    let found = client::for_each(written.to_vec(), 64, |(key, value)| {
        let mut kv = kv.clone();
        async move {
            let mut last = String::new();
            // A refusal for load or for a link that is not up yet is no answer.
            for _ in 0..50 {
                match kv.get(client::get_r(key.clone(), r)).await {
                    Ok(answer) if client::values(answer.get_ref()) == [value.clone()] => return None,
                    Ok(answer) => return Some(format!("{key}: {:?}", answer.get_ref())),
                    Err(status) => last = status.to_string(),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Some(format!("{key}: {last}"))
        }
    });
    found.await.into_iter().flatten().collect()
}
