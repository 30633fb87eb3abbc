//! What a keyspace promises, and what one request may ask for instead.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Invalid;
use super::ids::KeyspaceId;
use super::limits;

/// What happens to concurrent writes of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conflicts {
    /// One version stays: the one with the greatest stamp.
    Lww,
    /// All stay, until a write whose context covers them.
    Siblings,
}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Conflicts::Lww => "lww",
            Conflicts::Siblings => "siblings",
        })
    }
}

impl FromStr for Conflicts {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Conflicts, Invalid> {
        match text {
            "lww" => Ok(Conflicts::Lww),
            "siblings" => Ok(Conflicts::Siblings),
            other => Err(Invalid::new("conflicts", format!("must be lww or siblings, not {other:?}"))),
        }
    }
}

/// When a node's acknowledged writes are on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Before the acknowledgement; writes that wait together share one sync.
    #[default]
    Always,
    /// Within 200 ms: a machine that loses power may lose writes that it acknowledged.
    Interval,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Durability::Always => "always",
            Durability::Interval => "interval",
        })
    }
}

impl FromStr for Durability {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Durability, Invalid> {
        match text {
            "always" => Ok(Durability::Always),
            "interval" => Ok(Durability::Interval),
            other => Err(Invalid::new("durability", format!("must be always or interval, not {other:?}"))),
        }
    }
}

/// How many replicas must answer: a number or a name for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    /// Exactly so many.
    Count(u32),
    /// One.
    One,
    /// More than half of `n`.
    Quorum,
    /// All `n`.
    All,
}

impl Level {
    /// The number of replicas, for `n` of them; refuses 0 and more than `n`, naming `field`.
    pub fn resolve(self, field: &str, n: u8) -> Result<u8, Invalid> {
        match self {
            Level::One => Ok(1),
            Level::Quorum => Ok(n / 2 + 1),
            Level::All => Ok(n),
            Level::Count(0) => Err(Invalid::new(field, "is 0, must be at least 1")),
            Level::Count(count) => match u8::try_from(count) {
                Ok(count) if count <= n => Ok(count),
                _ => Err(Invalid::new(field, format!("is {count}, over the keyspace's n of {n}"))),
            },
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Level::Count(count) => write!(f, "{count}"),
            Level::One => f.write_str("one"),
            Level::Quorum => f.write_str("quorum"),
            Level::All => f.write_str("all"),
        }
    }
}

impl FromStr for Level {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Level, Invalid> {
        match text {
            "one" => Ok(Level::One),
            "quorum" => Ok(Level::Quorum),
            "all" => Ok(Level::All),
            number => number.parse().map(Level::Count).map_err(|_| {
                Invalid::new("level", format!("must be a number, one, quorum or all, not {number:?}"))
            }),
        }
    }
}

/// A keyspace and its policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Keyspace {
    /// Never used again, even for the same name.
    pub id: KeyspaceId,
    /// The name that users give.
    pub name: String,
    /// Fixed for the life of the keyspace.
    pub conflicts: Conflicts,
    /// Replicas of each key; fixed for the life of the keyspace.
    pub n: u8,
    /// Answers that a get waits for, unless the request says otherwise.
    pub r: u8,
    /// Acknowledgements that a put waits for, likewise.
    pub w: u8,
    /// Whether fallbacks may stand in for home replicas in a write.
    pub sloppy: bool,
    /// Milliseconds that a version lives, unless the request says otherwise.
    pub ttl_ms: Option<u64>,
}

impl Keyspace {
    /// Checks the policy against itself and the number of nodes; names the field, limit and value.
    pub fn validate(&self, nodes: usize) -> Result<(), Invalid> {
        check_name("name", &self.name)?;
        if self.n == 0 {
            return Err(Invalid::new("n", "is 0, must be at least 1"));
        }
        Invalid::check_max("n", self.n.into(), limits::N_MAX.into(), "replicas")?;
        if usize::from(self.n) > nodes {
            return Err(Invalid::new("n", format!("is {}, over the cluster's {nodes} nodes", self.n)));
        }
        Level::Count(self.r.into()).resolve("r", self.n)?;
        Level::Count(self.w.into()).resolve("w", self.n)?;
        if self.ttl_ms == Some(0) {
            return Err(Invalid::new("ttl", "is 0 ms, must be at least 1 ms"));
        }
        Ok(())
    }
}

/// Names of keyspaces, nodes and zones: 1 to 64 of `a-z A-Z 0-9 . _ -`.
pub fn check_name(field: &str, name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::new(field, "must not be empty"));
    }
    Invalid::check_max(field, name.len(), limits::NAME_BYTES, "bytes")?;
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        Some(c) => Err(Invalid::new(
            field,
            format!("{name:?} has the character {c:?}; letters, digits, '.', '_' and '-' are allowed"),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_resolve_within_n() {
        assert_eq!(Level::Quorum.resolve("r", 3), Ok(2));
        assert_eq!(Level::Quorum.resolve("r", 4), Ok(3));
        assert_eq!(Level::Quorum.resolve("r", 1), Ok(1));
        assert_eq!(Level::All.resolve("w", 5), Ok(5));
        assert_eq!(Level::Count(3).resolve("w", 3), Ok(3));
        let e = Level::Count(4).resolve("w", 3).expect_err("over n").to_string();
        assert!(e.contains('w') && e.contains('4') && e.contains('3'), "{e}");
        assert!(Level::Count(0).resolve("r", 3).is_err());
        assert!(Level::Count(300).resolve("r", 3).is_err());
    }

    #[test]
    fn names_are_checked() {
        assert!(check_name("keyspace", "carts.v2_x-1").is_ok());
        assert!(check_name("keyspace", "").is_err());
        assert!(check_name("keyspace", "a b").is_err());
        assert!(check_name("keyspace", &"x".repeat(65)).is_err());
    }
}
