//! Attempts and their outcomes. Pure.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use crate::event::{Event, id::DeliveryId, object::Uid};

/// An attempt to make.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    pub event: Arc<Event>,
    /// Starting at 1.
    pub number: u32,
    /// The generation of the Webhook's spec.
    pub generation: i64,
    /// It sends a sample and does not come from the engine.
    pub test: bool,
}

/// The outcome of an attempt.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    /// The generation of the Webhook's spec at the start of the attempt.
    pub generation: i64,
    pub result: AttemptResult,
    /// `None` if no request was made.
    pub exchange: Option<Exchange>,
}

/// The result of an attempt that decides what happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// The endpoint acknowledged the delivery.
    Acknowledged,
    /// It did not acknowledge. It may have asked to wait.
    Failed { retry_after: Option<Duration> },
    /// The endpoint asked for a pause: it answered 429 or 503 with a `Retry-After` above zero (RFC 6585, 4; RFC 9110,
    /// 10.2.3 and 15.6.4).
    Throttled { retry_after: Duration },
    /// It answered 410 Gone.
    Gone,
    /// No attempt was made. With `hold`, none starts until the subscription changes.
    Withheld { hold: bool },
}

impl AttemptResult {
    /// How long the endpoint asked the sender to wait.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Failed { retry_after } => retry_after,
            Self::Throttled { retry_after } => Some(retry_after),
            Self::Acknowledged | Self::Gone | Self::Withheld { .. } => None,
        }
    }
}

/// The class of an outcome, for the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Success,
    Redirect,
    ClientError,
    ServerError,
    Timeout,
    Connect,
    Tls,
    Protocol,
    /// The endpoint's address is refused. No connection was made.
    Address,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 9] = [
        Self::Success,
        Self::Redirect,
        Self::ClientError,
        Self::ServerError,
        Self::Timeout,
        Self::Connect,
        Self::Tls,
        Self::Protocol,
        Self::Address,
    ];

    /// The value of the label `outcome`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Address => "address",
        }
    }

    pub const fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..300 => Self::Success,
            300..400 => Self::Redirect,
            400..500 => Self::ClientError,
            500..600 => Self::ServerError,
            _ => Self::Protocol,
        }
    }
}

/// What happened between the operator and the endpoint in an attempt.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub class: Class,
    /// The status of the response, if there was one.
    pub status: Option<StatusCode>,
    /// The error in at most 256 characters, without the response's body, the URL's path or a secret.
    pub error: Option<String>,
    pub duration: Duration,
}

impl Exchange {
    /// Returns the status of the response as a number, if there was one.
    #[must_use]
    pub fn status_code(&self) -> Option<u16> {
        self.status.map(|status| status.as_u16())
    }
}
