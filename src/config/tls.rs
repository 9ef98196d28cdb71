//! `server.tls`: that the files are there, are what they should be, and belong together.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::checked::{ClientAuth, Pair, Tls, TlsVersion};
use super::raw::Node;

/// Certificates at most.
const MAX_CERTIFICATES: usize = 100;
const TEN_YEARS: Duration = Duration::from_hours(87_600);

/// Why a certificate and its key cannot be used.
#[derive(Debug)]
pub struct Unfit {
    /// The file that is at fault.
    pub path: PathBuf,
    /// Whether that is the key's.
    pub is_key: bool,
    /// What is wrong with it, and what to do.
    pub why: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

/// Reads a certificate chain and its key, and tries them on each other.
pub fn certified_key(pair: &Pair) -> Result<CertifiedKey, Unfit> {
    let unfit = |path: &Path, is_key, why| Unfit { path: path.to_owned(), is_key, why };
    let chain = certificates(&pair.cert, "a certificate chain");
    let chain = chain.map_err(|why| unfit(&pair.cert, false, why))?;
    let key = PrivateKeyDer::from_pem_file(&pair.key)
        .map_err(|error| unfit(&pair.key, true, told(&error, "a private key")))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
        let cert = pair.cert.display();
        let why = format!("does not work with {cert} ({error}); use the key it was made with");
        unfit(&pair.key, true, why)
    })
}

/// Reads the certificates of authorities.
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = certificates(path, "the certificates of authorities")?;
    let mut store = RootCertStore::empty();
    for certificate in &read {
        store.add(certificate.clone()).map_err(|error| {
            format!("holds a certificate that cannot be used ({error}); remove or replace it")
        })?;
    }
    Ok(read)
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        Ok(_) => Err(told(&Error::NoItemsFound, what)),
        Err(error) => Err(told(&error, what)),
    }
}

fn told(error: &Error, what: &str) -> String {
    let why = match error {
        Error::Io(e) => format!("cannot be read ({e})"),
        Error::NoItemsFound => "holds none".to_owned(),
        other => format!("is no PEM ({other})"),
    };
    format!("{why}; name a readable PEM file with {what}")
}

/// The names that a certificate is for, wildcards as `*.example.org`; in lower case.
pub fn names(certified: &CertifiedKey) -> Vec<String> {
    let Some(own) = certified.cert.first() else { return Vec::new() };
    let Ok(parsed) = webpki::EndEntityCert::try_from(own) else { return Vec::new() };
    parsed.valid_dns_names().map(str::to_ascii_lowercase).collect()
}

/// The checked section, or `None` with a problem for each thing wrong with it.
pub(super) fn tls(node: &Node<'_>) -> Option<Tls> {
    node.value()?.as_mapping()?;
    let list = node.get("certificates").items();
    if let Some(one_too_many) = list.get(MAX_CERTIFICATES) {
        one_too_many.problem(format!("use {MAX_CERTIFICATES} certificates at most"));
    }
    let alone = node.get("cert").is_set() || node.get("key").is_set();
    let first = (alone || list.is_empty()).then_some(node);
    let mut certificates = Vec::new();
    for (place, node) in first.into_iter().chain(&list).take(MAX_CERTIFICATES).enumerate() {
        let Some((pair, certified)) = pair(node) else { continue };
        if place > 0 && names(&certified).is_empty() {
            let cure = "names no host in its subjectAltName, so that nobody would get it; \
                        put it first, as the default, or replace it";
            node.get("cert").problem(cure.to_owned());
        }
        certificates.push(pair);
    }
    let auth = [("required", ClientAuth::Required), ("optional", ClientAuth::Optional)];
    let client_ca = authority_file(&node.get("client_ca"));
    let client_auth = node.get("client_auth");
    if client_auth.is_set() && !node.get("client_ca").is_set() {
        client_auth.problem("give client_ca too: who signs the clients' certificates".to_owned());
    }
    let port = node.get("redirect_port");
    Some(Tls {
        certificates,
        min_version: version(&node.get("min_version")),
        client_auth: client_auth.choice(ClientAuth::Required, &auth),
        client_ca: client_ca.map(|(path, _)| path),
        http2: node.get("http2").bool(true),
        hsts: node.get("hsts").duration(Duration::ZERO, Duration::ZERO..=TEN_YEARS),
        redirect_port: port.is_set().then(|| port.int(0, 0..=u64::from(u16::MAX))),
    })
}

fn version(node: &Node<'_>) -> TlsVersion {
    let read = node.text("use 1.2 or 1.3", |text| match text.as_str() {
        "1.2" => Some(TlsVersion::V1_2),
        "1.3" => Some(TlsVersion::V1_3),
        _ => None,
    });
    read.unwrap_or(TlsVersion::V1_2)
}

/// A certificate and its key; `None` with a problem.
fn pair(node: &Node<'_>) -> Option<(Pair, CertifiedKey)> {
    let path = |key: &str| {
        let node = node.get(key);
        if !node.is_set() {
            node.problem("name a PEM file; TLS needs both cert and key".to_owned());
        }
        Some(node.reading().resolve(&node.text("name a PEM file", Some)?))
    };
    let (cert, key) = (path("cert"), path("key"));
    let pair = Pair { cert: cert?, key: key? };
    match certified_key(&pair) {
        Ok(certified) => Some((pair, certified)),
        Err(unfit) => {
            node.get(if unfit.is_key { "key" } else { "cert" }).problem(unfit.why);
            None
        }
    }
}

/// A file with the certificates of authorities, and those; `None` without one or with a problem.
pub(super) fn authority_file(node: &Node<'_>) -> Option<(PathBuf, Vec<CertificateDer<'static>>)> {
    let path = node.reading().resolve(&node.text("name a PEM file", Some)?);
    match authorities(&path) {
        Ok(certificates) => Some((path, certificates)),
        Err(why) => {
            node.problem(why);
            None
        }
    }
}
