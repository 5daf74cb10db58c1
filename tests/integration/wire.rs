//! The wire format: the body's bytes, compared with JavaScript's output, and the request's headers.

pub mod generated;

use std::{
    fs::{self, File},
    process::Command,
    sync::OnceLock,
};

use generated::{Payload, sample};
use jiff::Timestamp;
use llmtune_api::signature::sign;
use llmtune_core::event::{
    EventType,
    amount::{Amount, Level},
    body::MAX_BYTES,
    id::OccurrenceName,
    lifecycle::{Occurrence, Recalled},
    object::{Facts, Metric, Object, Uid, UsageFacts},
};
use llmtune_webhooks::source::{Source, deployment::Deployments, training_job::TrainingJobs};
use llmtune_webhooks_harness::{
    process::temporary_folder,
    receiver::{Answer, Received, Receiver},
    root,
};
use serde_json::{Value, json};

use crate::support::{SOON, Scene, run};

const SECRET: &str = "s3cret";
const GENERATED: usize = 12_000;
const SEED: u64 = 20_251_108;

/// The generated payloads, with their bodies.
fn generated() -> &'static [(Payload, String)] {
    static PAYLOADS: OnceLock<Vec<(Payload, String)>> = OnceLock::new();
    PAYLOADS.get_or_init(|| {
        let payloads = sample(&generated::payload(), GENERATED, SEED).into_iter();
        payloads.map(|payload| (payload.clone(), payload.body())).collect()
    })
}

/// Node compares each body with its own `JSON.stringify(JSON.parse(body))`, and checks the signature of both.
fn assert_node_agrees<'a>(signed: impl IntoIterator<Item = (String, &'a str)>) {
    let (signatures, bodies): (Vec<String>, Vec<&str>) = signed.into_iter().unzip();
    assert!(bodies.iter().all(|body| !body.contains('\n')), "a body has a line break");
    let lines = signatures.iter().zip(&bodies).map(|(signature, body)| format!("{signature} {body}\n"));
    let file = temporary_folder("bodies").join("lines");
    fs::write(&file, lines.collect::<String>()).unwrap();
    let script = root().join("tests/integration/wire/reserialize.mjs");
    let node = Command::new("node").arg(script).arg(SECRET).stdin(File::open(file).unwrap()).output().unwrap();
    assert!(node.status.success(), "{}", String::from_utf8_lossy(&node.stderr));
    let report = String::from_utf8(node.stdout).unwrap();
    let mut report: Vec<Value> = report.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(report.pop().unwrap(), json!({"lines": bodies.len()}));
    let body = |line: &Value| bodies[line["index"].as_u64().unwrap() as usize];
    if let Some(clearest) = report.iter().min_by_key(|line| body(line).len()) {
        let (count, total, body) = (report.len(), bodies.len(), body(clearest));
        let (made, verified) = (clearest["made"].as_str().unwrap(), &clearest["verified"]);
        panic!("Node disagrees with {count} bodies of {total}; the shortest:\n{body}\n{made}\nverified: {verified}");
    }
}

fn signed(body: &str) -> (String, &str) {
    (sign(SECRET.as_bytes(), body.as_bytes()), body)
}

#[test]
fn every_body_and_its_signature_survive_javascripts_parsing_and_stringifying() {
    assert_node_agrees(generated().iter().map(|(_, body)| signed(body)));
}

#[test]
fn body_ends_with_delivered_at_in_seconds() {
    for (payload, body) in generated() {
        let time = payload.delivered_at.strftime("%Y-%m-%dT%H:%M:%SZ");
        assert!(body.ends_with(&format!(",\"deliveredAt\":\"{time}\"}}")), "{body}");
    }
}

#[test]
fn body_over_256_kib_is_truncated_and_marked() {
    let mut truncated = 0;
    for (payload, body) in generated() {
        assert!(body.len() <= MAX_BYTES, "{} bytes", body.len());
        let value: Value = serde_json::from_str(body).unwrap();
        let data = payload.data().members;
        let mut lost: Vec<_> = data.iter().filter(|(name, _)| value["data"].get(name).is_none()).collect();
        if value.get("truncated").is_none() {
            assert!(lost.is_empty(), "{lost:?} of {body}");
            continue;
        }
        truncated += 1;
        assert_eq!(value["truncated"], true);
        assert!(value["data"].get("metrics").is_none(), "{body}");
        // Metrics are dropped first, then the largest member: the last dropped one would not have fitted.
        lost.sort_by_key(|(name, value)| (*name != "metrics", usize::MAX - value.len()));
        let (name, smallest) = lost.last().unwrap();
        assert!(body.len() + name.len() + smallest.len() + 4 > MAX_BYTES, "{name} went for nothing");
        let mut kept = data.iter().filter(|(name, _)| value["data"].get(name).is_some());
        let went_as_largest = kept.all(|(_, kept)| kept.len() <= smallest.len());
        assert!(*name == "metrics" || went_as_largest, "{name} went before a larger one");
    }
    assert!(truncated >= 50, "only {truncated} payloads were too long");
}

#[test]
fn texts_and_numbers_arrive_unchanged() {
    for (payload, body) in generated() {
        let value: Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["sequence"], payload.sequence);
        assert_eq!(value.get("cluster").and_then(Value::as_str), payload.cluster.as_deref());
        assert_eq!(value["data"]["name"], payload.object.name);
        assert_eq!(value["data"]["namespace"], payload.object.namespace);
        let Facts::Training(facts) = &payload.object.facts else { continue };
        let Some(values) = value["data"].get("metrics") else { continue };
        for (name, metric) in &facts.metrics {
            match (values.get(name), metric) {
                (actual, _) if name == "__proto__" => assert_eq!(actual, None),
                (actual, Metric::Number(number)) if !number.is_finite() => assert_eq!(actual, Some(&Value::Null)),
                (actual, Metric::Number(number)) => assert_eq!(actual.and_then(Value::as_f64), Some(*number)),
                (actual, Metric::Text(text)) => assert_eq!(actual.and_then(Value::as_str), Some(text.as_str())),
            }
        }
    }
}

#[test]
fn body_of_256_kib_is_sent_whole() {
    let body = |artifact: usize| {
        let status = json!({"artifact": "x".repeat(artifact)});
        second_body(job(&status), EventType::TrainingCompleted, Some("completed"), None)
    };
    let room = MAX_BYTES - body(0).len();
    assert_eq!(body(room).len(), MAX_BYTES);
    assert!(!body(room).contains("\"truncated\""));
    assert!(body(room + 1).contains("\"truncated\":true"));
}

#[test]
fn an_oversized_body_keeps_what_fits_without_its_metrics() {
    let kilobytes = |count: usize| "x".repeat(count * 1000);
    for (metrics, artifact, message, kept) in [
        (10, 100, 100, ["metrics", "artifact", "error"].as_slice()),
        (100, 10, 200, &["artifact", "error"]),
        (10, 150, 140, &["error"]),
        (10, 300, 280, &[]),
    ] {
        let status = json!({
            "metrics": {"log": kilobytes(metrics)}, "artifact": kilobytes(artifact), "message": kilobytes(message)
        });
        let body = second_body(job(&status), EventType::TrainingFailed, Some("failed"), None);
        let body: Value = serde_json::from_str(&body).unwrap();
        for name in ["metrics", "artifact", "error"] {
            assert_eq!(body["data"].get(name).is_some(), kept.contains(&name), "{name} of {kept:?}");
        }
        assert_eq!(body.get("truncated"), (kept.len() < 3).then_some(&json!(true)), "{kept:?}");
        assert_eq!(body["data"]["name"], "llama-sft");
    }
}

#[test]
fn a_metric_is_the_double_that_its_text_denotes() {
    for number in sample(&generated::number(), 10_000, SEED).into_iter().filter(|number| number.is_finite()) {
        let manifest = format!(
            r#"{{"metadata":{{"uid":"00000000-0000-0000-0000-000000000001","resourceVersion":"1"}},
            "status":{{"metrics":{{"short":{number:e},"long":{number}}}}}}}"#
        );
        let object = TrainingJobs::default().read(serde_json::from_str(&manifest).unwrap()).unwrap();
        let Facts::Training(facts) = object.facts else { panic!("training facts") };
        assert_eq!(facts.metrics["short"], Metric::Number(number), "{number:e}");
        assert_eq!(facts.metrics["long"], Metric::Number(number), "{number}");
    }
}

fn read<S: Source + Default>(manifest: Value) -> Object {
    S::default().read(serde_json::from_value(manifest).unwrap()).unwrap()
}

fn job(status: &Value) -> Object {
    read::<TrainingJobs>(json!({
        "metadata": {
            "name": "llama-sft", "namespace": "research", "uid": "6f1c1a52-93e5-4a0e-9d5a-0c5f5d7c2b11",
            "resourceVersion": "1041", "generation": 1, "creationTimestamp": "2025-11-08T12:00:00Z"
        },
        "spec": {"baseModel": "meta-llama/Llama-3.1-8B", "trainingMethod": "sft"},
        "status": status
    }))
}

fn deployment() -> Object {
    read::<Deployments>(json!({
        "metadata": {
            "name": "llama-chat", "namespace": "serving", "uid": "9b7d0f4e-1c33-4a57-8f44-55d4a7d0a9c2",
            "resourceVersion": "1042", "generation": 3, "creationTimestamp": "2025-11-08T12:00:00Z",
            "annotations": {
                "llmtune.io/deployment-id": "dep-42", "llmtune.io/environment": "production",
                "llmtune.io/endpoint-url": "https://llm.example.com/chat"
            }
        },
        "spec": {"template": {"metadata": {"annotations": {
            "llmtune.io/model-id": "llama-3.1-8b-sft", "llmtune.io/model-version": "7"
        }}}}
    }))
}

/// The body of the object's second event, observed and delivered within one second.
fn second_body(object: Object, event: EventType, status: Option<&'static str>, cluster: Option<&str>) -> String {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let (name, run) = match object.facts {
        Facts::Training(_) => (OccurrenceName::StartedAt(at("2025-11-08T12:00:05Z")), 1),
        Facts::Serving(_) => (OccurrenceName::Generation(3), 0),
        Facts::Usage(_) => (OccurrenceName::Threshold { threshold: "80%".into(), generation: 3 }, 0),
    };
    let payload = Payload {
        object,
        occurrence: Occurrence { event, name, count: 1, status, run, recalled: Recalled::default() },
        sequence: 2,
        cluster: cluster.map(str::to_owned),
        observed_at: at("2025-11-08T14:22:31.1234567Z"),
        delivered_at: at("2025-11-08T14:22:31.999Z"),
    };
    payload.body()
}

#[test]
fn a_completed_job_is_told_in_the_documented_order() {
    let status = json!({
        "jobId": "ft-7", "artifact": "s3://models/llama-sft-7", "metrics": {"loss": 0.25, "steps": 1200.0, "10": "NaN"},
        "startedAt": "2025-11-08T12:00:05Z", "completedAt": "2025-11-08T14:22:30Z"
    });
    assert_eq!(
        second_body(job(&status), EventType::TrainingCompleted, Some("completed"), None),
        concat!(
            r#"{"id":"evt_9d36481bebe19a78dc9aa3fde14f87ed","event":"training.completed","#,
            r#""data":{"jobId":"ft-7","name":"llama-sft","namespace":"research","#,
            r#""baseModel":"meta-llama/Llama-3.1-8B","trainingMethod":"sft","status":"completed","#,
            r#""artifact":"s3://models/llama-sft-7","#,
            r#""metrics":{"10":"NaN","loss":0.25,"steps":1200},"run":1,"createdAt":"2025-11-08T12:00:00Z","#,
            r#""startedAt":"2025-11-08T12:00:05Z","completedAt":"2025-11-08T14:22:30Z"},"#,
            r#""occurredAt":"2025-11-08T14:22:30Z","sequence":2,"deliveredAt":"2025-11-08T14:22:31Z"}"#,
        )
    );
}

#[test]
fn failed_job_has_its_error() {
    let status = json!({"reason": "OutOfMemory", "message": "rank 3: \"CUDA out of memory\"\n"});
    assert_eq!(
        second_body(job(&status), EventType::TrainingFailed, Some("failed"), Some("eu-1")),
        concat!(
            r#"{"id":"evt_d289fba843d9e1d6c9a2edb0e3fa8207","event":"training.failed","#,
            r#""data":{"jobId":"6f1c1a52-93e5-4a0e-9d5a-0c5f5d7c2b11","name":"llama-sft","namespace":"research","#,
            r#""baseModel":"meta-llama/Llama-3.1-8B","trainingMethod":"sft","status":"failed","#,
            r#""error":{"reason":"OutOfMemory","message":"rank 3: \"CUDA out of memory\"\n"},"#,
            r#""run":1,"createdAt":"2025-11-08T12:00:00Z"},"occurredAt":"2025-11-08T14:22:31.123Z","sequence":2,"#,
            r#""cluster":"eu-1","deliveredAt":"2025-11-08T14:22:31Z"}"#,
        )
    );
}

#[test]
fn deployment_events_have_model_and_endpoint() {
    for (event, name, id) in [
        (EventType::ModelDeployed, "model.deployed", "evt_7eddc07fbb54ddfd0f0f1b8ca76cfffb"),
        (EventType::DeploymentCreated, "deployment.created", "evt_9b308d5ad3496f7d0718fcd33e02f89c"),
        (EventType::DeploymentPaused, "deployment.paused", "evt_eb5ad1a3c96235e8e82708fbbae6303c"),
        (EventType::DeploymentResumed, "deployment.resumed", "evt_3202d9d34f66c9686c5b45b9d7abfccf"),
        (EventType::DeploymentDeleted, "deployment.deleted", "evt_1a318b74a1bd12ff17d727d8923819d5"),
    ] {
        let data = concat!(
            r#"{"deploymentId":"dep-42","name":"llama-chat","namespace":"serving","modelId":"llama-3.1-8b-sft","#,
            r#""version":"7","environment":"production","endpoint":"https://llm.example.com/chat"}"#
        );
        let expected = format!(
            "{{\"id\":\"{id}\",\"event\":\"{name}\",\"data\":{data},\"occurredAt\":\"2025-11-08T14:22:31.123Z\",\
             \"sequence\":2,\"deliveredAt\":\"2025-11-08T14:22:31Z\"}}"
        );
        assert_eq!(second_body(deployment(), event, None, None), expected);
    }
}

#[test]
fn threshold_event_has_numbers_and_the_spelled_threshold() {
    let amount = |text| Amount::quantity(text).unwrap();
    let usage = UsageFacts {
        metric: "sum(increase(llm_tokens_total{tenant='a'}[30d]))".into(),
        value: amount("0.83456789G"),
        limit: Some(amount("1G")),
        thresholds: vec![Level::parse("080.0%").unwrap()],
        unit: Some("tokens".into()),
        observed_at: "2025-11-08T14:22:30.5Z".parse().unwrap(),
        ..UsageFacts::default()
    };
    let object =
        Object::of_event(EventType::UsageThresholdReached, Uid::from_u128(7), "research".into(), "tokens".into());
    let object = Object { facts: Facts::Usage(usage), generation: 3, ..object };
    assert_eq!(
        second_body(object, EventType::UsageThresholdReached, None, None),
        concat!(
            r#"{"id":"evt_194774887f9eb3310f641f9c5cf57c08","event":"usage.threshold_reached","#,
            r#""data":{"name":"tokens","namespace":"research","#,
            r#""metric":"sum(increase(llm_tokens_total{tenant='a'}[30d]))","value":834567890,"limit":1000000000,"#,
            r#""percent":83.456,"threshold":"080.0%","unit":"tokens","observedAt":"2025-11-08T14:22:30.5Z"},"#,
            r#""occurredAt":"2025-11-08T14:22:30.5Z","sequence":2,"deliveredAt":"2025-11-08T14:22:31Z"}"#,
        )
    );
}

/// The value of a header that occurs exactly once.
fn once<'a>(request: &'a Received, name: &str) -> &'a str {
    let mut values = request.headers.get_all(name).iter();
    let value = values.next().unwrap_or_else(|| panic!("{name} is absent: {:?}", request.headers));
    assert!(values.next().is_none(), "{name} is there twice");
    value.to_str().unwrap()
}

fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|digits| {
        digits.len() == 32 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[test]
fn requests_have_the_documented_headers() {
    run(async {
        let scene = Scene::new("headers").await;
        let first_fails = |request: &Received| Answer::status(if request.attempt() == 1 { 500 } else { 200 });
        let (signed, plain) = (Receiver::answering(first_fails).await, Receiver::start().await);
        scene.secret("ci-hook", SECRET);
        let delivery = json!({"backoff": {"initial": "10ms"}});
        scene.webhook("signed", &signed.url(), &json!({"secretRef": {"name": "ci-hook"}, "delivery": delivery}));
        scene.webhook("plain", &plain.url(), &json!({}));
        let _operator = scene.operator().await;
        scene.wait("webhook/signed", "condition=Ready");
        scene.wait("webhook/plain", "condition=Ready");
        scene.job("llama");
        scene.phase("llama", "Running");
        let (signed, plain) = (signed.wait(2, SOON).await, plain.wait(1, SOON).await);

        for request in signed.iter().chain(&plain) {
            assert_eq!(once(request, "content-type"), "application/json");
            assert_eq!(once(request, "content-length"), request.body.len().to_string());
            assert!(request.headers.get("transfer-encoding").is_none());
            assert_eq!(once(request, "user-agent"), concat!("llmtune-webhooks/", env!("CARGO_PKG_VERSION")));
            assert_eq!(once(request, "x-llmtune-event"), "training.started");
            assert!(is_id(once(request, "x-llmtune-event-id"), "evt_"));
            assert!(is_id(once(request, "x-llmtune-delivery-id"), "dlv_"));
            let body = request.json();
            assert_eq!(body["id"], once(request, "x-llmtune-event-id"));
            assert_eq!(body["event"], once(request, "x-llmtune-event"));
        }

        let [first, second] = signed.as_slice() else { panic!("two attempts") };
        assert_eq!((once(first, "x-llmtune-attempt"), once(second, "x-llmtune-attempt")), ("1", "2"));
        assert_eq!(once(first, "x-llmtune-event-id"), once(second, "x-llmtune-event-id"));
        assert_eq!(once(first, "x-llmtune-delivery-id"), once(second, "x-llmtune-delivery-id"));
        assert_node_agrees(signed.iter().map(|request| {
            let signature = once(request, "x-llmtune-signature");
            assert_eq!(once(request, "x-hub-signature-256"), format!("sha256={signature}"));
            assert_eq!(once(request, "x-signature"), format!("sha256={signature}"));
            (signature.to_owned(), request.body.as_str())
        }));

        assert_eq!(once(&plain[0], "x-llmtune-attempt"), "1");
        assert_eq!(once(&plain[0], "x-llmtune-event-id"), once(first, "x-llmtune-event-id"));
        assert_ne!(once(&plain[0], "x-llmtune-delivery-id"), once(first, "x-llmtune-delivery-id"));
        for name in ["x-llmtune-signature", "x-hub-signature-256", "x-signature"] {
            assert!(plain[0].headers.get(name).is_none(), "{name} without a secret");
        }
    });
}
