//! A seeded simulation: the core against a world of servers that run, refuse, answer late or never,
//! die, hang and forget, of clients that submit and cancel, and of gateways that crash.
//!
//! Each seed is one life of a farm; [`checks`] holds after every step, and in the end, when
//! everything is well again, every accepted job has ended once. `COMFYGATE_SIM_SEEDS=0..10000`
//! runs more seeds; a failing one is named, and `COMFYGATE_SIM_SEEDS=7..8` replays it.

mod chaos;
mod checks;
mod clients;
mod gateway;
mod looks;
mod misfortune;
mod network;
mod random;
mod server;
mod work;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use chaos::{Bug, Chaos};
use world::World;

/// Seeds of a plain test run.
const SEEDS: std::ops::Range<u64> = 0..100;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("COMFYGATE_SIM_SEEDS") else { return SEEDS };
    let (from, to) = text.split_once("..").expect("COMFYGATE_SIM_SEEDS is FROM..TO");
    from.parse().expect("a number")..to.parse().expect("a number")
}

/// Seeds that fail are named, all of them.
fn run(chaos: Chaos) {
    let mut failed = 0;
    for seed in seeds() {
        if catch_unwind(AssertUnwindSafe(|| World::new(seed, chaos).live())).is_err() {
            eprintln!("seed {seed} failed: COMFYGATE_SIM_SEEDS={seed}..{} replays it", seed + 1);
            failed += 1;
        }
    }
    assert_eq!(failed, 0, "seeds failed");
}

/// Whether one of some seeds fails.
fn is_found(chaos: Chaos) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let fails = |seed| catch_unwind(|| World::new(seed, chaos).live()).err();
    let found = (0..1000).find_map(|seed| fails(seed).map(|panic| (seed, panic)));
    std::panic::set_hook(hook);
    if let Some((seed, panic)) = &found {
        let words = panic.downcast_ref::<String>().map_or("", String::as_str);
        eprintln!("{:?} is found by seed {seed}: {}", chaos.bug, words.replace('\n', " "));
    }
    found.is_some()
}

#[test]
fn a_healthy_farm_loses_and_doubles_nothing() {
    run(Chaos::none());
}

#[test]
fn servers_that_die_hang_and_forget_lose_and_double_nothing() {
    run(Chaos::servers());
}

#[test]
fn gateways_that_crash_lose_and_double_nothing() {
    run(Chaos::all());
}

#[test]
fn a_gateway_that_forgets_to_reconcile_is_found() {
    assert!(is_found(Chaos::servers().with(Bug::ForgetReconcile)));
}

#[test]
fn a_gateway_that_dispatches_twice_is_found() {
    assert!(is_found(Chaos::none().with(Bug::DoubleDispatch)));
}

#[test]
fn a_gateway_that_takes_unknown_for_not_sent_is_found() {
    assert!(is_found(Chaos::servers().with(Bug::UnknownIsNotSent)));
}

#[test]
fn a_gateway_that_tells_before_it_has_written_is_found() {
    assert!(is_found(Chaos::all().with(Bug::SkipFsync)));
}

#[test]
fn a_gateway_that_does_not_look_after_a_restart_is_found() {
    assert!(is_found(Chaos::all().with(Bug::BlindRestart)));
}
