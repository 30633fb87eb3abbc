//! A few real nodes on loopback, that can be stopped and started: `quoral serve`, one process each.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Nodes, in a directory of their own that goes with them.
pub struct Nodes {
    binary: PathBuf,
    dir: PathBuf,
    children: Vec<Option<Child>>,
}

fn port(base: u16, at: usize) -> u16 {
    base + 10 * u16::try_from(at).unwrap_or(0)
}

/// Where clients reach the node at `at`.
pub fn address(base: u16, at: usize) -> String {
    format!("127.0.0.1:{}", port(base, at))
}

fn id(at: usize) -> String {
    format!("{:016x}", 0xca57 + at)
}

impl Nodes {
    /// Starts `count` new nodes; node k has the three ports from `base` + 10 k.
    pub fn start(binary: &Path, base: u16, count: usize) -> std::io::Result<Nodes> {
        let dir = std::env::temp_dir().join(format!("quoral-cart-{}-{base}", std::process::id()));
        let peer = |at| format!("127.0.0.1:{}", port(base, at) + 1);
        let line = |at| {
            format!("  {{ id = \"{}\", name = \"n{}\", address = \"{}\" }},\n", id(at), at + 1, peer(at))
        };
        let all: String = (0..count).map(line).collect();
        for at in 0..count {
            std::fs::create_dir_all(dir.join(format!("n{}", at + 1)))?;
            let (id, name, client, http) = (id(at), at + 1, address(base, at), port(base, at) + 2);
            let config = format!(
                "[node]\nid = \"{id}\"\nname = \"n{name}\"\ndata_dir = \"data\"\n\n\
                 [listen]\nclient = \"{client}\"\npeer = \"{}\"\nhttp = \"127.0.0.1:{http}\"\n\n\
                 [bootstrap]\npartitions = 32\nnodes = [\n{all}]\n",
                peer(at)
            );
            std::fs::write(dir.join(format!("n{name}/quoral.toml")), config)?;
        }
        let mut nodes =
            Nodes { binary: binary.to_owned(), dir, children: (0..count).map(|_| None).collect() };
        nodes.run(&(0..count).collect::<Vec<_>>())?;
        Ok(nodes)
    }

    /// Starts nodes; they go on with their data.
    pub fn run(&mut self, which: &[usize]) -> std::io::Result<()> {
        for at in which {
            let dir = self.dir.join(format!("n{}", at + 1));
            let log = File::options().append(true).create(true).open(dir.join("log"))?;
            let child = Command::new(&self.binary)
                .args(["serve", "--stop-with-parent", "--config"])
                .arg(dir.join("quoral.toml"))
                .stdin(Stdio::piped())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            self.children[*at] = Some(child);
        }
        Ok(())
    }

    /// Kills nodes.
    pub fn stop(&mut self, which: &[usize]) {
        for child in which.iter().filter_map(|at| self.children[*at].take()) {
            end(child);
        }
    }
}

fn end(mut child: Child) {
    // Both fail only if it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.children.drain(..).flatten().for_each(end);
        if std::thread::panicking() {
            eprintln!("what the nodes said is in {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
