//! What the groups' states would have answered, and when.

use std::collections::BTreeSet;

use bytes::Bytes;
use metadata::outcome::{Errno, OpError};
use metadata::read::{ListEntry, ReadAnswer, ReadOp, ReadResult};
use metadata::types::Attr;
use multicast::ids::{GroupId, LogIndex};

use super::ledger::{Ledger, all_names, place};
use crate::desk::Listed;

/// From one state of a group to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub from: u64,
    /// The last.
    pub until: u64,
}

impl Ledger {
    /// The states of a place, from which index on.
    fn versions_of(&self, group: GroupId, op: &ReadOp) -> &[(LogIndex, ReadResult)] {
        let question = match op {
            ReadOp::ReadDir { dir, .. } => all_names(*dir),
            _ => op.clone(),
        };
        self.versions.get(&place(group, &question)).map_or(&[][..], Vec::as_slice)
    }

    /// Where the directory that the question is about came or went: its names have another history from there on.
    fn moves_of(&self, group: GroupId, op: &ReadOp) -> &[LogIndex] {
        let moves = match op {
            ReadOp::Lookup { parent: dir, .. } | ReadOp::ReadDir { dir, .. } => self.moved.get(&(group, *dir)),
            _ => None,
        };
        moves.map_or(&[][..], Vec::as_slice)
    }

    /// What the group's state answered at that index, if anything has ever changed there.
    pub fn answer_at(&self, group: GroupId, op: &ReadOp, index: u64) -> Option<&ReadResult> {
        if !matches!(op, ReadOp::Lookup { .. } | ReadOp::GetAttr { .. } | ReadOp::ReadDir { .. }) {
            return None;
        }
        let versions = self.versions_of(group, op);
        let behind = versions.partition_point(|(at, _)| at.0 <= index);
        let (since, answer) = &versions[behind.checked_sub(1)?];
        let moved = self.moves_of(group, op).iter().any(|at| at > since && at.0 <= index);
        (!moved).then_some(answer)
    }

    /// When an answer that a client gave itself was true: each time up to `newest`, the group's state then, and the first one
    /// behind it, as own updates are known before they execute everywhere.
    pub fn when_true(&self, group: GroupId, op: &ReadOp, told: &ReadResult, newest: u64) -> Vec<Span> {
        let versions = self.versions_of(group, op);
        if !self.moves_of(group, op).is_empty() {
            return vec![Span { from: 0, until: u64::MAX }];
        }
        let end = |at: usize| versions.get(at).map_or(newest, |(next, _)| next.0 - 1);
        // What was there before anything changed was not written down: no name, but perhaps an inode.
        let is_first = matches!((op, told), (ReadOp::GetAttr { .. }, _) | (_, Ok(ReadAnswer::Lookup(None))));
        let mut spans: Vec<Span> = Vec::new();
        spans.extend(is_first.then(|| Span { from: 0, until: end(0) }));
        let fitting = versions.iter().enumerate().filter(|(_, (_, was))| fits(op, told, was));
        spans.extend(fitting.map(|(at, (since, _))| Span { from: since.0, until: end(at + 1).max(since.0) }));
        let later = spans.iter().position(|span| span.from > newest).unwrap_or(spans.len());
        spans.truncate(later + 1);
        spans
    }

    /// What has a name and keeps it while a directory is listed in pieces is listed once; what never had one is not.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_listed(&self, listed: &Listed, indexes: &[u64]) -> Result<(), String> {
        let (Some(&first), Some(&last)) = (indexes.first(), indexes.last()) else { return Ok(()) };
        if !indexes.is_sorted() {
            return Err("a later piece is older".to_owned());
        }
        let op = all_names(listed.dir);
        if !self.moves_of(listed.group, &op).is_empty() {
            return Ok(());
        }
        let versions = self.versions_of(listed.group, &op);
        let begin = versions.partition_point(|(at, _)| at.0 <= first);
        let end = versions.partition_point(|(at, _)| at.0 <= last);
        let was = begin.checked_sub(1).map(|at| names(&versions[at].1)).unwrap_or_default();
        let (mut always, mut ever) = (was.clone(), was);
        for (_, answer) in &versions[begin..end] {
            let now = names(answer);
            always.retain(|name| now.contains(name));
            ever.extend(now);
        }
        let mut seen = BTreeSet::new();
        for entry in listed.pieces.iter().flat_map(|(_, entries)| entries) {
            if !seen.insert(named(entry)) {
                return Err(format!("{:?} comes twice", entry.name));
            }
        }
        match (always.difference(&seen).next(), seen.difference(&ever).next()) {
            (Some((_, name)), _) => Err(format!("{name:?} is missing")),
            (None, Some((_, name))) => Err(format!("{name:?} never was there")),
            (None, None) => Ok(()),
        }
    }
}

fn named(entry: &ListEntry) -> (u64, Bytes) {
    (entry.cookie, entry.name.clone())
}

fn names(answer: &ReadResult) -> BTreeSet<(u64, Bytes)> {
    match answer {
        Ok(ReadAnswer::Entries { entries, .. }) => entries.iter().map(named).collect(),
        _ => BTreeSet::new(),
    }
}

/// True if a client's answer is that of the state, or, of a directory's names, the piece that was asked for.
pub fn fits(op: &ReadOp, told: &ReadResult, was: &ReadResult) -> bool {
    let ReadOp::ReadDir { after, limit, .. } = op else { return shows(told, was) };
    let (Ok(ReadAnswer::Entries { entries, end }), Ok(ReadAnswer::Entries { entries: all, .. })) = (told, was) else {
        // A directory that is gone, or was elsewhere.
        return true;
    };
    let rest: Vec<&ListEntry> = all.iter().filter(|entry| entry.cookie > *after).collect();
    let same = |(a, b): (&ListEntry, &&ListEntry)| named(a) == named(b) && a.dirent == b.dirent;
    let is_full = entries.len() as u64 == u64::from(*limit) || entries.len() < rest.len();
    entries.len() <= rest.len()
        && entries.iter().zip(&rest).all(same)
        && if *end { entries.len() == rest.len() } else { is_full && !entries.is_empty() }
}

/// True if a client's answer is that of the state. Attributes that come with a name may be left out, and belong to another
/// place; what is gone may have gone with a session.
fn shows(told: &ReadResult, was: &ReadResult) -> bool {
    match (told, was) {
        (Ok(ReadAnswer::Lookup(told)), Ok(ReadAnswer::Lookup(was))) => {
            told.as_ref().map(|(dirent, _)| dirent) == was.as_ref().map(|(dirent, _)| dirent)
        }
        (Err(OpError::Errno(Errno::StaleHandle)), _) | (_, Err(OpError::Errno(Errno::StaleHandle))) => true,
        // The blocks of a file that was cut go in steps, after the command.
        (Ok(ReadAnswer::Attr(told)), Ok(ReadAnswer::Attr(was))) => {
            let Attr { allocated, .. } = **was;
            told.allocated <= allocated && Attr { allocated, ..Attr::clone(told) } == **was
        }
        _ => told == was,
    }
}
