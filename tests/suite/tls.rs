//! https: to clients (certificates, versions, HTTP/2) and to servers (whose certificates count).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod backends;
mod certificates;
mod frames;
mod http2;
mod redirect;

use serde_json::{Value, json};

use crate::support::Setup;
use crate::support::tls::{Authority, GATE};

/// A gateway whose only backend sees nothing but what its clients send.
fn quiet(backend: &str) -> Setup {
    Setup::new(&[backend]).with(json!({"health_check": {"push": false}}))
}

/// The same gateway with https under [`GATE`], by a certificate of this authority, and with these
/// keys of `server.tls` besides.
fn https(setup: Setup, authority: &Authority, more: &Value) -> Setup {
    let pair = authority.issue(&[GATE]).write(setup.directory(), "server");
    setup.with(json!({"server": {"tls": pair}})).with(json!({"server": {"tls": more}}))
}
