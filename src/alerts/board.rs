//! Which conditions there are, and how they stand: pure, fed with what is seen of the farm.

use std::collections::BTreeMap;

use jiff::{Timestamp, Unit};

use super::condition::{Condition, Hysteresis, Turn};
use crate::clock::Moment;

/// What an alert is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A backend that should serve does not answer.
    Down(String),
    /// A backend's running prompt shows no life.
    Suspect(String),
    /// A backend failed real requests, and is out for a time.
    Ejected(String),
    /// No backend can take a request.
    NoHealthy,
    /// More prompts wait than `alerts.queue_above`.
    Queue,
}

/// What is seen of the farm at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// The backends.
    pub backends: Vec<Seen>,
    /// Prompts that wait, on all of them.
    pub queued: u64,
    /// `alerts.queue_above`.
    pub queue_above: u64,
}

/// What is seen of one backend.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its state's name.
    pub state: &'static str,
    /// It answers and is in service.
    pub healthy: bool,
}

impl Sight {
    /// What is seen of a backend; `None` when it is no longer part of the fleet.
    pub fn backend(&self, name: &str) -> Option<&Seen> {
        self.backends.iter().find(|seen| seen.name == name)
    }

    /// Backends that answer and are in service.
    pub fn healthy(&self) -> usize {
        self.backends.iter().filter(|seen| seen.healthy).count()
    }

    /// Everything that can be wrong, and whether it is.
    fn conditions(&self) -> BTreeMap<Subject, bool> {
        let mut conditions = BTreeMap::from([
            // Before the first look ends nothing is known to be wrong.
            (
                Subject::NoHealthy,
                self.healthy() == 0 && self.backends.iter().all(|seen| seen.state != "unknown"),
            ),
            (Subject::Queue, self.queued > self.queue_above),
        ]);
        for seen in &self.backends {
            conditions.insert(Subject::Down(seen.name.clone()), seen.state == "down");
            conditions.insert(Subject::Suspect(seen.name.clone()), seen.state == "suspect");
            conditions.insert(Subject::Ejected(seen.name.clone()), seen.state == "ejected");
        }
        conditions
    }
}

/// A condition that began to fire, or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turned {
    /// What it is about.
    pub subject: Subject,
    /// The alert's number: the same when it fires and when it clears.
    pub number: u64,
    /// When what is wrong began.
    pub began: Timestamp,
    /// When it was over; `None` while it fires.
    pub ended: Option<Timestamp>,
}

/// Every condition that is of interest now.
#[derive(Debug)]
pub struct Board {
    hysteresis: Hysteresis,
    watched: BTreeMap<Subject, Watched>,
    alerts: u64,
}

#[derive(Debug, Default)]
struct Watched {
    condition: Condition,
    /// The alert that fires now: its number, and when it began.
    alert: Option<(u64, Timestamp)>,
}

impl Board {
    /// A board on which nothing fires.
    pub fn new(hysteresis: Hysteresis) -> Self {
        Self { hysteresis, watched: BTreeMap::new(), alerts: 0 }
    }

    /// Takes what is seen now; what changed by it. `wall` is `now` on the wall clock.
    pub fn look(&mut self, sight: &Sight, now: Moment, wall: Timestamp) -> Vec<Turned> {
        let mut conditions = sight.conditions();
        // What a backend that went still has firing must come to its end.
        for subject in self.watched.keys() {
            conditions.entry(subject.clone()).or_insert(false);
        }
        let turned = conditions
            .into_iter()
            .filter_map(|(subject, holds)| self.observe(subject, holds, now, wall))
            .collect();
        self.watched.retain(|_, watched| !watched.condition.is_quiet());
        turned
    }

    fn observe(
        &mut self,
        subject: Subject,
        holds: bool,
        now: Moment,
        wall: Timestamp,
    ) -> Option<Turned> {
        let watched = self.watched.entry(subject.clone()).or_default();
        let at = |moment: Moment| to_millisecond(wall.checked_sub(now.since(moment)), wall);
        let turn = watched.condition.observe(holds, now, &self.hysteresis)?;
        let (number, began, ended) = match turn {
            Turn::Fire(began) => {
                self.alerts += 1;
                // Kept as it is told now: worked out again later it would differ by a little.
                watched.alert = Some((self.alerts, at(began)));
                (self.alerts, at(began), None)
            }
            Turn::Clear(ended) => {
                let (number, began) = watched.alert.take()?;
                (number, began, Some(at(ended)))
            }
        };
        Some(Turned { subject, number, began, ended })
    }
}

fn to_millisecond<E>(then: Result<Timestamp, E>, otherwise: Timestamp) -> Timestamp {
    let then = then.unwrap_or(otherwise);
    then.round(Unit::Millisecond).unwrap_or(then)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(states: &[(&str, &'static str)], queued: u64) -> Sight {
        let seen = |&(name, state): &(&str, &'static str)| Seen {
            name: name.to_owned(),
            state,
            healthy: matches!(state, "up" | "suspect" | "drain"),
        };
        Sight { backends: states.iter().map(seen).collect(), queued, queue_above: 10 }
    }

    fn wall(millisecond: u64) -> Timestamp {
        Timestamp::from_millisecond(millisecond.cast_signed()).unwrap()
    }

    /// Shows one sight for some seconds; subjects that turned, and whether they fire.
    fn show(
        board: &mut Board,
        clock: &mut u64,
        seconds: u64,
        sight: &Sight,
    ) -> Vec<(Subject, bool)> {
        let mut turned = Vec::new();
        for _ in 0..seconds {
            *clock += 1000;
            turned.extend(board.look(sight, Moment(*clock), wall(*clock)));
        }
        turned.into_iter().map(|turned| (turned.subject, turned.ended.is_none())).collect()
    }

    #[test]
    fn each_thing_that_breaks_is_told_and_so_is_its_end() {
        let (mut board, mut clock) = (Board::new(Hysteresis::default()), 0);
        let well = sight(&[("a", "up"), ("b", "up")], 10);
        let down = |name: &str| Subject::Down(name.to_owned());
        assert_eq!(show(&mut board, &mut clock, 60, &well), []);
        let broken = sight(&[("a", "down"), ("b", "down")], 11);
        assert_eq!(
            show(&mut board, &mut clock, 60, &broken),
            [
                (down("a"), true),
                (down("b"), true),
                (Subject::NoHealthy, true),
                (Subject::Queue, true)
            ]
        );
        let half = sight(&[("a", "suspect"), ("b", "down")], 0);
        assert_eq!(
            show(&mut board, &mut clock, 60, &half),
            [
                (Subject::Suspect("a".into()), true),
                (down("a"), false),
                (Subject::NoHealthy, false),
                (Subject::Queue, false)
            ]
        );
    }

    #[test]
    fn an_ejected_backend_is_told_of_and_is_not_down() {
        let (mut board, mut clock) = (Board::new(Hysteresis::default()), 0);
        let out = sight(&[("a", "up"), ("b", "ejected")], 0);
        let ejected = Subject::Ejected("b".to_owned());
        assert_eq!(show(&mut board, &mut clock, 60, &out), [(ejected.clone(), true)]);
        let back = sight(&[("a", "up"), ("b", "up")], 0);
        assert_eq!(show(&mut board, &mut clock, 60, &back), [(ejected, false)]);
    }

    #[test]
    fn a_disabled_backend_is_not_down_and_an_unknown_farm_not_dead() {
        let (mut board, mut clock) = (Board::new(Hysteresis::default()), 0);
        assert_eq!(show(&mut board, &mut clock, 60, &sight(&[("a", "unknown")], 0)), []);
        let idle = sight(&[("a", "up"), ("b", "disabled"), ("c", "drain")], 0);
        assert_eq!(show(&mut board, &mut clock, 60, &idle), []);
    }

    #[test]
    fn a_backend_that_is_removed_ends_its_alert_and_is_forgotten() {
        let (mut board, mut clock) = (Board::new(Hysteresis::default()), 0);
        let down = Subject::Down("b".to_owned());
        let both = sight(&[("a", "up"), ("b", "down")], 0);
        assert_eq!(show(&mut board, &mut clock, 60, &both), [(down.clone(), true)]);
        let one = sight(&[("a", "up")], 0);
        assert_eq!(show(&mut board, &mut clock, 60, &one), [(down, false)]);
        assert!(board.watched.is_empty());
    }

    #[test]
    fn both_ends_of_an_alert_carry_its_number() {
        let mut board = Board::new(Hysteresis::default());
        let mut turned = Vec::new();
        for second in 0..120 {
            let state = if second < 40 { "down" } else { "up" };
            let sight = sight(&[("a", "up"), ("b", state)], 0);
            // The wall clock is set back while the alert fires.
            let wall = wall(second * 1000 - second / 20);
            turned.extend(board.look(&sight, Moment(second * 1000), wall));
        }
        let [down, up] = &turned[..] else { panic!("{turned:?}") };
        assert_eq!((down.number, down.began), (up.number, up.began));
        assert_eq!((down.ended, up.ended), (None, Some(wall(39_997))));
    }
}
