//! Real files: what is written comes back, whatever became of the files.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Three open jobs, one of them moved, and seven finished ones.
fn filled() -> TempDir {
    let dir = TempDir::new().unwrap();
    fill(dir.path());
    dir
}

fn fill(dir: &Path) {
    let (journal, _) = open(dir);
    let tickets: Vec<_> = (1..=10).map(|n| journal.write(accepted(n, 3000))).collect();
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    journal.write(moved(10, Phase::Running(BackendId(4)), 2)).wait().unwrap();
    for n in [3, 1, 2, 4, 5, 6, 7] {
        journal.write(ended(n, 2000)).wait().unwrap();
    }
}

fn check_filled(dir: &Path) {
    let (journal, restored) = open(dir);
    check(&journal, &restored);
    assert_eq!(restored.damaged, 0);
}

fn check(journal: &Journal, restored: &Restored) {
    assert_eq!(numbers(&restored.open), [(8, 3000), (9, 3000), (10, 3000)].into());
    assert_eq!(restored.next_job_id, JobId(11));
    assert_eq!(restored.counter, 11);
    assert_eq!(restored.finished, 7);
    let order: Vec<u64> = journal.finished().iter().map(|finished| finished.id.0).collect();
    assert_eq!(order, [3, 1, 2, 4, 5, 6, 7]);
    for n in 1..=7 {
        assert_eq!(journal.entry_blocking(JobId(n)), Some(entry(n, 2000)));
    }
}

/// The files of the segments, `open` or `done`, the oldest first.
fn segments(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(dir.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let is_meant = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    let mut paths: Vec<_> = names.filter(is_meant).collect();
    paths.sort();
    paths
}

#[test]
fn an_open_job_comes_back_as_it_was() {
    let dir = filled();
    let (_journal, restored) = open(dir.path());
    let open = &restored.open[2];
    let kept = open.kept(id_of);
    assert_eq!((kept.phase, kept.attempts), (Phase::Running(BackendId(4)), 2));
    assert_eq!(kept.marks.strikes, 2);
    assert_eq!(open.remote_id.as_deref(), Some("r10"));
    assert_eq!(open.fingerprint, [10; 32]);
    assert!(kept.reply.starts_with(b"{\"prompt_id\""));
    assert_eq!(format!("{:?}", kept.job), format!("{:?}", job(10, 3000)));
    assert_eq!(restored.open[0].kept(id_of).phase, Phase::Waiting);
}

#[test]
fn a_finished_job_comes_back_as_it_was() {
    let dir = filled();
    let before = {
        let (journal, _) = open(dir.path());
        journal.finished()
    };
    let (journal, restored) = open(dir.path());
    check(&journal, &restored);
    assert_eq!(journal.finished(), before);
    let finished = journal.find(&prompt_id(1)).unwrap();
    assert_eq!((finished.owner.clone(), finished.number), (owner(1), 1.1));
    assert_eq!(finished.outcome, Outcome::Failed { error: "out of memory".to_owned() });
    assert_eq!(finished.backend.as_deref(), Some("comfy-2"));
    assert_eq!(finished.summary, "summary 1");
    assert_eq!((finished.attempts, finished.run_seconds), (1, Some(1.5)));
    assert_eq!(finished.created_ms, 1_700_000_000_001);
    assert!(journal.find(&prompt_id(8)).is_none(), "it is open");
    assert_eq!(journal.newest(2).iter().map(|job| job.id.0).collect::<Vec<_>>(), [7, 6]);
}

#[tokio::test]
async fn long_replies_and_entries_are_read_from_the_disk() {
    let dir = TempDir::new().unwrap();
    {
        let (journal, _) = open(dir.path());
        let Change::Accepted(mut long) = accepted(1, 10) else { unreachable!() };
        long.reply = vec![b'r'; 9000].into();
        journal.write(Change::Accepted(long)).await.unwrap();
        journal.write(accepted(2, 10)).await.unwrap();
        journal.write(ended(1, 500)).await.unwrap();
        journal.write(ended(2, 0)).await.unwrap();
    }
    let (journal, _) = open(dir.path());
    assert_eq!(journal.reply(JobId(1)).await.unwrap(), vec![b'r'; 9000]);
    assert!(journal.reply(JobId(2)).await.unwrap().starts_with(b"{\"prompt_id\""));
    let entries = journal.entries(vec![JobId(2), JobId(1), JobId(3)]).await;
    assert_eq!(entries, [None, Some(entry(1, 500)), None]);
}

#[test]
fn deleted_jobs_stay_deleted() {
    let dir = filled();
    {
        let (journal, _) = open(dir.path());
        let (count, ticket) = journal.delete(&[JobId(1), JobId(8), JobId(99)]);
        assert_eq!(count, 1, "open and unknown ones are not meant");
        ticket.wait().unwrap();
        assert!(journal.get(JobId(1)).is_none() && journal.find(&prompt_id(1)).is_none());
        let (count, ticket) = journal.clear(|job| job.owner.key == owner(2).key);
        assert_eq!(count, 1);
        ticket.wait().unwrap();
    }
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    let (journal, restored) = open(dir.path());
    assert_eq!((restored.finished, restored.open.len()), (5, 3));
    assert_eq!(journal.entry_blocking(JobId(1)), None);
    journal.clear(|_| true).1.wait().unwrap();
    drop(journal);
    let (_journal, restored) = open(dir.path());
    assert_eq!((restored.finished, restored.open.len()), (0, 3));
    assert_eq!(restored.next_job_id, JobId(11));
}

#[test]
fn the_oldest_go_when_there_are_too_many() {
    let dir = TempDir::new().unwrap();
    let few = Bounds { max_jobs: 20, ..Bounds::default() };
    let (journal, _) = open_with(dir.path(), few, 20_000);
    for n in 1..=200 {
        journal.write(accepted(n, 1000)).wait().unwrap();
        journal.write(ended(n, 1000)).wait().unwrap();
    }
    journal.close();
    let ids: Vec<u64> = journal.finished().iter().map(|job| job.id.0).collect();
    assert_eq!(ids, (181..=200).collect::<Vec<_>>());
    let bytes: u64 =
        segments(dir.path(), "").iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(bytes < (2 << 20) + 12 * 20_000, "dead segments are removed: {bytes}");
    drop(journal);
    let small = Bounds { max_bytes: 5_000, ..Bounds::default() };
    let (journal, restored) = open_with(dir.path(), small, 20_000);
    assert_eq!(restored.finished, 20);
    journal.close();
    assert_eq!(journal.usage().finished, 3);
    drop(journal);
    let young = Bounds { max_age: Duration::from_mins(1), ..Bounds::default() };
    let (journal, _) = Journal::open_sized(dir.path(), young, names(), SEGMENT).unwrap();
    journal.close();
    let in_2027 = u128::from(NOW_MS) > std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    assert_eq!(journal.usage().finished, if in_2027 { 3 } else { 0 });
}

#[test]
fn the_files_are_private_and_one_process_alone_has_them() {
    let dir = TempDir::new().unwrap();
    let state_dir = dir.path().join("a/state");
    let (journal, _) = open(&state_dir);
    journal.write(accepted(1, 10)).wait().unwrap();
    journal.write(ended(1, 10)).wait().unwrap();
    let error = Journal::open(&state_dir, Bounds::default(), names()).err().unwrap();
    assert!(matches!(error, JournalError::InUse(_)), "{error}");
    let line = error.to_string();
    assert!(line.contains("another comfygate uses this state_dir"), "{line}");
    assert!(line.contains(state_dir.to_str().unwrap()) && line.contains("stop it"), "{line}");
    journal.close();
    assert!(journal.write(accepted(2, 10)).wait().is_err());
    let (_second, restored) = open(&state_dir);
    assert_eq!(restored.finished, 1);
    assert_eq!(mode(&state_dir), 0o700);
    assert_eq!(mode(&state_dir.join("journal")), 0o700);
    assert_eq!(mode(&state_dir.join(INDEX)), 0o600);
    for path in segments(&state_dir, "") {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = Journal::open(&file.join("state"), Bounds::default(), names()).err().unwrap();
    assert!(error.to_string().contains("writable"), "{error}");
}

#[test]
fn what_a_newer_version_wrote_is_refused_and_left_alone() {
    let dir = filled();
    let path = &segments(dir.path(), "open")[0];
    let mut bytes = fs::read(path).unwrap();
    bytes[8] = 9;
    let sum = crc32fast::hash(&bytes[..32]);
    bytes[32..36].copy_from_slice(&sum.to_le_bytes());
    fs::write(path, &bytes).unwrap();
    let error = Journal::open(dir.path(), Bounds::default(), names()).err().unwrap();
    assert!(matches!(error, JournalError::Newer { found: 9, .. }), "{error}");
    assert_eq!(fs::read(path).unwrap(), bytes);
}

#[test]
fn without_its_index_the_journal_is_whole() {
    let dir = filled();
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    check_filled(dir.path());
    check_filled(dir.path());
}

/// Whatever has become of the index: cut, flipped, grown, or of another journal.
#[test]
fn a_damaged_index_is_made_again() {
    let good = fs::read(filled().path().join(INDEX)).unwrap();
    let other = filled();
    let mut damages = vec![
        b"not a database".to_vec(),
        vec![0; 8192],
        Vec::new(),
        good[..5000].to_vec(),
        good[..good.len() - 1].to_vec(),
        [&good[..], b"tail"].concat(),
        fs::read(other.path().join(INDEX)).unwrap(),
    ];
    for at in (0..good.len()).step_by(good.len() / 60) {
        let mut flipped = good.clone();
        let end = (at + 40).min(good.len());
        flipped[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
        damages.push(flipped);
    }
    for (case, damage) in damages.into_iter().enumerate() {
        let dir = filled();
        fs::write(dir.path().join(INDEX), damage).unwrap();
        let (journal, restored) = open(dir.path());
        check(&journal, &restored);
        assert_eq!(restored.damaged, 0, "case {case}");
    }
}

/// What stands after the last record was never acknowledged, whatever it is.
#[test]
fn no_tail_prevents_the_start_or_costs_a_job() {
    let dir = filled();
    for prefix in ["open", "done"] {
        let path = segments(dir.path(), prefix).pop().unwrap();
        let good = fs::read(&path).unwrap();
        let record = &good[64..][..200];
        let mut half_flipped = record.to_vec();
        half_flipped[100] ^= 1;
        let tails =
            [&b"x"[..], &[0; 10_000], &[255; 77], &record[..150], &half_flipped, &good[..64]];
        for tail in tails {
            fs::write(&path, [&good[..], tail].concat()).unwrap();
            check_filled(dir.path());
            assert!(fs::read(&path).unwrap().starts_with(&good));
        }
        fs::write(&path, &good).unwrap();
    }
}

/// Rot in the middle costs the records it hits and no others.
#[test]
fn damage_costs_only_what_it_hits() {
    let dir = filled();
    let path = segments(dir.path(), "done").pop().unwrap();
    let good = fs::read(&path).unwrap();
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    for step in 0..40 {
        let at = 64 + step * (good.len() - 64) / 40;
        let mut rotten = good.clone();
        rotten[at] ^= 0x10;
        let copy = TempDir::new().unwrap();
        fs::create_dir(copy.path().join("journal")).unwrap();
        for name in segments(dir.path(), "") {
            fs::copy(&name, copy.path().join("journal").join(name.file_name().unwrap())).unwrap();
        }
        fs::write(copy.path().join("journal").join(path.file_name().unwrap()), &rotten).unwrap();
        let (journal, restored) = open(copy.path());
        assert_eq!(restored.finished, 6, "flipped at {at}");
        assert!(restored.damaged > 0 || restored.finished == 6);
        assert_eq!(
            restored.open.len() + restored.finished,
            10 - usize::from(restored.open.len() == 3)
        );
        for finished in journal.finished() {
            let n = finished.id.0;
            assert_eq!(journal.entry_blocking(JobId(n)), Some(entry(n, 2000)), "flipped at {at}");
        }
    }
}

/// An entry that rotted since it was written is none, rather than a wrong one.
#[test]
fn a_rotten_entry_is_not_served() {
    let dir = filled();
    let (journal, _) = open(dir.path());
    let path = segments(dir.path(), "done").remove(0);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let at = fs::read(&path).unwrap().windows(50).position(|w| w == &entry(2, 2000)[..50]).unwrap();
    file.write_all_at(b"rot", at as u64 + 60).unwrap();
    assert_eq!(journal.entry_blocking(JobId(2)), None);
    assert_eq!(journal.entry_blocking(JobId(1)), Some(entry(1, 2000)));
}

#[test]
fn secrets_are_gone_once_the_job_has_ended() {
    let dir = TempDir::new().unwrap();
    let with_secret = |n: u64| {
        let body = format!("{{\"extra_data\":{{\"api_key_comfy_org\":\"hush-{n}\"}}}}");
        let Change::Accepted(accepted) = accepted(n, 0) else { unreachable!() };
        let job = Arc::new(Job { body: body.into(), ..(*accepted.job).clone() });
        Change::Accepted(Accepted { job, ..accepted })
    };
    let holds = |needle: &str| {
        let files = segments(dir.path(), "").into_iter().chain([dir.path().join(INDEX)]);
        let mut bytes = files.filter_map(|path| fs::read(path).ok());
        bytes.any(|bytes| memchr::memmem::find(&bytes, needle.as_bytes()).is_some())
    };
    let (journal, _) = open(dir.path());
    for n in 1..=3 {
        journal.write(with_secret(n)).wait().unwrap();
    }
    assert!(holds("hush-1") && holds("hush-2"));
    journal.write(ended(1, 100)).wait().unwrap();
    journal.write(ended(2, 100)).wait().unwrap();
    journal.close();
    assert!(!holds("hush-1") && !holds("hush-2"));
    assert!(holds("hush-3"), "it is needed to run again");
    drop(journal);
    let (journal, restored) = open(dir.path());
    assert_eq!((restored.open.len(), restored.finished, restored.damaged), (1, 2, 0));
    assert!(restored.open[0].job.body.ends_with(b"\"hush-3\"}}"));
    drop(journal);
}

#[test]
fn numbers_are_not_given_away_twice_even_when_nothing_is_left() {
    let dir = TempDir::new().unwrap();
    for round in 0..5u64 {
        let (journal, restored) = open_with(dir.path(), Bounds::default(), 1000);
        assert_eq!(restored.next_job_id, JobId(round * 3 + 1));
        for n in 1..=3 {
            let id = round * 3 + n;
            journal.write(accepted(id, 2000)).wait().unwrap();
            journal.write(ended(id, 2000)).wait().unwrap();
        }
        journal.clear(|_| true).1.wait().unwrap();
    }
}

/// `EXT4` and its like reserve room when a file grows; a small tmpfs says "full" at once.
#[test]
fn a_full_file_system_is_met_with_clear_words_and_left_again() {
    let dir = TempDir::new().unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"])
        .arg(dir.path())
        .output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        return println!("skipped: this user may not mount a tmpfs");
    }
    let (journal, _) = open(dir.path());
    let refused = |n| journal.write(accepted(n, 500_000)).wait().err().map(|why| (n, why));
    let (full, reason) = (1..100).find_map(refused).unwrap();
    assert!(reason.to_string().contains("No space left on device"), "{reason}");
    // Running jobs end, into the reserve.
    journal.write(ended(1, 200_000)).wait().unwrap();
    let ends: Vec<_> = (2..full).map(|n| journal.write(ended(n, 100))).collect();
    assert!(ends.into_iter().all(|ticket| ticket.wait().is_ok()));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while journal.health().is_err() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let recovered = journal.health();
    let ticket = journal.write(accepted(300, 500_000)).wait();
    let ended = journal.write(ended(300, 100)).wait();
    drop(journal);
    let after =
        Journal::open(dir.path(), Bounds { max_age: Duration::MAX, ..Bounds::default() }, names());
    let counts = after.as_ref().map(|(_, restored)| (restored.open.len(), restored.finished));
    let counts = counts.map_err(ToString::to_string);
    drop(after);
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    assert_eq!((recovered, ticket, ended), (Ok(()), Ok(()), Ok(())), "full at {full}");
    assert_eq!(counts, Ok((0, full as usize)));
}

#[test]
fn a_journal_that_was_given_away_is_taken_up_again_with_what_the_other_wrote() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = open(dir.path());
    journal.write(accepted(1, 1000)).wait().unwrap();
    journal.write(accepted(2, 1000)).wait().unwrap();
    journal.write(ended(1, 500)).wait().unwrap();
    journal.close();
    assert!(journal.write(accepted(3, 1000)).wait().is_err(), "it is closed");
    assert!(journal.write(ended(2, 100)).wait().is_err());
    assert_eq!(journal.finished().len(), 1, "what was refused has not happened");
    {
        let (other, restored) = open(dir.path());
        assert_eq!((restored.open.len(), restored.finished), (1, 1));
        assert!(matches!(journal.reopen(), Err(JournalError::InUse(_))));
        other.write(accepted(4, 1000)).wait().unwrap();
    }
    journal.reopen().unwrap();
    journal.reopen().unwrap();
    assert_eq!(journal.health(), Ok(()));
    assert_eq!(journal.entry_blocking(JobId(1)), Some(entry(1, 500)));
    journal.write(ended(2, 100)).wait().unwrap();
    journal.write(ended(4, 100)).wait().unwrap();
    drop(journal);
    let (_journal, restored) = open(dir.path());
    assert_eq!((restored.open.len(), restored.finished), (0, 3));
}
