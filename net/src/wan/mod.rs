//! Emulation of a wide-area network between regions, inside the endpoint's UDP socket.
//!
//! A [`Matrix`] says how far regions are from each other, what is lost and what is cut. It lives in a file that
//! all processes of a cluster read again whenever it changes ([`Wan::watch`]); [`update_file`] changes it.
//! The sender delays datagrams to addresses whose region it knows. A client's address is known to nobody, so a
//! client's endpoint delays both ways ([`WanSide::both_ways`]).
//!
//! **Precision.** Each process has one thread that sleeps on a timer of the kernel and never spins. A datagram that
//! is held costs two more wake-ups, 30 to 50 µs each on an idle processor, so what it adds is that much longer
//! than the hold. Therefore `path` (default 50 µs) is taken off every one-way delay for what the real path
//! costs, and what then remains below `min-hold` (default 60 µs) is not held at all: `lan3` (0.1 ms one way)
//! sends directly, at the full speed and with the round trip of the real path. Both are settings of the file.
//!
//! Measured with 200-byte echoes over loopback on two processors (client and node with one worker each, both
//! ways emulated by the client and the node; wanted is the round trip without the 40 µs that it takes anyway):
//!
//! | network | wanted | median, 1 at a time | CPU per echo | median, 256 in flight | CPU per echo |
//! | --- | --- | --- | --- | --- | --- |
//! | none | 0 | 39 µs | 41 µs | 0.19 ms | 0.85 µs |
//! | `lan3` | 0.2 ms | 40 µs | 42 µs | 0.20 ms | 0.84 µs |
//! | 0.2 ms with `min-hold 0` | 0.2 ms | 0.31 ms | 237 µs | 0.51 ms | 2.2 µs |
//! | 0.5 ms | 0.5 ms | 0.65 ms | 263 µs | 0.72 ms | 2.0 µs |
//! | `geo3-fast` | 7 ms | 7.14 ms | 253 µs | 7.25 ms | 2.1 µs |
//! | `geo3` | 70 ms | 70.3 ms | 661 µs | 70.2 ms | 4.2 µs |

mod matrix;
mod timer;

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::RwLock;

pub use matrix::{Matrix, PRESETS, parse_delay};
pub(crate) use timer::{DelayQueue, Job, SLACK};

use crate::{Error, Result};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The network as it is emulated now. Shared by everything in a process that wants to know distances.
#[derive(Debug)]
pub struct Wan {
    matrix: RwLock<Arc<Matrix>>,
    /// Grows with every change.
    version: AtomicU64,
    path: Option<PathBuf>,
    queue: Arc<DelayQueue>,
}

impl Wan {
    /// A network that changes only by [`Wan::set`].
    pub fn fixed(matrix: Matrix) -> Arc<Self> {
        Arc::new(Wan {
            matrix: RwLock::new(Arc::new(matrix)),
            version: AtomicU64::new(1),
            path: None,
            queue: DelayQueue::new(),
        })
    }

    /// Reads the file and follows its changes, looking every 50 ms. A version of the file that cannot be read
    /// or has other regions is reported and not used.
    pub fn watch(path: &Path) -> Result<Arc<Self>> {
        let stamp = stamp(path);
        let matrix = read_file(path)?;
        let wan = Arc::new(Wan {
            matrix: RwLock::new(Arc::new(matrix)),
            version: AtomicU64::new(1),
            path: Some(path.into()),
            queue: DelayQueue::new(),
        });
        let (weak, path) = (Arc::downgrade(&wan), path.to_owned());
        thread::Builder::new()
            .name("wan-watch".into())
            .spawn(move || follow(&weak, &path, stamp))
            .map_err(|source| Error::File { path: wan.path.clone().unwrap_or_default(), source })?;
        Ok(wan)
    }

    /// The network of this moment.
    pub fn matrix(&self) -> Arc<Matrix> {
        self.matrix.read().clone()
    }

    /// Replaces the network; the regions must stay the same.
    pub fn set(&self, matrix: Matrix) -> Result<()> {
        let mut current = self.matrix.write();
        if current.regions() != matrix.regions() {
            return Err(Error::Invalid(format!(
                "the emulated network has the regions {:?}, not {:?}",
                current.regions(),
                matrix.regions()
            )));
        }
        *current = Arc::new(matrix);
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// How long a message takes from one region to another; `None` if the way is cut. No delay for unknown
    /// regions. Jitter and loss are not included.
    pub fn one_way(&self, from: &str, to: &str) -> Option<Duration> {
        self.matrix.read().one_way(from, to)
    }

    /// Grows whenever the network changes.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The file followed, if any.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(crate) fn queue(&self) -> &Arc<DelayQueue> {
        &self.queue
    }
}

/// Where an endpoint stands in the emulated network.
#[derive(Clone, Debug)]
pub struct WanSide {
    /// The network.
    pub wan: Arc<Wan>,
    /// The endpoint's own region.
    pub region: String,
    /// Addresses of the nodes with their regions.
    pub nodes: Vec<(SocketAddr, String)>,
    /// Delay what is received too: for clients, whose address the nodes do not know.
    pub both_ways: bool,
}

impl WanSide {
    /// The place of a node: it delays what it sends.
    pub fn node(wan: Arc<Wan>, region: impl Into<String>, nodes: Vec<(SocketAddr, String)>) -> Self {
        WanSide { wan, region: region.into(), nodes, both_ways: false }
    }

    /// The place of a client: it delays what it sends and what it receives.
    pub fn client(wan: Arc<Wan>, region: impl Into<String>, nodes: Vec<(SocketAddr, String)>) -> Self {
        WanSide { wan, region: region.into(), nodes, both_ways: true }
    }
}

/// Reads a matrix from its file.
pub fn read_file(path: &Path) -> Result<Matrix> {
    let length = fs::metadata(path).map_err(|source| Error::File { path: path.into(), source })?.len();
    if length > FILE_BYTES_MAX {
        return Err(Error::BadFile { path: path.into(), problem: "is too long for a description of delays".into() });
    }
    let text = fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
    Matrix::parse(&text).map_err(|error| Error::BadFile { path: path.into(), problem: error.to_string() })
}

/// Writes a matrix to its file at once: readers see the old or the new one.
pub fn write_file(path: &Path, matrix: &Matrix) -> Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(matrix.to_string().as_bytes())?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        Error::File { path: path.into(), source }
    })
}

/// Reads, changes and writes the file: what `globalfs wan cut us eu` does.
pub fn update_file(path: &Path, change: impl FnOnce(&mut Matrix) -> Result<()>) -> Result<Matrix> {
    let mut matrix = read_file(path)?;
    change(&mut matrix)?;
    write_file(path, &matrix)?;
    Ok(matrix)
}

/// Identifies a version of a file: every rename brings a new inode.
fn stamp(path: &Path) -> Option<(u64, i64, i64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

fn follow(wan: &Weak<Wan>, path: &Path, mut seen: Option<(u64, i64, i64, u64)>) {
    loop {
        thread::sleep(POLL_INTERVAL);
        let Some(wan) = wan.upgrade() else { return };
        let now = stamp(path);
        if now == seen {
            continue;
        }
        seen = now;
        match read_file(path).and_then(|matrix| wan.set(matrix)) {
            Ok(()) => tracing::info!(path = %path.display(), "emulated network changed"),
            Err(error) => tracing::warn!(%error, "emulated network not changed"),
        }
    }
}
