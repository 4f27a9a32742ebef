//! blockd's door in shared memory against fio's io_uring, both `O_DIRECT` on the same file, on the disk and on tmpfs.
//!
//! `blockd-ipc` is who owns its queue, as fio owns its ring: `cfsctl block bench`. `shared` is the client that many
//! threads share, as fsd does. The file is written once the pool is made, so that no block is a hole. fio keeps off the
//! pool's superblocks at its start.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Arguments;
use crate::measure::{Results, Unit};
use crate::process::{self, Daemon, wait_for};

const FILE_BYTES: u64 = 1 << 30;
/// Superblocks and maps of the pool end before this, and so far the volume is shorter than the file.
const HEAD_BYTES: u64 = 64 << 20;
const SECONDS: u64 = 5;

struct Load {
    rw: &'static str,
    block: &'static str,
    block_bytes: u64,
    depth: u32,
}

const LOADS: &[Load] = &[
    Load { rw: "randread", block: "4 KiB", block_bytes: 4096, depth: 1 },
    Load { rw: "randread", block: "4 KiB", block_bytes: 4096, depth: 32 },
    Load { rw: "randwrite", block: "4 KiB", block_bytes: 4096, depth: 1 },
    Load { rw: "randwrite", block: "4 KiB", block_bytes: 4096, depth: 32 },
    Load { rw: "read", block: "128 KiB", block_bytes: 128 << 10, depth: 8 },
    Load { rw: "write", block: "128 KiB", block_bytes: 128 << 10, depth: 8 },
];

/// One second's operations, and the time of one.
struct Figures {
    iops: f64,
    p50_us: f64,
}

pub fn run(arguments: &Arguments, work: &Path, results: &mut Results) -> Result<()> {
    let disk = work.join("block");
    let tmpfs = Tmpfs::mount(work.join("tmpfs"))?;
    fs::create_dir(&disk)?;
    for dir in [&disk, &tmpfs.0] {
        // Makes the pool.
        with_blockd(arguments, dir, |_| Ok(()))?;
        fill(&dir.join("file"))?;
    }
    for round in 0..arguments.rounds {
        for (place, dir) in [("ext4", &disk), ("tmpfs", &tmpfs.0)] {
            for load in LOADS {
                let Load { rw, block, depth, .. } = load;
                let step = format!("{rw} {block}, depth {depth}, {place}");
                if !arguments.wants_step(&step) {
                    continue;
                }
                eprintln!("benches: round {} of {}, {step}", round + 1, arguments.rounds);
                // In all orders, so that none always comes second.
                for turn in 0..3 {
                    let (subject, figures) = match (turn + round) % 3 {
                        0 => ("blockd-ipc", with_blockd(arguments, dir, |a| queue(a, dir, load))?),
                        1 => ("shared", with_blockd(arguments, dir, |a| shared(a, dir, load))?),
                        _ => ("fio", fio(dir, load)?),
                    };
                    results.add(&step, subject, Unit::PerSecond, figures.iops);
                    if *depth == 1 {
                        let step = format!("{step}, median latency");
                        results.add(&step, subject, Unit::Microseconds, figures.p50_us);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Unmounted when the value goes.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf) -> Result<Tmpfs> {
        fs::create_dir(&path)?;
        let size = format!("size={}", FILE_BYTES + (64 << 20));
        process::run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path))?;
        Ok(Tmpfs(path))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Writes all of the volume with bytes that do not compress.
fn fill(path: &Path) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    let mut noise = vec![0; 1 << 20];
    fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
    for n in HEAD_BYTES >> 20..FILE_BYTES >> 20 {
        file.write_all_at(&noise, n << 20)?;
    }
    file.sync_all().context("syncing the file")
}

/// Starts a blockd for one measurement.
fn with_blockd<T>(
    arguments: &Arguments,
    dir: &Path,
    measure: impl FnOnce(&Arguments) -> Result<T>,
) -> Result<T> {
    let at = |name: &str| dir.join(name).display().to_string();
    let config = at("blockd.toml");
    let text = format!(
        "ipc_socket = {:?}\nadmin_socket = {:?}\n\
         [[device]]\npath = {:?}\nengine = \"uring\"\ncreate = true\nsize = {FILE_BYTES}\n\
         [[volume]]\nname = \"bench\"\nsize = {}\n",
        at("ipc"),
        at("admin"),
        at("file"),
        FILE_BYTES - HEAD_BYTES,
    );
    fs::write(&config, text)?;
    let log = dir.join("blockd.log");
    let blockd = arguments.bin.join("blockd");
    let mut blockd = Daemon::start(&blockd, &["--config", &config], &log)?;
    wait_for("blockd", || {
        blockd.check().with_context(|| format!("see {}", log.display()))?;
        Ok(UnixStream::connect(dir.join("admin")).is_ok() && dir.join("ipc").exists())
    })?;
    let measured = measure(arguments)?;
    blockd.stop()?;
    Ok(measured)
}

fn queue(arguments: &Arguments, dir: &Path, load: &Load) -> Result<Figures> {
    let mut bench = Command::new(arguments.bin.join("cfsctl"));
    bench.args(["block", "bench", "bench", "--confirm", "bench", "--output", "json"]);
    bench.arg("--socket").arg(dir.join("admin")).args(["--rw", load.rw]);
    bench.args(["--bs", &load.block_bytes.to_string(), "--qd", &load.depth.to_string()]);
    bench.args(["--time", &SECONDS.to_string()]);
    let told: Value = serde_json::from_slice(&process::run(&mut bench)?)?;
    let side = if load.rw.contains("read") { "read" } else { "write" };
    let p50_ns = number(&told[side]["p50_ns"])?;
    Ok(Figures { iops: number(&told["iops"])?, p50_us: p50_ns / 1000.0 })
}

fn shared(arguments: &Arguments, dir: &Path, load: &Load) -> Result<Figures> {
    let mut bench = Command::new(arguments.bin.join("examples/ipc_bench"));
    bench.arg(dir.join("ipc")).args(["--volume", "bench", "--output", "json", "--rw", load.rw]);
    bench.args(["--bs", &load.block_bytes.to_string(), "--qd", &load.depth.to_string()]);
    bench.args(["--time", &SECONDS.to_string()]);
    let told: Value = serde_json::from_slice(&process::run(&mut bench)?)?;
    Ok(Figures { iops: number(&told["iops"])?, p50_us: number(&told["latency_us"]["p50"])? })
}

fn fio(dir: &Path, load: &Load) -> Result<Figures> {
    let mut fio = Command::new("fio");
    fio.args(["--name=bench", "--ioengine=io_uring", "--direct=1", "--time_based"]);
    fio.args(["--output-format=json", "--allow_file_create=0", "--norandommap"]);
    fio.arg(format!("--filename={}", dir.join("file").display()));
    fio.arg(format!("--runtime={SECONDS}"));
    fio.arg(format!("--offset={HEAD_BYTES}")).arg(format!("--size={}", FILE_BYTES - HEAD_BYTES));
    fio.arg(format!("--rw={}", load.rw)).arg(format!("--bs={}", load.block_bytes));
    fio.arg(format!("--iodepth={}", load.depth));
    let told: Value = serde_json::from_slice(&process::run(&mut fio)?).context("fio's JSON")?;
    let side = if load.rw.contains("read") { "read" } else { "write" };
    let told = &told["jobs"][0][side];
    let p50_ns = number(&told["clat_ns"]["percentile"]["50.000000"])?;
    Ok(Figures { iops: number(&told["iops"])?, p50_us: p50_ns / 1000.0 })
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("a figure is missing in a report")
}
