//! The content of an attempt: the body in the Webhook's format, the headers and the signatures.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::sign::{KeySlot, Keys, standard_webhooks};
use llmtune_api::signature::sign;
use llmtune_core::attempt::Attempt;
use llmtune_core::event::{
    format::{Derived, Format},
    id::traceparent,
};
use secrecy::ExposeSecret;

const EVENT: HeaderName = HeaderName::from_static("x-llmtune-event");
const TEST: HeaderName = HeaderName::from_static("x-llmtune-test");
const ATTEMPT: HeaderName = HeaderName::from_static("x-llmtune-attempt");
const EVENT_ID: HeaderName = HeaderName::from_static("x-llmtune-event-id");
const DELIVERY_ID: HeaderName = HeaderName::from_static("x-llmtune-delivery-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const SIGNATURE: HeaderName = HeaderName::from_static("x-llmtune-signature");
const PREVIOUS_SIGNATURE: HeaderName = HeaderName::from_static("x-llmtune-signature-previous");
/// The headers in which receivers for GitHub and generic ones look for the signature.
const PREFIXED_SIGNATURES: [HeaderName; 2] =
    [HeaderName::from_static("x-hub-signature-256"), HeaderName::from_static("x-signature")];
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
/// The characters that the HTTP binding of `CloudEvents` encodes in a header value (3.1.3.2), besides non-ASCII ones.
const NOT_IN_A_HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The headers and the body of one attempt.
#[derive(Debug)]
pub struct Message {
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Builds the message of an attempt made `now`, with these additional headers, signed with one of the keys. Returns
/// `None` if the stored body cannot be converted to the format.
#[must_use]
pub fn message(
    attempt: &Attempt,
    format: Format,
    further: &HeaderMap,
    keys: Option<(&Keys, KeySlot)>,
    now: Timestamp,
) -> Option<Message> {
    let mut headers = headers(attempt, further);
    let body = match format {
        Format::LlmTune => {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let body = Bytes::from(attempt.event.body.close(now));
            sign_body(&mut headers, keys, &body);
            body
        }
        Format::Derived(format) => {
            let form = attempt.event.form(format)?;
            let content_type = match format {
                Derived::CloudEventsStructured => "application/cloudevents+json",
                Derived::StandardWebhooks | Derived::CloudEventsBinary => "application/json",
            };
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            for (name, value) in &form.attributes {
                attribute(&mut headers, name, value);
            }
            match format {
                Derived::StandardWebhooks => sign_message(&mut headers, attempt, keys, now, &form.body),
                Derived::CloudEventsBinary | Derived::CloudEventsStructured => {
                    sign_body(&mut headers, keys, &form.body);
                }
            }
            form.body.clone()
        }
    };
    Some(Message { headers, body })
}

/// The operator's own headers override others of the same name.
fn headers(attempt: &Attempt, further: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(12 + further.len());
    headers.extend(further.iter().map(|(name, value)| (name.clone(), value.clone())));
    headers.insert(EVENT, HeaderValue::from_static(attempt.event.event_type.name()));
    if attempt.test {
        headers.insert(TEST, HeaderValue::from_static("true"));
    }
    headers.insert(ATTEMPT, HeaderValue::from(attempt.number));
    text(&mut headers, EVENT_ID, attempt.event.id.to_string());
    text(&mut headers, DELIVERY_ID, attempt.delivery.to_string());
    text(&mut headers, TRACEPARENT, traceparent(attempt.event.id, attempt.delivery, attempt.number));
    headers
}

fn sign_body(headers: &mut HeaderMap, keys: Option<(&Keys, KeySlot)>, body: &[u8]) {
    let Some((keys, which)) = keys else { return };
    let previous = keys.previous().map(|key| sign(key.expose_secret(), body));
    let signature = match (&previous, which) {
        (Some(previous), KeySlot::Previous) => previous.clone(),
        _ => sign(keys.current().expose_secret(), body),
    };
    for name in PREFIXED_SIGNATURES {
        text(headers, name, format!("sha256={signature}"));
    }
    text(headers, SIGNATURE, signature);
    if let Some(previous) = previous {
        text(headers, PREVIOUS_SIGNATURE, previous);
    }
}

fn sign_message(
    headers: &mut HeaderMap,
    attempt: &Attempt,
    keys: Option<(&Keys, KeySlot)>,
    now: Timestamp,
    body: &[u8],
) {
    let (id, timestamp) = (attempt.event.id.to_string(), now.as_second());
    if let Some((keys, _)) = keys {
        text(headers, WEBHOOK_SIGNATURE, standard_webhooks(keys, &id, timestamp, body));
    }
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp));
    text(headers, WEBHOOK_ID, id);
}

/// Adds an attribute of a `CloudEvent` in binary mode.
fn attribute(headers: &mut HeaderMap, name: &str, value: &str) {
    // The names consist of letters only.
    if let Ok(name) = HeaderName::try_from(format!("ce-{name}")) {
        text(headers, name, utf8_percent_encode(value, NOT_IN_A_HEADER).to_string());
    }
}

fn text(headers: &mut HeaderMap, name: HeaderName, value: String) {
    // Ids, digits, base64 and percent-encoded texts are always valid header values.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
