//! WebSockets on their way: frames, and the heads before them.

use bytes::BytesMut;

use super::bytes::Input;
use super::head::block_on;
use crate::relay::frames::{FrameCursor, FrameError, NO_STATUS, close_frame, masked_close_frame};
use crate::relay::handshake::{
    HandshakeError, ResponseHead, accept_key, check_accept, read_response_head,
    write_response_head, write_upgrade_request,
};

/// Payloads longer than this are refused in the second reading.
const LIMIT: u64 = 1000;

/// What was followed: frames, whether they end at a boundary, the Close, the error.
type Followed = (u64, bool, Option<u16>, Option<FrameError>);

fn follow<'a>(limit: Option<u64>, mut pieces: impl Iterator<Item = &'a [u8]>) -> Followed {
    let mut cursor = FrameCursor::new(limit);
    let error = pieces.try_for_each(|piece| cursor.feed(piece)).err();
    // After an error only what was followed before it counts.
    let whole = error.is_none() && cursor.at_boundary();
    (cursor.frames(), whole, cursor.close_code(), error)
}

/// The frames of one direction, in pieces of any size, and by a second reader.
pub fn frames(data: &[u8]) {
    for limit in [None, Some(LIMIT)] {
        let whole = follow(limit, std::iter::once(data));
        for size in [1, 2, 7, 100] {
            assert_eq!(follow(limit, data.chunks(size)), whole, "in pieces of {size}");
        }
        let (count, boundary, error) = by_hand(data, limit);
        assert_eq!((whole.0, whole.1, whole.3), (count, boundary, error));
    }
    let mut input = Input(data);
    let code = u16::from_be_bytes([input.byte(), input.byte()]);
    let reason = String::from_utf8_lossy(input.0);
    for frame in [close_frame(code, &reason), masked_close_frame(code, &reason)] {
        assert!(frame.len() <= 131, "a control frame");
        let (count, whole, close, error) = follow(Some(125), std::iter::once(&frame[..]));
        assert_eq!((count, whole, error), (1, true, None));
        let may_stand = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        assert_eq!(close, Some(if may_stand { code } else { NO_STATUS }));
    }
}

/// RFC 6455, section 5.2, with all bytes at hand.
fn by_hand(mut data: &[u8], limit: Option<u64>) -> (u64, bool, Option<FrameError>) {
    let mut frames = 0;
    while let [first, second, rest @ ..] = data {
        let (length, rest) = match second & 0x7f {
            126 => {
                let Some((length, rest)) = rest.split_first_chunk() else { break };
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let Some((length, rest)) = rest.split_first_chunk() else { break };
                (u64::from_be_bytes(*length), rest)
            }
            short => (u64::from(short), rest),
        };
        let Some(rest) = rest.get(if second & 0x80 == 0 { 0 } else { 4 }..) else { break };
        if length >> 63 == 1 || (first & 0x08 != 0 && length > 125) {
            return (frames, false, Some(FrameError::Malformed));
        }
        if limit.is_some_and(|limit| length > limit) {
            return (frames, false, Some(FrameError::TooBig));
        }
        let Some(rest) = usize::try_from(length).ok().and_then(|length| rest.get(length..)) else {
            break;
        };
        frames += 1;
        data = rest;
    }
    (frames, data.is_empty(), None)
}

fn read(data: &[u8], split: usize, limit: usize) -> Result<(ResponseHead, Vec<u8>), String> {
    let (prefix, rest) = data.split_at(split.min(data.len()));
    let mut rest = rest;
    let read = block_on(read_response_head(&mut rest, limit, BytesMut::from(prefix)));
    let read = read.ok_or("no runtime")?;
    match read {
        Ok((head, mut behind)) => {
            behind.extend_from_slice(rest);
            Ok((head, behind.to_vec()))
        }
        Err(HandshakeError::Io(error)) => Err(error.kind().to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// A backend's answer to an upgrade, and what is behind it; then what may be written of it.
pub fn handshake(data: &[u8]) {
    let whole = read(data, data.len(), 4096);
    for split in [0, data.len() / 2] {
        assert_eq!(read(data, split, 4096).ok(), whole.clone().ok(), "split at {split}");
    }
    let mut input = Input(data);
    let (name, value) = (String::from_utf8_lossy(input.line()), input.line());
    let written = write_upgrade_request("GET", "/ws", [(&*name, value)]);
    if let Ok(written) = written {
        let lines = written.split(|byte| *byte == b'\n').count();
        assert_eq!(lines, 4, "one line, as given: {name:?}");
        assert!(!written[..written.len() - 4].windows(4).any(|window| window == b"\r\n\r\n"));
    }
    let Ok((head, behind)) = whole else { return };
    assert!(data.ends_with(&behind), "what is behind it is given back");
    assert!(head.status == 101 || head.status >= 200, "interim heads are passed over");
    let lines = || head.headers.iter().map(|(name, value)| (&**name, &**value));
    if let Ok(written) = write_response_head(head.status, &head.reason, lines()) {
        let again = read(&written, 0, written.len()).expect("what is written is read");
        assert_eq!(again, (head.clone(), Vec::new()));
    }
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    if check_accept(key, &head.headers) {
        let right = head.header("sec-websocket-accept").map(<[u8]>::trim_ascii);
        assert_eq!(right, Some(accept_key(key).as_bytes()));
    }
    if head.is_websocket() {
        assert_eq!(head.status, 101);
    }
}
