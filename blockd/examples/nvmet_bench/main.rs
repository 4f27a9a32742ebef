//! How many 4 KiB reads and writes a second does one reactor serve over NVMe/TCP, and what does each cost it?
//!
//! Target and host are in this process: a volume in RAM, loopback, one reactor thread, and on the main thread a host that
//! polls (`host`), connected by the small host of the tests. CPU is the reactor's, so that the host's own cost does not count. With `--address` the same host measures
//! another target, such as SPDK's; `--pid` is then the process whose CPU counts.
//!
//!     cargo run --release -p blockd --example nvmet_bench -- --time 5
#![allow(clippy::unwrap_used, reason = "its host is that of the tests")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use blockd::config::Config;
use blockd::daemon::Daemon;
use blockd::nvmet;
use clap::Parser;

mod host;
#[path = "../../tests/nvmet/initiator.rs"]
mod initiator;

use host::{Flow, Shape};
use initiator::{Host, Options, Who};

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
    /// One after the other, not at random.
    #[arg(long)]
    sequential: bool,
    /// With header and data digests.
    #[arg(long)]
    digests: bool,
    /// Another target, which is served already; its namespace 1 is written to.
    #[arg(long, requires = "nqn")]
    address: Option<SocketAddr>,
    /// Name of its subsystem.
    #[arg(long)]
    nqn: Option<String>,
    /// Its process.
    #[arg(long)]
    pid: Option<u32>,
    /// Rows of a table in Markdown.
    #[arg(long)]
    markdown: bool,
}

/// Namespace 1.
struct Disk {
    bytes: u64,
    block_bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    anyhow::ensure!(
        arguments.bs.is_multiple_of(4096) && (4096..=1 << 20).contains(&arguments.bs),
        "--bs is a multiple of 4096 up to 1 MiB"
    );
    let (address, nqn, cpu) = match (arguments.address, &arguments.nqn) {
        (Some(address), Some(nqn)) => (address, nqn.as_str(), arguments.pid.map(Cpu::Process)),
        _ => {
            let address = start_target()?;
            (address, NQN, Some(Cpu::Thread(reactor_thread()?)))
        }
    };
    let options = Options {
        header_digest: arguments.digests,
        data_digest: arguments.digests,
        ..Options::default()
    };
    let who = Who { depth: 128, flow: false, ..Who::new(nqn, HOST) };
    let mut host = Host::connect(address, &who, options)?;
    let disk = identify(&mut host)?;
    let mut flow = Flow::new(host.queue(address, &who, 1, options)?, options)?;
    for depth in [1, 32] {
        for write in [false, true] {
            measure(&mut flow, &arguments, &disk, depth, write, cpu.as_ref())?;
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

/// Whose CPU time counts.
enum Cpu {
    /// The file that has a thread's.
    Thread(PathBuf),
    Process(u32),
}

impl Cpu {
    fn used(&self) -> anyhow::Result<Duration> {
        let of = |file: &PathBuf| -> anyhow::Result<Duration> {
            let text = std::fs::read_to_string(file)?;
            let nanoseconds = text.split_whitespace().next().context("schedstat is empty")?;
            Ok(Duration::from_nanos(nanoseconds.parse()?))
        };
        match self {
            Cpu::Thread(file) => of(file),
            Cpu::Process(pid) => {
                let mut sum = Duration::ZERO;
                for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                    sum += of(&task?.path().join("schedstat"))?;
                }
                Ok(sum)
            }
        }
    }
}

fn identify(host: &mut Host) -> anyhow::Result<Disk> {
    let done = host.admin.call(initiator::admin(6, 1, 0, 0), &[], 4096)?;
    anyhow::ensure!(done.status == 0, "Identify of namespace 1: status {:#x}", done.status);
    let blocks = u64::from_le_bytes(done.data[..8].try_into()?);
    let format = usize::from(done.data[26] & 0xf);
    let block_bytes = 1 << done.data[128 + 4 * format + 2];
    Ok(Disk { bytes: blocks * block_bytes, block_bytes })
}

fn measure(
    flow: &mut Flow,
    arguments: &Arguments,
    disk: &Disk,
    depth: u16,
    write: bool,
    cpu: Option<&Cpu>,
) -> anyhow::Result<()> {
    let bytes = arguments.bs;
    let blocks = (bytes as u64 / disk.block_bytes) as u16;
    let places = disk.bytes / bytes as u64;
    anyhow::ensure!(places > 0, "the namespace is smaller than --bs");
    flow.shape(Shape { bytes, blocks, write });
    let mut place = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        if arguments.sequential {
            place = (place + 1) % places;
        } else {
            place ^= place << 13;
            place ^= place >> 7;
            place ^= place << 17;
        }
        place % places * u64::from(blocks)
    };
    for id in 0..depth {
        flow.submit(id, next());
    }
    let used = || cpu.map(Cpu::used).transpose();
    let (start, cpu_before) = (Instant::now(), used()?);
    let time = Duration::from_secs(arguments.time);
    let mut count = 0_u64;
    let mut ended = Vec::with_capacity(depth.into());
    while start.elapsed() < time {
        flow.turn(&mut ended)?;
        for id in ended.drain(..) {
            count += 1;
            flow.submit(id, next());
        }
    }
    let (elapsed, cpu_after) = (start.elapsed(), used()?);
    let mut left = usize::from(depth);
    while left > 0 {
        flow.turn(&mut ended)?;
        left -= ended.len();
        ended.clear();
    }
    let used = cpu_after.zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    report(arguments, depth, write, count, elapsed, used);
    Ok(())
}

fn report(
    arguments: &Arguments,
    depth: u16,
    write: bool,
    count: u64,
    elapsed: Duration,
    used: Option<Duration>,
) {
    let bytes = arguments.bs;
    let iops = count as f64 / elapsed.as_secs_f64();
    let mib = iops * bytes as f64 / f64::from(1 << 20);
    let name = match (arguments.sequential, write) {
        (true, false) => "read",
        (true, true) => "write",
        (false, false) => "randread",
        (false, true) => "randwrite",
    };
    let each_us = used.map(|used| used.as_secs_f64() * 1e6 / count as f64);
    let of_a_core = used.map(|used| count as f64 / used.as_secs_f64());
    if arguments.markdown {
        let told = |value: Option<f64>, digits| {
            value.map_or("not measured".to_owned(), |v| format!("{v:.digits$}"))
        };
        let (each_us, of_a_core) = (told(each_us, 2), told(of_a_core, 0));
        println!("{name} | {bytes} | {depth} | {iops:.0} | {mib:.0} | {each_us} | {of_a_core} |");
        return;
    }
    print!("{name:9} bs={bytes} qd={depth:2}: {iops:8.0} IOPS, {mib:7.1} MiB/s");
    if let (Some(used), Some(each_us)) = (used, each_us) {
        let percent = used.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
        print!(", {each_us:5.2} µs of the target's CPU each, {percent:3.0} % of a core");
    }
    println!();
}
