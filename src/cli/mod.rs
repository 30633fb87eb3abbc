//! The command line: one binary, one file a verb.
//!
//! `Cli` parses, `main` runs the verb and turns its end into an exit code. A verb is a struct of clap
//! arguments with `run(self, &Global) -> CliResult`; it prints its answer through `output` and reaches
//! the cluster through `client`.
//!
//! It does not print panics as answers, and it does not guess: a verb of the contract that is not built
//! yet says so.

pub mod bench;
pub mod checkpoint;
pub mod client;
pub mod config;
pub mod dev;
pub mod dump;
pub mod escape;
pub mod explain;
pub mod give_up;
pub mod hints;
pub mod inspect;
pub mod keyspace;
pub mod kv;
pub mod load;
pub mod output;
pub mod pages;
pub mod progress;
pub mod reader;
pub mod repair;
pub mod request;
pub mod rows;
pub mod scan;
pub mod sender;
pub mod serve;
pub mod status;

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use self::client::Client;
use self::output::{CliError, CliResult, Output};
use crate::rpc::convert::DEFAULT_KEYSPACE;
use crate::types::limits::TIMEOUT_DEFAULT;

/// A leaderless quorum key-value database.
#[derive(Debug, Parser)]
#[command(name = "quoral", version, about, max_term_width = 100)]
#[command(
    after_help = "Start with `quoral dev`, then `quoral put greeting hello` and `quoral get greeting`.\n\
    `quoral help VERB` shows examples."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

const HEADING: &str = "Options of every verb";

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Nodes to ask, `host:port`, tried in turn.
    #[arg(long, global = true, help_heading = HEADING, env = "QUORAL_ENDPOINTS", default_value = "127.0.0.1:7400")]
    #[arg(value_delimiter = ',', value_name = "HOST:PORT,…", hide_env_values = true)]
    pub endpoints: Vec<String>,
    /// Keyspace of the keys. [default: default]
    #[arg(long, global = true, help_heading = HEADING, env = "QUORAL_KEYSPACE", value_name = "NAME")]
    pub keyspace: Option<String>,
    /// Longest time that a request may take, such as 500ms, 5s or 1m. [default: 5s]
    #[arg(long, global = true, help_heading = HEADING, env = "QUORAL_TIMEOUT", value_parser = parse_duration)]
    #[arg(value_name = "TIME")]
    pub timeout: Option<Duration>,
    /// How the answer is printed.
    #[arg(short, long, global = true, help_heading = HEADING, value_enum, default_value = "text", value_name = "FORMAT")]
    pub output: Output,
}

impl Global {
    /// A client of the endpoints; connects when first used.
    pub fn client(&self) -> Result<Client, CliError> {
        if self.timeout().is_zero() {
            return Err(CliError::usage("--timeout: is 0, must be at least 1ms"));
        }
        Client::connect(&self.endpoints, self.timeout())
    }

    /// The keyspace of the keys.
    pub fn keyspace(&self) -> &str {
        self.keyspace.as_deref().unwrap_or(DEFAULT_KEYSPACE)
    }

    /// Longest time that a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(TIMEOUT_DEFAULT)
    }

    /// Whether answers are JSON.
    pub fn json(&self) -> bool {
        self.output == Output::Json
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    // Running nodes.
    Dev(dev::DevArgs),
    Serve(serve::ServeArgs),
    #[command(subcommand)]
    Config(config::ConfigVerb),
    // Reading and writing.
    Put(kv::PutArgs),
    Get(kv::GetArgs),
    Del(kv::DelArgs),
    Scan(scan::ScanArgs),
    Load(load::LoadArgs),
    Dump(dump::DumpArgs),
    Bench(bench::BenchArgs),
    // Looking at a cluster.
    #[command(subcommand)]
    Keyspace(keyspace::KeyspaceVerb),
    Explain(explain::ExplainArgs),
    Status(status::StatusArgs),
    #[command(subcommand)]
    Inspect(inspect::InspectVerb),
    #[command(subcommand)]
    Hints(hints::HintsVerb),
    Repair(repair::RepairArgs),
    GiveUp(give_up::GiveUpArgs),
    // Named in the contract, not built yet.
    #[command(hide = true)]
    Cluster(Unbuilt),
    #[command(hide = true)]
    Transfers(Unbuilt),
    #[command(hide = true)]
    Workers(Unbuilt),
}

/// Whatever follows a verb that is not built yet.
#[derive(Debug, Args)]
pub struct Unbuilt {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

impl Unbuilt {
    fn run(self, verb: &str) -> CliResult {
        Err(unbuilt(verb))
    }
}

/// The error of a verb that is not built yet.
pub fn unbuilt(verb: &str) -> CliError {
    let mut error = CliError::error(format!("{verb} is not built yet"));
    error.code = "UNIMPLEMENTED";
    error
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && wants_json(&arguments) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            CliError::usage(first).print(Output::Json);
            return output::Exit::Usage.into();
        }
        Err(error) => {
            // Help and version go to stdout with code 0, usage errors to stderr with code 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let output = cli.global.output;
    match cli.verb.run(&cli.global) {
        Ok(exit) => exit.into(),
        Err(error) => {
            error.print(output);
            error.exit.into()
        }
    }
}

impl Verb {
    fn run(self, global: &Global) -> CliResult {
        match self {
            Verb::Dev(args) => block_on(args.run(global)),
            Verb::Serve(args) => args.run(global),
            Verb::Config(verb) => verb.run(global),
            Verb::Put(args) => block_on(args.run(global)),
            Verb::Get(args) => block_on(args.run(global)),
            Verb::Del(args) => block_on(args.run(global)),
            Verb::Scan(args) => block_on(args.run(global)),
            Verb::Load(args) => block_on(args.run(global)),
            Verb::Dump(args) => block_on(args.run(global)),
            Verb::Bench(args) => block_on(args.run(global)),
            Verb::Keyspace(verb) => block_on(verb.run(global)),
            Verb::Explain(args) => block_on(args.run(global)),
            Verb::Status(args) => block_on(args.run(global)),
            Verb::Inspect(verb) => verb.run(global),
            Verb::Hints(verb) => block_on(verb.run(global)),
            Verb::Repair(args) => block_on(args.run(global)),
            Verb::GiveUp(args) => args.run(global),
            Verb::Cluster(args) => args.run("cluster"),
            Verb::Transfers(args) => args.run("transfers"),
            Verb::Workers(args) => args.run("workers"),
        }
    }
}

/// Runs a verb that waits for the network, on one thread.
pub fn block_on(verb: impl Future<Output = CliResult>) -> CliResult {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::io("the async runtime", &error))?
        .block_on(verb)
}

/// Whether the command line asks for JSON; for errors that come before it could be parsed.
fn wants_json(arguments: &[OsString]) -> bool {
    let mut after_flag = false;
    arguments.iter().skip(1).any(|argument| {
        let text = argument.to_string_lossy();
        let found =
            (after_flag && text == "json") || matches!(&*text, "-ojson" | "-o=json" | "--output=json");
        after_flag = text == "-o" || text == "--output";
        found
    })
}

/// A time span such as `250ms`, `5s`, `10m`, `2h` or `7d`; a plain number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is not a time such as 500ms, 5s, 10m, 2h or 7d"))?;
    let factor: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("{text:?} has the unit {unit:?}, which must be ms, s, m, h or d")),
    };
    let millis = number.checked_mul(factor).filter(|ms| *ms <= u64::MAX >> 16);
    Ok(Duration::from_millis(millis.ok_or_else(|| format!("{text:?} is too long"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_examples() {
        for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("quoral {}", verb.get_name())), "{}", verb.get_name());
        }
    }

    #[test]
    fn times_are_read() {
        for (text, ms) in [("500ms", 500), ("5s", 5_000), ("5", 5_000), ("2m", 120_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "5 s", "5y", "99999999999999999999s", "9999999999999999d"] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn json_is_asked_for_in_every_way_that_clap_takes() {
        let asks = |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["q -o json x", "q x -ojson", "q --output=json", "q --output json", "q -o=json"] {
            assert!(asks(line), "{line}");
        }
        for line in ["q json", "q -o text json", "q x"] {
            assert!(!asks(line), "{line}");
        }
    }
}
