//! How many operations a second, and how long does one take, through the shared-memory door of a running blockd?
//! Compare with fio on the same device: `fio --ioengine=io_uring --direct=1 --bs=… --iodepth=… --rw=randread`.
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use blockd_ipc::client::{Config, RemoteVolume};
use blockd_ipc::volume::Volume;
use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    Read,
    Write,
    Randread,
    Randwrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Measures a volume of blockd. Write patterns destroy what it holds.
#[derive(Debug, Parser)]
struct Arguments {
    /// The daemon's ipc socket.
    path: PathBuf,
    /// Name of the volume.
    #[arg(long, default_value = "bench")]
    volume: String,
    /// Bytes of one operation, a multiple of the block size.
    #[arg(long, default_value_t = 4096)]
    bs: usize,
    /// Operations in flight.
    #[arg(long, default_value_t = 1)]
    qd: usize,
    #[arg(long, value_enum, default_value = "randread")]
    rw: Pattern,
    /// Seconds to run.
    #[arg(long, default_value_t = 10)]
    time: u64,
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arc::new(Arguments::parse());
    let config = Config::new(&arguments.path, &arguments.volume);
    let volume = Arc::new(RemoteVolume::connect(config).context("connecting to blockd")?);
    let geometry = volume.geometry();
    let blocks = arguments.bs as u64 / u64::from(geometry.block_size);
    anyhow::ensure!(
        blocks > 0
            && arguments.bs.is_multiple_of(geometry.block_size as usize)
            && arguments.bs <= geometry.transfer_bytes_max as usize
            && blocks <= geometry.blocks,
        "--bs is a multiple of {} up to {}",
        geometry.block_size,
        geometry.transfer_bytes_max
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let end = started + Duration::from_secs(arguments.time);
    let latencies = runtime.block_on(async {
        let mut workers = Vec::new();
        for worker in 0..arguments.qd.max(1) as u64 {
            let (volume, arguments) = (Arc::clone(&volume), Arc::clone(&arguments));
            let next = Arc::clone(&next);
            workers.push(tokio::spawn(work(volume, arguments, next, worker, end)));
        }
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.await??);
        }
        anyhow::Ok(all)
    })?;
    report(&arguments, latencies, started.elapsed());
    Ok(())
}

async fn work(
    volume: Arc<RemoteVolume>,
    arguments: Arc<Arguments>,
    next: Arc<AtomicU64>,
    worker: u64,
    end: Instant,
) -> anyhow::Result<Vec<u32>> {
    let geometry = volume.geometry();
    let blocks = arguments.bs as u64 / u64::from(geometry.block_size);
    let places = geometry.blocks / blocks;
    let mut random = worker.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut buffer = volume.buffer(arguments.bs).await?;
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let place = match arguments.rw {
            Pattern::Read | Pattern::Write => next.fetch_add(1, Ordering::Relaxed),
            Pattern::Randread | Pattern::Randwrite => {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            }
        };
        let lba = place % places * blocks;
        let begun = Instant::now();
        buffer = match arguments.rw {
            Pattern::Read | Pattern::Randread => volume.read(lba, buffer).await?,
            Pattern::Write | Pattern::Randwrite => volume.write(lba, buffer, false).await?,
        };
        latencies.push(u32::try_from(begun.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }
    Ok(latencies)
}

fn report(arguments: &Arguments, mut latencies_ns: Vec<u32>, elapsed: Duration) {
    latencies_ns.sort_unstable();
    let count = latencies_ns.len();
    let percentile_us = |per_mille: usize| {
        let index = (count * per_mille / 1000).min(count.saturating_sub(1));
        latencies_ns.get(index).map_or(0.0, |ns| f64::from(*ns) / 1000.0)
    };
    let iops = count as f64 / elapsed.as_secs_f64();
    let mib_s = iops * arguments.bs as f64 / f64::from(1 << 20);
    let (p50, p99, p999) = (percentile_us(500), percentile_us(990), percentile_us(999));
    match arguments.output {
        Output::Text => println!(
            "{:?} bs={} qd={}: {iops:.0} IOPS, {mib_s:.1} MiB/s, latency µs p50 {p50:.1} \
             p99 {p99:.1} p99.9 {p999:.1}",
            arguments.rw, arguments.bs, arguments.qd
        ),
        Output::Json => println!(
            "{}",
            serde_json::json!({
                "rw": format!("{:?}", arguments.rw).to_lowercase(),
                "bs": arguments.bs,
                "qd": arguments.qd,
                "seconds": elapsed.as_secs_f64(),
                "operations": count,
                "iops": iops,
                "mib_s": mib_s,
                "latency_us": { "p50": p50, "p99": p99, "p999": p999 },
            })
        ),
    }
}
