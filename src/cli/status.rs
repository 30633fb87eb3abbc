//! `status`: the nodes of the cluster, as one of them sees it.

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::Global;
use super::hints::refused_line;
use super::output::{self, CliResult, Exit, Op};
use crate::rpc::proto;
use crate::types::limits::QUARANTINE_WAITING;
use crate::types::time::WallMs;

/// Shows nodes, liveness, zones, layout version, ownership, disk, hints, and how old the oldest proof is that replicas
/// are equal.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quoral status
  quoral status --partitions
  quoral status --endpoints 127.0.0.1:7410 -o json")]
pub struct StatusArgs {
    /// Shows of each partition when all its replicas were last proved equal.
    #[arg(long)]
    partitions: bool,
}

impl StatusArgs {
    /// Asks one node and prints what it says.
    pub async fn run(self, global: &Global) -> CliResult {
        let client = global.client()?;
        let status = client
            .call_cluster(
                Op::Read,
                |mut cluster| async move { cluster.status(proto::StatusRequest {}).await },
            )
            .await?;
        if global.json() {
            output::print_json(&to_json(&status, self.partitions))?;
        } else if self.partitions {
            output::print(partitions_text(&status))?;
        } else {
            output::print(to_text(&status))?;
        }
        Ok(Exit::Done)
    }
}

/// When something was proved; none if it never was, or there is nothing to prove.
fn proved(at_ms: u64) -> Option<u64> {
    (at_ms > 1).then_some(at_ms)
}

/// The same for people, as an age.
fn proved_text(at_ms: u64, now_ms: u64) -> String {
    match at_ms {
        0 => "-".into(),
        1 => "never".into(),
        at_ms => match now_ms.saturating_sub(at_ms) / 1_000 {
            seconds @ 0..600 => format!("{seconds} s"),
            seconds @ 600..36_000 => format!("{} min", seconds / 60),
            seconds => format!("{} h", seconds / 3_600),
        },
    }
}

fn partitions_text(status: &proto::StatusResponse) -> String {
    let row = |(partition, at_ms): (usize, &u64)| {
        let at = proved(*at_ms).map_or_else(|| "-".into(), |at_ms| WallMs(at_ms).utc());
        vec![partition.to_string(), at, proved_text(*at_ms, status.now_ms)]
    };
    let rows: Vec<Vec<String>> = status.proved_ms.iter().enumerate().map(row).collect();
    output::table(&["PARTITION", "PROVED EQUAL", "AGO"], &rows)
}

fn to_json(status: &proto::StatusResponse, with_partitions: bool) -> Value {
    let node = |node: &proto::NodeStatus| {
        json!({
            "node_id": node.node_id,
            "name": node.name,
            "address": node.address,
            "client_address": node.client_address,
            "zone": node.zone,
            "state": node.state,
            "ownership": node.ownership,
            "hints": node.hints,
            "hints_delivered": node.hints_delivered,
            "hints_per_second": node.hints_per_second,
            "hints_refused": node.hints_refused,
            "hints_refusal": node.hints_refusal,
            "disk_bytes": node.disk_bytes,
            "durability": node.durability,
            "map_version": node.map_version,
            "proved_ms": proved(node.proved_ms),
            "refill": node.refill.as_ref().map(|refill| json!({
                "trees": refill.trees,
                "done": refill.done,
                "records": refill.records,
                "waits_for": refill.waits_for,
            })),
            "damage": node.damage.as_ref().map(|damage| json!({
                "waiting": damage.waiting,
                "quarantined": damage.quarantined,
                "unreadable": damage.unreadable,
            })),
            "tombstones": node.tombstones.as_ref().map(|due| json!({
                "waiting": due.waiting,
                "waits_for": due.waits_for.iter().map(|of| (of.node_id.clone(), json!(of.tombstones))).collect::<serde_json::Map<_, _>>(),
            })),
        })
    };
    let mut all = json!({
        "cluster_id": status.cluster_id,
        "layout_version": status.layout_version,
        "map_version": status.map_version,
        "partitions": status.partitions,
        "answered_by": status.answered_by,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
    });
    if with_partitions {
        let partitions = status.proved_ms.iter().map(|at_ms| proved(*at_ms));
        all["partitions_proved_ms"] = partitions.collect();
    }
    all
}

fn to_text(status: &proto::StatusResponse) -> String {
    let rows: Vec<Vec<String>> = status
        .nodes
        .iter()
        .map(|node| {
            let or_dash = |text: &str| if text.is_empty() { "-".to_string() } else { text.to_string() };
            vec![
                node.node_id.clone(),
                node.name.clone(),
                node.address.clone(),
                or_dash(&node.client_address),
                node.zone.clone(),
                node.state.clone(),
                format!("{:.1}%", node.ownership * 100.0),
                node.hints.to_string(),
                show_size(node.disk_bytes),
                or_dash(&node.durability),
                node.map_version.to_string(),
                proved_text(node.proved_ms, status.now_ms),
            ]
        })
        .collect();
    let head = [
        "NODE",
        "NAME",
        "PEERS",
        "CLIENTS",
        "ZONE",
        "STATE",
        "OWNS",
        "HINTS",
        "DISK",
        "DURABILITY",
        "MAP",
        "PROVED",
    ];
    let refills: String = status.nodes.iter().filter_map(|node| refill_line(status, node)).collect();
    let damages: String = status.nodes.iter().map(damage_lines).collect();
    let tombstones: String = status.nodes.iter().filter_map(|node| tombstone_line(status, node)).collect();
    let progress = refills + &damages + &tombstones + &status.nodes.iter().map(progress).collect::<String>();
    format!(
        "cluster {}: layout version {}, map version {}, {} partitions; as {} sees it\n{}{progress}",
        status.cluster_id,
        status.layout_version,
        status.map_version,
        status.partitions,
        status.answered_by,
        output::table(&head, &rows)
    )
}

/// A node's name, with its state if that is not alive.
fn name_and_state(status: &proto::StatusResponse, id: &str) -> String {
    let known = status.nodes.iter().find(|node| node.node_id == id);
    known.map_or(id.to_owned(), |node| match node.state.as_str() {
        "alive" => node.name.clone(),
        state => format!("{} ({state})", node.name),
    })
}

/// Which tombstones that a node leads wait to be purged, and for whom; nothing if none does.
fn tombstone_line(status: &proto::StatusResponse, node: &proto::NodeStatus) -> Option<String> {
    let due = node.tombstones.as_ref().filter(|due| due.waiting > 0)?;
    let one =
        |of: &proto::TombstonesFor| format!("{} for {}", of.tombstones, name_and_state(status, &of.node_id));
    let waits_for: Vec<String> = due.waits_for.iter().map(one).collect();
    let waits_for = match waits_for.is_empty() {
        true => String::new(),
        false => format!(": {}", waits_for.join(", ")),
    };
    Some(format!(
        "{} leads {} tombstones that are due and wait to be purged{waits_for}\n",
        node.name, due.waiting
    ))
}

/// How far a node is that lost its disk; nothing if none did.
fn refill_line(status: &proto::StatusResponse, node: &proto::NodeStatus) -> Option<String> {
    let refill = node.refill.as_ref()?;
    let percent = (refill.done * 100).checked_div(refill.trees).unwrap_or(100);
    let waits_for: Vec<String> = refill.waits_for.iter().map(|id| name_and_state(status, id)).collect();
    let waits_for = match waits_for.is_empty() {
        true => String::new(),
        false => format!(", the rest is to come from {}", waits_for.join(", ")),
    };
    Some(format!(
        "{} lost its disk and is refilled: {} of {} trees are back ({percent}%), with {} records{waits_for}; it \
         answers no reads of what is not back\n",
        node.name, refill.done, refill.trees, refill.records
    ))
}

/// What a node has found damaged; nothing if that is nothing.
fn damage_lines(node: &proto::NodeStatus) -> String {
    let (name, mut text) = (&node.name, String::new());
    let Some(damage) = &node.damage else { return text };
    match (damage.quarantined, damage.waiting) {
        (0, 0) => {}
        (all, 0) => _ = writeln!(text, "{name} had {all} damaged records: all are healed"),
        (all, wait) => {
            let more = if wait >= QUARANTINE_WAITING as u64 { " (or more)" } else { "" };
            _ = writeln!(
                text,
                "{name} has {all} damaged records{more}: {wait} wait to be healed, until all of their replicas are \
                 there"
            );
        }
    }
    if damage.unreadable {
        _ = writeln!(
            text,
            "{name} can't read a part of its files, and can't heal that: its disk has to be replaced, see \"A disk is \
             damaged\" in docs/operations.md"
        );
    }
    text
}

/// How far a node's hints are on their way home, and what has none; nothing if there is nothing to say.
fn progress(node: &proto::NodeStatus) -> String {
    let mut text = String::new();
    if node.hints > 0 {
        let (wait, home) = (node.hints, node.hints_delivered);
        let percent = home.saturating_mul(100) / (home + wait);
        text = format!("hints for {}: {home} of {} are home ({percent}%)", node.name, home + wait);
        if let Some(seconds) = wait.checked_div(node.hints_per_second) {
            let _ = write!(text, ", {} a second, about {seconds} s to go", node.hints_per_second);
        }
        text.push('\n');
    }
    if node.hints_refused > 0 {
        text.push_str(&refused_line(&node.name, node.hints_refused, &node.hints_refusal));
    }
    text
}

/// A number of bytes with a binary unit.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1_024.0;
    let mut unit = 0;
    while size >= 1_024.0 && unit + 1 < UNITS.len() {
        size /= 1_024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_what_the_contract_names() {
        let status = proto::StatusResponse {
            cluster_id: "c".into(),
            layout_version: 1,
            map_version: 2,
            partitions: 256,
            answered_by: "00000000000000a1".into(),
            proved_ms: vec![0, 1, 90_000],
            now_ms: 100_000,
            nodes: vec![proto::NodeStatus {
                node_id: "00000000000000a1".into(),
                name: "n1".into(),
                address: "127.0.0.1:7401".into(),
                zone: "default".into(),
                state: "alive".into(),
                ownership: 0.25,
                hints: 3,
                disk_bytes: 1_536,
                proved_ms: 90_000,
                ..proto::NodeStatus::default()
            }],
        };
        let json = to_json(&status, true);
        assert_eq!(json["partitions_proved_ms"], json!([null, null, 90_000]));
        assert!(to_json(&status, false).get("partitions_proved_ms").is_none());
        assert_eq!((&json["cluster_id"], &json["layout_version"]), (&json!("c"), &json!(1)));
        let node = &json["nodes"][0];
        for (key, value) in [
            ("node_id", json!("00000000000000a1")),
            ("name", json!("n1")),
            ("address", json!("127.0.0.1:7401")),
            ("zone", json!("default")),
            ("state", json!("alive")),
            ("ownership", json!(0.25)),
            ("hints", json!(3)),
            ("disk_bytes", json!(1_536)),
            ("proved_ms", json!(90_000)),
        ] {
            assert_eq!(node[key], value, "{key}");
        }
        let text = to_text(&status);
        assert!(text.contains("25.0%") && text.contains("1.5 KiB") && text.contains("10 s"), "{text}");
        let text = partitions_text(&status);
        assert!(text.contains("never") && text.contains("1970-01-01") && text.contains("10 s"), "{text}");
    }

    #[test]
    fn a_refill_is_told() {
        let node = |id: &str, name: &str, state: &str| proto::NodeStatus {
            node_id: id.into(),
            name: name.into(),
            state: state.into(),
            ..proto::NodeStatus::default()
        };
        let mut nodes = vec![node("a1", "n1", "alive"), node("a2", "n2", "down"), node("a3", "n3", "alive")];
        let waits_for = vec!["a1".into(), "a2".into()];
        nodes[2].refill = Some(proto::Refill { trees: 40, done: 10, records: 700, waits_for });
        let status = proto::StatusResponse { nodes, ..proto::StatusResponse::default() };
        let text = to_text(&status);
        let line = "n3 lost its disk and is refilled: 10 of 40 trees are back (25%), with 700 records, the rest is to \
                    come from n1, n2 (down); it answers no reads of what is not back\n";
        assert!(text.ends_with(line), "{text}");
        let refill = &to_json(&status, false)["nodes"][2]["refill"];
        let expected = json!({"trees": 40, "done": 10, "records": 700, "waits_for": ["a1", "a2"]});
        assert_eq!(*refill, expected);
        assert!(to_json(&status, false)["nodes"][0]["refill"].is_null());
    }

    #[test]
    fn tombstones_that_wait_are_told_and_for_whom() {
        let node = |id: &str, name: &str, state: &str| proto::NodeStatus {
            node_id: id.into(),
            name: name.into(),
            state: state.into(),
            ..Default::default()
        };
        let for_node = |id: &str, tombstones| proto::TombstonesFor { node_id: id.into(), tombstones };
        let due = |waiting, waits_for| Some(proto::DueTombstones { waiting, waits_for });
        let (one, two, mut three) =
            (node("1", "n1", "alive"), node("2", "n2", "down"), node("3", "n3", "alive"));
        three.tombstones = due(9, vec![for_node("1", 2), for_node("2", 9)]);
        let status = proto::StatusResponse { nodes: vec![one, two, three.clone()], ..Default::default() };
        let told = |tombstones| tombstone_line(&status, &proto::NodeStatus { tombstones, ..three.clone() });
        let line = "n3 leads 9 tombstones that are due and wait to be purged: 2 for n1, 9 for n2 (down)\n";
        assert_eq!(told(three.tombstones.clone()).as_deref(), Some(line));
        let line = "n3 leads 4 tombstones that are due and wait to be purged\n";
        assert_eq!(told(due(4, vec![])).as_deref(), Some(line));
        assert_eq!((told(due(0, vec![])), told(None)), (None, None));
        let json = to_json(&status, false);
        let expected = json!({"waiting": 9, "waits_for": {"1": 2, "2": 9}});
        assert_eq!(
            (&json["nodes"][2]["tombstones"], &json["nodes"][0]["tombstones"]),
            (&expected, &Value::Null)
        );
    }

    #[test]
    fn damage_is_told() {
        let node = |waiting, quarantined, unreadable| proto::NodeStatus {
            name: "n3".into(),
            damage: Some(proto::Damage { waiting, quarantined, unreadable }),
            ..proto::NodeStatus::default()
        };
        assert_eq!(damage_lines(&proto::NodeStatus::default()), "", "it does not answer");
        assert_eq!(damage_lines(&node(0, 0, false)), "");
        assert_eq!(damage_lines(&node(0, 7, false)), "n3 had 7 damaged records: all are healed\n");
        let nodes = vec![node(2, 7, true), proto::NodeStatus::default()];
        let status = proto::StatusResponse { nodes, ..proto::StatusResponse::default() };
        let text = to_text(&status);
        let waits = "n3 has 7 damaged records: 2 wait to be healed, until all of their replicas are there\nn3 can't read";
        assert!(text.contains(waits), "{text}");
        let json = to_json(&status, false);
        let expected = json!({"waiting": 2, "quarantined": 7, "unreadable": true});
        assert_eq!((&json["nodes"][0]["damage"], &json["nodes"][1]["damage"]), (&expected, &Value::Null));
    }

    #[test]
    fn the_way_home_is_told() {
        let node = |hints, hints_delivered, hints_per_second| proto::NodeStatus {
            name: "n3".into(),
            hints,
            hints_delivered,
            hints_per_second,
            ..proto::NodeStatus::default()
        };
        assert_eq!(progress(&node(0, 7, 0)), "");
        assert_eq!(progress(&node(30, 0, 0)), "hints for n3: 0 of 30 are home (0%)\n");
        assert_eq!(
            progress(&node(3_000, 1_000, 500)),
            "hints for n3: 1000 of 4000 are home (25%), 500 a second, about 6 s to go\n"
        );
        let refused = proto::NodeStatus { hints_refused: 9, hints_refusal: "full".into(), ..node(0, 0, 0) };
        let line = "hints for n3: 9 writes have none: full; anti-entropy has to bring them\n";
        assert_eq!(progress(&refused), line);
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1_023), "1023 B");
        assert_eq!(show_size(3 << 20), "3.0 MiB");
        assert_eq!(show_size(u64::MAX), "16384.0 PiB");
    }
}
