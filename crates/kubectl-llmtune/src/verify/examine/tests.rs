//! Common problems between the operator and a receiver that verifies, and the message for each.

use super::*;
use llmtune_api::secret::Encoding;
use llmtune_core::{
    attempt::Attempt,
    event::{
        EventType,
        format::{Derived, Format},
        id::DeliveryId,
        object::Uid,
        sample::sample,
    },
};
use llmtune_webhooks::delivery::{
    message,
    sign::{KeySlot, Keys},
};

const SECRET: &str = "s3cret-of-ci";
const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NOW: i64 = 1_700_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn secret(text: &str) -> SecretSlice<u8> {
    text.as_bytes().to_vec().into()
}

/// An attempt as the operator makes it, signed with the contents of a Secret.
fn attempt(format: Format, keys: &Keys) -> Request {
    let uid = Uid::from_u128(7);
    let event = std::sync::Arc::new(sample(EventType::TrainingCompleted, uid, "research", None, now()));
    let attempt =
        Attempt { webhook: uid, delivery: DeliveryId::new(event.id, uid), event, number: 1, generation: 0, test: true };
    let none = http::HeaderMap::new();
    let message = message::message(&attempt, format, &none, Some((keys, keys.first())), now()).unwrap();
    let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
    let mut headers: Vec<_> = message.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    headers.push(("content-length".to_owned(), message.body.len().to_string()));
    Request { headers, body: message.body.to_vec() }
}

fn native(stored: &[u8]) -> Request {
    attempt(Format::LlmTune, &Keys::new(stored.to_vec().into(), None))
}

fn standard() -> Request {
    let key = Encoding::Whsec.decode(WHSEC.as_bytes()).unwrap();
    attempt(Format::Derived(Derived::StandardWebhooks), &Keys::new(key, None))
}

fn findings(request: &Request, file: &str) -> String {
    let verdict = examine(request, &secret(file), None, now());
    assert!(!verdict.verified, "{verdict:?}");
    assert!(!verdict.findings.is_empty(), "{verdict:?}");
    let advice = verdict.findings.join("\n");
    assert!(!advice.contains(SECRET) && !advice.contains("MfKQ9r8"), "{advice}");
    advice
}

fn with(mut request: Request, name: &str, value: Option<&str>) -> Request {
    request.headers.retain(|(known, _)| known != name);
    request.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    request
}

fn body(request: Request, body: impl Into<Vec<u8>>) -> Request {
    with(Request { body: body.into(), ..request }, "content-length", None)
}

#[test]
fn verifies_requests_of_each_format() {
    let raw = Keys::new(secret(SECRET), None);
    for format in
        [Format::LlmTune, Format::Derived(Derived::CloudEventsBinary), Format::Derived(Derived::CloudEventsStructured)]
    {
        let verdict = examine(&attempt(format, &raw), &secret(SECRET), None, now());
        assert!(verdict.verified && verdict.findings.is_empty(), "{verdict:?}");
    }
    for text in [WHSEC, "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &format!("{WHSEC}\n")] {
        let verdict = examine(&standard(), &secret(text), None, now());
        assert!(verdict.verified && verdict.findings.is_empty(), "{verdict:?}");
    }
    for (name, _) in SIGNATURES {
        let mut alone = native(SECRET.as_bytes());
        alone.headers.retain(|(known, _)| known == name || !SIGNATURES.iter().any(|(signature, _)| signature == known));
        assert!(examine(&alone, &secret(SECRET), None, now()).verified, "{name}");
    }
}

#[test]
fn recognizes_common_mistakes_in_secrets() {
    let encoded = STANDARD.encode(SECRET);
    for (stored, file, says) in [
        (SECRET, format!("{SECRET}\n"), "the secret file ends in a line break"),
        (SECRET, format!("{SECRET}\r\n"), "the secret file ends in a line break"),
        (&format!("{SECRET}\n"), SECRET.to_owned(), "the Secret in the cluster ends in a line break"),
        (SECRET, encoded.clone(), "base64 of the secret"),
        (SECRET, format!("{encoded}\n"), "base64 of the secret"),
        (SECRET, "another".to_owned(), "so the secret is probably wrong"),
    ] {
        let advice = findings(&native(stored.as_bytes()), &file);
        assert!(advice.contains(says) && advice.lines().count() == 1, "{stored:?} {file:?}: {advice}");
    }
}

#[test]
fn recognizes_changes_of_the_body() {
    let request = native(SECRET.as_bytes());
    let pretty = crate::verify::json::indented(&request.body).unwrap();
    let text = String::from_utf8(request.body.clone()).unwrap();
    for (changed, says) in [
        (pretty.clone(), "with different white space"),
        (text.replace("\":", "\": "), "with different white space"),
        (format!("{text}\n"), "with different white space"),
        (text.replace("sample", "forged"), "the secret is probably wrong"),
        (text.replace("sample", "forged").replace("\":", "\" :"), "changed, or parsed and serialized again"),
        (text[..40].to_owned(), "not JSON"),
        (String::new(), "the body is empty"),
    ] {
        let advice = findings(&body(request.clone(), changed), SECRET);
        assert!(advice.contains(says), "{advice}");
    }
    let both = findings(&body(request.clone(), format!("{text}\n")), &format!("{SECRET}\n"));
    assert!(both.contains("line break, but the signing key") && both.contains("white space"), "{both}");
    let cut = Request { body: request.body[..40].to_vec(), ..request };
    assert!(findings(&cut, SECRET).contains("the body has 40 bytes; record the complete body"));
}

#[test]
fn recognizes_missing_and_moved_signatures() {
    let request = native(SECRET.as_bytes());
    let signature = request.header("x-llmtune-signature").unwrap().to_owned();
    let mut bare = request.clone();
    bare.headers.retain(|(name, _)| !SIGNATURES.iter().any(|(known, _)| known == name));
    assert!(findings(&bare, SECRET).contains("spec.secretRef"));
    let renamed = with(bare.clone(), "x-amzn-remapped-signature", Some(&format!("sha256={signature}")));
    assert!(findings(&renamed, SECRET).contains("the signature is in x-amzn-remapped-signature"));
    assert!(findings(&body(Request::default(), "{}"), SECRET).contains("-H 'X-LLMTune-Signature"));
    let garbled = with(bare, "x-signature", Some("v1,abc"));
    assert!(findings(&garbled, SECRET).contains("64 hexadecimal digits"));
    // One of three headers was changed on its way, and a receiver may read that one.
    let verdict = examine(&with(request, "x-signature", Some("sha256=0")), &secret(SECRET), None, now());
    assert!(verdict.verified && verdict.findings[0].starts_with("X-Signature has another"), "{verdict:?}");
}

#[test]
fn recognizes_the_previous_secret() {
    let keys = Keys::new(secret("new"), Some(secret(SECRET)));
    assert_eq!(keys.first(), KeySlot::Previous);
    let request = attempt(Format::LlmTune, &keys);
    assert!(examine(&request, &secret(SECRET), None, now()).verified);
    assert!(findings(&request, "new").contains("the previous secret signed"));
}

#[test]
fn recognizes_mistakes_in_standard_webhooks() {
    let request = standard();
    let text = String::from_utf8(request.body.clone()).unwrap();
    let raw = STANDARD.encode(WHSEC);
    for (request, file, says) in [
        (with(request.clone(), "webhook-id", None), WHSEC, "webhook-id missing"),
        (with(request.clone(), "webhook-signature", Some("v1a,abc")), WHSEC, "probably wrong"),
        (with(request.clone(), "webhook-timestamp", Some(&format!("{NOW}000"))), WHSEC, "in whole seconds since 1970"),
        (
            with(request.clone(), "webhook-timestamp", Some("2023-11-14T22:13:20Z")),
            WHSEC,
            "in whole seconds since 1970",
        ),
        (body(request.clone(), text.replace("\":", "\": ")), WHSEC, "with different white space"),
        (request.clone(), SECRET, "no secret of Standard Webhooks"),
        (request.clone(), raw.as_str(), "kubectl get secret -o yaml"),
        (request.clone(), "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "probably wrong"),
    ] {
        let advice = findings(&request, file);
        assert!(advice.contains(says), "{says}: {advice}");
    }
}

#[test]
fn warns_about_clock_even_if_verified() {
    for (seconds, says) in [(299, None), (-299, None), (720, Some("12m behind")), (-7200, Some("120m ahead of"))] {
        let now = Timestamp::from_second(NOW + seconds).unwrap();
        let verdict = examine(&standard(), &secret(WHSEC), None, now);
        assert!(verdict.verified, "{verdict:?}");
        assert_eq!(
            verdict.findings.first().map(|advice| advice.contains(says.unwrap_or_default())),
            says.map(|_| true),
            "{verdict:?}"
        );
    }
}

#[test]
fn recognizes_requests_of_another_format() {
    let as_native = examine(&standard(), &secret(WHSEC), Some(Scheme::Body), now());
    assert!(as_native.findings[0].contains("StandardWebhooks"), "{as_native:?}");
    let as_standard = examine(&native(SECRET.as_bytes()), &secret(SECRET), Some(Scheme::StandardWebhooks), now());
    assert!(as_standard.findings[0].contains("LLMTune"), "{as_standard:?}");
}
