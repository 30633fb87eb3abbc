//! A history as text: one EDN map a line, as Jepsen writes `history.edn`.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter, Write};

use super::{Event, History, Kind, Process};
use crate::edn::{Edn, EdnError};

/// Why a text is not a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseError {
    /// It is not EDN.
    Edn(EdnError),
    /// An event, counted from 0, lacks a field or has a wrong one.
    Field {
        /// Which event.
        event: usize,
        /// Which field, or what else is wrong.
        what: &'static str,
    },
}

impl Display for ParseError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edn(error) => error.fmt(f),
            Self::Field { event, what } => write!(f, "event {event}: {what}"),
        }
    }
}

impl std::error::Error for ParseError {}

impl From<EdnError> for ParseError {
    fn from(error: EdnError) -> Self {
        Self::Edn(error)
    }
}

impl Kind {
    /// Its name in EDN, without the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Ok => "ok",
            Self::Fail => "fail",
            Self::Info => "info",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Invoke, Self::Ok, Self::Fail, Self::Info].into_iter().find(|kind| kind.name() == name)
    }
}

impl Event {
    /// The map of one line.
    pub fn to_edn(&self) -> Edn {
        let process = match self.process {
            Process::Client(number) => Edn::from(number),
            Process::Nemesis => Edn::keyword("nemesis"),
        };
        let fields = [
            ("index", Edn::from(self.index)),
            ("time", Edn::from(self.time)),
            ("process", process),
            ("type", Edn::keyword(self.kind.name())),
            ("f", Edn::keyword(self.f.as_str())),
            ("value", self.value.clone()),
        ];
        let extra = self.extra.iter().map(|(name, value)| (name.as_str(), value.clone()));
        Edn::map(fields.into_iter().chain(extra))
    }

    fn of(form: Edn) -> Result<Self, &'static str> {
        let Edn::Map(entries) = form else { return Err("not a map") };
        let mut fields = BTreeMap::new();
        for (name, value) in entries {
            let Edn::Keyword(name) = name else { return Err("a field's name is not a keyword") };
            fields.insert(name, value);
        }
        let mut field = |name: &str| fields.remove(name);
        let mut number = |name| field(name)?.as_int().and_then(|n| u64::try_from(n).ok());
        let index = number("index").ok_or("no :index")?;
        let time = number("time").ok_or("no :time")?;
        let process = match field("process") {
            Some(Edn::Keyword(name)) if name == "nemesis" => Process::Nemesis,
            Some(Edn::Int(number)) => {
                Process::Client(u64::try_from(number).map_err(|_| "a :process below 0")?)
            }
            _ => return Err("no :process that is a number or :nemesis"),
        };
        let kind = field("type").as_ref().and_then(Edn::as_name).and_then(Kind::of).ok_or("no :type")?;
        let Some(Edn::Keyword(f)) = field("f") else { return Err("no :f that is a keyword") };
        let value = field("value").unwrap_or(Edn::Nil);
        Ok(Self { index, time, process, kind, f, value, extra: fields })
    }
}

impl History {
    /// The text of `history.edn`: an event a line.
    pub fn to_edn(&self) -> String {
        let mut text = String::new();
        for event in &self.events {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{}", event.to_edn());
        }
        text
    }

    /// Reads it back.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let forms = Edn::parse_all(text)?.into_iter().enumerate();
        let events =
            forms.map(|(at, form)| Event::of(form).map_err(|what| ParseError::Field { event: at, what }));
        Ok(Self { events: events.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_jepsen_has_it() {
        let read = "{:index 3, :time 17000, :process 1, :type :invoke, :f :read, :value [0 nil]}\n";
        let ok = "{:index 4, :time 17001, :process 1, :type :ok, :f :read, :value [0 [1 2]], :node \"n1\", :stamp 5}\n";
        let kill =
            "{:index 5, :time 17002, :process :nemesis, :type :info, :f :start-kill, :value [\"n1\"]}\n";
        let text = [read, ok, kill].concat();
        let history = History::parse(&text).expect("a history");
        assert_eq!(history.events[1].process, Process::Client(1));
        assert_eq!(history.events[1].extra["stamp"], Edn::Int(5));
        assert_eq!(history.to_edn(), text);
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let refused = |text: &str| History::parse(text).expect_err(text).to_string();
        assert_eq!(refused("{:index 0} ["), "line 1: a bracket that nothing closes");
        assert_eq!(refused("{:index 0}"), "event 0: no :time");
        assert_eq!(refused("1"), "event 0: not a map");
        let process = "{:index 0, :time 0, :process :x, :type :ok, :f :read}";
        assert_eq!(refused(process), "event 0: no :process that is a number or :nemesis");
        let kind = "{:index 0, :time 0, :process 0, :type :maybe, :f :read}";
        assert_eq!(refused(kind), "event 0: no :type");
    }
}
