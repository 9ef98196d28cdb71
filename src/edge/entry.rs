//! The question who may come in, as the front door asks it: [`crate::auth`] judges, and what takes
//! time is found out between two looks at the same head.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;

use super::admit::{Admission, Desk, admit};
use super::head::Head;
use crate::affinity::Seconds;
use crate::auth::forward::Subrequest;
use crate::auth::{Arrival, Entry, Need, Pass, Question, Refusal, Request, Told};
use crate::config::{Affinity, Forward};
use crate::gateway::Gateway;
use crate::identity::tab;

/// Decides about a whole head, however long that takes.
pub(super) async fn admitted(
    gateway: &Gateway,
    bytes: &[u8],
    peer: SocketAddr,
    tls: bool,
) -> Admission {
    match admit(gateway, bytes, peer, tls, None) {
        Admission::Ask(question) => {
            // Apart: a connection at rest is not to hold the room that this takes.
            let told = Box::pin(gateway.auth.answer(*question)).await;
            match admit(gateway, bytes, peer, tls, Some(told)) {
                // Another configuration, of which it knows nothing, came in between.
                Admission::Ask(_) => Admission::Refuse(crate::auth::busy()),
                decided => decided,
            }
        }
        decided => decided,
    }
}

/// Who is at the door.
pub(super) struct Comer<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) address: IpAddr,
    /// The user that a trusted proxy names.
    pub(super) named: Option<&'a str>,
    pub(super) now: Seconds,
    pub(super) told: Option<Told>,
}

impl Desk<'_> {
    /// Lets a request in, or says what becomes of it instead.
    pub(super) fn enter(&self, head: &Head<'_>, comer: Comer<'_>) -> Result<Pass, Admission> {
        let Comer { headers, address, named, now, told } = comer;
        let trusted = self.gateway.trusted.load();
        let forwarded = trusted.forwarded(self.peer.ip(), headers, self.tls);
        let request = Request {
            method: &head.method,
            sent: &head.target,
            target: self.within_tab(&head.target),
            headers,
            public_names: &self.config.server.public_names,
        };
        let secure = forwarded.proto == "https";
        let question = |asked: &Arc<Forward>| {
            let lines = head.headers.iter().map(|header| (header.name, header.value));
            Subrequest::new(asked, &head.method, &head.target, (forwarded.clone(), address), lines)
        };
        let arrival = Arrival { named, now, told, secure, question: &question };
        match self.gateway.auth.judge(&request, arrival) {
            Entry::In(pass) => Ok(pass),
            Entry::Ask(need) => Err(Admission::Ask(Box::new(match need {
                Need::Password(user, password) => Question::Password { user, password, address },
                Need::Forward(asked) => Question::Forward(Box::new(question(&asked))),
            }))),
            Entry::Out(Refusal::Rejected(refused)) => Err(Admission::Refuse(refused)),
            Entry::Out(Refusal::Answer(answer)) => Err(Admission::Answer(answer)),
        }
    }

    /// What the target is behind a tab's prefix, where tabs are told by it.
    fn within_tab<'h>(&self, target: &'h str) -> &'h str {
        match self.config.session.affinity {
            Affinity::Tab => match tab::split_tab(target) {
                Some(split) if !split.missing_slash => split.rest,
                _ => target,
            },
            Affinity::Ip | Affinity::Cookie => target,
        }
    }
}
