//! A cached copy of a Webhook's target, refreshed when attempts use it.
//!
//! 1. A copy older than [`MAX_AGE`] is read again before it is used.
//! 2. A copy that an endpoint rejected is read again too, at most once in [`GRACE`].
//! 3. While the apiserver is unavailable, the cached copy stays in use.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::warn;

use super::{
    reader::{Objects, Reader},
    reference::{Problem, ReferenceError},
    target::References,
};
use crate::delivery::target::Target;

/// A copy older than this is read again before it is used.
pub const MAX_AGE: Duration = Duration::from_secs(30);
/// The minimum time between two reads, even if the endpoint rejects the copy. An endpoint that rejects everything must
/// not cause a call to the apiserver for each delivery.
pub const GRACE: Duration = Duration::from_secs(5);

/// The cached copy of a target. All referenced objects existed when it was created.
pub struct CachedTarget {
    reader: Arc<Reader>,
    references: References,
    copy: Mutex<Copy>,
    reading: tokio::sync::Mutex<()>,
}

struct Copy {
    target: Arc<Target>,
    /// `None` if the target has no references and never changes.
    expires_at: Option<Instant>,
    /// The copy is not read again before this time, even if it is rejected.
    earliest_read: Instant,
}

impl CachedTarget {
    /// Creates a target without references. `None` if there are references.
    pub fn given(reader: &Arc<Reader>, references: &References) -> Option<Self> {
        let named = references.named().next().is_some();
        let target = references.target(&Objects::default(), &reader.materials, None).ok().filter(|_| !named)?;
        Some(Self::new(Arc::clone(reader), references.clone(), target, None))
    }

    /// Reads the target for the first time.
    pub async fn read(reader: Arc<Reader>, references: References) -> Result<Self, ReferenceError> {
        let target = references.read(&reader, None).await?;
        Ok(Self::new(reader, references, target, Some(Instant::now() + MAX_AGE)))
    }

    fn new(reader: Arc<Reader>, references: References, target: Target, expires_at: Option<Instant>) -> Self {
        // The first copy may be read again immediately: a Secret may have been corrected shortly after the Webhook.
        let copy = Copy { target: Arc::new(target), expires_at, earliest_read: Instant::now() };
        Self { reader, references, copy: Mutex::new(copy), reading: tokio::sync::Mutex::new(()) }
    }

    /// The references of the target.
    #[must_use]
    pub const fn references(&self) -> &References {
        &self.references
    }

    /// The target, at most [`MAX_AGE`] old. An error means that a reference is missing or invalid.
    pub async fn current(&self) -> Result<Arc<Target>, ReferenceError> {
        if let Some(target) = self.fresh() {
            return Ok(target);
        }
        let _guard = self.reading.lock().await;
        if let Some(target) = self.fresh() {
            return Ok(target);
        }
        let before = self.cached();
        let result = self.references.read(&self.reader, Some(&before)).await;
        let mut copy = self.copy();
        let now = Instant::now();
        copy.earliest_read = now + GRACE;
        match result {
            Ok(target) => {
                copy.target = Arc::new(target);
                copy.expires_at = Some(now + MAX_AGE);
            }
            Err(error) if matches!(error.problem, Problem::Unavailable(_)) => {
                warn!(namespace = error.object.namespace, %error, "a reference cannot be read; using the cached copy");
                copy.expires_at = Some(copy.earliest_read);
            }
            Err(error) => return Err(error),
        }
        Ok(Arc::clone(&copy.target))
    }

    /// Marks the copy for a read, usually before its next use, because the endpoint rejected it.
    pub fn expire(&self) {
        let mut copy = self.copy();
        let soonest = Instant::now().max(copy.earliest_read);
        copy.expires_at = copy.expires_at.map(|expires_at| expires_at.min(soonest));
    }

    /// The newest copy, whatever its age.
    #[must_use]
    pub fn cached(&self) -> Arc<Target> {
        Arc::clone(&self.copy().target)
    }

    fn fresh(&self) -> Option<Arc<Target>> {
        let copy = self.copy();
        let fresh = copy.expires_at.is_none_or(|expires_at| Instant::now() < expires_at);
        fresh.then(|| Arc::clone(&copy.target))
    }

    fn copy(&self) -> MutexGuard<'_, Copy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CachedTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedTarget").field("references", &self.references).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::time::sleep;

    use super::*;
    use crate::{
        delivery::sign::KeySlot,
        fake::{Answer, apiserver},
        subscription::{
            reference::{Named, Place, ReferenceKind},
            secret::KeyReference,
            url::UrlReference,
        },
    };
    use llmtune_api::secret::Encoding;

    /// References to a key in a Secret.
    fn references() -> References {
        let object = Named { kind: ReferenceKind::Secret, namespace: "ns".into(), name: "ci".into() };
        let place = Place { object, key: "secret".into() };
        let key = Some(KeyReference { place, previous: "previous".into(), encoding: Encoding::Raw });
        let url = UrlReference::Given("https://ci.example.com".parse().unwrap());
        References { namespace: "ns".into(), url, require_https: false, headers: Vec::new(), key, tls: None }
    }

    #[tokio::test(start_paused = true)]
    async fn preferred_key_is_remembered_until_the_keys_change() {
        let data = Arc::new(Mutex::new(json!({"secret": "bmV3", "previous": "b2xk"})));
        let answered = Arc::clone(&data);
        let client =
            apiserver(move |_| Answer::Object(json!({"metadata": {"name": "ci"}, "data": *answered.lock().unwrap()})));
        let target = CachedTarget::read(Arc::new(Reader::new(client)), references()).await.unwrap();
        let first = async || {
            sleep(MAX_AGE).await;
            target.current().await.unwrap().keys.as_ref().unwrap().first()
        };
        assert_eq!(first().await, KeySlot::Previous);
        target.cached().keys.as_ref().unwrap().prefer(KeySlot::Current);
        assert_eq!(first().await, KeySlot::Current, "the keys were read again and are the same");
        *data.lock().unwrap() = json!({"secret": "bmV3", "previous": ""});
        assert_eq!(first().await, KeySlot::Current);
        assert!(target.cached().keys.as_ref().unwrap().previous().is_none(), "an empty key does not count");
        *data.lock().unwrap() = json!({"secret": "bmV3ZXN0", "previous": "bmV3"});
        assert_eq!(first().await, KeySlot::Previous, "a rotation begins");
    }

    #[tokio::test(start_paused = true)]
    async fn rejections_cause_one_read_in_five_seconds() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let client = apiserver(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Answer::Object(json!({"metadata": {"name": "ci"}, "data": {"secret": "czNjcmV0"}}))
        });
        let reads = || reads.load(Ordering::Relaxed);
        let key = CachedTarget::read(Arc::new(Reader::new(client)), references()).await.unwrap();
        key.expire();
        key.current().await.unwrap();
        assert_eq!(reads(), 2, "the first rejection causes a read immediately");
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
        assert_eq!(reads(), before + 1, "a copy that is not rejected is used for thirty seconds");
    }
}
