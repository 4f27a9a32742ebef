//! The configuration of blockd: a text is a configuration that can work, or a refusal.

use blockd::config::{CORES_MAX, Config};

pub const DICTIONARY: &[&[u8]] = &[
    b"ipc_socket = '/a'\n",
    b"cores = ",
    b"[[device]]\n",
    b"path = '/d'\n",
    b"engine = 'fault'\n",
    b"[device.fault]\n",
    b"[[volume]]\n",
    b"size = 18446744073709551615\n",
    b"name = ''\n",
];

pub fn seeds() -> Vec<Vec<u8>> {
    let head = "ipc_socket = '/a'\nadmin_socket = '/b'\n";
    [
        "[[device]]\npath = '/d'\n",
        "cores = 2\nidle_us = 10\n[[device]]\npath = 'm'\nengine = 'mem'\nsize = 67108864\n\
         [[volume]]\nname = 'v'\nsize = 4194304\nthin = true\ndevice = 'm'\n",
        "[[device]]\npath = 'm'\nengine = 'fault'\nsize = 1\n[device.fault]\ninner = 'mem'\n\
         [device.fault.rates]\nseed = 3\nread_fail_ppm = 7\n",
    ]
    .map(|rest| format!("{head}{rest}").into_bytes())
    .to_vec()
}

pub fn target(bytes: &[u8]) {
    match Config::parse(&String::from_utf8_lossy(bytes)) {
        Ok(config) => {
            assert!((1..=CORES_MAX).contains(&config.cores));
            assert!(!config.device.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
