//! The leader's right to act. The election extends it. Every attempt and every write checks it first.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The right to start attempts and writes, until it expires. It is cheap to clone and to check; all clones share the
/// expiry.
#[derive(Clone, Debug)]
pub struct Claim {
    origin: Instant,
    /// Milliseconds after `origin`.
    expiry: Arc<AtomicU64>,
}

impl Claim {
    /// Creates a claim that expires at this instant.
    #[must_use]
    pub fn until(expiry: Instant) -> Self {
        let claim = Self { origin: Instant::now(), expiry: Arc::new(AtomicU64::new(0)) };
        claim.extend(expiry);
        claim
    }

    /// Creates a claim that never expires.
    #[must_use]
    pub fn unbounded() -> Self {
        Self::until(Instant::now() + Duration::from_secs(u32::MAX.into()))
    }

    /// Sets the expiry.
    pub fn extend(&self, expiry: Instant) {
        let millis = expiry.saturating_duration_since(self.origin).as_millis();
        self.expiry.store(millis as u64, Ordering::Release);
    }

    /// Expires the claim now.
    pub fn end(&self) {
        self.expiry.store(0, Ordering::Release);
    }

    /// Reports whether an attempt or a write may start now.
    #[must_use]
    pub fn holds(&self) -> bool {
        let millis = self.origin.elapsed().as_millis() as u64;
        millis < self.expiry.load(Ordering::Acquire)
    }
}
