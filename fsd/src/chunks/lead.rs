//! What a primary does with its replicas, over whatever reaches them: making them equal before it takes
//! puts, and bringing one up that was away.
//!
//! The order is here, the transport is the [`Peer`]'s. Each call may be repeated after a failure.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use blockd_ipc::volume::Volume;
use raftmeta_types::{Epoch, ShardId};

use super::ChunkStore;
use super::catch_up::{Fetch, Plan, Snapshot};
use super::epoch::{Begun, Settled};
use super::error::{Error, Kind};
use super::replicate::SegmentNumber;
use super::segments::{SegmentCopy, SegmentInfo};
use super::shards::{LiveSum, Role};

/// Comparisons of one beginning. The second one finds what the first one brought, a third one what was put
/// together from several damaged copies; more means that somebody changes segments meanwhile.
const ROUNDS_MAX: usize = 6;
/// Attempts at a segment that grows, or is freed, while it is fetched.
const FETCHES_MAX: usize = 100;
/// Between two of them.
const FETCH_WAIT: Duration = Duration::from_millis(20);

/// Another replica of a shard: the methods of its [`ChunkStore`] with the same names.
pub trait Peer: Send + Sync {
    fn settle(
        &self,
        shard: ShardId,
        epoch: Epoch,
        theirs: Vec<SegmentInfo>,
    ) -> impl Future<Output = Result<Settled, Error>> + Send;

    fn follow(
        &self,
        shard: ShardId,
        epoch: Epoch,
        gc_epoch: Epoch,
        live: LiveSum,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    fn compare(
        &self,
        shard: ShardId,
        theirs: Snapshot,
    ) -> impl Future<Output = Result<Plan, Error>> + Send;

    fn caught_up(
        &self,
        shard: ShardId,
        epoch: Epoch,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    fn copy_segment(
        &self,
        shard: ShardId,
        number: SegmentNumber,
        have: u32,
    ) -> impl Future<Output = Result<SegmentCopy, Error>> + Send;

    fn install_segment(
        &self,
        shard: ShardId,
        epoch: Epoch,
        number: SegmentNumber,
        copy: SegmentCopy,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Who failed: the primary itself, or the peer with this number in the caller's list.
#[derive(Clone, Debug)]
pub struct LeadError {
    pub peer: Option<usize>,
    pub error: Error,
}

impl fmt::Display for LeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "replica {peer}: {}", self.error),
            None => write!(f, "the primary: {}", self.error),
        }
    }
}

impl std::error::Error for LeadError {}

fn own(error: Error) -> LeadError {
    LeadError { peer: None, error }
}

fn of(peer: usize) -> impl Fn(Error) -> LeadError {
    move |error| LeadError { peer: Some(peer), error }
}

impl<V: Volume> ChunkStore<V> {
    /// Begins an epoch as its primary: the in-sync replicas become equal, then this store takes puts. It
    /// is the primary when this returns `Ok`, and nothing was acknowledged under the epoch before.
    ///
    /// # Errors
    /// Whose fault it was. The epoch may be begun again, without that replica under a newer one.
    pub async fn lead<P: Peer>(
        &self,
        shard: ShardId,
        epoch: Epoch,
        gc_epoch: Epoch,
        peers: &[P],
    ) -> Result<(), LeadError> {
        let mut begun = self.begin_epoch(shard, epoch, gc_epoch).await.map_err(own)?;
        let mut rounds = 0;
        loop {
            let mut changed = false;
            for (number, peer) in peers.iter().enumerate() {
                let theirs = begun.segments.clone();
                let settled = peer.settle(shard, epoch, theirs).await.map_err(of(number))?;
                let equalised = self.equalise(shard, epoch, &begun, &settled, peer).await;
                let of = |error: LeadError| LeadError { peer: error.peer.map(|_| number), ..error };
                if equalised.map_err(of)? {
                    changed = true;
                    begun = self.begun(shard, epoch).await.map_err(own)?;
                }
            }
            if !changed {
                break;
            }
            rounds += 1;
            if rounds == ROUNDS_MAX {
                let why = format!("the replicas of shard {shard} do not become equal");
                return Err(own(Error::new(Kind::NotReplicated, why)));
            }
        }
        for (number, peer) in peers.iter().enumerate() {
            let follow = peer.follow(shard, epoch, gc_epoch, begun.live);
            follow.await.map_err(of(number))?;
        }
        self.set_role(shard, Role::Primary { epoch, gc_epoch }).map_err(own)
    }

    /// The better copy of each segment goes where the other one is. Says whether this store got any.
    async fn equalise<P: Peer>(
        &self,
        shard: ShardId,
        epoch: Epoch,
        begun: &Begun,
        settled: &Settled,
        peer: &P,
    ) -> Result<bool, LeadError> {
        let mut changed = false;
        let pair = Pair { store: self, peer, shard, epoch };
        for &SegmentInfo { number, .. } in &settled.extra {
            pair.take(number, 0).await?;
            changed = true;
        }
        for &SegmentInfo { number, .. } in &settled.missing {
            pair.give(number, 0).await?;
        }
        for their in &settled.differing {
            let our = begun.segments.iter().find(|info| info.number == their.number);
            changed |= pair.join(our.expect("it is one of ours"), their).await?;
        }
        Ok(changed)
    }

    /// Brings up a replica that is not in sync, while puts go on. Before the call it is in the audience of
    /// the replicator, which keeps the ops back until `compare` has answered. After `Ok` it has all that
    /// was acknowledged, and may become in sync under the next epoch.
    ///
    /// # Errors
    /// Whose fault it was; it may be tried again.
    pub async fn bring_up<P: Peer>(&self, shard: ShardId, peer: &P) -> Result<(), LeadError> {
        let snapshot = self.snapshot(shard).await.map_err(own)?;
        let epoch = snapshot.epoch;
        let plan = peer.compare(shard, snapshot).await.map_err(of(0))?;
        for fetch in plan.fetch {
            self.send_segment(shard, epoch, fetch, peer).await?;
        }
        let mut attempts = 0;
        loop {
            match peer.caught_up(shard, epoch).await {
                // It has not heard yet of a segment that was freed.
                Err(error) if error.kind() == Kind::Invalid && attempts < FETCHES_MAX => {
                    attempts += 1;
                    crate::clock::sleep(FETCH_WAIT).await;
                }
                done => return done.map_err(of(0)),
            }
        }
    }

    async fn send_segment<P: Peer>(
        &self,
        shard: ShardId,
        epoch: Epoch,
        Fetch { number, mut have }: Fetch,
        peer: &P,
    ) -> Result<(), LeadError> {
        let mut attempts = 0;
        loop {
            // A damaged one goes as it is: who has nothing had better have what is left, and knows what is not.
            let copy = match self.copy_segment(shard, number, have).await {
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                read => read.map_err(own)?,
            };
            if copy.damaged && attempts == 0 {
                tracing::error!(%shard, %number, "a replica gets a damaged segment: nobody better is known");
                self.verify_segment(shard, number).await.map_err(own)?;
            }
            match peer.install_segment(shard, epoch, number, copy).await {
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) if error.kind() == Kind::Damaged && have > 0 => have = 0,
                // The stream is ahead of what is acknowledged.
                Err(error) if error.kind() == Kind::Invalid && attempts < FETCHES_MAX => {
                    attempts += 1;
                    crate::clock::sleep(FETCH_WAIT).await;
                }
                done => return done.map_err(of(0)),
            }
        }
    }
}

/// A primary that begins an epoch, and one of its replicas.
struct Pair<'a, V: Volume, P> {
    store: &'a ChunkStore<V>,
    peer: &'a P,
    shard: ShardId,
    epoch: Epoch,
}

impl<V: Volume, P: Peer> Pair<'_, V, P> {
    /// The replica's copy comes here, of which the first bytes are here. Says whether it is damaged.
    async fn take(&self, number: SegmentNumber, mut have: u32) -> Result<bool, LeadError> {
        loop {
            let copy = self.peer.copy_segment(self.shard, number, have).await.map_err(of(0))?;
            let damaged = copy.damaged;
            match self.store.install_segment(self.shard, self.epoch, number, copy).await {
                Err(error) if error.kind() == Kind::Damaged && have > 0 => have = 0,
                done => return done.map(|()| damaged).map_err(own),
            }
        }
    }

    /// Our copy goes to the replica, which has the first bytes of it. Says whether it is damaged.
    async fn give(&self, number: SegmentNumber, mut have: u32) -> Result<bool, LeadError> {
        loop {
            let copy = self.store.copy_segment(self.shard, number, have).await.map_err(own)?;
            let damaged = copy.damaged;
            match self.peer.install_segment(self.shard, self.epoch, number, copy).await {
                Err(error) if error.kind() == Kind::Damaged && have > 0 => have = 0,
                done => return done.map(|()| damaged).map_err(of(0)),
            }
        }
    }

    /// Two copies become the better of them. A primary wrote the bytes of both, so one that ends earlier has
    /// lost its end, to damage or with its node; what the other one has more is acknowledged, or garbage for the
    /// sweep. A damaged copy that is taken over keeps what is good where it goes, so it goes back, too. Says whether
    /// our copy is another one now.
    async fn join(&self, our: &SegmentInfo, their: &SegmentInfo) -> Result<bool, LeadError> {
        let number = our.number;
        let reach = |info: &SegmentInfo| (info.sealed, info.len);
        let theirs_counts = match reach(their).cmp(&reach(our)) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => {
                self.store.copy_segment(self.shard, number, 0).await.map_err(own)?.damaged
            }
        };
        if theirs_counts {
            tracing::warn!(shard = %self.shard, %number, "another replica has more of a segment");
            if self.take(number, our.beginning_of(their)).await? {
                self.give(number, 0).await?;
            }
            return Ok(true);
        }
        let damaged = self.give(number, their.beginning_of(our)).await?;
        if damaged {
            self.take(number, 0).await?;
        }
        Ok(damaged)
    }
}
