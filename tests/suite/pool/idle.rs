//! How long a server is left without work: from the end of a prompt until the next one's POST
//! arrives there, as the simulators saw it.

use std::time::{Duration, Instant};

use comfygate::sim::{Mark, Sim, SimConfig, Traced};
use futures_util::{StreamExt, stream};
use serde_json::json;

use super::painter::paced;
use crate::support::{PATIENCE, eventually, is_full};

/// Multiples of the golden ratio, less their whole part, lie evenly between 0 and 1.
const GOLDEN: f64 = 0.618_033_988_749_895;

/// The gaps of one server after an instant, one for each end that another prompt followed. A
/// prompt that had been posted ahead left no gap. What was posted and did not run there, to be
/// judged only, is not looked at.
fn gaps(trace: &[Traced], after: Instant) -> Vec<Duration> {
    let posted = |prompt: &str| {
        let is = |one: &&Traced| one.mark == Mark::Posted && &*one.prompt == prompt;
        trace.iter().rev().find(is).map(|one| one.at)
    };
    let mut gaps = Vec::new();
    let mut ended = None;
    for one in trace {
        match one.mark {
            Mark::Finished => ended = Some(one.at),
            Mark::Started => {
                let came = posted(&one.prompt);
                if let (Some(ended), Some(came)) = (ended.take().filter(|at| *at > after), came) {
                    gaps.push(came.saturating_duration_since(ended));
                }
            }
            Mark::Posted => {}
        }
    }
    gaps
}

/// What is at least as long as this share of all.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

/// The gaps of a run.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) count: usize,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) longest: Duration,
}

/// All gaps of a farm after an instant.
pub(crate) fn measure(farm: &[Sim], after: Instant) -> Measured {
    let mut all: Vec<Duration> = farm.iter().flat_map(|sim| gaps(&sim.trace(), after)).collect();
    all.sort_unstable();
    Measured {
        count: all.len(),
        p50: percentile(&all, 0.5),
        p99: percentile(&all, 0.99),
        longest: all.last().copied().unwrap_or_default(),
    }
}

/// Posts so many prompts at once, waits until all have run, and measures from the moment when the
/// last of them was accepted. They take from half to one and a half times the given seconds:
/// servers that all end in one instant would wait for the cores that they share here.
async fn batch(base: &str, farm: &[Sim], jobs: u64, seconds: f64) -> Measured {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let before: u64 = farm.iter().map(Sim::finished).sum();
    let posting = stream::iter(0..jobs).map(|seed| {
        let share = (seed as f64 * GOLDEN).fract();
        let body = json!({"prompt": paced(seed, seconds * (0.5 + share)), "client_id": "batch"});
        let request = http.post(format!("{base}/prompt")).json(&body);
        async move { assert_eq!(request.send().await.unwrap().status(), 200) }
    });
    posting.buffer_unordered(16).collect::<Vec<()>>().await;
    let accepted = Instant::now();
    let all = before + jobs;
    eventually("all have run", 10 * PATIENCE, async || {
        farm.iter().map(Sim::finished).sum::<u64>() == all
    })
    .await;
    measure(farm, accepted)
}

async fn farm(count: usize) -> Vec<Sim> {
    let mut farm = Vec::new();
    for _ in 0..count {
        farm.push(Sim::start(SimConfig::default()).await.unwrap());
    }
    farm
}

/// What each server's trace must add up to: whatever began had been posted there, and has ended.
fn assert_adds_up(farm: &[Sim], jobs: usize) {
    let count = |trace: &[Traced], mark| trace.iter().filter(|one| one.mark == mark).count();
    let mut ran = 0;
    for sim in farm {
        let trace = sim.trace();
        let (started, finished) = (count(&trace, Mark::Started), count(&trace, Mark::Finished));
        assert_eq!(started, finished);
        assert!(count(&trace, Mark::Posted) >= started);
        // Its first mark comes before any end.
        let begun = trace.first().map_or_else(Instant::now, |first| first.at);
        assert_eq!(gaps(&trace, begun).len(), started.saturating_sub(1));
        ran += finished;
    }
    assert_eq!(ran, jobs, "each ran once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_queue_is_its_own_has_no_gap() {
    let farm = farm(1).await;
    let measured = batch(&farm[0].url(), &farm, 30, 0.01).await;
    assert_adds_up(&farm, 30);
    assert!(measured.count <= 29, "{measured:?}");
    assert_eq!(measured.longest, Duration::ZERO, "all had been posted ahead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freed_server_gets_its_next_prompt_at_once() {
    let (jobs, servers, seconds) = if is_full() { (1_000, 50, 1.0) } else { (100, 5, 0.05) };
    let farm = farm(servers).await;
    let gateway = super::pool(&farm).await;
    let measured = batch(&gateway.data, &farm, jobs, seconds).await;
    let Measured { count, p50, p99, longest } = measured;
    println!("{count} gaps: p50 {p50:?}, p99 {p99:?}, longest {longest:?}");
    assert_adds_up(&farm, jobs as usize);
    if is_full() && !cfg!(debug_assertions) {
        assert!(measured.count > 500, "{measured:?}");
        assert!(measured.p99 < Duration::from_millis(5), "{measured:?}");
    }
}

#[test]
fn a_gap_is_from_an_end_to_the_post_of_what_runs_next() {
    let start = Instant::now();
    let trace: Vec<Traced> = [
        (0, Mark::Posted, "a"),
        (1, Mark::Started, "a"),
        (5, Mark::Posted, "judged"),
        (10, Mark::Finished, "a"),
        (13, Mark::Posted, "b"),
        (14, Mark::Started, "b"),
        (15, Mark::Posted, "c"),
        (20, Mark::Finished, "b"),
        (20, Mark::Started, "c"),
        (30, Mark::Finished, "c"),
    ]
    .into_iter()
    .map(|(ms, mark, prompt)| Traced {
        at: start + Duration::from_millis(ms),
        mark,
        prompt: prompt.into(),
    })
    .collect();
    assert_eq!(gaps(&trace, start), [Duration::from_millis(3), Duration::ZERO]);
    assert_eq!(gaps(&trace, start + Duration::from_millis(15)), [Duration::ZERO]);
    let sorted: Vec<Duration> = (1..=101).map(Duration::from_millis).collect();
    assert_eq!(percentile(&sorted, 0.5), Duration::from_millis(51));
    assert_eq!(percentile(&sorted, 0.99), Duration::from_millis(100));
}
