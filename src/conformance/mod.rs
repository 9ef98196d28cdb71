//! (see the issue)

use crate::cli::Exit;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args) -> Exit {
    Exit::Failed
}
