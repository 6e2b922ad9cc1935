//! New content: write(2), fallocate(2), copy_file_range(2).

use super::content::{FileEdit, pieces_from};
use super::setattr::{kill_privileges, require_file};
use crate::keys;
use crate::namespace::{Namespace, touch_changed, touch_modified};
use crate::op::{Change, FsOp, WriteAt};
use crate::outcome::{Done, Errno, Fact};
use crate::rows::{BlobRow, InodeRow, Source};
use crate::store::StoreMut;
use crate::types::{BlobId, FILE_BYTES_MAX, TimeNs};
use crate::verdict::{Rank, Step, Stop};

/// Steps' worth of pieces that one write may replace.
const WRITE_STEPS: usize = 8;

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn write(&mut self, now: TimeNs, op: &FsOp) -> Step<Done> {
        let FsOp::Write { node, at, changes, size_min, mtime, kill_privileges: kill } = op else {
            return Err(Stop::errno(Rank::Malformed, Errno::Malformed));
        };
        let row = self.subject(*node)?;
        require_file(&row)?;
        let base = match at {
            WriteAt::Offsets => 0,
            WriteAt::End => row.attr.size,
        };
        let size_before = row.attr.size;
        let mut size = size_before.max(end_of(base, *size_min)?);
        for change in changes {
            size = size.max(self.check_change(base, change)?);
        }
        let reach = changes.iter().map(|change| change.range()).map(|(offset, len)| base.saturating_add(offset + len));
        self.check_cut(&row, reach.max().unwrap_or(0).max(size))?;
        let row = self.make_room(row, base, changes)?;
        let mut edit = FileEdit::new(self, row);
        for change in changes {
            apply_change(&mut edit, base, change)?;
        }
        let mut row = edit.finish()?;
        if row.inline_bytes > self.volume.inline_bytes_max {
            // Bytes that were cut off count until they are gone.
            if self.grave(row.attr.ino)?.is_some() {
                return Err(Stop::again());
            }
            return Err(Stop::stale(Fact::Attr(Box::new(row.attr))));
        }
        if !changes.is_empty() || size != size_before {
            row.attr.size = size;
            row.attr.data_version += 1;
            touch_modified(&mut row, now);
        }
        if let Some(mtime) = *mtime {
            row.attr.mtime = mtime;
            row.modified = now;
            touch_changed(&mut row.attr, now);
        }
        if *kill {
            kill_privileges(&mut row.attr);
            touch_changed(&mut row.attr, now);
        }
        self.put_inode(&row)?;
        let appended_at = (*at == WriteAt::End).then_some(base);
        Ok(Done::Node { attr: Box::new(row.attr), appended_at, directories: Vec::new() })
    }

    /// Clears what the changes replace if that might be much; if it is too much, only a part.
    ///
    /// Nothing of that with bytes that are to be held here: whether they fit shows at the end, and a write that is refused must
    /// have changed nothing. They replace no more pieces than they have bytes; changes beside them must replace few.
    fn make_room(&mut self, mut row: InodeRow, base: u64, changes: &[Change]) -> Step<InodeRow> {
        let limit = self.step_rows.saturating_mul(WRITE_STEPS);
        if row.extents < limit as u64 {
            return Ok(row);
        }
        let has_inline = changes.iter().any(|change| matches!(change, Change::Inline { .. }));
        let mut left = limit;
        for change in changes {
            let (offset, len) = change.range();
            let (start, end) = (base + offset, base + offset + len);
            match change {
                Change::Inline { .. } => continue,
                Change::Blob { .. } | Change::Hole { .. } | Change::Zero { .. } if !has_inline => {}
                _ => {
                    let pieces = pieces_from(&self.store, row.attr.ino, start, limit)?;
                    if pieces.len() == limit && pieces.last().is_some_and(|piece| piece.end < end) {
                        return Err(Stop::errno(Rank::Limit, Errno::NotSupported));
                    }
                    continue;
                }
            }
            let mut edit = FileEdit::new(self, row);
            left -= edit.clear_some(start, end, left)?;
            row = edit.finish()?;
            if left == 0 {
                row.attr.data_version += 1;
                self.put_inode(&row)?;
                return Err(Stop::Unfinished);
            }
        }
        Ok(row)
    }

    /// How long the file must be for a change, which must be possible.
    fn check_change(&self, base: u64, change: &Change) -> Step<u64> {
        let (offset, len) = change.range();
        let end = end_of(base, offset.saturating_add(len))?;
        match change {
            Change::Inline { bytes, .. } => Ok(if bytes.is_empty() { 0 } else { end }),
            Change::Blob { source, fresh, .. } => {
                self.check_reference(source.blob, *fresh)?;
                Ok(end)
            }
            Change::Hole { .. } | Change::Zero { .. } | Change::Allocate { .. } => Ok(0),
        }
    }

    /// A blob that nothing refers to may be collected at any moment: too late to refer to it again.
    fn check_reference(&self, blob: BlobId, fresh: bool) -> Step<()> {
        let usable = match self.read::<BlobRow>(&keys::blob(blob))? {
            None => fresh && !self.is_retired(blob)?,
            Some(row) => row.references > 0,
        };
        if usable { Ok(()) } else { Err(Stop::stale(Fact::BlobGone(blob))) }
    }
}

fn end_of(base: u64, end: u64) -> Step<u64> {
    match base.checked_add(end) {
        Some(end) if end <= FILE_BYTES_MAX => Ok(end),
        _ => Err(Stop::errno(Rank::Limit, Errno::FileTooBig)),
    }
}

fn apply_change<S: StoreMut>(edit: &mut FileEdit<'_, S>, base: u64, change: &Change) -> Step<()> {
    let (offset, len) = change.range();
    let start = base + offset;
    match change {
        Change::Inline { bytes, .. } => edit.write_inline(start, bytes)?,
        Change::Blob { source, .. } => edit.replace(start, len, Source::Blob(*source))?,
        Change::Hole { .. } => edit.clear(start, start + len)?,
        Change::Zero { .. } => edit.replace(start, len, Source::Zero)?,
        Change::Allocate { .. } => edit.allocate(start, start + len)?,
    }
    Ok(())
}
