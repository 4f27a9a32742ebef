//! How many 4 KiB reads and writes a second does one reactor serve over NVMe/TCP, and what does each cost it?
//!
//! Target and host are in this process: a volume in RAM, loopback, one reactor thread, the small host of the tests on
//! the main thread. CPU is the reactor's, so that the host's own cost does not count.
//!
//!     cargo run --release -p blockd --example nvmet_bench -- --time 5
#![allow(clippy::unwrap_used)] // The host is the tests'.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use blockd::config::Config;
use blockd::daemon::Daemon;
use blockd::nvmet;
use clap::Parser;

#[path = "../tests/nvmet/initiator.rs"]
mod initiator;

use initiator::{Host, Options, Queue, Who};

const NQN: &str = "nqn.2025-01.org.example:bench";
const HOST: &str = "nqn.2014-08.org.example:bench";
const VOLUME_BYTES: u64 = 256 << 20;

/// Measures the NVMe/TCP target over loopback.
#[derive(Debug, Parser)]
struct Arguments {
    /// Seconds for each row.
    #[arg(long, default_value_t = 3)]
    time: u64,
    /// Bytes of one command, a multiple of 4096 up to 1 MiB.
    #[arg(long, default_value_t = 4096)]
    bs: usize,
    /// With header and data digests.
    #[arg(long)]
    digests: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    anyhow::ensure!(
        arguments.bs.is_multiple_of(4096) && (4096..=1 << 20).contains(&arguments.bs),
        "--bs is a multiple of 4096 up to 1 MiB"
    );
    let address = start_target()?;
    let options = Options {
        header_digest: arguments.digests,
        data_digest: arguments.digests,
        ..Options::default()
    };
    let who = Who { depth: 128, flow: false, ..Who::new(NQN, HOST) };
    let host = Host::connect(address, &who, options)?;
    let mut queue = host.queue(address, &who, 1, options)?;
    let reactor = reactor_thread()?;
    for depth in [1, 32] {
        for write in [false, true] {
            measure(&mut queue, &arguments, depth, write, &reactor)?;
        }
    }
    Ok(())
}

fn start_target() -> anyhow::Result<SocketAddr> {
    let text = format!(
        "ipc_socket = '/unused'\nadmin_socket = '/unused'\n\
         [[device]]\npath = 'ram'\nengine = 'mem'\nsize = {}\ncreate = true\n\
         [[volume]]\nname = 'v'\nsize = {VOLUME_BYTES}\n\
         [nvmet]\nlisten = ['127.0.0.1:0']\ndiscovery = []\n\
         [[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\n",
        VOLUME_BYTES + (64 << 20)
    );
    let config = Config::parse(&text)?;
    let daemon = Arc::new(Daemon::start(&config)?);
    let target = daemon.nvmet().context("the configuration has [nvmet]")?;
    let nvmet = config.nvmet.as_ref().context("the configuration has [nvmet]")?;
    let listeners = nvmet::Listeners::bind(nvmet, target)?;
    let address = listeners.addresses(false)[0];
    std::thread::spawn(move || nvmet::serve(&listeners, &daemon));
    Ok(address)
}

/// The file with the CPU time of the reactor's thread.
fn reactor_thread() -> anyhow::Result<PathBuf> {
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if std::fs::read_to_string(path.join("comm"))?.trim() == "reactor-0" {
            return Ok(path.join("schedstat"));
        }
    }
    anyhow::bail!("no thread is named reactor-0")
}

fn cpu(thread: &PathBuf) -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string(thread)?;
    let nanoseconds = text.split_whitespace().next().context("schedstat is empty")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

fn measure(
    queue: &mut Queue,
    arguments: &Arguments,
    depth: usize,
    write: bool,
    reactor: &PathBuf,
) -> anyhow::Result<()> {
    let bytes = arguments.bs;
    let blocks = (bytes / 4096) as u16;
    let places = VOLUME_BYTES / bytes as u64;
    let data = vec![0x5a; bytes];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut submit = |queue: &mut Queue| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let lba = random % places * u64::from(blocks);
        if write {
            queue.submit(initiator::io(1, lba, blocks), &data, 0)
        } else {
            queue.submit(initiator::io(2, lba, blocks), &[], bytes)
        }
    };
    for _ in 0..depth {
        submit(queue)?;
    }
    let (start, cpu_before) = (Instant::now(), cpu(reactor)?);
    let mut count = 0_u64;
    while start.elapsed() < Duration::from_secs(arguments.time) {
        let done = queue.complete()?;
        anyhow::ensure!(done.status == 0, "status {:#x}", done.status);
        count += 1;
        submit(queue)?;
    }
    let (elapsed, used) = (start.elapsed(), cpu(reactor)?.saturating_sub(cpu_before));
    for _ in 0..depth {
        queue.complete()?;
    }
    let iops = count as f64 / elapsed.as_secs_f64();
    println!(
        "{:5} bs={bytes} qd={depth:2}: {iops:8.0} IOPS, {:7.1} MiB/s, {:5.2} µs of the reactor's CPU each, \
         {:3.0} % of a core",
        if write { "write" } else { "read" },
        iops * bytes as f64 / f64::from(1 << 20),
        used.as_secs_f64() * 1e6 / count as f64,
        used.as_secs_f64() / elapsed.as_secs_f64() * 100.0
    );
    Ok(())
}
