//! Which errno each refusal becomes; decided here and nowhere else.

use fsd_rpc::message::Failure;
use raftmeta_types::MetaError;
use rustix::io::Errno;

use crate::BackendError;

pub(crate) fn of(error: &BackendError) -> Errno {
    match error {
        BackendError::Failed(failure) => of_failure(failure),
        BackendError::Timeout => Errno::TIMEDOUT,
        BackendError::Lost(_) => Errno::IO,
    }
}

fn of_failure(failure: &Failure) -> Errno {
    match failure {
        Failure::Meta(error) => of_meta(error),
        Failure::NoSpace => Errno::NOSPC,
        Failure::Timeout | Failure::NotReady(_) => Errno::TIMEDOUT,
        Failure::Refused(_) => Errno::ACCESS,
        Failure::Damaged { .. }
        | Failure::NoChunk(_)
        | Failure::Storage(_)
        | Failure::Protocol(_)
        | Failure::Admin { .. } => Errno::IO,
    }
}

fn of_meta(error: &MetaError) -> Errno {
    match error {
        MetaError::NotFound => Errno::NOENT,
        MetaError::Exists => Errno::EXIST,
        MetaError::NotDirectory => Errno::NOTDIR,
        MetaError::IsDirectory => Errno::ISDIR,
        MetaError::NotEmpty => Errno::NOTEMPTY,
        MetaError::NameTooLong => Errno::NAMETOOLONG,
        MetaError::Invalid(_) => Errno::INVAL,
        MetaError::TooManyLinks => Errno::MLINK,
        MetaError::FileTooLarge => Errno::FBIG,
        MetaError::NoXattr => Errno::NODATA,
        MetaError::XattrTooLarge | MetaError::NoSpace => Errno::NOSPC,
        MetaError::NotPermitted => Errno::PERM,
        MetaError::AccessDenied | MetaError::Token(_) => Errno::ACCESS,
        MetaError::NodeIs(_) | MetaError::NameTaken(_) => Errno::INVAL,
        MetaError::Unsupported(_) => Errno::OPNOTSUPP,
        MetaError::Stale => Errno::STALE,
        MetaError::WouldBlock => Errno::AGAIN,
        MetaError::RetryPut(_)
        | MetaError::Superseded
        | MetaError::SessionExpired
        | MetaError::OutOfSequence
        | MetaError::StaleEpoch(_) => Errno::IO,
    }
}
