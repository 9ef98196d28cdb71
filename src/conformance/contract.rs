//! What of an HTTP response is the contract, and the comparison of two responses by it. Pure.
//!
//! Status, the headers that clients act on, and the body: values where they are ComfyUI's, kinds
//! where they are the machine's (memory sizes, versions, lists of what is installed).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::compare::{Difference, Findings};
use super::normalise::Names;
use super::recording::{Exchange, Request, Response};
use crate::auth::path::Readings;
use crate::auth::preset;

/// Headers whose value counts, absence included.
const VALUES: [&str; 4] = ["content-type", "cache-control", "accept-ranges", "content-disposition"];
/// Headers of which only the presence counts.
const PRESENCE: [&str; 2] = ["etag", "last-modified"];
/// Bytes of a PNG up to its size, depth and colour type.
const PNG_HEADER: usize = 26;

/// How a response differs from the recorded one; empty when it conforms.
pub fn compare_exchange(
    recorded: &Exchange,
    observed: &Response,
    names: (&Names, &Names),
) -> Vec<Difference> {
    let mut findings = Findings::new(&recorded.name);
    let want = &recorded.response;
    findings.values("status", &want.status.into(), &observed.status.into());
    if is_closed_on_purpose(&recorded.request, observed) {
        return Vec::new();
    }
    if is_gateways_refusal(want, observed) {
        return findings.into_list();
    }
    let both = (headers(want, names.0), headers(observed, names.1));
    findings.values("header", &both.0, &both.1);
    if !is_proxied(observed) && !names.1.is_of_a_farm() {
        let closes = |response: &Response| Value::from(closes(&response.headers));
        findings.values("header connection: close", &closes(want), &closes(observed));
    }
    let form = Form::of(&recorded.name);
    let both = (form.apply(want, names.0), form.apply(observed, names.1));
    findings.values("body", &both.0, &both.1);
    findings.into_list()
}

fn headers(response: &Response, names: &Names) -> Value {
    let get = |name: &str| response.headers.get(name);
    let value = |name: &str| get(name).map_or(Value::Null, |text| names.text(text).into());
    let presence = |name: &str| Value::from(if get(name).is_some() { "present" } else { "absent" });
    let values = VALUES.iter().map(|name| ((*name).to_owned(), value(name)));
    let all = values.chain(PRESENCE.iter().map(|name| ((*name).to_owned(), presence(name))));
    Value::Object(all.collect())
}

/// A gateway that refuses in place of the server says why, where `ComfyUI` says nothing.
fn is_gateways_refusal(want: &Response, observed: &Response) -> bool {
    want.status >= 400
        && want.body["length"] == 0
        && observed.body["error"]["type"].is_string()
        && observed.body["node_errors"].is_object()
}

/// A gateway keeps routes closed that it says are dangerous.
fn is_closed_on_purpose(request: &Request, observed: &Response) -> bool {
    observed.status == 403
        && observed.body["error"]["type"] == "forbidden"
        && observed.body["node_errors"].is_object()
        && request
            .method
            .parse()
            .is_ok_and(|method| preset::closes(&method, &Readings::of(&request.path)))
}

/// A proxy in between manages connections of its own.
fn is_proxied(response: &Response) -> bool {
    ["via", "x-comfygate-backend"].iter().any(|name| response.headers.contains_key(*name))
}

fn closes(headers: &BTreeMap<String, String>) -> bool {
    headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

/// Which form of a body is compared.
enum Form {
    /// Values, with the names of the run made stable.
    Values,
    /// Kinds of all values.
    Kinds,
    /// That it is a text.
    Text,
    /// That it is an object.
    Object,
    /// A node's description: its texts and choices are the installation's.
    Node,
}

impl Form {
    fn of(exchange: &str) -> Self {
        match exchange {
            "root" => Self::Text,
            "settings" => Self::Object,
            "system_stats" | "embeddings" | "extensions" | "models" | "users" => Self::Kinds,
            name if name.starts_with("object_info") => Self::Node,
            _ => Self::Values,
        }
    }

    fn apply(&self, response: &Response, names: &Names) -> Value {
        let body = &response.body;
        match self {
            Self::Text => json!({"is text": body.as_str().is_some_and(|text| !text.is_empty())}),
            Self::Object => json!({"is object": body.is_object()}),
            Self::Kinds => kinds("", body),
            Self::Node => node("", body),
            Self::Values => match head(response) {
                Some(head) => head,
                None => counts(names.apply(body)),
            },
        }
    }
}

/// The kind of a value; lists of strings are one kind however long.
fn kinds(key: &str, value: &Value) -> Value {
    match value {
        // A GPU has an index, the CPU none.
        _ if key == "index" => "<index>".into(),
        Value::Null => Value::Null,
        Value::Bool(_) => "<boolean>".into(),
        Value::Number(n) if n.is_f64() => "<float>".into(),
        Value::Number(_) => "<integer>".into(),
        Value::String(_) => "<string>".into(),
        Value::Array(items) if items.iter().all(Value::is_string) => "<list of strings>".into(),
        Value::Array(items) => {
            let mut each: Vec<Value> = items.iter().map(|item| kinds(key, item)).collect();
            each.dedup();
            each.into()
        }
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.clone(), kinds(key, value))).collect()
        }
    }
}

fn node(key: &str, value: &Value) -> Value {
    match (key, value) {
        ("tooltip" | "description" | "python_module", Value::String(_)) => "<string>".into(),
        (_, Value::Array(items)) => match items.split_first() {
            // An input that is a choice: the list comes first, the options after it.
            Some((Value::Array(choices), options)) if choices.iter().all(Value::is_string) => {
                let rest = options.iter().map(|option| node("", option));
                [Value::from("<choices>")].into_iter().chain(rest).collect()
            }
            _ => items.iter().map(|item| node("", item)).collect(),
        },
        (_, Value::Object(map)) => {
            map.iter().map(|(key, value)| (key.clone(), node(key, value))).collect()
        }
        _ => value.clone(),
    }
}

/// How many jobs a server remembers is its past.
fn counts(mut body: Value) -> Value {
    if let Some(total) = body.pointer_mut("/pagination/total")
        && total.is_u64()
    {
        *total = "<integer>".into();
    }
    body
}

/// A body kept by its head: an image up to its size, anything else by its length.
fn head(response: &Response) -> Option<Value> {
    let head = response.body.get("base64_head")?.as_str()?;
    if response.headers.get("content-type").is_none_or(|kind| !kind.starts_with("image/")) {
        return Some(json!({"length": response.body.get("length")}));
    }
    let bytes = STANDARD.decode(head).ok()?;
    let header = STANDARD.encode(bytes.get(..PNG_HEADER).unwrap_or(&bytes));
    // Of the recorded images only the head is kept; they had none.
    let flaw = response.body.get("flaw").unwrap_or(&Value::Null);
    Some(json!({"png header": header, "flaw": flaw}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::recording::exchanges;

    fn differences(name: &str, change: impl FnOnce(&mut Response)) -> Vec<Difference> {
        let all = exchanges().unwrap();
        let exchange = all.iter().find(|exchange| exchange.name == name).unwrap();
        let mut response = exchange.response.clone();
        change(&mut response);
        let names = Names::default().lenient();
        compare_exchange(exchange, &response, (&names, &names))
    }

    #[test]
    fn what_is_the_machines_may_differ() {
        assert!(differences("models", |r| r.body = json!(["a"])).is_empty());
        assert!(differences("embeddings", |r| r.body = json!(["a", "b"])).is_empty());
        assert!(
            differences("system_stats", |r| r.body["devices"][0]["index"] = 0.into()).is_empty()
        );
        assert!(differences("settings", |r| r.body = json!({"a": 1})).is_empty());
        assert!(differences("jobs", |r| r.body["pagination"]["total"] = 99.into()).is_empty());
        let load = "/LoadImage/input/required/image/0";
        let choices = |r: &mut Response| *r.body.pointer_mut(load).unwrap() = json!(["a.png"]);
        assert!(differences("object_info_load", choices).is_empty());
    }

    #[test]
    fn what_is_the_contract_may_not() {
        assert_eq!(differences("prompt", |r| r.status = 404).len(), 1);
        assert_eq!(differences("models", |r| r.body = json!([1])).len(), 1);
        assert_eq!(differences("view_missing", |r| r.body["length"] = 3.into()).len(), 1);
        let etag = differences("view", |r| drop(r.headers.remove("etag")));
        assert_eq!(etag[0].to_string(), "header.etag: expected \"present\", got \"absent\"");
        let close = differences("prompt_bad_json", |r| drop(r.headers.remove("connection")));
        assert_eq!(close.len(), 1);
    }

    #[test]
    fn a_gateway_may_say_why_it_refuses() {
        let refusal = json!({"error": {"type": "forbidden"}, "node_errors": {}});
        assert!(differences("origin_mismatch", |r| r.body = refusal.clone()).is_empty());
        assert!(!differences("view", |r| r.body = refusal.clone()).is_empty());
    }

    #[test]
    fn a_gateway_may_close_what_its_preset_names_and_nothing_else() {
        let refusal = json!({"error": {"type": "forbidden"}, "node_errors": {}});
        let closed = |r: &mut Response| (r.status, r.body) = (403, refusal.clone());
        assert!(differences("free", closed).is_empty());
        assert!(!differences("queue_clear", closed).is_empty());
        assert!(!differences("free", |r| r.status = 403).is_empty());
    }

    #[test]
    fn a_proxy_may_keep_the_connection_that_the_server_closes() {
        let kept = differences("prompt_bad_json", |r| {
            r.headers.remove("connection");
            r.headers.insert("x-comfygate-backend".to_owned(), "comfy-1".to_owned());
        });
        assert!(kept.is_empty());
    }
}
