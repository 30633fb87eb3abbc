//! A record as one node stores it: the local mark, then the record as it travels.
//!
//! Body of a sealed value: `postcard` of `Option<Line>`, then the bytes of `version::codec`. The record's
//! bytes are served to peers as they are.
//!
//! A place whose record was found damaged has a 2 there, which begins no mark, then the record that has come since,
//! or nothing. Such a place is answered as damaged until it is healed (`replica::quarantine`).

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

/// What stands at a record's place.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// Nothing.
    Nothing,
    /// A record.
    Sound(Stored),
    /// A record was, and it can't be read any more.
    Damaged(Damage),
}

/// A record that can't be read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What is wrong.
    pub why: String,
    /// What stands there; none if it was set aside already.
    pub found: Option<Vec<u8>>,
    /// What has come since it was set aside.
    pub since: Option<Record>,
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
    if body.first() == Some(&SET_ASIDE) {
        return Err(LoadError::Damaged(SET_ASIDE_TEXT.into()));
    }
    postcard::take_from_bytes(body).map_err(|_| LoadError::Damaged("no local mark".into()))
}

/// First byte of the body where a damaged record was set aside.
const SET_ASIDE: u8 = 2;
const SET_ASIDE_TEXT: &str = "it was set aside, and waits for its other replicas";

/// The value to store where a damaged record was set aside, with what has come since.
pub fn encode_set_aside(key: &[u8], since: Option<&Record>) -> Vec<u8> {
    let mut body = vec![SET_ASIDE];
    body.extend(since.map(codec::encode_record).unwrap_or_default());
    schema::seal(key, &body)
}

/// What stands under `key`. A record whose checksum is right and that still can't be read is no damage, but an error:
/// a newer release has written it.
pub fn place(storage: &dyn Storage, key: &[u8]) -> Result<Place, LoadError> {
    let Some(value) = storage.get(key)? else { return Ok(Place::Nothing) };
    let body = match schema::open(key, &value) {
        Ok(body) => body,
        Err(newer @ schema::Damaged::Version(_)) => return Err(LoadError::Damaged(newer.to_string())),
        Err(damaged) => {
            let why = damaged.to_string();
            return Ok(Place::Damaged(Damage { why, found: Some(value), since: None }));
        }
    };
    match body {
        [SET_ASIDE, since @ ..] => {
            let since = if since.is_empty() { None } else { Some(codec::decode_record(since)?) };
            Ok(Place::Damaged(Damage { why: SET_ASIDE_TEXT.into(), found: None, since }))
        }
        _ => decode(key, &value).map(Place::Sound),
    }
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
