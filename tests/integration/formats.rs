//! Deliveries in the formats of others, read by their official libraries.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use llmtune_webhooks_harness::receiver::{Answer, Received, Receiver};
use serde_json::{Value, json};

use crate::support::{SOON, Scene, libraries, node, python, run};

fn whsec(byte: u8, length: usize) -> String {
    format!("whsec_{}", STANDARD.encode(vec![byte; length]))
}

fn headers(request: &Received) -> BTreeMap<&str, &str> {
    request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

/// A request for a library to read.
fn asked(library: &str, secret: &str, request: &Received) -> Value {
    json!({"library": library, "secret": secret, "headers": headers(request), "body": request.body})
}

/// What the libraries for JavaScript and for Python make of these requests.
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
fn the_official_libraries_verify_every_standard_webhook_and_refuse_a_forged_one() {
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
fn a_secret_that_is_none_of_standard_webhooks_stalls_the_webhook_until_it_is_one() {
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
fn a_standard_webhook_without_a_secret_is_refused_and_so_are_options_of_another_format() {
    run(async {
        let scene = Scene::new("format-rules").await;
        let refusal =
            |spec: &Value| scene.try_apply(&crate::support::webhook("hook", "http://a.example", spec)).unwrap_err();
        let message = refusal(&json!({"format": "StandardWebhooks"}));
        assert!(message.contains("name the Secret in spec.secretRef"), "{message}");
        let message = refusal(&json!({"cloudEvents": {"mode": "Binary"}}));
        assert!(message.contains("write that format, or remove spec.cloudEvents"), "{message}");
        let message = refusal(&json!({"format": "GitHub"}));
        assert!(message.contains("\"LLMTune\", \"StandardWebhooks\", \"CloudEvents\""), "{message}");
        scene.webhook("hook", "http://a.example", &json!({}));
        assert_eq!(scene.get("webhook", "hook")["spec"]["format"], "LLMTune");
    });
}
