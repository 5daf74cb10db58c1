//! Converts a Webhook's spec to a subscription for the engine and to the settings of attempts. Reading a spec makes no
//! calls. A [`Resolved`] Webhook holds the target, which refreshes itself.

use std::{sync::Arc, time::Duration};

use kube::core::Selector;

use super::{
    cached_target::CachedTarget,
    header::HeaderReference,
    reference::{Named, Place, ReferenceKind},
    secret::KeyReference,
    target::References,
    tls::TlsReference,
    url::{self, UrlError, UrlReference},
};
use cel::CompileError;
use llmtune_api::secret::Encoding;
use llmtune_api::{
    selector::LabelSelector,
    webhook::{self, CloudEventsMode, WebhookSpec},
};
use llmtune_core::subscription::{
    WebhookRef,
    filter::Filter,
    index::{Scope, Subscription},
};
use llmtune_core::{
    event::{
        EventSet,
        format::{Derived, Format},
    },
    schedule::Backoff,
};

/// The settings of a Webhook for attempts. It exists only if all referenced objects have been read.
pub struct Resolved {
    /// The endpoint and the credentials.
    pub target: Arc<CachedTarget>,
    /// The time limit of one attempt.
    pub timeout: Duration,
    /// The format of the body.
    pub format: Format,
}

/// Why a spec that passed admission cannot work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither or both of `url` and `urlFrom` are set.
    #[error("exactly one of spec.url and spec.urlFrom must be set: set url, or urlFrom if the URL itself is a secret")]
    NoUrl,
    /// The URL is invalid.
    #[error("spec.url cannot be used: {0}")]
    Url(#[from] UrlError),
    /// A header is invalid.
    #[error(
        "spec.headers: the header {0:?} is invalid: use a name that is not reserved, and a value of printable ASCII characters"
    )]
    Header(String),
    /// A pattern matches no event of this release.
    #[error("spec.events names {0:?}, which this release does not know: upgrade the operator or remove it")]
    Event(String),
    /// A duration is invalid.
    #[error("spec.delivery.{0} is {1:?}, which is not a duration: write one such as 30s")]
    Duration(&'static str, String),
    /// The filter does not compile.
    #[error("spec.filter cannot be used: {0}")]
    Filter(#[from] CompileError),
}

impl SpecError {
    /// The reason in conditions and Events.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoUrl => "InvalidURL",
            Self::Url(error) => error.reason(),
            Self::Header(_) => "InvalidHeader",
            Self::Event(_) => "UnknownEvent",
            Self::Duration(..) => "InvalidDuration",
            Self::Filter(_) => "InvalidFilter",
        }
    }
}

/// A spec, read part by part. An invalid part does not affect the others.
///
/// The parts that decide which events match fall back to their last valid state, because an event that does not match
/// is lost. The parts that decide where and how to send do not fall back: deliveries wait, so nothing is lost, whereas
/// sending to an old URL or with an old key could undo a fix.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where and how to send. Deliveries wait while this is an error.
    pub dispatch: Result<Dispatch, SpecError>,
    /// The selected events that this release knows.
    pub events: EventSet,
    /// A name or pattern in `spec.events` that this release does not know.
    pub unknown_event: Option<SpecError>,
    pub selector: Selector,
    pub filter: Result<Option<Filter>, SpecError>,
}

/// Where and how to send.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub references: References,
    pub timeout: Duration,
    pub format: Format,
    pub max_retries: u32,
    pub backoff: Backoff,
    pub concurrency: usize,
    pub suspend: bool,
}

impl Dispatch {
    /// Reads where and how to send. With `require_https`, other schemes are errors.
    fn read(spec: &WebhookSpec, namespace: &str, require_https: bool) -> Result<Self, SpecError> {
        let url = match (&spec.url, &spec.url_from) {
            (Some(text), None) => UrlReference::Given(url::parse(text, require_https)?),
            (None, Some(source)) => UrlReference::Secret(Place::of(source, namespace)),
            _ => return Err(SpecError::NoUrl),
        };
        let headers = spec.headers.iter().map(|header| HeaderReference::read(header, namespace));
        let policy = &spec.delivery;
        Ok(Self {
            references: References {
                namespace: namespace.into(),
                url,
                require_https,
                headers: headers.collect::<Result<_, _>>()?,
                key: key(spec, namespace),
                tls: spec.tls.as_ref().and_then(|tls| TlsReference::of(tls, namespace)),
            },
            timeout: duration("timeout", &policy.timeout)?,
            format: format(spec),
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
}

impl Plan {
    /// Reads a spec. References are to objects in this namespace. With `require_https`, other schemes are errors.
    #[must_use]
    pub fn read(spec: &WebhookSpec, namespace: &str, require_https: bool) -> Self {
        let is_known = |pattern: &&str| EventSet::parse(&[*pattern]).is_ok();
        let (known, unknown): (Vec<&str>, Vec<&str>) = spec.events.iter().map(String::as_str).partition(is_known);
        Self {
            dispatch: Dispatch::read(spec, namespace, require_https),
            events: EventSet::parse(&known).unwrap_or_default(),
            unknown_event: unknown.first().map(|&pattern| SpecError::Event(pattern.to_owned())),
            selector: spec.selector.as_ref().map(LabelSelector::selector).unwrap_or_default(),
            filter: spec.filter.as_deref().map(Filter::read).transpose().map_err(SpecError::Filter),
        }
    }

    /// The first error in the spec, if there is one.
    #[must_use]
    pub fn error(&self) -> Option<&SpecError> {
        self.dispatch.as_ref().err().or(self.filter.as_ref().err()).or(self.unknown_event.as_ref())
    }

    /// The subscription for the engine, with the filter in force.
    #[must_use]
    pub fn subscription(
        &self,
        webhook: &WebhookRef,
        scope: &Scope,
        generation: i64,
        filter: Option<&Filter>,
        held: bool,
    ) -> Subscription {
        let inert = Subscription::inert(webhook, generation);
        let selective = Subscription {
            scope: scope.clone(),
            events: self.events,
            selector: self.selector.clone(),
            filter: filter.cloned(),
            ..inert
        };
        match &self.dispatch {
            Ok(dispatch) => Subscription {
                max_retries: dispatch.max_retries,
                backoff: dispatch.backoff,
                concurrency: dispatch.concurrency,
                held: held || dispatch.suspend,
                ..selective
            },
            Err(_) => selective,
        }
    }
}

fn key(spec: &WebhookSpec, namespace: &str) -> Option<KeyReference> {
    let secret = spec.secret_ref.as_ref()?;
    let object = Named { kind: ReferenceKind::Secret, namespace: namespace.to_owned(), name: secret.name.clone() };
    let encoding = match spec.format {
        webhook::Format::StandardWebhooks => Encoding::Whsec,
        webhook::Format::LLMTune | webhook::Format::CloudEvents => Encoding::Raw,
    };
    let place = Place { object, key: secret.key.clone() };
    Some(KeyReference { place, previous: secret.previous_key.clone(), encoding })
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

/// Parses the duration in `spec.delivery.{field}`.
pub fn duration(field: &'static str, text: &str) -> Result<Duration, SpecError> {
    llmtune_api::duration::read(text).ok_or_else(|| SpecError::Duration(field, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use kube::core::SelectorExt;

    use super::*;

    #[test]
    fn selector_matches_like_kubernetes_label_selectors() {
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
