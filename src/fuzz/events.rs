//! What a backend's sockets say, JSON and binary, and who is to hear it.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::bytes::{Input, alike, strict};
use super::prompt::ID;
use crate::backend::BackendId;
use crate::clock::Moment;
use crate::identity::ClientKey;
use crate::pool::events::{Attribution, Directory, Flavour, Known, parse};
use crate::pool::files::prefix;
use crate::pool::frame::{Frame, Meaning};
use crate::pool::job::{JobId, Owner};

/// What the backend calls the prompt.
const THEIRS: &str = "8ece8653-7f59-41ff-8b24-7342db00141f";

/// One job, known by two ids.
struct OneJob;

impl Directory for OneJob {
    fn job(&self, _: BackendId, prompt_id: &str) -> Option<Known> {
        let owner = Owner {
            key: ClientKey::of_address([127, 0, 0, 1].into()),
            caller: "me".into(),
            client_id: Some("A".into()),
        };
        let known = Known { job: JobId(1), owner, prompt_id: ID.into(), flavour: Flavour::Plain };
        [THEIRS, ID].contains(&prompt_id).then_some(known)
    }
}

/// Messages, each behind a byte of flags and its length in two bytes.
pub fn events(data: &[u8]) {
    let mut input = Input(data);
    let mark: Arc<dyn Fn(&mut Value) + Send + Sync> = Arc::new(|v| prefix::mark(v, "gpu-1"));
    let mut attribution = Attribution::new(BackendId(7), mark);
    for at in 0..64 {
        if input.0.is_empty() {
            return;
        }
        let flags = input.byte();
        let flavour = if flags & 2 == 0 { Flavour::Plain } else { Flavour::Flags };
        match flags & 0x70 {
            0x10 => attribution.opened(flavour),
            0x20 => attribution.lost(flavour),
            0x30 => attribution.resume(flavour, THEIRS),
            0x40 => drop(attribution.claim(THEIRS, Moment(at), &OneJob)),
            _ => {
                let bytes = input.counted();
                let frame = Frame { binary: flags & 1 == 1, bytes: Bytes::copy_from_slice(bytes) };
                read(&frame);
                heard(&mut attribution, flavour, frame, Moment(1000 * at));
            }
        }
    }
}

/// A parser that builds the document reads the same.
fn read(frame: &Frame) {
    let heard = parse(frame);
    if frame.binary {
        assert!(heard.name.is_empty());
        return;
    }
    let Some(document) = strict(&frame.bytes) else { return };
    assert_eq!(heard.name, document["type"].as_str().unwrap_or_default());
    assert_eq!(heard.prompt_id.as_deref(), document["data"]["prompt_id"].as_str());
}

fn heard(who: &mut Attribution, flavour: Flavour, frame: Frame, now: Moment) {
    // Written in one way, so that what is looked for is written in that way, too.
    let document = strict(&frame.bytes).filter(|_| !frame.binary);
    let bytes = document.as_ref().map_or(frame.bytes, |document| document.to_string().into());
    let frame = Frame { binary: frame.binary, bytes };
    let verdict = who.heard(flavour, &frame, now, &OneJob);
    let Some(delivery) = verdict.delivery else { return };
    assert_eq!((&*delivery.prompt_id, delivery.job), (ID, JobId(1)));
    let got = &delivery.frame;
    assert_eq!(got.binary, frame.binary);
    if frame.binary {
        let longer = got.bytes.len().saturating_sub(frame.bytes.len());
        assert!(longer == 0, "ids are of one length");
        return;
    }
    let Some(mut expected) = document else { return };
    if delivery.meaning == Meaning::Output
        && let Some(output) = expected.get_mut("data").and_then(|data| data.get_mut("output"))
    {
        prefix::mark(output, "gpu-1");
    }
    if expected["data"]["prompt_id"] == THEIRS {
        rename(&mut expected);
    }
    let got = strict(&got.bytes).expect("what was JSON stays JSON");
    assert!(alike(&got, &expected), "{got} is not {expected}");
}

/// The owner's id in place of the backend's, as a value or a key.
fn rename(value: &mut Value) {
    match value {
        Value::String(text) if text == THEIRS => ID.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(rename),
        Value::Object(members) => {
            let renamed = std::mem::take(members).into_iter().map(|(key, mut value)| {
                rename(&mut value);
                (if key == THEIRS { ID.to_owned() } else { key }, value)
            });
            *members = renamed.collect();
        }
        _ => {}
    }
}
