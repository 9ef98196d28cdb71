//! Alerts: what a webhook receives when a real backend dies and comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use comfygate::alerts::board::{Sight, Subject, Turned};
use comfygate::alerts::deliver::{Courier, Patience};
use comfygate::alerts::notice::{Notice, Teller};
use comfygate::alerts::{self, Hysteresis};
use comfygate::config::{self, Secret, Webhook};
use comfygate::fleet::Fleet;
use comfygate::gateway::Gateway;
use comfygate::identity::session::SigningKey;
use comfygate::pace::Learnt;
use comfygate::probe::Prober;
use comfygate::roster::{Changes, Roster};
use comfygate::sim::{Sim, SimConfig};
use hmac::{Hmac, Mac};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::Sha256;

/// Nothing of this file takes so long unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// A webhook's receiver: what it got, and how it answers the first requests (then 204).
#[derive(Default)]
struct Inbox {
    got: Mutex<Vec<(HeaderMap, Bytes)>>,
    answers: Mutex<Vec<Response>>,
}

impl Inbox {
    fn answering(answers: Vec<Response>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers), ..Self::default() })
    }

    async fn open(self: &Arc<Self>) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(take).with_state(Arc::clone(self));
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn count(&self) -> usize {
        self.got.lock().len()
    }

    fn bodies(&self) -> Vec<Value> {
        self.got.lock().iter().map(|(_, body)| serde_json::from_slice(body).unwrap()).collect()
    }

    /// Waits until so many requests have come.
    async fn until(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count() < count {
            assert!(Instant::now() < deadline, "{count} messages wanted, got {:?}", self.bodies());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn take(State(inbox): State<Arc<Inbox>>, headers: HeaderMap, body: Bytes) -> Response {
    inbox.got.lock().push((headers, body));
    let mut answers = inbox.answers.lock();
    if answers.is_empty() { StatusCode::NO_CONTENT.into_response() } else { answers.remove(0) }
}

/// What the documentation tells a receiver to do.
fn verify(secret: &str, headers: &HeaderMap, body: &[u8]) {
    let text = |name: &str| headers[name].to_str().unwrap();
    let timestamp = text("x-comfygate-timestamp");
    let age = Timestamp::now().as_second() - timestamp.parse::<i64>().unwrap();
    assert!((0..300).contains(&age), "signed {age} s ago");
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(&[timestamp.as_bytes(), b".", body].concat());
    let signature = text("x-comfygate-signature").strip_prefix("sha256=").unwrap();
    mac.verify_slice(&hex::decode(signature).unwrap()).unwrap();
}

fn gateway(config: config::Config) -> Arc<Gateway> {
    let fleet = Arc::new(Fleet::new());
    let prober = Prober::new(Arc::clone(&fleet), config.health_check.clone()).unwrap();
    let (members, _) = Roster::new(config.backends.clone(), Changes::default()).members();
    let added = fleet.apply(members, |_| Learnt::default()).added;
    let gateway = Gateway::new(config, fleet, prober, SigningKey::from_bytes(&[7; 32]));
    for backend in &added {
        gateway.prober.start(backend);
    }
    Arc::new(gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_killed_and_restarted_is_one_signed_down_and_one_up() {
    let inbox = Inbox::answering(Vec::new());
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sims = [Sim::start(SimConfig::default()).await, Sim::start(SimConfig::default()).await];
    let [a, b] = sims.map(Result::unwrap);
    // The first receiver accepts connections and never answers: it must delay nobody else.
    let config = config::parse(&format!(
        "backends: [{{name: a, url: '{}'}}, {{name: b, url: '{}'}}]\n\
         health_check: {{interval: 50ms, timeout: 5s}}\n\
         alerts: {{webhooks: ['http://{}/', {{url: 'http://{}/hook', secret: key}}]}}\n",
        a.url(),
        b.url(),
        silent.local_addr().unwrap(),
        inbox.open().await,
    ));
    let gateway = gateway(config.unwrap());
    gateway.prober.first_round(PATIENCE).await;
    let hysteresis = Hysteresis {
        fire_after: Duration::from_millis(100),
        clear_after: Duration::from_millis(300),
    };
    let watch = tokio::spawn(alerts::watch(Arc::clone(&gateway), hysteresis));

    b.faults().refuse(true).await;
    inbox.until(1).await;
    b.faults().refuse(false).await;
    inbox.until(2).await;
    // Whatever else were to come would come within the hysteresis.
    tokio::time::sleep(hysteresis.clear_after * 2).await;
    gateway.stopping.send_replace(true);
    watch.await.unwrap();

    let got = inbox.bodies();
    let [down, up] = &got[..] else { panic!("{got:?}") };
    let told =
        |message: &Value| ["event", "status", "backend", "version"].map(|key| message[key].clone());
    assert_eq!(told(down), [json!("backend_down"), json!("firing"), json!("b"), json!(1)]);
    assert_eq!(told(up), [json!("backend_up"), json!("resolved"), json!("b"), json!(1)]);
    assert_eq!((&down["id"], &down["started_at"]), (&up["id"], &up["started_at"]));
    let time = |value: &Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(down["ended_at"].is_null() && time(&up["started_at"]) < time(&up["ended_at"]));
    assert_eq!(down["details"]["healthy"], 1);
    for (headers, body) in inbox.got.lock().iter() {
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        verify("key", headers, body);
    }
}

/// A message that says `queued` in its details, to tell messages apart.
fn notice(queued: u64) -> Notice {
    let turned =
        Turned { subject: Subject::Queue, number: 1, began: Timestamp::UNIX_EPOCH, ended: None };
    let sight = Sight { queued, queue_above: 1, ..Sight::default() };
    Notice::new(&turned, &sight, Teller { gateway: "g", process: "p" })
}

fn courier(receivers: &[SocketAddr]) -> Courier {
    let mut courier = Courier::new(Patience {
        timeout: Duration::from_secs(5),
        first_pause: Duration::from_millis(5),
        attempts: 3,
    })
    .unwrap();
    let webhook =
        |at: &SocketAddr| Webhook { url: Secret::new(format!("http://{at}/")), secret: None };
    courier.serve(&receivers.iter().map(webhook).collect::<Vec<_>>());
    courier
}

fn queued(inbox: &Inbox) -> Vec<u64> {
    inbox.bodies().iter().map(|body| body["details"]["queued"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_message_is_tried_again_in_order_and_given_up_in_the_end() {
    let busy = || StatusCode::SERVICE_UNAVAILABLE.into_response();
    let ok = || StatusCode::OK.into_response();
    let inbox = Inbox::answering(vec![busy(), busy(), ok(), busy(), busy(), busy(), ok()]);
    let courier = courier(&[inbox.open().await]);
    for number in 1..=3 {
        courier.send(&notice(number));
    }
    inbox.until(7).await;
    assert_eq!(queued(&inbox), [1, 1, 1, 2, 2, 2, 3]);
    let got = inbox.got.lock();
    assert!(got.iter().all(|(headers, _)| !headers.contains_key("x-comfygate-signature")));
}

#[tokio::test]
async fn redirects_are_not_followed_and_refusals_not_repeated() {
    let elsewhere = Inbox::answering(Vec::new());
    let to = format!("http://{}/", elsewhere.open().await);
    let moved = (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response();
    let inbox = Inbox::answering(vec![moved, StatusCode::GONE.into_response()]);
    let courier = courier(&[inbox.open().await]);
    for number in 1..=3 {
        courier.send(&notice(number));
    }
    inbox.until(3).await;
    assert_eq!((queued(&inbox), elsewhere.count()), (vec![1, 2, 3], 0));
}

#[tokio::test]
async fn receivers_that_stay_keep_their_messages_and_others_go() {
    let (first, second) = (Inbox::answering(Vec::new()), Inbox::answering(Vec::new()));
    let (at_first, at_second) = (first.open().await, second.open().await);
    let mut courier = courier(&[at_first, at_second]);
    courier.send(&notice(1));
    let kept = Webhook { url: Secret::new(format!("http://{at_second}/")), secret: None };
    courier.serve(&[kept]);
    courier.send(&notice(2));
    second.until(2).await;
    assert_eq!(queued(&second), [1, 2]);
    assert!(!queued(&first).contains(&2));
}
