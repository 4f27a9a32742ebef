//! What a service of systemd tells its manager (`Type=notify`, sd_notify(3)): one datagram a message, to the socket
//! that the environment names. Without systemd nothing is said.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the manager.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Manager {
    /// `None` where no manager waits for messages.
    ///
    /// # Errors
    /// The environment names a socket that cannot be one.
    pub fn from_env() -> io::Result<Option<Manager>> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let var = |name| std::env::var(name).ok();
        let watchdog = watchdog(var("WATCHDOG_USEC"), var("WATCHDOG_PID"), std::process::id());
        Manager::at(path.as_bytes(), watchdog).map(Some)
    }

    fn at(path: &[u8], watchdog: Option<Duration>) -> io::Result<Manager> {
        let address = match path {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
            _ => {
                let why = "NOTIFY_SOCKET is neither an absolute path nor an abstract name";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        Ok(Manager { socket: UnixDatagram::unbound()?, address, watchdog })
    }

    /// The doors are open; `status` is shown by `systemctl status`.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={}\n", status.replace('\n', " ")));
    }

    pub fn stopping(&self) {
        self.say("STOPPING=1\n");
    }

    /// How often [`Manager::alive`] has to be said, with time to spare; never, without a watchdog.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 3)
    }

    pub fn alive(&self) {
        self.say("WATCHDOG=1\n");
    }

    fn say(&self, message: &str) {
        // The manager notices by itself what it does not hear.
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.address) {
            tracing::warn!(%error, "telling systemd");
        }
    }
}

/// The watchdog's limit, if it is meant for this process.
fn watchdog(usec: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    let usec: u64 = usec?.parse().ok().filter(|usec| *usec > 0)?;
    let other = pid.is_some_and(|pid| pid.parse() != Ok(own));
    (!other).then(|| Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_over_a_path_and_over_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("claudefs-test-{}", dir.path().display());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_name).unwrap();
        for (address, socket) in
            [(path.as_os_str().as_bytes().to_vec(), by_path), (format!("@{name}").into(), by_name)]
        {
            let manager = Manager::at(&address, Some(Duration::from_secs(30))).unwrap();
            manager.ready("node n is ready:\nyes");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=node n is ready: yes\n");
            manager.alive();
            assert_eq!(heard(&socket), "WATCHDOG=1\n");
            manager.stopping();
            assert_eq!(heard(&socket), "STOPPING=1\n");
            assert_eq!(manager.watchdog(), Some(Duration::from_secs(10)));
        }
        assert!(Manager::at(b"relative", None).is_err());
        // A manager that is gone is no reason to stop.
        let gone = Manager::at(dir.path().join("nobody").as_os_str().as_bytes(), None).unwrap();
        gone.ready("still here");
        assert_eq!(gone.watchdog(), None);
    }

    #[test]
    fn a_watchdog_counts_only_for_the_process_that_it_names() {
        let text = |text: &str| Some(text.to_owned());
        let limit = Some(Duration::from_secs(2));
        assert_eq!(watchdog(text("2000000"), None, 7), limit);
        assert_eq!(watchdog(text("2000000"), text("7"), 7), limit);
        assert_eq!(watchdog(text("2000000"), text("8"), 7), None);
        assert_eq!(watchdog(text("2000000"), text("x"), 7), None);
        assert_eq!(watchdog(text("0"), None, 7), None);
        assert_eq!(watchdog(text("soon"), None, 7), None);
        assert_eq!(watchdog(None, None, 7), None);
    }
}
