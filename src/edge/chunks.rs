//! A request body in chunks, checked byte by byte before Pingora's own reader sees it.
//!
//! That reader skips over what it does not understand: any octet in an extension, blanks behind a
//! size, whatever stands in trailers. Two readers that skip differently see different requests, so
//! the framing must be as RFC 9112, section 7.1 has it, and plainer: no blanks, extensions short
//! and printable, no trailers. Bodies go on to backends in chunks that Pingora writes anew.

/// Digits of a size at most: more could not be counted in 64 bits.
const MAX_DIGITS: u8 = 16;
/// Bytes of a chunk's extension at most.
const MAX_EXTENSION: u16 = 256;

/// Where in the framing the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a size of which so many digits were read.
    Size { digits: u8 },
    /// In an extension of so many bytes so far.
    Extension { bytes: u16 },
    /// Behind the carriage return of a size's line.
    SizeEnd,
    /// In a chunk of which so many bytes are still to come.
    Data { left: u64 },
    /// Behind a chunk's data.
    DataEnd,
    /// Behind the carriage return that follows a chunk's data.
    DataLineEnd,
    /// Behind the last chunk's line: nothing but an empty line may follow.
    Trailers,
    /// Behind that line's carriage return.
    TrailersEnd,
    /// The body is over.
    Done,
}

/// Follows a body in chunks.
#[derive(Debug, Clone)]
pub struct Chunks {
    state: State,
    size: u64,
}

/// The framing can be read in more than one way, or in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChunk;

impl Default for Chunks {
    fn default() -> Self {
        Self { state: State::Size { digits: 0 }, size: 0 }
    }
}

impl Chunks {
    /// Follows what was read, and says how many of its bytes belong to the body.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                State::Done => break,
                State::Data { left } => {
                    let taken = left.min((bytes.len() - at) as u64);
                    let left = left - taken;
                    self.state = if left > 0 { State::Data { left } } else { State::DataEnd };
                    at += taken as usize;
                }
                _ => {
                    self.state = self.next(byte)?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    /// Whether all of the body was followed.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn next(&mut self, byte: u8) -> Result<State, BadChunk> {
        match (self.state, byte) {
            (State::Size { digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_DIGITS {
                    return Err(BadChunk);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.size = self.size << 4 | u64::from(digit);
                Ok(State::Size { digits: digits + 1 })
            }
            (State::Size { digits: 1.. } | State::Extension { .. }, b'\r') => Ok(State::SizeEnd),
            (State::Size { digits: 1.. }, b';') => Ok(State::Extension { bytes: 0 }),
            (State::Extension { bytes }, b' '..=b'~' | b'\t') if bytes < MAX_EXTENSION => {
                Ok(State::Extension { bytes: bytes + 1 })
            }
            (State::SizeEnd, b'\n') => match std::mem::take(&mut self.size) {
                0 => Ok(State::Trailers),
                left => Ok(State::Data { left }),
            },
            (State::DataEnd, b'\r') => Ok(State::DataLineEnd),
            (State::DataLineEnd, b'\n') => Ok(State::Size { digits: 0 }),
            (State::Trailers, b'\r') => Ok(State::TrailersEnd),
            (State::TrailersEnd, b'\n') => Ok(State::Done),
            _ => Err(BadChunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn follow(text: &[u8]) -> Result<(usize, bool), BadChunk> {
        let mut chunks = Chunks::default();
        chunks.follow(text).map(|length| (length, chunks.is_done()))
    }

    #[test]
    fn plain_chunks_pass_and_end_where_they_end() {
        assert_eq!(follow(b"0\r\n\r\nGET"), Ok((5, true)));
        assert_eq!(follow(b"3\r\nabc\r\n0\r\n\r\n"), Ok((13, true)));
        assert_eq!(follow(b"00A;name=\"a b\"\r\n0123456789\r\n0\r\n\r\n\r\n"), Ok((33, true)));
        assert_eq!(follow(b"5\r\nab"), Ok((5, false)));
        assert_eq!(follow(b""), Ok((0, false)));
    }

    #[test]
    fn whatever_could_be_read_in_two_ways_is_bad() {
        let long = [b"1;".to_vec(), vec![b'x'; 300], b"\r\n".to_vec()].concat();
        for text in [
            &b"\r\n"[..],
            b";x\r\n",
            b"+1\r\na",
            b"-1\r\n",
            b"0x1\r\na",
            b" 1\r\na",
            b"1 \r\na",
            b"1 ;x\r\na",
            b"1\na\r\n",
            b"1\r\r\na",
            b"1\ra",
            b"g\r\n",
            b"1;\x00\r\n",
            b"1;x\ny\r\n",
            b"1;\x80\r\n",
            &long,
            b"11111111111111111\r\n",
            b"00000000000000001\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\n0\r\n\r\n",
            b"1\r\na0\r\n\r\n",
            b"0\r\nX: y\r\n\r\n",
            b"0\r\n\n",
            b"0\n\r\n",
            b"0\r\n\rX",
        ] {
            assert_eq!(follow(text), Err(BadChunk), "{}", text.escape_ascii());
        }
    }

    proptest! {
        /// However it is cut into reads, a body is followed to its end and not a byte further.
        #[test]
        fn cuts_make_no_difference(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..5),
            behind in prop::collection::vec(any::<u8>(), 0..20),
            cut in 1usize..40,
        ) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let whole = [body.as_slice(), behind.as_slice()].concat();
            let (mut follower, mut length) = (Chunks::default(), 0);
            for piece in whole.chunks(cut) {
                length += follower.follow(piece).unwrap();
            }
            prop_assert!(follower.is_done());
            prop_assert_eq!(length, body.len());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut chunks = Chunks::default();
            for byte in &bytes {
                let _ = chunks.follow(&[*byte]);
            }
            let _ = Chunks::default().follow(&bytes);
        }
    }
}
