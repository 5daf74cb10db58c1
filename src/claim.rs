//! The leader's right to act. The election extends it, and every room asks it before it begins an attempt or a write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The right to begin attempts and writes, until it expires. Cheap to clone and to ask; all clones are one.
#[derive(Clone, Debug)]
pub struct Claim {
    origin: Instant,
    /// Milliseconds after `origin`.
    expiry: Arc<AtomicU64>,
}

impl Claim {
    /// A claim that holds until then.
    #[must_use]
    pub fn until(expiry: Instant) -> Self {
        let claim = Self { origin: Instant::now(), expiry: Arc::new(AtomicU64::new(0)) };
        claim.extend(expiry);
        claim
    }

    /// A claim that nobody ends.
    #[must_use]
    pub fn unbounded() -> Self {
        Self::until(Instant::now() + Duration::from_secs(u32::MAX.into()))
    }

    /// Lets it hold until then, and no longer.
    pub fn extend(&self, expiry: Instant) {
        let millis = expiry.saturating_duration_since(self.origin).as_millis();
        self.expiry.store(millis as u64, Ordering::Release);
    }

    /// Ends it now.
    pub fn end(&self) {
        self.expiry.store(0, Ordering::Release);
    }

    /// Whether an attempt or a write may begin now.
    #[must_use]
    pub fn holds(&self) -> bool {
        let millis = self.origin.elapsed().as_millis() as u64;
        millis < self.expiry.load(Ordering::Acquire)
    }
}
