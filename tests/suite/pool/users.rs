//! Several users on one farm: nobody sees or touches what is another's, and nobody takes it all.

use std::collections::BTreeSet;
use std::time::Duration;

use comfygate::sim::Sim;
use serde_json::{Value, json};

use super::painter::{Heard, Painter, paced};
use super::{quick_farm, ready, setup};
use crate::support::{Embedded, Fake, PATIENCE, Setup, eventually, exchange};

/// Users who are told apart by the word of a trusted proxy.
fn by_user(farm: &[Sim], keys: Value) -> Setup {
    setup(farm)
        .with(json!({"pool": {"isolation": "user"}, "auth": {"user_header": "X-User"}}))
        .with(keys)
}

async fn started(setup: Setup, farm: &[Sim]) -> Embedded {
    ready(setup.embed().await, farm.len()).await
}

/// A user's page. All pages name the same `clientId`: it must not matter.
async fn page(gateway: &Embedded, user: &str) -> Painter {
    Painter::open(&gateway.data, "page", false, &[("x-user", user)]).await
}

/// Every id that a list of jobs names.
fn listed(reply: &Value) -> BTreeSet<String> {
    let items = |list: &str| reply[list].as_array().cloned().unwrap_or_default();
    let queue = [items("queue_running"), items("queue_pending")].concat();
    let queue = queue.iter().map(|item| item[1].as_str().unwrap().to_owned());
    let jobs: Vec<_> = items("jobs").iter().map(|job| job["id"].as_str().unwrap().into()).collect();
    queue.chain(jobs).collect()
}

fn set(ids: &[String]) -> BTreeSet<String> {
    ids.iter().cloned().collect()
}

/// Where a caller lists open jobs.
const LISTS: [&str; 4] = ["/queue", "/api/queue", "/api/jobs", "/api/api/jobs"];

/// Everything that stops, deletes or clears, aimed at these.
fn attacks(ids: &[String]) -> Vec<(String, Value)> {
    let mut attacks = Vec::new();
    for prefix in ["", "/api"] {
        for (path, body) in [
            ("/queue", json!({"clear": true})),
            ("/queue", json!({"delete": ids})),
            ("/history", json!({"clear": true})),
            ("/history", json!({"delete": ids})),
            ("/interrupt", json!({})),
        ] {
            attacks.push((format!("{prefix}{path}"), body));
        }
        for id in ids {
            attacks.push((format!("{prefix}/interrupt"), json!({"prompt_id": id})));
            attacks.push((format!("/api{prefix}/jobs/{id}/cancel"), json!({})));
        }
        attacks.push((format!("/api{prefix}/jobs/cancel"), json!({"job_ids": ids})));
        // The letters of a path may be written otherwise; a server might read them all the same.
        attacks.push((format!("{prefix}/%71ueue"), json!({"clear": true})));
        attacks.push((format!("{prefix}/i%6Eterrupt"), json!({})));
    }
    attacks
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_lists_cancels_or_interrupts_what_is_anothers() {
    let farm = quick_farm(2).await;
    let gateway = started(by_user(&farm, json!({})), &farm).await;
    let mut users = Vec::new();
    for name in ["anna", "ben", "carla"] {
        users.push((page(&gateway, name).await, Vec::new()));
    }
    // Two run, four wait; each user has one running at most.
    for seed in 0..2 {
        for (user, ids) in &mut users {
            ids.push(user.paint(paced(seed, 500.0)).await);
        }
    }
    let runs = |heard: &[Heard]| heard.iter().any(|one| one.name() == "execution_start");
    for (user, _) in &users[..2] {
        user.until(runs).await;
    }
    for (user, ids) in &users {
        for path in LISTS {
            assert_eq!(listed(&user.get(path).await), set(ids), "{path}");
        }
        for path in ["/prompt", "/api/prompt"] {
            let count = user.get(path).await;
            assert_eq!(count["exec_info"]["queue_remaining"], 2, "{path}");
        }
        assert_eq!(listed(&user.get("/%71ueue").await), set(ids), "the same, written otherwise");
    }
    let carla = &users[2];
    let theirs = [users[0].1.clone(), users[1].1.clone()].concat();
    for (path, body) in attacks(&theirs) {
        let (status, reply) = carla.0.send(&path, &body).await;
        assert!(status < 500 && reply["cancelled"].as_u64().unwrap_or(0) == 0, "{path}: {reply}");
    }
    for (user, ids) in &users[..2] {
        assert_eq!(listed(&user.get("/queue").await), set(ids));
    }
    // Her own are hers to clear.
    assert_eq!(carla.0.get("/queue").await["queue_pending"], json!([]));
    for id in &theirs {
        let job = carla.0.get(&format!("/api/jobs/{id}")).await;
        assert_eq!(job["id"], json!(id), "an id that one was given opens");
    }
    for (n, (user, ids)) in users.iter().enumerate() {
        for one in user.heard() {
            let foreign = one.prompt().is_some_and(|id| !ids.iter().any(|own| own == id));
            assert!(!foreign, "user {n} heard {one:?}");
            if let Heard::Event { name, data } = &one
                && name == "status"
            {
                let depth = data["status"]["exec_info"]["queue_remaining"].as_u64().unwrap();
                assert!(depth <= 2, "user {n} heard of the others' {depth}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_its_owners_and_opens_by_its_id() {
    let farm = quick_farm(1).await;
    let gateway = started(by_user(&farm, json!({})), &farm).await;
    let (anna, ben) = (page(&gateway, "anna").await, page(&gateway, "ben").await);
    let id = anna.paint(paced(5, 0.1)).await;
    let entry = anna.entry(&id).await;
    for path in ["/history", "/api/history"] {
        assert_eq!(ben.get(path).await, json!({}), "{path}");
    }
    assert_eq!(ben.get("/api/jobs").await["jobs"], json!([]));
    for body in [json!({"clear": true}), json!({"delete": [id]})] {
        ben.send("/history", &body).await;
        ben.send("/api/history", &body).await;
    }
    assert_eq!(anna.get("/history").await[&id], entry);
    assert_eq!(ben.get(&format!("/history/{id}")).await[&id], entry);

    let file = &entry["outputs"]["2"]["images"][0];
    let bare = json!({"filename": file["filename"], "subfolder": "", "type": "output"});
    assert_eq!(anna.view(&bare).await.0, 200);
    assert_eq!(ben.view(&bare).await.0, 404, "a name is easily guessed");
    assert_eq!(ben.view(file).await.0, 200, "the entry names it");
    let path = "/internal/files/output";
    assert_eq!(anna.get(path).await.as_array().unwrap().len(), 1);
    assert_eq!(ben.get(path).await, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_trusted_proxy_says_who_the_user_is() {
    let fake = Fake::replying("ok").await;
    let header = json!({"auth": {"user_header": "X-User"}});
    let trusting = Setup::new(&[fake.url()]).with(header).embed().await;
    let wary = Setup::new(&[fake.url()])
        .with(json!({"auth": {"user_header": "X-User"}, "server": {"trusted_proxies": []}}))
        .embed()
        .await;
    let who = async |gateway: &Embedded| {
        let request = gateway.http.get(format!("{}/lb/session", gateway.data));
        let reply = request.header("x-user", "anna").send().await.unwrap();
        reply.json::<Value>().await.unwrap()["caller"].as_str().unwrap().to_owned()
    };
    assert_eq!(who(&trusting).await, "anna");
    assert_eq!(who(&wary).await, "127.0.0.1");

    let request = b"GET /told HTTP/1.1\r\nHost: a\r\nX-USER: anna\r\nComfy-User: anna\r\n\
                    X-Kept: 1\r\n\r\n";
    for (gateway, told) in [(&trusting, "anna"), (&wary, "")] {
        let address = gateway.data.trim_start_matches("http://").parse().unwrap();
        assert_eq!(exchange(address, request).await.status, 200);
        let seen = fake.seen();
        let seen = seen.iter().rfind(|request| request.target() == "/told").unwrap();
        assert_eq!(seen.header("comfy-user"), told);
        assert_eq!(seen.header("x-user"), told);
        assert_eq!(seen.header("x-kept"), "1");
    }
    let address = trusting.data.trim_start_matches("http://").parse().unwrap();
    let twice = b"GET / HTTP/1.1\r\nHost: a\r\nX-User: anna\r\nX-User: ben\r\n\r\n";
    assert_eq!(exchange(address, twice).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_by_one_leaves_the_others_waits_within_two_prompts() {
    let farm = quick_farm(2).await;
    let gateway = started(by_user(&farm, json!({})), &farm).await;
    let anna = page(&gateway, "anna").await;
    for seed in 0..300 {
        anna.paint(paced(seed, 3.0)).await;
    }
    let ended = || farm.iter().map(Sim::finished).sum::<u64>();
    for name in ["ben", "carla"] {
        let user = page(&gateway, name).await;
        let before = ended();
        let id = user.paint(paced(1, 0.5)).await;
        user.until(|heard| heard.iter().any(|one| one.name() == "execution_start")).await;
        // Those that ran when it came, and at most one more of the flood on each server.
        assert!(ended() - before <= 4, "{} prompts ended before {name}'s", ended() - before);
        user.finished(&id).await;
    }
}

async fn refusal(user: &Painter, seed: u64) -> (u16, u64, Value) {
    let body = json!({"prompt": paced(seed, 300.0), "client_id": user.id});
    let reply = user.http.post(format!("{}/prompt", user.base)).json(&body).send().await.unwrap();
    let wait = reply.headers().get("retry-after").map(|value| value.to_str().unwrap().parse());
    (reply.status().as_u16(), wait.map_or(0, Result::unwrap), reply.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_has_only_so_many_prompts_waiting_and_per_minute() {
    let farm = quick_farm(1).await;
    let limits = json!({"limits": {"per_user": {"queued": 2, "prompts_per_minute": 4}}});
    let gateway = started(by_user(&farm, limits), &farm).await;
    let (anna, ben) = (page(&gateway, "anna").await, page(&gateway, "ben").await);
    anna.paint(paced(0, 500.0)).await;
    anna.until(|heard| heard.iter().any(|one| one.name() == "execution_start")).await;
    let first = anna.paint(paced(1, 300.0)).await;
    anna.paint(paced(2, 300.0)).await;
    let (status, wait, reply) = refusal(&anna, 3).await;
    assert_eq!((status, &reply["error"]["type"]), (429, &json!("rate_limited")), "{reply}");
    assert!(wait >= 1);
    ben.paint(paced(4, 300.0)).await;
    anna.send("/queue", &json!({"delete": [first]})).await;
    eventually("there is room again", PATIENCE, async || refusal(&anna, 5).await.0 == 200).await;
    anna.send("/queue", &json!({"clear": true})).await;
    eventually("nothing of hers waits", PATIENCE, async || {
        anna.get("/queue").await["queue_pending"] == json!([])
    })
    .await;
    // She has handed in four in this minute.
    let (status, wait, reply) = refusal(&anna, 6).await;
    assert_eq!((status, &reply["error"]["type"]), (429, &json!("rate_limited")), "{reply}");
    assert!((1..=15).contains(&wait), "{wait} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_has_only_so_many_prompts_running() {
    let farm = quick_farm(3).await;
    let limits = json!({"limits": {"per_user": {"running": 1}}});
    let gateway = started(by_user(&farm, limits), &farm).await;
    let (anna, ben) = (page(&gateway, "anna").await, page(&gateway, "ben").await);
    let first = anna.paint(paced(0, 500.0)).await;
    anna.until(|heard| heard.iter().any(|one| one.name() == "execution_start")).await;
    let second = anna.paint(paced(1, 0.1)).await;
    let id = ben.paint(paced(2, 0.1)).await;
    ben.finished(&id).await;
    let queue = anna.get("/queue").await;
    assert_eq!(queue["queue_running"][0][1], json!(first));
    assert_eq!(queue["queue_pending"][0][1], json!(second), "two servers are idle");
    anna.send("/interrupt", &json!({})).await;
    anna.finished(&second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_goes_first_by_its_own_word_where_that_counts() {
    for (priority, order) in [("off", [0, 1]), ("extra_data", [1, 0])] {
        let farm = quick_farm(1).await;
        let keys = json!({"queue": {"priority": priority}});
        let gateway = started(setup(&farm).with(keys), &farm).await;
        let user = Painter::connect(&gateway.data, "page").await;
        user.paint(paced(0, 500.0)).await;
        user.until(|heard| heard.iter().any(|one| one.name() == "execution_start")).await;
        let mut ids = Vec::new();
        for wish in [0, 7] {
            let extra_data = json!({"comfygate": {"priority": wish}});
            let body = json!({"prompt": paced(wish, 1.0), "client_id": "page",
                "extra_data": extra_data});
            let (status, reply) = user.send("/prompt", &body).await;
            assert_eq!(status, 200, "{reply}");
            ids.push(reply["prompt_id"].clone());
        }
        let queue = user.get("/queue").await;
        let pending = [0, 1].map(|n| queue["queue_pending"][n][1].clone());
        assert_eq!(pending, order.map(|n: usize| ids[n].clone()), "{priority}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_of_waiting_prompts_hear_when_those_will_run() {
    let farm = quick_farm(1).await;
    let gateway = started(setup(&farm), &farm).await;
    let owner = Painter::connect(&gateway.data, "owner").await;
    let stranger = Painter::connect(&gateway.data, "stranger").await;
    let first = owner.paint(paced(0, 10.0)).await;
    owner.entry(&first).await;
    let mut ids = Vec::new();
    for seed in 1..=6 {
        ids.push(owner.paint(paced(seed, 10.0)).await);
    }
    let is_eta = |one: &Heard| one.name() == "comfygate_eta";
    owner.until(|heard| heard.iter().any(is_eta)).await;
    owner.finished(&ids[5]).await;
    for one in owner.heard().iter().filter(|one| is_eta(one)) {
        let Heard::Event { data, .. } = one else { unreachable!() };
        let known = ids.iter().any(|id| data["prompt_id"] == json!(id));
        assert!(known && data["position"].as_u64().is_some_and(|n| n >= 1), "{data}");
        let (starts, ends) =
            (data["starts_in"].as_f64().unwrap(), data["ends_in"].as_f64().unwrap());
        assert!(starts >= 0.0 && ends >= starts && ends < 60.0, "{data}");
        assert_ne!(one.prompt(), Some(first.as_str()));
        assert_ne!(one.prompt(), Some(ids[0].as_str()), "it began at once");
    }
    assert!(!stranger.heard().iter().any(is_eta));
    let page = gateway.http.get(format!("{}/metrics", gateway.admin)).send().await.unwrap();
    let page = page.text().await.unwrap();
    let count =
        page.lines().find_map(|line| line.strip_prefix("comfygate_eta_error_seconds_count "));
    assert!(count.unwrap().parse::<f64>().unwrap() >= 4.0, "{count:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_prompts_get_no_more_gpu_time_than_short_ones() {
    let farm = quick_farm(1).await;
    let keys = json!({"queue": {"fairness": "gpu_time"}});
    let gateway = started(by_user(&farm, keys), &farm).await;
    let (anna, ben) = (page(&gateway, "anna").await, page(&gateway, "ben").await);
    let holds = anna.paint(paced(0, 500.0)).await;
    anna.until(|heard| heard.iter().any(|one| one.name() == "execution_start")).await;
    for seed in 1..=10 {
        anna.paint(paced(seed, 10.0)).await;
    }
    for seed in 1..=60 {
        ben.paint(paced(100 + seed, 1.0)).await;
    }
    anna.send("/interrupt", &json!({"prompt_id": holds})).await;
    let done =
        |heard: &[Heard]| heard.iter().filter(|one| one.name() == "execution_success").count();
    anna.until(|heard| done(heard) >= 4).await;
    // By turns he would have four.
    let short = done(&ben.heard());
    assert!(short >= 16, "{short} short ones while four long ones ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompts_secrets_show_nowhere_and_go_when_it_has_ended() {
    let farm = quick_farm(1).await;
    let all = setup(&farm).with(json!({"server": {"debug": true}}));
    let state = all.state_dir();
    let gateway = all.start().await;
    let base = format!("http://{}", gateway.data);
    eventually("the backend takes jobs", PATIENCE, async || {
        gateway.backend("comfy-1").await["takes_jobs"] == true
    })
    .await;
    let user = Painter::connect(&base, "page").await;
    let mut ids = Vec::new();
    for (seed, seconds) in [(0, 30.0), (1, 0.1)] {
        let extra_data =
            json!({"auth_token_comfy_org": "hush-token", "api_key_comfy_org": "hush-key"});
        let body =
            json!({"prompt": paced(seed, seconds), "client_id": "page", "extra_data": extra_data});
        let (status, reply) = user.send("/prompt", &body).await;
        assert_eq!(status, 200, "{reply}");
        ids.push(reply["prompt_id"].as_str().unwrap().to_owned());
    }
    let shown = async |path: &str| {
        let text =
            user.http.get(format!("{base}{path}")).send().await.unwrap().text().await.unwrap();
        text.contains("hush")
    };
    let everywhere = async || {
        for path in ["/queue", "/api/jobs", "/history", "/prompt"] {
            assert!(!shown(path).await, "{path}");
        }
        for id in &ids {
            for path in [format!("/history/{id}"), format!("/api/jobs/{id}")] {
                assert!(!shown(&path).await, "{path}");
            }
            let task = gateway.admin(&format!("/lb/tasks/{id}")).await;
            assert!(!task.text().contains("hush"));
        }
        assert!(!gateway.admin("/lb/tasks").await.text().contains("hush"));
    };
    everywhere().await;
    assert!(holds(&state, b"hush-key"), "it is needed if the prompt has to run again");
    for id in &ids {
        user.entry(id).await;
    }
    everywhere().await;
    eventually("nothing of them is on the disk", Duration::from_secs(20), async || {
        !holds(&state, b"hush-key") && !holds(&state, b"hush-token")
    })
    .await;
    assert!(!gateway.has_logged("hush"));
}

/// Whether any file under a directory holds these bytes.
fn holds(directory: &std::path::Path, needle: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return holds(&path, needle);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}
