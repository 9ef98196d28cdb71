//! Writing so that it is there after a crash: beside the place, `fsync`, rename, `fsync` of the
//! folder. Folders are 0700, files 0600. Everything here blocks.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file on its way; gone again unless it is put in place.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    placed: bool,
}

impl Partial {
    /// A new file in `folder`, and its handle.
    pub(super) fn create(folder: &Path) -> io::Result<(Self, File)> {
        let path = folder.join(uuid::Uuid::new_v4().to_string());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((Self { path, placed: false }, file))
    }

    /// Puts the file, which its writer has synced, in place of whatever is there.
    pub(super) fn place(mut self, path: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, path)?;
        self.placed = true;
        sync_folder_of(path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.placed {
            // One that stays is removed at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes a whole file durably.
pub(super) fn write(partials: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (partial, mut file) = Partial::create(partials)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    partial.place(path)
}

/// Moves a file or folder durably.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    sync_folder_of(from)?;
    sync_folder_of(to)
}

/// Removes a file durably.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    sync_folder_of(path)
}

/// Makes a folder and those above it; says how many were made.
pub(super) fn make_folders(path: &Path) -> io::Result<usize> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|folder| folder.symlink_metadata().is_err()).collect();
    for folder in missing.iter().rev() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => sync_folder_of(folder)?,
        }
    }
    if path.is_dir() { Ok(missing.len()) } else { Err(ErrorKind::NotADirectory.into()) }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn folders_and_files_are_their_owners_alone() {
        let dir = TempDir::new().unwrap();
        let folder = dir.path().join("a/b");
        assert_eq!(make_folders(&folder).unwrap(), 2);
        assert_eq!(make_folders(&folder).unwrap(), 0);
        write(dir.path(), &folder.join("x"), b"1").unwrap();
        write(dir.path(), &folder.join("x"), b"2").unwrap();
        assert_eq!(std::fs::read(folder.join("x")).unwrap(), b"2");
        assert_eq!((mode(&folder), mode(&folder.join("x"))), (0o700, 0o600));
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_not_put_in_place_goes() {
        let dir = TempDir::new().unwrap();
        drop(Partial::create(dir.path()).unwrap());
        let (partial, _) = Partial::create(dir.path()).unwrap();
        assert!(partial.place(&dir.path().join("no/where")).is_err());
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(make_folders(&dir.path().join("file/sub")).is_err());
    }
}
