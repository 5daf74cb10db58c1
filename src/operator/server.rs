//! `/metrics`, `/healthz` and `/readyz`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
    serve::Listener,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use jiff::Timestamp;
use prometheus::{Registry, TextEncoder};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};
use tracing::info;

use super::metrics::Metrics;
use crate::source::health::WatchHealth;

/// A watch whose task has not run for this long is stuck: it runs every half minute, with or without the apiserver.
const STALLED_WATCH: Duration = Duration::from_secs(300);
/// The apiserver ends a watch after half a minute, and the next one starts immediately.
const SILENT_WATCH: Duration = Duration::from_secs(60);
/// The engine's loop runs at least once a second.
const STALLED_LOOP: Duration = Duration::from_secs(30);
const REFRESH: Duration = Duration::from_secs(2);
/// The number of connections that the kernel accepts in advance, as in the standard library.
const BACKLOG: i32 = 128;

/// A request to the engine's loop to set the gauges that only the engine knows.
pub type Refresh = oneshot::Sender<()>;

/// The role of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The leader is still unknown.
    Starting,
    /// Another process leads.
    Standby { holder: String },
    /// This process leads.
    Leader,
}

/// The health of the operator.
pub struct Health {
    role: Mutex<Role>,
    watches: Mutex<Vec<Arc<WatchHealth>>>,
    refresh: Mutex<Option<mpsc::Sender<Refresh>>>,
    /// What the configuration excludes.
    not_served: OnceLock<&'static str>,
    /// When the engine's loop last ran.
    beat: Mutex<Option<Instant>>,
}

impl Health {
    /// Creates the health of an operator that has just started.
    #[must_use]
    pub fn new() -> Self {
        Self {
            role: Mutex::new(Role::Starting),
            watches: Mutex::default(),
            refresh: Mutex::default(),
            not_served: OnceLock::new(),
            beat: Mutex::default(),
        }
    }

    /// Sets the role.
    pub fn set_role(&self, role: Role) {
        *lock(&self.role) = role;
    }

    /// Sets the watches of the leader.
    pub fn set_watches(&self, watches: Vec<Arc<WatchHealth>>) {
        *lock(&self.watches) = watches;
    }

    /// Sets where gauges are requested before they are served.
    pub fn set_refresh(&self, refresh: mpsc::Sender<Refresh>) {
        *lock(&self.refresh) = Some(refresh);
    }

    /// Sets what is not served. It does not affect readiness.
    pub fn set_not_served(&self, text: &'static str) {
        self.not_served.get_or_init(|| text);
    }

    /// Records that the engine's loop ran.
    pub fn beat(&self) {
        *lock(&self.beat) = Some(Instant::now());
    }

    fn liveness(&self) -> Result<(), String> {
        if *lock(&self.role) != Role::Leader {
            return Ok(());
        }
        let mut complaints = String::new();
        if let Some(still) = lock(&self.beat).map(|beat| beat.elapsed()).filter(|still| *still > STALLED_LOOP) {
            let _ = writeln!(complaints, "the engine's loop has not run for {} s", still.as_secs());
        }
        for watch in lock(&self.watches).iter() {
            let still = watch.idle_for();
            if still > STALLED_WATCH {
                let _ = writeln!(complaints, "the watch of {} has not run for {} s", watch.kind, still.as_secs());
            }
        }
        if complaints.is_empty() { Ok(()) } else { Err(complaints) }
    }

    fn readiness(&self) -> Result<String, String> {
        let mut text = String::new();
        let mut ready = true;
        let now = Timestamp::now().as_second();
        match &*lock(&self.role) {
            Role::Starting => {
                ready = false;
                text.push_str("starting: the leader is not known yet; if this lasts, see the log\n");
            }
            Role::Standby { holder } => {
                let _ = writeln!(text, "standby: {holder} leads");
            }
            Role::Leader => {
                text.push_str("leader\n");
                let watches = lock(&self.watches);
                if watches.is_empty() {
                    ready = false;
                    let step = if lock(&self.refresh).is_none() { "reading the ledger" } else { "listing Webhooks" };
                    let _ = writeln!(text, "{step}; if this lasts, see the log");
                }
                for watch in watches.iter() {
                    let scope = watch.namespace.as_deref().unwrap_or("all namespaces");
                    let of = watch.webhook_source.as_deref().map(|name| format!(" (WebhookSource {name})"));
                    let state = match (watch.is_installed(), watch.is_synced()) {
                        (false, _) => "not installed; install it, and events follow".to_owned(),
                        (true, true) if now - watch.last_activity() > SILENT_WATCH.as_secs() as i64 => {
                            format!("silent for {} s; see the log", now - watch.last_activity())
                        }
                        (true, true) if watch.unanswered().is_some() => {
                            "watching, without the right to get objects; see the log".to_owned()
                        }
                        (true, true) => "watching".to_owned(),
                        // A missing right for this kind does not make this process unready.
                        (true, false) if of.is_some() && watch.trouble().is_some() => {
                            "interrupted; see its conditions".to_owned()
                        }
                        (true, false) => {
                            ready = false;
                            "listing; if this lasts, see the log".to_owned()
                        }
                    };
                    let _ = writeln!(text, "{}{} in {scope}: {state}", watch.kind, of.unwrap_or_default());
                }
                if let Some(not_served) = self.not_served.get() {
                    let _ = writeln!(text, "{not_served}");
                }
            }
        }
        if ready { Ok(text) } else { Err(text) }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the handlers read.
#[derive(Clone)]
pub struct Shown {
    pub registry: Registry,
    pub metrics: Metrics,
    pub health: Arc<Health>,
}

/// Binds the listener. The error names the address. `[::]` means every address, IPv4 included, whatever the kernel's
/// default is. If the kernel has no IPv6, it means `0.0.0.0`. Must be called within a runtime.
pub fn bind(address: SocketAddr) -> Result<TcpListener, std::io::Error> {
    bind_by(address, listen).and_then(TcpListener::from_std)
}

/// Why an address cannot be bound.
enum NotBound {
    /// The kernel does not support the address family.
    NoFamily(std::io::Error),
    Other(std::io::Error),
}

fn bind_by<T>(address: SocketAddr, listen: impl Fn(SocketAddr) -> Result<T, NotBound>) -> Result<T, std::io::Error> {
    let (address, error) = match listen(address) {
        Ok(listener) => return Ok(listener),
        Err(NotBound::NoFamily(error)) if address.ip() == Ipv6Addr::UNSPECIFIED => {
            let ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            info!(%error, "this host has no IPv6: listening on {ipv4} instead of {address}");
            match listen(ipv4) {
                Ok(listener) => return Ok(listener),
                Err(NotBound::NoFamily(error) | NotBound::Other(error)) => (ipv4, error),
            }
        }
        Err(NotBound::NoFamily(error) | NotBound::Other(error)) => (address, error),
    };
    Err(std::io::Error::new(error.kind(), format!("{address}: {error}")))
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, NotBound> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).map_err(NotBound::NoFamily)?;
    let bound = || {
        if address.is_ipv6() {
            socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
        }
        // After a restart, the kernel still has connections of the previous process.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)
    };
    match bound() {
        Ok(()) => Ok(socket.into()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => Err(NotBound::NoFamily(error)),
        Err(error) => Err(NotBound::Other(error)),
    }
}

/// Serves forever, over HTTP/1.1 only. `axum::serve` would add HTTP/2, and would wait forever for the head of a
/// request.
pub async fn serve(mut listener: TcpListener, shown: Shown) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shown);
    loop {
        let (stream, _) = Listener::accept(&mut listener).await;
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service));
    }
}

async fn healthz(State(shown): State<Shown>) -> impl IntoResponse {
    match shown.health.liveness() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(complaints) => (StatusCode::SERVICE_UNAVAILABLE, complaints),
    }
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    match shown.health.readiness() {
        Ok(text) => (StatusCode::OK, text),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text),
    }
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let ask = lock(&shown.health.refresh).clone();
    if let Some(ask) = ask {
        let (done, refreshed) = oneshot::channel();
        // Without an engine, the gauges keep their values.
        let _ = timeout(REFRESH, async {
            if ask.send(done).await.is_ok() {
                let _ = refreshed.await;
            }
        })
        .await;
    }
    // Of several watches of a kind, the one that has been silent for longest: no other may hide it.
    let mut oldest: BTreeMap<&str, i64> = BTreeMap::new();
    let watches = lock(&shown.health.watches).clone();
    for watch in &watches {
        let oldest = oldest.entry(&watch.kind).or_insert(i64::MAX);
        *oldest = watch.last_activity().min(*oldest);
    }
    // Removes the series of withdrawn sources.
    shown.metrics.watch_last_activity.reset();
    for (kind, at) in oldest {
        shown.metrics.watch_last_activity.with_label_values(&[kind]).set(at);
    }
    let mut text = String::new();
    for family in shown.registry.gather() {
        // One by one, so that each is freed after it is written: thousands of Webhooks have tens of thousands of
        // series.
        if let Err(error) = TextEncoder::new().encode_utf8(&[family], &mut text) {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn ask(at: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn unspecified_ipv6_address_accepts_ipv4() {
        let listener = bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let taken = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
        if let Ok(listener) = bind("[::1]:0".parse().unwrap()) {
            let port = listener.local_addr().unwrap().port();
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap_err();
        }
    }

    #[test]
    fn without_ipv6_the_unspecified_address_is_ipv4() {
        let no_family = || std::io::Error::other("Address family not supported by protocol");
        let without_ipv6 = |at: &str| {
            bind_by(at.parse().unwrap(), |address: SocketAddr| {
                if address.is_ipv4() { Ok(address.to_string()) } else { Err(NotBound::NoFamily(no_family())) }
            })
            .map_err(|error| error.to_string())
        };
        assert_eq!(without_ipv6("[::]:8080").as_deref(), Ok("0.0.0.0:8080"));
        assert_eq!(without_ipv6("127.0.0.1:8080").as_deref(), Ok("127.0.0.1:8080"));
        assert!(without_ipv6("[::1]:8080").unwrap_err().starts_with("[::1]:8080: "), "only that address was requested");
        let taken = |address: SocketAddr| Err::<(), _>(NotBound::Other(std::io::Error::other(address.to_string())));
        assert!(bind_by("[::]:8080".parse().unwrap(), taken).unwrap_err().to_string().starts_with("[::]:8080: "));
    }

    #[tokio::test(start_paused = true)]
    async fn incomplete_request_times_out_and_delays_no_other() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = listener.local_addr().unwrap();
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        tokio::spawn(serve(listener, Shown { registry, metrics, health: Arc::new(Health::new()) }));
        let begun = Instant::now();
        let (endless, whole) = tokio::join!(
            ask(at, b"GET /healthz HTTP/1.1\r\n"),
            ask(at, b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        );
        assert!(!endless.contains("200"), "{endless}");
        assert!(begun.elapsed() >= Duration::from_secs(29), "{:?}", begun.elapsed());
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n") && whole.ends_with("ok\n"), "{whole}");
    }
}
