//! The workers of a measurement.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use quoral_client::{Keyspace, Pipeline};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;

use super::schedule::Schedule;
use crate::cli::output::code_name;
use crate::cli::request::{client_level, millis, put_level, read_level};
use crate::rpc::proto::kv_client::KvClient;
use crate::rpc::proto::{GetRequest, PutRequest};
use crate::types::limits;
use crate::types::policy::Level;

/// How much longer than a request's own deadline its answer is waited for.
const GRACE: Duration = Duration::from_millis(500);
/// Pause of a worker after an error, so that a dead server does not cost a core.
const ERROR_PAUSE: Duration = Duration::from_millis(5);
/// Times that a key is tried before the preload gives it up.
const PRELOAD_TRIES: u32 = 20;

/// Puts, gets, or half of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Puts.
    Put,
    /// Gets.
    Get,
    /// Half and half, by chance.
    Mixed,
}

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// The mix.
    pub workload: Workload,
    /// Where.
    pub keyspace: String,
    /// Requests in flight.
    pub concurrency: usize,
    /// Connections.
    pub connections: usize,
    /// Time measured, unless `ops` is set.
    pub seconds: Duration,
    /// Requests measured.
    pub ops: Option<u64>,
    /// Load before.
    pub warmup: Duration,
    /// Open loop.
    pub rate: Option<u32>,
    /// Each value.
    pub value: Bytes,
    /// All keys, encoded once.
    pub keys: Vec<Bytes>,
    /// Whether all keys are written first.
    pub preload: bool,
    /// Of the choice of keys.
    pub seed: u64,
    /// Of each get.
    pub r: Option<Level>,
    /// Of each put.
    pub w: Option<Level>,
    /// Of each request.
    pub timeout: Duration,
}

/// Latencies in microseconds, 3 significant digits.
pub type Latencies = Histogram<u64>;

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// Of acknowledged puts.
    pub put: Latencies,
    /// Of answered gets.
    pub get: Latencies,
    /// Gets that found nothing; they count as answered.
    pub not_found: u64,
    /// Failed requests by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// How long it took to refuse what was over the limit, from when it was sent.
    pub refused: Latencies,
    /// Requests of the schedule that were never sent, because the server fell behind.
    pub unsent: u64,
    /// How late requests of the schedule were sent.
    pub late: Latencies,
    /// From the first request to the last answer.
    pub took: Duration,
}

impl Measured {
    fn new() -> Measured {
        // 1 µs to 1 h at 3 digits: constants that hdrhistogram accepts.
        let empty = || Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("valid bounds");
        Measured {
            put: empty(),
            get: empty(),
            not_found: 0,
            errors: BTreeMap::new(),
            refused: empty(),
            unsent: 0,
            late: empty(),
            took: Duration::ZERO,
        }
    }

    /// Requests answered.
    pub fn done(&self) -> u64 {
        self.put.len() + self.get.len()
    }
}

/// xorshift64*: which key, and put or get. Not for secrets.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence for a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// An even choice below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// A connection, and how requests go through it.
#[derive(Debug, Clone)]
pub enum Way {
    /// Each is a call.
    Calls(KvClient<Channel>),
    /// All are on one stream.
    Stream(Pipeline, Keyspace),
}

impl Way {
    /// Calls on a connection.
    pub fn calls(channel: Channel) -> Way {
        let kv = KvClient::new(channel)
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX);
        Way::Calls(kv)
    }

    async fn put(&mut self, plan: &Plan, key: usize) -> Result<(), Code> {
        match self {
            Way::Calls(kv) => kv.put(plan.put(key)).await.map(drop).map_err(|status| status.code()),
            Way::Stream(pipeline, keyspace) => {
                let put = keyspace.put(plan.keys[key].clone(), plan.value.clone()).timeout(plan.timeout);
                let put = match plan.w {
                    Some(w) => put.w(client_level(w)),
                    None => put,
                };
                pipeline.put(put.unnamed()).await.map(drop).map_err(|error| error.code)
            }
        }
    }

    /// Whether something was found.
    async fn get(&mut self, plan: &Plan, key: usize) -> Result<bool, Code> {
        match self {
            Way::Calls(kv) => match kv.get(plan.get(key)).await {
                Ok(answer) => Ok(answer.into_inner().found),
                Err(status) => Err(status.code()),
            },
            Way::Stream(pipeline, keyspace) => {
                let get = keyspace.get(plan.keys[key].clone()).timeout(plan.timeout);
                let get = match plan.r {
                    Some(r) => get.r(client_level(r)),
                    None => get,
                };
                pipeline.get(get).await.map(|found| !found.is_empty()).map_err(|error| error.code)
            }
        }
    }
}

impl Plan {
    /// One line for people.
    pub fn title(&self) -> String {
        let load = match self.rate {
            Some(rate) => format!("{rate} op/s scheduled"),
            None => format!("{} in flight", self.concurrency),
        };
        format!(
            "{}, {load}, {}-byte values, {} keys",
            self.workload.name(),
            self.value.len(),
            self.keys.len()
        )
    }

    fn put(&self, key: usize) -> PutRequest {
        PutRequest {
            keyspace: self.keyspace.clone(),
            key: self.keys[key].clone(),
            value: self.value.clone(),
            acks: self.w.map(put_level),
            timeout_ms: millis(self.timeout),
            ..Default::default()
        }
    }

    fn get(&self, key: usize) -> GetRequest {
        GetRequest {
            keyspace: self.keyspace.clone(),
            key: self.keys[key].clone(),
            answers: self.r.map(read_level),
            timeout_ms: millis(self.timeout),
            ..Default::default()
        }
    }
}

impl Workload {
    /// As it is given.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Put => "put",
            Workload::Get => "get",
            Workload::Mixed => "mixed",
        }
    }
}

/// Writes every key once; returns how many could not be written.
pub async fn preload(plan: &Arc<Plan>, ways: &[Way]) -> u64 {
    let (next, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for worker in 0..plan.concurrency {
        let (plan, next, failed, mut ways) = (plan.clone(), next.clone(), failed.clone(), ways.to_vec());
        workers.spawn(async move {
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed) as usize;
                if key >= plan.keys.len() {
                    return;
                }
                let mut tries = 0;
                let count = ways.len();
                while ways[(worker + tries as usize) % count].put(&plan, key).await.is_err() {
                    tries += 1;
                    if tries == PRELOAD_TRIES {
                        failed.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    sleep(ERROR_PAUSE * tries).await;
                }
            }
        });
    }
    while workers.join_next().await.is_some() {}
    failed.load(Ordering::Relaxed)
}

/// What the workers of one phase share.
struct Phase {
    plan: Arc<Plan>,
    /// Number of the next request, and how many there are at the most.
    next: AtomicU64,
    total: u64,
    stop: Arc<AtomicBool>,
    /// In an open loop: the schedule, and a permit for each request that is due.
    schedule: Option<Schedule>,
    permits: Arc<Semaphore>,
    measured: Mutex<Measured>,
}

/// Warms up, then measures.
pub async fn measure(plan: &Arc<Plan>, ways: &[Way]) -> Measured {
    if !plan.warmup.is_zero() {
        phase(plan, ways, plan.warmup, None).await;
    }
    phase(plan, ways, plan.seconds, plan.ops).await
}

async fn phase(plan: &Arc<Plan>, ways: &[Way], time: Duration, ops: Option<u64>) -> Measured {
    let start = Instant::now();
    let schedule = plan.rate.map(|rate| Schedule { start, rate });
    let total = match (ops, plan.rate) {
        (Some(ops), _) => ops,
        (None, Some(rate)) => u64::from(rate) * time.as_secs(),
        (None, None) => u64::MAX,
    };
    let phase = Arc::new(Phase {
        plan: plan.clone(),
        next: AtomicU64::new(0),
        total,
        stop: Arc::default(),
        schedule,
        permits: Arc::new(Semaphore::new(0)),
        measured: Mutex::new(Measured::new()),
    });
    let pacer = schedule.map(|s| s.pace(total, phase.permits.clone(), phase.stop.clone()));
    let mut workers = JoinSet::new();
    for worker in 0..plan.concurrency {
        workers.spawn(phase.clone().work(worker, ways.to_vec()));
    }
    let end = match schedule {
        // A backlog has a second to be sent.
        Some(schedule) => Some(schedule.due(total) + Duration::from_secs(1)),
        None if ops.is_none() => Some(start + time),
        None => None,
    };
    loop {
        let late = end.map(|end| end.saturating_duration_since(Instant::now()));
        let wait = late.unwrap_or(Duration::from_secs(1)).min(Duration::from_millis(20));
        let all_sent = phase.next.load(Ordering::Relaxed) >= total;
        if all_sent || late.is_some_and(|late| late.is_zero()) {
            phase.stop.store(true, Ordering::Relaxed);
            // Wakes the workers that wait for a permit.
            phase.permits.close();
            break;
        }
        sleep(wait).await;
    }
    while workers.join_next().await.is_some() {}
    if let Some(pacer) = pacer {
        // It sees the stop at its next turn; a thread that panicked has nothing to tell.
        let _ = pacer.join();
    }
    let mut measured = std::mem::replace(&mut *phase.lock(), Measured::new());
    measured.took = start.elapsed();
    if schedule.is_some() {
        measured.unsent = total.saturating_sub(phase.next.load(Ordering::Relaxed));
    }
    measured
}

impl Phase {
    fn lock(&self) -> std::sync::MutexGuard<'_, Measured> {
        // Nothing panics while it holds the lock, and a histogram is whole after every call.
        self.measured.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The moment from which the next request's latency counts; none when there is no next one.
    async fn begin(&self) -> Option<Instant> {
        if self.schedule.is_some() {
            self.permits.acquire().await.ok()?.forget();
        }
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.total {
            return None;
        }
        Some(self.schedule.map_or_else(Instant::now, |schedule| schedule.due(number)))
    }

    async fn work(self: Arc<Self>, worker: usize, mut ways: Vec<Way>) {
        let plan = self.plan.clone();
        let mut random = Random::new(plan.seed.wrapping_mul(1_000_003).wrapping_add(worker as u64));
        let mut at = worker % ways.len();
        while let Some(begin) = self.begin().await {
            let late = begin.elapsed();
            let key = random.below(plan.keys.len());
            let is_put = match plan.workload {
                Workload::Put => true,
                Workload::Get => false,
                Workload::Mixed => random.next() >> 63 == 0,
            };
            let way = &mut ways[at];
            let asked = Instant::now();
            let request = async {
                if is_put { way.put(&plan, key).await.map(|()| true) } else { way.get(&plan, key).await }
            };
            let result = timeout(plan.timeout + GRACE, request).await;
            let result = result.unwrap_or(Err(Code::DeadlineExceeded));
            let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
            {
                let mut measured = self.lock();
                measured.late.saturating_record(micros(late));
                match &result {
                    Ok(found) => {
                        let latencies = if is_put { &mut measured.put } else { &mut measured.get };
                        latencies.saturating_record(micros(begin.elapsed()));
                        measured.not_found += u64::from(!found);
                    }
                    Err(code) => {
                        *measured.errors.entry(code_name(*code)).or_default() += 1;
                        if *code == Code::ResourceExhausted {
                            measured.refused.saturating_record(micros(asked.elapsed()));
                        }
                    }
                }
            }
            if result.is_err() {
                at = (at + 1) % ways.len();
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_chosen_evenly_and_by_seed() {
        let mut counts = [0_u32; 10];
        let mut random = Random::new(7);
        (0..100_000).for_each(|_| counts[random.below(10)] += 1);
        assert!(counts.iter().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
        let draw =
            |seed| (0..5).map(|_| seed).scan(Random::new(seed), |r, _| Some(r.next())).collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
