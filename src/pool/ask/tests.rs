//! The conversation with a simulated server, with faults, and with servers that are none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::backend::{BackendId, Live, Wanted};
use crate::pace::Learnt;
use crate::pool::core::{Known, Outcome, TakenBack, Verdict};
use crate::pool::submission::{LAST, render};
use crate::sim::{QueueReply, Sim, SimConfig};

const T: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(200);

fn backend(spec: &Value) -> Backend {
    Backend {
        id: BackendId(0),
        spec: crate::config::backend_of(spec).unwrap(),
        live: Arc::new(Live::new(Wanted::Enabled, Learnt::default())),
    }
}

fn at(url: &str) -> Backend {
    backend(&json!({"name": "a", "url": url}))
}

async fn sim() -> (Sim, Backend, Ask) {
    let sim = Sim::start(SimConfig { speed: 1.0, ..SimConfig::default() }).await.unwrap();
    let backend = at(&sim.url());
    (sim, backend, Ask::new().unwrap())
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A prompt that takes so many seconds.
fn paced(seconds: f64, seed: u32) -> Value {
    json!({
        "1": {"class_type": "PacedImage", "inputs":
            {"seconds": seconds, "steps": 1000, "seed": seed, "fail_at": -1, "preview": false}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    })
}

fn body(prompt: &Value, id: &str, number: f64) -> Bytes {
    render(&json!({ "prompt": prompt }).to_string().into(), "sid", number, id)
}

async fn post(ask: &Ask, backend: &Backend, prompt: &Value, id: &str, number: f64) -> Verdict {
    ask.post_prompt(backend, id, body(prompt, id, number), T).await
}

/// Waits until a backend knows a prompt in this way.
async fn until(ask: &Ask, backend: &Backend, id: &str, wanted: impl Fn(&Known) -> bool) -> Known {
    let wait = async {
        loop {
            let (known, _) = ask.know(backend, id, T).await;
            if wanted(&known) {
                return known;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(T, wait).await.expect("it does not come to that")
}

/// Keeps a backend busy for ten minutes.
async fn busy(ask: &Ask, backend: &Backend) -> String {
    let id = new_id();
    assert!(matches!(post(ask, backend, &paced(600.0, 0), &id, 0.0).await, Verdict::Accepted(_)));
    until(ask, backend, &id, |known| *known == Known::Running).await;
    id
}

/// A server that reads a request and then does as told; how many requests came.
async fn scripted(answer: &'static [u8], endless: bool) -> (Backend, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut head = vec![0; 64 << 10];
                if stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    count.fetch_add(1, Relaxed);
                    let _ = stream.write_all(answer).await;
                    head.fill(b' ');
                    while endless && stream.write_all(&head).await.is_ok() {}
                }
            });
        }
    });
    (at(&url), seen)
}

#[tokio::test]
async fn two_hundred_prompts_are_judged_and_taken_back_on_a_busy_server_and_none_starts() {
    let (sim, backend, ask) = sim().await;
    let running = busy(&ask, &backend).await;
    let good = paced(1.0, 1);
    let mut bad = good.clone();
    bad["1"]["inputs"]["steps"] = json!(0);
    let mut partly = good.clone();
    partly["3"] =
        json!({"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "y"}});
    let mut took = Vec::new();
    for round in 0..300_usize {
        let (id, started) = (new_id(), Instant::now());
        let prompt = [&good, &bad, &partly][round % 3];
        let verdict = post(&ask, &backend, prompt, &id, LAST).await;
        let refused = matches!(&verdict, Verdict::Refused { status: 400, content_type, body }
            if content_type.as_deref() == Some("application/json; charset=utf-8")
                && body.starts_with(b"{\"error\""));
        let errors = matches!(&verdict, Verdict::Accepted(reply)
            if serde_json::from_slice::<Value>(reply).unwrap()["node_errors"]["3"].is_object());
        let accepted = matches!(verdict, Verdict::Accepted(_));
        let expected = [(true, false, false), (false, false, true), (true, true, false)];
        assert_eq!((accepted, errors, refused), expected[round % 3], "{verdict:?}");
        if accepted {
            assert_eq!(ask.take_back(&backend, &id, T).await, TakenBack::Gone);
            took.push(started.elapsed());
        }
    }
    assert_eq!(took.len(), 200);
    took.sort();
    println!("post, delete and check: {:?} at the median", took[took.len() / 2]);
    let queue = ask.queue(&backend, T).await.unwrap();
    assert_eq!((queue.running, queue.pending), (vec![running], Vec::<String>::new()));
    assert_eq!(sim.finished(), 0);
}

#[tokio::test]
async fn a_prompt_is_known_wherever_it_is() {
    let (_sim, backend, ask) = sim().await;
    let running = busy(&ask, &backend).await;
    let (waiting, never) = (new_id(), new_id());
    post(&ask, &backend, &paced(0.0, 5), &waiting, 1.0).await;
    assert_eq!(ask.know(&backend, &waiting, T).await, (Known::Pending, None));
    assert_eq!(ask.know(&backend, &never, T).await, (Known::Absent, None));
    assert_eq!(ask.entry(&backend, &running, T).await, Ok(None));

    ask.interrupt(&backend, &waiting, T).await.unwrap();
    assert_eq!(ask.know(&backend, &running, T).await.0, Known::Running, "only its own id");
    ask.interrupt(&backend, &running, T).await.unwrap();
    let is_end = |known: &Known| matches!(known, Known::Ended { .. });
    let ended = until(&ask, &backend, &running, is_end).await;
    assert!(matches!(ended, Known::Ended { outcome: Outcome::Cancelled, .. }), "{ended:?}");
    let ended = until(&ask, &backend, &waiting, is_end).await;
    assert!(matches!(ended, Known::Ended { outcome: Outcome::Completed, run_seconds: Some(_) }));
    let (_, entry) = ask.know(&backend, &waiting, T).await;
    let entry: Value = serde_json::from_slice(&entry.unwrap()).unwrap();
    assert_eq!(entry["prompt"][1], waiting);
}

#[tokio::test]
async fn what_has_started_is_not_taken_back() {
    let (_sim, backend, ask) = sim().await;
    let running = busy(&ask, &backend).await;
    assert_eq!(ask.take_back(&backend, &running, T).await, TakenBack::Started);
    ask.interrupt(&backend, &running, T).await.unwrap();
    until(&ask, &backend, &running, |known| matches!(known, Known::Ended { .. })).await;
    assert_eq!(ask.take_back(&backend, &running, T).await, TakenBack::Started);
    assert_eq!(ask.take_back(&backend, &new_id(), T).await, TakenBack::Gone);
}

#[tokio::test]
async fn a_prompt_that_waits_twice_is_taken_back_twice() {
    let (_sim, backend, ask) = sim().await;
    busy(&ask, &backend).await;
    let id = new_id();
    for number in [1.0, 2.0] {
        let verdict = post(&ask, &backend, &paced(0.0, 1), &id, number).await;
        assert!(matches!(verdict, Verdict::Accepted(_)));
    }
    assert_eq!(ask.take_back(&backend, &id, T).await, TakenBack::Gone);
}

#[tokio::test]
async fn a_server_that_is_not_there_was_sent_nothing() {
    let (sim, backend, ask) = sim().await;
    let (faults, id) = (sim.faults(), new_id());
    faults.refuse(true).await;
    assert!(matches!(post(&ask, &backend, &paced(0.0, 1), &id, 1.0).await, Verdict::NotSent));
    assert_eq!(ask.know(&backend, &id, T).await, (Known::Unknown, None));
    assert_eq!(ask.take_back(&backend, &id, T).await, TakenBack::Unknown);
    assert_eq!(ask.interrupt(&backend, &id, T).await, Err(Silence::Unreached));
    faults.refuse(false).await;
    assert!(matches!(post(&ask, &backend, &paced(0.0, 1), &id, 1.0).await, Verdict::Accepted(_)));
    sim.kill().await;
    assert!(matches!(post(&ask, &backend, &paced(0.0, 1), &id, 1.0).await, Verdict::NotSent));
}

#[tokio::test]
async fn a_server_that_hangs_may_have_the_prompt() {
    let (sim, backend, ask) = sim().await;
    busy(&ask, &backend).await;
    let (faults, id) = (sim.faults(), new_id());
    faults.hang(true);
    let verdict = ask.post_prompt(&backend, &id, body(&paced(0.0, 1), &id, 1.0), SHORT).await;
    assert!(matches!(verdict, Verdict::Unknown));
    assert_eq!(ask.know(&backend, &id, SHORT).await, (Known::Unknown, None));
    assert_eq!(ask.take_back(&backend, &id, SHORT).await, TakenBack::Unknown);
    faults.hang(false);
    faults.latency(Duration::from_millis(20));
    assert!(matches!(
        post(&ask, &backend, &paced(0.0, 1), &new_id(), 1.0).await,
        Verdict::Accepted(_)
    ));
}

#[tokio::test]
async fn an_accepted_prompt_whose_reply_is_lost_is_found_again() {
    let (sim, backend, ask) = sim().await;
    busy(&ask, &backend).await;
    let (faults, id) = (sim.faults(), new_id());
    faults.broken_json(true);
    assert!(matches!(post(&ask, &backend, &paced(0.0, 1), &id, 1.0).await, Verdict::Unknown));
    faults.broken_json(false);
    assert_eq!(ask.know(&backend, &id, T).await.0, Known::Pending);
}

#[tokio::test]
async fn a_500_is_a_verdict_only_of_a_server_that_is_well() {
    let (sim, backend, ask) = sim().await;
    busy(&ask, &backend).await;
    let id = new_id();
    let raised = post(&ask, &backend, &json!({"1": 5}), &id, 1.0).await;
    assert!(matches!(&raised, Verdict::Refused { status: 500, body, .. }
        if body.starts_with(b"500 Internal Server Error")));
    assert!(matches!(post(&ask, &backend, &paced(0.0, 1), &id, 1.0).await, Verdict::Accepted(_)));
    let collided = post(&ask, &backend, &paced(0.0, 1), &id, 1.0).await;
    assert!(matches!(collided, Verdict::Unknown), "queued, though a 500: {collided:?}");
    sim.faults().errors(true);
    let broken = post(&ask, &backend, &paced(0.0, 1), &new_id(), 1.0).await;
    assert!(matches!(broken, Verdict::NotSent));
}

#[tokio::test]
async fn a_prompt_leaves_once_and_a_question_survives_a_closed_connection() {
    let (lost, seen) = scripted(b"", false).await;
    let ask = Ask::new().unwrap();
    assert!(matches!(post(&ask, &lost, &paced(0.0, 1), &new_id(), 1.0).await, Verdict::Unknown));
    assert_eq!(seen.load(Relaxed), 1);
    assert_eq!(ask.know(&lost, "x", T).await.0, Known::Unknown);
    assert_eq!(seen.load(Relaxed), 3, "asked twice");

    let (sim, backend, ask) = sim().await;
    for _ in 0..20 {
        assert_eq!(ask.entry(&backend, "x", T).await, Ok(None));
        sim.faults().drop_connections();
    }
    let (id, before) = (new_id(), sim.requests_seen());
    assert!(matches!(post(&ask, &backend, &paced(0.0, 1), &id, 1.0).await, Verdict::Accepted(_)));
    assert_eq!(sim.requests_seen(), before + 1);
}

#[tokio::test]
async fn each_answer_means_what_the_table_says() {
    let verdict = async |answer: &'static [u8]| {
        let (backend, _) = scripted(answer, false).await;
        let ask = Ask::new().unwrap();
        ask.post_prompt(&backend, "x", Bytes::from_static(b"{}"), T).await
    };
    for refused in [
        b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".as_slice(),
        b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 404 None\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 There\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 502 Bad\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\ncontent-length: 9\r\n\r\n{",
    ] {
        assert!(matches!(verdict(refused).await, Verdict::NotSent), "{refused:?}");
    }
    for unclear in [
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".as_slice(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"prompt_id\": \"x\"}",
        b"HTTP/1.1 504 Slow\r\ncontent-length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ] {
        assert!(matches!(verdict(unclear).await, Verdict::Unknown), "{unclear:?}");
    }
    let large = verdict(b"HTTP/1.1 413 Large\r\ncontent-length: 1\r\n\r\nx").await;
    assert!(matches!(large, Verdict::Refused { status: 413, content_type: None, .. }));
}

#[tokio::test]
async fn a_reply_without_end_is_cut_off() {
    let (backend, _) = scripted(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", true).await;
    let ask = Ask::new().unwrap();
    assert!(matches!(post(&ask, &backend, &paced(0.0, 1), "x", 1.0).await, Verdict::Unknown));
    assert_eq!(ask.pass_on(&backend, Bytes::new(), T).await, None);
    assert_eq!(ask.entry(&backend, "x", T).await, Err(Silence::Useless));
}

#[tokio::test]
async fn a_queue_that_is_none_tells_nothing() {
    let (sim, backend, ask) = sim().await;
    let replies = [QueueReply::Broken, QueueReply::Truncated, QueueReply::WrongType];
    for reply in replies {
        sim.faults().queue_reply(reply);
        assert_eq!(ask.know(&backend, "x", T).await, (Known::Unknown, None), "{reply:?}");
    }
    assert_eq!(ask.take_back(&backend, "x", T).await, TakenBack::Unknown);
}

#[tokio::test]
async fn a_hopeless_body_gets_the_servers_own_words() {
    let (_sim, backend, ask) = sim().await;
    let passed = ask.pass_on(&backend, Bytes::from_static(b"{}"), T).await.unwrap();
    assert_eq!(passed.status, 400);
    assert!(passed.body.starts_with(br#"{"error": {"type": "no_prompt""#));
    let passed = ask.pass_on(&backend, Bytes::from_static(b"{"), T).await.unwrap();
    assert_eq!(
        (passed.status, passed.content_type.as_deref()),
        (500, Some("text/plain; charset=utf-8"))
    );
}

#[tokio::test]
async fn a_backends_base_path_and_headers_are_used() {
    let router = axum::Router::new().route(
        "/base/history/{id}",
        axum::routing::get(|headers: http::HeaderMap| async move {
            let told = headers.get("x-key").map(|value| value.to_str().unwrap().to_owned());
            axum::Json(json!({"a b": {"told": told}}))
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/base", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let backend = backend(&json!({"name": "a", "url": url, "headers": {"x-key": "secret"}}));
    let entry = Ask::new().unwrap().entry(&backend, "a b", T).await.unwrap().unwrap();
    assert_eq!(entry, r#"{"told":"secret"}"#);
}
