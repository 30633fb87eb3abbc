//! `scan`: a range of sort keys of one partition key, or the whole keyspace, as a stream.
//!
//! Text: a line for each value, `key<TAB>sort<TAB>value`, each part escaped as [`super::escape`] says; a key
//! with siblings has a line for each. JSON: a line for each key, `{"key","sort","siblings","context"}`.
//! When `--limit` leaves something out, the cursor to go on with is told: on stderr, or with `-o json` as a
//! last line `{"cursor"}`.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};

use clap::Args;
use serde_json::json;

use super::Global;
use super::escape::escape;
use super::output::{self, CliError, CliResult, Exit};
use super::pages::{Known, Pages};
use super::request::{arg_bytes, key_object, siblings_json, wire_level};
use crate::rpc::proto;
use crate::types::error::Invalid;
use crate::types::key::check_partition_key;
use crate::types::limits;
use crate::types::policy::Level;

/// Reads a range of sort keys of one key, or everything.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral scan
  quoral scan room:7 --prefix 2026- --limit 10 --reverse
  quoral scan room:7 --start a --end b -o json

Text: key, sort and value, separated by tabs; in each \\\\ \\t \\n \\r stand for themselves and \\xHH for other
bytes that are not printable text. JSON: one object a line.")]
pub struct ScanArgs {
    /// Partition key; without it, the whole keyspace is read.
    #[arg(value_name = "KEY")]
    key: Option<OsString>,
    /// Sort keys that begin so.
    #[arg(long, value_name = "SORT", requires = "key")]
    prefix: Option<OsString>,
    /// First sort key.
    #[arg(long, value_name = "SORT", requires = "key")]
    start: Option<OsString>,
    /// Sort key to end before.
    #[arg(long, value_name = "SORT", requires = "key")]
    end: Option<OsString>,
    /// Most keys.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// From last to first.
    #[arg(long, requires = "key")]
    reverse: bool,
    /// Go on where an earlier scan with the same arguments was cut.
    #[arg(long, value_name = "BASE64")]
    cursor: Option<String>,
    /// Replicas to hear: a number, one, quorum or all.
    #[arg(long, value_name = "R")]
    r: Option<Level>,
    /// KEY, --prefix, --start and --end are base64.
    #[arg(long)]
    b64: bool,
}

/// A level as `ScanRequest` takes it.
pub fn scan_level(level: Level) -> proto::scan_request::Answers {
    match wire_level(level) {
        Ok(count) => proto::scan_request::Answers::R(count),
        Err(name) => proto::scan_request::Answers::RLevel(name.into()),
    }
}

impl ScanArgs {
    fn request(&self, global: &Global) -> Result<proto::ScanRequest, CliError> {
        let part = |field: &str, given: &Option<OsString>, most: usize| match given {
            None => Ok(bytes::Bytes::new()),
            Some(argument) => {
                let bytes = arg_bytes(field, argument, self.b64)?;
                Invalid::check_max(field, bytes.len(), most, "bytes")?;
                Ok::<_, CliError>(bytes)
            }
        };
        let key = part("key", &self.key, limits::PARTITION_KEY_BYTES)?;
        if self.key.is_some() {
            check_partition_key(&key)?;
        }
        let cursor = self.cursor.as_deref().map(|text| output::parse_base64("cursor", text));
        Ok(proto::ScanRequest {
            keyspace: global.keyspace().to_owned(),
            key,
            prefix: part("prefix", &self.prefix, limits::SORT_KEY_BYTES)?,
            start: part("start", &self.start, limits::SORT_KEY_BYTES)?,
            end: part("end", &self.end, limits::SORT_KEY_BYTES)?,
            limit: self.limit.unwrap_or(0),
            reverse: self.reverse,
            cursor: cursor.transpose()?.unwrap_or_default().into(),
            answers: self.r.map(scan_level),
            timeout_ms: 0,
        })
    }

    /// Scans and prints as pages come.
    pub async fn run(self, global: &Global) -> CliResult {
        let request = self.request(global)?;
        let begin = request.cursor.clone();
        let known = Known::ask(global).await?;
        let mut pages = Pages::new(global, &known, request, global.timeout())?;
        let mut out = BufWriter::new(io::stdout().lock());
        let end = loop {
            match pages.next().await {
                Ok(Some(page)) => output::stdout_result(write_page(&mut out, &page, global.json()))?,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let cursor = output::context_text(pages.cursor());
        // A scan that did not move has nothing to tell: what stopped it may be the cursor it was given.
        let moved = !cursor.is_empty() && *pages.cursor() != begin;
        if moved && global.json() && end.is_ok() {
            output::stdout_result(writeln!(out, "{}", json!({ "cursor": cursor })))?;
        } else if moved {
            output::note(format!("quoral: there is more; go on with --cursor {cursor}"));
        }
        output::stdout_result(out.flush())?;
        end.map(|()| Exit::Done)
    }
}

fn write_page(out: &mut impl Write, page: &proto::ScanResponse, json: bool) -> io::Result<()> {
    for entry in &page.entries {
        if json {
            let mut object = key_object(&entry.key, &entry.sort);
            object.insert("siblings".into(), siblings_json(&entry.siblings));
            object.insert("context".into(), output::context_text(&entry.context).into());
            serde_json::to_writer(&mut *out, &object)?;
            out.write_all(b"\n")?;
            continue;
        }
        let (key, sort) = (escape(&entry.key), escape(&entry.sort));
        for sibling in &entry.siblings {
            writeln!(out, "{key}\t{sort}\t{}", escape(&sibling.value))?;
        }
    }
    out.flush()
}
