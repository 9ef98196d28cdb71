//! Who asks: people who look at queue and history, people who paint, and some on bad lines.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::{PROMPT_EVERY, PROMPT_SECONDS};
use crate::support::{Fault, FaultProxy, Gateway, PATIENCE, client, http, socket};

/// Clients that only look.
const LOOKERS: usize = 20;
/// Clients that paint.
const PAINTERS: usize = 6;
/// Clients on lines that break; what becomes of their requests does not count.
const RUDE: usize = 3;
/// What lookers ask for.
const PATHS: [&str; 6] =
    ["/queue", "/history?max_items=4", "/system_stats", "/prompt", "/object_info", "/settings"];
/// Accepted prompts that have not ended after so long are lost.
const LAST_PROMPT: Duration = Duration::from_mins(3);

/// What they have seen together.
#[derive(Default)]
pub(crate) struct Seen {
    stop: AtomicBool,
    served: AtomicU64,
    cut: AtomicU64,
    prompts: AtomicU64,
    failed: Mutex<Vec<String>>,
    /// Accepted prompts that have not ended yet, and who waits for them (pool mode).
    open: Mutex<HashMap<String, usize>>,
}

impl Seen {
    /// Answers of 200.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    /// Answers that had begun when their backend went.
    pub(crate) fn cut(&self) -> u64 {
        self.cut.load(Relaxed)
    }

    /// Prompts that were accepted.
    pub(crate) fn prompts(&self) -> u64 {
        self.prompts.load(Relaxed)
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }

    fn fail(&self, what: String) {
        let mut failed = self.failed.lock();
        println!("FAILED: {what}");
        failed.push(what);
    }
}

/// Everybody.
pub(crate) struct Crowd {
    asking: Vec<JoinHandle<()>>,
    listening: Vec<JoinHandle<()>>,
    _rude_line: FaultProxy,
}

/// Has everybody begin.
pub(crate) async fn start(gateway: &Gateway, mode: &str, seed: u64, seen: &Arc<Seen>) -> Crowd {
    let (data, http) = (gateway.data, gateway.http.clone());
    let mut asking = Vec::new();
    for n in 0..LOOKERS {
        let random = StdRng::seed_from_u64(seed + n as u64);
        asking.push(tokio::spawn(look(http.clone(), data, n, random, Arc::clone(seen))));
    }
    let is_pool = mode == "pool";
    let mut listening = Vec::new();
    for n in 0..PAINTERS {
        listening.push(tokio::spawn(listen(data, n, Arc::clone(seen))));
        asking.push(tokio::spawn(paint(http.clone(), data, n, is_pool, Arc::clone(seen))));
    }
    let rude_line = FaultProxy::to(data).await;
    let drawn = Mutex::new(StdRng::seed_from_u64(seed ^ 0xbad));
    rude_line.plan(move |_| {
        let mut random = drawn.lock();
        let at = random.random_range(0..4000);
        let slow = Duration::from_millis(random.random_range(1..20));
        let mut draw = || match random.random_range(0..7) {
            0 => Fault::Reset(at),
            1 => Fault::Cut(at),
            2 => Fault::FinBack(at),
            3 => Fault::Drip(7, slow),
            4 => Fault::Late(slow),
            5 => Fault::Silent(at),
            _ => Fault::None,
        };
        (draw(), draw())
    });
    for _ in 0..RUDE {
        asking.push(tokio::spawn(be_rude(rude_line.address, Arc::clone(seen))));
    }
    Crowd { asking, listening, _rude_line: rude_line }
}

impl Crowd {
    /// Waits until everybody has their answers; what failed.
    pub(crate) async fn end(self, seen: &Seen) -> Vec<String> {
        seen.stop.store(true, Relaxed);
        join_all(self.asking).await;
        let last = Instant::now();
        while !seen.open.lock().is_empty() && last.elapsed() < LAST_PROMPT {
            sleep(Duration::from_millis(50)).await;
        }
        for prompt in seen.open.lock().keys() {
            seen.fail(format!("prompt {prompt} never ended"));
        }
        self.listening.iter().for_each(JoinHandle::abort);
        join_all(self.listening).await;
        std::mem::take(&mut *seen.failed.lock())
    }
}

/// Looks at this and that.
async fn look(
    http: reqwest::Client,
    data: SocketAddr,
    n: usize,
    mut random: StdRng,
    seen: Arc<Seen>,
) {
    while seen.goes_on() {
        let path = PATHS[random.random_range(0..PATHS.len())];
        let start = Instant::now();
        let request = http.get(format!("http://{data}{path}")).header("x-forwarded-for", client(n));
        match request.send().await {
            Ok(reply) if reply.status() == 200 => match reply.bytes().await {
                Ok(_) => drop(seen.served.fetch_add(1, Relaxed)),
                // An answer that had begun cannot be repeated.
                Err(_) => drop(seen.cut.fetch_add(1, Relaxed)),
            },
            Ok(reply) => {
                let (status, took) = (reply.status(), start.elapsed());
                let text = reply.text().await.unwrap_or_default();
                seen.fail(format!("GET {path} by {n} after {took:?}: {status} {text}"));
            }
            Err(error) => {
                seen.fail(format!("GET {path} by {n} after {:?}: {error:?}", start.elapsed()));
            }
        }
        sleep(Duration::from_millis(random.random_range(50..250))).await;
    }
}

/// Posts prompts at its share of the farm's pace.
async fn paint(http: reqwest::Client, data: SocketAddr, n: usize, is_pool: bool, seen: Arc<Seen>) {
    let mut seed = n as u64;
    let mut due = Instant::now() + PROMPT_EVERY * n as u32;
    while seen.goes_on() {
        seed += PAINTERS as u64;
        let id = uuid::Uuid::new_v4().to_string();
        let body = json!({"prompt": paced(seed), "client_id": name(n), "prompt_id": id});
        if is_pool {
            seen.open.lock().insert(id.clone(), n);
        }
        // Under its id a prompt may be posted again in pool mode, and is one prompt all the same.
        while !posted(&http, data, n, &body, is_pool, &seen).await {
            sleep(Duration::from_millis(100)).await;
        }
        due += PROMPT_EVERY * PAINTERS as u32;
        sleep(due.saturating_duration_since(Instant::now())).await;
    }
}

/// Posts once; whether there is no more to be done about it.
async fn posted(
    http: &reqwest::Client,
    data: SocketAddr,
    n: usize,
    body: &Value,
    is_pool: bool,
    seen: &Seen,
) -> bool {
    let request = http.post(format!("http://{data}/prompt")).json(body);
    match request.header("x-forwarded-for", client(100 + n)).send().await {
        Ok(reply) if reply.status() == 200 => {
            seen.prompts.fetch_add(1, Relaxed);
            true
        }
        // It may have begun to leave when its backend went, and must not go twice.
        Ok(reply) if !is_pool && reply.status() == 502 => true,
        Ok(reply) if is_pool && reply.status().is_server_error() => false,
        Ok(reply) => {
            let status = reply.status();
            seen.fail(format!("POST: {status} {}", reply.text().await.unwrap_or_default()));
            true
        }
        Err(_) => !is_pool,
    }
}

fn paced(seed: u64) -> Value {
    let paced = json!({"class_type": "PacedImage", "inputs":
        {"seconds": PROMPT_SECONDS, "steps": 2, "seed": seed, "fail_at": -1, "preview": true}});
    let save = json!({"class_type": "SaveImage", "inputs":
        {"images": ["1", 0], "filename_prefix": "soak"}});
    json!({"1": paced, "2": save})
}

fn name(n: usize) -> String {
    format!("painter-{n}")
}

/// Keeps a page's socket open, and takes down which prompts have ended.
async fn listen(data: SocketAddr, n: usize, seen: Arc<Seen>) {
    let (target, address) = (format!("/ws?clientId={}", name(n)), client(100 + n));
    loop {
        let headers = [("x-forwarded-for", address.as_str())];
        if let Ok((mut socket, _)) = socket::open(data, &target, &headers).await {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = message {
                    take(&serde_json::from_str(text.as_str()).unwrap(), &seen);
                }
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn take(event: &Value, seen: &Seen) {
    let id = event["data"]["prompt_id"].as_str().unwrap_or_default();
    match event["type"].as_str().unwrap_or_default() {
        "execution_success" => drop(seen.open.lock().remove(id)),
        "execution_error" | "execution_interrupted" if seen.open.lock().remove(id).is_some() => {
            seen.fail(format!("prompt {id}: {event}"));
        }
        _ => {}
    }
}

/// Asks over a line that breaks, and goes away when it takes too long.
async fn be_rude(line: SocketAddr, seen: Arc<Seen>) {
    let body = json!({"prompt": {}, "padding": "x".repeat(3000)});
    let requests = [http::get("/object_info", &[]), http::post("/prompt", &body)];
    for request in requests.iter().cycle() {
        if !seen.goes_on() {
            return;
        }
        let asked = http::try_exchange(line, request);
        let _ = timeout(Duration::from_secs(2).min(PATIENCE), asked).await;
        sleep(Duration::from_millis(50)).await;
    }
}
