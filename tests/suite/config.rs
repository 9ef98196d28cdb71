//! Configuration: what loads, what is refused and with which words.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use comfygate::cli::Exit;
use comfygate::config::{
    AccessLog, Affinity, Endpoint, Flags, Loaded, Mode, Problems, Sources, Strategy, check_file,
    known_keys, load, parse,
};
use proptest::prelude::*;
use serde_yaml::Value;

fn in_repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load_file(path: PathBuf) -> Result<Loaded, Problems> {
    load(&Sources { file: Some(path), ..Sources::default() })
}

fn load_env(pairs: &[(&str, &str)]) -> Result<Loaded, Problems> {
    load(&Sources { env: env(pairs), ..Sources::default() })
}

/// Loads a text as a file of a fresh directory, with an environment and flags.
fn load_text(text: &str, pairs: &[(&str, &str)], flags: Flags) -> Result<Loaded, Problems> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.yaml");
    std::fs::write(&file, text).unwrap();
    load(&Sources { file: Some(file), env: env(pairs), flags })
}

fn complaint(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

#[test]
fn broken_configurations_name_key_value_line_and_cure() {
    let one = "backends: [http://a:8188]\n";
    let cases = [
        (
            "scheduler: {strategy: fastest}\n",
            "scheduler.strategy = fastest (line 2): use one of least_busy, round_robin, weighted, \
             weighted_round_robin, least_calls, least_wait, ip_hash",
        ),
        (
            "server:\n  port: 70000\n",
            "server.port = 70000 (line 3): use a whole number from 0 to 65535",
        ),
        (
            "scheduler:\n  prefer_idle: true\n  stratgy: least_busy\n",
            "scheduler.stratgy = least_busy (line 4): unknown key; did you mean strategy?",
        ),
        ("port: 8100\n", "port = 8100 (line 2): unknown key; it belongs under server"),
        (
            "log: {colour: red}\n",
            "log.colour = red (line 2): unknown key; use one of format, access",
        ),
        (
            "health_check:\n  interval: soon\n",
            "health_check.interval = soon (line 3): use 10ms to 1h, as seconds or such as 500ms, \
             5s, 1h",
        ),
        (
            "session: {ttl: 0}\n",
            "session.ttl = 0 (line 2): use 1ms to 3650d, as seconds or such as 500ms, 5s, 1h",
        ),
        (
            "limits: {body_size: 100 apples}\n",
            "limits.body_size = 100 apples (line 2): use 1 to 1TiB, as bytes or such as 64KiB, \
             100MB",
        ),
        (
            "admin: {listen: '0.0.0.0:8101'}\n",
            "admin.listen = 0.0.0.0:8101 (line 2): open to others; set admin token: {env: \
             COMFYGATE_ADMIN_TOKEN} or use 127.0.0.1:PORT",
        ),
        (
            "admin:\n  token: {env: NOT_THERE}\n",
            "admin.token = MASKED (line 3): set the environment variable NOT_THERE",
        ),
        (
            "server: {trusted_proxies: [10.0.0.0/8, 10.0.0.0/40]}\n",
            "server.trusted_proxies[1] = 10.0.0.0/40 (line 2): use a network or an address, such \
             as 10.0.0.0/8, ::1",
        ),
        (
            "server: {port: 8101}\n",
            "server.port = 8101 (line 2): admin.listen is 127.0.0.1:8101 too; change one of the \
             two",
        ),
        (
            "server: 8100\n",
            "server = 8100 (line 2): give a map of host, port, debug, threads, backend_header, tls, trusted_proxies, proxy_protocol, public_names, shutdown_timeout",
        ),
        (
            "server: {proxy_protocol: v2}\n",
            "server.proxy_protocol = v2 (line 2): believed of server.trusted_proxies only, and \
             there are none; give the load balancer's address there, or use off",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(complaint(&format!("{one}{text}")), expected);
    }
}

#[test]
fn broken_backends_name_key_value_line_and_cure() {
    let cases = [
        (
            "{name: a, url: http://b:1}\n  - {name: a, url: http://c:1}",
            "backends[1].name = a (line 3): the name of backends[0] too; give each its own",
        ),
        (
            "{name: a, host: GPU1, port: 80}\n  - {name: b, url: http://gpu1/}",
            "backends[1].url = http://gpu1/ (line 3): the same server as a; remove one of the two",
        ),
        (
            "http://a:8188\n  - HTTP://A:8188/",
            "backends[1] = HTTP://A:8188/ (line 3): the same server as comfy-1; remove one of the \
             two",
        ),
        (
            "{url: http://a, weight: 0}",
            "backends[0].weight = 0 (line 2): use 1 to 100, or enabled: false for a backend \
             without load",
        ),
        ("{name: a}", "backends[0].url = none (line 2): give url, or host and port"),
        (
            "{host: a, port: 1, url: http://a:1}",
            "backends[0].host = a (line 2): stands beside url; give either url or host and port",
        ),
        ("{host: a}", "backends[0].port = none (line 2): give both host and port, or url"),
        (
            "gpu1:8188",
            "backends[0] = gpu1:8188 (line 2): use http://HOST:PORT or https://HOST:PORT, a base \
             path after it at most",
        ),
        (
            "http://me:hunter2@gpu1",
            "backends[0] = MASKED (line 2): use http://HOST:PORT or https://HOST:PORT, a base \
             path after it at most; credentials go into headers",
        ),
        (
            "{name: my gpu, url: http://a}",
            "backends[0].name = my gpu (line 2): use 1 to 64 of A-Z a-z 0-9 . _ -",
        ),
        (
            "{url: http://a, headers: {Content-Length: '5'}}",
            "backends[0].headers.Content-Length = MASKED (line 2): set twice or by the gateway \
             itself; remove it",
        ),
    ];
    for (item, expected) in cases {
        assert_eq!(complaint(&format!("backends:\n  - {item}\n")), expected);
    }
}

#[test]
fn every_problem_is_told_at_once_in_the_order_of_lines() {
    let text = "mod: sticky\nserver: {port: x, debug: 5}\nbackends:\n  - ftp://a\nwho: me\n";
    let keys: Vec<String> =
        parse(text).unwrap_err().iter().map(|problem| problem.key.clone()).collect();
    assert_eq!(keys, ["mod", "server.port", "server.debug", "backends[0]", "who"]);
}

#[test]
fn a_flood_of_problems_is_cut_short() {
    let problems = load_file(in_repo("tests/corpus/config/many-unknown.yaml")).unwrap_err();
    assert_eq!(problems.iter().count(), 50);
    assert!(problems.to_string().ends_with("and 451 more; mend these first"), "{problems}");
}

#[test]
fn files_that_are_no_configuration_are_told_as_such() {
    let cases = [
        ("empty.yaml", "is empty; start from conf/minimal.yaml"),
        ("list-on-top.yaml", "holds no keys; begin with one, such as backends:"),
        ("scalar-on-top.yaml", "holds no keys"),
        ("not-utf8.yaml", "(line 2): is not UTF-8; save it as UTF-8 text"),
        ("key-twice.yaml", "(line 1): is not valid YAML: server: the key port stands twice"),
        ("tab.yaml", "indent with blanks, not tabs"),
        ("alias-bomb.yaml", "repetition limit exceeded"),
        ("deep-flow.yaml", "is not valid YAML: recursion limit exceeded"),
        ("two-documents.yaml", "more than one document"),
        ("tag.yaml", "(line 1): is not valid YAML: backends: invalid type: enum"),
        ("no-such-file.yaml", "cannot be read (No such file or directory"),
    ];
    for (name, expected) in cases {
        let problems = load_file(in_repo("tests/corpus/config").join(name)).unwrap_err();
        let told = problems.to_string();
        assert!(told.starts_with("--config = "), "{name}: {told}");
        assert!(told.contains(expected) && told.contains(name), "{name}: {told}");
    }
}

#[test]
fn the_corpus_is_refused_or_loaded_without_a_panic() {
    let mut seen = 0;
    for entry in std::fs::read_dir(in_repo("tests/corpus/config")).unwrap() {
        let path = entry.unwrap().path();
        let (report, exit) = check_file(&path, BTreeMap::new());
        let good = ["byte-order-mark.yaml", "carriage-returns.yaml"];
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = if good.contains(&name) { Exit::Ok } else { Exit::Usage };
        assert_eq!(exit, expected, "{report}");
        assert!(!report.contains("hunter2") && !report.contains('\u{1b}'), "{report}");
        assert!(report.lines().all(|line| line.starts_with(path.to_str().unwrap())), "{report}");
        seen += 1;
    }
    assert!(seen > 25, "only {seen} files");
}

#[test]
fn no_backends_is_a_problem_and_none_enabled_a_warning() {
    assert_eq!(
        load(&Sources::default()).unwrap_err().to_string(),
        "backends = none: give at least one under backends, in COMFYGATE_BACKENDS or with \
         --backends, such as http://127.0.0.1:8188"
    );
    let loaded = load_text("backends: [{url: http://a, enabled: false}]", &[], Flags::default());
    assert_eq!(
        loaded.unwrap().warnings,
        ["backends: all have enabled: false, so nothing can be served"]
    );
}

#[test]
fn the_python_balancers_configuration_loads_and_names_pool_mode() {
    let loaded = load_file(in_repo("tests/fixtures/python-balancer.yaml")).unwrap();
    let config = loaded.config;
    assert_eq!(config.mode, Mode::Sticky);
    assert_eq!((config.server.port, config.server.debug), (8100, false));
    assert_eq!(config.scheduler.strategy, Strategy::LeastBusy);
    assert_eq!(config.health_check.interval, Duration::from_secs(5));
    assert_eq!((config.queue.max_size, config.queue.max_retries), (1000, 3));
    let [backend] = config.backends.as_slice() else { panic!("{:?}", config.backends) };
    assert_eq!((backend.name.as_str(), backend.max_queue), ("comfy-1", 10));
    assert_eq!(backend.endpoint.url(), "http://127.0.0.1:8188");
    let [warning] = loaded.warnings.as_slice() else { panic!("{:?}", loaded.warnings) };
    assert!(warning.contains("mode: pool"), "{warning}");
}

#[test]
fn the_servers_json_loads_beside_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let servers = directory.path().join("servers.json");
    std::fs::copy(in_repo("tests/fixtures/servers.json"), &servers).unwrap();
    let file = directory.path().join("c.yaml");
    std::fs::write(
        &file,
        "backends_file: servers.json\nbackends: [{url: http://a, name: comfy-2}]",
    )
    .unwrap();
    let loaded = load_file(file).unwrap();
    let names: Vec<String> = (loaded.config.backends.iter())
        .map(|backend| format!("{} {}", backend.name, backend.endpoint.url()))
        .collect();
    let expected =
        ["comfy-2 http://a:80", "comfy-3 http://localhost:8188", "comfy-4 http://localhost:8189"];
    assert_eq!(names, expected);
    assert_eq!(loaded.from_backends_file, 2);
    assert_eq!(loaded.config.backends_file, Some(servers));
}

#[test]
fn problems_in_the_backends_file_name_it_and_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.yaml");
    std::fs::write(&file, "backends_file: s.json").unwrap();
    let told = || load_file(file.clone()).unwrap_err().to_string();
    assert!(told().starts_with("backends_file = s.json (line 1): cannot be read"), "{}", told());
    let servers = directory.path().join("s.json");
    std::fs::write(&servers, "{}").unwrap();
    assert!(told().ends_with(": holds no list; write [\"http://HOST:8188\"]"), "{}", told());
    std::fs::write(&servers, "[\n\"http://a\",\n{\"url\": \"http://b\", \"wight\": 2}\n]").unwrap();
    let expected = format!(
        "backends_file[1].wight = 2 ({}, line 3): unknown key; did you mean weight?",
        servers.display()
    );
    assert_eq!(told(), expected);
}

#[test]
fn the_files_of_conf_load_without_warnings() {
    for (name, backends) in [("comfygate.yaml", 2), ("minimal.yaml", 2)] {
        let path = in_repo("conf").join(name);
        let (report, exit) = check_file(&path, BTreeMap::new());
        assert_eq!(report, format!("{}: ok, {backends} backends\n", path.display()));
        assert_eq!(exit, Exit::Ok);
    }
}

/// The full example with its commented keys uncommented.
fn full_example() -> Value {
    let text = std::fs::read_to_string(in_repo("conf/comfygate.yaml")).unwrap();
    let known = known_keys();
    let is_key = |name: &str| {
        known.iter().any(|key| key.split('.').any(|part| part.trim_end_matches("[]") == name))
    };
    let uncomment = |line: &str| {
        let bare = line.trim_start();
        let key = bare
            .strip_prefix("# ")
            .filter(|rest| rest.split_once(':').is_some_and(|(name, _)| is_key(name)));
        match key {
            Some(key) => format!("{}{key}\n", &line[..line.len() - bare.len()]),
            None => format!("{line}\n"),
        }
    };
    serde_yaml::from_str(&text.lines().map(uncomment).collect::<String>()).unwrap()
}

fn collect_keys(value: &Value, above: &str, keys: &mut BTreeSet<String>) {
    keys.insert(above.to_owned());
    if let Value::Mapping(map) = value {
        for (key, value) in map {
            let dot = if above.is_empty() { "" } else { "." };
            collect_keys(value, &format!("{above}{dot}{}", key.as_str().unwrap()), keys);
        }
    }
    for item in value.as_sequence().into_iter().flatten() {
        collect_keys(item, &format!("{above}[]"), keys);
    }
}

#[test]
fn the_full_example_has_every_key() {
    let mut there = BTreeSet::new();
    collect_keys(&full_example(), "", &mut there);
    let lacking: Vec<String> =
        known_keys().into_iter().filter(|key| !there.contains(key)).collect();
    assert!(lacking.is_empty(), "{lacking:?}");
}

#[test]
fn the_full_example_shows_the_defaults() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.yaml");
    std::fs::write(&file, "backends: [http://127.0.0.1:8188, http://127.0.0.1:8189]").unwrap();
    let bare = load_file(file).unwrap().config;
    let full = load_file(in_repo("conf/comfygate.yaml")).unwrap().config;
    assert_eq!(bare, full);
}

#[test]
fn every_known_key_is_looked_at() {
    for key in known_keys() {
        // A map in a list fits no key at all.
        let nonsense = key.rsplit('.').fold("[{x: [{}]}]".to_owned(), |inner, part| {
            match part.strip_suffix("[]") {
                Some(part) => format!("{{{part}: [{inner}]}}"),
                None => format!("{{{part}: {inner}}}"),
            }
        });
        let told = complaint(&nonsense);
        let key = key.replace("[]", "[0]");
        assert!(told.lines().any(|line| line.starts_with(&key)), "{key}: {told}");
    }
}

#[test]
fn environment_beats_file_and_flags_beat_environment() {
    let file = "backends: [http://file:1]\nserver: {port: 1111, host: 127.0.0.1}\n";
    let vars = [
        ("COMFYGATE__SERVER__PORT", "2222"),
        ("COMFYGATE__SERVER__HOST", "127.0.0.2"),
        ("COMFYGATE__SESSION__AFFINITY", "cookie"),
        ("COMFYGATE__ADMIN__TOKEN", "0123"),
        ("COMFYGATE__SCHEDULER__ZONES", "{eu: [10.0.0.0/8]}"),
        ("COMFYGATE__LOG__ACCESS", ""),
        ("COMFYGATE_BACKENDS", "http://b1:8188, http://b2:8188"),
        ("COMFYGATE_BACKUPS", "http://b3:8188"),
    ];
    let flags = Flags { port: Some(3333), ..Flags::default() };
    let config = load_text(file, &vars, flags).unwrap().config;
    assert_eq!(config.server.port, 3333);
    assert_eq!(config.server.host.to_string(), "127.0.0.2");
    assert_eq!(config.session.affinity, Affinity::Cookie);
    assert_eq!(config.admin.token.unwrap().reveal(), "0123");
    assert_eq!(config.scheduler.zones.len(), 1);
    assert_eq!(config.log.access, AccessLog::Off);
    let names: Vec<_> = config.backends.iter().map(|b| (b.name.as_str(), b.backup)).collect();
    assert_eq!(names, [("comfy-1", false), ("comfy-2", false), ("backup-1", true)]);

    let flags = Flags { backends: Some("https://f:1/base/".to_owned()), ..Flags::default() };
    let config = load_text(file, &vars[..7], flags).unwrap().config;
    let base = Endpoint { tls: true, host: "f".to_owned(), port: 1, base: "/base".to_owned() };
    assert_eq!(config.backends.iter().map(|b| &b.endpoint).collect::<Vec<_>>(), [&base]);
}

#[test]
fn environment_and_flags_do_without_a_file() {
    let loaded = load_env(&[("COMFYGATE_BACKENDS", "http://a:8188")]).unwrap();
    assert_eq!((loaded.config.backends.len(), loaded.warnings.len()), (1, 0));
    let loaded = load_env(&[
        ("COMFYGATE__BACKENDS__0__URL", "http://a:8188"),
        ("COMFYGATE__BACKENDS__0__WEIGHT", "7"),
    ]);
    assert_eq!(loaded.unwrap().config.backends[0].weight, 7);
}

#[test]
fn problems_of_the_environment_and_of_flags_name_variable_and_flag() {
    let told = |pairs: &[(&str, &str)]| load_env(pairs).unwrap_err().to_string();
    let backends = ("COMFYGATE_BACKENDS", "http://a");
    assert_eq!(
        told(&[backends, ("COMFYGATE__SERVR__PORT", "1")]),
        "servr = {…} (COMFYGATE__SERVR__PORT): unknown key; did you mean server?"
    );
    assert_eq!(
        told(&[backends, ("COMFYGATE__SERVER__PORT", "x")]),
        "server.port = x (COMFYGATE__SERVER__PORT): use a whole number from 0 to 65535"
    );
    assert_eq!(
        told(&[("COMFYGATE_BACKENDS", "http://a,b")]),
        "backends[1] = b (COMFYGATE_BACKENDS): use http://HOST:PORT or https://HOST:PORT, a base \
         path after it at most"
    );
    assert!(told(&[backends, ("COMFYGATE__BACKENDS__5__URL", "x")]).contains("give a list"));
    let deep = format!("COMFYGATE{}", "__A".repeat(10_000));
    assert!(told(&[backends, (deep.as_str(), "x")]).contains("leads to no key"));
    let flags = Flags { host: Some("nowhere".to_owned()), ..Flags::default() };
    assert_eq!(
        load_text("backends: [http://a]", &[], flags).unwrap_err().to_string(),
        "server.host = nowhere (--host): use an address of this machine, or 0.0.0.0 for all"
    );
}

#[test]
fn secrets_come_from_environment_and_file_and_never_show() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "s3cret-of-file\n").unwrap();
    let file = directory.path().join("c.yaml");
    std::fs::write(
        &file,
        "backends: [{url: http://a, headers: {Authorization: {env: TOK}, X-A: s3cret-inline}}]\n\
         admin: {token: {file: token}}\nhealth_check: {headers: {X-B: {env: TOK}}}\n\
         session: {cookie_key: s3cret-0123456789}\n",
    )
    .unwrap();
    let sources = Sources {
        file: Some(file),
        env: env(&[("TOK", "Bearer s3cret-of-env")]),
        flags: Flags::default(),
    };
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.config.admin.token.as_ref().unwrap().reveal(), "s3cret-of-file");
    assert_eq!(loaded.config.backends[0].headers[0].1.reveal(), "Bearer s3cret-of-env");
    let debug = format!("{loaded:?}");
    assert!(debug.contains("MASKED") && !debug.contains("s3cret"), "{debug}");
}

#[test]
fn broken_secrets_never_show() {
    for text in [
        "admin: {tokn: s3cret}",
        "admin: {token: [s3cret]}",
        "token: s3cret",
        "auth: s3cret",
        "session: {cookie_key: s3cret}",
        "health_check: {headers: 'Authorization: s3cret'}",
        "health_check: {headers: {X-A: {envv: s3cret}}}",
        "alerts: {webhooks: [s3cret]}",
        "alerts: {webhooks: ['file:///s3cret']}",
        "alerts: {webhooks: [{url: 's3cret://a', secret: s3cret}]}",
        "alerts: {webhooks: [{secret: s3cret, url: 'http://a', to: s3cret}]}",
        "backends: ['http://a/?token=s3cret']",
    ] {
        let told = complaint(text);
        assert!(told.contains("MASKED") && !told.contains("s3cret"), "{told}");
    }
}

#[test]
fn what_is_hardly_meant_is_warned_of() {
    let text = "backends: [http://a]\npool: {keep_outputs: 10GB}\n\
                scheduler: {zones: {eu: ['::/0']}}\n\
                health_check: {interval: 1s, timeout: 2s}\n";
    let loaded = load_text(text, &[], Flags::default()).unwrap();
    assert_eq!(loaded.config.pool.keep_outputs, 10_000_000_000);
    assert_eq!(
        loaded.warnings,
        ["health_check.timeout: longer than health_check.interval, so polls fall behind"]
    );
}

#[test]
fn isolation_by_user_wants_somebody_who_names_users() {
    let told = complaint("{mode: pool, backends: ['http://a'], pool: {isolation: user}}");
    assert!(told.starts_with("pool.isolation = user"), "{told}");
    assert!(told.contains("auth.user_header") && told.contains("server.trusted_proxies"), "{told}");
    let text = "{backends: ['http://a'], pool: {isolation: user}, auth: {user_header: X-User},\
                limits: {per_user: {queued: 3}}}";
    let loaded = load_text(text, &[], Flags::default()).unwrap();
    assert_eq!(loaded.config.auth.user_header.as_deref(), Some("x-user"));
    assert_eq!(
        loaded.warnings,
        [
            "auth.user_header: believed of server.trusted_proxies only, and there are none",
            "limits.per_user: has an effect in pool mode only",
        ]
    );
}

#[test]
fn webhooks_are_urls_with_or_without_a_secret() {
    let text = "backends: [http://a]\nalerts: {webhooks: ['https://a.example/x', {url: {env: HOOK}, \
                secret: {env: KEY}}, {env: HOOK}]}\n";
    let env = [("HOOK", "http://b.example/token"), ("KEY", "k")];
    let config = load_text(text, &env, Flags::default()).unwrap().config;
    let shown = |hook: &comfygate::config::Webhook| {
        (hook.url.reveal().to_owned(), hook.secret.as_ref().map(|s| s.reveal().to_owned()))
    };
    let hooks: Vec<_> = config.alerts.webhooks.iter().map(shown).collect();
    let b = "http://b.example/token".to_owned();
    assert_eq!(
        hooks,
        [("https://a.example/x".to_owned(), None), (b.clone(), Some("k".to_owned())), (b, None)]
    );
    assert!(!format!("{config:?}").contains("b.example"));
}

/// Loads a file beside the fixtures of `tests/fixtures/tls`.
fn with_tls(cert: &str, key: &str) -> Result<Loaded, Problems> {
    let at = in_repo("tests/fixtures/tls");
    let (cert, key) = (at.join(cert), at.join(key));
    let tls = format!("{{cert: '{}', key: '{}'}}", cert.display(), key.display());
    load_env(&[("COMFYGATE_BACKENDS", "http://a"), ("COMFYGATE__SERVER__TLS", &tls)])
}

#[test]
fn tls_wants_a_certificate_and_the_key_it_was_made_with() {
    let tls = with_tls("server.pem", "server.key").unwrap().config.server.tls.unwrap();
    assert!(tls.cert.ends_with("server.pem") && tls.key.ends_with("server.key"));
    for (cert, key, at, expected) in [
        ("nowhere.pem", "server.key", "server.tls.cert", "cannot be read (No such file"),
        ("server.key", "server.key", "server.tls.cert", "holds none; name a readable PEM file"),
        ("server.pem", "server.pem", "server.tls.key", "with a private key"),
        ("server.pem", "../servers.json", "server.tls.key", "holds none"),
        ("server.pem", "other.key", "server.tls.key", "use the key it was made with"),
    ] {
        let told = with_tls(cert, key).unwrap_err().to_string();
        assert!(told.starts_with(at) && told.contains(expected), "{cert} {key}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    assert!(complaint("server: {tls: {cert: x}}").contains("TLS needs both cert and key"));
}

/// YAML made of known and unknown keys with odd values: gets further than arbitrary text.
fn near_configuration() -> impl Strategy_<Value = String> {
    let keys: Vec<String> = known_keys();
    let value = prop_oneof![
        Just("-1".to_owned()),
        Just("18446744073709551616".to_owned()),
        Just(".nan".to_owned()),
        Just("1e999".to_owned()),
        Just("{env: X}".to_owned()),
        Just("[http://a, {host: a}]".to_owned()),
        "[0-9]{1,25}(ms|s|m|h|d|KiB|TB)?",
        "[a-z:/.@?\\[\\]{}-]{0,20}",
        "\\PC{0,20}",
    ];
    let entry = (proptest::sample::select(keys), value).prop_map(|(key, value)| {
        key.rsplit('.').fold(value, |inner, part| match part.strip_suffix("[]") {
            Some(part) => format!("{{{part}: [{inner}]}}"),
            None => format!("{{{part}: {inner}}}"),
        })
    });
    entry.prop_map(|flow| flow[1..flow.len() - 1].to_owned())
}

use proptest::strategy::Strategy as Strategy_;

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}") {
        let _ = parse(&text).map_err(|problems| problems.to_string());
    }

    #[test]
    fn near_configurations_never_panic(text in near_configuration()) {
        let told = parse(&text).map_err(|problems| problems.to_string());
        if let Err(told) = told {
            prop_assert!(told.lines().all(|line| line.contains(" = ") && line.contains(": ")), "{}", told);
        }
    }

    #[test]
    fn arbitrary_bytes_in_files_and_variables_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        value in "\\PC{0,60}",
        key in "[A-Z_0]{0,30}",
    ) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("c.yaml");
        std::fs::write(&file, &bytes).unwrap();
        let _ = check_file(&file, BTreeMap::new());
        let name = format!("COMFYGATE__{key}");
        let _ = load_env(&[(name.as_str(), value.as_str()), ("COMFYGATE_BACKENDS", &value)]);
    }
}
