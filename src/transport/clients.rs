//! The HTTP clients, one for each TLS configuration.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Uri};
use reqwest::Url;
use rustls::{
    ClientConfig,
    client::danger::ServerCertVerifier,
    crypto::{CryptoProvider, ring},
    pki_types::CertificateDer,
    sign::SingleCertAndKey,
};
use rustls_platform_verifier::Verifier;
use tokio_rustls::TlsConnector;

pub use super::connector::Proxy;
use super::{
    address::{Guard, Refused},
    client::{Client, Response, SendError},
    connector::Network,
    pool::Shares,
    resolver::Resolve,
    tls::{BundleVerifier, TlsConfig},
};

/// The client of one TLS configuration, created on first use.
#[derive(Default)]
pub struct Pool(Mutex<Option<Client>>);

/// Why a request to a URL failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The host of the URL is a refused address.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There is no response.
    #[error(transparent)]
    Http(#[from] SendError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Creates clients.
pub struct Clients {
    trust: Trust,
    network: Arc<Network>,
    /// For requests without a TLS configuration of their own.
    pool: Pool,
    shares: Arc<Shares>,
}

/// The trusted certificates.
struct Trust {
    verifier: Arc<dyn ServerCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl Clients {
    /// Creates clients that trust the system's roots and these certificates, connect where the guard allows it, and
    /// resolve names with `names`.
    pub fn new(
        roots: Vec<CertificateDer<'static>>,
        guard: Guard,
        names: Arc<dyn Resolve>,
        proxy: Option<Proxy>,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let inner = Arc::new(Verifier::new_with_extra_roots(roots.iter().cloned(), Arc::clone(&provider))?);
        let verifier = Arc::new(BundleVerifier { certificates: roots.into(), inner, rest: None });
        let trust = Trust { verifier, provider };
        let proxy_tls = TlsConnector::from(Arc::new(trust.config(None)?));
        let network = Arc::new(Network { guard: Arc::new(guard), names, proxy, proxy_tls });
        Ok(Self { trust, network, pool: Pool::default(), shares: Arc::default() })
    }

    /// Sends a POST to a URL, with this TLS configuration or the common one, and waits for the head of the response up
    /// to the limit. `tenant` is the namespace of the request. Namespaces do not share connections.
    pub async fn post(
        &self,
        tenant: &Arc<str>,
        url: &Url,
        tls: Option<&TlsConfig>,
        headers: HeaderMap,
        body: Bytes,
        limit: Duration,
    ) -> Result<Response, ClientError> {
        let (client, uri) = self.client(url, tls)?;
        Ok(client.post(tenant, uri, headers, body, limit).await?)
    }

    /// Returns the client for a URL, and the URL in the form it accepts. An address in the URL is already checked here.
    pub fn client(&self, url: &Url, tls: Option<&TlsConfig>) -> Result<(Client, Uri), ClientError> {
        let uri: Uri = url.as_str().parse().map_err(|_| SendError::Url)?;
        self.network.check(&uri)?;
        let pool = tls.map_or(&self.pool, |tls| &tls.pool);
        let mut kept = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*kept {
            return Ok((client.clone(), uri));
        }
        let mut config = self.trust.config(tls)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok((kept.insert(Client::new(&self.network, config, &self.shares)).clone(), uri))
    }
}

impl Trust {
    fn config(&self, own: Option<&TlsConfig>) -> Result<ClientConfig, rustls::Error> {
        let rest = Arc::clone(&self.verifier);
        let verifier = match own.and_then(|own| own.bundle.clone()) {
            Some(bundle) => Arc::new(BundleVerifier { rest: Some(rest), ..(*bundle).clone() }),
            None => rest,
        };
        // TLS 1.2 and 1.3: rustls supports no other.
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        Ok(match own.and_then(|own| own.identity.clone()) {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
            None => builder.with_no_client_auth(),
        })
    }
}

#[cfg(test)]
mod tests;
