//! Causality on real mounts: own writes are read, nothing is read backwards, and no effect is seen before its cause.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, REGIONS, is_reference};
use common::files::{StopAtEnd, create, exists, names, text};

/// A number in a file, replaced in one step.
fn publish(path: &Path, number: u64) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, number.to_string()).unwrap();
    fs::rename(&fresh, path).unwrap();
}

fn read_number(path: &Path) -> u64 {
    text(path).parse().unwrap_or_else(|error| panic!("{}: {error}: {:?}", path.display(), text(path)))
}

fn picture(number: u64) -> Vec<u8> {
    // Every third one is too long to travel inside the metadata.
    format!("picture {number}\n").repeat(if number.is_multiple_of(3) { 2000 } else { 20 }).into_bytes()
}

#[test]
fn threads_of_a_mount_read_each_others_writes() {
    const ROUNDS: u64 = 40;
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    for (region, home) in [("us", "us"), ("us", "eu"), ("ap", ""), ("eu", "us")] {
        let directory = cluster.path(region, format!("{home}/own-{region}"));
        eprintln!("{}", directory.display());
        fs::create_dir(&directory).unwrap();
        thread::scope(|scope| {
            for pair in 0..3 {
                let (tell, told) = mpsc::sync_channel::<u64>(0);
                let (answer, answered) = mpsc::sync_channel::<()>(0);
                let file = move |directory: &Path, round: u64| directory.join(format!("{pair}-{round}"));
                let (writer, reader) = (directory.clone(), directory.clone());
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        create(&file(&writer, round), &picture(round)).unwrap();
                        let overwritten = File::options().write(true).open(file(&writer, round)).unwrap();
                        overwritten.write_all_at(b"PICTURE", 0).unwrap();
                        drop(overwritten);
                        if round > 0 {
                            fs::rename(file(&writer, round - 1), writer.join(format!("{pair}-old"))).unwrap();
                        }
                        tell.send(round).unwrap();
                        answered.recv().unwrap();
                    }
                });
                scope.spawn(move || {
                    for round in told {
                        let found = fs::read(file(&reader, round)).unwrap();
                        let expected = [b"PICTURE", &picture(round)[7..]].concat();
                        assert!(found == expected, "round {round}: read {} bytes {:?}", found.len(), found.get(..20));
                        assert_eq!(fs::metadata(file(&reader, round)).unwrap().len(), expected.len() as u64);
                        assert!(names(&reader).contains(&format!("{pair}-{round}")));
                        if round > 0 {
                            assert!(!exists(&file(&reader, round - 1)), "round {round}: the old name is still there");
                            assert!(exists(&reader.join(format!("{pair}-old"))));
                        }
                        answer.send(()).unwrap();
                    }
                });
            }
        });
    }
}

#[test]
fn threads_of_a_mount_never_read_backwards() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    for (home, writer) in [("us", "us"), ("eu", "us"), ("", "eu"), ("", "us")] {
        let (replaced, overwritten) = (format!("{home}/replaced-{writer}"), format!("{home}/overwritten-{writer}"));
        publish(&cluster.path(writer, &replaced), 0);
        create(&cluster.path(writer, &overwritten), format!("{:020}", 0).as_bytes()).unwrap();
        cluster.sync_all();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopAtEnd(&stop);
            for region in REGIONS {
                // One clock for all threads of a mount: what one has read, no other may undercut.
                let newest: &'static [AtomicU64; 2] = Box::leak(Box::default());
                for reader in 0..2 {
                    let paths = [cluster.path(region, &replaced), cluster.path(region, &overwritten)];
                    let stop = &stop;
                    scope.spawn(move || {
                        let opened = File::open(&paths[1]).unwrap();
                        while !stop.load(Ordering::Relaxed) {
                            for which in 0..2 {
                                let before = newest[which].load(Ordering::SeqCst);
                                let number = if which == 1 && reader == 1 {
                                    let mut bytes = [0; 20];
                                    opened.read_exact_at(&mut bytes, 0).unwrap();
                                    String::from_utf8_lossy(&bytes).parse().unwrap()
                                } else {
                                    read_number(&paths[which])
                                };
                                let path = paths[which].display();
                                assert!(number >= before, "{path}, reader {reader}: read {number} after {before}");
                                newest[which].fetch_max(number, Ordering::SeqCst);
                            }
                        }
                    });
                }
            }
            let opened = File::options().write(true).open(cluster.path(writer, &overwritten)).unwrap();
            let started = Instant::now();
            let mut number = 0;
            while started.elapsed() < Duration::from_secs(4) {
                number += 1;
                publish(&cluster.path(writer, &replaced), number);
                opened.write_all_at(format!("{number:020}").as_bytes(), 0).unwrap();
                opened.sync_all().unwrap();
            }
            eprintln!("/{home} from {writer}: {number} rounds");
        });
        cluster.sync_all();
        let last = REGIONS.map(|region| read_number(&cluster.path(region, &replaced)));
        assert!(last[0] == last[1] && last[1] == last[2], "{last:?}");
    }
}

/// The picture and the page: a page that names picture n is never seen where picture n is not.
fn pictures_and_pages(cluster: &Cluster, writer: &'static str, pictures: &str, pages: &str, seconds: u64) {
    let what = format!("pictures in /{pictures}, page in /{pages}, written on {writer}");
    let gallery = format!("{pictures}/gallery-{writer}-{pages}");
    let page = format!("{pages}/page-{writer}-{pictures}");
    fs::create_dir(cluster.path(writer, &gallery)).unwrap();
    publish(&cluster.path(writer, &page), 0);
    cluster.sync_all();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for region in REGIONS {
            let (gallery, page) = (cluster.path(region, &gallery), cluster.path(region, &page));
            let (stop, what) = (&stop, &what);
            scope.spawn(move || {
                let (mut seen, mut steps) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    // Ask early, so that "not there" can be cached wrongly.
                    let _not_yet = fs::metadata(gallery.join((seen + 1).to_string()));
                    let number = read_number(&page);
                    assert!(number >= seen, "{what}; {region} read page {number} after {seen}");
                    if number == seen {
                        continue;
                    }
                    for picture_number in seen + 1..=number {
                        let path = gallery.join(picture_number.to_string());
                        let found = fs::read(&path);
                        let found = found.unwrap_or_else(|error| {
                            panic!("{what}; {region} saw page {number} but not picture {picture_number}: {error}")
                        });
                        assert!(
                            found == picture(picture_number),
                            "{what}; {region} saw page {number} but picture {picture_number} has {} bytes",
                            found.len()
                        );
                    }
                    let listed = names(&gallery);
                    assert!(listed.contains(&number.to_string()), "{what}; {region} saw page {number}: not listed");
                    (seen, steps) = (number, steps + 1);
                }
                eprintln!("{what}; {region} saw {steps} pages, the last {seen}");
            });
        }
        let started = Instant::now();
        let mut number = 0;
        while started.elapsed() < Duration::from_secs(seconds) {
            number += 1;
            create(&cluster.path(writer, &gallery).join(number.to_string()), &picture(number)).unwrap();
            publish(&cluster.path(writer, &page), number);
        }
        // The readers see the end of it, too.
        cluster.sync_all();
    });
}

#[test]
fn effects_are_never_seen_before_their_causes() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    for (writer, pictures, pages) in [("us", "us", "eu"), ("us", "eu", "us"), ("us", "", "ap"), ("eu", "us", "")] {
        pictures_and_pages(&cluster, writer, pictures, pages, 3);
    }
    // Far replicas that trail behind: what is replicated everywhere arrives late, its effects early.
    if !is_reference() {
        cluster.globalfs_ok(&["wan", "delay", "us", "ap", "200ms"]);
        cluster.globalfs_ok(&["wan", "delay", "us", "eu", "2ms"]);
        cluster.globalfs_ok(&["wan", "delay", "eu", "ap", "2ms"]);
        pictures_and_pages(&cluster, "us", "", "eu", 4);
        pictures_and_pages(&cluster, "eu", "", "eu", 4);
    }
}

#[test]
fn causality_passes_through_other_mounts() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    if !is_reference() {
        // The direct way is the slow one.
        cluster.globalfs_ok(&["wan", "delay", "us", "ap", "150ms"]);
    }
    for (first, second, third) in [("us", "eu", "ap"), ("", "eu", ""), ("eu", "", "us")] {
        let chain = [("us", first), ("eu", second), ("ap", third)];
        let name = |step: usize| PathBuf::from(chain[step].1).join(format!("chain-{step}-{first}-{second}-{third}"));
        for step in 0..3 {
            fs::create_dir(cluster.path("us", name(step))).unwrap();
        }
        cluster.sync_all();
        const ROUNDS: usize = 10;
        thread::scope(|scope| {
            for (step, (region, _)) in chain.into_iter().enumerate() {
                let directories: Vec<_> = (0..3).map(|step| cluster.path(region, name(step))).collect();
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let file = |step: usize| directories[step].join(round.to_string());
                        let started = Instant::now();
                        // Each waits for the one before it in the round; the first for the last of the round before.
                        let awaited = if step > 0 { Some(file(step - 1)) } else { None };
                        let awaited = awaited.or_else(|| Some(directories[2].join(round.checked_sub(1)?.to_string())));
                        while awaited.as_ref().is_some_and(|awaited| !exists(awaited)) {
                            assert!(
                                started.elapsed() < Duration::from_secs(20),
                                "{region}, round {round}: {awaited:?}"
                            );
                        }
                        // Everything before what it has seen is there, and has its content.
                        for before in round.saturating_sub(if round + 1 == ROUNDS { ROUNDS } else { 2 })..=round {
                            for (earlier, directory) in directories.iter().enumerate() {
                                if (before, earlier) < (round, step) {
                                    let path = directory.join(before.to_string());
                                    let found = fs::read(&path).unwrap_or_else(|error| {
                                        panic!(
                                            "{region} in round {round} sees {awaited:?} but not {}: {error}",
                                            path.display()
                                        )
                                    });
                                    assert_eq!(
                                        found,
                                        format!("{earlier} {before}").as_bytes(),
                                        "{region}, {}",
                                        path.display()
                                    );
                                }
                            }
                        }
                        let fresh = directories[step].join("fresh");
                        create(&fresh, format!("{step} {round}").as_bytes()).unwrap();
                        fs::rename(&fresh, file(step)).unwrap();
                    }
                });
            }
        });
    }
}
