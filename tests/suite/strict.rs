//! No request reaches a backend in another reading than the gateway's, and no reply reaches a
//! client in two.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod replies;
mod requests;
mod table;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::PATIENCE;

/// How long a connection that stays open is listened to behind its answers.
const SILENCE: Duration = Duration::from_millis(150);

/// Sends bytes, in pieces with a moment between them, and reads until the other side closes, or has
/// given so many answers and is silent for a while.
async fn talk(address: SocketAddr, pieces: &[&[u8]], answers: usize) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let sending = async {
        for (nth, piece) in pieces.iter().enumerate() {
            if nth > 0 {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            // Whoever is refused may be cut while it still sends.
            let _ = writer.write_all(piece).await;
        }
        writer
    };
    let reading = async {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let enough = statuses(&String::from_utf8_lossy(&heard)).len() >= answers;
            let wait = if enough { SILENCE } else { PATIENCE };
            match timeout(wait, reader.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(length)) => heard.extend_from_slice(&buffer[..length]),
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&heard).into_owned()
    };
    let (_writer, heard) = tokio::join!(sending, reading);
    heard
}

/// The statuses of the responses in what was heard; final ones only.
fn statuses(heard: &str) -> Vec<u16> {
    heard
        .split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|rest| rest.get(..3)?.parse().ok())
        .filter(|status| *status >= 200 || *status == 101)
        .collect()
}
