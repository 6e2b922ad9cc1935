//! What a state keeps, across writes, crashes and copies.

#![allow(clippy::unwrap_used)]

use super::*;

const GROUP: GroupId = GroupId(3);

fn open(folder: &Path) -> (StateDb, GroupState) {
    let db = StateDb::open(folder, &[GROUP], 16 << 20).unwrap();
    let state = db.group(GROUP).unwrap();
    (db, state)
}

fn put(state: &GroupState, key: &[u8], value: &[u8], applied: u64) {
    let rows = WriteSet::from([(key.to_vec(), Some(value.to_vec()))]);
    state.write(rows, &[(key.to_vec(), Some(value.to_vec()))], LogIndex(applied)).unwrap();
}

#[test]
fn copy_takes_the_place_of_a_state_in_one_step_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let get = |state: &GroupState, key: &[u8]| Store::get(state, key).unwrap();
    let stage = |state: &GroupState, applied: u64| {
        let staged = state.stage().unwrap();
        staged.put(&[(Bytes::from_static(b"new"), Bytes::from(applied.to_string()))]).unwrap();
        staged.finish(&[(b"m".to_vec(), Some(b"order".to_vec()))], b"charter", LogIndex(applied)).unwrap();
        staged
    };
    {
        let (_db, state) = open(folder.path());
        put(&state, b"old", b"1", 3);
        state.flush(LogIndex(3)).unwrap();
        state.quarantine("it differs").unwrap();
        let _half_made = stage(&state, 8);
    }
    {
        let (_db, state) = open(folder.path());
        assert_eq!((get(&state, b"old"), get(&state, b"new")), (Some(b"1".to_vec()), None));
        assert_eq!(state.db.cf_handle("group-3-1").map(|_| ()), None, "what was half made is gone");
        for (applied, family) in [(9, "group-3-1"), (12, "group-3-2")] {
            let before = state.snapshot().unwrap();
            state.replace_by(&stage(&state, applied)).unwrap();
            state.drop_replaced().unwrap();
            assert_eq!((get(&state, b"old"), get(&state, b"new")), (None, Some(applied.to_string().into())));
            assert_eq!(*state.family.read(), family);
            assert_eq!((state.flushed_index(), state.applied_index().unwrap()), (LogIndex(applied), LogIndex(applied)));
            assert_eq!(state.quarantined().unwrap(), None, "the mark went with the state that it was about");
            // Who reads what was replaced goes on to do so.
            assert_eq!(Store::get(&before, b"old").unwrap().is_some(), applied == 9);
            put(&state, b"later", b"2", applied + 1);
            state.flush(LogIndex(applied + 1)).unwrap();
        }
    }
    let (_db, state) = open(folder.path());
    assert_eq!(get(&state, b"new"), Some(b"12".to_vec()));
    assert_eq!(get(&state, b"later"), Some(b"2".to_vec()));
    assert_eq!(state.charter().unwrap(), Some(b"charter".to_vec()));
    assert!(state.order_rows().unwrap().contains(&(b"m".to_vec(), b"order".to_vec())));
    let rows: Vec<_> = state.snapshot().unwrap().all_rows().map(|row| row.unwrap().0).collect();
    assert!(rows.len() >= 3 && rows.iter().all(|key| !GroupState::is_own_key(key)), "{rows:?}");
}

#[test]
fn quarantine_outlives_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (db, state) = open(folder.path());
    put(&state, b"a", b"1", 1);
    assert_eq!(state.quarantined().unwrap(), None);
    state.quarantine("it differs").unwrap();
    db.stop_background_work();
    drop((db, state));
    let (_db, state) = open(folder.path());
    assert_eq!(state.quarantined().unwrap().unwrap(), "it differs");
    assert_eq!(state.order_rows().unwrap().len(), 1);
}

#[test]
fn state_unflushed_is_lost_together_with_its_index() {
    let folder = tempfile::tempdir().unwrap();
    let (db, state) = open(folder.path());
    put(&state, b"a", b"1", 1);
    state.flush(LogIndex(1)).unwrap();
    put(&state, b"b", b"2", 2);
    assert_eq!(state.flushed_index(), LogIndex(1));
    assert_eq!(state.get(b"b").unwrap().unwrap(), b"2");
    db.stop_background_work();
    drop((state, db));
    let (_db, state) = open(folder.path());
    assert_eq!(state.applied_index().unwrap(), LogIndex(1));
    assert_eq!(state.flushed_index(), LogIndex(1));
    assert_eq!(state.get(b"a").unwrap().unwrap(), b"1");
    assert_eq!(state.get(b"b").unwrap(), None);
    assert_eq!(state.order_rows().unwrap(), [(b"a".to_vec(), b"1".to_vec())]);
}

#[test]
fn rows_written_replace_rows_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (_db, state) = open(folder.path());
    put(&state, b"a", b"1", 1);
    put(&state, b"a", b"2", 2);
    assert_eq!(state.get(b"a").unwrap().unwrap(), b"2");
    state.write(WriteSet::from([(b"a".to_vec(), None)]), &[], LogIndex(3)).unwrap();
    assert_eq!(state.get(b"a").unwrap(), None);
}

#[test]
fn scan_stays_within_prefix_start_and_limit() {
    let folder = tempfile::tempdir().unwrap();
    let (_db, state) = open(folder.path());
    for key in [&b"a"[..], b"b1", b"b2", b"b3", b"c"] {
        put(&state, key, key, 1);
    }
    let keys = |prefix: &[u8], start: &[u8], limit| {
        let rows = state.scan(prefix, start, limit).unwrap();
        rows.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(keys(b"b", b"", 9), ["b1", "b2", "b3"]);
    assert_eq!(keys(b"b", b"b2", 9), ["b2", "b3"]);
    assert_eq!(keys(b"b", b"b2", 1), ["b2"]);
    assert_eq!(keys(b"b", b"c", 9), [""; 0]);
}
