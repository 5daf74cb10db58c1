//! One Webhook that is looked after: what is known of it, and how it therefore stands.

use std::{sync::Arc, time::Duration};

use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::{
    index::{Scope, Subscription},
    reference::{Kept, Reader, ReferenceError, Referent},
    resolve::{Plan, Resolved, SpecError, WebhookRef},
    secret::{Encoding, KeyReference},
    tls::TlsReference,
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
    pub(super) key: Slot<KeyReference>,
    pub(super) tls: Slot<TlsReference>,
    pub(super) found: Option<Box<WebhookStatus>>,
    pub(super) missing: Option<Missing>,
    pub(super) reading: bool,
}

/// Something that a Webhook may name.
pub(super) struct Slot<R: Referent> {
    pub(super) referent: Option<R>,
    pub(super) kept: Option<Arc<Kept<R>>>,
}

/// Something that a Webhook names, as it was found.
pub(super) struct Reading<R: Referent> {
    referent: R,
    result: Result<Kept<R>, ReferenceError>,
}

/// What a Webhook lacks, and since when.
pub(super) struct Missing {
    pub(super) error: ReferenceError,
    since: Instant,
    look_again: Instant,
    stalled: bool,
}

impl Entry {
    /// What to hand on; what was found in the cluster goes with the first.
    pub(super) fn update(&mut self) -> Update {
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
        let complete = self.is_complete();
        let readiness = match (&self.missing, complete) {
            (Some(missing), _) => Some(Readiness::Waiting {
                reason: missing.error.reason(),
                message: missing.error.to_string(),
                stalled: missing.stalled || missing.error.is_final(),
            }),
            (None, true) if plan.suspend => Some(Readiness::Suspended),
            (None, true) => Some(Readiness::Live),
            (None, false) => None,
        };
        let standing = readiness.map(|readiness| Standing {
            generation: self.generation,
            endpoint: plan.endpoint(),
            readiness,
            warnings: self.warnings(),
        });
        let resolved = complete.then(|| {
            Arc::new(Resolved {
                url: plan.url.clone(),
                timeout: plan.timeout,
                format: plan.format,
                key: self.key.kept.clone(),
                tls: self.tls.kept.clone(),
            })
        });
        let subscription = plan.subscription(webhook.uid, &self.scope, self.generation, !complete);
        Update { webhook, subscription, resolved, standing, found }
    }

    /// Whether its subscription depends on the labels of Namespaces.
    pub(super) fn selects_namespaces(&self) -> bool {
        self.plan.is_ok() && matches!(&self.scope, Scope::Cluster(selector) if !selector.selects_all())
    }

    /// What to hand on while Namespaces may not be listed, where nothing has been handed on yet.
    pub(super) fn without_namespaces(&mut self) -> Option<Update> {
        let plan = self.plan.as_ref().ok().filter(|_| self.selects_namespaces())?;
        let endpoint = plan.endpoint();
        let found = self.found.take()?;
        let message = "the operator may not list Namespaces, by whose labels spec.namespaceSelector selects: grant its service account list and watch on namespaces, as charts/kustomize/rbac.yaml does";
        let readiness = Readiness::Waiting { reason: "NamespacesForbidden", message: message.into(), stalled: false };
        let standing = Standing { generation: self.generation, endpoint, readiness, warnings: Vec::new() };
        let subscription = Subscription::inert(&self.webhook, self.generation);
        let webhook = self.webhook.clone();
        Some(Update { webhook, subscription, resolved: None, standing: Some(standing), found: Some(found) })
    }

    /// Whether all that it names is at hand.
    pub(super) const fn is_complete(&self) -> bool {
        self.key.is_complete() && self.tls.is_complete()
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let Some(reference) = &self.key.referent else {
            let note = "deliveries are not signed, so that the receiver cannot tell who sent them: name a Secret in spec.secretRef";
            return vec![("Unsigned", note.into())];
        };
        let raw = reference.encoding == Encoding::Raw;
        let newline =
            raw && self.key.kept.as_ref().is_some_and(|key| key.copy_at_hand().expose_secret().ends_with(b"\n"));
        if newline {
            let KeyReference { name, key, .. } = reference;
            let note = format!(
                "key {key:?} of Secret {name:?} ends in a newline, which is part of the key: receivers that trim it will refuse every signature"
            );
            return vec![("SecretEndsInNewline", note)];
        }
        Vec::new()
    }
}

impl<R: Referent> Slot<R> {
    /// What a spec names now; a copy of the same is kept.
    pub(super) fn new(referent: Option<R>, kept: Option<Arc<Kept<R>>>) -> Self {
        let kept = kept.filter(|kept| Some(kept.referent()) == referent.as_ref());
        Self { referent, kept }
    }

    const fn is_complete(&self) -> bool {
        self.referent.is_none() || self.kept.is_some()
    }

    /// What is to be read.
    pub(super) fn lacks(&self) -> Option<R> {
        self.referent.clone().filter(|_| self.kept.is_none())
    }

    /// Takes what was found, unless the spec has come to name something else; an error where it was found missing.
    pub(super) fn take(&mut self, reading: Option<Reading<R>>) -> Result<(), ReferenceError> {
        let reading = reading.filter(|reading| Some(&reading.referent) == self.referent.as_ref());
        if let Some(Reading { result, .. }) = reading {
            self.kept = Some(Arc::new(result?));
        }
        Ok(())
    }

    /// It was found missing when it was needed; whether the spec still names it.
    pub(super) fn lose(&mut self, referent: &R) -> bool {
        let named = self.referent.as_ref() == Some(referent);
        if named {
            self.kept = None;
        }
        named
    }
}

impl<R: Referent> Reading<R> {
    /// Reads what is named. One that panics counts as a failed reading, so that it is made again.
    pub(super) async fn make(reader: &Arc<Reader>, referent: Option<R>) -> Option<Self> {
        let referent = referent?;
        let reading = caught(Kept::read(Arc::clone(reader), referent.clone())).await;
        let result = reading.unwrap_or_else(|| Err(ReferenceError::broken(referent.named())));
        Some(Self { referent, result })
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
