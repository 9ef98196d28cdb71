//! The last hour as SVG, drawn here: lines in a box that the page's stylesheet colours, so that
//! they follow light and dark. Words and numbers stand beside the drawing as HTML, which keeps
//! its size on a phone; a box that stretches would stretch text.

use std::fmt::Write;

use maud::{Markup, html};

use super::words::{Lang, Word};
use crate::admin::history::{LENGTH, SAMPLE_EVERY, Sample};
use crate::clock::Moment;

/// Lines with a colour and a name of their own; the others are grey.
const COLOURS: usize = 8;
/// The box.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 200.0;
/// Samples across: five minutes while the gateway is young, then a quarter of an hour, half, all.
const SPANS: [usize; 3] = [LENGTH / 12, LENGTH / 4, LENGTH / 2];

/// A line: a value, or none, for each place from the span's beginning until now.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    name: String,
    values: Vec<Option<f64>>,
}

impl Line {
    fn peak(&self) -> f64 {
        self.values.iter().flatten().fold(0.0, |peak, value| peak.max(*value))
    }

    fn last(&self) -> Option<f64> {
        self.values.last().copied().flatten()
    }
}

/// The samples and where they stand.
#[derive(Clone, Copy)]
struct Samples<'a> {
    all: &'a [Sample],
    span: usize,
    /// When the newest was taken.
    now: Moment,
}

/// Samples between two moments, to the nearest: none comes on the dot.
fn steps(from: Moment, to: Moment) -> usize {
    let every = SAMPLE_EVERY.as_millis();
    ((to.since(from).as_millis() + every / 2) / every) as usize
}

impl Samples<'_> {
    fn line(&self, name: &str, value: impl Fn(&Sample) -> Option<f64>) -> Line {
        let mut values = vec![None; self.span];
        for sample in self.all {
            if let Some(place) = self.place(sample.at) {
                values[place] = value(sample);
            }
        }
        Line { name: name.to_owned(), values }
    }

    /// Where a sample stands: the newest on the right.
    fn place(&self, at: Moment) -> Option<usize> {
        (self.span - 1).checked_sub(steps(at, self.now))
    }
}

/// The three charts.
pub(super) fn all(samples: &[Sample], lang: Lang) -> Markup {
    let now = samples.last().map(|sample| sample.at).unwrap_or_default();
    let oldest = samples.first().map_or(0, |sample| steps(sample.at, now));
    let span = SPANS.into_iter().find(|span| oldest < *span).unwrap_or(LENGTH);
    let samples = Samples { all: samples, span, now };
    let title = Word::FlowChart.say(lang);
    let flow = [samples.line(title, |sample| sample.pulse.finished_per_minute)];
    let waits = [
        samples.line(Word::Median.say(lang), |sample| sample.pulse.wait_p50),
        samples.line("p95", |sample| sample.pulse.wait_p95),
    ];
    html! {
        (chart(Word::QueueChart, queues(samples, lang), lang))
        (chart(Word::FlowChart, flow.into(), lang))
        (chart(Word::WaitChart, waits.into(), lang))
    }
}

/// A line for each backend that is in the last sample, the busiest first; one for the others.
fn queues(samples: Samples<'_>, lang: Lang) -> Vec<Line> {
    let Some(last) = samples.all.last() else { return Vec::new() };
    let mut lines: Vec<Line> = last
        .queues
        .iter()
        .enumerate()
        .map(|(index, (name, _))| {
            samples.line(name, |sample| {
                // Most often backends keep their order.
                let here = sample.queues.get(index).filter(|(at, _)| at == name);
                let found = here.or_else(|| sample.queues.iter().find(|(at, _)| at == name));
                found.map(|(_, prompts)| f64::from(*prompts))
            })
        })
        .collect();
    if lines.len() > COLOURS {
        lines.sort_by(|one, other| other.peak().total_cmp(&one.peak()));
    }
    if last.others.is_some() {
        let others = |sample: &Sample| sample.others.map(f64::from);
        lines.push(samples.line(Word::Others.say(lang), others));
    }
    lines
}

fn chart(title: Word, lines: Vec<Line>, lang: Lang) -> Markup {
    let lines: Vec<Line> =
        lines.into_iter().filter(|line| line.values.iter().any(Option::is_some)).collect();
    let peak = lines.iter().map(Line::peak).fold(0.0, f64::max);
    let top = ceiling(peak);
    let title = title.say(lang);
    html! {
        figure.chart {
            figcaption { (title) }
            @if lines.is_empty() {
                p.empty { (Word::NothingYet.say(lang)) }
            } @else {
                (drawing(title, &lines, peak, top, lang))
                (legend(&lines, lang))
            }
        }
    }
}

fn drawing(title: &str, lines: &[Line], peak: f64, top: f64, lang: Lang) -> Markup {
    let label = format!("{title}, {}: {}", Word::Peak.say(lang), number(peak));
    let span = lines.first().map_or(0, |line| line.values.len());
    let minutes = (span as u64 * SAMPLE_EVERY.as_secs()) as f64 / 60.0;
    let ago = |minutes: f64| format!("{} {}", number(minutes), Word::MinutesAgo.say(lang));
    html! {
        div.plot {
            div.scale aria-hidden="true" {
                span { (number(top)) } span { (number(top / 2.0)) } span { "0" }
            }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none"
                role="img" aria-label=(label) {
                @for share in [0.0, 0.5, 1.0] {
                    path.rule d=(format!("M0 {0}H{WIDTH}", HEIGHT * share)) {}
                }
                @for (number, line) in lines.iter().enumerate().rev() {
                    path class=(colour(number)) d=(path(&line.values, top)) {}
                }
            }
            div.span aria-hidden="true" {
                span { (ago(minutes)) }
                span { (ago(minutes / 2.0)) }
                span { (Word::Now.say(lang)) }
            }
        }
    }
}

fn legend(lines: &[Line], lang: Lang) -> Markup {
    html! {
        ul.legend {
            @for (number, line) in lines.iter().take(COLOURS).enumerate() {
                li {
                    span class={ "swatch " (colour(number)) } {}
                    span.name { (line.name) } " "
                    b { @match line.last() { Some(value) => (self::number(value)), None => "–" } }
                }
            }
            @if lines.len() > COLOURS {
                li {
                    span.swatch.grey {}
                    (Word::Others.say(lang)) " " b { "+" (lines.len() - COLOURS) }
                }
            }
        }
    }
}

fn colour(number: usize) -> String {
    if number < COLOURS { format!("c{number}") } else { "grey".to_owned() }
}

/// The path of a line: gaps stay gaps, and a lone point is a dot.
fn path(values: &[Option<f64>], top: f64) -> String {
    let mut path = String::new();
    let mut drawing = false;
    let step = WIDTH / values.len().saturating_sub(1).max(1) as f64;
    for (place, value) in values.iter().enumerate() {
        let Some(value) = value else {
            drawing = false;
            continue;
        };
        let x = place as f64 * step;
        let y = HEIGHT * (1.0 - (value / top).clamp(0.0, 1.0));
        let lone = !drawing && values.get(place + 1).is_none_or(Option::is_none);
        let pen = if drawing { 'L' } else { 'M' };
        let _ = write!(path, "{pen}{x:.1} {y:.1}");
        if lone {
            path.push_str("h.01");
        }
        drawing = true;
    }
    path
}

/// The least round number that is not below a peak: 1, 2 or 5 times a power of ten, 2 at least,
/// so that half of it is a whole number of prompts.
fn ceiling(peak: f64) -> f64 {
    let mut power = 1.0;
    while power < 1e15 {
        for step in [2.0, 4.0, 10.0] {
            if step * power >= peak {
                return step * power;
            }
        }
        power *= 10.0;
    }
    peak
}

fn number(value: f64) -> String {
    if value >= 10.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admin::history::Pulse;

    fn samples(count: u64, backends: usize) -> Vec<Sample> {
        let names: Vec<Arc<str>> = (0..backends).map(|b| format!("<b{b}>").into()).collect();
        (0..count)
            .map(|number| Sample {
                // As ragged as real ones.
                at: Moment(1000 + number * 10_000 + number % 3 * 1200),
                queues: names.iter().map(|name| (Arc::clone(name), number as u32)).collect(),
                others: None,
                pulse: Pulse { finished_per_minute: Some(3.5), ..Pulse::default() },
            })
            .collect()
    }

    fn drawn(count: u64, backends: usize) -> String {
        all(&samples(count, backends), Lang::En).into_string()
    }

    #[test]
    fn no_point_one_point_and_many_are_drawn() {
        let none = drawn(0, 2);
        assert_eq!(none.matches("Nothing to show yet").count(), 3);
        assert!(!none.contains("<svg"), "{none}");

        let one = drawn(1, 1);
        assert!(one.contains(r#"class="c0" d="M720.0 200.0h.01""#), "{one}");
        // Waits are not known, throughput is.
        assert_eq!(one.matches("<svg").count(), 2);

        let many = drawn(400, 2);
        assert!(many.contains(r#"class="c1" d="M0.0 "#), "{many}");
        assert!(!many.contains("NaN") && !many.contains("inf"));
        let pens_set_down = many.split("class=\"c1\" d=\"").nth(1).unwrap();
        let path = pens_set_down.split('"').next().unwrap();
        assert_eq!(path.matches('M').count(), 1, "no gap: {path}");
    }

    #[test]
    fn names_are_escaped_and_more_lines_than_colours_are_grey() {
        let many = drawn(3, 12);
        assert!(many.contains("&lt;b0&gt;") && !many.contains("<b0>"));
        assert_eq!(many.matches(r#"class="grey""#).count(), 4);
        assert!(many.contains("+4"));
    }

    #[test]
    fn the_span_grows_with_what_there_is_to_show() {
        for (count, ago) in [(1, "5 min"), (31, "15 min"), (91, "30 min"), (300, "60 min")] {
            assert!(drawn(count, 1).contains(&format!("{ago} ago")), "{count}");
        }
    }

    #[test]
    fn gaps_stay_gaps() {
        let values = [Some(1.0), Some(2.0), None, Some(1.0), None];
        assert_eq!(path(&values, 2.0), "M0.0 100.0L180.0 0.0M540.0 100.0h.01");
    }

    #[test]
    fn scales_end_at_round_numbers() {
        for (peak, top) in [(0.0, 2.0), (2.0, 2.0), (3.0, 4.0), (5.0, 10.0), (41.0, 100.0)] {
            assert!((ceiling(peak) - top).abs() < 1e-9, "{peak}");
        }
        assert!(ceiling(f64::MAX).is_finite());
    }
}
