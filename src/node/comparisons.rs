//! What this node answers of its Merkle trees: the other side of an exchange (`antientropy`).
//!
//! Layout versions are not compared: trees say nothing but which records there are, records are merged like any, and
//! a place that is not this node's is refused one by one. So replicas that know different maps can talk (`whose`).
//!
//! Each answer is bounded in bytes and records. It is worked out away from the runtime's threads, since a large leaf
//! takes a while to read.

use std::sync::Arc;

use super::drive::Driver;
use super::env::CommitMode;
use crate::antientropy::exchange::{self, NODES, children_of, differing, kept_children};
use crate::antientropy::forest::Place;
use crate::antientropy::records::{Records, Remembered, Stored};
use crate::antientropy::tree::{Node, Salt};
use crate::replica::fetch;
use crate::ring::layout::ClusterMap;
use crate::ring::preflist::homes;
use crate::rpc::proto::{self, answer, operation, refusal::Reason, root_verdict::Verdict};
use crate::rpc::tree_wire as wire;
use crate::storage::{StorageError, schema};
use crate::types::ids::{KeyspaceId, NodeId, PartitionId};
use crate::types::limits::SCAN_PAGE_BYTES;

/// Why there is no answer.
pub type Refused = (Reason, String);

/// Runs `work` where it may take a while: on a thread of its own, or here if the commit task runs here too.
pub async fn apart<T: Send + 'static>(
    mode: CommitMode,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match mode {
        CommitMode::Thread => tokio::task::spawn_blocking(work).await.ok(),
        CommitMode::Inline => Some(work()),
    }
}

/// Calls `with` with the records of this node's trees; `old_will_do` as in [`Remembered`].
pub fn with_records<T>(driver: &Driver, old_will_do: bool, with: impl FnOnce(&dyn Records) -> T) -> T {
    let committer = &driver.committer;
    let summary_of = |key: &[u8], value: &[u8]| committer.summary_of(key, value);
    let sum = |place, node| committer.with_forest(|forest| forest.sum(place, node));
    with(&Remembered {
        stored: Stored { storage: committer.storage(), summary_of: &summary_of },
        leaves: &driver.leaves,
        sum: &sum,
        now: driver.clock.mono(),
        old_will_do,
    })
}

/// Answers a peer's question about trees.
pub fn answer(
    driver: &Driver,
    map: &Arc<ClusterMap>,
    (from, keyspace): (NodeId, u32),
    question: &operation::Kind,
) -> Result<answer::Kind, Refused> {
    let place = |partition: u32| place_of(map, driver.me, KeyspaceId(keyspace), partition);
    // One who must have all at once is not put off.
    let enter = |place: Place, salt: Salt| match salt == Salt::WIDE
        || driver.engaged.enter(driver.clock.mono(), from, place)
    {
        true => Ok((place, salt)),
        false => Err((Reason::Taken, "the tree is being exchanged with another node".into())),
    };
    match question {
        operation::Kind::CompareRoots(roots) => {
            driver.engaged.leave(from);
            Ok(answer::Kind::Roots(compare_roots(driver, map, roots)))
        }
        operation::Kind::CompareNodes(question) => {
            let at = enter(place(question.partition)?, Salt::told(question.salt))?;
            compare_nodes(driver, at, &question.nodes)
        }
        operation::Kind::CompareItems(question) => {
            let at = enter(place(question.partition)?, Salt::told(question.salt))?;
            compare_lists(driver, at, &question.nodes)
        }
        operation::Kind::FetchItems(question) => {
            let at = enter(place(question.partition)?, Salt::told(question.salt))?;
            fetch_items(driver, at, &question.nodes)
        }
        _ => Err((Reason::BadRequest, "kind: is no question about trees".into())),
    }
}

/// The place, if this node is one of its homes.
pub fn place_of(
    map: &ClusterMap,
    me: NodeId,
    keyspace: KeyspaceId,
    partition: u32,
) -> Result<Place, Refused> {
    let stale = |problem: String| (Reason::StaleLayout, problem);
    let known = map.keyspace_by_id(keyspace);
    let known = known.ok_or_else(|| stale(format!("keyspace {keyspace} is not known here")))?;
    let in_range = u16::try_from(partition).ok().filter(|_| partition < map.partitions.count());
    let Some(partition) = in_range.map(PartitionId) else {
        return Err((Reason::BadRequest, format!("partition: {partition} is out of range")));
    };
    if !homes(map, known, partition).contains(&me) {
        return Err(stale(format!("partition {partition} is not this node's")));
    }
    Ok(Place { partition, keyspace })
}

fn compare_roots(driver: &Driver, map: &ClusterMap, roots: &proto::CompareRoots) -> proto::RootsCompared {
    let (mut verdicts, mut damaged) = (Vec::new(), Vec::new());
    let damaged_trees = driver.committer.damaged_trees();
    driver.committer.with_forest(|forest| {
        for (at, root) in (0_u32..).zip(&roots.roots) {
            let place = place_of(map, driver.me, KeyspaceId(root.keyspace_id), root.partition);
            damaged.extend(place.as_ref().is_ok_and(|place| damaged_trees.contains(place)).then_some(at));
            let (verdict, items) =
                match (place.map(|place| forest.root(place)), wire::root_of_wire(&root.sum)) {
                    (Err(_), _) | (_, None) => (Verdict::NotMine, 0),
                    (Ok(None), _) => (Verdict::NotReady, 0),
                    (Ok(Some((sum, _))), Some(theirs)) if sum == theirs => continue,
                    (Ok(Some((_, items))), _) => (Verdict::Differs, items),
                };
            verdicts.push(proto::RootVerdict { at, verdict: verdict.into(), items });
        }
    });
    proto::RootsCompared { verdicts, damaged }
}

fn storage_error(error: StorageError) -> Refused {
    (Reason::Storage, error.to_string())
}

fn nodes_of(nodes: &[proto::TreeNode]) -> Result<Vec<(Node, &[u8])>, Refused> {
    if nodes.len() > NODES {
        return Err((
            Reason::BadRequest,
            format!("nodes: {} of them, over the limit of {NODES}", nodes.len()),
        ));
    }
    let node = |node: &proto::TreeNode| wire::node_of_wire(node);
    let all = nodes.iter().map(|n| node(n).map(|node| (node, &n.prints[..]))).collect::<Option<Vec<_>>>();
    all.ok_or_else(|| (Reason::BadRequest, "nodes: one that is in no tree".into()))
}

fn bad_prints() -> Refused {
    (Reason::BadRequest, "prints: are not what they should be".into())
}

fn compare_nodes(
    driver: &Driver,
    (place, salt): (Place, Salt),
    nodes: &[proto::TreeNode],
) -> Result<answer::Kind, Refused> {
    let mut differ = Vec::with_capacity(nodes.len());
    for (node, sums) in nodes_of(nodes)? {
        let theirs = wire::sums_of_wire(node, sums, salt).ok_or_else(bad_prints)?;
        let kept = |place, node| driver.committer.with_forest(|forest| kept_children(forest)(place, node));
        let mine = with_records(driver, false, |records| children_of(&kept, records, (place, node), salt));
        let mine = mine.map_err(storage_error)?;
        let Some(mine) = mine else {
            return Err((Reason::NotServing, "a part of the tree is in rebuild".into()));
        };
        let children: Vec<Node> = differing(node, &mine, &theirs);
        let all: Vec<Node> = node.children().collect();
        differ.push(wire::mask_to_wire(all.len(), |at| children.contains(&all[at])).into());
    }
    Ok(answer::Kind::Nodes(proto::NodesCompared { differ }))
}

fn compare_lists(
    driver: &Driver,
    (place, salt): (Place, Salt),
    nodes: &[proto::TreeNode],
) -> Result<answer::Kind, Refused> {
    let list = |(node, items)| Some((node, wire::prints_of_wire(items, salt)?));
    let lists = nodes_of(nodes)?.into_iter().map(list).collect::<Option<Vec<_>>>().ok_or_else(bad_prints)?;
    let now = || driver.clock.mono();
    let compared =
        with_records(driver, false, |records| exchange::compare_lists(records, (place, salt), &lists, &now));
    let compared = compared.map_err(storage_error)?;
    let lists = compared.iter().map(|compared| wire::list_to_wire(compared, salt)).collect();
    Ok(answer::Kind::Items(proto::ItemsCompared { lists }))
}

fn fetch_items(
    driver: &Driver,
    (place, salt): (Place, Salt),
    nodes: &[proto::TreeNode],
) -> Result<answer::Kind, Refused> {
    let storage = driver.committer.storage();
    let prefix = schema::range_prefix(place.partition, place.keyspace).len();
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for (node, items) in nodes_of(nodes)? {
        let mut wanted = wire::prints_of_wire(items, salt).ok_or_else(bad_prints)?;
        wanted.sort_unstable();
        let mut keys = Vec::new();
        let found = with_records(driver, true, |records| {
            records.each(place, node, &mut |record| {
                if wanted.binary_search(&record.key_print(salt)).is_ok() {
                    keys.push(record.storage_key.clone());
                }
                keys.len() < wanted.len()
            })
        });
        found.map_err(storage_error)?;
        for key in keys {
            // Damaged or gone meanwhile: not sent.
            let Ok(Some(copy)) = fetch::fetch(storage, &key) else { continue };
            bytes += key.len() + copy.bytes.len();
            if !entries.is_empty() && bytes > SCAN_PAGE_BYTES {
                return Ok(answer::Kind::Records(proto::Page { entries, more: true }));
            }
            let suffix = key[prefix..].to_vec().into();
            entries.push(proto::PageEntry { suffix, record: copy.bytes });
        }
    }
    Ok(answer::Kind::Records(proto::Page { entries, more: false }))
}
