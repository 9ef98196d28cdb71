//! The running jobs of one `clientId`, in the order in which they came.
//!
//! Shown one after another, only the first one's frames pass; those of the others are held here,
//! complete but for superseded progress, until it is their turn.

use std::collections::{HashSet, VecDeque};

use super::entry::Entry;
use super::queue::{Queue, Thin};
use crate::pool::frame::{Delivery, Frame, Meaning};
use crate::pool::job::JobId;

/// A held job's progress is thinned from here on.
const HELD_FLOOR: usize = 64 << 10;
/// Jobs followed per `clientId` at most; a farm runs fewer. The oldest is given up.
const MAX_JOBS: usize = 4096;
/// Jobs whose end is remembered, so that a late frame does not open them again.
const MAX_ENDED: usize = 256;

/// A running job.
#[derive(Debug)]
struct Track {
    job: JobId,
    epoch: u32,
    start: Option<Frame>,
    cached: Option<Frame>,
    executing: Option<Frame>,
    progress_state: Option<Frame>,
    held: Queue,
    ended: bool,
}

impl Track {
    fn new(job: JobId) -> Self {
        Self {
            job,
            epoch: 0,
            start: None,
            cached: None,
            executing: None,
            progress_state: None,
            held: Queue::default(),
            ended: false,
        }
    }

    /// Notes where the job is.
    fn note(&mut self, meaning: Meaning, frame: &Frame) {
        match meaning {
            Meaning::Start => {
                // Run anew, it is at its beginning again.
                (self.cached, self.executing, self.progress_state) = (None, None, None);
                self.start = Some(frame.clone());
            }
            Meaning::Cached => self.cached = Some(frame.clone()),
            Meaning::Executing => {
                self.epoch = self.epoch.wrapping_add(1);
                self.executing = Some(frame.clone());
            }
            Meaning::ProgressState => self.progress_state = Some(frame.clone()),
            // Nothing of it runs any more.
            Meaning::Terminal => (self.executing, self.progress_state) = (None, None),
            _ => {}
        }
    }

    /// The frames that tell that it has begun.
    fn beginning(&self) -> impl Iterator<Item = Entry> {
        let kept = [(Meaning::Start, &self.start), (Meaning::Cached, &self.cached)];
        let frame = |(meaning, frame): (Meaning, &Option<Frame>)| {
            Some(Entry::own(self.job, 0, meaning, frame.clone()?))
        };
        kept.into_iter().filter_map(frame)
    }

    /// The frames that tell where it is.
    fn state(&self) -> impl Iterator<Item = Entry> {
        let kept =
            [(Meaning::ProgressState, &self.progress_state), (Meaning::Executing, &self.executing)];
        kept.into_iter().filter_map(|(meaning, frame)| {
            Some(Entry::own(self.job, self.epoch, meaning, frame.clone()?))
        })
    }

    fn cost(&self) -> usize {
        let noted = [&self.start, &self.cached, &self.executing, &self.progress_state];
        let noted = noted.into_iter().flatten().map(|frame| frame.bytes.len()).sum::<usize>();
        size_of::<Self>() + noted + self.held.cost()
    }
}

/// The running jobs.
#[derive(Debug, Default)]
pub(super) struct Line {
    tracks: VecDeque<Track>,
    ended: VecDeque<JobId>,
    /// One after another.
    serial: bool,
}

impl Line {
    pub(super) fn is_serial(&self) -> bool {
        self.serial
    }

    /// No job runs.
    pub(super) fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }

    /// Changes the way. What may pass now goes to `out`.
    pub(super) fn set_serial(&mut self, serial: bool, out: &mut Queue) {
        self.serial = serial;
        self.advance(out);
    }

    /// Takes a frame of a job: adds it to `out`, or holds it until its job's turn.
    pub(super) fn take(&mut self, delivery: Delivery, out: &mut Queue) {
        let Delivery { job, meaning, frame, .. } = delivery;
        if self.ended.contains(&job) {
            if meaning != Meaning::Start {
                return out.push(Entry::own(job, 0, meaning, frame));
            }
            // Its server died with the result: it runs anew.
            self.ended.retain(|ended| *ended != job);
        }
        let index = self.place(job, out);
        let shown = index == 0 || !self.serial;
        let Some(track) = self.tracks.get_mut(index) else { return };
        track.note(meaning, &frame);
        let entry = Entry::own(job, track.epoch, meaning, frame);
        if shown {
            out.push(entry);
        } else {
            track.held.push(entry);
            track.held.thin_above(HELD_FLOOR, Thin::Progress, 0);
        }
        if meaning == Meaning::End {
            self.end(job, out);
        }
    }

    /// Where a job is in the line; a new one comes last.
    fn place(&mut self, job: JobId, out: &mut Queue) -> usize {
        if let Some(index) = self.tracks.iter().position(|track| track.job == job) {
            return index;
        }
        if self.tracks.len() >= MAX_JOBS
            && let Some(oldest) = self.tracks.front().map(|track| track.job)
        {
            self.end(oldest, out);
        }
        self.tracks.push_back(Track::new(job));
        self.tracks.len() - 1
    }

    /// A job has ended; what it has waiting is still shown.
    pub(super) fn end(&mut self, job: JobId, out: &mut Queue) {
        if let Some(track) = self.tracks.iter_mut().find(|track| track.job == job) {
            track.ended = true;
            if self.ended.len() >= MAX_ENDED {
                self.ended.pop_front();
            }
            self.ended.push_back(job);
            self.advance(out);
        }
    }

    /// A job is to run again from its beginning: what was not shown of it never happened.
    pub(super) fn withdraw(&mut self, job: JobId, out: &mut Queue) {
        self.tracks.retain(|track| track.job != job || track.ended);
        self.advance(out);
    }

    /// Moves to `out` what is no longer held, and forgets jobs that were shown to their end.
    fn advance(&mut self, out: &mut Queue) {
        if !self.serial {
            for track in &mut self.tracks {
                out.append(std::mem::take(&mut track.held));
            }
            self.tracks.retain(|track| !track.ended);
            return;
        }
        while let Some(first) = self.tracks.front_mut() {
            out.append(std::mem::take(&mut first.held));
            if !first.ended {
                return;
            }
            self.tracks.pop_front();
        }
    }

    /// Jobs whose frames pass.
    fn shown(&self) -> impl Iterator<Item = &Track> {
        let count = if self.serial { 1 } else { self.tracks.len() };
        self.tracks.iter().take(count)
    }

    /// The `executing` at which each job that is shown is, oldest first.
    pub(super) fn executing(&self) -> impl Iterator<Item = &Frame> {
        self.shown().filter_map(|track| track.executing.as_ref())
    }

    /// Adds to `out` where the jobs shown are, as far as it does not say so already.
    pub(super) fn repeat_state(&self, out: &mut Queue) {
        let told: HashSet<_> = out.iter().map(|entry| (entry.job, entry.meaning)).collect();
        for entry in self.shown().flat_map(Track::state) {
            if !told.contains(&(entry.job, entry.meaning)) {
                out.push(entry);
            }
        }
    }

    /// Drops what is held: nobody is there to be shown it.
    pub(super) fn forget(&mut self) {
        self.tracks.retain(|track| !track.ended);
        for track in &mut self.tracks {
            track.held.clear();
        }
    }

    /// Gives the jobs that are not shown yet what they need to begin with in the middle.
    pub(super) fn resume(&mut self) {
        for track in self.tracks.iter_mut().skip(1).filter(|_| self.serial) {
            let entries: Vec<_> = track.beginning().chain(track.state()).collect();
            for entry in entries {
                track.held.push(entry);
            }
        }
    }

    /// What is held costs.
    pub(super) fn held(&self) -> usize {
        self.tracks.iter().map(|track| track.held.cost()).sum()
    }

    /// All that is kept for the running jobs costs.
    pub(super) fn cost(&self) -> usize {
        self.tracks.iter().map(Track::cost).sum()
    }

    /// Drops superseded previews, the oldest job's first, until no more than `target` is held.
    pub(super) fn thin_held(&mut self, target: usize) {
        let mut all = self.held();
        for thin in [Thin::Previews, Thin::Results] {
            for held in self.tracks.iter_mut().map(|track| &mut track.held) {
                let (excess, before) = (all.saturating_sub(target), held.cost());
                if excess > 0 {
                    held.thin(thin, before.saturating_sub(excess));
                    all -= before - held.cost();
                }
            }
        }
    }

    /// Leaves of what is held what a client that was away is to get, and of that no more than
    /// `target`: ended jobs go first, then the oldest frames.
    pub(super) fn drop_held(&mut self, target: usize) {
        self.tracks.iter_mut().for_each(|track| track.held.leave_missed());
        let mut all = self.held();
        for ended in [true, false] {
            for track in self.tracks.iter_mut().filter(|track| track.ended == ended) {
                let (excess, before) = (all.saturating_sub(target), track.held.cost());
                if excess > 0 {
                    track.held.drop_oldest(before.saturating_sub(excess));
                    all -= before - track.held.cost();
                }
            }
        }
    }
}
