//! The metrics of repair: which path healed what, and what it cost.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Merkle trees, and what they heal.
#[derive(Debug)]
pub struct RepairMetrics {
    /// Records that the trees count.
    pub tree_items: Gauge<u64, AtomicU64>,
    /// Bytes of memory that they take, about.
    pub tree_bytes: Gauge<u64, AtomicU64>,
    /// Regions of trees that wait for their rebuild.
    pub tree_rebuilds: Gauge<u64, AtomicU64>,
    /// Trees compared with a peer's.
    pub compared: Counter,
    /// Of those, found equal at once.
    pub equal: Counter,
    /// Exchanges that did not end well.
    pub broken: Counter,
    /// Bytes of messages, both ways, of the exchanges that this node began.
    pub bytes: Counter,
    /// Records that exchanges brought here.
    pub received: Counter,
    /// Of those, such as were here already.
    pub received_in_vain: Counter,
    /// Records that exchanges sent from here.
    pub sent: Counter,
    /// Tombstones and expired records purged, that this node led.
    pub tombstones_purged: Counter,
    /// Such as are due and wait for a replica.
    pub tombstones_waiting: Gauge<u64, AtomicU64>,
    /// Trees that a node which lost its disk has not got back.
    pub refill_left: Gauge<u64, AtomicU64>,
    /// Seconds since the least recent proof that this node and a peer agree on a tree.
    pub age: Gauge<u64, AtomicU64>,
}

impl RepairMetrics {
    /// All at 0, in a registry.
    pub fn new(registry: &mut Registry) -> RepairMetrics {
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let compared = counter("trees_compared", "Trees compared with a peer's");
        let equal = counter("trees_equal", "Trees found equal at once");
        let broken = counter("broken", "Exchanges that did not end well");
        let bytes = counter("bytes", "Bytes of the exchanges that this node began");
        let received = counter("records_received", "Records that exchanges brought here");
        let received_in_vain = counter("records_received_in_vain", "Of those, such as were here already");
        let sent = counter("records_sent", "Records that exchanges sent from here");
        let tombstones_purged = counter("tombstones_purged", "Dead records purged, that this node led");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        RepairMetrics {
            compared,
            equal,
            broken,
            bytes,
            received,
            received_in_vain,
            sent,
            tombstones_purged,
            tombstones_waiting: gauge(
                "tombstones_waiting",
                "Dead records that are due and not purged yet, that this node leads",
            ),
            refill_left: gauge("refill_trees_left", "Trees that a lost disk held and that are not back"),
            age: gauge("age_seconds", "Since the least recent proof that a peer agrees on a tree"),
            tree_items: gauge("tree_items", "Records that the Merkle trees count"),
            tree_bytes: gauge("tree_bytes", "Bytes of memory of the Merkle trees"),
            tree_rebuilds: gauge("tree_rebuilds", "Regions of Merkle trees that wait for their rebuild"),
        }
    }

    /// Counts a record that came.
    pub fn count_received(&self, is_new: bool) {
        self.received.inc();
        if !is_new {
            self.received_in_vain.inc();
        }
    }
}

/// The scrub, and what becomes of damaged records, whoever has found them.
#[derive(Debug)]
pub struct ScrubMetrics {
    /// Passes that have ended.
    pub passes: Counter,
    /// Keys and values looked at.
    pub entries: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Places at which the storage engine could not read its own files.
    pub unreadable: Counter,
    /// Values that are damaged and are no records.
    pub others_damaged: Counter,
    /// Places whose record is damaged and waits for its replicas.
    pub damaged: Gauge<u64, AtomicU64>,
    /// Of those, such as found no room in quarantine: nothing is kept of what was there.
    pub not_kept: Gauge<u64, AtomicU64>,
    /// Records that were set aside.
    pub quarantined: Counter,
    /// Of those, healed from the other replicas.
    pub healed: Counter,
}

impl ScrubMetrics {
    /// All at 0, in a registry.
    pub fn new(registry: &mut Registry) -> ScrubMetrics {
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let passes = counter("passes", "Passes of the scrub that have ended");
        let entries = counter("entries", "Keys and values that the scrub has looked at");
        let bytes = counter("bytes", "Bytes that the scrub has looked at");
        let unreadable =
            counter("unreadable", "Places at which the storage engine could not read its own files");
        let others_damaged = counter("others_damaged", "Values found damaged that are no records");
        let quarantined = counter("records_quarantined", "Damaged records that were set aside");
        let healed = counter("records_healed", "Damaged records healed from the other replicas");
        let damaged = Gauge::default();
        registry.register("records_damaged", "Damaged records that wait for a replica", damaged.clone());
        let not_kept = Gauge::default();
        registry.register(
            "records_not_kept",
            "Of those, such as found no room in quarantine",
            not_kept.clone(),
        );
        ScrubMetrics {
            passes,
            entries,
            bytes,
            unreadable,
            others_damaged,
            damaged,
            not_kept,
            quarantined,
            healed,
        }
    }
}
