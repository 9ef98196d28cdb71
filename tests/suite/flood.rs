//! Attacks that hold connections, and crowds that only look like one: who is honest is served all
//! the while, and nothing is left when it is over.
//!
//! Small here; with `COMFYGATE_TEST_FULL=1` as large as promised, best with an optimised binary
//! (`COMFYGATE_TEST_BINARY`). The figures are printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod crowd;
mod slow;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::PATIENCE;
use crate::support::http::{self, read_reply};

/// A connection from one of this machine's addresses.
async fn connect(to: SocketAddr, from: [u8; 4]) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((IpAddr::V4(Ipv4Addr::from(from)), 0).into())?;
    timeout(PATIENCE, socket.connect(to)).await.expect("a connection in time")
}

/// An honest client on one connection: asks again and again, and says how long each answer took.
/// Whatever is no 200 ends the test.
async fn ask(
    to: SocketAddr,
    from: [u8; 4],
    path: &str,
    pause: Duration,
    long: Duration,
) -> Vec<Duration> {
    let request = http::get(path, &[]);
    let mut stream = connect(to, from).await.unwrap();
    let (start, mut took) = (Instant::now(), Vec::new());
    while start.elapsed() < long {
        let asked = Instant::now();
        stream.write_all(&request).await.unwrap();
        let reply = timeout(PATIENCE, read_reply(&mut stream)).await.expect("an answer in time");
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        took.push(asked.elapsed());
        if reply.header("connection") == Some("close") {
            stream = connect(to, from).await.unwrap();
        }
        tokio::time::sleep(pause).await;
    }
    took
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}
