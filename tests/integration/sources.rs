//! Watches survive failures of apiservers and connections, and malformed objects.

use std::time::{Duration, Instant};

use llmtune_webhooks_harness::{eventually, operator::Operator, proxy::Proxy, receiver::Receiver};
use serde_json::{Value, json};

use crate::support::{Jobs, SOON, Scene, run};

/// A Deployment that serves a model. No controller manages it; the test writes its status.
pub fn deployment(name: &str, replicas: i32, version: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": name,
            "labels": {"llmtune.io/model-endpoint": "true"},
            "annotations": {"llmtune.io/environment": "production", "llmtune.io/endpoint-url": "https://models.example.com/a"}
        },
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {
                    "labels": {"app": name},
                    "annotations": {"llmtune.io/model-id": "llama-sft", "llmtune.io/model-version": version}
                },
                "spec": {"containers": [{"name": "server", "image": "example.com/server:1"}]}
            }
        }
    })
}

/// Writes a Deployment's status as its controller does once all replicas are available.
pub fn rolled_out(scene: &Scene, name: &str) {
    let object = scene.get("deployment", name);
    let replicas = object["spec"]["replicas"].as_i64().unwrap();
    let mut status = json!({
        "observedGeneration": object["metadata"]["generation"],
        "conditions": [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]
    });
    for key in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        status[key] = json!(replicas);
    }
    let patch = json!({"status": status}).to_string();
    scene.kubectl(&["patch", "deployment", name, "--subresource=status", "--type=merge", "-p", &patch]);
}

#[test]
fn missing_trainingjob_kind_does_not_block_deployments() {
    run(async {
        let scene = Scene::alone("absent").await;
        scene.kubectl(&["delete", "crd", "trainingjobs.llmtune.io"]);
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let mut operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        operator.wait_readyz("TrainingJob in all namespaces: not installed", SOON).await;
        operator.wait_log("trainingjobs.llmtune.io is not installed", SOON).await;
        scene.apply(&deployment("a", 1, "1"));
        rolled_out(&scene, "a");
        receiver.wait_for("deployment.created", "a", SOON).await;
        receiver.wait_for("model.deployed", "a", SOON).await;

        scene.plane.install_crds();
        scene.job("early");
        scene.phase("early", "Running");
        receiver.wait_for("training.started", "early", SOON).await;
        operator.wait_readyz("TrainingJob in all namespaces: watching", SOON).await;
        assert_eq!(operator.get("/healthz").unwrap().0, 200);
    });
}

#[test]
fn apiserver_outage_under_load_loses_no_event() {
    run(async {
        let scene = Scene::alone("outage").await;
        let receiver = Receiver::start().await;
        scene.secret("ci", "s3cret");
        scene.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
        let operator = Operator::start_ready(&scene.plane, &scene.options()).await;
        let jobs = Jobs::new(&scene).await;
        let driving = tokio::spawn(async move { jobs.drive(600, 40).await });
        receiver.wait(200, Duration::from_secs(90)).await;
        scene.plane.stop_apiserver();
        let stopped = Instant::now();
        tokio::time::sleep(Duration::from_secs(20)).await;
        scene.plane.start_apiserver();
        scene.plane.wait_ready().await;
        println!("the apiserver was away for {:?}", stopped.elapsed());
        driving.await.unwrap();
        eventually("1,200 deliveries are acknowledged", Duration::from_secs(60), || async {
            (operator.metric("llmtune_webhooks_deliveries_total", &[("result", "delivered")]) as u64 == 1200)
                .then_some(())
        })
        .await;
        let ids: std::collections::HashSet<String> =
            receiver.received().iter().map(|post| post.header("x-llmtune-event-id").to_owned()).collect();
        assert_eq!(ids.len(), 1200);
        assert_eq!(receiver.count(), 1200, "none is sent twice");
    });
}

#[test]
fn changes_beyond_the_watch_are_found_by_a_list() {
    run(async {
        let scene = Scene::alone("expired").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let proxy = Proxy::start(scene.plane.port).await;
        let mut options = scene.options();
        options.apiserver_port = Some(proxy.port);
        let operator = Operator::start_ready(&scene.plane, &options).await;
        for name in ["vanishes", "finishes", "stays"] {
            scene.job(name);
            scene.phase(name, "Running");
            receiver.wait_for("training.started", name, SOON).await;
        }
        for name in ["deleted", "unlabelled", "serving"] {
            scene.apply(&deployment(name, 1, "1"));
            rolled_out(&scene, name);
            receiver.wait_for("model.deployed", name, SOON).await;
        }
        let before = receiver.count();
        proxy.cut();
        scene.kubectl(&["delete", "trainingjob", "vanishes"]);
        scene.phase("finishes", "Completed");
        scene.job("new");
        scene.phase("new", "Running");
        scene.kubectl(&["delete", "deployment", "deleted"]);
        scene.kubectl(&["label", "deployment", "unlabelled", "llmtune.io/model-endpoint-"]);
        // A new apiserver's watch cache starts empty: watches cannot resume from before its start.
        scene.plane.stop_apiserver();
        scene.plane.start_apiserver();
        scene.plane.wait_ready().await;
        scene.phase("stays", "Running");
        proxy.mend();
        operator.wait_log("resourceVersion has expired", Duration::from_secs(60)).await;
        let vanished = receiver.wait_for("training.failed", "vanishes", SOON).await;
        assert_eq!(vanished.json()["data"]["status"], "unknown");
        receiver.wait_for("training.completed", "finishes", SOON).await;
        receiver.wait_for("training.started", "new", SOON).await;
        receiver.wait_for("deployment.deleted", "deleted", SOON).await;

        // Without the label an object sends nothing, even when it is deleted. With the label again, it continues from
        // its record.
        scene.kubectl(&["label", "deployment", "unlabelled", "llmtune.io/model-endpoint=true"]);
        scene.kubectl(&["delete", "deployment", "unlabelled"]);
        receiver.wait_for("deployment.deleted", "unlabelled", SOON).await;
        assert_eq!(receiver.count(), before + 5, "{:?}", receiver.events());
    });
}

#[test]
fn a_label_that_goes_is_no_deletion_and_says_nothing() {
    run(async {
        let scene = Scene::new("label").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let _operator = scene.operator().await;
        for name in ["loses", "goes"] {
            scene.apply(&deployment(name, 1, "1"));
            rolled_out(&scene, name);
            receiver.wait_for("model.deployed", name, SOON).await;
        }
        scene.kubectl(&["label", "deployment", "loses", "llmtune.io/model-endpoint-"]);
        scene.kubectl(&["delete", "deployment", "loses"]);
        scene.kubectl(&["delete", "deployment", "goes"]);
        receiver.wait_for("deployment.deleted", "goes", SOON).await;
        assert!(!receiver.events().contains(&("deployment.deleted".into(), "loses".into())), "{:?}", receiver.events());
    });
}

#[test]
fn connections_that_go_silent_are_noticed_and_replaced() {
    run(async {
        let scene = Scene::new("silent").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let proxy = Proxy::start(scene.plane.port).await;
        let mut options = scene.options();
        options.apiserver_port = Some(proxy.port);
        let _operator = Operator::start_ready(&scene.plane, &options).await;
        let jobs = Jobs::new(&scene).await;
        jobs.create("a").await;
        jobs.phase("a", "Running").await;
        receiver.wait_for("training.started", "a", SOON).await;
        proxy.silence();
        let silenced = Instant::now();
        jobs.phase("a", "Completed").await;
        receiver.wait_for("training.completed", "a", Duration::from_secs(90)).await;
        println!("delivered {:?} after all connections had gone silent", silenced.elapsed());
    });
}

/// A job with an unreadable status, as the definition of another release may allow. The scene needs its own control
/// plane.
pub async fn malformed_job(scene: &Scene, name: &str) {
    let open = json!([{
        "op": "replace",
        "path": "/spec/versions/0/schema/openAPIV3Schema/properties/status",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
    }]);
    scene.kubectl(&["patch", "crd", "trainingjobs.llmtune.io", "--type=json", "-p", &open.to_string()]);
    scene.job(name);
    eventually("the open schema is in force", SOON, || async {
        let patch = json!({"status": {"phase": {"is": "an object"}}}).to_string();
        let arguments = [
            "-n",
            &scene.namespace,
            "patch",
            "trainingjob",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ];
        scene.plane.kubectl(&arguments).status.success().then_some(())
    })
    .await;
}

#[test]
fn malformed_object_is_counted_and_affects_no_other() {
    run(async {
        let scene = Scene::alone("malformed").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        malformed_job(&scene, "bad").await;
        scene.job("good");
        let operator = Operator::start_ready(&scene.plane, &scene.options()).await;
        operator.wait_log("name=\"bad\"", SOON).await;
        let malformed =
            || operator.metric("llmtune_webhooks_malformed_objects_total", &[("kind", "TrainingJob")]) as u64;
        assert_eq!(malformed(), 1, "in the list");
        scene.job_status("bad", &json!({"phase": ["still", "bad"]}));
        scene.phase("good", "Running");
        receiver.wait_for("training.started", "good", SOON).await;
        assert_eq!(malformed(), 2, "in the watch");
        scene.phase("bad", "Running");
        receiver.wait_for("training.started", "bad", SOON).await;

        scene.job_status("bad", &json!({"phase": ["bad", "again"]}));
        scene.kubectl(&["delete", "trainingjob", "bad"]);
        let gone = receiver.wait_for("training.failed", "bad", SOON).await;
        assert_eq!(gone.json()["data"]["status"], "unknown", "what it came to cannot be read");
    });
}

#[test]
fn owned_object_is_reported_by_its_controller() {
    run(async {
        let scene = Scene::new("owned").await;
        let receiver = Receiver::start().await;
        scene.webhook("ci", &receiver.url(), &json!({}));
        let _operator = scene.operator().await;
        scene.job("parent");
        let uid = scene.get("trainingjob", "parent")["metadata"]["uid"].clone();
        let owner = json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "TrainingJob", "name": "parent", "uid": uid, "controller": true});
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "TrainingJob",
            "metadata": {"name": "child", "ownerReferences": [owner]}, "spec": {}
        }));
        scene.phase("child", "Running");
        scene.kubectl(&["delete", "trainingjob", "child"]);
        scene.phase("parent", "Running");
        receiver.wait_for("training.started", "parent", SOON).await;
        assert_eq!(receiver.count(), 1, "{:?}", receiver.events());
    });
}
