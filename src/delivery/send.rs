//! One attempt: a signed POST and what the endpoint made of it.
//!
//! 1. A 2xx status acknowledges; everything else, redirects included, is a failure. The time limit covers the whole attempt.
//! 2. Of the answer at most [`MAX_ANSWER`] bytes are read, and only so that the connection can be used again.
//! 3. While the Secret has two keys, what is refused with one of them is sent at once with the other, as the same attempt; the endpoint is then
//!    taken to have the one that it did not refuse.

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

/// Of an answer at most this much is read.
const MAX_ANSWER: usize = 64 * 1024;
/// How long the rest of an answer may take once its status is known. A slower one costs its connection, nothing else.
const DRAIN: Duration = Duration::from_secs(1);
/// A status's error text has at most this many characters.
const MAX_ERROR: usize = 256;

/// What became of an attempt.
#[derive(Debug)]
pub struct Attempted {
    /// For the engine.
    pub outcome: Outcome,
    /// What came of it before it was repeated with the other key.
    pub refused: Option<Exchange>,
    /// What the target was read from may have changed since.
    pub doubts_target: bool,
}

/// Sends deliveries over connections that all Webhooks share.
pub struct Sender {
    clients: Arc<Clients>,
    claim: Claim,
}

impl Sender {
    /// A sender over these clients.
    #[must_use]
    pub const fn new(clients: Arc<Clients>, claim: Claim) -> Self {
        Self { clients, claim }
    }

    /// Makes one attempt, never longer than this limit, plus a second for the rest of each answer.
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
            // Those bear a signature by each.
            && format != Format::Derived(Derived::StandardWebhooks)
            && answer.is_refusal()
        {
            if !self.claim.holds() {
                return Attempted { refused: Some(answer.exchange), ..Attempted::withheld(attempt, false) };
            }
            // At once, so that what begins meanwhile is not refused as well.
            keys.prefer(other);
            let Some(repeated) = post(Some(other)).await else { return Attempted::broken(attempt) };
            refused = Some(std::mem::replace(&mut answer, repeated).exchange);
            if answer.is_refusal() {
                keys.prefer(first);
            }
        }
        let doubts_target = answer.doubts(target);
        Attempted { outcome: outcome(attempt, answer.result, Some(answer.exchange)), refused, doubts_target }
    }

    /// Posts a message; `limit`: of the whole attempt, which ends at `deadline`.
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

/// What an endpoint made of a request.
struct Answer {
    result: AttemptResult,
    exchange: Exchange,
}

impl Answer {
    /// Whether the endpoint took the sender for somebody else.
    const fn is_refusal(&self) -> bool {
        matches!(self.exchange.status, Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN))
    }

    /// Whether what the target was read from may have changed since.
    fn doubts(&self, target: &Target) -> bool {
        let Exchange { class, status, .. } = &self.exchange;
        // An endpoint may close the connection on a certificate without a word.
        let is_broken = status.is_none() && matches!(class, Class::Tls | Class::Protocol);
        // What was answered at an old url says nothing of the new one.
        let is_elsewhere = *class != Class::Success && target.discretion == Redaction::Url;
        self.is_refusal() || is_broken || is_elsewhere
    }
}

impl Attempted {
    /// The attempt broke off inside the operator.
    #[must_use]
    pub fn broken(attempt: &Attempt) -> Self {
        let error = "the operator broke off the attempt: please report this with its log".to_owned();
        let exchange = Exchange { class: Class::Protocol, status: None, error: Some(error), duration: Duration::ZERO };
        let result = AttemptResult::Failed { retry_after: None };
        Self { outcome: outcome(attempt, result, Some(exchange)), refused: None, doubts_target: false }
    }

    /// No attempt was made; with `hold`, none is to be until the subscription is given anew.
    #[must_use]
    pub fn withheld(attempt: &Attempt, hold: bool) -> Self {
        let outcome = outcome(attempt, AttemptResult::Withheld { hold }, None);
        Self { outcome, refused: None, doubts_target: false }
    }
}

fn outcome(attempt: &Attempt, result: AttemptResult, exchange: Option<Exchange>) -> Outcome {
    let Attempt { webhook, delivery, generation, .. } = *attempt;
    Outcome { webhook, delivery, generation, result, exchange }
}

/// Reads the rest of a short, quick answer; the connection of any other is closed.
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

/// When the endpoint wishes to be asked again (RFC 9110, 10.2.3): seconds, or a date.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Beyond u64 it is longer than any backoff.max.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = Timestamp::try_from(httpdate::parse_http_date(value).ok()?).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// The result of an answer that does not acknowledge.
fn failed(status: StatusCode, retry_after: Option<Duration>) -> AttemptResult {
    match retry_after.filter(|wait| !wait.is_zero()) {
        Some(retry_after) if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
            AttemptResult::Throttled { retry_after }
        }
        _ => AttemptResult::Failed { retry_after },
    }
}

/// Cuts a text to [`MAX_ERROR`] characters.
fn shorten(text: String) -> String {
    match text.char_indices().nth(MAX_ERROR) {
        None => text,
        Some((end, _)) => text[..end].to_owned(),
    }
}

#[cfg(test)]
mod tests;
