//! Who may use the admin plane, and from where.
//!
//! Programs show `Authorization: Bearer`. People in browsers log in, and their cookie counts on
//! the admin port alone. Browsers carry cookies and reach loopback on behalf of any page, so for
//! everything but a valid Bearer token:
//!
//! - another origin is refused, by `Origin` and `Sec-Fetch-Site`;
//! - a login must prove with each write that its own page made it: by the header [`CSRF_HEADER`],
//!   or by a field of the dashboard's forms, which their handlers check;
//! - without a token the `Host` must be an address, `localhost` or one of `server.public_names`:
//!   a name that somebody points at 127.0.0.1 would otherwise make their page same-origin.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use subtle::ConstantTimeEq;

use super::logins::{Logins, is_token};
use crate::clock::Moment;
use crate::comfy::origin::is_foreign;
use crate::config::Config;
use crate::rejection::{Kind, Rejection};

/// The header that carries a login's CSRF token.
pub const CSRF_HEADER: &str = "x-comfygate-csrf";
/// Writes under this prefix are forms with a field for the token.
pub const FORMS: &str = "/dashboard/";

/// Which port a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// `admin.listen`.
    Admin,
    /// `server.port`.
    Data,
}

/// Why a request is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// It showed the token.
    Token,
    /// It showed a login.
    Login {
        /// What its writes must show.
        csrf: String,
    },
    /// No token is configured.
    Open,
}

impl Access {
    /// Its name in the audit log.
    pub fn who(&self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Login { .. } => "login",
            Self::Open => "no token",
        }
    }
}

/// Lets a request in, or says why not.
pub fn admit(
    config: &Config,
    logins: &Logins,
    port: Port,
    request: &Request,
) -> Result<Access, Rejection> {
    let headers = request.headers();
    let access = match &config.admin.token {
        None if port == Port::Data => return Err(nothing_here()),
        None => {
            host_is_no_strangers(headers, &config.server.public_names)?;
            Access::Open
        }
        Some(token) => {
            let shown = bearer(headers);
            if shown.is_some_and(|shown| is_token(shown, token)) {
                return Ok(Access::Token);
            }
            let login = (port == Port::Admin && shown.is_none())
                .then(|| logins.find(headers, token, Moment::now()));
            Access::Login { csrf: login.flatten().ok_or_else(token_wanted)? }
        }
    };
    same_origin(request.method(), headers, &config.server.public_names)?;
    match &access {
        Access::Login { csrf } if is_write(request.method()) => {
            let form = request.uri().path().starts_with(FORMS);
            let shown = headers.get(CSRF_HEADER).map(HeaderValue::as_bytes);
            if !form && !shown.is_some_and(|shown| shown.ct_eq(csrf.as_bytes()).into()) {
                return Err(forged());
            }
        }
        _ => {}
    }
    Ok(access)
}

/// What is shown as a token, if anything is. The scheme's name has no case (RFC 9110, 11.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, shown) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(shown)
}

/// Whether a refusal is best answered with the login form: a person opened a page.
pub fn may_log_in(refusal: &Rejection, port: Port, request: &Request) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    refusal.kind == Kind::Unauthorized
        && port == Port::Admin
        && request.method() == Method::GET
        && accept.is_some_and(|accept| accept.contains("text/html"))
}

/// Refuses what a page of another origin sent.
pub fn same_origin(
    method: &Method,
    headers: &HeaderMap,
    public_names: &[String],
) -> Result<(), Rejection> {
    let says = |name: header::HeaderName, words: &[&str]| {
        headers.get(name).is_some_and(|value| words.iter().any(|word| value == word))
    };
    let site = header::HeaderName::from_static("sec-fetch-site");
    // Another port of this host is another origin, and so is a sandboxed frame ("null").
    let other_origin = says(site, &["same-site", "cross-site"]) || says(header::ORIGIN, &["null"]);
    if (is_write(method) && other_origin) || is_foreign(method, headers, public_names) {
        return Err(Rejection::new(Kind::Forbidden, "the request came from another site")
            .cure("open the dashboard itself; a program may show Authorization: Bearer"));
    }
    Ok(())
}

/// The refusal of a write whose CSRF token is missing or wrong.
pub fn forged() -> Rejection {
    Rejection::new(Kind::Forbidden, "the form is out of date").cure(format!(
        "load the page again; a program shows Authorization: Bearer or the header {CSRF_HEADER}"
    ))
}

fn is_write(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn host_is_no_strangers(headers: &HeaderMap, public_names: &[String]) -> Result<(), Rejection> {
    let Some(host) = headers.get(header::HOST) else { return Ok(()) };
    let host = host.to_str().unwrap_or_default();
    let name = without_port(host);
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    let ours = literal.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || public_names.iter().any(|own| without_port(own).eq_ignore_ascii_case(name));
    if ours {
        return Ok(());
    }
    Err(Rejection::new(Kind::Forbidden, "the admin plane is not known by this name").cure(
        "use its address or localhost, add the name to server.public_names, or set admin.token",
    ))
}

fn without_port(authority: &str) -> &str {
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let port = authority[after_bracket..].rfind(':');
    port.map_or(authority, |at| &authority[..after_bracket + at])
}

fn token_wanted() -> Rejection {
    Rejection::new(Kind::Unauthorized, "a valid admin token is needed")
        .cure("send Authorization: Bearer TOKEN, the token being admin.token")
}

fn nothing_here() -> Rejection {
    Rejection::new(Kind::NotFound, "there is nothing at this address")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::config::{Secret, Sources};

    fn config(token: Option<&str>) -> Config {
        let loaded = crate::config::load(&Sources {
            flags: crate::config::Flags {
                backends: Some("http://127.0.0.1:1".into()),
                ..Default::default()
            },
            ..Default::default()
        });
        let mut config = loaded.unwrap().config;
        config.admin.token = token.map(Secret::new);
        config.server.public_names = vec!["admin.example".into()];
        config
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = axum::http::Request::builder().method(method).uri("/lb/stats");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn verdict(config: &Config, method: &str, headers: &[(&str, &str)]) -> Result<Access, Kind> {
        admit(config, &Logins::default(), Port::Admin, &request(method, headers))
            .map_err(|rejection| rejection.kind)
    }

    #[test]
    fn without_a_token_programs_and_the_own_page_pass() {
        let config = config(None);
        for headers in [
            &[][..],
            &[("host", "127.0.0.1:8101")],
            &[("host", "[::1]:8101")],
            &[("host", "LocalHost")],
            &[("host", "admin.example:8101")],
            &[("host", "127.0.0.1:8101"), ("origin", "http://127.0.0.1:8101")],
            &[("host", "127.0.0.1:8101"), ("sec-fetch-site", "same-origin")],
        ] {
            assert_eq!(verdict(&config, "POST", headers), Ok(Access::Open), "{headers:?}");
        }
    }

    #[test]
    fn without_a_token_other_sites_and_rebound_names_do_not() {
        let config = config(None);
        let host = ("host", "127.0.0.1:8101");
        for headers in [
            &[("host", "evil.example:8101")][..],
            &[("host", "127.0.0.1.evil.example")],
            &[("host", "localhost.evil.example")],
            &[host, ("origin", "http://evil.example")],
            &[host, ("origin", "http://127.0.0.1:8188")],
            &[host, ("origin", "null")],
            &[host, ("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1")],
            &[host, ("sec-fetch-site", "cross-site")],
        ] {
            assert_eq!(verdict(&config, "POST", headers), Err(Kind::Forbidden), "{headers:?}");
        }
        let rebound = [("host", "evil.example:8101")];
        assert_eq!(verdict(&config, "GET", &rebound), Err(Kind::Forbidden));
    }

    #[test]
    fn a_bearer_token_is_exempt_and_only_the_right_one_counts() {
        let config = config(Some("right"));
        let foreign = ("origin", "http://evil.example");
        let right = [("authorization", "Bearer right"), foreign];
        assert_eq!(verdict(&config, "POST", &right), Ok(Access::Token));
        for wrong in ["Bearer wrong", "Bearer righ", "Bearer ", "right", "Basic right"] {
            let headers = [("authorization", wrong)];
            assert_eq!(verdict(&config, "GET", &headers), Err(Kind::Unauthorized), "{wrong}");
        }
    }

    #[test]
    fn a_login_reads_freely_and_writes_only_with_its_csrf_token() {
        let config = config(Some("right"));
        let logins = Logins::default();
        let token = config.admin.token.clone().unwrap();
        let cookie = format!("comfygate_admin={}", logins.open(&token, Moment::now()));
        let ask = |port, method, headers: &[(&str, &str)]| {
            admit(&config, &logins, port, &request(method, headers)).map_err(|r| r.kind)
        };
        let Ok(Access::Login { csrf }) = ask(Port::Admin, "GET", &[("cookie", &cookie)]) else {
            panic!("the login counts")
        };
        let cookie = ("cookie", cookie.as_str());
        assert_eq!(ask(Port::Admin, "POST", &[cookie]), Err(Kind::Forbidden));
        assert_eq!(
            ask(Port::Admin, "DELETE", &[cookie, (CSRF_HEADER, "no")]),
            Err(Kind::Forbidden)
        );
        assert!(ask(Port::Admin, "POST", &[cookie, (CSRF_HEADER, &csrf)]).is_ok());
        let foreign = [cookie, (CSRF_HEADER, &csrf), ("origin", "http://evil.example")];
        assert_eq!(ask(Port::Admin, "POST", &foreign), Err(Kind::Forbidden));
        assert_eq!(ask(Port::Data, "GET", &[cookie]), Err(Kind::Unauthorized));
    }
}
