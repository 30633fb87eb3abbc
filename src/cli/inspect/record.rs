//! A stored record as it is shown: everything, since whoever looks here has no other place to look.
//!
//! With `-o json` one object: `{"key","sort"?,"keyspace","partition","position","node","role","found"}`, and
//! if it was found `"raw_bytes"` and `"checksum"` (`ok`, or what is wrong). Of a record that can be read
//! `"conflicts"`, `"line"` (the local mark: `{"incarnation","birth","counter"}` or null) and `"versions"`, each
//! `{"stamp","written","tombstone","expired","expires_at_ms","expires","bytes","value"|"value_b64"}` with
//! `"node"` (`lww`) or with `"dot"` and `"past"` (`siblings`): `{"node","incarnation","birth","counter"}`, and
//! `{"up_to":[dot],"dots":[dot]}`. Of a damaged one `"damaged"` (why) and `"raw_hex"` (the first bytes).
//! `role` is `home`, `fallback`, or `none` for a node that is no member.

use serde_json::{Map, Value, json};

use super::offline::{Found, Offline, Place};
use crate::cli::escape::excerpt;
use crate::cli::explain::key_text;
use crate::cli::output;
use crate::replica::stored::{Line, Stored};
use crate::types::ids::NodeId;
use crate::types::key::Key;
use crate::types::time::WallMs;
use crate::version::dvv::{Actor, Context, Dot};
use crate::version::hlc::Stamp;
use crate::version::record::{Payload, Record};

/// Bytes of a damaged record that are shown.
const RAW_SHOWN: usize = 256;

/// A record of one node, or the lack of one.
pub struct View<'a> {
    /// Whose data directory it is.
    pub offline: &'a Offline,
    /// Where the key is.
    pub place: &'a Place,
    /// The key.
    pub key: &'a Key,
    /// What is stored.
    pub found: Option<&'a Found>,
    /// The time by which versions are expired.
    pub now: WallMs,
}

/// One version under either policy.
struct Version<'a> {
    name: Name<'a>,
    stamp: Stamp,
    payload: &'a Payload,
    expires_at: Option<WallMs>,
}

enum Name<'a> {
    Lww(NodeId),
    Sibling(&'a Dot, &'a Context),
}

fn versions(record: &Record) -> Vec<Version<'_>> {
    match record {
        Record::Lww(v) => vec![Version {
            name: Name::Lww(v.node),
            stamp: v.stamp,
            payload: &v.payload,
            expires_at: v.expires_at,
        }],
        Record::Siblings(set) => set
            .iter()
            .map(|s| Version {
                name: Name::Sibling(&s.dot, &s.past),
                stamp: s.stamp,
                payload: &s.payload,
                expires_at: s.expires_at,
            })
            .collect(),
    }
}

impl Version<'_> {
    fn state(&self, now: WallMs) -> &'static str {
        match self.payload {
            Payload::Tombstone => "tombstone",
            Payload::Value(_) if self.expires_at.is_some_and(|at| at <= now) => "expired",
            Payload::Value(_) => "value",
        }
    }

    fn value(&self) -> &[u8] {
        match self.payload {
            Payload::Tombstone => &[],
            Payload::Value(value) => value,
        }
    }
}

impl View<'_> {
    fn role(&self) -> &'static str {
        let (me, list) = (self.offline.identity.node_id, &self.place.list);
        if list.homes.contains(&me) {
            "home"
        } else if list.fallbacks.contains(&me) {
            "fallback"
        } else {
            "none"
        }
    }

    /// The object of `-o json`.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        output::insert_bytes(&mut object, "key", self.key.partition_key());
        if !self.key.sort_key().is_empty() {
            output::insert_bytes(&mut object, "sort", self.key.sort_key());
        }
        let mut set = |name: &str, value: Value| object.insert(name.to_string(), value);
        set("keyspace", self.place.keyspace.name.clone().into());
        set("partition", self.place.partition.0.into());
        set("position", format!("{:016x}", self.place.position.0).into());
        set("node", self.offline.identity.node_id.to_string().into());
        set("role", self.role().into());
        set("found", self.found.is_some().into());
        let Some(found) = self.found else { return Value::Object(object) };
        set("raw_bytes", found.raw.len().into());
        set("checksum", found.seal.as_ref().map_or_else(String::as_str, |()| "ok").into());
        match &found.stored {
            Ok(Stored { line, record }) => {
                set("conflicts", record.conflicts().to_string().into());
                let line = line.map(
                    |l| json!({ "incarnation": l.incarnation.0, "birth": l.birth.0, "counter": l.counter }),
                );
                set("line", line.into());
                set("versions", versions(record).iter().map(|v| version_json(v, self.now)).collect());
            }
            Err(why) => {
                set("damaged", why.as_str().into());
                set("raw_hex", hex(&found.raw).into());
            }
        }
        Value::Object(object)
    }

    /// The text for people.
    pub fn to_text(&self, found: &Found) -> String {
        let place = self.place;
        let mut text = format!(
            "{} in keyspace {}: position {:016x}, partition {}\nnode {} is {}; {} bytes stored, checksum {}\n",
            key_text(self.key),
            place.keyspace.name,
            place.position.0,
            place.partition,
            self.offline.identity.node_id,
            match self.role() {
                "home" => "a home",
                "fallback" => "a fallback",
                _ => "no member",
            },
            found.raw.len(),
            found.seal.as_ref().map_or_else(String::as_str, |()| "ok"),
        );
        match &found.stored {
            Ok(Stored { line, record }) => {
                text.push_str(&format!("local mark: {}\n", line_text(*line)));
                let all = versions(record);
                for (index, version) in all.iter().enumerate() {
                    text.push_str(&format!("\nversion {} of {}\n", index + 1, all.len()));
                    text.push_str(&version_text(version, self.now));
                }
            }
            Err(why) => {
                let cut = if found.raw.len() > RAW_SHOWN {
                    format!(" (the first {RAW_SHOWN})")
                } else {
                    String::new()
                };
                text.push_str(&format!("DAMAGED: {why}\nbytes{cut}: {}\n", hex(&found.raw)));
            }
        }
        text
    }
}

/// The first bytes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(RAW_SHOWN).map(|byte| format!("{byte:02x}")).collect()
}

fn dot_json(actor: &Actor, counter: u64) -> Value {
    json!({
        "node": actor.node.to_string(),
        "incarnation": actor.incarnation.0,
        "birth": actor.birth.0,
        "counter": counter,
    })
}

fn version_json(version: &Version<'_>, now: WallMs) -> Value {
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| object.insert(name.to_string(), value);
    match &version.name {
        Name::Lww(node) => {
            set("node", node.to_string().into());
        }
        Name::Sibling(dot, past) => {
            set("dot", dot_json(&dot.actor, dot.counter));
            let up_to: Vec<Value> = past.vector().iter().map(|(actor, top)| dot_json(actor, *top)).collect();
            let dots: Vec<Value> = past.dots().iter().map(|dot| dot_json(&dot.actor, dot.counter)).collect();
            set("past", json!({ "up_to": up_to, "dots": dots }));
        }
    }
    set("stamp", version.stamp.0.into());
    set("written", version.stamp.wall().utc().into());
    set("tombstone", (*version.payload == Payload::Tombstone).into());
    set("expired", (version.state(now) == "expired").into());
    set("expires_at_ms", version.expires_at.map(|at| at.0).into());
    set("expires", version.expires_at.map(WallMs::utc).into());
    set("bytes", version.value().len().into());
    if let Payload::Value(value) = version.payload {
        output::insert_bytes(&mut object, "value", value);
    }
    Value::Object(object)
}

fn version_text(version: &Version<'_>, now: WallMs) -> String {
    let mut rows = Vec::new();
    match &version.name {
        Name::Lww(node) => rows.push(("version", format!("{}@{node}", version.stamp))),
        Name::Sibling(dot, past) => {
            rows.push(("dot", dot_text(&dot.actor, &dot.counter.to_string())));
            rows.push(("past", past_text(past)));
            rows.push(("stamp", version.stamp.to_string()));
        }
    }
    rows.push(("written", version.stamp.wall().utc()));
    rows.push(("state", version.state(now).to_string()));
    rows.push(("expires", version.expires_at.map_or_else(|| "never".to_string(), WallMs::utc)));
    if *version.payload != Payload::Tombstone {
        rows.push(("bytes", version.value().len().to_string()));
        rows.push(("value", excerpt(version.value())));
    }
    rows.iter().map(|(name, value)| format!("  {name:<8} {value}").trim_end().to_string() + "\n").collect()
}

/// A dot as `explain` shows it, and the incarnation, which it leaves out.
fn dot_text(actor: &Actor, counter: &str) -> String {
    format!("{}:{}.{counter} (incarnation {})", actor.node, actor.birth, actor.incarnation)
}

fn past_text(past: &Context) -> String {
    if past.is_empty() {
        return "nothing".to_string();
    }
    let up_to = past.vector().iter().map(|(actor, top)| match top {
        1 => dot_text(actor, "1"),
        top => dot_text(actor, &format!("1..{top}")),
    });
    let dots = past.dots().iter().map(|dot| dot_text(&dot.actor, &dot.counter.to_string()));
    up_to.chain(dots).collect::<Vec<String>>().join(", ")
}

fn line_text(line: Option<Line>) -> String {
    match line {
        None => "none".to_string(),
        Some(Line { incarnation, birth, counter }) => {
            format!("birth {birth}, counter {counter} (incarnation {incarnation})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ids::{Birth, Incarnation};
    use crate::version::record::Sibling;

    fn dot(node: u64, counter: u64) -> Dot {
        let actor = Actor { node: NodeId(node), incarnation: Incarnation(9), birth: Birth(4) };
        Dot { actor, counter }
    }

    #[test]
    fn a_sibling_is_shown_whole() {
        let mut past = Context::new();
        for dot in [dot(1, 1), dot(1, 2), dot(2, 7)] {
            past.insert(dot);
        }
        let record = Record::Siblings(vec![Sibling {
            dot: dot(1, 3),
            past,
            request: None,
            stamp: Stamp::at(WallMs(1_700_000_000_123)).next(),
            payload: Payload::Value("a\tb".into()),
            expires_at: Some(WallMs(1_700_000_000_500)),
        }]);
        let all = versions(&record);
        let text = version_text(&all[0], WallMs(1_700_000_000_500));
        assert_eq!(
            text,
            "  dot      0000000000000001:4.3 (incarnation 9)\n  \
               past     0000000000000001:4.1..2 (incarnation 9), 0000000000000002:4.7 (incarnation 9)\n  \
               stamp    1700000000123.1\n  \
               written  2023-11-14T22:13:20.123Z\n  \
               state    expired\n  \
               expires  2023-11-14T22:13:20.500Z\n  \
               bytes    3\n  \
               value    a\\tb\n"
        );
        let id = |node: &str, counter: u64| json!({ "node": node, "incarnation": 9, "birth": 4, "counter": counter });
        assert_eq!(
            version_json(&all[0], WallMs(1_700_000_000_499)),
            json!({
                "dot": id("0000000000000001", 3),
                "past": { "up_to": [id("0000000000000001", 2)], "dots": [id("0000000000000002", 7)] },
                "stamp": (1_700_000_000_123_u64 << 16) + 1,
                "written": "2023-11-14T22:13:20.123Z",
                "tombstone": false,
                "expired": false,
                "expires_at_ms": 1_700_000_000_500_u64,
                "expires": "2023-11-14T22:13:20.500Z",
                "bytes": 3,
                "value": "a\tb",
            })
        );
    }
}
