//! Malformed and ambiguous requests, and what becomes of each.

/// What becomes of a case.
pub(super) enum Expect {
    /// The gateway answers with this status and closes; the backend sees nothing.
    Refused(u16),
    /// The gateway answers with this status and closes. The head had gone on by then; the backend
    /// never sees the end of the body, and so no request.
    BrokenOff(u16),
    /// The backend reads exactly this: method, path, body. Each gets its 200.
    Passes(Vec<(&'static str, &'static str, &'static str)>),
    /// The same, then comes a refusal.
    PassesThenRefused(Vec<(&'static str, &'static str, &'static str)>, u16),
}

use Expect::{BrokenOff, Passes, PassesThenRefused, Refused};

/// A case.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Sent one after another.
    pub(super) pieces: Vec<Vec<u8>>,
    pub(super) expect: Expect,
}

fn case(name: &'static str, bytes: impl AsRef<[u8]>, expect: Expect) -> Case {
    Case { name, pieces: vec![bytes.as_ref().to_vec()], expect }
}

/// A POST with these header lines and this body, and a second request hidden behind it.
fn post(name: &'static str, headers: &str, body: &str, expect: Expect) -> Case {
    let request = format!("POST /a HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}");
    case(name, request, expect)
}

/// A GET with these header lines.
fn get(name: &'static str, headers: &str, expect: Expect) -> Case {
    case(name, format!("GET /a HTTP/1.1\r\nHost: a\r\n{headers}\r\n"), expect)
}

/// A GET of this target.
fn target(name: &'static str, target: &str, expect: Expect) -> Case {
    case(name, format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), expect)
}

/// A POST of chunks that stand as they are.
fn chunks(name: &'static str, body: &str, expect: Expect) -> Case {
    post(name, "Transfer-Encoding: chunked\r\n", body, expect)
}

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";

/// The table.
pub(super) fn cases() -> Vec<Case> {
    [lengths(), encodings(), chunked(), lines(), hosts(), targets(), versions(), others()]
        .into_iter()
        .flatten()
        .collect()
}

fn lengths() -> Vec<Case> {
    let hidden = |zero: &str| format!("{zero}{HIDDEN}");
    vec![
        post(
            "length and chunks",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            &hidden("0\r\n\r\n"),
            Refused(400),
        ),
        post(
            "chunks and length",
            "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
            &hidden("0\r\n\r\n"),
            Refused(400),
        ),
        post("two lengths", "Content-Length: 0\r\nContent-Length: 3\r\n", "abc", Refused(400)),
        post(
            "the same length twice",
            "Content-Length: 3\r\ncontent-length: 3\r\n",
            "abc",
            Refused(400),
        ),
        post("lengths in a list", "Content-Length: 3, 3\r\n", "abc", Refused(400)),
        post("different lengths in a list", "Content-Length: 3, 0\r\n", "abc", Refused(400)),
        post("length with a plus", "Content-Length: +3\r\n", "abc", Refused(400)),
        post("negative length", "Content-Length: -3\r\n", "abc", Refused(400)),
        post("hexadecimal length", "Content-Length: 0x3\r\n", "abc", Refused(400)),
        post("length with a blank inside", "Content-Length: 1 0\r\n", "abc", Refused(400)),
        post("length with an underscore", "Content-Length: 1_0\r\n", "abc", Refused(400)),
        post("length with a fraction", "Content-Length: 3.0\r\n", "abc", Refused(400)),
        post("length in quotes", "Content-Length: \"3\"\r\n", "abc", Refused(400)),
        post("empty length", "Content-Length:\r\n", "abc", Refused(400)),
        post("length in other digits", "Content-Length: \u{663}\r\n", "abc", Refused(400)),
        post("length beyond 64 bits", "Content-Length: 18446744073709551616\r\n", "", Refused(400)),
        post("length of 64 bits", "Content-Length: 18446744073709551615\r\n", "", Refused(413)),
        post("length over the limit", "Content-Length: 100001\r\n", "abc", Refused(413)),
        post(
            "length with zeros before it",
            "Content-Length: 003\r\n",
            "abc",
            Passes(vec![("POST", "/a", "abc")]),
        ),
        post("length of a get", "Content-Length: 0\r\n", "", Passes(vec![("POST", "/a", "")])),
        case(
            "a get with a body",
            "GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            Passes(vec![("GET", "/a", "abc")]),
        ),
        post(
            "length shorter than what comes",
            "Content-Length: 3\r\n",
            "abcGARBAGE\r\n\r\n",
            PassesThenRefused(vec![("POST", "/a", "abc")], 400),
        ),
        post(
            "length in Connection",
            "Connection: Content-Length\r\nContent-Length: 33\r\n",
            HIDDEN,
            Refused(400),
        ),
        post("a body that stalls", "Content-Length: 10\r\n", "abc", BrokenOff(408)),
    ]
}

fn encodings() -> Vec<Case> {
    let te = |name, value: &str| {
        post(
            name,
            &format!("Transfer-Encoding: {value}\r\n"),
            "3\r\nabc\r\n0\r\n\r\n",
            Refused(400),
        )
    };
    vec![
        te("identity", "identity"),
        te("gzip", "gzip"),
        te("gzip, then chunked", "gzip, chunked"),
        te("chunked, then identity", "chunked, identity"),
        te("chunked twice in a line", "chunked, chunked"),
        te("xchunked", "xchunked"),
        te("chunked with a parameter", "chunked;q=1"),
        te("chunked in quotes", "\"chunked\""),
        te("chunked behind a comma", ",chunked"),
        te("chunked before a comma", "chunked,"),
        te("chunked behind a vertical tab", "\u{b}chunked"),
        te("chunked and a NUL", "chunked\0"),
        te("no encoding at all", ""),
        te("chunked on the next line", "\r\n chunked"),
        post(
            "chunked twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
            Refused(400),
        ),
        post(
            "chunked and identity",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "0\r\n\r\n",
            Refused(400),
        ),
        post(
            "a blank before the colon",
            "Transfer-Encoding : chunked\r\n",
            "0\r\n\r\n",
            Refused(400),
        ),
        post(
            "encoding in Connection",
            "Connection: close, transfer-encoding\r\nTransfer-Encoding: chunked\r\n",
            "0\r\n\r\n",
            Refused(400),
        ),
        case(
            "chunks in HTTP/1.0",
            "POST /a HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        post(
            "Chunked in capitals",
            "Transfer-Encoding: CHUNKED\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            Passes(vec![("POST", "/a", "abc")]),
        ),
        post(
            "a tab around chunked",
            "Transfer-Encoding:\tchunked\t\r\n",
            "3\r\nabc\r\n0\r\n\r\n",
            Passes(vec![("POST", "/a", "abc")]),
        ),
    ]
}

fn chunked() -> Vec<Case> {
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(300));
    let abc = || Passes(vec![("POST", "/a", "abc")]);
    vec![
        chunks("plain chunks", "1\r\na\r\n02\r\nbc\r\n0\r\n\r\n", abc()),
        chunks("an extension", "3;name=\"value\"\r\nabc\r\n0\r\n\r\n", abc()),
        chunks("a long extension", &long, Refused(400)),
        chunks("a line feed in an extension", "3;x\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a control byte in an extension", "3;\u{1}\r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a chunk's size in hexadecimal", "0x3\r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a chunk's size with a sign", "+3\r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a negative chunk", "-1\r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a blank before a size", " 3\r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a blank behind a size", "3 \r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("no size", "\r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a size that is none", "xyz\r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a size beyond 64 bits", "10000000000000003\r\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks(
            "a size with zeros beyond 64 bits",
            "00000000000000003\r\nabc\r\n0\r\n\r\n",
            Refused(400),
        ),
        chunks("a bare line feed behind a size", "3\nabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a bare carriage return behind a size", "3\rabc\r\n0\r\n\r\n", Refused(400)),
        chunks("a bare line feed behind data", "3\r\nabc\n0\r\n\r\n", Refused(400)),
        chunks("nothing behind data", "3\r\nabc0\r\n\r\n", Refused(400)),
        chunks("more data than said", "3\r\nabcd\r\n0\r\n\r\n", Refused(400)),
        chunks("a bare line feed behind the last chunk", "3\r\nabc\r\n0\r\n\n", Refused(400)),
        chunks("trailers", "3\r\nabc\r\n0\r\nX: y\r\n\r\n", Refused(400)),
        chunks("a length in trailers", "3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n", Refused(400)),
        chunks(
            "a request behind chunks",
            &format!("3\r\nabc\r\n0\r\n\r\n{HIDDEN}"),
            Passes(vec![("POST", "/a", "abc"), ("GET", "/hidden", "")]),
        ),
        chunks(
            "garbage behind chunks",
            "3\r\nabc\r\n0\r\n\r\n\u{1}\u{2}\r\n\r\n",
            PassesThenRefused(vec![("POST", "/a", "abc")], 400),
        ),
        Case {
            name: "a bad chunk in a later piece",
            pieces: vec![
                b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
                b"3 \r\nabc\r\n0\r\n\r\n".to_vec(),
            ],
            expect: BrokenOff(400),
        },
        Case {
            name: "chunks in pieces",
            pieces: vec![
                b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3".to_vec(),
                b"\r\nab".to_vec(),
                b"c\r\n0\r".to_vec(),
                b"\n\r\nGET /hid".to_vec(),
                b"den HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            ],
            expect: Passes(vec![("POST", "/a", "abc"), ("GET", "/hidden", "")]),
        },
        chunks("chunks that stall", "3\r\nab", BrokenOff(408)),
        chunks(
            "chunks over the limit",
            &format!("{:x}\r\n{}\r\n0\r\n\r\n", 100_001, "x".repeat(100_001)),
            BrokenOff(413),
        ),
    ]
}

fn lines() -> Vec<Case> {
    vec![
        case("bare line feeds", "GET /a HTTP/1.1\nHost: a\n\n", Refused(400)),
        case("one bare line feed", "GET /a HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", Refused(400)),
        case("a bare line feed at the end", "GET /a HTTP/1.1\r\nHost: a\r\n\n", Refused(400)),
        case("a bare carriage return", "GET /a HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", Refused(400)),
        get(
            "a bare carriage return in a value",
            "X: a\rTransfer-Encoding: chunked\r\n",
            Refused(400),
        ),
        get("a folded header", "X: a\r\n b\r\n", Refused(400)),
        get("a header folded by a tab", "X: a\r\n\tb\r\n", Refused(400)),
        case(
            "a blank before the first header",
            "GET /a HTTP/1.1\r\n Host: a\r\n\r\n",
            Refused(400),
        ),
        get("a blank before a colon", "X : a\r\n", Refused(400)),
        get("a tab before a colon", "X\t: a\r\n", Refused(400)),
        get("a header without a name", ": a\r\n", Refused(400)),
        get("a header without a colon", "X\r\n", Refused(400)),
        get("a NUL in a value", "X: a\0b\r\n", Refused(400)),
        get("a NUL in a name", "X\0: a\r\n", Refused(400)),
        get("a control byte in a value", "X: a\u{7}b\r\n", Refused(400)),
        get("a control byte in a name", "X\u{7}: a\r\n", Refused(400)),
        get("a blank in a name", "X Y: a\r\n", Refused(400)),
        get("a bracket in a name", "X[]: a\r\n", Refused(400)),
        case(
            "blank lines before a request",
            "\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n",
            Passes(vec![("GET", "/a", "")]),
        ),
        case(
            "too many blank lines",
            "\r\n\r\n\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n",
            Refused(400),
        ),
        get("too many headers", &"X: y\r\n".repeat(101), Refused(431)),
        get("a header that is too long", &format!("X: {}\r\n", "y".repeat(70_000)), Refused(431)),
        case("a head that stalls", "GET /a HTTP/1.1\r\nHost: a\r\n", Refused(408)),
    ]
}

fn hosts() -> Vec<Case> {
    let host =
        |name, lines: &str, expect| case(name, format!("GET /a HTTP/1.1\r\n{lines}\r\n"), expect);
    let passes = || Passes(vec![("GET", "/a", "")]);
    vec![
        host("no host", "X: y\r\n", Refused(400)),
        host("two hosts", "Host: a\r\nHost: b\r\n", Refused(400)),
        host("the same host twice", "Host: a\r\nhost: a\r\n", Refused(400)),
        host("an empty host", "Host:\r\n", Refused(400)),
        host("a host with userinfo", "Host: user@a\r\n", Refused(400)),
        host("a host with a path", "Host: a/b\r\n", Refused(400)),
        host("a host with a blank", "Host: a b\r\n", Refused(400)),
        host("hosts in a list", "Host: a, b:80:90\r\n", Refused(400)),
        host("a host with a wrong port", "Host: a:65536\r\n", Refused(400)),
        host("a host in broken brackets", "Host: [::1\r\n", Refused(400)),
        host("a host and its port", "Host: a:8100\r\n", passes()),
        host("an IPv6 host", "Host: [::1]:8100\r\n", passes()),
        host("another name for the host beside it", "Host: a\r\nX-Host: b\r\n", passes()),
    ]
}

fn targets() -> Vec<Case> {
    let long = format!("/{}", "x".repeat(9000));
    let passes = |path| Passes(vec![("GET", path, "")]);
    vec![
        target("a url", "http://a/a", passes("/a")),
        target("a url of another host", "http://b/a", Refused(400)),
        target("a url with userinfo", "http://user@a/a", Refused(400)),
        target("a url with another port", "http://a:1/a", Refused(400)),
        target("a url without a path", "http://a", Refused(400)),
        target("a url of another scheme", "ftp://a/a", Refused(400)),
        target("no slash", "a", Refused(400)),
        target("an asterisk", "*", Refused(400)),
        target("an empty target", "", Refused(400)),
        target("two blanks", " /a", Refused(400)),
        target("a blank inside", "/a b", Refused(400)),
        target("a tab inside", "/a\tb", Refused(400)),
        target("a fragment", "/a#b", Refused(400)),
        target("a NUL", "/a\0b", Refused(400)),
        target("a control byte", "/a\u{1}b", Refused(400)),
        target("a delete", "/a\u{7f}b", Refused(400)),
        target("a carriage return and a line feed", "/a%0d%0aX:%20y", Refused(400)),
        target("a hidden NUL", "/a%00", Refused(400)),
        target("a backslash", "/a\\..\\b", Refused(400)),
        target("dots", "/a/../b", Refused(400)),
        target("hidden dots", "/a/%2e%2e/b", Refused(400)),
        target("half hidden dots", "/a/.%2E/b", Refused(400)),
        target("a dot", "/./a", Refused(400)),
        target("a broken escape", "/a%zz", Refused(400)),
        target("a hidden letter", "/%61", passes("/a")),
        target("an escaped slash", "/userdata/a%2Fb", passes("/userdata/a/b")),
        target("dots in a query", "/a?x=/../b", passes("/a")),
        target("two slashes", "//a", passes("//a")),
        target("a target that is too long", &long, Refused(414)),
        target("quotes", "/a?q=\"b\"", Refused(400)),
    ]
}

fn versions() -> Vec<Case> {
    let version = |name, version: &str, expect| {
        case(name, format!("GET /a {version}\r\nHost: a\r\n\r\n"), expect)
    };
    vec![
        case("HTTP/0.9", "GET /a\r\n\r\n", Refused(400)),
        version("HTTP/2.0", "HTTP/2.0", Refused(400)),
        version("HTTP/1.2", "HTTP/1.2", Refused(400)),
        version("HTTP/1.10", "HTTP/1.10", Refused(400)),
        version("http in small letters", "http/1.1", Refused(400)),
        version("a blank behind the version", "HTTP/1.1 ", Refused(400)),
        version("another protocol", "HTTPS/1.1", Refused(400)),
        case("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(400)),
        case(
            "a TLS handshake",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            Refused(400),
        ),
        version("HTTP/1.0", "HTTP/1.0", Passes(vec![("GET", "/a", "")])),
    ]
}

fn others() -> Vec<Case> {
    let method = |name, method: &str, expect| {
        case(name, format!("{method} /a HTTP/1.1\r\nHost: a\r\n\r\n"), expect)
    };
    let upgrade = "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let ws = |headers: &str, behind: &str| {
        format!("GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n{headers}\r\n{behind}")
    };
    vec![
        method("a method in small letters", "get", Refused(400)),
        method("a method in mixed letters", "Post", Refused(400)),
        method("a method with a bracket", "GET[", Refused(400)),
        method("no method", "", Refused(400)),
        method("TRACE", "TRACE", Refused(405)),
        case("CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Refused(405)),
        get("an expectation nobody knows", "Expect: 200-ok\r\n", Refused(400)),
        get("two expectations", "Expect: 100-continue\r\nExpect: 100-continue\r\n", Refused(400)),
        post(
            "an upgrade to h2c",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 3\r\n",
            "abc",
            Passes(vec![("POST", "/a", "abc")]),
        ),
        case("bytes behind a handshake", ws(&format!("{upgrade}{key}"), HIDDEN), Refused(400)),
        case(
            "a handshake with a body",
            ws(&format!("{upgrade}{key}Content-Length: 3\r\n"), "abc"),
            Refused(400),
        ),
        case(
            "a handshake in chunks",
            ws(&format!("{upgrade}{key}Transfer-Encoding: chunked\r\n"), "0\r\n\r\n"),
            Refused(400),
        ),
        case("a handshake without a key", ws(upgrade, ""), Refused(400)),
        case("a handshake with two keys", ws(&format!("{upgrade}{key}{key}"), ""), Refused(400)),
        case("a handshake without Connection", ws(key, ""), Refused(400)),
        case(
            "a handshake by POST",
            format!("POST /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n{upgrade}{key}\r\n"),
            Refused(400),
        ),
        case(
            "requests one after another",
            format!("{HIDDEN}{HIDDEN}{HIDDEN}"),
            Passes(vec![("GET", "/hidden", ""); 3]),
        ),
        case(
            "a good request, then a bad one",
            format!("{HIDDEN}GET /a HTTP/1.1\r\n\r\n"),
            PassesThenRefused(vec![("GET", "/hidden", "")], 400),
        ),
        case(
            "a bad request, then a good one",
            format!("GET /a HTTP/1.1\r\n\r\n{HIDDEN}"),
            Refused(400),
        ),
        get(
            "headers that the gateway says itself",
            "X-Forwarded-Host: evil\r\nForwarded: for=1\r\nContent_Length: 5\r\n",
            Passes(vec![("GET", "/a", "")]),
        ),
    ]
}
