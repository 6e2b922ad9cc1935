//! Depth first through every state that a scope has.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use multicast::command::Command;
use multicast::ids::{GroupId, ReplicaId};
use multicast::planted::Planted;
use multicast::{Config, Decline, Message};
use xxhash_rust::xxh3::xxh3_128;

use super::actor::{Actor, Done, Execution, Flush, Identity, Standings};
use super::patterns::{COMMANDS_MAX, Pattern};

/// What may happen beside what clients ask for once each: at most so often, at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A client asks again, at any destination.
    pub retries: u8,
    /// A message arrives twice.
    pub duplicates: u8,
    /// A message gets lost. Timers go off only when nothing else can happen.
    pub losses: u8,
    /// A group's clock jumps ahead of all others.
    pub jumps: u8,
    /// The last group hears of the session late, at any time.
    pub late_session: bool,
    /// A replica loses its memory and what its disk has not done, and comes back.
    pub crashes: u8,
    /// So many of a group's replicas, the last ones, miss the primary, once each.
    pub suspicions: u8,
}

/// Which orders are left out, because others have the same ends and show no less. docs/protocol.md says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reduction {
    None,
    /// Messages that only say that a group is through arrive before anything else happens.
    Closings,
    /// Contributions, too, once the timestamp of the same group has arrived, and timestamps that are not the last of their
    /// command, unless a larger one may be missing that lets something go. Timestamps do not overtake their command, nor
    /// contributions their timestamp. Sound while nothing gets lost, doubled, refused or asked for again.
    Facts,
    /// Timestamps, too, that leave the clock as it is, or come when the clock has no use any more, and proposals whose
    /// timestamp is sure. Rests on what `follows_clock` checks in each step.
    Clocks,
}

/// What is explored.
#[derive(Clone, Debug)]
pub struct Scope {
    pub pattern: Pattern,
    /// How many voters each group has.
    pub voters: u8,
    /// How far each group's clock is ahead, in ns.
    pub skew: [u64; 3],
    pub faults: Faults,
    pub flush: Flush,
    pub identity: Identity,
    pub reduction: Reduction,
    /// In each state, all that [`Reduction::Clocks`] has come first is tried before and after all else that its receiver may
    /// be given.
    pub tries_both: bool,
    /// Between two replicas messages arrive in the order in which they were sent, as the transport has it.
    pub ordered_links: bool,
    pub planted: Option<Planted>,
    pub states_max: usize,
    /// In which order moves are tried: none, or drawn from a seed, which finds mistakes sooner where there is much to try.
    pub shuffle: Option<u64>,
}

impl Scope {
    /// One voter per group, equal clocks, no faults, with all reductions.
    pub fn of(pattern: &Pattern) -> Scope {
        Scope {
            pattern: pattern.clone(),
            voters: 1,
            skew: [0; 3],
            faults: Faults::default(),
            flush: Flush::Eager,
            identity: Identity::Future,
            reduction: Reduction::Clocks,
            tries_both: false,
            ordered_links: false,
            planted: None,
            states_max: usize::MAX,
            shuffle: None,
        }
    }
}

/// What was explored.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// With [`Reduction::Clocks`] those in which there is a choice, and the ends; the others are passed through.
    pub states: usize,
    pub transitions: usize,
    /// Of these transitions so many were played on the core; the others were known.
    pub played: usize,
    /// States in which nothing can happen any more.
    pub ends: usize,
    /// So many pairs of inputs were tried in both orders.
    pub tried: usize,
    /// Which command came before which, in all ends.
    pub orders: BTreeSet<[u8; COMMANDS_MAX]>,
    /// False if it stopped at the limit.
    pub is_complete: bool,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    pub what: String,
    pub trace: String,
    pub states: usize,
}

type Address = (GroupId, ReplicaId);

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// Numbers of the actors' states.
    actors: Vec<u32>,
    /// Numbers of the messages under way: ascending, or by link, first come first.
    network: Vec<u32>,
    submitted: u8,
    /// Not taken when it was first asked for.
    declined: u8,
    /// Row `c`: the commands that come after `c`, by conflicts and real time. Transitive.
    after: [u8; COMMANDS_MAX],
    /// Of what has executed somewhere, but not everywhere: the hash of its contributions.
    verdicts: [u64; COMMANDS_MAX],
    /// Executed anywhere, so seen.
    seen: u8,
    /// … where in the log, in a group of several voters.
    indexes: [u8; COMMANDS_MAX],
    retries: u8,
    duplicates: u8,
    losses: u8,
    jumps: u8,
    crashes: u8,
    session_open: bool,
    suspected: u8,
    ticks: u8,
}

impl State {
    /// Notes that one command comes before another. There must be one order for all.
    fn note(&mut self, earlier: usize, later: usize) -> Result<(), String> {
        if earlier == later || self.after[later] & (1 << earlier) != 0 {
            return Err(format!("command {earlier} comes before and after command {later}: no order explains this"));
        }
        let gained = self.after[later] | 1 << later;
        for at in 0..COMMANDS_MAX {
            if at == earlier || self.after[at] & (1 << earlier) != 0 {
                self.after[at] |= gained;
            }
        }
        Ok(())
    }

    fn fingerprint(&self, buffer: &mut Vec<u8>) -> u128 {
        buffer.clear();
        for word in self.actors.iter().chain(&self.network) {
            buffer.extend_from_slice(&word.to_le_bytes());
        }
        buffer.extend_from_slice(&self.after);
        for verdict in self.verdicts {
            buffer.extend_from_slice(&verdict.to_le_bytes());
        }
        buffer.extend_from_slice(&self.indexes);
        buffer.extend_from_slice(&[
            self.submitted,
            self.declined,
            self.seen,
            self.retries,
            self.duplicates,
            self.losses,
            self.jumps,
            self.crashes,
            u8::from(self.session_open),
            self.suspected,
            self.ticks,
            self.actors.len() as u8,
        ]);
        xxh3_128(buffer)
    }
}

/// What can happen. `First`: before anything else, as nothing is lost by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Submit { command: u8, actor: u8, again: bool },
    Deliver { message: u32, again: bool },
    First { message: u32 },
    Lose { message: u32 },
    Flush { actor: u8 },
    Jump { actor: u8 },
    OpenSession { actor: u8 },
    Crash { actor: u8 },
    Suspect { actor: u8 },
    Tick,
}

/// What an actor is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Input {
    Submit(u8),
    Deliver(u32),
    Flush,
    Jump,
    OpenSession,
    Crash,
    Suspect,
    Tick,
}

/// What an actor did with it.
#[derive(Debug)]
struct Step {
    actor: u32,
    sent: Vec<u32>,
    executed: Vec<Execution>,
    declined: Vec<(u8, Decline)>,
    wrong: Option<String>,
}

struct Envelope {
    from: Address,
    to: u8,
    /// Beside the rest, which is looked at all the time.
    message: Box<Message>,
    says: Says,
    /// If it says one, else zero.
    timestamp: u64,
}

/// What a message is about, as far as reductions look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Proposal(u8),
    Timestamp(u8),
    Contribution(u8),
    Closed,
    Other,
}

impl Says {
    fn of(message: &Message) -> Says {
        match message {
            Message::Propose { command } => Says::Proposal(command.id.sequence as u8),
            Message::Facts(facts) if facts.ask || facts.refused.is_some() => Says::Other,
            Message::Facts(facts) if facts.contribution.is_some() => Says::Contribution(facts.id.sequence as u8),
            Message::Facts(facts) if facts.timestamp.is_some() => Says::Timestamp(facts.id.sequence as u8),
            Message::Facts(facts) if facts.closed => Says::Closed,
            _ => Says::Other,
        }
    }
}

/// An actor's state and what is asked of it often.
struct Known {
    /// Beside the rest, which is looked at all the time.
    actor: Box<Actor>,
    /// Row `c`: which commands conflict with `c` here.
    conflicts: [u8; COMMANDS_MAX],
    at: u8,
    executed: u8,
    visitors: u8,
    standings: Standings,
    is_ready: bool,
    has_unflushed: bool,
    is_idle: bool,
}

/// Everything that is known of a scope while it is explored.
struct World {
    scope: Scope,
    commands: Vec<Arc<Command>>,
    addresses: Vec<Address>,
    known: Vec<Known>,
    known_by: HashMap<u128, u32, ByItself>,
    messages: Vec<Envelope>,
    messages_by: HashMap<u128, u32, ByItself>,
    steps: Vec<Step>,
    steps_by: HashMap<(u32, Input), u32, BuildHasherDefault<Words>>,
    completed: HashSet<Vec<u32>>,
    explored: Explored,
}

/// For a few words.
#[derive(Clone, Copy, Debug, Default)]
struct Words(u64);

impl Words {
    fn add(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0xf39c_c060_5ced_c835) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for Words {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.add(u64::from(byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word));
    }

    fn write_u8(&mut self, word: u8) {
        self.add(u64::from(word));
    }

    fn write_isize(&mut self, word: isize) {
        self.add(word as u64);
    }
}

/// Fingerprints are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct FirstWord(u64);

type ByItself = BuildHasherDefault<FirstWord>;

impl Hasher for FirstWord {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (word, _) = bytes.split_first_chunk().unwrap();
        self.0 ^= u64::from_le_bytes(*word);
    }
}

const START_NS: u64 = 1_000_000_000_000;
const MS: u64 = 1_000_000;

/// Explores a scope to the end, or up to the first violation.
pub fn explore(scope: &Scope) -> Result<Explored, Violation> {
    let (mut world, start) = World::new(scope);
    let mut buffer = Vec::new();
    let mut visited: HashSet<u128, ByItself> = HashSet::default();
    visited.insert(start.fingerprint(&mut buffer));
    let moves = world.moves(&start);
    let mut stack: Vec<(State, Vec<Move>, usize)> = vec![(start, moves, 0)];
    world.explored.is_complete = true;
    while let Some((state, moves, next)) = stack.last_mut() {
        let Some(&taken) = moves.get(*next) else {
            stack.pop();
            continue;
        };
        *next += 1;
        let mut to = state.clone();
        let failed = match world.follow(&mut to, taken, None) {
            Ok(mut moves) => {
                if !visited.insert(to.fingerprint(&mut buffer)) {
                    continue;
                }
                if visited.len() >= world.scope.states_max {
                    world.explored.is_complete = false;
                    break;
                }
                let ended = if moves.is_empty() { world.end(&to) } else { Ok(()) };
                if let Some(seed) = scope.shuffle {
                    let draw = visited.len() as u64;
                    moves.sort_by_cached_key(|taken| xxh3_128(format!("{taken:?} {draw} {seed}").as_bytes()));
                }
                stack.push((to, moves, 0));
                ended
            }
            Err(what) => Err(what),
        };
        if let Err(what) = failed {
            let mut trace = String::new();
            for (state, moves, next) in stack {
                if let Some(taken) = next.checked_sub(1).map(|at| moves[at]) {
                    // Where it fails again the trace ends.
                    _ = world.follow(&mut state.clone(), taken, Some(&mut trace));
                }
            }
            return Err(Violation { what, trace, states: visited.len() });
        }
    }
    world.explored.states = visited.len();
    Ok(world.explored)
}

impl World {
    fn new(scope: &Scope) -> (World, State) {
        let commands = scope.pattern.commands();
        let groups = u16::from(scope.pattern.groups);
        let voters: Vec<ReplicaId> = (1..=u32::from(scope.voters)).map(ReplicaId).collect();
        let all: BTreeMap<GroupId, Vec<ReplicaId>> = (0..groups).map(|at| (GroupId(at), voters.clone())).collect();
        let mut addresses = Vec::new();
        let mut actors = Vec::new();
        for &group in all.keys() {
            for &replica in &voters {
                let mut config = Config::new(group, replica, all.clone());
                // Nobody takes over by himself.
                config.timing.return_ms = 0;
                if scope.voters == 1 {
                    // Nobody needs what is applied.
                    config.limits.log_tail_bytes = 0;
                }
                addresses.push((group, replica));
                actors.push(Actor::new(config, &commands, scope.flush, scope.planted));
            }
        }
        let late = scope.faults.late_session.then(|| actors.len() - 1);
        set_up(&mut actors, late);
        for actor in &mut actors {
            let skew = scope.skew[usize::from(actor.address().0.0)];
            actor.now = START_NS + skew;
        }
        let mut world = World {
            scope: scope.clone(),
            commands,
            addresses,
            known: Vec::new(),
            known_by: HashMap::default(),
            messages: Vec::new(),
            messages_by: HashMap::default(),
            steps: Vec::new(),
            steps_by: HashMap::default(),
            completed: HashSet::new(),
            explored: Explored::default(),
        };
        let actors = actors.into_iter().enumerate().map(|(at, actor)| world.know(at as u8, actor)).collect();
        let faults = scope.faults;
        let state = State {
            actors,
            network: Vec::new(),
            submitted: 0,
            declined: 0,
            after: [0; COMMANDS_MAX],
            verdicts: [0; COMMANDS_MAX],
            seen: 0,
            indexes: [0; COMMANDS_MAX],
            retries: faults.retries,
            duplicates: faults.duplicates,
            losses: faults.losses,
            jumps: faults.jumps,
            crashes: faults.crashes,
            session_open: late.is_none(),
            suspected: 0,
            ticks: 0,
        };
        (world, state)
    }

    fn know(&mut self, at: u8, actor: Actor) -> u32 {
        let fingerprint = actor.fingerprint(self.scope.identity) ^ u128::from(at);
        let next = self.known.len() as u32;
        let number = *self.known_by.entry(fingerprint).or_insert(next);
        if number == next {
            let (executed, is_ready) = (actor.notes.executed, actor.is_ready());
            let (has_unflushed, is_idle) = (actor.has_unflushed(), actor.is_idle());
            let (visitors, standings) = (actor.visitors(), actor.standings());
            let (conflicts, actor) = (actor.conflicts(), Box::new(actor));
            self.known.push(Known {
                actor,
                conflicts,
                at,
                executed,
                visitors,
                standings,
                is_ready,
                has_unflushed,
                is_idle,
            });
        }
        number
    }

    fn know_message(&mut self, from: Address, to: Address, message: Message) -> u32 {
        let identity = match self.scope.identity {
            Identity::Whole => message.clone(),
            Identity::Behaviour(_) => without_places(&message),
            Identity::Future => without_repetition(without_places(&message)),
        };
        let to = self.addresses.iter().position(|&address| address == to).unwrap() as u8;
        let fingerprint = xxh3_128(format!("{from:?} {to} {identity:?}").as_bytes());
        let next = self.messages.len() as u32;
        let number = *self.messages_by.entry(fingerprint).or_insert(next);
        if number == next {
            let says = Says::of(&message);
            let timestamp = match &message {
                Message::Facts(facts) => facts.timestamp.map_or(0, |timestamp| timestamp.0),
                _ => 0,
            };
            self.messages.push(Envelope { from, to, message: Box::new(message), says, timestamp });
        }
        number
    }

    /// Everything that can happen next. In the order in which it is tried.
    fn moves(&self, state: &State) -> Vec<Move> {
        self.first(state).map_or_else(|| self.choices(state), |message| vec![Move::First { message }])
    }

    /// Everything that can happen next if nothing comes first.
    fn choices(&self, state: &State) -> Vec<Move> {
        let mut under_way = state.network.clone();
        under_way.dedup_by_key(|message| self.place(*message));
        let mut moves = Vec::new();
        for &message in under_way.iter().filter(|&&message| !self.waits(state, message)) {
            moves.push(Move::Deliver { message, again: false });
            if state.duplicates > 0 {
                moves.push(Move::Deliver { message, again: true });
            }
            if state.losses > 0 {
                moves.push(Move::Lose { message });
            }
        }
        for (actor, &number) in (0_u8..).zip(&state.actors) {
            let known = &self.known[number as usize];
            if known.has_unflushed {
                moves.push(Move::Flush { actor });
            }
            if state.jumps > 0 {
                moves.push(Move::Jump { actor });
            }
            if state.crashes > 0 {
                moves.push(Move::Crash { actor });
            }
            let number = self.addresses[actor as usize].1.0 as u8;
            let may_suspect = self.scope.voters < number + self.scope.faults.suspicions;
            if may_suspect && state.suspected & (1 << actor) == 0 {
                moves.push(Move::Suspect { actor });
            }
        }
        if !state.session_open {
            moves.push(Move::OpenSession { actor: state.actors.len() as u8 - 1 });
        }
        for (command, shape) in (0_u8..).zip(&self.scope.pattern.shapes) {
            if state.submitted & (1 << command) == 0 {
                let actor = shape.home * self.scope.voters;
                moves.push(Move::Submit { command, actor, again: false });
            } else if state.retries > 0 {
                let is_there = |actor: &u8| {
                    let known = &self.known[state.actors[*actor as usize] as usize];
                    known.is_ready && shape.groups & (1 << (actor / self.scope.voters)) != 0
                };
                let actors = (0..state.actors.len() as u8).filter(is_there);
                moves.extend(actors.map(|actor| Move::Submit { command, actor, again: true }));
            }
        }
        let is_idle = |number: &u32| self.known[*number as usize].is_idle;
        if moves.is_empty() && self.scope.faults.losses > 0 && state.ticks < 60 && !state.actors.iter().all(is_idle) {
            moves.push(Move::Tick);
        }
        moves
    }

    /// Orders the messages under way.
    fn place(&self, message: u32) -> u32 {
        let envelope = &self.messages[message as usize];
        let link = || envelope.from.1.0 * 8 + u32::from(envelope.to);
        if self.scope.ordered_links { link() } else { message }
    }

    /// What is delivered before anything else happens.
    fn first(&self, state: &State) -> Option<u32> {
        let reduction = self.scope.reduction;
        let is_first = |message: &u32| self.comes_first(state, *message, reduction) && !self.waits(state, *message);
        if reduction == Reduction::None {
            return None;
        }
        state.network.iter().copied().find(is_first)
    }

    /// True if nothing is lost when a message under way comes before anything else.
    fn comes_first(&self, state: &State, message: u32, reduction: Reduction) -> bool {
        let envelope = &self.messages[message as usize];
        match envelope.says {
            Says::Closed => reduction >= Reduction::Closings,
            Says::Contribution(_) => reduction >= Reduction::Facts,
            Says::Timestamp(command) => {
                reduction >= Reduction::Facts
                    && self.may_come_first(state, envelope, usize::from(command) - 1, reduction)
            }
            Says::Proposal(command) => {
                reduction == Reduction::Clocks && self.is_sure(state, envelope.to, usize::from(command) - 1)
            }
            Says::Other => false,
        }
    }

    /// What comes first commutes with all else that its receiver may be given here: its state, and what it sends and
    /// executes, are the same.
    fn try_both(&mut self, state: &State) -> Result<(), String> {
        let is_early = |other: &u32| self.is_early(state, *other);
        let arriving: Vec<u32> = state.network.iter().copied().filter(|other| !is_early(other)).collect();
        for &first in &arriving {
            if !self.comes_first(state, first, Reduction::Clocks) {
                continue;
            }
            let actor = self.messages[first as usize].to;
            let others = arriving.iter().filter(|&&other| other != first && self.messages[other as usize].to == actor);
            let mut others: Vec<Input> = others.map(|&other| Input::Deliver(other)).collect();
            let is_open = |&command: &u8| {
                let shape = self.scope.pattern.shapes[usize::from(command)];
                state.submitted & (1 << command) == 0 && shape.home == actor
            };
            others.extend((0..self.commands.len() as u8).filter(is_open).map(Input::Submit));
            let before = state.actors[usize::from(actor)];
            for other in others {
                let ways =
                    [self.both(before, Input::Deliver(first), other), self.both(before, other, Input::Deliver(first))];
                self.explored.tried += 1;
                if ways[0] != ways[1] {
                    let message = &self.messages[first as usize].message;
                    return Err(format!("{message:?} and {other:?} do not commute: {ways:?}"));
                }
            }
        }
        Ok(())
    }

    /// The state of an actor that is given two inputs, all that it sends, and what executes after what.
    fn both(&mut self, before: u32, one: Input, other: Input) -> (u32, Vec<u32>, BTreeSet<(u8, u8, u64)>) {
        let first = self.step(before, one);
        let second = self.step(self.steps[first].actor, other);
        let (first, second) = (&self.steps[first], &self.steps[second]);
        let mut sent = [first.sent.as_slice(), &second.sent].concat();
        sent.sort_unstable();
        let mut executed = self.known[before as usize].executed;
        let mut all = BTreeSet::new();
        for execution in first.executed.iter().chain(&second.executed) {
            let conflicting = self.known[before as usize].conflicts[usize::from(execution.command)];
            all.insert((execution.command, executed & conflicting, execution.verdict));
            executed |= 1 << execution.command;
        }
        (second.actor, sent, all)
    }

    /// True for a timestamp if it makes no difference to others when it comes.
    fn may_come_first(&self, state: &State, envelope: &Envelope, command: usize, reduction: Reduction) -> bool {
        let Known { at, visitors, standings, .. } = &self.known[state.actors[usize::from(envelope.to)] as usize];
        let from = 1 << envelope.from.0.0;
        let lacks = standings.lacks[command];
        if lacks & from == 0 {
            return false;
        }
        let has_clocks = reduction == Reduction::Clocks;
        if has_clocks && visitors & !standings.known == 0 {
            // Nothing will look at the clock.
            return true;
        }
        let reach = standings.clock.max(envelope.timestamp).max(standings.bounds[command]);
        if lacks == from {
            return has_clocks && reach == standings.clock;
        }
        // The last one that comes moves the clock, whichever it is. What differs is who must wait for the command until then:
        // nobody, or nobody who need not wait anyway.
        self.scope.pattern.conflicts[usize::from(*at)][command] == 0
            || self.largest_missing(state, envelope.to, command, lacks & !from).is_some_and(|largest| largest <= reach)
    }

    /// The largest of those timestamps of a command that these groups have given it and an actor lacks. None if one of them
    /// has not given it one.
    fn largest_missing(&self, state: &State, actor: u8, command: usize, groups: u8) -> Option<u64> {
        let of = |group: u8| {
            let is_it = |envelope: &&Envelope| {
                envelope.to == actor
                    && envelope.from.0.0 == u16::from(group)
                    && envelope.says == Says::Timestamp(command as u8 + 1)
            };
            let mut under_way = state.network.iter().map(|&message| &self.messages[message as usize]);
            under_way.find(is_it).map(|envelope| envelope.timestamp)
        };
        let mut groups = (0..self.scope.pattern.groups).filter(|group| groups & (1 << group) != 0);
        groups.try_fold(0, |largest, group| of(group).map(|timestamp| largest.max(timestamp)))
    }

    /// An actor's clock, while there is a command that will get a timestamp there.
    fn live_clock(&self, state: &State, actor: u8) -> Option<u64> {
        let Known { visitors, standings, .. } = &self.known[state.actors[usize::from(actor)] as usize];
        (visitors & !standings.known != 0).then_some(standings.clock)
    }

    /// True if it is sure which timestamp a command will get from an actor: it is the last to get one there, and no final
    /// timestamp of another will move the clock.
    fn is_sure(&self, state: &State, actor: u8, command: usize) -> bool {
        let Known { visitors, standings, .. } = &self.known[state.actors[usize::from(actor)] as usize];
        let stays_below = |at: usize| {
            standings.lacks[at] == 0
                || standings.bounds[at] <= standings.clock
                    && self
                        .largest_missing(state, actor, at, standings.lacks[at])
                        .is_some_and(|largest| largest <= standings.clock)
        };
        state.jumps == 0 && visitors & !standings.known == 1 << command && (0..COMMANDS_MAX).all(stays_below)
    }

    /// True if it is not delivered before another message.
    fn waits(&self, state: &State, message: u32) -> bool {
        self.scope.reduction >= Reduction::Facts && self.is_early(state, message)
    }

    /// True if another message is under way that its receiver should have before.
    fn is_early(&self, state: &State, message: u32) -> bool {
        let Envelope { from, to, says, .. } = self.messages[message as usize];
        let is_under_way = |wanted: Says, from: Option<Address>| {
            let mut others = state.network.iter().map(|&other| &self.messages[other as usize]);
            others.any(|other| other.says == wanted && other.to == to && from.is_none_or(|from| other.from == from))
        };
        match says {
            Says::Timestamp(command) => is_under_way(Says::Proposal(command), None),
            Says::Contribution(command) => is_under_way(Says::Timestamp(command), Some(from)),
            Says::Proposal(_) | Says::Closed | Says::Other => false,
        }
    }

    /// Takes a move, and then those that are the only ones: to a state where there is a choice, or the end. Returns the moves
    /// there; or what is wrong.
    fn follow(&mut self, state: &mut State, taken: Move, mut trace: Option<&mut String>) -> Result<Vec<Move>, String> {
        let mut taken = taken;
        loop {
            if let Some(trace) = &mut trace {
                writeln!(trace, "  {}", self.describe(state, taken)).unwrap();
            }
            if self.scope.tries_both {
                self.try_both(state)?;
            }
            self.explored.transitions += 1;
            self.take(state, taken)?;
            if self.scope.reduction < Reduction::Clocks {
                return Ok(self.moves(state));
            }
            if let Some(message) = self.first(state) {
                taken = Move::First { message };
                continue;
            }
            let moves = self.choices(state);
            match moves.as_slice() {
                [only] => taken = *only,
                _ => return Ok(moves),
            }
        }
    }

    /// The state behind a move; or what is wrong with it.
    fn take(&mut self, to: &mut State, taken: Move) -> Result<(), String> {
        let (actor, input) = match taken {
            Move::Submit { command, actor, again } => {
                if again {
                    to.retries -= 1;
                } else {
                    to.submitted |= 1 << command;
                    let seen = to.seen;
                    for earlier in (0..COMMANDS_MAX).filter(|at| seen & (1 << at) != 0) {
                        to.note(earlier, command as usize)?;
                    }
                }
                (actor, Input::Submit(command))
            }
            Move::Deliver { message, again } => {
                if again {
                    to.duplicates -= 1;
                } else {
                    remove(&mut to.network, message);
                }
                (self.messages[message as usize].to, Input::Deliver(message))
            }
            Move::First { message } => {
                remove(&mut to.network, message);
                let Envelope { to: actor, says, .. } = self.messages[message as usize];
                let clock = self.live_clock(to, actor);
                self.give(to, actor, Input::Deliver(message), taken)?;
                let may_move = matches!(says, Says::Proposal(_)) || self.scope.reduction < Reduction::Clocks;
                if !may_move && clock != self.live_clock(to, actor) {
                    return Err(format!("what came first moved the clock from {clock:?}"));
                }
                return Ok(());
            }
            Move::Lose { message } => {
                to.losses -= 1;
                remove(&mut to.network, message);
                return Ok(());
            }
            Move::Flush { actor } => (actor, Input::Flush),
            Move::Jump { actor } => {
                to.jumps -= 1;
                (actor, Input::Jump)
            }
            Move::OpenSession { actor } => {
                to.session_open = true;
                (actor, Input::OpenSession)
            }
            Move::Crash { actor } => {
                to.crashes -= 1;
                (actor, Input::Crash)
            }
            Move::Suspect { actor } => {
                to.suspected |= 1 << actor;
                (actor, Input::Suspect)
            }
            Move::Tick => {
                to.ticks += 1;
                for actor in 0..to.actors.len() as u8 {
                    self.give(to, actor, Input::Tick, taken)?;
                }
                return Ok(());
            }
        };
        self.give(to, actor, input, taken)
    }

    fn give(&mut self, to: &mut State, actor: u8, input: Input, taken: Move) -> Result<(), String> {
        let before = to.actors[actor as usize];
        let step = self.step(before, input);
        let step = &self.steps[step];
        if let Some(wrong) = &step.wrong {
            return Err(wrong.clone());
        }
        to.actors[actor as usize] = step.actor;
        for &message in &step.sent {
            let place = self.place(message);
            let at = to.network.partition_point(|&other| self.place(other) <= place);
            to.network.insert(at, message);
        }
        for &(command, reason) in &step.declined {
            self.decline(to, command, reason, taken)?;
        }
        let mut executed = if input == Input::Crash { 0 } else { self.known[before as usize].executed };
        for &execution in &step.executed {
            self.execute(to, actor, executed, execution)?;
            executed |= 1 << execution.command;
        }
        Ok(())
    }

    fn decline(&self, to: &mut State, command: u8, reason: Decline, taken: Move) -> Result<(), String> {
        let is_expected = match reason {
            Decline::Refused(_) => self.scope.faults.late_session,
            Decline::NotPrimary { .. } | Decline::NotReady => self.scope.voters > 1,
            _ => false,
        };
        if !is_expected {
            return Err(format!("command {command} was declined: {reason:?}"));
        }
        if matches!(taken, Move::Submit { again: false, .. }) {
            to.declined |= 1 << command;
        }
        Ok(())
    }

    /// A command executes where others have before.
    fn execute(&self, to: &mut State, actor: u8, before: u8, execution: Execution) -> Result<(), String> {
        let Execution { index, command, verdict } = execution;
        let number = to.actors[actor as usize];
        let conflicting = self.known[number as usize].conflicts[usize::from(command)];
        for earlier in (0..COMMANDS_MAX).filter(|at| before & conflicting & (1 << at) != 0) {
            to.note(earlier, command as usize)?;
        }
        to.seen |= 1 << command;
        if self.scope.voters > 1 {
            let index = u8::try_from(index).unwrap();
            let known = std::mem::replace(&mut to.indexes[command as usize], index);
            if known != 0 && known != index {
                return Err(format!("command {command} executed at {known} and at {index}"));
            }
            if (0..COMMANDS_MAX).any(|other| other != command as usize && to.indexes[other] == index) {
                return Err(format!("two commands executed at {index}"));
            }
            return Ok(());
        }
        let known = std::mem::replace(&mut to.verdicts[command as usize], verdict);
        if known != 0 && known != verdict {
            return Err(format!("the groups of command {command} saw different contributions"));
        }
        // The actor's new state is known to have executed it.
        let has_executed = |number: &u32| {
            let known = &self.known[*number as usize];
            known.visitors & (1 << command) == 0 || known.executed & (1 << command) != 0
        };
        if to.actors.iter().all(has_executed) {
            to.verdicts[command as usize] = 0;
        }
        Ok(())
    }

    /// The number of the step.
    fn step(&mut self, before: u32, input: Input) -> usize {
        if let Some(&step) = self.steps_by.get(&(before, input)) {
            return step as usize;
        }
        self.explored.played += 1;
        let at = self.known[before as usize].at;
        let mut actor = Actor::clone(&self.known[before as usize].actor);
        let done = match input {
            Input::Submit(command) => actor.submit(&self.commands[command as usize]),
            Input::Deliver(message) => {
                let envelope = &self.messages[message as usize];
                actor.deliver(envelope.from, Message::clone(&envelope.message))
            }
            Input::Flush => actor.flush_one(),
            Input::Jump => {
                actor.now += 1_000 * MS;
                Done::default()
            }
            Input::OpenSession => actor.open_session(),
            Input::Crash => {
                actor.crash();
                actor.start();
                actor.pass(0)
            }
            Input::Suspect => actor.pass(2_001 * MS),
            Input::Tick => actor.next_timer(),
        };
        let address = actor.address();
        let mut wrong = actor.notes.wrong.clone();
        if self.scope.reduction == Reduction::Clocks {
            wrong = wrong.or_else(|| follows_clock(&self.known[before as usize], &actor).err());
        }
        let number = self.know(at, actor);
        let sent = done.sent.into_iter().map(|(to, message)| self.know_message(address, to, message)).collect();
        let step = Step { actor: number, sent, executed: done.executed, declined: done.declined, wrong };
        self.steps_by.insert((before, input), self.steps.len() as u32);
        self.steps.push(step);
        self.steps.len() - 1
    }

    /// Nothing can happen any more: everything must be through.
    fn end(&mut self, state: &State) -> Result<(), String> {
        self.explored.ends += 1;
        if self.scope.voters > 1 {
            return self.complete(state);
        }
        self.explored.orders.insert(state.after);
        for (command, shape) in self.scope.pattern.shapes.iter().enumerate() {
            let executed = |group: &u8| {
                let number = state.actors[*group as usize];
                self.known[number as usize].executed & (1 << command) != 0
            };
            let wanted: Vec<u8> =
                (0..self.scope.pattern.groups).filter(|group| shape.groups & (1 << group) != 0).collect();
            let count = wanted.iter().filter(|group| executed(group)).count();
            if count != 0 && count != wanted.len() {
                return Err(format!("command {command} executed in {count} of {} groups", wanted.len()));
            }
            if count == 0 && !self.scope.faults.late_session {
                return Err(format!("command {command} never executed"));
            }
        }
        if !state.actors.iter().all(|&number| self.known[number as usize].is_idle) {
            return Err("something is stuck".to_owned());
        }
        Ok(())
    }

    /// From here on time passes and all messages arrive: clients that ask again get everything executed, and what was
    /// executed before is where it was.
    fn complete(&mut self, state: &State) -> Result<(), String> {
        if !self.completed.insert(state.actors.clone()) {
            return Ok(());
        }
        let mut actors: Vec<Actor> =
            state.actors.iter().map(|&number| Actor::clone(&self.known[number as usize].actor)).collect();
        let latest = actors.iter().map(|actor| actor.now).max().unwrap_or_default();
        actors.iter_mut().for_each(|actor| actor.now = latest);
        let is_through = |actors: &[Actor]| {
            actors.iter().all(|actor| actor.notes.executed.count_ones() as usize == self.commands.len())
        };
        for _ in 0..400 {
            let mut done = round(&mut actors);
            if let Some(primary) = actors.iter().position(Actor::is_ready) {
                for command in &self.commands {
                    done.push((primary, actors[primary].submit(command)));
                }
            }
            deliver_all(&mut actors, done);
            if is_through(&actors) {
                break;
            }
        }
        if let Some(wrong) = actors.iter().find_map(|actor| actor.notes.wrong.clone()) {
            return Err(wrong);
        }
        if !is_through(&actors) {
            return Err("commands that are asked for again do not execute everywhere".to_owned());
        }
        let history = actors[0].notes.history.clone();
        if actors.iter().any(|actor| actor.notes.history != history) {
            return Err("replicas have executed different logs".to_owned());
        }
        for &(index, command) in &history {
            let known = state.indexes[command as usize];
            if known != 0 && u64::from(known) != index {
                return Err(format!("command {command} was executed at {known}, and then at {index}"));
            }
        }
        Ok(())
    }

    fn describe(&self, state: &State, taken: Move) -> String {
        match taken {
            Move::Deliver { message, again } => {
                let envelope = &self.messages[message as usize];
                let (from, to) = (envelope.from, self.addresses[envelope.to as usize]);
                let again = if again { ", and stays under way" } else { "" };
                format!("{}{} -> {}{}: {:?}{again}", from.0, from.1, to.0, to.1, envelope.message)
            }
            Move::First { message } => self.describe(state, Move::Deliver { message, again: false }),
            Move::Lose { message } => format!("lost: {:?}", self.messages[message as usize].message),
            Move::Submit { command, .. } => format!("{taken:?} {:?}", self.commands[command as usize].destinations),
            _ => format!("{taken:?} ({} messages under way)", state.network.len()),
        }
    }
}

fn remove(network: &mut Vec<u32>, message: u32) {
    let at = network.iter().position(|&other| other == message).unwrap();
    network.remove(at);
}

/// The message without what only readers look at: where in the log something stands, and what it depends on.
fn without_places(message: &Message) -> Message {
    let mut message = message.clone();
    if let Message::Facts(facts) = &mut message
        && let Some(contribution) = &mut facts.contribution
    {
        contribution.index = Default::default();
        contribution.depends_on = Default::default();
    }
    message
}

/// Without what its receiver has from a message before: a contribution comes after the timestamp.
fn without_repetition(mut message: Message) -> Message {
    if let Message::Facts(facts) = &mut message
        && facts.contribution.is_some()
    {
        facts.timestamp = None;
    }
    message
}

/// What [`Reduction::Clocks`] rests on: clocks do not go back, new timestamps are beyond the clock, final ones are not, and what
/// has its place in the order only moves to later ones, until its timestamp is final.
fn follows_clock(before: &Known, after: &Actor) -> Result<(), String> {
    let executed = after.notes.executed;
    let (before, after) = (&before.standings, &after.standings());
    if after.clock < before.clock {
        return Err(format!("the clock went back from {} to {}", before.clock, after.clock));
    }
    for at in 0..COMMANDS_MAX {
        let has = |mask: u8| mask & (1 << at) != 0;
        let (bound, old) = (after.bounds[at], before.bounds[at]);
        if has(before.known) && !has(after.known) {
            return Err(format!("command {at} lost its timestamp"));
        }
        if has(after.known)
            && !has(before.known)
            && (after.clock == before.clock || bound != 0 && bound <= before.clock)
        {
            return Err(format!("the new timestamp {bound} of command {at} is not beyond the clock {}", before.clock));
        }
        if has(after.ordered) && bound > after.clock {
            return Err(format!("the final timestamp {bound} of command {at} is beyond the clock {}", after.clock));
        }
        let is_over = has(executed);
        if !is_over && (bound < old || has(before.ordered) && (bound != old || !has(after.ordered))) {
            return Err(format!("command {at} moved from {old} to {bound}"));
        }
    }
    Ok(())
}

/// Each group has a primary, and the session is open but where it is to come late.
fn set_up(actors: &mut [Actor], late: Option<usize>) {
    let primaries: Vec<usize> = (0..actors.len()).filter(|&at| actors[at].address().1.0 == 1).collect();
    while !primaries.iter().all(|&at| actors[at].is_ready()) {
        let done = round(actors);
        deliver_all(actors, done);
    }
    for at in primaries.into_iter().filter(|&at| Some(at) != late) {
        let done = vec![(at, actors[at].open_session())];
        deliver_all(actors, done);
    }
    for _ in 0..5 {
        let done = round(actors);
        deliver_all(actors, done);
    }
}

/// A little time passes everywhere.
fn round(actors: &mut [Actor]) -> Vec<(usize, Done)> {
    actors.iter_mut().enumerate().map(|(at, actor)| (at, actor.pass(60 * MS))).collect()
}

/// All messages arrive, all disks work.
fn deliver_all(actors: &mut [Actor], done: Vec<(usize, Done)>) {
    let mut open: VecDeque<(usize, Done)> = done.into();
    loop {
        while let Some((from, done)) = open.pop_front() {
            let address = actors[from].address();
            for (to, message) in done.sent {
                let to = actors.iter().position(|actor| actor.address() == to).unwrap();
                open.push_back((to, actors[to].deliver(address, message)));
            }
        }
        let Some(at) = actors.iter().position(Actor::has_unflushed) else { return };
        let flushed = actors[at].flush_one();
        open.push_back((at, flushed));
    }
}
