//! What is wrong with a configuration, told so that the reader knows what to do.

use std::fmt;

/// More than this many are counted, not listed: the rest mostly follows from the first.
const LISTED: usize = 50;

/// One thing that is wrong. `Display` is one line: `key = value (where): cure`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Full key, such as `scheduler.strategy` or `backends[0].port`.
    pub key: String,
    /// What stands there; `MASKED` for what must not show.
    pub value: String,
    /// The variable, flag or file it came from, when that is not the configuration file itself.
    pub source: Option<String>,
    /// Line of the file, when it came from one.
    pub line: Option<usize>,
    /// What to write instead.
    pub cure: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.key, self.value)?;
        match (&self.source, self.line) {
            (Some(source), Some(line)) => write!(f, " ({source}, line {line})")?,
            (Some(source), None) => write!(f, " ({source})")?,
            (None, Some(line)) => write!(f, " (line {line})")?,
            (None, None) => {}
        }
        write!(f, ": {}", self.cure)
    }
}

/// Everything that is wrong, in the order it was found; never empty in an `Err`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    listed: Vec<Problem>,
    unlisted: usize,
}

impl Problems {
    /// The problems, at most fifty.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.listed.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// The same in the order of the file's lines, what has no line at the end.
    pub(super) fn by_line(mut self) -> Self {
        self.listed.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        self
    }

    /// The same for a reader who knows nothing of the keys above, nor of lines.
    pub(super) fn below(mut self, prefix: &str) -> Self {
        for problem in &mut self.listed {
            problem.line = None;
            if let Some(key) = problem.key.strip_prefix(prefix) {
                problem.key = key.to_owned();
            }
        }
        self
    }

    /// Adds a problem; `make` runs only while there is room, since finding a line takes a parse.
    pub(super) fn add(&mut self, make: impl FnOnce() -> Problem) {
        if self.listed.len() < LISTED {
            self.listed.push(make());
        } else {
            self.unlisted += 1;
        }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self { listed: vec![problem], unlisted: 0 }
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.listed.iter().enumerate() {
            let gap = if n > 0 { "\n" } else { "" };
            write!(f, "{gap}{problem}")?;
        }
        if self.unlisted > 0 {
            write!(f, "\nand {} more; mend these first", self.unlisted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
