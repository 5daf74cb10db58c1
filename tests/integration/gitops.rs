//! Argo CD and Flux, with their own rule engines: the health that they derive from a Webhook in each of its states.
//! They and the operator leave each other's fields and objects alone.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use llmtune_webhooks_harness::{
    control_plane::tool,
    eventually,
    operator::Operator,
    receiver::{Answer, Receiver},
    root,
};
use serde_json::{Value, json};

use crate::{
    chart::documents,
    support::{SOON, Scene, run, webhook},
};

/// A missing object counts as stalled after a minute.
const STALLED: Duration = Duration::from_secs(120);

fn example(path: &str) -> String {
    fs::read_to_string(root().join("examples/gitops").join(path)).unwrap()
}

/// The health of an object according to Argo CD and Flux: status and message each.
fn judge(object: &Value) -> [(String, String); 2] {
    let mut judging = Command::new(tool("gitops-health"))
        .arg(root().join("examples/gitops/argocd/health.lua"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    judging.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    let output = judging.wait_with_output().unwrap();
    assert!(output.status.success());
    let judged: Value = serde_json::from_slice(&output.stdout).unwrap();
    ["argocd", "kstatus"].map(|engine| {
        let text = |key: &str| judged[engine][key].as_str().unwrap().to_owned();
        (text("status"), text("message"))
    })
}

/// Waits until both report this health. Returns their messages.
async fn judged(scene: &Scene, object: [&str; 2], argocd: &str, kstatus: &str, limit: Duration) -> [String; 2] {
    let [kind, name] = object;
    eventually(&format!("{kind} {name} is {argocd} in Argo CD and {kstatus} in Flux"), limit, || async {
        let [argo, flux] = judge(&scene.get(kind, name));
        (argo.0 == argocd && flux.0 == kstatus).then_some([argo.1, flux.1])
    })
    .await
}

#[test]
fn missing_secret_degrades_and_an_outage_does_not() {
    run(async {
        let scene = Scene::new("gitops").await;
        let receiver = Receiver::start().await;
        let ci = ["webhook", "ci"];
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}, "delivery": {"maxRetries": 0}}));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options()).await;
        let messages = judged(&scene, ci, "Progressing", "InProgress", SOON).await;
        println!("at once: {messages:?}");
        let messages = judged(&scene, ci, "Degraded", "Failed", STALLED).await;
        println!("after a minute: {messages:?}");
        assert!(messages[0].starts_with("SecretNotFound: ") && messages[1].contains("Secret"), "{messages:?}");

        scene.secret("ci", "s3cret");
        judged(&scene, ci, "Healthy", "Current", SOON).await;
        receiver.answer(|_| Answer::status(503));
        scene.job("a");
        scene.phase("a", "Running");
        scene.wait("webhook/ci", "condition=Healthy=False");
        judged(&scene, ci, "Healthy", "Current", Duration::ZERO).await;

        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}, "suspend": true}));
        judged(&scene, ci, "Suspended", "Current", SOON).await;
        // A spec that the operator has not observed.
        operator.stop();
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
        judged(&scene, ci, "Progressing", "InProgress", Duration::ZERO).await;
    });
}

#[test]
fn every_managed_kind_is_in_progress_until_observed() {
    run(async {
        let scene = Scene::alone("gitops-kinds").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let mut cluster = webhook("platform", &receiver.url(), &json!({}));
        cluster["kind"] = json!("ClusterWebhook");
        scene.apply(&cluster);
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "UsageThreshold", "metadata": {"name": "tokens"},
            "spec": {
                "prometheus": {"query": "vector(1)", "url": "http://elsewhere.example.com"}, "limit": "1k",
                "thresholds": ["50%"]
            }
        }));
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookSource", "metadata": {"name": "jobs"},
            "spec": {
                "resource": {"apiVersion": "example.com/v1", "kind": "Absent"}, "lifecycle": "Training",
                "stages": [{"stage": "Running", "when": "object.status.ready > 0"}]
            }
        }));
        let [ci, platform] = [["webhook", "ci"], ["clusterwebhook", "platform"]];
        let [tokens, jobs] = [["usagethreshold", "tokens"], ["webhooksource", "jobs"]];
        for object in [ci, platform, tokens, jobs] {
            for message in judged(&scene, object, "Progressing", "InProgress", Duration::ZERO).await {
                assert!(message.contains("Waiting for the operator"), "{object:?}: {message}");
            }
        }

        let options = scene.options().cluster_wide().argument("--allow-prometheus=http://127.0.0.1:9");
        let _operator = Operator::start_ready(&scene.plane, &options).await;
        judged(&scene, ci, "Healthy", "Current", SOON).await;
        judged(&scene, platform, "Healthy", "Current", SOON).await;
        let messages = judged(&scene, tokens, "Degraded", "Failed", SOON).await;
        assert!(messages[0].starts_with("PrometheusNotAllowed: "), "{messages:?}");
        scene.wait("webhooksource/jobs", "condition=Ready=False");
        judged(&scene, jobs, "Progressing", "InProgress", Duration::ZERO).await;
    });
}

#[test]
fn argo_cd_has_a_health_check_for_every_kind() {
    let map = &documents(&example("argocd/argocd-cm.yaml"))[0];
    let scripts = map["data"].as_object().unwrap();
    let kinds: Vec<&str> =
        scripts.keys().map(|key| key.strip_prefix("resource.customizations.health.llmtune.io_").unwrap()).collect();
    let mut sorted = kinds.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["ClusterWebhook", "UsageThreshold", "Webhook", "WebhookSource"]);
    assert!(scripts.values().all(|script| script == &example("argocd/health.lua")));
}

#[test]
fn two_managers_and_the_operator_keep_their_fields() {
    run(async {
        let scene = Scene::new("managers").await;
        let receiver = Receiver::start().await;
        let _operator = Operator::start_ready(&scene.plane, &scene.options()).await;
        let apply = |manager: &str, manifest: &Value| {
            let manager = format!("--field-manager={manager}");
            let arguments = ["apply", "--server-side", &manager, "-n", &scene.namespace, "-f", "-"];
            let output = scene.plane.kubectl_with_input(&arguments, &manifest.to_string());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let pipeline = webhook("ci", &receiver.url(), &json!({}));
        // A field that the platform team adds: the number of concurrent requests.
        let platform = json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook",
            "metadata": {"name": "ci", "labels": {"cost-center": "7"}}, "spec": {"delivery": {"concurrency": 3}}
        });
        apply("argocd-controller", &pipeline);
        apply("platform", &platform);
        scene.wait("webhook/ci", "condition=Ready");
        apply("argocd-controller", &pipeline);
        apply("kustomize-controller", &webhook("ci", &receiver.url(), &json!({})));
        let object = scene.get("webhook", "ci");
        assert_eq!(object["metadata"]["labels"]["cost-center"], "7");
        assert_eq!(object["spec"]["delivery"]["concurrency"], 3);
        assert_eq!(object["spec"]["url"], receiver.url());
        assert!(object["status"]["conditions"].as_array().unwrap().len() >= 2);
    });
}

#[test]
fn objects_of_the_operator_are_never_pruned() {
    run(async {
        let scene = Scene::new("pruning").await;
        let receiver = Receiver::answering(|_| Answer::status(500)).await;
        let mut tracked = webhook("ci", &receiver.url(), &json!({"delivery": {"maxRetries": 0}}));
        tracked["metadata"]["labels"] = json!({
            "app.kubernetes.io/instance": "webhooks", "kustomize.toolkit.fluxcd.io/name": "webhooks",
            "kustomize.toolkit.fluxcd.io/namespace": "flux-system"
        });
        tracked["metadata"]["annotations"] =
            json!({"argocd.argoproj.io/tracking-id": "webhooks:llmtune.io/Webhook:research/ci"});
        scene.apply(&tracked);
        let _operator = Operator::start_ready(&scene.plane, &scene.options()).await;
        scene.job("a");
        scene.phase("a", "Running");
        scene.wait_event("Webhook", "ci", "DeliveryExhausted").await;
        for kind in ["webhookdeliveries", "ledgersegments"] {
            let objects = eventually(&format!("there are {kind}"), SOON, || async {
                let list: Value = serde_json::from_str(&scene.kubectl(&["get", kind, "-o", "json"])).unwrap();
                list["items"].as_array().filter(|items| !items.is_empty()).cloned()
            })
            .await;
            for object in objects {
                let metadata = [&object["metadata"]["labels"], &object["metadata"]["annotations"]];
                let mut keys = metadata.iter().filter_map(|map| map.as_object()).flat_map(|map| map.keys());
                let by = ["app.kubernetes.io/instance", "fluxcd.io", "argoproj.io"];
                assert!(keys.all(|key| by.iter().all(|name| !key.contains(name))), "{metadata:?}");
            }
        }
    });
}

#[test]
fn the_examples_are_what_kubectl_builds_and_the_apiserver_takes() {
    run(async {
        let scene = Scene::new("gitops-examples").await;
        let folder = root().join("examples/gitops/webhooks");
        let built = scene.plane.kubectl(&["kustomize", folder.to_str().unwrap()]);
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let kinds = documents(&String::from_utf8(built.stdout).unwrap());
        let kinds: Vec<&str> = kinds.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["ExternalSecret", "Webhook"]);
        let webhook = folder.join("webhook.yaml");
        scene.kubectl(&["apply", "--server-side", "--validate=strict", "-f", webhook.to_str().unwrap()]);
        for path in ["argocd/application.yaml", "flux/kustomization.yaml", "webhooks/sealed-secret.yaml"] {
            assert!(documents(&example(path)).iter().all(|object| object["kind"].is_string()), "{path}");
        }
    });
}
