//! What a node says of itself over gossip: where clients find it, which cluster map it has, how it fares.
//!
//! Why this way: foca carries opaque *custom broadcasts* beside its membership news and asks a handler
//! whether one is new. A broadcast is sent on a few times and then forgotten, so one that was missed (by a
//! node that joined later, or behind a partition) would be missed for good. Therefore each node says its
//! state again every few seconds under the next sequence number, and soon after a new peer shows up.
//!
//! Invariants:
//! 1. Of two states of one node, the greater `(generation, nonce, sequence)` replaces the other.
//! 2. Only the node itself says its state: what comes back from others about the own node is dropped.
//! 3. An encoded state is at most `GOSSIP_STATE_BYTES` long; text in it is bounded and printable.
//!
//! Not here: acting on it. A map version that others have and this node lacks is pulled over the peer port.

use std::collections::BTreeMap;
use std::sync::mpsc;

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::types::error::Invalid;
use crate::types::ids::{MapVersion, NodeId, Nonce};
use crate::types::limits;

/// First byte of an encoded state.
const MARKER: u8 = b'S';
/// Second byte: the format.
const VERSION: u8 = 1;

/// What a node reports of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The cluster map that it acts on.
    pub map_version: MapVersion,
    /// Digest of that map: tells unequal maps of one version.
    pub map_digest: [u8; 16],
    /// Where clients reach it, `host:port`.
    pub client_address: String,
    /// Its durability setting, by name.
    pub durability: String,
    /// Bytes that its data directory takes.
    pub disk_bytes: u64,
    /// Hints that wait in it for others.
    pub hints: u64,
    /// How busy it is: requests in flight.
    pub load: u32,
}

impl Default for NodeReport {
    fn default() -> NodeReport {
        NodeReport {
            map_version: MapVersion(0),
            map_digest: [0; 16],
            client_address: String::new(),
            durability: String::new(),
            disk_bytes: 0,
            hints: 0,
            load: 0,
        }
    }
}

impl NodeReport {
    /// Refuses text that is too long or has control characters; names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        let texts = [
            ("client_address", &self.client_address, limits::GOSSIP_ADDRESS_BYTES),
            ("durability", &self.durability, limits::NAME_BYTES),
        ];
        for (field, text, max) in texts {
            Invalid::check_max(field, text.len(), max, "bytes")?;
            if text.chars().any(char::is_control) {
                return Err(Invalid::new(field, format!("{text:?} has control characters")));
            }
        }
        Ok(())
    }
}

/// A report with who says it and when, in that node's own order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    /// The node that speaks.
    pub node: NodeId,
    /// Its process.
    pub nonce: Nonce,
    /// The generation of its identity when it spoke.
    pub generation: u64,
    /// Grows with each thing that the process says.
    pub sequence: u64,
    /// Whether it says farewell: it is about to leave on purpose.
    pub leaving: bool,
    /// What it says.
    pub report: NodeReport,
}

impl NodeState {
    /// The bytes that travel: marker, version, postcard.
    pub fn encode(&self) -> Result<Vec<u8>, Invalid> {
        self.report.validate()?;
        let bytes = postcard::to_extend(self, vec![MARKER, VERSION])
            .map_err(|e| Invalid::new("state", format!("can't be encoded: {e}")))?;
        Invalid::check_max("state", bytes.len(), limits::GOSSIP_STATE_BYTES, "bytes")?;
        Ok(bytes)
    }

    /// Reads what [`NodeState::encode`] made; refuses everything else.
    pub fn decode(bytes: &[u8]) -> Result<NodeState, Invalid> {
        Invalid::check_max("state", bytes.len(), limits::GOSSIP_STATE_BYTES, "bytes")?;
        let Some((&[MARKER, VERSION], body)) = bytes.split_first_chunk() else {
            return Err(Invalid::new("state", "is not a node's state of format 1"));
        };
        let (state, rest) = postcard::take_from_bytes::<NodeState>(body)
            .map_err(|e| Invalid::new("state", format!("can't be decoded: {e}")))?;
        if !rest.is_empty() {
            return Err(Invalid::new("state", format!("has {} bytes too many", rest.len())));
        }
        state.report.validate()?;
        Ok(state)
    }

    fn order(&self) -> Order {
        Order(self.generation, self.nonce, self.sequence)
    }
}

/// Which of two states of one node is the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Order(u64, Nonce, u64);

/// The name of a state in foca's queue of things to send on.
#[derive(Debug)]
pub struct StateKey {
    node: NodeId,
    order: Order,
}

impl foca::Invalidates for StateKey {
    fn invalidates(&self, other: &StateKey) -> bool {
        self.node == other.node && self.order >= other.order
    }
}

/// foca's handler: remembers how far each node has spoken, passes on what is new.
pub struct Digests {
    own: NodeId,
    newest: BTreeMap<NodeId, Order>,
    news: mpsc::Sender<NodeState>,
}

impl Digests {
    /// A handler of node `own` that knows the `states` of others, and where it puts the news of others. (foca owns its handler and has no way
    /// back to it; the machine drains the channel after each call, so it stays short.)
    pub fn new<'a>(
        own: NodeId,
        states: impl Iterator<Item = &'a NodeState>,
    ) -> (Digests, mpsc::Receiver<NodeState>) {
        let (news, receiver) = mpsc::channel();
        (Digests { own, newest: states.map(|s| (s.node, s.order())).collect(), news }, receiver)
    }
}

impl foca::BroadcastHandler<Identity> for Digests {
    type Key = StateKey;
    type Error = Invalid;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Identity>) -> Result<Option<StateKey>, Invalid> {
        let state = NodeState::decode(data)?;
        let (node, order) = (state.node, state.order());
        let own = node == self.own;
        if own && sender.is_some() {
            return Ok(None);
        }
        match self.newest.get(&node) {
            Some(newest) if *newest >= order => return Ok(None),
            None if self.newest.len() >= limits::GOSSIP_MEMBERS_MAX => return Ok(None),
            _ => {}
        }
        self.newest.insert(node, order);
        if !own {
            // The receiver lives as long as the machine that owns this handler.
            let _ = self.news.send(state);
        }
        Ok(Some(StateKey { node, order }))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use foca::{BroadcastHandler, Invalidates};

    use super::*;

    fn state(node: u64, generation: u64, sequence: u64) -> NodeState {
        NodeState {
            node: NodeId(node),
            nonce: Nonce(7),
            generation,
            sequence,
            leaving: false,
            report: NodeReport {
                map_version: MapVersion(3),
                client_address: "db1.example:7400".into(),
                durability: "always".into(),
                ..NodeReport::default()
            },
        }
    }

    #[test]
    fn a_state_travels_unchanged_and_the_largest_fits() {
        let mut largest = state(u64::MAX, u64::MAX, u64::MAX);
        largest.nonce = Nonce(u64::MAX);
        largest.report = NodeReport {
            map_version: MapVersion(u64::MAX),
            map_digest: [255; 16],
            client_address: "a".repeat(limits::GOSSIP_ADDRESS_BYTES),
            durability: "d".repeat(limits::NAME_BYTES),
            disk_bytes: u64::MAX,
            hints: u64::MAX,
            load: u32::MAX,
        };
        for state in [state(1, 2, 3), largest] {
            let bytes = state.encode().expect("fits");
            assert!(bytes.len() <= limits::GOSSIP_STATE_BYTES);
            assert_eq!(NodeState::decode(&bytes), Ok(state));
        }
    }

    #[test]
    fn hostile_bytes_are_refused() {
        let good = state(1, 2, 3).encode().expect("fits");
        for length in 0..good.len() {
            assert!(NodeState::decode(&good[..length]).is_err(), "cut to {length}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(NodeState::decode(&longer).is_err());
        let mut other = good.clone();
        other[1] = 2;
        assert!(NodeState::decode(&other).is_err());
        assert!(NodeState::decode(&vec![MARKER; limits::GOSSIP_STATE_BYTES + 1]).is_err());

        // Text that breaks the rules is refused on the way out and on the way in.
        let mut bad = state(1, 2, 3);
        bad.report.client_address = "a\nb".into();
        let e = bad.encode().expect_err("control character").to_string();
        assert!(e.contains("client_address"), "{e}");
        let raw = postcard::to_extend(&bad, vec![MARKER, VERSION]).expect("encodes");
        assert!(NodeState::decode(&raw).is_err());
        bad.report.client_address = "a".repeat(limits::GOSSIP_ADDRESS_BYTES + 1);
        let e = bad.encode().expect_err("too long").to_string();
        assert!(e.contains("260") && e.contains("261"), "{e}");
    }

    #[test]
    fn the_newer_state_replaces_the_older() {
        let sender = Identity::new(NodeId(2), SocketAddr::from(([10, 0, 0, 2], 1)), Nonce(1), 1);
        let (mut digests, news) = Digests::new(NodeId(9), std::iter::empty());
        let mut receive =
            |s: &NodeState| digests.receive_item(&s.encode().expect("fits"), Some(&sender)).expect("valid");
        let first = receive(&state(1, 5, 10)).expect("new");
        assert!(receive(&state(1, 5, 10)).is_none(), "the same again");
        assert!(receive(&state(1, 5, 9)).is_none(), "older");
        assert!(receive(&state(1, 4, 11)).is_none(), "of an earlier life");
        let second = receive(&state(1, 6, 1)).expect("a later life begins at one");
        assert!(second.invalidates(&first) && !first.invalidates(&second));
        let other = receive(&state(3, 1, 1)).expect("another node");
        assert!(!other.invalidates(&first));
        assert!(receive(&state(9, 99, 99)).is_none(), "only the node itself speaks for itself");
        let told: Vec<(u64, u64)> = news.try_iter().map(|s| (s.node.0, s.generation)).collect();
        assert_eq!(told, [(1, 5), (1, 6), (3, 1)]);
    }
}
