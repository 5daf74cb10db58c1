use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use http::HeaderMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{
    delivery::failure::{Redaction, describe_error},
    transport::{address::parse_range, resolver::Resolving},
};
use llmtune_core::attempt::Class;

/// A name server that cycles through several responses.
struct Fickle {
    answers: Vec<Vec<IpAddr>>,
    asked: AtomicUsize,
}

impl Fickle {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let addresses = |texts: &&[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Arc::new(Self { answers: answers.iter().map(addresses).collect(), asked: AtomicUsize::new(0) })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Resolve for Fickle {
    fn resolve(&self, _: String) -> Resolving {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answers[turn % self.answers.len()].clone();
        Box::pin(async move { Ok(answer) })
    }
}

/// An endpoint that acknowledges one request per connection, and counts connections.
struct Endpoint {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Endpoint {
    async fn listen(address: &str, port: u16) -> Self {
        let listener = TcpListener::bind((address, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            }
        });
        Self { port, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Two endpoints on the same port of two addresses.
async fn endpoints(first: &str, second: &str) -> (Endpoint, Endpoint) {
    loop {
        let first = Endpoint::listen(first, 0).await;
        // Another process can have the port at that address.
        if TcpListener::bind((second, first.port)).await.is_ok() {
            let second = Endpoint::listen(second, first.port).await;
            return (first, second);
        }
    }
}

fn guard(allow: &[&str], apiserver: &[SocketAddr]) -> Guard {
    let allow: Vec<_> = allow.iter().map(|text| parse_range(text).unwrap()).collect();
    Guard::new(&allow, &[], apiserver.to_vec())
}

/// Sends one request.
async fn send(clients: &Clients, url: &str) -> (Class, String) {
    let url = Url::parse(url).unwrap();
    let limit = Duration::from_secs(10);
    match clients.post(&"ns".into(), &url, None, HeaderMap::new(), "{}".into(), limit).await {
        Ok(_) => (Class::Success, String::new()),
        Err(error) => describe_error(&error, limit, Redaction::None),
    }
}

#[tokio::test]
async fn changing_dns_never_reaches_a_refused_address() {
    for (allowed, range, refused) in [
        ("127.0.0.1", "127.0.0.1/32", "127.0.0.2"),
        ("127.0.0.1", "127.0.0.1/32", "::1"),
        ("::1", "::1/128", "127.0.0.1"),
    ] {
        let (open, shut) = endpoints(allowed, refused).await;
        let names = Fickle::new(&[&[allowed], &[refused]]);
        let clients = Clients::new(Vec::new(), guard(&[range], &[]), names.clone(), None).unwrap();
        let url = format!("http://rebinding.example.com:{}/hook", open.port);
        for turn in 0..10 {
            let (class, error) = send(&clients, &url).await;
            if turn % 2 == 0 {
                assert_eq!(class, Class::Success, "{error}");
            } else {
                assert_eq!(class, Class::Address);
                assert!(error.starts_with("address refused: rebinding.example.com is in "), "{error}");
                assert!(!error.contains("127.0.0.2"), "the error has the rule, not the address: {error}");
            }
        }
        assert_eq!((open.connections(), shut.connections()), (5, 0), "{allowed} and {refused}");
        assert_eq!(names.asked(), 10, "the checked address is connected to, without a second lookup");
    }
}

#[tokio::test]
async fn refused_addresses_of_a_name_are_skipped() {
    for answer in [["127.0.0.2", "127.0.0.1"], ["::1", "127.0.0.1"]] {
        let (open, shut) = endpoints("127.0.0.1", answer[0]).await;
        let names = Fickle::new(&[&answer]);
        let clients = Clients::new(Vec::new(), guard(&["127.0.0.1/32"], &[]), names, None).unwrap();
        let (class, error) = send(&clients, &format!("http://both.example.com:{}/", open.port)).await;
        assert_eq!(class, Class::Success, "{error}");
        assert_eq!((open.connections(), shut.connections()), (1, 0));
    }
}

#[tokio::test]
async fn apiserver_is_unreachable_by_address_and_name() {
    let (apiserver, neighbour) = (Endpoint::listen("127.0.0.1", 0).await, Endpoint::listen("127.0.0.1", 0).await);
    let own = SocketAddr::from(([127, 0, 0, 1], apiserver.port));
    let names = Fickle::new(&[&["127.0.0.1"]]);
    let clients = Clients::new(Vec::new(), guard(&["127.0.0.0/8"], &[own]), names, None).unwrap();
    for host in ["127.0.0.1", "0x7f.1", "[::ffff:7f00:1]", "kubernetes.default.svc"] {
        let (class, error) = send(&clients, &format!("http://{host}:{}/", apiserver.port)).await;
        assert_eq!(class, Class::Address, "{host}: {error}");
        assert!(error.contains("the address and port of the kube-apiserver"), "{error}");
        let (class, error) = send(&clients, &format!("http://{host}:{}/", neighbour.port)).await;
        assert_eq!(class, Class::Success, "{host}: {error}");
    }
    assert_eq!((apiserver.connections(), neighbour.connections()), (0, 4));
}

#[tokio::test]
async fn name_without_address_cannot_be_found() {
    let clients = Clients::new(Vec::new(), guard(&[], &[]), Fickle::new(&[&[]]), None).unwrap();
    let (class, error) = send(&clients, "http://nowhere.example.com/").await;
    assert_eq!((class, error.as_str()), (Class::Connect, "cannot find the host of spec.url: it has no address"));
}

#[tokio::test]
async fn proxy_resolves_names_and_the_guard_checks_addresses_and_bypasses() {
    let proxy = Endpoint::listen("127.0.0.1", 0).await;
    let direct = Endpoint::listen("127.0.0.2", 0).await;
    // Only the host that bypasses the proxy is resolved.
    let names = Fickle::new(&[&["127.0.0.2"]]);
    let by = Proxy::new(&format!("http://user:pass@127.0.0.1:{}", proxy.port), "inside.example.com").unwrap();
    let clients = Clients::new(Vec::new(), guard(&[], &[]), names.clone(), Some(by)).unwrap();
    let (class, error) = send(&clients, "http://outside.example.com/").await;
    assert_eq!((class, names.asked()), (Class::Success, 0), "{error}");
    assert_eq!(send(&clients, "http://169.254.169.254/").await.0, Class::Address);
    for host in ["inside.example.com", "a.inside.example.com"] {
        assert_eq!(send(&clients, &format!("http://{host}:{}/", direct.port)).await.0, Class::Address);
    }
    assert_eq!((proxy.connections(), direct.connections(), names.asked()), (1, 0, 2));
}

#[test]
fn invalid_proxy_is_refused_without_its_password() {
    for url in ["", "proxy:3128", "socks5://user:hunter2@proxy:1080", "http://user:hunter2@", "user:hunter2@proxy:3128"]
    {
        let error = Proxy::new(url, "").err().unwrap_or_else(|| panic!("{url} is accepted"));
        assert!(error.contains("such as http://proxy.example.com:3128") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn webhooks_with_the_same_tls_share_one_client() {
    let clients = Clients::new(Vec::new(), guard(&[], &[]), Fickle::new(&[&[]]), None).unwrap();
    let certificate = rcgen::generate_simple_self_signed(["a.example.com".to_owned()]).unwrap().cert.pem();
    let own = crate::transport::tls::Materials::default().get(Some(certificate.as_bytes()), None).unwrap();
    let made = |pool: &Pool| pool.0.lock().unwrap().is_some();
    clients.client(&Url::parse("https://a.example.com/").unwrap(), Some(&own)).unwrap();
    assert_eq!([made(&own.pool), made(&clients.pool)], [true, false]);
    clients.client(&Url::parse("http://b.example.com:6443/").unwrap(), None).unwrap();
    assert_eq!([made(&own.pool), made(&clients.pool)], [true, true]);
}
