//! Requests as the kernel writes them, and as it never would, to a file system over a cluster in memory.
//!
//! Whatever is asked, the answer is a list of whole messages, one for the request at most; and the cluster is as
//! fsck wants it.

use fuse::MountOptions;
use fuse::fuzz::Kernel;

use super::memory::Cluster;
use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] = &[
    b"name\0",
    b"user.a\0",
    b"\0",
    &[1, 0, 0, 0, 0, 0, 0, 0],
    &[2, 0, 0, 0, 0, 0, 0, 0],
    &[0xff; 8],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[0, 16, 0, 0],
];

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// Most requests of one input.
const REQUESTS_MAX: usize = 40;
/// Opcodes there are, and one that is not.
const OPCODES: u8 = 55;

/// One request of an input: opcode, inode, length and bytes of the body.
fn part(opcode: u8, ino: u8, body: &[u8]) -> Vec<u8> {
    [&[opcode, ino][..], &(body.len() as u16).to_le_bytes(), body].concat()
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// `CREATE` of a file.
fn create(name: &str) -> Vec<u8> {
    let head: Vec<u8> = [2u32, 0o100_644, 0o22, 0].iter().flat_map(|v| v.to_ne_bytes()).collect();
    part(35, 0, &[&head[..], name.as_bytes(), b"\0"].concat())
}

/// `WRITE` through the handle.
fn write(fh: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let head = words(&[fh, offset, data.len() as u64, 0, 2]);
    part(16, 1, &[&head, data].concat())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let init: Vec<u8> =
        [7u32, 36, 1 << 17, 0xffff_ffff].iter().flat_map(|v| v.to_ne_bytes()).collect();
    let named = |opcode, name: &str| part(opcode, 0, format!("{name}\0").as_bytes());
    let mkdir = [&0o755u32.to_ne_bytes()[..], &[0; 4], b"dir\0"].concat();
    let rename = [&words(&[0])[..], b"f\0g\0"].concat();
    let link = [&words(&[1])[..], b"h\0"].concat();
    let xattr = [&3u32.to_ne_bytes()[..], &[0; 4], b"user.a\0abc"].concat();
    let data = [7; 300];
    let made = [part(26, 0, &init), create("f"), write(1, 0, &data)].concat();
    let then = |rest: &[Vec<u8>]| [&made[..], &rest.concat()].concat();
    let read = part(15, 1, &words(&[1, 0, 4096, 0, 0]));
    let release = part(18, 1, &words(&[1, 0, 0]));
    let dir = |fh| {
        let read = words(&[fh, 0, 4096, 0, 0]);
        [part(27, 0, &words(&[0])), part(28, 0, &read), part(44, 0, &read)].concat()
    };
    vec![
        then(&[read, part(20, 1, &words(&[1, 0])), release.clone()]),
        then(&[named(1, "f"), part(3, 1, &words(&[0, 0])), part(9, 0, &mkdir), dir(2)]),
        then(&[part(13, 0, &link), part(12, 0, &rename), named(10, "h"), named(10, "g")]),
        then(&[named(10, "f"), write(1, 100, &data), release.clone()]),
        then(&[
            part(21, 1, &xattr),
            part(22, 1, b"\x40\0\0\0\0\0\0\0user.a\0"),
            part(23, 1, &words(&[64])),
        ]),
        // fallocate, lseek, copy_file_range, locks, statfs
        then(&[
            part(43, 1, &words(&[1, 0, 8192, 0])),
            part(46, 1, &words(&[1, 0, 3])),
            part(47, 1, &words(&[1, 0, 1, 1, 1000, 100, 0])),
            part(32, 1, &words(&[1, 5, 0, 9, 1, 0])),
            part(31, 1, &words(&[1, 6, 0, 9, 1, 0])),
            part(33, 1, &words(&[1, 6, 0, 9, 1, 0])),
            part(36, 1, &words(&[3])),
            part(17, 0, &[]),
        ]),
        [part(9, 0, &mkdir), dir(1), named(11, "dir"), dir(2)].concat(),
        then(&[
            part(4, 1, &words(&[8, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0])),
            part(25, 1, &words(&[1, 0, 0])),
        ]),
    ]
}

/// Numbers of the inodes that answers told of.
fn learn(written: &[u8], inos: &mut Vec<u64>) {
    if let Some(ino) = written.get(OUT_HEADER..OUT_HEADER + 8)
        && written.len() >= OUT_HEADER + 128
    {
        let ino = u64::from_ne_bytes(ino.try_into().unwrap());
        if !inos.contains(&ino) {
            inos.push(ino);
        }
    }
}

/// Where in its body a request names another inode.
fn other_ino(opcode: u8) -> Option<usize> {
    match opcode {
        // RENAME, LINK, RENAME2, COPY_FILE_RANGE in two versions
        12 | 13 | 45 => Some(0),
        47 | 53 => Some(16),
        _ => None,
    }
}

/// Small numbers stand for the inodes that there are.
fn put_other_ino(opcode: u8, body: &mut [u8], inos: &[u64]) {
    let place = other_ino(opcode).and_then(|at| body.get_mut(at..at + 8));
    if let Some(place) = place
        && let Some(ino) = inos.get(place[0] as usize)
        && place[1..].iter().all(|byte| *byte == 0)
    {
        place.copy_from_slice(&ino.to_ne_bytes());
    }
}

/// Takes what was written apart; gives the error of the answer to `unique`, 0 if there is none in it.
fn answer(mut written: &[u8], unique: u64) -> Option<i32> {
    let mut found = None;
    while !written.is_empty() {
        let mut head = Cursor(written);
        let (len, code, to) = (head.u32() as usize, head.u32().cast_signed(), head.u64());
        assert!(len >= OUT_HEADER && len <= written.len(), "a message of {len} bytes");
        // The kernel refuses other error numbers; notices have positive codes.
        assert!(if to == 0 { code > 0 } else { (-511..=0).contains(&code) }, "error {code}");
        assert!(code >= 0 || len == OUT_HEADER, "an error with a body");
        if to == unique {
            assert_eq!(found.replace(code), None, "two answers to one request");
        }
        written = &written[len..];
    }
    found
}

pub fn target(bytes: &[u8]) {
    converse(bytes);
}

/// What is answered to each request.
fn converse(bytes: &[u8]) -> Vec<(u8, Option<i32>)> {
    let mut found = Vec::new();
    let cluster = Cluster::new();
    let mut options = MountOptions::new("/nowhere");
    (options.cache_bytes, options.dirty_bytes_max) = (1 << 20, 1 << 20);
    let kernel = Kernel::new(&options, cluster.connect()).unwrap();
    let mut cursor = Cursor(bytes);
    let mut inos = vec![1];
    for number in 1..=REQUESTS_MAX as u64 {
        if cursor.is_empty() {
            break;
        }
        let (opcode, ino) = (cursor.u8(), usize::from(cursor.u8()));
        let ino = inos.get(ino).copied().unwrap_or_else(|| inos[ino % inos.len()]);
        let len = usize::from(cursor.u16());
        let mut body = cursor.bytes(len).to_vec();
        put_other_ino(opcode % OPCODES, &mut body, &inos);
        let unique = number * 2;
        let mut request = Vec::with_capacity(IN_HEADER + body.len());
        request.extend(((IN_HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(u32::from(opcode % OPCODES).to_ne_bytes());
        request.extend(words(&[unique, ino, 0, 0]));
        request.extend(body);
        let written = kernel.request(&request).unwrap();
        found.push((opcode % OPCODES, answer(&written, unique)));
        learn(&written, &mut inos);
    }
    // As short as it gets: nobody to answer, or a refusal.
    let mut short = bytes[..bytes.len().min(IN_HEADER + 3)].to_vec();
    // Answers to request 0 would be taken for notices, so the kernel gives none that number.
    let unique = u64::MAX - 1;
    short.iter_mut().skip(8).zip(unique.to_ne_bytes()).for_each(|(byte, with)| *byte = with);
    let written = kernel.request(&short).unwrap();
    answer(&written, unique);
    assert_eq!(cluster.check(), Vec::<String>::new());
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_are_what_a_kernel_asks() {
        for (at, seed) in super::seeds().iter().enumerate() {
            let answers = super::converse(seed);
            assert!(
                answers.iter().all(|(_, code)| code.is_none_or(|code| code == 0)),
                "seed {at}: {answers:?}"
            );
            // A lock that is waited for, and the signal that ends it.
            let later = |opcode| matches!(opcode, 33 | 36);
            assert!(answers.iter().all(|(opcode, code)| later(*opcode) == code.is_none()));
        }
    }
}
