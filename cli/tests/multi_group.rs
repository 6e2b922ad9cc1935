//! Operations over several groups: atomic everywhere, from any mount, while others look and interfere.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, REGIONS, binary, eventually, is_reference};
use common::files::{Random, StopAtEnd, create, exists, names, open_append, rename_with, text};
use common::tree::summary;
use rustix::fs::RenameFlags;
use serde_json::Value;

/// Exactly the errors that losing a race may give.
fn lost(error: &io::Error, expected: &[i32]) -> bool {
    error.raw_os_error().is_some_and(|errno| expected.contains(&errno))
}

#[test]
fn moving_files_shows_one_name_at_any_time() {
    const FILES: usize = 40;
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    for (mover, from, to) in [("us", "us", "eu"), ("ap", "us", "eu"), ("eu", "", "ap"), ("us", "eu", "")] {
        let what = format!("from /{from} to /{to} by {mover}");
        let directories = [from, to].map(|home| format!("{home}/files-{mover}-{from}-{to}-{}", home.len()));
        for directory in &directories {
            fs::create_dir(cluster.path(mover, directory)).unwrap();
        }
        for n in 0..FILES {
            create(&cluster.path(mover, &directories[0]).join(n.to_string()), format!("file {n}").as_bytes()).unwrap();
        }
        cluster.sync_all();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            for region in REGIONS {
                let [source, target] = [0, 1].map(|n| cluster.path(region, &directories[n]));
                let (stop, what) = (&stop, &what);
                scope.spawn(move || {
                    let (mut rounds, mut random) = (0, Random::new(8));
                    while !stop.load(Ordering::Relaxed) {
                        rounds += 1;
                        let n = random.below(FILES as u64).to_string();
                        let (old, new) = (source.join(&n), target.join(&n));
                        // Each file moves once: gone from the old place means that it is in the new one, and the reverse.
                        if !exists(&old) {
                            assert!(exists(&new), "{what}: {region} sees neither name of {n}");
                            assert_eq!(text(&new), format!("file {n}"), "{what}: {region}");
                        }
                        if exists(&new) {
                            assert!(!exists(&old), "{what}: {region} sees both names of {n}");
                        }
                        let (left, arrived) = (names(&source), names(&target));
                        let all: BTreeSet<_> = left.iter().chain(&arrived).collect();
                        assert_eq!(
                            all.len(),
                            FILES,
                            "{what}: {region} lists neither name of some: {left:?} {arrived:?}"
                        );
                        let (arrived, left) = (names(&target), names(&source));
                        let both: Vec<_> = left.iter().filter(|name| arrived.contains(name)).collect();
                        assert!(both.is_empty(), "{what}: {region} lists both names of {both:?}");
                    }
                    eprintln!("{what}: {region} looked {rounds} times");
                });
            }
            let started = Instant::now();
            for n in 0..FILES {
                let [old, new] = [0, 1].map(|at| cluster.path(mover, &directories[at]).join(n.to_string()));
                fs::rename(old, new).unwrap();
            }
            eprintln!("{what}: {FILES} renames took {:?}", started.elapsed());
            cluster.sync_all();
        });
        for region in REGIONS {
            assert_eq!(names(&cluster.path(region, &directories[0])), [""; 0], "{what}: {region}");
            assert_eq!(names(&cluster.path(region, &directories[1])).len(), FILES, "{what}: {region}");
        }
    }
}

/// A move takes long, and what a mount knew of its names before must not outlive the first effect that it sees.
#[test]
fn slow_moves_show_one_name_to_who_knew_the_old_state() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    if !is_reference() {
        cluster.globalfs_ok(&["wan", "delay", "us", "eu", "120ms"]);
    }
    for (mover, from, to) in
        [("ap", "us", "eu"), ("eu", "us", "eu"), ("us", "eu", "us"), ("us", "us", ""), ("eu", "", "eu")]
    {
        for round in 0..2 {
            let [old, new] =
                [(from, "old"), (to, "new")].map(|(home, what)| format!("{home}/{what}-{mover}-{from}-{to}-{round}"));
            create(&cluster.path(mover, &old), b"moving").unwrap();
            cluster.sync_all();
            thread::scope(|scope| {
                for region in REGIONS {
                    let [old, new] = [&old, &new].map(|path| cluster.path(region, path));
                    scope.spawn(move || {
                        let started = Instant::now();
                        loop {
                            let what = format!("{region} while {mover} moves {} to {}", old.display(), new.display());
                            if !exists(&old) {
                                assert!(exists(&new), "{what}: neither name");
                                assert_eq!(text(&new), "moving", "{what}");
                                assert!(
                                    !names(old.parent().unwrap()).contains(&file_name(&old)),
                                    "{what}: listed still"
                                );
                                assert!(
                                    names(new.parent().unwrap()).contains(&file_name(&new)),
                                    "{what}: not listed yet"
                                );
                                break;
                            }
                            if exists(&new) {
                                assert!(!exists(&old), "{what}: both names");
                            }
                            assert!(started.elapsed() < Duration::from_secs(20), "{what}: no end");
                        }
                    });
                }
                thread::sleep(Duration::from_millis(150));
                fs::rename(cluster.path(mover, &old), cluster.path(mover, &new)).unwrap();
            });
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn moving_trees_shows_one_name_at_any_time() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    let mut random = Random::new(9);
    // A tree with a thousand entries, and an empty directory.
    let tree = cluster.path("us", "us/tree-0");
    for directory in 0..20 {
        let directory = tree.join(format!("d{directory}/e/f"));
        fs::create_dir_all(&directory).unwrap();
        for file in 0..45 {
            fs::write(directory.join(file.to_string()), random.bytes(20)).unwrap();
        }
    }
    fs::create_dir(cluster.path("us", "us/empty-0")).unwrap();
    let before = summary(&tree);
    let homes = ["us", "eu", "", "ap", "eu", "us", "", "eu", "us"];
    let place = |what: &str, n: usize| format!("{}/{what}-{n}", homes[n % homes.len()]);
    const MOVES: usize = 18;
    cluster.sync_all();
    let (stop, at) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for region in REGIONS {
            for what in ["tree", "empty"] {
                let places: Vec<_> = (0..=MOVES).map(|n| cluster.path(region, place(what, n))).collect();
                let (stop, at) = (&stop, &at);
                scope.spawn(move || {
                    let mut rounds = 0;
                    while !stop.load(Ordering::Relaxed) {
                        rounds += 1;
                        // The tree only moves on: who looks along its way finds it, who looks against it finds it once.
                        let around = at.load(Ordering::SeqCst).saturating_sub(5)..=MOVES;
                        let found: Vec<_> = around.clone().filter(|n| exists(&places[*n])).collect();
                        assert!(!found.is_empty(), "{region} found {what} nowhere, round {rounds}, mover at {at:?}");
                        let found: Vec<_> = around.clone().rev().filter(|n| exists(&places[*n])).collect();
                        assert!(found.len() <= 1, "{region} found {what} at {found:?}, round {rounds}");
                        // Inside it: either it has moved on, or everything is there.
                        if let ("tree", Some(n)) = (what, found.first()) {
                            match fs::read_dir(places[*n].join("d7/e/f")) {
                                Ok(entries) => assert_eq!(entries.filter(Result::is_ok).count(), 45, "{region}"),
                                Err(error) => assert!(lost(&error, &[libc::ENOENT]), "{region}: {error}"),
                            }
                        }
                    }
                    eprintln!("{region} looked {rounds} times for {what}");
                });
            }
        }
        let mut slowest = Duration::ZERO;
        for n in 1..=MOVES {
            let mover = REGIONS[n % 3];
            for what in ["tree", "empty"] {
                let started = Instant::now();
                let (old, new) = (cluster.path(mover, place(what, n - 1)), cluster.path(mover, place(what, n)));
                fs::rename(&old, &new)
                    .unwrap_or_else(|error| panic!("{} to {}: {error}", old.display(), new.display()));
                slowest = slowest.max(started.elapsed());
            }
            at.store(n, Ordering::SeqCst);
            cluster.sync(mover, REGIONS[(n + 1) % 3]);
        }
        eprintln!("the slowest of {} moves took {slowest:?}", 2 * MOVES);
        cluster.sync_all();
    });
    for region in REGIONS {
        assert!(summary(&cluster.path(region, place("tree", MOVES))) == before, "{region}");
    }
    // Over an empty directory in another group, and not over a full one.
    let here = cluster.path("eu", place("tree", MOVES));
    let (empty, full) = (cluster.path("eu", "eu/target"), cluster.path("eu", "us/full"));
    fs::create_dir_all(&empty).unwrap();
    fs::create_dir_all(full.join("x")).unwrap();
    let error = fs::rename(&here, &full).unwrap_err();
    assert!(lost(&error, &[libc::ENOTEMPTY, libc::EEXIST]), "{error}");
    fs::rename(&here, &empty).unwrap();
    assert!(summary(&cluster.seen("ap", &empty)) == before);
}

#[test]
fn concurrent_directory_moves_never_make_a_loop_or_lose_a_tree() {
    const ROUNDS: usize = 15;
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    // p and q live in different groups; each is moved below the other at the same time, from different mounts.
    for (p_home, q_home) in [("us", "eu"), ("", "us"), ("eu", "eu")] {
        let mut moved = [0, 0];
        for round in 0..ROUNDS {
            let base = cluster.path("us", "");
            let [p, q] = [(p_home, "p"), (q_home, "q")].map(|(home, name)| {
                let path = Path::new(home).join(format!("{name}-of-{p_home}-{q_home}-{round}"));
                fs::create_dir_all(base.join(&path).join("deep/deeper")).unwrap();
                create(&base.join(&path).join("deep/mark"), name.as_bytes()).unwrap();
                path
            });
            cluster.sync("us", "eu");
            cluster.sync("us", "ap");
            let barrier = Barrier::new(2);
            let results = thread::scope(|scope| {
                let attempts = [("us", &p, &q), ("eu", &q, &p)].map(|(region, what, below)| {
                    let barrier = &barrier;
                    let from = cluster.path(region, what);
                    let to = cluster.path(region, below).join("deep/deeper").join(what.file_name().unwrap());
                    scope.spawn(move || {
                        barrier.wait();
                        fs::rename(&from, &to)
                    })
                });
                attempts.map(|attempt| attempt.join().unwrap())
            });
            cluster.sync_all();
            let won = results.iter().filter(|result| result.is_ok()).count();
            assert_eq!(won, 1, "round {round} of /{p_home} and /{q_home}: {results:?}");
            for (n, result) in results.iter().enumerate() {
                match result {
                    Ok(()) => moved[n] += 1,
                    // The loser's path leads through what has moved, or into itself.
                    Err(error) => assert!(lost(error, &[libc::EINVAL, libc::ENOENT]), "round {round}: {error}"),
                }
            }
            // Both marks are reachable from the root, from every mount.
            for region in REGIONS {
                let at = |path: &Path| cluster.path(region, path);
                let (outer, inner) = if results[0].is_ok() { (&q, &p) } else { (&p, &q) };
                let below = at(outer).join("deep/deeper").join(inner.file_name().unwrap());
                assert!(exists(&at(outer).join("deep/mark")), "round {round}, {region}");
                assert!(exists(&below.join("deep/mark")), "round {round}, {region}: {}", below.display());
                assert!(!exists(&at(inner)), "round {round}, {region}");
            }
            if round % 4 == 0 {
                let outer = if results[0].is_ok() { &q } else { &p };
                fs::remove_dir_all(cluster.path("ap", outer)).unwrap();
                cluster.sync("ap", "us");
            }
        }
        eprintln!("/{p_home} and /{q_home}: won by us and eu: {moved:?}");
    }
}

#[test]
fn random_moves_of_three_mounts_keep_the_tree_a_tree() {
    const DIRECTORIES: usize = 24;
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    let base = cluster.path("us", "");
    for n in 0..DIRECTORIES {
        let directory = base.join(["us", "eu", "ap"][n % 3]).join(format!("n{n}"));
        fs::create_dir(&directory).unwrap();
        create(&directory.join("mark"), n.to_string().as_bytes()).unwrap();
    }
    cluster.sync_all();
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (seed, region) in REGIONS.into_iter().enumerate() {
            let (mount, done) = (cluster.mount(region), &done);
            scope.spawn(move || {
                let mut random = Random::new(100 + seed as u64);
                let started = Instant::now();
                while started.elapsed() < Duration::from_secs(8) {
                    let found = find_numbered(&mount);
                    if found.len() < 2 {
                        continue;
                    }
                    let (_, from) = &found[random.below(found.len() as u64) as usize];
                    let (_, below) = &found[random.below(found.len() as u64) as usize];
                    let below = if random.below(4) == 0 {
                        mount.join(["us", "eu", "ap", ""][random.below(4) as usize])
                    } else {
                        below.clone()
                    };
                    let to = below.join(from.file_name().unwrap());
                    match fs::rename(from, &to) {
                        Ok(()) => _ = done.fetch_add(1, Ordering::Relaxed),
                        // Another mount was faster, or this is no move.
                        Err(error) => assert!(
                            lost(&error, &[libc::ENOENT, libc::EINVAL, libc::ENOTEMPTY, libc::EEXIST]),
                            "{region}: {} to {}: {error}",
                            from.display(),
                            to.display()
                        ),
                    }
                }
            });
        }
    });
    cluster.sync_all();
    eprintln!("{done:?} moves");
    for region in REGIONS {
        let mut found = find_numbered(&cluster.mount(region));
        found.sort();
        let numbers: Vec<_> = found.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..DIRECTORIES).collect::<Vec<_>>(), "{region}: {found:?}");
        for (number, path) in &found {
            assert_eq!(text(&path.join("mark")), number.to_string(), "{region}");
            let below = names(path).iter().filter(|name| name.starts_with('n')).count() as u64;
            assert_eq!(fs::metadata(path).unwrap().nlink(), 2 + below, "{region}: {}", path.display());
        }
    }
}

/// The directories `n0`, `n1`… that a walk from the root finds. Others move them meanwhile: what is gone is skipped.
fn find_numbered(mount: &Path) -> Vec<(usize, PathBuf)> {
    let mut found = Vec::new();
    let mut left = vec![mount.to_owned(), mount.join("us"), mount.join("eu"), mount.join("ap")];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(number) = name.strip_prefix('n').and_then(|number| number.parse().ok()) {
                found.push((number, entry.path()));
                left.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn races_between_groups_have_one_outcome() {
    const ROUNDS: usize = 10;
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    for directory in ["us/races", "eu/races", "races"] {
        fs::create_dir(cluster.path("us", directory)).unwrap();
    }
    cluster.sync_all();
    let race = |first: &(dyn Fn() -> io::Result<()> + Sync), second: &(dyn Fn() -> io::Result<()> + Sync)| {
        let barrier = Barrier::new(2);
        let results = thread::scope(|scope| {
            let both = [first, second].map(|act| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    act()
                })
            });
            both.map(|one| one.join().unwrap())
        });
        cluster.sync_all();
        results
    };
    for round in 0..ROUNDS {
        let us = |name: &str| cluster.path("us", format!("us/races/{name}-{round}"));
        let eu = |name: &str| cluster.path("eu", format!("us/races/{name}-{round}"));
        let eu_far = |name: &str| cluster.path("eu", format!("eu/races/{name}-{round}"));

        // One file is moved to two places.
        create(&us("moved"), b"moved").unwrap();
        cluster.sync("us", "eu");
        let [a, b] = race(&|| fs::rename(us("moved"), cluster.path("us", format!("races/moved-{round}"))), &|| {
            fs::rename(eu("moved"), eu_far("moved"))
        });
        assert!(a.is_ok() != b.is_ok(), "round {round}: {a:?} {b:?}");
        assert_eq!(exists(&cluster.path("ap", format!("races/moved-{round}"))), a.is_ok());
        assert_eq!(exists(&cluster.path("ap", format!("eu/races/moved-{round}"))), b.is_ok());
        let error = a.err().or(b.err()).unwrap();
        assert!(lost(&error, &[libc::ENOENT]), "round {round}: {error}");

        // Two links of one file are removed, and a third one is made.
        create(&us("linked"), b"linked").unwrap();
        fs::hard_link(us("linked"), cluster.path("us", format!("eu/races/linked-{round}"))).unwrap();
        cluster.sync("us", "eu");
        let [a, b] = race(&|| fs::remove_file(us("linked")), &|| {
            fs::hard_link(eu_far("linked"), eu_far("third"))?;
            fs::remove_file(eu_far("linked"))
        });
        assert!(a.is_ok() && b.is_ok(), "round {round}: {a:?} {b:?}");
        let third = cluster.path("ap", format!("eu/races/third-{round}"));
        assert_eq!((fs::metadata(&third).unwrap().nlink(), text(&third)), (1, "linked".into()));

        // A directory is removed while something is created in it: one of the two.
        fs::create_dir(us("full")).unwrap();
        cluster.sync("us", "eu");
        let [removed, created] = race(&|| fs::remove_dir(us("full")), &|| create(&eu("full").join("x"), b"x"));
        assert!(removed.is_ok() != created.is_ok(), "round {round}: {removed:?} {created:?}");
        let error = removed.err().or(created.err()).unwrap();
        assert!(lost(&error, &[libc::ENOTEMPTY, libc::ENOENT]), "round {round}: {error}");

        // The same, with a directory moved into it from another group.
        fs::create_dir(us("target")).unwrap();
        fs::create_dir(cluster.path("us", format!("eu/races/moving-{round}"))).unwrap();
        cluster.sync("us", "eu");
        let [removed, moved] =
            race(&|| fs::remove_dir(us("target")), &|| fs::rename(eu_far("moving"), eu("target").join("in")));
        assert!(removed.is_ok() != moved.is_ok(), "round {round}: {removed:?} {moved:?}");
        assert_eq!(exists(&cluster.path("ap", format!("eu/races/moving-{round}"))), removed.is_ok());

        // Exchanges from both sides: two of them cancel each other out. With directories: where two names of a file are
        // exchanged by others between the kernel's two looks, it takes them for links of one file and asks for nothing.
        fs::create_dir_all(us("left").join("left")).unwrap();
        fs::create_dir_all(cluster.path("us", format!("eu/races/right-{round}/right"))).unwrap();
        cluster.sync("us", "eu");
        let exchange =
            |left: PathBuf, right: PathBuf| rename_with(&left, &right, RenameFlags::EXCHANGE).map_err(io::Error::from);
        let [a, b] = race(&|| exchange(us("left"), cluster.path("us", format!("eu/races/right-{round}"))), &|| {
            exchange(eu("left"), eu_far("right"))
        });
        assert!(a.is_ok() && b.is_ok(), "round {round}: {a:?} {b:?}");
        let [left, right] =
            ["us/races/left", "eu/races/right"].map(|name| names(&cluster.path("ap", format!("{name}-{round}"))));
        assert_eq!((left, right), (vec!["left".into()], vec!["right".into()]), "round {round}");
    }
}

#[test]
fn entries_and_inodes_of_different_groups_are_removed_together() {
    let cluster = Cluster::up(Options::default());
    // A directory that lives in eu, named in us after a move; files that live elsewhere than their names.
    let moved = cluster.path("us", "us/moved");
    fs::create_dir(cluster.path("us", "eu/born")).unwrap();
    create(&cluster.path("us", "eu/born/inside"), b"inside").unwrap();
    fs::rename(cluster.path("us", "eu/born"), &moved).unwrap();
    create(&moved.join("new"), b"new").unwrap();
    fs::create_dir(moved.join("sub")).unwrap();
    assert_eq!(names(&cluster.seen("ap", &moved)), ["inside", "new", "sub"]);
    assert_eq!(fs::metadata(cluster.seen("eu", &moved)).unwrap().nlink(), 3);
    assert!(fs::remove_dir(&moved).is_err_and(|error| lost(&error, &[libc::ENOTEMPTY])));
    fs::remove_file(moved.join("inside")).unwrap();
    fs::rename(moved.join("new"), cluster.path("us", "top")).unwrap();
    fs::remove_dir(moved.join("sub")).unwrap();
    fs::remove_dir(&moved).unwrap();
    assert!(!exists(&cluster.seen("ap", &moved)));
    assert_eq!(text(&cluster.seen("ap", &cluster.path("us", "top"))), "new");
    fs::remove_file(cluster.path("us", "top")).unwrap();

    // Counting links over groups, from all mounts at once.
    create(&cluster.path("us", "us/one"), b"one").unwrap();
    cluster.sync_all();
    thread::scope(|scope| {
        for region in REGIONS {
            let mount = cluster.mount(region);
            scope.spawn(move || {
                for n in 0..15 {
                    for home in ["us", "eu", ""] {
                        let link = mount.join(home).join(format!("link-{region}-{n}"));
                        fs::hard_link(mount.join("us/one"), &link).unwrap();
                        if n % 3 == 0 {
                            fs::remove_file(&link).unwrap();
                        }
                    }
                }
            });
        }
    });
    cluster.sync_all();
    for region in REGIONS {
        assert_eq!(fs::metadata(cluster.path(region, "us/one")).unwrap().nlink(), 1 + 3 * 3 * 10, "{region}");
    }
}

#[test]
fn placed_directories_give_their_group_to_what_is_created_in_them() {
    let cluster = Cluster::up(Options::default());
    let group_of = |path: PathBuf| fs::metadata(path).unwrap().ino() >> 48;
    let groups: Vec<_> = ["", "us", "eu", "ap"]
        .map(|home| {
            let path = cluster.path("us", home).join("born-here");
            create(&path, b"").unwrap();
            group_of(path)
        })
        .into();
    if is_reference() {
        return;
    }
    assert_eq!(groups, [0, 1, 2, 3]);

    // A new directory, placed while it is empty.
    let placed = cluster.path("us", "us/placed");
    fs::create_dir(&placed).unwrap();
    cluster.globalfs_ok(&["place", "set", placed.to_str().unwrap(), "--group", "eu"]);
    fs::create_dir_all(placed.join("a/b")).unwrap();
    create(&placed.join("a/b/c"), b"c").unwrap();
    assert_eq!(group_of(placed.join("a/b/c")), 2);
    assert_eq!(text(&cluster.seen("ap", &placed.join("a/b/c"))), "c");
    let list = cluster.globalfs_ok(&["place", "list"]);
    assert!(list.contains("/us/placed"), "{list}");
    // Placement belongs to the directory: it moves along.
    let renamed = cluster.path("us", "ap/renamed");
    fs::rename(&placed, &renamed).unwrap();
    create(&renamed.join("later"), b"later").unwrap();
    assert_eq!(group_of(renamed.join("later")), 2);
    let list = cluster.globalfs_ok(&["place", "list"]);
    assert!(list.contains("/ap/renamed") && !list.contains("/us/placed"), "{list}");
}

#[test]
fn placing_a_tree_in_use_disturbs_nobody() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    let tree = cluster.path("us", "us/in-use");
    for directory in 0..6 {
        fs::create_dir_all(tree.join(directory.to_string())).unwrap();
        for file in 0..40 {
            create(&tree.join(format!("{directory}/{file}")), format!("{directory} {file}").as_bytes()).unwrap();
        }
    }
    fs::hard_link(tree.join("0/0"), cluster.path("us", "us/outside-link")).unwrap();
    let before = summary(&tree);
    if is_reference() {
        return;
    }
    cluster.sync_all();
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let log = cluster.path("us", "us/in-use-log");
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for region in REGIONS {
            let tree = cluster.path(region, "us/in-use");
            let (stop, written) = (&stop, &written);
            let mut held = File::open(tree.join("3/3")).unwrap();
            scope.spawn(move || {
                let mut random = Random::new(11);
                while !stop.load(Ordering::Relaxed) {
                    let (directory, file) = (random.below(6), random.below(40));
                    let path = tree.join(format!("{directory}/{file}"));
                    assert_eq!(text(&path), format!("{directory} {file}"), "{region}");
                    assert!(names(&tree.join(directory.to_string())).len() >= 40, "{region}");
                    // Names come and go while the tree moves.
                    let own = tree.join(format!("{directory}/own-{region}"));
                    create(&own, b"own").unwrap();
                    fs::rename(&own, tree.join(format!("{directory}/own2-{region}"))).unwrap();
                    fs::remove_file(tree.join(format!("{directory}/own2-{region}"))).unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                    let mut all = String::new();
                    io::Seek::rewind(&mut held).unwrap();
                    io::Read::read_to_string(&mut held, &mut all).unwrap();
                    assert_eq!(all, "3 3", "{region}: an open file");
                }
            });
        }
        for group in ["eu", "global", "us", "ap"] {
            let before = written.load(Ordering::Relaxed);
            cluster.globalfs_ok(&["place", "set", tree.to_str().unwrap(), "--group", group]);
            io::Write::write_all(&mut open_append(&log).unwrap(), group.as_bytes()).unwrap();
            eventually(Duration::from_secs(20), "others to go on", || {
                (written.load(Ordering::Relaxed) > before + 6).then_some(())
            });
        }
    });
    eprintln!("{written:?} rounds while the tree was placed four times");
    cluster.sync_all();
    for region in REGIONS {
        assert!(summary(&cluster.path(region, "us/in-use")) == before, "{region}");
        assert_eq!(text(&cluster.path(region, "us/outside-link")), "0 0", "{region}");
    }
    assert_eq!(fs::metadata(tree.join("0/0")).unwrap().nlink(), 2);
    // In the end its inodes live in the last group.
    create(&tree.join("5/new"), b"new").unwrap();
    assert_eq!(fs::metadata(tree.join("5/new")).unwrap().ino() >> 48, 3);
}

/// Far more entries than one step takes: they are copied ahead while the directory goes on being used where it is.
#[test]
fn placing_a_big_directory_in_use_loses_no_name() {
    const ENTRIES: usize = 20_000;
    const FILES: usize = 100;
    const MAKERS: usize = 8;
    let cluster = Cluster::up(Options::default());
    let [big, origin] = ["big", "us/origin"].map(|path| cluster.path("us", path));
    fs::create_dir(&big).unwrap();
    if !is_reference() {
        cluster.globalfs_ok(&["place", "set", big.to_str().unwrap(), "--group", "us"]);
    }
    create(&origin, b"origin").unwrap();
    for n in 0..FILES {
        create(&big.join(format!("file-{n}")), format!("file {n}").as_bytes()).unwrap();
    }
    let started = Instant::now();
    thread::scope(|scope| {
        for maker in 0..MAKERS {
            let (big, origin) = (&big, &origin);
            scope.spawn(move || {
                for n in (maker..ENTRIES).step_by(MAKERS) {
                    fs::hard_link(origin, big.join(format!("link-{n}"))).unwrap();
                }
            });
        }
    });
    eprintln!("{ENTRIES} entries made after {:?}", started.elapsed());
    if is_reference() {
        return;
    }
    cluster.sync_all();
    // What stays from the beginning to the end, and what the busy mounts add and take away.
    let mut expected: BTreeSet<String> = (0..FILES).map(|n| format!("file-{n}")).collect();
    expected.extend((0..ENTRIES).map(|n| format!("link-{n}")));
    for to in ["eu", "us"] {
        let stop = AtomicBool::new(false);
        let changes: Vec<_> = thread::scope(|scope| {
            let stop_at_end = StopAtEnd(&stop);
            let busy = ["us", "eu"].map(|region| {
                let (stop, expected, big) = (&stop, &expected, cluster.path(region, "big"));
                scope.spawn(move || change_until(stop, &big, expected, &format!("{to}-{region}")))
            });
            let started = Instant::now();
            // Only the directory: its 20,000 inodes would follow one by one.
            let mut mover = Command::new(binary());
            mover.args(["place", "set", big.to_str().unwrap(), "--group", to]);
            let mut mover = mover.env("GLOBALFS_CONFIG", cluster.data().join("cluster.toml")).spawn().unwrap();
            eventually(Duration::from_secs(40), "the directory to live in its new group", || {
                assert!(mover.try_wait().unwrap().is_none_or(|status| status.success()), "the mover failed");
                (home_of(&cluster, "/big") == to).then_some(())
            });
            eprintln!("lives in {to} after {:?}", started.elapsed());
            thread::sleep(Duration::from_secs(1));
            mover.kill().unwrap();
            mover.wait().unwrap();
            drop(stop_at_end);
            busy.map(|thread| thread.join().unwrap()).into()
        });
        for (made, removed) in changes {
            eprintln!("{} made and {} removed while it moved to {to}", made.len(), removed.len());
            expected.extend(made);
            expected.retain(|name| !removed.contains(name));
        }
        cluster.sync_all();
        for region in REGIONS {
            let big = cluster.path(region, "big");
            let found = names(&big);
            let seen: BTreeSet<_> = found.iter().cloned().collect();
            assert_eq!(found.len(), seen.len(), "{region} lists names twice");
            let wrong: Vec<_> = seen.symmetric_difference(&expected).take(10).collect();
            assert!(
                wrong.is_empty(),
                "{region}, moved to {to}: {wrong:?} of {}, {} expected",
                seen.len(),
                expected.len()
            );
            for n in 0..FILES {
                assert_eq!(text(&big.join(format!("file-{n}"))), format!("file {n}"), "{region}");
            }
            for name in expected.iter().filter(|name| !name.starts_with("file-")).step_by(97) {
                assert!(exists(&big.join(name)), "{region}: {name} is listed and not found");
            }
        }
        assert_eq!(home_of(&cluster, "/big"), to);
    }
    assert_eq!(
        fs::metadata(&origin).unwrap().nlink(),
        1 + expected.iter().filter(|n| n.starts_with("link-")).count() as u64
    );
    cluster.check_digests();
}

/// Where a placed directory lives.
fn home_of(cluster: &Cluster, path: &str) -> String {
    let list: Value = serde_json::from_str(&cluster.globalfs_ok(&["place", "list", "--depth", "1", "--json"])).unwrap();
    let placed = list["placements"].as_array().unwrap().iter().find(|placed| placed["path"] == path);
    placed.unwrap_or_else(|| panic!("{path} is not placed: {list}"))["home"].as_str().unwrap().to_owned()
}

/// Creates, removes and lists names in a directory until told to stop: which names it has made, and which removed.
fn change_until(
    stop: &AtomicBool,
    big: &Path,
    known: &BTreeSet<String>,
    own: &str,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut random = Random::new(own.bytes().map(u64::from).sum());
    // Each mount removes names of its own half: no other does.
    let half = usize::from(own.ends_with("eu"));
    let mut removable: Vec<_> = known.iter().filter(|name| name.starts_with("link-")).skip(half).step_by(2).collect();
    let (mut made, mut removed) = (BTreeSet::new(), BTreeSet::new());
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for count in 0..4 {
            let name = format!("new-{own}-{round}-{count}");
            create(&big.join(&name), name.as_bytes()).unwrap();
            assert_eq!(text(&big.join(&name)), name);
            made.insert(name);
        }
        let old = removable.swap_remove(random.below(removable.len() as u64) as usize);
        fs::remove_file(big.join(old)).unwrap_or_else(|error| panic!("{own} removes {old}: {error}"));
        removed.insert(old.clone());
        assert!(!exists(&big.join(old)), "{own}: {old} is there after its removal");
        let young = made.pop_first().unwrap();
        fs::remove_file(big.join(&young)).unwrap_or_else(|error| panic!("{own} removes {young}: {error}"));
        if round % 16 == 0 {
            let found = names(big);
            let seen: BTreeSet<_> = found.iter().collect();
            assert_eq!(found.len(), seen.len(), "{own} lists names twice");
            let lost: Vec<_> = made.iter().filter(|name| !seen.contains(name)).collect();
            assert!(lost.is_empty(), "{own} does not list {lost:?}");
            let back: Vec<_> = removed.iter().filter(|name| seen.contains(name)).collect();
            assert!(back.is_empty(), "{own} lists {back:?} after their removal");
        }
    }
    (made, removed)
}
