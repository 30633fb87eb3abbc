//! What can be done to the nodes of a cluster while it runs.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::command::blocking;
use super::tracer::Tracer;
use super::{Cluster, Error, Node, READY_WITHIN, ports};

/// How often a node is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How often a clock that runs wrong is moved.
const CLOCK_TICK: Duration = Duration::from_millis(20);
/// Calls that put data onto the disk.
pub const SYNCS: &str = "fsync,fdatasync,sync_file_range,msync";

impl Cluster {
    /// Nodes that run and are not paused.
    #[must_use]
    pub fn active(&self) -> Vec<usize> {
        (0..self.len()).filter(|at| self.nodes[*at].is_running() && !self.nodes[*at].paused).collect()
    }

    /// Names of nodes.
    #[must_use]
    pub fn names_of(&self, nodes: &[usize]) -> Vec<String> {
        nodes.iter().filter_map(|at| Some(self.nodes.get(*at)?.name.clone())).collect()
    }

    /// SIGKILL; returns when the process is gone.
    pub async fn kill(&mut self, node: usize) {
        self.kill_many(&[node]).await;
    }

    /// SIGKILL to several at once: none is waited for before the last has its signal.
    pub async fn kill_many(&mut self, nodes: &[usize]) {
        nodes.iter().for_each(|at| self.note_death(*at));
        nodes.iter().for_each(|at| self.nodes[*at].signal(Signal::KILL));
        for at in nodes {
            // The end of a killed process is a matter of a millisecond or two.
            self.nodes[*at].kill();
            tokio::task::yield_now().await;
        }
    }

    /// SIGTERM, and SIGKILL if it is not gone in time.
    pub async fn terminate(&mut self, node: usize, within: Duration) {
        self.note_death(node);
        self.nodes[node].signal(Signal::TERM);
        let end = Instant::now() + within;
        while self.nodes[node].is_running() && Instant::now() < end {
            sleep(POLL).await;
        }
        self.nodes[node].kill();
    }

    /// Starts a node, if it does not run; mounts its disk first, if it is not. Does not wait for it to be ready.
    ///
    /// # Errors
    ///
    /// It can't be started.
    pub async fn start_node(&mut self, node: usize) -> Result<(), Error> {
        if self.nodes[node].is_running() {
            return Ok(());
        }
        self.note_death(node);
        self.nodes[node].kill();
        let binary = self.options.binary.clone();
        if let Some(disk) = self.nodes[node].disk.clone() {
            blocking(move || disk.mount()).await?;
        }
        self.nodes[node].start(&binary)
    }

    /// SIGSTOP.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].signal(Signal::STOP);
        self.nodes[node].paused = self.nodes[node].is_running();
    }

    /// SIGCONT.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].signal(Signal::CONT);
        self.nodes[node].paused = false;
    }

    /// Cuts the power of machines, all at one moment: what was not synced is lost. They stay off until started.
    ///
    /// # Errors
    ///
    /// A node has no disk of its own, or it can't be cut.
    pub async fn cut_power(&mut self, nodes: &[usize]) -> Result<(), Error> {
        nodes.iter().for_each(|at| self.note_death(*at));
        // Stopped first: with the power, processes end too, so none may see its disk fail.
        nodes.iter().for_each(|at| self.nodes[*at].signal(Signal::STOP));
        let disks: Option<Vec<_>> = nodes.iter().map(|at| self.nodes[*at].disk.clone()).collect();
        let disks = disks.ok_or_else(|| Error::Unable("a power cut needs disks of the nodes' own".into()))?;
        let mounted = disks.clone();
        let cut =
            blocking(move || mounted.iter().filter(|disk| disk.is_mounted()).try_for_each(|d| d.cut())).await;
        nodes.iter().for_each(|at| self.nodes[*at].signal(Signal::KILL));
        nodes.iter().for_each(|at| self.nodes[*at].kill());
        cut?;
        blocking(move || disks.iter().try_for_each(|disk| disk.unmount())).await
    }

    /// Lets the node's syncs fail or be slow; `what` is an injection of `strace`.
    ///
    /// # Errors
    ///
    /// It does not run, has a tracer already, or can't be traced.
    pub async fn tamper(&mut self, node: usize, what: String) -> Result<(), Error> {
        let Node { name, dir, tracer, .. } = &self.nodes[node];
        let pid = self.nodes[node].pid().filter(|_| self.nodes[node].is_running());
        let Some(pid) = pid else { return Err(Error::Unable(format!("{name} does not run"))) };
        if tracer.is_some() {
            return Err(Error::Unable(format!("{name} is traced already")));
        }
        let output: PathBuf = dir.join("strace");
        let tracer = blocking(move || Tracer::attach(pid, SYNCS, &what, output)).await?;
        self.nodes[node].tracer = Some(tracer);
        Ok(())
    }

    /// Ends [`Cluster::tamper`]; gives how many calls were tampered with.
    ///
    /// # Errors
    ///
    /// None today.
    pub async fn leave_alone(&mut self, node: usize) -> Result<u64, Error> {
        match self.nodes[node].tracer.take() {
            Some(tracer) => blocking(move || Ok(tracer.detach())).await,
            None => Ok(0),
        }
    }

    /// From now on the node may end by itself: its disk fails.
    pub fn excuse(&mut self, node: usize, fault: &'static str) {
        self.nodes[node].disk_fault = Some(fault);
    }

    /// Moves a node's clock to so many milliseconds from the truth.
    ///
    /// # Errors
    ///
    /// The cluster was not started with clocks.
    pub fn set_clock(&self, node: usize, offset_ms: i64) -> Result<(), Error> {
        match &self.nodes[node].clock {
            Some(clock) => clock.set(offset_ms),
            None => Err(Error::Unable("the cluster was started with true clocks".into())),
        }
    }

    /// Lets the clocks of these nodes run wrong until [`Cluster::true_clocks`]: the offset in milliseconds is asked
    /// for again and again, with the time since now.
    ///
    /// # Errors
    ///
    /// The cluster was not started with clocks.
    pub async fn wrong_clocks(
        &mut self,
        nodes: &[usize],
        offset: impl Fn(Duration) -> i64 + Send + 'static,
    ) -> Result<(), Error> {
        self.true_clocks().await?;
        for at in nodes {
            self.set_clock(*at, offset(Duration::ZERO))?;
        }
        let clocks: Vec<_> = nodes.iter().filter_map(|at| self.nodes[*at].clock.clone()).collect();
        let began = Instant::now();
        self.mover = Some(tokio::spawn(async move {
            loop {
                sleep(CLOCK_TICK).await;
                // A tick that fails is made up for by the next.
                clocks.iter().for_each(|clock| drop(clock.set(offset(began.elapsed()))));
            }
        }));
        Ok(())
    }

    /// Sets all clocks to the truth.
    ///
    /// # Errors
    ///
    /// A clock's file can't be written.
    pub async fn true_clocks(&mut self) -> Result<(), Error> {
        if let Some(mover) = self.mover.take() {
            mover.abort();
            // Gone before the clocks are set, or it would have the last word.
            let _ = mover.await;
        }
        self.nodes.iter().filter_map(|node| node.clock.as_ref()).try_for_each(|clock| clock.set(0))
    }

    /// Fills a node's disk; gives the bytes that took.
    ///
    /// # Errors
    ///
    /// It has no disk of its own, or that is off.
    pub async fn fill_disk(&mut self, node: usize) -> Result<u64, Error> {
        let disk = self.nodes[node].disk.clone();
        let disk = disk.ok_or_else(|| Error::Unable("a full disk needs disks of the nodes' own".into()))?;
        blocking(move || disk.fill()).await
    }

    /// Frees a node's disk again; mounts it, if it is off.
    ///
    /// # Errors
    ///
    /// It can't be mounted, or the filler can't be removed.
    pub async fn free_disk(&mut self, node: usize) -> Result<(), Error> {
        match self.nodes[node].disk.clone() {
            Some(disk) => blocking(move || disk.mount().and_then(|()| disk.free())).await,
            None => Ok(()),
        }
    }

    /// Waits until all nodes are ready.
    ///
    /// # Errors
    ///
    /// One is not in time, or has died.
    pub async fn wait_ready(&self, within: Duration) -> Result<(), Error> {
        let end = Instant::now() + within;
        for node in &self.nodes {
            while let Err(why) = ports::ready(node.http).await {
                let late = Instant::now() > end;
                if late || !node.is_running() {
                    let why = if late { why } else { format!("it has ended; see {}", node.log().display()) };
                    return Err(Error::NotReady { node: node.name.clone(), why });
                }
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Network, clocks, disks and processes all well again; returns when all nodes are ready. A node whose disk
    /// failed is started anew, since it may rightly trust it no more.
    ///
    /// # Errors
    ///
    /// Something can't be healed.
    pub async fn heal_all(&mut self) -> Result<(), Error> {
        if let Some(network) = &mut self.network {
            network.heal().await?;
        }
        self.true_clocks().await?;
        for at in 0..self.len() {
            self.leave_alone(at).await?;
            self.free_disk(at).await?;
            self.resume(at);
            if self.nodes[at].disk_fault.is_some() {
                self.kill(at).await;
            }
            self.start_node(at).await?;
        }
        self.wait_ready(READY_WITHIN).await
    }

    /// Remembers that a node has ended by itself, before it is started again or killed.
    fn note_death(&mut self, at: usize) {
        let node = &self.nodes[at];
        if !node.has_died() {
            return;
        }
        match node.disk_fault {
            Some(fault) => self.excused.push(format!("{} ended by itself ({fault})", node.name)),
            None => self.deaths.push(format!("{} ended by itself", node.name)),
        }
    }
}
