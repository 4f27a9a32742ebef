//! One replica: what it refuses, what a crash leaves of it, and how damage is put right.

use std::collections::BTreeSet;

use super::*;

const SHARD: ShardId = ShardId(0);

/// Keeps the ops, and says that they arrived.
#[derive(Clone, Default)]
struct Tape(Arc<Mutex<Vec<ShardOp>>>);

impl Replicator for Tape {
    fn has_audience(&self, shard: ShardId) -> bool {
        shard == SHARD
    }

    fn has_room(&self, _: ShardId) -> bool {
        true
    }

    fn replicate(&self, ops: Vec<ShardOp>) -> Replicated {
        self.0.lock().extend(ops);
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// Refuses everything, for the given reason.
struct Refusing(ReplicationError);

impl Replicator for Refusing {
    fn has_audience(&self, _: ShardId) -> bool {
        true
    }

    fn has_room(&self, _: ShardId) -> bool {
        true
    }

    fn replicate(&self, ops: Vec<ShardOp>) -> Replicated {
        let why = self.0;
        Box::pin(std::future::ready(ops.into_iter().map(|op| (op.shard, why)).collect()))
    }
}

async fn member(volume: SimVolume, replicator: Arc<dyn Replicator>) -> ChunkStore<SimVolume> {
    let params = OpenParams { cluster_uuid: CLUSTER, keys: Keys::new(1, &[9; 32]), epochs: vec![] };
    ChunkStore::open_member(volume, params, replicator).await.unwrap()
}

async fn blank() -> (SimVolume, ChunkStore<SimVolume>) {
    let (volume, _) = fresh(40).await;
    (volume.clone(), member(volume, Arc::new(Alone)).await)
}

/// A primary under epoch 1 that did a little of everything, and its tape.
async fn primary() -> (ChunkStore<SimVolume>, Tape, Vec<(ChunkHash, Bytes)>) {
    let (volume, _) = fresh(40).await;
    let tape = Tape::default();
    let store = member(volume, Arc::new(tape.clone())).await;
    for shard in [SHARD, ShardId(1)] {
        store.set_role(shard, Role::Primary { epoch: Epoch(1), gc_epoch: Epoch(0) }).unwrap();
    }
    let mut dice = Dice(77);
    let mut chunks = Vec::new();
    while chunks.len() < 40 {
        let len = 1000 + dice.below(6000) as usize;
        let chunk = dice.chunk(len);
        if chunk.0.shard(2) == SHARD {
            store.put(vec![chunk.clone()]).await.unwrap();
            chunks.push(chunk);
        }
    }
    let gone: Vec<ChunkHash> = chunks.iter().step_by(3).map(|chunk| chunk.0).collect();
    store.delete(SHARD, Epoch(1), &gone).await.unwrap();
    store.clean(u64::MAX).await.unwrap();
    // Behind this every op is on the tape.
    store.snapshot(SHARD).await.unwrap();
    chunks.retain(|chunk| !gone.contains(&chunk.0));
    (store, tape, chunks)
}

async fn follower() -> (SimVolume, ChunkStore<SimVolume>) {
    let (volume, store) = blank().await;
    store.settle(SHARD, Epoch(1), &[]).await.unwrap();
    store.follow(SHARD, Epoch(1), Epoch(0), LiveSum::default()).await.unwrap();
    (volume, store)
}

async fn one(store: &ChunkStore<SimVolume>, op: &ShardOp) -> Result<OpNumber, ApplyError> {
    store.apply(vec![op.clone()]).await.pop().unwrap().result
}

async fn assert_equal(one: &ChunkStore<SimVolume>, other: &ChunkStore<SimVolume>) {
    let infos = one.segments(SHARD).await.unwrap();
    assert_eq!(other.segments(SHARD).await.unwrap(), infos);
    for info in infos {
        let read = async |store: &ChunkStore<SimVolume>| {
            store.read_segment(SHARD, info.number, 0, 64 << 10).await.unwrap()
        };
        assert!(read(one).await == read(other).await, "{info:?}");
    }
}

#[tokio::test]
async fn a_replica_has_the_same_bytes_at_the_same_places() {
    let (first, tape, chunks) = primary().await;
    let ops = tape.0.lock().clone();
    let numbers: Vec<u64> = ops.iter().map(|op| op.number.0).collect();
    assert_eq!(numbers, (1..=ops.len() as u64).collect::<Vec<_>>());
    let kinds = |kind: fn(&Op) -> bool| ops.iter().filter(|op| kind(&op.op)).count();
    let counted = [
        kinds(|op| matches!(op, Op::Append { .. })),
        kinds(|op| matches!(op, Op::Append { reserve: true, .. })),
        kinds(|op| matches!(op, Op::Seal { .. })),
        kinds(|op| matches!(op, Op::Delete { .. })),
        kinds(|op| matches!(op, Op::Free { .. })),
    ];
    assert!(counted.iter().all(|&count| count > 0), "{counted:?}");
    // One by one, each twice, and all in one call.
    let (_, single) = follower().await;
    for op in &ops {
        assert_eq!(one(&single, op).await.unwrap(), op.number);
        assert_eq!(one(&single, op).await.unwrap(), op.number);
    }
    let (volume, whole) = follower().await;
    let applied = whole.apply(ops).await.pop().unwrap();
    assert_eq!(applied.result.unwrap().0, numbers.len() as u64);
    for replica in [&single, &whole] {
        assert_equal(&first, replica).await;
        let live = |store: &ChunkStore<SimVolume>| store.inner.index.lock().shard(SHARD).live;
        assert_eq!(live(replica), live(&first));
        assert_eq!(replica.usage().live, first.usage().live);
        assert_eq!(replica.shard_epoch(SHARD), Epoch(1));
        for (hash, bytes) in &chunks {
            assert_eq!(&replica.get(hash).await.unwrap(), bytes);
            assert_eq!(replica.place_of(hash), first.place_of(hash));
        }
    }
    // A restarted one has no role, and takes puts only when it was made primary.
    let again = member(volume.reopen(), Arc::new(Alone)).await;
    assert_equal(&first, &again).await;
    let chunk = chunks[0].clone();
    let refused = again.put(vec![chunk.clone()]).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::NotPrimary);
    again.lead::<NoPeer>(SHARD, Epoch(2), Epoch(1), &[]).await.unwrap();
    assert_eq!(again.put(vec![chunk]).await.unwrap(), vec![Epoch(1)]);
}

/// For stores without others.
enum NoPeer {}

impl Peer for NoPeer {
    async fn settle(&self, _: ShardId, _: Epoch, _: Vec<SegmentInfo>) -> Result<Settled, Error> {
        match *self {}
    }

    async fn follow(&self, _: ShardId, _: Epoch, _: Epoch, _: LiveSum) -> Result<(), Error> {
        match *self {}
    }

    async fn compare(&self, _: ShardId, _: Snapshot) -> Result<Plan, Error> {
        match *self {}
    }

    async fn caught_up(&self, _: ShardId, _: Epoch) -> Result<(), Error> {
        match *self {}
    }

    async fn copy_segment(
        &self,
        _: ShardId,
        _: SegmentNumber,
        _: u32,
    ) -> Result<SegmentCopy, Error> {
        match *self {}
    }

    async fn install_segment(
        &self,
        _: ShardId,
        _: Epoch,
        _: SegmentNumber,
        _: SegmentCopy,
    ) -> Result<(), Error> {
        match *self {}
    }
}

#[tokio::test]
async fn what_does_not_belong_there_is_refused() {
    let (_, tape, _) = primary().await;
    let ops = tape.0.lock().clone();
    let (_, store) = blank().await;
    assert!(matches!(one(&store, &ops[0]).await, Err(ApplyError::NotFollowing)));
    let (_, store) = follower().await;
    assert!(matches!(one(&store, &ops[1]).await, Err(ApplyError::Gap(OpNumber(1)))));
    let far = ShardOp { shard: ShardId(9), ..ops[0].clone() };
    assert!(matches!(one(&store, &far).await, Err(ApplyError::Invalid(_))));
    let other = ShardOp { shard: ShardId(1), ..ops[0].clone() };
    assert!(matches!(one(&store, &other).await, Err(ApplyError::NotFollowing)));
    let Op::Append { segment, bytes, .. } = &ops[0].op else { panic!("{:?}", ops[0]) };
    let append = |offset, bytes: Bytes, segment| ShardOp {
        op: Op::Append { segment, offset, bytes, reserve: false },
        ..ops[0].clone()
    };
    let flipped = |at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 4;
        append(0, bytes.into(), *segment)
    };
    let mut wrong: Vec<ShardOp> = (0..64).map(flipped).collect();
    wrong.extend((4096..bytes.len()).step_by(41).map(flipped));
    let next = SegmentNumber(segment.0 + 1);
    wrong.extend([
        append(0, Bytes::new(), *segment),
        append(0, bytes.slice(..4096), *segment),
        append(0, bytes.slice(..100), *segment),
        append(4096, bytes.slice(4096..), *segment),
        append(100, bytes.clone(), *segment),
        append(u32::MAX - 4095, bytes.clone(), *segment),
        append(0, bytes.clone(), next),
        append(0, bytes.clone(), SegmentNumber(u64::MAX)),
        ShardOp { op: Op::Seal { segment: next, footer: Bytes::new() }, ..ops[0].clone() },
        ShardOp {
            op: Op::Delete { gc_epoch: Epoch(1), hashes: vec![ChunkHash([0xff; 32])] },
            ..ops[0].clone()
        },
    ]);
    for op in &wrong {
        let refused = one(&store, op).await;
        assert!(matches!(refused, Err(ApplyError::Invalid(_))), "{refused:?}");
    }
    // None of it did any harm.
    for op in &ops {
        let seal = match &op.op {
            Op::Seal { segment, footer } => {
                let mut footer = footer.to_vec();
                let at = footer.len() - 100;
                footer[at] ^= 1;
                Some(Op::Seal { segment: *segment, footer: footer.into() })
            }
            _ => None,
        };
        if let Some(seal) = seal {
            let refused = one(&store, &ShardOp { op: seal, ..op.clone() }).await;
            assert!(matches!(refused, Err(ApplyError::Invalid(_))), "{refused:?}");
        }
        one(&store, op).await.unwrap();
    }
    store.set_role(SHARD, Role::Replica { epoch: Epoch(2) }).unwrap();
    assert!(matches!(one(&store, &ops[0]).await, Err(ApplyError::StaleEpoch(Epoch(2)))));
    let stale = store.set_role(SHARD, Role::Replica { epoch: Epoch(1) }).unwrap_err();
    assert_eq!(stale.kind(), Kind::StaleEpoch);
    let stale = store.settle(SHARD, Epoch(1), &[]).await.unwrap_err();
    assert_eq!(stale.kind(), Kind::StaleEpoch);
}

#[tokio::test]
async fn a_primary_that_cannot_replicate_promises_nothing_and_needs_a_new_epoch() {
    for why in [ReplicationError::NotNow, ReplicationError::Deposed(Epoch(5))] {
        let (volume, _) = fresh(40).await;
        let store = member(volume, Arc::new(Refusing(why))).await;
        let role = Role::Primary { epoch: Epoch(1), gc_epoch: Epoch(0) };
        store.set_role(SHARD, role).unwrap();
        let chunk = (0..).map(|seed| Dice(seed).chunk(900)).find(|c| c.0.shard(2) == SHARD);
        let chunk = chunk.unwrap();
        let refused = store.put(vec![chunk.clone()]).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::NotReplicated);
        assert!(!store.contains(&chunk.0));
        for refused in [
            store.put(vec![chunk.clone()]).await.unwrap_err(),
            store.delete(SHARD, Epoch(1), &[chunk.0]).await.unwrap_err(),
            store.snapshot(SHARD).await.unwrap_err(),
        ] {
            assert_eq!(refused.kind(), Kind::NotPrimary);
        }
        assert_eq!(store.shard_epoch(SHARD), Epoch(0));
        let again = store.begin_epoch(SHARD, Epoch(1), Epoch(0)).await.unwrap_err();
        let kind = match why {
            ReplicationError::NotNow => Kind::Invalid,
            ReplicationError::Deposed(_) => Kind::StaleEpoch,
            ReplicationError::NoSpace => Kind::NoSpace,
        };
        assert_eq!(again.kind(), kind);
        let begun = store.begin_epoch(SHARD, Epoch(6), Epoch(3)).await.unwrap();
        assert_eq!((begun.segments, begun.live), (vec![], LiveSum::default()));
        assert_eq!(store.put(vec![chunk]).await.unwrap_err().kind(), Kind::NotPrimary);
        store.set_role(SHARD, Role::Primary { epoch: Epoch(6), gc_epoch: Epoch(3) }).unwrap();
        assert_eq!(store.shard_epoch(SHARD), Epoch(3));
    }
}

/// The old primary moved records, and one of two replicas heard of it; the other one is promoted.
/// What was told of nobody is garbage at worst; what ends earlier may have lost its end.
#[tokio::test]
async fn what_only_one_replica_has_counts_for_all() {
    let (_, tape, _) = primary().await;
    let ops = tape.0.lock().clone();
    let moves = |op: &ShardOp| matches!(op.op, Op::Append { reserve: true, .. });
    let first = ops.iter().position(moves).unwrap();
    let tail = |op: &ShardOp| matches!(op.op, Op::Append { offset: 1.., .. });
    assert!(tail(&ops[first]), "the cleaner began in a new segment: {:?}", ops[first].number);
    for primary_is_ahead in [true, false] {
        let (volume, ahead) = follower().await;
        let (_, behind) = follower().await;
        for op in &ops[..first] {
            one(&ahead, op).await.unwrap();
            one(&behind, op).await.unwrap();
        }
        one(&ahead, &ops[first]).await.unwrap();
        let all = ahead.iter_hashes(Some(SHARD));
        let (leads, follows) = match primary_is_ahead {
            true => (&ahead, &behind),
            false => (&behind, &ahead),
        };
        leads.lead(SHARD, Epoch(2), Epoch(1), &[Near(follows.clone())]).await.unwrap();
        assert_equal(&behind, &ahead).await;
        for hash in &all {
            assert_eq!(ahead.get(hash).await.unwrap(), behind.get(hash).await.unwrap());
            assert_eq!(ahead.place_of(hash), behind.place_of(hash));
        }
        let used = leads.begin_epoch(SHARD, Epoch(2), Epoch(1)).await.unwrap_err();
        assert_eq!(used.kind(), Kind::Invalid);
        // It is durable.
        let again = member(volume.power_cut(3), Arc::new(Alone)).await;
        assert_equal(&behind, &again).await;
    }
}

/// Damage at the end of a segment without a footer hides that anything was there.
#[tokio::test]
async fn a_primary_that_lost_the_ends_of_its_segments_gets_them_from_its_replica() {
    for damaged in 1..8 {
        let (first, tape, chunks) = primary().await;
        let (_, second) = follower().await;
        let ops = tape.0.lock().clone();
        second.apply(ops).await.pop().unwrap().result.unwrap();
        let volume = &first.inner.device.volume;
        let mut places: Vec<_> = chunks.iter().filter_map(|c| first.place_of(&c.0)).collect();
        places.sort_unstable_by_key(|place| (place.number.0, place.offset));
        for place in places.iter().rev().take(damaged) {
            let id = format::SegmentId { shard: SHARD, number: place.number };
            let slot = first.inner.index.lock().segments[&id];
            let at = first.inner.device.slot_start(slot) + u64::from(place.offset) + 90;
            volume.corrupt(at / 4096, at as usize % 4096, 8);
        }
        let again = member(volume.reopen(), Arc::new(Alone)).await;
        let lost = chunks.iter().filter(|chunk| !again.contains(&chunk.0)).count();
        assert!(lost > 0, "nothing was hidden by {damaged}");
        let peer = Near(second.clone());
        again.lead(SHARD, Epoch(2), Epoch(1), &[peer]).await.unwrap();
        assert_equal(&again, &second).await;
        for (hash, bytes) in &chunks {
            assert_eq!(&again.get(hash).await.unwrap(), bytes);
            assert_eq!(&second.get(hash).await.unwrap(), bytes);
        }
    }
}

/// Both are damaged, in different places.
#[tokio::test]
async fn two_damaged_copies_become_one_that_is_whole() {
    for skew in 0..2 {
        let (first, tape, chunks) = primary().await;
        let (_, second) = follower().await;
        let ops = tape.0.lock().clone();
        second.apply(ops).await.pop().unwrap().result.unwrap();
        for (number, (hash, _)) in chunks.iter().enumerate() {
            let store = if number % 2 == skew { &first } else { &second };
            let place = store.place_of(hash).unwrap();
            let slot = store.inner.index.lock().table.get(hash).unwrap().slot;
            if store.inner.index.lock().slot(slot).sealed.is_none() {
                let at = store.inner.device.slot_start(slot) + u64::from(place.offset) + 90;
                store.inner.device.volume.corrupt(at / 4096, at as usize % 4096, 8);
            }
        }
        let again = member(first.inner.device.volume.reopen(), Arc::new(Alone)).await;
        let volume = second.inner.device.volume.reopen();
        let second = member(volume, Arc::new(Alone)).await;
        again.lead(SHARD, Epoch(2), Epoch(1), &[Near(second.clone())]).await.unwrap();
        assert_equal(&again, &second).await;
        for (hash, bytes) in &chunks {
            assert_eq!(&again.get(hash).await.unwrap(), bytes);
            assert_eq!(&second.get(hash).await.unwrap(), bytes);
        }
    }
}

/// A primary that did not know of a chunk would free the segment with it everywhere.
#[tokio::test]
async fn a_sealed_segment_with_a_damaged_header_still_names_its_damaged_records() {
    let (first, _, chunks) = primary().await;
    let volume = first.inner.device.volume.clone();
    let infos = first.segments(SHARD).await.unwrap();
    let sealed = infos.iter().find(|info| info.sealed).unwrap();
    let id = format::SegmentId { shard: SHARD, number: sealed.number };
    let start = first.inner.device.slot_start(first.inner.index.lock().segments[&id]);
    let places = chunks.iter().filter_map(|chunk| Some((chunk.0, first.place_of(&chunk.0)?)));
    let mut inside: Vec<_> = places.filter(|(_, place)| place.number == sealed.number).collect();
    assert!(inside.len() > 1);
    let (hash, place) = inside.pop().unwrap();
    for at in [start + 8, start + u64::from(place.offset) + 90] {
        volume.corrupt(at / 4096, at as usize % 4096, 8);
    }
    let again = member(volume.reopen(), Arc::new(Alone)).await;
    assert_eq!(again.segments(SHARD).await.unwrap(), infos);
    assert_eq!(again.get(&hash).await.unwrap_err().kind(), Kind::Damaged);
    for (hash, _) in inside {
        again.get(&hash).await.unwrap();
    }
}

/// The end of one that has its footer is not taken for records by one that lost it.
#[tokio::test]
async fn a_shorter_damaged_copy_takes_the_records_behind_its_end_and_no_footer() {
    let (store, _, chunks) = primary().await;
    let infos = store.segments(SHARD).await.unwrap();
    let number = infos.iter().find(|info| info.sealed).unwrap().number;
    let whole = store.copy_segment(SHARD, number, 0).await.unwrap();
    let places = chunks.iter().filter_map(|chunk| store.place_of(&chunk.0));
    let second = places.filter(|place| place.number == number).map(|place| place.offset).nth(1);
    let content = whole.content.slice(..second.unwrap() as usize / 4096 * 4096);
    let copy = SegmentCopy { content, sealed: false, damaged: true, ..whole };
    store.install_segment(SHARD, Epoch(1), number, copy).await.unwrap();
    assert!(store.verify_segment(SHARD, number).await.unwrap().whole);
    for (hash, bytes) in &chunks {
        assert_eq!(&store.get(hash).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_segment_with_unreadable_blocks_is_found_and_replaced() {
    let (first, tape, chunks) = primary().await;
    let (volume, store) = follower().await;
    let ops = tape.0.lock().clone();
    store.apply(ops).await.pop().unwrap().result.unwrap();
    let infos = store.segments(SHARD).await.unwrap();
    // The header, a record, and the end: the footer of one that has it.
    for (info, block) in infos.iter().flat_map(|info| [0, 1, 15].map(|block| (info, block))) {
        let id = format::SegmentId { shard: SHARD, number: info.number };
        let slot = store.inner.index.lock().segments[&id];
        let start = store.inner.device.slot_start(slot) / 4096;
        let last = if info.sealed { 15 } else { u64::from(info.len / 4096) - 1 };
        volume.break_block(start + last.min(block));
        let verified = store.verify_segment(SHARD, info.number).await.unwrap();
        assert!(!verified.whole);
        let copy = first.copy_segment(SHARD, info.number, 0).await.unwrap();
        assert!(!copy.damaged);
        store.install_segment(SHARD, Epoch(1), info.number, copy).await.unwrap();
        assert!(store.verify_segment(SHARD, info.number).await.unwrap().whole);
    }
    let kinds = [true, false].map(|sealed| infos.iter().any(|info| info.sealed == sealed));
    assert_eq!(kinds, [true, true]);
    assert_equal(&first, &store).await;
    for (hash, bytes) in &chunks {
        assert_eq!(&store.get(hash).await.unwrap(), bytes);
    }
    // Nothing of a whole range can be read: that is no damage, that is a device that fails.
    let slot = store.inner.index.lock().table.get(&chunks[0].0).unwrap().slot;
    let start = store.inner.device.slot_start(slot);
    (0..16).for_each(|block| volume.break_block(start / 4096 + block));
    let number = store.place_of(&chunks[0].0).unwrap().number;
    let failed = store.verify_segment(SHARD, number).await.unwrap_err();
    assert_eq!(failed.kind(), Kind::Io);
}

/// Cuts the power at every operation of applying, recovers, and catches up.
#[tokio::test]
async fn a_replica_that_is_cut_anywhere_keeps_what_it_answered() {
    let (first, tape, chunks) = primary().await;
    let ops = tape.0.lock().clone();
    let (volume, store) = follower().await;
    let before = volume.ops();
    for op in &ops {
        one(&store, op).await.unwrap();
    }
    let total = volume.ops() - before;
    let snapshot = first.snapshot(SHARD).await.unwrap();
    let mut skipped = 0;
    for cut in 0..total {
        let (volume, store) = follower().await;
        volume.halt_after(cut);
        let mut answered = BTreeSet::new();
        for op in &ops {
            if one(&store, op).await.is_err() {
                break;
            }
            match &op.op {
                Op::Append { .. } => {
                    for hash in store.iter_hashes(Some(SHARD)) {
                        answered.insert(hash);
                    }
                }
                Op::Delete { hashes, .. } => {
                    answered.retain(|hash| !hashes.contains(hash));
                }
                Op::Seal { .. } | Op::Free { .. } => {}
            }
        }
        let store = member(volume.power_cut(cut), Arc::new(Alone)).await;
        for hash in &answered {
            let got = store.get(hash).await;
            let right = got.as_ref().is_ok_and(|got| blake3::hash(got).as_bytes() == &hash.0);
            assert!(right, "cut {cut}: {got:?}");
        }
        let plan = store.compare(SHARD, &snapshot).await.unwrap();
        for Fetch { number, have } in plan.fetch {
            let copy = first.copy_segment(SHARD, number, have).await.unwrap();
            assert_eq!(copy.skipped, have, "cut {cut}");
            match store.install_segment(SHARD, Epoch(1), number, copy).await {
                // What the cut left of it has holes.
                Err(error) if error.kind() == Kind::Damaged && have > 0 => {
                    let copy = first.copy_segment(SHARD, number, 0).await.unwrap();
                    store.install_segment(SHARD, Epoch(1), number, copy).await.unwrap();
                }
                done => skipped += done.map(|()| u64::from(have)).unwrap(),
            }
        }
        store.caught_up(SHARD, Epoch(1)).await.unwrap();
        assert_equal(&first, &store).await;
        for (hash, bytes) in &chunks {
            assert_eq!(&store.get(hash).await.unwrap(), bytes, "cut {cut}");
        }
    }
    assert!(total > 50, "{total} operations");
    assert!(skipped > 0, "nothing was there of what was fetched");
}

#[tokio::test]
async fn of_a_segment_that_ends_earlier_the_rest_is_sent_and_all_of_it_after_damage() {
    let (first, tape, _) = primary().await;
    let (volume, store) = follower().await;
    let ops = tape.0.lock().clone();
    let left = ops.iter().rposition(|op| matches!(op.op, Op::Append { .. })).unwrap();
    store.apply(ops[..left].to_vec()).await.pop().unwrap().result.unwrap();
    let snapshot = first.snapshot(SHARD).await.unwrap();
    let plan = store.compare(SHARD, &snapshot).await.unwrap();
    let Fetch { number, have } = *plan.fetch.iter().find(|fetch| fetch.have > 0).unwrap();
    let all = first.copy_segment(SHARD, number, 0).await.unwrap();
    let rest = first.copy_segment(SHARD, number, have).await.unwrap();
    assert_eq!((all.skipped, rest.skipped), (0, have));
    assert_eq!(rest.content, all.content.slice(have as usize..));
    // More than there is, and what is no whole block.
    assert_eq!(first.copy_segment(SHARD, number, 1 << 30).await.unwrap(), all);
    let odd = first.copy_segment(SHARD, number, have - 1).await.unwrap_err();
    assert_eq!(odd.kind(), Kind::Invalid);

    let slot = store.inner.index.lock().segments[&format::SegmentId { shard: SHARD, number }];
    volume.corrupt(store.inner.device.slot_start(slot) / 4096 + 1, 200, 1);
    let skipping = SegmentCopy { skipped: u32::MAX - 4095, ..rest.clone() };
    for copy in [rest, skipping] {
        let refused = store.install_segment(SHARD, Epoch(1), number, copy).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Damaged);
    }
    first.bring_up(SHARD, &Near(store.clone())).await.unwrap();
    assert_equal(&first, &store).await;
    assert!(store.verify_segment(SHARD, number).await.unwrap().whole);
}

/// Cuts the power at every operation of an installation over a damaged copy.
#[tokio::test]
async fn a_torn_installation_is_never_believed_and_loses_nothing() {
    let (first, tape, _) = primary().await;
    let ops = tape.0.lock().clone();
    let (volume, store) = follower().await;
    store.apply(ops).await.pop().unwrap().result.unwrap();
    let infos = first.segments(SHARD).await.unwrap();
    let info = *infos.iter().find(|info| info.sealed).unwrap();
    let slot = {
        let index = store.inner.index.lock();
        index.segments[&format::SegmentId { shard: SHARD, number: info.number }]
    };
    // One record of the copy is damaged, the others are all there is of their chunks.
    let at = (format::SLOTS_START + u64::from(slot) * (64 << 10) + 4096) / 4096;
    volume.corrupt(at, 200, 1);
    let store_of = |volume: SimVolume| member(volume, Arc::new(Alone));
    let readable = async |store: &ChunkStore<SimVolume>| {
        let mut count = 0;
        for hash in store.iter_hashes(Some(SHARD)) {
            count += usize::from(store.get(&hash).await.is_ok());
        }
        count
    };
    let volume = volume.reopen();
    let least = readable(&store_of(volume.fork()).await).await;
    let copy = first.copy_segment(SHARD, info.number, 0).await.unwrap();
    let mut whole = 0;
    for cut in 0..40 {
        let volume = volume.fork();
        let store = store_of(volume.clone()).await;
        store.set_role(SHARD, Role::Replica { epoch: Epoch(1) }).unwrap();
        volume.halt_after(cut);
        let done = store.install_segment(SHARD, Epoch(1), info.number, copy.clone()).await;
        let store = store_of(volume.power_cut(cut)).await;
        let count = readable(&store).await;
        assert!(count >= least, "cut {cut}: {count} of {least} readable");
        let verified = store.verify_segment(SHARD, info.number).await.unwrap();
        assert!(verified.whole || done.is_err(), "cut {cut}: {verified:?}");
        whole += u32::from(verified.whole);
        // No slot is lost, and none holds a segment twice.
        let segments = store.inner.index.lock().segments.len();
        assert_eq!(store.usage().segments_closed as usize, segments, "cut {cut}");
    }
    assert!((1..40).contains(&whole), "{whole} of 40 were whole");
}

#[tokio::test]
async fn a_scrub_finds_damage_and_a_good_copy_repairs_it() {
    let (first, tape, chunks) = primary().await;
    let (volume, store) = follower().await;
    let ops = tape.0.lock().clone();
    store.apply(ops).await.pop().unwrap().result.unwrap();
    let infos = store.segments(SHARD).await.unwrap();
    for info in &infos {
        let verified = store.verify_segment(SHARD, info.number).await.unwrap();
        assert_eq!(verified, Verified { info: *info, whole: true, bad: vec![] });
    }
    for (hash, bytes) in chunks.iter().step_by(4) {
        let place = store.place_of(hash).unwrap();
        let slot = store.inner.index.lock().table.get(hash).unwrap().slot;
        let at = store.inner.device.slot_start(slot) + u64::from(place.offset) + 90;
        volume.corrupt(at / 4096, at as usize % 4096, 8);
        let verified = store.verify_segment(SHARD, place.number).await.unwrap();
        assert_eq!((verified.whole, verified.bad), (false, vec![*hash]));
        assert_eq!(store.read_record(hash).await.unwrap_err().kind(), Kind::Damaged);
        let record = first.read_record(hash).await.unwrap();
        let mut wrong = record.clone();
        wrong[85] ^= 1;
        let other = chunks.iter().find(|chunk| chunk.0 != *hash).unwrap().0;
        for wrong in [wrong, first.read_record(&other).await.unwrap(), vec![]] {
            let refused = store.repair(hash, Epoch(1), &wrong).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Invalid);
        }
        store.repair(hash, Epoch(1), &record).await.unwrap();
        assert_eq!(&store.get(hash).await.unwrap(), bytes);
        assert!(store.verify_segment(SHARD, place.number).await.unwrap().whole);
    }
    assert_equal(&first, &store).await;
}

/// Another store in this process.
struct Near(ChunkStore<SimVolume>);

impl Peer for Near {
    async fn settle(
        &self,
        shard: ShardId,
        epoch: Epoch,
        theirs: Vec<SegmentInfo>,
    ) -> Result<Settled, Error> {
        self.0.settle(shard, epoch, &theirs).await
    }

    async fn follow(
        &self,
        shard: ShardId,
        epoch: Epoch,
        gc_epoch: Epoch,
        live: LiveSum,
    ) -> Result<(), Error> {
        self.0.follow(shard, epoch, gc_epoch, live).await
    }

    async fn compare(&self, shard: ShardId, theirs: Snapshot) -> Result<Plan, Error> {
        self.0.compare(shard, &theirs).await
    }

    async fn caught_up(&self, shard: ShardId, epoch: Epoch) -> Result<(), Error> {
        self.0.caught_up(shard, epoch).await
    }

    async fn copy_segment(
        &self,
        shard: ShardId,
        number: SegmentNumber,
        have: u32,
    ) -> Result<SegmentCopy, Error> {
        self.0.copy_segment(shard, number, have).await
    }

    async fn install_segment(
        &self,
        shard: ShardId,
        epoch: Epoch,
        number: SegmentNumber,
        copy: SegmentCopy,
    ) -> Result<(), Error> {
        self.0.install_segment(shard, epoch, number, copy).await
    }
}

/// Damages a record of every third chunk, the header of one segment and the footer of another one.
async fn damage(store: &ChunkStore<SimVolume>, chunks: &[(ChunkHash, Bytes)]) -> Vec<ChunkHash> {
    let volume = &store.inner.device.volume;
    let bad: Vec<ChunkHash> = chunks.iter().step_by(3).map(|chunk| chunk.0).collect();
    for hash in &bad {
        let place = store.place_of(hash).unwrap();
        let slot = store.inner.index.lock().table.get(hash).unwrap().slot;
        let at = store.inner.device.slot_start(slot) + u64::from(place.offset) + 90;
        volume.corrupt(at / 4096, at as usize % 4096, 8);
    }
    let infos = store.segments(SHARD).await.unwrap();
    let sealed = infos.iter().find(|info| info.sealed).unwrap();
    let other = infos.iter().find(|info| info.number != sealed.number).unwrap();
    let start = |info: &SegmentInfo| {
        let id = format::SegmentId { shard: SHARD, number: info.number };
        let slot = store.inner.index.lock().segments[&id];
        store.inner.device.slot_start(slot) / 4096
    };
    volume.corrupt(start(other), 8, 8);
    volume.corrupt(start(sealed) + 15, 4090, 4);
    bad
}

#[tokio::test]
async fn a_replica_is_brought_up_by_a_primary_with_damage_and_nothing_good_is_lost() {
    // One that has nothing gets what there is, and knows what is not.
    let (first, _, chunks) = primary().await;
    let bad = damage(&first, &chunks).await;
    let (volume, store) = blank().await;
    first.bring_up(SHARD, &Near(store.clone())).await.unwrap();
    assert!(first.damaged_count() >= bad.len(), "{} are known", first.damaged_count());
    let check = async |store: &ChunkStore<SimVolume>| {
        for (hash, bytes) in &chunks {
            match store.get(hash).await {
                Ok(got) => assert!(got == *bytes && !bad.contains(hash)),
                Err(error) => assert!(bad.contains(hash), "{error}"),
            }
        }
    };
    check(&store).await;
    // A new epoch begins all the same.
    first.lead(SHARD, Epoch(2), Epoch(1), &[Near(store)]).await.unwrap();
    check(&member(volume.reopen(), Arc::new(Alone)).await).await;

    // One that was away keeps what is good on it, and gives it back.
    let (first, tape, chunks) = primary().await;
    let (_, store) = follower().await;
    let ops = tape.0.lock().clone();
    // It left before the last segment was sealed.
    let seal = ops.iter().rposition(|op| matches!(op.op, Op::Seal { .. })).unwrap();
    store.apply(ops[..seal].to_vec()).await.pop().unwrap().result.unwrap();
    let had: Vec<ChunkHash> = store.iter_hashes(Some(SHARD));
    damage(&first, &chunks).await;
    first.bring_up(SHARD, &Near(store.clone())).await.unwrap();
    let (mut kept, mut mended) = (0, 0);
    for (hash, bytes) in chunks.iter().filter(|chunk| had.contains(&chunk.0)) {
        if store.place_of(hash) == first.place_of(hash) && store.get(hash).await.is_ok() {
            kept += 1;
            if first.get(hash).await.is_err() {
                let record = store.read_record(hash).await.unwrap();
                first.repair(hash, Epoch(1), &record).await.unwrap();
                assert_eq!(&first.get(hash).await.unwrap(), bytes);
                mended += 1;
            }
        }
    }
    assert!(kept > 0 && mended > 0, "{kept} kept, {mended} mended");
}

/// Says that everything arrived, and that there is no more room.
struct Full;

impl Replicator for Full {
    fn has_audience(&self, _: ShardId) -> bool {
        true
    }

    fn has_room(&self, _: ShardId) -> bool {
        false
    }

    fn replicate(&self, _: Vec<ShardOp>) -> Replicated {
        Box::pin(std::future::ready(Vec::new()))
    }
}

#[tokio::test]
async fn a_full_replica_is_a_full_store() {
    let (volume, _) = fresh(40).await;
    let store = member(volume, Arc::new(Full)).await;
    store.set_role(SHARD, Role::Primary { epoch: Epoch(1), gc_epoch: Epoch(0) }).unwrap();
    let chunk = (0..).map(|seed| Dice(seed).chunk(3000)).find(|c| c.0.shard(2) == SHARD).unwrap();
    let refused = store.put(vec![chunk]).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::NoSpace);
    assert_eq!(store.leads(SHARD), Some(Epoch(1)), "nothing was sent");

    let (volume, _) = fresh(40).await;
    let store = member(volume, Arc::new(Refusing(ReplicationError::NoSpace))).await;
    store.set_role(SHARD, Role::Primary { epoch: Epoch(1), gc_epoch: Epoch(0) }).unwrap();
    let chunk = (0..).map(|seed| Dice(seed).chunk(3000)).find(|c| c.0.shard(2) == SHARD).unwrap();
    store.put(vec![chunk]).await.unwrap_err();
    assert_eq!(store.leads(SHARD), None, "who has what is not known");
}

#[tokio::test]
async fn what_an_earlier_life_left_is_not_taken_and_older_formats_are_refused_by_name() {
    let (volume, store) = fresh(30).await;
    let chunk = Dice(1).chunk(3000);
    store.put(vec![chunk.clone()]).await.unwrap();
    let image: Vec<u8> = store.inner.device.read(format::SLOTS_START, 64 << 10).await.unwrap();
    let volume = volume.reopen();
    let params = FormatParams { cluster_uuid: CLUSTER, shard_count: 2, segment_bytes: 64 << 10 };
    ChunkStore::format(&volume, params).await.unwrap();
    assert_eq!(open(volume.reopen()).await.usage().chunks, 0);
    // A device that gives the old bytes after giving back.
    let volume = SimVolume::new(4096, 16 + 30 * 16);
    for (lba, block) in (16..).zip(image.chunks(4096)) {
        let mut buffer = blockd_ipc::Volume::buffer(&volume, 4096).await.unwrap();
        buffer.set_len(4096);
        buffer.copy_from_slice(block);
        blockd_ipc::Volume::write(&volume, lba, buffer, true).await.unwrap();
    }
    ChunkStore::format(&volume, params).await.unwrap();
    let store = open(volume.reopen()).await;
    assert_eq!((store.usage().chunks, store.usage().used), (0, 0));

    let (volume, _) = fresh(20).await;
    for copy in 0..2 {
        let mut buffer = blockd_ipc::Volume::buffer(&volume, 4096).await.unwrap();
        buffer.set_len(4096);
        let mut buffer = blockd_ipc::Volume::read(&volume, copy, buffer).await.unwrap();
        buffer[8] = 1;
        let crc = format::crc32c(&[&buffer[..12], &buffer[16..512]]).to_le_bytes();
        buffer[12..16].copy_from_slice(&crc);
        blockd_ipc::Volume::write(&volume, copy, buffer, true).await.unwrap();
    }
    let params = OpenParams { cluster_uuid: CLUSTER, keys: Keys::new(1, &[9; 32]), epochs: vec![] };
    let error = ChunkStore::open(volume, params).await.unwrap_err();
    assert_eq!(error.kind(), Kind::OlderFormat);
    assert!(error.to_string().contains("format 1"), "{error}");
}
