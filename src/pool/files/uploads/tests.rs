use super::*;

fn place(name: &str) -> Place {
    Place::new(Folder::Input, "", name).unwrap()
}

async fn spooled(store: &Arc<Uploads>, content: &[u8]) -> Spooled {
    let mut spool = store.spool().await.unwrap();
    spool.write(content).await.unwrap();
    spool.finish().await.unwrap()
}

async fn put(store: &Arc<Uploads>, name: &str, content: &[u8]) -> Result<Named, StoreError> {
    let mut spool = store.spool().await?;
    spool.write(content).await?;
    let content = spool.finish().await?;
    store.name(&content, content.digest, &place(name), true)
}

fn read(store: &Uploads, name: &str) -> Option<Vec<u8>> {
    store.get(&place(name)).map(|held| std::fs::read(held.path).unwrap())
}

fn all_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let deep = |path: PathBuf| if path.is_dir() { all_files(&path) } else { vec![path] };
    entries.flat_map(deep).collect()
}

#[tokio::test]
async fn a_name_holds_its_content_over_a_restart_and_nobody_else_may_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("uploads");
    let store = Uploads::open(&root, 1000).unwrap();
    put(&store, "a.png", b"one").await.unwrap();
    put(&store, "b.png", b"one").await.unwrap();
    drop(store);
    let store = Uploads::open(&root, 1000).unwrap();
    assert_eq!(read(&store, "a.png").unwrap(), b"one");
    assert_eq!(store.bytes(), 3, "equal contents are kept once");
    assert_eq!(store.listed(&["image"]), ["a.png", "b.png"]);
    assert_eq!(store.listed(&["video"]), [""; 0]);
    for file in all_files(&root) {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn what_a_crash_leaves_between_content_and_name_is_cleared_away() {
    let directory = tempfile::tempdir().unwrap();
    let store = Uploads::open(directory.path(), 1000).unwrap();
    put(&store, "kept", b"kept").await.unwrap();
    // The content found its place, the name was never written.
    let orphan = spooled(&store, b"orphan").await;
    store.disk.keep_blob(orphan.path(), &orphan.digest).unwrap();
    // Another was still being written.
    std::mem::forget(spooled(&store, b"partial").await);
    assert_eq!(all_files(directory.path()).len(), 4);
    drop((orphan, store));
    let store = Uploads::open(directory.path(), 1000).unwrap();
    assert_eq!(all_files(directory.path()).len(), 2, "one name, one content");
    assert_eq!(read(&store, "kept").unwrap(), b"kept");
}

#[tokio::test]
async fn a_damaged_name_is_skipped_and_no_other_suffers() {
    let directory = tempfile::tempdir().unwrap();
    let store = Uploads::open(directory.path(), 1000).unwrap();
    for name in ["a", "b", "c", "d"] {
        put(&store, name, name.as_bytes()).await.unwrap();
    }
    let lost = store.get(&place("c")).unwrap().path;
    drop(store);
    let names: Vec<PathBuf> = all_files(&directory.path().join("names"));
    let of = |name: &str| {
        let wanted = format!("\"path\":\"{name}\"");
        names.iter().find(|file| std::fs::read_to_string(file).unwrap().contains(&wanted)).unwrap()
    };
    let (a, b, d) = (of("a"), of("b"), of("d"));
    std::fs::write(a, b"\0\xff{").unwrap();
    std::fs::copy(d, b).unwrap();
    std::fs::write(lost, b"").unwrap();
    let store = Uploads::open(directory.path(), 1000).unwrap();
    assert_eq!(store.newest(Folder::Input), ["d"]);
    assert_eq!(store.bytes(), 1);
    assert_eq!(all_files(directory.path()).len(), 2);
}

#[tokio::test]
async fn the_least_recently_used_makes_room_unless_an_open_job_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Uploads::open(directory.path(), 10).unwrap();
    put(&store, "old", b"1234").await.unwrap();
    put(&store, "older", b"5678").await.unwrap();
    let pins = store.pin(std::iter::once(place("old")));
    put(&store, "new", b"abcd").await.unwrap();
    assert!(store.has(&place("old")) && store.has(&place("new")) && !store.has(&place("older")));
    let more = store.pin(std::iter::once(place("new")));
    assert!(matches!(put(&store, "x", b"efgh").await, Err(StoreError::Full)));
    assert!(matches!(put(&store, "x", b"0123456789+").await, Err(StoreError::TooLarge)), "whole");
    drop((pins, more));
    put(&store, "x", b"0123456789").await.unwrap();
    assert_eq!(store.newest(Folder::Input), ["x"]);
    assert_eq!(all_files(directory.path()).len(), 2);
}

#[tokio::test]
async fn another_content_may_take_the_whole_room_of_the_old_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = Uploads::open(directory.path(), 10).unwrap();
    put(&store, "a", b"12345678").await.unwrap();
    put(&store, "a", b"abcdefgh").await.unwrap();
    assert_eq!(read(&store, "a").unwrap(), b"abcdefgh");
    assert_eq!(all_files(directory.path()).len(), 2);
}

#[tokio::test]
async fn a_taken_name_stays_and_an_equal_content_shares_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Uploads::open(directory.path(), 100).unwrap();
    put(&store, "a", b"one").await.unwrap();
    let (same, other) = (spooled(&store, b"one").await, spooled(&store, b"two").await);
    let named = |content: &Spooled| store.name(content, content.digest, &place("a"), false);
    assert!(matches!(named(&same), Ok(Named::Same(_))));
    assert!(matches!(named(&other), Ok(Named::Taken)));
    assert_eq!(read(&store, "a").unwrap(), b"one");
}
