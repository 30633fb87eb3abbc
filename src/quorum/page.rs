//! What replicas answer a read with: a record or none, or a page of records.
//!
//! Pages of several replicas are merged up to the last key that all of them cover: a replica whose page is
//! full says nothing of the keys behind its last one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::read::Readable;
use crate::canary::{self, Canary};
use crate::version::record::Record;
use crate::version::session::Floor;

/// A replica's answer to a get: its record, or not found.
pub type Single = Option<Arc<Record>>;

fn merge_records<'a>(records: impl Iterator<Item = &'a Arc<Record>>) -> Option<Single> {
    let mut merged: Single = None;
    for record in records {
        match &mut merged {
            None => merged = Some(record.clone()),
            Some(have) if Arc::ptr_eq(have, record) || **have == **record => {}
            Some(have) => {
                Arc::make_mut(have).merge(record).ok()?;
            }
        }
    }
    Some(merged)
}

/// Whether a replica that holds `have` lacks something of `merged`. By version ids: a replica that has
/// dropped an expired payload lacks nothing.
fn lacks(merged: &Arc<Record>, have: Option<&Arc<Record>>) -> bool {
    have.is_none_or(|have| !Arc::ptr_eq(have, merged) && have.digest() != merged.digest())
}

impl Readable for Single {
    type Repair = Arc<Record>;
    type Floor = Floor;

    fn reaches(&self, floor: &Floor) -> bool {
        self.as_ref().is_some_and(|record| floor.is_reached_by(record))
    }

    fn merge(answers: &[&Single]) -> Option<Single> {
        if canary::sings(Canary::NotFoundWins) && answers.iter().any(|answer| answer.is_none()) {
            return Some(None);
        }
        merge_records(answers.iter().filter_map(|a| a.as_ref()))
    }

    fn missing(&self, answer: &Single) -> Option<Arc<Record>> {
        self.as_ref().filter(|merged| lacks(merged, answer.as_ref())).cloned()
    }
}

/// A page of records, by what follows partition and keyspace in the storage key.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// The entries.
    pub entries: BTreeMap<Vec<u8>, Arc<Record>>,
    /// Whether there is more behind the last entry (before the first, for a reverse scan).
    pub more: bool,
    /// From last to first.
    pub reverse: bool,
}

impl Page {
    /// Whether `suffix` lies behind the last key that this page says something of.
    fn ends_before(&self, suffix: &[u8]) -> bool {
        if !self.more {
            return false;
        }
        if self.reverse {
            self.entries.first_key_value().is_none_or(|(first, _)| suffix < first.as_slice())
        } else {
            self.entries.last_key_value().is_none_or(|(last, _)| suffix > last.as_slice())
        }
    }
}

impl Readable for Page {
    type Repair = Vec<(Vec<u8>, Arc<Record>)>;
    /// A session knows keys, not ranges.
    type Floor = std::convert::Infallible;

    fn reaches(&self, floor: &Self::Floor) -> bool {
        match *floor {}
    }

    fn merge(answers: &[&Page]) -> Option<Page> {
        let reverse = answers.first()?.reverse;
        let mut by_key: BTreeMap<&Vec<u8>, Vec<&Arc<Record>>> = BTreeMap::new();
        let mut cut = false;
        for (key, record) in answers.iter().flat_map(|page| &page.entries) {
            if answers.iter().any(|page| page.ends_before(key)) {
                cut = true;
            } else {
                by_key.entry(key).or_default().push(record);
            }
        }
        let mut entries = BTreeMap::new();
        for (key, records) in by_key {
            let merged = merge_records(records.into_iter())?;
            entries.extend(merged.map(|record| (key.clone(), record)));
        }
        let more = cut || answers.iter().any(|page| page.more);
        Some(Page { entries, more, reverse })
    }

    fn missing(&self, answer: &Page) -> Option<Self::Repair> {
        let missing: Vec<_> = self
            .entries
            .iter()
            .filter(|(key, merged)| lacks(merged, answer.entries.get(*key)))
            .map(|(key, merged)| (key.clone(), merged.clone()))
            .collect();
        (!missing.is_empty()).then_some(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ids::NodeId;
    use crate::version::hlc::Stamp;
    use crate::version::record::{LwwVersion, Payload};

    fn record(stamp: u64) -> Arc<Record> {
        let payload = Payload::Tombstone;
        Arc::new(Record::Lww(LwwVersion {
            stamp: Stamp(stamp),
            node: NodeId(1),
            payload,
            expires_at: None,
            request: None,
        }))
    }

    fn page(entries: &[(&str, u64)], more: bool, reverse: bool) -> Page {
        let entries = entries.iter().map(|(k, s)| (k.as_bytes().to_vec(), record(*s))).collect();
        Page { entries, more, reverse }
    }

    #[test]
    fn pages_merge_up_to_the_last_key_that_all_cover() {
        let a = page(&[("a", 1), ("c", 1)], true, false);
        let b = page(&[("a", 2), ("b", 1), ("d", 1)], false, false);
        let merged = Page::merge(&[&a, &b]).expect("one policy");
        assert_eq!(merged, page(&[("a", 2), ("b", 1), ("c", 1)], true, false));
        assert_eq!(merged.missing(&a).map(|m| m.len()), Some(2), "a's version and b");
        assert_eq!(merged.missing(&b).map(|m| m.len()), Some(1), "c");
    }

    #[test]
    fn reverse_pages_merge_down_to_the_first_key_that_all_cover() {
        let a = page(&[("c", 1), ("d", 1)], true, true);
        let b = page(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)], false, true);
        let merged = Page::merge(&[&a, &b]).expect("one policy");
        assert_eq!(merged, page(&[("c", 1), ("d", 1)], true, true));
        assert_eq!(merged.missing(&a), None);
    }

    /// F18: an empty replica's page takes nothing away.
    #[test]
    fn f18_an_empty_page_outvotes_nothing() {
        let full = page(&[("a", 1)], false, false);
        let empty = page(&[], false, false);
        let merged = Page::merge(&[&empty, &full]).expect("one policy");
        assert_eq!(merged, full);
        assert_eq!(merged.missing(&empty).map(|m| m.len()), Some(1));
    }
}
