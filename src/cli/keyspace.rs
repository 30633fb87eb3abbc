//! `keyspace`: makes and shows keyspaces and their policies.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{self, CliError, CliResult, Exit, Op};
use super::{Global, parse_duration, unbuilt};
use crate::rpc::proto;

/// Makes and shows keyspaces.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  quoral keyspace create carts --conflicts siblings
  quoral keyspace create sessions --n 3 --r 1 --w 3 --ttl 30m
  quoral keyspace list
  quoral keyspace show carts -o json")]
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
    #[command(hide = true)]
    Update(super::Unbuilt),
    #[command(hide = true)]
    Drop(super::Unbuilt),
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
            KeyspaceVerb::Update(_) => Err(unbuilt("keyspace update")),
            KeyspaceVerb::Drop(_) => Err(unbuilt("keyspace drop")),
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
    fn times_read_back() {
        for ms in [1, 999, 1_000, 90_000, 3_600_000, 86_400_000, 86_400_001] {
            assert_eq!(parse_duration(&show_ttl(ms)), Ok(Duration::from_millis(ms)));
        }
    }
}
