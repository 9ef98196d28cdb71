//! Whose certificates are believed of backends: by `backend_tls`, by a backend's own `tls`, else by
//! the authorities that this machine knows.

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use log::warn;
use parking_lot::Mutex;
use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::PeerOptions;
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::backend::Backend;
use crate::config::BackendTls;
use crate::logging::TARGET;

/// Setups that are kept ready; there are as many as different words about trust in the
/// configuration.
const KEPT: usize = 64;

/// What `backend_tls` says. One for the process: backends come from the file, from the admin API
/// and from the registry, and connections to them are opened in as many places.
static DEFAULT: LazyLock<ArcSwap<BackendTls>> = LazyLock::new(ArcSwap::default);

static READY: Mutex<Vec<Arc<Ready>>> = Mutex::new(Vec::new());

/// Has this hold for whatever a backend's own `tls` does not say.
pub fn set_default(tls: &BackendTls) {
    DEFAULT.store(Arc::new(tls.clone()));
}

/// How one backend's TLS is checked.
pub struct Trust {
    /// The name that is asked for (SNI) and expected in the certificate; never empty.
    pub name: String,
    /// How certificates are checked.
    pub ready: Arc<Ready>,
}

/// How a backend's TLS is checked now.
pub fn of(backend: &Backend) -> Trust {
    let tls = backend.spec.tls.over(&DEFAULT.load());
    let name = tls.server_name.clone().unwrap_or_else(|| backend.spec.endpoint.host.clone());
    Trust { name, ready: ready(BackendTls { server_name: None, ..tls }) }
}

fn ready(tls: BackendTls) -> Arc<Ready> {
    let mut kept = READY.lock();
    if let Some(known) = kept.iter().find(|ready| ready.tls == tls) {
        return Arc::clone(known);
    }
    if kept.len() >= KEPT {
        kept.remove(0);
    }
    let fresh = Arc::new(Ready::new(tls));
    kept.push(Arc::clone(&fresh));
    fresh
}

/// A way to check certificates, set up for everyone who needs it.
pub struct Ready {
    tls: BackendTls,
    /// For rustls.
    pub client: Arc<ClientConfig>,
    /// For Pingora; `None`: what this machine knows, which it knows itself.
    authorities: Option<Arc<CaType>>,
}

impl Ready {
    fn new(tls: BackendTls) -> Self {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        let authorities = match &tls.ca {
            Some(ca) => ca.iter().cloned().collect(),
            None => system(),
        };
        roots.add_parsable_certificates(authorities);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let Ok(builder) = builder.with_safe_default_protocol_versions() else {
            unreachable!("ring speaks the versions that rustls takes for safe")
        };
        let builder = if tls.insecure == Some(true) {
            let any = Arc::new(Anybody(provider));
            builder.dangerous().with_custom_certificate_verifier(any)
        } else {
            builder.with_root_certificates(roots)
        };
        let wrapped = |der: &CertificateDer<'_>| WrappedX509::new(der.to_vec(), parse_x509);
        let authorities = tls.ca.as_ref().map(|ca| ca.iter().map(wrapped).collect());
        Self { client: Arc::new(builder.with_no_client_auth()), authorities, tls }
    }

    /// Has Pingora check in the same way.
    pub(super) fn set(&self, options: &mut PeerOptions) {
        options.ca.clone_from(&self.authorities);
        options.verify_cert = self.tls.insecure != Some(true);
        options.verify_hostname = options.verify_cert;
    }
}

/// The authorities that this machine knows, as Pingora's connector finds them.
fn system() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    let found = found.inspect_err(|error| {
        warn!(target: TARGET, "the authorities of this machine cannot be read: {error}");
    });
    found.unwrap_or_default()
}

/// Believes anybody who has the key to the certificate that is shown.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
