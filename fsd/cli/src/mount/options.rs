//! What `-o` of `cfs mount` and of fstab may say.

use std::path::PathBuf;
use std::time::Duration;

use fsd::config::Size;

use crate::failed::{Exit, Failed};
use crate::units;

/// Words of fstab for others than us: mount(8), systemd.
const IGNORED: [&str; 13] = [
    "defaults", "rw", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner",
    "group", "nosuid", "nodev",
];

/// Options, each of which a flag of `cfs mount` says as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub read_only: bool,
    pub socket: Option<PathBuf>,
    pub server: Option<String>,
    pub identity: Option<PathBuf>,
    pub token: Option<String>,
    pub cache_size: Option<u64>,
    pub log_file: Option<PathBuf>,
    pub timeout: Option<Duration>,
}

impl Options {
    /// Reads comma-separated options. `rw`, `nosuid` and `nodev` are how it is mounted anyway; all users of the
    /// host may enter (`allow_other`), permissions are checked by the kernel.
    pub fn parse(texts: &[String]) -> Result<Options, Failed> {
        let mut options = Options::default();
        for option in texts.iter().flat_map(|text| text.split(',')).filter(|o| !o.is_empty()) {
            options.read(option)?;
        }
        Ok(options)
    }

    fn read(&mut self, option: &str) -> Result<(), Failed> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let refuse = |why: &str| {
            let what = format!("mount option `{key}` {why}");
            Err(Failed::new(Exit::Usage, "MOUNT_OPTION", what)
                .next("see `cfs mount --help` for the options"))
        };
        match (key, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("allow_other" | "default_permissions", None) => {}
            ("comment", Some(_)) => {}
            (key, _) if key.starts_with("x-") || key.starts_with("X-") => {}
            (key, None) if IGNORED.contains(&key) => {}
            ("socket", Some(path)) if !path.is_empty() => self.socket = Some(path.into()),
            ("server", Some(server)) if !server.is_empty() => {
                // A comma separates options: several nodes are written with semicolons.
                self.server = Some(server.replace(';', ","));
            }
            ("identity", Some(path)) if !path.is_empty() => self.identity = Some(path.into()),
            ("token", Some(token)) if !token.is_empty() => {
                self.token = Some(token.replace(';', ","));
            }
            ("log-file", Some(path)) if !path.is_empty() => self.log_file = Some(path.into()),
            ("cache-size", Some(size)) => match size.parse::<Size>() {
                Ok(Size(bytes)) => self.cache_size = Some(bytes),
                Err(why) => return refuse(&format!("is wrong: {why}")),
            },
            ("timeout", Some(time)) => match units::parse_duration(time) {
                Ok(time) => self.timeout = Some(time),
                Err(why) => return refuse(&format!("is wrong: {why}")),
            },
            (
                "socket" | "server" | "identity" | "token" | "log-file" | "cache-size" | "timeout",
                _,
            ) => {
                return refuse("wants a value");
            }
            (_, Some(_)) | (_, None) => return refuse("is not known"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, Failed> {
        Options::parse(&[text.to_owned()])
    }

    #[test]
    fn options_of_an_fstab_line() {
        let options = parse(
            "ro,_netdev,nofail,x-systemd.automount,cache-size=100M,server=a:1;b,token=t,timeout=5s",
        )
        .unwrap();
        assert!(options.read_only);
        assert_eq!(options.cache_size, Some(100 << 20));
        assert_eq!(options.server.as_deref(), Some("a:1,b"));
        assert_eq!(options.token.as_deref(), Some("t"));
        assert_eq!(options.timeout, Some(Duration::from_secs(5)));
        assert_eq!(parse("").unwrap(), Options::default());
        assert!(!parse("ro,rw").unwrap().read_only);
    }

    #[test]
    fn a_wrong_option_is_named() {
        for (text, word) in [
            ("colour", "colour"),
            ("colour=red", "colour"),
            ("cache-size=lots", "cache-size"),
            ("cache-size", "wants a value"),
            ("socket=", "socket"),
            ("timeout=0", "timeout"),
        ] {
            let failed = parse(text).unwrap_err();
            assert_eq!(failed.exit, Exit::Usage);
            assert!(failed.what.contains(word), "{text}: {failed}");
        }
    }
}
