//! Files through one client, and through two.

use bytes::Bytes;
use fsd_rpc::message::{Event, Request, Response, StatFs};
use raftmeta_types::command::{AttrChange, SetAttr, XattrMode};
use raftmeta_types::{Command, FileKind, Ino, MetaError, Reply};

use crate::support::*;

#[test]
fn a_file_is_made_written_read_renamed_and_removed() {
    let node = Node::start();
    let client = node.client();
    let dir = client.make(Ino::ROOT, "dir", FileKind::Directory).ino;
    let file = client.make(dir, "file", FileKind::Regular).ino;
    let (large, small) = (noise(1, 100_000), b"a few bytes".to_vec());
    client.write_chunk(file, 0, &large).unwrap();
    let inode = client.write_inline(file, large.len() as u64, &small);
    assert_eq!(inode.size, 100_011);
    assert_eq!(client.read(file), [&large[..], &small].concat());
    client.write_inline(file, 5000, b"over it");
    let mut expected = [&large[..], &small].concat();
    expected[5000..5007].copy_from_slice(b"over it");
    assert_eq!(client.read(file), expected);

    client.rename((dir, "file"), (Ino::ROOT, "moved")).unwrap();
    assert_eq!(client.find(dir, "file"), None);
    assert_eq!(client.find(Ino::ROOT, "moved").unwrap().ino, file);
    client.remove(Ino::ROOT, "moved").unwrap();
    assert_eq!(client.find(Ino::ROOT, "moved"), None);
    assert_eq!(refused(client.open(file)), MetaError::Stale);
    assert_eq!(refused(client.remove(Ino::ROOT, "moved")), MetaError::NotFound);
}

#[test]
fn a_directory_is_listed_in_pieces_with_attributes() {
    let node = Node::start();
    let client = node.client();
    let mut expected: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
    expected.push("é".repeat(127));
    for name in &expected {
        client.make(Ino::ROOT, name, FileKind::Regular);
    }
    assert_eq!(client.names(Ino::ROOT), expected);
    let long = "x".repeat(256);
    let request = Request::Lookup { parent: Ino::ROOT, name: long.into() };
    assert_eq!(refused(client.call(&request, &[])), MetaError::NameTooLong);
}

#[test]
fn an_answer_about_many_extents_says_how_far_it_reaches() {
    let node = Node::start();
    let client = node.client();
    let file = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    // More inline data than one message holds.
    let pieces: Vec<Vec<u8>> = (0..12).map(|n| noise(n, 100_000)).collect();
    for (piece, at) in pieces.iter().zip((0..).step_by(100_000)) {
        client.write_inline(file, at, piece);
    }
    let request = Request::Extents {
        ino: file,
        offset: 0,
        len: 1_200_000,
        with_chunks: false,
        chunk_bytes_max: 0,
    };
    let Response::Extents { end, extents, .. } = client.call(&request, &[]).unwrap().0 else {
        panic!()
    };
    assert!(end < 1_200_000 && end == extents.len() as u64 * 100_000, "{end}");
    assert_eq!(client.read(file), pieces.concat());
}

#[test]
fn attributes_links_and_extended_attributes() {
    let node = Node::start();
    let client = node.client();
    let file = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    let set = SetAttr { ino: file, change, size: Some(1 << 40) };
    client.mutate(false, Command::SetAttr(set)).unwrap();
    let link = Command::Link { ino: file, parent: Ino::ROOT, name: "g".into() };
    client.mutate(false, link).unwrap();
    let inode = client.find(Ino::ROOT, "g").unwrap();
    assert_eq!((inode.ino, inode.mode, inode.size, inode.nlink), (file, 0o600, 1 << 40, 2));

    let (name, value) = (Bytes::from("user.colour"), Bytes::from("blue"));
    let (ino, mode) = (file, XattrMode::Create);
    let set = Command::SetXattr { ino, name: name.clone(), value: value.clone(), mode };
    client.mutate(false, set.clone()).unwrap();
    assert_eq!(refused(client.mutate(false, set)), MetaError::Exists);
    let get = |name: &Bytes| client.call(&Request::GetXattr { ino, name: name.clone() }, &[]);
    assert!(matches!(get(&name).unwrap().0, Response::Xattr(found) if found == value));
    assert_eq!(refused(get(&"user.none".into())), MetaError::NoXattr);
    let list = client.call(&Request::ListXattr { ino }, &[]).unwrap().0;
    assert!(matches!(list, Response::Xattrs(names) if names == [name]));
}

#[test]
fn two_clients_see_each_other_and_hear_of_changes() {
    let node = Node::start();
    let (one, two) = (node.client(), node.client());
    let (sender, events) = std::sync::mpsc::channel();
    two.subscribe(move |event| {
        let _ = sender.send(event);
    })
    .unwrap();
    // The subscription begins on a thread of its own: make changes until one is heard of.
    let mut count = 0;
    until("an event", || {
        count += 1;
        one.make(Ino::ROOT, &format!("try{count}"), FileKind::Regular);
        events.recv_timeout(std::time::Duration::from_millis(100)).ok()
    });
    let file = one.make(Ino::ROOT, "file", FileKind::Regular).ino;
    one.write_chunk(file, 0, b"hello").unwrap();
    assert_eq!(two.read(file), b"hello");
    let mut heard = (false, false);
    while heard != (true, true) {
        match events.recv_timeout(PATIENCE).unwrap() {
            Event::Entry { name, .. } if name == "file" => heard.0 = true,
            Event::Inode { ino, data: true } if ino == file => heard.1 = true,
            Event::Entry { .. } | Event::Inode { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    two.remove(Ino::ROOT, "file").unwrap();
    assert_eq!(one.find(Ino::ROOT, "file"), None);
}

#[test]
fn statfs_counts_what_is_stored() {
    let node = Node::start();
    let client = node.client();
    let ask = || match client.call(&Request::StatFs, &[]).unwrap().0 {
        Response::StatFs(stat) => stat,
        other => panic!("{other:?}"),
    };
    let before: StatFs = ask();
    assert!(before.total_bytes > 200 << 20 && before.total_bytes < 256 << 20, "{before:?}");
    assert!(before.available_bytes < before.free_bytes);
    let file = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    for n in 0..20 {
        client.write_chunk(file, n << 20, &noise(n, 1 << 20)).unwrap();
    }
    let after = ask();
    assert!(after.free_bytes + (19 << 20) < before.free_bytes, "{before:?} {after:?}");
    assert_eq!(after.inodes_free, before.inodes_free - 1);
    assert_eq!(after.total_bytes, before.total_bytes);
}

#[test]
fn small_writes_settle_into_chunks_and_read_the_same() {
    let node = Node::start();
    let client = node.client();
    let file = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    let bytes = noise(9, 8000);
    client.write_inline(file, 0, &bytes);
    until("the inline data became a chunk", || {
        let request = Request::GetChunks { hashes: vec![hash(&bytes)] };
        client.call(&request, &[]).ok()
    });
    assert_eq!(client.read(file), bytes);
    assert!(matches!(client.remove(Ino::ROOT, "f").unwrap(), Reply::Unlinked { .. }));
    until("the chunk was deleted", || {
        let request = Request::GetChunks { hashes: vec![hash(&bytes)] };
        client.call(&request, &[]).err()
    });
}
