//! A disk in memory that records every write, so that a test can crash it at any point: what was synced stays, of what
//! was not any sectors may or may not have reached the disk.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// One thing that was done to the disk.
#[derive(Clone, Debug)]
enum Op {
    Create { name: String, bytes: Vec<u8> },
    Write { name: String, offset: u64, bytes: Vec<u8> },
    Sync { name: String },
    Remove { name: String },
}

/// A disk in memory.
#[derive(Clone, Default)]
pub struct SimDisk {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    /// What is there at the start of the recording.
    base: BTreeMap<String, Vec<u8>>,
    ops: Vec<Op>,
    fail_after: Option<usize>,
}

impl SimDisk {
    /// How many things have been done.
    pub fn op_count(&self) -> usize {
        self.shared.lock().ops.len()
    }

    /// Everything from the `count`-th op on fails.
    pub fn fail_after(&self, count: usize) {
        self.shared.lock().fail_after = Some(count);
    }

    /// The disk after a crash behind the first `count` ops. `keep` decides for each sector that was written and not synced.
    pub fn crash(&self, count: usize, keep: &mut dyn FnMut() -> bool) -> SimDisk {
        let shared = self.shared.lock();
        let mut durable = shared.base.clone();
        let mut pending: Vec<(String, u64, Vec<u8>)> = Vec::new();
        for op in &shared.ops[..count] {
            match op {
                Op::Create { name, bytes } => {
                    durable.insert(name.clone(), bytes.clone());
                }
                Op::Write { name, offset, bytes } => pending.push((name.clone(), *offset, bytes.clone())),
                Op::Sync { name } => {
                    let (synced, rest): (Vec<_>, Vec<_>) = pending.into_iter().partition(|(file, _, _)| file == name);
                    pending = rest;
                    for (name, offset, bytes) in synced {
                        overwrite(&mut durable, &name, offset, &bytes);
                    }
                }
                Op::Remove { name } => {
                    durable.remove(name);
                }
            }
        }
        for (name, offset, bytes) in pending {
            let mut at = 0;
            while at < bytes.len() {
                let to_boundary = SECTOR - (offset as usize + at) % SECTOR;
                let end = (at + to_boundary).min(bytes.len());
                if keep() {
                    overwrite(&mut durable, &name, offset + at as u64, &bytes[at..end]);
                }
                at = end;
            }
        }
        let shared = Shared { files: durable.clone(), base: durable, ..Shared::default() };
        SimDisk { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Another disk with the same files.
    pub fn copy(&self) -> SimDisk {
        let files = self.shared.lock().files.clone();
        let shared = Shared { files: files.clone(), base: files, ..Shared::default() };
        SimDisk { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Flips a byte, as a failing medium does.
    pub fn damage(&self, name: &str, offset: usize) {
        if let Some(file) = self.shared.lock().files.get_mut(name) {
            file[offset] ^= 0x55;
        }
    }

    fn record(shared: &mut Shared, op: Op) -> io::Result<()> {
        if shared.fail_after.is_some_and(|count| shared.ops.len() >= count) {
            return Err(io::Error::other("the disk failed"));
        }
        shared.ops.push(op);
        Ok(())
    }
}

fn overwrite(files: &mut BTreeMap<String, Vec<u8>>, name: &str, offset: u64, bytes: &[u8]) {
    if let Some(file) = files.get_mut(name) {
        file[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.shared.lock().files.keys().cloned().collect())
    }

    fn create(&self, name: &str, head: &[u8], len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut bytes = vec![0; len as usize];
        bytes[..head.len()].copy_from_slice(head);
        let mut shared = self.shared.lock();
        SimDisk::record(&mut shared, Op::Create { name: name.into(), bytes: bytes.clone() })?;
        shared.files.insert(name.into(), bytes);
        Ok(Arc::new(SimFile { disk: self.clone(), name: name.into(), len }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let shared = self.shared.lock();
        let file = shared.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), name: name.into(), len: file.len() as u64 }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut shared = self.shared.lock();
        SimDisk::record(&mut shared, Op::Remove { name: name.into() })?;
        shared.files.remove(name);
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    name: String,
    len: u64,
}

impl DiskFile for SimFile {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let shared = self.disk.shared.lock();
        let file = shared.files.get(&self.name).ok_or(io::ErrorKind::NotFound)?;
        let offset = offset as usize;
        buffer.copy_from_slice(file.get(offset..offset + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut shared = self.disk.shared.lock();
        SimDisk::record(&mut shared, Op::Write { name: self.name.clone(), offset, bytes: bytes.to_vec() })?;
        overwrite(&mut shared.files, &self.name, offset, bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        SimDisk::record(&mut self.disk.shared.lock(), Op::Sync { name: self.name.clone() })
    }
}
