//! A backend that does with each request what a test says, and remembers them byte for byte.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::http::read_until;

const IDLE_QUEUE: &str = r#"{"queue_running": [], "queue_pending": []}"#;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    head: String,
    /// The how-manieth it is on its connection, from 1.
    pub(crate) nth: usize,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or("")
    }

    pub(crate) fn target(&self) -> &str {
        self.line().split(' ').nth(1).unwrap_or("")
    }

    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let named = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.trim()).collect()
    }

    /// The only value of a header; none is empty.
    pub(crate) fn header(&self, name: &str) -> &str {
        let all = self.all(name);
        assert!(all.len() < 2, "{name} more than once: {}", self.head);
        all.first().unwrap_or(&"")
    }
}

/// What a fake backend does with a request.
pub(crate) enum Act {
    /// Answers 200 with this text.
    Reply(&'static str),
    /// Answers with these bytes.
    Raw(String),
    /// The same, and closes.
    Last(String),
    /// Resets the connection, without a byte.
    Reset,
    /// Begins a response and resets the connection in the middle of its body.
    ResetInBody,
}

/// A listener with a mind of its own. Polls of its queue are answered and not remembered.
pub(crate) struct Fake {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    begun: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start(act: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let begun = Arc::new(AtomicUsize::new(0));
        let (remember, act, heads) = (Arc::clone(&seen), Arc::new(act), Arc::clone(&begun));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (remember, act) = (Arc::clone(&remember), Arc::clone(&act));
                let heads = Arc::clone(&heads);
                tokio::spawn(async move { serve(stream, &heads, &remember, act.as_ref()).await });
            }
        });
        Self { address, seen, begun, task }
    }

    /// One that answers everything with a text.
    pub(crate) async fn replying(text: &'static str) -> Self {
        Self::start(move |_| Act::Reply(text)).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many POSTs have begun, whether their bodies have come or not.
    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Relaxed)
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().clone()
    }

    /// The only request so far.
    pub(crate) fn only(&self) -> Request {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    begun: &AtomicUsize,
    seen: &Mutex<Vec<Request>>,
    act: &(dyn Fn(&Request) -> Act + Send + Sync),
) -> io::Result<()> {
    for nth in 1.. {
        let head = read_until(&mut stream, b"\r\n\r\n").await?;
        let mut request = Request { head, nth, body: Vec::new() };
        begun.fetch_add(usize::from(request.line().starts_with("POST")), Relaxed);
        let length = request.header("content-length").parse().unwrap_or(0);
        if request.header("transfer-encoding") == "chunked" {
            request.body = read_until(&mut stream, b"0\r\n\r\n").await?.into_bytes();
        } else {
            request.body = vec![0; length];
            stream.read_exact(&mut request.body).await?;
        }
        if request.target().ends_with("/api/queue") {
            stream.write_all(&ok(IDLE_QUEUE)).await?;
            continue;
        }
        // What the gateway asks for its own sake.
        if request.header("user-agent").starts_with("comfygate/") {
            stream.write_all(&ok("{}")).await?;
            continue;
        }
        let what = act(&request);
        seen.lock().push(request);
        match what {
            Act::Reply(text) => stream.write_all(&ok(text)).await?,
            Act::Raw(bytes) => stream.write_all(bytes.as_bytes()).await?,
            Act::Last(bytes) => {
                stream.write_all(bytes.as_bytes()).await?;
                return stream.shutdown().await;
            }
            Act::Reset => return stream.set_zero_linger(),
            Act::ResetInBody => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf").await?;
                // The reset would overtake what the other side has not read yet.
                let mut nothing = [0; 1];
                let wait = stream.read(&mut nothing);
                let _ = tokio::time::timeout(std::time::Duration::from_millis(200), wait).await;
                return stream.set_zero_linger();
            }
        }
    }
    Ok(())
}

fn ok(text: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
}
