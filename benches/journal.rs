//! Durable jobs per second, beside what the disk itself can sync: `cargo bench --bench journal`.
//!
//! Writes in a directory of its own under `COMFYGATE_BENCH_DIR`, else under `target`, for a memory
//! file system syncs for nothing. `COMFYGATE_BENCH_SECONDS` per row, 3 unless told.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench has no users and may stop")]

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use comfygate::identity::ClientKey;
use comfygate::pool::core::Outcome;
use comfygate::pool::job::{Job, JobId, Needs, Owner};
use comfygate::pool::journal::{Accepted, Bounds, Change, Ended, Journal};

const BODY: usize = 20_000;

fn job(n: u64) -> Arc<Job> {
    Arc::new(Job {
        id: JobId(n),
        prompt_id: format!("00000000-0000-4000-8000-{n:012}").into(),
        owner: Owner {
            key: ClientKey::of_address(Ipv4Addr::LOCALHOST.into()),
            caller: "127.0.0.1".into(),
            client_id: Some("client".into()),
        },
        number: n as f64,
        priority: 0,
        needs: Arc::new(Needs::default()),
        kind: None,
        zone: None,
        once: false,
        created_ms: 0,
        body: vec![b'x'; BODY].into(),
    })
}

fn accepted(n: u64) -> Change {
    let reply = Bytes::from_static(b"{}");
    Change::Accepted(Accepted { job: job(n), reply, fingerprint: [0; 32], counter: n })
}

fn ended(n: u64) -> Change {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    Change::Ended(Box::new(Ended {
        id: JobId(n),
        outcome: Outcome::Completed,
        backend: None,
        attempts: 1,
        run_seconds: Some(1.0),
        finished_ms: now.as_millis() as u64,
        summary: Bytes::new(),
        entry: vec![b'y'; BODY].into(),
    }))
}

/// Appends of one body, each synced: what one thread could do without sharing.
fn disk(dir: &Path, time: Duration) -> (u64, Duration) {
    let mut file = File::create(dir.join("raw")).unwrap();
    let (began, mut syncs) = (Instant::now(), 0);
    while began.elapsed() < time {
        file.write_all(&vec![b'z'; BODY]).unwrap();
        file.sync_data().unwrap();
        syncs += 1;
    }
    (syncs, began.elapsed())
}

/// What `writers` threads do, each waiting for its own job; with the longest wait.
fn jobs(dir: &Path, time: Duration, writers: u64, ends: bool) -> (u64, Duration, Duration) {
    let (journal, restored) = Journal::open(dir, Bounds::default(), Arc::new(|_| None)).unwrap();
    let next = AtomicU64::new(restored.next_job_id.0);
    let (done, began) = (AtomicU64::new(0), Instant::now());
    let writer = || {
        let mut longest = Duration::ZERO;
        while began.elapsed() < time {
            let id = next.fetch_add(1, Ordering::Relaxed);
            let asked = Instant::now();
            journal.write(accepted(id)).wait().unwrap();
            longest = longest.max(asked.elapsed());
            done.fetch_add(1, Ordering::Relaxed);
            if ends {
                drop(journal.write(ended(id)));
            }
        }
        longest
    };
    let longest = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(writer)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap_or_default()
    });
    (done.into_inner(), began.elapsed(), longest)
}

fn row(what: &str, count: u64, took: Duration, longest: Option<Duration>) {
    let each = took.as_secs_f64() / count.max(1) as f64;
    let longest = longest.map(|longest| format!("{:.1} ms", longest.as_secs_f64() * 1e3));
    println!(
        "| {what:<44} | {:>8.0} | {:>8.3} ms | {:>10} |",
        1.0 / each,
        each * 1e3,
        longest.unwrap_or_default()
    );
}

fn main() {
    let seconds = std::env::var("COMFYGATE_BENCH_SECONDS").ok().and_then(|s| s.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(3));
    let base = std::env::var_os("COMFYGATE_BENCH_DIR").map_or("target".into(), PathBuf::from);
    let dir = tempfile::TempDir::new_in(base).unwrap();
    println!(
        "| {:<44} | {:>8} | {:>11} | {:>10} |",
        "20 KB each", "a second", "one each", "longest"
    );
    let (syncs, took) = disk(dir.path(), time);
    row("the disk alone: append and fdatasync", syncs, took, None);
    for (writers, ends) in [(1, false), (64, false), (1, true), (64, true)] {
        let at = dir.path().join(format!("{writers}-{ends}"));
        let (count, took, longest) = jobs(&at, time, writers, ends);
        let what = if ends { "accepted and ended" } else { "accepted" };
        row(&format!("jobs {what}, writers: {writers}"), count, took, Some(longest));
        std::fs::remove_dir_all(at).unwrap();
    }
}
