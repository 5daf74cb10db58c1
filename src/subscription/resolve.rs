//! From a Webhook's spec to what the engine schedules by and what an attempt needs. Reading a spec asks nobody; a [`Resolved`]
//! Webhook holds what it names, which keeps itself fresh.

use std::{fmt, sync::Arc, time::Duration};

use kube::core::Selector;
use reqwest::Url;

use super::{
    filter::Filter,
    index::{Scope, Subscription},
    secret::{KeyReference, SigningKey},
    tls::{KeptTls, TlsReference},
};
use crate::{
    api::{
        webhook::{self, CloudEventsMode, LabelSelector, WebhookSpec},
        webhook_delivery::WebhookKind,
    },
    delivery::schedule::Backoff,
    event::{
        EventSet,
        format::{Derived, Format},
        object::Uid,
    },
    expression::CompileError,
};

/// Which Webhook or `ClusterWebhook`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebhookRef {
    pub kind: WebhookKind,
    pub uid: Uid,
    /// The namespace of what it names and of its `WebhookDelivery` objects: its own, or the operator's where it is a `ClusterWebhook`.
    pub home: String,
    pub name: String,
}

impl WebhookRef {
    /// The namespace that it is in; empty for a `ClusterWebhook`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self.kind {
            WebhookKind::Webhook => &self.home,
            WebhookKind::ClusterWebhook => "",
        }
    }
}

/// As users name it, such as `Webhook ci`.
impl fmt::Display for WebhookRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// What a Webhook names, by what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Key(KeyReference),
    Tls(TlsReference),
}

/// A Webhook with all that an attempt needs; it cannot be had without what it names.
pub struct Resolved {
    /// Where to send.
    pub url: Url,
    /// The limit on one attempt.
    pub timeout: Duration,
    /// How events are written.
    pub format: Format,
    /// What to sign with; `None` where the Webhook names no Secret.
    pub key: Option<Arc<SigningKey>>,
    /// Its own TLS; `None` where it names none.
    pub tls: Option<Arc<KeptTls>>,
}

/// A spec that passed admission and yet cannot work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpecError {
    /// The url is none.
    #[error("spec.url cannot be used: {0}; write an absolute URL such as https://ci.example.com/hooks")]
    Url(String),
    /// The operator sends to https addresses only.
    #[error(
        "spec.url begins with http://, and this operator sends to https:// only (--require-https): have the endpoint speak TLS, and write https://"
    )]
    Http,
    /// A pattern selects no event.
    #[error("spec.events names {0:?}, which this release does not know: upgrade the operator or remove it")]
    Event(String),
    /// A duration is none.
    #[error("spec.delivery.{0} is {1:?}, which is no duration: write one such as 30s")]
    Duration(&'static str, String),
    /// The filter is no expression.
    #[error("spec.filter cannot be used: {0}")]
    Filter(#[from] CompileError),
}

impl SpecError {
    /// The reason that conditions and Events give.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Url(_) => "InvalidURL",
            Self::Http => "HTTPSRequired",
            Self::Event(_) => "UnknownEvent",
            Self::Duration(..) => "InvalidDuration",
            Self::Filter(_) => "InvalidFilter",
        }
    }
}

/// A spec, read and found usable.
#[derive(Clone, Debug)]
pub struct Plan {
    pub url: Url,
    pub timeout: Duration,
    pub format: Format,
    pub events: EventSet,
    pub selector: Selector,
    pub filter: Option<Filter>,
    pub max_retries: u32,
    pub backoff: Backoff,
    pub concurrency: usize,
    pub suspend: bool,
}

impl Plan {
    /// Reads a spec; `require_https` refuses every other scheme.
    pub fn read(spec: &WebhookSpec, require_https: bool) -> Result<Self, SpecError> {
        let url = Url::parse(&spec.url).map_err(|error| SpecError::Url(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(SpecError::Url("it has no http or https scheme or no host".into()));
        }
        if require_https && url.scheme() != "https" {
            return Err(SpecError::Http);
        }
        let policy = &spec.delivery;
        Ok(Self {
            url,
            timeout: duration("timeout", &policy.timeout)?,
            format: format(spec),
            events: EventSet::parse(&spec.events).map_err(SpecError::Event)?,
            selector: spec.selector.as_ref().map(LabelSelector::selector).unwrap_or_default(),
            filter: spec.filter.as_deref().map(Filter::read).transpose()?,
            max_retries: policy.max_retries.max(0).unsigned_abs(),
            backoff: Backoff {
                initial: duration("backoff.initial", &policy.backoff.initial)?,
                factor: policy.backoff.factor.max(1).unsigned_abs(),
                max: duration("backoff.max", &policy.backoff.max)?,
            },
            concurrency: policy.concurrency.max(1).unsigned_abs() as usize,
            suspend: spec.suspend,
        })
    }

    /// Scheme, host and port; never the path.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// What the engine schedules by.
    #[must_use]
    pub fn subscription(&self, webhook: Uid, scope: &Scope, generation: i64, held: bool) -> Subscription {
        Subscription {
            uid: webhook,
            scope: scope.clone(),
            generation,
            events: self.events,
            selector: self.selector.clone(),
            filter: self.filter.clone(),
            max_retries: self.max_retries,
            backoff: self.backoff,
            concurrency: self.concurrency,
            held: held || self.suspend,
        }
    }
}

fn format(spec: &WebhookSpec) -> Format {
    match spec.format {
        webhook::Format::LLMTune => Format::LlmTune,
        webhook::Format::StandardWebhooks => Format::Derived(Derived::StandardWebhooks),
        webhook::Format::CloudEvents => Format::Derived(match spec.cloud_events.unwrap_or_default().mode {
            CloudEventsMode::Binary => Derived::CloudEventsBinary,
            CloudEventsMode::Structured => Derived::CloudEventsStructured,
        }),
    }
}

/// The duration in this field.
pub fn duration(field: &'static str, text: &str) -> Result<Duration, SpecError> {
    crate::api::duration::read(text).ok_or_else(|| SpecError::Duration(field, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use kube::core::SelectorExt;

    use super::*;

    #[test]
    fn a_selector_matches_as_kubernetes_label_selectors_do() {
        let selector = LabelSelector::selector(
            &serde_json::from_value(serde_json::json!({
                "matchLabels": {"team": "research"},
                "matchExpressions": [
                    {"key": "tier", "operator": "NotIn", "values": ["dev"]},
                    {"key": "gpu", "operator": "Exists"},
                    {"key": "draft", "operator": "DoesNotExist"},
                ]
            }))
            .unwrap(),
        );
        let matches = |labels: &[(&str, &str)]| {
            selector.matches(&labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
        };
        assert!(matches(&[("team", "research"), ("gpu", "")]));
        assert!(matches(&[("team", "research"), ("gpu", "a100"), ("tier", "prod")]));
        assert!(!matches(&[("team", "research"), ("gpu", ""), ("tier", "dev")]));
        assert!(!matches(&[("team", "research")]));
        assert!(!matches(&[("team", "research"), ("gpu", ""), ("draft", "")]));
        assert!(!matches(&[("team", "other"), ("gpu", "")]));
    }
}
