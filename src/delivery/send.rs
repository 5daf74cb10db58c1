//! One attempt: a signed POST and what the endpoint made of it.
//!
//! A 2xx status acknowledges; everything else, redirects included, is a failure. The time limit covers the whole request.
//! Of the answer at most [`MAX_ANSWER`] bytes are read, and only so that the connection can be used again.

use std::{error::Error as _, io, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use reqwest::{Client, Response, Url, redirect};
use tokio::time::{Instant, timeout};

use super::sign;
use crate::{
    engine::{Attempt, AttemptResult, Outcome},
    subscription::{
        resolve::Resolved,
        secret::{KeyReference, SecretError},
    },
};

/// Of an answer at most this much is read.
const MAX_ANSWER: usize = 64 * 1024;
/// How long the rest of an answer may take once its status is known. A slower one costs its connection, nothing else.
const DRAIN: Duration = Duration::from_secs(1);
/// A status's error text has at most this many characters.
const MAX_ERROR: usize = 256;

/// Whether an attempt may begin now: the leader's claim, checked at use.
pub type MayBegin = Arc<dyn Fn() -> bool + Send + Sync>;

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
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 8] = [
        Self::Success,
        Self::Redirect,
        Self::ClientError,
        Self::ServerError,
        Self::Timeout,
        Self::Connect,
        Self::Tls,
        Self::Protocol,
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
        }
    }

    const fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..300 => Self::Success,
            300..400 => Self::Redirect,
            400..500 => Self::ClientError,
            500..600 => Self::ServerError,
            _ => Self::Protocol,
        }
    }
}

/// An attempt that was made.
#[derive(Debug)]
pub struct Exchange {
    pub class: Class,
    /// The answer's status, where there was an answer.
    pub status: Option<StatusCode>,
    /// What went wrong, in at most 256 characters; nothing of the answer's body, the url's path or a secret.
    pub error: Option<String>,
    pub duration: Duration,
}

/// What became of an attempt.
#[derive(Debug)]
pub struct Attempted {
    /// For the engine.
    pub outcome: Outcome,
    /// `None` where no request was made.
    pub exchange: Option<Exchange>,
    /// The key that the Webhook signs with is gone: which, and why.
    pub lost_key: Option<(KeyReference, SecretError)>,
}

/// Sends deliveries over connections that all Webhooks share.
pub struct Sender {
    client: Client,
    may_begin: MayBegin,
}

impl Sender {
    /// A sender that trusts the system's roots and these certificates in addition.
    pub fn new(roots: Vec<reqwest::Certificate>, may_begin: MayBegin) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .user_agent(concat!("llmtune-webhooks/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .tls_certs_merge(roots)
            .tcp_nodelay(true)
            .pool_idle_timeout(Duration::from_secs(60))
            .build()?;
        Ok(Self { client, may_begin })
    }

    /// Makes one attempt; never longer than the Webhook's time limit, plus a second for the rest of the answer.
    pub async fn attempt(&self, attempt: &Attempt, webhook: &Resolved) -> Attempted {
        let key = match &webhook.key {
            None => None,
            Some(key) => match key.current().await {
                Ok(bytes) => Some(bytes),
                Err(error) => return withheld(attempt, true, Some((key.reference().clone(), error))),
            },
        };
        if !(self.may_begin)() {
            return withheld(attempt, false, None);
        }
        let begun = Instant::now();
        let body = attempt.event.body.close(Timestamp::now());
        let signature = key.map(|key| sign::signature(&key, body.as_bytes()));
        let request = self
            .client
            .post(webhook.url.clone())
            .headers(headers(attempt, signature.as_deref()))
            .timeout(webhook.timeout)
            .body(body);
        let answer = request.send().await;
        let duration = begun.elapsed();
        let (result, class, status, error) = match answer {
            Ok(response) => {
                let status = response.status();
                if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
                    && let Some(key) = &webhook.key
                {
                    key.expire();
                }
                let result = match status {
                    status if status.is_success() => AttemptResult::Acknowledged,
                    StatusCode::GONE => AttemptResult::Gone,
                    _ => AttemptResult::Failed { retry_after: retry_after(response.headers(), Timestamp::now()) },
                };
                let error = describe_status(status, response.headers(), &webhook.url, signature.is_some());
                drain(response).await;
                (result, Class::of(status), Some(status), error)
            }
            Err(error) => {
                let (class, text) = describe_error(&error, webhook.timeout);
                (AttemptResult::Failed { retry_after: None }, class, None, Some(text))
            }
        };
        let exchange = Exchange { class, status, error: error.map(shorten), duration };
        let outcome = Outcome {
            status_code: status.map(|status| status.as_u16()),
            error: exchange.error.clone(),
            ..outcome(attempt, result)
        };
        Attempted { outcome, exchange: Some(exchange), lost_key: None }
    }
}

impl Attempted {
    /// The attempt broke off inside the operator.
    #[must_use]
    pub fn broken(attempt: &Attempt) -> Self {
        let error = "the operator broke off the attempt: please report this with its log".to_owned();
        let exchange = Exchange { class: Class::Protocol, status: None, error: Some(error), duration: Duration::ZERO };
        let error = exchange.error.clone();
        let outcome = Outcome { error, ..outcome(attempt, AttemptResult::Failed { retry_after: None }) };
        Self { outcome, exchange: Some(exchange), lost_key: None }
    }

    /// No attempt was made, and none is to be until the subscription is given anew.
    #[must_use]
    pub fn withheld(attempt: &Attempt) -> Self {
        withheld(attempt, true, None)
    }
}

fn outcome(attempt: &Attempt, result: AttemptResult) -> Outcome {
    let Attempt { webhook, delivery, generation, .. } = *attempt;
    Outcome { webhook, delivery, generation, result, status_code: None, error: None }
}

fn withheld(attempt: &Attempt, hold: bool, lost_key: Option<(KeyReference, SecretError)>) -> Attempted {
    Attempted { outcome: outcome(attempt, AttemptResult::Withheld { hold }), exchange: None, lost_key }
}

const EVENT: HeaderName = HeaderName::from_static("x-llmtune-event");
const TEST: HeaderName = HeaderName::from_static("x-llmtune-test");
const ATTEMPT: HeaderName = HeaderName::from_static("x-llmtune-attempt");
const EVENT_ID: HeaderName = HeaderName::from_static("x-llmtune-event-id");
const DELIVERY_ID: HeaderName = HeaderName::from_static("x-llmtune-delivery-id");
const SIGNATURE: HeaderName = HeaderName::from_static("x-llmtune-signature");
/// The same signature under the names that GitHub's receivers and generic ones look for.
const PREFIXED_SIGNATURES: [HeaderName; 2] =
    [HeaderName::from_static("x-hub-signature-256"), HeaderName::from_static("x-signature")];

fn headers(attempt: &Attempt, signature: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(EVENT, HeaderValue::from_static(attempt.event.event_type.name()));
    if attempt.test {
        headers.insert(TEST, HeaderValue::from_static("true"));
    }
    headers.insert(ATTEMPT, HeaderValue::from(attempt.number));
    let mut text = |name: HeaderName, value: String| {
        // Ids and hexadecimal digits are always valid header values.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    text(EVENT_ID, attempt.event.id.to_string());
    text(DELIVERY_ID, attempt.delivery.to_string());
    if let Some(signature) = signature {
        text(SIGNATURE, signature.to_owned());
        for name in PREFIXED_SIGNATURES {
            text(name, format!("sha256={signature}"));
        }
    }
    headers
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
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Beyond u64 it is longer than any backoff.max.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = Timestamp::try_from(httpdate::parse_http_date(value).ok()?).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

fn describe_status(status: StatusCode, headers: &HeaderMap, url: &Url, signed: bool) -> Option<String> {
    if status.is_success() {
        return None;
    }
    let reason = status.canonical_reason().unwrap_or("unknown status");
    let code = status.as_u16();
    if !status.is_redirection() {
        let advice = match code {
            401 | 403 if signed => ": give the receiver the key that spec.secretRef names, byte for byte",
            401 | 403 => ": if the receiver checks signatures, name its key in spec.secretRef",
            404 | 405 => ": check the path in spec.url",
            413 => ": let the receiver take bodies of 256 KiB",
            _ => "",
        };
        return Some(format!("HTTP {code} {reason}{advice}"));
    }
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let host = location.and_then(|location| url.join(location).ok());
    Some(match host.as_ref().and_then(Url::host_str) {
        Some(host) => format!(
            "HTTP {code} {reason} to host {host}: redirects are not followed, write the final address in spec.url"
        ),
        None => format!("HTTP {code} {reason}: redirects are not followed, write the final address in spec.url"),
    })
}

/// The class of a failed request, and its innermost cause: the outer ones repeat the url.
fn describe_error(error: &reqwest::Error, limit: Duration) -> (Class, String) {
    let mut innermost: &(dyn std::error::Error + 'static) = error;
    let mut tls = None;
    loop {
        if let Some(found) = innermost.downcast_ref::<rustls::Error>() {
            tls = Some(found);
        }
        let inside = innermost.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match inside.map(|inside| inside as &(dyn std::error::Error + 'static)).or_else(|| innermost.source()) {
            Some(cause) => innermost = cause,
            None => break,
        }
    }
    if error.is_timeout() {
        let limit = limit.as_secs_f64();
        (Class::Timeout, format!("no answer within {limit} s: answer before any work, or raise spec.delivery.timeout"))
    } else if let Some(tls) = tls {
        (Class::Tls, format!("TLS: {}", describe_tls(tls)))
    } else if error.is_connect() {
        (Class::Connect, describe_connect(&innermost.to_string()))
    } else if error.source().is_none() {
        (Class::Protocol, "the request failed".into())
    } else {
        (Class::Protocol, format!("the connection broke: {innermost}"))
    }
}

fn describe_connect(cause: &str) -> String {
    let cause = cause.split(" (os error").next().unwrap_or(cause);
    match cause.strip_prefix("failed to lookup address information: ") {
        Some(cause) => format!("cannot find the host of spec.url: {cause}"),
        None => format!("cannot connect to the host and port of spec.url: {cause}"),
    }
}

fn describe_tls(error: &rustls::Error) -> String {
    use rustls::CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            Certificate::UnknownIssuer => {
                "the endpoint's certificate is issued by nobody whom the operator trusts: give it the issuer's with --ca-file".into()
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => {
                "the endpoint's certificate has expired: renew it".into()
            }
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
                "the endpoint's certificate is not valid yet: check its dates and the clocks".into()
            }
            Certificate::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                let names = presented.join(", ").replace("DnsName(\"", "").replace("\")", "");
                format!("the endpoint's certificate is not for the host in spec.url, but for {names}")
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "the endpoint's certificate is not for the host in spec.url".into()
            }
            Certificate::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                "the endpoint's certificate is that of a CA: let the CA issue another to the endpoint".into()
            }
            other => format!("the endpoint's certificate is refused: {other}"),
        },
        rustls::Error::InvalidMessage(_) => {
            "the endpoint does not speak TLS there: correct the port in spec.url, or write http:// if it is meant".into()
        }
        error => error.to_string(),
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
mod tests {
    use super::*;

    fn after(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_str(value).unwrap());
        retry_after(&headers, Timestamp::from_second(784_111_767).unwrap())
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_any_of_the_three_dates() {
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        for date in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(after(date), Some(Duration::from_secs(10)), "{date}");
        }
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-5", "1.5"] {
            assert_eq!(after(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_redirect_names_the_locations_host_and_never_its_path() {
        let url = Url::parse("https://a.example/hook").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, HeaderValue::from_static("https://b.example/secret-path"));
        let text = describe_status(StatusCode::FOUND, &headers, &url, true).unwrap();
        assert!(text.contains("b.example") && !text.contains("secret-path"), "{text}");
    }

    #[test]
    fn a_refusal_says_what_to_look_at() {
        let url = Url::parse("https://a.example/hook").unwrap();
        for (code, signed, says) in [
            (401, true, "HTTP 401 Unauthorized: give the receiver the key that spec.secretRef names, byte for byte"),
            (403, false, "HTTP 403 Forbidden: if the receiver checks signatures, name its key in spec.secretRef"),
            (404, true, "HTTP 404 Not Found: check the path in spec.url"),
            (503, true, "HTTP 503 Service Unavailable"),
        ] {
            let status = StatusCode::from_u16(code).unwrap();
            assert_eq!(describe_status(status, &HeaderMap::new(), &url, signed).as_deref(), Some(says));
        }
    }

    #[test]
    fn a_connection_that_fails_is_told_without_error_numbers() {
        assert_eq!(
            describe_connect("failed to lookup address information: Name or service not known"),
            "cannot find the host of spec.url: Name or service not known"
        );
        assert_eq!(
            describe_connect("Connection refused (os error 111)"),
            "cannot connect to the host and port of spec.url: Connection refused"
        );
    }

    #[test]
    fn a_certificate_that_is_refused_says_why_in_words() {
        use rustls::{CertificateError, Error, InvalidMessage, pki_types::ServerName};
        let other_name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("a.example").unwrap(),
            presented: vec!["DnsName(\"b.example\")".into(), "DnsName(\"c.example\")".into()],
        };
        for (error, says) in [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "--ca-file"),
            (Error::InvalidCertificate(CertificateError::Expired), "has expired: renew it"),
            (Error::InvalidCertificate(other_name), "but for b.example, c.example"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "does not speak TLS"),
        ] {
            let text = describe_tls(&error);
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn an_error_has_at_most_256_characters() {
        assert_eq!(shorten("é".repeat(300)).chars().count(), 256);
    }
}
