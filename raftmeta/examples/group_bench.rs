//! How many commands a second does a group of one voter take, durable and not, and how near is that to
//! what the file system can do?
//!
//! `cargo run --release -p raftmeta --example group_bench [DIRECTORY] [SECONDS]`
//!
//! The rival is a loop that overwrites a preallocated file in 512-byte steps with fdatasync after each: the
//! floor of any log. It runs before and after, in the same directory.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raftmeta::{Group, GroupConfig, read};
use raftmeta_types::cluster::{ClusterInfo, SessionInfo};
use raftmeta_types::command::{AttrChange, Create, NewExtent, Write};
use raftmeta_types::{Command, Envelope, Epoch, ExtentData, FileKind, Ino, Reply, SessionId, Time};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Write and fdatasync on zero-filled, preallocated space: syncs per second.
fn floor(dir: &Path, time: Duration) -> Outcome<f64> {
    let path = dir.join("floor");
    let file = std::fs::File::create(&path)?;
    let size = 16 << 20;
    file.write_all_at(&vec![0; size as usize], 0)?;
    file.sync_all()?;
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < time {
        file.write_all_at(&[7; 512], count * 512 % size)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}

fn envelope(slot: u16, seq: u64, session: SessionId, command: Command) -> Envelope {
    Envelope { session, slot, seq, time: Time::default(), command }
}

async fn setup(dir: PathBuf) -> Outcome<Group> {
    let config = GroupConfig {
        dir,
        node_id: 1,
        bootstrap: true,
        checkpoint_entries: 100_000,
        address: String::new(),
        transport: None,
    };
    let group = Group::open(config).await?;
    let cluster = ClusterInfo {
        uuid: uuid::Uuid::from_u128(1),
        name: "bench".into(),
        site: 1,
        shard_count: 16,
        created: Time::default(),
    };
    let init = Command::InitCluster { cluster, sealed_ca: Bytes::new() };
    group.propose(envelope(0, 0, SessionId::SERVER, init), true).await??;
    let info = SessionInfo {
        session: SessionId(1),
        client: "bench".into(),
        identity: "uid=0".into(),
        opened: Time::default(),
        secret: [0; 16],
    };
    let open = Command::OpenSession(info);
    group.propose(envelope(0, 0, SessionId::SERVER, open), true).await??;
    Ok(group)
}

fn create(name: String) -> Command {
    Command::Create(Create {
        parent: Ino::ROOT,
        name: name.into(),
        kind: FileKind::Regular,
        mode: 0o644,
        umask: 0o022,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
        exclusive: true,
        open: false,
    })
}

fn write(ino: Ino, offset: u64) -> Command {
    let data = ExtentData::Inline(Bytes::from(vec![7; 4096]));
    let extents = vec![NewExtent { offset, len: 4096, data, receipt: Epoch(0) }];
    Command::Write(Write { ino, extents, change: AttrChange::default() })
}

struct Round {
    proposers: u16,
    durable: bool,
    writes: bool,
}

async fn round(group: &Group, round: &Round, seq: &Arc<AtomicU64>, time: Duration) -> Outcome<f64> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for slot in 0..round.proposers {
        let (group, stop, seq) = (group.clone(), Arc::clone(&stop), Arc::clone(seq));
        let (durable, writes) = (round.durable, round.writes);
        tasks.push(tokio::spawn(async move {
            let next = || seq.fetch_add(1, Ordering::Relaxed);
            let session = SessionId(1);
            let number = next();
            let made = envelope(slot, number, session, create(format!("f{number}")));
            let Ok(Ok(Reply::Created { inode, .. })) = group.propose(made, false).await else {
                return Err("create failed");
            };
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let number = next();
                let command = match writes {
                    true => write(inode.ino, count % 64 * 4096),
                    false => create(format!("f{number}")),
                };
                let answer = group.propose(envelope(slot, number, session, command), durable).await;
                if !matches!(answer, Ok(Ok(_))) {
                    return Err("a proposal failed");
                }
                count += 1;
            }
            Ok(count)
        }));
    }
    let start = Instant::now();
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

fn views(group: &Group, time: Duration) -> Outcome<f64> {
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < time {
        let found = read::lookup(&group.view(), Ino::ROOT, b"f1")?;
        std::hint::black_box(found);
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let base = args.next().unwrap_or_else(|| ".".to_owned());
    let seconds = args.next().map_or(Ok(2.0), |text| text.parse::<f64>())?;
    let time = Duration::from_secs_f64(seconds);
    let dir = tempfile::tempdir_in(base)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let before = floor(dir.path(), time)?;
    println!("write + fdatasync            {before:8.0} /s  {:7.1} us", 1e6 / before);
    let opening = Instant::now();
    let group = runtime.block_on(setup(dir.path().join("group")))?;
    println!("opened in {:.0} ms", opening.elapsed().as_secs_f64() * 1e3);
    let seq = Arc::new(AtomicU64::new(1));
    for writes in [false, true] {
        for durable in [true, false] {
            for proposers in [1, 4, 16] {
                let what = Round { proposers, durable, writes };
                let rate = runtime.block_on(round(&group, &what, &seq, time))?;
                println!(
                    "{} {:11} {proposers:2} proposers {rate:8.0} /s  {:7.1} us each  {:5.2} of the floor",
                    if writes { "4 KiB write" } else { "create     " },
                    if durable { "durable" } else { "not durable" },
                    1e6 * f64::from(proposers) / rate,
                    rate / before,
                );
            }
        }
    }
    let rate = views(&group, time)?;
    println!("view + lookup                {rate:8.0} /s  {:7.1} us", 1e6 / rate);
    let after = floor(dir.path(), time)?;
    println!("write + fdatasync            {after:8.0} /s  {:7.1} us", 1e6 / after);
    runtime.block_on(group.shutdown())?;
    Ok(())
}
