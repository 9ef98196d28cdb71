use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

const A: BackendId = BackendId(0);
const B: BackendId = BackendId(1);

fn at(milliseconds: u64) -> Now {
    let wall = Timestamp::from_millisecond(1_700_000_000_000 + milliseconds.cast_signed()).unwrap();
    Now { moment: Moment(1000 + milliseconds), wall }
}

fn client(number: u8) -> ClientKey {
    ClientKey::of_address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number)))
}

fn accepted(id: &str, backend: BackendId, owner: u8) -> Accepted {
    Accepted {
        id: id.to_owned(),
        key: client(owner),
        caller: format!("10.0.0.{owner}"),
        backend,
        backend_name: "gpu".into(),
        breaks: 0,
    }
}

fn queue(running: &[&str], pending: &[&str]) -> QueueItems {
    let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    QueueItems { running: owned(running), pending: owned(pending), complete: true }
}

fn completed(run_seconds: f64) -> Entry {
    Entry::Completed { run_seconds: Some(run_seconds) }
}

/// A ledger with the prompts a, b, c of client 1 on backend A, accepted at 0.
fn with_three() -> Ledger {
    let mut ledger = Ledger::new(100);
    for id in ["a", "b", "c"] {
        ledger.accepted(accepted(id, A, 1), at(0));
    }
    ledger
}

fn look(ledger: &mut Ledger, items: &QueueItems, now: Now) -> Vec<String> {
    let mark = ledger.mark(0);
    ledger.saw_queue(A, items, mark, now).iter().map(ToString::to_string).collect()
}

fn task(ledger: &Ledger, id: &str, now: Now) -> TaskView {
    ledger.get(id, now).unwrap().1
}

#[test]
fn a_prompt_waits_runs_and_completes() {
    let mut ledger = with_three();
    assert_eq!(task(&ledger, "b", at(0)).position, Some(2));
    assert!(look(&mut ledger, &queue(&["a"], &["c", "b"]), at(500)).is_empty());
    let running = task(&ledger, "a", at(500));
    assert_eq!((running.state, running.position), (TaskState::Running, Some(0)));
    assert_eq!(task(&ledger, "b", at(500)).position, Some(2));
    assert_eq!(task(&ledger, "c", at(500)).position, Some(1));
    assert_eq!(look(&mut ledger, &queue(&["c"], &["b"]), at(2600)), ["a"]);
    let mark = ledger.mark(0);
    ledger.outcome(A, "a", completed(2.0), mark, at(2600));
    let ended = task(&ledger, "a", at(9000));
    assert_eq!((ended.state, ended.position), (TaskState::Completed, None));
    assert_eq!(ended.run_seconds, Some(2.0));
    assert_eq!(ended.finished_at, Some(at(2600).wall));
    assert_eq!(ledger.open_of(client(1)), 2);
    assert_eq!(ledger.last_end_of(client(1)), Some(at(2600).moment));
    assert_eq!(ledger.open_of(client(2)), 0);
}

#[test]
fn a_prompt_that_ran_between_two_looks_has_started_all_the_same() {
    let mut ledger = with_three();
    assert_eq!(look(&mut ledger, &queue(&[], &["b", "c"]), at(3000)), ["a"]);
    let mark = ledger.mark(0);
    ledger.outcome(A, "a", completed(1.0), mark, at(3000));
    assert_eq!(task(&ledger, "a", at(0)).started_at, Some(at(2000).wall));
    ledger.outcome(A, "b", completed(60.0), mark, at(3000));
    assert_eq!(task(&ledger, "b", at(0)).started_at, Some(at(0).wall), "not before it came");
}

#[test]
fn a_prompt_accepted_after_the_look_began_is_not_missed() {
    let mut ledger = with_three();
    let mark = ledger.mark(0);
    ledger.accepted(accepted("late", A, 2), at(5));
    let gone = ledger.saw_queue(A, &queue(&[], &["a", "b", "c"]), mark, at(10));
    assert!(gone.is_empty());
}

#[test]
fn a_queue_that_was_cut_short_proves_nobody_gone() {
    let mut ledger = with_three();
    let cut = QueueItems { complete: false, ..queue(&["a"], &[]) };
    assert!(look(&mut ledger, &cut, at(10)).is_empty());
}

#[test]
fn a_prompt_missing_twice_in_a_row_was_deleted() {
    let mut ledger = with_three();
    let mark = ledger.mark(0);
    ledger.outcome(A, "b", Entry::Absent, mark, at(10));
    assert_eq!(ledger.state_of(A, "b"), Some(TaskState::Queued));
    look(&mut ledger, &queue(&["a"], &["b", "c"]), at(20));
    ledger.outcome(A, "b", Entry::Absent, mark, at(30));
    assert_eq!(ledger.state_of(A, "b"), Some(TaskState::Queued), "it was seen in between");
    ledger.outcome(A, "b", Entry::Absent, mark, at(40));
    assert_eq!(ledger.state_of(A, "b"), Some(TaskState::Cancelled));
}

#[test]
fn a_prompt_that_vanishes_across_a_break_was_lost() {
    let mut ledger = with_three();
    look(&mut ledger, &queue(&["a"], &["b", "c"]), at(20));
    let after = ledger.mark(1);
    assert_eq!(ledger.saw_queue(A, &queue(&[], &["c"]), after, at(30)).len(), 2);
    for now in [at(30), at(40)] {
        ledger.outcome(A, "a", Entry::Absent, after, now);
        ledger.outcome(A, "c", Entry::Absent, after, now);
    }
    let lost = task(&ledger, "a", at(40));
    assert_eq!((lost.state, lost.error.as_deref()), (TaskState::Failed, Some(LOST)));
    assert_eq!(ledger.state_of(A, "c"), Some(TaskState::Cancelled), "seen after the break");
}

#[test]
fn a_cancelled_prompt_is_gone_at_once_even_across_a_break() {
    let mut ledger = with_three();
    ledger.cancelling(A, "b");
    let mark = ledger.mark(7);
    ledger.outcome(A, "b", Entry::Absent, mark, at(10));
    assert_eq!(ledger.state_of(A, "b"), Some(TaskState::Cancelled));
}

#[test]
fn an_end_is_final() {
    let mut ledger = with_three();
    let mark = ledger.mark(0);
    ledger.outcome(A, "a", Entry::Failed { error: "boom".into() }, mark, at(10));
    ledger.outcome(A, "a", completed(1.0), mark, at(20));
    look(&mut ledger, &queue(&["a"], &["b", "c"]), at(30));
    let view = task(&ledger, "a", at(30));
    assert_eq!((view.state, view.error.as_deref()), (TaskState::Failed, Some("boom")));
    assert_eq!(ledger.counts(), Counts { queued: 2, failed: 1, ..Counts::default() });
}

#[test]
fn a_lost_backend_takes_its_own_prompts_only() {
    let mut ledger = with_three();
    ledger.accepted(accepted("d", B, 1), at(0));
    ledger.backend_lost(A, "the backend is down", at(10));
    assert_eq!(ledger.open_on(A), 0);
    assert_eq!(ledger.open_on(B), 1);
    let error = task(&ledger, "c", at(10)).error.unwrap();
    assert_eq!(error, "lost by the backend: the backend is down");
}

#[test]
fn an_id_used_again_replaces_what_has_ended_and_joins_what_has_not() {
    let mut ledger = with_three();
    ledger.accepted(accepted("a", A, 2), at(10));
    assert_eq!(ledger.open_of(client(2)), 0);
    let mark = ledger.mark(0);
    ledger.outcome(A, "a", completed(1.0), mark, at(20));
    ledger.accepted(accepted("a", A, 2), at(30));
    assert_eq!(task(&ledger, "a", at(30)).caller, "10.0.0.2");
    ledger.accepted(accepted("a", B, 3), at(40));
    assert_eq!(ledger.get("a", at(40)).unwrap().0, B, "the newest");
    assert_eq!(ledger.list(None, 10, 0, at(40)).1, 4);
}

#[test]
fn the_oldest_ended_task_goes_first_and_open_ones_last() {
    let mut ledger = Ledger::new(3);
    for id in ["a", "b", "c"] {
        ledger.accepted(accepted(id, A, 1), at(0));
    }
    let mark = ledger.mark(0);
    ledger.outcome(A, "b", completed(1.0), mark, at(1));
    let ids = |ledger: &Ledger| -> Vec<String> {
        ledger.list(None, 10, 0, at(0)).0.into_iter().map(|task| task.task_id).collect()
    };
    ledger.accepted(accepted("d", A, 1), at(2));
    assert_eq!(ids(&ledger), ["d", "c", "a"]);
    ledger.accepted(accepted("e", A, 2), at(3));
    assert_eq!(ids(&ledger), ["e", "d", "c"]);
    assert_eq!(ledger.open_of(client(1)), 2);
    assert_eq!(ledger.counts().completed, 1, "totals do not forget");
}

#[test]
fn etas_follow_the_line_and_the_clock() {
    let mut ledger = with_three();
    assert_eq!(task(&ledger, "a", at(0)).eta_seconds, None, "nothing is known yet");
    ledger.set_kind(A, "b", Kind { hash: 7, label: "slow".into() });
    ledger.rates.completed(A, Some(7), Some(10.0));
    ledger.rates.completed(A, Some(8), Some(5.0));
    look(&mut ledger, &queue(&["a"], &["b", "c"]), at(1000));
    // The mean is 9 s: a runs for 9, b for the 10 of its kind, c for 9.
    let eta = |ledger: &Ledger, id: &str, now: u64| task(ledger, id, at(now)).eta_seconds;
    assert_eq!(eta(&ledger, "a", 1000), Some(9.0));
    assert_eq!(eta(&ledger, "b", 1000), Some(19.0));
    assert_eq!(eta(&ledger, "c", 4000), Some(25.0));
    let standing = ledger.standing_of(client(1), at(2000));
    assert_eq!((standing.queued, standing.running), (2, 1));
    assert_eq!((standing.position, standing.eta_seconds), (Some(0), Some(8.0)));
    ledger.accepted(accepted("d", A, 2), at(1000));
    assert_eq!(task(&ledger, "d", at(1000)).position, Some(3));
    assert_eq!(eta(&ledger, "d", 1000), Some(37.0));
    let outlook = ledger.outlook(A).unwrap();
    assert_eq!(outlook.prompts, 4);
}

#[test]
fn a_strangers_running_prompt_counts_from_when_it_was_first_seen() {
    let mut ledger = with_three();
    ledger.rates.completed(A, None, Some(10.0));
    look(&mut ledger, &queue(&["stranger"], &["a", "b", "c"]), at(0));
    look(&mut ledger, &queue(&["stranger"], &["a", "b", "c"]), at(4000));
    assert_eq!(task(&ledger, "a", at(4000)).eta_seconds, Some(16.0));
}

#[test]
fn each_change_is_told_once_and_in_order() {
    let mut ledger = Ledger::new(10);
    ledger.accepted(accepted("a", A, 1), at(0));
    look(&mut ledger, &queue(&["a"], &[]), at(250));
    look(&mut ledger, &queue(&["a"], &[]), at(300));
    let mark = ledger.mark(0);
    ledger.outcome(A, "a", completed(2.0), mark, at(2250));
    let changes: Vec<_> = ledger.take_changes().into_iter().map(|(change, _)| change).collect();
    let change = |state, wait_seconds, run_seconds| TaskChange { state, wait_seconds, run_seconds };
    assert_eq!(
        changes,
        [
            change(TaskState::Queued, None, None),
            change(TaskState::Running, Some(0.25), None),
            change(TaskState::Completed, Some(0.25), Some(2.0)),
        ]
    );
    assert!(ledger.take_changes().is_empty());
}

/// The same, kept as a plain list.
#[derive(Debug, Default)]
struct Model {
    tasks: Vec<ModelTask>,
    ended: [u64; 5],
    accepted: u64,
}

#[derive(Debug, Clone)]
struct ModelTask {
    number: u64,
    id: String,
    backend: BackendId,
    owner: u8,
    state: TaskState,
    misses: u8,
    breaks: u64,
    cancelling: bool,
}

const LIMIT: usize = 6;

impl Model {
    fn find(&mut self, backend: BackendId, id: &str) -> Option<&mut ModelTask> {
        self.tasks.iter_mut().find(|task| task.backend == backend && task.id == id)
    }

    fn accept(&mut self, id: &str, backend: BackendId, owner: u8) {
        let known = self.find(backend, id).map(|task| (task.number, task.state));
        match known {
            Some((_, state)) if state.is_open() => return,
            Some((number, _)) => self.tasks.retain(|task| task.number != number),
            None => {}
        }
        self.tasks.push(ModelTask {
            number: self.accepted,
            id: id.to_owned(),
            backend,
            owner,
            state: TaskState::Queued,
            misses: 0,
            breaks: 0,
            cancelling: false,
        });
        self.accepted += 1;
        if self.tasks.len() > LIMIT {
            let ended = self.tasks.iter().position(|task| !task.state.is_open());
            self.tasks.remove(ended.unwrap_or(0));
        }
    }

    fn see(&mut self, backend: BackendId, items: &QueueItems, breaks: u64) -> Vec<String> {
        let mut gone = Vec::new();
        for task in self.tasks.iter_mut().filter(|t| t.backend == backend && t.state.is_open()) {
            let runs = items.running.contains(&task.id);
            if runs {
                task.state = TaskState::Running;
            }
            if runs || items.pending.contains(&task.id) {
                task.misses = 0;
                task.breaks = breaks;
            } else {
                gone.push(task.id.clone());
            }
        }
        gone
    }

    fn end(&mut self, backend: BackendId, id: &str, entry: &Entry, breaks: u64) {
        let Some(task) = self.find(backend, id).filter(|task| task.state.is_open()) else { return };
        let to = match entry {
            Entry::Completed { .. } => TaskState::Completed,
            Entry::Failed { .. } => TaskState::Failed,
            Entry::Interrupted => TaskState::Cancelled,
            Entry::Absent => {
                task.misses += 1;
                match (task.cancelling, task.misses >= 2, task.breaks == breaks) {
                    (true, ..) | (_, true, true) => TaskState::Cancelled,
                    (_, true, false) => TaskState::Failed,
                    _ => return,
                }
            }
        };
        task.state = to;
        self.ended[to as usize] += 1;
    }

    fn lose(&mut self, backend: BackendId) {
        for task in self.tasks.iter_mut().filter(|t| t.backend == backend && t.state.is_open()) {
            task.state = TaskState::Failed;
            self.ended[TaskState::Failed as usize] += 1;
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Accept(u8, u32, u8),
    See(u32, Vec<u8>, Vec<u8>, u64),
    End(u32, u8, u8, u64),
    Cancel(u32, u8),
    Lose(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let ids = || prop::collection::vec(0u8..5, 0..4);
    prop_oneof![
        5 => (0u8..5, 0u32..2, 1u8..4).prop_map(|(id, backend, owner)| Step::Accept(id, backend, owner)),
        3 => (0u32..2, ids(), ids(), 0u64..3).prop_map(|(b, running, pending, breaks)| Step::See(b, running, pending, breaks)),
        4 => (0u32..2, 0u8..5, 0u8..6, 0u64..3).prop_map(|(b, id, entry, breaks)| Step::End(b, id, entry, breaks)),
        1 => (0u32..2, 0u8..5).prop_map(|(backend, id)| Step::Cancel(backend, id)),
        1 => (0u32..2).prop_map(Step::Lose),
    ]
}

fn name(id: u8) -> String {
    format!("p{id}")
}

fn entry(number: u8) -> Entry {
    match number {
        0 => completed(1.5),
        1 => Entry::Failed { error: "boom".into() },
        2 => Entry::Interrupted,
        _ => Entry::Absent,
    }
}

/// Does the same to both; true when they agree on what it returned.
fn both(ledger: &mut Ledger, model: &mut Model, step: &Step, now: Now) -> bool {
    match step {
        Step::Accept(id, backend, owner) => {
            ledger.accepted(accepted(&name(*id), BackendId(*backend), *owner), now);
            model.accept(&name(*id), BackendId(*backend), *owner);
        }
        Step::See(backend, running, pending, breaks) => {
            let names = |ids: &[u8]| ids.iter().map(|&id| name(id)).collect();
            let items =
                QueueItems { running: names(running), pending: names(pending), complete: true };
            let mark = ledger.mark(*breaks);
            let gone = ledger.saw_queue(BackendId(*backend), &items, mark, now);
            let gone: Vec<String> = gone.iter().map(ToString::to_string).collect();
            return gone == model.see(BackendId(*backend), &items, *breaks);
        }
        Step::End(backend, id, number, breaks) => {
            let mark = ledger.mark(*breaks);
            ledger.outcome(BackendId(*backend), &name(*id), entry(*number), mark, now);
            model.end(BackendId(*backend), &name(*id), &entry(*number), *breaks);
        }
        Step::Cancel(backend, id) => {
            ledger.cancelling(BackendId(*backend), &name(*id));
            if let Some(task) = model.find(BackendId(*backend), &name(*id)) {
                task.cancelling = true;
            }
        }
        Step::Lose(backend) => {
            ledger.backend_lost(BackendId(*backend), "gone", now);
            model.lose(BackendId(*backend));
        }
    }
    true
}

proptest! {
    #[test]
    fn agrees_with_a_plain_list(steps in prop::collection::vec(step(), 1..60)) {
        let (mut ledger, mut model) = (Ledger::new(LIMIT), Model::default());
        for (time, step) in (0..).zip(&steps) {
            prop_assert!(both(&mut ledger, &mut model, step, at(time * 100)), "{:?}", step);
            let (all, total) = ledger.list(None, 100, 0, at(time * 100));
            let expected: Vec<_> =
                model.tasks.iter().rev().map(|task| (task.id.clone(), task.state)).collect();
            let listed: Vec<_> = all.iter().map(|task| (task.task_id.clone(), task.state)).collect();
            prop_assert_eq!(&listed, &expected, "after {:?}", step);
            prop_assert_eq!(total, expected.len());
            for state in TaskState::ALL {
                let count = expected.iter().filter(|(_, s)| *s == state).count();
                prop_assert_eq!(ledger.list(Some(state), 100, 0, at(0)).1, count);
            }
            let counts = ledger.counts();
            let ended = [counts.completed, counts.failed, counts.cancelled];
            prop_assert_eq!(&ended[..], &model.ended[2..]);
            for owner in 1..4 {
                let open = model.tasks.iter().filter(|t| t.owner == owner && t.state.is_open());
                prop_assert_eq!(ledger.open_of(client(owner)), open.count());
            }
            for backend in [A, B] {
                let open = model.tasks.iter().filter(|t| t.backend == backend && t.state.is_open());
                prop_assert_eq!(ledger.open_on(backend), open.count());
            }
            prop_assert!(ledger.clients.len() <= LIMIT && ledger.lines.len() <= 2);
        }
    }
}
