//! Real mounts of a cluster in memory: what POSIX programs see. Needs root and `/dev/fuse`; without them nothing is tested.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, XattrFlags};

use super::counts::Asked;
use crate::config::{Consistency, KernelCache, MountOptions};
use crate::fs::Fs;
use crate::mount::Mounted;
use crate::testing::MemCluster;

/// A mount that is gone when it goes out of scope, also when the test fails.
struct TestMount {
    path: PathBuf,
    fs: Arc<Fs>,
    mounted: Option<Mounted>,
}

struct Fixture {
    runtime: tokio::runtime::Runtime,
    cluster: Arc<MemCluster>,
    folder: tempfile::TempDir,
    mounts: Vec<TestMount>,
}

/// Who may answer by itself.
#[derive(Clone, Copy)]
struct Variant {
    kernel_cache: KernelCache,
    consistency: Consistency,
}

impl From<KernelCache> for Variant {
    fn from(kernel_cache: KernelCache) -> Variant {
        Variant { kernel_cache, consistency: Consistency::Causal }
    }
}

impl Fixture {
    fn new(mounts: usize, mode: impl Into<Variant>) -> Option<Fixture> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (cluster, folder) = (MemCluster::new(3), tempfile::tempdir().unwrap());
        let mode = mode.into();
        let options = MountOptions { kernel_cache: mode.kernel_cache, ..MountOptions::default() };
        *cluster.consistency.lock() = mode.consistency;
        let mut fixture = Fixture { runtime, cluster, folder, mounts: Vec::new() };
        for number in 0..mounts {
            let path = fixture.folder.path().join(format!("mount{number}"));
            fs::create_dir(&path).unwrap();
            let (fs, mounted) = fixture.runtime.block_on(async {
                let fs = fixture.cluster.fs(fixture.folder.path()).await;
                let mounted = Mounted::start(fs.clone(), &options, &path).await.unwrap();
                (fs, mounted)
            });
            fixture.mounts.push(TestMount { path, fs, mounted: Some(mounted) });
        }
        Some(fixture)
    }

    fn path(&self, mount: usize, name: &str) -> PathBuf {
        self.mounts[mount].path.join(name)
    }

    fn asked(&self, mount: usize, asked: Asked) -> u64 {
        self.mounts[mount].mounted.as_ref().unwrap().asked(asked)
    }

    fn unmount_all(&mut self) {
        for mount in &mut self.mounts {
            let mounted = mount.mounted.take().unwrap();
            self.runtime.block_on(async {
                mount.fs.flush_all().await.unwrap();
                mounted.unmount().await.unwrap();
            });
            assert_eq!(fs::read_dir(&mount.path).unwrap().count(), 0, "unmounted");
        }
    }
}

/// What POSIX promises does not depend on what the kernel keeps.
macro_rules! in_every_mode {
    ($($test:ident),* $(,)?) => { $(mod $test {
        use crate::config::{Consistency, KernelCache};

        #[test]
        fn kernel_cache_off() {
            super::$test(KernelCache::Off.into());
        }

        #[test]
        fn kernel_cache_on() {
            super::$test(KernelCache::Attributes.into());
        }

        #[test]
        fn kernel_cache_names() {
            super::$test(KernelCache::Names.into());
        }

        #[test]
        fn linearizable() {
            super::$test(super::Variant { consistency: Consistency::Linearizable, ..KernelCache::Names.into() });
        }
    })* };
}

in_every_mode!(
    mount_names_links_and_renames,
    mount_content_grows_shrinks_and_has_holes,
    mount_attributes_times_and_xattrs,
    mount_set_id_bits_go_when_an_unprivileged_process_writes,
    mount_unlinked_file_and_removed_directory,
    mounts_see_each_other_at_once,
    mount_directory_of_many_entries,
    mount_locks_conflict_wait_and_are_interrupted,
    mount_mapped_files,
    mount_survives_being_in_use_when_it_is_unmounted,
    mount_open_flags,
    mounts_agree_on_modes_names_and_content,
    mount_never_looks_back,
    mount_keeps_nothing_of_a_lost_stream,
);

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn sh(script: &str, folder: &Path) -> String {
    let output = Command::new("sh").args(["-ec", script]).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn mount_names_links_and_renames(mode: Variant) {
    let Some(mut fixture) = Fixture::new(1, mode) else { return };
    let at = |name: &str| fixture.path(0, name);
    fs::create_dir(at("d")).unwrap();
    assert_eq!(errno(fs::create_dir(at("d"))), libc::EEXIST);
    fs::write(at("d/f"), "hello").unwrap();
    assert_eq!(fs::read_to_string(at("d/f")).unwrap(), "hello");
    fs::hard_link(at("d/f"), at("g")).unwrap();
    assert_eq!(fs::metadata(at("g")).unwrap().nlink(), 2);
    symlink("d/f", at("s")).unwrap();
    assert_eq!(fs::read_link(at("s")).unwrap(), Path::new("d/f"));
    assert_eq!(fs::read_to_string(at("s")).unwrap(), "hello");
    assert_eq!(errno(fs::remove_dir(at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(at("none"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(at("g"))), libc::ENOTDIR);
    assert_eq!(errno(File::create(at(&"x".repeat(256)))), libc::ENAMETOOLONG);
    fs::write(at("h"), "other").unwrap();
    fs::rename(at("h"), at("g")).unwrap();
    assert_eq!((fs::read_to_string(at("g")).unwrap(), fs::metadata(at("d/f")).unwrap().nlink()), ("other".into(), 1));
    fs::create_dir(at("d/e")).unwrap();
    assert_eq!(errno(fs::rename(at("d"), at("d/e/x"))), libc::EINVAL);
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, at("g"), rustix::fs::CWD, at("d/f"), exchange).unwrap();
    assert_eq!(fs::read_to_string(at("g")).unwrap(), "hello");
    let keep = rustix::fs::RenameFlags::NOREPLACE;
    let refused = rustix::fs::renameat_with(rustix::fs::CWD, at("g"), rustix::fs::CWD, at("d/f"), keep);
    assert_eq!(refused, Err(rustix::io::Errno::EXIST));
    sh("mkfifo pipe && test -p pipe && mknod null c 1 3 && echo x > null && mv d/e e2 && rmdir e2", &at(""));
    assert!(fs::metadata(at("null")).unwrap().file_type().is_char_device());
    let root = fs::metadata(at("")).unwrap();
    assert_eq!((root.ino(), root.nlink()), (1, 3));
    fixture.unmount_all();
}

fn mount_content_grows_shrinks_and_has_holes(mode: Variant) {
    let Some(mut fixture) = Fixture::new(1, mode) else { return };
    let path = fixture.path(0, "f");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(b"far", 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_003);
    let mut head = [9; 4];
    file.read_exact_at(&mut head, 50).unwrap();
    assert_eq!(head, [0; 4]);
    let fd = file.as_raw_fd();
    assert_eq!(file.seek(SeekFrom::Start(0)).unwrap(), 0);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap(), 100_000);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(100_000)).unwrap(), 100_003);
    file.set_len(10).unwrap();
    file.set_len(20).unwrap();
    file.write_all_at(b"x", 15).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0x\0\0\0\0");
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 14, 4).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 30).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [0; 30]);
    assert!(fd > 0);
    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    log.write_all(b"one").unwrap();
    log.write_all(b"two").unwrap();
    drop(log);
    assert_eq!(&fs::read(&path).unwrap()[30..], b"onetwo");
    let big: Vec<u8> = (0..9 << 20).map(|at: u32| (at / 4096) as u8).collect();
    fs::write(fixture.path(0, "big"), &big).unwrap();
    assert!(fs::read(fixture.path(0, "big")).unwrap() == big);
    sh("cp big copy && cmp big copy && truncate -s 5M copy && test $(stat -c %s copy) = 5242880", &fixture.path(0, ""));
    let out = OpenOptions::new().write(true).create(true).truncate(true).open(fixture.path(0, "copy")).unwrap();
    let source = File::open(fixture.path(0, "big")).unwrap();
    let mut copied = 0;
    while copied < big.len() {
        copied += rustix::fs::copy_file_range(&source, None, &out, None, big.len() - copied).unwrap();
    }
    drop(out);
    assert!(fs::read(fixture.path(0, "copy")).unwrap() == big);
    fixture.unmount_all();
}

fn mount_attributes_times_and_xattrs(mode: Variant) {
    let Some(mut fixture) = Fixture::new(1, mode) else { return };
    let path = fixture.path(0, "f");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode(), 0o106_755);
    std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
    let attr = fs::metadata(&path).unwrap();
    assert_eq!((attr.uid(), attr.gid(), attr.mode() & 0o7777), (7, 8, 0o755));
    let before = rustix::fs::Timespec { tv_sec: -2, tv_nsec: 250_000_000 };
    let times = rustix::fs::Timestamps { last_access: before, last_modification: before };
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    let attr = fs::metadata(&path).unwrap();
    assert_eq!((attr.mtime(), attr.mtime_nsec(), attr.atime()), (-2, 250_000_000, -2));
    rustix::fs::setxattr(&path, "user.colour", b"blue", XattrFlags::CREATE).unwrap();
    let again = rustix::fs::setxattr(&path, "user.colour", b"red", XattrFlags::CREATE);
    assert_eq!(again, Err(rustix::io::Errno::EXIST));
    let mut value = [0_u8; 16];
    assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value[..]).unwrap(), 4);
    assert_eq!(&value[..4], b"blue");
    let mut names = [0_u8; 64];
    let len = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
    assert_eq!(&names[..len], b"user.colour\0");
    rustix::fs::removexattr(&path, "user.colour").unwrap();
    assert_eq!(rustix::fs::getxattr(&path, "user.colour", &mut value[..]), Err(rustix::io::Errno::NODATA));
    let held = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    held.write_all_at(b"longer", 0).unwrap();
    let stat = held.metadata().unwrap();
    drop(held);
    let after = fs::metadata(&path).unwrap();
    let times = |attr: &fs::Metadata| (attr.len(), attr.mtime(), attr.mtime_nsec(), attr.ctime(), attr.ctime_nsec());
    assert_eq!(times(&stat), times(&after), "fstat before close is final");
    assert!(rustix::fs::statvfs(fixture.path(0, "")).unwrap().f_blocks > 0);
    fixture.unmount_all();
}

fn mount_set_id_bits_go_when_an_unprivileged_process_writes(mode: Variant) {
    let Some(mut fixture) = Fixture::new(1, mode) else { return };
    let folder = fixture.path(0, "");
    fs::set_permissions(fixture.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    sh("echo x > f && chmod 6777 f && mkdir open && chmod 1777 open && echo x > closed && chmod 600 closed", &folder);
    let script = "
        import os
        os.setgroups([]); os.setgid(1000); os.setuid(1000)
        fd = os.open('f', os.O_WRONLY); os.write(fd, b'y'); os.close(fd)
        try: open('closed'); print('opened')
        except PermissionError: print('refused')
        open('open/mine', 'w').close()
        try: open('mine', 'w'); print('created')
        except PermissionError: print('refused')
    ";
    let script: String = script.lines().map(|line| line.trim_start().to_owned() + "\n").collect();
    let Ok(output) = Command::new("python3").args(["-c", &script]).current_dir(&folder).output() else { return };
    assert_eq!(String::from_utf8_lossy(&output.stdout), "refused\nrefused\n", "{output:?}");
    assert_eq!(fs::metadata(folder.join("f")).unwrap().mode() & 0o7777, 0o777);
    assert_eq!(fs::metadata(folder.join("open/mine")).unwrap().uid(), 1000);
    fixture.unmount_all();
}

fn mount_unlinked_file_and_removed_directory(mode: Variant) {
    let Some(mut fixture) = Fixture::new(2, mode) else { return };
    let path = fixture.path(0, "f");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"kept").unwrap();
    fs::remove_file(fixture.path(1, "f")).unwrap();
    assert!(!path.exists());
    file.write_all(b" alive").unwrap();
    file.sync_all().unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), file.metadata().unwrap().nlink()), ("kept alive", 0));
    drop(file);
    fs::create_dir(fixture.path(0, "d")).unwrap();
    let dir = rustix::fs::open(fixture.path(0, "d"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    fs::remove_dir(fixture.path(1, "d")).unwrap();
    let refused = rustix::fs::openat(&dir, "x", OFlags::CREATE | OFlags::RDWR, Mode::RUSR);
    assert_eq!(refused.unwrap_err(), rustix::io::Errno::NOENT);
    drop(dir);
    fixture.unmount_all();
}

fn mounts_see_each_other_at_once(mode: Variant) {
    let Some(mut fixture) = Fixture::new(2, mode) else { return };
    for round in 0..50 {
        let (here, there) = (round % 2, (round + 1) % 2);
        let text = format!("round {round}");
        fs::write(fixture.path(here, "f"), &text).unwrap();
        assert_eq!(fs::read_to_string(fixture.path(there, "f")).unwrap(), text);
        fs::rename(fixture.path(there, "f"), fixture.path(there, "g")).unwrap();
        assert_eq!(errno(fs::metadata(fixture.path(here, "f"))), libc::ENOENT);
        fs::rename(fixture.path(here, "g"), fixture.path(here, "f")).unwrap();
    }
    // An open file follows, too: its size, its pages.
    let reader = File::open(fixture.path(0, "f")).unwrap();
    let mut text = [0; 8];
    reader.read_exact_at(&mut text, 0).unwrap();
    let writer = OpenOptions::new().write(true).open(fixture.path(1, "f")).unwrap();
    writer.write_all_at(b"changed", 0).unwrap();
    writer.sync_all().unwrap();
    reader.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"changed9");
    fixture.unmount_all();
}

fn mount_directory_of_many_entries(mode: Variant) {
    let Some(mut fixture) = Fixture::new(1, mode) else { return };
    let dir = fixture.path(0, "d");
    fs::create_dir(&dir).unwrap();
    for number in 0..1200 {
        File::create(dir.join(format!("entry number {number}"))).unwrap();
    }
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.dedup();
        names.len()
    };
    assert_eq!(names(&dir), 1200);
    assert_eq!(sh("ls -lR . | grep -c number", &dir).trim(), "1200");
    assert_eq!(sh("ls -ia . | head -2 | awk '{print $2}' | tr '\\n' ' '", &dir).trim(), ". ..");
    sh("rm -rf d", &fixture.path(0, ""));
    assert!(!dir.exists());
    fixture.unmount_all();
}

fn mount_locks_conflict_wait_and_are_interrupted(mode: Variant) {
    let Some(mut fixture) = Fixture::new(2, mode) else { return };
    fs::write(fixture.path(0, "f"), "x").unwrap();
    let script = r#"
        import fcntl, os, signal, sys, time
        a = open(sys.argv[1] + '/f', 'r+'); b = open(sys.argv[2] + '/f', 'r+')
        fcntl.lockf(a, fcntl.LOCK_EX, 10, 0)
        if os.fork() == 0:
            c = open(sys.argv[2] + '/f', 'r+')
            try: fcntl.lockf(c, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5); print('taken')
            except BlockingIOError: print('busy')
            fcntl.lockf(c, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10); print('beside')
            signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError()))
            signal.alarm(1)
            try: fcntl.lockf(c, fcntl.LOCK_EX, 5, 5); print('got it')
            except TimeoutError: print('interrupted')
            sys.stdout.flush()
            fcntl.lockf(c, fcntl.LOCK_EX, 5, 5); print('got it'); sys.stdout.flush()
            os._exit(0)
        time.sleep(2); a.close(); os.wait()
    "#;
    let script: String =
        script.lines().map(|line| line.strip_prefix("        ").unwrap_or(line).to_owned() + "\n").collect();
    let run = Command::new("timeout")
        .args(["20", "python3", "-c", &script])
        .arg(fixture.path(0, ""))
        .arg(fixture.path(1, ""))
        .output();
    let Ok(output) = run else { return };
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "busy\nbeside\ninterrupted\ngot it\n", "{output:?}");
    sh("flock f true && (flock f sleep 1 & sleep 0.3; ! flock -n f true; flock f true)", &fixture.path(1, ""));
    fixture.unmount_all();
}

fn mount_mapped_files(mode: Variant) {
    let Some(mut fixture) = Fixture::new(2, mode) else { return };
    let script = r#"
        import mmap, sys
        path = sys.argv[1] + '/f'
        with open(path, 'wb') as f: f.write(b'.' * 20000)
        with open(path, 'r+b') as f:
            m = mmap.mmap(f.fileno(), 0)
            m[5000:5005] = b'hello'
            m.flush()
            assert open(path, 'rb').read()[4999:5006] == b'.hello.'
            m[0:2] = b'ab'
            m.close()
        assert open(sys.argv[2] + '/f', 'rb').read()[:3] == b'ab.'
    "#;
    let script: String =
        script.lines().map(|line| line.strip_prefix("        ").unwrap_or(line).to_owned() + "\n").collect();
    let run = Command::new("timeout")
        .args(["20", "python3", "-c", &script])
        .arg(fixture.path(0, ""))
        .arg(fixture.path(1, ""))
        .output();
    let Ok(output) = run else { return };
    assert!(output.status.success(), "{output:?}");
    fixture.unmount_all();
}

fn mount_survives_being_in_use_when_it_is_unmounted(mode: Variant) {
    let Some(mut fixture) = Fixture::new(1, mode) else { return };
    let mut file = File::create(fixture.path(0, "f")).unwrap();
    file.write_all(b"in the buffer").unwrap();
    let started = std::time::Instant::now();
    fixture.unmount_all();
    assert!(started.elapsed() < Duration::from_secs(8));
    drop(file);
    let other = fixture.runtime.block_on(fixture.cluster.fs(fixture.folder.path()));
    let root = other.table.directory(metadata::types::InodeId::ROOT);
    let attr = fixture.runtime.block_on(other.lookup(root, &bytes::Bytes::from_static(b"f"))).unwrap();
    assert_eq!(attr.size, 13);
}

fn mount_open_flags(mode: Variant) {
    let Some(mut fixture) = Fixture::new(1, mode) else { return };
    let path = fixture.path(0, "f");
    let exclusive = || OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path);
    exclusive().unwrap().write_all(b"12345").unwrap();
    assert_eq!(errno(exclusive()), libc::EEXIST);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    OpenOptions::new().write(true).create(true).truncate(false).open(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"12345");
    File::create(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
    assert_eq!(errno(OpenOptions::new().write(true).open(fixture.path(0, ""))), libc::EISDIR);
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    direct.write_all_at(&[7; 8192], 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [7; 8192]);
    fixture.unmount_all();
}

#[test]
fn kernel_asks_for_known_attributes_and_names_only_once() {
    for mode in [KernelCache::Attributes, KernelCache::Names] {
        let Some(mut fixture) = Fixture::new(2, mode) else { return };
        let file = fixture.path(0, "d/f");
        fs::create_dir(fixture.path(1, "d")).unwrap();
        fs::write(fixture.path(1, "d/f"), "x").unwrap();
        for _ in 0..3 {
            fs::metadata(&file).unwrap();
            assert!(!fixture.path(0, "d/none").exists());
        }
        let before = [Asked::GetAttr, Asked::Lookup].map(|asked| fixture.asked(0, asked));
        for _ in 0..100 {
            assert_eq!(fs::metadata(&file).unwrap().len(), 1);
            assert!(!fixture.path(0, "d/none").exists());
        }
        let after = [Asked::GetAttr, Asked::Lookup].map(|asked| fixture.asked(0, asked));
        assert_eq!(after[0] - before[0], 0, "{mode:?}");
        assert_eq!(after[1] - before[1], if mode == KernelCache::Names { 0 } else { 400 }, "{mode:?}");
        fixture.unmount_all();
    }
}

/// Whatever others change is seen, also in what the kernel checks by itself and in files that are open.
fn mounts_agree_on_modes_names_and_content(mode: Variant) {
    let Some(mut fixture) = Fixture::new(2, mode) else { return };
    let (here, there) = (fixture.path(0, ""), fixture.path(1, ""));
    fs::set_permissions(fixture.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    sh("mkdir d && echo one > d/f && ln d/f d/g && mkdir d/e", &here);
    let reader = File::open(there.join("d/f")).unwrap();
    let as_user = |script: &str| {
        let script = format!("cd / && setpriv --reuid=1000 --regid=1000 --clear-groups sh -c '{script}'");
        Command::new("sh").args(["-c", &script]).current_dir(&there).output().unwrap().status.success()
    };
    let can_read = || as_user(&format!("cat {} > /dev/null 2>&1", there.join("d/f").display()));
    for round in 0..20 {
        let links = fs::metadata(there.join("d/g")).unwrap().nlink();
        assert_eq!(links, 2);
        assert!(can_read());
        fs::set_permissions(here.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!can_read(), "checked by the kernel");
        fs::set_permissions(here.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
        let text = format!("{round:03}");
        fs::write(here.join("d/f"), &text).unwrap();
        // A mount may trail behind another until it answers anything newer; then its kernel has been told of all before.
        assert!(!there.join(format!("none {round}")).exists());
        let mut seen = [0; 3];
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, text.as_bytes());
        assert_eq!(
            fs::metadata(there.join("d/f")).unwrap().modified().unwrap(),
            reader.metadata().unwrap().modified().unwrap()
        );
        fs::remove_file(here.join("d/g")).unwrap();
        assert_eq!(fs::metadata(there.join("d/f")).unwrap().nlink(), 1);
        assert!(!there.join("d/g").exists());
        // Under another name of the same length, and back.
        fs::rename(here.join("d"), here.join("c")).unwrap();
        assert!(!there.join("d").exists());
        assert_eq!(fs::read(there.join("c/f")).unwrap(), text.as_bytes());
        fs::rename(here.join("c/e"), here.join("e")).unwrap();
        assert_eq!(fs::metadata(there.join("c")).unwrap().nlink(), 2);
        fs::rename(here.join("e"), here.join("c/e")).unwrap();
        fs::rename(here.join("c"), here.join("d")).unwrap();
        assert!(!there.join("c").exists());
        assert_eq!(fs::metadata(there.join("d")).unwrap().nlink(), 3);
        fs::hard_link(here.join("d/f"), here.join("d/g")).unwrap();
    }
    drop(reader);
    fixture.unmount_all();
}

/// One mount writes a, then b, over and over. Who has seen b as of some time finds a no older, however it looks.
fn mount_never_looks_back(mode: Variant) {
    let Some(mut fixture) = Fixture::new(2, mode) else { return };
    let names = ["a", "b"].map(|name| (fixture.path(0, name), fixture.path(1, name)));
    let set_time = |path: &Path, tv_sec: i64| {
        let time = rustix::fs::Timespec { tv_sec, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
    };
    for (here, _) in &names {
        File::create(here).unwrap();
        set_time(here, 0);
    }
    let over = std::sync::atomic::AtomicBool::new(false);
    let load = || over.load(std::sync::atomic::Ordering::Acquire);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut newest = 0;
                while !load() {
                    let [b, a] = [1, 0].map(|name: usize| fs::metadata(&names[name].1).unwrap().mtime());
                    assert!(a >= b && a >= newest, "a of {a}, b of {b}, {newest} was seen");
                    newest = a;
                }
            });
        }
        for second in 1..=1500 {
            for (here, _) in &names {
                set_time(here, second);
            }
        }
        over.store(true, std::sync::atomic::Ordering::Release);
    });
    fixture.unmount_all();
}

/// Nobody tells of changes any more, and nothing is asked meanwhile.
fn mount_keeps_nothing_of_a_lost_stream(mode: Variant) {
    let Some(mut fixture) = Fixture::new(2, mode) else { return };
    fs::write(fixture.path(0, "f"), "x").unwrap();
    for _ in 0..3 {
        fs::metadata(fixture.path(1, "f")).unwrap();
    }
    fixture.mounts[1].fs.volume.cache().end_stream(multicast::ids::GroupId::GLOBAL);
    fs::set_permissions(fixture.path(0, "f"), fs::Permissions::from_mode(0o604)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(fs::metadata(fixture.path(1, "f")).unwrap().mode() & 0o777, 0o604);
    fs::rename(fixture.path(0, "f"), fixture.path(0, "g")).unwrap();
    assert!(!fixture.path(1, "f").exists());
    fixture.unmount_all();
}

#[test]
fn what_is_mounted_on_top_outlives_changes_by_others_unless_names_are_kept() {
    for mode in [KernelCache::Off, KernelCache::Attributes, KernelCache::Names] {
        let Some(mut fixture) = Fixture::new(2, mode) else { return };
        let here = fixture.path(0, "");
        sh("mkdir top in && touch f && mount -t tmpfs none top && touch top/inside && ls -l", &here);
        fs::rename(fixture.path(1, "f"), fixture.path(1, "g")).unwrap();
        let seen = sh("ls top; stat -c %n g in > /dev/null; cd in; pwd", &here);
        let kept = seen.starts_with("inside");
        assert_eq!(kept, mode != KernelCache::Names, "names are kept at that price: {seen}");
        if kept {
            sh("umount top", &here);
        }
        fixture.unmount_all();
    }
}
