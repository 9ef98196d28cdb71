//! Which changes a reload cannot make.

use super::checked::{Config, Tls};

/// What differs between the running and a new configuration and takes effect only at the next
/// start, as `key: old → new` or `key: changed`. Empty: a reload does it all.
pub fn differences_needing_restart(old: &Config, new: &Config) -> Vec<String> {
    let (a, b) = (&old.server, &new.server);
    let mut differences = Vec::new();
    let mut compare = |key: &str, old: String, new: String| {
        if old != new {
            differences.push(format!("{key}: {old} → {new}"));
        }
    };
    compare("server.host", a.host.to_string(), b.host.to_string());
    compare("server.port", a.port.to_string(), b.port.to_string());
    compare("server.threads", a.threads.to_string(), b.threads.to_string());
    compare("admin.listen", old.admin.listen.to_string(), new.admin.listen.to_string());
    let shown = |config: &Config| config.state_dir.display().to_string();
    compare("state_dir", shown(old), shown(new));
    let redirects = |tls: &Option<Tls>| tls.as_ref().map(|tls| tls.redirect_port);
    if redirects(&a.tls) != redirects(&b.tls) {
        differences.push("server.tls: begun, ended, or its redirect_port changed".to_owned());
    }
    if a.proxy_protocol != b.proxy_protocol {
        differences.push("server.proxy_protocol: changed".to_owned());
    }
    if old.log != new.log {
        differences.push("log: changed".to_owned());
    }
    if old.session.cookie_key != new.session.cookie_key {
        differences.push("session.cookie_key: changed".to_owned());
    }
    if old.pool.isolation != new.pool.isolation {
        differences.push("pool.isolation: changed".to_owned());
    }
    let bytes = |bytes: u64| format!("{bytes} bytes");
    let (a, b) = (&old.pool, &new.pool);
    for (key, old, new) in [
        ("pool.keep_outputs", a.keep_outputs, b.keep_outputs),
        ("pool.uploads_size", a.uploads_size, b.uploads_size),
    ] {
        if old != new {
            differences.push(format!("{key}: {} → {}", bytes(old), bytes(new)));
        }
    }
    if old.mode != new.mode {
        differences.push("mode: changed".to_owned());
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn listeners_need_a_restart_and_backends_do_not() {
        let old = parse("backends: ['http://a:1']").unwrap();
        let same = parse("backends: ['http://b:1']\nsession: {ttl: 5s}").unwrap();
        assert!(differences_needing_restart(&old, &same).is_empty());
        let new = parse(
            "{backends: ['http://a:1'], server: {port: 9000, host: 127.0.0.1}, state_dir: /s}",
        );
        assert_eq!(
            differences_needing_restart(&old, &new.unwrap()),
            [
                "server.host: 0.0.0.0 → 127.0.0.1",
                "server.port: 8100 → 9000",
                "state_dir: ./state → /s"
            ]
        );
    }
}
