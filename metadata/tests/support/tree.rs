//! Compares all that a cluster shows with all that the model holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{Attr, Content, FileKind, NodeRef, TimeNs};
use multicast::ids::GroupId;

use super::Cluster;
use super::model::{self, Id, Model, allocated, blob_byte, bytes_of};

/// Every node of the model, by its reference, as the cluster must show it.
pub fn compare(cluster: &Cluster, model: &Model, refs: &BTreeMap<Id, NodeRef>) {
    for (&id, node) in &model.nodes {
        let node_ref = refs[&id];
        assert_eq!(node_ref.home, GroupId(node.home), "home of {id}");
        let attr = cluster.attr(node_ref);
        compare_attr(model, id, &attr);
        match node.kind {
            FileKind::Directory => compare_entries(cluster, model, refs, id),
            FileKind::File => compare_content(cluster, node_ref, node),
            FileKind::Symlink => {
                let target = cluster.read(node_ref.home, &ReadOp::ReadLink { ino: node_ref.ino });
                assert_eq!(target, Ok(ReadAnswer::Target(super::name(&node.target))));
            }
            _ => {}
        }
        compare_xattrs(cluster, node_ref, node);
    }
    let inodes: u64 = cluster
        .groups()
        .into_iter()
        .map(|group| match cluster.read(group, &ReadOp::Usage) {
            Ok(ReadAnswer::Usage { inodes, .. }) => inodes,
            other => panic!("no usage: {other:?}"),
        })
        .sum();
    assert_eq!(inodes, model.nodes.len() as u64, "no inode that the model does not know");
}

fn compare_attr(model: &Model, id: Id, attr: &Attr) {
    let node = model.node(id);
    let size = match node.kind {
        FileKind::Directory => node.children.len(),
        _ => node.size,
    };
    let shown = (attr.kind, attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.size);
    let held = (node.kind, node.mode, model.nlink(id), node.uid, node.gid, node.rdev, size as u64);
    assert_eq!(shown, held, "attributes of {id}");
    let shown = [attr.atime, attr.mtime, attr.ctime, attr.btime];
    assert_eq!(shown, [node.atime, node.mtime, node.ctime, node.btime].map(TimeNs), "times of {id}");
    assert_eq!(attr.placement, GroupId(node.placement), "placement of {id}");
    assert_eq!(attr.xattrs as usize, node.xattrs.len(), "xattrs of {id}");
    assert_eq!(attr.allocated as usize, allocated(node), "allocated bytes of {id}");
}

fn compare_entries(cluster: &Cluster, model: &Model, refs: &BTreeMap<Id, NodeRef>, dir: Id) {
    let mut shown = BTreeMap::new();
    let mut after = 0;
    loop {
        let op = ReadOp::ReadDir { dir: refs[&dir].ino, after, limit: 3, plus: true };
        let Ok(ReadAnswer::Entries { entries, end }) = cluster.read(refs[&dir].home, &op) else { panic!("no listing") };
        for entry in entries {
            assert!(entry.cookie > after.max(2));
            after = entry.cookie;
            if let Some(attr) = entry.attr {
                assert_eq!(*attr, cluster.attr(entry.dirent));
            } else {
                assert_ne!(entry.dirent.home, refs[&dir].home);
            }
            shown.insert(String::from_utf8(entry.name.to_vec()).unwrap(), entry.dirent);
        }
        if end {
            break;
        }
    }
    let held: BTreeMap<String, NodeRef> =
        model.node(dir).children.iter().map(|(name, child)| (name.clone(), refs[child])).collect();
    assert_eq!(shown, held, "entries of {dir}");
    for (name, child) in held {
        assert_eq!(cluster.lookup(refs[&dir], &name), Some(child));
    }
}

fn compare_content(cluster: &Cluster, node_ref: NodeRef, node: &model::Node) {
    assert_eq!(read_bytes(cluster, node_ref), bytes_of(node), "content");
}

/// A file's bytes as a client puts them together.
pub fn read_bytes(cluster: &Cluster, node: NodeRef) -> Vec<u8> {
    let op = ReadOp::Content { ino: node.ino, offset: 0, len: u64::MAX };
    let Ok(ReadAnswer::Content { attr, content }) = cluster.read(node.home, &op) else { panic!("no content") };
    let mut bytes = vec![0u8; attr.size as usize];
    let mut put = |offset: u64, run: &[u8]| {
        let start = offset as usize;
        for (at, byte) in run.iter().enumerate() {
            bytes[start + at] = *byte;
        }
    };
    let (extents, inline) = match content {
        Content::Inline(bytes) => (Vec::new(), vec![(0, bytes)]),
        Content::Extents { extents, more } => {
            assert!(!more);
            (extents, Vec::new())
        }
        Content::Mixed { extents, inline, more } => {
            assert!(!more && !inline.is_empty());
            (extents, inline)
        }
    };
    for (offset, run) in inline {
        put(offset, &run);
    }
    for extent in extents {
        if let Some(source) = extent.source {
            let run: Vec<u8> =
                (0..extent.len as u32).map(|at| blob_byte(source.blob.sequence, source.start + at)).collect();
            put(extent.offset, &run);
        }
    }
    bytes
}

fn compare_xattrs(cluster: &Cluster, node_ref: NodeRef, node: &model::Node) {
    let Ok(ReadAnswer::Xattrs(names)) = cluster.read(node_ref.home, &ReadOp::ListXattr { ino: node_ref.ino }) else {
        panic!("no list of xattrs")
    };
    assert_eq!(names, node.xattrs.keys().map(|name| super::name(name)).collect::<Vec<Bytes>>());
    for (name, value) in &node.xattrs {
        let op = ReadOp::GetXattr { ino: node_ref.ino, name: super::name(name) };
        assert_eq!(cluster.read(node_ref.home, &op), Ok(ReadAnswer::Xattr(Bytes::copy_from_slice(value))));
    }
}
