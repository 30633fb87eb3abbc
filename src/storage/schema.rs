//! The keys and values of a data directory.
//!
//! | first byte | key | value |
//! | --- | --- | --- |
//! | `d` | partition (2), keyspace (4), slot (2), escaped partition key, sort key | checksummed record |
//! | `h` | target node (8), sequence number (8) | checksummed hint |
//! | `f` | hash of a record's storage key (16), target node (8), sequence number (8) | nothing: a fallback's hint for it |
//! | `r` | minute (8), request id (16) | checksummed outcome of a write with a request id |
//! | `t` | partition (2), keyspace (4), region of a Merkle tree (1) | checksummed sums, or "in doubt" |
//! | `g` | since when the record is dead, in milliseconds (8), its storage key | nothing |
//! | `q` | storage key of a record that was damaged | checksummed: what was found there, see `replica::quarantine` |
//! | `m` | name of a piece of the node's own state | checksummed `postcard` |
//!
//! A partition is one range to scan, hand over and drop; within a partition key, sort keys stay in byte
//! order. Numbers are big endian. The slot is the first 2 bytes of blake3 over the partition key: a leaf of a Merkle
//! tree is a range of slots, so the keys of a leaf lie side by side. In a partition key the byte 0 is written `00 ff`, and `00 01` ends it, so
//! no partition key is a prefix of another's and the order of partition keys is that of their bytes. The
//! sort key stands last and needs no end.
//!
//! A value is `Q`, a format version, 8 bytes of blake3, then the body. The hash covers the version, the
//! length of the storage key, the storage key and the body, so a value that lands under another key is found
//! out too. The engine has checksums of its own, but they guard its pages, not the way up to here.
//!
//! Invariants:
//! 1. Encoded record keys order as (partition, keyspace, slot, partition key, sort key) do, and no two are equal.
//! 2. [`split_record_key`] takes back exactly what [`record_key`] makes, and refuses all else.
//! 3. [`open`] gives back the body that [`seal`] took under the same key, or an error: never other bytes
//!    (but for a chance of 1 in 2^64).
//!
//! It does not know what a body means: records are `version::codec`'s.

use std::fmt;

use crate::types::ids::{KeyspaceId, NodeId, PartitionId, RequestId};
use crate::types::key::Key;
use crate::types::time::WallMs;

/// First byte of the key of a record.
pub const RECORD_TAG: u8 = b'd';
/// First byte of the key of a hint.
pub const HINT_TAG: u8 = b'h';
/// First byte of the key that leads from a record's key to the hints that a fallback keeps.
pub const STAND_IN_TAG: u8 = b'f';
/// First byte of the key of the outcome of a write with a request id.
pub const REQUEST_TAG: u8 = b'r';
/// First byte of the key of a region of a Merkle tree.
pub const REGION_TAG: u8 = b't';
/// First byte of the key that leads to a record that is dead: deleted, or expired from some time on.
pub const DEAD_TAG: u8 = b'g';
/// First byte of the key under which lies what was found of a damaged record.
pub const QUARANTINE_TAG: u8 = b'q';
/// First byte of the key of the node's own state.
pub const META_TAG: u8 = b'm';

/// Name of the clock's durable bound: no stamp at or above it was issued (F13).
pub const META_CLOCK_BOUND: &str = "clock_bound";
/// Name of the lease of births: none at or above it was used.
pub const META_BIRTH_LEASE: &str = "birth_lease";
/// Name of the cluster map in force.
pub const META_MAP: &str = "map";
/// Prefix of the names of the acceptor's state, one for each decree.
pub const META_DECREE: &str = "decree/";
/// Prefix of the names under which the disk ids known of each node stand.
pub const META_PEERS: &str = "peers/";
/// Name of what says that the cluster has admitted this data directory.
pub const META_ADMITTED: &str = "admitted";
/// Name of the disk id of the data directory that the engine's files belong to.
pub const META_DISK: &str = "disk";
/// Name of how often a node has been started on them.
pub const META_STARTS: &str = "starts";
/// Name of how far the scrub is.
pub const META_SCRUB: &str = "scrub";
/// Name of how far a directory that replaces a lost one is refilled.
pub const META_REFILL: &str = "refill";
/// Prefix of the names under which it stands, by peer and keyspace, when trees were proved equal.
pub const META_PROOFS: &str = "proofs/";
/// Name of the mark of a clean stop.
pub const META_CLEAN: &str = "clean";

const ESCAPE: u8 = 0;
const ESCAPED_ZERO: u8 = 0xff;
const END: u8 = 1;
/// Tag, partition, keyspace.
const RANGE_BYTES: usize = 1 + 2 + 4;
const SLOT_BYTES: usize = 2;

/// The slot of a partition key: where among the records of its partition and keyspace it lies.
pub fn slot(partition_key: &[u8]) -> u16 {
    let hash = blake3::hash(partition_key);
    u16::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1]])
}

/// Storage key of a record.
pub fn record_key(partition: PartitionId, keyspace: KeyspaceId, key: &Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(RANGE_BYTES + SLOT_BYTES + key.bytes() + 2);
    push_range(&mut out, partition, keyspace);
    push_partition_key(&mut out, key.partition_key());
    out.extend_from_slice(key.sort_key());
    out
}

/// What follows the range prefix in the storage key of a record: slot, escaped partition key, its end, sort key.
pub fn record_suffix(key: &Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(SLOT_BYTES + key.bytes() + 2);
    push_partition_key(&mut out, key.partition_key());
    out.extend_from_slice(key.sort_key());
    out
}

/// The prefix that the suffixes of all sort keys of `partition_key` share, and no other key has.
pub fn partition_key_prefix(partition_key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SLOT_BYTES + partition_key.len() + 2);
    push_partition_key(&mut out, partition_key);
    out
}

/// The prefix that the storage keys of all records of a keyspace in a partition share, and no other key has.
pub fn range_prefix(partition: PartitionId, keyspace: KeyspaceId) -> Vec<u8> {
    let mut out = Vec::with_capacity(RANGE_BYTES);
    push_range(&mut out, partition, keyspace);
    out
}

/// The range that the storage key of a record, damaged or not, lies in; `None` if it is none of a record.
pub fn split_range(storage_key: &[u8]) -> Option<(PartitionId, KeyspaceId)> {
    let [RECORD_TAG, p0, p1, k0, k1, k2, k3, ..] = storage_key else { return None };
    let partition = PartitionId(u16::from_be_bytes([*p0, *p1]));
    Some((partition, KeyspaceId(u32::from_be_bytes([*k0, *k1, *k2, *k3]))))
}

/// Partition, keyspace and slot that the storage key of a record lies in; `None` if it is none of a record.
pub fn split_slot(storage_key: &[u8]) -> Option<(PartitionId, KeyspaceId, u16)> {
    let (partition, keyspace) = split_range(storage_key)?;
    let slot = storage_key.get(RANGE_BYTES..)?.first_chunk::<SLOT_BYTES>()?;
    Some((partition, keyspace, u16::from_be_bytes(*slot)))
}

/// First storage key (inclusive) and last (exclusive; none for all that follow) of the records in these slots.
pub fn slot_range(
    partition: PartitionId,
    keyspace: KeyspaceId,
    (first, last): (u16, u16),
) -> (Vec<u8>, Option<Vec<u8>>) {
    let of = |slot: u16| [&range_prefix(partition, keyspace)[..], &slot.to_be_bytes()].concat();
    (of(first), prefix_end(&of(last)))
}

/// What leads to the record under `storage_key`, which is dead since then.
pub fn dead_key(since: WallMs, storage_key: &[u8]) -> Vec<u8> {
    let mut out = vec![DEAD_TAG];
    out.extend_from_slice(&since.0.to_be_bytes());
    out.extend_from_slice(storage_key);
    out
}

/// Since when, and the storage key that such a key leads to; `None` if it is not one.
pub fn split_dead_key(key: &[u8]) -> Option<(WallMs, &[u8])> {
    let (since, storage_key) = key.strip_prefix(&[DEAD_TAG])?.split_first_chunk::<8>()?;
    Some((WallMs(u64::from_be_bytes(*since)), storage_key))
}

/// Where what was found of the damaged record under `storage_key` lies.
pub fn quarantine_key(storage_key: &[u8]) -> Vec<u8> {
    [&[QUARANTINE_TAG], storage_key].concat()
}

/// The storage key of the record that such a key is about; `None` if it is not one.
pub fn split_quarantine_key(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(&[QUARANTINE_TAG]).filter(|storage_key| split_range(storage_key).is_some())
}

/// Storage key of a region of the Merkle tree of a keyspace in a partition.
pub fn region_key(partition: PartitionId, keyspace: KeyspaceId, region: u8) -> Vec<u8> {
    let mut out = range_prefix(partition, keyspace);
    out[0] = REGION_TAG;
    out.push(region);
    out
}

/// Takes apart the storage key of a region; `None` if it is not one.
pub fn split_region_key(key: &[u8]) -> Option<(PartitionId, KeyspaceId, u8)> {
    let [REGION_TAG, p0, p1, k0, k1, k2, k3, region] = key else { return None };
    let partition = PartitionId(u16::from_be_bytes([*p0, *p1]));
    Some((partition, KeyspaceId(u32::from_be_bytes([*k0, *k1, *k2, *k3])), *region))
}

/// The prefix that the storage keys of all records of a partition share, and no other key has.
pub fn partition_prefix(partition: PartitionId) -> Vec<u8> {
    let mut out = range_prefix(partition, KeyspaceId(0));
    out.truncate(RANGE_BYTES - 4);
    out
}

/// Takes apart the storage key of a record; `None` if it is not one.
pub fn split_record_key(storage_key: &[u8]) -> Option<(PartitionId, KeyspaceId, Key)> {
    let (partition, keyspace) = split_range(storage_key)?;
    Some((partition, keyspace, split_suffix(&storage_key[RANGE_BYTES..])?))
}

/// Takes apart what [`record_suffix`] made; `None` if it is not that.
pub fn split_suffix(suffix: &[u8]) -> Option<Key> {
    let mut partition_key = Vec::new();
    let (at, mut rest) = suffix.split_first_chunk::<SLOT_BYTES>()?;
    loop {
        match rest {
            [ESCAPE, END, sort_key @ ..] => {
                let right = slot(&partition_key) == u16::from_be_bytes(*at);
                return right.then(|| Key::new(partition_key, sort_key.to_vec()).ok()).flatten();
            }
            [ESCAPE, ESCAPED_ZERO, tail @ ..] => {
                partition_key.push(0);
                rest = tail;
            }
            [ESCAPE, ..] | [] => return None,
            [byte, tail @ ..] => {
                partition_key.push(*byte);
                rest = tail;
            }
        }
    }
}

/// The least key above every key that starts with `prefix`; `None` if there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// What leads from a record's storage key to a hint that is kept for it as a fallback.
pub fn stand_in_key(storage_key: &[u8], target: NodeId, seq: u64) -> Vec<u8> {
    let mut out = stand_in_prefix(storage_key);
    out.extend_from_slice(&target.0.to_be_bytes());
    out.extend_from_slice(&seq.to_be_bytes());
    out
}

/// The prefix of all that lead from this storage key.
pub fn stand_in_prefix(storage_key: &[u8]) -> Vec<u8> {
    let mut out = vec![STAND_IN_TAG];
    out.extend_from_slice(&blake3::hash(storage_key).as_bytes()[..16]);
    out
}

/// The target and number of the hint that such a key leads to; `None` if it is not one.
pub fn split_stand_in_key(key: &[u8]) -> Option<(NodeId, u64)> {
    let rest = key.strip_prefix(&[STAND_IN_TAG])?.get(16..)?;
    let (target, seq) = rest.split_first_chunk::<8>()?;
    Some((NodeId(u64::from_be_bytes(*target)), u64::from_be_bytes(seq.try_into().ok()?)))
}

/// Storage key of the outcome of a write with a request id, by the minute in which it was stored.
pub fn request_key(minute: u64, request: RequestId) -> Vec<u8> {
    let mut out = request_prefix(minute);
    out.extend_from_slice(&request.0.to_be_bytes());
    out
}

/// The prefix of the storage keys of all outcomes of a minute, and the least of those of later ones.
pub fn request_prefix(minute: u64) -> Vec<u8> {
    let mut out = vec![REQUEST_TAG];
    out.extend_from_slice(&minute.to_be_bytes());
    out
}

/// Storage key of a hint for `target`.
pub fn hint_key(target: NodeId, seq: u64) -> Vec<u8> {
    let mut out = hint_prefix(target);
    out.extend_from_slice(&seq.to_be_bytes());
    out
}

fn hint_prefix(target: NodeId) -> Vec<u8> {
    let mut out = vec![HINT_TAG];
    out.extend_from_slice(&target.0.to_be_bytes());
    out
}

/// First key (inclusive) and last (exclusive) of the hints for `target`, or of all.
pub fn hint_range(target: Option<NodeId>) -> (Vec<u8>, Vec<u8>) {
    let from = target.map_or(vec![HINT_TAG], hint_prefix);
    // The tag is not 0xff, so there is an end.
    let to = prefix_end(&from).unwrap_or_default();
    (from, to)
}

/// Takes apart the storage key of a hint; `None` if it is not one.
pub fn split_hint_key(storage_key: &[u8]) -> Option<(NodeId, u64)> {
    let (tag, rest) = storage_key.split_first()?;
    let (target, seq) = rest.split_first_chunk::<8>()?;
    let seq = seq.try_into().ok()?;
    (*tag == HINT_TAG).then(|| (NodeId(u64::from_be_bytes(*target)), u64::from_be_bytes(seq)))
}

/// Storage key of a piece of the node's own state.
pub fn meta_key(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + name.len());
    out.push(META_TAG);
    out.extend_from_slice(name.as_bytes());
    out
}

fn push_range(out: &mut Vec<u8>, partition: PartitionId, keyspace: KeyspaceId) {
    out.push(RECORD_TAG);
    out.extend_from_slice(&partition.0.to_be_bytes());
    out.extend_from_slice(&keyspace.0.to_be_bytes());
}

fn push_partition_key(out: &mut Vec<u8>, partition_key: &[u8]) {
    out.extend_from_slice(&slot(partition_key).to_be_bytes());
    for byte in partition_key {
        out.push(*byte);
        if *byte == ESCAPE {
            out.push(ESCAPED_ZERO);
        }
    }
    out.extend_from_slice(&[ESCAPE, END]);
}

/// First byte of a stored value.
pub const VALUE_MARKER: u8 = b'Q';
/// Version written, and the newest that is read.
pub const VALUE_VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 8;
/// Bytes that [`seal`] puts before the body.
pub const SEAL_BYTES: usize = 2 + CHECKSUM_BYTES;

/// A stored value that is not what was written under its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// The first byte is another, or there is none.
    Marker,
    /// The version is another, and the checksum is right for it: written by a newer release.
    Version(u8),
    /// The checksum does not match key and body, or the value is cut short.
    Checksum,
}

impl std::error::Error for Damaged {}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damaged::Marker => write!(f, "not a stored value: wrong marker"),
            Damaged::Version(got) => {
                write!(f, "a stored value of format {got}, this release reads up to {VALUE_VERSION}")
            }
            Damaged::Checksum => write!(f, "a stored value whose checksum does not match"),
        }
    }
}

/// The value to store under `key` for `body`.
pub fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEAL_BYTES + body.len());
    out.extend_from_slice(&[VALUE_MARKER, VALUE_VERSION]);
    out.extend_from_slice(&checksum(VALUE_VERSION, key, body));
    out.extend_from_slice(body);
    out
}

/// The body of `value`, which was found under `key`.
pub fn open<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], Damaged> {
    let [VALUE_MARKER, rest @ ..] = value else { return Err(Damaged::Marker) };
    let Some((version, rest)) = rest.split_first() else { return Err(Damaged::Checksum) };
    match rest.split_first_chunk::<CHECKSUM_BYTES>() {
        Some((found, body)) if *found == checksum(*version, key, body) => match *version {
            VALUE_VERSION => Ok(body),
            newer => Err(Damaged::Version(newer)),
        },
        _ => Err(Damaged::Checksum),
    }
}

fn checksum(version: u8, key: &[u8], body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[version]).update(&(key.len() as u64).to_be_bytes()).update(key).update(body);
    let mut first = [0; CHECKSUM_BYTES];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    first
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    /// Bytes rich in those that escaping is about, so that a bug in it is met.
    fn tricky(len: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(2), Just(0xfe), Just(0xff), any::<u8>()];
        proptest::collection::vec(byte, len)
    }

    fn any_key() -> impl Strategy<Value = Key> {
        (tricky(1..=6), tricky(0..=5)).prop_map(|(p, s)| Key::new(p, s).expect("within the limits"))
    }

    type Place = (PartitionId, KeyspaceId, Key);

    fn any_place() -> impl Strategy<Value = Place> {
        let partition = prop_oneof![0..3u16, any::<u16>()].prop_map(PartitionId);
        let keyspace = prop_oneof![0..3u32, any::<u32>()].prop_map(KeyspaceId);
        (partition, keyspace, any_key())
    }

    fn encode((partition, keyspace, key): &Place) -> Vec<u8> {
        record_key(*partition, *keyspace, key)
    }

    fn order(a: &Place, b: &Place) -> Ordering {
        let parts = |p: &Place| {
            let (partition_key, sort_key) = (p.2.partition_key(), p.2.sort_key());
            (p.0, p.1, slot(partition_key), partition_key.to_vec(), sort_key.to_vec())
        };
        parts(a).cmp(&parts(b))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn keys_keep_their_order_and_never_collide(a in any_place(), b in any_place()) {
            prop_assert_eq!(encode(&a).cmp(&encode(&b)), order(&a, &b));
            // The same within one range, where both parts are likely to share a prefix.
            let b = (a.0, a.1, b.2);
            prop_assert_eq!(encode(&a).cmp(&encode(&b)), order(&a, &b));
        }

        #[test]
        fn keys_round_trip(place in any_place()) {
            let encoded = encode(&place);
            prop_assert_eq!(split_record_key(&encoded), Some(place.clone()));
            prop_assert_eq!(split_range(&encoded), Some((place.0, place.1)));
            let slot = slot(place.2.partition_key());
            prop_assert_eq!(split_slot(&encoded), Some((place.0, place.1, slot)));
            for (slots, inside) in [((slot, slot), true), ((0, u16::MAX), true), ((slot ^ 1, slot ^ 1), false)] {
                let (from, to) = slot_range(place.0, place.1, slots);
                prop_assert_eq!(from <= encoded && to.is_none_or(|to| encoded < to), inside);
            }
            let suffix = record_suffix(&place.2);
            prop_assert_eq!(split_suffix(&suffix), Some(place.2.clone()));
            prop_assert_eq!([range_prefix(place.0, place.1), suffix].concat(), encoded);
        }

        /// Whatever splits is the one encoding of what it splits into.
        #[test]
        fn only_encodings_split(bytes in tricky(0..=12)) {
            if let Some(key) = split_suffix(&bytes) {
                prop_assert_eq!(record_suffix(&key), bytes.clone());
            }
            // With the right slot, or no bytes would ever split.
            if let [0xff, rest @ ..] = &bytes[..] {
                let cut = rest.windows(2).position(|pair| pair == [ESCAPE, END]).unwrap_or(rest.len());
                let slot = slot(&rest[..cut]).to_be_bytes();
                if let Some(key) = split_suffix(&[&slot, rest].concat()) {
                    prop_assert_eq!(record_suffix(&key), [&slot, rest].concat());
                }
            }
            let mut storage_key = vec![RECORD_TAG];
            storage_key.extend(bytes);
            if let Some(place) = split_record_key(&storage_key) {
                prop_assert_eq!(encode(&place), storage_key);
            }
        }

        #[test]
        fn prefixes_hold_their_own_and_no_other(a in any_place(), b in any_place()) {
            let in_range = encode(&b).starts_with(&range_prefix(a.0, a.1));
            prop_assert_eq!(in_range, a.0 == b.0 && a.1 == b.1);
            prop_assert_eq!(encode(&b).starts_with(&partition_prefix(a.0)), a.0 == b.0);
            let under_key = record_suffix(&b.2).starts_with(&partition_key_prefix(a.2.partition_key()));
            prop_assert_eq!(under_key, a.2.partition_key() == b.2.partition_key());
        }

        #[test]
        fn prefix_end_is_the_least_key_above(prefix in tricky(0..=4), other in tricky(0..=6)) {
            match prefix_end(&prefix) {
                Some(end) => prop_assert_eq!(
                    other.starts_with(&prefix),
                    prefix <= other && other < end,
                    "end {:?}", end
                ),
                None => prop_assert_eq!(other.starts_with(&prefix), prefix <= other),
            }
        }

        #[test]
        fn values_round_trip(key in tricky(0..=8), body in tricky(0..=40)) {
            let value = seal(&key, &body);
            prop_assert_eq!(value.len(), SEAL_BYTES + body.len());
            prop_assert_eq!(open(&key, &value), Ok(&body[..]));
        }

        #[test]
        fn another_key_is_found(key in tricky(0..=8), other in tricky(0..=8), body in tricky(0..=40)) {
            prop_assume!(key != other);
            let value = seal(&key, &body);
            prop_assert_eq!(open(&other, &value), Err(Damaged::Checksum));
        }

        #[test]
        fn every_flipped_bit_and_every_cut_is_found(key in tricky(0..=8), body in tricky(0..=40)) {
            let value = seal(&key, &body);
            for bit in 0..value.len() * 8 {
                let mut bad = value.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let expected = match bit / 8 {
                    0 => Damaged::Marker,
                    _ => Damaged::Checksum,
                };
                prop_assert_eq!(open(&key, &bad), Err(expected), "bit {}", bit);
            }
            for cut in 0..value.len() {
                prop_assert!(open(&key, &value[..cut]).is_err(), "cut to {}", cut);
            }
        }
    }

    /// What is on disk must not change by accident: these bytes are read by every later release.
    #[test]
    fn format_is_fixed() {
        let key = Key::new(&b"a\0b"[..], &b"s\0"[..]).expect("within the limits");
        let encoded = record_key(PartitionId(0x0102), KeyspaceId(0x0304_0506), &key);
        let hash = blake3::hash(b"a\0b");
        let slot = &hash.as_bytes()[..2];
        assert_eq!(encoded, [&b"d\x01\x02\x03\x04\x05\x06"[..], slot, b"a\x00\xffb\x00\x01s\x00"].concat());
        assert_eq!(meta_key(META_CLOCK_BOUND), b"mclock_bound");
        let region = region_key(PartitionId(0x0102), KeyspaceId(0x0304_0506), 63);
        assert_eq!(region, b"t\x01\x02\x03\x04\x05\x06\x3f");
        assert_eq!(split_region_key(&region), Some((PartitionId(0x0102), KeyspaceId(0x0304_0506), 63)));
        assert_eq!(split_region_key(&encoded), None);
        let dead = dead_key(WallMs(0x0102), &encoded);
        assert_eq!(dead, [&b"g\0\0\0\0\0\0\x01\x02"[..], &encoded].concat());
        assert_eq!(split_dead_key(&dead), Some((WallMs(0x0102), &encoded[..])));
        assert_eq!(split_dead_key(&encoded), None);
        let quarantined = quarantine_key(&encoded);
        assert_eq!(quarantined, [&b"q"[..], &encoded].concat());
        assert_eq!(split_quarantine_key(&quarantined), Some(&encoded[..]));
        assert_eq!((split_quarantine_key(b"qx"), split_quarantine_key(&encoded)), (None, None));

        let by_hand = blake3::hash(b"\x01\0\0\0\0\0\0\0\x01kbody");
        let expected = [b"Q\x01", &by_hand.as_bytes()[..8], b"body"].concat();
        assert_eq!(seal(b"k", b"body"), expected);
        let newer = [&b"Q\x02"[..], &checksum(2, b"k", b"body"), b"body"].concat();
        assert_eq!(open(b"k", &newer), Err(Damaged::Version(2)), "not damaged: of a newer release");
    }

    #[test]
    fn meta_names_are_apart() {
        let names = [
            META_CLOCK_BOUND,
            META_BIRTH_LEASE,
            META_MAP,
            META_ADMITTED,
            META_CLEAN,
            META_DISK,
            META_STARTS,
            META_SCRUB,
            META_REFILL,
        ];
        let prefixes = [META_DECREE, META_PEERS, META_PROOFS];
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name} twice");
            assert!(!prefixes.iter().any(|prefix| name.starts_with(prefix)), "{name}");
        }
        for (i, prefix) in prefixes.iter().enumerate() {
            let mut others = prefixes.iter().enumerate().filter(|(j, _)| *j != i);
            assert!(others.all(|(_, other)| !prefix.starts_with(other)), "{prefix}");
        }
    }
}
