//! Signing keys: one key of one Secret.

use std::sync::Arc;

use secrecy::SecretSlice;

use super::reference::{Kept, Kind, Named, Reader, ReferenceError, Referent, Role};

/// Where a key lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyReference {
    pub namespace: String,
    pub name: String,
    pub key: String,
}

/// A key that is kept fresh: its bytes as stored.
pub type SigningKey = Kept<KeyReference>;

impl Referent for KeyReference {
    type Value = SecretSlice<u8>;

    fn named(&self) -> Named {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        Named { role: Role::SigningKey, kind: Kind::Secret, namespace, name }
    }

    async fn read(&self, reader: &Reader) -> Result<Arc<Self::Value>, ReferenceError> {
        let bytes = reader.data(&self.named()).await?.take(&self.key)?;
        Ok(Arc::new(bytes.into()))
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

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_refuses_everything_has_the_key_read_once_in_five_seconds() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let client = apiserver(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Answer::Object(json!({"metadata": {"name": "ci"}, "data": {"secret": "czNjcmV0"}}))
        });
        let reads = || reads.load(Ordering::Relaxed);
        let reference = KeyReference { namespace: "ns".into(), name: "ci".into(), key: "secret".into() };
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
