//! An HTTP receiver on loopback that records every request and answers as configured.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket};

use crate::eventually;

/// A received request.
#[derive(Clone, Debug)]
pub struct Received {
    pub at: Instant,
    /// The address of the client's connection.
    pub from: SocketAddr,
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    /// A header's value; empty if absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn event(&self) -> String {
        self.header("x-llmtune-event").to_owned()
    }

    /// The name of the event's object.
    pub fn name(&self) -> String {
        self.json()["data"]["name"].as_str().unwrap_or_default().to_owned()
    }

    pub fn event_id(&self) -> &str {
        self.header("x-llmtune-event-id")
    }

    pub fn delivery_id(&self) -> &str {
        self.header("x-llmtune-delivery-id")
    }

    /// The body up to `deliveredAt`: the part that is the same in every attempt.
    pub fn lasting_body(&self) -> &str {
        self.body.rsplit_once(",\"deliveredAt\":").map_or(&self.body, |(lasting, _)| lasting)
    }

    pub fn attempt(&self) -> u32 {
        self.header("x-llmtune-attempt").parse().unwrap_or_default()
    }
}

/// The response, and its delay.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub delay: Duration,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), delay: Duration::ZERO }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

type Behaviour = Arc<dyn Fn(&Received) -> Answer + Send + Sync>;

#[derive(Clone)]
struct Shared {
    received: Arc<Mutex<Vec<Received>>>,
    behaviour: Arc<Mutex<Behaviour>>,
}

/// The receiver; stopped when dropped.
pub struct Receiver {
    pub port: u16,
    shared: Shared,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// A receiver that acknowledges everything.
    pub async fn start() -> Self {
        Self::answering(|_| Answer::status(200)).await
    }

    /// A receiver that answers each request with the result of `behaviour`.
    pub async fn answering(behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), behaviour)
    }

    /// The same at this loopback address.
    pub async fn at(address: &str, behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::serve(TcpListener::bind((address, 0)).await.unwrap(), behaviour)
    }

    fn serve(listener: TcpListener, behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        let port = listener.local_addr().unwrap().port();
        let shared = Shared { received: Arc::default(), behaviour: Arc::new(Mutex::new(Arc::new(behaviour))) };
        let router = Router::new().fallback(handle).with_state(shared.clone());
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let server = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self { port, shared, server }
    }

    /// Replaces the behavior from now on.
    pub fn answer(&self, behaviour: impl Fn(&Received) -> Answer + Send + Sync + 'static) {
        *self.shared.behaviour.lock().unwrap() = Arc::new(behaviour);
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// All requests so far, in the order of their arrival.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.shared.received.lock().unwrap().len()
    }

    /// Waits for this many requests and returns them.
    pub async fn wait(&self, count: usize, limit: Duration) -> Vec<Received> {
        let begun = Instant::now();
        while self.count() < count {
            assert!(
                begun.elapsed() < limit,
                "{} of {count} requests within {limit:?}: {:?}",
                self.count(),
                self.events()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.received()
    }

    /// Waits for a request with this event for this object.
    pub async fn wait_for(&self, event: &str, name: &str, limit: Duration) -> Received {
        eventually(&format!("{event} of {name} in {:?}", self.events()), limit, || async {
            self.received().into_iter().find(|received| received.event() == event && received.name() == name)
        })
        .await
    }

    /// The event and the object of each request.
    pub fn events(&self) -> Vec<(String, String)> {
        self.received().iter().map(|received| (received.event(), received.name())).collect()
    }
}

/// A reserved port without a listener: connections are refused until it is opened.
pub struct Closed {
    pub port: u16,
    socket: TcpSocket,
}

impl Closed {
    pub fn reserve() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { port: socket.local_addr().unwrap().port(), socket }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// Starts a receiver on this port that acknowledges everything.
    pub fn open(self) -> Receiver {
        Receiver::serve(self.socket.listen(1024).unwrap(), |_| Answer::status(200))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn handle(
    State(shared): State<Shared>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let received = Received {
        at: Instant::now(),
        from,
        path: uri.path().to_owned(),
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let behaviour = Arc::clone(&shared.behaviour.lock().unwrap());
    let answer = behaviour(&received);
    shared.received.lock().unwrap().push(received);
    tokio::time::sleep(answer.delay).await;
    let mut response = StatusCode::from_u16(answer.status).unwrap().into_response();
    for (name, value) in answer.headers {
        let name = axum::http::HeaderName::try_from(name).unwrap();
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

/// HMAC-SHA256 in hexadecimal, for receivers that verify.
pub fn hmac_hex(key: &str, body: &[u8]) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(body);
    mac.finalize().into_bytes().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

impl Received {
    /// Whether it is signed with this key.
    pub fn is_signed_with(&self, key: &str) -> bool {
        self.header("x-llmtune-signature") == hmac_hex(key, self.body.as_bytes())
    }
}
