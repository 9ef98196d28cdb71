//! Unit and property tests of the choice.

use super::*;
use proptest::prelude::{any, prop};
use proptest::{prop_assert, prop_assert_eq, prop_compose, proptest};

const LEAST_BUSY: Rule =
    Rule { strategy: Strategy::LeastBusy, prefer_idle: true, queue_weight: true, zone_spill: 2 };

fn backend(prompts: u32) -> Candidate {
    Candidate {
        eligible: true,
        serves: true,
        in_zone: true,
        backup: false,
        suspect: false,
        stale: false,
        prompts,
        fresh_clients: 0,
        weight: 1,
        max_queue: 100,
        calls: 0,
        prompt_seconds: 0.0,
        ramp: 1.0,
    }
}

fn ring_of(n: usize) -> Ring {
    let names: Vec<String> = (0..n).map(|i| format!("comfy-{i}")).collect();
    Ring::new(names.iter().map(|name| (name.as_str(), 1)))
}

fn pick(candidates: &[Candidate], rule: Rule, key: u64) -> Option<Choice> {
    let client = Client { key: &key.to_be_bytes(), turn: key };
    choose(candidates, &ring_of(candidates.len()), rule, client, &[])
}

#[test]
fn a_new_client_goes_to_the_shortest_queue() {
    let farm = [backend(5), backend(2), backend(8)];
    for key in 0..200 {
        assert_eq!(pick(&farm, LEAST_BUSY, key).unwrap().position, 1);
    }
}

#[test]
fn an_idle_farm_maps_by_the_ring_alone_whoever_came_lately() {
    let quiet = [backend(0), backend(0), backend(0)];
    let mut visited = quiet.clone();
    visited[1].fresh_clients = 40;
    for key in 0..500 {
        let choice = pick(&quiet, LEAST_BUSY, key).unwrap();
        assert_eq!(choice.reason, Reason::Owner);
        assert_eq!(Some(choice), pick(&visited, LEAST_BUSY, key));
    }
}

#[test]
fn lately_placed_clients_break_ties_of_a_busy_farm() {
    let mut farm = [backend(4), backend(1), backend(1)];
    farm[1].fresh_clients = 3;
    let ring = ring_of(3);
    let key =
        (0..u64::MAX).find(|key| ring.first(&key.to_be_bytes(), |_| true) == Some(0)).unwrap();
    let choice = pick(&farm, LEAST_BUSY, key).unwrap();
    assert_eq!(choice, Choice { position: 2, reason: Reason::LeastLoaded });
}

#[test]
fn stale_and_suspect_rank_behind_fresh_but_before_full() {
    let mut farm = [backend(9), backend(0), backend(0)];
    farm[1].stale = true;
    farm[2].suspect = true;
    assert!((0..100).all(|key| pick(&farm, LEAST_BUSY, key).unwrap().position == 0));
    farm[0].max_queue = 9;
    assert!((0..100).all(|key| pick(&farm, LEAST_BUSY, key).unwrap().position != 0));
}

#[test]
fn when_all_are_full_the_least_full_takes_it() {
    let mut farm = [backend(10), backend(12), backend(20)];
    for (candidate, max_queue) in farm.iter_mut().zip([5, 10, 10]) {
        candidate.max_queue = max_queue;
    }
    let choice = pick(&farm, LEAST_BUSY, 7).unwrap();
    assert_eq!(choice, Choice { position: 1, reason: Reason::LeastFull });
}

#[test]
fn new_sessions_spread_over_the_idle_and_keep_off_the_busy() {
    let mut farm = [backend(0), backend(0), backend(1), backend(0)];
    farm[3].backup = true;
    let mut sessions = [0usize; 4];
    for _ in 0..10 {
        let home = roomiest(&farm, |p| sessions[p]).unwrap();
        sessions[home] += 1;
    }
    assert_eq!(sessions, [5, 5, 0, 0]);
    farm[0].eligible = false;
    farm[1].weight = 9;
    farm[2].prompts = 0;
    assert_eq!(roomiest(&farm, |p| [0, 5, 1, 0][p]), Some(1), "five of weight nine are fewer");
    assert_eq!(roomiest(&[], |_| 0), None);
}

#[test]
fn backups_serve_only_when_no_other_can() {
    let mut farm = [backend(90), backend(0)];
    farm[1].backup = true;
    assert_eq!(pick(&farm, LEAST_BUSY, 1).unwrap().position, 0);
    farm[0].eligible = false;
    let choice = pick(&farm, LEAST_BUSY, 1).unwrap();
    assert_eq!(choice, Choice { position: 1, reason: Reason::Backup });
    farm[1].eligible = false;
    assert_eq!(pick(&farm, LEAST_BUSY, 1), None);
}

#[test]
fn strategies_compare_what_their_name_says() {
    let mut farm = [backend(4), backend(3), backend(9)];
    farm[0].weight = 4;
    farm[2].calls = 1;
    farm[0].calls = 5;
    farm[1].calls = 9;
    farm[0].prompt_seconds = 60.0;
    farm[1].prompt_seconds = 30.0;
    farm[2].prompt_seconds = 2.0;
    let with = |strategy| Rule { strategy, prefer_idle: false, ..LEAST_BUSY };
    let position = |strategy| pick(&farm, with(strategy), 3).unwrap().position;
    assert_eq!(position(Strategy::LeastBusy), 1);
    assert_eq!(position(Strategy::Weighted), 0);
    assert_eq!(position(Strategy::LeastCalls), 2);
    assert_eq!(position(Strategy::LeastWait), 2);
}

#[test]
fn turns_visit_each_backend_as_often_as_its_weight() {
    let mut farm = [backend(0), backend(0), backend(0)];
    farm[1].weight = 3;
    let count = |strategy| {
        let rule = Rule { strategy, prefer_idle: false, ..LEAST_BUSY };
        let mut counts = [0; 3];
        for turn in 0..500 {
            counts[pick(&farm, rule, turn).unwrap().position] += 1;
        }
        counts
    };
    assert_eq!(count(Strategy::WeightedRoundRobin), [100, 300, 100]);
    assert_eq!(count(Strategy::RoundRobin), [167, 167, 166]);
}

#[test]
fn prefer_idle_goes_before_turns() {
    let farm = [backend(2), backend(0), backend(1)];
    let rule = Rule { strategy: Strategy::RoundRobin, ..LEAST_BUSY };
    assert!((0..9).all(|turn| pick(&farm, rule, turn).unwrap().position == 1));
}

#[test]
fn without_queue_weight_the_ring_decides_alone() {
    let farm = [backend(5), backend(0), backend(50)];
    let rule = Rule { queue_weight: false, ..LEAST_BUSY };
    let quiet = [backend(0), backend(0), backend(0)];
    for key in 0..100 {
        assert_eq!(pick(&farm, rule, key), pick(&quiet, LEAST_BUSY, key));
    }
}

#[test]
fn a_returning_backend_takes_a_growing_share() {
    let mut farm = [backend(0), backend(0)];
    let share = |farm: &[Candidate]| {
        (0..4000).filter(|&key| pick(farm, LEAST_BUSY, key).unwrap().position == 0).count()
    };
    let full = share(&farm);
    farm[0].ramp = 0.5;
    let half = share(&farm);
    farm[0].ramp = 0.1;
    let tenth = share(&farm);
    assert!(half * 10 > full * 4 && half * 10 < full * 6, "{full} {half}");
    assert!(tenth * 100 > full * 5 && tenth * 100 < full * 16, "{full} {tenth}");
    // Alone, it takes everybody all the same.
    farm[1].eligible = false;
    assert_eq!(share(&farm), 4000);
}

#[test]
fn a_burst_fills_queues_level() {
    // Thirty prompts into queues of 5, 2 and 8, each counted as soon as it is placed.
    let mut farm = [backend(5), backend(2), backend(8)];
    for key in 0..30 {
        let position = pick(&farm, LEAST_BUSY, key).unwrap().position;
        farm[position].prompts += 1;
    }
    let depths: Vec<u32> = farm.iter().map(|c| c.prompts).collect();
    assert_eq!(depths, [15, 15, 15]);
}

/// A farm of `in_zone` queues followed by others.
fn zoned(here: &[u32], there: &[u32]) -> Vec<Candidate> {
    let there = there.iter().map(|&prompts| Candidate { in_zone: false, ..backend(prompts) });
    here.iter().map(|&prompts| backend(prompts)).chain(there).collect()
}

#[test]
fn a_client_leaves_its_zone_only_when_the_queue_there_is_longer_by_more_than_the_spill() {
    let goes_to = |here: u32, there: u32| {
        let farm = zoned(&[here], &[there]);
        let goes: Vec<_> =
            (0..50).map(|key| pick(&farm, LEAST_BUSY, key).unwrap().position).collect();
        assert!(goes.iter().all(|position| *position == goes[0]), "{here} {there}: {goes:?}");
        goes[0]
    };
    assert_eq!((goes_to(0, 0), goes_to(2, 0), goes_to(3, 1)), (0, 0, 0));
    assert_eq!((goes_to(3, 0), goes_to(9, 6)), (1, 1));
}

#[test]
fn the_best_of_the_zone_counts_not_its_mean() {
    let farm = zoned(&[50, 4], &[2, 60]);
    assert_eq!(pick(&farm, LEAST_BUSY, 1).unwrap().position, 1);
}

#[test]
fn a_full_or_broken_zone_is_left_at_once() {
    let mut farm = zoned(&[2], &[1]);
    farm[0].max_queue = 2;
    assert_eq!(pick(&farm, LEAST_BUSY, 1).unwrap().position, 1);
    farm[0].max_queue = 100;
    farm[0].stale = true;
    assert_eq!(pick(&farm, LEAST_BUSY, 1).unwrap().position, 1);
    farm[0].eligible = false;
    assert_eq!(pick(&farm, LEAST_BUSY, 1).unwrap().position, 1);
}

#[test]
fn without_queue_weight_the_zone_is_kept_whatever_its_queue() {
    let farm = zoned(&[90], &[0, 0]);
    let rule = Rule { queue_weight: false, ..LEAST_BUSY };
    assert!((0..50).all(|key| pick(&farm, rule, key).unwrap().position == 0));
}

#[test]
fn a_backup_serves_the_kind_of_work_that_no_other_does() {
    let mut farm = [backend(0), backend(5)];
    farm[0].serves = false;
    farm[1].backup = true;
    let choice = pick(&farm, LEAST_BUSY, 1).unwrap();
    assert_eq!(choice, Choice { position: 1, reason: Reason::Backup });
    farm[1].serves = false;
    assert_eq!(pick(&farm, LEAST_BUSY, 1), None);
}

fn any_strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop::sample::select(vec![
        Strategy::LeastBusy,
        Strategy::RoundRobin,
        Strategy::Weighted,
        Strategy::WeightedRoundRobin,
        Strategy::LeastCalls,
        Strategy::LeastWait,
        Strategy::IpHash,
    ])
}

prop_compose! {
    fn any_candidate()(
        flags in any::<[bool; 5]>(),
        serves in prop::sample::select(vec![true, true, false]),
        prompts in 0u32..20,
        fresh_clients in 0u32..9,
        weight in 1u32..6,
        max_queue in 1u32..12,
        calls in 0u64..50,
        prompt_seconds in prop::sample::select(vec![0.0, 0.5, 20.0]),
        ramp in prop::sample::select(vec![0.0, 0.3, 1.0, 1.0, 1.0]),
    ) -> Candidate {
        let [eligible, backup, suspect, stale, in_zone] = flags;
        Candidate { eligible, serves, in_zone, backup, suspect, stale, prompts, fresh_clients,
            weight, max_queue, calls, prompt_seconds, ramp }
    }
}

prop_compose! {
    fn any_rule()(
        strategy in any_strategy(), flags in any::<[bool; 2]>(), zone_spill in 0u32..5,
    ) -> Rule {
        Rule { strategy, prefer_idle: flags[0], queue_weight: flags[1], zone_spill }
    }
}

proptest! {
    #[test]
    fn only_eligible_untried_backends_are_taken(
        farm in prop::collection::vec(any_candidate(), 0..9),
        rule in any_rule(), key in any::<u64>(), tried in prop::collection::vec(0usize..9, 0..4),
    ) {
        let client = Client { key: &key.to_be_bytes(), turn: key };
        let open = |p: usize| farm[p].eligible && farm[p].serves && !tried.contains(&p);
        match choose(&farm, &ring_of(farm.len()), rule, client, &tried) {
            Some(choice) => {
                prop_assert!(open(choice.position));
                let taken = &farm[choice.position];
                prop_assert!(!taken.backup || (0..farm.len()).all(|p| !open(p) || farm[p].backup));
            }
            None => prop_assert!(!(0..farm.len()).any(open)),
        }
    }

    #[test]
    fn nobody_goes_above_the_bound_while_another_has_room(
        farm in prop::collection::vec(any_candidate(), 1..9), rule in any_rule(), key in any::<u64>(),
    ) {
        if let Some(choice) = pick(&farm, rule, key) {
            let taken = &farm[choice.position];
            if taken.prompts >= taken.max_queue {
                let room = farm.iter().any(|c| {
                    c.eligible && c.serves && c.backup == taken.backup && c.prompts < c.max_queue
                });
                prop_assert!(!room);
            }
        }
    }

    /// Whatever the strategy: nobody is sent abroad while a queue at home, of the same class, is
    /// within the spill of the shortest one there.
    #[test]
    fn nobody_leaves_a_zone_that_is_within_the_spill(
        farm in prop::collection::vec(any_candidate(), 1..9), rule in any_rule(), key in any::<u64>(),
    ) {
        // Slow starts narrow the field before zones do.
        let farm: Vec<_> = farm.into_iter().map(|c| Candidate { ramp: 1.0, ..c }).collect();
        if let Some(choice) = pick(&farm, rule, key) {
            let taken = &farm[choice.position];
            let peers = |in_zone: bool| {
                let peers = farm.iter().filter(move |c| c.in_zone == in_zone);
                peers.filter(|c| {
                    c.eligible && c.serves && c.backup == taken.backup && c.class() == taken.class()
                })
            };
            let abroad = peers(false).map(|c| c.prompts).min();
            if let (false, Some(abroad)) = (taken.in_zone, abroad) {
                prop_assert!(peers(true).all(|c| c.prompts > abroad + rule.zone_spill));
            }
        }
    }

    /// Replicas agree, and a zone without backends is as none.
    #[test]
    fn an_idle_zone_maps_by_the_ring_alone(
        zones in prop::collection::vec(any::<bool>(), 1..8), key in any::<u64>(),
    ) {
        let farm: Vec<_> =
            zones.iter().map(|&in_zone| Candidate { in_zone, ..backend(0) }).collect();
        let nobody = !zones.contains(&true);
        let owner = ring_of(farm.len()).first(&key.to_be_bytes(), |p| nobody || zones[p]);
        prop_assert_eq!(pick(&farm, LEAST_BUSY, key).map(|choice| choice.position), owner);
    }

    #[test]
    fn an_idle_farm_moves_only_the_clients_of_what_leaves(key in any::<u64>(), gone in 0usize..4) {
        let mut farm = vec![backend(0); 4];
        let before = pick(&farm, LEAST_BUSY, key).unwrap().position;
        farm[gone].eligible = false;
        let after = pick(&farm, LEAST_BUSY, key).unwrap().position;
        prop_assert!(before == gone || before == after);
    }

    #[test]
    fn the_choice_does_not_depend_on_the_order_of_the_list(
        prompts in prop::collection::vec(0u32..4, 2..7), key in any::<u64>(), by in 1usize..6,
    ) {
        let names: Vec<String> = (0..prompts.len()).map(|i| format!("b{i}")).collect();
        let mut list: Vec<(String, u32)> = names.into_iter().zip(prompts).collect();
        let name_of = |list: &[(String, u32)]| {
            let farm: Vec<_> = list.iter().map(|(_, prompts)| backend(*prompts)).collect();
            let ring = Ring::new(list.iter().map(|(name, _)| (name.as_str(), 1)));
            let client = Client { key: &key.to_be_bytes(), turn: 0 };
            list[choose(&farm, &ring, LEAST_BUSY, client, &[]).unwrap().position].0.clone()
        };
        let before = name_of(&list);
        let n = list.len();
        list.rotate_left(by % n);
        prop_assert_eq!(before, name_of(&list));
    }
}
