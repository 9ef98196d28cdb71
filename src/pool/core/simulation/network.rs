//! The network between the gateway and the servers: what is on its way, late or lost.

use bytes::Bytes;

use super::super::{Action, Input, Known, Outcome, Post, TakenBack, Verdict};
use super::chaos::Bug;
use super::server::Prompt;
use super::world::{Event, Request, World, backend};

impl World {
    pub(super) fn carry_out(&mut self, action: Action) {
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

    pub(super) fn send(&mut self, server: usize, request: Request) {
        let era = self.era;
        let slow = if self.random.permille(20) { 3000 } else { 30 };
        self.after(1, slow, Event::Request { era, server, request });
    }

    pub(super) fn reply(&mut self, era: u64, input: Input) {
        let slow = if self.random.permille(30) && !self.calm { 14_000 } else { 30 };
        self.after(1, slow, Event::Gateway { era, socket: None, input });
    }

    pub(super) fn event(&mut self, server: usize, input: Input) {
        let socket = Some((server, self.servers[server].life));
        let at = (self.now + self.random.within(0, 60)).max(self.wire[server]);
        self.wire[server] = at;
        self.at(at, Event::Gateway { era: self.era, socket, input });
    }

    pub(super) fn request(&mut self, era: u64, server: usize, request: Request) {
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

    pub(super) fn lost_verdict(&self) -> Verdict {
        if self.chaos.bug == Bug::UnknownIsNotSent { Verdict::NotSent } else { Verdict::Unknown }
    }

    pub(super) fn post(&mut self, server: usize, post: &Post) -> Verdict {
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
}
