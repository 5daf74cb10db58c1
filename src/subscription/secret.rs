//! Signing keys: one key of one Secret, read by name and never listed or watched.
//!
//! A copy older than [`MAX_AGE`] is read again before it is used, and so is one that an endpoint refused, at most once in
//! [`GRACE`]. While the apiserver cannot be asked, the copy at hand is used on.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use secrecy::{ExposeSecret, SecretSlice};
use tokio::time::Instant;
use tracing::warn;

use crate::{calls::within, causes::Causes};

/// A copy older than this is read again before it is used.
pub const MAX_AGE: Duration = Duration::from_secs(30);
/// After a repeated or failed reading the copy at hand serves at least this long before the next one, whatever the endpoint
/// says of it: one that refuses everything must not cost the apiserver a call for each delivery.
const GRACE: Duration = Duration::from_secs(5);
/// The limit on one reading; an attempt waits for it, and as a rule has a copy to go on with.
const REQUEST: Duration = Duration::from_secs(5);

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

/// Why a key cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no such Secret.
    #[error("Secret {0:?} does not exist in this namespace: create it, or name another in spec.secretRef")]
    NotFound(String),
    /// The Secret has no such key.
    #[error("Secret {0:?} has no key {1:?}: add the key, or name another in spec.secretRef.key")]
    KeyNotFound(String, String),
    /// The key holds nothing.
    #[error("key {1:?} of Secret {0:?} is empty: put at least 32 random bytes there")]
    Empty(String, String),
    /// The key is not written as Standard Webhooks says.
    #[error(
        "key {1:?} of Secret {0:?} is no secret of Standard Webhooks: write whsec_ and the base64 of 24 to 64 random bytes there, as echo whsec_$(head -c 32 /dev/urandom | base64) prints"
    )]
    Invalid(String, String),
    /// The operator may not read it.
    #[error(
        "the operator may not read Secret {0:?}: grant its service account get on secrets in this namespace, as charts/llmtune-webhooks/rbac.yaml does"
    )]
    Forbidden(String),
    /// The apiserver could not be asked.
    #[error("Secret {0:?} cannot be read just now: {1}")]
    Unavailable(String, String),
}

impl SecretError {
    /// The reading broke off inside the operator.
    pub(super) fn broken(reference: &KeyReference) -> Self {
        let text = "the operator broke off reading it: please report this with its log";
        Self::Unavailable(reference.name.clone(), text.into())
    }

    /// Whether waiting cannot help: somebody has to write the Secret anew.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Invalid(..))
    }

    /// The reason that conditions and Events give.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "SecretNotFound",
            Self::KeyNotFound(..) => "SecretKeyNotFound",
            Self::Empty(..) => "SecretEmpty",
            Self::Invalid(..) => "InvalidSecret",
            Self::Forbidden(_) => "SecretForbidden",
            Self::Unavailable(..) => "SecretUnavailable",
        }
    }
}

/// A key that was there when this was made, and is kept fresh.
pub struct SigningKey {
    client: Client,
    reference: KeyReference,
    copy: Mutex<Copy>,
    reading: tokio::sync::Mutex<()>,
}

struct Copy {
    bytes: Arc<SecretSlice<u8>>,
    read_again: Instant,
    /// Refused before this, it still serves until then.
    serves_until: Instant,
}

impl SigningKey {
    /// Reads the key for the first time.
    pub async fn read(client: Client, reference: KeyReference) -> Result<Self, SecretError> {
        let bytes = get(&client, &reference).await?;
        let now = Instant::now();
        // The first copy may be refused at once: the Secret may have been put right together with the Webhook, and after it.
        let copy = Mutex::new(Copy { bytes, read_again: now + MAX_AGE, serves_until: now });
        Ok(Self { client, reference, copy, reading: tokio::sync::Mutex::new(()) })
    }

    /// Where it lies.
    #[must_use]
    pub const fn reference(&self) -> &KeyReference {
        &self.reference
    }

    /// The key's bytes, at most [`MAX_AGE`] old. An error means that the key is gone.
    pub async fn current(&self) -> Result<Arc<SecretSlice<u8>>, SecretError> {
        if let Some(bytes) = self.fresh() {
            return Ok(bytes);
        }
        let _one_reader = self.reading.lock().await;
        if let Some(bytes) = self.fresh() {
            return Ok(bytes);
        }
        let result = get(&self.client, &self.reference).await;
        let mut copy = self.copy();
        let now = Instant::now();
        copy.serves_until = now + GRACE;
        match result {
            Ok(bytes) => {
                copy.bytes = bytes;
                copy.read_again = now + MAX_AGE;
            }
            Err(error @ SecretError::Unavailable(..)) => {
                let KeyReference { namespace, name, .. } = &self.reference;
                warn!(namespace, secret = name, %error, "signing with the copy at hand");
                copy.read_again = copy.serves_until;
            }
            Err(error) => return Err(error),
        }
        Ok(Arc::clone(&copy.bytes))
    }

    /// Has the key read again soon, as a rule before its next use: the endpoint refused a signature.
    pub fn expire(&self) {
        let mut copy = self.copy();
        copy.read_again = copy.read_again.min(Instant::now().max(copy.serves_until));
    }

    /// The newest copy, whatever its age.
    #[must_use]
    pub fn copy_at_hand(&self) -> Arc<SecretSlice<u8>> {
        Arc::clone(&self.copy().bytes)
    }

    fn fresh(&self) -> Option<Arc<SecretSlice<u8>>> {
        let copy = self.copy();
        (Instant::now() < copy.read_again).then(|| Arc::clone(&copy.bytes))
    }

    fn copy(&self) -> MutexGuard<'_, Copy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn get(client: &Client, reference: &KeyReference) -> Result<Arc<SecretSlice<u8>>, SecretError> {
    let KeyReference { namespace, name, key, encoding } = reference;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = match within(REQUEST, secrets.get_opt(name)).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return Err(SecretError::NotFound(name.clone())),
        Err(kube::Error::Api(status)) if status.code == 403 => return Err(SecretError::Forbidden(name.clone())),
        Err(error) => return Err(SecretError::Unavailable(name.clone(), Causes(&error).to_string())),
    };
    let mut data = secret.data.unwrap_or_default();
    match data.remove(key) {
        None => Err(SecretError::KeyNotFound(name.clone(), key.clone())),
        Some(bytes) if bytes.0.is_empty() => Err(SecretError::Empty(name.clone(), key.clone())),
        Some(bytes) => {
            let decoded = encoding.decode(bytes.0);
            decoded.map(Arc::new).ok_or_else(|| SecretError::Invalid(name.clone(), key.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::time::sleep;

    use super::*;
    use crate::fake::{Answer, apiserver};

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
        let key = SigningKey::read(client, reference).await.unwrap();
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
