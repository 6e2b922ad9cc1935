//! The overlay against a plain map, the digest, and stores that fail.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use metadata::error::Error;
use metadata::op::{Change, FsOp, NewNode};
use metadata::store::{Row, row_hash, stored_digest};
use metadata::types::TimeNs;
use metadata::{MemStore, Namespace, Overlay, Store, StoreMut};
use multicast::Contributions;
use multicast::ids::{GroupId, SessionId};
use proptest::prelude::*;
use support::{Cluster, ROOT};

#[derive(Clone, Debug)]
enum Action {
    Put(Vec<u8>, u8),
    Delete(Vec<u8>),
    Flush,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Not below the digest's own row.
    proptest::collection::vec(4u8..8, 1..4)
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (key(), any::<u8>()).prop_map(|(key, value)| Action::Put(key, value)),
        2 => key().prop_map(Action::Delete),
        1 => Just(Action::Flush),
    ]
}

fn scan_of(rows: &BTreeMap<Vec<u8>, Vec<u8>>, prefix: &[u8], start: &[u8], limit: usize) -> Vec<Row> {
    let wanted = rows.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_slice() >= start);
    wanted.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

proptest! {
    #[test]
    fn overlay_agrees_with_a_map(actions in proptest::collection::vec(action(), 1..60), prefix in key(), start in key()) {
        let mut rows = BTreeMap::new();
        let mut base = MemStore::new();
        for batch in actions.split(|action| matches!(action, Action::Flush)) {
            let mut overlay = Overlay::new(&base).unwrap();
            for action in batch {
                match action {
                    Action::Put(key, value) => {
                        rows.insert(key.clone(), vec![*value]);
                        overlay.put(key.clone(), vec![*value]).unwrap();
                    }
                    Action::Delete(key) => {
                        rows.remove(key);
                        overlay.delete(key).unwrap();
                    }
                    Action::Flush => {}
                }
                prop_assert_eq!(overlay.get(&start).unwrap(), rows.get(&start).cloned());
                for limit in [0, 1, 2, 3, usize::MAX] {
                    for prefix in [&prefix[..1], &prefix[..]] {
                        let expected = scan_of(&rows, prefix, &start, limit);
                        prop_assert_eq!(overlay.scan(prefix, &start, limit).unwrap(), expected);
                    }
                }
            }
            let digest = overlay.digest();
            let own = rows.iter().map(|(key, value)| row_hash(key, value)).fold(0u128, u128::wrapping_add);
            prop_assert_eq!(digest, own);
            base.apply(overlay.into_writes());
            prop_assert_eq!(stored_digest(&base).unwrap(), own);
        }
    }
}

#[test]
fn overlay_leaves_out_what_ends_as_it_was() {
    let mut base = MemStore::new();
    base.put(vec![9], vec![1]).unwrap();
    let mut overlay = Overlay::new(&base).unwrap();
    overlay.put(vec![9], vec![2]).unwrap();
    overlay.put(vec![9], vec![1]).unwrap();
    overlay.put(vec![8], vec![1]).unwrap();
    overlay.delete(&[8]).unwrap();
    assert!(overlay.into_writes().is_empty());
}

#[test]
fn digest_depends_on_the_state_alone() {
    let build = |together: bool| {
        let mut cluster = Cluster::new(1);
        let session = SessionId(1);
        cluster.open_session(session);
        let make = |namespace: &mut Namespace<Overlay<'_, MemStore>>, command: &_, at| {
            namespace.execute(TimeNs(at), command, &Contributions::new());
        };
        let commands: Vec<_> = (0..20)
            .map(|at| {
                let op = support::create_op(ROOT, &format!("f{}", at % 15), NewNode::File, GroupId(0));
                cluster.command(session, &op)
            })
            .collect();
        if together {
            cluster.on(GroupId(0), |namespace| {
                for (at, command) in commands.iter().enumerate() {
                    make(namespace, command, at as i64);
                }
            });
        } else {
            for (at, command) in commands.iter().enumerate() {
                cluster.on(GroupId(0), |namespace| make(namespace, command, at as i64));
            }
        }
        cluster.check();
        stored_digest(&cluster.stores[&GroupId(0)]).unwrap()
    };
    assert_eq!(build(true), build(false));
}

/// Fails from some read on.
struct Failing {
    store: MemStore,
    reads_left: Cell<usize>,
}

impl Failing {
    fn read(&self) -> Result<(), Error> {
        let left = self.reads_left.get();
        self.reads_left.set(left.saturating_sub(1));
        if left == 0 { Err(Error::StoreFailed("the disk is on fire".into())) } else { Ok(()) }
    }
}

impl Store for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.read()?;
        self.store.get(key)
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        self.read()?;
        self.store.scan(prefix, start, limit)
    }
}

#[test]
fn failing_store_is_told_and_never_answered_over() {
    let mut cluster = Cluster::new(1);
    let session = SessionId(1);
    cluster.open_session(session);
    let file = cluster.mkfile(session, ROOT, "f");
    let inline = Change::Inline { offset: 0, bytes: support::name("bytes") };
    let op = support::write_op(file, vec![inline]);
    let command = cluster.command(session, &op);
    let mut succeeded = false;
    for reads in 0..40 {
        let store = Failing { store: cluster.stores[&GroupId(0)].clone(), reads_left: Cell::new(reads) };
        let Ok(overlay) = Overlay::new(&store) else { continue };
        let Ok(mut namespace) = Namespace::open(GroupId(0), overlay) else { continue };
        let outcome = namespace.execute(TimeNs(9), &command, &Contributions::new());
        match namespace.failure() {
            Some(error) => assert_eq!(*error, Error::StoreFailed("the disk is on fire".into())),
            None => {
                assert!(metadata::codec::decode_outcome(&outcome).unwrap().is_ok());
                succeeded = true;
            }
        }
    }
    assert!(succeeded);
}

/// Notes the kinds of the keys that it was asked for in vain.
struct Noting {
    store: MemStore,
    missed: RefCell<BTreeSet<u8>>,
}

impl Store for Noting {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let value = self.store.get(key)?;
        if value.is_none() {
            self.missed.borrow_mut().insert(key[0]);
        }
        Ok(value)
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        self.store.scan(prefix, start, limit)
    }
}

#[test]
fn rows_that_cannot_be_there_are_not_looked_for() {
    const DIRENT: u8 = 5;
    const UNFINISHED: u8 = 0x15;
    let mut cluster = Cluster::new(1);
    let session = SessionId(1);
    cluster.open_session(session);
    let missed_by = |cluster: &mut Cluster, op: &FsOp| {
        let command = cluster.command(session, op);
        let base = Noting { store: cluster.stores[&GroupId(0)].clone(), missed: RefCell::default() };
        let mut namespace = Namespace::open(GroupId(0), Overlay::new(&base).unwrap()).unwrap();
        let outcome = namespace.execute(TimeNs(9), &command, &Contributions::new());
        assert!(metadata::codec::decode_outcome(&outcome).unwrap().is_ok());
        base.missed.into_inner()
    };
    let create = support::create_op(ROOT, "f", NewNode::File, GroupId(0));
    assert_eq!(missed_by(&mut cluster, &create), BTreeSet::from([DIRENT, UNFINISHED]));
    let file = cluster.mkfile(session, ROOT, "f");
    let write = support::write_op(file, vec![Change::Inline { offset: 0, bytes: support::name("bytes") }]);
    assert_eq!(missed_by(&mut cluster, &write), BTreeSet::from([UNFINISHED]));
}

#[test]
fn corrupt_row_is_an_error_that_names_it() {
    let mut cluster = Cluster::new(1);
    cluster.open_session(SessionId(1));
    let mut key = vec![4];
    key.extend_from_slice(&1u64.to_be_bytes());
    cluster.stores.get_mut(&GroupId(0)).unwrap().put(key.clone(), vec![1, 2, 3]).unwrap();
    let op = support::create_op(ROOT, "x", NewNode::File, GroupId(0));
    let command = cluster.command(SessionId(1), &op);
    let overlay = Overlay::new(&cluster.stores[&GroupId(0)]).unwrap();
    let mut namespace = Namespace::open(GroupId(0), overlay).unwrap();
    namespace.execute(TimeNs(9), &command, &Contributions::new());
    assert_eq!(namespace.failure(), Some(&Error::CorruptRow { key }));
}

#[test]
fn namespace_refuses_another_groups_store() {
    let cluster = Cluster::new(2);
    let overlay = Overlay::new(&cluster.stores[&GroupId(1)]).unwrap();
    let error = Namespace::open(GroupId(0), overlay).unwrap_err();
    assert_eq!(error, Error::OtherGroup { found: GroupId(1), expected: GroupId(0) });
    let empty = MemStore::new();
    assert_eq!(Namespace::open(GroupId(0), Overlay::new(&empty).unwrap()).unwrap_err(), Error::NoVolume);
}
