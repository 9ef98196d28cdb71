//! What a farm is given to do: arrivals, sizes and owners of prompts, drawn from a seed.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Clients of a farm.
pub(crate) const CLIENTS: u32 = 200;

/// How long prompts take on a server of speed 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    /// Log-normal with a mean of 20 s and σ 1.2: one kind of work with a long tail.
    LogNormal,
    /// 2 s (70 %), 20 s (25 %) and 600 s (5 %): pictures beside videos.
    Mixed,
}

impl Times {
    /// A word for tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LogNormal => "log-normal",
            Self::Mixed => "mixed",
        }
    }

    /// Seconds on average.
    pub(crate) fn mean(self) -> f64 {
        match self {
            Self::LogNormal => 20.0,
            Self::Mixed => 0.70 * 2.0 + 0.25 * 20.0 + 0.05 * 600.0,
        }
    }

    /// Seconds of one prompt, and the number of its kind.
    fn draw(self, random: &mut SmallRng) -> (f64, u64) {
        match self {
            Self::LogNormal => {
                let sigma = 1.2_f64;
                let mu = self.mean().ln() - sigma * sigma / 2.0;
                ((mu + sigma * normal(random)).exp(), 0)
            }
            Self::Mixed => match random.random::<f64>() {
                dice if dice < 0.70 => (2.0, 1),
                dice if dice < 0.95 => (20.0, 2),
                _ => (600.0, 3),
            },
        }
    }
}

/// A standard normal variate (Box and Muller, 1958).
fn normal(random: &mut SmallRng) -> f64 {
    let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.random::<f64>()).cos()
}

/// A farm and what it has to bear.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// Servers.
    pub(crate) servers: usize,
    /// Whether speeds go 1, 2, 4, 1, 2, 4 … instead of all being 1.
    pub(crate) unequal: bool,
    /// Lengths of prompts.
    pub(crate) times: Times,
    /// Work that arrives, as a share of what all servers together can do.
    pub(crate) load: f64,
}

impl Case {
    /// The speed of each server.
    pub(crate) fn speeds(&self) -> Vec<f64> {
        let speed = |server: usize| if self.unequal { [1.0, 2.0, 4.0][server % 3] } else { 1.0 };
        (0..self.servers).map(speed).collect()
    }

    /// Prompts of one run: enough that each server has dozens.
    pub(crate) fn prompts(&self, scale: f64) -> usize {
        ((4_000.max(60 * self.servers)) as f64 * scale) as usize
    }

    /// The prompts of one run, by time of arrival (a Poisson process). Each belongs to a client by
    /// Zipf's law with exponent 1.
    pub(crate) fn draw(&self, seed: u64, scale: f64) -> Vec<Prompt> {
        let mut random = SmallRng::seed_from_u64(seed);
        let total: f64 = self.speeds().iter().sum();
        let rate = self.load * total / self.times.mean();
        let appetites: Vec<f64> = (1..=CLIENTS)
            .scan(0.0, |sum, rank| {
                *sum += 1.0 / f64::from(rank);
                Some(*sum)
            })
            .collect();
        let hunger = appetites.last().copied().unwrap_or(1.0);
        // Which address has which appetite is a matter of luck.
        let first: u32 = random.random();
        let mut now = 0.0;
        let mut draw = || {
            now += -(1.0 - random.random::<f64>()).ln() / rate;
            let dice = random.random::<f64>() * hunger;
            let rank = appetites.partition_point(|sum| *sum < dice) as u32;
            let (work, kind) = self.times.draw(&mut random);
            let address = first.wrapping_add(rank.wrapping_mul(0x9E37_79B9));
            Prompt { at: now, work, kind, address }
        };
        (0..self.prompts(scale)).map(|_| draw()).collect()
    }
}

/// A prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prompt {
    /// Seconds from the beginning.
    pub(crate) at: f64,
    /// Seconds on a server of speed 1.
    pub(crate) work: f64,
    /// What sort of graph it is.
    pub(crate) kind: u64,
    /// The IPv4 address of its client.
    pub(crate) address: u32,
}

/// What one way of placing made of one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Seconds that each prompt waited, those of the warm-up left out.
    waits: Vec<f64>,
    busy: f64,
    until: f64,
}

impl Outcome {
    /// The first tenth warms the farm up and is not counted.
    pub(crate) fn is_counted(number: usize, of: usize) -> bool {
        number * 10 >= of
    }

    /// A prompt began after a wait and keeps a server until an instant.
    pub(crate) fn began(&mut self, counted: bool, wait: f64, seconds: f64, until: f64) {
        if counted {
            self.waits.push(wait);
        }
        self.busy += seconds;
        self.until = self.until.max(until);
    }

    /// How many prompts were counted.
    pub(crate) fn counted(&self) -> usize {
        self.waits.len()
    }

    /// Mean wait, its 95th and 99th percentile, and the share of time that servers were idle.
    pub(crate) fn figures(mut self, servers: usize) -> [f64; 4] {
        self.waits.sort_unstable_by(f64::total_cmp);
        let count = self.waits.len().max(1);
        let at = |share: f64| {
            let place = ((count as f64 * share).ceil() as usize).clamp(1, count) - 1;
            self.waits.get(place).copied().unwrap_or_default()
        };
        let mean = self.waits.iter().sum::<f64>() / count as f64;
        let idle = 1.0 - self.busy / (self.until * servers as f64).max(f64::MIN_POSITIVE);
        [mean, at(0.95), at(0.99), idle]
    }
}
