//! `load`: the rows of an NDJSON file into a keyspace, past the death of nodes.
//!
//! The file is read and parsed in a thread ([`super::reader`]), many rows are in flight, and each is tried
//! until it is acknowledged or its time is up ([`super::sender`]).
//!
//! Invariants:
//! 1. Rows of one key are sent one after the other, in the order of the file: the last one wins.
//! 2. No row is passed over in silence: one that can't be sent stops the load (or is counted and reported
//!    with `--skip-bad`), after the rows in flight have ended.
//! 3. The checkpoint never stands behind a row that is not acknowledged.
//! 4. Rows in flight are bounded in number and in bytes.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Global;
use super::checkpoint::{Checkpoint, LoadPoint, Owner};
use super::output::{self, CliError, CliResult, Exit};
use super::pages::Known;
use super::progress::{Progress, thousands};
use super::reader::{self, Batch, Chunk, Reader};
use super::request::keyspace;
use super::rows::Row;
use super::sender::Sender;
use crate::types::key::Key;
use crate::types::limits;
use crate::types::policy::{Conflicts, Level};

/// Bad lines that are shown; the rest are counted.
const BAD_SHOWN: u64 = 20;
/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks at the progress.
const TICK: Duration = Duration::from_millis(100);

/// Loads rows from an NDJSON file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral load rows.ndjson
  quoral load rows.ndjson --endpoints 127.0.0.1:7400,127.0.0.1:7410,127.0.0.1:7420
  jq -Rc '{key: ., value: \"\"}' /usr/share/dict/words | quoral load -

A row is {\"key\": text, \"sort\": text, \"value\": text}; sort may be absent, and each field has a twin (key_b64,
sort_b64, value_b64) for base64. \"expires_at_ms\": milliseconds since 1970; a row whose time is up is left out.
A load that was stopped goes on where it was when the same command is
given again: FILE.progress remembers, until the load is done.")]
pub struct LoadArgs {
    /// The file; '-' means stdin (which can't be resumed).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Rows in flight.
    #[arg(long, value_name = "ROWS", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=limits::CLI_CONCURRENCY_MAX as i64))]
    concurrency: u16,
    /// How long a row is tried before the load stops.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::parse_duration)]
    row_timeout: Duration,
    /// Report and count bad rows instead of stopping at the first.
    #[arg(long)]
    skip_bad: bool,
    /// Begin at the start, whatever FILE.progress says.
    #[arg(long)]
    restart: bool,
    /// Acknowledgements to wait for: a number, one, quorum or all.
    #[arg(long, value_name = "W")]
    w: Option<Level>,
}

/// A row that ended.
struct Sent {
    batch: u64,
    line: u64,
    key: Key,
    bytes: usize,
    result: Result<(), CliError>,
}

/// A batch that is not acknowledged yet.
struct Open {
    left: usize,
    point: LoadPoint,
}

/// A load under way.
struct Load {
    sender: Arc<Sender>,
    name: String,
    concurrency: usize,
    skip_bad: bool,
    size: Option<u64>,
    waiting: VecDeque<(u64, u64, Row)>,
    flying: JoinSet<Sent>,
    flying_keys: HashSet<Key>,
    flying_bytes: usize,
    open: VecDeque<Open>,
    /// Number of the first batch in `open`.
    first_open: u64,
    acknowledged: LoadPoint,
    rows: u64,
    bad: u64,
    failure: Option<CliError>,
    progress: Progress,
}

impl LoadArgs {
    /// Loads; the summary goes to stderr, with `-o json` also as an object to stdout.
    pub async fn run(self, global: &Global) -> CliResult {
        if self.row_timeout.is_zero() {
            return Err(CliError::usage("--row-timeout: is 0, must be at least 1ms"));
        }
        // Before anything else: a missing file needs no cluster.
        let size =
            std::fs::metadata(&self.file).ok().filter(|m| m.is_file() && !self.piped()).map(|m| m.len());
        let file = self.open()?;
        let known = Known::ask(global).await?;
        let info = keyspace(&global.client()?, global.keyspace()).await?;
        let owner = Owner {
            cluster_id: known.cluster_id.clone(),
            keyspace: global.keyspace().to_owned(),
            keyspace_id: info.id,
        };
        let checkpoint = size.map(|_| Checkpoint::of(&self.file, owner));
        let reader = self.reader(file, checkpoint.as_ref())?;
        let siblings = info.conflicts == Conflicts::Siblings.to_string();
        let sender = Arc::new(Sender::new(global, &known.endpoints, siblings, self.w, self.row_timeout)?);
        let from = reader.point().clone();
        let share = size.map_or(0.0, |size| from.offset as f64 / (size as f64).max(1.0));
        let mut load = Load {
            sender,
            name: self.name(),
            concurrency: self.concurrency.into(),
            skip_bad: self.skip_bad,
            size,
            waiting: VecDeque::new(),
            flying: JoinSet::new(),
            flying_keys: HashSet::new(),
            flying_bytes: 0,
            open: VecDeque::new(),
            first_open: 0,
            acknowledged: from,
            rows: 0,
            bad: 0,
            failure: None,
            progress: Progress::new("load", share),
        };
        let saved = load.run(reader::spawn(reader), checkpoint.as_ref()).await;
        load.finish(saved, checkpoint.as_ref(), global)
    }

    fn piped(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    fn name(&self) -> String {
        if self.piped() { "stdin".to_string() } else { self.file.display().to_string() }
    }

    fn open(&self) -> Result<Box<dyn Read + Send>, CliError> {
        if self.piped() {
            return Ok(Box::new(io::stdin()));
        }
        match File::open(&self.file) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) => Err(CliError::io(&self.name(), &error)),
        }
    }

    /// A reader that stands where an earlier load was, if there was one and it was of this file.
    fn reader(
        &self,
        file: Box<dyn Read + Send>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Reader<Box<dyn Read + Send>>, CliError> {
        let mut reader = Reader::new(file, self.skip_bad);
        let Some(checkpoint) = checkpoint.filter(|_| !self.restart) else { return Ok(reader) };
        let why = match checkpoint.read::<LoadPoint>() {
            Ok(None) => return Ok(reader),
            Ok(Some(point)) => {
                let lines = thousands(point.lines);
                if reader.resume(point).map_err(|error| CliError::io(&self.name(), &error))? {
                    output::note(format!(
                        "load: going on behind line {lines} (--restart begins at the start)"
                    ));
                    return Ok(reader);
                }
                "the file has changed before that point".to_string()
            }
            Err(why) => why,
        };
        let path = checkpoint.path().display();
        output::note(format!("load: {path} is not used, {why}: beginning at the start"));
        Ok(Reader::new(self.open()?, self.skip_bad))
    }
}

impl Load {
    /// Until the file is read, or a row can't be sent, and all that was in flight has ended.
    async fn run(
        &mut self,
        mut chunks: mpsc::Receiver<Chunk>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), CliError> {
        let mut reading = true;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saved = Instant::now();
        while reading || !self.waiting.is_empty() || !self.flying.is_empty() {
            self.start();
            tokio::select! {
                chunk = chunks.recv(), if reading && self.waiting.is_empty() => match chunk {
                    Some(chunk) => self.take(chunk),
                    None => reading = false,
                },
                Some(sent) = self.flying.join_next(), if !self.flying.is_empty() => match sent {
                    Ok(sent) => self.ended(sent),
                    Err(error) => self.fail(CliError::error(format!("a task of the load failed: {error}"))),
                },
                _ = tick.tick() => {
                    let share = self.size.map(|size| self.acknowledged.offset as f64 / (size as f64).max(1.0));
                    self.progress.update(self.rows, share);
                    if let Some(checkpoint) = checkpoint && saved.elapsed() >= CHECKPOINT_EVERY {
                        checkpoint.write(&self.acknowledged)?;
                        saved = Instant::now();
                    }
                }
            }
            if self.failure.is_some() {
                reading = false;
                self.waiting.clear();
                chunks.close();
            }
        }
        Ok(())
    }

    /// Sends what may be sent.
    fn start(&mut self) {
        while let Some((_, _, row)) = self.waiting.front() {
            let bytes = row.key.bytes() + row.value.len();
            let room = self.flying.len() < self.concurrency
                && (self.flying_bytes + bytes <= limits::LOAD_BYTES_IN_FLIGHT || self.flying.is_empty());
            if !room || self.flying_keys.contains(&row.key) {
                return;
            }
            let Some((batch, line, row)) = self.waiting.pop_front() else { return };
            self.flying_keys.insert(row.key.clone());
            self.flying_bytes += bytes;
            let sender = self.sender.clone();
            self.flying.spawn(async move {
                let key = row.key.clone();
                let result = sender.send(line, row).await;
                Sent { batch, line, key, bytes, result }
            });
        }
    }

    fn take(&mut self, chunk: Chunk) {
        match chunk {
            Chunk::Batch(Batch { rows, bad, point }) => {
                for (line, problem) in bad {
                    self.skip(line, &problem.to_string());
                }
                let number = self.first_open + self.open.len() as u64;
                self.open.push_back(Open { left: rows.len(), point });
                self.waiting.extend(rows.into_iter().map(|(line, row)| (number, line, row)));
                self.close();
            }
            Chunk::Bad(line, problem) => {
                self.fail(CliError::error(format!("{}: line {line}: {problem}", self.name)));
            }
            Chunk::Failed(error) => self.fail(CliError::io(&self.name, &error)),
        }
    }

    fn skip(&mut self, line: u64, problem: &str) {
        self.bad += 1;
        if self.bad <= BAD_SHOWN {
            self.progress.note(&format!("load: {}: line {line}: {problem}; skipped", self.name));
        }
        if self.bad == BAD_SHOWN + 1 {
            self.progress.note("load: more bad rows follow; they are skipped and counted");
        }
    }

    fn fail(&mut self, error: CliError) {
        // The first failure is the cause; later ones follow from it.
        self.failure.get_or_insert(error);
    }

    fn ended(&mut self, sent: Sent) {
        self.flying_keys.remove(&sent.key);
        self.flying_bytes -= sent.bytes;
        match sent.result {
            Ok(()) => self.rows += 1,
            Err(error) if self.skip_bad && error.code == "INVALID_ARGUMENT" => {
                self.skip(sent.line, &error.message);
            }
            Err(mut error) => {
                error.message = format!("{}: line {}: {}", self.name, sent.line, error.message);
                if error.exit == Exit::Usage {
                    error.exit = Exit::Error;
                }
                return self.fail(error);
            }
        }
        // Batches are numbered in order and leave from the front, so this one is still there.
        if let Some(open) = self.open.get_mut((sent.batch - self.first_open) as usize) {
            open.left -= 1;
        }
        self.close();
    }

    /// Moves the acknowledged point over the batches that are done.
    fn close(&mut self) {
        while self.open.front().is_some_and(|open| open.left == 0) {
            if let Some(open) = self.open.pop_front() {
                self.acknowledged = open.point;
                self.first_open += 1;
            }
        }
    }

    /// The last checkpoint, the summary, and the end.
    fn finish(
        mut self,
        saved: Result<(), CliError>,
        checkpoint: Option<&Checkpoint>,
        global: &Global,
    ) -> CliResult {
        let left_out = self.sender.left_out();
        let told =
            |count, what| if count == 0 { String::new() } else { format!(", {} {what}", thousands(count)) };
        let skipped = told(self.bad, "bad skipped") + &told(left_out, "left out: their time was up");
        let took = self.progress.finish(self.rows, &skipped);
        saved?;
        if let Some(mut error) = self.failure.take() {
            let done = thousands(self.acknowledged.lines);
            error.message = match checkpoint {
                Some(checkpoint) => {
                    checkpoint.write(&self.acknowledged)?;
                    format!(
                        "{}; all up to line {done} is loaded, the same command goes on from there",
                        error.message
                    )
                }
                None => format!("{}; all up to line {done} is loaded", error.message),
            };
            return Err(error);
        }
        if let Some(checkpoint) = checkpoint {
            checkpoint.remove()?;
        }
        if global.json() {
            output::print_json(&json!({
                "rows": self.rows,
                "bad": self.bad,
                "left_out": left_out,
                "seconds": took.as_secs_f64(),
                "rows_per_second": self.rows as f64 / took.as_secs_f64().max(1e-9),
            }))?;
        }
        Ok(Exit::Done)
    }
}
