//! The command line: one binary, a subcommand per task, `run` when none is named.
//!
//! Exit codes: 0 fine, 1 failed at run time, 2 wrong usage or configuration.

mod remote;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::auth::command::{self as key, KeyArgs};
use crate::config::{self, CheckArgs, Flags, Sources};
use crate::server::Server;
use crate::{conformance, demo, logging, sim};

/// One address in front of a farm of ComfyUI servers
#[derive(Debug, Parser)]
#[command(name = "comfygate", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (the default)
    Run(RunArgs),
    /// Validate a configuration and print every problem
    Check(CheckArgs),
    /// Run simulated ComfyUI servers
    Sim(sim::Args),
    /// Run the recorded contract against a server
    Conformance(conformance::Args),
    /// Run a simulated farm of three and a gateway in front of it
    Demo(demo::Args),
    /// Print a table of a gateway's backends and its queue
    Status(status::StatusArgs),
    /// Add a backend to a running gateway
    Add(remote::AddArgs),
    /// Remove backends from a running gateway
    Remove(remote::RemoveArgs),
    /// Put backends in service
    Enable(remote::NamesArgs),
    /// Take backends out of service at once
    Disable(remote::NamesArgs),
    /// Give backends no new clients
    Drain(remote::NamesArgs),
    /// Make an API key, or the hash of a password
    Key(KeyArgs),
    /// Exit 0 when a gateway is ready
    Healthcheck(remote::Target),
}

/// Options of `run`.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take the place of the gateway that serves from the same `state_dir`, without refusing anybody
    #[arg(long)]
    upgrade: bool,
    #[command(flatten)]
    flags: Flags,
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
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => run(args),
        Command::Check(args) => config::run_check(&args),
        Command::Sim(args) => sim::run(args),
        Command::Conformance(args) => conformance::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => ask(status::status(&args)),
        Command::Add(args) => ask(remote::add(&args)),
        Command::Remove(args) => ask(remote::remove(&args)),
        Command::Enable(args) => ask(remote::want(remote::Verb::Enable, &args)),
        Command::Disable(args) => ask(remote::want(remote::Verb::Disable, &args)),
        Command::Drain(args) => ask(remote::want(remote::Verb::Drain, &args)),
        Command::Key(args) => key::run(&args),
        Command::Healthcheck(target) => ask(remote::healthcheck(&target)),
    }
    .into()
}

fn run(args: RunArgs) -> Exit {
    let sources = Sources { file: args.config, env: config::process_env(), flags: args.flags };
    let loaded = match config::load(&sources) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return Exit::Usage;
        }
    };
    logging::start(loaded.config.log.format);
    logging::set_verbose(loaded.config.server.debug);
    let threads = loaded.config.server.threads;
    let prepared = if args.upgrade {
        Server::take_over(sources, loaded)
    } else {
        Server::prepare(sources, loaded)
    };
    let server = match prepared {
        Ok(server) => server,
        Err(error) => {
            eprintln!("{error:#}");
            return Exit::Usage;
        }
    };
    with_runtime(threads, async move {
        match server.run().await {
            Ok(()) => Exit::Ok,
            Err(error) => {
                eprintln!("{error:#}");
                Exit::Failed
            }
        }
    })
}

/// Runs a command that talks to a running gateway.
fn ask(command: impl Future<Output = Result<(), remote::Failure>>) -> Exit {
    with_runtime(1, async {
        match command.await {
            Ok(()) => Exit::Ok,
            Err(failure) => failure.print(),
        }
    })
}

/// Runs a future on a runtime of its own.
pub fn with_runtime(threads: usize, work: impl Future<Output = Exit>) -> Exit {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let exit = runtime.block_on(work);
            runtime.shutdown_timeout(Duration::from_millis(200));
            exit
        }
        Err(error) => {
            eprintln!("the runtime cannot be started: {error}");
            Exit::Failed
        }
    }
}
