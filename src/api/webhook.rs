//! `Webhook`: a subscription of one URL to the events of its namespace, and how its deliveries fare.

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
const KNOWN_EVENT_MESSAGE: &str = "events may hold training.started, training.completed, training.failed, model.deployed, deployment.created, deployment.paused, deployment.resumed, deployment.deleted, usage.threshold_reached, and the patterns training.*, model.*, deployment.*, usage.* and \"*\"";
#[cfg(test)]
pub(super) const EVENT_RULE: [&str; 2] = [KNOWN_EVENT, KNOWN_EVENT_MESSAGE];
/// A Gateway API duration (GEP-2257), as a CEL literal.
pub(super) const DURATION: &str = "'^([0-9]{1,5}(h|m|s|ms)){1,4}$'";

/// Where to send which events, and how.
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
    .message("exactly one of url and urlFrom must be there: write url, such as https://ci.example.com/hooks, or urlFrom.secretKeyRef where the URL itself is a secret"),
    validation = Rule::new("!has(self.tls) || !has(self.url) || !isURL(self.url) || url(self.url).getScheme() != 'http'")
    .message("tls has no meaning for an http:// url: write https://, or remove tls"),
    validation = Rule::new("self.format != 'StandardWebhooks' || has(self.secretRef)")
        .message("format StandardWebhooks signs every delivery: name the Secret in secretRef, whose key holds whsec_ and the base64 of 24 to 64 random bytes"),
    validation = Rule::new("!has(self.cloudEvents) || self.format == 'CloudEvents'")
        .message("cloudEvents is for format CloudEvents only: write that format, or remove cloudEvents"))]
pub struct WebhookSpec {
    /// Where to send events: an absolute http or https URL without user name, password or fragment.
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
            .message("url must not hold a user name or password, which anyone who may read Webhooks would see: sign deliveries with secretRef, or send the header Authorization with valueFrom"),
        validation = Rule::new("!self.contains('#')")
            .message("url must not have a fragment (#...), which is never sent: remove it")
    )]
    pub url: Option<String>,
    /// Where the URL lies, in place of `url`, where it is a secret. Nothing of it is shown, the host included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_from: Option<ValueSource>,
    /// The Secret that deliveries are signed with. Without it they carry no signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub secret_ref: Option<SecretReference>,
    /// Which events to send: names such as `training.completed`, or `training.*`, `deployment.*`, `model.*`, `usage.*`, `*`.
    #[schemars(length(max = 16), inner(length(max = 64)), transform = super::each_item(KNOWN_EVENT, KNOWN_EVENT_MESSAGE))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.size() > 0")
            .message("events must name at least one event, such as training.completed, or \"*\" for all")
    )]
    pub events: Vec<String>,
    /// Labels of the object that an event is about. Absent or empty, it selects everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub selector: Option<LabelSelector>,
    /// A CEL expression that is true of the events to send, over `event` (the event's name), `data` (the payload's `data`) and
    /// `object.metadata` (name, namespace, labels, annotations). What is missing is not so. An event on which it fails is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub filter: Option<String>,
    /// Holds deliveries, without dropping them: what happens meanwhile waits.
    #[serde(default)]
    pub suspend: bool,
    /// How events are written: as the operator's documentation says (`LLMTune`), or as Standard Webhooks 1.0.0 or `CloudEvents` 1.0 do.
    #[serde(default)]
    pub format: Format,
    /// Of the format `CloudEvents` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_events: Option<CloudEventsOptions>,
    /// How deliveries are made.
    #[serde(default)]
    #[schemars(default = "super::empty_object")]
    pub delivery: DeliveryPolicy,
    /// Headers that every delivery bears beside the operator's own, each name once, whatever its case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = header::unique_names()
    )]
    pub headers: Vec<Header>,
    /// Whom to trust beside all others, and which certificate to show, over https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// How events are written.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum Format {
    #[default]
    LLMTune,
    StandardWebhooks,
    CloudEvents,
}

/// How `CloudEvents` are sent.
#[derive(KubeSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CloudEventsOptions {
    /// `Structured`: all in the body, and so all signed. `Binary`: the body is `data`; the rest stands in headers, which are not
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

/// How each delivery is made: its time limit, its retries and how many run at once.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryPolicy {
    /// The limit on one attempt, from connecting to the end of the answer: 1s to 60s.
    #[serde(default = "default_timeout")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration("timeout", "1s", "60s", "30s"))]
    pub timeout: String,
    /// How often a failed delivery is tried again: 0 to 20 times.
    #[serde(default = "default_max_retries")]
    #[schemars(range(min = 0, max = 20))]
    pub max_retries: i32,
    /// How long to wait before each retry.
    #[serde(default)]
    #[schemars(default = "super::empty_object")]
    pub backoff: Backoff,
    /// How many attempts may be under way to this endpoint at once: 1 to 64.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 64))]
    pub concurrency: i32,
}

/// Exponential backoff: `initial`, then `factor` times the wait before, at most `max`; each varied by 20% either way.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = max_not_shorter_than_initial())]
pub struct Backoff {
    /// The wait before the first retry: at least 10ms.
    #[serde(default = "default_initial")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration("initial", "10ms", "24h", "5s"))]
    pub initial: String,
    /// What each wait is multiplied by for the next: 1 to 10.
    #[serde(default = "default_factor")]
    #[schemars(range(min = 1, max = 10))]
    pub factor: i32,
    /// The longest wait, also for a `Retry-After` of the endpoint: at most 24h.
    #[serde(default = "default_max")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration("max", "10ms", "24h", "1h"))]
    pub max: String,
}

/// How the subscription stands and how its deliveries fare. Counters are approximate across a crash of the operator.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = super::not_looked_at()))]
pub struct WebhookStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Scheme, host and port of the endpoint; never the path. Where the URL is a secret: `(Secret NAME)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub endpoint: Option<String>,
    /// The filter in force. It is that of an older generation while `spec.filter` is invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<FilterInForce>,
    /// `Ready`: the subscription is live. `Healthy`: the endpoint acknowledges. `Stalled`: the spec cannot work as it stands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Counts of deliveries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliveries: Option<DeliveryCounts>,
    /// How many attempts have failed since the last success. Answers of 429 or 503 with `Retry-After` are not counted.
    #[serde(default)]
    pub consecutive_failures: i64,
    /// The newest acknowledged attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<AttemptSummary>,
    /// The newest failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<AttemptSummary>,
    /// The ten newest finished deliveries, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub recent: Vec<DeliverySummary>,
}

/// The newest valid filter of a Webhook.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FilterInForce {
    /// The `metadata.generation` of the spec that the filter is from.
    pub generation: i64,
    /// The filter. Absent if that spec had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub filter: Option<String>,
}

/// Counts of deliveries; `pending` is a level, the others only grow.
#[derive(KubeSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryCounts {
    /// Acknowledged by the endpoint.
    #[serde(default)]
    pub succeeded: i64,
    /// Given up: after the last retry, because the endpoint was gone (410), because too many were pending, or because it could not be told
    /// whether the event's namespace is selected.
    #[serde(default)]
    pub failed: i64,
    /// Attempts beyond the first of a delivery.
    #[serde(default)]
    pub retries: i64,
    /// Waiting for their first attempt or for a retry.
    #[serde(default)]
    pub pending: i64,
    /// Lost: it could not wait any more, and could not be kept as a `WebhookDelivery` (its bounds, a quota, a policy).
    #[serde(default)]
    pub dropped: i64,
}

/// One attempt, in brief.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AttemptSummary {
    /// When the attempt ended.
    pub time: Time,
    /// The event's name.
    #[schemars(length(max = 64))]
    pub event: String,
    /// The event's id.
    #[schemars(length(max = 64))]
    pub event_id: String,
    /// Which attempt of its delivery it was, from 1.
    pub attempt: i32,
    /// The answer's HTTP status, where there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<i32>,
    /// What went wrong, in at most 256 characters; never anything of the answer's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub error: Option<String>,
}

/// One finished delivery, in brief.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySummary {
    /// When the delivery finished.
    pub time: Time,
    /// The event's name.
    #[schemars(length(max = 64))]
    pub event: String,
    /// The event's id.
    #[schemars(length(max = 64))]
    pub event_id: String,
    /// The object that the event is about, such as `trainingjob/llama-sft`; of a `ClusterWebhook` with its namespace, such as
    /// `trainingjob/research/llama-sft`.
    #[schemars(length(max = 384))]
    pub object: String,
    /// `Delivered` or `Exhausted`.
    #[schemars(length(max = 32))]
    pub result: String,
    /// How many attempts it took.
    pub attempts: i32,
    /// The last answer's HTTP status, where there was an answer.
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

/// The name of an object of this kind becomes a label value.
pub(super) fn short_name(kind: &str) -> Rule {
    let message = format!(
        "a {kind}'s name may have at most 63 characters, since it becomes a label value: choose a shorter metadata.name"
    );
    Rule::new("self.metadata.name.size() <= 63").message(message.as_str())
}

/// The field is a duration within these bounds.
pub(super) fn duration(field: &str, least: &str, most: &str, example: &str) -> Rule {
    let bounds = format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')");
    let message =
        format!("{field} must be a duration from {least} to {most}, in whole h, m, s or ms, such as {example}");
    Rule::new(format!("self.matches({DURATION}) ? {bounds} : false")).message(message.as_str())
}

/// The apiserver tries the rule on the default, `{}`, too, before it has filled that in.
fn max_not_shorter_than_initial() -> Rule {
    let unreadable = format!("!self.initial.matches({DURATION}) || !self.max.matches({DURATION})");
    let ordered = "duration(self.initial) <= duration(self.max)";
    Rule::new(format!("!has(self.initial) || !has(self.max) || {unreadable} || {ordered}"))
        .message("backoff.max (1h unless given) must not be shorter than backoff.initial: raise max or lower initial")
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
