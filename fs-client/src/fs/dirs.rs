//! Directory listings.

use std::sync::Arc;

use metadata::read::{ListEntry, ReadAnswer, ReadOp};
use metadata::types::{Attr, FileKind, InodeId, NodeRef};
use parking_lot::Mutex;

use super::{Fs, FsResult};
use crate::errno::Errno;

/// Entries asked for at once.
const PAGE_ENTRIES: u32 = 1024;
/// More entries with attributes do not fit into one answer to the kernel, unless it is asked with an uncommonly large buffer.
const PLUS_ENTRIES_MAX: usize = 256;
/// Offsets of `.` and `..`; entries' cookies are larger.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    ino: InodeId,
    page: Mutex<Option<Arc<Page>>>,
}

#[derive(Debug)]
struct Page {
    after: u64,
    plus: bool,
    entries: Vec<ListEntry>,
    end: bool,
}

/// One entry for the caller.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Where to go on behind it.
    pub offset: u64,
    /// Its inode.
    pub ino: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// Its name.
    pub name: bytes::Bytes,
    /// Its attributes, if asked for. `.` and `..` come without.
    pub attr: Option<Arc<Attr>>,
}

impl Directory {
    /// Opens a directory.
    #[must_use]
    pub fn new(ino: InodeId) -> Directory {
        Directory { ino, page: Mutex::new(None) }
    }
}

impl Fs {
    /// Entries behind `offset`, at least one unless there are no more. With `plus`, attributes; the caller may use some
    /// of the entries and come back for the rest.
    pub async fn read_dir(&self, dir: &Directory, offset: u64, plus: bool) -> FsResult<Vec<Listed>> {
        let node = self.table.directory(dir.ino);
        let mut listed = Vec::new();
        if offset < DOT_DOT {
            let attr = self.attr(node).await?;
            let dots = [(DOT, dir.ino, &b"."[..]), (DOT_DOT, attr.parent.unwrap_or(dir.ino), b"..")];
            listed.extend(dots.into_iter().filter(|(at, ..)| *at > offset).map(|(offset, ino, name)| Listed {
                offset,
                ino,
                kind: FileKind::Directory,
                name: bytes::Bytes::from_static(name),
                attr: None,
            }));
        }
        let after = if offset <= DOT_DOT { 0 } else { offset };
        let page = self.page(dir, node, after, plus, offset == 0).await?;
        let rest = page.rest(after);
        for entry in rest {
            if plus && listed.len() >= PLUS_ENTRIES_MAX {
                break;
            }
            let attr = if plus { self.entry_attr(entry).await } else { None };
            if plus && attr.is_none() {
                // Removed since the page was read.
                continue;
            }
            listed.push(Listed {
                offset: entry.cookie,
                ino: entry.dirent.ino,
                kind: entry.dirent.kind,
                name: entry.name.clone(),
                attr,
            });
        }
        Ok(listed)
    }

    /// All entries of a directory.
    pub async fn list(&self, dir: NodeRef) -> FsResult<Vec<ListEntry>> {
        let mut all: Vec<ListEntry> = Vec::new();
        loop {
            let after = all.last().map_or(0, |entry| entry.cookie);
            let op = ReadOp::ReadDir { dir: dir.ino, after, limit: PAGE_ENTRIES, plus: false };
            let ReadAnswer::Entries { entries, end } = self.ask(dir, op).await? else { return Err(Errno::EIO) };
            let none = entries.is_empty();
            all.extend(entries);
            if end || none {
                return Ok(all);
            }
        }
    }

    async fn page(&self, dir: &Directory, node: NodeRef, after: u64, plus: bool, rewind: bool) -> FsResult<Arc<Page>> {
        let held = dir.page.lock().clone();
        if let Some(page) = held
            && !rewind
            && !self.is_linearizable()
            && page.plus >= plus
            && page.holds(after)
        {
            return Ok(page);
        }
        let op = ReadOp::ReadDir { dir: dir.ino, after, limit: PAGE_ENTRIES, plus };
        let ReadAnswer::Entries { entries, end } = self.ask(node, op).await? else { return Err(Errno::EIO) };
        let page = Arc::new(Page { after, plus, entries, end });
        *dir.page.lock() = Some(page.clone());
        Ok(page)
    }

    /// The attributes of a listed inode. One that lives elsewhere is asked for there, or what was last known is given:
    /// the kernel keeps none of it, and a listing must not wait for a far region.
    async fn entry_attr(&self, entry: &ListEntry) -> Option<Arc<Attr>> {
        let dirent = entry.dirent;
        let cache = self.volume.cache();
        // The page may be older than what is cached.
        if let Some(attr) = cache.attr(dirent.home, dirent.ino) {
            return Some(attr);
        }
        if let Some(attr) = &entry.attr {
            return Some(Arc::new((**attr).clone()));
        }
        if !self.is_linearizable()
            && let Some(attr) = cache.attr_hint(dirent.home, dirent.ino)
        {
            return Some(attr);
        }
        let patience = std::time::Duration::from_secs(2).min(self.timeouts.deadline);
        match tokio::time::timeout(patience, self.attr(dirent)).await {
            Ok(Ok(attr)) => Some(attr),
            Ok(Err(Errno::ENOENT | Errno::ESTALE)) => None,
            Ok(Err(_)) | Err(_) => Some(Arc::new(Attr::blank(dirent))),
        }
    }
}

impl Listed {
    /// Stands for the attributes of `.` and `..`.
    #[must_use]
    pub fn placeholder(&self) -> Attr {
        Attr::blank(NodeRef { ino: self.ino, kind: self.kind, home: self.ino.birth_group() })
    }
}

impl Page {
    /// True if what comes behind `after` is in this page, or it is known that nothing does.
    fn holds(&self, after: u64) -> bool {
        match self.entries.last() {
            _ if after == self.after => true,
            Some(last) => after > self.after && (after < last.cookie || (after == last.cookie && self.end)),
            None => false,
        }
    }

    fn rest(&self, after: u64) -> &[ListEntry] {
        let first = self.entries.partition_point(|entry| entry.cookie <= after);
        &self.entries[first..]
    }
}
