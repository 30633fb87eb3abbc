//! Two replicas in memory that talk, with what each message would cost: for tests, and for `examples/antientropy.rs`.
//!
//! Whoever includes it has the names in scope.

use super::*;

/// The tree that they have.
pub const PLACE: Place = Place { partition: PartitionId(3), keyspace: KeyspaceId(1) };

/// A stored value is its version here; merging takes the greater.
pub fn summary_of(_: &[u8], value: &[u8]) -> Option<Summary> {
    let version: [u8; 8] = value.try_into().ok()?;
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&version);
    Some(Summary { digest: Digest(digest), stamp: Stamp(u64::from_be_bytes(version)) })
}

/// A partition key of its own.
pub fn key(number: u32) -> Vec<u8> {
    let key = Key::new(format!("k{number}"), &b""[..]).expect("valid");
    schema::record_key(PLACE.partition, PLACE.keyspace, &key)
}

/// A sort key of one partition key.
pub fn sort_key(number: u32) -> Vec<u8> {
    let key = Key::new(&b"one"[..], format!("{number}")).expect("valid");
    schema::record_key(PLACE.partition, PLACE.keyspace, &key)
}

/// One of the two.
#[derive(Default)]
pub struct Replica {
    pub storage: MemoryStorage,
    pub forest: Forest,
}

impl Replica {
    pub fn get(&self, key: &[u8]) -> Option<[u8; 8]> {
        self.storage.get(key).expect("read").and_then(|value| value.try_into().ok())
    }

    /// Whether it was new.
    pub fn merge(&mut self, key: &[u8], version: [u8; 8]) -> bool {
        let before = self.get(key);
        if before.is_some_and(|before| before >= version) {
            return false;
        }
        let mut batch = Batch { writes: self.forest.before_write(key).into_iter().collect() };
        batch.put(key, version);
        self.storage.write(&batch).expect("written");
        let digest = |version: Option<[u8; 8]>| {
            version.and_then(|version| summary_of(key, &version)).map(|told| told.digest)
        };
        let change = Change { before: digest(before), after: digest(Some(version)), dead_since: None };
        self.forest.written(Mono(0), key, change);
        true
    }

    pub fn records(&self) -> Stored<'_> {
        Stored { storage: &self.storage, summary_of: &summary_of }
    }

    pub fn children(&self, node: Node, salt: Salt) -> Vec<u64> {
        let kept = kept_children(&self.forest);
        children_of(&kept, &self.records(), (PLACE, node), salt).expect("read").expect("whole")
    }

    pub fn all(&self) -> BTreeMap<Vec<u8>, [u8; 8]> {
        let mut all = BTreeMap::new();
        let (from, to) = schema::slot_range(PLACE.partition, PLACE.keyspace, (0, u16::MAX));
        let to = to.as_deref().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.storage
            .scan(std::ops::Bound::Included(&from), to, false, &mut |key, value| {
                all.insert(key.to_vec(), value.try_into().expect("8 bytes"));
                true
            })
            .expect("read");
        all
    }
}

/// Of all conversations here that are given none.
pub fn salt() -> Salt {
    Salt::drawn(0x0bad_5eed << 32)
}

/// What a conversation cost.
#[derive(Debug)]
pub struct Cost {
    pub salt: Salt,
    /// Bytes of sums and lists.
    pub bytes: usize,
    pub questions: usize,
    pub records: u64,
    /// Records that the receiver had already.
    pub vain: u64,
    pub longest: usize,
    pub whole: bool,
}

/// Bytes of short sums: a mask and those that are not 0.
pub fn packed(sums: &[u64], salt: Salt) -> usize {
    3 + sums.len().div_ceil(8) + salt.width() * sums.iter().filter(|sum| **sum != 0).count()
}

/// Runs one conversation; `meanwhile` before each answer.
pub fn talk(a: &mut Replica, b: &mut Replica, meanwhile: impl FnMut(&mut Replica, &mut Replica)) -> Cost {
    talk_by(salt(), a, b, meanwhile)
}

/// The same with a salt.
pub fn talk_by(
    salt: Salt,
    a: &mut Replica,
    b: &mut Replica,
    meanwhile: impl FnMut(&mut Replica, &mut Replica),
) -> Cost {
    let cost = talk_of((salt, &Settling::NONE), a, b, meanwhile);
    assert!(cost.whole);
    cost
}

/// The same, with some left out.
pub fn talk_of(
    (salt, settling): (Salt, &Settling),
    a: &mut Replica,
    b: &mut Replica,
    mut meanwhile: impl FnMut(&mut Replica, &mut Replica),
) -> Cost {
    let mut cost = Cost { salt, bytes: 0, questions: 0, records: 0, vain: 0, longest: 0, whole: true };
    let (mine, theirs) = (a.forest.root(PLACE).expect("whole"), b.forest.root(PLACE).expect("whole"));
    cost.bytes += 2 * 26;
    if mine.0 == theirs.0 {
        return cost;
    }
    let (mut machine, mut effects) = (Exchange::new(), Vec::new());
    let mut event = Event::Start(mine.1.max(theirs.1));
    loop {
        machine.step(Mono(0), event, &mut effects);
        machine.check_invariants();
        assert_eq!(effects.len(), 1);
        meanwhile(a, b);
        cost.questions += 1;
        event = match effects.remove(0) {
            Effect::Compare(nodes) => {
                let mut children = Vec::new();
                for node in nodes {
                    let (mine, theirs) = (a.children(node, salt), b.children(node, salt));
                    cost.bytes += packed(&mine, salt) + mine.len().div_ceil(8);
                    children.extend(differing(node, &mine, &theirs));
                }
                Event::Differ(children)
            }
            Effect::List(nodes) => list_nodes(a, b, &nodes, settling, &mut cost),
            Effect::Finish { whole, received, sent } => {
                cost.whole = whole;
                cost.records = received + sent;
                return cost;
            }
        };
    }
}

pub fn list_nodes(
    a: &mut Replica,
    b: &mut Replica,
    nodes: &[Node],
    settling: &Settling,
    cost: &mut Cost,
) -> Event {
    let (mut done, mut received, mut sent, mut listed) = (0, 0, 0, 0);
    let salt = cost.salt;
    for node in nodes {
        let Some(mine) = list(&a.records(), PLACE, *node, LIST_MAX).expect("read") else {
            if done == 0 {
                return Event::TooMany;
            }
            break;
        };
        listed += mine.len();
        if done > 0 && listed > LIST_ALL {
            break;
        }
        cost.longest = cost.longest.max(mine.len());
        cost.bytes += 3 + salt.width() * mine.len();
        let shorts: Vec<u64> = mine.iter().map(|record| record.item.short(salt)).collect();
        let at = (PLACE, *node);
        let compared = compare_items(&b.records(), at, &shorts, (1_000, salt)).expect("read");
        let lacking = compared.lacking.last().map_or(0, |last| last / 8 + 1);
        cost.bytes += lacking + (salt.width() + 8) * compared.extra.len();
        let resolved = resolve(Conflicts::Lww, (&mine, salt), &compared, settling);
        cost.bytes += salt.width() * resolved.fetch.len();
        let all = list(&b.records(), PLACE, *node, usize::MAX).expect("read").expect("no limit");
        for record in all.iter().filter(|record| resolved.fetch.contains(&record.key_print(salt))) {
            let version = b.get(&record.storage_key).expect("listed");
            received += 1;
            cost.vain += u64::from(!a.merge(&record.storage_key, version));
        }
        for key in resolved.send.iter().chain(&resolved.send_merged) {
            sent += 1;
            cost.vain += u64::from(!b.merge(key, a.get(key).expect("listed")));
        }
        if !compared.whole {
            break;
        }
        done += 1;
    }
    Event::Listed { nodes: done, received, sent }
}

/// Writes the same to both.
pub fn fill(replicas: [&mut Replica; 2], keys: impl Iterator<Item = Vec<u8>>) {
    let [a, b] = replicas;
    for key in keys {
        a.merge(&key, 1_u64.to_be_bytes());
        b.merge(&key, 1_u64.to_be_bytes());
    }
}
