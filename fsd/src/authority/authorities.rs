//! The authority of the cluster, and the one that takes its place while it is replaced.
//!
//! | stage | signs for clients | signs for nodes | trusted |
//! |---|---|---|---|
//! | – | the only one | the only one | the only one |
//! | `Introduced` | old | old | both |
//! | `Issuing` | new | old, which every client trusts | both |
//! | `Showing` | new | new | both |

use std::path::Path;

use fsd_rpc::tls::Identity;
use raftmeta::kv::KvRead;
use raftmeta::read;
use raftmeta_types::cluster::RotationStage;
use raftmeta_types::{NodeId, Time};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Authority, AuthorityError};

/// See the module.
#[derive(Debug)]
pub struct Authorities {
    first: Authority,
    new: Option<(RotationStage, Authority)>,
    step: u64,
}

impl Authorities {
    /// What the metadata says.
    pub fn open(
        kv: &impl KvRead,
        master: &Path,
        cluster: Uuid,
    ) -> Result<Authorities, AuthorityError> {
        let lost = |error: raftmeta::KvError| AuthorityError::Sealed { why: error.to_string() };
        let sealed = read::authority(kv).map_err(lost)?.unwrap_or_default();
        let first = Authority::open(&sealed, master, cluster)?;
        let new = match read::rotation(kv).map_err(lost)? {
            Some(rotation) => {
                Some((rotation.stage, Authority::open(&rotation.sealed, master, cluster)?))
            }
            None => None,
        };
        Ok(Authorities { first, new, step: read::authority_step(kv).map_err(lost)? })
    }

    /// The step of the replacement that this is.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Who signs certificates of clients.
    pub fn signer(&self) -> &Authority {
        match &self.new {
            Some((RotationStage::Issuing | RotationStage::Showing, new)) => new,
            Some((RotationStage::Introduced, _)) | None => &self.first,
        }
    }

    /// Who signs certificates of nodes, and whose fingerprint tokens carry.
    pub fn shown(&self) -> &Authority {
        match &self.new {
            Some((RotationStage::Showing, new)) => new,
            Some((RotationStage::Introduced | RotationStage::Issuing, _)) | None => &self.first,
        }
    }

    /// The one that is new, if one is.
    pub fn successor(&self) -> Option<&Authority> {
        self.new.as_ref().map(|(_, new)| new)
    }

    /// Certificates of all that are trusted, the signer's first.
    pub fn trusted_pem(&self) -> String {
        let Some((_, new)) = &self.new else { return self.first.ca_pem().to_owned() };
        let signer = self.signer();
        let other = if signer.fingerprint() == new.fingerprint() { &self.first } else { new };
        [signer.ca_pem(), other.ca_pem()].concat()
    }

    /// A key and a certificate for a storage node.
    pub fn node_identity(&self, node: NodeId, now: Time) -> Result<Identity, AuthorityError> {
        let (identity, _) = self.shown().node_identity(node, now)?;
        Ok(Identity { ca_pem: self.trusted_pem(), ..identity })
    }

    /// With which nodes seal datagrams: the first one seals, all of them open.
    pub fn membership_keys(&self) -> Vec<Zeroizing<[u8; 32]>> {
        let shown = self.shown().membership_key();
        let new = self.new.as_ref().map(|(_, new)| new.membership_key());
        let others = [Some(self.first.membership_key()), new].into_iter().flatten();
        let others: Vec<_> = others.filter(|key| *key != shown).collect();
        std::iter::once(shown).chain(others).collect()
    }
}
