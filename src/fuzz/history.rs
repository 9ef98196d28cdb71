//! A backend's history entry on its way to the client, to lists and to events; and the queries.

use bytes::Bytes;

use super::bytes::{Input, is_json, strict};
use super::prompt::{ID, job_of};
use crate::comfy::history::{Entry, MAX_ERROR, read};
use crate::comfy::lenient;
use crate::pool::core::Outcome;
use crate::pool::files::prefix;
use crate::pool::job::Job;
use crate::pool::retell::{self, Subject};
use crate::pool::submission::jobs::{Page, Query, Row, Summary, list, one};
use crate::pool::submission::scan::Json;
use crate::pool::submission::{Adoption, Ending, Parsed, adopt, parse};

/// What a backend calls the prompt.
const THEIRS: &str = "8ece8653-7f59-41ff-8b24-7342db00141f";
const BODY: &[u8] = br#"{"prompt": {"1": {"class_type": "SaveImage", "inputs": {"x": 1}}},
    "client_id": "A", "extra_data": {"api_key_comfy_org": "hidden"}}"#;

fn our_job() -> Option<Job> {
    let Parsed::Job(submission) = parse(BODY) else { return None };
    Some(job_of(Bytes::from_static(BODY), &submission))
}

/// The first line is a query of `/history` and `/api/jobs`, the rest an entry.
pub fn history(data: &[u8]) {
    let mut input = Input(data);
    let query = String::from_utf8_lossy(input.line());
    if let Ok(page) = Page::read(&query) {
        for entries in [0, 1, 10, usize::MAX / 2] {
            let shown = page.of(entries);
            assert!(shown.start <= shown.end && shown.end <= entries, "{shown:?} of {entries}");
        }
    }
    let entry = input.0;
    status(entry);
    let Some(job) = our_job() else { return };
    let rewritten = query.len().is_multiple_of(2);
    let with = Adoption {
        job: &job,
        reply: b"{}",
        remote_id: THEIRS,
        is_output: &|class| class == "SaveImage",
        rewritten,
        mark: &|value| prefix::mark(value, "gpu-1"),
    };
    let Some(ours) = adopt(entry, &with) else {
        assert!(Json::of(entry).is_none_or(|json| !json.is_object()), "an object is an entry");
        return;
    };
    if std::str::from_utf8(entry).is_ok() {
        assert!(is_json(&ours), "a client gets JSON");
    }
    let item = Json(&ours).get("prompt").expect("its prompt");
    assert_eq!(item.item(1).and_then(Json::text).as_deref(), Some(ID));
    let extra_data = item.item(3).expect("its extra data");
    assert!(extra_data.get("api_key_comfy_org").is_none(), "secrets are not shown");
    assert_eq!(Ending::of(&ours).outcome, Ending::of(entry).outcome, "it ended alike");
    listed(&job, &ours, &query);
    told(&job, &ours);
}

/// What the two readers of an end say of it.
fn status(entry: &[u8]) {
    let ending = Ending::of(entry);
    assert!(ending.run_seconds().is_none_or(|run| run.is_finite() && run >= 0.0));
    let reply = [b"{\"x\": ", entry, b"}"].concat();
    let (seen, outcome) = (read("x", &reply), ending.outcome);
    match &seen {
        Some(Entry::Failed { error }) => assert!(error.chars().count() <= MAX_ERROR),
        Some(Entry::Completed { run_seconds }) => {
            assert!(run_seconds.is_none_or(|run| run.is_finite() && run >= 0.0));
        }
        _ => {}
    }
    if let Outcome::Failed { error } = outcome {
        assert!(error.chars().count() <= MAX_ERROR);
    }
    if let Some(document) = strict(entry) {
        assert_eq!(lenient::from_slice::<serde_json::Value>(entry).ok(), Some(document));
    }
}

/// The job in lists.
fn listed(job: &Job, entry: &[u8], query: &str) {
    let summary = Summary::of(job).ended(entry);
    let row = Row { summary: &summary, running: false };
    assert!(is_json(&one(&row, None)));
    if std::str::from_utf8(entry).is_ok() {
        assert!(is_json(&one(&row, Some(entry))));
    }
    match Query::read(query) {
        Ok(query) => assert!(is_json(&list(&query, [row, row]))),
        Err(message) => assert!(!message.is_empty()),
    }
    let stored = serde_json::to_vec(&summary).expect("it can be stored");
    let again: Summary = serde_json::from_slice(&stored).expect("what was stored is read");
    assert_eq!(again.prompt_id, summary.prompt_id);
}

/// The events that tell of its end.
fn told(job: &Job, entry: &[u8]) {
    let deliveries = retell::whole(&Subject::from(job), entry);
    assert!(!deliveries.is_empty(), "its end is told");
    for delivery in deliveries {
        assert!(!delivery.frame.binary && is_json(&delivery.frame.bytes));
    }
}
