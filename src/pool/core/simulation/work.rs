//! What servers do with their prompts.

use super::super::{Input, Outcome};
use super::world::{Event, World, backend};

impl World {
    pub(super) fn begin(&mut self, server: usize) {
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

    pub(super) fn progress(&mut self, server: usize, run: u64) {
        let state = &self.servers[server];
        if state.run != run || state.hung {
            return;
        }
        if let Some(job) = state.running.as_ref().and_then(|prompt| prompt.job) {
            self.event(server, Input::Alive { backend: backend(server), job });
            self.at(self.now + 500, Event::Progress { server, run });
        }
    }

    pub(super) fn done(&mut self, server: usize, run: u64) {
        let state = &self.servers[server];
        if state.run != run || state.hung || !state.up {
            return;
        }
        let fails = state.running.as_ref().is_some_and(|prompt| prompt.fails);
        let error = "out of memory".to_owned();
        self.finish(server, &if fails { Outcome::Failed { error } } else { Outcome::Completed });
    }

    pub(super) fn finish(&mut self, server: usize, outcome: &Outcome) {
        if let Some(job) = self.servers[server].finish(outcome.clone()) {
            self.ledger.finished(job, outcome);
            self.event(server, Input::Finished { backend: backend(server), job });
        }
        self.servers[server].run += 1;
        self.begin(server);
    }
}
