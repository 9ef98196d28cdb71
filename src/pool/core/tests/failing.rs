//! Servers and gateways that fail.

use super::*;

fn down(n: u32) -> Input {
    Input::Lane(Lane { open: false, reachable: false, ..lane(n) })
}

/// A farm of two on which job 1 runs, where it runs, and the other.
fn running(job: Job) -> (Farm, u32, u32) {
    let mut farm = Farm::of([lane(0), lane(1)]);
    let at: u32 = farm.submit(job)[0][7..].parse().unwrap();
    farm.accepted(1, 1);
    farm.started(1, at);
    (farm, at, 1 - at)
}

#[test]
fn a_dead_servers_job_runs_again_elsewhere() {
    let (mut farm, at, other) = running(job(1, 1));
    assert!(farm.tell(down(at)).is_empty());
    assert_eq!(farm.phase(1), Some(Phase::Doubtful(BackendId(at))));
    assert!(farm.after(9000).is_empty());
    assert_eq!(farm.after(1000), [format!("post 1 {other}")]);
    assert_eq!(farm.core.get(JobId(1)).unwrap().attempts, 2);
}

#[test]
fn a_server_that_comes_back_in_time_is_asked() {
    let (mut farm, at, other) = running(job(1, 1));
    farm.tell(down(at));
    assert_eq!(farm.tell(Input::Lane(lane(at))), [format!("ask 1 {at}")]);
    assert_eq!(farm.told(1, at, 1, Known::Absent), [format!("post 1 {other}")]);
}

#[test]
fn a_restarted_server_is_asked_and_its_history_believed() {
    let (mut farm, at, _) = running(job(1, 1));
    assert_eq!(farm.tell(Input::LaneReset(BackendId(at))), [format!("ask 1 {at}")]);
    assert_eq!(farm.told(1, at, 1, ended(Outcome::Completed)), ["ended 1 Completed"]);
}

#[test]
fn a_late_success_is_taken_once_and_the_second_copy_stopped() {
    let (mut farm, at, other) = running(job(1, 1));
    farm.tell(down(at));
    farm.after(10_000);
    farm.accepted(1, 2);
    farm.started(1, other);
    assert_eq!(farm.tell(Input::Lane(lane(at))), [format!("ask 1 {at}")]);
    let late = farm.told(1, at, 1, ended(Outcome::Completed));
    assert_eq!(late, [format!("ask 1 {other}"), "ended 1 Completed".to_owned()]);
    assert_eq!(farm.told(1, other, 2, Known::Running), [format!("interrupt 1 {other}")]);
}

#[test]
fn a_job_that_must_not_run_twice_fails_instead() {
    let (mut farm, at, _) = running(Job { once: true, ..job(1, 1) });
    farm.tell(Input::LaneReset(BackendId(at)));
    let failed = farm.told(1, at, 1, Known::Absent);
    assert!(failed[0].contains("must not run twice"), "{failed:?}");
}

#[test]
fn a_job_that_kills_its_servers_is_named_a_poison_job() {
    let (mut farm, mut at, _) = running(job(1, 1));
    for attempt in 1..=2 {
        farm.tell(Input::LaneReset(BackendId(at)));
        at = farm.told(1, at, attempt, Known::Absent)[0][7..].parse().unwrap();
        farm.accepted(1, attempt + 1);
        farm.started(1, at);
    }
    farm.tell(Input::LaneReset(BackendId(at)));
    let failed = farm.told(1, at, 3, Known::Absent);
    assert_eq!(failed, ["ended 1 poison job: its server died 3 times while running it"]);
}

/// What a journal keeps of a job, as the moves tell it.
fn kept(core: &mut Core, input: Input, now: u64) -> Kept {
    let mut actions = Vec::new();
    core.handle(input, Moment(now), &mut actions);
    let told = actions.into_iter().rev().find_map(|action| match action {
        Action::Moved { job, phase, attempt, marks }
        | Action::Marked { job, phase, attempt, marks } => {
            Some(Kept { job, phase, attempts: attempt, marks, reply: Bytes::new() })
        }
        _ => None,
    });
    told.expect("something that is kept")
}

#[test]
fn a_poison_job_is_stopped_although_the_gateway_restarts_in_between() {
    let (mut farm, at, _) = running(job(1, 1));
    let mut kept = kept(&mut farm.core, down(at), 2000);
    for strike in 1..=3 {
        // The gateway dies while it waits for the dead server, each time.
        farm = Farm::of([lane(0), lane(1)]);
        let Phase::Doubtful(BackendId(at)) = kept.phase else { panic!("{kept:?}") };
        let mut actions = Vec::new();
        farm.core.restore(vec![kept.clone()], Moment(farm.now), &mut actions);
        let again = farm.told(1, at, kept.attempts, Known::Absent);
        if strike == 3 {
            let words = "ended 1 poison job: its server died 3 times while running it";
            assert_eq!(again, [words]);
            break;
        }
        farm.after(5000);
        let Some(Phase::Sent(BackendId(at))) = farm.phase(1) else { panic!("{strike}") };
        farm.accepted(1, kept.attempts + 1);
        farm.started(1, at);
        kept = self::kept(&mut farm.core, down(at), farm.now);
        assert_eq!((kept.marks.strikes, kept.marks.began), (strike, true));
    }
}

#[test]
fn a_cancel_is_not_forgotten_by_a_restart() {
    let (mut farm, at, _) = running(job(1, 1));
    farm.tell(down(at));
    let kept = kept(&mut farm.core, Input::Cancel(JobId(1)), 2000);
    let mut farm = Farm::of([lane(0), lane(1)]);
    farm.core.restore(vec![kept.clone()], Moment(farm.now), &mut Vec::new());
    assert_eq!(farm.told(1, at, kept.attempts, Known::Absent), ["ended 1 Cancelled"]);
}

#[test]
fn what_must_not_run_twice_fails_when_its_server_was_away_before_it_began_for_all_we_know() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.submit(Job { once: true, ..job(2, 1) });
    let taken = farm.accepted(2, VETTING | 1);
    assert_eq!(taken, ["accept 2", "take 2 0"]);
    farm.tell(down(0));
    farm.tell(Input::TakenBack { job: JobId(2), attempt: VETTING | 1, result: TakenBack::Unknown });
    farm.tell(Input::Lane(lane(0)));
    let failed = farm.told(2, 0, VETTING | 1, Known::Absent);
    assert!(failed[0].contains("must not run twice"), "{failed:?}");
}

#[test]
fn a_post_that_broke_off_is_asked_for_before_anything_else() {
    let mut farm = Farm::of([lane(0), lane(1)]);
    let at: u32 = farm.submit(job(1, 1))[0][7..].parse().unwrap();
    assert_eq!(farm.verdict(1, 1, Verdict::Unknown), [format!("ask 1 {at}")]);
    assert_eq!(farm.told(1, at, 1, Known::Running), ["accept 1"]);
    assert_eq!(farm.phase(1), Some(Phase::Running(BackendId(at))));
}

#[test]
fn a_server_that_refuses_an_accepted_job_is_left_out() {
    let mut farm = Farm::of([lane(0), lane(1)]);
    farm.runs_anywhere(1);
    farm.runs_anywhere(2);
    farm.waits(job(3, 1));
    assert_eq!(farm.finished_at(1), Some("post 3".to_owned()));
    let at = farm.core.get(JobId(3)).unwrap().phase;
    let Phase::Sent(BackendId(at)) = at else { panic!("{at:?}") };
    farm.verdict(3, 1, refused());
    assert_eq!(farm.phase(3), Some(Phase::Waiting));
    farm.finished(2, 1 - at);
    assert_eq!(farm.phase(3), Some(Phase::Sent(BackendId(1 - at))));
    let failed = farm.verdict(3, 2, refused());
    assert_eq!(failed, ["ended 3 the server refused it with 400: no such node"]);
}

#[test]
fn a_job_missing_in_a_later_reading_is_asked_for() {
    let (mut farm, at, _) = running(job(1, 1));
    let queue = |asked| Input::Queue {
        backend: BackendId(at),
        running: Vec::new(),
        pending: Vec::new(),
        foreign: 0,
        asked: Moment(asked),
    };
    assert!(farm.tell(queue(900)).is_empty());
    farm.now += 1000;
    assert_eq!(farm.tell(queue(1500)), [format!("ask 1 {at}")]);
}

#[test]
fn a_silent_prompt_is_interrupted_and_then_its_server_suspect() {
    let (mut farm, at, other) = running(job(1, 1));
    assert_eq!(farm.after(600_000), [format!("interrupt 1 {at}")]);
    let suspect = farm.after(30_000);
    assert!(suspect.contains(&format!("suspect {at}")));
    assert!(suspect.contains(&format!("post 1 {other}")));
    assert_eq!(farm.submit(job(2, 1)), [format!("vet 2 {other}")]);
}

#[test]
fn a_finished_job_that_history_does_not_know_ends_after_some_questions() {
    let (mut farm, at, _) = running(job(1, 1));
    farm.finished(1, at);
    for _ in 0..3 {
        assert!(farm.told(1, at, 1, Known::Absent).is_empty());
        assert_eq!(farm.after(1000), [format!("ask 1 {at}")]);
    }
    assert_eq!(farm.told(1, at, 1, Known::Absent), ["ended 1 Completed"]);
}

#[test]
fn a_restarted_gateway_goes_on_where_it_was() {
    let kept = |id, phase, attempts| Kept {
        job: Arc::new(job(id, 1)),
        phase,
        attempts,
        marks: Marks::default(),
        reply: Bytes::new(),
    };
    let mut farm = Farm::of([]);
    let all = vec![
        kept(3, Phase::Waiting, 0),
        kept(1, Phase::Running(BackendId(0)), 1),
        kept(2, Phase::Waiting, 0),
    ];
    let mut actions = Vec::new();
    farm.core.restore(all, Moment(1000), &mut actions);
    assert_eq!(farm.core.open_jobs(), 3);
    assert_eq!(farm.phase(1), Some(Phase::Doubtful(BackendId(0))));
    assert_eq!(farm.tell(Input::Lane(lane(0))), ["ask 1 0"]);
    assert!(farm.told(1, 0, 1, Known::Running).is_empty());
    assert_eq!(farm.phase(1), Some(Phase::Running(BackendId(0))));
    assert!(farm.after(3000).is_empty());
    assert_eq!(farm.finished(1, 0), ["ask 1 0", "post 2 0"]);
}

#[test]
fn a_backend_that_leaves_gives_up_its_jobs_at_once() {
    let (mut farm, at, other) = running(job(1, 1));
    assert_eq!(farm.tell(Input::LaneGone(BackendId(at))), [format!("post 1 {other}")]);
}

impl Farm {
    fn runs_anywhere(&mut self, id: u64) {
        let at: u32 = self.submit(job(id, 1))[0][7..].parse().unwrap();
        self.accepted(id, 1);
        self.started(id, at);
    }

    /// What is posted when a job finishes where it is.
    fn finished_at(&mut self, id: u64) -> Option<String> {
        let Some(Phase::Running(BackendId(at))) = self.phase(id) else { return None };
        self.finished(id, at).get(1).map(|words| words[..6].to_owned())
    }
}
