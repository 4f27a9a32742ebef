//! The target as hosts see it: a daemon in this process, real sockets, and the small host of `initiator`.
#![allow(clippy::unwrap_used, missing_debug_implementations)]

mod initiator;
mod malformed;
mod restart;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockd::config::Config;
use blockd::daemon::Daemon;
use blockd::{admin, nvmet};
use initiator::{BLOCK, Completion, DISCOVERY, Host, Options, PATIENCE, Queue, Who};
use serde_json::{Value, json};

const NQN: &str = "nqn.2025-01.org.example:v";
const HOST: &str = "nqn.2014-08.org.example:host";

/// A daemon with volumes `v` and `w` (16 MiB each) and a thin one; `exports` is TOML.
pub struct Target {
    daemon: Arc<Daemon>,
    pub io: SocketAddr,
    pub discovery: SocketAddr,
}

impl Target {
    fn start(device: &str, nvmet: &str, exports: &str) -> Target {
        let text = format!(
            "ipc_socket = '/unused'\nadmin_socket = '/unused'\ncores = 2\n\
             [[device]]\nsize = 67108864\ncreate = true\n{device}\n\
             [[volume]]\nname = 'v'\nsize = 16777216\n\
             [[volume]]\nname = 'w'\nsize = 16777216\n\
             [[volume]]\nname = 'thin'\nsize = 1073741824\nthin = true\n\
             [nvmet]\nlisten = ['127.0.0.1:0']\ndiscovery = ['127.0.0.1:0']\n{nvmet}\n{exports}"
        );
        let config = Config::parse(&text).unwrap();
        let daemon = Arc::new(Daemon::start(&config).unwrap());
        let listeners =
            nvmet::Listeners::bind(config.nvmet.as_ref().unwrap(), daemon.nvmet().unwrap())
                .unwrap();
        let (io, discovery) = (listeners.addresses(false)[0], listeners.addresses(true)[0]);
        let for_hosts = Arc::clone(&daemon);
        std::thread::spawn(move || nvmet::serve(&listeners, &for_hosts));
        Target { daemon, io, discovery }
    }

    /// In RAM, `v` open to any host.
    pub fn open() -> Target {
        Target::start(
            "path = 'ram'\nengine = 'mem'",
            "",
            &format!("[[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\n"),
        )
    }

    pub fn host(&self) -> Host {
        Host::connect(self.io, &who(), Options::default()).unwrap()
    }

    /// A host and its first I/O queue.
    pub fn pair(&self, options: Options) -> (Host, Queue) {
        let host = Host::connect(self.io, &who(), options).unwrap();
        let queue = host.queue(self.io, &who(), 1, options).unwrap();
        (host, queue)
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let stop: admin::Stop = Arc::new(|| {});
        admin::handle(call.to_string().as_bytes(), &self.daemon, &stop).unwrap()
    }

    fn list(&self) -> Value {
        self.call("nvmet.list", Value::Null)["result"].clone()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.daemon.stop();
    }
}

pub fn who() -> Who<'static> {
    Who::new(NQN, HOST)
}

/// Waits until something is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn write(queue: &mut Queue, lba: u64, data: &[u8]) -> u16 {
    let blocks = (data.len() / BLOCK) as u16;
    queue.call(initiator::io(1, lba, blocks), data, 0).unwrap().status
}

fn read(queue: &mut Queue, lba: u64, blocks: u16) -> Vec<u8> {
    let len = usize::from(blocks) * BLOCK;
    let done = queue.call(initiator::io(2, lba, blocks), &[], len).unwrap();
    assert_eq!(done.status, 0);
    done.data
}

#[test]
fn data_comes_back_whatever_was_negotiated() {
    let target = Target::open();
    for (header_digest, data_digest, alignment, r2t_max, flow) in [
        (false, false, 0, 0, true),
        (true, false, 0, 0, false),
        (false, true, 31, 3, true),
        (true, true, 7, 15, false),
    ] {
        let options = Options { header_digest, data_digest, alignment, r2t_max };
        let host = Host::connect(target.io, &who(), options).unwrap();
        let mut queue = host.queue(target.io, &Who { flow, ..who() }, 1, options).unwrap();
        for (i, blocks) in [1_u16, 2, 3, 16, 64, 65, 255, 256].into_iter().enumerate() {
            let data = pattern(i as u64 + 1, usize::from(blocks) * BLOCK);
            assert_eq!(write(&mut queue, i as u64 * 300, &data), 0);
            assert_eq!(
                read(&mut queue, i as u64 * 300, blocks),
                data,
                "{blocks} blocks, {options:?}"
            );
        }
        assert!(queue.r2ts > 0);
        // By R2T even where a capsule would hold it.
        let data = pattern(9, BLOCK);
        let mut sqe = initiator::io(1, 7, 1);
        let id = queue.submit_as(&mut sqe, &data, 0, true).unwrap();
        let done = queue.wait(id).unwrap();
        assert_eq!(done.status, 0);
        assert_eq!(done.head == 0xffff, !flow);
        assert_eq!(read(&mut queue, 7, 1), data);
    }
}

#[test]
fn a_full_queue_of_mixed_commands() {
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        // Fewer buffers than the commands want: some of them wait.
        "buffer_bytes = 2097152",
        &format!("[[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\n"),
    );
    let (_host, mut queue) = target.pair(Options { r2t_max: 1, ..Options::default() });
    for round in 0..8_u64 {
        let data = pattern(round + 1, 128 * BLOCK);
        let ids: Vec<u16> = (0..30)
            .map(|i| queue.submit(initiator::io(1, i * 128, 128), &data, 0).unwrap())
            .collect();
        for id in ids {
            assert_eq!(queue.wait(id).unwrap().status, 0);
        }
        let ids: Vec<u16> = (0..30)
            .map(|i| queue.submit(initiator::io(2, i * 128, 128), &[], 128 * BLOCK).unwrap())
            .collect();
        for id in ids {
            assert!(queue.wait(id).unwrap().data == data);
        }
    }
}

#[test]
fn every_io_command() {
    let target = Target::open();
    let (_host, mut queue) = target.pair(Options::default());
    let data = pattern(1, 4 * BLOCK);
    assert_eq!(write(&mut queue, 10, &data), 0);
    let status = |queue: &mut Queue, sqe, data: &[u8]| queue.call(sqe, data, 0).unwrap().status;
    // Flush of one namespace, of all, of none.
    for (nsid, expected) in [(1, 0), (0xffff_ffff, 0), (2, 0x0b)] {
        assert_eq!(status(&mut queue, initiator::sqe(0, nsid), &[]), expected);
    }
    // Compare.
    assert_eq!(status(&mut queue, initiator::io(5, 10, 4), &data), 0);
    let mut other = data.clone();
    other[4 * BLOCK - 1] ^= 1;
    assert_eq!(status(&mut queue, initiator::io(5, 10, 4), &other), 0x285);
    // Verify, and beyond what it takes at once.
    assert_eq!(status(&mut queue, initiator::io(0x0c, 10, 256), &[]), 0);
    assert_eq!(status(&mut queue, initiator::io(0x0c, 10, 257), &[]), 0x02);
    // Copy of two ranges onto themselves, shifted.
    let mut copy = initiator::io(0x19, 11, 1);
    initiator::put(&mut copy, 48, &[1, 0, 0, 0]);
    let mut ranges = vec![0; 64];
    ranges[8] = 10;
    ranges[16] = 1;
    ranges[32 + 8] = 13;
    assert_eq!(status(&mut queue, copy, &ranges), 0);
    let copied = [&data[..2 * BLOCK], &data[3 * BLOCK..]].concat();
    assert_eq!(read(&mut queue, 11, 3), copied);
    ranges[16..18].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(status(&mut queue, copy, &ranges), 0x183, "too many blocks");
    // Write Zeroes with FUA, and Deallocate.
    let mut zeroes = initiator::io(0x08, 10, 2);
    zeroes[51] |= 0x40;
    assert_eq!(status(&mut queue, zeroes, &[]), 0);
    assert_eq!(read(&mut queue, 10, 2), vec![0; 2 * BLOCK]);
    let mut ranges = vec![0; 32];
    ranges[4] = 1;
    ranges[8] = 12;
    ranges[16 + 4] = 1;
    ranges[16 + 8] = 13;
    let mut dataset = initiator::sqe(9, 1);
    initiator::put(&mut dataset, 40, &[1, 0, 0, 0, 4]);
    assert_eq!(status(&mut queue, dataset, &ranges), 0);
    ranges[16 + 15] = 1;
    assert_eq!(status(&mut queue, dataset, &ranges), 0x80);
    // As Linux sends one range: in a whole page, of which the rest is not looked at.
    ranges.resize(4096, 0xff);
    initiator::put(&mut dataset, 40, &[0]);
    assert_eq!(status(&mut queue, dataset, &ranges), 0);
}

#[test]
fn wrong_io_commands_get_their_status() {
    let target = Target::open();
    let (host, mut queue) = target.pair(Options::default());
    let last = 16 * 256 - 1;
    let mut two_ranges = initiator::sqe(9, 1);
    initiator::put(&mut two_ranges, 40, &[1]);
    let mut cases: Vec<([u8; 64], usize, usize, u16, &str)> = vec![
        (initiator::io(2, last, 1), 0, BLOCK, 0, "the last block"),
        (initiator::io(2, last, 2), 0, 2 * BLOCK, 0x80, "beyond the end"),
        (initiator::io(1, u64::MAX, 2), 2 * BLOCK, 0, 0x80, "an LBA that wraps"),
        (initiator::io(8, last, 2), 0, 0, 0x80, "zeroes beyond the end"),
        (initiator::io(2, 0, 2), 0, BLOCK, 0x0f, "an SGL too short"),
        (initiator::io(1, 0, 1), 2 * BLOCK, 0, 0x0f, "an SGL too long"),
        (initiator::io(1, 0, 3), 4 * BLOCK, 0, 0x0f, "an SGL too long, by R2T"),
        (initiator::io(0x77, 0, 1), 0, 0, 0x01, "an opcode that is none"),
        (two_ranges, 16, 0, 0x0f, "two ranges, data of one"),
        (initiator::io(2, 0, 1), BLOCK, 0, 0x02, "a read with data"),
        (initiator::io(2, 0, 1), 0, 2 << 20, 0x02, "a longer transfer than is allowed"),
    ];
    let mut fused = initiator::io(2, 0, 1);
    fused[1] |= 1;
    cases.push((fused, 0, BLOCK, 0x02, "a fused command"));
    let mut prp = initiator::io(2, 0, 1);
    prp[1] = 0;
    cases.push((prp, 0, BLOCK, 0x02, "PRPs"));
    let mut protected = initiator::io(2, 0, 1);
    protected[51] = 0x20;
    cases.push((protected, 0, BLOCK, 0x02, "protection information"));
    let mut nowhere = initiator::io(2, 0, 1);
    nowhere[4] = 9;
    cases.push((nowhere, 0, BLOCK, 0x0b, "a namespace that is none"));
    for (sqe, written, to_read, expected, what) in cases {
        let done = queue.call(sqe, &vec![1; written], to_read).unwrap();
        assert_eq!(done.status, expected, "{what}");
    }
    drop(queue);
    // They are in the error log, the newest first.
    let mut host = host;
    let log = host.admin.call(initiator::get_log(1, 64), &[], 64).unwrap().data;
    assert_eq!(log[0], 14, "number of errors");
    assert_eq!(log[8], 1, "queue");
    assert_eq!(u16::from_le_bytes([log[12], log[13]]) >> 1 & 0x3fff, 0x0b);
}

fn identify(queue: &mut Queue, nsid: u32, structure: u32, set: u32) -> Completion {
    queue.call(initiator::admin(6, nsid, structure, set << 24), &[], 4096).unwrap()
}

#[test]
fn identify_tells_the_truth() {
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        "",
        &format!(
            "[[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\n\
             [[export]]\nvolume = 'thin'\nnqn = '{NQN}'\nany_host = true\nnsid = 5\nread_only = true\n"
        ),
    );
    let mut host = target.host();
    let admin = &mut host.admin;
    assert_eq!(admin.property(0x08).unwrap(), 0x20000);
    assert_eq!(admin.property(0).unwrap() & 0xffff, 127);
    let c = identify(admin, 0, 1, 0).data;
    assert_eq!(&c[24..39], b"ClaudeFS blockd");
    assert_eq!(c[77], 8, "MDTS is 1 MiB");
    assert_eq!(u16::from_le_bytes([c[78], c[79]]), host.controller);
    assert_eq!(c[525] & 1, 1, "a volatile cache");
    assert_eq!(&c[526..530], [0; 4], "one block is atomic");
    assert!(c[768..].starts_with(NQN.as_bytes()));
    let n = identify(admin, 1, 0, 0).data;
    assert_eq!(u64::from_le_bytes(n[..8].try_into().unwrap()), 4096);
    assert_eq!((n[24], n[99], n[130]), (0, 0, 12));
    let n5 = identify(admin, 5, 0, 0).data;
    assert_eq!(u64::from_le_bytes(n5[16..24].try_into().unwrap()), 0, "nothing used");
    assert_eq!((n5[24], n5[99]), (1, 1), "thin and write-protected");
    assert_ne!(n[104..120], n5[104..120], "identities differ");
    let list = identify(admin, 0, 2, 0).data;
    assert_eq!(list[..12], [1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(identify(admin, 1, 7, 0).data[..8], [5, 0, 0, 0, 0, 0, 0, 0]);
    let descriptors = identify(admin, 1, 3, 0).data;
    assert_eq!(descriptors[..2], [2, 16]);
    assert_eq!(descriptors[4..20], n[104..120]);
    assert_eq!((descriptors[20], descriptors[40]), (3, 4));
    let independent = identify(admin, 5, 8, 0).data;
    assert_eq!((independent[0], independent[8]), (0, 1), "write-protected; nothing else to say");
    assert_eq!(identify(admin, 0, 6, 0).data[0], 8);
    assert_eq!(identify(admin, 0, 0x1c, 0).data[0], 1);
    assert_eq!(identify(admin, 2, 0, 0).data, vec![0; 4096], "inactive");
    for (nsid, structure, set, expected) in
        [(0, 0, 0, 0x0b), (2, 3, 0, 0x0b), (0, 0x77, 0, 0x02), (1, 5, 2, 0x02), (257, 0, 0, 0x0b)]
    {
        assert_eq!(identify(admin, nsid, structure, set).status, expected, "{structure:#x}");
    }
    let short = admin.call(initiator::admin(6, 0, 1, 0), &[], 2048).unwrap();
    assert_eq!(short.status, 0x0f);
}

#[test]
fn features_and_log_pages() {
    let target = Target::open();
    let (mut host, mut queue) = target.pair(Options::default());
    let admin = &mut host.admin;
    let mut get = |feature: u32, dword11: u32, bytes: usize| {
        admin.call(initiator::admin(0x0a, 1, feature, dword11), &[], bytes).unwrap()
    };
    assert_eq!(get(6, 0, 0).result, 1, "write cache");
    assert_eq!(get(7, 0, 0).result, 15 | 15 << 16);
    assert_eq!(get(0x81, 1, 16).data, [7; 16], "host identifier");
    assert_eq!(get(0x84, 0, 0).result, 0, "not write-protected");
    assert_eq!(get(0x99, 0, 0).status, 0x02);
    let mut set = |feature: u32, value: u32| {
        admin.call(initiator::admin(9, 1, feature, value), &[], 0).unwrap()
    };
    assert_eq!(set(7, 3 | 3 << 16).result, 15 | 15 << 16);
    assert_eq!(set(7, 0xffff).status, 0x02);
    assert_eq!(set(6, 0).status, 0, "write through from now on");
    assert_eq!(set(0x84, 1).status, 0x10e);
    assert_eq!(set(6 | 1 << 31, 0).status, 0x10d);
    assert_eq!(write(&mut queue, 0, &pattern(1, BLOCK)), 0);
    let health = admin.call(initiator::get_log(2, 512), &[], 512).unwrap().data;
    assert_eq!((health[0], health[48], health[80]), (0, 1, 1), "one unit, one write");
    let effects = admin.call(initiator::get_log(5, 4096), &[], 4096).unwrap().data;
    assert_eq!(effects[1024 + 4..1024 + 12], [3, 0, 0, 0, 1, 0, 0, 0], "Write and Read");
    let ana = admin.call(initiator::get_log(0x0c, 52), &[], 52).unwrap().data;
    assert_eq!((ana[8], ana[16], ana[20], ana[32], ana[48]), (1, 1, 1, 1, 1));
    assert_eq!(admin.call(initiator::get_log(0x70, 16), &[], 16).unwrap().status, 0x109);
    let mut odd = initiator::get_log(2, 512);
    initiator::put(&mut odd, 48, &[2]);
    assert_eq!(admin.call(odd, &[], 512).unwrap().status, 0x02);
    initiator::put(&mut odd, 48, &[0, 2, 0, 0]);
    assert_eq!(admin.call(odd, &[], 512).unwrap().data, vec![0; 512], "at the end");
    initiator::put(&mut odd, 48, &[4, 2, 0, 0]);
    assert_eq!(admin.call(odd, &[], 512).unwrap().status, 0x02, "beyond the end");
}

#[test]
fn events_and_aborts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("exports");
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        &format!("exports_file = {file:?}"),
        &format!("[[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\n"),
    );
    let mut host = target.host();
    let admin = &mut host.admin;
    assert_eq!(admin.call(initiator::admin(9, 0, 0x0b, 0x100), &[], 0).unwrap().status, 0);
    let events: Vec<u16> =
        (0..4).map(|_| admin.submit(initiator::sqe(0x0c, 0), &[], 0).unwrap()).collect();
    let fifth = admin.call(initiator::sqe(0x0c, 0), &[], 0).unwrap();
    assert_eq!(fifth.status, 0x105);
    let aborted =
        admin.submit(initiator::admin(8, 0, u32::from(events[1]) << 16, 0), &[], 0).unwrap();
    assert_eq!(admin.wait(events[1]).unwrap().status, 0x07);
    assert_eq!(admin.wait(aborted).unwrap().result, 0);
    assert_eq!(admin.call(initiator::admin(8, 0, 0x7777_0000, 0), &[], 0).unwrap().result, 1);

    let export = json!({ "volume": "w", "nqn": NQN, "any_host": true });
    assert_eq!(target.call("nvmet.export", export)["result"]["nsid"], 2);
    let event = admin.complete().unwrap();
    assert_eq!((event.status, event.result), (0, 0x0004_0002));
    // Until the page is read, no second event.
    assert_eq!(target.call("nvmet.unexport", json!({ "volume": "w" }))["result"]["removed"], 1);
    let changed = admin.call(initiator::get_log(4, 4096), &[], 4096).unwrap().data;
    assert_eq!(changed[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(admin.complete().unwrap().result, 0x0004_0002);
    assert_eq!(admin.call(initiator::sqe(0x18, 0), &[], 0).unwrap().status, 0, "keep alive");
}

fn discover(queue: &mut Queue) -> (u64, Vec<String>) {
    let log = queue.call(initiator::get_log(0x70, 4096), &[], 4096).unwrap();
    assert_eq!(log.status, 0);
    let generation = u64::from_le_bytes(log.data[..8].try_into().unwrap());
    let text = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        text.trim_end_matches(['\0', ' ']).to_owned()
    };
    let entries = log.data[1024..].chunks(1024).take(usize::from(log.data[8])).map(|e| {
        assert_eq!((e[0], e[1], e[2]), (3, 1, 2));
        format!("{} {}:{}", text(&e[256..512]), text(&e[512..768]), text(&e[32..64]))
    });
    (generation, entries.collect())
}

#[test]
fn discovery_shows_each_host_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("exports");
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        &format!("exports_file = {file:?}"),
        &format!(
            "[[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\n\
             [[export]]\nvolume = 'w'\n[[export.host]]\nnqn = '{HOST}2'\n"
        ),
    );
    let mine = Who::new(DISCOVERY, HOST);
    let mut host = Host::connect(target.discovery, &mine, Options::default()).unwrap();
    let (first, entries) = discover(&mut host.admin);
    assert_eq!(entries, [format!("{NQN} {}", target.io)]);
    let id = identify(&mut host.admin, 0, 1, 0).data;
    assert_eq!(id[111], 2, "a discovery controller");
    assert_eq!(identify(&mut host.admin, 0, 2, 0).status, 0x02);
    let second = format!("{HOST}2");
    let theirs = Who::new(DISCOVERY, &second);
    let mut other = Host::connect(target.discovery, &theirs, Options::default()).unwrap();
    assert_eq!(discover(&mut other.admin).1.len(), 2);
    // A change is told, and counted.
    host.admin.call(initiator::admin(9, 0, 0x0b, 1 << 31), &[], 0).unwrap();
    let event = host.admin.submit(initiator::sqe(0x0c, 0), &[], 0).unwrap();
    let export = json!({ "volume": "thin", "host": [{ "nqn": HOST }] });
    assert_eq!(target.call("nvmet.export", export)["error"], Value::Null);
    assert_eq!(host.admin.wait(event).unwrap().result, 0x0070_f002);
    let (second, entries) = discover(&mut host.admin);
    assert!(second > first);
    assert_eq!(entries.len(), 2);
    // Only discovery is served there.
    let mut queue = Queue::open(target.discovery, Options::default()).unwrap();
    assert_eq!(queue.connect(&who(), 0, 0xffff).unwrap().status, 0x182);
}

#[test]
fn only_listed_hosts_connect() {
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        "",
        &format!("[[export]]\nvolume = 'v'\nnqn = '{NQN}'\n[[export.host]]\nnqn = '{HOST}'\n"),
    );
    let (mut host, mut queue) = target.pair(Options::default());
    let refuse = |who: Who<'_>, queue: u16, controller: u16| {
        let mut q = Queue::open(target.io, Options::default()).unwrap();
        let done = q.connect(&who, queue, controller).unwrap();
        (done.status, done.result)
    };
    let other = Who::new(NQN, "nqn.2014-08.org.example:other");
    assert_eq!(refuse(other, 0, 0xffff).0, 0x184);
    assert_eq!(
        refuse(Who::new("nqn.2014-08.org.example:none", HOST), 0, 0xffff),
        (0x182, 1 << 16 | 256)
    );
    assert_eq!(
        refuse(other, 2, host.controller),
        (0x182, 1 << 16 | 16),
        "another host's controller"
    );
    assert_eq!(refuse(Who::new(NQN, "iqn.bad"), 0, 0xffff), (0x182, 1 << 16 | 512));
    assert_eq!(refuse(Who { depth: 129, ..who() }, 0, 0xffff), (0x182, 44));
    assert_eq!(refuse(who(), 17, host.controller), (0x182, 42));
    assert_eq!(refuse(who(), 1, host.controller).0, 0x0c, "the queue exists");
    assert_eq!(refuse(who(), 0, 5), (0x182, 1 << 16 | 16), "controllers are dynamic");
    // The list changes: who is not on it any more is dropped.
    assert_eq!(target.list()["controllers"][0]["queues"], 2);
    let params = json!({ "nqn": NQN, "host": [{ "nqn": other.host }] });
    assert_eq!(target.call("nvmet.hosts", params)["error"], Value::Null);
    assert_eq!(host.admin.terminated(), None);
    assert_eq!(queue.terminated(), None);
    assert_eq!(refuse(who(), 0, 0xffff).0, 0x184);
    Host::connect(target.io, &other, Options::default()).unwrap();
}

#[test]
fn hosts_prove_who_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (key, controller_key) = (pattern(5, 32), pattern(6, 64));
    let secret = |name: &str, key: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, encode_secret(key)).unwrap();
        path
    };
    let (mine, theirs) = (secret("host", &key), secret("controller", &controller_key));
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        "",
        &format!(
            "[[export]]\nvolume = 'v'\nnqn = '{NQN}'\n[[export.host]]\nnqn = '{HOST}'\n\
             secret_file = {mine:?}\ncontroller_secret_file = {theirs:?}\n"
        ),
    );
    let connect = || {
        let mut queue = Queue::open(target.io, Options::default()).unwrap();
        let done = queue.connect(&who(), 0, 0xffff).unwrap();
        assert_eq!((done.status, done.result >> 16), (0, 2), "authentication is asked for");
        (queue, done.result as u16)
    };
    for hash in 1..=3 {
        let (mut queue, controller) = connect();
        assert_eq!(queue.set_property(0x14, 1).unwrap(), 0x191, "not before it has proved itself");
        assert!(queue.authenticate(&who(), hash, &key, None).unwrap());
        let mut host = Host { admin: queue, controller };
        host.enable().unwrap();
        // An I/O queue proves it again.
        let mut io = host.queue(target.io, &who(), 1, Options::default()).unwrap();
        assert_eq!(io.call(initiator::io(2, 0, 1), &[], BLOCK).unwrap().status, 0x191);
        assert!(io.authenticate(&who(), hash, &key, Some(&controller_key)).unwrap());
        assert_eq!(read(&mut io, 0, 1), vec![0; BLOCK]);
        // Once more, while it is in use.
        assert!(io.authenticate(&who(), hash, &key, None).unwrap());
        assert!(!io.authenticate(&who(), hash, &pattern(7, 32), None).unwrap());
        assert_eq!(io.call(initiator::io(2, 0, 1), &[], BLOCK).unwrap().status, 0x191);
    }
    let (mut queue, _) = connect();
    assert!(!queue.authenticate(&who(), 2, &pattern(7, 32), None).unwrap(), "a wrong secret");
    assert_eq!(queue.set_property(0x14, 1).unwrap(), 0x191);
    let (mut queue, _) = connect();
    assert!(!queue.authenticate(&who(), 1, &key, Some(&key)).unwrap(), "a false controller");
}

fn encode_secret(key: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = key.to_vec();
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, key) as u32;
    bytes.extend_from_slice(&crc.to_le_bytes());
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = 0_u32;
        for i in 0..3 {
            word = word << 8 | u32::from(*chunk.get(i).unwrap_or(&0));
        }
        for i in 0..4 {
            let digit = char::from(DIGITS[(word >> (18 - 6 * i) & 63) as usize]);
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    format!("DHHC-1:00:{text}:\n")
}

#[test]
fn a_read_only_export_stays_as_it_is() {
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        "",
        &format!("[[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\nread_only = true\n"),
    );
    let (mut host, mut queue) = target.pair(Options::default());
    let data = pattern(1, BLOCK);
    assert_eq!(write(&mut queue, 0, &data), 0x20);
    assert_eq!(write(&mut queue, 0, &pattern(1, 16 * BLOCK)), 0x20, "before it is fetched");
    assert_eq!(queue.call(initiator::io(8, 0, 1), &[], 0).unwrap().status, 0x20);
    assert_eq!(read(&mut queue, 0, 1), vec![0; BLOCK]);
    let state = host.admin.call(initiator::admin(0x0a, 1, 0x84, 0), &[], 0).unwrap();
    assert_eq!(state.result, 1);
}

#[test]
fn exports_at_run_time_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("exports");
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        &format!("exports_file = {file:?}"),
        &format!("[[export]]\nvolume = 'w'\nnqn = '{NQN}2'\nany_host = true\n"),
    );
    for (params, word) in [
        (json!({ "volume": "v" }), "any_host"),
        (json!({ "volume": "none", "any_host": true }), "no volume"),
        (json!({ "volume": "v", "any_host": true, "nqn": DISCOVERY }), "no name"),
        (json!({ "volume": "v", "any_host": true, "nsid": 0 }), "number"),
        (json!({ "volume": "v", "any_host": true, "size": 0 }), "size"),
        (
            json!({ "volume": "v", "nqn": format!("{NQN}2"), "host": [{ "nqn": HOST }] }),
            "other hosts",
        ),
        (json!({ "volume": "v", "host": [{ "nqn": HOST, "secret_file": "/none" }] }), "/none"),
    ] {
        let error = target.call("nvmet.export", params)["error"]["message"].to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(!file.exists(), "nothing was kept");
    // Under two names more: each is listed once.
    for nqn in ["nqn.2025-01.org.example:a", "nqn.2025-01.org.example:b"] {
        let export = json!({ "volume": "w", "nqn": nqn, "any_host": true });
        assert_eq!(target.call("nvmet.export", export)["error"], Value::Null);
    }
    let volumes = target.call("volume.list", Value::Null)["result"].clone();
    let w = volumes.as_array().unwrap().iter().find(|v| v["name"] == "w").unwrap();
    assert_eq!(
        w["exports"],
        json!(["nqn.2025-01.org.example:a", "nqn.2025-01.org.example:b", format!("{NQN}2")])
    );
    let gone = target.call("nvmet.unexport", json!({ "volume": "w" }));
    assert_eq!(gone["result"], json!({ "removed": 3, "until_restart": true }));
    let closed = Target::open();
    let export = json!({ "volume": "w", "any_host": true });
    let error = closed.call("nvmet.export", export)["error"]["message"].to_string();
    assert!(error.contains("exports_file"), "{error}");
}

#[test]
fn a_reset_ends_the_io_queues_and_a_silent_host_all() {
    let target = Target::open();
    let (mut host, mut queue) = target.pair(Options::default());
    assert_eq!(host.admin.set_property(0x14, 0).unwrap(), 0);
    assert_eq!(queue.terminated(), None);
    assert_eq!(host.admin.property(0x1c).unwrap(), 0);
    let mut early = Queue::open(target.io, Options::default()).unwrap();
    assert_eq!(early.connect(&who(), 1, host.controller).unwrap().status, 0x0c);
    assert_eq!(host.admin.call(initiator::admin(6, 0, 1, 0), &[], 4096).unwrap().status, 0x0c);
    host.enable().unwrap();
    let mut queue = host.queue(target.io, &who(), 1, Options::default()).unwrap();
    assert_eq!(read(&mut queue, 0, 1), vec![0; BLOCK]);
    assert_eq!(host.admin.set_property(0x14, 0x0046_4001).unwrap(), 0);
    assert_eq!(host.admin.property(0x1c).unwrap() & 0xc, 8, "shut down");
    drop((host, queue));
    eventually("its controller goes with the admin queue", || {
        target.list()["controllers"].as_array().unwrap().is_empty()
    });
    let mut host = target.host();
    // A keep-alive time of a millisecond, and then silence.
    let _ = host.admin.call(initiator::admin(9, 0, 0x0f, 1), &[], 0);
    assert_eq!(host.admin.terminated(), None);
}

#[test]
fn connections_are_bounded() {
    let target = Target::start(
        "path = 'ram'\nengine = 'mem'",
        "connections_max = 3",
        &format!("[[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\n"),
    );
    let (host, queue) = target.pair(Options::default());
    let third = Queue::open(target.io, Options::default()).unwrap();
    assert!(Queue::open(target.io, Options::default()).is_err());
    drop(third);
    eventually("a connection is free again", || Queue::open(target.io, Options::default()).is_ok());
    drop((host, queue));
}

#[test]
fn a_device_that_fails_is_a_status() {
    let target = Target::start(
        "path = 'ram'\nengine = 'fault'\n[device.fault]\ninner = 'mem'",
        "",
        &format!("[[export]]\nvolume = 'v'\nnqn = '{NQN}'\nany_host = true\n"),
    );
    let (mut host, mut queue) = target.pair(Options::default());
    assert_eq!(write(&mut queue, 0, &pattern(1, BLOCK)), 0);
    let rates = |read: u64, write: u64, flush: u64| {
        let settings =
            json!({ "read_fail_ppm": read, "write_fail_ppm": write, "flush_fail_ppm": flush });
        let reply = target.call("fault.set", settings);
        assert_eq!(reply["error"], Value::Null);
    };
    let every = 1_000_000;
    rates(every, 0, 0);
    assert_eq!(queue.call(initiator::io(2, 0, 1), &[], BLOCK).unwrap().status, 0x281);
    assert_eq!(queue.call(initiator::io(0x0c, 0, 1), &[], 0).unwrap().status, 0x281, "Verify");
    let mut one_block = vec![0; 32];
    one_block[8] = 1;
    let copy = initiator::io(0x19, 0, 1);
    assert_eq!(queue.call(copy, &one_block, 0).unwrap().status, 0x281, "Copy reads first");
    rates(0, every, 0);
    assert_eq!(write(&mut queue, 0, &pattern(1, BLOCK)), 0x280);
    assert_eq!(queue.call(copy, &one_block, 0).unwrap().status, 0x280, "and then writes");
    rates(0, 0, every);
    assert_ne!(queue.call(initiator::sqe(0, 1), &[], 0).unwrap().status, 0);
    rates(0, 0, 0);
    // A failed flush poisons the volume; health says so.
    assert_eq!(queue.call(initiator::io(2, 0, 1), &[], BLOCK).unwrap().status, 0x06);
    let health = host.admin.call(initiator::get_log(2, 512), &[], 512).unwrap().data;
    assert_eq!(health[0], 1 << 2);
}
