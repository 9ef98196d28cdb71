//! Who the users are: one, `default`, or several that the header `comfy-user` tells apart.
//!
//! Which of both was decided once, by what the backends said at first start, and is kept in
//! `users.json` with the users.

use std::io::{self, ErrorKind};
use std::path::Path;

use http::HeaderMap;
use serde_json::{Map, Value, json};

/// The one user of a server that has no others.
pub(super) const DEFAULT: &str = "default";
/// Ids that begin so are the system's own.
const SYSTEM_PREFIX: &str = "__";
/// Users at most.
const MAX_USERS: usize = 10_000;
/// Bytes of a name at most: with what is appended it must fit a folder's name.
const MAX_NAME: usize = 200;
/// Bytes of an id at most.
const MAX_ID: usize = 240;

/// The users at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Users {
    /// Whether there may be several.
    pub(super) multi: bool,
    /// Names by id.
    names: Map<String, Value>,
}

impl Default for Users {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Users {
    /// The users of a farm that nobody has used.
    pub(super) fn new(multi: bool) -> Self {
        let mut users = Self { multi, names: Map::new() };
        if !multi {
            users.insert(DEFAULT, DEFAULT);
        }
        users
    }

    /// Those of a file, or of a new farm when there is none. A file that is not what was written
    /// is an error: with the users in it their data would be out of reach.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let kept = match std::fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            kept => kept?,
        };
        Self::of_bytes(&kept).ok_or_else(|| {
            let cure = "is damaged; restore it, or move it away to start without users";
            io::Error::new(ErrorKind::InvalidData, format!("{} {cure}", path.display()))
        })
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let mut kept: Value = serde_json::from_slice(bytes).ok()?;
        let multi = kept.get("multi_user")?.as_bool()?;
        let Value::Object(names) = kept.get_mut("users")?.take() else { return None };
        Some(Self { multi, names })
    }

    /// What the file holds.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        json!({"multi_user": self.multi, "users": self.names}).to_string().into_bytes()
    }

    /// `GET /users` of several.
    pub(super) fn to_json(&self) -> Value {
        json!({"storage": "server", "users": self.names})
    }

    /// Whose a request is; `None` when it names nobody that is known.
    pub(super) fn of_request(&self, headers: &HeaderMap) -> Option<String> {
        let named = headers.get("comfy-user").filter(|_| self.multi);
        let id = named.map_or(Some(DEFAULT), |named| named.to_str().ok())?;
        let known = !id.starts_with(SYSTEM_PREFIX) && self.names.contains_key(id);
        known.then(|| id.to_owned())
    }

    /// The id of a name.
    pub(super) fn id_of(&self, name: &str) -> Option<&str> {
        self.names.iter().find(|(_, known)| *known == name).map(|(id, _)| id.as_str())
    }

    /// A new user's id, in ComfyUI's form, or why there is none, in its words.
    pub(super) fn add(&mut self, name: &str) -> Result<String, &'static str> {
        if self.id_of(name).is_some() {
            return Err("Duplicate username.");
        }
        let name = name.trim();
        if name.is_empty() {
            return Err("username not provided");
        }
        let plain = plain(name);
        if name.starts_with(SYSTEM_PREFIX) || plain.starts_with(SYSTEM_PREFIX) {
            return Err("System User prefix not allowed");
        }
        if name.len() > MAX_NAME {
            return Err("username too long");
        }
        if self.names.len() >= MAX_USERS {
            return Err("too many users");
        }
        let id = format!("{plain}_{}", uuid::Uuid::new_v4());
        self.insert(&id, name);
        Ok(id)
    }

    /// Takes over a user of a backend: one of the same name is the same user. The id under which
    /// it is kept here, or `None` when it cannot be.
    pub(super) fn adopt(&mut self, id: &str, name: &str) -> Option<String> {
        if self.names.contains_key(id) {
            return Some(id.to_owned());
        }
        if let Some(known) = self.id_of(name) {
            return Some(known.to_owned());
        }
        let fits = is_id(id) && name.len() <= MAX_NAME && self.names.len() < MAX_USERS;
        fits.then(|| {
            self.insert(id, name);
            id.to_owned()
        })
    }

    fn insert(&mut self, id: &str, name: &str) {
        self.names.insert(id.to_owned(), name.into());
    }
}

/// Whether an id may name a folder.
fn is_id(id: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=MAX_ID).contains(&id.len()) && id.chars().all(fine) && !id.starts_with(SYSTEM_PREFIX)
}

/// `re.sub("[^a-zA-Z0-9-_]+", "-", name)`.
fn plain(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut replacing = false;
    for c in name.chars() {
        let fine = c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if fine {
            plain.push(c);
        } else if !replacing {
            plain.push('-');
        }
        replacing = !fine;
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asking(user: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("comfy-user", user.parse().unwrap());
        headers
    }

    #[test]
    fn the_header_counts_only_where_there_are_several() {
        let one = Users::new(false);
        assert_eq!(one.of_request(&asking("stranger")).as_deref(), Some(DEFAULT));
        let mut many = Users::new(true);
        assert_eq!(many.of_request(&HeaderMap::new()), None);
        let id = many.add(" Ann  Ü. ").unwrap();
        assert!(id.starts_with("Ann-_"), "{id}");
        assert_eq!(many.of_request(&asking(&id)), Some(id));
        assert_eq!(many.of_request(&asking("stranger")), None);
    }

    #[test]
    fn names_are_refused_in_comfyuis_words() {
        let mut users = Users::new(true);
        users.add("ann").unwrap();
        assert_eq!(users.add("ann"), Err("Duplicate username."));
        assert_eq!(users.add("  "), Err("username not provided"));
        assert_eq!(users.add("__x"), Err("System User prefix not allowed"));
        assert_eq!(users.add(&"x".repeat(MAX_NAME + 1)), Err("username too long"));
    }

    #[test]
    fn a_user_of_a_backend_is_taken_over_once() {
        let mut users = Users::new(true);
        assert_eq!(users.adopt("ann_1", "ann").as_deref(), Some("ann_1"));
        assert_eq!(users.adopt("ann_2", "ann").as_deref(), Some("ann_1"));
        assert_eq!(users.adopt("ann_1", "other").as_deref(), Some("ann_1"));
        for hostile in ["../x", "__sys", "", "a/b", "a.b"] {
            assert_eq!(users.adopt(hostile, "eve"), None, "{hostile}");
        }
        assert_eq!(users.names.keys().collect::<Vec<_>>(), ["ann_1"]);
    }

    #[test]
    fn the_file_brings_them_back() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("users.json");
        let mut users = Users::new(true);
        users.add("ann").unwrap();
        std::fs::write(&path, users.to_bytes()).unwrap();
        assert_eq!(Users::read(&path).unwrap(), users);
        std::fs::write(&path, "{").unwrap();
        assert!(Users::read(&path).unwrap_err().to_string().contains("users.json is damaged"));
    }

    proptest! {
        #[test]
        fn every_new_id_may_name_a_folder(name in "\\PC{1,40}") {
            if let Ok(id) = Users::new(true).add(&name) {
                prop_assert!(is_id(&id), "{id}");
            }
        }
    }
}
