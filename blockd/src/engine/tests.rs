use std::io;
use std::sync::Arc;

use hugepages::Arena;

use super::*;

pub const BYTES: u64 = 8 << 20;

fn files() -> (tempfile::TempDir, Uring) {
    let dir = tempfile::tempdir().unwrap();
    let uring = Uring::open(&dir.path().join("device"), true, Some(BYTES)).unwrap();
    (dir, uring)
}

fn write(queue: &mut dyn Queue, offset: u64, byte: u8, len: usize, fua: bool) -> io::Result<()> {
    run(queue, Action::Write { offset, memory: Memory::copy_of(&vec![byte; len]), fua })
}

fn read(queue: &mut dyn Queue, offset: u64, len: usize) -> Vec<u8> {
    let memory = Memory::zeroed(len);
    run(queue, Action::Read { offset, memory: memory.clone() }).unwrap();
    memory.to_vec()
}

/// What every engine does.
pub fn conforms(device: &dyn Device) {
    assert_eq!(device.bytes(), BYTES);
    let mut queue = device.queue().unwrap();
    let queue = queue.as_mut();
    write(queue, 4096, 7, 8192, false).unwrap();
    write(queue, 16384, 9, 4096, true).unwrap();
    assert_eq!(read(queue, 4096, 8192), vec![7; 8192]);
    run(queue, Action::Flush).unwrap();
    assert_eq!(read(device.queue().unwrap().as_mut(), 16384, 4096), vec![9; 4096]);
    run(queue, Action::Zero { offset: 4096, len: 4096 }).unwrap();
    assert_eq!(read(queue, 4096, 4096), vec![0; 4096]);
    assert_eq!(read(queue, 8192, 4096), vec![7; 4096]);
    run(queue, Action::Deallocate { offset: 8192, len: 4096 }).unwrap();
    let beyond = write(queue, BYTES, 1, 4096, false).unwrap_err();
    assert_eq!(beyond.raw_os_error(), Some(libc::EINVAL));
    let wraps = write(queue, u64::MAX - 4095, 1, 4096, false).unwrap_err();
    assert_eq!(wraps.raw_os_error(), Some(libc::EINVAL));

    // More at once than any ring holds; each tag comes back once.
    for tag in 0..1000 {
        let memory = Memory::copy_of(&[tag as u8; 4096]);
        queue.submit(Op { tag, action: Action::Write { offset: tag * 4096, memory, fua: false } });
    }
    let mut done = Vec::new();
    while queue.in_flight() > 0 {
        queue.poll(&mut done);
    }
    let mut tags: Vec<u64> = done.iter().map(|c| c.tag).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..1000).collect::<Vec<_>>());
    assert!(done.iter().all(|c| c.result.is_ok()));
    for block in [0, 500, 999_u64] {
        assert_eq!(read(queue, block * 4096, 4096), vec![block as u8; 4096]);
    }

    // Arenas come and go, as clients do.
    for round in 1..=3_u8 {
        let arena = Arc::new(Arena::ordinary(hugepages::HUGE_PAGE_BYTES).unwrap());
        let memory = |at| Memory::of_arena(&arena, at, 8192).unwrap();
        memory(4096).write(0, &[round; 8192]);
        run(queue, Action::Write { offset: 12288, memory: memory(4096), fua: true }).unwrap();
        run(queue, Action::Read { offset: 12288, memory: memory(65536) }).unwrap();
        assert_eq!(memory(65536).to_vec(), vec![round; 8192]);
        assert_eq!(memory(73728).to_vec(), vec![0; 8192]);
    }
}

#[test]
fn mem_conforms() {
    conforms(&Mem::new(BYTES));
}

#[test]
fn uring_conforms() {
    conforms(&files().1);
}

#[test]
fn fault_conforms_over_both() {
    conforms(&Fault::new(Arc::new(Mem::new(BYTES)), FaultSettings::default()).unwrap());
    let (_dir, beneath) = files();
    conforms(&Fault::new(Arc::new(beneath), FaultSettings::default()).unwrap());
    let delayed = FaultSettings { delay_ppm: 500_000, delay_polls: 3, ..Default::default() };
    conforms(&Fault::new(Arc::new(Mem::new(BYTES)), delayed).unwrap());
}

#[test]
fn a_device_has_one_owner() {
    let (dir, _held) = files();
    let second = Uring::open(&dir.path().join("device"), false, None).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn unflushed_writes_are_volatile() {
    let mem = Mem::new(BYTES);
    let fault = Fault::new(Arc::new(mem.clone()), FaultSettings::default()).unwrap();
    let mut queue = fault.queue().unwrap();
    write(queue.as_mut(), 0, 1, 4096, false).unwrap();
    run(queue.as_mut(), Action::Flush).unwrap();
    write(queue.as_mut(), 0, 2, 4096, false).unwrap();
    write(queue.as_mut(), 4096, 3, 4096, true).unwrap();
    let mut beneath = mem.queue().unwrap();
    assert_eq!(read(beneath.as_mut(), 0, 4096), vec![1; 4096]);
    assert_eq!(read(beneath.as_mut(), 4096, 4096), vec![3; 4096]);
    assert_eq!(read(queue.as_mut(), 0, 4096), vec![2; 4096]);
}

#[test]
fn a_power_cut_tears_by_sector() {
    let mem = Mem::new(BYTES);
    let fault = Fault::new(Arc::new(mem.clone()), FaultSettings::default()).unwrap();
    let mut queue = fault.queue().unwrap();
    write(queue.as_mut(), 0, 1, 1 << 20, false).unwrap();
    fault.power_cut(3).unwrap();
    let after = read(mem.queue().unwrap().as_mut(), 0, 1 << 20);
    let whole = after.chunks(512).filter(|s| s.iter().all(|b| *b == 1)).count();
    let none = after.chunks(512).filter(|s| s.iter().all(|b| *b == 0)).count();
    assert_eq!(whole + none, 2048);
    assert!(whole > 512 && none > 512, "{whole} {none}");
}

#[test]
fn faults_happen_when_asked_for() {
    let all = 1_000_000;
    type Seen = fn(&mut dyn Queue) -> bool;
    let cases: [(FaultSettings, Seen); 5] = [
        (FaultSettings { read_fail_ppm: all, ..Default::default() }, |q| {
            let memory = Memory::zeroed(4096);
            run(q, Action::Read { offset: 0, memory }).is_err()
        }),
        (FaultSettings { read_corrupt_ppm: all, ..Default::default() }, |q| {
            read(q, 0, 4096) != vec![0; 4096]
        }),
        (FaultSettings { write_fail_ppm: all, ..Default::default() }, |q| {
            write(q, 0, 1, 4096, false).is_err()
        }),
        (FaultSettings { write_lost_ppm: all, ..Default::default() }, |q| {
            write(q, 0, 1, 4096, true).unwrap();
            read(q, 0, 4096) == vec![0; 4096]
        }),
        (FaultSettings { write_misdirected_ppm: all, ..Default::default() }, |q| {
            write(q, 0, 1, 4096, true).unwrap();
            read(q, 4096, 4096) == vec![1; 4096]
        }),
    ];
    for (settings, seen) in cases {
        let fault = Fault::new(Arc::new(Mem::new(BYTES)), settings.clone()).unwrap();
        assert!(seen(fault.queue().unwrap().as_mut()), "{settings:?}");
    }
}
