//! Sessions: open files and locks across clients, and what ends with a session.

use std::time::Duration;

use bytes::Bytes;
use fsd_rpc::message::{Failure, Request, Response};
use fsd_rpc::{CallError, Client, ConnectOptions};
use raftmeta_types::command::Create;
use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use raftmeta_types::{Command, FileKind, Ino, MetaError, Reply};

use crate::support::*;

fn lock(client: &Client, ino: Ino, kind: LockKind, owner: u64) -> Lock {
    Lock {
        ino,
        family: LockFamily::Posix,
        owner: LockOwner { session: client.session(), owner },
        kind,
        start: 0,
        end: 99,
        pid: 1,
    }
}

fn is_stale(client: &Client, ino: Ino) -> bool {
    matches!(
        client.call(&Request::GetAttr { ino }, &[]),
        Err(CallError::Failure(Failure::Meta(MetaError::Stale)))
    )
}

#[test]
fn a_file_unlinked_by_another_client_lives_until_its_last_close() {
    let node = Node::start();
    let (one, two) = (node.client(), node.client());
    let file = one.make(Ino::ROOT, "f", FileKind::Regular).ino;
    one.write_chunk(file, 0, b"still here").unwrap();
    one.open(file).unwrap();
    two.remove(Ino::ROOT, "f").unwrap();
    assert_eq!(one.read(file), b"still here");
    assert_eq!(one.open(file).unwrap().nlink, 0);
    assert_eq!(refused(two.open(file)), MetaError::Stale);
    one.close(file);
    until("the file is freed", || is_stale(&one, file).then_some(()));

    // The same by a rename over it.
    let file = one.make(Ino::ROOT, "f", FileKind::Regular).ino;
    one.open(file).unwrap();
    two.make(Ino::ROOT, "g", FileKind::Regular);
    two.rename((Ino::ROOT, "g"), (Ino::ROOT, "f")).unwrap();
    assert_eq!(one.open(file).unwrap().nlink, 0);
    one.goodbye();
    until("the file is freed", || is_stale(&two, file).then_some(()));
}

#[test]
fn open_and_unlink_at_once_never_free_an_open_file() {
    let node = Node::start();
    let (one, two) = (node.client(), node.client());
    for round in 0..200 {
        let name = format!("f{round}");
        let file = one.make(Ino::ROOT, &name, FileKind::Regular).ino;
        let opened = std::thread::scope(|scope| {
            let opener = scope.spawn(|| one.open(file));
            two.remove(Ino::ROOT, &name).unwrap();
            opener.join().unwrap()
        });
        match opened {
            Ok(_) => {
                one.call(&Request::GetAttr { ino: file }, &[]).expect("an open file is there");
                one.close(file);
            }
            Err(error) => assert_eq!(refused::<()>(Err(error)), MetaError::Stale),
        }
        until("the file is freed", || is_stale(&one, file).then_some(()));
    }
}

#[test]
fn a_temporary_file_is_its_makers_until_linked() {
    let node = Node::start();
    let (one, two) = (node.client(), node.client());
    let create = Create {
        parent: Ino::ROOT,
        name: Bytes::new(),
        kind: FileKind::Regular,
        mode: 0o600,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
        exclusive: true,
        open: false,
    };
    let reply = one.mutate(false, Command::Create(create)).unwrap();
    let Reply::Created { inode, .. } = reply else { panic!("{reply:?}") };
    one.open(inode.ino).unwrap();
    assert_eq!(refused(two.open(inode.ino)), MetaError::Stale);
    let link = Command::Link { ino: inode.ino, parent: Ino::ROOT, name: "f".into() };
    one.mutate(false, link).unwrap();
    one.close(inode.ino);
    assert_eq!(two.open(inode.ino).unwrap().nlink, 1);
}

#[test]
fn a_lock_waits_for_the_other_client_and_wakes() {
    let node = Node::start();
    let (one, two) = (node.client(), node.client());
    let file = one.make(Ino::ROOT, "f", FileKind::Regular).ino;
    let exclusive = |client: &Client| lock(client, file, LockKind::Exclusive, 7);
    one.mutate(false, Command::Lock(exclusive(&one))).unwrap();
    let blocked = two.mutate(false, Command::Lock(exclusive(&two)));
    assert_eq!(refused(blocked), MetaError::WouldBlock);
    let found = two.call(&Request::GetLock(exclusive(&two)), &[]).unwrap().0;
    assert!(matches!(found, Response::Lock(Some(held)) if held.owner.session == one.session()));
    let timed_out = two.lock_wait(exclusive(&two), 50);
    assert!(matches!(timed_out, Err(CallError::Failure(Failure::Timeout))), "{timed_out:?}");

    for way in 0..3 {
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| two.lock_wait(exclusive(&two), 100_000));
            // It may wait already or not: both have to end well.
            std::thread::sleep(Duration::from_millis(20));
            match way {
                0 => {
                    let unlock = lock(&one, file, LockKind::Unlock, 7);
                    one.mutate(false, Command::Lock(unlock)).unwrap();
                }
                1 => {
                    one.mutate(false, Command::UnlockOwner { ino: file, owner: 7 }).unwrap();
                }
                _ => one.goodbye(),
            }
            assert!(matches!(waiter.join().unwrap(), Ok(Reply::Done)));
        });
        if way < 2 {
            let unlock = lock(&two, file, LockKind::Unlock, 7);
            two.mutate(false, Command::Lock(unlock)).unwrap();
            one.mutate(false, Command::Lock(exclusive(&one))).unwrap();
        }
    }
}

#[test]
fn a_silent_session_expires_and_its_client_gets_a_new_one() {
    let node = Node::start();
    let (one, two) = (node.client(), node.client());
    let file = one.make(Ino::ROOT, "f", FileKind::Regular).ino;
    one.mutate(false, Command::Lock(lock(&one, file, LockKind::Exclusive, 1))).unwrap();
    let silent = Silent::begin(&node);
    let held = Lock {
        owner: LockOwner { session: silent.session, owner: 1 },
        start: 200,
        end: 300,
        ..lock(&one, file, LockKind::Exclusive, 1)
    };
    silent.lock(held.clone());
    let unlinked = one.make(Ino::ROOT, "unlinked", FileKind::Regular).ino;
    silent.open(unlinked);
    two.remove(Ino::ROOT, "unlinked").unwrap();
    assert!(!is_stale(&two, unlinked), "it is open");
    // The others ping; the silent one does not, and its lock goes.
    let wanted = Lock { owner: LockOwner { session: two.session(), owner: 1 }, ..held };
    assert!(matches!(two.lock_wait(wanted, 110_000), Ok(Reply::Done)));
    let conflict = lock(&two, file, LockKind::Exclusive, 1);
    assert_eq!(refused(two.mutate(false, Command::Lock(conflict))), MetaError::WouldBlock);
    assert!(silent.is_refused());
    // And so does the file that only it held open.
    assert!(is_stale(&two, unlinked));
}

/// A client that greets and then says nothing.
struct Silent {
    stream: std::cell::RefCell<std::os::unix::net::UnixStream>,
    session: raftmeta_types::SessionId,
}

impl Silent {
    fn begin(node: &Node) -> Silent {
        use fsd_rpc::message::{Hello, PROTOCOLS, Role};
        let stream = std::os::unix::net::UnixStream::connect(node.path("fsd.sock")).unwrap();
        let stream = std::cell::RefCell::new(stream);
        let mut silent = Silent { stream, session: raftmeta_types::SessionId(0) };
        let role = Role::NewSession { client: "silent".into() };
        let hello = Hello { protocols: PROTOCOLS, build: "test".into(), role };
        match silent.ask(&Request::Hello(hello)) {
            Response::Welcome(welcome) => silent.session = welcome.session,
            other => panic!("{other:?}"),
        }
        silent
    }

    fn ask(&self, request: &Request) -> Response {
        use fsd_rpc::frame::{self, Kind};
        let stream = &mut *self.stream.borrow_mut();
        frame::write(stream, Kind::Request, request, &[]).unwrap();
        frame::read(stream).unwrap().message(Kind::Reply).unwrap()
    }

    fn lock(&self, lock: Lock) {
        let command = Command::Lock(lock);
        let answer = self.ask(&Request::Mutate { slot: 0, seq: 1, durable: false, command });
        assert!(matches!(answer, Response::Reply(Reply::Done)), "{answer:?}");
    }

    fn open(&self, ino: Ino) {
        let answer = self.ask(&Request::Open { ino });
        assert!(matches!(answer, Response::Inode(_)), "{answer:?}");
    }

    fn is_refused(&self) -> bool {
        matches!(
            self.ask(&Request::Ping),
            Response::Failed(Failure::Meta(MetaError::SessionExpired))
        )
    }
}

#[test]
fn nobody_else_resumes_a_session_or_commands_for_the_node() {
    use fsd_rpc::message::{Hello, PROTOCOLS, Role};
    let node = Node::start();
    let client = node.client();
    let silent = Silent::begin(&node);
    let role = Role::Session {
        session: client.session(),
        secret: [1; 16],
        client: String::new(),
        open: vec![],
    };
    let hello = Hello { protocols: PROTOCOLS, build: "test".into(), role };
    let other = std::os::unix::net::UnixStream::connect(node.path("fsd.sock")).unwrap();
    let thief = Silent { stream: std::cell::RefCell::new(other), session: client.session() };
    let answer = thief.ask(&Request::Hello(hello));
    assert!(matches!(answer, Response::Failed(Failure::Refused(_))), "{answer:?}");
    let command = Command::CloseSession { session: client.session() };
    let answer = silent.ask(&Request::Mutate { slot: 0, seq: 1, durable: false, command });
    assert!(matches!(answer, Response::Failed(Failure::Refused(_))), "{answer:?}");
    client.make(Ino::ROOT, "still", FileKind::Regular);
}

#[test]
fn a_session_that_was_revoked_is_followed_by_one_with_its_name() {
    use fsd_rpc::admin::{AdminReply, AdminRequest};
    let node = Node::start();
    let client = node.client();
    let options = ConnectOptions { admin: true, deadline: PATIENCE, ..ConnectOptions::default() };
    let admin = Client::connect(node.endpoint(), options).unwrap();
    let ask = |request| match admin.call(&Request::Admin(request), &[]).unwrap().0 {
        Response::Admin(reply) => reply,
        other => panic!("{other:?}"),
    };
    let session = client.session();
    ask(AdminRequest::ClientRevoke { session });
    let listed = until("it has another session", || {
        let _ = client.call(&Request::Ping, &[]);
        let AdminReply::Clients(clients) = ask(AdminRequest::ClientList) else { panic!() };
        clients.into_iter().find(|one| one.session != session.0)
    });
    assert_eq!(listed.client, "test:/mnt");
}

#[test]
fn what_a_session_held_goes_at_once_when_it_is_revoked() {
    use fsd_rpc::admin::{AdminReply, AdminRequest};
    let node = Node::start();
    let (one, two) = (node.client(), node.client());
    let options = ConnectOptions { admin: true, deadline: PATIENCE, ..ConnectOptions::default() };
    let admin = Client::connect(node.endpoint(), options).unwrap();
    let ask = |request| match admin.call(&Request::Admin(request), &[]).unwrap().0 {
        Response::Admin(reply) => reply,
        other => panic!("{other:?}"),
    };
    let locked = one.make(Ino::ROOT, "locked", FileKind::Regular).ino;
    one.mutate(false, Command::Lock(lock(&one, locked, LockKind::Exclusive, 1))).unwrap();
    let unlinked = one.make(Ino::ROOT, "unlinked", FileKind::Regular).ino;
    one.write_chunk(unlinked, 0, &noise(1, 100_000)).unwrap();
    one.open(unlinked).unwrap();
    two.remove(Ino::ROOT, "unlinked").unwrap();
    let take = || two.mutate(false, Command::Lock(lock(&two, locked, LockKind::Exclusive, 1)));
    assert_eq!(refused(take()), MetaError::WouldBlock);
    assert!(!is_stale(&two, unlinked), "it is open");

    // Nobody waits for anything: with the answer they are gone.
    ask(AdminRequest::ClientRevoke { session: one.session() });
    assert!(is_stale(&two, unlinked));
    assert!(matches!(take(), Ok(Reply::Done)));
    until("the space of the file is given back", || {
        let AdminReply::Status(status) = ask(AdminRequest::Status) else { panic!() };
        (status.data.live_bytes == 0).then_some(())
    });
}
