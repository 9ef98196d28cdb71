//! Clients that submit, cancel and give up.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::super::Input;
use super::world::{Event, STORM, World};
use crate::identity::ClientKey;
use crate::pool::job::{Job, JobId, Needs, Owner};
use crate::tasks::kind::Kind;

impl World {
    pub(super) fn client(&mut self) {
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

    pub(super) fn job(&mut self, who: u8) -> Arc<Job> {
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
}
