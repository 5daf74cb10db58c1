//! One Webhook that is looked after: what is known of it, and how it therefore stands.

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
    watch::{Fault, Readiness, Standing, Update},
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
/// How often a missing Secret is looked for: at first, and once it has been missing for [`LONG_MISSING`].
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN_LATER: Duration = Duration::from_secs(10);
const LONG_MISSING: Duration = Duration::from_secs(600);

/// A Webhook or `ClusterWebhook` that is looked after.
pub(super) struct SubscriptionEntry {
    pub(super) webhook: WebhookRef,
    pub(super) scope: Scope,
    pub(super) generation: i64,
    pub(super) plan: Plan,
    /// The filter that events are judged by; `None` where none was ever valid.
    pub(super) in_force: Option<FilterInForce>,
    /// Its target; `None` while it is not at hand.
    pub(super) kept: Option<Arc<CachedTarget>>,
    pub(super) found: Option<Box<WebhookStatus>>,
    pub(super) missing: Option<Missing>,
    pub(super) reading: bool,
    /// What was handed on of a bundle that is used but for a part of it.
    warned_of_bundle: Option<String>,
}

/// A target as it was found.
pub(super) struct Reading {
    references: References,
    result: Result<CachedTarget, ReferenceError>,
}

/// What a Webhook lacks, and since when.
pub(super) struct Missing {
    pub(super) error: ReferenceError,
    since: Instant,
    look_again: Instant,
    stalled: bool,
}

impl SubscriptionEntry {
    /// What its spec says now. A copy of the same target is kept. `before`: the filter in force until now.
    pub(super) fn new(
        webhook: WebhookRef,
        scope: Scope,
        generation: i64,
        plan: Plan,
        kept: Option<Arc<CachedTarget>>,
        before: Option<FilterInForce>,
        reader: &Arc<Reader>,
    ) -> Self {
        let kept = plan.dispatch.as_ref().ok().and_then(|Dispatch { references, .. }| {
            kept.filter(|kept| kept.references() == references)
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
            kept,
            found: None,
            missing: None,
            reading: false,
            warned_of_bundle: None,
        }
    }

    /// What to hand on; what was found in the cluster goes with the first. `shared` tells who else signs with the same key.
    pub(super) fn update(&mut self, shared: Option<String>) -> Update {
        self.warned_of_bundle = self.bundle_warning();
        let standing = self.readiness().map(|readiness| {
            let warnings = self.references().map(|references| self.warnings(references, shared)).unwrap_or_default();
            self.standing(readiness, warnings)
        });
        let resolved = self.kept.clone().zip(self.plan.dispatch.as_ref().ok()).map(|(target, dispatch)| {
            Arc::new(Resolved { target, timeout: dispatch.timeout, format: dispatch.format })
        });
        let owner = self.references().map(|references| owner(&self.webhook, &references.url));
        let found = self.found.take();
        Update { webhook: self.webhook.clone(), subscription: self.subscription(), resolved, standing, found, owner }
    }

    fn standing(&self, readiness: Readiness, warnings: Vec<(&'static str, String)>) -> Standing {
        Standing {
            generation: self.generation,
            endpoint: self.references().map(|references| references.url.endpoint()).unwrap_or_default(),
            readiness,
            fault: self.fault(),
            in_force: self.in_force.as_ref().map(FilterInForce::record),
            warnings,
        }
    }

    /// For the engine: to nothing while there is no filter to judge events by.
    pub(super) fn subscription(&self) -> Subscription {
        let Some(FilterInForce { filter, .. }) = &self.in_force else {
            return Subscription::inert(&self.webhook, self.generation);
        };
        self.plan.subscription(&self.webhook, &self.scope, self.generation, filter.as_ref(), self.kept.is_none())
    }

    /// `None` while it is not known yet.
    fn readiness(&self) -> Option<Readiness> {
        let idle = match (&self.in_force, &self.plan.filter, &self.plan.unknown_event) {
            (None, Err(error), _) => {
                let say = "this Webhook never had a valid filter, so it gets no events until this one is corrected";
                Some((error, say))
            }
            (_, _, Some(error)) if self.knows_no_event() => Some((error, "it gets no events until then")),
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
        match (&self.missing, &self.kept) {
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

    /// What is wrong with the spec although events are taken, and what is in force instead.
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

    /// What it names, if its spec can be read.
    pub(super) fn references(&self) -> Option<&References> {
        self.plan.dispatch.as_ref().ok().map(|dispatch| &dispatch.references)
    }

    /// Whether its subscription depends on the labels of Namespaces.
    pub(super) fn selects_namespaces(&self) -> bool {
        self.in_force.is_some() && matches!(&self.scope, Scope::Cluster(selector) if !selector.selects_all())
    }

    /// What to hand on while Namespaces may not be listed, where nothing has been handed on yet.
    pub(super) fn without_namespaces(&mut self) -> Option<Update> {
        if !self.selects_namespaces() || self.found.is_none() {
            return None;
        }
        let message = "the operator may not list Namespaces, by whose labels spec.namespaceSelector selects: grant its service account list and watch on namespaces, as charts/kustomize/rbac.yaml does";
        let readiness = Readiness::Waiting { reason: "NamespacesForbidden", message: message.into(), stalled: false };
        let standing = Some(self.standing(readiness, Vec::new()));
        let subscription = Subscription::inert(&self.webhook, self.generation);
        Some(Update { subscription, resolved: None, standing, ..self.update(None) })
    }

    /// What is to be read.
    pub(super) fn lacks(&self) -> Option<&References> {
        self.references().filter(|_| self.kept.is_none())
    }

    /// Takes what was found, unless the spec has come to name something else; an error where it was found missing.
    pub(super) fn take(&mut self, reading: Reading) -> Result<(), ReferenceError> {
        if self.lacks() == Some(&reading.references) {
            self.kept = Some(Arc::new(reading.result?));
        }
        Ok(())
    }

    /// Something of it was found missing when it was needed. What the spec no longer names is not missed.
    pub(super) fn lose(&mut self, lost: &Arc<CachedTarget>, error: ReferenceError) {
        if self.kept.take_if(|kept| Arc::ptr_eq(kept, lost)).is_some() {
            self.missing.get_or_insert_with(|| Missing::new(error));
        }
    }

    /// Whether its bundle has changed so that the user is to be told.
    pub(super) fn has_another_bundle_warning(&self) -> bool {
        self.warned_of_bundle != self.bundle_warning()
    }

    fn bundle_warning(&self) -> Option<String> {
        let tls = self.references()?.tls.as_ref()?;
        let target = self.kept.as_ref()?.copy_at_hand();
        target.tls.as_ref()?.warning().map(|problem| tls.warn_of(problem))
    }

    fn warnings(&self, references: &References, shared: Option<String>) -> Vec<(&'static str, String)> {
        let target = self.kept.as_ref().map(|kept| kept.copy_at_hand());
        let bundle = self.bundle_warning();
        let mut warnings: Vec<_> = bundle.map(|note| (BUNDLE_INVALID, note)).into_iter().collect();
        let Some(reference) = &references.key else {
            let note = "deliveries are not signed, so that the receiver cannot tell who sent them: name a Secret in spec.secretRef";
            warnings.push(("Unsigned", note.into()));
            return warnings;
        };
        warnings.extend(shared.map(|note| ("SecretShared", note)));
        let key = target.as_ref().and_then(|target| target.keys.as_ref()).map(|keys| keys.current());
        if reference.encoding == Encoding::Raw && key.is_some_and(|key| key.expose_secret().ends_with(b"\n")) {
            let (name, key) = (&reference.place.object.name, &reference.place.key);
            let note = format!(
                "key {key:?} of Secret {name:?} ends in a newline, which is part of the key: receivers that trim it will refuse every signature"
            );
            warnings.push(("SecretEndsInNewline", note));
        }
        warnings
    }
}

impl Reading {
    /// Reads a target. A reading that panics counts as a failed one, so that it is made again.
    pub(super) async fn make(reader: &Arc<Reader>, references: References) -> Self {
        let reading = caught(CachedTarget::read(Arc::clone(reader), references.clone())).await;
        let result = reading.unwrap_or_else(|| Err(references.broken()));
        Self { references, result }
    }
}

impl Missing {
    /// What was just found missing.
    pub(super) fn new(error: ReferenceError) -> Self {
        let now = Instant::now();
        Self { error, since: now, look_again: now + LOOK_AGAIN, stalled: false }
    }

    /// Whether it is time to look again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.look_again
    }

    /// Whether it has been missing for so long that the Webhook counts as stalled; tells so once.
    pub(super) fn stalls(&mut self, now: Instant) -> bool {
        now >= self.since + STALLED_AFTER && !std::mem::replace(&mut self.stalled, true)
    }

    /// It was looked for at `now`, and is still missing.
    pub(super) fn look_again_after(&mut self, now: Instant) {
        self.look_again = now + if now < self.since + LONG_MISSING { LOOK_AGAIN } else { LOOK_AGAIN_LATER };
    }
}
