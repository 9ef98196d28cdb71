//! How much one client, and all together, may have of the gateway (`limits`).
//!
//! | what | over it | counted by |
//! |---|---|---|
//! | connections in all, per client, new ones per second | the connection is closed | [`Cut`] |
//! | requests per second | 429 | `rate_limited` |
//! | WebSockets, uploads per client | 429 | `rate_limited` |
//! | uploads in all, bytes of prompts held | 503 | `overloaded` |
//!
//! A client is an address behind trusted proxies, IPv6 by its /64. Trusted proxies themselves are
//! no clients: they speak for many. The defaults leave room for an office behind one address: a
//! page is about 65 requests over six connections and a WebSocket or two, so that 100 people who
//! come at nine o'clock are 6500 requests and 800 connections within a minute or so; 5000 requests
//! and 1000 connections may come at once, and 30,000 and 6000 more within that minute.
//!
//! [`body`] says how long a body may be, [`rate`] is the token buckets, [`tally`] what is open, [`memory`] the bytes of prompts,
//! [`quiet`] keeps refusals from filling the log. What a connection may do once it is open, and how
//! slowly, is `edge`'s to watch.

pub mod body;
pub mod cut;
pub mod memory;
pub mod quiet;
pub mod rate;
pub mod tally;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::identity::ClientKey;
use crate::rejection::{Kind, Rejection};
pub use cut::{Cut, Cuts};
use quiet::Quiet;
use rate::{Rate, Rates};
use tally::{Held, Tally};

/// Seconds' worth that may come at once.
const BURST: u32 = 10;

/// What clients have, and how fast they came by it.
#[derive(Debug)]
pub struct Limiter {
    start: Instant,
    connections: Arc<Tally>,
    websockets: Arc<Tally>,
    uploads: Arc<Tally>,
    arrivals: Rates,
    requests: Rates,
    /// Connections that were cut, by why.
    pub cuts: Arc<Cuts>,
    /// Lets a line about refusals through now and then.
    pub quiet: Quiet,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            connections: Arc::default(),
            websockets: Arc::default(),
            uploads: Arc::default(),
            arrivals: Rates::default(),
            requests: Rates::default(),
            cuts: Arc::default(),
            quiet: Quiet::default(),
        }
    }
}

impl Limiter {
    /// Counts a new connection of a client, while the result lives.
    pub fn connection(&self, client: ClientKey, limits: &Limits) -> Result<Held, Cut> {
        let rate = Rate::new(limits.per_client.connections_per_second, BURST);
        if self.arrivals.take(client, rate, self.start.elapsed()).is_err() {
            return Err(Cut::ConnectionRate);
        }
        let most = limits.per_client.connections;
        self.connections.enter(client, most).ok_or(Cut::ClientConnections)
    }

    /// Takes a request of a client, or says when it may come again.
    pub fn request(&self, client: ClientKey, limits: &Limits) -> Result<(), Rejection> {
        let most = limits.per_client.requests_per_second;
        let taken = self.requests.take(client, Rate::new(most, BURST), self.start.elapsed());
        taken.map_err(|wait| {
            let message = format!("only {most} requests may come in a second");
            slower(message, "limits.per_client.requests_per_second raises it", wait)
        })
    }

    /// Counts a WebSocket of a client, while the result lives.
    pub fn websocket(&self, client: ClientKey, limits: &Limits) -> Result<Held, Rejection> {
        let most = limits.per_client.websockets;
        self.websockets.enter(client, most).ok_or_else(|| {
            let message = format!("{most} WebSockets of yours are open, and no more may be");
            let cure = "close some pages; limits.per_client.websockets raises it";
            slower(message, cure, Duration::from_secs(10))
        })
    }

    /// Counts an upload, of a client if there is one, while the result lives.
    pub fn upload(&self, client: Option<ClientKey>, limits: &Limits) -> Result<Upload, Rejection> {
        let everyone = self.uploads.enter(EVERYONE, limits.uploads).ok_or_else(|| {
            let message = format!("{} uploads are under way, and no more may be", limits.uploads);
            Rejection::new(Kind::Overloaded, message)
                .cure("try again in a moment; limits.uploads raises it")
                .retry_after(1)
        })?;
        let most = limits.per_client.uploads;
        let own = match client {
            None => None,
            Some(client) => Some(self.uploads.enter(client, most).ok_or_else(|| {
                let message = format!("{most} uploads of yours are under way, and no more may be");
                let cure = "limits.per_client.uploads raises it";
                slower(message, cure, Duration::from_secs(1))
            })?),
        };
        Ok(Upload { _everyone: everyone, _own: own })
    }
}

/// Counts an upload while it lives.
#[derive(Debug)]
pub struct Upload {
    _everyone: Held,
    _own: Option<Held>,
}

/// No client has this key.
const EVERYONE: ClientKey = ClientKey::NOBODY;

fn slower(message: String, cure: &str, wait: Duration) -> Rejection {
    let seconds = wait.as_secs_f64().ceil() as u32;
    Rejection::new(Kind::RateLimited, message).cure(cure).retry_after(seconds.clamp(1, 60))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn limits(text: &str) -> Limits {
        parse(&format!("backends: ['http://a:1']\nlimits: {text}")).unwrap().limits
    }

    fn client(n: u32) -> ClientKey {
        ClientKey::of_address(std::net::Ipv4Addr::from_bits(n).into())
    }

    #[test]
    fn the_defaults_let_an_office_load_its_pages_at_once() {
        let (limiter, limits) = (Limiter::default(), limits("{}"));
        let connections: Vec<_> =
            (0..800).map(|_| limiter.connection(client(1), &limits)).collect();
        assert!(connections.iter().all(Result::is_ok));
        let sockets: Vec<_> = (0..400).map(|_| limiter.websocket(client(1), &limits)).collect();
        assert!(sockets.iter().all(Result::is_ok));
        assert!((0..70 * 65).all(|_| limiter.request(client(1), &limits).is_ok()));
    }

    #[test]
    fn what_is_over_comes_back_when_it_ends() {
        let limiter = Limiter::default();
        let few = limits("{uploads: 3, per_client: {connections: 1, websockets: 1, uploads: 2}}");
        let held = limiter.connection(client(1), &few).unwrap();
        assert_eq!(limiter.connection(client(1), &few).unwrap_err(), Cut::ClientConnections);
        assert!(limiter.connection(client(2), &few).is_ok(), "another client");
        drop(held);
        assert!(limiter.connection(client(1), &few).is_ok());

        let uploads = [client(1), client(1)].map(|c| limiter.upload(Some(c), &few).unwrap());
        let refused = limiter.upload(Some(client(1)), &few).unwrap_err();
        assert_eq!((refused.kind, refused.retry_after), (Kind::RateLimited, Some(1)));
        let third = limiter.upload(Some(client(2)), &few).unwrap();
        assert_eq!(limiter.upload(Some(client(3)), &few).unwrap_err().kind, Kind::Overloaded);
        assert_eq!(limiter.upload(None, &few).unwrap_err().kind, Kind::Overloaded);
        drop((uploads, third));
        assert!(limiter.upload(Some(client(1)), &few).is_ok());
    }

    #[test]
    fn a_flood_of_requests_is_told_when_to_come_back() {
        let (limiter, few) = (Limiter::default(), limits("{per_client: {requests_per_second: 2}}"));
        let refused = (0..30).find_map(|_| limiter.request(client(1), &few).err()).unwrap();
        assert_eq!((refused.kind, refused.retry_after), (Kind::RateLimited, Some(1)));
        assert!(limiter.request(client(2), &few).is_ok(), "another client");
        let none = limits("{per_client: {requests_per_second: 0}}");
        assert!((0..30).all(|_| limiter.request(client(3), &none).is_ok()));
    }
}
