//! The rights that ship, held against the apiserver's audit log: none is missing, none is there for nothing.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    eventually,
    operator::Operator,
    receiver::{Answer, Receiver},
    root,
};
use serde_json::{Value, json};

use crate::{
    sources::{deployment, rolled_out},
    support::{Jobs, SOON, Scene, run},
};

/// The ledger takes some seventy seconds to come to its first slot again.
const LONG: Duration = Duration::from_secs(300);

/// Verb, API group, resource with its subresource.
type Right = (String, String, String);

/// What the operator asked for, and what of it was refused for want of a right.
fn asked(plane: &ControlPlane, namespace: &str) -> (BTreeSet<Right>, Vec<String>) {
    let log = std::fs::read_to_string(plane.audit_log()).unwrap();
    let user = format!("system:serviceaccount:{namespace}:llmtune-webhooks");
    let (mut asked, mut refused) = (BTreeSet::new(), Vec::new());
    // The last line may be under way.
    for event in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let object = &event["objectRef"];
        if event["user"]["username"] != user || object.is_null() {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
        asked.insert((text(&event["verb"]), text(&object["apiGroup"]), text(&object["resource"]) + &subresource));
        if event["responseStatus"]["code"] == 403 {
            refused.push(event["requestURI"].as_str().unwrap_or_default().to_owned());
        }
    }
    (asked, refused)
}

/// What the roles that ship grant.
fn granted() -> BTreeSet<Right> {
    let text = std::fs::read_to_string(root().join("charts/llmtune-webhooks/rbac.yaml")).unwrap();
    let mut granted = BTreeSet::new();
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        for rule in object["rules"].as_array().into_iter().flatten() {
            let words = |key: &str| {
                let words = rule[key].as_array().unwrap().iter();
                words.map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<String>>()
            };
            for (verb, resource) in words("verbs")
                .into_iter()
                .flat_map(|verb| words("resources").into_iter().map(move |resource| (verb.clone(), resource)))
            {
                assert!(verb != "*" && resource != "*", "a wildcard");
                granted.extend(words("apiGroups").into_iter().map(|group| (verb.clone(), group, resource.clone())));
            }
        }
    }
    granted
}

#[test]
fn every_right_that_ships_is_used_and_none_is_missing() {
    run(async {
        let plane = ControlPlane::start_audited().await;
        plane.install_crds();
        let scene = Scene::on(Arc::new(plane), "rights").await;
        let receiver = Receiver::start().await;
        let broken = Receiver::answering(|_| Answer::status(500)).await;
        scene.secret("ci", "s3cret");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": "no certificate"}
        }));
        let tls = json!({"tls": {"caBundleRef": {"kind": "ConfigMap", "name": "ca", "key": "ca.crt"}}});
        scene.webhook("internal", "https://receiver.internal/hooks", &tls);
        scene.webhook("broken", &broken.url(), &json!({"delivery": {"maxRetries": 0}}));
        scene.apply(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": "10"}}
        }));
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "UsageThreshold", "metadata": {"name": "pods"},
            "spec": {"resourceQuota": {"name": "team", "resource": "pods"}, "thresholds": ["50%"]}
        }));
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookSource", "metadata": {"name": "jobs"},
            "spec": {
                "resource": {"apiVersion": "example.com/v1", "kind": "Absent"}, "lifecycle": "Training",
                "stages": [{"stage": "Running", "when": "object.status.ready > 0"}]
            }
        }));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        scene.job("a");
        scene.phase("a", "Running");
        receiver.wait_for("training.started", "a", SOON).await;
        scene.apply(&deployment("d", 1, "1"));
        rolled_out(&scene, "d");
        receiver.wait_for("model.deployed", "d", SOON).await;
        scene.kubectl(&["label", "deployment", "d", "llmtune.io/model-endpoint-"]);
        // A test that goes by itself, and one that is asked for again.
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": "test"},
            "spec": {"webhookRef": {"name": "ci"}, "test": {"event": "model.deployed"}, "ttl": "1s"}
        }));
        eventually("the test is gone", Duration::from_secs(60), || async {
            (!scene.kubectl(&["get", "whd", "-o", "name"]).contains("/test")).then_some(())
        })
        .await;
        scene.wait_event("Webhook", "broken", "DeliveryExhausted").await;
        eventually("what was given up is kept", SOON, || async {
            let kept = scene.kubectl(&["get", "whd", "-l", "llmtune.io/webhook=broken", "-o", "json"]);
            let kept: Value = serde_json::from_str(&kept).unwrap();
            kept["items"].as_array().unwrap().iter().any(|item| item["status"]["finishedAt"].is_string()).then_some(())
        })
        .await;
        scene.kubectl(&[
            "annotate",
            "whd",
            "-l",
            "llmtune.io/webhook=broken",
            "llmtune.io/redeliver-requested-at=2026-01-01T00:00:00Z",
        ]);
        operator.restart();
        operator.wait_ready().await;
        // It waits for the Lease.
        let options = scene.options().cluster_wide().identity("operator-1");
        let _standby = Operator::start(&scene.plane, &options).await;
        scene.phase("a", "Completed");
        receiver.wait_for("training.completed", "a", SOON).await;

        // Slots of the ledger are written anew once all of a snapshot's have been written.
        let jobs = Jobs::new(&scene).await;
        let _driving = tokio::spawn(async move {
            for number in 0.. {
                jobs.start("a").await;
                tokio::time::sleep(Duration::from_millis(250)).await;
                assert!(number < 1000);
            }
        });
        let mut granted = granted();
        // It is read only where it is there already, as after a crash between its creation and its event.
        assert!(granted.remove(&("get".into(), "llmtune.io".into(), "webhookdeliveries".into())));
        let unused = eventually("every right is used", LONG, || async {
            let (asked, _) = asked(&scene.plane, &scene.namespace);
            granted.is_subset(&asked).then_some(())
        });
        let ended = tokio::time::timeout(LONG / 2, unused).await;
        let (asked, refused) = asked(&scene.plane, &scene.namespace);
        let left: Vec<_> = granted.difference(&asked).collect();
        assert!(ended.is_ok(), "granted and never used: {left:#?}");
        assert!(refused.is_empty(), "refused: {refused:#?}");
        println!("{} rights, each used; {} kinds of requests, none refused", granted.len(), asked.len());
    });
}
