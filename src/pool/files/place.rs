//! Where a file is, as clients name it: one of three folders and a path in it.
//!
//! A [`Place`] never leaves its folder, is at most [`MAX_PATH`] bytes long and has no control
//! characters, so that it can be a key, a form field and part of a query as it is.

use std::path::Path;

use crate::comfy::paths::{inside, split_annotation, split_suffix};

/// Bytes of a path at most.
pub const MAX_PATH: usize = 1024;
/// Bytes of one name at most, as file systems have it.
const MAX_NAME: usize = 255;
/// Characters of a suffix that is kept when a file gets another name.
const MAX_SUFFIX: usize = 16;

/// One of ComfyUI's folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Folder {
    /// What clients upload.
    Input,
    /// What jobs save.
    Output,
    /// What jobs show.
    Temp,
}

impl Folder {
    /// The folder of a name.
    pub fn of(name: &str) -> Option<Self> {
        [Self::Input, Self::Output, Self::Temp].into_iter().find(|folder| folder.name() == name)
    }

    /// Its name in queries and forms.
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Temp => "temp",
        }
    }
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    folder: Folder,
    path: Box<str>,
}

impl Place {
    /// A file in a subfolder; `None` when it would leave the folder or cannot be a name.
    pub fn new(folder: Folder, subfolder: &str, name: &str) -> Option<Self> {
        let last = name.rsplit('/').next().unwrap_or_default();
        if subfolder.len() + name.len() > MAX_PATH || matches!(last, "" | "." | "..") {
            return None;
        }
        let root = Path::new("/f");
        let path = inside(root, &format!("./{subfolder}/{name}"))?;
        let path = path.strip_prefix(root).ok()?.to_str()?;
        let fine = ![subfolder, name].iter().any(|part| part.starts_with('/'));
        (fine && path.split('/').all(is_name)).then(|| Self { folder, path: path.into() })
    }

    /// A file as prompts name it: `sub/name [output]`, `folder` being the default.
    pub fn annotated(text: &str, folder: Folder) -> Option<Self> {
        let (name, chosen) = split_annotation(text);
        Self::new(chosen.and_then(Folder::of).unwrap_or(folder), "", name)
    }

    /// The folder.
    pub fn folder(&self) -> Folder {
        self.folder
    }

    /// The path in the folder, slashes forward.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path without the file's name, possibly empty.
    pub fn subfolder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(subfolder, _)| subfolder)
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The file's suffix with the dot, when it is a plain and short one.
    pub fn suffix(&self) -> &str {
        let (_, suffix) = split_suffix(self.name());
        let plain = suffix.chars().skip(1).all(|c| c.is_ascii_alphanumeric());
        if plain && suffix.len() <= MAX_SUFFIX { suffix } else { "" }
    }

    /// `name (number).ext` in the same subfolder.
    pub fn numbered(&self, number: u32) -> Option<Self> {
        let (stem, suffix) = split_suffix(self.name());
        Self::new(self.folder, self.subfolder(), &format!("{stem} ({number}){suffix}"))
    }

    /// As prompts name it: `sub/name [output]`.
    pub fn to_annotated(&self) -> String {
        format!("{} [{}]", self.path, self.folder.name())
    }
}

/// Whether this can be one name: a server on Windows must not take a part of it for a way up.
fn is_name(part: &str) -> bool {
    let length = (1..=MAX_NAME).contains(&part.len());
    length && !part.chars().any(char::is_control) && !part.split('\\').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(subfolder: &str, name: &str) -> Option<String> {
        Place::new(Folder::Input, subfolder, name).map(|place| place.path().to_owned())
    }

    #[test]
    fn a_place_stays_in_its_folder() {
        assert_eq!(path("", "a.png").as_deref(), Some("a.png"));
        assert_eq!(path("./x//y/", "a.png").as_deref(), Some("x/y/a.png"));
        assert_eq!(path("x", "../a.png").as_deref(), Some("a.png"));
        for (subfolder, name) in [
            ("../x", "a"),
            ("/f", "a"),
            ("", "/a"),
            ("x", "../../a"),
            ("", ""),
            ("x", "."),
            ("", "a\n"),
            ("", "a\0"),
            ("..\\x", "a"),
            ("x", "a/"),
        ] {
            assert_eq!(path(subfolder, name), None, "{subfolder:?} {name:?}");
        }
        assert_eq!(path("", &"x".repeat(256)), None);
    }

    #[test]
    fn a_place_tells_its_parts() {
        let place = Place::annotated("s/t/a.b.png [temp]", Folder::Input).unwrap();
        assert_eq!((place.folder(), place.subfolder()), (Folder::Temp, "s/t"));
        assert_eq!((place.name(), place.suffix()), ("a.b.png", ".png"));
        assert_eq!(place.numbered(2).unwrap().path(), "s/t/a.b (2).png");
        assert_eq!(place.to_annotated(), "s/t/a.b.png [temp]");
    }

    proptest! {
        #[test]
        fn any_words_give_a_safe_place_or_none(sub in "[a./\\\\\0 ]{0,12}", name in ".{0,12}") {
            if let Some(place) = Place::new(Folder::Temp, &sub, &name) {
                prop_assert!(place.path().split('/').all(|part| part != ".." && !part.is_empty()));
                let again = Place::new(Folder::Temp, place.subfolder(), place.name());
                prop_assert_eq!(again, Some(place));
            }
        }
    }
}
