//! The WebSockets of clients, which in pool mode end at the gateway.
//!
//! | Part | Does |
//! |---|---|
//! | [`session`] | pure: what one `clientId` gets, in which order, and what it missed |
//! | `line` | pure: the running jobs of one `clientId`, one shown after another |
//! | `queue` | pure: frames that wait, and what of them may go when they are too many |
//! | `unconfirmed` | pure: frames that were written and may be lost on their way |
//! | `status` | pure: the farm's `status`, written once for all sockets |
//! | `words` | the few messages that the gateway itself says, and what it reads of clients |
//! | [`hub`] | which session a frame goes to, and which sessions are kept without a socket |
//! | `seat` | what a socket may do with its session |
//! | [`socket`], [`writer`] | one WebSocket from the 101 to its end |
//!
//! As with `ComfyUI`, a `clientId` has one socket that hears events, the newest, and the socket that
//! it replaces stays open and hears nothing more: the stock page opens a new one 300 ms after any
//! close, so that two pages with one id would go on replacing each other. The end of a replaced
//! socket changes nothing (`ComfyUI` forgets the newer one then).
//!
//! # Bounds
//! A socket that keeps up holds a few KB. One that does not holds little more than
//! [`OVERFLOW`](session::OVERFLOW) at most and is cut when it stands still; a `clientId` without a socket
//! holds at most [`KEPT_BYTES`](session::KEPT_BYTES) for [`KEPT_FOR`](session::KEPT_FOR), all of them
//! together at most [`AWAY_BYTES`](hub::AWAY_BYTES). Whoever delivers appends under a short lock and
//! waits for nobody.

mod entry;
pub mod hub;
mod line;
mod queue;
mod registry;
mod seat;
pub mod session;
pub mod socket;
mod status;
#[cfg(test)]
mod tests;
mod unconfirmed;
mod words;
pub mod writer;

pub use hub::Hub;
pub use socket::{ClientInfo, Ended, MAX_SID, SocketEnd, mint_sid, response_head, serve};
