//! The outcome of a run: one result per check, printed as a line each or as JSON.

use std::fmt;

use serde::Serialize;

use super::compare::Difference;

/// What a check found.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// As recorded.
    Ok,
    /// Differs from the recording.
    Failed {
        /// In which ways.
        differences: Vec<Difference>,
    },
    /// Not run.
    Skipped {
        /// Why.
        reason: String,
    },
}

/// One check with its outcome.
#[derive(Debug, Clone, Serialize)]
pub struct CheckResult {
    /// Such as `ws run_ok` or `http queue_idle`.
    pub name: String,
    /// What it found.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All results of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// In the order in which they ran.
    pub results: Vec<CheckResult>,
}

impl CheckResult {
    /// From a list of differences: none is well.
    pub(super) fn new(name: &str, differences: Vec<Difference>) -> Self {
        let outcome =
            if differences.is_empty() { Outcome::Ok } else { Outcome::Failed { differences } };
        Self { name: name.to_owned(), outcome }
    }

    pub(super) fn skipped(name: &str, reason: impl Into<String>) -> Self {
        Self { name: name.to_owned(), outcome: Outcome::Skipped { reason: reason.into() } }
    }

    /// Whether it differed.
    pub fn is_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. })
    }
}

impl Report {
    /// Whether nothing differed.
    pub fn is_ok(&self) -> bool {
        !self.results.iter().any(CheckResult::is_failed)
    }

    /// Counts, in a line.
    pub fn summary(&self) -> String {
        let count =
            |is: fn(&Outcome) -> bool| self.results.iter().filter(|r| is(&r.outcome)).count();
        let ok = count(|outcome| matches!(outcome, Outcome::Ok));
        let failed = count(|outcome| matches!(outcome, Outcome::Failed { .. }));
        let skipped = count(|outcome| matches!(outcome, Outcome::Skipped { .. }));
        format!("{ok} ok, {failed} failed, {skipped} skipped")
    }
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Ok => write!(f, "ok {}", self.name),
            Outcome::Skipped { reason } => write!(f, "skipped: {}: {reason}", self.name),
            Outcome::Failed { differences } => {
                write!(f, "FAIL {}:", self.name)?;
                differences.iter().try_for_each(|d| write!(f, "\n    {d}"))
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.place, self.expected, self.got)
    }
}
