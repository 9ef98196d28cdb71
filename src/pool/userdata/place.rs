//! Where a name leads in a user's folder, and that it does not lead out of it.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

/// Folders within one another at most.
const MAX_DEPTH: usize = 32;

/// A name as the client gave it, which ComfyUI decodes once more, as a path below a folder; empty
/// for the folder itself. `None` when it leads elsewhere. Pure.
pub(crate) fn below(name: &str) -> Option<PathBuf> {
    exactly(&percent_decode_str(name).decode_utf8_lossy())
}

/// The same for a name that is decoded already.
pub(super) fn exactly(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') || name.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (parts.len() <= MAX_DEPTH).then(|| parts.iter().collect())
}

/// Whether a path below `root` leads out of it through a symbolic link. Only somebody at the
/// machine can make one.
pub(super) fn leads_out(root: &Path, path: &Path) -> bool {
    let Ok(root) = root.canonicalize() else { return false };
    let there = path.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok());
    // A link to nowhere is there and has no target.
    there.is_some_and(|there| there.canonicalize().map_or(true, |real| !real.starts_with(&root)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn names_stay_below_the_folder() {
        assert_eq!(below("workflows/a.json"), Some("workflows/a.json".into()));
        assert_eq!(below("a%2Fb"), Some("a/b".into()));
        assert_eq!(below("./a//b/../c/"), Some("a/c".into()));
        assert_eq!(below("."), Some(PathBuf::new()));
        assert_eq!(exactly("100%.json"), Some("100%.json".into()));
        for out in ["../x", "a/../../x", "/etc/passwd", "%2Fetc", "%2e%2e/x", "a\0b", "a%00"] {
            assert_eq!(below(out), None, "{out}");
        }
        assert_eq!(below(&"a/".repeat(MAX_DEPTH + 1)), None);
    }

    #[test]
    fn a_link_out_of_the_folder_is_seen() {
        let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let root = dir.path();
        std::fs::create_dir(root.join("own")).unwrap();
        std::os::unix::fs::symlink(other.path(), root.join("out")).unwrap();
        std::os::unix::fs::symlink(root.join("own"), root.join("in")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("dangling")).unwrap();
        assert!(leads_out(root, &root.join("out/a.json")));
        assert!(leads_out(root, &root.join("dangling")));
        assert!(!leads_out(root, &root.join("own/new/a.json")));
        assert!(!leads_out(root, &root.join("in/a.json")));
        assert!(!leads_out(&root.join("not yet"), &root.join("not yet/a")));
    }

    proptest! {
        #[test]
        fn whatever_is_given_stays_below(name in r"[a./%2eEfF0\\]{0,40}", odd in "\\PC{0,40}") {
            for name in [name, odd] {
                if let Some(path) = below(&name) {
                    let plain = |part| matches!(part, std::path::Component::Normal(_));
                    prop_assert!(path.components().all(plain), "{path:?}");
                }
            }
        }
    }
}
