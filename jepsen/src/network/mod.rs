//! The network of a cluster: machines on a bridge, in a hub of their own, with nothing of the real one.
//!
//! The hub is a network namespace without a name, which the runner's own threads live in ([`enter_hub`]): so it
//! reaches the nodes as any client does, and all of it goes when the runner ends. Node k has the address
//! `10.77.NET.K`, the runner `10.77.NET.254`. Faults between nodes are rules of the bridge's forward chain
//! ([`rules`]), replaced as a whole at each change; the runner's own packets do not pass there. With wires
//! ([`wire`]) each node's cable runs through this process, which can delay and duplicate.
//!
//! ARP passes in any case: a partition is silence, not "no route to host".

pub mod rules;
pub mod wire;

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cluster::Error;
use crate::cluster::command::{run, run_blocking, words};
use crate::cluster::machine::Machine;
use rules::{Faults, Pair};
use wire::{Shape, Wires};

static HUB: OnceLock<File> = OnceLock::new();

/// Moves the calling thread, and all that it starts from now on, into this process's hub. To be called first in
/// `main`, before the runtime is made; in tests by each thread that makes a runtime. Blocks.
///
/// # Errors
///
/// Not root, or no namespaces here.
pub fn enter_hub() -> Result<(), Error> {
    static MAKING: Mutex<()> = Mutex::new(());
    let making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if HUB.get().is_none() {
        let machine = Machine::make()?;
        run_blocking(&machine.inside(&["ip", "link", "set", "lo", "up"]), "")?;
        let file = File::open(machine.proc().join("ns/net")).map_err(|error| Error::io("the hub", error))?;
        let _ = HUB.set(file);
    }
    drop(making);
    let Some(hub) = HUB.get() else { return Err(Error::Unable("no hub".into())) };
    move_into_link_name_space(hub.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| Error::io("entering the hub", error.into()))
}

/// Whether the calling thread is in the hub.
#[must_use]
pub fn in_hub() -> bool {
    let Some(Ok(hub)) = HUB.get().map(File::metadata) else { return false };
    // A file opened from /proc stands for the namespace itself: same number, same namespace.
    std::fs::metadata("/proc/thread-self/ns/net").is_ok_and(|own| own.ino() == hub.ino())
}

/// The address of node k in a network; the runner has k = 254.
#[must_use]
pub fn address(net: u8, k: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, net, k)
}

/// The network of one cluster.
#[derive(Debug)]
pub struct Network {
    net: u8,
    nodes: usize,
    faults: Faults,
    wires: Option<Wires>,
}

impl Network {
    /// Connects machines. Blocks; the calling thread must be in the hub.
    ///
    /// # Errors
    ///
    /// `ip` or `nft` refuse. Wires that can't be had are left out only.
    pub fn make(
        net: u8,
        machines: &[Machine],
        taps: bool,
        seed: u64,
        left_out: &mut Vec<String>,
    ) -> Result<Network, Error> {
        let bridge = bridge(net);
        let ip = |text: String| run_blocking(&words(&["ip", "-batch", "-"]), &text);
        ip(format!(
            "link add {bridge} type bridge\naddress add {}/24 dev {bridge}\nlink set {bridge} up\n",
            address(net, 254)
        ))?;
        let wires = match taps.then(|| Wires::make(net, machines.len(), seed)) {
            Some(Ok(wires)) => Some(wires),
            Some(Err(error)) => {
                left_out.push(format!("delay, jitter and duplication: no TAP devices: {error}"));
                None
            }
            None => None,
        };
        for (at, machine) in machines.iter().enumerate() {
            let (port, inner, pid) = (rules::port(net, at), wire::inner(net, at), machine.pid());
            if wires.is_some() {
                ip(format!("link set {inner} netns {pid}\n"))?;
            } else {
                ip(format!("link add {port} type veth peer name {inner} netns {pid}\n"))?;
            }
            ip(format!("link set {port} master {bridge}\nlink set {port} up\n"))?;
            let own = address(net, u8::try_from(at + 1).unwrap_or(u8::MAX));
            let text = format!(
                "link set lo up\nlink set {inner} name eth0\naddress add {own}/24 dev eth0\nlink set eth0 up\n"
            );
            run_blocking(&machine.inside(&["ip", "-batch", "-"]), &text)?;
        }
        let network = Network { net, nodes: machines.len(), faults: Faults::default(), wires };
        run_blocking(&words(&["nft", "-f", "-"]), &network.faults.script(net))?;
        Ok(network)
    }

    /// Whether it can delay and duplicate.
    #[must_use]
    pub fn has_wires(&self) -> bool {
        self.wires.is_some()
    }

    /// Drops all packets of these pairs, for as long as `who` wants it; replaces what `who` had.
    ///
    /// # Errors
    ///
    /// `nft` refuses.
    pub async fn block(&mut self, who: &'static str, pairs: Vec<Pair>) -> Result<(), Error> {
        self.faults.block(who, pairs);
        self.apply().await
    }

    /// Drops a share of the packets of these pairs, in percent; replaces what `who` had.
    ///
    /// # Errors
    ///
    /// `nft` refuses.
    pub async fn lose(&mut self, who: &'static str, percent: u8, pairs: Vec<Pair>) -> Result<(), Error> {
        self.faults.lose(who, percent, pairs);
        self.apply().await
    }

    /// Takes back what `who` did.
    ///
    /// # Errors
    ///
    /// `nft` refuses.
    pub async fn clear(&mut self, who: &'static str) -> Result<(), Error> {
        self.faults.clear(who);
        self.apply().await
    }

    /// How a node's wire treats packets from now on, both ways.
    ///
    /// # Errors
    ///
    /// The cluster was made without wires.
    pub fn shape(&self, node: usize, change: impl FnOnce(&mut Shape)) -> Result<(), Error> {
        match &self.wires {
            Some(wires) => {
                wires.shape(node, change);
                Ok(())
            }
            None => Err(Error::Unable("the cluster was made without wires".into())),
        }
    }

    /// How many packets the wires have delayed or duplicated.
    #[must_use]
    pub fn shaped(&self) -> u64 {
        self.wires.as_ref().map_or(0, Wires::shaped)
    }

    /// Takes back everything.
    ///
    /// # Errors
    ///
    /// `nft` refuses.
    pub async fn heal(&mut self) -> Result<(), Error> {
        self.faults = Faults::default();
        if let Some(wires) = &self.wires {
            (0..self.nodes).for_each(|node| wires.shape(node, |shape| *shape = Shape::default()));
        }
        self.apply().await
    }

    async fn apply(&self) -> Result<(), Error> {
        run(words(&["nft", "-f", "-"]), self.faults.script(self.net)).await.map(|_| ())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The nodes' cables go with their machines; only these two stay in the hub.
        let _ = run_blocking(&words(&["ip", "link", "delete", &bridge(self.net)]), "");
        let _ = run_blocking(&words(&["nft", "delete", "table", "bridge", &rules::table(self.net)]), "");
    }
}

fn bridge(net: u8) -> String {
    format!("c{net}br")
}
