//! What attempts need of what a Webhook names, kept fresh while it is used.
//!
//! A copy older than [`MAX_AGE`] is read again before it is used, and so is one that an endpoint refused, at most once in
//! [`GRACE`]. While the apiserver cannot be asked, the copy at hand is used on.

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
/// After a repeated or failed reading the copy at hand serves at least this long before the next one, whatever the endpoint
/// says of it: one that refuses everything must not cost the apiserver a call for each delivery.
pub const GRACE: Duration = Duration::from_secs(5);

/// A target that was there when this was made.
pub struct CachedTarget {
    reader: Arc<Reader>,
    references: References,
    copy: Mutex<Copy>,
    reading: tokio::sync::Mutex<()>,
}

struct Copy {
    target: Arc<Target>,
    /// `None`: it lies in no object, and never changes.
    read_again: Option<Instant>,
    /// Refused before this, it still serves until then.
    serves_until: Instant,
}

impl CachedTarget {
    /// One that nothing has to be read for; `None` where the references name objects.
    pub fn given(reader: &Arc<Reader>, references: &References) -> Option<Self> {
        let named = references.named().next().is_some();
        let target = references.target(&Objects::default(), &reader.materials, None).ok().filter(|_| !named)?;
        Some(Self::new(Arc::clone(reader), references.clone(), target, None))
    }

    /// Reads it for the first time.
    pub async fn read(reader: Arc<Reader>, references: References) -> Result<Self, ReferenceError> {
        let target = references.read(&reader, None).await?;
        Ok(Self::new(reader, references, target, Some(Instant::now() + MAX_AGE)))
    }

    fn new(reader: Arc<Reader>, references: References, target: Target, read_again: Option<Instant>) -> Self {
        // The first copy may be refused at once: an object may have been put right together with the Webhook, and after it.
        let copy = Copy { target: Arc::new(target), read_again, serves_until: Instant::now() };
        Self { reader, references, copy: Mutex::new(copy), reading: tokio::sync::Mutex::new(()) }
    }

    /// Where it lies.
    #[must_use]
    pub const fn references(&self) -> &References {
        &self.references
    }

    /// The target, at most [`MAX_AGE`] old. An error means that some of it is gone, or of no use any more.
    pub async fn current(&self) -> Result<Arc<Target>, ReferenceError> {
        if let Some(target) = self.fresh() {
            return Ok(target);
        }
        let _one_reader = self.reading.lock().await;
        if let Some(target) = self.fresh() {
            return Ok(target);
        }
        let before = self.copy_at_hand();
        let result = self.references.read(&self.reader, Some(&before)).await;
        let mut copy = self.copy();
        let now = Instant::now();
        copy.serves_until = now + GRACE;
        match result {
            Ok(target) => {
                copy.target = Arc::new(target);
                copy.read_again = Some(now + MAX_AGE);
            }
            Err(error) if matches!(error.problem, Problem::Unavailable(_)) => {
                warn!(namespace = error.object.namespace, %error, "going on with the copy at hand");
                copy.read_again = Some(copy.serves_until);
            }
            Err(error) => return Err(error),
        }
        Ok(Arc::clone(&copy.target))
    }

    /// Has it read again soon, as a rule before its next use: the endpoint refused it.
    pub fn expire(&self) {
        let mut copy = self.copy();
        let soonest = Instant::now().max(copy.serves_until);
        copy.read_again = copy.read_again.map(|read_again| read_again.min(soonest));
    }

    /// The newest copy, whatever its age.
    #[must_use]
    pub fn copy_at_hand(&self) -> Arc<Target> {
        Arc::clone(&self.copy().target)
    }

    fn fresh(&self) -> Option<Arc<Target>> {
        let copy = self.copy();
        let fresh = copy.read_again.is_none_or(|read_again| Instant::now() < read_again);
        fresh.then(|| Arc::clone(&copy.target))
    }

    fn copy(&self) -> MutexGuard<'_, Copy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for CachedTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("references", &self.references).finish_non_exhaustive()
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
    async fn which_key_the_endpoint_has_is_known_until_the_keys_change() {
        let data = Arc::new(Mutex::new(json!({"secret": "bmV3", "previous": "b2xk"})));
        let answered = Arc::clone(&data);
        let client =
            apiserver(move |_| Answer::Object(json!({"metadata": {"name": "ci"}, "data": *answered.lock().unwrap()})));
        let kept = CachedTarget::read(Arc::new(Reader::new(client)), references()).await.unwrap();
        let first = async || {
            sleep(MAX_AGE).await;
            kept.current().await.unwrap().keys.as_ref().unwrap().first()
        };
        assert_eq!(first().await, KeySlot::Previous);
        kept.copy_at_hand().keys.as_ref().unwrap().prefer(KeySlot::Current);
        assert_eq!(first().await, KeySlot::Current, "read again, and the same");
        *data.lock().unwrap() = json!({"secret": "bmV3", "previous": ""});
        assert_eq!(first().await, KeySlot::Current);
        assert!(kept.copy_at_hand().keys.as_ref().unwrap().previous().is_none(), "an empty key is none");
        *data.lock().unwrap() = json!({"secret": "bmV3ZXN0", "previous": "bmV3"});
        assert_eq!(first().await, KeySlot::Previous, "a rotation begins");
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
        let key = CachedTarget::read(Arc::new(Reader::new(client)), references()).await.unwrap();
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
