use super::*;

fn shell(script: &str, stop_within: Duration) -> Spec {
    Spec { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()], stop_within }
}

const LONG: Duration = Duration::from_secs(60);

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn the_pause_doubles_to_its_bound_and_is_short_again_after_a_good_run() {
    let mut backoff = Backoff::default();
    let pauses: Vec<u128> = (0..9).map(|_| backoff.pause(Duration::ZERO).as_millis()).collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
    assert_eq!(backoff.pause(WELL_AFTER), PAUSE_MIN);
}

#[tokio::test]
async fn a_child_that_ends_is_started_again() {
    let supervisor = Supervisor::start(shell("exec sleep 600", LONG)).unwrap();
    let mut state = supervisor.state();
    let State::Running { pid, restarts: 0 } = state.borrow().clone() else { panic!() };
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    let again = state.wait_for(|s| matches!(s, State::Running { restarts: 1, .. })).await;
    let State::Running { pid: second, .. } = again.unwrap().clone() else { panic!() };
    assert_ne!(pid, second);
    supervisor.stop().await;
    assert!(!is_alive(second));
    assert_eq!(*state.borrow(), State::Stopped);
}

#[tokio::test]
async fn the_reason_of_an_end_is_told() {
    let supervisor = Supervisor::start(shell("exit 7", LONG)).unwrap();
    let mut state = supervisor.state();
    let seen = state.wait_for(|s| matches!(s, State::Waiting { .. })).await.unwrap().clone();
    assert_eq!(seen, State::Waiting { why: "ended: exit status: 7".into() });
    supervisor.stop().await;
}

#[tokio::test]
async fn a_child_deaf_to_sigterm_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let ready = directory.path().join("ready");
    let script = format!("trap '' TERM; echo > {}; while :; do sleep 0.1; done", ready.display());
    let supervisor = Supervisor::start(shell(&script, Duration::from_millis(50))).unwrap();
    let State::Running { pid, .. } = supervisor.state().borrow().clone() else { panic!() };
    while !ready.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    supervisor.stop().await;
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_at_once() {
    let spec = Spec { program: "/nonexistent".into(), arguments: vec![], stop_within: LONG };
    assert_eq!(Supervisor::start(spec).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn the_program_beside_goes_before_the_path() {
    let directory = tempfile::tempdir().unwrap();
    let (here, there) = (directory.path().join("here"), directory.path().join("there"));
    for place in [&here, &there] {
        std::fs::create_dir(place).unwrap();
        std::fs::write(place.join("blockd"), "").unwrap();
    }
    let find = || find_program("blockd", &here.join("cfs"), there.as_os_str());
    assert_eq!(find(), Some(here.join("blockd")));
    std::fs::remove_file(here.join("blockd")).unwrap();
    assert_eq!(find(), Some(there.join("blockd")));
    std::fs::remove_file(there.join("blockd")).unwrap();
    assert_eq!(find(), None);
}
