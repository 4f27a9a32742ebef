use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::TryRecvError;
use std::time::Instant;

use super::*;
use crate::engine::{Device, Mem, run};

const MIB: u64 = 1 << 20;

/// RAM whose operations end only while it is open. It counts what it has been given, and changes nothing when it is told to
/// forget or to zero, for it is all zeros.
#[derive(Clone)]
struct Gate {
    mem: Mem,
    shut: Arc<AtomicBool>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Gate {
    fn new(bytes: u64) -> Gate {
        let mem = Mem::new(bytes);
        let (now, most, all) = Default::default();
        Gate { mem, shut: Arc::default(), now, most, all }
    }

    fn shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::Release);
    }
}

impl Device for Gate {
    fn engine(&self) -> &'static str {
        "gate"
    }

    fn bytes(&self) -> u64 {
        self.mem.bytes()
    }

    fn queue(&self) -> io::Result<Box<dyn Queue>> {
        Ok(Box::new(GateQueue { gate: self.clone(), inner: self.mem.queue()?, held: Vec::new() }))
    }
}

struct GateQueue {
    gate: Gate,
    inner: Box<dyn Queue>,
    held: Vec<Op>,
}

impl Queue for GateQueue {
    fn submit(&mut self, op: Op) {
        if matches!(op.action, Action::Deallocate { .. } | Action::Zero { .. }) {
            let now = self.gate.now.fetch_add(1, Ordering::AcqRel) + 1;
            self.gate.most.fetch_max(now, Ordering::AcqRel);
            self.gate.all.fetch_add(1, Ordering::AcqRel);
        }
        self.held.push(op);
    }

    fn poll(&mut self, done: &mut Vec<Completion>) {
        if self.gate.shut.load(Ordering::Acquire) {
            return;
        }
        for op in self.held.drain(..) {
            match op.action {
                Action::Deallocate { .. } | Action::Zero { .. } => {
                    self.gate.now.fetch_sub(1, Ordering::AcqRel);
                    done.push(Completion { tag: op.tag, result: Ok(()) });
                }
                Action::Read { .. } | Action::Write { .. } | Action::Flush => self.inner.submit(op),
            }
        }
        self.inner.poll(done);
    }

    fn wait_fd(&self) -> Option<RawFd> {
        None
    }

    fn in_flight(&self) -> usize {
        self.held.len() + self.inner.in_flight()
    }
}

/// The reactor's side of a client that a test plays.
struct Script {
    requests: Receiver<Request>,
    answers: Sender<(u64, i32)>,
    event: Arc<OwnedFd>,
    gone: Arc<AtomicBool>,
}

impl Client for Script {
    fn next(&mut self) -> Option<Request> {
        self.requests.try_recv().ok()
    }

    fn complete(&mut self, tag: u64, errno: i32) {
        self.answers.send((tag, errno)).unwrap();
    }

    fn wait_fds(&self) -> [RawFd; 2] {
        [self.event.as_raw_fd(); 2]
    }

    fn arm(&mut self) -> bool {
        true
    }

    fn disarm(&mut self, _ready: [bool; 2]) {
        let _ = rustix::io::read(&*self.event, &mut [0_u8; 8]);
    }

    fn is_gone(&mut self, _look: bool) -> bool {
        self.gone.load(Ordering::Acquire)
    }
}

/// Pools with a reactor, and one client of it.
struct Scene {
    pools: Vec<Arc<Pool>>,
    mappers: Vec<Mapper>,
    handle: Handle,
    requests: Sender<Request>,
    answers: Receiver<(u64, i32)>,
    event: Arc<OwnedFd>,
    gone: Arc<AtomicBool>,
}

impl Scene {
    fn new(devices: &[&Gate]) -> Scene {
        let open = |device: &&Gate| {
            Arc::new(Pool::open("gate", Arc::new(Gate::clone(device)), true).unwrap())
        };
        let pools: Vec<_> = devices.iter().map(open).collect();
        let mappers: Vec<_> =
            pools.iter().map(|pool| Mapper::start(Arc::clone(pool)).unwrap()).collect();
        let handle = start(0, &pools, &mappers, Duration::from_micros(50)).unwrap();
        let (requests, of_client) = channel();
        let (to_test, answers) = channel();
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        let gone = Arc::new(AtomicBool::new(false));
        handle.admit(Box::new(Script {
            requests: of_client,
            answers: to_test,
            event: Arc::clone(&event),
            gone: Arc::clone(&gone),
        }));
        Scene { pools, mappers, handle, requests, answers, event, gone }
    }

    fn share(&self, pool: usize, volume: &str) -> Arc<Share> {
        Arc::new(Share { pool, volume: self.pools[pool].connect(volume).unwrap() })
    }

    fn ask(&self, tag: u64, share: &Arc<Share>, ask: Ask) {
        self.requests.send(Request { tag, share: Arc::clone(share), ask }).unwrap();
        signal(&self.event);
    }

    fn answer(&self) -> (u64, i32) {
        self.answers.recv_timeout(Duration::from_secs(60)).expect("the reactor answers")
    }

    fn read(&self, share: &Arc<Share>, offset: u64) -> u8 {
        let memory = Memory::zeroed(4096);
        self.ask(99, share, Ask::Read { offset, memory: memory.clone() });
        assert_eq!(self.answer(), (99, 0));
        memory.to_vec()[0]
    }

    fn end(mut self) {
        self.gone.store(true, Ordering::Release);
        self.handle.stop();
        self.mappers.iter_mut().for_each(Mapper::stop);
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

fn write(offset: u64, byte: u8) -> Ask {
    Ask::Write { offset, memory: Memory::copy_of(&[byte; 8192]), fua: false }
}

#[test]
fn a_map_that_hangs_holds_nobody_else() {
    let (hangs, well) = (Gate::new(64 * MIB), Gate::new(64 * MIB));
    let scene = Scene::new(&[&hangs, &well]);
    scene.pools[0].create("thin", 1 << 30, true).unwrap();
    scene.pools[1].create("v", 8 * MIB, true).unwrap();
    let (thin, other) = (scene.share(0, "thin"), scene.share(1, "v"));
    scene.ask(0, &thin, write(100 * MIB, 7));
    assert_eq!(scene.answer(), (0, 0));
    hangs.shut(true);
    // Over the border of two extents, which both are new.
    scene.ask(1, &thin, write(4 * MIB - 4096, 7));
    scene.ask(2, &thin, Ask::Deallocate { offset: 100 * MIB, len: 100 * MIB });
    for round in 0..100 {
        scene.ask(3, &other, write(round * 4096, round as u8));
        assert_eq!(scene.answer(), (3, 0), "the other device goes on");
        assert_eq!(scene.read(&other, round * 4096), round as u8);
    }
    // Nor does who looks wait for the change.
    assert_eq!(scene.pools[0].status().volumes, 1);
    scene.pools[0].connect("thin").unwrap().leave();
    assert!(matches!(scene.answers.try_recv(), Err(TryRecvError::Empty)));

    hangs.shut(false);
    let mut tags = [scene.answer(), scene.answer()];
    tags.sort_unstable();
    assert_eq!(tags, [(1, 0), (2, 0)]);
    scene.ask(4, &thin, write(4 * MIB - 4096, 8));
    assert_eq!(scene.answer(), (4, 0));
    // What was acknowledged is durable, and so is where it lies.
    let again = Pool::open("gate", Arc::new(hangs.mem.clone()), false).unwrap();
    let found = again.connect("thin").unwrap();
    for (extent, within) in [(0, 4 * MIB - 4096), (1, 0)] {
        let offset = again.extent_offset(found.pin(extent).unwrap()) + within;
        let memory = Memory::zeroed(4096);
        let mut queue = hangs.mem.queue().unwrap();
        run(queue.as_mut(), Action::Read { offset, memory: memory.clone() }).unwrap();
        assert_eq!(memory.to_vec(), [8; 4096]);
    }
    scene.end();
}

#[test]
fn poisoning_waits_for_no_change() {
    let hangs = Gate::new(64 * MIB);
    let scene = Scene::new(&[&hangs]);
    scene.pools[0].create("thin", 1 << 30, true).unwrap();
    let thin = scene.share(0, "thin");
    hangs.shut(true);
    let before = hangs.all.load(Ordering::Acquire);
    scene.ask(1, &thin, write(0, 1));
    until("zeroing the new extent", || hangs.all.load(Ordering::Acquire) > before);
    scene.pools[0].poison();
    scene.ask(2, &thin, write(8 * MIB, 1));
    assert_eq!(scene.answer(), (2, libc::ESHUTDOWN));
    hangs.shut(false);
    assert_eq!(scene.answer(), (1, libc::ESHUTDOWN), "nothing is written any more");
    scene.end();
}

#[test]
fn long_ranges_are_gone_through_in_steps() {
    let device = Gate::new(512 * MIB);
    let scene = Scene::new(&[&device]);
    scene.pools[0].create("thick", 400 * MIB, false).unwrap();
    let thick = scene.share(0, "thick");
    let made = device.all.load(Ordering::Acquire);
    for (tag, ask) in [
        (1, Ask::Deallocate { offset: 4096, len: 400 * MIB - 4096 }),
        (2, Ask::WriteZeroes { offset: 0, len: 400 * MIB, fua: true }),
    ] {
        device.shut(true);
        device.most.store(0, Ordering::Release);
        scene.ask(tag, &thick, ask);
        until("beginning", || device.now.load(Ordering::Acquire) == later::REST_PARTS);
        device.shut(false);
        assert_eq!(scene.answer(), (tag, 0));
        assert_eq!(device.most.load(Ordering::Acquire), later::REST_PARTS);
        assert_eq!(device.all.load(Ordering::Acquire) - made, 100 * tag as usize);
    }
    scene.end();
}

#[test]
fn a_whole_thin_volume_is_given_back() {
    let device = Gate::new(64 * MIB);
    let scene = Scene::new(&[&device]);
    scene.pools[0].create("thin", 1 << 40, true).unwrap();
    let free = scene.pools[0].status().extents_free;
    let thin = scene.share(0, "thin");
    let far = (1 << 40) - 8192;
    for (tag, offset) in [(1, 0), (2, 1500 * 4 * MIB), (3, far)] {
        scene.ask(tag, &thin, write(offset, 5));
        assert_eq!(scene.answer(), (tag, 0));
    }
    assert_eq!(scene.pools[0].status().extents_free, free - 3);
    // Not of an extent that is only in part of the range.
    scene.ask(4, &thin, Ask::Deallocate { offset: 4096, len: (1 << 40) - 4096 });
    assert_eq!(scene.answer(), (4, 0));
    assert_eq!(scene.pools[0].status().extents_free, free - 1);
    assert_eq!((scene.read(&thin, 0), scene.read(&thin, far)), (5, 0));
    scene.ask(5, &thin, Ask::Deallocate { offset: 0, len: 1 << 40 });
    assert_eq!(scene.answer(), (5, 0));
    assert_eq!(scene.pools[0].status().extents_free, free);
    scene.ask(6, &thin, Ask::Deallocate { offset: 4096, len: 1 << 40 });
    assert_eq!(scene.answer(), (6, libc::EINVAL));
    scene.end();
}

#[test]
fn a_pool_that_is_full_says_so() {
    let device = Gate::new(32 * MIB);
    let scene = Scene::new(&[&device]);
    scene.pools[0].create("thin", 1 << 30, true).unwrap();
    let free = scene.pools[0].status().extents_free;
    let thin = scene.share(0, "thin");
    for extent in 0..=free {
        scene.ask(extent, &thin, write(extent * 4 * MIB, 1));
    }
    let mut answers: Vec<i32> = (0..=free).map(|_| scene.answer().1).collect();
    answers.sort_unstable();
    assert_eq!((answers.pop(), answers.iter().all(|e| *e == 0)), (Some(libc::ENOSPC), true));
    scene.end();
}
