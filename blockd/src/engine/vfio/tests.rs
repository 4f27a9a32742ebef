//! The driver against a controller in memory.

use std::time::Instant;

use super::simulation::Simulation;
use super::*;
use crate::engine::tests::{BYTES, conforms};
use crate::engine::{Action, Fault, FaultSettings, Health, Memory, Op, run, wait_readable};

const TIMEOUT: Duration = Duration::from_secs(2);

fn device(shift: u8) -> (Arc<Simulation>, Vfio) {
    let simulation = Arc::new(Simulation::new(BYTES as usize, shift));
    let bus: Arc<dyn bus::Bus> = simulation.clone();
    let held = Held::new("simulated".to_owned(), bus, TIMEOUT).unwrap();
    (simulation, Vfio::of(Arc::new(held), None).unwrap())
}

fn write(queue: &mut dyn Queue, byte: u8) -> io::Result<()> {
    run(queue, Action::Write { offset: 4096, memory: Memory::copy_of(&[byte; 8192]), fua: false })
}

fn read(queue: &mut dyn Queue) -> io::Result<u8> {
    let memory = Memory::zeroed(8192);
    run(queue, Action::Read { offset: 4096, memory: memory.clone() })?;
    let bytes = memory.to_vec();
    assert!(bytes.iter().all(|b| *b == bytes[0]), "torn");
    Ok(bytes[0])
}

/// Waits for something that another thread does.
fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn both_block_sizes_conform() {
    for shift in [9, 12] {
        let (simulation, device) = device(shift);
        conforms(&device);
        assert_eq!(device.facts().lba_bytes, 1 << shift);
        assert!(simulation.state().counts.flushes > 0);
    }
}

#[test]
fn what_is_submitted_together_is_told_together() {
    let (simulation, device) = device(12);
    let mut queue = device.queue().unwrap();
    let before = simulation.state().counts.rings;
    for tag in 0..20 {
        let memory = Memory::zeroed(4096);
        queue.submit(Op { tag, action: Action::Read { offset: 0, memory } });
    }
    // The first went at once.
    assert_eq!(simulation.state().counts.rings, before + 1);
    let mut done = Vec::new();
    while done.len() < 20 {
        queue.poll(&mut done);
    }
    assert!(
        simulation.state().counts.rings <= before + 3,
        "one for the rest, and the completions'"
    );
    // Who goes to sleep after submitting has told of all.
    simulation.state().behaviour.hangs = true;
    for tag in 0..2 {
        let memory = Memory::zeroed(4096);
        queue.submit(Op { tag, action: Action::Read { offset: 0, memory } });
    }
    let before = simulation.state().counts.rings;
    queue.wait_fd();
    assert!(simulation.state().counts.rings > before);
    simulation.state().behaviour.is_gone = true;
}

#[test]
fn without_write_zeroes_zeros_are_written() {
    let simulation = Arc::new(Simulation::new(BYTES as usize, 9));
    simulation.state().behaviour.knows_zeroes = false;
    let held = Held::new("simulated".to_owned(), simulation, TIMEOUT).unwrap();
    conforms(&Vfio::of(Arc::new(held), None).unwrap());
}

#[test]
fn memory_of_an_arena_is_shown_and_hidden_again() {
    let (simulation, device) = device(12);
    let mut queue = device.queue().unwrap();
    let before = simulation.state().mapped;
    let arena = Arc::new(hugepages::Arena::ordinary(2 << 20).unwrap());
    for offset in [0, 4096, 1 << 20] {
        let memory = Memory::of_arena(&arena, offset, 65536 * 3).unwrap();
        memory.write(0, &[offset as u8 | 1; 65536 * 3]);
        run(queue.as_mut(), Action::Write { offset, memory, fua: true }).unwrap();
        let back = Memory::of_arena(&arena, 1 << 19, 65536 * 3).unwrap();
        run(queue.as_mut(), Action::Read { offset, memory: back.clone() }).unwrap();
        assert_eq!(back.to_vec(), vec![offset as u8 | 1; 65536 * 3]);
    }
    assert_eq!(simulation.state().mapped, before + 1, "one arena, once");
    drop(arena);
    until("hiding the arena", || simulation.state().mapped == before);
}

#[test]
fn a_sleeping_queue_is_woken_by_its_interrupt() {
    let (simulation, device) = device(12);
    let mut queue = device.queue().unwrap();
    write(queue.as_mut(), 1).unwrap();
    simulation.state().behaviour.hangs = true;
    let memory = Memory::copy_of(&[7; 4096]);
    queue.submit(Op { tag: 3, action: Action::Write { offset: 0, memory, fua: false } });
    let fd = queue.wait_fd().expect("it can sleep");
    simulation.state().behaviour.hangs = false;
    simulation.state().behaviour.aborts = true;
    // What ends it is an abort; that is an interrupt, too, and the write is sent again.
    let mut done = Vec::new();
    while done.is_empty() {
        wait_readable(&[fd], Some(60_000)).unwrap();
        queue.poll(&mut done);
        while done.is_empty() && queue.wait_fd().is_none() {
            queue.poll(&mut done);
        }
    }
    assert_eq!((done[0].tag, done[0].result.is_ok()), (3, true));
    assert!(simulation.state().counts.interrupts > 0 && simulation.state().counts.aborts > 0);
    assert_eq!(simulation.state().counts.resets, 0, "the abort was enough");
    // Much polling without a sleep disconnects it.
    for byte in 0..=255 {
        write(queue.as_mut(), byte).unwrap();
    }
    let before = simulation.state().counts.interrupts;
    for _ in 0..300 {
        let memory = Memory::zeroed(4096);
        queue.submit(Op { tag: 1, action: Action::Read { offset: 0, memory } });
        while queue.in_flight() > 0 {
            queue.poll(&mut done);
        }
    }
    write(queue.as_mut(), 1).unwrap();
    assert!(simulation.state().counts.interrupts < before + 300);
}

#[test]
fn a_controller_that_hangs_is_reset_and_nothing_is_lost() {
    let (simulation, device) = device(9);
    let mut queue = device.queue().unwrap();
    write(queue.as_mut(), 5).unwrap();
    simulation.state().behaviour.hangs = true;
    let for_thread = Arc::clone(&simulation);
    let healer = std::thread::spawn(move || {
        until("a reset", || for_thread.state().counts.resets > 0);
        for_thread.state().behaviour.hangs = false;
    });
    write(queue.as_mut(), 6).unwrap();
    healer.join().unwrap();
    assert_eq!(read(queue.as_mut()).unwrap(), 6);
    assert!(simulation.state().counts.aborts > 0);
    until("recovery", || device.facts().health == Health::Ok);
}

#[test]
fn resets_that_are_asked_for_lose_nothing() {
    let (simulation, device) = device(12);
    let mut queue = device.queue().unwrap();
    // More than a sick controller is granted.
    for round in 1..=8 {
        device.reset().unwrap();
        write(queue.as_mut(), round).unwrap();
        until("the reset", || simulation.state().counts.resets >= u32::from(round));
        assert_eq!(read(queue.as_mut()).unwrap(), round);
    }
    simulation.state().behaviour.is_fatal = true;
    until("the reset", || simulation.state().counts.resets >= 9);
    assert_eq!(read(queue.as_mut()).unwrap(), 8);
}

#[test]
fn a_device_that_is_gone_fails_and_says_so() {
    let (simulation, device) = device(9);
    let mut queue = device.queue().unwrap();
    let mut idle = device.queue().unwrap();
    simulation.state().behaviour.hangs = true;
    let memory = Memory::zeroed(4096);
    queue.submit(Op { tag: 1, action: Action::Read { offset: 0, memory } });
    queue.poll(&mut Vec::new());
    simulation.state().behaviour.is_gone = true;
    let mut done = Vec::new();
    until("failing", || matches!(device.facts().health, Health::Failed(_)));
    while queue.in_flight() > 0 {
        queue.poll(&mut done);
    }
    assert_eq!(done[0].result.as_ref().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(read(queue.as_mut()).is_err());
    assert!(read(idle.as_mut()).is_err());
    assert!(device.queue().is_err());
}

#[test]
fn a_controller_that_does_not_come_back_fails() {
    let (simulation, device) = device(9);
    let mut queue = device.queue().unwrap();
    simulation.state().behaviour.stays_down = true;
    device.reset().unwrap();
    until("giving up", || matches!(device.facts().health, Health::Failed(_)));
    assert!(write(queue.as_mut(), 1).is_err());
}

#[test]
fn media_errors_are_errors_and_are_counted() {
    let (simulation, device) = device(12);
    let mut queue = device.queue().unwrap();
    simulation.state().behaviour.fails = Some(0x281);
    assert_eq!(read(queue.as_mut()).unwrap_err().raw_os_error(), Some(libc::EIO));
    simulation.state().behaviour.fails = None;
    write(queue.as_mut(), 1).unwrap();
    assert!(matches!(device.facts().health, Health::Degraded(_)));
    // One that never passes ends with the operation's time.
    simulation.state().behaviour.fails = Some(0x06);
    assert!(read(queue.as_mut()).is_err());
}

#[test]
fn a_clean_end_is_told_to_the_controller() {
    let (simulation, device) = device(12);
    let mut queue = device.queue().unwrap();
    write(queue.as_mut(), 1).unwrap();
    assert_eq!(
        device.held.controller.claim_namespace(None, false).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    assert!(
        device
            .held
            .controller
            .claim_namespace(Some(7), false)
            .unwrap_err()
            .to_string()
            .contains("/n1")
    );
    device.shut_down();
    assert_eq!(simulation.state().counts.shutdowns, 1);
    assert!(write(queue.as_mut(), 2).is_err());
    drop(queue);
    drop(device);
    assert_eq!(simulation.state().mapped, 0, "nothing is shown any more");
}

/// A node under the crash test: the wrapper is all that holds the device.
#[test]
fn the_fault_engine_holds_its_device_until_it_ends() {
    let (simulation, device) = device(12);
    let fault = Fault::new(Arc::new(device), FaultSettings::default()).unwrap();
    conforms(&fault);
    let mut queue = fault.queue().unwrap();
    write(queue.as_mut(), 8).unwrap();
    run(queue.as_mut(), Action::Flush).unwrap();
    assert_eq!(simulation.state().counts.shutdowns, 0, "it was let go while it is in use");
    fault.reset().unwrap();
    until("the reset", || simulation.state().counts.resets > 0);
    assert_eq!(read(queue.as_mut()).unwrap(), 8);
    simulation.state().behaviour.is_gone = true;
    until("failing", || matches!(fault.facts().health, Health::Failed(_)));
    assert_eq!((fault.facts().engine, fault.facts().model.is_empty()), ("fault", false));
}

#[test]
fn the_end_of_the_fault_engine_is_the_end_of_its_device() {
    let (simulation, device) = device(12);
    let fault = Fault::new(Arc::new(device), FaultSettings::default()).unwrap();
    read(fault.queue().unwrap().as_mut()).unwrap();
    fault.shut_down();
    assert_eq!(simulation.state().counts.shutdowns, 1);
}

#[test]
fn a_namespace_that_is_looked_at_leaves_the_others_alone() {
    let simulation = Arc::new(Simulation::new(BYTES as usize, 12));
    simulation.state().behaviour.has_second = true;
    let bus: Arc<dyn bus::Bus> = simulation.clone();
    let held = Arc::new(Held::new("simulated".to_owned(), bus, TIMEOUT).unwrap());
    let first = Vfio::of(Arc::clone(&held), Some(1)).unwrap();
    let mut queue = first.queue().unwrap();
    // As `device.identify` does with a device that is nobody's.
    for _ in 0..2 {
        let second = Vfio::of(Arc::clone(&held), Some(2)).unwrap();
        read(second.queue().unwrap().as_mut()).unwrap();
        second.shut_down();
    }
    write(queue.as_mut(), 3).unwrap();
    assert_eq!(simulation.state().counts.shutdowns, 0);
    // Both in use: the controller ends with the last, once.
    let second = Vfio::of(held, Some(2)).unwrap();
    first.shut_down();
    read(second.queue().unwrap().as_mut()).unwrap();
    second.shut_down();
    first.shut_down();
    assert_eq!(simulation.state().counts.shutdowns, 1);
    assert!(write(queue.as_mut(), 4).is_err());
}

#[test]
fn a_namespace_is_formatted_by_who_has_it_alone() {
    let simulation = Arc::new(Simulation::new(BYTES as usize, 9));
    simulation.state().behaviour.has_second = true;
    let bus: Arc<dyn bus::Bus> = simulation.clone();
    let held = Arc::new(Held::new("simulated".to_owned(), bus, TIMEOUT).unwrap());
    let other = Vfio::of(Arc::clone(&held), Some(2)).unwrap();
    let refused = Claim::of(Arc::clone(&held), Some(1)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "the controller has other work");
    drop(other);

    let claim = Claim::of(Arc::clone(&held), Some(1)).unwrap();
    assert!(Vfio::of(Arc::clone(&held), Some(1)).is_err(), "it is taken");
    let now = |claim: &Claim| {
        let page = claim.fetch(&Command::identify(0, 0, claim.nsid())).unwrap();
        Namespace::parse(&page).unwrap().lba_shift
    };
    assert_eq!(now(&claim), 9);
    claim.perform(&Command::format(1, 1, 0), TIMEOUT).unwrap();
    assert_eq!((now(&claim), simulation.state().counts.formats), (12, 1));
    let refused = claim.perform(&Command::format(1, 5, 0), TIMEOUT).unwrap_err();
    assert!(refused.to_string().contains("0x0a"), "{refused}");
    drop(claim);
    conforms(&Vfio::of(held, Some(1)).unwrap());
}

#[test]
fn memory_of_a_queue_that_cannot_be_removed_stays_with_the_device() {
    let (simulation, device) = device(12);
    let mut queue = device.queue().unwrap();
    write(queue.as_mut(), 1).unwrap();
    let shown = simulation.state().mapped;
    simulation.state().behaviour.ignores = Some(crate::nvme::opcode::admin::DELETE_SQ);
    drop(queue);
    assert_eq!(simulation.state().mapped, shown, "its rings stay where the device knows them");
    // The admin queue is not used again before the reset that follows.
    until("the reset", || simulation.state().counts.resets > 0);
    let mut queue = device.queue().unwrap();
    assert_eq!(read(queue.as_mut()).unwrap(), 1);
}

#[test]
fn a_controller_that_does_not_answer_for_its_health_is_reset() {
    let (simulation, device) = device(12);
    let mut queue = device.queue().unwrap();
    write(queue.as_mut(), 9).unwrap();
    let before = simulation.state().counts.resets;
    simulation.state().behaviour.ignores = Some(crate::nvme::opcode::admin::GET_LOG_PAGE);
    assert!(matches!(device.facts().health, Health::Degraded(_)));
    until("the reset", || simulation.state().counts.resets > before);
    assert_eq!(read(queue.as_mut()).unwrap(), 9);
    until("recovery", || device.facts().health == Health::Ok);
}

#[test]
fn queues_run_out_with_words() {
    let (_simulation, device) = device(12);
    let queues: Vec<_> = (0..4).map(|_| device.queue().unwrap()).collect();
    let error = device.queue().err().unwrap().to_string();
    assert!(error.contains("fewer cores"), "{error}");
    drop(queues);
    device.queue().unwrap();
}
