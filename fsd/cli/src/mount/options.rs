//! What `-o` of `cfs mount` and of fstab may say.

use std::path::PathBuf;
use std::time::Duration;

use fsd::config::Size;

use crate::failed::{Exit, Failed};
use crate::units;

/// Words of fstab for others than us: mount(8), systemd.
const IGNORED: [&str; 10] = [
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group",
];

/// How the kernel treats the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub read_only: bool,
    pub noexec: bool,
    pub suid: bool,
    pub dev: bool,
    pub no_allow_other: bool,
}

impl Flags {
    pub fn apply(self, options: &mut fuse::MountOptions) {
        options.read_only = self.read_only;
        options.noexec = self.noexec;
        options.nosuid = !self.suid;
        options.nodev = !self.dev;
        options.allow_other = !self.no_allow_other;
    }

    /// Sets one from its option, or says that there is none of this name.
    fn set(&mut self, option: &str) -> bool {
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "noexec" => self.noexec = true,
            "exec" => self.noexec = false,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "allow_other" => self.no_allow_other = false,
            "no_allow_other" => self.no_allow_other = true,
            _ => return false,
        }
        true
    }
}

impl std::fmt::Display for Flags {
    /// Options that give these flags.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.read_only { "ro" } else { "rw" })?;
        let named = [
            (self.noexec, ",noexec"),
            (self.suid, ",suid"),
            (self.dev, ",dev"),
            (self.no_allow_other, ",no_allow_other"),
        ];
        named.iter().filter(|(on, _)| *on).try_for_each(|(_, name)| f.write_str(name))
    }
}

/// Options, each of which a flag of `cfs mount` says as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub flags: Flags,
    pub socket: Option<PathBuf>,
    pub server: Option<String>,
    pub identity: Option<PathBuf>,
    pub token: Option<String>,
    pub cache_size: Option<u64>,
    pub log_file: Option<PathBuf>,
    pub timeout: Option<Duration>,
}

impl Options {
    /// Reads comma-separated options; of two that contradict each other the last counts.
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
            (flag, None) if self.flags.set(flag) => {}
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
        assert!(options.flags.read_only);
        assert_eq!(options.cache_size, Some(100 << 20));
        assert_eq!(options.server.as_deref(), Some("a:1,b"));
        assert_eq!(options.token.as_deref(), Some("t"));
        assert_eq!(options.timeout, Some(Duration::from_secs(5)));
        assert_eq!(parse("").unwrap(), Options::default());
        assert!(!parse("ro,rw").unwrap().flags.read_only);
    }

    #[test]
    fn flags_are_written_as_they_are_read() {
        for text in ["rw", "ro", "ro,noexec,suid,dev,no_allow_other", "rw,dev"] {
            assert_eq!(parse(text).unwrap().flags.to_string(), text);
        }
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
