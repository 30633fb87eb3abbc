//! REMOVE AT THE MERGE: stand-ins for what `edn.rs` and `history.rs` do. Put in their place:
//!
//! - `edn_text(v)`: `v.to_string()`; `edn_parse(t)`: `Edn::parse(t).ok()`;
//! - `event_line(e)`: `e.to_edn().to_string()`, and `text::history_edn(h)`: `h.to_edn()`;
//! - `Period` and `periods(h)`: `history::Period` and `h.nemesis_periods()`.

use std::fmt::Write;

use crate::edn::Edn;
use crate::history::{Event, History, Process};

/// A value's text. Stands in for `Display`.
pub fn edn_text(value: &Edn) -> String {
    let list = |items: &[Edn]| items.iter().map(edn_text).collect::<Vec<_>>().join(" ");
    match value {
        Edn::Nil => "nil".into(),
        Edn::Bool(b) => b.to_string(),
        Edn::Int(i) => i.to_string(),
        Edn::Float(f) => format!("{f:?}"),
        Edn::Keyword(k) => format!(":{k}"),
        Edn::Vector(items) => format!("[{}]", list(items)),
        Edn::Set(items) => format!("#{{{}}}", list(items)),
        Edn::Map(pairs) => {
            let pairs: Vec<_> =
                pairs.iter().map(|(k, v)| format!("{} {}", edn_text(k), edn_text(v))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Edn::Str(s) => {
            let mut out = String::from('"');
            for c in s.chars() {
                match c {
                    '"' => out.push_str("\\\""),
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    c if c.is_control() => {
                        let _ = write!(out, "\\u{:04x}", u32::from(c));
                    }
                    c => out.push(c),
                }
            }
            out + "\""
        }
    }
}

/// An event as a line of `history.edn`, without its end.
pub fn event_line(event: &Event) -> String {
    let process = match event.process {
        Process::Client(n) => n.to_string(),
        Process::Nemesis => ":nemesis".into(),
    };
    let mut line = format!(
        "{{:index {}, :time {}, :process {process}, :type :{}, :f :{}, :value {}",
        event.index,
        event.time,
        super::text::kind(event.kind),
        event.f,
        edn_text(&event.value)
    );
    for (name, value) in &event.extra {
        let _ = write!(line, ", :{name} {}", edn_text(value));
    }
    line + "}"
}

/// Reads a value that `edn_text` wrote; `None` if it is not one.
pub fn edn_parse(text: &str) -> Option<Edn> {
    let (value, rest) = read(text, 0)?;
    skip(rest).is_empty().then_some(value)
}

const DEPTH_MAX: usize = 64;

fn skip(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_whitespace() || c == ',')
}

fn read(text: &str, depth: usize) -> Option<(Edn, &str)> {
    let text = skip(text);
    if depth > DEPTH_MAX {
        return None;
    }
    if let Some(rest) = text.strip_prefix('"') {
        return read_str(rest);
    }
    if let Some(rest) = text.strip_prefix("#{") {
        return read_list(rest, '}', depth).map(|(items, rest)| (Edn::Set(items), rest));
    }
    if let Some(rest) = text.strip_prefix('[') {
        return read_list(rest, ']', depth).map(|(items, rest)| (Edn::Vector(items), rest));
    }
    if let Some(rest) = text.strip_prefix('{') {
        let (items, rest) = read_list(rest, '}', depth)?;
        let pairs = items.chunks(2).map(|pair| Some((pair[0].clone(), pair.get(1)?.clone())));
        return Some((Edn::Map(pairs.collect::<Option<_>>()?), rest));
    }
    let end = text.find(|c: char| c.is_whitespace() || ",[]{}\"".contains(c)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let value = match word {
        "nil" => Edn::Nil,
        "true" => Edn::Bool(true),
        "false" => Edn::Bool(false),
        _ => match word.strip_prefix(':') {
            Some(name) => Edn::Keyword(name.into()),
            None => word.parse().map(Edn::Int).or_else(|_| word.parse().map(Edn::Float)).ok()?,
        },
    };
    Some((value, rest))
}

fn read_list(mut text: &str, close: char, depth: usize) -> Option<(Vec<Edn>, &str)> {
    let mut items = Vec::new();
    loop {
        text = skip(text);
        if let Some(rest) = text.strip_prefix(close) {
            return Some((items, rest));
        }
        let (item, rest) = read(text, depth + 1)?;
        items.push(item);
        text = rest;
    }
}

fn read_str(text: &str) -> Option<(Edn, &str)> {
    let (mut out, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((Edn::Str(out), &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                'u' => {
                    let hex: String = (0..4).map_while(|_| chars.next().map(|(_, c)| c)).collect();
                    out.push(char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?);
                }
                c => out.push(c),
            },
            c => out.push(c),
        }
    }
    None
}

/// A time in which a fault was at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    /// The fault's name: `partition`, `kill`, …
    pub name: String,
    /// Nanoseconds since the beginning of the run.
    pub began: u64,
    /// The same; the end of the run if nobody stopped it.
    pub ended: u64,
}

/// The times in which faults were at work: from `start-NAME` to `stop-NAME`, or a moment for a mere `NAME`.
pub fn periods(history: &History) -> Vec<Period> {
    let end = history.events.iter().map(|event| event.time).max().unwrap_or(0);
    let mut found: Vec<(Period, bool)> = Vec::new();
    for event in history.events.iter().filter(|event| event.process == Process::Nemesis) {
        let period = |name: &str, ended| Period { name: name.into(), began: event.time, ended };
        let last = |name: &str| found.iter().rposition(|(period, _)| period.name == name);
        if let Some(name) = event.f.strip_prefix("start-") {
            if !last(name).is_some_and(|at| found[at].1) {
                found.push((period(name, end), true));
            }
        } else if let Some(name) = event.f.strip_prefix("stop-") {
            // Begun and done are two events: a second stop moves the end.
            if let Some(at) = last(name) {
                (found[at].0.ended, found[at].1) = (event.time, false);
            }
        } else {
            found.push((period(&event.f, event.time), false));
        }
    }
    found.into_iter().map(|(period, _)| period).collect()
}
