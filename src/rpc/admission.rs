//! At the door of the client port: who is let in before a message is even read, and for how long an answer counts.
//!
//! A refusal here costs little, since nothing is decoded: it is what a node does most of when far more is asked of it
//! than it can do.
//!
//! Rules:
//! 1. Past the limit a call is refused with `RESOURCE_EXHAUSTED`, `applied = NO` and a retry delay.
//! 2. A client that has fewer calls under way than its share of the limit is let in all the same, up to twice the
//!    limit: one that floods the node does not shut the others out. A client is a connection.
//! 3. A call counts until its answer has been taken by its client, or the client is gone; so do the bytes that were
//!    found for it ([`Held`]). A client may leave a quarter of all bytes untaken: past that its gets, batches and scans
//!    are refused, and so is what they have found. One that does not read stands in its own way, not in the others'.
//! 4. What a call will find is guessed from what the same client's calls of its kind found of late, and set aside
//!    until it is known. One answer is always let in, however large.
//! 5. When half of all bytes is untaken, only clients that have less than their share of that half get more.
//! 6. All streams of sessions of a client count together: what their gets find as rule 3 says, and the bytes of their
//!    requests that have no answer yet, of which a client may have as many. The requests themselves are admitted one
//!    by one, by the node.
//! 7. A message that is on its way here counts from its first byte, by its announced length: of those a client may
//!    have as many bytes as the node holds in all, and all clients together twice that. One is always let in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Status;
use tonic::codegen::http::Response;

use super::convert;
use crate::types::error::{Cause, Failure};
use crate::types::limits::RETRY_DELAY;

/// What an answer keeps counted until its client has taken it: a handler puts it into its response's extensions.
#[derive(Clone)]
pub struct Held {
    /// Dropped when it is taken.
    pub guard: Arc<dyn Send + Sync>,
}

/// The door: calls under way by client, and the limit.
#[derive(Debug)]
pub struct Door {
    clients: Mutex<Clients>,
    limit: AtomicUsize,
    /// Bytes that one client may leave untaken.
    client_bytes: usize,
    refused: AtomicUsize,
    /// The answer to those, made once.
    refusal: Response<()>,
}

/// A call was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

#[derive(Debug, Default)]
struct Clients {
    by: BTreeMap<SocketAddr, Client>,
    all: usize,
    /// Clients that have a call under way.
    callers: usize,
    /// What all clients leave untaken.
    bytes: usize,
    /// Bytes of messages that are on their way here.
    arriving: usize,
    /// The most since it was last asked for.
    most: usize,
    /// About what a call finds, by kind, whoever made it.
    usual: Usual,
}

/// What one client has under way, or has not taken.
#[derive(Debug, Default, Clone, Copy)]
struct Client {
    calls: usize,
    /// Streams of sessions.
    streams: usize,
    bytes: usize,
    /// Bytes of requests of streams that have no answer yet.
    asked: usize,
    /// Bytes of messages that are on their way here.
    arriving: usize,
    /// About what a call of its own finds.
    usual: Usual,
}

impl Clients {
    /// Of this client, which is there for as long as a call or a stream of its is.
    fn add(&mut self, client: SocketAddr, bytes: usize) {
        self.by.entry(client).or_default().bytes += bytes;
        self.bytes += bytes;
    }

    fn take(&mut self, client: SocketAddr, bytes: usize) {
        if let Some(client) = self.by.get_mut(&client) {
            client.bytes = client.bytes.saturating_sub(bytes);
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }

    /// Rules 3 and 5: whether there is room for more of this client, which may have `most`.
    fn has_room(&self, client: &Client, bytes: usize, most: usize) -> bool {
        let (mine, half) = (client.bytes + bytes, most.saturating_mul(2));
        let share = || half / self.by.values().filter(|client| client.bytes > 0).count().max(1);
        client.bytes == 0 || (mine <= most && (self.bytes + bytes <= half || mine <= share()))
    }
}

/// Calls whose answers may be large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// A get.
    Get,
    /// A batch, which may have gets in it.
    Batch,
    /// A scan; what it finds is counted by page.
    Scan,
}

/// About what a call of each kind finds, in bytes: its greatest of late.
#[derive(Debug, Default, Clone, Copy)]
struct Usual([usize; 3]);

impl Usual {
    fn of(&self, reads: Option<Reads>) -> usize {
        reads.map_or(0, |reads| self.0[reads as usize])
    }

    fn learn(&mut self, reads: Reads, found: usize) {
        let usual = &mut self.0[reads as usize];
        *usual = found.max(*usual - usual.div_ceil(16));
    }
}

/// One call, or stream of a session, that was let in, until it is dropped. Its handler finds it in the request's
/// extensions.
#[derive(Debug)]
pub struct Entered {
    door: Arc<Door>,
    client: SocketAddr,
    is_stream: bool,
    reads: Option<Reads>,
    /// What was set aside for what it will find.
    expected: AtomicUsize,
}

impl Entered {
    /// Counts what the call has found against its client, until that is dropped; none if the client leaves too much
    /// untaken. What was set aside for it is free again either way.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Option<ClientBytes> {
        let mut clients = self.door.clients();
        let expected = self.expected.swap(0, Ordering::Relaxed);
        clients.take(self.client, expected);
        if let Some(reads) = self.reads {
            clients.usual.learn(reads, bytes);
            clients.by.entry(self.client).or_default().usual.learn(reads, bytes);
        }
        self.count(clients, bytes)
    }

    /// Sets aside what a get on a stream will find, as a call does when it enters.
    pub fn expect(self: &Arc<Self>) -> Option<ClientBytes> {
        let clients = self.door.clients();
        let expected = clients.by.get(&self.client).map_or(0, |mine| mine.usual.of(self.reads));
        self.count(clients, expected)
    }

    fn count(self: &Arc<Self>, mut clients: MutexGuard<'_, Clients>, bytes: usize) -> Option<ClientBytes> {
        let mine = clients.by.get(&self.client).copied().unwrap_or_default();
        if bytes > 0 && !clients.has_room(&mine, bytes, self.door.client_bytes) {
            drop(clients);
            self.door.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        clients.add(self.client, bytes);
        Some(ClientBytes { call: self.clone(), bytes, are: Are::Found })
    }

    /// Counts the bytes of a request that came on a stream, until it has its answer; none if the client's streams have
    /// too much of that under way. One request is always let in.
    pub fn ask(self: &Arc<Self>, bytes: usize) -> Option<ClientBytes> {
        let mut clients = self.door.clients();
        let mine = clients.by.entry(self.client).or_default();
        if mine.asked > 0 && mine.asked + bytes > self.door.client_bytes {
            return None;
        }
        mine.asked += bytes;
        Some(ClientBytes { call: self.clone(), bytes, are: Are::Asked })
    }

    /// Counts a message that has been announced, until it is here; none if there are too many (rule 7).
    pub fn arrive(self: &Arc<Self>, bytes: usize) -> Option<ClientBytes> {
        let most = self.door.client_bytes.saturating_mul(4);
        let mut clients = self.door.clients();
        let all = clients.arriving;
        let mine = clients.by.entry(self.client).or_default();
        let is_over = mine.arriving + bytes > most || all + bytes > most.saturating_mul(2);
        if mine.arriving > 0 && is_over {
            drop(clients);
            self.door.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        mine.arriving += bytes;
        clients.arriving += bytes;
        Some(ClientBytes { call: self.clone(), bytes, are: Are::Arriving })
    }

    /// The most bytes that its client may leave untaken.
    pub fn client_bytes(&self) -> usize {
        self.door.client_bytes
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut clients = self.door.clients();
        clients.take(self.client, self.expected.load(Ordering::Relaxed));
        let Some(client) = clients.by.get_mut(&self.client) else { return };
        client.calls -= usize::from(!self.is_stream);
        client.streams -= usize::from(self.is_stream);
        let (calls, is_gone) = (client.calls, client.calls + client.streams == 0);
        if !self.is_stream {
            clients.all = clients.all.saturating_sub(1);
            clients.callers -= usize::from(calls == 0);
        }
        if is_gone {
            clients.by.remove(&self.client);
        }
    }
}

/// Bytes that count against a client until this is dropped. Keeps its call counted, too.
#[derive(Debug)]
pub struct ClientBytes {
    call: Arc<Entered>,
    bytes: usize,
    are: Are,
}

/// Of what bytes are.
#[derive(Debug, Clone, Copy)]
enum Are {
    /// An answer.
    Found,
    /// A request of a stream.
    Asked,
    /// A message on its way here.
    Arriving,
}

impl Drop for ClientBytes {
    fn drop(&mut self) {
        let mut clients = self.call.door.clients();
        let Some(client) = clients.by.get_mut(&self.call.client) else { return };
        match self.are {
            Are::Found => clients.take(self.call.client, self.bytes),
            Are::Asked => client.asked = client.asked.saturating_sub(self.bytes),
            Are::Arriving => {
                client.arriving = client.arriving.saturating_sub(self.bytes);
                clients.arriving = clients.arriving.saturating_sub(self.bytes);
            }
        }
    }
}

impl Door {
    /// A door that lets in `limit` calls at a time, on a node that holds `bytes` for them.
    pub fn new(limit: usize, bytes: usize) -> Door {
        Door {
            clients: Mutex::default(),
            limit: AtomicUsize::new(limit),
            client_bytes: bytes / 4,
            refused: AtomicUsize::new(0),
            refusal: refusal(),
        }
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the limit.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Calls that were refused since it was last asked.
    pub fn take_refused(&self) -> usize {
        self.refused.swap(0, Ordering::Relaxed)
    }

    /// The most calls at a time since it was last asked.
    pub fn take_most(&self) -> usize {
        let mut clients = self.clients();
        let now = clients.all;
        std::mem::replace(&mut clients.most, now)
    }

    /// All rules, for a call of this client to this path. Those of other services don't count as calls.
    pub fn let_in(self: &Arc<Self>, client: SocketAddr, path: &str) -> Result<Arc<Entered>, Refused> {
        match path.strip_prefix("/quoral.v1.Kv/") {
            None | Some("Session") => Ok(self.enter_stream(client)),
            Some(verb) => self.enter(client, reads(verb)).ok_or(Refused),
        }
    }

    /// Rule 6.
    pub fn enter_stream(self: &Arc<Self>, client: SocketAddr) -> Arc<Entered> {
        let mut clients = self.clients();
        let usual = clients.usual;
        clients.by.entry(client).or_insert_with(|| Client { usual, ..Client::default() }).streams += 1;
        let (door, expected) = (self.clone(), AtomicUsize::new(0));
        Arc::new(Entered { door, client, is_stream: true, reads: Some(Reads::Get), expected })
    }

    /// The answer to a call that is not let in.
    pub fn refusal(&self) -> Response<()> {
        self.refusal.clone()
    }

    /// All rules; `reads`: its answer may be large.
    pub fn enter(self: &Arc<Self>, client: SocketAddr, reads: Option<Reads>) -> Option<Arc<Entered>> {
        let limit = self.limit.load(Ordering::Relaxed);
        let mut clients = self.clients();
        let usual = clients.usual;
        let new = || Client { usual, ..Client::default() };
        let mine = clients.by.get(&client).copied().unwrap_or_else(new);
        let others = clients.callers - usize::from(mine.calls > 0);
        let expected = mine.usual.of(reads);
        let is_slow = reads.is_some() && !clients.has_room(&mine, expected, self.client_bytes);
        let share = (limit / (others + 1)).max(1);
        let is_full = clients.all >= limit && (mine.calls >= share || clients.all >= limit.saturating_mul(2));
        if is_full || is_slow {
            drop(clients);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        clients.all += 1;
        clients.callers += usize::from(mine.calls == 0);
        clients.most = clients.most.max(clients.all);
        clients.by.entry(client).or_insert_with(new).calls += 1;
        clients.add(client, expected);
        let (door, expected) = (self.clone(), AtomicUsize::new(expected));
        Some(Arc::new(Entered { door, client, is_stream: false, reads, expected }))
    }
}

fn refusal() -> Response<()> {
    let status: Status = convert::status(&Failure::early(Cause::Overloaded(RETRY_DELAY)));
    let mut response = Response::new(());
    *response.headers_mut() = std::mem::take(status.into_http::<()>().headers_mut());
    response
}

/// What a call reads.
fn reads(verb: &str) -> Option<Reads> {
    match verb {
        "Get" => Some(Reads::Get),
        "Batch" => Some(Reads::Batch),
        "Scan" => Some(Reads::Scan),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Option<Reads> = Some(Reads::Get);

    fn client(number: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], number))
    }

    #[test]
    fn one_client_takes_all_there_is_and_leaves_a_share_to_others() {
        let door = Arc::new(Door::new(8, 100));
        let mut flood: Vec<_> = (0..100).map_while(|_| door.enter(client(1), GET)).collect();
        assert_eq!(flood.len(), 8);
        let others: Vec<_> = (0..100).map_while(|_| door.enter(client(2), GET)).collect();
        assert_eq!(others.len(), 4, "half of the limit");
        // The flood gets no more before it is below its own share.
        flood.truncate(5);
        assert!(door.enter(client(1), GET).is_none());
        flood.truncate(3);
        flood.extend(door.enter(client(1), GET));
        assert_eq!(flood.len(), 4);
        // Never more than twice the limit, however many come.
        let many: Vec<_> = (10..1_000).filter_map(|number| door.enter(client(number), GET)).collect();
        assert_eq!(many.len(), 8);
        assert_eq!((door.take_refused() > 900, door.take_refused(), door.take_most()), (true, 0, 16));
        drop((flood, others, many));
        assert_eq!(door.clients().all, 0);
        assert!(door.clients().by.is_empty());
        door.take_most();
        assert_eq!(door.take_most(), 0);
    }

    #[test]
    fn a_client_that_does_not_read_is_refused_and_others_are_not() {
        for reads in [Reads::Get, Reads::Batch, Reads::Scan] {
            let door = Arc::new(Door::new(1_000, 400));
            let first = door.enter(client(9), Some(reads)).expect("nothing is there");
            drop(first.hold(30).expect("there is room"));
            drop(first);
            let slow: Vec<_> = (0..100).map_while(|_| door.enter(client(1), Some(reads))).collect();
            assert_eq!(slow.len(), 3, "a quarter of the bytes");
            let held: Vec<_> = slow.iter().map(|call| call.hold(30).expect("as expected")).collect();
            assert!(door.enter(client(1), Some(reads)).is_none(), "found, and not taken");
            assert!(door.enter(client(1), None).is_some(), "a put has no answer to speak of");
            assert!(door.enter(client(2), Some(reads)).is_some(), "another client");
            drop(held);
            assert!(door.enter(client(1), Some(reads)).is_some());
            drop(slow);
            assert!(door.clients().by.is_empty());
        }
    }

    #[test]
    fn what_is_found_counts_even_if_nobody_expected_it() {
        let door = Arc::new(Door::new(1_000, 400));
        let calls: Vec<_> = (0..10).map_while(|_| door.enter(client(1), GET)).collect();
        assert_eq!(calls.len(), 10, "nothing is known yet");
        let large = calls[0].hold(500).expect("one large answer is always let in");
        assert!(calls[1].hold(1).is_none() && calls[2].hold(0).is_some());
        drop(large);
        let held: Vec<_> = calls.iter().map_while(|call| call.hold(40)).collect();
        assert_eq!(held.len(), 2);
        // Pages of one scan count like answers of many calls.
        let scan = door.enter(client(2), Some(Reads::Scan)).expect("another client");
        let pages: Vec<_> = (0..10).map_while(|_| scan.hold(40)).collect();
        assert_eq!(pages.len(), 2);
        drop((calls, scan));
        assert_eq!(door.clients().by.len(), 2, "what is not taken is still counted");
        drop((held, pages));
        assert!(door.clients().by.is_empty());
    }

    #[test]
    fn what_others_find_is_no_guide_for_a_client_that_is_known() {
        let door = Arc::new(Door::new(1_000, 400));
        let small = door.enter(client(1), GET).expect("nothing is there");
        let _held = small.hold(1);
        let large = door.enter(client(2), GET).expect("nothing is there");
        drop(large.hold(90));
        let mine: Vec<_> = (0..50).map_while(|_| door.enter(client(1), GET)).collect();
        assert_eq!(mine.len(), 50);
    }

    #[test]
    fn what_counts_is_said_by_the_path() {
        let door = Arc::new(Door::new(1, 100));
        let let_in = |path: &str| door.let_in(client(1), path);
        let _one = let_in("/quoral.v1.Kv/Put").expect("there is room");
        assert!(let_in("/quoral.v1.Kv/Batch").is_err(), "past the limit");
        assert!(let_in("/quoral.v1.Kv/Session").is_ok() && let_in("/grpc.health.v1.Health/Check").is_ok());
        assert_eq!(door.clients().all, 1);
        let found = ["Put", "Get", "Batch", "Scan"].map(reads);
        assert_eq!(found, [None, GET, Some(Reads::Batch), Some(Reads::Scan)]);
    }

    #[test]
    fn all_streams_of_a_client_count_together() {
        let door = Arc::new(Door::new(1, 400));
        let streams = [door.enter_stream(client(1)), door.enter_stream(client(1))];
        let found: Vec<_> = (0..10).map_while(|n| streams[n % 2].hold(30)).collect();
        assert_eq!(found.len(), 3, "a quarter of the bytes");
        assert!(door.enter(client(1), None).is_some(), "a stream is no call under way");
        // Requests that have no answer yet count by themselves, and one is always let in.
        let large = streams[0].ask(1_000).expect("the first");
        assert!(streams[1].ask(1).is_none());
        drop(large);
        let asked: Vec<_> = (0..10).map_while(|n| streams[n % 2].ask(40)).collect();
        assert_eq!(asked.len(), 2);
        drop(streams);
        assert_eq!(door.clients().by.len(), 1, "what is not taken is still counted");
        drop((found, asked));
        assert!(door.clients().by.is_empty());
        assert_eq!(door.clients().bytes, 0);
    }

    #[test]
    fn messages_on_their_way_are_bounded() {
        let door = Arc::new(Door::new(100, 400));
        let call = |number: u16| door.enter_stream(client(number));
        let one = call(1);
        let large = one.arrive(10_000).expect("one is always let in");
        assert!(one.arrive(1).is_none());
        drop(large);
        let of_one: Vec<_> = (0..100).map_while(|_| one.arrive(100)).collect();
        assert_eq!(of_one.len(), 4, "as much as the node holds");
        let others = (2..6).map(|n| (0..100).map_while(|_| call(n).arrive(100)).collect::<Vec<_>>());
        let others: Vec<_> = others.collect();
        assert_eq!(others.iter().map(Vec::len).collect::<Vec<_>>(), [4, 1, 1, 1]);
        drop((one, of_one, others));
        let clients = door.clients();
        assert_eq!((clients.by.len(), clients.arriving), (0, 0));
    }

    #[test]
    fn many_clients_that_do_not_read_leave_room() {
        let door = Arc::new(Door::new(1_000, 4_000));
        let mut held = Vec::new();
        for number in 0..8 {
            let stream = door.enter_stream(client(number));
            let found: Vec<_> = std::iter::from_fn(|| stream.hold(10)).collect();
            held.push(found.len());
            std::mem::forget(found);
        }
        // Two have a quarter each; those that follow their share of the half.
        assert_eq!(held, [100, 100, 66, 50, 40, 33, 28, 25]);
    }
}
