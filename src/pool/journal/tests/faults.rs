//! A disk that is full, slow to say so, or broken for a while.

use std::time::Instant;

use super::crash::Machine;
use super::sim_disk::SimDisk;
use super::*;

fn machine() -> Machine {
    Machine::start(SimDisk::new(), Bounds::default(), SEGMENT)
}

/// An accepted job, one that ran when the disk became full.
fn with_a_running_job(machine: &mut Machine, now: Instant) {
    let ticket = machine.journal.write(accepted(1, 1000));
    machine.round(now);
    ticket.wait().unwrap();
}

#[test]
fn one_prompt_alone_waits_for_one_sync() {
    let mut machine = machine();
    with_a_running_job(&mut machine, Instant::now());
    let before = machine.disk.syncs();
    let ticket = machine.journal.write(accepted(2, 1000));
    machine.round(Instant::now());
    ticket.wait().unwrap();
    assert_eq!(machine.disk.syncs() - before, 1);
}

#[test]
fn many_prompts_share_a_sync() {
    let mut machine = machine();
    with_a_running_job(&mut machine, Instant::now());
    let before = machine.disk.syncs();
    let tickets: Vec<_> = (2..66).map(|n| machine.journal.write(accepted(n, 20_000))).collect();
    machine.round(Instant::now());
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    assert_eq!(machine.disk.syncs() - before, 1);
}

#[test]
fn on_a_full_disk_new_jobs_are_refused_and_running_ones_end() {
    let (mut machine, now) = (machine(), Instant::now());
    with_a_running_job(&mut machine, now);
    machine.disk.set_room(machine.disk.used() + 100);
    let refused = machine.journal.write(accepted(2, 1000));
    machine.round(now);
    let reason = refused.wait().unwrap_err();
    assert!(reason.0.contains("cannot be written") && reason.0.contains("no storage"), "{reason}");
    assert_eq!(machine.journal.health().unwrap_err(), reason.0);
    let rejection = crate::rejection::Rejection::from(reason);
    assert_eq!(rejection.kind.status().as_u16(), 503);
    assert!(rejection.retry_after.is_some());
    // Refused at once from now on; the running one ends into the room that was held back.
    assert!(machine.journal.write(accepted(3, 1000)).wait().is_err());
    let end = machine.journal.write(ended(1, 5000));
    assert_eq!(machine.journal.entry_blocking(JobId(1)), Some(entry(1, 5000)), "seen at once");
    machine.round(now + Duration::from_secs(1));
    end.wait().unwrap();
    assert!(machine.journal.health().is_err(), "still no room");
    // Room again.
    machine.disk.set_room(u64::MAX);
    machine.round(now + Duration::from_secs(3));
    assert_eq!(machine.journal.health(), Ok(()));
    let ticket = machine.journal.write(accepted(4, 1000));
    machine.round(now + Duration::from_secs(3));
    ticket.wait().unwrap();
    let again = Machine::start(machine.disk.crash(7), Bounds::default(), SEGMENT);
    assert_eq!(numbers(&again.restored.open), [(4, 1000)].into());
    assert_eq!(again.journal.entry_blocking(JobId(1)), Some(entry(1, 5000)));
}

#[test]
fn moves_and_ends_wait_for_a_disk_that_works() {
    let (mut machine, now) = (machine(), Instant::now());
    with_a_running_job(&mut machine, now);
    machine.disk.fail_sync(true);
    let mut tickets = Vec::new();
    for attempt in 1..50 {
        tickets.push(machine.journal.write(moved(1, Phase::Sent(BackendId(3)), attempt)));
        machine.round(now + Duration::from_secs(u64::from(attempt)));
    }
    assert!(machine.journal.health().is_err());
    machine.disk.fail_sync(false);
    machine.round(now + Duration::from_secs(100));
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    assert_eq!(machine.journal.health(), Ok(()));
    let again = Machine::start(machine.disk.crash(7), Bounds::default(), SEGMENT);
    let open = &again.restored.open[0];
    assert_eq!((open.attempts, open.at.backend().map(|name| &**name)), (49, Some("comfy-3")));
}

/// Its client was told 503 and will come again: it must not also run.
#[test]
fn a_refused_job_does_not_come_back_after_a_restart() {
    for fails_cut in [false, true] {
        let (mut machine, now) = (machine(), Instant::now());
        with_a_running_job(&mut machine, now);
        machine.disk.fail_sync(true);
        machine.disk.fail_cut(fails_cut);
        let refused = machine.journal.write(accepted(2, 1000));
        machine.round(now);
        assert!(refused.wait().is_err());
        if !fails_cut {
            let again = Machine::start(machine.disk.picture(), Bounds::default(), SEGMENT);
            assert_eq!(numbers(&again.restored.open), [(1, 1000)].into());
        }
        machine.disk.fail_sync(false);
        machine.disk.fail_cut(false);
        machine.round(now + Duration::from_secs(2));
        let ticket = machine.journal.write(accepted(3, 1000));
        machine.round(now + Duration::from_secs(2));
        ticket.wait().unwrap();
        let again = Machine::start(machine.disk, Bounds::default(), SEGMENT);
        assert_eq!(numbers(&again.restored.open), [(1, 1000), (3, 1000)].into());
    }
}

#[test]
fn a_line_that_is_full_refuses_new_jobs_and_takes_the_rest() {
    let mut machine = machine();
    with_a_running_job(&mut machine, Instant::now());
    let tickets: Vec<_> = (2..20).map(|n| machine.journal.write(accepted(n, 30 << 20))).collect();
    let _end = machine.journal.write(ended(1, 10));
    for _ in 0..20 {
        machine.round(Instant::now());
    }
    let taken = tickets.into_iter().map(Ticket::wait);
    let (taken, refused): (Vec<_>, Vec<_>) = taken.partition(Result::is_ok);
    assert_eq!((taken.len(), refused.len()), (4, 14));
    assert!(refused[0].as_ref().unwrap_err().0.contains("slower"));
    assert_eq!(machine.journal.usage().open, 4);
    assert!(machine.journal.find(&prompt_id(1)).is_some());
}
