use proptest::prelude::*;

use super::*;

/// A store with tables and a journal, as fjall makes it.
fn store(dir: &Path) {
    let db = fjall::Database::builder(dir).open().unwrap();
    let records = db.keyspace("records", fjall::KeyspaceCreateOptions::default).unwrap();
    for number in 1..=50u64 {
        let mut batch = db.batch();
        batch.insert(&records, number.to_be_bytes(), vec![7; 100]);
        batch.insert(&records, crate::store::STATE, number.to_le_bytes());
        batch.commit().unwrap();
        if number == 25 {
            records.rotate_memtable_and_wait().unwrap();
        }
    }
}

#[test]
fn a_store_as_fjall_leaves_it_is_intact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv");
    assert_eq!(check(&path).unwrap(), Intact::default());
    store(&path);
    assert_eq!(check(&path).unwrap().last_commit, Some(50));
    assert!(path.join("keyspaces/1/tables").read_dir().unwrap().count() > 0);
}

#[test]
fn every_byte_of_a_version_file_and_of_a_table_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv");
    store(&path);
    let keyspace = path.join("keyspaces/1");
    let current = keyspace.join("current");
    // Older versions may lie beside it: nobody reads them.
    let number = std::fs::read(&current).unwrap()[..8].try_into().map(u64::from_le_bytes).unwrap();
    let version = keyspace.join(format!("v{number}"));
    let bytes = std::fs::read(&version).unwrap();
    let listed = listed_tables(tables_section(&bytes).unwrap()).unwrap();
    let table = keyspace.join("tables").join(listed[0].0.to_string());
    for file in [&version, &table, &current, &path.join("version")] {
        let whole = std::fs::read(file).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 40 + 1) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x80;
            std::fs::write(file, &flipped).unwrap();
            let damage = check(&path).unwrap_err();
            let near = damage.path.starts_with(&keyspace) || &damage.path == file;
            assert!(near, "byte {at} of {}: {damage}", file.display());
        }
        std::fs::write(file, &whole[..whole.len() / 2]).unwrap();
        assert!(check(&path).is_err());
        std::fs::remove_file(file).unwrap();
        assert!(check(&path).is_err());
        std::fs::write(file, &whole).unwrap();
    }
    assert!(check(&path).is_ok());
}

#[test]
fn the_youngest_journal_is_cut_at_its_first_bad_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv");
    store(&path);
    let journal = path.join("0.jnl");
    let whole = std::fs::read(&journal).unwrap();
    let used = whole.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let mut damaged = whole.clone();
    damaged[used / 2] ^= 1;
    std::fs::write(&journal, &damaged).unwrap();
    let last = check(&path).unwrap().last_commit.unwrap();
    assert!(last > 20 && last < 30, "{last}");
    let len = std::fs::metadata(&journal).unwrap().len();
    assert!(len <= used as u64 / 2);
    // It is not the youngest any more: then it must be whole.
    std::fs::write(&journal, &damaged).unwrap();
    std::fs::write(path.join("1.jnl"), b"").unwrap();
    assert!(check(&path).unwrap_err().to_string().contains("0.jnl"));
    std::fs::rename(path.join("1.jnl"), path.join("2.jnl")).unwrap();
    assert!(check(&path).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Some(section) = tables_section(&bytes) {
            let _any = listed_tables(section);
        }
        let _any = listed_tables(&bytes);
    }
}
