//! Every target on its corpus, then on inputs made from it.
//!
//! | variable | |
//! |---|---|
//! | `FUZZ_INPUTS` | inputs of the quickest target; the others get less, by their cost |
//! | `FUZZ_SEED` | of the mutation engine; a number |
//! | `FUZZ_TARGET` | only this one |

#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz::mutate::{Dice, mutate};
use fuzz::{TARGETS, Target};

/// Everything takes some seconds on one core.
const INPUTS: u64 = 40_000;
const SEED: u64 = 1;

fn number(variable: &str, usual: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => usual,
    }
}

fn regressions(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target.name)
}

/// Runs one input; one that fails is kept.
fn run(target: &Target, input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok() {
        return;
    }
    let name = format!("{}-{}", target.name, &blake3::hash(input).to_hex()[..16]);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&kept, input).unwrap();
    panic!(
        "target {} fails on {origin}; the input is kept in {}: once it is mended, move it to {}",
        target.name,
        kept.display(),
        regressions(target).display(),
    );
}

fn fuzz(name: &str) {
    if std::env::var("FUZZ_TARGET").is_ok_and(|only| only != name) {
        return;
    }
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let mut corpus = (target.seeds)();
    assert!(!corpus.is_empty());
    for (at, input) in corpus.iter().enumerate() {
        run(target, input, &format!("its seed {at}"));
    }
    let mut found: Vec<PathBuf> = match std::fs::read_dir(regressions(target)) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(_) => Vec::new(),
    };
    found.sort();
    for path in found {
        let input = std::fs::read(&path).unwrap();
        run(target, &input, &path.display().to_string());
        corpus.push(input);
    }
    let (seed, inputs) = (number("FUZZ_SEED", SEED), number("FUZZ_INPUTS", INPUTS));
    for at in 0..(inputs / target.cost).max(1) {
        let input = mutate(&mut Dice::of(seed, name, at), &corpus, target.dictionary);
        run(target, &input, &format!("input {at} of FUZZ_SEED={seed}"));
    }
}

/// A test for each, so that they run beside each other and a failure says which.
macro_rules! tests {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test() {
            let tests = [$(stringify!($name)),*];
            let targets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(targets, tests);
        }

        #[test]
        fn every_regression_is_of_a_target() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!([$(stringify!($name)),*].contains(&&*name), "{name}");
            }
        }
    };
}

tests! {
    blockd_admin
    blockd_config
    blockd_pool
    checkpoint
    chunk_format
    chunk_store
    credentials
    fsd_config
    fuse_requests
    ipc_handshake
    ipc_queue
    log_directory
    log_segment
    meta_commands
    meta_store
    nvmet_pdus
    nvmet_session
    records
    rpc_frame
    rpc_messages
    token
}
