//! The keeper: one thread a controller, which does what takes time, so that reactors never wait for a sick device.
//!
//! ```text
//! every 100 ms, or when woken:
//!   the kernel wants the device back, or its registers read all ones ─► die
//!   fatal status, or somebody asked ─► reset
//!   a command is older than half of the timeout ─► Abort; older than three quarters ─► reset
//!   a queue wants its pair after a reset ─► create it
//! ```

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::controller::{Controller, DEAD, Parts, Seat};
use super::registers::{self, State};
use crate::engine::{Health, wait_readable};
use crate::nvme::command::Command;

/// The grain of all times here.
const TICK: Duration = Duration::from_millis(100);
/// Resets in a row without a command that succeeds; then the controller counts as failed.
const RESETS_MAX: u32 = 5;
/// A controller that has been well for this long has its resets forgiven.
const FORGIVEN: Duration = Duration::from_secs(60);

struct Keeper {
    controller: Arc<Controller>,
    /// Commands that were aborted already: queue, id and when it was sent.
    aborted: Vec<(u16, u16, u64)>,
    resets: u32,
    last_reset: Option<Instant>,
    removal: Option<RawFd>,
}

/// Runs until the controller is dead or told to stop.
pub fn run(controller: Arc<Controller>) {
    let removal = controller.parts().as_ref().and_then(|p| p.bus.removal_fd());
    let mut keeper =
        Keeper { controller, aborted: Vec::new(), resets: 0, last_reset: None, removal };
    loop {
        if keeper.controller.stopping.load(Ordering::Acquire) {
            keeper.controller.shut_down();
            return;
        }
        if keeper.controller.is_dead() {
            return;
        }
        keeper.round();
        keeper.sleep();
    }
}

impl Keeper {
    fn sleep(&self) {
        let mut fds = vec![self.controller.wake.as_raw_fd()];
        // Once the device is dead its descriptors may be closed; then nobody comes here.
        fds.extend(self.removal.filter(|_| !self.controller.is_dead()));
        if let Err(error) = wait_readable(&fds, Some(TICK.as_millis() as i32)) {
            tracing::error!(%error, "waiting for a controller failed");
            std::thread::sleep(TICK);
        }
        // Empties the counter; that it is empty already is no error.
        let _ = rustix::io::read(&self.controller.wake, &mut [0_u8; 8]);
    }

    fn round(&mut self) {
        let controller = Arc::clone(&self.controller);
        let now_ms = controller.since.elapsed().as_millis() as u64 + 1;
        controller.now_ms.store(now_ms, Ordering::Release);
        let (state, is_lost) = {
            let parts = controller.parts();
            let Some(Parts { bus, arenas, admin }) = parts.as_ref() else { return };
            arenas.sweep();
            (registers::state(bus.as_ref()), admin.is_lost())
        };
        let wants_back = self.removal.is_some_and(is_readable);
        match state {
            _ if wants_back => {
                controller.die("the kernel asks for it back: it was removed or unbound")
            }
            State::Gone => controller.die("its registers do not answer: it was removed"),
            State::Fatal => self.reset("the controller reports a fatal error"),
            State::NotReady => self.reset("the controller is not ready any more"),
            // Whoever asked it, be it for its health.
            State::Ready if is_lost => self.reset("it does not answer admin commands"),
            State::Ready if controller.reset_wanted.swap(false, Ordering::AcqRel) => {
                // Not for trouble, so it does not count.
                self.resets = 0;
                self.reset("a reset was asked for");
            }
            State::Ready => {
                self.create_wanted();
                self.look_for_late(now_ms);
                if self.last_reset.is_some_and(|at| at.elapsed() >= FORGIVEN) {
                    (self.resets, self.last_reset) = (0, None);
                }
            }
        }
    }

    fn reset(&mut self, reason: &str) {
        let controller = Arc::clone(&self.controller);
        controller.set_health(Health::Recovering(reason.to_owned()));
        if controller.progress.swap(false, Ordering::AcqRel) {
            self.resets = 0;
        }
        self.resets += 1;
        self.last_reset = Some(Instant::now());
        self.aborted.clear();
        controller.reset_wanted.store(false, Ordering::Release);
        if self.resets > RESETS_MAX {
            controller.die(&format!("{RESETS_MAX} resets did not help: {reason}"));
            return;
        }
        let outcome = {
            let mut parts = controller.parts();
            let Some(parts) = parts.as_mut() else { return };
            restart(&controller, parts)
        };
        if let Err(error) = outcome {
            controller.die(&format!("it does not come back from a reset ({reason}): {error}"));
            return;
        }
        for seat in controller.seats().iter() {
            seat.wake();
        }
        controller.recovered();
    }

    /// Makes the pairs that queues have asked for.
    fn create_wanted(&mut self) {
        let controller = Arc::clone(&self.controller);
        let epoch = controller.epoch.load(Ordering::Acquire);
        let is_waiting = |seat: &Arc<Seat>| {
            seat.wanted.load(Ordering::Acquire) == epoch
                && seat.created.load(Ordering::Acquire) != epoch
        };
        let mut failure = None;
        {
            let mut parts = controller.parts();
            let Some(Parts { bus, admin, .. }) = parts.as_mut() else { return };
            for seat in controller.seats().iter().filter(|s| is_waiting(s)) {
                match admin.create_pair(bus.as_ref(), &seat.pair) {
                    Ok(()) => {
                        seat.created.store(epoch, Ordering::Release);
                        seat.wake();
                    }
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
        }
        if let Some(error) = failure {
            self.reset(&format!("a queue could not be made: {error}"));
        }
    }

    fn look_for_late(&mut self, now_ms: u64) {
        let timeout_ms = self.controller.timeout.as_millis() as u64;
        let epoch = self.controller.epoch.load(Ordering::Acquire);
        // What a queue has not taken back after a reset is nobody's.
        let is_current = |seat: &&Arc<Seat>| seat.created.load(Ordering::Acquire) == epoch;
        let late: Vec<(u16, u16, u64)> = self
            .controller
            .seats()
            .iter()
            .filter(is_current)
            .flat_map(|seat| {
                let sent = seat.sent_ms.iter().enumerate();
                let sent =
                    sent.map(|(id, at)| (seat.pair.id, id as u16, at.load(Ordering::Acquire)));
                sent.filter(|(_, _, at)| *at > 0 && now_ms - at.min(&now_ms) > timeout_ms / 2)
                    .collect::<Vec<_>>()
            })
            .collect();
        let had_late = !self.aborted.is_empty();
        self.aborted.retain(|known| late.contains(known));
        if had_late && late.is_empty() {
            self.controller.recovered();
        }
        for command in late {
            let (queue, id, sent) = command;
            if self.aborted.contains(&command) {
                if now_ms - sent > timeout_ms * 3 / 4 {
                    self.reset("a command does not end, nor can it be aborted");
                    return;
                }
                continue;
            }
            let (device, age_ms) = (&self.controller.name, now_ms - sent);
            tracing::warn!(device, queue, id, age_ms, "a command is late and is aborted");
            self.controller.set_health(Health::Recovering("commands are late".to_owned()));
            self.aborted.push(command);
            let outcome = {
                let mut parts = self.controller.parts();
                let Some(Parts { bus, admin, .. }) = parts.as_mut() else { return };
                admin.run(bus.as_ref(), &Command::abort(queue, id))
            };
            if outcome.is_err_and(|e| e.kind() == io::ErrorKind::TimedOut) {
                self.reset("it does not answer admin commands");
                return;
            }
        }
    }
}

/// Stops the controller, tells the queues, and starts it again without queues.
fn restart(controller: &Controller, parts: &mut Parts) -> io::Result<()> {
    let Parts { bus, admin, .. } = parts;
    let bus = bus.as_ref();
    let capabilities = &controller.capabilities;
    if let Err(error) = registers::disable(bus, capabilities) {
        if error.raw_os_error() == Some(libc::ENODEV) {
            return Err(error);
        }
        bus.function_reset()?;
        registers::disable(bus, capabilities)?;
    }
    // Nothing is transferred any more: what the queues had sent is theirs again.
    let epoch = controller.epoch.fetch_add(1, Ordering::AcqRel) + 1;
    assert_ne!(epoch, DEAD, "resets are fewer than that");
    admin.start(bus)?;
    let granted = admin.queues(bus, controller.queues_max)?;
    if granted < controller.queues_max {
        return Err(io::Error::other(format!("it grants only {granted} queues now")));
    }
    Ok(())
}

fn is_readable(fd: RawFd) -> bool {
    // SAFETY: the descriptor is the bus', which the controller holds while it is not dead; it is borrowed for the call.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    rustix::io::read(fd, &mut [0_u8; 8]).is_ok()
}
