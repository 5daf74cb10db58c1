//! `Webhook`: a subscription of one URL to the events of its namespace, and the health of its deliveries.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, core::Rule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    header::{self, Header},
    reference::{SecretReference, Tls, ValueSource},
    selector::LabelSelector,
};

const KNOWN_EVENT: &str = "self in ['*', 'training.*', 'model.*', 'deployment.*', 'usage.*', 'training.started', 'training.completed', 'training.failed', 'model.deployed', 'deployment.created', 'deployment.paused', 'deployment.resumed', 'deployment.deleted', 'usage.threshold_reached']";
const KNOWN_EVENT_MESSAGE: &str = "events can contain training.started, training.completed, training.failed, model.deployed, deployment.created, deployment.paused, deployment.resumed, deployment.deleted, usage.threshold_reached, and the patterns training.*, model.*, deployment.*, usage.* and \"*\"";
#[cfg(test)]
pub(super) const EVENT_RULE: [&str; 2] = [KNOWN_EVENT, KNOWN_EVENT_MESSAGE];
/// A Gateway API duration (GEP-2257), as a CEL literal.
pub(super) const DURATION: &str = "'^([0-9]{1,5}(h|m|s|ms)){1,4}$'";

/// Which events to send, where, and how.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "llmtune.io",
    version = "v1alpha1",
    kind = "Webhook",
    plural = "webhooks",
    shortname = "wh",
    category = "llmtune",
    namespaced,
    status = "WebhookStatus",
    derive = "PartialEq",
    doc = "A subscription: every matching event of this namespace is sent to the URL as a signed POST, and retried until the endpoint acknowledges it.",
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Healthy", type_ = "string", json_path = ".status.conditions[?(@.type=='Healthy')].status"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.deliveries.pending"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.deliveries.failed"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastSuccess.time"),
    printcolumn(name = "Succeeded", type_ = "integer", json_path = ".status.deliveries.succeeded", priority = "1"),
    printcolumn(name = "Retries", type_ = "integer", json_path = ".status.deliveries.retries", priority = "1"),
    printcolumn(name = "Dropped", type_ = "integer", json_path = ".status.deliveries.dropped", priority = "1"),
    printcolumn(name = "Events", type_ = "string", json_path = ".spec.events", priority = "1"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspend", priority = "1"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = "1"),
    printcolumn(name = "Last error", type_ = "string", json_path = ".status.lastFailure.error", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = short_name("Webhook")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.url) != has(self.urlFrom)")
    .message("set exactly one of url and urlFrom: url, such as https://ci.example.com/hooks, or urlFrom.secretKeyRef if the URL is a secret"),
    validation = Rule::new("!has(self.tls) || !has(self.url) || !isURL(self.url) || url(self.url).getScheme() != 'http'")
    .message("tls requires an https:// url: use https://, or remove tls"),
    validation = Rule::new("self.format != 'StandardWebhooks' || has(self.secretRef)")
        .message("format StandardWebhooks signs every delivery: set secretRef to a Secret that contains whsec_ and the base64 of 24 to 64 random bytes"),
    validation = Rule::new("!has(self.cloudEvents) || self.format == 'CloudEvents'")
        .message("cloudEvents requires the format CloudEvents: set that format, or remove cloudEvents"))]
pub struct WebhookSpec {
    /// URL of the endpoint: an absolute http or https URL without user name, password or fragment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("isURL(self) ? url(self).getScheme() in ['http', 'https'] : false")
            .message("url must be an absolute, percent-encoded http:// or https:// URL, such as https://ci.example.com/hooks"),
        validation = Rule::new("!isURL(self) || !(url(self).getScheme() in ['http', 'https']) || (url(self).getHostname() != '' && url(self).getHostname().size() <= 253)")
            .message("url must name a host, of at most 253 characters, such as https://ci.example.com/hooks"),
        validation = Rule::new("!isURL(self) || url(self).getPort() == '' || (url(self).getPort().size() <= 5 && int(url(self).getPort()) >= 1 && int(url(self).getPort()) <= 65535)")
            .message("url's port must be from 1 to 65535, such as https://ci.example.com:8443/hooks"),
        validation = Rule::new("!self.matches('^[^/?#]*//[^/?#]*@')")
            .message("url must not contain a user name or password, because everyone who can read Webhooks would see it: sign deliveries with secretRef, or send the header Authorization with valueFrom"),
        validation = Rule::new("!self.contains('#')")
            .message("url must not have a fragment (#...), which is never sent: remove it")
    )]
    pub url: Option<String>,
    /// Reference to the URL, instead of `url`, for URLs that are secret. No part of it is shown, not even the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_from: Option<ValueSource>,
    /// The Secret that signs deliveries. Without it, deliveries have no signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub secret_ref: Option<SecretReference>,
    /// Events to send: names such as `training.completed`, or `training.*`, `deployment.*`, `model.*`, `usage.*`, `*`.
    #[schemars(length(max = 16), inner(length(max = 64)), transform = super::each_item(KNOWN_EVENT, KNOWN_EVENT_MESSAGE))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.size() > 0")
            .message("events must name at least one event, such as training.completed, or \"*\" for all")
    )]
    pub events: Vec<String>,
    /// Selects events by the labels of their object. If absent or empty, it selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub selector: Option<LabelSelector>,
    /// CEL expression that selects events, with the variables `event` (the event's name), `data` (the payload's `data`) and
    /// `object.metadata` (name, namespace, labels, annotations). Missing fields evaluate to false. If evaluation fails, the event is sent anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub filter: Option<String>,
    /// Holds deliveries. Events are queued, and sent when this is unset.
    #[serde(default)]
    pub suspend: bool,
    /// Format of deliveries: `LLMTune`, `StandardWebhooks` (1.0.0) or `CloudEvents` (1.0).
    #[serde(default)]
    pub format: Format,
    /// Settings of the format `CloudEvents`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_events: Option<CloudEventsOptions>,
    /// Timeout, retries and concurrency of deliveries.
    #[serde(default)]
    #[schemars(default = "super::empty_object")]
    pub delivery: DeliveryPolicy,
    /// Headers to add to every delivery. Names are unique, regardless of case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = header::unique_names()
    )]
    pub headers: Vec<Header>,
    /// Certificates for https: issuers to trust, and a client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// Format of deliveries.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum Format {
    #[default]
    LLMTune,
    StandardWebhooks,
    CloudEvents,
}

/// Settings of the format `CloudEvents`.
#[derive(KubeSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CloudEventsOptions {
    /// `Structured`: the whole event is the body, and is signed. `Binary`: the body is `data`; the other attributes are headers, which are not
    /// signed.
    #[serde(default)]
    pub mode: CloudEventsMode,
}

/// The content mode of `CloudEvents` over HTTP.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum CloudEventsMode {
    Binary,
    #[default]
    Structured,
}

/// Timeout, retries and concurrency of deliveries.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryPolicy {
    /// Timeout of one attempt, from connecting to the end of the response: 1s to 60s.
    #[serde(default = "default_timeout")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration("timeout", "1s", "60s", "30s"))]
    pub timeout: String,
    /// Maximum number of retries of a failed delivery: 0 to 20.
    #[serde(default = "default_max_retries")]
    #[schemars(range(min = 0, max = 20))]
    pub max_retries: i32,
    /// Wait before each retry.
    #[serde(default)]
    #[schemars(default = "super::empty_object")]
    pub backoff: Backoff,
    /// Maximum number of concurrent attempts to this endpoint: 1 to 64.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: i32,
}

/// Exponential backoff: `initial`, then `factor` times the previous wait, at most `max`. Each wait varies by 20% in either direction.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = max_not_shorter_than_initial())]
pub struct Backoff {
    /// Wait before the first retry: at least 10ms.
    #[serde(default = "default_initial")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration("initial", "10ms", "24h", "5s"))]
    pub initial: String,
    /// Factor between one wait and the next: 1 to 10.
    #[serde(default = "default_factor")]
    #[schemars(range(min = 1, max = 10))]
    pub factor: i32,
    /// Maximum wait, also for a `Retry-After` of the endpoint: at most 24h.
    #[serde(default = "default_max")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration("max", "10ms", "24h", "1h"))]
    pub max: String,
}

/// State of the subscription and health of its deliveries. Counters are approximate across a crash of the operator.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = super::unobserved_conditions()))]
pub struct WebhookStatus {
    /// The `metadata.generation` that this status was written for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Scheme, host and port of the endpoint, never the path. `(Secret NAME)` if the URL is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub endpoint: Option<String>,
    /// The filter in force. While `spec.filter` is invalid, it is the filter of an older generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<FilterInForce>,
    /// `Ready`: the subscription is live. `Healthy`: the endpoint acknowledges deliveries. `Stalled`: the spec is invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Counts of deliveries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliveries: Option<DeliveryCounts>,
    /// Number of failed attempts since the last success. Responses 429 and 503 with `Retry-After` are not counted.
    #[serde(default)]
    pub consecutive_failures: i64,
    /// Latest acknowledged attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<AttemptSummary>,
    /// Latest failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<AttemptSummary>,
    /// The last ten finished deliveries, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub recent: Vec<DeliverySummary>,
}

/// Latest valid filter of a Webhook.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FilterInForce {
    /// The `metadata.generation` of the spec that contains the filter.
    pub generation: i64,
    /// The filter. Absent if that spec had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub filter: Option<String>,
}

/// Counts of deliveries. `pending` is the current number, the others only grow.
#[derive(KubeSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryCounts {
    /// Acknowledged by the endpoint.
    #[serde(default)]
    pub succeeded: i64,
    /// Given up: after the last retry, because the endpoint was gone (410), because too many were pending, or because it is unknown
    /// whether the event's namespace is selected.
    #[serde(default)]
    pub failed: i64,
    /// Attempts after the first of a delivery.
    #[serde(default)]
    pub retries: i64,
    /// Waiting for their first attempt or for a retry.
    #[serde(default)]
    pub pending: i64,
    /// Lost: the delivery was given up and could not be stored as a `WebhookDelivery` (because of its limits, a quota or a policy).
    #[serde(default)]
    pub dropped: i64,
}

/// Summary of one attempt.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AttemptSummary {
    /// End of the attempt.
    pub time: Time,
    /// Name of the event.
    #[schemars(length(max = 64))]
    pub event: String,
    /// Id of the event.
    #[schemars(length(max = 64))]
    pub event_id: String,
    /// Number of the attempt within its delivery, starting at 1.
    pub attempt: i32,
    /// HTTP status of the response, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<i32>,
    /// Error, at most 256 characters. It never contains parts of the response body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub error: Option<String>,
}

/// Summary of one finished delivery.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySummary {
    /// End of the delivery.
    pub time: Time,
    /// Name of the event.
    #[schemars(length(max = 64))]
    pub event: String,
    /// Id of the event.
    #[schemars(length(max = 64))]
    pub event_id: String,
    /// Object of the event, such as `trainingjob/llama-sft`. For a `ClusterWebhook` it includes the namespace:
    /// `trainingjob/research/llama-sft`.
    #[schemars(length(max = 384))]
    pub object: String,
    /// `Delivered` or `Exhausted`.
    #[schemars(length(max = 32))]
    pub result: String,
    /// Number of attempts.
    pub attempts: i32,
    /// HTTP status of the last response, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<i32>,
}

impl Default for DeliveryPolicy {
    fn default() -> Self {
        Self {
            timeout: default_timeout(),
            max_retries: default_max_retries(),
            backoff: Backoff::default(),
            concurrency: default_concurrency(),
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: default_initial(), factor: default_factor(), max: default_max() }
    }
}

/// The name of an object of this kind is used as a label value.
pub(super) fn short_name(kind: &str) -> Rule {
    let message = format!(
        "a {kind}'s name may have at most 63 characters, since it becomes a label value: choose a shorter metadata.name"
    );
    Rule::new("self.metadata.name.size() <= 63").message(message.as_str())
}

/// Rule: the field is a duration within these bounds.
pub(super) fn duration(field: &str, least: &str, most: &str, example: &str) -> Rule {
    let bounds = format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')");
    let message =
        format!("{field} must be a duration from {least} to {most}, in whole h, m, s or ms, such as {example}");
    Rule::new(format!("self.matches({DURATION}) ? {bounds} : false")).message(message.as_str())
}

/// The apiserver also evaluates the rule on the default `{}`, before it fills in the defaults of the members.
fn max_not_shorter_than_initial() -> Rule {
    let unreadable = format!("!self.initial.matches({DURATION}) || !self.max.matches({DURATION})");
    let ordered = "duration(self.initial) <= duration(self.max)";
    Rule::new(format!("!has(self.initial) || !has(self.max) || {unreadable} || {ordered}"))
        .message("backoff.max (default 1h) must not be shorter than backoff.initial: raise max or lower initial")
}

fn default_timeout() -> String {
    "30s".into()
}

fn default_max_retries() -> i32 {
    5
}

fn default_concurrency() -> i32 {
    8
}

fn default_initial() -> String {
    "5s".into()
}

fn default_factor() -> i32 {
    5
}

fn default_max() -> String {
    "1h".into()
}
