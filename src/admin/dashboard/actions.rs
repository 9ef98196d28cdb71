//! What the dashboard's forms do. Each is a plain form, so that it works without the script, and
//! carries the CSRF token of its login, or, where no token is configured, that of a cookie.
//!
//! | path | fields |
//! |---|---|
//! | `POST /dashboard/backend` | `name`, `do`: `enable` `drain` `disable` `leave` `remove` |
//! | `POST /dashboard/add` | `name`, `url`, `weight`, `max_queue`, `task_types` |
//! | `POST /dashboard/strategy` | `strategy` |
//! | `POST /dashboard/check` | |
//! | `POST /dashboard/cancel` | `task` |
//!
//! The script asks with `Accept: application/json` and gets JSON; a form gets the page again.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Form, Json};
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq;

use super::words::{Lang, Word};
use super::{CSRF_COOKIE, Html, page};
use crate::admin::guard::{Access, forged};
use crate::admin::logins::cookie;
use crate::admin::{Admin, Caller};
use crate::backend::Wanted;
use crate::config::Strategy;
use crate::rejection::{Kind, Rejection};
use crate::tasks::cancel::cancel as cancel_task;

/// A form that was checked: its CSRF token is right.
pub(super) struct Sent {
    fields: HashMap<String, String>,
    script: bool,
    lang: Lang,
}

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let lang = Lang::of(None, request.headers());
        let accept = request.headers().get(header::ACCEPT);
        let script = accept.is_some_and(|accept| accept == "application/json");
        let access = request.extensions().get::<Access>().cloned();
        let headers = request.headers().clone();
        let sent = Form::<HashMap<String, String>>::from_request(request, state).await;
        let (refusal, script) = match sent {
            Ok(Form(fields)) if access.is_some_and(|access| is_own(&access, &headers, &fields)) => {
                return Ok(Self { fields, script, lang });
            }
            Ok(_) => (forged(), script),
            Err(error) => (Rejection::new(Kind::InvalidValue, error.body_text()), script),
        };
        Err(refused(&refusal, script, lang))
    }
}

/// Whether a form carries the token that its page was given.
fn is_own(access: &Access, headers: &HeaderMap, fields: &HashMap<String, String>) -> bool {
    let shown = fields.get("csrf").map_or("", String::as_str);
    let same = |csrf: &str| !csrf.is_empty() && shown.as_bytes().ct_eq(csrf.as_bytes()).into();
    match access {
        Access::Token => true,
        Access::Login { csrf } => same(csrf),
        Access::Open => cookie(headers, CSRF_COOKIE).is_some_and(same),
    }
}

impl Sent {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn needed(&self, name: &str) -> Result<&str, Rejection> {
        let missing = || Rejection::new(Kind::InvalidValue, format!("{name} is missing"));
        self.field(name).ok_or_else(missing)
    }

    fn answer(&self, done: Result<(), Rejection>) -> Response {
        match done {
            Ok(()) if self.script => {
                Json(json!({"message": Word::Done.say(self.lang)})).into_response()
            }
            Ok(()) => Redirect::to("/").into_response(),
            Err(refusal) => refused(&refusal, self.script, self.lang),
        }
    }

    /// The form's fields as the words of an API call; what is empty is left to its default.
    fn words(&self) -> Value {
        let mut words = Map::new();
        for name in ["name", "url"] {
            if let Some(text) = self.field(name) {
                words.insert(name.to_owned(), text.into());
            }
        }
        for name in ["weight", "max_queue"] {
            if let Some(text) = self.field(name) {
                let value = text.parse::<u64>().map_or_else(|_| text.into(), Value::from);
                words.insert(name.to_owned(), value);
            }
        }
        if let Some(types) = self.field("task_types") {
            let types = types.split([',', '，']).map(str::trim).filter(|kind| !kind.is_empty());
            words.insert("task_types".to_owned(), types.collect());
        }
        Value::Object(words)
    }
}

fn refused(refusal: &Rejection, script: bool, lang: Lang) -> Response {
    if script {
        return refusal.clone().into_response();
    }
    let title = Word::Failed.say(lang);
    let page = page::message(lang, title, &refusal.message, &refusal.details);
    (refusal.kind.status(), Html(page)).into_response()
}

/// `POST /dashboard/backend`.
pub(super) async fn backend(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    sent: Sent,
) -> Response {
    let done = change(&admin, &caller, &sent).await;
    sent.answer(done)
}

async fn change(admin: &Admin, caller: &Caller, sent: &Sent) -> Result<(), Rejection> {
    let (name, actor) = (sent.needed("name")?, caller.actor());
    let wanted = match sent.needed("do")? {
        "enable" => Wanted::Enabled,
        "drain" => Wanted::Draining,
        "disable" => Wanted::Disabled,
        "leave" => return admin.operator.leave(name, &actor).await.map(drop),
        "remove" => return admin.operator.remove(name, &actor).await,
        _ => return Err(Rejection::new(Kind::InvalidValue, "there is no such action")),
    };
    admin.operator.want(name, wanted, &actor).await.map(drop)
}

/// `POST /dashboard/add`.
pub(super) async fn add(State(admin): State<Arc<Admin>>, caller: Caller, sent: Sent) -> Response {
    let done = admin.add_backend(sent.words(), &caller.actor()).await;
    sent.answer(done.map(drop))
}

/// `POST /dashboard/strategy`.
pub(super) async fn strategy(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    sent: Sent,
) -> Response {
    let done = match sent.field("strategy").and_then(Strategy::named) {
        Some(strategy) => admin.operator.set_strategy(strategy, &caller.actor()).await,
        None => Err(Rejection::new(Kind::InvalidValue, "there is no such strategy")),
    };
    sent.answer(done)
}

/// `POST /dashboard/check`.
pub(super) async fn check(State(admin): State<Arc<Admin>>, sent: Sent) -> Response {
    admin.gateway.prober.check_all().await;
    sent.answer(Ok(()))
}

/// `POST /dashboard/cancel`.
pub(super) async fn cancel(State(admin): State<Arc<Admin>>, sent: Sent) -> Response {
    let done = match sent.needed("task") {
        Ok(task) => cancel_task(&admin.gateway, task).await.map(drop),
        Err(missing) => Err(missing),
    };
    sent.answer(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn headers(cookie: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, cookie.parse().unwrap())])
    }

    #[test]
    fn a_form_counts_only_with_its_own_token() {
        let login = Access::Login { csrf: "right".into() };
        let none = HeaderMap::new();
        let (right, wrong) = (fields(&[("csrf", "right")]), fields(&[("csrf", "wrong")]));
        assert!(is_own(&login, &none, &right));
        assert!(!is_own(&login, &none, &wrong) && !is_own(&login, &none, &fields(&[])));
        assert!(is_own(&Access::Token, &none, &fields(&[])));

        let kept = headers("comfygate_csrf=right");
        assert!(is_own(&Access::Open, &kept, &right));
        assert!(!is_own(&Access::Open, &kept, &wrong));
        assert!(!is_own(&Access::Open, &none, &right));
        let empty = fields(&[("csrf", "")]);
        assert!(!is_own(&Access::Open, &headers("comfygate_csrf="), &empty));
    }

    #[test]
    fn empty_fields_are_left_to_their_defaults_and_odd_ones_to_the_check() {
        let fields = fields(&[
            ("name", " a "),
            ("url", "http://b:1"),
            ("weight", ""),
            ("max_queue", "x"),
            ("task_types", "video, ，image"),
        ]);
        let sent = Sent { fields, script: false, lang: Lang::En };
        assert_eq!(
            sent.words(),
            json!({"name": "a", "url": "http://b:1", "max_queue": "x",
                "task_types": ["video", "image"]})
        );
    }
}
