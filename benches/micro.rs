//! The steps that every request or every poll pays for, alone: `make bench`.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench has no users and may stop")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use comfygate::affinity::{AffinityMap, Seconds};
use comfygate::comfy::queue_count::QueueCount;
use comfygate::config::Strategy;
use comfygate::identity::ClientKey;
use comfygate::ring::Ring;
use comfygate::selection::{Candidate, Client, Rule, choose};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};

const NOW: Seconds = Seconds(1_700_000_000);

fn client(number: u32) -> ClientKey {
    ClientKey::of_address(IpAddr::V4(Ipv4Addr::from_bits(number)))
}

/// A farm where the ring alone does not decide: every second backend has something to do.
fn farm(size: u32) -> (Vec<Candidate>, Ring) {
    let candidate = |number: u32| Candidate {
        serves: true,
        in_zone: false,
        eligible: true,
        backup: false,
        suspect: false,
        stale: false,
        prompts: number % 2,
        fresh_clients: number % 3,
        weight: 1,
        max_queue: 10,
        calls: 0,
        prompt_seconds: 0.0,
        ramp: 1.0,
    };
    let names: Vec<String> = (0..size).map(|number| format!("comfy-{number}")).collect();
    ((0..size).map(candidate).collect(), Ring::new(names.iter().map(|name| (name.as_str(), 1))))
}

fn selection(c: &mut Criterion) {
    let mut group = c.benchmark_group("choose a backend");
    let rule = Rule {
        strategy: Strategy::LeastBusy,
        prefer_idle: false,
        queue_weight: true,
        zone_spill: 2,
    };
    for size in [3, 30, 300] {
        let (candidates, ring) = farm(size);
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            let mut turn = 0u32;
            b.iter(|| {
                turn = turn.wrapping_add(1);
                let key = client(turn).to_bytes();
                let client = Client { key: &key, turn: turn.into() };
                choose(black_box(&candidates), &ring, rule, client, &[])
            });
        });
    }
    group.finish();
}

fn affinity(c: &mut Criterion) {
    let mut group = c.benchmark_group("affinity");
    for clients in [1_000u32, 1_000_000] {
        let map = AffinityMap::new(Duration::from_hours(1), clients as usize);
        for number in 0..clients {
            map.place(client(number), number % 3, NOW, false);
        }
        group.bench_function(BenchmarkId::new("known client of", clients), |b| {
            let mut number = 0u32;
            b.iter(|| {
                number = number.wrapping_add(7919) % clients;
                map.get(black_box(client(number)), NOW)
            });
        });
        group.bench_function(BenchmarkId::new("newcomer evicts one of", clients), |b| {
            let mut number = clients;
            b.iter(|| {
                number = number.wrapping_add(1);
                map.place(black_box(client(number)), number % 3, NOW, false)
            });
        });
    }
    group.finish();
}

/// A `/queue` reply of 200 prompts with workflows of some kilobytes.
fn queue_reply() -> Vec<u8> {
    let node = r#""12":{"class_type":"CLIPTextEncode","inputs":{"text":"a \"cat\" [x] {y}"}},"#;
    let workflow = format!("{{{}\"1\":{{}}}}", node.repeat(60));
    let item = |number: u32| format!("[{number},\"id-{number}\",{workflow},{{}},[\"9\"]]");
    let pending: Vec<String> = (1..200).map(item).collect();
    let pending = pending.join(",");
    format!("{{\"queue_running\":[{}],\"queue_pending\":[{pending}]}}", item(0)).into_bytes()
}

fn queue_count(c: &mut Criterion) {
    let reply = queue_reply();
    let mut group = c.benchmark_group("count a queue reply");
    group.throughput(Throughput::Bytes(reply.len() as u64));
    group.bench_function(format!("{} KiB", reply.len() >> 10), |b| {
        b.iter_batched_ref(
            QueueCount::default,
            |count| {
                for chunk in reply.chunks(16 << 10) {
                    count.feed(black_box(chunk)).unwrap();
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    selection(&mut criterion);
    affinity(&mut criterion);
    queue_count(&mut criterion);
    criterion.final_summary();
}
