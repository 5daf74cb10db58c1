//! Objects that come into view are not news: a version that is served again, a label that is added, an object restored
//! from a backup.

use std::time::Duration;

use llmtune_webhooks_harness::{eventually, operator::Operator, receiver::Receiver};
use serde_json::{Value, json};

use crate::support::{SOON, Scene, run};

/// Time until a version that is no longer served is believed missing, and until the effects.
const LATER: Duration = Duration::from_secs(90);
/// An object must be this much older than the watch's last event: clocks may differ by a minute.
const OLD: Duration = Duration::from_secs(62);

/// A definition of `Training` in group `example.com`, of which `v1beta1` is served or not.
fn definition(beta: bool) -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let version = |name: &str, served, storage| json!({"name": name, "served": served, "storage": storage, "schema": schema, "subresources": {"status": {}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "trainings.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "trainings", "singular": "training", "kind": "Training", "listKind": "TrainingList"},
            "versions": [version("v1", true, true), version("v1beta1", beta, false)]
        }
    })
}

fn source(version: &str) -> Value {
    json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookSource", "metadata": {"name": "trainings"},
        "spec": {
            "resource": {"apiVersion": format!("example.com/{version}"), "kind": "Training"},
            "lifecycle": "Training", "selector": {"matchLabels": {"notify": "yes"}},
            "stages": [
                {"stage": "Completed", "when": "object.status.phase == 'Done'"},
                {"stage": "Running", "when": "object.status.phase == 'Busy'"}
            ]
        }
    })
}

fn grant(scene: &Scene, verbs: &[&str]) {
    scene.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "trainings"},
        "rules": [{"apiGroups": ["example.com"], "resources": ["trainings"], "verbs": verbs}]
    }));
    scene.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "trainings"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "trainings"},
        "subjects": [{"kind": "ServiceAccount", "name": "llmtune-webhooks", "namespace": scene.namespace}]
    }));
}

fn create(scene: &Scene, name: &str, labels: &Value) {
    let metadata = json!({"name": name, "labels": labels});
    scene.apply(&json!({"apiVersion": "example.com/v1", "kind": "Training", "metadata": metadata}));
}

fn phase(scene: &Scene, name: &str, phase: &str) {
    let patch = json!({"status": {"phase": phase}}).to_string();
    scene.kubectl(&["patch", "trainings.v1.example.com", name, "--subresource=status", "--type=merge", "-p", &patch]);
}

async fn ready(scene: &Scene, status: &str, reason: &str) -> String {
    eventually(&format!("Ready={status} ({reason})"), LATER, || async {
        let object = scene.get("webhooksource", "trainings");
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let found = conditions.into_iter().find(|condition| condition["type"] == "Ready")?;
        (found["status"] == status && found["reason"] == reason).then(|| found["message"].as_str().unwrap().to_owned())
    })
    .await
}

#[test]
fn version_served_again_continues() {
    run(async {
        let scene = Scene::alone("sight-version").await;
        scene.apply(&definition(true));
        scene.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "trainings.example.com"]);
        grant(&scene, &["get", "list", "watch"]);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        scene.apply(&source("v1beta1"));
        let _operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        ready(&scene, "True", "Watching").await;
        let yes = json!({"notify": "yes"});
        for name in ["done", "goes-on", "goes"] {
            create(&scene, name, &yes);
            phase(&scene, name, "Busy");
            receiver.wait_for("training.started", name, SOON).await;
        }
        phase(&scene, "done", "Done");
        receiver.wait_for("training.completed", "done", SOON).await;

        scene.apply(&definition(false));
        ready(&scene, "False", "NotInstalled").await;
        phase(&scene, "goes-on", "Done");
        scene.kubectl(&["delete", "trainings.v1.example.com", "goes"]);
        create(&scene, "new", &yes);
        phase(&scene, "new", "Busy");
        scene.apply(&definition(true));
        ready(&scene, "True", "Watching").await;
        receiver.wait_for("training.completed", "goes-on", SOON).await;
        receiver.wait_for("training.started", "new", SOON).await;

        // The source moves to another version, before or after the old version is removed.
        scene.apply(&definition(false));
        ready(&scene, "False", "NotInstalled").await;
        scene.apply(&source("v1"));
        ready(&scene, "True", "Watching").await;
        phase(&scene, "new", "Done");
        receiver.wait_for("training.completed", "new", SOON).await;
        assert_eq!(receiver.count(), 7, "{:?}", receiver.events());
    });
}

#[test]
fn labeled_or_restored_job_sends_nothing_of_its_past() {
    run(async {
        let scene = Scene::alone("sight-label").await;
        scene.apply(&definition(true));
        scene.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "trainings.example.com"]);
        grant(&scene, &["get", "list", "watch"]);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        scene.apply(&source("v1"));
        for (name, state) in [("finished", "Done"), ("running", "Busy")] {
            create(&scene, name, &json!({}));
            phase(&scene, name, state);
        }
        tokio::time::sleep(OLD).await;
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        ready(&scene, "True", "Watching").await;
        scene.kubectl(&["label", "training", "finished", "running", "notify=yes"]);

        // A TrainingJob is restored with its status.
        let past = json!({
            "phase": "Completed", "startedAt": "2025-11-08T12:00:05Z", "completedAt": "2025-11-08T14:22:30Z"
        });
        scene.job("restored");
        scene.job_status("restored", &past);
        phase(&scene, "running", "Done");
        receiver.wait_for("training.completed", "running", SOON).await;
        scene.job("last");
        scene.phase("last", "Running");
        receiver.wait_for("training.started", "last", SOON).await;
        assert_eq!(receiver.count(), 2, "{:?}", receiver.events());

        // A label that is removed and added again is no news either, even over a restart. A new transition is.
        scene.kubectl(&["label", "training", "finished", "notify-"]);
        operator.process.kill();
        operator.restart();
        operator.wait_ready().await;
        scene.kubectl(&["label", "training", "finished", "notify=yes"]);
        create(&scene, "new", &json!({"notify": "yes"}));
        phase(&scene, "new", "Busy");
        receiver.wait_for("training.started", "new", SOON).await;
        let ids: std::collections::HashSet<_> =
            receiver.received().iter().map(|post| post.event_id().to_owned()).collect();
        assert_eq!(ids.len(), 3, "{:?}", receiver.events());
    });
}

#[test]
fn source_without_get_right_reports_it_and_continues() {
    run(async {
        let scene = Scene::alone("sight-get").await;
        scene.apply(&definition(true));
        scene.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "trainings.example.com"]);
        grant(&scene, &["list", "watch"]);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        scene.apply(&source("v1"));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        let message = ready(&scene, "False", "Forbidden").await;
        println!("{message}");
        assert!(message.contains("verbs: [get, list, watch]"), "{message}");
        operator.wait_readyz("watching, without the right to get objects", SOON).await;
        let yes = json!({"notify": "yes"});
        for name in ["goes", "loses"] {
            create(&scene, name, &yes);
            phase(&scene, name, "Busy");
            receiver.wait_for("training.started", name, SOON).await;
        }
        scene.kubectl(&["delete", "training", "goes"]);
        scene.kubectl(&["label", "training", "loses", "notify-"]);
        create(&scene, "other", &yes);
        phase(&scene, "other", "Busy");
        receiver.wait_for("training.started", "other", SOON).await;
        grant(&scene, &["get", "list", "watch"]);
        let gone = receiver.wait_for("training.failed", "goes", SOON).await.json();
        assert_eq!(gone["data"]["status"], "cancelled");
        ready(&scene, "True", "Watching").await;
        assert_eq!(receiver.count(), 4, "{:?}", receiver.events());
    });
}
