//! The world: what is in it, and what happens when. Its parts act in modules of their own:
//! the network, the servers' work, the gateway's looks, clients, and misfortune.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Action, Attempt, Core, Input, Options, Post};
use super::chaos::{Bug, Chaos};
use super::checks::Ledger;
use super::gateway::{Journal, options};
use super::random::Random;
use super::server::Server;
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::pool::job::JobId;

/// What is on its way, or will happen.
#[derive(Debug, Clone)]
pub(super) enum Event {
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
pub(super) enum Request {
    Post(Post),
    TakeBack(JobId, Attempt),
    Ask(JobId, Attempt),
    Interrupt(JobId),
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) chaos: Chaos,
    pub(super) options: Options,
    pub(super) core: Core,
    pub(super) journal: Journal,
    pub(super) servers: Vec<Server>,
    /// What the gateway was told of each: (reachable, life).
    pub(super) noticed: Vec<(bool, u64)>,
    pub(super) suspects: BTreeSet<usize>,
    pub(super) ledger: Ledger,
    pub(super) events: BTreeMap<(u64, u64), Event>,
    pub(super) sequence: u64,
    pub(super) now: u64,
    pub(super) era: u64,
    pub(super) jobs: u64,
    pub(super) calm: bool,
    /// `COMFYGATE_SIM_TRACE` is set: everything is shown.
    pub(super) trace: bool,
    /// When the gateway looks at the time next.
    pub(super) tick: u64,
    /// The earliest time an event of a server may arrive: they come in order.
    pub(super) wire: Vec<u64>,
}

/// How long misfortune lasts, and how long the world may take to recover, in milliseconds.
pub(super) const STORM: u64 = 45_000;
const RECOVERY: u64 = 900_000;

pub(super) fn backend(server: usize) -> BackendId {
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
            journal: Journal { skips_sync: chaos.bug == Bug::SkipFsync, ..Journal::default() },
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

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }

    pub(super) fn after(&mut self, from: u64, to: u64, event: Event) {
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
    pub(super) fn feed(&mut self, input: Input) {
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

    pub(super) fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            if self.trace {
                eprintln!("{}   > {}", self.now, super::checks::brief_action(&action));
            }
            self.journal.write(&action);
            self.ledger.note(self.now, &action, &self.core, &self.noticed);
            self.carry_out(action);
        }
        if let Some(at) = self.core.next_tick()
            && (self.tick <= self.now || at.0 < self.tick)
        {
            self.tick = at.0;
            self.at(at.0, Event::Tick);
        }
    }
}
