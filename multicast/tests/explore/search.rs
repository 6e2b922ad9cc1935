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

use super::actor::{Actor, Done, Flush, Identity};
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
    /// command. Timestamps do not overtake their command, nor contributions their timestamp. Sound while nothing gets lost,
    /// doubled, refused or asked for again.
    All,
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
            identity: Identity::Behaviour(false),
            reduction: Reduction::All,
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
    pub states: usize,
    pub transitions: usize,
    /// Of these transitions so many were played on the core; the others were known.
    pub played: usize,
    /// States in which nothing can happen any more.
    pub ends: usize,
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
    fn fingerprint(&self, buffer: &mut Vec<u8>) -> u128 {
        buffer.clear();
        for word in self.actors.iter().chain(&self.network) {
            buffer.extend_from_slice(&word.to_le_bytes());
        }
        buffer.extend_from_slice(&self.after);
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

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Submit { command: u8, actor: u8, again: bool },
    Deliver { message: u32, again: bool },
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
    executed: Vec<(u64, u8)>,
    declined: Vec<(u8, Decline)>,
    wrong: Option<String>,
}

struct Envelope {
    from: Address,
    to: u8,
    message: Message,
    says: Says,
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
    actor: Actor,
    at: u8,
    executed: u8,
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
    steps: HashMap<(u32, Input), Arc<Step>>,
    completed: HashSet<Vec<u32>>,
    explored: Explored,
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
        let from = state.clone();
        world.explored.transitions += 1;
        let failed = match world.take(&from, taken) {
            Ok(to) => {
                if !visited.insert(to.fingerprint(&mut buffer)) {
                    continue;
                }
                if visited.len() >= world.scope.states_max {
                    world.explored.is_complete = false;
                    break;
                }
                let mut moves = world.moves(&to);
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
            for (state, moves, next) in &stack {
                if let Some(taken) = next.checked_sub(1).map(|at| moves[at]) {
                    writeln!(trace, "  {}", world.describe(state, taken)).unwrap();
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
            steps: HashMap::new(),
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
            self.known.push(Known { actor, at, executed, is_ready, has_unflushed, is_idle });
        }
        number
    }

    fn know_message(&mut self, from: Address, to: Address, message: Message) -> u32 {
        let identity = match self.scope.identity {
            Identity::Whole => message.clone(),
            Identity::Behaviour(_) => without_places(&message),
        };
        let to = self.addresses.iter().position(|&address| address == to).unwrap() as u8;
        let fingerprint = xxh3_128(format!("{from:?} {to} {identity:?}").as_bytes());
        let next = self.messages.len() as u32;
        let number = *self.messages_by.entry(fingerprint).or_insert(next);
        if number == next {
            let says = Says::of(&message);
            self.messages.push(Envelope { from, to, message, says });
        }
        number
    }

    /// Everything that can happen next. In the order in which it is tried.
    fn moves(&self, state: &State) -> Vec<Move> {
        let mut under_way = state.network.clone();
        under_way.dedup_by_key(|message| self.place(*message));
        if let Some(message) = self.first(state, &under_way) {
            return vec![Move::Deliver { message, again: false }];
        }
        let mut moves = Vec::new();
        for &message in under_way.iter().filter(|&&message| !self.waits(message, &under_way)) {
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
    fn first(&self, state: &State, under_way: &[u32]) -> Option<u32> {
        let is_first = |&&message: &&u32| match self.messages[message as usize].says {
            Says::Closed => self.scope.reduction >= Reduction::Closings,
            Says::Contribution(_) => self.scope.reduction == Reduction::All && !self.waits(message, under_way),
            Says::Timestamp(_) => {
                self.scope.reduction == Reduction::All
                    && !self.waits(message, under_way)
                    && self.moves_no_clock(state, &self.messages[message as usize])
            }
            Says::Proposal(_) | Says::Other => false,
        };
        under_way.iter().find(is_first).copied()
    }

    /// True for a timestamp that is not the last one.
    fn moves_no_clock(&self, state: &State, envelope: &Envelope) -> bool {
        let Message::Facts(facts) = &envelope.message else { return false };
        let core = self.known[state.actors[usize::from(envelope.to)] as usize].actor.core.as_ref();
        core.is_some_and(|core| core.lacks_more_than(facts.id, envelope.from.0))
    }

    /// True if it is not delivered before another message.
    fn waits(&self, message: u32, under_way: &[u32]) -> bool {
        let envelope = &self.messages[message as usize];
        let is_there = |says: Says, from: Option<Address>| {
            let mut others = under_way.iter().map(|&other| &self.messages[other as usize]);
            others.any(|other| {
                other.to == envelope.to && other.says == says && from.is_none_or(|from| other.from == from)
            })
        };
        self.scope.reduction == Reduction::All
            && match envelope.says {
                Says::Timestamp(command) => is_there(Says::Proposal(command), None),
                Says::Contribution(command) => is_there(Says::Timestamp(command), Some(envelope.from)),
                Says::Proposal(_) | Says::Closed | Says::Other => false,
            }
    }

    /// The state behind a move; or what is wrong with it.
    fn take(&mut self, from: &State, taken: Move) -> Result<State, String> {
        let mut to = from.clone();
        let (actor, input) = match taken {
            Move::Submit { command, actor, again } => {
                if again {
                    to.retries -= 1;
                } else {
                    to.submitted |= 1 << command;
                    for earlier in (0..COMMANDS_MAX).filter(|at| from.seen & (1 << at) != 0) {
                        self.order(&mut to, earlier, command as usize)?;
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
            Move::Lose { message } => {
                to.losses -= 1;
                remove(&mut to.network, message);
                return Ok(to);
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
                    self.give(&mut to, actor, Input::Tick, taken)?;
                }
                return Ok(to);
            }
        };
        self.give(&mut to, actor, input, taken)?;
        Ok(to)
    }

    fn give(&mut self, to: &mut State, actor: u8, input: Input, taken: Move) -> Result<(), String> {
        let before = to.actors[actor as usize];
        let step = self.step(before, input);
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
        for &(index, command) in &step.executed {
            self.execute(to, actor, executed, (index, command))?;
            executed |= 1 << command;
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
    fn execute(&self, to: &mut State, actor: u8, before: u8, (index, command): (u64, u8)) -> Result<(), String> {
        let number = to.actors[actor as usize];
        let conflicting = self.known[number as usize].actor.conflicting(command);
        for earlier in (0..COMMANDS_MAX).filter(|at| before & conflicting & (1 << at) != 0) {
            self.order(to, earlier, command as usize)?;
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
        }
        Ok(())
    }

    /// Notes that one command comes before another. There must be one order for all.
    fn order(&self, to: &mut State, earlier: usize, later: usize) -> Result<(), String> {
        if earlier == later || to.after[later] & (1 << earlier) != 0 {
            return Err(format!("command {earlier} comes before and after command {later}: no order explains this"));
        }
        let gained = to.after[later] | 1 << later;
        for at in 0..COMMANDS_MAX {
            if at == earlier || to.after[at] & (1 << earlier) != 0 {
                to.after[at] |= gained;
            }
        }
        Ok(())
    }

    fn step(&mut self, before: u32, input: Input) -> Arc<Step> {
        if let Some(step) = self.steps.get(&(before, input)) {
            return Arc::clone(step);
        }
        self.explored.played += 1;
        let at = self.known[before as usize].at;
        let mut actor = self.known[before as usize].actor.clone();
        let done = match input {
            Input::Submit(command) => actor.submit(&self.commands[command as usize]),
            Input::Deliver(message) => {
                let envelope = &self.messages[message as usize];
                actor.deliver(envelope.from, envelope.message.clone())
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
        let wrong = actor.notes.wrong.clone();
        let number = self.know(at, actor);
        let sent = done.sent.into_iter().map(|(to, message)| self.know_message(address, to, message)).collect();
        let step = Step { actor: number, sent, executed: done.executed, declined: done.declined, wrong };
        let step = Arc::new(step);
        self.steps.insert((before, input), Arc::clone(&step));
        step
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
            let verdict = |group: &u8| {
                self.known[state.actors[*group as usize] as usize].actor.notes.verdicts.get(&(command as u8))
            };
            if !wanted.windows(2).all(|pair| verdict(&pair[0]) == verdict(&pair[1])) {
                return Err(format!("the groups of command {command} saw different contributions"));
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
            state.actors.iter().map(|&number| self.known[number as usize].actor.clone()).collect();
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
