//! `put`, `get` and `del`: one key.
//!
//! In a `siblings` keyspace a put or del without `--context` and `--blind` reads the key first and writes
//! with the context that it read: what it saw is replaced, what came meanwhile is kept as a sibling.
//!
//! Text: `get` writes the value raw, without a line end; `get --all` one line for each sibling, escaped as
//! [`super::escape`] says. JSON: the shapes of the contract; binary parts as `…_b64`, contexts in base64.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::client::{Client, Kv};
use super::escape::{escape, excerpt};
use super::output::{self, CliError, CliResult, Exit, Op};
use super::request::{
    arg_bytes, delete_level, get, key_object, keyspace, millis, put_level, read_level, siblings_json,
};
use crate::rpc::proto;
use crate::types::error::Invalid;
use crate::types::ids::RequestId;
use crate::types::key::Key;
use crate::types::limits;
use crate::types::policy::{Conflicts, Level};

/// Which key.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// Partition key.
    #[arg(value_name = "KEY")]
    pub key: OsString,
    /// Sort key within it.
    #[arg(long, value_name = "SORT", default_value = "", hide_default_value = true)]
    pub sort: OsString,
    /// KEY and --sort are base64 (standard alphabet, padded).
    #[arg(long)]
    pub b64: bool,
}

/// How a write is done; the same for put and del.
#[derive(Debug, Clone, Args)]
pub struct WriteArgs {
    /// What the write replaces: base64, as printed by `get -o json`.
    #[arg(long, value_name = "BASE64", conflicts_with = "blind")]
    pub context: Option<String>,
    /// In a keyspace with siblings: don't read first, replace nothing.
    #[arg(long)]
    pub blind: bool,
    /// Acknowledgements to wait for: a number, one, quorum or all.
    #[arg(long, value_name = "W")]
    pub w: Option<Level>,
    /// Let fallback nodes stand in for home replicas (true or false; the keyspace says if it is absent).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sloppy: Option<bool>,
    /// 32 hex digits that name this write, so that it is applied once however often it is sent.
    #[arg(long, value_name = "HEX")]
    pub request_id: Option<RequestId>,
}

/// Writes a value.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral put greeting hello
  quoral put photo --file cat.jpg --ttl 10m
  date | quoral put now
  quoral put cart '[\"milk\"]' --keyspace carts --context \"$(quoral get cart --keyspace carts -o json | jq -r .context)\"

Without VALUE and --file, or with VALUE '-', the value is read from stdin.")]
pub struct PutArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// The value; '-' or nothing means stdin.
    #[arg(value_name = "VALUE", allow_negative_numbers = true)]
    value: Option<OsString>,
    /// Take the value from this file.
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    /// How long the value lives, such as 10s or 7d.
    #[arg(long, value_name = "TIME", value_parser = super::parse_duration)]
    ttl: Option<Duration>,
    #[command(flatten)]
    write: WriteArgs,
}

/// Reads a key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral get greeting
  quoral get photo --file cat.jpg
  quoral get cart --keyspace carts --all
  quoral get cart --keyspace carts -o json

Exit codes: 0 found, 3 not found, 4 several siblings (without --all and -o json), 5 unavailable.")]
pub struct GetArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// Print all siblings, one escaped line each (\\\\ \\t \\n \\r \\xHH).
    #[arg(long)]
    all: bool,
    /// Write the value to this file instead of stdout.
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    file: Option<PathBuf>,
    /// Replicas to hear: a number, one, quorum or all.
    #[arg(long, value_name = "R")]
    r: Option<Level>,
    /// Let fallback nodes answer with the hints that they keep (true or false; the keyspace says if it is absent).
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sloppy: Option<bool>,
}

/// Deletes a key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral del greeting
  quoral del cart --keyspace carts --w all")]
pub struct DelArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    write: WriteArgs,
}

impl KeyArgs {
    /// The key, checked.
    pub fn parse(&self) -> Result<Key, Invalid> {
        Key::new(arg_bytes("key", &self.key, self.b64)?, arg_bytes("sort", &self.sort, self.b64)?)
    }
}

impl WriteArgs {
    /// What the write replaces: what the user said, or what is there, or nothing.
    async fn context(&self, client: &Client, keyspace_name: &str, key: &Key) -> Result<Bytes, CliError> {
        if let Some(text) = &self.context {
            return Ok(output::parse_base64("context", text)?.into());
        }
        if self.blind {
            return Ok(Bytes::new());
        }
        let info = keyspace(client, keyspace_name).await?;
        if info.conflicts != Conflicts::Siblings.to_string() {
            return Ok(Bytes::new());
        }
        let request = proto::GetRequest {
            keyspace: keyspace_name.into(),
            key: key.partition_key().clone(),
            sort: key.sort_key().clone(),
            timeout_ms: millis(client.timeout()),
            answers: None,
            sloppy: self.sloppy,
            session: None,
        };
        Ok(get(client, request).await?.context)
    }

    fn op(&self) -> Op {
        if self.request_id.is_some() { Op::RepeatableWrite } else { Op::Write }
    }

    fn request_id(&self) -> Bytes {
        self.request_id.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0.to_be_bytes()))
    }
}

/// Reads a value, and no more of it than could be a value.
fn read_value(what: &str, from: impl Read) -> Result<Bytes, CliError> {
    let mut value = Vec::new();
    let most = limits::VALUE_BYTES_MAX;
    from.take(most as u64 + 1).read_to_end(&mut value).map_err(|error| CliError::io(what, &error))?;
    if value.len() > most {
        return Err(CliError::usage(format!("value: {what} is over the limit of {most} bytes")));
    }
    Ok(value.into())
}

impl PutArgs {
    fn value(&self) -> Result<Bytes, CliError> {
        match (&self.file, &self.value) {
            (Some(path), _) => {
                let name = path.display().to_string();
                let file = std::fs::File::open(path).map_err(|error| CliError::io(&name, &error))?;
                read_value(&name, file)
            }
            (None, Some(value)) if value != "-" => Ok(value.clone().into_vec().into()),
            _ => read_value("stdin", std::io::stdin().lock()),
        }
    }

    /// Puts, and with `-o json` prints the answer.
    pub async fn run(self, global: &Global) -> CliResult {
        let key = self.key.parse()?;
        if self.ttl == Some(Duration::ZERO) {
            return Err(CliError::usage("ttl: is 0 ms, must be at least 1 ms"));
        }
        let value = self.value()?;
        let client = global.client()?;
        let context = self.write.context(&client, global.keyspace(), &key).await?;
        let request = proto::PutRequest {
            keyspace: global.keyspace().to_owned(),
            key: key.partition_key().clone(),
            sort: key.sort_key().clone(),
            value,
            context,
            acks: self.write.w.map(put_level),
            ttl_ms: self.ttl.map_or(0, millis),
            timeout_ms: millis(global.timeout()),
            sloppy: self.write.sloppy,
            request_id: self.write.request_id(),
            session: None,
        };
        let send = |mut kv: Kv| {
            let request = request.clone();
            async move { kv.put(request).await }
        };
        let answer = client.call_kv(self.write.op(), send).await?;
        if global.json() {
            output::print_json(&written(&key, &answer.context, answer.w, answer.acks, answer.sloppy))?;
        }
        Ok(Exit::Done)
    }
}

impl DelArgs {
    /// Deletes, and with `-o json` prints the answer.
    pub async fn run(self, global: &Global) -> CliResult {
        let key = self.key.parse()?;
        let client = global.client()?;
        let context = self.write.context(&client, global.keyspace(), &key).await?;
        let request = proto::DeleteRequest {
            keyspace: global.keyspace().to_owned(),
            key: key.partition_key().clone(),
            sort: key.sort_key().clone(),
            context,
            acks: self.write.w.map(delete_level),
            timeout_ms: millis(global.timeout()),
            sloppy: self.write.sloppy,
            request_id: self.write.request_id(),
            session: None,
        };
        let send = |mut kv: Kv| {
            let request = request.clone();
            async move { kv.delete(request).await }
        };
        let answer = client.call_kv(self.write.op(), send).await?;
        if global.json() {
            output::print_json(&written(&key, &answer.context, answer.w, answer.acks, answer.sloppy))?;
        }
        Ok(Exit::Done)
    }
}

impl GetArgs {
    /// Gets, and prints the value, or all of them.
    pub async fn run(self, global: &Global) -> CliResult {
        if self.file.is_some() && global.json() {
            return Err(CliError::usage("get: --file writes the value alone; it can't be used with -o json"));
        }
        let key = self.key.parse()?;
        let client = global.client()?;
        let request = proto::GetRequest {
            keyspace: global.keyspace().to_owned(),
            key: key.partition_key().clone(),
            sort: key.sort_key().clone(),
            answers: self.r.map(read_level),
            timeout_ms: millis(global.timeout()),
            sloppy: self.sloppy,
            session: None,
        };
        let answer = get(&client, request).await?;
        let found = if answer.found { Exit::Done } else { Exit::NotFound };
        if global.json() {
            output::print_json(&got(&key, &answer))?;
        }
        match answer.siblings.as_slice() {
            [] => {
                output::note(format!("quoral: {}: not found", show_key(&key)));
                return Ok(Exit::NotFound);
            }
            _ if global.json() => {}
            siblings if self.all => {
                let lines: String = siblings.iter().map(|s| escape(&s.value) + "\n").collect();
                output::print(lines)?;
            }
            [only] => match &self.file {
                Some(path) => write_file(path, &only.value)?,
                None => output::print(&only.value)?,
            },
            several => {
                list_siblings(&key, several);
                return Ok(Exit::Conflict);
            }
        }
        Ok(found)
    }
}

fn write_file(path: &Path, value: &[u8]) -> Result<(), CliError> {
    std::fs::File::create(path)
        .and_then(|mut file| file.write_all(value))
        .map_err(|error| CliError::io(&path.display().to_string(), &error))
}

fn show_key(key: &Key) -> String {
    let mut text = excerpt(key.partition_key());
    if !key.sort_key().is_empty() {
        text = format!("{text} / {}", excerpt(key.sort_key()));
    }
    text
}

fn list_siblings(key: &Key, siblings: &[proto::Sibling]) {
    let mut text = format!("quoral: {} has {} siblings (--all prints them):", show_key(key), siblings.len());
    for sibling in siblings {
        text = format!("{text}\n  {}", excerpt(&sibling.value));
    }
    output::note(text);
}

fn written(key: &Key, context: &[u8], w: u32, acks: u32, sloppy: bool) -> Value {
    let mut object = key_object(key.partition_key(), key.sort_key());
    object.insert("context".into(), output::context_text(context).into());
    object.insert("w".into(), w.into());
    object.insert("acks".into(), acks.into());
    object.insert("sloppy".into(), sloppy.into());
    Value::Object(object)
}

fn got(key: &Key, answer: &proto::GetResponse) -> Value {
    let mut object = key_object(key.partition_key(), key.sort_key());
    object.insert("found".into(), answer.found.into());
    object.insert("siblings".into(), siblings_json(&answer.siblings));
    object.insert("context".into(), output::context_text(&answer.context).into());
    object.insert("r".into(), answer.r.into());
    object.insert("replies".into(), answer.replies.into());
    object.insert("sloppy".into(), json!(answer.sloppy));
    Value::Object(object)
}
