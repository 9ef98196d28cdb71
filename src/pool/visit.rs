//! Who makes a request, as pool mode's own handlers see it.

use std::sync::Arc;

use crate::edge::envelope::Envelope;
use crate::identity::ClientKey;

/// Who asks. The front door has found it out; handlers get it as an extension of the request.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The caller.
    pub key: ClientKey,
    /// The caller for people.
    pub caller: Arc<str>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// The kind of work the request asks for.
    pub task_type: Option<Box<str>>,
}

impl Visit {
    /// Of a request.
    pub fn of(envelope: &Envelope) -> Self {
        let mark = envelope.mark.as_ref().map(|mark| mark.task_type.as_str());
        Self {
            key: envelope.key,
            caller: envelope.caller.to_string().into(),
            zone: envelope.zone.as_deref().map(Into::into),
            task_type: mark.filter(|mark| !mark.is_empty()).map(Into::into),
        }
    }
}
