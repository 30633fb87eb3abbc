//! System calls of a running node that fail or are slow: `strace` attached to it, with its injections.
//!
//! A traced process is slower at every call, not only at those meant. One tracer a process, that is the kernel's
//! rule. Killing the node ends its tracer; ending the tracer lets the node go on.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Error;
use super::command::wait;

/// How long attaching to all threads, or letting them go, may take.
const WITHIN: Duration = Duration::from_secs(10);

/// An attached `strace`.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    /// What it saw.
    output: PathBuf,
}

impl Tracer {
    /// Attaches to a process; returns when all its threads are traced. Blocks.
    ///
    /// `calls` are names with commas between, `what` an injection as `error=EIO` or `delay_enter=100ms`.
    ///
    /// # Errors
    ///
    /// `strace` is missing, or the process can't be traced.
    pub fn attach(pid: u32, calls: &str, what: &str, output: PathBuf) -> Result<Tracer, Error> {
        let io = |error| Error::io("strace", error);
        let child = Command::new("strace")
            .args(["-f", "-p", &pid.to_string(), "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{what}"), "-e", "signal=none", "-o"])
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(io)?;
        let mut tracer = Tracer { child, output };
        let end = Instant::now() + WITHIN;
        while !all_traced(pid) {
            if let Some(status) = tracer.child.try_wait().map_err(io)? {
                return Err(Error::Unable(format!("strace can't attach to process {pid}: {status}")));
            }
            if Instant::now() > end {
                return Err(Error::Unable(format!("strace does not attach to process {pid}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(tracer)
    }

    /// Lets the process go; gives how many calls were tampered with. Blocks.
    #[must_use]
    pub fn detach(mut self) -> u64 {
        self.end();
        let seen = std::fs::read(&self.output).unwrap_or_default();
        let seen = String::from_utf8_lossy(&seen);
        seen.lines().filter(|line| line.contains("(INJECTED)") || line.contains("(DELAYED)")).count() as u64
    }

    fn end(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Ok(None), Some(pid)) = (self.child.try_wait(), pid) {
            let _ = kill_process(pid, Signal::TERM);
            if wait(&mut self.child, WITHIN).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether each thread of a process has a tracer.
fn all_traced(pid: u32) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    let mut tasks = tasks.flatten().peekable();
    tasks.peek().is_some()
        && tasks.all(|task| {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        })
}
