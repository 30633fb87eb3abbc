//! Reads the own copy of one key.

use std::sync::Arc;

use bytes::Bytes;

use super::stored::{self, Damage, LoadError, Place};
use crate::storage::Storage;
use crate::version::codec;
use crate::version::record::{Digest, Record};

/// The own copy.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Decoded.
    pub record: Arc<Record>,
    /// As it travels.
    pub bytes: Bytes,
}

/// What to tell a coordinator that holds a record with digest `have`.
#[derive(Debug, Clone)]
pub enum Fetched {
    /// The same record.
    Same,
    /// Another one.
    Other(Copy),
    /// None.
    Nothing,
}

/// Reads the record under `key`.
pub fn fetch(storage: &dyn Storage, key: &[u8]) -> Result<Option<Copy>, LoadError> {
    let Some(value) = storage.get(key)? else { return Ok(None) };
    let (_, bytes) = stored::split(key, &value)?;
    let record = Arc::new(codec::decode_record(bytes)?);
    Ok(Some(Copy { record, bytes: Bytes::copy_from_slice(bytes) }))
}

/// If the record under `key` was damaged and set aside: what has come since, encoded, or no bytes.
pub fn set_aside(storage: &dyn Storage, key: &[u8]) -> Option<Bytes> {
    match stored::place(storage, key) {
        Ok(Place::Damaged(Damage { found: None, since, .. })) => {
            Some(since.as_ref().map(codec::encode_record).unwrap_or_default().into())
        }
        _ => None,
    }
}

/// Reads the record under `key` for a coordinator that may hold the same.
pub fn fetch_unless(storage: &dyn Storage, key: &[u8], have: Option<Digest>) -> Result<Fetched, LoadError> {
    Ok(match fetch(storage, key)? {
        None => Fetched::Nothing,
        Some(copy) if have == Some(copy.record.digest()) => Fetched::Same,
        Some(copy) => Fetched::Other(copy),
    })
}
