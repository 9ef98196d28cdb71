//! A request of HTTP/2 as one of HTTP/1.1, and the answer back (RFC 9113, section 8).
//!
//! The h2 crate has refused what is malformed by its frames: names in capitals, missing or repeated
//! pseudo-headers, control bytes in values, a body of another length than was said. Refused here is
//! what would mean something else once it is HTTP/1.1; the front door then reads the result as
//! strictly as any other request.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body::Body;

use crate::rejection::{Kind, Rejection};

/// Headers about a connection of HTTP/1.1, which have no place here.
const CONNECTION_SPECIFIC: [HeaderName; 5] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
];

fn bad(message: &str) -> Rejection {
    Rejection::new(Kind::BadRequest, message)
}

/// The request in HTTP/1.1.
pub(super) fn request<B: Body>(request: Request<B>) -> Result<Request<B>, Rejection> {
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Rejection::new(Kind::MethodNotAllowed, "CONNECT is not served here"));
    }
    let host = host(&parts.uri, &parts.headers)?;
    let target = target(&parts.uri)?;
    let headers = &mut parts.headers;
    if CONNECTION_SPECIFIC.iter().any(|name| headers.contains_key(name)) {
        return Err(bad("a header about an HTTP/1.1 connection has no place in HTTP/2"));
    }
    headers.insert(HOST, host);
    // Hop by hop. Nobody waits for the 100 that `expect` asks for: flow control tells when to send.
    for name in [TE, TRAILER, EXPECT] {
        headers.remove(name);
    }
    join_cookies(headers)?;
    match (headers.get_all(CONTENT_LENGTH).iter().count(), body.is_end_stream()) {
        (0, true) => {}
        (0, false) => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        (1, _) => {}
        _ => return Err(bad("there is more than one Content-Length")),
    }
    parts.uri = Uri::from(target);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    Ok(Request::from_parts(parts, body))
}

/// The host that `:authority` names, which no `host` may contradict.
fn host(uri: &Uri, headers: &HeaderMap) -> Result<HeaderValue, Rejection> {
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTPS) {
        return Err(bad("the scheme is not https"));
    }
    let hosts: Vec<_> = headers.get_all(HOST).iter().collect();
    match (uri.authority(), hosts.as_slice()) {
        (_, [_, _, ..]) => Err(bad("there is more than one Host")),
        (None, []) => Err(bad("Host is missing")),
        (None, [host]) => Ok(HeaderValue::clone(host)),
        (Some(authority), hosts) => {
            let authority = authority.as_str();
            if authority.contains('@') {
                return Err(bad("the authority names a user"));
            }
            let same =
                |host: &HeaderValue| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
            if !hosts.iter().all(|host| same(host)) {
                return Err(bad("Host and the authority contradict each other"));
            }
            HeaderValue::from_str(authority).map_err(|_| bad("the authority is malformed"))
        }
    }
}

/// Path and query, without a byte that would end the request line or split it.
fn target(uri: &Uri) -> Result<PathAndQuery, Rejection> {
    let target = uri.path_and_query().ok_or_else(|| bad("the request has no target"))?;
    let text = target.as_str();
    let is_path = text.starts_with('/') || text == "*";
    if !is_path || text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(bad("the target is malformed"));
    }
    Ok(target.clone())
}

/// Cookies may come in crumbs, which HTTP/1.1 wants on one line (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Rejection> {
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let joined = crumbs.join(&b"; "[..]);
        let joined = HeaderValue::from_bytes(&joined).map_err(|_| bad("a cookie is malformed"))?;
        headers.insert(COOKIE, joined);
    }
    Ok(())
}

/// The answer in HTTP/2.
pub(super) fn response<B>(mut response: Response<B>) -> Response<B> {
    for name in &CONNECTION_SPECIFIC {
        response.headers_mut().remove(name);
    }
    *response.version_mut() = Version::HTTP_2;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(uri: &str, headers: &[(&str, &str)]) -> Result<Request<String>, Rejection> {
        let mut builder = Request::builder().uri(uri).version(Version::HTTP_2);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        request(builder.body("body".to_owned()).unwrap())
    }

    #[test]
    fn the_authority_becomes_the_host_and_crumbs_one_cookie() {
        let headers =
            [("cookie", "a=1"), ("te", "trailers"), ("cookie", "b=2"), ("expect", "100-continue")];
        let request = translated("https://x.test:8443/a%20b?c=d", &headers).unwrap();
        assert_eq!(request.uri(), "/a%20b?c=d");
        assert_eq!(request.version(), Version::HTTP_11);
        let mut lines: Vec<_> =
            request.headers().iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        lines.sort_unstable();
        let expected =
            [("cookie", "a=1; b=2"), ("host", "x.test:8443"), ("transfer-encoding", "chunked")];
        assert_eq!(lines, expected);
        let same = [("host", "X.test"), ("content-length", "4")];
        let request = translated("https://x.test/", &same).unwrap();
        assert!(!request.headers().contains_key("transfer-encoding"));
        assert_eq!(translated("/", &[("host", "x.test")]).unwrap().headers()["host"], "x.test");
    }

    #[test]
    fn what_would_mean_something_else_in_http1_is_refused() {
        let ok = "https://x.test/";
        for (uri, headers) in [
            (ok, &[("host", "y.test")][..]),
            (ok, &[("host", "x.test"), ("host", "x.test")]),
            ("/", &[]),
            ("https://user@x.test/", &[]),
            ("http://x.test/", &[]),
            (ok, &[("connection", "x")]),
            (ok, &[("keep-alive", "x")]),
            (ok, &[("proxy-connection", "x")]),
            (ok, &[("transfer-encoding", "chunked")]),
            (ok, &[("upgrade", "websocket")]),
            (ok, &[("content-length", "4"), ("content-length", "4")]),
        ] {
            let refused = translated(uri, headers).unwrap_err();
            assert_eq!(refused.kind, Kind::BadRequest, "{uri} {headers:?}");
        }
        let connect = Request::builder().method("CONNECT").uri("x.test:443");
        let refused = request(connect.body(String::new()).unwrap()).unwrap_err();
        assert_eq!(refused.kind, Kind::MethodNotAllowed);
    }

    #[test]
    fn an_answer_says_nothing_about_connections() {
        let answer = Response::builder()
            .header("connection", "close")
            .header("transfer-encoding", "chunked")
            .header("keep-alive", "timeout=5")
            .header("x", "y");
        let answer = response(answer.body(()).unwrap());
        let left: Vec<_> = answer.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x"]);
    }
}
