//! The binary, and a `quoral dev` of it, for the tests that run one.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

pub fn quoral() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quoral"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORAL_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    quoral().args(arguments).output().expect("runs")
}

pub fn code(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running `quoral dev`; killed if a test fails.
pub struct Dev {
    pub child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Long enough for a slow machine; nothing waits for it unless something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(90);

impl Dev {
    /// Starts one in `dir`, on ports that are free, and waits for `ready`.
    pub fn start(dir: &Path, nodes: &str) -> Dev {
        let fresh = !dir.join("n1/quoral.toml").exists();
        let process = u16::try_from(std::process::id() % 500).expect("small");
        for attempt in 0..20 {
            // Below the ports that systems give out by themselves.
            let base = (12_000 + process * 30 + attempt * 700).to_string();
            let mut command = quoral();
            command.args(["dev", "--nodes", nodes, "--dir"]).arg(dir);
            if fresh {
                command.args(["--base-port", &base]);
            }
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
            let (send, lines) = mpsc::channel();
            let readers: [Box<dyn Read + Send>; 2] = [
                Box::new(child.stdout.take().expect("piped")),
                Box::new(child.stderr.take().expect("piped")),
            ];
            for reader in readers {
                let send = send.clone();
                std::thread::spawn(move || {
                    for line in BufReader::new(reader).lines().map_while(Result::ok) {
                        let _ = send.send(line);
                    }
                });
            }
            drop(send);
            let mut dev = Dev { child, lines };
            match dev.wait_for(|line| line == "ready" || line.contains("can't listen on all ports")) {
                Some(line) if line == "ready" => return dev,
                Some(_) if fresh => {
                    dev.child.wait().expect("ended");
                    std::fs::remove_dir_all(dir).expect("removed");
                }
                other => panic!("not ready: {other:?}"),
            }
        }
        panic!("no free ports");
    }

    /// The first line that is wanted; `None` if the output ends before.
    pub fn wait_for(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if wanted(&line) => return Some(line),
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("nothing was said in time"),
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.id()), signal).expect("it runs");
    }

    /// The processes that it started.
    pub fn nodes(&self) -> Vec<Pid> {
        let id = self.child.id();
        let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("Linux");
        text.split_whitespace().map(|id| pid(id.parse().expect("a number"))).collect()
    }
}

pub fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("small")).expect("not 0")
}
