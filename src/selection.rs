//! Choosing a backend: a pure function from a snapshot of the fleet to a choice and its reason.
//!
//! [`choose`] ranks in four steps. First who may be taken at all (healthy, enabled, able to do the
//! work, not tried before; backups only when nothing else is left). Then the best class among
//! those: with room and a fresh reading, before a stale reading or a suspect, before a full queue.
//! Then the client's own zone, until its shortest queue is longer than the shortest elsewhere by
//! more than [`Rule::zone_spill`]. Then the strategy inside what is left. Queue-aware strategies ask the ketama owner of the client's
//! address first: when it is among the least loaded it is taken, so that an idle farm maps by
//! consistent hashing alone, the same in any order of arrival and on every replica.
//!
//! A full scan, not two random choices: below a few thousand backends it is as cheap and never
//! wrong (Envoy's advice for small farms). Polled depth alone would herd everybody to the backend
//! that looked idle (Mitzenmacher, "How Useful Is Old Information?", 2000), so a candidate's
//! `prompts` already hold what was sent since its last reading.

use crate::config::Strategy;
use crate::ring::Ring;

/// How much a client that was placed lately and has not sent a prompt yet weighs, in prompts.
pub const FRESH_CLIENT_WEIGHT: f64 = 0.25;

/// One backend as the choice sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Whether new clients may go there: healthy, enabled, not draining.
    pub eligible: bool,
    /// Whether it does the kind of work that is asked for.
    pub serves: bool,
    /// Whether it is in the client's zone; true everywhere for a client without one.
    pub in_zone: bool,
    /// Used only when no other is eligible.
    pub backup: bool,
    /// Its running prompt has shown no life for long.
    pub suspect: bool,
    /// Its last reading is older than three intervals and a poll's timeout, or there is none yet.
    pub stale: bool,
    /// Prompts queued and running, those sent since the last reading included.
    pub prompts: u32,
    /// Clients placed there lately that have not sent a prompt yet.
    pub fresh_clients: u32,
    /// Share of the load, at least 1.
    pub weight: u32,
    /// Prompts it should hold at most.
    pub max_queue: u32,
    /// Requests handed to it so far.
    pub calls: u64,
    /// Learnt seconds per prompt; 0 when nothing is known.
    pub prompt_seconds: f64,
    /// Share of new clients it may take while it starts slowly, 0 to 1; 1 otherwise.
    pub ramp: f64,
}

/// What the configuration says about choosing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The strategy.
    pub strategy: Strategy,
    /// Backends with nothing queued go first.
    pub prefer_idle: bool,
    /// False: ketama alone.
    pub queue_weight: bool,
    /// Prompts by which the own zone's shortest queue may exceed the shortest elsewhere.
    pub zone_spill: u32,
}

impl Rule {
    /// Whether ketama alone decides.
    pub fn is_hash_only(self) -> bool {
        !self.queue_weight || self.strategy == Strategy::IpHash
    }
}

/// Why a backend was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It owns the client's address and nobody has less to do.
    Owner,
    /// It has the least to do and the owner has more.
    LeastLoaded,
    /// It was its turn.
    InTurn,
    /// Every backend is full, and this one the least.
    LeastFull,
    /// Only backups are left.
    Backup,
}

impl Reason {
    /// A word for logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::LeastLoaded => "least_loaded",
            Self::InTurn => "in_turn",
            Self::LeastFull => "least_full",
            Self::Backup => "backup",
        }
    }
}

/// A position in the snapshot and why it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Position in the list of candidates.
    pub position: usize,
    /// Why.
    pub reason: Reason,
}

/// The client a backend is wanted for.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// What the ring hashes.
    pub key: &'a [u8],
    /// The how-manieth choice this is, for the strategies that take turns.
    pub turn: u64,
}

/// How good a candidate is before any strategy speaks; the least wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Room,
    Doubtful,
    Full,
}

impl Candidate {
    fn class(&self) -> Class {
        if self.prompts >= self.max_queue {
            Class::Full
        } else if self.suspect || self.stale {
            Class::Doubtful
        } else {
            Class::Room
        }
    }

    /// What queue-aware strategies compare, without the clients that only look around yet.
    fn cost(&self, strategy: Strategy, default_seconds: f64) -> f64 {
        self.cost_of(f64::from(self.prompts), strategy, default_seconds)
    }

    fn cost_of(&self, prompts: f64, strategy: Strategy, default_seconds: f64) -> f64 {
        match strategy {
            Strategy::Weighted => prompts / f64::from(self.weight.max(1)),
            Strategy::LeastWait if self.prompt_seconds > 0.0 => prompts * self.prompt_seconds,
            Strategy::LeastWait => prompts * default_seconds,
            Strategy::LeastCalls => self.calls as f64,
            _ => prompts,
        }
    }

    /// The cost with lately placed clients counted a little.
    fn cost_with_fresh(&self, strategy: Strategy, default_seconds: f64) -> f64 {
        let prompts = f64::from(self.prompts) + FRESH_CLIENT_WEIGHT * f64::from(self.fresh_clients);
        self.cost_of(prompts, strategy, default_seconds)
    }
}

/// Chooses a backend for a client, or nothing when none is eligible. `tried` are positions this
/// request has already failed on.
pub fn choose(
    candidates: &[Candidate],
    ring: &Ring,
    rule: Rule,
    client: Client<'_>,
    tried: &[usize],
) -> Option<Choice> {
    let open = |position: usize| {
        candidates
            .get(position)
            .is_some_and(|c| c.eligible && c.serves && !tried.contains(&position))
    };
    let primaries = (0..candidates.len()).any(|p| open(p) && !candidates[p].backup);
    let allowed = |position: usize| open(position) && candidates[position].backup != primaries;

    // A returning backend takes a share of the clients that grows with time; whose turn it is
    // depends on the client alone, so that replicas agree. Queues never overflow for its sake.
    let fraction = fraction_of(client.key);
    let ramped = |position: usize| allowed(position) && fraction < candidates[position].ramp;
    if (0..candidates.len()).any(|p| ramped(p) && candidates[p].class() != Class::Full) {
        choose_among(candidates, ring, rule, client, primaries, ramped)
    } else {
        choose_among(candidates, ring, rule, client, primaries, allowed)
    }
}

/// Chooses the backend of a new tab or cookie, whose id can be made to suit: of those with the
/// fewest prompts in the best class the one with the fewest sessions per weight. Two tabs of one
/// user so go to two servers, on an idle farm too, where a random id would let the ring decide.
pub fn roomiest(candidates: &[Candidate], sessions: impl Fn(usize) -> usize) -> Option<usize> {
    let open = || (0..candidates.len()).filter(|&p| candidates[p].eligible && candidates[p].serves);
    open().min_by(|&a, &b| {
        let rank = |p: usize| {
            let candidate = &candidates[p];
            (candidate.backup, candidate.class(), candidate.prompts)
        };
        let crowd = |p: usize| sessions(p) as f64 / f64::from(candidates[p].weight.max(1));
        rank(a).cmp(&rank(b)).then_with(|| crowd(a).total_cmp(&crowd(b)))
    })
}

fn choose_among(
    candidates: &[Candidate],
    ring: &Ring,
    rule: Rule,
    client: Client<'_>,
    primaries: bool,
    allowed: impl Fn(usize) -> bool,
) -> Option<Choice> {
    let best =
        (0..candidates.len()).filter(|&p| allowed(p)).map(|p| candidates[p].class()).min()?;
    let in_class = |position: usize| allowed(position) && candidates[position].class() == best;
    let at_home = stays_in_zone(candidates, rule, in_class);
    let left = |position: usize| in_class(position) && (!at_home || candidates[position].in_zone);
    let mut choice = match best {
        Class::Full => least_full(candidates, ring, client, left),
        _ if rule.is_hash_only() => owner(ring, client, left),
        _ => by_strategy(candidates, ring, rule, client, left),
    }?;
    if !primaries {
        choice.reason = Reason::Backup;
    }
    Some(choice)
}

/// Whether the client's zone is to be preferred: it has a backend to offer, and its shortest queue
/// is not longer than the shortest elsewhere by more than the rule allows. Where ketama alone
/// decides, queues have no say in this either.
fn stays_in_zone(candidates: &[Candidate], rule: Rule, accept: impl Fn(usize) -> bool) -> bool {
    let shortest = |in_zone: bool| {
        let there = (0..candidates.len()).filter(|&p| accept(p));
        there.map(|p| &candidates[p]).filter(|c| c.in_zone == in_zone).map(|c| c.prompts).min()
    };
    match (shortest(true), shortest(false)) {
        (Some(here), Some(there)) => {
            rule.is_hash_only() || here <= there.saturating_add(rule.zone_spill)
        }
        (here, _) => here.is_some(),
    }
}

fn owner(ring: &Ring, client: Client<'_>, accept: impl Fn(usize) -> bool) -> Option<Choice> {
    ring.first(client.key, accept).map(|position| Choice { position, reason: Reason::Owner })
}

/// Of full backends the one least over its bound, the owner first among equals.
fn least_full(
    candidates: &[Candidate],
    ring: &Ring,
    client: Client<'_>,
    accept: impl Fn(usize) -> bool,
) -> Option<Choice> {
    let fill =
        |p: usize| f64::from(candidates[p].prompts) / f64::from(candidates[p].max_queue.max(1));
    let least = minimum((0..candidates.len()).filter(|&p| accept(p)).map(fill))?;
    ring.first(client.key, |p| accept(p) && fill(p) <= least)
        .map(|position| Choice { position, reason: Reason::LeastFull })
}

fn by_strategy(
    candidates: &[Candidate],
    ring: &Ring,
    rule: Rule,
    client: Client<'_>,
    accept: impl Fn(usize) -> bool,
) -> Option<Choice> {
    let idle_exists =
        rule.prefer_idle && (0..candidates.len()).any(|p| accept(p) && candidates[p].prompts == 0);
    let accept = |p: usize| accept(p) && (!idle_exists || candidates[p].prompts == 0);
    match rule.strategy {
        Strategy::RoundRobin => in_turn(candidates, client.turn, |_| 1, accept),
        Strategy::WeightedRoundRobin => {
            in_turn(candidates, client.turn, |p| u64::from(candidates[p].weight.max(1)), accept)
        }
        strategy => least_loaded(candidates, ring, strategy, client, accept),
    }
}

/// The owner when it is among the cheapest; else the cheapest, with lately placed clients
/// counted, nearest on the ring among equals.
fn least_loaded(
    candidates: &[Candidate],
    ring: &Ring,
    strategy: Strategy,
    client: Client<'_>,
    accept: impl Fn(usize) -> bool,
) -> Option<Choice> {
    let default_seconds = mean_seconds(candidates);
    let cost = |p: usize| candidates[p].cost(strategy, default_seconds);
    let least = minimum((0..candidates.len()).filter(|&p| accept(p)).map(cost))?;
    let owner = ring.first(client.key, &accept)?;
    if cost(owner) <= least {
        return Some(Choice { position: owner, reason: Reason::Owner });
    }
    let cost = |p: usize| candidates[p].cost_with_fresh(strategy, default_seconds);
    let least = minimum((0..candidates.len()).filter(|&p| accept(p)).map(cost))?;
    ring.first(client.key, |p| accept(p) && cost(p) <= least)
        .map(|position| Choice { position, reason: Reason::LeastLoaded })
}

/// Turn `n` of a cycle in which every accepted backend comes `weight` times, interleaved by
/// stride scheduling (Waldspurger, 1995): the turn's place in the cycle is found by replaying
/// at most one cycle's strides, so no state is kept and no lock taken.
fn in_turn(
    candidates: &[Candidate],
    turn: u64,
    weight: impl Fn(usize) -> u64,
    accept: impl Fn(usize) -> bool,
) -> Option<Choice> {
    let accepted: Vec<usize> = (0..candidates.len()).filter(|&p| accept(p)).collect();
    let cycle: u64 = accepted.iter().map(|&p| weight(p)).sum();
    let target = turn.checked_rem(cycle)?;
    if cycle == accepted.len() as u64 {
        let position = accepted[target as usize];
        return Some(Choice { position, reason: Reason::InTurn });
    }
    // The k-th pick of a backend with weight w falls at (2k+1)/2w of the cycle; the pick that has
    // exactly `target` others before it is the turn's.
    let mut picks: Vec<(f64, usize)> = accepted
        .iter()
        .flat_map(|&p| {
            let w = weight(p);
            (0..w).map(move |k| ((2 * k + 1) as f64 / (2 * w) as f64, p))
        })
        .collect();
    let (_, pick, _) = picks
        .select_nth_unstable_by(target as usize, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    Some(Choice { position: pick.1, reason: Reason::InTurn })
}

/// Where a client falls in 0..1, by FNV-1a and a final mix: which share of the clients it is in.
fn fraction_of(key: &[u8]) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &byte in key {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// Mean of the learnt seconds per prompt, for backends that have not shown theirs.
fn mean_seconds(candidates: &[Candidate]) -> f64 {
    let (sum, count) = candidates
        .iter()
        .filter(|c| c.prompt_seconds > 0.0)
        .fold((0.0, 0u32), |(sum, count), c| (sum + c.prompt_seconds, count + 1));
    if count == 0 { 1.0 } else { sum / f64::from(count) }
}

fn minimum(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.min_by(f64::total_cmp)
}

#[cfg(test)]
mod tests;
