//! Error messages for missing objects, rights and fields: each names the problem and the remedy, appears once, and
//! contains no dump.

use std::{process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use llmtune_webhooks_harness::{
    eventually,
    operator::{Operator, install_roles},
    process::{Process, free_port, temporary_folder},
    receiver::{Answer, Receiver},
    root,
};
use serde_json::{Value, json};

use crate::support::{BINARY, Jobs, SOON, Scene, run};

/// Removes the right to do `verb` on `resource` from the shipped roles.
fn without(scene: &Scene, verb: &str, resource: &str) {
    let role = scene.get("clusterrole", "llmtune-webhooks");
    let mut rules = role["rules"].clone();
    for rule in rules.as_array_mut().unwrap() {
        if rule["resources"].as_array().unwrap().contains(&json!(resource)) {
            rule["verbs"].as_array_mut().unwrap().retain(|known| known != verb);
        }
    }
    // A rule without verbs is invalid.
    rules.as_array_mut().unwrap().retain(|rule| !rule["verbs"].as_array().unwrap().is_empty());
    let patch = json!({"rules": rules}).to_string();
    scene.kubectl(&["patch", "clusterrole", "llmtune-webhooks", "--type=merge", "-p", &patch]);
}

fn without_dumps(log: &str) {
    for dump in ["Status {", "ApiError", "ServiceError", "Some(\"", "Custom {"] {
        assert!(!log.contains(dump), "the log holds {dump:?}:\n{log}");
    }
}

#[test]
fn dead_letter_waits_for_the_right_to_create_it() {
    run(async {
        let scene = Scene::alone("may-not-keep").await;
        let receiver = Receiver::answering(|_| Answer::status(500)).await;
        scene.webhook("ci", &receiver.url(), &json!({"delivery": {"maxRetries": 0}}));
        let operator = scene.operator().await;
        without(&scene, "create", "webhookdeliveries");
        let jobs = Jobs::new(&scene).await;
        for number in 0..20 {
            let name = format!("job-{number}");
            jobs.create(&name).await;
            jobs.phase(&name, "Running").await;
        }
        receiver.wait(20, SOON).await;
        operator.wait_log("cannot create resource \"webhookdeliveries\"", SOON).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let log = operator.log();
        assert!(log.contains("rbac.yaml"), "{log}");
        without_dumps(&log);
        let lines = log.matches("a WebhookDelivery was not created; trying again").count();
        assert!((1..=3).contains(&lines), "{lines} lines say so\n{log}");
        let dropped = || operator.metric("llmtune_webhooks_dropped_total", &[("webhook", "ci")]) as u64;
        assert_eq!(dropped(), 0);

        install_roles(&scene.plane, &scene.namespace);
        eventually("all twenty are kept", SOON, || async {
            (scene.kubectl(&["get", "whd", "-o", "name"]).lines().count() == 20).then_some(())
        })
        .await;
        assert_eq!(dropped(), 0);
    });
}

#[test]
fn forbidden_webhook_list_is_retried_and_shown_by_readyz() {
    run(async {
        let scene = Scene::alone("may-not-list").await;
        install_roles(&scene.plane, &scene.namespace);
        let mut operator = scene.operator().await;
        without(&scene, "list", "webhooks");
        operator.restart();
        operator.wait_log("cannot list resource \"webhooks\"", SOON).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let log = operator.log();
        without_dumps(&log);
        let lines = log.lines().filter(|line| line.contains("\"webhooks\"")).count();
        assert!(lines <= 8, "{lines} lines in 3 s\n{log}");
        assert!(log.contains("rbac.yaml"), "{log}");
        let (status, text) = operator.get("/readyz").unwrap();
        assert_eq!(status, 503);
        assert!(text.contains("listing Webhooks; if this lasts, see the log"), "{text}");
        assert_eq!(operator.get("/healthz").unwrap().0, 200, "a restart would not help");

        install_roles(&scene.plane, &scene.namespace);
        operator.wait_ready().await;
    });
}

#[test]
fn missing_namespace_is_reported_and_awaited() {
    run(async {
        let scene = Scene::alone("no-home").await;
        let port = free_port();
        let log = temporary_folder("operator").join("operator.log");
        let mut command = Command::new(BINARY);
        command
            .args(["run", "--namespace", "missing", "--lease-duration=6s", "--listen", &format!("127.0.0.1:{port}")])
            .env("KUBECONFIG", scene.plane.kubeconfig("admin"))
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy");
        let process = Process::start("operator", &mut command, &log);
        eventually("the log says what is missing", SOON, || async {
            process.log_text().contains("create the namespace, or set another with --namespace").then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (_, metrics) = llmtune_webhooks_harness::operator::get(port, "/metrics").unwrap();
        let asked = llmtune_webhooks_harness::operator::metric(
            &metrics,
            "llmtune_webhooks_api_requests_total",
            &[("resource", "leases")],
        ) as u64;
        assert!(asked < 20, "{asked} requests");
        scene.kubectl(&["create", "namespace", "missing"]);
        eventually("it leads", SOON, || async {
            let (_, ready) = llmtune_webhooks_harness::operator::get(port, "/readyz")?;
            ready.starts_with("leader").then_some(())
        })
        .await;
        without_dumps(&process.log_text());
    });
}

#[test]
fn missing_kind_is_named_with_the_file_to_apply() {
    run(async {
        let scene = Scene::alone("no-kinds").await;
        scene.kubectl(&["delete", "crd", "webhooks.llmtune.io", "webhookdeliveries.llmtune.io"]);
        let mut operator = Operator::start(&scene.plane, &scene.options()).await;
        for kind in ["Webhook", "WebhookDelivery"] {
            eventually(&format!("the log tells what to do about {kind}"), SOON, || async {
                let log = operator.log();
                let is_reported = |line: &str| line.contains(&format!("kind={kind} ")) && line.contains("(crds/)");
                log.lines().any(is_reported).then_some(())
            })
            .await;
        }
        without_dumps(&operator.log());
        scene.plane.install_crds();
        operator.wait_ready().await;
    });
}

#[test]
fn missing_ledger_kind_is_reported_and_awaited() {
    run(async {
        let scene = Scene::alone("no-ledger").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        scene.kubectl(&["delete", "crd", "ledgersegments.llmtune.io"]);
        let mut operator = Operator::start(&scene.plane, &scene.options()).await;
        let what = "LedgerSegment is not installed: apply the custom resource definitions of this release (crds/)";
        operator.wait_log(what, SOON).await;
        let (status, text) = operator.get("/readyz").unwrap();
        assert!(status == 503 && text.contains("reading the ledger; if this lasts, see the log"), "{text}");
        assert_eq!(operator.get("/healthz").unwrap().0, 200, "a restart would not help");
        scene.job("llama");
        scene.phase("llama", "Running");
        without_dumps(&operator.log());
        scene.plane.install_crds();
        operator.wait_ready().await;
        scene.phase("llama", "Completed");
        receiver.wait_for("training.completed", "llama", SOON).await;
        assert_eq!(receiver.count(), 1, "what came before is a baseline: {:?}", receiver.events());
    });
}

/// Runs an operator until it has delivered an event of a job. Returns its ledger's segments without the metadata that
/// depends on the namespace.
async fn left_behind(scene: &Scene, receiver: &Receiver) -> Vec<Value> {
    scene.webhook("ci", &receiver.url(), &json!({}));
    let mut operator = scene.operator().await;
    scene.job("llama");
    scene.phase("llama", "Running");
    receiver.wait_for("training.started", "llama", SOON).await;
    operator.stop();
    let list: Value = serde_json::from_str(&scene.kubectl(&["get", "ledgersegments", "-o", "json"])).unwrap();
    let segments = list["items"].as_array().unwrap().iter().map(|segment| {
        let (name, labels) = (&segment["metadata"]["name"], &segment["metadata"]["labels"]);
        let (version, kind) = (&segment["apiVersion"], &segment["kind"]);
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, "spec": segment["spec"]})
    });
    segments.collect()
}

/// The note of the Event about the Lease that a new epoch has begun.
async fn new_epoch(scene: &Scene) -> String {
    scene.wait_event("Lease", "llmtune-webhooks", "NewLedgerEpoch").await
}

#[test]
fn foreign_ledger_is_set_aside_and_reported() {
    run(async {
        let (home, other) = (Scene::new("home").await, Scene::new("moved").await);
        let receiver = Receiver::start().await;
        let segments = left_behind(&home, &receiver).await;
        for segment in &segments {
            other.apply(segment);
        }
        let elsewhere = Receiver::start().await;
        other.webhook("ci", &elsewhere.url(), &json!({}));
        other.job("old");
        other.phase("old", "Running");
        let operator = other.operator().await;
        let log = operator.log();
        assert!(log.contains("the stored ledger belongs to another installation, and is not used"), "{log}");
        without_dumps(&log);
        let note = new_epoch(&other).await;
        assert!(note.contains("compare the state of receivers with the objects"), "{note}");
        other.phase("old", "Completed");
        elsewhere.wait_for("training.completed", "old", SOON).await;
        assert_eq!(elsewhere.count(), 1, "{:?}", elsewhere.events());
        for segment in segments {
            let there = other.get("ledgersegment", segment["metadata"]["name"].as_str().unwrap());
            assert_eq!(there["spec"], segment["spec"], "it is not touched");
        }
    });
}

#[test]
fn newer_ledger_is_never_overwritten_and_reported() {
    run(async {
        let scene = Scene::new("newer").await;
        let receiver = Receiver::start().await;
        let segments = left_behind(&scene, &receiver).await;
        let mut newer = Vec::new();
        for segment in segments {
            let packed = STANDARD.decode(segment["spec"]["data"].as_str().unwrap()).unwrap();
            let text = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
            // A lifecycle of a later release.
            let later = text.replace("\"training\":{", "\"evaluation\":{");
            if later != text {
                let mut segment = segment;
                segment["spec"]["data"] = STANDARD.encode(zstd::encode_all(later.as_bytes(), 3).unwrap()).into();
                scene.apply(&segment);
                newer.push(segment);
            }
        }
        let names: Vec<&str> = newer.iter().map(|segment| segment["metadata"]["name"].as_str().unwrap()).collect();
        let operator = scene.operator().await;
        let log = operator.log();
        let said = |name: &&str| {
            log.contains(&format!(
                "segment {name} cannot be read, because it is damaged or was written by a newer release"
            ))
        };
        assert!(names.iter().any(said), "{names:?}\n{log}");
        without_dumps(&log);
        let note = eventually("the Event names it", SOON, || async {
            let events = scene.events("Lease", "llmtune-webhooks").into_iter();
            events.map(|(_, note)| note).find(|note| note.contains("written by a newer release"))
        })
        .await;
        assert!(note.contains("compare the state of receivers with the objects"), "{note}");
        scene.phase("llama", "Completed");
        receiver.wait_for("training.completed", "llama", SOON).await;
        assert_eq!(receiver.count(), 2, "{:?}", receiver.events());
        for (name, segment) in names.into_iter().zip(&newer) {
            assert_eq!(scene.get("ledgersegment", name)["spec"], segment["spec"], "it is not touched");
        }
    });
}

#[test]
fn dead_letters_of_a_terminating_namespace_are_dropped_and_reported() {
    run(async {
        let (home, leaving) = (Scene::alone("home").await, "leaving");
        home.kubectl(&["create", "namespace", leaving]);
        let leaving = Scene { plane: home.plane.clone(), namespace: leaving.into() };
        let receiver = Receiver::answering(|_| Answer::status(500)).await;
        leaving.webhook("ci", &receiver.url(), &json!({"delivery": {"maxRetries": 0}}));
        leaving.job("llama");
        let operator = Operator::start_ready(&home.plane, &home.options().cluster_wide()).await;
        // The namespace stays in deletion: this control plane has no controllers.
        home.kubectl(&["delete", "namespace", "leaving", "--wait=false"]);
        leaving.phase("llama", "Running");
        receiver.wait(1, SOON).await;
        let labels = [("namespace", "leaving"), ("webhook", "ci"), ("reason", "not_kept")];
        eventually("it is counted", SOON, || async {
            (operator.metric("llmtune_webhooks_dropped_total", &labels) as u64 == 1).then_some(())
        })
        .await;
        let log = operator.log();
        let is_reported =
            |line: &&str| line.contains("a WebhookDelivery was rejected") && line.contains("is being terminated");
        assert_eq!(log.lines().filter(is_reported).count(), 1, "{log}");
        without_dumps(&log);
        eventually("the status counts it", SOON, || async {
            (leaving.get("webhook", "ci")["status"]["deliveries"]["dropped"] == 1).then_some(())
        })
        .await;
    });
}

#[test]
fn older_ledger_definition_prevents_unreadable_writes() {
    run(async {
        let scene = Scene::alone("old-kinds").await;
        let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/leader";
        let patch = json!([{"op": "remove", "path": path}]).to_string();
        scene.kubectl(&["patch", "crd", "ledgersegments.llmtune.io", "--type=json", "-p", &patch]);
        let mut operator = Operator::start(&scene.plane, &scene.options()).await;
        operator.wait_log("the definition of LedgerSegment is another release's: apply", SOON).await;
        without_dumps(&operator.log());
        let (_, ready) = operator.get("/readyz").unwrap();
        assert!(ready.contains("reading the ledger; if this lasts, see the log"), "{ready}");
        assert_eq!(scene.kubectl(&["get", "ledgersegments", "-o", "name"]), "");
        let crds = root().join("crds");
        scene.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", crds.to_str().unwrap()]);
        operator.wait_ready().await;
    });
}

#[test]
fn expired_token_is_reported_without_stopping() {
    run(async {
        let scene = Scene::alone("expired").await;
        let kubeconfig = scene.plane.write_kubeconfig_for("expired", "no-token", scene.plane.port);
        let log = temporary_folder("operator").join("operator.log");
        let mut command = Command::new(BINARY);
        command.args(["run", "--listen", "127.0.0.1:0"]).env("KUBECONFIG", kubeconfig).env_remove("HTTPS_PROXY");
        let mut process = Process::start("operator", &mut command, &log);
        eventually("the log says what to renew", SOON, || async {
            process.log_text().contains("renew the token in KUBECONFIG").then_some(())
        })
        .await;
        without_dumps(&process.log_text());
        assert!(process.try_wait().is_none());
    });
}

#[test]
fn the_last_line_of_a_json_log_is_json_too() {
    let ca = root().join("Cargo.toml");
    let output = Command::new(BINARY)
        .args(["run", "--log-format=json", "--listen=127.0.0.1:0", "--ca-file", ca.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).expect(&text);
    assert_eq!(last["level"], "ERROR");
    assert!(last["message"].as_str().unwrap().contains("no PEM certificate"), "{text}");
}
