//! What a prompt's POST tells in passing: its graph, and the id under which it was accepted.
//!
//! The body is copied as it goes by, up to `MAX_BODY` each and `MAX_BODIES` together, and read
//! for the prompt's kind only after the reply, on a thread of its own. Beyond those bounds the kind
//! stays unknown, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde::Deserialize;

use super::Accepted;
use super::kind::Kind;
use crate::backend::Backend;
use crate::comfy::queue_items::MAX_ID;
use crate::edge::envelope::Envelope;
use crate::gateway::Gateway;

/// Bytes of one body that are copied.
const MAX_BODY: usize = 8 << 20;
/// Bytes of all bodies that are held at a time.
const MAX_BODIES: usize = 64 << 20;
/// Bytes of a reply that are looked at.
const MAX_REPLY: usize = 64 << 10;

/// Room for bodies, shared by all prompts.
#[derive(Debug, Clone, Default)]
pub struct Room(Arc<AtomicUsize>);

/// A body's share of the room, given back when dropped.
#[derive(Debug)]
struct Share {
    room: Room,
    held: usize,
}

impl Share {
    fn grow(&mut self, by: usize) -> bool {
        let before = self.room.0.fetch_add(by, Relaxed);
        self.held += by;
        before + by <= MAX_BODIES
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.held, Relaxed);
    }
}

/// A prompt's POST on its way.
#[derive(Debug)]
pub struct Intake {
    room: Room,
    body: Option<(Vec<u8>, Share)>,
    /// `None` once it has told what there was to tell.
    reply: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct Reply {
    prompt_id: String,
}

impl Intake {
    /// For a request that is about to be sent, if it queues a prompt.
    pub fn of(gateway: &Gateway, envelope: &Envelope) -> Option<Self> {
        envelope.is_prompt.then(|| Self::new(&gateway.tasks.room))
    }

    fn new(room: &Room) -> Self {
        let share = Share { room: room.clone(), held: 0 };
        Self { room: room.clone(), body: Some((Vec::new(), share)), reply: Some(Vec::new()) }
    }

    /// The request goes to another backend, from its beginning.
    pub fn restart(&mut self) {
        *self = Self::new(&self.room);
    }

    /// Takes a piece of the body.
    pub fn body(&mut self, piece: &[u8]) {
        let fits = self.body.as_mut().is_some_and(|(body, share)| {
            let fits = body.len() + piece.len() <= MAX_BODY && share.grow(piece.len());
            if fits {
                body.extend_from_slice(piece);
            }
            fits
        });
        if !fits {
            self.body = None;
        }
    }

    /// Takes a piece of the reply; the prompt's id, once it is complete.
    fn reply(&mut self, piece: &[u8]) -> Option<String> {
        let reply = self.reply.as_mut()?;
        if reply.len() + piece.len() > MAX_REPLY {
            self.reply = None;
            return None;
        }
        reply.extend_from_slice(piece);
        // The last byte may come before the end of the stream does, and the client with it.
        if reply.trim_ascii_end().last() != Some(&b'}') {
            return None;
        }
        let Reply { prompt_id } = serde_json::from_slice(reply).ok()?;
        self.reply = None;
        Some(prompt_id).filter(|id| !id.is_empty() && id.len() <= MAX_ID)
    }

    /// Takes a piece of a successful reply, and enters the task when it is complete.
    pub fn answered(
        &mut self,
        gateway: &Arc<Gateway>,
        envelope: &Envelope,
        backend: &Arc<Backend>,
        piece: &[u8],
    ) {
        let Some(id) = self.reply(piece) else { return };
        gateway.tasks.accepted(Accepted {
            id: id.clone(),
            key: envelope.key,
            caller: envelope.caller.to_string(),
            backend: backend.id,
            backend_name: backend.name().into(),
            breaks: backend.live.breaks(),
        });
        backend.live.moved.notify_one();
        if let Some((body, share)) = self.body.take() {
            let (gateway, backend) = (Arc::clone(gateway), backend.id);
            tokio::task::spawn_blocking(move || {
                if let Some(kind) = Kind::of(&body) {
                    gateway.tasks.set_kind(backend, &id, kind);
                }
                drop((body, share));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_known_with_the_last_byte_however_the_reply_is_cut() {
        let reply = br#"{"prompt_id": "p-1", "number": 4, "node_errors": {}}"#;
        for cut in 0..reply.len() {
            let mut intake = Intake::new(&Room::default());
            let (head, tail) = reply.split_at(cut);
            assert_eq!(intake.reply(head), None, "{cut}");
            assert_eq!(intake.reply(tail).as_deref(), Some("p-1"), "{cut}");
            assert_eq!(intake.reply(b"{}"), None);
        }
    }

    #[test]
    fn replies_without_a_usable_id_make_no_task() {
        let long = format!(r#"{{"prompt_id": "{}"}}"#, "x".repeat(MAX_ID + 1));
        for reply in ["{}", "[]", "<html>}", r#"{"prompt_id": 3}"#, r#"{"prompt_id": ""}"#, &long] {
            assert_eq!(Intake::new(&Room::default()).reply(reply.as_bytes()), None, "{reply}");
        }
        let mut intake = Intake::new(&Room::default());
        assert_eq!(intake.reply(&vec![b' '; MAX_REPLY + 1]), None);
        assert_eq!(intake.reply(br#"{"prompt_id": "x"}"#), None, "given up");
    }

    #[test]
    fn bodies_share_their_room_and_give_it_back() {
        let room = Room::default();
        let piece = vec![0; 1 << 20];
        let mut intakes: Vec<Intake> = (0..9).map(|_| Intake::new(&room)).collect();
        for intake in &mut intakes {
            (0..8).for_each(|_| intake.body(&piece));
        }
        let held = intakes.iter().filter(|intake| intake.body.is_some()).count();
        assert_eq!(held, 8, "64 MiB hold eight bodies of 8 MiB");
        intakes[0].body(b"x");
        assert!(intakes[0].body.is_none(), "one over its own bound is let go");
        drop(intakes);
        assert_eq!(room.0.load(Relaxed), 0);
    }
}
