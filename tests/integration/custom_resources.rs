//! The custom resources as the real apiserver takes, fills in, merges and refuses them.

// Tables of json! literals read best whole and without borrows.
#![allow(clippy::needless_pass_by_value, clippy::too_many_lines)]

use std::{fs, process::Command};

use kube::Client;
use llmtune_webhooks::{
    api::{
        ClusterWebhook, LedgerSegment, Webhook, WebhookDelivery,
        webhook::{Backoff, DeliveryPolicy},
        webhook_delivery::{DEFAULT_TTL, REDELIVER_ANNOTATION},
    },
    event::EventType,
    source::{Source, training_job::TrainingJobs},
    subscription::{resolve::Plan, target::References},
};
use llmtune_webhooks_harness::{reference::markdown, root};
use serde_json::{Map, Value, json};

use crate::support::{BINARY, Scene, plane, run, webhook};

const URL: &str = "https://ci.example.com/hooks";
const TIME: &str = "2025-11-08T14:22:31Z";
const EVENT_ID: &str = "evt_0123456789abcdef0123456789abcdef";

/// An apiserver's client in a namespace, with strict field validation.
pub struct Apiserver {
    client: Client,
    namespace: String,
}

impl Apiserver {
    pub async fn new() -> Self {
        let client = plane().await.admin().await;
        Self { client, namespace: "default".into() }
    }

    pub async fn of(scene: &Scene) -> Self {
        Self { client: scene.plane.admin().await, namespace: scene.namespace.clone() }
    }

    fn path(&self, object: &Value) -> String {
        let plural = match object["kind"].as_str().unwrap() {
            "Webhook" => "webhooks",
            "ClusterWebhook" => return "/apis/llmtune.io/v1alpha1/clusterwebhooks".to_owned(),
            "WebhookDelivery" => "webhookdeliveries",
            "TrainingJob" => "trainingjobs",
            "UsageThreshold" => "usagethresholds",
            "LedgerSegment" => "ledgersegments",
            kind => panic!("{kind} has no path here"),
        };
        format!("/apis/llmtune.io/v1alpha1/namespaces/{}/{plural}", self.namespace)
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> Result<Value, String> {
        let join = if path.contains('?') { '&' } else { '?' };
        let request = http::Request::builder()
            .method(method)
            .uri(format!("{path}{join}fieldValidation=Strict"))
            .header("content-type", kind)
            .body(serde_json::to_vec(body).unwrap())
            .unwrap();
        self.client.request(request).await.map_err(|error| match error {
            kube::Error::Api(status) => status.message,
            error => panic!("{error}"),
        })
    }

    /// What would be stored, or why it would be refused.
    pub async fn try_out(&self, object: &Value) -> Result<Value, String> {
        self.send("POST", &format!("{}?dryRun=All", self.path(object)), "application/json", object).await
    }

    pub async fn create(&self, object: &Value) -> Value {
        let path = self.path(object);
        self.send("POST", &path, "application/json", object).await.unwrap_or_else(|error| panic!("{error}\n{object:#}"))
    }

    /// Merges this into an object, or with `/status` for `subresource` into its status.
    async fn merge(&self, object: &Value, subresource: &str, fields: &Value) -> Result<Value, String> {
        let path = format!("{}/{}{subresource}", self.path(object), object["metadata"]["name"].as_str().unwrap());
        self.send("PATCH", &path, "application/merge-patch+json", fields).await
    }

    /// Writes an object's status whole.
    async fn replace_status(&self, mut object: Value, status: &Value) -> Result<Value, String> {
        object["status"] = status.clone();
        let path = format!("{}/{}/status", self.path(&object), object["metadata"]["name"].as_str().unwrap());
        self.send("PUT", &path, "application/json", &object).await
    }

    /// Applies as a field manager, by server-side apply.
    pub async fn apply(&self, manager: &str, subresource: &str, object: &Value) -> Result<Value, String> {
        let name = object["metadata"]["name"].as_str().unwrap();
        let path = format!("{}/{name}{subresource}?fieldManager={manager}", self.path(object));
        self.send("PATCH", &path, "application/apply-patch+yaml", object).await
    }
}

/// A Webhook's manifest with these fields over a valid url and events; a null takes a field away.
fn with(spec: Value) -> Value {
    let mut manifest = webhook("ci", URL, &spec);
    manifest["spec"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
    manifest
}

/// The same as a `ClusterWebhook`.
pub fn of_cluster(manifest: &Value) -> Value {
    over(manifest.clone(), json!({"kind": "ClusterWebhook"}))
}

fn delivery(delivery: Value) -> Value {
    with(json!({"delivery": delivery}))
}

fn backoff(backoff: Value) -> Value {
    delivery(json!({"backoff": backoff}))
}

fn selector(selector: Value) -> Value {
    with(json!({"selector": selector}))
}

fn headers(headers: Vec<(&str, &str)>) -> Value {
    let headers = headers.into_iter().map(|(name, value)| json!({"name": name, "value": value}));
    with(json!({"headers": headers.collect::<Vec<_>>()}))
}

fn requirement(requirement: Value) -> Value {
    selector(json!({"matchExpressions": [requirement]}))
}

fn named(name: &str) -> Value {
    webhook(name, URL, &json!({}))
}

fn job(spec: Value) -> Value {
    json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "llama"}, "spec": spec})
}

/// These fields over an object's.
fn over(mut object: Value, fields: Value) -> Value {
    object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    object
}

/// A `WebhookDelivery`'s manifest with these fields over those of a valid test.
fn whd(spec: Value) -> Value {
    let spec = over(json!({"webhookRef": {"name": "ci"}, "test": {"event": "training.completed"}}), spec);
    json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "WebhookDelivery", "metadata": {"name": "try"}, "spec": spec})
}

/// A `WebhookDelivery`'s manifest as the operator makes it.
fn given_up(name: &str) -> Value {
    let mut manifest = whd(json!({}));
    manifest["spec"] = json!({"webhookRef": {"name": "ci"}, "eventId": EVENT_ID});
    manifest["metadata"] = json!({"name": name, "labels": {"llmtune.io/webhook": "ci"}});
    manifest
}

/// A `WebhookDelivery`'s status with every field.
fn given_up_status() -> Value {
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "RetriesExhausted", "message": "", "lastTransitionTime": TIME});
    json!({
        "observedGeneration": 1,
        "conditions": [condition("Delivered", "False"), condition("Finished", "True")],
        "event": {
            "id": EVENT_ID, "type": "training.completed", "occurredAt": TIME, "sequence": 2,
            "object": {"kind": "TrainingJob", "namespace": "research", "name": "llama", "uid": "6c0c6d4e-7f6f-4a7c-9df6-2f3c9a1b0e55"},
            "body": "{\"id\":\"evt_1\",\"deliveredAt\":\""
        },
        "attempts": 6,
        "lastAttempt": {"time": TIME, "attempt": 6, "statusCode": 502, "error": "502 Bad Gateway"},
        "finishedAt": TIME,
        "lastHandledRedeliverAt": TIME
    })
}

/// A `LedgerSegment`'s manifest with these fields over valid ones.
fn segment(spec: Value) -> Value {
    let valid = json!({"kind": "Journal", "epoch": 1, "term": 3, "sequence": 258, "records": 12, "bytes": 8, "data": "KLUv/QQA"});
    let metadata = json!({"name": "journal-1-002"});
    json!({"apiVersion": "llmtune.io/v1alpha1", "kind": "LedgerSegment", "metadata": metadata, "spec": over(valid, spec)})
}

/// Manifests with the field that the refusal must name and what it must say.
fn invalid_webhooks() -> Vec<(Value, &'static str, &'static str)> {
    const ABSOLUTE: &str = "must be an absolute, percent-encoded http:// or https:// URL, such as https://";
    const HOST: &str = "url must name a host, of at most 253 characters, such as https://";
    const PORT: &str = "port must be from 1 to 65535, such as https://";
    const PASSWORD: &str = "must not hold a user name or password";
    const FRAGMENT: &str = "must not have a fragment (#...), which is never sent: remove it";
    const EVENTS: &str = "events may hold training.started, training.completed";
    const TIMEOUT: &str = "timeout must be a duration from 1s to 60s, in whole h, m, s or ms, such as 30s";
    const INITIAL: &str = "initial must be a duration from 10ms to 24h, in whole h, m, s or ms, such as 5s";
    const MAX: &str = "max must be a duration from 10ms to 24h, in whole h, m, s or ms, such as 1h";
    const ORDER: &str = "must not be shorter than backoff.initial: raise max or lower initial";
    const SECRET: &str = "must be a Secret's name: lower-case letters, digits, '-' and '.', such as ci-hook";
    const KEY: &str = "must be a key of the Secret: letters, digits, '-', '_' and '.', such as secret";
    const VALUES: &str = "In and NotIn need values; Exists and DoesNotExist must have none";
    const LABEL: &str = "a label's key is a name of at most 63 letters, digits, '-', '_' and '.'";
    const LABEL_VALUE: &str = "a label's value is empty or at most 63 letters, digits, '-', '_' and '.'";

    const ONE_URL: &str = "exactly one of url and urlFrom must be there: write url, such as https://";

    let url = |url: &str| with(json!({"url": url}));
    let url_from = |source: Value| with(json!({"url": null, "urlFrom": source}));
    let header = |header: Value| with(json!({"headers": [header]}));
    let events = |events: &[&str]| with(json!({"events": events}));
    let timeout = |timeout: Value| delivery(json!({"timeout": timeout}));
    let secret = |secret: Value| with(json!({"secretRef": secret}));
    let tls = |tls: Value| with(json!({"tls": tls}));
    let bundle = |bundle: Value| tls(json!({"caBundleRef": bundle}));
    let plain_tls = with(json!({"url": "http://ci.example.com", "tls": {"clientCertificateRef": {"name": "ci"}}}));
    let long = |count: usize| "a".repeat(count);
    let two_faults = with(json!({"url": "ftp://ci.example.com", "delivery": {"timeout": "soon"}}));
    vec![
        (url(""), "spec.url", ABSOLUTE),
        (url("ci.example.com"), "spec.url", ABSOLUTE),
        (url("ci.example.com:8080/hooks"), "spec.url", ABSOLUTE),
        (url("/hooks"), "spec.url", ABSOLUTE),
        (url("//ci.example.com/hooks"), "spec.url", ABSOLUTE),
        (url("ftp://ci.example.com"), "spec.url", ABSOLUTE),
        (url("file:///etc/passwd"), "spec.url", ABSOLUTE),
        (url("mailto:ops@example.com"), "spec.url", ABSOLUTE),
        (url("https://ci example.com"), "spec.url", ABSOLUTE),
        (url("https://ci.example.com/%zz"), "spec.url", ABSOLUTE),
        (url("https://ci.example.com\n"), "spec.url", ABSOLUTE),
        (url("https://ci.example.com:http/"), "spec.url", ABSOLUTE),
        (url("https://[::1/"), "spec.url", ABSOLUTE),
        (url("http://"), "spec.url", HOST),
        (url("https:///path"), "spec.url", HOST),
        (url("http:ci.example.com"), "spec.url", HOST),
        (url("http://:8080/hooks"), "spec.url", HOST),
        (url(&format!("https://{}com/", "a.".repeat(126))), "spec.url", HOST),
        (url("https://ci.example.com:0/"), "spec.url", PORT),
        (url("https://ci.example.com:65536/"), "spec.url", PORT),
        (url("https://ci.example.com:123456789012345678901234567890/"), "spec.url", PORT),
        (url("https://user:password@ci.example.com"), "spec.url", PASSWORD),
        (url("https://user@ci.example.com/hooks"), "spec.url", PASSWORD),
        (url("https://@ci.example.com/hooks"), "spec.url", PASSWORD),
        (url("https://a@b@ci.example.com/hooks"), "spec.url", PASSWORD),
        (url("https://ci.example.com/hooks#part"), "spec.url", FRAGMENT),
        (url("https://ci.example.com#"), "spec.url", FRAGMENT),
        (url(&format!("{URL}?{}", long(2048))), "spec.url", "Too long: may not be more than 2048"),
        (with(json!({"url": null})), "spec", ONE_URL),
        (with(json!({"urlFrom": {"secretKeyRef": {"name": "ci", "key": "url"}}})), "spec", ONE_URL),
        (url_from(json!({})), "spec.urlFrom.secretKeyRef", "Required value"),
        (url_from(json!({"secretKeyRef": {"name": "ci"}})), "spec.urlFrom.secretKeyRef.key", "Required value"),
        (url_from(json!({"secretKeyRef": {"name": "C I", "key": "url"}})), "spec.urlFrom.secretKeyRef.name", SECRET),
        (
            url_from(json!({"secretKeyRef": {"name": "ci", "key": "the url"}})),
            "spec.urlFrom.secretKeyRef.key",
            "must be a key of the Secret",
        ),
        (url_from(json!({"configMapKeyRef": {"name": "ci"}})), "spec.urlFrom.configMapKeyRef", "unknown field"),
        (header(json!({"name": "X-Env"})), "spec.headers[0]", "must have value, or valueFrom where it is a secret"),
        (
            header(json!({"name": "X-Env", "value": "a", "valueFrom": {"secretKeyRef": {"name": "ci", "key": "a"}}})),
            "spec.headers[0]",
            "and not both",
        ),
        (header(json!({"value": "a"})), "spec.headers[0].name", "Required value"),
        (header(json!({"name": "X-Env", "valueFrom": {}})), "spec.headers[0].valueFrom.secretKeyRef", "Required value"),
        (header(json!({"name": long(129), "value": "a"})), "spec.headers[0].name", "Too long"),
        (header(json!({"name": "X-Env", "value": long(8193)})), "spec.headers[0].value", "Too long"),
        (headers(vec![("X-Env", "a"); 2]), "spec.headers[1]", "Duplicate value"),
        (
            headers(vec![("X-Env", "a"), ("Y", "b"), ("x-eNV", "c")]),
            "spec.headers",
            "have each name once, whatever its case",
        ),
        (
            with(
                json!({"headers": (0..33).map(|n| json!({"name": format!("X-{n}"), "value": "a"})).collect::<Vec<_>>()}),
            ),
            "spec.headers",
            "must have at most 32 items",
        ),
        (with(json!({"url": 8080})), "spec.url", "must be of type string"),
        (events(&[]), "spec.events", "must name at least one event, such as training.completed, or \"*\" for all"),
        (with(json!({"events": null})), "spec.events", "Required value"),
        (with(json!({"events": "*"})), "spec.events", "must be of type array"),
        (events(&["training.complete"]), "spec.events[0]", EVENTS),
        (events(&["*", "training"]), "spec.events[1]", EVENTS),
        (events(&["Training.Completed"]), "spec.events[0]", EVENTS),
        (events(&["training.completed "]), "spec.events[0]", EVENTS),
        (events(&["training.**"]), "spec.events[0]", EVENTS),
        (events(&[""]), "spec.events[0]", EVENTS),
        (events(&["*", "model.*", "*"]), "spec.events[2]", "Duplicate value: \"*\""),
        (events(&["*"; 17]), "spec.events", "Too many: 17: must have at most 16 items"),
        (events(&[&long(65)]), "spec.events[0]", "Too long: may not be more than 64"),
        (timeout(json!("-5s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("0s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("999ms")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("61s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("1m1ms")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("9999h")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("100000ms")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("1d")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("5")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("1.5s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("30 s")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("30S")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!("30s\n")), "spec.delivery.timeout", TIMEOUT),
        (timeout(json!(30)), "spec.delivery.timeout", "must be of type string"),
        (backoff(json!({"initial": "5ms"})), "spec.delivery.backoff.initial", INITIAL),
        (backoff(json!({"initial": "0s"})), "spec.delivery.backoff.initial", INITIAL),
        (backoff(json!({"initial": "1d"})), "spec.delivery.backoff.initial", INITIAL),
        (backoff(json!({"initial": "24h1ms", "max": "24h"})), "spec.delivery.backoff.initial", INITIAL),
        (backoff(json!({"max": "25h"})), "spec.delivery.backoff.max", MAX),
        (backoff(json!({"max": "forever"})), "spec.delivery.backoff.max", MAX),
        (backoff(json!({"max": "9ms", "initial": "10ms"})), "spec.delivery.backoff.max", MAX),
        (backoff(json!({"initial": "10s", "max": "9s999ms"})), "spec.delivery.backoff", ORDER),
        (backoff(json!({"initial": "2h"})), "spec.delivery.backoff", "max (1h unless given)"),
        (backoff(json!({"max": "4s"})), "spec.delivery.backoff", ORDER),
        (backoff(json!({"factor": 0})), "spec.delivery.backoff.factor", "greater than or equal to 1"),
        (backoff(json!({"factor": 11})), "spec.delivery.backoff.factor", "less than or equal to 10"),
        (backoff(json!({"factor": 1.5})), "spec.delivery.backoff.factor", "of type integer"),
        (delivery(json!({"maxRetries": 21})), "spec.delivery.maxRetries", "less than or equal to 20"),
        (delivery(json!({"maxRetries": -1})), "spec.delivery.maxRetries", "greater than or equal to 0"),
        (delivery(json!({"maxRetries": "5"})), "spec.delivery.maxRetries", "must be of type integer"),
        (delivery(json!({"concurrency": 0})), "spec.delivery.concurrency", "greater than or equal to 1"),
        (delivery(json!({"concurrency": 65})), "spec.delivery.concurrency", "less than or equal to 64"),
        (delivery(json!("fast")), "spec.delivery", "must be of type object"),
        (named(&long(64)), "metadata.name", "at most 63 characters, since it becomes a label value: choose a shorter"),
        (secret(json!({})), "spec.secretRef.name", "Required value"),
        (secret(json!("ci-hook")), "spec.secretRef", "must be of type object"),
        (secret(json!({"name": ""})), "spec.secretRef.name", SECRET),
        (secret(json!({"name": "Ci-Hook"})), "spec.secretRef.name", SECRET),
        (secret(json!({"name": "ci..hook"})), "spec.secretRef.name", SECRET),
        (secret(json!({"name": "team/ci-hook"})), "spec.secretRef.name", SECRET),
        (secret(json!({"name": long(254)})), "spec.secretRef.name", "Too long: may not be more than 253"),
        (secret(json!({"name": "ci", "key": ""})), "spec.secretRef.key", KEY),
        (secret(json!({"name": "ci", "key": "my key"})), "spec.secretRef.key", KEY),
        (
            secret(json!({"name": "ci", "previousKey": "my key"})),
            "spec.secretRef.previousKey",
            "must be a key of the Secret",
        ),
        (secret(json!({"name": "ci", "key": "previous"})), "spec.secretRef", "previousKey must be another than key"),
        (plain_tls, "spec", "tls has no meaning for an http:// url: write https://, or remove tls"),
        (tls(json!({})), "spec.tls", "tls must have caBundleRef, clientCertificateRef or both"),
        (tls(json!({"insecure": true})), "spec.tls.insecure", "unknown field"),
        (bundle(json!({"name": "ca"})), "spec.tls.caBundleRef.kind", "Required value"),
        (bundle(json!({"kind": "Pod", "name": "ca"})), "spec.tls.caBundleRef.kind", "\"ConfigMap\", \"Secret\""),
        (bundle(json!({"kind": "Secret", "name": "C A"})), "spec.tls.caBundleRef.name", "must be an object's name"),
        (
            bundle(json!({"kind": "Secret", "name": "ca", "key": "a b"})),
            "spec.tls.caBundleRef.key",
            "must be a key of the object",
        ),
        (
            tls(json!({"clientCertificateRef": {"name": "C"}})),
            "spec.tls.clientCertificateRef.name",
            "must be a Secret's name",
        ),
        (selector(json!({"matchLabels": {"team": "re search"}})), "spec.selector.matchLabels[team]", LABEL_VALUE),
        (selector(json!({"matchLabels": {"team": long(64)}})), "spec.selector.matchLabels", "not be more than 63"),
        (selector(json!({"matchLabels": {"team": 7}})), "spec.selector.matchLabels.team", "must be of type string"),
        (selector(json!({"matchLabels": {"the team": "x"}})), "spec.selector.matchLabels", LABEL),
        (selector(json!({"matchLabels": {"": "x"}})), "spec.selector.matchLabels", LABEL),
        (selector(json!({"matchLabels": {long(64): "x"}})), "spec.selector.matchLabels", LABEL),
        (
            requirement(json!({"key": "a", "operator": "Is"})),
            "operator",
            "\"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"",
        ),
        (requirement(json!({"key": "a"})), "spec.selector.matchExpressions[0].operator", "Required value"),
        (requirement(json!({"operator": "Exists"})), "spec.selector.matchExpressions[0].key", "Required value"),
        (requirement(json!({"key": "", "operator": "Exists"})), "spec.selector.matchExpressions[0].key", LABEL),
        (requirement(json!({"key": "a/b/c", "operator": "Exists"})), "spec.selector.matchExpressions[0].key", LABEL),
        (requirement(json!({"key": "a", "operator": "In"})), "spec.selector.matchExpressions[0]", VALUES),
        (requirement(json!({"key": "a", "operator": "NotIn", "values": []})), "matchExpressions[0]", VALUES),
        (requirement(json!({"key": "a", "operator": "Exists", "values": ["x"]})), "matchExpressions[0]", VALUES),
        (requirement(json!({"key": "a", "operator": "DoesNotExist", "values": [""]})), "matchExpressions[0]", VALUES),
        (requirement(json!({"key": "a", "operator": "In", "values": ["x y"]})), "[0].values[0]", LABEL_VALUE),
        (requirement(json!({"key": "a", "operator": "In", "values": [long(64)]})), "[0].values[0]", "more than 63"),
        (requirement(json!({"key": "a", "operator": "In", "values": vec!["x"; 65]})), "[0].values", "at most 64 items"),
        (selector(json!({"team": "research"})), "spec.selector.team", "unknown field"),
        (with(json!({"suspend": "yes"})), "spec.suspend", "must be of type boolean"),
        (with(json!({"retries": 3})), "spec.retries", "unknown field"),
        (delivery(json!({"retries": 3})), "spec.delivery.retries", "unknown field"),
        (secret(json!({"name": "ci", "namespace": "other"})), "spec.secretRef.namespace", "unknown field"),
        (two_faults.clone(), "spec.url", ABSOLUTE),
        (two_faults, "spec.delivery.timeout", TIMEOUT),
    ]
}

fn valid_webhooks() -> Vec<Value> {
    let url = |url: &str| with(json!({"url": url}));
    let events = |events: &[&str]| with(json!({"events": events}));
    let timeout = |timeout: &str| delivery(json!({"timeout": timeout}));
    let every: Vec<&str> = EventType::ALL.iter().map(|event| event.name()).collect();
    vec![
        with(json!({})),
        events(&every),
        events(&["*"]),
        events(&["training.*", "deployment.*", "model.*", "usage.*"]),
        events(&["*", "training.*", "training.completed"]),
        events(&["usage.threshold_reached"]),
        url("http://ci.example.com"),
        url("HTTPS://ci.example.com/"),
        url("http://localhost:1/"),
        url("https://ci.example.com:65535/hooks?token=a%20b&to=ops@example.com"),
        url("https://ci.example.com?x"),
        url("https://ci.example.com/a/@b//c;d=e"),
        url("http://192.0.2.1:8080/hooks"),
        url("http://[2001:db8::1]:8080/hooks"),
        url("http://ci.team-a.svc.cluster.local./hooks"),
        url("https://b\u{fc}cher.example/hooks"),
        url(&format!("{URL}?{}", "a".repeat(2048 - URL.len() - 1))),
        named(&"a".repeat(63)),
        named("ci.team-a"),
        timeout("1s"),
        timeout("1000ms"),
        timeout("1m"),
        timeout("60s"),
        timeout("59s500ms"),
        timeout("500ms1s"),
        timeout("1s1s"),
        timeout("00030s"),
        backoff(json!({"initial": "10ms", "max": "10ms", "factor": 1})),
        backoff(json!({"initial": "1m500ms", "max": "1h30m"})),
        backoff(json!({"initial": "24h", "max": "24h", "factor": 10})),
        backoff(json!({"initial": "0h0m5s0ms", "max": "23h59m59s1000ms"})),
        delivery(json!({"maxRetries": 0, "concurrency": 1})),
        delivery(json!({"maxRetries": 20, "concurrency": 64})),
        with(json!({"suspend": true})),
        with(json!({"secretRef": {"name": "ci-hook"}})),
        with(json!({"secretRef": {"name": "ci.hook.v2", "key": "webhook_Secret-1.txt"}})),
        with(json!({"secretRef": {"name": "ci-hook", "key": "new", "previousKey": "old"}})),
        with(json!({"url": null, "urlFrom": {"secretKeyRef": {"name": "ci-hook", "key": "url"}}})),
        with(
            json!({"url": null, "urlFrom": {"secretKeyRef": {"name": "ci", "key": "url"}}, "tls": {"clientCertificateRef": {"name": "ci"}}}),
        ),
        headers(vec![
            ("Authorization", "Bearer a.b-c"),
            ("X-Env", "a\tb c"),
            ("cookie", "a=\"b\""),
            ("x-_.~!#$%&'*+^`|9", "~"),
        ]),
        with(
            json!({"headers": [{"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "ci", "key": "token"}}}]}),
        ),
        with(json!({"headers": [{"name": "X".repeat(128), "value": "a".repeat(8192)}]})),
        with(json!({"tls": {"caBundleRef": {"kind": "ConfigMap", "name": "ca"}}})),
        with(json!({"tls": {
            "caBundleRef": {"kind": "Secret", "name": "ca", "key": "bundle.pem"}, "clientCertificateRef": {"name": "ci"}
        }})),
        selector(json!({})),
        selector(json!({"matchLabels": {}, "matchExpressions": []})),
        selector(json!({
            "matchLabels": {"team": "research", "example.com/tier": "", "a": "a".repeat(63)},
            "matchExpressions": [
                {"key": "app.kubernetes.io/name", "operator": "In", "values": ["llama", "mistral", ""]},
                {"key": "stage", "operator": "NotIn", "values": ["dev"]},
                {"key": "gpu", "operator": "Exists"},
                {"key": "draft", "operator": "DoesNotExist", "values": []},
            ]
        })),
    ]
}

/// What is to be said of an answer that is not a refusal which names this field and says this.
pub fn complaint(manifest: &Value, field: &str, says: &str, result: Result<Value, String>) -> Option<String> {
    match result {
        Ok(_) => Some(format!("taken, though {field} is wrong\n{manifest:#}")),
        Err(message) if message.contains(field) && message.contains(says) => None,
        Err(message) => Some(format!("the refusal lacks {field:?} or {says:?}: {message}\n{manifest:#}")),
    }
}

/// Fails with all that went wrong, so that one run shows every case.
pub fn no_failures(failures: &[String]) {
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn the_definitions_in_crds_are_those_that_the_binary_prints() {
    let printed = Command::new(BINARY).arg("crds").output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/llmtune.io.yaml");
    let kept = fs::read_to_string(path).unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let difference = kept.lines().zip(printed.lines()).position(|(kept, printed)| kept != printed);
    let line = difference.map_or("their lengths differ".into(), |line| format!("line {} differs", line + 1));
    assert!(
        kept == printed,
        "crds/llmtune.io.yaml is not what `llmtune-webhooks crds` prints ({line}): run `make generate`"
    );
}

#[test]
fn the_api_reference_is_what_the_definitions_say() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let written = markdown(&read("crds/llmtune.io.yaml"));
    assert!(read("docs/api.md") == written, "docs/api.md is not what the definitions say: run `make generate`");
}

#[test]
fn an_invalid_webhook_is_refused_with_what_to_write_instead() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for (manifest, field, says) in invalid_webhooks() {
            for manifest in [of_cluster(&manifest), manifest] {
                let result = apiserver.try_out(&manifest).await;
                failures.extend(complaint(&manifest, field, says, result));
            }
        }
        no_failures(&failures);
    });
}

#[test]
fn a_header_that_http_or_the_operator_decides_on_or_that_says_what_no_header_can_is_refused_however_it_is_spelled() {
    run(async {
        const RESERVED: &str = "is a header that HTTP, a proxy or the operator decides on: choose another";
        const TOKEN: &str = "must be a header's name: letters, digits and '-', such as X-Environment";
        const PRINTABLE: &str =
            "value must be printable ASCII characters, at least one, without white space at either end";
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for name in [
            "Accept",
            "baggage",
            "Connection",
            "Content-Type",
            "content-length",
            "CONTENT-ENCODING",
            "Content-Digest",
            "ce-id",
            "Ce-Anything",
            "Date",
            "Expect",
            "Forwarded",
            "Host",
            "HOST",
            "HTTP2-Settings",
            "Keep-Alive",
            "Max-Forwards",
            "Proxy-Authorization",
            "Proxy-Connection",
            "Signature",
            "Signature-Input",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "traceparent",
            "TraceState",
            "Upgrade",
            "User-Agent",
            "Via",
            "webhook-id",
            "Webhook-Signature",
            "X-Forwarded-For",
            "X-Hub-Signature",
            "X-Hub-Signature-256",
            "X-LLMTune-Event",
            "x-llmtune-signature-previous",
            "X-Real-IP",
            "X-Signature",
            "X-Signature-Ed25519",
        ] {
            let manifest = headers(vec![("X-Env", "a"), (name, "a")]);
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, "spec.headers[1].name", RESERVED, result));
        }
        for name in
            ["", "X Env", "X-Env:", "X-\u{c9}nv", "X-Env\n", "(x)", "a/b", "a=b", "\"a\"", "a,b", "a@b", "[a]", "{a}"]
        {
            let manifest = headers(vec![(name, "a")]);
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, "spec.headers[0].name", TOKEN, result));
        }
        for value in ["", " ", " a", "a ", "\ta", "a\n", "a\r\nX-Forged: 1", "a\0b", "\u{7f}", "\u{e9}", "\u{1f600}"] {
            let manifest = headers(vec![("X-Env", value)]);
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, "spec.headers[0].value", PRINTABLE, result));
        }
        no_failures(&failures);
    });
}

#[test]
fn namespaces_are_selected_by_a_cluster_webhook_alone_and_as_objects_are() {
    const LABEL: &str = "a label's key is a name of at most 63 letters, digits, '-', '_' and '.'";
    const LABEL_VALUE: &str = "a label's value is empty or at most 63 letters, digits, '-', '_' and '.'";
    const VALUES: &str = "In and NotIn need values; Exists and DoesNotExist must have none";
    run(async {
        let apiserver = Apiserver::new().await;
        let selecting = |selector: &Value| of_cluster(&with(json!({"namespaceSelector": selector})));
        let mut failures = Vec::new();
        for selector in [
            json!({}),
            json!({"matchLabels": {"team": "research"}}),
            json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]}),
        ] {
            let taken = apiserver.try_out(&selecting(&selector)).await;
            let taken = taken.unwrap_or_else(|error| panic!("{error}\n{selector:#}"));
            assert_eq!(taken["spec"]["namespaceSelector"], selector);
        }
        for (selector, field, says) in [
            (json!("team=a"), "spec.namespaceSelector", "must be of type object"),
            (json!({"team": "a"}), "spec.namespaceSelector.team", "unknown field"),
            (json!({"matchLabels": {"the team": "x"}}), "spec.namespaceSelector.matchLabels", LABEL),
            (json!({"matchLabels": {"team": "re search"}}), "spec.namespaceSelector.matchLabels[team]", LABEL_VALUE),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
                "spec.namespaceSelector.matchExpressions[0]",
                VALUES,
            ),
        ] {
            let result = apiserver.try_out(&selecting(&selector)).await;
            failures.extend(complaint(&selector, field, says, result));
        }
        let webhook = with(json!({"namespaceSelector": {}}));
        let result = apiserver.try_out(&webhook).await;
        failures.extend(complaint(&webhook, "spec.namespaceSelector", "unknown field", result));
        no_failures(&failures);
    });
}

#[test]
fn headers_of_two_managers_are_merged_by_name() {
    run(async {
        let scene = Scene::new("header-managers").await;
        let apiserver = Apiserver::of(&scene).await;
        apiserver.create(&headers(vec![("X-Env", "prod"), ("X-Team", "a")])).await;
        let one = |value: &str| {
            json!({
                "apiVersion": "llmtune.io/v1alpha1", "kind": "Webhook", "metadata": {"name": "ci"},
                "spec": {"url": URL, "events": ["*"], "headers": [{"name": "X-Region", "value": value}]}
            })
        };
        let taken = apiserver.apply("other", "", &one("eu")).await.unwrap();
        let names: Vec<&str> =
            taken["spec"]["headers"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["X-Env", "X-Team", "X-Region"]);
    });
}

#[test]
fn the_refusal_of_an_unknown_event_names_every_known_one() {
    run(async {
        let message = Apiserver::new().await.try_out(&with(json!({"events": ["training.stopped"]}))).await.unwrap_err();
        let names = EventType::ALL.iter().map(|event| event.name());
        for name in names.chain(["training.*", "model.*", "deployment.*", "usage.*", "\"*\""]) {
            assert!(message.contains(name), "{name} is missing: {message}");
        }
        assert!(message.contains("\"training.stopped\""), "the unknown one is missing: {message}");
    });
}

#[test]
fn a_valid_webhook_is_taken_and_the_operator_can_work_with_it() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for manifest in valid_webhooks().iter().flat_map(|manifest| [manifest.clone(), of_cluster(manifest)]) {
            let taken = match apiserver.try_out(&manifest).await {
                Ok(taken) => taken,
                Err(message) => {
                    failures.push(format!("refused: {message}\n{manifest:#}"));
                    continue;
                }
            };
            let spec = match manifest["kind"].as_str() {
                Some("Webhook") => serde_json::from_value(taken).map(|read: Webhook| read.spec),
                _ => serde_json::from_value(taken).map(|read: ClusterWebhook| read.spec.webhook),
            };
            let spec = spec.unwrap_or_else(|error| panic!("{error}\n{manifest:#}"));
            match Plan::read(&spec, "default", false) {
                Ok(Plan { references: References { url, .. }, .. }) => {
                    let Some(url) = url.given() else { continue };
                    assert!(url.username().is_empty() && url.password().is_none(), "{url}");
                }
                Err(error) => failures.push(format!("taken, but of no use: {error}\n{manifest:#}")),
            }
        }
        no_failures(&failures);
    });
}

#[test]
fn what_a_webhook_leaves_out_is_filled_in() {
    run(async {
        let scene = Scene::new("defaults").await;
        let apiserver = Apiserver::of(&scene).await;
        let full = json!({
            "timeout": "30s", "maxRetries": 5, "concurrency": 8,
            "backoff": {"initial": "5s", "factor": 5, "max": "1h"}
        });
        for (number, (given, differs)) in [
            (json!({}), json!({})),
            (json!({"delivery": {}}), json!({})),
            (json!({"delivery": {"backoff": {}}}), json!({})),
            (json!({"delivery": {"timeout": "10s"}}), json!({"timeout": "10s"})),
            (json!({"delivery": {"maxRetries": 0, "backoff": {"factor": 2}}}), json!({"maxRetries": 0, "factor": 2})),
            (
                json!({"delivery": {"concurrency": 1, "backoff": {"max": "10s"}}}),
                json!({"concurrency": 1, "max": "10s"}),
            ),
            (json!({"delivery": {"backoff": {"initial": "1s"}}}), json!({"initial": "1s"})),
        ]
        .into_iter()
        .enumerate()
        {
            let manifest = webhook(&format!("ci-{number}"), URL, &given);
            apiserver.create(&manifest).await;
            let mut expected = full.clone();
            for (key, value) in differs.as_object().unwrap() {
                let parent = if expected.get(key).is_some() { &mut expected } else { &mut expected["backoff"] };
                parent[key] = value.clone();
            }
            let spec = scene.get("webhook", &format!("ci-{number}"))["spec"].clone();
            assert_eq!(
                spec,
                json!({"url": URL, "events": ["*"], "suspend": false, "format": "LLMTune", "delivery": expected}),
                "{manifest:#}"
            );
        }
        let ours = DeliveryPolicy { backoff: Backoff::default(), ..DeliveryPolicy::default() };
        assert_eq!(serde_json::to_value(ours).unwrap(), full, "the defaults of the types are those of the schema");
        let cluster = apiserver.try_out(&of_cluster(&with(json!({})))).await.unwrap();
        assert_eq!(cluster["spec"], apiserver.try_out(&with(json!({}))).await.unwrap()["spec"]);
        let signed = apiserver.try_out(&with(json!({"secretRef": {"name": "ci-hook"}}))).await.unwrap();
        assert_eq!(signed["spec"]["secretRef"], json!({"name": "ci-hook", "key": "secret", "previousKey": "previous"}));
    });
}

#[test]
fn a_null_counts_as_absent() {
    run(async {
        let apiserver = Apiserver::new().await;
        let nulls = json!({
            "secretRef": null, "selector": null, "suspend": null, "tls": null,
            "delivery": {"timeout": null, "maxRetries": null, "backoff": null}
        });
        let taken = apiserver.try_out(&webhook("ci", URL, &nulls)).await.unwrap();
        assert_eq!(taken["spec"], apiserver.try_out(&with(json!({}))).await.unwrap()["spec"]);
        let taken = apiserver.try_out(&job(json!({"baseModel": null, "trainingMethod": null}))).await.unwrap();
        assert_eq!(taken["spec"], json!({}));
    });
}

#[test]
fn an_invalid_training_job_is_refused_with_what_is_wrong() {
    run(async {
        let scene = Scene::new("invalid-job").await;
        let apiserver = Apiserver::of(&scene).await;
        let stored = apiserver.create(&job(json!({}))).await;
        let long = |count: usize| "a".repeat(count);
        let mut failures = Vec::new();
        for (spec, field, says) in [
            (json!(null), "spec", "Required value"),
            (json!([]), "spec", "must be of type object"),
            (json!({"baseModel": 8}), "spec.baseModel", "must be of type string"),
            (json!({"baseModel": long(513)}), "spec.baseModel", "Too long: may not be more than 512"),
            (json!({"trainingMethod": ["sft"]}), "spec.trainingMethod", "must be of type string"),
        ] {
            let result = apiserver.try_out(&job(spec.clone())).await;
            failures.extend(complaint(&spec, field, says, result));
        }
        let condition = json!({
            "type": "Done", "status": "True", "reason": "Done", "message": "", "lastTransitionTime": "2025-11-08T14:22:31Z"
        });
        let conditions = |changes: Value| {
            let mut condition = condition.clone();
            condition.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            json!({"conditions": [condition]})
        };
        for (status, field, says) in [
            (json!({"phase": 3}), "status.phase", "must be of type string"),
            (json!({"phase": long(65)}), "status.phase", "Too long: may not be more than 64"),
            (json!({"startedAt": "yesterday"}), "status.startedAt", "must be of type date-time"),
            (json!({"startedAt": ""}), "status.startedAt", "must be of type date-time"),
            (json!({"startedAt": 1_762_611_751}), "status.startedAt", "must be of type date-time"),
            (json!({"startedAt": "2025-11-08T14:22:31"}), "status.startedAt", "must be of type date-time"),
            (json!({"completedAt": "2025-11-08"}), "status.completedAt", "must be of type date-time"),
            (json!({"completedAt": "2025-02-30T14:22:31Z"}), "status.completedAt", "must be of type date-time"),
            (json!({"metrics": "loss=0.1"}), "status.metrics", "must be of type object"),
            (json!({"metrics": [{"loss": 0.1}]}), "status.metrics", "must be of type object"),
            (json!({"artifact": long(2049)}), "status.artifact", "Too long: may not be more than 2048"),
            (json!({"jobId": 7}), "status.jobId", "must be of type string"),
            (json!({"message": long(32769)}), "status.message", "Too long: may not be more than 32768"),
            (json!({"observedGeneration": "1"}), "status.observedGeneration", "must be of type integer"),
            (json!({"progress": 50}), "status.progress", "unknown field"),
            (conditions(json!({"status": "Maybe"})), "conditions[0].status", "\"True\", \"False\", \"Unknown\""),
            (conditions(json!({"reason": ""})), "conditions[0].reason", "at least 1 char"),
            (conditions(json!({"lastTransitionTime": null})), "conditions[0].lastTransitionTime", "Required value"),
            (json!({"conditions": [condition, condition]}), "conditions[1]", "Duplicate value"),
        ] {
            let result = apiserver.merge(&stored, "/status?dryRun=All", &json!({"status": status})).await;
            failures.extend(complaint(&status, field, says, result));
        }
        no_failures(&failures);
    });
}

#[test]
fn a_training_job_may_hold_whatever_its_platform_knows() {
    run(async {
        let scene = Scene::new("valid-job").await;
        let apiserver = Apiserver::of(&scene).await;
        let specs = [
            json!({}),
            json!({"baseModel": "meta-llama/Llama-3.1-8B", "trainingMethod": "sft"}),
            json!({"baseModel": "a".repeat(512), "trainingMethod": "a".repeat(256)}),
            json!({"epochs": 3, "lora": {"rank": 16, "alpha": 0.5, "targets": ["q", "v"]}, "resume": false, "seed": null}),
        ];
        for spec in specs {
            let taken = apiserver.try_out(&job(spec.clone())).await.unwrap_or_else(|error| panic!("{error}\n{spec:#}"));
            assert_eq!(taken["spec"], spec);
        }
        let phases = ["Pending", "Suspended", "Running", "Completed", "Failed", "Cancelled", "Warming up", ""];
        let metrics = [
            json!({}),
            json!({"loss": 0.125, "step": 12000, "perplexity": 1e21, "tiny": -1e-7}),
            json!({"loss": "NaN", "gradNorm": "Infinity"}),
            json!({"eval": {"mmlu": 0.5, "by subject": [{"name": "law", "score": 0.4}]}, "converged": true, "best": null}),
            (0..1000).map(|number| (format!("metric-{number}"), json!(number))).collect::<Map<_, _>>().into(),
        ];
        let times = ["2025-11-08T14:22:31Z", "2025-11-08T14:22:31.123456789+05:30", "2025-11-08t14:22:31z"];
        let phases = phases.iter().map(|phase| json!({"phase": phase}));
        let metrics = metrics.into_iter().map(|metrics| json!({"phase": "Failed", "metrics": metrics}));
        let times = times.iter().map(|time| json!({"phase": "Running", "startedAt": time, "completedAt": time}));
        let whole = json!({
            "phase": "Completed", "jobId": "job-7", "artifact": "s3://models/llama-sft-7", "reason": "Done",
            "message": "all epochs done", "observedGeneration": 1, "conditions": [{
                "type": "example.com/Done", "status": "True", "reason": "Done", "message": "",
                "lastTransitionTime": "2025-11-08T14:22:31Z", "observedGeneration": 1
            }]
        });
        let statuses = phases.chain(metrics).chain(times).chain([json!({}), whole]);
        for (number, status) in statuses.enumerate() {
            let mut manifest = job(json!({}));
            manifest["metadata"]["name"] = json!(format!("job-{number}"));
            let stored = apiserver.create(&manifest).await;
            let taken = apiserver.replace_status(stored, &status).await;
            let taken = taken.unwrap_or_else(|error| panic!("{error}\n{status:#}"));
            assert_eq!(taken.get("status").cloned().unwrap_or(json!({})), status);
            let slim = serde_json::from_value(taken).unwrap_or_else(|error| panic!("{error}\n{status:#}"));
            TrainingJobs::default()
                .read(slim)
                .unwrap_or_else(|error| panic!("the source cannot read it: {error}\n{status:#}"));
        }
        let stored = apiserver.create(&job(json!({}))).await;
        let replaced = apiserver.replace_status(stored, &Value::Null).await.unwrap();
        assert!(replaced.get("status").is_none(), "a null status is not stored: {replaced:#}");
    });
}

fn invalid_deliveries() -> Vec<(Value, &'static str, &'static str)> {
    const NAME: &str = "name must be a webhook's name: 1 to 63 lower-case letters, digits, '-' and '.', such as ci";
    const KINDS: &str = "supported values: \"Webhook\", \"ClusterWebhook\"";
    const EVENT: &str = "event must be one event and no pattern: training.started, training.completed";
    const ID: &str = "eventId must be an event's id, evt_ and 32 digits from 0 to 9 and a to f";
    const TTL: &str = "ttl must be a duration of more than 0 and at most 8760h, in whole h, m, s or ms, such as 168h";
    const NEITHER: &str = "to send a test, give test, such as test: {event: training.completed}";
    const BOTH: &str = "spec may hold only one of test and eventId: remove eventId to send a test";

    let reference = |reference: Value| whd(json!({"webhookRef": reference}));
    let name = |name: &str| whd(json!({"webhookRef": {"name": name}}));
    let kind = |kind: &str| whd(json!({"webhookRef": {"name": "ci", "kind": kind}}));
    let event = |event: &str| whd(json!({"test": {"event": event}}));
    let id = |id: &str| whd(json!({"test": null, "eventId": id}));
    let ttl = |ttl: Value| whd(json!({"ttl": ttl}));
    let long = |count: usize| "a".repeat(count);
    let two_faults = whd(json!({"webhookRef": {"name": "CI"}, "ttl": "7d"}));
    vec![
        (over(whd(json!({})), json!({"spec": null})), "spec", "Required value"),
        (reference(json!(null)), "spec.webhookRef", "Required value"),
        (reference(json!("ci")), "spec.webhookRef", "must be of type object"),
        (reference(json!({})), "spec.webhookRef.name", "Required value"),
        (reference(json!({"name": "ci", "namespace": "other"})), "spec.webhookRef.namespace", "unknown field"),
        (name(""), "spec.webhookRef.name", NAME),
        (name("CI"), "spec.webhookRef.name", NAME),
        (name("-ci"), "spec.webhookRef.name", NAME),
        (name("ci_hook"), "spec.webhookRef.name", NAME),
        (name("team/ci"), "spec.webhookRef.name", NAME),
        (name(&long(64)), "spec.webhookRef.name", "Too long: may not be more than 63"),
        (kind("webhook"), "spec.webhookRef.kind", KINDS),
        (kind("Service"), "spec.webhookRef.kind", KINDS),
        (kind(""), "spec.webhookRef.kind", KINDS),
        (whd(json!({"test": null})), "spec", NEITHER),
        (whd(json!({"eventId": EVENT_ID})), "spec", BOTH),
        (whd(json!({"test": {}})), "spec.test.event", "Required value"),
        (whd(json!({"test": "training.completed"})), "spec.test", "must be of type object"),
        (whd(json!({"test": {"event": "*", "data": {}}})), "spec.test.data", "unknown field"),
        (event("training.*"), "spec.test.event", EVENT),
        (event("*"), "spec.test.event", EVENT),
        (event("training.complete"), "spec.test.event", EVENT),
        (event("Training.Completed"), "spec.test.event", EVENT),
        (event(" training.completed"), "spec.test.event", EVENT),
        (event(""), "spec.test.event", EVENT),
        (event(&long(65)), "spec.test.event", "Too long: may not be more than 64"),
        (id(""), "spec.eventId", ID),
        (id("evt_1"), "spec.eventId", ID),
        (id(&EVENT_ID.replace("evt", "dlv")), "spec.eventId", ID),
        (id(&EVENT_ID.to_uppercase()), "spec.eventId", ID),
        (id(&EVENT_ID[..35]), "spec.eventId", ID),
        (id(&format!("{EVENT_ID}0")), "spec.eventId", ID),
        (id(&format!("{EVENT_ID}\n")), "spec.eventId", ID),
        (id(&long(65)), "spec.eventId", "Too long: may not be more than 64"),
        (whd(json!({"test": null, "eventId": 7})), "spec.eventId", "must be of type string"),
        (ttl(json!("0s")), "spec.ttl", TTL),
        (ttl(json!("0h0m")), "spec.ttl", TTL),
        (ttl(json!("-1h")), "spec.ttl", TTL),
        (ttl(json!("8761h")), "spec.ttl", TTL),
        (ttl(json!("8760h1ms")), "spec.ttl", TTL),
        (ttl(json!("99999h99999h99999h99999h")), "spec.ttl", TTL),
        (ttl(json!("7d")), "spec.ttl", TTL),
        (ttl(json!("168")), "spec.ttl", TTL),
        (ttl(json!("1.5h")), "spec.ttl", TTL),
        (ttl(json!("")), "spec.ttl", TTL),
        (ttl(json!("forever")), "spec.ttl", TTL),
        (ttl(json!("168h\n")), "spec.ttl", TTL),
        (ttl(json!(168)), "spec.ttl", "must be of type string"),
        (whd(json!({"body": "{}"})), "spec.body", "unknown field"),
        (whd(json!({"event": "training.completed"})), "spec.event", "unknown field"),
        (two_faults.clone(), "spec.webhookRef.name", NAME),
        (two_faults, "spec.ttl", TTL),
    ]
}

fn valid_deliveries() -> Vec<Value> {
    let reference = |reference: Value| whd(json!({"webhookRef": reference}));
    let ttls = ["1ms", "1s", "24h", "1h30m", "8760h", "8759h59m59s1000ms", "00168h"];
    let mut manifests = vec![
        whd(json!({})),
        whd(json!({"eventId": null})),
        whd(json!({"test": null, "eventId": EVENT_ID})),
        given_up("dlv-0123456789abcdef0123456789abcdef"),
        reference(json!({"name": "ci", "kind": "Webhook"})),
        reference(json!({"name": "ci", "kind": null})),
        reference(json!({"name": "ci", "kind": "ClusterWebhook"})),
        reference(json!({"name": "ci.team-a"})),
        reference(json!({"name": "a".repeat(63)})),
    ];
    manifests.extend(EventType::ALL.iter().map(|event| whd(json!({"test": {"event": event.name()}}))));
    manifests.extend(ttls.iter().map(|ttl| whd(json!({"ttl": ttl}))));
    manifests
}

#[test]
fn an_invalid_delivery_is_refused_with_what_to_write_instead() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for (manifest, field, says) in invalid_deliveries() {
            let result = apiserver.try_out(&manifest).await;
            failures.extend(complaint(&manifest, field, says, result));
        }
        no_failures(&failures);
        let message = apiserver.try_out(&whd(json!({"test": {"event": "training.stopped"}}))).await.unwrap_err();
        for event in EventType::ALL {
            assert!(message.contains(event.name()), "{event} is missing: {message}");
        }
    });
}

#[test]
fn a_valid_delivery_is_taken_and_can_be_read() {
    run(async {
        let apiserver = Apiserver::new().await;
        for manifest in valid_deliveries() {
            let taken = apiserver.try_out(&manifest).await.unwrap_or_else(|error| panic!("{error}\n{manifest:#}"));
            let read: WebhookDelivery = serde_json::from_value(taken.clone()).unwrap();
            assert_eq!(serde_json::to_value(read.spec).unwrap(), taken["spec"], "{manifest:#}");
        }
    });
}

#[test]
fn what_a_delivery_leaves_out_is_filled_in() {
    run(async {
        let apiserver = Apiserver::new().await;
        let taken = apiserver.try_out(&whd(json!({}))).await.unwrap();
        let expected = json!({
            "webhookRef": {"kind": "Webhook", "name": "ci"}, "test": {"event": "training.completed"}, "ttl": "168h"
        });
        assert_eq!(taken["spec"], expected);
        assert_eq!(DEFAULT_TTL, "168h", "the default of the type is that of the schema");
        let nulls = json!({"webhookRef": {"name": "ci", "kind": null}, "eventId": null, "ttl": null});
        let taken = apiserver.try_out(&whd(nulls)).await.unwrap();
        assert_eq!(taken["spec"], expected, "a null counts as absent");
    });
}

#[test]
fn the_spec_of_a_delivery_stays_as_it_was_and_an_annotation_asks_for_it_again() {
    run(async {
        const MESSAGE: &str = "spec cannot be changed: make a new WebhookDelivery, or set the annotation llmtune.io/redeliver-requested-at";
        let scene = Scene::new("immutable").await;
        let apiserver = Apiserver::of(&scene).await;
        let stored = apiserver.create(&given_up("lost")).await;
        let mut failures = Vec::new();
        for change in [
            json!({"ttl": "1h"}),
            json!({"ttl": null, "webhookRef": {"name": "other"}}),
            json!({"webhookRef": {"kind": "ClusterWebhook"}}),
            json!({"eventId": EVENT_ID.replace('0', "1")}),
            json!({"eventId": null, "test": {"event": "training.completed"}}),
        ] {
            let result = apiserver.merge(&stored, "", &json!({"spec": change})).await;
            failures.extend(complaint(&change, "spec", MESSAGE, result));
        }
        no_failures(&failures);
        assert!(MESSAGE.ends_with(REDELIVER_ANNOTATION));

        let same = apiserver.apply("gitops&force=true", "", &given_up("lost")).await;
        assert!(same.is_ok(), "the same manifest may be applied again: {same:?}");
        let request = format!("{REDELIVER_ANNOTATION}={TIME}");
        scene.kubectl(&["annotate", "whd", "-l", "llmtune.io/webhook=ci", &request]);
        let asked = scene.get("whd", "lost");
        assert_eq!(asked["metadata"]["annotations"][REDELIVER_ANNOTATION], TIME);
        assert_eq!(asked["spec"], stored["spec"]);
        assert_eq!(asked["metadata"]["generation"], 1);
    });
}

#[test]
fn who_may_only_write_deliveries_cannot_have_a_body_signed() {
    run(async {
        let scene = Scene::new("forgery").await;
        let apiserver = Apiserver::of(&scene).await;
        let status = given_up_status();
        let mut manifest = given_up("forged");
        manifest["status"] = status.clone();
        let created = apiserver.create(&manifest).await;
        assert!(created.get("status").is_none(), "a status cannot be created: {created:#}");
        let merged = apiserver.merge(&created, "", &json!({"status": status})).await.unwrap();
        assert!(merged.get("status").is_none(), "a status cannot be merged in: {merged:#}");
        let applied = apiserver.apply("forger&force=true", "", &manifest).await.unwrap();
        assert!(applied.get("status").is_none(), "a status cannot be applied: {applied:#}");

        let both = json!({"spec": {"ttl": "1h"}, "status": status});
        let through_status = apiserver.merge(&created, "/status", &both).await.unwrap();
        assert_eq!(through_status["status"], status);
        assert_eq!(through_status["spec"], created["spec"]);
        assert_eq!(through_status["metadata"]["generation"], 1, "a status is no new generation");
        let mut other = status.clone();
        other["event"]["body"] = json!("{\"id\":\"forged");
        let merged = apiserver.merge(&created, "", &json!({"status": other})).await.unwrap();
        assert_eq!(merged["status"], status, "a status that is there stays");
    });
}

#[test]
fn the_status_of_a_delivery_holds_what_is_needed_to_send_it_again() {
    run(async {
        let scene = Scene::new("delivery-status").await;
        let apiserver = Apiserver::of(&scene).await;
        apiserver.create(&given_up("lost")).await;
        let event = |fields: Value| json!({"event": over(given_up_status()["event"].clone(), fields)});
        let attempt = |fields: Value| json!({"lastAttempt": over(json!({"time": TIME, "attempt": 1}), fields)});
        let test = json!({"test": true, "sequence": 0, "object": {}});
        for status in [
            json!({}),
            given_up_status(),
            event(test),
            event(json!({"body": "a".repeat(262_144)})),
            attempt(json!({"error": "\u{e9}".repeat(256)})),
            json!({"attempts": 0}),
        ] {
            let taken = apiserver.replace_status(scene.get("whd", "lost"), &status).await;
            let taken = taken.unwrap_or_else(|error| panic!("{error}\n{status:#}"));
            let read: WebhookDelivery = serde_json::from_value(taken).unwrap();
            assert_eq!(serde_json::to_value(read.status.unwrap_or_default()).unwrap(), status);
        }
        let long = |count: usize| "a".repeat(count);
        let stored = scene.get("whd", "lost");
        let mut failures = Vec::new();
        for (status, field, says) in [
            (event(json!({"body": long(262_145)})), "status.event.body", "may not be more than 262144"),
            (event(json!({"body": null})), "status.event.body", "Required value"),
            (event(json!({"id": null})), "status.event.id", "Required value"),
            (event(json!({"type": long(65)})), "status.event.type", "may not be more than 64"),
            (event(json!({"sequence": -1})), "status.event.sequence", "greater than or equal to 0"),
            (event(json!({"sequence": 1.5})), "status.event.sequence", "must be of type integer"),
            (event(json!({"occurredAt": "yesterday"})), "status.event.occurredAt", "must be of type date-time"),
            (event(json!({"object": {"name": long(254)}})), "status.event.object.name", "may not be more than 253"),
            (event(json!({"object": {"namespace": long(64)}})), "event.object.namespace", "may not be more than 63"),
            (event(json!({"data": {}})), "status.event.data", "unknown field"),
            (attempt(json!({"attempt": 0})), "status.lastAttempt.attempt", "greater than or equal to 1"),
            (attempt(json!({"time": null})), "status.lastAttempt.time", "Required value"),
            (attempt(json!({"error": long(257)})), "status.lastAttempt.error", "may not be more than 256"),
            (json!({"attempts": -1}), "status.attempts", "greater than or equal to 0"),
            (json!({"finishedAt": ""}), "status.finishedAt", "must be of type date-time"),
            (json!({"lastHandledRedeliverAt": long(65)}), "status.lastHandledRedeliverAt", "more than 64"),
        ] {
            let result = apiserver.replace_status(stored.clone(), &status).await;
            failures.extend(complaint(&status, field, says, result));
        }
        no_failures(&failures);
    });
}

#[test]
fn an_invalid_ledger_segment_is_refused_with_what_is_wrong() {
    run(async {
        let apiserver = Apiserver::new().await;
        let mut failures = Vec::new();
        for (spec, field, says) in [
            (json!({"kind": "Log"}), "spec.kind", "supported values: \"Journal\", \"Snapshot\""),
            (json!({"kind": null}), "spec.kind", "Required value"),
            (json!({"data": null}), "spec.data", "Required value"),
            (json!({"data": 7}), "spec.data", "must be of type string"),
            (json!({"data": "A".repeat(1_500_001)}), "spec.data", "Too long: may not be more than 1500000"),
            (json!({"epoch": -1}), "spec.epoch", "greater than or equal to 0"),
            (json!({"term": -1}), "spec.term", "greater than or equal to 0"),
            (json!({"sequence": -1}), "spec.sequence", "greater than or equal to 0"),
            (json!({"records": -1}), "spec.records", "greater than or equal to 0"),
            (json!({"records": 2_147_483_648_i64}), "spec.records", "int32"),
            (json!({"bytes": -1}), "spec.bytes", "greater than or equal to 0"),
            (json!({"bytes": "8"}), "spec.bytes", "must be of type integer"),
            (json!({"records": null}), "spec.records", "Required value"),
            (json!({"number": 1}), "spec.number", "unknown field"),
        ] {
            let result = apiserver.try_out(&segment(spec.clone())).await;
            failures.extend(complaint(&spec, field, says, result));
        }
        no_failures(&failures);
    });
}

#[test]
fn a_ledger_segment_is_written_anew_in_place() {
    run(async {
        let scene = Scene::new("segments").await;
        let apiserver = Apiserver::of(&scene).await;
        let stored = apiserver.create(&segment(json!({}))).await;
        let most = i64::MAX;
        for (generation, change) in [
            json!({"kind": "Snapshot", "epoch": 0, "term": 0, "sequence": 0, "records": 0, "bytes": 0, "data": ""}),
            json!({"epoch": most, "term": most, "sequence": most, "records": i32::MAX, "bytes": most}),
            // What the schema takes, etcd must take too.
            json!({"data": "A".repeat(1_500_000)}),
        ]
        .into_iter()
        .enumerate()
        {
            let written = apiserver.merge(&stored, "", &json!({"spec": change})).await.unwrap();
            assert_eq!(written["metadata"]["generation"], generation + 2);
            for (key, value) in change.as_object().unwrap() {
                assert_eq!(&written["spec"][key], value, "{key}");
            }
            let read: LedgerSegment = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(read.spec).unwrap(), written["spec"]);
        }
        let stale = apiserver.merge(&stored, "", &json!({"metadata": {"resourceVersion": "1"}})).await.unwrap_err();
        assert!(stale.contains("the object has been modified"), "{stale}");
        let status = apiserver.merge(&stored, "/status", &json!({"status": {}})).await.unwrap_err();
        assert!(status.contains("not found"), "a segment has no status: {status}");
    });
}

/// What kubectl prints, as cells; columns are at least three blanks apart.
fn table(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect()
}

#[test]
fn kubectl_shows_how_subscriptions_and_jobs_stand() {
    run(async {
        let scene = Scene::new("columns").await;
        let apiserver = Apiserver::of(&scene).await;
        let events = json!({"events": ["training.*", "model.deployed"]});
        let stored = apiserver.create(&webhook("ci", URL, &events)).await;
        let time = "2025-11-08T14:22:31Z";
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": time});
        let attempt = json!({"time": time, "event": "model.deployed", "eventId": "evt_1", "attempt": 1});
        let mut failure = attempt.clone();
        failure["error"] = json!("502 Bad Gateway");
        let status = json!({
            "endpoint": "https://ci.example.com",
            "conditions": [condition("Ready", "True", "Subscribed"), condition("Healthy", "False", "DeliveriesFailing")],
            "deliveries": {"succeeded": 118, "failed": 4, "retries": 7, "pending": 2, "dropped": 3},
            "lastSuccess": attempt, "lastFailure": failure
        });
        apiserver.merge(&stored, "/status", &json!({"status": status})).await.unwrap();
        let stored = apiserver.create(&job(json!({"baseModel": "llama", "trainingMethod": "sft"}))).await;
        let status = json!({"phase": "Running", "startedAt": time, "reason": "Started"});
        apiserver.merge(&stored, "/status", &json!({"status": status})).await.unwrap();

        let narrow = scene.kubectl(&["get", "wh"]);
        let rows = table(&narrow);
        assert_eq!(rows[0], ["NAME", "ENDPOINT", "READY", "HEALTHY", "PENDING", "FAILED", "LAST", "AGE"]);
        assert_eq!(rows[1][..6], ["ci", "https://ci.example.com", "True", "False", "2", "4"]);
        assert_eq!(rows[1].len(), 8, "{narrow}");

        let wide = scene.kubectl(&["get", "wh", "-o", "wide"]);
        let rows = table(&wide);
        let expected = ["SUCCEEDED", "RETRIES", "DROPPED", "EVENTS", "SUSPENDED", "REASON", "LAST ERROR", "AGE"];
        assert_eq!(rows[0][7..], expected);
        let events = r#"["training.*","model.deployed"]"#;
        assert_eq!(rows[1][7..14], ["118", "7", "3", events, "false", "Subscribed", "502 Bad Gateway"]);

        let jobs = scene.kubectl(&["get", "ltj", "-o", "wide"]);
        let rows = table(&jobs);
        assert_eq!(rows[0], ["NAME", "PHASE", "BASE MODEL", "METHOD", "STARTED", "COMPLETED", "REASON", "AGE"]);
        assert_eq!(rows[1][..4], ["llama", "Running", "llama", "sft"]);

        let category = scene.kubectl(&["get", "llmtune", "-o", "name"]);
        let mut names: Vec<&str> = category.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["trainingjob.llmtune.io/llama", "webhook.llmtune.io/ci"]);
    });
}

#[test]
fn kubectl_shows_how_deliveries_and_the_ledger_stand() {
    run(async {
        let scene = Scene::new("delivery-columns").await;
        let apiserver = Apiserver::of(&scene).await;
        let stored = apiserver.create(&given_up("lost")).await;
        apiserver.merge(&stored, "/status", &json!({"status": given_up_status()})).await.unwrap();
        apiserver.create(&whd(json!({}))).await;
        apiserver.create(&segment(json!({}))).await;

        let narrow = scene.kubectl(&["get", "whd"]);
        let rows = table(&narrow);
        assert_eq!(rows[0], ["NAME", "WEBHOOK", "EVENT", "OBJECT", "DELIVERED", "ATTEMPTS", "AGE"]);
        assert_eq!(rows[1][..6], ["lost", "ci", "training.completed", "llama", "False", "6"]);
        assert_eq!(rows[1].len(), 7, "{narrow}");
        assert_eq!(rows[2][..2], ["try", "ci"]);

        let wide = scene.kubectl(&["get", "whd", "-o", "wide"]);
        let rows = table(&wide);
        assert_eq!(rows[0][5..], ["ATTEMPTS", "FINISHED", "REASON", "EVENT-ID", "LAST ERROR", "AGE"]);
        assert_eq!(rows[1][7..10], ["RetriesExhausted", EVENT_ID, "502 Bad Gateway"]);
        assert_eq!(rows[1].len(), 11, "{wide}");
        scene.wait("whd/lost", "condition=Finished");

        let narrow = scene.kubectl(&["get", "lseg"]);
        let rows = table(&narrow);
        assert_eq!(rows[0], ["NAME", "KIND", "TERM", "SEQUENCE", "RECORDS", "BYTES", "AGE"]);
        assert_eq!(rows[1][..6], ["journal-1-002", "Journal", "3", "258", "12", "8"]);
        let wide = scene.kubectl(&["get", "lseg", "-o", "wide"]);
        let rows = table(&wide);
        assert_eq!(rows[0], ["NAME", "KIND", "TERM", "SEQUENCE", "RECORDS", "BYTES", "EPOCH", "AGE"]);
        assert_eq!(rows[1][6], "1");

        let category = scene.kubectl(&["get", "llmtune", "-o", "name"]);
        let names: Vec<&str> = category.lines().collect();
        let expected = ["webhookdelivery.llmtune.io/lost", "webhookdelivery.llmtune.io/try"];
        assert_eq!(names, expected, "the ledger is nothing that users look for");
    });
}

#[test]
fn spec_and_status_are_written_apart() {
    run(async {
        let scene = Scene::new("subresource").await;
        let apiserver = Apiserver::of(&scene).await;
        let not_looked_at = json!({
            "conditions": [{
                "type": "Ready", "status": "Unknown", "reason": "Pending", "lastTransitionTime": "1970-01-01T00:00:00Z",
                "message": "no operator has looked at it yet: see that one runs and serves it"
            }],
            "consecutiveFailures": 0
        });
        let status = json!({"endpoint": "https://elsewhere.example.com", "conditions": [], "consecutiveFailures": 7});
        let mut manifest = with(json!({}));
        manifest["status"] = status.clone();
        let created = apiserver.create(&manifest).await;
        assert_eq!(created["status"], not_looked_at, "a status cannot be created");
        let both = json!({"spec": {"suspend": true}, "status": status});
        let through_spec = apiserver.merge(&created, "", &both).await.unwrap();
        assert_eq!(through_spec["spec"]["suspend"], true);
        assert_eq!(through_spec["metadata"]["generation"], 2);
        assert_eq!(through_spec["status"], not_looked_at);
        let both = json!({"spec": {"suspend": false}, "status": status});
        let through_status = apiserver.merge(&created, "/status", &both).await.unwrap();
        assert_eq!(through_status["status"], status);
        assert_eq!(through_status["spec"]["suspend"], true);
        assert_eq!(through_status["metadata"]["generation"], 2, "a status is no new generation");
    });
}

/// The strings of a list, sorted.
fn sorted(list: &Value) -> Vec<&str> {
    let mut strings: Vec<&str> = list.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect();
    strings.sort_unstable();
    strings
}

#[test]
fn what_several_managers_apply_is_merged() {
    run(async {
        let scene = Scene::new("managers").await;
        let apiserver = Apiserver::of(&scene).await;
        let partial = |fields: Value| {
            let mut manifest = named("ci");
            manifest["spec"] = fields;
            manifest
        };
        let research = json!({"matchLabels": {"team": "research"}});
        let first = json!({"url": URL, "events": ["training.*"], "selector": research, "secretRef": {"name": "ci", "key": "k"}});
        apiserver.apply("gitops", "", &partial(first.clone())).await.unwrap();
        let merged = apiserver.apply("team", "", &partial(json!({"events": ["model.deployed"]}))).await.unwrap();
        assert_eq!(sorted(&merged["spec"]["events"]), ["model.deployed", "training.*"]);

        let elsewhere = json!({"events": ["model.deployed"], "selector": {"matchLabels": {"tier": "prod"}}});
        let conflict = apiserver.apply("team", "", &partial(elsewhere.clone())).await.unwrap_err();
        assert!(
            conflict.contains("conflict with \"gitops\": .spec.selector"),
            "a selector has one manager: {conflict}"
        );
        let reference = json!({"secretRef": {"name": "other"}});
        let conflict = apiserver.apply("team", "", &partial(reference)).await.unwrap_err();
        assert!(
            conflict.contains("conflict with \"gitops\": .spec.secretRef"),
            "a reference has one manager: {conflict}"
        );
        let forced = apiserver.apply("team&force=true", "", &partial(elsewhere)).await.unwrap();
        assert_eq!(
            forced["spec"]["selector"],
            json!({"matchLabels": {"tier": "prod"}}),
            "a selector is replaced whole"
        );

        let mut less = first;
        less["events"] = json!(["deployment.*"]);
        less.as_object_mut().unwrap().remove("selector");
        let merged = apiserver.apply("gitops", "", &partial(less)).await.unwrap();
        assert_eq!(sorted(&merged["spec"]["events"]), ["deployment.*", "model.deployed"], "each takes away its own");

        let condition = |kind: &str, reason: &str| {
            let mut manifest = named("ci");
            manifest.as_object_mut().unwrap().remove("spec");
            manifest["status"] = json!({"conditions": [{
                "type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": "2025-11-08T14:22:31Z"
            }]});
            manifest
        };
        apiserver.apply("operator", "/status", &condition("Ready", "Subscribed")).await.unwrap();
        apiserver.apply("auditor", "/status", &condition("example.com/Audited", "Reviewed")).await.unwrap();
        let merged = apiserver.apply("operator", "/status", &condition("Ready", "Suspended")).await.unwrap();
        let conditions = merged["status"]["conditions"].as_array().unwrap();
        let reasons: Vec<(&str, &str)> = conditions
            .iter()
            .map(|condition| (condition["type"].as_str().unwrap(), condition["reason"].as_str().unwrap()))
            .collect();
        assert_eq!(reasons, [("Ready", "Suspended"), ("example.com/Audited", "Reviewed")]);
    });
}

/// Every definition of the group as the apiserver serves it.
async fn served_definitions(client: &Client) -> Vec<Value> {
    let request =
        http::Request::get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").body(Vec::new()).unwrap();
    let list: Value = client.request(request).await.unwrap();
    let definitions = list["items"].as_array().unwrap().iter();
    definitions.filter(|definition| definition["spec"]["group"] == "llmtune.io").cloned().collect()
}

#[test]
fn the_apiserver_serves_the_definitions_without_reservation() {
    run(async {
        let plane = plane().await;
        let definitions = served_definitions(&plane.admin().await).await;
        let kinds: Vec<&Value> = definitions.iter().map(|definition| &definition["spec"]["names"]["kind"]).collect();
        let expected = [
            "ClusterWebhook",
            "LedgerSegment",
            "TrainingJob",
            "UsageThreshold",
            "WebhookDelivery",
            "Webhook",
            "WebhookSource",
        ];
        assert_eq!(kinds, expected);
        for definition in &definitions {
            let internal = definition["spec"]["names"]["kind"] == "LedgerSegment";
            let subresources = if internal { Value::Null } else { json!({"status": {}}) };
            for condition in definition["status"]["conditions"].as_array().unwrap() {
                let expected = matches!(condition["type"].as_str().unwrap(), "NamesAccepted" | "Established");
                assert!(expected && condition["status"] == "True", "{condition:#}");
            }
            for version in definition["spec"]["versions"].as_array().unwrap() {
                assert_eq!(version["subresources"], subresources);
            }
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");
        let output = plane.kubectl(&["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", folder]);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

/// What is wrong with a schema, by path, and the paths that hold whatever they are given.
#[derive(Default)]
struct Findings {
    faults: Vec<String>,
    open: Vec<String>,
}

impl Findings {
    fn check(&mut self, holds: bool, path: &str, fault: &str) {
        if !holds {
            self.faults.push(format!("{path}: {fault}"));
        }
    }

    fn walk(&mut self, path: &str, schema: &Value) {
        let has = |key: &str| schema.get(key).is_some();
        self.check(has("description") || path.ends_with("[]"), path, "has no description for kubectl explain");
        self.check(!has("nullable"), path, "is nullable, so that a null would be stored");
        self.check(!has("x-kubernetes-int-or-string"), path, "has no single type");
        for key in ["oneOf", "anyOf", "allOf", "not"] {
            self.check(!has(key), path, &format!("has {key}, whose refusals name no cause"));
        }
        if schema["x-kubernetes-preserve-unknown-fields"] == true {
            self.open.push(path.to_owned());
        }
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            self.check(rule.get("message").is_some(), path, &format!("refuses without a message: {rule}"));
        }
        match schema["type"].as_str().unwrap_or_default() {
            "string" => {
                let bounded = has("maxLength") || has("enum") || schema["format"] == "date-time";
                self.check(bounded, path, "is a string without maxLength, enum or date-time");
            }
            "array" => {
                self.check(has("maxItems"), path, "is a list without maxItems");
                let list_type = schema["x-kubernetes-list-type"].as_str().unwrap_or_default();
                let known = matches!(list_type, "atomic" | "set" | "map");
                self.check(known, path, "is a list without x-kubernetes-list-type");
                self.check(list_type != "map" || has("x-kubernetes-list-map-keys"), path, "is a map without keys");
                self.walk(&format!("{path}[]"), &schema["items"]);
            }
            "object" => {
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    self.walk(&format!("{path}.{name}"), property);
                }
                if has("additionalProperties") {
                    self.check(has("maxProperties"), path, "is a map without maxProperties");
                    self.walk(&format!("{path}[]"), &schema["additionalProperties"]);
                }
            }
            "integer" => {
                let sized = matches!(schema["format"].as_str(), Some("int32" | "int64"));
                self.check(sized, path, "is an integer of neither int32 nor int64");
            }
            "boolean" => {}
            other => self.faults.push(format!("{path}: is of type {other:?}; floats differ between languages")),
        }
    }
}

#[test]
fn the_schemas_bound_and_describe_every_string_list_and_map() {
    run(async {
        let definitions = served_definitions(&plane().await.admin().await).await;
        let mut findings = Findings::default();
        for definition in definitions {
            let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
            for version in definition["spec"]["versions"].as_array().unwrap() {
                findings.walk(kind, &version["schema"]["openAPIV3Schema"]);
            }
        }
        no_failures(&findings.faults);
        findings.open.sort();
        assert_eq!(findings.open, ["TrainingJob.spec", "TrainingJob.status.metrics"], "only these hold unknown fields");
    });
}
