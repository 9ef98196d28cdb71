//! The `comfygate` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    comfygate::cli::main()
}
