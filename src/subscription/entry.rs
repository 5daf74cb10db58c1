//! The state of one Webhook in the controller, and the readiness that results from it.

use std::{sync::Arc, time::Duration};

use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::{
    cached_target::CachedTarget,
    owner::owner,
    reader::Reader,
    reference::ReferenceError,
    resolve::{Dispatch, Plan, Resolved},
    target::References,
    tls::BUNDLE_INVALID,
    watch::{Fault, Readiness, SubscriptionState, Update},
};
use crate::panics::caught;
use llmtune_api::secret::Encoding;
use llmtune_api::webhook::WebhookStatus;
use llmtune_core::event::EventSet;
use llmtune_core::subscription::{
    WebhookRef,
    filter::FilterInForce,
    index::{Scope, Subscription},
};

/// A missing reference makes a Webhook `Stalled` after this long.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// The interval between reads of a missing object, at first and after it has been missing for [`LONG_MISSING`].
const RETRY: Duration = Duration::from_secs(2);
const RETRY_LONG_MISSING: Duration = Duration::from_secs(10);
const LONG_MISSING: Duration = Duration::from_secs(600);

/// A Webhook or `ClusterWebhook` in the controller.
pub(super) struct SubscriptionEntry {
    pub(super) webhook: WebhookRef,
    pub(super) scope: Scope,
    pub(super) generation: i64,
    pub(super) plan: Plan,
    /// The filter in force. `None` if no filter of this Webhook was ever valid.
    pub(super) in_force: Option<FilterInForce>,
    /// The target, or `None` while it has not been read.
    pub(super) target: Option<Arc<CachedTarget>>,
    pub(super) found: Option<Box<WebhookStatus>>,
    pub(super) missing: Option<Missing>,
    pub(super) reading: bool,
    /// The last published warning about the CA bundle.
    published_bundle_warning: Option<String>,
}

/// The result of reading a target.
pub(super) struct Reading {
    references: References,
    result: Result<CachedTarget, ReferenceError>,
}

/// A reference that is missing, and since when.
pub(super) struct Missing {
    pub(super) error: ReferenceError,
    since: Instant,
    retry_at: Instant,
    stalled: bool,
}

impl SubscriptionEntry {
    /// Creates the entry for a spec. If the target has not changed, the copy in `target` stays in use. `before` is the
    /// filter that has been in force.
    pub(super) fn new(
        webhook: WebhookRef,
        scope: Scope,
        generation: i64,
        plan: Plan,
        target: Option<Arc<CachedTarget>>,
        before: Option<FilterInForce>,
        reader: &Arc<Reader>,
    ) -> Self {
        let target = plan.dispatch.as_ref().ok().and_then(|Dispatch { references, .. }| {
            target
                .filter(|target| target.references() == references)
                .or_else(|| CachedTarget::given(reader, references).map(Arc::new))
        });
        let in_force = match &plan.filter {
            Ok(filter) => Some(FilterInForce { generation, filter: filter.clone() }),
            Err(_) => before,
        };
        Self {
            webhook,
            scope,
            generation,
            plan,
            in_force,
            target,
            found: None,
            missing: None,
            reading: false,
            published_bundle_warning: None,
        }
    }

    /// The update to publish. The first one includes the status from the cluster. `shared` is the warning about other
    /// Webhooks that sign with the same key.
    pub(super) fn update(&mut self, shared: Option<String>) -> Update {
        self.published_bundle_warning = self.bundle_warning();
        let state = self.readiness().map(|readiness| {
            let warnings = self.references().map(|references| self.warnings(references, shared)).unwrap_or_default();
            self.state(readiness, warnings)
        });
        let resolved = self.target.clone().zip(self.plan.dispatch.as_ref().ok()).map(|(target, dispatch)| {
            Arc::new(Resolved { target, timeout: dispatch.timeout, format: dispatch.format })
        });
        let owner = self.references().map(|references| owner(&self.webhook, &references.url));
        let found = self.found.take();
        Update { webhook: self.webhook.clone(), subscription: self.subscription(), resolved, state, found, owner }
    }

    fn state(&self, readiness: Readiness, warnings: Vec<(&'static str, String)>) -> SubscriptionState {
        SubscriptionState {
            generation: self.generation,
            endpoint: self.references().map(|references| references.url.endpoint()).unwrap_or_default(),
            readiness,
            fault: self.fault(),
            in_force: self.in_force.as_ref().map(FilterInForce::record),
            warnings,
        }
    }

    /// The subscription for the engine. It matches nothing if no filter was ever valid.
    pub(super) fn subscription(&self) -> Subscription {
        let Some(FilterInForce { filter, .. }) = &self.in_force else {
            return Subscription::inert(&self.webhook, self.generation);
        };
        self.plan.subscription(&self.webhook, &self.scope, self.generation, filter.as_ref(), self.target.is_none())
    }

    /// The readiness, or `None` while it is unknown.
    fn readiness(&self) -> Option<Readiness> {
        let idle = match (&self.in_force, &self.plan.filter, &self.plan.unknown_event) {
            (None, Err(error), _) => {
                let consequence =
                    "this Webhook never had a valid filter, so it gets no events until this one is corrected";
                Some((error, consequence))
            }
            (_, _, Some(error)) if self.knows_no_event() => Some((error, "until then the Webhook gets no events")),
            _ => None,
        };
        if let Some((error, consequence)) = idle {
            return Some(Readiness::Broken { reason: error.reason(), message: format!("{error}; {consequence}") });
        }
        let dispatch = match &self.plan.dispatch {
            Ok(dispatch) => dispatch,
            Err(error) => {
                let message = format!("{error}; events wait until it is corrected");
                return Some(Readiness::Broken { reason: error.reason(), message });
            }
        };
        match (&self.missing, &self.target) {
            (Some(missing), _) => Some(Readiness::Waiting {
                reason: missing.error.reason(),
                message: missing.error.to_string(),
                stalled: missing.stalled || missing.error.is_final(),
            }),
            (None, Some(_)) if dispatch.suspend => Some(Readiness::Suspended),
            (None, Some(_)) => Some(Readiness::Live),
            (None, None) => None,
        }
    }

    /// An error in the spec that does not stop events, and what is in force instead.
    fn fault(&self) -> Option<Fault> {
        let in_force = self.in_force.as_ref()?;
        let (error, instead) = match (&self.plan.filter, &self.plan.unknown_event) {
            (Err(error), _) => {
                let generation = in_force.generation;
                let instead = match in_force.filter {
                    Some(_) => format!("until it is corrected, the filter of generation {generation} stays in force"),
                    None => format!("until it is corrected, no filter is in force, as in generation {generation}"),
                };
                (error, instead)
            }
            (Ok(_), Some(error)) if !self.knows_no_event() => {
                (error, "until then the other events in spec.events are sent".to_owned())
            }
            _ => return None,
        };
        Some(Fault { reason: error.reason(), message: format!("{error}; {instead}") })
    }

    fn knows_no_event(&self) -> bool {
        self.plan.events == EventSet::default()
    }

    /// Its references, if its spec is valid.
    pub(super) fn references(&self) -> Option<&References> {
        self.plan.dispatch.as_ref().ok().map(|dispatch| &dispatch.references)
    }

    /// Whether its subscription depends on the labels of Namespaces.
    pub(super) fn selects_namespaces(&self) -> bool {
        self.in_force.is_some() && matches!(&self.scope, Scope::Cluster(selector) if !selector.selects_all())
    }

    /// The update to publish if the operator may not list Namespaces and no update has been published yet.
    pub(super) fn without_namespaces(&mut self) -> Option<Update> {
        if !self.selects_namespaces() || self.found.is_none() {
            return None;
        }
        let message = "the operator may not list Namespaces, but spec.namespaceSelector needs their labels: grant its service account list and watch on namespaces, as charts/kustomize/rbac.yaml does";
        let readiness = Readiness::Waiting { reason: "NamespacesForbidden", message: message.into(), stalled: false };
        let state = Some(self.state(readiness, Vec::new()));
        let subscription = Subscription::inert(&self.webhook, self.generation);
        Some(Update { subscription, resolved: None, state, ..self.update(None) })
    }

    /// The references to read. `None` if the target has been read.
    pub(super) fn references_to_read(&self) -> Option<&References> {
        self.references().filter(|_| self.target.is_none())
    }

    /// Stores the target that was read, unless the references have changed since. Returns the error of the read.
    pub(super) fn take(&mut self, reading: Reading) -> Result<(), ReferenceError> {
        if self.references_to_read() == Some(&reading.references) {
            self.target = Some(Arc::new(reading.result?));
        }
        Ok(())
    }

    /// Records that an attempt found a reference missing. Ignored if the references have changed since.
    pub(super) fn lose(&mut self, lost: &Arc<CachedTarget>, error: ReferenceError) {
        if self.target.take_if(|target| Arc::ptr_eq(target, lost)).is_some() {
            self.missing.get_or_insert_with(|| Missing::new(error));
        }
    }

    /// Whether the warning about the CA bundle has changed since the last update.
    pub(super) fn bundle_warning_changed(&self) -> bool {
        self.published_bundle_warning != self.bundle_warning()
    }

    fn bundle_warning(&self) -> Option<String> {
        let tls = self.references()?.tls.as_ref()?;
        let target = self.target.as_ref()?.cached();
        target.tls.as_ref()?.warning().map(|problem| tls.warn_of(problem))
    }

    fn warnings(&self, references: &References, shared: Option<String>) -> Vec<(&'static str, String)> {
        let target = self.target.as_ref().map(|target| target.cached());
        let bundle = self.bundle_warning();
        let mut warnings: Vec<_> = bundle.map(|note| (BUNDLE_INVALID, note)).into_iter().collect();
        let Some(reference) = &references.key else {
            let note =
                "deliveries are not signed, so the receiver cannot verify the sender: name a Secret in spec.secretRef";
            warnings.push(("Unsigned", note.into()));
            return warnings;
        };
        warnings.extend(shared.map(|note| ("SecretShared", note)));
        let key = target.as_ref().and_then(|target| target.keys.as_ref()).map(|keys| keys.current());
        if reference.encoding == Encoding::Raw && key.is_some_and(|key| key.expose_secret().ends_with(b"\n")) {
            let (name, key) = (&reference.place.object.name, &reference.place.key);
            let note = format!(
                "key {key:?} of Secret {name:?} ends in a newline, which is part of the key: a receiver that trims its copy rejects every signature; write the key without the newline"
            );
            warnings.push(("SecretEndsInNewline", note));
        }
        warnings
    }
}

impl Reading {
    /// Reads a target. A panic counts as a failed read, so the read is retried.
    pub(super) async fn make(reader: &Arc<Reader>, references: References) -> Self {
        let reading = caught(CachedTarget::read(Arc::clone(reader), references.clone())).await;
        let result = reading.unwrap_or_else(|| Err(references.broken()));
        Self { references, result }
    }
}

impl Missing {
    /// A reference that has just been found missing.
    pub(super) fn new(error: ReferenceError) -> Self {
        let now = Instant::now();
        Self { error, since: now, retry_at: now + RETRY, stalled: false }
    }

    /// Whether it is time for another read.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.retry_at
    }

    /// Returns true once, when the reference has been missing for so long that the Webhook counts as stalled.
    pub(super) fn stalls(&mut self, now: Instant) -> bool {
        now >= self.since + STALLED_AFTER && !std::mem::replace(&mut self.stalled, true)
    }

    /// Schedules another read after a read at `now` failed.
    pub(super) fn retry_after(&mut self, now: Instant) {
        self.retry_at = now + if now < self.since + LONG_MISSING { RETRY } else { RETRY_LONG_MISSING };
    }
}
