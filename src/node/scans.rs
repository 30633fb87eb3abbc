//! Scans: pages of a partition, one after the other, and the cursor that says where to go on.
//!
//! A page is a read like a get: `r` home replicas answer, their pages are merged up to the last key that all
//! cover, and what differs is written back before the reply. A scan of a whole keyspace goes through the
//! partitions in order. Each page is consistent by itself; the scan as a whole is no snapshot.

use std::ops::Bound;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::coordinator::{Coordinator, Route, context_of};
use super::readings::PageReading;
use crate::quorum::page::Page;
use crate::replica::scan::PageRequest;
use crate::ring::preflist::homes;
use crate::rpc::requests::{ScanEntry, ScanPage, ScanRequest};
use crate::storage::schema;
use crate::types::error::{Failure, Invalid};
use crate::types::ids::{KeyspaceId, PartitionId};
use crate::types::key::Position;
use crate::types::limits::{SCAN_PAGE_BYTES, SCAN_PAGE_ITEMS};
use crate::types::policy::Level;
use crate::types::time::WallMs;
use crate::version::codec;

/// Records fetched at once at the least: most of them may be tombstones.
const SCAN_FETCH_MIN: usize = 128;
const CURSOR_MARKER: u8 = b'S';
const CURSOR_VERSION: u8 = 1;

/// Where a scan goes on. Opaque to clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    /// Tells a cursor of another question from one of this.
    question: u32,
    partition: u16,
    /// Behind this key; none for the partition's beginning.
    after: Option<Vec<u8>>,
}

impl Cursor {
    fn encode(&self) -> Bytes {
        // A Vec grows as needed and a Cursor has no fallible Serialize, so this can't fail.
        let bytes = postcard::to_extend(self, vec![CURSOR_MARKER, CURSOR_VERSION]);
        bytes.expect("a Vec takes any cursor").into()
    }

    fn decode(bytes: &[u8], question: u32) -> Result<Cursor, Invalid> {
        let bad = |problem: &str| Invalid::new("cursor", format!("{problem} ({} bytes)", bytes.len()));
        let [CURSOR_MARKER, CURSOR_VERSION, body @ ..] = bytes else { return Err(bad("is not a cursor")) };
        let cursor: Cursor = match postcard::take_from_bytes(body) {
            Ok((cursor, [])) => cursor,
            _ => return Err(bad("is damaged")),
        };
        if cursor.question != question {
            return Err(bad("is of another scan"));
        }
        Ok(cursor)
    }
}

/// What a cursor must agree with: everything of a request that decides which keys are in it, and which keyspace
/// its name is for now.
fn question(request: &ScanRequest, keyspace: KeyspaceId) -> u32 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&keyspace.0.to_be_bytes());
    let key = request.partition_key.as_ref();
    let (start, end) = (request.start.clone().unwrap_or_default(), request.end.clone().unwrap_or_default());
    for part in [request.keyspace.as_bytes(), key.map_or(&[][..], |k| k), &request.prefix, &start, &end] {
        hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes()).update(part);
    }
    hasher.update(&[u8::from(request.reverse)]);
    let hash = hasher.finalize();
    u32::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]])
}

/// The range of suffixes that a scan of one partition key covers.
fn key_range(partition_key: &[u8], request: &ScanRequest) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let base = schema::partition_key_prefix(partition_key);
    let full = |sort: &[u8]| [base.as_slice(), sort].concat();
    let mut from = full(&request.prefix);
    if let Some(start) = &request.start {
        from = from.max(full(start));
    }
    let mut to = schema::prefix_end(&full(&request.prefix));
    if let Some(end) = request.end.as_ref().map(|end| full(end)) {
        to = Some(to.map_or(end.clone(), |to| to.min(end)));
    }
    (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded))
}

/// A scan under way: where it is, and what it has found.
struct Progress {
    partition: PartitionId,
    last: PartitionId,
    after: Option<Vec<u8>>,
    entries: Vec<ScanEntry>,
    bytes: usize,
}

impl Coordinator {
    /// The next page of a scan: goes on from the request's cursor until the page is full, the limit is reached
    /// or the scan is at its end.
    pub async fn scan_page(&self, request: ScanRequest) -> Result<ScanPage, Failure> {
        let route = self.route(&request.keyspace, request.partition_key.as_deref().unwrap_or_default())?;
        let r = request.r.unwrap_or(Level::Count(route.keyspace.r.into()));
        let r = r.resolve("r", route.keyspace.n)?;
        let question = question(&request, route.keyspace.id);
        let mut progress = self.begin(&request, &route, question)?;
        let deadline = self.driver.clock.mono() + request.timeout;
        let most = request.limit.unwrap_or(u64::MAX).min(SCAN_PAGE_ITEMS as u64);
        let most = usize::try_from(most).unwrap_or(SCAN_PAGE_ITEMS);
        // A page that has taken a quarter of its time is sent, even an empty one: a scan over many tombstones
        // or empty partitions goes on from its cursor, and does not begin anew.
        let send_at = self.driver.clock.mono() + request.timeout / 4;
        loop {
            let page = self.partition_page(&request, &route, &progress, r, most, deadline).await?;
            let (more, cut) = self.take(&mut progress, page, most, &route);
            let at_end = !more && !cut && progress.partition == progress.last;
            if at_end {
                return Ok(ScanPage { entries: progress.entries, cursor: None });
            }
            if !more && !cut {
                progress.partition = PartitionId(progress.partition.0 + 1);
                progress.after = None;
            }
            let full = progress.entries.len() >= most || progress.bytes >= SCAN_PAGE_BYTES;
            if full || self.driver.clock.mono() >= send_at {
                let Progress { partition, after, entries, .. } = progress;
                let cursor = Cursor { question, partition: partition.0, after };
                return Ok(ScanPage { entries, cursor: Some(cursor.encode()) });
            }
        }
    }

    fn begin(&self, request: &ScanRequest, route: &Route, question: u32) -> Result<Progress, Failure> {
        let last_partition = route.map.partitions.count() - 1;
        let (first, last) = match request.partition_key {
            Some(_) => (route.partition, route.partition),
            None => (PartitionId(0), PartitionId(u16::try_from(last_partition).unwrap_or(u16::MAX))),
        };
        let mut progress = Progress { partition: first, last, after: None, entries: Vec::new(), bytes: 0 };
        if !request.cursor.is_empty() {
            let cursor = Cursor::decode(&request.cursor, question)?;
            if !(first.0..=last.0).contains(&cursor.partition) {
                return Err(Invalid::new("cursor", "points outside the scan").into());
            }
            progress.partition = PartitionId(cursor.partition);
            progress.after = cursor.after;
        }
        Ok(progress)
    }

    async fn partition_page(
        &self,
        request: &ScanRequest,
        route: &Route,
        progress: &Progress,
        r: u8,
        most: usize,
        deadline: crate::types::time::Mono,
    ) -> Result<Page, Failure> {
        let (mut from, mut to) = match &request.partition_key {
            Some(key) => key_range(key, request),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        if let Some(after) = progress.after.clone() {
            *(if request.reverse { &mut to } else { &mut from }) = Bound::Excluded(after);
        }
        let at = Route {
            map: route.map.clone(),
            keyspace: route.keyspace.clone(),
            position: route.position,
            partition: progress.partition,
            homes: homes(&route.map, &route.keyspace, progress.partition),
        };
        let page = PageRequest {
            partition: progress.partition,
            keyspace: route.keyspace.id,
            from,
            to,
            reverse: request.reverse,
            // One more than wanted, so that the last page knows that it is the last.
            items: (most - progress.entries.len()).max(SCAN_FETCH_MIN) + 1,
        };
        let plan = self.read_plan(&at, r, &[], deadline);
        Ok(self.driver.read(plan, PageReading { request: page }).await?.answer)
    }

    /// Moves what a reader sees from `page` to the entries. Returns whether the partition has more, and
    /// whether something of the page was left for the next one.
    fn take(&self, progress: &mut Progress, page: Page, most: usize, route: &Route) -> (bool, bool) {
        let now = self.driver.clock.wall();
        let records: Vec<_> = match page.reverse {
            true => page.entries.into_iter().rev().collect(),
            false => page.entries.into_iter().collect(),
        };
        for (suffix, record) in records {
            if progress.entries.len() >= most {
                return (page.more, true);
            }
            progress.after = Some(suffix.clone());
            progress.entries.extend(entry(&suffix, &record, now, route, &mut progress.bytes));
        }
        (page.more, false)
    }
}

/// What a reader sees of a record; nothing of a deleted one.
fn entry(
    suffix: &[u8],
    record: &crate::version::record::Record,
    now: WallMs,
    route: &Route,
    bytes: &mut usize,
) -> Option<ScanEntry> {
    let siblings = record.live(now);
    let key = schema::split_suffix(suffix)?;
    if siblings.is_empty() {
        return None;
    }
    let position = Position::of(&route.keyspace.name, key.partition_key());
    let context = context_of(record, codec::key_tag(position, key.sort_key()));
    *bytes += key.bytes() + record.payload_bytes();
    Some(ScanEntry { key, siblings, context })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(prefix: &'static str, start: Option<&'static str>, end: Option<&'static str>) -> ScanRequest {
        ScanRequest {
            keyspace: "default".into(),
            partition_key: Some(Bytes::from_static(b"k")),
            prefix: prefix.into(),
            start: start.map(Bytes::from),
            end: end.map(Bytes::from),
            limit: None,
            reverse: false,
            cursor: Bytes::new(),
            r: None,
            timeout: std::time::Duration::from_secs(1),
        }
    }

    fn covers(request: &ScanRequest, sort: &str) -> bool {
        let key = crate::types::key::Key::new(&b"k"[..], sort.as_bytes().to_vec()).expect("a valid key");
        let (from, to) = key_range(b"k", request);
        std::ops::RangeBounds::contains(&(from, to), &schema::record_suffix(&key))
    }

    #[test]
    fn a_range_is_prefix_and_start_and_end_together() {
        assert!(covers(&request("", None, None), ""));
        assert!(covers(&request("", None, None), "\u{10ffff}"));
        let narrow = request("b", Some("ba"), Some("bc"));
        for (sort, inside) in [("b", false), ("ba", true), ("bb", true), ("bc", false), ("c", false)] {
            assert_eq!(covers(&narrow, sort), inside, "{sort}");
        }
        let outside = request("b", Some("c"), None);
        assert!(!covers(&outside, "b") && !covers(&outside, "c"));
    }

    #[test]
    fn a_cursor_is_of_one_question() {
        let cursor = Cursor { question: 7, partition: 3, after: Some(vec![1]) };
        assert_eq!(Cursor::decode(&cursor.encode(), 7), Ok(cursor.clone()));
        for (bytes, question) in [(&cursor.encode()[..], 8), (&b"junk"[..], 7), (&cursor.encode()[..3], 7)] {
            assert_eq!(Cursor::decode(bytes, question).expect_err("refused").field, "cursor");
        }
        let of = |request: &ScanRequest, keyspace| question(request, KeyspaceId(keyspace));
        assert_ne!(of(&request("a", None, None), 1), of(&request("", Some("a"), None), 1));
        assert_ne!(
            of(&request("a", None, None), 1),
            of(&request("a", None, None), 2),
            "the keyspace is another"
        );
    }
}
