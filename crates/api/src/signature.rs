//! Signatures of deliveries: HMAC-SHA256 (RFC 2104) of the body in the native and `CloudEvents` formats, and Standard
//! Webhooks 1.0.0. A receiver verifies the bytes that it received, before it parses them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The largest difference between `webhook-timestamp` and the receiver's clock that the libraries of Standard Webhooks
/// accept, in seconds.
pub const TOLERANCE: i64 = 300;

/// Why a delivery is not accepted. Answer 401, so that the operator tries the other key while the Secret is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No signature is the body's signature by the key.
    #[error("the signature does not match: check the key, and that the body is verified as it was received")]
    Mismatch,
    /// The timestamp is not a number of seconds, or is more than [`TOLERANCE`] from the receiver's clock.
    #[error(
        "webhook-timestamp is more than five minutes from this clock: the request was recorded, or a clock is wrong"
    )]
    Timestamp,
}

/// Returns the signature of a body, in lowercase hexadecimal: the value of `X-LLMTune-Signature`.
#[must_use]
pub fn sign(key: &[u8], body: &[u8]) -> String {
    hexadecimal(&mac(key, &[body]).finalize().into_bytes())
}

/// Verifies a delivery in the native or `CloudEvents` format. `signature` is the value of `X-LLMTune-Signature`,
/// `X-Hub-Signature-256` or `X-Signature`; a prefix `sha256=` is accepted. The comparison takes constant time.
///
/// ```
/// use llmtune_api::signature::verify;
///
/// let key = b"the value of the Secret's key";
/// let body = br#"{"id":"evt_0123456789abcdef0123456789abcdef"}"#;
/// let header = "1414c500513df8860b730868335a543d78c520012a18cf0fba24a1c863e56c60";
/// assert!(verify(key, body, header).is_ok());
/// assert!(verify(key, b"forged", header).is_err());
/// ```
pub fn verify(key: &[u8], body: &[u8], signature: &str) -> Result<(), VerifyError> {
    let signature = signature.strip_prefix("sha256=").unwrap_or(signature);
    let signature = bytes(signature).ok_or(VerifyError::Mismatch)?;
    mac(key, &[body]).verify_slice(&signature).map_err(|_| VerifyError::Mismatch)
}

/// Returns one signature of Standard Webhooks, such as `v1,g0hM9SsE…`. `id` is the event id and `timestamp` the time of
/// the attempt in seconds since 1970.
#[must_use]
pub fn sign_standard_webhooks(key: &[u8], id: &str, timestamp: i64, body: &[u8]) -> String {
    let head = format!("{id}.{timestamp}.");
    format!("v1,{}", STANDARD.encode(mac(key, &[head.as_bytes(), body]).finalize().into_bytes()))
}

/// Verifies a delivery in the Standard Webhooks format. `id`, `timestamp` and `signatures` are the values of
/// `webhook-id`, `webhook-timestamp` and `webhook-signature`; `now` is the receiver's time in seconds since 1970. One
/// matching signature is enough: while a Secret is replaced, there are two.
///
/// [`crate::secret::Encoding::Whsec`] decodes a key that is written as `whsec_…`.
///
/// ```
/// use llmtune_api::{secret::{Encoding, ExposeSecret}, signature::verify_standard_webhooks};
///
/// let key = Encoding::Whsec.decode(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
/// let (id, timestamp) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330");
/// let signatures = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
/// let body = br#"{"test": 2432232314}"#;
/// verify_standard_webhooks(key.expose_secret(), id, timestamp, signatures, body, 1614265331)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn verify_standard_webhooks(
    key: &[u8],
    id: &str,
    timestamp: &str,
    signatures: &str,
    body: &[u8],
    now: i64,
) -> Result<(), VerifyError> {
    let sent: i64 = timestamp.parse().map_err(|_| VerifyError::Timestamp)?;
    if sent.abs_diff(now) > TOLERANCE.unsigned_abs() {
        return Err(VerifyError::Timestamp);
    }
    let head = format!("{id}.{timestamp}.");
    let matches = signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
        let signature = STANDARD.decode(signature);
        signature.is_ok_and(|signature| mac(key, &[head.as_bytes(), body]).verify_slice(&signature).is_ok())
    });
    if matches { Ok(()) } else { Err(VerifyError::Mismatch) }
}

/// Returns bytes in lowercase hexadecimal.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Reads hexadecimal, in either case.
fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = hexadecimal.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let Ok(mut mac) = Hmac::new_from_slice(key) else {
        unreachable!("HMAC takes keys of any length (RFC 2104, section 2)")
    };
    for part in parts {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_rfc_4231_does() {
        assert_eq!(
            sign(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn accepts_the_signature_of_the_body_and_no_other() {
        let (key, body) = (b"key".as_slice(), b"{}".as_slice());
        let signature = sign(key, body);
        for accepted in [signature.clone(), format!("sha256={signature}"), signature.to_uppercase()] {
            assert_eq!(verify(key, body, &accepted), Ok(()), "{accepted}");
        }
        for forged in ["", "sha256=", &signature[1..], &format!("{signature}00"), &sign(b"yek", body), "\u{e9}\u{e9}"] {
            assert_eq!(verify(key, body, forged), Err(VerifyError::Mismatch), "{forged}");
        }
        assert_eq!(verify(key, b"{} ", &signature), Err(VerifyError::Mismatch));
    }

    #[test]
    fn standard_webhooks_accepts_either_key_within_five_minutes() {
        let (key, id, body) = (b"new".as_slice(), "evt_1", b"{}".as_slice());
        let one = sign_standard_webhooks(key, id, 1_000, body);
        let two = format!("{} {one}", sign_standard_webhooks(b"old", id, 1_000, body));
        let check =
            |id, time, signatures: &str, body, now| verify_standard_webhooks(key, id, time, signatures, body, now);
        for now in [700, 1_000, 1_300] {
            assert_eq!(check(id, "1000", &one, body, now), Ok(()));
            assert_eq!(check(id, "1000", &two, body, now), Ok(()));
        }
        for (time, now) in [("1000", 699), ("1000", 1_301), ("", 1_000), ("1000.0", 1_000), ("9223372036854775807", -1)]
        {
            assert_eq!(check(id, time, &one, body, now), Err(VerifyError::Timestamp), "{time} at {now}");
        }
        for (id, time, signatures, body) in [
            ("evt_2", "1000", one.as_str(), body),
            (id, "1001", &one, body),
            (id, "1000", &one, b"[]"),
            (id, "1000", &one.replace("v1,", "v2,"), body),
            (id, "1000", "", body),
            (id, "+1000", &one, body),
        ] {
            assert_eq!(check(id, time, signatures, body, 1_000), Err(VerifyError::Mismatch), "{signatures}");
        }
    }
}
