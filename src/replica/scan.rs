//! Reads a page of the own copies of one partition.
//!
//! Tombstones are part of a page: the coordinator needs them to merge. A damaged record fails the page, as
//! it would a get: the coordinator asks another replica.

use std::ops::Bound;

use super::stored::{self, LoadError};
use crate::storage::{Storage, StorageError, schema};
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::limits::{SCAN_PAGE_BYTES, SCAN_PAGE_ITEMS};

/// Which records of a partition. All byte strings are suffixes: what follows partition and keyspace in the
/// storage key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// The partition.
    pub partition: PartitionId,
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// From here on.
    pub from: Bound<Vec<u8>>,
    /// Up to here.
    pub to: Bound<Vec<u8>>,
    /// From last to first.
    pub reverse: bool,
    /// Most entries; at least 1, at most `SCAN_PAGE_ITEMS`.
    pub items: usize,
}

/// Records in order of the scan, as they travel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageBytes {
    /// Suffix and record.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether there is more behind the last.
    pub more: bool,
}

/// Why a page can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct BadPage {
    /// What is wrong.
    pub error: LoadError,
    /// The storage key of the record that can't be read, if it is one.
    pub storage_key: Option<Vec<u8>>,
}

impl From<StorageError> for BadPage {
    fn from(error: StorageError) -> BadPage {
        BadPage { error: error.into(), storage_key: None }
    }
}

/// Reads one page.
pub fn page(storage: &dyn Storage, request: &PageRequest) -> Result<PageBytes, BadPage> {
    let prefix = schema::range_prefix(request.partition, request.keyspace);
    let full = |bound: &Bound<Vec<u8>>| match bound {
        Bound::Included(suffix) => Bound::Included([prefix.as_slice(), suffix].concat()),
        Bound::Excluded(suffix) => Bound::Excluded([prefix.as_slice(), suffix].concat()),
        Bound::Unbounded => Bound::Unbounded,
    };
    let from = match full(&request.from) {
        Bound::Unbounded => Bound::Included(prefix.clone()),
        bound => bound,
    };
    let to = match full(&request.to) {
        Bound::Unbounded => schema::prefix_end(&prefix).map_or(Bound::Unbounded, Bound::Excluded),
        bound => bound,
    };
    if is_empty_range(&from, &to) {
        return Ok(PageBytes::default());
    }
    let most = request.items.clamp(1, SCAN_PAGE_ITEMS);
    let mut page = PageBytes::default();
    let (mut bytes, mut damage) = (0, None);
    let (from, to) = (as_slice(&from), as_slice(&to));
    storage.scan(from, to, request.reverse, &mut |key, value| {
        if page.entries.len() == most || bytes > SCAN_PAGE_BYTES {
            page.more = true;
            return false;
        }
        match stored::split(key, value) {
            Ok((_, record)) => {
                bytes += key.len() + record.len();
                page.entries.push((key[prefix.len()..].to_vec(), record.to_vec()));
                true
            }
            Err(error) => {
                damage = Some(BadPage { error, storage_key: Some(key.to_vec()) });
                false
            }
        }
    })?;
    damage.map_or(Ok(page), Err)
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// Whether nothing can lie between: some ordered maps panic on such bounds.
fn is_empty_range(from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from >= to
        }
        _ => false,
    }
}
