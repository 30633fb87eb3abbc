//! What a measurement says, for people and as JSON. Latencies in JSON are microseconds.

use serde_json::{Map, Value, json};

use super::run::{Latencies, Measured, Plan};
use crate::cli::output::table;
use crate::cli::progress::thousands;

const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

fn per_second(count: u64, measured: &Measured) -> f64 {
    count as f64 / measured.took.as_secs_f64().max(1e-9)
}

fn latencies_json(latencies: &Latencies) -> Value {
    let mut object = Map::new();
    object.insert("count".into(), latencies.len().into());
    object.insert("mean".into(), latencies.mean().into());
    for (name, percentile) in PERCENTILES {
        object.insert(name.into(), latencies.value_at_percentile(percentile).into());
    }
    object.insert("max".into(), latencies.max().into());
    Value::Object(object)
}

/// All that was measured and how.
pub fn json(plan: &Plan, measured: &Measured) -> Value {
    let mut both = measured.put.clone();
    // The same bounds, so it can't fail.
    let _ = both.add(&measured.get);
    json!({
        "workload": plan.workload.name(),
        "keyspace": plan.keyspace,
        "concurrency": plan.concurrency,
        "connections": plan.connections,
        "rate": plan.rate,
        "value_bytes": plan.value.len(),
        "keys": plan.keys.len(),
        "seconds": measured.took.as_secs_f64(),
        "ops": measured.done(),
        "ops_per_second": per_second(measured.done(), measured),
        "errors": measured.errors,
        "not_found": measured.not_found,
        "unsent": measured.unsent,
        "latency_us": {
            "all": latencies_json(&both),
            "put": latencies_json(&measured.put),
            "get": latencies_json(&measured.get),
            "send_late": latencies_json(&measured.late),
            "refused": latencies_json(&measured.refused),
        },
    })
}

/// A table, and what went wrong.
pub fn text(plan: &Plan, measured: &Measured) -> String {
    let millis = |micros: u64| format!("{:.3}", micros as f64 / 1_000.0);
    let mut rows = Vec::new();
    for (name, latencies) in [("put", &measured.put), ("get", &measured.get)] {
        if latencies.is_empty() {
            continue;
        }
        let mut row = vec![
            name.to_string(),
            thousands(latencies.len()),
            thousands(per_second(latencies.len(), measured) as u64),
        ];
        row.extend(PERCENTILES.map(|(_, p)| millis(latencies.value_at_percentile(p))));
        row.push(millis(latencies.max()));
        rows.push(row);
    }
    let head = ["OP", "COUNT", "PER SECOND", "P50 MS", "P90 MS", "P99 MS", "P99.9 MS", "MAX MS"];
    let mut text = format!(
        "{}: {:.1} s, {} op/s\n{}",
        plan.title(),
        measured.took.as_secs_f64(),
        thousands(per_second(measured.done(), measured) as u64),
        table(&head, &rows)
    );
    for (kind, count) in &measured.errors {
        text = format!("{text}errors: {} {kind}\n", thousands(*count));
    }
    if !measured.refused.is_empty() {
        let [p50, _, p99, _] = PERCENTILES.map(|(_, p)| millis(measured.refused.value_at_percentile(p)));
        text = format!("{text}refused within {p50} ms (p50), {p99} ms (p99)\n");
    }
    if measured.not_found > 0 {
        text = format!("{text}{} gets found nothing\n", thousands(measured.not_found));
    }
    if measured.unsent > 0 {
        text = format!(
            "{text}the schedule was not kept: {} requests were never sent; the latencies are too low\n",
            thousands(measured.unsent)
        );
    }
    text
}
