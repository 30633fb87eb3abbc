//! What is kept of a run, and how it is shown: a store as Jepsen's users know it.
//!
//! [`store::Run`] makes the directory of a run before it begins, so that the nodes can put their logs there,
//! and writes the rest after it: the history, the results, the options, a timeline and three plots. Nothing
//! here judges: verdicts come in with the [`Outcome`].
//!
//! 1. `results.edn` is written last: a run without it was broken off, and the index says so.
//! 2. Every word that came from outside (values, errors, names) is escaped before it gets into HTML or SVG.
//! 3. One input gives the same bytes: no clock, no randomness, ordered maps.
//! 4. Pictures are bounded: at most [`latency::POINTS_MAX`] points, about [`plan::OPS_MAX`] boxes. What is
//!    left out is said in the picture, and never an extreme nor an anomaly.
//!
//! The pages hold no script and load nothing from elsewhere: a store can be zipped and sent.

pub mod index;
mod latency;
mod layout;
mod markup;
mod plan;
mod quantiles;
mod rate;
mod results;
mod scale;
pub mod store;
mod summary;
mod text;
mod timeline;
mod view;

use crate::checker::{Valid, Verdict};
use crate::edn::Edn;
use crate::history::History;

pub(crate) use markup::{escape, link as path_link};
pub use store::Run;
pub use summary::summary;

/// How lists of runs and files look.
pub(crate) const INDEX_STYLE: &str = include_str!("index.css");

/// What was run.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// The workload's name: `register`, `set`, …
    pub workload: String,
    /// The names of the nemeses, in the order given.
    pub nemeses: Vec<String>,
    /// The seed of the generators.
    pub seed: u64,
    /// The names of the nodes.
    pub nodes: Vec<String>,
    /// How long clients were to run, in seconds.
    pub seconds: u64,
    /// How many clients there were at a time.
    pub concurrency: usize,
    /// What this machine could not do, in words; it did not happen in this run.
    pub left_out: Vec<String>,
    /// More options, by name without the colon.
    pub options: Vec<(String, Edn)>,
    /// The command that runs it again.
    pub command: String,
}

/// A run that is over: what was run, what happened, and what the checkers say of it.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// What was run.
    pub test: &'a Test,
    /// What happened.
    pub history: &'a History,
    /// Each checker's name and verdict.
    pub verdicts: &'a [(String, Verdict)],
}

impl Outcome<'_> {
    /// The worst of the verdicts; without any it is unknown.
    pub fn valid(&self) -> Valid {
        self.verdicts.iter().map(|(_, verdict)| verdict.valid).max().unwrap_or(Valid::Unknown)
    }
}
