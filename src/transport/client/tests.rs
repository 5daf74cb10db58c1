use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{net::TcpListener, sync::Barrier};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::transport::{
    address::{Guard, parse_range},
    clients::Clients,
    resolver::System,
};

const AT_ONCE: usize = 100;
const LIMIT: Duration = Duration::from_secs(30);

/// TLS of HTTP/2 for localhost, and its certificate.
fn tls() -> (TlsAcceptor, CertificateDer<'static>) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), certificate)
}

/// An endpoint that answers this, the first request at once and then so many at a time; with the number of its connections.
async fn answers(acceptor: TlsAcceptor, answer: Bytes) -> (Url, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, barrier) = (Arc::clone(&connections), Arc::new(Barrier::new(AT_ONCE)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let stream = acceptor.accept(stream).await.unwrap();
            let (barrier, answer, served) = (Arc::clone(&barrier), answer.clone(), Arc::new(AtomicUsize::new(0)));
            let service = service_fn(move |_: Request<Incoming>| {
                let (barrier, answer) = (Arc::clone(&barrier), answer.clone());
                let first = served.fetch_add(1, Ordering::Relaxed) == 0;
                async move {
                    if !first {
                        barrier.wait().await;
                    }
                    Ok::<_, Infallible>(http::Response::new(Full::new(answer)))
                }
            });
            let server = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (url.parse().unwrap(), connections)
}

#[tokio::test]
async fn answers_that_come_at_once_to_all_requests_of_a_connection_are_all_read() {
    let (acceptor, certificate) = tls();
    let answer = Bytes::from(vec![b'x'; 16 * 1024]);
    let (url, connections) = answers(acceptor, answer.clone()).await;
    let ranges = ["127.0.0.0/8", "::1/128"].map(|range| parse_range(range).unwrap());
    let guard = Guard::new(&ranges, &[], Vec::new());
    let clients = Clients::new(vec![certificate], guard, Arc::new(System), None).unwrap();
    let (client, uri) = clients.client(&url, None).unwrap();
    let ask = || async {
        let mut response = client.post(uri.clone(), HeaderMap::new(), Bytes::from_static(b"{}"), LIMIT).await.unwrap();
        let mut length = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            length += chunk.len();
        }
        length
    };
    assert_eq!(ask().await, answer.len());
    let lengths = futures::future::join_all((0..AT_ONCE).map(|_| ask())).await;
    assert_eq!(lengths, vec![answer.len(); AT_ONCE]);
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}
