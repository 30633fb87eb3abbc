//! A write that was sent several times under one request id was applied once: no read finds an element twice, neither
//! as two siblings nor, back again, beside what had replaced it.

use std::collections::BTreeSet;

use super::findings::Findings;
use super::value::Val;
use super::{Checker, Verdict};
use crate::history::{History, Kind};

/// No element is there twice.
#[derive(Debug, Clone, Copy, Default)]
pub struct AppliedOnce;

impl Checker for AppliedOnce {
    fn name(&self) -> &'static str {
        "applied-once"
    }

    fn check(&self, history: &History) -> Verdict {
        let operations = history.operations();
        let mut findings = Findings::new();
        let mut values = 0_usize;
        for read in operations.iter().filter(|op| op.f == "read" && op.outcome == Kind::Ok) {
            let mut seen = BTreeSet::new();
            for value in Val::all_of(&read.output) {
                values += 1;
                if !seen.insert(value.clone()) {
                    let events = vec![read.begin, read.end];
                    findings.wrong(Some(read.key), events, || format!("applied twice: {value}"));
                }
            }
        }
        if values == 0 {
            findings.unsure();
        }
        findings.figure("values-read", values);
        findings.done()
    }
}
