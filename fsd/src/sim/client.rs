//! Clients: they write chunks and commit what they have receipts for, read, and cut files. As in the product the
//! leader serves them; when it is gone they ask the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fsd_rpc::message::Failure;
use raftmeta::read;
use raftmeta_types::command::{AttrChange, NewExtent, SetAttr, Write};
use raftmeta_types::{ChunkHash, Command, Epoch, ExtentData, Ino, MetaError, NodeId};

use super::SHARDS;
use super::node::Life;
use super::world::World;
use crate::clock;
use crate::replication::Host;

/// Longest pause between two commands.
const PAUSE_MAX: Duration = Duration::from_millis(300);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Puts of the same chunks before a write is given up.
const TRIES: usize = 4;
const CHUNK_BYTES_MAX: u64 = 5000;
/// Chunks of a file, and bytes between them.
const PLACES: u64 = 4;
const PLACE_BYTES: u64 = 64 << 10;

type Chunk = (ChunkHash, Bytes);

/// Until it is calm.
pub(super) async fn work(world: Arc<World>) {
    let mut calm = world.calm.subscribe();
    while !*calm.borrow_and_update() {
        clock::sleep(world.roll(|dice| dice.up_to(PAUSE_MAX))).await;
        let leader = world.log(|log, _, _| log.leader()).and_then(|id| world.life(id));
        let Some(life) = leader.filter(|life| life.may_answer().is_ok()) else { continue };
        let file = world.roll(|dice| dice.below(super::FILES)) as usize;
        let ino = world.files.lock()[file];
        let done = async {
            match world.roll(|dice| dice.below(16)) {
                0 => cut(&life, ino).await,
                1..=4 => read(&world, &life, ino).await,
                _ => write(&world, &life, ino).await,
            }
        };
        let done = tokio::select! {
            biased;
            () = life.over() => Err(Failure::NotReady("the leader is gone".into())),
            done = done => done,
        };
        if let Err(failure) = done {
            world.note(format_args!("a client hears: {failure}"));
            world.tally.lock().refused += 1;
        }
    }
}

/// Mostly new, sometimes what is or was there.
fn some_chunk(world: &World) -> Chunk {
    let mut ever = world.ever.lock();
    world.roll(|dice| {
        if !ever.is_empty() && dice.one_in(3) {
            let at = dice.below(ever.len() as u64) as usize;
            let (hash, bytes) = ever.iter().nth(at).expect("it is one of them");
            return (*hash, bytes.clone());
        }
        let len = 1 + dice.below(CHUNK_BYTES_MAX);
        let bytes: Bytes = (0..len).map(|_| dice.next() as u8).collect();
        let hash = ChunkHash(*blake3::hash(&bytes).as_bytes());
        ever.insert(hash, bytes.clone());
        (hash, bytes)
    })
}

async fn write(world: &Arc<World>, life: &Arc<Life>, ino: Ino) -> Result<(), Failure> {
    let (first, count) = world.roll(|dice| (dice.below(PLACES - 1), 1 + dice.below(2)));
    let chunks: Vec<Chunk> = (0..count).map(|_| some_chunk(world)).collect();
    for _ in 0..TRIES {
        let receipts = put(life, &chunks).await?;
        let extent = |(place, ((hash, bytes), receipt)): (u64, (&Chunk, Epoch))| NewExtent {
            offset: place * PLACE_BYTES,
            len: bytes.len() as u32,
            data: ExtentData::Chunk { hash: *hash, chunk_offset: 0 },
            receipt,
        };
        let extents = (first..).zip(chunks.iter().zip(receipts)).map(extent).collect();
        let write = Write { ino, extents, change: AttrChange::default() };
        match life.command(Command::Write(write), true).await {
            Err(Failure::Meta(MetaError::RetryPut(hashes))) => life.lift(&hashes).await,
            Ok(_) => {
                world.tally.lock().committed += count;
                return Ok(());
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(MetaError::RetryPut(chunks.iter().map(|chunk| chunk.0).collect()).into())
}

/// At the primaries of their shards, as the leader knows them.
async fn put(life: &Arc<Life>, chunks: &[Chunk]) -> Result<Vec<Epoch>, Failure> {
    let mut by_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    {
        let view = life.view();
        for (at, (hash, _)) in chunks.iter().enumerate() {
            let shard = read::shard(&view, hash.shard(u32::from(SHARDS)));
            let shard = shard.expect("memory does not fail").expect("shards are never removed");
            by_node.entry(shard.primary).or_default().push(at);
        }
    }
    let mut receipts = vec![Epoch(0); chunks.len()];
    for (node, places) in by_node {
        let some = places.iter().map(|at| chunks[*at].clone()).collect();
        let got = life.put_at(node, some).await?;
        places.into_iter().zip(got).for_each(|(at, receipt)| receipts[at] = receipt);
    }
    Ok(receipts)
}

async fn cut(life: &Arc<Life>, ino: Ino) -> Result<(), Failure> {
    let set = SetAttr { ino, change: AttrChange::default(), size: Some(0) };
    life.command(Command::SetAttr(set), true).await.map(drop)
}

/// One chunk of a file, from who has it: what is answered is what was written.
async fn read(world: &Arc<World>, life: &Arc<Life>, ino: Ino) -> Result<(), Failure> {
    let (hash, holders) = {
        let view = life.view();
        let extents = read::extents(&view, ino, 0, u64::MAX, usize::MAX);
        let hashes: Vec<ChunkHash> = extents
            .expect("memory does not fail")
            .into_iter()
            .filter_map(|extent| match extent.data {
                ExtentData::Chunk { hash, .. } => Some(hash),
                ExtentData::Inline(_) | ExtentData::Zero => None,
            })
            .collect();
        let Some(hash) = world.roll(|dice| dice.pick(&hashes)) else { return Ok(()) };
        let shard = read::shard(&view, hash.shard(u32::from(SHARDS)));
        let shard = shard.expect("memory does not fail").expect("shards are never removed");
        (hash, shard.in_sync)
    };
    for holder in holders {
        let got = if holder == life.id {
            life.chunks.get(&hash).await.map_err(|error| error.to_string())
        } else {
            let get = move |life: Arc<Life>| async move { life.chunks.get(&hash).await };
            match world.call(life, holder, "get", ANSWER_WITHIN, get).await {
                Ok(got) => got.map_err(|error| error.to_string()),
                Err(why) => Err(why),
            }
        };
        if let Ok(bytes) = got {
            assert_eq!(Some(&bytes), world.ever.lock().get(&hash), "wrong bytes of {hash:?}");
            world.tally.lock().read += 1;
            return Ok(());
        }
    }
    Err(Failure::NoChunk(hash))
}
