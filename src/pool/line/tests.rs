//! The line against a plain model of itself, and its fairness.

use proptest::prelude::*;

use super::*;

fn key(client: u8) -> ClientKey {
    ClientKey::from_bytes([client; 16])
}

fn ticket(id: u64, client: u8) -> Ticket {
    let level = Level { again: false, priority: 0 };
    Ticket { id: JobId(id), flow: key(client), level, number: id as f64, cost: 1.0 }
}

fn lanes<const N: usize>(lanes: [usize; N]) -> LaneSet {
    lanes.into_iter().collect()
}

fn next(line: &mut Line, lane: usize) -> Option<JobId> {
    let id = line.best(|set| set.contains(lane))?;
    line.take(id, lane);
    Some(id)
}

#[test]
fn one_job_of_another_is_second_after_a_batch_of_500() {
    let mut line = Line::default();
    (0..500).for_each(|id| line.push(ticket(id, 1), lanes([0])));
    assert_eq!(next(&mut line, 0), Some(JobId(0)));
    line.push(ticket(500, 2), lanes([0]));
    assert_eq!(next(&mut line, 0), Some(JobId(500)));
    assert_eq!(next(&mut line, 0), Some(JobId(1)));
}

#[test]
fn a_batch_in_a_class_of_its_own_does_not_hold_up_another_class() {
    let mut line = Line::default();
    (0..500).for_each(|id| line.push(ticket(id, 1), lanes([0])));
    for _ in 0..100 {
        next(&mut line, 0);
    }
    line.push(ticket(900, 2), lanes([0, 1]));
    line.push(ticket(901, 2), lanes([0, 1]));
    let turns: Vec<_> = (0..4).filter_map(|_| next(&mut line, 0)).map(|id| id.0).collect();
    assert_eq!(turns, [900, 100, 901, 101]);
}

#[test]
fn what_runs_again_goes_first_then_priority() {
    let mut line = Line::default();
    line.push(ticket(1, 1), lanes([0]));
    line.push(Ticket { level: Level { again: false, priority: 5 }, ..ticket(2, 2) }, lanes([0]));
    line.push(Ticket { level: Level { again: true, priority: 0 }, ..ticket(3, 3) }, lanes([0]));
    let turns: Vec<_> = (0..3).filter_map(|_| next(&mut line, 0)).map(|id| id.0).collect();
    assert_eq!(turns, [3, 2, 1]);
}

#[test]
fn a_callers_own_jobs_go_by_number_then_arrival() {
    let mut line = Line::default();
    for (id, number) in [(1, 3.0), (2, -1.0), (3, 3.0), (4, -0.0), (5, 0.0)] {
        line.push(Ticket { number, ..ticket(id, 1) }, lanes([0]));
    }
    let turns: Vec<_> = (0..5).filter_map(|_| next(&mut line, 0)).map(|id| id.0).collect();
    assert_eq!(turns, [2, 4, 5, 1, 3]);
}

#[test]
fn a_lane_takes_only_what_it_can_run() {
    let mut line = Line::default();
    line.push(ticket(1, 1), lanes([1, 70]));
    assert_eq!(next(&mut line, 0), None);
    assert_eq!(next(&mut line, 70), Some(JobId(1)));
    assert!(line.is_empty());
    assert!(line.classes.iter().all(Option::is_none));
}

#[test]
fn who_used_more_time_than_thought_waits_longer() {
    let mut line = Line::default();
    (0..4).for_each(|id| line.push(ticket(id, 1), lanes([0])));
    (4..8).for_each(|id| line.push(ticket(id, 2), lanes([0])));
    next(&mut line, 0);
    line.correct(&ticket(0, 1), 0, 2.0);
    let turns: Vec<_> = (0..5).filter_map(|_| next(&mut line, 0)).map(|id| id.0).collect();
    assert_eq!(turns, [4, 5, 6, 1, 7]);
}

/// The same rules, by looking at everything.
#[derive(Default)]
struct Model {
    jobs: Vec<(Ticket, LaneSet)>,
    tags: Vec<((LaneSet, Level, ClientKey), f64, u64)>,
    times: Vec<((LaneSet, Level), f64)>,
    turn: u64,
}

impl Model {
    fn time(&mut self, of: &(LaneSet, Level)) -> &mut f64 {
        if let Some(at) = self.times.iter().position(|(key, _)| key == of) {
            return &mut self.times[at].1;
        }
        let sharing =
            self.times.iter().filter(|((set, level), _)| *level == of.1 && set.intersects(&of.0));
        let time = sharing.map(|(_, time)| *time).fold(0.0, f64::max);
        self.times.push((of.clone(), time));
        &mut self.times.last_mut().unwrap().1
    }

    fn waits(&self, set: &LaneSet, level: Level, flow: Option<ClientKey>) -> bool {
        let of = |(ticket, lanes): &(Ticket, LaneSet)| {
            lanes == set && ticket.level == level && flow.is_none_or(|flow| ticket.flow == flow)
        };
        self.jobs.iter().any(of)
    }

    fn push(&mut self, ticket: Ticket, set: LaneSet) {
        let time = *self.time(&(set.clone(), ticket.level));
        let at = (set.clone(), ticket.level, ticket.flow);
        self.turn += 1;
        if !self.waits(&set, ticket.level, Some(ticket.flow)) {
            match self.tags.iter_mut().find(|(key, ..)| *key == at) {
                Some((_, tag, since)) => (*tag, *since) = (tag.max(time), self.turn),
                None => self.tags.push((at, time, self.turn)),
            }
        }
        self.jobs.push((ticket, set));
    }

    fn tag(&self, ticket: &Ticket, set: &LaneSet) -> (f64, u64) {
        let at = (set.clone(), ticket.level, ticket.flow);
        let found = self.tags.iter().find(|(key, ..)| *key == at).unwrap();
        (found.1, found.2)
    }

    fn best(&self, lane: usize) -> Option<usize> {
        let first = |at: &usize| {
            let (ticket, set) = &self.jobs[*at];
            !self.jobs.iter().any(|(other, lanes)| {
                lanes == set
                    && (other.level, other.flow) == (ticket.level, ticket.flow)
                    && (other.number, other.id) < (ticket.number, ticket.id)
            })
        };
        let heads = (0..self.jobs.len()).filter(|at| self.jobs[*at].1.contains(lane)).filter(first);
        heads.min_by(|&a, &b| {
            let rank = |at: usize| (std::cmp::Reverse(self.jobs[at].0.level), self.jobs[at].0.id);
            let tag = |at: usize| self.tag(&self.jobs[at].0, &self.jobs[at].1);
            let ((level_a, id_a), (level_b, id_b)) = (rank(a), rank(b));
            let ((tag_a, since_a), (tag_b, since_b)) = (tag(a), tag(b));
            let tags = tag_a.total_cmp(&tag_b).then(since_a.cmp(&since_b));
            level_a.cmp(&level_b).then(tags).then(id_a.cmp(&id_b))
        })
    }

    fn take(&mut self, at: usize, lane: usize) -> JobId {
        let (ticket, set) = self.jobs.remove(at);
        let (start, _) = self.tag(&ticket, &set);
        self.turn += 1;
        let mut charged: Vec<usize> = Vec::new();
        for (at, ((lanes, level, flow), ..)) in self.tags.iter().enumerate() {
            let shares = lanes.intersects(&set) && (*level, *flow) == (ticket.level, ticket.flow);
            if shares {
                charged.push(at);
            }
        }
        for at in charged {
            self.tags[at].1 += ticket.cost;
            if self.tags[at].0.0 == set {
                self.tags[at].2 = self.turn;
            }
        }
        for ((lanes, level), time) in &mut self.times {
            if lanes.contains(lane) && *level == ticket.level {
                *time = time.max(start);
            }
        }
        self.forget(&set, ticket.level);
        ticket.id
    }

    fn remove(&mut self, id: JobId) {
        if let Some(at) = self.jobs.iter().position(|(ticket, _)| ticket.id == id) {
            let (ticket, set) = self.jobs.remove(at);
            self.forget(&set, ticket.level);
        }
    }

    fn forget(&mut self, set: &LaneSet, level: Level) {
        if !self.waits(set, level, None) {
            self.times.retain(|(key, _)| *key != (set.clone(), level));
            self.tags.retain(|((lanes, of, _), ..)| (lanes, *of) != (set, level));
        }
        // A tag that virtual time has caught up with says nothing.
        let times = self.times.clone();
        let jobs = std::mem::take(&mut self.jobs);
        self.tags.retain(|((lanes, of, flow), tag, _)| {
            let time = times.iter().find(|((set, level), _)| (set, level) == (lanes, of));
            let waits = jobs
                .iter()
                .any(|(ticket, set)| set == lanes && (ticket.level, ticket.flow) == (*of, *flow));
            waits || time.is_some_and(|(_, time)| tag > time)
        });
        self.jobs = jobs;
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push(u8, i8, bool, u8),
    Take(usize),
    Remove(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4u8, -1..2i8, prop::bool::weighted(0.1), 1..8u8)
            .prop_map(|(client, priority, again, set)| Step::Push(client, priority, again, set)),
        3 => (0..3usize).prop_map(Step::Take),
        1 => (0..60u64).prop_map(Step::Remove),
    ]
}

proptest! {
    #[test]
    fn it_does_as_a_plain_model_does(steps in prop::collection::vec(step(), 1..120)) {
        let (mut line, mut model) = (Line::default(), Model::default());
        let mut id = 0;
        for step in steps {
            match step {
                Step::Push(client, priority, again, bits) => {
                    let level = Level { again, priority: i32::from(priority / 2) };
                    let number = f64::from(priority);
                    let new = Ticket { level, number, ..ticket(id, client) };
                    let set: LaneSet = (0..3).filter(|lane| bits & (1 << lane) != 0).collect();
                    line.push(new, set.clone());
                    model.push(new, set);
                    id += 1;
                }
                Step::Take(lane) => {
                    let wanted = model.best(lane).map(|at| model.take(at, lane));
                    prop_assert_eq!(next(&mut line, lane), wanted);
                }
                Step::Remove(gone) => {
                    line.remove(JobId(gone));
                    model.remove(JobId(gone));
                }
            }
            prop_assert_eq!(line.len(), model.jobs.len());
        }
    }

    #[test]
    fn between_two_turns_of_one_who_waits_each_other_has_one_at_most(
        arrivals in prop::collection::vec((0..5u8, any::<bool>()), 1..300),
    ) {
        let mut line = Line::default();
        let mut since: HashMap<u8, HashMap<u8, u32>> = HashMap::new();
        let mut owners = HashMap::new();
        let mut waiting = [0u32; 5];
        for (id, (client, push)) in arrivals.into_iter().enumerate() {
            if push {
                line.push(ticket(id as u64, client), lanes([0]));
                owners.insert(JobId(id as u64), client);
                waiting[usize::from(client)] += 1;
            } else if let Some(took) = next(&mut line, 0) {
                let took = owners[&took];
                waiting[usize::from(took)] -= 1;
                for other in (0..5).filter(|other| *other != took) {
                    let turns = since.entry(other).or_default().entry(took).or_default();
                    *turns += 1;
                    prop_assert!(waiting[usize::from(other)] == 0 || *turns <= 1);
                }
                since.insert(took, HashMap::new());
            }
            for client in (0..5).filter(|client| waiting[usize::from(*client)] == 0) {
                since.remove(&client);
            }
        }
    }

    #[test]
    fn the_order_shown_is_the_order_dispatched(
        arrivals in prop::collection::vec((0..4u8, -2..3i8), 1..60),
    ) {
        let mut line = Line::default();
        for (id, (client, number)) in arrivals.into_iter().enumerate() {
            let number = f64::from(number);
            line.push(Ticket { number, ..ticket(id as u64, client) }, lanes([0]));
        }
        let shown: Vec<_> = line.order().collect();
        let done: Vec<_> = std::iter::from_fn(|| next(&mut line, 0)).collect();
        prop_assert_eq!(shown, done);
    }

    #[test]
    fn lane_sets_are_sets(a in prop::collection::btree_set(0..200usize, 0..9),
                          b in prop::collection::btree_set(0..200usize, 0..9)) {
        let (x, y): (LaneSet, LaneSet) = (a.iter().copied().collect(), b.iter().copied().collect());
        prop_assert_eq!(x.and(&y).iter().collect::<Vec<_>>(), a.intersection(&b).copied().collect::<Vec<_>>());
        prop_assert_eq!(x.without(&y).iter().collect::<Vec<_>>(), a.difference(&b).copied().collect::<Vec<_>>());
        prop_assert_eq!(x.intersects(&y), !a.is_disjoint(&b));
        prop_assert_eq!(x == y, a == b);
    }
}
