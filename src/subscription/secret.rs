//! Signing keys: one key of one Secret.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretSlice};

use super::{
    reader::Objects,
    reference::{Place, Problem, ReferenceError, Role},
};

/// Where a key lies, and how it is written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyReference {
    pub place: Place,
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
    fn decode(self, stored: &[u8]) -> Option<SecretSlice<u8>> {
        if self == Self::Raw {
            return Some(stored.to_vec().into());
        }
        let text = stored.trim_ascii_end().strip_prefix(b"whsec_")?;
        let key: SecretSlice<u8> = STANDARD.decode(text).ok()?.into();
        (24..=64).contains(&key.expose_secret().len()).then_some(key)
    }
}

impl KeyReference {
    /// The key: its bytes as stored, or as its encoding says.
    pub(super) fn find(&self, objects: &Objects) -> Result<SecretSlice<u8>, ReferenceError> {
        let Place { object, key } = &self.place;
        let bytes = objects.bytes(&Role::SigningKey, &self.place)?;
        self.encoding.decode(bytes).ok_or_else(|| {
            let say = format!(
                "key {key:?} is no secret of Standard Webhooks: write whsec_ and the base64 of 24 to 64 random bytes there, as echo whsec_$(head -c 32 /dev/urandom | base64) prints"
            );
            ReferenceError::new(Role::SigningKey, object, Problem::Invalid(say))
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
