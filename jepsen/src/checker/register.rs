//! The operations of a register, and the versions they speak of.
//!
//! A version is what one write leaves. Where values are unique the value names it; a deletion leaves `nil`,
//! and several of them are told apart by their stamps. A write that was stamped again leaves several versions
//! of one value, of which the last, with the greatest stamp, is acknowledged: so an acknowledged write may
//! have left any version of its value with a stamp up to its own, and an unknown one any at all.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use super::value::Val;
use crate::history::{History, Kind, Operation};

/// A read that was answered, or a write that happened or may have.
#[derive(Debug, Clone)]
pub(super) struct RegOp {
    pub(super) write: bool,
    pub(super) value: Val,
    /// Of an answered operation, if it was told.
    pub(super) stamp: Option<i64>,
    /// Index of the invocation plus one: at 0 stands the state before all.
    pub(super) begin: u64,
    /// Index of the completion plus one; `u64::MAX` if the outcome is unknown.
    pub(super) end: u64,
    /// Times, in nanoseconds.
    pub(super) began: u64,
    pub(super) ended: u64,
    /// The client, by `:client` or else by its process.
    pub(super) client: i64,
}

impl RegOp {
    fn of(op: &Operation) -> Option<Self> {
        let ok = op.outcome == Kind::Ok;
        let (write, value) = match op.f.as_str() {
            "read" if ok && !op.extra.contains_key("replica") => (false, Val::of(&op.output)),
            "write" if op.may_have_happened() => (true, Val::of(&op.input)),
            "delete" if op.may_have_happened() => (true, Val::Nil),
            _ => return None,
        };
        Some(Self {
            write,
            value,
            stamp: if ok { op.number("stamp") } else { None },
            begin: op.begin + 1,
            end: if ok { op.end.saturating_add(1) } else { u64::MAX },
            began: op.began,
            ended: op.ended,
            client: op.number("client").unwrap_or_else(|| i64::try_from(op.process).unwrap_or(i64::MAX)),
        })
    }

    /// Whether it was acknowledged or answered.
    pub(super) fn sure(&self) -> bool {
        self.end != u64::MAX
    }

    /// A read that found a tombstone whose stamp was not told.
    pub(super) fn found_untold(&self) -> bool {
        !self.write && self.sure() && self.value == Val::Nil && self.stamp.is_none()
    }

    /// A read that found nothing, not even a tombstone.
    pub(super) fn found_nothing(&self) -> bool {
        !self.write && self.value == Val::Nil && self.stamp == Some(0)
    }
}

/// The index of the event at a place in time.
pub(super) fn event(place: u64) -> Option<u64> {
    place.checked_sub(1).filter(|_| place != u64::MAX)
}

/// The register operations of a history, by key, in the order of their beginnings.
pub(super) fn registers(history: &History) -> BTreeMap<u64, Vec<RegOp>> {
    let mut keys: BTreeMap<u64, Vec<RegOp>> = BTreeMap::new();
    for op in history.operations() {
        if let Some(own) = RegOp::of(&op) {
            keys.entry(op.key).or_default().push(own);
        }
    }
    keys
}

/// By what versions are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// The value alone.
    Plain,
    /// The value and the stamp.
    Stamped,
    /// The value, and for `nil` the stamp too.
    Tombs,
}

/// The name of a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) value: Val,
    /// 0 where stamps don't tell versions apart.
    pub(super) stamp: i64,
}

impl Version {
    /// What is there before all writes.
    pub(super) const NOTHING: Self = Self { value: Val::Nil, stamp: 0 };

    pub(super) fn of(op: &RegOp, naming: Naming) -> Self {
        let told = match naming {
            Naming::Plain => false,
            Naming::Stamped => true,
            Naming::Tombs => op.value == Val::Nil,
        };
        Self { value: op.value.clone(), stamp: if told { op.stamp.unwrap_or(0) } else { 0 } }
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.stamp {
            0 => self.value.fmt(f),
            stamp => write!(f, "{} at stamp {stamp}", self.value),
        }
    }
}

/// All that is known of one version.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    pub(super) version: Version,
    /// When the first write that may have left it began; none if nobody can have.
    pub(super) born: Option<u64>,
    /// When the write that left it was acknowledged; `u64::MAX` if that is not known.
    pub(super) acked: u64,
    /// The first end of its operations.
    pub(super) first_end: u64,
    /// The last beginning of its operations.
    pub(super) last_begin: u64,
}

impl Cluster {
    /// Indices of the events that speak of it.
    pub(super) fn events(&self) -> Vec<u64> {
        [self.born.unwrap_or(0), self.first_end, self.last_begin].into_iter().filter_map(event).collect()
    }
}

impl Display for Cluster {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let at = |place| event(place).map_or_else(|| "-".to_owned(), |index| index.to_string());
        write!(
            f,
            "{} (write begun at event {}, first end {}, last begin {})",
            self.version,
            self.born.map_or_else(|| "-".to_owned(), at),
            at(self.first_end),
            at(self.last_begin),
        )
    }
}

/// Who may have left a version.
#[derive(Default)]
struct Births {
    /// The first beginning of an unknown write of the value.
    unknown: Option<u64>,
    /// Stamps of acknowledged ones, greatest first, each with the first beginning up to there.
    acked: Vec<(i64, u64)>,
}

impl Births {
    fn by_value(ops: &[RegOp]) -> BTreeMap<&Val, Self> {
        let mut births: BTreeMap<&Val, Self> = BTreeMap::new();
        for op in ops.iter().filter(|op| op.write) {
            let own = births.entry(&op.value).or_default();
            if op.sure() {
                own.acked.push((op.stamp.unwrap_or(i64::MAX), op.begin));
            } else {
                own.unknown = Some(own.unknown.map_or(op.begin, |first| first.min(op.begin)));
            }
        }
        for own in births.values_mut() {
            own.acked.sort_unstable_by_key(|(stamp, begin)| (std::cmp::Reverse(*stamp), *begin));
            let mut first = u64::MAX;
            for (_, begin) in &mut own.acked {
                first = first.min(*begin);
                *begin = first;
            }
        }
        births
    }

    fn of(&self, stamp: i64) -> Option<u64> {
        let up_to = self.acked.partition_point(|(own, _)| *own >= stamp);
        let acked = up_to.checked_sub(1).and_then(|at| self.acked.get(at)).map(|(_, begin)| *begin);
        self.unknown.into_iter().chain(acked).min()
    }
}

/// The versions that were acknowledged or read, and their operations' zones; without reads that don't tell a version.
pub(super) fn clusters(ops: &[RegOp], naming: Naming) -> Vec<Cluster> {
    let births = Births::by_value(ops);
    let mut clusters: BTreeMap<Version, Cluster> = BTreeMap::new();
    let nothing = Cluster { version: Version::NOTHING, born: Some(0), acked: 0, first_end: 0, last_begin: 0 };
    clusters.insert(Version::NOTHING, nothing);
    let untold = |op: &&RegOp| naming == Naming::Stamped && op.found_untold();
    for op in ops.iter().filter(|op| op.sure() && !untold(op)) {
        let version = Version::of(op, naming);
        let cluster = clusters.entry(version).or_insert_with_key(|version| Cluster {
            version: version.clone(),
            born: births.get(&op.value).and_then(|births| births.of(version.stamp)),
            acked: u64::MAX,
            first_end: u64::MAX,
            last_begin: 0,
        });
        if op.write {
            // It is this one that left it, not another that may have.
            let begin =
                if cluster.acked == u64::MAX { op.begin } else { op.begin.min(cluster.born.unwrap_or(0)) };
            cluster.born = Some(begin);
            cluster.acked = cluster.acked.min(op.end);
        }
        cluster.first_end = cluster.first_end.min(op.end);
        cluster.last_begin = cluster.last_begin.max(op.begin);
    }
    for cluster in clusters.values_mut() {
        // The write itself belongs to its version, though its end may be unknown.
        cluster.last_begin = cluster.last_begin.max(cluster.born.unwrap_or(0));
    }
    clusters.into_values().collect()
}

/// Whether all stamps were told but those of tombstones that were read, which clients are not told.
pub(super) fn told(ops: &[RegOp]) -> bool {
    ops.iter().all(|op| !op.sure() || op.stamp.is_some() || op.found_untold())
}

/// Whether no two writes left the same version, so that a version's name says which it is.
pub(super) fn unique(ops: &[RegOp], naming: Naming) -> bool {
    let told = |op: &RegOp| match naming {
        Naming::Plain => false,
        Naming::Stamped => true,
        Naming::Tombs => op.value == Val::Nil,
    };
    if ops.iter().any(|op| op.sure() && told(op) && op.stamp.is_none()) {
        return false;
    }
    if naming == Naming::Stamped {
        return true;
    }
    let mut values: Vec<&Val> = ops.iter().filter(|op| op.write).map(|op| &op.value).collect();
    values.sort_unstable();
    let by_stamp = naming != Naming::Plain;
    values.first().is_none_or(|first| **first != Val::Nil || by_stamp)
        && values.windows(2).all(|pair| pair[0] != pair[1] || (by_stamp && *pair[0] == Val::Nil))
}

/// Whether a tombstone may have been purged before this read, which found nothing: then it is no wonder
/// that even its stamp is gone. `greatest` has deletions by their beginnings, as `tombstones` makes it.
pub(super) fn purged(read: &RegOp, floor: i64, greatest: &[(u64, i64)]) -> bool {
    let begun = greatest.partition_point(|(begin, _)| *begin < read.end);
    let stamp = begun.checked_sub(1).and_then(|at| greatest.get(at)).map(|(_, stamp)| *stamp);
    read.found_nothing() && stamp.is_some_and(|stamp| stamp >= floor)
}

/// Beginnings of deletions, each with the greatest stamp of those up to there (an unknown one may have any).
pub(super) fn tombstones(ops: &[RegOp]) -> Vec<(u64, i64)> {
    let mut greatest = i64::MIN;
    let deletions = ops.iter().filter(|op| op.write && op.value == Val::Nil);
    let mut found: Vec<(u64, i64)> = deletions.map(|op| (op.begin, op.stamp.unwrap_or(i64::MAX))).collect();
    found.sort_unstable();
    for (_, stamp) in &mut found {
        greatest = greatest.max(*stamp);
        *stamp = greatest;
    }
    found
}

/// Whether a purged tombstone may explain any of the reads.
pub(super) fn any_purged(ops: &[RegOp]) -> bool {
    let greatest = tombstones(ops);
    ops.iter().any(|op| purged(op, 0, &greatest))
}
