//! The journal over real files and over a disk that fails and crashes on demand.

mod crash;
mod faults;
mod files;
mod full;
mod killed;
mod parts;
mod sim_disk;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::backend::BackendId;
use crate::identity::ClientKey;
use crate::pool::core::{Marks, Outcome, Phase};
use crate::pool::job::{Job, Needs, Owner};
use crate::tasks::kind::Kind;

fn names() -> Names {
    Arc::new(|id| Some(format!("comfy-{}", id.0).into()))
}

fn id_of(name: &str) -> BackendId {
    BackendId(name.rsplit('-').next().unwrap().parse().unwrap())
}

fn owner(n: u64) -> Owner {
    let last = n.to_le_bytes()[0];
    Owner {
        key: ClientKey::of_address(Ipv4Addr::new(10, 0, 0, last).into()),
        caller: format!("10.0.0.{last}").into(),
        client_id: (!n.is_multiple_of(3)).then(|| format!("client-{n}").into()),
    }
}

/// A body that tells its job, so that no other one can stand in for it.
fn body(n: u64, size: usize) -> Bytes {
    let line = format!("{{\"prompt\":{n}}}");
    let mut bytes = line.repeat(size / line.len() + 1).into_bytes();
    bytes.truncate(size);
    bytes.into()
}

fn job(n: u64, size: usize) -> Arc<Job> {
    let needs = Needs {
        nodes: ["KSampler".into(), "SaveImage".into()].into(),
        models: ["sd/xl.safetensors".into()].into(),
        task_type: n.is_multiple_of(2).then(|| "video".into()),
        only_on: n.is_multiple_of(5).then_some(BackendId(7)),
    };
    Arc::new(Job {
        id: JobId(n),
        prompt_id: prompt_id(n).into(),
        owner: owner(n),
        number: n as f64 + 0.1,
        priority: -3,
        needs: Arc::new(needs),
        kind: Some(Kind { hash: n, label: "KSampler".into() }),
        zone: Some("eu".into()),
        once: n.is_multiple_of(2),
        created_ms: 1_700_000_000_000 + n,
        body: body(n, size),
    })
}

fn prompt_id(n: u64) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

fn accepted(n: u64, size: usize) -> Change {
    Change::Accepted(Accepted {
        job: job(n, size),
        reply: format!("{{\"prompt_id\":\"{}\"}}", prompt_id(n)).into(),
        fingerprint: [n.to_le_bytes()[0]; 32],
        counter: n + 1,
    })
}

fn moved(n: u64, phase: Phase, attempts: u32) -> Change {
    let marks = Marks { strikes: attempts, began: false, cancelled: false };
    let remote_id = Some(format!("r{n}").into());
    Change::Moved(Moved { id: JobId(n), phase, attempts, marks, remote_id })
}

fn entry(n: u64, size: usize) -> Bytes {
    body(n + 1_000_000, size)
}

const NOW_MS: u64 = 1_800_000_000_000;

fn ended(n: u64, size: usize) -> Change {
    Change::Ended(Box::new(Ended {
        id: JobId(n),
        outcome: match n % 3 {
            0 => Outcome::Completed,
            1 => Outcome::Failed { error: "out of memory".to_owned() },
            _ => Outcome::Cancelled,
        },
        backend: Some(BackendId(2)),
        attempts: 1,
        run_seconds: Some(1.5),
        finished_ms: NOW_MS + n,
        summary: format!("summary {n}").into(),
        entry: entry(n, size),
    }))
}

fn open(dir: &Path) -> (Journal, Restored) {
    open_with(dir, Bounds::default(), SEGMENT)
}

/// The clock of the tests stands in 2027, so that age does not come into it.
fn open_with(dir: &Path, bounds: Bounds, segment_size: u64) -> (Journal, Restored) {
    let bounds = Bounds { max_age: Duration::MAX, ..bounds };
    Journal::open_sized(dir, bounds, names(), segment_size).unwrap()
}

use std::time::Duration;

/// The numbers of jobs, and how large their bodies are.
fn numbers(open: &[OpenJob]) -> BTreeMap<u64, usize> {
    open.iter().map(|open| (open.job.id.0, open.job.body.len())).collect()
}
