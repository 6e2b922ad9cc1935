//! What is wrong with a configuration, and where.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::hint;

/// A mistake in a configuration file: `cluster.toml:12:9: unknown key "bukcet"; did you mean "bucket"?`
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    file: PathBuf,
    /// Line and column, from 1.
    at: Option<(usize, usize)>,
    problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// A configuration file and its text: what positions refer to.
pub struct Source<'a> {
    /// Where it is.
    pub file: &'a Path,
    /// Its whole text.
    pub text: &'a str,
}

impl Source<'_> {
    /// A mistake at these bytes.
    pub fn error(&self, span: Range<usize>, problem: impl Into<String>) -> ConfigError {
        ConfigError { file: self.file.into(), at: Some(self.position(span.start)), problem: problem.into() }
    }

    /// A mistake of the file as a whole.
    pub fn error_anywhere(&self, problem: impl Into<String>) -> ConfigError {
        ConfigError { file: self.file.into(), at: None, problem: problem.into() }
    }

    /// What the TOML reader or serde found.
    pub fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let problem = unknown_key(error.message()).unwrap_or_else(|| error.message().trim().replace('\n', "; "));
        match error.span() {
            Some(span) => self.error(span, problem),
            None => self.error_anywhere(problem),
        }
    }

    /// The line of these bytes, from 1.
    pub fn line(&self, span: &Range<usize>) -> usize {
        self.position(span.start).0
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
        (line, column)
    }
}

/// Reads serde's "unknown field `x`, expected one of `a`, `b`" and answers with the nearest key.
fn unknown_key(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let key = quoted.next()?;
    let known: Vec<&str> = quoted.collect();
    let hint = hint::suggestion(key, known.iter().copied());
    if hint.is_empty() {
        return Some(format!("unknown key {key:?}; keys here are {}", known.join(", ")));
    }
    Some(format!("unknown key {key:?}{hint}"))
}
