//! What a service says of itself when it registers: the words as sent ([`Wanted`]) and what they
//! amount to ([`Registration`]), with every bound checked on the way.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use crate::config::Endpoint;
use crate::rejection::{Kind, Rejection};

/// Characters of a name, a version or a task type at most.
pub const MAX_NAME: usize = 128;
/// Task types of one instance at most.
pub const MAX_TASK_TYPES: usize = 64;
/// Bytes of an endpoint's URL at most.
const MAX_ENDPOINT: usize = 2048;
/// Seconds between two heartbeats.
const HEARTBEAT: std::ops::RangeInclusive<f64> = 1.0..=86_400.0;

/// The body of `POST …/register`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// What the service is, the same for all its instances.
    pub service_id: String,
    /// Its name for people; by default the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does.
    pub task_types: Vec<String>,
    /// Where requests are to be posted.
    pub endpoint: String,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// It is forgotten when nothing is heard of it for so long; by default never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_seconds: Option<f64>,
}

/// An instance of a service, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// What the service is.
    pub service_id: String,
    /// Its name for people.
    pub name: String,
    /// What it does, each once.
    pub task_types: Vec<String>,
    /// What tells instances apart: scheme, host, port and path, normalised.
    pub endpoint: Endpoint,
    /// The path to post to. Unlike the endpoint's it keeps a slash at its end, which many servers
    /// insist on.
    pub path: String,
    /// Its version, possibly empty.
    pub version: String,
    /// It is forgotten when nothing is heard of it for so long.
    pub heartbeat: Option<Duration>,
}

impl Registration {
    /// The endpoint as a URL.
    pub fn url(&self) -> String {
        let scheme = if self.endpoint.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.endpoint.authority(), self.path)
    }

    /// The same as sent, for the store.
    pub fn to_wanted(&self) -> Wanted {
        Wanted {
            service_id: self.service_id.clone(),
            name: Some(self.name.clone()),
            task_types: self.task_types.clone(),
            endpoint: self.url(),
            version: (!self.version.is_empty()).then(|| self.version.clone()),
            heartbeat_seconds: self.heartbeat.map(|heartbeat| heartbeat.as_secs_f64()),
        }
    }
}

impl TryFrom<Wanted> for Registration {
    type Error = Rejection;

    fn try_from(wanted: Wanted) -> Result<Self, Rejection> {
        let (endpoint, path) = endpoint(&wanted.endpoint)?;
        let service_id = name("service_id", &wanted.service_id)?;
        let version = wanted.version.filter(|version| !version.is_empty());
        Ok(Self {
            name: wanted.name.map_or_else(|| Ok(service_id.clone()), |text| name("name", &text))?,
            service_id,
            task_types: task_types(wanted.task_types)?,
            endpoint,
            path,
            version: version.map_or_else(|| Ok(String::new()), |text| name("version", &text))?,
            heartbeat: wanted.heartbeat_seconds.map(heartbeat).transpose()?,
        })
    }
}

/// Reads an endpoint as `POST …/register` takes it: what tells it apart, and its path as given.
pub fn endpoint(text: &str) -> Result<(Endpoint, String), Rejection> {
    let refuse = || {
        invalid("endpoint is no URL of a service")
            .cure("use http://HOST:PORT/PATH or https://HOST:PORT/PATH, without user, query or #")
    };
    let url = Url::parse(text.trim()).map_err(|_| refuse())?;
    // As it is stored and read again: escapes make it longer.
    if text.len().max(url.as_str().len()) > MAX_ENDPOINT {
        return Err(invalid(format!("endpoint is longer than {MAX_ENDPOINT} bytes")));
    }
    let bare = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    let endpoint = Endpoint::from_url(&url).filter(|endpoint| bare && endpoint.port > 0);
    Ok((endpoint.ok_or_else(refuse)?, url.path().to_owned()))
}

fn task_types(wanted: Vec<String>) -> Result<Vec<String>, Rejection> {
    if wanted.is_empty() || wanted.len() > MAX_TASK_TYPES {
        return Err(invalid(format!("task_types must name 1 to {MAX_TASK_TYPES} types")));
    }
    let mut types = Vec::with_capacity(wanted.len());
    for text in wanted {
        let text = name("task_types", &text)?;
        if !types.contains(&text) {
            types.push(text);
        }
    }
    Ok(types)
}

fn heartbeat(seconds: f64) -> Result<Duration, Rejection> {
    if HEARTBEAT.contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(invalid("heartbeat_seconds must be 1 to 86400"))
}

/// Any text that fits on a line.
fn name(field: &str, text: &str) -> Result<String, Rejection> {
    let fits = !text.trim().is_empty() && text.chars().take(MAX_NAME + 1).count() <= MAX_NAME;
    if fits && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    let message =
        format!("{field} must have 1 to {MAX_NAME} characters, none of them control ones");
    Err(invalid(message))
}

fn invalid(message: impl Into<String>) -> Rejection {
    Rejection::new(Kind::InvalidValue, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(change: &serde_json::Value) -> Result<Registration, Rejection> {
        let mut wanted = json!({"service_id": "yolo11x", "name": "YOLOv11x人头检测",
            "task_types": ["人数统计"], "endpoint": "http://172.17.0.2:7901/infer",
            "version": "1.0.0"});
        for (key, value) in change.as_object().unwrap() {
            wanted[key] = value.clone();
        }
        serde_json::from_value::<Wanted>(wanted).unwrap().try_into()
    }

    #[test]
    fn the_seeds_registration_is_read() {
        let found = read(&json!({})).unwrap();
        assert_eq!(found.url(), "http://172.17.0.2:7901/infer");
        assert_eq!(found.path, "/infer");
        assert_eq!(found.task_types, ["人数统计"]);
        assert_eq!(found.heartbeat, None);
    }

    #[test]
    fn one_endpoint_has_many_spellings() {
        let (first, _) = endpoint("http://GPU.example:80/infer").unwrap();
        for other in [
            "http://gpu.example/infer",
            "HTTP://gpu.example:80/infer/",
            " http://gpu.EXAMPLE/x/../infer",
        ] {
            assert_eq!(endpoint(other).unwrap().0, first, "{other}");
        }
        for other in [
            "https://gpu.example:80/infer",
            "http://gpu.example:81/infer",
            "http://gpu.example/Infer",
        ] {
            assert_ne!(endpoint(other).unwrap().0, first, "{other}");
        }
        assert_eq!(endpoint("http://a/infer/").unwrap().1, "/infer/");
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let cases = [
            (json!({"service_id": ""}), "service_id"),
            (json!({"name": "n".repeat(300)}), "name"),
            (json!({"name": "a\nb"}), "name"),
            (json!({"version": "v".repeat(129)}), "version"),
            (json!({"task_types": []}), "task_types"),
            (json!({"task_types": vec!["t"; 65]}), "task_types"),
            (json!({"task_types": ["ok", " "]}), "task_types"),
            (json!({"heartbeat_seconds": 0}), "heartbeat_seconds"),
            (json!({"heartbeat_seconds": 1e9}), "heartbeat_seconds"),
            (json!({"endpoint": "172.17.0.2:7901"}), "endpoint"),
            (json!({"endpoint": "ftp://a/x"}), "endpoint"),
            (json!({"endpoint": "http://a:70000/"}), "endpoint"),
            (json!({"endpoint": "http://a:0/"}), "endpoint"),
            (json!({"endpoint": "http://u:p@a/"}), "endpoint"),
            (json!({"endpoint": "http://a/?q=1"}), "endpoint"),
            (json!({"endpoint": format!("http://a/{}", "x".repeat(3000))}), "endpoint"),
            // Escaped it would be too long to be read again from the store.
            (json!({"endpoint": format!("http://a/{}", "é".repeat(500))}), "endpoint"),
        ];
        for (change, field) in cases {
            let error = read(&change).expect_err(&change.to_string());
            assert_eq!(error.kind, Kind::InvalidValue);
            assert!(error.message.contains(field), "{change}: {}", error.message);
        }
        assert!(read(&json!({"name": "<b>a/b \u{1F600}</b>"})).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_stored_reads_as_itself(
            id in "[a-z]{1,9}", types in prop::collection::vec("[a-c]{1,2}", 1..9),
            path in "/[a-z/ %é]{0,9}", beat in prop::option::of(1u32..86_400),
        ) {
            let wanted = json!({"service_id": id, "task_types": types,
                "endpoint": format!("http://h:1{path}"), "heartbeat_seconds": beat});
            if let Ok(found) = read(&wanted) {
                prop_assert_eq!(Registration::try_from(found.to_wanted()), Ok(found));
            }
        }

        #[test]
        fn no_text_is_a_panic(text: String) {
            let _ = endpoint(&text);
        }
    }
}
