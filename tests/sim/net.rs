//! A node's network over turmoil: connections and datagrams that the simulation delays, holds and cuts.
//!
//! Hosts have names; turmoil's own table turns them into addresses. Listeners are bound to all addresses of
//! their host, because turmoil knows no others. turmoil's own loss breaks connections for good, so datagrams
//! are lost here.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quoral::rpc::transport::{BoxFuture, Connection, Datagrams, Listener, Network};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use turmoil::net::{TcpListener, TcpStream, UdpSocket};

/// How many of 100 datagrams are lost.
pub type Loss = Arc<AtomicU32>;

/// The network of whichever simulated host uses it.
#[derive(Clone)]
pub struct SimNetwork {
    loss: Loss,
    rng: Arc<Mutex<StdRng>>,
}

impl SimNetwork {
    /// One that loses datagrams.
    pub fn new(loss: Loss, seed: u64) -> SimNetwork {
        SimNetwork { loss, rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))) }
    }
}

impl Default for SimNetwork {
    fn default() -> SimNetwork {
        SimNetwork::new(Loss::default(), 0)
    }
}

struct SimListener(TcpListener);

struct SimSocket {
    socket: UdpSocket,
    network: SimNetwork,
}

fn address(name: &str) -> io::Result<SocketAddr> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not host:port"));
    let (host, port) = name.rsplit_once(':').ok_or_else(bad)?;
    Ok(SocketAddr::new(turmoil::lookup(host), port.parse().map_err(|_| bad())?))
}

impl Network for SimNetwork {
    fn listen(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(at).await?;
            Ok(Box::new(SimListener(listener)) as Box<dyn Listener>)
        })
    }

    fn connect<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address(to)?).await?;
            let peer = stream.peer_addr()?;
            Ok(Connection { stream: Box::new(stream), peer })
        })
    }

    fn bind(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Datagrams>>> {
        Box::pin(async move {
            let socket = SimSocket { socket: UdpSocket::bind(at).await?, network: self.clone() };
            Ok(Arc::new(socket) as Arc<dyn Datagrams>)
        })
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<SocketAddr>> {
        Box::pin(async move { address(name) })
    }
}

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            Ok(Connection { stream: Box::new(stream), peer })
        })
    }
}

impl Datagrams for SimSocket {
    fn send_to<'a>(&'a self, bytes: &'a [u8], to: SocketAddr) -> BoxFuture<'a, io::Result<()>> {
        let loss = self.network.loss.load(Ordering::Relaxed);
        let mut rng = self.network.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = loss > 0 && rng.random_range(0..100) < loss;
        drop(rng);
        Box::pin(async move {
            if lost {
                return Ok(());
            }
            self.socket.send_to(bytes, to).await.map(|_| ())
        })
    }

    fn receive_from<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<(usize, SocketAddr)>> {
        Box::pin(self.socket.recv_from(buffer))
    }
}
