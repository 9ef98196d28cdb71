//! Who hears what.

use serde_json::json;

use super::painter::{Heard, Painter, paced};
use super::{pool, quick_farm};

fn names(heard: &[Heard]) -> Vec<&str> {
    heard.iter().map(Heard::name).filter(|name| *name != "status").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompts_events_are_those_of_one_server_and_reach_its_owner_alone() {
    let farm = quick_farm(3).await;
    let gateway = pool(&farm).await;
    let alone = quick_farm(1).await;
    for flags in [false, true] {
        let (id, other) = (format!("owner-{flags}"), format!("stranger-{flags}"));
        let owner = Painter::connect_with(&gateway.data, &id, flags).await;
        let stranger = Painter::connect(&gateway.data, &other).await;
        let direct = Painter::connect_with(&alone[0].url(), &id, flags).await;
        let (ours, theirs) = (owner.paint(paced(7, 1.0)).await, direct.paint(paced(7, 1.0)).await);
        owner.finished(&ours).await;
        direct.finished(&theirs).await;
        let (here, there) = (owner.heard(), direct.heard());
        assert_eq!(names(&here), names(&there), "flags {flags}");
        let binaries = |heard: &[Heard]| -> Vec<Vec<u8>> {
            let all = heard.iter().filter_map(|one| match one {
                Heard::Binary(bytes) => Some(bytes.clone()),
                Heard::Event { .. } => None,
            });
            all.map(|bytes| bytes[..4].to_vec()).collect()
        };
        assert_eq!(binaries(&here), binaries(&there));
        assert_eq!(
            names(&stranger.heard()),
            Vec::<&str>::new(),
            "strangers hear of the depth only"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_the_farms_depth() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let owner = Painter::connect(&gateway.data, "owner").await;
    let watcher = Painter::connect(&gateway.data, "watcher").await;
    let remaining = |one: &Heard| match one {
        Heard::Event { name, data } if name == "status" => {
            data["status"]["exec_info"]["queue_remaining"].as_u64()
        }
        _ => None,
    };
    let mut prompts = Vec::new();
    for seed in 0..4 {
        prompts.push(owner.paint(paced(seed, 5.0)).await);
    }
    watcher.until(|heard| heard.iter().any(|one| remaining(one) == Some(4))).await;
    owner.send("/queue", &json!({"clear": true})).await;
    for id in &prompts[..2] {
        owner.send("/interrupt", &json!({"prompt_id": id})).await;
    }
    watcher.until(|heard| heard.iter().rev().find_map(remaining) == Some(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_after_a_broken_connection_gets_what_it_missed() {
    let farm = quick_farm(2).await;
    let gateway = pool(&farm).await;
    let owner = Painter::connect(&gateway.data, "broken").await;
    let prompt = owner.paint(paced(3, 5.0)).await;
    owner.until(|heard| heard.iter().any(|one| one.name() == "execution_start")).await;
    // Dropping the painter cuts its connection without a close frame.
    drop(owner);
    let other = Painter::connect(&gateway.data, "other").await;
    other.entry(&prompt).await;
    let back = Painter::connect(&gateway.data, "broken").await;
    back.finished(&prompt).await;
    let events = back.events_of(&prompt);
    for wanted in ["executed", "execution_success", "executing"] {
        assert!(events.iter().any(|one| one.name() == wanted), "{wanted} in {events:?}");
    }
    assert!(other.events_of(&prompt).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_without_a_client_id_is_heard_by_its_callers_sockets_only() {
    let farm = quick_farm(1).await;
    let gateway = pool(&farm).await;
    let same = Painter::connect(&gateway.data, "same-address").await;
    let (status, reply) = same.send("/prompt", &json!({"prompt": paced(1, 1.0)})).await;
    assert_eq!(status, 200);
    let prompt = reply["prompt_id"].as_str().unwrap().to_owned();
    same.entry(&prompt).await;
    same.until(|heard| heard.iter().any(|one| one.name() == "progress")).await;
    let heard = same.heard();
    for never in ["execution_start", "execution_success", "executed", "executing"] {
        assert!(!heard.iter().any(|one| one.name() == never), "ComfyUI sends {never} to nobody");
    }
}
