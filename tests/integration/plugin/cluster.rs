//! Clusters without Webhooks, with operators, with `ClusterWebhooks`; and names that are not there.

use std::sync::Arc;

use llmtune_webhooks_harness::control_plane::ControlPlane;

use super::*;
use crate::{custom_resources::of_cluster, support::webhook};

#[test]
fn what_is_not_there_is_told_with_what_is() {
    run(async {
        let scene = Scene::new("plugin-names").await;
        let other = scene.plane.namespace("plugin-other").await;
        let told = plugin(&scene, &["test", "nightly"]).failed();
        assert!(told.contains("there are none at all; kubectl llmtune create nightly --url"), "{told}");
        scene.webhook("ci-main", "https://ci.example.com", &json!({}));
        let elsewhere = Scene { plane: Arc::clone(&scene.plane), namespace: other.clone() };
        elsewhere.webhook("plugin-elsewhere", "https://ci.example.com", &json!({}));
        let told = plugin(&scene, &["deliveries", "ci-mian"]).failed();
        assert_eq!(
            told,
            format!("error: there is no Webhook ci-mian in namespace {}\ndid you mean ci-main?\n", scene.namespace)
        );
        let told = plugin(&scene, &["redeliver", "plugin-elsewhere"]).failed();
        assert!(told.contains(&format!("there is one in another namespace: write -n {other}")), "{told}");
        let ran = plugin(&scene, &["test", "pod/ci"]);
        assert!(ran.code == 2 && ran.err.contains("write webhook/NAME or clusterwebhook/NAME"), "{ran:?}");

        for (arguments, says) in [
            (&["--context", "tset"][..], "there is no context \"tset\"\ndid you mean test?"),
            (&["--kubeconfig", "/nowhere"], "the kubeconfig /nowhere cannot be used"),
        ] {
            let told = plugin(&scene, &[&["status"], arguments].concat()).failed();
            assert!(told.contains(says), "{told}");
        }
        // A proxy of the environment is kept from what NO_PROXY names.
        let through = |no_proxy: &str| {
            let mut status = command(&scene, &["status"]);
            Ran::run(status.env("HTTPS_PROXY", "http://127.0.0.1:9").env("NO_PROXY", no_proxy), "")
        };
        assert!(through("localhost,127.0.0.0/8").succeeded().contains("ci-main"));
        // As Go has it, loopback is none of a proxy's business.
        assert!(through("").succeeded().contains("ci-main"));

        let away = temporary_folder("away").join("kubeconfig");
        let config = fs::read_to_string(scene.plane.kubeconfig("admin")).unwrap();
        fs::write(&away, config.replace(&format!(":{}", scene.plane.port), ":9")).unwrap();
        let told = plugin(&scene, &["status", "--kubeconfig", away.to_str().unwrap()]).failed();
        assert!(
            told.contains("cannot ask the cluster at https://127.0.0.1:9: ") && told.contains("kubectl cluster-info"),
            "{told}"
        );
        let expired = fs::read_to_string(scene.plane.kubeconfig("admin")).unwrap().replace("admin-token", "expired");
        fs::write(&away, expired).unwrap();
        let told = plugin(&scene, &["status", "--kubeconfig", away.to_str().unwrap()]).failed();
        assert!(told.contains("does not know you") && told.contains("log in again"), "{told}");
    });
}

#[test]
fn a_cluster_webhook_is_tested_and_its_deliveries_sent_again_where_the_operator_is() {
    run(async {
        let plane = Arc::new(ControlPlane::start().await);
        let scene = Scene::on(Arc::clone(&plane), "plugin-team").await;
        let told = plugin(&scene, &["status"]).failed();
        assert!(told.contains("has no Webhooks: their definitions are not installed"), "{told}");
        assert!(told.contains("kubectl apply -f crds/"), "{told}");
        plane.install_crds();
        let home = Scene::on(Arc::clone(&plane), "plugin-operator").await;
        let receiver = Receiver::answering(|_| Answer::status(500)).await;
        scene.apply(&of_cluster(&webhook("platform", &receiver.url(), &json!({"delivery": {"maxRetries": 0}}))));
        let _operator = Operator::start_ready(&plane, &home.options().cluster_wide()).await;
        scene.wait("clusterwebhook/platform", "condition=Ready");

        // Where the operator is, its Lease tells.
        let anywhere = |arguments: &[&str]| {
            let mut command = Command::new(PLUGIN);
            command.args(arguments).env("KUBECONFIG", plane.kubeconfig("admin"));
            Ran::run(&mut command, "")
        };
        let ran = anywhere(&["test", "cwh/platform"]);
        assert!(ran.out.contains("to clusterwebhook/platform\nattempt 1: HTTP 500"), "{ran:?}");
        assert!(ran.failed().contains("clusterwebhook/platform did not acknowledge the test"));
        scene.job("a");
        scene.phase("a", "Running");
        let kept = eventually("what was given up is listed", SOON, || async {
            let told = anywhere(&["deliveries", "clusterwebhook/platform", "--failed"]).succeeded();
            told.contains("dlv-").then_some(told)
        })
        .await;
        assert!(kept.contains(&format!("trainingjob/{}/a", scene.namespace)), "{kept}");
        receiver.answer(|_| Answer::status(200));
        let told = anywhere(&["redeliver", "cwh/platform", "-n", &home.namespace]).succeeded();
        assert!(
            told.contains("1 delivery of clusterwebhook/platform sent again") && told.contains("1 acknowledged\n"),
            "{told}"
        );
        scene.webhook("ci", &receiver.url(), &json!({}));
        scene.wait("webhook/ci", "condition=Ready");
        let told = plugin(&scene, &["status", "-A"]).succeeded();
        let table = words(&told);
        assert_eq!(table[0][..2], ["NAMESPACE", "NAME"]);
        assert_eq!(table[1][..2], [&scene.namespace, "ci"]);
        assert_eq!(table[2][..2], ["<none>", "clusterwebhook/platform"]);

        let told = anywhere(&["test", "platform"]).failed();
        assert!(told.contains("there is a ClusterWebhook of that name: write clusterwebhook/platform"), "{told}");
        let told = anywhere(&["test", "cwh/platfrom"]).failed();
        assert!(told.contains("did you mean clusterwebhook/platform?"), "{told}");
        let told = anywhere(&["test", "cwh/platform", "-n", &scene.namespace]).failed();
        assert!(told.contains("with the operator's namespace"), "{told}");
        // Another operator.
        let lease =
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "llmtune-webhooks"}});
        scene.apply(&lease);
        let told = anywhere(&["test", "cwh/platform"]).failed();
        let (one, other) = (&home.namespace, &scene.namespace);
        assert!(told.contains(&format!("ambiguous: there are operators in the namespaces {one}, {other}\n")), "{told}");
        assert!(told.contains(&format!("-n {one} or {other}")), "{told}");
    });
}
