//! How to drive a scenario, read off its recording: who listens under which id and with which
//! flags, and what happens after the posts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::normalise::is_made_sid;
use super::recording::{Frame, RECONNECTED, Scenario};

/// One socket to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seat {
    /// The recording's name for it.
    pub(super) label: String,
    /// The `clientId`; the server makes one without.
    pub(super) client: Option<String>,
    /// Whether it announces `supports_preview_metadata`.
    pub(super) flags: bool,
    /// When it leaves by itself.
    pub(super) until: Until,
}

/// When a listener leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// When the scenario is over.
    Told,
    /// After its first binary message.
    FirstPreview,
    /// After this many messages.
    Count(usize),
}

/// What happens after the posts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing but waiting for the end.
    Wait,
    /// The queue is listed.
    ListQueue,
    /// The last prompt is deleted while it is pending, the queue listed before and after.
    DeletePending,
    /// The running prompt is interrupted after two previews.
    Interrupt,
    /// The owner leaves after one preview and comes back under its id.
    Reconnect(usize),
}

impl Action {
    pub(super) fn of(scenario: &Scenario) -> Self {
        let extra = |key: &str| scenario.extra.get(key);
        if let Some(frames) = extra("reconnected_frames").and_then(Value::as_array) {
            return Self::Reconnect(frames.len());
        }
        match () {
            () if extra("interrupt").is_some() => Self::Interrupt,
            () if extra("delete").is_some() => Self::DeletePending,
            () if extra("queue_running").is_some() => Self::ListQueue,
            () => Self::Wait,
        }
    }
}

impl Seat {
    /// The recorded listeners, by name.
    pub(super) fn all(scenario: &Scenario) -> Vec<Self> {
        let leaves = matches!(Action::of(scenario), Action::Reconnect(_));
        let until = if leaves { Until::FirstPreview } else { Until::Told };
        scenario.frames.iter().map(|(label, frames)| Self::new(label, frames, until)).collect()
    }

    fn new(label: &str, frames: &[Frame], until: Until) -> Self {
        let sid = frames.first().and_then(|frame| frame.data()?.get("sid")?.as_str());
        let client = sid.filter(|sid| !is_made_sid(sid)).map(str::to_owned);
        let flags = frames.iter().any(|frame| frame.kind() == Some("feature_flags"));
        Self { label: label.to_owned(), client, flags, until }
    }

    /// Somebody who owns nothing and must hear nothing but `status`. None where a prompt has no
    /// owner: that one is for everybody.
    pub(super) fn stranger(scenario: &Scenario) -> Option<Self> {
        let owned = scenario.posts.iter().all(|post| post.request.get("client_id").is_some());
        owned.then(|| Self {
            label: "stranger".to_owned(),
            client: Some("S".to_owned()),
            flags: false,
            until: Until::Told,
        })
    }

    /// The first listener once more, for `count` messages.
    pub(super) fn again(&self, count: usize) -> Self {
        Self { label: RECONNECTED.to_owned(), until: Until::Count(count), ..self.clone() }
    }
}

/// Whether what was heard is all that the recording lets expect. How many steps pass before an
/// interrupt is a race, so there only the end counts.
pub(super) fn is_over(scenario: &Scenario, heard: &BTreeMap<String, Vec<Frame>>) -> bool {
    let open_end = Action::of(scenario) == Action::Interrupt;
    scenario.frames.iter().all(|(label, recorded)| {
        let own = heard.get(label).map_or(&[][..], Vec::as_slice);
        let count =
            |frames: &[Frame], is: fn(&Frame) -> bool| frames.iter().filter(|f| is(f)).count();
        let reached = |is: fn(&Frame) -> bool| count(own, is) >= count(recorded, is);
        let status: fn(&Frame) -> bool = |frame| frame.kind() == Some("status");
        reached(Frame::is_end) && reached(status) && (open_end || own.len() >= recorded.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::recording::scenarios;

    #[test]
    fn the_recordings_tell_who_listens_and_what_is_done() {
        let all = scenarios().unwrap();
        let actions: Vec<Action> = all.iter().map(Action::of).collect();
        assert_eq!(
            actions[6..],
            [Action::Interrupt, Action::DeletePending, Action::ListQueue, Action::Reconnect(12)]
        );
        assert!(actions[..6].iter().all(|action| *action == Action::Wait));
        let anonymous = &Seat::all(&all[2])[0];
        assert_eq!((anonymous.label.as_str(), &anonymous.client), ("anonymous", &None));
        assert!(Seat::all(&all[1]).iter().all(|seat| seat.flags));
        assert!(Seat::stranger(&all[2]).is_none() && Seat::stranger(&all[0]).is_some());
    }

    #[test]
    fn a_recording_is_over_only_with_its_last_frame() {
        for scenario in scenarios().unwrap() {
            assert!(is_over(&scenario, &scenario.frames));
            let mut short = scenario.frames.clone();
            let label = short.keys().next().unwrap().clone();
            short.get_mut(&label).unwrap().pop();
            assert!(!is_over(&scenario, &short), "{}", scenario.scenario);
        }
    }
}
