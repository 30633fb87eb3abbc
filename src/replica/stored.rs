//! A record as one node stores it: the local mark, then the record as it travels.
//!
//! Body of a sealed value: `postcard` of `Option<Line>`, then the bytes of `version::codec`. The record's
//! bytes are served to peers as they are.

use serde::{Deserialize, Serialize};

use crate::storage::schema;
use crate::storage::{Storage, StorageError};
use crate::types::ids::{Birth, Incarnation};
use crate::version::codec::{self, BadBytes};
use crate::version::record::Record;

/// The local mark: the line of dots that this node mints for this key, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The life of the data directory that began it.
    pub incarnation: Incarnation,
    /// Its birth.
    pub birth: Birth,
    /// The last counter issued.
    pub counter: u64,
}

/// A stored record, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The local mark.
    pub line: Option<Line>,
    /// The record.
    pub record: Record,
}

/// Why a stored record can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The engine failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The bytes are damaged: never served, and never taken for "not found".
    #[error("a stored record is damaged: {0}")]
    Damaged(String),
}

impl From<BadBytes> for LoadError {
    fn from(bad: BadBytes) -> LoadError {
        LoadError::Damaged(bad.to_string())
    }
}

/// The value to store for a record under `key`.
pub fn encode(key: &[u8], line: Option<Line>, record_bytes: &[u8]) -> Vec<u8> {
    // A Vec grows as needed and a Line has no fallible Serialize, so this can't fail.
    let mut body = postcard::to_extend(&line, Vec::new()).expect("a Vec takes any line");
    body.extend_from_slice(record_bytes);
    schema::seal(key, &body)
}

/// The mark, and the record's bytes, of a stored value.
pub fn split<'a>(key: &[u8], value: &'a [u8]) -> Result<(Option<Line>, &'a [u8]), LoadError> {
    let body = schema::open(key, value).map_err(|damaged| LoadError::Damaged(damaged.to_string()))?;
    postcard::take_from_bytes(body).map_err(|_| LoadError::Damaged("no local mark".into()))
}

/// Decodes a stored value.
pub fn decode(key: &[u8], value: &[u8]) -> Result<Stored, LoadError> {
    let (line, bytes) = split(key, value)?;
    Ok(Stored { line, record: codec::decode_record(bytes)? })
}

/// Reads and decodes the record under `key`.
pub fn load(storage: &dyn Storage, key: &[u8]) -> Result<Option<Stored>, LoadError> {
    storage.get(key)?.map(|value| decode(key, &value)).transpose()
}
