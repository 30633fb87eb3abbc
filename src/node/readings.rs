//! The two kinds of read: of one key, and of a page of a partition.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::committer::Committer;
use super::drive::{Place, Reading, digest_bytes};
use super::hints::Hints;
use crate::quorum::page::{Page, Single};
use crate::replica::fetch;
use crate::replica::scan::{self, PageBytes, PageRequest};
use crate::rpc::proto::{self, answer, fetched, operation};
use crate::storage::schema;
use crate::types::error::Cause;
use crate::types::ids::NodeId;
use crate::version::codec::{self, BadBytes};
use crate::version::record::Record;

/// The read of one key.
pub struct KeyReading {
    /// The key.
    pub place: Place,
    /// Its home replicas; others answer as fallbacks.
    pub homes: Vec<NodeId>,
    /// What this node keeps, if it is none of them.
    pub own_hints: Option<Arc<Hints>>,
}

impl Reading for KeyReading {
    const IS_TIMED: bool = true;
    type Answer = Single;

    fn read_own(&self, committer: &Committer) -> Result<Single, Cause> {
        if let Some(hints) = &self.own_hints {
            let kept = hints.kept_for_key(&self.place.storage_key);
            return kept.map(|kept| kept.map(Arc::new)).map_err(|error| Cause::Storage(error.to_string()));
        }
        let copy = fetch::fetch(committer.storage(), &self.place.storage_key);
        let copy = copy.inspect_err(|error| committer.suspect(&self.place.storage_key, error));
        let copy = copy.map_err(|error| Cause::Storage(error.to_string()))?;
        Ok(copy.map(|copy| copy.record))
    }

    fn unsettled(&self, committer: &Committer) -> Option<u64> {
        match self.own_hints {
            Some(_) => committer.unsettled_any(),
            None => committer.unsettled(&self.place.storage_key),
        }
    }

    fn operation(&self, node: NodeId, own: Option<&Single>) -> proto::Operation {
        let have = own.and_then(|own| own.as_ref()).map(|record| digest_bytes(record.digest()));
        let fetch = proto::Fetch {
            have: have.unwrap_or_default(),
            inspect: false,
            heal: false,
            stand_in: !self.homes.contains(&node),
        };
        self.place.operation(operation::Kind::Fetch(fetch))
    }

    fn decode(&self, answer: answer::Kind, own: Option<Single>) -> Option<Single> {
        let answer::Kind::Fetched(proto::Fetched { kind }) = answer else { return None };
        match kind? {
            fetched::Kind::Record(bytes) => Some(Some(Arc::new(codec::decode_record(&bytes).ok()?))),
            fetched::Kind::Same(_) => own,
            fetched::Kind::None(_) => Some(None),
            fetched::Kind::Damaged(_) => None,
        }
    }

    fn stores(&self, repair: Arc<Record>) -> Vec<(Place, Arc<Record>)> {
        vec![(self.place.clone(), repair)]
    }
}

/// The read of one page.
pub struct PageReading {
    /// Which page.
    pub request: PageRequest,
}

fn decode_page(page: PageBytes, reverse: bool) -> Result<Page, BadBytes> {
    let mut entries = BTreeMap::new();
    for (suffix, bytes) in page.entries {
        if schema::split_suffix(&suffix).is_none() {
            return Err(BadBytes::Body("storage key"));
        }
        entries.insert(suffix, Arc::new(codec::decode_record(&bytes)?));
    }
    Ok(Page { entries, more: page.more, reverse })
}

impl Reading for PageReading {
    // A page takes as long as it is large.
    const IS_TIMED: bool = false;
    type Answer = Page;

    fn read_own(&self, committer: &Committer) -> Result<Page, Cause> {
        let page = scan::page(committer.storage(), &self.request);
        let page = page.inspect_err(|bad| {
            bad.storage_key.iter().for_each(|storage_key| committer.suspect(storage_key, &bad.error));
        });
        let page = page.map_err(|bad| Cause::Storage(bad.to_string()))?;
        decode_page(page, self.request.reverse).map_err(|bad| Cause::Storage(bad.to_string()))
    }

    fn unsettled(&self, committer: &Committer) -> Option<u64> {
        committer.unsettled_any()
    }

    fn operation(&self, _node: NodeId, _own: Option<&Page>) -> proto::Operation {
        proto::Operation {
            id: 0,
            keyspace_id: self.request.keyspace.0,
            key: Bytes::new(),
            sort: Bytes::new(),
            kind: Some(operation::Kind::Page(page_to_wire(&self.request))),
            until_us: 0,
        }
    }

    fn decode(&self, answer: answer::Kind, _own: Option<Page>) -> Option<Page> {
        let answer::Kind::Page(page) = answer else { return None };
        let entries = page.entries.into_iter().map(|e| (e.suffix.to_vec(), e.record.to_vec())).collect();
        decode_page(PageBytes { entries, more: page.more }, self.request.reverse).ok()
    }

    fn stores(&self, repair: Vec<(Vec<u8>, Arc<Record>)>) -> Vec<(Place, Arc<Record>)> {
        let PageRequest { partition, keyspace, .. } = self.request;
        let place = |suffix: Vec<u8>| {
            let key = schema::split_suffix(&suffix)?;
            Some(Place { keyspace, storage_key: schema::record_key(partition, keyspace, &key), key })
        };
        repair.into_iter().filter_map(|(suffix, record)| Some((place(suffix)?, record))).collect()
    }
}

/// A page request for a peer.
pub fn page_to_wire(request: &PageRequest) -> proto::FetchPage {
    let (from, after) = match &request.from {
        Bound::Included(suffix) => (Some(suffix.clone()), false),
        Bound::Excluded(suffix) => (Some(suffix.clone()), true),
        Bound::Unbounded => (None, false),
    };
    let (to, including) = match &request.to {
        Bound::Included(suffix) => (Some(suffix.clone()), true),
        Bound::Excluded(suffix) => (Some(suffix.clone()), false),
        Bound::Unbounded => (None, false),
    };
    proto::FetchPage {
        partition: u32::from(request.partition.0),
        from: from.map(Bytes::from),
        after,
        to: to.map(Bytes::from),
        including,
        reverse: request.reverse,
        items: u32::try_from(request.items).unwrap_or(u32::MAX),
    }
}

/// A peer's page request; none if its partition is no partition.
pub fn page_of_wire(keyspace: u32, page: proto::FetchPage) -> Option<PageRequest> {
    let bound = |suffix: Option<Bytes>, excluded: bool| match suffix.map(|s| s.to_vec()) {
        None => Bound::Unbounded,
        Some(suffix) if excluded => Bound::Excluded(suffix),
        Some(suffix) => Bound::Included(suffix),
    };
    Some(PageRequest {
        partition: crate::types::ids::PartitionId(u16::try_from(page.partition).ok()?),
        keyspace: crate::types::ids::KeyspaceId(keyspace),
        from: bound(page.from, page.after),
        to: bound(page.to, !page.including),
        reverse: page.reverse,
        items: usize::try_from(page.items).unwrap_or(usize::MAX),
    })
}
