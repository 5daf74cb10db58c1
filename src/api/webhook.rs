//! `Webhook`: a subscription of one URL to the events of its namespace, and how its deliveries fare.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    CustomResource, KubeSchema,
    core::{Expression, Rule, Selector},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const KNOWN_EVENT: &str = "self in ['*', 'training.*', 'model.*', 'deployment.*', 'usage.*', 'training.started', 'training.completed', 'training.failed', 'model.deployed', 'deployment.created', 'deployment.paused', 'deployment.resumed', 'deployment.deleted', 'usage.threshold_reached']";
const KNOWN_EVENT_MESSAGE: &str = "events may hold training.started, training.completed, training.failed, model.deployed, deployment.created, deployment.paused, deployment.resumed, deployment.deleted, usage.threshold_reached, and the patterns training.*, model.*, deployment.*, usage.* and \"*\"";
#[cfg(test)]
pub(super) const EVENT_RULE: [&str; 2] = [KNOWN_EVENT, KNOWN_EVENT_MESSAGE];
const LABEL_KEY_MESSAGE: &str = "a label's key is a name of at most 63 letters, digits, '-', '_' and '.', where needed behind a DNS name and a slash, such as team or example.com/team";
const LABEL_VALUE: &str = "!format.labelValue().validate(self).hasValue()";
const LABEL_VALUE_MESSAGE: &str =
    "a label's value is empty or at most 63 letters, digits, '-', '_' and '.', with a letter or digit first and last";
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
#[x_kube(validation = Rule::new("!has(self.tls) || !isURL(self.url) || url(self.url).getScheme() != 'http'")
    .message("tls has no meaning for an http:// url: write https://, or remove tls"),
    validation = Rule::new("self.format != 'StandardWebhooks' || has(self.secretRef)")
        .message("format StandardWebhooks signs every delivery: name the Secret in secretRef, whose key holds whsec_ and the base64 of 24 to 64 random bytes"),
    validation = Rule::new("!has(self.cloudEvents) || self.format == 'CloudEvents'")
        .message("cloudEvents is for format CloudEvents only: write that format, or remove cloudEvents"))]
pub struct WebhookSpec {
    /// Where to send events: an absolute http or https URL without user name, password or fragment.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("isURL(self) ? url(self).getScheme() in ['http', 'https'] : false")
            .message("url must be an absolute, percent-encoded http:// or https:// URL, such as https://ci.example.com/hooks"),
        validation = Rule::new("!isURL(self) || !(url(self).getScheme() in ['http', 'https']) || (url(self).getHostname() != '' && url(self).getHostname().size() <= 253)")
            .message("url must name a host, of at most 253 characters, such as https://ci.example.com/hooks"),
        validation = Rule::new("!isURL(self) || url(self).getPort() == '' || (url(self).getPort().size() <= 5 && int(url(self).getPort()) >= 1 && int(url(self).getPort()) <= 65535)")
            .message("url's port must be from 1 to 65535, such as https://ci.example.com:8443/hooks"),
        validation = Rule::new("!self.matches('^[^/?#]*//[^/?#]*@')")
            .message("url must not hold a user name or password, which anyone who may read Webhooks would see: sign deliveries with secretRef instead"),
        validation = Rule::new("!self.contains('#')")
            .message("url must not have a fragment (#...), which is never sent: remove it")
    )]
    pub url: String,
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
    /// Whom to trust beside all others, and which certificate to show, over https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// The TLS of one endpoint. Both objects are in the Webhook's namespace, a `ClusterWebhook`'s in the operator's, and are read again within 30 seconds of a change.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.caBundleRef) || has(self.clientCertificateRef)")
    .message("tls must have caBundleRef, clientCertificateRef or both: add one, or remove tls"))]
pub struct Tls {
    /// The PEM certificates of issuers that this endpoint's certificate may have, beside those that the operator trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub ca_bundle_ref: Option<BundleReference>,
    /// A Secret of type kubernetes.io/tls, with the certificate (`tls.crt`) and the key (`tls.key`) that the endpoint is shown (mTLS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub client_certificate_ref: Option<CertificateReference>,
}

/// A key of a `ConfigMap` or a Secret in the Webhook's namespace; a `ClusterWebhook`'s in the operator's.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BundleReference {
    /// Which kind of object it is.
    pub kind: BundleKind,
    /// The object's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be an object's name: lower-case letters, digits, '-' and '.', such as internal-ca"))]
    pub name: String,
    /// The key that holds PEM certificates.
    #[serde(default = "default_bundle_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the object: letters, digits, '-', '_' and '.', such as ca.crt"))]
    pub key: String,
}

/// The kinds of object that a bundle may lie in.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum BundleKind {
    ConfigMap,
    Secret,
}

/// A Secret in the Webhook's namespace; a `ClusterWebhook`'s in the operator's.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReference {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lower-case letters, digits, '-' and '.', such as ci-client"))]
    pub name: String,
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

/// A key of a Secret in the Webhook's namespace; a `ClusterWebhook`'s in the operator's.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lower-case letters, digits, '-' and '.', such as ci-hook"))]
    pub name: String,
    /// The key whose bytes sign deliveries.
    #[serde(default = "default_secret_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the Secret: letters, digits, '-', '_' and '.', such as secret"))]
    pub key: String,
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

/// A label selector as `metav1.LabelSelector` defines it, with bounds.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there with exactly this value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(key, !format.qualifiedName().validate(key).hasValue())").message(LABEL_KEY_MESSAGE))]
    pub match_labels: BTreeMap<String, LabelValue>,
    /// Further requirements; all of them must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Vec<LabelRequirement>,
}

impl LabelSelector {
    /// The same as kube tells it.
    #[must_use]
    pub fn selector(&self) -> Selector {
        let labels = self.match_labels.iter();
        let equal = labels.map(|(key, value)| Expression::Equal(key.clone(), value.0.clone()));
        let expressions = self.match_expressions.iter().map(|requirement| {
            let key = requirement.key.clone();
            let values = requirement.values.iter().cloned().collect();
            match requirement.operator {
                LabelOperator::In => Expression::In(key, values),
                LabelOperator::NotIn => Expression::NotIn(key, values),
                LabelOperator::Exists => Expression::Exists(key),
                LabelOperator::DoesNotExist => Expression::DoesNotExist(key),
            }
        });
        equal.chain(expressions).collect()
    }
}

/// A label's value.
#[derive(JsonSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": LABEL_VALUE, "message": LABEL_VALUE_MESSAGE}]))]
pub struct LabelValue(#[schemars(length(max = 63))] pub String);

/// One requirement of a label selector.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0")
    .message("In and NotIn need values; Exists and DoesNotExist must have none"))]
pub struct LabelRequirement {
    /// The label's key.
    #[schemars(length(max = 317))]
    #[x_kube(validation = Rule::new("!format.qualifiedName().validate(self).hasValue()").message(LABEL_KEY_MESSAGE))]
    pub key: String,
    /// How the label's value relates to `values`.
    pub operator: LabelOperator,
    /// The values that `In` and `NotIn` compare with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)), transform = super::each_item(LABEL_VALUE, LABEL_VALUE_MESSAGE))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub values: Vec<String>,
}

/// The operators of `metav1.LabelSelectorRequirement`.
#[derive(JsonSchema, Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// How the subscription stands and how its deliveries fare. Counters are approximate across a crash of the operator.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WebhookStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Scheme, host and port of the endpoint; never the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub endpoint: Option<String>,
    /// `Ready`: the subscription is live. `Healthy`: the endpoint acknowledges. `Stalled`: the spec cannot work as it stands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Counts of deliveries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliveries: Option<DeliveryCounts>,
    /// How many attempts have failed since the last success.
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

/// Counts of deliveries; `pending` is a level, the others only grow.
#[derive(KubeSchema, Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryCounts {
    /// Acknowledged by the endpoint.
    #[serde(default)]
    pub succeeded: i64,
    /// Given up: after the last retry, because the endpoint was gone (410), or because too many were pending.
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

fn default_bundle_key() -> String {
    "ca.crt".into()
}

fn default_secret_key() -> String {
    "secret".into()
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
