//! What goes into requests and comes out of answers: keys, levels, contexts, values.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::error::Conflict;
use crate::proto;

/// A partition key, and a sort key within it, which may be empty.
///
/// All sort keys of one partition key live together, in byte order. From one value it is the partition key, from a
/// pair both: `"cart:42"`, `("room:7", "2026-01-01")`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The partition key: 1 to 1 024 bytes.
    pub partition: Bytes,
    /// The sort key: 0 to 1 024 bytes.
    pub sort: Bytes,
}

macro_rules! key_from {
    ($($from:ty),*) => {$(
        impl From<$from> for Key {
            fn from(partition: $from) -> Key {
                Key { partition: to_bytes(partition), sort: Bytes::new() }
            }
        }
        impl<S: AsRef<[u8]>> From<($from, S)> for Key {
            fn from((partition, sort): ($from, S)) -> Key {
                Key { partition: to_bytes(partition), sort: to_bytes(sort) }
            }
        }
    )*};
}

fn to_bytes(bytes: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(bytes.as_ref())
}

key_from!(&str, String, &String, &[u8], Vec<u8>, Bytes);

/// A number of replicas: to hear, or to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// So many.
    Count(u32),
    /// One.
    One,
    /// More than half of the keyspace's `n`.
    Quorum,
    /// All `n`.
    All,
}

impl From<u32> for Level {
    fn from(count: u32) -> Level {
        Level::Count(count)
    }
}

impl Level {
    fn wire(self) -> Result<u32, i32> {
        match self {
            Level::Count(count) => Ok(count),
            Level::One => Err(proto::Level::One.into()),
            Level::Quorum => Err(proto::Level::Quorum.into()),
            Level::All => Err(proto::Level::All.into()),
        }
    }

    pub(crate) fn of_put(self) -> proto::put_request::Acks {
        self.wire().map_or_else(proto::put_request::Acks::WLevel, proto::put_request::Acks::W)
    }

    pub(crate) fn of_delete(self) -> proto::delete_request::Acks {
        self.wire().map_or_else(proto::delete_request::Acks::WLevel, proto::delete_request::Acks::W)
    }

    pub(crate) fn of_get(self) -> proto::get_request::Answers {
        self.wire().map_or_else(proto::get_request::Answers::RLevel, proto::get_request::Answers::R)
    }

    pub(crate) fn of_scan(self) -> proto::scan_request::Answers {
        self.wire().map_or_else(proto::scan_request::Answers::RLevel, proto::scan_request::Answers::R)
    }
}

/// Which versions of one key a client has seen: opaque. A write that carries it replaces those, and no others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Context(Bytes);

impl Context {
    /// Its bytes, to be kept or sent along.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether it covers nothing: the key was never written, or not to this client's knowledge.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Bytes> for Context {
    fn from(bytes: Bytes) -> Context {
        Context(bytes)
    }
}

impl From<Context> for Bytes {
    fn from(context: Context) -> Bytes {
        context.0
    }
}

/// When a version was written: a hybrid logical clock. Greater is later, as far as clocks can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Its wall clock.
    pub fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0 >> 16)
    }
}

/// One of the concurrent values of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The value.
    pub value: Bytes,
    /// When it was written.
    pub stamp: Stamp,
    /// When it will be gone, if it has a time to live.
    pub expires_at: Option<SystemTime>,
}

impl From<proto::Sibling> for Sibling {
    fn from(sibling: proto::Sibling) -> Sibling {
        let at = |ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
        Sibling {
            value: sibling.value,
            stamp: Stamp(sibling.stamp),
            expires_at: Some(sibling.expires_at_ms).filter(|ms| *ms > 0).and_then(at),
        }
    }
}

/// What a get found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The concurrent values; none if the key is not there, at most one in an `lww` keyspace.
    pub siblings: Vec<Sibling>,
    /// Covers all of them, and deletes. May be set when nothing was found.
    pub context: Context,
    /// Replicas that were to be heard, and that were.
    pub r: u32,
    /// Replicas heard.
    pub replies: u32,
    /// Whether fallbacks are among them.
    pub sloppy: bool,
    /// How often it was sent.
    pub attempts: u32,
}

impl Found {
    pub(crate) fn new(answer: proto::GetResponse, attempts: u32) -> Found {
        Found {
            siblings: answer.siblings.into_iter().map(Sibling::from).collect(),
            context: Context(answer.context),
            r: answer.r,
            replies: answer.replies,
            sloppy: answer.sloppy,
            attempts,
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.siblings.is_empty()
    }

    /// The concurrent values.
    pub fn values(&self) -> impl Iterator<Item = &Bytes> {
        self.siblings.iter().map(|sibling| &sibling.value)
    }

    /// The value, if there is one; an error if there are several. For `lww` keyspaces, which never have several.
    pub fn one(&self) -> Result<Option<&Bytes>, Conflict> {
        match self.siblings.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(&one.value)),
            several => Err(Conflict { siblings: several.len() }),
        }
    }
}

/// An acknowledged put or delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Covers this write and what it replaced: the next write of the same client can carry it.
    pub context: Context,
    /// Acknowledgements asked for.
    pub w: u32,
    /// Acknowledgements received when the answer was given.
    pub acks: u32,
    /// Whether fallbacks counted.
    pub sloppy: bool,
    /// When it was written.
    pub stamp: Stamp,
    /// How often it was sent.
    pub attempts: u32,
}

impl Written {
    pub(crate) fn of_put(answer: proto::PutResponse, attempts: u32) -> Written {
        let proto::PutResponse { context, w, acks, sloppy, stamp, session: _ } = answer;
        Written { context: Context(context), w, acks, sloppy, stamp: Stamp(stamp), attempts }
    }

    pub(crate) fn of_delete(answer: proto::DeleteResponse, attempts: u32) -> Written {
        let proto::DeleteResponse { context, w, acks, sloppy, stamp, session: _ } = answer;
        Written { context: Context(context), w, acks, sloppy, stamp: Stamp(stamp), attempts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_from_what_is_at_hand() {
        let both = Key { partition: "room".into(), sort: "1".into() };
        assert_eq!(Key::from(("room", "1")), both);
        assert_eq!(Key::from((String::from("room"), b"1")), both);
        assert_eq!(Key::from(b"room".as_slice()), Key { sort: Bytes::new(), ..both });
    }

    #[test]
    fn several_values_are_no_single_one() {
        let sibling =
            |value: &'static str| Sibling { value: value.into(), stamp: Stamp(1), expires_at: None };
        let mut found = Found::new(proto::GetResponse::default(), 1);
        assert_eq!(found.one(), Ok(None));
        found.siblings.push(sibling("a"));
        assert_eq!(found.one(), Ok(Some(&Bytes::from("a"))));
        found.siblings.push(sibling("b"));
        assert_eq!(found.one(), Err(Conflict { siblings: 2 }));
    }

    #[test]
    fn stamps_and_ends_are_times() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        assert_eq!(Stamp(7_000 << 16 | 5).time(), at);
        let wire = proto::Sibling { expires_at_ms: 7_000, ..Default::default() };
        assert_eq!(Sibling::from(wire).expires_at, Some(at));
        assert_eq!(Sibling::from(proto::Sibling::default()).expires_at, None);
    }
}
