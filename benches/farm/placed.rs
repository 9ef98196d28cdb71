//! Ways that place a prompt when it arrives: it then waits in the queue of its server.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use comfygate::affinity::{AffinityMap, Seconds};
use comfygate::config::Strategy;
use comfygate::identity::ClientKey;
use comfygate::ring::Ring;
use comfygate::selection::{Candidate, Client, Rule, choose};

use super::work::{Case, Outcome, Prompt};

/// Servers that work off their queues in order of arrival.
struct Queues {
    speeds: Vec<f64>,
    /// When the prompts of each server end.
    ends: Vec<VecDeque<f64>>,
}

impl Queues {
    fn new(case: &Case) -> Self {
        let speeds = case.speeds();
        Self { ends: vec![VecDeque::new(); speeds.len()], speeds }
    }

    /// Forgets what has ended.
    fn pass(&mut self, now: f64) {
        for ends in &mut self.ends {
            while ends.front().is_some_and(|end| *end <= now) {
                ends.pop_front();
            }
        }
    }

    fn depths(&self) -> Vec<u32> {
        self.ends.iter().map(|ends| ends.len() as u32).collect()
    }

    /// Queues a prompt; says when it begins and ends.
    fn take(&mut self, server: usize, prompt: &Prompt) -> (f64, f64) {
        let begins = self.ends[server].back().copied().unwrap_or(prompt.at).max(prompt.at);
        let ends = begins + prompt.work / self.speeds[server];
        self.ends[server].push_back(ends);
        (begins, ends)
    }
}

/// Chooses the server of each prompt as it comes.
trait Placing {
    fn place(&mut self, prompt: &Prompt, depths: &[u32]) -> usize;
}

/// A way of placing by its name in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Each prompt to the next server: a proxy without sessions.
    RoundRobin,
    /// nginx's `ip_hash`, to the letter.
    IpHash,
    /// `HAProxy`'s `leastconn`: a client's connections stay where they were made, with as few others
    /// as may be.
    LeastConn,
    /// Each prompt to the shortest queue as last read, so many seconds ago at most.
    Polled(u32),
    /// Sticky mode.
    Sticky(Strategy),
}

/// Runs the prompts through one way.
pub(crate) fn run(case: &Case, prompts: &[Prompt], way: Way) -> Outcome {
    let mut placing: Box<dyn Placing> = match way {
        Way::RoundRobin => Box::new(InTurn { servers: case.servers, next: 0 }),
        Way::IpHash => Box::new(ByAddress { servers: case.servers }),
        Way::LeastConn => {
            Box::new(FewestClients { homes: HashMap::new(), clients: vec![0; case.servers] })
        }
        Way::Polled(every) => {
            let read = vec![0; case.servers];
            Box::new(Polled { every: f64::from(every), due: 0.0, read, turn: 0 })
        }
        Way::Sticky(strategy) => Box::new(Sticky::new(case, strategy)),
    };
    let mut queues = Queues::new(case);
    let mut outcome = Outcome::default();
    for (number, prompt) in prompts.iter().enumerate() {
        queues.pass(prompt.at);
        let server = placing.place(prompt, &queues.depths());
        let (begins, ends) = queues.take(server, prompt);
        let counted = Outcome::is_counted(number, prompts.len());
        outcome.began(counted, begins - prompt.at, ends - begins, ends);
    }
    outcome
}

struct InTurn {
    servers: usize,
    next: usize,
}

impl Placing for InTurn {
    fn place(&mut self, _: &Prompt, _: &[u32]) -> usize {
        self.next += 1;
        (self.next - 1) % self.servers
    }
}

struct ByAddress {
    servers: usize,
}

impl Placing for ByAddress {
    /// `ngx_http_upstream_ip_hash_module.c`: the first three octets, equal weights.
    fn place(&mut self, prompt: &Prompt, _: &[u32]) -> usize {
        let [a, b, c, _] = prompt.address.to_be_bytes();
        let hash =
            [a, b, c].iter().fold(89, |hash, &octet| (hash * 113 + usize::from(octet)) % 6271);
        hash % self.servers
    }
}

struct FewestClients {
    homes: HashMap<u32, usize>,
    clients: Vec<u32>,
}

impl Placing for FewestClients {
    fn place(&mut self, prompt: &Prompt, _: &[u32]) -> usize {
        let clients = &mut self.clients;
        *self.homes.entry(prompt.address).or_insert_with(|| {
            let least = (0..clients.len()).min_by_key(|&server| clients[server]).unwrap_or(0);
            clients[least] += 1;
            least
        })
    }
}

struct Polled {
    every: f64,
    due: f64,
    read: Vec<u32>,
    turn: usize,
}

impl Placing for Polled {
    /// Among equals the next in turn, which flatters it: the first of the list would be swamped.
    fn place(&mut self, prompt: &Prompt, depths: &[u32]) -> usize {
        if prompt.at >= self.due {
            self.read.copy_from_slice(depths);
            self.due = (prompt.at / self.every).floor() * self.every + self.every;
        }
        self.turn += 1;
        let servers = self.read.len();
        let order = (0..servers).map(|step| (self.turn + step) % servers);
        order.min_by_key(|&server| self.read[server]).unwrap_or(0)
    }
}

/// Sticky mode's own parts: its map, its ring and its choice, with depths pushed by the servers.
struct Sticky {
    map: AffinityMap,
    ring: Ring,
    rule: Rule,
    candidates: Vec<Candidate>,
    turn: u64,
}

impl Sticky {
    fn new(case: &Case, strategy: Strategy) -> Self {
        let names: Vec<String> = (0..case.servers).map(|n| format!("comfy-{n}")).collect();
        let candidate = |speed: &f64| Candidate {
            eligible: true,
            serves: true,
            in_zone: true,
            backup: false,
            suspect: false,
            stale: false,
            prompts: 0,
            fresh_clients: 0,
            weight: *speed as u32,
            max_queue: 10,
            calls: 0,
            prompt_seconds: case.times.mean() / speed,
            ramp: 1.0,
        };
        Self {
            map: AffinityMap::new(Duration::from_hours(1), 100_000),
            ring: Ring::new(names.iter().map(|name| (name.as_str(), 1))),
            rule: Rule { strategy, prefer_idle: true, queue_weight: true, zone_spill: 2 },
            candidates: case.speeds().iter().map(candidate).collect(),
            turn: 0,
        }
    }
}

impl Placing for Sticky {
    fn place(&mut self, prompt: &Prompt, depths: &[u32]) -> usize {
        let key = ClientKey::of_address(IpAddr::V4(Ipv4Addr::from_bits(prompt.address)));
        let now = Seconds(prompt.at as u32);
        self.turn += 1;
        for (position, candidate) in self.candidates.iter_mut().enumerate() {
            candidate.prompts = depths[position];
            candidate.fresh_clients = self.map.fresh(position as u32, now);
        }
        let placed = self.map.get_or_place_with(key, now, |home| {
            let bytes = key.to_bytes();
            let client = Client { key: &bytes, turn: self.turn };
            let new = || choose(&self.candidates, &self.ring, self.rule, client, &[]);
            home.or_else(|| new().map(|choice| choice.position as u32))
        });
        self.map.mark_prompted(key, now);
        let server = placed.map_or(0, |placed| placed.backend as usize);
        self.candidates[server].calls += 1;
        server
    }
}
