//! Backends and the gateway are killed all the time while prompts run.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::sleep;

use super::super::painter::paced;
use super::Farm;
use super::stubborn::Stubborn;
use crate::support::is_full;

struct Scale {
    prompts: u64,
    seconds: f64,
    backend_every: Duration,
    away: Duration,
    gateway_every: Duration,
    limit: Duration,
}

fn scale() -> Scale {
    let ms = Duration::from_millis;
    if is_full() {
        Scale {
            prompts: 300,
            seconds: 2.0,
            backend_every: ms(5000),
            away: ms(3000),
            gateway_every: ms(20_000),
            limit: ms(900_000),
        }
    } else {
        Scale {
            prompts: 60,
            seconds: 0.3,
            backend_every: ms(1000),
            away: ms(600),
            gateway_every: ms(4000),
            limit: ms(120_000),
        }
    }
}

/// Kills and revives until it is told to stop; gives the farm back, and how much died.
async fn rage(
    mut farm: Farm,
    scale: &Scale,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) -> (Farm, u32, u32) {
    let mut random = StdRng::seed_from_u64(7);
    let (mut backends, mut gateways) = (0, 0);
    let (mut backend_at, mut gateway_at) = (Instant::now(), Instant::now());
    while stop.try_recv().is_err() {
        sleep(Duration::from_millis(20)).await;
        if backend_at.elapsed() >= scale.backend_every {
            backend_at = Instant::now();
            let victim = random.random_range(0..farm.sims.len());
            farm.bounce(victim, scale.away).await;
            backends += 1;
        }
        if gateway_at.elapsed() >= scale.gateway_every {
            gateway_at = Instant::now();
            farm.kill_gateway().await;
            farm.start_gateway().await;
            gateways += 1;
        }
    }
    (farm, backends, gateways)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_prompt_ends_right_though_backends_and_gateway_are_killed_all_the_time() {
    let scale = scale();
    let farm = Farm::start(4, json!({})).await;
    let base = farm.base();
    let clients: Vec<Stubborn> =
        (0..6).map(|n| Stubborn::connect_with(&base, &format!("client-{n}"), n % 2 == 1)).collect();
    let (enough, stop) = tokio::sync::oneshot::channel();
    let start = Instant::now();
    let (rest, (farm, backends, gateways)) = tokio::join!(
        async {
            let mut prompts = Vec::new();
            for seed in 0..scale.prompts {
                let client = &clients[seed as usize % clients.len()];
                prompts.push((client, client.paint(paced(seed, scale.seconds)).await, seed));
            }
            let posted = start.elapsed();
            for (client, prompt, _) in &prompts {
                let left = scale.limit.saturating_sub(start.elapsed());
                client.finished_within(prompt, left).await;
            }
            let took = start.elapsed();
            let _ = enough.send(());
            (prompts, posted, took)
        },
        rage(farm, &scale, stop)
    );
    let (prompts, posted, took) = rest;
    farm.ready(4).await;
    let mut attempts = Vec::new();
    let mut repeats = 0;
    for (client, prompt, seed) in &prompts {
        client.succeeded(prompt, *seed).await;
        attempts.push(farm.task(prompt).await["attempts"].as_u64().unwrap());
        repeats += client.last_words(prompt).len() - 2;
    }
    let history = clients[0].get("/history").await.unwrap();
    assert_eq!(history.as_object().unwrap().len() as u64, scale.prompts);
    let again = attempts.iter().filter(|&&count| count > 1).count();
    println!(
        "{} prompts, accepted in {posted:?}, ended in {took:?}; {backends} backends and {gateways} \
         gateways killed; {again} prompts ran more than once, at most {} times; {repeats} last \
         words repeated",
        scale.prompts,
        attempts.iter().max().unwrap()
    );
    assert!(backends > 2 && gateways > 0, "{backends} {gateways}");
}
