//! `config check` and `config show`: a node's configuration as `serve` would read it.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::Global;
use super::output::{self, CliError, CliResult, Exit};
use crate::node::config::{Checked, ConfigError};

/// Checks or shows a node's configuration.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  quoral config check quoral.toml
  quoral config show
  quoral config show quoral.toml
  QUORAL_NODE_DURABILITY=interval quoral config show quoral.toml")]
pub enum ConfigVerb {
    /// Says all that is wrong with a configuration, and where.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Prints the effective configuration, and where each value comes from.
    Show {
        /// The file. Without one, the defaults and the environment; what is required and missing is then
        /// shown as a comment, with an example.
        file: Option<PathBuf>,
    },
}

impl ConfigVerb {
    /// Reads the file and prints what was asked.
    pub fn run(self, global: &Global) -> CliResult {
        let problems = |error: ConfigError| CliError::error(error.to_string());
        match self {
            ConfigVerb::Check { file } => {
                Checked::load(&file).map_err(problems)?;
                if global.json() {
                    output::print_json(&json!({ "file": file.display().to_string(), "ok": true }))?;
                } else {
                    output::print_line(format!("{}: ok", file.display()))?;
                }
            }
            ConfigVerb::Show { file } => {
                let checked = file.as_deref().map_or_else(Checked::without_file, Checked::load);
                let shown = checked.map_err(problems)?.render();
                if global.json() {
                    let table: toml::Table = toml::from_str(&shown)
                        .map_err(|error| CliError::error(format!("can't be shown as JSON: {error}")))?;
                    let value = serde_json::to_value(table)
                        .map_err(|error| CliError::error(format!("can't be shown as JSON: {error}")))?;
                    output::print_json(&value)?;
                } else {
                    output::print(shown)?;
                }
            }
        }
        Ok(Exit::Done)
    }
}
