//! A long line costs no more than a short one.

use std::time::Instant;

use super::*;

/// Of `jobs` waiting ones, the mean time of a finish that dispatches the next, in microseconds.
fn dispatch_micros(jobs: u64) -> f64 {
    let mut options = options();
    options.max_size = usize::MAX;
    let mut core = Core::new(options);
    let kept = |id: u64| Kept {
        marks: Marks::default(),
        job: Arc::new(Job { kind: None, ..job(id, (id % 50) as u8) }),
        phase: Phase::Waiting,
        attempts: 0,
        reply: Bytes::new(),
    };
    let mut actions = Vec::new();
    core.restore((0..jobs).map(kept).collect(), Moment(1000), &mut actions);
    for n in 0..50 {
        core.handle(Input::Lane(lane(n)), Moment(1000), &mut actions);
    }
    core.handle(Input::Tick, Moment(10_000), &mut actions);
    let began = Instant::now();
    let mut done = 0;
    while done < 200 {
        let posts = std::mem::take(&mut actions);
        for action in posts {
            if let Action::Post(post) = action {
                let (backend, job) = (post.backend, post.job.id);
                core.handle(Input::Started { backend, job }, Moment(10_000), &mut actions);
                core.handle(Input::Finished { backend, job }, Moment(10_000), &mut actions);
                done += 1;
            }
        }
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(done)
}

#[test]
fn a_hundred_times_the_jobs_cost_a_dispatch_about_the_same() {
    let (short, long) = (dispatch_micros(1000), dispatch_micros(50_000));
    eprintln!("{short:.0} µs with 1,000 waiting, {long:.0} µs with 50,000");
    assert!(long < 5.0 * short + 200.0, "{short} µs, {long} µs");
}
