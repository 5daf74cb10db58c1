//! The custom resources on a real apiserver: accepted, defaulted, merged and refused.

// Tables of json! literals read best whole and without borrows.
#![allow(clippy::needless_pass_by_value, clippy::too_many_lines)]

use std::{fs, process::Command};

use kube::Client;
use llmtune_api::{
    ClusterWebhook, LedgerSegment, Webhook, WebhookDelivery,
    webhook::{Backoff, DeliveryPolicy},
    webhook_delivery::{DEFAULT_TTL, REDELIVER_ANNOTATION},
};
use llmtune_core::event::EventType;
use llmtune_webhooks::{
    source::{Source, training_job::TrainingJobs},
    subscription::{
        resolve::{Dispatch, Plan},
        target::References,
    },
};
use llmtune_webhooks_harness::{reference::markdown, root};
use serde_json::{Map, Value, json};

use crate::support::{BINARY, Scene, plane, run, webhook};

mod columns;
mod definitions;
mod deliveries;
mod jobs;
mod segments;
mod webhooks;

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

    /// A dry run: the object that would be stored, or the reason for a refusal.
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

    /// Replaces an object's status.
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

/// A Webhook's manifest with these fields over a valid url and events; null removes a field.
fn with(spec: Value) -> Value {
    let mut manifest = webhook("ci", URL, &spec);
    manifest["spec"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
    manifest
}

/// The same as a `ClusterWebhook`.
pub fn of_cluster(manifest: &Value) -> Value {
    over(manifest.clone(), json!({"kind": "ClusterWebhook"}))
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

fn named(name: &str) -> Value {
    webhook(name, URL, &json!({}))
}

/// The manifest of a dead letter, as the operator creates it.
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

/// A description of the problem, unless the result is a refusal that names this field and contains this text.
pub fn complaint(manifest: &Value, field: &str, says: &str, result: Result<Value, String>) -> Option<String> {
    match result {
        Ok(_) => Some(format!("taken, though {field} is wrong\n{manifest:#}")),
        Err(message) if message.contains(field) && message.contains(says) => None,
        Err(message) => Some(format!("the refusal lacks {field:?} or {says:?}: {message}\n{manifest:#}")),
    }
}

/// Panics with all failures, so that one run shows every case.
pub fn no_failures(failures: &[String]) {
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn spec_and_status_are_written_apart() {
    run(async {
        let scene = Scene::new("subresource").await;
        let apiserver = Apiserver::of(&scene).await;
        let unobserved_conditions = json!({
            "conditions": [{
                "type": "Ready", "status": "Unknown", "reason": "Pending", "lastTransitionTime": "1970-01-01T00:00:00Z",
                "message": "Waiting for the operator. Check that it is running and watches this namespace."
            }],
            "consecutiveFailures": 0
        });
        let status = json!({"endpoint": "https://elsewhere.example.com", "conditions": [], "consecutiveFailures": 7});
        let mut manifest = with(json!({}));
        manifest["status"] = status.clone();
        let created = apiserver.create(&manifest).await;
        assert_eq!(created["status"], unobserved_conditions, "a status cannot be created");
        let both = json!({"spec": {"suspend": true}, "status": status});
        let through_spec = apiserver.merge(&created, "", &both).await.unwrap();
        assert_eq!(through_spec["spec"]["suspend"], true);
        assert_eq!(through_spec["metadata"]["generation"], 2);
        assert_eq!(through_spec["status"], unobserved_conditions);
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
