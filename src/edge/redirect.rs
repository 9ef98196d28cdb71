//! The port that sends people to https (`server.tls.redirect_port`): one answer per connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::Method;
use http::uri::Authority;
use tokio::net::{TcpListener, TcpStream};

use super::conn::Conn;
use super::head::{Head, MAX_HEADERS};
use super::metered::Metered;
use super::{FrontDoor, NEWCOMER, arrival, left, method_of, send_and_linger};
use crate::rejection::{Kind, Rejection};

impl FrontDoor {
    /// Accepts until the gateway stops. `port` is where https is served.
    pub async fn accept_redirected(self: Arc<Self>, listener: TcpListener, port: u16) {
        let mut stopping = self.gateway.stopping.subscribe();
        loop {
            let accepted = tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => self.send_elsewhere(tcp, peer, port),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn send_elsewhere(self: &Arc<Self>, tcp: TcpStream, peer: SocketAddr, port: u16) {
        let Some(place) = arrival::place(&self.gateway, peer) else { return };
        let door = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut tcp = tcp;
            let arrived = arrival::arrive(&door.gateway, &mut tcp, peer, door.proxy_protocol).await;
            let Some((peer, _counted)) = arrived else { return };
            let _place = place;
            let cuts = Arc::clone(&door.gateway.limits.cuts);
            let mut stream = Metered::new(Conn::plain(tcp, peer), cuts);
            let mut buffer = BytesMut::new();
            let leaving = left(door.gateway.stopping.subscribe(), NEWCOMER);
            let head = door.next_head(&mut stream, &mut buffer, leaving).await;
            let Some(length) = head else { return };
            let config = door.gateway.config.load_full();
            let mut table = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let head = Head::parse(&buffer[..length], &mut table, &config.limits);
            let sent = head.and_then(|head| elsewhere(&head, port, &config.server.public_names));
            let answer = match sent {
                Ok(elsewhere) => {
                    let front = &door.gateway.metrics.front;
                    front.answered(method_of(&buffer), elsewhere.status, Duration::ZERO);
                    elsewhere.to_http1()
                }
                Err(refused) => {
                    door.gateway.metrics.refused(method_of(&buffer), &refused);
                    refused.to_http1()
                }
            };
            send_and_linger(&mut stream, &answer).await;
        });
    }
}

/// Where a request is sent.
#[derive(Debug, PartialEq)]
struct Elsewhere {
    status: u16,
    location: String,
}

impl Elsewhere {
    fn to_http1(&self) -> Vec<u8> {
        let Self { status, location } = self;
        let reason = if *status == 301 { "Moved Permanently" } else { "Permanent Redirect" };
        format!(
            "HTTP/1.1 {status} {reason}\r\nlocation: {location}\r\ncontent-length: 0\r\n\
             connection: close\r\n\r\n"
        )
        .into_bytes()
    }
}

/// The same under https. The name is the one that was asked for; where `server.public_names` are
/// known it must be one of them, and goes with the port that is written there. A method that may
/// carry a body must not become a GET on its way (308).
fn elsewhere(head: &Head<'_>, port: u16, public_names: &[String]) -> Result<Elsewhere, Rejection> {
    let bad = |message: &str| Rejection::new(Kind::BadRequest, message);
    let host = head.get("host").and_then(|host| host.parse::<Authority>().ok());
    let host = host.filter(|host| !host.as_str().contains('@') && !host.host().is_empty());
    let host = host.ok_or_else(|| bad("the request names no host to come back to"))?;
    if !head.target.starts_with('/') {
        return Err(bad("the request names no path to come back to"));
    }
    let port = if public_names.is_empty() {
        port
    } else {
        let names = public_names.iter().filter_map(|name| name.parse::<Authority>().ok());
        let mut same = names.filter(|name| name.host().eq_ignore_ascii_case(host.host()));
        let name = same.next().ok_or_else(|| {
            bad("this is not a name of this gateway").cure("server.public_names lists them")
        })?;
        name.port_u16().unwrap_or(443)
    };
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let status = if matches!(head.method, Method::GET | Method::HEAD) { 301 } else { 308 };
    Ok(Elsewhere { status, location: format!("https://{}{port}{}", host.host(), head.target) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn sent(request: &str, port: u16, names: &[&str]) -> Result<Elsewhere, Rejection> {
        let limits = parse("backends: ['http://a:1']").unwrap().limits;
        let mut table = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let head = Head::parse(request.as_bytes(), &mut table, &limits)?;
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        elsewhere(&head, port, &names)
    }

    #[test]
    fn a_request_is_sent_to_the_same_place_under_https() {
        for (line, host, port, names, status, location) in [
            ("GET /a?b=c", "x.test", 443, &[][..], 301, "https://x.test/a?b=c"),
            ("HEAD /", "x.test:80", 8443, &[], 301, "https://x.test:8443/"),
            ("POST /api/prompt", "[::1]:80", 8443, &[], 308, "https://[::1]:8443/api/prompt"),
            ("GET //evil.test/", "x.test", 443, &[], 301, "https://x.test//evil.test/"),
            ("DELETE /", "X.test", 8100, &["a.test", "x.test"], 308, "https://X.test/"),
            ("GET /", "x.test:80", 8100, &["x.test:444"], 301, "https://x.test:444/"),
        ] {
            let request = format!("{line} HTTP/1.1\r\nhost: {host}\r\n\r\n");
            let expected = Elsewhere { status, location: location.into() };
            assert_eq!(sent(&request, port, names), Ok(expected), "{request}");
        }
    }

    #[test]
    fn what_names_no_host_of_ours_is_refused() {
        for (request, names) in [
            ("GET / HTTP/1.1\r\nhost: evil.test\r\n\r\n", &["x.test"][..]),
            ("GET / HTTP/1.1\r\n\r\n", &[]),
            ("GET / HTTP/1.0\r\n\r\n", &[]),
            ("GET / HTTP/1.1\r\nhost: \r\n\r\n", &[]),
            ("GET / HTTP/1.1\r\nhost: a@b\r\n\r\n", &[]),
            ("GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", &[]),
            ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", &[]),
            ("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", &[]),
        ] {
            let refused = sent(request, 443, names).unwrap_err();
            assert_eq!(refused.kind, Kind::BadRequest, "{request}");
        }
    }
}
