//! The lab's operations, as a program asks the kernel for them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use geo_bench::spec::Op;

use super::workload::write_small;

/// An operation on the file `at`, or on `fresh`, which does not exist yet; `number` is how many came before.
pub fn perform(op: Op, at: &Path, fresh: &Path, (number, bytes): (usize, &[u8])) -> io::Result<()> {
    match op {
        Op::Create => write_small(fresh, bytes)?,
        Op::Mkdir => fs::create_dir(fresh)?,
        Op::Read | Op::Reread => {
            let mut content = Vec::with_capacity(bytes.len());
            File::open(at)?.read_to_end(&mut content)?;
            if content.len() != bytes.len() {
                return Err(io::Error::other(format!("{} bytes instead of {}", content.len(), bytes.len())));
            }
        }
        Op::Stat => {
            fs::symlink_metadata(at)?;
        }
        Op::Write => OpenOptions::new().write(true).open(at)?.write_all(bytes)?,
        Op::Chmod => {
            let mode = if number.is_multiple_of(2) { 0o600 } else { 0o640 };
            fs::set_permissions(at, fs::Permissions::from_mode(mode))?;
        }
        Op::Unlink => fs::remove_file(at)?,
        Op::Rename | Op::Move => fs::rename(at, fresh)?,
    }
    Ok(())
}
