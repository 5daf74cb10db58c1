//! What an attempt is made from, and what came of it. Pure.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use crate::event::{Event, id::DeliveryId, object::Uid};

/// An attempt to make.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    pub event: Arc<Event>,
    /// From 1.
    pub number: u32,
    /// The generation of the spec that it is made under.
    pub generation: i64,
    /// It sends a sample, and is not the engine's.
    pub test: bool,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub webhook: Uid,
    pub delivery: DeliveryId,
    /// The generation of the spec that the attempt was made under.
    pub generation: i64,
    pub result: AttemptResult,
    /// `None` where no request was made.
    pub exchange: Option<Exchange>,
}

/// The result of an attempt, as far as it decides what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// The endpoint acknowledged the delivery.
    Acknowledged,
    /// It did not; it may have said when to come again.
    Failed { retry_after: Option<Duration> },
    /// The endpoint asked for a pause: it answered 429 or 503 with a `Retry-After` greater than zero (RFC 6585, 4; RFC 9110, 10.2.3 and
    /// 15.6.4).
    Throttled { retry_after: Duration },
    /// It answered 410 Gone.
    Gone,
    /// No attempt was made; with `hold`, none is to be begun until the subscription is given anew.
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

/// How an attempt ended, by the metric's label.
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
    /// The endpoint's address is refused: nothing was connected to.
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

/// What passed between the operator and an endpoint in an attempt that was made.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub class: Class,
    /// The answer's status, where there was an answer.
    pub status: Option<StatusCode>,
    /// What went wrong, in at most 256 characters; nothing of the answer's body, the url's path or a secret.
    pub error: Option<String>,
    pub duration: Duration,
}

impl Exchange {
    /// The answer's status as a number, where there was an answer.
    #[must_use]
    pub fn status_code(&self) -> Option<u16> {
        self.status.map(|status| status.as_u16())
    }
}
