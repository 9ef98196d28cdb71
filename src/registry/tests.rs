//! Unit and property tests of the pure registry, driven by a simulated clock.

use proptest::prelude::*;

use super::*;
use crate::registry::instance::LONGEST_OUT;
use crate::registry::registration::Wanted;

const INTERVAL: Duration = Duration::from_secs(5);

fn wanted(port: u16, types: &[&str], heartbeat_seconds: Option<f64>) -> Registration {
    let wanted = Wanted {
        service_id: "yolo11x".into(),
        name: None,
        task_types: types.iter().map(ToString::to_string).collect(),
        endpoint: format!("http://10.0.0.1:{port}/infer"),
        version: None,
        heartbeat_seconds,
    };
    wanted.try_into().unwrap()
}

fn add(core: &mut Core, port: u16, types: &[&str]) -> BackendId {
    core.register(wanted(port, types, None), Moment(0), Timestamp::UNIX_EPOCH).unwrap().id()
}

fn at(seconds: u64) -> Moment {
    Moment(seconds * 1000)
}

#[test]
fn the_fewest_calls_win_and_a_newcomer_catches_up() {
    let mut core = Core::default();
    let first = add(&mut core, 1, &["人数统计"]);
    for _ in 0..4 {
        assert_eq!(core.choose("人数统计", &[], at(0)), Ok(first));
    }
    let second = add(&mut core, 2, &["人数统计"]);
    let chosen: Vec<_> = (0..6).map(|_| core.choose("人数统计", &[], at(0)).unwrap()).collect();
    assert_eq!(chosen, [second, second, second, second, first, second]);
}

#[test]
fn an_endpoint_registers_once_and_keeps_its_calls() {
    let mut core = Core::default();
    let id = add(&mut core, 1, &["a", "b"]);
    core.choose("a", &[], at(0)).unwrap();
    let again = core.register(wanted(1, &["c"], None), at(1), Timestamp::UNIX_EPOCH);
    assert_eq!(again, Ok(Registered::Updated(id)));
    assert_eq!((core.len(), core.get(id).unwrap().calls), (1, 1));
    assert_eq!(core.choose("a", &[], at(1)), Err(Nobody::UnknownType));
    assert_eq!(core.choose("c", &[], at(1)), Ok(id));
}

#[test]
fn labels_are_plain_unique_and_reused_only_when_free() {
    let mut core = Core::default();
    let (one, two) = (add(&mut core, 1, &["a"]), add(&mut core, 2, &["a"]));
    let label = |core: &Core, id| core.get(id).unwrap().label.clone();
    assert_eq!([label(&core, one), label(&core, two)], ["yolo11x:1", "yolo11x:2"]);
    core.remove(&wanted(1, &["a"], None).endpoint).unwrap();
    let three = add(&mut core, 3, &["a"]);
    assert_eq!(label(&core, three), "yolo11x:1");
    assert_eq!(slug("<b>检测/x y</b>"), "b----x-y--b");
    assert_eq!(slug("人头检测"), "service");
}

#[test]
fn a_failed_connection_takes_an_instance_out_for_ever_longer() {
    let mut core = Core::default();
    let id = add(&mut core, 1, &["a"]);
    let mut now = at(100);
    assert!(core.failed(id, Failure::Connect, now));
    assert!(!core.failed(id, Failure::Connect, now), "it is out already");
    for out in [1, 2, 4, 8, 16, 32, 60, 60] {
        let wait = Nobody::AllOut(Duration::from_secs(out));
        assert_eq!(core.choose("a", &[], now), Err(wait));
        assert!(core.due(Moment(now.0 + out * 1000 - 1), 9).is_empty());
        now = Moment(now.0 + out * 1000);
        assert_eq!(core.due(now, 9), [id]);
        assert!(core.due(now, 9).is_empty(), "it is being tried");
        core.probed(id, false, INTERVAL, now);
    }
    now = now.plus(LONGEST_OUT);
    core.due(now, 9);
    assert!(core.probed(id, true, INTERVAL, now));
    assert_eq!(core.choose("a", &[], now), Ok(id));
    // A connection alone does not clear the record, an answer does.
    core.failed(id, Failure::Connect, now);
    assert_eq!(core.choose("a", &[], now), Err(Nobody::AllOut(LONGEST_OUT)));
    core.due(now.plus(LONGEST_OUT), 9);
    core.probed(id, true, INTERVAL, now);
    core.answered(id);
    core.failed(id, Failure::Connect, now);
    assert_eq!(core.choose("a", &[], now), Err(Nobody::AllOut(Duration::from_secs(1))));
}

#[test]
fn the_third_cut_in_a_row_counts_and_slowness_never() {
    let mut core = Core::default();
    let id = add(&mut core, 1, &["a"]);
    assert!((0..9).all(|_| !core.failed(id, Failure::Timeout, at(0))));
    for _ in 0..2 {
        assert!(!core.failed(id, Failure::Reset, at(0)));
        assert!(!core.failed(id, Failure::Reset, at(0)));
        core.answered(id);
    }
    assert!(!core.failed(id, Failure::Reset, at(0)));
    assert!(!core.failed(id, Failure::Reset, at(0)));
    assert!(core.failed(id, Failure::Reset, at(0)));
}

#[test]
fn silence_expires_an_instance_and_a_heartbeat_or_a_registration_renews_it() {
    let mut core = Core::default();
    let registration = wanted(1, &["a"], Some(10.0));
    let endpoint = registration.endpoint.clone();
    core.register(registration.clone(), at(0), Timestamp::UNIX_EPOCH).unwrap();
    add(&mut core, 2, &["a"]);
    assert!(core.expire(Moment(9_999)).is_empty());
    assert!(core.beat(&endpoint, at(9), Timestamp::UNIX_EPOCH).is_some());
    assert!(core.expire(at(18)).is_empty());
    core.register(registration, at(18), Timestamp::UNIX_EPOCH).unwrap();
    assert!(core.expire(at(27)).is_empty());
    let gone = core.expire(at(28));
    assert_eq!((gone.len(), core.len()), (1, 1), "the one without a heartbeat stays");
    assert_eq!(core.beat(&endpoint, at(28), Timestamp::UNIX_EPOCH), None);
}

#[test]
fn there_is_room_for_so_many() {
    let mut core = Core::default();
    for port in 1..=MAX_INSTANCES as u16 {
        add(&mut core, port, &["a"]);
    }
    let more = core.register(wanted(60_000, &["a"], None), at(0), Timestamp::UNIX_EPOCH);
    assert_eq!(more, Err(Full));
    assert!(core.register(wanted(7, &["b"], None), at(0), Timestamp::UNIX_EPOCH).is_ok());
}

/// One step of a simulated registry.
#[derive(Debug, Clone)]
enum Step {
    Register { port: u16, types: Vec<usize>, heartbeat: Option<u8> },
    Remove { port: u16 },
    Beat { port: u16 },
    Call { task: usize, tried: usize },
    Fail { which: usize, failure: Failure },
    Answer { which: usize },
    Probe { connected: bool },
    Wait { millis: u16 },
}

const TYPES: [&str; 3] = ["人数统计", "a/b", "c"];

fn any_step() -> impl Strategy<Value = Step> {
    let failures = vec![Failure::Connect, Failure::Reset, Failure::Timeout];
    prop_oneof![
        3 => (0u16..6, prop::collection::vec(0usize..3, 1..3), prop::option::of(1u8..9))
            .prop_map(|(port, types, heartbeat)| Step::Register { port: port + 1, types, heartbeat }),
        1 => (1u16..7).prop_map(|port| Step::Remove { port }),
        1 => (1u16..7).prop_map(|port| Step::Beat { port }),
        6 => (0usize..3, 0usize..4).prop_map(|(task, tried)| Step::Call { task, tried }),
        2 => (0usize..6, prop::sample::select(failures))
            .prop_map(|(which, failure)| Step::Fail { which, failure }),
        1 => (0usize..6).prop_map(|which| Step::Answer { which }),
        2 => any::<bool>().prop_map(|connected| Step::Probe { connected }),
        2 => (0u16..5000).prop_map(|millis| Step::Wait { millis }),
    ]
}

/// The choice as the contract words it, against a plain list.
fn expected(core: &Core, task: &str, tried: &[BackendId]) -> Option<BackendId> {
    core.all()
        .filter(|i| i.is_healthy() && !tried.contains(&i.id))
        .filter(|i| i.registration.task_types.iter().any(|t| t == task))
        .min_by_key(|i| (i.calls, i.id))
        .map(|i| i.id)
}

fn check_indexes(core: &Core) {
    let mut endpoints = BTreeSet::new();
    let mut labels = BTreeSet::new();
    for instance in core.all() {
        assert!(endpoints.insert(instance.registration.endpoint.clone()), "an endpoint twice");
        assert!(labels.insert(instance.label.clone()), "a label twice");
        assert_eq!(core.by_endpoint[&instance.registration.endpoint], instance.id);
        for task_type in &instance.registration.task_types {
            assert!(core.by_type[task_type].contains(&instance.id));
        }
    }
    assert_eq!(core.by_endpoint.len(), core.len());
    let listed: usize = core.by_type.values().map(BTreeSet::len).sum();
    let named: usize = core.all().map(|i| i.registration.task_types.len()).sum();
    assert_eq!(listed, named, "no index outlives an instance");
    assert!(core.by_type.values().all(|ids| !ids.is_empty()));
}

proptest! {
    #[test]
    fn whatever_happens_the_choice_is_the_fewest_calls_of_the_healthy(
        steps in prop::collection::vec(any_step(), 0..120),
    ) {
        let mut core = Core::default();
        let mut now = at(1);
        let epoch = Timestamp::UNIX_EPOCH;
        for step in steps {
            let nth = |core: &Core, which: usize| core.all().nth(which).map(|i| i.id);
            match step {
                Step::Register { port, types, heartbeat } => {
                    let types: Vec<_> = types.iter().map(|&n| TYPES[n]).collect();
                    let before = core.len();
                    let known = core.by_endpoint.contains_key(&wanted(port, &types, None).endpoint);
                    let registration = wanted(port, &types, heartbeat.map(f64::from));
                    core.register(registration, now, epoch).unwrap();
                    prop_assert_eq!(core.len(), before + usize::from(!known));
                }
                Step::Remove { port } => {
                    core.remove(&wanted(port, &["c"], None).endpoint);
                }
                Step::Beat { port } => {
                    core.beat(&wanted(port, &["c"], None).endpoint, now, epoch);
                }
                Step::Call { task, tried } => {
                    let tried: Vec<_> = core.all().take(tried).map(|i| i.id).collect();
                    let wanted = expected(&core, TYPES[task], &tried);
                    let calls: u64 = core.all().map(|i| i.calls).sum();
                    let chosen = core.choose(TYPES[task], &tried, now);
                    prop_assert_eq!(chosen.as_ref().ok().copied(), wanted);
                    if chosen == Err(Nobody::UnknownType) {
                        prop_assert!(core.of_type(TYPES[task]).is_none());
                    }
                    if let Err(Nobody::AllOut(wait)) = chosen {
                        prop_assert!(wait <= LONGEST_OUT);
                    }
                    let counted: u64 = core.all().map(|i| i.calls).sum();
                    prop_assert_eq!(counted, calls + u64::from(wanted.is_some()));
                }
                Step::Fail { which, failure } => {
                    if let Some(id) = nth(&core, which) {
                        let was_healthy = core.get(id).unwrap().is_healthy();
                        let out = core.failed(id, failure, now);
                        prop_assert_eq!(out, was_healthy && !core.get(id).unwrap().is_healthy());
                    }
                }
                Step::Answer { which } => nth(&core, which).into_iter().for_each(|id| core.answered(id)),
                Step::Probe { connected } => {
                    for id in core.due(now, 2) {
                        core.probed(id, connected, INTERVAL, now);
                        prop_assert_eq!(core.get(id).unwrap().is_healthy(), connected);
                    }
                }
                Step::Wait { millis } => now = Moment(now.0 + u64::from(millis)),
            }
            for gone in core.expire(now) {
                prop_assert!(gone.expires.is_some_and(|expires| expires <= now));
            }
            prop_assert!(core.all().all(|i| i.expires.is_none_or(|expires| expires > now)));
            check_indexes(&core);
        }
    }

    #[test]
    fn equal_instances_share_level(instances in 1u16..9, calls in 0u64..200) {
        let mut core = Core::default();
        for port in 1..=instances {
            add(&mut core, port, &["a"]);
        }
        for _ in 0..calls {
            core.choose("a", &[], at(0)).unwrap();
        }
        let counts: Vec<_> = core.all().map(|i| i.calls).collect();
        let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
        prop_assert!(spread <= 1, "{:?}", counts);
    }
}
