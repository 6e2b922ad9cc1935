//! Distances between regions as a value, and as text.

use std::{fmt, time::Duration};

use crate::{Error, Result};

/// Names of the built-in networks.
pub const PRESETS: [&str; 4] = ["lan3", "geo3", "geo3-fast", "ec2-9"];

const REGIONS_MAX: usize = 64;
const DELAY_MAX: Duration = Duration::from_secs(60);
const PATH_DEFAULT: Duration = Duration::from_micros(50);
const MIN_HOLD_DEFAULT: Duration = Duration::from_micros(60);

/// One direction between two regions, or inside one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Shape {
    pub(crate) one_way: Duration,
    pub(crate) jitter: Duration,
    /// Fraction of datagrams lost.
    pub(crate) loss: f64,
    pub(crate) cut: bool,
}

/// Delays, jitter, loss and cuts between regions.
///
/// As text, one setting a line, `#` begins a comment, times in milliseconds unless a unit (`us`, `ms`, `s`) is
/// given, `*` stands for every other region:
/// ```text
/// regions us eu ap      # first
/// local 0.2             # round trip inside every region
/// rtt us eu 80          # round trip; `oneway A B 40` sets one direction
/// jitter us eu 5        # adds 0 to 5 ms to each way, keeping the order
/// loss us ap 0.5        # percent, each way
/// cut us ap             # both ways; `cut-oneway A B` cuts one direction
/// path 0.05             # what the real path costs each way, taken off every delay
/// min-hold 0.06         # what remains below this is not held
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    regions: Vec<String>,
    shapes: Vec<Shape>,
    path: Duration,
    min_hold: Duration,
}

impl Matrix {
    /// No delay between and inside the regions.
    pub fn flat(regions: &[String]) -> Result<Self> {
        for (at, region) in regions.iter().enumerate() {
            crate::pki::check_name(region)?;
            if regions[..at].contains(region) {
                return Err(Error::Invalid(format!("region {region} is named twice")));
            }
        }
        if regions.is_empty() || regions.len() > REGIONS_MAX {
            return Err(Error::Invalid(format!("1 to {REGIONS_MAX} regions are possible")));
        }
        Ok(Matrix {
            regions: regions.to_vec(),
            shapes: vec![Shape::default(); regions.len() * regions.len()],
            path: PATH_DEFAULT,
            min_hold: MIN_HOLD_DEFAULT,
        })
    }

    /// A built-in network, laid over the regions in their order.
    pub fn preset(name: &str, regions: &[String]) -> Result<Self> {
        let text = match name {
            "lan3" => include_str!("presets/lan3.wan"),
            "geo3" => include_str!("presets/geo3.wan"),
            "geo3-fast" => include_str!("presets/geo3-fast.wan"),
            "ec2-9" => include_str!("presets/ec2-9.wan"),
            _ => {
                let known = PRESETS.join(", ");
                return Err(Error::Invalid(format!("no emulated network {name:?}; there are {known}, or a file")));
            }
        };
        Matrix::parse(text)?.laid_over(regions)
    }

    /// A built-in network by name, else a file. A file that names other regions than the cluster's counts by
    /// their order, as a preset does; one that names only some of them is an error.
    pub fn load(name_or_file: &str, regions: &[String]) -> Result<Self> {
        if PRESETS.contains(&name_or_file) {
            return Matrix::preset(name_or_file, regions);
        }
        let path = std::path::Path::new(name_or_file);
        if !path.exists() {
            return Matrix::preset(name_or_file, regions);
        }
        let matrix = super::read_file(path)?;
        let named = regions.iter().filter(|region| matrix.regions.contains(region)).count();
        let loaded = match named {
            0 => matrix.laid_over(regions),
            _ => matrix.restricted_to(regions),
        };
        loaded.map_err(|error| Error::BadFile { path: path.into(), problem: error.to_string() })
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self> {
        let mut matrix = None;
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let result = match (words.as_slice(), &mut matrix) {
                ([], _) => continue,
                (["regions", names @ ..], None) => {
                    Matrix::flat(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
                        .map(|flat| matrix = Some(flat))
                }
                (["regions", ..], Some(_)) => Err(Error::Invalid("the regions are named twice".into())),
                (words, Some(matrix)) => matrix.apply(words),
                (_, None) => Err(Error::Invalid("the regions must come first".into())),
            };
            result.map_err(|error| Error::Invalid(format!("line {}: {error}", number + 1)))?;
        }
        matrix.ok_or_else(|| Error::Invalid("names no regions".into()))
    }

    /// The regions in their order.
    pub fn regions(&self) -> &[String] {
        &self.regions
    }

    /// Time from one region to another; `None` if cut. No delay for unknown regions.
    pub fn one_way(&self, from: &str, to: &str) -> Option<Duration> {
        let (Some(from), Some(to)) = (self.index(from), self.index(to)) else { return Some(Duration::ZERO) };
        let shape = self.shape(from, to);
        (!shape.cut).then_some(shape.one_way)
    }

    /// The most that is added at random to the time from one region to another.
    pub fn jitter(&self, from: &str, to: &str) -> Duration {
        let (Some(from), Some(to)) = (self.index(from), self.index(to)) else { return Duration::ZERO };
        self.shape(from, to).jitter
    }

    /// The share of datagrams lost from one region to another, in percent.
    pub fn loss(&self, from: &str, to: &str) -> f64 {
        let (Some(from), Some(to)) = (self.index(from), self.index(to)) else { return 0.0 };
        self.shape(from, to).loss * 100.0
    }

    /// Whether the direction is cut.
    pub fn is_cut(&self, from: &str, to: &str) -> bool {
        self.one_way(from, to).is_none()
    }

    /// Sets the round trip between two regions, or inside one.
    pub fn set_rtt(&mut self, a: &str, b: &str, rtt: Duration) -> Result<()> {
        check_delay(rtt)?;
        self.change(a, b, true, |shape| shape.one_way = rtt / 2)
    }

    /// Sets the time of one direction.
    pub fn set_one_way(&mut self, from: &str, to: &str, delay: Duration) -> Result<()> {
        check_delay(delay)?;
        self.change(from, to, false, |shape| shape.one_way = delay)
    }

    /// Sets the largest random addition to each way.
    pub fn set_jitter(&mut self, a: &str, b: &str, jitter: Duration) -> Result<()> {
        check_delay(jitter)?;
        self.change(a, b, true, |shape| shape.jitter = jitter)
    }

    /// Sets the share of datagrams lost each way, in percent.
    pub fn set_loss(&mut self, a: &str, b: &str, percent: f64) -> Result<()> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(Error::Invalid(format!("loss of {percent} percent: 0 to 100 are possible")));
        }
        self.change(a, b, true, |shape| shape.loss = percent / 100.0)
    }

    /// Cuts both directions. Datagrams already on their way are lost too.
    pub fn cut(&mut self, a: &str, b: &str) -> Result<()> {
        self.change(a, b, true, |shape| shape.cut = true)
    }

    /// Cuts one direction.
    pub fn cut_one_way(&mut self, from: &str, to: &str) -> Result<()> {
        self.change(from, to, false, |shape| shape.cut = true)
    }

    /// Ends every cut.
    pub fn heal(&mut self) {
        self.shapes.iter_mut().for_each(|shape| shape.cut = false);
    }

    /// Ends the cuts between two regions.
    pub fn heal_between(&mut self, a: &str, b: &str) -> Result<()> {
        self.change(a, b, true, |shape| shape.cut = false)
    }

    /// The directed cuts, for a status display.
    pub fn cuts(&self) -> Vec<(String, String)> {
        let pairs = self.pairs().filter(|&(from, to)| self.shape(from, to).cut);
        pairs.map(|(from, to)| (self.regions[from].clone(), self.regions[to].clone())).collect()
    }

    pub(crate) fn index(&self, region: &str) -> Option<usize> {
        self.regions.iter().position(|known| known == region)
    }

    pub(crate) fn shape(&self, from: usize, to: usize) -> &Shape {
        &self.shapes[from * self.regions.len() + to]
    }

    /// How long a datagram is held for a delay: the real path's cost and what is not worth it come off.
    #[must_use]
    pub fn hold(&self, delay: Duration) -> Duration {
        let hold = delay.saturating_sub(self.path);
        if hold < self.min_hold { Duration::ZERO } else { hold }
    }

    fn laid_over(mut self, regions: &[String]) -> Result<Self> {
        if regions.len() > self.regions.len() {
            let (has, wanted) = (self.regions.len(), regions.len());
            return Err(Error::Invalid(format!("describes {has} regions, but the cluster has {wanted}")));
        }
        let known = self.regions.len();
        self.regions.truncate(regions.len());
        self.rebuild(known, &(0..regions.len()).collect::<Vec<_>>(), regions)
    }

    fn restricted_to(self, regions: &[String]) -> Result<Self> {
        let kept = regions.iter().map(|region| self.require(region)).collect::<Result<Vec<_>>>()?;
        let known = self.regions.len();
        self.rebuild(known, &kept, regions)
    }

    fn rebuild(self, known: usize, kept: &[usize], regions: &[String]) -> Result<Self> {
        let mut matrix = Matrix::flat(regions)?;
        matrix.path = self.path;
        matrix.min_hold = self.min_hold;
        for (to, (&row, &column)) in
            kept.iter().flat_map(|row| kept.iter().map(move |column| (row, column))).enumerate()
        {
            matrix.shapes[to] = self.shapes[row * known + column];
        }
        Ok(matrix)
    }

    fn apply(&mut self, words: &[&str]) -> Result<()> {
        match *words {
            // How many hosts a region has is the cluster's business.
            ["hosts", _] => Ok(()),
            ["local", rtt] => {
                let rtt = parse_delay(rtt)?;
                for at in 0..self.regions.len() {
                    let region = self.regions[at].clone();
                    self.set_rtt(&region, &region, rtt)?;
                }
                Ok(())
            }
            ["path", time] => parse_delay(time).map(|time| self.path = time),
            ["min-hold", time] => parse_delay(time).map(|time| self.min_hold = time),
            ["rtt", a, b, time] => self.set_rtt(a, b, parse_delay(time)?),
            ["oneway", a, b, time] => self.set_one_way(a, b, parse_delay(time)?),
            ["jitter", a, b, time] => self.set_jitter(a, b, parse_delay(time)?),
            ["loss", a, b, percent] => {
                let percent = percent.trim_end_matches('%');
                let percent = percent.parse().map_err(|_| Error::Invalid(format!("{percent:?} is not a number")))?;
                self.set_loss(a, b, percent)
            }
            ["cut", a, b] => self.cut(a, b),
            ["cut-oneway", a, b] => self.cut_one_way(a, b),
            _ => Err(Error::Invalid(format!(
                "{:?} is not understood; settings are regions, local, rtt, oneway, jitter, loss, cut, \
                 cut-oneway, path, min-hold",
                words.join(" ")
            ))),
        }
    }

    fn change(&mut self, a: &str, b: &str, both_ways: bool, change: impl Fn(&mut Shape)) -> Result<()> {
        let wild = a == "*" || b == "*";
        let (rows, columns) = (self.select(a)?, self.select(b)?);
        let count = self.regions.len();
        for &from in &rows {
            for &to in columns.iter().filter(|&&to| !wild || to != from) {
                change(&mut self.shapes[from * count + to]);
                if both_ways {
                    change(&mut self.shapes[to * count + from]);
                }
            }
        }
        Ok(())
    }

    fn select(&self, region: &str) -> Result<Vec<usize>> {
        if region == "*" {
            return Ok((0..self.regions.len()).collect());
        }
        Ok(vec![self.require(region)?])
    }

    fn require(&self, region: &str) -> Result<usize> {
        self.index(region)
            .ok_or_else(|| Error::Invalid(format!("no region {region:?}; there are {}", self.regions.join(", "))))
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let count = self.regions.len();
        (0..count).flat_map(move |from| (0..count).map(move |to| (from, to)))
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Emulated network, read again by every process when it changes. Times in ms.")?;
        writeln!(f, "regions {}", self.regions.join(" "))?;
        writeln!(f, "path {}", ms(self.path))?;
        writeln!(f, "min-hold {}", ms(self.min_hold))?;
        for (from, to) in self.pairs() {
            let (shape, back) = (self.shape(from, to), self.shape(to, from));
            let names = format!("{} {}", self.regions[from], self.regions[to]);
            // A setting that is the same both ways is written once.
            if shape.one_way == back.one_way {
                if from <= to {
                    writeln!(f, "rtt {names} {}", ms(shape.one_way * 2))?;
                }
            } else {
                writeln!(f, "oneway {names} {}", ms(shape.one_way))?;
            }
            if from <= to && shape.jitter > Duration::ZERO {
                writeln!(f, "jitter {names} {}", ms(shape.jitter))?;
            }
            if from <= to && shape.loss > 0.0 {
                writeln!(f, "loss {names} {}", shape.loss * 100.0)?;
            }
            if shape.cut && back.cut {
                if from <= to {
                    writeln!(f, "cut {names}")?;
                }
            } else if shape.cut {
                writeln!(f, "cut-oneway {names}")?;
            }
        }
        Ok(())
    }
}

/// A time like `80`, `80ms`, `0.2ms`, `200us` or `1s`; a bare number is milliseconds.
pub fn parse_delay(text: &str) -> Result<Duration> {
    let (number, unit_seconds) = match text {
        _ if text.ends_with("us") => (text.trim_end_matches("us"), 1e-6),
        _ if text.ends_with("ms") => (text.trim_end_matches("ms"), 1e-3),
        _ if text.ends_with('s') => (text.trim_end_matches('s'), 1.0),
        _ => (text, 1e-3),
    };
    let seconds = number.parse::<f64>().ok().map(|number| number * unit_seconds);
    let delay = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let delay = delay.ok_or_else(|| Error::Invalid(format!("{text:?} is not a time such as 80ms")))?;
    check_delay(delay)?;
    Ok(delay)
}

fn check_delay(delay: Duration) -> Result<()> {
    if delay > DELAY_MAX {
        return Err(Error::Invalid(format!("a delay of {delay:?} is more than {DELAY_MAX:?}")));
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    // Nanoseconds are whole, so this prints exactly.
    time.as_nanos() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn regions(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.into()).collect()
    }

    fn rtt_ms(matrix: &Matrix, a: &str, b: &str) -> f64 {
        (matrix.one_way(a, b).unwrap() + matrix.one_way(b, a).unwrap()).as_secs_f64() * 1e3
    }

    #[test]
    fn preset_is_laid_over_regions_by_order() {
        let names = regions(&["us", "eu", "ap"]);
        let geo = Matrix::preset("geo3", &names).unwrap();
        assert_eq!(rtt_ms(&geo, "us", "eu"), 70.0);
        assert_eq!(rtt_ms(&geo, "eu", "ap"), 80.0);
        assert_eq!(rtt_ms(&geo, "ap", "us"), 140.0);
        assert_eq!(rtt_ms(&geo, "ap", "ap"), 0.2);
        let fast = Matrix::preset("geo3-fast", &regions(&["us", "eu"])).unwrap();
        assert_eq!(rtt_ms(&fast, "us", "eu"), 7.0);
        let lan = Matrix::preset("lan3", &names).unwrap();
        assert_eq!(rtt_ms(&lan, "us", "ap"), 0.2);
        let nine = regions(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
        let ec2 = Matrix::preset("ec2-9", &nine).unwrap();
        assert_eq!((rtt_ms(&ec2, "d", "h"), rtt_ms(&ec2, "i", "h")), (326.0, 93.0));
        assert_eq!(rtt_ms(&ec2, "e", "e"), 0.5);
        assert!(Matrix::preset("geo3", &nine).is_err());
        assert!(Matrix::load("geo4", &names).unwrap_err().to_string().contains("geo3-fast"));
    }

    #[test]
    fn text_form_round_trips_with_all_settings() {
        let mut matrix = Matrix::preset("geo3", &regions(&["us", "eu", "ap"])).unwrap();
        matrix.set_jitter("us", "eu", Duration::from_micros(1500)).unwrap();
        matrix.set_loss("us", "*", 0.5).unwrap();
        matrix.set_one_way("eu", "us", Duration::from_millis(90)).unwrap();
        matrix.cut("us", "ap").unwrap();
        matrix.cut_one_way("ap", "eu").unwrap();
        let again = Matrix::parse(&matrix.to_string()).unwrap();
        assert_eq!(again, matrix);
        assert_eq!(again.one_way("us", "ap"), None);
        assert!(again.is_cut("ap", "eu") && !again.is_cut("eu", "ap"));
        assert_eq!(again.cuts().len(), 3);
        matrix.heal();
        assert!(matrix.cuts().is_empty());
    }

    #[test]
    fn text_with_errors_names_the_line() {
        for (text, hint) in [
            ("rtt a b 5", "line 1"),
            ("regions a b\nrtt a c 5", "a, b"),
            ("regions a b\n\nfoo", "line 3"),
            ("regions a b\nrtt a b fast", "fast"),
            ("regions a b\nrtt a b -1", "-1"),
            ("regions a a", "twice"),
            ("regions a b\nloss a b 101", "101"),
            ("", "no regions"),
        ] {
            let error = Matrix::parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn file_with_the_clusters_names_counts_by_name_and_else_by_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net.wan");
        std::fs::write(&path, "regions ap us eu\nrtt us eu 10\nrtt us ap 20\n").unwrap();
        let path = path.to_str().unwrap();
        let by_name = Matrix::load(path, &regions(&["us", "eu"])).unwrap();
        assert_eq!(rtt_ms(&by_name, "us", "eu"), 10.0);
        let by_order = Matrix::load(path, &regions(&["x", "y"])).unwrap();
        assert_eq!(rtt_ms(&by_order, "x", "y"), 20.0);
        assert!(Matrix::load(path, &regions(&["us", "y"])).is_err());
    }

    #[test]
    fn delay_with_units_is_parsed() {
        assert_eq!(parse_delay("80ms").unwrap(), parse_delay("80").unwrap());
        assert_eq!(parse_delay("200us").unwrap(), parse_delay("0.2").unwrap());
        assert_eq!(parse_delay("1s").unwrap(), Duration::from_secs(1));
        assert!(parse_delay("ms").is_err() && parse_delay("NaN").is_err() && parse_delay("1e9s").is_err());
    }

    #[test]
    fn hold_of_small_delays_is_nothing() {
        let lan = Matrix::preset("lan3", &regions(&["us", "eu", "ap"])).unwrap();
        assert_eq!(lan.hold(lan.one_way("us", "eu").unwrap()), Duration::ZERO);
        assert_eq!(lan.hold(Duration::from_millis(10)), Duration::from_micros(9950));
    }
}
