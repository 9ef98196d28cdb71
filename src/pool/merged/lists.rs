//! Uniting the smaller replies: lists of names, of folders, of models, of files. Pure.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Entries of a united list at most.
pub const MAX_ENTRIES: usize = 500_000;

/// Lists of names: each name once, in the order in which it is first met.
pub fn names(lists: &[Value]) -> Value {
    let mut seen = HashSet::new();
    let names = entries(lists).filter(|entry| entry.is_string());
    names.filter(|name| seen.insert(*name)).take(MAX_ENTRIES).cloned().collect()
}

/// Lists of objects with a `name`: of each name the first, as `/experiment/models/{folder}` has
/// them.
pub fn models(lists: &[Value]) -> Value {
    let mut seen = HashSet::new();
    let named = entries(lists).filter(|entry| seen.insert(entry["name"].as_str()));
    named.filter(|entry| entry["name"].is_string()).take(MAX_ENTRIES).cloned().collect()
}

/// Lists of `{name, folders}`: each name once, with the folders of all, as `/experiment/models`
/// has them.
pub fn folders(lists: &[Value]) -> Value {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut all: Vec<Value> = Vec::new();
    for entry in entries(lists) {
        let Some(name) = entry["name"].as_str() else { continue };
        let Some(place) = places.get(name) else {
            if all.len() < MAX_ENTRIES {
                places.insert(name, all.len());
                all.push(entry.clone());
            }
            continue;
        };
        let known = &mut all[*place]["folders"];
        let both = [known.take(), entry["folders"].clone()];
        *known = names(&both);
    }
    all.into()
}

/// Lists of files that lie on one server each, newest first: taken in turns, so that the newest
/// of each come first, and under the subfolder that stands for their server. A ` [output]` behind
/// a name stays there.
pub fn files_of_each(lists: &[(&str, Value)]) -> Value {
    let lists: Vec<(&str, &[Value])> = lists
        .iter()
        .map(|(server, list)| (*server, list.as_array().map_or(&[][..], Vec::as_slice)))
        .collect();
    let longest = lists.iter().map(|(_, list)| list.len()).max().unwrap_or_default();
    let mut all = Vec::new();
    for turn in 0..longest {
        for (server, list) in &lists {
            if let Some(name) = list.get(turn).and_then(Value::as_str)
                && all.len() < MAX_ENTRIES
            {
                all.push(Value::from(format!("@{server}/{name}")));
            }
        }
    }
    all.into()
}

fn entries(lists: &[Value]) -> impl Iterator<Item = &Value> {
    lists.iter().filter_map(Value::as_array).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn each_name_stands_once_in_the_order_met() {
        let lists = [json!(["b", "a"]), json!({"no": "list"}), json!(["c", "a", 3, null, "d"])];
        assert_eq!(names(&lists), json!(["b", "a", "c", "d"]));
        assert_eq!(names(&[]), json!([]));
    }

    #[test]
    fn models_and_folders_are_united_by_name() {
        let first = json!([{"name": "a", "size": 1}, {"name": "b", "size": 2}, "x", {"size": 3}]);
        let second = json!([{"name": "b", "size": 9}, {"name": "c", "size": 4}]);
        let united = models(&[first, second]);
        assert_eq!(
            united,
            json!([{"name": "a", "size": 1}, {"name": "b", "size": 2}, {"name": "c", "size": 4}])
        );
        let first = json!([{"name": "vae", "folders": ["/m/vae"]}, {"name": "odd"}]);
        let second = json!([{"name": "vae", "folders": ["/n/vae", "/m/vae"]}, {"name": "new", "folders": []}]);
        let united = folders(&[first, second]);
        let expected = json!([{"name": "vae", "folders": ["/m/vae", "/n/vae"]}, {"name": "odd"},
            {"name": "new", "folders": []}]);
        assert_eq!(united, expected);
    }

    #[test]
    fn files_come_in_turns_under_their_server() {
        let lists = [("gpu-1", json!(["n.png [output]", "o.png"])), ("gpu-2", json!(["n.png"]))];
        assert_eq!(
            files_of_each(&lists),
            json!(["@gpu-1/n.png [output]", "@gpu-2/n.png", "@gpu-1/o.png"])
        );
        assert_eq!(
            files_of_each(&[("x", json!({"a": 1})), ("y", json!([1, "a"]))]),
            json!(["@y/a"])
        );
    }

    proptest! {
        #[test]
        fn odd_shapes_never_panic(texts in prop::collection::vec(r#"[\[\]{}":,a-z0-9 ]{0,40}"#, 0..4)) {
            let read = |text: &String| serde_json::from_str(text).unwrap_or(json!([[text], {"name": text}]));
            let lists: Vec<Value> = texts.iter().map(read).collect();
            let _ = (names(&lists), models(&lists), folders(&lists));
            let named: Vec<_> = lists.into_iter().map(|list| ("s", list)).collect();
            let _ = files_of_each(&named);
        }
    }
}
