//! What jobs asked for that no backend has: a line in the log, once an hour for each kind of
//! prompt, and an entry of the doctor's for a day.
//!
//! `/object_info` is a hint, so that this is noted only when a server has refused the job. Bounds:
//! `MAX` kinds and `MAX` items; a line names `NAMED` servers and `NAMED` items of each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use parking_lot::Mutex;

use super::Pool;
use super::job::{Job, Needs};
use crate::clock::Moment;
use crate::inventory::{Capabilities, Kind, clean};
use crate::logging::TARGET;

/// Kinds of prompts, and items, that are remembered.
const MAX: usize = 1000;
/// A kind is told of again after this long.
const TOLD_FOR: Duration = Duration::from_hours(1);
/// An item is shown for this long after it was asked for.
const SHOWN_FOR: Duration = Duration::from_hours(24);
/// Servers that a line names, and items of each.
const NAMED: usize = 4;
/// Characters of a name.
const MAX_NAME: usize = 100;

/// A node type or a model.
pub type Item = (Kind, Box<str>);

/// What was asked for in vain.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Kinds of prompts, and when they were told of.
    told: HashMap<u64, Moment>,
    /// Items, and when they were asked for last.
    items: HashMap<Item, Moment>,
}

impl Wanted {
    /// Notes what a kind of prompt asked for; whether it is to be told of.
    fn note(&self, kind: u64, items: impl IntoIterator<Item = Item>, now: Moment) -> bool {
        let mut inner = self.inner.lock();
        inner.items.retain(|_, asked| now.since(*asked) < SHOWN_FOR);
        for item in items {
            if inner.items.len() < MAX || inner.items.contains_key(&item) {
                inner.items.insert(item, now);
            }
        }
        inner.told.retain(|_, told| now.since(*told) < TOLD_FOR);
        let new = inner.told.len() < MAX && !inner.told.contains_key(&kind);
        if new {
            inner.told.insert(kind, now);
        }
        new
    }

    /// What was asked for within a day.
    fn recent(&self, now: Moment) -> Vec<Item> {
        let inner = self.inner.lock();
        let recent = inner.items.iter().filter(|(_, asked)| now.since(**asked) < SHOWN_FOR);
        recent.map(|(item, _)| item.clone()).collect()
    }
}

/// What a backend lacks of what is needed.
fn lacks<'a>(needs: &'a Needs, has: &'a Capabilities) -> impl Iterator<Item = (Kind, &'a str)> {
    let nodes = needs.nodes.difference(&has.nodes).map(|name| (Kind::Node, &**name));
    nodes.chain(needs.models.difference(&has.models).map(|name| (Kind::Model, &**name)))
}

/// What each backend lacks, in a line; `None` when one has everything, or none is known.
fn told(needs: &Needs, backends: &[(String, Arc<Capabilities>)]) -> Option<String> {
    let able = |(_, has): &(String, Arc<Capabilities>)| lacks(needs, has).next().is_none();
    if backends.is_empty() || backends.iter().any(able) {
        return None;
    }
    let one = |(name, has): &(String, Arc<Capabilities>)| {
        let items = lacks(needs, has).take(NAMED).map(|(kind, name)| match kind {
            Kind::Model => format!("model {}", clean(name, MAX_NAME)),
            _ => format!("node {}", clean(name, MAX_NAME)),
        });
        let more = if lacks(needs, has).count() > NAMED { ", …" } else { "" };
        format!("{name} lacks {}{more}", items.collect::<Vec<_>>().join(", "))
    };
    let more = if backends.len() > NAMED { "; …" } else { "" };
    Some(backends.iter().take(NAMED).map(one).collect::<Vec<_>>().join("; ") + more)
}

impl Pool {
    /// A server refused a job: perhaps since no backend has what it needs.
    pub(super) fn note_lacks(&self, job: &Job) {
        let known = self.known();
        let Some(line) = told(&job.needs, &known) else { return };
        let nobodys = known.first().into_iter().flat_map(|(_, has)| lacks(&job.needs, has));
        let nobodys = nobodys.filter(|item| known.iter().all(|(_, has)| !has_item(has, *item)));
        let nobodys: Vec<Item> = nobodys.map(|(kind, name)| (kind, name.into())).collect();
        let kind = job.kind.as_ref().map_or(0, |kind| kind.hash);
        if self.wanted.note(kind, nobodys, Moment::now()) {
            let what = job.kind.as_ref().map_or("a prompt", |kind| &kind.label);
            let (what, caller) = (clean(what, MAX_NAME), &job.owner.caller);
            warn!(target: TARGET, "no backend can run what {caller} sent ({what}): {line}");
        }
    }

    /// What jobs asked for lately and no backend has had.
    pub fn wanted(&self) -> Vec<Item> {
        self.wanted.recent(Moment::now())
    }

    fn known(&self) -> Vec<(String, Arc<Capabilities>)> {
        let view = self.fleet.view();
        let known = view.backends.iter().filter_map(|backend| {
            Some((backend.name().to_owned(), backend.live.inventory.capabilities()?))
        });
        known.collect()
    }
}

fn has_item(has: &Capabilities, (kind, name): (Kind, &str)) -> bool {
    match kind {
        Kind::Model => has.models.contains(name),
        _ => has.nodes.contains(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> std::collections::BTreeSet<Box<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn backend(name: &str, nodes: &[&str], models: &[&str]) -> (String, Arc<Capabilities>) {
        let has = Capabilities { nodes: names(nodes), models: names(models), ..Default::default() };
        (name.to_owned(), Arc::new(has))
    }

    #[test]
    fn each_backends_lacks_are_told_unless_one_has_all() {
        let needs =
            Needs { nodes: names(&["A", "B\nC"]), models: names(&["m.pt"]), ..Needs::default() };
        let farm = [backend("one", &["A", "B\nC"], &[]), backend("two", &["A"], &["m.pt"])];
        assert_eq!(told(&needs, &farm).as_deref(), Some("one lacks model m.pt; two lacks node BC"));
        assert_eq!(told(&needs, &[]), None);
        let able = backend("three", &["A", "B\nC"], &["m.pt"]);
        assert_eq!(told(&needs, &[farm[0].clone(), able]), None);
    }

    #[test]
    fn a_kind_is_told_of_once_an_hour_and_what_is_remembered_is_bounded() {
        let wanted = Wanted::default();
        let item = |n: usize| (Kind::Node, n.to_string().into());
        let hours = |n: u64| Moment(n * 3_600_000);
        assert!(wanted.note(7, [item(1)], hours(1)));
        assert!(!wanted.note(7, [item(2)], hours(1)));
        assert!(wanted.note(8, [item(1)], hours(1)));
        assert!(wanted.note(7, [item(1)], hours(2)));
        assert_eq!(wanted.recent(hours(3)).len(), 2);
        assert_eq!(wanted.recent(hours(25)), [item(1)]);
        for n in 0..2 * MAX {
            wanted.note(n as u64, [item(n)], hours(3));
        }
        let inner = wanted.inner.lock();
        assert!(inner.items.len() <= MAX && inner.told.len() <= MAX);
    }
}
