//! Every limit of the product, in one place, with the reason above each and their relations asserted.

use std::time::Duration;

/// Longest partition key, in bytes. Keeps a storage key (escaped, at worst twice as long) under 4 KiB.
pub const PARTITION_KEY_BYTES: usize = 1_024;
/// Longest sort key, in bytes.
pub const SORT_KEY_BYTES: usize = 1_024;
/// Largest value, in bytes, unless the node's configuration says otherwise.
pub const VALUE_BYTES_DEFAULT: usize = 1 << 20;
/// The most that the value limit can be configured to.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// Longest context that a client may send, in bytes. A context of a record with 100 siblings by 100
/// actors is under 4 KiB.
pub const CONTEXT_BYTES: usize = 64 << 10;
/// Largest session token, in bytes, and the keys that it names at the most.
pub const SESSION_BYTES: usize = 4 << 10;
/// Keys that a session token names at the most.
pub const SESSION_KEYS: usize = 64;
/// How long a session token names a key: replicas that were away have been repaired by then, or are away.
pub const SESSION_KEEPS: Duration = Duration::from_secs(3_600);
/// Siblings of one key past which a warning is counted.
pub const SIBLINGS_WARN: usize = 25;
/// Siblings of one key past which a client's write that would add one more is refused. Replication and
/// repair ignore it, or they would never converge (riak_kv#1156).
pub const SIBLINGS_MAX: usize = 100;
/// Largest encoded record that a client's write may make: a few siblings of the largest value.
pub const RECORD_BYTES_MAX: usize = 48 << 20;
/// Largest message between nodes, and to a client. While they are apart each home replica may take [`RECORD_BYTES_MAX`] of one
/// key; what they merge to must be read, so that it can be replaced.
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// Longest name of a keyspace, node or zone, in bytes.
pub const NAME_BYTES: usize = 64;
/// Most keyspaces in a cluster map: the map travels whole.
pub const KEYSPACES_MAX: usize = 1_000;
/// Most nodes in a cluster map.
pub const NODES_MAX: usize = 1_000;

/// Fewest and most partitions; a power of two between them.
pub const PARTITIONS_MIN: u32 = 16;
/// Most partitions.
pub const PARTITIONS_MAX: u32 = 65_536;
/// Partitions of a cluster that does not say.
pub const PARTITIONS_DEFAULT: u32 = 256;
/// Most replicas of a key.
pub const N_MAX: u8 = 15;
/// Greatest weight of a node: a thousandfold span between the smallest and the largest machine.
pub const WEIGHT_MAX: u32 = 1_000;
/// Longest `host:port` of a node, in bytes: the longest DNS name, a colon and a port.
pub const ADDRESS_BYTES: usize = 260;
/// Banned node ids that a cluster map keeps: many times the nodes there can be, and still only 1 MiB.
pub const BANNED_MAX: usize = 100_000;
/// Ballots that one proposer of a cluster map tries before it gives up.
pub const DECREE_BALLOTS: u32 = 12;
/// Ballots in a row that may fail for want of answers, before it says that no majority is reachable.
pub const DECREE_FAILURES: u32 = 3;
/// How long a proposer waits for the voters' answers to one ballot.
pub const DECREE_WAIT: Duration = Duration::from_millis(1_000);
/// First wait of a proposer that met another's ballot; doubles each time, times a jitter of 0.5 to 1.5.
pub const DECREE_BACKOFF: Duration = Duration::from_millis(10);

/// Deadline of a request that names none.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Longest deadline that a request may ask for; a longer one is cut to it.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// A read asks one more replica when an asked one has been silent this long.
pub const HEDGE_AFTER: Duration = Duration::from_millis(100);
/// The least: below it a hedge costs more than it gains.
pub const HEDGE_AFTER_MIN: Duration = Duration::from_millis(2);
/// Reads that pay for one hedge, so hedges add a tenth of the load at the most.
pub const READS_PER_HEDGE: u32 = 10;
/// Hedges that may be saved up: what a replica that stops suddenly needs until it is avoided.
pub const HEDGES_AT_ONCE: u32 = 200;

/// How old a tombstone is at least when it is purged. What could still bring the key back by then is a hint or a
/// message, and both are refused sooner; a session has let go of it.
pub const TOMBSTONE_GRACE_DEFAULT: Duration = Duration::from_secs(4 * 3_600);
const _: () = assert!(
    TOMBSTONE_GRACE_DEFAULT.as_millis()
        > HINT_WINDOW_DEFAULT.as_millis() + MESSAGE_AGE_MAX.as_millis() + CLOCK_SKEW_DEFAULT.as_millis()
);
const _: () = assert!(TOMBSTONE_GRACE_DEFAULT.as_secs() > SESSION_KEEPS.as_secs());
/// The longest that it can be configured to.
pub const TOMBSTONE_GRACE_MAX: Duration = Duration::from_secs(365 * 86_400);
/// Tombstones of one place that are collected together, and that are read at a time.
pub const REAP_RECORDS: usize = 256;
/// Dead records that are gathered before they are collected, place by place: 64 of each of 256 places.
pub const REAP_GATHERED: usize = 16_384;
/// Bytes of them, keys and values.
pub const REAP_GATHERED_BYTES: usize = 16 << 20;
/// Tombstones that one node remembers at the most as confirmed by all, to be purged later: some 15 MB. The rest waits.
pub const REAP_CONFIRMED: usize = 1 << 18;
/// How much longer than the age of a message a tombstone is held by all before it is purged: a receiver may take a message
/// for younger than it is by the time that a silent link takes to be noticed, and one last look at it takes a while.
pub const REAP_MARGIN: Duration = Duration::from_secs(2);
/// The longest between two passes of the collection of tombstones; a quarter of the grace if that is less.
pub const REAP_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// How long between two passes of anti-entropy with one peer: equal trees cost one message.
pub const REPAIR_INTERVAL_DEFAULT: Duration = Duration::from_secs(60);
/// The longest that it can be configured to.
pub const REPAIR_INTERVAL_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Bytes of anti-entropy's messages a second, unless configured.
pub const REPAIR_RATE_DEFAULT: u64 = 8 << 20;
/// Records that a Merkle tree's rebuild counts at a time: the commit thread does it between writes, in about a
/// millisecond.
pub const REBUILD_RECORDS: usize = 256;
/// Records of an exchange that are sent to a peer at once: a message or two.
pub const EXCHANGE_SENDS: usize = 64;
/// Damaged records that are kept for people to look at.
pub const QUARANTINE_ENTRIES: usize = 1_000;
/// Bytes of one of them that are kept: enough to see what has happened to it.
pub const QUARANTINE_RECORD_BYTES: usize = 64 << 10;
/// Bytes of all of them: what can't be used must not fill the disk.
pub const QUARANTINE_BYTES: u64 = 16 << 20;
/// Places that wait to be healed and are known by heart; more are found again. Their keys take 200 MiB at the most.
pub const QUARANTINE_WAITING: usize = 65_536;
/// Places whose healing is under way at a time.
pub const HEALINGS_AT_ONCE: usize = 16;
/// How long after an attempt to heal what waits for a replica there is another.
pub const HEAL_AGAIN: Duration = Duration::from_secs(2);
/// How long after one that found no version on any replica, unless this node hears of one.
pub const HEAL_NO_VERSION_AGAIN: Duration = Duration::from_secs(60);
/// How long after the end of a pass of the scrub there is another: often enough that two replicas of a key are unlikely
/// to go bad in between.
pub const SCRUB_INTERVAL_DEFAULT: Duration = Duration::from_secs(7 * 86_400);
/// The longest that it can be configured to.
pub const SCRUB_INTERVAL_MAX: Duration = Duration::from_secs(365 * 86_400);
/// Bytes of keys and values that the scrub reads in a second: a terabyte in three days.
pub const SCRUB_RATE_DEFAULT: u64 = 4 << 20;
/// Bytes, about, of one step of the scrub: a few milliseconds.
pub const SCRUB_BYTES: u64 = 256 << 10;
/// Entries of one step of the scrub.
pub const SCRUB_ENTRIES: u64 = 1_000;
/// Roots of Merkle trees that are compared in one message.
pub const EXCHANGE_ROOTS: usize = 512;
/// Regions of Merkle trees that are stored at a time, for the same reason.
pub const STORE_REGIONS: usize = 128;

/// How far ahead of the own clock a stamp of another node may be, unless configured.
pub const CLOCK_SKEW_DEFAULT: Duration = Duration::from_millis(500);
/// How far ahead of the issued stamps the persisted clock bound runs. Below half the skew allowed, so that
/// a node which starts again above its bound is not refused by its peers.
pub const CLOCK_LEASE: Duration = Duration::from_millis(200);
/// How long a home replica may be silent before a fallback stands in for it in a sloppy write.
pub const STAND_IN_AFTER: Duration = Duration::from_millis(150);
/// How long a write is known by its request id, so that a retry is applied once.
pub const REQUEST_MEMORY: Duration = Duration::from_secs(600);
/// Request ids that a node remembers; past it a write that has one is refused: 100 bytes each on disk.
pub const REQUESTS_REMEMBERED: u64 = 1_000_000;
/// Request ids in a version's past, the latest: those of what it replaced, to know a late twin of it.
pub const PAST_REQUESTS: usize = 32;
/// Births taken by one durable lease: 1 write of the lease per so many new keys.
pub const BIRTH_LEASE: u64 = 4_096;

/// Operations in flight on one peer link, past which more are refused at once.
pub const LINK_OPS: usize = 8_192;
/// Bytes in flight on one peer link, likewise.
pub const LINK_BYTES: usize = 256 << 20;
/// Operations in one peer message.
pub const ENVELOPE_OPS: usize = 256;
/// Bytes after which a peer message is closed.
pub const ENVELOPE_BYTES: usize = 256 << 10;
/// How long a peer message may be under way: what comes later could bring back what was purged meanwhile.
pub const MESSAGE_AGE_MAX: Duration = Duration::from_secs(600);
/// Jobs that wait for the commit thread, past which writes are refused.
pub const COMMIT_QUEUE: usize = 8_192;
/// Jobs that share one sync at the most.
pub const COMMIT_GROUP: usize = 1_024;
/// Requests of clients in flight at one node, past which more are refused with a retry delay.
pub const REQUESTS_IN_FLIGHT: usize = 8_192;
/// Bytes of values that clients' writes in flight at one node may hold, likewise. Each is held about three times
/// over: the message, the record, and what waits for the disk.
pub const BYTES_IN_FLIGHT: usize = 128 << 20;
/// The standing queue past which a node takes fewer requests: well below what a user notices.
pub const ADMISSION_DELAY: Duration = Duration::from_millis(20);
/// How often the limit is set anew, and how often the queue is looked at.
pub const ADMISSION_WINDOW: Duration = Duration::from_millis(100);
/// How often the queue is looked at.
pub const ADMISSION_TICK: Duration = Duration::from_millis(10);
/// Requests that a node takes at a time however busy it is: so few make no long queue, and a client that has 64 under way
/// for one key (which has half of the limit) is none that has to be refused.
pub const REQUESTS_AT_LEAST: usize = 128;
/// Late requests in a window that are too few to say that a node is overloaded: a few hang on a dead peer.
pub const LATE_AT_LEAST: usize = 16;
/// Requests for one key that a node takes at a time however busy it is: two or three at once are no hot key.
pub const KEY_REQUESTS_AT_LEAST: usize = 4;
/// The retry delay that a refused client is told.
pub const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Most items of a batch.
pub const BATCH_ITEMS: usize = 1_000;
/// Bytes of a batch as encoded: one of the largest value, or a thousand of 24 KiB.
pub const BATCH_BYTES: usize = 24 << 20;
/// Items of one batch under way at a time: more than share a sync in practice, and a fraction of what a node takes.
pub const BATCH_WIDTH: usize = 128;
/// Bytes of what a batch's gets have found, past which the rest get an error: one answer must hold them all.
pub const BATCH_ANSWER_BYTES: usize = 32 << 20;
/// Requests in flight on one session, answers that wait for their reader included, past which no more are read
/// from it: half of what a node takes, so that no session alone overloads it.
pub const SESSION_REQUESTS: usize = 4_096;
/// Bytes of those requests, likewise.
pub const SESSION_REQUEST_BYTES: usize = 32 << 20;
/// Of those, requests under way at a time: enough to keep a disk busy. More would use up their time in queues.
pub const SESSION_WIDTH: usize = 512;
/// Bytes of what a session's gets have found and its client has not yet taken, past which gets wait.
pub const SESSION_ANSWER_BYTES: usize = 32 << 20;
/// Connections of clients at a time.
pub const CLIENT_CONNECTIONS: usize = 10_000;
/// How long a client may take nothing of an answer that waits for it.
pub const TAKEN_WITHIN: Duration = TIMEOUT_MAX;
/// Bytes that a session's get sets aside before it begins: 128 such gets at a time.
pub const SESSION_GET_BYTES: usize = 256 << 10;

/// How long hints are collected for a node that is away, and how old one may be: a machine that has not come
/// back by then is repaired, or replaced.
pub const HINT_WINDOW_DEFAULT: Duration = Duration::from_secs(3 * 3_600);
/// The longest that can be configured: what was purged meanwhile must not come back (a week keeps
/// tombstones for a week).
pub const HINT_WINDOW_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Bytes of hints for one node that is away: about a million small writes.
pub const HINT_TARGET_BYTES_DEFAULT: u64 = 256 << 20;
/// Bytes of all hints. They are read once at each start: a second or two.
pub const HINT_TOTAL_BYTES_DEFAULT: u64 = 1 << 30;
/// Bytes of all hints, in percent of the disk: what is kept for others must not crowd out the node's own data.
pub const HINT_DISK_PERCENT_DEFAULT: u64 = 10;
/// The most that the bytes for one and for all can be configured to.
pub const HINT_BYTES_MAX: u64 = 1 << 40;
/// Bytes of hints sent to one node in a second.
pub const HINT_RATE_DEFAULT: u64 = 16 << 20;
/// The most that it can be configured to: as fast as the network.
pub const HINT_RATE_MAX: u64 = 10 << 30;
/// Least and most bytes of hints in flight to one node: 14 small ones, and about 450.
pub const HINT_WINDOW_BYTES: (u64, u64) = (16 << 10, 512 << 10);
/// What a hint costs its target on top of its bytes: a small one takes as much time as a kilobyte.
pub const HINT_COST_BYTES: u64 = 1 << 10;
/// How much later than at its fastest a node may answer before hints give way: about one sync more.
pub const HINT_DELAY: Duration = Duration::from_millis(5);
/// How long delivery waits after a refusal, and before it looks for new hints.
pub const HINT_PAUSE: Duration = Duration::from_secs(1);
/// Hints in one page of delivery, and the bytes after which it is closed.
pub const HINT_PAGE_ITEMS: usize = 1_000;
/// Bytes after which a page of hints is closed.
pub const HINT_PAGE_BYTES: u64 = 1 << 20;

/// Records of dropped keyspaces deleted in one batch: the commit thread does nothing else for a few
/// milliseconds.
pub const SWEEP_RECORDS: usize = 128;
/// Bytes of records after which such a batch is closed: each is read before it is deleted.
pub const SWEEP_BYTES: usize = 1 << 20;
/// Ranges of keys looked into before a sweep gives way to others: a millisecond.
pub const SWEEP_RANGES: usize = 64;
/// How long a sweep rests for each millisecond that a batch took: it takes half of an idle disk, and a tenth of
/// one that serves clients.
pub const SWEEP_REST: (u32, u32) = (1, 9);
/// The longest rest, and how long it waits after an error of the storage.
pub const SWEEP_REST_MAX: Duration = Duration::from_secs(1);

/// Most entries in one page of a scan.
pub const SCAN_PAGE_ITEMS: usize = 1_000;
/// Bytes of records after which a page of a scan is closed.
pub const SCAN_PAGE_BYTES: usize = 1 << 20;

/// The most that a node's requests in flight can be configured to: so many of 1 KiB are 64 MiB.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 65_536;
/// Most clock skew that can be configured: beyond a minute a stamp says nothing of time.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);
/// Storage cache of a node that does not say, in bytes of pages as stored. With it the storage of 1 000 000
/// keys of 100-byte values takes about 220 MiB of memory, of the 300 MiB that such a node may have.
pub const CACHE_BYTES_DEFAULT: u64 = 24 << 20;
/// Smallest storage cache: room for a few pages of the largest records' indexes.
pub const CACHE_BYTES_MIN: u64 = 1 << 20;
/// Smallest log of the storage engine that is compacted, unless the node says another.
pub const COMPACT_BYTES_DEFAULT: u64 = 64 << 20;
/// Largest storage cache: more memory than any machine has; catches a slip of the finger.
pub const CACHE_BYTES_MAX: u64 = 1 << 44;
/// Most threads of the async runtime: measured, one is as fast as many, and it leaves CPU to the disk.
pub const RUNTIME_THREADS_MAX: usize = 64;

/// Open connections to the HTTP port, past which more wait: some watchers, not clients.
pub const HTTP_CONNECTIONS: usize = 64;
/// How long one of them may last, so that those who wait get their turn.
pub const HTTP_CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// Longest line that `load` takes, in bytes: the largest value in base64 twice over, with its keys; text
/// that needs more escapes than that is better given as base64.
pub const ROW_LINE_BYTES: usize = 48 << 20;
/// Bytes of values that `load` keeps in flight, whatever its concurrency.
pub const LOAD_BYTES_IN_FLIGHT: usize = 64 << 20;
/// Rows of one `load` into a `siblings` keyspace that have a request id: a quarter of what a node remembers.
pub const LOAD_ROWS_NAMED: u64 = REQUESTS_REMEMBERED / 4;
/// Most requests that `load` and `bench` keep in flight: what one node takes from all its clients.
pub const CLI_CONCURRENCY_MAX: usize = REQUESTS_IN_FLIGHT;

/// Largest gossip datagram: fits one Ethernet frame.
pub const GOSSIP_PACKET_BYTES: usize = 1_400;
/// Largest state of a node that rides on gossip: two fit into a datagram beside the membership news.
pub const GOSSIP_STATE_BYTES: usize = 512;
/// Longest client address in it: a host name of 253 bytes, a colon and a port, rounded up.
pub const GOSSIP_ADDRESS_BYTES: usize = 260;
/// Nodes that gossip remembers, dead ones too, past which unknown ones are refused: twice what a map holds.
pub const GOSSIP_MEMBERS_MAX: usize = 2 * NODES_MAX;

const _: () = assert!(VALUE_BYTES_DEFAULT <= VALUE_BYTES_MAX);
const _: () = assert!(VALUE_BYTES_MAX * 2 < RECORD_BYTES_MAX);
const _: () = assert!(RECORD_BYTES_MAX * N_MAX as usize + (1 << 20) < MESSAGE_BYTES_MAX);
const _: () = assert!(RECORD_BYTES_MAX + (1 << 20) < LINK_BYTES);
const _: () = assert!(VALUE_BYTES_MAX / 3 * 4 * 2 < ROW_LINE_BYTES && VALUE_BYTES_MAX < LOAD_BYTES_IN_FLIGHT);
const _: () = assert!(VALUE_BYTES_MAX < BYTES_IN_FLIGHT && BYTES_IN_FLIGHT < LINK_BYTES);
const _: () =
    assert!(VALUE_BYTES_MAX + CONTEXT_BYTES + (1 << 20) < BATCH_BYTES && BATCH_BYTES < 2 * VALUE_BYTES_MAX);
const _: () = assert!(BATCH_BYTES + BATCH_ANSWER_BYTES + BATCH_ITEMS * 4_096 < MESSAGE_BYTES_MAX);
const _: () = assert!(BATCH_ITEMS < REQUESTS_IN_FLIGHT && BATCH_BYTES < BYTES_IN_FLIGHT);
const _: () =
    assert!(SESSION_REQUESTS * 2 <= REQUESTS_IN_FLIGHT && SESSION_REQUEST_BYTES * 2 <= BYTES_IN_FLIGHT);
const _: () = assert!(SESSION_WIDTH <= SESSION_REQUESTS);
const _: () = assert!(SESSION_GET_BYTES <= SESSION_ANSWER_BYTES && SESSION_ANSWER_BYTES < u32::MAX as usize);
const _: () = assert!(SIBLINGS_WARN < SIBLINGS_MAX);
const _: () = assert!(PARTITIONS_MIN.is_power_of_two() && PARTITIONS_MAX.is_power_of_two());
const _: () = assert!(PARTITIONS_MAX - 1 <= u16::MAX as u32);
const _: () = assert!(CLOCK_LEASE.as_millis() * 2 < CLOCK_SKEW_DEFAULT.as_millis());
const _: () = assert!(HEDGE_AFTER.as_millis() * 10 < TIMEOUT_DEFAULT.as_millis());
const _: () = assert!(ENVELOPE_BYTES < MESSAGE_BYTES_MAX && SCAN_PAGE_BYTES < MESSAGE_BYTES_MAX);
const _: () = assert!(HINT_WINDOW_BYTES.0 < HINT_WINDOW_BYTES.1 && HINT_WINDOW_BYTES.1 < LINK_BYTES as u64);
const _: () = assert!(SWEEP_RECORDS <= COMMIT_GROUP && SWEEP_REST.0 < SWEEP_REST.1);
const _: () = assert!(HINT_TARGET_BYTES_DEFAULT <= HINT_TOTAL_BYTES_DEFAULT);
const _: () = assert!(TIMEOUT_MAX.as_millis() < MESSAGE_AGE_MAX.as_millis());
const _: () = assert!(NODES_MAX < u16::MAX as usize);
const _: () = assert!(GOSSIP_ADDRESS_BYTES + NAME_BYTES + 128 <= GOSSIP_STATE_BYTES);
const _: () = assert!(2 * GOSSIP_STATE_BYTES + 256 <= GOSSIP_PACKET_BYTES);
const _: () = assert!(REQUESTS_IN_FLIGHT <= REQUESTS_IN_FLIGHT_MAX);
const _: () = assert!(CACHE_BYTES_MIN <= CACHE_BYTES_DEFAULT && CACHE_BYTES_DEFAULT <= CACHE_BYTES_MAX);
