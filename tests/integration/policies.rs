//! The admission policies in `examples/policies/`, as a platform team applies them: each refusal says what to write
//! instead.

use std::sync::Arc;

use llmtune_webhooks_harness::{control_plane::ControlPlane, eventually, root};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::{
    custom_resources::of_cluster,
    secrets::url_from,
    support::{SOON, Scene, run, webhook},
};

/// The control plane that these tests share, one at a time: a policy applies to all of it.
async fn plane() -> (Arc<ControlPlane>, MutexGuard<'static, ()>) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    static PLANE: OnceCell<Arc<ControlPlane>> = OnceCell::const_new();
    let turn = ONE_AT_A_TIME.lock().await;
    let plane = PLANE.get_or_init(|| async {
        let plane = ControlPlane::start().await;
        plane.install_crds();
        // The operator's namespace in the examples.
        assert!(plane.kubectl(&["create", "namespace", "llmtune-system"]).status.success());
        Arc::new(plane)
    });
    (Arc::clone(plane.await), turn)
}

/// Applies an example, and waits until this Webhook is refused or warned about.
async fn apply(scene: &Scene, example: &str, unwanted: &Value) {
    let output = scene.plane.kubectl(&["apply", "--server-side", "--validate=strict", "-f", &file(example)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eventually(&format!("{example} is in force"), SOON, || async {
        messages(scene, unwanted).contains("ValidatingAdmissionPolicy").then_some(())
    })
    .await;
}

/// Deletes an example, and waits until this Webhook is accepted without a warning.
async fn withdraw(scene: &Scene, example: &str, unwanted: &Value) {
    scene.plane.kubectl(&["delete", "--ignore-not-found", "-f", &file(example)]);
    eventually(&format!("{example} is withdrawn"), SOON, || async {
        messages(scene, unwanted).is_empty().then_some(())
    })
    .await;
}

fn file(example: &str) -> String {
    root().join("examples/policies").join(example).to_str().unwrap().to_owned()
}

/// The apiserver's messages when a user applies this object.
fn messages(scene: &Scene, object: &Value) -> String {
    let arguments = ["-n", &scene.namespace, "apply", "--server-side", "--dry-run=server", "-f", "-"];
    let output = scene.plane.kubectl_with_input(&arguments, &object.to_string());
    String::from_utf8(output.stderr).unwrap()
}

fn to(url: &str) -> Value {
    webhook("new", url, &json!({}))
}

#[track_caller]
fn refused(scene: &Scene, object: &Value, says: &str) {
    let messages = messages(scene, object);
    assert!(messages.contains("denied request") && messages.contains(says), "{object}: {messages}");
    assert!(scene.try_apply(object).is_err());
}

#[track_caller]
fn taken(scene: &Scene, object: &Value) {
    assert_eq!(messages(scene, object), "", "{object}");
}

#[test]
fn https_policy_refuses_http_but_allows_existing_webhooks() {
    run(async {
        let (plane, _turn) = plane().await;
        let scene = Scene::on(plane, "https-only").await;
        scene.webhook("old", "http://ci.example.com/hooks", &json!({}));
        apply(&scene, "https-only.yaml", &to("http://ci.example.com/")).await;
        refused(&scene, &to("http://ci.example.com/"), "have the endpoint speak TLS, and write https://");
        refused(&scene, &to("HTTP://ci.example.com/"), "have the endpoint speak TLS, and write https://");
        taken(&scene, &to("https://ci.example.com/"));

        let _operator = scene.operator().await;
        scene.wait("webhook/old", "condition=Ready");
        scene.kubectl(&["label", "webhook", "old", "team=research"]);
        refused(&scene, &webhook("old", "http://ci.example.com/other", &json!({})), "write https://");
        let finalizers = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}}).to_string();
        let patch = |finalizers: &str| {
            scene.kubectl(&["patch", "webhook", "old", "--type=merge", "-p", finalizers]);
        };
        patch(&finalizers(json!(["example.com/backup"])));
        scene.kubectl(&["delete", "--wait=false", "webhook", "old"]);
        patch(&finalizers(json!(null)));
        scene.wait("webhook/old", "delete");
        withdraw(&scene, "https-only.yaml", &to("http://ci.example.com/")).await;
    });
}

#[test]
fn namespace_annotation_limits_hosts_in_every_spelling() {
    run(async {
        let (plane, _turn) = plane().await;
        let scene = Scene::on(plane, "hosts").await;
        let ci = to("https://ci.example.com/hooks");
        apply(&scene, "hosts-by-namespace.yaml", &ci).await;
        refused(&scene, &ci, "names the host ci.example.com, and this namespace may send to none: ");
        let annotation = "llmtune.io/webhook-hosts=CI.example.com, *.hooks.example.com,10.1.2.3 , fd00::1";
        scene.kubectl(&["annotate", "namespace", &scene.namespace, annotation]);
        eventually("the annotation is in force", SOON, || async { messages(&scene, &ci).is_empty().then_some(()) })
            .await;
        for url in [
            "https://ci.example.com/",
            "https://CI.EXAMPLE.com:8443/a?b=c",
            "http://a.hooks.example.com/",
            "http://a.b.hooks.example.com/",
            "http://10.1.2.3/",
            "http://[fd00::1]:8080/",
        ] {
            taken(&scene, &to(url));
        }
        for url in [
            "https://other.example.com/",
            "https://hooks.example.com/",
            "https://evilhooks.example.com/",
            "https://ci.example.com.evil.example/",
            "https://evil.example/ci.example.com",
            "https://evil.example/?https://ci.example.com",
            "https://ci.example.com./",
            "https://ci.example.com\u{ff0e}evil.example/",
            "https://evil.example\u{3002}ci.example.com/",
            "http://10.1.2.30/",
            "http://0xa.1.2.3/",
            "http://[fd00::2]/",
            "http://167838211/",
        ] {
            refused(&scene, &to(url), "write one of these, or ask the platform team to add yours to the annotation");
        }
        // The apiserver refuses URLs that the URL standard parses differently from the policy.
        for url in [
            "https://ci.example.com@evil.example/",
            "https://evil.example\\.hooks.example.com/",
            "https://evil.example#.hooks.example.com/",
            "https://evil.example\t.hooks.example.com/",
            "https:///evil.example/.hooks.example.com/",
            "https:\\\\evil.example/.hooks.example.com/",
            "https:evil.example/.hooks.example.com/",
            "https://%63i.example.com/",
        ] {
            assert!(messages(&scene, &to(url)).contains("spec.url"), "{url}");
        }
        let elsewhere = Scene::on(Arc::clone(&scene.plane), "elsewhere").await;
        refused(&elsewhere, &ci, "this namespace may send to none");
        withdraw(&scene, "hosts-by-namespace.yaml", &to("https://other.example.com/")).await;
    });
}

#[test]
fn cluster_hosts_come_from_a_config_map() {
    run(async {
        let (plane, _turn) = plane().await;
        let scene = Scene::on(plane, "configmap").await;
        let other = to("https://other.example.com/");
        apply(&scene, "hosts-by-configmap.yaml", &other).await;
        eventually("the list is read", SOON, || async {
            messages(&scene, &to("https://ci.example.com/")).is_empty().then_some(())
        })
        .await;
        taken(&scene, &to("https://a.hooks.example.com/"));
        let says = "and this cluster may send to ci.example.com, *.hooks.example.com: write one of these";
        refused(&scene, &other, says);
        let more = json!({"data": {"hosts": "ci.example.com\nother.example.com"}}).to_string();
        let list = ["-n", "llmtune-system", "patch", "configmap", "llmtune-webhook-hosts", "--type=merge", "-p", &more];
        assert!(scene.plane.kubectl(&list).status.success());
        eventually("the new list is read", SOON, || async { messages(&scene, &other).is_empty().then_some(()) }).await;
        assert!(
            scene
                .plane
                .kubectl(&["-n", "llmtune-system", "delete", "configmap", "llmtune-webhook-hosts"])
                .status
                .success()
        );
        eventually("without a list nothing is let in", SOON, || async {
            messages(&scene, &other).contains("llmtune-webhooks-hosts-by-configmap").then_some(())
        })
        .await;
        withdraw(&scene, "hosts-by-configmap.yaml", &other).await;
    });
}

#[test]
fn url_policies_refuse_urls_from_secrets() {
    run(async {
        let (plane, _turn) = plane().await;
        let scene = Scene::on(plane, "url-from").await;
        scene.kubectl(&["annotate", "namespace", &scene.namespace, "llmtune.io/webhook-hosts=ci.example.com"]);
        let (allowed, unwanted) = (to("https://ci.example.com/"), to("http://other.example.com/"));
        let hidden = url_from("new", "hook", &json!({}));
        for (example, says) in [
            ("https-only.yaml", "whether the url in a Secret is https cannot be checked: write it in spec.url"),
            ("hosts-by-namespace.yaml", "cannot be checked against the hosts that this namespace may send to"),
            ("hosts-by-configmap.yaml", "cannot be checked against the hosts that this cluster may send to"),
        ] {
            apply(&scene, example, &unwanted).await;
            refused(&scene, &hidden, says);
            eventually("the allowed host is known", SOON, || async {
                messages(&scene, &allowed).is_empty().then_some(())
            })
            .await;
            scene.apply(&allowed);
            refused(&scene, &hidden, says);
            scene.kubectl(&["delete", "webhook", "new"]);
            let [allowed, unwanted, hidden] = [&allowed, &unwanted, &hidden].map(of_cluster);
            taken(&scene, &allowed);
            if example == "hosts-by-namespace.yaml" {
                // It is cluster-scoped.
                taken(&scene, &unwanted);
            } else {
                refused(&scene, &unwanted, "write");
                refused(&scene, &hidden, says);
            }
            withdraw(&scene, example, &to("http://other.example.com/")).await;
        }
        apply(&scene, "warnings.yaml", &unwanted).await;
        assert!(messages(&scene, &of_cluster(&unwanted)).contains("use https:// if the endpoint supports TLS"));
        let hidden = messages(&scene, &hidden);
        assert!(hidden.contains("name a Secret in spec.secretRef") && !hidden.contains("https"), "{hidden}");
        withdraw(&scene, "warnings.yaml", &unwanted).await;
    });
}

#[test]
fn warning_policy_admits_http_and_unsigned_webhooks() {
    run(async {
        let (plane, _turn) = plane().await;
        let scene = Scene::on(plane, "warnings").await;
        let plain = to("http://ci.example.com/");
        apply(&scene, "warnings.yaml", &plain).await;
        let both = messages(&scene, &plain);
        assert!(both.contains("Warning: ") && both.contains("use https:// if the endpoint supports TLS"), "{both}");
        assert!(both.contains("name a Secret in spec.secretRef"), "{both}");
        scene.apply(&plain);
        let signed = json!({"secretRef": {"name": "ci"}});
        let over_http = messages(&scene, &webhook("new", "http://ci.example.com/", &signed));
        assert!(over_http.contains("use https://") && !over_http.contains("secretRef"), "{over_http}");
        let unsigned = messages(&scene, &to("https://ci.example.com/"));
        assert!(!unsigned.contains("use https://") && unsigned.contains("secretRef"), "{unsigned}");
        taken(&scene, &webhook("new", "https://ci.example.com/", &signed));
        withdraw(&scene, "warnings.yaml", &plain).await;
    });
}

#[test]
fn quota_limits_webhooks_per_namespace() {
    run(async {
        let scene = Scene::new("webhook-quota").await;
        scene.kubectl(&["apply", "--server-side", "--validate=strict", "-f", &file("quota.yaml")]);
        // In place of kube-controller-manager.
        let hard = scene.get("resourcequota", "llmtune-webhooks")["spec"]["hard"].clone();
        let status = json!({"status": {"hard": hard, "used": hard}}).to_string();
        let patch =
            ["patch", "resourcequota", "llmtune-webhooks", "--subresource=status", "--type=merge", "-p", &status];
        scene.kubectl(&patch);
        eventually("one more is refused", SOON, || async {
            messages(&scene, &to("https://ci.example.com/")).contains("exceeded quota: llmtune-webhooks").then_some(())
        })
        .await;
    });
}
