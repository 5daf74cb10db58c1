//! Verifies the signature of a request. If it is invalid, this module finds the single change to the secret or the body
//! that makes it valid. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretSlice};

use super::{
    bodies::{bodies, is_as_written},
    json::Json,
    keys::keys,
    request::Request,
};
use llmtune_api::signature::{hexadecimal, sign};
use llmtune_api::webhook::Format;

/// The headers that carry the signature of the body. A receiver may read any of them.
const SIGNATURES: [(&str, &str); 3] = [
    ("x-llmtune-signature", "X-LLMTune-Signature"),
    ("x-hub-signature-256", "X-Hub-Signature-256"),
    ("x-signature", "X-Signature"),
];
const PREVIOUS: &str = "x-llmtune-signature-previous";
/// The clock tolerance of Standard Webhooks libraries, in seconds.
const TOLERANCE: i64 = 300;

/// The content that is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// The body, in the formats `LLMTune` and `CloudEvents`.
    Body,
    /// Id, time and body.
    StandardWebhooks,
}

impl Scheme {
    pub const fn of(format: Format) -> Self {
        match format {
            Format::LLMTune | Format::CloudEvents => Self::Body,
            Format::StandardWebhooks => Self::StandardWebhooks,
        }
    }

    /// The scheme that the headers indicate.
    fn indicated_by(request: &Request) -> Self {
        let signed = SIGNATURES.iter().any(|(name, _)| request.header(name).is_some());
        let standard =
            ["webhook-signature", "webhook-timestamp", "webhook-id"].iter().any(|name| request.header(name).is_some());
        if standard && !signed { Self::StandardWebhooks } else { Self::Body }
    }
}

/// A possible original, and the message if it matches. The message is `None` for the value as given.
pub struct Variant<T> {
    pub value: T,
    pub said: Option<String>,
}

impl<T> Variant<T> {
    pub const fn as_it_is(value: T) -> Self {
        Self { value, said: None }
    }

    pub fn said(value: T, said: impl Into<String>) -> Self {
        Self { value, said: Some(said.into()) }
    }
}

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub verified: bool,
    pub summary: String,
    /// Problems, each with advice. For a verified request, warnings.
    pub findings: Vec<String>,
}

impl Verdict {
    fn refused(summary: impl Into<String>, findings: Vec<String>) -> Self {
        Self { verified: false, summary: summary.into(), findings }
    }
}

/// Verifies a request with a secret, given as the contents of its file. `scheme` overrides the headers.
pub fn examine(request: &Request, secret: &SecretSlice<u8>, scheme: Option<Scheme>, now: Timestamp) -> Verdict {
    let indicated = Scheme::indicated_by(request);
    let mut verdict = match scheme.unwrap_or(indicated) {
        Scheme::Body => body(request, secret),
        Scheme::StandardWebhooks => standard_webhooks(request, secret, now),
    };
    if !verdict.verified {
        if scheme.is_some_and(|scheme| scheme != indicated) {
            let format = if indicated == Scheme::Body { "LLMTune or CloudEvents" } else { "StandardWebhooks" };
            verdict.findings.insert(
                0,
                format!(
                    "the headers are those of the format {format}; omit --format, or change the Webhook's spec.format"
                ),
            );
        }
        if let Some(length) = request.length().filter(|length| *length != request.body.len()) {
            let body = request.body.len();
            let advice = if body < length {
                "record the complete body"
            } else {
                "something changed it on the way, or the recording contains more than the body"
            };
            verdict.findings.push(format!("Content-Length is {length}, but the body has {body} bytes; {advice}"));
        }
    }
    verdict
}

fn body(request: &Request, secret: &SecretSlice<u8>) -> Verdict {
    let claims: Vec<(&str, &str)> =
        SIGNATURES.iter().filter_map(|(name, shown)| Some((*shown, request.header(name)?))).collect();
    let keys = keys(secret, Scheme::Body);
    let Some(plain) = keys.first() else { return Verdict::refused("the secret file contains no secret", Vec::new()) };
    let ours = sign(plain.value.expose_secret(), &request.body);
    let (sound, unsound): (Vec<_>, Vec<_>) = claims.iter().copied().partition(|(_, claim)| digits(claim) == ours);
    if let Some((header, _)) = sound.first() {
        let findings = unsound
            .iter()
            .map(|(other, _)| format!("{other} has another signature; check for a proxy that changes headers"));
        return Verdict {
            verified: true,
            summary: format!("{header} is the signature of the body"),
            findings: findings.collect(),
        };
    }
    let Some((header, claim)) = claims.first().copied() else {
        return Verdict::refused("the request has no signature", vec![without_signature(request, &ours)]);
    };
    let summary = format!("{header} is not the signature of the body");
    let expected = digits(claim);
    if expected.len() != 64 || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let problem = format!(
            "{header} is malformed; it must be 64 hexadecimal digits, after sha256= in X-Hub-Signature-256 and X-Signature"
        );
        return Verdict::refused(summary, vec![problem]);
    }
    let bodies = bodies(&request.body);
    for body in &bodies {
        for key in &keys {
            if sign(key.value.expose_secret(), &body.value) == expected {
                return Verdict::refused(summary, key.said.iter().chain(&body.said).cloned().collect());
            }
        }
    }
    let mut findings = Vec::new();
    if let Some(name) = header_with(request, &ours) {
        findings.push(format!(
            "{name} has the signature, but receivers do not read it; configure the proxy to keep the headers"
        ));
    }
    if request.header(PREVIOUS).map(digits) == Some(expected) {
        findings.push("the previous secret signed the request, because the secret is being replaced; answer 401, and the operator immediately sends the same attempt with the new secret".into());
    }
    findings.push(unexplained(&request.body));
    Verdict::refused(summary, findings)
}

/// Explains a missing signature.
fn without_signature(request: &Request, ours: &str) -> String {
    if let Some(name) = header_with(request, ours) {
        return format!(
            "the signature is in {name}, but receivers read X-LLMTune-Signature, X-Hub-Signature-256 or X-Signature; configure the proxy to keep these headers"
        );
    }
    if request.header(PREVIOUS).is_some() || request.header("x-llmtune-event").is_some() {
        return "set the Webhook's spec.secretRef, because without it nothing is signed; if it is set, check for a proxy that removes headers".into();
    }
    "the request has no headers of a delivery; pass the complete request, or add headers with -H 'X-LLMTune-Signature: …'".into()
}

/// The name of an unknown header that holds this signature.
fn header_with<'a>(request: &'a Request, signature: &str) -> Option<&'a str> {
    let known = |name: &str| SIGNATURES.iter().any(|(known, _)| *known == name) || name == PREVIOUS;
    let found = request.headers.iter().find(|(name, value)| !known(name) && digits(value) == signature);
    found.map(|(name, _)| name.as_str())
}

/// Advice if no single change explains the signature.
fn unexplained(body: &[u8]) -> String {
    if body.is_empty() {
        return "the body is empty; record it before anything reads it".into();
    }
    if is_as_written(body) {
        return "the body looks unchanged, so the secret is probably wrong; compare the file with kubectl get secret NAME -o jsonpath='{.data.secret}' | base64 -d | sha256sum, and check that the Webhook's spec.secretRef names that Secret".into();
    }
    match Json::read(body) {
        Some(_) => "the body was changed, or parsed and serialized again; verify the received bytes before anything parses them",
        None => "the body is not JSON, so it was changed or truncated; verify the received bytes before anything parses them",
    }
    .into()
}

/// The signature without its prefix.
fn digits(claim: &str) -> String {
    let claim = claim.trim();
    claim.strip_prefix("sha256=").unwrap_or(claim).to_lowercase()
}

fn standard_webhooks(request: &Request, secret: &SecretSlice<u8>, now: Timestamp) -> Verdict {
    let header = |name: &str| request.header(name).map(str::trim).filter(|value| !value.is_empty());
    let missing: Vec<&str> = ["webhook-id", "webhook-timestamp", "webhook-signature"]
        .into_iter()
        .filter(|name| header(name).is_none())
        .collect();
    let (Some(id), Some(time), Some(signatures)) =
        (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"))
    else {
        let problem = format!(
            "{} missing; check for a proxy that removes headers, and that the Webhook's spec.format is StandardWebhooks",
            missing.join(", ")
        );
        return Verdict::refused("the request has no signature of Standard Webhooks", vec![problem]);
    };
    let claims: Vec<&str> = signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).collect();
    let mut verdict = Verdict::refused("webhook-signature contains no signature of id, timestamp and body", Vec::new());
    if claims.is_empty() {
        verdict
            .findings
            .push("webhook-signature contains no signature v1,…; check for a proxy that changes headers".into());
        return verdict;
    }
    let matches = |key: &SecretSlice<u8>, content: &[u8]| {
        let digest = sign(key.expose_secret(), content);
        claims.iter().any(|claim| STANDARD.decode(claim).is_ok_and(|bytes| hexadecimal(&bytes) == digest))
    };
    for content in contents(request, id, time) {
        for key in keys(secret, Scheme::StandardWebhooks) {
            if !matches(&key.value, &content.value) {
                continue;
            }
            verdict.findings = key.said.iter().chain(&content.said).cloned().collect();
            if verdict.findings.is_empty() {
                verdict.verified = true;
                verdict.summary = "webhook-signature is the signature of id, timestamp and body".into();
                verdict.findings.extend(clock(time, now));
            }
            return verdict;
        }
    }
    if keys(secret, Scheme::StandardWebhooks).iter().all(|key| key.said.is_some()) {
        verdict.findings.push("the secret file contains no secret of Standard Webhooks; it must contain the same text as the Secret: whsec_ and the base64 of 24 to 64 bytes".into());
    } else {
        verdict.findings.push(unexplained(&request.body));
    }
    verdict.findings.extend(clock(time, now));
    verdict
}

/// Content that may have been signed: the correct content, the same with each possible body, and common mistakes.
fn contents(request: &Request, id: &str, time: &str) -> Vec<Variant<Vec<u8>>> {
    let content = |time: &str, body: &[u8]| [format!("{id}.{time}.").as_bytes(), body].concat();
    let bodies = bodies(&request.body);
    let mut all: Vec<Variant<Vec<u8>>> =
        bodies.into_iter().map(|body| Variant { value: content(time, &body.value), said: body.said }).collect();
    all.push(Variant::said(
        request.body.clone(),
        "only the body was signed; Standard Webhooks also sign id and timestamp",
    ));
    let seconds = time.parse::<i64>().ok().filter(|time| *time > 100_000_000_000).map(|millis| millis / 1000);
    let seconds = seconds.or_else(|| time.parse::<Timestamp>().ok().map(Timestamp::as_second));
    if let Some(seconds) = seconds {
        let said = "webhook-timestamp was changed; forward it unchanged, in whole seconds since 1970";
        all.push(Variant::said(content(&seconds.to_string(), &request.body), said));
    }
    all
}

/// The warning if the timestamp is outside the tolerance of the libraries.
fn clock(time: &str, now: Timestamp) -> Option<String> {
    let Ok(seconds) = time.parse::<i64>() else {
        return Some("webhook-timestamp is not a whole number of seconds since 1970; forward it unchanged".into());
    };
    let ago = now.as_second().saturating_sub(seconds);
    let (span, side) = if ago >= 0 { (ago, "behind") } else { (ago.saturating_neg(), "ahead of") };
    (span > TOLERANCE).then(|| {
        format!(
            "webhook-timestamp is {} {side} this clock, and libraries refuse more than 5m; verify requests immediately, and check the receiver's clock",
            crate::age::took(std::time::Duration::from_secs(span.unsigned_abs()))
        )
    })
}

#[cfg(test)]
mod tests;
