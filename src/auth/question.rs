//! What is asked and told about a request between the door and those who find out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::decide::{Pass, Refusal};
use super::forward::{Subrequest, Word};
use super::table::Account;
use crate::affinity::Seconds;
use crate::config::{Forward, Secret};

/// What must be found out before a request can be judged.
#[derive(Debug)]
pub enum Question {
    /// Is this the password?
    Password {
        /// The name that is claimed.
        user: String,
        /// What is shown.
        password: Secret,
        /// From where.
        address: IpAddr,
    },
    /// What does the one who is to be asked say?
    Forward(Box<Subrequest>),
}

/// What was found out.
#[derive(Debug, Clone)]
pub enum Told {
    /// About a password.
    Password(Verdict),
    /// By the one who was asked.
    Forward(Word),
}

/// What a password is.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Somebody's.
    Right(Arc<Account>),
    /// Nobody's of that name.
    Wrong,
    /// Not looked at: too many wrong ones came from there.
    TooMany(Duration),
    /// Not looked at: too many are.
    Busy,
}

/// What becomes of a request at the door.
#[derive(Debug)]
pub enum Entry {
    /// It comes in.
    In(Pass),
    /// It cannot be said yet.
    Ask(Need),
    /// It stays out.
    Out(Refusal),
}

/// What is missing to judge a request.
#[derive(Debug)]
pub enum Need {
    /// Whether this is the password.
    Password(String, Secret),
    /// The word of whom we ask.
    Forward(Arc<Forward>),
}

/// What a request comes with that is no header of its own.
pub struct Arrival<'a> {
    /// The user that a trusted proxy names.
    pub named: Option<&'a str>,
    /// When.
    pub now: Seconds,
    /// What was found out about it.
    pub told: Option<Told>,
    /// Whether its answer may say `Secure` of a cookie.
    pub secure: bool,
    /// Makes the question to whom we ask.
    pub question: &'a dyn Fn(&Arc<Forward>) -> Subrequest,
}
