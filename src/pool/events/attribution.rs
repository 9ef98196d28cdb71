//! Whose a message is.
//!
//! Each of the two sockets tells the prompts that were posted under its sid, one after another and
//! in order; the two among themselves are in no order, since each is read on its own. So what runs
//! is kept for each socket by itself: between a prompt's start and its `executing` with a null node
//! everything that comes on *its* socket without an id belongs to it. A broadcast, which comes on
//! both, finds no running prompt on the other socket and so counts once. A start may be missed
//! (the socket was away): then any event of a prompt stands for it.
//!
//! A message for nobody known is a stray, to be dropped: of a prompt that somebody posted to the
//! backend directly, or of one that was given up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::held::Held;
use super::{Directory, Flavour, Heard, Kind, Known, parse, rewrite};
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::pool::core::Input;
use crate::pool::frame::{Delivery, Frame, Meaning};

/// The core hears of a running prompt's life no more often than this.
const ALIVE_EVERY: Duration = Duration::from_secs(1);

/// Puts the backend's mark on the files in an output.
pub type Rewrite = Arc<dyn Fn(&mut Value) + Send + Sync>;

/// What is to become of a message.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// The length of the backend's queue, if it told one.
    pub depth: Option<u32>,
    /// What the core is to be told.
    pub input: Option<Input>,
    /// What the job's owner is to get.
    pub delivery: Option<Delivery>,
    /// It is about a prompt, or a custom node's, and nobody's.
    pub stray: bool,
}

impl Verdict {
    fn stray() -> Self {
        Self { stray: true, ..Self::default() }
    }
}

/// A prompt that runs, as one socket tells.
#[derive(Debug)]
struct Running {
    /// As the backend calls it.
    prompt_id: Box<str>,
    /// When the core was told last that it lives.
    told: Moment,
}

/// What one socket has told.
#[derive(Debug, Default)]
struct Side {
    open: bool,
    running: Option<Running>,
    /// The prompt that ended last: what comes late of it does not make it run again.
    ended: Option<Box<str>>,
}

/// Follows the two sockets of one backend. Calls must come in each socket's order.
pub struct Attribution {
    backend: BackendId,
    rewrite: Rewrite,
    sides: [Side; 2],
    held: Held,
}

impl fmt::Debug for Attribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attribution")
            .field("backend", &self.backend)
            .field("sides", &self.sides)
            .finish_non_exhaustive()
    }
}

impl Attribution {
    /// Nothing heard yet.
    pub fn new(backend: BackendId, rewrite: Rewrite) -> Self {
        Self { backend, rewrite, sides: Default::default(), held: Held::default() }
    }

    /// A socket is open. Messages may have come on it before.
    pub fn opened(&mut self, flavour: Flavour) {
        self.sides[flavour.index()].open = true;
    }

    /// A socket has ended: what it would have told is not known.
    pub fn lost(&mut self, flavour: Flavour) {
        self.sides[flavour.index()] = Side::default();
    }

    /// The backend said (not by an event) that this prompt of ours runs there.
    pub fn resume(&mut self, flavour: Flavour, prompt_id: &str) {
        let running = Running { prompt_id: prompt_id.into(), told: Moment::default() };
        self.sides[flavour.index()].running = Some(running);
    }

    /// What a backend said of a prompt before its reply to the POST was read and told the id, to be
    /// called when the directory has come to know it and before the next message is handed in.
    pub fn claim(&mut self, prompt_id: &str, now: Moment, jobs: &dyn Directory) -> Vec<Verdict> {
        let claimed = self.held.claim(prompt_id);
        claimed.iter().map(|(flavour, frame)| self.heard(*flavour, frame, now, jobs)).collect()
    }

    /// Takes a message.
    pub fn heard(
        &mut self,
        flavour: Flavour,
        frame: &Frame,
        now: Moment,
        jobs: &dyn Directory,
    ) -> Verdict {
        let heard = parse(frame);
        match heard.kind {
            Kind::Status { remaining, .. } => {
                let depth = remaining.filter(|_| self.tells_depth(flavour));
                Verdict { depth, ..Verdict::default() }
            }
            Kind::FeatureFlags | Kind::Logs => Verdict::default(),
            _ => self.of_a_prompt(flavour, frame, &heard, now, jobs),
        }
    }

    /// Both sockets tell the depth; two unordered tellers of one number would show it going back.
    fn tells_depth(&self, flavour: Flavour) -> bool {
        flavour == Flavour::Plain || !self.sides[Flavour::Plain.index()].open
    }

    fn of_a_prompt(
        &mut self,
        flavour: Flavour,
        frame: &Frame,
        heard: &Heard<'_>,
        now: Moment,
        jobs: &dyn Directory,
    ) -> Verdict {
        let side = &mut self.sides[flavour.index()];
        let named = heard.prompt_id.as_deref();
        let running = side.running.as_ref().map(|running| &*running.prompt_id);
        let Some(theirs) = named.or(running).map(Box::<str>::from) else {
            return Verdict::stray();
        };
        let Some(known) = jobs.job(self.backend, &theirs) else {
            side.forget(&theirs);
            if named.is_some() && heard.kind == Kind::Event {
                self.held.keep(flavour, &theirs, frame, now);
            }
            return Verdict::stray();
        };
        let shown = || tells_its_socket(heard) && jobs.is_of(self.backend, &theirs, flavour);
        if known.flavour != flavour && !shown() {
            // It came to its own socket too.
            return Verdict::default();
        }
        let input = side.sign_of_life(self.backend, &theirs, &known, heard, now);
        let delivery = self.delivery(frame, heard, &theirs, known);
        Verdict { input, delivery, ..Verdict::default() }
    }

    /// The message for the job's owner, if it is one for him.
    fn delivery(
        &self,
        frame: &Frame,
        heard: &Heard<'_>,
        theirs: &str,
        known: Known,
    ) -> Option<Delivery> {
        // What greets a socket that came back in the middle of a prompt: its owner has not.
        let greeting = heard.meaning == Meaning::Executing && heard.prompt_id.is_none();
        let unheard = known.owner.client_id.is_none() && !heard.is_for_all_without_client();
        if greeting || unheard {
            return None;
        }
        let mut frame = frame.clone();
        if heard.meaning == Meaning::Output {
            frame = rewrite::outputs(&frame, &*self.rewrite).unwrap_or(frame);
        }
        if heard.prompt_id.is_some() && *theirs != *known.prompt_id {
            frame = rewrite::prompt_id(&frame, theirs, &known.prompt_id).unwrap_or(frame);
        }
        Some(Delivery {
            owner: known.owner,
            job: known.job,
            prompt_id: known.prompt_id,
            meaning: heard.meaning,
            frame,
        })
    }
}

/// Whether it is a message that ComfyUI sends to a prompt's own client and to nobody else.
fn tells_its_socket(heard: &Heard<'_>) -> bool {
    let own = matches!(
        heard.meaning,
        Meaning::Start | Meaning::Executing | Meaning::Output | Meaning::Progress | Meaning::End
    );
    own && heard.kind == Kind::Event && heard.prompt_id.is_some()
}

impl Side {
    /// A prompt that the gateway no longer knows does not run as far as it is concerned.
    fn forget(&mut self, prompt_id: &str) {
        if self.running.as_ref().is_some_and(|running| &*running.prompt_id == prompt_id) {
            self.running = None;
        }
    }

    /// Takes what a message says of its prompt's life, and what of that the core is to be told.
    fn sign_of_life(
        &mut self,
        backend: BackendId,
        theirs: &str,
        known: &Known,
        heard: &Heard<'_>,
        now: Moment,
    ) -> Option<Input> {
        let job = known.job;
        if heard.meaning == Meaning::End {
            self.forget(theirs);
            self.ended = Some(theirs.into());
            return Some(Input::Finished { backend, job });
        }
        if let Some(running) = self.running.as_mut().filter(|running| &*running.prompt_id == theirs)
            && heard.meaning != Meaning::Start
        {
            if running.told != Moment::default() && now.since(running.told) < ALIVE_EVERY {
                return None;
            }
            running.told = now;
            return Some(Input::Alive { backend, job });
        }
        if heard.meaning == Meaning::Start || self.may_have_missed_its_start(theirs, heard) {
            self.running = Some(Running { prompt_id: theirs.into(), told: now });
            return Some(Input::Started { backend, job });
        }
        None
    }

    /// Whether a message is the first that is heard of a prompt that already runs. A custom node's
    /// message may name a prompt that waits.
    fn may_have_missed_its_start(&self, theirs: &str, heard: &Heard<'_>) -> bool {
        self.running.is_none()
            && self.ended.as_deref() != Some(theirs)
            && matches!(heard.kind, Kind::Event | Kind::PreviewWithMetadata)
    }
}
