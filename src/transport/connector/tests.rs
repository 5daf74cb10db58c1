use std::{sync::Mutex, time::Instant};

use http::HeaderMap;
use tokio::net::{TcpListener, TcpSocket};

use super::*;
use crate::{
    delivery::failure::{Redaction, describe_error},
    transport::{clients::Clients, resolver::Resolving},
};
use llmtune_core::attempt::Class;

/// A name server with one response.
struct Answers(Vec<IpAddr>);

impl Resolve for Answers {
    fn resolve(&self, _: String) -> Resolving {
        let answer = self.0.clone();
        Box::pin(async move { Ok(answer) })
    }
}

/// An address that drops packets, because its connection queue stays full.
struct Dropping {
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Dropping {
    async fn at(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1).unwrap();
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            queued.push(stream);
        }
        Self { _listener: listener, _queued: queued }
    }
}

/// Answers each HTTP/1.1 request with this response, and records the requests.
fn answering(listener: TcpListener, answer: &'static str) -> Arc<Mutex<Vec<String>>> {
    let received = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or_default();
            seen.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    received
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn clients(addresses: &[&str], proxy: Option<Proxy>) -> Clients {
    let names = Answers(addresses.iter().map(|address| address.parse().unwrap()).collect());
    Clients::new(Vec::new(), Guard::open(), Arc::new(names), proxy).unwrap()
}

async fn send(clients: &Clients, url: &str, limit: Duration, discretion: Redaction) -> (Class, String) {
    let url = Url::parse(url).unwrap();
    match clients.post(&"ns".into(), &url, None, HeaderMap::new(), "{}".into(), limit).await {
        Ok(response) => (Class::Success, response.status().to_string()),
        Err(error) => describe_error(&error, limit, discretion),
    }
}

#[tokio::test]
async fn address_that_drops_packets_costs_a_quarter_second() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _received = answering(listener, OK);
    let _dropping = [
        Dropping::at(SocketAddr::from(([127, 0, 0, 2], port))).await,
        Dropping::at(SocketAddr::from(([127, 0, 0, 3], port))).await,
    ];
    for (addresses, most) in [
        (&["127.0.0.2", "127.0.0.1"][..], 600),
        (&["127.0.0.2", "127.0.0.3", "127.0.0.1"], 900),
        // Nothing listens at the first address: the next is tried immediately.
        (&["127.0.0.4", "::1", "127.0.0.1"], 200),
    ] {
        let begun = Instant::now();
        let url = format!("http://two.example:{port}/");
        let (class, error) = send(&clients(addresses, None), &url, Duration::from_secs(5), Redaction::None).await;
        let took = begun.elapsed();
        assert_eq!(class, Class::Success, "{error}");
        assert!(took < Duration::from_millis(most + 400), "{addresses:?}: {took:?}");
    }
}

#[tokio::test]
async fn host_that_drops_all_packets_is_a_connect_timeout() {
    let free = TcpListener::bind("127.0.0.5:0").await.unwrap().local_addr().unwrap();
    let _dropping = Dropping::at(free).await;
    let clients = clients(&["127.0.0.5"], None);
    let url = format!("http://dropping.example:{}/secret-path", free.port());
    for (discretion, what) in [(Redaction::None, "spec.url"), (Redaction::Url, "the URL that spec.urlFrom names")] {
        let (class, error) = send(&clients, &url, Duration::from_millis(700), discretion).await;
        assert_eq!(class, Class::Connect);
        let begins =
            format!("connect timeout: nothing accepted a connection at the host and port of {what} within 0.7 s");
        assert!(error.starts_with(&begins) && !error.contains("secret"), "{error}");
        assert!(error.chars().count() <= 256, "{error}");
    }
    let begun = Instant::now();
    let (class, error) = send(&clients, &url, Duration::from_secs(60), Redaction::None).await;
    assert!(class == Class::Connect && error.contains("within 10 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(12));
}

#[tokio::test]
async fn refusing_proxy_is_named_with_status_without_password() {
    for (answer, says) in [
        ("HTTP/1.1 403 Out\r\n\r\n", "answered HTTP 403 Forbidden, and opened no tunnel: have it allow the host"),
        (
            "HTTP/1.1 407 canary\r\nProxy-Authenticate: Basic\r\nContent-Length: 3\r\n\r\nno",
            "answered HTTP 407 Proxy Authentication Required",
        ),
        (
            "HTTP/1.0 502\n\n",
            "answered HTTP 502 Bad Gateway, and opened no tunnel: check the host and port of spec.url",
        ),
        ("SSH-2.0-canary\r\n\r\n", "closed the connection instead of opening a tunnel"),
        ("", "closed the connection instead of opening a tunnel"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = answering(listener, answer);
        let proxy = Proxy::new(&format!("http://user:hunter2@127.0.0.1:{port}"), "").unwrap();
        let clients = clients(&[], Some(proxy));
        let (class, error) =
            send(&clients, "https://outside.example/hook", Duration::from_secs(5), Redaction::None).await;
        assert_eq!(class, Class::Connect, "{error}");
        assert!(error.starts_with(&format!("the proxy 127.0.0.1:{port} {says}")), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("canary"), "{error}");
        let request = received.lock().unwrap()[0].clone();
        let expected = "CONNECT outside.example:443 HTTP/1.1\r\nHost: outside.example:443\r\nProxy-Authorization: Basic dXNlcjpodW50ZXIy\r\n\r\n";
        assert_eq!(request, expected);
    }
}

#[tokio::test]
async fn unreachable_and_silent_proxies_are_named() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let shut = clients(&[], Some(Proxy::new(&format!("http://user:hunter2@{free}"), "").unwrap()));
    for url in ["https://outside.example/", "http://outside.example/"] {
        let (class, error) = send(&shut, url, Duration::from_secs(5), Redaction::None).await;
        assert_eq!(class, Class::Connect);
        assert!(error.starts_with(&format!("cannot connect to the proxy {free}: Connection refused")), "{error}");
    }
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap();
    let silent_proxy = clients(&[], Some(Proxy::new(&format!("http://{at}"), "").unwrap()));
    let (class, error) =
        send(&silent_proxy, "https://outside.example/", Duration::from_millis(500), Redaction::Url).await;
    assert_eq!(class, Class::Connect);
    assert!(error.starts_with(&format!("connect timeout: the proxy {at} opened no connection")), "{error}");
}

#[tokio::test]
async fn response_through_a_proxy_names_the_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let received = answering(listener, "HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n");
    let clients = clients(&[], Some(Proxy::new(&format!("http://{at}"), "").unwrap()));
    let url = Url::parse("http://outside.example/hook").unwrap();
    let limit = Duration::from_secs(5);
    let response = clients.post(&"ns".into(), &url, None, HeaderMap::new(), "{}".into(), limit).await.unwrap();
    assert_eq!(response.proxy(), Some(at.to_string().as_str()));
    assert!(received.lock().unwrap()[0].starts_with("POST http://outside.example/hook HTTP/1.1\r\n"));
}
