//! What balancing is for: how long prompts wait, and how long GPUs are idle, by the way of placing.
//!
//! `cargo bench --bench farm` plays farms in virtual time. Prompts arrive by a Poisson process
//! from 200 clients whose appetites follow Zipf's law; the same prompts go through each way:
//!
//! - round robin, nginx's `ip_hash`, `HAProxy`'s `leastconn`, and the shortest queue as last polled;
//! - sticky mode, by its own affinity map, ring and choice;
//! - pool mode, by its own core;
//! - the bound: one line without delay, the fastest free server first.
//!
//! Waits in seconds, means of 20 runs with the half-width of their 95 % confidence interval; "of
//! bound" is the mean wait divided by the bound's. `COMFYGATE_BENCH_RUNS` and
//! `COMFYGATE_BENCH_SERVERS` (a list) shorten it; `--json FILE` writes all figures. Without
//! `--bench` (as `cargo test` starts it) it plays one small farm and checks that counts add up.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench has no users and may stop")]

mod central;
mod placed;
mod work;

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use comfygate::config::{Fairness, Strategy};
use parking_lot::Mutex;
use placed::Way;
use serde_json::{Value, json};
use work::{Case, Outcome, Prompt, Times};

/// How prompts are placed.
#[derive(Clone, Copy)]
enum Policy {
    Placed(Way),
    Pool(Fairness),
    Bound,
}

const POLICIES: [(&str, Policy); 12] = [
    ("round robin", Policy::Placed(Way::RoundRobin)),
    ("nginx ip_hash", Policy::Placed(Way::IpHash)),
    ("HAProxy leastconn", Policy::Placed(Way::LeastConn)),
    ("queue polled, 5 s", Policy::Placed(Way::Polled(5))),
    ("queue polled, 30 s", Policy::Placed(Way::Polled(30))),
    ("sticky ip_hash", Policy::Placed(Way::Sticky(Strategy::IpHash))),
    ("sticky weighted", Policy::Placed(Way::Sticky(Strategy::Weighted))),
    ("sticky least_wait", Policy::Placed(Way::Sticky(Strategy::LeastWait))),
    ("sticky least_busy", Policy::Placed(Way::Sticky(Strategy::LeastBusy))),
    ("pool round_robin", Policy::Pool(Fairness::RoundRobin)),
    ("pool fifo", Policy::Pool(Fairness::Fifo)),
    ("bound", Policy::Bound),
];

fn play(case: &Case, prompts: &[Prompt], policy: Policy) -> Outcome {
    match policy {
        Policy::Placed(way) => placed::run(case, prompts, way),
        Policy::Pool(fairness) => central::pool(case, prompts, fairness),
        Policy::Bound => central::bound(case, prompts),
    }
}

/// Mean and half-width of the 95 % confidence interval of some figures.
fn estimate(figures: &[f64]) -> (f64, f64) {
    let count = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / count;
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
    // Student's t for 19 degrees of freedom; a little too narrow for fewer runs.
    (mean, 2.093 * deviation / count.sqrt())
}

/// Plays every policy on the same prompts, `runs` times over, on all cores.
fn study(case: &Case, runs: usize) -> Vec<Vec<[f64; 4]>> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<Vec<[f64; 4]>>> = Mutex::new(vec![Vec::new(); POLICIES.len()]);
    let worker = || {
        loop {
            let run = next.fetch_add(1, Relaxed);
            if run >= runs {
                return;
            }
            let prompts = case.draw(run as u64 + 1, 1.0);
            for (number, (_, policy)) in POLICIES.iter().enumerate() {
                let figures = play(case, &prompts, *policy).figures(case.servers);
                found.lock()[number].push(figures);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
    found.into_inner()
}

/// Prints the table of one case; returns its figures.
fn report(case: &Case, runs: usize) -> Value {
    let speeds = if case.unequal { "1:2:4" } else { "equal" };
    let (name, load, servers) = (case.times.name(), case.load, case.servers);
    println!("\n{servers} servers, speeds {speeds}, times {name}, load {load}");
    println!(
        "  {:20}{:>20}{:>9}{:>9}{:>7}{:>10}",
        "", "mean wait", "p95", "p99", "idle", "of bound"
    );
    let found = study(case, runs);
    let mean_of = |figures: &[[f64; 4]], which: usize| {
        estimate(&figures.iter().map(|one| one[which]).collect::<Vec<_>>())
    };
    let least = found.last().map_or(0.0, |bound| mean_of(bound, 0).0);
    let mut rows = serde_json::Map::new();
    for ((policy, _), figures) in POLICIES.iter().zip(&found) {
        let (mean, half) = mean_of(figures, 0);
        let [p95, p99, idle] = [1, 2, 3].map(|which| mean_of(figures, which).0);
        let ratio = mean / least;
        println!(
            "  {policy:20}{mean:>12.2} ±{half:>6.2}{p95:>9.1}{p99:>9.1}{:>6.1}%{ratio:>10.2}",
            idle * 100.0
        );
        let row = json!({"mean": mean, "half_width": half, "p95": p95, "p99": p99, "idle": idle});
        rows.insert((*policy).to_owned(), row);
    }
    json!({"servers": servers, "speeds": speeds, "times": name, "load": load, "waits": rows})
}

/// One small farm: every policy runs every prompt.
fn smoke() {
    let case = Case { servers: 3, unequal: true, times: Times::Mixed, load: 0.8 };
    let prompts = case.draw(1, 0.1);
    for (name, policy) in POLICIES {
        let outcome = play(&case, &prompts, policy);
        assert_eq!(outcome.counted(), prompts.len() - prompts.len() / 10, "{name}");
        let [mean, p95, p99, idle] = outcome.figures(case.servers);
        assert!(mean >= 0.0 && p95 <= p99 && (0.0..1.0).contains(&idle), "{name}");
    }
    println!("each of {} policies ran all of {} prompts", POLICIES.len(), prompts.len());
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return smoke();
    }
    let variable = |name: &str| std::env::var(name).ok();
    let runs = variable("COMFYGATE_BENCH_RUNS").and_then(|n| n.parse().ok()).unwrap_or(20);
    let servers = variable("COMFYGATE_BENCH_SERVERS").unwrap_or_else(|| "3,10,50,300".to_owned());
    let servers: Vec<usize> = servers.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    let mut cases = Vec::new();
    for &servers in &servers {
        for unequal in [false, true] {
            for times in [Times::LogNormal, Times::Mixed] {
                for load in [0.5, 0.8, 0.95] {
                    cases.push(report(&Case { servers, unequal, times, load }, runs));
                }
            }
        }
    }
    let place = arguments.iter().position(|argument| argument == "--json");
    if let Some(file) = place.and_then(|at| arguments.get(at + 1)) {
        let all = json!({"runs": runs, "cases": cases});
        std::fs::write(file, serde_json::to_vec_pretty(&all).unwrap()).unwrap();
    }
}
