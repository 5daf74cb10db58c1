//! `WebhookDelivery`: a test that a user requests, or a dead letter: a delivery that the operator gave up.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, core::Rule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::webhook::DURATION;

const CONCRETE_EVENT: &str = "self in ['training.started', 'training.completed', 'training.failed', 'model.deployed', 'deployment.created', 'deployment.paused', 'deployment.resumed', 'deployment.deleted', 'usage.threshold_reached']";
const CONCRETE_EVENT_MESSAGE: &str = "event must be one event and no pattern: training.started, training.completed, training.failed, model.deployed, deployment.created, deployment.paused, deployment.resumed, deployment.deleted or usage.threshold_reached";
#[cfg(test)]
pub(super) const EVENT_RULE: [&str; 2] = [CONCRETE_EVENT, CONCRETE_EVENT_MESSAGE];

/// Label: name of the Webhook that the delivery belongs to.
pub const WEBHOOK_LABEL: &str = "llmtune.io/webhook";
/// Label: kind of that Webhook. A Webhook in the operator's namespace may have the same name as a `ClusterWebhook`.
pub const KIND_LABEL: &str = "llmtune.io/webhook-kind";
/// Label: name of the event.
pub const EVENT_LABEL: &str = "llmtune.io/event";
/// Annotation: a new value sends the delivery again.
pub const REDELIVER_ANNOTATION: &str = "llmtune.io/redeliver-requested-at";
/// Default of `spec.ttl`.
pub const DEFAULT_TTL: &str = "168h";

/// What to deliver to which webhook. It names the event and never contains a body, because bodies are signed.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "llmtune.io",
    version = "v1alpha1",
    kind = "WebhookDelivery",
    plural = "webhookdeliveries",
    shortname = "whd",
    category = "llmtune",
    namespaced,
    status = "WebhookDeliveryStatus",
    derive = "PartialEq",
    doc = "One delivery. Create one to send a test. The operator creates one for an event that the endpoint did not acknowledge within its retries (a dead letter). Annotate it with llmtune.io/redeliver-requested-at=<time> to send it again. Only the operator may write the status, because the body in it gets signed.",
    printcolumn(name = "Webhook", type_ = "string", json_path = ".spec.webhookRef.name"),
    printcolumn(name = "Event", type_ = "string", json_path = ".status.event.type"),
    printcolumn(name = "Object", type_ = "string", json_path = ".status.event.object.name"),
    printcolumn(name = "Delivered", type_ = "string", json_path = ".status.conditions[?(@.type=='Delivered')].status"),
    printcolumn(name = "Attempts", type_ = "integer", json_path = ".status.attempts"),
    printcolumn(name = "Finished", type_ = "date", json_path = ".status.finishedAt", priority = "1"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Delivered')].reason",
        priority = "1"
    ),
    printcolumn(name = "Event-Id", type_ = "string", json_path = ".status.event.id", priority = "1"),
    printcolumn(name = "Last error", type_ = "string", json_path = ".status.lastAttempt.error", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("spec is immutable: create another WebhookDelivery, or set the annotation llmtune.io/redeliver-requested-at to the current time to send this one again"),
    validation = Rule::new("has(self.test) || has(self.eventId)").message("set what to send: for a test, set test, such as test: {event: training.completed}"),
    validation = Rule::new("!has(self.test) || !has(self.eventId)").message("spec can have only one of test and eventId: remove eventId to send a test")
)]
pub struct WebhookDeliverySpec {
    /// The webhook whose endpoint gets the delivery. Its signing key and retries apply.
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub webhook_ref: WebhookReference,
    /// Sends a synthetic event, marked as a test. Exactly one of `test` and `eventId` must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub test: Option<TestRequest>,
    /// Id of the event to deliver. The operator sets it in dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^evt_[0-9a-f]{32}$')")
        .message("eventId must be an event's id, evt_ and 32 digits from 0 to 9 and a to f, as in the header X-LLMTune-Event-Id: to send a test, set test instead"))]
    pub event_id: Option<String>,
    /// How long this object is kept after the delivery finished: more than 0, at most 8760h (a year).
    #[serde(default = "default_ttl")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = ttl_rule())]
    pub ttl: String,
}

/// A webhook whose deliveries are stored in this namespace.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct WebhookReference {
    /// `Webhook` (in this namespace), or `ClusterWebhook` (in the operator's namespace only).
    #[serde(default)]
    pub kind: WebhookKind,
    /// Name of the webhook.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a webhook's name: 1 to 63 lowercase letters, digits, '-' and '.', such as ci"))]
    pub name: String,
}

/// Kinds of webhooks.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq, Hash)]
pub enum WebhookKind {
    #[default]
    Webhook,
    ClusterWebhook,
}

impl fmt::Display for WebhookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Webhook => "Webhook",
            Self::ClusterWebhook => "ClusterWebhook",
        })
    }
}

/// A test event.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TestRequest {
    /// Event to send, such as `training.completed`; not a pattern. The webhook need not subscribe to it.
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new(CONCRETE_EVENT).message(CONCRETE_EVENT_MESSAGE))]
    pub event: String,
}

/// State of the delivery. Only the operator may write it: anyone who can write it can have any body signed.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WebhookDeliveryStatus {
    /// The `metadata.generation` that this status was written for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Delivered`: the endpoint acknowledged it. `Finished`: no further attempt follows unless a redelivery is requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The event that is delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<DeliveredEvent>,
    /// Number of attempts in the last round. Each redelivery starts a new round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub attempts: Option<i32>,
    /// Latest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt: Option<DeliveryAttempt>,
    /// End of the delivery. The object is deleted `spec.ttl` later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Value of the annotation llmtune.io/redeliver-requested-at that was handled last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub last_handled_redeliver_at: Option<String>,
}

/// An event, with all that is needed to send it again.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeliveredEvent {
    /// Id of the event: the same for every subscriber, retry and redelivery.
    #[schemars(length(max = 64))]
    pub id: String,
    /// Name of the event, such as `training.completed`.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub event_type: String,
    /// Time of the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occurred_at: Option<Time>,
    /// Sequence number of this event for its object, starting at 1.
    #[schemars(range(min = 0))]
    pub sequence: i64,
    /// Whether the event is a test.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test: bool,
    /// Object of the event. Empty for a test.
    pub object: EventObject,
    /// The body without the value of `deliveredAt`. Each attempt appends that value, and then signs the complete body.
    #[schemars(length(max = 262_144))]
    pub body: String,
}

/// Object of an event.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EventObject {
    /// Kind of the object, such as `TrainingJob`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub kind: Option<String>,
    /// Namespace of the object. Defaults to the namespace of the delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Name of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub name: Option<String>,
    /// Uid of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
}

/// One attempt.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryAttempt {
    /// End of the attempt.
    pub time: Time,
    /// Number of the attempt within its round, starting at 1.
    #[schemars(range(min = 1))]
    pub attempt: i32,
    /// HTTP status of the response, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<i32>,
    /// Error, at most 256 characters. It never contains parts of the response body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub error: Option<String>,
}

fn ttl_rule() -> Rule {
    let bounds = "duration(self) > duration('0s') && duration(self) <= duration('8760h')";
    Rule::new(format!("self.matches({DURATION}) ? {bounds} : false"))
        .message("ttl must be a duration of more than 0 and at most 8760h, in whole h, m, s or ms, such as 168h")
}

fn default_ttl() -> String {
    DEFAULT_TTL.into()
}
