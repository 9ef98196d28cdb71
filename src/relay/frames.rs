//! Where WebSocket frames begin and end in a stream of bytes (RFC 6455, section 5.2).
//!
//! [`FrameCursor`] is shown the bytes of one direction, in pieces of any size, and keeps count: it
//! copies no payload, decodes nothing and judges little, since the two endpoints do that. It exists
//! because a close frame of our own may only stand between two frames, and because a passing Close
//! starts the closing handshake. [`close_frame`] and [`masked_close_frame`] write our own.

use bytes::Bytes;

/// The longest header: two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;
/// The longest payload of a control frame.
const MAX_CONTROL: u64 = 125;
/// Opcodes from here on are control frames.
const FIRST_CONTROL: u8 = 0x8;
const OPCODE_CLOSE: u8 = 0x8;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// The code of a Close that carries none (RFC 6455, section 7.1.5); it never stands on the wire.
pub const NO_STATUS: u16 = 1005;

/// Why a stream of frames cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length with its top bit set, or a control frame of more than 125 bytes.
    #[error("a frame's length is invalid")]
    Malformed,
    /// A frame longer than the limit the cursor was given.
    #[error("a frame is longer than allowed")]
    TooBig,
}

impl FrameError {
    /// The close code that says so.
    pub fn close_code(self) -> u16 {
        match self {
            Self::Malformed => 1002,
            Self::TooBig => 1009,
        }
    }
}

/// Follows the frames of one direction; see the module's text.
///
/// Reserved opcodes and bits, lengths not in their shortest form and wrong masking pass: where a
/// frame ends is still known, and the endpoint is the one to object.
#[derive(Debug, Clone, Default)]
pub struct FrameCursor {
    header: [u8; MAX_HEADER],
    header_len: u8,
    in_payload: bool,
    remaining: u64,
    /// The first two payload bytes of a Close, unmasked, and how many have been seen.
    close_code: [u8; 2],
    close_seen: u8,
    closed: bool,
    frames: u64,
    max_frame: Option<u64>,
}

impl FrameCursor {
    /// A cursor at the start of a stream that refuses frames with a longer payload than `max_frame`.
    pub fn new(max_frame: Option<u64>) -> Self {
        Self { max_frame, ..Self::default() }
    }

    /// Follows all of `bytes`, past any Close.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            let used = self.step(bytes)?;
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// Follows `bytes` to the end of the current frame at most; says how many that were.
    ///
    /// At least one, if there is one. After an error the cursor stands where it stood before, so
    /// [`at_boundary`](Self::at_boundary) still tells the truth about what was followed earlier.
    pub fn step(&mut self, bytes: &[u8]) -> Result<usize, FrameError> {
        let mut used = 0;
        if !self.in_payload {
            used = self.read_header(bytes)?;
            if !self.in_payload {
                return Ok(used);
            }
        }
        let rest = &bytes[used..];
        let take = usize::try_from(self.remaining).map_or(rest.len(), |left| left.min(rest.len()));
        self.note_close_code(&rest[..take]);
        self.remaining -= take as u64;
        if self.remaining == 0 {
            self.finish_frame();
        }
        Ok(used + take)
    }

    /// Whether the bytes followed so far end with a whole frame (or there were none).
    pub fn at_boundary(&self) -> bool {
        !self.in_payload && self.header_len == 0
    }

    /// Whether a whole Close frame has passed.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// The code of the Close that has passed; [`NO_STATUS`] if it carried none.
    pub fn close_code(&self) -> Option<u16> {
        let code =
            if self.close_seen == 2 { u16::from_be_bytes(self.close_code) } else { NO_STATUS };
        self.closed.then_some(code)
    }

    /// How many whole frames have passed.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    fn read_header(&mut self, bytes: &[u8]) -> Result<usize, FrameError> {
        let before = self.header_len;
        for (index, byte) in bytes.iter().enumerate() {
            self.header[usize::from(self.header_len)] = *byte;
            self.header_len += 1;
            if usize::from(self.header_len) == self.header_size() {
                self.remaining = self.payload_len().inspect_err(|_| self.header_len = before)?;
                self.in_payload = true;
                return Ok(index + 1);
            }
        }
        Ok(bytes.len())
    }

    /// How long the header will be, as far as its first two bytes tell.
    fn header_size(&self) -> usize {
        if self.header_len < 2 {
            return 2;
        }
        let length = match self.header[1] & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.is_masked() { 4 } else { 0 }
    }

    fn payload_len(&self) -> Result<u64, FrameError> {
        let head = &self.header;
        let length = match head[1] & !MASKED {
            126 => u64::from(u16::from_be_bytes([head[2], head[3]])),
            127 => u64::from_be_bytes([
                head[2], head[3], head[4], head[5], head[6], head[7], head[8], head[9],
            ]),
            short => u64::from(short),
        };
        let control = self.opcode() >= FIRST_CONTROL;
        if length >> 63 == 1 || (control && length > MAX_CONTROL) {
            return Err(FrameError::Malformed);
        }
        if self.max_frame.is_some_and(|limit| length > limit) {
            return Err(FrameError::TooBig);
        }
        Ok(length)
    }

    fn note_close_code(&mut self, payload: &[u8]) {
        if self.opcode() != OPCODE_CLOSE {
            return;
        }
        for byte in payload {
            let index = usize::from(self.close_seen);
            let Some(slot) = self.close_code.get_mut(index) else { return };
            let mask = if self.header[1] & MASKED == 0 {
                0
            } else {
                self.header[usize::from(self.header_len) - 4 + index]
            };
            *slot = byte ^ mask;
            self.close_seen += 1;
        }
    }

    fn finish_frame(&mut self) {
        self.closed |= self.opcode() == OPCODE_CLOSE;
        self.frames += 1;
        self.header_len = 0;
        self.in_payload = false;
    }

    fn opcode(&self) -> u8 {
        self.header[0] & 0x0f
    }

    fn is_masked(&self) -> bool {
        self.header[1] & MASKED != 0
    }
}

/// A Close as a server sends it. The reason is cut to what fits; a code that may not stand on the
/// wire (1005, 1006, 1015 and all outside 1000..5000) gives a Close without one.
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let payload = close_payload(code, reason);
    let mut frame = vec![FIN | OPCODE_CLOSE, payload.len() as u8];
    frame.extend_from_slice(&payload);
    frame.into()
}

/// A Close as a client sends it, which we are towards a backend: masked by a fresh random key.
pub fn masked_close_frame(code: u16, reason: &str) -> Bytes {
    let payload = close_payload(code, reason);
    let key: [u8; 4] = rand::random();
    let mut frame = vec![FIN | OPCODE_CLOSE, MASKED | payload.len() as u8];
    frame.extend_from_slice(&key);
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame.into()
}

fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Vec::new();
    }
    let mut payload = code.to_be_bytes().to_vec();
    let room = MAX_CONTROL as usize - payload.len();
    // `str::floor_char_boundary` is younger than the oldest compiler we support.
    let cut = (0..=room.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at));
    payload.extend_from_slice(&reason.as_bytes()[..cut.unwrap_or(0)]);
    payload
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// One frame as its parts, written by code that shares nothing with the cursor.
    #[derive(Debug, Clone)]
    struct Frame {
        first: u8,
        mask: Option<[u8; 4]>,
        long_form: u8,
        payload: Vec<u8>,
    }

    impl Frame {
        fn bytes(&self) -> Vec<u8> {
            let length = self.payload.len();
            let bit = if self.mask.is_some() { 0x80 } else { 0 };
            let mut out = vec![self.first];
            match (self.long_form, length) {
                (0, 0..=125) => out.push(bit | length as u8),
                (0 | 1, 0..=65535) => {
                    out.push(bit + 126);
                    out.extend((length as u16).to_be_bytes());
                }
                _ => {
                    out.push(bit + 127);
                    out.extend((length as u64).to_be_bytes());
                }
            }
            out.extend(self.mask.iter().flatten());
            let key = self.mask.unwrap_or_default();
            out.extend(self.payload.iter().zip(key.iter().cycle()).map(|(byte, mask)| byte ^ mask));
            out
        }
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let payload = prop_oneof![
            3 => prop::collection::vec(any::<u8>(), 0..130),
            1 => (0usize..70_000).prop_map(|size| vec![7; size]),
        ];
        (any::<u8>(), any::<Option<[u8; 4]>>(), 0u8..3, payload).prop_map(
            |(first, mask, long_form, mut payload)| {
                if first & 0x0f >= FIRST_CONTROL {
                    payload.truncate(125);
                }
                Frame { first, mask, long_form, payload }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn boundaries_do_not_depend_on_how_the_bytes_are_split(
            frames in prop::collection::vec(frame(), 0..8),
            sizes in prop::collection::vec(1usize..5000, 1..20),
        ) {
            let wire: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
            let mut ends = vec![];
            let mut end = 0;
            for frame in &frames {
                end += frame.bytes().len();
                ends.push(end);
            }
            let mut cursor = FrameCursor::new(None);
            let mut found = vec![];
            let (mut at, mut sizes) = (0, sizes.iter().cycle());
            while at < wire.len() {
                let stop = (at + sizes.next().unwrap()).min(wire.len());
                while at < stop {
                    at += cursor.step(&wire[at..stop]).unwrap();
                    if cursor.at_boundary() {
                        found.push(at);
                    }
                }
            }
            prop_assert_eq!(found, ends);
            prop_assert_eq!(cursor.frames(), frames.len() as u64);
            prop_assert!(cursor.at_boundary());
            let close = frames.iter().find(|frame| frame.first & 0x0f == OPCODE_CLOSE);
            let code = close.map(|frame| match frame.payload.as_slice() {
                [high, low, ..] => u16::from_be_bytes([*high, *low]),
                _ => NO_STATUS,
            });
            let closes = frames.iter().filter(|f| f.first & 0x0f == OPCODE_CLOSE).count();
            prop_assert!(closes > 1 || cursor.close_code() == code);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_always_make_progress(
            bytes in prop::collection::vec(any::<u8>(), 0..2000), limit in any::<Option<u64>>(),
        ) {
            let mut cursor = FrameCursor::new(limit);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let before = cursor.at_boundary();
                let Ok(used) = cursor.step(rest) else {
                    prop_assert_eq!(cursor.at_boundary(), before);
                    break;
                };
                prop_assert!(used > 0 && used <= rest.len());
                rest = &rest[used..];
            }
            let mut whole = FrameCursor::new(limit);
            let mut single = FrameCursor::new(limit);
            let at_once = whole.feed(&bytes);
            let one_by_one = bytes.iter().try_for_each(|byte| single.feed(&[*byte]));
            prop_assert_eq!(at_once, one_by_one);
            prop_assert_eq!(whole.frames(), single.frames());
        }

        #[test]
        fn our_own_close_frames_read_back(code in 3000u16..5000, reason in ".{0,80}") {
            for frame in [close_frame(code, &reason), masked_close_frame(code, &reason)] {
                prop_assert!(frame.len() <= 6 + 125);
                let mut cursor = FrameCursor::new(None);
                prop_assert_eq!(cursor.step(&frame), Ok(frame.len()));
                prop_assert_eq!(cursor.close_code(), Some(code));
            }
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let frame = close_frame(1012, &"ü".repeat(100));
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }

    #[test]
    fn codes_that_may_not_be_sent_give_a_close_without_code() {
        for code in [0, 999, 1004, NO_STATUS, 1006, 1015, 1016, 2999, 5000] {
            assert_eq!(&close_frame(code, "x")[..], [0x88, 0]);
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_told_from_a_malformed_one() {
        let mut cursor = FrameCursor::new(Some(10));
        assert_eq!(cursor.feed(&[0x82, 11]), Err(FrameError::TooBig));
        assert_eq!(cursor.feed(&[0x82, 10]), Ok(()));
        assert_eq!(FrameError::TooBig.close_code(), 1009);
    }

    /// A file of the corpus: its frames, whether it ends with a whole one, its Close, its error.
    type Entry = (&'static str, u64, bool, Option<u16>, Option<FrameError>);

    const CORPUS: &[Entry] = &[
        ("close-4000-masked", 1, true, Some(4000), None),
        ("close-empty", 1, true, Some(NO_STATUS), None),
        ("close-one-byte", 1, true, Some(NO_STATUS), None),
        ("comfy-session", 6, true, Some(1000), None),
        ("control-126", 1, true, None, Some(FrameError::Malformed)),
        ("deflate-bits", 2, true, None, None),
        ("empty", 0, true, None, None),
        ("fragments-with-ping", 4, true, None, None),
        ("header-cut", 1, false, None, None),
        ("length-16", 1, true, None, None),
        ("length-64-not-minimal", 2, true, None, None),
        ("length-top-bit", 1, true, None, Some(FrameError::Malformed)),
        ("payload-cut", 1, false, None, None),
        ("reserved-opcodes", 3, true, None, None),
    ];

    #[test]
    fn the_corpus_reads_as_listed_in_any_split() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/frames");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), CORPUS.len(), "a file is not listed");
        for (name, frames, whole, close, error) in CORPUS {
            let bytes = std::fs::read(dir.join(format!("{name}.bin"))).unwrap();
            for size in [1, 2, 3, 7, 4096] {
                let mut cursor = FrameCursor::new(None);
                let result = bytes.chunks(size).try_for_each(|chunk| cursor.feed(chunk));
                assert_eq!(result.err(), *error, "{name} in pieces of {size}");
                assert_eq!(cursor.frames(), *frames, "{name} in pieces of {size}");
                assert_eq!(cursor.close_code(), *close, "{name} in pieces of {size}");
                if error.is_none() {
                    assert_eq!(cursor.at_boundary(), *whole, "{name} in pieces of {size}");
                }
            }
        }
    }
}
