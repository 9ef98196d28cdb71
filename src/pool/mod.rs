//! Pool mode: the farm as one big ComfyUI.
//!
//! The way of a prompt: [`own`] takes the POST, [`submission`] reads it, and it becomes a [`job`]
//! that waits here, not in a server, until a server is free for it. [`core`] decides, as a pure
//! state machine: what happened goes in as an [`Input`](core::Input), what is to be done comes out
//! as [`Action`](core::Action)s, which [`dispatch`] performs: on the network by [`errands`], which
//! speak to backends through [`ask`]; on the disk by the [`journal`].
//!
//! The way of an event: [`links`] hold two sockets to each backend, [`hearing`] tells by [`events`]
//! what a message means and whose it is; [`clients`] has the sockets of those who are to hear it.
//! [`frame`] is what passes between.
//!
//! Everything else of ComfyUI: [`route`] tells who answers a request. [`own`] knows queue, history
//! and jobs; [`merged`] asks all servers and makes one answer; [`userdata`] keeps what belongs to
//! users; [`files`] knows where files are; [`way`] finds the one server for the rest.
//!
//! [`lanes`] and [`look`] tell the core what the fleet looks like, [`foresee`] tells users when
//! their jobs will have ended.

pub mod ask;
mod cancel;
pub mod clients;
pub mod core;
mod dispatch;
mod errands;
pub mod eta;
pub mod events;
pub mod files;
mod foresee;
pub mod frame;
mod hearing;
pub mod job;
pub mod journal;
mod lanes;
pub mod line;
pub mod links;
mod look;
pub mod merged;
mod own;
mod posted;
pub mod route;
pub mod submission;
pub mod userdata;
pub mod visit;
pub mod way;
