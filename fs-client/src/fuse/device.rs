//! Notifications, written to the kernel by hand: fuser does not know all of them, and keeps to itself whether the kernel
//! knew what it was told of.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, Result};

/// `FUSE_NOTIFY_INVAL_INODE` and `FUSE_NOTIFY_INC_EPOCH` (protocol 7.44, Linux 6.16).
const INVAL_INODE: i32 = 2;
const INC_EPOCH: i32 = 8;
const HEADER_BYTES: usize = 16;

/// The kernel's end of a mount.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// Shares a session's descriptor.
    pub fn of(session: &impl AsFd) -> std::io::Result<Device> {
        Ok(Device(session.as_fd().try_clone_to_owned()?))
    }

    /// The attributes of an inode are not to be used any more, nor are older ones that are on their way. False if the kernel
    /// does not know the inode.
    pub fn forget_attributes(&self, number: u64) -> Result<bool> {
        let mut message = [0; HEADER_BYTES + 24];
        // An offset below zero spares its pages, and the locks on them.
        message[HEADER_BYTES..][..8].copy_from_slice(&number.to_ne_bytes());
        message[HEADER_BYTES + 8..][..8].copy_from_slice(&(-1_i64).to_ne_bytes());
        match self.send(INVAL_INODE, &mut message) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All names that the kernel keeps are to be looked up again, also those that are being looked up now.
    pub fn forget_names(&self) -> Result<()> {
        self.send(INC_EPOCH, &mut [0; HEADER_BYTES])
    }

    fn send(&self, code: i32, message: &mut [u8]) -> Result<()> {
        // Length, code instead of an error, and zero instead of the number of a request.
        let len = u32::try_from(message.len()).map_err(|_| Errno::TOOBIG)?;
        message[..4].copy_from_slice(&len.to_ne_bytes());
        message[4..8].copy_from_slice(&code.to_ne_bytes());
        rustix::io::retry_on_intr(|| rustix::io::write(&self.0, message)).map(|_| ())
    }
}
