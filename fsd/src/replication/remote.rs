//! Another node's store, as the primary of a shard sees it.

use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::nodes::Target;
use raftmeta_types::{Epoch, ShardId};

use super::courier::Courier;
use super::host::Wire;
use super::wire::{Ask, Told, decode, encode};
use crate::chunks::{
    Error, Kind, LiveSum, Peer, Plan, SegmentCopy, SegmentInfo, SegmentNumber, Settled, Snapshot,
};
use crate::clock;

/// A comparison of a newcomer may drop many segments, an installation writes one.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// What an epoch begins with is waited for by those who write.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Remote {
    pub wire: Arc<dyn Wire>,
    pub target: Target,
    /// Keeps the ops back while the replica compares.
    pub courier: Arc<Courier>,
    /// Whether it is brought up beside what clients do, and not waited for.
    pub aside: bool,
}

/// Asks the store of a node.
pub(super) async fn ask(
    wire: &dyn Wire,
    target: &Target,
    ask: &Ask,
    within: Duration,
) -> Result<Told, Error> {
    let data = wire.tell(target, encode(ask)?, within).await?;
    match decode(&data)? {
        Told::Failed { kind, why } => Err(Error::new(kind, format!("{target}: {why}"))),
        told => Ok(told),
    }
}

fn unexpected<T>(target: &Target) -> Result<T, Error> {
    Err(Error::new(Kind::Invalid, format!("{target}: an answer to another question")))
}

impl Remote {
    async fn ask(&self, ask: Ask) -> Result<Told, Error> {
        let within = match &ask {
            Ask::Settle { .. } | Ask::Follow { .. } => BEGIN_WITHIN,
            Ask::Apply { .. }
            | Ask::Compare { .. }
            | Ask::CaughtUp { .. }
            | Ask::Segment { .. }
            | Ask::Record { .. }
            | Ask::Install { .. } => ANSWER_WITHIN,
        };
        self::ask(&*self.wire, &self.target, &ask, within).await
    }

    async fn done(&self, ask: Ask) -> Result<(), Error> {
        match self.ask(ask).await? {
            Told::Done => Ok(()),
            _ => unexpected(&self.target),
        }
    }
}

impl Peer for Remote {
    async fn settle(
        &self,
        shard: ShardId,
        epoch: Epoch,
        theirs: Vec<SegmentInfo>,
    ) -> Result<Settled, Error> {
        match self.ask(Ask::Settle { shard, epoch, theirs }).await? {
            Told::Settled(settled) => Ok(settled),
            _ => unexpected(&self.target),
        }
    }

    async fn follow(
        &self,
        shard: ShardId,
        epoch: Epoch,
        gc_epoch: Epoch,
        live: LiveSum,
    ) -> Result<(), Error> {
        self.done(Ask::Follow { shard, epoch, gc_epoch, live }).await
    }

    async fn compare(&self, shard: ShardId, theirs: Snapshot) -> Result<Plan, Error> {
        let (epoch, next) = (theirs.epoch, theirs.next);
        match self.ask(Ask::Compare { shard, theirs }).await? {
            Told::Plan(plan) => {
                self.courier.release(shard, self.target.node, epoch, next)?;
                Ok(plan)
            }
            _ => unexpected(&self.target),
        }
    }

    async fn caught_up(&self, shard: ShardId, epoch: Epoch) -> Result<(), Error> {
        self.done(Ask::CaughtUp { shard, epoch }).await
    }

    async fn copy_segment(
        &self,
        shard: ShardId,
        number: SegmentNumber,
        have: u32,
    ) -> Result<SegmentCopy, Error> {
        match self.ask(Ask::Segment { shard, number, have }).await? {
            Told::Segment(copy) => {
                let bytes = copy.content.len();
                self.courier.note_fetched(bytes);
                tracing::debug!(%shard, %number, from = %self.target.node, bytes, have, "a segment is fetched");
                Ok(copy)
            }
            _ => unexpected(&self.target),
        }
    }

    async fn install_segment(
        &self,
        shard: ShardId,
        epoch: Epoch,
        number: SegmentNumber,
        copy: SegmentCopy,
    ) -> Result<(), Error> {
        let (bytes, have) = (copy.content.len(), copy.skipped);
        let mut sent = self.courier.note_sent(bytes);
        let since = clock::now();
        let done = self.done(Ask::Install { shard, epoch, number, copy }).await;
        sent.taken = done.is_ok();
        drop(sent);
        let (node, taken) = (self.target.node, done.is_ok());
        tracing::debug!(%shard, %number, %epoch, to = %node, bytes, have, taken, "a segment is sent");
        if self.aside && done.is_ok() {
            self.courier.give_way(clock::elapsed(since)).await;
        }
        done
    }
}
