//! Real rollouts: controller-manager, scheduler and kwok move the Deployments.

use std::time::Duration;

use llmtune_webhooks_harness::{
    eventually,
    receiver::{Received, Receiver},
};
use serde_json::json;

use crate::{
    sources::deployment,
    support::{Scene, run},
};

/// A rollout takes seconds; a loaded machine takes longer.
const ROLLOUT: Duration = Duration::from_secs(90);

#[test]
fn every_event_of_a_deployments_life_is_sent_once_and_flapping_readiness_sends_nothing() {
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

        // Readiness that flaps: the kubelet's part is played by a patch of one pod's status.
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

        // A rollout that never completes is not announced; what it leaves behind is deleted as a whole.
        scene.kubectl(&["delete", "deployment", "llama"]);
        expect(&["deployment.deleted"]).await;
    });
}
