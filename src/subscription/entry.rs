//! One Webhook that is looked after: what is known of it, and how it therefore stands.

use std::{sync::Arc, time::Duration};

use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::{
    index::Subscription,
    resolve::{Plan, Resolved, SpecError, WebhookRef},
    secret::{Encoding, KeyReference, SecretError, SigningKey},
    watch::{Readiness, Standing, Update},
};
use crate::api::webhook::WebhookStatus;

/// A missing reference makes a Webhook `Stalled` after this long.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// How often a missing Secret is looked for: at first, and once it has been missing for [`LONG_MISSING`].
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN_LATER: Duration = Duration::from_secs(10);
const LONG_MISSING: Duration = Duration::from_secs(600);

/// A Webhook that is looked after.
pub(super) struct Entry {
    pub(super) webhook: WebhookRef,
    pub(super) generation: i64,
    pub(super) plan: Result<Plan, SpecError>,
    pub(super) reference: Option<KeyReference>,
    pub(super) key: Option<Arc<SigningKey>>,
    pub(super) found: Option<Box<WebhookStatus>>,
    pub(super) missing: Option<Missing>,
    pub(super) reading: bool,
}

/// What a Webhook lacks, and since when.
pub(super) struct Missing {
    pub(super) error: SecretError,
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
        let complete = self.reference.is_none() || self.key.is_some();
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
                key: self.key.clone(),
            })
        });
        let subscription = plan.subscription(&webhook, self.generation, !complete);
        Update { webhook, subscription, resolved, standing, found }
    }

    fn warnings(&self) -> Vec<(&'static str, String)> {
        let Some(reference) = &self.reference else {
            let note = "deliveries are not signed, so that the receiver cannot tell who sent them: name a Secret in spec.secretRef";
            return vec![("Unsigned", note.into())];
        };
        let raw = reference.encoding == Encoding::Raw;
        let newline = raw && self.key.as_ref().is_some_and(|key| key.copy_at_hand().expose_secret().ends_with(b"\n"));
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

impl Missing {
    /// What was just found missing.
    pub(super) fn new(error: SecretError) -> Self {
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
