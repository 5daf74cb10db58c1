//! Real rollouts: controller-manager, scheduler and kwok move the Deployments.

use std::time::Duration;

use llmtune_webhooks_harness::{
    eventually,
    receiver::{Received, Receiver},
};
use serde_json::json;

use crate::{
    sources::{deployment, rolled_out},
    support::{SOON, Scene, run},
};

/// A rollout takes seconds; a loaded machine takes longer.
const ROLLOUT: Duration = Duration::from_secs(90);

#[test]
fn deployment_events_are_sent_once_despite_flapping() {
    run(async {
        let scene = Scene::alone("rollouts").await;
        scene.plane.start_controllers().await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let _operator = scene.operator().await;
        let mut expected: Vec<&str> = Vec::new();
        let mut expect = async |events: &[&'static str]| {
            expected.extend(events);
            let received = receiver.wait(expected.len(), ROLLOUT).await;
            let names: Vec<String> = received.iter().map(Received::event).collect();
            assert_eq!(names, expected);
            received.last().unwrap().json()["data"].clone()
        };
        let version = |version: &str| {
            let annotations = json!({"llmtune.io/model-id": "llama-sft", "llmtune.io/model-version": version});
            let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}).to_string();
            scene.kubectl(&["patch", "deployment", "llama", "--type=merge", "-p", &patch]);
        };

        scene.apply(&deployment("llama", 2, "1"));
        let data = expect(&["deployment.created", "model.deployed"]).await;
        assert_eq!(data["modelId"], "llama-sft");
        assert_eq!(data["version"], "1");
        assert_eq!(data["environment"], "production");
        assert_eq!(data["endpoint"], "https://models.example.com/a");

        version("2");
        assert_eq!(expect(&["model.deployed"]).await["version"], "2");
        scene.kubectl(&["rollout", "undo", "deployment/llama"]);
        assert_eq!(expect(&["model.deployed"]).await["version"], "1");

        // Flapping readiness: a patch of one pod's status takes the place of the kubelet.
        let ready = |status: &str| {
            let pods = scene.kubectl(&["get", "pods", "-l", "app=llama", "-o", "name"]);
            let pod = pods.lines().next().unwrap().to_owned();
            let condition = json!({"type": "Ready", "status": status, "lastTransitionTime": null});
            let patch = json!({"status": {"conditions": [condition]}}).to_string();
            scene.kubectl(&["patch", &pod, "--subresource=status", "--type=strategic", "-p", &patch]);
        };
        let available = async |count: i64| {
            eventually(&format!("{count} available"), ROLLOUT, || async {
                let status = &scene.get("deployment", "llama")["status"];
                (status["availableReplicas"].as_i64().unwrap_or_default() == count).then_some(())
            })
            .await;
        };
        available(2).await;
        for _ in 0..3 {
            ready("False");
            available(1).await;
            ready("True");
            available(2).await;
        }
        scene.kubectl(&["label", "deployment", "llama", "noise=1"]);
        scene.kubectl(&["annotate", "deployment", "llama", "noise=1"]);

        scene.kubectl(&["scale", "deployment/llama", "--replicas=0"]);
        expect(&["deployment.paused"]).await;
        scene.kubectl(&["scale", "deployment/llama", "--replicas=2"]);
        expect(&["deployment.resumed"]).await;
        available(2).await;
        scene.kubectl(&["scale", "deployment/llama", "--replicas=3"]);
        available(3).await;

        // A rollout that never completes is not announced. The deletion reports the version that served.
        scene.kubectl(&["rollout", "pause", "deployment/llama"]);
        version("3");
        scene.kubectl(&["delete", "deployment", "llama"]);
        assert_eq!(expect(&["deployment.deleted"]).await["version"], "1");
    });
}

#[test]
fn paused_waits_for_the_last_pod_and_has_its_model() {
    run(async {
        let scene = Scene::new("terminating").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({"delivery": {"concurrency": 1}}));
        let _operator = scene.operator().await;
        let status = |name: &str, replicas: i64, terminating: i64| {
            let generation = scene.get("deployment", name)["metadata"]["generation"].clone();
            let mut status = json!({"observedGeneration": generation, "terminatingReplicas": terminating});
            for key in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
                status[key] = json!(replicas);
            }
            let patch = json!({"status": status}).to_string();
            scene.kubectl(&["patch", "deployment", name, "--subresource=status", "--type=merge", "-p", &patch]);
        };
        let template = |version: &str| {
            let annotations = json!({"llmtune.io/model-version": version});
            let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}).to_string();
            scene.kubectl(&["patch", "deployment", "llama", "--type=merge", "-p", &patch]);
        };
        scene.apply(&deployment("llama", 2, "1"));
        rolled_out(&scene, "llama");
        receiver.wait_for("model.deployed", "llama", SOON).await;

        scene.kubectl(&["scale", "deployment/llama", "--replicas=0"]);
        status("llama", 0, 2);
        status("llama", 0, 1);
        // An event about a pause would have come before this one.
        scene.apply(&deployment("fence", 1, "1"));
        rolled_out(&scene, "fence");
        receiver.wait_for("model.deployed", "fence", SOON).await;
        template("2");
        status("llama", 0, 0);
        let paused = receiver.wait_for("deployment.paused", "llama", SOON).await;
        assert_eq!(paused.json()["data"]["version"], "1");
        scene.kubectl(&["scale", "deployment/llama", "--replicas=2"]);
        status("llama", 1, 0);
        let resumed = receiver.wait_for("deployment.resumed", "llama", SOON).await;
        assert_eq!(resumed.json()["data"]["version"], "1");
        rolled_out(&scene, "llama");
        let deployed = receiver.wait(7, SOON).await.pop().unwrap();
        assert_eq!((deployed.event().as_str(), &deployed.json()["data"]["version"]), ("model.deployed", &json!("2")));
        template("3");
        status("llama", 1, 1);
        scene.kubectl(&["delete", "deployment", "llama"]);
        let deleted = receiver.wait_for("deployment.deleted", "llama", SOON).await;
        assert_eq!(deleted.json()["data"]["version"], "2");
        let events: Vec<String> =
            receiver.events().into_iter().map(|(event, name)| format!("{name} {event}")).collect();
        let expected = [
            "llama deployment.created",
            "llama model.deployed",
            "fence deployment.created",
            "fence model.deployed",
            "llama deployment.paused",
            "llama deployment.resumed",
            "llama model.deployed",
            "llama deployment.deleted",
        ];
        assert_eq!(events, expected);
    });
}
