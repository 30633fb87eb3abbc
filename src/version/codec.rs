//! The stored and the wire form of records and contexts: a marker, a version, then the body.
//!
//! One form for both: a record is encoded once where it is minted and travels as bytes. The body is
//! `postcard`. What is stored has a checksum around it as well (see `storage::schema`); a context, which goes out to
//! clients and comes back, ends in one of its own.
//!
//! A decoder accepts every version up to its own; a newer one is refused by number, not guessed at.

use serde::{Deserialize, Serialize};

use super::dvv::Context;
use super::record::Record;
use crate::types::error::Invalid;
use crate::types::key::Position;
use crate::types::limits;

/// First byte of an encoded record.
pub const RECORD_MARKER: u8 = b'R';
/// First byte of an encoded context.
pub const CONTEXT_MARKER: u8 = b'C';
/// First byte of an encoded session token.
pub const SESSION_MARKER: u8 = b'S';
/// Version written, and the newest that is read.
pub const FORMAT_VERSION: u8 = 1;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBytes {
    /// The first byte is another.
    #[error("not a {0}: wrong marker")]
    Marker(&'static str),
    /// Written by a newer release.
    #[error("a {what} of format {got}, this release reads up to {FORMAT_VERSION}")]
    Version {
        /// A record or a context.
        what: &'static str,
        /// The version found.
        got: u8,
    },
    /// The body does not parse, or has bytes left over.
    #[error("a damaged {0}")]
    Body(&'static str),
    /// The body parses but breaks an invariant.
    #[error("a damaged record: {0}")]
    Invariant(&'static str),
}

/// Marker, version, body.
pub fn encode(marker: u8, body: &impl Serialize) -> Vec<u8> {
    // A Vec grows as needed and these types have no fallible Serialize, so this can't fail.
    postcard::to_extend(body, vec![marker, FORMAT_VERSION]).expect("a Vec takes any serializable body")
}

fn decode<'a, T: Deserialize<'a>>(what: &'static str, marker: u8, bytes: &'a [u8]) -> Result<T, BadBytes> {
    let [found, version, body @ ..] = bytes else { return Err(BadBytes::Marker(what)) };
    if *found != marker {
        return Err(BadBytes::Marker(what));
    }
    if *version != FORMAT_VERSION {
        return Err(BadBytes::Version { what, got: *version });
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(BadBytes::Body(what)),
    }
}

/// Encodes a record for the wire, and for storage before its checksum.
pub fn encode_record(record: &Record) -> Vec<u8> {
    encode(RECORD_MARKER, record)
}

/// Decodes and checks a record.
pub fn decode_record(bytes: &[u8]) -> Result<Record, BadBytes> {
    let record: Record = decode("record", RECORD_MARKER, bytes)?;
    match record.problem() {
        Some(problem) => Err(BadBytes::Invariant(problem)),
        None => Ok(record),
    }
}

/// What a client's context holds: dots for `siblings`, a stamp for `lww`, and the key that it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientContext {
    /// Tells a context of another key from one of this: the position mixed with the sort key.
    pub key_tag: u32,
    /// The dots seen.
    pub dots: Context,
    /// The greatest stamp seen.
    pub stamp: super::hlc::Stamp,
}

/// The tag of a key in its contexts.
pub fn key_tag(position: Position, sort_key: &[u8]) -> u32 {
    let hash = blake3::Hasher::new().update(&position.0.to_be_bytes()).update(sort_key).finalize();
    u32::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]])
}

const CHECKSUM_BYTES: usize = 8;

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut first = [0; CHECKSUM_BYTES];
    first.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM_BYTES]);
    first
}

/// Encodes a context for a client.
pub fn encode_context(context: &ClientContext) -> Vec<u8> {
    sealed_context(encode(CONTEXT_MARKER, context))
}

/// The bytes of a context with its checksum at their end.
pub fn sealed_context(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend_from_slice(&checksum(&bytes));
    bytes
}

/// Decodes what ends in a checksum of its own.
pub fn open_sealed<'a, T: Deserialize<'a>>(
    what: &'static str,
    marker: u8,
    bytes: &'a [u8],
) -> Result<T, BadBytes> {
    let (body, found) = bytes.split_last_chunk().ok_or(BadBytes::Body(what))?;
    let value = decode(what, marker, body)?;
    if *found != checksum(body) {
        return Err(BadBytes::Body(what));
    }
    Ok(value)
}

/// Decodes a client's context, which must be of the key with tag `key_tag`.
pub fn decode_context(bytes: &[u8], key_tag: u32) -> Result<ClientContext, Invalid> {
    Invalid::check_max("context", bytes.len(), limits::CONTEXT_BYTES, "bytes")?;
    let refused = |bad: BadBytes| Invalid::new("context", format!("{bad} ({} bytes)", bytes.len()));
    let context: ClientContext = open_sealed("context", CONTEXT_MARKER, bytes).map_err(refused)?;
    if !context.dots.is_canonical() {
        return Err(Invalid::new("context", "a damaged context: not canonical"));
    }
    if context.key_tag != key_tag {
        return Err(Invalid::new("context", "is of another key"));
    }
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::super::dvv::{Actor, Dot};
    use super::super::hlc::Stamp;
    use super::super::record::tests::three_records;
    use super::*;
    use crate::types::ids::{Birth, Incarnation, NodeId};
    use proptest::prelude::*;

    const TAG: u32 = 0x00c0_ffee;

    fn any_dot() -> impl Strategy<Value = Dot> {
        // Small counters make contiguous runs, the greatest ones overflow.
        let counter = prop_oneof![9 => 1..9u64, 1 => (u64::MAX - 3)..=u64::MAX];
        (0..4u64, 0..2u64, 0..3u64, counter).prop_map(|(node, life, birth, counter)| {
            let actor = Actor { node: NodeId(node), incarnation: Incarnation(life), birth: Birth(birth) };
            Dot { actor, counter }
        })
    }

    fn any_context() -> impl Strategy<Value = ClientContext> {
        (proptest::collection::vec(any_dot(), 0..30), any::<u64>()).prop_map(|(dots, stamp)| {
            let mut context = Context::new();
            dots.iter().for_each(|d| context.insert(*d));
            ClientContext { key_tag: TAG, dots: context, stamp: Stamp(stamp) }
        })
    }

    /// What a hostile or damaged sender makes of good bytes.
    fn damaged(
        good: Vec<u8>,
        cut: &prop::sample::Index,
        flips: &[(prop::sample::Index, u8)],
    ) -> Vec<Vec<u8>> {
        let mut flipped = good.clone();
        for (at, bit) in flips {
            let at = at.index(flipped.len());
            flipped[at] ^= 1 << (bit % 8);
        }
        let mut longer = good.clone();
        longer.push(0);
        vec![good[..cut.index(good.len())].to_vec(), flipped, longer]
    }

    /// Whatever is decoded can be used: nothing that readers and merges do with it panics.
    fn use_record(bytes: &[u8]) {
        let Ok(record) = decode_record(bytes) else { return };
        assert_eq!(record.problem(), None);
        assert_eq!(decode_record(&encode_record(&record)).as_ref(), Ok(&record));
        let mut twice = record.clone();
        assert_eq!(twice.merge(&record), Ok(false));
        let context = record.context();
        assert!(context.is_canonical());
        let _ = (record.digest(), record.stamp(), record.live(crate::types::time::WallMs(1)));
    }

    fn use_context(bytes: &[u8], tag: u32) {
        let Ok(context) = decode_context(bytes, tag) else { return };
        assert!(context.dots.is_canonical());
        assert_eq!(context.key_tag, tag);
        let mut joined = context.dots.clone();
        joined.join(&context.dots);
        assert_eq!(joined, context.dots);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn a_record_survives_its_bytes([a, b, c] in three_records()) {
            for record in [a, b, c] {
                let bytes = encode_record(&record);
                prop_assert_eq!(&bytes[..2], &[RECORD_MARKER, FORMAT_VERSION]);
                prop_assert_eq!(decode_record(&bytes), Ok(record));
            }
        }

        #[test]
        fn a_context_survives_its_bytes(context in any_context()) {
            prop_assert_eq!(decode_context(&encode_context(&context), TAG), Ok(context));
        }

        #[test]
        fn damaged_bytes_never_panic_and_break_no_invariant(
            [record, _, _] in three_records(),
            context in any_context(),
            cut in any::<prop::sample::Index>(),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let bytes = encode_record(&record);
            prop_assert!(decode_record(&bytes[..cut.index(bytes.len())]).is_err(), "cut short");
            damaged(bytes, &cut, &flips).iter().for_each(|bytes| use_record(bytes));
            let bytes = encode_context(&context);
            prop_assert!(decode_context(&bytes[..cut.index(bytes.len())], TAG).is_err(), "cut short");
            for damaged in damaged(bytes.clone(), &cut, &flips) {
                prop_assert!(damaged == bytes || decode_context(&damaged, TAG).is_err(), "a checksum finds it");
            }
        }

        /// Random bodies behind a good head: what no encoder makes.
        #[test]
        fn random_bytes_never_panic_and_break_no_invariant(
            body in proptest::collection::vec(prop_oneof![3 => 0..4u8, 1 => any::<u8>()], 0..120),
        ) {
            use_record(&body);
            use_context(&body, TAG);
            use_record(&[&[RECORD_MARKER, FORMAT_VERSION][..], &body].concat());
            let mut forged = [&[CONTEXT_MARKER, FORMAT_VERSION, 0][..], &body].concat();
            forged.extend_from_slice(&checksum(&forged));
            use_context(&forged, 0);
        }
    }

    #[test]
    fn a_wrong_head_is_named() {
        let context = ClientContext { key_tag: TAG, dots: Context::new(), stamp: Stamp(1) };
        let bytes = encode_context(&context);
        assert_eq!(decode_record(&bytes), Err(BadBytes::Marker("record")));
        assert_eq!(decode_record(b""), Err(BadBytes::Marker("record")));
        assert_eq!(decode_record(b"R"), Err(BadBytes::Marker("record")));
        let newer = BadBytes::Version { what: "record", got: FORMAT_VERSION + 1 };
        assert_eq!(decode_record(&[RECORD_MARKER, FORMAT_VERSION + 1, 0]), Err(newer));
        assert_eq!(decode_record(&[RECORD_MARKER, 0]), Err(BadBytes::Version { what: "record", got: 0 }));
        assert_eq!(decode_record(&[RECORD_MARKER, FORMAT_VERSION]), Err(BadBytes::Body("record")));
        let left_over = [&bytes[..], b"x"].concat();
        assert!(decode_context(&left_over, TAG).is_err(), "bytes left over");
    }

    /// `Record::Siblings` with no version: parses, breaks invariant 3.
    #[test]
    fn a_record_that_breaks_an_invariant_is_refused() {
        let empty = encode(RECORD_MARKER, &Record::Siblings(Vec::new()));
        assert_eq!(decode_record(&empty), Err(BadBytes::Invariant("a record without a version")));
    }

    #[test]
    fn a_context_is_refused_with_the_field_and_the_reason() {
        let context = ClientContext { key_tag: TAG, dots: Context::new(), stamp: Stamp(1) };
        let bytes = encode_context(&context);
        let refused = |bytes: &[u8], tag| decode_context(bytes, tag).expect_err("refused").to_string();
        assert_eq!(refused(&bytes, TAG + 1), "context: is of another key");
        let long = refused(&vec![0; limits::CONTEXT_BYTES + 1], TAG);
        assert!(long.contains("context") && long.contains("65537") && long.contains("65536"), "{long}");
        let mut flipped = bytes.clone();
        flipped[4] ^= 1;
        assert!(refused(&flipped, TAG).contains("a damaged context"));
        let short = refused(&bytes[..3], TAG);
        assert!(short.starts_with("context: ") && short.contains("3 bytes"), "{short}");

        // By hand: a vector of one actor with the counter 0, then no dots, no request ids and no stamp.
        let sealed = |body: &[u8]| [body, &checksum(body)].concat();
        let zero = [CONTEXT_MARKER, FORMAT_VERSION, 5, 1, 1, 1, 1, 0, 0, 0, 0];
        assert_eq!(refused(&sealed(&zero), 5), "context: a damaged context: not canonical");
        let one = [CONTEXT_MARKER, FORMAT_VERSION, 5, 1, 1, 1, 1, 1, 0, 0, 0];
        assert!(decode_context(&sealed(&one), 5).is_ok(), "the same with the counter 1 is good");
    }

    /// The reason that stands above `CONTEXT_BYTES`: the largest context in normal life fits many times.
    #[test]
    fn the_context_of_100_siblings_by_100_actors_is_under_4_kib() {
        let mut dots = Context::new();
        for n in 0..100 {
            let actor = Actor {
                node: NodeId(u64::MAX - n),
                incarnation: Incarnation(u64::MAX),
                birth: Birth(u64::MAX),
            };
            dots.insert(Dot { actor, counter: u64::MAX });
        }
        let stamp = Stamp(u64::MAX);
        let bytes = encode_context(&ClientContext { key_tag: u32::MAX, dots, stamp });
        assert!(bytes.len() < 4 << 10, "{} bytes", bytes.len());
    }

    #[test]
    fn a_key_tag_tells_sort_keys_and_positions_apart() {
        let tag = key_tag(Position(1), b"a");
        assert_ne!(tag, key_tag(Position(1), b"b"));
        assert_ne!(tag, key_tag(Position(2), b"a"));
        assert_eq!(tag, key_tag(Position(1), b"a"));
    }
}
