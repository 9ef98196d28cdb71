//! In what backends differ: pure.
//!
//! Users of a farm expect any workflow to run on any server. A node or a model that only some
//! have, or another version, is why it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::Capabilities;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// ComfyUI's version.
    Version,
    /// A node class.
    Node,
    /// A model.
    Model,
}

/// One backend as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The backend's name.
    pub name: String,
    /// Its version, if it tells.
    pub version: Option<String>,
    /// Its nodes and models; backends that have the same may share them.
    pub capabilities: Arc<Capabilities>,
}

/// Something that some backends have and others lack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Difference {
    /// What it is.
    pub kind: Kind,
    /// The version, or the name of the node or the model
    pub item: String,
    /// Backends that have it
    pub have: Vec<String>,
    /// Backends that lack it
    pub lack: Vec<String>,
}

/// All differences: versions first, then nodes, then models, each by name.
pub fn differences(seen: &[Sighting]) -> Vec<Difference> {
    let groups = alike(seen);
    let mut owners: BTreeMap<(Kind, &str), Vec<usize>> = BTreeMap::new();
    for (number, group) in groups.iter().enumerate() {
        let first = group[0];
        let version = first.version.as_deref().map(|version| (Kind::Version, version));
        let nodes = first.capabilities.nodes.iter().map(|name| (Kind::Node, name.as_ref()));
        let models = first.capabilities.models.iter().map(|name| (Kind::Model, name.as_ref()));
        for item in version.into_iter().chain(nodes).chain(models) {
            owners.entry(item).or_default().push(number);
        }
    }
    owners
        .into_iter()
        .filter(|(_, owners)| owners.len() < groups.len())
        .map(|((kind, item), owners)| {
            let names = |has: bool| {
                let groups = groups.iter().enumerate();
                let chosen = groups.filter(|(number, _)| owners.contains(number) == has);
                chosen.flat_map(|(_, group)| group.iter().map(|seen| seen.name.clone())).collect()
            };
            Difference { kind, item: item.to_owned(), have: names(true), lack: names(false) }
        })
        .collect()
}

/// Of what somebody asked for, what none of the backends has.
pub fn lacked_by_all(
    seen: &[Sighting],
    asked: impl IntoIterator<Item = (Kind, Box<str>)>,
) -> Vec<Difference> {
    if seen.is_empty() {
        return Vec::new();
    }
    let has = |sighting: &Sighting, kind: Kind, name: &str| match kind {
        Kind::Version => sighting.version.as_deref() == Some(name),
        Kind::Node => sighting.capabilities.nodes.contains(name),
        Kind::Model => sighting.capabilities.models.contains(name),
    };
    let mut lacked: Vec<_> = asked.into_iter().collect();
    lacked.retain(|(kind, name)| !seen.iter().any(|sighting| has(sighting, *kind, name)));
    lacked.sort();
    let lack: Vec<String> = seen.iter().map(|sighting| sighting.name.clone()).collect();
    let difference = |(kind, item): (Kind, Box<str>)| Difference {
        kind,
        item: item.into(),
        have: Vec::new(),
        lack: lack.clone(),
    };
    lacked.into_iter().map(difference).collect()
}

/// Backends in groups of those that share version and capabilities: most of a farm is alike, and
/// comparing groups costs a fraction of comparing backends.
fn alike(seen: &[Sighting]) -> Vec<Vec<&Sighting>> {
    let mut groups: Vec<Vec<&Sighting>> = Vec::new();
    for sighting in seen {
        let same = |group: &&mut Vec<&Sighting>| {
            group[0].version == sighting.version
                && Arc::ptr_eq(&group[0].capabilities, &sighting.capabilities)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(sighting),
            None => groups.push(vec![sighting]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &str, version: &str, nodes: &[&str], models: &[&str]) -> Sighting {
        let set = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
        Sighting {
            name: name.into(),
            version: (!version.is_empty()).then(|| version.to_owned()),
            capabilities: Arc::new(Capabilities {
                nodes: set(nodes),
                models: set(models),
                ..Capabilities::default()
            }),
        }
    }

    #[test]
    fn what_some_lack_is_told_and_what_all_have_is_not() {
        let farm = [
            seen("a", "0.8.0", &["X", "Y"], &["m.pt"]),
            seen("b", "0.8.0", &["X"], &["m.pt"]),
            seen("c", "0.7.1", &["X", "Y"], &["m.pt", "n.pt"]),
        ];
        let told: Vec<_> = differences(&farm)
            .into_iter()
            .map(|d| format!("{:?} {} {:?} {:?}", d.kind, d.item, d.have, d.lack))
            .collect();
        assert_eq!(
            told,
            [
                r#"Version 0.7.1 ["c"] ["a", "b"]"#,
                r#"Version 0.8.0 ["a", "b"] ["c"]"#,
                r#"Node Y ["a", "c"] ["b"]"#,
                r#"Model n.pt ["c"] ["a", "b"]"#,
            ]
        );
    }

    #[test]
    fn what_nobody_has_is_lacked_by_all() {
        let farm = [seen("a", "1", &["X"], &["m.pt"]), seen("b", "1", &["Y"], &[])];
        let asked =
            [(Kind::Model, "m.pt".into()), (Kind::Node, "Z".into()), (Kind::Node, "Y".into())];
        let told = lacked_by_all(&farm, asked);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].item.as_str(), told[0].have.len(), told[0].lack.len()), ("Z", 0, 2));
        assert_eq!(lacked_by_all(&[], [(Kind::Node, "Z".into())]), []);
    }

    #[test]
    fn equal_backends_differ_in_nothing() {
        let farm = [seen("a", "1", &["X"], &["m"]), seen("b", "1", &["X"], &["m"])];
        assert_eq!(differences(&farm), []);
        assert_eq!(differences(&farm[..1]), []);
        assert_eq!(differences(&[]), []);
    }

    #[test]
    fn sharing_changes_nothing_but_the_cost() {
        let a = seen("a", "1", &["X", "Y"], &[]);
        let mut twin = a.clone();
        twin.name = "b".into();
        let copy = seen("b", "1", &["X", "Y"], &[]);
        let other = seen("c", "", &["X"], &["m"]);
        let shared = differences(&[a.clone(), twin, other.clone()]);
        assert_eq!(shared, differences(&[a, copy, other]));
        assert_eq!(shared.len(), 3, "{shared:?}");
    }
}
