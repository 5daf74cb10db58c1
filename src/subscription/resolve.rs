//! From a Webhook's spec to what the engine schedules by and what an attempt needs. Reading a spec asks nobody; a [`Resolved`]
//! Webhook holds what it names, which keeps itself fresh.

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

/// A Webhook with all that an attempt needs; it cannot be had without what it names.
pub struct Resolved {
    /// Where to send, and with what.
    pub target: Arc<CachedTarget>,
    /// The limit on one attempt.
    pub timeout: Duration,
    /// How events are written.
    pub format: Format,
}

/// A spec that passed admission and yet cannot work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither a url nor where it lies, or both.
    #[error(
        "exactly one of spec.url and spec.urlFrom must be there: write url, or urlFrom where the URL itself is a secret"
    )]
    NoUrl,
    /// The url is none.
    #[error("spec.url cannot be used: {0}")]
    Url(#[from] UrlError),
    /// A header is none.
    #[error(
        "spec.headers names {0:?}, which cannot be sent so: write a header's name that is not reserved, and printable ASCII characters"
    )]
    Header(String),
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
            Self::NoUrl => "InvalidURL",
            Self::Url(error) => error.reason(),
            Self::Header(_) => "InvalidHeader",
            Self::Event(_) => "UnknownEvent",
            Self::Duration(..) => "InvalidDuration",
            Self::Filter(_) => "InvalidFilter",
        }
    }
}

/// A spec, read part by part: one that cannot be used leaves the others as they are.
///
/// The parts that decide which events are taken fall back on what worked, since an event that is not taken is lost. The parts that decide
/// where and how to send do not: deliveries wait, which loses nothing, while sending to an old URL or with an old key could undo a fix.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where and how to send. Deliveries wait while it is an error.
    pub dispatch: Result<Dispatch, SpecError>,
    /// The events that this release knows.
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
    /// Reads where and how to send; `require_https` refuses every other scheme.
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
    /// Reads a spec whose references are to objects of this namespace; `require_https` refuses every other scheme.
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

    /// What is wrong with the spec, if anything.
    #[must_use]
    pub fn error(&self) -> Option<&SpecError> {
        self.dispatch.as_ref().err().or(self.filter.as_ref().err()).or(self.unknown_event.as_ref())
    }

    /// What the engine schedules by, with the filter in force.
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

/// The duration in this field.
pub fn duration(field: &'static str, text: &str) -> Result<Duration, SpecError> {
    llmtune_api::duration::read(text).ok_or_else(|| SpecError::Duration(field, text.to_owned()))
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
