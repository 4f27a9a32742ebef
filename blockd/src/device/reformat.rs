//! Format NVM: a namespace gets blocks of another size, or loses its data for good.
//!
//! ```text
//! claim the namespace ─► choose a format, refuse what cannot be ─► what is on it? ─► Format NVM ─► identify again ─► a pool
//! ```

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Contents, Identity, Spare};
use crate::engine::{Admin, claim};
use crate::error::{Error, Result};
use crate::nvme::command::Command;
use crate::nvme::identify::{Controller, LbaFormat, Limits, Namespace};

/// A device that overwrites all of its blocks may need that long.
const WITHIN: Duration = Duration::from_secs(4 * 3600);

/// What happens to the data that is on the namespace (SES).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecureErase {
    /// It may or may not be readable by who takes the device apart.
    #[default]
    None,
    /// It is erased.
    UserData,
    /// Its key is thrown away.
    Crypto,
}

impl SecureErase {
    fn field(self) -> u8 {
        match self {
            SecureErase::None => 0,
            SecureErase::UserData => 1,
            SecureErase::Crypto => 2,
        }
    }
}

/// What somebody asks for. Without a format it is the one in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Bytes of a block.
    pub lba_bytes: Option<u64>,
    /// Number of a format of the namespace.
    pub lbaf: Option<u8>,
    #[serde(default)]
    pub secure_erase: SecureErase,
}

/// What is, or would be, done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub nsid: u32,
    pub from: Option<LbaFormat>,
    pub to: LbaFormat,
    pub secure_erase: SecureErase,
}

impl Wish {
    /// Chooses the format.
    ///
    /// # Errors
    /// Says why not, and what there is to choose from.
    fn choose(&self, formats: &[LbaFormat]) -> std::result::Result<LbaFormat, String> {
        let usable = |f: &LbaFormat| f.metadata_bytes == 0 && (512..=4096).contains(&f.lba_bytes);
        let all = || {
            let usable = formats.iter().filter(|f| usable(f));
            let known: Vec<String> =
                usable.map(|f| format!("lbaf {} ({} bytes)", f.index, f.lba_bytes)).collect();
            match known.len() {
                0 => "it has none that blockd can use".to_owned(),
                _ => format!("blockd can use {}", known.join(", ")),
            }
        };
        let chosen = match (self.lbaf, self.lba_bytes) {
            (Some(_), Some(_)) => {
                return Err("name the size of blocks or a format, not both".into());
            }
            (Some(index), None) => formats.iter().find(|f| f.index == index),
            (None, Some(bytes)) => {
                let of_size = formats.iter().filter(|f| usable(f) && f.lba_bytes == bytes);
                of_size.min_by_key(|f| f.performance)
            }
            (None, None) => formats.iter().find(|f| f.in_use),
        };
        match chosen {
            Some(format) if usable(format) => Ok(*format),
            Some(LbaFormat { index, lba_bytes, metadata_bytes, .. }) => Err(format!(
                "lbaf {index} has blocks of {lba_bytes} bytes and {metadata_bytes} of metadata: {}",
                all()
            )),
            None => Err(format!("the namespace has no such format: {}", all())),
        }
    }

    /// Whether the controller does that to this namespace, and to it alone. `active` counts its namespaces.
    fn check(&self, controller: &Controller, active: usize) -> std::result::Result<(), String> {
        let erases = self.secure_erase != SecureErase::None;
        if !controller.has_format {
            return Err("its controller has no Format NVM command".into());
        }
        if self.secure_erase == SecureErase::Crypto && !controller.has_crypto_erase {
            return Err("its controller cannot erase by its key: try user-data".into());
        }
        let all = controller.formats_all || erases && controller.erases_all;
        if all && active > 1 {
            return Err(format!(
                "its controller does that to all of its {active} namespaces at once; if you mean that, use `nvme format` \
                 of nvme-cli"
            ));
        }
        Ok(())
    }
}

/// Namespaces of the controller that are active.
fn active(admin: &dyn Admin) -> std::io::Result<usize> {
    let list = admin.fetch(&Command::identify(2, 0, 0))?;
    Ok(list.chunks_exact(4).take_while(|entry| entry.iter().any(|byte| *byte != 0)).count())
}

/// A namespace that is to be formatted.
pub struct Subject {
    path: String,
    admin: Box<dyn Admin>,
    controller: Controller,
    namespace: Namespace,
    active: usize,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Subject {
    /// Takes the namespace for this process alone.
    ///
    /// # Errors
    /// Also where the path names no NVMe namespace.
    pub fn open(path: &Path) -> Result<Subject> {
        let name = path.display().to_string();
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::WouldBlock => Error::InUse { path: name.clone() },
            std::io::ErrorKind::NotFound => Error::NoDevice(name.clone()),
            _ => Error::Device { path: name.clone(), doing: "looking at it", source },
        };
        let unsupported = || {
            // That it exists comes first.
            super::kind_of(path)?;
            Err(Error::NoFormat {
                path: name.clone(),
                why: "only the engines passthru and vfio speak NVMe: name /dev/ngXnY or the controller's PCI address".into(),
            })
        };
        match claim(path).map_err(failed)? {
            Some(admin) => Subject::of(name.clone(), admin).map_err(failed),
            None => unsupported(),
        }
    }

    fn of(path: String, admin: Box<dyn Admin>) -> std::io::Result<Subject> {
        let controller = Controller::parse(&admin.fetch(&Command::identify(1, 0, 0))?);
        let page = admin.fetch(&Command::identify(0, 0, admin.nsid()))?;
        let namespace = Namespace::parse(&page)
            .ok_or_else(|| std::io::Error::other("the namespace is inactive"))?;
        let active = active(admin.as_ref())?;
        Ok(Subject { path, admin, controller, namespace, active })
    }

    /// What would be done.
    ///
    /// # Errors
    /// [`Error::NoFormat`] says why it cannot be.
    pub fn plan(&self, wish: &Wish) -> Result<Plan> {
        let refused = |why| Error::NoFormat { path: self.path.clone(), why };
        wish.check(&self.controller, self.active).map_err(refused)?;
        let to = wish.choose(&self.namespace.formats).map_err(refused)?;
        Ok(Plan {
            nsid: self.admin.nsid(),
            from: self.namespace.formats.iter().find(|f| f.in_use).copied(),
            to,
            secure_erase: wish.secure_erase,
        })
    }

    /// Whether blockd can use its present format.
    fn is_readable(&self) -> bool {
        Limits::of(&self.controller, &self.namespace, 0, u64::MAX).is_ok()
    }

    /// Formats it, and looks whether it is so now.
    fn perform(&self, plan: &Plan) -> Result<()> {
        let failed = |doing, source| Error::Device { path: self.path.clone(), doing, source };
        let command = Command::format(plan.nsid, plan.to.index, plan.secure_erase.field());
        self.admin.perform(&command, WITHIN).map_err(|e| failed("formatting its namespace", e))?;
        let page = self.admin.fetch(&Command::identify(0, 0, plan.nsid));
        let page = page.map_err(|e| failed("identifying it after its format", e))?;
        let now = Namespace::parse(&page);
        let now = now.as_ref().and_then(|n| n.formats.iter().find(|f| f.in_use));
        if now.is_none_or(|now| now.index != plan.to.index) {
            let source =
                std::io::Error::other(format!("it says {now:?}, {:?} was asked for", plan.to));
            return Err(failed("looking at its new format", source));
        }
        Ok(())
    }
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Reformatted {
    pub plan: Plan,
    /// What was on it; nothing if that could not be read.
    pub contents: Option<Contents>,
    /// What it is now; nothing after a rehearsal.
    pub identity: Option<Identity>,
}

/// Formats a namespace that nobody has, and makes an empty pool on it. With anything on it only if `force`; a rehearsal
/// changes nothing and says what would be done.
pub fn reformat(path: &Path, wish: &Wish, force: bool, rehearsal: bool) -> Result<Reformatted> {
    let subject = Subject::open(path)?;
    let plan = subject.plan(wish)?;
    let is_readable = subject.is_readable();
    drop(subject);
    let contents = match is_readable {
        true => Some(Spare::open(path)?.contents()?),
        false => None,
    };
    let kept = match &contents {
        Some(contents) if contents.is_empty() => None,
        Some(contents) => Some(contents.to_string()),
        None => Some("what cannot be read in its present format".to_owned()),
    };
    if let Some(what) = kept.filter(|_| !force && !rehearsal) {
        return Err(Error::NotBlank { path: path.display().to_string(), what });
    }
    if rehearsal {
        return Ok(Reformatted { plan, contents, identity: None });
    }
    let subject = Subject::open(path)?;
    // It may have become another one in between.
    let plan = subject.plan(wish)?;
    subject.perform(&plan)?;
    drop(subject);
    let spare = Spare::open(path)?;
    spare.format(true)?;
    Ok(Reformatted { plan, contents, identity: Some(spare.identify()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(index: u8, lba_bytes: u64, metadata_bytes: u16, performance: u8) -> LbaFormat {
        LbaFormat { index, lba_bytes, metadata_bytes, performance, in_use: index == 0 }
    }

    #[test]
    fn the_format_that_is_meant() {
        let formats = [
            format(0, 512, 0, 2),
            format(1, 512, 8, 0),
            format(2, 4096, 64, 0),
            format(3, 4096, 0, 1),
            format(5, 4096, 0, 0),
            format(6, 1 << 20, 0, 0),
        ];
        let choose = |lbaf, lba_bytes| {
            let wish = Wish { lbaf, lba_bytes, ..Wish::default() };
            wish.choose(&formats).map(|f| f.index)
        };
        assert_eq!(choose(None, None), Ok(0), "the one in use");
        assert_eq!(choose(None, Some(512)), Ok(0));
        assert_eq!(choose(None, Some(4096)), Ok(5), "the fastest without metadata");
        assert_eq!(choose(Some(3), None), Ok(3));
        for (lbaf, lba_bytes, word) in [
            (Some(1), None, "8 of metadata"),
            (Some(6), None, "1048576"),
            (Some(4), None, "no such format"),
            (None, Some(2048), "lbaf 0 (512 bytes), lbaf 3 (4096 bytes)"),
            (Some(0), Some(512), "not both"),
        ] {
            let why = choose(lbaf, lba_bytes).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
        let none = Wish::default().choose(&[format(0, 520, 8, 0)]).unwrap_err();
        assert!(none.contains("none that blockd can use"), "{none}");
    }

    #[test]
    fn what_a_controller_cannot_do_is_refused() {
        let mut page = [0; crate::nvme::identify::BYTES];
        let check = |page: &[u8; 4096], secure_erase, active| {
            let wish = Wish { secure_erase, ..Wish::default() };
            wish.check(&Controller::parse(page), active)
        };
        assert!(check(&page, SecureErase::None, 1).unwrap_err().contains("no Format NVM"));
        page[256] = 1 << 1;
        check(&page, SecureErase::UserData, 2).unwrap();
        assert!(check(&page, SecureErase::Crypto, 1).unwrap_err().contains("user-data"));
        page[524] = 1 << 1 | 1 << 2;
        check(&page, SecureErase::None, 2).unwrap();
        check(&page, SecureErase::Crypto, 1).unwrap();
        assert!(check(&page, SecureErase::Crypto, 2).unwrap_err().contains("all of its 2"));
        page[524] = 1;
        assert!(check(&page, SecureErase::None, 2).unwrap_err().contains("nvme format"));
    }

    #[test]
    fn a_file_has_no_format() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = reformat(file.path(), &Wish::default(), true, false).unwrap_err();
        assert_eq!(refused.code(), "UNSUPPORTED");
        assert!(refused.to_string().contains("/dev/ngXnY"), "{refused}");
        let missing = reformat(Path::new("/nonexistent/x"), &Wish::default(), true, true);
        assert_eq!(missing.unwrap_err().code(), "NOT_FOUND");
    }
}
