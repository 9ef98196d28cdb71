//! What one `clientId` gets, in which order; pure.
//!
//! A session is fed with the frames of its jobs and asked by its socket for the next one. Three
//! things can be the case:
//! - **It has a socket.** Frames wait in order. Beyond [`SOFT`] superseded progress goes,
//!   beyond [`LAG`] superseded previews; a reader that takes nothing for [`STANDSTILL`] while more than [`PRESSURE`] waits is cut, and
//!   at [`OVERFLOW`] at once.
//! - **It is kept**, for [`KEPT_FOR`] after a connection broke: nobody said goodbye, so the client
//!   will be back. It then gets the frames that it missed: events and results all, of running jobs
//!   the latest progress. Frames that had been written and not yet been confirmed by the answer to a
//!   later ping may be lost, so they come again.
//! - **It is gone**, closed by the client or never there: frames are dropped, as `ComfyUI` drops
//!   them. Only where its running jobs are is noted, for a new socket is told so.
//!
//! Shown serially, the jobs come one after another, as from one server.

use std::collections::VecDeque;
use std::time::Duration;

use super::entry::Entry;
use super::line::Line;
use super::queue::{Queue, Thin};
use super::unconfirmed::Unconfirmed;
use super::words::{self, First};
use crate::clock::Moment;
use crate::config::ClientEvents;
use crate::pool::frame::{Delivery, Frame, Meaning};
use crate::pool::job::JobId;

/// From here on superseded progress that waits for a socket goes. A reader that keeps up never has
/// so much.
pub const SOFT: usize = 256 << 10;
/// From here on superseded previews go too, which may be results: more than a node sends at once.
pub const LAG: usize = 8 << 20;
/// A reader that stands still with more than this behind it is cut: what `ComfyUI`'s largest usual
/// frames, full images, add up to in a few prompts.
pub const PRESSURE: usize = 16 << 20;
/// How long such a reader may take nothing: longer than any pause of a page or of a phone's radio.
pub const STANDSTILL: Duration = Duration::from_secs(30);
/// Previews are kept complete up to this, since they may be results.
pub const PREVIEWS: usize = 64 << 20;
/// No socket holds more.
pub const OVERFLOW: usize = 128 << 20;
/// How long after a broken connection the client gets what it missed.
pub const KEPT_FOR: Duration = Duration::from_mins(10);
/// What is kept for it meanwhile; the jobs that ended first go first.
pub const KEPT_BYTES: usize = 32 << 20;
/// A session without a socket that hears nothing of its running prompts for so long is forgotten.
const SILENT_FOR: Duration = Duration::from_hours(1);
/// How long after its connection a socket that has not said its flags has those of the last one.
pub(super) const FLAGS_GRACE: Duration = Duration::from_secs(5);

/// How a socket is attached.
#[derive(Debug, Clone, Copy)]
pub struct Attach<'a> {
    /// Its `clientId`.
    pub sid: &'a str,
    /// What the farm has queued and running.
    pub queue_remaining: u64,
    /// `pool.client_events`.
    pub events: ClientEvents,
    /// It sent an `Origin`: a page.
    pub has_origin: bool,
}

/// What a socket is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Write this.
    Frame(Frame),
    /// Nothing for now.
    Wait,
    /// End: its reader does not read.
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// Since then it has had its socket.
    Live(Moment),
    /// Its connection broke then.
    Kept(Moment),
    /// Closed by the client then; zero: never there.
    Gone(Moment),
}

/// What the sockets of this session said of themselves.
#[derive(Debug, Clone, Copy, Default)]
struct Flags {
    /// They sent flags.
    announced: bool,
    /// With `supports_preview_metadata`.
    metadata: bool,
    /// By the present socket's first message, not by an earlier socket's.
    confirmed: bool,
}

/// One `clientId`.
#[derive(Debug)]
pub struct Session {
    presence: Presence,
    events: ClientEvents,
    has_origin: bool,
    flags: Flags,
    /// The socket before announced flags, and this one has not said anything yet.
    expects_flags: bool,
    /// What the gateway says itself; before all else.
    own_words: VecDeque<Frame>,
    line: Line,
    out: Queue,
    unconfirmed: Unconfirmed,
    /// When a job of its last told something.
    touched: Moment,
    /// Since when more than [`PRESSURE`] waits and nothing was taken.
    standing: Option<Moment>,
    /// Previews are thinned above this.
    previews: usize,
    overflown: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            presence: Presence::Gone(Moment(0)),
            events: ClientEvents::Auto,
            has_origin: false,
            flags: Flags::default(),
            expects_flags: false,
            own_words: VecDeque::new(),
            line: Line::default(),
            out: Queue::default(),
            unconfirmed: Unconfirmed::default(),
            touched: Moment(0),
            standing: None,
            previews: PREVIEWS,
            overflown: false,
        }
    }
}

impl Session {
    /// Nothing of it matters any more: no client comes back for it, no prompt of its runs, or has
    /// told anything for an hour.
    pub fn is_useless(&self, now: Moment) -> bool {
        let Presence::Gone(since) = self.presence else { return false };
        let remembers = self.flags.announced && now.since(since) < KEPT_FOR;
        let runs = !self.line.is_empty() && now.since(self.touched) < SILENT_FOR;
        !remembers && !runs
    }

    /// Whether it is less than [`KEPT_FOR`] since it lost its socket.
    pub fn is_within_time(&self, now: Moment) -> bool {
        match self.presence {
            Presence::Live(_) => true,
            Presence::Kept(since) | Presence::Gone(since) => now.since(since) < KEPT_FOR,
        }
    }

    /// It is still wanted though it has been without a socket for long; the time counts anew.
    pub fn stay(&mut self, now: Moment) {
        self.flags = Flags::default();
        self.presence = Presence::Gone(now);
    }

    /// It has a socket.
    pub fn is_live(&self) -> bool {
        matches!(self.presence, Presence::Live(_))
    }

    /// Whether previews for it carry metadata: as its socket announced, or, until that has said
    /// so and while it has none, as the last one had.
    pub fn wants_metadata(&self, now: Moment) -> bool {
        let in_force = match self.presence {
            Presence::Live(since) => self.flags.confirmed || now.since(since) < FLAGS_GRACE,
            Presence::Kept(since) | Presence::Gone(since) => now.since(since) < KEPT_FOR,
        };
        in_force && self.flags.metadata
    }

    /// A client of an earlier process is waited for, as if its connection had broken now.
    pub fn expected(&mut self, now: Moment) {
        if self.presence == Presence::Gone(Moment(0)) {
            self.presence = Presence::Kept(now);
        }
    }

    /// A socket has come. Another one, if there was one, gets nothing more.
    pub fn attached(&mut self, now: Moment, attach: &Attach<'_>) {
        self.expire(now);
        if self.is_live() {
            self.detached(true, now);
        }
        let announced = self.flags.announced || self.expects_flags;
        self.expects_flags = announced && self.is_within_time(now);
        // A page repeats its flags at once; ComfyUI forgets those of any client that reconnects.
        if !attach.has_origin || !self.is_within_time(now) {
            self.flags = Flags::default();
        }
        self.flags.confirmed = false;
        self.events = attach.events;
        self.has_origin = attach.has_origin;
        let was_gone = matches!(self.presence, Presence::Gone(_));
        self.choose_way();
        if was_gone {
            self.line.resume();
        } else {
            self.out.leave_missed();
            self.line.repeat_state(&mut self.out);
        }
        self.own_words.push_back(words::greeting(attach.queue_remaining, attach.sid));
        self.own_words.extend(self.line.executing().filter_map(words::running));
        self.presence = Presence::Live(now);
        self.settle(now);
    }

    /// Its socket has ended; `abnormal`: without a close frame from the client.
    pub fn detached(&mut self, abnormal: bool, now: Moment) {
        self.own_words = VecDeque::new();
        self.standing = None;
        self.overflown = false;
        if abnormal {
            self.presence = Presence::Kept(now);
            self.take_back(now);
            self.settle(now);
        } else {
            self.forget(now);
        }
    }

    /// Forgets what was kept when its time is over.
    pub fn expire(&mut self, now: Moment) {
        if let Presence::Kept(since) = self.presence
            && now.since(since) >= KEPT_FOR
        {
            self.forget(since);
        }
    }

    fn forget(&mut self, since: Moment) {
        self.presence = Presence::Gone(since);
        self.out.clear();
        self.line.forget();
        self.unconfirmed.clear();
        self.previews = PREVIEWS;
    }

    /// Puts what may have been lost on the way before what waits.
    fn take_back(&mut self, now: Moment) {
        let mut again = self.unconfirmed.take(now);
        let mut waiting = std::mem::take(&mut self.out);
        waiting.retain(|entry| entry.own);
        again.append(waiting);
        self.out = again;
    }

    /// A frame of a job of its own.
    pub fn deliver(&mut self, delivery: Delivery, now: Moment) {
        self.expire(now);
        self.touched = now;
        self.give_up_flags(now);
        self.line.take(delivery, &mut self.out);
        self.settle(now);
    }

    /// A frame of a prompt without `client_id` of the same caller. It passes only where it cannot be
    /// taken for one of the job that is being shown.
    pub fn overhear(&mut self, delivery: Delivery, now: Moment) {
        let Delivery { job, meaning, frame, .. } = delivery;
        let entry = Entry::passing(Some(job), meaning, frame);
        let state = matches!(meaning, Meaning::Preview) || entry.is_passing_state();
        if self.is_live() && !(state && self.line.is_serial() && !self.line.is_empty()) {
            self.out.push(entry);
            self.settle(now);
        }
    }

    /// Any other message for it. Not kept when there is no socket.
    pub fn pass(&mut self, frame: Frame, now: Moment) {
        if self.is_live() {
            self.out.push(Entry::passing(None, Meaning::Other, frame));
            self.settle(now);
        }
    }

    /// A job has ended; no further frame is to be waited for.
    pub fn job_ended(&mut self, job: JobId, now: Moment) {
        self.line.end(job, &mut self.out);
        self.settle(now);
    }

    /// A job lost its server and is to run again.
    pub fn job_withdrawn(&mut self, job: JobId, now: Moment) {
        self.line.withdraw(job, &mut self.out);
        self.settle(now);
    }

    /// The first message of its socket; true when no further one counts.
    pub(super) fn heard(&mut self, first: First, answer: impl FnOnce() -> Frame) -> bool {
        self.flags = match first {
            First::NotJson => return false,
            First::Other => Flags { confirmed: true, ..Flags::default() },
            First::Flags { metadata } => {
                self.own_words.push_back(answer());
                Flags { announced: true, metadata, confirmed: true }
            }
        };
        self.expects_flags = false;
        self.choose_way();
        true
    }

    /// A client that has not repeated its flags in time has none.
    fn give_up_flags(&mut self, now: Moment) {
        if let Presence::Live(since) = self.presence
            && self.expects_flags
            && now.since(since) >= FLAGS_GRACE
        {
            self.expects_flags = false;
            self.choose_way();
        }
    }

    fn choose_way(&mut self) {
        let serial = match self.events {
            ClientEvents::Serial => true,
            ClientEvents::Interleaved => false,
            // What was held until now would come in the middle of another job before a client that
            // comes back can say its flags again.
            ClientEvents::Auto => self.has_origin || self.flags.announced || self.expects_flags,
        };
        self.line.set_serial(serial, &mut self.out);
    }

    /// What the gateway itself has to say, before all else.
    pub fn next_own_word(&mut self) -> Option<Frame> {
        let frame = self.own_words.pop_front();
        if frame.is_some() && self.own_words.is_empty() {
            self.own_words = VecDeque::new();
        }
        frame
    }

    /// What the socket is to do next.
    pub fn next(&mut self, now: Moment) -> Next {
        if self.must_cut(now) {
            return Next::Cut;
        }
        if let Some(frame) = self.next_own_word() {
            return Next::Frame(frame);
        }
        let Some(entry) = self.out.pop() else { return Next::Wait };
        self.standing = (self.out.cost() > PRESSURE).then_some(now);
        let frame = entry.frame.clone();
        self.unconfirmed.add(entry, now);
        Next::Frame(frame)
    }

    /// Whether the reader has to go.
    pub fn must_cut(&self, now: Moment) -> bool {
        let stands = self.standing.is_some_and(|since| now.since(since) >= STANDSTILL);
        self.is_live() && (stands || self.overflown)
    }

    /// The reader has taken a part of what [`next`](Self::next) handed out last.
    pub fn taken(&mut self, now: Moment) {
        if let Some(since) = &mut self.standing {
            *since = now;
        }
    }

    /// The number that a ping is to carry; none when there is nothing to be confirmed.
    pub fn to_confirm(&mut self, now: Moment) -> Option<u64> {
        self.unconfirmed.newest(now)
    }

    /// The client has answered the ping that carried `number`.
    pub fn confirmed(&mut self, number: u64) {
        self.unconfirmed.confirm(number);
    }

    /// What it costs to keep.
    pub fn cost(&self) -> usize {
        self.out.cost() + self.line.cost() + self.unconfirmed.cost()
    }

    /// Brings what has grown back into its bounds.
    fn settle(&mut self, now: Moment) {
        match self.presence {
            Presence::Live(_) => self.settle_live(now),
            Presence::Kept(_) => self.settle_kept(),
            Presence::Gone(_) => {
                self.out.clear();
                self.line.forget();
            }
        }
    }

    fn settle_live(&mut self, now: Moment) {
        let lags = self.out.cost() > LAG;
        let thin = if lags { Thin::Previews } else { Thin::Progress };
        self.out.thin_above(SOFT, thin, LAG);
        let mut waiting = self.out.cost() + self.line.held();
        if waiting > self.previews {
            self.line.thin_held(PREVIEWS.saturating_sub(self.out.cost()));
            self.out.thin(Thin::Results, PREVIEWS.saturating_sub(self.line.held()));
            waiting = self.out.cost() + self.line.held();
            self.previews = PREVIEWS.max(waiting + PREVIEWS / 8);
        }
        self.overflown |= waiting > OVERFLOW;
        if self.out.cost() > PRESSURE {
            self.standing.get_or_insert(now);
        }
    }

    fn settle_kept(&mut self) {
        self.out.leave_missed_above(SOFT);
        if self.out.cost() + self.line.held() <= KEPT_BYTES {
            return;
        }
        self.out.leave_missed();
        // Down to three quarters, so that not every frame from here on looks at all of them.
        let target = KEPT_BYTES / 4 * 3;
        let held = self.line.held();
        self.out.drop_oldest(target.saturating_sub(held));
        self.line.drop_held(target);
    }
}
