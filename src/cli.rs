//! The command line: one binary, a subcommand per task, `run` when none is named.
//!
//! Exit codes: 0 fine, 1 failed at run time, 2 wrong usage or configuration.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{conformance, sim};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "comfygate", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run simulated ComfyUI servers
    Sim(sim::Args),
    /// Run the recorded contract against a server
    Conformance(conformance::Args),
}

/// How a command ended, as the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All well.
    Ok = 0,
    /// Something failed at run time.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Parses the command line and runs what it asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Sim(args) => sim::run(args),
        Command::Conformance(args) => conformance::run(args),
    }
    .into()
}
