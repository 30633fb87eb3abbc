//! EDN, the notation of Jepsen's files: what we write of it, and enough to read it again.
//!
//! The writer puts everything on one line, so that a history is one map a line. What was written reads back
//! as the same value (keywords that EDN can't hold are the exception: their bad characters become `_`).
//! Not here: symbols, characters as a type of their own, ratios, tags (a tag is skipped when read).

use std::fmt::{self, Display, Formatter, Write};

mod read;

pub use read::EdnError;

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

impl Edn {
    /// A keyword, from its name without the colon.
    pub fn keyword(name: impl Into<String>) -> Self {
        Self::Keyword(name.into())
    }

    /// A map whose keys are keywords.
    pub fn map<N: Into<String>>(entries: impl IntoIterator<Item = (N, Self)>) -> Self {
        Self::Map(entries.into_iter().map(|(name, value)| (Self::keyword(name), value)).collect())
    }

    /// A vector of what can be made a value.
    pub fn vector<T: Into<Self>>(items: impl IntoIterator<Item = T>) -> Self {
        Self::Vector(items.into_iter().map(Into::into).collect())
    }

    /// The number, if it is a whole one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The text of a string or the name of a keyword.
    pub fn as_name(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Keyword(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a vector or a set.
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::Vector(items) | Self::Set(items) => Some(items),
            _ => None,
        }
    }

    /// What a map has under this keyword.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        let found = entries.iter().find(|(key, _)| matches!(key, Self::Keyword(own) if own == name));
        found.map(|(_, value)| value)
    }
}

impl From<bool> for Edn {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Edn {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u64> for Edn {
    /// What does not fit becomes the greatest number there is.
    fn from(value: u64) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Edn {
    /// What does not fit becomes the greatest number there is.
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Edn {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Edn {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<String> for Edn {
    fn from(value: String) -> Self {
        Self::Str(value)
    }
}

impl Display for Edn {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) if value.is_nan() => f.write_str("##NaN"),
            Self::Float(value) if value.is_infinite() => {
                f.write_str(if *value > 0.0 { "##Inf" } else { "##-Inf" })
            }
            // The debug form always has a point or an exponent.
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Str(text) => write_text(f, text),
            Self::Keyword(name) => write_keyword(f, name),
            Self::Vector(items) => write_items(f, "[", items, "]"),
            Self::Set(items) => write_items(f, "#{", items, "}"),
            Self::Map(entries) => {
                f.write_char('{')?;
                for (place, (key, value)) in entries.iter().enumerate() {
                    let comma = if place == 0 { "" } else { ", " };
                    write!(f, "{comma}{key} {value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn write_items(f: &mut Formatter<'_>, open: &str, items: &[Edn], close: &str) -> fmt::Result {
    f.write_str(open)?;
    for (place, item) in items.iter().enumerate() {
        let space = if place == 0 { "" } else { " " };
        write!(f, "{space}{item}")?;
    }
    f.write_str(close)
}

fn write_text(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for char in text.chars() {
        match char {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            // Also the two that others take for the end of a line.
            _ if char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') => {
                write!(f, "\\u{:04x}", u32::from(char))?;
            }
            _ => f.write_char(char)?,
        }
    }
    f.write_char('"')
}

/// Whether a keyword may hold it.
fn of_a_name(char: char) -> bool {
    char.is_alphanumeric() || "*+!-_?$%&=<>./'#:|".contains(char)
}

fn write_keyword(f: &mut Formatter<'_>, name: &str) -> fmt::Result {
    f.write_char(':')?;
    if name.is_empty() {
        return f.write_char('_');
    }
    name.chars().try_for_each(|char| f.write_char(if of_a_name(char) { char } else { '_' }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_edn() -> impl Strategy<Value = Edn> {
        let leaf = prop_oneof![
            Just(Edn::Nil),
            any::<bool>().prop_map(Edn::Bool),
            any::<i64>().prop_map(Edn::Int),
            any::<f64>().prop_filter("is not equal to itself", |f| !f.is_nan()).prop_map(Edn::Float),
            any::<String>().prop_map(Edn::Str),
            "[a-z*!?][a-z0-9.+-]{0,6}(/[a-z]{1,4})?".prop_map(Edn::Keyword),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Edn::Vector),
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Edn::Set),
                proptest::collection::vec((inner.clone(), inner), 0..6).prop_map(Edn::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value in any_edn()) {
            let text = value.to_string();
            prop_assert!(!text.contains('\n'));
            prop_assert_eq!(Edn::parse(&text), Ok(value));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[\\[\\]{}()#:;\\\\\"a-f0-9 ,.+\n_-]{0,40}") {
            let _ = Edn::parse_all(&text);
        }
    }

    #[test]
    fn it_is_written_as_clojure_does() {
        let value = Edn::map([
            ("index", Edn::Int(3)),
            ("f", Edn::keyword("read")),
            ("value", Edn::Vector(vec![Edn::Int(0), Edn::Nil])),
            ("share", Edn::Float(1.0)),
            ("set", Edn::Set(vec![Edn::Int(1), Edn::Int(2)])),
            ("error", Edn::from("a \"b\"\n\\")),
        ]);
        let text = r#"{:index 3, :f :read, :value [0 nil], :share 1.0, :set #{1 2}, :error "a \"b\"\n\\"}"#;
        assert_eq!(value.to_string(), text);
        assert_eq!(value.get("f").and_then(Edn::as_name), Some("read"));
        assert_eq!(Edn::keyword("a b").to_string(), ":a_b");
        assert_eq!(Edn::Float(f64::NAN).to_string(), "##NaN");
    }
}
