//! `Webhook`: a subscription of one URL to the events of its namespace, and how its deliveries fare.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    validation = Rule::new("self.metadata.name.size() <= 63").message("a Webhook's name may have at most 63 characters, since it becomes a label value: choose a shorter metadata.name")
)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSpec {
    /// Where to send events: an absolute http or https URL without user name, password or fragment.
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("isURL(self) ? url(self).getScheme() in ['http', 'https'] : false")
            .message("url must be an absolute http:// or https:// URL, such as https://ci.example.com/hooks"),
        validation = Rule::new("!isURL(self) || !(url(self).getScheme() in ['http', 'https']) || url(self).getHostname() != ''")
            .message("url must name a host, such as https://ci.example.com/hooks"),
        validation = Rule::new("!self.matches('^[^/?#]*//[^/?#]*@')")
            .message("url must not hold a user name or password, which anyone who may read Webhooks would see: sign deliveries with secretRef instead"),
        validation = Rule::new("!self.contains('#')")
            .message("url must not have a fragment (#...), which is never sent: remove it")
    )]
    pub url: String,
    /// The Secret that deliveries are signed with. Without it they carry no signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// Which events to send: names such as `training.completed`, or `training.*`, `deployment.*`, `model.*`, `usage.*`, `*`.
    #[schemars(length(max = 16), inner(length(max = 64)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.size() > 0")
            .message("events must name at least one event, such as training.completed, or \"*\" for all"),
        validation = Rule::new("self.all(e, e in ['*', 'training.*', 'model.*', 'deployment.*', 'usage.*', 'training.started', 'training.completed', 'training.failed', 'model.deployed', 'deployment.created', 'deployment.paused', 'deployment.resumed', 'deployment.deleted', 'usage.threshold_reached'])")
            .message("events may hold training.started, training.completed, training.failed, model.deployed, deployment.created, deployment.paused, deployment.resumed, deployment.deleted, usage.threshold_reached, and the patterns training.*, model.*, deployment.*, usage.* and \"*\"")
    )]
    pub events: Vec<String>,
    /// Labels of the object that an event is about. Absent or empty, it selects everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// Holds deliveries, without dropping them: what happens meanwhile waits.
    #[serde(default)]
    pub suspend: bool,
    /// How deliveries are made.
    #[serde(default)]
    #[schemars(default = "super::empty_object")]
    pub delivery: DeliveryPolicy,
}

/// A key of a Secret in the Webhook's namespace.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("name must be a Secret's name: lower-case letters, digits, '-' and '.'"))]
    pub name: String,
    /// The key whose bytes sign deliveries.
    #[serde(default = "default_secret_key")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("key must be a key of the Secret: letters, digits, '-', '_' and '.'"))]
    pub key: String,
}

/// How each delivery is made: its time limit, its retries and how many run at once.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryPolicy {
    /// The limit on one attempt, from connecting to the end of the answer: 1s to 60s.
    #[serde(default = "default_timeout")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') ? duration(self) >= duration('1s') && duration(self) <= duration('60s') : false")
        .message("timeout must be a duration from 1s to 60s, such as 30s"))]
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
#[x_kube(validation = Rule::new("!has(self.initial) || !has(self.max) || !self.initial.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || !self.max.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || duration(self.initial) <= duration(self.max)")
    .message("backoff.max must not be shorter than backoff.initial: raise max or lower initial"))]
pub struct Backoff {
    /// The wait before the first retry: at least 10ms.
    #[serde(default = "default_initial")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') ? duration(self) >= duration('10ms') && duration(self) <= duration('24h') : false")
        .message("initial must be a duration from 10ms to 24h, such as 5s"))]
    pub initial: String,
    /// What each wait is multiplied by for the next: 1 to 10.
    #[serde(default = "default_factor")]
    #[schemars(range(min = 1, max = 10))]
    pub factor: i32,
    /// The longest wait, also for a `Retry-After` of the endpoint: at most 24h.
    #[serde(default = "default_max")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') ? duration(self) >= duration('10ms') && duration(self) <= duration('24h') : false")
        .message("max must be a duration from 10ms to 24h, such as 1h"))]
    pub max: String,
}

/// A label selector as `metav1.LabelSelector` defines it, with bounds.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there with exactly this value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(k, self[k].size() <= 63 && k.size() <= 317)")
        .message("a label value has at most 63 characters, a label key at most 317"))]
    pub match_labels: BTreeMap<String, LabelValue>,
    /// Further requirements; all of them must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Vec<LabelRequirement>,
}

/// A label's value.
#[derive(JsonSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct LabelValue(#[schemars(length(max = 63))] pub String);

/// One requirement of a label selector.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0")
    .message("In and NotIn need values; Exists and DoesNotExist must have none"))]
pub struct LabelRequirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label's value relates to `values`.
    pub operator: LabelOperator,
    /// The values that `In` and `NotIn` compare with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
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
    #[schemars(length(max = 512))]
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
    /// Given up after the last retry.
    #[serde(default)]
    pub failed: i64,
    /// Attempts beyond the first of a delivery.
    #[serde(default)]
    pub retries: i64,
    /// Waiting for their first attempt or for a retry.
    #[serde(default)]
    pub pending: i64,
    /// Thrown away because a bound was reached.
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
    /// The object that the event is about, such as `trainingjob/llama-sft`.
    #[schemars(length(max = 320))]
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
