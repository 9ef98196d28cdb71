//! The sockets against simulated servers.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::backend::Wanted;
use crate::config::{self, Endpoint};
use crate::conformance;
use crate::health::Health;
use crate::identity::ClientKey;
use crate::pace::Learnt;
use crate::pool::events::{Attribution, Directory, Known, Verdict, parse};
use crate::pool::job::{JobId, Owner};
use crate::roster::Member;
use crate::sim::{Sim, SimConfig, Tap, TapFrame};

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(20);
const PROMPT: &str = "11111111-1111-4111-8111-111111111111";

#[derive(Debug, PartialEq)]
enum Said {
    Heard(Flavour, Frame),
    Opened(Flavour),
    Lost(Flavour),
}

struct Recorder(mpsc::UnboundedSender<Said>);

impl Recorder {
    fn note(&self, said: Said) {
        // Nobody listens any more when a test is over.
        let _ = self.0.send(said);
    }
}

impl Listener for Recorder {
    fn heard(&self, _: BackendId, flavour: Flavour, frame: Frame) {
        self.note(Said::Heard(flavour, frame));
    }

    fn opened(&self, _: BackendId, flavour: Flavour) {
        self.note(Said::Opened(flavour));
    }

    fn lost(&self, _: BackendId, flavour: Flavour) {
        self.note(Said::Lost(flavour));
    }
}

struct Rig {
    fleet: Arc<Fleet>,
    links: Arc<Links>,
    said: mpsc::UnboundedReceiver<Said>,
    id: BackendId,
}

fn sids() -> Sids {
    Sids { base: "test".into() }
}

fn options() -> Options {
    Options { timeout: LONG, headers: Vec::new() }
}

fn member(port: u16) -> Member {
    let spec = config::Backend {
        name: "a".into(),
        endpoint: Endpoint { tls: false, host: "127.0.0.1".into(), port, base: String::new() },
        weight: 1,
        max_queue: 10,
        enabled: true,
        backup: false,
        max_connections: 100,
        headers: Vec::new(),
        labels: Vec::new(),
        task_types: Vec::new(),
        tls: config::BackendTls::default(),
    };
    Member { spec, wanted: Wanted::Enabled }
}

async fn sim(config: SimConfig) -> Sim {
    Sim::start(SimConfig { speed: 100.0, ..config }).await.unwrap()
}

impl Rig {
    fn new(sim: &Sim) -> Self {
        let fleet = Arc::new(Fleet::new());
        fleet.apply(vec![member(sim.addr().port())], |_| Learnt::default());
        let backend = fleet.view().named("a").cloned().unwrap();
        backend.live.alter(|standing| standing.health = Health::Up);
        let (sender, said) = mpsc::unbounded_channel();
        let listener = Arc::new(Recorder(sender));
        let links = Links::start(Arc::clone(&fleet), sids(), options(), listener);
        Self { fleet, links, said, id: backend.id }
    }

    async fn open(sim: &Sim) -> Self {
        let mut rig = Self::new(sim);
        rig.opened().await;
        rig
    }

    async fn next(&mut self) -> Said {
        timeout(LONG, self.said.recv()).await.expect("nothing is heard").unwrap()
    }

    /// Waits until this was said for both sockets.
    async fn both(&mut self, wanted: impl Fn(Flavour) -> Said) {
        let mut missing: Vec<Said> = Flavour::ALL.into_iter().map(wanted).collect();
        while !missing.is_empty() {
            let said = self.next().await;
            missing.retain(|wanted| *wanted != said);
        }
    }

    async fn opened(&mut self) {
        self.both(Said::Opened).await;
        assert!(self.links.is_ready(self.id));
    }

    async fn lost(&mut self) {
        self.both(Said::Lost).await;
    }

    /// Posts a prompt under the sid of a socket and hears it to its end.
    async fn run(&mut self, sim: &Sim, flavour: Flavour) -> Vec<Verdict> {
        post(sim, &sids().of(flavour)).await;
        let mut attribution = Attribution::new(self.id, Arc::new(|_| {}));
        let mut verdicts = Vec::new();
        loop {
            let Said::Heard(on, frame) = self.next().await else { continue };
            let verdict = attribution.heard(on, &frame, Moment::now(), &OneJob(flavour));
            let is_over = matches!(
                verdict.input,
                Some(crate::pool::core::Input::Finished { job: JobId(1), .. })
            );
            verdicts.push(verdict);
            if is_over {
                return verdicts;
            }
        }
    }
}

struct OneJob(Flavour);

impl Directory for OneJob {
    fn job(&self, _: BackendId, prompt_id: &str) -> Option<Known> {
        let owner = Owner {
            key: ClientKey::of_address([127, 0, 0, 1].into()),
            caller: "someone".into(),
            client_id: Some("client".into()),
        };
        let prompt_id = (prompt_id == PROMPT).then(|| PROMPT.into())?;
        Some(Known { job: JobId(1), owner, prompt_id, flavour: self.0 })
    }
}

async fn post(sim: &Sim, client_id: &str) {
    let recording = &conformance::scenarios().unwrap()[0];
    let mut body = recording.posts[0].request.clone();
    body["client_id"] = client_id.into();
    body["prompt_id"] = PROMPT.into();
    body["prompt"]["1"]["inputs"]["seed"] = rand::random::<u16>().into();
    let posting = reqwest::Client::new().post(format!("{}/prompt", sim.url())).json(&body).send();
    assert_eq!(posting.await.unwrap().status(), 200);
}

/// Names of a recorded run's messages, without the status of the queue and what greets.
fn recorded(name: &str) -> Vec<String> {
    let all = conformance::scenarios().unwrap();
    let run = all.iter().find(|scenario| scenario.scenario == name).unwrap();
    let kinds = run.frames["owner"].iter().map(|frame| frame.kind().unwrap_or_default());
    kinds.filter(|kind| !matches!(*kind, "status" | "feature_flags")).map(str::to_owned).collect()
}

fn delivered(verdicts: &[Verdict]) -> Vec<String> {
    let frames = verdicts.iter().filter_map(|verdict| verdict.delivery.as_ref());
    frames.map(|delivery| parse(&delivery.frame).name.into_owned()).collect()
}

#[tokio::test]
async fn each_socket_hears_its_prompts_as_recorded() {
    let sim = sim(SimConfig::default()).await;
    let mut rig = Rig::open(&sim).await;
    let plain = rig.run(&sim, Flavour::Plain).await;
    assert_eq!(delivered(&plain), recorded("run_ok"));
    let flags = rig.run(&sim, Flavour::Flags).await;
    assert_eq!(delivered(&flags), recorded("run_ok_flags"));
    assert!(plain.iter().chain(&flags).any(|verdict| verdict.depth.is_some()));
}

#[tokio::test]
async fn sockets_that_are_cut_come_back() {
    let sim = sim(SimConfig::default()).await;
    let mut rig = Rig::open(&sim).await;
    for _ in 0..3 {
        sim.faults().drop_sockets();
        rig.lost().await;
        rig.opened().await;
    }
    assert_eq!(sim.sockets(), 2);
    let verdicts = rig.run(&sim, Flavour::Plain).await;
    assert_eq!(delivered(&verdicts), recorded("run_ok"));
}

#[tokio::test]
async fn a_server_that_was_killed_is_heard_again_when_it_is_back() {
    let first = sim(SimConfig::default()).await;
    let port = first.addr().port();
    let mut rig = Rig::open(&first).await;
    first.kill().await;
    rig.lost().await;
    assert!(!rig.links.is_ready(rig.id));
    let second = sim(SimConfig { port, ..SimConfig::default() }).await;
    rig.opened().await;
    let verdicts = rig.run(&second, Flavour::Flags).await;
    assert_eq!(delivered(&verdicts), recorded("run_ok_flags"));
}

/// Guards against `ComfyUI`'s issue 16010, which the simulator has: a socket that was opened before
/// its predecessor's end would hear nothing.
#[tokio::test]
async fn sockets_that_are_reopened_stay_registered() {
    let sim = sim(SimConfig::default()).await;
    let mut rig = Rig::open(&sim).await;
    for _ in 0..5 {
        rig.links.reopen(rig.id);
        rig.lost().await;
        rig.opened().await;
        assert_eq!(sim.sockets(), 2);
    }
    rig.run(&sim, Flavour::Plain).await;
}

#[tokio::test]
async fn a_successor_takes_over_the_sids_once_they_are_closed() {
    let sim = sim(SimConfig::default()).await;
    let mut rig = Rig::open(&sim).await;
    for _ in 0..3 {
        rig.links.close().await;
        assert!(!rig.links.is_ready(rig.id));
        rig = Rig::open(&sim).await;
        assert_eq!(sim.sockets(), 2);
    }
    rig.run(&sim, Flavour::Flags).await;
}

#[tokio::test]
async fn a_backend_that_is_removed_and_added_again_is_left_and_heard_again() {
    let sim = sim(SimConfig::default()).await;
    let mut rig = Rig::open(&sim).await;
    for _ in 0..3 {
        rig.fleet.apply(Vec::new(), |_| Learnt::default());
        rig.fleet.apply(vec![member(sim.addr().port())], |_| Learnt::default());
        let backend = rig.fleet.view().named("a").cloned().unwrap();
        backend.live.alter(|standing| standing.health = Health::Up);
        rig.lost().await;
        rig.opened().await;
    }
    rig.run(&sim, Flavour::Plain).await;
    rig.fleet.apply(Vec::new(), |_| Learnt::default());
    rig.lost().await;
    assert!(!rig.links.is_ready(rig.id));
}

#[tokio::test]
async fn a_backend_that_moves_is_heard_where_it_is() {
    let (old, new) = (sim(SimConfig::default()).await, sim(SimConfig::default()).await);
    let mut rig = Rig::open(&old).await;
    rig.fleet.apply(vec![member(new.addr().port())], |_| Learnt::default());
    let backend = rig.fleet.view().named("a").cloned().unwrap();
    backend.live.alter(|standing| standing.health = Health::Up);
    rig.lost().await;
    rig.opened().await;
    assert_eq!(new.sockets(), 2);
    rig.run(&new, Flavour::Plain).await;
}

#[tokio::test]
async fn a_server_that_knows_no_flags_is_open_all_the_same() {
    let tap: Tap = Arc::new(|sid, frame| match &frame {
        TapFrame::Text(value) if value["type"] == "feature_flags" => Vec::new(),
        _ => vec![(sid.to_owned(), frame)],
    });
    let sim = sim(SimConfig { tap: Some(tap), ..SimConfig::default() }).await;
    Rig::open(&sim).await;
}

#[tokio::test]
async fn a_socket_that_the_server_does_not_greet_is_not_open() {
    let tap: Tap = Arc::new(|sid, frame| match &frame {
        TapFrame::Text(value) if value["data"]["sid"] == "comfygate-test" => Vec::new(),
        _ => vec![(sid.to_owned(), frame)],
    });
    let sim = sim(SimConfig { tap: Some(tap), ..SimConfig::default() }).await;
    let mut rig = Rig::new(&sim);
    while rig.next().await != Said::Opened(Flavour::Flags) {}
    assert!(!rig.links.is_ready(rig.id));
}

#[tokio::test]
async fn what_a_status_tells_is_the_backends_depth() {
    let sim = sim(SimConfig::default()).await;
    let mut rig = Rig::open(&sim).await;
    let backend = rig.fleet.view().named("a").cloned().unwrap();
    sim.faults().phantom_queue(1, 4);
    let mut attribution = Attribution::new(rig.id, Arc::new(|_| {}));
    while backend.live.depth.prompts() != 5 {
        let Said::Heard(flavour, frame) = rig.next().await else { continue };
        let verdict = attribution.heard(flavour, &frame, Moment::now(), &OneJob(flavour));
        if let Some(depth) = verdict.depth {
            took_depth(&backend, &rig.fleet, depth, Moment::now());
        }
    }
}

/// Makes custom messages of status events: with 7 prompts of those to all, with 8 to the client.
fn custom_messages() -> Tap {
    Arc::new(|sid, frame| {
        let to = |sid: &str, text: &str| {
            (sid.to_owned(), TapFrame::Text(json!({"type": "custom", "data": text})))
        };
        let TapFrame::Text(value) = &frame else { return vec![(sid.to_owned(), frame)] };
        match value["data"]["status"]["exec_info"]["queue_remaining"].as_u64() {
            Some(7) => vec![to(sid, "for all")],
            Some(8) if sid == "the client" => vec![to(sid, "for one")],
            _ => vec![(sid.to_owned(), frame)],
        }
    })
}

#[tokio::test]
async fn a_companion_carries_what_is_its_clients_alone() {
    let sim = sim(SimConfig { tap: Some(custom_messages()), ..SimConfig::default() }).await;
    let mut rig = Rig::open(&sim).await;
    let (sender, mut got) = mpsc::unbounded_channel();
    let on_frame: OnFrame = Box::new(move |frame: Frame| {
        let _ = sender.send(serde_json::from_slice::<Value>(&frame.bytes).unwrap());
    });
    let companion = rig.links.companion(rig.id, "the client", on_frame, Box::new(|| {})).unwrap();
    registered(&sim, 3).await;
    sim.faults().phantom_queue(0, 7);
    sim.faults().phantom_queue(0, 8);
    rig.run(&sim, Flavour::Plain).await;
    let first = timeout(LONG, got.recv()).await.unwrap().unwrap();
    assert_eq!(first, json!({"type": "custom", "data": "for one"}));

    let subscribe = json!({"clientId": "the client", "enabled": true});
    let url = format!("{}/internal/logs/subscribe", sim.url());
    reqwest::Client::new().patch(url).json(&subscribe).send().await.unwrap();
    rig.run(&sim, Flavour::Plain).await;
    while timeout(LONG, got.recv()).await.unwrap().unwrap()["type"] != "logs" {}

    drop(companion);
    registered(&sim, 2).await;
    while let Some(frame) = timeout(LONG, got.recv()).await.unwrap() {
        assert_ne!(frame["data"], "for all");
    }
}

/// A page that is reloaded comes back under its sid while its old socket is still closing.
#[tokio::test]
async fn a_companion_follows_another_of_the_same_sid() {
    let sim = sim(SimConfig { tap: Some(custom_messages()), ..SimConfig::default() }).await;
    let rig = Rig::open(&sim).await;
    let mut companion = None;
    let (sender, mut got) = mpsc::unbounded_channel();
    for _ in 0..5 {
        drop(companion.take());
        let sender = sender.clone();
        let on_frame: OnFrame = Box::new(move |frame| {
            let _ = sender.send(frame);
        });
        companion = rig.links.companion(rig.id, "the client", on_frame, Box::new(|| {}));
        registered(&sim, 3).await;
    }
    // The last one is registered for good once those before it have ended.
    while timeout(Duration::from_millis(300), got.recv()).await.is_err() {
        sim.faults().phantom_queue(0, 8);
    }
}

#[tokio::test]
async fn no_companion_takes_a_sid_of_ours() {
    let sim = sim(SimConfig::default()).await;
    let rig = Rig::open(&sim).await;
    for sid in ["", "comfygate-test", "comfygate-test-flags"] {
        assert!(rig.links.companion(rig.id, sid, Box::new(|_| {}), Box::new(|| {})).is_none());
    }
    assert!(rig.links.companion(BackendId(99), "x", Box::new(|_| {}), Box::new(|| {})).is_none());
}

/// Waits until so many sockets are registered.
async fn registered(sim: &Sim, count: usize) {
    let waiting = async {
        while sim.sockets() != count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, waiting).await.expect("another number of sockets");
}
