//! `comfygate status`: a table of the backends and the queue.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::remote::{Failure, Remote, Target};

/// Pause between two tables of `--watch`.
const PAUSE: Duration = Duration::from_secs(1);

/// Options of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Print the admin API's JSON
    #[arg(long)]
    json: bool,
    /// Print again every second
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn status(args: &StatusArgs) -> Result<(), Failure> {
    let remote = Remote::new(&args.target)?;
    let terminal = std::io::stdout().is_terminal();
    loop {
        let stats = remote.ask(Method::GET, "/lb/stats", None).await?;
        let list = remote.ask(Method::GET, "/lb/backends", None).await?;
        let text = if args.json {
            let both = serde_json::json!({"stats": stats, "backends": list["backends"]});
            format!("{both:#}\n")
        } else {
            table(&stats, &list, terminal)
        };
        let clear = if args.watch && terminal { "\x1b[H\x1b[2J" } else { "" };
        let mut out = std::io::stdout();
        // A reader that has gone away, as `| head` does, ends the command.
        if write!(out, "{clear}{text}").and_then(|()| out.flush()).is_err() || !args.watch {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

const HEADINGS: [&str; 8] =
    ["BACKEND", "STATE", "RUNNING", "PENDING", "SESSIONS", "SOCKETS", "S/PROMPT", "URL"];

fn table(stats: &Value, list: &Value, colours: bool) -> String {
    let backends = list["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(backends.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADINGS.len()).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let gap = widths[column] - cell.chars().count();
            let pad = if column + 1 == row.len() { 0 } else { gap + 2 };
            let cell =
                if number > 0 && column == 1 { coloured(cell, colours) } else { cell.clone() };
            text.push_str(&cell);
            text.push_str(&" ".repeat(pad));
        }
        text.push('\n');
    }
    let text_of = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text += &format!(
        "\n{} of {} healthy, {} running, {} queued, {} sessions, {} sockets, strategy {}\n",
        stats["backends"]["healthy"],
        stats["backends"]["total"],
        stats["tasks"]["running"],
        stats["tasks"]["queued"],
        stats["sessions"],
        stats["websockets"],
        text_of(&stats["strategy"]),
    );
    text
}

fn row(backend: &Value) -> [String; 8] {
    let text = |key: &str| backend[key].as_str().unwrap_or("-").to_owned();
    let seconds = backend["prompt_seconds"].as_f64().unwrap_or(0.0);
    [
        text("name"),
        text("state"),
        backend["queue"]["running"].to_string(),
        backend["queue"]["pending"].to_string(),
        backend["sessions"].to_string(),
        backend["websockets"].to_string(),
        if seconds > 0.0 { format!("{seconds:.1}") } else { "-".to_owned() },
        text("url"),
    ]
}

fn coloured(state: &str, colours: bool) -> String {
    let colour = match state {
        "up" => 32,
        "down" | "ejected" => 31,
        _ => 33,
    };
    if colours { format!("\x1b[{colour}m{state}\x1b[0m") } else { state.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_line_up_and_colours_stay_off_pipes() {
        let backend = |name: &str, state: &str| {
            json!({"name": name, "state": state, "queue": {"running": 1, "pending": 0}, "sessions": 2,
                "websockets": 0, "prompt_seconds": 1.25, "url": "http://a:1"})
        };
        let list = json!({"backends": [backend("comfy-1", "up"), backend("b", "disabled")]});
        let stats = json!({"backends": {"healthy": 1, "total": 2}, "tasks": {"running": 2,
            "queued": 0}, "sessions": 4, "websockets": 0, "strategy": "least_busy"});
        let text = table(&stats, &list, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "comfy-1  up        1        0        2         0        1.2       http://a:1"
        );
        assert_eq!(lines[0].find("URL"), lines[2].find("http"));
        assert_eq!(
            lines[4],
            "1 of 2 healthy, 2 running, 0 queued, 4 sessions, 0 sockets, strategy least_busy"
        );
        assert!(table(&stats, &list, true).contains("\x1b[32mup\x1b[0m"));
    }
}
