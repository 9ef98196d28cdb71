//! The page where people log in and out, on the data port: `/lb/login` and `/lb/logout`.
//!
//! The form is posted to the page's own origin, of which the front door has made sure; a login's
//! cookie is then set and the person sent to where they were going. A wrong password costs one of
//! the address's attempts ([`super::attempts`]).

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use tokio::time::timeout;
use url::form_urlencoded;

use super::password::MAX_PASSWORD;
use super::{Verdict, busy, login, too_many_attempts};
use crate::admin::session::Visitor;
use crate::config::Secret;
use crate::gateway::Gateway;
use crate::rejection::{Kind, Rejection};

/// Where the form is.
pub const LOGIN: &str = "/lb/login";
/// Where a login ends.
pub const LOGOUT: &str = "/lb/logout";
/// Bytes of a form.
const MAX_FORM: usize = 16 << 10;
/// The form must be here within this time.
const FORM_TIME: Duration = Duration::from_secs(10);
/// What the page may do: show itself and post its form.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// The pages.
pub fn routes(gateway: &Arc<Gateway>) -> Router {
    Router::new()
        .route(LOGIN, get(form).post(log_in))
        .route(LOGOUT, post(log_out))
        .method_not_allowed_fallback(crate::admin::wrong_method)
        .with_state(Arc::clone(gateway))
}

async fn form(
    State(gateway): State<Arc<Gateway>>,
    Extension(visitor): Extension<Visitor>,
    request: Request,
) -> Result<Response, Rejection> {
    has_users(&gateway)?;
    let query = request.uri().query().unwrap_or_default();
    let next = value(query.as_bytes(), "next").unwrap_or_default();
    let user = gateway.auth.user_of(request.headers(), visitor.now);
    Ok(page(StatusCode::OK, &next, user.as_deref(), None))
}

async fn log_in(
    State(gateway): State<Arc<Gateway>>,
    Extension(visitor): Extension<Visitor>,
    request: Request,
) -> Result<Response, Rejection> {
    has_users(&gateway)?;
    let form = form_of(request.into_body()).await?;
    let sent = |name| value(&form, name).unwrap_or_default();
    let (user, password, next) = (sent("user"), sent("password"), sent("next"));
    let wrong = || page(StatusCode::UNAUTHORIZED, &next, None, Some("Name or password is wrong."));
    if password.len() > MAX_PASSWORD {
        return Ok(wrong());
    }
    match gateway.auth.check(&user, Secret::new(password), visitor.address).await {
        Verdict::Right(account) => {
            let cookie = gateway.auth.new_login(&account, visitor.now, visitor.secure);
            Ok(to(safe(&next), cookie))
        }
        Verdict::Wrong => Ok(wrong()),
        Verdict::TooMany(wait) => Err(too_many_attempts(wait)),
        Verdict::Busy => Err(busy()),
    }
}

async fn log_out(
    State(gateway): State<Arc<Gateway>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
) -> Response {
    gateway.auth.log_out(&headers, visitor.now);
    to(LOGIN, login::set_cookie("", 0, visitor.secure))
}

fn has_users(gateway: &Gateway) -> Result<(), Rejection> {
    let message = "nobody logs in here: auth.users is empty";
    let has = !gateway.auth.table().accounts.is_empty();
    has.then_some(()).ok_or_else(|| Rejection::new(Kind::NotFound, message))
}

async fn form_of(body: Body) -> Result<Vec<u8>, Rejection> {
    match timeout(FORM_TIME, to_bytes(body, MAX_FORM)).await {
        Ok(Ok(form)) => Ok(form.into()),
        Ok(Err(_)) => Err(Rejection::new(Kind::BodyTooLarge, "the form is too long, or broke off")),
        Err(_) => Err(Rejection::new(Kind::Timeout, "the form did not come in time")),
    }
}

fn value(form: &[u8], name: &str) -> Option<String> {
    let found = form_urlencoded::parse(form).find(|(key, _)| key == name);
    found.map(|(_, value)| value.into_owned())
}

fn to(place: &str, cookie: String) -> Response {
    let headers = [
        (header::LOCATION, place.to_owned()),
        (header::SET_COOKIE, cookie),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (StatusCode::SEE_OTHER, headers).into_response()
}

/// A place on this host, else the front page. Browsers read `//` and `/\` as the start of a host.
fn safe(next: &str) -> &str {
    let here = next.strip_prefix('/').is_some_and(|rest| !rest.starts_with(['/', '\\']));
    let plain = next.bytes().all(|byte| byte.is_ascii_graphic()) && !next.starts_with(LOGIN);
    if here && plain { next } else { "/" }
}

fn page(status: StatusCode, next: &str, user: Option<&str>, wrong: Option<&str>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, markup(next, user, wrong).into_string()).into_response()
}

const STYLE: &str = "
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
main { max-width: 22rem; margin: 12vh auto; padding: 0 1rem }
label, input, button { display: block; width: 100%; box-sizing: border-box; font: inherit }
input { padding: .5rem; margin: .25rem 0 1rem; border: 1px solid #888; border-radius: 4px }
button { padding: .6rem; border: 0; border-radius: 4px; background: #0b57d0; color: #fff }
:focus-visible { outline: 3px solid #f59f00; outline-offset: 2px }
.wrong { color: #b3261e } @media (prefers-color-scheme: dark) { .wrong { color: #f2b8b5 } }
";

fn markup(next: &str, user: Option<&str>, wrong: Option<&str>) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Log in" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { "Log in" }
                    @if let Some(user) = user {
                        p { "You are logged in as " strong { (user) } "." }
                        p { a href=(safe(next)) { "Go on" } }
                        form method="post" action=(LOGOUT) { button { "Log out" } }
                    } @else {
                        form method="post" action=(LOGIN) {
                            input type="hidden" name="next" value=(next);
                            label for="user" { "Name" }
                            input id="user" name="user" required autofocus autocomplete="username"
                                aria-describedby=[wrong.map(|_| "wrong")];
                            label for="password" { "Password" }
                            input id="password" name="password" type="password" required
                                autocomplete="current-password"
                                aria-describedby=[wrong.map(|_| "wrong")];
                            @if let Some(wrong) = wrong {
                                p.wrong id="wrong" role="alert" { (wrong) }
                            }
                            button { "Log in" }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_no_other_host() {
        for next in ["/", "/@x/?a=b", "/view?filename=a%20b"] {
            assert_eq!(safe(next), next);
        }
        for next in
            ["", "//evil.example", "/\\evil.example", "http://evil.example", "x", "/a\r\nb", LOGIN]
        {
            assert_eq!(safe(next), "/", "{next}");
        }
    }

    #[test]
    fn what_people_type_is_no_markup() {
        let shown = markup("/\"><script>", Some("<b>"), Some("x")).into_string();
        assert!(!shown.contains("<script>") && !shown.contains("<b>"), "{shown}");
        let shown = markup("/\"><script>", None, Some("x")).into_string();
        assert!(!shown.contains("<script>"), "{shown}");
    }
}
