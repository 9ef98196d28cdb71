//! `comfygate run --upgrade`: a new process takes the old one's place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use comfygate::sim::{Sim, SimConfig};
use serde_json::{Value, json};

use crate::pool::failover::stubborn::Stubborn;
use crate::pool::painter::paced;
use crate::support::{Gateway, PATIENCE, Setup, eventually};

async fn farm(count: usize) -> Vec<Sim> {
    let mut farm = Vec::new();
    for _ in 0..count {
        farm.push(Sim::start(SimConfig { speed: 10.0, ..SimConfig::default() }).await.unwrap());
    }
    farm
}

async fn takes_jobs(gateway: &Gateway) {
    let open = |list: &Value| {
        list["backends"].as_array().unwrap().iter().all(|one| one["takes_jobs"] == true)
    };
    gateway.until("/lb/backends", open).await;
}

/// How often the simulators have run a prompt.
async fn runs(farm: &[Sim], prompt: &str) -> usize {
    let mut runs = 0;
    for sim in farm {
        let reply = reqwest::get(format!("{}/history/{prompt}", sim.url())).await.unwrap();
        let entry: Value = reply.json().await.unwrap();
        runs += entry.as_object().unwrap().len();
    }
    runs
}

/// Clients that come again and again, each time on a new connection.
struct Visitors {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
    visits: Arc<AtomicU64>,
}

impl Visitors {
    fn come(url: &str, count: usize) -> Self {
        let (stop, visits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let visit = || {
            let (stop, visits, url) = (Arc::clone(&stop), Arc::clone(&visits), url.to_owned());
            tokio::spawn(async move {
                let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
                let http = http.timeout(Duration::from_secs(30)).build().unwrap();
                let mut refused = Vec::new();
                while !stop.load(Relaxed) {
                    match http.get(&url).header("connection", "close").send().await {
                        Ok(reply) if reply.status() == 200 => _ = visits.fetch_add(1, Relaxed),
                        Ok(reply) => refused.push(reply.status().to_string()),
                        Err(error) => refused.push(format!("{error:?}")),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                refused
            })
        };
        let tasks = (0..count).map(|_| visit()).collect();
        Self { stop, tasks, visits }
    }

    /// What went wrong, and how often all went well: ten times more than by now, so that whoever
    /// serves by now has served some.
    async fn leave(self) -> (Vec<String>, u64) {
        let so_far = self.visits.load(Relaxed);
        eventually("visits go well", PATIENCE, async || {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.visits.load(Relaxed) >= so_far + 10
        })
        .await;
        self.stop.store(true, Relaxed);
        let mut refused = Vec::new();
        for task in self.tasks {
            refused.extend(task.await.unwrap());
        }
        (refused, self.visits.load(Relaxed))
    }
}

/// The same setup on the addresses that a gateway listens on.
fn at(setup: &Setup, gateway: &Gateway) -> Setup {
    setup.clone().with(json!({
        "server": {"port": gateway.data.port()},
        "admin": {"listen": gateway.admin.to_string()},
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_takes_over_every_job_and_nobody_is_refused() {
    let sims = farm(2).await;
    let setup = Setup::of(&sims).with(json!({"mode": "pool"}));
    let mut old = setup.start().await;
    takes_jobs(&old).await;
    let setup = at(&setup, &old);
    let base = format!("http://{}", old.data);
    let client = Stubborn::connect(&base, "traveller");
    let mut prompts = Vec::new();
    for seed in 0..12 {
        prompts.push((client.paint(paced(seed, 8.0)).await, seed));
    }
    let visitors = Visitors::come(&format!("{base}/queue"), 4);
    let watchers = Visitors::come(&format!("http://{}/healthz", old.admin), 1);
    let new = setup.upgrade().await;
    for seed in 12..16 {
        prompts.push((client.paint(paced(seed, 1.0)).await, seed));
    }
    let (code, _) = old.ended().await;
    assert_eq!(code, Some(0));
    assert!(old.has_logged("a successor has taken over"));
    for (prompt, seed) in &prompts {
        client.succeeded(prompt, *seed).await;
        assert_eq!(runs(&sims, prompt).await, 1, "{prompt} ran once");
    }
    for visitors in [visitors, watchers] {
        let (refused, visits) = visitors.leave().await;
        assert!(refused.is_empty() && visits >= 10, "{visits} visits, {refused:#?}");
    }
    // And once more.
    let newest = setup.upgrade().await;
    takes_jobs(&newest).await;
    drop(new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_fails_leaves_the_old_process_serving() {
    let sims = farm(1).await;
    let setup = Setup::of(&sims).with(json!({"mode": "pool"}));
    let gateway = setup.start().await;
    takes_jobs(&gateway).await;
    let base = format!("http://{}", gateway.data);
    let client = Stubborn::connect(&base, "stayer");
    let (running, waiting) =
        (client.paint(paced(1, 20.0)).await, client.paint(paced(2, 1.0)).await);
    let mut socket = UnixStream::connect(setup.state_dir().join("upgrade.sock")).unwrap();
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
    let mut next = move || lines.next().unwrap().unwrap();
    socket.write_all(b"comfygate upgrade 1\n").unwrap();
    assert_eq!(next(), "listeners");
    socket.write_all(b"release\n").unwrap();
    assert_eq!(next(), "released");
    // A prompt waits for how it ends.
    let answered = Cell::new(false);
    let posting = async {
        let prompt = client.paint(paced(3, 1.0)).await;
        answered.set(true);
        prompt
    };
    let failing = async {
        gateway.until_logged("the state is handed over").await;
        assert_eq!(gateway.get("10.0.0.1", "/queue").await.status, 200);
        assert!(!answered.get());
        drop((socket, next));
    };
    let (posted, ()) = tokio::join!(posting, failing);
    gateway.until_logged("this process goes on").await;
    for (prompt, seed) in [(running, 1), (waiting, 2), (posted, 3)] {
        client.succeeded(&prompt, seed).await;
        assert_eq!(runs(&sims, &prompt).await, 1, "{prompt} ran once");
    }
    // What it keeps is kept.
    let gateway = gateway.kill_and_restart().await;
    let all = gateway.get("10.0.0.1", "/history").await.json();
    assert_eq!(all.as_object().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_cannot_start_says_why_and_changes_nothing() {
    let sims = farm(1).await;
    let setup = Setup::of(&sims).with(json!({"mode": "pool"}));
    let gateway = setup.start().await;
    takes_jobs(&gateway).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let bad = at(&setup, &gateway).with(json!({"server": {"port": port}}));
    let ended = bad.run_upgrade().await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.told("server.port"), "{}", ended.stderr);
    let client = Stubborn::connect(&format!("http://{}", gateway.data), "unmoved");
    let prompt = client.paint(paced(1, 1.0)).await;
    client.succeeded(&prompt, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sticky_clients_stay_where_they_were_through_an_upgrade() {
    let sims = farm(2).await;
    let setup = Setup::of(&sims).with(json!({"server": {"shutdown_timeout": "2s"}}));
    let mut old = setup.start().await;
    let setup = at(&setup, &old);
    let mut homes = Vec::new();
    for n in 1..=6 {
        let reply = old.get(format!("10.0.0.{n}"), "/queue").await;
        homes.push(reply.header("x-comfygate-backend").unwrap().to_owned());
    }
    let visitors = Visitors::come(&format!("http://{}/queue", old.data), 3);
    let new = setup.upgrade().await;
    assert_eq!(old.ended().await.0, Some(0));
    for (n, home) in (1..).zip(&homes) {
        let reply = new.get(format!("10.0.0.{n}"), "/queue").await;
        assert_eq!(reply.header("x-comfygate-backend"), Some(&**home), "10.0.0.{n}");
    }
    let (refused, visits) = visitors.leave().await;
    assert!(refused.is_empty() && visits >= 10, "{visits} visits, {refused:#?}");
}
