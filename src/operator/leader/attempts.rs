//! Attempts: starts those that are due, records their outcomes, and publishes them.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::task::JoinError;
use tracing::{debug, warn};

use super::{Known, Leader};
use crate::{
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

/// The result of an attempt, and the part of its Webhook's target that was missing.
pub(super) type Ended = (Attempted, Option<Lost>);

/// Makes an attempt with the Webhook's target, which is read again if it is due. An attempt that panics has failed.
pub(super) async fn make(sender: &Sender, attempt: &Attempt, webhook: &Resolved) -> Ended {
    let Resolved { target: cached, format, timeout } = webhook;
    let made = async {
        let target = match cached.current().await {
            Ok(target) => target,
            Err(error) => {
                return (Attempted::withheld(attempt, true), Some((attempt.webhook, Arc::clone(cached), error)));
            }
        };
        let attempted = sender.attempt(attempt, &target, *format, *timeout).await;
        if attempted.target_may_be_stale {
            cached.expire();
        }
        (attempted, None)
    };
    // The future has 4 KiB, which would be moved a dozen times on the way into a task and out of it.
    caught(Box::pin(made)).await.unwrap_or_else(|| (Attempted::broken(attempt), None))
}

impl Leader {
    /// Starts the attempts that are due. Starts none if the claim has expired.
    pub(super) fn begin_due(&mut self) {
        if !self.claim.holds() {
            return;
        }
        let now = self.clock.now();
        while let Some(due) = self.engine.due(now) {
            match due {
                Due::Attempt(attempt) => self.begin(attempt),
                Due::GivenUp(recorded) => self.report_outcome(recorded, now),
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
            // A held Webhook starts none, and every other has a target.
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
            Err(error) => warn!(%error, "an attempt panicked"),
        }
    }

    fn publish_outcome(&mut self, (Attempted { outcome, refused, .. }, lost): Ended) {
        if let Some((refused, known)) = refused.zip(self.webhooks.get(&outcome.webhook)) {
            self.context.metrics.sent(&known.webhook, &refused);
        }
        self.lost(lost);
        self.follow_clock();
        let now = self.clock.now();
        if let Some(recorded) = self.engine.record_outcome(outcome, now, fastrand::f64()) {
            self.report_outcome(recorded, now);
        }
    }

    /// Has the watch check a Webhook whose target was missing.
    pub(super) fn lost(&self, lost: Option<Lost>) {
        if let Some(lost) = lost {
            // The receiver lives as long as this loop.
            let _ = self.lost_targets.send(lost);
        }
    }

    pub(super) fn report_outcome(&mut self, recorded: RecordedOutcome, now: Timestamp) {
        self.answer_again(&recorded, now);
        if recorded.dropped {
            self.count_dropped(recorded.webhook, DropReason::Bound, 1);
            self.note(Note::Dropped { webhook: recorded.webhook, pending: recorded.pending });
        }
        let Some(Known { webhook, .. }) = self.webhooks.get(&recorded.webhook) else { return };
        let latency = now.duration_since(recorded.event.observed_at).as_secs_f64();
        self.context.metrics.record_outcome(webhook, &recorded, latency);
        let error = recorded.error();
        let (namespace, name) = (webhook.namespace(), &webhook.name);
        let (event, id, attempt) = (recorded.event.event_type, recorded.event.id, recorded.attempt);
        if let Verdict::GivenUp(reason) = recorded.verdict {
            let error = error.unwrap_or(reason.message());
            warn!(namespace, webhook = name, %event, %id, attempt, error, "delivery exhausted");
        } else {
            debug!(
                namespace,
                webhook = name,
                %event,
                %id,
                attempt,
                traceparent = traceparent(id, recorded.delivery, attempt),
                error,
                verdict = ?recorded.verdict,
                "attempt"
            );
        }
        self.note(Note::RecordedOutcome { recorded: Box::new(recorded), at: now });
    }

    /// The object of a dead letter exists, or the delivery is dropped.
    pub(super) fn dead_letter_stored(&mut self, stored: DeadLetterStored) {
        // The object of a deleted Webhook is deleted with it. The delivery waits for a successor.
        if !self.webhooks.contains_key(&stored.webhook) {
            return;
        }
        self.engine.dead_letter_stored(stored.webhook, stored.delivery);
        if !stored.exists {
            self.count_dropped(stored.webhook, DropReason::NotKept, 1);
            self.note(Note::Dropped { webhook: stored.webhook, pending: self.engine.pending(stored.webhook) });
        }
    }

    pub(super) fn count_dropped(&self, uid: Uid, reason: DropReason, count: u64) {
        if let Some(Known { webhook, .. }) = self.webhooks.get(&uid) {
            let labels = [webhook.namespace(), &webhook.name, reason.label()];
            self.context.metrics.dropped.with_label_values(&labels).inc_by(count);
        }
    }
}
