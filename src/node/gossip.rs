//! The driver of gossip: one task that feeds the membership machine with datagrams and time, and carries out
//! its effects.
//!
//! Why this way: everything that is decided is decided in [`crate::gossip::membership`], which is pure; here
//! are only the socket, the clock, the names of seeds and the log. Readers take a snapshot from a watch
//! channel, so a request that asks who is alive waits for nobody.
//!
//! Invariants:
//! 1. A snapshot is published after each step that changed something, in order.
//! 2. The task awaits nothing but its inputs and the socket: looking up a name never delays a probe.
//! 3. Junk can't flood the log: drops are counted, and logged once per [`LOG_PERIOD`].
//!
//! When the last [`GossipHandle`] is dropped the task ends without a farewell, as in a crash.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::env::Clock;
use crate::gossip::digest::NodeReport;
use crate::gossip::identity::Identity;
use crate::gossip::membership::{Effect, Event, Liveness, Membership, Peer};
use crate::gossip::packet::Drops;
use crate::machine::Machine;
use crate::rpc::transport::{BoxFuture, Datagrams, Network};
use crate::types::error::Invalid;
use crate::types::ids::{ClusterId, NodeId};
use crate::types::limits;
use crate::types::time::Mono;

/// How often dropped datagrams and failed sends are logged at the most.
pub const LOG_PERIOD: Duration = Duration::from_secs(10);
/// A name that is not looked up by then keeps the address it had.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that wait for the task.
const COMMANDS: usize = 64;
/// A pause after the socket failed, so that a broken one does not spin.
const SOCKET_PAUSE: Duration = Duration::from_millis(50);

/// Whether this process takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Active,
    /// It said farewell.
    Left,
    /// An older live process has its node id: this one must not serve.
    Duplicate(Identity),
    /// It can take no new identity, or its task ended.
    Defunct,
}

/// All members at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// The own identity.
    pub own: Identity,
    /// Whether this process takes part.
    pub standing: Standing,
    /// The others by node id.
    pub peers: BTreeMap<NodeId, Peer>,
    /// Since when no other is live.
    pub alone_since: Option<Mono>,
    /// Dropped datagrams by reason, as of the last change.
    pub drops: Drops,
}

impl Members {
    /// Whether `node` is reachable as far as is known: itself, or alive or suspect.
    pub fn is_live(&self, node: NodeId) -> bool {
        node == self.own.node || self.peers.get(&node).is_some_and(|p| p.liveness.is_live())
    }

    /// How `node` fares; the own node is alive.
    pub fn liveness(&self, node: NodeId) -> Option<Liveness> {
        if node == self.own.node {
            return Some(Liveness::Alive);
        }
        self.peers.get(&node).map(|p| p.liveness)
    }
}

enum Command {
    Forget(NodeId),
    Leave(oneshot::Sender<()>),
}

/// A handle to the task.
#[derive(Clone)]
pub struct GossipHandle {
    members: watch::Receiver<Arc<Members>>,
    report: watch::Sender<Option<NodeReport>>,
    commands: mpsc::Sender<Command>,
}

impl GossipHandle {
    /// The members now.
    pub fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }

    /// Members as they change.
    pub fn watch(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// Says this of the own node from now on; only the last of several is said. Refuses text over its limit.
    pub fn publish(&self, report: NodeReport) -> Result<(), Invalid> {
        report.validate()?;
        self.report.send_replace(Some(report));
        Ok(())
    }

    /// Forgets a member that was removed from the cluster. If the task is too busy to take the order it is
    /// dropped; the caller's next look at the members shows that.
    pub fn forget(&self, node: NodeId) {
        let _ = self.commands.try_send(Command::Forget(node));
    }

    /// Says farewell; returns when it is sent, or the task has ended.
    pub async fn leave(&self) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// Binds `bind` and starts to gossip as `identity`, whose address is the one that others are told. `seeds`
/// are `host:port`, looked up on each try; `seed` is the source of chance.
#[allow(clippy::too_many_arguments)]
pub async fn start(
    network: Arc<dyn Network>,
    clock: Arc<dyn Clock>,
    seed: u64,
    identity: Identity,
    cluster: ClusterId,
    bind: SocketAddr,
    seeds: Vec<String>,
) -> io::Result<GossipHandle> {
    if !identity.is_sane() {
        let problem = format!("others can't reach {}: name the address to advertise", identity.address);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let socket = network.bind(bind).await?;
    let machine = Membership::new(identity, cluster, StdRng::seed_from_u64(seed));
    let first = Arc::new(snapshot(&machine, Standing::Active));
    let (members_out, members) = watch::channel(first);
    let (report, reports) = watch::channel(None);
    let (commands, orders) = mpsc::channel(COMMANDS);
    let driver = Driver {
        machine,
        clock,
        socket,
        network,
        seeds: seeds.into_iter().map(|name| (name, None)).collect(),
        members: members_out,
        standing: Standing::Active,
        alarm: None,
        lookup: None,
        dropped: Drops::new(),
        failed_sends: 0,
        logged: Mono(0),
    };
    tokio::spawn(driver.run(reports, orders));
    Ok(GossipHandle { members, report, commands })
}

fn snapshot(machine: &Membership, standing: Standing) -> Members {
    Members {
        own: *machine.identity(),
        standing,
        peers: machine.members().clone(),
        alone_since: machine.alone_since(),
        drops: machine.drops().clone(),
    }
}

struct Driver {
    machine: Membership,
    clock: Arc<dyn Clock>,
    socket: Arc<dyn Datagrams>,
    network: Arc<dyn Network>,
    /// Names, and the last address that each had.
    seeds: Vec<(String, Option<SocketAddr>)>,
    members: watch::Sender<Arc<Members>>,
    standing: Standing,
    alarm: Option<Mono>,
    lookup: Option<BoxFuture<'static, Vec<io::Result<SocketAddr>>>>,
    dropped: Drops,
    failed_sends: u64,
    logged: Mono,
}

impl Driver {
    async fn run(
        mut self,
        mut reports: watch::Receiver<Option<NodeReport>>,
        mut orders: mpsc::Receiver<Command>,
    ) {
        let mut buffer = vec![0; limits::GOSSIP_PACKET_BYTES + 1];
        let socket = self.socket.clone();
        self.step(Event::Start { seeds: Vec::new() }).await;
        while self.standing == Standing::Active {
            let alarm = self.alarm.map(|at| self.instant(at));
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Command::Forget(node)) => self.step(Event::Forget(node)).await,
                    Some(Command::Leave(done)) => {
                        self.step(Event::Leave).await;
                        // Nobody may wait for it any more.
                        let _ = done.send(());
                    }
                    None => break,
                },
                Ok(()) = reports.changed() => {
                    let report = reports.borrow_and_update().clone();
                    if let Some(report) = report {
                        self.step(Event::Publish(report)).await;
                    }
                }
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {
                    self.alarm = None;
                    self.step(Event::Timer).await;
                }
                found = finished(&mut self.lookup) => self.take_seeds(found).await,
                received = socket.receive_from(&mut buffer) => match received {
                    Ok((length, from)) => {
                        let bytes = buffer[..length].to_vec();
                        self.step(Event::Packet { from, bytes }).await;
                    }
                    Err(error) => {
                        debug!(%error, "gossip: the socket failed");
                        tokio::time::sleep(SOCKET_PAUSE).await;
                    }
                },
            }
        }
    }

    /// The moment on tokio's clock that the machine means.
    fn instant(&self, at: Mono) -> Instant {
        Instant::now() + Duration::from_micros(at.micros_since(self.clock.mono()))
    }

    async fn step(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.machine.step(self.clock.mono(), event, &mut effects);
        let mut changed = false;
        for effect in effects {
            match effect {
                Effect::Send { to, bytes } => {
                    if let Err(error) = self.socket.send_to(&bytes, to).await {
                        debug!(%to, %error, "gossip: a datagram was not sent");
                        self.failed_sends += 1;
                    }
                }
                Effect::Arm { at } => self.alarm = Some(at),
                Effect::Resolve => self.look_up(),
                Effect::Dropped { reason, .. } => *self.dropped.entry(reason).or_insert(0) += 1,
                told => changed |= self.tell(told),
            }
        }
        if changed {
            self.members.send_replace(Arc::new(snapshot(&self.machine, self.standing)));
        }
        self.log_losses();
    }

    /// Logs what happened; whether members or the standing changed.
    fn tell(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Changed(event) => {
                let (node, address, now) = (event.node, event.identity.address, event.liveness);
                let was = event.before.map(|(_, liveness)| liveness);
                info!(%node, %address, ?now, ?was, "gossip: member changed");
            }
            Effect::State(_) => {}
            Effect::Rejoined(identity) => {
                warn!(bump = identity.bump, "gossip: the cluster held this node for dead; it is back");
            }
            Effect::SeedsSilent { since } => {
                let seconds = self.clock.mono().micros_since(since) / 1_000_000;
                let seeds: Vec<&str> = self.seeds.iter().map(|(name, _)| name.as_str()).collect();
                warn!(seconds, ?seeds, "gossip: no seed and no member answers; still trying");
                return false;
            }
            Effect::Rival(rival) => {
                warn!(address = %rival.address, "gossip: a younger process has this node's id; it was told to stop");
                return false;
            }
            Effect::Duplicate(elder) => {
                warn!(address = %elder.address, "gossip: an older process has this node's id; this one stops");
                self.standing = Standing::Duplicate(elder);
            }
            Effect::Refused(problem) => {
                warn!(%problem, "gossip: the own state can't be published");
                return false;
            }
            Effect::Left => self.standing = Standing::Left,
            Effect::Defunct => self.standing = Standing::Defunct,
            Effect::Send { .. } | Effect::Arm { .. } | Effect::Resolve | Effect::Dropped { .. } => {
                return false;
            }
        }
        true
    }

    /// Begins to look up all seeds, unless that is under way.
    fn look_up(&mut self) {
        if self.lookup.is_some() || self.seeds.is_empty() {
            return;
        }
        let mut pending: Vec<_> = self.seeds.iter().map(|(name, _)| one(&self.network, name)).collect();
        let mut found: Vec<Option<io::Result<SocketAddr>>> = pending.iter().map(|_| None).collect();
        self.lookup = Some(Box::pin(poll_fn(move |cx| {
            for (lookup, slot) in pending.iter_mut().zip(&mut found) {
                if slot.is_none()
                    && let Poll::Ready(address) = lookup.as_mut().poll(cx)
                {
                    *slot = Some(address);
                }
            }
            if found.iter().any(Option::is_none) {
                return Poll::Pending;
            }
            Poll::Ready(found.drain(..).flatten().collect())
        })));
    }

    async fn take_seeds(&mut self, found: Vec<io::Result<SocketAddr>>) {
        for ((name, address), result) in self.seeds.iter_mut().zip(found) {
            match result {
                Ok(new) => *address = Some(new),
                Err(error) => debug!(%name, %error, "gossip: a seed's name can't be looked up"),
            }
        }
        let addresses = self.seeds.iter().filter_map(|(_, address)| *address).collect();
        self.step(Event::Seeds(addresses)).await;
    }

    fn log_losses(&mut self) {
        let now = self.clock.mono();
        let lost = !self.dropped.is_empty() || self.failed_sends > 0;
        if !lost || (self.logged.0 > 0 && now.micros_since(self.logged) < LOG_PERIOD.as_micros() as u64) {
            return;
        }
        self.logged = now;
        let reasons: Vec<String> = self.dropped.iter().map(|(reason, n)| format!("{reason}: {n}")).collect();
        warn!(dropped = reasons.join(", "), failed_sends = self.failed_sends, "gossip: datagrams were lost");
        self.dropped.clear();
        self.failed_sends = 0;
    }
}

/// Looks up one name, for a bounded time.
fn one(network: &Arc<dyn Network>, name: &str) -> BoxFuture<'static, io::Result<SocketAddr>> {
    let (network, name) = (network.clone(), name.to_owned());
    Box::pin(async move {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "took too long");
        timeout(RESOLVE_TIMEOUT, network.resolve(&name)).await.map_err(late)?
    })
}

/// The outcome of `future` when it has one; pending while there is none.
async fn finished<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    poll_fn(|cx| match future.as_mut().map(|f| f.as_mut().poll(cx)) {
        Some(Poll::Ready(value)) => {
            *future = None;
            Poll::Ready(value)
        }
        _ => Poll::Pending,
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::env::SystemClock;
    use super::*;
    use crate::rpc::transport::TcpNetwork;
    use crate::types::ids::Nonce;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A loopback port that is free now. Another process may take it before we bind: then the test says so.
    fn free_port() -> SocketAddr {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
        socket.local_addr().expect("bound")
    }

    async fn boot(node: u64, nonce: u64, at: SocketAddr, seeds: &[SocketAddr]) -> GossipHandle {
        let clock = Arc::new(SystemClock::default());
        let identity = Identity::new(NodeId(node), at, Nonce(nonce), clock.wall().0);
        let seeds = seeds.iter().map(SocketAddr::to_string).collect();
        start(Arc::new(TcpNetwork), clock, nonce, identity, ClusterId(7), at, seeds).await.expect("binds")
    }

    async fn until(handle: &GossipHandle, what: &str, done: impl Fn(&Members) -> bool) -> Arc<Members> {
        let mut members = handle.watch();
        let found = timeout(PATIENCE, members.wait_for(|m| done(m))).await;
        match found {
            Ok(Ok(found)) => found.clone(),
            _ => panic!("not within {PATIENCE:?}: {what}; members are {:?}", handle.members()),
        }
    }

    fn live(members: &Members) -> usize {
        members.peers.values().filter(|p| p.liveness.is_live()).count()
    }

    #[tokio::test]
    async fn three_drivers_find_each_other_and_notice_who_goes() {
        let places: Vec<SocketAddr> = (0..3).map(|_| free_port()).collect();
        let a = boot(1, 11, places[0], &places[..1]).await;
        let b = boot(2, 12, places[1], &places[..1]).await;
        let c = boot(3, 13, places[2], &places[..1]).await;
        for handle in [&a, &b, &c] {
            until(handle, "two peers", |m| live(m) == 2).await;
        }
        assert!(a.members().alone_since.is_none());

        let report = NodeReport { client_address: "127.0.0.1:7400".into(), load: 5, ..NodeReport::default() };
        b.publish(report.clone()).expect("in bounds");
        let said = until(&c, "b's state", |m| m.peers[&NodeId(2)].last_state.is_some()).await;
        assert_eq!(said.peers[&NodeId(2)].last_state.as_ref().map(|s| &s.report), Some(&report));
        let long = NodeReport { client_address: "x".repeat(300), ..report };
        assert!(b.publish(long).is_err());

        c.leave().await;
        assert_eq!(c.members().standing, Standing::Left);
        until(&a, "c left", |m| m.liveness(NodeId(3)) == Some(Liveness::Left)).await;

        drop(b);
        until(&a, "b down", |m| m.liveness(NodeId(2)) == Some(Liveness::Down)).await;
        let b = boot(2, 22, places[1], &places[..1]).await;
        until(&a, "b back", |m| m.is_live(NodeId(2)) && m.peers[&NodeId(2)].identity.nonce == Nonce(22))
            .await;
        until(&b, "a seen", |m| m.is_live(NodeId(1))).await;
    }

    #[tokio::test]
    async fn a_second_process_of_a_live_node_is_refused() {
        let places: Vec<SocketAddr> = (0..3).map(|_| free_port()).collect();
        let a = boot(1, 11, places[0], &[]).await;
        let b = boot(2, 12, places[1], &places[..1]).await;
        until(&b, "joined", |m| live(m) == 1).await;
        until(&a, "joined", |m| live(m) == 1).await;
        let twin = boot(2, 99, places[2], &places[..1]).await;
        let found = until(&twin, "refused", |m| m.standing != Standing::Active).await;
        assert_eq!(found.standing, Standing::Duplicate(b.members().own));
        assert_eq!(b.members().standing, Standing::Active);
    }

    #[tokio::test]
    async fn an_address_that_nobody_can_reach_is_refused() {
        let nowhere: SocketAddr = "0.0.0.0:7401".parse().expect("an address");
        let identity = Identity::new(NodeId(1), nowhere, Nonce(1), 1);
        let clock = Arc::new(SystemClock::default());
        let started =
            start(Arc::new(TcpNetwork), clock, 1, identity, ClusterId(7), nowhere, Vec::new()).await;
        let problem = started.err().expect("refused").to_string();
        assert!(problem.contains("0.0.0.0:7401"), "{problem}");
    }
}
