//! `comfygate key`: makes API keys and hashes of passwords, for the configuration.
//!
//! What is secret goes to the standard output once, alone on its line, and comes from the terminal
//! or the standard input: arguments can be seen by everybody on the machine.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::{Args, Subcommand};

use super::password::MAX_PASSWORD;
use super::{key, password};
use crate::cli::Exit;

/// Arguments of `comfygate key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    make: Make,
}

#[derive(Debug, Subcommand)]
enum Make {
    /// Make an API key: prints it, and the line for auth.keys
    New {
        /// Name of the key: the caller's
        name: String,
    },
    /// Hash a password, read from the terminal or the standard input, for auth.users
    Password {
        /// Name of the user
        #[arg(default_value = "NAME")]
        name: String,
    },
}

/// Runs `comfygate key`.
pub fn run(args: &KeyArgs) -> Exit {
    match &args.make {
        Make::New { name } => new_key(name),
        Make::Password { name } => hash_password(name),
    }
}

fn new_key(name: &str) -> Exit {
    let key = key::new();
    let line = key_line(name, &key);
    print_lines(
        &key,
        &line,
        "The first line is the key, shown this once; the second goes under auth.keys.",
    )
}

/// The line of a key for the configuration. JSON is YAML, and quotes whatever a name holds.
fn key_line(name: &str, key: &str) -> String {
    let hash = key::show_hash(&key::hash(key.as_bytes()));
    format!("- {{name: {}, hash: \"{hash}\"}}", quoted(name))
}

fn quoted(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}

fn hash_password(name: &str) -> Exit {
    let hashed = read_password()
        .and_then(|password| password::hash(&password).map_err(|error| error.to_string()));
    match hashed {
        Ok(hash) => {
            let line = format!("- {{name: {}, password_hash: \"{hash}\"}}", quoted(name));
            print_lines(&hash, &line, "The second line goes under auth.users.")
        }
        Err(why) => {
            eprintln!("{why}");
            Exit::Usage
        }
    }
}

fn print_lines(first: &str, second: &str, hint: &str) -> Exit {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{first}\n{second}").and_then(|()| out.flush()) {
        eprintln!("cannot be printed: {error}");
        return Exit::Failed;
    }
    eprintln!("{hint}");
    Exit::Ok
}

/// A password: typed twice without an echo, or the first line of the standard input.
fn read_password() -> Result<String, String> {
    let unreadable = |error: io::Error| format!("the password cannot be read: {error}");
    let password = if io::stdin().is_terminal() {
        let password = rpassword::prompt_password("Password: ").map_err(unreadable)?;
        let again = rpassword::prompt_password("Once more: ").map_err(unreadable)?;
        if password != again {
            return Err("the two are not the same; try again".to_owned());
        }
        password
    } else {
        let mut line = String::new();
        let most = (MAX_PASSWORD + 2) as u64;
        io::Read::take(io::stdin().lock(), most).read_line(&mut line).map_err(unreadable)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    if password.is_empty() || password.len() > MAX_PASSWORD {
        return Err(format!("use a password of 1 to {MAX_PASSWORD} bytes"));
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_key_is_what_the_configuration_takes() {
        for name in ["ci", "a \"b\": {c}", "é"] {
            let key = key::new();
            let line = key_line(name, &key);
            assert!(!line.contains(&key));
            let text = format!("backends: ['http://a']\nauth:\n  keys:\n  {line}\n");
            let config = crate::config::parse(&text).unwrap();
            assert_eq!(config.auth.keys[0].name, name);
            assert_eq!(config.auth.keys[0].hash, key::hash(key.as_bytes()));
        }
    }
}
