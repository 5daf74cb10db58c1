//! Deliveries in external formats, read by their official libraries.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use llmtune_webhooks_harness::receiver::{Answer, Received, Receiver};
use serde_json::{Value, json};

use crate::support::{Jobs, SOON, Scene, libraries, node, python, run};

pub fn whsec(byte: u8, length: usize) -> String {
    format!("whsec_{}", STANDARD.encode(vec![byte; length]))
}

pub fn headers(request: &Received) -> BTreeMap<&str, &str> {
    request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

/// A request for a library to read.
fn asked(library: &str, secret: &str, request: &Received) -> Value {
    json!({"library": library, "secret": secret, "headers": headers(request), "body": request.body})
}

/// The results of the libraries for JavaScript and for Python.
fn read(requests: &[Value]) -> [(&'static str, Vec<Value>); 2] {
    let input = json!(requests).to_string();
    let folder = libraries("javascript");
    let javascript = node("tests/integration/formats/read.mjs", &[folder.to_str().unwrap()], &input);
    let python = python("tests/integration/formats/read.py", &libraries("python"), &input);
    [("JavaScript", javascript), ("Python", python)]
        .map(|(language, answers)| (language, serde_json::from_str(&answers).unwrap()))
}

fn verified_in_rust(secret: &str, request: &Received) -> bool {
    let webhook = standardwebhooks::Webhook::new(secret).unwrap();
    webhook.verify(request.body.as_bytes(), &request.headers).is_ok()
}

fn standard(secret: &str) -> Value {
    json!({"format": "StandardWebhooks", "secretRef": {"name": secret}})
}

#[test]
fn official_libraries_verify_standard_webhooks() {
    run(async {
        let scene = Scene::new("standard").await;
        let first_fails = |request: &Received| Answer::status(if request.attempt() == 1 { 500 } else { 200 });
        let (receiver, native) = (Receiver::answering(first_fails).await, Receiver::start().await);
        let secret = whsec(7, 32);
        scene.secret("ci-hook", &secret);
        let mut spec = standard("ci-hook");
        spec["delivery"] = json!({"backoff": {"initial": "10ms"}});
        scene.webhook("standard", &receiver.url(), &spec);
        scene.webhook("native", &native.url(), &json!({}));
        let options = scene.options().argument("--cluster-name=eu-1");
        let _operator = llmtune_webhooks_harness::operator::Operator::start_ready(&scene.plane, &options).await;
        scene.wait("webhook/standard", "condition=Ready");
        scene.wait("webhook/native", "condition=Ready");
        scene.job("llama");
        scene.phase("llama", "Running");
        let awkward = json!({"huge": 1e21, "one": 1.0, "10": 10, "line\u{2028}end": "\"\\\n😀", "loss": "NaN"});
        scene.job_status("llama", &json!({"phase": "Completed", "metrics": awkward}));
        let requests = receiver.wait(4, SOON).await;
        let native = native.wait(2, SOON).await;

        let sound = requests.iter().map(|request| asked("standardwebhooks", &secret, request));
        let mut forged: Vec<Value> = Vec::new();
        let request = asked("standardwebhooks", &secret, &requests[0]);
        for (header, value) in [
            ("webhook-id", "evt_00000000000000000000000000000000"),
            ("webhook-timestamp", "1"),
            ("webhook-signature", "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ] {
            let mut other = request.clone();
            other["headers"][header] = value.into();
            forged.push(other);
        }
        forged.push(asked("standardwebhooks", &whsec(8, 32), &requests[0]));
        let mut other = request;
        other["body"] = requests[0].body.replace("llama", "mallory").into();
        forged.push(other);

        let all: Vec<Value> = sound.chain(forged).collect();
        for (language, answers) in read(&all) {
            let (sound, forged) = answers.split_at(requests.len());
            for (answer, request) in sound.iter().zip(&requests) {
                assert_eq!(answer["read"], request.json(), "{language}: {answer}");
            }
            assert!(forged.iter().all(|answer| answer["refused"].is_string()), "{language}: {forged:?}");
        }
        for request in &requests {
            assert!(verified_in_rust(&secret, request));
            assert!(!verified_in_rust(&whsec(8, 32), request));
            assert_eq!(request.header("content-type"), "application/json");
            assert_eq!(request.header("webhook-id"), request.event_id());
            assert!(!request.event_id().contains('.'));
            assert!(request.headers.get("x-llmtune-signature").is_none(), "by which key?");
            let body = request.json();
            let of_native = native.iter().find(|other| other.event_id() == request.event_id()).unwrap().json();
            assert_eq!(
                body,
                json!({
                    "type": of_native["event"], "timestamp": of_native["occurredAt"], "data": of_native["data"],
                    "sequence": of_native["sequence"], "cluster": "eu-1"
                })
            );
        }
        let body =
            |id: &str| requests.iter().filter(|one| one.event_id() == id).map(|one| &one.body).collect::<Vec<_>>();
        for request in &native {
            let [first, second] = body(request.event_id())[..] else { panic!("two attempts") };
            assert_eq!(first, second, "every attempt says the same");
        }
    });
}

#[test]
fn every_accepted_secret_form_gives_the_same_key() {
    run(async {
        let scene = Scene::new("secret-forms").await;
        let receiver = Receiver::start().await;
        let key: Vec<u8> = (0..49).collect();
        let base64 = STANDARD.encode(&key);
        let unpadded = base64.trim_end_matches('=');
        let lines = |text: &str| {
            text.as_bytes().chunks(32).map(|line| str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\n")
        };
        // Whether the libraries for JavaScript and for Python accept the text as a secret.
        let forms = [
            ("prefixed", format!("whsec_{base64}"), [true, true]),
            ("bare", base64.clone(), [true, true]),
            ("unpadded", unpadded.to_owned(), [true, false]),
            ("wrapped", format!("whsec_{}", lines(&base64)), [false, true]),
            ("wrapped-bare", format!("{}\n", lines(&base64)), [false, true]),
            ("console", format!("v1,whsec_{base64}"), [false, false]),
            ("short", format!("whsec_{}", STANDARD.encode("sixteen bytes it")), [true, true]),
        ];
        for (name, text, _) in &forms {
            scene.secret(name, text);
            scene.webhook(name, &format!("{}/{name}", receiver.url()), &standard(name));
        }
        let _operator = scene.operator().await;
        for (name, ..) in &forms {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        scene.job("llama");
        scene.phase("llama", "Running");
        receiver.wait(forms.len(), SOON).await;
        for (name, text, taken) in &forms {
            let received = receiver.received();
            let request = received.iter().find(|request| request.path.ends_with(&format!("/{name}"))).unwrap();
            let plain = if *name == "short" { text.clone() } else { format!("whsec_{base64}") };
            assert!(verified_in_rust(&plain, request), "{name}");
            let of = |secret: &str| read(&[asked("standardwebhooks", secret, request)]).map(|(_, answers)| answers);
            for (language, answers) in read(&[asked("standardwebhooks", &plain, request)]) {
                assert!(answers[0]["read"].is_object(), "{name} in {language}: {answers:?}");
            }
            for (answers, taken) in of(text).iter().zip(taken) {
                assert!(!taken || answers[0]["read"].is_object(), "{name}: {answers:?}");
            }
        }
    });
}

#[test]
fn invalid_standard_webhooks_secret_stalls_until_fixed() {
    run(async {
        let scene = Scene::new("invalid-secret").await;
        let receiver = Receiver::start().await;
        scene.secret("ci-hook", "not-so-s3cret");
        scene.webhook("hook", &receiver.url(), &standard("ci-hook"));
        let operator = scene.operator().await;
        scene.wait_condition("hook", "Ready", "False", "InvalidSecret", SOON).await;
        scene.wait_condition("hook", "Stalled", "True", "InvalidSecret", SOON).await;
        let (_, _, message) = scene.condition("hook", "Ready").unwrap();
        assert!(message.contains("write whsec_ and the base64 of 24 to 64 random bytes"), "{message}");
        assert!(message.contains("it uses the URL-safe base64 alphabet"), "{message}");
        scene.job("llama");
        scene.phase("llama", "Running");
        let secret = whsec(9, 64);
        scene.secret("ci-hook", &format!("{secret}\n"));
        let requests = receiver.wait(1, SOON).await;
        assert!(verified_in_rust(&secret, &requests[0]), "what happened meanwhile waited");
        scene.wait_condition("hook", "Ready", "True", "Subscribed", SOON).await;
        for (reason, note) in scene.events("Webhook", "hook") {
            assert!(!note.contains("not-so-s3cret") && reason != "SecretEndsInNewline", "{reason}: {note}");
        }
        let log = operator.log();
        assert!(!log.contains("not-so-s3cret") && !log.contains(&secret), "{log}");
    });
}

#[test]
fn standard_webhooks_require_a_secret_and_matching_options() {
    run(async {
        let scene = Scene::new("format-rules").await;
        let refusal =
            |spec: &Value| scene.try_apply(&crate::support::webhook("hook", "http://a.example", spec)).unwrap_err();
        let message = refusal(&json!({"format": "StandardWebhooks"}));
        assert!(message.contains("set secretRef to a Secret"), "{message}");
        let message = refusal(&json!({"cloudEvents": {"mode": "Binary"}}));
        assert!(message.contains("set that format, or remove cloudEvents"), "{message}");
        let message = refusal(&json!({"format": "GitHub"}));
        assert!(message.contains("\"LLMTune\", \"StandardWebhooks\", \"CloudEvents\""), "{message}");
        scene.webhook("hook", "http://a.example", &json!({}));
        assert_eq!(scene.get("webhook", "hook")["spec"]["format"], "LLMTune");
    });
}

/// The `CloudEvent` of this native body, as the JavaScript library reads it.
fn expected(namespace: &str, lifecycle: &str, native: &Value) -> Value {
    let name = native["data"]["name"].as_str().unwrap();
    let mut event = json!({
        "specversion": "1.0",
        "id": native["id"],
        "type": format!("io.llmtune.{}", native["event"].as_str().unwrap()),
        "source": format!("/clusters/eu-1/namespaces/{namespace}/{lifecycle}/{name}"),
        "subject": name,
        "time": native["occurredAt"],
        "sequence": format!("{:010}", native["sequence"].as_u64().unwrap()),
        "cluster": "eu-1",
        "datacontenttype": "application/json",
        "data": native["data"],
    });
    for flag in ["test", "truncated"] {
        if native[flag] == true {
            event[flag] = true.into();
        }
    }
    event
}

/// The same event with times as instants, and with attributes parsed that headers can only carry as text.
fn normalized(event: &Value) -> Value {
    let mut event = event.clone();
    let time: jiff::Timestamp = event["time"].as_str().unwrap().parse().unwrap();
    event["time"] = time.to_string().into();
    for flag in ["test", "truncated"] {
        if event[flag] == "true" {
            event[flag] = true.into();
        }
    }
    event
}

#[test]
fn official_sdks_read_every_cloud_event() {
    run(async {
        let scene = Scene::new("cloudevents").await;
        let (structured, binary, native) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
        scene.secret("ci-hook", "s3cret");
        let spec = json!({"format": "CloudEvents", "secretRef": {"name": "ci-hook"}});
        scene.webhook("structured", &structured.url(), &spec);
        let mut spec = spec;
        spec["cloudEvents"] = json!({"mode": "Binary"});
        scene.webhook("binary", &binary.url(), &spec);
        scene.webhook("native", &native.url(), &json!({}));
        let options = scene.options().argument("--cluster-name=eu-1");
        let _operator = llmtune_webhooks_harness::operator::Operator::start_ready(&scene.plane, &options).await;
        for webhook in ["structured", "binary", "native"] {
            scene.wait(&format!("webhook/{webhook}"), "condition=Ready");
        }
        scene.job("llama");
        scene.phase("llama", "Running");
        let metrics = json!({"huge": 1e21, "one": 1.0, "10": 10, "line\u{2028}end": "\"\\\n😀", "loss": "NaN"});
        scene.job_status("llama", &json!({"phase": "Completed", "metrics": metrics}));
        scene.job("large");
        let metrics = json!({"log": "x".repeat(300_000)});
        // Too long for a command line.
        Jobs::new(&scene).await.status("large", &json!({"phase": "Completed", "metrics": metrics})).await;
        let received = native.wait(3, SOON).await;
        let mut requests = structured.wait(3, SOON).await;
        requests.extend(binary.wait(3, SOON).await);
        for webhook in ["structured", "binary"] {
            scene.apply(&json!({
                "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": format!("try-{webhook}")},
                "spec": {"webhookRef": {"kind": "Webhook", "name": webhook}, "test": {"event": "model.deployed"}}
            }));
            scene.wait(&format!("webhookdelivery/try-{webhook}"), "condition=Delivered");
        }
        let tests = [structured.wait(4, SOON).await.pop().unwrap(), binary.wait(4, SOON).await.pop().unwrap()];

        let all: Vec<Value> = requests.iter().chain(&tests).map(|request| asked("cloudevents", "", request)).collect();
        for (language, answers) in read(&all) {
            for (answer, request) in answers.iter().zip(&requests) {
                let native = received.iter().find(|other| other.event_id() == request.event_id()).unwrap();
                let expected = expected(&scene.namespace, "training", &native.json());
                assert_eq!(normalized(&answer["read"]), expected, "{language}: {answer}");
            }
            assert!(answers.iter().any(|answer| answer["read"]["data"]["name"] == "large"));
            for (answer, request) in answers[requests.len()..].iter().zip(&tests) {
                let event = normalized(&answer["read"]);
                assert_eq!(request.header("x-llmtune-test"), "true");
                assert_eq!((&event["test"], &event["type"]), (&json!(true), &json!("io.llmtune.model.deployed")));
                assert_eq!(event["source"], format!("/clusters/eu-1/namespaces/{}/serving/sample", scene.namespace));
            }
        }
        let truncated = received.iter().find(|request| request.name() == "large").unwrap();
        assert_eq!(truncated.json()["truncated"], true);
        for request in requests.iter().chain(&tests) {
            assert!(request.is_signed_with("s3cret"), "{}", request.body);
            assert_eq!(
                request.header("x-hub-signature-256"),
                format!("sha256={}", request.header("x-llmtune-signature"))
            );
            let binary = request.header("ce-id") == request.event_id();
            let content_type = if binary { "application/json" } else { "application/cloudevents+json" };
            assert_eq!(request.header("content-type"), content_type);
        }
    });
}

#[test]
fn redelivery_after_a_restart_is_identical_in_every_format() {
    run(async {
        let scene = Scene::new("formats-again").await;
        let secret = whsec(7, 24);
        scene.secret("ci-hook", &secret);
        let mut hooks = Vec::new();
        for (name, spec) in [
            ("standard", standard("ci-hook")),
            ("structured", json!({"format": "CloudEvents"})),
            ("binary", json!({"format": "CloudEvents", "cloudEvents": {"mode": "Binary"}})),
        ] {
            let receiver = Receiver::answering(|_| Answer::status(500)).await;
            let mut spec = spec;
            spec["delivery"] = json!({"maxRetries": 0});
            scene.webhook(name, &receiver.url(), &spec);
            hooks.push((name, receiver));
        }
        let mut operator = scene.operator().await;
        for (name, _) in &hooks {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        let jobs = Jobs::new(&scene).await;
        jobs.create("llama").await;
        jobs.start("llama").await;
        for (name, receiver) in &hooks {
            receiver.wait(1, SOON).await;
            let label = format!("llmtune.io/webhook={name}");
            llmtune_webhooks_harness::eventually("the delivery is kept", SOON, || async {
                let kept = scene.kubectl(&["get", "webhookdeliveries", "-l", &label, "-o", "name"]);
                (!kept.trim().is_empty()).then_some(())
            })
            .await;
        }
        operator.restart();
        operator.wait_ready().await;
        for (name, receiver) in &hooks {
            receiver.answer(|_| Answer::status(200));
            let label = format!("llmtune.io/webhook={name}");
            scene.kubectl(&["annotate", "webhookdelivery", "-l", &label, "llmtune.io/redeliver-requested-at=now"]);
            let requests = receiver.wait(2, SOON).await;
            assert_eq!(requests[0].body, requests[1].body, "{name}");
            let attributes = |request: &Received| -> Vec<(String, String)> {
                let headers = headers(request).into_iter().filter(|(header, _)| header.starts_with("ce-"));
                headers.map(|(header, value)| (header.to_owned(), value.to_owned())).collect()
            };
            assert_eq!(attributes(&requests[0]), attributes(&requests[1]));
            assert_eq!(attributes(&requests[0]).is_empty(), *name != "binary");
            assert!(*name != "standard" || verified_in_rust(&secret, &requests[1]));
        }
    });
}
