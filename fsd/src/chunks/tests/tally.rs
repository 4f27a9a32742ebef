//! The sums that a store keeps are those that it finds by going over its slots.

use super::index::Index;
use super::*;

/// Counted anew, from what each slot says.
fn counted(index: &Index, segment_bytes: u32) -> (Usage, Vec<Share>) {
    let segment = u64::from(segment_bytes);
    let count = |state| index.slots().iter().filter(|slot| slot.state == state).count() as u64;
    let (free, open) = (count(SlotState::Free), count(SlotState::Open));
    let closed = index.slots().len() as u64 - free - open;
    let reserve = index.reserve() as u64;
    let usage = Usage {
        total: index.slots().len() as u64 * segment,
        used: (open + closed) * segment,
        live: index.slots().iter().map(|slot| u64::from(slot.live_bytes)).sum(),
        reserve: reserve * segment,
        free: free.saturating_sub(reserve) * segment,
        chunks: index.table.iter().count() as u64,
        segments_free: free as u32,
        segments_open: open as u32,
        segments_closed: closed as u32,
    };
    let mut shares = vec![Share::default(); index.shards.len()];
    for line in index.table.iter() {
        shares[usize::from(index.shard_of(&line.0).0)].chunks += 1;
    }
    for slot in index.slots() {
        if matches!(slot.state, SlotState::Open | SlotState::Closed) {
            let share = &mut shares[usize::from(slot.shard.0)];
            share.bytes += u64::from(if slot.sealed.is_some() { segment_bytes } else { slot.len });
            share.live += u64::from(slot.live_bytes);
            share.segments += 1;
        }
    }
    (usage, shares)
}

pub(super) fn check(store: &ChunkStore<SimVolume>) {
    let counted = counted(&store.inner.index.lock(), store.segment_bytes());
    assert_eq!((store.usage(), store.shares()), counted);
    let live: u64 = {
        let index = store.inner.index.lock();
        index.table.iter().map(|line| format::record_bytes(line.1.stored_len) as u64).sum()
    };
    assert_eq!(counted.0.live, live, "what lives is what the index names");
}

/// Random operations, some of which fail, between crashes and stops in order.
#[tokio::test]
async fn sums_are_kept_through_operations_failures_crashes_and_recoveries() {
    let mut seen = Usage { segments_free: u32::MAX, ..open(fresh(20).await.0).await.usage() };
    for seed in 0..rounds("CLAUDEFS_CHUNK_TALLY_SEEDS", 40) {
        let mut dice = Dice(seed);
        let (mut volume, mut store) = fresh_of([4096, 512][seed as usize % 2], 20).await;
        let mut names: Vec<ChunkHash> = Vec::new();
        for round in 1..40 {
            if dice.below(4) == 0 {
                volume.fail_op(dice.below(30));
            }
            match dice.below(12) {
                0 | 1 => {
                    let shard = ShardId(dice.below(2) as u16);
                    let gone =
                        |hash: &ChunkHash| hash.shard(2) == shard && hash.0[4].is_multiple_of(2);
                    let gone: Vec<ChunkHash> = names.iter().copied().filter(gone).collect();
                    let _ = store.delete(shard, Epoch(round), &gone).await;
                }
                2 | 3 => drop(store.clean(dice.below(200_000)).await),
                4 => {
                    volume = volume.power_cut(dice.next());
                    store = open(volume.clone()).await;
                }
                5 => {
                    volume = volume.reopen();
                    store = open(volume.clone()).await;
                }
                6 => {
                    for shard in 0..2 {
                        for number in store.segment_numbers(ShardId(shard)) {
                            let _ = store.verify_segment(ShardId(shard), number).await;
                        }
                    }
                }
                _ => {
                    let count = 1 + dice.below(6);
                    let put: Vec<_> = (0..count)
                        .map(|_| {
                            let len = dice.below(12_000) as usize;
                            dice.chunk(len)
                        })
                        .collect();
                    names.extend(put.iter().map(|chunk| chunk.0));
                    let _ = store.put(put).await;
                }
            }
            volume.clear_faults();
            check(&store);
            let now = store.usage();
            seen.segments_free = seen.segments_free.min(now.segments_free);
            seen.chunks = seen.chunks.max(now.chunks);
        }
    }
    assert!(seen.segments_free <= 4 && seen.chunks > 50, "not enough happened: {seen:?}");
}
