//! Replies of a backend that lies about their length, or about what they are.

use super::{statuses, talk};
use crate::support::http::{self, try_exchange};
use crate::support::{Act, Fake, Gateway, Setup};

/// What the client gets.
enum Told {
    /// A 502 of the gateway's.
    Refused,
    /// The head, and a body that breaks off.
    Cut,
    /// 502, or the body breaks off: which depends on what was read together.
    RefusedOrCut,
    /// This status and body, whole.
    Reads(u16, &'static str),
}

use Told::{Cut, Reads, Refused, RefusedOrCut};

struct Case {
    name: &'static str,
    reply: String,
    closes: bool,
    told: Told,
}

fn reply(name: &'static str, headers: &str, body: &str, told: Told) -> Case {
    let reply = format!("HTTP/1.1 200 OK\r\n{headers}\r\n{body}");
    Case { name, reply, closes: false, told }
}

fn raw(name: &'static str, reply: &str, told: Told) -> Case {
    Case { name, reply: reply.to_owned(), closes: false, told }
}

/// The same from a backend that closes behind it.
fn last(case: Case) -> Case {
    Case { closes: true, ..case }
}

const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";

fn cases() -> Vec<Case> {
    let length =
        |name, length: &str| reply(name, &format!("Content-Length: {length}\r\n"), "abc", Refused);
    let coding = |name, coding: &str| {
        let headers = format!("Transfer-Encoding: {coding}\r\n");
        reply(name, &headers, "3\r\nabc\r\n0\r\n\r\n", Refused)
    };
    let chunks = |name, body: &str, told| reply(name, "Transfer-Encoding: chunked\r\n", body, told);
    let both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n";
    vec![
        reply("length and chunks", both, &format!("0\r\n\r\n{EVIL}"), Reads(200, "")),
        reply("length and longer chunks", both, "5\r\nabcde\r\n0\r\n\r\n", Reads(200, "abcde")),
        length("two lengths in a list", "3, 4"),
        length("the same length in a list", "3, 3"),
        length("a length with a sign", "+3"),
        length("a negative length", "-3"),
        length("a hexadecimal length", "0x3"),
        length("an empty length", ""),
        length("a length beyond 64 bits", "18446744073709551616"),
        length("two lengths", "3\r\nContent-Length: 4"),
        length("the same length twice", "3\r\nContent-Length: 3"),
        coding("gzip, chunked", "gzip, chunked"),
        coding("identity", "identity"),
        coding("xchunked", "xchunked"),
        coding("chunked twice", "chunked\r\nTransfer-Encoding: chunked"),
        raw(
            "chunks in HTTP/1.0",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused,
        ),
        raw("bare line feeds", "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", Reads(200, "abc")),
        reply("a folded header", "Content-Length: 3\r\nX: a\r\n b\r\n", "abc", Reads(200, "abc")),
        reply("a control byte", "Content-Length: 3\r\nX: a\u{1}b\r\n", "abc", Refused),
        reply("a NUL", "Content-Length: 3\r\nX: a\0b\r\n", "abc", Refused),
        reply("a NUL in a name", "Content-Length: 3\r\nX\0: a\r\n", "abc", Refused),
        last(raw("HTTP/0.9", "<html>hello</html>\r\n\r\n", Refused)),
        raw("HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", Refused),
        raw("a long status", "HTTP/1.1 2000 OK\r\nContent-Length: 3\r\n\r\nabc", Refused),
        raw("no status", "HTTP/1.1 OK\r\nContent-Length: 3\r\n\r\nabc", Refused),
        raw(
            "a switch of protocols",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: evil\r\n\r\nevil",
            Refused,
        ),
        raw("many that are no answer", &"HTTP/1.1 100 Continue\r\n\r\n".repeat(20), RefusedOrCut),
        raw(
            "an answer behind one that is none",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            Reads(200, "abc"),
        ),
        reply("too many headers", &"X: y\r\n".repeat(300), "", Refused),
        reply("many headers", &"X: y\r\n".repeat(220), "", Refused),
        reply("a long header", &format!("X: {}\r\n", "y".repeat(70_000)), "", Refused),
        reply("a very long header", &format!("X: {}\r\n", "y".repeat(2 << 20)), "", Refused),
        last(raw("no reply", "", Refused)),
        last(raw("a broken head", "HTTP/1.1 200 OK\r\nContent-", Refused)),
        last(reply("a broken body", "Content-Length: 30\r\n", "abc", Cut)),
        last(chunks("broken chunks", "3\r\nabc\r\n", Cut)),
        chunks("a malformed chunk", "zz\r\nabc\r\n0\r\n\r\n", RefusedOrCut),
        chunks("a chunk without its end", "3\r\nabcd\r\n0\r\n\r\n", RefusedOrCut),
        chunks("bare line feeds in chunks", "3\nabc\n0\n\n", RefusedOrCut),
        chunks("trailers", "3\r\nabc\r\n0\r\nX: y\r\n\r\n", Reads(200, "abc")),
        reply(
            "more than its length",
            "Content-Length: 3\r\n",
            &format!("abc{EVIL}"),
            Reads(200, "abc"),
        ),
        chunks("more than its chunks", &format!("3\r\nabc\r\n0\r\n\r\n{EVIL}"), Reads(200, "abc")),
        raw("a 204 with a body", &EVIL.replace("200 OK", "204 No Content"), Reads(204, "")),
        raw("a 304 with a body", &EVIL.replace("200 OK", "304 Not Modified"), Reads(304, "")),
        last(reply("neither length nor chunks", "", "abc", Reads(200, "abc"))),
    ]
}

/// The one of the cases that a request asks for.
async fn liar() -> Fake {
    Fake::start(|request| {
        let number = request.target().strip_prefix("/case/").and_then(|n| n.parse::<usize>().ok());
        let case = number.and_then(|number| cases().into_iter().nth(number));
        match case {
            Some(case) if case.closes => Act::Last(case.reply),
            Some(case) => Act::Raw(case.reply),
            None => Act::Reply("next"),
        }
    })
    .await
}

async fn gateway(fake: &Fake) -> Gateway {
    let keys = serde_json::json!({"health_check": {"push": false, "interval": 600.0}});
    Setup::new(&[fake.url()]).with(keys).start().await
}

/// A POST, which is not tried again.
fn request(number: usize) -> Vec<u8> {
    http::head("POST", &format!("/case/{number}"), &[("Content-Length", "0")]).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_is_read_in_one_way_or_not_at_all() {
    let fake = liar().await;
    let gateway = gateway(&fake).await;
    gateway.until_state("comfy-1", "up").await;
    for (number, case) in cases().into_iter().enumerate() {
        let reply = try_exchange(gateway.data, &request(number)).await;
        let name = case.name;
        match (case.told, reply) {
            (Refused | RefusedOrCut, Ok(reply)) => {
                assert_eq!(reply.status, 502, "{name}: {}", reply.text());
                reply.assert_refusal(502, "upstream_failed");
            }
            (Cut | RefusedOrCut, Err(_)) => {}
            (Reads(status, text), Ok(reply)) => {
                assert_eq!((reply.status, reply.text().as_str()), (status, text), "{name}");
                assert!(reply.header("x").is_none_or(|value| value == "a b"), "{name}");
                let length = reply.header("content-length");
                assert!(status != 204 || length.is_none(), "{name}: {length:?}");
            }
            (Refused | Reads(..), Err(error)) => panic!("{name}: {error}"),
            (Cut, Ok(reply)) => panic!("{name}: {} {}", reply.status, reply.text()),
        }
        // Whoever comes next gets its own answer, and a connection without leftovers.
        let next = try_exchange(gateway.data, &http::get("/next", &[])).await.unwrap();
        assert_eq!((next.status, next.text().as_str()), (200, "next"), "after {name}");
        let seen = fake.seen();
        let (asked, next) = (&seen[seen.len() - 2], &seen[seen.len() - 1]);
        assert!(asked.target().starts_with("/case/") && next.target() == "/next", "{name}");
        let whole = name == "an answer behind one that is none"
            || name == "trailers"
            || name == "bare line feeds"
            || name == "a folded header"
            || name == "length and longer chunks";
        assert!(whole || next.nth == 1, "after {name} its connection is used again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_head_has_no_body_whatever_the_backend_sends() {
    let fake = Fake::start(|request| match request.target() {
        "/next" => Act::Reply("next"),
        _ => Act::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{EVIL}", EVIL.len())),
    });
    let fake = fake.await;
    let gateway = gateway(&fake).await;
    let two = "HEAD /x HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    let heard = talk(gateway.data, &[two.as_bytes()], 2).await;
    assert_eq!(statuses(&heard), [200, 200], "{heard}");
    assert!(heard.ends_with("\r\n\r\nnext") && !heard.contains("evil"), "{heard}");
}
