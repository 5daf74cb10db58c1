//! What becomes of deliveries: which attempt is due, and what its outcome means.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    Engine,
    pending::{Begin, StoreDeadLetter},
};
use crate::{
    delivery::attempt::{Attempt, AttemptResult, Exchange, Outcome},
    event::{Event, id::DeliveryId, object::Uid},
    ledger::contents::{GivenUp, Reason},
};

/// What the engine wants done now.
#[derive(Debug)]
pub enum Due {
    /// An attempt is to be made; its [`Outcome`] must be settled.
    Attempt(Attempt),
    /// A delivery is given up without an attempt: its endpoint is gone.
    GivenUp(RecordedOutcome),
    /// A given-up delivery is to become an object; then [`Engine::kept`] is to be told.
    StoreDeadLetter(StoreDeadLetter),
}

/// What an outcome meant for its delivery.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct RecordedOutcome {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    pub event: Arc<Event>,
    /// The last attempt that was made, from 1; 0 where none was.
    pub attempt: u32,
    /// What passed between the operator and the endpoint just now; `None` where no request was made.
    pub exchange: Option<Exchange>,
    pub verdict: Verdict,
    /// The endpoint has answered 410 Gone to the spec as it stands, and has acknowledged nothing since.
    pub endpoint_gone: bool,
    /// It was asked for again.
    pub again: bool,
    /// The endpoint asked for a pause, and the delivery is retried after it.
    pub throttled: bool,
    /// It was given up, and there is no room to keep it as an object.
    pub dropped: bool,
    /// Deliveries of this Webhook that are still pending.
    pub pending: usize,
}

impl RecordedOutcome {
    /// Whether it was sent once more after a failure.
    #[must_use]
    pub const fn is_retry(&self) -> bool {
        self.attempt > 1 && self.exchange.is_some()
    }

    /// What went wrong just now, in at most 256 characters.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.exchange.as_ref()?.error.as_deref()
    }
}

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Delivered,
    /// It is tried again at this time.
    Retry(Timestamp),
    /// It is given up.
    GivenUp(Reason),
}

impl Engine {
    /// The next thing to do now; call until `None`.
    pub fn due(&mut self, now: Timestamp) -> Option<Due> {
        if let Some(keep) = self.pending.next_to_keep() {
            return Some(Due::StoreDeadLetter(keep));
        }
        let Begin { webhook, delivery, event, attempt, endpoint_gone } = self.pending.begin(now)?;
        if !endpoint_gone {
            let generation = self.index.get(webhook).map_or(0, |subscription| subscription.generation);
            let number = attempt;
            return Some(Due::Attempt(Attempt { webhook, delivery, event, number, generation, test: false }));
        }
        self.pending.ended(webhook, delivery);
        // The attempt that would have been was not made.
        let given_up = GivenUp { attempts: attempt - 1, ..GivenUp::unattempted(Reason::EndpointGone, now) };
        Some(Due::GivenUp(self.give_up(webhook, event, given_up, None)))
    }

    /// The clock that `now` is taken from was set forward by so much, or back: what waits for a time waits as long as it would have.
    pub fn shift(&mut self, step: SignedDuration) {
        self.pending.shift(step);
    }

    /// A given-up delivery has become an object, or never will.
    pub fn dead_letter_stored(&mut self, webhook: Uid, delivery: DeliveryId) {
        self.pending.dead_letter_stored(webhook, delivery);
    }

    /// Sends an event again to a Webhook, with retries anew; false where it is pending there already.
    pub fn redeliver(&mut self, webhook: Uid, event: &Arc<Event>) -> bool {
        self.index.get(webhook).is_some() && self.pending.enqueue_again(webhook, event)
    }

    /// The endpoint acknowledged something outside the engine's own deliveries: it is not gone.
    pub fn forgive(&mut self, webhook: Uid) {
        if self.index.get(webhook).is_some() {
            self.pending.queue(webhook).endpoint_gone = None;
            self.pending.wake(webhook);
        }
    }

    /// When [`Self::due`] will have something new to do of its own accord.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.pending.next_due()
    }

    /// Takes in how an attempt ended. `random` in [0, 1) varies the wait before a retry. `None` where no attempt was made, or the Webhook
    /// was deleted meanwhile.
    pub fn record_outcome(&mut self, outcome: Outcome, now: Timestamp, random: f64) -> Option<RecordedOutcome> {
        let Outcome { webhook, delivery: id, generation, result, exchange } = outcome;
        let (webhook, id) = self.pending.successor(webhook, id);
        let delivery = self.pending.ended(webhook, id)?;
        let event = Arc::clone(&delivery.event);
        let (attempt, again) = (delivery.failed_attempts.saturating_add(1), delivery.again);
        let subscription = self.index.get(webhook)?;
        let current = generation == subscription.generation;
        let result = match result {
            // The answer of an endpoint that the spec no longer names says nothing of the new one.
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
                let settled = self.recorded(webhook, event, attempt, exchange, Verdict::Delivered);
                return Some(RecordedOutcome { again, ..settled });
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
                let settled = self.recorded(webhook, event, attempt, exchange, Verdict::Retry(due));
                return Some(RecordedOutcome { again, throttled, ..settled });
            }
        };
        let status_code = exchange.as_ref().and_then(Exchange::status_code);
        let error = exchange.as_ref().and_then(|exchange| exchange.error.clone());
        let given_up = GivenUp { reason, at: now, attempts: attempt, status_code, error };
        Some(self.give_up(webhook, event, given_up, exchange))
    }

    /// Gives a delivery up.
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

    /// What has become of an event's delivery that nobody asked for again.
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
