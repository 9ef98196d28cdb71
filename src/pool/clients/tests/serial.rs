//! Properties of showing one job after another, under any interleaving.

use proptest::prelude::*;

use super::*;

const NOW: Moment = Moment(1000);

const MEANINGS: [Meaning; 7] = [
    Meaning::Executing,
    Meaning::Progress,
    Meaning::ProgressState,
    Meaning::Preview,
    Meaning::Output,
    Meaning::Terminal,
    Meaning::Other,
];

/// The jobs' frames, each job's in order, mixed by `picks`; each is unlike all others.
fn mixed(jobs: &[Vec<(usize, usize)>], picks: &[usize]) -> Vec<Delivery> {
    let mut scripts: Vec<_> = (jobs.iter().enumerate())
        .map(|(job, frames)| {
            let job = job as u64;
            let middle = frames.iter().enumerate().map(|(at, (meaning, size))| {
                sized(job, MEANINGS[*meaning], &at.to_string(), *size)
            });
            let mut script = vec![plain(job, Meaning::Start, "")];
            script.extend(middle);
            script.push(plain(job, Meaning::End, ""));
            script.into_iter().peekable()
        })
        .collect();
    let mut picks = picks.iter().cycle();
    let mut out = Vec::new();
    while scripts.iter_mut().any(|script| script.peek().is_some()) {
        let pick = picks.next().copied().unwrap_or(0);
        let running: Vec<_> =
            scripts.iter_mut().filter_map(|s| s.peek().is_some().then_some(s)).collect();
        let count = running.len();
        out.extend(running.into_iter().nth(pick % count).and_then(Iterator::next));
    }
    out
}

fn is_state(meaning: Meaning) -> bool {
    matches!(meaning, Meaning::Progress | Meaning::ProgressState | Meaning::Preview)
}

/// Whether `part` is `whole` with some left out.
fn is_part(part: &[Frame], whole: &[Frame]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|frame| whole.any(|other| other == frame))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn jobs_come_one_after_another_with_every_event_in_order(
        jobs in prop::collection::vec(prop::collection::vec((0..7usize, 0..60_000usize), 0..25), 1..5),
        picks in prop::collection::vec(0..100usize, 1..60),
        reads in prop::collection::vec(0..4usize, 1..40),
    ) {
        let all = mixed(&jobs, &picks);
        let mut session = live(ClientEvents::Serial);
        let mut got = Vec::new();
        for (delivery, reads) in all.iter().zip(reads.iter().cycle()) {
            session.deliver(delivery.clone(), NOW);
            got.extend(drain_some(&mut session, *reads));
        }
        got.extend(drain(&mut session, NOW));

        let mut order: Vec<JobId> = Vec::new();
        for delivery in &all {
            if !order.contains(&delivery.job) {
                order.push(delivery.job);
            }
        }
        let of = |job: JobId| all.iter().filter(move |delivery| delivery.job == job);
        let whole: Vec<Frame> =
            order.iter().flat_map(|job| of(*job)).map(|d| d.frame.clone()).collect();
        prop_assert!(is_part(&got, &whole), "mixed up or doubled");
        let events = order.iter().flat_map(|job| of(*job)).filter(|d| !is_state(d.meaning));
        let events: Vec<Frame> = events.map(|delivery| delivery.frame.clone()).collect();
        prop_assert!(is_part(&events, &got), "an event was lost");
        prop_assert_eq!(session.next(NOW), Next::Wait);
    }

    #[test]
    fn a_reader_of_any_pace_gets_the_latest_progress(
        steps in prop::collection::vec((0..3usize, 1..80_000usize), 1..80),
        reads in prop::collection::vec(0..3usize, 1..20),
    ) {
        let mut session = live(ClientEvents::Interleaved);
        let mut last = std::collections::HashMap::new();
        let mut got = Vec::new();
        for (at, ((kind, size), reads)) in steps.iter().zip(reads.iter().cycle()).enumerate() {
            let delivery = sized(1, MEANINGS[1 + kind], &at.to_string(), *size);
            last.insert(delivery.meaning, delivery.frame.clone());
            session.deliver(delivery, NOW);
            got.extend(drain_some(&mut session, *reads));
        }
        got.extend(drain(&mut session, NOW));
        for frame in last.values() {
            prop_assert!(got.contains(frame));
        }
    }
}

fn drain_some(session: &mut Session, count: usize) -> Vec<Frame> {
    let next = |_| match session.next(NOW) {
        Next::Frame(frame) => Some(frame),
        Next::Wait | Next::Cut => None,
    };
    (0..count).map_while(next).collect()
}
