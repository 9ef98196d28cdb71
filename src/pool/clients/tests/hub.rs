//! Who gets what, among many.

use tokio::time::advance;

use super::*;
use crate::pool::clients::hub::{AWAY, Hub};
use crate::pool::clients::seat::{Seat, Turn};
use crate::pool::clients::session::KEPT_FOR;
use crate::pool::clients::socket::ClientInfo;
use crate::pool::clients::status::Reader;
use crate::pool::clients::words::greeting;

fn hub() -> Arc<Hub> {
    Hub::new(ClientEvents::Auto, || serde_json::json!({"supports_preview_metadata": true}))
}

fn client(host: u8) -> ClientInfo {
    let caller = "somebody".into();
    ClientInfo { sid: None, key: key(host), caller, has_origin: false, max_inbound: 4 << 20 }
}

fn open(hub: &Arc<Hub>, sid: &str, host: u8) -> (Seat, Reader) {
    let (seat, reader) = hub.attach(&sid.into(), &client(host));
    assert!(matches!(seat.turn(), Turn::Frame(_)), "its greeting");
    (seat, reader)
}

fn taken(seat: &Seat) -> Vec<Frame> {
    std::iter::from_fn(|| match seat.turn() {
        Turn::Frame(frame) => Some(frame),
        _ => None,
    })
    .collect()
}

fn for_client(client_id: Option<&str>, host: u8, delivery: Delivery) -> Delivery {
    Delivery { owner: Owner { key: key(host), ..owner(client_id) }, ..delivery }
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_to_its_client_id_and_to_nobody_else() {
    let hub = hub();
    let (a, _) = open(&hub, "A", 1);
    let (b, _) = open(&hub, "B", 1);
    hub.deliver(for_client(Some("A"), 7, plain(1, Meaning::Start, "s")));
    assert_eq!(taken(&a).len(), 1, "whoever opened it");
    assert!(taken(&b).is_empty());
    hub.pass("B", text("logs"));
    assert_eq!(taken(&b), [text("logs")]);
    assert!(hub.is_live("A") && !hub.is_live("C"));
    assert_eq!(hub.live(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_job_without_client_id_is_overheard_by_its_caller_as_far_as_comfyui_broadcasts_it() {
    let hub = hub();
    let seats = [open(&hub, "A", 1).0, open(&hub, "B", 1).0, open(&hub, "C", 2).0];
    for meaning in [Meaning::Start, Meaning::Progress, Meaning::Output, Meaning::End] {
        hub.deliver(for_client(None, 1, plain(1, meaning, "x")));
    }
    let heard = seats.each_ref().map(taken);
    let progress = vec![plain(1, Meaning::Progress, "x").frame];
    assert_eq!(heard, [progress.clone(), progress, vec![]]);
}

#[tokio::test(start_paused = true)]
async fn a_newer_socket_replaces_the_older_whose_end_changes_nothing() {
    let hub = hub();
    let (mut old, _) = open(&hub, "A", 1);
    let (new, _) = open(&hub, "A", 2);
    hub.deliver(plain(1, Meaning::Start, "s"));
    assert!(matches!(old.turn(), Turn::Replaced));
    assert_eq!(taken(&new).len(), 1);
    hub.deliver(for_client(None, 1, plain(2, Meaning::Progress, "of the old one's caller")));
    assert!(taken(&new).is_empty());
    old.leave(false);
    assert!(hub.is_live("A"));
    hub.deliver(plain(1, Meaning::Output, "o"));
    assert_eq!(taken(&new).len(), 1);
    hub.deliver(for_client(None, 2, plain(3, Meaning::Progress, "of its own")));
    assert_eq!(taken(&new).len(), 1);
    drop(new);
    assert_eq!(hub.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn flags_are_those_of_the_socket() {
    let hub = hub();
    assert!(!hub.flags("A"));
    let (mut a, _) = open(&hub, "A", 1);
    assert!(!a.hear("no json"));
    let flags = r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#;
    assert!(a.hear(flags));
    assert!(hub.flags("A"));
    let answer = r#"{"type": "feature_flags", "data": {"supports_preview_metadata":true}}"#;
    assert_eq!(taken(&a), [text(answer)]);
    a.leave(false);
    assert!(hub.flags("A"));
    advance(KEPT_FOR).await;
    assert!(!hub.flags("A"));
}

#[tokio::test(start_paused = true)]
async fn nothing_stays_of_clients_that_never_connect_or_are_gone() {
    let hub = hub();
    for job in 0..100 {
        let sid = format!("api-{job}");
        hub.deliver(for_client(Some(&sid), 1, plain(job, Meaning::Start, "s")));
        hub.deliver(for_client(Some(&sid), 1, plain(job, Meaning::End, "e")));
        open(&hub, &sid, 1).0.leave(false);
    }
    hub.deliver(for_client(Some(""), 1, plain(1, Meaning::Start, "s")));
    hub.deliver(for_client(Some(&"x".repeat(300)), 1, plain(1, Meaning::Start, "s")));
    assert_eq!(format!("{hub:?}"), "Hub { sessions: 0, .. }");
}

#[tokio::test(start_paused = true)]
async fn kept_sessions_go_after_their_time_and_running_prompts_are_followed_on() {
    let hub = hub();
    for sid in ["A", "B"] {
        drop(open(&hub, sid, 1));
    }
    hub.deliver(executing(1, "3"));
    advance(KEPT_FOR / 2).await;
    hub.deliver(executing(1, "4"));
    hub.sweep();
    assert_eq!(format!("{hub:?}"), "Hub { sessions: 2, .. }");
    advance(KEPT_FOR).await;
    hub.sweep();
    assert_eq!(format!("{hub:?}"), "Hub { sessions: 1, .. }");
    let (a, _) = hub.attach(&"A".into(), &client(1));
    let short = text(r#"{"type": "executing", "data": {"node": "4"}}"#);
    assert_eq!(taken(&a), [greeting(0, "A"), short]);
}

#[tokio::test(start_paused = true)]
async fn sessions_without_a_socket_are_bounded_in_number_and_bytes() {
    let hub = hub();
    for n in 0..AWAY + 10 {
        drop(open(&hub, &n.to_string(), 1));
    }
    assert_eq!(format!("{hub:?}"), format!("Hub {{ sessions: {AWAY}, .. }}"));
    // All share these bytes, so that only the account is big.
    let big = sized(1, Meaning::Output, "o", 20 << 20);
    for n in AWAY - 20..AWAY + 10 {
        hub.deliver(for_client(Some(&n.to_string()), 1, big.clone()));
    }
    let got = |sid: usize| taken(&hub.attach(&sid.to_string().as_str().into(), &client(1)).0).len();
    assert_eq!([AWAY - 20, AWAY - 10, AWAY, AWAY + 9].map(got), [1, 1, 2, 2], "the oldest went");
    assert!(format!("{hub:?}").contains("sessions: 99"), "and not the many small ones: {hub:?}");
}

#[tokio::test(start_paused = true)]
async fn nine_thousand_sockets_share_each_status() {
    let hub = hub();
    let mut seats: Vec<_> = (0..9000).map(|n| open(&hub, &n.to_string(), 1)).collect();
    for n in 0..10_000 {
        hub.status(n);
    }
    let cost: usize =
        seats.iter().filter_map(|(seat, _)| seat.session(|session| session.cost())).sum();
    assert_eq!(cost, 0, "nothing waits at any socket");
    for (seat, statuses) in &mut seats {
        let now = hub.now();
        let frame = statuses.next(now).unwrap();
        assert_eq!(frame, crate::pool::clients::words::status(9999));
        assert_eq!(statuses.next(now), None);
        assert!(taken(seat).is_empty());
    }
}
