//! An HTTP client over pooled connections.
//!
//! 1. A request is sent again at most once, over a new connection and within its time limit: if an already used
//!    connection closes before the first byte of the response, or if HTTP/2 reports that the request was not processed.
//!    A new connection that breaks is an error.
//! 2. A connection on which a request timed out is not used again (see [`super::pool`]).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use rustls::ClientConfig;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::{
    connection::{Connection, Http1, Http2},
    connector::{ConnectError, Connector, Network, Progress, Stage},
    pool::{Key, Pool, Shares},
    wire::Unsolicited,
};

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("llmtune-webhooks/", env!("CARGO_PKG_VERSION")));

/// A client. It is cheap to clone.
#[derive(Clone)]
pub struct Client {
    connector: Connector,
    pool: Pool,
}

/// A response whose head has arrived.
pub struct Response {
    http: http::Response<Incoming>,
    unsolicited: Unsolicited,
    /// Host and port of the proxy that got the whole URL and may have answered itself.
    proxy: Option<String>,
    lease: Option<Lease>,
}

/// A connection with a response in progress.
struct Lease {
    pool: Pool,
    key: Key,
    connection: Connection,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The URL is valid by the URL standard, but not by RFC 3986.
    #[error("the URL contains characters that are not ASCII: percent-encode them")]
    Url,
    /// It did not arrive in time.
    #[error("no answer in time")]
    Timeout {
        /// The last stage that was waited for.
        stage: Stage,
        /// Host and port of the proxy in use.
        proxy: Option<String>,
    },
    /// There was no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

impl Client {
    pub(super) fn new(network: &Arc<Network>, tls: ClientConfig, shares: &Arc<Shares>) -> Self {
        let connector = Connector { network: Arc::clone(network), tls: TlsConnector::from(Arc::new(tls)) };
        Self { connector, pool: Pool::new(Arc::clone(shares)) }
    }

    /// Sends a POST for a namespace, and waits for the head of the response up to the limit. Redirects are not
    /// followed.
    pub async fn post(
        &self,
        tenant: &Arc<str>,
        uri: Uri,
        mut headers: HeaderMap,
        body: Bytes,
        limit: Duration,
    ) -> Result<Response, SendError> {
        headers.entry(header::USER_AGENT).or_insert(USER_AGENT);
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        let authority = uri.authority().cloned().ok_or(SendError::Url)?;
        let key = Key { tenant: Arc::clone(tenant), https: uri.scheme() == Some(&Scheme::HTTPS), authority };
        let network = &self.connector.network;
        if let Some(authorization) = network.proxy_authorization(&uri) {
            headers.insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (Method::POST, uri.clone(), headers);
        let progress = Progress::default();
        let sent = timeout(limit, self.send(&key, request, &progress)).await;
        sent.unwrap_or_else(|_| Err(SendError::Timeout { stage: progress.stage(), proxy: network.proxy_of(&uri) }))
    }

    async fn send(&self, key: &Key, request: Request<Full<Bytes>>, progress: &Progress) -> Result<Response, SendError> {
        let uri = request.uri().clone();
        let mut resent = false;
        loop {
            let known = if resent { None } else { self.pool.take(key) };
            let mut connection = match known {
                Some(connection) => connection,
                None => self.connect(key, &uri, progress).await?,
            };
            progress.reach(Stage::Answer);
            // Unless the exchange ends, it has timed out.
            let discard = DiscardOnDrop::of(&self.pool, key, &connection);
            let sent = connection.send(request.clone()).await;
            match sent {
                Ok(http) => {
                    discard.cancel();
                    let proxy = connection.is_proxied().then(|| self.connector.network.proxy_of(&uri)).flatten();
                    let unsolicited = connection.unsolicited();
                    let lease = Some(Lease { pool: self.pool.clone(), key: key.clone(), connection });
                    return Ok(Response { http, unsolicited, proxy, lease });
                }
                Err(broken) => {
                    drop(discard);
                    if resent || !broken.resend {
                        return Err(broken.error.into());
                    }
                    resent = true;
                }
            }
        }
    }

    async fn connect(&self, key: &Key, uri: &Uri, progress: &Progress) -> Result<Connection, SendError> {
        let wire = self.connector.connect(uri, progress).await?;
        let connection = Connection::begin(wire).await?;
        if let Connection::Http2(connection) = &connection {
            self.pool.share(key.clone(), connection);
        }
        Ok(connection)
    }
}

/// Excludes the connections to an origin from reuse unless they have answered since, or it is canceled.
struct DiscardOnDrop<'a> {
    pool: Option<&'a Pool>,
    key: &'a Key,
    begun: Instant,
    connection: Option<Arc<Http2>>,
}

impl<'a> DiscardOnDrop<'a> {
    fn of(pool: &'a Pool, key: &'a Key, connection: &Connection) -> Self {
        let connection = match connection {
            Connection::Http1(_) => None,
            Connection::Http2(connection) => Some(Arc::clone(connection)),
        };
        Self { pool: Some(pool), key, begun: Instant::now(), connection }
    }

    fn cancel(mut self) {
        self.pool = None;
    }
}

impl Drop for DiscardOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool {
            pool.forget(self.key, self.begun, self.connection.as_ref());
        }
    }
}

impl Lease {
    /// Ends the response: the next request may use the connection.
    fn end(self) {
        let Self { pool, key, connection } = self;
        let Connection::Http1(connection) = connection else { return };
        if connection.is_ready() {
            return pool.keep(key, connection);
        }
        tokio::spawn(async move {
            if let Some(connection) = Http1::ready(connection).await {
                pool.keep(key, connection);
            }
        });
    }
}

impl Response {
    /// Returns the status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.http.status()
    }

    /// Returns the headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.http.headers()
    }

    /// Returns host and port of the proxy that may have answered instead of the endpoint, because it got the whole URL.
    #[must_use]
    pub fn proxy(&self) -> Option<&str> {
        self.proxy.as_deref()
    }

    /// Returns the next piece of the body; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        while let Some(frame) = self.http.body_mut().frame().await {
            // Frames without data are trailers.
            if let Ok(data) = frame?.into_data() {
                self.unsolicited.taken(data.len());
                return Ok(Some(data));
            }
        }
        if let Some(lease) = self.lease.take() {
            lease.end();
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
