//! Any damage to any file: the same state comes back, or an error that names what is damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use openraft::EntryPayload;
use raftmeta_types::Version;

use super::crash::{Dice, copy};
use super::*;
use crate::kv::{Kv, KvRead, MemKv};

/// A directory with everything in it: two segments, tables, journals, a checkpoint, entries after it.
async fn full(dir: &Path) {
    let group = setup(dir).await;
    let ino = make(&group, "f", false).await;
    for n in 0..20 {
        make(&group, &format!("a{n}"), n % 7 == 0).await;
        group.propose(server(write(ino, 60_000)), false).await.unwrap().unwrap();
    }
    group.0.store.flush();
    for n in 0..1100 {
        make(&group, &format!("b{n}"), false).await;
    }
    group.checkpoint().await.unwrap();
    until("a checkpoint", || group.0.store.checkpointed() > Some(1000)).await;
    until("a purge", || group.0.log.purged().is_some()).await;
    for n in 0..20 {
        make(&group, &format!("c{n}"), true).await;
    }
    group.shutdown().await.unwrap();
    drop(group);
    // The last one out closes the files.
    until("the directory is let go", || File::open(dir.join("lock")).unwrap().try_lock().is_ok())
        .await;
}

/// What store and log of the directory make together, or why they cannot be read.
fn state(dir: &Path) -> io::Result<MemKv> {
    let lock = Arc::new(File::create(dir.join("lock"))?);
    let store = Store::open(dir, Arc::clone(&lock))?;
    let log = LogStore::open(&dir.join("log"), 1, store.clone(), lock)?;
    let mut kv = MemKv::new();
    for (key, value) in store.view().scan(&[1], &[0xff], usize::MAX, false).unwrap() {
        kv.put(&key, &value).unwrap();
    }
    let (mut next, mut time) = (store.applied().map_or(0, |index| index + 1), store.time());
    for entry in log.all_entries()? {
        if entry.log_id.index < next {
            continue;
        }
        assert_eq!(entry.log_id.index, next, "a gap between store and log");
        next += 1;
        if let EntryPayload::Normal(mut payload) = entry.payload {
            time = time.max(payload.envelope.time);
            payload.envelope.time = time;
            let index = Version(entry.log_id.index);
            let _refusals_too = crate::apply(&mut kv, index, &payload.envelope).unwrap();
        }
    }
    Ok(kv)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "lock" {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Does something bad to the file and says what.
fn harm(path: &Path, dice: &mut Dice) -> String {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    // Most of a file of zeros is dull: harm what is used.
    let bytes = fs::read(path).unwrap();
    let used = bytes.iter().rposition(|&byte| byte != 0).map_or(len, |at| at as u64 + 1);
    let at = match dice.roll(3) {
        0 => dice.roll(used.min(200)),
        1 => used - 1 - dice.roll(used.min(200)),
        _ => dice.roll(used),
    };
    match dice.roll(5) {
        0 => {
            file.set_len(at).unwrap();
            format!("cut to {at}")
        }
        1 => {
            let bytes = vec![0xff; dice.roll(16) as usize + 1];
            file.write_all_at(&bytes, at).unwrap();
            format!("{} bytes of ones at {at}", bytes.len())
        }
        2 => {
            let bytes = vec![0; dice.roll(2000) as usize + 1];
            file.write_all_at(&bytes, at).unwrap();
            format!("{} zeros at {at}", bytes.len())
        }
        _ => {
            let bit = dice.roll(8);
            file.write_all_at(&[bytes[at as usize] ^ 1 << bit], at).unwrap();
            format!("bit {bit} at {at} flipped")
        }
    }
}

fn seeds() -> u64 {
    std::env::var("CLAUDEFS_DAMAGE_SEEDS").ok().map_or(24, |seeds| seeds.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_mended_or_named() {
    let base = tempfile::tempdir().unwrap();
    full(base.path()).await;
    let healthy = state(base.path()).unwrap();
    assert_eq!(check::check(&healthy).unwrap(), []);
    let (mut mended, mut named) = (0, 0);
    for seed in 1..=seeds() {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let image = tempfile::tempdir().unwrap();
        copy(base.path(), image.path());
        let files = files(image.path());
        let path = &files[dice.roll(files.len() as u64) as usize];
        let what = harm(path, &mut dice);
        let relative = path.strip_prefix(image.path()).unwrap();
        match state(image.path()) {
            Ok(found) => {
                assert!(found == healthy, "seed {seed}: {what} in {relative:?} changed the state");
                // And what was mended stays so.
                assert!(state(image.path()).unwrap() == healthy, "seed {seed}: the second time");
                mended += 1;
            }
            Err(error) => {
                let (error, name) = (error.to_string(), relative.display().to_string());
                assert!(error.contains(&name), "seed {seed}: {what} in {name}: {error}");
                named += 1;
            }
        }
    }
    assert!(mended > 0 && named > 0, "{mended} mended, {named} named");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_opens_over_a_lost_store_and_a_lost_checkpoint() {
    let base = tempfile::tempdir().unwrap();
    full(base.path()).await;
    for lost in ["kv", "checkpoints/current", "kv/keyspaces/1/current", "kv/version"] {
        let image = tempfile::tempdir().unwrap();
        copy(base.path(), image.path());
        let path = image.path().join(lost);
        match path.is_dir() {
            true => fs::remove_dir_all(&path).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        let group = open(image.path()).await.unwrap();
        assert_eq!(names(&group).len(), 1 + 20 + 1100 + 20, "without {lost}");
        is_clean(&group);
        let store = group.0.store.clone();
        until("a checkpoint again", || store.checkpointed().is_some()).await;
        make(&group, "goes on", true).await;
    }
}

/// A power cut may leave the store, which is not synced, with more than the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_ahead_of_its_log_is_right_and_can_be_made_anew_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let group = setup(dir.path()).await;
    make(&group, "a", true).await;
    let log = tempfile::tempdir().unwrap();
    copy(&dir.path().join("log"), log.path());
    for n in 0..30 {
        make(&group, &format!("n{n}"), false).await;
    }
    group.shutdown().await.unwrap();
    drop(group);
    until("the directory is let go", || {
        File::open(dir.path().join("lock")).unwrap().try_lock().is_ok()
    })
    .await;
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    copy(log.path(), &dir.path().join("log"));
    for lose_store in [false, true] {
        if lose_store {
            fs::remove_dir_all(dir.path().join("kv")).unwrap();
        }
        let group = open(dir.path()).await.unwrap();
        assert_eq!(names(&group).len(), 31 + usize::from(lose_store));
        is_clean(&group);
        make(&group, &format!("goes on {lose_store}"), true).await;
        group.shutdown().await.unwrap();
        drop(group);
        until("the directory is let go", || {
            File::open(dir.path().join("lock")).unwrap().try_lock().is_ok()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_and_checkpoint_both_damaged_are_both_named() {
    let base = tempfile::tempdir().unwrap();
    full(base.path()).await;
    let version = base.path().join("kv/version");
    let checkpoint = base.path().join("checkpoints/current");
    fs::write(&version, b"FJM\x03").unwrap();
    let file = fs::OpenOptions::new().write(true).open(&checkpoint).unwrap();
    file.write_all_at(b"????", 5000).unwrap();
    let error = open(base.path()).await.unwrap_err().to_string();
    assert!(error.contains("kv/version") && error.contains("checkpoints/current"), "{error}");
    assert!(version.exists(), "nothing was touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_version_has_written_is_refused_by_name_and_left_alone() {
    let base = tempfile::tempdir().unwrap();
    full(base.path()).await;
    let mut segments: Vec<String> = fs::read_dir(base.path().join("log"))
        .unwrap()
        .map(|entry| format!("log/{}", entry.unwrap().file_name().into_string().unwrap()))
        .collect();
    segments.sort();
    let last = segments.last().unwrap().as_str();
    for (name, at, ours) in [("kv/version", 3, 3), ("checkpoints/current", 7, 2), (last, 7, 1)] {
        let image = tempfile::tempdir().unwrap();
        copy(base.path(), image.path());
        let path = image.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[at], ours, "{name}");
        bytes[at] = ours + 1;
        if name.starts_with("log/") {
            let crc = crc_fast::crc32_iscsi(&bytes[..60]).to_le_bytes();
            bytes[60..64].copy_from_slice(&crc);
        }
        fs::write(&path, &bytes).unwrap();
        let before = files(image.path());
        let error = open(image.path()).await.unwrap_err().to_string();
        let newer = format!("format {} is newer than {ours}", ours + 1);
        assert!(error.contains(name) && error.contains(&newer), "{name}: {error}");
        assert!(fs::read(&path).unwrap() == bytes, "{name} was changed");
        // The store is opened before the log is.
        assert!(name.starts_with("log/") || files(image.path()) == before, "{name}");
    }
}
