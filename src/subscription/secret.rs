//! Signing keys: one key of one Secret, and while it is rotated another.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretSlice};

use super::{
    reader::Objects,
    reference::{Place, Problem, ReferenceError, Role},
};
use crate::delivery::sign::Keys;

/// Where a Webhook's keys lie, and how they are written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReference {
    pub place: Place,
    /// The key of the same Secret that holds the one before, while it is rotated.
    pub previous: String,
    pub encoding: Encoding,
}

/// How a key is written in its Secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// The bytes are the key.
    #[default]
    Raw,
    /// As Standard Webhooks says: `whsec_`, and the base64 of the key's 24 to 64 bytes. White space at its end is ignored.
    Whsec,
}

impl Encoding {
    /// The key in these bytes of a Secret; `None` where they are not written so.
    pub fn decode(self, stored: &[u8]) -> Option<SecretSlice<u8>> {
        if self == Self::Raw {
            return Some(stored.to_vec().into());
        }
        let text = stored.trim_ascii_end().strip_prefix(b"whsec_")?;
        let key: SecretSlice<u8> = STANDARD.decode(text).ok()?.into();
        (24..=64).contains(&key.expose_secret().len()).then_some(key)
    }
}

impl KeyReference {
    /// The keys: their bytes as stored, or as the encoding says. Where they are those of `before`, they are the same value, which knows which
    /// of them the endpoint has.
    pub(super) fn find(&self, objects: &Objects, before: Option<&Arc<Keys>>) -> Result<Arc<Keys>, ReferenceError> {
        let Place { object, key } = &self.place;
        let current = self.decode(key, objects.bytes(&Role::SigningKey, &self.place)?)?;
        let previous = Place { object: object.clone(), key: self.previous.clone() };
        let previous = match objects.value(&Role::SigningKey, &previous)? {
            // Templates leave it empty while nothing is rotated.
            Some(bytes) if !bytes.is_empty() && previous != self.place => Some(self.decode(&self.previous, bytes)?),
            _ => None,
        };
        let keys = Keys::new(current, previous);
        let known = before.filter(|known| known.same_as(&keys));
        Ok(known.map_or_else(|| Arc::new(keys), Arc::clone))
    }

    fn decode(&self, key: &str, bytes: &[u8]) -> Result<SecretSlice<u8>, ReferenceError> {
        self.encoding.decode(bytes).ok_or_else(|| {
            let say = format!(
                "key {key:?} is no secret of Standard Webhooks: write whsec_ and the base64 of 24 to 64 random bytes there, as echo whsec_$(head -c 32 /dev/urandom | base64) prints"
            );
            ReferenceError::new(Role::SigningKey, &self.place.object, Problem::Invalid(say))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_of_standard_webhooks_is_whsec_and_24_to_64_bytes_in_base64() {
        let decode = |text: &str| Encoding::Whsec.decode(text.as_bytes());
        let written = |length: usize| format!("whsec_{}", STANDARD.encode(vec![7_u8; length]));
        for length in [24, 32, 64] {
            assert_eq!(decode(&written(length)).unwrap().expose_secret(), vec![7_u8; length]);
        }
        assert_eq!(decode(&format!("{}\n", written(32))).unwrap().expose_secret().len(), 32);
        let bare = STANDARD.encode([7_u8; 32]);
        for wrong in [
            "",
            "whsec_",
            "s3cret",
            &bare,
            &format!("whsec_{bare}!"),
            &format!("WHSEC_{bare}"),
            &written(23),
            &written(65),
        ] {
            assert!(decode(wrong).is_none(), "{wrong}");
        }
        assert_eq!(Encoding::Raw.decode(b"s3cret\n").unwrap().expose_secret(), b"s3cret\n");
    }
}
