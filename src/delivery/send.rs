//! Makes one attempt: sends a signed POST and classifies the response.
//!
//! 1. A 2xx status acknowledges. Every other status, redirects included, is a failure. The time limit covers the whole
//!    attempt.
//! 2. At most [`MAX_ANSWER`] bytes of a response are read, and only to reuse the connection.
//! 3. While the Secret has two keys, a request that is refused with one key is sent again with the other within the
//!    same attempt. The accepted key is used first from then on.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::{
    failure::{Redaction, describe_answer, describe_error},
    message::{Message, message},
    sign::{KeySlot, Keys},
    target::Target,
};
use crate::{
    claim::Claim,
    transport::{client::Response, clients::Clients},
};
use llmtune_core::attempt::{Attempt, AttemptResult, Class, Exchange, Outcome};
use llmtune_core::event::format::{Derived, Format};

/// The maximum size of a response that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// The time for the rest of a response. A slower response only closes its connection.
const DRAIN: Duration = Duration::from_secs(1);
/// The maximum length of an error text in a status, in characters.
const MAX_ERROR: usize = 256;

/// The result of an attempt.
#[derive(Debug)]
pub struct Attempted {
    /// The outcome for the engine.
    pub outcome: Outcome,
    /// The exchange before the repetition with the other key.
    pub refused: Option<Exchange>,
    /// The objects that the target was read from may have changed since.
    pub target_may_be_stale: bool,
}

/// Sends deliveries over shared connections.
pub struct Sender {
    clients: Arc<Clients>,
    claim: Claim,
}

impl Sender {
    /// Creates a sender that uses these clients.
    #[must_use]
    pub const fn new(clients: Arc<Clients>, claim: Claim) -> Self {
        Self { clients, claim }
    }

    /// Makes one attempt within this limit, plus one second to read the rest of each response.
    pub async fn attempt(&self, attempt: &Attempt, target: &Target, format: Format, limit: Duration) -> Attempted {
        if !self.claim.holds() {
            return Attempted::withheld(attempt, false);
        }
        let (now, deadline) = (Timestamp::now(), Instant::now() + limit);
        let keys = target.keys.as_deref();
        let post = async |which: Option<KeySlot>| {
            let keys = keys.zip(which);
            let message = message(attempt, format, &target.headers, keys, now)?;
            Some(self.post(message, target, limit, deadline).await)
        };
        let first = keys.map(Keys::first);
        let Some(mut answer) = post(first).await else { return Attempted::broken(attempt) };
        let mut refused = None;
        if let (Some(keys), Some(first)) = (keys, first)
            && let Some(other) = keys.other(first)
            // Standard Webhooks have a signature by each key.
            && format != Format::Derived(Derived::StandardWebhooks)
            && answer.is_refusal()
        {
            if !self.claim.holds() {
                return Attempted { refused: Some(answer.exchange), ..Attempted::withheld(attempt, false) };
            }
            // Set before the repetition, so that other attempts use the right key.
            keys.prefer(other);
            let Some(repeated) = post(Some(other)).await else { return Attempted::broken(attempt) };
            refused = Some(std::mem::replace(&mut answer, repeated).exchange);
            if answer.is_refusal() {
                keys.prefer(first);
            }
        }
        let target_may_be_stale = answer.doubts(target);
        Attempted { outcome: outcome(attempt, answer.result, Some(answer.exchange)), refused, target_may_be_stale }
    }

    /// Posts a message. `limit` is that of the whole attempt, which ends at `deadline`.
    async fn post(&self, message: Message, target: &Target, limit: Duration, deadline: Instant) -> Answer {
        let begun = Instant::now();
        let Message { headers, body } = message;
        let left = deadline.saturating_duration_since(begun);
        let sent = self.clients.post(&target.tenant, &target.url, target.tls.as_deref(), headers, body, left).await;
        let duration = begun.elapsed();
        let (result, class, status, error) = match sent {
            Ok(response) => {
                let status = response.status();
                let result = match status {
                    status if status.is_success() => AttemptResult::Acknowledged,
                    StatusCode::GONE => AttemptResult::Gone,
                    _ => failed(status, retry_after(response.headers(), Timestamp::now())),
                };
                let error = describe_answer(&response, target);
                drain(response).await;
                (result, Class::of(status), Some(status), error)
            }
            Err(error) => {
                let (class, text) = describe_error(&error, limit, target.discretion);
                (AttemptResult::Failed { retry_after: None }, class, None, Some(text))
            }
        };
        Answer { result, exchange: Exchange { class, status, error: error.map(shorten), duration } }
    }
}

/// The response to a request.
struct Answer {
    result: AttemptResult,
    exchange: Exchange,
}

impl Answer {
    /// Reports whether the endpoint rejected the signature.
    const fn is_refusal(&self) -> bool {
        matches!(self.exchange.status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }

    /// Reports whether the objects that the target was read from may have changed.
    fn doubts(&self, target: &Target) -> bool {
        let Exchange { class, status, .. } = &self.exchange;
        // An endpoint can close the connection because of a certificate without an alert.
        let is_broken = status.is_none() && matches!(class, Class::Tls | Class::Protocol);
        // A response of an old URL does not count for the new one.
        let is_elsewhere = *class != Class::Success && target.discretion == Redaction::Url;
        self.is_refusal() || is_broken || is_elsewhere
    }
}

impl Attempted {
    /// Returns the result of an attempt that panicked.
    #[must_use]
    pub fn broken(attempt: &Attempt) -> Self {
        let error = "the attempt panicked in the operator: please report this with its log".to_owned();
        let exchange = Exchange { class: Class::Protocol, status: None, error: Some(error), duration: Duration::ZERO };
        let result = AttemptResult::Failed { retry_after: None };
        Self { outcome: outcome(attempt, result, Some(exchange)), refused: None, target_may_be_stale: false }
    }

    /// Returns the result of an attempt that was not made. With `hold`, no other is made until the subscription
    /// changes.
    #[must_use]
    pub fn withheld(attempt: &Attempt, hold: bool) -> Self {
        let outcome = outcome(attempt, AttemptResult::Withheld { hold }, None);
        Self { outcome, refused: None, target_may_be_stale: false }
    }
}

fn outcome(attempt: &Attempt, result: AttemptResult, exchange: Option<Exchange>) -> Outcome {
    let Attempt { webhook, delivery, generation, .. } = *attempt;
    Outcome { webhook, delivery, generation, result, exchange }
}

/// Reads the rest of a short and quick response. Closes the connection of any other.
async fn drain(mut response: Response) {
    let read = async {
        let mut bytes = 0;
        while let Ok(Some(chunk)) = response.chunk().await {
            bytes += chunk.len();
            if bytes > MAX_ANSWER {
                break;
            }
        }
    };
    let _ = timeout(DRAIN, read).await;
}

/// Returns the time that the endpoint asks to wait (RFC 9110, 10.2.3), given in seconds or as a date.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number above u64 is longer than any backoff.max.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = Timestamp::try_from(httpdate::parse_http_date(value).ok()?).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// Returns the result of a response that does not acknowledge.
fn failed(status: StatusCode, retry_after: Option<Duration>) -> AttemptResult {
    match retry_after.filter(|wait| !wait.is_zero()) {
        Some(retry_after) if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            AttemptResult::Throttled { retry_after }
        }
        _ => AttemptResult::Failed { retry_after },
    }
}

/// Truncates a text to [`MAX_ERROR`] characters.
fn shorten(text: String) -> String {
    match text.char_indices().nth(MAX_ERROR) {
        None => text,
        Some((end, _)) => text[..end].to_owned(),
    }
}

#[cfg(test)]
mod tests;
