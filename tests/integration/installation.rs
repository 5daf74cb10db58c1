//! The chart, installed by the real Helm: the installed objects run the operator, and after removal only the objects
//! that were to be kept remain.

use std::{collections::BTreeSet, path::Path, process::Command, sync::Arc, time::Duration};

use llmtune_webhooks_harness::{
    control_plane::{ControlPlane, module},
    eventually,
    process::{Process, free_port, temporary_folder},
    receiver::Receiver,
    root,
};
use serde_json::{Value, json};

use crate::{
    chart::{chart, render, value_sets},
    support::{BINARY, SOON, Scene, run},
};

const NAMESPACE: &str = "llmtune-system";
const RELEASE: &str = "llmtune-webhooks";
/// The garbage collector discovers a new kind within 30 s.
const COLLECTED: Duration = Duration::from_secs(240);

/// A control plane with everything that a rollout needs, and namespaces for the operator and for a team.
async fn cluster() -> Scene {
    let plane = ControlPlane::start().await;
    plane.start_controllers().await;
    let scene = Scene { plane: Arc::new(plane), namespace: NAMESPACE.into() };
    scene.apply(&json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    }));
    // One after the other: kubectl does not wait if both are missing.
    for what in ["configmap/kube-root-ca.crt", "serviceaccount/default"] {
        scene.kubectl(&["wait", "--for=create", what, "--timeout=120s"]);
    }
    scene
}

/// All objects of the cluster and of the operator's namespace, except for those that come and go by themselves.
fn everything(scene: &Scene) -> Option<BTreeSet<String>> {
    // Discovery may fail for a group whose last kind is removed, and a kind may disappear between the two requests.
    let asked = |arguments: &[&str]| {
        let output = scene.plane.kubectl(arguments);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let kinds = asked(&["api-resources", "--verbs=list", "--output=name"])?;
    let passing =
        |kind: &str| kind.starts_with("events") || kind.starts_with("nodes") || kind == "leases.coordination.k8s.io";
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !passing(kind)).collect();
    let line = "{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let all = ["get", &kinds.join(","), "--all-namespaces", "--output", &format!("jsonpath={line}")];
    let lines = asked(&all)?;
    let here = |line: &&str| line.contains(" /") || line.contains(&format!(" {NAMESPACE}/"));
    Some(lines.lines().filter(here).map(str::to_owned).collect())
}

/// Runs Helm with the release's chart and these values.
fn with_chart(scene: &Scene, verb: &[&str], values: &[&str]) -> String {
    let chart = chart();
    let mut all = verb.to_vec();
    all.extend([RELEASE, chart.to_str().unwrap(), "--namespace", NAMESPACE, "--timeout=5m"]);
    for value in values {
        all.extend(["--set", value]);
    }
    scene.plane.helm(&all)
}

fn uninstall(scene: &Scene) {
    scene.plane.helm(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout=5m"]);
}

/// A pod of the newest rollout.
fn pod(scene: &Scene) -> Value {
    let text = scene.kubectl(&["get", "pods", "--selector=app.kubernetes.io/name=llmtune-webhooks", "--output=json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    let pods = list["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods.max_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned)).unwrap().clone()
}

/// Runs the operator as that pod would: with its service account, its arguments and only its environment.
pub async fn operator(scene: &Scene) -> Process {
    let pod = pod(scene);
    let container = &pod["spec"]["containers"][0];
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
    let token = scene.plane.token(NAMESPACE, account).await;
    let kubeconfig = scene.plane.write_kubeconfig_for("pod", &token, scene.plane.port);
    let mut command = Command::new(BINARY);
    command.env_clear().env("KUBECONFIG", kubeconfig);
    for argument in container["args"].as_array().unwrap() {
        command.arg(argument.as_str().unwrap());
    }
    for variable in container["env"].as_array().unwrap() {
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let value = field.map_or(&variable["value"], |path| &pod["metadata"][path.trim_start_matches("metadata.")]);
        command.env(variable["name"].as_str().unwrap(), value.as_str().unwrap());
    }
    Process::start("operator", &mut command, &temporary_folder("pod").join("operator.log"))
}

fn stop(mut operator: Process) {
    assert!(operator.stop(SOON).success(), "{}", operator.log_tail());
}

async fn says(operator: &Process, text: &str) {
    eventually(&format!("the log says {text:?}"), SOON, || async { operator.log_text().contains(text).then_some(()) })
        .await;
}

#[test]
fn helm_installs_upgrades_and_rolls_back() {
    run(async {
        let scene = cluster().await;
        let team = Scene { plane: scene.plane.clone(), namespace: scene.plane.namespace("team").await };
        let before = eventually("all that the control plane makes for itself is there", SOON, || async {
            let before = everything(&scene)?;
            (everything(&scene)? == before).then_some(before)
        })
        .await;
        let left = || async { Some(everything(&scene)?.difference(&before).cloned().collect::<BTreeSet<String>>()) };
        let listen = format!("operator.listen=127.0.0.1:{}", free_port());
        // The receiver listens on loopback.
        let values = [listen.as_str(), "operator.allowCidr={127.0.0.0/8}"];

        with_chart(&scene, &["install", "--dry-run=server"], &values);
        eventually("a dry run leaves nothing", SOON, || async { left().await?.is_empty().then_some(()) }).await;
        // The Pod Security Standard `restricted` admits its pods, and they become ready.
        with_chart(&scene, &["install", "--wait"], &values);
        let replicas = scene.kubectl(&["get", "deployment", RELEASE, "--output=jsonpath={.status.readyReplicas}"]);
        assert_eq!(replicas, "2");

        // An operator with the chart's configuration delivers.
        let receiver = Receiver::start().await;
        team.secret("ci", "s3cret");
        team.webhook("ci", &receiver.url(), &json!({"secretRef": {"name": "ci"}}));
        let running = operator(&scene).await;
        team.wait("webhook/ci", "condition=Ready");
        says(&running, "there is no ledger yet").await;
        team.job("a");
        team.phase("a", "Running");
        let post = receiver.wait_for("training.started", "a", SOON).await;
        assert_eq!(post.json()["cluster"], Value::Null);
        stop(running);

        // An upgrade that changes a value replaces the pods; a rollback restores the old configuration.
        with_chart(&scene, &["upgrade", "--reuse-values", "--wait"], &["operator.clusterName=prod"]);
        let running = operator(&scene).await;
        team.phase("a", "Completed");
        let post = receiver.wait_for("training.completed", "a", SOON).await;
        assert_eq!(post.json()["cluster"], "prod");
        assert!(running.log_text().contains("continuing from the ledger"), "{}", running.log_tail());
        stop(running);
        scene.plane.helm(&["rollback", RELEASE, "1", "--namespace", NAMESPACE, "--wait", "--timeout=5m"]);
        let arguments = pod(&scene)["spec"]["containers"][0]["args"].to_string();
        assert!(!arguments.contains("--cluster-name"), "{arguments}");
        let revision = "--output=jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}";
        assert_eq!(scene.kubectl(&["get", "deployment", RELEASE, revision]), "3");

        // With `ledger.keep` the ledger remains, and the next operator continues from it.
        with_chart(&scene, &["upgrade", "--reuse-values"], &["ledger.keep=true"]);
        uninstall(&scene);
        let stayed = eventually("all but the ledger and the definitions goes", COLLECTED, || async {
            let left = left().await?;
            left.iter().all(|object| is_ledger(object) || is_definition(object)).then_some(left)
        })
        .await;
        assert!(stayed.iter().any(|object| is_ledger(object)) && stayed.iter().any(|object| is_definition(object)));
        with_chart(&scene, &["install", "--wait"], &values);
        let running = operator(&scene).await;
        says(&running, "continuing from the ledger").await;
        stop(running);

        uninstall(&scene);
        let stayed = eventually("all but the definitions goes", COLLECTED, || async {
            let left = left().await?;
            left.iter().all(|object| is_definition(object)).then_some(left)
        })
        .await;
        println!("after helm uninstall: {stayed:#?}");
        eventually("the Lease goes with the ledger", COLLECTED, || async {
            scene.kubectl(&["get", "leases", "--output=name"]).is_empty().then_some(())
        })
        .await;
        assert!(team.kubectl(&["get", "webhooks", "--output=name"]).contains("/ci"), "what users made stays");

        with_chart(&scene, &["install"], &[&values[..], &["crds.keep=false"]].concat());
        uninstall(&scene);
        eventually("nothing stays", COLLECTED, || async { left().await?.is_empty().then_some(()) }).await;

        // The same without Helm. Helm can take over the installation.
        let base = root().join("charts/kustomize");
        scene.kubectl(&["apply", "--server-side", "--validate=strict", "-k", base.to_str().unwrap()]);
        scene.kubectl(&["rollout", "status", "deployment", RELEASE, "--timeout=90s"]);
        with_chart(&scene, &["install", "--take-ownership", "--force-conflicts"], &[]);
    });
}

/// Whether it is a definition, or the `APIService` of its group.
fn is_definition(object: &str) -> bool {
    object.starts_with("CustomResourceDefinition ") || object == "APIService /v1alpha1.llmtune.io"
}

fn is_ledger(object: &str) -> bool {
    object.starts_with("LedgerSegment ") || object == "ConfigMap llmtune-system/llmtune-webhooks-ledger"
}

#[test]
fn the_apiserver_takes_what_each_value_set_renders() {
    run(async {
        let scene = Scene::alone("dry-run").await;
        for namespace in ["system", "a", "b"] {
            scene.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        }
        let operator = module("prometheus-operator", "github.com/prometheus-operator/prometheus-operator");
        for kind in ["servicemonitors", "prometheusrules"] {
            let definition = format!("example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml");
            install(&scene, &operator.join(definition));
        }
        for (name, values, _) in value_sets() {
            let arguments = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"];
            let output = scene.plane.kubectl_with_input(&arguments, &render(&values));
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    });
}

fn install(scene: &Scene, definition: &Path) {
    scene.kubectl(&["apply", "--server-side", "-f", definition.to_str().unwrap()]);
    scene.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]);
}

#[test]
fn an_owner_that_is_not_there_is_awaited_and_said() {
    run(async {
        let scene = Scene::new("owner").await;
        let options = scene.options().argument("--owner=home");
        let mut operator = llmtune_webhooks_harness::operator::Operator::start(&scene.plane, &options).await;
        operator.wait_log("ConfigMap \"home\" of --owner does not exist: create it", SOON).await;
        scene.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "home"}}));
        operator.wait_ready().await;
        let uid = &scene.get("configmap", "home")["metadata"]["uid"];
        let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "home", "uid": uid}]);
        assert_eq!(scene.get("lease", "llmtune-webhooks")["metadata"]["ownerReferences"], owner);
        let list: Value = serde_json::from_str(&scene.kubectl(&["get", "ledgersegments", "-o", "json"])).unwrap();
        let segments = list["items"].as_array().unwrap();
        assert!(!segments.is_empty() && segments.iter().all(|segment| segment["metadata"]["ownerReferences"] == owner));
    });
}
