#![allow(clippy::unwrap_used)]

use std::collections::{BTreeSet, VecDeque};

use metadata::types::{FileKind, NodeRef};
use proptest::prelude::*;

use super::*;

const G: GroupId = GroupId(1);
const DIR: InodeId = InodeId(7);

fn name(key: u8) -> Bytes {
    Bytes::from(vec![b'a' + key])
}

/// A value names the log index that wrote it.
fn dirent(written: u64) -> Dirent {
    NodeRef { ino: InodeId(1000 + written), kind: FileKind::File, home: G }
}

/// A group whose log changes names, one stream from a replica that may lag, a primary whose replies overtake the stream.
struct Model {
    /// What was written at each index, from 1.
    log: Vec<u8>,
    /// How far the replica has applied.
    applied: u64,
    /// Keys that the replica tells of.
    noted: BTreeSet<u8>,
    /// What is on its way from the replica, in order.
    stream: VecDeque<Message>,
    /// The stream that is being listened to, once it has begun.
    source: Option<StreamId>,
    /// What a former stream brought: its source was looked at before that one ended, the cache was not touched yet.
    late: VecDeque<(StreamId, Message)>,
    cache: Cache,
}

enum Message {
    Event { index: u64, keys: Vec<u8> },
    Answer { key: u8, as_of: u64 },
    Begin { index: u64 },
}

#[derive(Clone, Debug)]
enum Step {
    Change(u8),
    Apply(u8),
    Ask(u8),
    Receive(u8),
    OwnUpdate(u8),
    Resubscribe,
    ReceiveLate,
    Look(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4_u8).prop_map(Step::Change),
        3 => (1..4_u8).prop_map(Step::Apply),
        4 => (0..4_u8).prop_map(Step::Ask),
        4 => (1..4_u8).prop_map(Step::Receive),
        1 => (0..4_u8).prop_map(Step::OwnUpdate),
        1 => Just(Step::Resubscribe),
        1 => Just(Step::ReceiveLate),
        6 => (0..4_u8).prop_map(Step::Look),
    ]
}

impl Model {
    fn new() -> Model {
        let cache = Cache::new(Arc::new(Progress::new(multicast::ids::SessionId(1), [G])), 1000);
        let source = Some(cache.begin_stream(G, LogIndex(0)));
        let (noted, stream, late) = (BTreeSet::new(), VecDeque::new(), VecDeque::new());
        Model { log: Vec::new(), applied: 0, noted, stream, source, late, cache }
    }

    /// The last index at or below `at` that wrote the key; zero if none did.
    fn written(&self, key: u8, at: u64) -> u64 {
        let until = &self.log[..at as usize];
        until.iter().rposition(|changed| *changed == key).map_or(0, |position| position as u64 + 1)
    }

    fn fill(&self, key: u8, as_of: u64, source: Option<StreamId>) {
        if let Some(fill) = self.cache.fill(G, source, LogIndex(as_of), LogIndex(as_of)) {
            let written = self.written(key, as_of);
            fill.dirent(DIR, &name(key), (written > 0).then(|| dirent(written)));
        }
    }

    fn receive(&mut self) {
        match (self.stream.pop_front(), self.source) {
            (Some(Message::Begin { index }), _) => {
                self.source = Some(self.cache.begin_stream(G, LogIndex(index)));
            }
            (Some(message), Some(source)) => self.take_in(source, message),
            (_, None) | (None, _) => {}
        }
    }

    fn take_in(&self, source: StreamId, message: Message) {
        match message {
            Message::Begin { .. } => {}
            Message::Event { index, keys } => {
                let keys: Vec<Key> = keys.into_iter().map(|key| key_dirent(DIR, &name(key))).collect();
                self.cache.invalidate(G, source, &keys, (LogIndex(index), LogIndex::ZERO));
            }
            Message::Answer { key, as_of } => {
                self.fill(key, as_of, Some(source));
                self.cache.progress.see(G, LogIndex(as_of));
            }
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Change(key) => self.log.push(key),
            Step::Apply(count) => {
                let from = self.applied;
                self.applied = (from + u64::from(count)).min(self.log.len() as u64);
                let changed: BTreeSet<u8> = self.log[from as usize..self.applied as usize].iter().copied().collect();
                let keys: Vec<u8> = changed.into_iter().filter(|key| self.noted.remove(key)).collect();
                self.stream.push_back(Message::Event { index: self.applied, keys });
            }
            Step::Ask(key) => {
                // The replica serves once it has applied what the client has seen.
                if self.applied >= self.cache.seen(G).0 {
                    self.noted.insert(key);
                    self.stream.push_back(Message::Answer { key, as_of: self.applied });
                }
            }
            Step::Receive(count) => (0..count).for_each(|_| self.receive()),
            Step::OwnUpdate(key) => {
                self.log.push(key);
                let index = self.log.len() as u64;
                self.cache.forget(G, [key_dirent(DIR, &name(key))]);
                self.fill(key, index, None);
                self.cache.progress.see(G, LogIndex(index));
            }
            Step::Resubscribe => {
                // A new connection: what was on its way is lost, but for what was being taken in.
                let source = self.source.take();
                self.late
                    .extend(source.into_iter().flat_map(|id| self.stream.pop_front().map(|message| (id, message))));
                self.stream.clear();
                self.cache.end_stream(G);
                self.noted.clear();
                self.stream.push_back(Message::Begin { index: self.applied });
            }
            Step::ReceiveLate => {
                if let Some((source, message)) = self.late.pop_front() {
                    self.take_in(source, message);
                }
            }
            Step::Look(key) => self.look(key),
        }
    }

    fn look(&self, key: u8) {
        let Some(found) = self.cache.dirent(G, DIR, &name(key)) else { return };
        let shown = found.map_or(0, |dirent| dirent.ino.0 - 1000);
        let least = self.written(key, self.cache.seen(G).0);
        assert!(shown >= least, "key {key}: {shown} was shown, {least} had been seen");
        assert!(shown == 0 || self.log[shown as usize - 1] == key);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn cache_never_shows_less_than_was_seen(steps in proptest::collection::vec(step(), 1..80)) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step);
        }
        for key in 0..4 {
            model.look(key);
        }
    }
}

#[test]
fn entry_answers_while_the_stream_keeps_up() {
    let mut model = Model::new();
    for step in [Step::Change(0), Step::Apply(1), Step::Ask(0), Step::Ask(1), Step::Receive(3)] {
        model.apply(&step);
    }
    let found = |model: &Model, key| model.cache.dirent(G, DIR, &name(key));
    assert_eq!(found(&model, 0), Some(Some(dirent(1))));
    assert_eq!(found(&model, 1), Some(None), "known to be nothing");
    assert_eq!(found(&model, 2), None);
    // News from elsewhere: nothing answers until the stream has caught up.
    model.cache.progress.see(G, LogIndex(2));
    assert_eq!(found(&model, 0), None);
    for step in [Step::Change(1), Step::Apply(1), Step::Receive(1)] {
        model.apply(&step);
    }
    assert_eq!(found(&model, 0), Some(Some(dirent(1))));
    assert_eq!(found(&model, 1), None, "invalidated");
}

#[test]
fn own_outcome_answers_until_something_newer_is_seen() {
    let mut model = Model::new();
    for step in [Step::Change(3), Step::OwnUpdate(0), Step::Apply(2), Step::Receive(1)] {
        model.apply(&step);
    }
    assert_eq!(model.cache.dirent(G, DIR, &name(0)), Some(Some(dirent(2))));
    for step in [Step::Change(0), Step::Apply(1), Step::Receive(1)] {
        model.apply(&step);
    }
    model.cache.progress.see(G, LogIndex(3));
    assert_eq!(model.cache.dirent(G, DIR, &name(0)), None, "nobody tells of changes to it");
}

#[test]
fn directory_that_moved_or_ended_takes_its_names_along() {
    let mut model = Model::new();
    for step in [Step::Change(0), Step::Apply(1), Step::Ask(0), Step::Receive(2)] {
        model.apply(&step);
    }
    assert!(model.cache.dirent(G, DIR, &name(0)).is_some());
    model.cache.invalidate(G, model.source.unwrap(), &[key_home(DIR)], (LogIndex(2), LogIndex::ZERO));
    assert_eq!(model.cache.dirent(G, DIR, &name(0)), None);
}

#[test]
fn what_a_former_stream_brings_late_neither_fills_nor_moves_the_new_one() {
    let mut model = Model::new();
    for step in [Step::Ask(0), Step::Apply(0), Step::Resubscribe, Step::Receive(1), Step::ReceiveLate] {
        model.apply(&step);
    }
    assert_eq!(model.cache.dirent(G, DIR, &name(0)), None, "the new stream would not tell when it changes");
    let (old, late) = (model.source.unwrap(), Message::Event { index: 9, keys: Vec::new() });
    model.apply(&Step::Resubscribe);
    model.apply(&Step::Receive(1));
    model.cache.progress.see(G, LogIndex(5));
    model.take_in(old, late);
    assert_eq!(model.cache.progress.usable(G), None, "the new stream has not come so far");
}

fn directory(version: u64) -> Attr {
    let time = metadata::types::TimeNs(1);
    Attr {
        ino: DIR,
        kind: FileKind::Directory,
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        home: G,
        placement: G,
        parent: Some(InodeId::ROOT),
        data_version: version,
        xattrs: 0,
    }
}

#[test]
fn whole_directory_knows_what_is_not_there_until_it_changes() {
    let model = Model::new();
    let fill = |as_of| model.cache.fill(G, model.source, LogIndex(as_of), LogIndex(as_of)).unwrap();
    let found = |key| model.cache.dirent(G, DIR, &name(key));
    fill(1).listing(DIR, [name(0)].iter());
    assert_eq!(found(1), None, "of which version is not known");
    fill(1).attr(&directory(7));
    fill(2).listing(DIR, [name(0)].iter());
    assert_eq!((found(0), found(1)), (None, Some(None)));
    // Its own attributes are void: it may have changed.
    model.cache.invalidate(G, model.source.unwrap(), &[key_inode(DIR)], (LogIndex(3), LogIndex::ZERO));
    assert_eq!(found(1), None);
    // Only its mode had changed.
    fill(4).attr(&directory(7));
    assert_eq!(found(1), Some(None));
    model.cache.invalidate(G, model.source.unwrap(), &[key_inode(DIR)], (LogIndex(5), LogIndex::ZERO));
    fill(5).attr(&directory(8));
    assert_eq!(found(1), None, "somebody has made a name");
}
