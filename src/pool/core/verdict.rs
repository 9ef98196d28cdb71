//! A server's word on a POST: the first one, which decides whether a job is accepted, and those on
//! jobs that were accepted before.

use std::sync::Arc;

use bytes::Bytes;

use super::entry::{Avoid, Life};
use super::timers::Timer;
use super::{Action, Attempt, Core, Outcome, Refusal, Verdict};
use crate::backend::BackendId;
use crate::pool::job::{Job, JobId};
use crate::pool::line::LaneSet;

/// Bytes of a server's words that an error keeps.
const MAX_WORDS: usize = 2000;

impl Core {
    /// A POST was answered or failed.
    pub(super) fn judged(&mut self, id: JobId, token: Attempt, verdict: Verdict) {
        let place = self.entries.get_mut(&id).and_then(|entry| entry.place.as_mut());
        let Some(place) = place.filter(|place| place.token == token && place.verdict_out) else {
            return self.stray_judged(id, token, &verdict);
        };
        place.verdict_out = false;
        place.news = self.now;
        let (lane, life) = (place.lane, place.life);
        let took = self.now.since(place.posted).as_secs_f64() * 1000.0;
        self.seats.answered(lane);
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.learn_verdict(took);
        }
        match verdict {
            Verdict::Accepted(body) => self.heard_accepted(id, lane, body),
            Verdict::Unknown => self.heard_nothing(id),
            // It ran, whatever was answered.
            _ if life != Life::Sent => self.heard_nothing(id),
            Verdict::Refused { status, content_type, body } => {
                let refusal = Refusal::Server { backend: lane, status, content_type, body };
                self.heard_refused(id, refusal);
            }
            Verdict::NotSent => self.heard_unsent(id),
        }
    }

    fn heard_accepted(&mut self, id: JobId, backend: BackendId, body: Bytes) {
        let Some(entry) = self.entries.get(&id) else { return };
        if !entry.accepted {
            return self.accept(id, backend, body);
        }
        let Some(place) = &entry.place else { return };
        let unsure = place.doubtful.is_some() || place.life == Life::Ending;
        if unsure || !self.lanes.is_reachable(place.lane) {
            self.ask_or_doubt(id, place.lane);
        } else {
            self.pursue_cancel(id);
        }
    }

    /// The connection broke off: it may be there.
    fn heard_nothing(&mut self, id: JobId) {
        if let Some(place) = self.entries.get_mut(&id).and_then(|entry| entry.place.as_mut()) {
            place.ambiguous = true;
        }
        self.doubt(id);
    }

    fn heard_refused(&mut self, id: JobId, refusal: Refusal) {
        let Some(place) = self.unplace(id) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if !entry.accepted {
            return self.refuse(id, refusal);
        }
        entry.strikes += 1;
        entry.avoid(place.lane, Avoid::Refused);
        let words = words(&refusal);
        entry.trouble().words = Some(words.clone());
        let (cancelled, strikes) = (entry.cancelled, entry.strikes);
        if cancelled {
            self.end(id, Outcome::Cancelled, None);
        } else if strikes > self.options.max_retries || self.is_refused_everywhere(id) {
            self.end(id, Outcome::Failed { error: words }, None);
        } else {
            self.go_again(id);
        }
    }

    fn is_refused_everywhere(&self, id: JobId) -> bool {
        let Some(entry) = self.entries.get(&id) else { return true };
        let avoid = entry.trouble.iter().flat_map(|trouble| &trouble.avoid);
        let refused = avoid.filter(|(_, why)| *why == Avoid::Refused);
        let refused: LaneSet = refused.filter_map(|(lane, _)| self.lanes.slot(*lane)).collect();
        self.lanes.able(entry).without(&refused).is_empty()
    }

    /// Nothing left for the backend: the attempt does not count.
    fn heard_unsent(&mut self, id: JobId) {
        let Some(place) = self.unplace(id) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if !place.vetting {
            entry.attempt = entry.attempt.saturating_sub(1);
        }
        if !entry.accepted {
            entry.avoid(place.lane, Avoid::Refused);
            return self.judge(id);
        }
        entry.avoid(place.lane, Avoid::Until(self.now.plus(self.options.retry_interval)));
        if entry.cancelled {
            return self.end(id, Outcome::Cancelled, None);
        }
        self.wake(self.options.retry_interval, Timer::Retry(id));
        self.go_again(id);
    }

    /// A server takes the job: it is accepted, and stays there or goes back into the line.
    pub(super) fn accept(&mut self, id: JobId, backend: BackendId, reply: Bytes) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        (entry.accepted, entry.reply) = (true, reply.clone());
        let job = Arc::clone(&entry.job);
        if let Some(trouble) = &mut entry.trouble {
            trouble.avoid.clear();
        }
        self.open += 1;
        self.by_owner.entry(job.owner.key).or_default().insert(id);
        self.note_proof(id);
        self.out.push(Action::Accept { job, backend, reply });
        self.settle_in(id);
    }

    /// A server that seemed unable took the job: it can, then.
    fn note_proof(&mut self, id: JobId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(lane) = entry.place.as_ref().map(|place| place.lane) else { return };
        let state = self.lanes.get(lane);
        if state.is_some_and(|state| !super::able::has(&state.lane, &entry.job.needs)) {
            entry.trouble().proven = Some(lane);
        }
    }

    /// After acceptance: it stays where it is when its lane has become free, or it has started.
    fn settle_in(&mut self, id: JobId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let Some(place) = &entry.place else { return };
        let (lane, vetting, life) = (place.lane, place.vetting, place.life);
        let free = self.lanes.get(place.lane).is_some_and(|lane| self.is_free(lane));
        let stays = free && !entry.cancelled;
        if vetting && stays {
            self.stay(id);
        }
        self.tell(id);
        if life == Life::Ending || !self.lanes.is_reachable(lane) {
            self.ask_or_doubt(id, lane);
        } else if vetting && !stays {
            self.take_back(id);
        } else {
            self.pursue_cancel(id);
        }
    }

    /// What was to be judged only is dispatched where it is.
    pub(super) fn stay(&mut self, id: JobId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(place) = entry.place.as_mut().filter(|place| place.vetting) {
            place.vetting = false;
            entry.attempt += 1;
            self.seat(id);
        }
    }

    /// A POST takes long: a job that only wants a verdict asks elsewhere, an accepted one is asked
    /// about.
    pub(super) fn slow(&mut self, id: JobId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(place) = &entry.place else { return };
        if !place.verdict_out || place.life != Life::Sent || place.posted == self.now {
            return;
        }
        let (lane, vetting) = (place.lane, place.vetting);
        if entry.accepted {
            return self.overdue(id);
        }
        // Asked elsewhere too it may run twice for a moment.
        if !vetting || entry.job.once {
            return;
        }
        entry.avoid(lane, Avoid::Refused);
        let Some(entry) = self.entries.get(&id) else { return };
        if self.court(entry).is_ok() {
            self.disown(id, false);
            self.judge(id);
        }
    }

    /// An accepted job's POST is not answered in its time: perhaps it is there.
    fn overdue(&mut self, id: JobId) {
        let Some(place) = self.entries.get(&id).and_then(|entry| entry.place.as_ref()) else {
            return;
        };
        let due = place.posted.plus(self.options.verdict_timeout);
        if due <= self.now {
            self.doubt(id);
        } else {
            self.wake_at(due, Timer::Slow(id));
        }
    }

    /// The client of a job without verdict has waited long enough.
    pub(super) fn out_of_patience(&mut self, id: JobId) {
        if self.entries.get(&id).is_some_and(|entry| !entry.accepted) {
            self.refuse(id, Refusal::Timeout);
        }
    }

    /// The client of a job without verdict has gone.
    pub(super) fn abandon(&mut self, id: JobId) {
        self.out_of_patience(id);
    }

    /// Nothing is kept of the job; what a server may still have of it is a stray.
    pub(super) fn refuse(&mut self, id: JobId, refusal: Refusal) {
        self.disown(id, false);
        if let Some(entry) = self.forget(id) {
            self.out.push(Action::Refuse { job: entry.job, refusal });
        }
    }

    /// Back into the line, before those that were never dispatched.
    pub(super) fn go_again(&mut self, id: JobId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.again = true;
        }
        self.enqueue(id);
    }
}

/// What a server said, bounded, for an error.
fn words(refusal: &Refusal) -> String {
    let Refusal::Server { status, body, .. } = refusal else { return String::new() };
    let body = &body[..body.len().min(MAX_WORDS)];
    format!("the server refused it with {status}: {}", String::from_utf8_lossy(body))
}

/// The reply to a prompt whose own was lost on the way, in ComfyUI's words.
pub(super) fn reply_for(job: &Job) -> Bytes {
    let reply = serde_json::json!({
        "prompt_id": &*job.prompt_id, "number": job.number, "node_errors": {},
    });
    Bytes::from(reply.to_string())
}
