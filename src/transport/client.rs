//! One HTTP client: requests in, answers out, over connections that are kept.

use std::{error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, Builder},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::ClientConfig;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{
    connector::{Connector, Network},
    resolver::NotFound,
    wire::Unasked,
};
use crate::causes::chain;

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("llmtune-webhooks/", env!("CARGO_PKG_VERSION")));
/// A connection that is not used for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// The most that an answer's head may have over HTTP/1.1, in bytes, and that is read ahead of what is wanted.
const MAX_HEAD: usize = 64 * 1024;
/// The same over HTTP/2, of one request and of all that share a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 128 * 1024;

/// A client; cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<Connector, Full<Bytes>>,
    network: Arc<Network>,
}

/// An answer, of which the head has come.
pub struct Response(http::Response<Incoming>);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The url is one of the URL standard's, and none of RFC 3986's.
    #[error("no request can be made of the url: percent-encode what is not ASCII in it")]
    Url,
    /// It did not come in time.
    #[error("no answer in time")]
    Timeout,
    /// No connection, or none that held.
    #[error(transparent)]
    Http(#[from] legacy::Error),
}

impl Client {
    pub(super) fn new(network: &Arc<Network>, tls: ClientConfig) -> Self {
        let connector = Connector { network: Arc::clone(network), tls: TlsConnector::from(Arc::new(tls)) };
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(MAX_HEAD)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW);
        Self { http: builder.build(connector), network: Arc::clone(network) }
    }

    /// Sends a POST, and waits so long for the head of its answer. Redirects are not followed.
    pub async fn post(
        &self,
        uri: Uri,
        mut headers: HeaderMap,
        body: Bytes,
        limit: Duration,
    ) -> Result<Response, SendError> {
        headers.entry(header::USER_AGENT).or_insert(USER_AGENT);
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        if let Some(authorization) = self.network.proxy_authorization(&uri) {
            headers.insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (Method::POST, uri, headers);
        let answer = timeout(limit, self.http.request(request)).await.map_err(|_| SendError::Timeout)?;
        Ok(Response(answer?))
    }
}

impl Response {
    /// Its status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// Its headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.0.headers()
    }

    /// The next piece of its body; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        while let Some(frame) = self.0.body_mut().frame().await {
            // What is no data are trailers.
            if let Ok(data) = frame?.into_data() {
                if let Some(unasked) = self.0.extensions().get::<Unasked>() {
                    unasked.taken(data.len());
                }
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

impl SendError {
    /// Whether no connection was made.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(self, Self::Http(error) if error.is_connect())
    }

    /// Whether the host has no address.
    #[must_use]
    pub fn is_dns(&self) -> bool {
        chain(self).any(<dyn Error + 'static>::is::<NotFound>)
    }
}

#[cfg(test)]
mod tests;
