//! Programs of others, each with a time limit: `ip`, `nft`, `mount` and the like.
//!
//! Answers are short: they must fit into a pipe's buffer, or the program runs into its limit.

use std::io::Write as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Error;

/// How long a program may take.
pub const WITHIN: Duration = Duration::from_secs(20);

/// Runs a program to its end, with `input` on its stdin; gives what it printed. Blocks.
///
/// # Errors
///
/// It can't be started, does not end in time (it is killed then), or says that it failed.
pub fn run_blocking(line: &[String], input: &str) -> Result<String, Error> {
    let failed = |why: String| Error::Command { line: line.join(" "), why };
    let (program, arguments) = line.split_first().ok_or_else(|| failed("no program".into()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = wait(&mut child, WITHIN);
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(format!("did not end in {WITHIN:?}")));
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// [`run_blocking`], beside the runtime's own threads.
///
/// # Errors
///
/// As `run_blocking`.
pub async fn run(line: Vec<String>, input: String) -> Result<String, Error> {
    blocking(move || run_blocking(&line, &input)).await
}

/// Runs something that blocks, beside the runtime's own threads.
///
/// # Errors
///
/// What it says itself; or it panicked.
pub async fn blocking<T: Send + 'static>(
    what: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(what).await {
        Ok(result) => result,
        Err(error) => Err(Error::Unable(format!("a task that was to block: {error}"))),
    }
}

/// A command line's words.
#[must_use]
pub fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|word| (*word).to_owned()).collect()
}

/// Waits for a child's end; `None` if it takes longer.
pub fn wait(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + within;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_run_and_heard() {
        assert_eq!(run_blocking(&words(&["cat"]), "hello").unwrap(), "hello");
        let error = run_blocking(&words(&["sh", "-c", "echo no >&2; exit 3"]), "").unwrap_err().to_string();
        assert!(error.contains("exit status: 3: no"), "{error}");
        assert!(run_blocking(&words(&["quoral-no-such-program"]), "").is_err());
    }
}
