//! Rows: the one format that `load` reads and `dump` writes, NDJSON, one object a line.
//!
//! `{"key": text, "sort": text, "value": text, "expires_at_ms": number}`. Each text has a twin `…_b64` with base64 for
//! bytes that are not text; `sort` may be absent, which means the empty sort key, and so may `expires_at_ms`, which means
//! never (or when the keyspace says). `dump` writes text where the bytes are UTF-8 and base64 where they are not, so a
//! dump is read back to the same bytes.
//!
//! Invariants:
//! 1. Parsing is strict: a field that is unknown, stands twice, or has the wrong type is refused, and
//!    the error names it. Nothing is guessed.
//! 2. `parse(write(row)) == row` for every row.
//!
//! What it does not do: it carries neither stamps nor contexts.

use std::fmt;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::output::parse_base64;
use crate::types::error::Invalid;
use crate::types::key::Key;
use crate::types::limits;

/// One key and one value of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// Partition key and sort key, within their limits.
    pub key: Key,
    /// The value, within the most that a node can be configured to take.
    pub value: Bytes,
    /// Milliseconds since 1970 from which on the value is gone.
    pub expires_at_ms: Option<u64>,
}

/// The fields of an object in order, repeated ones included.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::with_capacity(3);
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Takes the bytes of a field: text as it is, base64 decoded.
fn bytes_of(field: &str, value: Value) -> Result<Bytes, Invalid> {
    let Value::String(text) = value else {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Array(_) => "an array",
            _ => "an object",
        };
        return Err(Invalid::new(field, format!("must be a string, is {kind}")));
    };
    if field.ends_with("_b64") { Ok(parse_base64(field, &text)?.into()) } else { Ok(text.into()) }
}

/// Parses one line.
pub fn parse(line: &[u8]) -> Result<Row, Invalid> {
    Invalid::check_max("row", line.len(), limits::ROW_LINE_BYTES, "bytes")?;
    let Fields(fields) = serde_json::from_slice(line).map_err(|bad| {
        // serde_json ends with "at line 1 column N": the caller knows the line, so only the column is of use.
        let text = bad.to_string();
        let problem = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
        Invalid::new("row", format!("is not a JSON object: {problem} (column {})", bad.column()))
    })?;
    let (mut key, mut sort, mut value, mut expires_at_ms) = (None, None, None, None);
    for (name, given) in fields {
        if name == "expires_at_ms" {
            if expires_at_ms.is_some() {
                return Err(Invalid::new(name, "is given twice"));
            }
            let time = given.as_u64().filter(|time| *time > 0);
            let problem =
                || Invalid::new(name, format!("is {given}, must be a whole number of milliseconds above 0"));
            expires_at_ms = Some(time.ok_or_else(problem)?);
            continue;
        }
        let (slot, base) = match name.as_str() {
            "key" | "key_b64" => (&mut key, "key"),
            "sort" | "sort_b64" => (&mut sort, "sort"),
            "value" | "value_b64" => (&mut value, "value"),
            _ => {
                let name: String = name.chars().take(80).collect();
                return Err(Invalid::new(
                    name,
                    "is no field of a row: key, sort, value, or one with _b64, or expires_at_ms",
                ));
            }
        };
        if slot.is_some() {
            return Err(Invalid::new(name, format!("{base} is given twice")));
        }
        *slot = Some(bytes_of(&name, given)?);
    }
    let key = key.ok_or_else(|| Invalid::new("key", "is missing (key or key_b64)"))?;
    let value = value.ok_or_else(|| Invalid::new("value", "is missing (value or value_b64)"))?;
    Invalid::check_max("value", value.len(), limits::VALUE_BYTES_MAX, "bytes")?;
    Ok(Row { key: Key::new(key, sort.unwrap_or_default())?, value, expires_at_ms })
}

/// A row as it is written: each part as text if it is UTF-8, else in base64.
struct Line<'a> {
    key: &'a [u8],
    sort: &'a [u8],
    value: &'a [u8],
    /// 0 means never.
    expires_at_ms: u64,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        let parts = [
            ("key", "key_b64", self.key),
            ("sort", "sort_b64", self.sort),
            ("value", "value_b64", self.value),
        ];
        for (text, base64, bytes) in parts {
            match std::str::from_utf8(bytes) {
                Ok("") if text == "sort" => {}
                Ok(shown) => object.serialize_entry(text, shown)?,
                Err(_) => object.serialize_entry(base64, &BASE64.encode(bytes))?,
            }
        }
        if self.expires_at_ms > 0 {
            object.serialize_entry("expires_at_ms", &self.expires_at_ms)?;
        }
        object.end()
    }
}

/// Writes one line, its end included. `expires_at_ms`: 0 means never.
pub fn write(
    out: &mut impl io::Write,
    key: &[u8],
    sort: &[u8],
    value: &[u8],
    expires_at_ms: u64,
) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line { key, sort, value, expires_at_ms })?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(key: &[u8], sort: &[u8], value: &[u8]) -> Row {
        let key = Key::new(key.to_vec(), sort.to_vec()).expect("within the limits");
        Row { key, value: value.to_vec().into(), expires_at_ms: None }
    }

    fn problem(line: &str) -> String {
        parse(line.as_bytes()).expect_err(line).to_string()
    }

    #[test]
    fn text_and_base64_are_taken() {
        assert_eq!(parse(br#"{"key":"a","value":"b"}"#), Ok(row(b"a", b"", b"b")));
        assert_eq!(parse(br#" {"value_b64":"/wA=","sort":"s","key_b64":"gA=="} "#), {
            Ok(row(&[0x80], b"s", &[0xff, 0]))
        });
        assert_eq!(parse(br#"{"key":"a","value":""}"#), Ok(row(b"a", b"", b"")));
        assert_eq!(parse(r#"{"key":"\u00e9\n","value":"日本"}"#.as_bytes()), {
            Ok(row("é\n".as_bytes(), b"", "日本".as_bytes()))
        });
    }

    /// Each refusal names the field and what is wrong with it.
    #[test]
    fn a_bad_row_names_its_field() {
        for (line, field, what) in [
            (r#"{"value":"b"}"#, "key", "missing"),
            (r#"{"key":"a"}"#, "value", "missing"),
            (r#"{"key":"","value":"b"}"#, "key", "at least 1 byte"),
            (r#"{"key":7,"value":"b"}"#, "key", "a number"),
            (r#"{"key":"a","sort":null,"value":"b"}"#, "sort", "null"),
            (r#"{"key":"a","value":{"x":1}}"#, "value", "an object"),
            (r#"{"key":"a","value_b64":"*"}"#, "value_b64", "base64"),
            (r#"{"key":"a","key_b64":"YQ==","value":"b"}"#, "key_b64", "twice"),
            (r#"{"key":"a","value":"b","value":"c"}"#, "value", "twice"),
            (r#"{"key":"a","value":"b","ttl":"1s"}"#, "ttl", "no field"),
            (r#"{"key":"a","value":"b","expires_at_ms":0}"#, "expires_at_ms", "is 0, must be"),
            (r#"{"key":"a","value":"b","expires_at_ms":"x"}"#, "expires_at_ms", "whole number"),
            (r#"{"key":"a","value":"b","expires_at_ms":7,"expires_at_ms":8}"#, "expires_at_ms", "twice"),
            (r#"{"key":"a","value":"b"} x"#, "row", "column 25"),
            (r#"{"key":"a","value":"b""#, "row", "column 22"),
            (r#"["a","b"]"#, "row", "object"),
            ("nonsense", "row", "column 2"),
        ] {
            let problem = problem(line);
            assert!(
                problem.starts_with(&format!("{field}: ")) && problem.contains(what),
                "{line}: {problem}"
            );
        }
        let long = problem(&format!(r#"{{"key":"{}","value":""}}"#, "k".repeat(1_025)));
        assert!(long.contains("1025") && long.contains("1024"), "{long}");
        assert!(parse(b"{\"key\":\"\xff\",\"value\":\"\"}").is_err(), "not UTF-8");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            key in proptest::collection::vec(any::<u8>(), 1..20),
            sort in proptest::collection::vec(any::<u8>(), 0..20),
            value in proptest::collection::vec(any::<u8>(), 0..60),
            expires_at_ms in proptest::option::of(1..u64::MAX),
        ) {
            let mut line = Vec::new();
            write(&mut line, &key, &sort, &value, expires_at_ms.unwrap_or(0)).expect("a Vec takes all");
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1, "one line");
            prop_assert_eq!(parse(&line), Ok(Row { expires_at_ms, ..row(&key, &sort, &value) }));
        }

        #[test]
        fn junk_is_refused_without_a_panic(junk in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(row) = parse(&junk) {
                prop_assert!(!row.key.partition_key().is_empty());
            }
        }

        #[test]
        fn text_junk_is_refused_without_a_panic(key in ".*", junk in "[\\[\\]{}:,\"a-z0-9 ]*") {
            let line = format!("{{\"key\":{:?},{junk}", key);
            let _ = parse(line.as_bytes()).is_ok();
        }
    }
}
