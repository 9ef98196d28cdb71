//! What happens to servers, to the network and to the gateway.

use super::super::{ARRIVED, Input};
use super::chaos::Bug;
use super::gateway::restart;
use super::server::{Prompt, Server};
use super::world::{Event, Request, STORM, World, backend};
use crate::clock::Moment;
use crate::pool::job::JobId;

impl World {
    pub(super) fn misfortune(&mut self) {
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

    pub(super) fn revive(&mut self, server: usize, life: u64) {
        if self.servers[server].life == life {
            self.servers[server].up = true;
            self.after(10, 500, Event::Notice { server });
        }
    }

    /// The gateway is killed and starts again from its journal.
    pub(super) fn crash(&mut self) {
        self.era += 1;
        self.break_off();
        let kept = self.journal.crash(&mut self.random);
        self.ledger.crashed(self.now, &kept, &self.copies());
        let mut actions = Vec::new();
        self.core = restart(self.options.clone(), kept, Moment(self.now), &mut actions);
        self.act(actions);
        self.suspects.clear();
        for server in 0..self.servers.len() {
            self.tell_lane(server);
            self.at(self.now + 5, Event::Read { era: self.era, server });
            if self.chaos.bug == Bug::BlindRestart {
                let (backend, asked) = (backend(server), Moment(self.now).plus(ARRIVED));
                let (running, pending) = (Vec::new(), Vec::new());
                self.feed(Input::Queue { backend, running, pending, foreign: 0, asked });
            }
        }
    }

    /// What a dead gateway had sent arrives soon or never.
    fn break_off(&mut self) {
        let sent = self.events.iter().filter(|(_, event)| matches!(event, Event::Request { .. }));
        let sent: Vec<_> = sent.map(|(at, _)| *at).collect();
        for at in sent {
            let Some(request) = self.events.remove(&at) else { continue };
            if self.random.permille(500) {
                self.after(1, 300, request);
            }
        }
    }

    /// Where jobs are, or will be when what is on its way has arrived.
    fn copies(&self) -> Vec<(usize, JobId)> {
        let here = |(at, server): (usize, &Server)| {
            let prompts = server.running.iter().chain(&server.pending);
            prompts.filter_map(|prompt| prompt.job).map(|id| (at, id)).collect::<Vec<_>>()
        };
        let sent = self.events.values().filter_map(|event| match event {
            Event::Request { server, request: Request::Post(post), .. } => {
                Some((*server, post.job.id))
            }
            _ => None,
        });
        self.servers.iter().enumerate().flat_map(here).chain(sent).collect()
    }

    /// Everything is made well.
    pub(super) fn calm_down(&mut self) {
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
