//! What clients ask for: every choice of destinations and conflicts for a few commands, up to symmetry.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use multicast::command::{Command, Destination, Key, Mode};
use multicast::ids::{CommandId, GroupId, SessionId, VectorClock};

pub const SESSION: SessionId = SessionId(1);
pub const COMMANDS_MAX: usize = 4;
pub const GROUPS_MAX: usize = 3;

/// Which groups a command concerns, as bits, and where its client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    pub groups: u8,
    pub home: u8,
}

/// Commands by shape, and for each group which of them conflict there: row `c` has bit `d`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    pub groups: u8,
    pub shapes: Vec<Shape>,
    pub conflicts: Vec<[u8; COMMANDS_MAX]>,
}

/// Which patterns count as the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symmetry {
    /// Groups may change places: if their clocks are equal.
    pub groups: bool,
    /// Commands may change places: if no two groups' timestamps can be equal, so that ids decide nothing.
    pub commands: bool,
}

impl Pattern {
    /// All patterns of so many commands over so many groups, each group being some command's destination.
    pub fn all(groups: u8, commands: usize, symmetry: Symmetry) -> Vec<Pattern> {
        let mut shapes = Vec::new();
        for mask in 1..1_u8 << groups {
            shapes.extend((0..groups).filter(|home| mask & (1 << home) != 0).map(|home| Shape { groups: mask, home }));
        }
        let names = |count: usize, free: bool| if free { permutations(count) } else { vec![(0..count).collect()] };
        let (of_groups, of_commands) = (names(groups.into(), symmetry.groups), names(commands, symmetry.commands));
        let mut patterns = Vec::new();
        let mut chosen = vec![0_usize; commands];
        loop {
            let picked: Vec<Shape> = chosen.iter().map(|&at| shapes[at]).collect();
            let sorted = !symmetry.commands || picked.is_sorted();
            let covers = picked.iter().fold(0, |mask, shape| mask | shape.groups) == (1 << groups) - 1;
            if sorted && covers {
                with_conflicts(groups, &picked, &of_groups, &of_commands, &mut patterns);
            }
            let Some(at) = (0..commands).rfind(|&at| chosen[at] + 1 < shapes.len()) else { return patterns };
            chosen[at] += 1;
            chosen[at + 1..].fill(0);
        }
    }

    pub fn visits(&self, group: u8, command: usize) -> bool {
        self.shapes[command].groups & (1 << group) != 0
    }

    /// The commands, with footprints over few keys that conflict as the pattern says.
    pub fn commands(&self) -> Vec<Arc<Command>> {
        let footprints: Vec<Vec<Vec<(Key, Mode)>>> = (0..self.groups).map(|group| self.footprints(group)).collect();
        let command = |(at, shape): (usize, &Shape)| {
            let destinations = (0..self.groups).filter(|group| shape.groups & (1 << group) != 0).map(|group| {
                let footprint = footprints[group as usize][at].clone();
                Destination { group: GroupId(u16::from(group)), footprint: footprint.into() }
            });
            Arc::new(Command {
                id: CommandId { session: SESSION, sequence: at as u64 + 1 },
                acknowledged_below: 0,
                clock: VectorClock::new(),
                destinations: destinations.collect(),
                payload: Bytes::copy_from_slice(&[at as u8]),
            })
        };
        self.shapes.iter().enumerate().map(command).collect()
    }

    /// Footprints over as few keys as possible, reads (in odd groups: additions) before writes.
    fn footprints(&self, group: u8) -> Vec<Vec<(Key, Mode)>> {
        let soft = if group.is_multiple_of(2) { Mode::Read } else { Mode::Add };
        let modes = [None, Some(soft), Some(Mode::Write)];
        let visitors: Vec<usize> = (0..self.shapes.len()).filter(|&at| self.visits(group, at)).collect();
        for keys in 1..=6 {
            let mut choice = vec![0_usize; visitors.len() * keys];
            loop {
                let footprint = |slot: usize| -> Vec<(Key, Mode)> {
                    let modes = (0..keys).map(|key| (Key(key as u64 + 1), modes[choice[slot * keys + key]]));
                    modes.filter_map(|(key, mode)| mode.map(|mode| (key, mode))).collect()
                };
                let fits = (0..visitors.len()).all(|slot| {
                    let mine = footprint(slot);
                    !mine.is_empty()
                        && (0..slot).all(|other| {
                            let wanted = self.conflicts[group as usize][visitors[slot]] & (1 << visitors[other]) != 0;
                            conflict(&mine, &footprint(other)) == wanted
                        })
                });
                if fits {
                    let mut all = vec![Vec::new(); self.shapes.len()];
                    for (slot, &visitor) in visitors.iter().enumerate() {
                        all[visitor] = footprint(slot);
                    }
                    return all;
                }
                let Some(at) = (0..choice.len()).rfind(|&at| choice[at] + 1 < modes.len()) else { break };
                choice[at] += 1;
                choice[at + 1..].fill(0);
            }
        }
        panic!("six keys make any graph of four commands");
    }

    /// The same pattern with groups and commands renamed.
    fn renamed(&self, groups: &[usize], commands: &[usize]) -> Pattern {
        let mask = |bits: u8, names: &[usize]| {
            (0..names.len()).filter(|&at| bits & (1 << at) != 0).fold(0_u8, |mask, at| mask | 1 << names[at])
        };
        let mut renamed = self.clone();
        for (at, shape) in self.shapes.iter().enumerate() {
            renamed.shapes[commands[at]] =
                Shape { groups: mask(shape.groups, groups), home: groups[shape.home as usize] as u8 };
        }
        for (group, rows) in self.conflicts.iter().enumerate() {
            for at in 0..self.shapes.len() {
                renamed.conflicts[groups[group]][commands[at]] = mask(rows[at], commands);
            }
        }
        renamed
    }
}

/// All patterns of these shapes which, of those that differ in names only, come first.
fn with_conflicts(
    groups: u8,
    shapes: &[Shape],
    of_groups: &[Vec<usize>],
    of_commands: &[Vec<usize>],
    patterns: &mut Vec<Pattern>,
) {
    let plain = Pattern { groups, shapes: shapes.to_vec(), conflicts: vec![[0; COMMANDS_MAX]; usize::from(groups)] };
    // Other shapes decide. Only names that leave them as they are can tell conflicts apart.
    let mut names = Vec::new();
    for groups in of_groups {
        for commands in of_commands {
            match plain.renamed(groups, commands).shapes.as_slice().cmp(shapes) {
                Ordering::Less => return,
                Ordering::Equal => names.push((groups, commands)),
                Ordering::Greater => {}
            }
        }
    }
    let mut pairs = Vec::new();
    for group in 0..groups {
        for a in 0..shapes.len() {
            for b in a + 1..shapes.len() {
                if shapes[a].groups & shapes[b].groups & (1 << group) != 0 {
                    pairs.push((group as usize, a, b));
                }
            }
        }
    }
    for choice in 0..1_u32 << pairs.len() {
        let mut conflicts = vec![[0; COMMANDS_MAX]; groups as usize];
        for (at, &(group, a, b)) in pairs.iter().enumerate() {
            if choice & (1 << at) != 0 {
                conflicts[group][a] |= 1 << b;
                conflicts[group][b] |= 1 << a;
            }
        }
        let pattern = Pattern { groups, shapes: shapes.to_vec(), conflicts };
        if names.iter().all(|(groups, commands)| pattern <= pattern.renamed(groups, commands)) {
            patterns.push(pattern);
        }
    }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in permutations(count - 1) {
        for at in 0..count {
            let mut longer = shorter.clone();
            longer.insert(at, count - 1);
            all.push(longer);
        }
    }
    all
}

fn conflict(a: &[(Key, Mode)], b: &[(Key, Mode)]) -> bool {
    a.iter().any(|(key, mode)| b.iter().any(|(other, theirs)| key == other && mode.conflicts(*theirs)))
}
