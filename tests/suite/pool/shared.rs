//! One client's prompts on all servers, and equal file names on each.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use super::painter::{Painter, paced};
use super::{pool, quick_farm, setup};
use crate::support::is_full;

#[tokio::test(flavor = "multi_thread")]
async fn one_clients_prompts_run_on_all_servers_and_each_picture_is_the_right_one() {
    let farm = quick_farm(3).await;
    let gateway = pool(&farm).await;
    let painter = Painter::connect(&gateway.data, "alone").await;
    let seconds = if is_full() { 10.0 } else { 1.0 };
    let started = Instant::now();
    let mut prompts = Vec::new();
    for seed in 0..60 {
        prompts.push((painter.paint(paced(seed, seconds)).await, seed));
    }
    for (prompt, _) in &prompts {
        painter.finished(prompt).await;
    }
    let took = started.elapsed();
    if is_full() {
        // Times of an otherwise idle machine: 60 prompts of one real second on three servers.
        assert!(took < Duration::from_secs_f64(1.05 * 20.0 + 0.5), "{took:?}");
    }
    let shares: Vec<u64> = farm.iter().map(comfygate::sim::Sim::finished).collect();
    assert_eq!(shares.iter().sum::<u64>(), 60, "each ran once");
    assert!(shares.iter().all(|&share| share >= 15), "{shares:?}");

    let history = painter.get("/history").await;
    let ids: BTreeSet<_> = history.as_object().unwrap().keys().cloned().collect();
    assert_eq!(ids, prompts.iter().map(|(id, _)| id.clone()).collect());
    let mut names = BTreeSet::new();
    for (prompt, seed) in &prompts {
        let file = &history[prompt]["outputs"]["2"]["images"][0];
        names.insert(file["filename"].as_str().unwrap().to_owned());
        assert!(painter.has_picture(prompt, *seed).await, "{prompt}: {file}");
    }
    assert!(names.len() < 60, "the servers have used equal names: {names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_of_strangers_is_counted_and_waited_for() {
    let farm = quick_farm(1).await;
    farm[0].faults().phantom_queue(1, 2);
    let gateway = setup(&farm).embed().await;
    let gateway = super::ready(gateway, 1).await;
    let painter = Painter::connect(&gateway.data, "patient").await;
    let prompt = painter.paint(paced(1, 0.1)).await;
    let queue = painter.get("/queue").await;
    assert_eq!(queue["queue_pending"][0][1], json!(prompt), "it waits behind the strangers");
    farm[0].faults().phantom_queue(0, 0);
    painter.finished(&prompt).await;
    assert!(painter.has_picture(&prompt, 1).await);
}
