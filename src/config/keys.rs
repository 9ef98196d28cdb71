//! Every key there is, and what a key that isn't one was probably meant to be.

use serde_yaml::Value;

use super::raw::Node;

/// What may stand under a key.
pub(super) enum Shape {
    /// A value; what it may be is told where it is taken.
    Leaf,
    /// A map with these keys.
    Map(&'static [(&'static str, Shape)]),
    /// A list of maps with these keys, or of plain strings.
    Items(&'static [(&'static str, Shape)]),
}

use Shape::{Items, Leaf, Map};

/// One of `backends`.
const BACKEND: &[(&str, Shape)] = &[
    ("name", Leaf),
    ("host", Leaf),
    ("port", Leaf),
    ("url", Leaf),
    ("weight", Leaf),
    ("max_queue", Leaf),
    ("enabled", Leaf),
    ("backup", Leaf),
    ("max_connections", Leaf),
    ("headers", Leaf),
    ("labels", Leaf),
    ("task_types", Leaf),
    ("tls", Map(&[("ca", Leaf), ("server_name", Leaf), ("insecure", Leaf)])),
];

/// `server.tls`.
const TLS: &[(&str, Shape)] = &[
    ("cert", Leaf),
    ("key", Leaf),
    ("certificates", Items(&[("cert", Leaf), ("key", Leaf)])),
    ("min_version", Leaf),
    ("client_ca", Leaf),
    ("client_auth", Leaf),
    ("http2", Leaf),
    ("hsts", Leaf),
    ("redirect_port", Leaf),
];

/// The whole file.
pub(super) const FILE: Shape = Map(&[
    ("mode", Leaf),
    (
        "server",
        Map(&[
            ("host", Leaf),
            ("port", Leaf),
            ("debug", Leaf),
            ("threads", Leaf),
            ("backend_header", Leaf),
            ("tls", Map(TLS)),
            ("trusted_proxies", Leaf),
            ("proxy_protocol", Leaf),
            ("public_names", Leaf),
            ("shutdown_timeout", Leaf),
        ]),
    ),
    (
        "scheduler",
        Map(&[
            ("strategy", Leaf),
            ("prefer_idle", Leaf),
            ("queue_weight", Leaf),
            ("zone_header", Leaf),
            ("zones", Leaf),
            ("zone_spill", Leaf),
        ]),
    ),
    (
        "session",
        Map(&[
            ("affinity", Leaf),
            ("ttl", Leaf),
            ("max_clients", Leaf),
            ("failover_after", Leaf),
            ("cookie_key", Leaf),
        ]),
    ),
    (
        "health_check",
        Map(&[
            ("interval", Leaf),
            ("timeout", Leaf),
            ("unhealthy_threshold", Leaf),
            ("healthy_threshold", Leaf),
            ("push", Leaf),
            ("headers", Leaf),
        ]),
    ),
    ("failover", Map(&[("enabled", Leaf), ("attempts", Leaf)])),
    (
        "outlier",
        Map(&[
            ("consecutive_gateway_failure", Leaf),
            ("consecutive_5xx", Leaf),
            ("interval", Leaf),
            ("base_ejection_time", Leaf),
            ("max_ejection_time", Leaf),
            ("max_ejection_percent", Leaf),
        ]),
    ),
    ("timeouts", Map(&[("connect", Leaf), ("read", Leaf), ("transfer", Leaf), ("write", Leaf)])),
    (
        "queue",
        Map(&[
            ("max_size", Leaf),
            ("retry_interval", Leaf),
            ("max_retries", Leaf),
            ("fairness", Leaf),
            ("priority", Leaf),
        ]),
    ),
    (
        "pool",
        Map(&[
            ("prefetch", Leaf),
            ("isolation", Leaf),
            ("client_events", Leaf),
            ("eta_events", Leaf),
            ("keep_outputs", Leaf),
            ("uploads_size", Leaf),
            ("history", Map(&[("max_jobs", Leaf), ("max_bytes", Leaf), ("max_age", Leaf)])),
            ("suspect_after", Leaf),
            ("declared_dead_after", Leaf),
            ("restart_hook", Leaf),
            ("no_retry_nodes", Leaf),
        ]),
    ),
    ("backends", Items(BACKEND)),
    ("backends_file", Leaf),
    ("backend_tls", Map(&[("ca", Leaf), ("verify", Leaf)])),
    ("state_dir", Leaf),
    ("admin", Map(&[("listen", Leaf), ("token", Leaf), ("allow_endpoints", Leaf)])),
    ("alerts", Map(&[("webhooks", Leaf), ("queue_above", Leaf)])),
    ("log", Map(&[("format", Leaf), ("access", Leaf)])),
    ("security", Leaf),
    ("routes", Map(&[("deny", Leaf), ("allow", Leaf)])),
    (
        "auth",
        Map(&[
            ("user_header", Leaf),
            ("required", Leaf),
            ("admins", Leaf),
            (
                "keys",
                Items(&[
                    ("name", Leaf),
                    ("hash", Leaf),
                    ("expires", Leaf),
                    ("rate", Leaf),
                    ("routes", Leaf),
                    ("rights", Leaf),
                ]),
            ),
            ("users", Items(&[("name", Leaf), ("password_hash", Leaf), ("rights", Leaf)])),
            ("login", Leaf),
            ("login_ttl", Leaf),
            (
                "forward",
                Map(&[
                    ("url", Leaf),
                    ("user_header", Leaf),
                    ("headers", Leaf),
                    ("timeout", Leaf),
                    ("cache", Leaf),
                ]),
            ),
        ]),
    ),
    ("cache", Map(&[("size", Leaf)])),
    (
        "limits",
        Map(&[
            ("header_bytes", Leaf),
            ("header_count", Leaf),
            ("header_timeout", Leaf),
            ("body_size", Leaf),
            ("keepalive_timeout", Leaf),
            ("connections", Leaf),
            ("per_user", Map(&[("queued", Leaf), ("running", Leaf), ("prompts_per_minute", Leaf)])),
        ]),
    ),
]);

/// The shape of `backends_file`.
pub(super) const BACKENDS_FILE: Shape = Items(BACKEND);

/// Every key that takes a value, as `section.key`; those of a list's items as `backends[].key`.
pub fn known_keys() -> Vec<String> {
    let mut known = Vec::new();
    collect(&FILE, "", &mut known);
    known
}

fn collect(shape: &Shape, above: &str, known: &mut Vec<String>) {
    let (keys, list) = match shape {
        Leaf => return known.push(above.to_owned()),
        Map(keys) => (keys, ""),
        Items(keys) => (keys, "[]"),
    };
    for (key, shape) in *keys {
        let dot = if above.is_empty() { "" } else { "." };
        collect(shape, &format!("{above}{list}{dot}{key}"), known);
    }
}

/// Reports every unknown key, and every value that is no map or list where one belongs.
pub(super) fn check_keys(node: &Node<'_>, shape: &Shape) {
    match (shape, node.value()) {
        (Leaf, _) | (_, None) => {}
        (Map(keys), Some(Value::Mapping(_))) => check_map(node, keys),
        (Map(keys), Some(_)) => node.unknown(format!("give a map of {}", names(keys))),
        (Items(keys), Some(Value::Sequence(_))) => {
            for item in node.items() {
                match item.value() {
                    Some(Value::Mapping(_)) => check_map(&item, keys),
                    Some(Value::String(_)) => {}
                    _ => item.problem("give a URL, or a map with name and url".to_owned()),
                }
            }
        }
        (Items(_), Some(_)) => node.unknown("give a list".to_owned()),
    }
}

fn check_map(node: &Node<'_>, keys: &[(&str, Shape)]) {
    for (name, value) in node.entries() {
        match keys.iter().find(|(key, _)| *key == name) {
            Some((_, shape)) => check_keys(&value, shape),
            None => value.unknown(advice(&name, keys)),
        }
    }
}

/// What to do about an unknown key among `keys`.
fn advice(name: &str, keys: &[(&str, Shape)]) -> String {
    if let Some(home) =
        known_keys().iter().find_map(|key| key.strip_suffix(name)?.strip_suffix('.'))
    {
        return format!("unknown key; it belongs under {home}");
    }
    match nearest(name, keys.iter().map(|(key, _)| *key)) {
        Some(near) => format!("unknown key; did you mean {near}?"),
        None => format!("unknown key; use one of {}", names(keys)),
    }
}

fn names(keys: &[(&str, Shape)]) -> String {
    keys.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ")
}

/// The known name that `name` was probably meant to be: at most a third of it differs.
pub(super) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    /// No key comes near this length, and the distance takes time by the product of both.
    const LONGEST: usize = 40;
    if name.len() > LONGEST {
        return None;
    }
    let name = name.to_lowercase().replace('-', "_");
    known
        .map(|key| (strsim::damerau_levenshtein(&name, key), key))
        .filter(|(distance, key)| *distance <= key.len().div_ceil(3))
        .min()
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_full_paths() {
        let known = known_keys();
        for key in ["mode", "server.tls.cert", "backends[].task_types", "limits.body_size"] {
            assert!(known.iter().any(|k| k == key), "{key} in {known:?}");
        }
    }

    #[test]
    fn the_nearest_key_is_suggested_only_when_near() {
        let keys = ["strategy", "prefer_idle", "queue_weight"];
        assert_eq!(nearest("stratgy", keys.into_iter()), Some("strategy"));
        assert_eq!(nearest("Prefer-Idle", keys.into_iter()), Some("prefer_idle"));
        assert_eq!(nearest("colour", keys.into_iter()), None);
        assert_eq!(nearest(&"s".repeat(1000), keys.into_iter()), None);
    }
}
