//! The one binary. All of it is in `quoral::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    quoral::cli::main()
}
