//! Signing keys: one key of one Secret.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretSlice};

use super::reference::{Kept, Kind, Named, Problem, Reader, ReferenceError, Referent, Role};

/// Where a key lies, and how it is written there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyReference {
    pub namespace: String,
    pub name: String,
    pub key: String,
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
    fn decode(self, stored: Vec<u8>) -> Option<SecretSlice<u8>> {
        if self == Self::Raw {
            return Some(stored.into());
        }
        let stored: SecretSlice<u8> = stored.into();
        let text = stored.expose_secret().trim_ascii_end().strip_prefix(b"whsec_")?;
        let key: SecretSlice<u8> = STANDARD.decode(text).ok()?.into();
        (24..=64).contains(&key.expose_secret().len()).then_some(key)
    }
}

/// A key that is kept fresh: its bytes as stored, or as its encoding says.
pub type SigningKey = Kept<KeyReference>;

impl Referent for KeyReference {
    type Value = SecretSlice<u8>;

    fn named(&self) -> Named {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        Named { role: Role::SigningKey, kind: Kind::Secret, namespace, name }
    }

    async fn read(&self, reader: &Reader) -> Result<Arc<Self::Value>, ReferenceError> {
        let bytes = reader.data(&self.named()).await?.take(&self.key)?;
        let problem = || {
            let say = format!(
                "key {:?} is no secret of Standard Webhooks: write whsec_ and the base64 of 24 to 64 random bytes there, as echo whsec_$(head -c 32 /dev/urandom | base64) prints",
                self.key
            );
            ReferenceError::new(self.named(), Problem::Invalid(say))
        };
        self.encoding.decode(bytes).map(Arc::new).ok_or_else(problem)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use serde_json::json;
    use tokio::time::sleep;

    use super::*;
    use crate::{
        fake::{Answer, apiserver},
        subscription::reference::GRACE,
    };

    #[test]
    fn a_secret_of_standard_webhooks_is_whsec_and_24_to_64_bytes_in_base64() {
        let decode = |text: &str| Encoding::Whsec.decode(text.as_bytes().to_vec());
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
        assert_eq!(Encoding::Raw.decode(b"s3cret\n".to_vec()).unwrap().expose_secret(), b"s3cret\n");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_refuses_everything_has_the_key_read_once_in_five_seconds() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let client = apiserver(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Answer::Object(json!({"metadata": {"name": "ci"}, "data": {"secret": "czNjcmV0"}}))
        });
        let reads = || reads.load(Ordering::Relaxed);
        let reference =
            KeyReference { namespace: "ns".into(), name: "ci".into(), key: "secret".into(), encoding: Encoding::Raw };
        let key = SigningKey::read(Arc::new(Reader::new(client)), reference).await.unwrap();
        key.expire();
        key.current().await.unwrap();
        assert_eq!(reads(), 2, "the first refusal has it read at once");
        for _ in 0..600 {
            key.current().await.unwrap();
            key.expire();
            key.expire();
            sleep(Duration::from_millis(100)).await;
        }
        assert!((12..=14).contains(&reads()), "{} reads in a minute", reads());
        sleep(GRACE).await;
        let before = reads();
        for _ in 0..280 {
            key.current().await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(reads(), before + 1, "one that is not refused serves for thirty seconds");
    }
}
