//! Webhooks that are deleted with pending deliveries, and are or are not created again.

use super::*;
use crate::support::webhook;

/// `kubectl replace --force`, which deletes the object and creates it again.
fn replace(scene: &Scene, object: &Value) {
    let arguments = ["-n", &scene.namespace, "replace", "--force", "-f", "-"];
    let output = scene.plane.kubectl_with_input(&arguments, &object.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn pending(scene: &Scene, kind: &str, count: u64) {
    eventually(&format!("{count} deliveries are pending"), SOON, || async {
        (scene.get(kind, "ci")["status"]["deliveries"]["pending"] == count).then_some(())
    })
    .await;
}

async fn backlog(jobs: &Jobs, prefix: &str, count: usize) {
    for number in 0..count {
        let name = format!("{prefix}-{number}");
        jobs.create(&name).await;
        jobs.start(&name).await;
        jobs.complete(&name).await;
    }
}

#[test]
fn replaced_webhook_takes_over_its_backlog_over_a_kill_too() {
    run(async {
        let scene = Scene::new("replaced").await;
        let endpoint = Closed::reserve();
        let manifest = webhook("ci", &endpoint.url(), &patient());
        scene.apply(&manifest);
        let mut operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        backlog(&jobs, "first", 5).await;
        pending(&scene, "webhook", 10).await;
        let uid = || scene.get("webhook", "ci")["metadata"]["uid"].clone();
        let before = uid();
        replace(&scene, &manifest);
        assert_ne!(uid(), before);
        pending(&scene, "webhook", 10).await;
        operator.wait_log("takes over the pending deliveries", SOON).await;
        backlog(&jobs, "second", 2).await;
        pending(&scene, "webhook", 14).await;
        eventually("the ledger knows who took over", SOON, || async {
            (operator.metric("llmtune_webhooks_ledger_flush_duration_seconds_count", &[]) >= 2.0).then_some(())
        })
        .await;

        operator.process.kill();
        replace(&scene, &manifest);
        operator.restart();
        pending(&scene, "webhook", 14).await;

        // The minute for a successor passes while the operator is down, which does not count.
        let receiver = endpoint.open();
        receiver.wait(14, Duration::from_secs(60)).await;
        let (events, repeats) = distinct(&receiver, 14).await;
        assert_eq!(repeats, 0);
        println!("attempts: {:?}", events.iter().map(Received::attempt).collect::<Vec<_>>());
        assert!(events.iter().any(|post| post.attempt() > 1), "attempts before the replacement count");
        let dropped = || operator.metric("llmtune_webhooks_dropped_total", &[]);
        assert!(dropped() == 0.0);
        pending(&scene, "webhook", 0).await;
    });
}

#[test]
fn backlog_of_a_deleted_webhook_is_dropped_after_a_minute() {
    run(async {
        let scene = Scene::new("not-replaced").await;
        let (old, new) = (Closed::reserve(), Receiver::start().await);
        scene.webhook("ci", &old.url(), &patient());
        let operator = scene.operator().await;
        let jobs = Jobs::new(&scene).await;
        backlog(&jobs, "job", 3).await;
        pending(&scene, "webhook", 6).await;
        let deleted = Instant::now();
        scene.kubectl(&["delete", "webhook", "ci"]);
        // The same name with another URL is another subscription.
        scene.webhook("ci", &new.url(), &json!({}));
        scene.wait("webhook/ci", "condition=Ready");
        let labels = [("namespace", scene.namespace.as_str()), ("reason", "webhook_deleted")];
        eventually("it is counted", Duration::from_secs(90), || async {
            (operator.metric("llmtune_webhooks_dropped_total", &labels) as u64 == 6).then_some(())
        })
        .await;
        println!("dropped {:?} after the deletion", deleted.elapsed());
        assert!(deleted.elapsed() > Duration::from_secs(55));
        let note = scene.wait_event("Webhook", "ci", "DeliveriesDropped").await;
        println!("{note}");
        assert!(note.starts_with("6 deliveries were dropped: Webhook ci was deleted"), "{note}");
        assert_eq!(new.count(), 0, "{:?}", new.events());
        jobs.create("last").await;
        jobs.start("last").await;
        new.wait_for("training.started", "last", SOON).await;
    });
}

#[test]
fn replaced_cluster_webhook_takes_over_its_backlog() {
    run(async {
        let scene = Scene::alone("replaced-cluster").await;
        let endpoint = Closed::reserve();
        let mut manifest = webhook("ci", &endpoint.url(), &patient());
        manifest["kind"] = json!("ClusterWebhook");
        scene.apply(&manifest);
        let _operator = Operator::start_ready(&scene.plane, &scene.options().cluster_wide()).await;
        let jobs = Jobs::new(&scene).await;
        backlog(&jobs, "job", 3).await;
        pending(&scene, "clusterwebhook", 6).await;
        replace(&scene, &manifest);
        let receiver = endpoint.open();
        let (_, repeats) = distinct(&receiver, 6).await;
        assert_eq!(repeats, 0);
    });
}
