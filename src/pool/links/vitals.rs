//! Whether a socket is what it seems to be. Pure.
//!
//! A socket may be open and yet hear nothing: `ComfyUI` forgets a sid when the handler of an
//! *earlier* socket under it ends (its issue 16010), silently. So one counts as open only when the
//! server has greeted it by its sid and answered a ping; it is given up when nothing at all came for
//! a minute; and it is deaf when its sibling has heard a broadcast that did not come here. After an
//! end that the server did not confirm, the old handler may still be about to end: then the socket
//! has a second to show that it hears, or is closed properly and opened once more.

use std::time::Duration;

use crate::clock::Moment;

/// How long it may take to show that it is registered.
const VERIFY: Duration = Duration::from_secs(5);
/// How long the server has to answer our flags; one before 0.3.45 never does.
const ANSWER: Duration = Duration::from_secs(1);
/// Time between two pings, and without anything before the socket is given up.
const PING: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_mins(1);
/// How long a broadcast may come later here than there. A large image may be on its way before it.
const DEAF: Duration = Duration::from_secs(5);
/// How long a doubtful socket has to hear something.
const DOUBT: Duration = Duration::from_secs(1);

/// What came on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The first status, with our sid.
    Greeting,
    /// The server's answer to our flags.
    Answer,
    /// Any other message.
    Message,
    /// A pong.
    Pong,
    /// A ping of the server's.
    Ping,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// Send a ping.
    Ping,
    /// It is open from now on.
    Open,
    /// Close it, and open another.
    End,
}

/// The signs of life of one socket.
#[derive(Debug)]
pub(super) struct Vitals {
    since: Moment,
    greeted: bool,
    ponged: bool,
    answered: bool,
    /// Its predecessor's end was not confirmed, and nothing came since.
    doubtful: bool,
    opened: Option<Moment>,
    pinged: Option<Moment>,
    heard: Moment,
    message: Moment,
}

impl Vitals {
    /// A socket that has just been connected. `asks`: it has announced flags.
    pub(super) fn new(asks: bool, doubtful: bool, now: Moment) -> Self {
        Self {
            since: now,
            greeted: false,
            ponged: false,
            answered: !asks,
            doubtful,
            opened: None,
            pinged: None,
            heard: now,
            message: now,
        }
    }

    /// Takes a sign.
    pub(super) fn took(&mut self, sign: Sign, now: Moment) {
        self.heard = now;
        match sign {
            Sign::Ping => return,
            Sign::Pong => return self.ponged = true,
            Sign::Greeting => self.greeted = true,
            Sign::Answer => self.answered = true,
            Sign::Message => self.doubtful = false,
        }
        self.message = now;
    }

    /// Has the next ping sent at once.
    pub(super) fn nudge(&mut self) {
        self.pinged = None;
    }

    /// What is due; `sibling` is when the other socket heard a broadcast last.
    pub(super) fn due(&mut self, sibling: Moment, now: Moment) -> Due {
        if self.is_over(sibling, now) {
            return Due::End;
        }
        if self.pinged.is_none_or(|pinged| now.since(pinged) >= PING) {
            self.pinged = Some(now);
            return Due::Ping;
        }
        let answered = self.answered || now.since(self.since) >= ANSWER;
        if self.opened.is_none() && self.greeted && self.ponged && answered {
            self.opened = Some(now);
            return Due::Open;
        }
        Due::Nothing
    }

    fn is_over(&self, sibling: Moment, now: Moment) -> bool {
        let silent = now.since(self.heard) >= SILENCE;
        let Some(opened) = self.opened else {
            return silent || now.since(self.since) >= VERIFY;
        };
        let deaf = sibling > self.message && now.since(sibling) >= DEAF;
        silent || deaf || (self.doubtful && now.since(opened) >= DOUBT)
    }

    /// When to look again, if nothing comes before.
    pub(super) fn next(&self, now: Moment) -> Moment {
        let Some(opened) = self.opened else {
            let answer = self.since.plus(ANSWER);
            return if now < answer { answer } else { self.since.plus(VERIFY) };
        };
        let ping = self.pinged.unwrap_or(now).plus(PING);
        let look = now.plus(DEAF).min(ping).min(self.heard.plus(SILENCE));
        if self.doubtful { look.min(opened.plus(DOUBT)) } else { look }
    }

    /// Whether it has been open, and for so long.
    pub(super) fn was_open_for(&self, least: Duration, now: Moment) -> bool {
        self.opened.is_some_and(|opened| now.since(opened) >= least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEVER: Moment = Moment(0);

    fn at(ms: u64) -> Moment {
        Moment(1_000_000 + ms)
    }

    /// A socket that opened at 10 ms.
    fn open(doubtful: bool) -> Vitals {
        let mut vitals = Vitals::new(false, doubtful, at(0));
        assert_eq!(vitals.due(NEVER, at(0)), Due::Ping);
        vitals.took(Sign::Greeting, at(5));
        vitals.took(Sign::Pong, at(10));
        assert_eq!(vitals.due(NEVER, at(10)), Due::Open);
        vitals
    }

    #[test]
    fn it_is_open_when_greeted_and_ponged_and_answered() {
        for missing in [Sign::Greeting, Sign::Pong, Sign::Answer] {
            let mut vitals = Vitals::new(true, false, at(0));
            assert_eq!(vitals.due(NEVER, at(0)), Due::Ping);
            for sign in [Sign::Greeting, Sign::Pong, Sign::Answer] {
                if sign != missing {
                    vitals.took(sign, at(1));
                }
            }
            assert_eq!(vitals.due(NEVER, at(1)), Due::Nothing);
            assert_eq!(vitals.next(at(1)), at(1000));
            let then = if missing == Sign::Answer { Due::Open } else { Due::Nothing };
            assert_eq!(vitals.due(NEVER, at(1000)), then);
            if missing != Sign::Answer {
                assert_eq!(vitals.next(at(1000)), at(5000));
                assert_eq!(vitals.due(NEVER, at(5000)), Due::End);
            }
        }
    }

    #[test]
    fn it_is_pinged_every_20_s_and_given_up_after_60_s_of_silence() {
        let mut vitals = open(false);
        let (mut now, mut pings) = (at(10), Vec::new());
        let end = loop {
            now = vitals.next(now);
            match vitals.due(NEVER, now) {
                Due::Ping => pings.push(now),
                Due::End => break now,
                _ => {}
            }
        };
        assert_eq!(pings, [at(20_000), at(40_000), at(60_000)]);
        assert_eq!(end, at(60_010));
    }

    #[test]
    fn a_pong_is_life_but_no_hearing() {
        let mut vitals = open(false);
        for second in 1..1000 {
            vitals.took(Sign::Pong, at(second * 1000));
            assert_ne!(vitals.due(NEVER, at(second * 1000)), Due::End);
        }
        assert_ne!(vitals.due(at(900_000), at(904_999)), Due::End);
        assert_eq!(vitals.due(at(900_000), at(905_000)), Due::End);
        vitals.took(Sign::Message, at(905_000));
        assert_ne!(vitals.due(at(900_000), at(905_000)), Due::End);
    }

    #[test]
    fn a_doubtful_one_has_a_second_to_hear_something() {
        let mut vitals = open(true);
        assert_eq!(vitals.next(at(10)), at(1010));
        assert_eq!(vitals.due(NEVER, at(1010)), Due::End);
        let mut vitals = open(true);
        vitals.took(Sign::Message, at(500));
        assert_eq!(vitals.due(NEVER, at(1010)), Due::Nothing);
    }

    #[test]
    fn a_nudge_pings_at_once() {
        let mut vitals = open(false);
        vitals.nudge();
        assert_eq!(vitals.due(NEVER, at(11)), Due::Ping);
        assert_eq!(vitals.due(NEVER, at(12)), Due::Nothing);
    }

    proptest! {
        /// What would be asked again at once would spin.
        #[test]
        fn the_next_look_lies_ahead(
            asks in any::<bool>(), doubtful in any::<bool>(),
            steps in prop::collection::vec((0_u8..6, 0_u64..30_000, any::<bool>()), 1..50),
        ) {
            let mut vitals = Vitals::new(asks, doubtful, at(0));
            let (mut now, mut sibling) = (at(0), NEVER);
            for (sign, pause, look) in steps {
                match vitals.due(sibling, now) {
                    Due::End => break,
                    Due::Ping => prop_assert_ne!(vitals.due(sibling, now), Due::Ping),
                    Due::Open | Due::Nothing => {}
                }
                prop_assert!(vitals.next(now) > now);
                now = if look { vitals.next(now) } else { Moment(now.0 + pause) };
                match sign {
                    0 => vitals.took(Sign::Greeting, now),
                    1 => vitals.took(Sign::Answer, now),
                    2 => vitals.took(Sign::Message, now),
                    3 => vitals.took(Sign::Pong, now),
                    4 => vitals.nudge(),
                    _ => sibling = now,
                }
            }
        }
    }
}
