//! Both halves of the door, with a server thread on a simulated device between them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blockd_ipc::client::Config;
use blockd_ipc::{
    BlockingQueue, Cqe, Geometry, Kind, Listener, Opcode, RemoteVolume, ServerQueue, Sqe, Volume,
};
use hugepages::Buffer;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;

/// What survives a restart of the server.
#[derive(Default)]
struct Device {
    bytes: std::sync::Mutex<Vec<u8>>,
    served: AtomicU64,
    /// Take submissions but do not answer them.
    mute: AtomicBool,
    poisoned: AtomicBool,
}

struct Server {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(path: &Path, device: &Arc<Device>, blocks: u64) -> Server {
        device.bytes.lock().unwrap().resize(BLOCK * BLOCKS as usize, 0);
        let listener = Listener::bind(path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, device) = (Arc::clone(&stop), Arc::clone(device));
        let thread = thread::spawn(move || serve(&listener, &stopped, &device, blocks));
        Server { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn serve(listener: &Listener, stop: &AtomicBool, device: &Device, blocks: u64) {
    let geometry = Geometry { block_size: BLOCK as u32, blocks, transfer_bytes_max: 1 << 20 };
    let (mut greetings, mut queues) = (Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        greetings.extend(listener.accept().unwrap());
        let mut waiting = Vec::new();
        for mut greeting in greetings.drain(..) {
            match greeting.poll() {
                Ok(Some(request)) if request.volume() == "data" => {
                    queues.push(request.accept(7, geometry).unwrap());
                }
                Ok(Some(request)) => request.refuse(Kind::NotFound),
                Ok(None) => waiting.push(greeting),
                Err(_) => {}
            }
        }
        greetings = waiting;
        queues.retain(|queue| !queue.is_gone());
        let mut idle = true;
        for queue in &mut queues {
            while let Some(sqe) = queue.poll().unwrap() {
                idle = false;
                device.served.fetch_add(1, Ordering::Relaxed);
                if device.mute.load(Ordering::Relaxed) {
                    continue;
                }
                let result = run(device, queue, sqe);
                queue.complete(Cqe::of(sqe.cookie, result)).unwrap();
            }
        }
        if idle && queues.iter().all(ServerQueue::prepare_sleep) {
            thread::sleep(Duration::from_micros(200));
            queues.iter().for_each(ServerQueue::wake);
        }
    }
}

fn run(device: &Device, queue: &ServerQueue, sqe: Sqe) -> Result<(), Kind> {
    let mut bytes = device.bytes.lock().unwrap();
    let at = sqe.lba as usize * BLOCK;
    let len = sqe.blocks as usize * BLOCK;
    let lent = || {
        let offset = sqe.buffer_offset as usize;
        // SAFETY: this thread handles one submission at a time and the client waits for it.
        unsafe { Buffer::lent(Arc::clone(queue.arena()), offset, len) }
    };
    match sqe.opcode {
        Opcode::Read => lent().copy_from_slice(&bytes[at..at + len]),
        Opcode::Write => bytes[at..at + len].copy_from_slice(&lent()),
        Opcode::Deallocate | Opcode::WriteZeroes => bytes[at..at + len].fill(0),
        Opcode::Flush if device.poisoned.load(Ordering::Relaxed) => return Err(Kind::Poisoned),
        Opcode::Flush => {}
    }
    Ok(())
}

struct Scene {
    _folder: tempfile::TempDir,
    path: PathBuf,
    device: Arc<Device>,
}

fn scene() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blockd.sock");
    Scene { _folder: folder, path, device: Arc::default() }
}

fn config(path: &Path) -> Config {
    Config { depth: 8, buffer_bytes: 2 << 20, ..Config::new(path, "data") }
}

async fn write(volume: &RemoteVolume, lba: u64, byte: u8) {
    let mut buffer = volume.buffer(BLOCK).await.unwrap();
    buffer.fill(byte);
    volume.write(lba, buffer, false).await.unwrap();
}

async fn read(volume: &RemoteVolume, lba: u64) -> u8 {
    let buffer = volume.buffer(BLOCK).await.unwrap();
    let buffer = volume.read(lba, buffer).await.unwrap();
    assert!(buffer.iter().all(|&byte| byte == buffer[0]));
    buffer[0]
}

#[tokio::test]
async fn operations_reach_the_device_and_come_back() {
    let scene = scene();
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    let volume = RemoteVolume::connect(config(&scene.path)).unwrap();
    assert_eq!(volume.geometry().blocks, BLOCKS);
    write(&volume, 3, 9).await;
    volume.flush().await.unwrap();
    assert_eq!(read(&volume, 3).await, 9);
    volume.deallocate(3, 1).await.unwrap();
    assert_eq!(read(&volume, 3).await, 0);
    write(&volume, 4, 5).await;
    volume.write_zeroes(0, 8, true).await.unwrap();
    assert_eq!(read(&volume, 4).await, 0);

    let late = volume.read(BLOCKS, volume.buffer(1).await.unwrap()).await.unwrap_err();
    assert_eq!(late.kind(), Kind::OutOfRange);
    let foreign = volume.read(0, Buffer::private(BLOCK)).await.unwrap_err();
    assert_eq!(foreign.kind(), Kind::Invalid);
    scene.device.poisoned.store(true, Ordering::Relaxed);
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Poisoned);
    drop(volume);
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_few_slots_and_little_memory() {
    let scene = scene();
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    let volume = Arc::new(RemoteVolume::connect(config(&scene.path)).unwrap());
    let tasks: Vec<_> = (0..100u64)
        .map(|task| {
            let volume = Arc::clone(&volume);
            tokio::spawn(async move {
                for round in 0..5 {
                    let byte = (task + round) as u8;
                    // 100 buffers of 64 KiB do not fit into 2 MiB.
                    let mut buffer = volume.buffer(16 * BLOCK).await.unwrap();
                    buffer.set_len(BLOCK);
                    buffer.fill(byte);
                    let mut buffer = volume.write(task, buffer, false).await.unwrap();
                    buffer.fill(0);
                    let buffer = volume.read(task, buffer).await.unwrap();
                    assert!(buffer.iter().all(|&b| b == byte));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_gets_unacknowledged_operations_again() {
    let scene = scene();
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    let volume = Arc::new(RemoteVolume::connect(config(&scene.path)).unwrap());
    write(&volume, 0, 1).await;
    // The server takes these and dies before it answers.
    scene.device.mute.store(true, Ordering::Relaxed);
    let served = scene.device.served.load(Ordering::Relaxed);
    let writes: Vec<_> = (1..6u64)
        .map(|lba| {
            let volume = Arc::clone(&volume);
            tokio::spawn(async move { write(&volume, lba, lba as u8 + 1).await })
        })
        .collect();
    while scene.device.served.load(Ordering::Relaxed) < served + 5 {
        tokio::task::yield_now().await;
    }
    server.stop();
    scene.device.mute.store(false, Ordering::Relaxed);
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    for write in writes {
        write.await.unwrap();
    }
    for lba in 0..6 {
        assert_eq!(read(&volume, lba).await, lba as u8 + 1);
    }
    server.stop();
}

#[tokio::test]
async fn operations_fail_when_the_server_stays_away_and_work_when_it_is_back() {
    let scene = scene();
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    let config = Config { reconnect_max: Duration::ZERO, ..config(&scene.path) };
    let volume = RemoteVolume::connect(config).unwrap();
    server.stop();
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Disconnected);
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    while !volume.is_connected() {
        tokio::task::yield_now().await;
    }
    write(&volume, 0, 1).await;
    server.stop();
    // A volume that changed its size is another volume.
    let server = Server::start(&scene.path, &scene.device, BLOCKS - 1);
    assert_eq!(volume.flush().await.unwrap_err().kind(), Kind::Disconnected);
    server.stop();
}

#[tokio::test]
async fn a_dropped_future_keeps_its_buffer_until_the_completion() {
    let scene = scene();
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    let volume = RemoteVolume::connect(config(&scene.path)).unwrap();
    scene.device.mute.store(true, Ordering::Relaxed);
    let buffer = volume.buffer(1).await.unwrap();
    let read = volume.read(0, buffer);
    assert!(tokio::time::timeout(Duration::from_millis(1), read).await.is_err());
    // All other memory can be had, but not the block in flight.
    let mut held = Vec::new();
    for _ in 0..(2 << 20) / BLOCK - 1 {
        held.push(volume.buffer(1).await.unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_millis(20), volume.buffer(1)).await.is_err());
    drop(held);
    drop(volume);
    server.stop();
}

#[test]
fn refusals_and_absences_are_told_apart() {
    let scene = scene();
    let absent = RemoteVolume::connect(config(&scene.path)).unwrap_err();
    assert_eq!(absent.kind(), Kind::Disconnected);
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    let unknown = Config { volume: "other".into(), ..config(&scene.path) };
    assert_eq!(RemoteVolume::connect(unknown).unwrap_err().kind(), Kind::NotFound);
    let depth = Config { depth: 3, ..config(&scene.path) };
    assert_eq!(RemoteVolume::connect(depth).unwrap_err().kind(), Kind::Invalid);
    server.stop();
}

/// A server that is killed may still be connected to; wherever in the greeting it goes, it is gone.
#[test]
fn a_server_that_dies_while_it_is_greeted_is_absent() {
    use std::io::Read;
    const ATTEMPTS: usize = 300;
    let scene = scene();
    let listener = std::os::unix::net::UnixListener::bind(&scene.path).unwrap();
    let server = thread::spawn(move || {
        for attempt in 0..ATTEMPTS {
            let (mut stream, _) = listener.accept().unwrap();
            let mut some = vec![0; [0, 1, 96, 97][attempt % 4]];
            let _ = stream.read_exact(&mut some);
        }
    });
    for attempt in 0..ATTEMPTS {
        let error = RemoteVolume::connect(config(&scene.path)).unwrap_err();
        assert_eq!(error.kind(), Kind::Disconnected, "attempt {attempt}: {error}");
    }
    server.join().unwrap();
}

#[test]
fn a_blocking_queue_keeps_its_depth_in_flight() {
    let scene = scene();
    let server = Server::start(&scene.path, &scene.device, BLOCKS);
    let mut queue = BlockingQueue::connect(&config(&scene.path)).unwrap();
    let long = Duration::from_secs(10);
    let mut expected = std::collections::BTreeSet::new();
    for lba in 0..8 {
        let mut buffer = queue.buffer(BLOCK).unwrap();
        buffer.fill(lba as u8);
        expected.insert(queue.submit(Opcode::Write, lba, buffer, false).unwrap());
    }
    assert_eq!(queue.room(), 0);
    assert_eq!(queue.submit_flush().unwrap_err().kind(), Kind::Busy);
    while !expected.is_empty() {
        let completed = queue.wait(long).unwrap();
        completed.result.unwrap();
        assert!(expected.remove(&completed.slot));
    }
    queue.submit_flush().unwrap();
    queue.wait(long).unwrap().result.unwrap();
    let buffer = queue.buffer(BLOCK).unwrap();
    queue.submit(Opcode::Read, 5, buffer, false).unwrap();
    let read = queue.wait(long).unwrap().buffer.unwrap();
    assert!(read.iter().all(|&byte| byte == 5));
    assert_eq!(queue.wait(Duration::from_millis(1)).unwrap_err().kind(), Kind::Timeout);
    server.stop();
    assert_eq!(queue.wait(long).unwrap_err().kind(), Kind::Disconnected);
}

#[test]
fn a_listener_takes_no_place_that_is_in_use() {
    let scene = scene();
    let first = Listener::bind(&scene.path).unwrap();
    assert_eq!(Listener::bind(&scene.path).unwrap_err().kind(), Kind::Busy);
    drop(first);
    Listener::bind(&scene.path).unwrap();
    let file = scene.path.with_extension("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(Listener::bind(&file).unwrap_err().kind(), Kind::Invalid);
    assert!(file.exists());
}
