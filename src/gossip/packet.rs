//! The datagram: an envelope around foca's bytes, and two messages of our own for finding seeds.
//!
//! ```text
//! marker | version | cluster: 8 bytes | kind | body | checksum: 4 bytes (blake3 over all before it)
//! ```
//!
//! `Hello` goes to a socket address whose owner is not known (a seed); `Welcome` answers it with the
//! owner's identity, so that foca can announce to it, and with what the answerer holds of the asker's node.
//!
//! Why this way: foca trusts the bytes that it gets, drops what it doesn't like without saying which it
//! was, and has taken half of a packet before it finds the other half broken. So a packet is opened and
//! walked to its end here first: junk, other clusters and other versions never reach foca, and each refusal
//! has a reason that is counted.
//!
//! Not here: authentication. Whoever can send to the port and knows the cluster id can take part.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use bytes::Buf;
use foca::{Codec, Header, Member, Message, PostcardCodec};
use serde::{Deserialize, Serialize};

use super::digest::NodeState;
use super::identity::Identity;
use crate::types::ids::ClusterId;
use crate::types::limits;

const MARKER: u8 = b'G';
const VERSION: u8 = 1;
const HEAD: usize = 1 + 1 + 8 + 1;
const CHECKSUM: usize = 4;

/// The most that foca may put into a packet.
pub const FOCA_BYTES: usize = limits::GOSSIP_PACKET_BYTES - HEAD - CHECKSUM;

const KIND_FOCA: u8 = 0;
const KIND_HELLO: u8 = 1;
const KIND_WELCOME: u8 = 2;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Over `GOSSIP_PACKET_BYTES`.
    TooBig,
    /// Not an envelope at all.
    Junk,
    /// An envelope of another format.
    Version,
    /// Damaged on the way.
    Checksum,
    /// Of another cluster.
    Cluster,
    /// The body can't be decoded.
    Malformed,
    /// It names an identity that can't be reached.
    BadIdentity,
    /// It carries a node's state that breaks a limit.
    BadState,
    /// It names more unknown nodes than gossip remembers.
    Crowded,
    /// From the own process.
    Echo,
    /// From another process with the own node id.
    Rival,
    /// Told again that we are held for dead, before the answer to the last time could arrive.
    Paced,
    /// foca refused it for another reason.
    Refused,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::TooBig => "too_big",
            Reason::Junk => "junk",
            Reason::Version => "version",
            Reason::Checksum => "checksum",
            Reason::Cluster => "cluster",
            Reason::Malformed => "malformed",
            Reason::BadIdentity => "bad_identity",
            Reason::BadState => "bad_state",
            Reason::Crowded => "crowded",
            Reason::Echo => "echo",
            Reason::Rival => "rival",
            Reason::Paced => "paced",
            Reason::Refused => "refused",
        })
    }
}

/// Dropped datagrams by reason.
pub type Drops = BTreeMap<Reason, u64>;

/// Asks whoever is at an address who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Who asks.
    pub from: Identity,
    /// Microseconds since its process started.
    pub age_us: u64,
    /// The address that it asked: tells a node that a seed is itself.
    pub to: SocketAddr,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Who answers.
    pub from: Identity,
    /// Whether the answerer has the asker's node id and has been running for longer: the asker must stop.
    pub is_elder: bool,
    /// Another process that the answerer knows by the asker's node id, and whether it holds it for live.
    pub holds: Option<(Identity, bool)>,
}

/// The body of an envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// For foca.
    Foca(&'a [u8]),
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Welcome`].
    Welcome(Welcome),
}

/// The bytes of an envelope with `packet` in it.
pub fn seal(cluster: ClusterId, packet: &Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(limits::GOSSIP_PACKET_BYTES);
    bytes.extend([MARKER, VERSION]);
    bytes.extend(cluster_mark(cluster));
    bytes = match packet {
        Packet::Foca(body) => {
            bytes.push(KIND_FOCA);
            bytes.extend_from_slice(body);
            bytes
        }
        Packet::Hello(hello) => {
            bytes.push(KIND_HELLO);
            postcard::to_extend(hello, bytes).expect("a Vec takes any serializable body")
        }
        Packet::Welcome(welcome) => {
            bytes.push(KIND_WELCOME);
            postcard::to_extend(welcome, bytes).expect("a Vec takes any serializable body")
        }
    };
    let checksum = checksum(&bytes);
    bytes.extend(checksum);
    bytes
}

/// Opens an envelope of `cluster`.
pub fn open(cluster: ClusterId, bytes: &[u8]) -> Result<Packet<'_>, Reason> {
    if bytes.len() > limits::GOSSIP_PACKET_BYTES {
        return Err(Reason::TooBig);
    }
    if bytes.len() < HEAD + CHECKSUM || bytes[0] != MARKER {
        return Err(Reason::Junk);
    }
    if bytes[1] != VERSION {
        return Err(Reason::Version);
    }
    let (sealed, sum) = bytes.split_at(bytes.len() - CHECKSUM);
    if sum != checksum(sealed) {
        return Err(Reason::Checksum);
    }
    if sealed[2..HEAD - 1] != cluster_mark(cluster) {
        return Err(Reason::Cluster);
    }
    let body = &sealed[HEAD..];
    match sealed[HEAD - 1] {
        KIND_FOCA => Ok(Packet::Foca(body)),
        KIND_HELLO => {
            let hello: Hello = decode(body)?;
            check_identity(&hello.from)?;
            Ok(Packet::Hello(hello))
        }
        KIND_WELCOME => {
            let welcome: Welcome = decode(body)?;
            check_identity(&welcome.from)?;
            if let Some((held, _)) = &welcome.holds {
                check_identity(held)?;
            }
            Ok(Packet::Welcome(welcome))
        }
        _ => Err(Reason::Malformed),
    }
}

/// What a packet for foca says, as far as the machine must know before foca takes it.
#[derive(Debug)]
pub struct Contents {
    /// Its sender.
    pub from: Identity,
    /// Whom it is for.
    pub to: Identity,
    /// Whether the sender holds the receiver for dead.
    pub turn_undead: bool,
    /// News of members.
    pub members: Vec<Member<Identity>>,
}

/// Walks a packet for foca to its end, so that foca takes all of it or nothing.
pub fn inspect(mut body: &[u8]) -> Result<Contents, Reason> {
    let header: Header<Identity> = PostcardCodec.decode_header(&mut body).map_err(|_| Reason::Malformed)?;
    check_identity(&header.src)?;
    match &header.message {
        Message::PingReq { target: other, .. }
        | Message::IndirectPing { origin: other, .. }
        | Message::IndirectAck { target: other, .. }
        | Message::ForwardedAck { origin: other, .. } => check_identity(other)?,
        _ => {}
    }
    let mut members = Vec::new();
    if body.len() >= 2 && header.message != Message::Broadcast {
        for _ in 0..body.get_u16() {
            let member: Member<Identity> =
                PostcardCodec.decode_member(&mut body).map_err(|_| Reason::Malformed)?;
            check_identity(member.id())?;
            members.push(member);
        }
    }
    while !body.is_empty() {
        let length = usize::from(body.try_get_u16().map_err(|_| Reason::Malformed)?);
        let (state, rest) = body.split_at_checked(length).ok_or(Reason::Malformed)?;
        NodeState::decode(state).map_err(|_| Reason::BadState)?;
        body = rest;
    }
    let turn_undead = header.message == Message::TurnUndead;
    Ok(Contents { from: header.src, to: header.dst, turn_undead, members })
}

fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Reason> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(Reason::Malformed),
    }
}

fn check_identity(identity: &Identity) -> Result<(), Reason> {
    if identity.is_sane() { Ok(()) } else { Err(Reason::BadIdentity) }
}

fn cluster_mark(cluster: ClusterId) -> [u8; 8] {
    let mut mark = [0; 8];
    mark.copy_from_slice(&cluster.0.to_be_bytes()[..8]);
    mark
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ids::{NodeId, Nonce};

    const CLUSTER: ClusterId = ClusterId(0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00);

    fn identity(node: u64) -> Identity {
        Identity::new(NodeId(node), SocketAddr::from(([10, 0, 0, 1], 7401)), Nonce(3), 1_700_000_000_000)
    }

    fn hello() -> Packet<'static> {
        let from = identity(1);
        Packet::Hello(Hello { from, age_us: 5, to: from.address })
    }

    /// `bytes` with its checksum made good again.
    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM);
        let sum = checksum(&bytes);
        bytes.extend(sum);
        bytes
    }

    #[test]
    fn envelopes_open_to_what_was_sealed() {
        let welcome = Welcome { from: identity(2), is_elder: false, holds: Some((identity(1), true)) };
        for packet in [hello(), Packet::Welcome(welcome), Packet::Foca(b"abc")] {
            assert_eq!(open(CLUSTER, &seal(CLUSTER, &packet)), Ok(packet));
        }
        let full = vec![7; FOCA_BYTES];
        let sealed = seal(CLUSTER, &Packet::Foca(&full));
        assert_eq!(sealed.len(), limits::GOSSIP_PACKET_BYTES);
        assert!(open(CLUSTER, &sealed).is_ok());
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let good = seal(CLUSTER, &hello());
        let refused = |bytes: &[u8]| open(CLUSTER, bytes).expect_err("must be refused");
        assert_eq!(refused(&vec![MARKER; limits::GOSSIP_PACKET_BYTES + 1]), Reason::TooBig);
        assert_eq!(refused(b""), Reason::Junk);
        assert_eq!(refused(b"GET / HTTP/1.1\r\n\r\n"), Reason::Version);
        assert_eq!(refused(b"some other datagram"), Reason::Junk);
        assert_eq!(refused(&good[..HEAD]), Reason::Junk);
        let mut newer = good.clone();
        newer[1] += 1;
        assert_eq!(refused(&newer), Reason::Version);
        for place in 2..good.len() {
            let mut damaged = good.clone();
            damaged[place] ^= 0x10;
            assert_eq!(refused(&damaged), Reason::Checksum, "byte {place}");
        }
        assert_eq!(refused(&seal(ClusterId(7), &hello())), Reason::Cluster);
        let mut unknown = good.clone();
        unknown[HEAD - 1] = 9;
        assert_eq!(refused(&resealed(unknown)), Reason::Malformed);
        let mut trailing = good.clone();
        trailing.insert(good.len() - CHECKSUM, 0);
        assert_eq!(refused(&resealed(trailing)), Reason::Malformed);
        let from = Identity { address: SocketAddr::from(([0, 0, 0, 0], 7401)), ..identity(1) };
        let nowhere = Packet::Hello(Hello { from, age_us: 0, to: from.address });
        assert_eq!(refused(&seal(CLUSTER, &nowhere)), Reason::BadIdentity);
    }

    #[test]
    fn a_packet_for_foca_is_walked_to_its_end() {
        let header =
            Header { src: identity(1), src_incarnation: 0, dst: identity(2), message: Message::Gossip };
        let mut body = Vec::new();
        PostcardCodec.encode_header(&header, &mut body).expect("encodes");
        let head = body.len();
        body.extend(1u16.to_be_bytes());
        PostcardCodec.encode_member(&Member::alive(identity(3)), &mut body).expect("encodes");
        let members = body.len();
        let state = NodeState {
            node: NodeId(3),
            nonce: Nonce(3),
            generation: 1,
            sequence: 1,
            leaving: false,
            report: super::super::digest::NodeReport::default(),
        };
        let state = state.encode().expect("fits");
        body.extend((state.len() as u16).to_be_bytes());
        body.extend(&state);

        let contents = inspect(&body).expect("good");
        assert_eq!((contents.from, contents.members.len()), (identity(1), 1));
        for length in 0..body.len() {
            let whole_without_tail = length == head || length == members;
            assert_eq!(inspect(&body[..length]).is_ok(), whole_without_tail, "cut to {length}");
        }
        let last = body.len() - 1;
        body[members + 2] = b'X';
        assert_eq!(inspect(&body).map(|_| ()), Err(Reason::BadState));
        body[members + 2] = b'S';
        body[last] = 0xff;
        assert_eq!(inspect(&body).map(|_| ()), Err(Reason::BadState));
    }
}
