//! Logging in and out. The one thing an open form could be used for is guessing: a wrong token
//! waits before it is told so, and a page of another site cannot ask at all.

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::actions::Sent;
use super::page::{document, languages};
use super::words::{Lang, Word};
use super::{Ask, Html};
use crate::admin::logins::{COOKIE, LIFETIME, is_token};
use crate::admin::{Admin, guard};
use crate::clock::Moment;

/// How long a wrong token waits.
const PENALTY: Duration = Duration::from_millis(500);

/// `GET /login`.
pub(super) async fn form(
    State(admin): State<Arc<Admin>>,
    Query(ask): Query<Ask>,
    headers: HeaderMap,
) -> Response {
    if admin.gateway.config.load().admin.token.is_none() {
        return Redirect::to("/").into_response();
    }
    let lang = Lang::of(ask.lang.as_deref(), &headers);
    Html(page(lang, false)).keeping(ask.lang.as_deref()).into_response()
}

/// What the form sends.
#[derive(Deserialize)]
pub(super) struct Words {
    token: String,
}

/// `POST /login`.
pub(super) async fn log_in(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Form(words): Form<Words>,
) -> Response {
    let config = admin.gateway.config.load_full();
    let Some(token) = &config.admin.token else { return Redirect::to("/").into_response() };
    if let Err(refusal) = guard::same_origin(&Method::POST, &headers, &config.server.public_names) {
        return refusal.into_response();
    }
    if !is_token(words.token.as_bytes(), token) {
        tokio::time::sleep(PENALTY).await;
        let lang = Lang::of(None, &headers);
        return (StatusCode::UNAUTHORIZED, Html(page(lang, true))).into_response();
    }
    let id = admin.logins.open(token, Moment::now());
    let cookie = cookie(&id, LIFETIME, is_tls(&headers));
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

/// `POST /dashboard/logout`.
pub(super) async fn log_out(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    _: Sent,
) -> Response {
    admin.logins.close(&headers);
    let cookie = cookie("", Duration::ZERO, is_tls(&headers));
    ([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response()
}

fn cookie(value: &str, lifetime: Duration, tls: bool) -> String {
    let secure = if tls { "; Secure" } else { "" };
    let age = lifetime.as_secs();
    format!("{COOKIE}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}")
}

/// Whether a proxy in front speaks TLS. Who lies about it only keeps their own login out.
fn is_tls(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|value| value == "https")
}

fn page(lang: Lang, wrong: bool) -> Markup {
    let body = html! {
        body.narrow {
            main {
                h1 { (super::assets::mark()) "comfygate" }
                p { (Word::LogInHint.say(lang)) }
                form.login method="post" action="/login" {
                    label for="token" { (Word::Token.say(lang)) }
                    input id="token" name="token" type="password" required autofocus
                        autocomplete="current-password"
                        aria-describedby=[wrong.then_some("wrong")] aria-invalid=[wrong.then_some("true")];
                    @if wrong { p.wrong id="wrong" role="alert" { (Word::WrongToken.say(lang)) } }
                    button.primary { (Word::LogIn.say(lang)) }
                }
                nav aria-label=(Word::Language.say(lang)) { (languages(lang)) }
            }
        }
    };
    document(lang, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_has_all_its_guards() {
        let cookie = cookie("x", Duration::from_mins(1), true);
        assert_eq!(
            cookie,
            "comfygate_admin=x; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure"
        );
    }
}
