//! What may be answered without asking anyone, and still be causally right.
//!
//! Everything here is an answer of one group, filled from that group's stream (or from the reply to an own update) and
//! valid until the stream invalidates its key. An entry answers only while the stream has reached the client's clock
//! ([`Progress::usable`]); it is void when the stream it came from has ended. While an effect of another client's update of several
//! groups was seen elsewhere and the stream is not known to be behind it, only what was asked for since answers.
//!
//! Every entry knows the log index that it reflects. An invalidation at index `e` drops what reflects less than `e`, and
//! a fill that reflects less than the stream's position comes too late: an invalidation of its key may have passed.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use metadata::footprint::{key_dirent, key_home, key_inode};
use metadata::types::{Attr, Dirent, InodeId};
use multicast::Elsewhere;
use multicast::command::Key;
use multicast::ids::{GroupId, LogIndex};
use parking_lot::Mutex;

use crate::content::FileMap;
use crate::listings::{Listings, NameChange};
use crate::session::progress::{Epoch, Progress, StreamId, Usable};

/// Changes that are remembered of each group, for what comes late.
const TOLD_MAX: usize = 1024;
/// Longest chain of cached content per inode, in bytes; longer ones are asked for again.
const MAP_BYTES_MAX: usize = 256 << 10;

type Place = (GroupId, Key);

/// A bounded cache of one client. Readers never wait for each other; writers take turns.
pub struct Cache {
    progress: Arc<Progress>,
    names: quick_cache::sync::Cache<Place, Arc<NameSlot>>,
    inodes: quick_cache::sync::Cache<Place, Arc<InodeSlot>>,
    /// Directories that have names here: when a directory leaves its home or ends, all its names are void at once.
    homes: quick_cache::sync::Cache<Place, Arc<HomeMark>>,
    listings: Listings,
    /// By group. Locked by whoever writes.
    writing: Mutex<BTreeMap<GroupId, Told>>,
    dropped: OnceLock<Box<dyn Fn(InodeId) + Send + Sync>>,
    borrower: OnceLock<Arc<dyn Borrower>>,
    /// It answers nothing: whoever reads asks.
    is_mute: bool,
}

/// Who keeps copies of what is noted here, and must hear of changes before anything newer is told. Called under the cache's
/// lock: must not come back.
pub trait Borrower: Send + Sync {
    /// What stands under these keys is no longer so.
    fn keys_changed(&self, group: GroupId, keys: &[Key]);

    /// Nothing that was taken from `group` until now may be used any longer.
    fn group_void(&self, group: GroupId);
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("names", &self.names.len()).field("inodes", &self.inodes.len()).finish()
    }
}

/// What the present stream of a group has told lately.
#[derive(Debug)]
struct Told {
    /// Behind this index everything that it has told is here, and its replica has noted what it was to note.
    since: LogIndex,
    /// Which keys have changed, and where: in order.
    keys: VecDeque<(LogIndex, Key)>,
}

#[derive(Debug)]
struct HomeMark;

#[derive(Debug)]
struct NameSlot {
    stamp: Stamp,
    parent: InodeId,
    name: Bytes,
    dirent: Option<Dirent>,
    home: Arc<HomeMark>,
}

/// What is known of one inode; all of it under one key.
#[derive(Clone, Debug)]
struct InodeSlot {
    ino: InodeId,
    attr: Option<(Stamp, Arc<Attr>)>,
    map: Option<(Stamp, Arc<FileMap>)>,
    target: Option<(Stamp, Bytes)>,
    xattrs: Vec<(Stamp, Bytes, Option<Bytes>)>,
}

/// Which state of which stream an entry reflects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    epoch: Epoch,
    as_of: LogIndex,
    /// By who had seen these effects of the group's prepared updates.
    asked: LogIndex,
    /// A stream will tell when it changes. Otherwise it answers only as long as nothing newer of its group was seen.
    noted: bool,
}

/// The right to fill: made by [`Cache::fill`] when the answer is not too late.
#[derive(Debug)]
pub struct Fill<'a> {
    cache: &'a Cache,
    group: GroupId,
    stamp: Stamp,
    /// It came in the order of the stream.
    in_order: bool,
    /// Of these inodes it will tell, if not of all: of one whose number nobody knew before it cannot.
    foreseen: Option<Vec<Key>>,
    turn: parking_lot::MutexGuard<'a, BTreeMap<GroupId, Told>>,
}

/// Most xattrs cached of one inode.
const XATTRS_MAX: usize = 8;

impl Cache {
    /// An empty cache of about `entries_max` entries.
    pub fn new(progress: Arc<Progress>, entries_max: usize) -> Cache {
        let part = (entries_max / 2).max(16);
        Cache {
            progress,
            names: quick_cache::sync::Cache::new(part),
            inodes: quick_cache::sync::Cache::new(part),
            homes: quick_cache::sync::Cache::new((part / 4).max(16)),
            listings: Listings::default(),
            writing: Mutex::default(),
            dropped: OnceLock::new(),
            borrower: OnceLock::new(),
            is_mute: false,
        }
    }

    /// The same, but it answers nothing: every read must be asked, as it is to reflect what others have just done.
    #[must_use]
    pub fn mute(self) -> Cache {
        Cache { is_mute: true, ..self }
    }

    /// Names who wants to hear of inodes that others have changed. Called under the cache's lock: must not come back.
    pub fn on_drop(&self, listener: Box<dyn Fn(InodeId) + Send + Sync>) {
        if self.dropped.set(listener).is_err() {
            tracing::error!("the cache has a listener already");
        }
    }

    /// Names who keeps copies.
    pub fn lend_to(&self, borrower: Arc<dyn Borrower>) {
        if self.borrower.set(borrower).is_err() {
            tracing::error!("the cache has a borrower already");
        }
    }

    /// Clock and streams, for tests to move.
    #[cfg(test)]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Which entries may answer now, if any.
    #[must_use]
    pub fn usable(&self, group: GroupId) -> Option<Usable> {
        if self.is_mute { None } else { self.progress.usable(group) }
    }

    /// The stream of `group`, however far behind.
    #[must_use]
    pub fn stream(&self, group: GroupId) -> Option<Epoch> {
        self.progress.stream(group).map(|(epoch, _)| epoch)
    }

    /// An inode of which the stream will tell when it changes.
    #[must_use]
    pub fn noted_attr(&self, group: GroupId, ino: InodeId) -> Option<Arc<Attr>> {
        let usable = self.usable(group)?;
        let slot = self.slot(group, ino)?;
        let (stamp, attr) = slot.attr.as_ref()?;
        (stamp.noted && self.is_valid(group, usable, stamp)).then(|| attr.clone())
    }

    /// What `name` in a directory of `group` stands for, if known: `Some(None)` is known to be nothing.
    #[must_use]
    pub fn dirent(&self, group: GroupId, parent: InodeId, name: &[u8]) -> Option<Option<Dirent>> {
        match self.name(group, parent, name) {
            Some(slot) => Some(slot.dirent),
            None => self.is_absent(group, parent, name).then_some(None),
        }
    }

    /// True if the directory is known as a whole, and has no such name.
    fn is_absent(&self, group: GroupId, parent: InodeId, name: &[u8]) -> bool {
        let is_absent =
            |dir: &Attr| self.listings.is_absent((group, key_inode(parent)), parent, dir.data_version, name);
        self.attr(group, parent).is_some_and(|dir| dir.nlink > 0 && is_absent(&dir))
    }

    /// A name was looked for in vain in a directory of `group`: true if it is time to ask for all its names.
    #[must_use]
    pub fn miss(&self, group: GroupId, parent: InodeId) -> bool {
        !self.is_mute && self.listings.miss((group, key_inode(parent)))
    }

    /// The same, if the stream will tell when it changes.
    #[must_use]
    pub fn noted_dirent(&self, group: GroupId, parent: InodeId, name: &[u8]) -> Option<Option<Dirent>> {
        self.name(group, parent, name).filter(|slot| slot.stamp.noted).map(|slot| slot.dirent)
    }

    fn name(&self, group: GroupId, parent: InodeId, name: &[u8]) -> Option<Arc<NameSlot>> {
        let usable = self.usable(group)?;
        let slot = self.names.get(&(group, key_dirent(parent, name)))?;
        if !self.is_valid(group, usable, &slot.stamp) || slot.parent != parent || slot.name != name {
            return None;
        }
        let home = self.homes.get(&(group, key_home(parent)))?;
        Arc::ptr_eq(&home, &slot.home).then_some(slot)
    }

    /// An inode at home in `group`, if known.
    #[must_use]
    pub fn attr(&self, group: GroupId, ino: InodeId) -> Option<Arc<Attr>> {
        let usable = self.usable(group)?;
        let slot = self.slot(group, ino)?;
        let (stamp, attr) = slot.attr.as_ref()?;
        self.is_valid(group, usable, stamp).then(|| attr.clone())
    }

    /// The last attributes that were known, however old: for hints only.
    #[must_use]
    pub fn attr_hint(&self, group: GroupId, ino: InodeId) -> Option<Arc<Attr>> {
        self.slot(group, ino)?.attr.as_ref().map(|(_, attr)| attr.clone())
    }

    /// How far `group` was seen.
    #[must_use]
    pub fn seen(&self, group: GroupId) -> LogIndex {
        self.progress.seen(group)
    }

    /// Up to where effects of prepared updates of `group` were seen elsewhere.
    #[must_use]
    pub fn effects(&self, group: GroupId) -> LogIndex {
        self.progress.effects(group)
    }

    /// What is known of a file's content.
    #[must_use]
    pub fn map(&self, group: GroupId, ino: InodeId) -> Option<Arc<FileMap>> {
        let usable = self.usable(group)?;
        let slot = self.slot(group, ino)?;
        let (stamp, map) = slot.map.as_ref()?;
        self.is_valid(group, usable, stamp).then(|| map.clone())
    }

    /// A symlink's target.
    #[must_use]
    pub fn target(&self, group: GroupId, ino: InodeId) -> Option<Bytes> {
        let usable = self.usable(group)?;
        let slot = self.slot(group, ino)?;
        let (stamp, target) = slot.target.as_ref()?;
        self.is_valid(group, usable, stamp).then(|| target.clone())
    }

    /// An xattr's value; `Some(None)` is known not to exist.
    #[must_use]
    pub fn xattr(&self, group: GroupId, ino: InodeId, name: &[u8]) -> Option<Option<Bytes>> {
        let usable = self.usable(group)?;
        let slot = self.slot(group, ino)?;
        if let Some((stamp, attr)) = &slot.attr
            && self.is_valid(group, usable, stamp)
            && attr.xattrs == 0
        {
            return Some(None);
        }
        let (stamp, _, value) = slot.xattrs.iter().find(|(_, known, _)| known == name)?;
        self.is_valid(group, usable, stamp).then(|| value.clone())
    }

    /// Begins to fill with what reflects `group` at `as_of` and was asked for by a client whose clock had reached the effects `asked`.
    /// `None` if that is too late, or if no stream would keep it right. `source`: the stream that it came in, and that will
    /// tell of changes, if one will.
    #[must_use]
    pub fn fill(&self, group: GroupId, source: Option<StreamId>, as_of: LogIndex, asked: LogIndex) -> Option<Fill<'_>> {
        let turn = self.writing.lock();
        // Whether the stream goes on was asked before this lock was there.
        if source.is_some_and(|stream| !self.progress.is_current(group, stream)) {
            return None;
        }
        let (epoch, position) = self.progress.stream(group)?;
        // What comes later raises this above what was asked.
        let floor = self.progress.floor(group);
        (as_of >= position && asked >= floor).then_some(Fill {
            cache: self,
            group,
            stamp: Stamp { epoch, as_of, asked, noted: source.is_some() },
            in_order: source.is_some(),
            foreseen: None,
            turn,
        })
    }

    /// Begins to fill with what an own update, committed by `group` at `index` and answered elsewhere, will have done there. The
    /// replica that the stream comes from has noted its names and the keys that it changes when it applied that index, if it was
    /// asked for the stream before; then what the stream has told since of others does not matter.
    #[must_use]
    pub fn fill_own(&self, group: GroupId, index: LogIndex, changed: Vec<Key>) -> Option<Fill<'_>> {
        let turn = self.writing.lock();
        let (epoch, position) = self.progress.stream(group)?;
        let noted = turn.get(&group).is_some_and(|told| index > told.since);
        let floor = self.progress.floor(group);
        ((noted || index >= position) && index >= floor).then_some(Fill {
            cache: self,
            group,
            stamp: Stamp { epoch, as_of: index, asked: index, noted },
            in_order: false,
            foreseen: Some(changed),
            turn,
        })
    }

    /// Applies an invalidation of a stream of `group` at `index`, then lets the stream's position be known, and that what was
    /// prepared up to `settled` has executed there. Of a stream that has ended nothing counts.
    pub fn invalidate(&self, group: GroupId, stream: StreamId, keys: &[Key], (index, settled): (LogIndex, LogIndex)) {
        let mut turn = self.writing.lock();
        if !self.progress.is_current(group, stream) {
            return;
        }
        for &key in keys {
            self.invalidate_key((group, key), index);
        }
        if let Some(told) = turn.get_mut(&group) {
            told.note(index, keys);
        }
        if let Some(borrower) = self.borrower.get()
            && !keys.is_empty()
        {
            borrower.keys_changed(group, keys);
        }
        self.progress.advance_stream(group, index);
        self.progress.settle(group, settled);
        drop(turn);
    }

    /// An own update, answered by another group, changes these keys here: they are forgotten. Everything else stays.
    pub fn see_own(&self, own: &Elsewhere, changed: impl IntoIterator<Item = Key>) {
        let _turn = self.writing.lock();
        // Before they are forgotten: what comes later and was asked for earlier is refused from here on.
        self.progress.see_own(own);
        self.drop_keys(own.group, changed);
    }

    /// Forgets everything of `group`; its stream goes on. At `index` the replica has forgotten what it had noted.
    pub fn invalidate_all(&self, group: GroupId, stream: StreamId, index: LogIndex) {
        let mut turn = self.writing.lock();
        if !self.progress.is_current(group, stream) {
            return;
        }
        turn.insert(group, Told::since(index));
        self.progress.void(group);
        self.tell_void(group);
    }

    /// Forgets what an own update has changed in a group that did not answer itself.
    pub fn forget(&self, group: GroupId, keys: impl IntoIterator<Item = Key>) {
        let _turn = self.writing.lock();
        self.drop_keys(group, keys);
    }

    fn drop_keys(&self, group: GroupId, keys: impl IntoIterator<Item = Key>) {
        let keys: Vec<Key> = keys.into_iter().collect();
        for &key in &keys {
            self.names.remove(&(group, key));
            self.inodes.remove(&(group, key));
            self.homes.remove(&(group, key));
        }
        if let Some(borrower) = self.borrower.get() {
            borrower.keys_changed(group, &keys);
        }
    }

    /// A stream of `group` begins; it is complete from `position` on.
    pub fn begin_stream(&self, group: GroupId, position: LogIndex) -> StreamId {
        let mut turn = self.writing.lock();
        let stream = self.progress.begin_stream(group, position);
        turn.insert(group, Told::since(position));
        self.tell_void(group);
        stream
    }

    /// The stream of `group` has ended.
    pub fn end_stream(&self, group: GroupId) {
        let mut turn = self.writing.lock();
        self.progress.end_stream(group);
        turn.remove(&group);
        self.tell_void(group);
    }

    fn tell_void(&self, group: GroupId) {
        if let Some(borrower) = self.borrower.get() {
            borrower.group_void(group);
        }
    }

    /// What no replica has noted is told by no event: it holds only while nothing newer at all has happened in the group,
    /// as far as its stream tells.
    fn is_valid(&self, group: GroupId, usable: Usable, stamp: &Stamp) -> bool {
        let newest = || self.progress.stream(group).is_some_and(|(_, position)| position <= stamp.as_of);
        let is_told = stamp.epoch == usable.epoch && stamp.asked >= usable.floor;
        is_told && (stamp.noted || (self.progress.seen(group) <= stamp.as_of && newest()))
    }

    fn slot(&self, group: GroupId, ino: InodeId) -> Option<Arc<InodeSlot>> {
        self.inodes.get(&(group, key_inode(ino))).filter(|slot| slot.ino == ino)
    }

    fn invalidate_key(&self, place: Place, index: LogIndex) {
        if let Some(slot) = self.inodes.peek(&place) {
            let stale = |stamp: &Stamp| stamp.as_of < index;
            if slot.attr.as_ref().is_none_or(|(stamp, _)| stale(stamp))
                && let Some(listener) = self.dropped.get()
            {
                listener(slot.ino);
            }
            let mut kept = InodeSlot::clone(&slot);
            kept.attr = kept.attr.filter(|(stamp, _)| !stale(stamp));
            kept.map = kept.map.filter(|(stamp, _)| !stale(stamp));
            kept.target = kept.target.filter(|(stamp, _)| !stale(stamp));
            kept.xattrs.retain(|(stamp, _, _)| !stale(stamp));
            if kept.is_empty() {
                self.inodes.remove(&place);
            } else {
                self.inodes.insert(place, Arc::new(kept));
            }
        }
        if let Some(slot) = self.names.peek(&place)
            && slot.stamp.as_of < index
        {
            self.names.remove(&place);
        }
        self.homes.remove(&place);
    }
}

impl Told {
    fn since(index: LogIndex) -> Told {
        Told { since: index, keys: VecDeque::new() }
    }

    fn note(&mut self, index: LogIndex, keys: &[Key]) {
        self.keys.extend(keys.iter().map(|&key| (index, key)));
        while self.keys.len() > TOLD_MAX
            && let Some((index, _)) = self.keys.pop_front()
        {
            self.since = self.since.max(index);
        }
    }

    /// True if it has told of the key behind that index.
    fn has_changed(&self, key: Key, index: LogIndex) -> bool {
        self.keys.iter().rev().take_while(|(at, _)| *at > index).any(|(_, changed)| *changed == key)
    }
}

impl InodeSlot {
    fn new(ino: InodeId) -> InodeSlot {
        InodeSlot { ino, attr: None, map: None, target: None, xattrs: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.attr.is_none() && self.map.is_none() && self.target.is_none() && self.xattrs.is_empty()
    }
}

impl Fill<'_> {
    /// What a name stands for.
    pub fn dirent(&self, parent: InodeId, name: &Bytes, dirent: Option<Dirent>) {
        let place = (self.group, key_dirent(parent, name));
        let home_place = (self.group, key_home(parent));
        let is_older = self.cache.names.peek(&place).is_some_and(|slot| !self.is_newer(&slot.stamp));
        if is_older || [place, home_place].iter().any(|(_, key)| self.is_late(*key)) {
            return;
        }
        let home = self.cache.homes.get(&home_place).unwrap_or_else(|| {
            let mark = Arc::new(HomeMark);
            self.cache.homes.insert(home_place, mark.clone());
            mark
        });
        // A name shares its frame's memory with others: a cache must not keep the frame alive.
        let name = Bytes::copy_from_slice(name);
        self.cache.names.insert(place, Arc::new(NameSlot { stamp: self.stamp, parent, name, dirent, home }));
    }

    /// An inode at home in the group.
    pub fn attr(&self, attr: &Attr) {
        if attr.home == self.group {
            self.change(attr.ino, |slot, stamp| slot.attr = Some((stamp, Arc::new(attr.clone()))));
        }
    }

    /// A file's content.
    pub fn map(&self, map: &Arc<FileMap>) {
        if map.attr.home == self.group && map.weight() <= MAP_BYTES_MAX {
            self.change(map.attr.ino, |slot, stamp| slot.map = Some((stamp, map.clone())));
        }
    }

    /// A symlink's target.
    pub fn target(&self, ino: InodeId, target: &Bytes) {
        let target = Bytes::copy_from_slice(target);
        self.change(ino, |slot, stamp| slot.target = Some((stamp, target)));
    }

    /// An xattr's value, or that there is none.
    pub fn xattr(&self, ino: InodeId, name: &Bytes, value: Option<&Bytes>) {
        let (name, value) = (Bytes::copy_from_slice(name), value.map(|value| Bytes::copy_from_slice(value)));
        self.change(ino, |slot, stamp| {
            slot.xattrs.retain(|(_, known, _)| *known != name);
            if slot.xattrs.len() < XATTRS_MAX {
                slot.xattrs.push((stamp, name, value));
            }
        });
    }

    /// All names of a directory, as of now. Kept if its version is known as of the same state.
    pub fn listing<'n>(&self, dir: InodeId, names: impl Iterator<Item = &'n Bytes>) {
        let place = (self.group, key_inode(dir));
        let Some(slot) = self.cache.inodes.peek(&place).filter(|slot| slot.ino == dir) else { return };
        let Some((stamp, attr)) = &slot.attr else { return };
        // Told in one stream, and not invalidated in between.
        let is_same_state = stamp.epoch == self.stamp.epoch
            && (stamp.as_of == self.stamp.as_of || (stamp.noted && stamp.as_of < self.stamp.as_of));
        if is_same_state && self.stamp.noted {
            let names = names.map(|name| name[..].into()).collect();
            self.cache.listings.put(place, dir, attr.data_version, self.stamp.as_of, names);
        }
    }

    /// An own update has added or taken away names of a directory. `now`: the directory afterwards, if that is told.
    pub fn names(&self, dir: InodeId, changes: &[NameChange<'_>], now: Option<&Attr>) {
        let (place, version) = ((self.group, key_inode(dir)), now.map(|attr| attr.data_version));
        self.cache.listings.change(place, changes, self.stamp.as_of, version, self.in_order);
    }

    /// A directory that is new and therefore empty.
    pub fn empty_directory(&self, attr: &Attr) {
        if attr.home == self.group {
            let place = (self.group, key_inode(attr.ino));
            self.cache.listings.put(place, attr.ino, attr.data_version, self.stamp.as_of, HashSet::new());
        }
    }

    /// An inode has changed and the answer does not say how.
    pub fn forget_inode(&self, ino: InodeId) {
        self.cache.inodes.remove(&(self.group, key_inode(ino)));
    }

    /// Everything known of an inode but what the new attributes say is void.
    pub fn replace(&self, attr: &Attr) {
        let place = (self.group, key_inode(attr.ino));
        let newer = self
            .cache
            .inodes
            .peek(&place)
            .is_none_or(|slot| slot.attr.as_ref().is_none_or(|(stamp, _)| self.is_newer(stamp)));
        if newer {
            self.cache.inodes.remove(&place);
            self.attr(attr);
        }
    }

    /// True if the stream has told meanwhile that this has changed.
    fn is_late(&self, key: Key) -> bool {
        self.turn.get(&self.group).is_some_and(|told| told.has_changed(key, self.stamp.as_of))
    }

    fn is_newer(&self, than: &Stamp) -> bool {
        than.epoch != self.stamp.epoch || than.as_of <= self.stamp.as_of
    }

    fn change(&self, ino: InodeId, change: impl FnOnce(&mut InodeSlot, Stamp)) {
        let place = (self.group, key_inode(ino));
        let is_foreseen = self.foreseen.as_ref().is_none_or(|keys| keys.contains(&place.1));
        let stamp = Stamp { noted: self.stamp.noted && is_foreseen, ..self.stamp };
        let is_newest = || self.cache.progress.stream(self.group).is_some_and(|(_, at)| at <= stamp.as_of);
        if self.is_late(place.1) || !(stamp.noted || is_newest()) {
            return;
        }
        let before = self.cache.inodes.peek(&place).filter(|slot| slot.ino == ino);
        let mut slot = match before {
            Some(slot) => {
                let mut slot = InodeSlot::clone(&slot);
                // What reflects more than this fill stays alone: mixing two states would show neither.
                let newest = slot.newest(self.stamp.epoch);
                if newest.is_some_and(|as_of| as_of > self.stamp.as_of) {
                    return;
                }
                slot.xattrs.retain(|(stamp, _, _)| stamp.epoch == self.stamp.epoch);
                slot
            }
            None => InodeSlot::new(ino),
        };
        change(&mut slot, stamp);
        self.cache.inodes.insert(place, Arc::new(slot));
    }
}

impl InodeSlot {
    fn newest(&self, epoch: Epoch) -> Option<LogIndex> {
        let stamps = [
            self.attr.as_ref().map(|(stamp, _)| stamp),
            self.map.as_ref().map(|(stamp, _)| stamp),
            self.target.as_ref().map(|(stamp, _)| stamp),
        ];
        stamps.into_iter().flatten().filter(|stamp| stamp.epoch == epoch).map(|stamp| stamp.as_of).max()
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
