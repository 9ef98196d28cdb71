//! TLS of the data plane, by rustls: [`Acceptor`] shakes hands, `choice` finds the certificate for
//! the name a client asks for, `watch` reads the files again when they change.
//!
//! A change makes another `ServerConfig`, which the next handshake uses. Connections that stand
//! keep theirs.

mod choice;
pub mod watch;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{self, ClientAuth, Tls, TlsVersion};
use choice::Choice;
use watch::Mark;

/// What HTTP/2 is called in a handshake.
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Makes TLS streams of accepted connections.
pub struct Acceptor(ArcSwap<Served>);

/// What is served, and of what it was made.
struct Served {
    tls: Tls,
    /// The files' marks before they were read.
    marks: Vec<Mark>,
    acceptor: TlsAcceptor,
}

impl Acceptor {
    /// Reads the files.
    pub fn new(tls: &Tls) -> anyhow::Result<Self> {
        Ok(Self(ArcSwap::new(served(tls)?)))
    }

    /// Reads the files for the handshakes to come; when they cannot be used all stays as it is.
    pub fn replace(&self, tls: &Tls) -> anyhow::Result<()> {
        self.0.store(served(tls)?);
        Ok(())
    }

    /// Reads the same files again; when they cannot be used all stays as it is.
    fn refresh(&self) -> anyhow::Result<()> {
        let now = self.0.load_full();
        let fresh = served(&now.tls)?;
        // Unless other files were named in the meantime.
        self.0.compare_and_swap(&now, fresh);
        Ok(())
    }

    /// What is served now.
    fn tls(&self) -> Tls {
        self.0.load().tls.clone()
    }

    /// Whether what is served was read from files with these marks.
    fn is_of(&self, marks: &[Mark]) -> bool {
        self.0.load().marks == marks
    }

    /// Shakes hands with a client.
    pub async fn accept(&self, tcp: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let accepting = self.0.load().acceptor.accept(tcp);
        accepting.await
    }
}

/// Whether a client and we agreed on HTTP/2.
pub fn is_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(H2)
}

fn served(tls: &Tls) -> anyhow::Result<Arc<Served>> {
    let marks = watch::marks(tls);
    let acceptor = TlsAcceptor::from(Arc::new(server_config(tls)?));
    Ok(Arc::new(Served { tls: tls.clone(), marks, acceptor }))
}

fn server_config(tls: &Tls) -> anyhow::Result<ServerConfig> {
    let versions: &[_] = match tls.min_version {
        TlsVersion::V1_2 => &[&rustls::version::TLS12, &rustls::version::TLS13],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let builder = match &tls.client_ca {
        Some(path) => builder.with_client_cert_verifier(verifier(path, tls.client_auth)?),
        None => builder.with_no_client_auth(),
    };
    let mut certificates = Vec::new();
    for pair in &tls.certificates {
        let certified = config::certified_key(pair).map_err(|unfit| anyhow!("{unfit}"))?;
        certificates.push(Arc::new(certified));
    }
    let choice = Choice::new(certificates).context("there is no certificate")?;
    let mut config = builder.with_cert_resolver(Arc::new(choice));
    // All ciphers that rustls has are good; which is best is ours to say.
    config.ignore_client_order = true;
    config.alpn_protocols = vec![HTTP1.to_vec()];
    if tls.http2 {
        config.alpn_protocols.insert(0, H2.to_vec());
    }
    Ok(config)
}

fn verifier(path: &Path, auth: ClientAuth) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    let told = |why: String| anyhow!("{}: {why}", path.display());
    for authority in config::authorities(path).map_err(told)? {
        roots.add(authority).map_err(|error| told(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    Ok(match auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional => builder.allow_unauthenticated(),
    }
    .build()?)
}
