//! `state_dir/cookie.key`: 32 random bytes, made once, that sign sessions when the configuration
//! names no key.
//!
//! The key is written to a file of its own and then linked to its name, which exactly one of two
//! racing processes can do; both read what is there afterwards. Nobody ever sees half a key.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rand::TryRngCore;
use rand::rngs::OsRng;

use super::{StateError, make_directory};

const FILE: &str = "cookie.key";

/// The key in `state_dir`, both made when missing. Its mode is set back to 0600.
pub fn load_or_make_cookie_key(state_dir: &Path) -> Result<[u8; 32], StateError> {
    make_directory(state_dir)?;
    let path = state_dir.join(FILE);
    let failed = |cause| StateError::directory(&path, cause);
    match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => make(&path).map_err(failed)?,
        other => drop(other.map_err(failed)?),
    }
    let mut file = File::open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    }
    let mut key = [0; 32];
    if metadata.len() != key.len() as u64 {
        return Err(StateError::CookieKey { path, length: metadata.len() });
    }
    file.read_exact(&mut key).map_err(failed)?;
    Ok(key)
}

/// Makes the key unless somebody else does so first.
fn make(path: &Path) -> io::Result<()> {
    let mut key = [0; 32];
    OsRng.try_fill_bytes(&mut key).map_err(io::Error::other)?;
    let mut name = [0; 8];
    OsRng.try_fill_bytes(&mut name).map_err(io::Error::other)?;
    let draft = path.with_extension(format!("draft-{}", hex::encode(name)));
    let linked = write_private(&draft, &key).and_then(|()| std::fs::hard_link(&draft, path));
    let removed = std::fs::remove_file(&draft);
    match linked {
        Ok(()) => removed,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        // A file system without hard links; a racer may then meet the file before its bytes.
        Err(error) if error.kind() == ErrorKind::Unsupported || is_not_permitted(&error) => {
            write_private(path, &key)
        }
        Err(error) => Err(error),
    }
}

/// EPERM: what Linux says when a file system has no hard links.
fn is_not_permitted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(1)
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
