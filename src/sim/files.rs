//! The server's folders on disk: input, output, temp and user, in a directory of their own that
//! goes when the server goes, unless it was given one. Output files are bounded: the oldest make room.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::comfy::paths::{inside, modified_ns, split_annotation, split_suffix};

/// File name prefixes whose counters are remembered; beyond that they are read off the folder.
const MAX_PREFIXES: usize = 1000;
/// What names of uploaded files are tried before giving up.
const MAX_RENAMES: u32 = 10_000;

/// The folders of one server.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    /// Whether the directory goes with the server.
    own: bool,
    keep: usize,
    counters: Mutex<HashMap<PathBuf, u32>>,
    outputs: Mutex<VecDeque<PathBuf>>,
    /// Names of uploads are decided one at a time.
    naming: Mutex<()>,
}

impl Files {
    /// Makes the folders under `root`, which goes with the server if it is its `own`; at most `keep`
    /// output files will stay.
    pub(super) fn create(root: PathBuf, own: bool, keep: usize) -> io::Result<Self> {
        for folder in ["input", "output", "temp", "user", "partial", "web"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::write(root.join("web/index.html"), include_str!("page.html"))?;
        Ok(Self {
            root,
            own,
            keep: keep.max(1),
            counters: Mutex::default(),
            outputs: Mutex::default(),
            naming: Mutex::default(),
        })
    }

    /// Deletes everything that is the server's own.
    pub(super) fn remove(&self) {
        if !self.own {
            return;
        }
        // Nothing can be done about a directory that will not go; the system cleans its own.
        let _ = std::fs::remove_dir_all(&self.root);
    }

    /// A folder by name: `input`, `output`, `temp`, `user`, `partial`, `web`.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder that a client may name as `type`.
    pub(super) fn by_type(&self, name: &str) -> Option<PathBuf> {
        matches!(name, "input" | "output" | "temp").then(|| self.folder(name))
    }

    /// A path from a name with an optional ` [output]` suffix, `folder` being the default. None
    /// when it would leave its folder.
    pub(super) fn annotated(&self, name: &str, folder: &str) -> Option<PathBuf> {
        let (name, chosen) = split_annotation(name);
        let base = self.by_type(chosen.unwrap_or(folder))?;
        inside(&base, name).filter(|path| *path != base)
    }

    /// Tells one state of an input image from another.
    pub(super) fn image_stamp(&self, name: &str) -> String {
        let Some(path) = self.annotated(name, "input") else { return String::new() };
        let Ok(found) = std::fs::metadata(path) else { return String::new() };
        format!("{:x}-{:x}", modified_ns(&found), found.len())
    }

    /// The files at the top of a folder, by name.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = listing(&self.folder(folder))
            .into_iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// The files at the top of a folder, newest first.
    pub(super) fn newest(&self, folder: &str) -> Vec<String> {
        let mut found: Vec<(u128, String)> = listing(&self.folder(folder))
            .into_iter()
            .filter_map(|path| {
                let time = modified_ns(&path.metadata().ok()?);
                Some((time, path.file_name()?.to_str()?.to_owned()))
            })
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, name)| name).collect()
    }

    /// Where `SaveImage` puts its next file: path, file name, subfolder.
    pub(super) fn next_output(
        &self,
        folder: &str,
        prefix: &str,
    ) -> Result<(PathBuf, String, String), String> {
        let base = self.folder(folder);
        let outside = || "Saving image outside the output folder is not allowed.".to_owned();
        let full = inside(&base, prefix).filter(|full| *full != base).ok_or_else(outside)?;
        let directory = full.parent().unwrap_or(&base).to_owned();
        let stem = full.file_name().and_then(|name| name.to_str()).ok_or_else(outside)?;
        std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        let mut counters = self.counters.lock();
        if counters.len() >= MAX_PREFIXES {
            counters.clear();
        }
        let counter =
            counters.entry(full.clone()).or_insert_with(|| highest_counter(&directory, stem));
        *counter += 1;
        let name = format!("{stem}_{counter:05}_.png");
        let subfolder = directory.strip_prefix(&base).unwrap_or(Path::new(""));
        Ok((directory.join(&name), name, subfolder.to_string_lossy().into_owned()))
    }

    /// Notes a new output file and removes the oldest beyond the bound.
    pub(super) fn remember_output(&self, path: PathBuf) {
        let mut outputs = self.outputs.lock();
        outputs.push_back(path);
        while outputs.len() > self.keep
            && let Some(oldest) = outputs.pop_front()
        {
            // It may have been removed by hand.
            let _ = std::fs::remove_file(oldest);
        }
    }

    /// A file of this size without content, for downloads: sparse, so that it takes no disk.
    pub(super) fn sparse(&self, name: &str, size: u64) -> io::Result<()> {
        let path = self.annotated(name, "output").ok_or(io::ErrorKind::InvalidInput)?;
        File::create(path)?.set_len(size)
    }

    /// Decides under which name an upload is kept, with the renaming rules: the same name with
    /// the same content is reused, with another content becomes `name (1).ext`. `save` is called
    /// with the path unless the content is there already.
    pub(super) fn place(
        &self,
        upload: &Upload,
        save: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<String> {
        let _one_at_a_time = self.naming.lock();
        std::fs::create_dir_all(&upload.directory)?;
        let mut path = upload.path.clone();
        let mut name = upload.name.clone();
        let (stem, suffix) = split_suffix(&upload.name);
        let mut tries = 1;
        while !upload.overwrite && path.exists() {
            if same_content(&path, &upload.spooled)? {
                return Ok(name);
            }
            if tries > MAX_RENAMES {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            name = format!("{stem} ({tries}){suffix}");
            path = upload.directory.join(&name);
            tries += 1;
        }
        save(&path)?;
        Ok(name)
    }
}

/// An upload whose place is to be decided.
#[derive(Debug)]
pub(super) struct Upload {
    /// The name the client gave.
    pub(super) name: String,
    /// Where it would go.
    pub(super) path: PathBuf,
    /// The folder of renamed copies.
    pub(super) directory: PathBuf,
    /// Where its content is so far.
    pub(super) spooled: PathBuf,
    /// Whether a file of that name is replaced.
    pub(super) overwrite: bool,
}

fn listing(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

fn highest_counter(directory: &Path, stem: &str) -> u32 {
    let number = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_prefix(stem)?.strip_prefix('_')?.to_owned();
        name.split('_').next()?.parse::<u32>().ok()
    };
    listing(directory).into_iter().filter_map(number).max().unwrap_or_default()
}

/// Whether two files have the same bytes; a length tells most of them apart unread.
fn same_content(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let mut left = one.metadata()?.len();
    if left != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut chunk, mut other_chunk) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        one.read_exact(&mut chunk[..size])?;
        other.read_exact(&mut other_chunk[..size])?;
        if chunk[..size] != other_chunk[..size] {
            return Ok(false);
        }
        left -= size as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(keep: usize) -> (tempfile::TempDir, Files) {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::create(directory.path().join("sim"), true, keep).unwrap();
        (directory, files)
    }

    #[test]
    fn outputs_are_counted_per_prefix_and_go_on_after_a_restart() {
        let (directory, files) = files(10);
        for expected in ["a_00001_.png", "a_00002_.png"] {
            let (path, name, subfolder) = files.next_output("output", "sub/a").unwrap();
            assert_eq!((name.as_str(), subfolder.as_str()), (expected, "sub"));
            std::fs::write(path, "x").unwrap();
        }
        let again = Files::create(directory.path().join("sim"), true, 10).unwrap();
        assert_eq!(again.next_output("output", "sub/a").unwrap().1, "a_00003_.png");
        assert!(files.next_output("output", "../../a").is_err());
    }

    #[test]
    fn the_oldest_outputs_make_room() {
        let (_directory, files) = files(3);
        for _ in 0..10 {
            let (path, ..) = files.next_output("output", "a").unwrap();
            std::fs::write(&path, "x").unwrap();
            files.remember_output(path);
        }
        assert_eq!(files.names("output"), ["a_00008_.png", "a_00009_.png", "a_00010_.png"]);
    }
}
