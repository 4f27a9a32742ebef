use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, SnapshotResponse, TransferLeaderRequest, VoteRequest};
use openraft::type_config::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, Membership, Vote};

use super::checks::check;
use super::inbox::Inbox;
use super::message::{CheckpointId, PART_BYTES};
use super::*;
use crate::checkpoint;
use crate::group::Types;
use crate::store::State;

fn id(term: u64, node: u64, index: u64) -> LogIdOf<Types> {
    let leader = openraft::impls::leader_id_adv::LeaderId::new(term, node);
    LogIdOf::<Types>::new(leader.to_committed(), index)
}

fn entry(id: LogIdOf<Types>) -> EntryOf<Types> {
    openraft::Entry { log_id: id, payload: EntryPayload::Blank }
}

fn elected(term: u64, node: u64) -> VoteOf<Types> {
    Vote::new_committed(term, node)
}

fn append(
    vote: VoteOf<Types>,
    prev: Option<LogIdOf<Types>>,
    entries: &[LogIdOf<Types>],
) -> RaftMessage {
    let entries = entries.iter().map(|id| entry(*id)).collect();
    RaftMessage::Append(AppendEntriesRequest {
        vote,
        prev_log_id: prev,
        entries,
        leader_commit: prev,
    })
}

fn checkpoint_id(last: Option<LogIdOf<Types>>, bytes: &[u8]) -> CheckpointId {
    let sum = bytes[bytes.len() - 12..].first_chunk().unwrap();
    CheckpointId { last, size: bytes.len() as u64, sum: u32::from_le_bytes(*sum) }
}

#[test]
fn messages_and_answers_come_back_as_they_were() {
    let prev = Some(id(1, 1, 4));
    let vote = VoteRequest::new(Vote::new(3, 2), prev);
    let meta = SnapshotMetaOf::<Types> { last_log_id: prev, last_membership: Default::default() };
    let checkpoint = CheckpointId { last: prev, size: 77, sum: 5 };
    let bytes = Bytes::from_static(b"part");
    let messages = [
        append(elected(2, 1), prev, &[id(2, 1, 5), id(2, 1, 6)]),
        RaftMessage::Vote(vote.clone()),
        RaftMessage::PreVote(vote),
        RaftMessage::TransferLeader(TransferLeaderRequest::new(elected(2, 1), 3, prev)),
        RaftMessage::CheckpointBegin { vote: elected(2, 1), meta, id: checkpoint.clone() },
        RaftMessage::CheckpointPart {
            vote: elected(2, 1),
            id: checkpoint.clone(),
            offset: 9,
            crc: 1,
            bytes,
        },
        RaftMessage::CheckpointEnd { vote: elected(2, 1), id: checkpoint },
    ];
    for message in messages {
        let encoded = message.encode().unwrap();
        let again = RaftMessage::decode(&encoded).unwrap();
        assert_eq!(format!("{again:?}"), format!("{message:?}"));
        // Cut anywhere it is no message, and neither is it with something behind it.
        for end in 0..encoded.len() {
            assert!(RaftMessage::decode(&encoded[..end]).is_err(), "{} at {end}", message.name());
        }
        let longer = [&encoded[..], b"x"].concat();
        assert!(matches!(RaftMessage::decode(&longer), Err(MessageError::Malformed { .. })));
    }
    let answer = RaftAnswer::Checkpoint(SnapshotResponse::new(elected(2, 1)));
    assert_eq!(RaftAnswer::decode(&answer.encode().unwrap()).unwrap(), answer);
}

#[test]
fn other_versions_and_sizes_are_refused_by_name() {
    let mut bytes = RaftAnswer::CheckpointAt { offset: 1 }.encode().unwrap().to_vec();
    bytes[0] = 2;
    let error = RaftAnswer::decode(&bytes).unwrap_err();
    assert_eq!(error, MessageError::Version { found: 2 });
    assert!(error.to_string().contains("version 2") && error.to_string().contains("release"));
    assert_eq!(RaftMessage::decode(&[]).unwrap_err(), MessageError::Empty);
    let size = MESSAGE_MAX + 1;
    assert_eq!(RaftMessage::decode(&vec![1; size]).unwrap_err(), MessageError::TooLarge { size });
    let large = RaftAnswer::Refused("x".repeat(MESSAGE_MAX));
    assert!(matches!(large.encode(), Err(MessageError::TooLarge { .. })));
}

#[test]
fn garbage_never_becomes_a_panic() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let good = append(elected(2, 1), Some(id(1, 1, 4)), &[id(2, 1, 5)]).encode().unwrap();
    for _ in 0..20_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut bytes = good.to_vec();
        for turn in 0..1 + state % 3 {
            let at = (state >> (8 * turn)) as usize % bytes.len();
            bytes[at] = (state >> (16 + turn)) as u8;
        }
        if let Ok(message) = RaftMessage::decode(&bytes) {
            let _ = check(3, 1, &message);
            let _ = check(3, 2, &message);
        }
    }
}

#[test]
fn what_no_honest_replica_sends_is_refused() {
    let prev = Some(id(1, 1, 4));
    let next = [id(2, 1, 5), id(2, 1, 6)];
    assert_eq!(check(3, 1, &append(elected(2, 1), prev, &next)), Ok(()));
    assert_eq!(check(3, 1, &append(elected(2, 1), None, &[])), Ok(()));
    assert_eq!(check(3, 1, &append(elected(2, 1), None, &[id(0, 1, 0)])), Ok(()));
    let meta =
        |last| SnapshotMetaOf::<Types> { last_log_id: last, last_membership: Default::default() };
    let checkpoint = |last| CheckpointId { last, size: 1, sum: 1 };
    let mut nobody = entry(id(2, 1, 5));
    nobody.payload = EntryPayload::Membership(Membership::default());
    let empty = AppendEntriesRequest {
        vote: elected(2, 1),
        prev_log_id: prev,
        entries: vec![nobody],
        leader_commit: None,
    };
    let later = Some(id(9, 1, 4));
    let cases: &[(u64, RaftMessage, &str)] = &[
        (3, append(elected(2, 3), prev, &next), "this one's id"),
        (2, append(elected(2, 1), prev, &next), "in the name"),
        (1, append(Vote::new(2, 1), prev, &next), "not been elected"),
        (1, append(elected(2, 1), prev, &[id(2, 1, 6)]), "follows"),
        (1, append(elected(2, 1), prev, &[id(2, 1, 5), id(1, 1, 6)]), "follows"),
        (1, append(elected(2, 1), None, &[id(2, 1, 1)]), "follows"),
        (1, append(elected(2, 1), Some(id(1, 1, u64::MAX)), &[id(2, 1, 0)]), "follows"),
        (1, append(elected(2, 1), prev, &[id(3, 1, 5)]), "later leader"),
        (1, append(elected(2, 1), later, &[]), "later leader"),
        (1, RaftMessage::Append(empty), "impossible membership"),
        (2, RaftMessage::Vote(VoteRequest::new(Vote::new(2, 1), None)), "asks for votes"),
        (1, RaftMessage::Vote(VoteRequest::new(elected(2, 1), None)), "has been elected"),
        (1, RaftMessage::PreVote(VoteRequest::new(Vote::new(2, 1), later)), "later leader"),
        (
            1,
            RaftMessage::TransferLeader(TransferLeaderRequest::new(elected(2, 1), 3, later)),
            "later leader",
        ),
        (
            1,
            RaftMessage::CheckpointBegin {
                vote: elected(2, 1),
                meta: meta(later),
                id: checkpoint(later),
            },
            "later leader",
        ),
        (
            2,
            RaftMessage::CheckpointEnd { vote: elected(2, 1), id: checkpoint(prev) },
            "in the name",
        ),
    ];
    for (from, message, expected) in cases {
        let why = check(3, *from, message).unwrap_err();
        assert!(why.contains(expected), "{}: {why}", message.name());
    }
}

/// A checkpoint file of more than two parts, and what it says of itself.
fn image() -> (SnapshotMetaOf<Types>, Vec<u8>) {
    let state = State {
        applied: Some(id(2, 1, 9)),
        membership: StoredMembershipOf::<Types>::new(Some(id(0, 1, 0)), Membership::default()),
        ..State::default()
    };
    let meta = SnapshotMetaOf::<Types> {
        last_log_id: state.applied,
        last_membership: state.membership.clone(),
    };
    let records = vec![(vec![9u8], vec![7u8; PART_BYTES * 2])];
    let payloads = [postcard::to_stdvec(&state).unwrap(), postcard::to_stdvec(&records).unwrap()];
    (meta, checkpoint::image(&payloads))
}

fn refusal(answer: RaftAnswer) -> String {
    match answer {
        RaftAnswer::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

async fn not_installed(_: inbox::Whole) -> RaftAnswer {
    panic!("it is not whole")
}

#[tokio::test]
async fn parts_are_taken_in_order_and_nothing_is_used_before_all_are_right() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = Inbox::new(dir.path());
    let (meta, bytes) = image();
    let id = checkpoint_id(meta.last_log_id, &bytes);
    let part = |at: usize| Bytes::copy_from_slice(&bytes[at..(at + PART_BYTES).min(bytes.len())]);
    let send = |at: usize| {
        let bytes = part(at);
        let crc = checkpoint::crc(&bytes);
        inbox.part(&id, at as u64, crc, bytes)
    };
    assert!(refusal(send(0).await).contains("not begun"));
    let at = |offset: usize| RaftAnswer::CheckpointAt { offset: offset as u64 };
    assert_eq!(inbox.begin(meta.clone(), id.clone()).await, at(0));
    assert_eq!(send(PART_BYTES).await, at(0), "a later part before the first");
    assert_eq!(send(0).await, at(PART_BYTES));
    assert_eq!(send(0).await, at(PART_BYTES), "the same part twice");
    let wrong = inbox.part(&id, PART_BYTES as u64, 1, part(PART_BYTES)).await;
    assert!(refusal(wrong).contains("checksum"));
    let huge = Bytes::from(vec![0; PART_BYTES + 1]);
    let crc = checkpoint::crc(&huge);
    assert!(refusal(inbox.part(&id, PART_BYTES as u64, crc, huge).await).contains("cannot be"));
    let empty = inbox.part(&id, PART_BYTES as u64, checkpoint::crc(&[]), Bytes::new()).await;
    assert!(refusal(empty).contains("cannot be"));
    // The connection breaks: it goes on where it was; and the end does not come early.
    assert_eq!(inbox.begin(meta.clone(), id.clone()).await, at(PART_BYTES));
    assert_eq!(inbox.end(&id, not_installed).await, at(PART_BYTES));
    assert_eq!(send(PART_BYTES).await, at(PART_BYTES * 2));
    assert_eq!(send(PART_BYTES * 2).await, at(bytes.len()));
    let done = RaftAnswer::Checkpoint(SnapshotResponse::new(elected(2, 1)));
    let answer = inbox
        .end(&id, async |whole| {
            assert_eq!(std::fs::read(&whole.snapshot).unwrap(), bytes);
            assert_eq!(whole.meta, meta);
            RaftAnswer::Checkpoint(SnapshotResponse::new(elected(2, 1)))
        })
        .await;
    assert_eq!(answer, done);
    assert!(refusal(inbox.end(&id, not_installed).await).contains("not begun"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_checkpoint_that_was_altered_or_is_another_is_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = Inbox::new(dir.path());
    let (meta, bytes) = image();
    let id = checkpoint_id(meta.last_log_id, &bytes);
    let mut foreign = meta.clone();
    foreign.last_membership = StoredMembershipOf::<Types>::new(None, Membership::default());
    let mut altered = bytes.clone();
    altered[5000] ^= 1;
    for (meta, bytes, expected) in [(&foreign, &bytes, "announced"), (&meta, &altered, "checksum")]
    {
        inbox.begin(meta.clone(), id.clone()).await;
        for at in (0..bytes.len()).step_by(PART_BYTES) {
            let part = Bytes::copy_from_slice(&bytes[at..(at + PART_BYTES).min(bytes.len())]);
            let crc = checkpoint::crc(&part);
            inbox.part(&id, at as u64, crc, part).await;
        }
        let why = refusal(inbox.end(&id, not_installed).await);
        assert!(why.contains(expected), "{why}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    let impossible = CheckpointId { size: u64::MAX, ..id.clone() };
    assert!(refusal(inbox.begin(meta.clone(), impossible).await).contains("cannot be"));
    let other = CheckpointId { last: None, ..id };
    assert!(refusal(inbox.begin(meta, other).await).contains("cannot be"));
}
