//! The JSON Schema that `llmtune-webhooks schema` prints: a validator (ajv) checks bodies against it.

use std::{collections::BTreeSet, process::Command};

use llmtune_core::event::{EventType, id::OccurrenceName, schema::schema};
use llmtune_webhooks_harness::receiver::{Received, Receiver};
use serde_json::{Value, json};

use crate::{
    sources::{deployment, rolled_out},
    support::{BINARY, Jobs, SOON, Scene, libraries, node, printed, run},
    usage_thresholds::manifest,
    wire::generated,
};

/// The schema without additional members.
fn closed() -> Value {
    fn close(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.values_mut().for_each(close);
                if map.contains_key("required") {
                    map.insert("additionalProperties".into(), false.into());
                }
            }
            Value::Array(items) => items.iter_mut().for_each(close),
            _ => {}
        }
    }
    let mut schema = schema();
    close(&mut schema);
    schema
}

/// Validates each value against the part of the closed schema at its pointer. Returns the errors.
fn validate(checks: &[(String, Value)]) -> Vec<Option<String>> {
    let checks: Vec<Value> = checks.iter().map(|(at, value)| json!({"at": at, "value": value})).collect();
    let input = json!({"schema": closed(), "checks": checks}).to_string();
    let folder = libraries("javascript");
    serde_json::from_str(&node("tests/integration/schema/validate.mjs", &[folder.to_str().unwrap()], &input)).unwrap()
}

fn assert_valid(checks: &[(String, Value)]) {
    for (wrong, (at, value)) in validate(checks).into_iter().zip(checks) {
        assert_eq!(wrong, None, "{at}: {value:#}");
    }
}

fn data_of(event: &str) -> String {
    format!("#/$defs/{event}")
}

#[test]
fn the_command_prints_the_schema() {
    let text = printed(Command::new(BINARY).arg("schema"), "");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), schema());
}

#[test]
fn schema_has_exactly_the_members_of_bodies() {
    let mut checks = Vec::new();
    let mut present = BTreeSet::new();
    for mut payload in generated::sample(&generated::payload(), 3_000, 7) {
        let event = payload.occurrence.event;
        let status: &[&str] = match event {
            EventType::TrainingStarted => &["running"],
            EventType::TrainingCompleted => &["completed"],
            _ => &["failed", "cancelled", "unknown"],
        };
        payload.occurrence.status = Some(status[checks.len() % status.len()]);
        if event == EventType::UsageThresholdReached {
            payload.occurrence.name = OccurrenceName::Threshold { threshold: "80%".into(), generation: 1 };
        }
        let body: Value = serde_json::from_str(&payload.body()).unwrap();
        // The generator produces names of arbitrary length; real names are bounded.
        if body["data"].get("name").is_some() && body["data"].get("namespace").is_some() {
            let members = body["data"].as_object().unwrap().keys();
            present.extend(members.map(|member| (event.name().to_owned(), member.clone())));
            checks.push((String::new(), body));
        }
    }
    assert_valid(&checks);
    let schema = schema();
    let known = EventType::ALL.into_iter().flat_map(|event| {
        let members = schema["$defs"][event.name()]["properties"].as_object().unwrap().keys();
        members.map(|member| (event.name().to_owned(), member.clone())).collect::<Vec<_>>()
    });
    assert_eq!(known.collect::<BTreeSet<_>>(), present);
}

#[test]
fn the_schema_refuses_what_is_no_body() {
    let payload = generated::sample(&generated::payload(), 1, 1).remove(0);
    let sound: Value = serde_json::from_str(&payload.body()).unwrap();
    let mut checks = vec![(String::new(), json!({}))];
    for (member, value) in [
        ("id", json!("evt_1")),
        ("event", json!("training.paused")),
        ("occurredAt", json!("yesterday")),
        ("deliveredAt", json!(7)),
        ("data", json!({"name": 1})),
        ("else", json!(true)),
    ] {
        let mut wrong = sound.clone();
        wrong[member] = value;
        checks.push((String::new(), wrong));
    }
    for (wrong, (_, value)) in validate(&checks).into_iter().zip(&checks) {
        assert!(wrong.is_some(), "{value:#}");
    }
}

#[test]
fn every_body_matches_the_schema_in_every_format() {
    run(async {
        let scene = Scene::new("schema").await;
        let formats = [
            ("native", json!({})),
            ("standard", json!({"format": "StandardWebhooks", "secretRef": {"name": "ci-hook"}})),
            ("structured", json!({"format": "CloudEvents"})),
            ("binary", json!({"format": "CloudEvents", "cloudEvents": {"mode": "Binary"}})),
        ];
        scene.secret("ci-hook", &crate::formats::whsec(7, 32));
        let mut receivers = Vec::new();
        for (name, spec) in &formats {
            let receiver = Receiver::start().await;
            scene.webhook(name, &receiver.url(), spec);
            receivers.push(receiver);
        }
        let options = scene.options().argument("--cluster-name=eu-1");
        let _operator = llmtune_webhooks_harness::operator::Operator::start_ready(&scene.plane, &options).await;
        for (name, _) in &formats {
            scene.wait(&format!("webhook/{name}"), "condition=Ready");
        }
        let mut count = 0;
        let mut expect = async |more: usize| {
            count += more;
            for receiver in &receivers {
                receiver.wait(count, SOON).await;
            }
        };

        let jobs = Jobs::new(&scene).await;
        for (name, phase) in [("good", "Completed"), ("bad", "Failed"), ("stopped", "Cancelled")] {
            jobs.create(name).await;
            jobs.start(name).await;
            let now = jiff::Timestamp::now().to_string();
            let status = json!({
                "phase": phase, "completedAt": now, "jobId": "ft-7", "artifact": "s3://a", "reason": "Why", "message": "for people",
                "metrics": {"loss": 0.5, "10": 1.0, "note": "NaN"}
            });
            jobs.status(name, &status).await;
        }
        jobs.create("large").await;
        jobs.status("large", &json!({"phase": "Completed", "metrics": {"log": "x".repeat(300_000)}})).await;
        expect(7).await;
        let scale = |replicas: i32| {
            scene.kubectl(&["scale", "deployment/llama", &format!("--replicas={replicas}")]);
            rolled_out(&scene, "llama");
        };
        scene.apply(&deployment("llama", 2, "1"));
        rolled_out(&scene, "llama");
        expect(2).await;
        scale(0);
        expect(1).await;
        scale(2);
        expect(1).await;
        scene.kubectl(&["delete", "deployment", "llama"]);
        expect(1).await;
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": "4"}}
        }));
        let status = json!({"status": {"hard": {"pods": "4"}, "used": {"pods": "3"}}}).to_string();
        scene.kubectl(&["patch", "resourcequota", "team", "--subresource=status", "--type=merge", "-p", &status]);
        let quota =
            json!({"resourceQuota": {"name": "team", "resource": "pods"}, "thresholds": ["50%"], "unit": "pods"});
        scene.apply(&manifest("pods", quota));
        expect(1).await;
        for (name, _) in &formats {
            for event in EventType::ALL.map(EventType::name) {
                let test = format!("try-{name}-{}", event.replace(['.', '_'], "-"));
                scene.apply(&json!({
                    "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": test},
                    "spec": {"webhookRef": {"kind": "Webhook", "name": name}, "test": {"event": event}}
                }));
            }
        }
        expect(9).await;

        let mut checks = Vec::new();
        for ((name, _), receiver) in formats.iter().zip(&receivers) {
            let received = receiver.received();
            let events: BTreeSet<String> = received.iter().map(Received::event).collect();
            assert_eq!(events, EventType::ALL.map(|event| event.name().to_owned()).into());
            for request in received {
                let (body, event) = (request.json(), request.event());
                match *name {
                    "native" => {
                        assert_eq!(body["truncated"] == true, request.name() == "large");
                        assert_eq!(body["test"] == true, request.header("x-llmtune-test") == "true");
                        checks.push((String::new(), body));
                    }
                    "binary" => checks.push((data_of(&event), body)),
                    _ => checks.push((data_of(&event), body["data"].clone())),
                }
            }
        }
        assert_valid(&checks);
        println!("{} bodies are as the schema says", checks.len());
    });
}
