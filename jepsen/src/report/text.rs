//! The plain files: `history.edn`, `history.txt`, and EDN laid out to be read by people.

use std::fmt::Write;

use crate::edn::Edn;
use crate::history::{History, Kind, Process};

/// The longest line before a value is broken into lines.
const WIDTH: usize = 110;

/// The word of an event's type.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Invoke => "invoke",
        Kind::Ok => "ok",
        Kind::Fail => "fail",
        Kind::Info => "info",
    }
}

/// The word of a process.
pub fn process(process: Process) -> String {
    match process {
        Process::Client(number) => number.to_string(),
        Process::Nemesis => "nemesis".into(),
    }
}

/// The history in columns: index, seconds, process, type, f, value, the rest.
pub fn history_txt(history: &History) -> String {
    let mut out = String::from("  index     seconds  process  type    f                value\n");
    for event in &history.events {
        let _ = write!(
            out,
            "{:>7} {:>11.6}  {:<7}  {:<6}  {:<15}  {}",
            event.index,
            event.time as f64 / 1e9,
            process(event.process),
            kind(event.kind),
            event.f,
            event.value,
        );
        for (name, value) in &event.extra {
            let _ = write!(out, "  :{name} {value}");
        }
        out.push('\n');
    }
    out
}

/// A map with keywords as keys; of several entries with one name the first is kept.
pub fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Edn)>) -> Edn {
    let mut pairs: Vec<(Edn, Edn)> = Vec::new();
    for (name, value) in entries {
        let key = Edn::Keyword(name.into());
        if !pairs.iter().any(|(k, _)| *k == key) {
            pairs.push((key, value));
        }
    }
    Edn::Map(pairs)
}

/// A vector of strings.
pub fn strings(items: &[String]) -> Edn {
    Edn::Vector(items.iter().cloned().map(Edn::Str).collect())
}

/// A number; one beyond EDN's plain integers becomes a string.
pub fn number(value: u64) -> Edn {
    i64::try_from(value).map_or_else(|_| Edn::Str(value.to_string()), Edn::Int)
}

/// A value over as many lines as it needs, ending with a line's end.
pub fn pretty(value: &Edn) -> String {
    let mut out = String::new();
    lay(value, 0, 0, &mut out);
    out + "\n"
}

/// Lays a value out from column `indent`, `taken` characters of whose first line are used up.
fn lay(value: &Edn, indent: usize, taken: usize, out: &mut String) {
    let line = value.to_string();
    let top = indent == 0 && matches!(value, Edn::Map(_));
    if !top && indent + taken + line.chars().count() <= WIDTH {
        out.push_str(&line);
        return;
    }
    let (open, close) = match value {
        Edn::Map(_) => ("{", "}"),
        Edn::Vector(_) => ("[", "]"),
        Edn::Set(_) => ("#{", "}"),
        _ => return out.push_str(&line),
    };
    let inner = indent + taken + open.len();
    let next = format!("\n{:inner$}", "");
    out.push_str(open);
    match value {
        Edn::Map(pairs) => {
            for (i, (key, value)) in pairs.iter().enumerate() {
                let key = key.to_string();
                let _ = write!(out, "{}{key} ", if i > 0 { &next } else { "" });
                lay(value, inner, key.chars().count() + 1, out);
            }
        }
        Edn::Vector(items) | Edn::Set(items) => {
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { &next } else { "" });
                lay(item, inner, 0, out);
            }
        }
        _ => {}
    }
    out.push_str(close);
}
