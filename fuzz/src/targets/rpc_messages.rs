//! Every message of the door of fsd, and everything in it.
//!
//! What decodes is encoded, decoded and encoded again to the same bytes, and takes no memory that its bytes
//! do not account for.

use bytes::Bytes;
use fsd_rpc::admin::{AdminReply, AdminRequest, TokenPurpose};
use fsd_rpc::frame::{Frame, Kind};
use fsd_rpc::message::{
    ChunkPut, Enrolment, Event, Failure, Hello, Join, Limits, NodeRequest, Origin, Request,
    Response, Role, Versions, Welcome,
};
use fsd_rpc::tls::CaFingerprint;
use raftmeta_types::command::{AttrChange, Create, NewExtent, Write};
use raftmeta_types::{
    ChunkHash, Command, Envelope, Epoch, ExtentData, FileKind, Ino, MetaError, SessionId,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = &[
    // Lengths that are not there.
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0x80, 0x80, 0x40],
];

fn encoded(which: u8, message: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(message, vec![which]).unwrap()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let hash = ChunkHash([3; 32]);
    let write = Command::Write(Write {
        ino: Ino(70000),
        extents: vec![
            NewExtent {
                offset: 0,
                len: 3,
                data: ExtentData::Inline("abc".into()),
                receipt: Epoch(0),
            },
            NewExtent {
                offset: 9,
                len: 3,
                data: ExtentData::Chunk { hash, chunk_offset: 1 },
                receipt: Epoch(4),
            },
        ],
        change: AttrChange { mode: Some(0o644), ..AttrChange::default() },
    });
    let create = Command::Create(Create {
        parent: Ino(1),
        name: "n".into(),
        kind: FileKind::Symlink,
        mode: 0o777,
        umask: 0o22,
        uid: 1,
        gid: 1,
        rdev: 0,
        target: "t".into(),
        exclusive: true,
        open: true,
    });
    let role = Role::Session {
        session: SessionId(9),
        secret: [1; 16],
        client: "c".into(),
        open: Vec::new(),
    };
    let limits = Limits {
        shard_count: 16,
        chunk_min: 1,
        chunk_avg: 2,
        chunk_max: 3,
        inline_max: 4,
        lease_ms: 5,
    };
    let welcome = Welcome {
        protocol: 3,
        build: "b".into(),
        cluster_uuid: uuid::Uuid::from_u128(3),
        cluster_name: "c".into(),
        session: SessionId(1),
        secret: [2; 16],
        resumed: true,
        limits,
        servers: vec!["n2:9400".into()],
        signer: Some(CaFingerprint([7; 16])),
        signs_alone: true,
    };
    let csr_der = Bytes::from_static(b"der");
    let token = AdminRequest::TokenCreate { ttl_secs: 3600, uses: 1, purpose: TokenPurpose::Node };
    let hello = Hello { protocols: Versions::only(2), build: "b".into(), role: Role::Admin };
    let from = Origin::Unix { uid: 0, gid: 0 };
    let relayed = Role::Relayed { from, hello: Box::new(hello) };
    let join = Join {
        token: "t".into(),
        name: "n".into(),
        address: "n:9400".into(),
        clock_ms: 1_700_000_000_000,
        csr_der: csr_der.clone(),
    };
    vec![
        encoded(
            0,
            &Request::Hello(Hello { protocols: Versions::only(1), build: "b".into(), role }),
        ),
        encoded(0, &Request::Enrol(Enrolment { token: "t".into(), name: "n".into(), csr_der })),
        encoded(0, &Request::Mutate { slot: 3, seq: 300, durable: true, command: write.clone() }),
        encoded(0, &Request::Mutate { slot: 3, seq: 300, durable: false, command: create }),
        encoded(0, &Request::PutChunks { chunks: vec![ChunkPut { hash, len: 99 }] }),
        encoded(0, &Request::Admin(token)),
        encoded(
            0,
            &Request::Hello(Hello {
                protocols: Versions::only(2),
                build: "b".into(),
                role: relayed,
            }),
        ),
        encoded(0, &Request::Join(join)),
        encoded(0, &Request::Node(NodeRequest::GetChunks { hashes: vec![hash] })),
        encoded(0, &Request::ReadDir { ino: Ino(1), after: "x".into(), limit: 500 }),
        encoded(1, &Response::Welcome(welcome)),
        encoded(1, &Response::Xattrs(vec!["user.a".into(), "user.b".into()])),
        encoded(1, &Response::Receipts(vec![Epoch(1), Epoch(300)])),
        encoded(1, &Response::Failed(Failure::Meta(MetaError::RetryPut(vec![hash])))),
        encoded(2, &Event::Entry { parent: Ino(1), name: "gone".into() }),
        encoded(
            5,
            &Envelope {
                session: SessionId(1),
                slot: 0,
                seq: 1,
                time: raftmeta_types::Time { secs: 5, nanos: 6 },
                command: write,
            },
        ),
    ]
}

/// Decodes a message as the door does.
fn message<M: DeserializeOwned + Serialize>(kind: Kind, bytes: &[u8]) {
    let frame = Frame { kind, meta: Bytes::copy_from_slice(bytes), data: Bytes::new() };
    if let Ok(message) = frame.message::<M>(kind) {
        same_again(&message);
    }
}

fn same_again<M: DeserializeOwned + Serialize>(message: &M) {
    let once = postcard::to_stdvec(message).unwrap();
    let again: M = postcard::from_bytes(&once).expect("what is encoded decodes");
    assert_eq!(postcard::to_stdvec(&again).unwrap(), once);
}

pub fn target(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let which = cursor.u8();
    match which % 6 {
        0 => message::<Request>(Kind::Request, cursor.0),
        1 => message::<Response>(Kind::Reply, cursor.0),
        2 => message::<Event>(Kind::Event, cursor.0),
        3 => message::<AdminRequest>(Kind::Request, cursor.0),
        4 => message::<AdminReply>(Kind::Reply, cursor.0),
        _ => message::<Envelope>(Kind::Request, cursor.0),
    }
}
