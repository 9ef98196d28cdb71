//! What callers share: turns by GPU time, and how much of one caller runs at once.

use super::*;

fn limited(running: u32, fairness: Fairness) -> Options {
    Options { running_per_caller: running, fairness, ..options() }
}

/// Starts a job at a free lane, and says where.
fn begins(farm: &mut Farm, job: Job) -> u32 {
    let id = job.id.0;
    let posted = farm.submit(job);
    let lane = posted[0].strip_prefix(&format!("post {id} ")).unwrap().parse().unwrap();
    farm.accepted(id, 1);
    farm.started(id, lane);
    lane
}

#[test]
fn a_caller_that_has_enough_is_passed_over_until_a_job_ends() {
    for fairness in [Fairness::RoundRobin, Fairness::Fifo, Fairness::GpuTime] {
        let mut farm = Farm::with(limited(1, fairness), [lane(0), lane(1), lane(2)]);
        let at = begins(&mut farm, job(1, 1));
        // It is judged where something runs, not where it would start.
        farm.waits(job(2, 1));
        farm.waits(job(3, 1));
        begins(&mut farm, job(4, 2));
        assert_eq!(farm.core.waiting(), 2, "a lane is free and stays so");
        let next = farm.finished(1, at);
        assert!(next.iter().any(|words| words.starts_with("post 2")), "{fairness:?}: {next:?}");
        assert_eq!(farm.core.waiting(), 1);
    }
}

#[test]
fn others_go_first_while_a_caller_has_enough() {
    for fairness in [Fairness::RoundRobin, Fairness::Fifo] {
        let mut farm = Farm::with(limited(1, fairness), [lane(0), lane(1)]);
        begins(&mut farm, job(1, 1));
        let at = begins(&mut farm, job(2, 2));
        farm.waits(job(3, 1));
        farm.waits(job(4, 3));
        assert!(farm.finished(2, at).contains(&format!("post 4 {at}")), "{fairness:?}");
        assert_eq!(farm.core.waiting(), 1);
    }
}

#[test]
fn a_raised_limit_counts_at_once() {
    let mut farm = Farm::with(limited(1, Fairness::RoundRobin), [lane(0), lane(1)]);
    let other = 1 - begins(&mut farm, job(1, 1));
    farm.waits(job(2, 1));
    assert_eq!(farm.tell(Input::Options(options())), [format!("post 2 {other}")]);
}

/// Runs jobs of two callers on one lane; what each caller's took in all, the one aside that began
/// before anybody waited.
fn shared_seconds(fairness: Fairness) -> [f64; 2] {
    let mut farm = Farm::with(limited(0, fairness), [lane(0)]);
    let of = |id: u64| 1 + u8::from(id > 100);
    let seconds = |id: u64| if of(id) == 1 { 10.0 } else { 1.0 };
    let kind = |id: u64| Some(Kind { hash: u64::from(of(id)), label: "".into() });
    let made = |id: u64| Job { kind: kind(id), ..job(id, of(id)) };
    farm.runs(made(1), 0);
    for id in (2..=40).chain(101..=160) {
        farm.waits(made(id));
    }
    let mut used = [0.0; 2];
    let mut running = 1;
    while used.iter().sum::<f64>() < 100.0 {
        farm.now += (seconds(running) * 1000.0) as u64;
        if running > 1 {
            used[usize::from(of(running) - 1)] += seconds(running);
        }
        let next = farm.finished(running, 0);
        let outcome =
            Known::Ended { outcome: Outcome::Completed, run_seconds: Some(seconds(running)) };
        farm.told(running, 0, 1, outcome);
        let posted = next.iter().find_map(|words| words.strip_prefix("post ")?.split(' ').next());
        running = posted.unwrap().parse().unwrap();
        farm.accepted(running, 1);
        farm.started(running, 0);
    }
    used
}

#[test]
fn long_jobs_get_no_more_gpu_time_than_short_ones() {
    let [long, short] = shared_seconds(Fairness::GpuTime);
    // One long job more, and one that went before the short kind was known.
    assert!((long - short).abs() <= 20.0, "{long} s and {short} s");
    let [long, short] = shared_seconds(Fairness::RoundRobin);
    assert!(long > 5.0 * short, "by turns it would be {long} s and {short} s");
}
