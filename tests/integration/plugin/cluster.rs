//! Clusters without Webhooks, with operators, with `ClusterWebhooks`; and names that do not exist.

use std::sync::Arc;

use llmtune_webhooks_harness::control_plane::ControlPlane;

use super::*;
use crate::{custom_resources::of_cluster, support::webhook};

#[test]
fn what_is_not_there_is_told_with_what_is() {
    run(async {
        let scene = Scene::new("plugin-names").await;
        let other = scene.plane.namespace("plugin-other").await;
        let output = plugin(&scene, &["test", "nightly"]).failed();
        assert!(
            output.contains("no Webhook exists there yet; to create one, run kubectl llmtune create nightly --url"),
            "{output}"
        );
        scene.webhook("ci-main", "https://ci.example.com", &json!({}));
        let elsewhere = Scene { plane: Arc::clone(&scene.plane), namespace: other.clone() };
        elsewhere.webhook("plugin-elsewhere", "https://ci.example.com", &json!({}));
        let output = plugin(&scene, &["deliveries", "ci-mian"]).failed();
        assert_eq!(
            output,
            format!("error: there is no Webhook ci-mian in namespace {}\ndid you mean ci-main?\n", scene.namespace)
        );
        let output = plugin(&scene, &["redeliver", "plugin-elsewhere"]).failed();
        assert!(output.contains(&format!("another namespace has one: use -n {other}")), "{output}");
        let ran = plugin(&scene, &["test", "pod/ci"]);
        assert!(ran.code == 2 && ran.err.contains("use webhook/NAME or clusterwebhook/NAME"), "{ran:?}");

        for (arguments, says) in [
            (&["--context", "tset"][..], "there is no context \"tset\"\ndid you mean test?"),
            (&["--kubeconfig", "/nowhere"], "the kubeconfig /nowhere cannot be used"),
        ] {
            let output = plugin(&scene, &[&["status"], arguments].concat()).failed();
            assert!(output.contains(says), "{output}");
        }
        // NO_PROXY exempts hosts from the environment's proxy.
        let through = |no_proxy: &str| {
            let mut status = command(&scene, &["status"]);
            Ran::run(status.env("HTTPS_PROXY", "http://127.0.0.1:9").env("NO_PROXY", no_proxy), "")
        };
        assert!(through("localhost,127.0.0.0/8").succeeded().contains("ci-main"));
        // As in Go, loopback never uses a proxy.
        assert!(through("").succeeded().contains("ci-main"));

        let away = temporary_folder("away").join("kubeconfig");
        let config = fs::read_to_string(scene.plane.kubeconfig("admin")).unwrap();
        fs::write(&away, config.replace(&format!(":{}", scene.plane.port), ":9")).unwrap();
        let output = plugin(&scene, &["status", "--kubeconfig", away.to_str().unwrap()]).failed();
        assert!(
            output.contains("the request to the cluster at https://127.0.0.1:9 failed: ")
                && output.contains("kubectl cluster-info"),
            "{output}"
        );
        let expired = fs::read_to_string(scene.plane.kubeconfig("admin")).unwrap().replace("admin-token", "expired");
        fs::write(&away, expired).unwrap();
        let output = plugin(&scene, &["status", "--kubeconfig", away.to_str().unwrap()]).failed();
        assert!(output.contains("rejected your credentials") && output.contains("log in again"), "{output}");
    });
}

#[test]
fn cluster_webhook_is_tested_in_the_operators_namespace() {
    run(async {
        let plane = Arc::new(ControlPlane::start().await);
        let scene = Scene::on(Arc::clone(&plane), "plugin-team").await;
        let output = plugin(&scene, &["status"]).failed();
        assert!(output.contains("the CRDs of llmtune-webhooks are not installed"), "{output}");
        assert!(output.contains("kubectl apply -f crds/"), "{output}");
        plane.install_crds();
        let home = Scene::on(Arc::clone(&plane), "plugin-operator").await;
        let receiver = Receiver::answering(|_| Answer::status(500)).await;
        scene.apply(&of_cluster(&webhook("platform", &receiver.url(), &json!({"delivery": {"maxRetries": 0}}))));
        let _operator = Operator::start_ready(&plane, &home.options().cluster_wide()).await;
        scene.wait("clusterwebhook/platform", "condition=Ready");

        // The operator's namespace is that of its Lease.
        let anywhere = |arguments: &[&str]| {
            let mut command = Command::new(plugin_binary());
            command.args(arguments).env("KUBECONFIG", plane.kubeconfig("admin"));
            Ran::run(&mut command, "")
        };
        let ran = anywhere(&["test", "cwh/platform"]);
        assert!(ran.out.contains("to clusterwebhook/platform\nattempt 1: HTTP 500"), "{ran:?}");
        assert!(ran.failed().contains("clusterwebhook/platform did not acknowledge the test"));
        scene.job("a");
        scene.phase("a", "Running");
        let kept = eventually("what was given up is listed", SOON, || async {
            let output = anywhere(&["deliveries", "clusterwebhook/platform", "--failed"]).succeeded();
            output.contains("dlv-").then_some(output)
        })
        .await;
        assert!(kept.contains(&format!("trainingjob/{}/a", scene.namespace)), "{kept}");
        receiver.answer(|_| Answer::status(200));
        let output = anywhere(&["redeliver", "cwh/platform", "-n", &home.namespace]).succeeded();
        assert!(
            output.contains("1 delivery of clusterwebhook/platform sent again") && output.contains("1 acknowledged\n"),
            "{output}"
        );
        scene.webhook("ci", &receiver.url(), &json!({}));
        scene.wait("webhook/ci", "condition=Ready");
        let output = plugin(&scene, &["status", "-A"]).succeeded();
        let table = words(&output);
        assert_eq!(table[0][..2], ["NAMESPACE", "NAME"]);
        assert_eq!(table[1][..2], [&scene.namespace, "ci"]);
        assert_eq!(table[2][..2], ["<none>", "clusterwebhook/platform"]);

        let output = anywhere(&["test", "platform"]).failed();
        assert!(output.contains("there is a ClusterWebhook with this name: use clusterwebhook/platform"), "{output}");
        let output = anywhere(&["test", "cwh/platfrom"]).failed();
        assert!(output.contains("did you mean clusterwebhook/platform?"), "{output}");
        let output = anywhere(&["test", "cwh/platform", "-n", &scene.namespace]).failed();
        assert!(output.contains("set -n to the operator's namespace"), "{output}");
        // Another operator.
        let lease =
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "llmtune-webhooks"}});
        scene.apply(&lease);
        let output = anywhere(&["test", "cwh/platform"]).failed();
        let (one, other) = (&home.namespace, &scene.namespace);
        assert!(
            output.contains(&format!("several operators are installed, in the namespaces {one}, {other}\n")),
            "{output}"
        );
        assert!(output.contains(&format!("-n {one} or {other}")), "{output}");
    });
}
