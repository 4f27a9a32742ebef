//! What a killed process or a power cut leaves behind: everything acknowledged, or at least everything that
//! was acknowledged as durable, and always a prefix.

use std::fs;
use std::os::unix::fs::FileExt;

use super::*;

/// Copies a directory that is being written to: the log first, so that the copy of the store is never
/// behind what the log's copy has forgotten.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let mut entries: Vec<_> = fs::read_dir(from).unwrap().map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(|entry| (entry.file_name() != "log", entry.file_name()));
    for entry in entries {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().map(|kind| kind.is_dir()) {
            Ok(true) => copy(&path, &target),
            // Gone meanwhile: a segment, a table, the temporary file of a checkpoint.
            _ => match fs::read(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                bytes => write_sparse(&target, &bytes.unwrap()),
            },
        }
    }
}

/// Most of a journal or a segment is zeros that nobody has to write again.
fn write_sparse(path: &Path, bytes: &[u8]) {
    const BLOCK: usize = 16 << 10;
    let file = fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (at, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, (at * BLOCK) as u64).unwrap();
        }
    }
}

/// xorshift, so that a seed names a run.
#[derive(Debug)]
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides.max(1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let group = setup(dir.path()).await;
    let mut answered = 0;
    for round in 0..6 {
        let background = tokio::spawn({
            let group = group.clone();
            async move {
                for n in 0..200 {
                    make(&group, &format!("b{round}-{n}"), n % 5 == 0).await;
                }
            }
        });
        for n in 0..100 {
            make(&group, &format!("a{answered}"), n % 50 == 49).await;
            answered += 1;
        }
        if round % 2 == 1 {
            group.0.store.flush();
            group.checkpoint().await.unwrap();
        }
        let image = tempfile::tempdir().unwrap();
        copy(dir.path(), image.path());
        background.await.unwrap();
        let found = open(image.path()).await.unwrap();
        let names = names(&found);
        for n in 0..answered {
            let name = format!("a{n}");
            assert!(names.binary_search(&name).is_ok(), "round {round}: {name} is lost");
        }
        is_clean(&found);
        make(&found, "goes on", true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_keeps_what_was_durable_and_leaves_a_prefix() {
    for seed in 1..=12u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let dir = tempfile::tempdir().unwrap();
        let group = setup(dir.path()).await;
        let durable = dice.roll(40) as usize + 1;
        for n in 0..durable {
            make(&group, &format!("{n:04}"), n + 1 == durable).await;
        }
        let (segment, stable) = group.0.log.end();
        for n in durable..durable + dice.roll(60) as usize {
            make(&group, &format!("{n:04}"), false).await;
        }
        let image = tempfile::tempdir().unwrap();
        copy(dir.path(), image.path());
        // Sectors of the log that were not synced, and any part of the store's journal, are gone.
        let log = image.path().join("log").join(segment.file_name().unwrap());
        let log = fs::OpenOptions::new().write(true).open(log).unwrap();
        for at in (stable.next_multiple_of(512)..stable + 40_000).step_by(512) {
            if dice.roll(3) == 0 {
                log.write_all_at(&[0; 512], at).unwrap();
            }
        }
        let journal = image.path().join("kv/0.jnl");
        let journal = fs::OpenOptions::new().write(true).open(journal).unwrap();
        match dice.roll(3) {
            0 => journal.set_len(dice.roll(30_000)).unwrap(),
            1 => journal.write_all_at(&[0; 4096], dice.roll(7) * 4096).unwrap(),
            _ => {}
        }
        let found = open(image.path()).await.unwrap();
        let names = names(&found);
        let expected: Vec<String> = (0..names.len()).map(|n| format!("{n:04}")).collect();
        assert_eq!(names, expected, "seed {seed}: not a prefix");
        assert!(names.len() >= durable, "seed {seed}: {} of {durable}", names.len());
        is_clean(&found);
        make(&found, "goes on", true).await;
    }
}
