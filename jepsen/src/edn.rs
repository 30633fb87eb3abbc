//! EDN, the notation of Jepsen's files: what we write of it, and enough to read it again.

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Edn {
    /// `nil`
    Nil,
    /// `true`
    Bool(bool),
    /// `1`
    Int(i64),
    /// `1.5`
    Float(f64),
    /// `"text"`
    Str(String),
    /// `:name`, without the colon; may hold a slash.
    Keyword(String),
    /// `[1 2]`
    Vector(Vec<Edn>),
    /// `#{1 2}`
    Set(Vec<Edn>),
    /// `{:a 1}`, in the order given.
    Map(Vec<(Edn, Edn)>),
}
