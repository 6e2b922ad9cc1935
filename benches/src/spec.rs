//! What an experiment is: a question, a base, and the settings that are swept over.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One application's operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Open and read a small file that this mount has not read before: a look at the name, then at the content.
    Read,
    /// Read it again: the mount's memory answers.
    Reread,
    /// Look at a name that this mount does not know.
    Stat,
    /// Create a file, write its content, close it: two updates.
    Create,
    /// Overwrite a small file: one update.
    Write,
    /// Make a directory.
    Mkdir,
    /// Change a mode.
    Chmod,
    /// Rename inside a directory.
    Rename,
    /// Remove a file.
    Unlink,
    /// Rename between the own subtree and a remote one: an update of two groups.
    Move,
}

impl Op {
    /// All.
    pub const ALL: [Op; 10] =
        [Op::Read, Op::Reread, Op::Stat, Op::Create, Op::Write, Op::Mkdir, Op::Chmod, Op::Rename, Op::Unlink, Op::Move];

    /// Its name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Reread => "reread",
            Op::Stat => "stat",
            Op::Create => "create",
            Op::Write => "write",
            Op::Mkdir => "mkdir",
            Op::Chmod => "chmod",
            Op::Rename => "rename",
            Op::Unlink => "unlink",
            Op::Move => "move",
        }
    }

    /// By name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.name() == name)
    }
}

/// Whose subtree an operation is in, seen from who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The own region's.
    Local,
    /// Another region's.
    Remote,
    /// The global group's.
    Global,
    /// The own region's and another one's.
    Cross,
}

impl Scope {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Scope::Local => "local",
            Scope::Remote => "remote",
            Scope::Global => "global",
            Scope::Cross => "cross",
        }
    }

    /// By name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Scope> {
        [Scope::Local, Scope::Remote, Scope::Global, Scope::Cross].into_iter().find(|scope| scope.name() == name)
    }
}

/// How commands are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ordering {
    /// Only commands that conflict wait for each other.
    ConflictAware,
    /// One key for everything: classic atomic multicast, the same code.
    Classic,
    /// Deterministic merge of a local and a global stream, as Multi-Ring Paxos does: a model of its own ([`crate::merge`]).
    DeterministicMerge,
}

impl Ordering {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Ordering::ConflictAware => "conflict-aware",
            Ordering::Classic => "classic",
            Ordering::DeterministicMerge => "deterministic-merge",
        }
    }
}

/// What goes wrong, 10 s into the measured time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Nothing.
    None,
    /// The node of the first region's primary stops for good.
    PrimaryDies,
    /// The last region is cut off for 30 s.
    RegionCut,
    /// The last region stops for good, clients and all.
    RegionDies,
}

impl Fault {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::None => "none",
            Fault::PrimaryDies => "primary-dies",
            Fault::RegionCut => "region-cut",
            Fault::RegionDies => "region-dies",
        }
    }
}

/// Settings of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Point {
    /// How many regions, each with a subtree and a group of its own.
    pub regions: usize,
    /// Distances: a preset, a file, or one round trip between all regions such as `80ms`.
    pub rtt: String,
    /// Voters of each region's group, all in that region, on as many machines.
    pub voters: usize,
    /// Applications in each region, each with one operation under way.
    pub clients: usize,
    /// Mounts in each region, each on a machine of its own; applications are spread over them.
    pub mounts: usize,
    /// What they do, in turns of equal chance.
    pub ops: Vec<Op>,
    /// This share of operations is in the own subtree,
    pub locality: f64,
    /// … and the others there.
    pub elsewhere: Scope,
    /// This share of commands moves files between the own subtree and another region's.
    pub multi_group: f64,
    /// How commands are ordered.
    pub ordering: Ordering,
    /// Bytes of a file.
    pub size: usize,
    /// Pause between two operations of an application.
    pub think_ms: f64,
    /// Runs so long before it is measured.
    pub warmup_ms: u64,
    /// Is measured for so long.
    pub duration_ms: u64,
    /// What goes wrong.
    pub fault: Fault,
    /// A learner of the first region's group stands in the last region, where so many applications read that subtree.
    pub far_readers: usize,
    /// All nodes and mounts share one machine, as `globalfs up` has it.
    pub one_machine: bool,
    /// The applications of a region work in one folder, which their kernel locks for each change of a name. Else they do
    /// as if each had one of its own.
    pub one_folder: bool,
}

impl Default for Point {
    fn default() -> Self {
        Point {
            regions: 3,
            rtt: "geo3".into(),
            voters: 3,
            clients: 64,
            mounts: 4,
            ops: vec![Op::Create],
            locality: 1.0,
            elsewhere: Scope::Remote,
            multi_group: 0.0,
            ordering: Ordering::ConflictAware,
            size: 1024,
            think_ms: 0.0,
            warmup_ms: 500,
            duration_ms: 1_000,
            fault: Fault::None,
            far_readers: 0,
            one_machine: false,
            one_folder: false,
        }
    }
}

impl Point {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn check(&self) -> Result<()> {
        let fail = |problem: String| Err(Error::Invalid(problem));
        if !(1..=16).contains(&self.regions) {
            return fail(format!("{} regions: 1 to 16 are possible", self.regions));
        }
        if !matches!(self.voters, 1 | 3 | 5) {
            return fail(format!("{} voters: 1, 3 or 5 are possible", self.voters));
        }
        if self.clients > 100_000 || self.mounts == 0 || self.mounts > 1_000 {
            return fail("at most 100000 applications and 1 to 1000 mounts per region are possible".into());
        }
        if ![self.locality, self.multi_group].iter().all(|share| (0.0..=1.0).contains(share)) {
            return fail("shares are from 0 to 1".into());
        }
        if self.ops.is_empty() || self.size == 0 || self.size > 4096 {
            return fail("at least one operation, and files of 1 to 4096 bytes (what travels in the metadata)".into());
        }
        if self.duration_ms == 0 || self.duration_ms + self.warmup_ms > 3_600_000 {
            return fail("durations are above zero and at most an hour".into());
        }
        if !self.think_ms.is_finite() || self.think_ms < 0.0 {
            return fail("pauses are not negative".into());
        }
        if self.far_readers > 0 && self.regions < 2 {
            return fail("far readers need another region".into());
        }
        Ok(())
    }

    /// The point in a few words.
    #[must_use]
    pub fn label(&self) -> String {
        let ops: Vec<&str> = self.ops.iter().map(|op| op.name()).collect();
        let mut words = vec![format!("{} regions", self.regions), self.rtt.clone(), ops.join("+")];
        if self.locality < 1.0 {
            words.push(format!("{} % local, else {}", percent(self.locality), self.elsewhere.name()));
        }
        if self.multi_group > 0.0 {
            words.push(format!("{} % multi-group", percent(self.multi_group)));
        }
        if self.ordering != Ordering::ConflictAware {
            words.push(self.ordering.name().into());
        }
        if self.fault != Fault::None {
            words.push(self.fault.name().into());
        }
        if self.far_readers > 0 {
            words.push(format!("{} far readers, {} writers", self.far_readers, self.clients));
        }
        words.join(", ")
    }
}

/// A share as a number of percent.
#[must_use]
pub fn percent(share: f64) -> f64 {
    (share * 10_000.0).round() / 100.0
}

/// How the results are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Bars of throughput.
    Bars,
    /// Lines of throughput per region, one region being one.
    Normalised,
    /// A table of medians by distance, shaded.
    Heat,
    /// Latency against the share of multi-group commands.
    Convoy,
    /// Throughput and latency over time.
    Timeline,
    /// Lag and reads in a far region.
    Lag,
    /// What crosses the wide area.
    Cost,
}

/// Which settings are tried in all combinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sweep {
    /// See [`Point::regions`].
    pub regions: Vec<usize>,
    /// See [`Point::rtt`].
    pub rtt: Vec<String>,
    /// One operation each, see [`Point::ops`].
    pub ops: Vec<Op>,
    /// See [`Point::locality`].
    pub locality: Vec<f64>,
    /// Everything in this one: sets [`Point::locality`] and [`Point::elsewhere`].
    pub scope: Vec<Scope>,
    /// See [`Point::multi_group`].
    pub multi_group: Vec<f64>,
    /// See [`Point::ordering`].
    pub ordering: Vec<Ordering>,
    /// See [`Point::fault`].
    pub fault: Vec<Fault>,
    /// See [`Point::clients`].
    pub clients: Vec<usize>,
}

/// An experiment as a file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Short, for file names.
    pub name: String,
    /// For people.
    pub title: String,
    /// What it answers.
    pub question: String,
    /// What its numbers do not show.
    #[serde(default)]
    pub caveat: String,
    /// How it is drawn.
    pub figure: Figure,
    /// What all points have in common.
    #[serde(default)]
    pub base: Point,
    /// What differs.
    #[serde(default)]
    pub sweep: Sweep,
}

impl Experiment {
    /// Reads one.
    ///
    /// # Errors
    /// If it makes no sense.
    pub fn parse(text: &str) -> Result<Experiment> {
        let experiment: Experiment = toml::from_str(text).map_err(|error| Error::Invalid(error.to_string()))?;
        experiment.points()?;
        Ok(experiment)
    }

    /// All combinations that make sense: one region has no others.
    ///
    /// # Errors
    /// If a point makes no sense.
    pub fn points(&self) -> Result<Vec<Point>> {
        let sweep = &self.sweep;
        let mut points = vec![self.base.clone()];
        points = each(points, &sweep.fault, |point, &fault| point.fault = fault);
        points = each(points, &sweep.ordering, |point, &ordering| point.ordering = ordering);
        points = each(points, &sweep.multi_group, |point, &share| point.multi_group = share);
        points = each(points, &sweep.ops, |point, &op| point.ops = vec![op]);
        points = each(points, &sweep.locality, |point, &share| point.locality = share);
        points = each(points, &sweep.scope, |point, &scope| {
            point.elsewhere = scope;
            point.locality = if scope == Scope::Local { 1.0 } else { 0.0 };
        });
        points = each(points, &sweep.rtt, |point, rtt| point.rtt.clone_from(rtt));
        points = each(points, &sweep.clients, |point, &clients| point.clients = clients);
        points = each(points, &sweep.regions, |point, &regions| point.regions = regions);
        points.retain(Point::is_possible);
        points.dedup();
        points.iter().try_for_each(Point::check)?;
        Ok(points)
    }
}

impl Point {
    /// Moves are between subtrees and nothing else is; one region has no other.
    fn is_possible(&self) -> bool {
        let cross = self.elsewhere == Scope::Cross && self.locality < 1.0;
        let moves = self.ops == [Op::Move];
        let alone = self.regions == 1 && (moves || self.multi_group > 0.0);
        let remote_alone = self.regions == 1 && self.locality == 0.0 && self.elsewhere != Scope::Global;
        cross == moves && !alone && !remote_alone
    }
}

fn each<T>(points: Vec<Point>, values: &[T], set: impl Fn(&mut Point, &T)) -> Vec<Point> {
    if values.is_empty() {
        return points;
    }
    let with = |point: &Point| {
        let changed = values.iter().map(|value| {
            let mut point = point.clone();
            set(&mut point, value);
            point
        });
        changed.collect::<Vec<_>>()
    };
    points.iter().flat_map(with).collect()
}
