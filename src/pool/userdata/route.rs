//! Which of the user-data routes a path means. Pure.
//!
//! The path is taken apart before it is decoded: `workflows%2Fa.json` is one segment, as ComfyUI
//! has it.

use percent_encoding::percent_decode_str;

/// A route, its names decoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/users`.
    Users,
    /// `/settings`.
    Settings,
    /// `/settings/{id}`.
    Setting(String),
    /// `/userdata`.
    List,
    /// `/v2/userdata`.
    ListV2,
    /// `/userdata/{file}`.
    File(String),
    /// `/userdata/{file}/move/{dest}`.
    Move(String, String),
}

impl Route {
    /// The route of a path as it came, with or without `/api`; `None` when it is none of these.
    pub fn of(path: &str) -> Option<Self> {
        let bare = crate::comfy::routes::bare(path);
        let parts: Vec<&str> = bare.strip_prefix('/')?.splitn(6, '/').collect();
        match parts.as_slice() {
            ["users"] => Some(Self::Users),
            ["settings"] => Some(Self::Settings),
            ["userdata"] => Some(Self::List),
            ["v2", "userdata"] => Some(Self::ListV2),
            ["settings", id] => Some(Self::Setting(name(id)?)),
            ["userdata", file] => Some(Self::File(name(file)?)),
            ["userdata", file, "move", dest] => Some(Self::Move(name(file)?, name(dest)?)),
            _ => None,
        }
    }
}

fn name(segment: &str) -> Option<String> {
    let decoded = percent_decode_str(segment).decode_utf8_lossy().into_owned();
    (!decoded.is_empty()).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_encoded_slash_does_not_end_a_segment() {
        let file = |name: &str| Some(Route::File(name.to_owned()));
        assert_eq!(Route::of("/userdata/workflows%2Fa.json"), file("workflows/a.json"));
        assert_eq!(Route::of("/api/userdata/a%20b?x=/1"), file("a b"));
        assert_eq!(Route::of("/userdata/100%2525.json"), file("100%25.json"));
        let moved = Route::Move("a/b".to_owned(), "c/d".to_owned());
        assert_eq!(Route::of("/userdata/a%2Fb/move/c%2Fd?overwrite=false"), Some(moved));
    }

    #[test]
    fn other_paths_are_not_taken() {
        for path in [
            "/userdata/workflows/a.json",
            "/userdata/",
            "/settings/",
            "/users/x",
            "/api/api/users",
            "/userdata/a/move/b/c",
            "/userdata/a/move/",
            "/v2/users",
            "users",
            "",
            "/",
        ] {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_paths_never_panic(path in "\\PC{0,60}", more in "[/a-z%0-9.]{0,40}") {
            let _ = Route::of(&path);
            let _ = Route::of(&format!("/userdata/{more}"));
        }
    }
}
