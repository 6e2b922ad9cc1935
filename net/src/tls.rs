//! TLS 1.3, both sides verified against the cluster's authority only.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{ServerName, UnixTime};

use crate::{
    Error, Result,
    pki::{Identity, Role},
};

const ALPN: &[u8] = b"globalfs/1";

pub(crate) fn client(identity: &Identity) -> Result<QuicClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection is verified afresh: no tickets, no early data.
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|error| Error::Invalid(error.to_string()))
}

pub(crate) fn server(identity: &Identity) -> Result<QuicServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(client_verifier(identity)?)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(|error| Error::Invalid(error.to_string()))
}

/// Fails where a peer would: key that does not fit, issued by another authority, expired, wrong usage.
pub(crate) fn check_identity(identity: &Identity) -> Result<()> {
    let provider = provider();
    CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider)?.keys_match()?;
    let (first, rest) = identity.chain.split_first().ok_or_else(|| Error::Invalid("no certificate".into()))?;
    let now = UnixTime::now();
    client_verifier(identity)?.verify_client_cert(first, rest, now)?;
    if identity.peer_name().role == Role::Node {
        let name = ServerName::try_from(identity.peer_name().to_string())
            .map_err(|error| Error::Invalid(error.to_string()))?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(identity)?), provider)
            .build()
            .map_err(|error| Error::Invalid(error.to_string()))?
            .verify_server_cert(first, rest, &name, &[], now)?;
    }
    Ok(())
}

fn client_verifier(identity: &Identity) -> Result<Arc<dyn ClientCertVerifier>> {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), provider())
        .build()
        .map_err(|error| Error::Invalid(error.to_string()))
}

fn roots(identity: &Identity) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca.clone())?;
    Ok(roots)
}

/// Passed explicitly: whatever a process installed as default does not matter.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
