//! Clients: names that are made once each, and registers that are written and read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftmeta_types::command::{Create, XattrMode};
use raftmeta_types::{Command, Envelope, FileKind, Ino, MetaResult, Reply, SessionId, Time};

use super::executor;
use super::world::World;
use crate::group::{Group, GroupError};
use crate::read;

pub(super) const SESSION: SessionId = SessionId(7);
/// Between two operations.
const PAUSE_MAX: Duration = Duration::from_millis(300);
/// A client asks again after this time.
const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn name(client: usize, number: u64) -> String {
    format!("c{client}-{number:06}")
}

fn register_name(register: usize) -> Bytes {
    format!("user.r{register}").into()
}

fn create(name: &str) -> Command {
    Command::Create(Create {
        parent: Ino::ROOT,
        name: Bytes::copy_from_slice(name.as_bytes()),
        kind: FileKind::Regular,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
        exclusive: true,
        open: false,
    })
}

/// One client, until it is calm.
pub(super) async fn work(world: Arc<World>, client: usize) {
    let mut calm = world.calm.subscribe();
    let registers = world.registers.lock().len() as u64;
    let (mut seq, mut made) = (0, 0);
    while !*calm.borrow_and_update() {
        executor::sleep(executor::roll(|dice| dice.up_to(PAUSE_MAX))).await;
        let register = executor::roll(|dice| dice.below(registers)) as usize;
        match executor::roll(|dice| dice.below(10)) {
            0..=2 => {
                seq += 1;
                made += 1;
                let name = name(client, made);
                let answer = run(&world, client, seq, create(&name)).await;
                assert!(matches!(answer, Ok(Reply::Created { .. })), "{name}: {answer:?}");
                world.named.lock()[client] = made;
            }
            3..=5 => {
                seq += 1;
                let value = (client as u64 + 1) << 32 | seq;
                let set = Command::SetXattr {
                    ino: Ino::ROOT,
                    name: register_name(register),
                    value: Bytes::copy_from_slice(&value.to_be_bytes()),
                    mode: XattrMode::Set,
                };
                let begun = executor::now();
                world.registers.lock()[register].writes.insert(value, (begun, None));
                let answer = run(&world, client, seq, set).await;
                assert!(answer.is_ok(), "register {register}: {answer:?}");
                world.registers.lock()[register]
                    .writes
                    .insert(value, (begun, Some(executor::now())));
            }
            _ => look(&world, register).await,
        }
    }
}

/// Has somebody read a register and the last name of some client, if there is one who may.
async fn look(world: &Arc<World>, register: usize) {
    let begun = executor::now();
    let known = world.named.lock().clone();
    let running = world.running();
    let ids: Vec<u64> = running.iter().map(|(id, _, _)| *id).collect();
    drop(running);
    // Everybody is asked: who must not answer is the one that matters.
    for id in ids {
        let known = known.clone();
        let seen = world.at(id, move |group| async move { seen(&group, register, &known).await });
        let Some(Some(value)) = seen.await else { continue };
        let ended = executor::now();
        world.registers.lock()[register].reads.push((begun, ended, value));
        world.tally.lock().read += 1;
        executor::note(format_args!("{id} reads {value:x} of register {register}"));
    }
}

/// What a replica says of a register, if it has a lease. It is slow between its steps.
async fn seen(group: &Group, register: usize, known: &[u64]) -> Option<u64> {
    executor::sleep(executor::roll(|dice| dice.up_to(Duration::from_millis(2)))).await;
    if !group.lease_valid() {
        return None;
    }
    executor::sleep(executor::roll(|dice| dice.up_to(Duration::from_millis(2)))).await;
    let view = group.view();
    executor::sleep(executor::roll(|dice| dice.up_to(Duration::from_millis(2)))).await;
    for (client, last) in known.iter().enumerate().filter(|(_, last)| **last > 0) {
        let name = name(client, *last);
        let found = read::dentry(&view, Ino::ROOT, name.as_bytes()).expect("memory does not fail");
        assert!(found.is_some(), "a replica with a lease does not know {name}");
    }
    let value = read::xattr(&view, Ino::ROOT, &register_name(register));
    let value = value.expect("memory does not fail")?;
    Some(u64::from_be_bytes(value.try_into().expect("eight bytes")))
}

/// A command as a client runs it: the same number until somebody answers.
async fn run(world: &Arc<World>, slot: usize, seq: u64, command: Command) -> MetaResult<Reply> {
    let envelope =
        Envelope { session: SESSION, slot: slot as u16, seq, time: Time::default(), command };
    let mut hint = None;
    loop {
        let ids: Vec<u64> = world.running().into_iter().map(|(id, _, _)| id).collect();
        let Some(id) = hint.take().or_else(|| executor::roll(|dice| dice.pick(&ids))) else {
            executor::sleep(Duration::from_millis(100)).await;
            continue;
        };
        executor::sleep(world.delay()).await;
        let (again, durable) = (envelope.clone(), executor::roll(|dice| dice.one_in(2)));
        let propose = world.at(id, move |group| async move { group.propose(again, durable).await });
        let answer = within(PATIENCE, propose).await;
        executor::sleep(world.delay()).await;
        executor::note(format_args!("client {slot} hears of {seq} from {id}: {}", told(&answer)));
        match answer {
            Some(Some(Ok(answer))) => {
                world.tally.lock().acknowledged += 1;
                return answer;
            }
            Some(Some(Err(GroupError::NotLeader { leader } | GroupError::Unknown { leader }))) => {
                hint = leader.map(|(id, _)| id)
            }
            _ => {}
        }
        executor::sleep(executor::roll(|dice| dice.up_to(Duration::from_millis(200)))).await;
    }
}

fn told(answer: &Option<Option<Result<MetaResult<Reply>, GroupError>>>) -> String {
    match answer {
        Some(Some(Ok(_))) => "done".to_owned(),
        Some(Some(Err(error))) => error.to_string(),
        Some(None) => "it is dead".to_owned(),
        None => "nothing".to_owned(),
    }
}

/// `None`: it takes longer. It goes on, for its replica does not know that nobody waits.
pub(super) async fn within<T>(patience: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = executor::sleep(patience) => None,
    }
}
