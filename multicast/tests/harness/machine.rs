//! A small machine: keys → last writer, and how often each was added to. Its history is what the checkers read.

use std::collections::BTreeMap;

use bytes::Bytes;
use multicast::command::{Command, Key, Mode};
use multicast::ids::{CommandId, GroupId, LogIndex, SessionId};
use multicast::{Context, Contributions, Machine};
use xxhash_rust::xxh3::xxh3_64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    pub index: LogIndex,
    pub id: CommandId,
    pub timestamp: u64,
    pub footprint: Vec<(Key, Mode)>,
    /// Hash of the joint contributions: the same in every destination.
    pub verdict: u64,
    pub groups: Vec<GroupId>,
    pub outcome: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestMachine {
    pub writers: BTreeMap<Key, CommandId>,
    pub counters: BTreeMap<Key, u64>,
    pub sessions: BTreeMap<SessionId, LogIndex>,
    pub history: Vec<Executed>,
    pub digest: u64,
}

impl TestMachine {
    fn mix(&mut self, what: &str) {
        let mut bytes = self.digest.to_le_bytes().to_vec();
        bytes.extend_from_slice(what.as_bytes());
        self.digest = xxh3_64(&bytes);
    }

    fn observed(&self, context: &Context, command: &Command) -> String {
        let mut seen = String::new();
        for (key, mode) in command.footprint(context.group).unwrap_or(&[]) {
            match mode {
                Mode::Add => seen.push('+'),
                Mode::Read | Mode::Write => {
                    seen.push_str(&format!("{:?}{:?};", self.writers.get(key), self.counters.get(key)));
                }
            }
        }
        seen
    }
}

impl Machine for TestMachine {
    fn contribute(&mut self, context: &Context, command: &Command) -> Bytes {
        Bytes::from(self.observed(context, command))
    }

    fn execute(&mut self, context: &Context, command: &Command, contributions: &Contributions) -> Bytes {
        let seen = self.observed(context, command);
        if let Some(own) = contributions.get(context.group) {
            // Its keys were locked since: nothing that it depends on may have changed.
            assert_eq!(own, seen.as_bytes(), "the contribution of {} still holds when it executes", command.id);
        }
        let footprint = command.footprint(context.group).unwrap_or(&[]).to_vec();
        for &(key, mode) in &footprint {
            match mode {
                Mode::Write => {
                    self.writers.insert(key, command.id);
                }
                Mode::Add => *self.counters.entry(key).or_default() += 1,
                Mode::Read => {}
            }
        }
        let verdict = xxh3_64(format!("{contributions:?}").as_bytes());
        let outcome = if command.is_multi_group() { verdict.to_string() } else { seen };
        self.mix(&format!("{} {verdict} {outcome} {}", command.id, context.timestamp.0));
        let outcome = Bytes::from(outcome);
        self.history.push(Executed {
            index: context.index,
            id: command.id,
            timestamp: context.timestamp.0,
            footprint,
            verdict,
            groups: command.groups().collect(),
            outcome: outcome.clone(),
        });
        outcome
    }

    fn session_opened(&mut self, context: &Context, session: SessionId) {
        self.sessions.insert(session, context.index);
        self.mix(&format!("open {session}"));
    }

    fn session_closed(&mut self, _context: &Context, session: SessionId) {
        self.sessions.remove(&session);
        self.mix(&format!("close {session}"));
    }
}
