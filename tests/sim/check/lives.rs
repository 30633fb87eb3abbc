//! A keyspace that is made, changed and dropped again and again under one name: each of its lives is judged alone.
//!
//! What each node's map says of it is watched at every tick. So of each operation it is known whether it surely was in
//! one life: its node knew that life before it began, and no node knew of its end before it was over. Of the others
//! the reads are left out, and the writes may have happened in any life. What is left of a life is judged like any
//! keyspace: so a value of an earlier life is one that nobody wrote.

use std::collections::BTreeMap;

use quoral::ring::layout::ClusterMap;
use quoral::types::ids::{KeyspaceId, MapVersion};

use super::{Finding, check_with};
use crate::history::{Change, Op, Outcome, Seq, Space, Wish};
use crate::upkeep::Upkeep;

/// The name of such a keyspace.
pub const NAME: &str = "reborn";

/// What a node's map said of it from a tick on.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Before the tick, and behind it.
    from: Seq,
    by: Seq,
    node: usize,
    version: MapVersion,
    life: Option<KeyspaceId>,
}

/// The lives of a run.
struct Lives {
    /// Which each version of the map has, if any.
    of_version: BTreeMap<MapVersion, Option<MapVersion>>,
    /// From which place on each may have been over.
    over: BTreeMap<MapVersion, Seq>,
}

/// Watches it on all nodes.
#[derive(Debug, Default)]
pub struct LifeWatch {
    before: Seq,
    versions: BTreeMap<usize, MapVersion>,
    known: Vec<Known>,
}

impl LifeWatch {
    /// Begins a look at all nodes: `seq` is the last place that was given.
    pub fn look(&mut self, seq: Seq, maps: &[(usize, MapVersion, Option<KeyspaceId>)]) {
        for (node, version, life) in maps {
            if self.versions.insert(*node, *version) != Some(*version) {
                let (from, by) = (self.before, seq);
                self.known.push(Known { from, by, node: *node, version: *version, life: *life });
            }
        }
        self.before = seq;
    }

    /// The lives. Each is named by the first version of the map that has it: ids might be given twice.
    fn lives(&self) -> Lives {
        let versions: BTreeMap<MapVersion, Option<KeyspaceId>> =
            self.known.iter().map(|known| (known.version, known.life)).collect();
        let (mut of_version, mut before) = (BTreeMap::new(), None::<(MapVersion, KeyspaceId)>);
        for (version, id) in versions {
            before = id.map(|id| before.filter(|(_, same)| *same == id).unwrap_or((version, id)));
            of_version.insert(version, before.map(|(first, _)| first));
        }
        let over = |life: MapVersion| {
            let ends = |known: &&Known| known.version > life && of_version[&known.version] != Some(life);
            self.known.iter().filter(ends).map(|known| known.from).min().unwrap_or(Seq::MAX)
        };
        let over = of_version.values().flatten().map(|life| (*life, over(*life))).collect();
        Lives { of_version, over }
    }

    /// The life in which an operation surely was.
    fn sure(&self, lives: &Lives, op: &Op) -> Option<MapVersion> {
        let knew = self.known.iter().filter(|known| known.node == op.node && known.by < op.begin);
        let life = lives.of_version[&knew.map(|known| known.version).max()?]?;
        (op.end <= lives.over[&life]).then_some(life)
    }

    /// What is wrong within each life; `ops` are of this keyspace alone.
    pub fn check(&self, ops: &[Op], upkeep: &Upkeep) -> Vec<Finding> {
        let lives = self.lives();
        let placed: Vec<(Option<MapVersion>, &Op)> =
            ops.iter().map(|op| (self.sure(&lives, op), op)).collect();
        let mut wrong = Vec::new();
        for life in lives.over.keys() {
            let of_life = placed.iter().filter_map(|(sure, op)| match sure {
                Some(sure) => (sure == life).then(|| (*op).clone()),
                None if !op.may_have_written() => None,
                None => {
                    let outcome = Outcome::Unknown("of which life is not known".into());
                    Some(Op { outcome, end: Seq::MAX, ..(*op).clone() })
                }
            });
            wrong.extend(check_with(&of_life.collect::<Vec<_>>(), upkeep));
        }
        wrong
    }

    /// How many lives there were, and how many operations surely were in one.
    pub fn count(&self, ops: &[Op]) -> (usize, usize) {
        let lives = self.lives();
        (lives.over.len(), ops.iter().filter(|op| self.sure(&lives, op).is_some()).count())
    }
}

/// F23: what clients were told of its changes is what the newest map says.
pub fn f23_changes(map: &ClusterMap, changes: &[Change], space: &Space) -> Vec<Finding> {
    let mut wrong = Vec::new();
    let mut find = |what: &str, change: &Change| {
        wrong.push(Finding::new(
            "F23",
            format!("{what}: {change:?}, and the map has {:?}", map.keyspace(NAME)),
        ));
    };
    for change in changes {
        let Some(id) = change.done.map(KeyspaceId) else { continue };
        match change.wish {
            Wish::Drop if !map.has_dropped(id) => find("a keyspace that was dropped is there", change),
            Wish::Create | Wish::Update(..) if map.keyspace_by_id(id).is_none() && !map.has_dropped(id) => {
                find("a keyspace that was made is not there", change);
            }
            _ => {}
        }
    }
    let Some(now) = map.keyspace(NAME) else { return wrong };
    // Of this life: what was surely said of it, and what may have been.
    let of_this = |change: &&Change| change.done == Some(now.id.0);
    let said: Vec<&Change> = changes.iter().filter(of_this).collect();
    let quorums = |change: &Change| match change.wish {
        Wish::Update(r, w) => Some((r, w)),
        Wish::Create => Some((space.r, space.w)),
        Wish::Drop => None,
    };
    let replaced = |change: &Change| {
        said.iter().any(|later| matches!(later.wish, Wish::Update(..)) && change.end < later.begin)
    };
    let may_stand = |change: &&Change| {
        let unknown = change.end == Seq::MAX;
        (unknown || of_this(change)) && !replaced(change) && quorums(change) == Some((now.r, now.w))
    };
    // Whoever made it may not have been told.
    let untold = !said.iter().any(|change| matches!(change.wish, Wish::Update(..)))
        && (now.r, now.w) == (space.r, space.w);
    if !untold && !changes.iter().any(|change| may_stand(&change)) {
        let text = format!("nobody asked for what the map has of {NAME}: {now:?}");
        wrong.push(Finding::new("F23", text));
    }
    wrong
}
