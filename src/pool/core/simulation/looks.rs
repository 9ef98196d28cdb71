//! The gateway's looks at the servers: its probe, and its readings of queues.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::{Input, Lane};
use super::chaos::Bug;
use super::server::Prompt;
use super::world::{Event, World, backend};
use crate::clock::Moment;
use crate::inventory::Capabilities;

impl World {
    /// The gateway reads a queue; the reading shows the moment between asking and answer.
    pub(super) fn read(&mut self, era: u64, server: usize) {
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
    pub(super) fn notice(&mut self, server: usize) {
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

    pub(super) fn tell_lane(&mut self, server: usize) {
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
}
