//! `comfygate check`: says everything that is wrong with a configuration file.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::load::{Sources, load, process_env};
use crate::cli::Exit;

/// Arguments of `comfygate check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Runs `comfygate check` with the process's environment.
pub fn run_check(args: &CheckArgs) -> Exit {
    let (report, exit) = check_file(&args.config, process_env());
    print!("{report}");
    exit
}

/// Checks a file in an environment: the report, a line per problem and warning, and the exit code.
pub fn check_file(file: &Path, env: BTreeMap<String, String>) -> (String, Exit) {
    let sources = Sources { file: Some(file.to_owned()), env, ..Sources::default() };
    let file = file.display();
    let mut report = String::new();
    // Writing to a string does not fail.
    let exit = match load(&sources) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                let _ = writeln!(report, "{file}: warning: {warning}");
            }
            let _ = writeln!(report, "{file}: ok, {} backends", loaded.config.backends.len());
            Exit::Ok
        }
        Err(problems) => {
            for line in problems.to_string().lines() {
                let _ = writeln!(report, "{file}: {line}");
            }
            Exit::Usage
        }
    };
    (report, exit)
}
