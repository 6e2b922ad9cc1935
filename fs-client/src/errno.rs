//! The one table from what can go wrong to what the application is told.

use std::fmt;

use metadata::outcome::{self, OpError};

use crate::error::Error;

/// An error number of the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                pub const $name: Errno = Errno(libc::$name);
            )*
        }

        impl fmt::Display for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $(libc::$name => f.write_str(stringify!($name)),)*
                    other => write!(f, "errno {other}"),
                }
            }
        }
    };
}

errnos! {
    E2BIG EACCES EAGAIN EBADF EBUSY EDQUOT EEXIST EFBIG EHOSTUNREACH EINTR EINVAL EIO EISDIR EMLINK ENAMETOOLONG ENODATA ENOENT
    ENOLCK ENOSPC ENOSYS ENOTDIR ENOTEMPTY ENXIO EOPNOTSUPP EPERM ERANGE EROFS ESTALE ETIMEDOUT
}

impl From<outcome::Errno> for Errno {
    fn from(errno: outcome::Errno) -> Self {
        match errno {
            outcome::Errno::NotFound => Errno::ENOENT,
            outcome::Errno::Exists => Errno::EEXIST,
            outcome::Errno::NotDirectory => Errno::ENOTDIR,
            outcome::Errno::IsDirectory => Errno::EISDIR,
            outcome::Errno::NotEmpty => Errno::ENOTEMPTY,
            outcome::Errno::NotPermitted => Errno::EPERM,
            outcome::Errno::AccessDenied => Errno::EACCES,
            outcome::Errno::Invalid => Errno::EINVAL,
            outcome::Errno::NameTooLong => Errno::ENAMETOOLONG,
            outcome::Errno::TooManyLinks => Errno::EMLINK,
            outcome::Errno::FileTooBig => Errno::EFBIG,
            outcome::Errno::NoSpace => Errno::ENOSPC,
            outcome::Errno::QuotaExceeded => Errno::EDQUOT,
            outcome::Errno::NoXattr => Errno::ENODATA,
            outcome::Errno::TooBig => Errno::E2BIG,
            outcome::Errno::OutOfRange => Errno::ERANGE,
            outcome::Errno::NotSupported => Errno::EOPNOTSUPP,
            outcome::Errno::Locked => Errno::EAGAIN,
            outcome::Errno::StaleHandle => Errno::ESTALE,
            outcome::Errno::Busy => Errno::EBUSY,
            outcome::Errno::Malformed => Errno::EIO,
            outcome::Errno::NoLocks => Errno::ENOLCK,
        }
    }
}

impl From<&OpError> for Errno {
    fn from(error: &OpError) -> Self {
        match error {
            OpError::Errno(errno) => (*errno).into(),
            OpError::Exists(_) => Errno::EEXIST,
            // Both are answered by asking again; who gets here has asked too often.
            OpError::Stale(_) | OpError::Moved { .. } => Errno::ETIMEDOUT,
            OpError::LockHeld { .. } => Errno::EAGAIN,
        }
    }
}

impl From<&Error> for Errno {
    fn from(error: &Error) -> Self {
        match error {
            Error::Posix(errno) => *errno,
            Error::Timeout { .. } => Errno::ETIMEDOUT,
            Error::Unreachable { .. } => Errno::EHOSTUNREACH,
            Error::Data(datastore::Error::Full { by_quota: false, .. }) => Errno::ENOSPC,
            Error::Data(datastore::Error::Full { by_quota: true, .. }) => Errno::EDQUOT,
            Error::SessionLost { .. }
            | Error::Overtaken { .. }
            | Error::Refused { .. }
            | Error::Data(_)
            | Error::Net(_)
            | Error::Config(_)
            | Error::MountPoint { .. }
            | Error::Kernel { .. }
            | Error::Closing => Errno::EIO,
        }
    }
}
