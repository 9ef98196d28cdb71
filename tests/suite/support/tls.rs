//! Authorities, certificates, clients that speak TLS, and servers behind it. Everything is made as a
//! test runs, and no two tests share any of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The gateway's public name in these tests.
pub(crate) const GATE: &str = "gate.example";

/// Somebody who signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// Writes its own certificate into a directory.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, self.0.pem()).unwrap();
        path
    }

    /// A certificate for these names and addresses.
    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { pem: certificate.pem(), der: certificate.der().clone(), key }
    }
}

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) pem: String,
    pub(crate) der: CertificateDer<'static>,
    key: KeyPair,
}

impl Issued {
    /// Writes `NAME.pem` and `NAME.key`, and says so as the configuration does.
    pub(crate) fn write(&self, directory: &Path, name: &str) -> Value {
        let [cert, key] = [".pem", ".key"].map(|ending| directory.join(name.to_owned() + ending));
        std::fs::write(&cert, &self.pem).unwrap();
        std::fs::write(&key, self.key.serialize_pem()).unwrap();
        json!({"cert": cert, "key": key})
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    /// What Chromium takes for the name of its key.
    pub(crate) fn spki_hash(&self) -> String {
        use base64::Engine;
        use sha2::Digest;
        let hash = sha2::Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&self.key));
        base64::engine::general_purpose::STANDARD.encode(hash)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How a client shakes hands.
#[derive(Clone)]
pub(crate) struct Hand {
    config: ClientConfig,
}

impl Hand {
    /// Believes anybody, so that a test can look at who it is.
    pub(crate) fn trusting() -> Self {
        Self::of(rustls::ALL_VERSIONS, None)
    }

    /// The same with these versions, and perhaps a certificate of its own.
    pub(crate) fn of(versions: &[&'static SupportedProtocolVersion], own: Option<&Issued>) -> Self {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider())));
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                builder.with_client_auth_cert(vec![own.der.clone()], own.key_der()).unwrap()
            }
        };
        Self { config }
    }

    /// Offers these protocols.
    pub(crate) fn speaking(mut self, protocols: &[&str]) -> Self {
        self.config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        self
    }

    /// Connects and asks for a name; an address asks for none.
    pub(crate) async fn shake(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(self.config.clone())).connect(name, tcp).await
    }
}

/// The certificate that was shown.
pub(crate) fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client that believes one authority, and finds [`GATE`] at an address.
pub(crate) fn client(authority: &Authority, address: SocketAddr) -> reqwest::ClientBuilder {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(super::PATIENCE)
        .use_preconfigured_tls(config)
        .resolve(GATE, address)
}

/// TLS in front of a server, with a certificate that can be changed.
pub(crate) struct Veil {
    pub(crate) address: SocketAddr,
    acceptor: Arc<ArcSwap<TlsAcceptor>>,
    /// Handshakes that were done to their end.
    believers: Arc<AtomicUsize>,
    /// The name that was asked for last.
    asked: Arc<parking_lot::Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Veil {
    pub(crate) async fn over(server: SocketAddr, certificate: &Issued) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = Arc::new(ArcSwap::from_pointee(acceptor(certificate)));
        let believers = Arc::new(AtomicUsize::new(0));
        let asked = Arc::new(parking_lot::Mutex::new(None));
        let (using, count, names) =
            (Arc::clone(&acceptor), Arc::clone(&believers), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, count) = (using.load_full(), Arc::clone(&count));
                let names = Arc::clone(&names);
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    *names.lock() = tls.get_ref().1.server_name().map(str::to_owned);
                    count.fetch_add(1, Relaxed);
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut tls, &mut server).await;
                });
            }
        });
        Self { address, acceptor, believers, asked, task }
    }

    /// Shows another certificate from now on.
    pub(crate) fn show(&self, certificate: &Issued) {
        self.acceptor.store(Arc::new(acceptor(certificate)));
    }

    pub(crate) fn believers(&self) -> usize {
        self.believers.load(Relaxed)
    }

    pub(crate) fn asked(&self) -> Option<String> {
        self.asked.lock().clone()
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

impl Drop for Veil {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn acceptor(certificate: &Issued) -> TlsAcceptor {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der.clone()], certificate.key_der())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
