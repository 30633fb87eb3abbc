//! Values that can be compared and ordered, as EDN's can't.

use std::fmt::{self, Display, Formatter};

use crate::edn::Edn;

/// What was written or read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Val {
    /// Nothing.
    Nil,
    /// What workloads write.
    Int(i64),
    /// Anything else, as text: nobody wrote it, but a broken database may return it.
    Other(String),
}

impl Val {
    pub(super) fn of(edn: &Edn) -> Self {
        match edn {
            Edn::Nil => Self::Nil,
            Edn::Int(number) => Self::Int(*number),
            other => Self::Other(other.to_string()),
        }
    }

    /// The items of a list; of anything else but nil, itself.
    pub(super) fn all_of(edn: &Edn) -> Vec<Self> {
        match (edn, edn.as_list()) {
            (_, Some(items)) => items.iter().map(Self::of).collect(),
            (Edn::Nil, None) => Vec::new(),
            (one, None) => vec![Self::of(one)],
        }
    }
}

impl Display for Val {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Int(number) => number.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}
