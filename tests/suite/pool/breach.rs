//! Simulators that do something wrong, so that a proof can be seen to notice it.

use std::sync::Arc;

use comfygate::sim::{ReplyTap, SimConfig, Tap, TapFrame};
use parking_lot::Mutex;
use serde_json::Value;

/// What a simulator does wrong, now and then.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Breach {
    /// Events reach somebody else.
    Misdirect,
    /// An event of this type is lost.
    Lose(&'static str),
    /// An event of this type comes twice.
    Double(&'static str),
    /// The reply on this path loses its first entry.
    Forget(&'static str),
    /// Every file is reported under its neighbour's name.
    Misname,
}

pub(crate) const BREACHES: [Breach; 11] = [
    Breach::Misdirect,
    Breach::Lose("execution_start"),
    Breach::Lose("executing"),
    Breach::Lose("executed"),
    Breach::Lose("execution_success"),
    Breach::Double("execution_success"),
    Breach::Double("progress"),
    Breach::Double("executed"),
    Breach::Forget("/history"),
    Breach::Forget("/api/jobs"),
    Breach::Misname,
];

/// How many events there are between two breaches.
const EVERY: usize = 4;

impl Breach {
    /// Breaks a simulator.
    pub(crate) fn apply(self, config: SimConfig) -> SimConfig {
        let count = Arc::new(Mutex::new((0, None)));
        let tap: Tap = Arc::new(move |sid, frame| {
            let kind = match &frame {
                TapFrame::Text(value) => value["type"].as_str().unwrap_or_default().to_owned(),
                TapFrame::Binary(_) => String::new(),
            };
            let concerned = match self {
                Self::Misdirect => !matches!(kind.as_str(), "" | "status" | "feature_flags"),
                Self::Lose(kinds) | Self::Double(kinds) => kind == kinds,
                _ => false,
            };
            let (mut count, own) = (count.lock(), vec![(sid.to_owned(), frame.clone())]);
            let other = count.1.replace(sid.to_owned()).filter(|other| other != sid);
            count.0 += usize::from(concerned);
            if !concerned || count.0 % EVERY != 0 {
                return own;
            }
            match (self, other) {
                (Self::Lose(_), _) => Vec::new(),
                (Self::Double(_), _) => [own.clone(), own].concat(),
                (_, Some(other)) => vec![(other, frame)],
                // Nobody else yet: the next one.
                _ => {
                    count.0 -= 1;
                    own
                }
            }
        });
        let reply: ReplyTap = Arc::new(move |path, reply| match self {
            Self::Forget(of) if path == of => match reply {
                Value::Object(map) if map.contains_key("jobs") => {
                    let jobs = map["jobs"].as_array_mut().unwrap();
                    jobs.truncate(jobs.len().saturating_sub(1));
                }
                Value::Object(map) => {
                    let last = map.keys().next_back().cloned();
                    last.and_then(|id| map.remove(&id));
                }
                _ => {}
            },
            Self::Misname if path == "/history" => {
                let text = reply.to_string().replace("_00002_.png", "_00003_.png");
                *reply = serde_json::from_str(&text).unwrap();
            }
            _ => {}
        });
        SimConfig { tap: Some(tap), reply_tap: Some(reply), ..config }
    }
}
