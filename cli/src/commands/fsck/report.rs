//! What was found, for people and for programs.

use std::collections::BTreeSet;

use metadata::check::{About, Orphan};
use metadata::types::BlobId;
use multicast::ids::GroupId;
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::output::{bold, green, red, say, yellow};
use crate::units::ByteSize;

/// Problems shown on a terminal; JSON has all.
const SHOWN_MAX: usize = 100;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In which group, if in one.
    pub group: Option<String>,
    /// What.
    pub what: String,
    /// Of which file or directory, if one is concerned and has a path.
    pub path: Option<String>,
    /// The nodes whose replicas of the group are wrong, if it is of them that this is said.
    pub on: Vec<String>,
}

impl Problem {
    /// Of no particular group.
    pub fn new(what: impl Into<String>) -> Problem {
        Problem { group: None, what: what.into(), path: None, on: Vec::new() }
    }

    /// Of a group.
    pub fn of(group: &str, what: impl Into<String>) -> Problem {
        Problem { group: Some(group.to_owned()), ..Problem::new(what) }
    }

    fn json(&self) -> Value {
        json!({ "group": self.group, "what": self.what, "path": self.path })
    }

    fn line(&self) -> String {
        let group = self.group.as_ref().map(|group| format!("group {group}: ")).unwrap_or_default();
        let path = self.path.as_ref().map(|path| format!(": {}", bold(path))).unwrap_or_default();
        format!("  {group}{}{path}", self.what)
    }
}

/// What is in a bucket.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// The region's number.
    pub number: u16,
    /// The region.
    pub region: String,
    /// Its blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that nothing refers to, and that are old enough to be sure.
    pub orphans: Vec<BlobId>,
    /// Their bytes.
    pub orphan_bytes: u64,
    /// Those that are too new to tell.
    pub undecided: u64,
}

impl Stored {
    /// No group knows of it.
    pub fn add_orphan(&mut self, orphan: Orphan) {
        if orphan.is_new {
            self.undecided += 1;
        } else {
            self.orphans.push(orphan.blob);
            self.orphan_bytes += orphan.len;
        }
    }
}

/// What one look came to.
pub struct Looked {
    /// By group: its name, the node whose replica was looked at, its index, its rows.
    pub groups: Vec<(String, String, u64, u64)>,
    /// What is wrong, and of what that is said.
    pub found: Vec<((GroupId, About), Problem)>,
    /// The buckets.
    pub buckets: Vec<Stored>,
}

/// What the whole check came to.
#[derive(Default)]
pub struct Report {
    /// The cluster ran.
    pub online: bool,
    /// How often everything was looked at.
    pub looks: u32,
    /// As in [`Looked`].
    pub groups: Vec<(String, String, u64, u64)>,
    /// The buckets.
    pub buckets: Vec<Stored>,
    /// Group and node of each replica of which all rows were looked at.
    pub inspected: BTreeSet<(String, String)>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What may be wrong, but may as well be an update on its way.
    pub uncertain: Vec<Problem>,
    /// What could not be looked at.
    pub missing: Vec<String>,
    /// Worth knowing, and no problem.
    pub notes: Vec<String>,
    /// What was, or would be, done.
    pub repairs: Vec<String>,
}

impl Report {
    /// The exit code.
    pub fn verdict(&self) -> Exit {
        match (self.problems.is_empty(), self.missing.is_empty() && self.uncertain.is_empty()) {
            (false, _) => Exit::Problems,
            (true, false) => Exit::Partly,
            (true, true) => Exit::Done,
        }
    }

    /// On stdout.
    pub fn say(&self, as_json: bool) {
        if as_json {
            return say!("{}", self.json());
        }
        for (group, node, index, rows) in &self.groups {
            say!("group {group}: {rows} rows of {node} at index {index}");
        }
        for bucket in &self.buckets {
            say!("bucket of {}: {} blobs, {}", bucket.region, bucket.blobs, ByteSize(bucket.bytes));
        }
        for note in &self.notes {
            say!("{note}");
        }
        for missing in &self.missing {
            say!("{}", yellow(&format!("not looked at: {missing}")));
        }
        say_some(&yellow("Perhaps wrong, or an update that is not finished in the states on disk:"), &self.uncertain);
        say_some(&red(&format!("Wrong ({}):", self.problems.len())), &self.problems);
        for repair in &self.repairs {
            say!("{repair}");
        }
        if self.problems.is_empty() {
            say!("{}", green("nothing wrong was found"));
        }
    }

    fn json(&self) -> Value {
        let groups = self
            .groups
            .iter()
            .map(|(name, node, index, rows)| json!({ "name": name, "node": node, "index": index, "rows": rows }));
        let buckets = self.buckets.iter().map(|bucket| {
            json!({
                "region": bucket.region, "blobs": bucket.blobs, "bytes": bucket.bytes,
                "unreferenced": bucket.orphans.len(), "unreferenced_bytes": bucket.orphan_bytes,
                "undecided": bucket.undecided,
            })
        });
        let list = |problems: &[Problem]| problems.iter().map(Problem::json).collect::<Vec<_>>();
        json!({
            "schema": 1, "online": self.online, "looks": self.looks,
            "groups": groups.collect::<Vec<_>>(), "buckets": buckets.collect::<Vec<_>>(),
            "problems": list(&self.problems), "uncertain": list(&self.uncertain),
            "missing": self.missing, "notes": self.notes, "repairs": self.repairs,
        })
    }
}

fn say_some(heading: &str, problems: &[Problem]) {
    if problems.is_empty() {
        return;
    }
    say!("{heading}");
    for problem in problems.iter().take(SHOWN_MAX) {
        say!("{}", problem.line());
    }
    if problems.len() > SHOWN_MAX {
        say!("  … and {} more: see --json", problems.len() - SHOWN_MAX);
    }
}
