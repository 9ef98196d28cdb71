//! Replays the recorded HTTP exchanges, in their order, against a server that has just run the
//! scenarios: recorded ids and file names become those of the run, uploads get names of their own.
//!
//! What it leaves behind on the server: three small uploads and one user data file with the run's
//! token in their names (the latter is deleted again), and the images of the scenarios.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HOST, HeaderMap};
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::recording::{Exchange, Request, Response, Scenario, Transcript};
use super::target::{Answer, Target};

/// Bytes kept of a body that is neither text nor JSON.
const HEAD: usize = 64;
const PICTURE: &str = "pic.png";

/// The scenarios whose prompts and files an exchange speaks of.
pub(super) fn needs(name: &str) -> &'static [&'static str] {
    match name {
        "history_item" | "jobs_item" | "view" | "history_delete" => &["run_ok"],
        "history_max1" => &["reconnect_while_running"],
        "jobs" => &["front_and_number", "reconnect_while_running"],
        _ => &[],
    }
}

/// Whether an exchange cannot be had without the node `PacedImage`.
pub(super) fn needs_node(exchange: &Exchange) -> bool {
    let mentions = |value: &Value| value.to_string().contains("PacedImage");
    !needs(&exchange.name).is_empty()
        || exchange.request.path.contains("PacedImage")
        || exchange.request.json.as_ref().is_some_and(mentions)
}

/// The recording's ids and file names, with those of the run.
#[derive(Debug, Default)]
pub(super) struct Places {
    ids: Vec<(String, String)>,
    files: Vec<(String, Output)>,
}

/// A file as a server names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Output {
    name: String,
    subfolder: String,
}

impl Places {
    /// Pairs the prompts and outputs of recorded scenarios with those of their runs.
    pub(super) fn of<'a>(runs: impl IntoIterator<Item = (&'a Scenario, &'a Transcript)>) -> Self {
        let mut places = Self::default();
        for (recorded, observed) in runs {
            for (want, got) in recorded.posts.iter().zip(&observed.posts) {
                let ids = (want.body["prompt_id"].as_str(), got.body["prompt_id"].as_str());
                let (Some(want_id), Some(got_id)) = ids else { continue };
                places.ids.push((want_id.to_owned(), got_id.to_owned()));
                let file = |of: &Scenario, id: &str| Output::of(of.history.get(id)?, id);
                if let (Some(want), Some(got)) = (file(recorded, want_id), file(observed, got_id)) {
                    places.files.push((want.name, got));
                }
            }
        }
        places
    }

    /// A text with the run's ids.
    fn apply(&self, text: &str) -> String {
        let replace = |text: String, (old, new): &(String, String)| text.replace(old, new);
        self.ids.iter().fold(text.to_owned(), replace)
    }

    /// A path with the run's ids, asking for each file as the server named it.
    fn path(&self, path: &str) -> String {
        let path = self.apply(path);
        let asked = |(old, new): &(String, Output)| (format!("filename={old}"), new.query());
        // One replacement: a name of the run may be another file's in the recording.
        match self.files.iter().map(asked).find(|(old, _)| path.contains(old)) {
            Some((old, new)) => path.replace(&old, &new),
            None => path,
        }
    }
}

impl Output {
    /// The first output of a prompt.
    fn of(history: &Value, id: &str) -> Option<Self> {
        let outputs = history.get(id)?.get("outputs")?.as_object()?;
        let image = outputs.values().next()?.pointer("/images/0")?;
        let text = |key: &str| Some(image.get(key)?.as_str()?.to_owned());
        Some(Self { name: text("filename")?, subfolder: text("subfolder")? })
    }

    fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("filename", &self.name);
        if !self.subfolder.is_empty() {
            query.append_pair("subfolder", &self.subfolder);
        }
        query.finish()
    }
}

/// Sends an exchange's request and returns the response in the recording's form.
pub(super) async fn replay(
    target: &Target,
    exchange: &Exchange,
    places: &Places,
) -> anyhow::Result<Response> {
    // An interrupt or a clear must not hit work of anybody; a listing must find none.
    if exchange.request.method == "POST" || exchange.name.starts_with("queue") {
        target.wait_idle().await?;
    }
    let request = build(target, exchange, places)?;
    let answer = target.send(request).await?;
    if exchange.name == "userdata_get" {
        let path = own_path(target, &exchange.request.path, places);
        // Tidying up; the next run does not need it.
        let _ = target.send(target.request(Method::DELETE, &path)).await;
    }
    Ok(response(target, &answer))
}

fn build(target: &Target, exchange: &Exchange, places: &Places) -> anyhow::Result<RequestBuilder> {
    let recorded = &exchange.request;
    let method = Method::from_bytes(recorded.method.as_bytes())?;
    let mut request = target.request(method, &own_path(target, &recorded.path, places));
    for (name, value) in recorded.headers.iter().flatten() {
        request = match name.to_lowercase().as_str() {
            "host" => request.header(HOST, value),
            _ => request.header(name, value),
        };
    }
    body(target, exchange, places, request)
}

fn body(
    target: &Target,
    exchange: &Exchange,
    places: &Places,
    request: RequestBuilder,
) -> anyhow::Result<RequestBuilder> {
    let Request { json, data, .. } = &exchange.request;
    if let Some(json) = json {
        let json = serde_json::from_str(&places.apply(&json.to_string()))?;
        return Ok(request.json(&target.own_prompt(&json, 0)));
    }
    if let Some(fields) = data {
        let mut form = Form::new();
        for (name, value) in fields {
            form = form.text(name.clone(), value.as_str().unwrap_or_default().to_owned());
        }
        if exchange.name != "upload_no_file" {
            let file = Part::bytes(picture(&exchange.name)?).file_name(target.own(PICTURE));
            form = form.part("image", file.mime_str("image/png")?);
        }
        return Ok(request.multipart(form));
    }
    Ok(match exchange.name.as_str() {
        // Not recorded: any text that is no JSON.
        "prompt_bad_json" => request.body("{not json"),
        "userdata_put" => request.body("{}"),
        _ => request,
    })
}

/// Two different pictures: the one for the names that collide with other content.
fn picture(name: &str) -> anyhow::Result<Vec<u8>> {
    let shade = u8::from(matches!(name, "upload_other" | "upload_overwrite"));
    let mut out = std::io::Cursor::new(Vec::new());
    let pixels = image::RgbImage::from_pixel(4, 4, image::Rgb([shade * 200, 90, 30]));
    pixels.write_to(&mut out, image::ImageFormat::Png).context("making a PNG")?;
    Ok(out.into_inner())
}

fn own_path(target: &Target, path: &str, places: &Places) -> String {
    places
        .path(path)
        .replace("%2Fa.json", &format!("%2F{}", target.own("a.json")))
        .replace("dir=workflows", &format!("dir={}", target.own("workflows")))
}

/// An answer in the recording's form.
pub(super) fn response(target: &Target, answer: &Answer) -> Response {
    let headers = headers(target, &answer.headers);
    let kind = headers.get("content-type").map_or("", String::as_str);
    let text = || target.clean(&String::from_utf8_lossy(&answer.body));
    let body = if kind.starts_with("application/json") {
        target.json(answer).unwrap_or_else(|_| text().into())
    } else if kind.starts_with("text/") {
        text().into()
    } else {
        let head = STANDARD.encode(&answer.body[..answer.body.len().min(HEAD)]);
        let image = kind.starts_with("image/");
        let flaw = image.then(|| super::binary::picture(kind, &answer.body).err()).flatten();
        json!({"base64_head": head, "length": answer.body.len(), "flaw": flaw})
    };
    Response { status: answer.status, headers, body }
}

fn headers(target: &Target, headers: &HeaderMap) -> BTreeMap<String, String> {
    let text = |value: &reqwest::header::HeaderValue| {
        String::from_utf8_lossy(value.as_bytes()).into_owned()
    };
    headers.iter().map(|(name, value)| (name.to_string(), target.clean(&text(value)))).collect()
}

/// The scenarios named must have run; says which one has not.
pub(super) fn check_needs(name: &str, runs: &BTreeMap<String, Transcript>) -> anyhow::Result<()> {
    for need in needs(name) {
        let accepted = |run: &Transcript| run.posts.iter().all(|post| post.status == 200);
        if !runs.get(*need).is_some_and(accepted) {
            bail!("the prompts of scenario {need}, which did not run");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::recording::scenarios;

    #[test]
    fn a_file_is_asked_for_as_the_server_named_it() {
        let recorded = &scenarios().unwrap()[0];
        let mut observed = recorded.clone();
        let id = recorded.posts[0].body["prompt_id"].as_str().unwrap();
        let place = format!("/{id}/outputs/2/images/0");
        let image = observed.history.get_mut(id).unwrap().pointer_mut(&place).unwrap();
        *image = json!({"filename": "rec_00008_.png", "subfolder": "@comfy 1", "type": "output"});
        let places = Places::of([(recorded, &observed)]);
        assert_eq!(
            places.path("/view?filename=rec_00001_.png&type=output"),
            "/view?filename=rec_00008_.png&subfolder=%40comfy+1&type=output"
        );
        assert_eq!(places.path("/view?filename=no.png"), "/view?filename=no.png");
    }
}
