//! `comfygate conformance --url URL`: the contract recorded from ComfyUI 0.8.0, run against any
//! server: a real ComfyUI, a simulated one, or a gateway.
//!
//! ```text
//! recording   what a real server did            script    how to drive it, read off the recording
//! drive       does it: target, observe          exchange  replays the HTTP requests
//! normalise   makes both sides comparable       compare   says the differences (heard, steps)
//! contract    what counts of an HTTP response   report    what is printed
//! outputs     files, and pool mode's prefix     farm      what differs on a farm of several
//! ```
//!
//! A gateway in pool mode is recognised (its merged answers name no backend, others do). Then
//! outputs must stand under their backend's reserved subfolder, `/queue` in the order in which
//! prompts will run, and a `status` may be repeated or not; with one server behind it everything
//! else is as strict as for a ComfyUI, with several it is so per prompt.
//!
//! The server must be idle and nobody else should use it meanwhile: others' prompts show in the
//! queue and in `status`, and the run clears the queue and interrupts as the recording did. Each
//! run has client ids, seeds and file names of its own, so runs may follow each other.
//!
//! [`check`] is the whole as a library; [`compare`] and [`compare_exchange`] are its pure core.

mod binary;
mod compare;
mod contract;
mod drive;
mod exchange;
mod farm;
mod heard;
mod normalise;
mod observe;
mod outputs;
mod recording;
mod report;
mod script;
mod steps;
mod suite;
mod target;

use std::time::Duration;

use crate::cli::Exit;

pub use compare::{Difference, Expectation, compare};
pub use contract::compare_exchange;
pub use normalise::Names;
pub use recording::{
    Exchange, Frame, Post, RECONNECTED, Request, Response, Scenario, Transcript, exchanges,
    scenarios,
};
pub use report::{CheckResult, Outcome, Report};

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server's address, scheme and port included; it must be idle, and its queue gets cleared
    #[arg(long)]
    url: String,
    /// Print one JSON document instead of lines
    #[arg(long)]
    json: bool,
    /// Run only checks whose name contains this, such as `ws run_` or `http queue`
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Seconds that a scenario, or a single request, may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

/// How to run the checks.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only checks whose name contains this.
    pub filter: Option<String>,
    /// What a scenario, or a single request, may take.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { filter: None, timeout: Duration::from_mins(1) }
    }
}

/// The checks could not begin.
#[derive(Debug, thiserror::Error)]
#[error("cannot check {url}: {reason}; start the server there, or name another with --url")]
pub struct Unusable {
    url: String,
    reason: String,
}

/// Runs the recorded contract against the server at `url`.
pub async fn check(url: &str, options: &Options) -> Result<Report, Unusable> {
    check_each(url, options, |_| {}).await
}

/// The same, telling each result as soon as it is there.
pub async fn check_each(
    url: &str,
    options: &Options,
    mut tell: impl FnMut(&CheckResult),
) -> Result<Report, Unusable> {
    let unusable =
        |error: anyhow::Error| Unusable { url: url.to_owned(), reason: innermost(&error) };
    let mut suite = suite::Suite::begin(url, options).await.map_err(unusable)?;
    suite.run(&mut tell).await.map_err(unusable)
}

/// An error with its last cause, which names what happened.
fn innermost(error: &anyhow::Error) -> String {
    let (outer, cause) = (error.to_string(), error.root_cause().to_string());
    if outer == cause { outer } else { format!("{outer} ({cause})") }
}

/// Runs the command.
pub fn run(args: Args) -> Exit {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return Exit::Failed;
        }
    };
    let options = Options { filter: args.filter, timeout: Duration::from_secs(args.timeout) };
    let tell = |result: &CheckResult| {
        if !args.json {
            println!("{result}");
        }
    };
    match runtime.block_on(check_each(&args.url, &options, tell)) {
        Ok(report) => conclude(&report, args.json),
        Err(error) => {
            eprintln!("{error}");
            Exit::Usage
        }
    }
}

fn conclude(report: &Report, json: bool) -> Exit {
    if report.results.is_empty() {
        eprintln!("no check has a name that contains what --filter says");
        return Exit::Usage;
    }
    if json {
        let document = serde_json::json!({"ok": report.is_ok(), "results": report.results});
        println!("{document:#}");
    } else {
        println!("{}", report.summary());
    }
    if report.is_ok() { Exit::Ok } else { Exit::Failed }
}
