//! What dies, and what becomes of the jobs: simulators and gateways as processes that are killed.

mod chaos;
pub(crate) mod farm;
pub(crate) mod stubborn;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::painter::paced;
use crate::support::{PATIENCE, eventually};
use farm::Farm;
use stubborn::Stubborn;

/// A prompt in so many steps.
fn stepped(seed: u64, seconds: f64, steps: u32) -> Value {
    let mut prompt = paced(seed, seconds);
    prompt["1"]["inputs"]["steps"] = json!(steps);
    prompt
}

/// A backend that is away for a second is dead.
fn hasty() -> Value {
    json!({"pool": {"declared_dead_after": "1s"}})
}

async fn attempts(farm: &Farm, prompt: &str) -> u64 {
    farm.task(prompt).await["attempts"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_dead_backend_run_elsewhere_and_waiting_ones_lose_no_attempt() {
    let mut farm = Farm::start(2, hasty()).await;
    let client = Stubborn::connect(&farm.base(), "bereaved");
    let mut prompts = vec![client.paint(paced(0, 4.0)).await];
    let victim = farm.runs_at(&prompts[0]).await;
    for seed in 1..8 {
        prompts.push(client.paint(paced(seed, 0.3)).await);
    }
    farm.sims[victim].kill();
    for (seed, prompt) in (0..).zip(&prompts) {
        client.finished(prompt).await;
        client.assert_told_once(prompt);
        assert!(client.last_words(prompt).iter().any(|(_, name, _)| name == "execution_success"));
        assert_eq!(attempts(&farm, prompt).await, if seed == 0 { 2 } else { 1 }, "{seed}");
        let entry = client.entry(prompt).await;
        let place = entry["outputs"]["2"]["images"][0]["subfolder"].as_str().unwrap();
        assert_eq!(place, format!("@comfy-{}", 2 - victim), "{seed}");
    }
    farm.sims[victim].revive().await;
    for (seed, prompt) in (0..).zip(&prompts) {
        assert!(client.has_picture(prompt, seed).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_backend_that_comes_back_without_memory_run_again() {
    let mut farm = Farm::start(1, json!({})).await;
    let client = Stubborn::connect(&farm.base(), "amnesiac");
    let (first, second) = (client.paint(paced(1, 1.0)).await, client.paint(paced(2, 0.2)).await);
    farm.runs_at(&first).await;
    farm.sims[0].restart().await;
    client.succeeded(&first, 1).await;
    client.succeeded(&second, 2).await;
    assert_eq!((attempts(&farm, &first).await, attempts(&farm, &second).await), (2, 1));
    assert_eq!(farm.finished().await, [2], "each once since it came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_comes_back_to_every_job() {
    let mut farm = Farm::start(2, json!({})).await;
    let client = Stubborn::connect(&farm.base(), "patient");
    let flagged = Stubborn::connect_with(&farm.base(), "flagged", true);
    let early = client.paint(paced(90, 0.1)).await;
    client.succeeded(&early, 90).await;
    let jobs_before = client.get("/api/jobs").await.unwrap();
    let task_before = farm.task(&early).await;
    let mut prompts = Vec::new();
    for seed in 0..10 {
        let by = if seed % 2 == 0 { &client } else { &flagged };
        prompts.push((by, by.paint(paced(seed, 1.0)).await, seed));
    }
    farm.gateway().until("/lb/tasks?state=running", |list| list["total"] != 0).await;
    let created = farm.created(&prompts[9].1).await;
    farm.kill_gateway().await;
    // One ends while nobody hears it.
    sleep(Duration::from_millis(1300)).await;
    farm.start_gateway().await;
    let apart = farm.created(&prompts[9].1).await.duration_since(created);
    assert!(apart.as_secs_f64().abs() < 1.0, "it was made before the restart: {apart}");
    assert!(client.has_picture(&early, 90).await);
    let task = farm.task(&early).await;
    for key in ["state", "backend", "attempts", "caller", "run_seconds", "error"] {
        assert_eq!(task[key], task_before[key], "{key}");
    }
    let jobs = client.get("/api/jobs?status=completed").await.unwrap();
    assert!(jobs["jobs"].as_array().unwrap().contains(&jobs_before["jobs"][0]), "{jobs:#}");
    for (by, prompt, seed) in &prompts {
        by.succeeded(prompt, *seed).await;
        assert_eq!(attempts(&farm, prompt).await, 1, "{seed}");
    }
    assert_eq!(farm.finished().await.iter().sum::<u64>(), 11, "none ran twice");
    let all = client.get("/history").await.unwrap();
    assert_eq!(all.as_object().unwrap().len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_asked_to_end_leaves_running_prompts_running() {
    // The client's socket does not hold it up, which may take half a minute where it must not break.
    let mut farm = Farm::start(1, json!({})).await;
    let client = Stubborn::connect(&farm.base(), "upgraded");
    let (running, waiting) = (client.paint(paced(1, 8.0)).await, client.paint(paced(2, 0.1)).await);
    farm.runs_at(&running).await;
    farm.terminate_gateway().await;
    farm.start_gateway().await;
    farm.runs_at(&running).await;
    client.succeeded(&running, 1).await;
    client.succeeded(&waiting, 2).await;
    assert_eq!(farm.finished().await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_and_a_backend_that_die_together_lose_nothing() {
    let mut farm = Farm::start(1, json!({})).await;
    let client = Stubborn::connect(&farm.base(), "unlucky");
    let ended = client.paint(paced(5, 0.1)).await;
    client.succeeded(&ended, 5).await;
    let running = client.paint(paced(1, 1.0)).await;
    farm.runs_at(&running).await;
    farm.kill_gateway().await;
    farm.sims[0].restart().await;
    farm.start_gateway().await;
    client.succeeded(&running, 1).await;
    assert!(client.has_picture(&ended, 5).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_run_twice_fails_in_clear_words() {
    let never = json!({"comfygate": {"retry": "never"}});
    for (keys, extra) in
        [(json!({}), never), (json!({"pool": {"no_retry_nodes": ["PacedImage"]}}), json!({}))]
    {
        let mut farm = Farm::start(1, keys).await;
        let client = Stubborn::connect(&farm.base(), "careful");
        let prompt = client.paint_with(paced(1, 1.0), extra).await;
        farm.runs_at(&prompt).await;
        farm.sims[0].restart().await;
        client.finished(&prompt).await;
        client.assert_told_once(&prompt);
        let words = client.last_words(&prompt);
        let (_, name, data) = &words[0];
        assert_eq!(name, "execution_error", "{words:#?}");
        let message = data["exception_message"].as_str().unwrap();
        assert!(message.contains("must not run twice"), "{message}");
        assert_eq!(client.entry(&prompt).await["status"]["status_str"], "error");
        let task = farm.task(&prompt).await;
        assert_eq!((&task["state"], &task["attempts"]), (&json!("failed"), &json!(1)), "{task:#}");
        farm.ready(1).await;
        assert_eq!(farm.finished().await, [0], "it did not run again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_servers_is_stopped_and_the_others_unharmed() {
    let keys = json!({"queue": {"max_retries": 2}, "pool": {"declared_dead_after": "1s"}});
    let mut farm = Farm::start(2, keys).await;
    let deadly = json!({"die_at_step": 5});
    for sim in &farm.sims {
        sim.faults(&deadly).await;
    }
    let client = Stubborn::connect(&farm.base(), "poisoner");
    let poison = client.paint(stepped(66, 1.2, 8)).await;
    let mut others = Vec::new();
    for seed in 0..6 {
        others.push(client.paint(stepped(seed, 0.2, 2)).await);
    }
    // Whoever looks after the servers starts them again.
    let mut deaths = 0;
    while client.last_words(&poison).is_empty() {
        for sim in &mut farm.sims {
            if sim.state().await.is_none() {
                deaths += 1;
                assert!(deaths <= 3, "it was to be stopped");
                sim.restart().await;
                sim.faults(&deadly).await;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    client.finished(&poison).await;
    client.assert_told_once(&poison);
    let words = client.last_words(&poison);
    let message = words[0].2["exception_message"].as_str().unwrap();
    assert!(message.contains("poison job"), "{words:#?}");
    assert_eq!(farm.task(&poison).await["state"], "failed");
    for (seed, prompt) in (0..).zip(&others) {
        client.succeeded(prompt, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_servers_stays_stopped_though_the_gateway_restarts_in_between() {
    let keys = json!({"queue": {"max_retries": 2}, "pool": {"declared_dead_after": "1s"}});
    let mut farm = Farm::start(2, keys).await;
    let deadly = json!({"die_at_step": 5});
    for sim in &farm.sims {
        sim.faults(&deadly).await;
    }
    let client = Stubborn::connect(&farm.base(), "poisoner");
    let poison = client.paint(stepped(66, 1.2, 8)).await;
    let mut deaths = 0;
    while client.last_words(&poison).is_empty() {
        let mut died = false;
        for sim in &mut farm.sims {
            if sim.state().await.is_none() {
                (deaths, died) = (deaths + 1, true);
                sim.restart().await;
                sim.faults(&deadly).await;
            }
        }
        assert!(deaths <= 3, "it was to be stopped");
        if died {
            farm.kill_gateway().await;
            farm.start_gateway().await;
        }
        sleep(Duration::from_millis(50)).await;
    }
    client.finished(&poison).await;
    let words = client.last_words(&poison);
    let message = words[0].2["exception_message"].as_str().unwrap();
    assert!(message.contains("poison job"), "{words:#?}");
    assert_eq!(deaths, 3);
    // And after one more.
    farm.kill_gateway().await;
    farm.start_gateway().await;
    assert_eq!(farm.task(&poison).await["state"], "failed");
}

/// A prompt that shows no life once it runs.
fn silent(seed: u64) -> Value {
    stepped(seed, 20.0, 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_prompt_is_interrupted_and_runs_elsewhere() {
    let farm = Farm::start(2, json!({"pool": {"suspect_after": "1s"}})).await;
    let client = Stubborn::connect(&farm.base(), "silent");
    let prompt = client.paint(silent(1)).await;
    let first = farm.runs_at(&prompt).await;
    eventually("it runs elsewhere", PATIENCE, async || {
        let task = farm.task(&prompt).await;
        task["attempts"] == 2 && task["backend"] != format!("comfy-{}", first + 1)
    })
    .await;
    assert!(client.last_words(&prompt).is_empty(), "that was not the owner's interrupt");
    // The server did as it was told: nothing is wrong with it.
    let quick = client.paint(paced(2, 0.1)).await;
    client.succeeded(&quick, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_interrupt_is_suspect_and_its_hook_is_called() {
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join("called");
    let script = format!("echo $COMFYGATE_BACKEND $COMFYGATE_BACKEND_URL >> {}", note.display());
    let hook = ["sh", "-c", &script];
    let keys = json!({"pool": {"suspect_after": "1s", "restart_hook": hook}});
    let mut farm = Farm::start(2, keys).await;
    for sim in &farm.sims {
        sim.faults(&json!({"deaf": true})).await;
    }
    let client = Stubborn::connect(&farm.base(), "deaf");
    let prompt = client.paint(silent(1)).await;
    let first = farm.runs_at(&prompt).await;
    let name = format!("comfy-{}", first + 1);
    farm.gateway().until_state(&name, "suspect").await;
    farm.sims[1 - first].faults(&json!({"deaf": false})).await;
    let url = farm.sims[first].url();
    let mut called = String::new();
    eventually("the hook is called", PATIENCE, async || {
        called = std::fs::read_to_string(&note).unwrap_or_default();
        called.ends_with('\n')
    })
    .await;
    let words: Vec<&str> = called.split_whitespace().collect();
    assert_eq!((words[0], words[1].trim_end_matches('/')), (&*name, &*url));
    // Polls go well, and it stays out.
    farm.gateway().call(reqwest::Method::POST, "/lb/health-check", &Value::Null).await;
    assert_eq!(farm.gateway().backend(&name).await["state"], "suspect");
    farm.sims[first].restart().await;
    farm.gateway().until_state(&name, "up").await;
    farm.ready(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_loses_its_jobs() {
    let keys = json!({"pool": {"declared_dead_after": "1s"}, "health_check": {"timeout": 0.5}});
    let farm = Farm::start(2, keys).await;
    let client = Stubborn::connect(&farm.base(), "frozen");
    let prompt = client.paint(paced(1, 1.0)).await;
    let first = farm.runs_at(&prompt).await;
    farm.sims[first].signal("STOP").await;
    client.finished(&prompt).await;
    farm.sims[first].signal("CONT").await;
    farm.ready(2).await;
    client.succeeded(&prompt, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_comes_back_to_a_server_that_lost_it() {
    let mut farm = Farm::start(1, json!({})).await;
    let client = Stubborn::connect(&farm.base(), "uploader");
    let painter = client.painter("uploader-2").await;
    let part = reqwest::multipart::Part::bytes(comfygate::sim::image_of_seed(3)).file_name("u.png");
    let form = reqwest::multipart::Form::new().part("image", part);
    let sent = painter.http.post(format!("{}/upload/image", painter.base)).multipart(form);
    assert_eq!(sent.send().await.unwrap().status(), 200);
    let prompt = |prefix: &str| {
        let load = json!({"class_type": "LoadImage", "inputs": {"image": "u.png"}});
        let inputs = json!({"images": ["1", 0], "filename_prefix": prefix});
        json!({"1": load, "2": {"class_type": "SaveImage", "inputs": inputs}})
    };
    let first = client.paint(prompt("one")).await;
    client.succeeded(&first, 3).await;
    // Somebody removes it by hand.
    let held = farm.folder(0).join("input/u.png");
    std::fs::remove_file(&held).unwrap();
    let second = client.paint(prompt("two")).await;
    client.succeeded(&second, 3).await;
    std::fs::remove_file(&held).unwrap();
    farm.sims[0].restart().await;
    farm.ready(1).await;
    let third = client.paint(prompt("three")).await;
    client.succeeded(&third, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_no_socket_told_is_told_from_history() {
    let farm = Farm::start(1, json!({})).await;
    let client = Stubborn::connect(&farm.base(), "bystander");
    let good = client.paint(paced(1, 0.8)).await;
    farm.runs_at(&good).await;
    // The gateway's sockets are cut, and new ones are not answered until it has ended.
    farm.sims[0].faults(&json!({"refuse_seconds": 1.5})).await;
    client.succeeded(&good, 1).await;
    let names: Vec<_> = client.events(&good).into_iter().map(|(_, name, _)| name).collect();
    assert!(names.contains(&"executed".to_owned()), "{names:?}");
    let mut failing = paced(2, 0.8);
    failing["1"]["inputs"]["fail_at"] = json!(1);
    let bad = client.paint(failing).await;
    farm.runs_at(&bad).await;
    farm.sims[0].faults(&json!({"refuse_seconds": 1.5})).await;
    client.finished(&bad).await;
    client.assert_told_once(&bad);
    assert_eq!(client.last_words(&bad)[0].1, "execution_error");
}
