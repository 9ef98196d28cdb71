//! Names of files as ComfyUI and Python read them.

use std::fs::Metadata;
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Splits ` [input]`, ` [output]`, ` [temp]` off a name.
pub fn split_annotation(name: &str) -> (&str, Option<&'static str>) {
    for folder in ["output", "input", "temp"] {
        let stripped = name.strip_suffix(']').and_then(|name| name.strip_suffix(folder));
        if let Some(stripped) = stripped.and_then(|name| name.strip_suffix('[')) {
            return (stripped.strip_suffix(' ').unwrap_or(stripped), Some(folder));
        }
    }
    (name, None)
}

/// `base/relative` with `.` and `..` resolved; none when that leaves `base`.
pub fn inside(base: &Path, relative: &str) -> Option<PathBuf> {
    if relative.contains('\0') {
        return None;
    }
    let mut path = PathBuf::new();
    for part in base.join(relative).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path.starts_with(base).then_some(path)
}

/// Time of the last change, in nanoseconds.
pub fn modified_ns(found: &Metadata) -> u128 {
    let modified = found.modified().unwrap_or(UNIX_EPOCH);
    modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// A name and its suffix with the dot, as `os.path.splitext` splits them.
pub fn split_suffix(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(dot) if dot > 0 => name.split_at(dot),
        _ => (name, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_do_not_leave_their_folder() {
        let base = Path::new("/data/in");
        assert_eq!(inside(base, "a/../b"), Some("/data/in/b".into()));
        assert_eq!(inside(base, "../inner"), None);
        assert_eq!(inside(base, "/etc/passwd"), None);
        assert_eq!(inside(base, "a\0"), None);
    }

    #[test]
    fn a_suffix_names_the_folder() {
        assert_eq!(split_annotation("a.png [temp]"), ("a.png", Some("temp")));
        assert_eq!(split_annotation("a.png"), ("a.png", None));
    }
}
