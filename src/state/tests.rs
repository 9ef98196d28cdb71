//! The store: what is written comes back, locks and damage are met with one clear line.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use tempfile::TempDir;

use super::*;
use crate::affinity::Seconds;
use crate::identity::ClientKey;

fn key(n: u8) -> ClientKey {
    ClientKey::of_address([10, 0, 0, n].into())
}

fn record(backend: &str, last_used: u32) -> PlacementRecord {
    PlacementRecord { backend: backend.to_owned(), last_used: Seconds(last_used), by_hand: false }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A directory with a state of a few hundred placements and a setting, closed again.
fn filled() -> TempDir {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    let clients = (0..500u16).map(|n| ClientKey::of_user(&n.to_string()));
    let changes: Vec<_> = clients.map(|key| (key, Some(record("comfy-1", 100)))).collect();
    state.save_placements(&changes).unwrap();
    state.set_setting("strategy", &"least_wait").unwrap();
    dir
}

#[test]
fn placements_come_back_oldest_first_and_without_the_expired() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    let by_hand = PlacementRecord { by_hand: true, ..record("comfy-2", 200) };
    let changes = [
        (key(1), Some(record("comfy-1", 300))),
        (key(2), Some(by_hand.clone())),
        (key(3), Some(record("comfy-1", 99))),
        (key(4), Some(record("comfy-1", 250))),
    ];
    state.save_placements(&changes).unwrap();
    state.save_placements(&[(key(4), None)]).unwrap();
    drop(state);
    let state = State::open(dir.path()).unwrap();
    let expected = vec![(key(2), by_hand), (key(1), record("comfy-1", 300))];
    assert_eq!(state.load_placements(10, Seconds(100)).unwrap(), expected);
    assert_eq!(state.load_placements(1, Seconds(100)).unwrap(), expected[1..]);
    let all = state.load_placements(10, Seconds(0)).unwrap();
    assert_eq!(all.len(), 2, "the expired one was removed: {all:?}");
}

#[test]
fn rates_and_settings_come_back() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    let rate = Rate { seconds_per_prompt: 12.5, prompts: 7, longest_prompt: 80.0 };
    state.save_rates(&[("comfy-1", Some(rate)), ("comfy-2", Some(rate))]).unwrap();
    state.save_rates(&[("comfy-2", None)]).unwrap();
    state.set_setting("verbose", &true).unwrap();
    drop(state);
    let state = State::open(dir.path()).unwrap();
    assert_eq!(state.load_rates().unwrap(), vec![("comfy-1".to_owned(), rate)]);
    assert_eq!(state.setting::<bool>("verbose").unwrap(), Some(true));
    assert_eq!(state.setting::<u32>("verbose").unwrap(), None);
    assert_eq!(state.setting::<bool>("missing").unwrap(), None);
}

#[test]
fn the_directory_and_its_files_are_private() {
    let dir = TempDir::new().unwrap();
    let inner = dir.path().join("a/state");
    let _state = State::open(&inner).unwrap();
    load_or_make_cookie_key(&inner).unwrap();
    assert_eq!(mode(&inner), 0o700);
    assert_eq!(mode(&inner.join(FILE)), 0o600);
    assert_eq!(mode(&inner.join("cookie.key")), 0o600);
}

#[test]
fn a_second_gateway_is_told_who_holds_the_directory() {
    let dir = TempDir::new().unwrap();
    let first = State::open(dir.path()).unwrap();
    let error = State::open(dir.path()).err().unwrap();
    assert!(matches!(error, StateError::InUse(_)), "{error}");
    let line = error.to_string();
    assert!(line.contains("another comfygate uses this state_dir"), "{line}");
    assert!(line.contains(dir.path().to_str().unwrap()), "{line}");
    drop(first);
    State::open(dir.path()).unwrap();
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = State::open(&file.join("state")).err().unwrap().to_string();
    assert!(error.contains("file/state") && error.contains("writable"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    state.set_setting(SCHEMA_KEY, &(SCHEMA + 1)).unwrap();
    drop(state);
    let error = State::open(dir.path()).err().unwrap();
    assert!(matches!(error, StateError::Newer { found, .. } if found == SCHEMA + 1), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_file_is_kept_aside_and_the_start_goes_on() {
    let whole = std::fs::read(filled().path().join(FILE)).unwrap();
    let mut torn = whole.clone();
    torn.truncate(whole.len() / 2);
    let damages = [b"not a database at all".to_vec(), vec![0; 4096], whole[..700].to_vec(), torn];
    for (case, damage) in damages.iter().enumerate() {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join(FILE), damage).unwrap();
        let state = State::open(dir.path()).unwrap_or_else(|error| panic!("case {case}: {error}"));
        let aside = state.set_aside().unwrap_or_else(|| panic!("case {case}: nothing aside"));
        assert_eq!(&std::fs::read(aside).unwrap(), damage, "case {case}");
        assert_eq!(state.load_placements(10, Seconds(0)).unwrap(), Vec::new());
        state.save_placements(&[(key(1), Some(record("comfy-1", 1)))]).unwrap();
    }
}

/// Bytes that rot in the middle of the file: whatever opens, opens without a panic and reads as
/// what was written, and whatever does not is kept aside.
#[test]
fn a_rotten_byte_anywhere_neither_panics_nor_lies() {
    let whole = std::fs::read(filled().path().join(FILE)).unwrap();
    for step in 0..48 {
        let at = step * whole.len() / 48 + step * 7 % 61;
        let mut rotten = whole.clone();
        for byte in &mut rotten[at..(at + 16).min(whole.len())] {
            *byte ^= 0xA5;
        }
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join(FILE), &rotten).unwrap();
        let state = State::open(dir.path()).unwrap_or_else(|error| panic!("at {at}: {error}"));
        let placements = state.load_placements(1000, Seconds(0)).unwrap();
        let good = |(_, kept): &(ClientKey, PlacementRecord)| *kept == record("comfy-1", 100);
        assert!(placements.iter().all(good), "at {at}");
        let complete = placements.len() == 500;
        assert_eq!(state.set_aside().is_none(), complete, "at {at}: {} kept", placements.len());
    }
}

/// `Durability::Immediate`: what a copy of the file holds while the process lives is what it would
/// hold after `kill -9`.
#[test]
fn what_was_saved_is_in_the_file_before_it_is_closed() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    state.save_placements(&[(key(1), Some(record("comfy-1", 100)))]).unwrap();
    let after = TempDir::new().unwrap();
    std::fs::copy(dir.path().join(FILE), after.path().join(FILE)).unwrap();
    let reopened = State::open(after.path()).unwrap();
    assert_eq!(reopened.set_aside(), None);
    assert_eq!(reopened.load_placements(10, Seconds(0)).unwrap().len(), 1);
}

#[test]
fn racing_makers_of_the_cookie_key_get_the_same_one() {
    let dir = TempDir::new().unwrap();
    let start = Barrier::new(8);
    let keys: Vec<[u8; 32]> = std::thread::scope(|scope| {
        let make = || {
            start.wait();
            load_or_make_cookie_key(dir.path()).unwrap()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|key| *key == keys[0] && *key != [0; 32]));
    assert_eq!(load_or_make_cookie_key(dir.path()).unwrap(), keys[0]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "drafts are gone");
}

#[test]
fn a_cookie_key_of_another_length_is_named_with_its_cure() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("cookie.key"), "short").unwrap();
    let error = load_or_make_cookie_key(dir.path()).err().unwrap().to_string();
    assert!(error.contains("5 bytes instead of 32; remove it"), "{error}");
    assert_eq!(mode(&dir.path().join("cookie.key")), 0o600, "tightened on the way");
}

#[test]
fn a_released_state_can_be_opened_by_another_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap();
    state.set_setting("a", &1).unwrap();
    state.release();
    assert!(matches!(state.setting::<u8>("a"), Err(StateError::Released)));
    {
        let other = State::open(dir.path()).unwrap();
        assert_eq!(other.setting::<u8>("a").unwrap(), Some(1));
        assert!(state.reclaim().is_err(), "the other has it");
        other.set_setting("a", &2).unwrap();
    }
    state.reclaim().unwrap();
    assert_eq!(state.setting::<u8>("a").unwrap(), Some(2));
    assert!(!state.is_released());
}
