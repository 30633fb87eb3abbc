//! `repair`: compares all replicas now and makes them equal.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use super::Global;
use super::output::{self, CliError, CliResult, Exit, Op, note};
use super::progress::{Progress, thousands};
use super::status::show_size;
use crate::rpc::proto::{self, cluster_client::ClusterClient};

/// Compares all replicas now and makes them equal, but for what is written meanwhile; all keyspaces unless --keyspace
/// names one.
#[derive(Debug, Args)]
#[command(
    after_help = "It ends when it is done, or after --timeout; what it did stays. Several at a time do no harm.

Examples:
  quoral repair
  quoral repair --keyspace carts --partition 17
  quoral repair -o json"
)]
pub struct RepairArgs {
    /// Only this partition.
    #[arg(long, value_name = "P")]
    partition: Option<u32>,
}

/// The sums over all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Total {
    trees: u64,
    done: u64,
    equal: u64,
    records: u64,
    sent: u64,
    healed: u64,
    too_new: u64,
    bytes: u64,
}

impl Total {
    fn of(told: &proto::RepairResponse) -> Total {
        told.nodes.iter().fold(Total::default(), |sum, node| Total {
            trees: sum.trees + node.trees,
            done: sum.done + node.done,
            equal: sum.equal + node.equal,
            records: sum.records + node.records,
            sent: sum.sent + node.sent,
            healed: sum.healed + node.healed,
            too_new: sum.too_new + node.too_new,
            bytes: sum.bytes + node.bytes,
        })
    }

    /// None until all nodes have said what they have to do.
    fn share(&self, told: &proto::RepairResponse) -> Option<f64> {
        let all_known = told.nodes.iter().all(|node| node.trees > 0 || node.over);
        (all_known && self.trees > 0).then(|| self.done as f64 / self.trees as f64)
    }

    fn line(&self) -> String {
        let (records, sent, healed) = (thousands(self.records), thousands(self.sent), thousands(self.healed));
        format!("{records} keys compared, {sent} sent, {healed} healed")
    }
}

impl RepairArgs {
    /// Asks one node, which asks the others.
    pub async fn run(self, global: &Global) -> CliResult {
        let began = Instant::now();
        let channel = global.client()?.channel().await?;
        let keyspace = global.keyspace.clone().unwrap_or_default();
        let request = proto::RepairRequest { keyspace, partition: self.partition };
        let as_error = |status: tonic::Status| CliError::from_status(&status, Op::Read);
        let told = follow(ClusterClient::new(channel), request, as_error);
        let told = match global.timeout {
            None => told.await?,
            Some(timeout) => {
                let late = |_| {
                    let text = "repair has not ended in time; it stops, and what it did stays";
                    CliError::new(Exit::Unavailable, text)
                };
                tokio::time::timeout(timeout, told).await.map_err(late)??
            }
        };
        finish(global, &told, began.elapsed())
    }
}

/// Shows how far it is; returns the last message.
async fn follow(
    mut client: ClusterClient<tonic::transport::Channel>,
    request: proto::RepairRequest,
    as_error: impl Fn(tonic::Status) -> CliError,
) -> Result<proto::RepairResponse, CliError> {
    let mut stream = client.repair(request).await.map_err(&as_error)?.into_inner();
    let mut progress = Progress::new("repair", 0.0);
    while let Some(told) = stream.next().await {
        let told = told.map_err(&as_error)?;
        if told.over {
            progress.clear();
            return Ok(told);
        }
        let total = Total::of(&told);
        progress.tell(&total.line(), total.share(&told));
    }
    Err(CliError::new(Exit::Unavailable, "the node ended before the repair was over; what it did stays"))
}

fn finish(global: &Global, told: &proto::RepairResponse, took: Duration) -> CliResult {
    let (total, problems) = (Total::of(told), problems(told));
    if global.json() {
        output::print_json(&to_json(&total, told, took))?;
    } else {
        let text = format!(
            "{} of {} trees compared, {} equal; {}; {} in {:.1} s\n",
            thousands(total.done),
            thousands(total.trees),
            thousands(total.equal),
            total.line(),
            show_size(total.bytes),
            took.as_secs_f64()
        );
        output::print(text)?;
    }
    if total.too_new > 0 {
        note(format!(
            "repair: {} keys were written after it had begun: left to their own writes",
            total.too_new
        ));
    }
    problems.iter().for_each(|problem| note(format!("repair: {problem}")));
    match problems.is_empty() {
        true => Ok(Exit::Done),
        false if global.json() => Ok(Exit::Unavailable),
        false => {
            Err(CliError::new(Exit::Unavailable, "not all replicas could be compared; what was done stays"))
        }
    }
}

/// What could not be done, a line each.
fn problems(told: &proto::RepairResponse) -> Vec<String> {
    let mut lines = Vec::new();
    for node in &told.nodes {
        for problem in &node.problems {
            lines.push(match problem.peer.is_empty() {
                true => format!("{} ({}): {}", node.name, node.node_id, problem.problem),
                false => format!("{} with {}: {}", node.name, name_of(told, &problem.peer), problem.problem),
            });
        }
    }
    lines
}

/// A node's name, if it has a part in the repair, and its id.
fn name_of(told: &proto::RepairResponse, id: &str) -> String {
    let named = told.nodes.iter().find(|node| node.node_id == id);
    named.map_or_else(|| id.to_owned(), |node| format!("{} ({id})", node.name))
}

fn to_json(total: &Total, told: &proto::RepairResponse, took: Duration) -> Value {
    let problem = |node: &proto::NodeRepair, problem: &proto::RepairProblem| {
        let peer = (!problem.peer.is_empty()).then_some(&problem.peer);
        json!({ "node": node.node_id, "peer": peer, "problem": problem.problem })
    };
    let problems: Vec<Value> =
        told.nodes.iter().flat_map(|node| node.problems.iter().map(move |p| problem(node, p))).collect();
    json!({
        "trees": total.trees,
        "done": total.done,
        "equal": total.equal,
        "records": total.records,
        "sent": total.sent,
        "healed": total.healed,
        "too_new": total.too_new,
        "bytes": total.bytes,
        "seconds": took.as_secs_f64(),
        "problems": problems,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, trees: u64, done: u64) -> proto::NodeRepair {
        let (node_id, name) = (format!("00{name}"), name.to_owned());
        proto::NodeRepair { node_id, name, trees, done, records: 1_000, ..proto::NodeRepair::default() }
    }

    #[test]
    fn what_all_nodes_did_is_added_up() {
        let mut told =
            proto::RepairResponse { nodes: vec![node("a1", 30, 10), node("b2", 0, 0)], over: false };
        assert_eq!(Total::of(&told).share(&told), None, "one has not begun");
        told.nodes[1] = proto::NodeRepair { sent: 7, healed: 5, ..node("b2", 10, 10) };
        let total = Total::of(&told);
        assert_eq!(total.share(&told), Some(0.5));
        assert_eq!(total.line(), "2,000 keys compared, 7 sent, 5 healed");
    }

    #[test]
    fn problems_say_who_with_whom() {
        let mut told = proto::RepairResponse { nodes: vec![node("a1", 3, 1), node("b2", 0, 0)], over: true };
        let problem = |peer: &str| proto::RepairProblem { peer: peer.into(), problem: "silent".into() };
        told.nodes[0].problems = vec![problem("00b2"), problem("00c3")];
        told.nodes[1].problems = vec![problem("")];
        assert_eq!(
            problems(&told),
            ["a1 with b2 (00b2): silent", "a1 with 00c3: silent", "b2 (00b2): silent"]
        );
        let json = to_json(&Total::of(&told), &told, Duration::from_millis(1_500));
        assert_eq!((&json["problems"][2]["peer"], &json["seconds"]), (&Value::Null, &json!(1.5)));
    }
}
