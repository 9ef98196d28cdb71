//! Who belongs to the fleet: what the configuration says, and what operators changed at run time.
//!
//! Pure. The changes are kept apart from the file, so that both can change: a reload brings
//! another file under the same changes, a restart brings the same changes back from the state.
//! Where a backend added at run time has the name or the endpoint of one in the file, the file
//! wins, and a note says so.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::Wanted;
use crate::config::{self, Backend};

/// What operators changed, as it outlives the process.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Changes {
    /// Backends added, in the words they came in.
    added: Vec<Value>,
    /// Backends of the file that were removed.
    removed: BTreeSet<String>,
    /// Backends enabled, drained or disabled by hand.
    wanted: BTreeMap<String, WantedWord>,
    /// Backends that go when their last client is gone.
    leaving: BTreeSet<String>,
    /// The strategy chosen by hand.
    pub strategy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WantedWord {
    Enabled,
    Draining,
    Disabled,
}

/// One member and what is wanted of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its specification.
    pub spec: Backend,
    /// What is wanted of it.
    pub wanted: Wanted,
}

/// Why a change is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No backend has this name.
    #[error("there is no backend named {0}")]
    Unknown(String),
    /// The name is taken.
    #[error("a backend named {0} exists already")]
    NameTaken(String),
    /// The endpoint is taken.
    #[error("{endpoint} is the backend {name} already")]
    EndpointTaken {
        /// The endpoint's URL.
        endpoint: String,
        /// Who has it.
        name: String,
    },
    /// Too many backends.
    #[error("there are {MAX_MEMBERS} backends already")]
    Full,
}

/// Members at most.
pub const MAX_MEMBERS: usize = 1024;

/// The file's backends under the changes of operators.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Roster {
    file: Vec<Backend>,
    changes: Changes,
}

impl Roster {
    /// A roster of a file's backends and earlier changes.
    pub fn new(file: Vec<Backend>, changes: Changes) -> Self {
        Self { file, changes }
    }

    /// The changes, to be kept.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Brings another file under the same changes.
    pub fn set_file(&mut self, file: Vec<Backend>) {
        self.file = file;
    }

    /// Chooses the strategy by hand.
    pub fn set_strategy(&mut self, strategy: &str) {
        self.changes.strategy = Some(strategy.to_owned());
    }

    /// The members in order, and notes about what the file overrode.
    pub fn members(&self) -> (Vec<Member>, Vec<String>) {
        let mut notes = Vec::new();
        let mut specs: Vec<Backend> = Vec::new();
        for spec in &self.file {
            if self.changes.removed.contains(&spec.name) {
                notes.push(format!("backend {} of the file stays removed, as by hand", spec.name));
            } else {
                specs.push(spec.clone());
            }
        }
        for words in &self.changes.added {
            match config::backend_of(words) {
                Ok(spec) => match conflict(&specs, &spec) {
                    None => specs.push(spec),
                    Some(refusal) => notes.push(format!(
                        "the backend {} added by hand is left out, the file wins: {refusal}",
                        spec.name
                    )),
                },
                Err(problems) => {
                    notes.push(format!("a backend added by hand is left out: {problems}"));
                }
            }
        }
        (specs.into_iter().map(|spec| self.member(spec)).collect(), notes)
    }

    fn member(&self, spec: Backend) -> Member {
        let wanted = match self.changes.wanted.get(&spec.name) {
            Some(WantedWord::Enabled) => Wanted::Enabled,
            Some(WantedWord::Draining) => Wanted::Draining,
            Some(WantedWord::Disabled) => Wanted::Disabled,
            None if spec.enabled => Wanted::Enabled,
            None => Wanted::Disabled,
        };
        Member { spec, wanted }
    }

    /// Adds a backend in the words it came in, which have been checked to mean `spec`.
    pub fn add(&mut self, mut words: Value, spec: &Backend) -> Result<(), Refusal> {
        let (members, _) = self.members();
        if members.len() >= MAX_MEMBERS {
            return Err(Refusal::Full);
        }
        let specs: Vec<Backend> = members.into_iter().map(|member| member.spec).collect();
        if let Some(refusal) = conflict(&specs, spec) {
            return Err(refusal);
        }
        self.forget(&spec.name);
        // A file's backend that was removed by hand comes back as the file has it when it is the
        // same server, and as what was added now when it is another.
        let in_file = self.file.iter().find(|known| known.name == spec.name);
        if in_file.is_some_and(|known| known == spec) {
            self.changes.removed.remove(&spec.name);
        } else {
            // The name it is found by, in case it was written as a number.
            if let Some(words) = words.as_object_mut() {
                words.insert("name".to_owned(), spec.name.as_str().into());
            }
            self.changes.added.push(words);
        }
        Ok(())
    }

    /// Removes a backend.
    pub fn remove(&mut self, name: &str) -> Result<(), Refusal> {
        self.find(name)?;
        self.forget(name);
        if self.file.iter().any(|spec| spec.name == name) {
            self.changes.removed.insert(name.to_owned());
        }
        Ok(())
    }

    fn forget(&mut self, name: &str) {
        self.changes.added.retain(|words| words.get("name").and_then(Value::as_str) != Some(name));
        self.changes.wanted.remove(name);
        self.changes.leaving.remove(name);
    }

    /// Says what is wanted of a backend. One that was leaving stays.
    pub fn want(&mut self, name: &str, wanted: Wanted) -> Result<(), Refusal> {
        self.find(name)?;
        let word = match wanted {
            Wanted::Enabled => WantedWord::Enabled,
            Wanted::Draining => WantedWord::Draining,
            Wanted::Disabled => WantedWord::Disabled,
        };
        self.changes.wanted.insert(name.to_owned(), word);
        self.changes.leaving.remove(name);
        Ok(())
    }

    /// Drains a backend that is to go with its last client.
    pub fn leave(&mut self, name: &str) -> Result<(), Refusal> {
        // A disabled one has given up its clients already and must not get them back.
        let wanted = match self.find(name)?.wanted {
            Wanted::Disabled => Wanted::Disabled,
            Wanted::Enabled | Wanted::Draining => Wanted::Draining,
        };
        self.want(name, wanted)?;
        self.changes.leaving.insert(name.to_owned());
        Ok(())
    }

    /// Backends that go with their last client.
    pub fn leaving(&self) -> impl Iterator<Item = &str> {
        self.changes.leaving.iter().map(String::as_str)
    }

    fn find(&self, name: &str) -> Result<Member, Refusal> {
        let (members, _) = self.members();
        members
            .into_iter()
            .find(|member| member.spec.name == name)
            .ok_or_else(|| Refusal::Unknown(name.to_owned()))
    }
}

/// What a newcomer would share with a backend that is there: two names for one server would each
/// count only half of its queue.
fn conflict(specs: &[Backend], new: &Backend) -> Option<Refusal> {
    specs.iter().find_map(|known| {
        if known.name == new.name {
            Some(Refusal::NameTaken(new.name.clone()))
        } else if known.endpoint == new.endpoint {
            let endpoint = new.endpoint.url();
            Some(Refusal::EndpointTaken { endpoint, name: known.name.clone() })
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(name: &str, port: u16) -> Value {
        json!({"name": name, "host": "127.0.0.1", "port": port})
    }

    fn spec(name: &str, port: u16) -> Backend {
        config::backend_of(&words(name, port)).unwrap()
    }

    fn add(roster: &mut Roster, name: &str, port: u16) -> Result<(), Refusal> {
        roster.add(words(name, port), &spec(name, port))
    }

    fn shown(roster: &Roster) -> Vec<(String, u16, Wanted)> {
        let (members, _) = roster.members();
        members.into_iter().map(|m| (m.spec.name, m.spec.endpoint.port, m.wanted)).collect()
    }

    /// The roster as the next process has it.
    fn restarted(roster: &Roster, file: Vec<Backend>) -> Roster {
        let kept = serde_json::to_string(roster.changes()).unwrap();
        Roster::new(file, serde_json::from_str(&kept).unwrap())
    }

    #[test]
    fn changes_survive_a_restart() {
        let file = vec![spec("a", 1), spec("b", 2)];
        let mut roster = Roster::new(file.clone(), Changes::default());
        add(&mut roster, "c", 3).unwrap();
        roster.want("a", Wanted::Draining).unwrap();
        roster.want("c", Wanted::Disabled).unwrap();
        roster.remove("b").unwrap();
        let expected = vec![("a".into(), 1, Wanted::Draining), ("c".into(), 3, Wanted::Disabled)];
        assert_eq!(shown(&roster), expected);
        assert_eq!(shown(&restarted(&roster, file)), expected);
    }

    #[test]
    fn names_and_endpoints_are_taken_once() {
        let mut roster = Roster::new(vec![spec("a", 1)], Changes::default());
        assert_eq!(add(&mut roster, "a", 9), Err(Refusal::NameTaken("a".into())));
        assert!(matches!(add(&mut roster, "b", 1), Err(Refusal::EndpointTaken { .. })));
        assert_eq!(roster.remove("x"), Err(Refusal::Unknown("x".into())));
        assert_eq!(roster.want("x", Wanted::Enabled), Err(Refusal::Unknown("x".into())));
    }

    #[test]
    fn the_file_wins_over_what_was_added_by_hand() {
        let mut roster = Roster::new(vec![spec("a", 1)], Changes::default());
        add(&mut roster, "b", 2).unwrap();
        let roster = restarted(&roster, vec![spec("a", 1), spec("b", 7)]);
        assert_eq!(shown(&roster)[1], ("b".into(), 7, Wanted::Enabled));
        assert!(roster.members().1[0].contains("the file wins"), "{:?}", roster.members().1);
    }

    #[test]
    fn a_removed_backend_of_the_file_can_come_back() {
        let mut roster = Roster::new(vec![spec("a", 1), spec("b", 2)], Changes::default());
        roster.remove("b").unwrap();
        assert_eq!(shown(&roster).len(), 1);
        add(&mut roster, "b", 2).unwrap();
        assert_eq!(shown(&roster)[1], ("b".into(), 2, Wanted::Enabled));
        roster.remove("b").unwrap();
        add(&mut roster, "b", 5).unwrap();
        assert_eq!(shown(&roster)[1], ("b".into(), 5, Wanted::Enabled));
    }

    #[test]
    fn a_backend_named_by_a_number_can_be_removed() {
        let mut roster = Roster::new(vec![spec("a", 1)], Changes::default());
        let words = json!({"name": 5, "url": "http://127.0.0.1:5"});
        roster.add(words.clone(), &config::backend_of(&words).unwrap()).unwrap();
        roster.remove("5").unwrap();
        assert_eq!(shown(&roster).len(), 1);
    }

    #[test]
    fn a_leaving_backend_that_is_enabled_again_stays() {
        let mut roster = Roster::new(vec![spec("a", 1)], Changes::default());
        roster.leave("a").unwrap();
        assert_eq!(roster.leaving().collect::<Vec<_>>(), ["a"]);
        roster.want("a", Wanted::Enabled).unwrap();
        assert_eq!(roster.leaving().count(), 0);
    }

    #[test]
    fn a_disabled_backend_leaves_without_serving_again() {
        let mut roster = Roster::new(vec![spec("a", 1)], Changes::default());
        roster.want("a", Wanted::Disabled).unwrap();
        roster.leave("a").unwrap();
        assert_eq!(shown(&roster), [("a".into(), 1, Wanted::Disabled)]);
    }
}
