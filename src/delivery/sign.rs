//! The signing keys of a Webhook.

use std::sync::atomic::{AtomicBool, Ordering};

use llmtune_api::signature::sign_standard_webhooks;
use secrecy::{ExposeSecret, SecretSlice};

/// The signing keys of one Webhook: the current key, and during a rotation the previous one.
pub struct Keys {
    current: SecretSlice<u8>,
    rotation: Option<Rotation>,
}

struct Rotation {
    previous: SecretSlice<u8>,
    /// The endpoint rejected `previous` and accepted the current key.
    prefers_current: AtomicBool,
}

/// One of a Webhook's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySlot {
    Current,
    Previous,
}

impl Keys {
    /// Creates the keys. `previous` is `None` unless the key is being rotated.
    #[must_use]
    pub fn new(current: SecretSlice<u8>, previous: Option<SecretSlice<u8>>) -> Self {
        let previous = previous.filter(|previous| previous.expose_secret() != current.expose_secret());
        let rotation = previous.map(|previous| Rotation { previous, prefers_current: AtomicBool::new(false) });
        Self { current, rotation }
    }

    /// Reports whether the other keys are equal.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        let bytes = ExposeSecret::expose_secret;
        bytes(&self.current) == bytes(&other.current) && self.previous().map(bytes) == other.previous().map(bytes)
    }

    /// Returns the key to try first: `previous` until the endpoint has rejected it.
    #[must_use]
    pub fn first(&self) -> KeySlot {
        match &self.rotation {
            Some(rotation) if !rotation.prefers_current.load(Ordering::Relaxed) => KeySlot::Previous,
            _ => KeySlot::Current,
        }
    }

    /// Returns the other key, if there are two.
    #[must_use]
    pub fn other(&self, than: KeySlot) -> Option<KeySlot> {
        self.rotation.as_ref().map(|_| match than {
            KeySlot::Current => KeySlot::Previous,
            KeySlot::Previous => KeySlot::Current,
        })
    }

    /// Sets the key to try first.
    pub fn prefer(&self, which: KeySlot) {
        if let Some(rotation) = &self.rotation {
            rotation.prefers_current.store(which == KeySlot::Current, Ordering::Relaxed);
        }
    }

    /// Returns the previous key during a rotation.
    #[must_use]
    pub fn previous(&self) -> Option<&SecretSlice<u8>> {
        self.rotation.as_ref().map(|rotation| &rotation.previous)
    }

    /// Returns the current key.
    #[must_use]
    pub const fn current(&self) -> &SecretSlice<u8> {
        &self.current
    }
}

/// Returns the value of `webhook-signature` (Standard Webhooks 1.0.0): one signature by each key, the previous one
/// first.
#[must_use]
pub fn standard_webhooks(keys: &Keys, id: &str, timestamp: i64, body: &[u8]) -> String {
    let keys = keys.previous().into_iter().chain([keys.current()]);
    let signatures = keys.map(|key| sign_standard_webhooks(key.expose_secret(), id, timestamp, body));
    signatures.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    #[test]
    fn signs_like_the_standard_webhooks_example_once_by_each_key() {
        let key: SecretSlice<u8> = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap().into();
        let other: SecretSlice<u8> = vec![7; 32].into();
        let sign = |key: &SecretSlice<u8>, previous: Option<&SecretSlice<u8>>| {
            let keys = Keys::new(key.clone(), previous.cloned());
            standard_webhooks(&keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#)
        };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(&key, None), expected);
        assert_eq!(sign(&key, Some(&other)), format!("{} {expected}", sign(&other, None)));
    }

    #[test]
    fn previous_key_is_first_until_the_current_one_is_preferred() {
        let key = |byte: u8| SecretSlice::from(vec![byte; 32]);
        let keys = Keys::new(key(2), Some(key(1)));
        assert_eq!((keys.first(), keys.other(keys.first())), (KeySlot::Previous, Some(KeySlot::Current)));
        keys.prefer(KeySlot::Current);
        assert_eq!((keys.first(), keys.other(keys.first())), (KeySlot::Current, Some(KeySlot::Previous)));
        keys.prefer(KeySlot::Previous);
        assert_eq!(keys.first(), KeySlot::Previous);
        for single in [Keys::new(key(2), None), Keys::new(key(2), Some(key(2)))] {
            single.prefer(KeySlot::Previous);
            assert_eq!((single.first(), single.other(single.first())), (KeySlot::Current, None));
            assert!(!single.same_as(&keys) && single.same_as(&Keys::new(key(2), None)));
        }
    }
}
