//! The HTTP clients, and the way that each request takes: directly to an address that the guard lets through, or by a proxy.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{Client, Url, dns::Resolve, redirect};
use rustls::{
    ClientConfig,
    client::danger::ServerCertVerifier,
    crypto::{CryptoProvider, ring},
    pki_types::CertificateDer,
    sign::SingleCertAndKey,
};
use rustls_platform_verifier::Verifier;

use super::{
    address::{Guard, Refused},
    resolver::Guarded,
    tls::{Either, Material},
};

/// An HTTP proxy, and what goes past it.
pub struct Proxy {
    url: Url,
    matcher: Matcher,
}

impl Proxy {
    /// A proxy for all hosts but those in `no_proxy`: a comma-separated list of names, each with its subdomains, addresses and
    /// ranges; `*` is every host. The error says what to write instead, and holds nothing of `url`, where a password may stand.
    pub fn new(url: &str, no_proxy: &str) -> Result<Self, String> {
        let refuse = || "write the proxy's URL, such as http://proxy.example.com:3128".to_owned();
        let parsed = Url::parse(url).map_err(|_| refuse())?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() || reqwest::Proxy::all(url).is_err() {
            return Err(refuse());
        }
        Ok(Self { url: parsed, matcher: Matcher::builder().all(url.to_owned()).no(no_proxy.to_owned()).build() })
    }

    /// A url that cannot be told goes by the proxy too.
    fn takes(&self, url: &Url) -> bool {
        url.as_str().parse::<Uri>().map_or(true, |uri| self.matcher.intercept(&uri).is_some())
    }
}

/// How a request gets to its endpoint. Requests to one endpoint always take the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To a port where no apiserver listens.
    Direct,
    /// To a port where one does: its addresses are refused there.
    ApiserverPort(u16),
    /// By the proxy, which resolves names itself.
    Proxy,
}

/// The clients of one TLS configuration, made when they are first needed: one, and one more for each other way that is taken.
#[derive(Default)]
pub struct Pool {
    clients: Mutex<Vec<(Way, Client)>>,
}

/// Why there is no client for a url.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The url's host is an address that is refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The client cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Http(#[from] reqwest::Error),
    /// Its TLS cannot.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Makes clients.
pub struct Clients {
    verifier: Arc<dyn ServerCertVerifier>,
    provider: Arc<CryptoProvider>,
    guard: Arc<Guard>,
    names: Arc<dyn Resolve>,
    proxy: Option<Proxy>,
    /// Those of Webhooks without a TLS configuration of their own.
    pool: Pool,
}

impl Clients {
    /// Clients that trust the system's roots and these, connect where the guard lets them, and have names resolved by `names`.
    pub fn new(
        roots: Vec<CertificateDer<'static>>,
        guard: Guard,
        names: Arc<dyn Resolve>,
        proxy: Option<Proxy>,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Verifier::new_with_extra_roots(roots, Arc::clone(&provider))?);
        Ok(Self { verifier, provider, guard: Arc::new(guard), names, proxy, pool: Pool::default() })
    }

    /// The client for a url, with this TLS or with that of all. An address in the url is checked here, since clients resolve
    /// none.
    pub fn client(&self, url: &Url, tls: Option<&Material>) -> Result<Client, ClientError> {
        let port = url.port_or_known_default().unwrap_or_default();
        let host = url.host_str().unwrap_or_default();
        // Read as the connector reads it.
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            self.guard.check(address, port).map_err(|refusal| Refused::new(host, refusal))?;
        }
        let way = match &self.proxy {
            Some(proxy) if proxy.takes(url) => Way::Proxy,
            _ if self.guard.is_apiserver_port(port) => Way::ApiserverPort(port),
            _ => Way::Direct,
        };
        let pool = tls.map_or(&self.pool, |tls| &tls.pool);
        let mut clients = pool.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = clients.iter().find(|(made, _)| *made == way) {
            return Ok(client.clone());
        }
        let client = self.make(way, tls)?;
        clients.push((way, client.clone()));
        Ok(client)
    }

    fn make(&self, way: Way, tls: Option<&Material>) -> Result<Client, ClientError> {
        let builder = Client::builder()
            .user_agent(concat!("llmtune-webhooks/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            // None from the environment.
            .no_proxy()
            .tls_backend_preconfigured(self.tls(tls)?)
            .tcp_nodelay(true)
            .pool_idle_timeout(Duration::from_secs(60));
        let guarded = |port| Guarded { names: Arc::clone(&self.names), guard: Arc::clone(&self.guard), port };
        let builder = match (way, &self.proxy) {
            (Way::Proxy, Some(proxy)) => {
                // It has only the proxy's own name to resolve, which the platform team has written.
                builder.proxy(reqwest::Proxy::all(proxy.url.clone())?).dns_resolver(Arc::clone(&self.names))
            }
            (Way::ApiserverPort(port), _) => builder.dns_resolver(guarded(port)),
            _ => builder.dns_resolver(guarded(0)),
        };
        Ok(builder.build()?)
    }

    fn tls(&self, own: Option<&Material>) -> Result<ClientConfig, rustls::Error> {
        let rest = Arc::clone(&self.verifier);
        let verifier = match own.and_then(|own| own.bundle.clone()) {
            Some(bundle) => Arc::new(Either { bundle, rest }),
            None => rest,
        };
        // TLS 1.2 and 1.3: rustls knows no other.
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match own.and_then(|own| own.identity.clone()) {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
