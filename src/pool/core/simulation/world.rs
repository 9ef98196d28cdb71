//! The world: servers, the network between them and the gateway, clients, and misfortune.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::super::{
    Action, Attempt, Core, Input, Known, Lane, Options, Outcome, Post, TakenBack, Verdict,
};
use super::checks::Ledger;
use super::gateway::{Journal, options, restart};
use super::random::Random;
use super::server::{Prompt, Server};
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::identity::ClientKey;
use crate::inventory::Capabilities;
use crate::pool::job::{Job, JobId, Needs, Owner};
use crate::tasks::kind::Kind;

/// What may go wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chaos {
    pub(super) servers: bool,
    pub(super) crashes: bool,
    pub(super) bug: Bug,
}

/// A bug planted in the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    /// Resets and returns of servers are not told.
    ForgetReconcile,
    /// Each waiting job is posted twice.
    DoubleDispatch,
    /// A POST that broke off is taken for one that never left.
    UnknownIsNotSent,
}

impl Chaos {
    pub(super) fn none() -> Self {
        Self { servers: false, crashes: false, bug: Bug::None }
    }

    pub(super) fn servers() -> Self {
        Self { servers: true, ..Self::none() }
    }

    pub(super) fn all() -> Self {
        Self { crashes: true, ..Self::servers() }
    }

    pub(super) fn with(self, bug: Bug) -> Self {
        Self { bug, ..self }
    }
}

/// What is on its way, or will happen.
#[derive(Debug, Clone)]
enum Event {
    /// Reaches the gateway, unless that has crashed since, or the server's socket broke.
    Gateway {
        era: u64,
        socket: Option<(usize, u64)>,
        input: Input,
    },
    /// Reaches a server.
    Request {
        era: u64,
        server: usize,
        request: Request,
    },
    /// A prompt has run its time.
    Done {
        server: usize,
        run: u64,
    },
    Progress {
        server: usize,
        run: u64,
    },
    /// The gateway notices how a server is.
    Notice {
        server: usize,
    },
    /// The gateway reads a queue.
    Read {
        era: u64,
        server: usize,
    },
    Client,
    Misfortune,
    Revive {
        server: usize,
        life: u64,
    },
    Heal {
        server: usize,
    },
    Tick,
}

#[derive(Debug, Clone)]
enum Request {
    Post(Post),
    TakeBack(JobId, Attempt),
    Ask(JobId, Attempt),
    Interrupt(JobId),
}

pub(super) struct World {
    random: Random,
    chaos: Chaos,
    options: Options,
    core: Core,
    journal: Journal,
    pub(super) servers: Vec<Server>,
    /// What the gateway was told of each: (reachable, life).
    noticed: Vec<(bool, u64)>,
    suspects: BTreeSet<usize>,
    pub(super) ledger: Ledger,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub(super) now: u64,
    era: u64,
    jobs: u64,
    calm: bool,
    /// `COMFYGATE_SIM_TRACE` is set: everything is shown.
    trace: bool,
    /// When the gateway looks at the time next.
    tick: u64,
    /// The earliest time an event of a server may arrive: they come in order.
    wire: Vec<u64>,
}

/// How long misfortune lasts, and how long the world may take to recover, in milliseconds.
const STORM: u64 = 45_000;
const RECOVERY: u64 = 900_000;

fn backend(server: usize) -> BackendId {
    BackendId(server as u32)
}

impl World {
    pub(super) fn new(seed: u64, chaos: Chaos) -> Self {
        let mut random = Random(seed);
        let drawn = random.next();
        // In every eighth run callers may have only so much at once.
        let running_per_caller =
            if (drawn >> 8).is_multiple_of(8) { 1 + (drawn >> 16 & 1) as u32 } else { 0 };
        let prefetch = drawn as u32 % 2;
        let options = Options { running_per_caller, prefetch, ..options() };
        let count = random.within(1, 5) as usize;
        let server = |random: &mut Random| Server {
            up: true,
            special: random.permille(600),
            ..Server::default()
        };
        let servers: Vec<Server> = (0..count).map(|_| server(&mut random)).collect();
        let mut world = Self {
            random,
            chaos,
            core: Core::new(options.clone()),
            options,
            journal: Journal::default(),
            noticed: vec![(false, 0); count],
            suspects: BTreeSet::new(),
            servers,
            ledger: Ledger::default(),
            events: BTreeMap::new(),
            sequence: 0,
            now: 1000,
            era: 0,
            jobs: 0,
            calm: false,
            trace: std::env::var_os("COMFYGATE_SIM_TRACE").is_some(),
            tick: 0,
            wire: vec![0; count],
        };
        for server in 0..count {
            world.tell_lane(server);
            world.at(world.now + 500, Event::Read { era: 0, server });
        }
        world.at(1100, Event::Client);
        if chaos.servers || chaos.crashes {
            world.at(3000, Event::Misfortune);
        }
        world
    }

    /// Lives through the storm and the calm after it.
    pub(super) fn live(mut self) {
        while let Some(((at, _), event)) = self.events.pop_first() {
            if self.now >= STORM && !self.calm {
                self.calm_down();
            }
            if at > STORM + RECOVERY || (self.calm && self.is_done()) {
                break;
            }
            self.now = self.now.max(at);
            self.happen(event);
            self.core.check();
        }
        self.ledger.last_check(self.now, &self.core);
    }

    fn is_done(&self) -> bool {
        let idle = |server: &Server| server.running.is_none() && server.pending.is_empty();
        self.core.open_jobs() == 0 && self.core.strays() == 0 && self.servers.iter().all(idle)
    }

    fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }

    fn after(&mut self, from: u64, to: u64, event: Event) {
        let at = self.now + self.random.within(from, to);
        self.at(at, event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Gateway { era, socket, input } => self.arrive(era, socket, input),
            Event::Request { era, server, request } => self.request(era, server, request),
            Event::Done { server, run } => self.done(server, run),
            Event::Progress { server, run } => self.progress(server, run),
            Event::Notice { server } => self.notice(server),
            Event::Read { era, server } => self.read(era, server),
            Event::Client => self.client(),
            Event::Misfortune => self.misfortune(),
            Event::Revive { server, life } => self.revive(server, life),
            Event::Heal { server } => {
                self.servers[server].cut = false;
                self.after(10, 500, Event::Notice { server });
            }
            Event::Tick => self.feed(Input::Tick),
        }
    }

    fn arrive(&mut self, era: u64, socket: Option<(usize, u64)>, input: Input) {
        let broken =
            socket.is_some_and(|(at, life)| self.servers[at].life != life || self.servers[at].cut);
        if era == self.era && !broken {
            self.feed(input);
        }
    }

    /// The gateway hears something and acts.
    fn feed(&mut self, input: Input) {
        if self.trace {
            eprintln!("{} < {}", self.now, super::checks::brief(&input));
        }
        if let Input::Verdict { job, verdict, .. } = &input {
            self.ledger.answered(*job, verdict);
        }
        let mut actions = Vec::new();
        self.core.handle(input, Moment(self.now), &mut actions);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            if self.trace {
                eprintln!("{}   > {}", self.now, super::checks::brief_action(&action));
            }
            self.journal.write(&action);
            self.ledger.note(self.now, &action, &self.core);
            self.carry_out(action);
        }
        if let Some(at) = self.core.next_tick()
            && (self.tick <= self.now || at.0 < self.tick)
        {
            self.tick = at.0;
            self.at(at.0, Event::Tick);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Post(post) => {
                if self.chaos.bug == Bug::DoubleDispatch && !post.vetting {
                    let other = (post.backend.0 as usize + 1) % self.servers.len();
                    self.send(other, Request::Post(post.clone()));
                }
                self.send(post.backend.0 as usize, Request::Post(post));
            }
            Action::TakeBack { job, backend, attempt } => {
                self.send(backend.0 as usize, Request::TakeBack(job.id, attempt));
            }
            Action::Ask { job, backend, attempt } => {
                self.send(backend.0 as usize, Request::Ask(job.id, attempt));
            }
            Action::Interrupt { job, backend } => {
                self.send(backend.0 as usize, Request::Interrupt(job.id));
            }
            Action::Suspect(backend) => {
                let server = backend.0 as usize;
                self.suspects.insert(server);
                self.after(100, 2000, Event::Notice { server });
            }
            _ => {}
        }
    }

    fn send(&mut self, server: usize, request: Request) {
        let era = self.era;
        let slow = if self.random.permille(20) { 3000 } else { 30 };
        self.after(1, slow, Event::Request { era, server, request });
    }

    fn reply(&mut self, era: u64, input: Input) {
        let slow = if self.random.permille(30) && !self.calm { 14_000 } else { 30 };
        self.after(1, slow, Event::Gateway { era, socket: None, input });
    }

    fn event(&mut self, server: usize, input: Input) {
        let socket = Some((server, self.servers[server].life));
        let at = (self.now + self.random.within(0, 60)).max(self.wire[server]);
        self.wire[server] = at;
        self.at(at, Event::Gateway { era: self.era, socket, input });
    }

    fn request(&mut self, era: u64, server: usize, request: Request) {
        let answers = self.servers[server].answers();
        let lost = self.chaos.servers && !self.calm && self.random.permille(30);
        match request {
            Request::Post(post) => {
                let verdict = if answers { self.post(server, &post) } else { Verdict::NotSent };
                let verdict = if lost && answers { self.lost_verdict() } else { verdict };
                let (job, attempt) = (post.job.id, post.attempt);
                self.reply(era, Input::Verdict { job, attempt, verdict });
            }
            Request::TakeBack(job, attempt) => {
                let mut result = TakenBack::Unknown;
                if answers {
                    result = self.servers[server].take_back(job);
                }
                let result = if lost { TakenBack::Unknown } else { result };
                self.reply(era, Input::TakenBack { job, attempt, result });
            }
            Request::Ask(job, attempt) => {
                let known =
                    if answers && !lost { self.servers[server].knows(job) } else { Known::Unknown };
                self.reply(era, Input::Told { backend: backend(server), job, attempt, known });
            }
            Request::Interrupt(job) => {
                let heeds = answers && !self.servers[server].hung && !lost;
                if heeds && self.servers[server].runs(job) {
                    self.finish(server, &Outcome::Cancelled);
                }
            }
        }
    }

    fn lost_verdict(&self) -> Verdict {
        if self.chaos.bug == Bug::UnknownIsNotSent { Verdict::NotSent } else { Verdict::Unknown }
    }

    fn post(&mut self, server: usize, post: &Post) -> Verdict {
        let special = post.job.needs.nodes.contains("Special");
        if special && !self.servers[server].special {
            let body = Bytes::from_static(b"{\"error\": \"no Special here\"}");
            return Verdict::Refused { status: 400, content_type: None, body };
        }
        let number = if post.vetting { f64::MAX } else { post.job.number };
        let ms = self.random.within(50, 6000);
        let fails = self.random.permille(50);
        self.servers[server].pending.push(Prompt { job: Some(post.job.id), number, ms, fails });
        self.begin(server);
        Verdict::Accepted(Bytes::from_static(b"{}"))
    }

    fn begin(&mut self, server: usize) {
        let Some(prompt) = self.servers[server].begin() else { return };
        let run = self.servers[server].run;
        if self.chaos.servers && !self.calm && self.random.permille(8) {
            self.servers[server].hung = true;
        }
        self.at(self.now + prompt.ms, Event::Done { server, run });
        if let Some(job) = prompt.job {
            self.ledger.began(self.now, server, job, &self.servers);
            self.event(server, Input::Started { backend: backend(server), job });
            self.at(self.now + 500, Event::Progress { server, run });
        }
    }

    fn progress(&mut self, server: usize, run: u64) {
        let state = &self.servers[server];
        if state.run != run || state.hung {
            return;
        }
        if let Some(job) = state.running.as_ref().and_then(|prompt| prompt.job) {
            self.event(server, Input::Alive { backend: backend(server), job });
            self.at(self.now + 500, Event::Progress { server, run });
        }
    }

    fn done(&mut self, server: usize, run: u64) {
        let state = &self.servers[server];
        if state.run != run || state.hung || !state.up {
            return;
        }
        let fails = state.running.as_ref().is_some_and(|prompt| prompt.fails);
        let error = "out of memory".to_owned();
        self.finish(server, &if fails { Outcome::Failed { error } } else { Outcome::Completed });
    }

    fn finish(&mut self, server: usize, outcome: &Outcome) {
        if let Some(job) = self.servers[server].finish(outcome.clone()) {
            self.ledger.finished(job, outcome);
            self.event(server, Input::Finished { backend: backend(server), job });
        }
        self.servers[server].run += 1;
        self.begin(server);
    }

    /// The gateway reads a queue; the reading shows the moment between asking and answer.
    fn read(&mut self, era: u64, server: usize) {
        if era != self.era {
            return;
        }
        let state = &self.servers[server];
        if state.answers() {
            let ids = |prompt: &Prompt| prompt.job;
            let input = Input::Queue {
                backend: backend(server),
                running: state.running.iter().filter_map(ids).collect(),
                pending: state.pending.iter().filter_map(ids).collect(),
                foreign: state
                    .running
                    .iter()
                    .chain(&state.pending)
                    .filter(|p| p.job.is_none())
                    .count() as u32,
                asked: Moment(self.now),
            };
            self.reply(era, input);
        }
        self.after(500, 2000, Event::Read { era, server });
    }

    /// The gateway's probe looks at a server.
    fn notice(&mut self, server: usize) {
        let state = (self.servers[server].answers(), self.servers[server].life);
        let before = std::mem::replace(&mut self.noticed[server], state);
        if self.suspects.remove(&server) {
            // Whoever looks after suspects restarts them.
            self.servers[server].die();
            self.noticed[server] = (false, self.servers[server].life);
            self.tell_lane(server);
            let life = self.servers[server].life;
            return self.after(500, 5000, Event::Revive { server, life });
        }
        let forgetful = self.chaos.bug == Bug::ForgetReconcile;
        if before.1 != state.1 && state.0 && !forgetful {
            self.feed(Input::LaneReset(backend(server)));
        }
        self.tell_lane(server);
    }

    fn tell_lane(&mut self, server: usize) {
        let answers = self.servers[server].answers();
        self.noticed[server] = (answers, self.servers[server].life);
        let reachable = answers || self.chaos.bug == Bug::ForgetReconcile;
        let mut nodes = BTreeSet::from(["Plain".into()]);
        // What is listed is a hint, and wrong on the last server.
        let special = self.servers[server].special != (server == 3);
        if special {
            nodes.insert("Special".into());
        }
        let capabilities = Arc::new(Capabilities { nodes, ..Capabilities::default() });
        self.feed(Input::Lane(Lane {
            backend: backend(server),
            name: format!("comfy-{server}").into(),
            weight: 1,
            max_queue: 2,
            backup: false,
            zone: None,
            task_types: Arc::new([]),
            capabilities: Some(capabilities),
            open: answers,
            reachable,
            prompt_seconds: 0.0,
        }));
    }

    fn client(&mut self) {
        if self.now < STORM {
            self.after(1, 2500, Event::Client);
        }
        let burst = if self.random.permille(100) { 8 } else { 1 };
        let who = self.random.within(0, 4) as u8;
        for _ in 0..burst {
            let job = self.job(who);
            self.feed(Input::Submit(job));
        }
        if self.random.permille(150) && self.jobs > 0 {
            let id = JobId(self.random.within(self.jobs.saturating_sub(12), self.jobs));
            self.feed(Input::Cancel(id));
        }
        if self.random.permille(20) && self.jobs > 0 {
            self.feed(Input::Abandon(JobId(self.jobs - 1)));
        }
    }

    fn job(&mut self, who: u8) -> Arc<Job> {
        let id = JobId(self.jobs);
        self.jobs += 1;
        let node = if self.random.permille(250) { "Special" } else { "Plain" };
        let needs = Needs { nodes: BTreeSet::from([node.into()]), ..Needs::default() };
        let kind = Kind { hash: self.random.within(0, 3), label: "a kind".into() };
        Arc::new(Job {
            id,
            prompt_id: format!("p{}", id.0).into(),
            owner: Owner {
                key: ClientKey::from_bytes([who + 1; 16]),
                caller: "x".into(),
                client_id: None,
            },
            number: id.0 as f64,
            priority: i32::from(self.random.permille(50)),
            needs: Arc::new(needs),
            kind: Some(kind),
            zone: None,
            once: self.random.permille(50),
            created_ms: self.now,
            body: Bytes::new(),
        })
    }

    fn misfortune(&mut self) {
        if self.now >= STORM {
            return;
        }
        self.after(500, 6000, Event::Misfortune);
        let server = self.random.within(0, self.servers.len() as u64) as usize;
        if self.chaos.crashes && self.random.permille(200) {
            return self.crash();
        }
        match self.random.within(0, 4) {
            0 => {
                // Some come back before anybody notices that they were away.
                self.servers[server].die();
                let life = self.servers[server].life;
                let away = if self.random.permille(300) { 50 } else { 15_000 };
                self.after(10, away, Event::Revive { server, life });
                self.after(10, 600, Event::Notice { server });
            }
            1 => {
                self.servers[server].cut = true;
                self.after(10, 600, Event::Notice { server });
                self.after(200, 20_000, Event::Heal { server });
            }
            _ => {
                let ms = self.random.within(100, 4000);
                let foreign = Prompt { job: None, number: 0.0, ms, fails: false };
                if self.servers[server].up {
                    self.servers[server].pending.push(foreign);
                    self.begin(server);
                }
            }
        }
    }

    fn revive(&mut self, server: usize, life: u64) {
        if self.servers[server].life == life {
            self.servers[server].up = true;
            self.after(10, 500, Event::Notice { server });
        }
    }

    /// The gateway is killed and starts again from its journal.
    fn crash(&mut self) {
        self.era += 1;
        self.ledger.crashed();
        let kept = self.journal.crash(&mut self.random);
        let mut actions = Vec::new();
        self.core = restart(self.options.clone(), kept, Moment(self.now), &mut actions);
        self.act(actions);
        self.suspects.clear();
        for server in 0..self.servers.len() {
            self.tell_lane(server);
            self.at(self.now + 5, Event::Read { era: self.era, server });
        }
    }

    /// Everything is made well.
    fn calm_down(&mut self) {
        self.calm = true;
        for server in 0..self.servers.len() {
            if self.servers[server].hung {
                self.servers[server].die();
            }
            self.servers[server].up = true;
            self.servers[server].cut = false;
            self.at(self.now + 500, Event::Notice { server });
        }
    }
}
