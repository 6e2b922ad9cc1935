//! POSIX on real mounts: what one mount does, another one sees, inside one group and across groups.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::cluster::{Cluster, Options, Part, REGIONS, eventually, is_reference};
use common::files::{
    Random, SharedMap, StopAtEnd, as_user, create, exists, make_node, names, open_append, open_flags, refused,
    rename_with, seek_data, seek_hole, set_times, text, time,
};
use rustix::fs::{CWD, FallocateFlags, FileType, FlockOperation, RenameFlags, XattrFlags, fcntl_lock, flock};
use rustix::io::Errno;

const NOBODY: u32 = 65534;
const MIB: u64 = 1 << 20;

/// A fresh directory: the mount of `here` acts, the other one looks.
struct Place<'a> {
    what: String,
    here: PathBuf,
    there: &'static str,
    cluster: &'a Cluster,
}

impl Place<'_> {
    /// A path of the directory as the other mount shows it once it has learnt of all that was done here.
    fn there(&self, name: impl AsRef<Path>) -> PathBuf {
        self.cluster.seen(self.there, &self.here.join(name))
    }

    /// A path as the acting mount shows it once it has learnt of all that was done on the other one.
    fn back(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.here.join(name);
        let own = path.strip_prefix(self.cluster.mounts()).unwrap().iter().next().unwrap();
        self.cluster.sync(self.there, own.to_str().unwrap());
        path
    }
}

/// The same checks inside the acting mount's own group, in another region's group, and in the group of the root.
fn places<'a>(cluster: &'a Cluster, test: &str) -> Vec<Place<'a>> {
    let of = [("us", "eu", "us"), ("us", "ap", "eu"), ("eu", "us", ""), ("ap", "ap", "ap")];
    let places = of.map(|(here, there, parent)| {
        let directory = format!("{parent}/{test}-{here}-{there}").trim_start_matches('/').to_owned();
        let what = format!("/{directory} from {here}, seen by {there}");
        eprintln!("{what}");
        let here = cluster.path(here, &directory);
        fs::create_dir(&here).unwrap();
        fs::set_permissions(&here, Permissions::from_mode(0o777)).unwrap();
        Place { what, here, there, cluster }
    });
    places.into()
}

/// Directories in three groups, as one mount shows them.
fn homes(cluster: &Cluster, region: &str, test: &str) -> Vec<PathBuf> {
    let homes = ["us", "eu", ""].map(|parent| cluster.path(region, Path::new(parent).join(test)));
    for home in &homes {
        fs::create_dir(home).unwrap();
        fs::set_permissions(home, Permissions::from_mode(0o777)).unwrap();
    }
    homes.into()
}

#[track_caller]
fn same_bytes(what: &str, found: &[u8], expected: &[u8]) {
    if found != expected {
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        panic!("{what}: {} bytes, expected {}; first difference at {differs:?}", found.len(), expected.len());
    }
}

#[test]
fn content_is_read_everywhere_as_written() {
    let cluster = Cluster::up(Options::default());
    let mut random = Random::new(1);
    for place in places(&cluster, "content") {
        for len in [0, 1, 4095, 4096, 4097, 70_000, 4 * MIB as usize, 9 * MIB as usize + 13] {
            let here = place.here.join(len.to_string());
            let there = || place.there(len.to_string());
            let mut content = random.bytes(len);
            create(&here, &content).unwrap();
            same_bytes(&format!("{} new", place.what), &fs::read(there()).unwrap(), &content);

            // Overwrite in the middle, past the end, and in small steps at the end.
            let file = File::options().read(true).write(true).open(&here).unwrap();
            let patch = random.bytes(len / 3 + 5);
            let at = len / 2;
            file.write_all_at(&patch, at as u64).unwrap();
            content.resize(content.len().max(at + patch.len()), 0);
            content[at..at + patch.len()].copy_from_slice(&patch);
            let mut end = open_append(&here).unwrap();
            for _ in 0..5 {
                let line = random.bytes(33);
                end.write_all(&line).unwrap();
                content.extend(line);
            }
            drop(end);
            same_bytes(&format!("{} patched, same mount", place.what), &fs::read(&here).unwrap(), &content);
            file.sync_all().unwrap();
            same_bytes(&format!("{} patched", place.what), &fs::read(there()).unwrap(), &content);

            // Shorter, longer (zeros), empty.
            for cut in [content.len() / 2, 10, content.len() + 5000, 0] {
                file.set_len(cut as u64).unwrap();
                content.resize(cut, 0);
                assert_eq!(fs::metadata(there()).unwrap().len(), cut as u64, "{}", place.what);
                same_bytes(&format!("{} cut to {cut}", place.what), &fs::read(there()).unwrap(), &content);
            }
            drop(file);
            fs::write(&here, b"new content").unwrap();
            assert_eq!(text(&there()), "new content", "{}", place.what);
            fs::write(&here, b"").unwrap();
            assert_eq!(fs::metadata(there()).unwrap().len(), 0, "{}", place.what);
            fs::remove_file(&here).unwrap();
            assert!(!exists(&there()), "{}", place.what);
        }
    }
}

#[test]
fn writes_of_one_handle_are_read_by_another_before_close() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "unclosed") {
        let writer = File::options().write(true).create_new(true).open(place.here.join("f")).unwrap();
        let reader = File::open(place.here.join("f")).unwrap();
        for round in 0..20_u64 {
            let line = format!("line {round:04}\n");
            writer.write_all_at(line.as_bytes(), round * 10).unwrap();
            // The same mount reads what was written, whoever asks.
            let mut found = [0; 10];
            reader.read_exact_at(&mut found, round * 10).unwrap();
            assert_eq!(found, line.as_bytes(), "{}", place.what);
            assert_eq!(fs::metadata(place.here.join("f")).unwrap().len(), (round + 1) * 10, "{}", place.what);
            // Another mount reads what was made durable.
            if round % 5 == 0 {
                writer.sync_data().unwrap();
                assert_eq!(fs::read(place.there("f")).unwrap().len() as u64, (round + 1) * 10, "{}", place.what);
            }
        }
    }
}

#[test]
fn holes_read_as_zeros_and_are_found() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "holes") {
        let here = place.here.join("sparse");
        let file = File::options().read(true).write(true).create_new(true).open(&here).unwrap();
        let data = Random::new(2).bytes(MIB as usize);
        file.write_all_at(&data, 8 * MIB).unwrap();
        file.set_len(20 * MIB).unwrap();
        file.sync_all().unwrap();
        let seen = File::open(place.there("sparse")).unwrap();
        let learnt = || drop(place.there("sparse"));
        assert_eq!(seen.metadata().unwrap().len(), 20 * MIB, "{}", place.what);
        let blocks = seen.metadata().unwrap().blocks() * 512;
        assert!((MIB..4 * MIB).contains(&blocks), "{}: a sparse file takes {blocks} bytes", place.what);
        for file in [&file, &seen] {
            assert_eq!(seek_data(file, 0).unwrap(), 8 * MIB, "{}", place.what);
            assert_eq!(seek_hole(file, 0).unwrap(), 0, "{}", place.what);
            assert_eq!(seek_hole(file, 8 * MIB + 5).unwrap(), 9 * MIB, "{}", place.what);
            refused(seek_data(file, 9 * MIB), Errno::NXIO);
            refused(seek_data(file, 20 * MIB), Errno::NXIO);
            let mut found = vec![1; 3 * MIB as usize];
            file.read_exact_at(&mut found, 7 * MIB).unwrap();
            let expected = [vec![0; MIB as usize], data.clone(), vec![0; MIB as usize]].concat();
            same_bytes(&place.what, &found, &expected);
        }

        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, hole, 8 * MIB + 100_000, 300_000).unwrap();
        learnt();
        let mut expected = data.clone();
        expected[100_000..400_000].fill(0);
        let mut found = vec![1; MIB as usize];
        seen.read_exact_at(&mut found, 8 * MIB).unwrap();
        same_bytes(&format!("{} punched", place.what), &found, &expected);
        assert_eq!(seen.metadata().unwrap().len(), 20 * MIB, "{}", place.what);

        // Space for a range past the end makes the file longer, unless told not to; the content stays.
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 19 * MIB, 2 * MIB).unwrap();
        learnt();
        assert_eq!(seen.metadata().unwrap().len(), 21 * MIB, "{}", place.what);
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 21 * MIB, 2 * MIB).unwrap();
        learnt();
        assert_eq!(seen.metadata().unwrap().len(), 21 * MIB, "{}", place.what);
        let mut found = vec![1; MIB as usize];
        seen.read_exact_at(&mut found, 8 * MIB).unwrap();
        same_bytes(&format!("{} allocated", place.what), &found, &expected);
        let mut found = vec![1; 2 * MIB as usize];
        seen.read_exact_at(&mut found, 19 * MIB).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "{}", place.what);
        refused(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 0), Errno::INVAL);

        // Small files too, which hold no blob.
        let small = place.here.join("small");
        create(&small, &[7; 3000]).unwrap();
        let file = open_flags(&small, 0).unwrap();
        rustix::fs::fallocate(&file, hole, 1000, 500).unwrap();
        let mut expected = vec![7; 3000];
        expected[1000..1500].fill(0);
        same_bytes(&place.what, &fs::read(place.there("small")).unwrap(), &expected);
    }
}

/// How many blobs the buckets hold.
fn blobs(cluster: &Cluster) -> usize {
    let mut folders = vec![cluster.data().join("buckets")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { count += 1 }
        }
    }
    count
}

#[test]
fn copied_ranges_have_the_content_of_their_time() {
    let cluster = Cluster::up(Options::default());
    let mut random = Random::new(3);
    let homes = homes(&cluster, "us", "copies");
    for from in &homes {
        for to in &homes {
            let what = format!("{} to {}", from.display(), to.display());
            let (source, target) = (from.join("source"), to.join("target"));
            let _absent = (fs::remove_file(&source), fs::remove_file(&target));
            let content = random.bytes(6 * MIB as usize + 77);
            create(&source, &content).unwrap();
            let reader = File::options().read(true).write(true).open(&source).unwrap();
            let writer = File::options().write(true).create_new(true).open(&target).unwrap();
            let (mut offset_in, mut offset_out) = (1000, 0);
            while offset_in < content.len() as u64 {
                let left = content.len() - offset_in as usize;
                let copied =
                    rustix::fs::copy_file_range(&reader, Some(&mut offset_in), &writer, Some(&mut offset_out), left)
                        .unwrap();
                assert_ne!(copied, 0, "{what}");
            }
            writer.sync_all().unwrap();
            // A later change of the source does not reach the copy.
            reader.write_all_at(b"changed", 2000).unwrap();
            reader.sync_all().unwrap();
            let found = fs::read(cluster.seen("ap", &target)).unwrap();
            same_bytes(&what, &found, &content[1000..]);
            fs::remove_file(&source).unwrap();
            same_bytes(&what, &fs::read(cluster.seen("eu", &target)).unwrap(), &content[1000..]);
        }
    }
    // Shared: a copy uploads nothing, in whichever group it is.
    let original = homes[0].join("shared");
    create(&original, &random.bytes(8 * MIB as usize)).unwrap();
    for to in &homes {
        let blobs = blobs(&cluster);
        let (reader, writer) = (File::open(&original).unwrap(), File::create_new(to.join("copy")).unwrap());
        let (mut offset, mut left) = (0, 8 * MIB as usize);
        while left > 0 {
            left -= rustix::fs::copy_file_range(&reader, Some(&mut offset), &writer, None, left).unwrap();
        }
        writer.sync_all().unwrap();
        if !is_reference() && *to == homes[0] {
            assert_eq!(self::blobs(&cluster), blobs, "to {}", to.display());
        }
        same_bytes("shared", &fs::read(cluster.seen("ap", &to.join("copy"))).unwrap(), &fs::read(&original).unwrap());
    }
    // Inside one file.
    let path = homes[0].join("self");
    let mut content = random.bytes(300_000);
    create(&path, &content).unwrap();
    let file = open_flags(&path, 0).unwrap();
    let (mut from, mut to) = (10_000, 200_000);
    let copied = rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 50_000).unwrap();
    content.copy_within(10_000..10_000 + copied, 200_000);
    file.sync_all().unwrap();
    same_bytes("inside one file", &fs::read(cluster.seen("ap", &path)).unwrap(), &content);
}

#[test]
fn links_and_kinds_are_the_same_everywhere() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "kinds") {
        let here = &place.here;
        let long = "t/".repeat(2000);
        for (name, target) in [("relative", "a/../b"), ("long", long.as_str()), ("dangling", "/nowhere/at all")] {
            symlink(target, here.join(name)).unwrap();
            assert_eq!(fs::read_link(place.there(name)).unwrap(), Path::new(target), "{}", place.what);
            assert_eq!(fs::symlink_metadata(place.there(name)).unwrap().len(), target.len() as u64, "{}", place.what);
        }
        make_node(&here.join("fifo"), FileType::Fifo, 0).unwrap();
        make_node(&here.join("socket"), FileType::Socket, 0).unwrap();
        make_node(&here.join("char"), FileType::CharacterDevice, rustix::fs::makedev(1, 3)).unwrap();
        make_node(&here.join("block"), FileType::BlockDevice, rustix::fs::makedev(7, 200)).unwrap();
        let there = place.there("");
        let kind = |name: &str| fs::symlink_metadata(there.join(name)).unwrap();
        assert!(kind("fifo").file_type().is_fifo() && kind("socket").file_type().is_socket(), "{}", place.what);
        assert!(
            kind("char").file_type().is_char_device() && kind("block").file_type().is_block_device(),
            "{}",
            place.what
        );
        assert_eq!(kind("char").rdev(), rustix::fs::makedev(1, 3), "{}", place.what);
        assert_eq!(kind("block").rdev(), rustix::fs::makedev(7, 200), "{}", place.what);
        let listed: Vec<_> = fs::read_dir(there).unwrap().map(|entry| entry.unwrap()).collect();
        let fifo = listed.iter().find(|entry| entry.file_name() == "fifo").unwrap();
        assert!(fifo.file_type().unwrap().is_fifo(), "{}: kind in the listing", place.what);
        // A pipe joins processes of one machine.
        let pipe = here.join("fifo");
        let writer =
            thread::spawn(move || File::options().write(true).open(pipe).unwrap().write_all(b"through").unwrap());
        assert_eq!(text(&here.join("fifo")), "through", "{}", place.what);
        writer.join().unwrap();
    }
}

#[test]
fn hard_links_are_counted_and_share_one_file_across_groups() {
    let cluster = Cluster::up(Options::default());
    let homes = homes(&cluster, "us", "links");
    for (round, first) in homes.iter().enumerate() {
        let name = |home: &Path, n: usize| home.join(format!("link-{round}-{n}"));
        create(&name(first, 0), b"shared").unwrap();
        let mut links = vec![name(first, 0)];
        for (n, home) in homes.iter().chain(&homes).enumerate() {
            fs::hard_link(&links[n % links.len()], name(home, n + 1)).unwrap();
            links.push(name(home, n + 1));
        }
        let inode = fs::metadata(&links[0]).unwrap().ino();
        for link in &links {
            let seen = fs::metadata(cluster.seen("ap", link)).unwrap();
            assert_eq!((seen.ino(), seen.nlink()), (inode, links.len() as u64), "{}", link.display());
        }
        fs::write(links.last().unwrap(), b"changed").unwrap();
        assert_eq!(text(&cluster.seen("eu", &links[0])), "changed");
        refused(fs::hard_link(&links[0], &links[1]), Errno::EXIST);
        refused(fs::hard_link(first, first.join("to-a-directory")), Errno::PERM);
        // Renaming one link over another of the same file does nothing.
        fs::rename(&links[1], &links[2]).unwrap();
        assert!(exists(&links[1]) && exists(&links[2]));
        // A file with other links moves between groups, and stays the same file.
        let moved = homes[(round + 1) % homes.len()].join(format!("moved-{round}"));
        fs::rename(&links[0], &moved).unwrap();
        assert_eq!(fs::metadata(cluster.seen("eu", &moved)).unwrap().ino(), inode);
        links[0] = moved;
        while let Some(link) = links.pop() {
            fs::remove_file(&link).unwrap();
            for left in &links {
                assert_eq!(fs::metadata(cluster.seen("ap", left)).unwrap().nlink(), links.len() as u64);
            }
        }
    }
}

#[test]
fn rename_replaces_refuses_and_exchanges() {
    let cluster = Cluster::up(Options::default());
    let homes = homes(&cluster, "eu", "rename");
    for from in &homes {
        for to in &homes {
            let (a, b) = (from.join("a"), to.join("b"));
            let there = |path: &Path| cluster.seen("ap", path);
            create(&a, b"A").unwrap();
            create(&b, b"B").unwrap();
            refused(rename_with(&a, &b, RenameFlags::NOREPLACE), Errno::EXIST);
            assert_eq!((text(&there(&a)), text(&there(&b))), ("A".into(), "B".into()));
            rename_with(&a, &b, RenameFlags::EXCHANGE).unwrap();
            assert_eq!((text(&there(&a)), text(&there(&b))), ("B".into(), "A".into()));
            fs::rename(&a, &b).unwrap();
            assert!(!exists(&there(&a)));
            assert_eq!(text(&there(&b)), "B");
            refused(rename_with(&a, &b, RenameFlags::EXCHANGE), Errno::NOENT);
            rename_with(&b, &a, RenameFlags::NOREPLACE).unwrap();
            assert_eq!(text(&there(&a)), "B");

            // Directories: over an empty one, not over a full one, exchanged with a file.
            let (tree, target) = (from.join("tree"), to.join("target"));
            fs::create_dir(&tree).unwrap();
            create(&tree.join("leaf"), b"leaf").unwrap();
            fs::create_dir(&target).unwrap();
            fs::rename(&tree, &target).unwrap();
            assert_eq!(names(&there(&target)), ["leaf"]);
            fs::create_dir(&tree).unwrap();
            create(&tree.join("other"), b"other").unwrap();
            let full = fs::rename(&tree, &target).unwrap_err().raw_os_error();
            assert!([libc::ENOTEMPTY, libc::EEXIST].contains(&full.unwrap()), "{full:?}");
            refused(fs::rename(&a, &target), Errno::ISDIR);
            refused(fs::rename(&target, &a), Errno::NOTDIR);
            refused(fs::rename(&target, target.join("inside")), Errno::INVAL);
            rename_with(&tree, &target, RenameFlags::EXCHANGE).unwrap();
            assert_eq!((names(&there(&tree)), names(&there(&target))), (vec!["leaf".into()], vec!["other".into()]));
            rename_with(&a, &target, RenameFlags::EXCHANGE).unwrap();
            assert_eq!((names(&there(&a)), text(&there(&target))), (vec!["other".into()], "B".into()));
            assert_eq!(fs::metadata(there(from)).unwrap().nlink(), 4, "{}", from.display());
            fs::remove_dir_all(&a).unwrap();
            fs::remove_dir_all(&tree).unwrap();
            fs::remove_file(&target).unwrap();
            for home in [from, to] {
                assert_eq!(fs::metadata(there(home)).unwrap().nlink(), 2, "{}", home.display());
                assert_eq!(names(&there(home)), [""; 0]);
            }
        }
    }
}

#[test]
fn open_files_outlive_their_names() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "orphans") {
        for n in 0..2 {
            let remover = if n == 0 { place.here.clone() } else { place.there("") };
            for len in [100, 300_000] {
                let what = format!("{}, removed by {}", place.what, remover.display());
                let name = format!("f{n}-{len}");
                let content = Random::new(4).bytes(len);
                create(&place.back(&name), &content).unwrap();
                let mut file = open_flags(&place.here.join(&name), 0).unwrap();
                place.there(&name);
                fs::remove_file(remover.join(&name)).unwrap();
                assert!(!exists(&place.back(&name)), "{what}");
                thread::sleep(Duration::from_millis(300));
                let mut found = Vec::new();
                file.read_to_end(&mut found).unwrap();
                same_bytes(&what, &found, &content);
                assert_eq!(file.metadata().unwrap().nlink(), 0, "{what}");
                // It can still be changed.
                file.write_all(b"after").unwrap();
                file.set_permissions(Permissions::from_mode(0o600)).unwrap();
                file.sync_all().unwrap();
                file.rewind().unwrap();
                found.clear();
                file.read_to_end(&mut found).unwrap();
                same_bytes(&what, &found, &[&content[..], b"after"].concat());
                // The name is free again, for another file.
                create(&place.here.join(&name), b"another").unwrap();
                assert_eq!(text(&place.there(&name)), "another", "{what}");
                assert_ne!(
                    fs::metadata(place.here.join(&name)).unwrap().ino(),
                    file.metadata().unwrap().ino(),
                    "{what}"
                );
            }
            // Replaced by a rename.
            let old = format!("old{n}");
            create(&place.back(&old), b"old").unwrap();
            let mut opened = File::open(place.here.join(&old)).unwrap();
            place.there(&old);
            create(&remover.join("new"), b"new").unwrap();
            fs::rename(remover.join("new"), remover.join(&old)).unwrap();
            let mut found = String::new();
            opened.read_to_string(&mut found).unwrap();
            assert_eq!((found.as_str(), text(&place.back(&old)).as_str()), ("old", "new"), "{}", place.what);
            // An open directory that is removed is empty, and takes no new names.
            fs::create_dir(place.here.join("d")).unwrap();
            let directory = File::open(place.here.join("d")).unwrap();
            place.there("d");
            fs::remove_dir(remover.join("d")).unwrap();
            place.back("d");
            let opened = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&directory)));
            refused(create(&opened.join("x"), b""), Errno::NOENT);
        }
    }
}

#[test]
fn exclusive_creation_has_one_winner() {
    const ROUNDS: usize = 60;
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    for home in ["us", "eu", ""] {
        let directory = format!("{home}/exclusive");
        fs::create_dir(cluster.path("us", &directory)).unwrap();
        cluster.sync_all();
        let barrier = Barrier::new(REGIONS.len());
        let results: Vec<Vec<bool>> = thread::scope(|scope| {
            let racers = REGIONS.map(|region| {
                let (directory, barrier) = (cluster.path(region, &directory), &barrier);
                scope.spawn(move || {
                    let attempt = |round: usize| {
                        barrier.wait();
                        let name = directory.join(format!("round-{round}"));
                        // Files by O_EXCL, directories, symlinks and links: all are exclusive.
                        let result = match round % 4 {
                            0 => create(&name, region.as_bytes()),
                            1 => fs::create_dir(&name),
                            2 => symlink(region, &name),
                            _ => {
                                let own = directory.join(format!("own-{region}"));
                                fs::write(&own, region).and_then(|()| fs::hard_link(&own, &name))
                            }
                        };
                        match result {
                            Ok(()) => true,
                            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => false,
                            Err(error) => panic!("round {round} from {region}: {error}"),
                        }
                    };
                    (0..ROUNDS).map(attempt).collect()
                })
            });
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        cluster.sync_all();
        for round in 0..ROUNDS {
            let winners: Vec<_> =
                REGIONS.iter().zip(&results).filter(|(_, won)| won[round]).map(|(region, _)| region).collect();
            assert_eq!(winners.len(), 1, "/{directory} round {round}: {winners:?} won");
            if round % 4 == 0 {
                let content = text(&cluster.path("ap", &directory).join(format!("round-{round}")));
                assert_eq!(content, **winners[0], "/{directory} round {round}");
            }
        }
    }
}

/// Which handles.
type Kind = fn(&mut OpenOptions) -> &mut OpenOptions;

#[test]
fn synchronous_writes_survive_the_death_of_their_mount() {
    let cluster = Cluster::up(Options::default());
    let kinds: [(&str, Kind); 3] = [
        ("writing", |options| options.write(true).create_new(true)),
        ("both", |options| options.read(true).write(true).create_new(true)),
        ("appending", |options| options.append(true).create(true)),
    ];
    let mut files = Vec::new();
    for (name, kind) in kinds {
        for (sync, flag) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
            let name = format!("us/{name}-{sync}");
            let mut file = kind(OpenOptions::new().custom_flags(flag)).open(cluster.path("us", &name)).unwrap();
            file.write_all(b"short").unwrap();
            file.write_all(&vec![b'x'; 100_000]).unwrap();
            files.push((name, file));
        }
    }
    // What nobody has brought home is lost with it, and it does that by itself only after seconds.
    cluster.kill(&cluster.process(&Part::Mount("us".into())));
    for (name, _open) in &files {
        let path = cluster.path("eu", name);
        let content = eventually(Duration::from_secs(10), name, || {
            fs::read(&path).ok().filter(|content| content.len() == 100_005)
        });
        assert!(content.starts_with(b"shortx"), "{name}");
    }
}

#[test]
fn appends_of_all_mounts_interleave_whole() {
    const LINES: usize = 60;
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    for (home, len) in [("us", 40), ("eu", 900), ("", 40), ("ap", 20_000)] {
        let file = format!("{home}/appended");
        thread::scope(|scope| {
            for region in REGIONS {
                for writer in 0..2 {
                    let path = cluster.path(region, &file);
                    scope.spawn(move || {
                        let mut file = open_append(&path).unwrap();
                        for line in 0..LINES {
                            let head = format!("{region}-{writer}-{line:04}-");
                            let line = format!("{head}{}\n", "x".repeat(len - head.len() - 1));
                            file.write_all(line.as_bytes()).unwrap();
                            if line.len() % 3 == 0 {
                                file.sync_data().unwrap();
                            }
                        }
                    });
                }
            }
        });
        cluster.sync_all();
        for region in REGIONS {
            let content = text(&cluster.path(region, &file));
            let torn: Vec<_> = content.lines().enumerate().filter(|(_, line)| line.len() != len - 1).collect();
            assert!(torn.is_empty(), "{file} from {region}: {} torn lines: {}", torn.len(), summary(&torn));
            assert_eq!(content.lines().count(), 6 * LINES, "{file} from {region}");
            for writer in REGIONS.iter().flat_map(|region| [format!("{region}-0-"), format!("{region}-1-")]) {
                let own: Vec<_> = content.lines().filter_map(|line| line.strip_prefix(&writer)).collect();
                assert!(own.is_sorted() && own.len() == LINES, "{file} from {region}: {writer}: {} lines", own.len());
            }
        }
    }
}

/// Number, length, start and end of the first few lines, for a message.
fn summary(lines: &[(usize, &str)]) -> String {
    let part = |line: &str| format!("{:?}…{:?}", &line[..line.len().min(20)], &line[line.len().saturating_sub(8)..]);
    let all = lines.iter().take(8).map(|(at, line)| format!("{at}: {} bytes {}", line.len(), part(line)));
    all.collect::<Vec<_>>().join(", ")
}

/// Names, with the offsets behind them, from an offset on.
fn listed(directory: &Path, from: i64) -> Vec<(String, i64)> {
    let mut stream = rustix::fs::Dir::new(File::open(directory).unwrap()).unwrap();
    if from != 0 {
        stream.seek(from).unwrap();
    }
    let entries = stream.map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().to_str().unwrap().to_owned(), entry.offset()));
    named.filter(|(name, _)| name != "." && name != "..").collect()
}

#[test]
fn listing_is_stable_while_others_add_and_remove() {
    const STABLE: usize = 400;
    let cluster = Cluster::up(Options::default());
    for home in ["us", ""] {
        let directory = format!("{home}/listed");
        let here = cluster.path("us", &directory);
        fs::create_dir(&here).unwrap();
        for n in 0..STABLE {
            File::create(here.join(format!("stable-{n:04}"))).unwrap();
        }
        let expected: Vec<_> = (0..STABLE).map(|n| format!("stable-{n:04}")).collect();
        cluster.sync_all();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            for region in ["eu", "ap"] {
                let (directory, stop) = (cluster.path(region, &directory), &stop);
                scope.spawn(move || {
                    let mut random = Random::new(5);
                    while !stop.load(Ordering::Relaxed) {
                        let name = directory.join(format!("passing-{region}-{}", random.below(60)));
                        if fs::remove_file(&name).is_err() {
                            File::create(&name).unwrap();
                        }
                    }
                });
            }
            for round in 0..30 {
                for region in REGIONS {
                    let found = names(&cluster.path(region, &directory));
                    let stable: Vec<_> = found.iter().filter(|name| name.starts_with("stable")).cloned().collect();
                    assert!(stable == expected, "round {round} from {region}: {} stable names", stable.len());
                    assert!(
                        !found.windows(2).any(|pair| pair[0] == pair[1]),
                        "round {round} from {region}: a name twice"
                    );
                }
            }
        });
        cluster.sync_all();

        // An offset stands for its place in the listing, whatever is removed before it, also in another handle.
        let offsets: Vec<_> = listed(&here, 0);
        for at in [0, 1, 57, 200, STABLE - 1] {
            let rest: Vec<_> = listed(&here, offsets[at].1).into_iter().map(|(name, _)| name).collect();
            let expected: Vec<_> = offsets[at + 1..].iter().map(|(name, _)| name.clone()).collect();
            assert!(rest == expected, "/{home} after {at}: {} names instead of {}", rest.len(), expected.len());
        }
        let gone = offsets[..100].iter().filter(|(name, _)| name.starts_with("passing"));
        for (name, _) in gone.clone() {
            fs::remove_file(here.join(name)).unwrap();
        }
        let rest = listed(&here, offsets[120].1);
        assert!(rest.iter().map(|(name, _)| name).eq(offsets[121..].iter().map(|(name, _)| name)), "/{home}");

        // A listing that pauses goes on where it was, whatever happened in between.
        let mut entries = fs::read_dir(&here).unwrap();
        let mut found: Vec<_> = entries.by_ref().take(50).map(|entry| entry.unwrap().file_name()).collect();
        for n in 0..STABLE {
            if n % 2 == 0 {
                fs::remove_file(cluster.path("eu", &directory).join(format!("stable-{n:04}"))).unwrap();
            }
        }
        cluster.sync_all();
        found.extend(entries.map(|entry| entry.unwrap().file_name()));
        found.sort();
        assert!(!found.windows(2).any(|pair| pair[0] == pair[1]), "a name twice");
        for name in expected.iter().skip(1).step_by(2) {
            assert!(found.iter().any(|found| found == name.as_str()), "{name} was not listed");
        }
        // Emptying a directory while it is listed, as rm -r does.
        fs::remove_dir_all(&here).unwrap();
        assert!(!exists(&cluster.seen("ap", &here)));
    }
}

#[test]
fn mapped_files_are_written_and_read() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "mapped") {
        let here = place.here.join("map");
        let mut content = Random::new(6).bytes(3 * 4096 + 100);
        create(&here, &content).unwrap();
        let file = open_flags(&here, 0).unwrap();
        let mut map = SharedMap::new(&file, content.len()).unwrap();
        same_bytes(&place.what, map.bytes(), &content);
        map.bytes()[5000..5004].copy_from_slice(b"mmap");
        map.sync().unwrap();
        file.sync_all().unwrap();
        content[5000..5004].copy_from_slice(b"mmap");
        same_bytes(&place.what, &fs::read(place.there("map")).unwrap(), &content);
        drop((map, file));

        // What another mount writes is read through a new mapping.
        fs::write(place.there("map"), b"other").unwrap();
        let file = open_flags(&place.back("map"), 0).unwrap();
        let mut map = SharedMap::new(&file, 5).unwrap();
        same_bytes(&place.what, map.bytes(), b"other");
        // Written by the mapping alone: closing is enough.
        map.bytes()[0] = b'O';
        drop((map, file));
        eventually(Duration::from_secs(5), "the closed mapping's write", || {
            (text(&place.there("map")) == "Other").then_some(())
        });
    }
}

#[test]
fn owners_and_modes_follow_posix() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "modes") {
        let here = place.here.join("f");
        let (there, back) = (|| place.there("f"), || place.back("f"));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        create(&here, b"x").unwrap();
        fs::set_permissions(&here, Permissions::from_mode(0o604)).unwrap();
        assert_eq!(mode(&there()), 0o604, "{}", place.what);
        let (read, output) = as_user(NOBODY, "cat \"$1\"", &there());
        assert!(read && output == "x", "{}: others may read: {output}", place.what);
        let (written, output) = as_user(NOBODY, "echo y >> \"$1\"", &there());
        assert!(!written && output.contains("Permission denied"), "{}: others may not write: {output}", place.what);
        let (changed, output) = as_user(NOBODY, "chmod 777 \"$1\"", &there());
        assert!(!changed && output.contains("not permitted"), "{}: only the owner changes modes: {output}", place.what);
        chown(&here, Some(NOBODY), Some(NOBODY)).unwrap();
        let owner = fs::metadata(there()).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (NOBODY, NOBODY), "{}", place.what);
        let (written, output) = as_user(NOBODY, "echo y >> \"$1\" && chmod 640 \"$1\"", &there());
        assert!(written, "{}: the owner writes: {output}", place.what);
        assert_eq!(mode(&back()), 0o640, "{}", place.what);
        let (given, output) = as_user(NOBODY, "chown 0 \"$1\"", &there());
        assert!(!given, "{}: nobody gives files away: {output}", place.what);

        // Set-user-id goes when an unprivileged process writes, truncates or changes the group; not when root writes.
        for script in ["echo z >> \"$1\"", ": > \"$1\"", "chgrp 65534 \"$1\""] {
            fs::set_permissions(&here, Permissions::from_mode(0o6777)).unwrap();
            assert_eq!(mode(&there()), 0o6777, "{}", place.what);
            let (done, output) = as_user(NOBODY, script, &there());
            assert!(done, "{}: {script}: {output}", place.what);
            assert_eq!(mode(&back()), 0o777, "{}: {script}", place.what);
        }
        // So it does when the owner of anything but a directory changes, whoever does that.
        let pipe = place.here.join("pipe");
        make_node(&pipe, FileType::Fifo, 0).unwrap();
        let directory = place.here.join("set-ids");
        fs::create_dir(&directory).unwrap();
        for (path, left) in [(&here, 0o777), (&pipe, 0o777), (&directory, 0o6777)] {
            fs::set_permissions(path, Permissions::from_mode(0o6777)).unwrap();
            chown(path, None, Some(1234)).unwrap();
            assert_eq!(mode(&place.there(path.file_name().unwrap().to_str().unwrap())), left, "{}", place.what);
        }
        fs::set_permissions(&here, Permissions::from_mode(0o4755)).unwrap();
        open_append(&here).unwrap().write_all(b"root").unwrap();
        assert_eq!(mode(&there()), 0o4755, "{}", place.what);

        // Sticky directories: only the owner of a file or of the directory removes and renames.
        let sticky = place.here.join("sticky");
        fs::create_dir(&sticky).unwrap();
        fs::set_permissions(&sticky, Permissions::from_mode(0o1777)).unwrap();
        create(&sticky.join("roots"), b"").unwrap();
        for script in ["rm -f \"$1/roots\"", "mv \"$1/roots\" \"$1/renamed\""] {
            let (done, output) = as_user(NOBODY, script, &place.there("sticky"));
            assert!(!done && output.contains("not permitted"), "{}: {script}: {output}", place.what);
        }
        let (own, output) =
            as_user(NOBODY, "echo a > \"$1/own\" && mv \"$1/own\" \"$1/o\" && rm \"$1/o\"", &place.back("sticky"));
        assert!(own, "{}: {output}", place.what);

        // New files of a set-group-id directory have its group; new directories also the bit.
        let shared = place.here.join("shared");
        fs::create_dir(&shared).unwrap();
        chown(&shared, None, Some(1234)).unwrap();
        fs::set_permissions(&shared, Permissions::from_mode(0o2777)).unwrap();
        let (made, output) = as_user(NOBODY, "umask 027; echo a > \"$1/f\" && mkdir \"$1/d\"", &place.there("shared"));
        assert!(made, "{}: {output}", place.what);
        place.back("shared");
        let (file, directory) = (fs::metadata(shared.join("f")).unwrap(), fs::metadata(shared.join("d")).unwrap());
        assert_eq!((file.gid(), file.uid(), file.mode() & 0o7777), (1234, NOBODY, 0o640), "{}", place.what);
        assert_eq!((directory.gid(), directory.mode() & 0o7777), (1234, 0o2750), "{}", place.what);
    }
}

#[test]
fn times_change_as_posix_says() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "times") {
        let here = place.here.join("f");
        create(&here, b"x").unwrap();
        let seen = || fs::symlink_metadata(place.there("f")).unwrap();
        let age = seen().modified().unwrap().elapsed().unwrap_or_default();
        assert!(age < Duration::from_secs(60), "{}: a new file is {age:?} old", place.what);

        set_times(&here, time(1_000_000_000, 123_456_789), time(4_000_000_000, 987_654_321)).unwrap();
        let now = seen();
        assert_eq!((now.atime(), now.atime_nsec()), (1_000_000_000, 123_456_789), "{}", place.what);
        assert_eq!((now.mtime(), now.mtime_nsec()), (4_000_000_000, 987_654_321), "{}", place.what);
        set_times(&here, time(-5, 0), time(0, 0)).unwrap();
        assert_eq!((seen().atime(), seen().mtime()), (-5, 0), "{}: before 1970", place.what);

        let changed = |what: &str, expect_content: bool, act: &dyn Fn()| {
            let stamp = |of: fs::Metadata| ((of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec()));
            let before = stamp(seen());
            thread::sleep(Duration::from_millis(15));
            act();
            let after = stamp(seen());
            assert!(after.1 > before.1, "{}: {what} must change ctime: {before:?} {after:?}", place.what);
            assert_eq!(after.0 != before.0, expect_content, "{}: {what}: mtime {before:?} {after:?}", place.what);
        };
        changed("write", true, &|| open_append(&here).unwrap().write_all(b"y").unwrap());
        changed("truncate", true, &|| open_flags(&here, 0).unwrap().set_len(1).unwrap());
        changed("chmod", false, &|| fs::set_permissions(&here, Permissions::from_mode(0o600)).unwrap());
        changed("chown", false, &|| chown(&here, Some(1), Some(1)).unwrap());
        changed("link", false, &|| fs::hard_link(&here, place.here.join("g")).unwrap());
        changed("unlink", false, &|| fs::remove_file(place.here.join("g")).unwrap());
        changed("rename", false, &|| {
            fs::rename(&here, place.here.join("g")).unwrap();
            fs::rename(place.here.join("g"), &here).unwrap();
        });
        changed("setxattr", false, &|| {
            rustix::fs::setxattr(&here, "user.a", b"b", XattrFlags::empty()).unwrap();
        });

        // A directory's times change with its names, and only with those.
        let of_directory = || fs::metadata(place.there("")).unwrap().modified().unwrap();
        let directory_changed = |what: &str, expected: bool, act: &dyn Fn()| {
            let before = of_directory();
            thread::sleep(Duration::from_millis(15));
            act();
            assert_eq!(of_directory() > before, expected, "{}: {what}", place.what);
        };
        directory_changed("create", true, &|| create(&place.here.join("h"), b"").unwrap());
        directory_changed("write", false, &|| fs::write(place.here.join("h"), b"more").unwrap());
        directory_changed("rename", true, &|| fs::rename(place.here.join("h"), place.here.join("i")).unwrap());
        directory_changed("unlink", true, &|| fs::remove_file(place.here.join("i")).unwrap());
        directory_changed("mkdir", true, &|| fs::create_dir(place.here.join("j")).unwrap());
        directory_changed("rmdir", true, &|| fs::remove_dir(place.here.join("j")).unwrap());
        let future = SystemTime::now() + Duration::from_secs(5);
        assert!(of_directory() < future, "{}: time runs ahead", place.what);
    }
}

#[test]
fn extended_attributes_are_kept() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "xattrs") {
        let here = place.here.join("f");
        let there = || place.there("f");
        create(&here, b"").unwrap();
        let get = |path: &Path, name: &str| {
            let mut value = vec![0; 1 << 16];
            rustix::fs::getxattr(path, name, &mut value).map(|len| value[..len].to_vec())
        };
        let list = |path: &Path| {
            let mut list = vec![0_u8; 1 << 16];
            let len = rustix::fs::listxattr(path, &mut list).unwrap();
            let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
            let mut names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
            names.sort();
            names
        };
        refused(get(&there(), "user.none"), Errno::NODATA);
        let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&here, name, value, flags);
        let large = Random::new(7).bytes(if is_reference() { 2000 } else { 20_000 });
        set("user.colour", b"green", XattrFlags::empty()).unwrap();
        set("user.large", &large, XattrFlags::CREATE).unwrap();
        set("user.empty", b"", XattrFlags::empty()).unwrap();
        refused(set("user.colour", b"red", XattrFlags::CREATE), Errno::EXIST);
        refused(set("user.other", b"red", XattrFlags::REPLACE), Errno::NODATA);
        set("user.colour", b"blue", XattrFlags::REPLACE).unwrap();
        assert_eq!(get(&there(), "user.colour").unwrap(), b"blue", "{}", place.what);
        same_bytes(&place.what, &get(&there(), "user.large").unwrap(), &large);
        assert_eq!(get(&there(), "user.empty").unwrap(), b"", "{}", place.what);
        assert_eq!(list(&there()), ["user.colour", "user.empty", "user.large"], "{}", place.what);
        let mut short = [0; 2];
        refused(rustix::fs::getxattr(there(), "user.colour", &mut short), Errno::RANGE);
        rustix::fs::removexattr(&here, "user.large").unwrap();
        refused(rustix::fs::removexattr(&here, "user.large"), Errno::NODATA);
        assert_eq!(list(&there()), ["user.colour", "user.empty"], "{}", place.what);
        // Access control lists are refused: they would not be enforced.
        if !is_reference() {
            let list = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
            refused(set("system.posix_acl_access", list, XattrFlags::empty()), Errno::NOTSUP);
        }
        // Directories have them too, and they move along.
        rustix::fs::setxattr(&place.here, "user.of", b"directory", XattrFlags::empty()).unwrap();
        assert_eq!(get(&place.there(""), "user.of").unwrap(), b"directory", "{}", place.what);
        let target = cluster.path("us", "eu").join(format!("xattr-{}", place.what.len()));
        let source = cluster.seen("us", &here);
        fs::rename(&source, &target).unwrap();
        assert_eq!(get(&cluster.seen("ap", &target), "user.colour").unwrap(), b"blue", "{}", place.what);
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn errors_are_those_of_posix() {
    let cluster = Cluster::up(Options::default());
    for place in places(&cluster, "errors") {
        create(&place.here.join("file"), b"x").unwrap();
        fs::create_dir(place.here.join("full")).unwrap();
        create(&place.here.join("full/x"), b"x").unwrap();
        fs::create_dir(place.here.join("empty")).unwrap();
        let directory = place.there("");
        let file = directory.join("file");
        refused(File::open(directory.join("absent")), Errno::NOENT);
        refused(File::open(directory.join("absent/below")), Errno::NOENT);
        refused(create(&directory.join("absent/below"), b""), Errno::NOENT);
        refused(File::open(file.join("below")), Errno::NOTDIR);
        refused(create(&file.join("below"), b""), Errno::NOTDIR);
        refused(create(&file, b""), Errno::EXIST);
        refused(fs::create_dir(&file), Errno::EXIST);
        refused(fs::create_dir(directory.join("full")), Errno::EXIST);
        refused(symlink("x", &file), Errno::EXIST);
        refused(make_node(&file, FileType::Fifo, 0), Errno::EXIST);
        refused(fs::remove_file(directory.join("absent")), Errno::NOENT);
        refused(fs::remove_file(directory.join("empty")), Errno::ISDIR);
        refused(fs::remove_dir(&file), Errno::NOTDIR);
        refused(fs::remove_dir(directory.join("full")), Errno::NOTEMPTY);
        refused(fs::remove_dir(directory.join("absent")), Errno::NOENT);
        refused(fs::rename(directory.join("absent"), &file), Errno::NOENT);
        refused(fs::rename(&file, directory.join("absent/x")), Errno::NOENT);
        refused(fs::rename(&file, directory.join("empty")), Errno::ISDIR);
        refused(fs::rename(directory.join("empty"), &file), Errno::NOTDIR);
        refused(fs::rename(directory.join("full"), directory.join("full/x/y")), Errno::NOTDIR);
        refused(fs::rename(directory.join("empty"), directory.join("empty/inside")), Errno::INVAL);
        refused(fs::read_link(&file), Errno::INVAL);
        refused(File::options().write(true).open(directory.join("full")), Errno::ISDIR);
        refused(fs::read_dir(&file), Errno::NOTDIR);
        refused(fs::hard_link(directory.join("absent"), directory.join("l")), Errno::NOENT);
        refused(File::options().read(true).custom_flags(libc::O_DIRECTORY).open(&file), Errno::NOTDIR);
        symlink("loop", place.here.join("loop")).unwrap();
        place.there("loop");
        refused(File::open(directory.join("loop")), Errno::LOOP);
        refused(File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(directory.join("loop")), Errno::LOOP);
        refused(rustix::fs::ftruncate(open_flags(&file, 0).unwrap(), 1 << 63), Errno::INVAL);

        // Names of 255 bytes, of any bytes, but no longer.
        let longest = "ä".repeat(127) + "z";
        create(&place.here.join(&longest), b"long").unwrap();
        assert_eq!(text(&place.there(&longest)), "long", "{}", place.what);
        refused(create(&directory.join("x".repeat(256)), b""), Errno::NAMETOOLONG);
        refused(fs::create_dir(directory.join("x".repeat(256))), Errno::NAMETOOLONG);
        refused(fs::rename(&file, directory.join("x".repeat(256))), Errno::NAMETOOLONG);
        use std::os::unix::ffi::OsStrExt;
        for name in [&b"\xff\xfe not utf8"[..], b" ", b"new\nline", b"...", b"back\\slash"] {
            let name = std::ffi::OsStr::from_bytes(name);
            create(&place.here.join(name), name.as_bytes()).unwrap();
            assert_eq!(fs::read(place.there(name)).unwrap(), name.as_bytes(), "{}", place.what);
        }
        let statfs = rustix::fs::statvfs(&directory).unwrap();
        assert_eq!(statfs.f_namemax, 255, "{}", place.what);
        assert!(
            statfs.f_bsize > 0 && statfs.f_blocks > 0 && statfs.f_files > 0,
            "{}: {} {} {}",
            place.what,
            statfs.f_bsize,
            statfs.f_blocks,
            statfs.f_files
        );
    }
    // A tree deeper than any single path.
    let mut path = cluster.path("us", "us");
    let directory = "d".repeat(200);
    for _ in 0..15 {
        path.push(&directory);
        fs::create_dir(&path).unwrap();
    }
    create(&path.join("deep"), b"deep").unwrap();
    assert_eq!(text(&cluster.seen("ap", &path.join("deep"))), "deep");
    fs::remove_dir_all(cluster.path("eu", "us").join(&directory)).unwrap();
    cluster.sync("eu", "us");
    assert!(!exists(&cluster.path("us", "us").join(&directory)));
}

#[test]
fn one_mount_holds_many_handles_and_threads() {
    let cluster = Cluster::up(Options::default());
    let directory = cluster.path("us", "us/many");
    fs::create_dir(&directory).unwrap();
    // Many files open at once.
    let files: Vec<_> = (0..300)
        .map(|n| File::options().read(true).write(true).create_new(true).open(directory.join(n.to_string())).unwrap())
        .collect();
    thread::scope(|scope| {
        for (worker, part) in files.chunks(30).enumerate() {
            scope.spawn(move || {
                for (n, file) in part.iter().enumerate() {
                    file.write_all_at(format!("{}", worker * 30 + n).as_bytes(), 0).unwrap();
                }
            });
        }
    });
    drop(files);
    cluster.sync("us", "eu");
    for n in 0..300 {
        assert_eq!(text(&cluster.path("eu", "us/many").join(n.to_string())), n.to_string());
    }
}

#[test]
fn open_directories_stay_usable_when_they_move_to_another_group() {
    let cluster = Cluster::up(Options::default());
    let directory = cluster.path("us", "us/many");
    fs::create_dir(&directory).unwrap();
    for name in ["7", "8"] {
        create(&directory.join(name), b"").unwrap();
    }
    let opened = File::open(&directory).unwrap();
    fs::rename(&directory, cluster.path("us", "eu/many")).unwrap();
    rustix::fs::unlinkat(&opened, "7", rustix::fs::AtFlags::empty()).unwrap();
    rustix::fs::renameat(&opened, "8", CWD, cluster.path("us", "us/eight")).unwrap();
    cluster.sync("us", "ap");
    assert!(!exists(&cluster.path("ap", "eu/many/7")) && exists(&cluster.path("ap", "us/eight")));
}

#[test]
fn locks_hold_between_mounts() {
    let cluster = Cluster::up(Options::default());
    for home in ["us", "eu", ""] {
        let path = cluster.path("us", Path::new(home).join("locked"));
        create(&path, b"").unwrap();
        let here = open_flags(&path, 0).unwrap();
        let there = open_flags(&cluster.seen("eu", &path), 0).unwrap();
        type Lock = fn(&File, FlockOperation) -> rustix::io::Result<()>;
        let kinds: [(&str, Lock); 2] =
            [("flock", |file, how| flock(file, how)), ("fcntl", |file, how| fcntl_lock(file, how))];
        for (kind, lock) in kinds {
            if is_reference() && kind == "fcntl" {
                continue;
            }
            let what = format!("{kind} on /{home}");
            let busy = |result: rustix::io::Result<()>| match result {
                Err(error) => [Errno::AGAIN, Errno::ACCESS].contains(&error),
                Ok(()) => false,
            };
            lock(&here, FlockOperation::NonBlockingLockExclusive).unwrap();
            assert!(busy(lock(&there, FlockOperation::NonBlockingLockExclusive)), "{what}: two exclusive locks");
            assert!(busy(lock(&there, FlockOperation::NonBlockingLockShared)), "{what}: shared beside exclusive");
            lock(&here, FlockOperation::Unlock).unwrap();
            lock(&there, FlockOperation::NonBlockingLockShared).unwrap();
            lock(&here, FlockOperation::NonBlockingLockShared).unwrap();
            assert!(busy(lock(&here, FlockOperation::NonBlockingLockExclusive)), "{what}: exclusive beside shared");
            lock(&there, FlockOperation::Unlock).unwrap();
            lock(&here, FlockOperation::Unlock).unwrap();

            // One waits for the other, and for its end.
            lock(&there, FlockOperation::NonBlockingLockExclusive).unwrap();
            let waited = thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    let started = Instant::now();
                    lock(&here, FlockOperation::LockExclusive).unwrap();
                    started.elapsed()
                });
                thread::sleep(Duration::from_millis(500));
                lock(&there, FlockOperation::Unlock).unwrap();
                waiter.join().unwrap()
            });
            assert!(waited > Duration::from_millis(300), "{what}: waited only {waited:?}");
            let closed = open_flags(&cluster.path("eu", Path::new(home).join("locked")), 0).unwrap();
            assert!(busy(lock(&closed, FlockOperation::NonBlockingLockExclusive)), "{what}");
            lock(&here, FlockOperation::Unlock).unwrap();
            lock(&closed, FlockOperation::NonBlockingLockExclusive).unwrap();
            drop(closed);
            let freed = || lock(&here, FlockOperation::NonBlockingLockExclusive).ok();
            eventually(Duration::from_secs(5), "the lock of a closed file to be free", freed);
            lock(&here, FlockOperation::Unlock).unwrap();
        }
    }
}
