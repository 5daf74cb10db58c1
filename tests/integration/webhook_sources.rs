//! Custom kinds that users configure with `WebhookSource` objects.

use std::{sync::Arc, time::Duration};

use llmtune_webhooks_harness::{control_plane::ControlPlane, eventually, operator::Operator, receiver::Receiver};
use serde_json::{Value, json};

use crate::support::{SOON, Scene, run};

/// A definition of `Training` in group `example.com` that accepts everything.
fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "trainings.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "trainings", "singular": "training", "kind": "Training", "listKind": "TrainingList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}}}]
        }
    })
}

/// A source of `Training` objects; `spec` is merged over its own.
fn source(name: &str, spec: &Value) -> Value {
    let mut merged = json!({
        "resource": {"apiVersion": "example.com/v1", "kind": "Training"}, "lifecycle": "Training",
        "stages": [
            {"stage": "Completed", "when": "object.status.phase == 'Done'"},
            {"stage": "Failed", "when": "object.status.phase == 'Broken'"},
            {"stage": "Running", "when": "object.status.phase == 'Busy'"}
        ],
        "data": {"baseModel": "object.spec.model"}
    });
    for (key, value) in spec.as_object().unwrap() {
        merged[key] = value.clone();
    }
    json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookSource", "metadata": {"name": name}, "spec": merged})
}

fn install(scene: &Scene) {
    scene.apply(&definition());
    scene.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "trainings.example.com"]);
}

/// The rights of the aggregated role, as kube-controller-manager aggregates them.
fn grant(scene: &Scene) {
    scene.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "trainings"},
        "rules": [{"apiGroups": ["example.com"], "resources": ["trainings"], "verbs": ["get", "list", "watch"]}]
    }));
    scene.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "trainings"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "trainings"},
        "subjects": [{"kind": "ServiceAccount", "name": "llmtune-webhooks", "namespace": scene.namespace}]
    }));
}

fn create(scene: &Scene, name: &str, labels: &Value) {
    scene.apply(&json!({
        "apiVersion": "example.com/v1", "kind": "Training", "metadata": {"name": name, "labels": labels},
        "spec": {"model": "llama"}
    }));
}

fn phase(scene: &Scene, name: &str, phase: &Value) {
    let patch = json!({"status": {"phase": phase}}).to_string();
    scene.kubectl(&["patch", "training", name, "--subresource=status", "--type=merge", "-p", &patch]);
}

/// Waits until a condition of a source has this status and reason. Returns its message.
async fn condition(scene: &Scene, source: &str, kind: &str, status: &str, reason: &str) -> String {
    eventually(&format!("{kind}={status} ({reason}) of {source}"), SOON, || async {
        let object = scene.get("webhooksource", source);
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind)?;
        (found["status"] == status && found["reason"] == reason).then(|| found["message"].as_str().unwrap().to_owned())
    })
    .await
}

#[test]
fn a_source_takes_effect_changes_and_is_withdrawn_live() {
    run(async {
        let scene = Scene::alone("mapped").await;
        install(&scene);
        grant(&scene);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        create(&scene, "before", &json!({}));
        phase(&scene, "before", &json!("Busy"));
        scene.apply(&source("trainings", &json!({})));
        condition(&scene, "trainings", "Ready", "True", "Watching").await;
        operator.wait_readyz("Training (WebhookSource trainings) in all namespaces: watching", SOON).await;

        create(&scene, "a", &json!({}));
        phase(&scene, "a", &json!("Busy"));
        let started = receiver.wait_for("training.started", "a", SOON).await.json();
        assert_eq!(started["data"]["baseModel"], "llama");
        scene.kubectl(&["label", "training", "a", "noise=1"]);
        phase(&scene, "a", &json!("Warming"));
        phase(&scene, "before", &json!("Done"));
        receiver.wait_for("training.completed", "before", SOON).await;
        assert_eq!(receiver.count(), 2, "what was there before is a baseline: {:?}", receiver.events());

        // A change of `data` does not reset the records.
        scene.apply(&source("trainings", &json!({"data": {"baseModel": "'other'"}})));
        eventually("the new data is in force", SOON, || async {
            (scene.get("webhooksource", "trainings")["status"]["observedGeneration"] == 2).then_some(())
        })
        .await;
        phase(&scene, "a", &json!("Done"));
        let completed = receiver.wait_for("training.completed", "a", SOON).await.json();
        assert_eq!((&completed["data"]["baseModel"], &completed["data"]["run"]), (&json!("other"), &json!(1)));

        // While expressions are invalid, the last valid spec stays in force.
        let broken = json!([{"stage": "Running", "when": "object.status.phase = 'Busy'"}]);
        scene.apply(&source("trainings", &json!({"stages": broken})));
        let message = condition(&scene, "trainings", "Stalled", "True", "InvalidExpression").await;
        assert!(message.starts_with("spec.stages[0].when: "), "{message}");
        assert!(message.ends_with("the mapping of generation 2 stays in force"), "{message}");
        condition(&scene, "trainings", "Ready", "True", "Watching").await;
        create(&scene, "b", &json!({}));
        phase(&scene, "b", &json!("Busy"));
        receiver.wait_for("training.started", "b", SOON).await;
        scene.apply(&source("trainings", &json!({})));
        condition(&scene, "trainings", "Stalled", "False", "Working").await;
        condition(&scene, "trainings", "Ready", "True", "Watching").await;
        phase(&scene, "b", &json!("Broken"));
        receiver.wait_for("training.failed", "b", SOON).await;

        scene.kubectl(&["delete", "webhooksource", "trainings"]);
        operator.wait_log("the source is deleted", SOON).await;
        create(&scene, "c", &json!({}));
        phase(&scene, "c", &json!("Busy"));
        // A later event: the earlier ones have been processed when it arrives.
        scene.job("last");
        scene.phase("last", "Running");
        receiver.wait_for("training.started", "last", SOON).await;
        assert_eq!(receiver.count(), 6, "{:?}", receiver.events());
        assert!(!operator.get("/readyz").unwrap().1.contains("WebhookSource"));
    });
}

#[test]
fn source_catches_up_after_a_kill() {
    run(async {
        let scene = Scene::alone("mapped-late").await;
        grant(&scene);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        scene.apply(&source("trainings", &json!({"selector": {"matchLabels": {"team": "a"}}})));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        let message = condition(&scene, "trainings", "Ready", "False", "NotInstalled").await;
        assert!(message.contains("Training"), "{message}");
        assert_eq!(operator.get("/healthz").unwrap().0, 200);

        install(&scene);
        for name in ["early", "vanishes", "unlabelled"] {
            create(&scene, name, &json!({"team": "a"}));
            phase(&scene, name, &json!("Busy"));
            receiver.wait_for("training.started", name, SOON).await;
        }
        create(&scene, "other", &json!({"team": "b"}));
        phase(&scene, "other", &json!("Busy"));
        condition(&scene, "trainings", "Ready", "True", "Watching").await;
        eventually("all of it is in the ledger", SOON, || async {
            let text = scene.kubectl(&["get", "ledgersegments", "-o", "json"]);
            (operator.metric("llmtune_webhooks_ledger_records", &[]) >= 3.0 && text.contains("Journal")).then_some(())
        })
        .await;
        // Waits for the flush of the last record.
        eventually("the deliveries are settled", SOON, || async {
            (operator.metric("llmtune_webhooks_deliveries_total", &[("result", "delivered")]) >= 3.0).then_some(())
        })
        .await;

        operator.process.kill();
        phase(&scene, "early", &json!("Done"));
        scene.kubectl(&["delete", "training", "vanishes"]);
        scene.kubectl(&["label", "training", "unlabelled", "team-"]);
        operator.restart();
        operator.wait_ready().await;
        receiver.wait_for("training.completed", "early", SOON).await;
        let gone = receiver.wait_for("training.failed", "vanishes", SOON).await.json();
        assert_eq!(gone["data"]["status"], "cancelled");
        let ids: std::collections::HashSet<_> =
            receiver.received().iter().map(|post| post.event_id().to_owned()).collect();
        assert_eq!(ids.len(), 5, "{:?}", receiver.events());
    });
}

#[test]
fn invalid_mapping_loses_no_event_across_kills() {
    run(async {
        let scene = Scene::alone("mapped-in-force").await;
        install(&scene);
        grant(&scene);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        scene.apply(&source("trainings", &json!({})));
        condition(&scene, "trainings", "Ready", "True", "Watching").await;
        let start = async |name: &str| {
            create(&scene, name, &json!({}));
            phase(&scene, name, &json!("Busy"));
            receiver.wait_for("training.started", name, SOON).await;
        };
        for name in ["live", "down", "unrecorded", "replaced"] {
            start(name).await;
        }
        let in_force = || scene.get("webhooksource", "trainings")["status"]["inForce"]["generation"].clone();
        assert_eq!(in_force(), 1);

        let broken = json!({"data": {"message": "object.status.phase ="}});
        scene.apply(&source("trainings", &broken));
        let message = condition(&scene, "trainings", "Stalled", "True", "InvalidExpression").await;
        println!("{message}");
        assert!(message.starts_with("spec.data.message: ") && message.contains("generation 1 stays in force"));
        condition(&scene, "trainings", "Ready", "True", "Watching").await;
        phase(&scene, "live", &json!("Done"));
        receiver.wait_for("training.completed", "live", SOON).await;
        eventually("the deliveries are settled", SOON, || async {
            (operator.metric("llmtune_webhooks_deliveries_total", &[("result", "delivered")]) >= 5.0).then_some(())
        })
        .await;

        operator.process.kill();
        phase(&scene, "down", &json!("Done"));
        operator.restart();
        operator.wait_ready().await;
        receiver.wait_for("training.completed", "down", SOON).await;
        condition(&scene, "trainings", "Stalled", "True", "InvalidExpression").await;

        // An earlier release recorded no `inForce`. The watch in the ledger is kept until then.
        operator.stop();
        let remove = json!([{"op": "remove", "path": "/status/inForce"}]).to_string();
        scene.kubectl(&["patch", "webhooksource", "trainings", "--subresource=status", "--type=json", "-p", &remove]);
        phase(&scene, "unrecorded", &json!("Done"));
        operator.restart();
        operator.wait_ready().await;
        let message = condition(&scene, "trainings", "Ready", "False", "InvalidExpression").await;
        println!("{message}");
        assert!(message.contains("it watches nothing until the spec is corrected"), "{message}");
        scene.job("other");
        scene.phase("other", "Running");
        receiver.wait_for("training.started", "other", SOON).await;
        scene.apply(&source("trainings", &json!({})));
        receiver.wait_for("training.completed", "unrecorded", SOON).await;
        condition(&scene, "trainings", "Stalled", "False", "Working").await;

        // Deleted and created again.
        let manifest = source("trainings", &json!({})).to_string();
        let output = scene.plane.kubectl_with_input(&["replace", "--force", "-f", "-"], &manifest);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        phase(&scene, "replaced", &json!("Done"));
        receiver.wait_for("training.completed", "replaced", SOON).await;
        let ids: std::collections::HashSet<_> =
            receiver.received().iter().map(|post| post.event_id().to_owned()).collect();
        assert_eq!(ids.len(), 9, "{:?}", receiver.events());
    });
}

#[test]
fn forbidden_kind_names_the_role_to_apply() {
    run(async {
        let plane = ControlPlane::start().await;
        plane.install_crds();
        let scene = Scene::on(Arc::new(plane), "mapped-forbidden").await;
        scene.plane.start_controllers().await;
        install(&scene);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        scene.apply(&source("trainings", &json!({})));
        let message = condition(&scene, "trainings", "Ready", "False", "Forbidden").await;
        println!("{message}");
        operator.wait_readyz("interrupted; see its conditions", SOON).await;
        // Other sources are not affected.
        scene.job("other");
        scene.phase("other", "Running");
        receiver.wait_for("training.started", "other", SOON).await;

        let manifest = message.split_once("\n\n").unwrap().1;
        let output = scene.plane.kubectl_with_input(&["apply", "-f", "-"], manifest);
        assert!(output.status.success(), "{}\n{manifest}", String::from_utf8_lossy(&output.stderr));
        condition(&scene, "trainings", "Ready", "True", "Watching").await;
        create(&scene, "a", &json!({}));
        phase(&scene, "a", &json!("Busy"));
        receiver.wait_for("training.started", "a", SOON).await;
    });
}

#[test]
fn failed_expressions_are_counted_and_shown() {
    run(async {
        let scene = Scene::alone("mapped-errors").await;
        install(&scene);
        grant(&scene);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        let typed = json!([
            {"stage": "Completed", "when": "object.status.phase > 3"},
            {"stage": "Running", "when": "object.status.phase == 'Busy'"}
        ]);
        scene.apply(&source("trainings", &json!({"stages": typed})));
        condition(&scene, "trainings", "Ready", "True", "Watching").await;
        condition(&scene, "trainings", "Healthy", "True", "Evaluated").await;
        create(&scene, "a", &json!({}));
        phase(&scene, "a", &json!("Busy"));
        let message = condition(&scene, "trainings", "Healthy", "False", "EvaluationFailed").await;
        println!("{message}");
        let whose = format!("spec.stages[0].when failed for {}/a: ", scene.namespace);
        assert!(message.starts_with(&whose), "{message}");
        let status = scene.get("webhooksource", "trainings")["status"].clone();
        assert_eq!(status["lastEvaluationError"]["expression"], "spec.stages[0].when", "{status:#}");
        let errors = || operator.metric("llmtune_webhooks_source_evaluation_errors_total", &[("source", "trainings")]);
        assert!(errors() >= 1.0 && status["evaluationErrors"].as_i64().unwrap() >= 1);
        assert_eq!(receiver.count(), 0, "{:?}", receiver.events());
        // The next stage that can be evaluated moves the object on.
        phase(&scene, "a", &json!(4));
        receiver.wait_for("training.completed", "a", SOON).await;

        let nodes = json!({"resource": {"apiVersion": "v1", "kind": "Node"}});
        scene.apply(&source("nodes", &nodes));
        let message = condition(&scene, "nodes", "Stalled", "True", "NotNamespaced").await;
        assert!(message.contains("namespaced"), "{message}");
        scene.kubectl(&["delete", "webhooksource", "trainings"]);
        eventually("its series goes", Duration::from_secs(10), || async {
            (!operator.metrics().contains("errors_total{source=\"trainings\"}")).then_some(())
        })
        .await;
    });
}

#[test]
fn malformed_sources_are_refused_with_what_to_write_instead() {
    run(async {
        let scene = Scene::new("mapped-refused").await;
        let stage = |stage: &str, when: &str| json!({"stages": [{"stage": stage, "when": when}]});
        let serving = |data: Value| json!({"lifecycle": "Serving", "stages": [{"stage": "Paused", "when": "true"}], "data": data});
        let resource = |version: &str, kind: &str| json!({"resource": {"apiVersion": version, "kind": kind}});
        let many: Vec<Value> = (0..17).map(|_| json!({"stage": "Running", "when": "true"})).collect();
        for (spec, says) in [
            (json!({"lifecycle": "Batch"}), "lifecycle must be Training or Serving"),
            (json!({"lifecycle": ""}), "lifecycle must be Training or Serving"),
            (json!({"stages": []}), "stages must have at least one stage"),
            (json!({"stages": many}), "16"),
            (stage("Deployed", "true"), "the stages of the Training lifecycle are Pending, Suspended, Running"),
            (stage("running", "true"), "the stages of the Training lifecycle are"),
            (json!({"lifecycle": "Serving"}), "the stages of the Serving lifecycle are Pending, Available, Deployed"),
            (stage("Running", ""), "when must be a CEL expression over object"),
            (stage("Running", &"x".repeat(4097)), "4096"),
            (serving(json!({"baseModel": "'a'"})), "data of the Serving lifecycle can have deploymentId, modelId"),
            (serving(json!({"startedAt": "'a'"})), "data of the Serving lifecycle can have"),
            (json!({"data": {"modelId": "'a'"}}), "data of the Training lifecycle can have jobId, baseModel"),
            (json!({"data": {"endpoint": "'a'"}}), "data of the Training lifecycle can have"),
            (json!({"data": {"colour": "'a'"}}), "colour"),
            (json!({"data": {"jobId": "x".repeat(4097)}}), "4096"),
            (resource("v1", "Secret"), "Secrets cannot be watched"),
            (resource("llmtune.io/v1alpha1", "TrainingJob"), "the kinds of llmtune.io need no WebhookSource"),
            (resource("batch", "Job"), "apiVersion must be GROUP/VERSION"),
            (resource("batch/1", "Job"), "apiVersion must be GROUP/VERSION"),
            (resource("batch/v1/jobs", "Job"), "apiVersion must be GROUP/VERSION"),
            (resource("Batch/v1", "Job"), "apiVersion must be GROUP/VERSION"),
            (resource("", "Job"), "apiVersion must be GROUP/VERSION"),
            (resource("batch/v1", "jobs"), "kind must be the kind's name in CamelCase"),
            (resource("batch/v1", ""), "kind must be the kind's name in CamelCase"),
            (resource("batch/v1", "Job/status"), "kind must be the kind's name in CamelCase"),
            (json!({"resource": {"kind": "Job"}}), "apiVersion"),
            (json!({"selector": {"matchLabels": {"a b": "c"}}}), "a label key must be a name"),
            (json!({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}), "In and NotIn need values"),
        ] {
            let error = scene.try_apply(&source("refused", &spec)).expect_err(&spec.to_string());
            assert!(error.contains(says), "{spec}: {error}");
        }
        let long = "n".repeat(64);
        let error = scene.try_apply(&source(&long, &json!({}))).unwrap_err();
        assert!(error.contains("at most 63 characters"), "{error}");
    });
}
