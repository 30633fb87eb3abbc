//! Identities. Each is a newtype, so that an index of one thing is never taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that should be an id and is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {digits} hexadecimal digits, not {text:?}")]
pub struct BadId {
    what: &'static str,
    digits: usize,
    text: String,
}

fn parse_hex(what: &'static str, digits: usize, text: &str) -> Result<u128, BadId> {
    let bad = || BadId { what, digits, text: text.chars().take(80).collect() };
    if text.len() != digits || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(bad());
    }
    u128::from_str_radix(text, 16).map_err(|_| bad())
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $int:ty, $digits:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $digits, "x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                parse_hex($what, $digits, text).map(|n| $name(n as $int))
            }
        }
    };
}

hex_id!(
    /// A node: one `quoral serve` process with its own data directory. 64 bits, written as 16 hex digits.
    NodeId, u64, 16, "a node id"
);
hex_id!(
    /// A cluster, derived from its bootstrap list. 128 bits, written as 32 hex digits.
    ClusterId, u128, 32, "a cluster id"
);
hex_id!(
    /// A data directory. Random, made once with the directory: an empty directory has a new one.
    DiskId, u64, 16, "a disk id"
);
hex_id!(
    /// One start of a process. Random per start; tells a restart from a second live process.
    Nonce, u64, 16, "a nonce"
);
hex_id!(
    /// A client's name for one write, so that a retry is recognised. 16 bytes.
    RequestId, u128, 32, "a request id"
);

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number_id!(
    /// A partition (vnode): an index from 0 to Q − 1 into the equal arcs of the ring.
    PartitionId, u16
);
number_id!(
    /// A keyspace. Never used again within a cluster, even for a keyspace of the same name.
    KeyspaceId, u32
);
number_id!(
    /// The version of the cluster map. Version 1 comes from the bootstrap list.
    MapVersion, u64
);
number_id!(
    /// The version of the layout inside the cluster map: it grows only when ownership changes.
    LayoutVersion, u64
);
number_id!(
    /// A life of a node's data directory; new for an empty directory and after an unclean stop that may
    /// have lost acknowledged state. Part of every dot.
    Incarnation, u64
);
number_id!(
    /// A node-wide number that starts a line of dots for one key. From leases that are durable before use.
    Birth, u64
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse() {
        let id = NodeId(0x1f);
        assert_eq!(id.to_string(), "000000000000001f");
        assert_eq!("000000000000001f".parse(), Ok(id));
        assert!("1f".parse::<NodeId>().is_err());
        assert!("00000000000000+f".parse::<NodeId>().is_err());
        assert!("zz00000000000000".parse::<NodeId>().is_err());
        assert_eq!(ClusterId(7).to_string().len(), 32);
    }
}
