//! What becomes of a request whose head was read: proxied, relayed as a WebSocket, answered by
//! ourselves, or refused. Everything that needs the head's borrowed bytes happens here, in one
//! synchronous pass; what goes on owns its data.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::HeaderName;
use http::header::{ACCEPT, AUTHORIZATION, COOKIE, HOST, ORIGIN, REFERER, UPGRADE};

use super::entry::Comer;
use super::envelope::Envelope;
use super::head::{Head, MAX_HEADERS, rewrite};
use crate::admin::session::Visitor;
use crate::affinity::{Seconds, whole_seconds};
use crate::auth::answer::Answer;
use crate::auth::{Question, Told, credential};
use crate::comfy::{origin, routes};
use crate::config::{Affinity, Config};
use crate::gateway::Gateway;
use crate::identity::mark::{self, Mark};
use crate::identity::session::{Session, SigningKey};
use crate::identity::zone::zone_of;
use crate::identity::{Caller, cookie, tab, user};
use crate::pool::route::Route;
use crate::registry;
use crate::rejection::{Kind, Rejection};

/// What becomes of a request.
pub enum Admission {
    /// Pingora proxies it.
    Proxy {
        /// What is known of it.
        envelope: Box<Envelope>,
        /// Its head, if that had to be written anew.
        head: Option<BytesMut>,
        /// How much of its body may stand behind the head in the same read.
        body: Body,
    },
    /// It becomes a WebSocket.
    WebSocket(Box<Envelope>, Handshake),
    /// The gateway's own endpoint under `/lb/`.
    Local {
        /// Who asks.
        visitor: Visitor,
        /// The head, if that had to be written anew.
        head: Option<BytesMut>,
    },
    /// Another address.
    Redirect {
        /// Where to.
        location: String,
        /// Whether a body follows the head, which nobody will read.
        has_body: bool,
    },
    /// An answer at once.
    Refuse(Rejection),
    /// An answer at once that is no refusal of ours.
    Answer(Box<Answer>),
    /// This must be found out first.
    Ask(Box<Question>),
}

/// How long a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Sized(u64),
    /// Until the last chunk.
    Chunked,
}

/// A client's half of a WebSocket handshake.
pub struct Handshake {
    /// Path and query for the backend, without its base path.
    pub target: String,
    /// Header lines to pass on.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The key to be accepted.
    pub key: String,
}

/// Headers that identity and the cross-site check look at.
const LOOKED_AT: [HeaderName; 13] = [
    ACCEPT,
    AUTHORIZATION,
    COOKIE,
    HOST,
    ORIGIN,
    REFERER,
    UPGRADE,
    HeaderName::from_static("sec-fetch-mode"),
    HeaderName::from_static("sec-fetch-site"),
    credential::X_API_KEY,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
];

/// Decides about a whole head, as far as that takes no time; `told` is what was found out about it.
pub fn admit(
    gateway: &Gateway,
    bytes: &[u8],
    peer: SocketAddr,
    tls: bool,
    told: Option<Told>,
) -> Admission {
    let config = gateway.config.load();
    let mut table = [httparse::EMPTY_HEADER; MAX_HEADERS];
    match Head::parse(bytes, &mut table, &config.limits) {
        Ok(head) => Desk { gateway, config: &config, bytes, peer, tls }.decide(&head, told),
        Err(refused) => Admission::Refuse(refused),
    }
}

pub(super) struct Desk<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) config: &'a Config,
    bytes: &'a [u8],
    pub(super) peer: SocketAddr,
    pub(super) tls: bool,
}

/// Who asks, and what of the target and the cookies is left for the backend.
struct Identified<'h> {
    caller: Caller,
    target: &'h str,
    tab: Option<String>,
    by_hand: Option<crate::backend::BackendId>,
    set_cookie: Option<String>,
}

impl Desk<'_> {
    fn decide(&self, head: &Head<'_>, told: Option<Told>) -> Admission {
        let limit = self.config.limits.body_size;
        if head.content_length.is_some_and(|length| length > limit) {
            return Admission::Refuse(body_too_large(limit));
        }
        let headers = head.subset(&LOOKED_AT);
        if origin::is_foreign(&head.method, &headers, &self.config.server.public_names) {
            let message = "another site may not send requests here";
            return Admission::Refuse(
                Rejection::new(Kind::Forbidden, message).cure(
                    "if this is the gateway's own public name, add it to server.public_names",
                ),
            );
        }
        let trusted = self.gateway.trusted.load();
        let address = trusted.client(self.peer.ip(), &headers);
        let now = self.gateway.clock.now();
        let believed = trusted.contains(self.peer.ip());
        let named = match self.user(head, believed) {
            Ok(named) => named,
            Err(refused) => return Admission::Refuse(refused),
        };
        let named = named.as_deref();
        let pass = match self.enter(head, Comer { headers: &headers, address, named, now, told }) {
            Ok(pass) => pass,
            Err(instead) => return instead,
        };
        let mut found = match self.identify(head, &headers, address, now) {
            Ok(found) => found,
            Err(elsewhere) => return elsewhere,
        };
        if let Some(name) = pass.user {
            found.caller = Caller::User(name);
        }
        let forwarded = trusted.forwarded(self.peer.ip(), &headers, self.tls);
        let there = |name: &&str| head.all(name).next().is_some();
        let without: Vec<&str> = pass.hidden.headers(believed).filter(there).collect();
        if found.target == "/lb" || found.target.starts_with("/lb/") {
            let rewritten = !std::ptr::eq(found.target, self.sent_target(head));
            return Admission::Local {
                visitor: Visitor {
                    caller: found.caller,
                    by_hand: found.by_hand,
                    now,
                    address,
                    secure: forwarded.proto == "https",
                },
                // With its credentials: these endpoints have a guard of their own.
                head: rewritten.then(|| rewrite(self.bytes, found.target, &[])),
            };
        }
        let (service, mark) =
            match (self.service(head, found.target), mark_of(head, &headers, found.target)) {
                (Ok(service), Ok(mark)) => (service, mark),
                (Err(refused), _) | (_, Err(refused)) => return Admission::Refuse(refused),
            };
        let zone = self.zone(head, believed, address);
        let pooled = self.gateway.pool().is_some() && service.is_none();
        let envelope = Box::new(Envelope {
            key: found.caller.key(),
            caller: found.caller,
            peer: self.peer,
            address,
            forwarded,
            request_id: self.gateway.request_id(),
            hsts: if self.tls { super::hsts(self.config) } else { None },
            started: Instant::now(),
            now,
            tab: found.tab,
            by_hand: found.by_hand,
            grant: pass.grant,
            set_cookies: pass.cookies.into_iter().chain(found.set_cookie).collect(),
            cookies: cookie::without_ours(&headers),
            is_prompt: !pooled && routes::is_prompt_post(&head.method, found.target),
            route: pooled.then(|| Route::of(&head.method, found.target)),
            zone,
            mark,
            service,
        });
        if head.all("upgrade").next().is_some() && head.has_token("upgrade", "websocket") {
            return websocket(head, found.target, &without, envelope);
        }
        let upgrades = head.all("upgrade").next().is_some();
        let as_sent = std::ptr::eq(found.target, self.sent_target(head));
        let rewritten = upgrades || !as_sent || !without.is_empty();
        Admission::Proxy {
            envelope,
            head: rewritten.then(|| rewrite(self.bytes, found.target, &without)),
            body: if head.chunked {
                Body::Chunked
            } else {
                Body::Sized(head.content_length.unwrap_or(0))
            },
        }
    }

    /// The user that a trusted proxy names.
    fn user(&self, head: &Head<'_>, believed: bool) -> Result<Option<String>, Rejection> {
        match self.config.auth.user_header.as_deref().filter(|_| believed) {
            Some(name) => user::read(head.all(name)),
            None => Ok(None),
        }
    }

    /// The task type of `POST /infer/{task_type}`, which is ours once a service has registered.
    fn service(&self, head: &Head<'_>, target: &str) -> Result<Option<String>, Rejection> {
        if !self.gateway.registry.is_in_use() {
            return Ok(None);
        }
        let Some(task_type) = registry::asked_for(target) else { return Ok(None) };
        if head.method != http::Method::POST {
            let message = format!("{} is not served at this address", head.method);
            return Err(Rejection::new(Kind::MethodNotAllowed, message).allow("POST"));
        }
        mark::read(task_type.as_bytes()).map(Some)
    }

    fn zone(&self, head: &Head<'_>, trusted: bool, address: std::net::IpAddr) -> Option<String> {
        let scheduler = &self.config.scheduler;
        let header = scheduler.zone_header.as_deref().filter(|_| trusted);
        zone_of(address, header.and_then(|name| head.get(name)), scheduler)
    }

    /// The target as it stands in the bytes: equal pointers mean that nothing was taken off.
    fn sent_target<'h>(&self, head: &Head<'h>) -> &'h str {
        let start = self.bytes.iter().position(|&byte| byte == b' ').map_or(0, |at| at + 1);
        let as_sent = self.bytes[start..].as_ptr() == head.target.as_ptr();
        if as_sent { head.target } else { "" }
    }

    fn identify<'h>(
        &self,
        head: &Head<'h>,
        headers: &http::HeaderMap,
        address: std::net::IpAddr,
        now: Seconds,
    ) -> Result<Identified<'h>, Admission> {
        let mut found = Identified {
            caller: Caller::Address(address),
            target: head.target,
            tab: None,
            by_hand: None,
            set_cookie: None,
        };
        match self.config.session.affinity {
            Affinity::Ip => {}
            Affinity::Cookie => self.by_cookie(head, headers, now, &mut found),
            Affinity::Tab => self.by_tab(head, headers, now, &mut found)?,
        }
        Ok(found)
    }

    fn by_cookie(
        &self,
        head: &Head<'_>,
        headers: &http::HeaderMap,
        now: Seconds,
        found: &mut Identified<'_>,
    ) {
        let ttl = whole_seconds(self.config.session.ttl);
        let key = &self.gateway.signing_key;
        let session = cookie::find(headers, key).filter(|session| self.counts(session, now, ttl));
        let path = head.target.split('?').next().unwrap_or_default();
        let navigates = tab::is_page_navigation(&head.method, path, headers);
        let session = match session {
            Some(session) => {
                found.caller = Caller::Session(session.id);
                // On any response: a page in use for longer than the ttl navigates only once.
                session.is_due_for_renewal(now, ttl).then(|| session.renewed(now))
            }
            None if navigates => {
                let session = self
                    .gateway
                    .new_session(now, || SigningKey::new_cookie_session(now, &mut rand::rng()));
                found.caller = Caller::Session(session.id);
                Some(session)
            }
            None => None,
        };
        found.set_cookie = session.map(|session| cookie::set_cookie(&session, key, ttl, self.tls));
    }

    fn by_tab<'h>(
        &self,
        head: &Head<'h>,
        headers: &http::HeaderMap,
        now: Seconds,
        found: &mut Identified<'h>,
    ) -> Result<(), Admission> {
        let key = &self.gateway.signing_key;
        let has_body = head.chunked || head.content_length.unwrap_or(0) > 0;
        let new_tab = |query: Option<&str>| {
            let make = || SigningKey::new_tab_session(now, &mut rand::rng());
            let session = self.gateway.new_session(now, make);
            Admission::Redirect { location: tab::home(&session, key, query), has_body }
        };
        let (path, query) = match head.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (head.target, None),
        };
        let Some(split) = tab::split_tab(head.target) else {
            if tab::is_page_navigation(&head.method, path, headers) {
                return Err(new_tab(query));
            }
            if let Some(name) = tab::referring_tab(headers) {
                self.in_tab(name, now, found);
            }
            return Ok(());
        };
        let navigates = || {
            let path = split.rest.split('?').next().unwrap_or_default();
            tab::is_page_navigation(&head.method, path, headers)
        };
        if split.missing_slash {
            return Err(Admission::Redirect { location: split.with_slash(), has_body });
        }
        // Stale, forged, or a backend that is no more: a page starts anew, anything else goes by
        // address, as if the prefix were not there.
        if !self.in_tab(split.name, now, found) && navigates() {
            return Err(new_tab(None));
        }
        found.tab = Some(split.name.to_owned());
        found.target = split.rest;
        Ok(())
    }

    /// Makes the request one of the tab of this name; false when there is no such tab.
    fn in_tab(&self, name: &str, now: Seconds, found: &mut Identified<'_>) -> bool {
        let view = self.gateway.fleet.view();
        let is_backend = |name: &str| view.named(name).is_some();
        match tab::resolve(name, &self.gateway.signing_key, is_backend) {
            tab::Tab::Backend(name) => {
                found.by_hand = view.named(name).map(|backend| backend.id);
                true
            }
            tab::Tab::Session(session)
                if self.counts(&session, now, whole_seconds(self.config.session.ttl)) =>
            {
                found.caller = Caller::Session(session.id);
                true
            }
            _ => false,
        }
    }

    fn counts(&self, session: &Session, now: Seconds, ttl: u32) -> bool {
        let key = Caller::Session(session.id).key();
        let known = self.gateway.affinity.peek(key, now).is_some();
        session.counts(now, ttl, known)
    }
}

/// The kind of work a request asks for.
fn mark_of(
    head: &Head<'_>,
    headers: &http::HeaderMap,
    target: &str,
) -> Result<Option<Mark>, Rejection> {
    let path = target.split('?').next().unwrap_or_default();
    let navigates = || tab::is_page_navigation(&head.method, path, headers);
    Mark::of(head.all(mark::HEADER).next(), target, navigates)
}

/// The refusal of a body over the limit.
pub fn body_too_large(limit: u64) -> Rejection {
    Rejection::new(Kind::BodyTooLarge, format!("the body is over the limit of {limit} bytes"))
        .cure("limits.body_size raises it")
}

fn websocket(
    head: &Head<'_>,
    target: &str,
    without: &[&str],
    envelope: Box<Envelope>,
) -> Admission {
    let refuse = |message: &str| Admission::Refuse(Rejection::new(Kind::BadRequest, message));
    if head.method != http::Method::GET || !head.has_token("connection", "upgrade") {
        return refuse("a WebSocket starts with GET and Connection: Upgrade");
    }
    if head.chunked || head.content_length.unwrap_or(0) > 0 {
        return refuse("a WebSocket's handshake has no body");
    }
    let Some(key) = head.get("sec-websocket-key").map(str::to_owned) else {
        return refuse("Sec-WebSocket-Key is missing");
    };
    let headers = head
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), header.value.to_vec()))
        .filter(|(name, _)| !without.iter().any(|gone| name.eq_ignore_ascii_case(gone)))
        .collect();
    Admission::WebSocket(envelope, Handshake { target: target.to_owned(), headers, key })
}

/// The response that sends a client elsewhere.
pub fn redirect(location: &str) -> Bytes {
    Bytes::from(format!(
        "HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\
         cache-control: no-store\r\n\r\n"
    ))
}
