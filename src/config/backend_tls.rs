//! `backend_tls` and a backend's own `tls`: whose certificates are believed.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, ServerName};

use super::raw::Node;
use super::tls::authority_file;

/// How the TLS of a backend is checked. What is not said here holds as `backend_tls` has it, and
/// else as usual: by the authorities of this machine, for the name in the backend's URL.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct BackendTls {
    /// The only authorities that are believed.
    pub ca: Option<Arc<Vec<CertificateDer<'static>>>>,
    /// The name to ask for, and to expect in the certificate, in place of the URL's.
    pub server_name: Option<String>,
    /// Whether any certificate will do.
    pub insecure: Option<bool>,
}

impl BackendTls {
    /// What holds when `default` holds for whatever is not said here.
    #[must_use]
    pub fn over(&self, default: &Self) -> Self {
        Self {
            ca: self.ca.clone().or_else(|| default.ca.clone()),
            server_name: self.server_name.clone().or_else(|| default.server_name.clone()),
            insecure: self.insecure.or(default.insecure),
        }
    }
}

/// Certificates are long, and nobody reads them.
impl std::fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendTls")
            .field("ca", &self.ca.as_ref().map(|ca| ca.len()))
            .field("server_name", &self.server_name)
            .field("insecure", &self.insecure)
            .finish()
    }
}

/// The section `backend_tls`.
pub(super) fn for_all(node: &Node<'_>) -> BackendTls {
    let verify = node.get("verify").bool(true);
    BackendTls { ca: ca(node), server_name: None, insecure: (!verify).then_some(true) }
}

/// A backend's own `tls`.
pub(super) fn of_backend(node: &Node<'_>, is_https: bool) -> BackendTls {
    if node.is_set() && !is_https {
        node.problem("the backend's url is http; make it https, or remove tls".to_owned());
    }
    let insecure = node.get("insecure");
    let cure = "use a host name, without scheme and port";
    let server_name = node.get("server_name").text(cure, |name| {
        let read = ServerName::try_from(name.as_str());
        matches!(read, Ok(ServerName::DnsName(_))).then_some(name)
    });
    let insecure = insecure.is_set().then(|| insecure.bool(false));
    BackendTls { ca: ca(node), server_name, insecure }
}

fn ca(node: &Node<'_>) -> Option<Arc<Vec<CertificateDer<'static>>>> {
    authority_file(&node.get("ca")).map(|(_, certificates)| Arc::new(certificates))
}
