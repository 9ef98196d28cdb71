//! Folds the progress steps of a run whose length is a race: how many steps passed before an
//! interrupt took effect, or before and after a reconnect, differs from run to run.
//!
//! One step is `progress_state`, `progress` and a preview, in the order the server chose. Further
//! steps, each one higher and otherwise equal, vanish; anything else among them stays and differs.

use serde_json::Value;

/// Keeps the first of consecutive steps. In a `window` (a socket that came in the middle and left
/// in the middle) its value is anonymous, and steps cut by the window's edges vanish too.
pub(super) fn fold(frames: &[Value], window: bool) -> Vec<Value> {
    let mut folded: Vec<Value> = Vec::new();
    let mut last: Option<(u64, [Value; 3])> = None;
    let mut rest = frames;
    while let [first, others @ ..] = rest {
        let Some((value, step)) = step_at(rest) else {
            if !window || !is_edge(rest, last.as_ref()) {
                folded.push(first.clone());
                rest = others;
                continue;
            }
            break;
        };
        match &last {
            Some((before, shape)) if value == before + 1 && *shape == step => {}
            None if window => {
                drop_leading_edge(&mut folded, value, &step);
                folded.extend(step.clone());
            }
            _ => folded.extend_from_slice(&rest[..3]),
        }
        last = Some((value, step));
        rest = &rest[3..];
    }
    folded
}

/// A whole step at the head of the frames: its value, and its frames with the value anonymous.
fn step_at(frames: &[Value]) -> Option<(u64, [Value; 3])> {
    let [a, b, c, ..] = frames else { return None };
    let value = running_value(a)?;
    let is_progress = |frame: &Value| progress_value(frame) == Some(value);
    let is_preview = |frame: &Value| frame.get("binary").is_some();
    let whole = (is_progress(b) && is_preview(c)) || (is_preview(b) && is_progress(c));
    whole.then(|| (value, [anonymous(a), anonymous(b), anonymous(c)]))
}

/// The value of a `progress_state` in which exactly one node runs, with a whole positive value.
fn running_value(frame: &Value) -> Option<u64> {
    let nodes = frame.pointer("/data/nodes")?.as_object()?;
    let mut running = nodes.values().filter(|node| node.get("state") == Some(&"running".into()));
    let value = running.next()?.get("value")?.as_u64().filter(|value| *value > 0);
    value.filter(|_| running.next().is_none() && is_type(frame, "progress_state"))
}

fn progress_value(frame: &Value) -> Option<u64> {
    is_type(frame, "progress").then(|| frame.pointer("/data/value")?.as_u64())?
}

fn is_type(frame: &Value, kind: &str) -> bool {
    frame.get("type").and_then(Value::as_str) == Some(kind)
}

/// The frame with its step's value replaced.
fn anonymous(frame: &Value) -> Value {
    let mut frame = frame.clone();
    if progress_value(&frame).is_some()
        && let Some(value) = frame.pointer_mut("/data/value")
    {
        *value = "<step>".into();
    }
    if running_value(&frame).is_some()
        && let Some(nodes) = frame.pointer_mut("/data/nodes").and_then(Value::as_object_mut)
    {
        for node in nodes.values_mut().filter(|node| node.get("state") == Some(&"running".into())) {
            node["value"] = "<step>".into();
        }
    }
    frame
}

/// Whether the frames left are the beginning of the next step, cut off.
fn is_edge(frames: &[Value], last: Option<&(u64, [Value; 3])>) -> bool {
    let Some((value, shape)) = last else { return false };
    frames.len() < 3
        && frames.iter().zip(shape).all(|(frame, like)| anonymous(frame) == *like)
        && frames.iter().filter_map(value_of).all(|own| own == value + 1)
}

/// Drops the end of the step before the first whole one, where the window began inside it.
fn drop_leading_edge(folded: &mut Vec<Value>, value: u64, step: &[Value; 3]) {
    for tail in [&step[1..], &step[2..]] {
        let Some(start) = folded.len().checked_sub(tail.len()) else { continue };
        let same = folded[start..].iter().zip(tail).all(|(frame, like)| anonymous(frame) == *like);
        let before = folded[start..].iter().filter_map(value_of).all(|own| own + 1 == value);
        if same && before {
            folded.truncate(start);
            return;
        }
    }
}

fn value_of(frame: &Value) -> Option<u64> {
    progress_value(frame).or_else(|| running_value(frame))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn step(value: u64) -> Vec<Value> {
        let state = json!({"1": {"value": value, "max": 9, "state": "running"}});
        vec![
            json!({"type": "progress_state", "data": {"nodes": state}}),
            json!({"type": "progress", "data": {"value": value, "max": 9}}),
            json!({"binary": 1}),
        ]
    }

    fn run(values: std::ops::RangeInclusive<u64>) -> Vec<Value> {
        values.flat_map(step).collect()
    }

    #[test]
    fn any_number_of_consecutive_steps_is_one() {
        assert_eq!(fold(&run(1..=5), false), run(1..=1));
        assert_ne!(fold(&run(2..=5), false), run(1..=1), "the first step is missing");
        let gap = [run(1..=2), run(4..=4)].concat();
        assert_ne!(fold(&gap, false), run(1..=1), "the third step is missing");
    }

    #[test]
    fn a_window_may_begin_and_end_inside_a_step() {
        let frames = run(2..=6);
        let expected = fold(&frames, true);
        assert_eq!(expected.len(), 3);
        for (from, to) in [(1, 12), (2, 13), (3, 14), (0, 11)] {
            assert_eq!(fold(&frames[from..to], true), expected, "{from}..{to}");
        }
    }

    #[test]
    fn a_disturbed_step_stays_visible() {
        for (a, b) in [(3, 4), (4, 5), (5, 6), (8, 9)] {
            let mut frames = run(1..=4);
            frames.swap(a, b);
            assert_ne!(fold(&frames, false), run(1..=1), "{a} and {b} swapped");
        }
    }
}
