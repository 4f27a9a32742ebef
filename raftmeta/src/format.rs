//! Versions of the files: seven bytes that say what a file is, and one that says in which version.

/// The format of a file is newer than the one that this program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "format {found} is newer than {reads}, the newest that this program reads: start the one that wrote it, or newer"
)]
pub(crate) struct Newer {
    pub found: u8,
    pub reads: u8,
}

/// Whether `head`, of as many bytes as `magic`, is of the same kind in a newer version, which the last byte says.
pub(crate) fn newer(head: &[u8], magic: &[u8]) -> Option<Newer> {
    let ((reads, kind), (found, is)) = (magic.split_last()?, head.split_last()?);
    (kind == is && found > reads).then_some(Newer { found: *found, reads: *reads })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_kind_can_be_newer() {
        let of = |head: &[u8]| newer(head, b"KIND\x02").map(|newer| newer.found);
        assert_eq!(of(b"KIND\x03"), Some(3));
        assert_eq!(of(b"KIND\xff"), Some(255));
        for other in [&b"KIND\x02"[..], b"KIND\x01", b"KINE\x03", b"KIND", b"", b"KIND\x03\x03"] {
            assert_eq!(of(other), None, "{other:?}");
        }
        let text = newer(b"KIND\x03", b"KIND\x02").unwrap().to_string();
        assert!(text.contains("format 3") && text.contains("newer than 2"), "{text}");
    }
}
