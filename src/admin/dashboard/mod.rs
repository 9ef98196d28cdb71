//! The dashboard: `GET /` on the admin address, for people.
//!
//! The server renders the whole page, which works without its script. With it, the page follows
//! `/lb/events` and its forms are sent without leaving it. Nothing is inline and nothing comes
//! from elsewhere, and the policy in [`CSP`] holds browsers to that.

mod actions;
mod assets;
mod backends;
mod charts;
mod login;
mod page;
mod shown;
mod tasks;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::{get, post};
use maud::Markup;
use serde::Deserialize;

use super::Admin;
use super::guard::Access;
use super::logins::{cookie, random};
use words::Lang;

/// What the page may load and do.
pub const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; \
    base-uri 'none'";
/// Holds what forms must carry where nobody logs in.
const CSRF_COOKIE: &str = "comfygate_csrf";
const YEAR: u32 = 365 * 24 * 3600;

/// The routes behind the guard.
pub(super) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/", get(dashboard))
        .route("/dashboard/charts", get(last_hour))
        .route("/dashboard/backend", post(actions::backend))
        .route("/dashboard/add", post(actions::add))
        .route("/dashboard/strategy", post(actions::strategy))
        .route("/dashboard/check", post(actions::check))
        .route("/dashboard/cancel", post(actions::cancel))
        .route("/dashboard/logout", post(login::log_out))
}

/// The routes that must be there before somebody has logged in.
pub(super) fn open_routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/login", get(login::form).post(login::log_in))
        .route("/assets/{file}", get(assets::serve))
}

/// What the address may ask for.
#[derive(Deserialize)]
struct Ask {
    lang: Option<String>,
    state: Option<String>,
}

async fn dashboard(
    State(admin): State<Arc<Admin>>,
    Extension(access): Extension<Access>,
    Query(ask): Query<Ask>,
    headers: HeaderMap,
) -> Response {
    let lang = Lang::of(ask.lang.as_deref(), &headers);
    let (csrf, fresh) = match &access {
        Access::Login { csrf } => (csrf.clone(), false),
        _ => match cookie(&headers, CSRF_COOKIE).filter(|kept| kept.len() == 32) {
            Some(kept) => (kept.to_owned(), false),
            None => (random(), true),
        },
    };
    let ctx = page::Ctx { lang, csrf: &csrf };
    let page = page::dashboard(&admin, &access, ctx, ask.state.as_deref());
    let response = Html(page).keeping(ask.lang.as_deref()).into_response();
    if !fresh {
        return response;
    }
    let cookie = format!("{CSRF_COOKIE}={csrf}; Path=/; HttpOnly; SameSite=Strict");
    (AppendHeaders([(header::SET_COOKIE, cookie)]), response).into_response()
}

/// The charts alone, for the script to put in place of older ones.
async fn last_hour(
    State(admin): State<Arc<Admin>>,
    Query(ask): Query<Ask>,
    headers: HeaderMap,
) -> Html {
    let lang = Lang::of(ask.lang.as_deref(), &headers);
    Html(charts::all(&admin.history.samples(), lang))
}

/// HTML with everything that protects it.
struct Html(Markup);

impl Html {
    /// Remembers a language that was chosen now.
    fn keeping(self, chosen: Option<&str>) -> Response {
        let Some(lang) = chosen.and_then(Lang::of_tag) else { return self.into_response() };
        let (name, tag) = (words::COOKIE, lang.tag());
        let cookie = format!("{name}={tag}; Path=/; Max-Age={YEAR}; HttpOnly; SameSite=Lax");
        (AppendHeaders([(header::SET_COOKIE, cookie)]), self).into_response()
    }
}

impl IntoResponse for Html {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CONTENT_SECURITY_POLICY, CSP),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::X_FRAME_OPTIONS, "DENY"),
            // Not no-referrer: with it browsers send `Origin: null` with the page's own forms.
            (header::REFERRER_POLICY, "same-origin"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (header::CACHE_CONTROL, "no-store"),
            (header::VARY, "Accept-Language, Cookie"),
        ];
        (headers, self.0.into_string()).into_response()
    }
}
