//! Connections to endpoints: kept alive over HTTP/1.1, a single one over HTTP/2, refused if TLS fails.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::{Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use llmtune_webhooks_harness::{
    eventually, operator::Operator, process::temporary_folder, proxy::Proxy, receiver::Receiver,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{Jobs, SOON, Scene, run};

/// A TLS receiver of HTTP/2 and HTTP/1.1 with a certificate for localhost.
struct TlsReceiver {
    port: u16,
    certificate: String,
    versions: Arc<Mutex<Vec<Version>>>,
    connections: Arc<Mutex<usize>>,
}

/// A TLS acceptor with a certificate for localhost, which is returned as PEM. It negotiates HTTP/2 if the client
/// supports it.
pub fn acceptor() -> (TlsAcceptor, String) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), certified.cert.pem())
}

impl TlsReceiver {
    async fn start() -> Self {
        let (acceptor, certificate) = acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (versions, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let (seen, counted) = (Arc::clone(&versions), Arc::clone(&connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen, counted) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&counted));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    *counted.lock().unwrap() += 1;
                    let service = service_fn(move |request: Request<Incoming>| {
                        let seen = Arc::clone(&seen);
                        async move {
                            let version = request.version();
                            request.into_body().collect().await.unwrap();
                            seen.lock().unwrap().push(version);
                            Ok::<_, std::convert::Infallible>(Response::new(Empty::<axum::body::Bytes>::new()))
                        }
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { port, certificate, versions, connections }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/hook", self.port)
    }
}

#[test]
fn http2_endpoint_gets_all_deliveries_on_one_connection() {
    run(async {
        let scene = Scene::new("http2").await;
        let receiver = TlsReceiver::start().await;
        let bundle = temporary_folder("ca").join("ca.pem");
        std::fs::write(&bundle, &receiver.certificate).unwrap();
        scene.webhook("ci", &receiver.url(), &json!({}));
        let options = scene.options().argument("--ca-file").argument(bundle.to_str().unwrap());
        let operator = Operator::start_ready(&scene.plane, &options).await;
        let jobs = Jobs::new(&scene).await;
        let acknowledged = |count: u64| {
            let operator = &operator;
            eventually("deliveries are acknowledged", SOON, move || async move {
                let delivered = operator.metric("llmtune_webhooks_deliveries_total", &[("result", "delivered")]);
                (delivered as u64 == count).then_some(())
            })
        };
        // Events from before the flush of the baseline are all sent right after it, over as many connections as needed.
        jobs.create("first").await;
        jobs.phase("first", "Running").await;
        acknowledged(1).await;
        jobs.drive(25, 50).await;
        acknowledged(51).await;
        let versions = receiver.versions.lock().unwrap().clone();
        assert!(versions.iter().all(|version| *version == Version::HTTP_2), "{versions:?}");
        // Deliveries that begin before the first connection is established may open one each.
        let connections = *receiver.connections.lock().unwrap();
        println!("51 deliveries over {connections} HTTP/2 connection(s)");
        assert!(connections <= 2, "{connections}");
    });
}

#[test]
fn a_certificate_that_is_not_trusted_is_refused_and_named() {
    run(async {
        let scene = Scene::new("untrusted").await;
        let receiver = TlsReceiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({"delivery": {"maxRetries": 0}}));
        let operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        jobs.create("a").await;
        jobs.start("a").await;
        let error = eventually("the failure is in the status", SOON, || async {
            scene.get("webhook", "ci")["status"]["lastFailure"]["error"].as_str().map(str::to_owned)
        })
        .await;
        assert!(error.starts_with("TLS: "), "{error}");
        assert_eq!(operator.metric("llmtune_webhooks_attempts_total", &[("outcome", "tls")]) as u64, 1);
        assert!(receiver.versions.lock().unwrap().is_empty());
    });
}

#[test]
fn over_http1_connections_are_kept_alive() {
    run(async {
        let scene = Scene::new("keep-alive").await;
        let receiver = Receiver::start().await;
        let proxy = Proxy::start(receiver.port).await;
        let url = format!("http://127.0.0.1:{}/hook", proxy.port);
        scene.webhook("ci", &url, &json!({"delivery": {"concurrency": 4}}));
        let _operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        jobs.drive(50, 100).await;
        receiver.wait(100, Duration::from_secs(30)).await;
        println!("100 deliveries over {} connection(s)", proxy.accepted());
        // A delivery that begins just before a connection is free again opens another one.
        assert!(proxy.accepted() <= 8, "{}", proxy.accepted());
    });
}

#[test]
fn silent_connection_is_replaced_for_the_next_attempt() {
    run(async {
        let scene = Scene::new("silent").await;
        let receiver = Receiver::start().await;
        let proxy = Proxy::start(receiver.port).await;
        let url = format!("http://127.0.0.1:{}/hook", proxy.port);
        let backoff = json!({"initial": "100ms", "factor": 1, "max": "100ms"});
        scene.webhook("ci", &url, &json!({"delivery": {"timeout": "5s", "maxRetries": 3, "backoff": backoff}}));
        let operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        jobs.drive(4, 100).await;
        receiver.wait(8, SOON).await;
        proxy.silence();
        jobs.create("last").await;
        jobs.start("last").await;
        let post = receiver.wait_for("training.started", "last", SOON).await;
        assert_eq!(post.attempt(), 2, "one attempt is lost with the connections, however many there were");
        assert_eq!(operator.metric("llmtune_webhooks_attempts_total", &[("outcome", "timeout")]) as u64, 1);
    });
}

#[test]
fn dropped_packets_are_a_connect_timeout() {
    run(async {
        let scene = Scene::new("dropping").await;
        // Its accept queue is full: the kernel drops all further connection requests.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            queued.push(stream);
        }
        scene.webhook("ci", &format!("http://{address}/"), &json!({"delivery": {"timeout": "1s", "maxRetries": 0}}));
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.start("llama").await;
        let error = eventually("the failure is in the status", SOON, || async {
            scene.get("webhook", "ci")["status"]["lastFailure"]["error"].as_str().map(str::to_owned)
        })
        .await;
        assert!(
            error.starts_with("connect timeout: nothing accepted a connection at the host and port of spec.url"),
            "{error}"
        );
        assert_eq!(operator.metric("llmtune_webhooks_attempts_total", &[("outcome", "connect")]) as u64, 1);
    });
}
