use std::path::Path;

use super::*;

const BYTES: u64 = 32 << 20;

fn plan(engine: EngineKind, path: &Path, rw: Pattern) -> Plan {
    let subject = Subject::Engine { engine, path: path.to_owned(), size: Some(BYTES) };
    Plan {
        subject,
        rw,
        bs: 8192,
        qd: 7,
        seconds: 1,
        read_percent: 70,
        polled: false,
        confirm: None,
    }
}

#[test]
fn every_pattern_on_memory() {
    let patterns =
        [Pattern::Randread, Pattern::Randwrite, Pattern::Read, Pattern::Write, Pattern::Mix];
    for rw in patterns {
        // Once without sleeping.
        let polled = rw == Pattern::Mix;
        let plan = Plan { polled, ..plan(EngineKind::Mem, Path::new("ram"), rw) };
        let report = run(&plan).unwrap();
        let count = |of: Option<Latency>| of.map_or(0, |l| l.operations);
        let (reads, writes) = (count(report.read), count(report.write));
        assert_eq!(reads + writes, report.operations);
        assert_eq!(
            (reads > 0, writes > 0),
            (rw != Pattern::Randwrite && rw != Pattern::Write, rw.writes())
        );
        assert!(report.operations >= 7 && report.iops > 0.0, "{report:?}");
        assert!(report.blockd_cpu_ns_per_operation.is_none() && report.cpu_ns_per_operation > 0.0);
        if rw == Pattern::Mix {
            let percent = reads * 100 / report.operations;
            assert!((60..=80).contains(&percent), "{percent} % reads of {}", report.operations);
        }
    }
}

#[test]
fn data_is_written_over_only_if_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    let mut bytes = vec![0; BYTES as usize];
    *bytes.last_mut().unwrap() = 1;
    std::fs::write(&path, &bytes).unwrap();
    for rw in [Pattern::Write, Pattern::Mix] {
        let mut plan = plan(EngineKind::Uring, &path, rw);
        for confirm in [None, Some("other".to_owned())] {
            plan.confirm = confirm;
            assert_eq!(run(&plan).unwrap_err().code(), "NOT_BLANK");
        }
        assert!(std::fs::read(&path).unwrap() == bytes, "nothing was changed");
    }
    let report = run(&plan(EngineKind::Uring, &path, Pattern::Randread)).unwrap();
    assert_eq!(report.engine, "uring");
    let mut writes = plan(EngineKind::Uring, &path, Pattern::Write);
    writes.confirm = Some(path.display().to_string());
    assert!(run(&writes).unwrap().write.unwrap().operations > 0);
    assert!(std::fs::read(&path).unwrap()[..8192] != bytes[..8192]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let good = || plan(EngineKind::Mem, Path::new("ram"), Pattern::Read);
    type Change = fn(&mut Plan);
    let cases: [(Change, &str); 6] = [
        (|p| p.bs = 1000, "bs 1000"),
        (|p| p.bs = 4 << 20, "bs 4194304"),
        (|p| p.qd = 0, "qd 0"),
        (|p| p.seconds = 0, "time 0"),
        (|p| p.read_percent = 101, "101"),
        (
            |p| {
                (p.qd, p.bs) = (1024, 2 << 20);
            },
            "1 GiB",
        ),
    ];
    for (change, word) in cases {
        let mut plan = good();
        change(&mut plan);
        let error = run(&plan).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let missing = plan(EngineKind::Uring, Path::new("/nonexistent/device"), Pattern::Read);
    assert_eq!(run(&missing).unwrap_err().code(), "DEVICE");
}
