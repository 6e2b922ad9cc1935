//! The experiments that come with the program.

use crate::error::{Error, Result};
use crate::spec::Experiment;

const BUILT_IN: [&str; 8] = [
    include_str!("../experiments/a-throughput.toml"),
    include_str!("../experiments/b-regions.toml"),
    include_str!("../experiments/c-latency.toml"),
    include_str!("../experiments/d-convoy.toml"),
    include_str!("../experiments/e-faults.toml"),
    include_str!("../experiments/f-far-readers.toml"),
    include_str!("../experiments/g-wide-area.toml"),
    include_str!("../experiments/small.toml"),
];

/// All.
///
/// # Errors
/// Never: a test reads them.
pub fn all() -> Result<Vec<Experiment>> {
    BUILT_IN.iter().map(|text| Experiment::parse(text)).collect()
}

/// One by its name, else from a file.
///
/// # Errors
/// If there is neither, or the file makes no sense.
pub fn find(name: &str) -> Result<Experiment> {
    if let Some(found) = all()?.into_iter().find(|experiment| experiment.name == name) {
        return Ok(found);
    }
    let path = std::path::Path::new(name);
    let text = std::fs::read_to_string(path).map_err(|error| Error::File {
        path: path.into(),
        problem: format!("neither an experiment (a to g, small) nor a file: {error}"),
    })?;
    Experiment::parse(&text).map_err(|error| Error::File { path: path.into(), problem: error.to_string() })
}
