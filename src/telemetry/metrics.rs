//! Every metric of a node, by its name in `/metrics`. The nouns are those of the proto and the docs.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::repair::{RepairMetrics, ScrubMetrics};

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum Verb {
    Put,
    Get,
    Delete,
    Scan,
    Batch,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum Outcome {
    Ok,
    Invalid,
    Unavailable,
    TooFewAcks,
    Overloaded,
    Other,
}

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct RequestLabels {
    pub verb: Verb,
    pub outcome: Outcome,
}

/// Labels of a latency.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct VerbLabels {
    pub verb: Verb,
}

/// Why a write has no hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum NotKept {
    Window,
    TargetBytes,
    TotalBytes,
    DiskShare,
    WriteFailed,
}

/// Labels of hints that were not kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[allow(missing_docs)]
pub struct NotKeptLabels {
    pub reason: NotKept,
}

/// A node's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests of clients by verb and outcome.
    pub requests: Family<RequestLabels, Counter>,
    /// Seconds from a request's arrival to its answer.
    pub latency: Family<VerbLabels, Histogram>,
    /// Sessions that are open.
    pub sessions: Gauge<i64>,
    /// Their requests in flight, answers that wait for their reader included.
    pub session_requests: Gauge<i64>,
    /// Bytes of those answers.
    pub session_answer_bytes: Gauge<i64>,
    /// Requests forwarded to a home replica.
    pub forwarded: Counter,
    /// Reads whose answers differed.
    pub read_repairs: Counter,
    /// Records that reads stored on replicas which lacked them.
    pub read_repair_records: Counter,
    /// Bytes of the messages to peers that did so, and of their answers.
    pub read_repair_bytes: Counter,
    /// Reads that asked one replica more since another was silent.
    pub hedges: Counter,
    /// Such that the budget did not allow.
    pub hedges_refused: Counter,
    /// Records that were damaged when read.
    pub damaged_records: Counter,
    /// Puts that had to be stamped again.
    pub restamps: Counter,
    /// Keys whose siblings passed the warning level, counted at each write.
    pub many_siblings: Counter,
    /// Syncs of the commit thread, and the jobs that shared them.
    pub commit_groups: Counter,
    /// Jobs of the commit thread.
    pub commit_jobs: Counter,
    /// Operations of peers refused, and stamps that were too far ahead.
    pub peer_refusals: Counter,
    /// Operations of peers that came too late to be carried out.
    pub late_operations: Counter,
    /// Stamps refused for being too far ahead of the own clock.
    pub clock_skew: Counter,
    /// How far the own wall clock is ahead of what is believed of it, in milliseconds.
    pub clock_error: Gauge<i64>,
    /// Hints written for replicas that did not take a write.
    pub hints_stored: Counter,
    /// Hints not kept, by reason: a limit, or the disk.
    pub hints_refused: Family<NotKeptLabels, Counter>,
    /// Hints that their targets have taken.
    pub hints_delivered: Counter,
    /// Bytes of the messages that brought hints, and of their answers.
    pub hints_sent_bytes: Counter,
    /// Hints that were too old to be sent or taken.
    pub hints_expired: Counter,
    /// Hints found damaged.
    pub hints_damaged: Counter,
    /// Hints of dropped keyspaces.
    pub hints_dropped: Counter,
    /// Hints of nodes that have left, handed on to the homes of their keys.
    pub hints_handed_on: Counter,
    /// Hints kept now.
    pub hints_waiting: Gauge<u64, AtomicU64>,
    /// Their bytes.
    pub hint_bytes: Gauge<u64, AtomicU64>,
    /// Records of dropped keyspaces that were deleted.
    pub swept_records: Counter,
    /// 1 while there may be more of them.
    pub sweeping: Gauge<i64>,
    /// Requests of clients that the node takes at a time now.
    pub requests_limit: Gauge<u64, AtomicU64>,
    /// The least time that work waited in the last window, in microseconds.
    pub queue_delay: Gauge<u64, AtomicU64>,
    /// Calls refused at the door.
    pub requests_shed: Counter,
    /// Request ids remembered.
    pub requests_remembered: Gauge<u64, AtomicU64>,
    /// Requests that had been carried out before, under their request id.
    pub requests_repeated: Counter,
    /// Merkle trees, and what they heal.
    pub repair: RepairMetrics,
    /// The scrub, and damaged records.
    pub scrub: ScrubMetrics,
    /// Peers with a live link.
    pub links: Gauge<i64>,
    /// The version of the cluster map.
    pub map_version: Gauge<u64, AtomicU64>,
    /// Bytes of the data directory.
    pub disk_bytes: Gauge<u64, AtomicU64>,
    /// Bytes of what the storage engine held when that was last looked at.
    pub live_bytes: Gauge<u64, AtomicU64>,
    /// Compactions of the storage engine's log.
    pub compactions: Counter,
    /// Bytes of disk that they gave back.
    pub compacted_bytes: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::with_prefix("quoral");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 17));
        Metrics {
            requests: register!("requests", "Requests by verb and outcome", Family::default()),
            latency: register!(
                "request_seconds",
                "Seconds to the answer",
                Family::<VerbLabels, Histogram>::new_with_constructor(seconds)
            ),
            sessions: register!("sessions", "Sessions that are open", Gauge::default()),
            session_requests: register!(
                "session_requests",
                "Requests of sessions that are in flight or wait for their reader",
                Gauge::default()
            ),
            session_answer_bytes: register!(
                "session_answer_bytes",
                "Bytes of answers that wait for the readers of sessions",
                Gauge::default()
            ),
            forwarded: register!(
                "requests_forwarded",
                "Requests sent on to a home replica",
                Counter::default()
            ),
            read_repairs: register!("read_repairs", "Reads whose answers differed", Counter::default()),
            read_repair_records: register!(
                "read_repair_records",
                "Records that reads stored on stale replicas",
                Counter::default()
            ),
            read_repair_bytes: register!(
                "read_repair_bytes",
                "Bytes of those stores, and of their answers",
                Counter::default()
            ),
            hedges: register!("hedges", "Replicas asked since another was silent", Counter::default()),
            hedges_refused: register!("hedges_refused", "Hedges over the budget", Counter::default()),
            damaged_records: register!("damaged_records", "Records found damaged", Counter::default()),
            restamps: register!("put_restamps", "Puts that had to be stamped again", Counter::default()),
            many_siblings: register!(
                "many_siblings",
                "Writes of keys with many siblings",
                Counter::default()
            ),
            commit_groups: register!("commit_groups", "Syncs of the commit thread", Counter::default()),
            commit_jobs: register!("commit_jobs", "Jobs of the commit thread", Counter::default()),
            peer_refusals: register!("peer_refusals", "Operations of peers refused", Counter::default()),
            late_operations: register!(
                "late_operations",
                "Operations of peers that came too late",
                Counter::default()
            ),
            clock_skew: register!("clock_skew_refusals", "Stamps too far ahead", Counter::default()),
            clock_error: register!(
                "clock_error_ms",
                "How far the own clock is ahead of what the others' allow",
                Gauge::default()
            ),
            hints_stored: register!("hints_stored", "Hints written", Counter::default()),
            hints_refused: register!("hints_refused", "Hints that were not kept", Family::default()),
            hints_delivered: register!("hints_delivered", "Hints brought home", Counter::default()),
            hints_sent_bytes: register!(
                "hints_sent_bytes",
                "Bytes of the messages that brought hints, and of their answers",
                Counter::default()
            ),
            hints_expired: register!("hints_expired", "Hints that were too old", Counter::default()),
            hints_damaged: register!("hints_damaged", "Hints found damaged", Counter::default()),
            hints_dropped: register!("hints_dropped", "Hints of dropped keyspaces", Counter::default()),
            hints_handed_on: register!(
                "hints_handed_on",
                "Hints of nodes that have left, handed on",
                Counter::default()
            ),
            hints_waiting: register!("hints_waiting", "Hints kept now", Gauge::default()),
            hint_bytes: register!("hint_bytes", "Bytes of the hints kept now", Gauge::default()),
            swept_records: register!(
                "swept_records",
                "Records of dropped keyspaces that were deleted",
                Counter::default()
            ),
            sweeping: register!(
                "sweeping",
                "Whether records of dropped keyspaces may be left",
                Gauge::default()
            ),
            requests_limit: register!("requests_limit", "Requests taken at a time now", Gauge::default()),
            queue_delay: register!("queue_delay_us", "Least wait of work in a window", Gauge::default()),
            requests_shed: register!("requests_shed", "Calls refused at the door", Counter::default()),
            requests_remembered: register!("requests_remembered", "Request ids remembered", Gauge::default()),
            requests_repeated: register!(
                "requests_repeated",
                "Requests carried out before",
                Counter::default()
            ),
            repair: RepairMetrics::new(registry.sub_registry_with_prefix("repair")),
            scrub: ScrubMetrics::new(registry.sub_registry_with_prefix("scrub")),
            links: register!("peer_links", "Peers with a live link", Gauge::default()),
            map_version: register!("cluster_map_version", "Version of the cluster map", Gauge::default()),
            disk_bytes: register!("disk_bytes", "Bytes of the data directory", Gauge::default()),
            live_bytes: register!(
                "live_bytes",
                "Bytes of what the storage engine held when that was last looked at, without large values",
                Gauge::default()
            ),
            compactions: register!(
                "compactions",
                "Compactions of the storage engine's log",
                Counter::default()
            ),
            compacted_bytes: register!("compacted_bytes", "Bytes of disk given back", Counter::default()),
            registry,
        }
    }
}

impl Metrics {
    /// All metrics in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a String can't fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// Counts a write without a hint.
    pub fn hint_refused(&self, reason: NotKept) {
        self.hints_refused.get_or_create(&NotKeptLabels { reason }).inc();
    }

    /// Counts a finished request that took `micros`.
    pub fn finished(&self, verb: Verb, outcome: Outcome, micros: u64) {
        self.requests.get_or_create(&RequestLabels { verb, outcome }).inc();
        #[allow(clippy::cast_precision_loss)]
        self.latency.get_or_create(&VerbLabels { verb }).observe(micros as f64 / 1e6);
    }
}
