//! A long history opens quickly and in little memory. `COMFYGATE_TEST_FULL=1` for 100,000 jobs of
//! 20 KB (2.1 GB in the temporary directory).

use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// Kilobytes of memory, now.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

const DIR: &str = "COMFYGATE_TEST_HISTORY";

fn jobs() -> u64 {
    if std::env::var_os("COMFYGATE_TEST_FULL").is_some() { 100_000 } else { 3_000 }
}

/// Not a test: writes the history in a process of its own, so that its memory does not count.
#[test]
#[ignore = "the child of a_long_history_opens_quickly_and_in_little_memory"]
fn filler() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (dir, jobs) = (Path::new(&dir), jobs());
    let endless = Bounds { max_jobs: usize::MAX, max_bytes: u64::MAX, ..Bounds::default() };
    let (journal, _) = open_with(dir, endless, SEGMENT);
    for first in (1..=jobs).step_by(500) {
        let batch = first..(first + 500).min(jobs + 1);
        let tickets: Vec<_> = batch.clone().map(|n| journal.write(accepted(n, 20_000))).collect();
        assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
        let tickets: Vec<_> = batch.map(|n| journal.write(ended(n, 20_000))).collect();
        assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    }
}

#[test]
fn a_long_history_opens_quickly_and_in_little_memory() {
    let jobs = jobs();
    let dir = TempDir::new().unwrap();
    let filled = Instant::now();
    let filler = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pool::journal::tests::full::filler", "--ignored"])
        .env(DIR, dir.path())
        .output();
    assert!(filler.unwrap().status.success());
    let filled = filled.elapsed();
    let endless = Bounds { max_jobs: usize::MAX, max_bytes: u64::MAX, ..Bounds::default() };
    let before = resident();
    let began = Instant::now();
    let (journal, restored) = open_with(dir.path(), endless, SEGMENT);
    let (took, grown) = (began.elapsed(), resident().saturating_sub(before));
    assert_eq!((restored.finished as u64, restored.open.len()), (jobs, 0));
    assert_eq!(journal.entry_blocking(JobId(jobs / 2)), Some(entry(jobs / 2, 20_000)));
    println!("{jobs} jobs: written in {filled:?}, opened in {took:?}, {grown} KiB more memory");
    drop(journal);
    std::fs::remove_file(dir.path().join(INDEX)).unwrap();
    let began = Instant::now();
    let (_journal, restored) = open_with(dir.path(), endless, SEGMENT);
    println!("without its index in {:?}", began.elapsed());
    assert_eq!(restored.finished as u64, jobs);
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(grown < 200_000, "{grown} KiB");
}
