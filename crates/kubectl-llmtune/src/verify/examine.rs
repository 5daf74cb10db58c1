//! Verifies the signature of a request. If it is invalid, this module reports the most likely reason: a wrong secret, a
//! body that was parsed and serialized again, or headers that were changed. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use llmtune_api::{
    secret::{Encoding, ExposeSecret, SecretSlice},
    signature::{TOLERANCE, sign, sign_standard_webhooks},
    webhook::Format,
};

use super::{json::compact, request::Request};

/// The headers that carry the signature of the body. A receiver can read any of them.
const SIGNATURES: [(&str, &str); 3] = [
    ("x-llmtune-signature", "X-LLMTune-Signature"),
    ("x-hub-signature-256", "X-Hub-Signature-256"),
    ("x-signature", "X-Signature"),
];
const PREVIOUS: &str = "x-llmtune-signature-previous";

const NEWLINE_IN_FILE: &str = "the secret file ends in a line break, but the signing key does not; remove it (write the file with printf %s, or trim it)";
const NEWLINE_IN_SECRET: &str = "the Secret in the cluster ends in a line break, but this file does not; store the Secret again without it (printf %s instead of echo), or add it to the receiver's key";
const BASE64_IN_FILE: &str =
    "the secret file contains the base64 of the secret, as kubectl get secret -o yaml shows it; decode it (base64 -d)";
const REWRITTEN: &str = "the body was parsed and serialized again, with different white space; verify the received bytes before anything parses them (express.raw(), request.get_data(), io.ReadAll)";

/// What is signed.
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

    /// Returns the scheme that the headers indicate.
    fn indicated_by(request: &Request) -> Self {
        let has = |name: &&str| request.header(name).is_some();
        let signed = SIGNATURES.iter().any(|(name, _)| has(name));
        let standard = ["webhook-signature", "webhook-timestamp", "webhook-id"].iter().any(has);
        if standard && !signed { Self::StandardWebhooks } else { Self::Body }
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
        Scheme::Body => body(request, secret.expose_secret()),
        Scheme::StandardWebhooks => standard_webhooks(request, secret.expose_secret(), now),
    };
    if verdict.verified {
        return verdict;
    }
    if scheme.is_some_and(|scheme| scheme != indicated) {
        let format = if indicated == Scheme::Body { "LLMTune or CloudEvents" } else { "StandardWebhooks" };
        let finding =
            format!("the headers are those of the format {format}; omit --format, or change the Webhook's spec.format");
        verdict.findings.insert(0, finding);
    }
    let size = request.body.len();
    if let Some(length) = request.length().filter(|length| *length != size) {
        let advice = if size < length {
            "record the complete body"
        } else {
            "something changed it on the way, or the recording contains more than the body"
        };
        verdict.findings.push(format!("Content-Length is {length}, but the body has {size} bytes; {advice}"));
    }
    verdict
}

/// Returns the secret and common variants of it, each with the mistake that it stands for.
fn secrets(given: &[u8]) -> Vec<(Vec<u8>, Option<&'static str>)> {
    let trimmed = given.trim_ascii_end();
    let mut all = vec![(given.to_vec(), None)];
    if trimmed == given {
        all.push(([given, b"\n"].concat(), Some(NEWLINE_IN_SECRET)));
    } else {
        all.push((trimmed.to_vec(), Some(NEWLINE_IN_FILE)));
    }
    if let Ok(decoded) = STANDARD.decode(trimmed) {
        all.push((decoded, Some(BASE64_IN_FILE)));
    }
    all
}

/// Returns the body, and the body as the operator would write it.
fn bodies(body: &[u8]) -> Vec<(Vec<u8>, Option<&'static str>)> {
    let rewritten = compact(body).map(|text| (text.into_bytes(), Some(REWRITTEN)));
    std::iter::once((body.to_vec(), None)).chain(rewritten.filter(|(text, _)| text != body)).collect()
}

/// Returns the mistakes that explain the signature, or `None` if no secret and body have it.
fn explained(
    request: &Request,
    secrets: &[(Vec<u8>, Option<&'static str>)],
    matches: impl Fn(&[u8], &[u8]) -> bool,
) -> Option<Vec<String>> {
    let bodies = bodies(&request.body);
    let pairs = bodies.iter().flat_map(|body| secrets.iter().map(move |secret| (secret, body)));
    pairs
        .into_iter()
        .find(|((secret, _), (body, _))| matches(secret, body))
        .map(|((_, of_secret), (_, of_body))| of_secret.iter().chain(of_body).map(|text| (*text).to_owned()).collect())
}

fn body(request: &Request, secret: &[u8]) -> Verdict {
    let claims: Vec<(&str, &str)> =
        SIGNATURES.iter().filter_map(|(name, shown)| Some((*shown, request.header(name)?))).collect();
    let ours = sign(secret, &request.body);
    let (sound, unsound): (Vec<_>, Vec<_>) = claims.iter().copied().partition(|(_, claim)| digits(claim) == ours);
    if let Some((header, _)) = sound.first() {
        let findings = unsound
            .iter()
            .map(|(other, _)| format!("{other} has another signature; check for a proxy that changes headers"));
        let summary = format!("{header} is the signature of the body");
        return Verdict { verified: true, summary, findings: findings.collect() };
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
    if let Some(findings) = explained(request, &secrets(secret), |secret, body| sign(secret, body) == expected) {
        return Verdict::refused(summary, findings);
    }
    let mut findings = Vec::new();
    if request.header(PREVIOUS).map(digits) == Some(expected) {
        findings.push("the previous secret signed the request, because the secret is being replaced; answer 401, and the operator immediately sends the same attempt with the new secret".into());
    }
    findings.push(unexplained(&request.body));
    Verdict::refused(summary, findings)
}

/// Explains a missing signature.
fn without_signature(request: &Request, ours: &str) -> String {
    if let Some((name, _)) = request.headers.iter().find(|(_, value)| digits(value) == ours) {
        return format!(
            "the signature is in {name}, but receivers read X-LLMTune-Signature, X-Hub-Signature-256 or X-Signature; configure the proxy to keep these headers"
        );
    }
    if request.header(PREVIOUS).is_some() || request.header("x-llmtune-event").is_some() {
        return "set the Webhook's spec.secretRef, because without it nothing is signed; if it is set, check for a proxy that removes headers".into();
    }
    "the request has no headers of a delivery; pass the complete request, or add headers with -H 'X-LLMTune-Signature: …'".into()
}

/// Gives advice if no variant explains the signature.
fn unexplained(body: &[u8]) -> String {
    if body.is_empty() {
        return "the body is empty; record it before anything reads it".into();
    }
    match compact(body) {
        Some(text) if text.as_bytes() == body => "the body looks unchanged, so the secret is probably wrong; compare the file with kubectl get secret NAME -o jsonpath='{.data.secret}' | base64 -d | sha256sum, and check that the Webhook's spec.secretRef names that Secret",
        Some(_) => "the body was changed, or parsed and serialized again; verify the received bytes before anything parses them",
        None => "the body is not JSON, so it was changed or truncated; verify the received bytes before anything parses them",
    }
    .into()
}

/// Returns a signature without its prefix.
fn digits(claim: &str) -> String {
    let claim = claim.trim();
    claim.strip_prefix("sha256=").unwrap_or(claim).to_lowercase()
}

fn standard_webhooks(request: &Request, secret: &[u8], now: Timestamp) -> Verdict {
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let header = |name: &str| request.header(name).map(str::trim).filter(|value| !value.is_empty());
    let [Some(id), Some(time), Some(signatures)] = names.map(header) else {
        let missing: Vec<&str> = names.into_iter().filter(|name| header(name).is_none()).collect();
        let problem = format!(
            "{} missing; check for a proxy that removes headers, and that the Webhook's spec.format is StandardWebhooks",
            missing.join(", ")
        );
        return Verdict::refused("the request has no signature of Standard Webhooks", vec![problem]);
    };
    let refused = "webhook-signature contains no signature of id, timestamp and body";
    // Later than the year 5138: milliseconds.
    let Some(seconds) = time.parse::<i64>().ok().filter(|seconds| *seconds < 100_000_000_000) else {
        let problem = "webhook-timestamp is not in whole seconds since 1970; forward it unchanged";
        return Verdict::refused(refused, vec![problem.into()]);
    };
    let keys: Vec<_> = secrets(secret)
        .into_iter()
        .filter_map(|(text, mistake)| Some((Encoding::Whsec.decode(&text).ok()?.expose_secret().to_vec(), mistake)))
        .collect();
    let matches = |key: &[u8], body: &[u8]| {
        let ours = sign_standard_webhooks(key, id, seconds, body);
        signatures.split(' ').any(|signature| signature == ours)
    };
    let mut findings = match explained(request, &keys, matches) {
        Some(findings) if findings.is_empty() => {
            let summary = "webhook-signature is the signature of id, timestamp and body".into();
            return Verdict { verified: true, summary, findings: clock(seconds, now).into_iter().collect() };
        }
        Some(findings) => return Verdict::refused(refused, findings),
        None if keys.first().is_none_or(|(_, mistake)| mistake.is_some()) => vec!["the secret file contains no secret of Standard Webhooks; it must contain the same text as the Secret: whsec_ and the base64 of 24 to 64 bytes".into()],
        None => vec![unexplained(&request.body)],
    };
    findings.extend(clock(seconds, now));
    Verdict::refused(refused, findings)
}

/// Warns about a timestamp that libraries reject.
fn clock(seconds: i64, now: Timestamp) -> Option<String> {
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
