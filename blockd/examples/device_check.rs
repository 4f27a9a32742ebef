//! Does a device keep what it is given? Random reads, writes, zeroes, deallocations and flushes against a model, through the
//! engine that blockd would use. All that the device holds is destroyed.
//!
//!     device_check verify DEVICE [--seconds 5] [--reset-ms 700]   random operations, the controller is reset meanwhile
//!     device_check speed DEVICE --rw randread --qd 32             operations a second
//!     device_check wipe DEVICE                                    zeros at the start, so that blockd makes a pool
//!     device_check call SOCKET METHOD [PARAMS]                    asks a running blockd, by its admin socket
//!
//! With `--until-gone` the device disappears meanwhile: every operation has to end, and the last ones with errors.
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use blockd::config::{Config, DeviceConfig};
use blockd::engine::{
    Action, BLOCK_BYTES, Completion, Device, Memory, Op, Queue, run, wait_readable,
};
use clap::{Parser, ValueEnum};

#[derive(Debug, Parser)]
enum Arguments {
    Verify(Verify),
    Speed(Speed),
    Wipe { device: PathBuf },
    Call { socket: PathBuf, method: String, params: Option<String> },
}

#[derive(Debug, clap::Args)]
struct Verify {
    device: PathBuf,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations in flight.
    #[arg(long, default_value_t = 16)]
    qd: usize,
    /// Bytes of the device that are used.
    #[arg(long, default_value_t = 32 << 20)]
    span: u64,
    /// Resets the controller this often.
    #[arg(long)]
    reset_ms: Option<u64>,
    /// Ends well if the device fails, badly if it does not.
    #[arg(long)]
    until_gone: bool,
    #[arg(long, default_value_t = 30_000)]
    timeout_ms: u64,
    /// Polled queues of the kernel's driver.
    #[arg(long)]
    polled: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    Randread,
    Randwrite,
}

#[derive(Debug, clap::Args)]
struct Speed {
    device: PathBuf,
    #[arg(long, value_enum, default_value = "randread")]
    rw: Pattern,
    #[arg(long, default_value_t = 4096)]
    bs: u64,
    #[arg(long, default_value_t = 1)]
    qd: usize,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Seconds are measured after this time.
    #[arg(long, default_value_t = 1)]
    warm_up: u64,
    /// Polled queues of the kernel's driver.
    #[arg(long)]
    polled: Option<bool>,
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match Arguments::parse() {
        Arguments::Verify(arguments) => verify(&arguments),
        Arguments::Speed(arguments) => speed(&arguments),
        Arguments::Wipe { device } => {
            let device = open(&device, 30_000, None)?;
            run(device.queue()?.as_mut(), Action::Zero { offset: 0, len: 1 << 20 })?;
            Ok(run(device.queue()?.as_mut(), Action::Flush)?)
        }
        Arguments::Call { socket, method, params } => call(&socket, &method, params.as_deref()),
    }
}

fn open(
    path: &std::path::Path,
    timeout_ms: u64,
    polled: Option<bool>,
) -> anyhow::Result<Arc<dyn Device>> {
    let path = path.display();
    let polled = polled.map_or(String::new(), |p| format!("polled = {p}\n"));
    let text = format!(
        "ipc_socket = '-'\nadmin_socket = '-'\n[[device]]\npath = '{path}'\ntimeout_ms = {timeout_ms}\n{polled}"
    );
    let config = Config::parse(&text)?;
    let device: &DeviceConfig = &config.device[0];
    Ok(blockd::daemon::open(device)?)
}

fn call(socket: &std::path::Path, method: &str, params: Option<&str>) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket).context("connecting to blockd")?;
    let params: serde_json::Value = serde_json::from_str(params.unwrap_or("null"))?;
    let line = serde_json::json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    writeln!(stream, "{line}")?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply)?;
    let reply: serde_json::Value = serde_json::from_str(&reply)?;
    ensure!(reply.get("error").is_none(), "{reply}");
    println!("{}", reply["result"]);
    Ok(())
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What a block holds: a generation, 0 for zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Exactly(u64),
    /// It was deallocated: zeros, or what it had.
    ZerosOr(u64),
    /// A write of it failed.
    Anything,
}

fn fill(block: u64, generation: u64) -> Vec<u8> {
    let mut random = Random(block << 24 ^ generation);
    let words = (0..BLOCK_BYTES / 8).map(|_| if generation == 0 { 0 } else { random.next() });
    words.flat_map(u64::to_le_bytes).collect()
}

struct Going {
    first: u64,
    blocks: u64,
    memory: Option<Memory>,
    what: What,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Read,
    Write(u64),
    Zero,
    Deallocate,
    Flush,
}

struct Model {
    queue: Box<dyn Queue>,
    random: Random,
    holds: Vec<Holds>,
    busy: Vec<bool>,
    going: Vec<Option<Going>>,
    generation: u64,
    completed: u64,
    failed: u64,
    slowest: Duration,
}

impl Model {
    fn begin(&mut self, tag: usize) {
        let total = self.holds.len() as u64;
        let blocks = 1 + self.random.below(if self.random.0.is_multiple_of(8) { 600 } else { 16 });
        let first = self.random.below(total - blocks);
        let range = first as usize..(first + blocks) as usize;
        let what = match self.random.below(20) {
            0 => What::Flush,
            1 => What::Zero,
            2 => What::Deallocate,
            3..=10 => What::Read,
            _ => {
                self.generation += 1;
                What::Write(self.generation)
            }
        };
        if what != What::Flush && self.busy[range.clone()].iter().any(|b| *b) {
            return;
        }
        let (offset, len) = (first * BLOCK_BYTES, blocks * BLOCK_BYTES);
        let mut memory = None;
        let action = match what {
            What::Flush => Action::Flush,
            What::Zero => Action::Zero { offset, len },
            What::Deallocate => Action::Deallocate { offset, len },
            What::Read => {
                let into = Memory::zeroed(len as usize);
                memory = Some(into.clone());
                Action::Read { offset, memory: into }
            }
            What::Write(generation) => {
                let bytes: Vec<u8> =
                    (first..first + blocks).flat_map(|b| fill(b, generation)).collect();
                Action::Write {
                    offset,
                    memory: Memory::copy_of(&bytes),
                    fua: generation.is_multiple_of(5),
                }
            }
        };
        if what != What::Flush {
            self.busy[range].fill(true);
        }
        self.going[tag] = Some(Going { first, blocks, memory, what, since: Instant::now() });
        self.queue.submit(Op { tag: tag as u64, action });
    }

    fn end(&mut self, completion: &Completion) -> anyhow::Result<()> {
        let going = self.going[completion.tag as usize].take().context("a tag came twice")?;
        self.slowest = self.slowest.max(going.since.elapsed());
        self.completed += 1;
        let range = going.first as usize..(going.first + going.blocks) as usize;
        if going.what == What::Flush {
            self.failed += u64::from(completion.result.is_err());
            return Ok(());
        }
        self.busy[range.clone()].fill(false);
        if completion.result.is_err() {
            self.failed += 1;
            if going.what != What::Read {
                self.holds[range].fill(Holds::Anything);
            }
            return Ok(());
        }
        match going.what {
            What::Write(generation) => self.holds[range].fill(Holds::Exactly(generation)),
            What::Zero => self.holds[range].fill(Holds::Exactly(0)),
            What::Deallocate => {
                for block in &mut self.holds[range] {
                    *block = match *block {
                        Holds::Exactly(g) | Holds::ZerosOr(g) => Holds::ZerosOr(g),
                        Holds::Anything => Holds::Anything,
                    };
                }
            }
            What::Read => {
                let bytes = going.memory.context("a read has its memory")?.to_vec();
                for (i, found) in bytes.chunks(BLOCK_BYTES as usize).enumerate() {
                    self.check(going.first + i as u64, found)?;
                }
            }
            What::Flush => {}
        }
        Ok(())
    }

    fn check(&mut self, block: u64, found: &[u8]) -> anyhow::Result<()> {
        let holds = &mut self.holds[block as usize];
        let fits = match *holds {
            Holds::Exactly(generation) => found == fill(block, generation),
            Holds::ZerosOr(generation) => {
                found == fill(block, 0) || found == fill(block, generation)
            }
            Holds::Anything => true,
        };
        ensure!(fits, "block {block} should hold {holds:?}");
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<Completion>) -> anyhow::Result<()> {
        // Polls for a moment, then sleeps, as a reactor does.
        for _ in 0..2000 {
            self.queue.poll(done);
            if !done.is_empty() {
                return Ok(());
            }
        }
        if let Some(fd) = self.queue.wait_fd() {
            wait_readable(&[fd], Some(1000))?;
        }
        Ok(())
    }
}

fn verify(arguments: &Verify) -> anyhow::Result<()> {
    let device = open(&arguments.device, arguments.timeout_ms, arguments.polled)?;
    let blocks = arguments.span.min(device.bytes()) / BLOCK_BYTES;
    ensure!(blocks > 2000, "the device is too small");
    let mut queue = device.queue()?;
    let mut at = 0;
    while at < blocks * BLOCK_BYTES {
        let len = (4 << 20).min(blocks * BLOCK_BYTES - at);
        run(queue.as_mut(), Action::Zero { offset: at, len })?;
        at += len;
    }
    let mut model = Model {
        queue,
        random: Random(arguments.seed),
        holds: vec![Holds::Exactly(0); blocks as usize],
        busy: vec![false; blocks as usize],
        going: (0..arguments.qd).map(|_| None).collect(),
        generation: 0,
        completed: 0,
        failed: 0,
        slowest: Duration::ZERO,
    };
    let over = Arc::new(AtomicBool::new(false));
    let resetter = arguments.reset_ms.map(|ms| {
        let (device, over) = (Arc::clone(&device), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut resets = 0;
            while !over.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(ms));
                device.reset().inspect_err(|e| eprintln!("reset: {e}")).map(|()| resets += 1)?;
            }
            std::io::Result::Ok(resets)
        })
    });
    let outcome = exercise(&mut model, arguments);
    over.store(true, Ordering::Release);
    let resets = match resetter.map(std::thread::JoinHandle::join) {
        None => 0,
        Some(Ok(resets)) => resets?,
        Some(Err(_)) => bail!("the resetting thread panicked"),
    };
    outcome?;
    let report = serde_json::json!({
        "operations": model.completed, "failed": model.failed, "resets": resets,
        "slowest_ms": model.slowest.as_millis(), "facts": device.facts(),
    });
    println!("{report}");
    ensure!(arguments.until_gone == (model.failed > 0), "{} operations failed", model.failed);
    Ok(())
}

fn exercise(model: &mut Model, arguments: &Verify) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut done = Vec::new();
    loop {
        let stopping = Instant::now() >= end || (arguments.until_gone && model.failed > 0);
        for tag in 0..model.going.len() {
            if !stopping && model.going[tag].is_none() {
                model.begin(tag);
            }
        }
        if stopping && model.queue.in_flight() == 0 {
            break;
        }
        model.wait(&mut done)?;
        for completion in std::mem::take(&mut done) {
            model.end(&completion)?;
        }
    }
    if model.failed > 0 {
        return Ok(());
    }
    // All of it once more, in order.
    let total = model.holds.len();
    for first in (0..total).step_by(256) {
        let n = 256.min(total - first);
        let memory = Memory::zeroed(n * BLOCK_BYTES as usize);
        let offset = first as u64 * BLOCK_BYTES;
        run(model.queue.as_mut(), Action::Read { offset, memory: memory.clone() })?;
        for (i, found) in memory.to_vec().chunks(BLOCK_BYTES as usize).enumerate() {
            model.check((first + i) as u64, found)?;
        }
    }
    Ok(())
}

fn speed(arguments: &Speed) -> anyhow::Result<()> {
    let device = open(&arguments.device, 30_000, arguments.polled)?;
    let mut queue = device.queue()?;
    let blocks = device.bytes() / arguments.bs;
    ensure!(blocks > 0 && arguments.bs.is_multiple_of(BLOCK_BYTES), "--bs is a multiple of 4096");
    let bytes = (arguments.bs as usize * arguments.qd).next_multiple_of(hugepages::HUGE_PAGE_BYTES);
    let arena = Arc::new(hugepages::Arena::new(bytes)?);
    let mut random = Random(7);
    let mut submit = |queue: &mut dyn Queue, tag: u64| {
        let offset = random.below(blocks) * arguments.bs;
        let memory =
            Memory::of_arena(&arena, tag * arguments.bs, arguments.bs).expect("it is inside");
        let action = match arguments.rw {
            Pattern::Randread => Action::Read { offset, memory },
            Pattern::Randwrite => Action::Write { offset, memory, fua: false },
        };
        queue.submit(Op { tag, action });
    };
    for tag in 0..arguments.qd as u64 {
        submit(queue.as_mut(), tag);
    }
    let mut done = Vec::new();
    let mut count = 0_u64;
    let mut since = Instant::now();
    let mut warm = false;
    loop {
        queue.poll(&mut done);
        for completion in done.drain(..) {
            completion.result?;
            count += 1;
            submit(queue.as_mut(), completion.tag);
        }
        if !warm && since.elapsed() >= Duration::from_secs(arguments.warm_up) {
            (warm, count, since) = (true, 0, Instant::now());
        } else if warm && since.elapsed() >= Duration::from_secs(arguments.seconds) {
            break;
        }
    }
    let iops = count as f64 / since.elapsed().as_secs_f64();
    let engine = device.engine();
    println!(
        "{}",
        serde_json::json!({ "engine": engine, "iops": iops.round(), "qd": arguments.qd })
    );
    Ok(())
}
