//! The only [`ProxyHttp`]: Pingora's phases in their order, each a few lines.
//!
//! `journey` is what is known of a request on its way, `failing` what becomes of one whose
//! connection failed, `local` answers one without any backend.

mod failing;
mod journey;
mod local;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONNECTION, SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::{HeaderName, HeaderValue};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::access::{self, Record};
use crate::comfy::class::Class;
use crate::edge::admit::body_too_large;
use crate::edge::envelope::{DROPPED, Envelope};
use crate::gateway::{Destination, Gateway};
use crate::identity::tab::prefix_location;
use crate::logging::{TARGET, is_verbose};
use crate::outlier::Evidence;
use crate::pool::route::Route;
use crate::pool::visit::Visit;
use crate::pool::way::Way;
use crate::rejection::{Kind, Rejection, full};
use crate::retry::Failure;
use crate::tasks::intake::Intake;
use crate::upstream;
use failing::{Sent, refusal_of};
use journey::{Journey, NextTry, reason};
use local::Answered;

/// Proxies HTTP requests that the front door let in.
pub struct Proxy {
    gateway: Arc<Gateway>,
}

impl Proxy {
    /// A proxy of a gateway.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Journey;

    fn new_ctx(&self) -> Journey {
        Journey { _active: Some(self.gateway.budget.request()), ..Journey::default() }
    }

    /// The front door's envelope comes along as the connection's context.
    fn on_connection_reuse(
        &self,
        _session: &mut Session,
        journey: &mut Journey,
        context: Box<dyn std::any::Any + Send + Sync>,
    ) {
        journey.envelope = context.downcast::<Envelope>().ok();
    }

    /// Finds the backend, or says why there is none. In pool mode most requests are answered here.
    async fn request_filter(&self, session: &mut Session, journey: &mut Journey) -> Result<bool> {
        let Some(envelope) = journey.envelope.as_deref() else {
            return Error::e_explain(ErrorType::InternalError, "a request without an envelope");
        };
        let request = session.req_header();
        let target = String::from_utf8_lossy(request.raw_path());
        journey.class = Class::of(&request.method, &target);
        let way = match (self.gateway.pool(), envelope.route) {
            (Some(pool), Some(route)) => pool.way(route, &request.method, &target, envelope).await,
            _ => Way::Home,
        };
        let destination = match way {
            Way::Here(service) => return self.answer_here(session, journey, service).await,
            Way::Refuse(refused) => return Err(journey.refuse(refused)),
            Way::To(backend, asked) => {
                journey.is_bound = true;
                Ok(Destination { backend, sending: None, service_path: None, asked })
            }
            Way::Home => self.gateway.destination(envelope, &[]),
        };
        if let (Some(pool), Some(Route::Server)) = (self.gateway.pool(), envelope.route)
            && let Ok(destination) = &destination
            && !journey.is_bound
        {
            let request = session.req_header();
            let target = String::from_utf8_lossy(request.raw_path());
            pool.goes_home(&request.method, &target, envelope.key, destination.backend.id);
        }
        match destination {
            Ok(destination) => {
                log_request(session, envelope, &destination);
                journey.intake = Intake::of(&self.gateway, envelope);
                journey.destination = Some(destination);
                Ok(false)
            }
            Err(refused) => Err(journey.refuse(refused)),
        }
    }

    /// Names the peer; after a failure the next best one.
    async fn upstream_peer(
        &self,
        _session: &mut Session,
        journey: &mut Journey,
    ) -> Result<Box<HttpPeer>> {
        if let Some(next_try) = journey.next_try.take() {
            self.make_room(journey).await?;
            if next_try == NextTry::Elsewhere {
                self.turn_elsewhere(journey)?;
            }
        }
        // What must not be sent twice gets a connection of its own; services are posted to only.
        let alone = journey.envelope.as_deref();
        let alone = alone.is_some_and(|e| e.is_prompt || e.service.is_some());
        let alone = alone || journey.asked_again;
        let config = self.gateway.config.load();
        journey.connection = None;
        if let Some(destination) = &journey.destination {
            let backend = &destination.backend;
            let connection = backend.live.connections.take(backend.spec.max_connections);
            if connection.is_none() {
                return Err(journey.refuse(full()));
            }
            journey.connection = connection;
        }
        let peer = journey
            .destination
            .as_ref()
            .and_then(|to| upstream::peer(&to.backend, alone, journey.class, &config.timeouts));
        match peer {
            Some(peer) => Ok(peer),
            None => Err(journey.refuse(
                Rejection::new(Kind::NoBackend, "no ComfyUI server is available at the moment")
                    .retry_after(1),
            )),
        }
    }

    /// Notes when the connection stood.
    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&pingora_core::protocols::Digest>,
        journey: &mut Journey,
    ) -> Result<()> {
        journey.connected = Some(Instant::now());
        Ok(())
    }

    /// Writes the headers that the backend is to see.
    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        journey: &mut Journey,
    ) -> Result<()> {
        let (Some(envelope), Some(destination)) = (&journey.envelope, &journey.destination) else {
            return Ok(());
        };
        let backend = &destination.backend;
        for name in DROPPED {
            request.remove_header(name);
        }
        if envelope.is_prompt {
            // A few bytes that are read in passing, see `Intake`.
            request.remove_header("accept-encoding");
        }
        if let Some(cookies) = &envelope.cookies {
            request.remove_header("cookie");
            for cookie in cookies {
                request.append_header("cookie", cookie)?;
            }
        }
        for (name, value) in envelope.outgoing(backend) {
            request.insert_header(name, value)?;
        }
        if let Some(target) = destination.target(request.raw_path()) {
            request.set_raw_path(&target)?;
        }
        Ok(())
    }

    /// Bounds bodies of unknown length.
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        journey: &mut Journey,
    ) -> Result<()> {
        journey.body_bytes += body.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let limit = self.gateway.config.load().limits.body_size;
        if journey.body_bytes > limit {
            return Err(journey.refuse(body_too_large(limit)));
        }
        if let (Some(intake), Some(piece)) = (&mut journey.intake, body) {
            intake.body(piece);
        }
        Ok(())
    }

    /// Takes the backend's verdict on a prompt, and names the backend to the client.
    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        journey: &mut Journey,
    ) -> Result<()> {
        // `100 Continue` comes by here too, and is no verdict on anything.
        if response.status.is_informational() {
            return Ok(());
        }
        journey.answered = Some(Instant::now());
        journey.retry = None;
        if *self.gateway.stopping.borrow() {
            // The connection ends after this answer, and the client has to know.
            session.set_keepalive(None);
        }
        strip_hop_by_hop(response);
        response.remove_header("x-comfygate-backend");
        journey.intake = journey.intake.take().filter(|_| response.status.is_success());
        let Some(destination) = &mut journey.destination else { return Ok(()) };
        if destination.service_path.is_some() {
            self.gateway.registry.answered(destination.backend.id);
        } else if let Some(seen) = Evidence::of_status(journey.class, response.status.as_u16()) {
            self.gateway.warden.saw(&destination.backend, seen);
        }
        if let Some(sending) = destination.sending.take()
            && response.status.is_success()
        {
            sending.accepted();
        }
        if self.gateway.config.load().server.backend_header {
            response.insert_header("x-comfygate-backend", destination.backend.name())?;
        }
        let Some(envelope) = &journey.envelope else { return Ok(()) };
        if let Some(hsts) = &envelope.hsts {
            response.insert_header(STRICT_TRANSPORT_SECURITY, hsts.clone())?;
        }
        for cookie in &envelope.set_cookies {
            response.append_header("set-cookie", cookie)?;
        }
        if let Some(tab) = &envelope.tab {
            let location = response.headers.get("location").and_then(|v| v.to_str().ok());
            if let Some(location) = location.and_then(|location| prefix_location(location, tab)) {
                response.insert_header("location", location)?;
            }
        }
        Ok(())
    }

    /// Reads the id under which a prompt was accepted.
    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        journey: &mut Journey,
    ) -> Result<Option<Duration>> {
        if let (Some(intake), Some(piece)) = (&mut journey.intake, body)
            && let (Some(envelope), Some(destination)) = (&journey.envelope, &journey.destination)
        {
            intake.answered(&self.gateway, envelope, &destination.backend, piece);
        }
        Ok(None)
    }

    /// No connection came about: nothing was sent, so any request may go elsewhere.
    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        journey: &mut Journey,
        error: Box<Error>,
    ) -> Box<Error> {
        self.failed(session, journey, error, Failure::Connect, Sent::Nothing)
    }

    /// The connection failed later.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        journey: &mut Journey,
        reused: bool,
    ) -> Box<Error> {
        if *error.esource() != ErrorSource::Upstream {
            let mut error = error;
            error.set_retry(false);
            return error;
        }
        let timed_out = matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
        let failure = if timed_out { Failure::Timeout } else { Failure::Reset };
        let sent = if reused { Sent::OnReused } else { Sent::OnFresh };
        self.failed(session, journey, error, failure, sent)
    }

    /// Answers what could not be proxied.
    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        journey: &mut Journey,
    ) -> FailToProxy {
        let asked = match journey.envelope.as_deref().and_then(|envelope| envelope.service.as_ref())
        {
            Some(_) => "service",
            None => "ComfyUI server",
        };
        let refused = journey.refused.take().or_else(|| refusal_of(error, asked));
        let Some(refused) = refused else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let error_code = refused.kind.status().as_u16();
        // Requests that were refused before a backend was asked leave the connection clean; any
        // other answer must say that the connection ends, or the client's next request is lost.
        let clean = journey.destination.is_none() && session.is_body_done();
        if !clean {
            session.set_keepalive(None);
        }
        if session.response_written().is_none() {
            let hsts = journey.envelope.as_deref().and_then(|envelope| envelope.hsts.clone());
            let _ = respond(session, &refused, hsts).await;
            self.gateway.metrics.rejected(refused.kind);
        }
        journey.refused = Some(refused);
        FailToProxy { error_code, can_reuse_downstream: clean }
    }

    fn suppress_error_log(&self, _session: &Session, _journey: &Journey, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _journey: &Journey,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    /// Counts and logs the request.
    async fn logging(&self, session: &mut Session, error: Option<&Error>, journey: &mut Journey) {
        self.count(session, journey);
        let Some(envelope) = journey.envelope.as_deref() else { return };
        if let (Some(destination), Some(answered)) = (&journey.destination, journey.answered) {
            destination.backend.live.answered_in(answered - envelope.started);
        }
        if !access::is_on() {
            return;
        }
        let since = |then: Option<Instant>| then.map(|then| then - envelope.started);
        access::write(&Record {
            method: session.req_header().method.as_str(),
            target: &String::from_utf8_lossy(session.req_header().raw_path()),
            status: session.response_written().map_or(0, |r| r.status.as_u16()),
            bytes: session.body_bytes_sent() as u64,
            connect: since(journey.connected),
            first_byte: since(journey.answered),
            total: envelope.started.elapsed(),
            backend: journey.backend_name().unwrap_or("-"),
            client: envelope.address,
            request_id: &envelope.request_id,
            retries: journey.tried.len() as u32,
            reason: reason(journey, error),
        });
    }
}

impl Proxy {
    /// Has a service of this process answer.
    async fn answer_here(
        &self,
        session: &mut Session,
        journey: &mut Journey,
        service: axum::Router,
    ) -> Result<bool> {
        let Some(envelope) = journey.envelope.as_deref() else { return Ok(false) };
        if *self.gateway.stopping.borrow() {
            session.set_keepalive(None);
        }
        let limit = self.gateway.config.load().limits.body_size;
        let visit = Visit::of(envelope);
        let cookies = envelope.set_cookies.iter().filter_map(|text| text.parse().ok());
        let hsts = envelope.hsts.clone().map(|value| (STRICT_TRANSPORT_SECURITY, value));
        let more = cookies.map(|value| (SET_COOKIE, value)).chain(hsts).collect();
        let answered = local::answer(session, service, limit, visit, more).await?;
        match answered {
            Answered::Done => Ok(true),
            Answered::Refused(refused) => Err(journey.refuse(refused)),
        }
    }

    /// Counts the request if an answer to it began.
    fn count(&self, session: &Session, journey: &Journey) {
        let Some(response) = session.response_written() else { return };
        let destination = journey.destination.as_ref();
        let traffic =
            destination.map_or(&self.gateway.metrics.front, |to| &to.backend.live.traffic);
        let took = journey.envelope.as_ref().map(|envelope| envelope.started.elapsed());
        let method = session.req_header().method.as_str();
        traffic.answered(method, response.status.as_u16(), took.unwrap_or_default());
    }
}

async fn respond(
    session: &mut Session,
    refused: &Rejection,
    hsts: Option<HeaderValue>,
) -> Result<()> {
    let mut response = ResponseHeader::build(refused.kind.status(), Some(6))?;
    for (name, value) in refused.headers() {
        response.insert_header(name, value)?;
    }
    if let Some(hsts) = hsts {
        response.insert_header(STRICT_TRANSPORT_SECURITY, hsts)?;
    }
    session.write_response_header(Box::new(response), false).await?;
    session.write_response_body(Some(refused.body()), true).await
}

fn log_request(session: &Session, envelope: &Envelope, destination: &Destination) {
    if is_verbose() {
        let request = session.req_header();
        log::info!(
            target: TARGET,
            "{} {} → {} [client: {}]",
            request.method,
            String::from_utf8_lossy(request.raw_path()),
            destination.backend.spec.endpoint.url(),
            envelope.address
        );
    }
}

/// Takes off what the backend says about its connection to us (RFC 9110, section 7.6.1). Pingora
/// does that for requests, and writes `Connection` and the framing of responses itself.
fn strip_hop_by_hop(response: &mut ResponseHeader) {
    const KEPT: [&str; 5] =
        ["close", "keep-alive", "upgrade", "content-length", "transfer-encoding"];
    let named: Vec<HeaderName> = response
        .headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !KEPT.contains(&name.as_str()))
        .collect();
    for name in &named {
        response.remove_header(name);
    }
    response.remove_header("keep-alive");
    response.remove_header("proxy-connection");
}
