//! Distances between regions.

use std::time::Duration;

use net::wan::Matrix;

use crate::error::{Error, Result};

/// Round trip inside a region, if the description of the network does not say.
const LOCAL_RTT_MS: f64 = 0.2;

/// One-way delays by region.
#[derive(Clone, Debug)]
pub struct Distances {
    names: Vec<String>,
    one_way: Vec<Vec<Way>>,
}

/// One direction.
#[derive(Clone, Copy, Debug)]
struct Way {
    delay_ns: u64,
    jitter_ns: u64,
    /// What an emulation adds to the real path; nothing if it sends at once.
    hold_ns: u64,
}

impl Distances {
    /// From a preset, a file, or a single round trip for all pairs such as `80ms`.
    ///
    /// # Errors
    /// If there are too few regions in it, or it makes no sense.
    pub fn load(rtt: &str, regions: usize) -> Result<Distances> {
        let invalid = |error: net::Error| Error::Invalid(error.to_string());
        if let Some(rtt_ms) = rtt.strip_suffix("ms").and_then(|number| number.trim().parse::<f64>().ok()) {
            return Distances::uniform(rtt_ms, regions);
        }
        let text = match rtt {
            "geo3" | "geo3-fast" | "ec2-9" | "lan3" => None,
            file => Some(std::fs::read_to_string(file).map_err(|error| {
                Error::Invalid(format!(
                    "{file} is neither a preset, nor a round trip such as 80ms, nor a file: {error}"
                ))
            })?),
        };
        let (matrix, names) = match &text {
            Some(text) => {
                let matrix = Matrix::parse(text).map_err(invalid)?;
                let names = matrix.regions().to_vec();
                (matrix, names)
            }
            None => preset(rtt).map_err(invalid)?,
        };
        if names.len() < regions {
            return Err(Error::Invalid(format!("{rtt} has {} regions, not {regions}", names.len())));
        }
        let names: Vec<String> = names.into_iter().take(regions).collect();
        let shape = |a: &String, b: &String| {
            let delay = matrix.one_way(a, b).unwrap_or(Duration::ZERO);
            Way {
                delay_ns: delay.as_nanos() as u64,
                jitter_ns: matrix.jitter(a, b).as_nanos() as u64,
                hold_ns: matrix.hold(delay).as_nanos() as u64,
            }
        };
        let one_way = names.iter().map(|a| names.iter().map(|b| shape(a, b)).collect()).collect();
        Ok(Distances { names, one_way })
    }

    fn uniform(rtt_ms: f64, regions: usize) -> Result<Distances> {
        if !rtt_ms.is_finite() || !(0.0..=10_000.0).contains(&rtt_ms) {
            return Err(Error::Invalid(format!("a round trip of {rtt_ms} ms")));
        }
        let half = |rtt_ms: f64| (rtt_ms * 500_000.0) as u64;
        let delay = |a: usize, b: usize| {
            let delay_ns = if a == b { half(LOCAL_RTT_MS) } else { half(rtt_ms) };
            Way { delay_ns, jitter_ns: 0, hold_ns: if a == b { 0 } else { delay_ns } }
        };
        let one_way = (0..regions).map(|a| (0..regions).map(|b| delay(a, b)).collect()).collect();
        Ok(Distances { names: (1..=regions).map(|region| format!("region-{region}")).collect(), one_way })
    }

    /// The regions.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Delay of a way.
    #[must_use]
    pub fn one_way_ns(&self, from: usize, to: usize) -> u64 {
        self.one_way[from][to].delay_ns
    }

    /// For how long an emulation on one machine holds what goes there, beside what the real path takes.
    #[must_use]
    pub fn hold_ns(&self, from: usize, to: usize) -> u64 {
        self.one_way[from][to].hold_ns
    }

    /// The most that chance adds to it.
    #[must_use]
    pub fn jitter_ns(&self, from: usize, to: usize) -> u64 {
        self.one_way[from][to].jitter_ns
    }
}

/// The nine regions in the order of the preset.
const NINE: [&str; 9] = [
    "us-west-1",
    "us-west-2",
    "us-east-1",
    "sa-east-1",
    "eu-west-1",
    "eu-central-1",
    "ap-northeast-1",
    "ap-southeast-1",
    "ap-southeast-2",
];
/// … and in the order in which they are added, so that three of them are the west and the east of America, and Europe.
const NINE_ADDED: [usize; 9] = [1, 2, 4, 0, 5, 6, 3, 7, 8];
const THREE: [&str; 3] = ["us-west", "us-east", "eu-west"];

fn preset(name: &str) -> net::Result<(Matrix, Vec<String>)> {
    let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let names = if name == "ec2-9" { own(&NINE) } else { own(&THREE) };
    let matrix = Matrix::preset(name, &names)?;
    let added = if name == "ec2-9" { NINE_ADDED.iter().map(|&at| names[at].clone()).collect() } else { names };
    Ok((matrix, added))
}
