//! What has to hold: always, and in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use raftmeta::read;
use raftmeta_types::cluster::{NodeState, ShardInfo};
use raftmeta_types::{ChunkHash, Epoch, ExtentData, NodeId, ShardId};

use super::history::Moment;
use super::node::Life;
use super::world::World;
use super::{SEGMENT_BYTES, SHARDS};
use crate::clock::{self, simulated::since_start};
use crate::placement::{self, Held, Place};
use crate::replication::Host;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A replica that takes back what nobody was answered may look for a moment as if it lacked an older record of the
/// same chunk, too.
const MOMENT: Duration = Duration::from_secs(8);
/// All is well so long after the last fault.
const SETTLED_WITHIN: Duration = Duration::from_secs(240);
/// What is not well by then needs somebody who knows that a disk is gone.
const REMOVED_AFTER: Duration = Duration::from_secs(90);
const SETTLE_EVERY: Duration = Duration::from_millis(500);

/// Chunks that files name, by shard.
fn referenced(world: &World, view: &Moment) -> BTreeMap<ShardId, BTreeSet<ChunkHash>> {
    let mut named: BTreeMap<ShardId, BTreeSet<ChunkHash>> =
        (0..SHARDS).map(|shard| (ShardId(shard), BTreeSet::new())).collect();
    for ino in world.files.lock().iter() {
        let extents = read::extents(view, *ino, 0, u64::MAX, usize::MAX);
        for extent in extents.expect("memory does not fail") {
            if let ExtentData::Chunk { hash, .. } = extent.data {
                named.entry(hash.shard(u32::from(SHARDS))).or_default().insert(hash);
            }
        }
    }
    named
}

fn newest(world: &World) -> (Vec<ShardInfo>, BTreeMap<ShardId, BTreeSet<ChunkHash>>) {
    let view = world.log(|log, _, _| log.newest());
    (read::shards(&view).expect("memory does not fail"), referenced(world, &view))
}

/// What was seen before.
#[derive(Default)]
struct Seen {
    epochs: BTreeMap<ShardId, (Epoch, Epoch)>,
    /// Of the store of each life.
    gc_epochs: BTreeMap<(u64, ShardId), Epoch>,
    /// In which life each epoch was led.
    led: BTreeMap<(ShardId, Epoch), u64>,
    /// Since when a replica in sync lacks a chunk.
    missing: BTreeMap<(NodeId, ChunkHash), Duration>,
}

/// Looks again and again.
pub(super) async fn watch(world: Arc<World>) {
    let mut seen = Seen::default();
    loop {
        clock::sleep(LOOK_EVERY).await;
        let (shards, referenced) = newest(&world);
        for shard in &shards {
            seen.epochs_go_on(shard);
            for life in world.lives() {
                seen.one_leads(shard, &life);
            }
        }
        world.tally.lock().epochs = shards.iter().map(|shard| shard.epoch.0).sum();
        seen.in_sync_has_all(&world, &shards, &referenced);
    }
}

impl Seen {
    fn epochs_go_on(&mut self, shard: &ShardInfo) {
        let now = (shard.epoch, shard.gc_epoch);
        let before = self.epochs.insert(shard.id, now).unwrap_or_default();
        assert!(before.0 <= now.0 && before.1 <= now.1, "{shard:?} after {before:?}");
    }

    fn one_leads(&mut self, shard: &ShardInfo, life: &Life) {
        let gc_epoch = life.chunks.shard_epoch(shard.id);
        let before = self.gc_epochs.insert((life.number, shard.id), gc_epoch).unwrap_or_default();
        assert!(before <= gc_epoch, "gc epoch {gc_epoch} of {shard:?} after {before}");
        assert!(gc_epoch <= shard.gc_epoch, "node {} invents gc epoch {gc_epoch}", life.id);
        if let Some(epoch) = life.chunks.leads(shard.id) {
            let led = *self.led.entry((shard.id, epoch)).or_insert(life.number);
            assert_eq!(led, life.number, "epoch {epoch} of {shard:?} is led twice");
            assert!(epoch <= shard.epoch, "node {} invents epoch {epoch}", life.id);
        }
    }

    /// Whoever is in sync and runs has everything that is named.
    fn in_sync_has_all(
        &mut self,
        world: &World,
        shards: &[ShardInfo],
        referenced: &BTreeMap<ShardId, BTreeSet<ChunkHash>>,
    ) {
        let now = since_start();
        let before = std::mem::take(&mut self.missing);
        for shard in shards {
            for life in shard.in_sync.iter().filter_map(|id| world.life(*id)) {
                let lacks = |hash: &&ChunkHash| !life.chunks.contains(hash);
                for hash in referenced[&shard.id].iter().filter(lacks) {
                    let since = *before.get(&(life.id, *hash)).unwrap_or(&now);
                    let id = life.id;
                    assert!(now - since < MOMENT, "node {id} of {shard:?} lacks {hash:?}");
                    self.missing.insert((id, *hash), since);
                }
            }
        }
    }
}

/// Waits until all is well; with an administrator who knows which disks are gone, where it needs one.
pub(super) async fn settle(world: &Arc<World>) {
    let start = since_start();
    loop {
        undrain(world).await;
        let Some(why) = unsettled(world).await else {
            let took = since_start() - start;
            world.note(format_args!("settled after {took:?}"));
            return;
        };
        world.note(format_args!("not yet: {why}"));
        assert!(since_start() - start < SETTLED_WITHIN, "it does not settle: {why}");
        if since_start() - start > REMOVED_AFTER {
            remove_lost(world).await;
        }
        clock::sleep(SETTLE_EVERY).await;
    }
}

/// An administrator finds out that it does not go on by itself: two disks were lost at the wrong moment.
async fn remove_lost(world: &Arc<World>) {
    let leader = world.log(|log, _, _| log.leader()).and_then(|id| world.life(id));
    let Some(leader) = leader.filter(|life| life.leads()) else { return };
    for info in read::nodes(&leader.view()).expect("memory does not fail") {
        let lost = world.net.lock().machines[&info.id].volume.is_none();
        if lost && info.state == NodeState::Down {
            leader.remove_lost(info.id, heirs(world, info.id)).await;
        }
    }
}

/// Who begins the shards that only this node has in sync. A primary that asked to go on alone and was lost before it
/// heard the answer leaves such a one: nothing was acknowledged meanwhile, so the replica that it left out has all.
fn heirs(world: &World, lost: NodeId) -> Vec<(ShardId, NodeId)> {
    let (shards, referenced) = newest(world);
    let alone = shards.iter().filter(|shard| shard.in_sync == [lost]);
    let heir = |shard: &ShardInfo| {
        let has = |life: &Arc<Life>| {
            let named = referenced[&shard.id].iter();
            named.filter(|hash| life.chunks.contains(hash)).count()
        };
        world.lives().into_iter().max_by_key(has).map(|life| (shard.id, life.id))
    };
    alone.filter_map(heir).collect()
}

/// An administrator takes back what was to be drained: there may be too few nodes without it.
async fn undrain(world: &Arc<World>) {
    let leader = world.log(|log, _, _| log.leader()).and_then(|id| world.life(id));
    let Some(leader) = leader.filter(|life| life.leads()) else { return };
    for info in read::nodes(&leader.view()).expect("memory does not fail") {
        let lost = world.net.lock().machines[&info.id].volume.is_none();
        match info.state {
            NodeState::Draining if lost => {
                leader.set_state(info.id, info.state, NodeState::Down).await;
            }
            NodeState::Draining | NodeState::Drained if !lost => {
                leader.set_state(info.id, info.state, NodeState::Up).await;
            }
            _ => {}
        }
    }
}

/// What is not as it has to be in the end.
async fn unsettled(world: &Arc<World>) -> Option<String> {
    let leader = world.log(|log, _, _| log.leader()).and_then(|id| world.life(id));
    let Some(leader) = leader.filter(|life| life.leads()) else {
        return Some("nobody leads".into());
    };
    let view = leader.view();
    let nodes = read::nodes(&view).expect("memory does not fail");
    for info in &nodes {
        let lost = world.net.lock().machines[&info.id].volume.is_none();
        let known = match info.state {
            NodeState::Up => !lost && world.life(info.id).is_some(),
            NodeState::Down | NodeState::Drained | NodeState::Removed => lost,
            NodeState::Draining | NodeState::Joining => false,
        };
        if !known {
            return Some(format!("node {} is {}", info.id, info.state));
        }
    }
    if !leader.director().lock().is_idle() {
        return Some("the leader has something under way".into());
    }
    if !read::pending_deletes(&view).expect("memory does not fail").is_empty() {
        return Some("a deletion is under way".into());
    }
    let places: Vec<Place> = nodes
        .iter()
        .filter(|info| info.state == NodeState::Up)
        .map(|info| Place { node: info.id, weight: info.capacity_bytes })
        .collect();
    let shards = read::shards(&view).expect("memory does not fail");
    let held: Vec<Held> = shards.iter().map(held).collect();
    let replicas = read::protection(&view).expect("memory does not fail").replicas;
    let planned = placement::plan(&places, usize::from(replicas), &held, &BTreeSet::new());
    let referenced = referenced(world, &view);
    for (shard, planned) in shards.iter().zip(planned) {
        if let Some(why) = unsettled_shard(world, shard, &planned).await {
            return Some(why);
        }
        let garbage = read::garbage(&view, shard.id, 1).expect("memory does not fail");
        if !garbage.is_empty() {
            return Some(format!("shard {} has garbage", shard.id));
        }
        let primary = world.life(shard.primary)?;
        let mut hashes = primary.chunks.iter_hashes(Some(shard.id));
        hashes.sort_unstable();
        let unknown = hashes.iter().filter(|hash| !referenced[&shard.id].contains(*hash)).count();
        if unknown > 0 {
            return Some(format!("{unknown} chunks of shard {} have no name", shard.id));
        }
    }
    None
}

fn held(shard: &ShardInfo) -> Held {
    let others = shard.in_sync.iter().copied().filter(|id| *id != shard.primary);
    Held { shard: shard.id, by: std::iter::once(shard.primary).chain(others).collect() }
}

async fn unsettled_shard(world: &Arc<World>, shard: &ShardInfo, planned: &Held) -> Option<String> {
    let ShardInfo { id, epoch, primary, .. } = *shard;
    let wanted: BTreeSet<NodeId> = planned.by.iter().copied().collect();
    let present: BTreeSet<NodeId> = shard.in_sync.iter().copied().collect();
    // Who shall lead and has a wrong clock leaves it to another, where the others are a majority.
    let outvoted = world.lives().len() > 2;
    let off = |id: &NodeId| outvoted && world.clock_off_ms(*id) != 0;
    let leads = match planned.by.first() {
        Some(first) if off(first) && planned.by.len() > 1 => !off(&primary),
        first => first == Some(&primary),
    };
    if wanted != present || !leads {
        return Some(format!("shard {id} is in {present:?}, and shall be in {:?}", planned.by));
    }
    let first = world.life(primary)?;
    if first.chunks.leads(id) != Some(epoch) {
        return Some(format!("epoch {epoch} of shard {id} is not begun"));
    }
    let Ok(segments) = first.chunks.segments(id).await else {
        return Some(format!("the disk of {primary} fails"));
    };
    for life in world.lives() {
        let holds = present.contains(&life.id);
        match life.chunks.segments(id).await {
            Ok(theirs) if holds && theirs == segments => {}
            Ok(theirs) if !holds && theirs.is_empty() => {}
            Ok(theirs) => {
                let (id, count) = (life.id, theirs.len());
                return Some(format!("node {id} has {count} segments of {shard:?}: {holds}"));
            }
            Err(error) => return Some(format!("the disk of {}: {error}", life.id)),
        }
    }
    None
}

/// Every replica in sync has the bytes of everything that is named, and of every segment the same as the others.
pub(super) async fn all_is_there(world: &Arc<World>) {
    let (shards, referenced) = newest(world);
    for shard in &shards {
        let lives: Vec<Arc<Life>> =
            shard.in_sync.iter().map(|id| world.life(*id).expect("it runs")).collect();
        for hash in &referenced[&shard.id] {
            for life in &lives {
                let got = life.chunks.get(hash).await;
                let wanted = world.ever.lock().get(hash).cloned();
                assert_eq!(got.as_ref().ok(), wanted.as_ref(), "node {}: {got:?}", life.id);
            }
        }
        for info in lives[0].chunks.segments(shard.id).await.expect("its disk is well") {
            let read = async |life: &Life| {
                let read = life.chunks.read_segment(shard.id, info.number, 0, SEGMENT_BYTES).await;
                read.expect("its disk is well")
            };
            let first = read(&lives[0]).await;
            for life in &lives[1..] {
                assert!(read(life).await == first, "node {} differs in {info:?}", life.id);
            }
        }
        world.note(format_args!("{shard:?}: {:?}", referenced[&shard.id]));
    }
}
