//! Every order of put, commit, cut and deletion, with two receipts in flight: no referenced chunk is ever
//! lost, and no receipt is refused for a deletion of something else.
//!
//! States that were reached in different orders and are alike are gone on from once. A crash of the shard's
//! store loses nothing that is not in `Shard`, so it is every order too; one that restarts adopts the
//! present epoch and executes nothing (docs/decisions.md, D7).

use std::collections::HashSet;

use super::*;

/// Steps from the start of each world.
const STEPS: usize = 9;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shard {
    epoch: u64,
    has_chunk: bool,
    receipts: [Option<u64>; 2],
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    kv: MemKv,
    shard: Shard,
}

impl World {
    fn new(ino: &mut Ino) -> World {
        let mut fs = Fs::new();
        *ino = fs.file(Ino::ROOT, "f");
        let shard = Shard { epoch: 0, has_chunk: false, receipts: [None; 2] };
        World { kv: fs.kv, shard }
    }

    /// Always of the same version and time, so that orders that end alike are alike.
    fn apply(&mut self, command: Command) -> MetaResult<Reply> {
        let (session, time) = (SessionId::SERVER, Time::default());
        let envelope = Envelope { session, slot: 0, seq: 0, time, command };
        apply(&mut self.kv, Version(1000), &envelope).unwrap()
    }

    fn commit(&mut self, ino: Ino, receipt: u64) -> MetaResult<Reply> {
        let data = ExtentData::Chunk { hash: hash(1), chunk_offset: 0 };
        let extent = NewExtent { offset: 0, len: 9, data, receipt: Epoch(receipt) };
        let change = AttrChange::default();
        self.apply(Command::Write(Write { ino, extents: vec![extent], change }))
    }

    fn begin(&mut self, hashes: Vec<ChunkHash>) -> MetaResult<Reply> {
        let id = hash(1).shard(2);
        let epoch = read::shard(&self.kv, id).unwrap().unwrap().gc_epoch.0 + 1;
        self.apply(Command::BeginDelete { shard: id, epoch: Epoch(epoch), hashes })
    }

    /// The shard's store carries out what is pending, and the leader ends it.
    fn finish(&mut self) {
        let id = hash(1).shard(2);
        let pending = read::pending_delete(&self.kv, id).unwrap().unwrap();
        self.shard.has_chunk &= !pending.hashes.contains(&hash(1));
        self.shard.epoch = pending.epoch.0;
        self.apply(Command::EndDelete { shard: id, epoch: pending.epoch }).unwrap();
    }

    fn check(&self) {
        let referenced = read::references(&self.kv, &hash(1)).unwrap() > 0;
        assert!(!referenced || self.shard.has_chunk, "a referenced chunk is lost");
    }

    /// The world after the step, if it can be taken.
    fn step(&self, step: usize, ino: Ino) -> Option<World> {
        let mut next = self.clone();
        let id = hash(1).shard(2);
        let pending = read::pending_delete(&self.kv, id).unwrap();
        match step {
            0 | 1 => {
                next.shard.has_chunk = true;
                next.shard.receipts[step] = Some(next.shard.epoch);
            }
            2 | 3 => {
                let receipt = next.shard.receipts[step - 2].take()?;
                let _a_refusal_is_fine = next.commit(ino, receipt);
            }
            4 => {
                let change = AttrChange::default();
                next.apply(Command::SetAttr(SetAttr { ino, change, size: Some(0) })).unwrap();
            }
            5 => drop(next.begin(vec![hash(1)])),
            6 => drop(next.begin(vec![hash(2)])),
            7 => {
                let pending = pending.filter(|pending| pending.epoch.0 > self.shard.epoch)?;
                next.shard.has_chunk &= !pending.hashes.contains(&hash(1));
                next.shard.epoch = pending.epoch.0;
            }
            8 => {
                let pending = pending.filter(|pending| pending.epoch.0 == self.shard.epoch)?;
                next.apply(Command::EndDelete { shard: id, epoch: pending.epoch }).unwrap();
            }
            // The store restarts before it has executed what is pending.
            _ => next.shard.epoch = read::shard(&self.kv, id).unwrap().unwrap().gc_epoch.0,
        }
        Some(next)
    }
}

fn explore(start: World, ino: Ino, steps: usize) -> usize {
    let mut seen = HashSet::new();
    let mut layer = vec![start];
    for _ in 0..steps {
        let mut next = Vec::new();
        for world in &layer {
            for step in 0..10 {
                let Some(reached) = world.step(step, ino) else { continue };
                reached.check();
                if seen.insert(reached.clone()) {
                    next.push(reached);
                }
            }
        }
        layer = next;
    }
    seen.len()
}

#[test]
fn no_order_of_garbage_steps_loses_a_referenced_chunk() {
    let mut ino = Ino::ROOT;
    let world = World::new(&mut ino);
    assert!(explore(world, ino, STEPS) > 1000);
}

/// The same where the memory of deletions is full, so that each further one forgets another: with
/// receipts from before, at and after what is remembered.
#[test]
fn nor_where_old_deletions_are_being_forgotten() {
    for taken in [0, 1, 3, 40, 70] {
        let mut ino = Ino::ROOT;
        let mut world = World::new(&mut ino);
        for epoch in 0..70 {
            if epoch == taken {
                world.shard.has_chunk = true;
                world.shard.receipts[0] = Some(epoch);
            }
            // The deletion right after the receipt takes the chunk, unless it is the last receipt.
            let victim = if epoch == taken { hash(1) } else { hash(3) };
            world.begin(vec![victim]).unwrap();
            world.finish();
        }
        explore(world, ino, 5);
    }
}

#[test]
fn a_deletion_of_other_chunks_costs_no_receipt_while_it_is_remembered() {
    let mut ino = Ino::ROOT;
    let mut world = World::new(&mut ino);
    for _ in 0..64 {
        world.begin(vec![hash(2)]).unwrap();
        assert_eq!(check(&world.kv).unwrap(), []);
        world.finish();
    }
    assert!(world.clone().commit(ino, 0).is_ok(), "all are remembered and none took it");
    world.begin(vec![hash(4)]).unwrap();
    world.finish();
    assert_eq!(check(&world.kv).unwrap(), []);
    let refused = world.clone().commit(ino, 0);
    assert_eq!(refused, Err(MetaError::RetryPut(vec![hash(1)])), "the first is forgotten");
    assert!(world.clone().commit(ino, 1).is_ok());
    world.begin(vec![hash(1)]).unwrap();
    assert_eq!(world.clone().commit(ino, 65), Err(MetaError::RetryPut(vec![hash(1)])));
    world.finish();
    assert!(world.commit(ino, 66).is_ok());
}
