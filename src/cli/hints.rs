//! `hints`: what nodes keep for others that are away, and how it comes home.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::Global;
use super::client::Client;
use super::output::{self, CliError, CliResult, Exit, Op, note};
use super::status::show_size;
use crate::rpc::proto;
use crate::types::time::WallMs;

/// How often `hints wait` looks.
const EVERY: Duration = Duration::from_millis(200);

/// Shows what nodes keep for others that are away, and waits until it is home.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  quoral hints list
  quoral hints wait --timeout 10m")]
pub enum HintsVerb {
    /// Lists the hints that wait, by the node that keeps them and the one they are for.
    List,
    /// Returns when all hints of before this call are home; waits for ever, or until --timeout.
    Wait,
}

impl HintsVerb {
    /// Asks one node, which asks the others.
    pub async fn run(self, global: &Global) -> CliResult {
        let client = global.client()?;
        match self {
            HintsVerb::List => {
                let kept = ask(&client).await?;
                if global.json() {
                    output::print_json(&to_json(&kept))?;
                } else {
                    output::print(to_text(&kept))?;
                }
                Ok(Exit::Done)
            }
            HintsVerb::Wait => wait(&client, global.timeout).await,
        }
    }
}

async fn ask(client: &Client) -> Result<proto::HintsResponse, CliError> {
    let ask =
        |mut cluster: super::client::Cluster| async move { cluster.hints(proto::HintsRequest {}).await };
    client.call_cluster(Op::Read, ask).await
}

/// The hints of before that are not home yet, as their logs are now. `before` is what was there at the call.
fn waiting<'a>(before: &proto::HintsResponse, now: &'a proto::HintsResponse) -> Vec<&'a proto::HintLog> {
    let was_there = |log: &&proto::HintLog| {
        let same = |b: &&proto::HintLog| (&b.holder, &b.target) == (&log.holder, &log.target);
        log.hints > 0 && before.logs.iter().find(same).is_some_and(|b| log.oldest <= b.last)
    };
    now.logs.iter().filter(was_there).collect()
}

/// Why they are not home yet, in a sentence.
fn reason(now: &proto::HintsResponse, waiting: &[&proto::HintLog]) -> String {
    let mut parts: Vec<String> = waiting
        .iter()
        .map(|log| {
            let state = if log.target_state == "alive" {
                "on the way".into()
            } else {
                format!("it is {}", log.target_state)
            };
            format!("{} hints for {} on {} ({state})", log.hints, log.target_name, log.holder_name)
        })
        .collect();
    if !now.silent.is_empty() {
        parts.push(format!("no answer from {}", now.silent.join(", ")));
    }
    parts.join("; ")
}

async fn wait(client: &Client, timeout: Option<Duration>) -> CliResult {
    let began = tokio::time::Instant::now();
    let mut before = ask(client).await?;
    let (mut silent, mut said) = (before.silent.clone(), String::new());
    loop {
        let now = ask(client).await?;
        // What a node that was silent at the call keeps counts from its first answer on.
        let late = silent.iter().filter(|id| !now.silent.contains(id)).cloned().collect::<Vec<_>>();
        before.logs.extend(now.logs.iter().filter(|log| late.contains(&log.holder)).cloned());
        silent.retain(|id| now.silent.contains(id));
        let waiting = waiting(&before, &now);
        if waiting.is_empty() && now.silent.is_empty() {
            return Ok(Exit::Done);
        }
        let why = reason(&now, &waiting);
        if timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
            return Err(CliError::new(Exit::Unavailable, format!("hints are not home: {why}")));
        }
        if why != said {
            note(format!("hints wait: {why}"));
            said = why;
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn to_json(kept: &proto::HintsResponse) -> Value {
    let log = |log: &proto::HintLog| {
        json!({
            "holder": log.holder,
            "holder_name": log.holder_name,
            "target": log.target,
            "target_name": log.target_name,
            "target_state": log.target_state,
            "hints": log.hints,
            "bytes": log.bytes,
            "since_ms": log.since_ms,
            "delivered": log.delivered,
            "per_second": log.per_second,
            "refused": log.refused,
            "refusal": log.refusal,
        })
    };
    json!({ "hints": kept.logs.iter().map(log).collect::<Vec<_>>(), "silent": kept.silent })
}

fn to_text(kept: &proto::HintsResponse) -> String {
    let rows: Vec<Vec<String>> = kept
        .logs
        .iter()
        .map(|log| {
            vec![
                log.holder_name.clone(),
                log.target_name.clone(),
                log.target_state.clone(),
                log.hints.to_string(),
                show_size(log.bytes),
                if log.hints > 0 { WallMs(log.since_ms).utc() } else { "-".into() },
                log.delivered.to_string(),
                format!("{}/s", log.per_second),
                log.refused.to_string(),
            ]
        })
        .collect();
    let mut text = if rows.is_empty() {
        "no hints wait\n".to_owned()
    } else {
        output::table(&["ON", "FOR", "STATE", "HINTS", "SIZE", "SINCE", "HOME", "RATE", "NOT KEPT"], &rows)
    };
    for log in kept.logs.iter().filter(|log| log.refused > 0) {
        let whose = format!("{} on {}", log.target_name, log.holder_name);
        text.push_str(&refused_line(&whose, log.refused, &log.refusal));
    }
    if !kept.silent.is_empty() {
        text.push_str(&format!("no answer from {}\n", kept.silent.join(", ")));
    }
    text
}

/// Says of how many writes a node will not hear by hints.
pub fn refused_line(whose: &str, refused: u64, refusal: &str) -> String {
    format!("hints for {whose}: {refused} writes have none: {refusal}; anti-entropy has to bring them\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(holder: &str, target: &str, oldest: u64, last: u64) -> proto::HintLog {
        let (holder, target) = (holder.to_owned(), target.to_owned());
        proto::HintLog { holder, target, oldest, last, hints: 3, ..proto::HintLog::default() }
    }

    fn kept(logs: Vec<proto::HintLog>) -> proto::HintsResponse {
        proto::HintsResponse { logs, silent: Vec::new() }
    }

    #[test]
    fn only_hints_of_before_the_call_are_waited_for() {
        let before = kept(vec![log("a", "b", 5, 9), log("c", "b", 5, 9)]);
        let now = kept(vec![log("a", "b", 9, 12), log("c", "b", 10, 12), log("a", "c", 3, 12)]);
        let waiting = waiting(&before, &now);
        assert_eq!(
            waiting.iter().map(|log| (&log.holder[..], &log.target[..])).collect::<Vec<_>>(),
            [("a", "b")]
        );
    }

    #[test]
    fn text_and_json_name_holder_and_target() {
        let mut one = log("00a1", "00b2", 5, 9);
        (one.holder_name, one.target_name, one.bytes) = ("n1".into(), "n2".into(), 2_048);
        let text = to_text(&kept(vec![one.clone()]));
        assert!(text.contains("n1") && text.contains("n2") && text.contains("2.0 KiB"), "{text}");
        assert_eq!(to_json(&kept(vec![one]))["hints"][0]["target"], json!("00b2"));
        assert_eq!(to_text(&kept(Vec::new())), "no hints wait\n");
    }

    #[test]
    fn what_is_not_kept_is_shown_and_not_waited_for() {
        let mut one = log("a", "b", 5, 9);
        (one.hints, one.refused, one.refusal) = (0, 7, "there are too many".into());
        let before = kept(vec![one]);
        let text = to_text(&before);
        assert!(text.contains("7 writes have none: there are too many; anti-entropy"), "{text}");
        assert!(waiting(&before, &before).is_empty());
    }
}
