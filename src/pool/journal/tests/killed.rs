//! A process that writes is killed with `kill -9`, again and again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;

const DIR: &str = "COMFYGATE_TEST_JOURNAL";
const KILLS: u64 = 6;

/// Not a test: what the test below runs as a process of its own, until it is killed. It accepts
/// jobs, ends two of three, and says what is durable.
#[test]
#[ignore = "the child of a_killed_writer_loses_nothing"]
fn writer() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (journal, restored) = open_with(Path::new(&dir), Bounds::default(), 300_000);
    let mut out = std::io::stdout().lock();
    for round in 0.. {
        let first = restored.next_job_id.0 + round * 16;
        let tickets: Vec<_> =
            (first..first + 16).map(|n| (n, journal.write(accepted(n, 4000)))).collect();
        for (n, ticket) in tickets {
            ticket.wait().unwrap();
            writeln!(out, "accepted {n}").unwrap();
            let end = (n % 3 != 0).then(|| journal.write(ended(n, 3000)));
            if let Some(end) = end.filter(|_| n % 3 == 1) {
                end.wait().unwrap();
                writeln!(out, "ended {n}").unwrap();
            }
        }
        out.flush().unwrap();
    }
}

/// Runs it until it has said `lines` things; returns what it said.
fn run_and_kill(dir: &Path, lines: usize) -> Vec<(bool, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pool::journal::tests::killed::writer", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let parse = |line: String| {
        let (what, n) = line.split_once(' ')?;
        Some((what == "ended", n.parse().ok()?)).filter(|_| what == "ended" || what == "accepted")
    };
    let mut said: Vec<_> = output.by_ref().filter_map(parse).take(lines).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    said.extend(output.filter_map(parse));
    said
}

#[test]
fn a_killed_writer_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let mut said = Vec::new();
    for kill in 0..KILLS {
        said.extend(run_and_kill(dir.path(), 40 + 37 * kill as usize));
        let (journal, restored) = open_with(dir.path(), Bounds::default(), 300_000);
        assert_eq!(restored.damaged, 0);
        let open = numbers(&restored.open);
        for (ended, n) in &said {
            let finished = journal.get(JobId(*n)).is_some();
            assert!(open.contains_key(n) != finished, "job {n}: lost, or open and finished");
            assert!(finished || !ended, "job {n} had ended");
            if finished {
                assert_eq!(journal.entry_blocking(JobId(*n)), Some(entry(*n, 3000)));
            }
        }
    }
    assert!(said.len() > 500, "it was killed before it worked: {}", said.len());
}
