//! The configuration of a storage node: a file is a configuration that can work, or a refusal that names it.

use fsd::config::{CHUNK_BYTES_MAX, Config, NAME_BYTES_MAX, SOCKET_PATH_BYTES_MAX, Size};

use super::with_scratch;

pub const DICTIONARY: &[&[u8]] = &[
    b"[cluster]\n",
    b"shard_count = 16\n",
    b"protection = 'replica:3'\n",
    b"[chunks]\n",
    b"min = '4KiB'\n",
    b"max = '18446744073709551615T'\n",
    b"pool = { path = 'p', size = '4GiB' }\n",
    b"tcp = '[::]:9400'\n",
    b"..",
    b"\\u0000",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let least = "[node]\nname = 'n1'\ndata_dir = 'data'\n[door]\nunix = 'run/fsd.sock'\n\
                 [blockd]\nsocket = '/run/blockd.sock'\n";
    let more = "pool = { path = 'p', size = '4GiB' }\n[cluster]\nname = 'c'\nshard_count = 16\n\
                protection = 'replica:1'\n[chunks]\nmin = 4096\navg = '64KiB'\nmax = '1 MiB'\n\
                [metrics]\nlisten = '127.0.0.1:9090'\n";
    vec![least.as_bytes().to_vec(), format!("{least}{more}").into_bytes()]
}

pub fn target(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        _ = text.parse::<Size>();
    }
    with_scratch(|dir| {
        let path = dir.join("fsd.toml");
        std::fs::write(&path, bytes).unwrap();
        match Config::load(&path) {
            Ok(config) => {
                assert!((1..=NAME_BYTES_MAX).contains(&config.node.name.len()));
                assert!(!config.node.name.contains(['/', '\0']));
                assert!(config.cluster.shard_count.is_power_of_two());
                assert!(
                    config.chunks.min < config.chunks.avg && config.chunks.avg < config.chunks.max
                );
                assert!(config.chunks.max.0 <= CHUNK_BYTES_MAX);
                assert!(config.door.unix.is_absolute() && config.node.data_dir.is_absolute());
                assert!(config.door.unix.as_os_str().len() <= SOCKET_PATH_BYTES_MAX);
            }
            Err(error) => assert!(error.to_string().contains("fsd.toml"), "{error}"),
        }
    });
}
