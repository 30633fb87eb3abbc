//! How a cluster is made, and unmade.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use super::command::{blocking, run_blocking};
use super::disk::Loop;
use super::machine::Machine;
use super::{Cluster, Disk, Error, Isolation, Node, Options, READY_WITHIN, clock, ledger, ports};
use crate::network::{self, Network, rules};

impl Isolation {
    /// The best that this machine allows, and what is left out with it. Tried once: the answer stays.
    #[must_use]
    pub fn probe() -> (Isolation, Vec<String>) {
        static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
        match FOUND.get_or_init(namespaces_work) {
            Ok(()) => (Isolation::Namespaces, Vec::new()),
            Err(why) => (
                Isolation::Loopback,
                vec![format!("network and disk faults: no namespaces, the nodes share loopback: {why}")],
            ),
        }
    }
}

/// Does all that a cluster in namespaces can't do without: root in a container may be allowed some of it only, and a
/// kernel may have been built without the rest.
fn namespaces_work() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".into());
    }
    let work = || -> Result<(), Error> {
        let (hub, machine) = (Machine::make()?, Machine::make()?);
        let other = machine.pid().to_string();
        let inside = |line: &[&str], input: &str| run_blocking(&hub.inside(line), input);
        inside(&["ip", "link", "add", "br0", "type", "bridge"], "")?;
        inside(&["ip", "link", "add", "port", "type", "veth", "peer", "name", "inner", "netns", &other], "")?;
        inside(&["ip", "link", "set", "port", "master", "br0"], "")?;
        let mut faults = rules::Faults::default();
        faults.block("probe", vec![(0, 1)]);
        faults.lose("probe", 50, vec![(1, 0)]);
        inside(&["nft", "-f", "-"], &faults.script(0))?;
        network::try_to_enter(&hub)
    };
    work().map_err(|error| error.to_string())
}

impl Cluster {
    /// Makes a cluster, starts all nodes, and returns when all are ready.
    ///
    /// # Errors
    ///
    /// A node does not become ready, or what no run can do without fails.
    pub async fn start(options: Options) -> Result<Cluster, Error> {
        let mut cluster = blocking(move || Cluster::make(options)).await?;
        for at in 0..cluster.len() {
            cluster.start_node(at).await?;
        }
        cluster.wait_ready(READY_WITHIN).await?;
        Ok(cluster)
    }

    /// All but starting the nodes. Blocks.
    fn make(mut options: Options) -> Result<Cluster, Error> {
        let ended = ledger::clean();
        if ended > 0 {
            eprintln!("ended {ended} stopped nodes of an earlier run");
        }
        std::fs::create_dir_all(&options.dir).map_err(|error| Error::io("the run's directory", error))?;
        // Commands run inside a machine from its own root.
        options.dir = absolute(&options.dir)?;
        options.binary = absolute(&options.binary)?;
        let mut left_out = Vec::new();
        if options.isolation == Isolation::Namespaces && !network::in_hub() {
            return Err(Error::Unable("enter_hub was not called before the runtime was made".into()));
        }
        if options.isolation == Isolation::Loopback {
            match Isolation::probe().1 {
                why if why.is_empty() => {
                    left_out.push("network and disk faults: loopback was asked for".into())
                }
                why => left_out.extend(why),
            }
            if options.taps {
                left_out.push("delay, jitter and duplication: the nodes share loopback".into());
            }
        }
        let net = subnet();
        let mut nodes =
            (0..options.nodes).map(|at| node(&options, at, net)).collect::<Result<Vec<_>, _>>()?;
        let network = match options.isolation {
            Isolation::Loopback => None,
            Isolation::Namespaces => {
                let machines = nodes.iter_mut().map(with_machine).collect::<Result<Vec<_>, _>>()?;
                Some(Network::make(net, &machines, options.taps, options.seed, &mut left_out)?)
            }
        };
        options.taps = network.as_ref().is_some_and(Network::has_wires);
        add_disks(&mut options, &mut nodes, &mut left_out);
        add_clocks(&mut options, &mut nodes, &mut left_out);
        if options.isolation == Isolation::Loopback {
            give_ports(&mut nodes)?;
        }
        let bootstrap = bootstrap(&nodes, options.partitions);
        for node in &nodes {
            node.configure(&bootstrap, &options.config)?;
        }
        let (deaths, excused) = (Vec::new(), Vec::new());
        Ok(Cluster { options, nodes, network, mover: None, left_out, deaths, excused })
    }

    /// Ends all: processes, namespaces, mounts and disks. Logs and configurations stay.
    ///
    /// # Errors
    ///
    /// None today: what is gone already is no error.
    pub async fn stop(self) -> Result<(), Error> {
        blocking(move || {
            drop(self);
            Ok(())
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mover) = &self.mover {
            mover.abort();
        }
        for node in &mut self.nodes {
            node.kill();
            if let Some(disk) = &node.disk {
                disk.remove();
            }
        }
    }
}

fn absolute(path: &std::path::Path) -> Result<std::path::PathBuf, Error> {
    path.canonicalize().map_err(|error| Error::io(path.display().to_string(), error))
}

/// The third number of the addresses: another for each cluster of this process.
fn subnet() -> u8 {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn node(options: &Options, at: usize, net: u8) -> Result<Node, Error> {
    let k = u8::try_from(at + 1).ok().filter(|k| *k < 100);
    let k = k.ok_or_else(|| Error::Unable(format!("{} nodes are too many: 99 at most", options.nodes)))?;
    let name = format!("n{k}");
    let dir = options.dir.join(&name);
    std::fs::create_dir_all(&dir).map_err(|error| Error::io("a node's directory", error))?;
    let ip = network::address(net, k);
    let ports = [7400, 7401, 7402].map(|port| SocketAddr::new(IpAddr::V4(ip), port));
    Ok(Node::new(name, format!("{:016x}", 0xa0 + u64::from(k)), dir, ports))
}

fn with_machine(node: &mut Node) -> Result<Machine, Error> {
    let machine = Machine::make()?;
    node.machine = Some(machine.clone());
    Ok(machine)
}

/// Gives each node its disk, or none to any.
fn add_disks(options: &mut Options, nodes: &mut [Node], left_out: &mut Vec<String>) {
    let Disk::Loop(fs) = options.disk else { return };
    let make = |node: &Node| match &node.machine {
        Some(machine) => Loop::make(fs, &node.dir, machine),
        None => Err(Error::Unable("needs namespaces".into())),
    };
    match nodes.iter().map(make).collect::<Result<Vec<_>, _>>() {
        Ok(disks) => nodes.iter_mut().zip(disks).for_each(|(node, disk)| node.disk = Some(disk)),
        Err(error) => {
            left_out.push(format!("disk faults: no {} disks: {error}", fs.name()));
            options.disk = Disk::Plain;
        }
    }
}

/// Gives each node a clock that can be moved, or none to any.
fn add_clocks(options: &mut Options, nodes: &mut [Node], left_out: &mut Vec<String>) {
    if !options.clocks {
        return;
    }
    match nodes.iter().map(|node| clock::Clock::make(&node.dir)).collect::<Result<Vec<_>, _>>() {
        Ok(clocks) => nodes.iter_mut().zip(clocks).for_each(|(node, clock)| node.clock = Some(clock)),
        Err(error) => {
            left_out.push(format!("clock faults: {error}"));
            options.clocks = false;
        }
    }
}

fn give_ports(nodes: &mut [Node]) -> Result<(), Error> {
    let count = u16::try_from(nodes.len() * 3).unwrap_or(u16::MAX);
    let ports = ports::free(count)?..;
    for (node, base) in nodes.iter_mut().zip(ports.step_by(3)) {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        (node.client, node.peer, node.http) = (at(base), at(base + 1), at(base + 2));
    }
    Ok(())
}

fn bootstrap(nodes: &[Node], partitions: u32) -> String {
    let line =
        |n: &Node| format!("  {{ id = \"{}\", name = \"{}\", address = \"{}\" }},\n", n.id, n.name, n.peer);
    let lines: String = nodes.iter().map(line).collect();
    format!("partitions = {partitions}\nnodes = [\n{lines}]\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_had_is_words() {
        let (isolation, left_out) = Isolation::probe();
        assert_eq!(isolation == Isolation::Loopback, !left_out.is_empty());
    }
}
