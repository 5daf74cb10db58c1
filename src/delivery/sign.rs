//! Signatures: HMAC-SHA256 (RFC 2104).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::Sha256;

/// The signature of a body, in lower-case hexadecimal.
#[must_use]
pub fn signature(key: &SecretSlice<u8>, body: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = digest(key, [body]);
    let mut text = String::with_capacity(64);
    for byte in digest {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The value of `webhook-signature` (Standard Webhooks 1.0.0): one signature by each key, the first by the first. `id`: of the message,
/// without a dot; `timestamp`: of the attempt, in seconds since 1970.
#[must_use]
pub fn standard_webhooks(keys: &[&SecretSlice<u8>], id: &str, timestamp: i64, body: &[u8]) -> String {
    let head = format!("{id}.{timestamp}.");
    let signed = keys.iter().map(|key| format!("v1,{}", STANDARD.encode(digest(key, [head.as_bytes(), body]))));
    signed.collect::<Vec<_>>().join(" ")
}

fn digest<const PARTS: usize>(key: &SecretSlice<u8>, parts: [&[u8]; PARTS]) -> [u8; 32] {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose_secret()) else {
        unreachable!("HMAC takes keys of any length (RFC 2104, section 2)")
    };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_rfc_4231() {
        let key: SecretSlice<u8> = b"Jefe".to_vec().into();
        assert_eq!(
            signature(&key, b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_message_is_signed_as_the_example_of_standard_webhooks_is_once_by_each_key() {
        let key: SecretSlice<u8> = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap().into();
        let other: SecretSlice<u8> = vec![7; 32].into();
        let sign = |keys: &[&SecretSlice<u8>]| {
            standard_webhooks(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#)
        };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(&[&key]), expected);
        assert_eq!(sign(&[&other, &key]), format!("{} {expected}", sign(&[&other])));
    }
}
