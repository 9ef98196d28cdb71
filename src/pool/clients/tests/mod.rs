//! The module's tests, and what they share.

mod hub;
mod replay;
mod serial;
mod session;
mod socket;

use std::sync::Arc;

use bytes::Bytes;

use super::session::{Attach, Next, Session};
use crate::clock::Moment;
use crate::config::ClientEvents;
use crate::identity::ClientKey;
use crate::pool::frame::{Delivery, Frame, Meaning};
use crate::pool::job::{JobId, Owner};

fn key(host: u8) -> ClientKey {
    ClientKey::of_address([10, 0, 0, host].into())
}

fn owner(client_id: Option<&str>) -> Owner {
    Owner { key: key(1), caller: "10.0.0.1".into(), client_id: client_id.map(Arc::from) }
}

fn text(line: impl Into<String>) -> Frame {
    Frame { binary: false, bytes: Bytes::from(line.into()) }
}

/// A frame of job `job` for the client "A", told apart by `tag`, `size` bytes more than that.
fn sized(job: u64, meaning: Meaning, tag: &str, size: usize) -> Delivery {
    let frame = text(format!("{job} {meaning:?} {tag} {}", "x".repeat(size)));
    delivery(job, meaning, frame)
}

fn delivery(job: u64, meaning: Meaning, frame: Frame) -> Delivery {
    Delivery {
        owner: owner(Some("A")),
        job: JobId(job),
        prompt_id: format!("prompt-{job}").into(),
        meaning,
        frame,
    }
}

fn plain(job: u64, meaning: Meaning, tag: &str) -> Delivery {
    sized(job, meaning, tag, 0)
}

/// An `executing` as `ComfyUI` sends it.
fn executing(job: u64, node: &str) -> Delivery {
    let line = format!(
        r#"{{"type": "executing", "data": {{"node": "{node}:1", "display_node": "{node}", "prompt_id": "prompt-{job}"}}}}"#
    );
    delivery(job, Meaning::Executing, text(line))
}

/// A preview of type 1; format 1 is JPEG, 2 is PNG.
fn preview(job: u64, format: u8, tag: u8, size: usize) -> Delivery {
    let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, format, tag];
    bytes.resize(9 + size, 0);
    delivery(job, Meaning::Preview, Frame { binary: true, bytes: bytes.into() })
}

fn attach(events: ClientEvents) -> Attach<'static> {
    Attach { sid: "A", queue_remaining: 0, events, has_origin: false }
}

/// A session whose socket has read its greeting.
fn live(events: ClientEvents) -> Session {
    let mut session = Session::default();
    session.attached(Moment(1000), &attach(events));
    assert_eq!(drain(&mut session, Moment(1000)).len(), 1);
    session
}

/// All that a socket would write now.
fn drain(session: &mut Session, now: Moment) -> Vec<Frame> {
    std::iter::from_fn(|| match session.next(now) {
        Next::Frame(frame) => Some(frame),
        Next::Wait | Next::Cut => None,
    })
    .collect()
}

fn frames(deliveries: &[Delivery]) -> Vec<Frame> {
    deliveries.iter().map(|delivery| delivery.frame.clone()).collect()
}
