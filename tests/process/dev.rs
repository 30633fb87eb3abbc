//! `quoral dev` as a user meets it: it starts, reports a death, stops cleanly, and goes on with its data.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::cluster::{
    BINARY, READY_WITHIN, alone, cli, eventually, free_ports, http_get, said, wait_for_end,
};

const STOPPED_WITHIN: Duration = Duration::from_secs(20);

struct Dev {
    child: Child,
    base: u16,
    log: std::path::PathBuf,
}

impl Dev {
    /// Starts it, and returns when it has printed `ready`.
    fn start(dir: &Path, base: u16) -> Dev {
        let log = dir.with_extension("stderr");
        let mut child = Command::new(BINARY)
            .args(["dev", "--partitions", "32", "--base-port", &base.to_string(), "--dir"])
            .arg(dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::options().append(true).create(true).open(&log).expect("a log"))
            .spawn()
            .expect("quoral starts");
        let out = child.stdout.take().expect("it is piped");
        let dev = Dev { child, base, log };
        let (lines, printed) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        let end = Instant::now() + READY_WITHIN;
        loop {
            match printed.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line == "ready" => return dev,
                Ok(_) => {}
                Err(why) => panic!("no `ready` ({why}): {}", dev.errors()),
            }
        }
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn endpoints(&self) -> Vec<std::net::SocketAddr> {
        (0..3).map(|k| std::net::SocketAddr::from(([127, 0, 0, 1], self.base + 10 * k))).collect()
    }

    /// The process ids of its nodes, by what they were started with.
    fn nodes(&self) -> Vec<Pid> {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let mut found = Vec::new();
        // A thread that spawns is the parent in /proc: all threads are asked.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect(&children);
        for task in tasks.flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
        }
        found
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not 0");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits for its end; its exit code.
    fn ended(&mut self) -> Option<i32> {
        let status = wait_for_end(&mut self.child, STOPPED_WITHIN);
        status.unwrap_or_else(|| panic!("it goes on: {}", self.errors())).code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // The nodes see that it is gone.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn put(dev: &Dev, key: &str, value: &str) {
    let (output, _) = cli(&dev.endpoints(), &["put", key, value]);
    assert!(output.status.success(), "{}", said(&output));
}

fn get(dev: &Dev, key: &str) -> String {
    let (output, _) = cli(&dev.endpoints(), &["get", key]);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn wait_gone(pids: &[Pid]) {
    eventually(STOPPED_WITHIN, || match pids.iter().find(|pid| test_kill_process(**pid).is_ok()) {
        None => Ok(()),
        Some(pid) => Err(format!("process {pid:?} lives")),
    });
}

#[test]
fn dev_goes_on_with_its_data_and_stops_cleanly() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let (dir, base) = (dir.path().join("cluster"), free_ports(30));

    // Ctrl-C.
    let mut dev = Dev::start(&dir, base);
    let nodes = dev.nodes();
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    put(&dev, "k", "first");
    dev.signal(Signal::INT);
    assert_eq!(dev.ended(), Some(0), "{}", dev.errors());
    wait_gone(&nodes);

    // SIGTERM.
    let mut dev = Dev::start(&dir, base);
    assert_eq!(get(&dev, "k"), "first");
    put(&dev, "k", "second");
    dev.signal(Signal::TERM);
    assert_eq!(dev.ended(), Some(0), "{}", dev.errors());

    // SIGKILL: the nodes see that it is gone, and stop by themselves.
    let mut dev = Dev::start(&dir, base);
    let nodes = dev.nodes();
    assert_eq!(get(&dev, "k"), "second");
    put(&dev, "k", "third");
    dev.signal(Signal::KILL);
    assert_eq!(dev.ended(), None);
    wait_gone(&nodes);

    let mut dev = Dev::start(&dir, base);
    assert_eq!(get(&dev, "k"), "third");
    dev.signal(Signal::TERM);
    assert_eq!(dev.ended(), Some(0), "{}", dev.errors());
    for k in 1..=3 {
        let log = std::fs::read_to_string(dir.join(format!("n{k}/log"))).expect("a log");
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn dev_reports_a_dead_node_and_serve_brings_it_back() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let (dir, base) = (dir.path().join("cluster"), free_ports(30));
    let mut dev = Dev::start(&dir, base);
    let second = dev.nodes().into_iter().find(|pid| {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("n2/quoral.toml")
    });
    kill_process(second.expect("the second node"), Signal::KILL).expect("it runs");
    eventually(Duration::from_secs(5), || {
        let text = dev.errors();
        let told = ["n2 has died", "serve --config", "n2/quoral.toml"].iter().all(|part| text.contains(part));
        if told { Ok(()) } else { Err(text) }
    });
    // It goes on with two, and is three again when the command that it printed is run.
    put(&dev, "k", "v");
    let mut back = Command::new(BINARY)
        .args(["serve", "--stop-with-parent", "--config"])
        .arg(dir.join("n2/quoral.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("quoral starts");
    let http = std::net::SocketAddr::from(([127, 0, 0, 1], base + 12));
    eventually(READY_WITHIN, || match http_get(http, "/readyz")? {
        (200, _) => Ok(()),
        (_, body) => Err(body),
    });
    let (output, _) = cli(&dev.endpoints()[1..2], &["get", "k", "--r", "2"]);
    assert_eq!(said(&output).trim_end(), "v");
    let _ =
        kill_process(Pid::from_raw(i32::try_from(back.id()).expect("a pid")).expect("not 0"), Signal::TERM);
    let ended = wait_for_end(&mut back, STOPPED_WITHIN);
    if ended.is_none() {
        let _ = back.kill();
        let _ = back.wait();
    }
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "serve stops cleanly on SIGTERM");
    dev.signal(Signal::INT);
    assert_eq!(dev.ended(), Some(0), "{}", dev.errors());
}

#[test]
fn two_dev_clusters_on_one_directory_are_refused() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let (dir, base) = (dir.path().join("cluster"), free_ports(30));
    let mut dev = Dev::start(&dir, base);
    let path = dir.display().to_string();
    let (output, _) = crate::cluster::run(&["dev", "--dir", &path], Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("another `quoral dev` runs"), "{}", said(&output));
    // Another directory, the same ports: all that are taken are named.
    let moved = dir.with_extension("other");
    let other = moved.display().to_string();
    let base = base.to_string();
    let (output, _) =
        crate::cluster::run(&["dev", "--dir", &other, "--base-port", &base], Duration::from_secs(20));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("listen on all ports") && said(&output).contains(&base),
        "{}",
        said(&output)
    );
    // Its advice can be followed: what was refused is no cluster.
    let mut other = Dev::start(&moved, free_ports(30));
    put(&other, "k", "of the other");
    put(&dev, "k", "v");
    assert_eq!(get(&other, "k"), "of the other");
    for dev in [&mut dev, &mut other] {
        dev.signal(Signal::TERM);
        assert_eq!(dev.ended(), Some(0), "{}", dev.errors());
    }
}
