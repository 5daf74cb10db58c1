//! `ClusterWebhooks` deliver the events of many namespaces. Their references and their dead letters are in the
//! operator's namespace.

use std::sync::Arc;

use llmtune_api::webhook_delivery::REDELIVER_ANNOTATION;
use llmtune_webhooks_harness::{
    control_plane::ControlPlane,
    eventually,
    operator::{Operator, install_roles},
    receiver::{Answer, Receiver},
};
use serde_json::{Value, json};

use crate::{
    custom_resources::{Apiserver, of_cluster},
    secrets::{from, secret, url_from},
    support::{Jobs, SOON, Scene, run, webhook},
};

const READY: &str = "condition=Ready";

/// A `ClusterWebhook`'s manifest; `spec` is merged over its url and `events: ["*"]`.
fn cluster_webhook(name: &str, url: &str, spec: &Value) -> Value {
    of_cluster(&webhook(name, url, spec))
}

/// Selects the namespaces of a team.
fn of_team(team: &str) -> Value {
    json!({"namespaceSelector": {"matchLabels": {"team": team}}})
}

/// A namespace with this label, and a scene in it.
fn namespace(plane: &Arc<ControlPlane>, name: &str, team: &str) -> Scene {
    let scene = Scene { plane: Arc::clone(plane), namespace: name.to_owned() };
    scene
        .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}}));
    scene
}

/// Deletes an empty namespace. This control plane has no namespace controller.
fn delete_namespace(scene: &Scene) {
    scene.kubectl(&["delete", "namespace", &scene.namespace, "--wait=false"]);
    let finalized = json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": scene.namespace}, "spec": {"finalizers": []}
    });
    let path = format!("/api/v1/namespaces/{}/finalize", scene.namespace);
    let output = scene.plane.kubectl_with_input(&["replace", "--raw", &path, "-f", "-"], &finalized.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Status, reason and message of a condition of any object.
fn condition(object: &Value, kind: &str) -> Option<(String, String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == kind)?;
    let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Waits until a delivery is finished.
async fn finished(scene: &Scene, name: &str) -> Value {
    eventually(&format!("{name} is finished"), SOON, || async {
        let object = scene.get("whd", name);
        condition(&object, "Finished").is_some_and(|finished| finished.0 == "True").then_some(object)
    })
    .await
}

/// Requests a test of a webhook of this kind here, as a user does. Returns its object once it is finished.
async fn test(scene: &Scene, name: &str, kind: &str) -> Value {
    scene.apply(&json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": name},
        "spec": {"webhookRef": {"kind": kind, "name": "ci"}, "test": {"event": "model.deployed"}}
    }));
    finished(scene, name).await
}

/// Namespace and object of each request.
fn objects(receiver: &Receiver) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let posts = receiver.received().into_iter().map(|post| post.json()["data"].clone());
    posts.map(|data| (text(&data["namespace"]), text(&data["name"]))).collect()
}

#[test]
fn cluster_webhook_gets_only_selected_namespaces() {
    run(async {
        let home = Scene::alone("cluster").await;
        let (a, b) = (namespace(&home.plane, "a", "a"), namespace(&home.plane, "b", "b"));
        let [of_a, of_all, in_a, at_home] =
            [Receiver::start().await, Receiver::start().await, Receiver::start().await, Receiver::start().await];
        home.apply(&secret("platform", true, &json!({"secret": "s3cret", "url": of_a.url(), "token": "Bearer a"})));
        let mut signed = of_team("a");
        signed["secretRef"] = json!({"name": "platform"});
        signed["headers"] = json!([{"name": "Authorization", "valueFrom": from("platform", "token")}]);
        home.apply(&of_cluster(&url_from("ci", "platform", &signed)));
        home.apply(&cluster_webhook("everything", &of_all.url(), &json!({"filter": "data.name != 'quiet'"})));
        a.webhook("ci", &in_a.url(), &json!({}));
        home.webhook("ci", &at_home.url(), &json!({}));
        let mut operator = Operator::start_ready(&home.plane, &home.options().cluster_wide()).await;
        home.wait("clusterwebhook/ci", READY);

        for (scene, job) in [(&a, "one"), (&b, "two"), (&b, "quiet")] {
            scene.job(job);
            scene.phase(job, "Running");
        }
        let first = of_a.wait_for("training.started", "one", SOON).await;
        assert!(first.is_signed_with("s3cret"), "with the Secret of the operator's namespace");
        assert_eq!(first.header("authorization"), "Bearer a");
        in_a.wait_for("training.started", "one", SOON).await;
        of_all.wait_for("training.started", "two", SOON).await;
        let pair = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        assert_eq!(objects(&of_a), [pair("a", "one")]);
        assert_eq!(objects(&of_all), [pair("a", "one"), pair("b", "two")]);
        assert_eq!(objects(&in_a), [pair("a", "one")]);

        // The namespaces are new: the operator may see their objects first.
        for number in 0..10 {
            let scene = namespace(&home.plane, &format!("new-{number}"), "a");
            let jobs = Jobs::new(&scene).await;
            jobs.create(&format!("new-{number}")).await;
            jobs.start(&format!("new-{number}")).await;
        }
        for number in 0..10 {
            of_a.wait_for("training.started", &format!("new-{number}"), SOON).await;
        }
        assert_eq!(objects(&of_a).len(), 11, "each once");

        // Later events follow the new labels. The operator sees the changes in this order.
        a.kubectl(&["label", "namespace", "a", "team=none", "--overwrite"]);
        b.kubectl(&["label", "namespace", "b", "team=a", "--overwrite"]);
        let starts = |scene: &Scene, name: &str| {
            scene.job(name);
            scene.phase(name, "Running");
        };
        let mut number = 0;
        while objects(&of_a).iter().all(|(namespace, _)| namespace != "b") {
            let name = format!("relabelled-{number}");
            starts(&b, &name);
            of_all.wait_for("training.started", &name, SOON).await;
            number += 1;
            assert!(number < 100, "{:?}", of_a.events());
        }
        starts(&a, "unwanted");
        in_a.wait_for("training.started", "unwanted", SOON).await;
        starts(&b, "last");
        of_a.wait_for("training.started", "last", SOON).await;
        assert!(!objects(&of_a).contains(&pair("a", "unwanted")), "{:?}", of_a.events());

        for (metric, labels) in [
            ("llmtune_webhooks_deliveries_total", [("namespace", ""), ("webhook", "ci"), ("result", "delivered")]),
            ("llmtune_webhooks_deliveries_total", [("namespace", "a"), ("webhook", "ci"), ("result", "delivered")]),
            ("llmtune_webhooks_webhook_condition", [("namespace", ""), ("type", "Ready"), ("status", "True")]),
        ] {
            assert!(operator.metric(metric, &labels) >= 1.0, "{metric} {labels:?}\n{}", operator.metrics());
        }

        // While no operator leads, a namespace is deleted with its running job.
        let gone = namespace(&home.plane, "gone", "a");
        gone.job("goes");
        gone.phase("goes", "Running");
        of_a.wait_for("training.started", "goes", SOON).await;
        operator.stop();
        gone.kubectl(&["delete", "trainingjob", "goes"]);
        delete_namespace(&gone);
        operator.restart();
        let lost = of_a.wait_for("training.failed", "goes", SOON).await.json();
        assert_eq!(lost["data"]["namespace"], "gone");
        assert_eq!(at_home.count(), 0, "{:?}", at_home.events());
        assert!(objects(&in_a).iter().all(|(namespace, _)| namespace == "a"), "{:?}", objects(&in_a));

        home.kubectl(&["delete", "clusterwebhook", "ci"]);
        eventually("its series go", SOON, || async {
            let metrics = operator.metrics();
            (!metrics.contains("namespace=\"\",webhook=\"ci\"") && metrics.contains("namespace=\"a\"")).then_some(())
        })
        .await;
    });
}

#[test]
fn dead_letters_of_cluster_webhooks_are_in_the_operators_namespace() {
    run(async {
        let home = Scene::alone("cluster-kept").await;
        let team = namespace(&home.plane, "team", "a");
        let broken = Receiver::answering(|_| Answer::status(500)).await;
        let namesake = Receiver::answering(|_| Answer::status(500)).await;
        home.apply(&cluster_webhook("ci", &broken.url(), &json!({"delivery": {"maxRetries": 0}})));
        home.webhook("ci", &namesake.url(), &json!({"delivery": {"maxRetries": 0}}));
        let operator = Operator::start_ready(&home.plane, &home.options().cluster_wide()).await;
        team.job("a");
        team.phase("a", "Running");
        home.job("b");
        home.phase("b", "Running");
        let of = |kind: &str| format!("llmtune.io/webhook=ci,llmtune.io/webhook-kind={kind}");
        let kept = |kind: &'static str, count: usize| {
            let home = &home;
            async move {
                let what = format!("{count} deliveries of the {kind} are kept");
                let selector = of(kind);
                eventually(&what, SOON, || async {
                    let items = home.list("whd", &selector);
                    assert!(items.len() <= count, "{items:#?}");
                    let done = items.iter().filter(|item| item["status"]["finishedAt"].is_string()).count();
                    (done == count).then_some(items)
                })
                .await
            }
        };
        // The operator's own namespace counts among all namespaces.
        let objects = kept("ClusterWebhook", 2).await;
        kept("Webhook", 1).await;
        let uid = home.get("clusterwebhook", "ci")["metadata"]["uid"].clone();
        for object in &objects {
            assert_eq!(object["spec"]["webhookRef"], json!({"kind": "ClusterWebhook", "name": "ci"}));
            let owner = &object["metadata"]["ownerReferences"][0];
            assert_eq!((&owner["kind"], &owner["uid"]), (&json!("ClusterWebhook"), &uid));
        }
        let of_team = objects.iter().find(|object| object["status"]["event"]["object"]["name"] == "a").unwrap();
        assert_eq!(of_team["status"]["event"]["object"]["namespace"], "team");
        // The Event about a cluster-scoped object is in the namespace default.
        let says = [
            "trainingjob/team/a".to_owned(),
            "Subscribed".to_owned(),
            "was given up after 1 attempt".to_owned(),
            format!("kubectl -n {} get whd -l {}", home.namespace, of("ClusterWebhook")),
        ];
        eventually("kubectl describe tells of it", SOON, || async {
            let described = home.kubectl(&["describe", "cwh", "ci"]);
            says.iter().all(|says| described.contains(says)).then_some(())
        })
        .await;
        home.wait_event("TrainingJob", "b", "WebhookDeliveryExhausted").await;
        let notes = team.events("TrainingJob", "a");
        assert!(notes.is_empty(), "a tenant learns nothing of the platform's endpoint: {notes:?}");

        // One command requests the dead letters of both kinds; each is sent to its own webhook.
        broken.answer(|_| Answer::status(200));
        namesake.answer(|_| Answer::status(200));
        let request = format!("{REDELIVER_ANNOTATION}=2026-01-01T00:00:00Z");
        home.kubectl(&["annotate", "whd", "-l", "llmtune.io/webhook=ci", &request]);
        home.kubectl(&["wait", "whd", "-l", "llmtune.io/webhook=ci", "--for=condition=Delivered", "--timeout=60s"]);
        assert_eq!((broken.count(), namesake.count()), (4, 2), "{:?} {:?}", broken.events(), namesake.events());
        let ids = |receiver: &Receiver| {
            let ids = receiver.received().into_iter().map(|post| post.delivery_id().to_owned());
            ids.collect::<std::collections::BTreeSet<String>>()
        };
        assert_eq!((ids(&broken).len(), ids(&namesake).len()), (2, 1));
        assert!(ids(&broken).is_disjoint(&ids(&namesake)), "of one event too");
        home.wait("clusterwebhook/ci", "condition=Healthy");
        let row = home.kubectl(&["get", "cwh", "ci", "--no-headers"]);
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[2..6], ["True", "True", "0", "2"], "ready, healthy, pending, failed: {row}");

        // A test, here and in a namespace where tests are not allowed.
        let tried = test(&home, "try", "ClusterWebhook").await;
        assert_eq!(condition(&tried, "Delivered").unwrap().0, "True");
        eventually("the test is the ClusterWebhook's", SOON, || async {
            let metadata = &home.get("whd", "try")["metadata"];
            let kind = &metadata["labels"]["llmtune.io/webhook-kind"];
            (kind == "ClusterWebhook" && metadata["ownerReferences"][0]["uid"] == uid).then_some(())
        })
        .await;
        assert_eq!((broken.count(), namesake.count()), (5, 2));
        let refused = test(&team, "try", "ClusterWebhook").await;
        let (delivered, reason, message) = condition(&refused, "Delivered").unwrap();
        assert_eq!((delivered.as_str(), reason.as_str()), ("False", "NotInOperatorNamespace"));
        assert!(message.contains(&format!("create this one in {}", home.namespace)), "{message}");
        assert_eq!(broken.count(), 5, "nothing was sent");

        // 410, a deletion, and the dead letters.
        broken.answer(|_| Answer::status(410));
        team.phase("a", "Completed");
        eventually("the endpoint is gone", SOON, || async {
            let (status, reason, _) = condition(&home.get("cwh", "ci"), "Healthy")?;
            (status == "False" && reason == "EndpointGone").then_some(())
        })
        .await;
        kept("ClusterWebhook", 4).await;
        home.kubectl(&["delete", "cwh", "ci"]);
        operator.wait_log("the ClusterWebhook is deleted", SOON).await;
        let late = test(&home, "late", "ClusterWebhook").await;
        let (_, reason, message) = condition(&late, "Delivered").unwrap();
        assert_eq!(
            (reason.as_str(), message.as_str()),
            ("WebhookNotFound", "there is no ClusterWebhook ci: create it, then request the delivery again")
        );
    });
}

#[test]
fn watch_namespace_excludes_cluster_webhooks() {
    run(async {
        const SAYS: &str = "ClusterWebhook and WebhookSource are not served";
        let scene = Scene::new("narrow").await;
        let mut operator = scene.operator().await;
        operator.wait_readyz(SAYS, SOON).await;
        operator.wait_log(SAYS, SOON).await;
        let asked = test(&scene, "try", "ClusterWebhook").await;
        let (delivered, reason, message) = condition(&asked, "Delivered").unwrap();
        assert_eq!((delivered.as_str(), reason.as_str()), ("False", "ClusterWebhooksNotServed"));
        assert!(message.contains("--watch-namespace"), "{message}");
    });
}

#[test]
fn later_definitions_and_rights_are_picked_up() {
    run(async {
        let home = Scene::alone("cluster-late").await;
        home.kubectl(&["delete", "crd", "clusterwebhooks.llmtune.io"]);
        let team = namespace(&home.plane, "team", "a");
        let [receiver, of_a] = [Receiver::start().await, Receiver::start().await];
        team.webhook("ci", &receiver.url(), &json!({}));
        let mut operator = Operator::start_ready(&home.plane, &home.options().cluster_wide()).await;
        operator.wait_log("ClusterWebhooks cannot be listed; continuing without them", SOON).await;
        team.job("a");
        team.phase("a", "Running");
        receiver.wait_for("training.started", "a", SOON).await;

        // The definition and a ClusterWebhook are created; the role is that of an older release.
        home.plane.install_crds();
        let role = ["clusterrole", "llmtune-webhooks"];
        let before = home.kubectl(&["get", role[0], role[1], "-o", "json"]);
        let mut narrowed: Value = serde_json::from_str(&before).unwrap();
        let rules = narrowed["rules"].as_array_mut().unwrap();
        rules.retain(|rule| !rule["resources"].as_array().unwrap().contains(&json!("namespaces")));
        let patch = json!({"rules": rules}).to_string();
        home.kubectl(&["patch", role[0], role[1], "--type=merge", "-p", &patch]);
        home.apply(&cluster_webhook("ci", &of_a.url(), &of_team("a")));
        let message = eventually("it says what it lacks", SOON, || async {
            let (status, reason, message) = condition(&home.get("cwh", "ci"), "Ready")?;
            (status == "False" && reason == "NamespacesForbidden").then_some(message)
        })
        .await;
        assert!(message.contains("grant") && message.contains("rbac.yaml"), "{message}");
        // After a start nothing is observed before the subscriptions are known.
        operator.stop();
        team.phase("a", "Completed");
        operator.restart();
        operator.wait_log("watch interrupted; trying again kind=Namespace", SOON).await;
        assert_eq!(operator.get("/readyz").unwrap().0, 503);
        assert_eq!(of_a.count(), 0);

        install_roles(&home.plane, &home.namespace);
        home.wait("clusterwebhook/ci", READY);
        operator.wait_ready().await;
        of_a.wait_for("training.completed", "a", SOON).await;
        receiver.wait_for("training.completed", "a", SOON).await;
        assert_eq!((of_a.count(), receiver.count()), (1, 2));
    });
}

#[test]
fn cluster_webhook_merges_several_managers() {
    run(async {
        let scene = Scene::alone("cluster-managers").await;
        let apiserver = Apiserver::of(&scene).await;
        let applied = |spec: Value| {
            let mut manifest = cluster_webhook("ci", "https://ci.example.com", &json!({}));
            manifest["spec"] = spec;
            manifest
        };
        let first = json!({
            "url": "https://ci.example.com", "events": ["training.*"],
            "namespaceSelector": {"matchLabels": {"team": "a"}}
        });
        apiserver.apply("gitops", "", &applied(first)).await.unwrap();
        let merged = apiserver.apply("team", "", &applied(json!({"events": ["model.deployed"]}))).await.unwrap();
        assert_eq!(merged["spec"]["events"].as_array().unwrap().len(), 2, "{merged:#}");
        let other = json!({"namespaceSelector": {"matchLabels": {"tier": "prod"}}});
        let conflict = apiserver.apply("team", "", &applied(other.clone())).await.unwrap_err();
        assert!(conflict.contains("conflict with \"gitops\": .spec.namespaceSelector"), "{conflict}");
        let forced = apiserver.apply("team&force=true", "", &applied(other.clone())).await.unwrap();
        assert_eq!(forced["spec"]["namespaceSelector"], other["namespaceSelector"], "it is replaced whole");

        scene.webhook("ci", "https://ci.example.com", &json!({}));
        let header = |kind: &str| {
            let text = scene.kubectl(&["get", kind, "-o", "wide"]);
            text.lines().next().unwrap().split_whitespace().map(str::to_owned).collect::<Vec<String>>()
        };
        assert_eq!(header("cwh"), header("wh"));
        let category = scene.kubectl(&["get", "llmtune", "-o", "name"]);
        let names: Vec<&str> = category.lines().collect();
        assert_eq!(names, ["clusterwebhook.llmtune.io/ci", "webhook.llmtune.io/ci"]);
    });
}
