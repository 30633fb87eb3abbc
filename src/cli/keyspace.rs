//! `keyspace`: makes, shows, changes and drops keyspaces and their policies.

use std::io::{IsTerminal as _, stdin};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{self, CliError, CliResult, Exit, Op};
use super::{Global, parse_duration};
use crate::rpc::proto;

/// Makes, shows, changes and drops keyspaces.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  quoral keyspace create carts --conflicts siblings
  quoral keyspace create sessions --n 3 --r 1 --w 3 --ttl 30m
  quoral keyspace list
  quoral keyspace show carts -o json
  quoral keyspace update sessions --r 2 --w 2 --ttl none
  quoral keyspace update carts --sloppy true --if-version 7
  quoral keyspace drop carts --yes")]
pub enum KeyspaceVerb {
    /// Makes a keyspace; exits 4 if there is one of that name.
    Create(CreateArgs),
    /// Lists all keyspaces.
    List,
    /// Shows one keyspace; exits 3 if there is none of that name.
    Show {
        /// Its name.
        name: String,
    },
    /// Changes a keyspace's policy; what is not named stays. Exits 3 if there is none of that name, 4 if somebody
    /// else was faster.
    Update(UpdateArgs),
    /// Drops a keyspace with all that is in it, for good. Exits 3 if there is none of that name, 4 if somebody else
    /// was faster.
    Drop(DropArgs),
}

/// What becomes of a keyspace's policy.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Its name.
    name: String,
    /// Answers that a get waits for.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    r: Option<u32>,
    /// Acknowledgements that a put waits for.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    w: Option<u32>,
    /// Whether fallbacks may stand in for home replicas that are away.
    #[arg(long, value_name = "BOOL")]
    sloppy: Option<bool>,
    /// How long a value lives that is written from now on, such as 30m or 7d; none for ever.
    #[arg(long, value_parser = parse_ttl, value_name = "TIME|none")]
    ttl: Option<Ttl>,
    /// Only if the cluster map is of this version, as `keyspace list -o json` says it.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

/// Which keyspace goes.
#[derive(Debug, Args)]
pub struct DropArgs {
    /// Its name.
    name: String,
    /// It may go; needed when stdin is a terminal.
    #[arg(long)]
    yes: bool,
    /// Only if the cluster map is of this version, as `keyspace list -o json` says it.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

/// A time to live, in milliseconds; 0 is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ttl(u64);

fn parse_ttl(text: &str) -> Result<Ttl, String> {
    if text == "none" {
        return Ok(Ttl(0));
    }
    match parse_duration(text)?.as_millis() {
        0 => Err("is 0, must be at least 1ms, or none for ever".into()),
        ms => Ok(Ttl(u64::try_from(ms).unwrap_or(u64::MAX))),
    }
}

/// The policy of a new keyspace.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name: letters, digits, '.', '_' and '-'.
    name: String,
    /// What happens to concurrent writes: lww keeps the latest, siblings keeps all. Fixed.
    #[arg(long, default_value = "lww", value_parser = ["lww", "siblings"])]
    conflicts: String,
    /// Replicas of each key. Fixed. [default: 3, or as many as there are nodes]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    n: Option<u32>,
    /// Answers that a get waits for. [default: more than half of n]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    r: Option<u32>,
    /// Acknowledgements that a put waits for. [default: more than half of n]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    w: Option<u32>,
    /// Let fallbacks stand in for home replicas that are away.
    #[arg(long)]
    sloppy: bool,
    /// How long a value lives, such as 30m or 7d. [default: for ever]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    ttl: Option<Duration>,
}

impl KeyspaceVerb {
    /// Asks one node and prints its answer.
    pub async fn run(self, global: &Global) -> CliResult {
        match self {
            KeyspaceVerb::Create(args) => args.run(global).await,
            KeyspaceVerb::List => {
                let all = list(global).await?;
                if global.json() {
                    let keyspaces: Vec<Value> = all.keyspaces.iter().map(to_json).collect();
                    output::print_json(&json!({ "map_version": all.map_version, "keyspaces": keyspaces }))?;
                } else {
                    output::print(to_text(&all.keyspaces))?;
                }
                Ok(Exit::Done)
            }
            KeyspaceVerb::Show { name } => {
                let all = list(global).await?;
                let found = all.keyspaces.into_iter().find(|keyspace| keyspace.name == name);
                let missing =
                    || CliError::new(Exit::NotFound, format!("keyspace: there is no keyspace {name:?}"));
                show(global, &found.ok_or_else(missing)?)
            }
            KeyspaceVerb::Update(args) => args.run(global).await,
            KeyspaceVerb::Drop(args) => args.run(global).await,
        }
    }
}

impl CreateArgs {
    async fn run(self, global: &Global) -> CliResult {
        let ttl_ms = match self.ttl {
            Some(ttl) if ttl.is_zero() => return Err(CliError::usage("--ttl: is 0, must be at least 1ms")),
            ttl => ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        };
        let request = proto::CreateKeyspaceRequest {
            name: self.name,
            conflicts: self.conflicts,
            n: self.n.unwrap_or(0),
            r: self.r.unwrap_or(0),
            w: self.w.unwrap_or(0),
            sloppy: self.sloppy,
            ttl_ms,
        };
        let answer = global
            .client()?
            .call_cluster(Op::Write, |mut cluster| {
                let request = request.clone();
                async move { cluster.create_keyspace(request).await }
            })
            .await?;
        show(global, &answer.keyspace.ok_or_else(|| CliError::error("the answer has no keyspace"))?)
    }
}

impl UpdateArgs {
    async fn run(self, global: &Global) -> CliResult {
        let UpdateArgs { name, r, w, sloppy, ttl, if_version } = self;
        if r.is_none() && w.is_none() && sloppy.is_none() && ttl.is_none() {
            return Err(CliError::usage(
                "keyspace update: one of --r, --w, --sloppy and --ttl must be given",
            ));
        }
        let ttl_ms = ttl.map(|ttl| ttl.0);
        let request = proto::UpdateKeyspaceRequest { name, r, w, sloppy, ttl_ms, if_version };
        let answer = global
            .client()?
            .call_cluster(Op::Write, |mut cluster| {
                let request = request.clone();
                async move { cluster.update_keyspace(request).await }
            })
            .await
            .map_err(not_found)?;
        show(global, &answer.keyspace.ok_or_else(|| CliError::error("the answer has no keyspace"))?)
    }
}

impl DropArgs {
    async fn run(self, global: &Global) -> CliResult {
        let DropArgs { name, yes, if_version } = self;
        if !yes && stdin().is_terminal() {
            let problem =
                format!("{name:?} and all that is in it would be gone for good; say --yes to drop it");
            return Err(CliError::usage(format!("keyspace: {problem}")));
        }
        let request = proto::DropKeyspaceRequest { name, if_version };
        let answer = global
            .client()?
            .call_cluster(Op::Write, |mut cluster| {
                let request = request.clone();
                async move { cluster.drop_keyspace(request).await }
            })
            .await
            .map_err(not_found)?;
        let dropped = answer.keyspace.ok_or_else(|| CliError::error("the answer has no keyspace"))?;
        if global.json() {
            let (map_version, dropped) = (answer.map_version, to_json(&dropped));
            output::print_json(&json!({ "map_version": map_version, "dropped": dropped }))?;
        } else {
            let name = dropped.name;
            output::note(format!("keyspace {name:?} is dropped; the nodes delete its records now"));
        }
        Ok(Exit::Done)
    }
}

/// A keyspace that is not there exits as `show` does.
fn not_found(error: CliError) -> CliError {
    let exit = if error.code == "NOT_FOUND" { Exit::NotFound } else { error.exit };
    CliError { exit, ..error }
}

async fn list(global: &Global) -> Result<proto::ListKeyspacesResponse, CliError> {
    let client = global.client()?;
    client
        .call_cluster(Op::Read, |mut cluster| async move {
            cluster.list_keyspaces(proto::ListKeyspacesRequest {}).await
        })
        .await
}

fn show(global: &Global, keyspace: &proto::KeyspaceInfo) -> CliResult {
    if global.json() {
        output::print_json(&to_json(keyspace))?;
    } else {
        output::print(to_text(std::slice::from_ref(keyspace)))?;
    }
    Ok(Exit::Done)
}

fn to_json(keyspace: &proto::KeyspaceInfo) -> Value {
    json!({
        "id": keyspace.id,
        "name": keyspace.name,
        "conflicts": keyspace.conflicts,
        "n": keyspace.n,
        "r": keyspace.r,
        "w": keyspace.w,
        "sloppy": keyspace.sloppy,
        "ttl_ms": if keyspace.ttl_ms == 0 { Value::Null } else { keyspace.ttl_ms.into() },
    })
}

fn to_text(keyspaces: &[proto::KeyspaceInfo]) -> String {
    let rows: Vec<Vec<String>> = keyspaces
        .iter()
        .map(|keyspace| {
            vec![
                keyspace.name.clone(),
                keyspace.conflicts.clone(),
                keyspace.n.to_string(),
                keyspace.r.to_string(),
                keyspace.w.to_string(),
                if keyspace.sloppy { "yes" } else { "no" }.to_string(),
                show_ttl(keyspace.ttl_ms),
            ]
        })
        .collect();
    output::table(&["KEYSPACE", "CONFLICTS", "N", "R", "W", "SLOPPY", "TTL"], &rows)
}

/// A time span in the largest unit that divides it, as `--ttl` takes it.
fn show_ttl(ttl_ms: u64) -> String {
    if ttl_ms == 0 {
        return "-".to_string();
    }
    let units = [(86_400_000_u64, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let (factor, unit) =
        units.into_iter().find(|(factor, _)| ttl_ms.is_multiple_of(*factor)).unwrap_or((1, "ms"));
    format!("{}{unit}", ttl_ms / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyspaces_are_shown() {
        let keyspace = proto::KeyspaceInfo {
            id: 2,
            name: "carts".into(),
            conflicts: "siblings".into(),
            n: 3,
            r: 2,
            w: 2,
            sloppy: true,
            ttl_ms: 5_400_000,
        };
        let json = to_json(&keyspace);
        let expected = r#"{"conflicts":"siblings","id":2,"n":3,"name":"carts","r":2,"sloppy":true,"ttl_ms":5400000,"w":2}"#;
        assert_eq!(json.to_string(), expected);
        assert_eq!(
            to_text(std::slice::from_ref(&keyspace)),
            "KEYSPACE  CONFLICTS  N  R  W  SLOPPY  TTL\ncarts     siblings   3  2  2  yes     90m\n"
        );
        let forever = proto::KeyspaceInfo { ttl_ms: 0, ..keyspace };
        assert_eq!(to_json(&forever)["ttl_ms"], Value::Null);
    }

    #[test]
    fn a_time_to_live_may_be_none() {
        assert_eq!(parse_ttl("none"), Ok(Ttl(0)));
        assert_eq!(parse_ttl("30m"), Ok(Ttl(1_800_000)));
        assert!(parse_ttl("0s").is_err() && parse_ttl("never").is_err());
    }

    #[test]
    fn times_read_back() {
        for ms in [1, 999, 1_000, 90_000, 3_600_000, 86_400_000, 86_400_001] {
            assert_eq!(parse_duration(&show_ttl(ms)), Ok(Duration::from_millis(ms)));
        }
    }
}
