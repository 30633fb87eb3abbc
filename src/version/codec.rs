//! The stored and the wire form of records and contexts: a marker, a version, then the body.
//!
//! One form for both: a record is encoded once where it is minted and travels as bytes. The body is
//! `postcard`. What is stored has a checksum around it as well (see `storage::schema`).
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

fn encode(marker: u8, body: &impl Serialize) -> Vec<u8> {
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

/// Encodes a context for a client.
pub fn encode_context(context: &ClientContext) -> Vec<u8> {
    encode(CONTEXT_MARKER, context)
}

/// Decodes a client's context, which must be of the key with tag `key_tag`.
pub fn decode_context(bytes: &[u8], key_tag: u32) -> Result<ClientContext, Invalid> {
    Invalid::check_max("context", bytes.len(), limits::CONTEXT_BYTES, "bytes")?;
    let context: ClientContext = decode("context", CONTEXT_MARKER, bytes)
        .map_err(|bad| Invalid::new("context", format!("{bad} ({} bytes)", bytes.len())))?;
    if !context.dots.is_canonical() {
        return Err(Invalid::new("context", "a damaged context: not canonical"));
    }
    if context.key_tag != key_tag {
        return Err(Invalid::new("context", "is of another key"));
    }
    Ok(context)
}
