//! Outlier ejection: a backend that answers its probes and fails its requests is taken out for a
//! time that grows, by Envoy's rule and with its defaults.
//!
//! Probes ask for a queue of a few bytes on a connection of their own. A server that resets under
//! load, an nginx in front of it that answers 502, a path that drops every third packet: all of
//! them pass that test, and clients see them fail. So real traffic is evidence, too. After
//! [`Outlier::consecutive_gateway_failure`](crate::config::Outlier::consecutive_gateway_failure)
//! failures in a row, with no good answer between, a backend is *ejected*: as if it were down, its
//! clients move and its sockets close. It comes back by itself after `base_ejection_time`, twice
//! that the next time, and so on up to `max_ejection_time`; each `interval` that it spends in
//! service takes one off the count.
//!
//! **What counts.** Connections that fail or break, silence, and 502, 503 and 504: signs that
//! nobody is there to answer. Any other answer, a 400 of ComfyUI's validation as much as the 500 of
//! a custom node's bug, shows a server at work and ends the row; `consecutive_5xx` counts all 5xx
//! for those who want that. What a *custom node's* own route answers, or leaves unanswered, says
//! nothing of the server ([`Class::Custom`]): one broken extension must not take out a machine that
//! makes pictures. Nor does anything that a client could bring about by itself: silence while its
//! body is still on the way is its own.
//!
//! **What it may not do.** Never more than `max_ejection_percent` of the backends in service (at
//! most half) are out by this rule, and never the last one that could serve: a farm whose network
//! fails as a whole must not be emptied by the attempt to help. When all others go down for other
//! reasons, the ejected ones are taken back at once (the *panic* rule): a doubtful server is better
//! than a certain 503. A backend that goes down by its probes is health's business alone: its
//! ejection ends, and it comes back by its probes.
//!
//! This module is pure; [`warden`] applies it to the fleet.

pub mod warden;

use std::time::Duration;

use crate::clock::Moment;
use crate::comfy::class::Class;
use crate::config::Outlier;
use crate::retry::Failure;

/// More ejections than this in a row do not lengthen the next one, whatever the base time.
const MOST_TIMES: u32 = 1 << 16;

/// What a request tells of the backend it went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// It answers.
    Good,
    /// It answers with an error of its own making.
    ServerError,
    /// Nobody is there to answer.
    GatewayFailure(&'static str),
}

impl Evidence {
    /// What an answer's status tells; nothing for some of custom nodes' routes.
    pub fn of_status(class: Class, status: u16) -> Option<Self> {
        match status {
            500.. if class == Class::Custom => None,
            502 => Some(Self::GatewayFailure("answer 502")),
            503 => Some(Self::GatewayFailure("answer 503")),
            504 => Some(Self::GatewayFailure("answer 504")),
            500.. => Some(Self::ServerError),
            _ => Some(Self::Good),
        }
    }

    /// What a failed connection tells; nothing when the client or a custom node may have had it
    /// fail. `asked`: the whole request had been sent.
    pub fn of_failure(class: Class, failure: Failure, asked: bool) -> Option<Self> {
        match failure {
            Failure::Connect => Some(Self::GatewayFailure("no connection")),
            Failure::Reset if asked && class != Class::Custom => {
                Some(Self::GatewayFailure("connection lost"))
            }
            Failure::Timeout if asked && class != Class::Custom => {
                Some(Self::GatewayFailure("no answer in time"))
            }
            Failure::Reset | Failure::Timeout => None,
        }
    }
}

/// What is remembered of one backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    gateway_failures: u32,
    errors: u32,
    /// Ejections that the next one's length counts.
    times: u32,
    /// When the ejection under way ends.
    until: Option<Moment>,
    /// It was ejected since the last sweep.
    was_out: bool,
}

impl Tally {
    /// Whether the next good answer would change nothing.
    pub fn is_clean(&self) -> bool {
        self.gateway_failures == 0 && self.errors == 0
    }

    /// Whether it is ejected.
    pub fn is_out(&self) -> bool {
        self.until.is_some()
    }

    /// Takes evidence; a reason when the row is long enough for an ejection. What was under way
    /// when it was ejected does not count.
    pub fn observe(&mut self, evidence: Evidence, rule: &Outlier) -> Option<String> {
        if self.is_out() {
            return None;
        }
        match evidence {
            Evidence::Good => {
                self.clear();
                None
            }
            Evidence::ServerError => {
                self.gateway_failures = 0;
                self.errors = self.errors.saturating_add(1);
                row(self.errors, rule.consecutive_5xx, "an answer of 500 or more")
            }
            Evidence::GatewayFailure(what) => {
                self.gateway_failures = self.gateway_failures.saturating_add(1);
                self.errors = self.errors.saturating_add(1);
                row(self.gateway_failures, rule.consecutive_gateway_failure, what)
                    .or_else(|| row(self.errors, rule.consecutive_5xx, what))
            }
        }
    }

    /// Ejects it; for how long.
    pub fn eject(&mut self, rule: &Outlier, now: Moment) -> Duration {
        self.clear();
        self.times = (self.times + 1).min(MOST_TIMES);
        let longest = rule.max_ejection_time.max(rule.base_ejection_time);
        let length = rule.base_ejection_time.saturating_mul(self.times).min(longest);
        self.until = Some(now.plus(length));
        self.was_out = true;
        length
    }

    /// Takes it back.
    pub fn release(&mut self) {
        self.clear();
        self.until = None;
    }

    /// A round of every `interval`; true when its time is over and it is to be taken back.
    pub fn sweep(&mut self, now: Moment) -> bool {
        if let Some(until) = self.until {
            return now >= until;
        }
        if !std::mem::take(&mut self.was_out) {
            self.times = self.times.saturating_sub(1);
        }
        false
    }

    fn clear(&mut self) {
        (self.gateway_failures, self.errors) = (0, 0);
    }
}

fn row(count: u32, limit: u32, what: &str) -> Option<String> {
    (limit > 0 && count >= limit).then(|| format!("{count} failures in a row, last: {what}"))
}

/// What the rule sees of the farm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Farm {
    /// Backends that are part of it and not disabled.
    pub members: usize,
    /// Of those, ejected.
    pub ejected: usize,
    /// Of those, able to take clients, the one in question aside.
    pub others: usize,
}

impl Farm {
    /// Whether one more may be ejected.
    pub fn may_eject(&self, rule: &Outlier) -> bool {
        let allowed = self.members * rule.max_ejection_percent as usize / 100;
        self.others > 0 && self.ejected < allowed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rule() -> Outlier {
        crate::config::parse("backends: ['http://a:1']").unwrap().outlier
    }

    fn lost() -> Evidence {
        Evidence::GatewayFailure("connection lost")
    }

    #[test]
    fn five_gateway_failures_in_a_row_are_enough_and_a_good_answer_ends_the_row() {
        let mut tally = Tally::default();
        for _ in 0..4 {
            assert_eq!(tally.observe(lost(), &rule()), None);
        }
        tally.observe(Evidence::Good, &rule());
        assert!(tally.is_clean());
        for _ in 0..4 {
            assert_eq!(tally.observe(lost(), &rule()), None);
        }
        let reason = tally.observe(lost(), &rule()).unwrap();
        assert_eq!(reason, "5 failures in a row, last: connection lost");
    }

    #[test]
    fn errors_of_the_application_end_the_row_unless_they_are_asked_for() {
        let mut tally = Tally::default();
        for _ in 0..100 {
            assert_eq!(tally.observe(Evidence::ServerError, &rule()), None);
        }
        for _ in 0..4 {
            tally.observe(lost(), &rule());
        }
        assert_eq!(tally.observe(Evidence::ServerError, &rule()), None);
        assert_eq!(tally.observe(lost(), &rule()), None, "the row began anew");
        let strict = Outlier { consecutive_5xx: 3, ..rule() };
        let mut tally = Tally::default();
        tally.observe(Evidence::ServerError, &strict);
        tally.observe(lost(), &strict);
        assert!(tally.observe(Evidence::ServerError, &strict).is_some());
        let off = Outlier { consecutive_gateway_failure: 0, ..rule() };
        let mut tally = Tally::default();
        assert!((0..100).all(|_| tally.observe(lost(), &off).is_none()));
    }

    #[test]
    fn what_a_client_or_a_custom_node_can_bring_about_is_no_evidence() {
        let (own, custom) = (Class::Control, Class::Custom);
        for status in [500, 502, 503, 504, 599] {
            assert_eq!(Evidence::of_status(custom, status), None, "{status}");
        }
        assert_eq!(Evidence::of_status(custom, 200), Some(Evidence::Good));
        for status in [200, 101, 304, 400, 403, 404, 413, 429] {
            assert_eq!(Evidence::of_status(own, status), Some(Evidence::Good), "{status}");
        }
        for status in [500, 501, 505] {
            assert_eq!(Evidence::of_status(own, status), Some(Evidence::ServerError), "{status}");
        }
        for status in [502, 503, 504] {
            let evidence = Evidence::of_status(own, status).unwrap();
            assert!(matches!(evidence, Evidence::GatewayFailure(_)), "{status}");
        }
        for failure in [Failure::Reset, Failure::Timeout] {
            assert_eq!(Evidence::of_failure(own, failure, false), None, "its body is on the way");
            assert_eq!(Evidence::of_failure(custom, failure, true), None);
            assert!(Evidence::of_failure(own, failure, true).is_some());
        }
        for class in [own, custom] {
            assert!(Evidence::of_failure(class, Failure::Connect, false).is_some());
        }
    }

    #[test]
    fn each_ejection_is_longer_up_to_a_bound_and_good_times_shorten_the_next() {
        let (mut tally, mut now) = (Tally::default(), Moment(1000));
        let mut lengths = Vec::new();
        for _ in 0..12 {
            let length = tally.eject(&rule(), now);
            assert_eq!(tally.observe(lost(), &rule()), None, "it is out");
            now = now.plus(length);
            assert!(!tally.sweep(Moment(now.0 - 1)));
            assert!(tally.sweep(now));
            tally.release();
            assert!(!tally.sweep(now), "a sweep in which it was out takes nothing off");
            lengths.push(length.as_secs());
        }
        assert_eq!(lengths, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
        for _ in 0..11 {
            tally.sweep(now);
        }
        assert_eq!(tally.eject(&rule(), now), 60 * SECOND, "eleven of twelve were taken off");
    }

    #[test]
    fn half_of_the_farm_stays_and_so_does_the_last_one() {
        let may = |members, ejected, others| Farm { members, ejected, others }.may_eject(&rule());
        assert!(!may(1, 0, 0), "a farm of one");
        assert!(!may(1, 0, 1));
        assert!(may(2, 0, 1) && !may(2, 1, 0));
        assert!(may(3, 0, 2) && !may(3, 1, 1), "one of three");
        assert!(may(4, 1, 2) && !may(4, 2, 1));
        assert!(!may(10, 0, 0), "the others are down");
        let none = Outlier { max_ejection_percent: 0, ..rule() };
        assert!(!Farm { members: 10, ejected: 0, others: 9 }.may_eject(&none));
    }

    proptest! {
        /// Whatever comes, in whatever order: an ejection needs a full row of failures, and lasts
        /// no longer than the longest.
        #[test]
        fn no_ejection_without_a_row(steps in prop::collection::vec((0u8..4, 0u64..40_000), 0..300)) {
            let (mut tally, mut now, mut in_a_row) = (Tally::default(), Moment(1000), 0u32);
            for (step, pause) in steps {
                now = now.plus(Duration::from_millis(pause));
                let evidence = match step {
                    0 => Evidence::Good,
                    1 => Evidence::ServerError,
                    _ => lost(),
                };
                in_a_row = if step > 1 && !tally.is_out() { in_a_row + 1 } else { 0 };
                if tally.observe(evidence, &rule()).is_some() {
                    prop_assert!(in_a_row >= 5);
                    prop_assert!(tally.eject(&rule(), now) <= 300 * SECOND);
                    in_a_row = 0;
                }
                if tally.sweep(now) {
                    tally.release();
                }
            }
        }
    }
}
