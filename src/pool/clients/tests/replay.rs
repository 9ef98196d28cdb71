//! What a client has in the end when its connection breaks again and again.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const NOW: Moment = Moment(1000);

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// A job tells something: which, what, how much.
    Tell(u64, usize, usize),
    /// The socket takes so many frames.
    Read(usize),
    /// The client answers a ping: it has all that was taken.
    Pong,
    /// The connection breaks; of the frames that were not confirmed so many reached the client.
    Break(usize),
    /// The client comes back.
    Back,
}

const MEANINGS: [Meaning; 6] = [
    Meaning::Executing,
    Meaning::Progress,
    Meaning::ProgressState,
    Meaning::Output,
    Meaning::Other,
    Meaning::End,
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4u64, 0..6usize, 0..3000usize).prop_map(|(j, m, size)| Step::Tell(j, m, size)),
        4 => (0..6usize).prop_map(Step::Read),
        1 => Just(Step::Pong),
        1 => (0..10usize).prop_map(Step::Break),
        1 => Just(Step::Back),
    ]
}

/// A client that remembers what reached it.
#[derive(Default)]
struct Client {
    has: Vec<Frame>,
    on_the_way: Vec<Frame>,
}

impl Client {
    fn arrive(&mut self, count: usize) {
        let count = count.min(self.on_the_way.len());
        self.has.extend(self.on_the_way.drain(..count));
        self.on_the_way.clear();
    }
}

fn run(steps: &[Step], events: ClientEvents) -> (Vec<Delivery>, Vec<Frame>) {
    let mut session = live(events);
    let mut client = Client::default();
    let mut told = Vec::new();
    let mut runs = [0_u64; 4];
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Tell(lane, meaning, size) => {
                let lane = *lane as usize;
                let job = lane as u64 + 10 * runs[lane];
                let delivery = sized(job, MEANINGS[*meaning], &at.to_string(), *size);
                runs[lane] += u64::from(delivery.meaning == Meaning::End);
                told.push(delivery.clone());
                session.deliver(delivery, NOW);
            }
            Step::Read(count) if session.is_live() => {
                for _ in 0..*count {
                    if let Next::Frame(frame) = session.next(NOW) {
                        client.on_the_way.push(frame);
                    }
                }
            }
            Step::Pong if session.is_live() => {
                if let Some(number) = session.to_confirm(NOW) {
                    session.confirmed(number);
                }
                client.arrive(usize::MAX);
            }
            Step::Break(count) if session.is_live() => {
                client.arrive(*count);
                session.detached(true, NOW);
            }
            Step::Back if !session.is_live() => session.attached(NOW, &attach(events)),
            _ => {}
        }
    }
    session.attached(NOW, &attach(events));
    for job in 0..1000 {
        session.job_ended(JobId(job), NOW);
    }
    client.arrive(0);
    client.on_the_way = drain(&mut session, NOW);
    client.arrive(usize::MAX);
    (told, client.has)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_event_is_lost_and_what_was_missed_comes_in_order(
        steps in prop::collection::vec(step(), 1..200),
        serial: bool,
    ) {
        let events = if serial { ClientEvents::Serial } else { ClientEvents::Interleaved };
        let (told, has) = run(&steps, events);
        let state = [Meaning::Progress, Meaning::ProgressState, Meaning::Executing];
        let had: HashSet<_> = has.iter().map(|frame| &frame.bytes).collect();
        for delivery in told.iter().filter(|delivery| !state.contains(&delivery.meaning)) {
            prop_assert!(had.contains(&delivery.frame.bytes), "lost: {:?}", delivery.frame);
        }
        // Of each job, the events that came for the first time came in their order.
        let mut first = HashSet::new();
        let firsts: Vec<&Frame> = has.iter().filter(|frame| first.insert(&frame.bytes)).collect();
        for job in told.iter().map(|delivery| delivery.job).collect::<HashSet<_>>() {
            let of_job = told.iter().filter(|d| d.job == job && !state.contains(&d.meaning));
            let of_job: Vec<&Frame> = of_job.map(|delivery| &delivery.frame).collect();
            let places: Vec<_> = (firsts.iter())
                .filter_map(|frame| of_job.iter().position(|other| other == frame))
                .collect();
            prop_assert!(places.is_sorted(), "job {job:?}: {places:?}");
        }
        let greetings = has.iter().filter(|frame| frame.bytes.starts_with(b"{\"type\": \""));
        let strangers = firsts.len() - told.iter().filter(|d| first.contains(&d.frame.bytes)).count();
        prop_assert!(strangers <= greetings.count(), "something that was never told");
    }
}
