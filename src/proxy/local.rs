//! Answers a request by a service of this process, over Pingora's session: the request's body
//! streams in, the response's body streams out, and the connection stays with Pingora.

use std::io;
use std::pin::pin;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::Body as _;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::sync::mpsc;
use tower_service::Service;

use crate::limits::body::BodyLimit;
use crate::pool::visit::Visit;
use crate::rejection::{Kind, Rejection};

/// What became of a request.
pub(super) enum Answered {
    /// The service's answer was written.
    Done,
    /// The request is at fault, and was not answered.
    Refused(Rejection),
}

/// Serves one request. The service gets `visit` as an extension; `body_limit` bounds the body.
pub(super) async fn answer(
    session: &mut Session,
    service: Router,
    body_limit: BodyLimit,
    visit: Visit,
    cookies: &[String],
) -> Result<Answered> {
    let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(1);
    let body = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    let mut request = match request_of(session, Body::from_stream(body)) {
        Ok(request) => request,
        Err(refused) => return Ok(Answered::Refused(refused)),
    };
    request.extensions_mut().insert(visit);
    if expects_continue(&request) {
        session.write_continue_response().await?;
    }
    let mut service = service.into_service::<Body>();
    let (response, fed) = {
        let mut call = pin!(service.call(request));
        let mut feed = pin!(feed(session, sender, body_limit.bytes));
        let mut fed = None;
        loop {
            tokio::select! {
                biased;
                Ok(response) = &mut call => break (response, fed),
                end = &mut feed, if fed.is_none() => fed = Some(end),
            }
        }
    };
    match fed {
        Some(Fed::TooLarge) => {
            return Ok(Answered::Refused(body_limit.refusal()));
        }
        Some(Fed::Broken(error)) => return Err(error),
        // Answered before its body was read: what is left of it may be long.
        Some(Fed::Whole) | None if !session.is_body_done() => session.set_keepalive(None),
        Some(Fed::Whole) | None => {}
    }
    write(session, response, cookies).await?;
    Ok(Answered::Done)
}

enum Fed {
    Whole,
    TooLarge,
    Broken(Box<Error>),
}

/// Hands the request's body to the service, piece by piece.
async fn feed(session: &mut Session, sender: mpsc::Sender<io::Result<Bytes>>, limit: u64) -> Fed {
    let mut size = 0;
    loop {
        match session.read_request_body().await {
            Ok(Some(piece)) => {
                size += piece.len() as u64;
                if size > limit {
                    let _ = sender.send(Err(io::Error::other("the body is too large"))).await;
                    return Fed::TooLarge;
                }
                if sender.send(Ok(piece)).await.is_err() {
                    // The service wants no more.
                    return Fed::Whole;
                }
            }
            Ok(None) => return Fed::Whole,
            Err(error) => {
                let _ = sender.send(Err(io::Error::other("the body broke off"))).await;
                return Fed::Broken(error);
            }
        }
    }
}

fn request_of(session: &Session, body: Body) -> Result<Request<Body>, Rejection> {
    let head = session.req_header();
    let uri = std::str::from_utf8(head.raw_path()).ok().and_then(|path| path.parse::<Uri>().ok());
    let Some(uri) = uri else {
        return Err(Rejection::new(Kind::BadRequest, "the request's target is malformed"));
    };
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = head.headers.clone();
    Ok(request)
}

fn expects_continue(request: &Request<Body>) -> bool {
    let expect = request.headers().get(header::EXPECT);
    expect.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

async fn write(session: &mut Session, response: Response<Body>, cookies: &[String]) -> Result<()> {
    let (parts, body) = response.into_parts();
    let mut head = ResponseHeader::build(parts.status, Some(parts.headers.len() + 2))?;
    for (name, value) in &parts.headers {
        head.append_header(name.clone(), value.clone())?;
    }
    for cookie in cookies {
        head.append_header(header::SET_COOKIE, cookie)?;
    }
    if let Some(length) = body.size_hint().exact()
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
        && may_have_body(parts.status.as_u16())
    {
        head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length))?;
    }
    let is_head = session.req_header().method == http::Method::HEAD;
    let empty = is_head || body.is_end_stream();
    session.write_response_header(Box::new(head), empty).await?;
    if empty {
        return Ok(());
    }
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| {
            Error::explain(ErrorType::InternalError, format!("an answer broke off: {error}"))
        })?;
        if !piece.is_empty() {
            session.write_response_body(Some(piece), false).await?;
        }
    }
    session.write_response_body(None, true).await
}

fn may_have_body(status: u16) -> bool {
    status >= 200 && status != 204 && status != 304
}
