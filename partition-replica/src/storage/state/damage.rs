//! Files that are not what was written.

#![allow(clippy::unwrap_used)]

use std::fs;

use super::*;

const GROUP: GroupId = GroupId(1);

fn fill(folder: &Path) {
    let db = StateDb::open(folder, &[GROUP], 16 << 20).unwrap();
    let state = db.group(GROUP).unwrap();
    for number in 0..2000u32 {
        let row = (number.to_be_bytes().to_vec(), Some(vec![number as u8; 100]));
        state.write(WriteSet::from([row]), &[], LogIndex(u64::from(number) + 1)).unwrap();
    }
    state.flush(LogIndex(2000)).unwrap();
    db.stop_background_work();
}

/// Every row, or why not.
fn rows(folder: &Path) -> Result<usize> {
    let db = StateDb::open(folder, &[GROUP], 16 << 20)?;
    let state = db.group(GROUP)?;
    let mut found = 0;
    for number in 0..2000u32 {
        let value = state.row(&number.to_be_bytes())?;
        assert!(value.is_none_or(|value| value == vec![number as u8; 100]), "another value than was written");
        found += 1;
    }
    Ok(found)
}

#[test]
fn state_with_a_flipped_bit_in_a_table_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let tables = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut tables = tables.filter(|path| path.extension().is_some_and(|end| end == "sst"));
    let table = tables.next().unwrap();
    let good = fs::read(&table).unwrap();
    for part in 1..10 {
        let mut bad = good.clone();
        bad[good.len() * part / 10] ^= 0x10;
        fs::write(&table, bad).unwrap();
        let Err(error) = rows(folder.path()) else { continue };
        assert_eq!(error.class(), crate::error::ErrorClass::Corrupt, "{error}");
        assert!(error.to_string().contains("keep this node stopped"), "{error}");
    }
    fs::write(&table, &good[..good.len() / 2]).unwrap();
    assert!(rows(folder.path()).is_err(), "half a table");
    fs::write(&table, good).unwrap();
    assert_eq!(rows(folder.path()).unwrap(), 2000);
}

/// As a copy reads them.
#[test]
fn damage_that_a_reader_meets_is_known_to_the_replica() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let mut tables = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let table = tables.find(|path| path.extension().is_some_and(|end| end == "sst")).unwrap();
    let good = fs::read(&table).unwrap();
    let mut met = 0;
    for part in 1..10 {
        let mut bad = good.clone();
        bad[good.len() * part / 10] ^= 0x10;
        fs::write(&table, bad).unwrap();
        let Ok(db) = StateDb::open(folder.path(), &[GROUP], 16 << 20) else { continue };
        let Ok(state) = db.group(GROUP) else { continue };
        let handle = state.clone();
        let failed = state.snapshot().unwrap().all_rows().map(|row| state.noted(row)).any(|row| row.is_err());
        let known = handle.check();
        assert_eq!(known.is_err(), failed);
        if let Err(error) = known {
            assert_eq!(error.class(), crate::error::ErrorClass::Corrupt);
            assert_eq!(error.to_string().matches(crate::STATE_IS_DAMAGED).count(), 1, "{error}");
            met += 1;
        }
    }
    assert!(met > 0);
}

#[test]
fn applied_index_that_is_no_number_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let db = StateDb::open(folder.path(), &[GROUP], 16 << 20).unwrap();
    let state = db.group(GROUP).unwrap();
    for bytes in [&b""[..], b"1234567", b"123456789"] {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        state.db.put_cf_opt(&state.family().unwrap(), APPLIED, bytes, &options).unwrap();
        assert!(matches!(state.applied_index(), Err(Error::DamagedState { .. })));
    }
}
