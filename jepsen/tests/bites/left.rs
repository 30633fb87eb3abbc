//! Nothing is left behind, not even by a runner that is killed.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use quoral_jepsen::cluster::{Cluster, Disk, Fs, Options, ledger};
use quoral_jepsen::network::enter_hub;

use crate::world::ensure;

/// A runner with a node that runs and one that is stopped; says their process ids, and waits to be killed.
pub fn runner(dir: PathBuf) {
    enter_hub().expect("a hub");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut options = Options::new(std::env::current_exe().expect("this program"), dir);
        (options.nodes, options.disk) = (2, Disk::Loop(Fs::Xfs));
        let mut cluster = Cluster::start(options).await.expect("a cluster");
        cluster.pause(1);
        let pids: Vec<u32> = cluster.nodes().iter().filter_map(|node| node.pid()).collect();
        println!("{} {}", pids[0], pids[1]);
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
}

fn lives(pid: &str) -> bool {
    // Its parent is gone: whoever inherits it may leave it a zombie for a while.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        ensure(Instant::now() < end, || format!("never: {what}"))?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a loop device has a file in that directory, or had one that is deleted.
fn has_loops(dir: &Path) -> bool {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return false };
    let file =
        |device: std::fs::DirEntry| std::fs::read_to_string(device.path().join("loop/backing_file")).ok();
    devices.flatten().filter_map(file).any(|file| Path::new(file.trim()).starts_with(dir))
}

/// A killed runner's nodes end, the stopped one by the kernel's hangup or by the next runner.
pub fn processes() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut runner = Command::new(std::env::current_exe().map_err(|error| error.to_string())?)
        .arg("runner-to-be-killed")
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut line = String::new();
    if let Some(stdout) = runner.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
    }
    let _ = runner.kill();
    let _ = runner.wait();
    let (running, stopped) = line.trim().split_once(' ').ok_or("it said nothing")?;
    eventually("the running node ends", || !lives(running))?;
    let _ = ledger::clean();
    eventually("the stopped node ends", || !lives(stopped))?;
    eventually("its disks are let go", || !has_loops(dir.path()))
}

/// A cluster that is stopped lets its disks go.
pub async fn disks() -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let binary = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut options = Options::new(binary, dir.path().to_owned());
    (options.nodes, options.disk) = (2, Disk::Loop(Fs::Ext4));
    let mut cluster = Cluster::start(options).await.map_err(|error| error.to_string())?;
    ensure(has_loops(dir.path()), || "no disks".into())?;
    cluster.cut_power(&[0]).await.map_err(|error| error.to_string())?;
    cluster.heal_all().await.map_err(|error| error.to_string())?;
    cluster.stop().await.map_err(|error| error.to_string())?;
    eventually("its disks are let go", || !has_loops(dir.path()))
}
