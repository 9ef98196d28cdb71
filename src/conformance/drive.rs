//! Drives one scenario against a server and returns its transcript. Every step waits for what it
//! depends on (a frame, a reply), never for a time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use serde_json::{Value, json};

use super::observe::{Bell, Listener};
use super::recording::{Frame, Post, RECONNECTED, Scenario, Transcript};
use super::script::{Action, Seat, is_over};
use super::target::Target;

/// Between two posts: job listings sort by a creation time that counts milliseconds.
const TICK: Duration = Duration::from_millis(2);
/// Silence after which nothing more is expected, once every prompt is in the history.
const QUIET: Duration = Duration::from_millis(400);
/// How long to listen on after the last expected frame, for frames that should not come.
const AFTERMATH: Duration = Duration::from_millis(50);

/// How often a scenario is begun at most.
const ATTEMPTS: u64 = 3;

/// Runs a scenario. What is recorded to happen while a prompt runs may come too late on a slow
/// machine or link; then it is no run of the scenario, and it is begun again.
pub(super) async fn run(target: &Target, recorded: &Scenario) -> anyhow::Result<Transcript> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        target.wait_idle().await?;
        let mut drive = Drive::open(target, recorded, attempt).await?;
        drive.post().await?;
        drive.act().await?;
        if attempt == ATTEMPTS || !drive.was_late() {
            return drive.finish().await;
        }
        drive.leave().await;
    }
}

struct Drive<'a> {
    target: &'a Target,
    recorded: &'a Scenario,
    bell: Bell,
    deadline: Instant,
    attempt: u64,
    listeners: Vec<Listener>,
    posts: Vec<Post>,
    extra: Value,
    incomplete: Option<String>,
    /// The prompt that will never run.
    deleted: Option<String>,
}

impl<'a> Drive<'a> {
    /// Opens the sockets and waits until each was greeted.
    async fn open(
        target: &'a Target,
        recorded: &'a Scenario,
        attempt: u64,
    ) -> anyhow::Result<Self> {
        let bell = Bell::new();
        let deadline = Instant::now() + target.timeout();
        let mut drive = Self {
            target,
            recorded,
            bell,
            deadline,
            attempt,
            listeners: Vec::new(),
            posts: Vec::new(),
            extra: Value::Null,
            incomplete: None,
            deleted: None,
        };
        for seat in Seat::all(recorded).into_iter().chain(Seat::stranger(recorded)) {
            drive.open_one(&seat).await?;
        }
        Ok(drive)
    }

    async fn open_one(&mut self, seat: &Seat) -> anyhow::Result<()> {
        let listener = Listener::open(self.target, seat, &self.bell).await?;
        let kind = if seat.flags { "feature_flags" } else { "status" };
        let greeted = || listener.count(|frame| frame.kind() == Some(kind)) > 0;
        let patience = self.deadline.min(Instant::now() + GREETING);
        if !self.bell.wait(patience, || greeted() || listener.is_lost()).await || !greeted() {
            self.fault(format!("{} got no {kind} after connecting", seat.label));
        }
        self.listeners.push(listener);
        Ok(())
    }

    fn fault(&mut self, what: String) {
        self.incomplete.get_or_insert(what);
    }

    /// Posts the prompts. The first one must have begun before the next: otherwise it is a race
    /// how many of them `status` counts and the queue lists as pending.
    async fn post(&mut self) -> anyhow::Result<()> {
        let recorded = self.recorded;
        for (index, post) in recorded.posts.iter().enumerate() {
            if index == 1 {
                self.wait_begun().await;
            }
            if index > 0 {
                tokio::time::sleep(TICK).await;
            }
            self.post_one(&post.request).await?;
        }
        Ok(())
    }

    async fn post_one(&mut self, recorded: &Value) -> anyhow::Result<()> {
        let mut request = self.target.own_prompt(recorded, self.attempt);
        if let Some(id) = request.get_mut("prompt_id") {
            *id = uuid::Uuid::new_v4().to_string().into();
        }
        let t_ms = self.bell.milliseconds();
        let answer = self.target.post_json("/prompt", &request).await.context("POST /prompt")?;
        let body = self.target.json(&answer).context("the reply of POST /prompt")?;
        self.posts.push(Post { t_ms, request, status: answer.status, body });
        Ok(())
    }

    async fn wait_begun(&mut self) {
        let begun = |frame: &Frame| frame.kind() == Some("executing");
        let listeners = &self.listeners;
        let is = || listeners.iter().any(|listener| listener.count(begun) > 0);
        let patience = self.deadline.min(Instant::now() + GREETING);
        if !self.bell.wait(patience, is).await {
            self.fault("the first prompt did not begin".to_owned());
        }
    }

    async fn act(&mut self) -> anyhow::Result<()> {
        match Action::of(self.recorded) {
            Action::Wait => Ok(()),
            Action::ListQueue => self.list_queue().await,
            Action::DeletePending => self.delete_pending().await,
            Action::Interrupt => self.interrupt().await,
            Action::Reconnect(count) => self.reconnect(count).await,
        }
    }

    async fn list_queue(&mut self) -> anyhow::Result<()> {
        self.extra = self.target.get_json("/queue").await?;
        Ok(())
    }

    async fn delete_pending(&mut self) -> anyhow::Result<()> {
        let id = self.posts.last().and_then(prompt_id).context("no prompt to delete")?;
        let before = self.target.get_json("/queue").await?;
        let answer = self.target.post_json("/queue", &json!({"delete": [id]})).await?;
        let after = self.target.get_json("/queue").await?;
        self.extra = json!({"queue_before": before, "delete": answer.status, "queue_after": after});
        // A farm may have had a server free for it: then it runs, and the delete does nothing.
        let item = |item: &Value| item.get(1).and_then(Value::as_str) == Some(&id);
        let runs = self.extra["queue_before"]["queue_running"].as_array();
        if !(self.target.farm() > 1 && runs.into_iter().flatten().any(item)) {
            self.deleted = Some(id);
        }
        Ok(())
    }

    async fn interrupt(&mut self) -> anyhow::Result<()> {
        self.wait_previews(2).await;
        if self.attempt < ATTEMPTS && self.listeners.iter().any(|l| l.count(Frame::is_end) > 0) {
            return Ok(());
        }
        let id = self.posts.first().and_then(prompt_id).context("no prompt to interrupt")?;
        let answer = self.target.post_json("/interrupt", &json!({"prompt_id": id})).await?;
        self.extra = json!({"interrupt": answer.status});
        Ok(())
    }

    async fn wait_previews(&mut self, count: usize) {
        let listeners = &self.listeners;
        let preview = |frame: &Frame| frame.binary_base64.is_some();
        let is =
            || listeners.iter().any(|l| l.count(preview) >= count || l.count(Frame::is_end) > 0);
        if !self.bell.wait(self.deadline, is).await {
            self.fault(format!("there were no {count} previews"));
        }
    }

    async fn reconnect(&mut self, count: usize) -> anyhow::Result<()> {
        self.wait_previews(1).await;
        let seats = Seat::all(self.recorded);
        let seat = seats.first().context("nobody to reconnect")?;
        if let Some(first) = self.listeners.iter_mut().find(|l| l.label() == seat.label) {
            first.left().await;
        }
        self.open_one(&seat.again(count)).await?;
        let listeners = &self.listeners;
        let enough = |l: &Listener| l.count(|_| true) >= count || l.count(tells_idle) > 0;
        let again = listeners.iter().filter(|l| l.label() == RECONNECTED);
        let heard = || again.clone().all(enough);
        let patience = self.deadline.min(Instant::now() + self.target.timeout() / 2);
        self.bell.wait(patience, heard).await;
        Ok(())
    }

    /// Whether the prompt had ended before all that should happen while it runs.
    fn was_late(&self) -> bool {
        let heard = |is: fn(&Frame) -> bool| self.listeners.iter().any(|l| l.count(is) > 0);
        match Action::of(self.recorded) {
            Action::Wait if self.posts.len() < 2 => false,
            Action::Wait | Action::ListQueue | Action::DeletePending => heard(Frame::is_end),
            Action::Interrupt => self.extra.is_null(),
            Action::Reconnect(_) => {
                self.listeners.iter().any(|l| l.label() == RECONNECTED && l.count(tells_idle) > 0)
            }
        }
    }

    async fn leave(self) {
        for listener in self.listeners {
            listener.close().await;
        }
    }

    /// Waits for the end, fetches the history, closes the sockets.
    async fn finish(mut self) -> anyhow::Result<Transcript> {
        self.wait_over().await?;
        tokio::time::sleep(AFTERMATH).await;
        let history = self.history().await?;
        let mut frames = BTreeMap::new();
        let lost: Vec<String> =
            self.listeners.iter().filter(|l| l.is_lost()).map(|l| l.label().to_owned()).collect();
        for label in lost {
            self.fault(format!("the server ended the socket of {label}"));
        }
        for listener in self.listeners.drain(..) {
            let label = listener.label().to_owned();
            frames.insert(label, listener.close().await);
        }
        if let Some(heard) = frames.remove(RECONNECTED) {
            self.extra = json!({"reconnected_frames": heard});
        }
        Ok(Transcript {
            scenario: self.recorded.scenario.clone(),
            posts: self.posts,
            extra: self.extra,
            frames,
            history,
            incomplete: self.incomplete,
            farm: self.target.farm(),
        })
    }

    /// Until all that was recorded was heard, or the work is done and no more comes.
    async fn wait_over(&mut self) -> anyhow::Result<()> {
        let mut heard_before = usize::MAX;
        loop {
            let pause = self.deadline.min(Instant::now() + QUIET);
            let (recorded, listeners) = (self.recorded, &self.listeners);
            if self.bell.wait(pause, || is_over(recorded, &heard(listeners))).await {
                break;
            }
            let now: usize = listeners.iter().map(|listener| listener.count(|_| true)).sum();
            if now == heard_before && self.is_done().await? {
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                self.fault(format!("no end after {:?}", self.target.timeout()));
                return Ok(());
            }
            heard_before = now;
        }
        // A listener that left early hears no end; then the history tells.
        while !self.is_done().await? {
            if Instant::now() >= self.deadline {
                self.fault("a prompt did not reach the history".to_owned());
                break;
            }
            tokio::time::sleep(AFTERMATH).await;
        }
        Ok(())
    }

    /// Whether every accepted prompt that was not deleted is in the history.
    async fn is_done(&self) -> anyhow::Result<bool> {
        let history = self.history().await?;
        let mut entries = history.iter();
        Ok(entries.all(|(id, entry)| entry.get(id).is_some() || self.deleted.as_ref() == Some(id)))
    }

    async fn history(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut entries = BTreeMap::new();
        for id in self.posts.iter().filter_map(prompt_id) {
            let path = format!("/history/{}", urlencode(&id));
            entries.insert(id, self.target.get_json(&path).await?);
        }
        Ok(entries)
    }
}

/// How long a greeting, or the beginning of a prompt on an idle server, may take.
const GREETING: Duration = Duration::from_secs(5);

fn heard(listeners: &[Listener]) -> BTreeMap<String, Vec<Frame>> {
    listeners.iter().map(|listener| (listener.label().to_owned(), listener.frames())).collect()
}

/// A `status` that says that nothing runs and nothing waits.
fn tells_idle(frame: &Frame) -> bool {
    let remaining = frame.data().and_then(|d| d.pointer("/status/exec_info/queue_remaining"));
    remaining.and_then(Value::as_u64) == Some(0)
}

fn prompt_id(post: &Post) -> Option<String> {
    post.body.get("prompt_id")?.as_str().map(str::to_owned)
}

/// UUIDs stay as they are.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-');

/// An id as one path segment.
fn urlencode(id: &str) -> String {
    percent_encoding::utf8_percent_encode(id, SEGMENT).to_string()
}
