//! The chart as Helm renders it, and the manifests generated from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use llmtune_webhooks_harness::{control_plane::tool, process::temporary_folder, root};
use serde_json::{Value, json};

use crate::support::BINARY;

pub fn chart() -> PathBuf {
    root().join("charts/llmtune-webhooks")
}

fn helm(arguments: &[&str]) -> Output {
    let home = temporary_folder("helm");
    Command::new(tool("helm")).args(arguments).env("HOME", home).output().unwrap()
}

fn try_render(values: &Value, arguments: &[&str]) -> Result<String, String> {
    let file = temporary_folder("values").join("values.json");
    fs::write(&file, values.to_string()).unwrap();
    let (chart, file) = (chart(), file.display().to_string());
    let mut all = vec!["template", "release", chart.to_str().unwrap(), "--namespace=system", "--values", &file];
    all.extend(arguments);
    let output = helm(&all);
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// The chart's manifests with these values, as the release `release` in the namespace `system`.
pub fn render(values: &Value) -> String {
    try_render(values, &[]).unwrap_or_else(|error| panic!("{values}: {error}"))
}

/// The documents of a manifest.
pub fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").map(|text| serde_saphyr::from_str::<Value>(text.trim_start_matches("---")));
    documents.map(Result::unwrap).filter(|document| !document.is_null()).collect()
}

/// The manifests that the chart renders from some values.
pub struct Rendered(Vec<Value>);

impl Rendered {
    fn of(values: &Value) -> Self {
        Self(documents(&render(values)))
    }

    fn kind(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    fn only(&self, kind: &str) -> &Value {
        let found = self.kind(kind);
        assert_eq!(found.len(), 1, "{kind}");
        found[0]
    }

    fn pod(&self) -> &Value {
        &self.only("Deployment")["spec"]["template"]["spec"]
    }

    fn container(&self) -> &Value {
        &self.pod()["containers"][0]
    }

    fn arguments(&self) -> Vec<&str> {
        self.container()["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect()
    }
}

/// The flags that `run --help` lists, without `--help`.
fn flags() -> BTreeSet<String> {
    let output = Command::new(BINARY).args(["run", "--help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
    let flags = words.map(|word| word.trim_start_matches("--").to_owned()).filter(|flag| flag != "help");
    flags.collect()
}

fn kebab_case(name: &str) -> String {
    name.chars().fold(String::new(), |mut text, c| {
        if c.is_ascii_uppercase() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
        text
    })
}

fn values() -> Value {
    serde_saphyr::from_str(&fs::read_to_string(chart().join("values.yaml")).unwrap()).unwrap()
}

/// A value for each flag of the operator.
fn all_flags() -> Value {
    json!({
        "watchNamespace": ["a", "b"], "listen": "[::1]:9090", "clusterName": "prod: eu", "requireHttps": true,
        "allowCidr": ["127.0.0.0/8", "::1/128"], "denyCidr": ["10.0.0.0/8"], "proxy": "http://proxy.example.com:3128",
        "noProxy": "a.example.com,b.example.com", "caFile": "/etc/llmtune/ca.crt",
        "allowPrometheus": ["https://prometheus.example.com"], "prometheusCaFile": "/etc/llmtune/prometheus.crt",
        "prometheusTokenFile": "/etc/llmtune/token", "identity": "$(POD_NAME)", "leaseDuration": "20s", "logFormat": "text"
    })
}

#[test]
fn every_flag_is_a_chart_value() {
    let values = values();
    let named = values["operator"].as_object().unwrap().keys().map(|name| kebab_case(name));
    // The release determines the operator's namespace, and the chart the owner of its ledger.
    let named: BTreeSet<String> = named.chain(["namespace".into(), "owner".into()]).collect();
    assert_eq!(named, flags(), "values under `operator`, and flags");

    let rendered = Rendered::of(&json!({"operator": all_flags()}));
    let arguments = rendered.arguments();
    let given =
        arguments[1..].iter().map(|argument| argument.trim_start_matches("--").split('=').next().unwrap().to_owned());
    assert_eq!(given.collect::<BTreeSet<String>>(), flags());
    for argument in [
        "run",
        "--namespace=system",
        "--owner=release-llmtune-webhooks-ledger",
        "--watch-namespace=a,b",
        "--cluster-name=prod: eu",
        "--require-https",
        "--allow-cidr=127.0.0.0/8,::1/128",
    ] {
        assert!(arguments.contains(&argument), "{argument}: {arguments:?}");
    }
    // The operator accepts the flags as they are, and fails only because files are missing here.
    let output = Command::new(BINARY).args(&arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("--ca-file /etc/llmtune/ca.crt"), "{error}");
}

/// The paths of a document's members, to the depth at which the schema is closed.
fn paths(values: &Value, schema: &Value, prefix: &str, found: &mut BTreeMap<String, bool>) {
    let Some(properties) = schema["properties"].as_object().filter(|_| schema["additionalProperties"] == false) else {
        return;
    };
    for name in properties.keys() {
        found.entry(format!("{prefix}{name}")).or_insert(false);
    }
    for (name, value) in values.as_object().unwrap() {
        found.insert(format!("{prefix}{name}"), properties.contains_key(name));
        paths(value, &properties[name], &format!("{prefix}{name}."), found);
    }
}

#[test]
fn the_schema_knows_every_value_and_refuses_what_cannot_work() {
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    let mut found = BTreeMap::new();
    paths(&values(), &schema, "", &mut found);
    // Helm itself adds `global`; probes may have more fields than the schema names.
    let unlike = found.iter().filter(|(path, known)| !**known && *path != "global" && !path.contains("Probe."));
    assert_eq!(unlike.collect::<Vec<_>>(), vec![]);

    for (values, complaint) in [
        (json!({"replica": 3}), "replica"),
        (json!({"operator": {"watchNamespaces": ["a"]}}), "watchNamespaces"),
        (json!({"operator": {"allowCidr": ["127.0.0.1"]}}), "/operator/allowCidr/0"),
        (json!({"operator": {"listen": "8080"}}), "/operator/listen"),
        // Two replicas with one identity would take the Lease from each other.
        (json!({"operator": {"identity": "operator"}}), "/operator/identity"),
        (json!({"image": {"tag": 1.0}}), "/image/tag"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "/image/pullPolicy"),
    ] {
        let error = try_render(&values, &[]).expect_err("it is refused");
        assert!(error.contains(complaint), "{values}: {error}");
    }
    let old = try_render(&json!({}), &["--kube-version=1.34.0"]).unwrap_err();
    assert!(old.contains("1.35"), "{old}");
}

/// A value set: its purpose, the values, and the check of the result.
pub type ValueSet = (&'static str, Value, fn(&Rendered));

/// The ten value sets.
pub fn value_sets() -> Vec<ValueSet> {
    vec![
        ("defaults", json!({}), defaults),
        (
            "an image of one's own",
            json!({
                "image": {
                    "registry": "registry.example.com:5000/platform", "repository": "webhooks", "pullPolicy": "Always",
                    "digest": format!("sha256:{}", "0".repeat(64))
                },
                "imagePullSecrets": [{"name": "registry-credentials"}]
            }),
            image,
        ),
        ("every flag", json!({"operator": all_flags()}), port_and_roles),
        ("definitions from elsewhere", json!({"crds": {"enabled": false}}), no_definitions),
        ("nothing to be kept but the ledger", json!({"crds": {"keep": false}, "ledger": {"keep": true}}), keeping),
        (
            "a network policy",
            json!({"networkPolicy": {
                "enabled": true, "ingressFrom": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]
            }}),
            network_policy,
        ),
        (
            "the Prometheus operator",
            json!({
                "serviceMonitor": {"enabled": true, "labels": {"release": "monitoring"}},
                "prometheusRule": {
                    "enabled": true, "labels": {"release": "monitoring"}, "runbookUrl": "https://wiki.example.com/runbooks"
                },
                "dashboard": {"enabled": true, "annotations": {"grafana_folder": "Webhooks"}}
            }),
            monitoring,
        ),
        (
            "a service account and roles from elsewhere",
            json!({"serviceAccount": {"create": false, "name": "operators"}, "rbac": {"create": false, "people": false}}),
            no_rights,
        ),
        (
            "names and labels",
            json!({"fullnameOverride": "hooks", "commonLabels": {"team": "platform"}, "podLabels": {"tier": "control"}}),
            names,
        ),
        (
            "one replica where its owner wants it, with a CA of its own",
            json!({
                "replicas": 1, "podDisruptionBudget": {"enabled": false}, "topologySpreadConstraints": [],
                "priorityClassName": "system-cluster-critical", "nodeSelector": {"pool": "control"},
                "tolerations": [{"key": "control", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]
                }}},
                "env": [{"name": "RUST_LOG", "value": "debug"}], "operator": {"caFile": "/etc/llmtune/ca.crt"},
                "volumes": [{"name": "ca", "configMap": {"name": "internal-ca"}}],
                "volumeMounts": [{"name": "ca", "mountPath": "/etc/llmtune", "readOnly": true}]
            }),
            placement,
        ),
    ]
}

fn image(rendered: &Rendered) {
    let image = rendered.container()["image"].as_str().unwrap();
    assert!(image.starts_with("registry.example.com:5000/platform/webhooks@sha256:0"), "{image}");
    assert_eq!(rendered.container()["imagePullPolicy"], "Always");
    assert_eq!(rendered.pod()["imagePullSecrets"], json!([{"name": "registry-credentials"}]));
}

fn port_and_roles(rendered: &Rendered) {
    let roles = rendered.kind("Role").into_iter().map(|role| role["metadata"]["namespace"].as_str().unwrap());
    assert_eq!(roles.collect::<BTreeSet<&str>>(), BTreeSet::from(["system", "a", "b"]), "where namespaces are named");
    assert!(rendered.kind("ClusterRoleBinding").is_empty());
    assert_eq!(rendered.container()["ports"][0]["containerPort"], 9090);
    assert_eq!(rendered.only("Service")["spec"]["ports"][0]["port"], 9090);
}

fn no_definitions(rendered: &Rendered) {
    assert!(rendered.kind("CustomResourceDefinition").is_empty());
}

fn keeping(rendered: &Rendered) {
    assert!(rendered.kind("CustomResourceDefinition").iter().all(|definition| keep(definition).is_null()));
    assert_eq!(keep(rendered.only("ConfigMap")), "keep");
}

fn network_policy(rendered: &Rendered) {
    let spec = &rendered.only("NetworkPolicy")["spec"];
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(spec["ingress"][0]["ports"], json!([{"port": "metrics"}]));
    assert_eq!(spec["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"]["team"], "monitoring");
    assert_eq!(spec["egress"][0]["to"][0]["ipBlock"]["cidr"], "10.0.0.0/8");
}

fn monitoring(rendered: &Rendered) {
    let (monitor, service) = (rendered.only("ServiceMonitor"), rendered.only("Service"));
    assert_eq!(monitor["metadata"]["labels"]["release"], "monitoring");
    assert_eq!(monitor["spec"]["endpoints"][0]["honorLabels"], true);
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    for (key, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&service["metadata"]["labels"][key], value);
    }

    let read = |name: &str| fs::read_to_string(chart().join("files").join(name)).unwrap();
    let rule = rendered.only("PrometheusRule");
    assert_eq!(rule["metadata"]["labels"]["release"], "monitoring");
    let moved = read("alerts.yaml").replace(
        "https://github.com/llmtune/llmtune-webhooks/blob/main/docs/runbooks",
        "https://wiki.example.com/runbooks",
    );
    assert_eq!(rule["spec"], serde_saphyr::from_str::<Value>(&moved).unwrap());

    let dashboard = rendered.kind("ConfigMap").into_iter().find(|object| !object["data"].is_null()).unwrap();
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(dashboard["metadata"]["annotations"]["grafana_folder"], "Webhooks");
    let shown: Value = serde_json::from_str(dashboard["data"]["llmtune-webhooks.json"].as_str().unwrap()).unwrap();
    assert_eq!(shown, serde_json::from_str::<Value>(&read("dashboard.json")).unwrap());
}

fn no_rights(rendered: &Rendered) {
    let kinds = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
    assert!(kinds.iter().all(|kind| rendered.kind(kind).is_empty()));
    assert_eq!(rendered.pod()["serviceAccountName"], "operators");
}

fn names(rendered: &Rendered) {
    for object in &rendered.0 {
        assert_eq!(object["metadata"]["labels"]["team"], "platform", "{object:#}");
        let name = object["metadata"]["name"].as_str().unwrap();
        let shared = name.ends_with(".llmtune.io") || name == "llmtune-training-reporter";
        assert!(name.starts_with("hooks") || shared, "{name}");
    }
    let labels = &rendered.only("Deployment")["spec"]["template"]["metadata"]["labels"];
    assert_eq!((&labels["team"], &labels["tier"]), (&json!("platform"), &json!("control")));
    let account = json!([{"kind": "ServiceAccount", "name": "hooks", "namespace": "system"}]);
    for binding in rendered.kind("ClusterRoleBinding").iter().chain(&rendered.kind("RoleBinding")) {
        assert_eq!(binding["subjects"], account);
    }
}

fn placement(rendered: &Rendered) {
    assert_eq!(rendered.only("Deployment")["spec"]["replicas"], 1);
    assert!(rendered.kind("PodDisruptionBudget").is_empty());
    let pod = rendered.pod();
    assert_eq!(pod["topologySpreadConstraints"], Value::Null);
    assert_eq!(pod["priorityClassName"], "system-cluster-critical");
    assert_eq!(pod["nodeSelector"]["pool"], "control");
    assert_eq!(pod["tolerations"][0]["key"], "control");
    assert!(pod["affinity"]["nodeAffinity"].is_object());
    assert_eq!(pod["volumes"][0]["configMap"]["name"], "internal-ca");
    assert_eq!(rendered.container()["volumeMounts"][0]["mountPath"], "/etc/llmtune");
    let environment = rendered.container()["env"].as_array().unwrap();
    assert!(environment.contains(&json!({"name": "RUST_LOG", "value": "debug"})));
}

fn keep(object: &Value) -> &Value {
    &object["metadata"]["annotations"]["helm.sh/resource-policy"]
}

fn defaults(rendered: &Rendered) {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for object in &rendered.0 {
        *kinds.entry(object["kind"].as_str().unwrap()).or_default() += 1;
    }
    let none = ["NetworkPolicy", "ServiceMonitor"].iter().all(|kind| !kinds.contains_key(kind));
    assert!(none, "what needs a cluster's own ways is asked for");
    assert_eq!(kinds["PodDisruptionBudget"], 1);

    let deployment = rendered.only("Deployment");
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(deployment["spec"]["selector"], rendered.only("PodDisruptionBudget")["spec"]["selector"]);
    let (pod, container) = (rendered.pod(), rendered.container());
    assert_eq!(container["image"], format!("llmtune-webhooks:{}", env!("CARGO_PKG_VERSION")));
    // The uid comes from the image or the cluster: OpenShift gives each namespace its own.
    assert_eq!(pod["securityContext"], json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}));
    assert_eq!(
        container["securityContext"],
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true})
    );
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "metrics"}));
    }
    assert!(
        container["resources"]["requests"]["memory"].is_string() && container["resources"]["limits"]["cpu"].is_null()
    );
    let spread = pod["topologySpreadConstraints"].as_array().unwrap();
    assert!(spread.len() == 2 && spread.iter().all(|each| each["labelSelector"] == deployment["spec"]["selector"]));
    for definition in rendered.kind("CustomResourceDefinition") {
        assert_eq!(keep(definition), "keep");
    }
    assert_eq!(keep(rendered.only("ConfigMap")), &Value::Null);
}

#[test]
fn ten_value_sets_lint_and_render() {
    let sets = value_sets();
    assert_eq!(sets.len(), 10);
    for (name, values, check) in sets {
        println!("{name}");
        let file = temporary_folder("values").join("values.json");
        fs::write(&file, values.to_string()).unwrap();
        let output = helm(&["lint", "--strict", chart().to_str().unwrap(), "--values", file.to_str().unwrap()]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
        check(&Rendered::of(&values));
    }
}

#[test]
fn the_chart_is_of_the_version_that_it_installs() {
    let chart: Value = serde_saphyr::from_str(&fs::read_to_string(chart().join("Chart.yaml")).unwrap()).unwrap();
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&json!(env!("CARGO_PKG_VERSION")), &json!(env!("CARGO_PKG_VERSION")))
    );
}

/// The text of each file below a folder, by its relative path.
fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(each) = folders.pop() {
        for path in fs::read_dir(each).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_path_buf(), fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn what_is_generated_beside_the_chart_is_what_is_there() {
    let folder = temporary_folder("generated");
    let output = Command::new(root().join("charts/generate")).arg(&folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (generated, there) = (files(&folder), files(&root().join("charts")));
    for (path, text) in &generated {
        assert!(there.get(path) == Some(text), "charts/{} is not what make generate writes", path.display());
    }
    let by_hand = ["kustomization.yaml", "namespace.yaml"].map(|name| Path::new("kustomize").join(name));
    let stale = there
        .keys()
        .filter(|path| path.starts_with("kustomize") && !generated.contains_key(*path) && !by_hand.contains(path));
    assert_eq!(stale.collect::<Vec<_>>(), Vec::<&PathBuf>::new());
}

/// An object without the metadata of Helm.
fn without_helm(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    for (map, keys) in [
        ("labels", &["helm.sh/chart", "app.kubernetes.io/managed-by"][..]),
        ("annotations", &["helm.sh/resource-policy"]),
    ] {
        if let Some(map) = metadata.get_mut(map).and_then(Value::as_object_mut) {
            map.retain(|key, _| !keys.contains(&key.as_str()));
        }
    }
    object
}

#[test]
fn the_kustomize_base_gives_the_same_objects() {
    let by_name = |text: &str| {
        let objects = documents(text).into_iter().map(without_helm);
        let named = objects.map(|object| (format!("{} {}", object["kind"], object["metadata"]["name"]), object));
        named.collect::<BTreeMap<String, Value>>()
    };
    let output = Command::new(tool("kubectl")).arg("kustomize").arg(root().join("charts/kustomize")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut base = by_name(&String::from_utf8(output.stdout).unwrap());
    let namespace = base.remove("\"Namespace\" \"llmtune-system\"").expect("the base makes the namespace");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");

    let chart = chart();
    let output = helm(&["template", "llmtune-webhooks", chart.to_str().unwrap(), "--namespace=llmtune-system"]);
    let rendered = by_name(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(base.keys().collect::<Vec<_>>(), rendered.keys().collect::<Vec<_>>());
    for (name, mut object) in rendered {
        if object["kind"] == "CustomResourceDefinition" {
            // The base includes the definitions unchanged.
            object["metadata"].as_object_mut().unwrap().retain(|key, _| key == "name");
        }
        assert_eq!(base[&name], object, "{name}");
    }
}
