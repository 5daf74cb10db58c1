//! TLS to endpoints with a private CA: trust, client certificates, and error messages.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    http::{Request, Response},
};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use llmtune_webhooks_harness::eventually;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{Jobs, SOON, Scene, run};

/// A CA. All of them have the same name, like a CA that has renewed its key.
pub struct Ca(pub CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub struct Issued {
    pub certificate: rcgen::Certificate,
    pub key: KeyPair,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "internal CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, name: &str) -> Issued {
        self.issue_with(name, |_| {})
    }

    fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Issued { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }
}

impl Issued {
    pub fn secret(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": self.certificate.pem(), "tls.key": self.key.serialize_pem()}
        })
    }
}

pub fn bundle(name: &str, ca: &Ca) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca.crt": ca.pem()}})
}

/// A self-signed certificate for this host that is marked as a CA's, as `openssl req -x509` creates it.
fn self_signed(name: &str) -> Issued {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    Issued { certificate: params.self_signed(&key).unwrap(), key }
}

fn trusts(name: &str) -> Value {
    json!({"caBundleRef": {"kind": "ConfigMap", "name": name}})
}

/// A TLS server for one request per connection. Its certificate can be replaced, and it can require client
/// certificates.
pub struct Endpoint {
    pub port: u16,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    /// The names of the jobs in received events.
    received: Arc<Mutex<Vec<String>>>,
}

pub fn config(shown: &Issued, clients: Option<&Ca>) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.0.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(shown.key.serialize_der()));
    Arc::new(builder.with_single_cert(vec![shown.certificate.der().clone()], key).unwrap())
}

impl Endpoint {
    pub async fn start(shown: &Issued, clients: Option<&Ca>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = Self { port, config: Arc::new(Mutex::new(config(shown, clients))), received: Arc::default() };
        let (configs, received) = (Arc::clone(&endpoint.config), Arc::clone(&endpoint.received));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(configs.lock().unwrap().clone());
                let received = Arc::clone(&received);
                tokio::spawn(async move {
                    let stream = match acceptor.accept(stream).into_fallible().await {
                        Ok(stream) => stream,
                        // Continues to read, so that a reset does not discard the alert that it sent.
                        Err((_, mut stream)) => {
                            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                            return;
                        }
                    };
                    let service = service_fn(move |request: Request<Incoming>| {
                        let received = Arc::clone(&received);
                        async move {
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let body: Value = serde_json::from_slice(&body).unwrap();
                            received.lock().unwrap().push(body["data"]["name"].as_str().unwrap().to_owned());
                            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                        }
                    });
                    let _ =
                        http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        endpoint
    }

    fn show(&self, shown: &Issued, clients: Option<&Ca>) {
        *self.config.lock().unwrap() = config(shown, clients);
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/hook", self.port)
    }

    async fn wait_for(&self, job: &str) {
        eventually(&format!("the endpoint is told of {job}"), Duration::from_secs(60), || async {
            self.received.lock().unwrap().iter().any(|name| name == job).then_some(())
        })
        .await;
    }
}

/// Creates a Webhook.
fn webhook(scene: &Scene, name: &str, url: &str, tls: Option<Value>, retries: u32) {
    let backoff = json!({"initial": "200ms", "factor": 1, "max": "200ms"});
    let mut spec = json!({"delivery": {"maxRetries": retries, "backoff": backoff}});
    if let Some(tls) = tls {
        spec["tls"] = tls;
    }
    scene.webhook(name, url, &spec);
}

async fn start_job(scene: &Scene, name: &str) {
    let jobs = Jobs::new(scene).await;
    jobs.create(name).await;
    jobs.start(name).await;
}

/// Waits for the error of a failed attempt in the status.
async fn failure(scene: &Scene, webhook: &str) -> String {
    eventually(&format!("the failure is in the status of {webhook}"), SOON, || async {
        scene.get("webhook", webhook)["status"]["lastFailure"]["error"].as_str().map(str::to_owned)
    })
    .await
}

#[test]
fn bundle_is_trusted_only_by_its_webhook() {
    run(async {
        let scene = Scene::new("bundle").await;
        let ca = Ca::new();
        let endpoint = Endpoint::start(&ca.issue("localhost"), None).await;
        scene.apply(&bundle("internal-ca", &ca));
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "internal"}, "stringData": {"bundle.pem": ca.pem()}
        }));
        let from_secret = json!({"caBundleRef": {"kind": "Secret", "name": "internal", "key": "bundle.pem"}});
        webhook(&scene, "config-map", &endpoint.url(), Some(trusts("internal-ca")), 0);
        webhook(&scene, "secret", &endpoint.url(), Some(from_secret), 0);
        webhook(&scene, "neither", &endpoint.url(), None, 0);
        let operator = scene.operator().await;
        for name in ["config-map", "secret", "neither"] {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        start_job(&scene, "llama").await;
        for name in ["config-map", "secret"] {
            scene.wait(&format!("webhook/{name}"), "condition=Healthy");
        }
        let error = failure(&scene, "neither").await;
        assert!(
            error.contains("is signed by an unknown authority: add the CA certificate to spec.tls.caBundleRef"),
            "{error}"
        );
        assert_eq!(operator.metric("llmtune_webhooks_attempts_total", &[("outcome", "tls")]) as u64, 1);
        assert_eq!(endpoint.received.lock().unwrap().len(), 2);
        let lists = [("resource", "configmaps"), ("verb", "list")];
        assert_eq!(operator.metric("llmtune_webhooks_api_requests_total", &lists) as u64, 0);
    });
}

#[test]
fn certificate_problems_are_in_the_status() {
    run(async {
        let scene = Scene::new("certificates").await;
        let ca = Ca::new();
        let past = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let future = |params: &mut CertificateParams| params.not_before = rcgen::date_time_ymd(4000, 1, 1);
        let expired = Endpoint::start(&ca.issue_with("localhost", past), None).await;
        let early = Endpoint::start(&ca.issue_with("localhost", future), None).await;
        let other = Endpoint::start(&ca.issue("other.example.com"), None).await;
        // The same name, another key.
        let unknown = Endpoint::start(&Ca::new().issue("localhost"), None).await;
        let old = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let old_url = format!("https://localhost:{}/hook", old.local_addr().unwrap().port());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = old.accept().await {
                let mut hello = [0; 4096];
                let _ = stream.read(&mut hello).await;
                // A ServerHello of TLS 1.1 (RFC 4346, 7.4.1.3), with TLS_RSA_WITH_AES_128_CBC_SHA.
                let mut answer = vec![22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2];
                answer.extend([7; 32]);
                answer.extend([0, 0, 0x2f, 0]);
                let _ = stream.write_all(&answer).await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        });
        scene.apply(&bundle("internal-ca", &ca));
        let cases = [
            ("expired", expired.url(), "TLS: the endpoint's certificate has expired: renew it"),
            ("early", early.url(), "TLS: the endpoint's certificate is not valid yet"),
            ("other", other.url(), "is not for the host in spec.url, but for other.example.com"),
            ("unknown", unknown.url(), "is signed by an unknown authority"),
            ("old", old_url, "TLS: the endpoint does not support TLS 1.2 or 1.3"),
        ];
        for (name, url, _) in &cases {
            webhook(&scene, name, url, Some(trusts("internal-ca")), 0);
        }
        let _operator = scene.operator().await;
        for (name, ..) in &cases {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        start_job(&scene, "llama").await;
        for (name, _, says) in &cases {
            let error = failure(&scene, name).await;
            assert!(error.contains(says), "{name}: {error}");
        }
    });
}

#[test]
fn client_certificate_is_sent_and_its_key_hidden() {
    run(async {
        let scene = Scene::new("mtls").await;
        let (ca, clients) = (Ca::new(), Ca::new());
        let endpoint = Endpoint::start(&ca.issue("localhost"), Some(&clients)).await;
        scene.apply(&bundle("internal-ca", &ca));
        let good = clients.issue("ci");
        scene.apply(&good.secret("good"));
        scene.apply(&Ca::new().issue("ci").secret("stranger"));
        let shows = |name: &str| {
            let mut tls = trusts("internal-ca");
            tls["clientCertificateRef"] = json!({"name": name});
            Some(tls)
        };
        webhook(&scene, "good", &endpoint.url(), shows("good"), 0);
        webhook(&scene, "stranger", &endpoint.url(), shows("stranger"), 0);
        webhook(&scene, "none", &endpoint.url(), Some(trusts("internal-ca")), 0);
        let operator = scene.operator().await;
        for name in ["good", "stranger", "none"] {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        start_job(&scene, "llama").await;
        scene.wait("webhook/good", "condition=Healthy");
        let error = failure(&scene, "stranger").await;
        assert!(error.contains("refuses the client certificate of spec.tls.clientCertificateRef"), "{error}");
        let error = failure(&scene, "none").await;
        assert!(error.contains("requires a client certificate: set spec.tls.clientCertificateRef"), "{error}");
        assert_eq!(endpoint.received.lock().unwrap().len(), 1);

        let pem = good.key.serialize_pem();
        let canary = pem.lines().nth(1).unwrap();
        let objects = scene.kubectl(&["get", "webhooks,events,webhookdeliveries", "-o", "json"]);
        for (what, text) in [("log", operator.log()), ("metrics", operator.metrics()), ("objects", objects)] {
            assert!(!text.contains(canary), "the {what} hold the key");
        }
    });
}

#[test]
fn replaced_certificates_take_effect_live() {
    run(async {
        let scene = Scene::new("renewed").await;
        let (old, new) = (Ca::new(), Ca::new());
        let (old_clients, new_clients) = (Ca::new(), Ca::new());
        let endpoint = Endpoint::start(&old.issue("localhost"), Some(&old_clients)).await;
        scene.apply(&bundle("internal-ca", &old));
        scene.apply(&old_clients.issue("ci").secret("client"));
        let mut tls = trusts("internal-ca");
        tls["clientCertificateRef"] = json!({"name": "client"});
        // Enough retries for the lifetime of a cached copy: it is read again at most once in five seconds.
        let backoff = json!({"initial": "1s", "factor": 1, "max": "1s"});
        scene.webhook("ci", &endpoint.url(), &json!({"tls": tls, "delivery": {"maxRetries": 20, "backoff": backoff}}));
        let operator = scene.operator().await;
        scene.wait("webhook/ci", "condition=Ready");
        start_job(&scene, "before").await;
        endpoint.wait_for("before").await;

        endpoint.show(&new.issue("localhost"), Some(&old_clients));
        start_job(&scene, "new-ca").await;
        assert!(failure(&scene, "ci").await.contains("is signed by an unknown authority"));
        let replaced = Instant::now();
        scene.apply(&bundle("internal-ca", &new));
        endpoint.wait_for("new-ca").await;
        println!("a new bundle was in force after {:?}", replaced.elapsed());

        endpoint.show(&new.issue("localhost"), Some(&new_clients));
        start_job(&scene, "new-client").await;
        eventually("the old certificate is refused", SOON, || async {
            let error = scene.get("webhook", "ci")["status"]["lastFailure"]["error"].as_str()?.to_owned();
            error.contains("refuses the client certificate").then_some(())
        })
        .await;
        let replaced = Instant::now();
        scene.apply(&new_clients.issue("ci").secret("client"));
        endpoint.wait_for("new-client").await;
        println!("a new client certificate was in force after {:?}", replaced.elapsed());
        assert_eq!(operator.metric("llmtune_webhooks_deliveries_total", &[("result", "exhausted")]) as u64, 0);
    });
}

#[test]
fn invalid_certificates_hold_events_until_fixed() {
    run(async {
        let scene = Scene::new("lacking").await;
        let (ca, clients) = (Ca::new(), Ca::new());
        let endpoint = Endpoint::start(&ca.issue("localhost"), Some(&clients)).await;
        let mut tls = trusts("late");
        tls["clientCertificateRef"] = json!({"name": "client"});
        webhook(&scene, "ci", &endpoint.url(), Some(tls), 0);
        let operator = scene.operator().await;
        let lacks = async |reason: &str, says: &str| {
            scene.wait_condition("ci", "Ready", "False", reason, SOON).await;
            let (_, _, message) = scene.condition("ci", "Ready").unwrap();
            assert!(message.contains(says), "{message}");
            assert!(!message.contains("canary"), "{message}");
        };
        lacks("CABundleNotFound", "ConfigMap \"late\" does not exist in namespace ").await;
        start_job(&scene, "llama").await;
        let map = |data: &Value| {
            scene.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}, "data": data}));
        };
        map(&json!({"other": "x"}));
        lacks("CABundleKeyNotFound", "has no key \"ca.crt\"").await;
        map(&json!({"ca.crt": "canary"}));
        lacks("ClientCertificateNotFound", "Secret \"client\" does not exist").await;
        let mut mismatched = clients.issue("ci").secret("client");
        mismatched["stringData"]["tls.key"] = json!(KeyPair::generate().unwrap().serialize_pem());
        scene.apply(&mismatched);
        lacks("CABundleInvalid", "it contains no PEM certificate").await;
        scene.apply(&bundle("late", &ca));
        lacks("ClientCertificateInvalid", "tls.key is not the key of the first certificate in tls.crt").await;
        assert!(endpoint.received.lock().unwrap().is_empty());

        scene.apply(&clients.issue("ci").secret("client"));
        endpoint.wait_for("llama").await;
        scene.wait_condition("ci", "Ready", "True", "Subscribed", SOON).await;
        assert!(!operator.log().contains("canary"));
    });
}

#[test]
fn self_signed_certificate_is_trusted_beside_a_broken_one() {
    run(async {
        let scene = Scene::new("self-signed").await;
        let shown = self_signed("localhost");
        let (endpoint, other) =
            (Endpoint::start(&shown, None).await, Endpoint::start(&self_signed("localhost"), None).await);
        let broken = "-----BEGIN CERTIFICATE-----\nquokka!\n-----END CERTIFICATE-----\n";
        let map = |bundle: String| {
            let data = json!({"ca.crt": bundle});
            scene.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own"}, "data": data}));
        };
        map(format!("{}{broken}", shown.certificate.pem()));
        webhook(&scene, "named", &endpoint.url(), Some(trusts("own")), 0);
        webhook(&scene, "other", &other.url(), Some(trusts("own")), 0);
        let operator = scene.operator().await;
        for name in ["named", "other"] {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        let says = "the bundle contains an invalid certificate (block 2): its base64 is invalid; fix or remove it";
        let note = scene.wait_event("Webhook", "named", "CABundlePartlyInvalid").await;
        assert!(note.contains("spec.tls.caBundleRef") && note.contains(says), "{note}");
        let (status, reason, message) = scene.condition("named", "Ready").unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("True", "Subscribed"));
        assert!(message.contains(says) && !message.contains("quokka"), "{message}");
        start_job(&scene, "llama").await;
        scene.wait("webhook/named", "condition=Healthy");
        let error = failure(&scene, "other").await;
        assert!(
            error.contains("is a CA certificate") && error.contains("add exactly this certificate to the bundle"),
            "{error}"
        );
        assert!(!operator.log().contains("quokka"));

        // After the correction it is read again before the next delivery.
        map(shown.certificate.pem());
        eventually("the condition says nothing of it any more", Duration::from_secs(90), || async {
            start_job(&scene, &format!("llama-{}", jiff::Timestamp::now().as_millisecond())).await;
            (scene.condition("named", "Ready")?.2 == "matching events are delivered").then_some(())
        })
        .await;
    });
}

#[test]
fn certificate_names_are_hidden_where_a_header_is_secret() {
    run(async {
        let scene = Scene::new("reflected").await;
        let ca = Ca::new();
        // The endpoint has received the header, and shows it in a place that the status may quote.
        let endpoint = Endpoint::start(&ca.issue("quokkasecret-token.example.com"), None).await;
        scene.apply(&bundle("internal-ca", &ca));
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "token", "labels": {"llmtune.io/send-in-clear": "true"}},
            "stringData": {"token": "quokkasecret-token"}
        }));
        let header = json!({"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}});
        let spec = json!({"tls": trusts("internal-ca"), "headers": [header], "delivery": {"maxRetries": 0}});
        scene.webhook("secret", &endpoint.url(), &spec);
        webhook(&scene, "open", &endpoint.url(), Some(trusts("internal-ca")), 0);
        let operator = scene.operator().await;
        for name in ["secret", "open"] {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        start_job(&scene, "llama").await;
        let error = failure(&scene, "secret").await;
        assert_eq!(error, "TLS: the endpoint's certificate is not for the host in spec.url");
        let error = failure(&scene, "open").await;
        assert!(error.ends_with("but for quokkasecret-token.example.com"), "{error}");
        let object = scene.get("webhook", "secret")["status"].to_string();
        let note = scene.wait_event("Webhook", "secret", "DeliveriesFailing").await;
        for text in [object, note] {
            assert!(!text.contains("quokkasecret"), "{text}");
        }
        assert!(!operator.log().lines().any(|line| line.contains("quokkasecret") && !line.contains("open")));
    });
}
