//! A node's cable, through this process: two TAP devices, and a task in between for each direction.
//!
//! The inner device is the node's `eth0`, the outer one a port of the bridge. Packets pass at once, or late, or
//! twice. Delay alone keeps their order, jitter does not. What waits is bounded: past it packets are lost, as in
//! any cable's queue. The tasks have a thread of their own, so that a busy runner delays nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::mpsc as queue;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tun::Tun;

use super::rules::port;
use crate::cluster::Error;

/// Packets that may wait in one direction of one wire.
const WAITING: usize = 4_096;
/// The largest frame: an Ethernet packet and its header, and a little more.
const FRAME: usize = 2_048;
/// How often a wire's thread looks whether it is to end.
const END_POLL: Duration = Duration::from_millis(50);

/// How a wire treats packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// Every packet is late by this.
    pub delay: Duration,
    /// And by a random time up to this, each on its own: they overtake each other.
    pub jitter: Duration,
    /// How many of a hundred come twice.
    pub duplicate: u8,
}

/// All wires of a network. They end when this is dropped.
#[derive(Debug)]
pub struct Wires {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    shapes: Mutex<Vec<Shape>>,
    shaped: AtomicU64,
    end: AtomicBool,
}

impl Shared {
    fn shape(&self, node: usize) -> Shape {
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied().unwrap_or_default()
    }
}

/// The inner device's name, until it is moved to its machine.
#[must_use]
pub fn inner(net: u8, node: usize) -> String {
    format!("c{net}i{}", node + 1)
}

impl Wires {
    /// Makes the devices, in the calling thread's network namespace, and the thread. Blocks.
    ///
    /// # Errors
    ///
    /// No TAP devices here.
    pub fn make(net: u8, nodes: usize, seed: u64) -> Result<Wires, Error> {
        let shapes = Mutex::new(vec![Shape::default(); nodes]);
        let shared = Arc::new(Shared { shapes, shaped: AtomicU64::new(0), end: AtomicBool::new(false) });
        let wires = Wires { shared: shared.clone() };
        let (tell, told) = mpsc::channel();
        let io = |error| Error::io("TAP devices", error);
        std::thread::Builder::new()
            .name("wires".into())
            .spawn(move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(serve(net, nodes, seed, shared, &tell)),
                Err(error) => drop(tell.send(Err(error))),
            })
            .map_err(io)?;
        match told.recv() {
            Ok(Ok(())) => Ok(wires),
            Ok(Err(error)) => Err(io(error)),
            Err(_) => Err(Error::Unable("the thread of the wires has ended".into())),
        }
    }

    /// How a node's wire treats packets from now on.
    pub fn shape(&self, node: usize, change: impl FnOnce(&mut Shape)) {
        let mut shapes = self.shared.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shape) = shapes.get_mut(node) {
            change(shape);
        }
    }

    /// How many packets were delayed or duplicated.
    #[must_use]
    pub fn shaped(&self) -> u64 {
        self.shared.shaped.load(Ordering::Relaxed)
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
    }
}

/// The wires' thread.
async fn serve(
    net: u8,
    nodes: usize,
    seed: u64,
    shared: Arc<Shared>,
    tell: &mpsc::Sender<std::io::Result<()>>,
) {
    let made = (0..nodes).map(|at| Ok((tap(&port(net, at))?, tap(&inner(net, at))?)));
    match made.collect::<std::io::Result<Vec<_>>>() {
        Ok(pairs) => {
            for (at, (outer, inner)) in pairs.into_iter().enumerate() {
                let seed = seed.wrapping_add(2 * at as u64);
                tokio::spawn(carry(at, outer.clone(), inner.clone(), shared.clone(), seed));
                tokio::spawn(carry(at, inner, outer, shared.clone(), seed.wrapping_add(1)));
            }
            let _ = tell.send(Ok(()));
        }
        Err(error) => return drop(tell.send(Err(error))),
    }
    while !shared.end.load(Ordering::Relaxed) {
        sleep(END_POLL).await;
    }
}

fn tap(name: &str) -> std::io::Result<Arc<Tun>> {
    let made = Tun::builder().name(name).tap().close_on_exec().build();
    let made = made.map_err(|error| std::io::Error::other(error.to_string()))?;
    made.into_iter().next().map(Arc::new).ok_or_else(|| std::io::Error::other("no device"))
}

/// One direction of one wire.
async fn carry(node: usize, from: Arc<Tun>, to: Arc<Tun>, shared: Arc<Shared>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (late, mut due) = queue::channel::<(Instant, Vec<u8>)>(WAITING);
    let out = to.clone();
    // Those that keep their order.
    tokio::spawn(async move {
        while let Some((at, frame)) = due.recv().await {
            sleep_until(at).await;
            let _ = out.try_send(&frame);
        }
    });
    let strays = Arc::new(tokio::sync::Semaphore::new(WAITING));
    let mut buffer = [0; FRAME];
    loop {
        let Ok(length) = from.recv(&mut buffer).await else {
            // The device is down, or not yet up.
            sleep(END_POLL).await;
            continue;
        };
        let frame = &buffer[..length];
        let shape = shared.shape(node);
        let twice = shape.duplicate > 0 && rng.random_range(0..100) < shape.duplicate;
        if shape.delay.is_zero() && shape.jitter.is_zero() && !twice {
            // A full device loses packets: that is what networks do.
            let _ = to.try_send(frame);
            continue;
        }
        shared.shaped.fetch_add(1, Ordering::Relaxed);
        for _ in 0..=u8::from(twice) {
            let now = Instant::now();
            if shape.jitter.is_zero() {
                let _ = late.try_send((now + shape.delay, frame.to_vec()));
                continue;
            }
            let Ok(permit) = strays.clone().try_acquire_owned() else { continue };
            let jitter = shape.jitter.mul_f64(rng.random_range(0.0..1.0));
            let (at, frame, to) = (now + shape.delay + jitter, frame.to_vec(), to.clone());
            tokio::spawn(async move {
                sleep_until(at).await;
                let _ = to.try_send(&frame);
                drop(permit);
            });
        }
    }
}
