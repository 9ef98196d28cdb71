//! Requests at the door, judged: a table of routes, methods and credentials, and how logins and
//! keys end.

use http::{HeaderName, HeaderValue, Method};

use super::forward::Subrequest;
use super::*;
use crate::config::{Forward, parse};
use crate::rejection::Rejection;
use password::tests::cheap;

const NOW: Seconds = Seconds(1_800_000_000);
/// The day before `NOW`, and one after it.
const PAST: &str = "2027-01-14";
const FUTURE: &str = "2027-01-17";
const USERS: [&str; 2] = ["anna", "root"];

fn config(keys: &str) -> Config {
    parse(&format!("{{backends: ['http://a'], server: {{public_names: [art.example]}}, {keys}}}"))
        .unwrap_or_else(|problems| panic!("{keys}: {problems}"))
}

fn auth(keys: &str) -> Auth {
    Auth::new(&config(keys), SigningKey::from_bytes(&[7; 32]))
}

fn key_line(name: &str, shown: &str, more: &str) -> String {
    format!("{{name: {name}, hash: '{}'{more}}}", key::show_hash(&key::hash(shown.as_bytes())))
}

/// Keys `plain`, `admin`, `expired` and `narrow`, users `anna` and `root`; passwords are the names.
fn everything() -> String {
    let keys = [
        key_line("plain", "cg_plain", &format!(", expires: {FUTURE}")),
        key_line("boss", "cg_admin", ", rights: [admin]"),
        key_line("old", "cg_expired", &format!(", expires: {PAST}, rights: [admin]")),
        key_line("narrow", "cg_narrow", ", routes: [POST /prompt, GET /history/*]"),
    ];
    let users = USERS.map(|name| {
        let rights = if name == "root" { ", rights: [admin]" } else { "" };
        format!("{{name: {name}, password_hash: '{}'{rights}}}", cheap(name))
    });
    format!("auth: {{keys: [{}], users: [{}]}}", keys.join(", "), users.join(", "))
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
    };
    lines.iter().map(line).collect()
}

struct Ask<'a> {
    method: &'a str,
    target: &'a str,
    lines: &'a [(&'a str, &'a str)],
    named: Option<&'a str>,
    now: Seconds,
    told: Option<Told>,
}

impl<'a> Ask<'a> {
    fn new(method: &'a str, target: &'a str, lines: &'a [(&'a str, &'a str)]) -> Self {
        Self { method, target, lines, named: None, now: NOW, told: None }
    }

    fn of(self, auth: &Auth) -> Entry {
        let (method, headers) = (self.method.parse().unwrap(), headers(self.lines));
        let names = ["art.example".to_owned()];
        let request = Request {
            method: &method,
            sent: self.target,
            target: self.target,
            headers: &headers,
            public_names: &names,
        };
        let question = |asked: &Arc<Forward>| {
            let forwarded = crate::identity::address::TrustedProxies::default().forwarded(
                [10, 0, 0, 1].into(),
                &headers,
                false,
            );
            let lines = self.lines.iter().map(|(name, value)| (*name, value.as_bytes()));
            let who = (forwarded, [10, 0, 0, 1].into());
            Subrequest::new(asked, &method, self.target, who, lines)
        };
        let arrival = Arrival {
            named: self.named,
            now: self.now,
            told: self.told,
            secure: false,
            question: &question,
        };
        auth.judge(&request, arrival)
    }
}

/// The status of a refusal, 0 for who comes in, 1 where something must be found out first.
fn status(entry: &Entry) -> u16 {
    match entry {
        Entry::In(_) => 0,
        Entry::Ask(_) => 1,
        Entry::Out(Refusal::Rejected(refused)) => refused.kind.status().as_u16(),
        Entry::Out(Refusal::Answer(answer)) => answer.status.as_u16(),
    }
}

fn judged(auth: &Auth, method: &str, target: &str, lines: &[(&str, &str)]) -> u16 {
    status(&Ask::new(method, target, lines).of(auth))
}

fn user(entry: Entry) -> Option<String> {
    match entry {
        Entry::In(pass) => pass.user,
        other => panic!("{other:?}"),
    }
}

fn refused(entry: Entry) -> Rejection {
    match entry {
        Entry::Out(Refusal::Rejected(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

/// One request of each route class, open and closed by the preset.
const OPEN_ROUTES: [(&str, &str); 16] = [
    ("GET", "/"),
    ("GET", "/assets/index.js"),
    ("GET", "/ws?clientId=a"),
    ("POST", "/api/prompt"),
    ("GET", "/queue"),
    ("POST", "/queue"),
    ("POST", "/api/interrupt"),
    ("GET", "/api/history/x"),
    ("GET", "/view?filename=a.png"),
    ("POST", "/upload/image"),
    ("GET", "/object_info"),
    ("DELETE", "/userdata/a.json"),
    ("HEAD", "/api/jobs"),
    ("OPTIONS", "/prompt"),
    ("POST", "/infer/video"),
    ("GET", "/lb/session"),
];
const CLOSED_ROUTES: [(&str, &str); 8] = [
    ("GET", "/manager/reboot"),
    ("POST", "/api/v2/manager/queue/task"),
    ("POST", "/customnode/install/git_url"),
    ("GET", "/internal/logs"),
    ("PATCH", "/internal/logs/subscribe"),
    ("POST", "/users"),
    ("POST", "/api/free"),
    ("PUT", "/snapshot/restore"),
];

#[test]
fn every_route_and_method_wants_a_credential_that_holds() {
    let auth = auth(&everything());
    let wrong = [
        vec![],
        vec![("authorization", "Bearer cg_wrong")],
        vec![("x-api-key", "cg_wrong")],
        vec![("x-api-key", "")],
        vec![("authorization", "Bearer cg_expired")],
        vec![("x-api-key", "cg_expired")],
        vec![("authorization", "Basic !")],
        vec![("authorization", "cg_admin")],
        vec![("authorization", "Bearer cg_admin"), ("authorization", "Bearer cg_admin")],
        vec![("cookie", "comfygate_login=1.AAAA.AAAA")],
        vec![("cookie", "comfygate_session=1.AAAA.AAAA")],
        // Right, but beside it stands what is wrong.
        vec![("x-api-key", "cg_wrong"), ("authorization", "Bearer cg_admin")],
    ];
    for (method, target) in OPEN_ROUTES.into_iter().chain(CLOSED_ROUTES) {
        for lines in &wrong {
            assert_eq!(judged(&auth, method, target, lines), 401, "{method} {target} {lines:?}");
        }
        let closed = CLOSED_ROUTES.contains(&(method, target));
        let plain = judged(&auth, method, target, &[("authorization", "bearer cg_plain")]);
        assert_eq!(plain, if closed { 403 } else { 0 }, "{method} {target}");
        assert_eq!(judged(&auth, method, target, &[("x-api-key", "cg_admin")]), 0, "{target}");
    }
}

#[test]
fn who_is_not_asked_for_anything_still_finds_dangerous_routes_closed() {
    let nobody = auth("mode: sticky");
    let open = auth("security: open");
    for (method, target) in OPEN_ROUTES {
        assert_eq!(judged(&nobody, method, target, &[]), 0, "{method} {target}");
    }
    for (method, target) in CLOSED_ROUTES {
        assert_eq!(judged(&nobody, method, target, &[]), 403, "{method} {target}");
        assert_eq!(judged(&open, method, target, &[]), 0, "{method} {target}");
    }
    let key = [("authorization", "Bearer theirs")];
    assert_eq!(judged(&nobody, "GET", "/queue", &key), 0, "it may be the backend's");
}

#[test]
fn rules_of_the_owner_go_before_the_preset_and_closing_before_opening() {
    let rules = "routes: {deny: [POST /upload/**, /manager/notice], \
                 allow: [POST /free, /manager/**, /internal/logs]}";
    let auth = auth(rules);
    for (method, target, expected) in [
        ("POST", "/free", 0),
        ("GET", "/manager/queue/status", 0),
        ("GET", "/manager/notice", 403),
        ("GET", "/Manager//notice", 403),
        ("POST", "/api/upload/image", 403),
        ("GET", "/upload/image", 0),
        ("POST", "/users", 403),
        ("GET", "/internal/logs", 0),
        ("GET", "/internal/logs/raw", 403),
        // Read one way it is open; that is not enough.
        ("GET", "/internal/logs/../folder_paths", 403),
        ("GET", "/internal/folder_paths/../logs", 403),
    ] {
        assert_eq!(judged(&auth, method, target, &[]), expected, "{method} {target}");
    }
}

#[test]
fn a_key_is_its_name_and_goes_where_it_may() {
    let auth = auth(&everything());
    let narrow = [("x-api-key", "cg_narrow")];
    let ask = |method, target| Ask::new(method, target, &narrow).of(&auth);
    assert_eq!(user(ask("POST", "/api/prompt")).as_deref(), Some("narrow"));
    assert_eq!(user(ask("HEAD", "/history/abc")).as_deref(), Some("narrow"));
    for (method, target) in [
        ("GET", "/api/prompt"),
        ("GET", "/"),
        ("GET", "/ws"),
        ("GET", "/history"),
        ("GET", "/history/../queue"),
        ("GET", "/queue/../history/x"),
        ("GET", "/history/a/b"),
    ] {
        assert_eq!(status(&ask(method, target)), 403, "{method} {target}");
    }
}

#[test]
fn a_key_has_its_rate_and_keeps_it_over_a_reload() {
    let keys = |more: &str| format!("auth: {{keys: [{}]}}", key_line("a", "cg_a", more));
    let auth = auth(&keys(", rate: 3/h"));
    let ask = |auth: &Auth| Ask::new("GET", "/queue", &[("x-api-key", "cg_a")]).of(auth);
    for _ in 0..3 {
        assert_eq!(status(&ask(&auth)), 0);
    }
    let rejection = refused(ask(&auth));
    assert_eq!(rejection.kind.status(), 429);
    assert!((1190..=1200).contains(&rejection.retry_after.unwrap()), "{rejection:?}");
    auth.reload(&config(&keys(", rate: 3/h, rights: [admin]")));
    assert_eq!(status(&ask(&auth)), 429);
    auth.reload(&config(&keys("")));
    assert_eq!(status(&ask(&auth)), 0);
}

#[test]
fn a_key_in_an_address_is_refused_unread() {
    let auth = auth(&format!("auth: {{keys: [{}]}}", key_line("a", "cg_a", "")));
    let target = format!("/ws?clientId=a&token={}", key::new());
    assert_eq!(judged(&auth, "GET", &target, &[("x-api-key", "cg_a")]), 400);
    assert_eq!(judged(&auth, "GET", "/ws?clientId=cg_a", &[("x-api-key", "cg_a")]), 0);
}

#[test]
fn without_being_required_a_credential_only_gives_rights() {
    let boss = key_line("boss", "cg_admin", ", rights: [admin]");
    let auth = auth(&format!("auth: {{required: false, keys: [{boss}]}}"));
    assert_eq!(judged(&auth, "GET", "/queue", &[]), 0);
    assert_eq!(judged(&auth, "POST", "/free", &[]), 403);
    assert_eq!(judged(&auth, "POST", "/free", &[("x-api-key", "cg_admin")]), 0);
    assert_eq!(judged(&auth, "GET", "/queue", &[("x-api-key", "cg_wrong")]), 401);
}

#[test]
fn a_proxys_word_names_users_and_counts_only_where_it_is_asked_for() {
    let ask = |auth: &Auth, named| Ask { named, ..Ask::new("GET", "/queue", &[]) }.of(auth);
    let open = auth("auth: {user_header: X-User}");
    assert_eq!(user(ask(&open, Some("anna"))).as_deref(), Some("anna"));
    assert_eq!(user(ask(&open, None)), None);
    let wall = auth("auth: {user_header: X-User, required: true, admins: [root]}");
    assert_eq!(status(&ask(&wall, None)), 401);
    assert_eq!(user(ask(&wall, Some("anna"))).as_deref(), Some("anna"));
    let page = [("sec-fetch-site", "same-origin")];
    for (named, expected) in [("anna", 403), ("root", 0)] {
        let ask = Ask { named: Some(named), ..Ask::new("POST", "/free", &page) };
        assert_eq!(status(&ask.of(&wall)), expected, "{named}");
    }
}

#[test]
fn people_are_sent_to_log_in_and_programs_are_told() {
    let auth = auth(&everything());
    let html = [("accept", "text/html,*/*")];
    match (Ask::new("GET", "/@x/?a=b&c", &html)).of(&auth) {
        Entry::Out(Refusal::Answer(answer)) => {
            assert_eq!(answer.status, 302);
            let (_, location) = &answer.headers[0];
            assert_eq!(location, b"/lb/login?next=/%40x/%3Fa%3Db%26c");
        }
        other => panic!("{other:?}"),
    }
    let socket = [("accept", "text/html"), ("upgrade", "websocket")];
    assert_eq!(judged(&auth, "GET", "/ws", &socket), 401);
    assert_eq!(judged(&auth, "POST", "/", &html), 401);
    let fetch = [("accept", "text/html"), ("sec-fetch-mode", "cors")];
    assert_eq!(judged(&auth, "GET", "/", &fetch), 401);
    let told = refused(Ask::new("GET", "/", &fetch).of(&auth));
    assert_eq!(told.challenge, "Bearer");
    let dialog = self::auth(&everything().replace("auth: {", "auth: {login: basic, "));
    let told = refused(Ask::new("GET", "/", &html).of(&dialog));
    assert!(told.challenge.starts_with("Basic realm="), "{}", told.challenge);
    for target in ["/lb/login", "/lb/logout", "/lb/stats", "/lb/login?next=/"] {
        assert_eq!(judged(&auth, "GET", target, &[]), 0, "{target} has a guard of its own");
    }
    for target in ["/lb/../prompt", "/lbx", "/api/lb/login", "//lb/login", "/lb/session?x=1"] {
        let expected = if target.starts_with("/lb/..") { 0 } else { 401 };
        assert_eq!(judged(&auth, "GET", target, &[]), expected, "{target}");
    }
}

/// Shows a password and what comes of it: the entry, and the cookie.
async fn by_password(auth: &Auth, name: &str, password: &str) -> (u16, Option<String>) {
    let basic = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("{name}:{password}"),
    );
    let basic = format!("Basic {basic}");
    let lines = [("authorization", basic.as_str())];
    let ask = || Ask::new("GET", "/queue", &lines);
    let entry = match ask().of(auth) {
        Entry::Ask(Need::Password(user, password)) => {
            let address = [10, 0, 0, 1].into();
            let told = auth.answer(Question::Password { user, password, address }).await;
            Ask { told: Some(told), ..ask() }.of(auth)
        }
        entry => entry,
    };
    let cookie = match &entry {
        Entry::In(pass) => pass.cookies.first().cloned(),
        _ => None,
    };
    (status(&entry), cookie)
}

fn pair(cookie: &str) -> String {
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_password_is_verified_once_and_then_its_cookie_does() {
    let auth = auth(&everything());
    let (status_of, cookie) = by_password(&auth, "anna", "anna").await;
    assert_eq!(status_of, 0);
    let cookie = cookie.unwrap();
    assert!(cookie.ends_with("; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax"), "{cookie}");
    let pair = pair(&cookie);
    let shown = [("cookie", pair.as_str())];
    let socket = Ask::new("GET", "/ws", &shown).of(&auth);
    assert_eq!(user(socket).as_deref(), Some("anna"));
    // Programs without cookies: the password is remembered.
    let line = "Basic YW5uYTphbm5h";
    assert_eq!(judged(&auth, "GET", "/queue", &[("authorization", line)]), 0);
    // Which is no way around: another is looked at.
    let other = "Basic YW5uYTphbm5i";
    assert_eq!(judged(&auth, "GET", "/queue", &[("authorization", other)]), 1);
    assert_eq!(by_password(&auth, "anna", "annb").await.0, 401);
    assert_eq!(by_password(&auth, "nobody", "anna").await.0, 401);
    assert_eq!(by_password(&auth, "root", "anna").await.0, 401);
}

#[tokio::test]
async fn an_address_that_guesses_is_told_to_wait() {
    let auth = auth(&everything());
    for n in 0..10 {
        assert_eq!(by_password(&auth, "anna", &format!("guess{n}")).await.0, 401);
    }
    // Every 6 seconds one more is looked at, so a slow machine may have to show some more.
    let mut told = by_password(&auth, "anna", "anna").await.0;
    for _ in 0..50 {
        if told == 429 {
            break;
        }
        by_password(&auth, "anna", "guess").await;
        auth.verified.clear();
        told = by_password(&auth, "anna", "anna").await.0;
    }
    assert_eq!(told, 429);
    let elsewhere = auth.check("anna", Secret::new("anna"), [10, 0, 0, 2].into()).await;
    assert!(matches!(elsewhere, Verdict::Right(_)));
}

#[tokio::test]
async fn a_login_ends_with_its_time_its_password_its_user_and_a_logout() {
    let everything = everything();
    let auth = auth(&everything);
    let login = async || pair(&by_password(&auth, "anna", "anna").await.1.unwrap());
    let cookie = login().await;
    let at = |cookie: &str, now| {
        let lines = [("cookie", cookie)];
        status(&Ask { now, ..Ask::new("GET", "/ws", &lines) }.of(&auth))
    };
    assert_eq!(at(&cookie, Seconds(NOW.0 + 86_399)), 0);
    assert_eq!(at(&cookie, Seconds(NOW.0 + 86_400)), 401);
    assert_eq!(at(&cookie, Seconds(NOW.0 - 3600)), 401, "of the future");

    let lines = [("cookie", cookie.as_str())];
    let Entry::In(pass) = Ask::new("GET", "/ws", &lines).of(&auth) else { panic!("logged in") };
    let mut changes = auth.changes();
    auth.log_out(&headers(&lines), NOW);
    assert!(changes.has_changed().unwrap() && !auth.holds(&pass.grant, NOW));
    assert_eq!(at(&cookie, NOW), 401);
    changes.mark_unchanged();

    let cookie = login().await;
    let Entry::In(pass) = Ask::new("GET", "/ws", &[("cookie", &cookie)]).of(&auth) else {
        panic!("logged in again")
    };
    assert!(auth.holds(&pass.grant, NOW) && !auth.holds(&pass.grant, Seconds(NOW.0 + 90_000)));
    auth.reload(&config(&everything));
    assert!(changes.has_changed().unwrap() && auth.holds(&pass.grant, NOW));
    let anna = auth.table().accounts["anna"].password_hash.reveal().to_owned();
    auth.reload(&config(&everything.replace(&anna, &cheap("another"))));
    assert_eq!(at(&cookie, NOW), 401);
    assert!(!auth.holds(&pass.grant, NOW));
    assert_eq!(by_password(&auth, "anna", "anna").await.0, 401, "what was verified is not");
    auth.reload(&config(&everything.replace("name: anna", "name: hanna")));
    assert_eq!(at(&cookie, NOW), 401);
}

#[test]
fn what_a_socket_stands_on_ends_with_a_reload() {
    let with = |key: &str| format!("auth: {{keys: [{key}]}}");
    let key = key_line("a", "cg_a", &format!(", expires: {FUTURE}"));
    let auth = auth(&with(&key));
    let Entry::In(pass) = Ask::new("GET", "/ws", &[("x-api-key", "cg_a")]).of(&auth) else {
        panic!("it is let in")
    };
    assert!(auth.holds(&pass.grant, NOW) && !auth.holds(&pass.grant, Seconds(u32::MAX)));
    auth.reload(&config(&with(&key_line("a", "cg_b", ""))));
    assert!(!auth.holds(&pass.grant, NOW), "another key of the same name");
    assert!(!auth.holds(&Grant::Anyone, NOW));
    auth.reload(&config("mode: sticky"));
    assert!(auth.holds(&Grant::Anyone, NOW));
    auth.reload(&config("auth: {user_header: X-User}"));
    assert!(auth.holds(&Grant::Header("x-user".into()), NOW));
    assert!(!auth.holds(&Grant::Header("x-other".into()), NOW));
}

/// GETs of the Manager change things, and a login's cookie goes along with a link on any page.
#[tokio::test]
async fn an_admins_browser_does_dangerous_things_from_the_own_page_only() {
    let auth = auth(&everything());
    let cookie = pair(&by_password(&auth, "root", "root").await.1.unwrap());
    let judged = |more: &[(&str, &str)]| {
        let lines = [&[("cookie", cookie.as_str()), ("host", "art.example")], more].concat();
        judged(&auth, "GET", "/manager/reboot", &lines)
    };
    for own in [
        &[("sec-fetch-site", "same-origin")][..],
        &[("sec-fetch-site", "none")],
        &[("origin", "https://art.example")],
        &[("referer", "https://art.example/@x/")],
    ] {
        assert_eq!(judged(own), 0, "{own:?}");
    }
    for other in [
        &[][..],
        &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
        &[("sec-fetch-site", "same-site"), ("referer", "https://art.example/")],
        &[("origin", "null"), ("referer", "https://art.example/")],
        &[("referer", "https://evil.example/?https://art.example/")],
    ] {
        assert_eq!(judged(other), 403, "{other:?}");
    }
    let lines = [("cookie", cookie.as_str())];
    assert_eq!(self::judged(&auth, "GET", "/queue", &lines), 0, "what is open wants no more");
}

#[test]
fn who_is_asked_about_requests_decides_and_keys_of_ours_need_no_asking() {
    let key = key_line("ci", "cg_ci", "");
    let auth = auth(&format!("auth: {{keys: [{key}], forward: {{url: 'http://127.0.0.1:1'}}}}"));
    let ask = |lines: &[(&str, &str)], told| {
        status(&Ask { told, ..Ask::new("GET", "/queue", lines) }.of(&auth))
    };
    assert_eq!(ask(&[("x-api-key", "cg_ci")], None), 0);
    assert_eq!(ask(&[("authorization", "Bearer cg_wrong")], None), 401);
    assert_eq!(ask(&[], None), 1);
    assert_eq!(ask(&[("authorization", "Bearer of.somebody.else")], None), 1);
    let yes = Word::Yes { user: Some("anna".into()), cookies: vec!["a=b".into()] };
    let entry = Ask { told: Some(Told::Forward(yes)), ..Ask::new("GET", "/ws", &[]) }.of(&auth);
    let Entry::In(pass) = entry else { panic!("{entry:?}") };
    assert_eq!((pass.user.as_deref(), pass.cookies), (Some("anna"), vec!["a=b".to_owned()]));
    assert!(auth.holds(&pass.grant, NOW));
    auth.reload(&config("auth: {forward: {url: 'http://127.0.0.1:2'}}"));
    assert!(!auth.holds(&pass.grant, NOW));
    let none = Word::None(Rejection::new(Kind::NoBackend, "silence"));
    assert_eq!(ask(&[], Some(Told::Forward(none))), 503);
}

#[test]
fn methods_beside_the_common_ones_are_judged_too() {
    let auth = auth(&everything());
    for method in ["TRACE", "PROPFIND", "PATCH", "PUT"] {
        assert_eq!(judged(&auth, method, "/prompt", &[]), 401, "{method}");
        let plain = [("x-api-key", "cg_plain")];
        assert_eq!(judged(&auth, method, "/manager/reboot", &plain), 403, "{method}");
    }
    assert_eq!(Method::from_bytes(b"PROPFIND").unwrap().as_str(), "PROPFIND");
}
