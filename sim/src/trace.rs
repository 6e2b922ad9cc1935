//! What happened, as a hash in every run and as lines for a reader when asked for.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The trace of a run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// With lines, or only the hash.
    #[must_use]
    pub fn new(readable: bool) -> Trace {
        Trace { hash: 0, events: 0, lines: readable.then(Vec::new) }
    }

    /// An event, as what makes it different from others.
    pub fn event(&mut self, at_ns: u64, kind: u64, number: u64, bytes: &[u8]) {
        self.events += 1;
        let mut head = [0_u8; 24];
        head[..8].copy_from_slice(&at_ns.to_le_bytes());
        head[8..16].copy_from_slice(&kind.to_le_bytes());
        head[16..].copy_from_slice(&number.to_le_bytes());
        self.hash = xxh3_64_with_seed(&head, self.hash);
        if !bytes.is_empty() {
            self.hash = xxh3_64_with_seed(bytes, self.hash);
        }
    }

    /// A line for a reader. The words are made only if someone reads them.
    pub fn line(&mut self, at_ns: u64, words: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.3} ms  {}", at_ns as f64 / 1e6, words()));
        }
    }

    /// The same for the same run.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The lines.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
