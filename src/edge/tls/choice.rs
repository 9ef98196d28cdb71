//! Which certificate a client gets: the one that is for the name it asks for (SNI), else the first.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::certificate_names;

/// The certificates by the names they are for.
#[derive(Debug)]
pub(super) struct Choice {
    default: Arc<CertifiedKey>,
    /// Names in lower case; `*.example.org` stands as it is written.
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl Choice {
    /// A choice among certificates, of which the first is the default; `None` when there is none.
    /// Of two for the same name the former counts.
    pub(super) fn new(certificates: Vec<Arc<CertifiedKey>>) -> Option<Self> {
        let default = Arc::clone(certificates.first()?);
        let mut named = HashMap::new();
        for certificate in certificates {
            for name in certificate_names(&certificate) {
                named.entry(name).or_insert_with(|| Arc::clone(&certificate));
            }
        }
        Some(Self { default, named })
    }

    /// The certificate for a name; an asterisk stands for exactly one label.
    fn of(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = name.map(str::to_ascii_lowercase) else { return &self.default };
        let wildcard = || {
            let (_, parent) = name.split_once('.')?;
            self.named.get(&format!("*.{parent}"))
        };
        self.named.get(&name).or_else(wildcard).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.of(hello.server_name())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> Arc<CertifiedKey> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let provider = rustls::crypto::ring::default_provider();
        Arc::new(CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider).unwrap())
    }

    #[test]
    fn the_exact_name_beats_the_wildcard_and_the_first_one_serves_the_rest() {
        let [first, star, exact] =
            [&["a.test"][..], &["*.b.test", "B.test"], &["x.b.test"]].map(certificate);
        let all = vec![Arc::clone(&first), Arc::clone(&star), Arc::clone(&exact)];
        let choice = Choice::new(all).unwrap();
        for (asked, expected) in [
            (Some("a.test"), &first),
            (Some("b.test"), &star),
            (Some("Y.b.TEST"), &star),
            (Some("x.b.test"), &exact),
            (Some("z.x.b.test"), &first),
            (Some("c.test"), &first),
            (Some("test"), &first),
            (None, &first),
        ] {
            assert!(Arc::ptr_eq(choice.of(asked), expected), "{asked:?}");
        }
        assert!(Choice::new(Vec::new()).is_none());
    }
}
