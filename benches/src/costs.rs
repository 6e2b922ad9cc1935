//! What work costs on one kind of machine: measured by `globalfs bench calibrate`, read from a file with units.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::Op;

/// More than this share of the work cannot come last: it would be done by nobody.
pub const AHEAD_MAX: f64 = 0.9;

/// Costs of a machine. Everything in microseconds of one CPU unless the name says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Where the figures come from.
    pub machine: Machine,
    /// CPU.
    pub cpu_us: Cpu,
    /// The disk of the log.
    pub disk: Disk,
    /// What is between machines.
    pub network: Network,
}

/// Where and when it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Processor, system, memory.
    pub name: String,
    /// When, in UTC.
    pub date: String,
    /// CPUs of each machine, as many as the measured one had.
    pub cpus: usize,
    /// The share of its work that a thread of a node or a mount does after it has handed on what others wait for.
    #[serde(default)]
    pub ahead: f64,
    /// The share of a CPU up to which the kernel leaves threads on it that wake each other, though another one is idle. Zero: it
    /// does not. Only where all is emulated on one machine.
    #[serde(default)]
    pub packs: f64,
}

/// CPU time per piece of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// A thread that sleeps is woken, with a processor that sleeps, too.
    pub wake: f64,
    /// … with one that has been busy until now.
    pub switch: f64,
    /// A batch of frames goes to one peer, or comes while the receiver sleeps: system calls, packet, cryptography.
    pub packet: f64,
    /// Each further frame of a batch, at each end.
    pub frame: f64,
    /// A node takes a client's request apart, or a reply together.
    pub request: f64,
    /// A replica's turn: queues, timers, the log's thread.
    pub turn: f64,
    /// The ordering core, for each message between replicas.
    pub message: f64,
    /// The ordering core at the primary, for each command.
    pub order: f64,
    /// Execution of an update by the namespace, on each replica.
    pub execute: f64,
    /// A write of the state store.
    pub store_batch: f64,
    /// … and for each update in it: an overwrite, or what is not named below.
    pub store_update: f64,
    /// An answer from the state.
    pub read: f64,
    /// The log's thread writes a batch.
    pub log_batch: f64,
    /// One request of the kernel to a mount that its memory answers, with the calling program's part.
    pub fuse: f64,
    /// … and what that takes longer while processors sleep in between.
    pub fuse_idle: f64,
    /// … and while they are busy, but the mount's thread has slept before.
    #[serde(default)]
    pub fuse_cold: f64,
    /// One request of the kernel to a mount that asks a node, with the calling program's part.
    pub fuse_call: f64,
    /// The mount's part of asking a node, beside the network's.
    pub mount_call: f64,
    /// The mount takes back what it has lent to the kernel.
    pub lent: f64,
    /// The emulation of distances holds a packet. Only where all is emulated on one machine.
    pub hold: f64,
    /// Updates of some kinds in a write of the state store.
    #[serde(default)]
    pub store_updates: BTreeMap<Op, f64>,
}

impl Cpu {
    /// An update in a write of the state store.
    #[must_use]
    pub fn store_update_of(&self, op: Op) -> f64 {
        self.store_updates.get(&op).copied().unwrap_or(self.store_update)
    }
}

/// The disk of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// A flush takes at least so long.
    pub flush_us: f64,
    /// … and this much longer on average, exponentially distributed.
    pub flush_tail_us: f64,
    /// … and this much longer if the system's clock has ticked since the last one: the file's new time is written, too.
    #[serde(default)]
    pub flush_stamp_us: f64,
    /// … and for each other flush that the disk is at.
    #[serde(default)]
    pub flush_beside_us: f64,
    /// Bytes per second beside that.
    pub mib_per_s: f64,
}

/// Between machines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What the path costs each way beside distance and CPU.
    pub path_us: f64,
    /// How much later than asked for an emulation lets go of a packet.
    pub hold_late_us: f64,
    /// What a machine can send.
    pub mbit_per_s: f64,
}

impl Calibration {
    /// What was measured on the machine of `docs/benchmarks.md`.
    ///
    /// # Panics
    /// Never: a test reads it.
    #[must_use]
    pub fn checked_in() -> Calibration {
        toml::from_str(include_str!("../calibration.toml")).expect("the calibration that is checked in is well formed")
    }

    /// From a file.
    ///
    /// # Errors
    /// If it cannot be read or makes no sense.
    pub fn load(path: &Path) -> Result<Calibration> {
        let bad = |problem: String| Error::File { path: path.into(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let costs: Calibration = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        costs.check().map_err(bad)?;
        Ok(costs)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let cpu = &self.cpu_us;
        let all = [
            cpu.wake,
            cpu.switch,
            cpu.packet,
            cpu.frame,
            cpu.request,
            cpu.turn,
            cpu.message,
            cpu.order,
            cpu.execute,
            cpu.store_batch,
            cpu.store_update,
            cpu.read,
            cpu.log_batch,
            cpu.fuse,
            cpu.fuse_idle,
            cpu.fuse_cold,
            cpu.fuse_call,
            cpu.mount_call,
            cpu.lent,
            cpu.hold,
            self.disk.flush_us,
            self.disk.flush_tail_us,
            self.disk.flush_stamp_us,
            self.disk.flush_beside_us,
            self.network.path_us,
            self.network.hold_late_us,
        ];
        if all.iter().chain(cpu.store_updates.values()).any(|cost| !cost.is_finite() || *cost < 0.0 || *cost > 1e7) {
            return Err("a cost is negative or beyond ten seconds".into());
        }
        if !(0.0..=AHEAD_MAX).contains(&self.machine.ahead) {
            return Err(format!("`ahead` is a share, from 0 to {AHEAD_MAX}"));
        }
        if !(0.0..=1.0).contains(&self.machine.packs) {
            return Err("`packs` is a share, from 0 to 1".into());
        }
        let rates = [self.disk.mib_per_s, self.network.mbit_per_s];
        if rates.iter().any(|rate| !rate.is_finite() || *rate <= 0.0) || !(1..=1024).contains(&self.machine.cpus) {
            return Err("rates must be positive, and there are 1 to 1024 CPUs".into());
        }
        Ok(())
    }

    /// Two digits behind the point are more than anybody can measure.
    pub fn round(&mut self) {
        let rounded = |value: f64| (value * 100.0).round() / 100.0;
        self.machine.ahead = rounded(self.machine.ahead);
        self.machine.packs = rounded(self.machine.packs);
        let (cpu, disk, network) = (&mut self.cpu_us, &mut self.disk, &mut self.network);
        for value in [
            &mut cpu.wake,
            &mut cpu.switch,
            &mut cpu.packet,
            &mut cpu.frame,
            &mut cpu.request,
            &mut cpu.turn,
            &mut cpu.message,
            &mut cpu.order,
            &mut cpu.execute,
            &mut cpu.store_batch,
            &mut cpu.store_update,
            &mut cpu.read,
            &mut cpu.log_batch,
            &mut cpu.fuse,
            &mut cpu.fuse_idle,
            &mut cpu.fuse_cold,
            &mut cpu.fuse_call,
            &mut cpu.mount_call,
            &mut cpu.lent,
            &mut cpu.hold,
            &mut disk.flush_us,
            &mut disk.flush_tail_us,
            &mut disk.flush_stamp_us,
            &mut disk.flush_beside_us,
            &mut network.path_us,
            &mut network.hold_late_us,
        ] {
            *value = rounded(*value);
        }
        cpu.store_updates.values_mut().for_each(|value| *value = rounded(*value));
    }

    /// As a file, with a word on units.
    ///
    /// # Errors
    /// If it cannot be written as text.
    pub fn to_text(&self) -> Result<String> {
        let body = toml::to_string(self).map_err(|error| Error::Invalid(error.to_string()))?;
        Ok(format!(
            "# What work costs on this machine, measured by `globalfs bench calibrate`.\n\
             # CPU and flushes in microseconds, bandwidths as named. Used by `globalfs bench geo --calibration FILE`.\n\n{body}"
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn checked_in_calibration_makes_sense_and_survives_a_round_trip() {
        let costs = Calibration::checked_in();
        costs.check().unwrap();
        assert_eq!(toml::from_str::<Calibration>(&costs.to_text().unwrap()).unwrap(), costs);
    }
}
