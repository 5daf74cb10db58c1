//! The content of the page, and who can see it.

use std::{sync::Arc, time::Duration};

use llmtune_webhooks_harness::{control_plane::ControlPlane, operator::Operator};

use super::*;
use crate::{custom_resources::of_cluster, plugin::Ran, support::webhook};

/// Watches wait before they retry.
const LONG: Duration = Duration::from_secs(90);

#[test]
fn page_escapes_content_and_has_no_secret() {
    run(async {
        let scene = Scene::new("dashboard-text").await;
        scene.secret("ci", SECRET);
        let spec = json!({"secretRef": {"name": "ci"}, "headers": [{"name": "X-Env", "value": "header-of-ci"}]});
        scene.webhook("ci", "https://ci.example.com/path-of-ci", &spec);
        let hostile =
            "</p><script>window.taken = 1</script><img src=x onerror='window.taken = 1'>\"'&amp;\u{202e}txet\u{1b}[2J";
        let shown = "</p><script>window.taken = 1</script><img src=x onerror='window.taken = 1'>\"'&amp;\u{fffd}txet\u{fffd}[2J";
        let condition = |kind: &str| json!({"type": kind, "status": "False", "reason": "A", "message": hostile, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"status": {
            "endpoint": hostile, "conditions": [condition("Ready"), condition("Healthy")],
            "deliveries": {"succeeded": i64::MAX, "failed": i64::MAX, "retries": i64::MAX, "pending": -1, "dropped": 0},
            "recent": [{"time": "2026-01-01T00:00:00Z", "event": &hostile[..60], "eventId": "evt_\"><b>", "object": hostile, "result": "<i>Lost</i>", "attempts": 1}]
        }});
        let patch = |kind: &str, name: &str, status: &Value| {
            scene.kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &status.to_string()]);
        };
        patch("webhook", "ci", &status);
        scene.apply(&json!({
            "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery",
            "metadata": {"name": "dlv-a", "annotations": {"llmtune.io/redeliver-requested-at": hostile}},
            "spec": {"webhookRef": {"name": "ci"}, "eventId": format!("evt_{}", "a".repeat(32))}
        }));
        patch(
            "webhookdelivery",
            "dlv-a",
            &json!({"status": {
                "conditions": [condition("Delivered"), {"type": "Finished", "status": "True", "reason": "A", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "event": {"id": "evt_a", "type": &hostile[..60], "sequence": 1, "object": {"kind": "<b>Job</b>", "name": hostile}, "body": "body-of-ci"},
                "attempts": 1, "lastHandledRedeliverAt": &hostile[..60], "finishedAt": "2026-01-01T00:00:00Z",
                "lastAttempt": {"time": "2026-01-01T00:00:00Z", "attempt": 1, "error": hostile}
            }}),
        );
        let dashboard = Dashboard::start(&scene, "admin", &[]).await;
        let mut browser = Browser::start();
        let hook = dashboard.of(&scene, "ci");
        for url in
            [&dashboard.url, &hook, &format!("{hook}?of=%3Cscript%3E&asked=%3Cb%3E"), &format!("{hook}?of=dlv-a")]
        {
            browser.open(url, json!({}));
            let text = browser.text();
            assert!(text.contains(shown) || url.contains("asked"), "{url}: {text}");
            becomes(
                &mut browser,
                "document.querySelectorAll('script').length === 1 && !document.querySelector('img, b, i')",
            )
            .await;
            assert_eq!(browser.evaluate("typeof window.taken"), "undefined");
            if !url.contains("asked") {
                dashboard.was_well(&mut browser);
            }
            let (_, body) = dashboard.ask("GET", url, &[], "").await;
            for secret in [SECRET, "path-of-ci", "header-of-ci", "body-of-ci", "admin-token"] {
                assert!(!body.contains(secret), "{secret}");
            }
        }
    });
}

#[test]
fn page_explains_missing_rights() {
    run(async {
        let scene = Scene::new("dashboard-rights").await;
        let receiver = refused(&scene).await;
        let _operator = scene.operator().await;
        given_up(&scene, &["a"]).await;
        let token = scene.plane.token(&scene.namespace, "reader").await;
        let reader = format!("dashboard-reader-{}", scene.namespace);
        scene.plane.write_kubeconfig_for(&reader, &token, scene.plane.port);
        let subject = json!([{"kind": "ServiceAccount", "name": "reader", "namespace": scene.namespace}]);
        let allow = |resources: &[&str]| {
            let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": reader});
            for object in [
                json!({"kind": "ClusterRole", "rules": [{"apiGroups": ["llmtune.io"], "resources": resources, "verbs": ["get", "list", "watch"]}]}),
                json!({"kind": "ClusterRoleBinding", "roleRef": role, "subjects": subject}),
            ] {
                let mut object = object;
                object["apiVersion"] = "rbac.authorization.k8s.io/v1".into();
                object["metadata"] = json!({"name": reader});
                scene.apply(&object);
            }
        };
        let ran = Ran::run(&mut command_as(&scene, &reader, &["dashboard"]), "");
        let message = ran.failed();
        assert!(message.contains("kubectl -n") && message.contains("create rolebinding llmtune-view"), "{message}");

        allow(&["webhooks"]);
        let dashboard = Dashboard::start(&scene, &reader, &["-A"]).await;
        let said = |text: String, what: &str| assert!(text.contains(what), "{what}: {text}");
        let read = |url: String| {
            let dashboard = &dashboard;
            async move { dashboard.ask("GET", &url, &[], "").await.1 }
        };
        eventually("the page says what is missing", SOON, || async {
            let text = read(dashboard.url.clone()).await;
            let both = text.contains("clusterwebhooks are cluster-scoped: ask a cluster admin")
                && text.contains("use -n NAMESPACE instead of -A");
            both.then_some(())
        })
        .await;
        said(read(dashboard.url.clone()).await, &format!("{}/ci", scene.namespace));
        eventually("the status's deliveries are shown", SOON, || async {
            read(dashboard.of(&scene, "ci")).await.contains("trainingjob/a").then_some(())
        })
        .await;

        allow(&["webhooks", "webhookdeliveries"]);
        let hook = dashboard.of(&scene, "ci");
        let text = eventually("deliveries are shown once they may be", LONG, || async {
            let text = read(hook.clone()).await;
            text.contains("Redeliver all 1 that failed").then_some(text)
        })
        .await;
        assert!(!text.contains("cannot list resource &quot;webhookdeliveries"), "{text}");
        let before = receiver.count();
        let headers = [("origin", dashboard.origin.as_str()), ("content-type", "application/x-www-form-urlencoded")];
        for (action, form) in [("test", "event=training.started"), ("redeliver", "")] {
            let (status, text) = dashboard.ask("POST", &format!("{hook}/{action}"), &headers, form).await;
            assert_eq!(status, 502, "{text}");
            said(text, "create rolebinding llmtune-edit --clusterrole=edit");
        }
        let (_, text) = dashboard.ask("POST", &format!("{hook}/redeliver"), &headers, "delivery=other").await;
        said(text, "there is no failed delivery to resend");
        let (_, text) = dashboard.ask("POST", &format!("{hook}/test"), &headers, "event=training.*").await;
        said(text, "there is no such event");
        assert_eq!(receiver.count(), before);
    });
}

#[test]
fn page_shows_all_namespaces_and_cluster_webhooks() {
    run(async {
        let plane = Arc::new(ControlPlane::start().await);
        plane.install_crds();
        let scene = Scene::on(Arc::clone(&plane), "dashboard-team").await;
        let home = Scene::on(Arc::clone(&plane), "dashboard-operator").await;
        let receiver = Receiver::answering(|_| Answer::status(500)).await;
        let spec = json!({"delivery": {"maxRetries": 0}});
        scene.webhook("ci", &receiver.url(), &json!({"suspend": true}));
        scene.apply(&of_cluster(&webhook("ci", &receiver.url(), &spec)));
        let _operator = Operator::start_ready(&plane, &home.options().cluster_wide()).await;
        scene.wait("clusterwebhook/ci", "condition=Ready");
        let dashboard = Dashboard::start(&scene, "admin", &["-A"]).await;
        scene.job("a");
        scene.phase("a", "Running");
        let mut browser = Browser::start();
        browser.open(&dashboard.url, without_javascript());
        says(&mut browser, "Webhooks in all namespaces").await;
        says(&mut browser, &format!("{}/ci", scene.namespace)).await;
        says(&mut browser, "ci ClusterWebhook").await;
        browser.ask("click", json!({"selector": "h2 a[id^='hook-ClusterWebhook-']"}));
        says(&mut browser, &format!("ClusterWebhook, its deliveries in namespace {}", home.namespace)).await;
        says(&mut browser, "Redeliver all 1 that failed").await;
        assert!(browser.text().contains(&format!("trainingjob/{}/a", scene.namespace)), "{}", browser.text());
        receiver.answer(|_| Answer::status(200));
        browser.ask("click", json!({"selector": "#again"}));
        says(&mut browser, "1 delivery requested again.").await;
        receiver.wait_for("training.started", "a", SOON).await;
        browser.ask("click", json!({"selector": "#test"}));
        says(&mut browser, "was acknowledged with HTTP 200.").await;
        // The Webhook of that name in the other namespace has its own pending deliveries.
        browser.open(&dashboard.of(&scene, "ci"), without_javascript());
        assert!(browser.text().contains("Suspended") && browser.text().contains("None yet."), "{}", browser.text());

        // While the apiserver is unreachable, the page still shows the known objects, and reports the problem.
        plane.stop_apiserver();
        says(&mut browser, "the cluster does not answer, trying again: ").await;
        assert!(browser.text().contains("Suspended"), "{}", browser.text());
        browser.ask("click", json!({"selector": "#test"}));
        assert!(browser.text().contains("the request to the cluster at https://127.0.0.1:"), "{}", browser.text());
        plane.start_apiserver();
        plane.wait_ready().await;
        scene.kubectl(&["annotate", "webhook", "ci", "changed=now"]);
        browser.open(&dashboard.of(&scene, "ci"), without_javascript());
        eventually("the page says no more that it is away", LONG, || async {
            let (_, text) = dashboard.ask("GET", &dashboard.of(&scene, "ci"), &[], "").await;
            (!text.contains("the cluster does not answer")).then_some(())
        })
        .await;
    });
}
