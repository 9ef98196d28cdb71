//! Whether what a random run's clients heard, and what the server tells at its end, agree with the
//! ledger of what was done.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::ear::{Manner, Note, Session};
use super::ledger::{Entry, Ledger};
use super::order::{self, Rules};
use super::step::Profile;

/// How much later than its end a prompt's last message may be sent, in milliseconds, and how far
/// times that different hands took may be apart.
const SLACK: u64 = 500;
/// How much later an interrupt may take effect than it was sent.
const LATE: u64 = 5_000;

/// What the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One simulator: nobody's previews are for everybody, and nothing is kept for who is away.
    Plain,
    /// A gateway in pool mode.
    Pool,
}

/// A client when all is over.
pub(crate) struct Witness {
    pub(crate) profile: Profile,
    pub(crate) sid: String,
    pub(crate) sessions: Vec<Session>,
}

/// All there is to judge a run by.
pub(crate) struct Trial<'a> {
    pub(crate) kind: Kind,
    pub(crate) ledger: &'a Ledger,
    pub(crate) witnesses: Vec<Witness>,
    /// `GET /history`, `GET /queue`, and all of `GET /api/jobs`.
    pub(crate) history: Value,
    pub(crate) queue: Value,
    pub(crate) jobs: Vec<Value>,
}

impl Trial<'_> {
    /// Everything that is wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        let prompts = self.ledger.prompts();
        let mut problems = self.ledger.problems();
        self.lists(&prompts, &mut problems);
        for (id, entry) in &prompts {
            self.outcome(id, entry, &mut problems);
        }
        for witness in &self.witnesses {
            let mut told = Vec::new();
            self.heard(witness, &prompts, &mut told);
            let name = format!("client {} ({})", witness.profile.index, witness.sid);
            if !told.is_empty() && self.kind == Kind::Pool {
                println!("{name} heard:\n{}", story(&witness.sessions));
            }
            problems.extend(told.into_iter().map(|problem| format!("{name}: {problem}")));
        }
        problems
    }

    /// What there was, in a line.
    pub(crate) fn summary(&self) -> String {
        let prompts = self.ledger.prompts();
        let ended = |name: &str| {
            let ends = prompts.iter().filter_map(|(id, entry)| terminal(self.entry(id, entry)?));
            ends.filter(|(end, _)| *end == name).count()
        };
        let sessions = self.witnesses.iter().flat_map(|witness| &witness.sessions);
        let (sockets, events) = sessions
            .fold((0, 0), |(count, events), session| (count + 1, events + session.notes.len()));
        format!(
            "{} prompts: {} completed, {} failed, {} interrupted; {} refused, {} forgotten; \
             {sockets} sockets of {} clients heard {events} events",
            prompts.len(),
            ended("execution_success"),
            ended("execution_error"),
            ended("execution_interrupted"),
            self.ledger.refused().len(),
            prompts.values().filter(|entry| entry.forgotten.is_some()).count(),
            self.witnesses.len(),
        )
    }

    /// What the owners have still to hear.
    pub(crate) fn missing(&self) -> Vec<String> {
        let prompts = self.ledger.prompts();
        let mut missing = Vec::new();
        for witness in &self.witnesses {
            for (id, entry) in own(witness, &prompts) {
                self.complete(witness, id, entry, &mut missing);
            }
        }
        missing
    }

    /// `/queue`, `/history` and `/api/jobs` against each other and the ledger.
    fn lists(&self, prompts: &BTreeMap<String, Entry>, problems: &mut Vec<String>) {
        for list in ["queue_running", "queue_pending"] {
            if !self.queue[list].as_array().is_some_and(Vec::is_empty) {
                problems.push(format!("{list} is not empty: {}", self.queue[list]));
            }
        }
        let ids: BTreeSet<&str> = self.entries().map(|(id, _)| id).collect();
        let mut listed = BTreeSet::new();
        for job in &self.jobs {
            let id = job["id"].as_str().unwrap_or_default();
            if !listed.insert(id) {
                problems.push(format!("/api/jobs lists {id} twice"));
            }
        }
        if ids != listed {
            let apart: Vec<_> = ids.symmetric_difference(&listed).collect();
            problems.push(format!("/history and /api/jobs differ in {apart:?}"));
        }
        for id in ids.iter().filter(|id| !prompts.contains_key(**id)) {
            problems.push(format!("/history has {id}, which nobody posted"));
        }
        for id in self.ledger.refused().iter().filter(|id| ids.contains(id.as_str())) {
            problems.push(format!("/history has {id}, which was refused"));
        }
        for (id, entry) in prompts.iter().filter(|(_, entry)| entry.forgotten.is_some()) {
            if ids.contains(id.as_str()) {
                problems.push(format!("{id} of client {} was deleted from history", entry.client));
            }
        }
    }

    fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.history.as_object().into_iter().flatten().map(|(id, entry)| (id.as_str(), entry))
    }

    /// A prompt's history entry, also when it has been deleted since.
    pub(crate) fn entry<'a>(&'a self, id: &str, entry: &'a Entry) -> Option<&'a Value> {
        entry.forgotten.as_ref().or_else(|| self.history.get(id))
    }

    /// Whether a prompt ended as it must.
    fn outcome(&self, id: &str, entry: &Entry, problems: &mut Vec<String>) {
        let by_id = entry.deleted || (self.kind == Kind::Pool && entry.interrupted);
        let Some(told) = self.entry(id, entry) else {
            if !by_id {
                problems.push(format!("{id} of client {} is lost", entry.client));
            }
            return;
        };
        let own = told["prompt"][3].get("client_id").and_then(Value::as_str);
        if own != entry.client_id.as_deref() {
            problems.push(format!("history says {own:?} for {:?} of {id}", entry.client_id));
        }
        let end = terminal(told).map_or("", |(name, _)| name);
        let status = told["status"]["status_str"].as_str().unwrap_or_default();
        let right = match end {
            "execution_success" => status == "success" && !entry.fails,
            "execution_error" => status == "error" && entry.fails,
            "execution_interrupted" => status == "error" && self.may_be_interrupted(entry, told),
            _ => false,
        };
        if !right {
            problems.push(format!("{id} must not end so ({entry:?}): {}", told["status"]));
        }
        let listed = self.jobs.iter().find(|job| job["id"] == id);
        let status = listed.and_then(|job| job["status"].as_str());
        let right = match (end, status) {
            (_, None) => entry.forgotten.is_some(),
            ("execution_success", Some(status)) => status == "completed",
            ("execution_interrupted", Some(status)) => matches!(status, "failed" | "cancelled"),
            (_, Some(status)) => status == "failed",
        };
        if !right {
            problems.push(format!("/api/jobs says {status:?} of {id}, which ended with {end}"));
        }
    }

    fn may_be_interrupted(&self, entry: &Entry, told: &Value) -> bool {
        let ended = terminal(told).and_then(|(_, data)| data["timestamp"].as_u64());
        let Some(ended) = ended else { return false };
        let reaches = |address: &str| self.kind == Kind::Plain || address == entry.address;
        entry.interrupted
            || self.ledger.interrupts().iter().any(|(at, address)| {
                reaches(address) && *at <= ended + SLACK && at + LATE >= entry.posted
            })
    }

    /// Whether a client heard what it should, in order, and nothing else.
    fn heard(
        &self,
        witness: &Witness,
        prompts: &BTreeMap<String, Entry>,
        problems: &mut Vec<String>,
    ) {
        for (index, session) in witness.sessions.iter().enumerate() {
            if session.greeting.as_deref() != Some(&witness.sid) {
                problems.push(format!("socket {index} is greeted as {:?}", session.greeting));
            }
            if session.lost {
                problems.push(format!("the server ended socket {index}"));
            }
            for id in session.notes.iter().filter_map(Note::prompt) {
                match prompts.get(id) {
                    Some(entry) if self.is_for(entry, witness) => {}
                    entry => problems.push(format!("heard of {id}, which is {entry:?}")),
                }
            }
            let whole =
                |id: &str| prompts.get(id).is_some_and(|entry| entry.posted >= session.opened);
            let anonymous = |id: &str| prompts.get(id).is_some_and(|e| e.client_id.is_none());
            let rules = Rules {
                whole: &whole,
                anonymous: &anonymous,
                serial: self.kind == Kind::Plain || witness.profile.flags || witness.profile.page,
                first: index == 0,
            };
            let found = order::check(session, &rules);
            problems.extend(found.into_iter().map(|problem| format!("socket {index}: {problem}")));
        }
        let last = witness.sessions.last().and_then(|session| session.depth);
        if last != Some(0) {
            problems.push(format!("the last depth told is {last:?}"));
        }
        for (id, entry) in own(witness, prompts) {
            self.complete(witness, id, entry, problems);
            alike(witness, id, problems);
        }
        self.previews(witness, prompts, problems);
    }

    /// Whether a prompt may be spoken of to a client.
    fn is_for(&self, entry: &Entry, witness: &Witness) -> bool {
        match &entry.client_id {
            Some(owner) => *owner == witness.sid,
            None => self.kind == Kind::Plain || entry.address == witness.profile.address,
        }
    }

    /// Whether an owner heard how a prompt began and ended, and of its outputs.
    fn complete(&self, witness: &Witness, id: &str, entry: &Entry, problems: &mut Vec<String>) {
        let heard = |is: &dyn Fn(&Note) -> bool| {
            let notes = witness.sessions.iter().flat_map(|session| &session.notes);
            notes.filter(|note| note.prompt() == Some(id)).any(is)
        };
        let Some(told) = self.entry(id, entry) else {
            if heard(&|note| note.is("execution_start")) {
                problems.push(format!("{id} began and is in no history"));
            }
            return;
        };
        let Some((name, data)) = terminal(told) else { return };
        let ended = data["timestamp"].as_u64().unwrap_or_default();
        let presence = Presence::of(&witness.sessions, entry.posted, ended);
        if presence == Presence::Gone || (presence == Presence::Broken && self.kind == Kind::Plain)
        {
            return;
        }
        let mut must = |what: &str, is: &dyn Fn(&Note) -> bool| {
            if !heard(is) {
                let lives: Vec<_> =
                    witness.sessions.iter().map(|one| (one.opened, one.closed)).collect();
                let (posted, seen) = (entry.posted, presence);
                problems.push(format!(
                    "{id}: its {what} was not heard ({seen:?}: {posted} to {ended}, of {lives:?})"
                ));
            }
        };
        if presence == Presence::Whole {
            must("execution_start", &|note| note.is("execution_start"));
        }
        must(
            name,
            &|note| matches!(note, Note::Event { name: n, data: d } if n == name && d == data),
        );
        must("end", &Note::is_end);
        for (node, output) in told["outputs"].as_object().into_iter().flatten() {
            must("output", &|note| {
                matches!(note, Note::Event { name, data } if name == "executed"
                    && data["node"] == node.as_str() && data["output"] == *output)
            });
        }
    }

    /// Previews that name no prompt: no more of them than the prompts can have sent.
    fn previews(
        &self,
        witness: &Witness,
        prompts: &BTreeMap<String, Entry>,
        problems: &mut Vec<String>,
    ) {
        if witness.sessions.len() > 1 {
            return;
        }
        let notes = witness.sessions.iter().flat_map(|session| &session.notes);
        let heard = notes.filter(|note| matches!(note, Note::Binary { id: 1, .. })).count() as u64;
        let own = prompts.values().filter(|entry| self.is_for(entry, witness));
        let most: u64 = own.map(|entry| entry.previews).sum();
        if heard > most {
            problems.push(format!("{heard} previews, of {most} that there were"));
        }
    }
}

/// What a client heard, a line each, without mere progress.
fn story(sessions: &[Session]) -> String {
    let mut lines = Vec::new();
    for session in sessions {
        lines.push(format!("  from {} to {:?}", session.opened, session.closed));
        for note in &session.notes {
            let Note::Event { name, data } = note else { continue };
            if !name.starts_with("progress") {
                let (prompt, node) = (note.prompt().unwrap_or_default(), &data["node"]);
                lines.push(format!("    {name} {node} {prompt} {}", data["timestamp"]));
            }
        }
    }
    lines.join("\n")
}

fn own<'a>(
    witness: &'a Witness,
    prompts: &'a BTreeMap<String, Entry>,
) -> impl Iterator<Item = (&'a String, &'a Entry)> {
    prompts.iter().filter(|(_, entry)| entry.client_id.as_ref() == Some(&witness.sid))
}

/// The last message that history keeps of a prompt: its name and data.
fn terminal(told: &Value) -> Option<(&str, &Value)> {
    let last = told["status"]["messages"].as_array()?.last()?;
    Some((last[0].as_str()?, &last[1]))
}

/// What is told twice, on two sockets, must be the same.
fn alike(witness: &Witness, id: &str, problems: &mut Vec<String>) {
    let mut first: BTreeMap<(&str, String), &Value> = BTreeMap::new();
    for note in witness.sessions.iter().flat_map(|session| &session.notes) {
        let Note::Event { name, data } = note else { continue };
        let told = ["execution_", "executed"].iter().any(|start| name.starts_with(start));
        if note.prompt() != Some(id) || !told {
            continue;
        }
        let known = first.entry((name, data["node"].to_string())).or_insert(data);
        if *known != data {
            problems.push(format!("{name} of {id} twice, and not alike: {known}, {data}"));
        }
    }
    let ends = ["execution_success", "execution_error", "execution_interrupted"];
    if first.keys().filter(|(name, _)| ends.contains(name)).count() > 1 {
        problems.push(format!("{id} ended in two ways"));
    }
}

/// Whether an owner was there from the beginning to the end of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Whole,
    /// Its connection broke, perhaps several times.
    Broken,
    /// It said goodbye, or came later.
    Gone,
}

impl Presence {
    /// From the sockets' lives, each of which begins with its greeting.
    fn of(sessions: &[Session], posted: u64, ended: u64) -> Self {
        let mut presence = Self::Whole;
        let mut from = 0;
        for (index, session) in sessions.iter().enumerate() {
            // A socket that another one replaced went on for a while, and heard nothing more.
            let gap = (from.min(session.opened), from.max(session.opened));
            if gap.1 + SLACK >= posted && gap.0 <= ended + SLACK {
                // Before its first socket nobody has heard of it.
                let manner = index.checked_sub(1).and_then(|before| sessions[before].closed);
                match manner {
                    Some((_, Manner::Abrupt(_))) if presence == Self::Whole => {
                        presence = Self::Broken;
                    }
                    Some((_, Manner::Abrupt(_))) => {}
                    Some((_, Manner::Polite)) => presence = Self::Gone,
                    None if posted < session.opened => presence = Self::Gone,
                    None => {}
                }
            }
            from = session.closed.map_or(u64::MAX, |(at, _)| at);
        }
        presence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(opened: u64, closed: Option<(u64, Manner)>) -> Session {
        Session { opened, closed, ..Session::default() }
    }

    #[test]
    fn who_was_there_is_read_off_the_sockets_lives() {
        let abrupt = Manner::Abrupt(false);
        let sessions = [
            session(10_000, Some((20_000, abrupt))),
            session(21_000, Some((30_000, Manner::Polite))),
            session(31_000, None),
        ];
        let presence = |posted, ended| Presence::of(&sessions, posted, ended);
        assert_eq!(presence(11_000, 12_000), Presence::Whole);
        assert_eq!(presence(5_000, 12_000), Presence::Gone);
        assert_eq!(presence(19_000, 25_000), Presence::Broken);
        assert_eq!(presence(20_500, 20_700), Presence::Broken);
        assert_eq!(presence(25_000, 26_000), Presence::Whole);
        assert_eq!(presence(25_000, 35_000), Presence::Gone);
        assert_eq!(presence(19_000, 35_000), Presence::Gone);
        assert_eq!(presence(40_000, 50_000), Presence::Whole);
    }
}
