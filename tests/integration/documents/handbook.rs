//! The commands for operators and on-call, on a release that the chart installed. kwok simulates the pods; a real
//! operator runs next to them with their configuration.

use std::sync::Arc;

use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    eventually,
    process::free_port,
    receiver::{Answer, Receiver},
};
use serde_json::{Value, json};

use super::{
    markdown::Markdown,
    script::{Script, Shell},
};
use crate::{
    installation,
    support::{Jobs, SOON, Scene},
};

pub async fn play(scripts: &mut [Script]) {
    let [operations, chart, concepts, troubleshooting, gitops, runbooks @ ..] = scripts else {
        unreachable!("more documents")
    };
    let plane = Arc::new(ControlPlane::start().await);
    plane.start_controllers().await;
    let team = Scene { plane: Arc::clone(&plane), namespace: "team".into() };
    let system = Scene { plane, namespace: "llmtune-system".into() };
    for namespace in ["team", "argocd"] {
        team.kubectl(&["create", "namespace", namespace]);
    }
    let mut shell = Shell::new(&team);
    // The operator's pods are simulated. The real operator listens, and reaches its receivers, on loopback.
    let registry = "--set image.registry=registry.example.com/platform";
    let here = format!("--set operator.listen=127.0.0.1:{} --set operator.allowCidr={{127.0.0.0/8}}", free_port());
    shell.instead(registry, &format!("{registry} {here}"));

    shell.run(&chart.take("The chart llmtune-webhooks"));
    shell.type_in("helm uninstall llmtune-webhooks --namespace llmtune-system --wait");
    shell.run(&operations.take("Installing, upgrading, removing"));
    shell.run(&operations.take("Upgrading and rolling back"));
    let history = shell.type_in("helm history llmtune-webhooks --namespace llmtune-system");
    assert!(history.contains("Install complete") && history.contains("Rollback to 1"), "{history}");
    let running = installation::operator(&system).await;
    system.kubectl(&["wait", "lease/llmtune-webhooks", "--for=create", "--timeout=60s"]);
    shell.run(&operations.take("Installing, upgrading, removing"));

    let receiver = Receiver::start().await;
    team.secret("ci-hook", "s3cret");
    team.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci-hook"}, "delivery": {"maxRetries": 0}}));
    team.wait("webhook/ci", "condition=Ready");
    given_up(&team, &receiver, "a").await;
    shell.run(&operations.take("Deliveries that were given up"));
    assert_eq!(receiver.count(), 2, "it is sent again: {:?}", receiver.events());
    given_up(&team, &receiver, "b").await;
    for block in runbooks.iter_mut().flat_map(Script::rest) {
        shell.run(&block);
    }
    let again = receiver.received().iter().filter(|post| post.name() == "b").count();
    assert_eq!(again, 2, "it is sent again: {:?}", receiver.events());
    system.kubectl(&["-n", "argocd", "create", "configmap", "argocd-cm"]);
    shell.run(&gitops.take("Argo CD"));

    shell.run(&operations.take("Testing a Webhook"));
    for block in troubleshooting.rest() {
        shell.run(&block);
    }
    eventually("both tests are received", SOON, || async {
        let tests = receiver.received().into_iter().filter(|post| post.json()["test"] == true);
        (tests.count() >= 2).then_some(())
    })
    .await;
    let segments = shell.run(&operations.take("The ledger"));
    assert!(segments.contains("Journal"), "{segments}");
    understood(&team, &shell, concepts);

    restored(&team, &shell, operations);
    drop(running);
    shell.run(&operations.take("Removing"));
    shell.run(&operations.take("Removing"));
    let definitions = team.kubectl(&["get", "crds", "-o", "name"]);
    assert!(!definitions.contains("llmtune.io"), "{definitions}");
}

/// Lets a delivery of `ci` about a job of this name become a dead letter. Afterwards the receiver acknowledges it.
async fn given_up(team: &Scene, receiver: &Receiver, job: &str) {
    receiver.answer(|_| Answer::status(500));
    let jobs = Jobs::new(team).await;
    jobs.create(job).await;
    jobs.start(job).await;
    eventually("it is kept", SOON, || async {
        let list: Value = serde_json::from_str(&team.kubectl(&["get", "whd", "-o", "json"])).unwrap();
        let mut kept = list["items"].as_array().unwrap().iter().map(|item| &item["status"]);
        kept.any(|status| status["event"]["object"]["name"] == job && status["finishedAt"].is_string()).then_some(())
    })
    .await;
    receiver.answer(|_| Answer::status(200));
}

/// Applies the manifests of the concepts as written, and runs the commands between them.
fn understood(team: &Scene, shell: &Shell, concepts: &mut Script) {
    let blocks = Markdown::of("docs/concepts.md").blocks.into_iter().filter(|block| block.language == "yaml");
    let manifests: Vec<String> = blocks.map(|block| block.text).collect();
    team.apply_text(&manifests.join("---\n"));
    for block in concepts.rest() {
        shell.run(&block);
    }
    for kind in ["Webhook", "ClusterWebhook", "TrainingJob", "WebhookSource", "UsageThreshold", "WebhookDelivery"] {
        assert!(manifests.iter().any(|text| text.contains(&format!("kind: {kind}\n"))), "{kind} has a manifest");
    }
}

/// The objects in the backup are restored unchanged.
fn restored(team: &Scene, shell: &Shell, operations: &mut Script) {
    let kinds = "webhooks,clusterwebhooks,webhooksources,usagethresholds";
    let specs = || {
        let list: Value = serde_json::from_str(&team.kubectl(&["get", kinds, "-A", "-o", "json"])).unwrap();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| (item["metadata"]["name"].clone(), item["spec"].clone())).collect::<Vec<_>>()
    };
    let before = specs();
    shell.run(&operations.take("Backing up and restoring"));
    team.kubectl(&["delete", kinds, "--all", "-n", &team.namespace]);
    team.kubectl(&["delete", "clusterwebhooks,webhooksources", "--all"]);
    assert!(specs().is_empty());
    shell.run(&operations.take("Backing up and restoring"));
    assert_eq!(specs(), before);
    team.wait("webhook/ci", "condition=Ready");
}
