//! Uniting `/system_stats` and `/features`. Pure.

use serde_json::{Map, Value, json};

/// Devices shown at most.
const MAX_DEVICES: usize = 10_000;

/// One server's statistics that stand for many: `system` (and so the memory) of the first, the
/// devices of all. Of several servers each device's name is followed by its server's, and of
/// several devices each has an index of its own: the stock page shows them in tabs by these.
/// `farm` says whether there are several servers, even if only one answers now.
pub fn stats(replies: &[(&str, Value)], farm: bool) -> Value {
    let mut all = replies.first().map_or_else(|| json!({}), |(_, first)| first.clone());
    let mut devices: Vec<Value> = Vec::new();
    for (server, reply) in replies {
        let list = reply.get("devices").and_then(Value::as_array);
        for device in list.into_iter().flatten().filter(|device| device.is_object()) {
            let mut device = device.clone();
            if farm && let Some(name) = device.get("name").and_then(Value::as_str) {
                device["name"] = format!("{name} ({server})").into();
            }
            devices.push(device);
        }
    }
    devices.truncate(MAX_DEVICES);
    if devices.len() > 1 {
        for (index, device) in devices.iter_mut().enumerate() {
            device["index"] = index.into();
        }
    }
    if let Some(all) = all.as_object_mut() {
        all.insert("devices".to_owned(), devices.into());
    }
    all
}

/// What every server can do: the smallest of each limit, a capability only where all have it,
/// anything else as the first has it. An upload goes through the gateway, which takes bodies of
/// `max_upload_size` bytes.
pub fn features(replies: &[Value], max_upload_size: u64) -> Value {
    let objects: Vec<_> = replies.iter().filter_map(Value::as_object).collect();
    let mut all = objects.split_first().map_or_else(Map::new, |(first, rest)| common(first, rest));
    if let Some(limit) = all.get_mut("max_upload_size")
        && limit.as_f64().is_none_or(|limit| limit > max_upload_size as f64)
    {
        *limit = max_upload_size.into();
    }
    all.into()
}

fn common(first: &Map<String, Value>, rest: &[&Map<String, Value>]) -> Map<String, Value> {
    first.iter().map(|(key, value)| (key.clone(), least(key, value, rest))).collect()
}

fn least(key: &str, value: &Value, rest: &[&Map<String, Value>]) -> Value {
    let others: Vec<Option<&Value>> = rest.iter().map(|other| other.get(key)).collect();
    match value {
        Value::Bool(on) => {
            let all = others.iter().all(|other| other.and_then(Value::as_bool) == Some(true));
            (*on && all).into()
        }
        Value::Number(_) => {
            let numbers = others.into_iter().flatten().filter(|other| other.is_number());
            let least = numbers.min_by(|a, b| number(a).total_cmp(&number(b)));
            least.filter(|least| number(least) < number(value)).unwrap_or(value).clone()
        }
        Value::Object(inner) => {
            // What a server lacks, it lacks with everything in it.
            let none = Map::new();
            let object = |other: Option<&'_ Value>| other.and_then(Value::as_object).cloned();
            let others: Vec<_> = others.into_iter().map(object).collect();
            let others: Vec<_> =
                others.iter().map(|other| other.as_ref().unwrap_or(&none)).collect();
            common(inner, &others).into()
        }
        other => other.clone(),
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_single_servers_statistics_stay_as_they_are() {
        let reply = json!({"system": {"os": "linux"}, "devices": [{"name": "cpu", "index": null}]});
        assert_eq!(stats(&[("a", reply.clone())], false), reply);
    }

    #[test]
    fn devices_of_all_are_told_apart() {
        let reply = |ram: u64| json!({"system": {"ram_total": ram}, "devices": [{"name": "cuda:0", "index": 0}, 7]});
        let all = stats(&[("a", reply(1)), ("b", reply(2)), ("c", json!("odd"))], true);
        let expected =
            json!([{"name": "cuda:0 (a)", "index": 0}, {"name": "cuda:0 (b)", "index": 1}]);
        assert_eq!(all["devices"], expected);
        assert_eq!(all["system"], json!({"ram_total": 1}));
    }

    #[test]
    fn a_feature_is_there_only_if_all_have_it() {
        let first = json!({"supports_preview_metadata": true, "max_upload_size": 9, "words": "a",
            "extension": {"manager": {"supports_v4": true}, "other": {"on": true, "limit": 3}}});
        let second = json!({"supports_preview_metadata": true, "max_upload_size": 5.5, "words": "b",
            "more": true, "extension": {"manager": {"supports_v4": false}, "other": {"on": true, "limit": 2}}});
        let both = features(&[first.clone(), second], 100);
        let expected = json!({"supports_preview_metadata": true, "max_upload_size": 5.5, "words": "a",
            "extension": {"manager": {"supports_v4": false}, "other": {"on": true, "limit": 2}}});
        assert_eq!(both, expected);
        let without = features(&[first.clone(), json!({})], 7);
        assert_eq!(without["extension"]["manager"]["supports_v4"], false);
        assert_eq!(without["max_upload_size"], 7);
        assert_eq!(features(std::slice::from_ref(&first), 100), first);
        assert_eq!(features(&[], 1), json!({}));
    }

    proptest! {
        #[test]
        fn the_order_of_servers_does_not_change_limits_and_switches(
            a in any::<bool>(), b in any::<bool>(), x in 0u32..9, y in 0u32..9,
        ) {
            let one = json!({"on": a, "limit": x});
            let two = json!({"on": b, "limit": y});
            let both = features(&[one.clone(), two.clone()], 100);
            prop_assert_eq!(&both, &features(&[two, one], 100));
            prop_assert_eq!(both, json!({"on": a && b, "limit": x.min(y)}));
        }
    }
}
