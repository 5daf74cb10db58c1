//! One Webhook that is looked after: what is known of it, and how it therefore stands.

use std::{sync::Arc, time::Duration};

use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::{
    index::{Scope, Subscription},
    kept::Kept,
    reader::Reader,
    reference::ReferenceError,
    resolve::{Plan, Resolved, SpecError, WebhookRef},
    secret::Encoding,
    target::References,
    watch::{Readiness, Standing, Update},
};
use crate::{api::webhook::WebhookStatus, panics::caught};

/// A missing reference makes a Webhook `Stalled` after this long.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How often a missing Secret is looked for: at first, and once it has been missing for [`LONG_MISSING`].
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN_LATER: Duration = Duration::from_secs(10);
const LONG_MISSING: Duration = Duration::from_secs(600);

/// A Webhook or `ClusterWebhook` that is looked after.
pub(super) struct Entry {
    pub(super) webhook: WebhookRef,
    pub(super) scope: Scope,
    pub(super) generation: i64,
    pub(super) plan: Result<Plan, SpecError>,
    /// Its target; `None` while it is not at hand.
    pub(super) kept: Option<Arc<Kept>>,
    pub(super) found: Option<Box<WebhookStatus>>,
    pub(super) missing: Option<Missing>,
    pub(super) reading: bool,
}

/// A target as it was found.
pub(super) struct Reading {
    references: References,
    result: Result<Kept, ReferenceError>,
}

/// What a Webhook lacks, and since when.
pub(super) struct Missing {
    pub(super) error: ReferenceError,
    since: Instant,
    look_again: Instant,
    stalled: bool,
}

impl Entry {
    /// What to hand on; what was found in the cluster goes with the first. `shared` tells who else signs with the same key.
    pub(super) fn update(&mut self, shared: Option<String>) -> Update {
        let found = self.found.take();
        let webhook = self.webhook.clone();
        let plan = match &self.plan {
            Ok(plan) => plan,
            Err(error) => {
                let readiness = Readiness::Broken { reason: error.reason(), message: error.to_string() };
                let standing =
                    Standing { generation: self.generation, endpoint: String::new(), readiness, warnings: Vec::new() };
                let subscription = Subscription::inert(&webhook, self.generation);
                return Update { webhook, subscription, resolved: None, standing: Some(standing), found };
            }
        };
        let readiness = match (&self.missing, &self.kept) {
            (Some(missing), _) => Some(Readiness::Waiting {
                reason: missing.error.reason(),
                message: missing.error.to_string(),
                stalled: missing.stalled || missing.error.is_final(),
            }),
            (None, Some(_)) if plan.suspend => Some(Readiness::Suspended),
            (None, Some(_)) => Some(Readiness::Live),
            (None, None) => None,
        };
        let standing = readiness.map(|readiness| Standing {
            generation: self.generation,
            endpoint: plan.references.url.endpoint(),
            readiness,
            warnings: self.warnings(&plan.references, shared),
        });
        let resolved = self.kept.clone();
        let resolved = resolved.map(|target| Arc::new(Resolved { target, timeout: plan.timeout, format: plan.format }));
        let subscription = plan.subscription(webhook.uid, &self.scope, self.generation, self.kept.is_none());
        Update { webhook, subscription, resolved, standing, found }
    }

    /// What its spec says now; a copy of the same target is kept.
    pub(super) fn new(
        webhook: WebhookRef,
        scope: Scope,
        generation: i64,
        plan: Result<Plan, SpecError>,
        kept: Option<Arc<Kept>>,
        reader: &Arc<Reader>,
    ) -> Self {
        let kept = plan.as_ref().ok().and_then(|Plan { references, .. }| {
            kept.filter(|kept| kept.references() == references)
                .or_else(|| Kept::given(reader, references).map(Arc::new))
        });
        Self { webhook, scope, generation, plan, kept, found: None, missing: None, reading: false }
    }

    /// Whether its subscription depends on the labels of Namespaces.
    pub(super) fn selects_namespaces(&self) -> bool {
        self.plan.is_ok() && matches!(&self.scope, Scope::Cluster(selector) if !selector.selects_all())
    }

    /// What to hand on while Namespaces may not be listed, where nothing has been handed on yet.
    pub(super) fn without_namespaces(&mut self) -> Option<Update> {
        let plan = self.plan.as_ref().ok().filter(|_| self.selects_namespaces())?;
        let endpoint = plan.references.url.endpoint();
        let found = self.found.take()?;
        let message = "the operator may not list Namespaces, by whose labels spec.namespaceSelector selects: grant its service account list and watch on namespaces, as charts/kustomize/rbac.yaml does";
        let readiness = Readiness::Waiting { reason: "NamespacesForbidden", message: message.into(), stalled: false };
        let standing = Standing { generation: self.generation, endpoint, readiness, warnings: Vec::new() };
        let subscription = Subscription::inert(&self.webhook, self.generation);
        let webhook = self.webhook.clone();
        Some(Update { webhook, subscription, resolved: None, standing: Some(standing), found: Some(found) })
    }

    /// What is to be read.
    pub(super) fn lacks(&self) -> Option<&References> {
        self.plan.as_ref().ok().map(|plan| &plan.references).filter(|_| self.kept.is_none())
    }

    /// Takes what was found, unless the spec has come to name something else; an error where it was found missing.
    pub(super) fn take(&mut self, reading: Reading) -> Result<(), ReferenceError> {
        if self.lacks() == Some(&reading.references) {
            self.kept = Some(Arc::new(reading.result?));
        }
        Ok(())
    }

    /// Something of it was found missing when it was needed. What the spec no longer names is not missed.
    pub(super) fn lose(&mut self, lost: &Arc<Kept>, error: ReferenceError) {
        if self.kept.take_if(|kept| Arc::ptr_eq(kept, lost)).is_some() {
            self.missing.get_or_insert_with(|| Missing::new(error));
        }
    }

    fn warnings(&self, references: &References, shared: Option<String>) -> Vec<(&'static str, String)> {
        let Some(reference) = &references.key else {
            let note = "deliveries are not signed, so that the receiver cannot tell who sent them: name a Secret in spec.secretRef";
            return vec![("Unsigned", note.into())];
        };
        let mut warnings: Vec<_> = shared.map(|note| ("SecretShared", note)).into_iter().collect();
        let target = self.kept.as_ref().map(|kept| kept.copy_at_hand());
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
        let reading = caught(Kept::read(Arc::clone(reader), references.clone())).await;
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
