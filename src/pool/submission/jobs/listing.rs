//! `GET /api/jobs` and `GET /api/jobs/{id}`.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::json;

use super::super::number::python_float;
use super::super::scan::Json;
use super::super::splice::quoted;
use super::{Summary, Values};

/// Where a job is, as ComfyUI names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It waits.
    Pending,
    /// It runs.
    InProgress,
    /// It succeeded.
    Completed,
    /// It failed or was interrupted.
    Failed,
}

impl Status {
    const ALL: [Self; 4] = [Self::Pending, Self::InProgress, Self::Completed, Self::Failed];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// A job in the list.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The job.
    pub summary: &'a Summary,
    /// Whether it runs, as long as it has not ended.
    pub running: bool,
}

impl Row<'_> {
    /// Where it is.
    pub fn status(&self) -> Status {
        match &self.summary.ended {
            Some(ended) if ended.failed => Status::Failed,
            Some(_) => Status::Completed,
            None if self.running => Status::InProgress,
            None => Status::Pending,
        }
    }

    fn duration(&self) -> f64 {
        let ended = self.summary.ended.as_deref();
        let time = |time: Option<f64>| time.filter(|time| *time != 0.0);
        let times = ended.and_then(|ended| time(ended.start).zip(time(ended.end)));
        times.map_or(0.0, |(start, end)| end - start)
    }

    fn write(&self, out: &mut String) {
        let summary = self.summary;
        let mut field = |name: &str, value: &str| {
            out.push_str(if out.ends_with('{') { "" } else { ", " });
            // Writing to a string cannot fail.
            let _ = write!(out, "\"{name}\": {value}");
        };
        field("id", &quoted(&summary.prompt_id));
        field("status", &quoted(self.status().name()));
        field("priority", &summary.priority);
        field("create_time", &summary.create_time.to_string());
        let ended = summary.ended.as_deref();
        if let Some(start) = ended.and_then(|ended| ended.start) {
            field("execution_start_time", &time(start));
        }
        if let Some(end) = ended.and_then(|ended| ended.end) {
            field("execution_end_time", &time(end));
        }
        if let Some(error) = ended.and_then(|ended| ended.error.as_deref()) {
            field("execution_error", error);
        }
        field("outputs_count", &ended.map_or(0, |ended| ended.outputs).to_string());
        if let Some(preview) = ended.and_then(|ended| ended.preview.as_deref()) {
            field("preview_output", preview);
        }
        if let Some(workflow) = &summary.workflow_id {
            field("workflow_id", workflow);
        }
    }
}

/// Milliseconds as they were given: whole, unless they were not.
fn time(ms: f64) -> String {
    if ms.fract() == 0.0 && ms.abs() < 1e15 { format!("{ms:.0}") } else { python_float(ms) }
}

/// What a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    statuses: Vec<Status>,
    workflow_id: Option<String>,
    by_duration: bool,
    ascending: bool,
    limit: Option<i64>,
    offset: i64,
}

impl Query {
    /// Reads a query; else ComfyUI's words for the 400, see [`error_body`].
    pub fn read(query: &str) -> Result<Self, String> {
        let values = Values::of(query);
        let limit = match values.whole("limit") {
            Some(Err(())) => return Err("limit must be an integer".to_owned()),
            Some(Ok(..=0)) => return Err("limit must be a positive integer".to_owned()),
            limit => limit.and_then(Result::ok),
        };
        let offset = values.whole("offset").unwrap_or(Ok(0));
        // In ComfyUI's order, which shows when several are wrong.
        Ok(Self {
            statuses: statuses(values.get("status").unwrap_or_default())?,
            by_duration: choice(&values, "sort_by", ["created_at", "execution_duration"])?,
            ascending: choice(&values, "sort_order", ["desc", "asc"])?,
            limit,
            offset: offset.map_err(|()| "offset must be an integer".to_owned())?.max(0),
            workflow_id: values.get("workflow_id").filter(|id| !id.is_empty()).map(str::to_owned),
        })
    }

    fn wants(&self, row: &Row<'_>) -> bool {
        let id = || row.summary.workflow_id.as_deref().and_then(|id| Json(id.as_bytes()).text());
        self.statuses.contains(&row.status())
            && self.workflow_id.as_ref().is_none_or(|wanted| id().as_deref() == Some(wanted))
    }

    fn sort(&self, rows: &mut [Row<'_>]) {
        let key = |row: &Row<'_>| {
            if self.by_duration { row.duration() } else { row.summary.create_time as f64 }
        };
        rows.sort_by(|a, b| {
            let order = key(a).total_cmp(&key(b));
            if self.ascending { order } else { order.reverse() }
        });
    }
}

fn statuses(given: &str) -> Result<Vec<Status>, String> {
    if given.is_empty() {
        return Ok(Status::ALL.to_vec());
    }
    let (mut wanted, mut unknown) = (Vec::new(), Vec::new());
    for name in given.split(',').map(|name| name.trim().to_lowercase()) {
        match Status::ALL.into_iter().find(|status| status.name() == name) {
            Some(status) if !wanted.contains(&status) => wanted.push(status),
            Some(_) => {}
            None if name.is_empty() => {}
            None => unknown.push(name),
        }
    }
    if unknown.is_empty() {
        return Ok(wanted);
    }
    let valid = Status::ALL.map(Status::name).join(", ");
    Err(format!("Invalid status value(s): {}. Valid values: {valid}", unknown.join(", ")))
}

/// Whether the second of two words is given, the first being the default.
fn choice(values: &Values, name: &str, words: [&str; 2]) -> Result<bool, String> {
    let given = values.get(name).unwrap_or(words[0]).to_lowercase();
    let mut sorted = words;
    sorted.sort_unstable();
    let found = words.iter().position(|word| *word == given);
    let message = || format!("{name} must be '{}' or '{}'", sorted[0], sorted[1]);
    found.map(|place| place == 1).ok_or_else(message)
}

/// The body of a 400: `{"error": …}`.
pub fn error_body(message: &str) -> Bytes {
    json!({ "error": message }).to_string().into()
}

/// The body of the 404 for a job that is not known.
pub fn not_found() -> Bytes {
    error_body("Job not found")
}

/// The reply to `GET /api/jobs`. The rows come as ComfyUI goes through them: the running ones, the
/// waiting ones in their order, history from the oldest on.
pub fn list<'a>(query: &Query, rows: impl IntoIterator<Item = Row<'a>>) -> Bytes {
    let mut rows: Vec<Row<'_>> = rows.into_iter().filter(|row| query.wants(row)).collect();
    query.sort(&mut rows);
    let total = rows.len();
    let skip = usize::try_from(query.offset).unwrap_or(usize::MAX).min(total);
    let take = query.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let end = skip.saturating_add(take).min(total);
    let mut out = String::from("{\"jobs\": [");
    for (place, row) in rows[skip..end].iter().enumerate() {
        out.push_str(if place == 0 { "{" } else { ", {" });
        row.write(&mut out);
        out.push('}');
    }
    let limit = query.limit.map_or_else(|| "null".to_owned(), |limit| limit.to_string());
    let (offset, more) = (query.offset, end < total);
    let _ = write!(
        out,
        "], \"pagination\": {{\"offset\": {offset}, \"limit\": {limit}, \"total\": {total}, \
         \"has_more\": {more}}}}}",
    );
    out.into()
}

/// The reply to `GET /api/jobs/{id}`; a job that has ended comes with its history entry.
pub fn one(row: &Row<'_>, entry: Option<&[u8]>) -> Bytes {
    let mut out = String::from("{");
    row.write(&mut out);
    let mut out = out.into_bytes();
    if let Some(entry) = entry.map(Json) {
        let item = entry.get("prompt");
        let part = |json: Option<Json<'_>>| json.map_or(b"{}".to_vec(), |json| json.0.to_vec());
        let at = |place| part(item.and_then(|item| item.item(place)));
        let status = entry.get("status").map_or(b"null".to_vec(), |status| status.0.to_vec());
        for piece in [
            b", \"outputs\": ".to_vec(),
            part(entry.get("outputs")),
            b", \"execution_status\": ".to_vec(),
            status,
            b", \"workflow\": {\"prompt\": ".to_vec(),
            at(2),
            b", \"extra_data\": ".to_vec(),
            at(3),
            b"}".to_vec(),
        ] {
            out.extend_from_slice(&piece);
        }
    }
    out.push(b'}');
    out.into()
}
