//! `UsageThreshold` on a real apiserver: accepted, defaulted and refused.

// Tables of json! literals read best whole and without borrows.
#![allow(clippy::needless_pass_by_value)]

use llmtune_api::UsageThreshold;
use serde_json::{Value, json};

use crate::{
    custom_resources::{Apiserver, complaint, no_failures},
    support::{Scene, run},
};

/// A manifest with this spec.
pub fn manifest(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "UsageThreshold", "metadata": {"name": name}, "spec": spec})
}

/// These fields over those of a query with a limit; null removes a field.
fn query(fields: Value) -> Value {
    let mut spec = json!({"prometheus": {"query": "sum(up)"}, "limit": "1G", "thresholds": ["80%"]});
    for (key, value) in fields.as_object().unwrap() {
        if value.is_null() {
            spec.as_object_mut().unwrap().remove(key);
        } else {
            spec[key] = value.clone();
        }
    }
    manifest("tokens", spec)
}

fn quota(fields: Value) -> Value {
    let mut spec =
        json!({"resourceQuota": {"name": "team-a", "resource": "requests.nvidia.com/gpu"}, "thresholds": ["80%"]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    manifest("gpus", spec)
}

fn invalid() -> Vec<(Value, &'static str, &'static str)> {
    const THRESHOLD: &str = "a threshold must be a percentage above 0%";
    const HYSTERESIS: &str = "hysteresis must be a percentage such as 5%, or a Quantity such as 10M";
    const LOWER: &str = "hysteresis must be lower than every threshold, otherwise a threshold would be sent only once: lower hysteresis";
    const LIMIT: &str = "limit must be a Quantity above zero, such as 1G, 500k or 64Gi";
    const URL: &str = "url must be an absolute http:// or https:// URL that the operator's --allow-prometheus allows";
    const FOR: &str = "for must be a duration from 0s to 24h";
    const INTERVAL: &str = "interval must be a duration from 1s to 24h";
    let thresholds = |thresholds: Value| query(json!({"thresholds": thresholds}));
    let url = |url: &str| query(json!({"prometheus": {"url": url, "query": "up"}}));
    let both = query(json!({"resourceQuota": {"name": "a", "resource": "pods"}, "limit": null}));
    vec![
        (query(json!({"prometheus": null})), "spec", "set what to measure: prometheus"),
        (both, "spec", "only one of prometheus and resourceQuota: remove one"),
        (quota(json!({"limit": "4"})), "spec", "a resourceQuota has its own limit, hard: remove limit"),
        (query(json!({"limit": null})), "spec", "thresholds in percent need a limit: set limit, such as 1G"),
        (query(json!({"limit": null, "thresholds": ["5", "5%"]})), "spec", "or use quantities as thresholds"),
        (query(json!({"limit": "0"})), "spec.limit", LIMIT),
        (query(json!({"limit": "-1"})), "spec.limit", LIMIT),
        (query(json!({"limit": "1 G"})), "spec.limit", LIMIT),
        (query(json!({"limit": "1g"})), "spec.limit", LIMIT),
        (query(json!({"limit": "1e999"})), "spec.limit", LIMIT),
        (query(json!({"limit": "many"})), "spec.limit", LIMIT),
        (query(json!({"limit": 1_000_000})), "spec.limit", "must be of type string"),
        (thresholds(json!([])), "spec.thresholds", "must name at least one, such as 80%"),
        (thresholds(json!(null)), "spec.thresholds", "Required value"),
        (thresholds(json!(["80", "80"])), "spec.thresholds[1]", "Duplicate value"),
        (
            thresholds(json!((1..=33).map(|n| n.to_string()).collect::<Vec<_>>())),
            "spec.thresholds",
            "must have at most 32",
        ),
        (thresholds(json!(["0%"])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!(["0.000%"])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!(["0"])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!(["80%", "-5%"])), "spec.thresholds[1]", THRESHOLD),
        (thresholds(json!(["1000%"])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!(["80.1234%"])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!(["80 %"])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!(["1k%"])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!(["NaN"])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!([""])), "spec.thresholds[0]", THRESHOLD),
        (thresholds(json!(["9".repeat(65)])), "spec.thresholds[0]", "Too long"),
        (query(json!({"hysteresis": "-5%"})), "spec.hysteresis", HYSTERESIS),
        (query(json!({"hysteresis": "little"})), "spec.hysteresis", HYSTERESIS),
        (query(json!({"hysteresis": "80%"})), "spec", LOWER),
        (query(json!({"hysteresis": "5.5%", "thresholds": ["80%", "5.4%"]})), "spec", LOWER),
        (query(json!({"for": "soon"})), "spec.for", FOR),
        (query(json!({"for": "25h"})), "spec.for", FOR),
        (query(json!({"interval": "0s"})), "spec.interval", INTERVAL),
        (query(json!({"interval": "999ms"})), "spec.interval", INTERVAL),
        (query(json!({"interval": "24h1s"})), "spec.interval", INTERVAL),
        (query(json!({"unit": "t".repeat(64)})), "spec.unit", "Too long"),
        (url("prometheus:9090"), "spec.prometheus.url", URL),
        (url("ftp://prometheus"), "spec.prometheus.url", URL),
        (url("http://"), "spec.prometheus.url", URL),
        (url("http://user:password@prometheus"), "spec.prometheus.url", "name a Secret in basicAuthRef"),
        (url("http://prometheus?x=1"), "spec.prometheus.url", "must have neither a query (?...) nor a fragment"),
        (url("http://prometheus#x"), "spec.prometheus.url", "must have neither a query (?...) nor a fragment"),
        (
            query(json!({"prometheus": {"query": " "}})),
            "spec.prometheus.query",
            "must be PromQL that returns one number",
        ),
        (query(json!({"prometheus": {"query": "a".repeat(4097)}})), "spec.prometheus.query", "Too long"),
        (query(json!({"prometheus": {}})), "spec.prometheus.query", "Required value"),
        (
            quota(json!({"resourceQuota": {"name": "Team A", "resource": "pods"}})),
            "spec.resourceQuota.name",
            "must be a ResourceQuota's name",
        ),
        (
            quota(json!({"resourceQuota": {"name": "a", "resource": ""}})),
            "spec.resourceQuota.resource",
            "a resource in the quota's hard",
        ),
        (quota(json!({"resourceQuota": {"name": "a"}})), "spec.resourceQuota.resource", "Required value"),
        (query(json!({"webhook": "ci"})), "spec.webhook", "unknown field"),
    ]
}

#[test]
fn an_invalid_threshold_is_refused_with_what_to_write_instead() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for (manifest, field, says) in invalid() {
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, field, says, result));
        }
        no_failures(&failures);
    });
}

#[test]
fn valid_threshold_is_accepted_with_defaults() {
    run(async {
        let scene = Scene::new("thresholds").await;
        let apiserver = Apiserver::of(&scene).await;
        for spec in [
            query(json!({})),
            query(json!({"limit": null, "thresholds": ["5", "950M", "64Gi", "1.5e9", "1E", ".5", "500m"]})),
            query(json!({"thresholds": ["0.001%", "99.5%", "100%", "999.999%", "950M"], "hysteresis": "0.0%"})),
            query(
                json!({"thresholds": ["50%", "50.0%", "1G", "1000M"], "hysteresis": "10M", "for": "1h30m", "interval": "24h"}),
            ),
            query(json!({"hysteresis": "79.999%", "unit": "tokens", "for": "24h", "interval": "1s"})),
            query(
                json!({"prometheus": {"url": "https://prometheus.monitoring:9090/prefix", "query": "a".repeat(4096)}}),
            ),
            quota(json!({})),
            quota(json!({"thresholds": ["3"], "resourceQuota": {"name": "a.b", "resource": "count/deployments.apps"}})),
        ] {
            let taken = apiserver.try_out(&spec).await.unwrap_or_else(|error| panic!("{error}\n{spec:#}"));
            serde_json::from_value::<UsageThreshold>(taken).unwrap();
        }
        apiserver.create(&quota(json!({}))).await;
        let spec = scene.get("ut", "gpus")["spec"].clone();
        let expected = json!({
            "resourceQuota": {"name": "team-a", "resource": "requests.nvidia.com/gpu"}, "thresholds": ["80%"],
            "hysteresis": "0%", "for": "0s", "interval": "60s"
        });
        assert_eq!(spec, expected);
    });
}
