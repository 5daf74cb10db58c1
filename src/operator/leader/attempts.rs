//! Attempts: begun when they are due, settled when they have ended, and told.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::task::JoinError;
use tracing::{debug, warn};

use super::{Known, Leader};
use crate::{
    calls::random,
    delivery::send::{Attempted, Sender},
    operator::metrics::DropReason,
    panics::caught,
    report::{
        Note,
        deliveries::{DeadLetterStored, Order},
    },
    subscription::{resolve::Resolved, watch::Lost},
};
use llmtune_core::{
    attempt::Attempt,
    engine::{Due, RecordedOutcome, Verdict},
    event::{id::traceparent, object::Uid},
};

/// What came of an attempt, and what of its Webhook's target was gone.
pub(super) type Ended = (Attempted, Option<Lost>);

/// Makes an attempt with what its Webhook names, read again where that is due. One that panics has failed.
pub(super) async fn make(sender: &Sender, attempt: &Attempt, webhook: &Resolved) -> Ended {
    let Resolved { target: kept, format, timeout } = webhook;
    let made = async {
        let target = match kept.current().await {
            Ok(target) => target,
            Err(error) => {
                return (Attempted::withheld(attempt, true), Some((attempt.webhook, Arc::clone(kept), error)));
            }
        };
        let attempted = sender.attempt(attempt, &target, *format, *timeout).await;
        if attempted.doubts_target {
            kept.expire();
        }
        (attempted, None)
    };
    // It takes 4 KiB, which would be moved a dozen times on the way into a task and out of it.
    caught(Box::pin(made)).await.unwrap_or_else(|| (Attempted::broken(attempt), None))
}

impl Leader {
    /// Begins what is due; nothing while the claim has lapsed.
    pub(super) fn begin_due(&mut self) {
        if !self.claim.holds() {
            return;
        }
        let now = self.clock.now();
        while let Some(due) = self.engine.due(now) {
            match due {
                Due::Attempt(attempt) => self.begin(attempt),
                Due::GivenUp(settled) => self.report_outcome(settled, now),
                Due::StoreDeadLetter(keep) => match self.webhooks.get(&keep.webhook) {
                    Some(known) => self.order(Order::StoreDeadLetter(known.webhook.clone(), keep)),
                    None => self.engine.dead_letter_stored(keep.webhook, keep.delivery),
                },
            }
        }
    }

    fn begin(&mut self, attempt: Attempt) {
        let resolved = self.webhooks.get(&attempt.webhook).and_then(|known| known.resolved.clone());
        let Some(resolved) = resolved else {
            // Held Webhooks begin nothing, and no other lacks what it needs.
            warn!(delivery = %attempt.delivery, "an attempt was due for a Webhook that is not ready");
            self.publish_outcome((Attempted::withheld(&attempt, true), None));
            return;
        };
        let sender = Arc::clone(&self.sender);
        self.attempts.spawn(async move { make(&sender, &attempt, &resolved).await });
    }

    pub(super) fn ended(&mut self, ended: Result<Ended, JoinError>) {
        match ended {
            Ok(ended) => self.publish_outcome(ended),
            Err(error) => warn!(%error, "an attempt broke off"),
        }
    }

    fn publish_outcome(&mut self, (Attempted { outcome, refused, .. }, lost): Ended) {
        if let Some((refused, known)) = refused.zip(self.webhooks.get(&outcome.webhook)) {
            self.context.metrics.sent(&known.webhook, &refused);
        }
        self.lost(lost);
        self.follow_clock();
        let now = self.clock.now();
        if let Some(settled) = self.engine.record_outcome(outcome, now, random()) {
            self.report_outcome(settled, now);
        }
    }

    /// Has a Webhook looked after whose target was gone.
    pub(super) fn lost(&self, lost: Option<Lost>) {
        if let Some(lost) = lost {
            // The controller lives as long as this loop.
            let _ = self.lost_targets.send(lost);
        }
    }

    pub(super) fn report_outcome(&mut self, settled: RecordedOutcome, now: Timestamp) {
        self.answer_again(&settled, now);
        if settled.dropped {
            self.count_dropped(settled.webhook, DropReason::Bound, 1);
            self.note(Note::Dropped { webhook: settled.webhook, pending: settled.pending });
        }
        let Some(Known { webhook, .. }) = self.webhooks.get(&settled.webhook) else { return };
        let latency = now.duration_since(settled.event.observed_at).as_secs_f64();
        self.context.metrics.record_outcome(webhook, &settled, latency);
        let error = settled.error();
        let (namespace, name) = (webhook.namespace(), &webhook.name);
        let (event, id, attempt) = (settled.event.event_type, settled.event.id, settled.attempt);
        if let Verdict::GivenUp(reason) = settled.verdict {
            let error = error.unwrap_or(reason.message());
            warn!(namespace, webhook = name, %event, %id, attempt, error, "delivery exhausted");
        } else {
            debug!(
                namespace,
                webhook = name,
                %event,
                %id,
                attempt,
                traceparent = traceparent(id, settled.delivery, attempt),
                error,
                verdict = ?settled.verdict,
                "attempt"
            );
        }
        self.note(Note::RecordedOutcome { settled: Box::new(settled), at: now });
    }

    /// A given-up delivery is an object now, or is dropped.
    pub(super) fn dead_letter_stored(&mut self, kept: DeadLetterStored) {
        // An object that belongs to a deleted Webhook goes with it. The delivery waits to be taken over.
        if !self.webhooks.contains_key(&kept.webhook) {
            return;
        }
        self.engine.dead_letter_stored(kept.webhook, kept.delivery);
        if !kept.landed {
            self.count_dropped(kept.webhook, DropReason::NotKept, 1);
            self.note(Note::Dropped { webhook: kept.webhook, pending: self.engine.pending(kept.webhook) });
        }
    }

    pub(super) fn count_dropped(&self, uid: Uid, reason: DropReason, count: u64) {
        if let Some(Known { webhook, .. }) = self.webhooks.get(&uid) {
            let labels = [webhook.namespace(), &webhook.name, reason.label()];
            self.context.metrics.dropped.with_label_values(&labels).inc_by(count);
        }
    }
}
