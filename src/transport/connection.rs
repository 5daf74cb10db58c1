//! One HTTP/1.1 or HTTP/2 connection, and the outcome of a request on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{
    pool::{IDLE, MAX_AGE},
    wire::{Unsolicited, Use, Wire},
};
use llmtune_client::error_chain::chain;

/// The maximum size of a response head in bytes. curl accepts lines of 100 KiB.
pub(super) const MAX_HEAD: usize = 128 * 1024;
/// The maximum number of headers in a response.
const MAX_HEADERS: usize = 1000;
/// The HTTP/2 window for one response and for all responses of a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 128 * 1024;
/// An HTTP/2 connection that is silent for this long while a request waits gets a ping.
const PING: Duration = Duration::from_secs(10);
/// A connection that does not answer a ping for this long is dead. A busy receiver answers pings late.
const PONG: Duration = Duration::from_secs(15);
/// The time that an unneeded connection has to close.
const CLOSING: Duration = Duration::from_secs(1);

type Body = Full<Bytes>;

/// A connection for requests.
pub(super) enum Connection {
    Http1(Http1),
    /// Shared by many requests.
    Http2(Arc<Http2>),
}

/// An HTTP/1.1 connection, with one request at a time.
pub(super) struct Http1 {
    sender: http1::SendRequest<Body>,
    facts: Facts,
    /// It leads to a proxy that gets the whole URL.
    proxied: bool,
}

/// An HTTP/2 connection.
pub(super) struct Http2 {
    sender: http2::SendRequest<Body>,
    facts: Facts,
}

struct Facts {
    born: Instant,
    /// When it was last used and when it last answered, in milliseconds since `born`; 0 means never.
    used: AtomicU64,
    answered: AtomicU64,
    unsolicited: Unsolicited,
    _cut: AbortOnDrop,
}

/// Why a request has no response.
#[derive(Debug)]
pub(super) struct Broken {
    pub error: hyper::Error,
    /// The endpoint did not process the request, or almost certainly not: the connection had been used before, and
    /// closed before the first byte of a response.
    pub resend: bool,
}

impl Connection {
    /// Starts HTTP on a connection.
    pub(super) async fn begin(wire: Wire) -> Result<Self, hyper::Error> {
        let (used, unsolicited) = (wire.used(), wire.unsolicited());
        let (cut, ended) = oneshot::channel();
        let facts = Facts {
            born: Instant::now(),
            used: AtomicU64::default(),
            answered: AtomicU64::default(),
            unsolicited,
            _cut: AbortOnDrop(Some(cut)),
        };
        let stream = TokioIo::new(wire.until(ended));
        if used == Use::Http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(MAX_HEAD as u32)
                .keep_alive_interval(PING)
                .keep_alive_timeout(PONG);
            let (sender, driver) = builder.handshake(stream).await?;
            tokio::spawn(driver);
            return Ok(Self::Http2(Arc::new(Http2 { sender, facts })));
        }
        let mut builder = http1::Builder::new();
        builder
            .title_case_headers(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD);
        let (sender, driver) = builder.handshake(stream).await?;
        tokio::spawn(driver);
        Ok(Self::Http1(Http1 { sender, facts, proxied: used == Use::Proxied }))
    }

    /// Sends a request, and waits for the head of the response.
    pub(super) async fn send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, Broken> {
        let facts = self.facts();
        facts.note(&facts.used);
        let reused = facts.answered.load(Ordering::Relaxed) > 0;
        let sent = match self {
            Self::Http1(connection) => {
                connection.address(&mut request);
                connection.sender.try_send_request(request).await
            }
            Self::Http2(connection) => {
                *request.version_mut() = Version::HTTP_2;
                connection.sender.clone().try_send_request(request).await
            }
        };
        let facts = self.facts();
        match sent {
            Ok(response) => {
                facts.note(&facts.answered);
                facts.note(&facts.used);
                Ok(response)
            }
            Err(error) => Err(self.broken(error, reused)),
        }
    }

    fn broken(&self, mut error: TrySendError<Request<Body>>, reused: bool) -> Broken {
        let returned = error.take_message().is_some();
        let error = error.into_error();
        let resend = match self {
            Self::Http1(connection) => reused && connection.facts.unsolicited.is_none(),
            Self::Http2(connection) => {
                let cause = chain(&error).find_map(|cause| cause.downcast_ref::<h2::Error>());
                let unprocessed = cause.is_some_and(|cause| {
                    // A stream gets GOAWAY only above the last processed id (RFC 9113, 6.8). REFUSED_STREAM says the
                    // same itself (8.7).
                    let refused = cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM);
                    cause.is_remote() && (cause.is_go_away() || refused)
                });
                let closed = cause.is_none_or(h2::Error::is_io) && !connection.facts.unsolicited.is_too_much();
                unprocessed || returned || (reused && closed)
            }
        };
        Broken { error, resend }
    }

    /// Returns the counter of unrequested bytes.
    pub(super) fn unsolicited(&self) -> Unsolicited {
        self.facts().unsolicited.clone()
    }

    /// Reports whether it leads to a proxy that gets the whole URL.
    pub(super) const fn is_proxied(&self) -> bool {
        matches!(self, Self::Http1(Http1 { proxied: true, .. }))
    }

    fn facts(&self) -> &Facts {
        match self {
            Self::Http1(connection) => &connection.facts,
            Self::Http2(connection) => &connection.facts,
        }
    }
}

impl Http1 {
    /// Writes the request target in the form of HTTP/1.1 (RFC 9112, 3.2).
    fn address(&self, request: &mut Request<Body>) {
        let uri = request.uri();
        let host = uri.authority().and_then(|authority| authority.as_str().parse().ok());
        let path = uri.path_and_query().cloned();
        if let Some(host) = host {
            request.headers_mut().entry(header::HOST).or_insert(host);
        }
        if let Some(path) = path.filter(|_| !self.proxied) {
            *request.uri_mut() = path.into();
        }
    }

    pub(super) fn may_be_used(&self, now: Instant) -> bool {
        self.facts.may_be_used(now) && self.sender.is_ready()
    }

    pub(super) fn has_answered_after(&self, since: Instant) -> bool {
        self.facts.has_answered_after(since)
    }

    /// Waits until the next request can be sent; `None` if the connection ends.
    pub(super) async fn ready(mut self) -> Option<Self> {
        let ready = timeout(CLOSING, self.sender.ready()).await.is_ok_and(|ready| ready.is_ok());
        ready.then_some(self)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }
}

impl Http2 {
    pub(super) fn may_be_used(&self, now: Instant) -> bool {
        self.facts.may_be_used(now) && self.sender.is_ready()
    }

    pub(super) fn has_answered_after(&self, since: Instant) -> bool {
        self.facts.has_answered_after(since)
    }
}

impl Facts {
    fn note(&self, what: &AtomicU64) {
        what.store(self.born.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn at(&self, what: &AtomicU64) -> Instant {
        self.born + Duration::from_millis(what.load(Ordering::Relaxed))
    }

    fn may_be_used(&self, now: Instant) -> bool {
        now < self.born + MAX_AGE && now < self.at(&self.used) + IDLE
    }

    fn has_answered_after(&self, since: Instant) -> bool {
        self.answered.load(Ordering::Relaxed) > 0 && self.at(&self.answered) > since
    }
}

/// Closes an unneeded connection after it had time to close itself. Otherwise an endpoint that reads nothing would keep
/// it open.
struct AbortOnDrop(Option<oneshot::Sender<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        let Some(cut) = self.0.take().filter(|cut| !cut.is_closed()) else { return };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                sleep(CLOSING).await;
                drop(cut);
            });
        }
    }
}
