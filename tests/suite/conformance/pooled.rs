//! A gateway in pool mode: what may differ there from one server, and what may not.

use comfygate::conformance::{Difference, Frame, Scenario, compare, scenarios};
use serde_json::{Value, json};

/// A scenario as a farm would have run it whose backend of each file `backend` tells, by the
/// counter; there the files have the counter of the second value.
fn pooled(name: &str, farm: usize, place: impl Fn(u32) -> (&'static str, u32)) -> Scenario {
    let recorded = recorded(name);
    let mut value = serde_json::to_value(&recorded).unwrap();
    value["farm"] = farm.into();
    let first = files(&value).into_iter().min().unwrap_or_default();
    mark(&mut value, &|counter| place(counter - first));
    sort_pending(&mut value);
    serde_json::from_value(value).unwrap()
}

fn recorded(name: &str) -> Scenario {
    scenarios().unwrap().into_iter().find(|one| one.scenario == name).unwrap()
}

fn differences(ran: &Scenario) -> Vec<Difference> {
    compare(&recorded(&ran.scenario), ran)
}

fn assert_conforms(ran: &Scenario) {
    let differences = differences(ran);
    assert!(differences.is_empty(), "{}: {differences:#?}", ran.scenario);
}

fn assert_caught(ran: &Scenario, what: &str) {
    assert!(!differences(ran).is_empty(), "{}: not caught: {what}", ran.scenario);
}

/// The counters of the files named in a value.
fn files(value: &Value) -> Vec<u32> {
    match value {
        Value::Array(items) => items.iter().flat_map(files).collect(),
        Value::Object(map) => {
            let own = map.get("filename").and_then(Value::as_str).map(counter);
            own.into_iter().chain(map.values().flat_map(files)).collect()
        }
        _ => Vec::new(),
    }
}

fn counter(name: &str) -> u32 {
    name[4..9].parse().unwrap()
}

fn mark(value: &mut Value, place: &dyn Fn(u32) -> (&'static str, u32)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| mark(item, place)),
        Value::Object(map) => {
            if let Some(name) = map.get("filename").and_then(Value::as_str) {
                let (backend, counter) = place(counter(name));
                map["filename"] = format!("rec_{counter:05}_.png").into();
                map["subfolder"] = format!("@{backend}").into();
            }
            map.values_mut().for_each(|item| mark(item, place));
        }
        _ => {}
    }
}

fn sort_pending(value: &mut Value) {
    let Value::Object(map) = value else { return };
    if let Some(Value::Array(items)) = map.get_mut("queue_pending") {
        items.sort_by(|a, b| a[0].as_f64().unwrap().total_cmp(&b[0].as_f64().unwrap()));
    }
    map.values_mut().for_each(sort_pending);
}

/// A run in which a change was made at a place.
fn changed(ran: &Scenario, place: &str, change: impl FnOnce(&mut Value)) -> Scenario {
    let mut value = serde_json::to_value(ran).unwrap();
    change(value.pointer_mut(place).unwrap_or_else(|| panic!("no {place}")));
    serde_json::from_value(value).unwrap()
}

const NAMES: [&str; 10] = [
    "run_ok",
    "run_ok_flags",
    "run_no_client_id",
    "run_error",
    "run_cached",
    "two_queued",
    "interrupt_running",
    "delete_pending",
    "front_and_number",
    "reconnect_while_running",
];

fn alone(name: &str) -> Scenario {
    pooled(name, 1, |counter| ("comfy-1", counter + 1))
}

#[test]
fn a_farm_of_one_conforms_with_its_prefix_and_without_repeated_depths() {
    for name in NAMES {
        let mut ran = alone(name);
        assert_conforms(&ran);
        for frames in ran.frames.values_mut() {
            drop_repeated_depths(frames);
        }
        assert_conforms(&ran);
    }
}

fn drop_repeated_depths(frames: &mut Vec<Frame>) {
    let mut last = None;
    frames.retain(|frame| {
        let depth = frame.data().and_then(|d| d.pointer("/status/exec_info")).cloned();
        let repeated = frame.kind() == Some("status") && depth == last;
        last = depth.or(last.take());
        !repeated
    });
}

#[test]
fn the_prefix_is_nothing_to_any_other_server() {
    let mut ran = alone("run_ok");
    ran.farm = 0;
    assert_caught(&ran, "a server whose outputs stand in @comfy-1");
    let ran = changed(&recorded("run_ok"), "/frames/owner", |frames| {
        drop_one_depth(frames.as_array_mut().unwrap());
    });
    assert_caught(&ran, "a depth that one server tells twice");
}

fn drop_one_depth(frames: &mut Vec<Value>) {
    let at = frames.iter().rposition(|f| f["text"]["type"] == "status" && f["t_ms"] != 0).unwrap();
    frames.remove(at - 1);
}

#[test]
fn a_farm_of_one_may_not_differ_in_anything_else() {
    let ran = alone("run_ok");
    let id = ran.posts[0].body["prompt_id"].as_str().unwrap();
    let listed = format!("/history/{id}/{id}/outputs/2/images/0/subfolder");
    for wrong in ["", "@", "old", "@comfy-1/old", "x/@comfy-1", "@comfy-1/"] {
        assert_caught(&changed(&ran, &listed, |place| *place = wrong.into()), wrong);
    }
    let frames = &ran.frames["owner"];
    let at = frames.iter().position(|frame| frame.kind() == Some("executed")).unwrap();
    let told = format!("/frames/owner/{at}/text/data/output/images/0/subfolder");
    assert_caught(&changed(&ran, &told, |place| *place = "".into()), "no prefix in executed");
    assert_caught(&changed(&ran, &told, |place| *place = "@comfy-2".into()), "another backend");

    let heap = changed(&alone("front_and_number"), "/extra/queue_pending", |pending| {
        pending.as_array_mut().unwrap().swap(1, 2);
    });
    assert_caught(&heap, "what waits is not listed as it will run");
    let lost = changed(&ran, "/frames/owner", |frames| {
        frames.as_array_mut().unwrap().retain(|f| f["text"]["type"] != "executing");
    });
    assert_caught(&lost, "no executing");
}

/// Both prompts at once, on two servers whose files have equal names.
fn side_by_side() -> Scenario {
    let mut ran = pooled("two_queued", 3, |counter| (["comfy-2", "comfy-1"][counter as usize], 1));
    for frames in ran.frames.values_mut() {
        frames.retain(|frame| frame.kind() != Some("status"));
        let depth = |n: u32, sid: &str| {
            let mut data = json!({"status": {"exec_info": {"queue_remaining": n}}});
            if !sid.is_empty() {
                data["sid"] = sid.into();
            }
            json!({"t_ms": 0, "text": {"type": "status", "data": data}})
        };
        let frame = |value| serde_json::from_value::<Frame>(value).unwrap();
        frames.insert(0, frame(depth(2, "")));
        frames.push(frame(depth(1, "")));
        frames.push(frame(depth(0, "")));
    }
    for sid in ["A", "B"] {
        let greeting = recorded("two_queued").frames[sid][0].clone();
        ran.frames.get_mut(sid).unwrap().insert(0, greeting);
    }
    ran
}

#[test]
fn a_farm_of_several_is_compared_by_prompt() {
    assert_conforms(&side_by_side());
    let mut stranger = side_by_side();
    let moved = stranger.frames["A"].iter().find(|f| f.kind() == Some("progress")).unwrap().clone();
    stranger.frames.get_mut("B").unwrap().insert(3, moved);
    assert_caught(&stranger, "a frame of another's prompt");
    for kind in ["executing", "executed", "progress", "execution_start", "execution_success"] {
        let mut lost = side_by_side();
        let frames = lost.frames.get_mut("A").unwrap();
        let at = frames.iter().position(|frame| frame.kind() == Some(kind)).unwrap();
        let frame = frames.remove(at);
        assert_caught(&lost, &format!("{kind} is lost"));
        let frames = lost.frames.get_mut("A").unwrap();
        frames.insert(at, frame.clone());
        frames.insert(at, frame);
        assert_caught(&lost, &format!("{kind} is doubled"));
    }
    let mut previews = side_by_side();
    let frames = previews.frames.get_mut("A").unwrap();
    let at = frames.iter().position(|frame| frame.binary_base64.is_some()).unwrap();
    frames.remove(at);
    assert_caught(&previews, "a preview is lost");
    let mut busy = side_by_side();
    busy.frames.get_mut("A").unwrap().pop();
    assert_caught(&busy, "the last depth is not idle");
}

#[test]
fn on_a_farm_of_several_prompts_run_that_would_wait_for_one_server() {
    let mut ran = pooled("front_and_number", 3, |counter| {
        (["comfy-1", "comfy-3", "comfy-1", "comfy-2", "comfy-3"][counter as usize], counter / 2 + 1)
    });
    let running = ran.extra["queue_pending"].as_array_mut().unwrap().split_off(2);
    ran.extra["queue_running"].as_array_mut().unwrap().extend(running);
    assert_conforms(&ran);
    ran.extra["queue_pending"].as_array_mut().unwrap().swap(0, 1);
    assert_caught(&ran, "what waits is not listed as it will run");
    ran.extra["queue_pending"].as_array_mut().unwrap().truncate(1);
    assert_caught(&ran, "a prompt is not listed");
}

/// The second prompt as the first, under its own id and with a file of its own.
fn like_the_first(ran: &mut Scenario, listener: &str) {
    let ids = [0, 1].map(|index| ran.posts[index].body["prompt_id"].as_str().unwrap().to_owned());
    let own = |text: &str| text.replace(&ids[0], &ids[1]).replace("@comfy-1", "@comfy-2");
    let of = |frame: &Frame, id: &str| frame.data().is_some_and(|data| data["prompt_id"] == id);
    let frames = ran.frames.get_mut(listener).unwrap();
    frames.retain(|frame| !of(frame, &ids[1]));
    let first: Vec<Frame> = frames
        .iter()
        .filter(|frame| of(frame, &ids[0]) || frame.binary_base64.is_some())
        .map(|frame| serde_json::from_str(&own(&serde_json::to_string(frame).unwrap())).unwrap())
        .collect();
    let end = frames.len() - 1;
    let last = frames.split_off(end);
    frames.extend(first);
    frames.extend(last);
    let entry = own(&ran.history[&ids[0]].to_string());
    let mut entry: Value = serde_json::from_str(&entry).unwrap();
    entry[&ids[1]]["prompt"][0] = ran.posts[1].body["number"].clone();
    ran.history.insert(ids[1].clone(), entry);
    let depth = json!({"status": {"exec_info": {"queue_remaining": 0}}});
    let frame = json!({"t_ms": 9999, "text": {"type": "status", "data": depth}});
    let frames = ran.frames.get_mut(listener).unwrap();
    frames.push(serde_json::from_value(frame).unwrap());
}

#[test]
fn on_a_farm_of_several_another_server_has_not_cached_what_the_first_ran() {
    let mut ran = pooled("run_cached", 3, |_| ("comfy-1", 1));
    assert_conforms(&ran);
    like_the_first(&mut ran, "owner");
    assert_conforms(&ran);
    let frames = ran.frames.get_mut("owner").unwrap();
    let at = frames.iter().rposition(|frame| frame.kind() == Some("progress")).unwrap();
    frames.remove(at);
    assert_caught(&ran, "a step of the second run is lost");
}

#[test]
fn on_a_farm_of_several_a_prompt_to_be_deleted_may_have_begun() {
    let mut ran = pooled("delete_pending", 3, |_| ("comfy-1", 1));
    assert_conforms(&ran);
    like_the_first(&mut ran, "owner");
    assert_caught(&ran, "what was waiting and deleted has run");
    for listing in ["queue_before", "queue_after"] {
        let pending = ran.extra["queue_before"]["queue_pending"].as_array().unwrap().clone();
        ran.extra[listing]["queue_running"].as_array_mut().unwrap().extend(pending);
    }
    for listing in ["queue_before", "queue_after"] {
        ran.extra[listing]["queue_pending"] = json!([]);
    }
    assert_conforms(&ran);
}
