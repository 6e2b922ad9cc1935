//! The tree by paths, without a mount: for the command line, for tests, for programs.

use std::sync::Arc;

use bytes::Bytes;
use metadata::op::{FsOp, NewNode, RenameMode, SetAttr};
use metadata::operate::{Directory, Operation};
use metadata::outcome::Outcome;
use metadata::protocol::Reply;
use metadata::read::{ListEntry, ReadOp, ReadResult};
use metadata::types::{Attr, Dirent, FileKind, InodeId, NodeRef};
use multicast::ids::{GroupId, ReplicaId, VectorClock};

use crate::config::ClientConfig;
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::fs::{Created, Fs, NewEntry, Write};
use crate::session::Engine;
use crate::volume::Volume;

const READ_BYTES: u32 = 4 << 20;

/// A client of one cluster: sessions, caches, buffers. Acts as user 0. Cheap to clone; [`Client::close`] ends all clones.
#[derive(Clone, Debug)]
pub struct Client {
    fs: Arc<Fs>,
    engine: Arc<Engine>,
}

/// A directory whose placement differs from its parent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Absolute path.
    pub path: String,
    /// Where its children are homed.
    pub placement: GroupId,
    /// Where the directory itself lives.
    pub home: GroupId,
}

/// What [`Client::explain`] finds out about a path: the facts, from which `globalfs explain` tells costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The inode, if the path exists.
    pub attr: Option<Attr>,
    /// The directory that holds (or would hold) the last name; of the root, the root.
    pub parent: Attr,
    /// The groups whose state a lookup from the root passes, in order, each once.
    pub lookup_groups: Vec<GroupId>,
    /// The groups that a create or unlink of the last name involves.
    pub name_groups: Vec<GroupId>,
    /// The groups that a write, chmod or truncate involves.
    pub write_groups: Vec<GroupId>,
}

impl Client {
    /// Connects lazily: succeeds without any node being up. Must be called inside a tokio runtime. Without a `store`
    /// files that are not inline cannot be read or written.
    pub fn connect(
        config: ClientConfig,
        endpoint: net::Endpoint,
        store: Option<datastore::BlobStore>,
    ) -> Result<Client> {
        let engine = Engine::start(config.clone(), &endpoint)?;
        let volume: Arc<dyn Volume> = engine.clone();
        Ok(Client { fs: Fs::start(volume, &config, store), engine })
    }

    pub(crate) fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }

    /// Waits until the root directory answers, at most until the deadline.
    pub async fn ready(&self) -> Result<()> {
        match tokio::time::timeout(self.fs.deadline(), self.fs.attr(root())).await {
            Ok(answered) => Ok(answered.map(|_| ())?),
            Err(_) => Err(Error::Posix(Errno::ETIMEDOUT)),
        }
    }

    /// An inode by its absolute path; symlinks are not followed.
    pub async fn stat(&self, path: &str) -> Result<Attr> {
        Ok(self.walk(path).await?.1)
    }

    /// Makes a directory; `placement` overrides what it would inherit.
    pub async fn mkdir(&self, path: &str, mode: u16, placement: Option<GroupId>) -> Result<Attr> {
        let (parent, name) = self.parent_of(path).await?;
        let entry = NewEntry { node: NewNode::Directory { placement }, mode, uid: 0, gid: 0 };
        match self.fs.create(parent, &name, &entry).await? {
            Created::New(attr) => Ok(attr),
            Created::Taken(_) => Err(Errno::EEXIST.into()),
        }
    }

    /// A directory's entries.
    pub async fn read_dir(&self, path: &str) -> Result<Vec<ListEntry>> {
        let (node, _) = self.walk(path).await?;
        Ok(self.fs.list(node).await?)
    }

    /// Creates or replaces a file's content. Durable when it returns.
    pub async fn write_file(&self, path: &str, content: &[u8]) -> Result<Attr> {
        let (parent, name) = self.parent_of(path).await?;
        let entry = NewEntry { node: NewNode::File, mode: 0o644, uid: 0, gid: 0 };
        let (node, is_new) = match self.fs.create(parent, &name, &entry).await? {
            Created::New(attr) => (node_of(&attr), true),
            Created::Taken(dirent) if dirent.kind == FileKind::File => (dirent, false),
            Created::Taken(_) => return Err(Errno::EISDIR.into()),
        };
        self.fs.table.open(node.ino, node.kind, node.home);
        let written = self.replace_content(node, content, is_new).await;
        self.fs.close_handle(node.ino);
        written
    }

    async fn replace_content(&self, node: NodeRef, content: &[u8], is_new: bool) -> Result<Attr> {
        if !is_new {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            self.fs.set_attr(node, set).await?;
        }
        let file = self.fs.table.file(node.ino).ok_or(Error::Posix(Errno::EBADF))?;
        let mut offset = 0;
        for part in content.chunks(READ_BYTES as usize) {
            let write = Write { offset, bytes: part, append: false, kill_privileges: false };
            self.fs.write_settled(&file, write).await?;
            offset += part.len() as u64;
        }
        self.fs.flush(&file).await?;
        Ok((*self.fs.attr(node).await?).clone())
    }

    /// A file's content.
    pub async fn read_file(&self, path: &str) -> Result<Bytes> {
        let (node, attr) = self.walk(path).await?;
        match attr.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
        let mut content = Vec::new();
        loop {
            let part = self.fs.read(node, content.len() as u64, READ_BYTES).await?;
            if part.is_empty() {
                return Ok(content.into());
            }
            content.extend_from_slice(&part);
        }
    }

    /// rename(2).
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, from_name) = self.parent_of(from).await?;
        let (to, to_name) = self.parent_of(to).await?;
        Ok(self.fs.rename((from, &from_name), (to, &to_name), RenameMode::Replace).await?)
    }

    /// unlink(2), or rmdir(2) of a directory.
    pub async fn remove(&self, path: &str) -> Result<()> {
        let (_, attr) = self.walk(path).await?;
        let (parent, name) = self.parent_of(path).await?;
        Ok(self.fs.remove(parent, &name, attr.kind == FileKind::Directory).await?)
    }

    /// Places a directory on a group: what is created below it from now on lives there. With `move_content` what is
    /// there already follows before this returns, the directory itself included; how many inodes were moved.
    pub async fn set_placement(&self, path: &str, group: GroupId, move_content: bool) -> Result<u64> {
        let (node, attr) = self.walk(path).await?;
        if attr.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        self.fs.set_placement(node, group).await?;
        if !move_content {
            return Ok(0);
        }
        let mut moved = 0;
        if node.ino != InodeId::ROOT {
            let (parent, name) = self.parent_of(path).await?;
            moved += u64::from(self.fs.move_inode(parent, &name, group).await?);
        }
        Ok(moved + self.move_below(NodeRef { home: group, ..node }, group).await?)
    }

    /// Parents before their children, so that what is created meanwhile is born where it belongs.
    async fn move_below(&self, dir: NodeRef, group: GroupId) -> Result<u64> {
        let mut moved = 0;
        let mut waiting = vec![dir.ino];
        while let Some(ino) = waiting.pop() {
            let dir = self.fs.table_or(ino, group);
            for entry in self.fs.list(dir).await? {
                let child = entry.dirent;
                if child.kind == FileKind::Directory {
                    self.fs.set_placement(child, group).await?;
                }
                match self.fs.move_inode(dir, &entry.name, group).await {
                    Ok(was_moved) => moved += u64::from(was_moved),
                    // Removed, renamed or linked elsewhere since it was listed.
                    Err(Errno::ENOENT | Errno::ESTALE | Errno::EMLINK | Errno::EBUSY) => continue,
                    Err(error) => return Err(error.into()),
                }
                if child.kind == FileKind::Directory {
                    waiting.push(child.ino);
                }
            }
        }
        Ok(moved)
    }

    /// Directories placed otherwise than their parents, at most `depth` levels below the root.
    pub async fn placements(&self, depth: usize) -> Result<Vec<Placed>> {
        let attr = self.fs.attr(root()).await?;
        let mut found = vec![Placed { path: "/".into(), placement: attr.placement, home: attr.home }];
        let mut level = vec![(String::new(), root(), attr.placement)];
        for _ in 0..depth {
            let mut next = Vec::new();
            for (path, dir, placement) in level {
                for entry in self.fs.list(dir).await? {
                    if entry.dirent.kind != FileKind::Directory {
                        continue;
                    }
                    let attr = match self.fs.attr(entry.dirent).await {
                        Ok(attr) => attr,
                        Err(Errno::ENOENT | Errno::ESTALE) => continue,
                        Err(error) => return Err(error.into()),
                    };
                    let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
                    if attr.placement != placement {
                        found.push(Placed { path: path.clone(), placement: attr.placement, home: attr.home });
                    }
                    next.push((path, node_of(&attr), attr.placement));
                }
            }
            level = next;
        }
        Ok(found)
    }

    /// The facts behind `globalfs explain`.
    pub async fn explain(&self, path: &str) -> Result<Explanation> {
        let mut lookup_groups: Vec<GroupId> = Vec::new();
        let mut pass = |group: GroupId| {
            if lookup_groups.last() != Some(&group) && !lookup_groups.contains(&group) {
                lookup_groups.push(group);
            }
        };
        let mut parent = self.fs.attr(root()).await?;
        let mut found = Some(parent.clone());
        let mut names = names_of(path)?.into_iter().peekable();
        let mut name = Bytes::new();
        while let Some(next) = names.next() {
            parent = found.take().ok_or(Error::Posix(Errno::ENOENT))?;
            name = next;
            pass(parent.home);
            found = match self.fs.lookup(node_of(&parent), &name).await {
                Ok(attr) => Some(attr),
                Err(Errno::ENOENT) if names.peek().is_none() => None,
                Err(error) => return Err(error.into()),
            };
        }
        if let Some(attr) = &found {
            pass(attr.home);
        }
        let groups = |op: FsOp| op.destinations().into_iter().map(|destination| destination.group).collect();
        let parent_node = node_of(&parent);
        let name_groups = groups(match &found {
            Some(attr) => FsOp::Unlink { parent: parent_node, name, target: node_of(attr), keep_open: false },
            None => FsOp::Create {
                parent: parent_node,
                name,
                node: NewNode::File,
                mode: 0,
                uid: 0,
                gid: 0,
                home: parent.placement,
            },
        });
        let write_groups = vec![found.as_ref().map_or(parent.placement, |attr| attr.home)];
        Ok(Explanation {
            attr: found.map(|attr| (*attr).clone()),
            parent: (*parent).clone(),
            lookup_groups,
            name_groups,
            write_groups,
        })
    }

    /// A node's status document (JSON).
    pub async fn node_status(&self, node: ReplicaId) -> Result<Bytes> {
        self.engine.node_status(node).await
    }

    /// Asks a node to do what an operator wants; whatever it answers.
    pub async fn operate(&self, node: ReplicaId, operation: Operation) -> Result<Reply> {
        self.engine.operate(node, operation).await
    }

    /// Who belongs to the groups, as far as a node knows.
    pub async fn node_directory(&self, node: ReplicaId) -> Result<Directory> {
        self.engine.node_directory(node).await
    }

    /// Executes one update as it is: for what looks after a cluster, such as the collection of blobs.
    pub async fn update(&self, op: FsOp) -> Result<Outcome> {
        Volume::update(&*self.engine, op).await
    }

    /// Asks one group as it is; causal like every read.
    pub async fn query(&self, group: GroupId, op: ReadOp) -> Result<ReadResult> {
        Volume::read(&*self.engine, group, op).await
    }

    /// What this client has seen: hand it to another one to make it see the same.
    #[must_use]
    pub fn clock(&self) -> VectorClock {
        self.engine.clock()
    }

    /// Makes all later reads see at least what `clock` has seen; returns when the groups named in it can answer such.
    pub async fn await_clock(&self, clock: &VectorClock) -> Result<()> {
        self.engine.adopt(clock).await
    }

    /// Brings everything that was written home.
    pub async fn flush(&self) -> Result<()> {
        self.fs.flush_bounded().await
    }

    /// Flushes, closes sessions and connections; ends within the configured time.
    pub async fn close(&self) -> Result<()> {
        self.fs.close().await
    }

    async fn walk(&self, path: &str) -> Result<(NodeRef, Attr)> {
        let mut attr = self.fs.attr(root()).await?;
        for name in names_of(path)? {
            if attr.kind != FileKind::Directory {
                return Err(Errno::ENOTDIR.into());
            }
            attr = self.fs.lookup(node_of(&attr), &name).await?;
        }
        Ok((node_of(&attr), (*attr).clone()))
    }

    async fn parent_of(&self, path: &str) -> Result<(NodeRef, Bytes)> {
        let (parent, name) = path.trim_end_matches('/').rsplit_once('/').ok_or(Error::Posix(Errno::EINVAL))?;
        let (node, attr) = self.walk(&format!("{parent}/")).await?;
        if attr.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR.into());
        }
        Ok((node, Bytes::copy_from_slice(name.as_bytes())))
    }
}

fn root() -> NodeRef {
    NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL }
}

fn node_of(attr: &Attr) -> Dirent {
    NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home }
}

/// The names of an absolute path.
fn names_of(path: &str) -> Result<Vec<Bytes>> {
    let rest = path.strip_prefix('/').ok_or(Error::Posix(Errno::EINVAL))?;
    let names = rest.split('/').filter(|name| !name.is_empty() && *name != ".");
    if names.clone().any(|name| name == "..") {
        return Err(Errno::EINVAL.into());
    }
    Ok(names.map(|name| Bytes::copy_from_slice(name.as_bytes())).collect())
}
