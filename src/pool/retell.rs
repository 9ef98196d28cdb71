//! What the owner of a job has been told of its end, and the rest of it in ComfyUI's own words.
//!
//! When an event socket was lost and history shows that a job ended meanwhile, nobody told its
//! owner. So it is noted which outputs and which last words have passed, and what is missing when
//! the job ends is made of its history entry: `executed` for each node with outputs, the
//! `execution_…` message that history keeps, and `executing` with a null node. After a restart of
//! the gateway nothing is known to have passed: all of it is told, again perhaps, and identically.
//!
//! Pure. Bounds: one entry for each job that is open, with `MAX_NODES` nodes at most; the texts
//! are made only when they are missing. What comes of a job that has ended is not passed on any
//! more, since it has been retold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{Delivery, Frame, Meaning};
use super::job::{Job, JobId, Owner};
use super::journal::Finished;
use super::submission::scan::Json;

/// Nodes whose outputs are noted; those beyond are told twice when a socket is lost.
const MAX_NODES: usize = 10_000;

/// Which job it is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its number.
    pub job: JobId,
    /// The id that its client knows.
    pub prompt_id: &'a Arc<str>,
    /// Whose it is.
    pub owner: &'a Owner,
}

impl<'a> From<&'a Job> for Subject<'a> {
    fn from(job: &'a Job) -> Self {
        Self { job: job.id, prompt_id: &job.prompt_id, owner: &job.owner }
    }
}

impl<'a> From<&'a Finished> for Subject<'a> {
    fn from(job: &'a Finished) -> Self {
        Self { job: job.id, prompt_id: &job.prompt_id, owner: &job.owner }
    }
}

/// What has passed of one job.
#[derive(Debug, Default)]
struct Told {
    /// Nodes whose `executed` has passed.
    nodes: HashSet<Box<str>>,
    terminal: bool,
    end: bool,
    /// A socket was lost, and nothing has been heard since: its end may never be.
    gap: bool,
}

/// What has passed of all open jobs.
#[derive(Debug, Default)]
pub struct Retell {
    jobs: HashMap<JobId, Told>,
}

impl Retell {
    /// A job is new, or of an earlier process.
    pub fn open(&mut self, job: JobId) {
        self.jobs.insert(job, Told::default());
    }

    /// A message is about to pass; false when it must not, its job having ended.
    pub fn passes(&mut self, delivery: &Delivery) -> bool {
        let Some(told) = self.jobs.get_mut(&delivery.job) else { return false };
        told.gap = false;
        match delivery.meaning {
            Meaning::Output if told.nodes.len() < MAX_NODES => {
                told.nodes.extend(node_of(&delivery.frame));
            }
            Meaning::Terminal => told.terminal = true,
            Meaning::End => told.end = true,
            _ => {}
        }
        true
    }

    /// The sockets of the backend where these jobs are have opened anew.
    pub fn reopened(&mut self, jobs: impl Iterator<Item = JobId>) {
        for job in jobs {
            if let Some(told) = self.jobs.get_mut(&job) {
                told.gap = true;
            }
        }
    }

    /// Whether nothing was heard of a job since its sockets were lost.
    pub fn has_gap(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|told| told.gap)
    }

    /// A job runs anew: what its first attempt told counts no more.
    pub fn again(&mut self, job: JobId) {
        if let Some(told) = self.jobs.get_mut(&job) {
            *told = Told::default();
        }
    }

    /// A job is over: what its owner still has to hear, by its history entry, the files in which
    /// are marked. Empty for a job whose owner has no socket to hear it on.
    pub fn close(&mut self, subject: &Subject<'_>, entry: &[u8]) -> Vec<Delivery> {
        let told = self.jobs.remove(&subject.job).unwrap_or_default();
        missing(subject, &told, entry)
    }

    /// Nothing is to be told of a job any more.
    pub fn forget(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }
}

/// Everything that is said of the end of a job.
pub fn whole(subject: &Subject<'_>, entry: &[u8]) -> Vec<Delivery> {
    missing(subject, &Told::default(), entry)
}

/// What was held of a job's last words with what nobody told, each at its place: outputs before the
/// word on how it ended, that before the last one.
pub fn in_order(held: Vec<Delivery>, untold: Vec<Delivery>) -> Vec<Delivery> {
    let (outputs, closing): (Vec<_>, Vec<_>) =
        untold.into_iter().partition(|one| one.meaning == Meaning::Output);
    let is_end = |one: &Delivery| one.meaning == Meaning::End;
    let last = held.iter().position(is_end).unwrap_or(held.len());
    let mut held = held.into_iter();
    let before: Vec<_> = held.by_ref().take(last).collect();
    outputs.into_iter().chain(before).chain(closing).chain(held).collect()
}

fn missing(job: &Subject<'_>, told: &Told, entry: &[u8]) -> Vec<Delivery> {
    let mut all = Vec::new();
    if job.owner.client_id.is_none() || entry.is_empty() {
        return all;
    }
    let entry = Json(entry);
    if let Some(outputs) = entry.get("outputs") {
        let mut shown: HashMap<String, Json<'_>> = HashMap::new();
        if let Some(meta) = entry.get("meta") {
            meta.each_member(|key, of| {
                shown.extend(of.get("display_node").map(|node| (key.text().into_owned(), node)));
            });
        }
        outputs.each_member(|key, output| {
            let node = key.text();
            if !told.nodes.contains(&*node) {
                all.push(executed(job, &node, shown.get(&*node).copied(), output));
            }
        });
    }
    if let Some((name, data)) = terminal(entry).filter(|_| !told.terminal) {
        all.push(delivery(job, Meaning::Terminal, &name, data.0));
    }
    if !told.end {
        let data = format!("{{\"node\": null, \"prompt_id\": {}}}", quoted(job.prompt_id));
        all.push(delivery(job, Meaning::End, "executing", data.as_bytes()));
    }
    all
}

fn executed(job: &Subject<'_>, node: &str, shown: Option<Json<'_>>, output: Json<'_>) -> Delivery {
    let node = quoted(node);
    let shown = shown.map_or(node.as_bytes(), |shown| shown.0);
    let head = format!("{{\"node\": {node}, \"display_node\": ");
    let tail = format!(", \"prompt_id\": {}}}", quoted(job.prompt_id));
    let data = [head.as_bytes(), shown, b", \"output\": ", output.0, tail.as_bytes()];
    delivery(job, Meaning::Output, "executed", &data.concat())
}

/// The last message of an entry that says how it ended, as its event was sent.
fn terminal(entry: Json<'_>) -> Option<(String, Json<'_>)> {
    let mut last = None;
    entry.get("status")?.get("messages")?.each_item(|message| {
        let name = message.item(0).and_then(Json::text).unwrap_or_default();
        let is_last =
            matches!(&*name, "execution_success" | "execution_error" | "execution_interrupted");
        if let Some(data) = message.item(1).filter(|data| is_last && data.is_object()) {
            last = Some((name.into_owned(), data));
        }
    });
    last
}

fn delivery(job: &Subject<'_>, meaning: Meaning, name: &str, data: &[u8]) -> Delivery {
    let text = [format!("{{\"type\": \"{name}\", \"data\": ").as_bytes(), data, b"}"].concat();
    // An entry that is no UTF-8 would end the owner's socket.
    let text = match String::from_utf8(text) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    };
    Delivery {
        owner: job.owner.clone(),
        job: job.job,
        prompt_id: Arc::clone(job.prompt_id),
        meaning,
        frame: Frame { binary: false, bytes: Bytes::from(text) },
    }
}

/// The node that an `executed` is about.
fn node_of(frame: &Frame) -> Option<Box<str>> {
    let text = Json::of(&frame.bytes)?;
    Some(text.get("data")?.get("node")?.text()?.into())
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ClientKey;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn owner(client_id: Option<&str>) -> Owner {
        let key = ClientKey::from_bytes([1; 16]);
        Owner { key, caller: "me".into(), client_id: client_id.map(Into::into) }
    }

    fn entry() -> Vec<u8> {
        let success = json!({"prompt_id": "p", "timestamp": 7});
        json!({
            "prompt": [0, "p", {}, {}, []],
            "outputs": {"9": {"images": [{"filename": "a.png"}]}, "x:4": {"text": ["hi"]}},
            "status": {"status_str": "success", "messages": [
                ["execution_start", {"prompt_id": "p", "timestamp": 1}],
                ["execution_success", success]]},
            "meta": {"x:4": {"node_id": "x:4", "display_node": "x"}},
        })
        .to_string()
        .into_bytes()
    }

    fn shown(all: &[Delivery]) -> Vec<(Meaning, Value)> {
        let read = |one: &Delivery| serde_json::from_slice(&one.frame.bytes).unwrap();
        all.iter().map(|one| (one.meaning, read(one))).collect()
    }

    fn message(meaning: Meaning, value: &Value) -> Delivery {
        Delivery {
            owner: owner(Some("c")),
            job: JobId(1),
            prompt_id: "p".into(),
            meaning,
            frame: Frame { binary: false, bytes: value.to_string().into() },
        }
    }

    #[test]
    fn what_nobody_told_comes_at_its_place_among_what_was_held() {
        use Meaning::{End, Other, Output, Terminal};
        let all = |meanings: &[Meaning]| {
            meanings.iter().map(|meaning| message(*meaning, &json!({}))).collect::<Vec<_>>()
        };
        let order = |held: &[Meaning], untold: &[Meaning]| {
            let told = in_order(all(held), all(untold));
            told.iter().map(|one| one.meaning).collect::<Vec<_>>()
        };
        assert_eq!(order(&[Terminal, End], &[Output]), [Output, Terminal, End]);
        assert_eq!(order(&[Terminal, Other], &[Output, End]), [Output, Terminal, Other, End]);
        assert_eq!(order(&[End], &[Output, Terminal]), [Output, Terminal, End]);
        assert_eq!(order(&[], &[Output, Terminal, End]), [Output, Terminal, End]);
    }

    #[test]
    fn what_nobody_heard_is_told_as_comfyui_would() {
        let (mut retell, owner, id) = (Retell::default(), owner(Some("c")), Arc::from("p"));
        let subject = Subject { job: JobId(1), prompt_id: &id, owner: &owner };
        retell.open(JobId(1));
        assert_eq!(
            shown(&retell.close(&subject, &entry())),
            [
                (
                    Meaning::Output,
                    json!({"type": "executed", "data": {"node": "9", "display_node": "9",
                "output": {"images": [{"filename": "a.png"}]}, "prompt_id": "p"}})
                ),
                (
                    Meaning::Output,
                    json!({"type": "executed", "data": {"node": "x:4",
                "display_node": "x", "output": {"text": ["hi"]}, "prompt_id": "p"}})
                ),
                (
                    Meaning::Terminal,
                    json!({"type": "execution_success",
                "data": {"prompt_id": "p", "timestamp": 7}})
                ),
                (
                    Meaning::End,
                    json!({"type": "executing", "data": {"node": null, "prompt_id": "p"}})
                ),
            ]
        );
    }

    #[test]
    fn what_was_heard_is_not_told_again_unless_the_job_ran_anew() {
        let (mut retell, owner, id) = (Retell::default(), owner(Some("c")), Arc::from("p"));
        let subject = Subject { job: JobId(1), prompt_id: &id, owner: &owner };
        let output = message(Meaning::Output, &json!({"type": "executed", "data": {"node": "9"}}));
        for anew in [false, true] {
            retell.open(JobId(1));
            assert!(retell.passes(&output));
            assert!(retell.passes(&message(Meaning::End, &json!({}))));
            if anew {
                retell.again(JobId(1));
            }
            let left: Vec<_> = retell.close(&subject, &entry()).iter().map(|d| d.meaning).collect();
            let all = [Meaning::Output, Meaning::Output, Meaning::Terminal, Meaning::End];
            assert_eq!(left, if anew { &all[..] } else { &all[1..3] });
            assert!(!retell.passes(&output), "what comes late has been told");
        }
    }

    #[test]
    fn a_job_without_client_or_history_has_nothing_to_tell() {
        let (nobody, somebody, id) = (owner(None), owner(Some("c")), Arc::from("p"));
        let subject = Subject { job: JobId(1), prompt_id: &id, owner: &nobody };
        assert!(whole(&subject, &entry()).is_empty());
        assert!(whole(&Subject { owner: &somebody, ..subject }, b"").is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_entries_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (owner, id) = (owner(Some("c")), Arc::from("p"));
            for one in whole(&Subject { job: JobId(1), prompt_id: &id, owner: &owner }, &bytes) {
                prop_assert!(std::str::from_utf8(&one.frame.bytes).is_ok());
            }
        }
    }
}
