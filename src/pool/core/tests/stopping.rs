//! Cancelling, wherever a job is.

use super::*;

fn cancel(farm: &mut Farm, id: u64) -> Vec<String> {
    farm.tell(Input::Cancel(JobId(id)))
}

#[test]
fn a_waiting_job_ends_at_once() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.waits(job(2, 1));
    assert_eq!(cancel(&mut farm, 2), ["ended 2 Cancelled"]);
    assert_eq!(farm.finished(1, 0), ["ask 1 0"]);
}

#[test]
fn a_running_job_is_interrupted_again_until_it_ends() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    assert_eq!(cancel(&mut farm, 1), ["interrupt 1 0"]);
    assert_eq!(farm.after(1000), ["interrupt 1 0"]);
    assert_eq!(farm.finished(1, 0), ["ask 1 0"]);
    assert!(farm.after(1000).is_empty());
    assert_eq!(farm.told(1, 0, 1, ended(Outcome::Cancelled)), ["ended 1 Cancelled"]);
}

#[test]
fn a_sent_job_is_taken_back_first_and_never_starts_elsewhere() {
    let mut farm = Farm::of([lane(0), lane(1)]);
    let at = farm.submit(job(1, 1))[0][7..].to_owned();
    assert!(cancel(&mut farm, 1).is_empty());
    assert_eq!(farm.accepted(1, 1), ["accept 1".to_owned(), format!("take 1 {at}")]);
    assert_eq!(farm.gone(1, 1), ["ended 1 Cancelled"]);
}

#[test]
fn an_interrupt_of_what_runs_waits_for_a_sent_job_to_begin() {
    let mut farm = Farm::of([lane(0)]);
    farm.submit(job(1, 1));
    farm.accepted(1, 1);
    assert!(farm.tell(Input::Interrupt(JobId(1))).is_empty());
    assert_eq!(farm.started(1, 0), ["interrupt 1 0"]);
    assert_eq!(farm.finished(1, 0), ["ask 1 0"]);
    assert_eq!(farm.told(1, 0, 1, ended(Outcome::Cancelled)), ["ended 1 Cancelled"]);
}

#[test]
fn an_interrupt_of_what_runs_leaves_a_waiting_job_alone() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.waits(job(2, 1));
    assert!(farm.tell(Input::Interrupt(JobId(2))).is_empty());
    assert_eq!(farm.tell(Input::Interrupt(JobId(1))), ["interrupt 1 0"]);
}

#[test]
fn a_doubtful_job_is_stopped_as_soon_as_it_is_found() {
    let mut farm = Farm::of([lane(0)]);
    farm.runs(job(1, 1), 0);
    farm.tell(Input::Lane(Lane { open: false, reachable: false, ..lane(0) }));
    assert!(cancel(&mut farm, 1).is_empty());
    assert_eq!(farm.tell(Input::Lane(lane(0))), ["ask 1 0"]);
    assert_eq!(farm.told(1, 0, 1, Known::Running), ["interrupt 1 0"]);
}

#[test]
fn a_cancelled_job_whose_server_died_does_not_run_again() {
    let mut farm = Farm::of([lane(0), lane(1)]);
    let at: u32 = farm.submit(job(1, 1))[0][7..].parse().unwrap();
    farm.accepted(1, 1);
    farm.started(1, at);
    farm.tell(Input::Lane(Lane { open: false, reachable: false, ..lane(at) }));
    cancel(&mut farm, 1);
    assert_eq!(farm.after(10_000), ["ended 1 Cancelled"]);
}

#[test]
fn a_job_that_is_cancelled_while_it_is_taken_back_is_listed_no_more() {
    let mut farm = Farm::of([lane(0)]);
    farm.submit(job(1, 1));
    farm.accepted(1, 1);
    farm.started(1, 0);
    farm.submit(job(2, 1));
    assert!(farm.accepted(2, VETTING | 1).contains(&"take 2 0".to_owned()));
    assert_eq!(farm.core.jobs().len(), 2);
    farm.tell(Input::Cancel(JobId(2)));
    assert_eq!(farm.core.jobs().iter().map(|view| view.job.id).collect::<Vec<_>>(), [JobId(1)]);
    assert!(farm.gone(2, VETTING | 1).contains(&"ended 2 Cancelled".to_owned()));
}
