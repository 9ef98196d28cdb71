//! What a service says of itself when it registers.

use jiff::Timestamp;

use crate::clock::Moment;
use crate::registry::core::{Core, Registered};
use crate::registry::registration::{MAX_NAME, MAX_TASK_TYPES, Registration, Wanted, endpoint};

/// A body of `POST …/register`; what is accepted is stored and read back the same.
pub fn registration(data: &[u8]) {
    if let Some((endpoint_text, _)) =
        std::str::from_utf8(data).ok().and_then(|t| t.split_once('\n'))
    {
        let _ = endpoint(endpoint_text);
    }
    let Ok(wanted) = serde_json::from_slice::<Wanted>(data) else { return };
    let Ok(read) = Registration::try_from(wanted) else { return };
    assert!((1..=MAX_TASK_TYPES).contains(&read.task_types.len()));
    let texts = [&read.service_id, &read.name, &read.version];
    for text in texts.into_iter().chain(&read.task_types) {
        assert!(text.chars().count() <= MAX_NAME && !text.contains(char::is_control));
    }
    assert_eq!(endpoint(&read.url()).ok(), Some((read.endpoint.clone(), read.path.clone())));
    let stored = serde_json::to_vec(&read.to_wanted()).expect("it can be stored");
    let again = serde_json::from_slice::<Wanted>(&stored).expect("what was stored is read");
    assert_eq!(Registration::try_from(again).ok().as_ref(), Some(&read), "as it was");
    let (mut core, now, at) = (Core::default(), Moment(1), Timestamp::UNIX_EPOCH);
    let first = core.register(read.clone(), now, at);
    assert!(matches!(first, Ok(Registered::New(_))));
    assert!(matches!(core.register(read.clone(), now, at), Ok(Registered::Updated(_))));
    let chosen = core.choose(&read.task_types[0], &[], now);
    assert_eq!(chosen.ok(), first.ok().map(Registered::id));
    assert!(core.remove(&read.endpoint).is_some() && core.is_empty());
    assert_eq!(core.task_types().count(), 0);
}
