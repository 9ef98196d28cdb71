//! What a client of the random run is and does, drawn from a seed and nothing else: the decisions
//! repeat, what they meet depends on the timing.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Who a client is.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) index: usize,
    /// The `clientId` that it connects under; none lets the server make one, which it keeps.
    pub(crate) name: Option<String>,
    /// Whether it announces `supports_preview_metadata`.
    pub(crate) flags: bool,
    /// Whether its socket sends an `Origin`, as a page does.
    pub(crate) page: bool,
    /// Its address; two clients share one.
    pub(crate) address: String,
    /// Whether its prompts name no `client_id`.
    pub(crate) anonymous: bool,
}

impl Profile {
    /// The client of this number in the run of a seed.
    pub(crate) fn of(seed: u64, index: usize) -> Self {
        let minted = index % 7 == 3;
        Self {
            index,
            name: (!minted).then(|| format!("client-{seed}-{index}")),
            flags: index.is_multiple_of(3),
            page: index % 4 == 1,
            address: crate::support::client(index / 2),
            anonymous: index % 6 == 5,
        }
    }

    /// Its source of decisions.
    pub(crate) fn random(&self, seed: u64) -> StdRng {
        StdRng::seed_from_u64(seed ^ (self.index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

/// A prompt to be posted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Plan {
    Paced {
        seed: u64,
        seconds: f64,
        steps: u64,
        fail_at: i64,
        preview: bool,
        temporary: bool,
    },
    Empty {
        width: u32,
        height: u32,
        color: u32,
    },
    /// Its second output has a bad input.
    Partly {
        seed: u64,
    },
    /// Refused, in one of several ways.
    Invalid(u32),
    /// The client's last paced prompt again, which a server may have cached.
    Repeat,
    /// The picture that the client has uploaded last, loaded and saved.
    Load,
}

/// A prompt and its place in the queue.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    pub(crate) plan: Plan,
    pub(crate) number: Option<f64>,
    pub(crate) front: bool,
    /// Whether the client chooses the id.
    pub(crate) named: bool,
}

/// Something that a client does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Post(Vec<Order>),
    /// Uploads the picture of this seed.
    Upload(u64),
    /// Of the client's own prompts, the one so far from the last.
    Delete(usize),
    Interrupt(usize),
    /// Without an id.
    InterruptAny,
    /// Deletes one from history, if it is there.
    Forget(usize),
    ReadJob(usize),
    ReadQueue,
    /// The connection breaks without a close frame, by a reset or not; meanwhile a prompt may be
    /// posted.
    Break {
        reset: bool,
        away: Duration,
        post: Option<Order>,
    },
    /// A second socket takes the id, then the first one breaks.
    Replace,
    /// A close frame, and a new socket later.
    Leave {
        away: Duration,
    },
}

impl Step {
    /// The next one.
    pub(crate) fn draw(random: &mut StdRng) -> Self {
        let back = |random: &mut StdRng| random.random_range(0..4);
        match random.random_range(0..100) {
            0..42 => {
                let count = if random.random_ratio(1, 8) { random.random_range(2..7) } else { 1 };
                Self::Post((0..count).map(|_| Order::draw(random)).collect())
            }
            42..46 => Self::Upload(picture(random)),
            46..54 => Self::Delete(back(random)),
            54..61 => Self::Interrupt(back(random)),
            61..63 => Self::InterruptAny,
            63..68 => Self::Forget(back(random)),
            68..80 => Self::ReadJob(back(random)),
            80..88 => Self::ReadQueue,
            88..94 => Self::Break {
                reset: random.random(),
                away: pause(random, 150),
                post: random.random::<bool>().then(|| Order::draw(random)),
            },
            94..97 => Self::Replace,
            _ => Self::Leave { away: pause(random, 100) },
        }
    }
}

impl Order {
    fn draw(random: &mut StdRng) -> Self {
        Self {
            plan: Plan::draw(random),
            number: random
                .random_ratio(1, 12)
                .then(|| f64::from(random.random_range(-40..40)) / 4.0),
            front: random.random_ratio(1, 12),
            named: random.random_ratio(2, 3),
        }
    }
}

impl Plan {
    fn draw(random: &mut StdRng) -> Self {
        match random.random_range(0..100) {
            0..55 => Self::Paced {
                seed: picture(random),
                seconds: [0.0, 0.1, 0.3, 0.5, 1.0][random.random_range(0..5)],
                steps: random.random_range(1..6),
                fail_at: if random.random_ratio(1, 7) { random.random_range(0..6) } else { -1 },
                preview: random.random(),
                temporary: random.random_ratio(1, 6),
            },
            55..65 => Self::Empty {
                width: random.random_range(1..64),
                height: random.random_range(1..64),
                color: random.random_range(0..=0xff_ffff),
            },
            65..72 => Self::Partly { seed: picture(random) },
            72..78 => Self::Invalid(random.random_range(0..4)),
            78..90 => Self::Repeat,
            _ => Self::Load,
        }
    }
}

/// A picture's seed, within what `PacedImage` takes.
fn picture(random: &mut StdRng) -> u64 {
    random.random_range(0..=0x8000_0000)
}

fn pause(random: &mut StdRng, most_ms: u64) -> Duration {
    Duration::from_millis(random.random_range(0..most_ms))
}

/// Steps of `PacedImage` whose prompt is partly valid.
pub(crate) const PARTLY_STEPS: u64 = 2;

/// The graph of a prompt; `image` is what it loads.
pub(crate) fn graph(plan: &Plan, image: &str) -> Value {
    let paced = |seed: u64, seconds: f64, steps: u64, fail_at: i64, preview: bool| {
        json!({"class_type": "PacedImage", "inputs": {"seconds": seconds, "steps": steps,
            "seed": seed, "fail_at": fail_at, "preview": preview}})
    };
    let save = json!({"class_type": "SaveImage", "inputs":
        {"images": ["1", 0], "filename_prefix": "ComfyUI"}});
    match plan {
        Plan::Paced { seed, seconds, steps, fail_at, preview, temporary } => {
            let first = paced(*seed, *seconds, *steps, *fail_at, *preview);
            let show = json!({"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}});
            json!({"1": first, "2": if *temporary { show } else { save }})
        }
        Plan::Empty { width, height, color } => {
            let empty = json!({"class_type": "EmptyImage", "inputs":
                {"width": width, "height": height, "batch_size": 1, "color": color}});
            json!({"1": empty, "2": save})
        }
        Plan::Partly { seed } => {
            let lacking = json!({"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}});
            json!({"1": paced(*seed, 0.1, PARTLY_STEPS, -1, true), "2": save, "3": lacking})
        }
        Plan::Invalid(0) => json!({"1": {"class_type": "NoSuchNode", "inputs": {}}}),
        Plan::Invalid(1) => json!({"1": paced(1, 0.1, 1, -1, false)}),
        Plan::Invalid(2) => json!({"1": paced(1, 0.1, 0, -1, false), "2": save}),
        Plan::Invalid(_) => json!({"1": {"inputs": {}}}),
        Plan::Load | Plan::Repeat => {
            let load = json!({"class_type": "LoadImage", "inputs": {"image": image}});
            json!({"1": load, "2": save})
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_clients_and_steps() {
    let steps = |seed, index| {
        let mut random = Profile::of(seed, index).random(seed);
        (0..200).map(|_| Step::draw(&mut random)).collect::<Vec<_>>()
    };
    assert_eq!(steps(7, 0), steps(7, 0));
    assert_ne!(steps(7, 0), steps(7, 1));
    assert_ne!(steps(7, 0), steps(8, 0));
    let profiles: Vec<Profile> = (0..12).map(|index| Profile::of(7, index)).collect();
    let count = |is: fn(&Profile) -> bool| profiles.iter().filter(|one| is(one)).count();
    assert!(count(|p| p.flags) > 2 && count(|p| p.page) > 2 && count(|p| p.anonymous) == 2);
    assert!(count(|p| p.flags && p.page) > 0 && count(|p| p.name.is_none()) > 0);
}
