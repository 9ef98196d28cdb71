//! Sticky placement: each client has one backend, the right one, and keeps it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use comfygate::sim::Sim;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::json;

use crate::support::socket::{self, Socket};
use crate::support::{
    Gateway, Setup, client, eventually, farm, is_full, long_prompt, queue_prompts, real_queue,
};

const CLIENTS: usize = 300;
/// Requests of each; the small number tells the same in a fraction of the time.
fn requests() -> usize {
    if is_full() { 20 } else { 6 }
}
/// Visitors at the same time.
const AT_ONCE: usize = 8;

type Places = BTreeMap<usize, String>;

/// All clients come in an order, each with so many requests and a WebSocket in their middle; who
/// sees two backends fails the test.
async fn visit(gateway: &Gateway, order: &[usize], requests: usize) -> (Places, Vec<Socket>) {
    let visits = stream::iter(order.iter().copied()).map(|n| async move {
        let address = client(n);
        let mut seen = Vec::new();
        for _ in 0..requests / 2 {
            seen.push(gateway.get(&address, "/prompt").await.backend().to_owned());
        }
        let headers = [("x-forwarded-for", address.as_str())];
        let target = format!("/ws?clientId={n}");
        let (socket, response) = socket::open(gateway.data, &target, &headers).await.unwrap();
        seen.push(socket::backend(&response));
        for _ in requests / 2..requests {
            seen.push(gateway.get(&address, "/prompt").await.backend().to_owned());
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "client {n} saw {seen:?}");
        ((n, seen.remove(0)), socket)
    });
    visits.buffered(AT_ONCE).unzip().await
}

fn in_order() -> Vec<usize> {
    (0..CLIENTS).collect()
}

fn shuffled(seed: u64) -> Vec<usize> {
    let mut order = in_order();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    order
}

fn assert_fair(places: &Places) {
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    for backend in places.values() {
        *shares.entry(backend).or_default() += 1;
    }
    let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
    assert_eq!(shares.len(), 3, "{shares:?}");
    assert!(*most as f64 <= 1.8 * *least as f64, "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_has_one_backend_whatever_the_order_of_arrival() {
    let farm = farm(3).await;
    let one = Setup::of(&farm).start().await;
    let (first, sockets) = visit(&one, &in_order(), requests()).await;
    assert_fair(&first);
    let stats = one.admin("/lb/stats").await.json();
    assert_eq!((&stats["sessions"], &stats["websockets"]), (&json!(CLIENTS), &json!(CLIENTS)));
    drop(sockets);

    let other = Setup::of(&farm).start().await;
    let (second, _sockets) = visit(&other, &shuffled(1), requests()).await;
    assert_eq!(first, second);
}

/// Placements are written every half second: that much a `kill -9` may cost.
const WRITTEN_AFTER: Duration = Duration::from_millis(1200);

#[tokio::test(flavor = "multi_thread")]
async fn clients_keep_their_backends_over_restarts_of_an_idle_and_a_busy_farm() {
    let farm = farm(3).await;
    let setup = Setup::of(&farm);
    let gateway = setup.start().await;
    let (before, sockets) = visit(&gateway, &shuffled(2), 2).await;
    drop(sockets);
    let (code, _) = gateway.terminate().await;
    assert_eq!(code, Some(0));

    let gateway = setup.start().await;
    gateway.until_logged("restored 300 sessions").await;
    let (after_terminate, _) = visit(&gateway, &shuffled(3), 2).await;
    assert_eq!(before, after_terminate);
    tokio::time::sleep(WRITTEN_AFTER).await;
    gateway.kill().await;

    // A farm so uneven that newcomers would all go to the third.
    farm[0].faults().phantom_queue(1, 8);
    farm[1].faults().phantom_queue(1, 3);
    let gateway = setup.start().await;
    gateway.until_depths(&[9, 4, 0]).await;
    let (after_kill, sockets) = visit(&gateway, &shuffled(4), 2).await;
    assert_eq!(before, after_kill);
    assert_eq!(gateway.get(client(CLIENTS + 1), "/prompt").await.backend(), "comfy-3");
    drop(sockets);
    gateway.terminate().await;

    let gateway = setup.start().await;
    gateway.until_depths(&[9, 4, 0]).await;
    let (busy, _) = visit(&gateway, &shuffled(5), 2).await;
    assert_eq!(before, busy);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_only_looked_survive_a_kill_of_the_gateway_too() {
    let farm = farm(3).await;
    farm[0].faults().phantom_queue(1, 8);
    farm[1].faults().phantom_queue(1, 3);
    let setup = Setup::of(&farm);
    let gateway = setup.start().await;
    gateway.until_depths(&[9, 4, 0]).await;
    for n in 0..20 {
        assert_eq!(gateway.get(client(n), "/prompt").await.backend(), "comfy-3");
    }
    tokio::time::sleep(WRITTEN_AFTER).await;
    gateway.kill().await;

    // Without a memory they would go to their owners, of which comfy-3 is one of three.
    for sim in &farm {
        sim.faults().phantom_queue(0, 0);
    }
    let gateway = setup.start().await;
    for n in 0..20 {
        assert_eq!(gateway.get(client(n), "/prompt").await.backend(), "comfy-3");
    }
}

/// Queues of 5, 2 and 8, real prompts; then a newcomer, then thirty that prompt at once.
async fn burst(push: bool) {
    let farm = farm(3).await;
    for (sim, depth) in farm.iter().zip([5, 2, 8]) {
        queue_prompts(sim, depth).await;
    }
    let health_check = json!({"interval": 60.0, "push": push});
    let gateway = Setup::of(&farm).with(json!({"health_check": health_check})).start().await;
    gateway.until_depths(&[5, 2, 8]).await;
    assert_eq!(gateway.get(client(0), "/prompt").await.backend(), "comfy-2");

    let prompt = long_prompt();
    let posts = (1..=30).map(|n| {
        let (gateway, prompt) = (&gateway, &prompt);
        async move { gateway.post(client(n), "/prompt", prompt).await }
    });
    for reply in join_all(posts).await {
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let depths = join_all(farm.iter().map(real_queue)).await;
    assert_eq!(depths.iter().sum::<usize>(), 45);
    assert!(depths.iter().all(|&depth| depth <= 16), "perfect would be 15 each: {depths:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_between_two_polls_fills_the_shortest_queues() {
    burst(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_fills_the_shortest_queues_while_status_events_come() {
    burst(true).await;
}

async fn shown(gateway: &Gateway, sim: &Sim, depth: usize, deadline: Duration) -> Duration {
    let start = Instant::now();
    sim.faults().phantom_queue(1, depth - 1);
    eventually(&format!("depth {depth}"), deadline, async || {
        gateway.backend("comfy-1").await["queue"]["total"] == depth
    })
    .await;
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_depth_shows_within_100_ms_with_push() {
    let farm = farm(1).await;
    let slow_polls = json!({"health_check": {"interval": 60.0}});
    let gateway = Setup::of(&farm).with(slow_polls).start().await;
    eventually("the push socket is open", Duration::from_secs(5), async || farm[0].sockets() > 0)
        .await;
    let mut took = Vec::new();
    for sample in 0..200 {
        took.push(shown(&gateway, &farm[0], 2 + sample % 7, Duration::from_secs(2)).await);
    }
    took.sort();
    assert!(took[197] < Duration::from_millis(100), "p99 {:?}, most {:?}", took[197], took[199]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_depth_shows_within_one_interval_without_push() {
    let farm = farm(1).await;
    let polls = json!({"health_check": {"interval": 0.6, "push": false}});
    let gateway = Setup::of(&farm).with(polls).start().await;
    for depth in 2..6 {
        let took = shown(&gateway, &farm[0], depth, Duration::from_secs(3)).await;
        assert!(took < Duration::from_millis(600 + 150), "{took:?}");
    }
    assert_eq!(farm[0].sockets(), 0);
}
