//! Converts the spec of a `UsageThreshold` to a plan for its measurement, and a figure to facts for the engine. Pure.

use std::{fmt, time::Duration};

use jiff::Timestamp;

use super::prometheus::Server;
use crate::subscription::{credentials::Credentials, reference::ReferenceError};
use llmtune_api::{
    duration,
    usage_threshold::{QuotaResource, UsageThresholdSpec},
};
use llmtune_core::event::{
    amount::{Amount, Level},
    object::UsageFacts,
};

/// A validated spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub meter: Meter,
    limit: Option<Amount>,
    thresholds: Vec<Level>,
    hysteresis: Level,
    /// How long a figure must stay at or above a threshold before the threshold counts as reached.
    pub hold: Duration,
    /// The interval between queries.
    pub interval: Duration,
    unit: Option<String>,
}

/// The source of a figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Meter {
    /// A PromQL query.
    Query { server: Server, query: String, credentials: Credentials },
    /// The used amount of a resource of a `ResourceQuota`.
    Quota(QuotaResource),
}

impl Meter {
    /// The value of the metric label `source`.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Query { .. } => "prometheus",
            Self::Quota(_) => "resourcequota",
        }
    }
}

/// As in the payload: the query, or `NAME/RESOURCE` of a quota.
impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query { query, .. } => f.write_str(query),
            Self::Quota(QuotaResource { name, resource }) => write!(f, "{name}/{resource}"),
        }
    }
}

/// A measured figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub value: Amount,
    /// The limit of a quota.
    pub limit: Option<Amount>,
}

/// Why a figure cannot be measured or compared with the thresholds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: Reason,
    /// What is wrong and what to do, in at most a few hundred characters.
    pub message: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        Self::new(Reason::Credentials { name: error.reason(), is_final: error.is_final() }, error.to_string())
    }
}

/// The reasons of failures in conditions and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    InvalidSpec,
    InvalidQuery,
    HysteresisTooLarge,
    PrometheusNotConfigured,
    PrometheusNotAllowed,
    PrometheusRefused,
    PrometheusUnavailable,
    PrometheusRateLimited,
    PartialAnswer,
    /// The credentials of the query are unavailable, for this reason. `is_final` if waiting does not help.
    Credentials {
        name: &'static str,
        is_final: bool,
    },
    QueryFailed,
    NoSample,
    SeveralSamples,
    NotFinite,
    NotOneNumber,
    QuotaUnavailable,
    QuotaNotFound,
    ResourceNotInQuota,
    LimitIsZero,
}

impl Reason {
    /// The reason's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidSpec => "InvalidSpec",
            Self::InvalidQuery => "InvalidQuery",
            Self::HysteresisTooLarge => "HysteresisTooLarge",
            Self::PrometheusNotConfigured => "PrometheusNotConfigured",
            Self::PrometheusNotAllowed => "PrometheusNotAllowed",
            Self::PrometheusRefused => "PrometheusRefused",
            Self::PrometheusUnavailable => "PrometheusUnavailable",
            Self::PrometheusRateLimited => "PrometheusRateLimited",
            Self::PartialAnswer => "PartialAnswer",
            Self::Credentials { name, .. } => name,
            Self::QueryFailed => "QueryFailed",
            Self::NoSample => "NoSample",
            Self::SeveralSamples => "SeveralSamples",
            Self::NotFinite => "NotFinite",
            Self::NotOneNumber => "NotOneNumber",
            Self::QuotaUnavailable => "QuotaUnavailable",
            Self::QuotaNotFound => "QuotaNotFound",
            Self::ResourceNotInQuota => "ResourceNotInQuota",
            Self::LimitIsZero => "LimitIsZero",
        }
    }

    /// Whether the spec must be changed before it can work.
    #[must_use]
    pub const fn stalls(self) -> bool {
        matches!(
            self,
            Self::InvalidSpec
                | Self::InvalidQuery
                | Self::HysteresisTooLarge
                | Self::PrometheusNotConfigured
                | Self::PrometheusNotAllowed
                | Self::NotOneNumber
                | Self::Credentials { is_final: true, .. }
        )
    }
}

impl Plan {
    /// Reads a spec. `servers` are the allowed servers; the first is the default. `namespace` is the namespace of the
    /// Secrets in the spec.
    pub fn read(spec: &UsageThresholdSpec, servers: &[Server], namespace: &str) -> Result<Self, Failure> {
        let level = |field: &str, text: &str| {
            Level::parse(text).map_err(|error| {
                let message = format!("spec.{field} is {text:?}, which is invalid: {error}; write a percentage such as 80%, or a Quantity such as 950M");
                Failure::new(Reason::InvalidSpec, message)
            })
        };
        let span = |field: &str, text: &str| {
            duration::read(text).ok_or_else(|| {
                let message = format!("spec.{field} is {text:?}, which is not a duration: write one such as 60s");
                Failure::new(Reason::InvalidSpec, message)
            })
        };
        let limit = spec.limit.as_ref().map(|text| {
            let limit = Amount::quantity(text).ok().filter(Amount::is_positive);
            limit.ok_or_else(|| {
                let message =
                    format!("spec.limit is {text:?}, which is not a Quantity above zero: write one such as 1G");
                Failure::new(Reason::InvalidSpec, message)
            })
        });
        let thresholds = spec.thresholds.iter().map(|text| level("thresholds", text));
        Ok(Self {
            limit: limit.transpose()?,
            thresholds: thresholds.collect::<Result<_, _>>()?,
            hysteresis: level("hysteresis", &spec.hysteresis)?,
            hold: span("for", &spec.hold)?,
            interval: span("interval", &spec.interval)?.max(Duration::from_secs(1)),
            unit: spec.unit.clone(),
            meter: meter(spec, servers, namespace)?,
        })
    }

    /// The facts for a figure that was measured at this time.
    pub fn facts(&self, figure: Figure, observed_at: Timestamp) -> Result<UsageFacts, Failure> {
        let facts = UsageFacts {
            metric: self.meter.to_string(),
            value: figure.value,
            limit: figure.limit.or_else(|| self.limit.clone()),
            thresholds: self.thresholds.clone(),
            hysteresis: self.hysteresis.clone(),
            hold: self.hold,
            unit: self.unit.clone(),
            observed_at,
        };
        let limit = facts.limit.as_ref();
        if limit.is_some_and(|limit| !limit.is_positive()) {
            let message = format!(
                "the limit of {} is zero, so no percentage can be computed: raise spec.hard of the ResourceQuota, or remove the UsageThreshold",
                facts.metric
            );
            return Err(Failure::new(Reason::LimitIsZero, message));
        }
        for level in &facts.thresholds {
            let Some(at) = level.of(limit) else {
                let message = format!(
                    "the threshold {} is a percentage, but there is no limit: set spec.limit, such as 1G, or write a Quantity such as 800M",
                    level.text()
                );
                return Err(Failure::new(Reason::InvalidSpec, message));
            };
            if facts.hysteresis.of(Some(limit.unwrap_or(&at))).is_none_or(|hysteresis| hysteresis >= at) {
                let message = format!(
                    "spec.hysteresis ({}) is not lower than the threshold {}, which would therefore be sent only once: lower the hysteresis, for example to 0%",
                    facts.hysteresis.text(),
                    level.text()
                );
                return Err(Failure::new(Reason::HysteresisTooLarge, message));
            }
        }
        Ok(facts)
    }

    /// The interval at which a quota is evaluated although it has not changed, or `None` if it is not.
    #[must_use]
    pub fn look_again(&self) -> Option<Duration> {
        // A threshold with a hold time can become reached between two changes.
        (!self.hold.is_zero()).then(|| (self.hold / 10).clamp(Duration::from_secs(1), self.interval))
    }
}

fn meter(spec: &UsageThresholdSpec, servers: &[Server], namespace: &str) -> Result<Meter, Failure> {
    let Some(prometheus) = &spec.prometheus else {
        let message = "spec has neither prometheus nor resourceQuota: set one of them";
        return spec.resource_quota.clone().map(Meter::Quota).ok_or_else(|| Failure::new(Reason::InvalidSpec, message));
    };
    let Some(default) = servers.first() else {
        let message = "the operator may not query any Prometheus: start it with --allow-prometheus, such as --allow-prometheus http://prometheus.monitoring:9090";
        return Err(Failure::new(Reason::PrometheusNotConfigured, message));
    };
    let server = match &prometheus.url {
        None => default,
        Some(url) => {
            let named = url.parse().ok();
            servers.iter().find(|server| Some(*server) == named.as_ref()).ok_or_else(|| {
                let allowed: Vec<String> = servers.iter().map(ToString::to_string).collect();
                let message = format!(
                    "spec.prometheus.url {url} is not allowed: use one of the operator's --allow-prometheus ({}), omit url to use the first, or ask the platform team to add this one",
                    allowed.join(", ")
                );
                Failure::new(Reason::PrometheusNotAllowed, message)
            })?
        }
    };
    let basic = prometheus.basic_auth_ref.as_ref().map(|secret| secret.name.as_str());
    let credentials = Credentials::read(&prometheus.headers, basic, namespace).map_err(|error| {
        let message = error.to_string().replacen("spec.headers", "spec.prometheus.headers", 1);
        Failure::new(Reason::InvalidSpec, message)
    })?;
    Ok(Meter::Query { server: server.clone(), query: prometheus.query.clone(), credentials })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(fields: &Value) -> UsageThresholdSpec {
        let mut spec = json!({"thresholds": ["80%"]});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    fn query(fields: &Value) -> UsageThresholdSpec {
        let mut whole = json!({"prometheus": {"query": "up"}, "limit": "1G"});
        whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        spec(&whole)
    }

    fn servers() -> Vec<Server> {
        ["http://a:9090", "https://b/prometheus/"].map(|url| url.parse().unwrap()).into()
    }

    fn reason<T>(result: Result<T, Failure>) -> &'static str {
        result.map_or_else(|failure| failure.reason.name(), |_| "none")
    }

    #[test]
    fn query_goes_to_the_first_or_the_given_allowed_server() {
        let server = |spec: &UsageThresholdSpec| match Plan::read(spec, &servers(), "ns").unwrap().meter {
            Meter::Query { server, .. } => server.to_string(),
            Meter::Quota(_) => panic!("a query"),
        };
        assert_eq!(server(&query(&json!({}))), "http://a:9090");
        for url in ["https://b/prometheus", "https://B:443/prometheus/", "https://b/x/../prometheus"] {
            let spec = query(&json!({"prometheus": {"url": url, "query": "up"}}));
            assert_eq!(server(&spec), "https://b/prometheus", "{url}");
        }
        for url in [
            "https://b",
            "https://b/other",
            "http://b/prometheus",
            "https://b/prometheus2",
            "http://a:9091",
            "http://u@a:9090",
        ] {
            let spec = query(&json!({"prometheus": {"url": url, "query": "up"}}));
            let failure = Plan::read(&spec, &servers(), "ns").unwrap_err();
            assert_eq!(failure.reason, Reason::PrometheusNotAllowed, "{url}");
            assert!(failure.message.contains("http://a:9090, https://b/prometheus"), "{}", failure.message);
        }
        assert_eq!(reason(Plan::read(&query(&json!({})), &[], "ns")), "PrometheusNotConfigured");
    }

    #[test]
    fn headers_that_queries_may_not_have_are_reported() {
        let headers = |name: &str, value: &str| {
            query(&json!({"prometheus": {"query": "up", "headers": [{"name": name, "value": value}]}}))
        };
        assert!(Plan::read(&headers("X-Scope-OrgID", "team-a|team-b"), &servers(), "ns").is_ok());
        for (name, value) in [("Host", "a"), ("Content-Type", "a"), ("a b", "a"), ("X-Scope-OrgID", "a\nb")] {
            let failure = Plan::read(&headers(name, value), &servers(), "ns").unwrap_err();
            assert_eq!(failure.reason, Reason::InvalidSpec);
            assert!(failure.message.starts_with("spec.prometheus.headers: "), "{}", failure.message);
        }
    }

    #[test]
    fn quota_needs_no_prometheus_and_has_its_own_limit() {
        let spec = spec(&json!({"resourceQuota": {"name": "team-a", "resource": "requests.nvidia.com/gpu"}}));
        let plan = Plan::read(&spec, &[], "ns").unwrap();
        let amount = |text| Amount::quantity(text).unwrap();
        let facts = plan.facts(Figure { value: amount("3"), limit: Some(amount("4")) }, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(facts.metric, "team-a/requests.nvidia.com/gpu");
        assert_eq!(facts.percent().unwrap().to_string(), "75");
        let zero = Figure { value: amount("0"), limit: Some(amount("0")) };
        assert_eq!(reason(plan.facts(zero, Timestamp::UNIX_EPOCH)), "LimitIsZero");
    }

    #[test]
    fn invalid_specs_that_older_crds_admit_are_reported() {
        for (fields, says) in [
            (json!({"thresholds": ["many"]}), "spec.thresholds is \"many\""),
            (json!({"hysteresis": "little"}), "spec.hysteresis is \"little\""),
            (json!({"for": "soon"}), "spec.for is \"soon\""),
            (json!({"interval": "often"}), "spec.interval is \"often\""),
            (json!({"limit": "0"}), "spec.limit is \"0\""),
        ] {
            let failure = Plan::read(&query(&fields), &servers(), "ns").unwrap_err();
            assert!(failure.message.starts_with(says), "{}", failure.message);
            assert!(failure.reason == Reason::InvalidSpec && failure.reason.stalls());
        }
    }

    #[test]
    fn hysteresis_must_be_lower_than_every_threshold() {
        let facts = |fields: Value| {
            let plan = Plan::read(&query(&fields), &servers(), "ns").unwrap();
            reason(plan.facts(Figure { value: Amount::default(), limit: None }, Timestamp::UNIX_EPOCH))
        };
        assert_eq!(facts(json!({"hysteresis": "799M"})), "none");
        assert_eq!(facts(json!({"hysteresis": "800M"})), "HysteresisTooLarge");
        assert_eq!(facts(json!({"hysteresis": "5%", "thresholds": ["80%", "50M"]})), "HysteresisTooLarge");
        assert_eq!(facts(json!({"hysteresis": "5%", "thresholds": ["80%", "51M"]})), "none");
        let without_limit: UsageThresholdSpec = spec(&json!({"prometheus": {"query": "up"}}));
        let plan = Plan::read(&without_limit, &servers(), "ns").unwrap();
        assert_eq!(
            reason(plan.facts(Figure { value: Amount::default(), limit: None }, Timestamp::UNIX_EPOCH)),
            "InvalidSpec"
        );
    }

    #[test]
    fn quota_is_evaluated_between_changes_only_with_a_hold_time() {
        let again = |hold: &str| {
            let plan = Plan::read(&query(&json!({"for": hold, "interval": "60s"})), &servers(), "ns").unwrap();
            plan.look_again().map(|pause| pause.as_secs())
        };
        assert_eq!(["0s", "5s", "5m", "24h"].map(again), [None, Some(1), Some(30), Some(60)]);
    }
}
