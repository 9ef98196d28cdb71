//! When the prompts of one backend's queue will have ended: arithmetic, nothing else.

use crate::clock::Moment;

/// A prompt that has run for longer than predicted is taken to need a tenth of that time more, so
/// that nothing is promised for "now" that has not come for an hour.
const OVERRUN: f64 = 0.1;

/// The prompt that runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Running {
    /// Seconds it was predicted to take.
    pub predicted: f64,
    /// Since when it runs.
    pub since: Moment,
}

impl Running {
    /// Seconds it will still run.
    pub fn remaining(&self, now: Moment) -> f64 {
        let elapsed = now.since(self.since).as_secs_f64();
        (self.predicted - elapsed).max(OVERRUN * elapsed)
    }
}

/// A backend's queue as it was seen last, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlook {
    /// Prompts seen.
    pub prompts: u32,
    /// Predicted seconds of those that waited.
    pub pending: f64,
    /// The one that ran.
    pub running: Option<Running>,
}

impl Outlook {
    /// Seconds until a backend that now holds `prompts` will have done them all. Those beyond what
    /// was seen count `mean` each; when some have ended since, their share is taken off.
    pub fn wait(&self, prompts: u32, mean: f64, now: Moment) -> f64 {
        let seen = self.pending + self.running.map_or(0.0, |running| running.remaining(now));
        if self.prompts > prompts {
            return seen * f64::from(prompts) / f64::from(self.prompts);
        }
        seen + f64::from(prompts - self.prompts) * mean
    }
}

/// Adds up a line, prompt by prompt.
#[derive(Debug)]
pub struct Reckoning {
    outlook: Outlook,
    now: Moment,
}

impl Reckoning {
    /// A line with nobody in it.
    pub fn new(now: Moment) -> Self {
        Self { outlook: Outlook { prompts: 0, pending: 0.0, running: None }, now }
    }

    /// A running prompt; seconds from now until it ends. Should there be several, they run one
    /// after another, for that is what one GPU does.
    pub fn runs(&mut self, running: Running) -> f64 {
        if self.outlook.running.is_some() {
            return self.waits(running.predicted);
        }
        self.outlook.running = Some(running);
        self.outlook.prompts += 1;
        running.remaining(self.now)
    }

    /// The next waiting prompt; seconds from now until it ends.
    pub fn waits(&mut self, predicted: f64) -> f64 {
        self.outlook.pending += predicted;
        self.outlook.prompts = self.outlook.prompts.saturating_add(1);
        let running = self.outlook.running.map_or(0.0, |running| running.remaining(self.now));
        running + self.outlook.pending
    }

    /// The whole line.
    pub fn outlook(&self) -> Outlook {
        self.outlook
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment(100_000);

    fn near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-9, "{one} is not {other}");
    }

    #[test]
    fn a_prompt_ends_when_all_before_it_have() {
        let mut line = Reckoning::new(NOW);
        near(line.runs(Running { predicted: 10.0, since: Moment(96_000) }), 6.0);
        near(line.waits(5.0), 11.0);
        near(line.waits(1.0), 12.0);
        near(line.outlook().wait(3, 99.0, NOW), 12.0);
        near(line.outlook().wait(3, 99.0, Moment(102_000)), 10.0);
    }

    #[test]
    fn an_overdue_prompt_needs_a_tenth_of_its_time_more() {
        let running = Running { predicted: 1.0, since: Moment(40_000) };
        near(running.remaining(NOW), 6.0);
        near(running.remaining(Moment(40_000)), 1.0);
    }

    #[test]
    fn prompts_not_seen_yet_count_the_mean_and_ended_ones_their_share() {
        let mut line = Reckoning::new(NOW);
        line.waits(6.0);
        line.waits(2.0);
        near(line.outlook().wait(4, 10.0, NOW), 28.0);
        near(line.outlook().wait(1, 10.0, NOW), 4.0);
        near(line.outlook().wait(0, 10.0, NOW), 0.0);
    }

    #[test]
    fn a_second_running_prompt_waits_for_the_first() {
        let mut line = Reckoning::new(NOW);
        line.runs(Running { predicted: 4.0, since: NOW });
        near(line.runs(Running { predicted: 3.0, since: NOW }), 7.0);
    }
}
