//! The values of a configuration with the place that each came from: a line of the file, or a variable.
//!
//! Why not serde's derive: its errors know a line but not the limit, and an environment variable has no
//! line. Here each error says where, which key, what is allowed, and what was written.
//!
//! Invariants:
//! 1. Each value given is taken or refused: a key that nobody asked for is a problem.
//! 2. A variable beats the file.

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody gave it.
    Default,
    /// Nobody gave it, and there is no default: an example stands in for it, to be shown.
    Missing,
    /// A line of the file.
    File {
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable, by name.
    Env(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::Missing => f.write_str("not set"),
            Source::File { line } => write!(f, "file, line {line}"),
            Source::Env(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; `Default` if the value is missing.
    pub source: Source,
    /// The key with its section; empty if the file is not TOML.
    pub key: String,
    /// The rule, with the limit and the value.
    pub text: String,
}

/// A value with its place.
#[derive(Debug, Clone)]
struct Item {
    value: Node,
    /// What the user wrote.
    written: String,
    source: Source,
}

#[derive(Debug, Clone)]
enum Node {
    Text(String),
    Number(i128),
    List(Vec<Item>),
    Table(BTreeMap<String, Item>),
    /// Of a type that no key has.
    Other,
}

/// Reads values of one table: the file's `section.key`s, or one table of a list.
#[derive(Debug, Default)]
pub struct Values {
    items: BTreeMap<String, Item>,
    /// Taken so far, for [`Values::source`].
    taken: BTreeMap<String, Source>,
    /// What went wrong so far.
    pub problems: Vec<Problem>,
}

impl Values {
    /// The file's text with the `QUORAL_SECTION_KEY` variables of `env` over it. `known` are the keys as
    /// (section, key); anything else, and a variable that looks like a key of a known section, is refused.
    pub fn parse(text: &str, env: &BTreeMap<String, String>, known: &[(&str, &str)]) -> Values {
        let mut values = Values::default();
        match DeTable::parse(text) {
            Ok(table) => values.add_file(table.into_inner(), text, known),
            Err(error) => {
                let span = error.span();
                let source = span.map_or(Source::Default, |s| Source::File { line: line_of(text, s.start) });
                let text = format!("is not TOML: {}", one_line(error.message()));
                values.problems.push(Problem { source, key: String::new(), text });
            }
        }
        for (name, value) in env {
            values.add_env(name, value, known);
        }
        values
    }

    /// The variables of `env` alone, over examples of what is required.
    pub fn without_file(examples: &str, env: &BTreeMap<String, String>, known: &[(&str, &str)]) -> Values {
        let mut values = Values::parse(examples, env, known);
        for item in values.items.values_mut().filter(|item| matches!(item.source, Source::File { .. })) {
            set_source(item, &Source::Missing);
        }
        values
    }

    fn add_file(&mut self, table: DeTable<'_>, text: &str, known: &[(&str, &str)]) {
        for (section, content) in table {
            let source = Source::File { line: line_of(text, section.span().start) };
            let section = section.into_inner().into_owned();
            let item = convert(content, text);
            let Node::Table(keys) = item.value else {
                let problem = format!("is not known here; {}", sections(known));
                self.problems.push(Problem { source, key: section, text: problem });
                continue;
            };
            if known.iter().all(|(name, _)| *name != section) {
                let problem = format!("is not a section; {}", sections(known));
                self.problems.push(Problem { source, key: section, text: problem });
                continue;
            }
            for (key, item) in keys {
                if known.contains(&(section.as_str(), key.as_str())) {
                    self.items.insert(format!("{section}.{key}"), item);
                } else {
                    self.unknown(item.source, &section, &key, known);
                }
            }
        }
    }

    fn add_env(&mut self, name: &str, text: &str, known: &[(&str, &str)]) {
        let Some(rest) = name.strip_prefix("QUORAL_") else { return };
        let Some((section, _)) =
            known.iter().find(|(section, _)| rest.starts_with(&format!("{}_", section.to_uppercase())))
        else {
            return;
        };
        let key = rest[section.len() + 1..].to_lowercase();
        let source = Source::Env(name.to_string());
        if !known.contains(&(*section, key.as_str())) {
            return self.unknown(source, section, &key, known);
        }
        let mut item = match DeValue::parse(text) {
            Ok(value) => convert(value, text),
            Err(_) => {
                Item { value: Node::Text(text.to_string()), written: String::new(), source: Source::Default }
            }
        };
        item.written = text.to_string();
        set_source(&mut item, &source);
        self.items.insert(format!("{section}.{key}"), item);
    }

    fn unknown(&mut self, source: Source, section: &str, key: &str, known: &[(&str, &str)]) {
        let keys: Vec<&str> = known.iter().filter(|(s, _)| *s == section).map(|(_, key)| *key).collect();
        let text = format!("is not a key; [{section}] has {}", keys.join(", "));
        self.problems.push(Problem { source, key: format!("{section}.{key}"), text });
    }

    /// Where the value of `key` came from.
    pub fn source(&self, key: &str) -> Source {
        self.taken.get(key).cloned().unwrap_or(Source::Default)
    }

    /// Notes that `key` breaks a rule.
    pub fn refuse(&mut self, key: &str, text: impl Into<String>) {
        let source = self.source(key);
        self.problems.push(Problem { source, key: key.to_string(), text: text.into() });
    }

    /// Whether there is a value for `key` that has not been taken.
    pub fn has(&self, key: &str) -> bool {
        self.items.contains_key(key)
    }

    fn take(&mut self, key: &str) -> Option<Item> {
        let item = self.items.remove(key)?;
        self.taken.insert(key.to_string(), item.source.clone());
        Some(item)
    }

    /// A text; from a variable also one that looks like a number.
    pub fn text(&mut self, key: &str) -> Option<String> {
        let item = self.take(key)?;
        match (item.value, &item.source) {
            (Node::Text(text), _) => Some(text),
            (_, Source::Env(_)) => Some(item.written),
            _ => {
                self.refuse(key, format!("must be a text in quotes, not {}", short(&item.written)));
                None
            }
        }
    }

    /// A text that `parse` understands.
    pub fn parsed<T, E: fmt::Display>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                // An `Invalid` names its own field; the key with its section says it better.
                let error = error.to_string();
                let field = key.rsplit('.').next().unwrap_or(key);
                let error = error.strip_prefix(&format!("{field}: ")).unwrap_or(&error);
                self.refuse(key, error);
                None
            }
        }
    }

    /// A whole number within `range`, which counts `unit`.
    pub fn number(&mut self, key: &str, range: std::ops::RangeInclusive<u64>, unit: &str) -> Option<u64> {
        let item = self.take(key)?;
        let (min, max) = (range.start(), range.end());
        let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
        let rule = format!("a whole number from {min} to {max}{unit}");
        match item.value {
            Node::Number(number) => match u64::try_from(number).ok().filter(|n| range.contains(n)) {
                Some(number) => return Some(number),
                None => self.refuse(key, format!("is {number}, must be {rule}")),
            },
            _ => self.refuse(key, format!("must be {rule}, not {}", short(&item.written))),
        }
        None
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str) -> Option<bool> {
        let item = self.take(key)?;
        match item.written.trim() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.refuse(key, format!("must be true or false, not {}", short(&item.written)));
                None
            }
        }
    }

    /// A list of tables, each to be read as `Values` with keys `key[i].name`; `known` are the names.
    pub fn tables(&mut self, key: &str, known: &[&str]) -> Option<Vec<Values>> {
        let item = self.take(key)?;
        let Node::List(list) = item.value else {
            self.refuse(key, format!("must be a list of tables, not {}", short(&item.written)));
            return None;
        };
        let mut tables = Vec::new();
        for (index, element) in list.into_iter().enumerate() {
            let path = format!("{key}[{index}]");
            let Node::Table(keys) = element.value else {
                let text = format!("must be a table, not {}", short(&element.written));
                self.problems.push(Problem { source: element.source, key: path, text });
                continue;
            };
            let mut values = Values::default();
            // A key that is missing is missing on the line of its table.
            values.taken.extend(known.iter().map(|name| (format!("{path}.{name}"), element.source.clone())));
            for (name, item) in keys {
                let full = format!("{path}.{name}");
                if known.contains(&name.as_str()) {
                    values.items.insert(full, item);
                } else {
                    let text = format!("is not a key; {key} has {}", known.join(", "));
                    values.problems.push(Problem { source: item.source, key: full, text });
                }
            }
            tables.push(values);
        }
        Some(tables)
    }
}

fn sections(known: &[(&str, &str)]) -> String {
    let mut names: Vec<String> = known.iter().map(|(section, _)| format!("[{section}]")).collect();
    names.dedup();
    format!("the sections are {}", names.join(", "))
}

fn convert(value: Spanned<DeValue<'_>>, text: &str) -> Item {
    let span = value.span();
    let source = Source::File { line: line_of(text, span.start) };
    let written = text.get(span).unwrap_or_default().to_string();
    let value = match value.into_inner() {
        DeValue::String(text) => Node::Text(text.into_owned()),
        DeValue::Integer(number) => {
            i128::from_str_radix(number.as_str(), number.radix()).map_or(Node::Other, Node::Number)
        }
        DeValue::Array(list) => Node::List(list.into_iter().map(|item| convert(item, text)).collect()),
        DeValue::Table(table) => Node::Table(
            table
                .into_iter()
                .map(|(key, item)| (key.into_inner().into_owned(), convert(item, text)))
                .collect(),
        ),
        DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => Node::Other,
    };
    Item { value, written, source }
}

fn set_source(item: &mut Item, source: &Source) {
    item.source = source.clone();
    match &mut item.value {
        Node::List(list) => list.iter_mut().for_each(|item| set_source(item, source)),
        Node::Table(table) => table.values_mut().for_each(|item| set_source(item, source)),
        _ => {}
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn short(text: &str) -> String {
    let text = one_line(text);
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain(['…']).collect() }
}
