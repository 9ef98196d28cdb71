//! What one session gives its socket.

use super::*;
use crate::pool::clients::session::{
    FLAGS_GRACE, KEPT_BYTES, KEPT_FOR, OVERFLOW, PRESSURE, PREVIEWS, SOFT, STANDSTILL,
};
use crate::pool::clients::words::{First, features, greeting};

const NOW: Moment = Moment(1000);

fn short_executing(node: &str) -> Frame {
    text(format!(r#"{{"type": "executing", "data": {{"node": "{node}"}}}}"#))
}

/// A job from start to end.
fn whole(job: u64) -> Vec<Delivery> {
    vec![
        plain(job, Meaning::Start, "s"),
        plain(job, Meaning::Cached, "cached"),
        executing(job, "1"),
        plain(job, Meaning::Output, "o"),
        plain(job, Meaning::Terminal, "t"),
        plain(job, Meaning::End, "e"),
    ]
}

fn deliver_all(session: &mut Session, deliveries: &[Delivery], now: Moment) {
    for delivery in deliveries {
        session.deliver(delivery.clone(), now);
    }
}

#[test]
fn interleaved_passes_frames_as_they_come() {
    let mut session = live(ClientEvents::Interleaved);
    let mixed: Vec<_> = whole(1).into_iter().zip(whole(2)).flat_map(|(a, b)| [a, b]).collect();
    deliver_all(&mut session, &mixed, NOW);
    assert_eq!(drain(&mut session, NOW), frames(&mixed));
}

#[test]
fn serial_shows_one_job_after_another() {
    let mut session = live(ClientEvents::Serial);
    let mixed: Vec<_> = whole(1).into_iter().zip(whole(2)).flat_map(|(a, b)| [a, b]).collect();
    deliver_all(&mut session, &mixed, NOW);
    assert_eq!(drain(&mut session, NOW), frames(&[whole(1), whole(2)].concat()));
}

#[test]
fn a_job_that_ends_without_a_last_frame_makes_room_for_the_next() {
    let mut session = live(ClientEvents::Serial);
    deliver_all(&mut session, &whole(1)[..2], NOW);
    deliver_all(&mut session, &whole(2), NOW);
    assert_eq!(drain(&mut session, NOW), frames(&whole(1)[..2]));
    session.job_ended(JobId(1), NOW);
    assert_eq!(drain(&mut session, NOW), frames(&whole(2)));
    // What comes late of it does not open it again.
    session.deliver(plain(1, Meaning::Other, "late"), NOW);
    deliver_all(&mut session, &whole(3), NOW);
    assert_eq!(drain(&mut session, NOW).len(), 1 + whole(3).len());
}

#[test]
fn a_job_that_runs_again_shows_nothing_of_its_first_run_that_was_held() {
    let mut session = live(ClientEvents::Serial);
    deliver_all(&mut session, &whole(1)[..2], NOW);
    deliver_all(&mut session, &whole(2)[..3], NOW);
    session.job_withdrawn(JobId(2), NOW);
    deliver_all(&mut session, &whole(1)[2..], NOW);
    deliver_all(&mut session, &whole(2), NOW);
    assert_eq!(drain(&mut session, NOW), frames(&[whole(1), whole(2)].concat()));
}

#[test]
fn a_withdrawn_job_that_was_shown_does_not_hold_up_the_others() {
    let mut session = live(ClientEvents::Serial);
    deliver_all(&mut session, &whole(1)[..2], NOW);
    deliver_all(&mut session, &whole(2), NOW);
    session.job_withdrawn(JobId(1), NOW);
    deliver_all(&mut session, &whole(1), NOW);
    let expected = [&whole(1)[..2], &whole(2), &whole(1)].concat();
    assert_eq!(drain(&mut session, NOW), frames(&expected));
}

#[test]
fn a_page_is_shown_its_jobs_serially_and_a_program_interleaved_until_it_says_flags() {
    let shown = |has_origin: bool, first: Option<First>| {
        let mut session = Session::default();
        session.attached(NOW, &Attach { has_origin, ..attach(ClientEvents::Auto) });
        if let Some(first) = first {
            assert!(session.heard(first, || features(&true.into())));
        }
        drain(&mut session, NOW);
        deliver_all(&mut session, &[whole(1)[0].clone(), whole(2)[0].clone()], NOW);
        drain(&mut session, NOW).len()
    };
    assert_eq!(shown(true, None), 1);
    assert_eq!(shown(false, None), 2);
    assert_eq!(shown(false, Some(First::Other)), 2);
    assert_eq!(shown(false, Some(First::Flags { metadata: false })), 1);
}

#[test]
fn a_new_socket_is_greeted_and_told_where_its_prompt_is() {
    let mut session = Session::default();
    deliver_all(&mut session, &[plain(1, Meaning::Start, "s"), executing(1, "3")], NOW);
    session.attached(NOW, &attach(ClientEvents::Serial));
    let told = drain(&mut session, NOW);
    assert_eq!(told, [greeting(0, "A"), short_executing("3")], "and nothing of before");
    session.deliver(plain(1, Meaning::End, "e"), NOW);
    drain(&mut session, NOW);
    session.attached(NOW, &attach(ClientEvents::Serial));
    assert_eq!(drain(&mut session, NOW)[0], greeting(0, "A"));
}

#[test]
fn after_a_close_only_a_job_that_was_not_shown_begins_in_the_middle() {
    let mut session = live(ClientEvents::Serial);
    deliver_all(&mut session, &whole(1)[..3], NOW);
    deliver_all(&mut session, &whole(2)[..3], NOW);
    drain(&mut session, NOW);
    session.detached(false, NOW);
    assert!(session.cost() < 2000);
    session.deliver(plain(2, Meaning::Output, "lost"), NOW);
    session.attached(NOW, &attach(ClientEvents::Serial));
    assert_eq!(drain(&mut session, NOW), [greeting(0, "A"), short_executing("1")]);
    deliver_all(&mut session, &whole(1)[4..], NOW);
    deliver_all(&mut session, &whole(2)[4..], NOW);
    let second = [&whole(2)[..3], &whole(2)[4..]].concat();
    assert_eq!(drain(&mut session, NOW), frames(&[whole(1)[4..].to_vec(), second].concat()));
}

#[test]
fn flags_hold_for_the_socket_and_over_a_gap() {
    let mut session = live(ClientEvents::Auto);
    assert!(!session.wants_metadata(NOW));
    assert!(!session.heard(First::NotJson, || unreachable!()));
    assert!(session.heard(First::Flags { metadata: true }, || features(&true.into())));
    assert_eq!(drain(&mut session, NOW), [features(&true.into())]);
    assert!(session.wants_metadata(NOW));
    session.detached(false, NOW);
    assert!(session.wants_metadata(NOW), "a page that reloads queues before it is back");
    let page = Attach { has_origin: true, ..attach(ClientEvents::Auto) };
    session.attached(NOW, &page);
    assert!(session.wants_metadata(NOW));
    assert!(!session.wants_metadata(Moment(60_000)), "the new socket never said so");
    session.heard(First::Other, || unreachable!());
    assert!(!session.wants_metadata(NOW));
    session.heard(First::Flags { metadata: true }, || features(&true.into()));
    session.detached(true, NOW);
    session.attached(NOW, &attach(ClientEvents::Auto));
    assert!(!session.wants_metadata(NOW), "a program says so anew, or does not");
}

#[test]
fn a_slow_reader_loses_superseded_progress_and_nothing_else() {
    let mut session = live(ClientEvents::Interleaved);
    let mut kept = Vec::new();
    for round in 0..200_u32 {
        let tag = round.to_string();
        session.deliver(executing(1, &tag), NOW);
        kept.push(executing(1, &tag).frame);
        for step in 0..10 {
            session.deliver(sized(1, Meaning::ProgressState, &tag, 20_000), NOW);
            session.deliver(sized(1, Meaning::Progress, &tag, 100), NOW);
            session.deliver(preview(1, 1, step, 50_000), NOW);
        }
        for meaning in [Meaning::Output, Meaning::Other] {
            session.deliver(plain(1, meaning, &tag), NOW);
            kept.push(plain(1, meaning, &tag).frame);
        }
    }
    let of_nodes = 200 * 51_000;
    assert!(session.cost() < 2 * of_nodes + SOFT, "{} of 140 MB", session.cost());
    let got = drain(&mut session, NOW);
    let states = got.iter().filter(|frame| frame.bytes.windows(13).any(|w| w == b"ProgressState"));
    assert!(states.count() < 1000, "of 2000");
    let mut kept = kept.into_iter().peekable();
    for frame in &got {
        kept.next_if_eq(frame);
    }
    assert_eq!(kept.next(), None, "an event is missing or out of its place");
}

#[test]
fn results_sent_as_previews_are_all_kept_within_the_bound() {
    let mut session = live(ClientEvents::Serial);
    session.deliver(plain(1, Meaning::Start, "s"), NOW);
    session.deliver(executing(2, "save"), NOW);
    for n in 0..8 {
        session.deliver(preview(2, 1, n, 1 << 20), NOW);
        session.deliver(preview(2, 2, n, 1 << 20), NOW);
    }
    session.deliver(plain(1, Meaning::End, "e"), NOW);
    let got = drain(&mut session, NOW);
    let results: Vec<_> =
        got.iter().filter(|f| f.binary && f.bytes[7] == 2).map(|f| f.bytes[8]).collect();
    assert_eq!(results, (0..8).collect::<Vec<u8>>());
}

#[test]
fn previews_that_were_held_all_come_when_it_is_their_turn() {
    let mut session = live(ClientEvents::Serial);
    session.deliver(plain(1, Meaning::Start, "s"), NOW);
    session.deliver(executing(2, "save"), NOW);
    let previews: Vec<_> = (0..20).map(|n| preview(2, 1, n, 1 << 20)).collect();
    deliver_all(&mut session, &previews, NOW);
    session.deliver(plain(1, Meaning::End, "e"), NOW);
    let got = drain(&mut session, NOW);
    assert_eq!(got[3..], frames(&previews));
}

#[test]
fn held_previews_are_bounded_and_the_last_of_a_node_stays() {
    let mut session = live(ClientEvents::Serial);
    session.deliver(plain(1, Meaning::Start, "s"), NOW);
    session.deliver(executing(2, "save"), NOW);
    for n in 0..200 {
        session.deliver(preview(2, 2, n, 1 << 20), NOW);
    }
    assert!(session.cost() < PREVIEWS + PREVIEWS / 4 && !session.must_cut(NOW));
    session.deliver(plain(1, Meaning::End, "e"), NOW);
    let got = drain(&mut session, NOW);
    assert_eq!(got.last().map(|frame| frame.bytes[8]), Some(199));
}

#[test]
fn a_reader_that_stands_still_under_pressure_is_cut() {
    let mut session = live(ClientEvents::Interleaved);
    let big = |tag: &str| sized(1, Meaning::Output, tag, 1 << 20);
    while session.cost() <= PRESSURE {
        session.deliver(big("a"), NOW);
    }
    let late = NOW.plus(STANDSTILL);
    assert!(!session.must_cut(Moment(late.0 - 1)));
    assert!(session.must_cut(late));
    session.taken(late);
    assert!(!session.must_cut(late), "one that reads slowly goes on");
    assert_eq!(session.next(late.plus(STANDSTILL)), Next::Cut);
    drain(&mut session, late);
    assert!(!session.must_cut(late.plus(STANDSTILL)));
    for _ in 0..OVERFLOW >> 20 {
        session.deliver(big("b"), late);
    }
    assert!(session.must_cut(late), "at once when far too much waits");
    session.detached(true, late);
    assert!(session.cost() <= KEPT_BYTES);
}

#[test]
fn what_was_not_confirmed_comes_again_and_what_was_does_not() {
    let mut session = live(ClientEvents::Interleaved);
    deliver_all(&mut session, &whole(1), NOW);
    drain(&mut session, NOW);
    let number = session.to_confirm(NOW).unwrap();
    deliver_all(&mut session, &whole(2), NOW);
    drain(&mut session, NOW);
    session.confirmed(number);
    deliver_all(&mut session, &whole(3)[..2], NOW);
    session.detached(true, NOW);
    deliver_all(&mut session, &whole(3)[2..], NOW);
    session.attached(NOW, &attach(ClientEvents::Interleaved));
    // Where a job that has ended was is of no interest.
    let missed: Vec<_> = [whole(2), whole(3)].concat();
    let missed = missed.into_iter().filter(|d| d.meaning != Meaning::Executing);
    let missed = frames(&missed.collect::<Vec<_>>());
    assert_eq!(drain(&mut session, NOW), [vec![greeting(0, "A")], missed].concat());
}

#[test]
fn a_client_that_comes_back_is_told_where_its_running_job_is() {
    let mut session = live(ClientEvents::Serial);
    let state = |tag: &str| plain(1, Meaning::ProgressState, tag);
    let first = [plain(1, Meaning::Start, "s"), state("1"), executing(1, "1")];
    deliver_all(&mut session, &first, NOW);
    drain(&mut session, NOW);
    let number = session.to_confirm(NOW).unwrap();
    session.confirmed(number);
    session.detached(true, NOW);
    let then = [
        plain(1, Meaning::Output, "1"),
        state("2"),
        executing(1, "2"),
        state("3"),
        executing(1, "3"),
        preview(1, 2, 0, 9),
        preview(1, 1, 0, 9),
        state("4"),
        preview(1, 1, 1, 9),
        executing(1, "4"),
    ];
    deliver_all(&mut session, &then, NOW);
    session.attached(NOW, &attach(ClientEvents::Serial));
    let expected = [
        plain(1, Meaning::Output, "1"),
        executing(1, "3"),
        preview(1, 2, 0, 9),
        state("4"),
        preview(1, 1, 1, 9),
        executing(1, "4"),
    ];
    let greeted = vec![greeting(0, "A"), short_executing("4")];
    assert_eq!(drain(&mut session, NOW), [greeted, frames(&expected)].concat());
}

#[test]
fn a_client_that_missed_nothing_is_still_told_where_its_job_is() {
    let mut session = live(ClientEvents::Serial);
    deliver_all(&mut session, &[plain(1, Meaning::Start, "s"), executing(1, "1")], NOW);
    drain(&mut session, NOW);
    let number = session.to_confirm(NOW).unwrap();
    session.confirmed(number);
    session.detached(true, NOW);
    session.attached(NOW, &attach(ClientEvents::Serial));
    let expected = [greeting(0, "A"), short_executing("1"), executing(1, "1").frame];
    assert_eq!(drain(&mut session, NOW), expected);
}

#[test]
fn of_a_job_that_has_told_how_it_ended_no_progress_follows() {
    let mut session = live(ClientEvents::Serial);
    deliver_all(&mut session, &whole(1)[..3], NOW);
    session.deliver(plain(1, Meaning::ProgressState, "p"), NOW);
    session.deliver(plain(1, Meaning::Terminal, "t"), NOW);
    session.detached(true, NOW);
    session.attached(NOW, &attach(ClientEvents::Serial));
    let expected = [whole(1)[..2].to_vec(), vec![whole(1)[4].clone()]].concat();
    assert_eq!(drain(&mut session, NOW)[1..], frames(&expected));
    session.deliver(plain(1, Meaning::End, "e"), NOW);
    assert_eq!(drain(&mut session, NOW), frames(&whole(1)[5..]));
}

#[test]
fn a_program_with_flags_that_comes_back_gets_its_jobs_one_after_another_before_it_repeats_them() {
    let mut session = live(ClientEvents::Auto);
    session.heard(First::Flags { metadata: false }, || features(&true.into()));
    deliver_all(&mut session, &whole(1)[..3], NOW);
    deliver_all(&mut session, &whole(2)[..3], NOW);
    drain(&mut session, NOW);
    session.detached(true, NOW);
    session.attached(NOW, &attach(ClientEvents::Auto));
    session.deliver(whole(2)[3].clone(), NOW);
    drain(&mut session, NOW);
    session.heard(First::Flags { metadata: false }, || features(&true.into()));
    drain(&mut session, NOW);
    deliver_all(&mut session, &whole(1)[3..], NOW);
    assert_eq!(drain(&mut session, NOW), frames(&[&whole(1)[3..], &whole(2)[..4]].concat()));
}

#[test]
fn one_that_does_not_repeat_its_flags_in_time_gets_its_jobs_as_they_come() {
    let mut session = live(ClientEvents::Auto);
    session.heard(First::Flags { metadata: false }, || features(&true.into()));
    session.detached(true, NOW);
    session.attached(NOW, &attach(ClientEvents::Auto));
    drain(&mut session, NOW);
    deliver_all(&mut session, &[whole(1)[0].clone(), whole(2)[0].clone()], NOW);
    assert_eq!(drain(&mut session, NOW).len(), 1);
    let later = NOW.plus(FLAGS_GRACE);
    session.deliver(whole(1)[1].clone(), later);
    assert_eq!(drain(&mut session, later).len(), 2);
}

#[test]
fn after_its_time_or_a_close_nothing_is_kept() {
    for abnormal in [true, false] {
        let mut session = live(ClientEvents::Serial);
        deliver_all(&mut session, &whole(1), NOW);
        session.detached(abnormal, NOW);
        deliver_all(&mut session, &whole(2), NOW);
        let back = if abnormal { NOW.plus(KEPT_FOR) } else { NOW };
        session.attached(back, &attach(ClientEvents::Serial));
        assert_eq!(drain(&mut session, back), [greeting(0, "A")]);
    }
}

#[test]
fn a_session_that_is_kept_is_bounded_and_its_oldest_ended_jobs_go_first() {
    let mut session = live(ClientEvents::Serial);
    session.detached(true, NOW);
    let job = |job: u64| {
        [
            sized(job, Meaning::Output, "o", 1 << 20),
            plain(job, Meaning::Terminal, "t"),
            plain(job, Meaning::End, "e"),
        ]
    };
    session.deliver(plain(0, Meaning::Start, "still running"), NOW);
    session.job_withdrawn(JobId(0), NOW);
    for n in 1..100 {
        deliver_all(&mut session, &job(n), NOW);
        assert!(session.cost() <= KEPT_BYTES);
    }
    session.attached(NOW, &attach(ClientEvents::Serial));
    let got = drain(&mut session, NOW);
    assert_eq!(got[1], plain(0, Meaning::Start, "still running").frame);
    let whole = (got.len() - 2) / 3;
    assert!(whole >= 20);
    let last: Vec<_> = (100 - whole as u64..100).flat_map(job).collect();
    assert_eq!(got[2..], frames(&last));
}

#[test]
fn other_messages_pass_to_a_socket_and_are_not_kept() {
    let mut session = live(ClientEvents::Serial);
    session.pass(text("logs"), NOW);
    assert_eq!(drain(&mut session, NOW), [text("logs")]);
    session.pass(text("lost"), NOW);
    session.detached(true, NOW);
    session.pass(text("lost"), NOW);
    session.attached(NOW, &attach(ClientEvents::Serial));
    assert_eq!(drain(&mut session, NOW), [greeting(0, "A")]);
}

#[test]
fn what_is_overheard_never_mixes_with_a_job_that_is_shown() {
    let mut session = live(ClientEvents::Serial);
    session.overhear(preview(9, 1, 0, 9), NOW);
    assert_eq!(drain(&mut session, NOW).len(), 1);
    session.deliver(executing(1, "1"), NOW);
    drain(&mut session, NOW);
    session.overhear(preview(9, 2, 0, 9), NOW);
    session.overhear(plain(9, Meaning::Progress, "p"), NOW);
    assert!(drain(&mut session, NOW).is_empty());
    session.overhear(plain(9, Meaning::Other, "o"), NOW);
    assert_eq!(drain(&mut session, NOW).len(), 1);
}
