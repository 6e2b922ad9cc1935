//! chmod(2), chown(2), truncate(2), utimensat(2).

use super::content::FileEdit;
use crate::namespace::{Namespace, touch_changed, touch_modified};
use crate::op::{SetAttr, SetTime};
use crate::outcome::{Done, Errno};
use crate::rows::{Grave, InodeRow};
use crate::store::StoreMut;
use crate::types::{Attr, FileKind, NodeRef, TimeNs};
use crate::verdict::{Rank, Step, Stop};

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn set_attr(&mut self, now: TimeNs, node: NodeRef, set: &SetAttr) -> Step<Done> {
        let mut row = self.subject(node)?;
        if *set == SetAttr::default() {
            return Ok(Done::node(row.attr));
        }
        if let Some(size) = set.size {
            require_file(&row)?;
            row = self.truncate(row, size)?;
            touch_modified(&mut row, now);
        }
        let attr = &mut row.attr;
        if set.kill_privileges {
            kill_privileges(attr);
        }
        attr.mode = set.mode.map_or(attr.mode, |mode| mode & 0o7777);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        attr.atime = set.atime.map_or(attr.atime, |time| chosen(time, now));
        attr.mtime = set.mtime.map_or(attr.mtime, |time| chosen(time, now));
        touch_changed(attr, now);
        if set.mtime.is_some() {
            row.modified = now;
        }
        self.put_inode(&row)?;
        Ok(Done::node(row.attr))
    }

    fn truncate(&mut self, row: InodeRow, size: u64) -> Step<InodeRow> {
        let before = row.attr.size;
        let (ino, limit) = (row.attr.ino, self.step_rows);
        if size > before {
            self.check_cut(&row, size)?;
        }
        let mut edit = FileEdit::new(self, row);
        // Not only what is cut off: also what was preallocated behind the end.
        let taken = edit.clear_some(size, u64::MAX, limit)?;
        let mut row = edit.finish()?;
        if taken == limit {
            self.bury(ino, &Grave::Content { from: size })?;
        } else {
            self.unbury(ino)?;
        }
        row.attr.size = size;
        row.attr.data_version += u64::from(size != before);
        Ok(row)
    }
}

fn chosen(time: SetTime, now: TimeNs) -> TimeNs {
    match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}

/// Content belongs to regular files.
pub(super) fn require_file(row: &InodeRow) -> Step<()> {
    match row.attr.kind {
        FileKind::File => Ok(()),
        FileKind::Directory => Err(Stop::errno(Rank::Kind, Errno::IsDirectory)),
        FileKind::Symlink | FileKind::Fifo | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Socket => {
            Err(Stop::errno(Rank::Kind, Errno::Invalid))
        }
    }
}

/// Clears what would give a changed file, or anything else with a new owner, the rights of its owner; the bits of directories
/// mean something else, and so does the set-group-id bit without group execution.
pub(super) fn kill_privileges(attr: &mut Attr) {
    if attr.kind == FileKind::Directory {
        return;
    }
    attr.mode &= !0o4000;
    if attr.mode & 0o0010 != 0 {
        attr.mode &= !0o2000;
    }
}
