//! No content of a Secret appears anywhere: not in the log at its highest level, not in an object, an Event, a metric
//! or the ledger, whatever fails. Each Secret of a complete scenario contains a unique word, and the test searches all
//! output of the operator for it.

use std::{cell::RefCell, fmt::Write, io::Read, time::Duration};

use base64::{
    Engine as _,
    alphabet::{STANDARD as ALPHABET, URL_SAFE},
    engine::general_purpose::{GeneralPurpose, NO_PAD, STANDARD},
};
use llmtune_webhooks_harness::{
    eventually,
    operator::Operator,
    receiver::{Answer, Closed, Received, Receiver},
};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    secrets::{from, secret, url_from},
    support::{SOON, Scene, run, webhook},
    tls::{self, Ca, Endpoint},
};

/// A word in every Secret.
const WORD: &str = "quokkasecret";
/// Hosts of secret URLs.
const HOST: &str = "127.77.66.55";
const REFUSED_HOST: &str = "169.254.77.66";
const TOKEN: &str = "Bearer quokkasecret-token";
/// Both in the form of Standard Webhooks; their bytes contain the word.
const KEY: &str = "whsec_cXVva2thc2VjcmV0LW5ldy1zaWduaW5nLWtleS0wMQ==";
const OLD_KEY: &str = "whsec_cXVva2thc2VjcmV0LW9sZC1zaWduaW5nLWtleS0wMQ==";

/// Texts to search for, each with the secret from which it is derived.
struct Needles(Vec<(String, String)>);

impl Needles {
    /// These texts in plain form and in common encodings.
    fn of(texts: &[String]) -> Self {
        let mut needles = Vec::new();
        for text in texts {
            let (mut hexadecimal, mut percent) = (String::new(), String::new());
            for byte in text.bytes() {
                write!(hexadecimal, "{byte:02x}").unwrap();
                write!(percent, "%{byte:02x}").unwrap();
            }
            needles.extend([text.to_lowercase(), hexadecimal, percent].map(|form| (text.clone(), form)));
            for alphabet in [ALPHABET, URL_SAFE] {
                let engine = GeneralPurpose::new(&alphabet, NO_PAD);
                for before in 0..3_usize {
                    // For each alignment in a longer text, without the characters that also depend on the adjacent
                    // bytes.
                    let encoded = engine.encode([vec![0; before], text.clone().into_bytes()].concat());
                    let (first, last) = ((before * 8).div_ceil(6), (before + text.len()) * 8 / 6);
                    needles.push((text.clone(), encoded[first..last].to_owned()));
                }
            }
        }
        Self(needles)
    }

    /// The secrets that this text contains, in whatever form.
    fn seen_in(&self, text: &str) -> Vec<&str> {
        let lower = text.to_lowercase();
        let seen = self.0.iter().filter(|(_, form)| text.contains(form) || lower.contains(form));
        seen.map(|(text, _)| text.as_str()).collect()
    }
}

/// A server that answers each request with these bytes, or with the request itself, and closes the connection.
async fn raw(answer: Option<&'static str>) -> u16 {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 8192];
            let length = stream.read(&mut request).await.unwrap_or_default();
            let _ = stream.write_all(answer.map_or(&request[..length], str::as_bytes)).await;
        }
    });
    port
}

/// An HTTP/2 server that ends each connection with this debug data.
async fn going_away(ca: &Ca, words: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut config = (*tls::config(&ca.issue("localhost"), None)).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            // RFC 9113: empty SETTINGS (6.5), then GOAWAY (6.8) with INTERNAL_ERROR and debug data.
            let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
            frames.extend([0, 0, 8 + words.len() as u8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
            frames.extend(words.bytes());
            let _ = stream.write_all(&frames).await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    });
    port
}

/// The endpoints of a scenario, and the contents of its Secrets.
struct Scenario {
    scene: Scene,
    receiver: Receiver,
    _plain: Receiver,
    /// Webhooks that send: acknowledged, and failing.
    acknowledged: Vec<&'static str>,
    failing: Vec<(&'static str, &'static str)>,
    /// Webhooks that cannot send, and why.
    unready: Vec<(&'static str, &'static str)>,
    needles: Needles,
    _closed: Closed,
    _endpoints: (Endpoint, Endpoint, Endpoint),
}

fn policy(mut spec: Value) -> Value {
    let backoff = json!({"initial": "50ms", "factor": 1, "max": "50ms"});
    spec["delivery"] = json!({"maxRetries": 1, "timeout": "1s", "backoff": backoff});
    spec
}

fn headers() -> Value {
    json!([{"name": "Authorization", "valueFrom": from("headers", "token")}])
}

impl Scenario {
    #[allow(clippy::too_many_lines)]
    async fn prepare(scene: Scene) -> Self {
        let objects = RefCell::new(Vec::new());
        let apply = |object: Value| objects.borrow_mut().push(object);
        // The receiver repeats the request in all parts of the response that can hold it.
        let receiver = Receiver::at(HOST, |post: &Received| {
            let answer = match post.path.rsplit('-').next().unwrap().parse() {
                Ok(status) => Answer::status(status),
                Err(_) => Answer::status(200),
            };
            let answer = if post.path.ends_with("slow-200") { answer.after(Duration::from_secs(3)) } else { answer };
            let answer = answer.header("Location", "https://quokkasecret-elsewhere.example/quokkasecret");
            answer.header("Retry-After", WORD).header("X-Said", post.header("authorization"))
        })
        .await;
        let closed = Closed::reserve();
        let (ca, other_ca) = (Ca::new(), Ca::new());
        let untrusted = Endpoint::start(&other_ca.issue("localhost"), None).await;
        let misnamed = Endpoint::start(&ca.issue("quokkasecret.example.com"), None).await;
        let demanding = Endpoint::start(&ca.issue("localhost"), Some(&ca)).await;
        let going_away = going_away(&ca, "quokkasecret-goodbye").await;
        let client = other_ca.issue("quokkasecret-client");
        apply(tls::bundle("ca", &ca));
        apply(client.secret("client"));
        apply(secret("keys", false, &json!({"secret": KEY, "previous": OLD_KEY})));
        apply(secret("headers", true, &json!({"token": TOKEN})));
        let key = json!({"secretRef": {"name": "keys"}});
        let trusting = json!({"caBundleRef": {"kind": "ConfigMap", "name": "ca"}});

        let to = |name: &str, url: String, fields: Value| {
            apply(secret(name, true, &json!({"url": url})));
            let mut spec = policy(fields);
            spec["headers"] = headers();
            spec["secretRef"] = key["secretRef"].clone();
            apply(url_from(name, name, &spec));
        };
        let at = |path: &str| format!("http://{HOST}:{}/quokkasecret-{path}?t=quokkasecret", receiver.port);
        let secure = |port: u16| format!("https://localhost:{port}/quokkasecret");
        to("good", at("ok"), json!({}));
        to("good-standard", at("ok"), json!({"format": "StandardWebhooks"}));
        to("good-cloud-events", at("ok"), json!({"format": "CloudEvents"}));
        to("unauthorized", at("401"), json!({}));
        to("not-found", at("404"), json!({}));
        to("broken", at("500"), json!({}));
        to("redirecting", at("302"), json!({}));
        to("gone", at("410"), json!({}));
        to("slow", at("slow-200"), json!({}));
        to("unknown-host", "http://quokkasecret-host.invalid/quokkasecret".into(), json!({}));
        to("closed", format!("http://127.0.0.1:{}/quokkasecret", closed.port), json!({}));
        to("echoing", format!("http://{HOST}:{}/quokkasecret", raw(None).await), json!({}));
        let phrase = raw(Some("HTTP/1.1 500 quokkasecret\r\nContent-Length: 12\r\n\r\nquokkasecret")).await;
        to("phrasing", format!("http://{HOST}:{phrase}/quokkasecret"), json!({}));
        to("off-limits", format!("http://{REFUSED_HOST}/quokkasecret"), json!({}));
        to("untrusted", secure(untrusted.port), json!({}));
        to("misnamed", secure(misnamed.port), json!({"tls": trusting}));
        let mut showing = trusting.clone();
        showing["clientCertificateRef"] = json!({"name": "client"});
        to("demanding", secure(demanding.port), json!({"tls": showing}));
        to("going-away", secure(going_away), json!({"tls": trusting}));
        let mut shown = policy(key.clone());
        shown["headers"] = headers();
        let plain = Receiver::answering(|post: &Received| {
            let said = post.header("authorization").replace("Bearer ", "");
            Answer::status(307).header("Location", &format!("https://{said}.example/"))
        })
        .await;
        apply(webhook("repeating", &plain.url(), &shown));
        let mut going = shown.clone();
        going["tls"] = trusting.clone();
        apply(webhook("repeating-goodbye", &format!("https://localhost:{going_away}/"), &going));

        for (name, url) in [
            ("with-password", "https://quokkasecret:quokkasecret@example.com/"),
            ("with-fragment", "https://example.com/#quokkasecret"),
            ("no-url", "quokkasecret"),
            ("no-port", "https://quokkasecret.example.com:quokkasecret/"),
            ("two-lines", "https://quokkasecret.example.com\nquokkasecret"),
        ] {
            to(name, url.into(), json!({}));
        }
        let of = |name: &str, spec: Value| apply(webhook(name, "https://ci.example.com", &policy(spec)));
        let valued = |name: &str| json!([{"name": "X-Said", "valueFrom": from(name, "token")}]);
        apply(secret("two-line-header", true, &json!({"token": "quokkasecret\r\nX-Forged: quokkasecret"})));
        of("two-line-header", json!({"headers": valued("two-line-header")}));
        let binary = STANDARD.encode([WORD.as_bytes(), &[0xff, 0, 0x80]].concat());
        let labels = json!({"llmtune.io/send-in-clear": "true"});
        apply(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "binary", "labels": labels}, "data": {"token": binary, "url": binary}
        }));
        of("binary-header", json!({"headers": valued("binary")}));
        apply(url_from("binary-url", "binary", &json!({})));
        apply(secret("unlabelled", false, &json!({"token": WORD, "url": "https://quokkasecret.example.com"})));
        of("unlabelled-header", json!({"headers": valued("unlabelled")}));
        apply(url_from("unlabelled-url", "unlabelled", &json!({})));
        apply(secret("no-whsec", false, &json!({"secret": "whsec_quokkasecret!"})));
        of("no-whsec", json!({"format": "StandardWebhooks", "secretRef": {"name": "no-whsec"}}));
        apply(secret(
            "no-pem",
            false,
            &json!({
                "ca.crt": "-----BEGIN CERTIFICATE-----\nquokkasecret\n-----END CERTIFICATE-----",
                "tls.crt": "-----BEGIN CERTIFICATE-----\nquokkasecret\n-----END CERTIFICATE-----",
                "tls.key": "quokkasecret"
            }),
        ));
        of("no-bundle", json!({"tls": {"caBundleRef": {"kind": "Secret", "name": "no-pem"}}}));
        of("no-certificate", json!({"tls": {"clientCertificateRef": {"name": "no-pem"}}}));
        let mut mismatched = client.secret("mismatched");
        mismatched["stringData"]["tls.key"] = KeyPair::generate().unwrap().serialize_pem().into();
        apply(mismatched);
        of("mismatched", json!({"tls": {"clientCertificateRef": {"name": "mismatched"}}}));

        scene.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects.take()}));

        // Whole lines only, because short ones may occur anywhere. The certificate's issuer is not secret.
        let (pem, public) = (client.key.serialize_pem() + &client.certificate.pem(), ca.0.pem());
        let lines = pem.lines().filter(|line| line.len() == 64 && !public.contains(line)).map(str::to_owned);
        let mut texts: Vec<String> = [WORD, HOST, REFUSED_HOST].map(str::to_owned).into();
        texts.extend(lines);
        Self {
            scene,
            receiver,
            _plain: plain,
            acknowledged: vec!["good", "good-standard", "good-cloud-events"],
            failing: vec![
                ("unauthorized", "HTTP 401"),
                ("not-found", "HTTP 404"),
                ("broken", "HTTP 500"),
                ("redirecting", "HTTP 302"),
                ("gone", "HTTP 410"),
                ("slow", "no answer within 1 s"),
                ("unknown-host", "cannot find the host of the URL that spec.urlFrom names"),
                ("closed", "Connection refused"),
                ("echoing", "the connection broke"),
                ("phrasing", "HTTP 500"),
                ("off-limits", "address refused"),
                ("untrusted", "signed by an unknown authority"),
                ("misnamed", "is not for the host in the URL that spec.urlFrom names"),
                ("demanding", "refuses the client certificate"),
                ("going-away", "the connection broke"),
                ("repeating", "HTTP 307"),
                ("repeating-goodbye", "the connection broke"),
            ],
            unready: vec![
                ("with-password", "InvalidURL"),
                ("with-fragment", "InvalidURL"),
                ("no-url", "InvalidURL"),
                ("no-port", "InvalidURL"),
                ("two-lines", "InvalidURL"),
                ("two-line-header", "InvalidHeader"),
                ("binary-header", "InvalidHeader"),
                ("binary-url", "InvalidURL"),
                ("unlabelled-header", "SendInClearNotAllowed"),
                ("unlabelled-url", "SendInClearNotAllowed"),
                ("no-whsec", "InvalidSecret"),
                ("no-bundle", "CABundleInvalid"),
                ("no-certificate", "ClientCertificateInvalid"),
                ("mismatched", "ClientCertificateInvalid"),
            ],
            needles: Needles::of(&texts),
            _closed: closed,
            _endpoints: (untrusted, misnamed, demanding),
        }
    }

    /// Events, tests and redeliveries to all of them.
    async fn play(&self) {
        let Self { scene, .. } = self;
        for (name, reason) in &self.unready {
            scene.wait_condition(name, "Ready", "False", reason, SOON).await;
        }
        let live = self.acknowledged.iter().chain(self.failing.iter().map(|(name, _)| name));
        for name in live.clone() {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        scene.job("llama");
        scene.phase("llama", "Running");
        scene.phase("llama", "Completed");
        let list = || -> Vec<Value> {
            let list: Value = serde_json::from_str(&scene.kubectl(&["get", "whd", "-o", "json"])).unwrap();
            list["items"].as_array().unwrap().clone()
        };
        let kept = 2 * self.failing.len();
        eventually("what failed is kept", SOON, || async { (list().len() == kept).then_some(()) }).await;
        scene.kubectl(&["annotate", "whd", "--all", "llmtune.io/redeliver-requested-at=now"]);
        for name in live {
            scene.apply(&json!({
                "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": format!("try-{name}")},
                "spec": {"webhookRef": {"name": name}, "test": {"event": "training.completed"}}
            }));
        }
        eventually("all is answered", SOON * 2, || async {
            let answered = list().iter().all(|object| match object["metadata"]["annotations"].as_object() {
                Some(annotations) if annotations.contains_key("llmtune.io/redeliver-requested-at") => {
                    object["status"]["lastHandledRedeliverAt"] == "now"
                }
                _ => object["status"]["finishedAt"].is_string(),
            });
            answered.then_some(())
        })
        .await;
        for name in &self.acknowledged {
            scene.wait_condition(name, "Healthy", "True", "Acknowledged", SOON).await;
        }
        for (name, says) in &self.failing {
            let status = scene.get("webhook", name)["status"].clone();
            let error = status["lastFailure"]["error"].as_str().unwrap();
            assert!(error.contains(says), "{name}: {error}");
        }
        // A Secret is deleted while it is used. The cached copy may be used for a few seconds after a refusal.
        scene.kubectl(&["delete", "secret", "not-found"]);
        scene.job("mistral");
        eventually("the Secret is missed", SOON * 2, || async {
            let now = jiff::Timestamp::now().to_string();
            scene.job_status("mistral", &json!({"phase": "Running", "startedAt": now}));
            (scene.condition("not-found", "Ready")?.1 == "URLSecretNotFound").then_some(())
        })
        .await;
    }

    /// All output of the operator, except for Secrets.
    fn output(&self, operator: &mut Operator) -> Vec<(String, String)> {
        let mut output = vec![("the metrics".to_owned(), operator.metrics())];
        for path in ["/readyz", "/healthz"] {
            output.push((path.to_owned(), operator.get(path).unwrap().1));
        }
        operator.stop();
        output.push(("the log".to_owned(), operator.process.log_text()));
        let kinds = self.scene.kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
        for kind in kinds.lines().filter(|kind| *kind != "secrets") {
            let objects = self.scene.kubectl(&["get", kind, "-A", "--show-managed-fields", "-o", "json"]);
            if kind == "ledgersegments.llmtune.io" {
                output.extend(segments(&objects).into_iter().map(|text| ("a segment of the ledger".to_owned(), text)));
            }
            output.push((kind.to_owned(), objects));
        }
        output
    }
}

/// The contents of segments.
fn segments(list: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(list).unwrap();
    let segments = list["items"].as_array().unwrap().iter();
    let unpacked = segments.map(|segment| {
        let packed = STANDARD.decode(segment["spec"]["data"].as_str().unwrap()).unwrap();
        let mut text = String::new();
        zstd::stream::read::Decoder::new(&packed[..]).unwrap().read_to_string(&mut text).unwrap();
        text
    });
    unpacked.collect()
}

fn nothing_is_seen(format: &str) {
    run(async {
        let scenario = Scenario::prepare(Scene::alone("untold").await).await;
        let options = scenario.scene.options().log("trace").argument(&format!("--log-format={format}"));
        let mut operator = Operator::start_ready(&scenario.scene.plane, &options).await;
        scenario.play().await;
        let sent = format!("{:?}", scenario.receiver.received());
        assert!(!scenario.needles.seen_in(&sent).is_empty(), "the receiver was sent what is searched for");
        let secrets = scenario.scene.kubectl(&["get", "secrets", "-o", "json"]);
        let seen = scenario.needles.seen_in(&secrets);
        for needle in [WORD, HOST, REFUSED_HOST] {
            assert!(seen.contains(&needle), "{needle} is found where it is, in base64");
        }

        let output = scenario.output(&mut operator);
        let bytes: usize = output.iter().map(|(_, text)| text.len()).sum();
        println!("{} outputs of {bytes} bytes, searched for {} forms", output.len(), scenario.needles.0.len());
        assert!(output.iter().any(|(what, text)| what == "a segment of the ledger" && text.contains("llama")));
        assert!(output.iter().any(|(what, text)| what == "the log" && text.contains("TRACE")));
        for (what, text) in &output {
            let seen = scenario.needles.seen_in(text);
            let lines = text.lines().filter(|line| !scenario.needles.seen_in(line).is_empty());
            assert!(seen.is_empty(), "{what}: {seen:?}\n{}", lines.take(5).collect::<Vec<_>>().join("\n"));
        }
    });
}

#[test]
fn no_output_contains_secrets_with_text_logs() {
    nothing_is_seen("text");
}

#[test]
fn no_output_contains_secrets_with_json_logs() {
    nothing_is_seen("json");
}
