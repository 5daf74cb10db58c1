//! The shipped dashboard and alerts: every expression returns series on a real Prometheus that scrapes a real operator,
//! and each alert fires when it should.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use llmtune_webhooks_harness::{
    control_plane::tool,
    eventually,
    operator::Operator,
    process::temporary_folder,
    prometheus::Prometheus,
    receiver::{Answer, Receiver},
    root,
};
use regex::Regex;
use serde_json::{Value, json};

use crate::{
    chart::chart,
    deliveries::keep_nothing,
    sources::malformed_job,
    support::{Jobs, SOON, Scene, run},
};

/// The dashboard's queries: the panel's title, and the expression without Grafana's variables.
fn dashboard() -> Vec<(String, String)> {
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(chart().join("files/dashboard.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        panel["targets"].as_array().into_iter().flatten().map(move |target| {
            let expression = target["expr"].as_str().unwrap();
            let variables = ["$namespace", "$webhook", "$job"];
            let plain = variables.iter().fold(expression.to_owned(), |text, variable| text.replace(variable, ".*"));
            (title.to_owned(), plain.replace("$__rate_interval", "1m").replace("$__range", "1m"))
        })
    });
    queries.collect()
}

fn rules() -> Vec<Value> {
    let text = fs::read_to_string(chart().join("files/alerts.yaml")).unwrap();
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    file["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The alert's expression with a condition that every value fulfills, so that it shows whether there is a value.
fn unconditional(expression: &str) -> String {
    Regex::new(r"[<>] [0-9.]+").unwrap().replace_all(expression, "> -1").into_owned()
}

/// An operator with data for every metric: a healthy Webhook, one with a failing endpoint, one without its Secret, one
/// whose filter fails, one deleted with pending deliveries, one whose dead letters cannot be stored, an unreadable
/// object, invalid expressions, and usage.
async fn eventful(scene: &Scene, figures: &Prometheus) -> (Operator, [Receiver; 2]) {
    let receivers = [Receiver::start().await, Receiver::answering(|_| Answer::status(500)).await];
    let [fine, broken] = &receivers;
    let quick = json!({"maxRetries": 1, "backoff": {"initial": "10ms"}});
    scene.secret("ci", "s3cret");
    scene.webhook("fine", &fine.url(), &json!({"secretRef": {"name": "ci"}}));
    scene.webhook("broken", &broken.url(), &json!({"delivery": quick}));
    scene.webhook("waiting", &fine.url(), &json!({"secretRef": {"name": "missing"}}));
    scene.webhook("deleted", &broken.url(), &json!({}));
    scene.webhook("unsure", &fine.url(), &json!({"filter": "data.name > 3", "events": ["training.*"]}));
    let role = json!({"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch"]});
    scene.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "read-jobs"}, "rules": [role]
    }));
    scene.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "read-jobs"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "read-jobs"},
        "subjects": [{"kind": "ServiceAccount", "name": "llmtune-webhooks", "namespace": scene.namespace}]
    }));
    scene.apply(&json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookSource", "metadata": {"name": "jobs"},
        "spec": {
            "resource": {"apiVersion": "batch/v1", "kind": "Job"}, "lifecycle": "Training",
            "stages": [{"stage": "Running", "when": "object.metadata.name > 3"}]
        }
    }));
    scene.apply(&json!({
        "apiVersion": "llmtune.io/v1alpha1", "kind": "UsageThreshold", "metadata": {"name": "tokens"},
        "spec": {"prometheus": {"query": "vector(700)"}, "limit": "1k", "thresholds": ["50%"], "interval": "1s"}
    }));
    malformed_job(scene, "bad").await;
    // A quota forbids dead letters in this namespace.
    let full = Scene::on(scene.plane.clone(), "full").await;
    keep_nothing(&full);
    full.webhook("full", &broken.url(), &json!({"delivery": {"maxRetries": 0}}));
    let options = scene.options().cluster_wide().argument("--allow-prometheus").argument(&figures.url());
    let operator = Operator::start_ready(&scene.plane, &options).await;
    scene.apply(&json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "import"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}
    }));
    scene.job("a");
    scene.phase("a", "Running");
    full.job("b");
    full.phase("b", "Running");
    fine.wait_for("training.started", "a", SOON).await;
    full.wait_event("Webhook", "full", "DeliveriesDropped").await;
    scene.wait_event("Webhook", "broken", "DeliveryExhausted").await;
    scene.kubectl(&["delete", "webhook", "deleted"]);
    (operator, receivers)
}

#[test]
fn every_expression_of_the_dashboard_and_the_alerts_gives_series() {
    run(async {
        let scene = Scene::alone("dashboards").await;
        let figures = Prometheus::start(&[]).await;
        let (operator, _receivers) = eventful(&scene, &figures).await;
        let jobs = Jobs::new(&scene).await;
        // Keeps flushes going while Prometheus scrapes.
        let driving = tokio::spawn(async move {
            loop {
                jobs.start("a").await;
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        });
        let prometheus = Prometheus::start(&[format!("127.0.0.1:{}", operator.port)]).await;
        let count = async |query: &str| prometheus.query(query).await.map_or(0, |samples| samples.len());
        let queries = dashboard();
        assert!(queries.len() > 30, "{}", queries.len());
        for (title, query) in &queries {
            let found = eventually(&format!("{title:?} gives series: {query}"), SOON, || async {
                Some(count(query).await).filter(|found| *found > 0)
            })
            .await;
            println!("{found:>3}  {title}: {query}");
        }
        let mut firing = BTreeSet::new();
        for rule in rules() {
            let (name, expression) = (rule["alert"].as_str().unwrap(), rule["expr"].as_str().unwrap());
            let found = eventually(&format!("{name} looks at something"), SOON, || async {
                Some(count(&unconditional(expression)).await).filter(|found| *found > 0)
            })
            .await;
            let now = count(expression).await;
            println!("{found:>3}, of which {now} hold  {name}");
            firing.extend((now > 0).then(|| name.to_owned()));
        }
        driving.abort();
        let expected = [
            "LLMTuneWebhookDeliveriesDropped",
            "LLMTuneWebhookDeliveriesExhausted",
            "LLMTuneWebhookEndpointFailing",
            "LLMTuneWebhookNotReady",
        ];
        assert_eq!(
            firing.iter().map(String::as_str).collect::<Vec<_>>(),
            expected,
            "what this operator has to complain of"
        );
    });
}

#[test]
fn promtool_takes_the_alerts_and_each_fires_when_it_should() {
    let rules = chart().join("files/alerts.yaml");
    let check =
        Command::new(tool("promtool")).args(["check", "rules", "--lint=all", "--lint-fatal"]).arg(&rules).output();
    let check = check.unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let cases = fs::read_to_string(root().join("tests/integration/dashboards/alerts_test.yaml")).unwrap();
    let names: BTreeSet<&str> =
        Regex::new("alertname: (.*)").unwrap().captures_iter(&cases).map(|found| found.extract::<1>().1[0]).collect();
    let alerts = self::rules();
    assert_eq!(names, alerts.iter().map(|rule| rule["alert"].as_str().unwrap()).collect(), "each alert has cases");
    let file = temporary_folder("alerts").join("alerts_test.yaml");
    fs::write(&file, cases.replace("RULES", rules.to_str().unwrap())).unwrap();
    let test = Command::new(tool("promtool")).args(["test", "rules"]).arg(&file).output().unwrap();
    assert!(test.status.success(), "{}", String::from_utf8_lossy(&test.stdout));
}

#[test]
fn every_alert_has_a_runbook_and_vice_versa() {
    let base = "https://github.com/llmtune/llmtune-webhooks/blob/main/";
    let linked: BTreeSet<String> = rules()
        .iter()
        .map(|rule| {
            let link = rule["annotations"]["runbook_url"].as_str().unwrap();
            let path = link.strip_prefix(base).unwrap_or_else(|| panic!("{link}"));
            let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            let alert = rule["alert"].as_str().unwrap();
            assert!(text.starts_with(&format!("# {alert}\n")), "{path}");
            path.to_owned()
        })
        .collect();
    let there: BTreeSet<String> = fs::read_dir(root().join("docs/runbooks"))
        .unwrap()
        .map(|entry| format!("docs/runbooks/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|path| !path.ends_with("README.md"))
        .collect();
    assert_eq!(linked, there);
    let index = fs::read_to_string(root().join("docs/runbooks/README.md")).unwrap();
    for rule in rules() {
        let row =
            format!("| `{}` | {} |", rule["alert"].as_str().unwrap(), rule["labels"]["severity"].as_str().unwrap());
        assert!(index.contains(&row), "{row}");
    }
}
