//! One run: a safety phase with faults, then a liveness phase in which everything must finish, then the checks of all that
//! was written down.

use std::panic::{AssertUnwindSafe, catch_unwind};

use multicast::MemberRole;
use multicast::ids::{GroupId, ReplicaId};

use crate::checks::linear::Searched;
use crate::options::{MS, Options};
use crate::planted::Bug;
use crate::replica::Replica;
use crate::world::{Failure, World};

/// How long, after faults have ended, until everything must be done.
const LIVENESS_MS: u64 = 300_000;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing wrong.
    Clean,
    /// Something happened that never may.
    Safety(String),
    /// Something did not happen that must.
    Liveness(String),
    /// The code panicked.
    Crash(String),
}

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// How it ended.
    pub verdict: Verdict,
    /// The same for the same run.
    pub trace_hash: u64,
    /// Events.
    pub events: u64,
    /// Virtual time, in milliseconds.
    pub simulated_ms: u64,
    /// Commands executed, over all groups.
    pub executed: u64,
    /// Reads answered.
    pub reads: u64,
    /// Replicas whose group found out that their state was another one.
    pub quarantined: u64,
    /// Changes of memberships.
    pub changes: u64,
    /// Disks that were lost, or went bad, and were replaced by empty ones.
    pub disks: u64,
    /// Copies of states that were put in place.
    pub copies: u64,
    /// What the black-box search has decided.
    pub searched: Searched,
    /// The trace, if it was asked for.
    pub lines: Vec<String>,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, bug: Option<Bug>, readable: bool) -> Outcome {
    run_with(seed, Options::draw(seed), bug, readable)
}

/// Runs one seed with options of one's own.
#[must_use]
pub fn run_with(seed: u64, options: Options, bug: Option<Bug>, readable: bool) -> Outcome {
    let mut world = World::new(seed, options, bug, readable);
    world.trace.line(0, || format!("seed {seed}: {:#?}", world.options));
    let ended = catch_unwind(AssertUnwindSafe(|| play(&mut world)));
    let searched = ended.as_ref().ok().and_then(|ended| ended.as_ref().ok()).copied().unwrap_or_default();
    let verdict = match ended {
        Ok(Ok(_)) => Verdict::Clean,
        Ok(Err(Failure::Safety(what))) => Verdict::Safety(what),
        Ok(Err(Failure::Liveness(what))) => Verdict::Liveness(what),
        Err(panic) => Verdict::Crash(words(&*panic)),
    };
    world.trace.line(world.now, || format!("{verdict:?}"));
    Outcome {
        seed,
        verdict,
        trace_hash: world.trace.hash(),
        events: world.trace.events(),
        simulated_ms: world.now / MS,
        executed: world.ledger.executed.values().map(|executed| executed.len() as u64).sum(),
        reads: world.ledger.reads(),
        quarantined: world.operator.quarantined,
        changes: world.operator.changes,
        disks: world.operator.wipes,
        copies: world.operator.copies_installed,
        searched,
        lines: world.trace.into_lines(),
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "panic".to_owned())
}

fn play(world: &mut World) -> Result<Searched, Failure> {
    world.run_until(world.options.faults_until_ms * MS)?;
    let limit = world.now + LIVENESS_MS * MS;
    while !world.is_quiet() {
        if world.now >= limit {
            return Err(Failure::Liveness(world.describe()));
        }
        world.run_until(world.now + 500 * MS)?;
    }
    if world.options.only_black_box { crate::checks::black_box(world) } else { crate::checks::finish(world) }
}

impl World {
    /// Everyone is done, everything is applied everywhere, nothing is left over.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.faulty
            && self.clients.iter().all(crate::client::Client::is_done)
            && self.options.groups.keys().all(|&group| self.is_settled(group))
    }

    /// All members have all, each with the disk that its group knows, and whoever may be read has it too.
    fn is_settled(&self, group: GroupId) -> bool {
        let Some((_, primary)) = self.primary_of(group) else { return false };
        let (last, members) = (primary.status().last, primary.membership());
        let of = |id: &ReplicaId| self.nodes.get(id)?.replicas.get(&group);
        let has_all = |replica: &Replica| {
            let live = replica.live.as_ref();
            live.is_some_and(|live| live.ordering().order().applied() == last) && !replica.is_quarantined()
        };
        let is_in_place = |member: &multicast::Member| {
            member.role != MemberRole::Joining
                && self.incarnation(group, member.replica) == Some(member.incarnation)
                && of(&member.replica).is_some_and(has_all)
        };
        let is_readable = |replica: &&Replica| {
            let front = replica.live.as_ref().map(|live| &live.view.front);
            front.is_some_and(|front| !front.is_quarantined)
        };
        primary.unfinished().is_empty()
            && primary.order().changing_locks().next().is_none()
            && members.members.iter().all(is_in_place)
            && self.hosts(group).iter().filter_map(of).filter(is_readable).all(has_all)
    }

    /// Who still waits for what.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!("not done at {} ms", self.now / MS);
        for client in self.clients.iter().filter(|client| !client.is_done()) {
            text += &format!("; client {} left {} waits for", client.number, client.left);
            for pending in client.pending.values() {
                text += &format!(" [{} {:?} try {}]", pending.group, pending.ask, pending.attempt);
            }
        }
        for &group in self.options.groups.keys().filter(|&&group| !self.is_settled(group)) {
            text += &format!("; {group} is not settled");
            let members = self.primary_of(group).map(|(_, primary)| primary.membership());
            for member in members.iter().flat_map(|members| &members.members) {
                let is_known = self.incarnation(group, member.replica) == Some(member.incarnation);
                let disk = if is_known { "" } else { " with another disk" };
                text += &format!(" {} {:?}{disk}", member.replica, member.role);
            }
        }
        for (group, node) in self.nodes.values().flat_map(|node| node.replicas.keys().map(move |group| (group, node))) {
            let Some(live) = node.replicas.get(group).and_then(|replica| replica.live.as_ref()) else {
                text += &format!("; {group}/{} is down", node.id);
                continue;
            };
            let status = live.ordering().status();
            text += &format!(
                "; {group}/{} {:?} ballot {} log {}/{}/{} members {}{}{}",
                node.id,
                status.role,
                status.promised.round,
                status.applied.0,
                status.committed.0,
                status.last.0,
                status.membership.version,
                if status.is_expelled { ", expelled" } else { "" },
                if live.view.front.is_quarantined { ", closed" } else { "" }
            );
            for unfinished in live.ordering().unfinished() {
                text += &format!(" {} waits for {:?}", unfinished.id, unfinished.waits_for);
            }
        }
        text
    }
}
