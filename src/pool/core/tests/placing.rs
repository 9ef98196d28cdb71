//! Who goes where, and when.

use super::*;

#[test]
fn a_free_lane_gets_a_job_at_once_and_its_word_accepts_it() {
    let mut farm = Farm::of([lane(0)]);
    assert_eq!(farm.submit(job(1, 1)), ["post 1 0"]);
    assert_eq!(farm.accepted(1, 1), ["accept 1"]);
    assert_eq!(farm.phase(1), Some(Phase::Sent(BackendId(0))));
}

#[test]
fn a_full_farm_judges_a_job_and_takes_it_back() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.waits(job(2, 1));
    assert_eq!(farm.phase(2), Some(Phase::Waiting));
    assert_eq!(farm.core.position(JobId(2)), Some(0));
}

#[test]
fn what_started_before_it_could_be_taken_back_is_dispatched() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.submit(job(2, 1));
    farm.accepted(2, VETTING | 1);
    farm.finished(1, 0);
    let started = TakenBack::Started;
    let asks = farm.tell(Input::TakenBack { job: JobId(2), attempt: VETTING | 1, result: started });
    assert_eq!(asks, ["ask 2 0"]);
    assert_eq!(farm.phase(2), Some(Phase::Running(BackendId(0))));
}

#[test]
fn a_judged_job_stays_when_its_lane_has_become_free() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    assert_eq!(farm.submit(job(2, 1)), ["vet 2 0"]);
    farm.finished(1, 0);
    assert_eq!(farm.accepted(2, VETTING | 1), ["accept 2"]);
    assert_eq!(farm.phase(2), Some(Phase::Sent(BackendId(0))));
}

#[test]
fn the_finish_dispatches_the_next_in_the_same_step() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.waits(job(2, 1));
    assert_eq!(farm.finished(1, 0), ["ask 1 0", "post 2 0"]);
    let done = farm.told(1, 0, 1, ended(Outcome::Completed));
    assert_eq!(done, ["ended 1 Completed"]);
}

#[test]
fn one_job_of_another_client_is_next_after_a_batch() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    (2..40).for_each(|id| farm.waits(job(id, 1)));
    farm.finished(1, 0);
    farm.waits(job(99, 2));
    farm.accepted(2, 1);
    farm.started(2, 0);
    assert_eq!(farm.finished(2, 0)[1], "post 99 0");
}

#[test]
fn the_servers_own_refusal_is_passed_on() {
    let mut farm = Farm::of([lane(0)]);
    farm.submit(job(1, 1));
    assert_eq!(farm.verdict(1, 1, refused()), ["refuse 1 400"]);
    farm.runs(job(2, 1), 0);
    farm.submit(job(3, 1));
    assert_eq!(farm.verdict(3, VETTING | 1, refused()), ["refuse 3 400"]);
}

#[test]
fn a_job_goes_only_where_its_nodes_are() {
    let mut farm = Farm::of([with_nodes(0, &["A"]), with_nodes(1, &["A", "B"])]);
    farm.runs(needing(1, "B"), 1);
    assert_eq!(farm.submit(needing(2, "B")), ["vet 2 1"]);
    assert_eq!(farm.submit(needing(3, "A")), ["post 3 0"]);
}

#[test]
fn what_no_lane_seems_able_to_run_is_put_to_one_anyway() {
    let mut farm = Farm::of([with_nodes(0, &["A"])]);
    assert_eq!(farm.submit(needing(1, "X")), ["post 1 0"]);
    assert_eq!(farm.verdict(1, 1, refused()), ["refuse 1 400"]);
    farm.runs(needing(2, "A"), 0);
    // It can after all, and waits for it.
    farm.waits(needing(3, "X"));
    assert_eq!(farm.finished(2, 0), ["ask 2 0", "post 3 0"]);
}

#[test]
fn what_no_lane_has_wholly_is_put_to_one_that_lacks_least() {
    let mut farm = Farm::of([with_nodes(0, &["A"]), with_nodes(1, &["A", "B"])]);
    let needs = Needs {
        nodes: BTreeSet::from(["B".into()]),
        models: BTreeSet::from(["nowhere.ckpt".into()]),
        ..Needs::default()
    };
    let partly = |id| Job { needs: Arc::new(needs.clone()), ..job(id, 1) };
    farm.runs(partly(1), 1);
    farm.waits(partly(2));
    assert_eq!(farm.finished(1, 1), ["ask 1 1", "post 2 1"], "and waits for that one");
}

#[test]
fn what_one_lane_took_unforeseen_may_run_on_all_that_are_like_it() {
    let mut farm = Farm::of([with_nodes(0, &["A"]), with_nodes(1, &["A"])]);
    farm.runs(needing(1, "A"), 1);
    farm.runs(needing(2, "A"), 0);
    farm.waits(needing(3, "X"));
    farm.waits(needing(4, "X"));
    assert_eq!(farm.finished(1, 1), ["ask 1 1", "post 3 1"]);
    assert_eq!(farm.finished(2, 0), ["ask 2 0", "post 4 0"]);
}

#[test]
fn the_own_zone_comes_before_a_warm_cache() {
    let zoned = |n, zone: &str| Lane { zone: Some(zone.into()), ..lane(n) };
    let mut farm = Farm::of([zoned(0, "eu"), zoned(1, "us")]);
    let from = |id, zone: &str| Job { zone: Some(zone.into()), ..job(id, 1) };
    farm.runs(from(1, "eu"), 0);
    farm.finished(1, 0);
    farm.told(1, 0, 1, ended(Outcome::Completed));
    assert_eq!(farm.submit(from(2, "us")), ["post 2 1"]);
}

#[test]
fn without_an_open_lane_nothing_is_accepted() {
    let mut farm = Farm::of([Lane { open: false, ..lane(0) }]);
    assert_eq!(farm.submit(job(1, 1)), ["refuse 1 NoBackend"]);
    assert!(farm.core.find("p1").is_none());
}

#[test]
fn backups_serve_only_when_no_other_is_open() {
    let backup = Lane { backup: true, ..lane(1) };
    let mut farm = Farm::of([lane(0), backup]);
    farm.runs(job(1, 1), 0);
    assert_eq!(farm.submit(job(2, 1)), ["vet 2 0"]);
    farm.accepted(2, VETTING | 1);
    farm.gone(2, VETTING | 1);
    let closes = farm.tell(Input::Lane(Lane { open: false, ..lane(0) }));
    assert_eq!(closes, ["post 2 1"]);
}

#[test]
fn a_full_line_refuses_at_once() {
    let mut farm = Farm::with(Options { max_size: 2, ..options() }, [lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.waits(job(2, 1));
    farm.submit(job(3, 1));
    assert_eq!(farm.submit(job(4, 1)), ["refuse 4 Full"]);
}

#[test]
fn a_verdict_that_does_not_come_is_a_timeout_and_what_turns_up_is_stopped() {
    let mut farm = Farm::of([lane(0)]);
    farm.submit(job(1, 1));
    assert_eq!(farm.after(10_000), ["take 1 0", "refuse 1 Timeout"]);
    farm.gone(1, 1);
    assert_eq!(farm.accepted(1, 1), ["ask 1 0"]);
    assert_eq!(farm.told(1, 0, 1, Known::Running), ["interrupt 1 0"]);
    farm.finished(1, 0);
    assert_eq!(farm.core.strays(), 0);
}

#[test]
fn a_slow_lane_is_not_waited_for_when_another_can_judge() {
    let mut farm = Farm::of([lane(0), lane(1)]);
    let first = farm.submit(job(1, 1))[0].clone();
    let second = farm.submit(job(2, 1))[0].clone();
    assert_ne!(first[7..], second[7..]);
    farm.accepted(1, 1);
    farm.accepted(2, 1);
    let slow = farm.submit(job(3, 1))[0].clone();
    let other = if slow == "vet 3 0" { "vet 3 1" } else { "vet 3 0" };
    assert!(farm.after(300).contains(&other.to_owned()));
}

#[test]
fn a_job_that_begins_where_its_verdict_is_late_is_there_and_not_where_it_is_judged() {
    let mut farm = Farm::of([lane(0), lane(1)]);
    for id in [1, 2] {
        let at: u32 = farm.submit(job(id, 1))[0][7..].parse().unwrap();
        farm.accepted(id, 1);
        farm.started(id, at);
    }
    let slow: u32 = farm.submit(job(3, 1))[0][6..].parse().unwrap();
    farm.after(300);
    assert_eq!(farm.core.place_of(JobId(3)), Some(BackendId(1 - slow)));
    assert!(farm.started(3, slow).contains(&format!("take 3 {}", 1 - slow)));
    assert_eq!(farm.core.place_of(JobId(3)), Some(BackendId(slow)));
    assert!(farm.accepted(3, VETTING | 1).contains(&"accept 3".to_owned()));
    assert_eq!(farm.core.waiting(), 0);
    farm.accepted(3, VETTING | 2);
    farm.gone(3, VETTING | 2);
    farm.finished(3, slow);
    let told = farm.told(3, slow, VETTING | 1, ended(Outcome::Completed));
    assert_eq!(told, ["ended 3 Completed"]);
}

#[test]
fn a_job_found_running_where_its_verdict_is_late_is_not_interrupted() {
    let mut farm = Farm::of([lane(0), lane(1)]);
    for id in [1, 2] {
        let at: u32 = farm.submit(job(id, 1))[0][7..].parse().unwrap();
        farm.accepted(id, 1);
        farm.started(id, at);
    }
    let slow: u32 = farm.submit(job(3, 1))[0][6..].parse().unwrap();
    assert!(farm.after(300).contains(&format!("take 3 {slow}")));
    // It ran before it could be taken back, and its first event may come later.
    let (job, attempt, result) = (JobId(3), VETTING | 1, TakenBack::Started);
    let told = farm.tell(Input::TakenBack { job, attempt, result });
    assert!(!told.iter().any(|action| action.starts_with("interrupt")), "{told:?}");
    assert_eq!(farm.core.place_of(job), Some(BackendId(slow)));
    assert!(farm.accepted(3, attempt).contains(&"accept 3".to_owned()));
    farm.started(3, slow);
    farm.finished(3, slow);
    let told = farm.told(3, slow, attempt, ended(Outcome::Completed));
    assert_eq!(told, ["ended 3 Completed"]);
}

#[test]
fn a_prompt_that_never_left_is_put_to_another_lane() {
    let mut farm = Farm::of([lane(0), lane(1)]);
    let first = farm.submit(job(1, 1))[0].clone();
    let other = if first == "post 1 0" { "post 1 1" } else { "post 1 0" };
    assert_eq!(farm.verdict(1, 1, Verdict::NotSent), [other]);
    assert_eq!(farm.verdict(1, 1, Verdict::NotSent), ["refuse 1 NoBackend"]);
}

#[test]
fn foreign_prompts_take_up_a_lane() {
    let mut farm = Farm::of([lane(0)]);
    let queue = |foreign| Input::Queue {
        backend: BackendId(0),
        running: Vec::new(),
        pending: Vec::new(),
        foreign,
        asked: Moment(1000),
    };
    farm.tell(queue(1));
    farm.waits(job(1, 1));
    assert_eq!(farm.tell(queue(0)), ["post 1 0"]);
}

#[test]
fn events_may_come_before_the_verdict() {
    let mut farm = Farm::of([lane(0)]);
    farm.submit(job(1, 1));
    farm.started(1, 0);
    farm.finished(1, 0);
    assert_eq!(farm.accepted(1, 1), ["accept 1", "ask 1 0"]);
    assert_eq!(farm.told(1, 0, 1, ended(Outcome::Completed)), ["ended 1 Completed"]);
}

#[test]
fn one_is_posted_ahead_when_the_running_one_is_about_to_end() {
    let mut farm = Farm::with(Options { prefetch: 1, ..options() }, [lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.finished(1, 0);
    farm.told(1, 0, 1, ended(Outcome::Completed));
    farm.runs(job(2, 1), 0);
    farm.waits(job(3, 1));
    assert!(farm.after(500).is_empty());
    assert_eq!(farm.after(500), ["post 3 0"]);
    farm.accepted(3, 1);
    // Another lane could run it at once.
    assert_eq!(farm.tell(Input::Lane(lane(1))), ["take 3 0"]);
    assert_eq!(farm.gone(3, 1), ["post 3 1"]);
}

#[test]
fn a_warm_lane_is_preferred() {
    let mut farm = Farm::of([lane(0), lane(1), lane(2)]);
    let at: u32 = farm.submit(job(1, 1))[0][7..].parse().unwrap();
    farm.accepted(1, 1);
    farm.started(1, at);
    farm.finished(1, at);
    for client in 2..10 {
        let id = u64::from(client);
        assert_eq!(farm.submit(job(id, client)), [format!("post {id} {at}")]);
        farm.verdict(id, 1, refused());
    }
}

#[test]
fn readers_see_running_first_and_then_the_line_in_order() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.waits(job(2, 1));
    farm.waits(job(3, 1));
    farm.waits(job(4, 2));
    let order: Vec<u64> = farm.core.jobs().iter().map(|view| view.job.id.0).collect();
    assert_eq!(order, [1, 2, 4, 3]);
    assert_eq!((farm.core.open_jobs(), farm.core.waiting()), (4, 3));
    assert_eq!(farm.core.of(ClientKey::from_bytes([1; 16])).len(), 3);
    assert_eq!(farm.core.on(BackendId(0)).len(), 1);
    assert_eq!(farm.core.find("p4"), Some(JobId(4)));
}
