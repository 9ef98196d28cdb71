//! `server.tls`: that both files are there, are what they should be, and belong together.

use std::path::Path;

use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::checked::Tls;
use super::raw::Node;

/// The checked pair, or `None` with a problem for each thing wrong with it.
pub(super) fn tls(node: &Node<'_>) -> Option<Tls> {
    node.value()?.as_mapping()?;
    let path = |key: &str| {
        let node = node.get(key);
        if !node.is_set() {
            node.problem("name a PEM file; TLS needs both cert and key".to_owned());
        }
        let path = node.text("name a PEM file", Some)?;
        Some((node.clone(), node.reading().resolve(&path)))
    };
    let (cert, key) = (path("cert"), path("key"));
    let chain = cert.and_then(|(node, path)| Some((certificates(&node, &path)?, path)));
    let key = key.and_then(|(node, path)| Some((private_key(&node, &path)?, path, node)));
    let ((chain, cert), (secret, key, key_node)) = (chain?, key?);
    if let Err(e) = CertifiedKey::from_der(chain, secret, &ring::default_provider()) {
        let cert = cert.display();
        key_node.problem(format!("does not work with {cert} ({e}); use the key it was made with"));
        return None;
    }
    Some(Tls { cert, key })
}

fn certificates(node: &Node<'_>, path: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let chain =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match chain {
        Ok(chain) if !chain.is_empty() => return Some(chain),
        Ok(_) => refuse(node, &Error::NoItemsFound, "a certificate chain"),
        Err(e) => refuse(node, &e, "a certificate chain"),
    }
    None
}

fn private_key(node: &Node<'_>, path: &Path) -> Option<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).inspect_err(|e| refuse(node, e, "a private key")).ok()
}

fn refuse(node: &Node<'_>, error: &Error, what: &str) {
    let why = match error {
        Error::Io(e) => format!("cannot be read ({e})"),
        Error::NoItemsFound => "holds none".to_owned(),
        other => format!("is no PEM ({other})"),
    };
    node.problem(format!("{why}; name a readable PEM file with {what}"));
}
