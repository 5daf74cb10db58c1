//! `UsageThreshold`: a usage figure and the thresholds to watch.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, core::Rule};
use serde::{Deserialize, Serialize};

use super::{
    header::{self, Header},
    webhook::duration,
};

/// A Quantity that is above zero, within what a double can hold.
const QUANTITY: &str = r"(self.matches('^([0-9]+([.][0-9]*)?|[.][0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?$') && self.matches('^[0.]*[1-9]'))";
/// A percentage that is above zero.
const PERCENT: &str = r"(self.matches('^[0-9]{1,3}([.][0-9]{1,3})?%$') && self.matches('^[0.]*[1-9]'))";
/// Amounts that are zero.
const ZERO: &str = r"self.matches('^0+([.]0+)?%?$')";

/// What to measure, and which thresholds to watch.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq)]
#[kube(
    group = "llmtune.io",
    version = "v1alpha1",
    kind = "UsageThreshold",
    plural = "usagethresholds",
    shortname = "ut",
    category = "llmtune",
    namespaced,
    status = "UsageThresholdStatus",
    derive = "PartialEq",
    doc = "A usage figure, from a PromQL query or a ResourceQuota, and thresholds. usage.threshold_reached is sent when the figure rises to one of them.",
    printcolumn(name = "Value", type_ = "string", json_path = ".status.value"),
    printcolumn(name = "Limit", type_ = "string", json_path = ".status.limit"),
    printcolumn(name = "Percent", type_ = "string", json_path = ".status.percent"),
    printcolumn(name = "Reached", type_ = "string", json_path = ".status.reached"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastEvaluation"),
    printcolumn(name = "Unit", type_ = "string", json_path = ".spec.unit", priority = "1"),
    printcolumn(name = "Thresholds", type_ = "string", json_path = ".spec.thresholds", priority = "1"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason",
        priority = "1"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.prometheus) || has(self.resourceQuota)")
        .message("set what to measure: prometheus, such as {query: sum(increase(llm_tokens_total[30d]))}, or resourceQuota, such as {name: team-a, resource: requests.nvidia.com/gpu}"),
    validation = Rule::new("!has(self.prometheus) || !has(self.resourceQuota)")
        .message("spec can have only one of prometheus and resourceQuota: remove one, or create another UsageThreshold for it"),
    validation = Rule::new("!has(self.resourceQuota) || !has(self.limit)")
        .message("a resourceQuota has its own limit, hard: remove limit"),
    validation = Rule::new("!has(self.prometheus) || has(self.limit) || !self.thresholds.exists(threshold, threshold.endsWith('%'))")
        .message("thresholds in percent need a limit: set limit, such as 1G, or use quantities as thresholds, such as 800M"),
    validation = lower_than_percentages()
)]
pub struct UsageThresholdSpec {
    /// Measures the result of a PromQL query. Exactly one of `prometheus` and `resourceQuota` must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub prometheus: Option<PrometheusQuery>,
    /// Measures the use of a resource against the hard limit of a `ResourceQuota`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub resource_quota: Option<QuotaResource>,
    /// Limit that percentages refer to, a Quantity such as `1G`. Optional if all thresholds are quantities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new(QUANTITY).message("limit must be a Quantity above zero, such as 1G, 500k or 64Gi"))]
    pub limit: Option<String>,
    /// The thresholds, 1 to 32: percentages of the limit such as `80%`, or quantities such as `950M`.
    #[schemars(length(max = 32), inner(length(max = 64)), transform = super::each_item(threshold_rule(), THRESHOLD_MESSAGE))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.size() > 0").message("thresholds must name at least one, such as 80%")
    )]
    pub thresholds: Vec<String>,
    /// How far the figure must fall below a threshold before its event can be sent again: a percentage of the limit (of the threshold, if there
    /// is no limit), or a Quantity. With `0%`, any value below the threshold is enough.
    #[serde(default = "default_hysteresis")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = hysteresis_rule())]
    pub hysteresis: String,
    /// How long the figure must stay at or above a threshold before the event is sent: 0s to 24h.
    #[serde(rename = "for", default = "default_hold")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration("for", "0s", "24h", "5m"))]
    pub hold: String,
    /// Interval of the query: 1s to 24h. A quota is watched, and measured whenever it changes.
    #[serde(default = "default_interval")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = duration("interval", "1s", "24h", "60s"))]
    pub interval: String,
    /// Unit of the figure, sent to receivers, such as `tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub unit: Option<String>,
}

/// A PromQL query and its server.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.basicAuthRef) || !has(self.headers) || !self.headers.exists(header, header.name.lowerAscii() == 'authorization')")
    .message("basicAuthRef sets the header Authorization: remove one of them"))]
pub struct PrometheusQuery {
    /// One of the servers in the operator's `--allow-prometheus`. Defaults to the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(
        validation = Rule::new("isURL(self) ? url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != '' : false")
            .message("url must be an absolute http:// or https:// URL that the operator's --allow-prometheus allows, such as http://prometheus.monitoring:9090"),
        validation = Rule::new("!self.matches('^[^/?#]*//[^/?#]*@')")
            .message("url must not contain a user name or password: name a Secret in basicAuthRef, or set a token in the operator's --prometheus-token-file"),
        validation = Rule::new("!self.contains('?') && !self.contains('#')")
            .message("url must have neither a query (?...) nor a fragment (#...): remove it, and write the PromQL into query")
    )]
    pub url: Option<String>,
    /// PromQL expression. It must return one number: a scalar, or a vector with one element.
    #[schemars(length(max = 4096))]
    #[x_kube(validation = Rule::new("self.trim().size() > 0").message("query must be PromQL that returns one number, such as sum(increase(llm_tokens_total[30d]))"))]
    pub query: String,
    /// Headers of the query, at most 16, such as `X-Scope-OrgID` for a server with tenants. A header Authorization replaces the operator's token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = header::unique_names()
    )]
    pub headers: Vec<Header>,
    /// User name and password for the query. They replace the operator's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub basic_auth_ref: Option<BasicAuthReference>,
}

/// A Secret of type kubernetes.io/basic-auth in this namespace, with the keys `username` and `password`. It is sent to the server, and so must have
/// the label `llmtune.io/send-in-clear: "true"`.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuthReference {
    /// Name of the Secret.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a Secret's name: lowercase letters, digits, '-' and '.', such as prometheus"))]
    pub name: String,
}

/// A resource of a `ResourceQuota` in this namespace.
#[derive(KubeSchema, Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct QuotaResource {
    /// Name of the quota.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()")
        .message("name must be a ResourceQuota's name: lowercase letters, digits, '-' and '.', such as team-a"))]
    pub name: String,
    /// Name of the resource in the quota's `hard`.
    #[schemars(length(max = 317))]
    #[x_kube(validation = Rule::new("self.matches('^[-._/a-zA-Z0-9]+$')")
        .message("resource must be a resource in the quota's hard, such as requests.nvidia.com/gpu, limits.memory or pods"))]
    pub resource: String,
}

/// State of the figure. Value and time of the last evaluation are written at most once a minute.
#[derive(KubeSchema, Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = super::unobserved_conditions()))]
pub struct UsageThresholdStatus {
    /// The `metadata.generation` that this status was written for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Current value, a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub value: Option<String>,
    /// Limit that percentages refer to, a decimal number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub limit: Option<String>,
    /// Current value as a percentage of the limit, rounded down, such as `83.4%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub percent: Option<String>,
    /// Thresholds that are reached, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 64)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub reached: Vec<String>,
    /// Time of the last measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_evaluation: Option<Time>,
    /// `Ready`: the last evaluation succeeded. `Stalled`: the spec is invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::conditions")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

const THRESHOLD_MESSAGE: &str = "a threshold must be a percentage above 0% with at most three digits before the point and three after it, such as 80% or 99.5%, or a Quantity above zero, such as 950M";

fn threshold_rule() -> String {
    format!("{PERCENT} || {QUANTITY}")
}

fn hysteresis_rule() -> Rule {
    Rule::new(format!("{PERCENT} || {QUANTITY} || {ZERO}"))
        .message("hysteresis must be a percentage such as 5%, or a Quantity such as 10M; with 0%, any fall below a threshold is enough")
}

/// A hysteresis as large as a threshold would never arm that threshold again. The operator compares quantities with percentages.
fn lower_than_percentages() -> Rule {
    let percent = r"'^[0-9]{1,3}([.][0-9]{1,3})?%$'";
    let number = |text: &str| format!("double({text}.replace('%', ''))");
    let (hysteresis, threshold) = (number("self.hysteresis"), number("threshold"));
    Rule::new(format!(
        "!has(self.hysteresis) || !self.hysteresis.matches({percent}) || self.thresholds.all(threshold, !threshold.matches({percent}) || {hysteresis} < {threshold})"
    ))
    .message("hysteresis must be lower than every threshold, otherwise a threshold would be sent only once: lower hysteresis, such as to 5%")
}

fn default_hysteresis() -> String {
    "0%".into()
}

fn default_hold() -> String {
    "0s".into()
}

fn default_interval() -> String {
    "60s".into()
}
