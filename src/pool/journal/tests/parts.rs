//! The parts: what is written is read again, and whatever bytes stand there, nothing panics.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::codec::Reader;
use super::super::disk::{Blob, Disk};
use super::super::index::{Index, Place, Slot, Spot};
use super::super::record::{self, Record, STAMP, Stamp};
use super::super::{change, finished};
use super::sim_disk::SimDisk;
use super::*;

fn file_of(bytes: &[u8]) -> Arc<dyn Blob> {
    let blob = SimDisk::new().create("x").unwrap();
    blob.write_at(bytes, 0).unwrap();
    blob
}

fn bytes_of(record: &Record) -> Vec<u8> {
    [&record.head[..], &record.payload[0], &record.payload[1]].concat()
}

fn finished_job(n: u64) -> Finished {
    let finished = Finished {
        id: JobId(n),
        ordinal: n * 2,
        prompt_id: prompt_id(n).into(),
        owner: owner(n),
        number: f64::MIN_POSITIVE,
        outcome: Outcome::Failed { error: "é".repeat(2000) },
        backend: Some("comfy-1".into()),
        attempts: 3,
        run_seconds: None,
        created_ms: 1,
        finished_ms: 2,
        fingerprint: [7; 32],
        reply: None,
        summary: "s".into(),
        entry_len: 9,
    };
    finished.bound("{}".into()).0
}

#[test]
fn a_finished_job_is_bounded_and_comes_back() {
    let finished = finished_job(5);
    assert_eq!(Finished::take(&mut Reader::new(&finished.put())).unwrap(), finished);
    let Outcome::Failed { error } = &finished.outcome else { panic!() };
    assert_eq!(error.chars().count(), 500);
    let long = Finished { summary: vec![b'x'; MAX_SUMMARY + 1].into(), ..finished };
    let (bounded, reply) = long.bound(vec![b'y'; 5000].into());
    assert!(bounded.summary.is_empty());
    assert_eq!(reply.len(), 5000, "a long reply goes to the disk");
}

/// A client could send a body that looks like a record; without the salt it is none.
#[test]
fn a_forged_record_in_a_body_is_not_taken_for_one_after_damage() {
    let forged = bytes_of(&Record::new(1, b"forged", Default::default(), 0));
    let carrier = Record::new(1, b"meta", [forged.into(), Bytes::new()], 42);
    let honest = bytes_of(&Record::new(2, b"honest", Default::default(), 42));
    let mut bytes = [bytes_of(&carrier), honest].concat();
    bytes[5] ^= 1;
    let found = record::search(&*file_of(&bytes), 0, bytes.len() as u64, 42).unwrap().unwrap();
    assert_eq!((found.kind, &found.meta[..]), (2, &b"honest"[..]));
}

#[test]
fn a_payload_that_is_gone_does_not_hide_what_follows() {
    let first = Record::new(1, b"a", ["secret".into(), Bytes::new()], 42);
    let mut bytes = bytes_of(&first);
    bytes[first.head.len()..].fill(0);
    let found = record::read(&*file_of(&bytes), 0, bytes.len() as u64, 42).unwrap().unwrap();
    assert!(!found.intact && found.end() == bytes.len() as u64);
}

#[test]
fn a_stamp_tells_where_the_numbers_go_on() {
    let stamp = Stamp { schema: 1, salt: 5, next_id: 6, counter: 7 };
    let mut bytes = stamp.encode();
    assert_eq!(bytes.len() as u64, STAMP);
    assert_eq!(Stamp::read(&*file_of(&bytes)), Some(stamp));
    bytes[9] ^= 1;
    assert_eq!(Stamp::read(&*file_of(&bytes)), None);
}

proptest! {
    #[test]
    fn a_record_comes_back(kind: u8, meta in vec(any::<u8>(), 0..300), a in vec(any::<u8>(), 0..300),
                           b in vec(any::<u8>(), 0..300), salt: u32, before in 0usize..100) {
        let record = Record::new(kind, &meta, [a.clone().into(), b.clone().into()], salt);
        let bytes = [vec![0; before], bytes_of(&record)].concat();
        let length = bytes.len() as u64;
        let found = record::read(&*file_of(&bytes), before as u64, length, salt).unwrap().unwrap();
        prop_assert!(found.intact);
        prop_assert_eq!((found.kind, &found.meta), (kind, &meta));
        prop_assert_eq!(&found.payload[..], &[a, b].concat()[..]);
        prop_assert!(record::read(&*file_of(&bytes), before as u64, length - 1, salt).unwrap().is_none());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000), salt: u32) {
        let _ = change::take_open(&bytes, Bytes::new());
        let _ = change::take_ids(&bytes);
        let _ = finished::Finished::take(&mut Reader::new(&bytes));
        let _ = Spot::take(&mut Reader::new(&bytes));
        let file = file_of(&bytes);
        prop_assert!(record::search(&*file, 0, bytes.len() as u64, salt).unwrap().is_none());
        prop_assert!(Stamp::read(&*file).is_none());
    }

    #[test]
    fn a_changed_byte_is_noticed(at in 0usize..70, bit in 0u8..8) {
        let record = Record::new(3, b"some meta", ["a payload of some bytes".into(), Bytes::new()], 9);
        let mut bytes = bytes_of(&record);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let found = record::read(&*file_of(&bytes), 0, bytes.len() as u64, 9).unwrap();
        prop_assert!(found.is_none_or(|found| !found.intact && at >= record.head.len()));
    }

    #[test]
    fn the_index_counts_what_it_holds(steps in vec((0u8..5, 0u64..20, 0u64..4, 0u64..100), 0..200)) {
        let mut index = Index::default();
        for (step, n, segment, length) in steps {
            let spot = Spot { segment, at: 10, payload_at: 20, payload_len: length, sum: 0 };
            let finished = Arc::new(Finished { ordinal: n, ..finished_job(n) });
            match step {
                0 => index.insert(Slot { finished, place: Place::Disk(spot) }),
                1 => {
                    let place = Place::Memory { entry: vec![0; 7].into(), reply: Bytes::new() };
                    index.insert(Slot { finished, place });
                }
                2 => _ = index.settle(n, spot),
                3 => _ = index.remove(n),
                _ => {
                    let bounds = Bounds { max_jobs: 10, max_bytes: 600, max_age: Duration::MAX };
                    index.expire(&bounds, NOW_MS, 3);
                }
            }
        }
        let on_disk = |slot: &Slot| match slot.place { Place::Disk(spot) => Some(spot), Place::Memory { .. } => None };
        let spots: Vec<Spot> = index.slots().filter_map(on_disk).collect();
        let in_memory = index.len() - spots.len();
        let bytes: u64 = spots.iter().map(Spot::len).sum();
        prop_assert_eq!(index.live_bytes(), bytes);
        prop_assert_eq!(index.bytes(), bytes + in_memory as u64 * 7);
        for segment in 0..4 {
            let count = spots.iter().filter(|spot| spot.segment == segment).count();
            prop_assert_eq!(index.live(segment).records, count as u64);
        }
        for slot in index.slots() {
            prop_assert_eq!(index.by_id(slot.finished.id).unwrap().finished.ordinal, slot.finished.ordinal);
            prop_assert!(index.by_prompt(&slot.finished.prompt_id).is_some());
        }
    }
}
