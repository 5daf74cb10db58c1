//! Deliveries: which attempt is due, and the effect of its outcome.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    Engine,
    pending::{Begin, StoreDeadLetter},
};
use crate::{
    attempt::{Attempt, AttemptResult, Exchange, Outcome},
    event::{Event, id::DeliveryId, object::Uid},
    ledger::contents::{GivenUp, Reason},
};

/// The next action for the leader.
#[derive(Debug)]
pub enum Due {
    /// Make an attempt, then pass its [`Outcome`] to [`Engine::record_outcome`].
    Attempt(Attempt),
    /// A delivery was given up without an attempt because its endpoint is gone.
    GivenUp(RecordedOutcome),
    /// Store a dead letter as an object, then call [`Engine::dead_letter_stored`].
    StoreDeadLetter(StoreDeadLetter),
}

/// The effect of an outcome on its delivery.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct RecordedOutcome {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    pub event: Arc<Event>,
    /// The last attempt made, starting at 1; 0 if there was none.
    pub attempt: u32,
    /// The request and response of this attempt; `None` if no request was made.
    pub exchange: Option<Exchange>,
    pub verdict: Verdict,
    /// The endpoint answered 410 Gone to the current spec and has acknowledged nothing since.
    pub endpoint_gone: bool,
    /// A redelivery that a user requested.
    pub again: bool,
    /// The endpoint asked for a pause. The delivery is retried after it.
    pub throttled: bool,
    /// The delivery was given up, and the bound on dead letters is reached.
    pub dropped: bool,
    /// Deliveries still pending for this Webhook.
    pub pending: usize,
}

impl RecordedOutcome {
    /// Reports whether this was a request after a failed attempt.
    #[must_use]
    pub const fn is_retry(&self) -> bool {
        self.attempt > 1 && self.exchange.is_some()
    }

    /// The error of this attempt, at most 256 characters.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.exchange.as_ref()?.error.as_deref()
    }
}

/// The decision on a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint acknowledged it.
    Delivered,
    /// It is retried at this time.
    Retry(Timestamp),
    /// It is given up.
    GivenUp(Reason),
}

impl Engine {
    /// Returns the next action that is due. Call it until it returns `None`.
    pub fn due(&mut self, now: Timestamp) -> Option<Due> {
        if let Some(keep) = self.pending.next_to_store() {
            return Some(Due::StoreDeadLetter(keep));
        }
        let Begin { webhook, delivery, event, attempt, endpoint_gone } = self.pending.begin(now)?;
        if !endpoint_gone {
            let generation = self.index.get(webhook).map_or(0, |subscription| subscription.generation);
            let number = attempt;
            return Some(Due::Attempt(Attempt { webhook, delivery, event, number, generation, test: false }));
        }
        self.pending.ended(webhook, delivery);
        // `attempt` is the one that would have been next.
        let given_up = GivenUp { attempts: attempt - 1, ..GivenUp::unattempted(Reason::EndpointGone, now) };
        Some(Due::GivenUp(self.give_up(webhook, event, given_up, None)))
    }

    /// Adjusts all timers after the clock behind `now` was stepped by `step`, so that each wait keeps its length.
    pub fn shift(&mut self, step: SignedDuration) {
        self.pending.shift(step);
    }

    /// Removes a dead letter that is stored as an object or never will be.
    pub fn dead_letter_stored(&mut self, webhook: Uid, delivery: DeliveryId) {
        self.pending.dead_letter_stored(webhook, delivery);
    }

    /// Sends an event to a Webhook again, with a full set of retries. Returns false if the delivery is already pending.
    pub fn redeliver(&mut self, webhook: Uid, event: &Arc<Event>) -> bool {
        self.index.get(webhook).is_some() && self.pending.enqueue_again(webhook, event)
    }

    /// Clears a 410: the endpoint acknowledged a request that is not one of the engine's deliveries.
    pub fn forgive(&mut self, webhook: Uid) {
        if self.index.get(webhook).is_some() {
            self.pending.queue(webhook).endpoint_gone = None;
            self.pending.wake(webhook);
        }
    }

    /// Returns the time of the next retry or end of a pause.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.pending.next_due()
    }

    /// Records the outcome of an attempt. `random` in [0, 1) is the jitter of the backoff before a retry. Returns
    /// `None` if no attempt was made or the Webhook was deleted during the attempt.
    pub fn record_outcome(&mut self, outcome: Outcome, now: Timestamp, random: f64) -> Option<RecordedOutcome> {
        let Outcome { webhook, delivery: id, generation, result, exchange } = outcome;
        let (webhook, id) = self.pending.successor(webhook, id);
        let delivery = self.pending.ended(webhook, id)?;
        let event = Arc::clone(&delivery.event);
        let (attempt, again) = (delivery.failed_attempts.saturating_add(1), delivery.again);
        let subscription = self.index.get(webhook)?;
        let current = generation == subscription.generation;
        let result = match result {
            // An answer from an endpoint that is no longer in the spec does not apply to the new one.
            AttemptResult::Gone if !current => AttemptResult::Failed { retry_after: None },
            AttemptResult::Throttled { .. } if !current => AttemptResult::Failed { retry_after: result.retry_after() },
            result => result,
        };
        let throttled = matches!(result, AttemptResult::Throttled { .. });
        if let Some(wait) = result.retry_after().filter(|_| throttled) {
            self.pending.pause(webhook, later(now, wait.min(subscription.backoff.max)));
        }
        let reason = match result {
            AttemptResult::Withheld { hold } => {
                self.pending.queue(webhook).held |= hold;
                self.pending.put_back(webhook, id);
                return None;
            }
            AttemptResult::Acknowledged => {
                if current {
                    self.pending.queue(webhook).endpoint_gone = None;
                }
                self.pending.remove(webhook, id);
                let recorded = self.recorded(webhook, event, attempt, exchange, Verdict::Delivered);
                return Some(RecordedOutcome { again, ..recorded });
            }
            AttemptResult::Gone => {
                self.pending.queue(webhook).endpoint_gone = Some(generation);
                Reason::EndpointGone
            }
            _ if attempt > subscription.max_retries => Reason::Exhausted,
            AttemptResult::Failed { .. } | AttemptResult::Throttled { .. } => {
                let wait = subscription.backoff.wait(attempt, random, result.retry_after());
                let due = later(now, wait);
                self.pending.wait(webhook, id, attempt, due, wait);
                let recorded = self.recorded(webhook, event, attempt, exchange, Verdict::Retry(due));
                return Some(RecordedOutcome { again, throttled, ..recorded });
            }
        };
        let status_code = exchange.as_ref().and_then(Exchange::status_code);
        let error = exchange.as_ref().and_then(|exchange| exchange.error.clone());
        let given_up = GivenUp { reason, at: now, attempts: attempt, status_code, error };
        Some(self.give_up(webhook, event, given_up, exchange))
    }

    fn give_up(
        &mut self,
        webhook: Uid,
        event: Arc<Event>,
        given_up: GivenUp,
        exchange: Option<Exchange>,
    ) -> RecordedOutcome {
        let (id, attempts, verdict) =
            (DeliveryId::new(event.id, webhook), given_up.attempts, Verdict::GivenUp(given_up.reason));
        let again = self.pending.is_again(webhook, id);
        let kept = self.pending.give_up(webhook, id, given_up);
        let dropped = !kept && !again;
        RecordedOutcome { again, dropped, ..self.recorded(webhook, event, attempts, exchange, verdict) }
    }

    /// Describes the result of a delivery that is not a redelivery.
    pub(super) fn recorded(
        &self,
        webhook: Uid,
        event: Arc<Event>,
        attempt: u32,
        exchange: Option<Exchange>,
        verdict: Verdict,
    ) -> RecordedOutcome {
        RecordedOutcome {
            webhook,
            delivery: DeliveryId::new(event.id, webhook),
            event,
            attempt,
            exchange,
            verdict,
            endpoint_gone: self.pending.is_endpoint_gone(webhook),
            again: false,
            throttled: false,
            dropped: false,
            pending: self.pending.count(webhook),
        }
    }
}

fn later(now: Timestamp, wait: Duration) -> Timestamp {
    now.checked_add(wait).unwrap_or(Timestamp::MAX)
}
