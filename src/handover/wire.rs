//! Lines over a Unix socket, and descriptors beside them. All calls block, within the time limits.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

pub(super) const HELLO: &str = "comfygate upgrade 1";
pub(super) const LISTENERS: &str = "listeners";
pub(super) const RELEASE: &str = "release";
pub(super) const RELEASED: &str = "released";
pub(super) const SERVING: &str = "serving";
pub(super) const GO: &str = "go";

/// For clients, for operators, and for what is sent to https.
const LISTENERS_MOST: usize = 3;
/// Bytes of a line at most.
const MAX_LINE: usize = 1024;

/// One end of the conversation.
pub(super) struct Wire(UnixStream);

impl Wire {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(stream))
    }

    pub(super) fn say(&mut self, line: &str) -> io::Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes())
    }

    /// Reads a line, byte by byte, for descriptors may come with the next.
    pub(super) fn hear(&mut self, within: Duration) -> io::Result<String> {
        self.0.set_read_timeout(Some(within))?;
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            match byte {
                [b'\n'] => return String::from_utf8(line).map_err(io::Error::other),
                _ if line.len() >= MAX_LINE => return Err(io::ErrorKind::InvalidData.into()),
                [byte] => line.push(byte),
            }
        }
    }

    /// Waits for this line.
    pub(super) fn expect(&mut self, line: &str, within: Duration) -> io::Result<()> {
        let heard = self.hear(within)?;
        if heard == line { Ok(()) } else { Err(io::Error::other(heard)) }
    }

    pub(super) fn say_listeners(&mut self, listeners: &[TcpListener]) -> io::Result<()> {
        let line = format!("{LISTENERS}\n");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MOST))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = listeners.iter().map(TcpListener::as_fd).collect();
        if !beside.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let slices = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(&self.0, &slices, &mut beside, SendFlags::NOSIGNAL)?;
        self.0.write_all(&line.as_bytes()[sent..])
    }

    pub(super) fn hear_listeners(&mut self, within: Duration) -> io::Result<Vec<TcpListener>> {
        self.0.set_read_timeout(Some(within))?;
        let mut first = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MOST))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut first)];
        let got = recvmsg(&self.0, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(these) = message {
                descriptors.extend(these);
            }
        }
        let rest = self.hear(within)?;
        if got.bytes != 1 || first[0] != LISTENERS.as_bytes()[0] || rest != LISTENERS[1..] {
            return Err(io::Error::other("it does not pass its listeners on"));
        }
        Ok(descriptors.into_iter().map(TcpListener::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_the_same_on_the_other_side() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut one, mut other) = (Wire::new(one).unwrap(), Wire::new(other).unwrap());
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [bind(), bind()];
        one.say_listeners(&listeners).unwrap();
        one.say("and more").unwrap();
        let got = other.hear_listeners(Duration::from_secs(5)).unwrap();
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        assert_eq!(got.iter().map(address).collect::<Vec<_>>(), listeners.each_ref().map(address));
        assert_eq!(other.hear(Duration::from_secs(5)).unwrap(), "and more");
        drop(listeners);
        std::net::TcpStream::connect(address(&got[0])).unwrap();
    }

    #[test]
    fn an_end_and_another_line_are_errors() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut one, mut other) = (Wire::new(one).unwrap(), Wire::new(other).unwrap());
        one.say("no: why").unwrap();
        let error = other.expect(RELEASED, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.to_string(), "no: why");
        drop(one);
        assert!(other.expect(RELEASED, Duration::from_secs(5)).is_err());
    }
}
