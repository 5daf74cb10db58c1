//! Opens connections: to one of the host's addresses or through a proxy, and with TLS if the URL says so.
//!
//! 1. The guard checks every address before it is connected to, whether it is in the URL or resolved from a name.
//! 2. The addresses of a host are tried as in RFC 8305: the next one starts when the one before has failed, or after
//!    [`STAGGER`].
//! 3. All addresses together have [`CONNECT`].

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use http::{HeaderValue, StatusCode, Uri, uri::Scheme};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use reqwest::Url;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    address::{Guard, Refused},
    resolver::{LookupError, Resolve, Unresolved, endpoints},
    wire::{Stream, Use, Wire},
};

/// The time for all addresses of a host to accept a connection: three times the time after which a SYN is repeated
/// twice.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);
/// When the next address is tried although earlier ones have not answered (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);
/// A silent connection is probed at this interval, and is dead after several probes.
const KEEPALIVE: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;
/// The maximum size of a proxy's response head to CONNECT, in bytes.
const MAX_TUNNEL_HEAD: usize = 16 * 1024;

/// An HTTP proxy, and the hosts that bypass it.
pub struct Proxy {
    matcher: Matcher,
}

impl Proxy {
    /// Creates a proxy for all hosts except those in `no_proxy`: a comma-separated list of names with their subdomains,
    /// addresses and ranges; `*` means every host. The error says what to write instead, and contains nothing of `url`,
    /// which may contain a password.
    pub fn new(url: &str, no_proxy: &str) -> Result<Self, String> {
        let is_one = Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        // A test with a host that nothing excludes shows whether the matcher accepts the URL.
        let all = Matcher::builder().all(url.to_owned()).build();
        if !is_one || all.intercept(&Uri::from_static("http://a.example/")).is_none() {
            return Err("write the proxy's URL, such as http://proxy.example.com:3128".to_owned());
        }
        Ok(Self { matcher: Matcher::builder().all(url.to_owned()).no(no_proxy.to_owned()).build() })
    }

    /// Returns the proxy for a URL, with its credentials.
    fn takes(&self, to: &Uri) -> Option<Intercept> {
        self.matcher.intercept(to)
    }
}

/// The stage that an attempt is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Resolving the host.
    Lookup,
    /// Connecting to one of its addresses.
    Connect,
    /// Waiting for a proxy to open a tunnel.
    Tunnel,
    /// The TLS handshake.
    Handshake,
    /// Waiting for the response head.
    Answer,
}

/// The [`Stage`] of an attempt, for the task that ends it.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU8);

impl Progress {
    pub(super) fn reach(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Relaxed);
    }

    pub(super) fn stage(&self) -> Stage {
        const STAGES: [Stage; 5] = [Stage::Lookup, Stage::Connect, Stage::Tunnel, Stage::Handshake, Stage::Answer];
        STAGES.get(usize::from(self.0.load(Ordering::Relaxed))).copied().unwrap_or(Stage::Answer)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address of the host is allowed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The host has no address.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The host is not valid in TLS.
    #[error("invalid dns name")]
    Name,
    /// No address accepted a connection.
    #[error(transparent)]
    Tcp(io::Error),
    /// No address accepted a connection in time.
    #[error("no address answered in time")]
    TimedOut,
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(io::Error),
    /// The proxy failed.
    #[error("the proxy {proxy}: {problem}")]
    Proxy {
        /// Host and port of the proxy.
        proxy: String,
        /// The problem.
        problem: ProxyProblem,
    },
}

/// What went wrong with a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyProblem {
    /// The proxy cannot be reached.
    #[error(transparent)]
    Unreached(Box<ConnectError>),
    /// It answered CONNECT with this status.
    #[error("it answered CONNECT with {0}")]
    Answered(StatusCode),
    /// It closed the connection, or did not answer with HTTP.
    #[error("it closed the connection")]
    Broken,
}

impl From<Unresolved> for ConnectError {
    fn from(error: Unresolved) -> Self {
        match error {
            Unresolved::Lookup(error) => Self::Lookup(error),
            Unresolved::Refused(error) => Self::Refused(error),
        }
    }
}

/// What all clients share to open connections.
pub(super) struct Network {
    pub(super) guard: Arc<Guard>,
    pub(super) names: Arc<dyn Resolve>,
    pub(super) proxy: Option<Proxy>,
    /// For proxies that use TLS themselves.
    pub(super) proxy_tls: TlsConnector,
}

impl Network {
    /// Checks whether an address in a URL is allowed. A name is checked after it is resolved.
    pub(super) fn check(&self, to: &Uri) -> Result<(), Refused> {
        let (host, port) = endpoint(to);
        let Ok(address) = host.parse::<IpAddr>() else { return Ok(()) };
        self.guard.check(address, port).map_err(|refusal| Refused::new(to.host().unwrap_or_default(), refusal))
    }

    /// Returns the credentials that a proxy expects with a request that is not tunneled.
    pub(super) fn proxy_authorization(&self, to: &Uri) -> Option<HeaderValue> {
        self.by(to).filter(|_| !is_https(to))?.basic_auth().cloned()
    }

    /// Returns host and port of the proxy for a request.
    pub(super) fn proxy_of(&self, to: &Uri) -> Option<String> {
        self.by(to).map(|by| named(by.uri()))
    }

    fn by(&self, to: &Uri) -> Option<Intercept> {
        self.proxy.as_ref()?.takes(to)
    }

    /// Connects to one of the addresses of a host. `guard`: `None` allows all addresses.
    async fn reach(&self, to: &Uri, guard: Option<&Guard>, progress: &Progress) -> Result<TcpStream, ConnectError> {
        let (host, port) = endpoint(to);
        progress.reach(Stage::Lookup);
        let addresses = endpoints(self.names.as_ref(), guard, host, port).await?;
        progress.reach(Stage::Connect);
        let stream = timeout(CONNECT, race(addresses)).await.map_err(|_| ConnectError::TimedOut)?;
        let stream = stream.map_err(ConnectError::Tcp)?;
        prepare(&stream).map_err(ConnectError::Tcp)?;
        Ok(stream)
    }

    /// Connects to the proxy, whose address the platform team configured.
    async fn reach_proxy(&self, proxy: &Uri, progress: &Progress) -> Result<Box<dyn Stream>, ConnectError> {
        let reached = async {
            let name = if is_https(proxy) { Some(server_name(proxy)?) } else { None };
            let stream = self.reach(proxy, None, progress).await?;
            progress.reach(Stage::Tunnel);
            Ok(match name {
                None => Box::new(stream) as Box<dyn Stream>,
                Some(name) => Box::new(self.proxy_tls.connect(name, stream).await.map_err(ConnectError::Tls)?),
            })
        };
        reached.await.map_err(|error| blame(proxy, ProxyProblem::Unreached(Box::new(error))))
    }

    /// Opens a tunnel through the proxy (RFC 9110, 9.3.6).
    async fn tunnel(&self, by: &Intercept, to: &Uri, progress: &Progress) -> Result<Box<dyn Stream>, ConnectError> {
        let mut stream = self.reach_proxy(by.uri(), progress).await?;
        let problem = match open_tunnel(&mut stream, to, by.basic_auth()).await {
            Ok(status) if status.is_success() => return Ok(stream),
            Ok(status) => ProxyProblem::Answered(status),
            Err(_) => ProxyProblem::Broken,
        };
        Err(blame(by.uri(), problem))
    }
}

fn blame(proxy: &Uri, problem: ProxyProblem) -> ConnectError {
    ConnectError::Proxy { proxy: named(proxy), problem }
}

/// Asks a proxy for a tunnel. Returns the status of its response.
async fn open_tunnel(
    stream: &mut Box<dyn Stream>,
    to: &Uri,
    authorization: Option<&HeaderValue>,
) -> io::Result<StatusCode> {
    let to = named(to);
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n").into_bytes();
    if let Some(authorization) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await?;
    stream.flush().await?;
    // One byte at a time, because the bytes after the head belong to the tunnel.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        if head.len() == MAX_TUNNEL_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(stream.read_u8().await?);
    }
    let mut words = head.split(u8::is_ascii_whitespace);
    let is_http = words.next().is_some_and(|version| version.starts_with(b"HTTP/1."));
    let status = words.find(|word| !word.is_empty()).and_then(|word| StatusCode::from_bytes(word).ok());
    status.filter(|_| is_http).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Returns the first connection that is accepted (RFC 8305, 5).
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut failure = None;
    loop {
        if let Some(next) = waiting.next() {
            trying.push(TcpStream::connect(next));
        }
        let stagger = async {
            // After all addresses have been tried, only their results matter.
            if waiting.len() == 0 { std::future::pending().await } else { sleep(STAGGER).await }
        };
        tokio::select! {
            tried = trying.next() => match tried {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failure = Some(telling(failure, error)),
                None => return Err(failure.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())),
            },
            () = stagger => {}
        }
    }
}

/// Returns the more useful error: if one family has no route, that of the other.
fn telling(before: Option<io::Error>, error: io::Error) -> io::Error {
    let has_no_route =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable);
    match before {
        Some(before) if has_no_route(&error) || !has_no_route(&before) => before,
        _ => error,
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Opens the connections of one client.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) network: Arc<Network>,
    pub(super) tls: TlsConnector,
}

impl Connector {
    pub(super) async fn connect(&self, to: &Uri, progress: &Progress) -> Result<Wire, ConnectError> {
        let network = &self.network;
        network.check(to)?;
        let by = network.by(to);
        if !is_https(to) {
            return Ok(match by {
                Some(by) => Wire::over(network.reach_proxy(by.uri(), progress).await?, Use::Proxied),
                None => Wire::over(network.reach(to, Some(&network.guard), progress).await?, Use::Http1),
            });
        }
        let name = server_name(to)?;
        let stream: Box<dyn Stream> = match by {
            Some(by) => network.tunnel(&by, to, progress).await?,
            None => Box::new(network.reach(to, Some(&network.guard), progress).await?),
        };
        progress.reach(Stage::Handshake);
        let stream = self.tls.connect(name, stream).await.map_err(ConnectError::Tls)?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Wire::over(stream, if http2 { Use::Http2 } else { Use::Http1 }))
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme() == Some(&Scheme::HTTPS)
}

/// Returns the host, without the brackets of an IPv6 address, and the port.
fn endpoint(uri: &Uri) -> (&str, u16) {
    let host = uri.host().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (host, uri.port_u16().unwrap_or(if is_https(uri) { 443 } else { 80 }))
}

/// Returns host and port as users write them, and nothing else of a URL.
fn named(uri: &Uri) -> String {
    format!("{}:{}", uri.host().unwrap_or_default(), endpoint(uri).1)
}

fn server_name(uri: &Uri) -> Result<ServerName<'static>, ConnectError> {
    ServerName::try_from(endpoint(uri).0.to_owned()).map_err(|_| ConnectError::Name)
}

#[cfg(test)]
mod tests;
