//! How a connection is made: to an address that the guard lets through, or by a proxy, and with TLS where the url says so.

use std::{
    error::Error,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Uri, uri::Scheme};
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::{
    address::{Guard, Refused},
    resolver::{Guarded, Resolve},
    wire::{Stream, Use, Wire},
};

/// A connection that is silent is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);

type BoxError = Box<dyn Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<TokioIo<T>, BoxError>> + Send>>;

/// An HTTP proxy, and what goes past it.
pub struct Proxy {
    matcher: Matcher,
}

impl Proxy {
    /// A proxy for all hosts but those in `no_proxy`: a comma-separated list of names, each with its subdomains, addresses and
    /// ranges; `*` is every host. The error says what to write instead, and holds nothing of `url`, where a password may stand.
    pub fn new(url: &str, no_proxy: &str) -> Result<Self, String> {
        let is_one = Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        // Whether the matcher takes it is seen by a host that nothing goes past.
        let all = Matcher::builder().all(url.to_owned()).build();
        if !is_one || all.intercept(&Uri::from_static("http://a.example/")).is_none() {
            return Err("write the proxy's URL, such as http://proxy.example.com:3128".to_owned());
        }
        Ok(Self { matcher: Matcher::builder().all(url.to_owned()).no(no_proxy.to_owned()).build() })
    }

    /// By which proxy, and as whom.
    fn takes(&self, to: &Uri) -> Option<Intercept> {
        self.matcher.intercept(to)
    }
}

/// Where connections may go, which all clients share.
pub(super) struct Network {
    pub(super) guard: Arc<Guard>,
    pub(super) names: Arc<dyn Resolve>,
    pub(super) proxy: Option<Proxy>,
    /// To a proxy that itself speaks TLS.
    pub(super) proxy_tls: TlsConnector,
}

impl Network {
    /// Whether an address that is written in a url may be sent to. A name is looked at once it is resolved.
    pub(super) fn check(&self, to: &Uri) -> Result<(), Refused> {
        let (host, port) = endpoint(to);
        let Ok(address) = host.parse::<IpAddr>() else { return Ok(()) };
        self.guard.check(address, port).map_err(|refusal| Refused::new(to.host().unwrap_or_default(), refusal))
    }

    /// What a proxy wants to see with a request that is not tunnelled.
    pub(super) fn proxy_authorization(&self, to: &Uri) -> Option<HeaderValue> {
        let proxy = self.proxy.as_ref().filter(|_| !is_https(to))?;
        proxy.takes(to)?.basic_auth().cloned()
    }

    async fn reach(&self, to: Uri, guard: Option<Arc<Guard>>) -> Result<Box<dyn Stream>, BoxError> {
        let (_, port) = endpoint(&to);
        let mut http = HttpConnector::new_with_resolver(Guarded { names: Arc::clone(&self.names), guard, port });
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        Ok(Box::new(http.call(to).await?.into_inner()))
    }

    /// A connection to the proxy, whose own address the platform team has written.
    async fn reach_proxy(&self, proxy: Uri) -> Result<Box<dyn Stream>, BoxError> {
        let name = if is_https(&proxy) { Some(server_name(&proxy)?) } else { None };
        let stream = self.reach(proxy, None).await?;
        match name {
            None => Ok(stream),
            Some(name) => Ok(Box::new(self.proxy_tls.connect(name, stream).await?)),
        }
    }
}

/// Makes connections to the proxy, for tunnels.
#[derive(Clone)]
struct ToProxy(Arc<Network>);

impl Service<Uri> for ToProxy {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = BoxError;
    type Future = Connecting<Box<dyn Stream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, proxy: Uri) -> Self::Future {
        let network = Arc::clone(&self.0);
        Box::pin(async move { Ok(TokioIo::new(network.reach_proxy(proxy).await?)) })
    }
}

/// Makes the connections of one client.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) network: Arc<Network>,
    pub(super) tls: TlsConnector,
}

impl Connector {
    async fn connect(self, to: Uri) -> Result<TokioIo<Wire>, BoxError> {
        let Self { network, tls } = self;
        network.check(&to)?;
        let by = network.proxy.as_ref().and_then(|proxy| proxy.takes(&to));
        if !is_https(&to) {
            let wire = match by {
                Some(by) => Wire::over(network.reach_proxy(by.uri().clone()).await?, Use::Proxied),
                None => Wire::over(network.reach(to, Some(Arc::clone(&network.guard))).await?, Use::Http1),
            };
            return Ok(TokioIo::new(wire));
        }
        let name = server_name(&to)?;
        let stream = match by {
            Some(by) => {
                let mut tunnel = Tunnel::new(by.uri().clone(), ToProxy(Arc::clone(&network)));
                if let Some(authorization) = by.basic_auth() {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                tunnel.call(to).await?.into_inner()
            }
            None => network.reach(to, Some(Arc::clone(&network.guard))).await?,
        };
        let stream = tls.connect(name, stream).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(TokioIo::new(Wire::over(stream, if http2 { Use::Http2 } else { Use::Http1 })))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = BoxError;
    type Future = Connecting<Wire>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        Box::pin(self.clone().connect(to))
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme() == Some(&Scheme::HTTPS)
}

/// Host, without the brackets of an IPv6 address, and port, as the connector reads them.
fn endpoint(uri: &Uri) -> (&str, u16) {
    let host = uri.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (host, uri.port_u16().unwrap_or(if is_https(uri) { 443 } else { 80 }))
}

fn server_name(uri: &Uri) -> Result<ServerName<'static>, BoxError> {
    Ok(ServerName::try_from(endpoint(uri).0.to_owned())?)
}
