//! `globalfs wan`: the emulated network between regions, changed while everything runs.

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use net::wan::{self, Matrix};
use serde_json::json;

use crate::args::Globals;
use crate::config::find;
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::output::{Table, red, say, say_all};
use crate::units::TimeSpan;

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs wan show
  globalfs wan cut us eu            nothing gets through between us and eu
  globalfs wan cut ap '*'           ap is alone
  globalfs wan heal                 every cut is mended
  globalfs wan delay us eu 80ms     the round trip between us and eu takes 80 ms
  globalfs wan loss us eu 0.5%      half a percent of the datagrams is lost

Every process of the cluster follows within 0.1 s. '*' stands for every region.")]
pub struct WanArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Cut a link, both ways
    #[command(after_help = "Examples:
  globalfs wan cut us eu
  globalfs wan cut ap '*'           ap is alone
  globalfs wan cut us eu --one-way  nothing gets from us to eu")]
    Cut {
        /// A region, or '*'
        a: String,
        /// Another region, or '*'
        b: String,
        /// Only the way from A to B
        #[arg(long)]
        one_way: bool,
    },
    /// Mend one link, or all of them
    #[command(after_help = "Examples:
  globalfs wan heal                 every cut is mended
  globalfs wan heal us eu")]
    Heal {
        /// A region
        #[arg(requires = "b")]
        a: Option<String>,
        /// Another region
        b: Option<String>,
    },
    /// Set a link's round-trip time
    #[command(after_help = "Examples:
  globalfs wan delay us eu 80ms
  globalfs wan delay us us 1ms      inside a region
  globalfs wan delay '*' '*' 0ms")]
    Delay {
        /// A region, or '*'
        a: String,
        /// Another region, or '*'; the same for inside the region
        b: String,
        /// Round-trip time, such as 80ms
        rtt: TimeSpan,
    },
    /// Set how much a link's delay varies
    #[command(after_help = "Examples:
  globalfs wan jitter us eu 5ms
  globalfs wan jitter '*' '*' 0ms")]
    Jitter {
        /// A region, or '*'
        a: String,
        /// Another region, or '*'
        b: String,
        /// At most so much is added to each delay, such as 2ms
        jitter: TimeSpan,
    },
    /// Set a link's loss
    #[command(after_help = "Examples:
  globalfs wan loss us eu 0.5%
  globalfs wan loss '*' '*' 0")]
    Loss {
        /// A region, or '*'
        a: String,
        /// Another region, or '*'
        b: String,
        /// Share of datagrams that is lost, in percent, such as 0.5%
        percent: String,
    },
    /// Show round-trip times and cuts
    #[command(after_help = "Examples:
  globalfs wan show
  globalfs wan show --json | jq .cuts")]
    Show {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Changes or shows the file that describes the network.
pub fn run(globals: &Globals, args: &WanArgs) -> Result<Exit> {
    let cluster = find::cluster(globals.config.as_deref(), None)?;
    let Some(file) = cluster.wan else {
        let problem = format!("{}: no emulated network; add a [wan] section with a `file`", cluster.file.display());
        return Err(Failure::new(Exit::Config, problem));
    };
    if let Action::Show { json } = &args.action {
        show(&wan::read_file(&file).or_exit(Exit::Config)?, *json);
        return Ok(Exit::Done);
    }
    change(&file, &args.action)?;
    Ok(Exit::Done)
}

fn change(file: &Path, action: &Action) -> Result {
    let changed = wan::update_file(file, |matrix| match action {
        Action::Cut { a, b, one_way: false } => matrix.cut(a, b),
        Action::Cut { a, b, one_way: true } => matrix.cut_one_way(a, b),
        Action::Heal { a: Some(a), b: Some(b) } => matrix.heal_between(a, b),
        Action::Heal { .. } => {
            matrix.heal();
            Ok(())
        }
        Action::Delay { a, b, rtt } => matrix.set_rtt(a, b, rtt.0),
        Action::Jitter { a, b, jitter } => matrix.set_jitter(a, b, jitter.0),
        Action::Loss { a, b, percent } => matrix.set_loss(a, b, read_percent(percent)?),
        Action::Show { .. } => Ok(()),
    });
    // Everything but the file's own trouble is a wrong region or value on the command line.
    changed.map(drop).map_err(|error| match error {
        net::Error::Invalid(problem) => Failure::new(Exit::Usage, problem),
        error => Failure { exit: Exit::Config, error: error.into() },
    })
}

fn read_percent(text: &str) -> net::Result<f64> {
    let number = text.trim_end_matches('%').trim();
    number.parse().map_err(|_| net::Error::Invalid(format!("{text:?} is not a percentage such as 0.5%")))
}

fn show(matrix: &Matrix, json: bool) {
    let regions = matrix.regions();
    if json {
        let rtts: Vec<_> = pairs(regions)
            .map(|(a, b)| {
                let rtt_ms = rtt_ms(matrix, a, b);
                let (jitter_ms, loss_percent) = (milliseconds(matrix.jitter(a, b)), matrix.loss(a, b));
                json!({
                    "a": a, "b": b, "rtt_ms": rtt_ms, "jitter_ms": jitter_ms, "loss_percent": loss_percent,
                    "cut": rtt_ms.is_none(),
                })
            })
            .collect();
        say!("{}", json!({ "schema": 1, "regions": regions, "links": rtts, "cuts": matrix.cuts() }));
        return;
    }
    let mut table = Table::new(["link", "round trip", "jitter", "loss"]).right(&[1, 2, 3]);
    for (a, b) in pairs(regions) {
        let rtt = rtt_ms(matrix, a, b).map_or_else(|| cut(matrix, a, b), |ms| format!("{ms} ms"));
        let link = if a == b { format!("inside {a}") } else { format!("{a} - {b}") };
        let or_none = |amount: f64, unit: &str| if amount > 0.0 { format!("{amount} {unit}") } else { "-".into() };
        let jitter = or_none(milliseconds(matrix.jitter(a, b)), "ms");
        table.row(vec![link, rtt, jitter, or_none(matrix.loss(a, b), "%")]);
    }
    say_all(&table.render());
}

fn cut(matrix: &Matrix, a: &str, b: &str) -> String {
    red(&match (matrix.is_cut(a, b), matrix.is_cut(b, a)) {
        (true, false) => format!("cut from {a} to {b}"),
        (false, true) => format!("cut from {b} to {a}"),
        _ => "cut".into(),
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}

fn pairs(regions: &[String]) -> impl Iterator<Item = (&String, &String)> {
    regions.iter().enumerate().flat_map(|(at, a)| regions[at..].iter().map(move |b| (a, b)))
}

/// A round trip between two regions; `None` if a way is cut.
pub fn rtt_ms(matrix: &Matrix, a: &str, b: &str) -> Option<f64> {
    let there = matrix.one_way(a, b)?;
    let back = matrix.one_way(b, a)?;
    Some(milliseconds(there + back))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("net.wan");
        let regions = ["us", "eu", "ap"].map(String::from);
        wan::write_file(&file, &Matrix::preset("geo3", &regions).unwrap()).unwrap();
        (folder, file)
    }

    #[test]
    fn cut_delay_and_heal_change_the_file() {
        let (_folder, file) = file();
        change(&file, &Action::Cut { a: "us".into(), b: "eu".into(), one_way: false }).unwrap();
        let rtt = "90ms".parse().unwrap();
        change(&file, &Action::Delay { a: "us".into(), b: "ap".into(), rtt }).unwrap();
        let matrix = wan::read_file(&file).unwrap();
        assert_eq!(rtt_ms(&matrix, "us", "eu"), None);
        assert_eq!(rtt_ms(&matrix, "us", "ap"), Some(90.0));
        change(&file, &Action::Heal { a: None, b: None }).unwrap();
        assert_eq!(rtt_ms(&wan::read_file(&file).unwrap(), "us", "eu"), Some(70.0));
    }

    #[test]
    fn unknown_region_or_loss_is_wrong_usage() {
        let (_folder, file) = file();
        let cut = Action::Cut { a: "us".into(), b: "mars".into(), one_way: false };
        assert_eq!(change(&file, &cut).unwrap_err().exit, Exit::Usage);
        let loss = Action::Loss { a: "us".into(), b: "eu".into(), percent: "lots".into() };
        assert_eq!(change(&file, &loss).unwrap_err().exit, Exit::Usage);
    }
}
